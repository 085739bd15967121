//! What the callers, the writing thread, its watchdog and the shipper have in common.
//!
//! Here it is decided whether a record is let in, and what state the journal is in. Nothing here touches the disk.

use super::error::{Sealed, State};
use super::fit;
use super::queue::{Entry, Group, Mark, Queue, Waiter, locked};
use super::spool::Spool;
use crate::domain::{Decided, Ending, EnvironmentName, Event, Outcome, RequestId, Timestamp};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Bytes of the spool that each open permit keeps free for its outcome.
pub(super) const OUTCOME_ROOM: u64 = 2_048;
/// So many characters of an outcome's detail fit into that room, however they are escaped.
const OUTCOME_DETAIL: usize = 200;
/// What a frame, an envelope and a share of the batch header add to an event, at most.
const OVERHEAD: u64 = 256;

pub(super) type Clock = Box<dyn Fn() -> Timestamp + Send + Sync>;
pub(super) type Observer = Box<dyn Fn(Duration) + Send + Sync>;

pub(super) struct Shared {
    pub queue: Queue,
    pub spool: Arc<Spool>,
    pub environment: EnvironmentName,
    pub clock: Clock,
    pub max_bytes: u64,
    pub sync_timeout: Duration,
    /// Why nothing can be written now.
    pub fault: Mutex<Option<Sealed>>,
    pub faulty: AtomicBool,
    /// Above 95 % until below 80 %.
    pub full: AtomicBool,
    /// The disk operation under way: when it began, and who waits for it.
    pub working: Mutex<Option<(Instant, Arc<Group>)>>,
    pub refused: AtomicU64,
    pub all_closed: Notify,
    pub shipper_waits: AtomicBool,
    pub shipper: Notify,
    pub ship_error: Mutex<Option<String>>,
    pub observer: OnceLock<Observer>,
    /// The journal closes in good order, with a record of it.
    pub stopping: AtomicBool,
    ended: AtomicBool,
    pub end: Notify,
    /// The watchdog sleeps until there is work to watch.
    watchdog: OnceLock<Thread>,
    dozing: AtomicBool,
}

impl Shared {
    pub fn new(spool: Arc<Spool>, environment: EnvironmentName, clock: Clock, max_bytes: u64, sync_timeout: Duration) -> Self {
        Self {
            queue: Queue::default(),
            spool,
            environment,
            clock,
            max_bytes,
            sync_timeout,
            fault: Mutex::default(),
            faulty: AtomicBool::new(false),
            full: AtomicBool::new(false),
            working: Mutex::default(),
            refused: AtomicU64::new(0),
            all_closed: Notify::new(),
            shipper_waits: AtomicBool::new(false),
            shipper: Notify::new(),
            ship_error: Mutex::default(),
            observer: OnceLock::new(),
            stopping: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            end: Notify::new(),
            watchdog: OnceLock::new(),
            dozing: AtomicBool::new(false),
        }
    }

