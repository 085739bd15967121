//! Servers of the HTTP+SSE transport of 2024-11-05 (one stream for all messages, one URL to post to), offered to clients as
//! Streamable HTTP.

use crate::support::sdk_clients::{Kind, RealClient};
use crate::support::stdio::{Notes, Sse, hold};
use crate::support::stores::Engine;
use crate::support::wait::eventually;
use crate::support::world::World;
use bytes::Bytes;
use serde_json::json;

async fn world(arguments: &[&str]) -> (World, Sse, Notes) {
    let mut world = World::new(Engine::Sqlite).await;
    let (sse, notes) = Notes::sse(&mut world, arguments).await;
    world.start().await;
    (world, sse, notes)
}

#[tokio::test]
async fn an_old_server_is_a_server_like_any_other() {
    let (world, _sse, notes) = world(&[]).await;
    let client = world.connected("notes", &notes.ana).await;
    assert!(client.list().await.contains(&"echo".to_owned()));
    assert_eq!(client.call("echo", json!({ "text": "hi" })).await.text(), "hi");
    assert_eq!(
        client.call("echo", json!({ "text": "plot" })).await.reason(),
        "forbidden_by_policy"
    );
    let calls: Vec<_> = notes
        .messages()
        .into_iter()
        .filter(|message| message["method"] == "tools/call")
        .collect();
    assert_eq!(calls.len(), 1, "{calls:?}");

    let mut held = hold(&client, json!("h"), "x").await;
    assert_eq!(held.message().await["params"], json!({ "progressToken": "h", "progress": 1 }));
    assert_eq!(client.call("release", json!({ "name": "x" })).await.text(), "released");
    assert_eq!(held.message().await["params"]["progress"], 2);
    assert_eq!(held.message().await["id"], "h");
    assert_eq!(held.event().await.unwrap(), None);

    let headers = client.stream_headers();
    let mut stream = client.alike().send("GET", headers.clone(), Bytes::new()).await.unwrap();
    assert_eq!(client.call("notify", json!({})).await.text(), "notified");
    assert_eq!(stream.message().await["method"], "notifications/message");
    assert_eq!(stream.message().await["method"], "notifications/tools/list_changed");

    // Guardian sends headers of its own; the caller's credential is not among them.
    let heads: Vec<_> = notes.recorded().into_iter().filter(|line| !line["verb"].is_null()).collect();
    assert!(
        heads.iter().all(|line| line["headers"]["authorization"] == "Bearer own"),
        "{heads:?}"
    );
    assert!(!serde_json::to_string(&heads).unwrap().contains(&notes.ana));

    assert_eq!(
        client.alike().send("DELETE", headers, Bytes::new()).await.unwrap().status,
        200
    );
    assert_eq!(stream.event().await.unwrap(), None);
    eventually("the server's stream to be closed", async || {
        notes.recorded().iter().any(|line| !line["closed"].is_null()).then_some(())
    })
    .await;
    assert_eq!(client.call("echo", json!({ "text": "hi" })).await.status, 404);
}

#[tokio::test]
async fn each_session_has_a_stream_and_the_same_ids_do_not_meet() {
    let (world, _sse, notes) = world(&[]).await;
    let (ana, bob) = notes.both(&world).await;
    let mut anas = hold(&ana, json!(1), "anas").await;
    let mut bobs = hold(&bob, json!(1), "bobs").await;
    anas.message().await;
    bobs.message().await;
    assert_eq!(ana.call("release", json!({ "name": "bobs" })).await.text(), "released");
    assert_eq!(bobs.message().await["params"]["progress"], 2);
    assert_eq!(bobs.message().await["result"]["content"][0]["text"], "held bobs");
    assert_eq!(bob.call("release", json!({ "name": "anas" })).await.text(), "released");
    assert_eq!(anas.message().await["params"]["progress"], 2);
    assert_eq!(anas.message().await["result"]["content"][0]["text"], "held anas");
}

#[tokio::test]
async fn a_stream_that_breaks_ends_its_calls_and_its_session() {
    let (world, _sse, notes) = world(&[]).await;
    let client = world.connected("notes", &notes.ana).await;
    let answer = client.call("flood", json!({})).await;
    assert_eq!(answer.reason(), "upstream_broken", "the server hung up: {answer:?}");
    assert_eq!(client.call("echo", json!({ "text": "hi" })).await.status, 404);
    let again = world.connected("notes", &notes.ana).await;
    assert_eq!(again.call("echo", json!({ "text": "hi" })).await.text(), "hi");
    world.shipped().await;
    assert_eq!(world.audit("--tool flood")[0]["outcome"]["ending"], "broken");
}

/// The URL for messages must be on the server's own origin, or nothing is posted.
#[tokio::test]
async fn a_server_that_sends_messages_elsewhere_is_not_spoken_to() {
    let (world, _sse, notes) = world(&["elsewhere"]).await;
    let mut client = world.client("notes").bearer(&notes.ana);
    let answer = client.handshake().await;
    assert_eq!(answer.reason(), "upstream_broken");
    assert!(
        answer.message["error"]["message"]
            .as_str()
            .unwrap()
            .contains("another origin"),
        "{answer:?}"
    );
    assert!(
        notes
            .recorded()
            .iter()
            .all(|line| line["verb"] == "GET" || line["verb"].is_null())
    );
}

#[tokio::test]
async fn real_clients_use_the_official_transport() {
    let mut world = World::new(Engine::Sqlite).await;
    let sse = Sse::start("sdk-server.mjs", &[], &world.file("record"));
    world.server("notes", &format!("http://127.0.0.1:{}/sse", sse.port), "transport = 'sse'");
    world.policies("@id(\"r\") permit (principal, action in Guardian::Action::\"read_only\", resource);");
    world.person("ana", &["reader"]).await;
    world.grant("ana", "notes", "echo,slow");
    let key = world.key("ana");
    world.start().await;
    for kind in [Kind::TypescriptV1, Kind::PythonV1] {
        let mut client = RealClient::start(kind, &world.file("ca.pem"), &world.folder);
        let connected = client.connect(&world.resource("notes"), &key, "legacy").await;
        let listed = client.list().await;
        let echoed = client.call("echo", json!({ "text": "hi" })).await;
        let slow = client.call("slow", json!({})).await;
        let seen = format!("{connected} {listed} {echoed} {slow}");
        assert!(
            listed.to_string().contains("echo") && !listed.to_string().contains("delete_file"),
            "{kind:?}: {seen}"
        );
        assert!(
            echoed.to_string().contains("hi") && slow.to_string().contains("done"),
            "{kind:?}: {seen}"
        );
    }
}
