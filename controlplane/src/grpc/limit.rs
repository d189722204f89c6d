//! Pure: how often somebody may do something. A bucket of tokens for each key, refilled with time.
//!
//! Used for failed joins by source address and for certificates by host. Buckets that are full again
//! are forgotten, so the memory is bounded by who was busy lately.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// At most `burst` at once, and one more after each `refill`.
#[derive(Debug)]
pub(super) struct Limit<K> {
    burst: u32,
    refill: Duration,
    /// When each key's bucket will be full again.
    full_at: Mutex<HashMap<K, Instant>>,
}

/// Keys that are remembered; beyond it, those that are full again are forgotten first.
const SWEEP_AT: usize = 10_000;

impl<K: Eq + Hash> Limit<K> {
    pub(super) fn new(burst: u32, refill: Duration) -> Self {
        Self { burst, refill, full_at: Mutex::new(HashMap::new()) }
    }

    /// How long `key` has to wait; `None` when it need not.
    pub(super) fn wait(&self, key: &K, now: Instant) -> Option<Duration> {
        let full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        // With n taken the bucket is full again after n refills; with `burst` taken it is empty.
        let free_at = full_at.get(key)?.checked_sub(self.refill * (self.burst - 1))?;
        free_at.checked_duration_since(now).filter(|wait| !wait.is_zero())
    }

    /// Counts one.
    pub(super) fn take(&self, key: K, now: Instant) {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if full_at.len() >= SWEEP_AT {
            full_at.retain(|_, at| *at > now);
        }
        let at = full_at.entry(key).or_insert(now);
        *at = (*at).max(now) + self.refill;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_one_per_refill() {
        let limit = Limit::new(3, Duration::from_secs(10));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for _ in 0..3 {
            assert_eq!(limit.wait(&"a", at(0)), None);
            limit.take("a", at(0));
        }
        assert_eq!(limit.wait(&"a", at(0)), Some(Duration::from_secs(10)));
        assert_eq!(limit.wait(&"b", at(0)), None, "others are not concerned");
        assert_eq!(limit.wait(&"a", at(9)), Some(Duration::from_secs(1)));
        assert_eq!(limit.wait(&"a", at(10)), None);
        limit.take("a", at(10));
        assert_eq!(limit.wait(&"a", at(10)), Some(Duration::from_secs(10)));
        for _ in 0..3 {
            assert_eq!(limit.wait(&"a", at(100)), None);
            limit.take("a", at(100));
        }
        assert!(limit.wait(&"a", at(100)).is_some());
    }
}
