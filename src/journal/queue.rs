//! Between the callers and the one thread that writes: a bounded queue, gathered into groups that become durable
//! together. Callers never block: what does not fit is refused at once.

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

/// While many wait, syncs begin this far apart for each who waited for the last one, up to the greatest gap: a sync that
/// few share is dear, and with few waiting begins at once. So it does when all who shared the last one are back and no
/// call is under way: then nobody is left to wait for.
const GAP_EACH: Duration = Duration::from_micros(100);
const GREATEST_GAP: Duration = Duration::from_millis(2);
/// Records nobody waits for may lie this long to ride along with the next that somebody does.
const LAZY: Duration = Duration::from_millis(5);

/// What a record does to the permits that are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Opens(RequestId),
    Closes(RequestId),
    Plain,
}

/// One event on its way to disk.
pub(super) struct Entry {
    pub event: Vec<u8>,
    pub mark: Mark,
    /// Bytes of the spool this entry was admitted with.
    pub room: u64,
    /// Somebody waits for it, and hears if it cannot be written.
    pub awaited: bool,
}

/// Entries that become durable together.
#[derive(Default)]
pub(super) struct Batch {
    pub entries: Vec<Entry>,
    pub group: Arc<Group>,
    bytes: usize,
}

#[derive(Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    bell: Condvar,
    /// Calls that were sent and have no outcome yet.
    under_way: AtomicUsize,
}

#[derive(Default)]
struct Inner {
    batches: VecDeque<Batch>,
    records: usize,
    bytes: usize,
    awaited: usize,
    /// How many waited for the batch before.
    shared_by: u32,
    /// Room of everything queued or being written.
    room: u64,
    rest: Rest,
    closing: bool,
}

/// What the writing thread sleeps for.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Rest {
    #[default]
    Awake,
    /// Until anything comes.
    Idle,
    /// Until somebody waits, or a moment passes.
    Lazy,
    /// Until the gap is over, or a group is full.
    Gap,
    /// Until a moment passes or the journal closes.
    Sealed,
}

impl Queue {
    /// Puts an entry in line. `room` decides, with the room of all others in the queue, whether it is admitted.
    pub fn push(&self, entry: Entry, admit: impl FnOnce(u64) -> Result<(), Sealed>) -> Result<Waiter, Sealed> {
        let mut inner = locked(&self.inner);
        if inner.closing {
            return Err(Sealed::Stopped);
        }
        if entry.awaited && (inner.records >= MAX_RECORDS || inner.bytes + entry.event.len() > MAX_BYTES) {
            return Err(Sealed::Busy);
        }
        admit(inner.room)?;
        let waiter = inner.put(entry);
        let ring = inner.wakes(self.under_way());
        drop(inner);
        if ring {
            self.bell.notify_one();
        }
        Ok(waiter)
    }

    /// The next batch for the writing thread; `None` when closed and empty. `last` is when the sync before it began.
    pub fn next(&self, last: Instant) -> Option<Batch> {
        let mut inner = locked(&self.inner);
        let gap = GREATEST_GAP.min(GAP_EACH * inner.shared_by);
        let mut lazy_until = None;
        loop {
            let full = inner.batches.front().is_some_and(Batch::is_full);
            if full || inner.closing || inner.all_are_back(self.under_way()) {
                break;
            }
            let (rest, until) = match (inner.awaited, inner.records) {
                (1.., _) => (Rest::Gap, Some(last + gap)),
                (0, 1..) => (Rest::Lazy, Some(*lazy_until.get_or_insert_with(|| Instant::now() + LAZY))),
                (0, 0) => (Rest::Idle, None),
            };
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                break;
            }
            inner = self.rest(inner, rest, left);
        }
        inner.take()
    }

    /// Sleeps, unless or until the journal closes; true if it does.
    pub fn wait_out(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut inner = locked(&self.inner);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if inner.closing || left.is_zero() {
                return inner.closing;
            }
            inner = self.rest(inner, Rest::Sealed, Some(left));
        }
    }

    /// Fails everybody who waits in line, and tells how many records that were. What nobody waits for stays, after
    /// that of a batch that could not be written.
    pub fn fail(&self, reason: &Sealed, unwritten: Vec<Entry>) -> u64 {
        let mut inner = locked(&self.inner);
        let batches = std::mem::take(&mut inner.batches);
        let (groups, entries): (Vec<_>, Vec<_>) = batches.into_iter().map(|batch| (batch.group, batch.entries)).unzip();
        (inner.records, inner.bytes, inner.awaited) = (0, 0, 0);
        let mut refused = 0;
        for entry in unwritten.into_iter().chain(entries.into_iter().flatten()) {
            inner.room -= entry.room;
            match entry.awaited {
                true => refused += 1,
                // This counts its room once more.
                false => _ = inner.put(entry),
            }
        }
        drop(inner);
        for group in groups {
            group.finish(Err(reason.clone()));
        }
        refused
    }

    /// Gives back room: of entries that are on disk and counted there, or of a permit that is closed.
    pub fn release(&self, room: u64) {
        locked(&self.inner).room -= room;
    }

    pub fn room(&self) -> u64 {
        locked(&self.inner).room
    }

    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Acquire)
    }

    /// A call is sent.
    pub fn departs(&self) {
        self.under_way.fetch_add(1, Ordering::AcqRel);
    }

    /// A call has its outcome. Tells whether it was the last under way.
    pub fn arrives(&self) -> bool {
        let last = self.under_way.fetch_sub(1, Ordering::AcqRel) == 1;
        if last && locked(&self.inner).wakes(0) {
            self.bell.notify_one();
        }
        last
    }

    /// Takes no more from now on.
    pub fn close(&self) {
        locked(&self.inner).closing = true;
        self.bell.notify_one();
    }

    /// Keeps room for outcomes of permits that were opened before this start.
    pub fn reserve(&self, room: u64) {
        locked(&self.inner).room += room;
    }

    fn rest<'a>(&self, mut inner: MutexGuard<'a, Inner>, rest: Rest, left: Option<Duration>) -> MutexGuard<'a, Inner> {
        inner.rest = rest;
        let mut inner = match left {
            Some(left) => self.bell.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0,
            None => self.bell.wait(inner).unwrap_or_else(PoisonError::into_inner),
        };
        inner.rest = Rest::Awake;
        inner
    }
}

