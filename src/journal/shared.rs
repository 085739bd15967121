//! State shared by the callers, the writer thread, its watchdog and the shipper.
//!
//! Decides whether a record is admitted and which state the journal is in. Does no disk I/O.

use super::JournalSettings;
use super::error::{JournalState, Sealed};
use super::findings::TrailFindings;
use super::queue::{CommitGroup, PermitEffect, Queue, QueuedEvent, Waiter, locked};
use super::segment::is_full;
use super::spool::Spool;
use super::truncate;
use crate::domain::{DecisionKind, EnvironmentName, Event, Executed, Outcome, OutcomeKind, RequestId, Timestamp};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Spool bytes reserved for the outcome of each open permit.
pub(super) const OUTCOME_ROOM: u64 = 2_048;
/// Most characters of an outcome's detail, so that the record fits into `OUTCOME_ROOM` however JSON escapes them.
const OUTCOME_DETAIL: usize = 200;
/// Most bytes that the frame, the envelope and a share of the batch header add to an event.
const OVERHEAD: u64 = 256;

pub(super) type NowFn = Box<dyn Fn() -> Timestamp + Send + Sync>;
pub(super) type Observer = Box<dyn Fn(Duration) + Send + Sync>;

pub(super) struct JournalShared {
    pub queue: Queue,
    pub spool: Arc<Spool>,
    pub environment: EnvironmentName,
    pub clock: NowFn,
    pub max_bytes: u64,
    pub sync_timeout: Duration,
    /// Seal the journal once the trail holds rows that are not ours.
    pub seal_on_conflict: bool,
    /// What comparing with the trail has found.
    pub findings: TrailFindings,
    /// Why the journal is sealed, if a fault sealed it.
    pub fault: Mutex<Option<Sealed>>,
    /// Whether `fault` is set; read without its lock.
    pub faulty: AtomicBool,
    /// Set when the spool is above 95 % of `max_bytes`, cleared below 80 %.
    pub full: AtomicBool,
    /// The write in progress: when it began, and the waiters of its batch.
    pub working: Mutex<Option<(Instant, Arc<CommitGroup>)>>,
    pub refused: AtomicU64,
    /// Calls that the stop of this instance ended.
    pub cut_by_stop: AtomicU64,
    pub all_closed: Notify,
    /// The shipper found nothing to ship and waits for `shipper`.
    pub shipper_waits: AtomicBool,
    pub shipper: Notify,
    pub ship_error: Mutex<Option<String>>,
    pub observer: OnceLock<Observer>,
    /// `Journal::stop` was called: the writer thread ends with a STOP record.
    pub stopping: AtomicBool,
    /// Nobody waits for the writer thread any more: its disk does not answer.
    pub abandoned: AtomicBool,
    ended: AtomicBool,
    pub end: Notify,
    /// The watchdog's thread, parked while no write is in progress.
    watchdog: OnceLock<Thread>,
    /// The watchdog is parked or about to be, so the next write must unpark it.
    dozing: AtomicBool,
}

impl JournalShared {
    pub fn new(spool: Arc<Spool>, environment: EnvironmentName, clock: NowFn, settings: &JournalSettings) -> Self {
        Self {
            queue: Queue::default(),
            spool,
            environment,
            clock,
            max_bytes: settings.max_bytes,
            sync_timeout: settings.sync_timeout,
            seal_on_conflict: settings.seal_on_conflict,
            findings: TrailFindings::default(),
            fault: Mutex::default(),
            faulty: AtomicBool::new(false),
            full: AtomicBool::new(false),
            working: Mutex::default(),
            refused: AtomicU64::new(0),
            cut_by_stop: AtomicU64::new(0),
            all_closed: Notify::new(),
            shipper_waits: AtomicBool::new(false),
            shipper: Notify::new(),
            ship_error: Mutex::default(),
            observer: OnceLock::new(),
            stopping: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            end: Notify::new(),
            watchdog: OnceLock::new(),
            dozing: AtomicBool::new(false),
        }
    }

