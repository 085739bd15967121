//! Who is enrolled and holds which grants: a copy of the store's directory in memory, held under a lease.
//!
//! The lease: every confirmation asks the change feed what was committed since, so the copy is known to be no older than the
//! instant before that question. Calls are served while it is young enough, cause a confirmation when it is not so young, and
//! wait for one, or are refused, when it is too old. Without calls nothing is asked, so an idle database may sleep.
//! One task writes the copy; a reader that misses never loads. Decides nothing: what a grant allows is `decide`'s.

mod cache;
mod directory_source;
#[cfg(test)]
mod fake_store;
mod lease;
mod negative_cache;
mod refresher;
mod revocations;
#[cfg(test)]
mod tests;
mod unloaded;
mod unreadable;

pub use unreadable::UnreadableRows;

use crate::config::GrantsConfig;
use crate::domain::{
    ApiKey, EnvironmentName, GrantId, GrantStatus, Issuer, KeyId, Member, MemberStatus, Principal, Reason, ServerName, Subject,
    Timestamp, UserId,
};
use crate::store::{RegistryRow, Store, StoreError};
use arc_swap::ArcSwap;
use cache::Cache;
use directory_source::DirectorySource;
use lease::Lease;
use negative_cache::NegativeCache;
use refresher::Refresher;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The directory in memory and the task that keeps it.
pub struct Grants {
    shared: Arc<GrantsState>,
    source: DirectorySource,
    /// Loaded, and not admitted yet.
    loaded: Mutex<Option<Refresher>>,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// How much is known, at one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantsView {
    /// Position of the change feed.
    pub seq: i64,
    /// No change older than this is missing.
    pub age: Duration,
    /// Counts applied changes. Taken before a look-up, it tells later whether the look-up still holds.
    pub generation: u64,
}

/// The directory is too old to decide upon, and could not be confirmed in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("authorisations were last confirmed {} ms ago", .age.as_millis())]
pub struct Stale {
    pub age: Duration,
    pub retry_after: Duration,
    /// What a call is refused with.
    pub reason: Reason,
    /// Why the last confirmation failed, for the log.
    pub why: Option<Arc<str>>,
}

#[derive(Debug, thiserror::Error)]
pub enum GrantsError {
    #[error("cannot load users and grants")]
    Store(#[from] StoreError),
}

/// What a decision stood upon, for a last look before the call is sent.
#[derive(Debug, Clone)]
pub struct GrantSnapshot {
    /// Of the view that was taken before the look-up.
    pub generation: u64,
    pub member: UserId,
    /// The grant used, and its version.
    pub grant: Option<(GrantId, i64)>,
    pub principal: Arc<Principal>,
}

/// The generation at which each of these last changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    pub registry: u64,
    pub catalogue: u64,
}

/// What the task has done since the start; for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefreshCounts {
    pub members: u64,
    /// Users who are enrolled and refused, because no more than `max_members` are loaded.
    pub left_out: u64,
    pub max_members: u64,
    /// Questions to the store, answered or not.
    pub confirms: u64,
    pub failures: u64,
    /// Whole directories read, the first included.
    pub reloads: u64,
}

struct GrantsState {
    cache: Cache,
    lease: Lease,
    /// The directory was loaded and may be decided upon. Before that every view is too old.
    admitted: AtomicBool,
    /// Who was looked for in vain, and who was refused for what they are granted.
    unknown_members: NegativeCache,
    refused_members: NegativeCache,
    unreadable: ArcSwap<UnreadableRows>,
    seq: AtomicI64,
    generation: AtomicU64,
    observer: OnceLock<Box<dyn Fn(Timestamp) + Send + Sync>>,
    other_history: OnceLock<Box<dyn Fn() + Send + Sync>>,
    changes: watch::Sender<Changes>,
    confirms: AtomicU64,
    failures: AtomicU64,
    reloads: AtomicU64,
    confirm_after: Duration,
    max_staleness: Duration,
    confirm_timeout: Duration,
}

impl Grants {
    /// Loads everything once; then one task keeps it until `stop`.
    pub async fn start(store: Store, environment: EnvironmentName, config: &GrantsConfig) -> Result<Self, GrantsError> {
        Self::from_source(DirectorySource::Store { store, environment }, config).await
    }

