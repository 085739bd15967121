//! One client stream merged from the streams of all servers: a stream that ends is opened again, one that hangs delays no
//! other, and names in events carry the server's prefix so that the client can use them.

use crate::combined::{client, connected, two_servers};
use crate::support::client::Client;
use crate::support::http::Reply;
use crate::support::on_both_stores;
use crate::support::resources_and_prompts::{changed, updated};
use crate::support::upstream::{Received, Scripted, Upstream, say};
use crate::support::wait::{eventually, soon};
use crate::support::world::World;
use bytes::Bytes;
use serde_json::{Value, json};
use std::io;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

type Server = mpsc::Sender<io::Result<Bytes>>;

fn hi() -> Value {
    json!({ "text": "hi" })
}

async fn own_stream(client: &Client, last: Option<&str>) -> Reply {
    let mut headers = client.base_headers();
    headers.remove("content-type");
    headers.insert("accept", "text/event-stream".parse().unwrap());
    if let Some(last) = last {
        headers.insert("last-event-id", last.parse().unwrap());
    }
    let reply = client.alike().send("GET", headers, Bytes::new()).await.unwrap();
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/event-stream")));
    reply
}

async fn next(stream: &mut Reply) -> Value {
    let event = soon("an event", stream.event()).await.unwrap().expect("another event");
    serde_json::from_str(&event).unwrap()
}

/// Every stream that Guardian opens at a server, in order.
struct Streams(Arc<Mutex<Vec<Server>>>);

impl Streams {
    /// `begins` selects the requests that are answered with a stream.
    fn of(server: &Upstream, begins: impl Fn(&Received) -> bool + Send + 'static) -> Streams {
        let opened: Arc<Mutex<Vec<Server>>> = Arc::default();
        let all = opened.clone();
        server.script(move |received| {
            begins(received).then(|| {
                let (server, events) = mpsc::channel(8);
                all.lock().unwrap().push(server);
                Scripted::Stream(events)
            })
        });
        Streams(opened)
    }

    async fn nth(&self, number: usize) -> Server {
        eventually("the stream to be opened", async || {
            self.0.lock().unwrap().get(number).cloned()
        })
        .await
    }

    fn end(&self, number: usize) {
        let (closed, _) = mpsc::channel(1);
        self.0.lock().unwrap()[number] = closed;
    }
}

/// An answer to a request that was sent to another server.
fn forged(id: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "result": { "content": [{ "type": "text", "text": "forged" }] } })
}

fn gets(received: &Received) -> bool {
    received.verb == "GET"
}

fn listens(received: &Received) -> bool {
    received.method() == "subscriptions/listen"
}

/// The acknowledgement that a modern server sends first on a `subscriptions/listen` stream.
fn acknowledged(server: &Upstream) -> Value {
    let received = server.received().into_iter().rfind(listens).expect("it was asked");
    crate::support::resources_and_prompts::acknowledged(&received)
}

