//! The combined endpoint with stdio servers, rate limits, request states and refused callers.

use crate::combined::{client, connected, in_both_eras, two_servers};
use crate::support::client::Client;
use crate::support::on_both_stores;
use crate::support::stdio::{Notes, gone};
use crate::support::stores::Engine;
use crate::support::upstream::{Scripted, Upstream};
use crate::support::wait::eventually;
use crate::support::world::World;
use bytes::Bytes;
use serde_json::{Value, json};

/// Most MCP servers are stdio programs. Each client session gets a process of its own, also through the combined endpoint.
#[tokio::test]
async fn programs_and_others_are_behind_one_url() {
    let mut world = World::new(Engine::Sqlite).await;
    let files = Upstream::start().await;
    world.server("files", &files.url, "");
    let notes = Notes::program(&mut world, "").await;
    world.grant("ana", "files", "echo");
    world.start().await;
    let client = connected(&world, &notes.ana).await;
    eventually("both to have told their tools", async || {
        let listed = client.list().await;
        let both = ["files__echo", "notes__echo"]
            .iter()
            .all(|tool| listed.iter().any(|name| name == tool));
        both.then_some(())
    })
    .await;
    for tool in ["files__echo", "notes__echo"] {
        assert_eq!(client.call(tool, json!({ "text": "hi" })).await.text(), "hi");
    }
    assert_eq!(
        client.call("notes__echo", json!({ "text": "plot" })).await.reason(),
        "forbidden_by_policy"
    );
    let process = async |client: &Client| client.call("notes__pid", json!({})).await.text().to_owned();
    let (here, there) = (process(&client).await, connected(&world, &notes.ana).await);
    assert_eq!(process(&client).await, here, "one session, one process");
    assert_ne!(process(&there).await, here, "another session, another");
    // The process ends by itself. A call is never repeated, so one call may fail; the next one starts a new process.
    let status = std::process::Command::new("kill").arg(&here).status().unwrap();
    assert!(status.success());
    gone(&here).await;
    let last = eventually("a new process", async || {
        let answer = client.call("notes__pid", json!({})).await;
        answer.is_result().then(|| answer.text().to_owned())
    })
    .await;
    assert_ne!(last, here);
    let ended = client.send("DELETE", client.base_headers(), Bytes::new()).await.unwrap();
    assert_eq!(ended.status, 200);
    gone(&last).await;
}

