//! Group commit: the bounded queue between the callers and the writer thread, in batches that one sync makes durable.
//!
//! A push never blocks: an entry that does not fit is refused at once. Outcomes always fit, for their permits reserved
//! the room.

use super::error::Sealed;
use crate::domain::RequestId;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

const MAX_RECORDS: usize = 4_096;
const MAX_BYTES: usize = 8 * 1024 * 1024;
const GROUP_RECORDS: usize = 256;
const GROUP_BYTES: usize = 1024 * 1024;

/// Group commit: the next sync begins this long after the last one for each waiter of that last batch, at most
/// `MAX_SYNC_GAP`, so that many callers share a sync while few hardly wait. The gap ends early when as many callers wait
/// as shared the last batch and no cleared call is open: then nobody else is expected.
const SYNC_GAP_PER_WAITER: Duration = Duration::from_micros(100);
const MAX_SYNC_GAP: Duration = Duration::from_millis(2);
/// Entries without a waiter (outcomes) stay queued at most this long, to share the sync of the next awaited entry.
const UNAWAITED_DELAY: Duration = Duration::from_millis(5);

/// What a record does to the set of open permits, those without an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PermitEffect {
    Opens(RequestId),
    Closes(RequestId),
    Plain,
}

/// An event in the queue, serialised.
pub(super) struct QueuedEvent {
    pub event: Vec<u8>,
    pub effect: PermitEffect,
    /// Spool bytes reserved for this entry when it was admitted.
    pub room: u64,
    /// A caller waits for this entry and is told if it cannot be written.
    pub awaited: bool,
}

/// Entries that one sync makes durable.
#[derive(Default)]
pub(super) struct Batch {
    pub entries: Vec<QueuedEvent>,
    pub group: Arc<CommitGroup>,
    bytes: usize,
}

#[derive(Default)]
pub(super) struct Queue {
    inner: Mutex<QueueState>,
    condvar: Condvar,
    /// Calls that were cleared and have no outcome yet.
    under_way: AtomicUsize,
}

/// The queue and what the writer thread is waiting for.
#[derive(Default)]
struct QueueState {
    batches: VecDeque<Batch>,
    records: usize,
    bytes: usize,
    /// Queued entries that have a waiter.
    awaited: usize,
    /// Waiters of the batch taken last.
    shared_by: u32,
    /// Spool bytes reserved: by entries queued or being written, and for the outcomes of open permits.
    room: u64,
    wait_state: WaitState,
    closing: bool,
}

/// What the writer thread waits for, so that others know when to wake it.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum WaitState {
    /// Not waiting.
    #[default]
    Awake,
    /// The queue is empty: until an entry is queued.
    Idle,
    /// Only outcomes are queued: until an awaited entry comes, the first batch is full, or `UNAWAITED_DELAY` has passed.
    UnawaitedDelay,
    /// Until the gap between syncs is over, the first batch is full, or nobody else is expected.
    SyncGap,
    /// The journal is sealed: until the pause is over or the journal closes.
    Sealed,
}

impl Queue {
    /// Queues an entry. `admit` is given the spool bytes reserved so far, and decides whether the spool has room for this
    /// entry.
    pub fn push(&self, entry: QueuedEvent, admit: impl FnOnce(u64) -> Result<(), Sealed>) -> Result<Waiter, Sealed> {
        let mut inner = locked(&self.inner);
        if inner.closing {
            return Err(Sealed::Stopped);
        }
        if entry.awaited && (inner.records >= MAX_RECORDS || inner.bytes + entry.event.len() > MAX_BYTES) {
            return Err(Sealed::Busy);
        }
        admit(inner.room)?;
        let waiter = inner.put(entry);
        let ring = inner.should_wake(self.under_way());
        drop(inner);
        if ring {
            self.condvar.notify_one();
        }
        Ok(waiter)
    }

