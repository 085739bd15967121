//! Recovery at the start: reads the whole folder, cuts off a torn tail, and finds the permits without an outcome.
//!
//! If an acknowledged record cannot be read back, it fails and has changed nothing.

use super::disk::Disk;
use super::error::JournalError;
use super::reader::{FolderReader, read_summary};
use super::scan::{ScanStep, Segment, SegmentCursor, in_file};
use super::spool::{SegmentIndex, cost};
use super::spooled::{self, SpooledIncarnation};
use super::watermark::Watermark;
use crate::domain::{DecisionKind, Digest, Incarnation, InstanceId, RequestId, SealedRecord};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What recovery found in the folder.
#[derive(Default)]
pub(super) struct RecoveredState {
    pub segment_index: SegmentIndex,
    /// The last record of the folder: incarnation, seq and head.
    pub last: Option<(Incarnation, u64, Digest)>,
    /// Bytes cut off as a torn tail.
    pub cut: u64,
    /// Permits without an outcome.
    pub open: BTreeSet<RequestId>,
    pub watermark: Option<Watermark>,
    /// Records that are not in the database yet, and their bytes.
    pub unshipped: (u64, u64),
    /// What lies there of each earlier start.
    pub spooled: Vec<SpooledIncarnation>,
}

/// Reads the folder, repairs its tail, and deletes temporary files.
pub(super) fn recover(disk: &Arc<dyn Disk>) -> Result<RecoveredState, JournalError> {
    let mut reader = FolderReader::new(disk.clone())?;
    let kept = skip_kept(&mut reader);
    let mut recovered_state = RecoveredState {
        watermark: reader.watermark,
        open: reader.segments[kept..]
            .iter()
            .flat_map(|segment| segment.header.open.iter().copied())
            .collect(),
        ..RecoveredState::default()
    };
    let known = |mark: &Watermark| {
        reader
            .segments
            .iter()
            .any(|segment| segment.header.incarnation == mark.incarnation)
    };
    let mark = recovered_state.watermark.filter(known);
    let mut reached = mark.is_none();
    let segments = reader.segments[kept..].to_vec();
    let head_before = |of| {
        let first = segments.iter().find(|segment| segment.header.incarnation == of);
        first.map_or(Digest::ZERO, |segment| segment.header.prev)
    };
    while let Some(record) = reader.next()? {
        let here = mark.filter(|mark| mark.incarnation == record.incarnation);
        reached |= here.is_some();
        let is_shipped = here.map_or(!reached, |mark| record.seq < mark.next);
        recovered_state.note_record(&record, is_shipped, head_before);
    }
    recovered_state.last = reader
        .ends
        .iter()
        .rev()
        .find(|(_, next, _)| *next > 0)
        .map(|(of, next, head)| (*of, next - 1, *head));
    recovered_state.segment_index.ends = ends_of_kept(&**disk, &reader.segments, kept)?;
    let ends = reader.ends.iter().map(|(incarnation, next, _)| (*incarnation, *next));
    recovered_state.segment_index.ends.extend(ends);
    recovered_state.segment_index.segments = reader.segments.clone();
    if let Some((cursor, segment)) = reader.tail() {
        let fault = in_file(&**disk, &segment.name);
        recovered_state.cut = cursor.trailing_bytes().map_err(&fault)?;
        cursor.cut().map_err(&fault)?;
    }
    for name in disk
        .list()
        .map_err(in_file(&**disk, ""))?
        .iter()
        .filter(|name| name.ends_with(".tmp"))
    {
        disk.remove(name).map_err(in_file(&**disk, name))?;
    }
    Ok(recovered_state)
}

/// Kept segments are read when they are compared with the trail, not at every start. Returns how many there are.
fn skip_kept(reader: &mut FolderReader) -> usize {
    let Some(mark) = reader.watermark else { return 0 };
    let index = SegmentIndex {
        segments: reader.segments.clone(),
        ..SegmentIndex::default()
    };
    let kept = index.first_needed(&mark);
    reader.skip_to(kept);
    kept
}

/// Where the incarnations of the kept segments end, as the START of the next one says.
fn ends_of_kept(disk: &dyn Disk, segments: &[Segment], kept: usize) -> Result<Vec<(Incarnation, u64)>, JournalError> {
    let mut ends = Vec::new();
    for pair in segments[..segments.len().min(kept + 1)].windows(2) {
        let (last, next) = (&pair[0].header, &pair[1]);
        if last.incarnation == next.header.incarnation {
            continue;
        }
        let mut cursor = SegmentCursor::open(disk, next).map_err(in_file(disk, &next.name))?;
        let after = match cursor.step().map_err(in_file(disk, &next.name))? {
            ScanStep::Record(record) => read_summary(&record).and_then(|start| start.after),
            ScanStep::End | ScanStep::Bad(_) => None,
        };
        let end = after.filter(|(incarnation, ..)| *incarnation == last.incarnation);
        ends.push((last.incarnation, end.map_or(last.first_seq, |(_, seq, _)| seq + 1)));
    }
    Ok(ends)
}

impl RecoveredState {
    /// The instance whose journal this is, as its newest START record says.
    pub fn instance_id(&self) -> Option<InstanceId> {
        self.spooled.iter().rev().find_map(|spooled| spooled.instance_id)
    }

    /// The number of the segment to be written next.
    pub fn next_segment(&self) -> u64 {
        let last = self.segment_index.segments.last();
        last.map_or(1, |segment| segment.header.number + 1)
    }

    /// Whether this is not the journal of the instance that the data folder names. That is named once its START record is on
    /// disk, and the newest segment is never deleted: a journal without records was.
    pub fn is_missing(&self, kept_id: Option<InstanceId>) -> bool {
        kept_id.is_some_and(|kept_id| self.last.is_none() || self.instance_id().is_some_and(|of| of != kept_id))
    }

    /// Counts the record if it is unshipped, and notes whether it opens or closes a permit.
    fn note_record(&mut self, record: &SealedRecord, is_shipped: bool, head_before: impl FnOnce(Incarnation) -> Digest) {
        if !is_shipped {
            self.unshipped.0 += 1;
            self.unshipped.1 += cost(record);
        }
        let summary = read_summary(record);
        spooled::note(&mut self.spooled, record, summary.as_ref(), is_shipped, head_before);
        let Some(glance) = summary else { return };
        let Some(request) = glance.request else { return };
        match (glance.decision, glance.kind) {
            (Some(DecisionKind::Allow), _) => _ = self.open.insert(request),
            (_, Some(_)) => _ = self.open.remove(&request),
            _ => {}
        }
    }
}
