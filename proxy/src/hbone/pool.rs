//! Connections to peers, shared by all streams with the same source, expected identities and address.
//!
//! `outbound/connection.rs` asks for a stream. Rules (ztunnel's `src/proxy/pool.rs`): one connection being made
//! per key, a bounded number of streams on each, closed when unused (soon, if an older one has places), left
//! when the peer says GOAWAY or dies, and left for a new one when our certificates or roots have changed, and
//! in good time before one of the certificates ends that were shown.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use identity::Credentials;
use tokio::sync::watch;
use tokio::time::{timeout, timeout_at};
use tracing::{debug, warn};

use crate::config::{HboneConfig, SocketConfig};
use crate::drain::Tasks;
use crate::hbone::client::{self, Connect, Key, Opened, Proof, TunnelError};
use crate::hbone::keepalive::Keepalive;
use crate::metrics::{Label, Metrics};
use crate::net::tls::TlsStream;
use crate::standing::{Proven, Standing, Standings, Who};

/// The pool. Clones share it.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Shared>);

struct Shared {
    hbone: HboneConfig,
    sockets: SocketConfig,
    connect_timeout: Duration,
    credentials: Credentials,
    standings: Standings,
    metrics: Metrics,
    tasks: Tasks,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    by_key: HashMap<Key, Slot>,
    next: u64,
    /// No connection is kept any more.
    closed: bool,
}

#[derive(Default)]
struct Slot {
    /// Those that may take streams, oldest first.
    live: Vec<Arc<Tunnel>>,
    connecting: Option<Connecting>,
}

/// The outcome of the connection that is being made; `None` while it is.
type Connecting = watch::Receiver<Option<Result<(), Arc<TunnelError>>>>;

/// One connection to a peer.
struct Tunnel {
    id: u64,
    send: SendRequest<Bytes>,
    usage: Arc<Usage>,
    proof: Proof,
    /// Of the peer.
    standing: Arc<Standing>,
}

/// How many streams a connection has.
struct Usage {
    /// When the connection is left for one with newer certificates.
    fresh_until: SystemTime,
    streams: AtomicUsize,
    last_used: Mutex<Instant>,
}

/// The place of one stream on a connection; dropping it frees the place.
pub(crate) struct Lease {
    usage: Arc<Usage>,
    /// Of the peer.
    pub(crate) standing: Arc<Standing>,
}

/// A place, and the connection it is on.
struct Leased {
    lease: Lease,
    id: u64,
    send: SendRequest<Bytes>,
    /// The connection had been used before.
    reused: bool,
}

impl Pool {
    pub(crate) fn new(
        hbone: HboneConfig,
        sockets: SocketConfig,
        connect_timeout: Duration,
        credentials: Credentials,
        standings: Standings,
        metrics: Metrics,
    ) -> Self {
        let (tasks, slots) = (Tasks::new(), Mutex::default());
        Self(Arc::new(Shared { hbone, sockets, connect_timeout, credentials, standings, metrics, tasks, slots }))
    }

    /// A stream to `key.to` for which the peer has said 200. No byte of the application has been sent
    /// before, so a connection that turns out to be dead is left for a new one.
    pub(crate) async fn open(&self, key: &Key, connect: &Connect) -> Result<(Opened, Lease), Arc<TunnelError>> {
        let limit = self.0.connect_timeout;
        let deadline = tokio::time::Instant::now() + limit;
        let timed_out = || TunnelError::TimedOut { to: key.to, limit };
        loop {
            let leased = timeout_at(deadline, self.lease(key)).await;
            let Leased { lease, id, send, reused } = leased.map_err(|_| Arc::new(timed_out()))??;
            let error = match timeout_at(deadline, client::open(key.to, send, connect)).await {
                Ok(Ok(opened)) => return Ok((opened, lease)),
                Ok(Err(error)) => error,
                Err(_) => timed_out(),
            };
            match &error {
                TunnelError::Tcp { .. } | TunnelError::Tls { .. } | TunnelError::Http2 { .. } => {
                    debug!(dst.hbone_addr = %key.to, error = %telemetry::Chain(&error), reused, "left a connection");
                    self.retire(key, id);
                    if reused {
                        continue;
                    }
                }
                // Perhaps the peer is gone without a word; streams on it live until keepalive knows.
                TunnelError::TimedOut { .. } => self.retire(key, id),
                TunnelError::OwnCertificateExpired { .. }
                | TunnelError::Configuration { .. }
                | TunnelError::Header { .. }
                | TunnelError::Refused { .. }
                | TunnelError::Declined { .. }
                | TunnelError::Draining => {}
            }
            return Err(Arc::new(error));
        }
    }

    /// No connection takes new streams; each closes when its last stream ends.
    pub(crate) fn close(&self) {
        let mut slots = self.slots();
        slots.closed = true;
        slots.by_key.clear();
    }

