//! Waiting for conditions: level-triggered, with a deadline, and it says what it saw last.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How long conditions may take on a busy machine of two cores. A condition that holds is seen at
/// once, so only failures wait this long.
pub const PATIENCE: Duration = Duration::from_secs(20);

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