    /// Nothing is loaded yet: every call is refused as stale until `load` and `admit`.
    pub fn unloaded(store: Store, environment: EnvironmentName, config: &GrantsConfig) -> Self {
        Self::of_source(DirectorySource::Store { store, environment }, config)
    }

    async fn from_source(source: DirectorySource, config: &GrantsConfig) -> Result<Self, GrantsError> {
        let grants = Self::of_source(source, config);
        grants.load().await?;
        grants.admit();
        Ok(grants)
    }

    fn of_source(source: DirectorySource, config: &GrantsConfig) -> Self {
        let shared = Arc::new(GrantsState {
            cache: Cache::new(config.max_members),
            lease: Lease::new(Instant::now()),
            admitted: AtomicBool::new(false),
            unknown_members: NegativeCache::with_ttl(Duration::from_secs(1)),
            refused_members: NegativeCache::with_ttl(Duration::from_millis(250)),
            unreadable: ArcSwap::default(),
            seq: AtomicI64::new(0),
            generation: AtomicU64::new(0),
            observer: OnceLock::new(),
            other_history: OnceLock::new(),
            changes: watch::Sender::default(),
            confirms: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            reloads: AtomicU64::new(0),
            confirm_after: config.confirm_after.0.min(config.max_staleness.0),
            max_staleness: config.max_staleness.0,
            confirm_timeout: config.confirm_timeout.0,
        });
        Self {
            shared,
            source,
            loaded: Mutex::default(),
            stop: CancellationToken::new(),
            task: Mutex::default(),
        }
    }

    /// Loads everything once. It may be looked at, but not decided upon until `admit`.
    pub async fn load(&self) -> Result<(), GrantsError> {
        let sent = Instant::now();
        let directory = self.source.directory().await?;
        let refresher = Refresher::load(self.source.clone(), self.shared.clone(), directory, sent);
        *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(refresher);
        Ok(())
    }

    /// What was loaded may be decided upon; one task keeps it until `stop`.
    pub fn admit(&self) {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(refresher) = loaded {
            refresher.admit();
            let task = tokio::spawn(refresher.run(self.stop.clone()));
            *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        }
    }

    /// Whether anything may be decided: before that nobody is known, and nobody can be told to be unknown.
    pub fn is_admitted(&self) -> bool {
        self.shared.admitted.load(Ordering::Acquire)
    }

