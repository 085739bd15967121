//! No session or handle lives in one instance's memory: an instance with the same keys accepts them, and keys are rotated
//! without losing them.

use crate::ana_reads_files;
use crate::support::on_both_stores;
use crate::support::upstream::{Scripted, Upstream, say};
use crate::support::world::World;
use serde_json::{Value, json};

on_both_stores! {
    async fn another_instance_takes_over_with_the_same_keys(world: World) {
        let files = Upstream::start().await;
        world.server("files", &files.url, "client_requests = ['roots']");
        let key = crate::ana(&mut world).await;
        world.start().await;
        let mut other = world.replica();
        other.start().await;

        let here = world.connected("files", &key).await;
        let mut there = other.client("files").bearer(&key);
        there.session.clone_from(&here.session);
        for client in [&here, &there] {
            assert_eq!(client.call("echo", json!({ "text": "hi" })).await.text(), "hi");
        }
        let sessions: Vec<_> = files.calls().iter().map(|call| call.header("mcp-session-id").map(str::to_owned)).collect();
        assert!(sessions[0].is_some() && sessions[0] == sessions[1], "{sessions:?}");

        paging(&files);
        let cursor = here.ask("tools/list", json!({})).await.message["result"]["nextCursor"].clone();
        assert!(there.ask("tools/list", json!({ "cursor": cursor })).await.is_result());
        let begun = here.ask("tools/call", json!({ "name": "echo", "arguments": { "text": "hi" }, "task": {} })).await;
        let task = begun.message["result"]["task"]["taskId"].clone();

        // A replica passes on a task's status only once it knows the caller's handle for the task. After the task was begun at
        // another replica, the caller asks for it once.
        let status = json!({ "jsonrpc": "2.0", "method": "notifications/tasks/status", "params": { "taskId": "t-1", "status": "working" } });
        let tells = files.offer_stream();
        let mut told = there.own_stream().await;
        say(&tells, &status).await;
        say(&tells, &json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed" })).await;
        let first: Value = serde_json::from_str(&told.event().await.unwrap().unwrap()).unwrap();
        assert_eq!(first["method"], "notifications/tools/list_changed");
        assert_eq!(there.ask("tasks/get", json!({ "taskId": task })).await.message["result"]["taskId"], task);
        say(&tells, &status).await;
        let second: Value = serde_json::from_str(&told.event().await.unwrap().unwrap()).unwrap();
        assert_eq!(second["params"]["taskId"], task);

        let server = files.offer_stream();
        let mut stream = here.own_stream().await;
        say(&server, &json!({ "jsonrpc": "2.0", "id": 5, "method": "roots/list" })).await;
        let asked: Value = serde_json::from_str(&stream.event().await.unwrap().unwrap()).unwrap();
        let answer = json!({ "jsonrpc": "2.0", "id": asked["id"], "result": { "roots": [] } });
        assert_eq!(there.post(&answer).await.status, 202);
        files.arrived("the answer", |received| received.message["id"] == 5).await;
    }

    async fn keys_are_changed_without_ending_a_session(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        world.start().await;
        paging(&files);
        let before = world.connected("files", &key).await;
        let cursor = before.ask("tools/list", json!({})).await.message["result"]["nextCursor"].clone();
        let first = std::fs::read_to_string(world.file("data/session.keys")).unwrap();
        let second = "2:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n";

        restart(&mut world, &format!("{first}{second}")).await;
        assert!(before.ask("tools/list", json!({ "cursor": cursor })).await.is_result(), "what the older key made is still taken");
        let after = world.connected("files", &key).await;
        let newer = after.ask("tools/list", json!({})).await.message["result"]["nextCursor"].clone();
        assert_ne!(newer, cursor, "the newer key makes it");

        restart(&mut world, second).await;
        assert_eq!(before.ask("tools/list", json!({})).await.verdict(), "404 unknown_session");
        assert_eq!(after.ask("tools/list", json!({ "cursor": cursor })).await.verdict(), "200 unknown_cursor");
        assert!(after.ask("tools/list", json!({ "cursor": newer })).await.is_result());
    }
}

/// The server lists tools in two pages, and its tools begin tasks.
fn paging(files: &Upstream) {
    files.script(|received| {
        let task = json!({ "taskId": "t-1", "status": "working" });
        Some(Scripted::Json(
            match (received.method(), received.message["params"]["cursor"].as_str()) {
                ("tools/list", None) => json!({ "tools": [], "nextCursor": "p2" }),
                ("tools/list", Some("p2")) => json!({ "tools": [] }),
                ("tools/call", _) => json!({ "task": task }),
                ("tasks/get", _) => task,
                _ => return None,
            },
        ))
    });
}

async fn restart(world: &mut World, keys: &str) {
    world.terminate();
    world.ended().await;
    std::fs::write(world.file("data/session.keys"), keys).unwrap();
    world.start().await;
}
