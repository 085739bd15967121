//! The one task that asks the store and writes the copy. It sleeps until somebody wants to know something younger; it has no
//! timer of its own that asks.

use super::directory_source::DirectorySource;
use super::lease::RefreshFailure;
use super::unreadable::Unreadable;
use super::{Changes, GrantsState};
use crate::domain::{Backoff, Reason};
use crate::store::{Anchor, CatchUp, Delta, Directory, StoreError};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

pub(super) struct Refresher {
    source: DirectorySource,
    shared: Arc<GrantsState>,
    anchor: Anchor,
    loaded_at: Instant,
    asked_at: Instant,
    backoff: Backoff,
    unreadable: Unreadable,
}

/// Two questions are never closer than this, whoever asks for them.
const PAUSE: Duration = Duration::from_millis(20);
/// After a failure, doubled with each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// A question without an answer after this counts as failed.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The same for a whole directory.
const LOAD_WITHIN: Duration = Duration::from_secs(120);
/// A copy that has only been followed for this long is read anew, in case the feed itself ever lost something.
const RELOAD_AFTER: Duration = Duration::from_secs(24 * 3_600);

/// So many of those left out are read at once when there is room.
const LOADED_AT_ONCE: usize = 100;

enum Fetched {
    Whole(Directory),
    Since(Delta),
}

#[derive(Debug, thiserror::Error)]
enum RefreshError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the store did not answer in time")]
    NoAnswer,
}

impl RefreshError {
    fn reason(&self) -> Reason {
        match self {
            Self::Store(StoreError::FeedMissing { .. }) => Reason::FeedMissing,
            Self::Store(_) | Self::NoAnswer => Reason::StaleAuthorization,
        }
    }
}

impl Refresher {
    pub(super) fn load(source: DirectorySource, shared: Arc<GrantsState>, directory: Directory, sent: Instant) -> Self {
        let mut refresher = Self {
            source,
            shared,
            anchor: directory.anchor.clone(),
            loaded_at: sent,
            asked_at: sent,
            backoff: Backoff::new(FIRST_BACKOFF, LONGEST_BACKOFF),
            unreadable: Unreadable::default(),
        };
        refresher.apply_directory(directory, sent);
        refresher
    }

