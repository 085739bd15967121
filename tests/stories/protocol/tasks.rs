//! Tasks of both eras: the caller who began a task can see and cancel it for as long as they may call its tool.

use crate::support::client::Client;
use crate::support::on_both_stores;
use crate::support::upstream::{Received, Scripted, Upstream, say};
use crate::support::wait::eventually;
use crate::support::world::World;
use serde_json::{Value, json};

const READERS: &str = r#"
@id("readers-read") permit (principal in Guardian::Role::"reader", action in Guardian::Action::"read_only", resource);
"#;

on_both_stores! {
    async fn a_task_of_the_old_era_is_its_callers(world: World) {
        let (files, ana, bob) = tasks(&mut world).await;
        world.start().await;
        files.script(|received| legacy(received).map(Scripted::Json));
        let anas = world.connected("files", &ana).await;
        let bobs = world.connected("files", &bob).await;

        let begun = anas.ask("tools/call", json!({ "name": "echo", "arguments": { "text": "hi" }, "task": { "ttl": 60_000 } })).await;
        let task = begun.message["result"]["task"]["taskId"].clone();
        assert!(task.as_str().unwrap().starts_with("gh1."), "{begun:?}");
        assert_eq!(files.calls()[0].message["params"]["task"], json!({ "ttl": 60_000 }));
        let other = anas.ask("tools/call", json!({ "name": "add", "arguments": { "a": 1, "b": 2 }, "task": {} })).await;
        assert_ne!(other.message["result"]["task"]["taskId"], task, "the tool is part of it");

        let named = json!({ "taskId": task });
        assert_eq!(anas.ask("tasks/get", named.clone()).await.message["result"]["taskId"], task);
        let result = anas.ask("tasks/result", named.clone()).await;
        assert_eq!(result.text(), "hi");
        assert_eq!(result.message["result"]["_meta"]["io.modelcontextprotocol/related-task"]["taskId"], task);
        assert_eq!(anas.ask("tasks/cancel", named.clone()).await.message["result"]["taskId"], task);
        let sent: Vec<Value> = files.received().iter().filter(|received| received.method().starts_with("tasks/")).map(|received| received.message["params"]["taskId"].clone()).collect();
        assert_eq!(sent, ["t-1", "t-1", "t-1"]);
        // A task outlives its session: another session of the same caller finds it.
        let again = world.connected("files", &ana).await;
        assert!(again.ask("tasks/get", named.clone()).await.is_result());

        let before = files.received().len();
        for method in ["tasks/get", "tasks/result", "tasks/cancel"] {
            unknown(&bobs, method, &task).await;
            unknown(&anas, method, &json!("t-1")).await;
            unknown(&anas, method, &json!(format!("{}A", task.as_str().unwrap()))).await;
            assert_eq!(anas.ask(method, json!({})).await.verdict(), "400 invalid_params");
        }
        // A list of tasks does not say whose they are.
        assert_eq!(anas.ask("tasks/list", json!({})).await.verdict(), "200 unknown_method");
        let update = json!({ "taskId": task, "inputResponses": {} });
        assert_eq!(anas.ask("tasks/update", update).await.verdict(), "200 unknown_method");
        assert_eq!(files.received().len(), before, "nothing of it went out");
        world.shipped().await;
        let rows = world.audit("--tool echo");
        let methods: Vec<&str> = rows.iter().map(|row| row["method"].as_str().unwrap()).collect();
        assert!(methods.contains(&"tasks/get") && methods.contains(&"tasks/result") && methods.contains(&"tasks/cancel"), "{rows:?}");
    }

    async fn a_list_of_tasks_is_not_offered(world: World) {
        let (files, ana, _) = tasks(&mut world).await;
        world.start().await;
        files.script(|received| {
            let offer = json!({ "list": {}, "cancel": {}, "requests": { "tools": { "call": {} } } });
            let capabilities = json!({ "tools": {}, "tasks": offer });
            (received.method() == "initialize").then(|| Scripted::Json(json!({ "protocolVersion": "2025-11-25", "capabilities": capabilities, "serverInfo": {} })))
        });
        let params = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "stories", "version": "1" } });
        let offered = world.client("files").bearer(&ana).ask("initialize", params).await.message["result"]["capabilities"].clone();
        assert_eq!(offered, json!({ "tools": {}, "tasks": { "cancel": {}, "requests": { "tools": { "call": {} } } } }));
    }

    async fn what_a_server_says_of_a_task_names_it_as_the_caller_does(world: World) {
        let (files, ana, _) = tasks(&mut world).await;
        world.start().await;
        files.script(|received| legacy(received).map(Scripted::Json));
        let client = world.connected("files", &ana).await;
        let begun = client.ask("tools/call", json!({ "name": "echo", "arguments": { "text": "hi" }, "task": {} })).await;
        let task = begun.message["result"]["task"]["taskId"].clone();
        let server = files.offer_stream();
        let mut stream = client.own_stream().await;

        say(&server, &json!({ "jsonrpc": "2.0", "method": "notifications/tasks/status", "params": { "taskId": "t-1", "status": "working" } })).await;
        assert_eq!(stream.message().await["params"], json!({ "taskId": task, "status": "working" }));
        let related = |task: &Value| json!({ "io.modelcontextprotocol/related-task": { "taskId": task } });
        say(&server, &json!({ "jsonrpc": "2.0", "id": 1, "method": "elicitation/create", "params": { "message": "?", "_meta": related(&json!("t-1")) } })).await;
        let asked = stream.message().await;
        assert_eq!(asked["params"]["_meta"], related(&task));
        let answer = json!({ "jsonrpc": "2.0", "id": asked["id"], "result": { "action": "accept", "_meta": related(&task) } });
        assert_eq!(client.post(&answer).await.status, 202);
        let arrived = files.arrived("the answer", |received| received.message["result"]["action"] == "accept").await;
        assert_eq!(arrived.message["result"]["_meta"], related(&json!("t-1")));
        // A task that nobody began through Guardian: its status is not passed on, and elsewhere its id is replaced by one that no
        // method accepts.
        say(&server, &json!({ "jsonrpc": "2.0", "method": "notifications/tasks/status", "params": { "taskId": "t-of-another", "status": "working" } })).await;
        say(&server, &json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": { "level": "info", "data": "", "_meta": related(&json!("t-of-another")) } })).await;
        let stranger = stream.message().await["params"]["_meta"]["io.modelcontextprotocol/related-task"]["taskId"].clone();
        assert!(!stranger.as_str().unwrap().contains("t-of"), "{stranger}");
        unknown(&client, "tasks/get", &stranger).await;
    }

    async fn a_task_of_the_new_era_is_its_callers(world: World) {
        let (files, ana, bob) = tasks(&mut world).await;
        world.start().await;
        files.script(|received| modern(received).map(|result| Scripted::Events(vec![json!({ "jsonrpc": "2.0", "id": received.message["id"], "result": result })])));
        let [anas, bobs] = [&ana, &bob].map(|key| world.client("files").doing_tasks().bearer(key));
        let begun = anas.call("echo", json!({ "text": "hi" })).await;
        let task = begun.message["result"]["taskId"].clone();
        assert!(task.as_str().unwrap().starts_with("gh1."), "{begun:?}");
        let got = anas.ask("tasks/get", json!({ "taskId": task })).await;
        assert_eq!((&got.message["result"]["taskId"], &got.message["result"]["inputRequests"]["k"]["method"]), (&task, &json!("elicitation/create")));
        let update = json!({ "taskId": task, "inputResponses": { "k": { "action": "accept" } } });
        assert!(anas.ask("tasks/update", update.clone()).await.is_result());
        assert!(anas.ask("tasks/cancel", json!({ "taskId": task })).await.is_result());
        for received in files.received().iter().filter(|received| received.method().starts_with("tasks/")) {
            assert_eq!((received.header("mcp-name"), &received.message["params"]["taskId"]), (Some("t-1"), &json!("t-1")));
        }
        let before = files.received().len();
        for method in ["tasks/get", "tasks/cancel"] {
            unknown(&bobs, method, &task).await;
            unknown(&anas, method, &json!("t-1")).await;
        }
        assert_eq!(bobs.ask("tasks/update", update.clone()).await.verdict(), "200 unknown_task");
        for method in ["tasks/result", "tasks/list"] {
            assert_eq!(anas.ask(method, json!({ "taskId": task })).await.verdict(), "404 unknown_method");
        }
        // `Mcp-Name` must equal the name in the body, as for tools.
        let mut headers = anas.base_headers();
        headers.insert("mcp-method", "tasks/get".parse().unwrap());
        headers.insert("mcp-name", "t-1".parse().unwrap());
        let request = anas.request("tasks/get", json!({ "taskId": task }));
        assert_eq!(anas.send("POST", headers, request.to_string().into()).await.unwrap().status, 400);
        assert_eq!(files.received().len(), before, "nothing of it went out");
    }

    async fn a_stream_tells_of_the_tasks_that_are_the_callers(world: World) {
        let (files, ana, bob) = tasks(&mut world).await;
        world.start().await;
        files.script(|received| modern(received).map(Scripted::Json));
        let [anas, bobs] = [&ana, &bob].map(|key| world.client("files").doing_tasks().bearer(key));
        let task = anas.call("echo", json!({ "text": "hi" })).await.message["result"]["taskId"].clone();

        let listen = |client: &Client, task: &Value| client.request("subscriptions/listen", json!({ "notifications": { "taskIds": [task] } }));
        assert_eq!(bobs.post(&listen(&bobs, &task)).await.verdict(), "200 unknown_task");
        assert_eq!(anas.post(&listen(&anas, &json!("t-1"))).await.verdict(), "200 unknown_task");
        let (server, events) = tokio::sync::mpsc::channel(8);
        let events = std::sync::Mutex::new(Some(events));
        files.script(move |received| match received.method() {
            "subscriptions/listen" => events.lock().unwrap().take().map(Scripted::Stream),
            _ => None,
        });
        let mut stream = anas.alike().open(&listen(&anas, &task)).await.unwrap();
        assert_eq!(stream.status, 200);
        let asked = files.arrived("the subscription", |received| received.method() == "subscriptions/listen").await;
        assert_eq!(asked.message["params"]["notifications"]["taskIds"], json!(["t-1"]));
        let ack = json!({ "jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": { "notifications": { "taskIds": ["t-1"] } } });
        say(&server, &ack).await;
        assert_eq!(stream.message().await["params"]["notifications"]["taskIds"], json!([task]));
        let note = |more: Value| json!({ "jsonrpc": "2.0", "method": "notifications/tasks", "params": { "taskId": "t-1", "status": "working", "inputRequests": more } });
        say(&server, &note(json!({ "k": { "method": "sampling/createMessage", "params": {} } }))).await;
        say(&server, &json!({ "jsonrpc": "2.0", "method": "notifications/tasks", "params": { "taskId": "t-of-another", "status": "completed", "result": {} } })).await;
        say(&server, &note(json!({ "k": { "method": "elicitation/create", "params": {} } }))).await;
        let heard = stream.message().await;
        assert_eq!((&heard["params"]["taskId"], &heard["params"]["inputRequests"]["k"]["method"]), (&task, &json!("elicitation/create")));
    }

    async fn a_client_that_does_no_tasks_is_told_so_before_any_is_looked_for(world: World) {
        let (files, ana, _) = tasks(&mut world).await;
        world.start().await;
        files.script(|received| modern(received).map(Scripted::Json));
        let task = world.client("files").doing_tasks().bearer(&ana).call("echo", json!({ "text": "hi" })).await.message["result"]["taskId"].clone();
        let before = files.received().len();
        let mut plain = world.client("files").modern().bearer(&ana);
        let listen = json!({ "notifications": { "taskIds": [task] } });
        for capabilities in [json!({}), json!({ "extensions": {} }), json!({ "extensions": { "io.modelcontextprotocol/tasks": null } }), json!({ "tasks": {} })] {
            plain.capabilities = capabilities;
            for named in [&task, &json!("invented")] {
                let answers = [
                    plain.ask("tasks/get", json!({ "taskId": named })).await,
                    plain.ask("tasks/update", json!({ "taskId": named, "inputResponses": {} })).await,
                    plain.ask("tasks/cancel", json!({ "taskId": named })).await,
                    plain.ask("subscriptions/listen", listen.clone()).await,
                ];
                for answer in answers {
                    assert_eq!((answer.verdict().as_str(), &answer.message["error"]["code"]), ("400 missing_capability", &json!(-32021)), "{named}");
                    assert_eq!(answer.data()["requiredCapabilities"], json!({ "extensions": { "io.modelcontextprotocol/tasks": {} } }));
                }
            }
        }
        assert_eq!(files.received().len(), before, "nothing of it went out");
    }

    /// Access to a task is decided as a call of the tool that began it would be decided now.
    async fn a_task_is_out_of_reach_with_the_tool_that_began_it(world: World) {
        let (files, ana, _) = tasks(&mut world).await;
        world.start().await;
        files.script(|received| modern(received).map(Scripted::Json));
        let client = world.client("files").doing_tasks().bearer(&ana);
        let task = client.call("echo", json!({ "text": "hi" })).await.message["result"]["taskId"].clone();
        assert!(client.ask("tasks/get", json!({ "taskId": task })).await.is_result());

        world.revoke("ana", "files");
        world.grant("ana", "files", "add");
        eventually("the narrower grant to bind", async || {
            let answer = client.ask("tasks/get", json!({ "taskId": task })).await;
            (answer.verdict() == "200 missing_scope").then_some(())
        })
        .await;
        world.revoke("ana", "files");
        world.grant("ana", "files", "*");
        eventually("the wider grant to bind", async || client.ask("tasks/get", json!({ "taskId": task })).await.is_result().then_some(())).await;
        world.policies(&format!("{READERS} @id(\"no-echo\") forbid (principal, action == Guardian::Action::\"files/echo\", resource);"));
        world.write();
        eventually("the policies to be taken up", async || {
            let answer = client.ask("tasks/cancel", json!({ "taskId": task })).await;
            (answer.verdict() == "200 no_policy_permits").then_some(())
        })
        .await;
        assert!(files.received().iter().any(|received| received.method() == "tasks/get"));
    }
}

