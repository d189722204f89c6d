//! One report per connection: its access log line and its metrics, also when it is dropped.
//!
//! The connection files fill it as they learn; whatever ends them, dropping the report writes the
//! line. It refuses nothing and knows no protocol.

use std::error::Error;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

use api::{Revision, Service, Workload, policy};
use telemetry::Chain;

use crate::connections::{Connections, Open};
use crate::metrics::{Label, Metrics, Party, Reporter, TcpLabels};
use crate::net::addr::UpstreamAddr;
use crate::net::copy::CopyError;
use crate::net::traffic::Stop;
use crate::standing::Standing;

/// Where reports go. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Observers(Arc<Hearing>);

#[derive(Default)]
pub(crate) struct Hearing {
    pub(crate) metrics: Metrics,
    pub(crate) connections: Connections,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From a local workload.
    Outbound,
    /// To a local workload.
    Inbound,
}

/// How the bytes cross the network between the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    Tcp,
    Hbone,
    /// `tombolo/1`.
    Flow,
}

/// The facts of one connection, held once for its report and the list of open connections.
#[derive(Debug, Clone)]
pub(crate) struct Noted(Arc<Facts>);

/// What is known of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) since: Instant,
    pub(crate) direction: Direction,
    pub(crate) carrier: Carrier,
    pub(crate) client: SocketAddr,
    pub(crate) source: Party,
    /// What the client asked for.
    pub(crate) dialled: Option<SocketAddr>,
    /// What it got: the workload's own address and port.
    pub(crate) upstream: Option<SocketAddr>,
    /// Where the tunnel to it ends.
    pub(crate) tunnel: Option<SocketAddr>,
    pub(crate) destination: Party,
    pub(crate) service: Option<Arc<Service>>,
    /// Until when the peer at the other end of the tunnel has proved who it is.
    pub(crate) standing: Option<Arc<Standing>>,
    /// The policy that decided, `namespace/name`.
    pub(crate) policy: Option<Box<str>>,
    /// Of the snapshot that decided.
    pub(crate) revision: Revision,
    /// Endpoints that were tried, this one included.
    pub(crate) attempt: u16,
}

/// Why a connection ended, in one word for metrics and queries. Words of ztunnel where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flag {
    /// Both sides ended it.
    Ended,
    /// A policy refused it.
    Denied,
    /// A new policy closed it.
    PolicyChanged,
    /// The peer's certificate ended, and it has shown no newer one.
    CertificateEnded,
    /// The upstream could not be reached, or refused.
    Connect,
    Tls,
    Http2,
    /// We have no certificate to prove who the caller is.
    IdentityRequired,
    NoHealthyEndpoint,
    /// Nobody has this address or port.
    NoRoute,
    Loop,
    BadRequest,
    ClientBroke,
    UpstreamBroke,
    Idle,
    /// The agent ended it: a drain came to its deadline, or a fault of ours.
    Aborted,
}

/// An error that knows its flag.
pub(crate) trait Flagged: Error {
    fn flag(&self) -> Flag;
}

/// The report of one connection.
pub(crate) struct Report {
    pub(crate) facts: Noted,
    observers: Observers,
    open: Option<Arc<Open>>,
    outcome: Option<Flag>,
    error: Option<String>,
}

impl Observers {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self(Arc::new(Hearing { metrics, connections: Connections::default() }))
    }
}

impl Deref for Observers {
    type Target = Hearing;

    fn deref(&self) -> &Hearing {
        &self.0
    }
}

impl Deref for Noted {
    type Target = Facts;

    fn deref(&self) -> &Facts {
        &self.0
    }
}

/// What is changed once the connection is open changes the report alone.
impl DerefMut for Noted {
    fn deref_mut(&mut self) -> &mut Facts {
        Arc::make_mut(&mut self.0)
    }
}

impl Report {
    pub(crate) fn new(observers: &Observers, direction: Direction, client: SocketAddr) -> Self {
        let facts = Noted(Arc::new(Facts {
            since: Instant::now(),
            direction,
            carrier: Carrier::Tcp,
            client,
            source: Party::default(),
            dialled: None,
            upstream: None,
            tunnel: None,
            destination: Party::default(),
            service: None,
            standing: None,
            policy: None,
            revision: 0,
            attempt: 0,
        }));
        Self { facts, observers: observers.clone(), open: None, outcome: None, error: None }
    }

    /// Puts the connection among the open ones with the facts of now; from here on it can be stopped.
    pub(crate) fn open(&mut self) -> Arc<Open> {
        let series = self.observers.metrics.series(self.facts.labels(Flag::Ended));
        series.opened.inc();
        let open = self.observers.connections.add(self.facts.clone(), series);
        self.observers.metrics.sockets_open.get_or_create(&self.facts.direction.label()).inc();
        self.open = Some(open.clone());
        open
    }

    /// The connection ended as both sides wanted.
    pub(crate) fn ended(mut self) {
        self.outcome = Some(Flag::Ended);
    }

    /// The connection was refused or broke.
    pub(crate) fn failed(mut self, error: &impl Flagged) {
        self.outcome = Some(error.flag());
        self.error = Some(Chain(error).to_string());
    }

    /// The end of the copying, whichever it was.
    pub(crate) fn copied(mut self, result: Result<(), CopyError>) {
        if let Err(CopyError::Stopped(Stop::PolicyChanged { policy, .. })) = &result {
            self.facts.policy.clone_from(policy);
        }
        match result {
            Ok(()) => self.ended(),
            Err(error) => self.failed(&error),
        }
    }

