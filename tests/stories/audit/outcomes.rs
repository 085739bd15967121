//! How a call ended, and whether its tool may have run, as the audit trail says it. What the servers saw is counted by them, and
//! must agree.

use crate::combined;
use crate::support::client::Client;
use crate::support::hostile_server::{HostileServer, Then};
use crate::support::http::{Protocol, Reply};
use crate::support::on_both_stores;
use crate::support::resources_and_prompts::acknowledged;
use crate::support::stdio::{Notes, call, hold};
use crate::support::stores::Engine;
use crate::support::upstream::{Fault, Received, Scripted, Upstream};
use crate::support::wait::{eventually, soon};
use crate::support::world::World;
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

/// The outcome of a row: its kind, whether the tool may have run, and who cut the call.
type Ended = (&'static str, &'static str, Option<&'static str>);

const DONE: Ended = ("done", "yes", None);
const REFUSED: Ended = ("refused_by_server", "no", None);
const MAYBE_REFUSED: Ended = ("refused_by_server", "unknown", None);
const NOT_SENT: Ended = ("not_sent", "no", None);
const BROKEN: Ended = ("broken", "unknown", None);
const TIMED_OUT: Ended = ("timed_out", "unknown", None);
const CLIENT_CLOSED: Ended = ("client_closed", "unknown", None);

fn cut(by: &'static str) -> Ended {
    ("cut", "unknown", Some(by))
}

fn ended(row: &Value) -> (&str, &str, Option<&str>) {
    let outcome = &row["outcome"];
    let text = |name: &str| outcome[name].as_str();
    (
        text("ending").unwrap_or_default(),
        text("executed").unwrap_or_default(),
        text("by"),
    )
}

/// Ana, her server `files`, and her key; the server answers within half a second or not at all.
async fn hurried(world: &mut World, url: &str) -> String {
    world.server("files", url, "first_byte_timeout = '500ms'\nidle_timeout = '500ms'");
    crate::ana(world).await
}

/// A way to call `echo`, and what the tool is called there.
fn ways(direct: Client, modern: Client, combined: [Client; 2]) -> Vec<(&'static str, Client, &'static str)> {
    let [legacy, new] = combined;
    vec![
        ("legacy", direct, "echo"),
        ("modern", modern, "echo"),
        ("legacy at /mcp", legacy, "files__echo"),
        ("modern at /mcp", new, "files__echo"),
    ]
}

fn error(received: &Received, code: i64) -> Option<Scripted> {
    received.tool()?;
    let id = &received.message["id"];
    Some(Scripted::Json(
        json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": "no" } }),
    ))
}

/// Every way in which a server can answer or not, in both eras, on its own endpoint and at `/mcp`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_the_server_is_recorded_as_what_it_is() {
    let mut world = World::new(Engine::Sqlite).await;
    let files = Upstream::start().await;
    let key = hurried(&mut world, &files.url).await;
    world.start().await;
    let direct = world.connected("files", &key).await;
    let modern = world.client("files").bearer(&key).modern();
    let combined = combined::in_both_eras(&world, &key).await;
    let faults = [
        (None, DONE),
        (Some(Fault::Stream), DONE),
        (Some(Fault::ToolError), ("tool_error", "yes", None)),
        (Some(Fault::Status(500)), MAYBE_REFUSED),
        (Some(Fault::Status(429)), REFUSED),
        (Some(Fault::Challenge), REFUSED),
        (Some(Fault::Garbage), BROKEN),
        (Some(Fault::Break), BROKEN),
        (Some(Fault::Hang), TIMED_OUT),
    ];
    let mut expected = Vec::new();
    for (way, client, tool) in ways(direct, modern, combined) {
        for (fault, ended) in &faults {
            files.behave();
            if let Some(fault) = fault {
                files.fault("echo", fault.clone());
            }
            if matches!(fault, Some(Fault::Break)) {
                files.step();
            }
            client.call(tool, json!({ "text": "hi" })).await;
            expected.push((way, format!("{fault:?}"), *ended));
        }
        for (code, ended) in [(-32602, MAYBE_REFUSED), (-32603, MAYBE_REFUSED), (-32601, REFUSED)] {
            files.script(move |received| error(received, code));
            client.call(tool, json!({ "text": "hi" })).await;
            expected.push((way, code.to_string(), ended));
        }
        files.script(|_| None);
    }
    world.shipped().await;
    let rows = world.audit("--tool echo");
    assert_eq!(rows.len(), expected.len());
    for (row, (way, what, expected)) in rows.iter().zip(&expected) {
        assert_eq!(ended(row), *expected, "{way}, {what}: {row}");
    }
    assert_eq!(files.calls().len(), rows.len(), "the server saw each of them once");
    let table = world.guardian("audit query --tool echo --limit 100").ok().stdout;
    for told in ["tool error", "refused by server", "did not run", "timed out", "may have run"] {
        assert!(table.contains(told), "{told}: {table}");
    }
}

