//! The one task that asks the store and writes the copy. It sleeps until somebody wants to know something younger; it has no
//! timer of its own that asks.

use super::lease::Failure;
use super::source::Source;
use super::unreadable::Unreadable;
use super::{Changes, GrantsError, Shared};
use crate::domain::Reason;
use crate::store::{Anchor, CatchUp, Delta, Directory, StoreError};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

pub(super) struct Keeper {
    source: Source,
    shared: Arc<Shared>,
    anchor: Anchor,
    loaded_at: Instant,
    asked_at: Instant,
    failures: u32,
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

enum Answer {
    Whole(Directory),
    Since(Delta),
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the store did not answer in time")]
    NoAnswer,
    #[error(transparent)]
    Refused(#[from] GrantsError),
}

impl Fault {
    fn reason(&self) -> Reason {
        match self {
            Self::Store(StoreError::FeedMissing { .. }) => Reason::FeedMissing,
            Self::Store(_) | Self::NoAnswer | Self::Refused(_) => Reason::StaleAuthorization,
        }
    }
}

impl Keeper {
    pub(super) fn load(source: Source, shared: Arc<Shared>, directory: Directory, sent: Instant) -> Result<Self, GrantsError> {
        let mut keeper = Self {
            source,
            shared,
            anchor: directory.anchor.clone(),
            loaded_at: sent,
            asked_at: sent,
            failures: 0,
            unreadable: Unreadable::default(),
        };
        keeper.apply_directory(directory, sent)?;
        keeper.shared.lease.confirmed(sent);
        Ok(keeper)
    }

    pub(super) async fn keep(mut self, stop: CancellationToken) {
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
            Ok(Answer::Since(delta)) => {
                self.apply_delta(delta);
                Ok(())
            }
            Ok(Answer::Whole(directory)) => self.apply_directory(directory, sent).map_err(Fault::from),
            Err(fault) => Err(fault),
        };
        match done {
            Ok(()) => {
                if self.failures > 0 {
                    tracing::info!(failures = self.failures, "authorisations are confirmed again");
                }
                self.failures = 0;
                self.shared.lease.confirmed(sent);
            }
            Err(fault) => self.fail(&fault),
        }
    }

    async fn ask(&self) -> Result<Answer, Fault> {
        if self.loaded_at.elapsed() < RELOAD_AFTER {
            match timeout(ANSWER_WITHIN, self.source.catch_up(&self.anchor)).await {
                Ok(Ok(CatchUp::Since(delta))) => return Ok(Answer::Since(delta)),
                // An empty feed has no anchor to go on from.
                Ok(Ok(CatchUp::Reload)) if self.anchor.is_start() => {}
                Ok(Ok(CatchUp::Reload)) => tracing::warn!(
                    seq = self.anchor.seq,
                    "the change feed cannot be followed from here (a restore, a failover, another trigger or view, or very many changes): loading all anew"
                ),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Err(Fault::NoAnswer),
            }
        }
        match timeout(LOAD_WITHIN, self.source.directory()).await {
            Ok(directory) => Ok(Answer::Whole(directory?)),
            Err(_) => Err(Fault::NoAnswer),
        }
    }

    fn fail(&mut self, fault: &Fault) {
        let backoff = FIRST_BACKOFF.saturating_mul(1 << self.failures.min(16)).min(LONGEST_BACKOFF);
        self.failures = self.failures.saturating_add(1);
        self.shared.failures.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(error = %fault, failures = self.failures, "authorisations could not be confirmed");
        let failure = Failure {
            why: fault.to_string().into(),
            reason: fault.reason(),
        };
        self.shared.lease.failed_until(Instant::now() + backoff, failure);
    }

    fn apply_directory(&mut self, directory: Directory, sent: Instant) -> Result<(), GrantsError> {
        let (found, max) = (directory.members.len(), self.shared.cache.max());
        if found > max {
            return Err(GrantsError::TooMany { found, max });
        }
        let cache = &self.shared.cache;
        // Revocations first: nobody is let in by the old ones and the new members.
        cache.replace_revocations(directory.revocations);
        cache.replace_members(directory.members);
        cache.replace_registry(directory.registry);
        self.unreadable.replace(directory.unreadable);
        self.anchor = directory.anchor;
        self.loaded_at = sent;
        self.shared.reloads.fetch_add(1, Ordering::Relaxed);
        let generation = self.applied();
        self.shared.changes.send_replace(Changes {
            registry: generation,
            catalogue: generation,
        });
        Ok(())
    }

    fn apply_delta(&mut self, mut delta: Delta) {
        if delta.anchor == self.anchor {
            return;
        }
        self.unreadable.apply(&mut delta);
        let cache = &self.shared.cache;
        if let Some(revocations) = delta.revocations {
            cache.replace_revocations(revocations);
        }
        for (id, member) in delta.members {
            let kept = match member {
                Some(member) => cache.put(member),
                None => {
                    cache.remove(&id);
                    true
                }
            };
            if !kept {
                tracing::error!(user = %id, max = cache.max(), "a new user is not loaded: `grants.max_members` is reached");
            }
        }
        let registry_changed = delta.registry.is_some();
        if let Some(registry) = delta.registry {
            cache.replace_registry(registry);
        }
        self.anchor = delta.anchor;
        let generation = self.applied();
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

    /// After everything is written and before it counts as fresh: who looked before sees the generation move.
    fn applied(&self) -> u64 {
        self.shared.seq.store(self.anchor.seq, Ordering::Release);
        self.shared.unreadable.store(Arc::new(self.unreadable.counts()));
        let generation = self.shared.generation.fetch_add(1, Ordering::AcqRel) + 1;
        self.shared.applied.send_replace(generation);
        generation
    }
}
