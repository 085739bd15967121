//! Reads the whole folder in order and judges what it finds: records, a torn tail, or damage. Changes nothing on disk.
//!
//! Only the last segment may have a torn tail, and only after the last record known to be durable: the one that a batch
//! header, a later segment's header, the START of the next incarnation or the watermark names. Records up to there were
//! acknowledged; if one of them cannot be read back, that is damage.

use super::disk::{Disk, DiskFolder};
use super::error::{Damage, JournalError};
use super::scan::{ScanStep, Segment, SegmentCursor, damaged, in_file, segments};
use super::watermark::{self, Watermark};
use crate::domain::{DecisionKind, Digest, Incarnation, InstanceId, MissingRecords, RequestId, SealedRecord, Timestamp};
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;

/// Reads the records of a journal folder in order; another process may be writing it. Nothing follows an error.
pub fn read_dir(dir: &Path) -> Result<impl Iterator<Item = Result<SealedRecord, JournalError>>, JournalError> {
    let folder = DiskFolder::look(dir).map_err(|source| JournalError::Folder {
        dir: dir.to_owned(),
        source,
    })?;
    let mut reader = Some(FolderReader::new(Arc::new(folder))?);
    Ok(std::iter::from_fn(move || {
        let next = reader.as_mut()?.next().transpose();
        if !matches!(next, Some(Ok(_))) {
            reader = None;
        }
        next
    }))
}

/// Reads all segments of a folder in order.
pub(super) struct FolderReader {
    disk: Arc<dyn Disk>,
    pub segments: Vec<Segment>,
    pub watermark: Option<Watermark>,
    index: usize,
    /// Open in the segment of `index`.
    cursor: Option<SegmentCursor>,
    /// The incarnations read so far: the seq after the last record, and the head there.
    pub ends: Vec<(Incarnation, u64, Digest)>,
}

impl FolderReader {
    pub fn new(disk: Arc<dyn Disk>) -> Result<Self, JournalError> {
        // A writer may be running, so the watermark is read twice. The older one, from before the folder is listed, says
        // which records must be there; the newer one says which segments may be missing.
        let load = || Watermark::load(&*disk).map_err(in_file(&*disk, watermark::NAME));
        let watermark = load()?;
        let segments = segments(&*disk)?;
        check_beginning(&*disk, &segments, load()?)?;
        Ok(Self {
            disk,
            segments,
            watermark,
            index: 0,
            cursor: None,
            ends: Vec::new(),
        })
    }

    /// Begins with this segment, as if there were none before it.
    pub fn skip_to(&mut self, index: usize) {
        self.index = index;
    }

    /// The next record; `None` at the end of the last segment.
    pub fn next(&mut self) -> Result<Option<SealedRecord>, JournalError> {
        while let Some(segment) = self.segments.get(self.index) {
            let mut cursor = match self.cursor.take() {
                Some(cursor) => cursor,
                None => self.open_segment(segment)?,
            };
            let limit = self.limit();
            // If the next segment supersedes this one, the records from `limit` on are void and not read.
            let full = limit == Some(cursor.chain.next);
            let step = if full && self.segments[self.index + 1].header.supersedes.is_some() {
                ScanStep::End
            } else {
                cursor.step().map_err(in_file(&*self.disk, &segment.name))?
            };
            if full && matches!(step, ScanStep::Record(_)) {
                return Err(damaged(
                    &*self.disk,
                    segment,
                    "it holds records that the next segment holds too",
                ));
            }
            if let ScanStep::Record(record) = step {
                if record.seq == 0 {
                    self.check_start(segment, &record)?;
                }
                self.cursor = Some(cursor);
                return Ok(Some(record));
            }
            self.check_end(&mut cursor, step, limit)?;
            self.close_segment(&cursor);
            if self.index + 1 == self.segments.len() {
                self.cursor = Some(cursor);
                return Ok(None);
            }
            self.index += 1;
        }
        Ok(None)
    }

    /// The cursor at the end of the last segment, once everything was read.
    pub fn tail(self) -> Option<(SegmentCursor, Segment)> {
        let last = self.segments.into_iter().next_back()?;
        Some((self.cursor?, last))
    }

    /// Opens a segment, which must continue the chain of the one before it.
    fn open_segment(&self, segment: &Segment) -> Result<SegmentCursor, JournalError> {
        let cursor = SegmentCursor::open(&*self.disk, segment).map_err(in_file(&*self.disk, &segment.name))?;
        let continues = match self.ends.last() {
            Some((incarnation, next, head)) if *incarnation == cursor.chain.incarnation => {
                cursor.chain.next == *next && cursor.chain.head == *head
            }
            _ => cursor.chain.next > 0 || cursor.chain.head == Digest::ZERO,
        };
        if continues {
            Ok(cursor)
        } else {
            Err(damaged(
                &*self.disk,
                segment,
                "the segment does not continue the one before it",
            ))
        }
    }