    /// Ends the task and waits for it. What is in memory stays readable and grows stale.
    pub async fn stop(&self) {
        self.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            // A panic in it was reported when it happened, and made every later view stale.
            let _ended = task.await;
        }
    }

    pub fn by_identity(&self, issuer: &Issuer, subject: &Subject) -> Option<Arc<Member>> {
        self.shared.cache.by_identity(issuer, subject)
    }

    pub fn by_id(&self, user: &UserId) -> Option<Arc<Member>> {
        self.shared.cache.by_id(user)
    }

    /// The key with its owner, in whatever state they are.
    pub fn by_key(&self, key: &KeyId) -> Option<Arc<Member>> {
        self.shared.cache.by_key(key)
    }

    /// As `by_identity`; but somebody unknown is looked for once more after a confirmation, which one caller can cause once
    /// a second: who was enrolled a moment ago is found.
    pub async fn find_by_identity(&self, issuer: &Issuer, subject: &Subject) -> Option<Arc<Member>> {
        if let Some(member) = self.by_identity(issuer, subject) {
            return Some(member);
        }
        self.shared
            .refresh_once(&self.shared.unknown_members, &(issuer, subject))
            .await;
        self.by_identity(issuer, subject)
    }

    /// As `by_key`, with the same second look.
    pub async fn find_by_key(&self, key: &KeyId) -> Option<Arc<Member>> {
        if let Some(found) = self.by_key(key) {
            return Some(found);
        }
        self.shared.refresh_once(&self.shared.unknown_members, key).await;
        self.by_key(key)
    }

    /// Whether somebody who is not found is enrolled all the same, and not loaded because `max_members` is reached.
    pub fn leaves_out(&self, issuer: &Issuer, subject: &Subject) -> bool {
        self.shared.cache.left_out().has_identity(issuer, subject)
    }

    /// The key of a member who is enrolled and not loaded; it opens nothing.
    pub fn unloaded_key(&self, key: &KeyId) -> Option<ApiKey> {
        self.shared.cache.left_out().key(key).cloned()
    }

    /// Whether the registry has this server switched off now, whatever the snapshot in force was compiled from.
    pub fn has_disabled(&self, server: &ServerName) -> bool {
        let registry = self.shared.cache.registry();
        registry.iter().any(|row| row.server == *server && !row.enabled)
    }

    /// Before somebody is refused for what they are granted: whether anything has changed since the view of `generation`,
    /// asked of the store if need be. One of them can cause four questions a second, and all together no more than anybody.
    pub async fn refresh_and_compare(&self, user: &UserId, generation: u64) -> bool {
        self.shared.refresh_once(&self.shared.refused_members, user).await;
        self.generation() != generation
    }

    /// Whether the credential behind this principal was revoked by a row of `revocations` that is in force.
    pub fn revoked(&self, principal: &Principal, now: Timestamp) -> bool {
        self.shared.cache.revoked(principal, now)
    }

    pub fn registry(&self) -> Arc<Vec<RegistryRow>> {
        self.shared.cache.registry()
    }

    pub fn view(&self) -> GrantsView {
        self.shared.view()
    }

    /// A view that is young enough to decide upon; take it before looking anybody up. Ready at once unless the last
    /// confirmation is too long ago.
    pub async fn fresh(&self) -> Result<GrantsView, Stale> {
        let arrived = Instant::now();
        let view = self.shared.view();
        if view.age <= self.shared.confirm_after {
            return Ok(view);
        }
        if view.age <= self.shared.max_staleness {
            self.shared.lease.want(before(arrived, self.shared.confirm_after), arrived);
            return Ok(view);
        }
        self.shared
            .confirmed(arrived, before(arrived, self.shared.max_staleness))
            .await
    }

    /// A view that holds everything committed before this call.
    pub async fn confirm(&self) -> Result<GrantsView, Stale> {
        let arrived = Instant::now();
        self.shared.confirmed(arrived, arrived).await
    }

    /// A hint that something changed, from wherever it comes: asks the store soon, also while backing off. Never grants.
    pub fn confirm_now(&self) {
        self.shared.lease.hint(Instant::now());
    }

    pub fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// Whether what was decided upon still stands. One atomic load if nothing changed since.
    pub fn recheck(&self, grant_snapshot: &GrantSnapshot, now: Timestamp) -> Result<(), Reason> {
        if grant_snapshot.generation == self.generation() {
            Ok(())
        } else {
            self.revalidate(grant_snapshot, now)
        }
    }

    /// The same by looking, also for what time alone ends; for open streams.
    pub fn revalidate(&self, grant_snapshot: &GrantSnapshot, now: Timestamp) -> Result<(), Reason> {
        let member = self.by_id(&grant_snapshot.member).ok_or(Reason::NotEnrolled)?;
        if member.status != MemberStatus::Active {
            return Err(Reason::MemberDisabled);
        }
        if let Some((id, version)) = &grant_snapshot.grant {
            let grant = member.grants.iter().find(|grant| grant.id == *id).ok_or(Reason::NoGrant)?;
            match grant.status {
                GrantStatus::Verified => {}
                GrantStatus::Idle => return Err(Reason::GrantIdle),
                GrantStatus::Revoked => return Err(Reason::GrantRevoked),
                GrantStatus::Unreadable => return Err(Reason::NoGrant),
            }
            if grant.expires_at.is_some_and(|end| end <= now) {
                return Err(Reason::GrantExpired);
            }
            if grant.version != *version {
                // Still a grant, but not the one that was judged.
                return Err(Reason::StaleAuthorization);
            }
        }
        match &grant_snapshot.principal.key {
            Some(id) => self.revalidate_key(&member, id, now)?,
            None => self.revalidate_identity(&member, &grant_snapshot.principal)?,
        }
        if self.revoked(&grant_snapshot.principal, now) {
            Err(Reason::CredentialRevoked)
        } else {
            Ok(())
        }
    }

    /// Tells when the registry or the catalogue changed.
    pub fn changes(&self) -> watch::Receiver<Changes> {
        self.shared.changes.subscribe()
    }

    /// Calls `observe` with the commit time of each change to what somebody may do, as soon as the change is in force here. Only
    /// the first observer is kept.
    pub fn observe_changes(&self, observe: impl Fn(Timestamp) + Send + Sync + 'static) {
        _ = self.shared.observer.set(Box::new(observe));
    }

    /// Calls `observe` when the store may be of another history than before: restored, or failed over. Only the first observer is
    /// kept.
    pub fn observe_another_history(&self, observe: impl Fn() + Send + Sync + 'static) {
        _ = self.shared.other_history.set(Box::new(observe));
    }

    /// Why the last confirmation failed, until one succeeds.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.shared.lease.failure().map(|failure| failure.why)
    }

    /// How many rows of the store are disabled because they cannot be read.
    pub fn unreadable(&self) -> Arc<UnreadableRows> {
        self.shared.unreadable.load_full()
    }

    pub fn counts(&self) -> RefreshCounts {
        RefreshCounts {
            members: self.shared.cache.members(),
            left_out: self.shared.cache.left_out().len() as u64,
            max_members: self.shared.cache.max() as u64,
            confirms: self.shared.confirms.load(Ordering::Relaxed),
            failures: self.shared.failures.load(Ordering::Relaxed),
            reloads: self.shared.reloads.load(Ordering::Relaxed),
        }
    }

    fn revalidate_key(&self, member: &Member, id: &KeyId, now: Timestamp) -> Result<(), Reason> {
        let key = member.keys.iter().find(|key| key.id == *id).ok_or(Reason::BadKey)?;
        if key.revoked_at.is_some() {
            return Err(Reason::KeyRevoked);
        }
        if key.expires_at.is_some_and(|end| end <= now) {
            Err(Reason::KeyExpired)
        } else {
            Ok(())
        }
    }

    fn revalidate_identity(&self, member: &Member, principal: &Principal) -> Result<(), Reason> {
        let linked = |(issuer, subject): &(Issuer, Subject)| *issuer == principal.issuer && *subject == principal.subject;
        if member.identities.iter().any(linked) {
            Ok(())
        } else {
            Err(Reason::NotEnrolled)
        }
    }
}

