//! Stdio servers offered like any other: the same decisions, refusals and records; processes that stay apart, are started
//! again when they end, and leave nothing behind.

use crate::support::sdk_clients::{Kind, RealClient};
use crate::support::stdio::{Notes, call, gone, hold, is_alive, official};
use crate::support::stores::Engine;
use crate::support::wait::eventually;
use crate::support::world::World;
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::BTreeSet;

async fn world(more: &str) -> (World, Notes) {
    let mut world = World::new(Engine::Sqlite).await;
    let notes = Notes::program(&mut world, more).await;
    world.start().await;
    known(&world).await;
    (world, notes)
}

#[tokio::test]
async fn a_program_is_a_server_like_any_other() {
    let (world, notes) = world("").await;
    let mut client = world.connected("notes", &notes.ana).await;
    assert!(client.session.as_deref().unwrap().starts_with("gs1."));
    assert!(client.list().await.contains(&"echo".to_owned()));
    let answer = client.post(&call(json!("a\"/1"), "echo", json!({ "text": "hi" }))).await;
    assert_eq!((answer.text(), &answer.message["id"]), ("hi", &json!("a\"/1")));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let unknown = client.call("no_such_tool", json!({})).await;
    assert_eq!(unknown.reason(), "unknown_tool");
    assert_eq!(
        client.call("echo", json!({ "text": "plot" })).await.reason(),
        "forbidden_by_policy"
    );
    assert_eq!(client.call("echo", json!({ "text": 7 })).await.reason(), "invalid_arguments");
    let calls: Vec<_> = notes
        .messages()
        .into_iter()
        .filter(|message| message["method"] == "tools/call")
        .collect();
    assert_eq!(calls.len(), 1, "what is refused never reaches the program: {calls:?}");
    assert_eq!(client.call("pid", json!({})).await.status, 200);

    // When the client ends its session, the process ends too.
    let process = client.call("pid", json!({})).await.text().to_owned();
    let mut headers = client.base_headers();
    headers.remove("content-type");
    assert_eq!(client.send("DELETE", headers, Bytes::new()).await.unwrap().status, 200);
    gone(&process).await;
    let lost = client.call("echo", json!({ "text": "hi" })).await;
    assert_eq!((lost.status, lost.message["id"].is_null()), (404, false));
    client.session = None;
    assert_eq!(client.ask("tools/list", json!({})).await.status, 400);
    let modern = world.client("notes").bearer(&notes.ana).modern();
    assert_eq!(modern.ask("server/discover", json!({})).await.status, 404);

    world.shipped().await;
    let rows = world.audit("--tool echo");
    let verdicts: Vec<_> = rows
        .iter()
        .map(|row| (row["decision"].as_str().unwrap(), row["outcome"]["ending"].as_str()))
        .collect();
    assert_eq!(
        verdicts[..3],
        [("allow", Some("done")), ("deny", None), ("deny", None)],
        "{rows:?}"
    );
}

#[tokio::test]
async fn an_answer_becomes_a_stream_when_more_comes_before_it() {
    let (world, notes) = world("").await;
    let client = world.connected("notes", &notes.ana).await;
    let mut held = hold(&client, json!("h"), "x").await;
    let first = held.message().await;
    assert_eq!(first["params"], json!({ "progressToken": "h", "progress": 1 }));
    assert_eq!(client.call("release", json!({ "name": "x" })).await.text(), "released");
    assert_eq!(held.message().await["params"]["progress"], 2);
    let last = held.message().await;
    assert_eq!(
        (&last["id"], &last["result"]["content"][0]["text"]),
        (&json!("h"), &json!("held x"))
    );
    assert_eq!(held.event().await.unwrap(), None);
}

