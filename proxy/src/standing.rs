//! Until when each peer has proved who it is. What is open to a peer ends with that.
//!
//! Every handshake is told here (`hbone/pool.rs`, `flow/pool.rs`, `inbound/connection.rs`), and every
//! tunnelled connection holds the [`Standing`] of its peer. A connection may outlive the certificates
//! that it began with: the side that dials shakes hands again in good time, which shows each side the
//! newer certificate of the other. Who shows none loses what is open when the last one ends.
//!
//! Where a process drains while another one accepts in its place, callers prove themselves to the other:
//! that one tells ([`Standings::proofs`]), and this one hears ([`Standings::heard`]).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use api::SpiffeId;
use identity::VerifyError;
use tokio::sync::broadcast;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::connections::Connections;
use crate::hbone::client::Key;
use crate::hbone::pool::Pool;
use crate::net::traffic::Stop;

/// The peers that have proved who they are. Clones share the list.
#[derive(Clone)]
pub(crate) struct Standings {
    list: Arc<Mutex<HashMap<Who, Arc<Standing>>>>,
    proofs: broadcast::Sender<Proof>,
}

/// A caller has shown a certificate that lasts longer than those it has shown before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    pub identity: SpiffeId,
    pub address: IpAddr,
    pub not_after: SystemTime,
}

/// A peer, as it is told apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// It dials us from this address.
    Caller(SpiffeId, IpAddr),
    /// We dial it.
    Called(Key),
}

/// One peer. Whoever holds it sees what later handshakes prove.
#[derive(Debug)]
pub(crate) struct Standing {
    who: Who,
    times: Mutex<Times>,
}

#[derive(Debug, Clone, Copy)]
struct Times {
    /// When the last of the certificates ends that the peer has shown.
    until: SystemTime,
    /// When both sides should prove themselves again.
    renew_at: SystemTime,
}

/// What one handshake has proved.
#[derive(Debug, Clone)]
pub(crate) struct Proven {
    pub(crate) standing: Arc<Standing>,
    /// New flows prefer a newer handshake after this.
    pub(crate) fresh_until: SystemTime,
}

impl Standings {
    /// A peer has shown certificates that end at `not_after`; those that it was shown end at `own`.
    pub(crate) fn proved(&self, who: Who, not_after: SystemTime, own: Option<SystemTime>) -> Proven {
        let now = SystemTime::now();
        let fresh_until = good_time(now, own.map_or(not_after, |own| own.min(not_after)));
        let times = Times { until: not_after, renew_at: fresh_until };
        let mut list = self.list();
        let is_new = !list.contains_key(&who);
        let new = || Arc::new(Standing { who: who.clone(), times: Mutex::new(times) });
        let standing = list.entry(who.clone()).or_insert_with(new).clone();
        drop(list);
        let mut known = standing.times();
        let is_news = is_new || known.until < not_after;
        *known = Times { until: known.until.max(not_after), ..times };
        drop(known);
        if let Who::Caller(identity, address) = who
            && is_news
        {
            self.tell(Proof { identity, address, not_after });
        }
        Proven { standing, fresh_until }
    }

    /// What callers prove from here on.
    pub(crate) fn proofs(&self) -> broadcast::Receiver<Proof> {
        self.proofs.subscribe()
    }

    /// What a caller has proved to another process that accepts in this one's place.
    pub(crate) fn heard(&self, proof: Proof) {
        let standing = self.list().get(&Who::Caller(proof.identity.clone(), proof.address)).cloned();
        if let Some(standing) = standing {
            let mut known = standing.times();
            known.until = known.until.max(proof.not_after);
        }
        self.tell(proof);
    }

    fn tell(&self, proof: Proof) {
        // Mostly nobody listens.
        let _ = self.proofs.send(proof);
    }

    /// Ends connections whose peer no longer stands, and sees to it that others go on. Runs until it is
    /// dropped.
    pub(crate) async fn keep(self, connections: Connections, pool: Pool) {
        let mut timer = interval(KEEP_INTERVAL);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            let now = SystemTime::now();
            for open in connections.all() {
                let Some(standing) = &open.facts.standing else { continue };
                if let Some(not_after) = standing.ended_at(now) {
                    let reason = VerifyError::Expired { not_after, now }.to_string();
                    open.traffic.stop(Stop::CertificateEnded { reason });
                } else if let Some(key) = standing.due(now) {
                    pool.renew(key);
                }
            }
            // By the same clock: what is forgotten here has been ended above.
            self.list().retain(|_, standing| standing.ended_at(now).is_none());
        }
    }

    fn list(&self) -> MutexGuard<'_, HashMap<Who, Arc<Standing>>> {
        // Nothing that can panic runs under this lock; a poisoned one is still whole.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Standings {
    fn default() -> Self {
        Self { list: Arc::default(), proofs: broadcast::Sender::new(PROOFS) }
    }
}

impl Standing {
    /// Who it is, if it dials us.
    pub(crate) fn caller(&self) -> Option<&SpiffeId> {
        match &self.who {
            Who::Caller(identity, _) => Some(identity),
            Who::Called(_) => None,
        }
    }

    /// Completes when the peer's last certificate has ended. Dropping the future has no effect.
    pub(crate) async fn ended(&self) {
        while let Ok(left) = self.until().duration_since(SystemTime::now()) {
            sleep(left.clamp(Duration::from_millis(1), LONGEST_SLEEP)).await;
        }
    }

    fn ended_at(&self, now: SystemTime) -> Option<SystemTime> {
        Some(self.until()).filter(|until| *until < now)
    }

    fn until(&self) -> SystemTime {
        self.times().until
    }

    /// Whom to dial so that both sides prove themselves again, if it is time; asked again later, in
    /// case it fails.
    fn due(&self, now: SystemTime) -> Option<&Key> {
        let Who::Called(key) = &self.who else { return None };
        let mut times = self.times();
        let due = times.renew_at <= now;
        if due {
            times.renew_at = good_time(now, times.until);
        }
        due.then_some(key)
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Three quarters of the way to `end`: renewals of certificates are over, and there is time to try again.
fn good_time(now: SystemTime, end: SystemTime) -> SystemTime {
    let left = end.duration_since(now).unwrap_or_default();
    now + left.mul_f64(0.75).max(KEEP_INTERVAL)
}

/// How late a connection may end.
const KEEP_INTERVAL: Duration = Duration::from_secs(1);
/// A clock that is set changes how long there is left.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// How many proofs may wait for whoever listens. One that is missed comes again with the next certificate.
const PROOFS: usize = 1024;
