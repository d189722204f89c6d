//! One stream of a peer's HBONE tunnel: CONNECT in, status out. `connection.rs` takes them.
//!
//! What is between question and answer is `admit.rs`. The status of each refusal is ztunnel's
//! (`src/proxy/inbound.rs`). Headers are for logs.

use std::sync::Arc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use tokio::net::TcpStream;
use tracing::debug;

use crate::hbone::{Authority, AuthorityError, BAGGAGE, Baggage, FORWARDED, TRACEPARENT};
use crate::inbound::Shared;
use crate::inbound::admit::{AdmitError, Peer, admit, open, report};
use crate::net::copy::{End, copy_both_ways};
use crate::report::{Carrier, Flag, Flagged, Report};

/// Why a stream was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("only CONNECT is served here, not {method}")]
    Method { method: Method },
    #[error("the CONNECT has no authority")]
    NoAuthority,
    #[error("the CONNECT's authority cannot be read")]
    Authority(#[source] AuthorityError),
    #[error(transparent)]
    Refused(AdmitError),
    #[error("the peer gave up before the application answered")]
    Gone(#[source] h2::Error),
}

/// One CONNECT.
pub(crate) struct Stream {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    report: Report,
}

impl Stream {
    pub(crate) fn new(shared: Arc<Shared>, peer: Arc<Peer>) -> Self {
        let report = report(&shared, &peer, Carrier::Hbone);
        Self { shared, peer, report }
    }

    /// A block, unlike an `async fn`, keeps what it is given in one place only; what only the answer needs is boxed, so
    /// that a connection that has found its application gives the room back.
    pub(crate) fn serve(
        mut self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> impl Future<Output = ()> + Send {
        let (head, recv) = request.into_parts();
        let head = Box::new(head);
        async move {
            let (application, send) = match Box::pin(self.accept(head, &mut respond)).await {
                Ok(accepted) => accepted,
                Err(error) => {
                    let mut response = Response::new(());
                    *response.status_mut() = error.status();
                    // The peer may be gone, and then nobody needs the answer.
                    let _ = respond.send_response(response, true);
                    return self.report.failed(&error);
                }
            };
            let open = open(&self.shared, &mut self.report);
            let idle = self.shared.config.inbound.idle_timeout;
            let (mut client, mut application) = (End::Tunnel { send, recv }, End::Tcp(application));
            let result = copy_both_ways(&mut client, &mut application, &open.traffic, idle).await;
            self.report.copied(result);
        }
    }

    /// All the checks, the application connected, and the answer.
    async fn accept(
        &mut self,
        request: Box<Parts>,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<(TcpStream, h2::SendStream<Bytes>), StreamError> {
        self.log_headers(&request);
        if request.method != Method::CONNECT {
            return Err(StreamError::Method { method: request.method });
        }
        let authority = request.uri.authority().ok_or(StreamError::NoAuthority)?;
        let authority: Authority = authority.as_str().parse().map_err(StreamError::Authority)?;
        let admitted = admit(&self.shared, &self.peer, &authority, &mut self.report).await;
        let admitted = admitted.map_err(StreamError::Refused)?;
        let mut response = Response::new(());
        if let Ok(baggage) = HeaderValue::try_from(Baggage::of(&admitted.workload).to_string()) {
            response.headers_mut().insert(BAGGAGE, baggage);
        }
        let send = respond.send_response(response, false).map_err(StreamError::Gone)?;
        Ok((admitted.application, send))
    }

    fn log_headers(&self, request: &Parts) {
        let header = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
        debug!(
            src.addr = %self.peer.client,
            src.identity = %self.peer.identity,
            authority = request.uri.authority().map(|authority| authority.as_str()),
            baggage = header(BAGGAGE),
            forwarded = header(FORWARDED),
            traceparent = header(TRACEPARENT),
            "a peer asks for a connection"
        );
    }
}

impl StreamError {
    /// The answer to the peer, as ztunnel's `src/proxy/inbound.rs` has it.
    fn status(&self) -> StatusCode {
        match self {
            Self::Method { .. }
            | Self::NoAuthority
            | Self::Authority(_)
            | Self::Refused(AdmitError::NotOurs { .. }) => StatusCode::BAD_REQUEST,
            Self::Refused(AdmitError::Denied { .. }) => StatusCode::UNAUTHORIZED,
            Self::Refused(
                AdmitError::NoService { .. }
                | AdmitError::OwnPort { .. }
                | AdmitError::NotListening { .. }
                | AdmitError::UnknownWorkload { .. }
                | AdmitError::Dial(_),
            )
            | Self::Gone(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl Flagged for StreamError {
    fn flag(&self) -> Flag {
        match self {
            Self::Method { .. } | Self::NoAuthority | Self::Authority(_) => Flag::BadRequest,
            Self::Refused(error) => error.flag(),
            Self::Gone(_) => Flag::ClientBroke,
        }
    }
}
