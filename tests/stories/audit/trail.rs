//! The audit trail against the journal while Guardian serves: rows that somebody else wrote, and a database that loses what it took.

use crate::ana_reads_files;
use crate::support::client::Client;
use crate::support::issuer::Issuer;
use crate::support::on_both_stores;
use crate::support::postgres::Cluster;
use crate::support::stores::{Database, Engine, execute_in_file};
use crate::support::upstream::Upstream;
use crate::support::wait::eventually;
use crate::support::world::World;
use neural_guardian::domain::SealedRecord;
use neural_guardian::journal::read_dir;
use serde_json::{Value, json};
use sqlx::ConnectOptions;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

on_both_stores! {
    /// One row is enough for the alarm; the record is in the trail all the same, beside it or carried by the record of the conflict.
    async fn a_row_that_somebody_else_wrote_is_an_alarm(world: World) {
        let (files, client, _) = serving(&mut world).await;
        forge(&world, 1).await;
        assert_eq!(world.health().await["status"], "ok");
        call_often(&client, 3).await;
        eventually("the alarm", async || says(&world, "under the numbers of 1 of its records").await).await;
        assert_eq!(world.ready().await, Some(200));
        world.shipped().await;

        assert_eq!(world.metric("guardian_audit_conflicts_total").await, Some(1.0));
        assert!(world.log().contains("the audit trail holds other rows under the numbers of our records"), "{}", world.log());
        let conflicts = world.audit("--kind conflict");
        assert_eq!(conflicts.len(), 1, "{conflicts:?}");
        let reason = if world.database.is_some() { "row_beside" } else { "row_in_place" };
        assert_eq!(conflicts[0]["reason"], reason);
        everything_is_told(&world).await;
        assert_eq!(files.calls().len(), 4);
    }

    async fn where_the_configuration_asks_for_it_no_call_passes_after_a_conflict(world: World) {
        world.set("audit.seal_on_conflict", "true");
        let (files, client, _) = serving(&mut world).await;
        forge(&world, 1).await;
        call_often(&client, 2).await;
        eventually("calls to be refused", async || {
            let answer = client.call("echo", json!({ "text": "hi" })).await;
            (answer.verdict() == "200 audit_unavailable").then_some(())
        })
        .await;
        let reached = files.calls().len();
        call_often(&client, 3).await;
        assert_eq!((files.calls().len(), world.ready().await), (reached, Some(503)));
        let health = world.health().await;
        assert!(health["not_ready"].to_string().contains("the audit trail holds rows that this instance did not write"), "{health}");
        world.shipped().await;
        everything_is_told(&world).await;
    }

    /// An enrolment that nobody could record is not made.
    async fn nobody_is_enrolled_while_nothing_can_be_recorded(world: World) {
        let issuer = Issuer::es256("https://id.example.test");
        world.folder.write("jwks.json", &issuer.key_set().to_string());
        world.issuer("id", &issuer.iss, "kind = 'oidc'\njwks_file = 'jwks.json'");
        world.set("audit.seal_on_conflict", "true").set("members.just_in_time", "true");
        let (_, client, _) = serving(&mut world).await;
        let call = async |subject: &str| {
            let token = issuer.token(subject, &world.resource("files"));
            world.client("files").modern().bearer(&token).call("echo", json!({ "text": "hi" })).await
        };
        let enrolled = || world.guardian("user list --json").ok().rows().len();
        call("adam").await;
        assert_eq!(enrolled(), 2);
        forge(&world, 1).await;
        call_often(&client, 2).await;
        eventually("the journal to be sealed", async || (world.ready().await == Some(503)).then_some(())).await;
        let answer = call("eve").await;
        assert!(answer.verdict().ends_with(" audit_unavailable"), "{}", answer.verdict());
        assert_eq!(enrolled(), 2);
        assert!(world.audit("--kind admin").iter().all(|row| row["unhashed"] == false));
    }

    /// Rows ahead of the records and of the records that carry them: an end is reached, and nothing is missing.
    async fn thousands_of_forged_rows_stop_nothing_and_hide_nothing(world: World) {
        let (files, _, key) = serving(&mut world).await;
        forge(&world, 5_000).await;
        let mut callers = Vec::new();
        for _ in 0..8 {
            let client = world.connected("files", &key).await;
            callers.push(tokio::spawn(async move { call_often(&client, 60).await }));
        }
        for caller in callers {
            caller.await.unwrap();
        }
        assert_eq!(files.calls().len(), 1 + 8 * 60);
        if world.database.is_none() {
            eventually("all forged rows to be found", async || {
                (world.metric("guardian_audit_conflicts_total").await? == 5_000.0).then_some(())
            })
            .await;
        }
        world.shipped().await;
        everything_is_told(&world).await;
        assert_eq!(world.ready().await, Some(200));
        if let Some(database) = &world.database {
            let beside = "SELECT count(*) FROM guardian.audit_trail a JOIN guardian.audit_trail b USING (incarnation, seq)
                          WHERE a.subject = 'forged' AND b.subject IS DISTINCT FROM 'forged'";
            let found = world.metric("guardian_audit_conflicts_total").await.unwrap();
            assert_eq!(found as i64, database.count(beside).await);
        }
    }
}

