//! The errors of the journal: why it cannot be opened, why it refuses a record, and what damage on disk looks like.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Why the journal cannot be opened or read; where the operator can do something, the text says what.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("another process uses the journal `{}`: stop it, or give this instance a `data_dir` of its own", dir.display())]
    Locked { dir: PathBuf },
    #[error(
        "the journal `{}` lies on {kind}, which does not survive a restart: choose a `data_dir` on a disk, or set `journal.allow_volatile = true`",
        dir.display()
    )]
    Volatile { dir: PathBuf, kind: String },
    #[error("cannot use the journal folder `{}`", dir.display())]
    Folder { dir: PathBuf, source: io::Error },
    #[error("cannot read or write the journal file `{}`", file.display())]
    File { file: PathBuf, source: io::Error },
    #[error(
        "{0}: acknowledged records cannot be read back; restore the folder from a copy, or move it aside as evidence and start once with `guardian serve --accept-gap`"
    )]
    Damaged(Damage),
    #[error("cannot start the thread that writes the journal")]
    Thread(#[source] io::Error),
    #[error("no random bytes for a new incarnation")]
    Randomness,
}

/// Bytes on disk that differ from what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("journal file `{}` is damaged at byte {offset}, record {seq}: {what}", file.display())]
pub struct Damage {
    pub file: PathBuf,
    pub offset: u64,
    /// Seq of the first record that cannot be read.
    pub seq: u64,
    pub what: String,
}

/// Why the journal refuses a record; the call it belongs to must not be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Sealed {
    #[error("the journal is full of records that the database has not taken yet")]
    Full,
    #[error("the journal's queue is full")]
    Busy,
    #[error("the journal's disk fails: {0}")]
    Fault(Arc<str>),
    #[error("the journal's disk does not answer")]
    Hung,
    #[error(
        "the audit trail holds rows that this instance did not write; `audit.seal_on_conflict` refuses calls until a restart"
    )]
    Conflict,
    #[error("the journal is closed")]
    Stopped,
}

/// The state of the journal.
///
/// ```text
/// Open <-> Pressure <-> Sealed(Full)      how full the spool is: 70 %, 95 %, and open again below 80 %
/// any  -> Sealed(Fault) -> one of these   a fresh segment failed too; until a write works again
/// any  -> Sealed(Hung)  -> one of these   a write takes longer than `sync_timeout`; until it returns
/// any  -> Sealed(Conflict)                the trail holds other rows than ours, and the configuration asks for this; for good
/// any  -> Sealed(Stopped)                 closed for good
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalState {
    Open,
    Pressure,
    Sealed(Sealed),
}