/// A session's process has one caller, so what it sends unasked goes to that session: on a call or on the session's stream.
#[tokio::test]
async fn what_the_program_says_by_itself_comes_on_the_sessions_own_stream() {
    let (world, notes) = world("").await;
    let client = world.connected("notes", &notes.ana).await;
    assert_eq!(client.call("notify", json!({})).await.text(), "notified");
    let mut stream = client.own_stream().await;
    assert_eq!(stream.message().await["method"], "notifications/message");
    assert_eq!(
        stream.message().await["method"],
        "notifications/tools/list_changed",
        "nobody asked for that progress"
    );
    let other = world.connected("notes", &notes.bob).await;
    assert_eq!(other.call("notify", json!({})).await.text(), "notified");
    assert_eq!(client.call("notify", json!({})).await.text(), "notified");
    for method in ["notifications/message", "notifications/tools/list_changed"] {
        assert_eq!(stream.message().await["method"], method);
    }
    let mut again = client.own_stream().await;
    assert_eq!(
        stream.event().await.unwrap(),
        None,
        "a client that comes again has one stream"
    );
    assert_eq!(client.call("notify", json!({})).await.text(), "notified");
    assert_eq!(again.message().await["method"], "notifications/message");
}

#[tokio::test]
async fn each_session_has_a_process_and_no_process_has_guardians_environment() {
    let (world, notes) = world("").await;
    let clients = [
        world.connected("notes", &notes.ana).await,
        world.connected("notes", &notes.ana).await,
        world.connected("notes", &notes.bob).await,
    ];
    let mut processes = BTreeSet::new();
    for client in &clients {
        processes.insert(client.call("pid", json!({})).await.text().to_owned());
        let env: Value = serde_json::from_str(client.call("env", json!({})).await.text()).unwrap();
        let allowed = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "RECORD", "TOKEN"];
        let names: Vec<_> = env
            .as_object()
            .unwrap()
            .keys()
            .filter(|name| !allowed.contains(&name.as_str()))
            .collect();
        assert!(names.is_empty(), "{names:?}");
        assert_eq!((&env["TOKEN"], &env["TZ"]), (&json!("notes-own-secret"), &json!("UTC")));
    }
    assert_eq!(processes.len(), 3);
    // Calls of one session are answered by its own process.
    let mut held = clients[0]
        .alike()
        .open(&call(json!(1), "hold", json!({ "name": "x" })))
        .await
        .unwrap();
    held.message().await;
    assert_eq!(clients[1].call("release", json!({ "name": "x" })).await.text(), "not held");
    assert_eq!(clients[0].call("release", json!({ "name": "x" })).await.text(), "released");
    // No other caller can use the session.
    let mut thief = world.client("notes").bearer(&notes.bob);
    thief.session.clone_from(&clients[0].session);
    assert_eq!(thief.call("pid", json!({})).await.verdict(), "404 unknown_session");
}

#[tokio::test]
async fn callers_of_one_process_may_use_the_same_ids_at_once() {
    let (world, notes) = world("per_session = false").await;
    let (ana, bob) = notes.both(&world).await;
    let process = ana.call("pid", json!({})).await.text().to_owned();
    assert_eq!(bob.call("pid", json!({})).await.text(), process);
    let mut anas = hold(&ana, json!(1), "anas").await;
    let mut bobs = hold(&bob, json!(1), "bobs").await;
    for stream in [&mut anas, &mut bobs] {
        assert_eq!(stream.message().await["params"], json!({ "progressToken": 1, "progress": 1 }));
    }
    assert_eq!(ana.call("release", json!({ "name": "bobs" })).await.text(), "released");
    assert_eq!(bobs.message().await["params"], json!({ "progressToken": 1, "progress": 2 }));
    let answer = bobs.message().await;
    assert_eq!(
        (&answer["id"], &answer["result"]["content"][0]["text"]),
        (&json!(1), &json!("held bobs"))
    );

    // Bob cannot cancel Ana's call; Ana can.
    let cancel =
        json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 1, "reason": "enough" } });
    assert_eq!(bob.post(&cancel).await.status, 202);
    assert_eq!(ana.post(&cancel).await.status, 202);
    let taken_back = |message: &Value| message["method"] == "notifications/cancelled";
    let arrived = notes.arrived("the cancellation", taken_back).await;
    let held = notes
        .arrived("the call", |message| message["params"]["arguments"]["name"] == "anas")
        .await;
    assert_eq!(arrived["params"], json!({ "requestId": held["id"], "reason": "enough" }));
    assert_eq!(held["params"]["_meta"]["progressToken"], held["id"]);
    assert_eq!(notes.messages().iter().filter(|message| taken_back(message)).count(), 1);
    assert_eq!(ana.call("release", json!({ "name": "anas" })).await.text(), "released");
    assert_eq!(anas.message().await["params"]["progress"], 2);

    // The shared process received one handshake: Guardian's own, without any client's capabilities.
    let hellos: Vec<_> = notes
        .messages()
        .into_iter()
        .filter(|message| message["method"] == "initialize")
        .collect();
    assert_eq!((hellos.len(), &hellos[0]["params"]["capabilities"]), (1, &json!({})));
}