    /// From now on what was loaded may be decided upon.
    pub(super) fn admit(&self) {
        self.shared.lease.confirmed(self.loaded_at);
        self.shared.admitted.store(true, Ordering::Release);
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let shared = self.shared.clone();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = shared.lease.called() => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = shared.lease.allowed(self.asked_at + PAUSE) => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.confirm() => {}
            }
        }
    }

    /// One question, its answer applied, and everybody told. The copy counts as of the instant before the question.
    async fn confirm(&mut self) {
        let sent = Instant::now();
        self.asked_at = sent;
        self.shared.confirms.fetch_add(1, Ordering::Relaxed);
        let done = match self.ask().await {
            Ok(Fetched::Since(delta)) => {
                self.apply_delta(delta);
                Ok(())
            }
            Ok(Fetched::Whole(directory)) => {
                self.apply_directory(directory, sent);
                Ok(())
            }
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => {
                if self.backoff.failures() > 0 {
                    tracing::info!(failures = self.backoff.failures(), "authorisations are confirmed again");
                }
                self.backoff.reset();
                self.shared.lease.confirmed(sent);
                self.fill_the_room().await;
            }
            Err(error) => self.fail(&error),
        }
    }

    async fn ask(&self) -> Result<Fetched, RefreshError> {
        if self.loaded_at.elapsed() < RELOAD_AFTER {
            match timeout(ANSWER_WITHIN, self.source.catch_up(&self.anchor)).await {
                Ok(Ok(CatchUp::Since(delta))) => return Ok(Fetched::Since(delta)),
                // An empty feed has no anchor to go on from.
                Ok(Ok(CatchUp::Reload)) if self.anchor.is_start() => {}
                Ok(Ok(CatchUp::Reload)) => {
                    tracing::warn!(
                        seq = self.anchor.seq,
                        "the change feed cannot be followed from here (a restore, a failover, another trigger or view, or very many changes): loading all anew"
                    );
                    if let Some(observe) = self.shared.other_history.get() {
                        observe();
                    }
                }
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Err(RefreshError::NoAnswer),
            }
        }
        match timeout(LOAD_WITHIN, self.source.directory()).await {
            Ok(directory) => Ok(Fetched::Whole(directory?)),
            Err(_) => Err(RefreshError::NoAnswer),
        }
    }

    fn fail(&mut self, error: &RefreshError) {
        let delay = self.backoff.failed();
        self.shared.failures.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(error = %error, failures = self.backoff.failures(), "authorisations could not be confirmed");
        let failure = RefreshFailure {
            why: error.to_string().into(),
            reason: error.reason(),
        };
        self.shared.lease.failed_until(Instant::now() + delay, failure);
    }

    /// Loads some of those who were left out, where others are gone. After everybody is told that the copy is fresh: nobody
    /// waits for this, and the feed tells anew of whoever changes meanwhile.
    async fn fill_the_room(&mut self) {
        let users = self.shared.cache.to_be_loaded(LOADED_AT_ONCE);
        if users.is_empty() {
            return;
        }
        match timeout(ANSWER_WITHIN, self.source.members(&users, &self.anchor)).await {
            Ok(Ok(delta)) => self.apply_changes(delta),
            Ok(Err(error)) => tracing::warn!(%error, "users for whom there is room again are not loaded yet"),
            Err(_) => tracing::warn!("users for whom there is room again are not loaded yet: no answer in time"),
        }
    }

    /// With more users than may be held, those held before stay, and of the others come those enrolled longest. So a restart
    /// finds the same people as the run before it, as far as that can be known, and each instance the same ones: which users
    /// are turned away hangs neither on chance nor on their ids. To turn everybody away for the sake of those above the limit,
    /// at the next start or the next full load, would be the worse fault.
    fn apply_directory(&mut self, directory: Directory, sent: Instant) {
        let before = self.shared.cache.left_out().len();
        let cache = &self.shared.cache;
        // Revocations first: nobody is let in by the old ones and the new members.
        cache.replace_revocations(directory.revocations);
        cache.replace_members(directory.members);
        cache.replace_registry(directory.registry);
        self.unreadable.replace(directory.unreadable);
        self.tell_of_those_left_out(before);
        self.anchor = directory.anchor;
        self.loaded_at = sent;
        self.shared.reloads.fetch_add(1, Ordering::Relaxed);
        let generation = self.applied();
        self.shared.changes.send_replace(Changes {
            registry: generation,
            catalogue: generation,
        });
    }

    fn apply_delta(&mut self, delta: Delta) {
        if delta.anchor != self.anchor {
            self.apply_changes(delta);
        }
    }

    fn apply_changes(&mut self, mut delta: Delta) {
        self.unreadable.apply(&mut delta);
        let before = self.shared.cache.left_out().len();
        let cache = &self.shared.cache;
        if let Some(revocations) = delta.revocations {
            cache.replace_revocations(revocations);
        }
        for (id, member) in delta.members {
            match member {
                Some(member) => cache.put(member),
                None => cache.remove(&id),
            }
        }
        self.tell_of_those_left_out(before);
        let registry_changed = delta.registry.is_some();
        if let Some(registry) = delta.registry {
            cache.replace_registry(registry);
        }
        self.anchor = delta.anchor;
        let generation = self.applied();
        if let Some(observe) = self.shared.observer.get() {
            delta.committed.into_iter().for_each(observe);
        }
        if registry_changed || delta.catalogue_changed {
            self.shared.changes.send_modify(|changes| {
                if registry_changed {
                    changes.registry = generation;
                }
                if delta.catalogue_changed {
                    changes.catalogue = generation;
                }
            });
        }
    }

    fn tell_of_those_left_out(&self, before: usize) {
        let cache = &self.shared.cache;
        let (loaded, left_out, max) = (cache.members(), cache.left_out().len(), cache.max());
        if left_out > before {
            tracing::error!(
                loaded,
                left_out,
                max,
                "more users are enrolled than `grants.max_members` allows: those enrolled last are refused; raise it and restart"
            );
        } else if left_out == 0 && before > 0 {
            tracing::info!(loaded, "all users are loaded again");
        }
    }

    /// After everything is written and before it counts as fresh: who looked before sees the generation move.
    fn applied(&self) -> u64 {
        self.shared.seq.store(self.anchor.seq, Ordering::Release);
        self.shared.unreadable.store(Arc::new(self.unreadable.counts()));
        self.shared.generation.fetch_add(1, Ordering::AcqRel) + 1
    }
}
