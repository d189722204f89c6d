//! What handlers take from a request, with refusals that say what is wrong in our own words.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

/// The query; unknown parameters are refused where the type says so.
pub(super) struct Params<T>(pub(super) T);

/// The variable parts of the path.
pub(super) struct At<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        let bytes = Bytes::from_request(request, state).await.map_err(unreadable)?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            let hint = "send JSON as GET /openapi.json describes it; `tombolo apply` turns YAML into it";
            Problem::invalid(format!("the body is not what this path takes: {error}"), hint)
        })
    }
}

fn unreadable(rejection: BytesRejection) -> Problem {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let hint = "apply fewer resources at once";
        return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid", "the body is larger than 10 MiB", hint);
    }
    Problem::invalid(format!("the body could not be read: {}", rejection.body_text()), "send it again")
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let read: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        let hint = "GET /openapi.json lists the parameters of every path";
        read.map(|Query(params)| Self(params)).map_err(|rejection| Problem::invalid(rejection.body_text(), hint))
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for At<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let read: Result<Path<T>, PathRejection> = Path::from_request_parts(parts, state).await;
        let hint = "GET /openapi.json lists every path";
        read.map(|Path(path)| Self(path)).map_err(|rejection| Problem::invalid(rejection.body_text(), hint))
    }
}
