//! Keeps the policies and the catalogue in force: takes the policies that were read, asks the servers for their tools,
//! compiles both into one snapshot and swaps it. What does not compile never replaces what does.

use super::manifest::Manifest;
use super::policy_files::ReadPolicies;
use super::stability::{AllowedChange, STABLE_FOR_LESS};
use super::{now, process_actor};
use crate::config::{CheckedConfig, Config, PinMode, PoliciesConfig};
use crate::decide::{PolicySettings, PolicySource, Snapshot, forbid_names, missing_forbids};
use crate::domain::{Actor, AdminAction, Digest, Event, PolicyChange, Problem, ServerName, Sha256};
use crate::journal::Journal;
use crate::store::{Observed, RegistryRow, Store};
use crate::telemetry::Metrics;
use crate::upstream::{OfferedTools, RawTool, Upstreams, build_catalogue};
use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

/// The policies and tools in force, and what they are made of.
pub struct PolicyLoader {
    config: Arc<CheckedConfig>,
    store: Store,
    journal: Journal,
    metrics: Arc<Metrics>,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    upstreams: Arc<Upstreams>,
    /// Digest of each server's tool list when it was last written down, so that an unchanged one costs no query.
    observed: Mutex<BTreeMap<ServerName, Digest>>,
    /// The servers that answer, which was written down.
    answering: Mutex<BTreeSet<ServerName>>,
    /// The servers that fail, which was recorded.
    failing: Mutex<BTreeSet<ServerName>>,
    /// Who runs this instance.
    actor: Actor,
    /// The fetches that the start did not wait for any longer.
    late_fetches: Mutex<BTreeMap<ServerName, FirstFetch>>,
    /// The warnings of the policies and tools in force, which were logged when they were new.
    warned: Mutex<BTreeSet<String>>,
    /// Why the newest set is not the one in force, if so.
    pub rejected: Mutex<Option<String>>,
    /// Held while a snapshot is compiled: one at a time.
    in_force: tokio::sync::Mutex<InForce>,
    /// The catalogue is another, and policies that were refused may be right with it.
    pub reconsider: Notify,
}

/// The texts of the policies in force.
struct InForce {
    sources: Vec<PolicySource>,
    /// Forbids that are gone from the files, or changed in them, and hold until the files have been the same for long.
    kept: Vec<PolicySource>,
    /// The files are other than this, and were refused.
    refused: bool,
}

/// Largest policy file that is read, and the most files of a set.
const MOST_BYTES: u64 = 1024 * 1024;
const MOST_FILES: usize = 1_000;
/// How long the start waits for tool lists before it goes on with the stored ones.
const FIRST_FETCH_WAIT: Duration = Duration::from_secs(2);
/// The most warnings of a change that are logged one by one.
const MOST_WARNINGS: usize = 5;

/// A fetch of the start: whether the list differs from the one written down, or `None` if there is none.
pub type FirstFetch = AbortOnDropHandle<Option<bool>>;

impl PolicyLoader {
    pub fn new(
        config: Arc<CheckedConfig>,
        store: Store,
        journal: Journal,
        metrics: Arc<Metrics>,
        upstreams: Arc<Upstreams>,
    ) -> Result<Self> {
        let nothing = PolicySettings {
            deny_all: true,
            ..settings(&config)
        };
        let snapshot = Snapshot::compile(&[], &build_catalogue(&config.servers, &[], &[]), &nothing)
            .map_err(|problems| anyhow::anyhow!(sentences(&problems)))?;
        Ok(Self {
            config,
            store,
            journal,
            metrics,
            snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
            upstreams,
            observed: Mutex::default(),
            answering: Mutex::default(),
            failing: Mutex::default(),
            actor: process_actor(),
            late_fetches: Mutex::default(),
            warned: Mutex::default(),
            rejected: Mutex::default(),
            in_force: tokio::sync::Mutex::new(InForce {
                sources: Vec::new(),
                kept: Vec::new(),
                refused: false,
            }),
            reconsider: Notify::new(),
        })
    }

    /// The first set: before it nothing is permitted.
    pub async fn start_with(&self, sources: Vec<PolicySource>, snapshot: Snapshot) {
        self.in_force.lock().await.sources = sources;
        self.snapshot.store(Arc::new(snapshot));
    }

