//! One outbound connection, in four steps: where was it going, what does the mesh say, dial, copy.
//!
//! Spawned by `outbound.rs` for each accepted socket. Everything that can fail happens before the
//! first byte moves; what fails is reset, so that the application sees a refusal and not a silence.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::{HostConfig, LocalWorkload, Snapshot, SpiffeId, Workload};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

use crate::flow::Header;
use crate::flow::pool::{Open, Origin};
use crate::hbone::client::{Connect, Key, TunnelError};
use crate::hbone::pool::Lease;
use crate::hbone::{Baggage, Forwarded, TraceParent};
use crate::metrics::Party;
use crate::net::addr::{ClientAddr, OrigDst, UpstreamAddr};
use crate::net::copy::{End, copy_both_ways};
use crate::net::socket;
use crate::outbound::Shared;
use crate::outbound::balance::choose;
use crate::outbound::decide::{Candidate, Decision, Path, Refusal, decide, on_tombolo_host};
use crate::outbound::load::Counted;
use crate::report::{Carrier, Direction, Flag, Flagged, Report};

/// One accepted connection of a local process.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    report: Report,
}

/// Why a local process's connection was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutboundError {
    #[error(
        "this connection was not intercepted: {client} dialled the agent's own port {listener} itself, \
         and going on would be a loop"
    )]
    NotIntercepted { client: ClientAddr, listener: SocketAddr },
    #[error("{0}")]
    Refused(Refusal),
    #[error(
        "{destination} takes mTLS only, and the process that dialled it belongs to no workload of this host: \
         add a workload whose selector matches the process"
    )]
    NoWorkload { destination: String },
    #[error("{destination} takes mTLS only, and there is no certificate for {identity} on this host yet")]
    NoCertificate { destination: String, identity: String },
    #[error("cannot reach {destination}")]
    Plain {
        destination: UpstreamAddr,
        #[source]
        source: io::Error,
    },
    #[error("no answer from {destination} within {limit:?}")]
    TimedOut { destination: UpstreamAddr, limit: Duration },
    #[error("no tunnel to {destination}")]
    Tunnel {
        destination: UpstreamAddr,
        #[source]
        source: Arc<TunnelError>,
    },
}

/// The next hop, connected.
struct Upstream {
    end: End,
    /// Where the connection belongs when its flow is over.
    origin: Option<Box<Origin>>,
    _held: (Option<Counted>, Option<Lease>),
}

/// What is the same for every attempt of one connection.
struct Caller {
    snapshot: Arc<Snapshot>,
    own: Option<Own>,
    dialled: OrigDst,
    /// The name of the service that was dialled.
    service: Option<String>,
}

/// One workload of this host, kept in the configuration that names it.
struct Own {
    host: Arc<HostConfig>,
    index: usize,
}

impl Connection {
    pub(crate) fn new(shared: Arc<Shared>, client: SocketAddr) -> Self {
        let report = Report::new(&shared.observers, Direction::Outbound, ClientAddr::new(client).get());
        Self { shared, report }
    }

    #[expect(clippy::manual_async_fn, reason = "a block, unlike an async fn, keeps what it is given in one place only")]
    pub(crate) fn serve(mut self, app: TcpStream) -> impl Future<Output = ()> + Send {
        async move {
            // Boxed, so that a connection that has found its upstream gives the room back.
            let mut upstream = match Box::pin(self.connect(&app)).await {
                Ok(upstream) => upstream,
                Err(error) => {
                    socket::reset_on_close(&app);
                    return self.report.failed(&error);
                }
            };
            let open = self.report.open();
            let idle = self.shared.config.outbound.idle_timeout;
            let mut app = End::Tcp(app);
            let result = copy_both_ways(&mut app, &mut upstream.end, &open.traffic, idle).await;
            if let (Some(origin), true) = (upstream.origin, result.is_ok()) {
                origin.give_back(upstream.end);
            }
            self.report.copied(result);
        }
    }

    fn client(&self) -> ClientAddr {
        ClientAddr::new(self.report.facts.client)
    }

    /// Where was it going, what does the mesh say, who of those can serve it.
    async fn connect(&mut self, app: &TcpStream) -> Result<Upstream, OutboundError> {
        let dialled = self.dialled(app)?;
        let snapshot = self.shared.view.load();
        let own = self.own(&snapshot, dialled);
        self.report.facts.dialled = Some(dialled.get());
        self.report.facts.revision = snapshot.revision();
        let decision = decide(&snapshot, dialled.get(), own.as_ref().map(Own::workload), &self.shared.own_ports);
        let mut caller = Caller { snapshot, own, dialled, service: None };
        let identity = self.identity(&caller).ok();
        self.report.facts.source = Party { workload: caller.workload().cloned(), identity };
        match decision {
            Decision::Refuse(refusal) => Err(OutboundError::Refused(refusal)),
            Decision::Passthrough { workload } => {
                self.report.facts.destination = Party { workload, identity: None };
                self.plain(UpstreamAddr::new(dialled.get()), None).await
            }
            // Interception takes the connections of every process, also of those that are no workload:
            // to an address that is really the peer's they go as they would without us.
            Decision::Workload(candidate) if caller.own.is_none() => {
                self.report.facts.destination = Party { workload: Some(candidate.workload), identity: None };
                self.plain(UpstreamAddr::new(dialled.get()), None).await
            }
            Decision::Workload(candidate) => self.try_candidates(&caller, vec![candidate]).await,
            Decision::Service { service, candidates, .. } => {
                caller.service = Some(service.hostname.clone());
                self.report.facts.service = Some(service);
                self.try_candidates(&caller, candidates).await
            }
        }
    }

