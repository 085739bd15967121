//! The question here: does a change committed to a real store, through another connection, bind the next decision? SQLite
//! and Postgres, failover included. How often the store is asked, and what holds when it fails, is tested on a paused clock
//! in `src/grants/tests.rs`.

use crate::postgres::Database;
use crate::store::world::author;
use neural_guardian::config::{GrantsConfig, HumanDuration};
use neural_guardian::domain::{
    ApiKey, AuthMethod, Digest, EnvironmentName, Fingerprint, GrantStatus, Issuer, IssuerAlias, KeyId, Principal, PrincipalKind,
    Reason, Revocation, RevocationKind, Scope, Scopes, ServerName, Subject, Timestamp, UserId,
};
use neural_guardian::grants::{GrantSnapshot, Grants};
use neural_guardian::store::{NewGrant, NewUser, RegistryRow, Store, StoreOpen};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Runs each story on both stores.
macro_rules! on_both {
    ($($story:ident)*) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $story() {
                super::$story(super::Place::sqlite(stringify!($story)).await).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            async fn $story() {
                super::$story(super::Place::postgres().await).await;
            })*
        }
    };
}

on_both! {
    a_revoked_grant_binds_the_next_call
    everything_about_a_member_follows_the_store
    with_more_users_than_allowed_those_enrolled_longest_are_served
    a_history_that_was_rewritten_is_read_anew
    a_store_that_is_gone_is_outlived_for_as_long_as_configured
    the_registry_and_the_catalogue_announce_themselves
    another_environment_is_another_world
}

async fn a_revoked_grant_binds_the_next_call(place: Place) {
    let ann = place.enrol("ann").await;
    let grants = place.grants(Duration::ZERO).await;
    let view = grants.fresh().await.unwrap();
    let member = grants.by_id(&ann).unwrap();
    let grant = &member.grants[0];
    assert_eq!(grant.status, GrantStatus::Verified);
    let ticket = GrantSnapshot {
        generation: view.generation,
        member: ann.clone(),
        grant: Some((grant.id.clone(), grant.version)),
        principal: Arc::new(principal("ann")),
    };
    assert_eq!(grants.recheck(&ticket, now()), Ok(()));

    assert!(place.admin.revoke_grant(&env(), &ann, &files(), None).await.unwrap());
    assert_eq!(grants.recheck(&ticket, now()), Ok(()), "nobody has asked yet");
    let later = grants.fresh().await.unwrap();
    assert!(later.seq > view.seq && later.generation > view.generation);
    assert_eq!(grants.by_id(&ann).unwrap().grants[0].status, GrantStatus::Revoked);
    assert_eq!(grants.recheck(&ticket, now()), Err(Reason::GrantRevoked));

    place.grant(&ann).await;
    grants.fresh().await.unwrap();
    let again = &grants.by_id(&ann).unwrap().grants[0];
    assert_eq!(again.status, GrantStatus::Verified);
    assert_eq!(
        grants.recheck(&ticket, now()),
        Err(Reason::StaleAuthorization),
        "another version of the grant is another grant"
    );
    place.end(grants).await;
}

async fn everything_about_a_member_follows_the_store(place: Place) {
    let ann = place.enrol("ann").await;
    let grants = place.grants(Duration::from_secs(3_600)).await;
    let (issuer, subject) = identity("ann");
    assert_eq!(grants.by_identity(&issuer, &subject).unwrap().id, ann);
    assert_eq!(grants.counts().members, 1);

    // Enrolled after the load: found by the confirmation that follows a miss.
    let bob = place.enrol("bob").await;
    let (issuer, bobs) = identity("bob");
    assert!(grants.by_identity(&issuer, &bobs).is_none());
    assert_eq!(grants.find_by_identity(&issuer, &bobs).await.unwrap().id, bob);

    let id = KeyId::parse("keykeykey").unwrap();
    place.admin.add_key(&env(), &ann, &key(&id)).await.unwrap();
    let owner = grants.find_by_key(&id).await.unwrap();
    assert_eq!((&owner.id, owner.key(&id).unwrap().hash), (&ann, [7; 32]));
    place.admin.revoke_key(&env(), &id, now()).await.unwrap();
    grants.confirm().await.unwrap();
    assert!(grants.by_key(&id).unwrap().key(&id).unwrap().revoked_at.is_some());

    // The identity moves from one user to the other.
    place.admin.unlink_identity(&env(), &issuer, &subject).await.unwrap();
    place.admin.link_identity(&env(), &bob, &issuer, &subject).await.unwrap();
    grants.confirm().await.unwrap();
    assert_eq!(grants.by_identity(&issuer, &subject).unwrap().id, bob);

    let at = now();
    let revocation = Revocation {
        issuer: issuer.clone(),
        kind: RevocationKind::Subject,
        value: "ann".to_owned(),
        issued_before: at,
        expires_at: at.plus(Duration::from_secs(60)),
    };
    place
        .admin
        .add_revocations(&env(), std::slice::from_ref(&revocation), None)
        .await
        .unwrap();
    grants.confirm().await.unwrap();
    assert!(grants.revoked(&principal("ann"), at));
    assert!(!grants.revoked(&principal("bob"), at));
    assert_eq!(grants.counts().reloads, 1, "all of this came by the change feed");

    place.end(grants).await;
}

