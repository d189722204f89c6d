//! The data plane: interception listeners, the tunnels HBONE and `tombolo/1`, policy, reports.
//!
//! The agent makes one [`Proxy`] and runs it; it publishes snapshots through a [`View`] and
//! certificates through `identity::Credentials`. Promise: no gRPC, no rules of the kernel, no files,
//! no environment. Every listener is on this page: outbound (15001, loopback), tunnels of peers
//! (15008), observed plaintext (15006).

pub mod config;
mod connections;
pub mod dns;
pub mod drain;
pub mod flow;
pub mod hbone;
mod inbound;
mod listener;
mod metrics;
pub mod net;
pub mod outbound;
mod report;
mod standing;
#[cfg(test)]
mod testing;
pub mod view;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use api::WorkloadUid;
use api::admin::ConnectionView;
use identity::Credentials;
use prometheus_client::registry::Registry;
use tokio::sync::broadcast;
use tokio::time::{MissedTickBehavior, interval};

pub use config::Config;
pub use listener::BindError;
pub use standing::Proof;
pub use view::View;

use drain::DrainWatch;
use hbone::pool::Pool;
use inbound::Inbound;
use listener::{Heartbeats, Sockets};
use metrics::Metrics;
use net::socket::{OriginalDestination, Redirected};
use outbound::Outbound;
use report::Observers;
use standing::Standings;

/// Says which local workload opened an outbound connection.
pub trait Attribution: Send + Sync + 'static {
    /// The workload whose process opened the connection from `client`, which it dialled as `dialled`.
    /// `None` when the process belongs to none. Called once for each connection; must not block for
    /// longer than a system call.
    fn source(&self, client: SocketAddr, dialled: SocketAddr) -> Option<WorkloadUid>;
}

/// The data plane of one host, bound and not yet running.
pub struct Proxy {
    outbound: Outbound,
    inbound: Inbound,
    handle: Handle,
    view: View,
    standings: Standings,
    pool: Pool,
}

/// What the agent asks of a running proxy. Clones ask the same one.
#[derive(Clone)]
pub struct Handle {
    observers: Observers,
    heartbeats: Heartbeats,
    transparent: Arc<AtomicBool>,
    addresses: Arc<Addresses>,
    sockets: Arc<Sockets>,
    standings: Standings,
}

/// Where the proxy listens, with the ports that the kernel chose where 0 was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    pub outbound: Vec<SocketAddr>,
    pub tunnels: Vec<SocketAddr>,
    /// Empty without CAP_NET_ADMIN.
    pub plaintext: Vec<SocketAddr>,
}

impl Proxy {
    /// Opens every listener, or takes a socket of `given` that listens where it is to ([`Handle::sockets`]
    /// of an earlier process). Nothing is accepted before [`Proxy::run`], but the kernel queues. Needs a
    /// running tokio runtime.
    pub async fn bind(
        config: Config,
        given: Vec<OwnedFd>,
        view: View,
        credentials: Credentials,
        attribution: Arc<dyn Attribution>,
        registry: &mut Registry,
    ) -> Result<Self, BindError> {
        Self::bind_with(config, given, view, credentials, attribution, registry, Arc::new(Redirected))
    }