/// Nothing of the call reached the server, and the server agrees.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_sent_did_not_run_and_what_broke_off_may_have() {
    let mut world = World::new(Engine::Sqlite).await;
    let files = Upstream::start().await;
    let mut hostile = HostileServer::before(&files).await;
    let key = hurried(&mut world, &hostile.url).await;
    world.start().await;
    let modern = world.client("files").bearer(&key).modern();
    let combined = combined::client(&world, &key).modern();
    hostile.act("", Then::Close);
    modern.call("echo", json!({ "text": "broken off" })).await;
    hostile.act("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{", Then::Close);
    combined.call("files__echo", json!({ "text": "broken off" })).await;
    assert_eq!(hostile.calls().len(), 2);
    hostile.leave().await;
    modern.call("echo", json!({ "text": "not there" })).await;
    combined.call("files__echo", json!({ "text": "not there" })).await;
    assert_eq!(hostile.calls().len(), 2);
    world.shipped().await;
    let rows = world.audit("--tool echo");
    let outcomes: Vec<_> = rows.iter().map(ended).collect();
    assert_eq!(outcomes, [BROKEN, BROKEN, NOT_SENT, NOT_SENT], "{rows:?}");
}

/// Opens what can be under way at once: two calls, a stream of the session, a subscription, and a merged stream.
async fn under_way(world: &World, files: &Upstream, key: &str) -> Vec<Reply> {
    let opened = || files.received().iter().filter(|received| received.verb == "GET").count();
    let (streams_before, calls_before) = (opened(), files.calls().len());
    files.fault("slow", Fault::Hang);
    files.script(|received| {
        let (send, events) = tokio::sync::mpsc::channel(1);
        let listens = received.method() == "subscriptions/listen";
        let first = format!("data: {}\n\n", acknowledged(received));
        (listens || received.verb == "GET").then(|| {
            tokio::spawn(async move {
                if listens {
                    send.send(Ok(first.into())).await.unwrap();
                }
                send.closed().await;
            });
            Scripted::Stream(events)
        })
    });
    let legacy = world.connected("files", key).await;
    let modern = Client::new(world.address(None, Protocol::Http2), "files")
        .bearer(key)
        .modern();
    let both = combined::connected(world, key).await;
    // Opens the session at the server, whose stream the merged one then contains.
    assert!(both.call("files__echo", json!({ "text": "hi" })).await.is_result());
    let mut streams = vec![legacy.own_stream().await, both.own_stream().await];
    let listen = modern.request(
        "subscriptions/listen",
        json!({ "notifications": { "toolsListChanged": true } }),
    );
    streams.push(modern.alike().open(&listen).await.unwrap());
    files.arrived("the merged stream", |_| opened() == streams_before + 2).await;
    for client in [legacy, modern] {
        let slow = client.request("tools/call", json!({ "name": "slow", "arguments": {} }));
        let alike = client.alike();
        tokio::spawn(async move { alike.try_post(&slow).await.is_err() });
    }
    files.after_calls(calls_before + 3).await;
    streams
}

/// The outcomes of what `under_way` opened.
fn outcomes_of(rows: &[Value]) -> Vec<(&str, &str, Option<&str>)> {
    let streamed = |row: &&Value| {
        let of_server = row["server"] == "files";
        of_server && (row["tool"] == "slow" || row["method"] == "GET" || row["method"] == "subscriptions/listen")
    };
    rows.iter().filter(streamed).map(ended).collect()
}

