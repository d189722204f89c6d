//! The server side of HTTP/2 for one peer: streams in, limits, keepalive, GOAWAY.
//!
//! `inbound/connection.rs` brings the TLS connection and takes the streams. Settings are ztunnel's
//! (`src/proxy/h2/server.rs`); what a hostile peer can cost is bounded here (streams, header bytes, frames,
//! resets) and by h2 itself (CONTINUATION, empty frames, local resets).

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Builder, Connection, SendResponse};
use http::Request;

use crate::config::HboneConfig;
use crate::hbone::keepalive::Keepalive;
use crate::net::tls::TlsStream;

/// A peer that speaks HTTP/2.
pub(crate) struct Server {
    connection: Connection<TlsStream, Bytes>,
    keepalive: Option<Keepalive>,
}

/// Why a peer's connection ended before it was closed in order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("HTTP/2 failed")]
    Http2(#[source] h2::Error),
    #[error("the peer broke the connection")]
    Broken(#[source] io::Error),
    #[error("the peer did not answer a PING")]
    Silent,
}

impl Server {
    /// Reads the preface and exchanges settings.
    pub(crate) async fn handshake(stream: TlsStream, config: &HboneConfig) -> Result<Self, h2::Error> {
        let mut builder = Builder::new();
        builder
            .initial_window_size(config.stream_window_bytes)
            .initial_connection_window_size(config.connection_window_bytes)
            .max_frame_size(config.max_frame_bytes)
            .max_header_list_size(config.server_max_header_bytes)
            .max_concurrent_streams(config.server_max_streams)
            .max_pending_accept_reset_streams(config.max_pending_reset_streams)
            .max_send_buffer_size(config.max_send_buffer_bytes);
        let mut connection = builder.handshake(stream).await?;
        let keepalive = connection.ping_pong().map(|ping_pong| Keepalive::new(ping_pong, config));
        Ok(Self { connection, keepalive })
    }

    /// Hands every stream to `take` until the peer closes. When `leave` completes it says GOAWAY and
    /// goes on until the last stream has ended.
    pub(crate) async fn run(
        mut self,
        leave: impl Future<Output = ()>,
        mut take: impl FnMut(Request<RecvStream>, SendResponse<Bytes>),
    ) -> Result<(), ServeError> {
        let mut leave = pin!(leave);
        let mut leaving = false;
        poll_fn(|cx| {
            if !leaving && leave.as_mut().poll(cx).is_ready() {
                leaving = true;
                self.connection.graceful_shutdown();
            }
            while let Poll::Ready(accepted) = self.connection.poll_accept(cx) {
                match accepted {
                    Some(Ok((request, respond))) => take(request, respond),
                    Some(Err(error)) => return Poll::Ready(Err(ServeError::from(error))),
                    None => return Poll::Ready(Ok(())),
                }
            }
            if self.keepalive.as_mut().is_some_and(|keepalive| keepalive.poll(cx).is_ready()) {
                return Poll::Ready(Err(ServeError::Silent));
            }
            Poll::Pending
        })
        .await
    }
}

impl From<h2::Error> for ServeError {
    fn from(error: h2::Error) -> Self {
        if !error.is_io() {
            return Self::Http2(error);
        }
        Self::Broken(error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()))
    }
}
