//! What each Postgres login can and cannot do, tried with plain SQL and without the store.

use super::world::{Place, Server, World, at, env, open, parse, raw_postgres};
use crate::postgres::{Database, Login};
use neural_guardian::domain::{EnvironmentName, Incarnation};
use neural_guardian::store::StoreError;
use sqlx::{ConnectOptions, Row};
use std::str::FromStr;

const ROW: &str = "INSERT INTO guardian.audit_trail (incarnation, seq, occurred_at, environment, kind, bytes";

#[tokio::test]
async fn the_proxy_cannot_read_change_or_forge_the_audit() {
    let world = World::postgres().await;
    let server = server(&world);
    let insert = |columns: &str, values: &str| {
        format!("{ROW}{columns}) VALUES ('\\x000102030405060708090a0b0c0d0e0f', 0, now(), {values})")
    };
    let good = insert("", "'production', 'stop', 'x'");
    assert_eq!(raw_postgres(&server.proxy.url, &good).await.unwrap(), 1);
    for refused in [
        "SELECT kind FROM guardian.audit_trail".to_owned(),
        "UPDATE guardian.audit_trail SET reason = 'x'".to_owned(),
        "DELETE FROM guardian.audit_trail".to_owned(),
        "TRUNCATE guardian.audit_trail".to_owned(),
        "SELECT * FROM guardian.audit_trail_default".to_owned(),
        format!("{good} RETURNING seq"),
        insert("", "'development', 'stop', 'x'"),
        insert(", recorded_by", "'production', 'stop', 'x', 'postgres'"),
        insert(", recorded_at", "'production', 'stop', 'x', now()"),
        insert(", change", "'production', 'admin', 'x', '{}'"),
        good.replace("audit_trail", "audit_trail_default"),
        format!("{ROW}) VALUES ('\\x00000000000000000000000000000000', 0, now(), 'production', 'admin', NULL)"),
    ] {
        assert_eq!(refusal(&server.proxy, &refused).await, "42501", "{refused}");
    }
}

#[tokio::test]
async fn the_proxy_writes_nothing_but_newcomers_and_offers_of_its_environment() {
    let world = World::postgres().await;
    let server = server(&world);
    for refused in [
        "INSERT INTO guardian.users (environment) VALUES ('production')",
        "INSERT INTO guardian.mcp_authorizations (environment, user_id, server_name) SELECT environment, id, 'files' FROM guardian.users",
        "UPDATE guardian.mcp_authorizations SET status = 'verified'",
        "UPDATE guardian.api_keys SET revoked_at = NULL",
        "DELETE FROM guardian.revocations",
        "UPDATE guardian.server_tools SET pinned_digest = offered_digest",
        "INSERT INTO guardian.change_log (seq, environment, relation, op) VALUES (1, 'production', 'grant', 'U')",
        "BEGIN; LOCK TABLE guardian.feed_lock",
        "SELECT nextval('guardian.change_seq')",
        "SELECT guardian.enrol('development', 'i', 's', NULL, '{}', 'user')",
        "SELECT guardian.note_offer('development', 's', 't', NULL, NULL, false)",
        "SELECT guardian.bind_role(current_user, 'development')",
        "SELECT guardian.prune_change_log('0')",
        "UPDATE guardian.migrations SET version = 9",
        "SET ROLE guardian_owner",
    ] {
        assert_eq!(refusal(&server.proxy, refused).await, "42501", "{refused}");
    }
}

#[tokio::test]
async fn a_login_sees_its_own_environment_and_no_other() {
    let world = World::postgres().await;
    let alice = world.user("alice@example.com").await;
    world.grant(&alice, "files", &["read"]).await;
    let elsewhere = "'development', '00000000-0000-0000-0000-00000000000d'";
    world
        .by_hand(&format!("INSERT INTO schema.users (environment, id) VALUES ({elsewhere})"))
        .await;
    world
        .by_hand(&format!(
            "INSERT INTO schema.mcp_authorizations (environment, user_id, server_name) VALUES ({elsewhere}, 'files')"
        ))
        .await;
    let server = server(&world);
    for table in ["users", "mcp_authorizations", "grants", "change_log"] {
        let rows = format!("SELECT count(*), count(*) FILTER (WHERE environment <> 'production') FROM guardian.{table}");
        for login in [&server.proxy, &server.admin] {
            let (all, foreign) = counts(login, &rows).await;
            assert!(all > 0 && foreign == 0, "{table}: {all} rows, {foreign} of them foreign");
        }
        let (all, foreign) = counts_at(&server.database.url(), &rows).await;
        assert!(foreign > 0 && all > foreign, "{table}");
    }
    assert_eq!(world.proxy.directory(&parse("development")).await.unwrap().members, []);
}

