//! The store: users, grants, keys, servers, tools and the audit trail, in Postgres or SQLite behind one set of functions.
//! The only room that names SQL. It decides nothing and caches nothing.

mod audit;
mod audit_changes;
mod audit_partitions;
mod bulk;
mod catalogue;
mod change_words;
mod changes;
mod check;
mod compare;
mod directory;
mod documents;
mod engine;
mod error;
mod grants;
mod keys;
mod migrate;
mod open;
mod postgres;
mod record_columns;
mod registry;
mod server_failures;
mod ship;
mod sqlite;
mod trail;
mod unreadable;
mod users;

pub use audit::{AuditFilter, AuditKind, AuditOutcome, AuditRow, AuditSpan};
pub use audit_changes::AuditChange;
pub use catalogue::{Observed, StoredTool};
pub use changes::Author;
pub use compare::Difference;
pub use directory::{Anchor, CatchUp, Delta, Directory, RevocationRows};
pub use engine::{PostgresEngine, SqliteEngine};
pub use error::StoreError;
pub use grants::{GrantRow, NewGrant};
pub use keys::KeyRow;
pub use migrate::MigrationStatus;
pub use open::StoreOpen;
pub use registry::RegistryRow;
pub use server_failures::ServerFailure;
pub use ship::Shipped;
pub use trail::TrailSpan;
pub use unreadable::UnreadableRow;
pub use users::{NewUser, UserRow};

use crate::domain::Timestamp;
use engine::{Access, Arg, Row, SqlStatement, StoreLocation, Tx};
use serde::Serializer;

/// A connected store. Clones share their connections.
#[derive(Clone)]
pub enum Store {
    Postgres(PostgresEngine),
    Sqlite(SqliteEngine),
}

impl Store {
    /// Connects and proves it once, so that a wrong setting is told now and not at the first call.
    pub async fn open(open: &StoreOpen) -> Result<Store, StoreError> {
        let store = Self::prepare(open)?;
        store.connect().await?;
        Ok(store)
    }

    /// Reads the settings and connects to nothing, for an instance that starts while its store is away.
    pub fn prepare(open: &StoreOpen) -> Result<Store, StoreError> {
        match open {
            StoreOpen::Postgres {
                url,
                ca_file,
                max_connections,
                connect_timeout,
            } => {
                let engine = postgres::prepare_postgres(url, ca_file.as_deref(), *max_connections, *connect_timeout)?;
                Ok(Store::Postgres(engine))
            }
            StoreOpen::Sqlite { file, create } => Ok(Store::Sqlite(sqlite::prepare_sqlite(file, *create))),
        }
    }

    /// Connects once. A store that was connected stays as it is.
    pub async fn connect(&self) -> Result<(), StoreError> {
        match self {
            Store::Postgres(engine) => postgres::try_once(engine).await,
            Store::Sqlite(engine) => engine.file.connect(&engine.warnings).await,
        }
    }

    /// What was done or found at opening that the operator should know.
    pub fn warnings(&self) -> &[String] {
        match self {
            Store::Postgres(engine) => &engine.warnings,
            Store::Sqlite(engine) => engine.warnings.get().map_or(&[], Vec::as_slice),
        }
    }

    /// Where it is, for messages; never holds a password.
    pub fn location(&self) -> String {
        self.location_ref().to_string()
    }

    /// Closes all connections; on SQLite this also folds the write-ahead log back into the file.
    pub async fn close(&self) {
        match self {
            Store::Postgres(engine) => engine.pool.close().await,
            Store::Sqlite(engine) => engine.file.close().await,
        }
    }

    fn location_ref(&self) -> &StoreLocation {
        match self {
            Store::Postgres(engine) => &engine.location,
            Store::Sqlite(engine) => &engine.location,
        }
    }

    /// One snapshot: everything read through it is of the same moment.
    async fn read(&self) -> Result<Tx, StoreError> {
        match self {
            Store::Postgres(engine) => engine.begin("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await,
            Store::Sqlite(engine) => engine.begin(Access::Read).await,
        }
    }

    /// One statement that is its own snapshot.
    async fn query(&self, sql: &impl SqlStatement, args: &[Arg]) -> Result<Vec<Row>, StoreError> {
        match self {
            Store::Postgres(engine) => engine.query(sql, args).await,
            Store::Sqlite(engine) => engine.query(sql, args).await,
        }
    }

    /// One statement in a transaction of its own. Returns how many rows were touched.
    async fn execute(&self, sql: &impl SqlStatement, args: &[Arg]) -> Result<u64, StoreError> {
        let mut tx = self.write().await?;
        let touched = tx.execute(sql, args).await?;
        tx.commit().await?;
        Ok(touched)
    }

    async fn write(&self) -> Result<Tx, StoreError> {
        match self {
            Store::Postgres(engine) => engine.begin("BEGIN").await,
            Store::Sqlite(engine) => engine.begin(Access::Write).await,
        }
    }
}

/// Times as people and other programs read them, in everything printed as JSON.
fn rfc3339<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(at)
}

fn rfc3339_or_null<S: Serializer>(at: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => to.collect_str(at),
        None => to.serialize_none(),
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.location_ref())
    }
}