    /// The next batch for the writer thread; `None` once the queue is closed and empty. `last` is when the previous write
    /// began.
    pub fn next(&self, last: Instant) -> Option<Batch> {
        let mut inner = locked(&self.inner);
        let gap = MAX_SYNC_GAP.min(SYNC_GAP_PER_WAITER * inner.shared_by);
        let mut lazy_until = None;
        loop {
            let full = inner.batches.front().is_some_and(Batch::is_full);
            if full || inner.closing || inner.all_waiters_are_back(self.under_way()) {
                break;
            }
            let (rest, until) = match (inner.awaited, inner.records) {
                (1.., _) => (WaitState::SyncGap, Some(last + gap)),
                (0, 1..) => (
                    WaitState::UnawaitedDelay,
                    Some(*lazy_until.get_or_insert_with(|| Instant::now() + UNAWAITED_DELAY)),
                ),
                (0, 0) => (WaitState::Idle, None),
            };
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                break;
            }
            inner = self.wait_in(inner, rest, left);
        }
        inner.take()
    }

    /// Sleeps for `pause` or until the queue is closed; true if it is closed.
    pub fn wait_out(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut inner = locked(&self.inner);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if inner.closing || left.is_zero() {
                return inner.closing;
            }
            inner = self.wait_in(inner, WaitState::Sealed, Some(left));
        }
    }

    /// Refuses every entry that has a waiter and returns how many those were. Entries without a waiter stay queued, in
    /// order: first those of `unwritten`, the batch that could not be written.
    pub fn fail(&self, reason: &Sealed, unwritten: Vec<QueuedEvent>) -> u64 {
        let mut inner = locked(&self.inner);
        let batches = std::mem::take(&mut inner.batches);
        let (groups, entries): (Vec<_>, Vec<_>) = batches.into_iter().map(|batch| (batch.group, batch.entries)).unzip();
        (inner.records, inner.bytes, inner.awaited) = (0, 0, 0);
        let mut refused = 0;
        for entry in unwritten.into_iter().chain(entries.into_iter().flatten()) {
            inner.room -= entry.room;
            if entry.awaited {
                refused += 1;
            } else {
                // `put` reserves its room once more.
                _ = inner.put(entry);
            }
        }
        drop(inner);
        for group in groups {
            group.finish(Err(reason.clone()));
        }
        refused
    }

    /// Frees reserved room: of entries that are on disk and counted there, or of the outcome of a closed permit.
    pub fn release(&self, room: u64) {
        locked(&self.inner).room -= room;
    }

    /// Spool bytes reserved at the moment.
    pub fn room(&self) -> u64 {
        locked(&self.inner).room
    }

    /// Calls that were cleared and have no outcome yet.
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Acquire)
    }

    /// Counts a call that was cleared.
    pub fn call_started(&self) {
        self.under_way.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts a call that got its outcome; true if no other is open.
    pub fn call_finished(&self) -> bool {
        let last = self.under_way.fetch_sub(1, Ordering::AcqRel) == 1;
        if last && locked(&self.inner).should_wake(0) {
            self.condvar.notify_one();
        }
        last
    }

    /// Refuses new entries from now on; those queued are still written.
    pub fn close(&self) {
        locked(&self.inner).closing = true;
        self.condvar.notify_one();
    }

    /// Reserves room for the outcomes of permits that earlier incarnations left open.
    pub fn reserve(&self, room: u64) {
        locked(&self.inner).room += room;
    }

    /// Waits on the condition variable, after noting for what.
    fn wait_in<'a>(
        &self,
        mut inner: MutexGuard<'a, QueueState>,
        rest: WaitState,
        left: Option<Duration>,
    ) -> MutexGuard<'a, QueueState> {
        inner.wait_state = rest;
        let mut inner = match left {
            Some(left) => {
                self.condvar
                    .wait_timeout(inner, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
            None => self.condvar.wait(inner).unwrap_or_else(PoisonError::into_inner),
        };
        inner.wait_state = WaitState::Awake;
        inner
    }
}

impl QueueState {
    fn put(&mut self, entry: QueuedEvent) -> Waiter {
        if self.batches.back().is_none_or(Batch::is_full) {
            self.batches.push_back(Batch::default());
        }
        let batch = self.batches.back_mut().expect("a batch was just made sure of");
        self.records += 1;
        self.bytes += entry.event.len();
        self.awaited += usize::from(entry.awaited);
        self.room += entry.room;
        batch.bytes += entry.event.len();
        batch.entries.push(entry);
        Waiter {
            group: batch.group.clone(),
            slot: batch.entries.len() - 1,
        }
    }

    fn take(&mut self) -> Option<Batch> {
        let batch = self.batches.pop_front()?;
        self.records -= batch.entries.len();
        self.bytes -= batch.bytes;
        let awaited = batch.entries.iter().filter(|entry| entry.awaited).count();
        self.awaited -= awaited;
        self.shared_by = awaited as u32;
        Some(batch)
    }

    /// Whether no further caller is expected: no call is open, and as many wait as shared the last batch.
    fn all_waiters_are_back(&self, under_way: usize) -> bool {
        under_way == 0 && self.awaited > 0 && self.awaited >= self.shared_by as usize
    }

    /// Whether the writer thread must be woken; notes that it was, so that it is woken once.
    fn should_wake(&mut self, under_way: usize) -> bool {
        let wakes = match self.wait_state {
            WaitState::Awake | WaitState::Sealed => false,
            WaitState::Idle => true,
            WaitState::UnawaitedDelay => self.awaited > 0 || self.batches.front().is_some_and(Batch::is_full),
            WaitState::SyncGap => self.batches.front().is_some_and(Batch::is_full) || self.all_waiters_are_back(under_way),
        };
        if wakes {
            self.wait_state = WaitState::Awake;
        }
        wakes
    }
}

impl Batch {
    fn is_full(&self) -> bool {
        self.entries.len() >= GROUP_RECORDS || self.bytes >= GROUP_BYTES
    }
}

/// The waiters of one batch and the result they get.
#[derive(Default)]
pub(super) struct CommitGroup(Mutex<WaiterSlots>);

