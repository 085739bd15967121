//! The index of segments over all incarnations in the folder, and the reader that gives the shipper its records in order.
//!
//! Segments whose records are all in the database are kept for a while, should the database lose them. They are always the first
//! of the folder, and the first to go where room is needed.

use super::disk::Disk;
use super::error::{Damage, JournalError};
use super::format::FRAME;
use super::queue::locked;
use super::scan::{ScanStep, Segment, SegmentCursor, damaged, in_file, segment_name};
use super::watermark::Watermark;
use crate::domain::{Incarnation, SealedRecord};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What lies in the folder, and how much of it is durable and unshipped.
pub(super) struct Spool {
    disk: Arc<dyn Disk>,
    index: Mutex<SegmentIndex>,
    keep: KeepShipped,
    /// While kept records are compared with the trail, they are not deleted because of their age.
    pub comparing: AtomicBool,
    /// What an earlier start left was not compared with the trail yet: it is not deleted for its age or size.
    pub held: AtomicBool,
    /// Bytes of the kept segments.
    pub kept: AtomicU64,
    /// The last deletion failed, and was logged.
    cannot_delete: AtomicBool,
    /// Records of the running incarnation with a seq below this are durable.
    pub durable: AtomicU64,
    /// Durable records that are not in the database yet, and their bytes.
    pub records: AtomicU64,
    pub bytes: AtomicU64,
}

/// How long segments are kept once the database has their records, and how many bytes this folder may take in all.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeepShipped {
    pub time: Duration,
    pub max_bytes: u64,
}

/// The segments by number, with the ends of past incarnations.
#[derive(Default)]
pub(super) struct SegmentIndex {
    pub segments: Vec<Segment>,
    /// Of the first segments, those that are kept: since when, and their bytes.
    pub kept: VecDeque<(Instant, u64)>,
    /// Where each past incarnation ends: the seq after its last record.
    pub ends: Vec<(Incarnation, u64)>,
}

impl Spool {
    pub fn new(disk: Arc<dyn Disk>, index: SegmentIndex, (records, bytes): (u64, u64), keep: KeepShipped) -> Self {
        let index_is_empty = index.segments.is_empty();
        Self {
            disk,
            index: Mutex::new(index),
            keep,
            comparing: AtomicBool::new(false),
            held: AtomicBool::new(!index_is_empty),
            kept: AtomicU64::new(0),
            cannot_delete: AtomicBool::new(false),
            durable: AtomicU64::new(0),
            records: AtomicU64::new(records),
            bytes: AtomicU64::new(bytes),
        }
    }

    pub fn add(&self, segment: Segment) {
        locked(&self.index).segments.push(segment);
    }

    /// Notes which segments have all their records below the watermark, and deletes those that need not be kept longer. Never
    /// the newest one.
    pub fn release(&self, mark: &Watermark) {
        let now = Instant::now();
        let mut index = locked(&self.index);
        for number in index.kept.len()..index.first_needed(mark) {
            let size = |file: Box<dyn super::disk::DiskFile>| file.size();
            let bytes = self.disk.open(&index.segments[number].name).and_then(size).unwrap_or(0);
            index.kept.push_back((now, bytes));
            self.kept.fetch_add(bytes, Ordering::Relaxed);
        }
        drop(index);
        self.trim();
    }

