//! One rate limit: governor's GCRA over a counter that the caller holds, so that several limits can be tried before any
//! counter changes.

use crate::config::Rate;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};
use std::cell::Cell;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::num::NonZeroU32;
use std::time::Duration;

/// A counter: the theoretical arrival time (TAT) of the next call, in nanoseconds since its limit was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tat(u64);

impl Tat {
    /// A counter never used.
    pub(super) const NEW: Tat = Tat(0);

    /// Whether it equals a new counter: its arrival time has passed.
    pub(super) fn is_idle(self, now: Nanos) -> bool {
        self.0 <= now.as_u64()
    }

    pub(super) fn minus(self, interval: u64) -> Self {
        Self(self.0.saturating_sub(interval))
    }
}

/// A configured rate, as a GCRA limiter.
pub(super) struct Limit<C: Clock> {
    limiter: RateLimiter<TatKey, TatStore, C, NoOpMiddleware<C::Instant>>,
    clock: C,
    interval: u64,
    description: String,
}

impl<C: Clock> Limit<C> {
    /// Takes one call from the counter: its next state, or how long to wait.
    pub(super) fn take(&self, tat: Tat) -> Result<Tat, Duration> {
        let key = TatKey(Cell::new(tat.0));
        match self.limiter.check_key(&key) {
            Ok(()) => Ok(Tat(key.0.get())),
            Err(not) => Err(not.wait_time_from(self.clock.now())),
        }
    }

    /// How much one call takes from a counter, in nanoseconds.
    pub(super) fn interval(&self) -> u64 {
        self.interval
    }
}

impl<C: Clock + Clone> Limit<C> {
    /// `whose` names the limit's subject in messages.
    pub(super) fn new(rate: Rate, whose: &str, clock: &C) -> Result<Self, &'static str> {
        let count = NonZeroU32::new(rate.rate).ok_or("`rate` must be at least 1")?;
        let burst = NonZeroU32::new(rate.burst.unwrap_or(rate.rate)).ok_or("`burst` must be at least 1")?;
        let interval = rate.per.0 / count.get();
        let quota = Quota::with_period(interval).ok_or("`per` is too short for so many calls")?;
        // governor multiplies the two without checking for overflow.
        if interval.as_nanos() * u128::from(burst.get()) > LONGEST.as_nanos() {
            return Err("`per` is too long");
        }
        Ok(Self {
            limiter: RateLimiter::new(quota.allow_burst(burst), TatStore, clock.clone()),
            clock: clock.clone(),
            interval: interval.as_nanos() as u64,
            description: format!(
                "at most {count} {} in {:?}, {burst} at once, for {whose}",
                if count.get() == 1 { "call" } else { "calls" },
                rate.per.0
            ),
        })
    }
}

impl<C: Clock> fmt::Display for Limit<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}

/// Longest time in which a used-up burst refills.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 86_400);

/// governor's state key, used to hold the counter itself: a copy that is kept or thrown away.
#[derive(Clone, PartialEq, Eq)]
struct TatKey(Cell<u64>);

impl Hash for TatKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.get().hash(state);
    }
}

struct TatStore;

impl StateStore for TatStore {
    type Key = TatKey;

    fn measure_and_replace<T, F, E>(&self, key: &TatKey, judge: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let before = key.0.get();
        let (answer, next) = judge((before != 0).then(|| Nanos::new(before)))?;
        key.0.set(next.as_u64());
        Ok(answer)
    }
}
