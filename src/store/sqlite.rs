//! An SQLite file: its mode, its pragmas, one writer and a few readers; and whether it is still the file that its name says.

use super::check::check_file;
use super::engine::{SqliteEngine, StoreLocation};
use super::{Store, StoreError};
use arc_swap::ArcSwapOption;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::Mutex;

const READERS: u32 = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a new file; one that is there keeps its own. A record takes a third of a page of 4 KiB, and each page is two writes to the
/// log, a read and a write to the file.
const PAGE: u32 = 8_192;

/// The database file behind the store, with the connections to it. Before each use the path is compared with the file that
/// is open: where somebody put another file in its place (a restored backup), that file is opened instead.
pub(super) struct SqliteFile {
    path: PathBuf,
    /// Make the file where there is none.
    create: bool,
    location: Arc<StoreLocation>,
    /// `None` until it is connected.
    open: ArcSwapOption<SqlitePools>,
    reopening: Mutex<()>,
}

/// SqlitePools to one file and its write-ahead log, whatever happens to their names.
pub(super) struct SqlitePools {
    /// One connection: SQLite has one writer, and waiting in this queue is fairer than in SQLite's.
    pub(super) writer: SqlitePool,
    pub(super) readers: SqlitePool,
    /// Open as long as the pools: without it, closing the last connection of a pool would delete the log.
    keeps_log: StdMutex<Option<SqliteConnection>>,
    files: Files,
}

/// What the database file and its log are, whatever their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Files {
    database: FileId,
    log: Option<FileId>,
}

/// Device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

pub(super) fn prepare_sqlite(file: &Path, create: bool) -> SqliteEngine {
    let location = Arc::new(StoreLocation::Sqlite { file: file.to_owned() });
    SqliteEngine {
        file: Arc::new(SqliteFile {
            path: file.to_owned(),
            create,
            location: location.clone(),
            open: ArcSwapOption::empty(),
            reopening: Mutex::default(),
        }),
        location,
        warnings: Arc::default(),
        author: None,
    }
}

impl SqliteFile {
    /// Opens the file for the first time; later it does nothing.
    pub(super) async fn connect(&self, warnings: &OnceLock<Vec<String>>) -> Result<(), StoreError> {
        if self.open.load().is_some() {
            return Ok(());
        }
        let found = secure_file(&self.path, self.create, &self.location)?;
        let pools = connect(&self.path, &self.location).await?;
        _ = warnings.set(found);
        self.open.store(Some(Arc::new(pools)));
        Ok(())
    }

    fn open(&self) -> Result<Arc<SqlitePools>, StoreError> {
        self.open
            .load_full()
            .ok_or_else(|| StoreError::unreachable(&self.location, "it is not open yet"))
    }

    /// SqlitePools to the file that the path names now.
    pub(super) async fn current(&self) -> Result<Arc<SqlitePools>, StoreError> {
        let open = self.open()?;
        let now = Files::of(&self.path, &self.location)?;
        if now == open.files {
            return Ok(open);
        }
        if now.database == open.files.database {
            // SQLite keeps one index of the log for each database file of a process: a second log cannot be opened beside
            // the one that is in use.
            return Err(self.unusable("its `-wal` file was removed or replaced while in use: restart Guardian"));
        }
        // Boxed: to check the new file is to use a store, which comes by here.
        Box::pin(self.reopen()).await
    }

    /// Whether `written` are still the files that the path names. Asked after a commit: what was written to a file that has
    /// lost its name is lost with it.
    pub(super) fn require_same(&self, written: Files) -> Result<(), StoreError> {
        if Files::of(&self.path, &self.location)? == written {
            return Ok(());
        }
        Err(StoreError::busy(&self.location, "the file was replaced meanwhile"))
    }

    pub(super) async fn close(&self) {
        if let Some(open) = self.open.load_full() {
            open.close().await;
        }
    }

    /// Takes up the file that is in place now, if it could be served from the start: migrated, with its triggers.
    async fn reopen(&self) -> Result<Arc<SqlitePools>, StoreError> {
        let _one_at_a_time = self.reopening.lock().await;
        let before = self.open()?;
        let now = Files::of(&self.path, &self.location)?;
        if now == before.files {
            return Ok(before);
        }
        // SQLite would replay it over the new file.
        if now.log.is_some() && now.log == before.files.log {
            return Err(
                self.unusable("the `-wal` file of the database that was here lies beside it: remove the `-wal` and `-shm` files")
            );
        }
        let found = Store::Sqlite(prepare_sqlite(&self.path, false));
        found.connect().await?;
        found.require_current().await?;
        let problems = check_file(&found, &self.location).await?;
        if !problems.is_empty() {
            return Err(self.unusable(problems.join("; ")));
        }
        let Store::Sqlite(engine) = &found else {
            unreachable!("a file is opened as SQLite")
        };
        let now = engine.file.open()?;
        self.open.store(Some(now.clone()));
        tracing::warn!(store = %self.location, "the database file was replaced while serving: the new one is in use");
        // Transactions under way end first. SQLite leaves the log beside a file that has lost its name alone.
        tokio::spawn(async move { before.close().await });
        Ok(now)
    }

