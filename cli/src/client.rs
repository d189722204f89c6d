//! The control plane's REST API, as the operator's commands call it: paths and bodies of `api::rest`.
//!
//! Every failure is told apart: not reachable, not the control plane we trust, no valid token, not
//! allowed, refused with reasons, or an answer nobody understands.

mod trust;

use std::error::Error as _;
use std::time::Duration;

use api::rest::ErrorBody;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::config::Connection;
use crate::exit::Exit;

/// How long a connection to the control plane may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long an answer may take; an apply of thousands of objects takes seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// One control plane and one operator.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    server: Url,
    token: String,
}

/// A call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("cannot use {what}")]
    Setting {
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("cannot reach the control plane at {server}: {why}")]
    Unreachable { server: String, why: String },
    #[error("{server} is not the control plane you trust: {why}")]
    NotTrusted { server: String, why: String },
    #[error("{server} did not answer within {limit:?}")]
    TimedOut { server: String, limit: Duration },
    #[error("{}", .body.message)]
    Refused { status: StatusCode, body: ErrorBody },
    #[error("what listens at {server} is not the control plane's API: it answered {status} {start:?}")]
    NotOurs { server: String, status: StatusCode, start: String },
}

impl ClientError {
    /// What to do about it; empty when there is nothing to say.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Setting { .. } => String::new(),
            Self::Unreachable { .. } => "check --server (TOMBOLO_URL), the network, and that it runs".to_owned(),
            Self::NotTrusted { .. } => {
                "give the control plane's own ca.pem with --ca (TOMBOLO_CA); it lies in its data folder".to_owned()
            }
            Self::TimedOut { .. } => "try again; its log says what it is busy with".to_owned(),
            Self::Refused { status, body } if body.hint.is_empty() => match *status {
                StatusCode::UNAUTHORIZED => "check the token in TOMBOLO_TOKEN or --token-file".to_owned(),
                StatusCode::FORBIDDEN => "ask for a token with a role that may do this".to_owned(),
                _ => String::new(),
            },
            Self::Refused { body, .. } => body.hint.clone(),
            Self::NotOurs { .. } => format!(
                "check --server (TOMBOLO_URL): something else listens there; the operators' API has port {}",
                api::ports::CONTROL_PLANE_REST
            ),
        }
    }

    pub(crate) fn mistakes(&self) -> &[String] {
        match self {
            Self::Refused { body, .. } => &body.mistakes,
            _ => &[],
        }
    }

    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Refused { status, .. } if *status == StatusCode::FORBIDDEN => Exit::Refused,
            _ => Exit::Failed,
        }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
    }
}

impl Client {
    pub(crate) fn new(connection: &Connection) -> Result<Self, ClientError> {
        let tls = trust::client_config(&connection.trust)?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .connect_timeout(CONNECT_LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("tombolo/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|source| ClientError::Setting { what: "the connection settings".into(), source: source.into() })?;
        Ok(Self { http, server: connection.server.clone(), token: connection.token.clone() })
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, ClientError> {
        self.call(Method::GET, path, &[], None::<&()>, ANSWER_LIMIT).await
    }

    pub(crate) async fn find<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, ClientError> {
        self.call(Method::GET, path, query, None::<&()>, ANSWER_LIMIT).await
    }

    /// A `GET` that the server answers late.
    pub(crate) async fn wait<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        patience: Duration,
    ) -> Result<T, ClientError> {
        self.call(Method::GET, path, query, None::<&()>, patience + CONNECT_LIMIT).await
    }

    pub(crate) async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        body: &B,
    ) -> Result<T, ClientError> {
        self.call(Method::POST, path, query, Some(body), ANSWER_LIMIT).await
    }

    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, ClientError> {
        self.call(Method::DELETE, path, &[], None::<&()>, ANSWER_LIMIT).await
    }

    async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&B>,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let mut request = self.http.request(method, self.url(path, query)).bearer_auth(&self.token).timeout(limit);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|error| self.failed(&error, limit))?;
        let status = answer.status();
        let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let is_json = kind.starts_with("application/json");
        let bytes = answer.bytes().await.map_err(|error| self.failed(&error, limit))?;
        if status.is_success() {
            let text: &[u8] = if status == StatusCode::NO_CONTENT { b"null" } else { &bytes };
            // Others answer 200 too: a gRPC port to everything, a proxy with a page of its own.
            if !is_json && status != StatusCode::NO_CONTENT {
                return Err(self.not_ours(status, &bytes));
            }
            return serde_json::from_slice(text).map_err(|_| self.not_ours(status, &bytes));
        }
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => Err(ClientError::Refused { status, body }),
            Err(_) => Err(self.not_ours(status, &bytes)),
        }
    }

    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.server.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    fn server(&self) -> String {
        self.server.as_str().trim_end_matches('/').to_owned()
    }

    fn failed(&self, error: &reqwest::Error, limit: Duration) -> ClientError {
        let server = self.server();
        if let Some(why) = identity::tls::explain(error) {
            return ClientError::NotTrusted { server, why };
        }
        if error.is_timeout() && !error.is_connect() {
            return ClientError::TimedOut { server, limit };
        }
        // The last cause is the plain one: "Connection refused", "no record found".
        let mut cause = error.source();
        let mut why = error.to_string();
        while let Some(error) = cause {
            why = error.to_string();
            cause = error.source();
        }
        ClientError::Unreachable { server, why }
    }

    fn not_ours(&self, status: StatusCode, bytes: &[u8]) -> ClientError {
        let start: String = String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).take(100).collect();
        ClientError::NotOurs { server: self.server(), status, start }
    }
}

#[cfg(test)]
mod tests;
