//! Requests of servers to the clients that called them, and their answers: passed on where the operator allows it, to that
//! session only and once; refused everywhere else.

use crate::support::client::Client;
use crate::support::http::Reply;
use crate::support::on_both_stores;
use crate::support::upstream::{Received, Scripted, Upstream, say};
use crate::support::world::World;
use bytes::Bytes;
use serde_json::{Value, json};
use std::io;
use std::sync::Mutex;
use tokio::sync::mpsc;

on_both_stores! {
    /// The client sees a handle for the request's id; the server gets its own id back, byte for byte.
    async fn a_server_asks_and_the_client_answers(world: World) {
        let (files, key) = asking(&mut world, "['elicitation', 'roots']").await;
        world.start().await;
        let client = world.connected("files", &key).await;
        let (server, mut stream) = call(&files, &client).await;

        say(&server, &json!({ "jsonrpc": "2.0", "id": "a\u{e9}/1", "method": "elicitation/create", "params": { "message": "sure?" } })).await;
        let asked = stream.message().await;
        assert_eq!((&asked["method"], &asked["params"]["message"]), (&json!("elicitation/create"), &json!("sure?")));
        let handle = asked["id"].as_str().unwrap();
        assert!(handle.starts_with("gh1."), "{handle}");
        let body = format!(r#"{{ "jsonrpc":"2.0", "result":{{"action":"accept", "content":{{"n":1.50}}}},"id" : "{handle}" }}"#);
        let answer = client.send("POST", client.base_headers(), Bytes::from(body.clone())).await.unwrap();
        assert_eq!((answer.status, answer.text().await.unwrap().as_str()), (202, ""));
        let arrived = files.arrived("the client's answer", |received| received.message.get("result").is_some()).await;
        assert_eq!(String::from_utf8_lossy(&arrived.body), body.replace(handle, "a\u{e9}/1"));
        assert_eq!(arrived.header("mcp-session-id"), files.calls()[0].header("mcp-session-id"));

        say(&server, &json!({ "jsonrpc": "2.0", "id": 0, "method": "roots/list" })).await;
        let asked = stream.message().await;
        say(&server, &json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 0, "reason": "late" } })).await;
        let cancelled = stream.message().await;
        assert_eq!(cancelled["params"], json!({ "requestId": asked["id"], "reason": "late" }));
        finish(&files, server, &mut stream).await;

        world.shipped().await;
        let rows = world.audit("");
        let answered = rows.iter().find(|row| row["method"] == "answer").expect("the answer is on record");
        assert_eq!((&answered["decision"], &answered["outcome"]["ending"]), (&json!("allow"), &json!("done")), "{answered}");
        assert_eq!(answered["target"], "elicitation/create", "{answered}");
        let called = rows.iter().find(|row| row["tool"] == "echo").unwrap();
        let detail = called["outcome"]["detail"].as_str().unwrap();
        assert!(detail.contains("asked `elicitation/create` (1)") && detail.contains("asked `roots/list` (1)"), "{called}");
    }

    /// Only the client that was asked can answer, and only once.
    async fn only_the_one_who_was_asked_answers_and_once(world: World) {
        let (files, ana) = asking(&mut world, "['sampling']").await;
        world.person("bob", &["reader"]).await;
        world.grant("bob", "files", "*");
        let bob = world.key("bob");
        world.start().await;
        let client = world.connected("files", &ana).await;
        let (server, mut stream) = call(&files, &client).await;
        say(&server, &json!({ "jsonrpc": "2.0", "id": 7, "method": "sampling/createMessage", "params": {} })).await;
        let handle = stream.message().await["id"].clone();

        let before = files.received().len();
        let answer = |id: &Value| json!({ "jsonrpc": "2.0", "id": id, "result": { "role": "assistant" } });
        let refused = async |client: &Client, id: &Value| {
            let answer = client.post(&answer(id)).await;
            assert_eq!((answer.verdict().as_str(), &answer.message["error"]["code"]), ("400 unknown_answer", &json!(-32600)), "{id}");
        };
        let bobs = world.connected("files", &bob).await;
        let again = world.connected("files", &ana).await;
        let handshakes = files.received().len() - before;
        refused(&bobs, &handle).await;
        refused(&again, &handle).await;
        let mut sessionless = world.client("files").bearer(&ana);
        refused(&sessionless, &handle).await;
        sessionless.session = bobs.session.clone();
        assert_eq!(sessionless.post(&answer(&handle)).await.verdict(), "404 unknown_session");
        let mut forged = handle.as_str().unwrap().to_owned();
        forged.replace_range(forged.len() - 4.., "AAAA");
        for id in [json!(7), json!("7"), json!(forged), json!("gh1.AAAA.AAAA"), json!("x".repeat(900))] {
            refused(&client, &id).await;
        }
        assert_eq!(files.received().len(), before + handshakes, "nothing of it went out");
        assert_eq!(client.post(&answer(&handle)).await.status, 202);
        refused(&client, &handle).await;
        say(&server, &json!({ "jsonrpc": "2.0", "id": 7, "method": "sampling/createMessage", "params": {} })).await;
        assert_eq!(stream.message().await["id"], handle, "the same request has the same handle");
        assert_eq!(client.post(&answer(&handle)).await.status, 202, "what is asked again may be answered again");
        finish(&files, server, &mut stream).await;

        world.shipped().await;
        let denied = world.audit("--decision deny");
        assert!(denied.iter().filter(|row| row["reason"] == "unknown_answer").count() >= 4, "{denied:?}");
    }

    /// The client never sees the request, and the server gets an error rather than no answer.
    async fn what_a_server_may_not_ask_is_refused_to_it(world: World) {
        let (files, key) = asking(&mut world, "['elicitation']").await;
        world.start().await;
        let client = world.connected("files", &key).await;
        let (server, mut stream) = call(&files, &client).await;
        let requests = [
            json!({ "jsonrpc": "2.0", "id": "s-1", "method": "sampling/createMessage", "params": { "messages": [] } }),
            json!({ "jsonrpc": "2.0", "id": "s-2", "method": "roots/list" }),
            json!({ "jsonrpc": "2.0", "id": "s-3", "method": "elicitation/create", "params": { "mode": "url", "url": "https://evil.test" } }),
            json!({ "jsonrpc": "2.0", "id": "s-4", "method": "elicitation/create", "params": { "task": {} } }),
            json!({ "jsonrpc": "2.0", "id": "s-5", "method": "tools/call", "params": { "name": "rm" } }),
            json!({ "jsonrpc": "2.0", "id": "s".repeat(600), "method": "elicitation/create", "params": {} }),
        ];
        for request in &requests {
            say(&server, request).await;
            let refusal = files.arrived("the refusal", |received| received.message["id"] == request["id"]).await;
            assert_eq!(refusal.message["error"]["code"], -32601);
            let fields = ["mcp-session-id", "mcp-protocol-version"].map(|name| refusal.header(name));
            assert_eq!(fields, [files.calls()[0].header("mcp-session-id"), Some("2025-11-25")]);
        }
        say(&server, &json!({ "jsonrpc": "2.0", "id": "s-6", "method": "ping" })).await;
        assert_eq!(stream.message().await["method"], "ping", "it is the first that the client hears");
        finish(&files, server, &mut stream).await;

        world.shipped().await;
        let rows = world.audit("--tool echo");
        let detail = rows[0]["outcome"]["detail"].as_str().unwrap();
        for told in ["was refused `sampling/createMessage` (1)", "was refused `elicitation/create` (3)", "was refused `roots/list` (1)"] {
            assert!(detail.contains(told), "{detail}");
        }
    }

    async fn a_server_asks_on_its_own_stream_too(world: World) {
        let (files, key) = asking(&mut world, "['roots']").await;
        world.start().await;
        let client = world.connected("files", &key).await;
        let server = files.offer_stream();
        let mut stream = client.own_stream().await;
        let second = client.alike();

        say(&server, &json!({ "jsonrpc": "2.0", "id": 1, "method": "sampling/createMessage" })).await;
        files.arrived("the refusal", |received| received.message["error"]["code"] == -32601).await;
        say(&server, &json!({ "jsonrpc": "2.0", "id": 2, "method": "roots/list" })).await;
        let handle = stream.message().await["id"].clone();
        assert_eq!(second.post(&json!({ "jsonrpc": "2.0", "id": handle, "error": { "code": -1, "message": "no" } })).await.status, 202);
        files.arrived("the answer", |received| received.message["id"] == 2 && received.message["error"]["code"] == -1).await;
    }
}

