//! One accept loop for every listener: accepts until the drain begins, and says that it is alive.
//!
//! `outbound.rs` and `inbound.rs` bind and run it. A socket that an earlier process listens on can be
//! given instead of bound: what waits in its queue is then taken by either. It knows nothing of what it accepts. A host that is
//! out of file descriptors waits a moment and goes on; it never gives the listener up.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

use crate::config::SocketConfig;
use crate::drain::DrainWatch;
use crate::metrics::{Label, Metrics};
use crate::net::socket::{self, Listening};

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for {purpose}")]
pub struct BindError {
    pub address: SocketAddr,
    pub purpose: &'static str,
    #[source]
    pub source: io::Error,
}

/// When each accept loop last ran. Clones share it.
#[derive(Clone)]
pub(crate) struct Heartbeats {
    started: Instant,
    beats: Arc<Mutex<BTreeMap<SocketAddr, Arc<AtomicU64>>>>,
}

/// A bound listener and what it is for.
pub(crate) struct Listener {
    pub(crate) purpose: &'static str,
    pub(crate) address: SocketAddr,
    socket: Arc<TcpListener>,
}

/// Listening sockets, as long as they are accepted from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sockets(Vec<Weak<TcpListener>>);

impl Listener {
    /// Binds every address that this host has, or takes a socket of `given` that listens there already.
    /// Families that the kernel lacks are left out, as long as one address remains; `[::]` becomes 0.0.0.0.
    pub(crate) fn bind_all(
        addresses: &[SocketAddr],
        purpose: &'static str,
        kind: Listening,
        config: &SocketConfig,
        given: &mut Vec<OwnedFd>,
    ) -> Result<Vec<Self>, BindError> {
        let mut bound = Vec::new();
        let mut missing = None;
        for address in addresses {
            match Self::bind(*address, purpose, kind, config, given) {
                Ok(listener) => bound.push(listener),
                Err(error) if lacks_family(&error) => {
                    info!(%address, "this host has no such address family, {purpose} is without it");
                    missing = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        match missing {
            Some(BindError { address, .. }) if bound.is_empty() && address.ip().is_unspecified() => {
                let any = SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), address.port());
                Ok(vec![Self::bind(any, purpose, kind, config, given)?])
            }
            Some(error) if bound.is_empty() => Err(error),
            Some(_) | None => Ok(bound),
        }
    }

    fn bind(
        address: SocketAddr,
        purpose: &'static str,
        kind: Listening,
        config: &SocketConfig,
        given: &mut Vec<OwnedFd>,
    ) -> Result<Self, BindError> {
        let listening =
            socket::take_listening(given, address).map_or_else(|| socket::listen(address, kind, config), Ok);
        let socket = listening.and_then(|listening| socket::accepting(listening, config));
        let bound = socket.and_then(|socket| Ok((socket.local_addr()?, Arc::new(socket))));
        let (address, socket) = bound.map_err(|source| BindError { address, purpose, source })?;
        Ok(Self { purpose, address, socket })
    }

    /// Hands every connection to `take` until the drain begins. The listening socket closes with it.
    pub(crate) async fn run(
        self,
        drain: DrainWatch,
        heartbeats: Heartbeats,
        metrics: Metrics,
        mut take: impl FnMut(TcpStream, SocketAddr),
    ) {
        let beat = heartbeats.of(self.address);
        let mut timer = interval(BEAT_INTERVAL);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut signaled = std::pin::pin!(drain.signaled());
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut signaled => return heartbeats.remove(self.address),
                accepted = self.socket.accept() => accepted,
                _ = timer.tick() => {
                    heartbeats.beat(&beat);
                    continue;
                }
            };
            match accepted {
                Ok((stream, client)) => {
                    // Under load the timer does not get its turn.
                    heartbeats.beat(&beat);
                    take(stream, client);
                }
                Err(error) if of_one_connection(&error) => {}
                Err(error) => {
                    metrics.accept_errors.get_or_create(&Label("listener", self.purpose)).inc();
                    warn!(address = %self.address, %error, "cannot accept connections for {}, trying again", self.purpose);
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Sockets {
    pub(crate) fn of<'a>(listeners: impl Iterator<Item = &'a Listener>) -> Self {
        Self(listeners.map(|listener| Arc::downgrade(&listener.socket)).collect())
    }

    /// Copies of those that are still accepted from.
    pub(crate) fn copies(&self) -> io::Result<Vec<OwnedFd>> {
        self.0.iter().filter_map(Weak::upgrade).map(|socket| socket.as_fd().try_clone_to_owned()).collect()
    }
}

/// The kernel was built or booted without IPv6 (EAFNOSUPPORT), or has switched it off so that not even
/// loopback has an address (EADDRNOTAVAIL). Any other address that is missing is a mistake.
fn lacks_family(error: &BindError) -> bool {
    let everywhere = error.address.ip().is_loopback() || error.address.ip().is_unspecified();
    let switched_off = everywhere && error.source.kind() == io::ErrorKind::AddrNotAvailable;
    error.address.is_ipv6() && (switched_off || error.source.raw_os_error() == Some(libc::EAFNOSUPPORT))
}

/// The client gave up before it was accepted (accept(2): such errors are to be ignored).
fn of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

impl Heartbeats {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), beats: Arc::default() }
    }

    /// When the accept loop that is furthest behind last ran. With none running, now.
    pub(crate) fn oldest(&self) -> Instant {
        let beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = beats.values().map(|beat| beat.load(Ordering::Relaxed)).min();
        oldest.map_or_else(Instant::now, |ms| self.started + Duration::from_millis(ms))
    }

    fn of(&self, listener: SocketAddr) -> Arc<AtomicU64> {
        let beat = Arc::new(AtomicU64::new(0));
        self.beat(&beat);
        self.beats.lock().unwrap_or_else(PoisonError::into_inner).insert(listener, beat.clone());
        beat
    }

    fn beat(&self, beat: &AtomicU64) {
        beat.store(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn remove(&self, listener: SocketAddr) {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner).remove(&listener);
    }
}

/// How often an accept loop says that it is alive: a watchdog of a few seconds sees it.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How long an accept loop waits when the host has no descriptors or memory left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