    /// As [`Proxy::bind`], with another source of original destinations than the kernel's.
    pub(crate) fn bind_with(
        config: Config,
        mut given: Vec<OwnedFd>,
        view: View,
        credentials: Credentials,
        attribution: Arc<dyn Attribution>,
        registry: &mut Registry,
        original_destination: Arc<dyn OriginalDestination>,
    ) -> Result<Self, BindError> {
        let outbound_listeners = Outbound::bind(&config, &mut given)?;
        let inbound_listeners = inbound::Listeners::bind(&config, &mut given)?;
        let observers = Observers::new(Metrics::register(registry));
        let addresses = Addresses {
            outbound: outbound_listeners.iter().map(|listener| listener.address).collect(),
            tunnels: inbound_listeners.tunnels(),
            plaintext: inbound_listeners.plaintext(),
        };
        let bound = [&addresses.outbound, &addresses.tunnels, &addresses.plaintext];
        let mut own_ports = config.own_ports();
        own_ports.extend(bound.into_iter().flatten().map(SocketAddr::port));
        let standings = Standings::default();
        let pool = Pool::new(
            config.hbone.clone(),
            config.sockets.clone(),
            config.outbound.connect_timeout,
            credentials.clone(),
            standings.clone(),
            observers.metrics.clone(),
        );
        let flows = flow::pool::Pool::new(flow::pool::Parts {
            tunnel: config.outbound.tunnel,
            config: config.flow.clone(),
            sockets: config.sockets.clone(),
            connect_timeout: config.outbound.connect_timeout,
            credentials: credentials.clone(),
            standings: standings.clone(),
            metrics: observers.metrics.clone(),
            hbone: pool.clone(),
        });
        let handle = Handle {
            observers: observers.clone(),
            heartbeats: Heartbeats::new(),
            transparent: Arc::default(),
            addresses: Arc::new(addresses),
            sockets: Arc::new(Sockets::of(outbound_listeners.iter().chain(inbound_listeners.all()))),
            standings: standings.clone(),
        };
        let inbound = inbound::Shared::new(
            config.clone(),
            view.clone(),
            credentials.clone(),
            standings.clone(),
            observers.clone(),
            own_ports.clone(),
            handle.transparent.clone(),
        );
        let outbound = outbound::Shared {
            config,
            view: view.clone(),
            credentials,
            attribution,
            original_destination,
            pool: pool.clone(),
            flows,
            loads: outbound::Loads::default(),
            observers,
            own_ports,
        };
        let outbound = Outbound::new(outbound_listeners, outbound);
        Ok(Self { outbound, inbound: Inbound::new(inbound_listeners, inbound), handle, view, standings, pool })
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until `drain` is signaled and all connections have ended, or its deadline came.
    pub async fn run(self, drain: DrainWatch) {
        let Self { outbound, inbound, handle, view, standings, pool } = self;
        let listeners = async {
            let outbound = outbound.run(drain.clone(), handle.heartbeats.clone());
            let inbound = inbound.run(drain.clone(), handle.heartbeats.clone());
            tokio::join!(outbound, inbound);
        };
        tokio::select! {
            () = listeners => {}
            () = inbound::authorize::keep(view, handle.observers.clone()) => {}
            () = standings.keep(handle.observers.connections.clone(), pool) => {}
            () = handle.count_bytes() => {}
        }
    }
}

impl Handle {
    /// The connections that are open now.
    pub fn connections(&self) -> Vec<ConnectionView> {
        self.observers.connections.all().iter().map(|open| open.view()).collect()
    }

    /// How many connections are open now.
    pub fn open(&self) -> u64 {
        self.observers.connections.len() as u64
    }

    /// Says that interception is on: applications may see the caller's own address, because the rules
    /// bring the answers back, and the plaintext listener is in use. Off until said.
    pub fn set_transparent(&self, transparent: bool) {
        self.transparent.store(transparent, Ordering::Relaxed);
    }

    /// When the accept loop that is furthest behind last ran; each runs at least once a second. For
    /// the watchdog.
    pub fn alive(&self) -> Instant {
        self.heartbeats.oldest()
    }

    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Copies of the sockets that connections are accepted from, for a process that is to accept from them
    /// too. None once the drain has begun.
    pub fn sockets(&self) -> std::io::Result<Vec<OwnedFd>> {
        self.sockets.copies()
    }

    /// What callers prove from here on, for a process that drains while this one accepts in its place.
    pub fn proofs(&self) -> broadcast::Receiver<Proof> {
        self.standings.proofs()
    }

    /// A caller of this process, which drains, has proved itself to the one that accepts in its place: what it
    /// has open here goes on as long.
    pub fn heard(&self, proof: Proof) {
        self.standings.heard(proof);
    }

    /// Keeps the byte counters of long connections fresh. Runs until it is dropped.
    async fn count_bytes(&self) {
        let mut timer = interval(COUNT_INTERVAL);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            for open in self.observers.connections.all() {
                open.count_bytes();
            }
        }
    }
}

/// How far the byte counters of open connections may lag: less than the usual scrape interval of 15 s.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