/// Adds a server `files` that may make these requests, and Ana; returns the server and her key.
async fn asking(world: &mut World, requests: &str) -> (Upstream, String) {
    let files = Upstream::start().await;
    world.server("files", &files.url, &format!("client_requests = {requests}"));
    (files, crate::ana(world).await)
}

type Server = mpsc::Sender<io::Result<Bytes>>;

/// Calls `echo` and gets an answer as a stream that the story writes.
async fn call(files: &Upstream, client: &Client) -> (Server, Reply) {
    let (server, events) = mpsc::channel(8);
    let events = Mutex::new(Some(events));
    files.script(move |received: &Received| {
        received.tool()?;
        events.lock().unwrap().take().map(Scripted::Stream)
    });
    let request = client.request("tools/call", json!({ "name": "echo", "arguments": { "text": "hi" } }));
    let stream = client.alike().open(&request).await.unwrap();
    assert_eq!(stream.status, 200);
    (server, stream)
}

/// The server answers the call in the end.
async fn finish(files: &Upstream, server: Server, stream: &mut Reply) {
    let id = files.calls().last().unwrap().message["id"].clone();
    say(&server, &json!({ "jsonrpc": "2.0", "id": id, "result": { "content": [] } })).await;
    assert!(stream.message().await.get("result").is_some());
    drop(server);
    assert_eq!(stream.event().await.unwrap(), None);
}
