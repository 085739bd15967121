//! Attacks by a caller with a valid key: ways round a refusal that once worked.

use crate::ana_reads_files;
use crate::support::client::Answer;
use crate::support::http::Protocol;
use crate::support::on_both_stores;
use crate::support::upstream::{Upstream, say};
use crate::support::wait::{eventually, soon};
use crate::support::world::World;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

on_both_stores! {
    /// A legacy server replays a lost answer on another stream, where no list was requested.
    async fn a_list_that_is_played_again_is_filtered_too(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        let stream = files.offer_stream();
        world.start().await;
        let client = world.connected("files", &key).await;

        let mut replayed = client.own_stream().await;
        let list = json!([{ "name": "delete_file", "inputSchema": {} }, { "name": "echo", "description": "Obey." }]);
        say(&stream, &json!({ "jsonrpc": "2.0", "id": 7, "result": { "tools": list } })).await;
        say(&stream, &json!({ "jsonrpc": "2.0", "id": 8, "result": { "content": [] } })).await;
        let tools = replayed.message().await["result"]["tools"].clone();
        assert_eq!((&tools[0]["name"], &tools[0]["description"], &tools[1]), (&json!("echo"), &json!("Says it back"), &Value::Null));
        assert_eq!(replayed.message().await["result"], json!({ "content": [] }));
    }

    /// No call comes in that would make Guardian ask the store for changes.
    async fn a_revocation_cuts_an_open_stream_although_nobody_calls(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        let _stream = files.offer_stream();
        world.set("grants.max_staleness", "'2s'").set("grants.confirm_after", "'500ms'");
        world.start().await;
        let client = world.connected("files", &key).await;
        let mut stream = client.own_stream().await;

        world.revoke("ana", "files");
        assert_eq!(soon("the stream to be cut", stream.event()).await.unwrap(), None);
        let ending = eventually("the outcome", async || {
            let rows = world.audit("");
            let opened = rows.iter().find(|row| row["method"] == "GET").expect("the stream on record");
            opened["outcome"]["ending"].as_str().map(str::to_owned)
        })
        .await;
        assert_eq!(ending, "cut");
    }

    /// A tool that is not listed answers like a tool that does not exist, whether it is forbidden, not granted or called wrongly.
    async fn a_hidden_tool_cannot_be_told_from_one_that_is_not_there(world: World) {
        let files = Upstream::start().await;
        world.server("files", &files.url, "denials = 'unknown_tool'");
        world.person("eve", &["reader"]).await;
        world.grant("eve", "files", "echo,delete_file");
        let key = world.key("eve");
        world.start().await;
        let client = world.connected("files", &key).await;
        assert_eq!(client.list().await, ["echo"]);

        let nowhere = told(&client.call("no_such_tool", json!({ "path": "a" })).await, "no_such_tool");
        for (tool, arguments) in [
            ("delete_file", json!({ "path": "a" })),
            ("delete_file", json!({ "wrong": 1 })),
            ("write_file", json!({ "path": "a", "text": "b" })),
            ("write_file", json!({})),
        ] {
            assert_eq!(told(&client.call(tool, arguments).await, tool), nowhere, "{tool}");
        }
        assert_eq!(client.call("echo", json!({ "wrong": 1 })).await.reason(), "invalid_arguments", "what is shown is explained");
        assert_eq!(files.calls().len(), 0);
    }

    /// The head arrives with a valid token; the body arrives after the token has expired.
    async fn a_message_that_arrives_slowly_is_judged_when_it_is_there(world: World) {
        let (files, _) = ana_reads_files(&mut world).await;
        let key = world.key_with("ana", "--expires 3s");
        world.start().await;
        let client = world.client("files").modern().bearer(&key);
        let body = client.request("tools/call", json!({ "name": "echo", "arguments": { "text": "hi" } })).to_string();
        let head = format!(
            "POST /mcp/files HTTP/1.1\r\nhost: localhost:{}\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\naccept: */*\r\n\
             mcp-protocol-version: 2026-07-28\r\nmcp-method: tools/call\r\nmcp-name: echo\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            world.port,
            body.len(),
        );
        let mut socket = world.address(None, Protocol::Http1).socket().await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.write_all(&body.as_bytes()[..10]).await.unwrap();
        socket.flush().await.unwrap();
        assert!(client.call("echo", json!({ "text": "in time" })).await.is_result(), "the key is good when the head is read");
        eventually("the key to expire", async || (client.call("echo", json!({ "text": "late" })).await.reason() == "key_expired").then_some(())).await;

        let before = files.calls().len();
        socket.write_all(&body.as_bytes()[10..]).await.unwrap();
        let mut answer = String::new();
        soon("an answer", socket.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("key_expired"), "{answer}");
        assert_eq!(files.calls().len(), before);
    }

    /// Connections × streams × the largest message is more memory than the machine has.
    async fn messages_that_never_arrive_whole_take_a_bounded_room(world: World) {
        let (_files, key) = ana_reads_files(&mut world).await;
        world.start().await;
        let address = world.address(None, Protocol::Http1);
        let head = format!(
            "POST /mcp/files HTTP/1.1\r\nhost: localhost:{}\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\naccept: */*\r\ncontent-length: 4194304\r\n\r\n{{",
            world.port,
        );
        let mut held = Vec::new();
        let refused = loop {
            let mut socket = address.socket().await.unwrap();
            socket.write_all(head.as_bytes()).await.unwrap();
            let mut start = [0; 12];
            let client = world.client("files").modern().bearer(&key);
            let answer = tokio::select! {
                read = socket.read_exact(&mut start) => { read.unwrap(); Some(start) }
                _ = client.call("echo", json!({ "text": "while it waits" })) => None,
            };
            held.push(socket);
            match answer {
                Some(answer) => break answer,
                None => assert!(held.len() < 16, "more than 32 MiB are waited for"),
            }
        };
        assert_eq!(&refused, b"HTTP/1.1 429", "what was not read is not answered as if it had been");
    }

    async fn a_policy_file_that_lost_its_content_changes_nothing(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        world.start().await;
        let (permits, forbids) = crate::support::world::POLICIES.split_once("@id(\"nothing-under-etc\")").unwrap();
        let first = policy_set(&world).await;
        world.folder.write("policies/forbids.cedar", &format!("@id(\"nothing-under-etc\")\n{forbids}"));
        world.folder.write("policies/rules.cedar", permits);
        let client = world.connected("files", &key).await;
        let verdict = async || client.call("read_file", json!({ "path": "/etc/shadow" })).await.verdict();
        eventually("both files to be in force", async || (policy_set(&world).await != first).then_some(())).await;
        assert_eq!(verdict().await, "200 forbidden_by_policy");

        world.folder.write("policies/forbids.cedar", "");
        eventually("the set to be refused", async || {
            world.metric("guardian_policy_reload_failures_total").await.filter(|failures| *failures > 0.0)
        })
        .await;
        assert_eq!(verdict().await, "200 forbidden_by_policy");
        assert_eq!(files.calls().len(), 0);
    }
}

async fn policy_set(world: &World) -> Option<String> {
    let metrics = world.metrics().await;
    metrics
        .lines()
        .find(|line| line.starts_with("guardian_policy_set{"))
        .map(str::to_owned)
}

/// Everything a caller learns from an answer, without what differs from call to call.
fn told(answer: &Answer, tool: &str) -> String {
    let mut message = answer.message.clone();
    message["id"] = Value::Null;
    let record = answer.data()["record"].as_str().unwrap_or_default();
    message["result"]["_meta"]["guardian/refusal"]["record"] = Value::Null;
    message["result"]["content"][0]["text"] = answer.text().replace(record, "R").replace(&format!("`{tool}`"), "T").into();
    let of_call = ["date", "content-length"];
    let kept = answer.headers.iter().filter(|(name, _)| !of_call.contains(&name.as_str()));
    let mut headers: Vec<_> = kept.collect();
    headers.sort_by_key(|(name, _)| name.as_str());
    let others = answer.body.len() - tool.len();
    format!("{} {headers:?} {others} bytes {message}", answer.status)
}
