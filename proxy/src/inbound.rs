//! Connections to local workloads: tunnels of peers and, where a workload asks for it, plaintext.
//!
//! `connection.rs` is one connection of a peer; `stream.rs` (HBONE) and `flow.rs` (`tombolo/1`) are what
//! it carries, and walk the same checks in `admit.rs`. `plaintext.rs` is one plaintext connection,
//! `authorize.rs` the verdict over all. What they share, and how they dial the application, is here.

pub(crate) mod admit;
pub(crate) mod authorize;
pub(crate) mod connection;
pub(crate) mod flow;
pub(crate) mod plaintext;
pub(crate) mod stream;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::{LocalWorkload, Service, Snapshot, Workload};
use identity::Credentials;
use identity::tls::FlowServers;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::warn;

use crate::config::Config;
use crate::drain::{DrainWatch, Tasks};
use crate::listener::{BindError, Heartbeats, Listener};
use crate::net::addr::{ClientAddr, UpstreamAddr};
use crate::net::socket::{self, Listening};
use crate::report::Observers;
use crate::standing::Standings;
use crate::view::View;

/// The inbound half, bound and not yet running.
pub(crate) struct Inbound {
    listeners: Listeners,
    shared: Arc<Shared>,
}

/// The listeners of the inbound half.
pub(crate) struct Listeners {
    tunnels: Vec<Listener>,
    plaintext: Vec<Listener>,
}

/// What all inbound connections share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) view: View,
    pub(crate) credentials: Credentials,
    pub(crate) standings: Standings,
    pub(crate) flow_servers: FlowServers,
    pub(crate) observers: Observers,
    pub(crate) own_ports: BTreeSet<u16>,
    /// Interception is on: source addresses can be preserved, plaintext arrives on purpose.
    pub(crate) transparent: Arc<AtomicBool>,
    handshakes: Handshakes,
    warned: AtomicBool,
}

/// The application could not be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("the application at {target} cannot be reached")]
    Failed {
        target: UpstreamAddr,
        #[source]
        source: io::Error,
    },
    #[error("the application at {target} did not answer within {limit:?}")]
    TimedOut { target: UpstreamAddr, limit: Duration },
}