    /// The tasks that drive the connections.
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    /// Makes a connection beside those that there are: both sides show the certificates of now.
    pub(crate) fn renew(&self, key: &Key) {
        let (pool, key) = (self.clone(), key.clone());
        self.0.tasks.spawn(async move {
            let proof = Proof::of(&pool.0.credentials, &key.source);
            match Box::pin(pool.establish(&key, &proof)).await {
                Ok(((send, connection), proven)) => {
                    let (id, usage) = pool.keep(&key, send, proof, proven);
                    pool.drive(key, id, connection, &usage).await;
                }
                Err(error) => warn!(
                    dst.hbone_addr = %key.to,
                    src.identity = %key.source,
                    error = %telemetry::Chain(&error),
                    "open connections are not sure of their peer for longer: no new handshake with it"
                ),
            }
        });
    }

    /// Waits for a place on a connection of `key`.
    async fn lease(&self, key: &Key) -> Result<Leased, Arc<TunnelError>> {
        let mut reused = true;
        loop {
            let mut connecting = match self.find(key, reused)? {
                Ok(leased) => return Ok(leased),
                Err(connecting) => connecting,
            };
            reused = false;
            // The sender is dropped without an outcome when its task is ended by force.
            let outcome = connecting.wait_for(Option::is_some).await.map_or(None, |outcome| outcome.clone());
            outcome.unwrap_or_else(|| Err(Arc::new(TunnelError::Draining)))?;
        }
    }

    /// A place if there is one; else the connection that is being made, started if need be.
    fn find(&self, key: &Key, reused: bool) -> Result<Result<Leased, Connecting>, Arc<TunnelError>> {
        let proof = Proof::of(&self.0.credentials, &key.source);
        let mut slots = self.slots();
        if slots.closed {
            return Err(Arc::new(TunnelError::Draining));
        }
        // The key is copied only for its first connection.
        if !slots.by_key.contains_key(key) {
            slots.by_key.insert(key.clone(), Slot::default());
        }
        let Some(slot) = slots.by_key.get_mut(key) else { return Err(Arc::new(TunnelError::Draining)) };
        let now = SystemTime::now();
        slot.live.retain(|tunnel| tunnel.is_fresh(&proof, now));
        let place = slot.live.iter().find_map(|tunnel| tunnel.lease(self.0.hbone.pool_max_streams, reused));
        if let Some(leased) = place {
            return Ok(Ok(leased));
        }
        // A connecting task that was ended by force or by a panic left no outcome.
        if let Some(connecting) = slot.connecting.as_ref().filter(|connecting| connecting.has_changed().is_ok()) {
            return Ok(Err(connecting.clone()));
        }
        let (outcome, connecting) = watch::channel(None);
        slot.connecting = Some(connecting.clone());
        drop(slots);
        self.0.tasks.spawn(self.clone().make(key.clone(), proof, outcome));
        Ok(Err(connecting))
    }

    /// Makes one connection, tells who waits for it, and drives it to its end.
    async fn make(self, key: Key, proof: Proof, outcome: watch::Sender<Option<Result<(), Arc<TunnelError>>>>) {
        match Box::pin(self.establish(&key, &proof)).await {
            Err(error) => {
                self.forget_connecting(&key);
                outcome.send_replace(Some(Err(Arc::new(error))));
            }
            Ok(((send, connection), proven)) => {
                let (id, usage) = self.keep(&key, send, proof, proven);
                outcome.send_replace(Some(Ok(())));
                drop(outcome);
                self.drive(key, id, connection, &usage).await;
            }
        }
    }

    /// Takes over a connection that somebody else made and whose peer chose HBONE.
    pub(crate) fn adopt(&self, key: Key, proof: Proof, proven: Proven, stream: TlsStream) {
        let pool = self.clone();
        self.0.tasks.spawn(async move {
            match client::start(&key, stream, &pool.0.hbone).await {
                Ok((send, connection)) => {
                    let (id, usage) = pool.keep(&key, send, proof, proven);
                    pool.drive(key, id, connection, &usage).await;
                }
                Err(error) => debug!(dst.hbone_addr = %key.to, error = %telemetry::Chain(&error), "not adopted"),
            }
        });
    }

    /// Whether a stream would have a place at once.
    pub(crate) fn has_place(&self, key: &Key) -> bool {
        self.has_place_before(key, u64::MAX)
    }

    /// Whether it would on a connection older than the one with `id`.
    fn has_place_before(&self, key: &Key, id: u64) -> bool {
        let proof = Proof::of(&self.0.credentials, &key.source);
        let slots = self.slots();
        let live = slots.by_key.get(key).map(|slot| slot.live.as_slice()).unwrap_or_default();
        let now = SystemTime::now();
        let mut older = live.iter().take_while(|tunnel| tunnel.id < id);
        older.any(|tunnel| tunnel.is_fresh(&proof, now) && tunnel.has_place(self.0.hbone.pool_max_streams))
    }