    fn unusable(&self, what: impl Into<String>) -> StoreError {
        StoreError::Unusable {
            place: self.location.to_string(),
            what: what.into(),
        }
    }
}

impl SqlitePools {
    pub(super) fn files(&self) -> Files {
        self.files
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
        let keeps_log = self.keeps_log.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(connection) = keeps_log {
            // What cannot be folded into the file stays in its log.
            let _closed = connection.close().await;
        }
    }
}

impl Files {
    fn of(path: &Path, location: &StoreLocation) -> Result<Self, StoreError> {
        let log = PathBuf::from(format!("{}-wal", path.display()));
        Ok(Self {
            database: file_id(path, location)?,
            log: fs::metadata(log).ok().map(|meta| FileId::of(&meta)),
        })
    }
}

impl FileId {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
        }
    }
}

fn file_id(path: &Path, location: &StoreLocation) -> Result<FileId, StoreError> {
    fs::metadata(path)
        .map(|meta| FileId::of(&meta))
        .map_err(|error| absent(&error, location))
}

fn absent(error: &std::io::Error, location: &StoreLocation) -> StoreError {
    match error.kind() {
        std::io::ErrorKind::NotFound => StoreError::DatabaseMissing(location.to_string()),
        _ => StoreError::unreachable(location, error.to_string()),
    }
}

async fn connect(file: &Path, location: &Arc<StoreLocation>) -> Result<SqlitePools, StoreError> {
    // SQLite gives `-wal` and `-shm` the mode of the database file: nobody else can read them either
    let writer = SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .page_size(PAGE)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        // else INSERT OR REPLACE would get past the append-only triggers
        .pragma("recursive_triggers", "ON");
    let reader = writer.clone().pragma("query_only", "ON");
    // Each new connection proves that the name still leads to the file that these connections are for: without that, one
    // that is opened after a replacement would silently read another file than its siblings.
    let expected = file_id(file, location)?;
    let failed = |error| StoreError::of(error, location);
    let writer = lasting(1, file, expected).connect_with(writer).await.map_err(failed)?;
    let mut keeps_log = reader.connect().await.map_err(failed)?;
    // The first read opens the log, and makes it where there is none.
    let read = sqlx::raw_sql("SELECT count(*) FROM sqlite_schema").execute(&mut keeps_log);
    read.await.map_err(failed)?;
    let files = Files::of(file, location)?;
    let readers: SqlitePool = lasting(READERS, file, expected).connect_lazy_with(reader);
    Ok(SqlitePools {
        writer,
        readers,
        keeps_log: StdMutex::new(Some(keeps_log)),
        files,
    })
}

fn lasting(connections: u32, file: &Path, expected: FileId) -> SqlitePoolOptions {
    let file = file.to_owned();
    let same = move || fs::metadata(&file).is_ok_and(|meta| FileId::of(&meta) == expected);
    SqlitePoolOptions::new()
        .after_connect(move |_, _| {
            let replaced = (!same()).then(|| sqlx::Error::Protocol("the database file was replaced meanwhile".to_owned()));
            Box::pin(async move { replaced.map_or(Ok(()), Err) })
        })
        .max_connections(connections)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .acquire_timeout(2 * BUSY_TIMEOUT)
}

/// Makes sure that the file exists and that nobody else can read it.
fn secure_file(file: &Path, create: bool, location: &StoreLocation) -> Result<Vec<String>, StoreError> {
    match fs::metadata(file) {
        Ok(meta) if meta.is_dir() => Err(StoreError::Configuration(format!(
            "`{}` is a folder, not a database file",
            file.display()
        ))),
        Ok(meta) => shut(file, meta.permissions().mode()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && create => make(file),
        Err(error) => Err(absent(&error, location)),
    }
}

fn make(file: &Path) -> Result<Vec<String>, StoreError> {
    let made = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(file);
    made.map(|_| Vec::new())
        .map_err(|error| StoreError::Configuration(format!("cannot create the database file `{}`: {error}", file.display())))
}

fn shut(file: &Path, mode: u32) -> Result<Vec<String>, StoreError> {
    if mode & 0o077 == 0 {
        return Ok(Vec::new());
    }
    for part in [String::new(), "-wal".to_owned(), "-shm".to_owned()] {
        let path = format!("{}{part}", file.display());
        match fs::set_permissions(&path, fs::Permissions::from_mode(0o600)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(StoreError::Configuration(format!(
                    "others may read the database file `{path}` and its mode cannot be changed to 600: {error}"
                )));
            }
            Ok(()) => {}
        }
    }
    Ok(vec![format!(
        "others could read the database file `{}` (mode {:o}): changed to 600",
        file.display(),
        mode & 0o777
    )])
}
