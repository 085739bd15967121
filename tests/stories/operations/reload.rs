//! Policies that change while calls are made: what a forbid refuses is refused until its file has been gone for good.

use crate::support::client::Client;
use crate::support::on_both_stores;
use crate::support::stores::Engine;
use crate::support::upstream::Upstream;
use crate::support::wait::eventually;
use crate::support::world::{POLICIES, World};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How long the policy files must stay the same before a forbid that is gone from them is dropped.
const DROPPED_AFTER: Duration = Duration::from_secs(5);

/// The file is away for 100 ms of every 200 ms, as a careless sync or a broken disk may have it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forbid_whose_file_flickers_is_never_dropped() {
    const CALLS: usize = 5_000;
    const FLICKERS: usize = 40;
    let mut world = World::new(Engine::Sqlite).await;
    let (files, key) = ana_is_forbidden_a_tool(&mut world).await;
    let client = Arc::new(world.client("files").modern().bearer(&key));
    assert_eq!(shadow(&client).await, "200 forbidden_by_policy");

    let (calls, flickers) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let (client, calls, flickers) = (client.alike(), calls.clone(), flickers.clone());
        callers.spawn(async move {
            let mut others = Vec::new();
            // Over many flickers, and not all at once.
            let mut ticks = tokio::time::interval(Duration::from_millis(15));
            while calls.fetch_add(1, Ordering::Relaxed) < CALLS || flickers.load(Ordering::Relaxed) < FLICKERS {
                ticks.tick().await;
                let verdict = shadow(&client).await;
                if verdict != "200 forbidden_by_policy" {
                    others.push(verdict);
                }
            }
            others
        });
    }
    let flicker = tokio::spawn(flicker(forbids(&world), world.file("away.cedar"), flickers.clone()));
    let others = callers.join_all().await.concat();
    flickers.fetch_or(ENOUGH, Ordering::Relaxed);
    flicker.await.unwrap();
    let (calls, reached) = (calls.load(Ordering::Relaxed), files.calls().len());
    assert!(
        others.is_empty() && reached == 0,
        "{} of {calls} calls were not forbidden, {reached} of them reached the server",
        others.len()
    );

    // A set that was read after the flicker is in force, and the forbid is in it.
    world.folder.write("policies/closed.cedar", CLOSED);
    eventually("the set after the flicker", async || {
        (echo(&client).await == "200 forbidden_by_policy").then_some(())
    })
    .await;
    assert_eq!(shadow(&client).await, "200 forbidden_by_policy");
    assert!(files.calls().iter().all(|call| call.tool() == Some("echo")));
}

