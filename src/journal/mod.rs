//! The audit journal: a local, append-only, hash-chained spool of records, and the shipper that brings them to the
//! database.
//!
//! A record is acknowledged only when it is on disk (fdatasync); a call that cannot be recorded is refused. No other room
//! writes these files, and nothing here decides who may do what. `read_dir` reads the records back, each with its leaf
//! and head.

mod cleared;
mod conflicts;
mod decision;
mod disk;
mod documents;
mod encode;
mod error;
mod findings;
mod format;
mod inputs;
mod queue;
mod reader;
mod recover;
mod rewind;
mod scan;
mod segment;
mod shared;
mod shipper;
mod spool;
mod spooled;
mod thread_priority;
mod truncate;
mod watermark;
mod writer;

#[cfg(test)]
mod tests;

pub use cleared::{Cleared, OutcomeData, OutcomeTicket};
pub use decision::{RefusedMessage, permitted};
pub use disk::survive_file_size_limit;
pub use error::{Damage, JournalError, JournalState, Sealed};
pub use findings::TrailFindings;
pub use inputs::{InputSecrets, InputSecretsError, PersonKeys};
pub use reader::read_dir;
pub use shipper::Shipper;
pub use spooled::SpooledIncarnation;
pub use thread_priority::lower_priority;

use crate::decide::Permit;
use crate::domain::{
    Call, Chain, Decision, Digest, EnvironmentName, Event, Executed, Incarnation, InstanceId, KeptDocument, Outcome, OutcomeKind,
    RecordedRequest, Start, Timestamp,
};
use cleared::PendingPermit;
use disk::{Disk, DiskFolder};
use documents::Documents;
use queue::locked;
use recover::RecoveredState;
use rewind::RewindFrom;
use shared::{JournalShared, OUTCOME_ROOM};
use spool::{KeepShipped, Spool};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use watermark::Watermark;
use writer::{Writer, WriterExitGuard};

/// Where the journal lies, and its limits.
#[derive(Debug, Clone)]
pub struct JournalSettings {
    pub dir: PathBuf,
    /// Most bytes that unshipped records may take; from 95 % on, new records are refused.
    pub max_bytes: u64,
    /// A batch that would make a segment longer goes into a new one.
    pub segment_bytes: u64,
    /// A write that takes longer seals the journal as `Sealed::Hung` until the disk answers.
    pub sync_timeout: Duration,
    /// Segments are kept this long once the database has their records, in at most half of `max_bytes` and only while unshipped
    /// records leave room.
    pub keep_shipped: Duration,
    /// Refuse calls once the audit trail holds rows under our numbers that are not ours.
    pub seal_on_conflict: bool,
    /// Accept a file system that does not survive a restart, such as tmpfs.
    pub allow_volatile: bool,
}

/// What the START record says about this instance.
#[derive(Debug, Clone)]
pub struct StartFacts {
    pub environment: EnvironmentName,
    pub version: String,
    pub instance: String,
    /// As the data folder has it. Without it the journal's own counts, or a new one is drawn.
    pub instance_id: Option<InstanceId>,
}

/// What `open_dir` found in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Last record of an earlier incarnation: incarnation, seq and head; `None` if there is no record.
    pub after: Option<(Incarnation, u64, Digest)>,
    /// Bytes cut off as a torn tail.
    pub cut: u64,
    /// Permits of earlier incarnations that lacked an outcome and now have the outcome `unknown`.
    pub unknown: usize,
    /// Records that are not in the database yet, those of this start included.
    pub unshipped: u64,
}

/// Handle to the journal; clones share it. Dropping the last one closes the journal without a STOP record.
#[derive(Clone)]
pub struct Journal(Arc<JournalHandle>);

