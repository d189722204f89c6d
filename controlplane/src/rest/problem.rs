//! Refusals as answers: an HTTP status and an `ErrorBody` that says what to do.

use api::rest::ErrorBody;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tracing::{error, warn};

use crate::registry::{HostActionError, TokenCreateError};
use crate::resources::{ApplyError, DeleteError};
use crate::store::StoreError;

#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    body: ErrorBody,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        let body =
            ErrorBody { code: code.to_owned(), message: message.into(), hint: hint.into(), mistakes: Vec::new() };
        Self { status, body }
    }

    pub(crate) fn invalid(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message, hint)
    }

    pub(crate) fn not_found(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message, hint)
    }

    fn conflict(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message, hint)
    }

    fn with(mut self, mistakes: Vec<String>) -> Self {
        self.body.mistakes = mistakes;
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let unauthenticated = self.status == StatusCode::UNAUTHORIZED;
        let later = self.status == StatusCode::SERVICE_UNAVAILABLE;
        let mut response = (self.status, Json(self.body)).into_response();
        if unauthenticated {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if later {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        response
    }
}

impl From<StoreError> for Problem {
    fn from(failure: StoreError) -> Self {
        if failure.is_temporary() {
            warn!(error = %telemetry::Chain(&failure), "a request failed because of the database");
            return Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", failure.to_string(), failure.hint());
        }
        error!(error = %telemetry::Chain(&failure), "a request failed because of the database");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", failure.to_string(), failure.hint())
    }
}

impl From<ApplyError> for Problem {
    fn from(refusal: ApplyError) -> Self {
        let message = refusal.to_string();
        match refusal {
            ApplyError::Invalid { mistakes } => {
                Self::invalid(message, "correct what is listed and apply it again").with(mistakes)
            }
            ApplyError::Conflict { mistakes } => {
                Self::conflict(message, "change what is listed, or the other object first").with(mistakes)
            }
            ApplyError::Store(failure) => failure.into(),
        }
    }
}

impl From<DeleteError> for Problem {
    fn from(refusal: DeleteError) -> Self {
        let message = refusal.to_string();
        match refusal {
            DeleteError::NotFound { kind, namespace, .. } => {
                Self::not_found(message, format!("`tombolo get {kind} -n {namespace}` shows what there is"))
            }
            DeleteError::GroupInUse { .. } => Self::conflict(message, "`tombolo host list` shows the hosts"),
            DeleteError::Store(failure) => failure.into(),
        }
    }
}

impl From<HostActionError> for Problem {
    fn from(refusal: HostActionError) -> Self {
        let message = refusal.to_string();
        match refusal {
            HostActionError::NotFound { .. } => Self::not_found(message, "`tombolo host list` shows the hosts"),
            HostActionError::WrongState { .. } => Self::conflict(message, "`tombolo host list` shows their states"),
            HostActionError::Store(failure) => failure.into(),
        }
    }
}

impl From<TokenCreateError> for Problem {
    fn from(refusal: TokenCreateError) -> Self {
        let message = refusal.to_string();
        match refusal {
            TokenCreateError::Invalid { mistakes } => {
                Self::invalid(message, "correct what is listed and ask again").with(mistakes)
            }
            TokenCreateError::Store(failure) => failure.into(),
        }
    }
}
