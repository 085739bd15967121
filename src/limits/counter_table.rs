//! The bounded table of counters per caller and per tool of a caller. It is sharded by caller, so that one short lock
//! covers everything of one caller.

use super::PrincipalKey;
use super::rate::Tat;
use governor::nanos::Nanos;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

/// One tool of one caller; `tool` is a hash with a random key of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ToolKey {
    pub(super) who: PrincipalKey,
    pub(super) tool: u64,
}

/// The rate counter and the running calls of one caller or server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) tat: Tat,
    pub(super) in_flight: usize,
}

/// The table has no room for a new key.
pub(super) struct TableFull;

/// The table; `len` counts callers and tools together.
pub(super) struct CounterTable {
    shards: Vec<Mutex<Maps>>,
    len: AtomicUsize,
    max: usize,
}

#[derive(Default)]
struct Maps {
    principals: HashMap<PrincipalKey, Counters>,
    tools: HashMap<ToolKey, Tat>,
}

/// A locked shard, with everything of its callers.
pub(super) struct Shard<'a> {
    maps: MutexGuard<'a, Maps>,
    counter_table: &'a CounterTable,
}

const SHARDS: usize = 64;

impl CounterTable {
    pub(super) fn new(max: usize) -> Self {
        Self {
            shards: std::iter::repeat_with(Mutex::default).take(SHARDS).collect(),
            len: AtomicUsize::new(0),
            max,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub(super) fn shard(&self, who: PrincipalKey) -> Shard<'_> {
        let index = usize::from(who.0[0]) % SHARDS;
        Shard {
            maps: super::lock(&self.shards[index]),
            counter_table: self,
        }
    }

    /// Removes idle counters, one shard at a time, so that callers of the other shards go on.
    pub(super) fn sweep(&self, now: Nanos) {
        for shard in &self.shards {
            let mut maps = super::lock(shard);
            let before = maps.len();
            maps.principals
                .retain(|_, counters| counters.in_flight > 0 || !counters.tat.is_idle(now));
            maps.tools.retain(|_, tat| !tat.is_idle(now));
            self.len.fetch_sub(before - maps.len(), Ordering::Relaxed);
            shrink(&mut maps.principals);
            shrink(&mut maps.tools);
        }
    }

    /// Counts `wanted` new keys if there is room for them.
    fn reserve(&self, wanted: usize) -> Result<(), TableFull> {
        let more = |len: usize| len.checked_add(wanted).filter(|len| *len <= self.max);
        match self.len.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(()),
            Err(_) => Err(TableFull),
        }
    }
}

impl Shard<'_> {
    pub(super) fn principal(&self, who: PrincipalKey) -> Counters {
        self.maps.principals.get(&who).copied().unwrap_or_default()
    }

    pub(super) fn tool(&self, key: ToolKey) -> Tat {
        self.maps.tools.get(&key).copied().unwrap_or(Tat::NEW)
    }

    /// Stores both counters or none: room for new keys is reserved before anything is written.
    pub(super) fn put(&mut self, who: PrincipalKey, counters: Counters, tool: Option<(ToolKey, Tat)>) -> Result<(), TableFull> {
        let new_principal = !self.maps.principals.contains_key(&who);
        let new_tool = tool.is_some_and(|(key, _)| !self.maps.tools.contains_key(&key));
        let wanted = usize::from(new_principal) + usize::from(new_tool);
        if wanted > 0 {
            self.counter_table.reserve(wanted)?;
        }
        self.maps.principals.insert(who, counters);
        if let Some((key, tat)) = tool {
            self.maps.tools.insert(key, tat);
        }
        Ok(())
    }

    pub(super) fn refund(&mut self, who: PrincipalKey, interval: u64, tool: Option<(ToolKey, u64)>) {
        if let Some(counters) = self.maps.principals.get_mut(&who) {
            counters.tat = counters.tat.minus(interval);
        }
        if let Some((key, interval)) = tool
            && let Some(tat) = self.maps.tools.get_mut(&key)
        {
            *tat = tat.minus(interval);
        }
    }

    pub(super) fn release(&mut self, who: PrincipalKey) {
        if let Some(counters) = self.maps.principals.get_mut(&who) {
            counters.in_flight = counters.in_flight.saturating_sub(1);
        }
    }
}

impl Maps {
    fn len(&self) -> usize {
        self.principals.len() + self.tools.len()
    }
}

/// Shrinks the large empty table that a flood leaves behind; one of a few pages is not worth the copy.
fn shrink<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    if map.capacity() > 256 && map.capacity() / 4 > map.len() {
        map.shrink_to(map.len() * 2);
    }
}
