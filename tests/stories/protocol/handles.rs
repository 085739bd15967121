//! Handles for opaque server tokens: the server gets its token back as it wrote it, from the caller it was given to and for
//! the purpose it was given for. Anybody else's handle is unknown.

use crate::support::client::Client;
use crate::support::on_both_stores;
use crate::support::upstream::{Received, Scripted, Upstream};
use crate::support::wait::eventually;
use crate::support::world::World;
use serde_json::{Value, json};

/// Everybody may do everything, so a refusal in these stories has another reason.
const OPEN: &str = r#"@id("all") permit (principal, action, resource);"#;

on_both_stores! {
    async fn a_cursor_goes_on_for_the_one_it_was_given_to(world: World) {
        let (files, ana, bob) = two(&mut world, "").await;
        world.start().await;
        files.script(|received| {
            let paged = ["tools/list", "prompts/list"].contains(&received.method());
            let cursor = received.message["params"]["cursor"].as_str();
            let member = received.method().strip_suffix("/list")?;
            let page = if cursor.is_none() { json!({ member: [], "nextCursor": "p\u{e9}/2" }) } else { json!({ member: [] }) };
            paged.then_some(Scripted::Json(page))
        });
        for clients in [both_legacy(&world, &ana, &bob).await, both_modern(&world, &ana, &bob)] {
            let [anas, bobs] = clients;
            let first = anas.ask("tools/list", json!({})).await;
            let cursor = first.message["result"]["nextCursor"].clone();
            assert!(cursor.as_str().unwrap().starts_with("gh1."), "{first:?}");
            let before = files.received().len();

            for (client, method, cursor) in [
                (&bobs, "tools/list", &cursor),
                (&anas, "prompts/list", &cursor),
                (&anas, "tools/list", &json!("p\u{e9}/2")),
                (&anas, "tools/list", &json!(forged(&cursor))),
            ] {
                let answer = client.ask(method, json!({ "cursor": cursor })).await;
                assert_eq!((answer.verdict().as_str(), &answer.message["error"]["code"]), ("200 unknown_cursor", &json!(-32602)), "{cursor}");
            }
            assert_eq!(files.received().len(), before, "nothing of it went out");
            let second = anas.ask("tools/list", json!({ "cursor": cursor })).await;
            assert_eq!(second.message["result"].get("nextCursor"), None, "{second:?}");
            let last = files.received().pop().unwrap();
            assert_eq!((last.method(), &last.message["params"]["cursor"]), ("tools/list", &json!("p\u{e9}/2")));
        }
    }

    async fn a_replayed_list_goes_on_as_well(world: World) {
        let (files, ana, _) = two(&mut world, "").await;
        world.start().await;
        let client = world.connected("files", &ana).await;
        let last = event_of_own_stream(&files, &client, "7").await;
        let server = files.offer_stream();
        let mut headers = client.stream_headers();
        headers.insert("last-event-id", last.parse().unwrap());
        let mut stream = client.alike().send("GET", headers, Default::default()).await.unwrap();
        crate::support::upstream::say(&server, &json!({ "jsonrpc": "2.0", "id": 3, "result": { "tools": [], "nextCursor": "p2" } })).await;
        let cursor = stream.message().await["result"]["nextCursor"].clone();
        assert!(client.ask("tools/list", json!({ "cursor": cursor })).await.is_result());
        assert_eq!(files.received().last().unwrap().message["params"]["cursor"], "p2");
    }

    /// `Last-Event-ID` names an event of the caller's own session at this server, or nothing at all.
    async fn an_event_is_resumed_after_by_whom_it_was_sent_to(world: World) {
        let (files, ana, bob) = two(&mut world, "").await;
        world.start().await;
        let (anas, anas_other) = (world.connected("files", &ana).await, world.connected("files", &ana).await);
        let bobs = world.connected("files", &bob).await;
        let last = event_of_own_stream(&files, &anas, "e/7 of the server").await;
        assert!(!last.contains("e/7") && last.bytes().all(|byte| byte.is_ascii_graphic()), "{last}");
        let before = files.received().len();
        let resume = async |client: &Client, last: &str| {
            let mut headers = client.stream_headers();
            headers.insert("last-event-id", last.parse().unwrap());
            client.alike().send("GET", headers, Default::default()).await.unwrap()
        };
        for (client, last) in [
            (&bobs, last.as_str()),
            (&anas_other, &last),
            (&anas, "e/7 of the server"),
            (&anas, "7"),
            (&anas, &last[..last.len() - 1]),
            (&anas, &forged(&json!(last))),
        ] {
            let answer = crate::support::client::Answer::read(resume(client, last).await).await.unwrap();
            assert_eq!(answer.verdict(), "400 unknown_event", "{last}");
        }
        assert_eq!(files.received().len(), before, "nothing of it went out");
        let _stream = files.offer_stream();
        assert_eq!(resume(&anas, &last).await.status, 200);
        assert_eq!(files.received().last().unwrap().header("last-event-id"), Some("e/7 of the server"));
        // A call is no stream to be resumed: the field is left out.
        let call = anas.alike().with("last-event-id", "whatever").call("echo", json!({ "text": "hi" })).await;
        assert_eq!(call.text(), "hi");
        assert_eq!(files.received().last().unwrap().header("last-event-id"), None);
    }

    /// Events keep everything but their id; an id that could never come back makes clients forget the last.
    async fn the_other_fields_of_an_event_stay(world: World) {
        let (files, ana, _) = two(&mut world, "").await;
        world.start().await;
        let client = world.connected("files", &ana).await;
        let server = files.offer_stream();
        let mut stream = client.own_stream().await;
        for (sent, wanted) in [
            ("retry: 5\nid: 1\ndata: \n\n", "retry: 5\nid: gh1."),
            (": note\nid:2\n\n", ": note\nid: gh1."),
            ("id: \u{e9}\ndata: \n\n", "id: \ndata: \n\n"),
            ("id\ndata: \n\n", "id: \ndata: \n\n"),
            ("data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{}}\nid: 3\n\n",
             "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{}}\nid: gh1."),
        ] {
            server.send(Ok(sent.to_owned().into())).await.unwrap();
            let piece = stream.piece().await.unwrap().unwrap();
            let piece = String::from_utf8(piece.to_vec()).unwrap();
            assert!(piece.starts_with(wanted), "{sent:?}: {piece:?}");
        }
        server.send(Ok(format!("id: {}\ndata: \n\n", "x".repeat(2_000)).into())).await.unwrap();
        assert_eq!(stream.piece().await.unwrap().unwrap(), "id: \ndata: \n\n");
    }

    /// A repeated call is decided, counted and recorded like any other.
    async fn a_call_that_needs_more_is_repeated_with_it(world: World) {
        let (files, ana, bob) = two(&mut world, "client_requests = ['elicitation']").await;
        world.start().await;
        for in_events in [false, true] {
            files.script(move |received| {
                received.tool()?;
                let result = match received.message["params"].get("requestState") {
                    None => json!({ "resultType": "input_required", "requestState": "s\u{e9}\"1",
                        "inputRequests": { "name": { "method": "elicitation/create", "params": { "message": "who?" } } } }),
                    Some(_) => json!({ "resultType": "complete", "content": [{ "type": "text", "text": "done" }] }),
                };
                Some(answer(received, result, in_events))
            });
            let [anas, bobs] = both_modern(&world, &ana, &bob);
            let call = async |client: &Client, tool: &str, state: &Value| {
                let more = json!({ "name": { "action": "accept", "content": { "name": "Ana" } } });
                client.ask("tools/call", json!({ "name": tool, "arguments": { "text": "hi" }, "inputResponses": more, "requestState": state })).await
            };
            let asked = anas.call("echo", json!({ "text": "hi" })).await;
            assert_eq!(asked.message["result"]["inputRequests"]["name"]["params"]["message"], "who?", "{asked:?}");
            let state = asked.message["result"]["requestState"].clone();
            let before = files.received().len();
            for (client, tool, state) in [
                (&bobs, "echo", &state),
                (&anas, "slow", &state),
                (&anas, "echo", &json!("s\u{e9}\"1")),
                (&anas, "echo", &json!(forged(&state))),
            ] {
                let answer = call(client, tool, state).await;
                assert_eq!((answer.verdict().as_str(), &answer.message["error"]["code"]), ("200 unknown_state", &json!(-32602)), "{state}");
            }
            assert_eq!(files.received().len(), before, "nothing of it went out");
            let done = call(&anas, "echo", &state).await;
            assert_eq!(done.text(), "done", "{done:?}");
            let arrived = files.calls().pop().unwrap().message["params"].clone();
            assert_eq!((&arrived["requestState"], &arrived["inputResponses"]["name"]["action"]), (&json!("s\u{e9}\"1"), &json!("accept")));
            let refused = world.connected("files", &ana).await.ask("tools/call", json!({ "name": "echo", "requestState": state })).await;
            assert_eq!(refused.verdict(), "400 invalid_params", "the old era has no such thing");
            assert_eq!(anas.ask("tools/list", json!({ "requestState": state })).await.verdict(), "400 invalid_params");
        }
        world.shipped().await;
        let allowed = world.audit("--tool echo --decision allow");
        assert_eq!(allowed.len(), 4, "two calls and two retries: {allowed:?}");
    }

    async fn a_request_state_is_taken_back_for_as_long_as_a_session(world: World) {
        let (files, ana, _) = two(&mut world, "client_requests = ['elicitation']").await;
        world.set("sessions.lifetime", "'4s'");
        world.start().await;
        files.script(|received| {
            received.tool()?;
            Some(Scripted::Json(match received.message["params"].get("requestState") {
                None => json!({ "resultType": "input_required", "requestState": "s" }),
                Some(_) => json!({ "resultType": "complete", "content": [] }),
            }))
        });
        let client = world.client("files").modern().bearer(&ana);
        let state = client.call("echo", json!({ "text": "hi" })).await.message["result"]["requestState"].clone();
        let retry = async || client.ask("tools/call", json!({ "name": "echo", "arguments": { "text": "hi" }, "requestState": state })).await;
        assert!(retry().await.is_result());
        eventually("the state to end", async || (retry().await.verdict() == "200 unknown_state").then_some(())).await;
        let reached = files.calls().len();
        assert_eq!(retry().await.verdict(), "200 unknown_state");
        assert_eq!(files.calls().len(), reached);
    }

    async fn an_answer_that_asks_for_what_it_may_not_ends_the_call(world: World) {
        let (files, ana, _) = two(&mut world, "client_requests = ['elicitation']").await;
        world.start().await;
        let client = world.client("files").modern().bearer(&ana);
        let ask = |method: &str, params: Value| json!({ "resultType": "input_required", "inputRequests": { "k": { "method": method, "params": params } } });
        for in_events in [false, true] {
            for (result, told) in [
                (ask("sampling/createMessage", json!({})), "client_request_refused"),
                (ask("elicitation/create", json!({ "mode": "url", "url": "https://evil.test" })), "client_request_refused"),
                (ask("tools/call", json!({ "name": "rm" })), "client_request_refused"),
                (json!({ "resultType": "finished", "content": [] }), "upstream_broken"),
                (json!({ "resultType": 7, "content": [] }), "upstream_broken"),
            ] {
                let scripted = result.clone();
                files.script(move |received| received.tool().map(|_| answer(received, scripted.clone(), in_events)));
                let answer = client.call("echo", json!({ "text": "hi" })).await;
                assert_eq!(answer.reason(), told, "{result}: {answer:?}");
                assert!(!answer.body.contains("evil"), "{answer:?}");
            }
            files.script(move |received| {
                let listed = received.method() == "tools/list";
                listed.then(|| answer(received, json!({ "resultType": "input_required", "requestState": "x", "tools": [] }), in_events))
            });
            assert_eq!(client.ask("tools/list", json!({})).await.reason(), "upstream_broken", "a list takes no input");
            files.script(move |received| received.tool().map(|_| answer(received, json!({ "content": [] }), in_events)));
            assert!(client.call("echo", json!({ "text": "hi" })).await.is_result(), "without a type it is complete");
        }
        world.shipped().await;
        let rows = world.audit("--tool echo");
        let amiss = |row: &&Value| row["outcome"]["ending"] == "broken" || row["outcome"]["by"] == "forbidden_request";
        assert_eq!(rows.iter().filter(amiss).count(), 10, "{rows:?}");
        assert!(rows.iter().any(|row| row["outcome"]["detail"].as_str().is_some_and(|told| told.contains("sampling/createMessage"))));
    }

    /// The legacy error that sends the user to a URL counts as a client request of kind `elicitation_url`.
    async fn an_error_that_sends_the_user_to_a_url_is_held_to_the_same(world: World) {
        let (files, ana, _) = two(&mut world, "client_requests = ['elicitation']").await;
        let other = Upstream::start().await;
        world.server("other", &other.url, "client_requests = ['elicitation_url']");
        world.grant("ana", "other", "*");
        world.start().await;
        for in_events in [false, true] {
            for upstream in [&files, &other] {
                upstream.script(move |received| {
                    received.tool()?;
                    let data = json!({ "elicitations": [{ "mode": "url", "url": "https://evil.test", "elicitationId": "1" }] });
                    let error = json!({ "jsonrpc": "2.0", "id": received.message["id"], "error": { "code": -32042, "message": "first", "data": data } });
                    Some(if in_events { Scripted::Events(vec![error]) } else { Scripted::Json(error) })
                });
            }
            let refused = world.connected("files", &ana).await.call("echo", json!({ "text": "hi" })).await;
            assert_eq!(refused.reason(), "client_request_refused");
            assert!(!refused.body.contains("evil"), "{refused:?}");
            let passed = world.connected("other", &ana).await.call("echo", json!({ "text": "hi" })).await;
            assert_eq!(passed.message["error"]["code"], -32042, "{passed:?}");
        }
    }

    async fn a_request_on_a_stream_of_the_new_era_ends_the_call(world: World) {
        let (files, ana, _) = two(&mut world, "client_requests = ['roots']").await;
        world.start().await;
        files.script(|received| {
            received.tool()?;
            Some(Scripted::Events(vec![
                json!({ "jsonrpc": "2.0", "id": 1, "method": "roots/list" }),
                json!({ "jsonrpc": "2.0", "id": received.message["id"], "result": { "content": [] } }),
            ]))
        });
        let client = world.client("files").modern().bearer(&ana);
        let answer = client.call("echo", json!({ "text": "hi" })).await;
        assert_eq!(answer.reason(), "upstream_broken");
        assert!(!answer.body.contains("roots/list"), "{answer:?}");
        world.shipped().await;
        assert_eq!(world.audit("--tool echo")[0]["outcome"]["ending"], "broken");
    }

    /// `inputResponses` without a request that asked for them.
    async fn input_for_a_server_that_may_ask_nothing_is_refused(world: World) {
        let (files, ana, _) = two(&mut world, "").await;
        world.start().await;
        let client = world.client("files").modern().bearer(&ana);
        let answer = client.ask("tools/call", json!({ "name": "echo", "arguments": { "text": "hi" }, "inputResponses": { "k": {} } })).await;
        assert_eq!(answer.verdict(), "400 invalid_params");
        assert_eq!(files.calls().len(), 0);
    }

    async fn a_server_is_offered_only_what_it_may_ask_for(world: World) {
        let all = json!({ "sampling": {}, "roots": { "listChanged": true }, "elicitation": { "form": {}, "url": {} }, "tasks": { "list": {} }, "extensions": { "a/b": { "n": 1.50 } } });
        let other = Upstream::start().await;
        world.server("other", &other.url, "client_requests = ['roots', 'elicitation']");
        let (files, ana, _) = two(&mut world, "").await;
        world.grant("ana", "other", "*");
        world.start().await;
        for (server, upstream, kept) in [
            ("files", &files, json!({ "extensions": { "a/b": { "n": 1.50 } } })),
            ("other", &other, json!({ "roots": { "listChanged": true }, "elicitation": { "form": {} }, "extensions": { "a/b": { "n": 1.50 } } })),
        ] {
            let client = world.client(server).bearer(&ana);
            let params = json!({ "protocolVersion": "2025-11-25", "capabilities": all, "clientInfo": { "name": "stories", "version": "1" } });
            assert!(client.ask("initialize", params).await.is_result());
            assert_eq!(upstream.received().last().unwrap().message["params"]["capabilities"], kept);
            let client = client.modern();
            let mut call = client.request("tools/call", json!({ "name": "echo", "arguments": { "text": "hi" } }));
            call["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] = all.clone();
            assert_eq!(client.post(&call).await.text(), "hi");
            let meta = upstream.calls().pop().unwrap().message["params"]["_meta"].clone();
            assert_eq!(meta["io.modelcontextprotocol/clientCapabilities"], kept);
        }
    }
}

/// Adds a server `files`, and Ana and Bob with the same grants.
async fn two(world: &mut World, more: &str) -> (Upstream, String, String) {
    let files = Upstream::start().await;
    world.server("files", &files.url, more).policies(OPEN);
    for name in ["ana", "bob"] {
        world.person(name, &["reader"]).await;
        world.grant(name, "files", "*");
    }
    (files, world.key("ana"), world.key("bob"))
}

async fn both_legacy(world: &World, ana: &str, bob: &str) -> [Client; 2] {
    [world.connected("files", ana).await, world.connected("files", bob).await]
}

fn both_modern(world: &World, ana: &str, bob: &str) -> [Client; 2] {
    [ana, bob].map(|key| world.client("files").modern().bearer(key))
}

fn answer(received: &Received, result: Value, in_events: bool) -> Scripted {
    let message = json!({ "jsonrpc": "2.0", "id": received.message["id"], "result": result });
    if in_events {
        Scripted::Events(vec![message])
    } else {
        Scripted::Json(message)
    }
}

fn forged(handle: &Value) -> String {
    let mut handle = handle.as_str().unwrap().to_owned();
    handle.replace_range(handle.len() - 4.., "AAAA");
    handle
}

/// The id of an event of the session's own stream, as the client got it.
async fn event_of_own_stream(files: &Upstream, client: &Client, id: &str) -> String {
    let server = files.offer_stream();
    let mut stream = client.own_stream().await;
    server.send(Ok(format!("id: {id}\ndata: \n\n").into())).await.unwrap();
    let piece = stream.piece().await.unwrap().unwrap();
    let piece = String::from_utf8(piece.to_vec()).unwrap();
    let id = piece.lines().find_map(|line| line.strip_prefix("id: "));
    id.unwrap_or_else(|| panic!("no id: {piece}")).to_owned()
}
