//! Asks the running agent over its Unix socket: HTTP/1.1, one request a connection.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use api::rest::ErrorBody;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// Switching interception on tests the host, and leaving waits for a drain.
const LIMIT: Duration = Duration::from_secs(90);
/// A snapshot of a large mesh as JSON.
const MAX_ANSWER_BYTES: usize = 512 << 20;

/// The agent on this host.
#[derive(Debug, Clone)]
pub(crate) struct AdminClient {
    socket: PathBuf,
}

/// Why the agent did not answer, or did not agree.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    #[error(
        "the agent does not run (nothing answers on {}): start it with `systemctl start tombolo-agent`, and see \
         `journalctl -u tombolo-agent`", socket.display()
    )]
    NotRunning { socket: PathBuf },
    #[error("only root may ask the agent (on {}): use sudo", socket.display())]
    NotPermitted { socket: PathBuf },
    #[error("{}", .0.message)]
    Refused(ErrorBody),
    #[error("the agent's answer cannot be used: {0}")]
    Broken(String),
    #[error("the agent did not answer within {LIMIT:?}")]
    TimedOut,
}

impl AdminClient {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AdminError> {
        self.ask(Method::GET, path, vec![]).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, AdminError> {
        let body = serde_json::to_vec(body).map_err(|error| AdminError::Broken(error.to_string()))?;
        self.ask(Method::POST, path, body).await
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> Result<T, AdminError> {
        let asked = tokio::time::timeout(LIMIT, self.exchange(method, path, body)).await;
        let (status, bytes) = asked.map_err(|_| AdminError::TimedOut)??;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| AdminError::Broken(error.to_string()));
        }
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(refusal) => Err(AdminError::Refused(refusal)),
            Err(_) => Err(AdminError::Broken(format!("it answered {status}"))),
        }
    }

    async fn exchange(&self, method: Method, path: &str, body: Vec<u8>) -> Result<(StatusCode, Bytes), AdminError> {
        let broken = |error: hyper::Error| AdminError::Broken(format!("{:#}", anyhow::Error::from(error)));
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreached(&error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "localhost")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| AdminError::Broken(error.to_string()))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
            Ok((status, body.map_err(|error| AdminError::Broken(error.to_string()))?.to_bytes()))
        };
        tokio::pin!(exchange);
        tokio::select! {
            done = &mut exchange => done,
            _ = connection => exchange.await,
        }
    }

    fn unreached(&self, error: &io::Error) -> AdminError {
        let socket = self.socket.clone();
        match error.kind() {
            io::ErrorKind::PermissionDenied => AdminError::NotPermitted { socket },
            _ => AdminError::NotRunning { socket },
        }
    }
}

/// Percent-encodes what stands in a query.
pub(crate) fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
