//! Warm connections to peers, each for one flow at a time.
//!
//! `outbound/connection.rs` asks for a flow and hears that it is open, or that HBONE is to carry it.
//! A flow that ended in order gives its connection back. How many are kept is `demand.rs`. A connection
//! is left when our certificates or roots have changed, in good time before one of the certificates ends
//! that were shown, and when the peer says anything before a flow.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use identity::{Credentials, tls};
use rustls::ClientConfig;
use tokio::time::{MissedTickBehavior, interval, timeout, timeout_at};
use tracing::debug;

use crate::config::{FlowConfig, SocketConfig, Tunnel};
use crate::drain::Tasks;
use crate::flow::client::{self, Connection, Established};
use crate::flow::demand::Demand;
use crate::flow::{Answer, Header};
use crate::hbone;
use crate::hbone::client::{Key, Proof, TunnelError, broken_tls, still_valid};
use crate::metrics::{Label, Metrics};
use crate::net::copy::End;
use crate::standing::{Proven, Standing, Standings, Who};

/// The pool. Clones share it.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Shared>);

/// What the pool is made of.
pub(crate) struct Parts {
    pub(crate) tunnel: Tunnel,
    pub(crate) config: FlowConfig,
    pub(crate) sockets: SocketConfig,
    pub(crate) connect_timeout: Duration,
    pub(crate) credentials: Credentials,
    pub(crate) standings: Standings,
    pub(crate) metrics: Metrics,
    /// Takes the connections whose peer chose HBONE.
    pub(crate) hbone: hbone::pool::Pool,
}

struct Shared {
    parts: Parts,
    tasks: Tasks,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    by_key: HashMap<Arc<Key>, Slot>,
    /// No connection is kept any more.
    closed: bool,
}

/// One destination.
struct Slot {
    key: Arc<Key>,
    demand: Demand,
    way: Way,
    /// The newest last.
    warm: Vec<Connection>,
    making: usize,
    /// The peer chose HBONE, and is not asked again before this.
    hbone_until: Option<Instant>,
}

/// How connections to one destination are made.
#[derive(Clone)]
struct Way {
    proof: Proof,
    /// With the sessions of this destination.
    tls: Arc<ClientConfig>,
    /// The earliest end of a certificate among the sessions.
    sessions_until: Option<SystemTime>,
}

/// A flow that the peer has accepted.
pub(crate) struct Open {
    pub(crate) end: End,
    pub(crate) origin: Box<Origin>,
}

/// Where the connection of a flow belongs when the flow is over.
pub(crate) struct Origin {
    pool: Pool,
    place: Place,
    proven: Proven,
}

/// Of which destination a connection is, and with what it was made. The destination's name is held once.
struct Place {
    key: Arc<Key>,
    proof: Proof,
}

/// How one flow is to be carried.
enum Plan {
    Warm(Connection, Place),
    Make(Way, Making),
    Hbone,
}

/// A handshake in progress; over when dropped.
struct Making {
    pool: Pool,
    key: Arc<Key>,
}

