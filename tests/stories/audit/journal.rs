//! The audit record of a call: durable before the call is sent, written once, whatever happens to the process or database.

use crate::ana_reads_files;
use crate::support::client::Client;
use crate::support::on_both_stores;
use crate::support::stores::Engine;
use crate::support::upstream::Fault;
use crate::support::wait::eventually;
use crate::support::world::World;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

on_both_stores! {
    /// The server itself reads the journal's folder at the moment a call arrives.
    async fn the_record_exists_before_the_call_does(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        world.set("audit.inputs", "'redacted'");
        world.start().await;
        let folder = world.file("data/journal");
        let seen: Arc<Mutex<Vec<bool>>> = Arc::default();
        let looks = seen.clone();
        files.on_call(move |call| {
            let marker = call.arguments()["text"].as_str().unwrap().to_owned();
            looks.lock().unwrap().push(permits(&folder).iter().any(|permit| permit.contains(&marker)));
        });

        let client = world.connected("files", &key).await;
        for number in 0..20 {
            client.call("echo", json!({ "text": format!("marker-{number}-end") })).await;
        }

        assert_eq!(*seen.lock().unwrap(), [true; 20]);
    }

    async fn killed_under_load_no_call_lacks_a_record_and_no_row_is_double(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        world.set("audit.inputs", "'redacted'").set("limits.per_principal", "{ rate = 100000, per = '1s' }");
        for round in 0..3 {
            world.start().await;
            let before = files.calls().len();
            let mut load = Vec::new();
            for caller in 0..8 {
                let client = world.connected("files", &key).await;
                load.push(tokio::spawn(call_until_cut(client, format!("round-{round}-caller-{caller}"))));
            }
            files.after_calls(before + 60).await;
            world.kill();
            for caller in load {
                caller.await.unwrap();
            }
        }
        world.start().await;
        world.shipped().await;

        let rows = world.audit("--tool echo");
        let mut records: BTreeMap<String, usize> = BTreeMap::new();
        for row in &rows {
            let arguments: Value = serde_json::from_str(row["args"].as_str().unwrap()).unwrap();
            *records.entry(arguments["text"].as_str().unwrap().to_owned()).or_default() += 1;
            assert!(row["outcome"]["ending"].is_string(), "a permit without an outcome: {row}");
        }
        for call in files.calls() {
            let marker = call.arguments()["text"].as_str().unwrap();
            assert_eq!(records.get(marker), Some(&1), "records of {marker}");
        }
        assert!(records.values().all(|count| *count == 1), "{records:?}");
        assert!(records.len() >= 180);
    }

    async fn an_outcome_tells_how_a_call_ended(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        world.start().await;
        let client = world.connected("files", &key).await;
        let ended = async |fault: Option<Fault>| {
            files.behave();
            if let Some(fault) = fault {
                files.fault("echo", fault);
            }
            client.call("echo", json!({ "text": "hi" })).await;
        };
        ended(None).await;
        ended(Some(Fault::Stream)).await;
        ended(Some(Fault::ToolError)).await;
        ended(Some(Fault::Status(503))).await;
        ended(Some(Fault::Garbage)).await;
        world.shipped().await;

        let endings: Vec<Value> = world.audit("--tool echo").iter().map(|row| row["outcome"]["ending"].clone()).collect();
        assert_eq!(endings, ["done", "done", "tool_error", "refused_by_server", "broken"]);
    }

    async fn a_call_that_was_running_when_the_process_died_may_have_been_executed(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        files.fault("echo", Fault::Hang);
        world.start().await;
        let client = world.connected("files", &key).await;
        let call = tokio::spawn(async move { client.try_post(&client.request("tools/call", json!({ "name": "echo", "arguments": { "text": "a" } }))).await.is_err() });
        files.after_calls(1).await;
        world.kill();
        assert!(call.await.unwrap());

        world.start().await;
        world.shipped().await;
        let rows = world.audit("--tool echo");
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_eq!((&rows[0]["decision"], &rows[0]["outcome"]["ending"]), (&json!("allow"), &json!("unknown")));
    }

    async fn strangers_are_counted_and_not_recorded_one_by_one(world: World) {
        let (_files, _) = ana_reads_files(&mut world).await;
        world.start().await;
        let mut stranger = world.client("files");
        for _ in 0..50 {
            assert_eq!(stranger.handshake().await.status, 401);
        }
        world.terminate();
        world.ended().await;

        let records = journal(&world.file("data/journal"));
        let counted: Vec<&String> = records.iter().filter(|record| record.contains(r#""kind":"suppressed""#)).collect();
        assert!((1..=10).contains(&counted.len()), "{counted:?}");
        assert!(!records.iter().any(|record| record.contains("no_credential") && record.contains(r#""kind":"decision""#)));
    }
}

/// Postgres only: an embedded database cannot go away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_down_then_up_ships_everything_once() {
    let mut world = World::new(Engine::Postgres).await;
    let (files, key) = ana_reads_files(&mut world).await;
    world
        .set("grants.max_staleness", "'60s'")
        .set("grants.confirm_after", "'30s'");
    world.start().await;
    let client = world.connected("files", &key).await;
    let database = world.database.as_ref().unwrap();

    client.call("echo", json!({ "text": "before" })).await.text();
    database.go_down().await;
    for number in 0..20 {
        assert_eq!(
            client
                .call("echo", json!({ "text": format!("during {number}") }))
                .await
                .verdict(),
            "allowed"
        );
    }
    database.come_back().await;
    client.call("echo", json!({ "text": "after" })).await.text();
    world.shipped().await;

    let rows = world.audit("--tool echo");
    assert_eq!((rows.len(), files.calls().len()), (22, 22));
    let double = "SELECT count(*) - count(DISTINCT (incarnation, seq)) FROM guardian.audit_trail WHERE bytes IS NOT NULL";
    assert_eq!(database.count(double).await, 0);
}

/// Once the knowledge of grants is older than `max_staleness`, nothing is permitted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_database_gone_calls_stop_at_the_bound() {
    let mut world = World::new(Engine::Postgres).await;
    let (files, key) = ana_reads_files(&mut world).await;
    world
        .set("grants.max_staleness", "'1s'")
        .set("grants.confirm_after", "'500ms'");
    world.start().await;
    let client = world.connected("files", &key).await;
    world.database.as_ref().unwrap().go_down().await;

    eventually("a call to be refused as stale", async || {
        let answer = client.call("echo", json!({ "text": "hi" })).await;
        (answer.verdict() == "200 stale_authorization").then_some(())
    })
    .await;
    let reached = files.calls().len();
    assert_eq!(
        client.call("echo", json!({ "text": "hi" })).await.verdict(),
        "200 stale_authorization"
    );
    assert_eq!(files.calls().len(), reached);
    world.database.as_ref().unwrap().come_back().await;
    eventually("calls to be allowed again", async || {
        client.call("echo", json!({ "text": "hi" })).await.is_result().then_some(())
    })
    .await;
}

/// A full spool refuses new permits, and a call that cannot be recorded is not sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_cannot_write_refuses_every_call() {
    let mut world = World::new(Engine::Postgres).await;
    let (files, key) = ana_reads_files(&mut world).await;
    world
        .set("grants.max_staleness", "'60s'")
        .set("grants.confirm_after", "'30s'");
    world
        .set("journal.max_bytes", "2097152")
        .set("journal.segment_bytes", "262144");
    // More than what fills the spool; what is refused afterwards would exceed it, if a refused call counted.
    world.set("limits.per_principal", "{ rate = 5000, per = '10h' }");
    world.start().await;
    let client = world.connected("files", &key).await;
    let database = world.database.as_ref().unwrap();

    database.go_down().await;
    let refused =
        async || (client.call("echo", json!({ "text": "hi" })).await.verdict() == "200 audit_unavailable").then_some(());
    eventually("the spool to be full", async || {
        let many = (0..100).map(|_| refused());
        let mut full = None;
        for call in many {
            full = full.or(call.await);
        }
        full
    })
    .await;
    let reached = files.calls().len();
    for _ in 0..5_000 {
        assert_eq!(
            client.call("echo", json!({ "text": "hi" })).await.verdict(),
            "200 audit_unavailable"
        );
    }
    assert_eq!(files.calls().len(), reached);
    assert_eq!(world.ready().await, Some(503));

    database.come_back().await;
    eventually("calls to be recorded again", async || {
        client.call("echo", json!({ "text": "hi" })).await.is_result().then_some(())
    })
    .await;
    world.shipped().await;
    let allowed = "SELECT count(*) FROM guardian.audit_trail WHERE tool_name = 'echo' AND decision = 'allow'";
    assert_eq!(database.count(allowed).await, i64::try_from(files.calls().len()).unwrap());
}

async fn call_until_cut(client: Client, name: String) {
    for number in 0.. {
        let arguments = json!({ "text": format!("{name}-call-{number}-end") });
        let message = client.request("tools/call", json!({ "name": "echo", "arguments": arguments }));
        match client.try_post(&message).await {
            Ok(answer) => assert!(answer.is_result(), "{answer:?}"),
            Err(_) => return,
        }
    }
}

/// Every line in the journal's folder that looks like a record.
fn journal(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file());
    let bytes: Vec<u8> = files.flat_map(|file| std::fs::read(file).unwrap()).collect();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.split(r#"{"v":2,"#).skip(1).map(str::to_owned).collect()
}

fn permits(folder: &Path) -> Vec<String> {
    journal(folder)
        .into_iter()
        .filter(|record| record.contains(r#""decision":"allow""#))
        .collect()
}
