//! Pure: how many connections to one destination are worth keeping warm, and when one may be made.
//!
//! The rule of docs/tombolo-1.md ("Which tunnel"): a flow never waits where something is ready, and
//! handshakes are made at a bounded rate, because one costs as much as many streams of HBONE.

use std::time::{Duration, Instant};

use crate::config::FlowConfig;

/// What was asked of one destination lately.
#[derive(Debug)]
pub(crate) struct Demand {
    last: Instant,
    /// The second that is being counted, and the flows in it.
    second: Instant,
    flows: f64,
    /// The most in one second, fading.
    peak: f64,
    /// Handshakes that may be made at once.
    budget: f64,
    budget_at: Instant,
}

impl Demand {
    pub(crate) fn new(config: &FlowConfig, now: Instant) -> Self {
        Self { last: now, second: now, flows: 0.0, peak: 0.0, budget: config.handshake_burst, budget_at: now }
    }

    /// A flow begins.
    pub(crate) fn count(&mut self, now: Instant) {
        self.turn(now);
        self.flows += 1.0;
        self.last = now;
    }

    /// How many connections are to be warm.
    pub(crate) fn wanted(&mut self, config: &FlowConfig, now: Instant) -> usize {
        if self.unused_for(now) > config.unused_timeout {
            return 0;
        }
        self.turn(now);
        let peak = self.peak.max(self.flows);
        (1..config.max_warm).find(|n| *n as f64 >= peak).unwrap_or(config.max_warm)
    }

    /// Whether a handshake may be made; it then is.
    pub(crate) fn spend(&mut self, config: &FlowConfig, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.budget_at).as_secs_f64() * config.handshakes_per_second;
        self.budget = (self.budget + earned).min(config.handshake_burst);
        self.budget_at = now;
        let enough = self.budget >= 1.0;
        if enough {
            self.budget -= 1.0;
        }
        enough
    }

    pub(crate) fn unused_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last)
    }

    /// Closes the seconds that have passed.
    fn turn(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.second).as_secs();
        if passed > 0 {
            let fading = i32::try_from(passed - 1).unwrap_or(i32::MAX);
            self.peak = self.flows.max(self.peak * FADE) * FADE.powi(fading);
            self.flows = 0.0;
            self.second += Duration::from_secs(passed);
        }
    }
}

/// What is left of a peak after a second: half in five seconds.
const FADE: f64 = 0.87;

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: FlowConfig = FlowConfig {
        max_warm: 8,
        handshake_burst: 4.0,
        handshakes_per_second: 2.0,
        unused_timeout: Duration::from_secs(60),
        server_unused_timeout: Duration::from_secs(120),
        hbone_memory: Duration::from_secs(60),
    };

    #[test]
    fn as_many_are_warm_as_began_in_the_busiest_second_of_late() {
        let start = Instant::now();
        let mut demand = Demand::new(&CONFIG, start);
        let at = |ms| start + Duration::from_millis(ms);
        let mut check = |flows: usize, ms: u64, expect: usize| {
            (0..flows).for_each(|_| demand.count(at(ms)));
            assert_eq!(demand.wanted(&CONFIG, at(ms)), expect, "after {flows} flows at {ms} ms");
        };
        check(1, 0, 1);
        check(3, 500, 4);
        check(0, 1_100, 4);
        check(1, 6_100, 2);
        check(30, 7_200, 8);
        check(0, 40_000, 1);
        check(0, 67_000, 1);
        check(0, 67_300, 0);
        check(1, 70_000, 1);
    }

    #[test]
    fn handshakes_come_in_a_burst_and_then_at_their_rate() {
        let start = Instant::now();
        let mut demand = Demand::new(&CONFIG, start);
        let mut check = |ms: u64, expect: usize| {
            let made = (0..100).filter(|_| demand.spend(&CONFIG, start + Duration::from_millis(ms))).count();
            assert_eq!(made, expect, "at {ms} ms");
        };
        check(0, 4);
        check(400, 0);
        check(500, 1);
        check(2_500, 4);
        check(60_000, 4);
    }
}
