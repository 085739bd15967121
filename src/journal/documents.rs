//! The documents that records name, on their way to the database: written to files of the journal's folder before the set
//! that they are comes into force, and kept there for a while once they are in the database, which may lose them.

use super::JournalError;
use super::disk::{Disk, read_up_to, replace};
use super::queue::locked;
use super::scan::in_file;
use crate::domain::{Digest, DocumentKind, EnvironmentName, KeptDocument};
use crate::store::Store;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// The most bytes that wait for the database. Past them a new set is refused.
const MOST_PENDING: u64 = 256 * 1024 * 1024;
/// The most files, and bytes of them, that are kept although the database has them.
const MOST_SHIPPED: (usize, u64) = (64, 64 * 1024 * 1024);

pub(super) struct Documents {
    disk: Arc<dyn Disk>,
    environment: EnvironmentName,
    state: Mutex<DocumentState>,
    /// Some file may not be in the database yet.
    pending: AtomicBool,
}

#[derive(Default)]
struct DocumentState {
    /// Those that this process wrote, so that none is written twice.
    kept: HashSet<(DocumentKind, Digest)>,
    /// Those of the newest set.
    newest: Vec<KeptDocument>,
    next: u64,
    pending_bytes: u64,
}

/// The content of a file.
#[derive(Serialize, Deserialize)]
struct DocumentFile {
    environment: EnvironmentName,
    documents: Vec<StoredDocument>,
}

#[derive(Serialize, Deserialize)]
struct StoredDocument {
    kind: DocumentKind,
    digest: Digest,
    text: Arc<str>,
}

impl Documents {
    /// Looks for files that an earlier run did not get rid of.
    pub fn open(disk: Arc<dyn Disk>, environment: EnvironmentName) -> Result<Self, JournalError> {
        let mut state = DocumentState::default();
        let names = document_files(&*disk, PENDING).map_err(in_file(&*disk, ""))?;
        for name in &names {
            state.pending_bytes += size_of(&*disk, name).map_err(in_file(&*disk, name))?;
        }
        let shipped = document_files(&*disk, SHIPPED).map_err(in_file(&*disk, ""))?;
        let numbers = names.iter().chain(&shipped).filter_map(|name| number_of(name));
        state.next = numbers.max().map_or(0, |last| last + 1);
        Ok(Self {
            disk,
            environment,
            state: Mutex::new(state),
            pending: AtomicBool::new(!names.is_empty()),
        })
    }

    /// Makes those durable that were not kept before. Blocks on disk I/O.
    pub fn keep(&self, documents: &[KeptDocument]) -> Result<(), JournalError> {
        let mut state = locked(&self.state);
        state.newest = documents.to_vec();
        let mut seen = HashSet::new();
        let key = |document: &KeptDocument| (document.kind, document.digest);
        let is_new = |document: &&KeptDocument| !state.kept.contains(&key(document)) && seen.insert(key(document));
        let new: Vec<&KeptDocument> = documents.iter().filter(is_new).collect();
        if new.is_empty() {
            return Ok(());
        }
        let file = DocumentFile {
            environment: self.environment.clone(),
            documents: new.iter().copied().map(StoredDocument::of).collect(),
        };
        let bytes = serde_json::to_vec(&file).expect("it has only texts");
        let name = file_name(state.next);
        let size = bytes.len() as u64;
        if state.pending_bytes + size > MOST_PENDING {
            let full = format!("more than {MOST_PENDING} bytes of policies and tools wait for the database");
            return Err(in_file(&*self.disk, &name)(io::Error::other(full)));
        }
        replace(&*self.disk, &name, &bytes).map_err(in_file(&*self.disk, &name))?;
        state.next += 1;
        state.pending_bytes += size;
        state.kept.extend(seen);
        self.pending.store(true, Ordering::Release);
        Ok(())
    }

    /// Brings what waits to the database. Called before the records that may name it.
    pub async fn ship(self: &Arc<Self>, store: &Store) -> Result<(), String> {
        if !self.pending.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let shipped = self.ship_files(store).await;
        if shipped.is_err() {
            self.pending.store(true, Ordering::Release);
        }
        shipped
    }

