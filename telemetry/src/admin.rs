//! A small HTTP/1.1 server for what a program says of itself: `/metrics`, health, the admin API.
//!
//! Programs give it listeners and a [`Handler`]; it bounds what a client may cost (connections,
//! header, body, time), tells the handler where a request came from, and outlives a handler's
//! panic. It knows no route and no mesh type.

mod connection;
mod listener;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use listener::{BindError, Listener, UnixSocket, Unplaced, refuse_unless_stale};

/// Largest request body that is read; a longer one is answered 413.
pub const BODY_LIMIT_BYTES: usize = 1024 * 1024;
/// Connections served at once per listener; further ones are closed at once.
const CONNECTIONS: usize = 128;
/// How long open requests may go on once the server is told to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// Where a request came from; what it may do depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The Unix socket: whoever its file mode lets in.
    Unix,
    /// A process of this host, which asked for this host by a loopback name or address.
    Loopback,
    /// Anyone: another host, or a browser page that got hold of a loopback address.
    Any,
}

/// What a handler answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: Bytes,
}

/// A boxed future, as a trait object's method must return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Answers requests. A request is carried out to its end even when its client has gone.
pub trait Handler: Send + Sync + 'static {
    fn handle(
        &self,
        method: Method,
        path_and_query: PathAndQuery,
        body: Bytes,
        origin: Origin,
    ) -> BoxFuture<'_, Response>;
}

/// Serves until `shutdown` is done, then lets open requests end within five seconds.
pub async fn serve(listener: Listener, handler: Arc<dyn Handler>, shutdown: impl Future<Output = ()> + Send) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_ended) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
        let (handler, stopped) = (handler.clone(), stopped.clone());
        connections.spawn(async move {
            connection::serve(accepted, handler, stopped).await;
            drop(slot);
        });
    }
    drop(listener);
    drop(stop);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if timeout(DRAIN, all_ended).await.is_err() {
        tracing::warn!("admin requests were still open after {DRAIN:?} and are cut");
    }
}

impl Response {
    pub fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status, content_type, body: body.into() }
    }

    /// A line of text for people.
    pub fn text(status: StatusCode, text: impl Into<String>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", text.into())
    }

    pub fn json(status: StatusCode, body: &serde_json::Value) -> Self {
        Self::new(status, "application/json", body.to_string())
    }

    /// The answer to a scrape, see [`crate::metrics::encode_text`].
    pub fn metrics(registry: &crate::metrics::Registry) -> Self {
        Self::new(StatusCode::OK, crate::metrics::CONTENT_TYPE, crate::metrics::encode_text(registry))
    }
}

#[cfg(test)]
mod tests;
