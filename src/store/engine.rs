//! The two engines behind one handle: transactions, arguments and rows without a driver's types in them. Knows no table.

use super::StoreError;
use super::audit_partitions::Upkeep;
use super::changes::Author;
use super::sqlite::{Files, SqliteFile};
use super::unreadable::ColumnError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgPool, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteRow};
use sqlx::{AssertSqlSafe, Decode, Row as _, SqlSafeStr, SqlStr, Transaction, Type};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

#[derive(Clone)]
pub struct PostgresEngine {
    pub(super) pool: PgPool,
    pub(super) location: Arc<StoreLocation>,
    pub(super) warnings: Arc<[String]>,
    pub(super) upkeep: Upkeep,
    pub(super) author: Option<Arc<Author>>,
}

#[derive(Clone)]
pub struct SqliteEngine {
    pub(super) file: Arc<SqliteFile>,
    pub(super) location: Arc<StoreLocation>,
    /// Of the first connection.
    pub(super) warnings: Arc<OnceLock<Vec<String>>>,
    pub(super) author: Option<Arc<Author>>,
}

/// Where the store is, as messages name it. Never holds a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StoreLocation {
    Postgres { host: String, database: String, user: String },
    Sqlite { file: PathBuf },
}

impl StoreLocation {
    pub(super) fn user(&self) -> &str {
        match self {
            StoreLocation::Postgres { user, .. } => user,
            StoreLocation::Sqlite { .. } => "",
        }
    }
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreLocation::Postgres { host, database, .. } => write!(f, "the Postgres database `{database}` at `{host}`"),
            StoreLocation::Sqlite { file } => write!(f, "the database file `{}`", file.display()),
        }
    }
}

/// One statement in the words of each engine; placeholders are `$1` in both.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sql {
    pub postgres: &'static str,
    pub sqlite: &'static str,
}

impl Sql {
    pub(super) const fn each(postgres: &'static str, sqlite: &'static str) -> Self {
        Self { postgres, sqlite }
    }

    pub(super) const fn same(text: &'static str) -> Self {
        Self::each(text, text)
    }

    /// For what only Postgres has.
    pub(super) const fn of_postgres(text: &'static str) -> Self {
        Self::each(text, "")
    }
}

/// A statement whose parts are chosen at run time; every part is a literal of this program.
#[derive(Debug, Default)]
pub(super) struct ComposedSql {
    postgres: String,
    sqlite: String,
    pub args: Vec<Arg>,
}

impl ComposedSql {
    pub(super) fn push(&mut self, part: Sql) -> &mut Self {
        self.postgres.push_str(part.postgres);
        self.sqlite.push_str(part.sqlite);
        self
    }

    /// Adds a part in which each `?` stands for `arg`.
    pub(super) fn push_with(&mut self, part: Sql, arg: impl Into<Arg>) -> &mut Self {
        self.args.push(arg.into());
        let placeholder = format!("${}", self.args.len());
        self.postgres.push_str(&part.postgres.replace('?', &placeholder));
        self.sqlite.push_str(&part.sqlite.replace('?', &placeholder));
        self
    }
}

/// Text to run on one of the engines.
pub(super) trait SqlStatement {
    fn postgres(&self) -> SqlStr;
    fn sqlite(&self) -> SqlStr;
}

impl SqlStatement for Sql {
    fn postgres(&self) -> SqlStr {
        self.postgres.into_sql_str()
    }
    fn sqlite(&self) -> SqlStr {
        self.sqlite.into_sql_str()
    }
}

