//! One connection of a peer to the tunnel port: TLS, and then HBONE or `tombolo/1`, as ALPN has it.
//!
//! Spawned by `inbound.rs`. `stream.rs` is each stream of HBONE, `flow.rs` the flows of `tombolo/1`.
//! A peer that does not offer `tombolo/1` sees nothing but HBONE.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::SpiffeId;
use identity::tls;
use telemetry::Chain;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use crate::drain::{DrainWatch, Tasks};
use crate::hbone::server::Server;
use crate::inbound::admit::Peer;
use crate::inbound::stream::Stream;
use crate::inbound::{FIRST_QUESTION, HandshakeGuard, Shared, flow};
use crate::metrics::Label;
use crate::net;
use crate::net::addr::{ClientAddr, OrigDst};
use crate::net::tls::TlsStream;
use crate::report::{Carrier, Direction, Flag, Flagged, Report};
use crate::standing::Who;

/// A peer whose TLS stands, and what it chose to speak.
enum Spoken {
    Hbone(Peer, Box<Server>),
    Flow { peer: Peer, stream: Box<TlsStream>, not_after: SystemTime },
}

/// What is left to do then, in room of its own: HTTP/2 needs ten times that of a flow.
type Rest = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Why there is no tunnel with a peer.
#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("the peer left before the handshake was over")]
    Left(#[source] std::io::Error),
    #[error("no usable handshake within {limit:?}")]
    TimedOut { limit: Duration },
    #[error("too many handshakes in progress, and this was the oldest")]
    GivenUp,
    #[error("no workload of this host has a certificate yet")]
    NoCertificate,
    #[error("no TLS configuration")]
    Configuration(#[source] tls::TlsError),
    #[error("{reason}")]
    Tls { reason: String },
    #[error("the certificate that was verified cannot be read")]
    Identity,
    #[error("the session that was resumed is that of a certificate that has expired")]
    Expired,
    #[error("HTTP/2 failed")]
    Http2(#[source] h2::Error),
}

/// Serves one connection of a peer until it ends. What the handshake needs, its arguments included, is given back
/// when TLS stands.
pub(crate) fn serve(
    shared: Arc<Shared>,
    tcp: TcpStream,
    client: SocketAddr,
    handshake: HandshakeGuard,
    drain: DrainWatch,
    tasks: Tasks,
) -> impl Future<Output = ()> + Send {
    let begun = Box::pin(begin(shared, tcp, client, handshake, drain, tasks));
    async {
        if let Some(rest) = begun.await {
            rest.await;
        }
    }
}

async fn begin(
    shared: Arc<Shared>,
    tcp: TcpStream,
    client: SocketAddr,
    handshake: HandshakeGuard,
    drain: DrainWatch,
    tasks: Tasks,
) -> Option<Rest> {
    let client = ClientAddr::new(client);
    let limit = shared.config.inbound.handshake_timeout;
    let shaken = tokio::select! {
        shaken = timeout(limit, Box::pin(shake_hands(&shared, tcp, client))) => {
            shaken.unwrap_or(Err(HandshakeError::TimedOut { limit }))
        }
        () = handshake.given_up() => Err(HandshakeError::GivenUp),
    };
    drop(handshake);
    let result = Label("result", if shaken.is_ok() { "ok" } else { "failed" });
    shared.observers.metrics.handshakes.get_or_create(&result).inc();
    match shaken {
        Ok(Spoken::Hbone(peer, server)) => return Some(Box::pin(serve_streams(shared, peer, server, drain, tasks))),
        Ok(Spoken::Flow { peer, stream, not_after }) => {
            return Some(Box::pin(flow::serve(shared, peer, stream, not_after, drain)));
        }
        // Whoever only looks whether the port is open (a load balancer, a scanner) is no event.
        Err(error @ HandshakeError::Left(_)) => {
            debug!(src.addr = %client, error = %Chain(&error), "no tunnel with a peer");
        }
        Err(error) => {
            let mut report = Report::new(&shared.observers, Direction::Inbound, client.get());
            report.facts.carrier = Carrier::Hbone;
            report.failed(&error);
        }
    }
    None
}

async fn serve_streams(shared: Arc<Shared>, peer: Peer, server: Box<Server>, drain: DrainWatch, tasks: Tasks) {
    let peer = Arc::new(peer);
    let take = |request, respond| {
        tasks.spawn(Stream::new(shared.clone(), peer.clone()).serve(request, respond));
    };
    let fresh = Instant::now() + FIRST_QUESTION;
    let leave = async {
        tokio::select! {
            () = async { drain.signaled().await; sleep_until(fresh).await } => {}
            () = peer.standing.ended() => {}
        }
    };
    if let Err(error) = server.run(leave, take).await {
        debug!(
            src.addr = %peer.client, src.identity = %peer.identity, error = %Chain(&error), "a peer's tunnel broke"
        );
    }
}

async fn shake_hands(shared: &Shared, tcp: TcpStream, client: ClientAddr) -> Result<Spoken, HandshakeError> {
    let refused = |error: std::io::Error| match tls::explain(&error) {
        Some(reason) => HandshakeError::Tls { reason },
        None => HandshakeError::Left(error),
    };
    let local = tcp.local_addr().map(OrigDst::new).map_err(refused)?;
    let default = default_identity(shared, local).ok_or(HandshakeError::NoCertificate)?;
    let hello = net::tls::hello(tcp).await.map_err(refused)?;
    let offered = hello.offers(tls::FLOW_ALPN);
    let config = match offered {
        true => shared.flow_servers.config(&default),
        false => tls::server_config(&shared.credentials, &default, &[tls::HBONE_ALPN]),
    };
    let config = config.map_err(HandshakeError::Configuration)?;
    let (stream, proof) = net::tls::accept(config, hello).await.map_err(refused)?;
    let identity = tls::peer_identity(&proof.certificates).map_err(|_| HandshakeError::Identity)?;
    let not_after = tls::peer_not_after(&proof.certificates).map_err(|_| HandshakeError::Identity)?;
    // A session is resumed without a look at the certificate.
    if not_after < SystemTime::now() {
        return Err(HandshakeError::Expired);
    }
    let caller = Who::Caller(identity.clone(), client.get().ip());
    let standing = shared.standings.proved(caller, not_after, None).standing;
    // All connections of a caller hold its name once.
    let identity = standing.caller().cloned().unwrap_or(identity);
    let peer = Peer { identity, client, local, standing };
    if !offered {
        let server = Server::handshake(stream, &shared.config.hbone).await.map_err(HandshakeError::Http2)?;
        return Ok(Spoken::Hbone(peer, Box::new(server)));
    }
    Ok(Spoken::Flow { peer, stream: Box::new(stream), not_after })
}

/// Whose certificate is shown to a caller that names none: the first workload with that address.
fn default_identity(shared: &Shared, local: OrigDst) -> Option<SpiffeId> {
    let snapshot = shared.view.load();
    let trust_domain = shared.credentials.trust_domain();
    let here = |uid: &str| snapshot.workload(uid).is_some_and(|w| w.addresses.contains(&local.get().ip()));
    let mut locals: Vec<_> = snapshot.host()?.workloads.iter().collect();
    locals.sort_by_key(|workload| (!here(&workload.uid), &workload.uid));
    let mut identities = locals.into_iter().filter_map(|workload| workload.identity(trust_domain).ok());
    identities.find(|identity| shared.credentials.svid(identity).is_some())
}

impl Flagged for HandshakeError {
    fn flag(&self) -> Flag {
        match self {
            Self::Left(_)
            | Self::TimedOut { .. }
            | Self::GivenUp
            | Self::Tls { .. }
            | Self::Identity
            | Self::Expired => Flag::Tls,
            Self::NoCertificate | Self::Configuration(_) => Flag::IdentityRequired,
            Self::Http2(_) => Flag::Http2,
        }
    }
}
