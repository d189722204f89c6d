//! systemd's side of the agent: readiness, status, the watchdog, what is kept over a restart, and
//! whether one comes. Without a service manager every call does nothing.
//!
//! sd-notify speaks the protocol, because libsystemd cannot be linked statically.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proxy::drain::DrainWatch;
use sd_notify::NotifyState;
use tokio::sync::watch;
use tracing::{debug, warn};

mod ending;
mod store;

pub use ending::{Ending, ending};
pub use store::{Kept, Parked, park, parked, unpark};

/// The service manager listens to the service's main process alone.
static SPEAKS: AtomicBool = AtomicBool::new(true);
/// The watchdog is fed at most this long after the accept loops last ran.
const LATEST_HEARTBEAT: Duration = Duration::from_secs(5);

/// The agent serves.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// One line for `systemctl status`.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The agent ends, and may take so long.
pub fn stopping(deadline: Duration) {
    let micros = u32::try_from((deadline + Duration::from_secs(5)).as_micros()).unwrap_or(u32::MAX);
    let states = [NotifyState::Stopping, NotifyState::Status("draining"), NotifyState::ExtendTimeoutUsec(micros)];
    tell(&states);
}

/// Another process of the service speaks to the service manager: nothing is said until [`speak`].
pub fn be_silent() {
    SPEAKS.store(false, Ordering::Relaxed);
}

/// This process is the service's main process from here on.
pub fn speak() {
    SPEAKS.store(true, Ordering::Relaxed);
}

/// Whether the service manager listens to this process.
pub fn speaks() -> bool {
    SPEAKS.load(Ordering::Relaxed)
}

/// The service's main process is `pid`, and this one is silent.
pub fn give_way_to(pid: u32) {
    tell(&[NotifyState::MainPid(pid), NotifyState::Watchdog]);
    be_silent();
}

/// Feeds the watchdog as long as the data path moves: `alive` says when its slowest loop last ran.
/// Once the agent stops those loops have ended on purpose, and it is fed until the drain.
pub async fn watchdog(alive: impl Fn() -> Instant, stopping: watch::Receiver<bool>, drain: DrainWatch) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    let mut stuck = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep(period / 3) => {}
            () = drain.signaled() => return,
        }
        let silent = alive().elapsed();
        if *stopping.borrow() || silent < LATEST_HEARTBEAT.max(period / 2) {
            stuck = false;
            tell(&[NotifyState::Watchdog]);
        } else if !stuck {
            stuck = true;
            warn!(silent_ms = silent.as_millis() as u64, "the accept loops do not run, the watchdog is not fed");
        }
    }
}

/// Whether a service manager started this agent.
pub fn is_managed() -> bool {
    managed()
}

fn tell(states: &[NotifyState<'_>]) {
    if !speaks() {
        return;
    }
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "the service manager does not listen");
    }
}

fn managed() -> bool {
    crate::config::service_manager()
}