// The one place that runs text made at run time: `ComposedSql` takes literals only, values travel as arguments.
impl SqlStatement for ComposedSql {
    fn postgres(&self) -> SqlStr {
        AssertSqlSafe(self.postgres.clone()).into_sql_str()
    }
    fn sqlite(&self) -> SqlStr {
        AssertSqlSafe(self.sqlite.clone()).into_sql_str()
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Arg {
    Text(Option<String>),
    Int(Option<i64>),
    Bytes(Option<Vec<u8>>),
}

impl From<&str> for Arg {
    fn from(text: &str) -> Self {
        Arg::Text(Some(text.to_owned()))
    }
}

impl From<String> for Arg {
    fn from(text: String) -> Self {
        Arg::Text(Some(text))
    }
}

impl From<Option<String>> for Arg {
    fn from(text: Option<String>) -> Self {
        Arg::Text(text)
    }
}

impl From<Option<&str>> for Arg {
    fn from(text: Option<&str>) -> Self {
        Arg::Text(text.map(str::to_owned))
    }
}

impl From<i64> for Arg {
    fn from(number: i64) -> Self {
        Arg::Int(Some(number))
    }
}

impl From<Option<i64>> for Arg {
    fn from(number: Option<i64>) -> Self {
        Arg::Int(number)
    }
}

impl From<bool> for Arg {
    fn from(flag: bool) -> Self {
        Arg::Int(Some(i64::from(flag)))
    }
}

impl From<&[u8]> for Arg {
    fn from(bytes: &[u8]) -> Self {
        Arg::Bytes(Some(bytes.to_vec()))
    }
}

impl From<Option<&[u8]>> for Arg {
    fn from(bytes: Option<&[u8]>) -> Self {
        Arg::Bytes(bytes.map(<[u8]>::to_vec))
    }
}

/// `args![a, b]`: the arguments of a statement, in the order of its placeholders.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$($crate::store::engine::Arg::from($arg)),*] };
}
pub(super) use args;

/// A column type that reads the same from both engines.
pub(super) trait Column:
    for<'r> Decode<'r, Postgres> + Type<Postgres> + for<'r> Decode<'r, Sqlite> + Type<Sqlite>
{
}
impl<T> Column for T where T: for<'r> Decode<'r, Postgres> + Type<Postgres> + for<'r> Decode<'r, Sqlite> + Type<Sqlite> {}

pub(super) enum Row {
    Postgres(PgRow),
    Sqlite(SqliteRow),
}

impl Row {
    pub(super) fn get<T: Column>(&self, column: &'static str) -> Result<T, StoreError> {
        let value = match self {
            Row::Postgres(row) => row.try_get(column),
            Row::Sqlite(row) => row.try_get(column),
        };
        value.map_err(|_| StoreError::broken("the store", format!("column `{column}` is missing or has another type")))
    }

    /// The same where only this row may be at fault, and not the store. NULL is asked for: SQLite's driver reads it as 0 or as
    /// the empty text where none is expected.
    pub(super) fn cell<T: Column>(&self, column: &'static str) -> Result<T, ColumnError> {
        self.cell_or_null(column)?.ok_or_else(|| ColumnError::new(column, "is NULL"))
    }

    pub(super) fn cell_or_null<T: Column>(&self, column: &'static str) -> Result<Option<T>, ColumnError> {
        let value = match self {
            Row::Postgres(row) => row.try_get::<Option<T>, _>(column),
            Row::Sqlite(row) => row.try_get::<Option<T>, _>(column),
        };
        value.map_err(|_| ColumnError::new(column, "has another type"))
    }
}

/// An open transaction; dropped without `commit` it is rolled back.
pub(super) struct Tx {
    pub(super) on: TxBackend,
    pub(super) location: Arc<StoreLocation>,
}

pub(super) enum TxBackend {
    Postgres(Transaction<'static, Postgres>),
    Sqlite(SqliteTransaction),
}

/// A transaction on a connection of a pool, with `BEGIN` and `COMMIT` sent by ourselves.
///
/// SQLite rolls back by itself after some errors (disk full, I/O error). sqlx 0.9 does not notice: its counter of open
/// transactions stays at 1 and the connection refuses every later `BEGIN`. So a transaction that did not end in a commit
/// closes its connection, which also rolls back whatever is still open, and the pool opens a new one.
pub(super) struct SqliteTransaction {
    pub(super) connection: PoolConnection<Sqlite>,
    ended: bool,
    /// For a write: the file that it goes to, which must still be the store's when it is committed.
    writes_to: Option<(Arc<SqliteFile>, Files)>,
}

impl SqliteTransaction {
    async fn begin(connection: PoolConnection<Sqlite>, how: &'static str) -> Result<Self, sqlx::Error> {
        // Made first, so that the connection is closed too where this future is dropped in the middle.
        let mut begun = Self {
            connection,
            ended: false,
            writes_to: None,
        };
        match sqlx::raw_sql(how).execute(&mut *begun.connection).await {
            Ok(_) => Ok(begun),
            Err(error) => {
                begun.ended = true;
                Err(error)
            }
        }
    }