    /// The database does not have what follows the watermark after all: these segments are kept no more, but needed.
    pub fn need_again(&self, mark: &Watermark) {
        let mut index = locked(&self.index);
        let needed = index.first_needed(mark);
        while index.kept.len() > needed {
            let (_, bytes) = index.kept.pop_back().unwrap_or((Instant::now(), 0));
            self.kept.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Deletes kept segments that are old enough, or take room that unshipped records may need.
    pub fn trim(&self) {
        while self.oldest_must_go() {
            match self.delete_oldest_kept() {
                Ok(true) => self.cannot_delete.store(false, Ordering::Relaxed),
                Ok(false) => return,
                Err(error) => {
                    if !self.cannot_delete.swap(true, Ordering::Relaxed) {
                        tracing::warn!(%error, "a segment of shipped records cannot be deleted; it stays until it can");
                    }
                    return;
                }
            }
        }
    }

    fn oldest_must_go(&self) -> bool {
        let oldest = locked(&self.index).kept.front().map(|(since, _)| *since);
        let kept = self.kept.load(Ordering::Relaxed);
        let KeepShipped { time, max_bytes } = self.keep;
        let comparing = self.comparing.load(Ordering::Relaxed);
        let too_much = kept > max_bytes / 2 || kept.saturating_add(self.bytes.load(Ordering::Relaxed)) > max_bytes;
        let held = self.held.load(Ordering::Relaxed);
        !held && oldest.is_some_and(|since| too_much || !comparing && since.elapsed() >= time)
    }

    /// Deletes the oldest segment that is only kept; false if there is none. It is forgotten once it is gone, so that a deletion
    /// that fails is tried again.
    pub fn delete_oldest_kept(&self) -> io::Result<bool> {
        let name = {
            let index = locked(&self.index);
            match (index.kept.front(), index.segments.first()) {
                (Some(_), Some(segment)) => segment.name.clone(),
                _ => return Ok(false),
            }
        };
        match self.disk.remove(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut index = locked(&self.index);
        // The writer and the shipper may both have been at it.
        if index.segments.first().is_some_and(|segment| segment.name == name) {
            index.segments.remove(0);
            let (_, bytes) = index.kept.pop_front().unwrap_or((Instant::now(), 0));
            self.kept.fetch_sub(bytes, Ordering::Relaxed);
        }
        drop(index);
        // One by one, so that after a crash no segment is missing between others.
        self.disk.sync_folder()?;
        Ok(true)
    }

    /// The segment that holds the record at this position, and the seq before which its durable records end. If that seq
    /// is the position itself, the record is not durable yet.
    pub fn find(&self, at: &Watermark) -> Option<(Segment, u64)> {
        let index = locked(&self.index);
        let mut end = index
            .end(at.incarnation)
            .unwrap_or_else(|| self.durable.load(Ordering::Acquire));
        // The highest number counts: a segment supersedes what lower ones hold from its first seq on.
        for segment in index
            .segments
            .iter()
            .rev()
            .filter(|segment| segment.header.incarnation == at.incarnation)
        {
            if segment.header.first_seq <= at.next {
                return Some((segment.clone(), end));
            }
            end = end.min(segment.header.first_seq);
        }
        None
    }

    /// The first position of the next incarnation; `None` if this one still runs or is unknown.
    fn after(&self, incarnation: Incarnation) -> Option<Watermark> {
        let index = locked(&self.index);
        index.end(incarnation)?;
        let mut later = index
            .segments
            .iter()
            .skip_while(|segment| segment.header.incarnation != incarnation);
        let next = later.find(|segment| segment.header.incarnation != incarnation)?;
        Some(Watermark {
            incarnation: next.header.incarnation,
            next: next.header.first_seq,
        })
    }

    /// The oldest record of this incarnation in the folder, shipped or not.
    pub fn first_of(&self, incarnation: Incarnation) -> Option<u64> {
        let index = locked(&self.index);
        let of = |segment: &&Segment| segment.header.incarnation == incarnation;
        index.segments.iter().find(of).map(|segment| segment.header.first_seq)
    }

    /// The position of the oldest record in the folder.
    pub fn first(&self) -> Option<Watermark> {
        let index = locked(&self.index);
        index.segments.first().map(|segment| Watermark {
            incarnation: segment.header.incarnation,
            next: segment.header.first_seq,
        })
    }
}

impl SegmentIndex {
    fn end(&self, incarnation: Incarnation) -> Option<u64> {
        self.ends.iter().find(|(of, _)| *of == incarnation).map(|(_, end)| *end)
    }

    /// Index of the first segment that holds unshipped records, or is the newest.
    pub fn first_needed(&self, mark: &Watermark) -> usize {
        let last = self.segments.len().saturating_sub(1);
        let needed = self.segments.iter().enumerate().position(|(index, segment)| {
            let incarnation = segment.header.incarnation;
            if incarnation != mark.incarnation {
                return self.passed(incarnation, mark).is_none();
            }
            let next = self
                .segments
                .get(index + 1)
                .filter(|next| next.header.incarnation == incarnation);
            let end = next.map(|next| next.header.first_seq).or_else(|| self.end(incarnation));
            end.is_none_or(|end| end > mark.next)
        });
        needed.unwrap_or(last).min(last)
    }

    /// Some if this incarnation lies before the watermark's.
    fn passed(&self, incarnation: Incarnation, mark: &Watermark) -> Option<()> {
        let place = |of: Incarnation| self.segments.iter().position(|segment| segment.header.incarnation == of);
        (place(incarnation)? < place(mark.incarnation)?).then_some(())
    }
}

/// Reads durable records in order, starting at the watermark.
pub(super) struct SpoolReader {
    spool: Arc<Spool>,
    cursor: Option<SegmentCursor>,
    /// Records below this seq can be read at the cursor.
    until: u64,
    /// The next record to read; `None`: the oldest one.
    at: Option<Watermark>,
    /// Reads no further than this position.
    stop: Option<Watermark>,
}

impl SpoolReader {
    pub fn new(spool: Arc<Spool>, mark: Option<Watermark>) -> Self {
        let at = mark.filter(|mark| spool.find(mark).is_some());
        Self {
            spool,
            cursor: None,
            until: 0,
            at,
            stop: None,
        }
    }

    /// The same, no further than this position.
    pub fn up_to(self, stop: Watermark) -> Self {
        Self {
            stop: Some(stop),
            ..self
        }
    }

    /// Reads records until there are `rows` of them or `bytes` is reached, and returns the watermark to store once they
    /// are shipped.
    pub fn read(&mut self, rows: usize, bytes: usize) -> Result<(Vec<SealedRecord>, Option<Watermark>), JournalError> {
        let mut records = Vec::new();
        let mut size = 0;
        while records.len() < rows && size < bytes {
            let Some(record) = self.next()? else { break };
            size += record.bytes.len();
            records.push(record);
        }
        Ok((records, self.at))
    }

    fn next(&mut self) -> Result<Option<SealedRecord>, JournalError> {
        loop {
            let Some(at) = self.at.or_else(|| self.spool.first()) else {
                return Ok(None);
            };
            if self.stop == Some(at) {
                return Ok(None);
            }
            if at.next < self.until
                && let Some(cursor) = &mut self.cursor
            {
                let record = read_on(&*self.spool.disk, cursor, at.next)?;
                self.at = Some(Watermark { next: at.next + 1, ..at });
                return Ok(Some(record));
            }
            let Some((segment, until)) = self.spool.find(&at) else {
                return Ok(None);
            };
            if at.next < until {
                self.turn_to(&segment)?;
                self.until = until;
                continue;
            }
            let Some(next) = self.spool.after(at.incarnation) else {
                return Ok(None);
            };
            (self.at, self.cursor, self.until) = (Some(next), None, 0);
        }
    }

    /// Opens the cursor in this segment. If it is there already, it drops what it read ahead, so that it sees new
    /// records.
    fn turn_to(&mut self, segment: &Segment) -> Result<(), JournalError> {
        let disk = &*self.spool.disk;
        let before = self.cursor.as_mut();
        if let Some(same) = before.filter(|before| before.segment == segment.header.number) {
            same.refresh();
            return Ok(());
        }
        let cursor = SegmentCursor::open(disk, segment).map_err(in_file(disk, &segment.name))?;
        if let Some(before) = &self.cursor
            && before.chain != cursor.chain
        {
            return Err(damaged(
                disk,
                segment,
                "the segment does not continue the chain of the one before it",
            ));
        }
        self.cursor = Some(cursor);
        Ok(())
    }
}

/// Reads the record with this seq. It is known to be durable, so anything else is damage.
fn read_on(disk: &dyn Disk, cursor: &mut SegmentCursor, seq: u64) -> Result<SealedRecord, JournalError> {
    let name = segment_name(cursor.segment);
    loop {
        let what = match cursor.step().map_err(in_file(disk, &name))? {
            ScanStep::Record(record) if record.seq == seq => return Ok(record),
            ScanStep::Record(record) if record.seq < seq => continue,
            ScanStep::Record(_) => "the reader is past this record",
            ScanStep::Bad(corruption) => corruption,
            ScanStep::End => "a durable record is missing",
        };
        return Err(JournalError::Damaged(Damage {
            file: disk.path(&name),
            offset: cursor.offset,
            seq,
            what: what.to_owned(),
        }));
    }
}

/// The spool bytes that a record takes: itself and its frame.
pub(super) fn cost(record: &SealedRecord) -> u64 {
    (FRAME + record.bytes.len()) as u64
}
