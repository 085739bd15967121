//! Legacy sessions at the combined endpoint: a server is sent `initialize` when the client first calls it, and the loss of
//! one server session, or a restart of Guardian, never costs the client its own session.

use crate::combined::{connected, two_servers};
use crate::support::client::Client;
use crate::support::on_both_stores;
use crate::support::upstream::{Received, Scripted, Upstream, say};
use crate::support::wait::eventually;
use crate::support::world::World;
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::Mutex;
use tokio::sync::mpsc;

/// The `initialize` requests that Guardian sent for clients, without those of its own control sessions.
fn handshakes(server: &Upstream) -> Vec<Received> {
    let ours = |received: &Received| received.message["params"]["clientInfo"]["name"] == "stories";
    server.received().into_iter().filter(ours).collect()
}

fn hi() -> Value {
    json!({ "text": "hi" })
}

async fn calls(client: &Client, tool: &str) -> String {
    client.call(tool, hi()).await.text().to_owned()
}

on_both_stores! {
    async fn a_server_is_introduced_when_it_is_called(world: World) {
        let (files, notes, key) = two_servers(&mut world, ["echo", "echo"], "").await;
        world.start().await;
        let client = connected(&world, &key).await;
        assert!(client.session.as_ref().is_some_and(|session| session.starts_with("gs1.")));
        client.list().await;
        assert_eq!(client.ask("ping", json!({})).await.verdict(), "allowed");
        assert_eq!((handshakes(&files).len(), handshakes(&notes).len()), (0, 0));

        for _ in 0..2 {
            assert_eq!(calls(&client, "notes__echo").await, "hi");
        }
        let made = handshakes(&notes);
        assert_eq!((handshakes(&files).len(), made.len()), (0, 1));
        assert_eq!(made[0].message["params"]["protocolVersion"], "2025-11-25");
        assert_eq!(made[0].message["params"]["clientInfo"], json!({ "name": "stories", "version": "1" }));
        let calls = notes.calls();
        assert!(calls[0].header("mcp-session-id").is_some() && calls[0].header("mcp-session-id") == calls[1].header("mcp-session-id"));
        let told = notes.received().into_iter().filter(|received| received.method() == "notifications/initialized" && received.header("mcp-session-id") == calls[0].header("mcp-session-id"));
        assert_eq!(told.count(), 1);
        world.shipped().await;
        let rows = world.audit("--user ana@example.com --server notes");
        let methods: Vec<_> = rows.iter().map(|row| row["method"].as_str().unwrap()).collect();
        assert_eq!(methods, ["tools/call", "initialize", "notifications", "tools/call"], "what was done on the client's behalf is on record");
    }

    /// Of several simultaneous calls to a server, one opens the server session and the others use it.
    async fn a_server_is_introduced_once(world: World) {
        let (files, _notes, key) = two_servers(&mut world, ["echo", "echo"], "").await;
        world.start().await;
        let client = connected(&world, &key).await;
        let others: Vec<_> = (0..8).map(|_| client.alike()).collect();
        let mut all = tokio::task::JoinSet::new();
        for (number, client) in others.into_iter().enumerate() {
            all.spawn(async move {
                let request = json!({ "jsonrpc": "2.0", "id": format!("c-{number}"), "method": "tools/call", "params": { "name": "files__echo", "arguments": { "text": "hi" } } });
                client.post(&request).await.text().to_owned()
            });
        }
        assert_eq!(all.join_all().await, ["hi"; 8]);
        assert_eq!(handshakes(&files).len(), 1);
    }

    async fn a_server_that_lost_its_session_gets_another(world: World) {
        let (files, notes, key) = two_servers(&mut world, ["echo", "echo"], "").await;
        world.start().await;
        let client = connected(&world, &key).await;
        for tool in ["files__echo", "notes__echo"] {
            assert_eq!(calls(&client, tool).await, "hi");
        }
        files.forget_sessions();
        let before = files.calls().len();
        let answer = client.call("files__echo", hi()).await;
        assert_eq!((answer.status, answer.reason()), (200, "upstream_broken"));
        assert_eq!(files.calls().len(), before + 1, "no call is made twice");
        assert_eq!(calls(&client, "files__echo").await, "hi");
        assert_eq!(calls(&client, "notes__echo").await, "hi");
        assert_eq!((handshakes(&files).len(), handshakes(&notes).len()), (2, 1));
        // Some servers answer an unknown session with 400. Guardian pings: only if that fails too, it sends `initialize` again.
        for (lost, introduced) in [(false, 2), (true, 3)] {
            let refused = Mutex::new(true);
            files.script(move |received| {
                let unknown = received.tool().is_some() && std::mem::take(&mut *refused.lock().unwrap());
                (unknown || lost && received.method() == "ping").then_some(Scripted::Status(400))
            });
            assert!(!client.call("files__echo", hi()).await.is_result());
            assert_eq!(calls(&client, "files__echo").await, "hi");
            assert_eq!(handshakes(&files).len(), introduced, "{lost}");
        }
        // A server that never knows its session is not initialized for ever, and the client keeps its own session.
        files.script(|received| received.tool().map(|_| Scripted::Json(json!({ "jsonrpc": "2.0", "id": received.message["id"], "error": { "code": -32001, "message": "session not found" } }))));
        assert_eq!(client.call("files__echo", hi()).await.status, 200);
        assert_eq!(calls(&client, "notes__echo").await, "hi");
    }

    /// A server holds a request until the caller's grant has expired and then says that it lost the session: what is sent in
    /// another session is decided anew.
    async fn a_second_attempt_is_decided_when_it_is_made(world: World) {
        let (files, _notes, key) = two_servers(&mut world, ["echo", "echo"], "").await;
        world.start().await;
        let client = connected(&world, &key).await;
        assert_eq!(calls(&client, "files__echo").await, "hi");
        world.guardian("grant add --user ana@example.com --server files --scopes * --expires 2s").ok();
        let (release, held) = std::sync::mpsc::channel();
        let held = Mutex::new(Some(held));
        files.script(move |received| {
            let held = (received.method() == "resources/unsubscribe").then(|| held.lock().unwrap().take());
            held.flatten().map(|held| {
                tokio::task::block_in_place(|| held.recv().unwrap());
                Scripted::Status(404)
            })
        });
        // The list of tools is Guardian's own: no server is asked for it.
        let other = client.alike();
        let expiring = async {
            eventually("the grant to expire", async || other.list().await.iter().all(|name| !name.starts_with("files__")).then_some(())).await;
            release.send(()).unwrap();
        };
        let asking = client.ask("resources/unsubscribe", json!({ "uri": "files+notes://a/1" }));
        let (answer, ()) = tokio::join!(asking, expiring);
        assert_eq!(answer.reason(), "grant_expired");
        assert_eq!(files.received().iter().filter(|received| received.method() == "resources/unsubscribe").count(), 1);
        world.shipped().await;
        let mut reasons: Vec<_> = world.audit("--server files --method resources/unsubscribe").iter().map(|row| row["reason"].as_str().unwrap().to_owned()).collect();
        reasons.sort();
        assert_eq!(reasons, ["grant_expired", "permitted"]);
    }

    async fn restarts_and_other_instances_lose_nobody(world: World) {
        let (files, _notes, key) = two_servers(&mut world, ["echo", "echo"], "").await;
        world.start().await;
        let client = connected(&world, &key).await;
        assert_eq!(calls(&client, "files__echo").await, "hi");
        world.terminate();
        world.ended().await;
        world.start().await;
        let after = client.alike();
        assert_eq!(calls(&after, "files__echo").await, "hi");
        assert_eq!(calls(&after, "notes__echo").await, "hi");
        let mut other = world.replica();
        other.start().await;
        let mut there = other.client("").bearer(&key);
        (there.path, there.session) = ("/mcp".into(), client.session.clone());
        assert_eq!(calls(&there, "files__echo").await, "hi");
        let made = handshakes(&files);
        assert_eq!(made.len(), 3, "each instance introduces the client anew");
        assert!(made.iter().all(|made| made.message["params"]["clientInfo"]["name"] == "stories"));
    }

    async fn a_combined_session_is_its_owners(world: World) {
        let (_files, _notes, ana) = two_servers(&mut world, ["echo", "echo"], "").await;
        world.person("bob", &["reader"]).await;
        world.grant("bob", "files", "*");
        let bob = world.key("bob");
        world.start().await;
        let client = connected(&world, &ana).await;
        let mut other = crate::combined::client(&world, &bob);
        other.session.clone_from(&client.session);
        assert_eq!(other.call("files__echo", hi()).await.verdict(), "404 unknown_session");
        let mut own = world.client("files").bearer(&ana);
        own.session.clone_from(&client.session);
        assert_eq!(own.call("echo", hi()).await.verdict(), "404 unknown_session", "no session of a server");
        let mut combined = crate::combined::client(&world, &ana);
        assert_eq!(combined.call("files__echo", hi()).await.verdict(), "400 invalid_request");
        combined.session = world.connected("files", &ana).await.session;
        assert_eq!(combined.call("files__echo", hi()).await.verdict(), "404 unknown_session");
    }

    async fn the_end_of_a_session_ends_those_of_servers(world: World) {
        let (files, notes, key) = two_servers(&mut world, ["echo", "echo"], "").await;
        world.start().await;
        let client = connected(&world, &key).await;
        assert_eq!(calls(&client, "files__echo").await, "hi");
        let session = files.calls()[0].header("mcp-session-id").unwrap().to_owned();
        let ended = client.send("DELETE", client.base_headers(), Bytes::new()).await.unwrap();
        assert_eq!(ended.status, 200);
        drop(ended.text().await);
        let deleted = |server: &Upstream| server.received().into_iter().filter(|received| received.verb == "DELETE").filter_map(|received| received.header("mcp-session-id").map(str::to_owned)).collect::<Vec<_>>();
        assert!(deleted(&files).contains(&session));
        assert_eq!(deleted(&notes).len(), 1, "only Guardian's own");
        assert_eq!(client.call("files__echo", hi()).await.verdict(), "404 unknown_session");
    }

    /// A notification goes to the server it concerns, if that is known, and else to every server that has a session.
    async fn what_a_client_says_goes_to_whom_it_is_meant(world: World) {
        let (files, notes, key) = two_servers(&mut world, ["echo,slow", "echo"], "").await;
        let third = Upstream::start().await;
        world.server("third", &third.url, "");
        world.grant("ana", "third", "*");
        world.start().await;
        let client = connected(&world, &key).await;
        for tool in ["files__echo", "notes__echo"] {
            assert_eq!(calls(&client, tool).await, "hi");
        }
        let said = |server: &Upstream, method: &str| server.received().iter().filter(|received| received.method() == method && received.header("mcp-session-id") == server.calls()[0].header("mcp-session-id")).count();
        let request = client.request("tools/call", json!({ "name": "files__slow", "arguments": { "events": 1 } }));
        let mut slow = client.alike().open(&request).await.unwrap();
        let cancel = |id: &Value| json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": id } });
        assert_eq!(client.post(&cancel(&request["id"])).await.status, 202);
        assert_eq!((said(&files, "notifications/cancelled"), said(&notes, "notifications/cancelled")), (1, 0));
        for _ in 0..2 {
            files.step();
        }
        while slow.event().await.unwrap().is_some() {}
        assert_eq!(client.post(&cancel(&json!("nobody knows"))).await.status, 202);
        assert_eq!((said(&files, "notifications/cancelled"), said(&notes, "notifications/cancelled")), (2, 1));
        let roots = json!({ "jsonrpc": "2.0", "method": "notifications/roots/list_changed" });
        assert_eq!(client.post(&roots).await.status, 202);
        assert_eq!((said(&files, "notifications/roots/list_changed"), said(&notes, "notifications/roots/list_changed")), (1, 1));

        assert!(client.ask("logging/setLevel", json!({ "level": "error" })).await.is_result());
        assert_eq!((said(&files, "logging/setLevel"), said(&notes, "logging/setLevel")), (1, 1));
        assert!(third.received().iter().all(|received| received.method() != "logging/setLevel"));
        assert_eq!(client.call("third__echo", hi()).await.text(), "hi");
        assert_eq!(said(&third, "logging/setLevel"), 1, "it holds for servers that come later");
    }

    async fn what_a_server_asks_is_answered_to_that_server(world: World) {
        let (files, notes, key) = two_servers(&mut world, ["echo", "echo"], "client_requests = ['sampling']").await;
        world.start().await;
        let mut client = crate::combined::client(&world, &key);
        let params = json!({ "protocolVersion": "2025-11-25", "capabilities": { "sampling": {}, "roots": {} }, "clientInfo": { "name": "stories", "version": "1" } });
        let answer = client.ask("initialize", params).await;
        client.session = answer.header("mcp-session-id").map(str::to_owned);
        assert_eq!(calls(&client, "files__echo").await, "hi");
        assert_eq!(handshakes(&files)[0].message["params"]["capabilities"], json!({ "sampling": {} }), "cut as this server's");
        let (server, events) = mpsc::channel(8);
        let events = Mutex::new(Some(events));
        notes.script(move |received| {
            received.tool()?;
            events.lock().unwrap().take().map(Scripted::Stream)
        });
        let request = client.request("tools/call", json!({ "name": "notes__echo", "arguments": { "text": "hi" } }));
        let mut stream = client.alike().open(&request).await.unwrap();
        say(&server, &json!({ "jsonrpc": "2.0", "id": 7, "method": "sampling/createMessage", "params": {} })).await;
        let asked: Value = serde_json::from_str(&stream.event().await.unwrap().unwrap()).unwrap();
        let answer = |id: &Value| json!({ "jsonrpc": "2.0", "id": id, "result": { "role": "assistant" } });
        assert_eq!(client.post(&answer(&json!(7))).await.verdict(), "400 unknown_answer");
        let before = files.received().len();
        assert_eq!(client.post(&answer(&asked["id"])).await.status, 202);
        let arrived = notes.arrived("the answer", |received| received.message["result"]["role"] == "assistant").await;
        assert_eq!(arrived.message["id"], 7);
        assert_eq!(arrived.header("mcp-session-id"), notes.calls()[0].header("mcp-session-id"));
        assert_eq!(files.received().len(), before, "the other server hears nothing of it");
        assert_eq!(client.post(&answer(&asked["id"])).await.verdict(), "400 unknown_answer", "once");
        let id = notes.calls()[0].message["id"].clone();
        say(&server, &json!({ "jsonrpc": "2.0", "id": id, "result": { "content": [] } })).await;
        assert!(stream.event().await.unwrap().unwrap().contains("result"));
    }

    /// The client and a server may speak different versions of the legacy era; each keeps its own.
    async fn each_server_speaks_its_own_revision(world: World) {
        let (files, _notes, key) = two_servers(&mut world, ["echo", "echo"], "").await;
        files.say_hello(json!({ "protocolVersion": "2025-03-26" }));
        files.keep_no_sessions();
        world.start().await;
        let client = connected(&world, &key).await;
        assert_eq!(calls(&client, "files__echo").await, "hi");
        assert_eq!(calls(&client, "files__echo").await, "hi");
        assert_eq!(handshakes(&files).len(), 1, "a server without sessions is introduced once too");
        assert!(files.calls().iter().all(|call| call.header("mcp-protocol-version") == Some("2025-03-26") && call.header("mcp-session-id").is_none()));
    }
}
