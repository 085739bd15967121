//! Opening an SQLite file: its mode, its pragmas, one writer and a few readers.

use super::StoreError;
use super::engine::{Place, SqliteEngine};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const READERS: u32 = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn open(file: &Path, create: bool) -> Result<SqliteEngine, StoreError> {
    let place = Arc::new(Place::Sqlite { file: file.to_owned() });
    let warnings = own(file, create, &place)?;
    // read access for nobody else: SQLite gives `-wal` and `-shm` the mode of the database file
    let writer = SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        // else INSERT OR REPLACE would get past the append-only triggers
        .pragma("recursive_triggers", "ON");
    let reader = writer.clone().pragma("query_only", "ON");
    let failed = |error| StoreError::of(error, &place);
    let writer = lasting(1).connect_with(writer).await.map_err(failed)?;
    let readers: SqlitePool = lasting(READERS).connect_lazy_with(reader);
    Ok(SqliteEngine {
        writer,
        readers,
        place: place.clone(),
        warnings: warnings.into(),
    })
}

fn lasting(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .acquire_timeout(2 * BUSY_TIMEOUT)
}

/// Makes sure that the file exists and that nobody else can read it.
fn own(file: &Path, create: bool, place: &Place) -> Result<Vec<String>, StoreError> {
    match fs::metadata(file) {
        Ok(meta) if meta.is_dir() => Err(StoreError::Configuration(format!(
            "`{}` is a folder, not a database file",
            file.display()
        ))),
        Ok(meta) => shut(file, meta.permissions().mode()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && create => make(file),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(StoreError::DatabaseMissing(place.to_string())),
        Err(error) => Err(StoreError::Unreachable {
            place: place.to_string(),
            why: error.to_string(),
        }),
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
