//! What has to hold before the first call is admitted: a START record on disk, a store that may be used, a journal that
//! agrees with the trail, users and grants, and policies that were compiled with the catalogue. A store that is away at the
//! start is waited for; until then every call is refused as stale.

use super::comparison::{self, Disagreement};
use super::instance_file::InstanceFile;
use super::policy_files::PolicyFiles;
use super::policy_loader::{self, PolicyLoader};
use super::{now, process_actor};
use crate::config::{CheckedConfig, StoreKind};
use crate::domain::{Backoff, Event, Gap};
use crate::grants::Grants;
use crate::journal::{Journal, JournalState};
use crate::store::{Store, StoreError};
use anyhow::{Context, Result, bail};
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// First and longest pause between two attempts to reach a store that is away.
const AWAY: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(10)];
/// The longest for a disk of this machine.
const DISK: Duration = Duration::from_secs(1);
/// First and longest pause where the store answers and must not be used as it is.
const REFUSED: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// Whether calls are admitted yet, and what they wait for.
#[derive(Default)]
pub struct Readiness {
    pub admitted: CancellationToken,
    waits_for: Mutex<Option<String>>,
}

impl Readiness {
    /// What the calls wait for, as a sentence.
    pub fn waits_for(&self) -> Option<String> {
        self.waits_for.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// False if that was known.
    fn wait_for(&self, why: Option<String>) -> bool {
        let mut waits_for = self.waits_for.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = *waits_for != why;
        *waits_for = why;
        is_new
    }
}

/// The start is refused: the journal and the trail do not agree.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TrailDisagrees(Disagreement);

/// The disk has no room for what a start writes.
#[derive(Debug, thiserror::Error)]
#[error("nothing can be recorded: {0}")]
struct DiskIsFull(String);

pub struct FirstContact {
    pub config: Arc<CheckedConfig>,
    pub store: Store,
    pub journal: Journal,
    pub grants: Arc<Grants>,
    pub policy_loader: Arc<PolicyLoader>,
    pub policies: PolicyFiles,
    pub instance: InstanceFile,
    pub readiness: Arc<Readiness>,
    /// Start although journal and trail do not agree: once.
    pub accept_gap: bool,
    pub is_compared: bool,
}

impl FirstContact {
    /// One attempt, at whose end calls are admitted.
    pub async fn attempt(&mut self) -> Result<()> {
        self.record_the_start()?;
        open_store(&self.store, &self.config).await?;
        if !self.is_compared {
            self.compare().await?;
        }
        self.store.give_salts(&self.config.environment).await?;
        self.grants.load().await?;
        let registry = self.grants.registry();
        let sources = self.policies.at_start().await.context("the policies cannot be used")?;
        let snapshot = policy_loader::compile(&sources, &[], &self.config, &self.store, &registry)
            .await
            .context("the policies cannot be used")?;
        self.policy_loader.start_with(sources, snapshot).await;
        self.policy_loader.begin(&registry).await?;
        self.grants.admit();
        self.readiness.wait_for(None);
        self.readiness.admitted.cancel();
        Ok(())
    }

    /// Whether to wait for what failed. Everything else ends the start.
    pub fn is_away(&self, error: &anyhow::Error) -> bool {
        let is_postgres = self.config.store.kind == StoreKind::Postgres;
        let is_away = |error: &StoreError| match error {
            StoreError::DiskFails { .. } => true,
            StoreError::Unreachable { .. } | StoreError::Busy { .. } => is_postgres,
            _ => false,
        };
        is_full(error) || error.chain().filter_map(|error| error.downcast_ref()).any(is_away)
    }

    /// Notes why no call is admitted, for `/readyz` and the log.
    pub fn wait_because(&self, error: &anyhow::Error) {
        let why = format!("no call is admitted yet: {error:#}");
        if self.readiness.wait_for(Some(why.clone())) {
            tracing::error!(%why, "every call is refused; trying again");
        }
    }

