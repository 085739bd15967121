//! Which rows of the store are disabled because they cannot be read. The log tells when that changes, and only then.

use crate::store::{Delta, UnreadableRow};
use std::collections::{BTreeMap, BTreeSet};

/// How many rows are disabled now, by table; all tables are there.
pub type UnreadableRows = BTreeMap<&'static str, u64>;

/// An unreadable row takes no more room than it would have.
#[derive(Debug)]
pub(super) struct Unreadable {
    /// By user, so that what is read again of one user is found at once.
    rows: BTreeMap<Option<String>, Vec<UnreadableRow>>,
    counts: UnreadableRows,
}

/// More rows than this that become unreadable at once are counted in the log and not named.
const NAMED: usize = 20;

impl Default for Unreadable {
    fn default() -> Self {
        Self {
            rows: BTreeMap::new(),
            counts: UnreadableRow::TABLES.into_iter().map(|table| (table, 0)).collect(),
        }
    }
}

impl Unreadable {
    /// All rows were read.
    pub(super) fn replace(&mut self, rows: Vec<UnreadableRow>) {
        let before = std::mem::take(&mut self.rows).into_values().flatten().collect();
        self.add(before, rows);
    }

    /// The rows that `delta` is about were read again.
    pub(super) fn apply(&mut self, delta: &mut Delta) {
        let mut before = Vec::new();
        for (user, _) in &delta.members {
            before.extend(self.rows.remove(&Some(user.to_string())).unwrap_or_default());
        }
        let read_again = |row: &mut UnreadableRow| match row.table {
            UnreadableRow::REVOCATIONS => delta.revocations.is_some(),
            UnreadableRow::REGISTRY => delta.registry.is_some(),
            _ => false,
        };
        if let Some(of_nobody) = self.rows.get_mut(&None) {
            before.extend(of_nobody.extract_if(.., read_again));
        }
        self.add(before, std::mem::take(&mut delta.unreadable));
    }

    pub(super) fn counts(&self) -> UnreadableRows {
        self.counts.clone()
    }

    fn add(&mut self, before: Vec<UnreadableRow>, rows: Vec<UnreadableRow>) {
        for row in &before {
            *self.counts.entry(row.table).or_default() -= 1;
        }
        tell(before, &rows);
        for row in rows {
            *self.counts.entry(row.table).or_default() += 1;
            self.rows.entry(row.user.clone()).or_default().push(row);
        }
    }
}

fn tell(before: Vec<UnreadableRow>, now: &[UnreadableRow]) {
    let before: BTreeSet<UnreadableRow> = before.into_iter().collect();
    let now: BTreeSet<&UnreadableRow> = now.iter().collect();
    let new: Vec<_> = now.iter().filter(|row| !before.contains(**row)).collect();
    for row in new.iter().take(NAMED) {
        tracing::warn!("{row}");
    }
    if new.len() > NAMED {
        tracing::warn!(
            rows = new.len() - NAMED,
            "further rows cannot be read: `guardian check` names them"
        );
    }
    let gone = before.iter().filter(|row| !now.contains(row)).count();
    if gone > 0 {
        tracing::info!(rows = gone, "rows that could not be read were put right or are gone");
    }
}
