//! What comparing the journal with the audit trail has found since the start: rows that are not ours, and records that the
//! database had lost. For health, metrics and the seal; the records themselves are made where it is found.

use super::queue::locked;
use super::rewind::RewindFrom;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Records that were lost and are there again are told of this long; a loss that cannot be made good, until the restart.
const TOLD_FOR: Duration = Duration::from_secs(3_600);

#[derive(Default)]
pub struct TrailFindings {
    conflicts: AtomicU64,
    shipped_again: AtomicU64,
    conflict: Mutex<Option<String>>,
    loss: Mutex<Option<(String, Option<Instant>)>>,
    wanted: Mutex<Option<RewindFrom>>,
}

impl TrailFindings {
    /// Records under whose number the trail holds another row.
    pub fn conflicts(&self) -> u64 {
        self.conflicts.load(Ordering::Acquire)
    }

    /// Records that the trail had lost, shipped once more.
    pub fn shipped_again(&self) -> u64 {
        self.shipped_again.load(Ordering::Relaxed)
    }

    /// What an operator must look at, as sentences.
    pub fn sentences(&self) -> Vec<String> {
        let conflict = locked(&self.conflict).clone();
        let mut loss = locked(&self.loss);
        if loss
            .as_ref()
            .is_some_and(|(_, until)| until.is_some_and(|until| until < Instant::now()))
        {
            *loss = None;
        }
        conflict
            .into_iter()
            .chain(loss.as_ref().map(|(what, _)| what.clone()))
            .collect()
    }

    /// So many more records share their number with other rows; `first` names one of them.
    pub(super) fn add_conflicts(&self, more: u64, first: &str) {
        let count = self.conflicts.fetch_add(more, Ordering::AcqRel) + more;
        let sentence = |first: &str| {
            format!(
                "the audit trail holds rows that this instance did not write, under the numbers of {count} of its records ({first}): \
                 somebody else writes with the proxy's login, or to the database file; `guardian audit query --kind conflict` \
                 shows them"
            )
        };
        let mut conflict = locked(&self.conflict);
        *conflict = match conflict.as_deref().and_then(first_of) {
            Some(before) => Some(sentence(before)),
            None => Some(sentence(first)),
        };
    }

    pub(super) fn add_shipped_again(&self, more: u64) {
        self.shipped_again.fetch_add(more, Ordering::Relaxed);
    }

    /// The database lost records that it had taken; `for_good`: some of them cannot be shipped again.
    pub(super) fn tell_loss(&self, what: String, for_good: bool) {
        let until = (!for_good).then(|| Instant::now() + TOLD_FOR);
        *locked(&self.loss) = Some((what, until));
    }

    /// Asks the shipper to compare the kept records from here on. Two wishes become one from the oldest record.
    pub(super) fn ask_for(&self, from: RewindFrom) {
        let mut wanted = locked(&self.wanted);
        *wanted = Some(match &*wanted {
            None => from,
            Some(_) => RewindFrom(None),
        });
    }

    pub(super) fn take_asked_for(&self) -> Option<RewindFrom> {
        locked(&self.wanted).take()
    }

    pub(super) fn is_asked_for(&self) -> bool {
        locked(&self.wanted).is_some()
    }
}

/// The first conflict that a sentence names.
fn first_of(sentence: &str) -> Option<&str> {
    let (_, rest) = sentence.split_once("(")?;
    Some(rest.split_once(")")?.0)
}