    fn dialled(&self, app: &TcpStream) -> Result<OrigDst, OutboundError> {
        let listener = app.local_addr().ok();
        let dialled = self.shared.original_destination.of(app).ok().map(OrigDst::new);
        // Without a rule the kernel has no original destination, or it is the listener itself.
        let intercepted = dialled.filter(|dialled| listener.map(OrigDst::new) != Some(*dialled));
        let unspecified = || SocketAddr::from(([0, 0, 0, 0], 0));
        intercepted.ok_or_else(|| OutboundError::NotIntercepted {
            client: self.client(),
            listener: listener.unwrap_or_else(unspecified),
        })
    }

    /// Which local workload opened the connection.
    fn own(&self, snapshot: &Snapshot, dialled: OrigDst) -> Option<Own> {
        let uid = self.shared.attribution.source(self.client().get(), dialled.get())?;
        let host = snapshot.host()?;
        let index = host.workloads.iter().position(|workload| workload.uid == uid)?;
        Some(Own { host: host.clone(), index })
    }

    /// The caller's identity, if it can be proved.
    fn identity(&self, caller: &Caller) -> Result<SpiffeId, OutboundError> {
        let destination = || caller.service.clone().unwrap_or_else(|| caller.dialled.to_string());
        let Some(own) = caller.own.as_ref().map(Own::workload) else {
            return Err(OutboundError::NoWorkload { destination: destination() });
        };
        let credentials = &self.shared.credentials;
        let missing = |identity: String| OutboundError::NoCertificate { destination: destination(), identity };
        let identity = own.identity(credentials.trust_domain()).map_err(|error| missing(error.to_string()))?;
        let proved = credentials.svid(&identity).is_some();
        proved.then(|| identity.clone()).ok_or_else(|| missing(identity.to_string()))
    }

    /// Tries one endpoint after the other, as long as nothing of the application has been sent.
    async fn try_candidates(
        &mut self,
        caller: &Caller,
        mut candidates: Vec<Candidate>,
    ) -> Result<Upstream, OutboundError> {
        loop {
            let loads = &self.shared.loads;
            let chosen = choose(&candidates, |candidate| loads.of(candidate.target), &mut rand::rng());
            let Some(index) = chosen else { return Err(OutboundError::Refused(caller.nobody())) };
            let candidate = candidates.swap_remove(index);
            self.report.facts.attempt += 1;
            let error = match self.try_one(caller, &candidate).await {
                Ok(upstream) => return Ok(upstream),
                Err(error) => error,
            };
            let tried = usize::from(self.report.facts.attempt);
            if candidates.is_empty() || tried >= self.shared.config.outbound.max_endpoints_tried || !error.elsewhere() {
                return Err(error);
            }
            debug!(
                dst.addr = %candidate.target,
                attempt = tried,
                error = %telemetry::Chain(&error),
                "an endpoint cannot be reached, trying the next"
            );
        }
    }

    async fn try_one(&mut self, caller: &Caller, candidate: &Candidate) -> Result<Upstream, OutboundError> {
        let target = UpstreamAddr::new(candidate.target);
        let counted = self.shared.loads.count(candidate.target);
        self.report.facts.destination = Party { workload: Some(candidate.workload.clone()), identity: None };
        match &candidate.path {
            Path::Plain => self.plain(target, Some(counted)).await,
            Path::Hbone { expected } => {
                self.report.facts.carrier = Carrier::Hbone;
                let source = self.identity(caller)?;
                let to = SocketAddr::new(target.get().ip(), self.shared.config.outbound.tunnel_port);
                let facts = &mut self.report.facts;
                facts.upstream = Some(target.get());
                facts.tunnel = Some(to);
                facts.destination.identity = expected.first().cloned();
                let key = Key { source, expected: expected.clone(), to };
                if on_tombolo_host(&candidate.workload)
                    && let Some(Open { end, origin }) = self.flow(caller, target, &key).await?
                {
                    let facts = &mut self.report.facts;
                    facts.standing = Some(origin.standing().clone());
                    // All connections between the two hold their names once.
                    facts.source.identity = Some(origin.key().source.clone());
                    facts.destination.identity = origin.key().expected.first().cloned();
                    return Ok(Upstream { end, origin: Some(origin), _held: (Some(counted), None) });
                }
                self.tunnel(caller, target, &key, counted).await
            }
        }
    }