/// Whatever their ids, and after each start.
async fn with_more_users_than_allowed_those_enrolled_longest_are_served(place: Place) {
    let mut users = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        users.push(place.enrol(name).await);
    }
    for (n, user) in users.iter().enumerate() {
        place.enrolled_at(user, n).await;
    }
    let config = GrantsConfig {
        max_members: 3,
        ..GrantsConfig::default()
    };
    for _ in 0..2 {
        let grants = Grants::start(place.proxy.clone(), env(), &config).await.unwrap();
        let loaded: Vec<bool> = users.iter().map(|user| grants.by_id(user).is_some()).collect();
        assert_eq!(loaded, [true, true, true, false, false]);
        assert_eq!((grants.counts().members, grants.counts().left_out), (3, 2));
        let (issuer, subject) = identity("d");
        assert!(grants.leaves_out(&issuer, &subject));

        place.forget(&users[1]).await;
        grants.confirm().await.unwrap();
        // loaded right after, in a question of its own
        while grants.by_identity(&issuer, &subject).is_none() {
            grants.confirm().await.unwrap();
        }
        assert!(!grants.leaves_out(&issuer, &subject) && grants.by_id(&users[4]).is_none());
        grants.stop().await;
        users[1] = place.enrol("b").await;
        place.enrolled_at(&users[1], 1).await;
    }
    place.proxy.close().await;
    place.admin.close().await;
}

async fn a_history_that_was_rewritten_is_read_anew(place: Place) {
    let ann = place.enrol("ann").await;
    place.admin.revoke_grant(&env(), &ann, &files(), None).await.unwrap();
    place.grant(&ann).await;
    let grants = place.grants(Duration::ZERO).await;
    let before = grants.fresh().await.unwrap();
    assert_eq!(grants.by_id(&ann).unwrap().grants[0].status, GrantStatus::Verified);

    // The last commit, which granted again, is lost, and another commit gets its position in the feed.
    place.lose_the_last_grant(&ann, before.seq).await;
    place.admin.add_user(&env(), &user()).await.unwrap();
    let after = grants.fresh().await.unwrap();
    assert_eq!(after.seq, before.seq, "the same position of another history");
    assert_eq!(grants.by_id(&ann).unwrap().grants[0].status, GrantStatus::Revoked);
    assert_eq!((grants.counts().reloads, grants.counts().members), (2, 2));
    place.end(grants).await;
}

async fn a_store_that_is_gone_is_outlived_for_as_long_as_configured(place: Place) {
    let ann = place.enrol("ann").await;
    let strict = place.grants(Duration::ZERO).await;
    let lenient = place.grants(Duration::from_secs(3_600)).await;
    place.proxy.close().await;
    let stale = strict.fresh().await.unwrap_err();
    assert!(stale.why.is_some());
    assert!(strict.confirm().await.is_err());
    assert!(lenient.fresh().await.is_ok());
    assert!(lenient.confirm().await.is_err());
    assert!(lenient.fresh().await.is_ok());
    assert!(lenient.by_id(&ann).is_some());
    assert!(lenient.find_by_key(&KeyId::parse("unknown00").unwrap()).await.is_none());
    strict.stop().await;
    place.end(lenient).await;
}

