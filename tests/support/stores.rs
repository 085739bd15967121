//! The two stores of a story: an embedded database in its folder, or a database of its own on a real Postgres, with a login
//! that has the proxy's privileges and no more.

use super::postgres;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use std::path::Path;
use std::str::FromStr;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

pub struct Database {
    inner: postgres::Database,
    /// The proxy's login; its password is a canary.
    pub proxy: String,
    pub password: String,
}

/// An advisory lock. Group roles belong to the whole cluster, so only one migration at a time may make them.
const ONE_AT_A_TIME: i64 = 0x6775_6172;

impl Database {
    pub async fn create() -> Database {
        Self::on(postgres::Database::new().await).await
    }

    /// On a Postgres of its own, which can be stopped and replaced.
    pub async fn on_own_cluster() -> Database {
        Self::on(postgres::Database::on_own_cluster().await).await
    }

    async fn on(inner: postgres::Database) -> Database {
        let (proxy, password) = (format!("proxy_{}", inner.name), format!("canary-{}", inner.name));
        inner
            .execute(&format!("CREATE ROLE {proxy} LOGIN PASSWORD '{password}'"))
            .await;
        Database { inner, proxy, password }
    }

    /// The Postgres of its own.
    pub fn own_cluster(&mut self) -> &mut postgres::Cluster {
        self.inner.cluster()
    }

    /// The value of `store.url`.
    pub fn proxy_url(&self) -> String {
        let cluster = self.cluster();
        format!(
            "postgres://{}:{}@{}:{}/{}",
            self.proxy,
            self.password,
            cluster.get_host(),
            cluster.get_port(),
            self.inner.name
        )
    }

    /// The value of `store.admin_url`.
    pub fn admin_url(&self) -> String {
        self.inner.url()
    }

    /// Runs the migration while no other test runs one, and makes the proxy's login a member of the proxy's role.
    pub async fn alone<T>(&self, migrate: impl FnOnce() -> T) -> T {
        let mut cluster = self.cluster().connect().await.unwrap();
        let lock = format!("SELECT pg_advisory_lock({ONE_AT_A_TIME})");
        sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut cluster).await.unwrap();
        let migrated = migrate();
        self.execute(&format!("GRANT guardian_proxy TO {}", self.proxy)).await;
        cluster.close().await.unwrap();
        migrated
    }

    /// Runs SQL in this database as its owner.
    pub async fn execute(&self, sql: &str) {
        self.inner.execute(sql).await;
    }

    /// A connection as its owner.
    pub async fn connect(&self) -> sqlx::PgConnection {
        self.inner.connect().await
    }

    /// The number that a query returns.
    pub async fn count(&self, sql: &str) -> i64 {
        let mut connection = self.inner.connect().await;
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_one(&mut connection)
            .await
            .unwrap()
    }

    /// Every record of the trail, in order.
    pub async fn records(&self) -> Vec<StoredRecord> {
        let mut connection = self.inner.connect().await;
        let records = sqlx::query_as::<_, StoredCells>(AssertSqlSafe(RECORDS.replace("{t}", "guardian.")));
        let records = records.fetch_all(&mut connection).await.unwrap();
        records.into_iter().map(Into::into).collect()
    }

    /// Ends every connection to the database and allows no new one, as if the server were gone.
    pub async fn go_down(&self) {
        self.on_cluster(&format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", self.inner.name))
            .await;
        let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname =";
        self.on_cluster(&format!("{cut} '{}'", self.inner.name)).await;
    }

    pub async fn come_back(&self) {
        self.on_cluster(&format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", self.inner.name))
            .await;
    }

    async fn on_cluster(&self, sql: &str) {
        let mut cluster = self.cluster().connect().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut cluster)
            .await
            .unwrap();
    }

    fn cluster(&self) -> PgConnectOptions {
        PgConnectOptions::from_str(&self.inner.url()).unwrap().database("postgres")
    }
}

/// A record as the trail has it.
#[derive(Debug)]
pub struct StoredRecord {
    pub incarnation: Vec<u8>,
    pub seq: i64,
    pub bytes: Vec<u8>,
    pub leaf: Vec<u8>,
    pub head: Vec<u8>,
}

type StoredCells = (Vec<u8>, i64, Vec<u8>, Vec<u8>, Vec<u8>);

impl From<StoredCells> for StoredRecord {
    fn from((incarnation, seq, bytes, leaf, head): StoredCells) -> Self {
        Self {
            incarnation,
            seq,
            bytes,
            leaf,
            head,
        }
    }
}

const RECORDS: &str =
    "SELECT incarnation, seq, bytes, leaf, head FROM {t}audit_trail WHERE bytes IS NOT NULL ORDER BY incarnation, seq";

/// Every record of the trail in an embedded database, in order.
pub async fn records_in_file(file: &Path) -> Vec<StoredRecord> {
    let mut connection = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(file)
        .connect()
        .await
        .unwrap();
    let records = sqlx::query_as::<_, StoredCells>(AssertSqlSafe(RECORDS.replace("{t}", "")));
    let records = records.fetch_all(&mut connection).await.unwrap();
    records.into_iter().map(Into::into).collect()
}

/// The number that a query returns in an embedded database.
pub async fn count_in_file(file: &Path, sql: &str) -> i64 {
    let mut connection = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(file)
        .connect()
        .await
        .unwrap();
    let count = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
        .fetch_one(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    count
}

/// Runs SQL in an embedded database, beside the process that has it open.
pub async fn execute_in_file(file: &Path, sql: &str) {
    let mut connection = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(file)
        .connect()
        .await
        .unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}
