//! The two stores a story runs on: an embedded database in its folder, or a database of its own on the tests' cluster.

use super::postgres;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

/// A database on the cluster, with a login for the proxy that may do no more than a proxy may.
pub struct Database {
    name: String,
    /// Of the cluster; also what the commands use.
    admin: sqlx::postgres::PgConnectOptions,
    cluster_url: String,
    pub password: String,
}

/// Group roles belong to the whole cluster: one migration at a time makes them.
const ONE_AT_A_TIME: i64 = 0x6775_6172;

impl Database {
    pub async fn create() -> Database {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("story_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cluster_url = postgres::admin_url();
        let admin = sqlx::postgres::PgConnectOptions::from_str(&cluster_url).unwrap();
        let database = Database {
            password: format!("canary-password-{name}"),
            name,
            admin,
            cluster_url,
        };
        database
            .on_cluster(&format!("DROP DATABASE IF EXISTS {0} WITH (FORCE)", database.name))
            .await;
        database.on_cluster(&format!("CREATE DATABASE {}", database.name)).await;
        database
    }

    /// What `store.url` is set to.
    pub fn proxy_url(&self) -> String {
        format!(
            "postgres://{}:{}@{}:{}/{}",
            self.proxy(),
            self.password,
            self.admin.get_host(),
            self.admin.get_port(),
            self.name
        )
    }

    /// What `store.admin_url` is set to.
    pub fn admin_url(&self) -> String {
        let end = self.cluster_url.rfind('/').expect("the URL of a cluster ends in a database");
        format!("{}/{}", &self.cluster_url[..end], self.name)
    }

    /// The proxy's login.
    pub fn proxy(&self) -> String {
        format!("proxy_{}", self.name)
    }

    /// Runs the migration while no other test does.
    pub async fn alone<T>(&self, migrate: impl FnOnce() -> T) -> T {
        let mut connection = self.admin.connect().await.unwrap();
        run(&mut connection, &format!("SELECT pg_advisory_lock({ONE_AT_A_TIME})")).await;
        let migrated = migrate();
        let (proxy, password) = (self.proxy(), &self.password);
        run(&mut connection, &format!("DROP ROLE IF EXISTS {proxy}")).await;
        run(
            &mut connection,
            &format!("CREATE ROLE {proxy} LOGIN PASSWORD '{password}' IN ROLE guardian_proxy"),
        )
        .await;
        connection.close().await.unwrap();
        migrated
    }

    /// Runs SQL in this database as its owner.
    pub async fn execute(&self, sql: &str) {
        let mut connection = self.admin.clone().database(&self.name).connect().await.unwrap();
        run(&mut connection, sql).await;
    }

    /// The one number a query gives.
    pub async fn count(&self, sql: &str) -> i64 {
        let mut connection = self.admin.clone().database(&self.name).connect().await.unwrap();
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_one(&mut connection)
            .await
            .unwrap()
    }

    /// Cuts every connection to it and lets no new one in, as if the server were gone.
    pub async fn go_down(&self) {
        self.on_cluster(&format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", self.name))
            .await;
        let cut = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{}'",
            self.name
        );
        self.on_cluster(&cut).await;
    }

    pub async fn come_back(&self) {
        self.on_cluster(&format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", self.name))
            .await;
    }

    async fn on_cluster(&self, sql: &str) {
        run(&mut self.admin.connect().await.unwrap(), sql).await;
    }
}

async fn run(connection: &mut PgConnection, sql: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}
