//! Limits on calls, bytes, headers, connections and time: each has a bound, and callers within it are served.

use crate::ana_reads_files;
use crate::support::http::{Address, Protocol};
use crate::support::on_both_stores;
use crate::support::upstream::Fault;
use crate::support::wait::{eventually, soon};
use crate::support::world::World;
use bytes::Bytes;
use serde_json::json;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

on_both_stores! {
    async fn rate_limit_answers_with_retry_after(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        world.set("limits.tools", "{ 'files/echo' = { rate = 2, per = '60s', burst = 2 } }");
        world.start().await;
        let legacy = world.connected("files", &key).await;
        let modern = world.client("files").modern().bearer(&key);

        for _ in 0..2 {
            assert_eq!(legacy.call("echo", json!({ "text": "hi" })).await.text(), "hi");
        }
        // A legacy client would lose its session on a 429.
        let answer = legacy.call("echo", json!({ "text": "hi" })).await;
        assert_eq!(answer.verdict(), "200 rate_limited");
        let wait = answer.data()["retry_after_ms"].as_u64().unwrap();
        assert!((1..=30_000).contains(&wait), "{wait}");
        for client in [&legacy, &modern] {
            let answer = client.call("echo", json!({ "text": "hi" })).await;
            assert_eq!(answer.verdict(), "200 rate_limited");
            let wait = answer.header("retry-after").unwrap();
            assert!(wait.parse::<u64>().unwrap() <= 30);
            assert_eq!(answer.message["result"]["isError"], json!(true));
            assert!(answer.text().contains(&format!("not before {wait} s. (record ")), "{answer:?}");
        }
        // Another tool has a limit of its own.
        assert_eq!(legacy.call("read_file", json!({ "path": "a" })).await.verdict(), "allowed");
        assert_eq!(files.calls().len(), 3);
    }

    async fn a_call_refused_for_another_reason_consumes_nothing(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        world.set("limits.tools", "{ 'files/read_file' = { rate = 1, per = '60s', burst = 1 } }");
        world.start().await;
        let client = world.connected("files", &key).await;

        for _ in 0..5 {
            assert_eq!(client.call("read_file", json!({ "path": "/etc/a" })).await.verdict(), "200 forbidden_by_policy");
        }
        assert_eq!(client.call("read_file", json!({ "path": "/srv/a" })).await.verdict(), "allowed");
        assert_eq!(client.call("read_file", json!({ "path": "/srv/a" })).await.verdict(), "200 rate_limited");
        assert_eq!(files.calls().len(), 1);
    }

    async fn too_many_calls_at_once_are_refused_and_the_slots_come_back(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        world.set("limits.max_concurrency_per_principal", "2");
        world.start().await;
        files.fault("echo", Fault::Hold);
        let mut held = Vec::new();
        for _ in 0..2 {
            let client = world.connected("files", &key).await;
            held.push(tokio::spawn(async move { client.call("echo", json!({ "text": "held" })).await.verdict() }));
        }
        files.after_calls(2).await;

        let client = Arc::new(world.client("files").modern().bearer(&key));
        assert_eq!(client.call("echo", json!({ "text": "one too many" })).await.verdict(), "200 too_many_in_flight");
        assert_eq!(files.calls().len(), 2);

        (0..2).for_each(|_| files.step());
        for call in held {
            assert_eq!(call.await.unwrap(), "allowed");
        }
        files.behave();
        assert_eq!(client.call("echo", json!({ "text": "hi" })).await.text(), "hi");
    }

    async fn a_body_or_head_too_large_is_refused_and_the_next_is_not(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        world.set("listen.limits.max_body_bytes", "10000").set("listen.limits.max_header_bytes", "16384");
        world.start().await;
        let client = world.connected("files", &key).await;

        let answer = client.call("echo", json!({ "text": "x".repeat(20_000) })).await;
        assert_eq!(answer.verdict(), "413 body_too_large");
        let fat = world.client("files").bearer(&key).with("x-fat", &"x".repeat(40_000));
        if let Ok(reply) = fat.send("POST", fat.base_headers(), Bytes::from_static(b"{}")).await {
            assert_eq!(reply.status, 431);
        }
        assert_eq!(files.calls().len(), 0);
        assert_eq!(client.call("echo", json!({ "text": "x".repeat(5_000) })).await.verdict(), "allowed");
    }

    async fn slow_clients_are_cut_and_the_others_served(world: World) {
        let (_files, key) = ana_reads_files(&mut world).await;
        world.set("listen.limits.handshake_timeout", "'1s'").set("listen.limits.header_timeout", "'1s'");
        world.set("listen.limits.body_timeout", "'1s'");
        world.start().await;
        let address = world.address(None, Protocol::Http1);
        let port = world.port;

        // Three clients that fall silent: before TLS, within the head, within the body.
        let mut silent = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let head = tokio::spawn(raw(address.clone(), format!("POST /mcp/files HTTP/1.1\r\nhost: localhost:{port}\r\nx-a")));
        let body = format!(
            "POST /mcp/files HTTP/1.1\r\nhost: localhost:{port}\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\naccept: application/json, text/event-stream\r\ncontent-length: 1000\r\n\r\n{{"
        );
        let body = tokio::spawn(raw(address, body));
        assert_eq!(world.connected("files", &key).await.call("echo", json!({ "text": "hi" })).await.text(), "hi");

        assert_eq!(soon("the silent one to be cut", silent.read(&mut [0; 100])).await.unwrap_or(0), 0);
        let answer = head.await.unwrap();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
        let answer = body.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_too_slow"), "{answer}");
    }

    async fn connections_are_counted_by_address(world: World) {
        let (_files, _) = ana_reads_files(&mut world).await;
        world.set("listen.limits.max_connections_per_address", "5");
        world.start().await;
        let address = world.address(None, Protocol::Http1);

        let mut open = Vec::new();
        for _ in 0..5 {
            open.push(address.socket().await.unwrap());
        }
        let one_too_many = async {
            let mut socket = address.socket().await.ok()?;
            socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await.ok()?;
            socket.read(&mut [0; 1]).await.ok().filter(|read| *read > 0)
        };
        assert_eq!(soon("the sixth to be refused", one_too_many).await, None);
        drop(open);
        eventually("a place to be free", async || address.socket().await.ok().map(drop)).await;
    }
}

async fn raw(address: Address, text: String) -> String {
    address.raw(text.as_bytes()).await
}