on_both_stores! {
    async fn servers_speak_on_one_stream_and_later_ones_join(world: World) {
        let (files, notes, key) = two_servers(&mut world, ["*", "*"], "").await;
        let (of_files, of_notes) = (Streams::of(&files, gets), Streams::of(&notes, gets));
        world.start().await;
        let client = connected(&world, &key).await;
        assert_eq!(client.call("files__echo", hi()).await.text(), "hi");
        let mut stream = own_stream(&client, None).await;
        let server = of_files.nth(0).await;
        let note = json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": { "level": "info", "data": "a" } });
        say(&server, &note).await;
        assert_eq!(next(&mut stream).await, note);
        say(&server, &updated("notes://a/1")).await;
        assert_eq!(next(&mut stream).await["params"]["uri"], "files+notes://a/1");
        say(&server, &updated("notes://secret/1")).await;

        assert_eq!(client.call("notes__echo", hi()).await.text(), "hi");
        let other = of_notes.nth(0).await;
        say(&other, &updated("notes://a/2")).await;
        assert_eq!(next(&mut stream).await["params"]["uri"], "notes+notes://a/2", "and nothing of what Ana may not read");
        // The stream of `files` ends and is opened again; the one of `notes` goes on meanwhile.
        drop(server);
        of_files.end(0);
        say(&other, &updated("notes://b")).await;
        assert_eq!(next(&mut stream).await["params"]["uri"], "notes+notes://b");
        say(&of_files.nth(1).await, &updated("notes://b")).await;
        assert_eq!(next(&mut stream).await["params"]["uri"], "files+notes://b");
        // A server's own `tools/list_changed` is dropped: the client sees pinned tools, and Guardian announces when those change.
        say(&other, &changed("tools")).await;
        say(&other, &changed("prompts")).await;
        assert_eq!(next(&mut stream).await["method"], "notifications/prompts/list_changed");
        world.shipped().await;
        let opened: Vec<_> = world.audit("--method GET").iter().map(|row| row["server"].as_str().unwrap().to_owned()).collect();
        assert_eq!(opened, ["files", "notes", "files"]);
    }

    async fn a_stream_goes_on_after_the_last_event(world: World) {
        let (files, notes, key) = two_servers(&mut world, ["*", "*"], "").await;
        let (of_files, _of_notes) = (Streams::of(&files, gets), Streams::of(&notes, gets));
        world.start().await;
        let client = connected(&world, &key).await;
        for tool in ["files__echo", "notes__echo"] {
            assert_eq!(client.call(tool, hi()).await.text(), "hi");
        }
        let mut stream = own_stream(&client, None).await;
        let with_id = |id: &str, message: &Value| Ok(Bytes::from(format!("id: {id}\ndata: {message}\n\n")));
        of_files.nth(0).await.send(with_id("e-7", &updated("notes://b"))).await.unwrap();
        let piece = loop {
            let piece = stream.piece().await.unwrap().unwrap();
            if piece.starts_with(b"id: ") {
                break String::from_utf8(piece.to_vec()).unwrap();
            }
        };
        let id = piece.lines().next().unwrap().trim_start_matches("id: ").to_owned();
        assert!(!id.contains("e-7"), "{id}");
        drop(stream);
        let _again = own_stream(&client, Some(&id)).await;
        let resumed = files.arrived("the stream to be resumed", |received| received.verb == "GET" && received.header("last-event-id").is_some()).await;
        assert_eq!(resumed.header("last-event-id"), Some("e-7"));
        assert!(notes.received().iter().all(|received| received.header("last-event-id").is_none()));

        // The rest of an answer is resumed from the server that began it, and from no other.
        let (server, events) = mpsc::channel(8);
        let events = Mutex::new(Some(events));
        files.script(move |received| match (received.tool(), received.header("last-event-id")) {
            (Some(_), _) => events.lock().unwrap().take().map(Scripted::Stream),
            (None, Some("e-9")) => Some(Scripted::Events(vec![forged(&json!(78)), forged(&json!("77")), forged(&json!("7.7e1")), json!({ "jsonrpc": "2.0", "id": 77, "result": { "content": [{ "type": "resource_link", "uri": "notes://b", "name": "b" }] } })])),
            _ => None,
        });
        let call = json!({ "jsonrpc": "2.0", "id": 77, "method": "tools/call", "params": { "name": "files__echo", "arguments": { "text": "hi" } } });
        let mut answer = client.alike().open(&call).await.unwrap();
        server.send(with_id("e-9", &json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": { "level": "info", "data": "x" } }))).await.unwrap();
        let piece = String::from_utf8(answer.piece().await.unwrap().unwrap().to_vec()).unwrap();
        let of_answer = piece.lines().next().unwrap().trim_start_matches("id: ").to_owned();
        drop((answer, server));
        let mut rest = own_stream(&client, Some(&of_answer)).await;
        assert_eq!(next(&mut rest).await["result"]["content"][0]["uri"], "files+notes://b");
        assert_eq!(rest.event().await.unwrap(), None);

        // What Guardian did not give out, or gave to another session, names no event.
        let other = connected(&world, &key).await;
        let spoilt = format!("{}x", &of_answer[..of_answer.len() - 1]);
        for (client, last) in [(&client, "a.files.Nzc.e-9"), (&client, "e-9"), (&client, &spoilt), (&other, &of_answer), (&other, &id)] {
            let mut headers = client.base_headers();
            headers.remove("content-type");
            headers.insert("accept", "text/event-stream".parse().unwrap());
            headers.insert("last-event-id", last.parse().unwrap());
            let refused = client.alike().send("GET", headers, Bytes::new()).await.unwrap();
            assert_eq!(refused.status, 400, "{last}");
        }
    }

    /// A request on one server's stream is answered to that server alone.
    async fn a_server_asks_on_the_combined_stream(world: World) {
        let (files, notes, key) = two_servers(&mut world, ["*", "*"], "client_requests = ['roots']").await;
        let of_notes = Streams::of(&notes, gets);
        world.start().await;
        let client = connected(&world, &key).await;
        for tool in ["files__echo", "notes__echo"] {
            assert_eq!(client.call(tool, hi()).await.text(), "hi");
        }
        let mut stream = own_stream(&client, None).await;
        say(&of_notes.nth(0).await, &json!({ "jsonrpc": "2.0", "id": 5, "method": "roots/list" })).await;
        let asked = next(&mut stream).await;
        assert_eq!(client.post(&json!({ "jsonrpc": "2.0", "id": asked["id"], "result": { "roots": [] } })).await.status, 202);
        notes.arrived("the answer", |received| received.message["id"] == 5).await;
        assert!(files.received().iter().all(|received| received.message.get("result").is_none()));
    }

    /// After a grant is revoked, that server's events stop and the others go on. After the key is revoked, the stream ends.
    async fn a_stream_stands_on_the_caller_and_its_parts_on_grants(world: World) {
        let (files, notes, key) = two_servers(&mut world, ["*", "*"], "").await;
        let (of_files, of_notes) = (Streams::of(&files, gets), Streams::of(&notes, gets));
        world.start().await;
        let client = connected(&world, &key).await;
        for tool in ["files__echo", "notes__echo"] {
            assert_eq!(client.call(tool, hi()).await.text(), "hi");
        }
        let mut stream = own_stream(&client, None).await;
        let (first, second) = (of_files.nth(0).await, of_notes.nth(0).await);
        world.revoke("ana", "files");
        soon("the stream to be cut", first.closed()).await;
        // Ana is told that her list of tools has changed.
        assert_eq!(next(&mut stream).await["method"], "notifications/tools/list_changed");
        say(&second, &updated("notes://b")).await;
        assert_eq!(next(&mut stream).await["params"]["uri"], "notes+notes://b");
        let keys = world.guardian("key list --user ana@example.com --json").ok().rows();
        world.guardian(&format!("key revoke {}", keys[0]["id"].as_str().unwrap())).ok();
        assert_eq!(soon("the end", stream.event()).await.unwrap(), None);
        soon("the other stream to be cut too", second.closed()).await;
    }

    /// The server restarts while the client only listens: Guardian subscribes again, and the client still hears of updates.
    async fn what_was_subscribed_to_is_told_after_a_restart_of_the_server(world: World) {
        let (files, _notes, key) = two_servers(&mut world, ["*", "*"], "").await;
        let of_files = Streams::of(&files, gets);
        world.start().await;
        let client = connected(&world, &key).await;
        for uri in ["files+notes://a/1", "files+notes://b"] {
            assert!(client.ask("resources/subscribe", json!({ "uri": uri })).await.is_result());
        }
        assert!(client.ask("resources/unsubscribe", json!({ "uri": "files+notes://b" })).await.is_result());
        let mut stream = own_stream(&client, None).await;
        say(&of_files.nth(0).await, &updated("notes://a/1")).await;
        assert_eq!(next(&mut stream).await["params"]["uri"], "files+notes://a/1");

        // The server has forgotten the session and answers 404 when Guardian opens the stream again.
        files.forget_sessions();
        let known: Mutex<Option<String>> = Mutex::default();
        let (again, events) = mpsc::channel(8);
        let events = Mutex::new(Some(events));
        files.script(move |received| {
            if received.method() == "notifications/initialized" {
                *known.lock().unwrap() = received.header("mcp-session-id").map(str::to_owned);
            }
            if received.verb != "GET" {
                return None;
            }
            if received.header("mcp-session-id") == known.lock().unwrap().as_deref() {
                events.lock().unwrap().take().map(Scripted::Stream)
            } else {
                Some(Scripted::Status(404))
            }
        });
        let before = files.received().len();
        of_files.end(0);
        say(&again, &updated("notes://a/1")).await;
        assert_eq!(next(&mut stream).await["params"]["uri"], "files+notes://a/1");
        let wished: Vec<_> = files.received()[before..].iter().filter(|received| received.method() == "resources/subscribe").map(|received| received.message["params"]["uri"].clone()).collect();
        assert_eq!(wished, ["notes://a/1"], "and not what she has unsubscribed from");
    }

    async fn the_end_of_a_session_ends_its_stream(world: World) {
        let (files, _notes, key) = two_servers(&mut world, ["*", "*"], "").await;
        let of_files = Streams::of(&files, gets);
        world.start().await;
        let client = connected(&world, &key).await;
        assert_eq!(client.call("files__echo", hi()).await.text(), "hi");
        let mut stream = own_stream(&client, None).await;
        let server = of_files.nth(0).await;
        let ended = client.send("DELETE", client.base_headers(), Bytes::new()).await.unwrap();
        assert_eq!(ended.status, 200);
        assert_eq!(soon("the end", stream.event()).await.unwrap(), None);
        soon("the server to be hung up on", server.closed()).await;
    }

    async fn whoever_listens_hears_of_other_tools_once(world: World) {
        let (files, _notes, key) = two_servers(&mut world, ["*", "*"], "catalogue_refresh = '1s'").await;
        world.start().await;
        let legacy = connected(&world, &key).await;
        let mut own = own_stream(&legacy, None).await;
        let modern = client(&world, &key).modern();
        let request = modern.request("subscriptions/listen", json!({ "notifications": { "toolsListChanged": true } }));
        let mut listening = modern.alike().open(&request).await.unwrap();
        let first = next(&mut listening).await;
        assert_eq!(first["params"]["notifications"], json!({ "toolsListChanged": true }), "{first}");
        files.offer(json!({ "name": "more", "inputSchema": { "type": "object" }, "annotations": { "readOnlyHint": true } }));
        for stream in [&mut own, &mut listening] {
            assert_eq!(next(stream).await["method"], "notifications/tools/list_changed");
        }
        assert!(modern.list().await.contains(&"files__more".to_owned()));
        // The client hears the first change once; its next event is the next change.
        world.policies("@id(\"nobody\") forbid (principal, action, resource); @id(\"somebody\") permit (principal, action, resource);");
        world.write();
        let last = next(&mut listening).await;
        assert_eq!(last["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], request["id"]);
        assert_eq!(modern.list().await, Vec::<String>::new());
    }

    async fn one_subscription_is_for_all_servers(world: World) {
        let (files, notes, key) = two_servers(&mut world, ["*", "*"], "").await;
        let hanging = Upstream::start().await;
        world.server("hanging", &hanging.url, "");
        world.grant("ana", "hanging", "*");
        let (of_files, of_notes) = (Streams::of(&files, listens), Streams::of(&notes, listens));
        world.start().await;
        let held = Mutex::new(Vec::new());
        hanging.script(move |received| {
            listens(received).then(|| {
                let (server, events) = mpsc::channel(1);
                held.lock().unwrap().push(server);
                Scripted::Stream(events)
            })
        });
        let client = client(&world, &key).modern();
        let filter = json!({ "promptsListChanged": true, "toolsListChanged": true, "resourceSubscriptions": ["files+notes://a/1", "notes+notes://a/1", "notes+notes://b"] });
        let request = client.request("subscriptions/listen", json!({ "notifications": filter }));
        let opening = client.open(&request);
        let serving = async {
            for (server, streams) in [(&files, &of_files), (&notes, &of_notes)] {
                say(&streams.nth(0).await, &acknowledged(server)).await;
            }
        };
        let (stream, ()) = tokio::join!(opening, serving);
        let mut stream = stream.unwrap();
        let first = next(&mut stream).await;
        assert_eq!(first["method"], "notifications/subscriptions/acknowledged");
        assert_eq!(first["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], request["id"]);
        let granted = &first["params"]["notifications"];
        let mut uris: Vec<_> = granted["resourceSubscriptions"].as_array().unwrap().iter().map(|uri| uri.as_str().unwrap()).collect();
        uris.sort_unstable();
        assert_eq!(uris, ["files+notes://a/1", "notes+notes://a/1", "notes+notes://b"]);
        assert_eq!((&granted["promptsListChanged"], &granted["toolsListChanged"]), (&json!(true), &json!(true)));
        let asked = |server: &Upstream| server.received().into_iter().rfind(listens).unwrap().message["params"]["notifications"].clone();
        assert_eq!(asked(&notes), json!({ "promptsListChanged": true, "resourceSubscriptions": ["notes://a/1", "notes://b"] }));
        assert_eq!(asked(&files), json!({ "promptsListChanged": true, "resourceSubscriptions": ["notes://a/1"] }));

        say(&of_notes.nth(0).await, &updated("notes://b")).await;
        assert_eq!(next(&mut stream).await["params"]["uri"], "notes+notes://b");
        // A subscription that breaks off is opened again, and its second acknowledgement is not passed on.
        of_files.end(0);
        let again = of_files.nth(1).await;
        say(&again, &acknowledged(&files)).await;
        say(&again, &updated("notes://a/1")).await;
        assert_eq!(next(&mut stream).await["params"]["uri"], "files+notes://a/1");
        let one = of_notes.nth(0).await;
        of_notes.end(0);
        drop(stream);
        soon("the server to be hung up on", again.closed()).await;
        soon("the other too", one.closed()).await;
    }

    async fn what_is_named_and_may_not_be_had_is_refused(world: World) {
        let (files, notes, key) = two_servers(&mut world, ["*", "echo"], "").await;
        world.start().await;
        let client = client(&world, &key).modern();
        let ask = async |uri: &str| client.ask("subscriptions/listen", json!({ "notifications": { "resourceSubscriptions": ["files+notes://a/1", uri] } })).await;
        assert_eq!(ask("files+notes://secret/1").await.verdict(), "200 forbidden_by_policy");
        assert_eq!(ask("notes+notes://a/1").await.reason(), "missing_scope");
        for unknown in ["nowhere+notes://a/1", "notes://a/1", "Files+notes://a/1"] {
            assert_eq!(ask(unknown).await.verdict(), "200 unknown_target", "{unknown}");
        }
        let asked = |server: &Upstream| server.received().iter().filter(|received| listens(received) && received.message.to_string().contains("secret")).count();
        assert_eq!((asked(&files), notes.received().iter().filter(|received| listens(received)).count()), (0, 0));
    }
}