/// Adds a server `files` whose tools begin tasks, and Ana and Bob with the same grants.
async fn tasks(world: &mut World) -> (Upstream, String, String) {
    let files = Upstream::start().await;
    world
        .server("files", &files.url, "client_requests = ['elicitation']")
        .policies(READERS);
    for name in ["ana", "bob"] {
        world.person(name, &["reader"]).await;
        world.grant(name, "files", "*");
    }
    (files, world.key("ana"), world.key("bob"))
}

fn legacy(received: &Received) -> Option<Value> {
    let task = json!({ "taskId": "t-1", "status": "working", "createdAt": "2026-11-20T00:00:00Z", "ttl": null });
    Some(match received.method() {
        "tools/call" => json!({ "task": task }),
        "tasks/get" | "tasks/cancel" => task,
        "tasks/result" => json!({
            "content": [{ "type": "text", "text": "hi" }],
            "_meta": { "io.modelcontextprotocol/related-task": { "taskId": "t-1" } },
        }),
        _ => return None,
    })
}

fn modern(received: &Received) -> Option<Value> {
    let task = |kind: &str| json!({ "resultType": kind, "taskId": "t-1", "status": "input_required", "ttlMs": 60_000 });
    Some(match received.method() {
        "tools/call" => task("task"),
        "tasks/get" => {
            let mut got = task("complete");
            got["inputRequests"] = json!({ "k": { "method": "elicitation/create", "params": { "message": "?" } } });
            got
        }
        "tasks/update" | "tasks/cancel" => json!({ "resultType": "complete" }),
        _ => return None,
    })
}

async fn unknown(client: &Client, method: &str, task: &Value) {
    let answer = client.ask(method, json!({ "taskId": task })).await;
    assert_eq!(
        (answer.verdict().as_str(), &answer.message["error"]["code"]),
        ("200 unknown_task", &json!(-32602)),
        "{method} {task}"
    );
}