/// Guardian introduces itself with what the server may request, so that tools for such clients can be pinned and used.
#[tokio::test]
async fn tools_for_clients_that_can_answer_are_known_and_listed_to_those() {
    let mut world = World::new(Engine::Sqlite).await;
    let notes = Notes::program(&mut world, "client_requests = ['sampling', 'roots', 'elicitation']").await;
    let env = world.config["servers"][0]["env"].as_table_mut().unwrap();
    env.insert("CONDITIONAL".to_owned(), "1".into());
    world.start().await;
    known(&world).await;
    let refused = notes
        .arrived("Guardian's own answer", |message| message["id"] == "before-the-list")
        .await;
    assert_eq!(refused["error"]["code"], -32601, "{refused}");
    let of = |path: &str, capabilities: Value| {
        let mut client = world.client("notes").bearer(&notes.ana);
        client.path = path.to_owned();
        client.capabilities = capabilities;
        client
    };
    for (capabilities, tools) in [
        (json!({}), &[][..]),
        (json!({ "elicitation": {} }), &[]),
        (json!({ "sampling": {} }), &["compose"]),
        (
            json!({ "roots": {}, "sampling": {}, "elicitation": {} }),
            &["compose", "folders"],
        ),
    ] {
        // At the combined endpoint Guardian lists what is pinned.
        let mut client = of("/mcp", capabilities.clone());
        assert!(client.handshake().await.is_result());
        let listed = client.list().await;
        let conditional: Vec<_> = listed.iter().filter_map(|name| name.strip_prefix("notes__")).collect();
        assert!(conditional.contains(&"echo"), "{listed:?}");
        for name in ["compose", "folders"] {
            assert_eq!(
                conditional.contains(&name),
                tools.contains(&name),
                "{capabilities}: {listed:?}"
            );
        }
    }
    // At its own endpoint the server lists what it offers to this client.
    for (capabilities, listed) in [(json!({}), false), (json!({ "sampling": {} }), true)] {
        let mut client = of("/mcp/notes", capabilities);
        assert!(client.handshake().await.is_result());
        assert_eq!(client.list().await.contains(&"compose".to_owned()), listed);
    }
}

/// A shared process cannot say whom a log message is for, so it is dropped. A changed list concerns every caller.
#[tokio::test]
async fn nobody_hears_what_a_shared_process_says_of_others() {
    let (world, notes) = world("per_session = false").await;
    let (ana, bob) = notes.both(&world).await;
    let mut streams = [ana.own_stream().await, bob.own_stream().await];
    assert_eq!(ana.call("notify", json!({})).await.text(), "notified");
    for stream in &mut streams {
        assert_eq!(stream.message().await["method"], "notifications/tools/list_changed");
    }
    let answer = bob.call("ask", json!({ "method": "sampling/createMessage" })).await;
    assert!(answer.text().contains("-32601"), "{answer:?}");
    assert_eq!(
        bob.call("ask", json!({ "method": "ping" })).await.message["result"]["isError"],
        Value::Null
    );
}