    async fn commit(mut self, location: &StoreLocation) -> Result<(), StoreError> {
        with_timeout(location, sqlx::raw_sql("COMMIT").execute(&mut *self.connection)).await?;
        self.ended = true;
        match &self.writes_to {
            Some((file, written)) => file.require_same(*written),
            None => Ok(()),
        }
    }
}

impl Drop for SqliteTransaction {
    fn drop(&mut self) {
        if !self.ended {
            self.connection.close_on_drop();
        }
    }
}

/// What a transaction on SQLite is for: it decides which connections it may use.
#[derive(Debug, Clone, Copy)]
pub(super) enum Access {
    Read,
    Write,
}

impl PostgresEngine {
    pub(super) async fn query(&self, sql: &impl SqlStatement, args: &[Arg]) -> Result<Vec<Row>, StoreError> {
        let rows = with_timeout(&self.location, postgres_query(sql, args).fetch_all(&self.pool)).await?;
        Ok(rows.into_iter().map(Row::Postgres).collect())
    }

    pub(super) async fn begin(&self, how: &'static str) -> Result<Tx, StoreError> {
        let begun = with_timeout(&self.location, self.pool.begin_with(how)).await?;
        Ok(Tx {
            on: TxBackend::Postgres(begun),
            location: self.location.clone(),
        })
    }
}

impl SqliteEngine {
    pub(super) async fn query(&self, sql: &impl SqlStatement, args: &[Arg]) -> Result<Vec<Row>, StoreError> {
        let open = self.file.current().await?;
        let rows = with_timeout(&self.location, sqlite_query(sql, args).fetch_all(&open.readers)).await?;
        Ok(rows.into_iter().map(Row::Sqlite).collect())
    }

    pub(super) async fn begin(&self, access: Access) -> Result<Tx, StoreError> {
        let open = self.file.current().await?;
        let (pool, how) = match access {
            Access::Read => (&open.readers, "BEGIN"),
            Access::Write => (&open.writer, "BEGIN IMMEDIATE"),
        };
        let begun = async { SqliteTransaction::begin(pool.acquire().await?, how).await };
        let mut begun = with_timeout(&self.location, begun).await?;
        begun.writes_to = match access {
            Access::Read => None,
            Access::Write => Some((self.file.clone(), open.files())),
        };
        Ok(Tx {
            on: TxBackend::Sqlite(begun),
            location: self.location.clone(),
        })
    }
}

impl Tx {
    pub(super) fn is_postgres(&self) -> bool {
        matches!(self.on, TxBackend::Postgres(_))
    }

    pub(super) async fn fetch(&mut self, sql: &impl SqlStatement, args: &[Arg]) -> Result<Vec<Row>, StoreError> {
        match &mut self.on {
            TxBackend::Postgres(tx) => {
                let rows = with_timeout(&self.location, postgres_query(sql, args).fetch_all(&mut **tx)).await?;
                Ok(rows.into_iter().map(Row::Postgres).collect())
            }
            TxBackend::Sqlite(tx) => {
                let rows = with_timeout(&self.location, sqlite_query(sql, args).fetch_all(&mut *tx.connection)).await?;
                Ok(rows.into_iter().map(Row::Sqlite).collect())
            }
        }
    }

