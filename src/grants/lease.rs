//! How old the copy is, how young somebody needs it, and who waits: the meeting point of calls and the one task.
//! Asks nothing of the store itself.

use crate::domain::Reason;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

/// All instants are kept as nanoseconds since `start`.
#[derive(Debug)]
pub(super) struct Lease {
    start: Instant,
    /// The instant before the question was sent whose answer is applied.
    fresh_at: AtomicU64,
    /// The youngest anybody has asked for.
    wanted: AtomicU64,
    /// After a failure, when the store may be asked again.
    not_before: AtomicU64,
    wake: Notify,
    results: watch::Sender<RefreshResult>,
}

/// The end of one confirmation.
#[derive(Debug, Clone, Default)]
struct RefreshResult {
    failure: Option<RefreshFailure>,
}

/// Why a confirmation failed.
#[derive(Debug, Clone)]
pub(super) struct RefreshFailure {
    pub(super) why: Arc<str>,
    /// What a call that needs a confirmation is refused with.
    pub(super) reason: Reason,
}

/// Nothing young enough came in time.
#[derive(Debug)]
pub(super) struct NotFresh {
    pub(super) retry_after: Duration,
    /// The last failure; `None` where no answer came in time.
    pub(super) failure: Option<RefreshFailure>,
}

impl Lease {
    pub(super) fn new(start: Instant) -> Self {
        Self {
            start,
            fresh_at: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            not_before: AtomicU64::new(0),
            wake: Notify::new(),
            results: watch::Sender::default(),
        }
    }

    pub(super) fn fresh_at(&self) -> Instant {
        self.instant(self.fresh_at.load(Ordering::Acquire))
    }

    /// Asks for a confirmation that is as young as `need`, unless the store has just failed. A confirmation under way that is
    /// young enough counts.
    pub(super) fn want(&self, need: Instant, now: Instant) {
        if self.not_before() <= now {
            self.demand(need);
        }
    }

    /// The same at once, whatever has just failed.
    pub(super) fn hint(&self, now: Instant) {
        self.not_before.store(0, Ordering::Release);
        self.demand(now);
    }

    /// Waits until a confirmation is good enough, at most `timeout` from `arrived`. One failure fails all who wait.
    pub(super) async fn wait(
        &self,
        arrived: Instant,
        need: Instant,
        timeout: Duration,
        enough: impl Fn(Instant) -> bool,
    ) -> Result<(), NotFresh> {
        let deadline = arrived + timeout;
        let mut rounds = self.results.subscribe();
        loop {
            if enough(self.fresh_at()) {
                return Ok(());
            }
            if self.not_before() > deadline {
                return Err(self.failed(rounds.borrow().failure.clone()));
            }
            self.demand(need);
            match timeout_at(deadline, rounds.changed()).await {
                Ok(Ok(())) => {
                    let failure = rounds.borrow_and_update().failure.clone();
                    if failure.is_some() && !enough(self.fresh_at()) {
                        return Err(self.failed(failure));
                    }
                }
                Ok(Err(_)) | Err(_) => return Err(self.failed(rounds.borrow().failure.clone())),
            }
        }
    }

    /// Why the last confirmation failed, if it did.
    pub(super) fn failure(&self) -> Option<RefreshFailure> {
        self.results.borrow().failure.clone()
    }

    // ↓ for the one task

    /// Until somebody wants something younger than there is.
    pub(super) async fn called(&self) {
        while self.wanted.load(Ordering::Acquire) <= self.fresh_at.load(Ordering::Acquire) {
            self.wake.notified().await;
        }
    }

    /// Until the store may be asked: not before `earliest`, and not while backing off, which a hint ends.
    pub(super) async fn allowed(&self, earliest: Instant) {
        loop {
            let next = self.not_before().max(earliest);
            if next <= Instant::now() {
                return;
            }
            tokio::select! {
                () = sleep_until(next) => return,
                () = self.wake.notified() => {}
            }
        }
    }

    pub(super) fn confirmed(&self, sent: Instant) {
        self.fresh_at.fetch_max(self.nanos(sent), Ordering::AcqRel);
        self.results.send_replace(RefreshResult { failure: None });
    }

    /// Whoever still wants something asks again; nobody is asked for in the meantime.
    pub(super) fn failed_until(&self, until: Instant, failure: RefreshFailure) {
        self.not_before.store(self.nanos(until), Ordering::Release);
        self.wanted.store(0, Ordering::Release);
        self.results.send_replace(RefreshResult { failure: Some(failure) });
    }

    fn not_before(&self) -> Instant {
        self.instant(self.not_before.load(Ordering::Acquire))
    }

    fn demand(&self, need: Instant) {
        self.wanted.fetch_max(self.nanos(need), Ordering::AcqRel);
        self.wake.notify_one();
    }

    fn failed(&self, failure: Option<RefreshFailure>) -> NotFresh {
        let pause = self.not_before().saturating_duration_since(Instant::now());
        NotFresh {
            retry_after: pause.max(Duration::from_secs(1)),
            failure,
        }
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX)
    }

    fn instant(&self, nanos: u64) -> Instant {
        self.start + Duration::from_nanos(nanos)
    }
}