#[tokio::test]
async fn a_program_asks_its_client_where_it_may() {
    let (world, notes) = world("client_requests = ['roots']").await;
    let client = world.connected("notes", &notes.ana).await;
    let asking = client.alike();
    let mut stream = asking
        .open(&call(json!(1), "ask", json!({ "method": "roots/list" })))
        .await
        .unwrap();
    let asked = stream.message().await;
    assert_eq!(asked["method"], "roots/list");
    let handle = asked["id"].as_str().unwrap();
    assert!(handle.starts_with("gh1."), "{handle}");
    let other = world.connected("notes", &notes.ana).await;
    let answer = json!({ "jsonrpc": "2.0", "id": handle, "result": { "roots": [{ "uri": "file:///srv" }] } });
    assert_eq!(other.post(&answer).await.verdict(), "400 unknown_answer");
    assert_eq!(client.post(&answer).await.status, 202);
    let told = stream.message().await;
    assert!(
        told["result"]["content"][0]["text"].as_str().unwrap().contains("file:///srv"),
        "{told}"
    );

    let refused = client.call("ask", json!({ "method": "sampling/createMessage" })).await;
    assert!(refused.text().contains("-32601"), "{refused:?}");
    world.shipped().await;
    let rows = world.audit("--tool ask");
    assert!(
        rows[1]["outcome"]["detail"]
            .as_str()
            .unwrap()
            .contains("was refused `sampling/createMessage` (1)"),
        "{rows:?}"
    );
}

#[tokio::test]
async fn a_program_that_dies_ends_its_calls_and_comes_again() {
    let (world, notes) = world("").await;
    let client = world.connected("notes", &notes.ana).await;
    let process = client.call("pid", json!({})).await.text().to_owned();
    let mut held = hold(&client, json!(7), "x").await;
    held.message().await;
    let crashed = client.call("crash", json!({})).await;
    assert_eq!((crashed.reason(), crashed.status), ("upstream_broken", 200));
    let told = held.message().await;
    assert_eq!(
        (&told["id"], &told["error"]["data"]["reason"]),
        (&json!(7), &json!("upstream_broken"))
    );
    gone(&process).await;
    assert_eq!(client.call("pid", json!({})).await.status, 404, "the session was the process");
    let again = world.connected("notes", &notes.ana).await;
    assert_ne!(again.call("pid", json!({})).await.text(), process);
    world.shipped().await;
    let row = &world.audit("--tool crash")[0];
    assert_eq!(
        (&row["outcome"]["ending"], &row["decision"]),
        (&json!("broken"), &json!("allow")),
        "{row}"
    );
}

/// Guardian has nothing more to read from standard error, and still notices the end of the process.
#[tokio::test]
async fn a_program_that_closed_its_standard_error_dies_like_any_other() {
    let mut world = World::new(Engine::Sqlite).await;
    let notes = Notes::program(&mut world, "").await;
    let program = &mut world.config["servers"].as_array_mut().unwrap()[0]["command"];
    let words: Vec<&str> = program.as_array().unwrap().iter().filter_map(|word| word.as_str()).collect();
    *program = vec!["sh".to_owned(), "-c".to_owned(), format!("exec {} 2>&-", words.join(" "))].into();
    world.start().await;
    known(&world).await;
    let client = world.connected("notes", &notes.ana).await;
    let process = client.call("pid", json!({})).await.text().to_owned();
    assert_eq!(client.call("crash", json!({})).await.reason(), "upstream_broken");
    gone(&process).await;
    eventually("its end to be on record", async || {
        world.log().contains("the server's program has ended").then_some(())
    })
    .await;
    let again = world.connected("notes", &notes.ana).await;
    assert_ne!(again.call("pid", json!({})).await.text(), process);
}

#[tokio::test]
async fn a_shared_program_that_dies_is_started_again_and_sessions_stay() {
    let (world, notes) = world("per_session = false").await;
    let (ana, bob) = notes.both(&world).await;
    let process = ana.call("pid", json!({})).await.text().to_owned();
    assert_eq!(ana.call("crash", json!({})).await.reason(), "upstream_broken");
    let second = bob.call("pid", json!({})).await.text().to_owned();
    assert_ne!(second, process);
    assert_eq!(ana.call("pid", json!({})).await.text(), second);
}