    pub(super) async fn fetch_one(&mut self, sql: &impl SqlStatement, args: &[Arg]) -> Result<Option<Row>, StoreError> {
        Ok(self.fetch(sql, args).await?.into_iter().next())
    }

    /// Returns how many rows were touched.
    pub(super) async fn execute(&mut self, sql: &impl SqlStatement, args: &[Arg]) -> Result<u64, StoreError> {
        match &mut self.on {
            TxBackend::Postgres(tx) => {
                let done = with_timeout(&self.location, postgres_query(sql, args).execute(&mut **tx)).await?;
                Ok(done.rows_affected())
            }
            TxBackend::Sqlite(tx) => {
                let done = with_timeout(&self.location, sqlite_query(sql, args).execute(&mut *tx.connection)).await?;
                Ok(done.rows_affected())
            }
        }
    }

    /// Runs an insert over many rows: as one statement over arrays on Postgres, as few over `{rows}` on SQLite. All or
    /// nothing: after an error the transaction is as before.
    pub(super) async fn insert_rows(&mut self, sql: &Sql, rows: &[Vec<Arg>]) -> Result<u64, StoreError> {
        const SAVE: Sql = Sql::same("SAVEPOINT rows");
        const RELEASE: Sql = Sql::same("RELEASE SAVEPOINT rows");
        const UNDO: Sql = Sql::same("ROLLBACK TO SAVEPOINT rows");
        self.execute(&SAVE, &[]).await?;
        let inserted = self.insert_all(sql, rows).await;
        if inserted.is_err() {
            self.execute(&UNDO, &[]).await?;
        }
        self.execute(&RELEASE, &[]).await?;
        inserted
    }

    async fn insert_all(&mut self, sql: &Sql, rows: &[Vec<Arg>]) -> Result<u64, StoreError> {
        match &mut self.on {
            TxBackend::Postgres(tx) => {
                let done = with_timeout(&self.location, postgres_columns(sql, rows).execute(&mut **tx)).await?;
                Ok(done.rows_affected())
            }
            TxBackend::Sqlite(tx) => {
                let (mut inserted, mut rest) = (0, rows);
                while !rest.is_empty() {
                    let these;
                    (these, rest) = rest.split_at(rows_at_once(rest.len()));
                    let done = with_timeout(&self.location, sqlite_rows(sql, these).execute(&mut *tx.connection)).await?;
                    inserted += done.rows_affected();
                }
                Ok(inserted)
            }
        }
    }

    pub(super) async fn commit(self) -> Result<(), StoreError> {
        match self.on {
            TxBackend::Postgres(tx) => with_timeout(&self.location, tx.commit()).await,
            TxBackend::Sqlite(tx) => tx.commit(&self.location).await,
        }
    }
}

/// The longest wait for one statement: a database that hangs must not hang what waits for it.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) async fn with_timeout<T>(
    location: &StoreLocation,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    with_timeout_of(STATEMENT_TIMEOUT, location, statement).await
}

pub(super) async fn with_timeout_of<T>(
    limit: Duration,
    location: &StoreLocation,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(limit, statement).await {
        Ok(done) => done.map_err(|error| StoreError::of(error, location)),
        Err(_) => Err(StoreError::unreachable(location, format!("no answer in {limit:?}"))),
    }
}

fn postgres_query(sql: &impl SqlStatement, args: &[Arg]) -> Query<'static, Postgres, PgArguments> {
    args.iter().fold(sqlx::query(sql.postgres()), |query, arg| match arg {
        Arg::Text(text) => query.bind(text.clone()),
        Arg::Int(number) => query.bind(*number),
        Arg::Bytes(bytes) => query.bind(bytes.clone()),
    })
}