/// An older copy of the file is put in its place: what it lacks comes from the segments that are kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_of_the_database_file_gets_its_rows_back() {
    let mut world = World::new(Engine::Sqlite).await;
    let (files, client, _) = serving(&mut world).await;
    let (file, copy) = (world.file("data/guardian.db"), world.file("data/copy.db"));
    execute_in_file(&file, &format!("VACUUM INTO '{}'", copy.display())).await;
    call_often(&client, 20).await;
    world.shipped().await;
    assert_eq!(rows_of(&world).await.len(), records(&world).len());

    fs::rename(&copy, &file).unwrap();
    for beside in ["data/guardian.db-wal", "data/guardian.db-shm"] {
        fs::remove_file(world.file(beside)).unwrap();
    }
    let lost = records(&world).len() - rows_of(&world).await.len();
    assert!(lost >= 40, "{lost}");
    call_until_allowed(&client).await;
    is_made_good(&world, lost as f64).await;
    assert_eq!(world.audit("--tool echo --decision allow").len(), files.calls().len());
}

/// The same on Postgres, twice: a standby that lagged behind is promoted, and a crash loses commits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_promotion_or_a_crash_loses_is_shipped_again() {
    let mut world = World::with(Some(Database::on_own_cluster().await));
    let (files, client, _) = serving(&mut world).await;
    let standby = own_cluster(&mut world).standby();
    ask(&standby, "ALTER SYSTEM SET primary_conninfo = ''").await;
    ask(&standby, "SELECT pg_reload_conf()").await;
    eventually("the standby to be cut off", async || {
        let connected = ask(
            &standby,
            "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'",
        )
        .await;
        (connected == 0).then_some(())
    })
    .await;
    call_often(&client, 25).await;
    world.shipped().await;

    ask(&standby, "SELECT 1 FROM pg_promote()").await;
    own_cluster(&mut world).replaced_by(standby);
    let lost = records(&world).len() - rows_of(&world).await.len();
    assert!(lost >= 50, "{lost}");
    call_until_allowed(&client).await;
    is_made_good(&world, lost as f64).await;
    assert_eq!(world.audit("--tool echo --decision allow").len(), files.calls().len());

    own_cluster(&mut world).save();
    call_until_allowed(&client).await;
    call_often(&client, 10).await;
    world.shipped().await;
    let before = rows_of(&world).await.len();
    own_cluster(&mut world).go_back();
    let more = before - rows_of(&world).await.len();
    assert!(more >= 20, "{more}");
    call_until_allowed(&client).await;
    is_made_good(&world, (lost + more) as f64).await;
    let mut again = world.audit("--kind admin");
    again.retain(|row| row["reason"] == "records_shipped_again");
    assert_eq!(again.len(), 2, "{again:?}");
    assert!(
        again[1]["detail"]
            .as_str()
            .unwrap()
            .starts_with(&format!("the database had lost {more} records")),
        "{again:?}"
    );
    assert_eq!(world.audit("--tool echo --decision allow").len(), files.calls().len());
}

/// Guardian serves Ana, who has called once, and every record of it is in the database.
async fn serving(world: &mut World) -> (Upstream, Client, String) {
    let (files, key) = ana_reads_files(world).await;
    world
        .set("grants.confirm_after", "'200ms'")
        .set("limits.per_principal", "{ rate = 100000, per = '1s' }");
    world.start().await;
    let client = world.connected("files", &key).await;
    call_often(&client, 1).await;
    world.shipped().await;
    (files, client, key)
}

async fn call_often(client: &Client, times: usize) {
    for _ in 0..times {
        client.call("echo", json!({ "text": "hi" })).await;
    }
}

async fn call_until_allowed(client: &Client) {
    eventually("calls to be permitted again", async || {
        client.call("echo", json!({ "text": "hi" })).await.is_result().then_some(())
    })
    .await;
}

async fn says(world: &World, what: &str) -> Option<()> {
    let health = world.health().await;
    (health["status"] == "degraded" && health["degraded"].to_string().contains(what)).then_some(())
}

/// So many records came back since the start, the trail holds each record once, and health says so.
async fn is_made_good(world: &World, shipped_again: f64) {
    eventually("what was lost to be shipped again", async || {
        (world.metric("guardian_audit_shipped_again_total").await? == shipped_again).then_some(())
    })
    .await;
    eventually("health to tell", async || says(world, "they were shipped again").await).await;
    // The record of it comes last.
    let (records, rows) = eventually("every record to be a row", async || {
        let (records, rows) = (records(world), rows_of(world).await);
        (rows.len() == records.len()).then_some((records, rows))
    })
    .await;
    for record in &records {
        assert_eq!(
            rows.get(&place(record)).map(Vec::as_slice),
            Some(&record.bytes[..]),
            "record {}",
            record.seq
        );
    }
}

