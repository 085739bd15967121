//! Looks at the policy files again and again until they are stable, and keeps what they were. It does not compile them
//! nor put them in force.

use super::manifest::{self, Manifest};
use super::policy_loader::load_checked;
use super::stability::{AllowedChange, Observation, Stability};
use crate::config::PoliciesConfig;
use crate::decide::PolicySource;
use crate::domain::{Digest, Sha256};
use crate::transport::{self, FileEvents, REREAD_INTERVAL};
use anyhow::Result;
use std::path::Path;
use tokio::time::Instant;

/// What one reading gave, or why it gave nothing.
pub type ReadPolicies = Result<Vec<PolicySource>, String>;

/// The policy files as they were when they were looked at last.
pub struct PolicyFiles {
    config: PoliciesConfig,
    /// `None`: they cannot be watched.
    events: Option<FileEvents>,
    /// There was a manifest: no policies are used any more without one.
    pinned: bool,
    found: ReadPolicies,
    stability: Stability,
}

impl PolicyFiles {
    /// Watches them and reads them once.
    pub async fn open(config: &PoliciesConfig) -> PolicyFiles {
        Self::first_observation(config, watch(config)).await
    }

    async fn first_observation(config: &PoliciesConfig, events: Option<FileEvents>) -> PolicyFiles {
        let (observation, found, pinned) = read_policy_files(config, events.as_ref(), false).await;
        PolicyFiles {
            config: config.clone(),
            events,
            pinned,
            found,
            stability: Stability::new(observation),
        }
    }

    /// What they are at the start, once two looks at least found it and nothing happened in between.
    pub async fn at_start(&mut self) -> Result<Vec<PolicySource>> {
        while !self.stability.allows_start() {
            self.pause().await;
            anyhow::ensure!(self.observe().await != AllowedChange::Unstable, UNSTABLE);
        }
        self.stability.done();
        self.found.clone().map_err(anyhow::Error::msg)
    }

    pub async fn observe(&mut self) -> AllowedChange {
        let (observation, found, pinned) = read_policy_files(&self.config, self.events.as_ref(), self.pinned).await;
        self.pinned = pinned;
        self.found = found;
        self.stability.observe(observation)
    }

    pub fn found(&self) -> &ReadPolicies {
        &self.found
    }

    /// Ends when something has happened to them or may have: not every folder tells.
    pub async fn stirred(&self) {
        let event = async {
            match &self.events {
                Some(events) => events.next().await,
                None => std::future::pending().await,
            }
        };
        let _ = tokio::time::timeout(REREAD_INTERVAL, event).await;
    }

    /// Waits until the next look is due; false at once if none is.
    pub async fn pause(&self) -> bool {
        let Some(pause) = self.stability.pause() else {
            return false;
        };
        tokio::time::sleep(pause).await;
        true
    }

    /// Nothing of what was found is left to be taken.
    pub fn done(&mut self) {
        self.stability.done();
    }

    /// What was found was refused and may be right now.
    pub fn again(&mut self) {
        self.stability.again();
    }
}

pub const UNSTABLE: &str = "the policy files do not stop changing";

fn watch(config: &PoliciesConfig) -> Option<FileEvents> {
    let unwatched = |error: &_| {
        tracing::error!(%error, "the policy files are not watched: they are read every {} s", REREAD_INTERVAL.as_secs());
    };
    let dir = config.dir.clone();
    transport::file_events(std::slice::from_ref(&config.dir), move |path| is_about(&dir, path))
        .inspect_err(unwatched)
        .ok()
}

/// Whether something that happens to `path`, in the policy folder `dir` or beside the one file that `dir` is, may change
/// the policies. Other files of the folder may be written all day.
fn is_about(dir: &Path, path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    path.extension().is_some_and(|extension| extension == "cedar")
        || name == manifest::NAME
        || Some(name) == dir.file_name()
        // Kubernetes swaps a link `..data`, through which the files are seen.
        || name.as_encoded_bytes().starts_with(b"..")
}