#[tokio::test]
async fn what_is_no_message_is_skipped_and_what_is_too_long_ends_the_process() {
    let (world, notes) = world("max_answer_bytes = 1_000_000").await;
    let client = world.connected("notes", &notes.ana).await;
    assert_eq!(client.call("garbage", json!({})).await.text(), "after garbage");
    assert_eq!(
        client.call("echo", json!({ "text": "still here" })).await.text(),
        "still here"
    );
    let process = client.call("pid", json!({})).await.text().to_owned();
    let before = world.resident();
    let flooded = client.call("flood", json!({})).await;
    assert_eq!(flooded.reason(), "upstream_broken");
    assert!(
        flooded.message["error"]["message"]
            .as_str()
            .unwrap()
            .contains("longer than 1000000 bytes"),
        "{flooded:?}"
    );
    gone(&process).await;
    assert!(world.resident() < before + 32 * 1024 * 1024, "the line was not held");
}

#[tokio::test]
async fn who_never_answers_is_given_up_and_told_so() {
    let (world, notes) = world("first_byte_timeout = '2s'").await;
    let client = world.connected("notes", &notes.ana).await;
    let late = client.call("never", json!({})).await;
    assert_eq!(late.reason(), "upstream_timeout");
    let asked = notes
        .arrived("the call", |message| message["params"]["name"] == "never")
        .await;
    let told = notes
        .arrived("the cancellation", |message| message["method"] == "notifications/cancelled")
        .await;
    assert_eq!(told["params"]["requestId"], asked["id"]);
    assert_eq!(client.call("echo", json!({ "text": "hi" })).await.text(), "hi");
}

/// A client that disconnects has not cancelled its call (legacy era).
#[tokio::test]
async fn a_client_that_goes_away_takes_nothing_back() {
    let (world, notes) = world("").await;
    let client = world.connected("notes", &notes.ana).await;
    let mut held = hold(&client, json!(5), "x").await;
    held.message().await;
    drop(held);
    world.shipped().await;
    eventually("the call to be on record as left", async || {
        world.shipped().await;
        (world.audit("--tool hold")[0]["outcome"]["ending"] == "client_closed").then_some(())
    })
    .await;
    assert_eq!(client.call("release", json!({ "name": "x" })).await.text(), "released");
    assert!(
        !notes
            .messages()
            .iter()
            .any(|message| message["method"] == "notifications/cancelled")
    );
}

#[tokio::test]
async fn a_revoked_grant_cuts_the_stream_of_a_program() {
    let (world, notes) = world("").await;
    let client = world.connected("notes", &notes.ana).await;
    let mut own = client.own_stream().await;
    let mut held = hold(&client, json!(5), "x").await;
    held.message().await;
    world.revoke("ana", "notes");
    assert_eq!(held.message().await["error"]["data"]["reason"], "grant_revoked");
    assert_eq!(own.event().await.unwrap(), None);
    let before = notes.messages().len();
    assert_eq!(client.call("echo", json!({ "text": "hi" })).await.reason(), "grant_revoked");
    assert_eq!(notes.messages().len(), before);
}

#[tokio::test]
async fn nothing_of_a_program_outlives_guardian() {
    let (mut world, notes) = world("").await;
    let client = world.connected("notes", &notes.ana).await;
    let process = client.call("pid", json!({})).await.text().to_owned();
    let child = client.call("child", json!({})).await.text().to_owned();
    let all: BTreeSet<_> = notes.recorded().iter().map(|line| line["pid"].to_string()).collect();
    assert!(
        all.contains(&process) && all.len() == 2,
        "the session's process, and the one for the list of tools: {all:?}"
    );
    assert!(is_alive(&child));
    drop(client);
    world.terminate();
    assert!(world.ended().await.success());
    for process in all.iter().chain([&child]) {
        assert!(!is_alive(process), "{process}");
    }
}