    /// Takes up what the servers offer now, as far as they answer soon, and puts what is then in force on record.
    pub async fn begin(self: &Arc<Self>, registry: &[RegistryRow]) -> Result<()> {
        let compiled = self.snapshot.load_full();
        if self.fetch_all_tools().await {
            self.rebuild(registry).await;
        }
        let in_force = self.snapshot.load_full();
        if Arc::ptr_eq(&compiled, &in_force) {
            self.warn_of(&in_force);
        }
        self.keep(&in_force).await?;
        self.record_change(&in_force, None).await;
        self.metrics.policy_set(&in_force.policy_set());
        Ok(())
    }

    /// Compiles the policies in force for what the catalogue is now; on any problem the old set stays, loudly. It does not
    /// look at the files, which may be half-way through a change.
    pub async fn rebuild(&self, registry: &[RegistryRow]) {
        let in_force = self.in_force.lock().await;
        match self.compile(&in_force.sources, &in_force.kept, registry).await {
            Ok(snapshot) => self.swap(snapshot, in_force.refused).await,
            Err(error) => self.reject_reload(format!("{error:#}")).await,
        }
        if in_force.refused {
            self.reconsider.notify_one();
        }
    }

    /// Puts in force what was read of the files, as far as it is allowed: a forbid that is gone or changed holds on until
    /// the files may replace the set. True if nothing of them is left to be taken.
    pub async fn take(&self, found: &ReadPolicies, allowed: AllowedChange, registry: &[RegistryRow]) -> bool {
        let mut in_force = self.in_force.lock().await;
        let sources = match found {
            Ok(sources) => sources,
            Err(why) => {
                in_force.refused = true;
                self.reject_reload(why.clone()).await;
                return true;
            }
        };
        let kept = in_force.kept_beside(sources, allowed);
        if !in_force.refused && in_force.sources == *sources && in_force.kept == kept {
            return kept.is_empty();
        }
        match self.compile(sources, &kept, registry).await {
            Ok(snapshot) => {
                tell_of_kept(&kept);
                self.swap(snapshot, false).await;
                let done = kept.is_empty();
                *in_force = InForce {
                    sources: sources.clone(),
                    kept,
                    refused: false,
                };
                done
            }
            Err(_) if !kept.is_empty() && self.compile(sources, &[], registry).await.is_ok() => {
                tracing::info!(
                    "the policies go with no earlier form of their forbids: the old set stays until they may replace it"
                );
                false
            }
            Err(error) => {
                in_force.refused = true;
                self.reject_reload(format!("{error:#}")).await;
                true
            }
        }
    }

    /// Whether the newest files are not the set in force. They may be right all the same: the store may not have answered.
    pub async fn is_refused(&self) -> bool {
        self.in_force.lock().await.refused
    }

    /// The files cannot be taken as they are.
    pub async fn refuse(&self, why: &str) {
        self.in_force.lock().await.refused = true;
        self.reject_reload(why.to_owned()).await;
    }

    async fn compile(&self, sources: &[PolicySource], kept: &[PolicySource], registry: &[RegistryRow]) -> Result<Snapshot> {
        let snapshot = compile(sources, kept, &self.config, &self.store, registry).await?;
        self.keep(&snapshot).await?;
        Ok(snapshot)
    }

    /// Makes durable what the snapshot is made of. One that cannot be kept does not come into force: its records would name
    /// what nobody can look up.
    async fn keep(&self, snapshot: &Snapshot) -> Result<()> {
        let kept = self.journal.keep_documents(snapshot.documents()).await;
        kept.context("the policies and tools cannot be kept for the audit trail")
    }

