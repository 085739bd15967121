//! T1 to T9: bodies that two parsers could read differently, and bodies that are not a message. Each is sent to the real
//! binary, and none may reach the server.

use super::{ROOM, Scene};
use crate::support::bodies;
use crate::support::client::{Answer, Client};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::time::Duration;

/// Processor time for one body: the catalogue allows 50 ms, a debug build gets five times that.
const EFFORT: Duration = Duration::from_millis(250);

async fn post(client: &Client, body: impl Into<Bytes>) -> Answer {
    let reply = client.send("POST", client.base_headers(), body.into()).await.unwrap();
    Answer::read(reply).await.unwrap()
}

/// Sends each body in a session of Ana's: each gets a 400 with a JSON-RPC code, and nothing reaches the server.
async fn none_leaves<T: AsRef<[u8]>>(what: &str, bodies: Vec<T>, codes: &[i64]) {
    let mut scene = Scene::set("", &[]).await;
    let client = scene.world.connected("files", &scene.ana).await;
    scene.mark();
    assert!(!bodies.is_empty());
    let sending = async {
        for body in &bodies {
            let answer = post(&client, body.as_ref().to_vec()).await;
            let body = String::from_utf8_lossy(body.as_ref());
            let code = answer.message["error"]["code"].as_i64().unwrap_or_default();
            assert_eq!(answer.status, 400, "{body}: {answer:?}");
            assert!(codes.contains(&code), "{body}: {answer:?}");
            scene.nothing_reached_the_server(&body);
        }
    };
    let ((), cost) = scene.while_bob_is_served(sending).await;
    cost.is_bounded(what);
    // Connection and session still work, and each refusal of a known caller is recorded or counted.
    assert_eq!(post(&client, bodies::call(r#"{"text":"hi"}"#)).await.text(), "hi");
    scene.world.shipped().await;
    let refused: BTreeSet<String> = scene
        .world
        .audit("--decision deny")
        .iter()
        .map(|row| row["reason"].as_str().unwrap().to_owned())
        .collect();
    assert!(
        !refused.is_empty(),
        "{what}: somebody who is known is on record with what they tried"
    );
}

const INVALID_REQUEST: i64 = -32600;
const INVALID_PARAMS: i64 = -32602;
const PARSE_ERROR: i64 = -32700;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t1_a_member_twice_never_leaves() {
    none_leaves("members twice", bodies::twice(), &[INVALID_REQUEST]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t2_a_member_in_another_case_or_one_that_is_unknown_never_leaves() {
    let all = [bodies::folded(), bodies::strangers(), bodies::strange_params()].concat();
    none_leaves("other cases and strangers", all, &[INVALID_REQUEST, INVALID_PARAMS]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t3_what_is_no_request_never_leaves() {
    let all = [bodies::shapeless(), bodies::shapeless_params()].concat();
    none_leaves("no requests", all, &[INVALID_REQUEST, INVALID_PARAMS]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t4_what_is_not_plain_utf8_never_leaves() {
    none_leaves("no text", bodies::no_text(), &[PARSE_ERROR]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t5_what_is_not_json_to_its_end_never_leaves() {
    none_leaves("no JSON", bodies::no_json(), &[PARSE_ERROR]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t6_a_heavy_body_is_refused_at_little_cost() {
    const TIMES: u32 = 10;
    let mut scene = Scene::set("", &[]).await;
    let client = scene.world.connected("files", &scene.ana).await;
    scene.mark();
    for (what, body) in bodies::heavy() {
        let before = (scene.world.processor_time(), scene.world.resident());
        for _ in 0..TIMES {
            let answer = post(&client, body.clone()).await;
            assert_eq!((answer.status, answer.reason()), (400, "malformed_json"), "{what}");
        }
        let spent = scene.world.processor_time().saturating_sub(before.0) / TIMES;
        let grown = scene.world.resident().saturating_sub(before.1);
        assert!(spent < EFFORT, "{what}: {spent:?}");
        assert!(grown < ROOM, "{what}: {grown}");
    }
    // The largest body that is allowed is read cheaply too; that the tool has no such arguments is found after parsing.
    let wide = bodies::call(&bodies::wide(9_900, |index| format!("k{index}")));
    let before = scene.world.processor_time();
    assert_eq!(post(&client, wide).await.reason(), "invalid_arguments");
    let spent = scene.world.processor_time().saturating_sub(before);
    assert!(spent < 4 * EFFORT, "many members: {spent:?}");
    // Guardian may close the connection before the client has sent everything.
    if let Ok(reply) = client
        .send("POST", client.base_headers(), vec![b' '; 5 * 1024 * 1024].into())
        .await
    {
        assert_eq!(reply.status, 413);
    }
    scene.nothing_reached_the_server("heavy bodies");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t7_a_batch_never_leaves_in_any_version() {
    none_leaves("batches", bodies::batches(), &[INVALID_REQUEST]).await;
    let mut scene = Scene::set("", &[]).await;
    for version in ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"] {
        let mut client = scene.world.client("files").bearer(&scene.ana);
        client.version = version;
        assert!(client.handshake().await.is_result());
        scene.mark();
        for body in bodies::batches() {
            assert_eq!(post(&client, body).await.verdict(), "400 invalid_request", "{version}");
        }
        scene.nothing_reached_the_server(version);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t8_a_tool_is_named_exactly_or_not_at_all() {
    let mut scene = Scene::set("", &[]).await;
    let client = scene.world.connected("files", &scene.ana).await;
    scene.mark();
    let call = |name: &str| bodies::call(r#"{"text":"hi"}"#).replace("\"echo\"", &format!("\"{name}\""));
    for (written, _) in bodies::other_names() {
        let answer = post(&client, call(&written)).await;
        assert!(
            ["200 unknown_tool", "200 missing_scope"].contains(&answer.verdict().as_str()),
            "{written:?}: {answer:?}"
        );
        scene.nothing_reached_the_server(&written);
    }
    for written in ["echo", r"ech\u006f", r"\u0065\u0063\u0068\u006F"] {
        scene.mark();
        assert_eq!(post(&client, call(written)).await.text(), "hi");
        assert_eq!(scene.reached()[0].body, call(written), "as it was written");
    }
}

/// What `lenient_parsers` compares with; the rooms and the fuzz target define the same module.
mod reader {
    pub use neural_guardian::mcp::{Bounds, Message, parse_message};
}

#[path = "../../rooms/mcp/lenient_parsers.rs"]
mod lenient_parsers;

/// The fuzz target tries millions of bodies. Here some of each kind take the whole way: each is refused, or it arrives byte
/// for byte and every lenient parser finds in it what Guardian decided about.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t9_what_arrives_reads_alike_in_every_manner() {
    let mut scene = Scene::set("", &[]).await;
    let client = scene.world.connected("files", &scene.ana).await;
    scene.mark();
    let mut arrived = 0;
    let (mut accepted, mut refused) = (0, 0);
    for body in spoilt(&bodies::call(r#"{"text":"h\u0069"}"#)) {
        let answer = post(&client, body.clone()).await;
        let reached = scene.reached();
        let said = String::from_utf8_lossy(&body);
        match reached.len() - arrived {
            0 => {
                assert!(!answer.is_result(), "{said}: {answer:?}");
                refused += 1;
            }
            1 => {
                let received = &reached[arrived];
                assert_eq!(received.body, body, "what is sent is what was judged");
                assert_eq!(lenient_parsers::every_reading_agrees(&body), Ok(true), "{said}");
                accepted += 1;
            }
            more => panic!("{said} became {more} requests"),
        }
        arrived = reached.len();
    }
    assert!(accepted > 20 && refused > 400, "{accepted} accepted, {refused} refused");
}

/// The body with each byte left out, doubled, raised to upper case or replaced, and with a member inserted at each place.
fn spoilt(body: &str) -> Vec<Vec<u8>> {
    let bytes = body.as_bytes();
    let mut all = vec![bytes.to_vec()];
    for at in 0..bytes.len() {
        let (before, after) = (&bytes[..at], &bytes[at + 1..]);
        let with = |middle: &[u8]| [before, middle, after].concat();
        all.push(with(b""));
        all.push(with(&[bytes[at], bytes[at]]));
        all.push(with(&[bytes[at].to_ascii_uppercase()]));
        all.push(with(&[b" \"\\{}[]:,0\n"[at % 11]]));
        all.push(with(&[b"\"name\":\"query\",", &bytes[at..=at]].concat()));
    }
    all
}