on_both_stores! {
    async fn a_forbid_is_dropped_five_seconds_after_its_file_is_deleted(world: World) {
        let (_files, key) = ana_is_forbidden_a_tool(&mut world).await;
        let client = world.client("files").modern().bearer(&key);

        let deleted = Instant::now();
        std::fs::remove_file(forbids(&world)).unwrap();
        eventually("the forbid to be kept", async || world.log().contains("stays in force until they have been the same").then_some(())).await;
        // What comes meanwhile does not wait.
        world.folder.write("policies/closed.cedar", CLOSED);
        let added = Instant::now();
        eventually("the new forbid", async || (echo(&client).await == "200 forbidden_by_policy").then_some(())).await;
        assert_eq!(shadow(&client).await, "200 forbidden_by_policy");
        assert!(!world.log().contains("this forbid is there no more"));

        eventually("the deleted forbid to be dropped", async || (shadow(&client).await == "allowed").then_some(())).await;
        assert!(deleted.elapsed() > DROPPED_AFTER && added.elapsed() > DROPPED_AFTER, "{:?}", added.elapsed());
        assert!(added.elapsed() < DROPPED_AFTER * 3, "{:?}", added.elapsed());
        assert!(world.log().contains("this forbid is there no more") && world.log().contains("nothing-under-etc"));
        assert_eq!(echo(&client).await, "200 forbidden_by_policy");
    }

    async fn a_forbid_that_changes_holds_as_it_was_and_as_it_is_for_five_seconds(world: World) {
        let (_files, key) = ana_is_forbidden_a_tool(&mut world).await;
        let client = world.client("files").modern().bearer(&key);
        let read = async |path: &str| client.call("read_file", json!({ "path": path })).await.verdict();
        assert_eq!(read("/opt/a").await, "allowed");

        let old = std::fs::read_to_string(forbids(&world)).unwrap();
        let changed = Instant::now();
        std::fs::write(forbids(&world), old.replace("/etc/*", "/opt/*")).unwrap();
        eventually("the forbid as it is", async || (read("/opt/a").await == "200 forbidden_by_policy").then_some(())).await;
        assert_eq!(shadow(&client).await, "200 forbidden_by_policy");

        eventually("the forbid as it was to be dropped", async || (shadow(&client).await == "allowed").then_some(())).await;
        assert!(changed.elapsed() > DROPPED_AFTER && changed.elapsed() < DROPPED_AFTER * 3, "{:?}", changed.elapsed());
        assert_eq!(read("/opt/a").await, "200 forbidden_by_policy");
    }

    async fn a_policy_file_that_would_exhaust_the_stack_is_refused_and_the_policies_in_force_stay(world: World) {
        let (_files, key) = ana_is_forbidden_a_tool(&mut world).await;
        let client = world.client("files").modern().bearer(&key);
        assert_eq!(shadow(&client).await, "200 forbidden_by_policy");
        let deep = [
            ("(".repeat(2_500) + "true" + &")".repeat(2_500), "more than 64 brackets are open inside each other"),
            ("true".to_owned() + &" && true".repeat(20_000), "the condition is more than 256 operators, attributes and brackets deep"),
            ("if true then true else ".repeat(20_000) + "true", "the condition is more than 256 operators, attributes and brackets deep"),
        ];
        for (condition, told) in deep {
            let policy = format!("@id(\"deep\") forbid (principal, action, resource)\nwhen {{ {condition} }};\n");
            world.folder.write("policies/deep.cedar", &policy);
            eventually("the file to be refused", async || world.log().contains(told).then_some(())).await;
            assert!(world.log().contains("policies/deep.cedar:2:"), "{}", world.log());
            assert_eq!((echo(&client).await, shadow(&client).await), ("allowed".to_owned(), "200 forbidden_by_policy".to_owned()));
            std::fs::remove_file(world.file("policies/deep.cedar")).unwrap();
        }

        world.folder.write("policies/closed.cedar", CLOSED);
        eventually("the next set", async || (echo(&client).await == "200 forbidden_by_policy").then_some(())).await;
    }

    async fn a_new_list_of_tools_drops_no_forbid_whose_file_is_away(world: World) {
        let (files, key) = ana_is_forbidden_a_tool(&mut world).await;
        let client = world.client("files").modern().bearer(&key);
        let reason = async |tool: &str| client.call(tool, json!({})).await.reason().to_owned();
        assert_eq!(reason("late").await, "unknown_tool");

        let away = world.file("away.cedar");
        std::fs::rename(forbids(&world), &away).unwrap();
        files.offer(json!({ "name": "late", "inputSchema": { "type": "object" } }));
        eventually("the new tool to be known", async || (reason("late").await != "unknown_tool").then_some(())).await;
        assert_eq!(shadow(&client).await, "200 forbidden_by_policy");
        std::fs::rename(&away, forbids(&world)).unwrap();

        world.folder.write("policies/closed.cedar", CLOSED);
        eventually("the set with the file", async || (echo(&client).await == "200 forbidden_by_policy").then_some(())).await;
        assert_eq!(shadow(&client).await, "200 forbidden_by_policy");
    }
}

/// A flag among the flickers that have been counted: no more of them.
const ENOUGH: usize = 1 << 32;

/// Takes the file away and puts it back, every 100 ms one of them, and leaves it in its place.
async fn flicker(file: PathBuf, away: PathBuf, flickers: Arc<AtomicUsize>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    while flickers.load(Ordering::Relaxed) < ENOUGH {
        ticks.tick().await;
        std::fs::rename(&file, &away).unwrap();
        ticks.tick().await;
        std::fs::rename(&away, &file).unwrap();
        flickers.fetch_add(1, Ordering::Relaxed);
    }
}

const CLOSED: &str = "@id(\"closed\") forbid (principal, action == Guardian::Action::\"files/echo\", resource);";

/// Ana may read files, and a file of its own forbids what is under /etc.
async fn ana_is_forbidden_a_tool(world: &mut World) -> (Upstream, String) {
    let files = Upstream::start().await;
    world.server("files", &files.url, "catalogue_refresh = '1s'");
    let key = crate::ana(world).await;
    let (permits, forbid) = POLICIES.split_once("@id(\"nothing-under-etc\")").unwrap();
    world.policies(permits);
    world
        .folder
        .write("policies/forbids.cedar", &format!("@id(\"nothing-under-etc\"){forbid}"));
    world.start().await;
    (files, key)
}

fn forbids(world: &World) -> PathBuf {
    world.file("policies/forbids.cedar")
}

async fn shadow(client: &Client) -> String {
    client.call("read_file", json!({ "path": "/etc/shadow" })).await.verdict()
}

async fn echo(client: &Client) -> String {
    client.call("echo", json!({ "text": "hi" })).await.verdict()
}