impl std::fmt::Debug for Grants {
    /// Whom it holds is nobody's business in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grants")
            .field("view", &self.view())
            .field("counts", &self.counts())
            .finish()
    }
}

impl Drop for Grants {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl GrantsState {
    /// The age is read first: the cache may be newer than what is told of it, never older.
    fn view(&self) -> GrantsView {
        let fresh_at = self.lease.fresh_at();
        let generation = self.generation.load(Ordering::Acquire);
        GrantsView {
            seq: self.seq.load(Ordering::Acquire),
            age: if self.admitted.load(Ordering::Acquire) {
                fresh_at.elapsed()
            } else {
                Duration::MAX
            },
            generation,
        }
    }

    /// Waits for a confirmation that knows everything committed before `need`, joining one that is under way.
    async fn confirmed(&self, arrived: Instant, need: Instant) -> Result<GrantsView, Stale> {
        if !self.admitted.load(Ordering::Acquire) {
            return Err(Stale {
                age: Duration::MAX,
                retry_after: Duration::from_secs(1),
                reason: Reason::StaleAuthorization,
                why: None,
            });
        }
        let enough = |fresh_at: Instant| fresh_at >= need && (fresh_at >= arrived || fresh_at.elapsed() <= self.max_staleness);
        match self.lease.wait(arrived, need, self.confirm_timeout, enough).await {
            Ok(()) => Ok(self.view()),
            Err(failed) => Err(Stale {
                age: self.lease.fresh_at().elapsed(),
                retry_after: failed.retry_after,
                reason: failed
                    .failure
                    .as_ref()
                    .map_or(Reason::StaleAuthorization, |failure| failure.reason),
                why: failed.failure.map(|failure| failure.why),
            }),
        }
    }

    async fn refresh_once(&self, misses: &NegativeCache, who: &impl Hash) {
        let arrived = Instant::now();
        if let Some(need) = misses.since(who, arrived) {
            // Whether the view is too old is asked by `fresh`; here nobody is found either way.
            let _failed = self
                .lease
                .wait(arrived, need, self.confirm_timeout, |fresh_at| fresh_at >= need)
                .await;
        }
    }
}

/// Early enough is early enough: the clock's own beginning stands for everything before it.
fn before(now: Instant, span: Duration) -> Instant {
    now.checked_sub(span).unwrap_or(now)
}
