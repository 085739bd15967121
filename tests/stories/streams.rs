//! Answers that take their time: passed on frame by frame, ended properly whoever goes away.

use crate::ana_reads_files;
use crate::support::client::Client;
use crate::support::http::{Protocol, Reply};
use crate::support::on_both_stores;
use crate::support::upstream::Fault;
use crate::support::world::World;
use serde_json::{Value, json};

on_both_stores! {
    /// The server sends an event only after the one before has arrived: whoever buffers hangs.
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
                let event = next(&mut stream).await;
                assert_eq!(event["params"], json!({ "progressToken": "p", "progress": number }), "{protocol:?}");
            }
            files.step();
            assert_eq!(next(&mut stream).await["result"]["content"][0]["text"], "3 events");
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
        assert_eq!(next(&mut stream).await["method"], "notifications/progress");
        files.step();
        let last = next(&mut stream).await;
        assert_eq!((&last["id"], &last["error"]["data"]["reason"]), (&request["id"], &json!("upstream_broken")));
        assert_eq!(stream.event().await.unwrap(), None);
        world.shipped().await;
        assert_eq!(world.audit("--tool echo")[0]["outcome"]["ending"], "failed");
    }

    async fn a_client_that_goes_away_is_on_record(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        world.start().await;
        let client = world.client("files").modern().bearer(&key);

        let mut stream = slow(&client, 2).await;
        files.step();
        next(&mut stream).await;
        drop(stream);
        drop(client);

        crate::support::wait::eventually("the outcome", async || {
            files.step();
            let rows = world.audit("--tool slow");
            rows.first().and_then(|row| row["outcome"]["ending"].as_str().map(str::to_owned)).map(|ending| assert_eq!(ending, "client_closed"))
        })
        .await;
    }
}

async fn slow(client: &Client, events: u32) -> Reply {
    let params = json!({ "name": "slow", "arguments": { "events": events }, "_meta": { "progressToken": "p" } });
    let mut request = client.request("tools/call", params);
    request["params"]["_meta"]["progressToken"] = json!("p");
    let reply = client.open(&request).await.unwrap();
    assert_eq!(reply.status, 200);
    reply
}

async fn next(stream: &mut Reply) -> Value {
    let event = stream.event().await.unwrap().expect("another event");
    serde_json::from_str(&event).unwrap()
}