    fn write(&self, flag: Flag) {
        let facts = &self.facts;
        let (received, sent) = self.open.as_ref().map_or((0, 0), |o| (o.traffic.received(), o.traffic.sent()));
        let duration_ms = u64::try_from(facts.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (source, destination) = (&facts.source, &facts.destination);
        tracing::info!(
            target: "access",
            direction = facts.direction.as_str(),
            protocol = facts.carrier.as_str(),
            src.addr = %facts.client,
            src.identity = source.identity.as_ref().map(display),
            src.workload = source.workload.as_ref().map(|workload| workload.name.as_str()),
            src.namespace = source.workload.as_ref().map(|workload| workload.namespace.as_str()),
            dst.addr = facts.upstream.or(facts.dialled).map(display),
            dst.dialled = facts.dialled.map(display),
            dst.hbone_addr = facts.tunnel.map(display),
            dst.service = facts.service.as_ref().map(|service| service.hostname.as_str()),
            dst.identity = destination.identity.as_ref().map(display),
            dst.workload = destination.workload.as_ref().map(|workload| workload.name.as_str()),
            dst.namespace = destination.workload.as_ref().map(|workload| workload.namespace.as_str()),
            workload.id = facts.own().workload.as_ref().map(|workload| &*workload.uid),
            policy = facts.policy.as_deref(),
            flag = flag.as_str(),
            revision = facts.revision,
            attempt = (facts.attempt > 1).then_some(facts.attempt),
            bytes_sent = sent,
            bytes_received = received,
            duration_ms,
            error = self.error.as_deref(),
            "{} connection {}",
            facts.direction.as_str(),
            if self.open.is_some() { "closed" } else { "refused" },
        );
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // Only a task that was aborted or that panicked leaves its report without an outcome.
        let flag = self.outcome.unwrap_or(Flag::Aborted);
        let metrics = &self.observers.metrics;
        if let Some(open) = &self.open {
            open.count_bytes();
            match flag {
                Flag::Ended => open.series.closed.inc(),
                fault => metrics.closed.get_or_create(&self.facts.labels(fault)).inc(),
            };
            metrics.sockets_open.get_or_create(&self.facts.direction.label()).dec();
            // Last: who sees that none is open finds them all counted.
            self.observers.connections.remove(open.id);
        }
        if flag != Flag::Ended {
            metrics.failed.get_or_create(&self.facts.labels(flag)).inc();
        }
        self.write(flag);
    }
}

impl Open {
    /// Adds the bytes that it moved since it was last counted.
    pub(crate) fn count_bytes(&self) {
        let (received, sent) = self.traffic.take_uncounted();
        self.series.received_bytes.inc_by(received);
        self.series.sent_bytes.inc_by(sent);
    }
}

impl Facts {
    /// The end of the connection that is on this host.
    fn own(&self) -> &Party {
        match self.direction {
            Direction::Outbound => &self.source,
            Direction::Inbound => &self.destination,
        }
    }

    /// What a policy is asked about the connection to `target`: only what was proved or seen.
    pub(crate) fn connection(&self, target: UpstreamAddr) -> policy::Connection {
        let (source, source_ip) = (self.source.identity.clone(), self.client.ip());
        policy::Connection { source, source_ip, destination: target.get() }
    }

    /// Whose policies were asked what, for inbound connections that got so far.
    pub(crate) fn judged(&self) -> Option<(&Workload, policy::Connection)> {
        match self.direction {
            Direction::Outbound => None,
            Direction::Inbound => {
                let (workload, target) = (self.destination.workload.as_deref()?, self.upstream?);
                Some((workload, self.connection(UpstreamAddr::new(target))))
            }
        }
    }

    fn labels(&self, flag: Flag) -> TcpLabels {
        TcpLabels {
            reporter: match self.direction {
                Direction::Outbound => Reporter::Source,
                Direction::Inbound => Reporter::Destination,
            },
            source: self.source.clone(),
            destination: self.destination.clone(),
            service: self.service.clone(),
            mutual_tls: matches!(self.carrier, Carrier::Hbone | Carrier::Flow),
            flag: flag.as_str(),
        }
    }
}

impl Direction {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }

    fn label(self) -> Label {
        Label("direction", self.as_str())
    }
}

impl Carrier {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Hbone => "hbone",
            Self::Flow => "tombolo/1",
        }
    }
}

impl Flag {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ended => "-",
            Self::Denied => "DENY",
            Self::PolicyChanged => "POLICY_CHANGED",
            Self::CertificateEnded => "CERTIFICATE_ENDED",
            Self::Connect => "CONNECT",
            Self::Tls => "TLS_FAILURE",
            Self::Http2 => "H2_FAILURE",
            Self::IdentityRequired => "IDENTITY_REQUIRED",
            Self::NoHealthyEndpoint => "NO_HEALTHY_ENDPOINT",
            Self::NoRoute => "NO_ROUTE",
            Self::Loop => "LOOP",
            Self::BadRequest => "BAD_REQUEST",
            Self::ClientBroke => "CLIENT_RESET",
            Self::UpstreamBroke => "UPSTREAM_RESET",
            Self::Idle => "IDLE_TIMEOUT",
            Self::Aborted => "ABORTED",
        }
    }
}

impl Flagged for CopyError {
    fn flag(&self) -> Flag {
        match self {
            Self::Client { .. } => Flag::ClientBroke,
            Self::Upstream { .. } => Flag::UpstreamBroke,
            Self::Stopped(Stop::PolicyChanged { .. }) => Flag::PolicyChanged,
            Self::Stopped(Stop::CertificateEnded { .. }) => Flag::CertificateEnded,
            Self::Idle { .. } => Flag::Idle,
        }
    }
}