    /// `refused`: the newest files are still not the set in force.
    async fn swap(&self, snapshot: Snapshot, refused: bool) {
        let old = self.snapshot.load();
        if !refused {
            *self.rejected.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        if old.policy_set() == snapshot.policy_set() && old.catalogue() == snapshot.catalogue() {
            return;
        }
        let (before, now) = (old.policies(), snapshot.policies());
        if now < before {
            tracing::warn!(before, now, "there are fewer policies than before");
        }
        for forbid in old.forbids().difference(&snapshot.forbids()) {
            tracing::warn!(%forbid, "this forbid is there no more");
        }
        self.warn_of(&snapshot);
        self.record_change(&snapshot, None).await;
        self.metrics.policy_set(&snapshot.policy_set());
        tracing::info!(policy_set = %snapshot.policy_set().short(), catalogue = %snapshot.catalogue().short(), policies = snapshot.policies(), "policies and tools in force");
        self.snapshot.store(Arc::new(snapshot));
    }

    async fn reject_reload(&self, why: String) {
        self.metrics.policy_reload_failed();
        tracing::error!(%why, "the new policies are not used; the old set stays in force");
        let before = self
            .rejected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(why.clone());
        if before.as_ref() != Some(&why) {
            let in_force = self.snapshot.load_full();
            self.record_change(&in_force, Some(why)).await;
        }
    }

    async fn record_change(&self, snapshot: &Snapshot, rejected: Option<String>) {
        let change = PolicyChange {
            at: now(),
            environment: self.config.environment.clone(),
            policy_set: snapshot.policy_set(),
            catalogue: snapshot.catalogue(),
            policies: snapshot.policies(),
            rejected,
        };
        if let Err(sealed) = self.journal.append(Event::Policy(change)).await {
            tracing::error!(%sealed, "a change of policies cannot be recorded");
        }
    }

    /// Asks every server for its tools at once; true if anything was written down soon. A server that needs longer, as a
    /// program that is downloaded first, is not given up: `late_fetch` has what it says.
    async fn fetch_all_tools(self: &Arc<Self>) -> bool {
        let begin = |(name, _): (&ServerName, _)| {
            let (loader, server) = (self.clone(), name.clone());
            let fetch = tokio::spawn(async move { loader.refresh_tools(&server).await });
            (name.clone(), AbortOnDropHandle::new(fetch))
        };
        let begun: Vec<(ServerName, FirstFetch)> = self.upstreams.iter().map(begin).collect();
        let deadline = Instant::now() + FIRST_FETCH_WAIT;
        let mut changed = false;
        for (server, mut fetch) in begun {
            match timeout_at(deadline, &mut fetch).await {
                Ok(seen) => changed |= seen.ok().flatten() == Some(true),
                Err(_) => {
                    tracing::info!(%server, "the server has not listed its tools within two seconds; the pinned ones stay");
                    self.late_fetches
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(server, fetch);
                }
            }
        }
        changed
    }

    /// The fetch of this server that the start did not wait for any longer, if there is one.
    pub fn late_fetch(&self, server: &ServerName) -> Option<FirstFetch> {
        self.late_fetches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(server)
    }

    /// Asks one server: whether its list differs from the one written down, or `None` if it told no list.
    pub async fn refresh_tools(&self, server: &ServerName) -> Option<bool> {
        match self.upstreams.get(server)?.fetch_tools().await {
            Ok(offered) => {
                self.note_failure(server, None).await;
                Some(self.observe(server, &offered).await)
            }
            Err(error) => {
                let why = error.for_operator();
                tracing::warn!(%server, %why, "the tools of the server cannot be listed; the pinned ones stay");
                self.note_failure(server, Some(why)).await;
                None
            }
        }
    }

    /// Writes down why the server fails, for commands to show; nothing while it answers.
    async fn note_failure(&self, server: &ServerName, why: Option<String>) {
        let answering = || self.answering.lock().unwrap_or_else(PoisonError::into_inner);
        if why.is_none() && answering().contains(server) {
            return;
        }
        let env = &self.config.environment;
        let is_new = match self.store.note_server_failure(env, server, why.as_deref()).await {
            Ok(is_new) => is_new,
            Err(error) => {
                tracing::debug!(%server, %error, "how the server does cannot be written down");
                return;
            }
        };
        // Why it fails may hold what a program wrote: that is for administrators, and not for every reader of the trail.
        if why.is_none() {
            answering().insert(server.clone());
            self.failing().remove(server);
            if is_new {
                self.record_action("server answers again", server, server.to_string()).await;
            }
        } else {
            answering().remove(server);
            if self.failing().insert(server.clone()) {
                self.record_action("server fails", server, server.to_string()).await;
            }
        }
    }

    fn failing(&self) -> MutexGuard<'_, BTreeSet<ServerName>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a server offers now, and what was approved of it at first use.
    async fn record_offer(&self, server: &ServerName, observed: Observed) {
        let parts = [
            ("new", &observed.added),
            ("changed", &observed.changed),
            ("gone", &observed.gone),
        ];
        let told = parts.into_iter().filter(|(_, tools)| !tools.is_empty());
        let told: Vec<String> = told
            .map(|(word, tools)| {
                format!(
                    "{word}: {}",
                    tools.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
                )
            })
            .collect();
        if !told.is_empty() {
            self.record_action("tools offered", server, format!("{server}: {}", told.join("; ")))
                .await;
        }
        for change in observed.changes {
            self.append_action(change).await;
        }
    }

    async fn record_action(&self, action: &str, server: &ServerName, detail: String) {
        self.append_action(AdminAction {
            actor: Some(self.actor.clone()),
            server: Some(server.to_string()),
            ..AdminAction::new(now(), self.config.environment.clone(), action, detail)
        })
        .await;
    }

    async fn append_action(&self, action: AdminAction) {
        if let Err(sealed) = self.journal.append(Event::Admin(action)).await {
            tracing::error!(%sealed, "what the servers do cannot be recorded");
        }
    }

    /// Logs the warnings that are new with this snapshot: each once, and of many only some.
    fn warn_of(&self, snapshot: &Snapshot) {
        let warnings: Vec<String> = snapshot
            .warnings()
            .iter()
            .map(|warning| warning.unlabelled().to_string())
            .collect();
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<&String> = warnings.iter().filter(|warning| !warned.contains(*warning)).collect();
        for warning in new.iter().take(MOST_WARNINGS) {
            tracing::warn!(%warning, "policies");
        }
        if new.len() > MOST_WARNINGS {
            let more = new.len() - MOST_WARNINGS;
            tracing::warn!(
                more,
                "policies: there are further warnings, which `guardian policy check` shows"
            );
        }
        *warned = warnings.into_iter().collect();
    }

    /// Whether any tool of the server is known, from this start or an earlier one.
    pub fn has_tools(&self, server: &ServerName) -> bool {
        self.snapshot.load().tools(server).next().is_some()
    }

    async fn observe(
        &self,
        server: &ServerName,
        OfferedTools {
            tools,
            rejected: left_out,
            ..
        }: &OfferedTools,
    ) -> bool {
        let seen = digest_of(tools);
        if self.observed.lock().unwrap_or_else(PoisonError::into_inner).get(server) == Some(&seen) {
            return false;
        }
        for tool in left_out {
            tracing::warn!(%server, tool = %tool.name, why = %tool.why, "a tool of the server is left out");
        }
        let pin_new = self.pin_mode(server) == PinMode::FirstUse;
        let rows: Vec<_> = tools
            .iter()
            .map(|tool| (tool.name.clone(), tool.digest, tool.definition.to_string()))
            .collect();
        match self
            .store
            .observe_tools(&self.config.environment, server, &rows, pin_new)
            .await
        {
            Ok(observed) => {
                self.observed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(server.clone(), seen);
                for tool in &observed.changed {
                    tracing::warn!(%server, %tool, "the server changed this tool; it is refused until it is pinned again");
                }
                self.record_offer(server, observed).await;
                true
            }
            Err(error) => {
                tracing::warn!(%server, %error, "the tools of the server cannot be written down");
                false
            }
        }
    }

    fn pin_mode(&self, server: &ServerName) -> PinMode {
        self.config
            .servers
            .iter()
            .find(|config| &config.name == server)
            .map_or(PinMode::FirstUse, |config| config.pin)
    }
}

impl InForce {
    /// The forbids in force that `sources` does not have, unless these may replace them.
    fn kept_beside(&self, sources: &[PolicySource], allowed: AllowedChange) -> Vec<PolicySource> {
        if allowed == AllowedChange::Replace || self.kept.is_empty() && self.sources == sources {
            return Vec::new();
        }
        let all = [self.sources.as_slice(), &self.kept].concat();
        missing_forbids(&all, sources)
    }
}

fn tell_of_kept(kept: &[PolicySource]) {
    let seconds = STABLE_FOR_LESS.as_secs();
    for forbid in forbid_names(kept) {
        tracing::info!(%forbid, "this forbid is gone from the policy files or changed: as it was it stays in force until they have been the same for {seconds} s");
    }
}

/// The policies; where a manifest says that others are meant, they are not used.
pub fn pinned_policies(config: &PoliciesConfig) -> Result<Vec<PolicySource>> {
    load_checked(config, Manifest::read(&config.dir)?)
}

pub fn load_checked(config: &PoliciesConfig, manifest: Option<Manifest>) -> Result<Vec<PolicySource>> {
    let sources = read_policies(&config.dir)?;
    match manifest {
        Some(manifest) => manifest.check(&sources)?,
        None => anyhow::ensure!(
            !config.require_manifest,
            "the policy folder `{}` has no manifest, which `policies.require_manifest` demands: `guardian policy pin` makes one",
            config.dir.display()
        ),
    }
    Ok(sources)
}

/// Everything that has to be right before a snapshot exists, in one sentence a problem.
pub async fn compile(
    sources: &[PolicySource],
    kept: &[PolicySource],
    config: &Config,
    store: &Store,
    registry: &[RegistryRow],
) -> Result<Snapshot> {
    let stored = store
        .catalogue(&config.environment)
        .await
        .context("cannot read the pinned tools")?;
    let catalogue = build_catalogue(&config.servers, registry, &stored);
    Snapshot::compile_keeping(sources, kept, &catalogue, &settings(config))
        .map_err(|problems| anyhow::anyhow!(sentences(&problems)))
}

pub fn settings(config: &Config) -> PolicySettings {
    PolicySettings {
        deny_all: config.policies.deny_all,
        utc_offset_minutes: config.policies.utc_offset_minutes().unwrap_or(0),
    }
}

/// Reads every `.cedar` file of the folder, in order of their names; or the one file that `path` is.
pub fn read_policies(path: &Path) -> Result<Vec<PolicySource>> {
    if path.is_file() {
        return Ok(vec![read_policy(path)?]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("cannot read the policy folder `{}`", path.display()))?;
    let mut files: Vec<_> = entries
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .map(|entry| entry.path())
        .collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "cedar"));
    files.sort();
    anyhow::ensure!(
        files.len() <= MOST_FILES,
        "the policy folder `{}` has more than {MOST_FILES} files",
        path.display()
    );
    files.iter().map(|file| read_policy(file)).collect()
}