/// By a thread that may wait for a slow disk.
async fn read_policy_files(
    config: &PoliciesConfig,
    events: Option<&FileEvents>,
    pinned: bool,
) -> (Observation, ReadPolicies, bool) {
    let count = || events.map_or(0, FileEvents::count);
    let (at, events_before) = (Instant::now(), count());
    let config = config.clone();
    let reading = tokio::task::spawn_blocking(move || match Manifest::read(&config.dir) {
        Ok(manifest) => {
            let pinned = pinned || manifest.is_some();
            (load_pinned(&config, manifest, pinned), pinned)
        }
        Err(error) => (Err(error), pinned),
    });
    let (found, pinned) = match reading.await {
        Ok((found, pinned)) => (found.map_err(|error| format!("{error:#}")), pinned),
        Err(_) => (Err("the policy files cannot be read".to_owned()), pinned),
    };
    let observation = Observation {
        at,
        content: policies_digest(&found),
        events_before,
        events_after: count(),
    };
    (observation, found, pinned)
}

/// The policies; once there was a manifest of them, none without one.
fn load_pinned(config: &PoliciesConfig, manifest: Option<Manifest>, pinned: bool) -> Result<Vec<PolicySource>> {
    anyhow::ensure!(
        manifest.is_some() || !pinned,
        "the manifest of the policies is gone: put it back, or restart to go on without one"
    );
    load_checked(config, manifest)
}

fn policies_digest(found: &ReadPolicies) -> Digest {
    let part = |hash: Sha256, text: &str| hash.update(Digest::of(text.as_bytes()).as_bytes());
    let hash = match found {
        Ok(sources) => sources
            .iter()
            .fold(Sha256::new(), |hash, source| part(part(hash, &source.file), &source.text)),
        Err(why) => part(Sha256::new().update(b"!"), why),
    };
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::stability::STABLE_FOR_LESS;

    #[test]
    fn only_what_may_change_the_policies_concerns_them() {
        let folder = Path::new("etc/policies");
        for path in ["a.cedar", "manifest.txt", "..data", "..2026_11_30"].map(|name| folder.join(name)) {
            assert!(is_about(folder, &path), "{path:?}");
        }
        assert!(is_about(folder, Path::new("/etc/guardian/etc/policies")));
        for path in [".a.cedar.swp", "guardian.log", "a.cedar~"].map(|name| folder.join(name)) {
            assert!(!is_about(folder, &path), "{path:?}");
        }
        let file = Path::new("etc/rules.txt");
        assert!(is_about(file, Path::new("/etc/guardian/etc/rules.txt")) && !is_about(file, Path::new("etc/others.txt")));
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_cannot_be_watched_are_read_again_and_again() {
        const FORBID: &str = "@id(\"no\") forbid (principal, action, resource);";
        let dir = std::env::temp_dir().join(format!("guardian-unwatched-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("a.cedar");
        std::fs::write(&file, FORBID).unwrap();
        let config = PoliciesConfig {
            dir: dir.clone(),
            ..PoliciesConfig::default()
        };
        let mut files = PolicyFiles::first_observation(&config, None).await;
        assert_eq!(files.at_start().await.unwrap().len(), 1);

        std::fs::remove_file(&file).unwrap();
        files.stirred().await;
        assert_eq!(files.observe().await, AllowedChange::Wait);
        let gone = Instant::now();
        assert_eq!(next(&mut files).await, AllowedChange::Add);
        assert!(gone.elapsed().as_secs() < 1, "{:?}", gone.elapsed());
        std::fs::write(&file, FORBID).unwrap();
        files.observe().await;
        std::fs::remove_file(&file).unwrap();
        files.observe().await;
        let gone = Instant::now();
        assert_eq!(next(&mut files).await, AllowedChange::Add);
        assert_eq!(next(&mut files).await, AllowedChange::Replace);
        assert!(gone.elapsed() >= STABLE_FOR_LESS, "{:?}", gone.elapsed());
        assert_eq!(files.found(), &Ok(Vec::new()));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    async fn next(files: &mut PolicyFiles) -> AllowedChange {
        while files.pause().await {
            match files.observe().await {
                AllowedChange::Wait => {}
                allowed => return allowed,
            }
        }
        panic!("no look is due");
    }
}
