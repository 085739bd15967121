//! Tells when the content of files or folders has changed. It does not read meaning into them nor act on it.
//!
//! The parent folders are watched, because files are replaced rather than written (Kubernetes swaps a link), and the
//! contents are compared, because one change makes many events and some events change nothing.

use crate::domain::{Digest, Sha256};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

const DEBOUNCE: Duration = Duration::from_millis(300);
/// Who writes without a pause is looked at all the same.
const DEBOUNCES: usize = 10;
/// Network folders send no events.
const LOOK_ANYWAY: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
#[error("cannot watch `{}`", path.display())]
pub struct WatchError {
    path: PathBuf,
    source: notify::Error,
}

/// A watch on files and folders; it ends when dropped.
pub struct Watch {
    paths: Vec<PathBuf>,
    seen: Digest,
    /// Something stirred and has not been looked at: kept here so that a cancelled wait loses nothing.
    due: bool,
    stirred: Arc<Notify>,
    _watcher: RecommendedWatcher,
}

/// Watches `paths`: files, and folders with the files directly in them.
pub fn watch(paths: &[PathBuf]) -> Result<Watch, WatchError> {
    let stirred = Arc::new(Notify::new());
    let notify = stirred.clone();
    let first = paths.first().cloned().unwrap_or_default();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if !event.is_ok_and(|event| event.kind.is_access()) {
            notify.notify_one();
        }
    })
    .map_err(|source| WatchError { path: first, source })?;
    for folder in paths.iter().map(|path| folder(path)).collect::<BTreeSet<_>>() {
        watcher
            .watch(&folder, RecursiveMode::NonRecursive)
            .map_err(|source| WatchError { path: folder, source })?;
    }
    Ok(Watch {
        paths: paths.to_vec(),
        seen: content(paths),
        due: false,
        stirred,
        _watcher: watcher,
    })
}

impl Watch {
    /// Ends when the content differs from what it was when this ended last, and has settled. Safe to cancel.
    pub async fn changed(&mut self) {
        loop {
            if !self.due {
                let _ = tokio::time::timeout(LOOK_ANYWAY, self.stirred.notified()).await;
                self.due = true;
            }
            for _ in 0..DEBOUNCES {
                if tokio::time::timeout(DEBOUNCE, self.stirred.notified()).await.is_err() {
                    break;
                }
            }
            let paths = self.paths.clone();
            let Ok(now) = tokio::task::spawn_blocking(move || content(&paths)).await else {
                continue;
            };
            self.due = false;
            if now != self.seen {
                self.seen = now;
                return;
            }
        }
    }
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        _ if path.is_dir() => path.to_owned(),
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn content(paths: &[PathBuf]) -> Digest {
    let mut files = BTreeSet::new();
    for path in paths {
        match std::fs::read_dir(path) {
            Ok(entries) => files.extend(entries.flatten().map(|entry| entry.path())),
            Err(_) => {
                files.insert(path.clone());
            }
        }
    }
    let mut hash = Sha256::new();
    for file in files {
        let content = std::fs::read(&file).map_or(Digest::ZERO, |bytes| Digest::of(&bytes));
        hash = hash
            .update(file.as_os_str().as_encoded_bytes())
            .update(&[0])
            .update(content.as_bytes());
    }
    hash.finish()
}