#[tokio::test]
async fn an_administrator_cannot_touch_the_audit_nor_reach_past_its_environment() {
    let world = World::postgres().await;
    world.user("alice@example.com").await;
    let server = server(&world);
    let bind = format!("SELECT guardian.bind_role('{}', 'development')", server.admin.role);
    for refused in [
        "UPDATE guardian.audit_trail SET reason = 'x'",
        "DELETE FROM guardian.audit_trail",
        "TRUNCATE guardian.audit_trail",
        "INSERT INTO guardian.audit_trail (incarnation) VALUES ('x')",
        "SELECT key_hash FROM guardian.api_keys",
        "INSERT INTO guardian.users (environment) VALUES ('development')",
        "UPDATE guardian.users SET environment = 'development'",
        "INSERT INTO guardian.role_bindings VALUES (current_user, '*')",
        "UPDATE guardian.server_tools SET offered_definition = 'x'",
        &bind,
        &bind.replace("development", "*"),
    ] {
        assert_eq!(refusal(&server.admin, refused).await, "42501", "{refused}");
    }
    world.admin.bind_role(&server.proxy.role, &env()).await.unwrap();
    let error = world.admin.bind_role("nobody_at_all", &env()).await.unwrap_err();
    assert_eq!(error.to_string(), "no role `nobody_at_all`");
}

#[tokio::test]
async fn not_even_the_owner_changes_a_record() {
    let world = World::postgres().await;
    world.user("alice@example.com").await;
    for statement in [
        "UPDATE guardian.audit_trail SET reason = 'x'",
        "DELETE FROM guardian.audit_trail",
        "TRUNCATE guardian.audit_trail",
    ] {
        let as_owner = format!("SET ROLE guardian_owner; {statement}");
        let error = raw_postgres(&server(&world).database.url(), &as_owner).await.unwrap_err();
        assert!(error.to_string().contains("is append-only"), "{error}");
    }
}

#[tokio::test]
async fn an_end_user_behind_a_data_api_sees_own_rows() {
    let mut world = World::postgres().await;
    let (alice, bob) = (world.user("alice@example.com").await, world.user("bob@example.com").await);
    world.grant(&alice, "files", &["read"]).await;
    world.grant(&bob, "mail", &["send"]).await;
    let Place::Postgres(server) = &mut world.place else {
        unreachable!("a Postgres world")
    };
    let user = server.database.login("", &["guardian_user"]).await;
    let count = "SELECT count(*), count(*) FROM guardian.";
    // the trail also says which logins were bound
    let of_somebody = |table: &str| {
        if table == "audit_trail" {
            " WHERE user_id IS NOT NULL"
        } else {
            ""
        }
    };
    for table in ["users", "mcp_authorizations", "audit_trail"] {
        let (nobody, _) = counts(&user, &format!("{count}{table}")).await;
        let claim = format!("SELECT set_config('request.jwt.claims', '{{\"sub\": \"{alice}\"}}', false)");
        let mut connection = sqlx::postgres::PgConnectOptions::from_str(&user.url)
            .unwrap()
            .connect()
            .await
            .unwrap();
        sqlx::query(sqlx::AssertSqlSafe(claim))
            .execute(&mut connection)
            .await
            .unwrap();
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM guardian.{table}")))
            .fetch_one(&mut connection)
            .await;
        let (own, all) = (
            row.unwrap().get::<i64, _>(0),
            counts_at(&server.database.url(), &format!("{count}{table}{}", of_somebody(table)))
                .await
                .0,
        );
        assert!(nobody == 0 && own > 0 && own * 2 == all, "{table}: {nobody}, {own}, {all}");
    }
}