    /// Has those that the database took, and may have lost, brought to it once more: the newest set, and what is kept of others.
    pub async fn ship_again(self: &Arc<Self>) -> Result<(), String> {
        self.on_disk(|documents| {
            let newest = {
                let mut state = locked(&documents.state);
                state.kept.clear();
                state.newest.clone()
            };
            documents.keep(&newest).map_err(io::Error::other)?;
            let disk = &*documents.disk;
            for name in document_files(disk, SHIPPED)? {
                let size = size_of(disk, &name)?;
                disk.rename(&name, &renamed(&name, PENDING))?;
                locked(&documents.state).pending_bytes += size;
            }
            Ok(())
        })
        .await?;
        self.pending.store(true, Ordering::Release);
        Ok(())
    }

    async fn ship_files(self: &Arc<Self>, store: &Store) -> Result<(), String> {
        let names = self.on_disk(|documents| document_files(&*documents.disk, PENDING)).await?;
        for name in names {
            let reading = name.clone();
            let (file, size) = self.on_disk(move |documents| documents.read(&reading)).await?;
            if let Some(file) = file {
                let documents: Vec<KeptDocument> = file
                    .documents
                    .into_iter()
                    .filter_map(|stored| stored.checked(&name))
                    .collect();
                store
                    .ship_documents(&file.environment, &documents)
                    .await
                    .map_err(|error| error.to_string())?;
            }
            self.on_disk(move |documents| documents.set_aside(&name, size)).await?;
        }
        Ok(())
    }

    /// What cannot be read as one is set aside by its name: it must not keep records from being shipped.
    fn read(&self, name: &str) -> io::Result<(Option<DocumentFile>, u64)> {
        let file = self.disk.open(name)?;
        let size = file.size()?;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        let read = read_up_to(&*file, &mut bytes, 0)?;
        match serde_json::from_slice(&bytes[..read]) {
            Ok(file) => Ok((Some(file), size)),
            Err(error) => {
                let file = self.disk.path(name);
                tracing::error!(file = %file.display(), %error, "damaged: some policies or tools cannot be brought to the audit trail; a restart writes those in force once more");
                Ok((None, size))
            }
        }
    }

    /// The database has these. The oldest of its kind go when there are many.
    fn set_aside(&self, name: &str, size: u64) -> io::Result<()> {
        let disk = &*self.disk;
        disk.rename(name, &renamed(name, SHIPPED))?;
        let mut state = locked(&self.state);
        state.pending_bytes = state.pending_bytes.saturating_sub(size);
        drop(state);
        let mut bytes = 0;
        for (count, name) in document_files(disk, SHIPPED)?.iter().rev().enumerate() {
            bytes += size_of(disk, name)?;
            if count >= MOST_SHIPPED.0 || bytes > MOST_SHIPPED.1 {
                disk.remove(name)?;
            }
        }
        Ok(())
    }

    async fn on_disk<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> Result<T, String> {
        let documents = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&documents)).await;
        let failed = |error: io::Error| format!("the documents of the journal's folder: {error}");
        done.map_err(|error| error.to_string())?.map_err(failed)
    }
}

impl StoredDocument {
    fn of(document: &KeptDocument) -> Self {
        Self {
            kind: document.kind,
            digest: document.digest,
            text: document.text.clone(),
        }
    }

    fn checked(self, file: &str) -> Option<KeptDocument> {
        let document = KeptDocument::new(self.kind, self.text);
        if document.digest == self.digest {
            return Some(document);
        }
        tracing::error!(file, digest = %self.digest, "damaged: a document is not what its hash says and is left out of the audit trail");
        None
    }
}

const PREFIX: &str = "documents-";
/// How the name of a file ends that may not be in the database, and of one that is there.
const PENDING: &str = ".json";
const SHIPPED: &str = ".shipped";

fn file_name(number: u64) -> String {
    format!("{PREFIX}{number:016x}{PENDING}")
}

fn renamed(name: &str, suffix: &str) -> String {
    let (stem, _) = name.split_once('.').unwrap_or((name, ""));
    format!("{stem}{suffix}")
}

fn number_of(name: &str) -> Option<u64> {
    let (number, _) = name.strip_prefix(PREFIX)?.split_once('.')?;
    u64::from_str_radix(number, 16).ok()
}

fn size_of(disk: &dyn Disk, name: &str) -> io::Result<u64> {
    disk.open(name)?.size()
}

/// Their names in order.
fn document_files(disk: &dyn Disk, suffix: &str) -> io::Result<Vec<String>> {
    let mut names = disk.list()?;
    names.retain(|name| name.ends_with(suffix) && number_of(name).is_some());
    names.sort_unstable();
    Ok(names)
}