    /// Plain TCP to `target`.
    async fn plain(&mut self, target: UpstreamAddr, counted: Option<Counted>) -> Result<Upstream, OutboundError> {
        self.report.facts.carrier = Carrier::Tcp;
        self.report.facts.upstream = Some(target.get());
        let limit = self.shared.config.outbound.connect_timeout;
        let connected = timeout(limit, socket::connect(target.get(), &self.shared.config.sockets)).await;
        let connected = connected.map_err(|_| OutboundError::TimedOut { destination: target, limit })?;
        let stream = connected.map_err(|source| OutboundError::Plain { destination: target, source })?;
        Ok(Upstream { end: End::Tcp(stream), origin: None, _held: (counted, None) })
    }

    /// A connection of its own to the tunnel port of `target`'s host; `None` when HBONE is to carry it.
    async fn flow(&mut self, caller: &Caller, target: UpstreamAddr, key: &Key) -> Result<Option<Open>, OutboundError> {
        self.report.facts.carrier = Carrier::Flow;
        let baggage = caller.baggage().to_string();
        let header = Header {
            destination: target.get(),
            client: self.client().get(),
            service: caller.service.as_deref(),
            trace: Some(TraceParent::fresh(rand::random(), rand::random())),
            baggage: &baggage,
        };
        let opened = self.shared.flows.open(key, &header).await;
        opened.map_err(|source| OutboundError::Tunnel { destination: target, source })
    }

    /// A stream through the tunnel port of `target`'s host.
    async fn tunnel(
        &mut self,
        caller: &Caller,
        target: UpstreamAddr,
        key: &Key,
        counted: Counted,
    ) -> Result<Upstream, OutboundError> {
        self.report.facts.carrier = Carrier::Hbone;
        let connect = caller.request(target, self.client());
        let opened = self.shared.pool.open(key, &connect).await;
        let ((send, recv, _response), lease) =
            opened.map_err(|source| OutboundError::Tunnel { destination: target, source })?;
        self.report.facts.standing = Some(lease.standing.clone());
        Ok(Upstream { end: End::Tunnel { send, recv }, origin: None, _held: (Some(counted), Some(lease)) })
    }
}

impl Own {
    fn workload(&self) -> &LocalWorkload {
        &self.host.workloads[self.index]
    }
}

impl Caller {
    /// What the mesh says of the caller.
    fn workload(&self) -> Option<&Arc<Workload>> {
        self.own.as_ref().and_then(|own| self.snapshot.workload(&own.workload().uid))
    }

    /// What it says of itself.
    fn baggage(&self) -> Baggage<'_> {
        self.workload().map_or_else(Baggage::default, |workload| Baggage::of(workload))
    }

    fn nobody(&self) -> Refusal {
        let service = self.service.clone().unwrap_or_default();
        Refusal::NoEndpoint { service, port: self.dialled.get().port() }
    }

    /// The CONNECT for a stream to `target` (ztunnel's `src/proxy/outbound.rs`).
    fn request(&self, target: UpstreamAddr, client: ClientAddr) -> Connect {
        let forwarded = Forwarded { client: client.get(), host: self.service.as_deref() };
        let trace = TraceParent::fresh(rand::random(), rand::random());
        Connect {
            authority: target.to_string(),
            baggage: self.baggage().to_string(),
            forwarded: forwarded.to_string(),
            traceparent: trace.to_string(),
        }
    }
}

impl OutboundError {
    /// Whether another endpoint of the service may do better.
    fn elsewhere(&self) -> bool {
        match self {
            Self::Plain { .. } | Self::TimedOut { .. } => true,
            Self::Tunnel { source, .. } => source.elsewhere(),
            Self::NotIntercepted { .. } | Self::Refused(_) | Self::NoWorkload { .. } | Self::NoCertificate { .. } => {
                false
            }
        }
    }
}

impl Flagged for OutboundError {
    fn flag(&self) -> Flag {
        match self {
            Self::NotIntercepted { .. } | Self::Refused(Refusal::Loop { .. }) => Flag::Loop,
            Self::Refused(Refusal::UnknownPort { .. } | Refusal::NoEndpoint { .. }) => Flag::NoRoute,
            Self::Refused(Refusal::NoHealthyEndpoint { .. } | Refusal::Unreachable { .. }) => Flag::NoHealthyEndpoint,
            Self::NoWorkload { .. } | Self::NoCertificate { .. } => Flag::IdentityRequired,
            Self::Plain { .. } | Self::TimedOut { .. } => Flag::Connect,
            Self::Tunnel { source, .. } => source.flag(),
        }
    }
}