struct JournalHandle {
    shared: Arc<JournalShared>,
    disk: Arc<dyn Disk>,
    incarnation: Incarnation,
    documents: Arc<Documents>,
    instance_id: InstanceId,
    shipped: Mutex<Option<Watermark>>,
    spooled: Vec<SpooledIncarnation>,
    is_missing: bool,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Journal {
    /// Locks the folder, recovers what is there, and begins a new incarnation. Blocks on disk I/O.
    pub fn open_dir(
        settings: JournalSettings,
        start: StartFacts,
        now: impl Fn() -> Timestamp + Send + Sync + 'static,
    ) -> Result<(Self, Recovered), JournalError> {
        let folder = DiskFolder::lock(&settings.dir, settings.allow_volatile)?;
        Self::open_on(Arc::new(folder), &settings, start, Box::new(now))
    }

    /// Records an event and returns its seq once it is durable. A permit goes through `open` instead.
    pub async fn append(&self, event: Event) -> Result<u64, Sealed> {
        let began = self.0.shared.observer.get().map(|observe| (observe, Instant::now()));
        let seq = self.0.shared.append(&event)?.await?;
        if let Some((observe, began)) = began {
            observe(began.elapsed());
        }
        Ok(seq)
    }

    /// Records a permit, reserves room for its outcome, and returns the call as `Cleared`, which can be sent. All that the
    /// permit determines is taken from it, so the record cannot contradict what was permitted.
    pub async fn open(&self, permit: Permit, request: RecordedRequest) -> Result<Cleared, (Call, Sealed)> {
        let (call, basis) = permit.into_parts();
        let decision = permitted(&call, basis, request);
        self.clear(call, decision).await
    }

    /// Appends the decision, waits until it is durable, and makes the call `Cleared`.
    async fn clear(&self, call: Call, decision: impl Into<Box<Decision>>) -> Result<Cleared, (Call, Sealed)> {
        let shared = &self.0.shared;
        let began = shared.observer.get().map(|observe| (observe, Instant::now()));
        let appended = shared.append(&Event::Decision(decision.into()));
        let waiter = match appended {
            Ok(waiter) => waiter,
            Err(sealed) => return Err((call, sealed)),
        };
        match PendingPermit::new(waiter, shared.clone(), call.request).await {
            Ok(seq) => {
                if let Some((observe, began)) = began {
                    observe(began.elapsed());
                }
                Ok(Cleared::new(call, shared.clone(), seq))
            }
            Err(sealed) => Err((call, sealed)),
        }
    }

    /// Makes durable what records are about to name, so that it reaches the database before them. What is kept already is not
    /// written again.
    pub async fn keep_documents(&self, documents: &[KeptDocument]) -> Result<(), JournalError> {
        let (keeper, documents) = (self.0.documents.clone(), documents.to_vec());
        match tokio::task::spawn_blocking(move || keeper.keep(&documents)).await {
            Ok(kept) => kept,
            Err(gone) => Err(scan::in_file(&*self.0.disk, "")(std::io::Error::other(gone))),
        }
    }

    /// The incarnation that this start began.
    pub fn incarnation(&self) -> Incarnation {
        self.0.incarnation
    }

    /// The instance that the START record names.
    pub fn instance_id(&self) -> InstanceId {
        self.0.instance_id
    }

    /// Whether the START record is on disk. On a disk that is full at the start it is not, until there is room.
    pub fn has_started(&self) -> bool {
        self.0.shared.spool.durable.load(Ordering::Acquire) > 0
    }

    /// What the folder held of each earlier start when it was opened, oldest first.
    pub fn spooled(&self) -> &[SpooledIncarnation] {
        &self.0.spooled
    }

    /// Whether the folder was not the journal of the instance that `StartFacts` names.
    pub fn is_missing(&self) -> bool {
        self.0.is_missing
    }

    /// The oldest record of this incarnation that the folder holds; it holds all that follow.
    pub fn held_from(&self, incarnation: Incarnation) -> Option<u64> {
        self.0.shared.spool.first_of(incarnation)
    }

    /// Ships again what the folder holds, from the first record of this incarnation on; returns how many records. To be
    /// called once, before a shipper is made.
    pub fn ship_again(&self, incarnation: Incarnation) -> Result<u64, JournalError> {
        let handle = &self.0;
        let from = self.spooled().iter().skip_while(|spooled| spooled.incarnation != incarnation);
        let Some(first) = from.clone().next() else { return Ok(0) };
        let mark = Watermark {
            incarnation,
            next: first.first,
        };
        mark.store(&*handle.disk)
            .map_err(scan::in_file(&*handle.disk, watermark::NAME))?;
        handle.shared.spool.need_again(&mark);
        let (records, bytes) = from.fold((0, 0), |sum, spooled| (sum.0 + spooled.marked.0, sum.1 + spooled.marked.1));
        handle.shared.spool.records.fetch_add(records, Ordering::SeqCst);
        handle.shared.spool.bytes.fetch_add(bytes, Ordering::Relaxed);
        *locked(&handle.shipped) = Some(mark);
        Ok(records)
    }

    /// Whether the journal takes records, and if not, why.
    pub fn state(&self) -> JournalState {
        self.0.shared.state()
    }

    /// Durable records that are not in the database yet.
    pub fn unshipped(&self) -> u64 {
        self.0.shared.spool.records.load(Ordering::Relaxed)
    }

    /// Bytes of those records on disk.
    pub fn unshipped_bytes(&self) -> u64 {
        self.0.shared.spool.bytes.load(Ordering::Relaxed)
    }

    /// Why shipping the last batch failed; `None` once a batch was shipped.
    pub fn ship_error(&self) -> Option<String> {
        locked(&self.0.shared.ship_error).clone()
    }

    /// Compares the records that were shipped before and are still kept with the audit trail, and ships those again that it does
    /// not have: from this record on, or from the oldest one that is kept. Done by the shipper, between new records, oldest first.
    /// It is remembered over a restart.
    pub fn rewind(&self, from: Option<(Incarnation, u64)>) {
        let from = from.map(|(incarnation, next)| Watermark { incarnation, next });
        self.0.shared.findings.ask_for(RewindFrom(from));
        self.0.shared.shipper.notify_one();
    }

    /// The oldest record in the folder, shipped or not: what is older cannot be shipped again.
    pub fn kept_from(&self) -> Option<(Incarnation, u64)> {
        let first = self.0.shared.spool.first()?;
        Some((first.incarnation, first.next))
    }

    /// Bytes of shipped records that are kept.
    pub fn kept_bytes(&self) -> u64 {
        self.0.shared.spool.kept.load(Ordering::Relaxed)
    }

    /// What comparing with the audit trail has found since the start.
    pub fn findings(&self) -> &TrailFindings {
        &self.0.shared.findings
    }

    /// Records refused since the start.
    pub fn refused(&self) -> u64 {
        self.0.shared.refused.load(Ordering::Relaxed)
    }

    /// Calls that are `Cleared` or sent and have no outcome yet.
    pub fn open_calls(&self) -> usize {
        self.0.shared.queue.under_way()
    }

    /// Calls `observe` with the duration of each append, until its record was durable. Only the first observer is kept.
    pub fn observe_appends(&self, observe: impl Fn(Duration) + Send + Sync + 'static) {
        _ = self.0.shared.observer.set(Box::new(observe));
    }

    /// The calls that the stop of this instance has ended so far.
    pub fn cut_by_stop(&self) -> u64 {
        self.0.shared.cut_by_stop.load(Ordering::Relaxed)
    }

    /// Waits until every cleared call has its outcome.
    pub async fn all_closed(&self) {
        let shared = &self.0.shared;
        loop {
            let mut notified = std::pin::pin!(shared.all_closed.notified());
            notified.as_mut().enable();
            if self.open_calls() == 0 {
                return;
            }
            notified.await;
        }
    }

    /// Refuses new records, writes everything queued and a STOP record, and returns when the writer thread has ended. It
    /// has no time limit: a disk that hangs is waited for.
    pub async fn stop(&self) {
        let shared = &self.0.shared;
        let mut ended = std::pin::pin!(shared.end.notified());
        ended.as_mut().enable();
        shared.stopping.store(true, Ordering::Release);
        shared.queue.close();
        if !shared.has_ended() {
            ended.await;
        }
    }

    /// As `stop`, but a disk that does not answer is waited for no longer than this; false then, and records may be lost
    /// that nobody waited for: the next start records those calls as `unknown`.
    pub async fn stop_within(&self, limit: Duration) -> bool {
        let has_stopped = tokio::time::timeout(limit, self.stop()).await.is_ok();
        // Nor when the journal is dropped.
        self.0.shared.abandoned.store(!has_stopped, Ordering::Release);
        has_stopped
    }

    fn open_on(
        disk: Arc<dyn Disk>,
        settings: &JournalSettings,
        facts: StartFacts,
        clock: shared::NowFn,
    ) -> Result<(Self, Recovered), JournalError> {
        let recovered_state = recover::recover(&disk)?;
        let chain = Chain::new(Incarnation(random_id()?));
        let incarnation = chain.incarnation;
        let number = recovered_state.next_segment();
        let known = facts.instance_id.or(recovered_state.instance_id());
        let instance_id = known.map_or_else(|| random_id().map(InstanceId), Ok)?;
        let events = first_events(&facts, instance_id, &recovered_state, &*clock);
        let (unknown, is_missing) = (recovered_state.open.len(), recovered_state.is_missing(facts.instance_id));
        let spool = Arc::new(Spool::new(
            disk.clone(),
            recovered_state.segment_index,
            recovered_state.unshipped,
            KeepShipped {
                time: settings.keep_shipped,
                max_bytes: settings.max_bytes,
            },
        ));
        recovered_state.watermark.iter().for_each(|mark| spool.release(mark));
        let shared = Arc::new(JournalShared::new(spool.clone(), facts.environment, clock, settings));
        if let Some(unfinished) = RewindFrom::load(&*disk).map_err(scan::in_file(&*disk, rewind::NAME))? {
            shared.findings.ask_for(unfinished);
        }
        shared.queue.reserve(unknown as u64 * OUTCOME_ROOM);
        let mut writer = Writer::new(
            shared.clone(),
            disk.clone(),
            settings.segment_bytes,
            chain,
            number,
            recovered_state.open,
            events,
        );
        let written = writer.write_first_events();
        shared.seal_if_full(written).map_err(scan::in_file(&*disk, ""))?;
        let recovered = Recovered {
            after: recovered_state.last,
            cut: recovered_state.cut,
            unknown,
            unshipped: spool.records.load(Ordering::Relaxed),
        };
        let documents = Documents::open(disk.clone(), shared.environment.clone())?;
        let handle = JournalHandle {
            documents: Arc::new(documents),
            threads: Mutex::new(start_threads(&shared, writer)?),
            shared,
            disk,
            incarnation,
            instance_id,
            shipped: Mutex::new(recovered_state.watermark),
            is_missing,
            spooled: recovered_state.spooled,
        };
        Ok((Self(Arc::new(handle)), recovered))
    }
}

impl Drop for JournalHandle {
    fn drop(&mut self) {
        self.shared.queue.close();
        // The writer thread is stuck in a disk operation; joining it could block for ever.
        if self.shared.abandoned.load(Ordering::Acquire) || self.shared.state() == JournalState::Sealed(Sealed::Hung) {
            return;
        }
        for thread in locked(&self.threads).drain(..) {
            _ = thread.join();
        }
    }
}

/// The START record, and an outcome for each permit that has none.
fn first_events(
    facts: &StartFacts,
    instance_id: InstanceId,
    recovered_state: &RecoveredState,
    clock: &dyn Fn() -> Timestamp,
) -> Vec<Event> {
    let start = Event::Start(Start {
        at: clock(),
        environment: facts.environment.clone(),
        version: facts.version.clone(),
        instance: facts.instance.clone(),
        instance_id: Some(instance_id),
        after: recovered_state.last,
        after_at: recovered_state.spooled.last().and_then(|last| last.last_at),
        journal_missing: recovered_state.is_missing(facts.instance_id),
        cut: recovered_state.cut,
    });
    let unknown = recovered_state.open.iter().map(|request| {
        Event::Outcome(Outcome {
            at: clock(),
            environment: facts.environment.clone(),
            request: *request,
            kind: OutcomeKind::Unknown,
            executed: Executed::Unknown,
            by: None,
            detail: Some("no outcome was recorded before the instance ended".to_owned()),
            status: None,
            latency_us: 0,
            bytes: 0,
            recovered: true,
        })
    });
    std::iter::once(start).chain(unknown).collect()
}

/// Starts the watchdog and the writer.
fn start_threads(shared: &Arc<JournalShared>, writer: Writer) -> Result<Vec<JoinHandle<()>>, JournalError> {
    let watch = thread("journal-watch", {
        let shared = shared.clone();
        move || shared.watch()
    })?;
    let last_words = WriterExitGuard(shared.clone());
    let write = thread("journal", move || {
        thread_priority::lower_priority();
        let _last_words = last_words;
        writer.run();
    })?;
    Ok(vec![watch, write])
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, JournalError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(JournalError::Thread)
}

fn random_id() -> Result<[u8; 16], JournalError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| JournalError::Randomness)?;
    Ok(bytes)
}
