//! One tunnel of a peer, and each stream in it: TLS, CONNECT, authorize, dial, copy.
//!
//! Spawned by `inbound.rs`. The order of the checks and the status of each refusal are ztunnel's
//! (wire/hbone.md §1.5). Headers are for logs; identity is what the certificate proves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::policy;
use api::{Snapshot, SpiffeId, Workload};
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use identity::tls;
use telemetry::Chain;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

use crate::connections::Judged;
use crate::drain::{DrainWatch, Tasks};
use crate::hbone::server::Server;
use crate::hbone::{Authority, AuthorityError, BAGGAGE, Baggage, FORWARDED, TRACEPARENT};
use crate::inbound::authorize::{judge, review_one};
use crate::inbound::{DialError, HandshakeGuard, Shared, service_of, workload_at};
use crate::metrics::{Label, Party};
use crate::net;
use crate::net::addr::{ClientAddr, OrigDst, UpstreamAddr};
use crate::net::copy::{End, copy_both_ways};
use crate::report::{Carrier, Direction, Flag, Flagged, Report};

/// Who is at the other end of a tunnel.
struct Peer {
    identity: SpiffeId,
    client: ClientAddr,
    /// Our address of the connection, and so the workload's.
    local: OrigDst,
}

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
    #[error("HTTP/2 failed")]
    Http2(#[source] h2::Error),
}