    /// Tries again until calls are admitted.
    pub async fn keep_trying(&mut self, mut error: anyhow::Error) {
        let mut away = Backoff::new(AWAY[0], AWAY[1]);
        let mut refused = Backoff::new(REFUSED[0], REFUSED[1]);
        loop {
            self.wait_because(&error);
            let is_local = self.config.store.kind == StoreKind::Sqlite || is_full(&error);
            let pause = match (self.is_away(&error), is_local) {
                (true, true) => away.failed().min(DISK),
                (true, false) => away.failed(),
                (false, _) => refused.failed(),
            };
            tokio::time::sleep(pause).await;
            match self.attempt().await {
                Ok(()) => break,
                Err(failed) => error = failed,
            }
        }
        tracing::info!("calls are admitted");
    }

    fn record_the_start(&self) -> Result<()> {
        if !self.journal.has_started() {
            let why = match self.journal.state() {
                JournalState::Sealed(why) => why.to_string(),
                JournalState::Open | JournalState::Pressure => "the start is not on disk yet".to_owned(),
            };
            return Err(DiskIsFull(why).into());
        }
        match self.instance.keep(self.journal.instance_id()) {
            Err(error) if is_full_disk(&error) => Err(DiskIsFull(format!("the data folder takes no file: {error}")).into()),
            kept => kept.with_context(|| format!("cannot write a file to `{}`", self.config.data_dir.display())),
        }
    }

    /// Refuses a journal and a trail that do not agree, unless the operator accepts the gap; then it is put on record.
    async fn compare(&mut self) -> Result<()> {
        let env = &self.config.environment;
        let found = comparison::compare(&self.store, env, &self.journal).await?;
        if found.findings.is_empty() {
            if self.accept_gap {
                tracing::warn!("`--accept-gap` was given, and the journal and the audit trail agree: start without it");
            }
            return Ok(());
        }
        if !self.accept_gap {
            return Err(TrailDisagrees(found).into());
        }
        let journal = self.journal.clone();
        let shipped_again = match found.ship_again_from {
            None => 0,
            Some(from) => tokio::task::spawn_blocking(move || journal.ship_again(from)).await??,
        };
        if found.lacks_kept {
            self.journal.rewind(None);
        }
        self.is_compared = true;
        let actor = process_actor();
        let gap = Gap {
            at: now(),
            environment: env.clone(),
            instance_id: self.journal.instance_id(),
            found: found.findings.join("; "),
            missing: found.missing,
            shipped_again,
            accepted_by: format!("{}@{}", actor.user, actor.host),
        };
        tracing::warn!(
            found = gap.found,
            shipped_again,
            accepted_by = gap.accepted_by,
            "a gap in the audit trail is accepted"
        );
        self.journal
            .append(Event::Gap(gap))
            .await
            .map_err(|sealed| DiskIsFull(sealed.to_string()))?;
        Ok(())
    }
}

fn is_full(error: &anyhow::Error) -> bool {
    error.is::<DiskIsFull>() || error.chain().filter_map(|error| error.downcast_ref()).any(is_full_disk)
}

fn is_full_disk(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// The store as `serve` uses it. An embedded one is brought up to date; a shared one is the operator's to migrate.
async fn open_store(store: &Store, config: &CheckedConfig) -> Result<()> {
    store.connect().await?;
    for warning in store.warnings() {
        tracing::warn!(%warning, "database");
    }
    match config.store.kind {
        StoreKind::Sqlite => store.migrate(&mut |step| tracing::info!(step, "database")).await?,
        StoreKind::Postgres => store.require_current().await?,
    }
    for made in store.ensure_partitions().await? {
        tracing::info!(made, "database");
    }
    let problems = store.self_check(&config.environment).await?;
    if !problems.is_empty() {
        bail!("the database must not be used as it is: {}", problems.join("; "));
    }
    Ok(())
}
