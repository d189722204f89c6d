//! From single answers to a verdict, by thresholds. Pure.

use super::Health;

/// What has been heard of one workload.
#[derive(Debug, Clone)]
pub struct Verdict {
    success_threshold: u32,
    failure_threshold: u32,
    current: Option<Health>,
    successes: u32,
    failures: u32,
    succeeded: bool,
}

impl Verdict {
    /// A threshold of 0 counts as 1.
    pub fn new(success_threshold: u32, failure_threshold: u32) -> Self {
        let (success_threshold, failure_threshold) = (success_threshold.max(1), failure_threshold.max(1));
        Self { success_threshold, failure_threshold, current: None, successes: 0, failures: 0, succeeded: false }
    }

    /// One answer; the health when that is news.
    pub fn hear(&mut self, answer: Result<(), String>) -> Option<Health> {
        let first = self.current.is_none();
        let health = match answer {
            Ok(()) => {
                (self.successes, self.failures, self.succeeded) = (self.successes.saturating_add(1), 0, true);
                Health { healthy: true, reason: String::new() }
            }
            Err(reason) => {
                (self.successes, self.failures) = (0, self.failures.saturating_add(1));
                Health { healthy: false, reason }
            }
        };
        let enough = match health.healthy {
            true => self.successes >= self.success_threshold,
            false => self.failures >= self.failure_threshold,
        };
        let changes = self.current.as_ref().is_none_or(|current| current.healthy != health.healthy);
        if !(changes && (first || enough)) {
            return None;
        }
        self.current = Some(health.clone());
        Some(health)
    }

    pub fn has_succeeded(&self) -> bool {
        self.succeeded
    }
}
