//! A migrated store with its logins, the same for both engines, and helpers to fill it.

use crate::postgres::{Database, Login};
use neural_guardian::domain::*;
use neural_guardian::store::{Author, NewGrant, NewUser, Store, StoreError, StoreOpen};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// A store, opened with the administrator's login and with the proxy's; on SQLite both are the same.
pub struct World {
    /// Member of guardian_admin and guardian_auditor.
    pub admin: Store,
    /// Member of guardian_proxy.
    pub proxy: Store,
    pub place: Place,
}

pub enum Place {
    Sqlite(Folder),
    Postgres(Box<Server>),
}

pub struct Server {
    pub admin: Login,
    pub proxy: Login,
    pub database: Database,
}

/// The environment that all logins except the superuser are bound to.
pub fn env() -> EnvironmentName {
    parse("production")
}

/// Who changes the store in these tests.
pub fn author() -> Author {
    Author::Command {
        actor: actor("ann"),
        claimed_by: Some("Ann".into()),
    }
}

pub fn actor(user: &str) -> Actor {
    Actor {
        user: user.into(),
        uid: 1000,
        host: "desk".into(),
        sudo_user: None,
    }
}

impl World {
    pub async fn sqlite() -> Self {
        let folder = Folder::new();
        let store = Store::open(&StoreOpen::Sqlite {
            file: folder.file(),
            create: true,
        })
        .await
        .unwrap();
        store.migrate(&mut |_| ()).await.unwrap();
        Self {
            admin: store.clone().authored(author()),
            proxy: store.authored(Author::Instance(actor("guardian"))),
            place: Place::Sqlite(folder),
        }
    }

    /// A Postgres store, migrated by a login that is not a superuser.
    pub async fn postgres() -> Self {
        let mut database = Database::new().await;
        let migrator = database.login("CREATEROLE", &[]).await;
        database
            .execute(&format!("GRANT CREATE ON DATABASE {} TO {}", database.name, migrator.role))
            .await;
        database
            .execute(&format!(
                "DO $$ BEGIN IF to_regrole('guardian_owner') IS NOT NULL THEN GRANT guardian_owner TO {}; END IF; END $$",
                migrator.role
            ))
            .await;
        open(&migrator.url).await.unwrap().migrate(&mut |_| ()).await.unwrap();
        let admin = database.login("", &["guardian_admin", "guardian_auditor"]).await;
        let proxy = database.login("", &["guardian_proxy"]).await;
        for login in [&admin, &proxy] {
            database
                .execute(&format!("SELECT guardian.bind_role('{}', '{}')", login.role, env()))
                .await;
        }
        Self {
            admin: open(&admin.url).await.unwrap().authored(author()),
            proxy: open(&proxy.url).await.unwrap().authored(Author::Instance(actor("guardian"))),
            place: Place::Postgres(Box::new(Server { admin, proxy, database })),
        }
    }

    /// Runs statements as the database's owner, without the store; `schema.` stands for the engine's prefix.
    pub async fn by_hand(&self, sql: &str) {
        self.try_by_hand(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    pub async fn try_by_hand(&self, sql: &str) -> Result<u64, sqlx::Error> {
        match &self.place {
            Place::Sqlite(folder) => raw_sqlite(&folder.file(), &sql.replace("schema.", "")).await,
            Place::Postgres(server) => raw_postgres(&server.database.url(), &sql.replace("schema.", "guardian.")).await,
        }
    }

    /// The number that a query on Postgres returns.
    pub async fn count_by_hand(&self, sql: &str) -> i64 {
        let Place::Postgres(server) = &self.place else {
            panic!("this is not Postgres")
        };
        let mut connection = server.database.connect().await;
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned()))
            .fetch_one(&mut connection)
            .await
            .unwrap()
    }

    pub fn is_postgres(&self) -> bool {
        matches!(self.place, Place::Postgres(_))
    }

    pub async fn user(&self, email: &str) -> UserId {
        let user = NewUser {
            id: None,
            kind: PrincipalKind::User,
            email: Some(email.into()),
            display_name: None,
            roles: vec![],
        };
        self.admin.add_user(&env(), &user).await.unwrap()
    }

    pub async fn grant(&self, user: &UserId, server: &str, scopes: &[&str]) -> GrantId {
        let scopes = scopes.iter().map(|scope| parse(scope)).collect();
        let grant = NewGrant {
            user: user.clone(),
            server: parse(server),
            client: None,
            scopes,
            expires_at: None,
            idle: false,
        };
        self.admin.add_grant(&env(), &grant).await.unwrap()
    }

    pub async fn sees(&self, user: &UserId) -> Member {
        self.proxy
            .member(&env(), user)
            .await
            .unwrap()
            .expect("the proxy sees the user")
    }
}

pub async fn open(url: &str) -> Result<Store, StoreError> {
    Store::open(&postgres_at(url)).await
}

pub fn postgres_at(url: &str) -> StoreOpen {
    StoreOpen::Postgres {
        url: url.into(),
        ca_file: None,
        max_connections: 4,
        connect_timeout: Duration::from_secs(10),
    }
}

pub async fn raw_postgres(url: &str, sql: &str) -> Result<u64, sqlx::Error> {
    let mut connection: PgConnection = PgConnectOptions::from_str(url).unwrap().connect().await?;
    connection
        .execute(AssertSqlSafe(sql.to_owned()))
        .await
        .map(|done| done.rows_affected())
}

pub async fn raw_sqlite(file: &Path, sql: &str) -> Result<u64, sqlx::Error> {
    let options = SqliteConnectOptions::new().filename(file).pragma("recursive_triggers", "ON");
    let mut connection: SqliteConnection = options.connect().await?;
    connection
        .execute(AssertSqlSafe(sql.to_owned()))
        .await
        .map(|done| done.rows_affected())
}

pub fn parse<T: FromStr<Err = BadName>>(text: &str) -> T {
    text.parse().unwrap()
}

pub fn at(text: &str) -> Timestamp {
    Timestamp::parse_rfc3339(text).unwrap()
}

pub fn key(id: &str) -> ApiKey {
    ApiKey {
        id: parse(id),
        name: "laptop".into(),
        hash: [7; 32],
        pepper_version: 3,
        scopes: [parse("read_file")].into_iter().collect(),
        created_at: at("2026-11-20T10:00:00.123456Z"),
        expires_at: Some(at("9000-11-20T10:00:00.000001Z")),
        revoked_at: None,
    }
}

/// A temporary folder, removed when dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("guardian-store-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self) -> PathBuf {
        self.0.join("guardian.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `on_both! { async fn name(world) { … } }`: the same test on SQLite and on Postgres.
macro_rules! on_both {
    ($(async fn $name:ident($world:ident) $body:block)*) => {
        $(async fn $name($world: &mut crate::store::world::World) $body)*
        mod sqlite {
            $(#[tokio::test] async fn $name() { super::$name(&mut crate::store::world::World::sqlite().await).await; })*
        }
        mod postgres {
            $(#[tokio::test] async fn $name() { super::$name(&mut crate::store::world::World::postgres().await).await; })*
        }
    };
}
pub(crate) use on_both;