    async fn establish(&self, key: &Key, proof: &Proof) -> Result<(client::Established, Proven), TunnelError> {
        let shared = &self.0;
        let made = async {
            client::still_valid(&shared.credentials, &key.source)?;
            let limit = shared.connect_timeout;
            let established = client::establish(key, &shared.credentials, &shared.hbone, &shared.sockets);
            timeout(limit, established).await.map_err(|_| TunnelError::TimedOut { to: key.to, limit })?
        };
        let made = made.await;
        let result = if made.is_ok() { "ok" } else { "failed" };
        shared.metrics.tunnels_made.get_or_create(&Label("result", result)).inc();
        let (established, not_after) = made?;
        let proven = shared.standings.proved(Who::Called(key.clone()), not_after, proof.not_after());
        Ok((established, proven))
    }

    fn keep(&self, key: &Key, send: SendRequest<Bytes>, proof: Proof, proven: Proven) -> (u64, Arc<Usage>) {
        let fresh_until = proven.fresh_until;
        let usage = Usage { fresh_until, streams: AtomicUsize::new(0), last_used: Mutex::new(Instant::now()) };
        let usage = Arc::new(usage);
        let mut slots = self.slots();
        let id = slots.next;
        slots.next += 1;
        if !slots.closed {
            let slot = slots.by_key.entry(key.clone()).or_default();
            slot.connecting = None;
            slot.live.push(Arc::new(Tunnel { id, send, usage: usage.clone(), proof, standing: proven.standing }));
        }
        (id, usage)
    }

    fn forget_connecting(&self, key: &Key) {
        let mut slots = self.slots();
        if let Some(slot) = slots.by_key.get_mut(key) {
            slot.connecting = None;
            if slot.live.is_empty() {
                slots.by_key.remove(key);
            }
        }
    }

    /// The connection takes no new streams. It closes, with GOAWAY, when its last stream has ended,
    /// because the pool held the last handle for requests.
    fn retire(&self, key: &Key, id: u64) {
        let mut slots = self.slots();
        if let Some(slot) = slots.by_key.get_mut(key) {
            slot.live.retain(|tunnel| tunnel.id != id);
            if slot.live.is_empty() && slot.connecting.is_none() {
                slots.by_key.remove(key);
            }
        }
    }

    async fn drive(&self, key: Key, id: u64, mut connection: Connection<TlsStream, Bytes>, usage: &Usage) {
        self.0.metrics.tunnels.inc();
        let mut keepalive = connection.ping_pong().map(|ping_pong| Keepalive::new(ping_pong, &self.0.hbone));
        let hbone = &self.0.hbone;
        let why = poll_fn(|cx| {
            if let Poll::Ready(result) = std::pin::Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(result.err().map_or("closed".to_owned(), |error| error.to_string()));
            }
            if keepalive.as_mut().is_some_and(|keepalive| keepalive.poll(cx).is_ready()) {
                return Poll::Ready("no answer to PING".to_owned());
            }
            // The keepalive timer brings the task here often enough.
            let unused = usage.unused_for().unwrap_or_default();
            let over = unused > hbone.pool_unused_timeout
                || unused > hbone.pool_spare_timeout && self.has_place_before(&key, id)
                || usage.fresh_until < SystemTime::now();
            if over {
                self.retire(&key, id);
            }
            Poll::Pending
        })
        .await;
        self.retire(&key, id);
        self.0.metrics.tunnels.dec();
        debug!(dst.hbone_addr = %key.to, src.identity = %key.source, error = why, "a connection to a peer ended");
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        // Nothing that can panic runs under this lock; a poisoned one is still whole.
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tunnel {
    /// A place for a stream, if there is one. Only called under the pool's lock.
    fn lease(&self, max_streams: usize, reused: bool) -> Option<Leased> {
        if !self.has_place(max_streams) {
            return None;
        }
        self.usage.streams.fetch_add(1, Ordering::Relaxed);
        let lease = Lease { usage: self.usage.clone(), standing: self.standing.clone() };
        Some(Leased { lease, id: self.id, send: self.send.clone(), reused })
    }
}

impl Tunnel {
    /// Made with the credentials of now, and certificates that last.
    fn is_fresh(&self, proof: &Proof, now: SystemTime) -> bool {
        self.proof.is(proof) && now <= self.usage.fresh_until
    }

    fn has_place(&self, max_streams: usize) -> bool {
        // A peer that allows none would make us connect for ever; the stream waits for it instead.
        let limit = max_streams.min(self.send.current_max_send_streams()).max(1);
        self.usage.streams.load(Ordering::Relaxed) < limit
    }
}

impl Usage {
    /// For how long there has been no stream; `None` while there is one.
    fn unused_for(&self) -> Option<Duration> {
        if self.streams.load(Ordering::Relaxed) > 0 {
            return None;
        }
        Some(self.last_used.lock().unwrap_or_else(PoisonError::into_inner).elapsed())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        *self.usage.last_used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.usage.streams.fetch_sub(1, Ordering::Relaxed);
    }
}