    /// The seq from which the next segment of the same incarnation takes over.
    fn limit(&self) -> Option<u64> {
        let here = self.segments[self.index].header.incarnation;
        let next = self.segments.get(self.index + 1)?;
        (next.header.incarnation == here).then_some(next.header.first_seq)
    }

    /// Fails if a record that was acknowledged is missing at the end of this segment.
    fn check_end(&self, cursor: &mut SegmentCursor, step: ScanStep, limit: Option<u64>) -> Result<(), JournalError> {
        let segment = &self.segments[self.index];
        let end = cursor.chain.next;
        let corruption = match step {
            ScanStep::Bad(corruption) => corruption,
            _ => "records that were acknowledged are missing",
        };
        if limit == Some(end) {
            return Ok(());
        }
        let last = self.index + 1 == self.segments.len();
        let floor = match (limit, step, last) {
            (Some(limit), ..) => limit,
            (None, ScanStep::Bad(_), false) => u64::MAX,
            _ => {
                let witness = cursor.max_durable_seq().map_err(in_file(&*self.disk, &segment.name))?;
                let shipped = self.watermark.filter(|mark| mark.incarnation == segment.header.incarnation);
                witness.max(shipped.map_or(0, |mark| mark.next))
            }
        };
        if end >= floor {
            Ok(())
        } else {
            Err(JournalError::Damaged(Damage {
                file: self.disk.path(&segment.name),
                offset: cursor.offset,
                seq: end,
                what: corruption.to_owned(),
            }))
        }
    }

    /// Notes where the incarnation ends so far.
    fn close_segment(&mut self, cursor: &SegmentCursor) {
        let end = (cursor.chain.incarnation, cursor.chain.next, cursor.chain.head);
        match self.ends.last_mut().filter(|(incarnation, ..)| *incarnation == end.0) {
            Some(same) => *same = end,
            None => self.ends.push(end),
        }
    }

    /// Checks that a START names the last record of the last incarnation that has records.
    fn check_start(&self, segment: &Segment, record: &SealedRecord) -> Result<(), JournalError> {
        let after = read_summary(record).and_then(|glance| glance.after);
        let before = self
            .ends
            .iter()
            .rev()
            .find(|(incarnation, next, _)| *next > 0 && *incarnation != record.incarnation);
        let holds = match (before, after) {
            (Some((incarnation, next, head)), Some(after)) => after == (*incarnation, *next - 1, *head),
            (Some(_), None) => false,
            (None, None) => true,
            (None, Some((incarnation, seq, _))) => self.watermark.is_some_and(|mark| {
                if mark.incarnation == incarnation {
                    mark.next > seq
                } else {
                    self.segments
                        .iter()
                        .any(|segment| segment.header.incarnation == mark.incarnation)
                }
            }),
        };
        if holds {
            Ok(())
        } else {
            Err(damaged(
                &*self.disk,
                segment,
                "the journal before this start does not end where the start says it did",
            ))
        }
    }
}

/// Segments are deleted from the lowest on, and only once shipped: those missing in front must lie below the watermark.
fn check_beginning(disk: &dyn Disk, segments: &[Segment], shipped: Option<Watermark>) -> Result<(), JournalError> {
    let Some(first) = segments.first() else {
        return match shipped {
            None => Ok(()),
            Some(mark) => Err(JournalError::Damaged(Damage {
                file: disk.path(watermark::NAME),
                offset: 0,
                seq: mark.next,
                what: "all segments are gone, the newest too".to_owned(),
            })),
        };
    };
    let bound = match shipped {
        Some(mark) if mark.incarnation == first.header.incarnation => mark.next,
        Some(mark) if segments.iter().any(|segment| segment.header.incarnation == mark.incarnation) => u64::MAX,
        _ => 0,
    };
    if first.header.first_seq <= bound {
        Ok(())
    } else {
        Err(damaged(
            disk,
            first,
            "the segments before this one are gone, and were not shipped",
        ))
    }
}

/// The fields of a record that recovery, `check_start` and the comparison with the trail need.
#[derive(Debug, Deserialize)]
pub(super) struct RecordSummary {
    pub request: Option<RequestId>,
    pub decision: Option<DecisionKind>,
    #[serde(rename = "ending")]
    pub kind: Option<serde::de::IgnoredAny>,
    pub after: Option<(Incarnation, u64, Digest)>,
    pub after_at: Option<Timestamp>,
    pub at: Option<Timestamp>,
    pub instance_id: Option<InstanceId>,
    pub missing: Option<Vec<MissingRecords>>,
    #[serde(default)]
    pub journal_missing: bool,
}

pub(super) fn read_summary(record: &SealedRecord) -> Option<RecordSummary> {
    #[derive(Deserialize)]
    struct RecordEnvelope {
        event: RecordSummary,
    }
    serde_json::from_slice::<RecordEnvelope>(&record.bytes)
        .ok()
        .map(|envelope| envelope.event)
}
