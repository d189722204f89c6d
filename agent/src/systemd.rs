//! systemd's side of the agent: readiness, status, the watchdog, and the store that keeps the socket
//! of the rules over a restart. Without a service manager every call does nothing.
//!
//! sd-notify speaks the protocol, because libsystemd cannot be linked statically.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use proxy::drain::DrainWatch;
use sd_notify::NotifyState;
use tokio::sync::watch;
use tracing::{debug, warn};

/// Under this name the socket that owns the rules is parked.
const PARKED: &str = "nft";
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

/// Whether a service manager listens.
pub fn is_managed() -> bool {
    managed()
}

/// Gives a copy of the socket to the service manager, which keeps it while the agent restarts. A socket
/// that it has already it does not take twice (systemd compares the files).
pub fn park(socket: &impl AsFd) -> io::Result<()> {
    if !managed() {
        return Err(io::Error::other("no service manager started this agent"));
    }
    sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(PARKED)], &[socket.as_fd()])
}

/// The rules are gone: nothing is to be kept.
pub fn unpark() {
    tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(PARKED)]);
}

/// The socket that an earlier agent parked. Call it once, before other descriptors are opened.
pub fn parked() -> Option<OwnedFd> {
    let given = sd_notify::listen_fds_with_names().ok()?;
    let (raw, _) = given.into_iter().filter(|(_, name)| name == PARKED).last()?;
    // A copy by way of our own process descriptor: the number alone is not proof of ownership to Rust,
    // and the copy is as good (ownership of the table is the socket's, not the descriptor's).
    let own = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty()).ok()?;
    let copy = rustix::process::pidfd_getfd(&own, raw, rustix::process::PidfdGetfdFlags::empty());
    copy.inspect_err(|error| warn!(%error, "the parked socket cannot be taken over")).ok()
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "the service manager does not listen");
    }
}

fn managed() -> bool {
    crate::config::service_manager()
}
