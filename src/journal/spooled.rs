//! What the folder holds of each earlier start, for the comparison with the audit trail. It asks no database and judges
//! nothing.

use super::reader::RecordSummary;
use super::spool::cost;
use crate::domain::{Digest, Incarnation, InstanceId, MissingRecords, SealedRecord, Timestamp};

const MICROS_OF_DAY: i64 = 86_400_000_000;

/// The records of one earlier start, as far as they lie in the folder.
#[derive(Debug, Clone)]
pub struct SpooledIncarnation {
    pub incarnation: Incarnation,
    /// The first record, and the head of the chain before it.
    pub first: u64,
    pub head_before: Digest,
    /// The seq after the last record.
    pub next: u64,
    /// The watermark says that the trail has the records below this one.
    pub shipped: u64,
    /// The leaf of the last of these, if it lies in the folder.
    pub last_shipped: Option<Digest>,
    /// The time of the last record.
    pub last_at: Option<Timestamp>,
    /// Of the START record, if it lies in the folder.
    pub instance_id: Option<InstanceId>,
    pub after: Option<(Incarnation, u64, Digest)>,
    pub after_at: Option<Timestamp>,
    /// What gap records say is missing, and the operator has accepted.
    pub gaps: Vec<MissingRecords>,
    /// The seq of the last gap record.
    pub gap_at: Option<u64>,
    /// Of the START record: the instance had another journal, which was not there.
    pub journal_missing: bool,
    /// The days of the records since 1970, each with the first record of it.
    days: Vec<(i64, u64)>,
    /// Records that are marked as shipped, and their bytes.
    pub(super) marked: (u64, u64),
}

impl SpooledIncarnation {
    /// The first record that retention cannot have dropped, which drops what is older than `kept_since`.
    pub fn first_kept(&self, kept_since: Timestamp) -> u64 {
        let ends = self.days.iter().skip(1).map(|(_, first)| *first).chain([self.next]);
        let old = self
            .days
            .iter()
            .zip(ends)
            .filter(|((day, _), _)| day.saturating_mul(MICROS_OF_DAY) < kept_since.micros());
        old.map(|(_, end)| end).last().unwrap_or(self.first)
    }

    fn new(record: &SealedRecord, head_before: Digest) -> Self {
        Self {
            incarnation: record.incarnation,
            first: record.seq,
            head_before,
            next: record.seq,
            shipped: record.seq,
            last_shipped: None,
            last_at: None,
            instance_id: None,
            after: None,
            after_at: None,
            gaps: Vec::new(),
            gap_at: None,
            journal_missing: false,
            days: Vec::new(),
            marked: (0, 0),
        }
    }
}

/// Notes one record after the other. `head_before` is asked for the first of each incarnation.
pub(super) fn note(
    all: &mut Vec<SpooledIncarnation>,
    record: &SealedRecord,
    summary: Option<&RecordSummary>,
    is_shipped: bool,
    head_before: impl FnOnce(Incarnation) -> Digest,
) {
    if all.last().is_none_or(|last| last.incarnation != record.incarnation) {
        all.push(SpooledIncarnation::new(record, head_before(record.incarnation)));
    }
    let Some(of) = all.last_mut() else { return };
    of.next = record.seq + 1;
    if is_shipped {
        of.shipped = of.next;
        of.last_shipped = Some(record.leaf);
        of.marked = (of.marked.0 + 1, of.marked.1 + cost(record));
    }
    let Some(summary) = summary else { return };
    if let Some(at) = summary.at {
        of.last_at = Some(at);
        let day = at.micros().div_euclid(MICROS_OF_DAY);
        if of.days.last().is_none_or(|(last, _)| *last != day) {
            of.days.push((day, record.seq));
        }
    }
    of.instance_id = of.instance_id.or(summary.instance_id.filter(|_| record.seq == 0));
    of.after = of.after.or(summary.after);
    of.after_at = of.after_at.or(summary.after_at);
    of.journal_missing |= summary.journal_missing;
    of.gap_at = summary.missing.as_ref().map(|_| record.seq).or(of.gap_at);
    of.gaps.extend(summary.missing.iter().flatten());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_days_that_retention_may_have_dropped_are_not_asked_for() {
        let day = |day: i64| Timestamp::from_micros(day * MICROS_OF_DAY);
        let record = SealedRecord {
            incarnation: Incarnation([1; 16]),
            seq: 10,
            bytes: bytes::Bytes::new(),
            leaf: Digest::ZERO,
            head: Digest::ZERO,
        };
        let mut spooled = SpooledIncarnation::new(&record, Digest::ZERO);
        (spooled.days, spooled.next) = (vec![(100, 10), (101, 20), (99, 30), (103, 40)], 50);
        assert_eq!(spooled.first_kept(day(90)), 10);
        assert_eq!(spooled.first_kept(day(99)), 10);
        assert_eq!(spooled.first_kept(day(100)), 40, "a clock that went back");
        assert_eq!(spooled.first_kept(day(103)), 40);
        assert_eq!(spooled.first_kept(day(104)), 50);
    }
}