#[tokio::test]
async fn a_proxy_that_could_get_past_the_rules_does_not_start() {
    let mut world = World::postgres().await;
    assert_eq!(world.proxy.self_check(&env()).await.unwrap(), Vec::<String>::new());
    let Place::Postgres(server) = &mut world.place else {
        unreachable!("a Postgres world")
    };
    let database = &mut server.database;

    let bypassing = database.login("BYPASSRLS", &["guardian_proxy"]).await;
    let unbound = database.login("", &["guardian_proxy"]).await;
    let owning = database.login("", &["guardian_owner"]).await;
    let role = |login: &Login, says: &str| format!("role `{}` {says}", login.role);
    database
        .execute(&format!("SELECT guardian.bind_role('{}', 'production')", bypassing.role))
        .await;
    database
        .execute(&format!("SELECT guardian.bind_role('{}', 'production')", owning.role))
        .await;
    let says = role(
        &bypassing,
        &format!("bypasses row security (BYPASSRLS of `{}`)", bypassing.role),
    );
    assert_eq!(check(&bypassing.url, "production").await, [says]);
    assert_eq!(
        check(&unbound.url, "production").await,
        [role(&unbound, "is bound to no environment")]
    );
    assert_eq!(
        check(&server.proxy.url, "development").await,
        [role(&server.proxy, "is not bound to environment `development`")]
    );
    assert_eq!(
        check(&owning.url, "production").await,
        [
            role(&owning, "is a member of guardian_owner"),
            role(&owning, "is not a member of guardian_proxy"),
            role(&owning, "may UPDATE on audit_trail"),
            role(&owning, "may DELETE on audit_trail"),
            role(&owning, "may TRUNCATE on audit_trail"),
        ]
    );
    let superuser = check(&database.url(), "production").await;
    assert!(superuser[0].ends_with("is a superuser"), "{superuser:?}");

    database
        .execute("ALTER TABLE guardian.api_keys DISABLE ROW LEVEL SECURITY")
        .await;
    database
        .execute("ALTER TABLE guardian.revocations DISABLE TRIGGER guardian_feed")
        .await;
    database.execute("DROP TRIGGER guardian_feed ON guardian.server_tools").await;
    database
        .execute("ALTER TABLE guardian.audit_trail DISABLE TRIGGER audit_append_only")
        .await;
    let month = "to_char(now() AT TIME ZONE 'UTC', 'YYYYMM')";
    database
        .execute(&format!(
            "DO $$ BEGIN EXECUTE 'DROP TABLE guardian.audit_trail_' || {month}; END $$"
        ))
        .await;
    let says = check(&server.proxy.url, "production").await;
    assert_eq!(
        says[..3],
        [
            "row security is off on api_keys",
            "change feed is missing or disabled on `guardian.revocations`; change feed is missing or disabled on `guardian.server_tools`",
            "append-only trigger is missing or disabled",
        ]
    );
    assert!(
        says[3..]
            .iter()
            .all(|problem| problem.starts_with("no audit partition for 2"))
            && says.len() > 3,
        "{says:?}"
    );

    let made = world.proxy.ensure_partitions().await.unwrap();
    assert!(made.len() == 1 && made[0].ends_with(": created"), "{made:?}");
    assert_eq!(world.proxy.ensure_partitions().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_record_lands_in_the_partition_of_its_month_and_a_wrong_clock_in_the_default() {
    let world = World::postgres().await;
    let now = time::OffsetDateTime::now_utc();
    let when = [
        (now, format!("audit_trail_{}{:02}", now.year(), u8::from(now.month()))),
        (at("2019-01-01T00:00:00Z").to_datetime(), "audit_trail_default".into()),
    ];
    for (seq, (at, partition)) in when.iter().enumerate() {
        let row = format!("{ROW}) VALUES ('\\x000102030405060708090a0b0c0d0e0f', {seq}, '{at}', 'production', 'stop', 'x')");
        assert_eq!(raw_postgres(&server(&world).proxy.url, &row).await.unwrap(), 1);
        let (rows, _) = counts_at(
            &server(&world).database.url(),
            &format!("SELECT count(*), 0::bigint FROM guardian.{partition} WHERE kind = 'stop'"),
        )
        .await;
        assert_eq!(rows, 1, "{partition}");
    }
    let incarnation = Incarnation([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    let spans = world.admin.audit_incarnations(&env()).await.unwrap();
    assert_eq!((spans[0].incarnation, spans[0].records), (incarnation, 2));
}

/// A month that began without its partition: its rows lie in the default one, and the next start must not be refused for it.
#[tokio::test]
async fn rows_of_the_default_partition_move_when_their_month_is_made() {
    let world = World::postgres().await;
    let server = server(&world);
    let url = server.database.url();
    let now = time::OffsetDateTime::now_utc();
    let month = format!("audit_trail_{}{:02}", now.year(), u8::from(now.month()));
    world.by_hand(&format!("DROP TABLE schema.{month}")).await;
    let user = world.user("alice@example.com").await;
    world.grant(&user, "files", &["echo"]).await;
    let count = async |table: &str| {
        counts_at(&url, &format!("SELECT count(*), 0::bigint FROM guardian.{table}"))
            .await
            .0
    };
    let (all, lost) = (count("audit_trail").await, count("audit_trail_default").await);
    assert!(lost >= 2, "{lost}");

    let made = world.proxy.ensure_partitions().await.unwrap();
    assert_eq!(made, [format!("{month}: created, with {lost} rows of the default partition")]);
    assert_eq!((count(&month).await, count("audit_trail_default").await), (lost, 0));
    assert_eq!(count("audit_trail").await, all);
    assert_eq!(check(&server.proxy.url, "production").await, Vec::<String>::new());
    for table in ["audit_trail", "audit_trail_default", &month] {
        for statement in [format!("DELETE FROM schema.{table}"), format!("TRUNCATE schema.{table}")] {
            match world.try_by_hand(&statement).await {
                Err(refused) => assert!(refused.to_string().contains("append-only"), "{statement}: {refused}"),
                Ok(rows) => assert_eq!((rows, table), (0, "audit_trail_default"), "{statement}: nothing is in it"),
            }
        }
    }
}

/// A proxy that runs for a quarter of a year makes the months ahead while it ships.
#[tokio::test]
async fn partitions_are_made_and_counted_while_records_are_shipped() {
    let world = World::postgres().await;
    let server = server(&world);
    let url = server.database.url();
    let now = time::OffsetDateTime::now_utc();
    let month = |ahead: u8| {
        let at = (0..ahead).fold(now.replace_day(1).unwrap(), |at, _| {
            (at + time::Duration::days(32)).replace_day(1).unwrap()
        });
        format!("audit_trail_{}{:02}", at.year(), u8::from(at.month()))
    };
    let exists = async |table: &str| {
        counts_at(
            &url,
            &format!("SELECT count(*), 0::bigint FROM pg_class WHERE relname = '{table}'"),
        )
        .await
        .0
    };
    let counted = async || {
        counts_at(
            &url,
            &format!(
                "SELECT reltuples::bigint, 0::bigint FROM pg_class WHERE relname = '{}'",
                month(0)
            ),
        )
        .await
        .0
    };
    let journal = super::audit::Journal::new();
    let ship = async |seqs: std::ops::Range<u64>, days: i64| {
        let at = neural_guardian::domain::Timestamp::from_secs(now.unix_timestamp() + days * 86_400);
        let records: Vec<_> = seqs.map(|seq| journal.decision_at(seq, at)).collect();
        world.proxy.ship(&records).await.unwrap();
    };
    ship(0..1, 0).await;
    world.by_hand(&format!("DROP TABLE schema.{}", month(2))).await;
    ship(1..2, 0).await;
    assert_eq!(exists(&month(2)).await, 0, "once a day is enough");
    ship(2..3, 1).await;
    assert_eq!(exists(&month(2)).await, 1);

    let before = counted().await;
    ship(3..1_500, 0).await;
    assert!(before < 1_000 && counted().await >= 1_000, "{before}");
}

#[tokio::test]
async fn two_databases_of_one_cluster_migrate_at_once() {
    let mut database = Database::on_own_cluster().await;
    let urls = [database.url(), database.sibling().await, database.sibling().await];
    let migrate = async |url: &str| {
        let store = open(url).await.unwrap();
        store.migrate(&mut |_| ()).await.map(|()| store)
    };
    // The first URL twice, so that two programs also migrate the same database at once.
    let (a, b, c, d) = tokio::join!(migrate(&urls[0]), migrate(&urls[1]), migrate(&urls[2]), migrate(&urls[0]));
    for store in [a, b, c, d] {
        store.unwrap().require_current().await.unwrap();
    }
}

#[tokio::test]
async fn the_store_says_what_the_login_may_not_do() {
    let mut world = World::postgres().await;
    let error = world
        .proxy
        .clone()
        .authored(super::world::author())
        .add_user(&env(), &super::users::new_user("a@example.com"))
        .await
        .unwrap_err();
    assert!(error.to_string().ends_with(": permission denied for table users"), "{error}");
    assert!(matches!(error, StoreError::Permission { .. }) && !error.is_transient());
    let Place::Postgres(server) = &mut world.place else {
        unreachable!("a Postgres world")
    };
    let stranger = server.database.login("", &[]).await;
    let error = open(&stranger.url).await.unwrap().status().await.unwrap_err();
    assert!(
        error.to_string().ends_with(": permission denied for schema guardian"),
        "{error}"
    );
}

fn server(world: &World) -> &Server {
    match &world.place {
        Place::Postgres(server) => server,
        Place::Sqlite(_) => unreachable!("a Postgres world"),
    }
}

/// The SQLSTATE of a refused statement.
async fn refusal(login: &Login, sql: &str) -> String {
    match raw_postgres(&login.url, sql).await {
        Ok(rows) => panic!("{sql}: done on {rows} rows"),
        Err(error) => error
            .as_database_error()
            .and_then(|error| error.code())
            .expect("an SQLSTATE")
            .into_owned(),
    }
}

async fn counts(login: &Login, sql: &str) -> (i64, i64) {
    counts_at(&login.url, sql).await
}

async fn counts_at(url: &str, sql: &str) -> (i64, i64) {
    let mut connection = sqlx::postgres::PgConnectOptions::from_str(url)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let row = sqlx::query(sqlx::AssertSqlSafe(sql.to_owned()))
        .fetch_one(&mut connection)
        .await
        .unwrap();
    (row.get(0), row.get(1))
}

async fn check(url: &str, environment: &str) -> Vec<String> {
    let environment: EnvironmentName = parse(environment);
    open(url).await.unwrap().self_check(&environment).await.unwrap()
}