    /// Queues an event; the waiter resolves when it is durable.
    pub fn append(&self, event: &Event) -> Result<Waiter, Sealed> {
        let effect = permit_effect(event);
        let bytes = truncate::serialise(event);
        let outcome = matches!(effect, PermitEffect::Closes(_));
        // Refused, it would keep the shipper from making room.
        let conflict = matches!(event, Event::Conflict(_));
        let frame = bytes.len() as u64 + OVERHEAD;
        let entry = QueuedEvent {
            event: bytes,
            effect,
            room: match effect {
                PermitEffect::Opens(_) => frame + OUTCOME_ROOM,
                // The permit reserved this room.
                PermitEffect::Closes(_) => 0,
                PermitEffect::Plain => frame,
            },
            awaited: !outcome,
        };
        let room = entry.room;
        let result = self.queue.push(entry, |queued| match (outcome, conflict) {
            (true, _) => Ok(()),
            (_, true) => self.without_fault(),
            _ => self.admit(queued + room),
        });
        if result.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    /// Queues the outcome of a permit. Its room was reserved, so only a closed journal refuses it.
    pub fn close(&self, mut outcome: Outcome) {
        if let Some(detail) = &mut outcome.detail {
            truncate::truncate(detail, OUTCOME_DETAIL);
        }
        if self.append(&Event::Outcome(outcome)).is_err() {
            tracing::warn!("an outcome came after the journal was closed; the next start records it as unknown");
        }
    }

    /// Records `not_sent` for a permit whose record is durable but whose call was not and will not be sent.
    pub fn close_unsent(&self, request: RequestId, detail: &str) {
        self.close(Outcome {
            at: (self.clock)(),
            environment: self.environment.clone(),
            request,
            kind: OutcomeKind::NotSent,
            executed: Executed::No,
            by: None,
            detail: Some(detail.to_owned()),
            status: None,
            latency_us: 0,
            bytes: 0,
            recovered: false,
        });
    }

    /// The journal's state; see the chart at `JournalState`.
    pub fn state(&self) -> JournalState {
        if self.faulty.load(Ordering::Acquire)
            && let Some(fault) = locked(&self.fault).clone()
        {
            return JournalState::Sealed(fault);
        }
        if self.is_in_conflict() {
            return JournalState::Sealed(Sealed::Conflict);
        }
        let used = self.used(self.queue.room());
        if self.is_full(used) {
            JournalState::Sealed(Sealed::Full)
        } else if used > self.max_bytes / 10 * 7 {
            JournalState::Pressure
        } else {
            JournalState::Open
        }
    }

    /// Refuses records for this reason until `unseal`.
    pub fn seal(&self, reason: Sealed) {
        *locked(&self.fault) = Some(reason);
        self.faulty.store(true, Ordering::Release);
    }

    /// A disk that is full at the start has room later; every other fault ends the start.
    pub fn seal_if_full(&self, written: io::Result<()>) -> io::Result<()> {
        match written {
            Err(error) if is_full(&error) => {
                tracing::error!(%error, "the journal's disk is full: every call is refused until there is room");
                self.seal(Sealed::Fault(error.to_string().into()));
                Ok(())
            }
            written => written,
        }
    }

    pub fn unseal(&self) {
        self.faulty.store(false, Ordering::Release);
        *locked(&self.fault) = None;
    }

    /// Ends the state `Hung`, because the disk answered after all.
    pub fn unseal_if_hung(&self) {
        if self.faulty.load(Ordering::Acquire) && *locked(&self.fault) == Some(Sealed::Hung) {
            self.unseal();
        }
    }

    /// Notes that a write began, and wakes the watchdog.
    pub fn begin_work(&self, at: Instant, group: Arc<CommitGroup>) {
        *locked(&self.working) = Some((at, group));
        if self.dozing.swap(false, Ordering::AcqRel)
            && let Some(watchdog) = self.watchdog.get()
        {
            watchdog.unpark();
        }
    }

    /// Body of the watchdog thread: refuses the waiters of a write that takes longer than `sync_timeout`.
    pub fn watch(&self) {
        self.watchdog.get_or_init(std::thread::current);
        let pause = (self.sync_timeout / 4).max(Duration::from_millis(1));
        while !self.ended.load(Ordering::Acquire) {
            self.dozing.store(true, Ordering::Release);
            let idle = locked(&self.working).is_none();
            if idle {
                std::thread::park();
                continue;
            }
            self.dozing.store(false, Ordering::Release);
            std::thread::park_timeout(pause);
            self.fail_stuck();
        }
    }

    fn fail_stuck(&self) {
        let working = locked(&self.working);
        let Some((_, group)) = working.as_ref().filter(|(since, _)| since.elapsed() > self.sync_timeout) else {
            return;
        };
        let group = group.clone();
        // Sealed while `working` is locked: the writer clears `working` before it unseals, so it cannot unseal first.
        let known = *locked(&self.fault) == Some(Sealed::Hung);
        self.seal(Sealed::Hung);
        drop(working);
        if !known {
            tracing::error!("the journal's disk does not answer; the journal is sealed while that lasts");
        }
        group.finish(Err(Sealed::Hung));
        self.fail_waiting(&Sealed::Hung, Vec::new());
    }

    /// Called when the writer thread ends: stops the watchdog and wakes `Journal::stop`.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
        if let Some(watchdog) = self.watchdog.get() {
            watchdog.unpark();
        }
        self.end.notify_waiters();
    }

    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Refuses every queued entry that has a waiter and counts the refusals; see `Queue::fail`.
    pub fn fail_waiting(&self, reason: &Sealed, unwritten: Vec<QueuedEvent>) {
        let refused = self.queue.fail(reason, unwritten);
        self.refused.fetch_add(refused, Ordering::Relaxed);
    }

    /// Notes that a cleared call got its outcome.
    pub fn ticket_closed(&self) {
        if self.queue.call_finished() {
            self.all_closed.notify_waiters();
        }
    }

    fn without_fault(&self) -> Result<(), Sealed> {
        if self.faulty.load(Ordering::Acquire)
            && let Some(fault) = locked(&self.fault).clone()
        {
            return Err(fault);
        }
        Ok(())
    }

    fn is_in_conflict(&self) -> bool {
        self.seal_on_conflict && self.findings.conflicts() > 0
    }

    fn admit(&self, queued: u64) -> Result<(), Sealed> {
        self.without_fault()?;
        if self.is_in_conflict() {
            return Err(Sealed::Conflict);
        }
        if self.is_full(self.used(queued)) {
            Err(Sealed::Full)
        } else {
            Ok(())
        }
    }

    fn used(&self, queued: u64) -> u64 {
        self.spool.bytes.load(Ordering::Relaxed) + queued
    }

    /// Full above 95 %, and then until the spool is below 80 %, so that the state does not flap.
    fn is_full(&self, used: u64) -> bool {
        let percent = if self.full.load(Ordering::Relaxed) { 80 } else { 95 };
        let full = used > self.max_bytes / 100 * percent;
        self.full.store(full, Ordering::Relaxed);
        full
    }
}

/// What this event does to the set of open permits.
pub(super) fn permit_effect(event: &Event) -> PermitEffect {
    match event {
        Event::Decision(decision) if decision.decision == DecisionKind::Allow => PermitEffect::Opens(decision.request),
        Event::Outcome(outcome) => PermitEffect::Closes(outcome.request),
        _ => PermitEffect::Plain,
    }
}