#[tokio::test]
async fn sessions_are_bounded_and_one_that_is_not_used_ends() {
    let (world, notes) = world("max_sessions = 2\nsession_idle = '1s'").await;
    let first = world.connected("notes", &notes.ana).await;
    let process = first.call("pid", json!({})).await.text().to_owned();
    // One caller may have half of the sessions: the least recently used one is closed for the new one.
    let second = world.connected("notes", &notes.ana).await;
    assert_eq!(first.call("pid", json!({})).await.status, 404);
    gone(&process).await;
    let _stream = second.own_stream().await;
    let mut third = world.client("notes").bearer(&notes.ana);
    let refused = third.handshake().await;
    assert_eq!(refused.reason(), "too_many_sessions", "the other one is in use: {refused:?}");
    let bob = world.connected("notes", &notes.bob).await;
    let process = bob.call("pid", json!({})).await.text().to_owned();
    gone(&process).await;
    assert_eq!(bob.call("pid", json!({})).await.status, 404);
    assert_eq!(
        second.call("echo", json!({ "text": "hi" })).await.text(),
        "hi",
        "it has a stream open"
    );
}

#[tokio::test]
async fn what_a_program_logs_is_in_the_log_without_what_it_was_given() {
    let (world, notes) = world("").await;
    let client = world.connected("notes", &notes.ana).await;
    client
        .call("complain", json!({ "text": "cannot log in with notes-own-secret" }))
        .await;
    eventually("the complaint", async || {
        world.log().contains("cannot log in with [secret]").then_some(())
    })
    .await;
    assert!(!world.log().contains("notes-own-secret"));
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_told_of() {
    let mut world = World::new(Engine::Sqlite).await;
    world.migrate().await;
    let sentence = |world: &World| {
        let told = world.guardian("check");
        assert_ne!(told.code, 0, "{told:?}");
        told.stdout + &told.stderr
    };
    for (entry, why) in [
        (
            "command = ['no-such-program']",
            "its command `no-such-program` is in no folder of PATH",
        ),
        ("command = ['/etc/passwd']", "its command `/etc/passwd` is not executable"),
        ("command = ['sh']\nworking_dir = 'nowhere'", "is not a folder"),
        (
            "command = ['sh']\nurl = 'https://x.example/mcp'",
            "has both `url` and `command`",
        ),
        ("", "has neither `url` nor `command`"),
    ] {
        world.config.remove("servers");
        world.piped("notes", entry);
        let told = sentence(&world);
        assert!(told.contains(why), "{entry}: {told}");
    }
}

/// Official packages at both ends: an SDK client, and a stdio server made with the TypeScript SDK.
#[tokio::test]
async fn real_clients_use_a_real_program() {
    let mut world = World::new(Engine::Sqlite).await;
    world.piped("notes", &official());
    world.policies("@id(\"r\") permit (principal, action in Guardian::Action::\"read_only\", resource);");
    world.person("ana", &["reader"]).await;
    world.grant("ana", "notes", "echo,slow");
    let key = world.key("ana");
    world.start().await;
    known(&world).await;
    for kind in [Kind::TypescriptV1, Kind::PythonV1, Kind::TypescriptV2, Kind::PythonV2] {
        let mut client = RealClient::start(kind, &world.file("ca.pem"), &world.folder);
        let mode = kind.modes()[kind.modes().len().min(2) - 1];
        let connected = client.connect(&world.resource("notes"), &key, mode).await;
        let listed = client.list().await;
        let echoed = client.call("echo", json!({ "text": "hi" })).await;
        let slow = client.call("slow", json!({})).await;
        let seen = format!("{connected} {listed} {echoed} {slow}");
        let listed = listed.to_string();
        assert!(listed.contains("echo") && !listed.contains("delete_file"), "{kind:?}: {seen}");
        assert!(
            echoed.to_string().contains("hi") && slow.to_string().contains("done"),
            "{kind:?}: {seen}"
        );
    }
}

/// Waits for the tool list: a program may start more slowly than Guardian waits for it.
async fn known(world: &World) {
    eventually("the tools to be known", async || {
        let servers = world.guardian("server list --json").ok().rows();
        (servers[0]["tools"].as_u64() > Some(0)).then_some(())
    })
    .await;
}