fn sqlite_query<'a>(sql: &impl SqlStatement, args: impl IntoIterator<Item = &'a Arg>) -> Query<'static, Sqlite, SqliteArguments> {
    args.into_iter().fold(sqlx::query(sql.sqlite()), |query, arg| match arg {
        Arg::Text(text) => query.bind(text.clone()),
        Arg::Int(number) => query.bind(*number),
        Arg::Bytes(bytes) => query.bind(bytes.clone()),
    })
}

/// How many of `left` rows go into one statement on SQLite. A statement is a trip to the connection's thread and back,
/// dearer than the row; few sizes, so that few statements are kept prepared.
fn rows_at_once(left: usize) -> usize {
    [64, 8].into_iter().find(|size| *size <= left).unwrap_or(1)
}

/// The statement with its `{rows}` as so many times so many placeholders. Without numbers: SQLite looks a name up in a list.
fn sqlite_rows(sql: &Sql, rows: &[Vec<Arg>]) -> Query<'static, Sqlite, SqliteArguments> {
    let width = rows.first().map_or(0, Vec::len);
    let row = format!("({})", vec!["?"; width].join(","));
    let text = sql.sqlite.replace("{rows}", &vec![row.as_str(); rows.len()].join(","));
    let composed = ComposedSql {
        sqlite: text,
        ..ComposedSql::default()
    };
    sqlite_query(&composed, rows.iter().flatten())
}

/// The rows turned on their side: one array an argument, for `unnest`.
fn postgres_columns(sql: &Sql, rows: &[Vec<Arg>]) -> Query<'static, Postgres, PgArguments> {
    let width = rows.first().map_or(0, Vec::len);
    (0..width).fold(sqlx::query(sql.postgres), |query, column| {
        let cells = rows.iter().map(|row| &row[column]);
        match &rows[0][column] {
            Arg::Text(_) => query.bind(cells.map(text_of).collect::<Vec<_>>()),
            Arg::Int(_) => query.bind(cells.map(int_of).collect::<Vec<_>>()),
            Arg::Bytes(_) => query.bind(cells.map(bytes_of).collect::<Vec<_>>()),
        }
    })
}

fn text_of(arg: &Arg) -> Option<String> {
    match arg {
        Arg::Text(text) => text.clone(),
        Arg::Int(_) | Arg::Bytes(_) => None,
    }
}

fn int_of(arg: &Arg) -> Option<i64> {
    match arg {
        Arg::Int(number) => *number,
        Arg::Text(_) | Arg::Bytes(_) => None,
    }
}

fn bytes_of(arg: &Arg) -> Option<Vec<u8>> {
    match arg {
        Arg::Bytes(bytes) => bytes.clone(),
        Arg::Text(_) | Arg::Int(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_statement_that_is_never_answered_is_given_up() {
        let location = StoreLocation::Sqlite {
            file: "guardian.db".into(),
        };
        let hung = with_timeout_of::<()>(Duration::from_millis(1), &location, std::future::pending()).await;
        let error = hung.unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot reach the database file `guardian.db`: no answer in 1ms"
        );
        assert!(error.is_transient());
    }

    #[test]
    fn composed_text_holds_placeholders_and_never_values() {
        let mut sql = ComposedSql::default();
        sql.push_with(
            Sql {
                postgres: "a = ?::uuid",
                sqlite: "a = ?",
            },
            "x' OR 1",
        )
        .push(Sql::same(" AND "))
        .push_with(Sql::same("(b = ? OR c = ?)"), 7);
        assert_eq!(sql.postgres().as_str(), "a = $1::uuid AND (b = $2 OR c = $2)");
        assert_eq!(sql.sqlite().as_str(), "a = $1 AND (b = $2 OR c = $2)");
        assert_eq!(sql.args, args!["x' OR 1", 7]);
    }
}
