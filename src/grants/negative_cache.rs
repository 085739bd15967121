//! Who was looked for in vain lately, so that asking for nobody again and again costs the store nothing.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

const MOST: usize = 4_096;

#[derive(Debug)]
pub(super) struct NegativeCache {
    /// How long one second look is enough.
    ttl: Duration,
    hasher: RandomState,
    /// By a hash under this process's own key; two that share one also share their second look.
    lately: Mutex<HashMap<u64, Instant>>,
}

impl NegativeCache {
    pub(super) fn with_ttl(ttl: Duration) -> Self {
        Self {
            ttl,
            hasher: RandomState::new(),
            lately: Mutex::default(),
        }
    }

    /// Which instant a second look must be younger than: now, or that of the last miss if it is remembered. `None`: too many
    /// are being looked for, and this one is not there.
    pub(super) fn since(&self, who: &impl Hash, now: Instant) -> Option<Instant> {
        let key = self.hasher.hash_one(who);
        let recent = |missed: &Instant| now.saturating_duration_since(*missed) < self.ttl;
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(missed) = lately.get(&key).filter(|missed| recent(missed)) {
            return Some(*missed);
        }
        if lately.len() >= MOST {
            lately.retain(|_, missed| recent(missed));
        }
        if lately.len() >= MOST {
            return None;
        }
        lately.insert(key, now);
        Some(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMEMBERED: Duration = Duration::from_secs(1);

    #[test]
    fn one_second_look_a_second_for_each() {
        let misses = NegativeCache::with_ttl(REMEMBERED);
        let start = Instant::now();
        let half = start + REMEMBERED / 2;
        assert_eq!(misses.since(&"ann", start), Some(start));
        assert_eq!(misses.since(&"ann", half), Some(start));
        assert_eq!(misses.since(&"bob", half), Some(half));
        assert_eq!(misses.since(&"ann", start + REMEMBERED), Some(start + REMEMBERED));
    }

    #[test]
    fn a_flood_of_unknowns_is_bounded_and_passes() {
        let misses = NegativeCache::with_ttl(REMEMBERED);
        let start = Instant::now();
        let looked = (0..10_000).filter(|n| misses.since(n, start).is_some()).count();
        assert_eq!(looked, MOST);
        let later = start + REMEMBERED;
        assert_eq!(misses.since(&"ann", later), Some(later));
        assert_eq!(misses.lately.lock().unwrap().len(), 1);
    }
}