/// Writes rows under the next numbers of the running incarnation, as whoever holds the proxy's login can: of the next month, so
/// that on Postgres they do not collide with any record.
async fn forge(world: &World, rows: u64) {
    let (at, series) = match &world.database {
        Some(_) => ("now() + interval '32 days'", format!("generate_series(1, {rows}) AS n")),
        None => (
            "(SELECT micros FROM clock) + 2764800000000",
            format!("(WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {rows}) SELECT n FROM c)"),
        ),
    };
    let text = if world.database.is_some() {
        "sha256(n::text::bytea)"
    } else {
        "randomblob(32)"
    };
    world
        .sql(&format!(
            "INSERT INTO {{t}}audit_trail (incarnation, seq, occurred_at, environment, kind, subject, bytes, leaf, head)
             SELECT last.incarnation, last.seq + n, {at}, 'default', 'opaque', 'forged', {text}, {text}, {text}
             FROM (SELECT incarnation, max(seq) AS seq FROM {{t}}audit_trail
               WHERE incarnation IN (SELECT incarnation FROM {{t}}audit_trail WHERE kind = 'start') GROUP BY incarnation) AS last, {series}"
        ))
        .await;
}

/// Each record of the journal is in the trail: as a row, or as the text inside a conflict record that is.
async fn everything_is_told(world: &World) {
    let mut told = rows_of(world).await;
    let mut parts: BTreeMap<(String, u64), BTreeMap<u64, String>> = BTreeMap::new();
    for row in told.values() {
        let Ok(record) = serde_json::from_slice::<Value>(row) else {
            continue;
        };
        let event = &record["event"];
        if let (true, Some(text)) = (event["kind"] == "conflict", event["record"].as_str()) {
            let place = (event["of"].as_str().unwrap().to_owned(), event["seq"].as_u64().unwrap());
            parts
                .entry(place)
                .or_default()
                .insert(event["part"].as_u64().unwrap(), text.to_owned());
        }
    }
    for (place, parts) in parts {
        told.insert(place, parts.into_values().collect::<String>().into_bytes());
    }
    let displaced = records(world)
        .into_iter()
        .filter(|record| told.get(&place(record)).map(Vec::as_slice) != Some(&record.bytes[..]));
    // A conflict record that was displaced itself lives on in the one that carries its text again.
    let missing: Vec<_> = displaced
        .filter(|record| !record.bytes.windows(17).any(|text| text == br#""kind":"conflict""#))
        .collect();
    assert!(
        missing.is_empty(),
        "{} records are nowhere in the trail: {:?}",
        missing.len(),
        missing.first()
    );
}

fn records(world: &World) -> Vec<SealedRecord> {
    read_dir(&world.file("data/journal")).unwrap().map(Result::unwrap).collect()
}

fn place(record: &SealedRecord) -> (String, u64) {
    (record.incarnation.to_string(), record.seq)
}

/// The bytes of the journal's rows in the trail. Fails if one of them is there twice.
async fn rows_of(world: &World) -> BTreeMap<(String, u64), Vec<u8>> {
    const NOT_FORGED: &str = "FROM audit_trail WHERE bytes IS NOT NULL AND coalesce(subject, '') <> 'forged'";
    let rows: Vec<(String, i64, Vec<u8>)> = match &world.database {
        Some(database) => {
            let query = format!(
                "SELECT encode(incarnation, 'hex'), seq, bytes {}",
                NOT_FORGED.replace("FROM ", "FROM guardian.")
            );
            let mut connection = database.connect().await;
            sqlx::query_as(sqlx::AssertSqlSafe(query))
                .fetch_all(&mut connection)
                .await
                .unwrap()
        }
        None => {
            let file = world.file("data/guardian.db");
            let mut connection = sqlx::sqlite::SqliteConnectOptions::new()
                .filename(file)
                .read_only(true)
                .connect()
                .await
                .unwrap();
            let query = format!("SELECT lower(hex(incarnation)), seq, bytes {NOT_FORGED}");
            sqlx::query_as(sqlx::AssertSqlSafe(query))
                .fetch_all(&mut connection)
                .await
                .unwrap()
        }
    };
    // Changes that commands made are hashed and chained too, under incarnations of their own.
    let ours: BTreeSet<String> = records(world).iter().map(|record| place(record).0).collect();
    let rows: Vec<_> = rows.into_iter().filter(|(of, ..)| ours.contains(of)).collect();
    let count = rows.len();
    let rows: BTreeMap<_, _> = rows.into_iter().map(|(of, seq, bytes)| ((of, seq as u64), bytes)).collect();
    assert_eq!(rows.len(), count, "a record is there twice");
    rows
}

fn own_cluster(world: &mut World) -> &mut Cluster {
    world.database.as_mut().unwrap().own_cluster()
}

/// The number that a query returns, or 0.
async fn ask(cluster: &Cluster, sql: &str) -> i64 {
    let mut connection = cluster.options().connect().await.unwrap();
    let rows: Vec<sqlx::postgres::PgRow> = sqlx::query(sqlx::AssertSqlSafe(sql.to_owned()))
        .fetch_all(&mut connection)
        .await
        .unwrap();
    rows.first()
        .and_then(|row| sqlx::Row::try_get::<i64, _>(row, 0).ok())
        .unwrap_or(0)
}
