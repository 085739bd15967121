//! The writer thread: takes a batch from the queue, appends it to the segment, syncs, and wakes the waiters.
//!
//! A segment in which a write or sync failed is never synced again: after a failed fsync Linux marks the pages clean, so
//! the next sync would report success without writing them. The unacknowledged records go into a fresh segment that
//! supersedes the failed one; if that fails too, the journal is sealed and the callers learn that nothing was recorded.

use super::disk::Disk;
use super::error::Sealed;
use super::format::{BATCH, BatchHeader, FRAME, SegmentHeader, close_frame};
use super::queue::{Batch, PermitEffect, QueuedEvent, WakeResult, locked};
use super::segment::{ActiveSegment, is_full};
use super::shared::{JournalShared, OUTCOME_ROOM};
use super::truncate;
use super::watermark::Watermark;
use crate::domain::{AdminAction, Backoff, Chain, Event, RequestId, Stop};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The START record and the recovered outcomes are written in batches of this many events.
const START_BATCH: usize = 256;
/// First and longest pause between two attempts to write while the journal is sealed.
const PROBE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

pub(super) struct Writer {
    pub shared: Arc<JournalShared>,
    pub disk: Arc<dyn Disk>,
    pub segment_bytes: u64,
    chain: Chain,
    active: Option<ActiveSegment>,
    /// The failed segment, which the next one supersedes.
    poisoned: Option<u64>,
    next_number: u64,
    /// Permits without an outcome; every segment header lists them.
    open: BTreeSet<RequestId>,
    /// The START record and what follows it, until it is on disk: before it nothing is recorded.
    first_events: Vec<Event>,
    /// The encoded batch, and how many records it holds.
    bytes: Vec<u8>,
    records: u32,
    /// When the last write began; the gap between syncs counts from here.
    began: Instant,
}

impl Writer {
    pub fn new(
        shared: Arc<JournalShared>,
        disk: Arc<dyn Disk>,
        segment_bytes: u64,
        chain: Chain,
        next_number: u64,
        open: BTreeSet<RequestId>,
        first_events: Vec<Event>,
    ) -> Self {
        Self {
            shared,
            disk,
            segment_bytes,
            chain,
            active: None,
            poisoned: None,
            next_number,
            open,
            first_events,
            bytes: Vec::with_capacity(256 * 1024),
            records: 0,
            began: Instant::now(),
        }
    }

    /// Runs until the queue is closed and everything in it is written. After `Journal::stop`, a STOP record is the last.
    pub fn run(mut self) {
        let mut sealed = !self.first_events.is_empty();
        loop {
            if sealed {
                sealed = !self.probe();
                if sealed {
                    return;
                }
            }
            let Some(batch) = self.shared.queue.next(self.began) else {
                break;
            };
            sealed = !self.commit(batch);
        }
        if self.shared.stopping.load(Ordering::Acquire) {
            let stop = Event::Stop(Stop {
                at: (self.shared.clock)(),
                environment: self.shared.environment.clone(),
            });
            if let Err(error) = self.write_directly(&[stop]) {
                tracing::error!(%error, "the journal cannot record its stop");
            }
        }
        if let Some(active) = &self.active {
            active.trim();
        }
    }