/// Why a stream was refused, in the order of the checks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InboundError {
    #[error("only CONNECT is served here, not {method}")]
    Method { method: Method },
    #[error("the CONNECT has no authority")]
    NoAuthority,
    #[error("the CONNECT's authority cannot be read")]
    Authority(#[source] AuthorityError),
    #[error("ip mismatch: {authority} was asked for, and this is {local}")]
    NotOurs { authority: SocketAddr, local: OrigDst },
    #[error("no workload of this host is an endpoint of {authority}")]
    NoService { authority: Authority },
    #[error("port {port} is the agent's own: a connection to it would be a loop")]
    OwnPort { port: u16 },
    #[error("no workload of this host listens on port {port} for the mesh")]
    NotListening { port: u16 },
    #[error("the mesh does not know workload {uid} yet, so its policies are not known either")]
    UnknownWorkload { uid: String },
    #[error("{reason}")]
    Denied { reason: String },
    #[error("not connected")]
    Dial(#[source] DialError),
    #[error("the peer gave up before the application answered")]
    Gone(#[source] h2::Error),
}

/// What a CONNECT was found to mean.
struct Target {
    workload: Arc<Workload>,
    address: UpstreamAddr,
}

/// Serves one connection of a peer until it ends.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    tcp: TcpStream,
    client: SocketAddr,
    handshake: HandshakeGuard,
    drain: DrainWatch,
    tasks: Tasks,
) {
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
    let (peer, server) = match shaken {
        Ok(shaken) => shaken,
        // Whoever only looks whether the port is open (a load balancer, a scanner) is no event.
        Err(error @ HandshakeError::Left(_)) => {
            debug!(src.addr = %client, error = %Chain(&error), "no tunnel with a peer");
            return;
        }
        Err(error) => {
            let mut report = Report::new(&shared.observers, Direction::Inbound, client.get());
            report.facts.carrier = Carrier::Hbone;
            return report.failed(&error);
        }
    };
    let peer = Arc::new(peer);
    let take = |request, respond| {
        tasks.spawn(Stream::new(shared.clone(), peer.clone()).serve(request, respond));
    };
    if let Err(error) = server.run(&drain, take).await {
        debug!(src.addr = %client, src.identity = %peer.identity, error = %Chain(&error), "a peer's tunnel broke");
    }
}

async fn shake_hands(shared: &Shared, tcp: TcpStream, client: ClientAddr) -> Result<(Peer, Server), HandshakeError> {
    let refused = |error: std::io::Error| match tls::explain(&error) {
        Some(reason) => HandshakeError::Tls { reason },
        None => HandshakeError::Left(error),
    };
    let local = tcp.local_addr().map(OrigDst::new).map_err(refused)?;
    let default = default_identity(shared, local).ok_or(HandshakeError::NoCertificate)?;
    let config = tls::server_config(&shared.credentials, &default, &[tls::HBONE_ALPN]);
    let config = config.map_err(HandshakeError::Configuration)?;
    let (stream, proof) = net::tls::accept(config, tcp).await.map_err(refused)?;
    let identity = tls::peer_identity(&proof.certificates).map_err(|_| HandshakeError::Identity)?;
    let server = Server::handshake(stream, &shared.config.hbone).await.map_err(HandshakeError::Http2)?;
    Ok((Peer { identity, client, local }, server))
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

/// One CONNECT.
pub(crate) struct Stream {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    report: Report,
}

impl Stream {
    fn new(shared: Arc<Shared>, peer: Arc<Peer>) -> Self {
        let mut report = Report::new(&shared.observers, Direction::Inbound, peer.client.get());
        report.facts.carrier = Carrier::Hbone;
        report.facts.tunnel = Some(peer.local.get());
        report.facts.source.identity = Some(peer.identity.clone());
        Self { shared, peer, report }
    }

    pub(crate) async fn serve(mut self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let (head, recv) = request.into_parts();
        // Boxed, so that a connection that has found its application gives the room back.
        match Box::pin(self.accept(head, &mut respond)).await {
            Ok((application, send, judged)) => {
                let open = self.report.open(Some(judged));
                // Policies may have changed while the application was dialled.
                review_one(&self.shared.view.load(), &open, &self.shared.observers);
                let idle = self.shared.config.inbound.idle_timeout;
                let client = End::Tunnel { send, recv };
                let result = copy_both_ways(client, End::Tcp(application), &open.traffic, idle).await;
                self.report.copied(result);
            }
            Err(error) => {
                let mut response = Response::new(());
                *response.status_mut() = error.status();
                // The peer may be gone, and then nobody needs the answer.
                let _ = respond.send_response(response, true);
                self.report.failed(&error);
            }
        }
    }

    /// All the checks, and the application connected.
    async fn accept(
        &mut self,
        request: Parts,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<(TcpStream, h2::SendStream<Bytes>, Judged), InboundError> {
        let snapshot = self.shared.view.load();
        self.report.facts.revision = snapshot.revision();
        self.report.facts.source.workload = source_workload(&snapshot, &self.peer);
        self.log_headers(&request);
        let target = self.target(&snapshot, &request)?;
        self.report.facts.upstream = Some(target.address.get());
        self.report.facts.destination =
            Party { workload: Some(target.workload.clone()), identity: target.workload.identity().ok() };
        self.report.facts.service = service_of(&snapshot, &target.workload, target.address.get().port());
        let judged = self.authorize(&snapshot, &target)?;
        let dialled = self.shared.dial(self.peer.client, target.address).await;
        let application = dialled.map_err(InboundError::Dial)?;
        let mut response = Response::new(());
        if let Ok(baggage) = HeaderValue::try_from(Baggage::of(&target.workload).to_string()) {
            response.headers_mut().insert(BAGGAGE, baggage);
        }
        let send = respond.send_response(response, false).map_err(InboundError::Gone)?;
        Ok((application, send, judged))
    }

    /// Which workload is meant, and where it listens.
    fn target(&mut self, snapshot: &Snapshot, request: &Parts) -> Result<Target, InboundError> {
        if request.method != Method::CONNECT {
            return Err(InboundError::Method { method: request.method.clone() });
        }
        let authority = request.uri.authority().ok_or(InboundError::NoAuthority)?;
        let authority: Authority = authority.as_str().parse().map_err(InboundError::Authority)?;
        let port = match &authority {
            Authority::Address(address) => {
                self.report.facts.dialled = Some(*address);
                if !is_ours(snapshot, *address, self.peer.local) {
                    return Err(InboundError::NotOurs { authority: *address, local: self.peer.local });
                }
                address.port()
            }
            Authority::Name { host, port } => {
                let found = target_port(snapshot, host, *port);
                found.ok_or_else(|| InboundError::NoService { authority: authority.clone() })?
            }
        };
        if self.shared.own_ports.contains(&port) {
            return Err(InboundError::OwnPort { port });
        }
        let ip = self.peer.local.get().ip();
        let (local, workload) = workload_at(snapshot, ip, port).ok_or(InboundError::NotListening { port })?;
        let unknown = || InboundError::UnknownWorkload { uid: local.uid.to_string() };
        let workload = workload.cloned().ok_or_else(unknown)?;
        Ok(Target { workload, address: UpstreamAddr::new(SocketAddr::new(ip, port)) })
    }

    fn authorize(&mut self, snapshot: &Snapshot, target: &Target) -> Result<Judged, InboundError> {
        let connection = policy::Connection {
            source: Some(self.peer.identity.clone()),
            source_ip: self.peer.client.get().ip(),
            destination: target.address.get(),
        };
        let verdict = judge(snapshot, &target.workload, &connection);
        self.report.facts.policy = verdict.policy().map(str::to_owned);
        if !verdict.allowed() {
            return Err(InboundError::Denied { reason: verdict.reason() });
        }
        Ok(Judged { workload: target.workload.uid.clone(), connection })
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

/// The address of the connection itself, or another of this host's (behind NAT they differ).
fn is_ours(snapshot: &Snapshot, address: SocketAddr, local: OrigDst) -> bool {
    if address.ip() == local.get().ip() {
        return true;
    }
    let locals = snapshot.host().into_iter().flat_map(|host| &host.workloads);
    let mut workloads = locals.filter_map(|local| snapshot.workload(&local.uid));
    workloads.any(|workload| workload.addresses.contains(&address.ip()))
}

/// The port on which a workload of this host serves `host:service_port`.
fn target_port(snapshot: &Snapshot, host: &str, service_port: u16) -> Option<u16> {
    let locals = &snapshot.host()?.workloads;
    let namespace = locals.first().map(|local| local.namespace.as_str());
    snapshot.services_by_hostname(host, namespace).into_iter().find_map(|service| {
        let endpoints = snapshot.endpoints(&service.key(), service_port);
        let is_local = |uid: &str| locals.iter().any(|local| &*local.uid == uid);
        endpoints
            .into_iter()
            .find(|endpoint| is_local(&endpoint.workload.uid))
            .map(|endpoint| endpoint.port.target_port)
    })
}

/// The workload that calls, for telemetry: at its address, with the identity that it proved.
fn source_workload(snapshot: &Snapshot, peer: &Peer) -> Option<Arc<Workload>> {
    let mut here = snapshot.workloads_at(peer.client.get().ip());
    here.find(|workload| workload.identity().is_ok_and(|identity| identity == peer.identity)).cloned()
}

impl InboundError {
    /// The answer to the peer (wire/hbone.md §1.5).
    fn status(&self) -> StatusCode {
        match self {
            Self::Method { .. } | Self::NoAuthority | Self::Authority(_) | Self::NotOurs { .. } => {
                StatusCode::BAD_REQUEST
            }
            Self::NoService { .. }
            | Self::OwnPort { .. }
            | Self::NotListening { .. }
            | Self::UnknownWorkload { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Denied { .. } => StatusCode::UNAUTHORIZED,
            Self::Dial(_) | Self::Gone(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl Flagged for HandshakeError {
    fn flag(&self) -> Flag {
        match self {
            Self::Left(_) | Self::TimedOut { .. } | Self::GivenUp | Self::Tls { .. } | Self::Identity => Flag::Tls,
            Self::NoCertificate | Self::Configuration(_) => Flag::IdentityRequired,
            Self::Http2(_) => Flag::Http2,
        }
    }
}

impl Flagged for InboundError {
    fn flag(&self) -> Flag {
        match self {
            Self::Method { .. } | Self::NoAuthority | Self::Authority(_) => Flag::BadRequest,
            Self::NotOurs { .. } | Self::NoService { .. } => Flag::NoRoute,
            Self::OwnPort { .. } => Flag::Loop,
            Self::NotListening { .. } | Self::UnknownWorkload { .. } => Flag::NoRoute,
            Self::Denied { .. } => Flag::Denied,
            Self::Dial(_) => Flag::Connect,
            Self::Gone(_) => Flag::ClientBroke,
        }
    }
}
