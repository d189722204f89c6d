//! What one agent leaves to the next, and systemd's file descriptor store: it keeps sockets while the agent
//! restarts (sd_notify(3), `FDSTORE=1`), and lets go of them when the service is stopped for good. An agent
//! that hands over (`crate::hand_over`) passes more of them, itself.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use sd_notify::NotifyState;

use super::{managed, tell};

/// What one agent leaves to the next: the name that it goes under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The netlink socket that owns the rules.
    Rules,
    /// The sockets that names are asked for at: questions wait in them for the next agent.
    Names,
    /// The listening sockets of the data plane. Not for the service manager, nor what follows.
    Traffic,
    /// The listening sockets of the admin API, metrics and readiness.
    Admin,
    /// The lock of the state folder.
    Lock,
}

/// What an agent before this one has left.
#[derive(Debug, Default)]
pub struct Parked {
    pub rules: Option<OwnedFd>,
    pub names: Vec<OwnedFd>,
    pub traffic: Vec<OwnedFd>,
    pub admin: Vec<OwnedFd>,
    pub lock: Option<OwnedFd>,
}

impl Kept {
    const ALL: [Self; 5] = [Self::Rules, Self::Names, Self::Traffic, Self::Admin, Self::Lock];

    pub fn name(self) -> &'static str {
        match self {
            Self::Rules => "nft",
            Self::Names => "dns",
            Self::Traffic => "traffic",
            Self::Admin => "admin",
            Self::Lock => "lock",
        }
    }
}

impl Parked {
    /// One more. What has another name comes from a drop-in of the unit, or from another version, and is
    /// closed here.
    pub fn take(&mut self, name: &str, descriptor: OwnedFd) {
        match Kept::ALL.into_iter().find(|kept| kept.name() == name) {
            Some(Kept::Rules) => self.rules = Some(descriptor),
            Some(Kept::Names) => self.names.push(descriptor),
            Some(Kept::Traffic) => self.traffic.push(descriptor),
            Some(Kept::Admin) => self.admin.push(descriptor),
            Some(Kept::Lock) => self.lock = Some(descriptor),
            None => {}
        }
    }
}

/// Gives copies of sockets to the service manager. One that it has already it does not take twice
/// (systemd compares the files).
pub fn park<'a>(kept: Kept, sockets: impl IntoIterator<Item = BorrowedFd<'a>>) -> io::Result<()> {
    if !managed() {
        return Err(io::Error::other("no service manager started this agent"));
    }
    let sockets: Vec<BorrowedFd<'a>> = sockets.into_iter().collect();
    sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(kept.name())], &sockets)
}

/// Nothing is to be kept under this name any more.
pub fn unpark(kept: Kept) {
    tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(kept.name())]);
}

/// Takes over what was parked: once, before other descriptors are opened. That is before there is a
/// log, so whoever calls it says later what went wrong.
pub fn parked() -> io::Result<Parked> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let mut parked = Parked::default();
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(parked);
    }
    for (number, name) in sd_notify::listen_fds_with_names()? {
        parked.take(&name, own(number));
    }
    Ok(parked)
}

#[expect(unsafe_code, reason = "systemd hands descriptors over by number")]
fn own(number: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: systemd opened this descriptor for this process (LISTEN_PID is ours), `listen_fds` has
    // found it open, and `parked` comes here once, so nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(number) }
}
