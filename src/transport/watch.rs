//! Tells when the content of files or folders has changed. It does not read meaning into them nor act on it.
//!
//! The parent folders are watched, because files are replaced rather than written (Kubernetes swaps a link), and the
//! contents are compared, because one change makes many events and some events change nothing.

use crate::domain::{Digest, Sha256};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

const DEBOUNCE: Duration = Duration::from_millis(300);
/// Who writes without a pause is looked at all the same.
const DEBOUNCES: usize = 10;
/// Network folders send no events: what is in them is read this often all the same.
pub const REREAD_INTERVAL: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
#[error("cannot watch `{}`", path.display())]
pub struct WatchError {
    path: PathBuf,
    source: notify::Error,
}

/// The events of files and folders, counted; they end when this is dropped.
pub struct FileEvents {
    counter: Arc<EventCounter>,
    _watcher: RecommendedWatcher,
}

#[derive(Default)]
struct EventCounter {
    count: AtomicU64,
    one: Notify,
}

/// Counts the events of `paths`, which are files and folders with the files directly in them; of all that happens in the
/// folders of the files only what `is_relevant` says.
pub fn file_events(paths: &[PathBuf], is_relevant: impl Fn(&Path) -> bool + Send + 'static) -> Result<FileEvents, WatchError> {
    let told = Arc::new(EventCounter::default());
    let tell = told.clone();
    let first = paths.first().cloned().unwrap_or_default();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // An error, or an event without a path, says that events were lost.
        let counts = event.map_or(true, |event| {
            !event.kind.is_access() && (event.paths.is_empty() || event.paths.iter().any(|path| is_relevant(path)))
        });
        if counts {
            tell.count.fetch_add(1, Ordering::Release);
            tell.one.notify_one();
        }
    })
    .map_err(|source| WatchError { path: first, source })?;
    for folder in paths.iter().map(|path| folder(path)).collect::<BTreeSet<_>>() {
        watcher
            .watch(&folder, RecursiveMode::NonRecursive)
            .map_err(|source| WatchError { path: folder, source })?;
    }
    Ok(FileEvents {
        counter: told,
        _watcher: watcher,
    })
}

impl FileEvents {
    /// How many there have been.
    pub fn count(&self) -> u64 {
        self.counter.count.load(Ordering::Acquire)
    }

    /// Ends when there has been one since this ended last. Safe to cancel.
    pub async fn next(&self) {
        self.counter.one.notified().await;
    }
}

/// A watch on files and folders; it ends when dropped.
pub struct Watch {
    paths: Vec<PathBuf>,
    seen: Digest,
    /// Something stirred and has not been looked at: kept here so that a cancelled wait loses nothing.
    due: bool,
    events: FileEvents,
}

/// Watches `paths`: files, and folders with the files directly in them.
pub fn watch(paths: &[PathBuf]) -> Result<Watch, WatchError> {
    Ok(Watch {
        events: file_events(paths, |_| true)?,
        paths: paths.to_vec(),
        seen: content(paths),
        due: false,
    })
}

impl Watch {
    /// Ends when the content differs from what it was when this ended last, and has settled. Safe to cancel.
    pub async fn changed(&mut self) {
        loop {
            if !self.due {
                let _ = tokio::time::timeout(REREAD_INTERVAL, self.events.next()).await;
                self.due = true;
            }
            for _ in 0..DEBOUNCES {
                if tokio::time::timeout(DEBOUNCE, self.events.next()).await.is_err() {
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