async fn the_registry_and_the_catalogue_announce_themselves(place: Place) {
    place.enrol("ann").await;
    let grants = place.grants(Duration::from_secs(3_600)).await;
    let mut changes = grants.changes();
    let first = *changes.borrow_and_update();
    assert!(grants.registry().is_empty());

    let row = RegistryRow {
        server: files(),
        name: "Files".to_owned(),
        url: None,
        enabled: true,
        tool_scopes: BTreeMap::new(),
    };
    place.admin.put_server(&env(), &row).await.unwrap();
    grants.confirm_now();
    changes.changed().await.unwrap();
    let second = *changes.borrow_and_update();
    assert!(second.registry > first.registry && second.catalogue == first.catalogue);
    assert_eq!(grants.registry().as_slice(), std::slice::from_ref(&row));
    assert!(!grants.has_disabled(&files()));
    let off = RegistryRow { enabled: false, ..row };
    place.admin.put_server(&env(), &off).await.unwrap();
    grants.confirm_now();
    changes.changed().await.unwrap();
    assert!(grants.has_disabled(&files()));

    let tool = ("read".parse().unwrap(), Digest::of(b"{}"), "{}".to_owned());
    place.proxy.observe_tools(&env(), &files(), &[tool], true).await.unwrap();
    grants.confirm_now();
    changes.changed().await.unwrap();
    let third = *changes.borrow_and_update();
    assert!(third.catalogue > second.catalogue);

    place.enrol("bob").await;
    grants.confirm().await.unwrap();
    assert!(!changes.has_changed().unwrap());
    place.end(grants).await;
}

async fn another_environment_is_another_world(place: Place) {
    let other = EnvironmentName::parse("other").unwrap();
    let ann = place.enrol("ann").await;
    let grants = Grants::start(place.proxy.clone(), other.clone(), &GrantsConfig::default())
        .await
        .unwrap();
    assert!(grants.by_id(&ann).is_none());
    place.admin.revoke_grant(&env(), &ann, &files(), None).await.unwrap();
    let before = grants.view();
    assert_eq!(grants.confirm().await.unwrap().generation, before.generation);
    let bob = place.admin.add_user(&other, &user()).await.unwrap();
    grants.confirm().await.unwrap();
    assert!(grants.by_id(&bob).is_some());
    place.end(grants).await;
}

/// A store with one connection of an administrator and one of the proxy.
struct Place {
    admin: Store,
    proxy: Store,
    at: At,
}

enum At {
    File(PathBuf),
    Server(Box<Database>),
}