#[derive(Default)]
struct WaiterSlots {
    /// The batch's result: the seq of its first record once all are durable, or why it failed.
    verdict: Option<Result<u64, Sealed>>,
    /// One slot for each entry that was polled or abandoned, by its index in the batch.
    slots: Vec<WaiterSlot>,
}

#[derive(Default, Clone)]
enum WaiterSlot {
    #[default]
    Empty,
    Waiting(Waker),
    /// The caller dropped its waiter before the result was known.
    Left,
}

/// Which waiters `CommitGroup::finish` reached.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum WakeResult {
    /// All, except the waiters of these entries, which were dropped before.
    Except(Vec<usize>),
    /// None: the group had a result already, given by the watchdog.
    TooLate,
}

impl CommitGroup {
    /// Sets the result and wakes the waiters; only the first result counts.
    pub fn finish(&self, verdict: Result<u64, Sealed>) -> WakeResult {
        let mut slots = locked(&self.0);
        if slots.verdict.is_some() {
            return WakeResult::TooLate;
        }
        slots.verdict = Some(verdict);
        let taken = std::mem::take(&mut slots.slots);
        drop(slots);
        let mut left = Vec::new();
        for (index, slot) in taken.into_iter().enumerate() {
            match slot {
                WaiterSlot::Waiting(waker) => waker.wake(),
                WaiterSlot::Left => left.push(index),
                WaiterSlot::Empty => {}
            }
        }
        WakeResult::Except(left)
    }
}

/// A future that resolves to the record's seq when it is durable, or to the reason why it was refused.
pub(super) struct Waiter {
    group: Arc<CommitGroup>,
    slot: usize,
}

impl Waiter {
    /// The caller gives up. Returns the result if it is known; otherwise the writer learns of it through `WakeResult::Except`.
    pub fn leave(&self) -> Option<Result<u64, Sealed>> {
        let mut slots = locked(&self.group.0);
        if slots.verdict.is_none() {
            *slots.slot(self.slot) = WaiterSlot::Left;
        }
        self.verdict(&slots)
    }

    fn verdict(&self, slots: &WaiterSlots) -> Option<Result<u64, Sealed>> {
        let verdict = slots.verdict.as_ref()?;
        Some(verdict.clone().map(|first| first + self.slot as u64))
    }
}

impl Future for Waiter {
    type Output = Result<u64, Sealed>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slots = locked(&self.group.0);
        if let Some(verdict) = self.verdict(&slots) {
            return Poll::Ready(verdict);
        }
        match slots.slot(self.slot) {
            WaiterSlot::Waiting(waker) => waker.clone_from(context.waker()),
            slot => *slot = WaiterSlot::Waiting(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl WaiterSlots {
    fn slot(&mut self, slot: usize) -> &mut WaiterSlot {
        if self.slots.len() <= slot {
            self.slots.resize(slot + 1, WaiterSlot::Empty);
        }
        &mut self.slots[slot]
    }
}

/// Locks a mutex even if it is poisoned: every change under these locks is one step, so a panic leaves no half-made
/// change.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: usize = 20;

    fn push(queue: &Queue, entries: usize) {
        for _ in 0..entries {
            let entry = QueuedEvent {
                event: Vec::new(),
                effect: PermitEffect::Plain,
                room: 0,
                awaited: true,
            };
            drop(queue.push(entry, |_| Ok(())).unwrap());
        }
    }

    /// A queue whose last batch had `MANY` waiters.
    fn told() -> Queue {
        let queue = Queue::default();
        push(&queue, MANY);
        assert_eq!(taken(&queue, Instant::now()), MANY);
        queue
    }

    fn taken(queue: &Queue, last: Instant) -> usize {
        queue.next(last).unwrap().entries.len()
    }

    /// A time so late that the gap after it outlasts the test.
    fn just_now() -> Instant {
        Instant::now() + Duration::from_secs(3_600)
    }

    fn until_it_rests(queue: &Queue) {
        while locked(&queue.inner).wait_state != WaitState::SyncGap {
            std::thread::yield_now();
        }
    }

    #[test]
    fn nobody_is_waited_for_when_all_are_back() {
        let queue = told();
        push(&queue, MANY);
        assert_eq!(taken(&queue, just_now()), MANY);
    }

    #[test]
    fn whoever_is_not_back_is_waited_for() {
        let queue = told();
        push(&queue, MANY - 1);
        std::thread::scope(|scope| {
            let next = scope.spawn(|| taken(&queue, just_now()));
            until_it_rests(&queue);
            push(&queue, 1);
            assert_eq!(next.join().unwrap(), MANY);
        });
    }

    #[test]
    fn calls_under_way_are_waited_for() {
        let queue = told();
        (0..2).for_each(|_| queue.call_started());
        push(&queue, MANY);
        std::thread::scope(|scope| {
            let next = scope.spawn(|| taken(&queue, just_now()));
            until_it_rests(&queue);
            assert!(!queue.call_finished());
            push(&queue, 1);
            until_it_rests(&queue);
            assert!(queue.call_finished());
            assert_eq!(next.join().unwrap(), MANY + 1);
        });
    }
}
