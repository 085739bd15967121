//! Lists of resources and prompts over all servers: every server is asked at once, slow and broken ones are left out, and
//! each listed item leads back to the server it came from.

use crate::combined::{client, connected, in_both_eras, two_servers};
use crate::support::client::Answer;
use crate::support::on_both_stores;
use crate::support::stores::Engine;
use crate::support::upstream::{Scripted, Upstream};
use crate::support::wait::eventually;
use crate::support::world::World;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};

fn names(answer: &Answer, member: &str, name: &str) -> Vec<String> {
    let items = answer.message["result"][member].as_array();
    let items = items.unwrap_or_else(|| panic!("no list `{member}`: {answer:?}"));
    items.iter().map(|item| item[name].as_str().unwrap().to_owned()).collect()
}

/// A server of both eras offers `write` only to clients that can sample, and Guardian lists what is pinned to those alone.
#[tokio::test]
async fn a_tool_for_clients_that_can_answer_is_listed_to_those() {
    let mut world = World::new(Engine::Sqlite).await;
    let (files, _notes, key) = two_servers(&mut world, ["*", "*"], "client_requests = ['sampling', 'roots']").await;
    world.policies("@id(\"all\") permit (principal, action, resource);");
    let samples = AtomicBool::new(false);
    files.script(move |received| {
        let params = &received.message["params"];
        let declared = match received.method() {
            "initialize" => &params["capabilities"],
            _ => &params["_meta"]["io.modelcontextprotocol/clientCapabilities"],
        };
        if declared.is_object() {
            samples.store(declared.get("sampling").is_some(), Ordering::Relaxed);
        }
        let tool = |name: &str| {
            let annotations = json!({ "readOnlyHint": true });
            json!({ "name": name, "inputSchema": { "type": "object" }, "annotations": annotations })
        };
        let more = samples.load(Ordering::Relaxed).then(|| tool("write"));
        let tools: Vec<Value> = [tool("echo")].into_iter().chain(more).collect();
        (received.method() == "tools/list").then(|| Scripted::Json(json!({ "tools": tools })))
    });
    world.start().await;
    for (capabilities, is_listed) in [
        (json!({}), false),
        (json!({ "roots": {} }), false),
        (json!({ "sampling": {} }), true),
    ] {
        let mut legacy = client(&world, &key);
        legacy.capabilities = capabilities.clone();
        legacy.handshake().await;
        let mut modern = client(&world, &key).modern();
        modern.capabilities = capabilities;
        for client in [legacy, modern] {
            let listed = client.list().await;
            assert!(listed.contains(&"files__echo".to_owned()), "{listed:?}");
            assert_eq!(listed.contains(&"files__write".to_owned()), is_listed, "{listed:?}");
        }
    }
}

