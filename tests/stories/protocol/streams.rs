//! Streamed answers: passed on frame by frame, and ended properly whichever side goes away.

use crate::ana_reads_files;
use crate::support::client::Client;
use crate::support::http::{Protocol, Reply};
use crate::support::on_both_stores;
use crate::support::upstream::{Fault, Scripted};
use crate::support::world::World;
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

on_both_stores! {
    /// The server sends an event only after the client got the one before: a proxy that buffers would hang.
    async fn a_streamed_answer_arrives_frame_by_frame(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        world.start().await;
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let mut client = Client::new(world.address(None, protocol), "files").bearer(&key);
            client.handshake().await;

            let mut stream = slow(&client, 3).await;
            assert_eq!(stream.header("content-type"), Some("text/event-stream"));
            for number in 1..=3 {
                files.step();
                let event = stream.message().await;
                assert_eq!(event["params"], json!({ "progressToken": "p", "progress": number }), "{protocol:?}");
            }
            files.step();
            assert_eq!(stream.message().await["result"]["content"][0]["text"], "3 events");
            assert_eq!(stream.event().await.unwrap(), None);
        }
    }

    async fn an_answer_as_a_stream_of_one_event_is_an_answer(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        files.fault("echo", Fault::Stream);
        world.start().await;

        let client = world.connected("files", &key).await;
        assert_eq!(client.call("echo", json!({ "text": "hi" })).await.text(), "hi");
    }

    /// Clients of the TypeScript SDK wait for ever on a stream that just ends.
    async fn a_stream_the_server_breaks_off_ends_with_an_error(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        files.fault("echo", Fault::Break);
        world.start().await;

        let client = world.connected("files", &key).await;
        let request = client.request("tools/call", json!({ "name": "echo", "arguments": { "text": "hi" } }));
        let mut stream = client.open(&request).await.unwrap();
        assert_eq!(stream.message().await["method"], "notifications/progress");
        files.step();
        let last = stream.message().await;
        assert_eq!((&last["id"], &last["error"]["data"]["reason"]), (&request["id"], &json!("upstream_broken")));
        assert_eq!(stream.event().await.unwrap(), None);
        world.shipped().await;
        assert_eq!(world.audit("--tool echo")[0]["outcome"]["ending"], "broken");
    }

    async fn a_client_that_goes_away_is_on_record(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        world.start().await;
        let client = world.client("files").modern().bearer(&key);

        let mut stream = slow(&client, 2).await;
        files.step();
        stream.message().await;
        drop(stream);
        drop(client);

        crate::support::wait::eventually("the outcome", async || {
            files.step();
            let rows = world.audit("--tool slow");
            rows.first().and_then(|row| row["outcome"]["ending"].as_str().map(str::to_owned)).map(|ending| assert_eq!(ending, "client_closed"))
        })
        .await;
    }

    /// Intermediaries close a connection that is silent for a minute; an SSE comment prevents that and clients ignore it.
    async fn a_silent_stream_is_kept_alive(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        world.set("listen.limits.keep_alive", "'100ms'");
        world.start().await;
        let client = world.connected("files", &key).await;
        let mut stream = slow(&client, 1).await;
        for _ in 0..3 {
            assert_eq!(stream.piece().await.unwrap().unwrap(), ":\n\n");
        }
        files.step();
        assert_eq!(stream.message().await["method"], "notifications/progress");
        let server = files.offer_stream();
        let mut own = client.own_stream().await;
        assert_eq!(own.piece().await.unwrap().unwrap(), ":\n\n");
        drop(server);
        files.step();
        assert!(stream.message().await.get("result").is_some());
    }

    /// Guardian reads from the server only as fast as the client reads.
    async fn a_client_that_does_not_read_costs_no_memory(world: World) {
        const PIECE: usize = 1024 * 1024;
        const OFFERED: usize = 1024;
        const ROOM: u64 = 64 * 1024 * 1024;
        let (files, key) = ana_reads_files(&mut world).await;
        world.start().await;
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let (send, events) = tokio::sync::mpsc::channel(1);
            let events = std::sync::Mutex::new(Some(events));
            files.script(move |received| received.tool().and_then(|_| events.lock().unwrap().take()).map(Scripted::Stream));
            let taken = Arc::new(AtomicUsize::new(0));
            let (count, event) = (taken.clone(), note(PIECE));
            let server = tokio::spawn(async move {
                for _ in 0..OFFERED {
                    if send.send(Ok(event.clone())).await.is_err() {
                        return true;
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
                false
            });
            let mut client = Client::new(world.address(None, protocol), "files").bearer(&key);
            client.handshake().await;
            let before = world.resident();
            let request = client.request("tools/call", json!({ "name": "echo", "arguments": { "text": "hi" } }));
            let stream = client.open(&request).await.unwrap();

            let mut looks = (0, 0);
            crate::support::wait::eventually("the server to be held back", async || {
                let now = taken.load(Ordering::Relaxed);
                looks = if now == looks.0 { (now, looks.1 + 1) } else { (now, 0) };
                (now > 0 && looks.1 > 60).then_some(())
            })
            .await;
            let (taken, grown) = (taken.load(Ordering::Relaxed), world.resident().saturating_sub(before));
            assert!(taken < 64, "{protocol:?}: {taken} of {OFFERED} pieces were taken");
            assert!(grown < ROOM, "{protocol:?}: {grown} bytes more are held");
            drop(stream);
            drop(client);
            assert!(server.await.unwrap(), "the server is hung up on");
        }
        crate::support::wait::eventually("the outcomes", async || {
            let rows = world.audit("--tool echo");
            let closed = rows.iter().filter(|row| row["outcome"]["ending"] == "client_closed").count();
            (closed == 2).then_some(())
        })
        .await;
    }

    /// No part of such a stream reaches the client as an answer, and each is recorded.
    async fn what_a_server_streams_amiss_ends_with_an_error(world: World) {
        let files = crate::support::upstream::Upstream::start().await;
        world.server("files", &files.url, "max_answer_bytes = 65536\nidle_timeout = '300ms'");
        let key = crate::ana(&mut world).await;
        world.start().await;
        let client = world.connected("files", &key).await;
        let result = |id: &Value| format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[]}}}}"#);
        let amiss: Vec<(&str, Bytewise, &str)> = vec![
            ("a member twice", Box::new(|id| format!("data: {{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"a\":1,\"a\":2}}}}\n\n").into()), "upstream_broken"),
            ("another id", Box::new(move |_| format!("data: {}\n\n", result(&json!(99_999))).into()), "upstream_broken"),
            ("a batch", Box::new(move |id| format!("data: [{}]\n\n", result(id)).into()), "upstream_broken"),
            ("too large an event", Box::new(|_| format!("data: {}\n\n", "x".repeat(70_000)).into()), "upstream_broken"),
            ("an event without an end", Box::new(|_| format!("data: {}", "x".repeat(70_000)).into()), "upstream_broken"),
            ("not UTF-8", Box::new(|id| [format!("data: {{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":\"").into_bytes(), vec![0xff], b"\"}\n\n".to_vec()].concat()), "upstream_broken"),
            ("silence in an event", Box::new(|_| b"data: {".to_vec()), "upstream_timeout"),
        ];
        for (what, bytes, told) in &amiss {
            let (send, events) = tokio::sync::mpsc::channel(1);
            let events = std::sync::Mutex::new(Some(events));
            files.script(move |received| received.tool().and_then(|_| events.lock().unwrap().take()).map(Scripted::Stream));
            let request = client.request("tools/call", json!({ "name": "echo", "arguments": { "text": "hi" } }));
            send.send(Ok(bytes(&request["id"]).into())).await.unwrap();
            let answer = client.post(&request).await;
            assert_eq!((answer.reason(), &answer.message["id"]), (*told, &request["id"]), "{what}: {answer:?}");
            drop(send);
        }
        // Whatever follows the answer is cut off silently.
        files.script(move |received| {
            received.tool()?;
            let answer = |text: &str| json!({ "jsonrpc": "2.0", "id": received.message["id"], "result": { "content": [{ "type": "text", "text": text }] } });
            Some(Scripted::Events(vec![answer("first"), answer("second")]))
        });
        let answer = client.call("echo", json!({ "text": "hi" })).await;
        assert!(answer.text() == "first" && !answer.body.contains("second"), "{answer:?}");
        world.shipped().await;
        let rows = world.audit("--tool echo");
        for (row, (what, _, told)) in rows.iter().zip(&amiss) {
            let expected = if *told == "upstream_timeout" { "timed_out" } else { "broken" };
            assert_eq!((&row["outcome"]["ending"], &row["outcome"]["executed"]), (&json!(expected), &json!("unknown")), "{what}: {row}");
        }
    }
}

/// Builds the bytes of an answer to the request with this id.
type Bytewise = Box<dyn Fn(&Value) -> Vec<u8>>;

/// An event of about this many bytes.
fn note(bytes: usize) -> Bytes {
    let message =
        json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": { "level": "info", "data": "x".repeat(bytes) } });
    Bytes::from(format!("data: {message}\n\n"))
}

async fn slow(client: &Client, events: u32) -> Reply {
    let params = json!({ "name": "slow", "arguments": { "events": events }, "_meta": { "progressToken": "p" } });
    let mut request = client.request("tools/call", params);
    request["params"]["_meta"]["progressToken"] = json!("p");
    let reply = client.open(&request).await.unwrap();
    assert_eq!(reply.status, 200);
    reply
}