    /// Puts an event in line; the waiter tells when it is durable.
    pub fn append(&self, event: &Event) -> Result<Waiter, Sealed> {
        let mark = mark(event);
        let bytes = fit::serialise(event);
        let outcome = matches!(mark, Mark::Closes(_));
        let frame = bytes.len() as u64 + OVERHEAD;
        let entry = Entry {
            event: bytes,
            mark,
            room: match mark {
                Mark::Opens(_) => frame + OUTCOME_ROOM,
                // Its permit reserved it.
                Mark::Closes(_) => 0,
                Mark::Plain => frame,
            },
            awaited: !outcome,
        };
        let room = entry.room;
        let result = self.queue.push(entry, |queued| match outcome {
            true => Ok(()),
            false => self.admit(queued + room),
        });
        if result.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    /// Records how a permit ended; its room was reserved, so only a closed journal refuses.
    pub fn close(&self, mut outcome: Outcome) {
        if let Some(detail) = &mut outcome.detail {
            fit::cut(detail, OUTCOME_DETAIL);
        }
        if self.append(&Event::Outcome(outcome)).is_err() {
            tracing::warn!("an outcome came after the journal was closed; the next start records it as unknown");
        }
    }

    /// The permit's record is durable, but the call was not sent and never will be.
    pub fn close_unsent(&self, request: RequestId, detail: &str) {
        self.close(Outcome {
            at: (self.clock)(),
            environment: self.environment.clone(),
            request,
            ending: Ending::Aborted,
            detail: Some(detail.to_owned()),
            status: None,
            tool_error: None,
            latency_us: 0,
            bytes: 0,
            recovered: false,
        });
    }

    pub fn state(&self) -> State {
        if self.faulty.load(Ordering::Acquire)
            && let Some(fault) = locked(&self.fault).clone()
        {
            return State::Sealed(fault);
        }
        let used = self.used(self.queue.room());
        if self.is_full(used) {
            State::Sealed(Sealed::Full)
        } else if used > self.max_bytes / 10 * 7 {
            State::Pressure
        } else {
            State::Open
        }
    }

    pub fn seal(&self, reason: Sealed) {
        *locked(&self.fault) = Some(reason);
        self.faulty.store(true, Ordering::Release);
    }

    pub fn unseal(&self) {
        self.faulty.store(false, Ordering::Release);
        *locked(&self.fault) = None;
    }

    /// The disk answered after all.
    pub fn unseal_if_hung(&self) {
        if self.faulty.load(Ordering::Acquire) && *locked(&self.fault) == Some(Sealed::Hung) {
            self.unseal();
        }
    }

    pub fn begin_work(&self, at: Instant, group: Arc<Group>) {
        *locked(&self.working) = Some((at, group));
        if self.dozing.swap(false, Ordering::AcqRel)
            && let Some(watchdog) = self.watchdog.get()
        {
            watchdog.unpark();
        }
    }

    /// The watchdog's thread: frees those who wait when the disk does not answer in time.
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
            self.free_the_stuck();
        }
    }

    fn free_the_stuck(&self) {
        let working = locked(&self.working);
        let Some((_, group)) = working.as_ref().filter(|(since, _)| since.elapsed() > self.sync_timeout) else {
            return;
        };
        let group = group.clone();
        // Under the lock, so that the writer unseals after this and not before.
        let known = *locked(&self.fault) == Some(Sealed::Hung);
        self.seal(Sealed::Hung);
        drop(working);
        if !known {
            tracing::error!("the journal's disk does not answer; the journal is sealed while that lasts");
        }
        group.finish(Err(Sealed::Hung));
        self.fail_waiting(&Sealed::Hung, Vec::new());
    }

    /// The writing thread is done.
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

    /// Tells everybody who waits in line no. What nobody waits for stays, after that of a batch that was not written.
    pub fn fail_waiting(&self, reason: &Sealed, unwritten: Vec<Entry>) {
        let refused = self.queue.fail(reason, unwritten);
        self.refused.fetch_add(refused, Ordering::Relaxed);
    }

    pub fn ticket_closed(&self) {
        if self.queue.arrives() {
            self.all_closed.notify_waiters();
        }
    }

    fn admit(&self, queued: u64) -> Result<(), Sealed> {
        if self.faulty.load(Ordering::Acquire)
            && let Some(fault) = locked(&self.fault).clone()
        {
            return Err(fault);
        }
        match self.is_full(self.used(queued)) {
            true => Err(Sealed::Full),
            false => Ok(()),
        }
    }

    fn used(&self, queued: u64) -> u64 {
        self.spool.bytes.load(Ordering::Relaxed) + queued
    }

    fn is_full(&self, used: u64) -> bool {
        let percent = match self.full.load(Ordering::Relaxed) {
            true => 80,
            false => 95,
        };
        let full = used > self.max_bytes / 100 * percent;
        self.full.store(full, Ordering::Relaxed);
        full
    }
}

pub(super) fn mark(event: &Event) -> Mark {
    match event {
        Event::Decision(decision) if decision.decision == Decided::Allow => Mark::Opens(decision.request),
        Event::Outcome(outcome) => Mark::Closes(outcome.request),
        _ => Mark::Plain,
    }
}