impl Listeners {
    /// Opens the tunnel listeners, and those for plaintext if this process may have transparent
    /// sockets.
    pub(crate) fn bind(config: &Config, given: &mut Vec<OwnedFd>) -> Result<Self, BindError> {
        let (inbound, sockets) = (&config.inbound, &config.sockets);
        let tunnels = Listener::bind_all(&inbound.listen, "tunnels of peers", Listening::Tunnels, sockets, given)?;
        let purpose = "observed plaintext";
        let plaintext = Listener::bind_all(&inbound.plaintext_listen, purpose, Listening::Transparent, sockets, given);
        let plaintext = match plaintext {
            Ok(plaintext) => plaintext,
            Err(error) if error.source.kind() == io::ErrorKind::PermissionDenied => {
                warn!("plaintext cannot be observed: transparent sockets need CAP_NET_ADMIN");
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        Ok(Self { tunnels, plaintext })
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Listener> {
        self.tunnels.iter().chain(&self.plaintext)
    }

    pub(crate) fn tunnels(&self) -> Vec<SocketAddr> {
        self.tunnels.iter().map(|listener| listener.address).collect()
    }

    pub(crate) fn plaintext(&self) -> Vec<SocketAddr> {
        self.plaintext.iter().map(|listener| listener.address).collect()
    }
}

impl Inbound {
    pub(crate) fn new(listeners: Listeners, shared: Shared) -> Self {
        Self { listeners, shared: Arc::new(shared) }
    }

    /// Serves until the drain begins, and then what is open to its end or the deadline.
    pub(crate) async fn run(self, drain: DrainWatch, heartbeats: Heartbeats) {
        let tasks = Tasks::new();
        let metrics = &self.shared.observers.metrics;
        for listener in self.listeners.tunnels {
            let (shared, connections, signal) = (self.shared.clone(), tasks.clone(), drain.clone());
            let take = move |peer, client| {
                socket::prepare_tunnel(&peer, &shared.config.sockets);
                let handshake = shared.handshakes.begin(shared.config.inbound.max_handshakes);
                let serve =
                    connection::serve(shared.clone(), peer, client, handshake, signal.clone(), connections.clone());
                connections.spawn(serve);
            };
            tasks.spawn(listener.run(drain.clone(), heartbeats.clone(), metrics.clone(), take));
        }
        for listener in self.listeners.plaintext {
            let (shared, connections) = (self.shared.clone(), tasks.clone());
            let take = move |peer, client| {
                connections.spawn(plaintext::serve(shared.clone(), peer, client));
            };
            tasks.spawn(listener.run(drain.clone(), heartbeats.clone(), metrics.clone(), take));
        }
        tasks.finish(&drain).await;
    }
}

impl Shared {
    pub(crate) fn new(
        config: Config,
        view: View,
        credentials: Credentials,
        standings: Standings,
        observers: Observers,
        own_ports: BTreeSet<u16>,
        transparent: Arc<AtomicBool>,
    ) -> Self {
        let (handshakes, warned) = (Handshakes::default(), AtomicBool::new(false));
        let flow_servers = FlowServers::new(credentials.clone());
        Self {
            config,
            view,
            credentials,
            standings,
            flow_servers,
            observers,
            own_ports,
            transparent,
            handshakes,
            warned,
        }
    }

    /// Dials the application, with the caller's own address as the source where that is possible.
    pub(crate) async fn dial(&self, client: ClientAddr, target: UpstreamAddr) -> Result<TcpStream, DialError> {
        let limit = self.config.inbound.connect_timeout;
        match timeout(limit, self.dial_as(client.get().ip(), target.get())).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(DialError::Failed { target, source }),
            Err(_) => Err(DialError::TimedOut { target, limit }),
        }
    }

    async fn dial_as(&self, client: IpAddr, target: SocketAddr) -> io::Result<TcpStream> {
        let sockets = &self.config.sockets;
        // A caller on this host has an address that is ours: the plain socket has it, too.
        let preserve = self.transparent.load(Ordering::Relaxed) && client != target.ip() && !client.is_loopback();
        if preserve && client.is_ipv4() == target.is_ipv4() {
            match socket::connect_from(client, target, sockets).await {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    if !self.warned.swap(true, Ordering::Relaxed) {
                        warn!("applications see the agent's address: preserving the caller's needs CAP_NET_ADMIN");
                    }
                }
                result => return result,
            }
        }
        socket::connect_here(target, sockets).await
    }
}

/// Which local workload listens on `port`, and what the mesh says of it. `address` is where it was
/// reached; several workloads share a host's address, so the port decides first.
pub(crate) fn workload_at(
    snapshot: &Snapshot,
    address: IpAddr,
    port: u16,
) -> Option<(&LocalWorkload, Option<&Arc<Workload>>)> {
    let locals = &snapshot.host()?.workloads;
    let known = |local: &LocalWorkload| snapshot.workload(&local.uid);
    let has_port = |local: &&LocalWorkload| {
        let served = |workload: &Arc<Workload>| workload.services.values().flatten().any(|p| p.target_port == port);
        local.ports.contains_key(&port) || known(local).is_some_and(served)
    };
    let at_address = |local: &&LocalWorkload| known(local).is_some_and(|w| w.addresses.contains(&address));
    let found = locals.iter().filter(has_port).find(at_address).or_else(|| locals.iter().find(has_port))?;
    Some((found, known(found)))
}

/// The service that a connection to `port` of `workload` belongs to, for telemetry: a caller says only
/// the address. Where several have the port it is the first by name.
pub(crate) fn service_of(snapshot: &Snapshot, workload: &Workload, port: u16) -> Option<Arc<Service>> {
    let mut services = workload.services.iter();
    let (key, _) = services.find(|(_, ports)| ports.iter().any(|p| p.target_port == port))?;
    snapshot.service(key).cloned()
}

/// Handshakes in progress. Beyond the limit the oldest is given up: an honest peer needs milliseconds,
/// so the oldest of a thousand is not one.
#[derive(Default)]
struct Handshakes {
    oldest_first: Mutex<VecDeque<Arc<Handshake>>>,
    in_progress: Arc<AtomicUsize>,
}

/// One handshake in progress; over when dropped.
pub(crate) struct Handshake {
    given_up: Notify,
    over: AtomicBool,
    in_progress: Arc<AtomicUsize>,
}

/// Holds a place among the handshakes; dropping it frees the place.
pub(crate) struct HandshakeGuard(Arc<Handshake>);

impl Handshakes {
    fn begin(&self, limit: usize) -> HandshakeGuard {
        let in_progress = self.in_progress.clone();
        let handshake = Arc::new(Handshake { given_up: Notify::new(), over: AtomicBool::new(false), in_progress });
        let mut queue = self.oldest_first.lock().unwrap_or_else(PoisonError::into_inner);
        if self.in_progress.fetch_add(1, Ordering::Relaxed) >= limit {
            while let Some(oldest) = queue.pop_front() {
                if !oldest.over.load(Ordering::Relaxed) {
                    oldest.given_up.notify_one();
                    break;
                }
            }
        }
        // One that is slow at the front keeps those behind it in the queue after they are over.
        if queue.len() >= limit.saturating_mul(2) {
            queue.retain(|handshake| !handshake.over.load(Ordering::Relaxed));
        }
        while queue.front().is_some_and(|handshake| handshake.over.load(Ordering::Relaxed)) {
            queue.pop_front();
        }
        queue.push_back(handshake.clone());
        HandshakeGuard(handshake)
    }
}

impl HandshakeGuard {
    /// Completes when others need the place.
    pub(crate) async fn given_up(&self) {
        self.0.given_up.notified().await;
    }
}

impl Drop for HandshakeGuard {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
        self.0.in_progress.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A peer that has just shaken hands may ask for what it did so for, also when a drain has begun: ended
/// before, its request would fail. The question is one trip away, or one retransmission. On older connections
/// an end is what peers are made for: they ask again elsewhere.
pub(crate) const FIRST_QUESTION: Duration = Duration::from_secs(1);