impl Inner {
    fn put(&mut self, entry: Entry) -> Waiter {
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
            seat: batch.entries.len() - 1,
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

    /// Whether nobody comes soon who does not wait already.
    fn all_are_back(&self, under_way: usize) -> bool {
        under_way == 0 && self.awaited > 0 && self.awaited >= self.shared_by as usize
    }

    fn wakes(&mut self, under_way: usize) -> bool {
        let wakes = match self.rest {
            Rest::Awake | Rest::Sealed => false,
            Rest::Idle => true,
            Rest::Lazy => self.awaited > 0 || self.batches.front().is_some_and(Batch::is_full),
            Rest::Gap => self.batches.front().is_some_and(Batch::is_full) || self.all_are_back(under_way),
        };
        if wakes {
            self.rest = Rest::Awake;
        }
        wakes
    }
}

impl Batch {
    fn is_full(&self) -> bool {
        self.entries.len() >= GROUP_RECORDS || self.bytes >= GROUP_BYTES
    }
}

/// Those who wait for one batch.
#[derive(Default)]
pub(super) struct Group(Mutex<Seats>);

#[derive(Default)]
struct Seats {
    /// Seq of the first record, once all are durable.
    verdict: Option<Result<u64, Sealed>>,
    seats: Vec<Seat>,
}

#[derive(Default, Clone)]
enum Seat {
    #[default]
    Empty,
    Waiting(Waker),
    Left,
}

/// How it went to tell those who waited.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// All of them, but for these entries whose callers had gone.
    Except(Vec<usize>),
    /// None: they had been told otherwise before.
    TooLate,
}

impl Group {
    pub fn finish(&self, verdict: Result<u64, Sealed>) -> Told {
        let mut seats = locked(&self.0);
        if seats.verdict.is_some() {
            return Told::TooLate;
        }
        seats.verdict = Some(verdict);
        let taken = std::mem::take(&mut seats.seats);
        drop(seats);
        let mut left = Vec::new();
        for (index, seat) in taken.into_iter().enumerate() {
            match seat {
                Seat::Waiting(waker) => waker.wake(),
                Seat::Left => left.push(index),
                Seat::Empty => {}
            }
        }
        Told::Except(left)
    }
}

/// Resolves to the record's seq when it is durable.
pub(super) struct Waiter {
    group: Arc<Group>,
    seat: usize,
}

impl Waiter {
    /// The caller goes away. Tells what it would have heard, if that is known already; else the writer is told.
    pub fn leave(&self) -> Option<Result<u64, Sealed>> {
        let mut seats = locked(&self.group.0);
        if seats.verdict.is_none() {
            *seats.seat(self.seat) = Seat::Left;
        }
        self.verdict(&seats)
    }

    fn verdict(&self, seats: &Seats) -> Option<Result<u64, Sealed>> {
        let verdict = seats.verdict.as_ref()?;
        Some(verdict.clone().map(|first| first + self.seat as u64))
    }
}

impl Future for Waiter {
    type Output = Result<u64, Sealed>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut seats = locked(&self.group.0);
        if let Some(verdict) = self.verdict(&seats) {
            return Poll::Ready(verdict);
        }
        match seats.seat(self.seat) {
            Seat::Waiting(waker) => waker.clone_from(context.waker()),
            seat => *seat = Seat::Waiting(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl Seats {
    fn seat(&mut self, seat: usize) -> &mut Seat {
        if self.seats.len() <= seat {
            self.seats.resize(seat + 1, Seat::Empty);
        }
        &mut self.seats[seat]
    }
}

/// A panic elsewhere leaves these values whole: each change is made in one go.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: usize = 20;

    fn push(queue: &Queue, entries: usize) {
        for _ in 0..entries {
            let entry = Entry {
                event: Vec::new(),
                mark: Mark::Plain,
                room: 0,
                awaited: true,
            };
            drop(queue.push(entry, |_| Ok(())).unwrap());
        }
    }

    /// A queue of whose last batch as many were told.
    fn told() -> Queue {
        let queue = Queue::default();
        push(&queue, MANY);
        assert_eq!(taken(&queue, Instant::now()), MANY);
        queue
    }

    fn taken(queue: &Queue, last: Instant) -> usize {
        queue.next(last).unwrap().entries.len()
    }

    /// When the gap after it is not over for as long as the test runs.
    fn just_now() -> Instant {
        Instant::now() + Duration::from_secs(3_600)
    }

    fn until_it_rests(queue: &Queue) {
        while locked(&queue.inner).rest != Rest::Gap {
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
        (0..2).for_each(|_| queue.departs());
        push(&queue, MANY);
        std::thread::scope(|scope| {
            let next = scope.spawn(|| taken(&queue, just_now()));
            until_it_rests(&queue);
            assert!(!queue.arrives());
            push(&queue, 1);
            until_it_rests(&queue);
            assert!(queue.arrives());
            assert_eq!(next.join().unwrap(), MANY + 1);
        });
    }
}
