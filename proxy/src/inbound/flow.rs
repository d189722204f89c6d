//! One connection of a peer that speaks `tombolo/1`: header in, one byte out, the flow's bytes; and again.
//!
//! `connection.rs` brings it when TLS stands. What is between question and answer is `admit.rs`.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use telemetry::Chain;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::debug;

use crate::drain::DrainWatch;
use crate::flow::server::{answer, first_byte, read_body};
use crate::flow::{Answer, Header, HeaderError};
use crate::hbone::{Authority, Forwarded};
use crate::inbound::admit::{AdmitError, Peer, admit, open, report};
use crate::inbound::{FIRST_QUESTION, Shared};
use crate::net::copy::{End, copy_both_ways};
use crate::net::tls::TlsStream;
use crate::report::{Carrier, Flag, Flagged, Report};

/// Why a flow was refused.
#[derive(Debug, thiserror::Error)]
enum FlowError {
    #[error("the flow header cannot be read")]
    Header(#[source] HeaderError),
    #[error("no whole flow header within {limit:?}")]
    Slow { limit: Duration },
    #[error(transparent)]
    Refused(AdmitError),
    #[error("the peer gave up before the application answered")]
    Gone(#[source] io::Error),
}

/// Serves the flows of a connection, one after the other, until `not_after`. A block, unlike an `async fn`, keeps
/// what it is given in one place only.
pub(crate) fn serve(
    shared: Arc<Shared>,
    peer: Peer,
    mut stream: Box<TlsStream>,
    not_after: SystemTime,
    drain: DrainWatch,
) -> impl Future<Output = ()> + Send {
    stream.carry_flows();
    let fresh = Instant::now() + FIRST_QUESTION;
    async move {
        while let Some(first) = Box::pin(unused(&shared, &peer, &mut stream, not_after, fresh, drain.clone())).await {
            let Some(used) = serve_one(&shared, &peer, stream, first).await else { return };
            stream = used;
        }
    }
}

/// Serves one flow. The connection again, if it can take another.
fn serve_one(
    shared: &Shared,
    peer: &Peer,
    mut stream: Box<TlsStream>,
    first: u8,
) -> impl Future<Output = Option<Box<TlsStream>>> + Send {
    let mut report = report(shared, peer, Carrier::Flow);
    async move {
        // Boxed, so that a flow that has found its application gives the room back.
        let application = match Box::pin(accept(shared, peer, &mut stream, first, &mut report)).await {
            Ok(application) => application,
            Err(error) => {
                report.failed(&error);
                // The peer may be gone, and then nobody needs the answer.
                let _ = Box::pin(answer(&mut stream, error.answer())).await;
                return None;
            }
        };
        let open = open(shared, &mut report);
        let idle = shared.config.inbound.idle_timeout;
        let (mut client, mut application) = (End::Tls(stream), End::Tcp(application));
        let result = copy_both_ways(&mut client, &mut application, &open.traffic, idle).await;
        let whole = result.is_ok();
        report.copied(result);
        client.next_flow().filter(|_| whole)
    }
}

/// Waits for a flow. `None` when the connection ended without one.
async fn unused(
    shared: &Shared,
    peer: &Peer,
    stream: &mut TlsStream,
    not_after: SystemTime,
    fresh: Instant,
    drain: DrainWatch,
) -> Option<u8> {
    let lasts = not_after.duration_since(SystemTime::now()).unwrap_or_default();
    let limit = shared.config.flow.server_unused_timeout.min(lasts);
    let why = tokio::select! {
        biased;
        first = first_byte(stream) => match first {
            Ok(first) => return Some(first),
            Err(error) => {
                debug!(src.addr = %peer.client, error = %Chain(&error), "a peer closed a connection without a flow");
                return None;
            }
        },
        () = async { drain.signaled().await; sleep_until(fresh).await } => "the agent is shutting down",
        () = sleep(limit) => "nothing came, or the peer's certificate has ended",
    };
    drop(drain);
    debug!(src.addr = %peer.client, src.identity = %peer.identity, why, "closing a connection without a flow");
    // A peer that is gone need not be told.
    let _ = answer(stream, Answer::Closing).await;
    None
}

/// All the checks, the application connected, and the answer.
async fn accept(
    shared: &Shared,
    peer: &Peer,
    stream: &mut TlsStream,
    first: u8,
    report: &mut Report,
) -> Result<TcpStream, FlowError> {
    let limit = shared.config.inbound.handshake_timeout;
    let body = timeout(limit, read_body(stream, first)).await;
    let body = body.map_err(|_| FlowError::Slow { limit })?.map_err(FlowError::Gone)?.map_err(FlowError::Header)?;
    let header = Header::decode(&body).map_err(FlowError::Header)?;
    debug!(
        src.addr = %peer.client,
        src.identity = %peer.identity,
        authority = %header.destination,
        baggage = header.baggage,
        forwarded = %Forwarded { client: header.client, host: header.service },
        traceparent = header.trace.map(tracing::field::display),
        "a peer asks for a connection"
    );
    let admitted = admit(shared, peer, &Authority::Address(header.destination), report).await;
    let admitted = admitted.map_err(FlowError::Refused)?;
    answer(stream, Answer::Accepted).await.map_err(FlowError::Gone)?;
    Ok(admitted.application)
}

impl FlowError {
    fn answer(&self) -> Answer {
        match self {
            Self::Header(_) | Self::Slow { .. } | Self::Gone(_) => Answer::Malformed,
            Self::Refused(AdmitError::NotOurs { .. }) => Answer::NotOurs,
            Self::Refused(AdmitError::Denied { .. }) => Answer::Denied,
            Self::Refused(
                AdmitError::NoService { .. }
                | AdmitError::OwnPort { .. }
                | AdmitError::NotListening { .. }
                | AdmitError::UnknownWorkload { .. },
            ) => Answer::NotListening,
            Self::Refused(AdmitError::Dial(_)) => Answer::Unreachable,
        }
    }
}

impl Flagged for FlowError {
    fn flag(&self) -> Flag {
        match self {
            Self::Header(_) | Self::Slow { .. } => Flag::BadRequest,
            Self::Refused(error) => error.flag(),
            Self::Gone(_) => Flag::ClientBroke,
        }
    }
}