on_both_stores! {
    /// Requests that Guardian answers without any server count against the caller's rate limit too.
    async fn what_is_answered_at_once_is_limited_too(world: World) {
        let (_files, _notes, key) = two_servers(&mut world, ["echo", "echo"], "").await;
        world.set("limits.per_principal", "{ rate = 2, per = '600s' }");
        world.start().await;
        let client = client(&world, &key).modern();
        for _ in 0..2 {
            assert_eq!(client.ask("tools/list", json!({})).await.verdict(), "allowed");
        }
        assert_eq!(client.ask("tools/list", json!({})).await.verdict(), "429 rate_limited");
        assert_eq!(client.call("files__echo", json!({ "text": "hi" })).await.verdict(), "200 rate_limited");
        assert_eq!(client.ask("server/discover", json!({})).await.verdict(), "allowed", "probes are free");
    }

    /// A `requestState` is accepted only for the tool and the server that issued it.
    async fn a_state_is_its_servers(world: World) {
        let (files, notes, key) = two_servers(&mut world, ["*", "*"], "client_requests = ['elicitation']").await;
        world.start().await;
        for server in [&files, &notes] {
            server.script(|received| {
                received.tool()?;
                Some(Scripted::Json(match received.message["params"]["requestState"].as_str() {
                    None => json!({ "resultType": "input_required", "requestState": "s-1", "inputRequests": { "name": { "method": "elicitation/create", "params": { "message": "who?" } } } }),
                    Some(_) => json!({ "resultType": "complete", "content": [{ "type": "text", "text": "done" }] }),
                }))
            });
        }
        let client = client(&world, &key).modern();
        let asked = client.call("files__echo", json!({ "text": "hi" })).await;
        let state = asked.message["result"]["requestState"].clone();
        assert!(state.is_string(), "{asked:?}");
        let again = async |tool: &str| {
            let params = json!({ "name": tool, "arguments": { "text": "hi" }, "requestState": state, "inputResponses": { "name": { "action": "accept" } } });
            client.ask("tools/call", params).await
        };
        assert_eq!(again("notes__echo").await.reason(), "unknown_state");
        assert_eq!(again("files__read_file").await.reason(), "unknown_state");
        assert_eq!(again("files__echo").await.text(), "done");
        let brought: Vec<_> = files.calls().iter().filter_map(|call| call.message["params"]["requestState"].as_str().map(str::to_owned)).collect();
        assert_eq!((brought, notes.calls().len()), (vec!["s-1".to_owned()], 0));
        let own = world.client("files").modern().bearer(&key);
        let params = json!({ "name": "echo", "arguments": { "text": "hi" }, "requestState": state });
        assert_eq!(own.ask("tools/call", params).await.text(), "done", "it is one server, by whichever way");
    }

    /// A disabled member is told so whatever it asks for, also for names that no server has.
    async fn who_is_nobody_here_is_told_so(world: World) {
        let (_files, _notes, _) = two_servers(&mut world, ["echo", "echo"], "").await;
        world.person("off", &["reader"]).await;
        let key = world.key("off");
        world.guardian("user disable off@example.com").ok();
        world.start().await;
        let client = client(&world, &key).modern();
        for (method, params) in [
            ("tools/list", json!({})),
            ("server/discover", json!({})),
            ("prompts/list", json!({})),
            ("tools/call", json!({ "name": "nothing", "arguments": {} })),
            ("resources/read", json!({ "uri": "x:y" })),
            ("subscriptions/listen", json!({ "notifications": {} })),
        ] {
            assert_eq!(client.ask(method, params).await.verdict(), "200 member_disabled", "{method}");
        }
        let mut legacy = crate::combined::client(&world, &key);
        let (combined, own) = (legacy.handshake().await, world.client("files").bearer(&key).handshake().await);
        assert_eq!((combined.reason(), combined.status), ("member_disabled", own.status), "as the server's own endpoint says it");
    }

    /// A refusal of an unknown name is recorded with its caller, and the answer quotes the id of that record.
    async fn a_refusal_quotes_the_record_of_the_call(world: World) {
        let (_files, _notes, key) = two_servers(&mut world, ["echo", "echo"], "").await;
        let secret = Upstream::start().await;
        world.server("secret", &secret.url, "");
        world.start().await;
        let mut quoted: Vec<(Value, &str, &str)> = Vec::new();
        for client in in_both_eras(&world, &key).await {
            for (tool, reason, server) in [("secret__echo", "no_grant", "secret"), ("nothing", "unknown_tool", ""), ("files__add", "missing_scope", "files")] {
                let answer = client.call(tool, json!({ "text": "hi" })).await;
                quoted.push((answer.data()["record"].clone(), reason, server));
            }
        }
        let client = client(&world, &key).modern();
        let answer = client.ask("subscriptions/listen", json!({ "notifications": { "resourceSubscriptions": ["files+notes://a/1"] } })).await;
        quoted.push((answer.data()["record"].clone(), "missing_scope", "files"));
        world.shipped().await;
        let rows = world.audit("--decision deny");
        for (record, reason, server) in quoted {
            let row = rows.iter().find(|row| row["request"] == record).unwrap_or_else(|| panic!("{record} of {reason}: {rows:#?}"));
            assert_eq!((&row["reason"], row["server"].as_str().unwrap_or_default()), (&json!(reason), server));
            assert_eq!(row["email"], "ana@example.com");
        }
    }
}