fn read_policy(path: &Path) -> Result<PolicySource> {
    let shown = path.display();
    let size = std::fs::metadata(path)
        .with_context(|| format!("cannot read policy `{shown}`"))?
        .len();
    anyhow::ensure!(
        size <= MOST_BYTES,
        "policy `{shown}` is larger than {MOST_BYTES} bytes: split it"
    );
    let bytes = std::fs::read(path).with_context(|| format!("cannot read policy `{shown}`"))?;
    let text = String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("policy `{shown}` is not UTF-8 text"))?;
    // As a file is for a moment when it is written, or for good when the disk was full: its forbids must not just be gone.
    anyhow::ensure!(
        !text.trim().is_empty(),
        "policy `{shown}` is empty: delete the file if that is meant"
    );
    Ok(PolicySource {
        file: shown.to_string(),
        text,
    })
}

pub fn sentences(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn digest_of(tools: &[RawTool]) -> Digest {
    let mut hash = Sha256::new();
    for tool in tools {
        hash = hash.update(tool.name.as_str().as_bytes()).update(tool.digest.as_bytes());
    }
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_lost_its_content_is_no_policy() {
        let folder = std::env::temp_dir().join(format!("guardian-policies-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("a.cedar"), "permit (principal, action, resource);").unwrap();
        assert_eq!(read_policies(&folder).unwrap().len(), 1);
        std::fs::write(folder.join("b.cedar"), "\n").unwrap();
        let problem = read_policies(&folder).unwrap_err().to_string();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(problem.contains("b.cedar` is empty"), "{problem}");
    }
}