on_both_stores! {
    async fn calls_that_guardian_cuts_as_it_stops_are_recorded_as_cut(world: World) {
        world.set("listen.limits.drain_timeout", "'1s'");
        let files = Upstream::start().await;
        world.server("files", &files.url, "");
        let key = crate::ana(&mut world).await;
        for by in ["drain", "stop"] {
            world.set("listen.limits.drain_timeout", if by == "drain" { "'1s'" } else { "'60s'" });
            world.start().await;
            let before = world.log().len();
            let _streams = under_way(&world, &files, &key).await;
            world.terminate();
            if by == "stop" {
                eventually("draining to begin", async || (world.ready().await != Some(200)).then_some(())).await;
                world.terminate();
            }
            assert_eq!(world.ended().await.code(), Some(0));
            let log = world.log()[before..].to_owned();
            let last: Vec<&str> = log.lines().rev().take(2).collect();
            assert!(last[0].contains("every record is on disk"), "{last:?}");
            assert!(last[1].contains("calls were cut") && last[1].contains("\"calls\":5"), "{last:?}");

            world.start().await;
            world.shipped().await;
            let rows = world.audit("--decision allow");
            let outcomes = outcomes_of(&rows);
            let outcomes = &outcomes[outcomes.len() - 5..];
            // The server had opened its streams; nobody knows what became of the calls.
            let mut executed: Vec<_> = outcomes.iter().map(|(kind, executed, cut_by)| {
                assert_eq!((*kind, *cut_by), ("cut", Some(by)), "{outcomes:?}");
                *executed
            }).collect();
            executed.sort_unstable();
            assert_eq!(executed, ["unknown", "unknown", "yes", "yes", "yes"]);
            world.terminate();
            world.ended().await;
        }
    }
}

/// Whoever loses the membership loses the streams, those in a merged one too, and the record says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_revoked_is_recorded_as_cut_for_that() {
    let mut world = World::new(Engine::Sqlite).await;
    world
        .set("grants.max_staleness", "'2s'")
        .set("grants.confirm_after", "'500ms'");
    let (files, key) = crate::ana_reads_files(&mut world).await;
    world.start().await;
    let streams = under_way(&world, &files, &key).await;
    world.guardian("user disable ana@example.com").ok();
    for mut stream in streams {
        while soon("the stream to be cut", stream.event()).await.ok().flatten().is_some() {}
    }
    let rows = eventually("the outcomes", async || {
        let rows = world.audit("--decision allow");
        let over = |row: &Value| row["tool"] == "slow" || row["outcome"]["ending"].is_string();
        rows.iter().all(over).then_some(rows)
    })
    .await;
    let streams: Vec<_> = rows.iter().filter(|row| row["tool"].is_null()).cloned().collect();
    assert_eq!(outcomes_of(&streams), [("cut", "yes", Some("revoked")); 3], "{rows:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_and_an_answer_that_takes_too_long_are_told_apart() {
    let mut world = World::new(Engine::Sqlite).await;
    world.set("listen.limits.total_timeout", "'2s'");
    let (files, key) = crate::ana_reads_files(&mut world).await;
    world.start().await;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let client = Client::new(world.address(None, protocol), "files").bearer(&key).modern();
        let slow = client.request("tools/call", json!({ "name": "slow", "arguments": { "events": 1000 } }));
        let begin = async || {
            let mut stream = client.alike().open(&slow).await.unwrap();
            // Some steps are taken by the call before, until the server notices that it is over.
            let steps = async {
                let mut ticks = tokio::time::interval(Duration::from_millis(20));
                loop {
                    ticks.tick().await;
                    files.step();
                }
            };
            tokio::select! {
                first = stream.event() => assert!(first.unwrap().is_some(), "progress"),
                () = steps => (),
            }
            stream
        };
        drop(begin().await);
        let mut late = begin().await;
        while let Ok(event) = soon("the limit", late.event()).await {
            event.expect("it is cut in the middle");
        }
    }
    let rows = eventually("the outcomes", async || {
        let rows = world.audit("--tool slow");
        rows.iter().all(|row| row["outcome"].is_object()).then_some(rows)
    })
    .await;
    let outcomes: Vec<_> = rows.iter().map(ended).collect();
    let late = cut("time_limit");
    assert_eq!(outcomes, [CLIENT_CLOSED, late, CLIENT_CLOSED, late], "{rows:?}");
    assert_eq!(files.calls().len(), 4);
}

