//! Waiting for conditions: level-triggered, with a deadline, and it says what it saw last.

use std::fmt::Debug;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long conditions may take on a busy machine of two cores. A condition that holds is seen at
/// once, so only failures wait this long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks `look` until it answers `Ok`; panics after [`PATIENCE`] with what it answered last.
#[track_caller]
pub fn wait_until<T, E: Debug>(what: &str, look: impl FnMut() -> Result<T, E>) -> T {
    within(PATIENCE, what, look)
}

/// As [`wait_until`], with a deadline of its own.
#[track_caller]
pub fn within<T, E: Debug>(limit: Duration, what: &str, mut look: impl FnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + limit;
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) if Instant::now() >= end => panic!("not within {limit:?}: {what}; last seen: {seen:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Waits for the end of `child`; `None` when it still runs after `limit`.
pub fn ended(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let limit = Timespec::try_from(limit).map_err(std::io::Error::other)?;
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit))?;
    child.try_wait()
}
