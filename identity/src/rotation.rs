//! Pure: when to renew a certificate, and how long to wait after a failure.
//!
//! The agent keeps one [`Rotation`] per identity, asks [`Rotation::wait`] how long to sleep, tries,
//! and tells it the outcome. The old certificate stays in use while it is valid.

use std::time::{Duration, SystemTime};

/// The first retry comes after this, each further one after twice the last.
pub const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Retries are never further apart, jitter included.
pub const LONGEST_RETRY: Duration = Duration::from_secs(300);
/// A new certificate rests at least this long, whatever its dates say: a CA that backdates by more
/// than the lifetime would otherwise be asked without end (ztunnel was seen to make 1264 requests in
/// 45 s).
pub const LEAST_REST: Duration = Duration::from_secs(5);

/// The renewal of one certificate.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// Spreads the renewals of a fleet: any number that differs between hosts and identities.
    seed: u64,
    held: Option<Held>,
    failures: u32,
    /// When the last failure was.
    failed_at: Option<SystemTime>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    not_before: SystemTime,
    not_after: SystemTime,
    obtained: SystemTime,
}

/// How a certificate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// There is none yet.
    Missing,
    /// Valid, and not due.
    Fresh,
    /// Valid, and due for renewal.
    Due,
    /// Our clock is before its first moment: one of the clocks is wrong.
    NotYetValid,
    Expired,
}

impl Rotation {
    /// Nothing is held: the first attempt is due at once.
    pub fn new(seed: u64) -> Self {
        Self { seed, held: None, failures: 0, failed_at: None }
    }

    /// A certificate was obtained, or read from disk, at `now`.
    pub fn renewed(&mut self, not_before: SystemTime, not_after: SystemTime, now: SystemTime) {
        self.held = Some(Held { not_before, not_after, obtained: now });
        self.failures = 0;
        self.failed_at = None;
    }

    /// An attempt failed at `now`.
    pub fn failed(&mut self, now: SystemTime) {
        self.failures = self.failures.saturating_add(1);
        self.failed_at = Some(now);
    }

    /// Attempts that failed since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// How long to wait before the next attempt; zero when it is due. A clock that was set back never
    /// makes it longer than it was at first.
    pub fn wait(&self, now: SystemTime) -> Duration {
        if let Some(failed_at) = self.failed_at {
            let pause = self.retry_pause();
            return until(now, failed_at + pause).min(pause);
        }
        let Some(held) = self.held else { return Duration::ZERO };
        let due = held.half_life(self.jitter(0)).max(held.obtained + LEAST_REST);
        until(now, due).min(until(held.obtained, due))
    }

    pub fn state(&self, now: SystemTime) -> State {
        match self.held {
            None => State::Missing,
            Some(held) if now < held.not_before => State::NotYetValid,
            Some(held) if now > held.not_after => State::Expired,
            Some(_) if self.failed_at.is_some() || self.wait(now).is_zero() => State::Due,
            Some(_) => State::Fresh,
        }
    }

    fn retry_pause(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        let pause = FIRST_RETRY.saturating_mul(1 << doublings);
        pause.mul_f64(1.0 + self.jitter(u64::from(self.failures)) * 2.0).min(LONGEST_RETRY)
    }

    /// Between -0.1 and 0.1, the same for the same seed, certificate and round.
    fn jitter(&self, round: u64) -> f64 {
        let epoch = self.held.and_then(|held| held.not_after.duration_since(SystemTime::UNIX_EPOCH).ok());
        let mixed = mix(self.seed ^ mix(epoch.map_or(0, |since| since.as_secs()) ^ mix(round)));
        // 53 bits fill a f64's mantissa exactly.
        let unit = (mixed >> 11) as f64 / (1u64 << 53) as f64;
        (unit - 0.5) / 5.0
    }
}

impl Held {
    /// Half of its life after its first moment, moved by `jitter` of its whole life.
    fn half_life(&self, jitter: f64) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + life.mul_f64(0.5 + jitter)
    }
}

fn until(now: SystemTime, then: SystemTime) -> Duration {
    then.duration_since(now).unwrap_or_default()
}

/// SplitMix64's finalizer: neighbouring seeds give unrelated numbers.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