/// What the program has written down of a call with this text.
fn saw(notes: &Notes, text: &str) -> bool {
    let mut messages = notes.messages().into_iter();
    messages.any(|message| {
        let said = message["params"]["arguments"]["text"].as_str();
        said.is_some_and(|said| said.starts_with(text))
    })
}

fn pause(pid: &str, signal: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}

/// A program that is stopped reads nothing: its pipe takes 64 KiB. What is given up before it was written is never written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_reads_nothing_did_not_run_what_it_never_got() {
    let mut world = World::new(Engine::Sqlite).await;
    let notes = Notes::program(&mut world, "first_byte_timeout = '1s'").await;
    world.start().await;
    let client = world.connected("notes", &notes.ana).await;
    let pid = client.call("pid", json!({})).await.text().to_owned();
    pause(&pid, "-STOP");
    let begun = format!("begun{}", "x".repeat(200_000));
    for text in [&begun, "waiting"] {
        assert_eq!(
            client.call("echo", json!({ "text": text })).await.reason(),
            "upstream_timeout"
        );
    }
    let left = client.request("tools/call", json!({ "name": "echo", "arguments": { "text": "left" } }));
    let leaving = client.alike();
    assert!(
        tokio::time::timeout(Duration::from_millis(300), leaving.try_post(&left))
            .await
            .is_err()
    );
    drop(leaving);
    pause(&pid, "-CONT");
    assert_eq!(client.call("echo", json!({ "text": "after" })).await.text(), "after");
    world.shipped().await;
    let rows = world.audit("--tool echo");
    let outcomes: Vec<_> = rows.iter().map(ended).collect();
    assert_eq!(
        outcomes,
        [TIMED_OUT, ("timed_out", "no", None), CLIENT_CLOSED, DONE],
        "{rows:?}"
    );
    assert!(saw(&notes, "begun") && saw(&notes, "after"));
    assert!(!saw(&notes, "waiting") && !saw(&notes, "left"), "never written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_dies_and_a_session_that_is_ended_are_told_apart() {
    let mut world = World::new(Engine::Sqlite).await;
    let notes = Notes::program(&mut world, "").await;
    world.start().await;
    let client = world.connected("notes", &notes.ana).await;
    let mut held = hold(&client, json!(7), "x").await;
    held.message().await;
    client.call("crash", json!({})).await;
    let mut client = world.connected("notes", &notes.ana).await;
    let mut held = hold(&client, json!(7), "y").await;
    held.message().await;
    client
        .send("DELETE", client.stream_headers(), bytes::Bytes::new())
        .await
        .unwrap();
    held.message().await;
    // The session is gone with the program, so nothing is sent.
    assert_eq!(client.call("echo", json!({ "text": "late" })).await.status, 404);
    client.handshake().await;
    let never = call(json!(9), "never", json!({}));
    let leaving = client.alike();
    let waiting = tokio::spawn(async move { leaving.try_post(&never).await.is_err() });
    notes
        .arrived("the last call", |message| message["params"]["name"] == "never")
        .await;
    waiting.abort();
    let rows = eventually("the outcomes", async || {
        let rows = world.audit("--method tools/call");
        (rows.len() == 5 && rows.iter().all(|row| row["outcome"].is_object())).then_some(rows)
    })
    .await;
    let outcomes: Vec<_> = rows.iter().map(|row| (row["tool"].as_str().unwrap(), ended(row))).collect();
    assert_eq!(
        outcomes,
        [
            ("hold", BROKEN),
            ("crash", BROKEN),
            ("hold", cut("session_ended")),
            ("echo", NOT_SENT),
            ("never", CLIENT_CLOSED),
        ],
        "{rows:?}"
    );
    assert!(!saw(&notes, "late"));
}