on_both_stores! {
    async fn what_servers_have_is_listed_together_and_read_where_it_is(world: World) {
        let (files, notes, key) = two_servers(&mut world, ["*", "*"], "").await;
        world.start().await;
        for client in in_both_eras(&world, &key).await {
            let listed = client.ask("resources/list", json!({})).await;
            let wanted: Vec<String> = ["files", "notes"].iter().flat_map(|server| ["notes://a/1", "notes://a/2", "notes://b"].map(|uri| format!("{server}+{uri}"))).collect();
            assert_eq!(names(&listed, "resources", "uri"), wanted, "each server's, without the secrets");
            assert_eq!(listed.message["result"]["resources"][0]["extra"], json!({ "of": "notes://a/1" }));
            let templates = client.ask("resources/templates/list", json!({})).await;
            assert_eq!(names(&templates, "resourceTemplates", "uriTemplate"), ["files+notes://a/{number}", "notes+notes://a/{number}"]);
            let prompts = client.ask("prompts/list", json!({})).await;
            assert_eq!(names(&prompts, "prompts", "name"), ["files__greet", "notes__greet"]);

            let read = client.ask("resources/read", json!({ "uri": "notes+notes://a/1" })).await;
            assert_eq!(read.message["result"]["contents"][0]["uri"], "notes+notes://a/1", "{read:?}");
            assert_eq!(read.message["result"]["contents"][0]["text"], "contents of \"notes://a/1\"");
            assert_eq!(client.ask("resources/read", json!({ "uri": "notes+notes://secret/1" })).await.reason(), "forbidden_by_policy");
            let greeted = client.ask("prompts/get", json!({ "name": "files__greet", "arguments": { "who": "you" } })).await;
            assert_eq!(greeted.message["result"]["messages"][0]["content"]["text"], "greet");
            for reference in [json!({ "type": "ref/prompt", "name": "notes__greet" }), json!({ "type": "ref/resource", "uri": "files+notes://a/{number}" })] {
                let completed = client.ask("completion/complete", json!({ "ref": reference, "argument": { "name": "who", "value": "o" } })).await;
                assert_eq!(completed.message["result"]["completion"]["total"], 2, "{completed:?}");
            }
        }
        let modern = client(&world, &key).modern().ask("prompts/list", json!({})).await;
        assert_eq!((&modern.message["result"]["cacheScope"], &modern.message["result"]["ttlMs"]), (&json!("private"), &json!(60_000)));
        let asked = |server: &Upstream, member: &str| server.received().iter().filter_map(|received| received.message["params"]["ref"][member].as_str().map(str::to_owned)).collect::<Vec<_>>();
        assert_eq!((asked(&notes, "name"), asked(&files, "uri")), (vec!["greet".to_owned(); 2], vec!["notes://a/{number}".to_owned(); 2]));
        world.shipped().await;
        let rows = world.audit("--user ana@example.com --server notes");
        assert_eq!(rows.iter().filter(|row| row["method"] == "resources/list" && row["decision"] == "allow").count(), 2);
        assert!(rows.iter().any(|row| row["target"] == "notes://secret/1" && row["reason"] == "forbidden_by_policy"));
    }

    /// Resource links and embedded resources in a tool result carry the server's prefix, so the client can request them.
    async fn what_a_tool_links_to_says_whose_it_is(world: World) {
        let (files, _notes, key) = two_servers(&mut world, ["*", "*"], "").await;
        world.start().await;
        files.script(|received| {
            received.tool()?;
            let content = json!([
                { "type": "resource_link", "uri": "notes://a/1", "name": "one" },
                { "type": "resource", "resource": { "uri": "notes://a/2", "text": "two" } },
            ]);
            let modern = received.message["params"]["_meta"].is_object();
            let mut result = json!({ "content": content, "structuredContent": { "uri": "notes://a/3" } });
            if modern {
                result["resultType"] = json!("complete");
            }
            let answer = json!({ "jsonrpc": "2.0", "id": received.message["id"], "result": result });
            Some(match received.arguments()["text"].as_str() {
                Some("stream") => Scripted::Events(vec![answer]),
                _ => Scripted::Json(answer),
            })
        });
        for client in in_both_eras(&world, &key).await {
            for how in ["stream", "json"] {
                let answer = client.call("files__echo", json!({ "text": how })).await;
                let result = &answer.message["result"];
                assert_eq!(result["content"][0]["uri"], "files+notes://a/1", "{answer:?}");
                assert_eq!(result["content"][1]["resource"]["uri"], "files+notes://a/2");
                assert_eq!(result["structuredContent"]["uri"], "notes://a/3", "data of the tool's own");
            }
        }
    }

    async fn lists_go_on_where_each_server_has_more(world: World) {
        let (files, _notes, ana) = two_servers(&mut world, ["*", "*"], "").await;
        world.person("bob", &["reader"]).await;
        world.grant("bob", "files", "*");
        let bob = world.key("bob");
        world.start().await;
        files.script(|received| {
            let modern = received.message["params"]["_meta"].is_object();
            let page = |uri: &str, next: Option<&str>| {
                let mut page = json!({ "resources": [{ "uri": uri, "name": "n" }] });
                if let Some(next) = next {
                    page["nextCursor"] = json!(next);
                }
                if modern {
                    (page["resultType"], page["ttlMs"], page["cacheScope"]) = (json!("complete"), json!(5), json!("public"));
                }
                Some(Scripted::Json(page))
            };
            match (received.method(), received.message["params"]["cursor"].as_str()) {
                ("resources/list", None) => page("notes://p/1", Some("p2")),
                ("resources/list", Some("p2")) => page("notes://p/2", None),
                _ => None,
            }
        });
        let bobs = client(&world, &bob).modern();
        for client in in_both_eras(&world, &ana).await {
            let first = client.ask("resources/list", json!({})).await;
            assert_eq!(names(&first, "resources", "uri"), ["files+notes://p/1", "notes+notes://a/1", "notes+notes://a/2", "notes+notes://b"]);
            let cursor = first.message["result"]["nextCursor"].clone();
            let second = client.ask("resources/list", json!({ "cursor": cursor })).await;
            assert_eq!(names(&second, "resources", "uri"), ["files+notes://p/2"], "only who has more is asked");
            assert_eq!(second.message["result"]["nextCursor"], Value::Null);
            assert_eq!(bobs.ask("resources/list", json!({ "cursor": cursor })).await.verdict(), "200 unknown_cursor");
            for wrong in ["", "p2", "gc1.e30", "gh1.AAAA.AAAA"] {
                assert_eq!(client.ask("resources/list", json!({ "cursor": wrong })).await.verdict(), "200 unknown_cursor", "{wrong}");
            }
            assert_eq!(client.ask("prompts/list", json!({ "cursor": cursor })).await.verdict(), "200 unknown_cursor");
            assert_eq!(client.ask("tools/list", json!({ "cursor": cursor })).await.verdict(), "200 unknown_cursor");
        }
    }

    /// A slow server and a broken one are left out of the list.
    async fn a_list_does_not_wait_for_a_server_that_hangs(world: World) {
        let (files, _notes, key) = two_servers(&mut world, ["*", "*"], "").await;
        let broken = Upstream::start().await;
        world.server("broken", &broken.url, "");
        world.grant("ana", "broken", "*");
        world.start().await;
        let legacy = connected(&world, &key).await;
        broken.script(|received| (received.method() == "resources/list").then(|| Scripted::Json(json!("nonsense"))));
        let held = std::sync::Mutex::new(Vec::new());
        files.script(move |received| {
            (received.method() == "resources/list").then(|| {
                let (sender, events) = tokio::sync::mpsc::channel(1);
                held.lock().unwrap().push(sender);
                Scripted::Stream(events)
            })
        });
        for client in [legacy, client(&world, &key).modern()] {
            let listed = client.ask("resources/list", json!({})).await;
            assert_eq!(names(&listed, "resources", "uri"), ["notes+notes://a/1", "notes+notes://a/2", "notes+notes://b"]);
        }
        eventually("the records of what was asked and not waited for", async || {
            let rows = world.audit("--server files --method resources/list");
            let left = rows.iter().filter(|row| row["outcome"]["ending"] == "client_closed");
            (left.count() == 2).then_some(())
        })
        .await;
    }

    async fn what_servers_offer_is_offered_together(world: World) {
        let (files, notes, key) = two_servers(&mut world, ["echo", "echo"], "").await;
        files.say_hello(json!({ "capabilities": { "tools": {}, "resources": {} }, "instructions": "Read before you write." }));
        notes.say_hello(json!({ "capabilities": { "tasks": { "list": {}, "cancel": {} } }, "instructions": "" }));
        world.start().await;
        let mut client = client(&world, &key);
        let answer = client.handshake().await;
        let result = &answer.message["result"];
        let offered = json!({ "tools": { "listChanged": true }, "resources": { "subscribe": true, "listChanged": true }, "prompts": { "listChanged": true }, "completions": {}, "tasks": { "cancel": {} } });
        assert_eq!(result["capabilities"], offered, "what either era has: {result}");
        assert_eq!(result["serverInfo"]["name"], "neural-guardian");
        let said = result["instructions"].as_str().unwrap();
        assert!(said.contains("`<server>__<name>`") && said.contains("# files\n\nRead before you write.") && !said.contains("# notes"), "{said}");
        let found = crate::combined::client(&world, &key).modern().ask("server/discover", json!({})).await;
        assert_eq!(found.message["result"]["supportedVersions"], json!(["2026-07-28"]), "{found:?}");
        assert_eq!(found.message["result"]["capabilities"]["tasks"], Value::Null);
    }

    /// A client that speaks both eras is led to the era in which more of its servers can be reached.
    async fn a_client_is_led_to_the_era_that_reaches_more(world: World) {
        let (older, newer) = (Upstream::legacy().await, Upstream::modern().await);
        world.server("older", &older.url, "");
        world.server("oldest", &older.url, "");
        world.server("newer", &newer.url, "");
        world.policies("@id(\"everybody\") permit (principal, action, resource);");
        for (name, servers) in [("ana", &["older", "newer"][..]), ("bob", &["older", "oldest", "newer"]), ("eve", &["older"])] {
            world.person(name, &["reader"]).await;
            servers.iter().for_each(|server| world.grant(name, server, "echo"));
        }
        let keys = ["ana", "bob", "eve"].map(|name| world.key(name));
        world.start().await;
        let modern = |key: &str| client(&world, key).modern();
        assert!(modern(&keys[0]).ask("server/discover", json!({})).await.is_result());
        for key in &keys[1..] {
            let refused = modern(key).ask("server/discover", json!({})).await;
            assert_eq!((refused.status, &refused.message["error"]["code"]), (404, &json!(-32601)));
        }
        assert_eq!(modern(&keys[1]).list().await, ["newer__echo"]);
        assert_eq!(connected(&world, &keys[1]).await.list().await, ["older__echo", "oldest__echo"]);
        let refused = modern(&keys[1]).call("older__echo", json!({ "text": "hi" })).await;
        assert_eq!(refused.verdict(), "400 unsupported_version");
        let refused = connected(&world, &keys[1]).await.call("newer__echo", json!({ "text": "hi" })).await;
        assert_eq!(refused.verdict(), "400 unsupported_version");
    }

    async fn tasks_are_spoken_of_to_the_server_that_began_them(world: World) {
        let (files, notes, ana) = two_servers(&mut world, ["*", "*"], "").await;
        world.person("bob", &["reader"]).await;
        world.grant("bob", "files", "*");
        let bob = world.key("bob");
        world.start().await;
        files.script(|received| {
            let task = json!({ "taskId": "t-1", "status": "working" });
            match received.method() {
                "tools/call" => Some(Scripted::Json(json!({ "task": task }))),
                "tasks/get" => Some(Scripted::Json(task)),
                _ => None,
            }
        });
        let client = connected(&world, &ana).await;
        let begun = client.ask("tools/call", json!({ "name": "files__echo", "arguments": { "text": "hi" }, "task": {} })).await;
        let task = begun.message["result"]["task"]["taskId"].clone();
        let seen = client.ask("tasks/get", json!({ "taskId": task })).await;
        assert_eq!(seen.message["result"]["taskId"], task, "{seen:?}");
        assert!(files.received().iter().any(|received| received.message["params"]["taskId"] == "t-1"));
        assert!(notes.received().iter().all(|received| received.method() != "tasks/get"));
        let bobs = connected(&world, &bob).await;
        for (client, task) in [(&bobs, task.clone()), (&client, json!("t-1")), (&client, json!("gh1.AAAA.AAAA"))] {
            assert_eq!(client.ask("tasks/get", json!({ "taskId": task })).await.verdict(), "200 unknown_task");
        }
    }
}