    /// Writes what a start records, or what of it is not on disk yet.
    pub fn write_first_events(&mut self) -> io::Result<()> {
        Watermark::prepare(&*self.disk)?;
        while !self.first_events.is_empty() {
            let batch: Vec<Event> = self.first_events.drain(..START_BATCH.min(self.first_events.len())).collect();
            if let Err(error) = self.write_directly(&batch) {
                self.first_events.splice(0..0, batch);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Writes these events at once, without the queue; nobody waits for them.
    pub fn write_directly(&mut self, events: &[Event]) -> io::Result<()> {
        let entries = events.iter().map(|event| QueuedEvent {
            event: truncate::serialise(event),
            effect: super::shared::permit_effect(event),
            room: 0,
            awaited: false,
        });
        let entries: Vec<_> = entries.collect();
        let before = self.chain.clone();
        self.encode(&entries);
        match self.put(&before) {
            Ok(()) => {
                self.settle(&before, &entries);
                Ok(())
            }
            Err(error) => {
                self.chain = before;
                Err(error)
            }
        }
    }

    /// Writes a batch and wakes its waiters; false if it could not be written, in which case they were refused.
    fn commit(&mut self, batch: Batch) -> bool {
        let before = self.chain.clone();
        self.encode(&batch.entries);
        self.began = Instant::now();
        self.shared.begin_work(self.began, batch.group.clone());
        let result = self.put(&before);
        *locked(&self.shared.working) = None;
        match result {
            Ok(()) => {
                self.settle(&before, &batch.entries);
                self.tell(before.next, batch);
                true
            }
            Err(error) => {
                self.chain = before;
                self.give_up(error, batch);
                false
            }
        }
    }

    /// Encodes the entries as a batch into `self.bytes`, and advances the chain.
    fn encode(&mut self, entries: &[QueuedEvent]) {
        self.bytes.clear();
        self.bytes.resize(BATCH, 0);
        self.records = entries.len() as u32;
        for entry in entries {
            let at = self.bytes.len();
            self.bytes.resize(at + FRAME, 0);
            self.chain.seal(&entry.event, &mut self.bytes);
            close_frame(&mut self.bytes, at);
        }
    }

    /// Brings the encoded batch to disk. On a full disk, segments that are only kept go first.
    fn put(&mut self, before: &Chain) -> io::Result<()> {
        loop {
            let put = self.put_once(before);
            let full = put.as_ref().is_err_and(is_full);
            if !full || !self.shared.spool.delete_oldest_kept().unwrap_or(false) {
                return put;
            }
            tracing::warn!("the journal's disk is full: a segment of shipped records was deleted to make room");
        }
    }

    /// Brings the encoded batch to disk, in a fresh segment if the current one is full or fails.
    fn put_once(&mut self, before: &Chain) -> io::Result<()> {
        let fits = |active: &mut ActiveSegment| active.has_room(self.bytes.len());
        if let Some(mut active) = self.active.take_if(|active| fits(active)) {
            match self.append_to(&mut active, before) {
                Ok(()) => {
                    self.active = Some(active);
                    return Ok(());
                }
                Err(error) => {
                    tracing::error!(%error, segment = active.number, "the journal's segment fails; trying a fresh one");
                    self.poisoned = Some(active.number);
                }
            }
        }
        if let Some(full) = self.active.take() {
            full.trim();
        }
        let mut fresh = self.fresh(before)?;
        match self.append_to(&mut fresh, before) {
            Ok(()) => {
                self.active = Some(fresh);
                self.poisoned = None;
                Ok(())
            }
            Err(error) => {
                self.poisoned = Some(fresh.number);
                Err(error)
            }
        }
    }

    fn append_to(&mut self, active: &mut ActiveSegment, before: &Chain) -> io::Result<()> {
        let header = BatchHeader {
            segment: active.number,
            first_seq: before.next,
            durable: before.next,
            records: self.records,
            bytes: (self.bytes.len() - BATCH) as u32,
        };
        self.bytes[..BATCH].copy_from_slice(&header.encode());
        active.append(&self.bytes)
    }

    /// Creates the next segment, which supersedes a failed one.
    fn fresh(&mut self, before: &Chain) -> io::Result<ActiveSegment> {
        self.shared.spool.trim();
        let number = self.next_number;
        self.next_number += 1;
        let header = SegmentHeader {
            incarnation: before.incarnation,
            number,
            first_seq: before.next,
            prev: before.head,
            supersedes: self.poisoned,
            open: self.open.iter().copied().collect(),
        };
        let (active, segment) = ActiveSegment::create(&*self.disk, header, self.segment_bytes)?;
        self.shared.spool.add(segment);
        Ok(active)
    }

    /// Accounts for a batch that is on disk, and lets the shipper see it.
    fn settle(&mut self, before: &Chain, entries: &[QueuedEvent]) {
        let shared = &self.shared;
        let mut released = 0;
        for entry in entries {
            released += match entry.effect {
                PermitEffect::Opens(request) if self.open.insert(request) => entry.room.saturating_sub(OUTCOME_ROOM),
                PermitEffect::Closes(request) if self.open.remove(&request) => OUTCOME_ROOM,
                _ => entry.room,
            };
        }
        let spool = &shared.spool;
        spool.bytes.fetch_add((self.bytes.len() - BATCH) as u64, Ordering::Relaxed);
        spool.durable.store(self.chain.next, Ordering::Release);
        spool.records.fetch_add(self.chain.next - before.next, Ordering::SeqCst);
        if shared.shipper_waits.swap(false, Ordering::SeqCst) {
            shared.shipper.notify_one();
        }
        shared.queue.release(released);
    }

    /// Wakes the waiters of a durable batch. A permit whose caller is gone, or was refused by the watchdog, is closed as
    /// unsent.
    fn tell(&self, first: u64, batch: Batch) {
        let unsent = match batch.group.finish(Ok(first)) {
            WakeResult::Except(left) => left,
            WakeResult::TooLate => (0..batch.entries.len()).collect(),
        };
        for index in unsent {
            if let PermitEffect::Opens(request) = batch.entries[index].effect {
                self.shared.close_unsent(request, "nobody waited for the permit any more");
            }
        }
        self.shared.unseal_if_hung();
    }

    /// Seals the journal and refuses everybody who waits.
    fn give_up(&mut self, error: io::Error, batch: Batch) {
        let reason = Sealed::Fault(error.to_string().into());
        tracing::error!(%error, "the journal cannot write and is sealed");
        self.shared.seal(reason.clone());
        batch.group.finish(Err(reason.clone()));
        self.shared.fail_waiting(&reason, batch.entries);
    }

    /// Retries until a record of the unsealing is on disk, then unseals; false if the journal closes before that.
    fn probe(&mut self) -> bool {
        let mut backoff = Backoff::new(PROBE[0], PROBE[1]);
        loop {
            let last = self.shared.queue.wait_out(backoff.failed());
            let refused = self.shared.refused.load(Ordering::Relaxed);
            let admin = Event::Admin(AdminAction::new(
                (self.shared.clock)(),
                self.shared.environment.clone(),
                "journal_unsealed",
                format!("the disk failed and works again; {refused} records were refused since the start"),
            ));
            match self.write_first_events().and_then(|()| self.write_directly(&[admin])) {
                Ok(()) => {
                    self.shared.unseal();
                    tracing::info!("the journal writes again");
                    return true;
                }
                Err(error) => tracing::warn!(%error, "the journal is still sealed"),
            }
            if last {
                return false;
            }
        }
    }
}

/// Dropped when the writer thread ends, even by a panic: refuses everybody who still waits, so that nobody waits for
/// ever.
pub(super) struct WriterExitGuard(pub Arc<JournalShared>);

impl Drop for WriterExitGuard {
    fn drop(&mut self) {
        let shared = &self.0;
        shared.seal(Sealed::Stopped);
        shared.queue.close();
        let working = locked(&shared.working).take();
        if let Some((_, group)) = working {
            group.finish(Err(Sealed::Stopped));
        }
        shared.fail_waiting(&Sealed::Stopped, Vec::new());
        shared.end();
    }
}