/// One program for all: what Guardian answers itself, and what it cannot send because the program does not start again, did not
/// reach it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_never_reached_a_shared_program_is_recorded_as_not_sent() {
    let mut world = World::new(Engine::Sqlite).await;
    let notes = Notes::program(&mut world, "per_session = false").await;
    let installed = world.file("installed");
    std::fs::write(&installed, "").unwrap();
    let server = &mut world.config["servers"].as_array_mut().unwrap()[0];
    let script = server["command"][1].as_str().unwrap().to_owned();
    let start = format!("test -e '{}' && exec node '{script}'", installed.display());
    server["command"] = vec!["sh".to_owned(), "-c".to_owned(), start].into();
    world.start().await;
    let client = world.connected("notes", &notes.ana).await;
    assert!(client.ask("logging/setLevel", json!({ "level": "info" })).await.is_result());
    let pid = client.call("pid", json!({})).await.text().to_owned();
    std::fs::remove_file(&installed).unwrap();
    pause(&pid, "-KILL");
    let unreachable = eventually("the program to be missed", async || {
        let answer = client.call("echo", json!({ "text": "unsent" })).await;
        (answer.reason() == "upstream_unreachable").then_some(answer)
    })
    .await;
    assert!(!unreachable.is_result());
    let last = |filter: &str| world.audit(filter).pop().expect("a row");
    // The client hears of it before the outcome is shipped.
    let told = |row: Value| !row["outcome"].is_null();
    eventually("its outcome", async || {
        world.audit("--tool echo").pop().is_some_and(told).then_some(())
    })
    .await;
    assert_eq!(ended(&last("--tool echo")), NOT_SENT);
    assert!(!saw(&notes, "unsent"));
    assert_eq!(ended(&last("--tool pid")), DONE);
    for method in ["initialize", "notifications", "logging/setLevel"] {
        let row = last(&format!("--method {method}"));
        assert_eq!(ended(&row), NOT_SENT, "{row}");
        let told = row["outcome"]["detail"].as_str().unwrap();
        assert!(told.contains("answered by Guardian"), "{told}");
    }
    let set = |message: &Value| message["method"] == "logging/setLevel";
    assert!(!notes.messages().iter().any(set), "the program agrees");
}

/// Above the rate of full records a refusal is counted, and the count says of whom.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_that_are_only_counted_still_name_the_caller() {
    let mut world = World::new(Engine::Sqlite).await;
    let (files, key) = crate::ana_reads_files(&mut world).await;
    world.set("limits.per_principal", "{ rate = 100000, per = '1s' }");
    world.start().await;
    let client = world.client("files").bearer(&key).modern();
    for _ in 0..400 {
        let refused = client.call("write_file", json!({ "path": "a", "text": "b" })).await;
        assert!(!refused.is_result());
    }
    let stranger = world.client("files").modern();
    stranger.call("echo", json!({ "text": "hi" })).await;
    world.terminate();
    world.ended().await;
    world.start().await;
    world.shipped().await;
    let full = world.audit("--tool write_file");
    let counted = world.audit("--kind suppressed");
    let times = |row: &Value| {
        row["detail"]
            .as_str()
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .parse::<usize>()
            .unwrap()
    };
    let of_ana: Vec<&Value> = counted.iter().filter(|row| row["subject"] == full[0]["subject"]).collect();
    assert!(!of_ana.is_empty(), "400 calls take less than eight seconds: {counted:?}");
    assert_eq!(full.len() + of_ana.iter().map(|row| times(row)).sum::<usize>(), 400);
    for row in &of_ana {
        assert_eq!(
            (&row["reason"], &row["user"], &row["email"]),
            (&full[0]["reason"], &full[0]["user"], &full[0]["email"])
        );
        assert_eq!(row["source_ip"], "127.0.0.0/24");
    }
    let strangers: Vec<&Value> = counted.iter().filter(|row| row["subject"].is_null()).collect();
    assert_eq!(strangers.len(), 1, "{counted:?}");
    assert_eq!(world.audit("--kind suppressed --user ana@example.com").len(), of_ana.len());
    assert!(files.calls().is_empty());
}
