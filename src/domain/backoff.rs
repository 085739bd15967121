//! How long to wait after failures in a row: twice as long each time, up to a bound. Counts and computes; whoever uses it
//! sleeps. Without jitter, since each of these waits for a server, disk or database of its own.

use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            failures: 0,
        }
    }

    /// Counts a failure: how long to wait before the next attempt.
    pub fn failed(&mut self) -> Duration {
        let delay = self.first.saturating_mul(1 << self.failures.min(31)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        delay
    }

    /// After a success the next failure is the first one again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_doubles_the_delay_up_to_a_bound_until_a_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
        let delays: Vec<_> = (0..40).map(|_| backoff.failed().as_millis()).collect();
        assert_eq!(
            delays[..10],
            [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000]
        );
        assert!(delays[10..].iter().all(|delay| *delay == 30_000));
        assert_eq!(backoff.failures(), 40);
        backoff.reset();
        assert_eq!((backoff.failures(), backoff.failed().as_millis()), (0, 100));
    }

    #[test]
    fn a_bound_below_the_first_delay_and_one_without_end_hold_too() {
        let mut short = Backoff::new(Duration::from_secs(1), Duration::from_millis(300));
        assert_eq!(short.failed(), Duration::from_millis(300));
        let mut endless = Backoff::new(Duration::MAX / 2, Duration::MAX);
        let delays: Vec<_> = (0..100).map(|_| endless.failed()).collect();
        assert!(delays.is_sorted());
        assert_eq!(delays[99], Duration::MAX);
    }
}