impl Pool {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(Shared { parts, tasks: Tasks::new(), slots: Mutex::default() }))
    }

    /// A flow to `key.to` that the peer has accepted, or `None` when HBONE is to carry it. No byte of
    /// the application has been sent before, so a connection that turns out to be dead is left for
    /// another.
    pub(crate) async fn open(&self, key: &Key, header: &Header<'_>) -> Result<Option<Open>, Arc<TunnelError>> {
        if self.0.parts.tunnel == Tunnel::Hbone {
            return Ok(None);
        }
        let limit = self.0.parts.connect_timeout;
        let deadline = tokio::time::Instant::now() + limit;
        let bytes = header.encode();
        let (mut first, mut closed) = (true, false);
        loop {
            let plan = self.plan(key, first).map_err(Arc::new)?;
            first = false;
            self.refill(key);
            let (mut connection, place, warm) = match plan {
                Plan::Hbone => return Ok(None),
                Plan::Warm(connection, place) => (connection, place, true),
                Plan::Make(way, making) => {
                    let place = Place { key: making.key.clone(), proof: way.proof.clone() };
                    let made = timeout_at(deadline, Box::pin(self.make(key, way, making))).await;
                    let made = made.unwrap_or(Err(TunnelError::TimedOut { to: key.to, limit }));
                    match made.map_err(Arc::new)? {
                        Some(connection) => (connection, place, false),
                        None => return Ok(None),
                    }
                }
            };
            match timeout_at(deadline, connection.ask(&bytes)).await {
                Ok(Ok(Answer::Accepted)) => {
                    let (end, proven) = connection.into_end();
                    let origin = Box::new(Origin { pool: self.clone(), place, proven });
                    return Ok(Some(Open { end, origin }));
                }
                // The peer drains; whoever accepts there now takes the flow.
                Ok(Ok(Answer::Closing)) if warm || !std::mem::replace(&mut closed, true) => {}
                Ok(Ok(answer)) => return Err(Arc::new(TunnelError::Declined { to: key.to, answer })),
                Ok(Err(error)) if warm => {
                    debug!(dst.hbone_addr = %key.to, error = %telemetry::Chain(&error), "left a warm connection");
                }
                Ok(Err(error)) => return Err(Arc::new(broken_tls(key.to, error))),
                Err(_) => {
                    // Perhaps the peer is gone without a word, and the others only look warm.
                    self.forget(key);
                    return Err(Arc::new(TunnelError::TimedOut { to: key.to, limit }));
                }
            }
        }
    }

    /// Keeps as many connections warm as are wanted, and no dead ones. Runs until it is dropped.
    pub(crate) async fn keep(&self) {
        let mut timer = interval(KEEP_INTERVAL);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            let keys = self.sweep(Instant::now());
            keys.iter().for_each(|key| self.refill(key));
        }
    }

    /// No connection is kept any more.
    pub(crate) fn close(&self) {
        let mut slots = self.slots();
        slots.closed = true;
        let warm = slots.by_key.drain().map(|(_, slot)| slot.warm.len()).sum();
        self.cooled(warm);
    }

    /// The tasks that make connections.
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    /// What is ready, else what may be made.
    fn plan(&self, key: &Key, first: bool) -> Result<Plan, TunnelError> {
        let (parts, now, at) = (&self.0.parts, Instant::now(), SystemTime::now());
        let hbone_is_ready = parts.tunnel == Tunnel::Auto && parts.hbone.has_place(key);
        let mut slots = self.slots();
        if slots.closed {
            return Err(TunnelError::Draining);
        }
        let slot = self.slot(&mut slots, key, now)?;
        if first {
            slot.demand.count(now);
        }
        if slot.hbone_until.is_some_and(|until| now < until) {
            return Ok(Plan::Hbone);
        }
        while let Some(mut connection) = slot.warm.pop() {
            self.cooled(1);
            if connection.is_ready(at) {
                return Ok(Plan::Warm(connection, slot.place()));
            }
        }
        let always = parts.tunnel == Tunnel::Flow;
        if always || (!hbone_is_ready && slot.demand.spend(&parts.config, now)) {
            slot.making += 1;
            return Ok(Plan::Make(slot.way.clone(), Making { pool: self.clone(), key: slot.key.clone() }));
        }
        Ok(Plan::Hbone)
    }

    /// The slot of `key`, without what was made with other credentials than those of now.
    fn slot<'a>(&self, slots: &'a mut Slots, key: &Key, now: Instant) -> Result<&'a mut Slot, TunnelError> {
        let parts = &self.0.parts;
        // The key is copied only for its first flow.
        if !slots.by_key.contains_key(key) {
            let demand = Demand::new(&parts.config, now);
            let key = Arc::new(key.clone());
            let way = self.way(&key)?;
            let slot = Slot { key: key.clone(), demand, way, warm: Vec::new(), making: 0, hbone_until: None };
            slots.by_key.insert(key, slot);
        }
        let slot = slots.by_key.get_mut(key).ok_or(TunnelError::Draining)?;
        if !slot.way.proof.is(&Proof::of(&parts.credentials, &key.source)) {
            self.cooled(slot.warm.len());
            slot.warm.clear();
            slot.way = self.way(key)?;
        } else if slot.way.sessions_until.is_some_and(|until| until < SystemTime::now()) {
            slot.way = self.way(key)?;
        }
        Ok(slot)
    }

    fn way(&self, key: &Key) -> Result<Way, TunnelError> {
        let credentials = &self.0.parts.credentials;
        // In this order: what changes in between is found to differ, and made again.
        let proof = Proof::of(credentials, &key.source);
        let tls = tls::flow_client_config(credentials, &key.source, key.expected.clone());
        let tls = tls.map_err(|source| TunnelError::Configuration { to: key.to, source })?;
        Ok(Way { proof, tls, sessions_until: None })
    }

    /// Makes one connection. `None` when the peer chose HBONE, whose pool has it then.
    async fn make(&self, key: &Key, way: Way, making: Making) -> Result<Option<Connection>, TunnelError> {
        let parts = &self.0.parts;
        let result = match still_valid(&parts.credentials, &key.source) {
            Ok(()) => client::establish(key, way.tls.clone(), &parts.sockets).await,
            Err(error) => Err(error),
        };
        drop(making);
        let label = match &result {
            Ok(made) if made.resumed => "resumed",
            Ok(_) => "ok",
            Err(_) => "failed",
        };
        parts.metrics.tunnels_made.get_or_create(&Label("result", label)).inc();
        let Established { stream, flow, not_after, .. } = result?;
        let proven = parts.standings.proved(Who::Called(key.clone()), not_after, way.proof.not_after());
        if let Some(slot) = self.slots().by_key.get_mut(key) {
            if flow {
                slot.way.sessions_until = Some(slot.way.sessions_until.map_or(not_after, |until| until.min(not_after)));
            } else {
                slot.hbone_until = Some(Instant::now() + parts.config.hbone_memory);
            }
        }
        if !flow {
            parts.hbone.adopt(key.clone(), way.proof, proven, *stream);
            return Ok(None);
        }
        Ok(Some(Connection::new(stream, proven)))
    }

    /// Begins to make what is wanted and not there.
    fn refill(&self, key: &Key) {
        let (parts, now) = (&self.0.parts, Instant::now());
        let mut slots = self.slots();
        let Some(slot) = slots.by_key.get_mut(key) else { return };
        if slot.hbone_until.is_some_and(|until| now < until) {
            return;
        }
        let mut begun = Vec::new();
        let wanted = slot.demand.wanted(&parts.config, now);
        while slot.warm.len() + slot.making < wanted && slot.demand.spend(&parts.config, now) {
            slot.making += 1;
            begun.push((slot.way.clone(), Making { pool: self.clone(), key: slot.key.clone() }));
        }
        drop(slots);
        for (way, making) in begun {
            let (pool, place) = (self.clone(), Place { key: making.key.clone(), proof: way.proof.clone() });
            self.0.tasks.spawn(async move { pool.warm(place, way, making).await });
        }
    }

    /// Makes one connection and keeps it.
    async fn warm(&self, place: Place, way: Way, making: Making) {
        let key = &place.key;
        let made = timeout(self.0.parts.connect_timeout, Box::pin(self.make(key, way, making))).await;
        match made {
            Ok(Ok(Some(connection))) => self.put(&place, connection),
            Ok(Ok(None)) => {}
            // The next flow finds out for itself, and its report says so.
            Ok(Err(error)) => debug!(dst.hbone_addr = %key.to, error = %telemetry::Chain(&error), "not warmed"),
            Err(_) => debug!(dst.hbone_addr = %key.to, "not warmed: no answer in time"),
        }
    }

    /// Keeps a connection, unless the credentials have changed or there are enough.
    fn put(&self, place: &Place, connection: Connection) {
        let mut slots = self.slots();
        let slot = slots.by_key.get_mut(&*place.key).filter(|slot| slot.way.proof.is(&place.proof));
        if let Some(slot) = slot.filter(|slot| slot.warm.len() < self.0.parts.config.max_warm) {
            slot.warm.push(connection);
            self.0.parts.metrics.warm.inc();
        }
    }

    /// Leaves what is dead or too many. The destinations that are left.
    fn sweep(&self, now: Instant) -> Vec<Arc<Key>> {
        let parts = &self.0.parts;
        let mut slots = self.slots();
        slots.by_key.retain(|key, slot| {
            let before = slot.warm.len();
            let same = slot.way.proof.is(&Proof::of(&parts.credentials, &key.source));
            let at = SystemTime::now();
            slot.warm.retain_mut(|connection| same && connection.is_ready(at));
            let wanted = slot.demand.wanted(&parts.config, now);
            let surplus = slot.warm.len().saturating_sub(wanted);
            slot.warm.drain(..surplus);
            self.cooled(before - slot.warm.len());
            wanted > 0 || slot.making > 0
        });
        // Credentials that have changed are taken up by the next flow, not before.
        let current = |(key, slot): &(&Arc<Key>, &Slot)| slot.way.proof.is(&Proof::of(&parts.credentials, &key.source));
        slots.by_key.iter().filter(current).map(|(key, _)| key.clone()).collect()
    }

    fn forget(&self, key: &Key) {
        if let Some(slot) = self.slots().by_key.get_mut(key) {
            self.cooled(slot.warm.len());
            slot.warm.clear();
        }
    }

    /// `n` connections are no longer warm.
    fn cooled(&self, n: usize) {
        self.0.parts.metrics.warm.dec_by(i64::try_from(n).unwrap_or(i64::MAX));
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        // Nothing that can panic runs under this lock; a poisoned one is still whole.
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn place(&self) -> Place {
        Place { key: self.key.clone(), proof: self.way.proof.clone() }
    }
}

impl Origin {
    /// Whom the connection is from and to.
    pub(crate) fn key(&self) -> &Key {
        &self.place.key
    }

    /// The peer of the flow.
    pub(crate) fn standing(&self) -> &Arc<Standing> {
        &self.proven.standing
    }

    /// Gives the connection of a flow that ended in order back.
    pub(crate) fn give_back(self, end: End) {
        if let Some(connection) = Connection::again(end, self.proven) {
            self.pool.put(&self.place, connection);
        }
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if let Some(slot) = self.pool.slots().by_key.get_mut(&*self.key) {
            slot.making = slot.making.saturating_sub(1);
        }
    }
}

/// How often warm connections are looked after.
const KEEP_INTERVAL: Duration = Duration::from_secs(1);