impl Place {
    async fn sqlite(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("guardian-rooms-grants-{}-{name}", std::process::id()));
        let _old = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let open = StoreOpen::Sqlite {
            file: folder.join("guardian.db"),
            create: true,
        };
        let admin = Store::open(&open).await.unwrap().authored(author());
        admin.migrate(&mut |_| {}).await.unwrap();
        Self {
            admin,
            proxy: Store::open(&open).await.unwrap(),
            at: At::File(folder),
        }
    }

    async fn postgres() -> Self {
        let mut database = Database::new().await;
        let open = async |url: String| {
            let open = StoreOpen::Postgres {
                url: url.into(),
                ca_file: None,
                max_connections: 3,
                connect_timeout: Duration::from_secs(10),
            };
            Store::open(&open).await.unwrap()
        };
        let admin = open(database.url()).await.authored(author());
        admin.migrate(&mut |_| {}).await.unwrap();
        let login = database.login("", &["guardian_proxy"]).await;
        for environment in ["default", "other"] {
            let bind = format!(
                "INSERT INTO guardian.role_bindings VALUES ('{}', '{environment}')",
                login.role
            );
            database.execute(&bind).await;
        }
        Self {
            admin,
            proxy: open(login.url).await,
            at: At::Server(Box::new(database)),
        }
    }

    async fn grants(&self, max_staleness: Duration) -> Grants {
        let config = GrantsConfig {
            max_staleness: HumanDuration(max_staleness),
            confirm_after: HumanDuration(max_staleness),
            confirm_timeout: HumanDuration(Duration::from_secs(30)),
            ..GrantsConfig::default()
        };
        Grants::start(self.proxy.clone(), env(), &config).await.unwrap()
    }

    async fn enrol(&self, name: &str) -> UserId {
        let id = self.admin.add_user(&env(), &user()).await.unwrap();
        let (issuer, subject) = identity(name);
        self.admin.link_identity(&env(), &id, &issuer, &subject).await.unwrap();
        self.grant(&id).await;
        id
    }

    async fn grant(&self, user: &UserId) {
        let grant = NewGrant {
            user: user.clone(),
            server: files(),
            client: None,
            scopes: Scopes::from_iter([Scope::parse("read").unwrap()]),
            expires_at: None,
            idle: false,
        };
        self.admin.add_grant(&env(), &grant).await.unwrap();
    }

    async fn enrolled_at(&self, user: &UserId, second: usize) {
        let (at, prefix) = match &self.at {
            At::File(_) => (format!("{second} * 1000000"), ""),
            At::Server(_) => (format!("to_timestamp({second})"), "guardian."),
        };
        self.by_hand(&format!("UPDATE {prefix}users SET created_at = {at} WHERE id = '{user}'"))
            .await;
    }

    async fn forget(&self, user: &UserId) {
        let prefix = if let At::File(_) = self.at { "" } else { "guardian." };
        self.by_hand(&format!("DELETE FROM {prefix}users WHERE id = '{user}'")).await;
    }

    async fn by_hand(&self, sql: &str) {
        match &self.at {
            At::File(folder) => {
                let options = SqliteConnectOptions::new()
                    .filename(folder.join("guardian.db"))
                    .pragma("recursive_triggers", "ON");
                let mut raw = options.connect().await.unwrap();
                raw.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
                raw.close().await.unwrap();
            }
            At::Server(database) => database.execute(sql).await,
        }
    }

    /// The effect of a failover to a standby without the last commit, or of a restore from just before it.
    async fn lose_the_last_grant(&self, user: &UserId, seq: i64) {
        match &self.at {
            At::File(folder) => {
                let mut raw = SqliteConnectOptions::new()
                    .filename(folder.join("guardian.db"))
                    .connect()
                    .await
                    .unwrap();
                // `row_version` is raised here, so that the triggers, and with them the feed, take no notice.
                let sql = format!(
                    "BEGIN IMMEDIATE;
                     UPDATE mcp_authorizations SET status = 'revoked', row_version = row_version + 1 WHERE user_id = '{user}';
                     DELETE FROM change_log WHERE seq = {seq};
                     UPDATE sqlite_sequence SET seq = {seq} - 1 WHERE name = 'change_log';
                     COMMIT;"
                );
                raw.execute(AssertSqlSafe(sql)).await.unwrap();
                raw.close().await.unwrap();
            }
            At::Server(database) => {
                let sql = format!(
                    "BEGIN;
                     SET LOCAL session_replication_role = replica;
                     UPDATE guardian.mcp_authorizations SET status = 'revoked' WHERE user_id = '{user}';
                     DELETE FROM guardian.change_log WHERE seq = {seq};
                     SELECT setval('guardian.change_seq', {seq} - 1);
                     COMMIT;"
                );
                database.execute(&sql).await;
            }
        }
    }

    async fn end(self, grants: Grants) {
        grants.stop().await;
        self.proxy.close().await;
        self.admin.close().await;
        match self.at {
            At::File(folder) => std::fs::remove_dir_all(folder).unwrap(),
            At::Server(database) => drop(database),
        }
    }
}

fn env() -> EnvironmentName {
    EnvironmentName::parse("default").unwrap()
}

fn files() -> ServerName {
    ServerName::parse("files").unwrap()
}

fn now() -> Timestamp {
    Timestamp::from_secs(1_800_000_000)
}

fn user() -> NewUser {
    NewUser {
        id: None,
        kind: PrincipalKind::User,
        email: None,
        display_name: None,
        roles: Vec::new(),
    }
}

fn identity(name: &str) -> (Issuer, Subject) {
    (
        Issuer::parse("https://issuer.example").unwrap(),
        Subject::parse(name).unwrap(),
    )
}

fn key(id: &KeyId) -> ApiKey {
    ApiKey {
        id: id.clone(),
        name: "test".to_owned(),
        hash: [7; 32],
        pepper_version: 1,
        scopes: Scopes::default(),
        created_at: now(),
        expires_at: None,
        revoked_at: None,
    }
}

fn principal(name: &str) -> Principal {
    let (issuer, subject) = identity(name);
    Principal {
        issued_at: Some(Timestamp::from_secs(1)),
        ..Principal::new(
            PrincipalKind::User,
            issuer,
            IssuerAlias::parse("main").unwrap(),
            subject,
            AuthMethod::Jwt,
            Fingerprint::of(&Digest::ZERO),
        )
    }
}
