//! T10, T24 and T36: wrong events from a server, streams that hang, are abandoned or never read, and streams whose
//! authorization ends before they do.

use super::Scene;
use crate::support::client::Client;
use crate::support::hostile_server::Then;
use crate::support::http::{Protocol, Reply};
use crate::support::issuer::Issuer;
use crate::support::stores::Engine;
use crate::support::upstream::{Upstream, say};
use crate::support::wait::{eventually, soon};
use crate::support::world::World;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use time::OffsetDateTime;

const JSON: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n";
const EVENTS: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
const ANSWER: &str =
    r#"{"jsonrpc":"2.0","id":"seven","result":{"content":[{"type":"text","text":"hi"}],"resultType":"complete"}}"#;
/// The largest answer and event in these stories.
const LIMITS: &str = "max_answer_bytes = 65536\nidle_timeout = '300ms'\nfirst_byte_timeout = '5s'";

/// Messages that do not answer the call `seven`, or answer it in two ways.
fn no_answers() -> Vec<(&'static str, Vec<u8>)> {
    let instead = |from: &str, to: &str| {
        assert!(ANSWER.contains(from), "{from}");
        ANSWER.replacen(from, to, 1).into_bytes()
    };
    let inside = |text: &str| instead(r#"{"type":"text","text":"hi"}"#, text);
    let broken = |bytes: &[u8]| {
        let (before, after) = ANSWER.split_once("hi").unwrap();
        [before.as_bytes(), bytes, after.as_bytes()].concat()
    };
    let wide: Vec<String> = (0..20_000).map(|number| format!("\"{number}\":1")).collect();
    vec![
        ("a member twice", instead(r#""id":"seven""#, r#""id":"six","id":"seven""#)),
        ("a result twice", instead(r#""result":"#, r#""result":{},"result":"#)),
        (
            "a member twice, once escaped",
            instead(r#""id":"seven""#, r#""\u0069d":"six","id":"seven""#),
        ),
        (
            "a member twice in the result",
            inside(r#"{"type":"text","text":"hi","text":"ho"}"#),
        ),
        (
            "a member in two cases",
            instead(r#""id":"seven""#, r#""ID":"six","id":"seven""#),
        ),
        ("a result in two cases", instead(r#""result":"#, r#""Result":{},"result":"#)),
        ("another id", instead("seven", "six")),
        ("an id of another type", instead(r#""seven""#, "7")),
        ("no id", instead(r#""id":"seven","#, "")),
        ("a null id", instead(r#""seven""#, "null")),
        ("the id in a list", instead(r#""seven""#, r#"["seven"]"#)),
        (
            "a result and an error",
            instead(r#""result":"#, r#""error":{"code":1,"message":"no"},"result":"#),
        ),
        ("neither result nor error", br#"{"jsonrpc":"2.0","id":"seven"}"#.to_vec()),
        ("a batch of one", format!("[{ANSWER}]").into()),
        ("a batch", format!("[{ANSWER},{ANSWER}]").into()),
        ("no object", b"\"seven\"".to_vec()),
        ("another version", instead("2.0", "1.0")),
        ("no version", instead(r#""jsonrpc":"2.0","#, "")),
        (
            "an error that is a text",
            br#"{"jsonrpc":"2.0","id":"seven","error":"no"}"#.to_vec(),
        ),
        ("half of it", ANSWER.as_bytes()[..40].to_vec()),
        ("something behind it", format!("{ANSWER}{{}}").into()),
        ("a second answer behind it", format!("{ANSWER} {ANSWER}").into()),
        ("a byte order mark", format!("\u{feff}{ANSWER}").into()),
        ("not UTF-8", broken(&[0xff])),
        ("an overlong slash", broken(&[0xc0, 0xaf])),
        ("a surrogate in UTF-8", broken(&[0xed, 0xa0, 0x80])),
        ("half a surrogate", broken(br"\ud800")),
        ("a raw NUL", broken(&[0])),
        ("NaN", inside("NaN")),
        ("a hexadecimal number", inside("0x10")),
        ("a number with a leading zero", inside("01")),
        ("a comment", inside("1 /* one */")),
        ("a comma too many", inside("1,")),
        ("five thousand digits", inside(&"1".repeat(5_000))),
        ("too deep", inside(&format!("{}1{}", "[".repeat(12_000), "]".repeat(12_000)))),
        ("too deep and never closed", inside(&"[".repeat(30_000))),
        ("too many members", inside(&format!("{{{}}}", wide.join(",")))),
        ("too large", inside(&format!("\"{}\"", "x".repeat(70_000)))),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t10_what_is_no_answer_ends_the_call_with_an_error() {
    let (scene, hostile) = Scene::with_hostile_server(LIMITS, &[]).await;
    let legacy = scene.world.connected("files", &scene.ana).await;
    let modern = scene.ana();
    let clients = [("legacy", &legacy), ("modern", &modern)];
    let no_answers = no_answers();
    let mut wrong = Vec::new();
    for (what, message) in &no_answers {
        for (era, client) in clients {
            let event = [b"data: ", &message[..], b"\n\n"].concat();
            for (form, head, body) in [("JSON", JSON, message), ("events", EVENTS, &event)] {
                hostile.act([head.as_bytes(), body].concat(), Then::Close);
                let answer = client.post(&scene.echo(client)).await;
                if (answer.reason(), &answer.message["id"]) != ("upstream_broken", &json!("seven"))
                    || answer.body.contains("\"hi\"")
                {
                    wrong.push(format!(
                        "{what} as {form}, {era}: {} {}",
                        answer.status,
                        answer.body.chars().take(300).collect::<String>()
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for row in scene.outcomes(4 * no_answers.len()).await {
        assert_eq!(row["outcome"]["ending"], "broken", "{row}");
    }
    hostile.act(format!("{JSON}{ANSWER}"), Then::Close);
    assert_eq!(modern.post(&scene.echo(&modern)).await.text(), "hi", "an answer is one");
}

/// Each stream contains something that a client cannot follow, or something behind the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t10_a_stream_that_cannot_be_followed_ends_and_so_does_one_that_was_answered() {
    let (scene, hostile) = Scene::with_hostile_server(LIMITS, &[]).await;
    let client = scene.ana();
    let line = format!("data: {ANSWER}");
    let drip = |text: &str| Then::Drip(text.into(), Duration::from_millis(20));
    let request = r#"{"jsonrpc":"2.0","id":1,"method":"sampling/createMessage","params":{}}"#;
    for (what, says, then, told) in [
        ("an event that does not end", line.clone(), Then::Close, "upstream_broken"),
        (
            "an event that does not end and goes on",
            "data: ".into(),
            Then::Repeat(vec![b'x'; 8_192], 20, Vec::new()),
            "upstream_broken",
        ),
        (
            "lines without end",
            String::new(),
            Then::Repeat(b"data: x\n".repeat(1_000), 100, Vec::new()),
            "upstream_broken",
        ),
        (
            "an event larger than is allowed",
            format!("data: {}\n\n", "x".repeat(70_000)),
            Then::Hold,
            "upstream_broken",
        ),
        (
            "a comment larger than is allowed",
            format!(": {}\n\n", "x".repeat(70_000)),
            Then::Hold,
            "upstream_broken",
        ),
        ("no line end, byte by byte", "data: ".into(), drip("x"), "upstream_timeout"),
        ("a comment, byte by byte", ": ".into(), drip("x"), "upstream_timeout"),
        ("silence", String::new(), Then::Hold, "upstream_timeout"),
        ("silence in an event", "data: {".into(), Then::Hold, "upstream_timeout"),
        ("the end, unanswered", ": hello\n\n".into(), Then::Close, "upstream_broken"),
        ("a question", format!("data: {request}\n\n"), Then::Hold, "upstream_broken"),
    ] {
        hostile.act(format!("{EVENTS}{says}"), then);
        let answer = client.post(&scene.echo(&client)).await;
        assert_eq!(
            (answer.reason(), &answer.message["id"]),
            (told, &json!("seven")),
            "{what}: {answer:?}"
        );
    }
    // Whatever follows the answer is cut off silently and does not keep the stream open.
    for (what, behind) in [
        ("the same again", format!("{line}\n\n")),
        ("another answer", format!("{}\n\n", line.replace("hi", "ho"))),
        ("an answer to nobody", format!("{}\n\n", line.replace("seven", "six"))),
        ("no message", "data: ho\n\n".into()),
        ("a question", format!("data: {request}\n\n")),
    ] {
        hostile.act(format!("{EVENTS}{line}\n\n{behind}"), Then::Hold);
        let answer = client.post(&scene.echo(&client)).await;
        assert_eq!(answer.text(), "hi", "{what}");
        assert_eq!(answer.body.matches("data:").count(), 1, "{what}: {answer:?}");
    }
}

/// A million events, each too small for any size limit: they are passed on and nothing is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t10_a_million_tiny_events_leave_memory_as_it_was() {
    const EVENTS_SENT: usize = 1_000_000;
    const IN_ONE: usize = 1_000;
    let (scene, hostile) = Scene::with_hostile_server(LIMITS, &[]).await;
    let note = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":1}}"#;
    for (what, event, count) in [
        ("comments", ":\n\n".to_owned(), EVENTS_SENT),
        ("fields without data", "retry: 1\n\n".to_owned(), EVENTS_SENT / 10),
        ("notifications", format!("data: {note}\n\n"), EVENTS_SENT / 100),
    ] {
        let all = Then::Repeat(
            event.repeat(IN_ONE).into(),
            count / IN_ONE,
            format!("data: {ANSWER}\n\n").into(),
        );
        hostile.act(EVENTS, all);
        let client = scene.ana();
        let request = scene.echo(&client);
        let (length, cost) = scene
            .while_bob_is_served(async {
                let mut stream = client.open(&request).await.unwrap();
                let mut length = 0;
                while let Some(piece) = stream.piece().await.unwrap() {
                    length += piece.len();
                }
                length
            })
            .await;
        assert_eq!(
            length,
            event.len() * count + format!("data: {ANSWER}\n\n").len(),
            "{what}: each arrives"
        );
        cost.is_bounded(what);
    }
    for row in scene.outcomes(3).await {
        assert_eq!(row["outcome"]["ending"], "done", "{row}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t24_a_stream_that_hangs_in_the_middle_of_an_event_is_given_up_on() {
    let (scene, hostile) = Scene::with_hostile_server(LIMITS, &[]).await;
    let note = r#"data: {"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":1}}"#;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let modern = Client::new(scene.world.address(None, protocol), "files")
            .modern()
            .bearer(&scene.ana);
        let mut legacy = Client::new(scene.world.address(None, protocol), "files").bearer(&scene.ana);
        legacy.handshake().await;
        for client in [modern, legacy] {
            hostile.act(format!("{EVENTS}{note}\n\ndata: {{\"jsonrpc\""), Then::Hold);
            let hung_up = *hostile.hung_up().borrow();
            let mut stream = client.open(&scene.echo(&client)).await.unwrap();
            let first = stream.event().await.unwrap().expect("what came before");
            assert!(first.contains("notifications/message"), "{first}");
            let last: Value = serde_json::from_str(&stream.event().await.unwrap().expect("why it ends")).unwrap();
            assert_eq!(
                (&last["id"], &last["error"]["data"]["reason"]),
                (&json!("seven"), &json!("upstream_timeout"))
            );
            assert_eq!(stream.event().await.unwrap(), None);
            soon(
                "the server to be hung up on",
                hostile.hung_up().wait_for(|count| *count > hung_up),
            )
            .await
            .unwrap();
        }
    }
    for row in scene.outcomes(4).await {
        assert_eq!(row["outcome"]["ending"], "timed_out", "{row}");
    }
}

/// How a client leaves.
#[derive(Debug, Clone, Copy)]
enum Leaving {
    BeforeTheHead,
    InTheStream,
}

/// The fastest of three tries counts, so that other load on the machine is not measured.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t24_a_client_that_goes_takes_its_call_along_within_a_second() {
    const BOUND: Duration = Duration::from_secs(1);
    let (scene, hostile) = Scene::with_hostile_server("", &[]).await;
    let note = "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{\"level\":\"info\",\"data\":1}}\n\n";
    let mut left = 0;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        for leaving in [Leaving::BeforeTheHead, Leaving::InTheStream] {
            let says = match leaving {
                Leaving::BeforeTheHead => String::new(),
                Leaving::InTheStream => format!("{EVENTS}{note}"),
            };
            hostile.act(says, Then::Hold);
            let mut fastest = Duration::MAX;
            for _ in 0..3 {
                let client = Client::new(scene.world.address(None, protocol), "files")
                    .modern()
                    .bearer(&scene.ana);
                let (calls, hung_up) = (hostile.calls().len(), *hostile.hung_up().borrow());
                let request = scene.echo(&client);
                let call = async { client.open(&request).await.unwrap() };
                let mut call = Box::pin(call);
                let mut stream = None;
                match leaving {
                    Leaving::BeforeTheHead => {
                        let arrived = eventually("the call to arrive", async || (hostile.calls().len() > calls).then_some(()));
                        tokio::select! {
                            () = arrived => (),
                            _ = &mut call => panic!("there is no answer yet"),
                        }
                    }
                    Leaving::InTheStream => {
                        let mut opened = call.as_mut().await;
                        assert!(opened.event().await.unwrap().is_some());
                        stream = Some(opened);
                    }
                }
                let begun = Instant::now();
                drop(call);
                drop(stream);
                drop(client);
                soon(
                    "the server to be hung up on",
                    hostile.hung_up().wait_for(|count| *count > hung_up),
                )
                .await
                .unwrap();
                fastest = fastest.min(begun.elapsed());
                left += 1;
            }
            assert!(fastest < BOUND, "{protocol:?} {leaving:?}: {fastest:?}");
        }
    }
    for row in scene.outcomes(left).await {
        assert_eq!(row["outcome"]["ending"], "client_closed", "{row}");
    }
}

/// One of many streams on a connection that stays open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t24_one_stream_that_is_reset_takes_only_its_own_call_along() {
    use crate::support::frames::{DATA, END, END_HEADERS, HEADERS, RESET, Wire, frame};
    let (scene, hostile) = Scene::with_hostile_server("", &[]).await;
    hostile.act("", Then::Hold);
    let mut wire = Wire::open(&scene.world.address(None, Protocol::Http2), &[]).await;
    let body = scene.echo(&scene.ana()).to_string();
    for stream in [1, 3] {
        wire.say(
            &[
                frame(HEADERS, END_HEADERS, stream, &scene.block()),
                frame(DATA, END, stream, body.as_bytes()),
            ]
            .concat(),
        )
        .await;
    }
    eventually("both calls to arrive", async || (hostile.calls().len() == 2).then_some(())).await;
    let mut hung_up = hostile.hung_up();
    wire.say(&frame(RESET, 0, 1, &[0, 0, 0, 8])).await;
    soon("the server to be hung up on", hung_up.wait_for(|count| *count == 1))
        .await
        .unwrap();
    wire.say(&frame(RESET, 0, 3, &[0, 0, 0, 8])).await;
    soon("the server to be hung up on again", hung_up.wait_for(|count| *count == 2))
        .await
        .unwrap();
    assert!(!wire.so_far().is_over(), "the connection goes on");
    for row in scene.outcomes(2).await {
        assert_eq!(row["outcome"]["ending"], "client_closed", "{row}");
    }
}

const ISSUER: &str = "https://id.example.test";

/// A scene with tokens, whose times may be off by a second.
async fn with_tokens(settings: &[(&str, &str)]) -> (Scene, Issuer) {
    let (mut world, files, issuer) = (
        World::new(Engine::Sqlite).await,
        Upstream::start().await,
        Issuer::es256(ISSUER),
    );
    world.folder.write("jwks.json", &issuer.key_set().to_string());
    world.issuer("id", ISSUER, "kind = 'oidc'\njwks_file = 'jwks.json'\nskew = '2s'");
    let url = files.url.clone();
    let scene = Scene::within(world, files, &url, "", settings).await;
    scene.world.link("ana", ISSUER, "ana");
    (scene, issuer)
}

async fn listen(scene: &Scene, client: &Client) -> Reply {
    let request = client.request("subscriptions/listen", json!({ "notifications": {} }));
    let stream = eventually("the stream to be granted", async || {
        let reply = client.alike().open(&request).await.unwrap();
        (reply.header("content-type") == Some("text/event-stream")).then_some(reply)
    })
    .await;
    scene
        .files
        .arrived("the subscription", |received| received.method() == "subscriptions/listen")
        .await;
    stream
}

/// The first event of a subscription.
fn acknowledged() -> Value {
    json!({ "jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": { "notifications": {} } })
}

/// A token is valid until its expiry plus the clock tolerance, and so is a stream that it opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t36_a_stream_ends_with_the_token_that_opened_it() {
    let (scene, issuer) = with_tokens(&[]).await;
    let now = || OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
    let _server = scene.files.offer_stream();
    let mut claims = issuer.claims("ana", &scene.world.resource("files"));
    // The token has expired but is within the tolerance: a stream that is admitted now is not cut for that.
    let expiry = OffsetDateTime::now_utc().unix_timestamp();
    claims["exp"] = json!(expiry);
    let end = i128::from(expiry) * 1_000 + 2_000;
    let client = scene.world.client("files").modern().bearer(&issuer.sign(&claims));
    let mut stream = listen(&scene, &client).await;
    let ended = soon("the stream to be cut", async {
        while stream.event().await.unwrap().is_some() {}
    });
    ended.await;
    let late = now() - end;
    assert!(
        (-50..10_000).contains(&late),
        "cut {late} ms after the token and the tolerance have ended"
    );
    assert_eq!(
        client.call("echo", json!({ "text": "hi" })).await.verdict(),
        "401 token_expired"
    );
    eventually("the outcome", async || {
        let rows = scene.world.audit("--decision allow");
        let listened = rows
            .iter()
            .find(|row| row["method"] == "subscriptions/listen")
            .expect("the stream on record");
        (listened["outcome"]["by"] == "revoked").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t36_a_stream_ends_with_the_key_that_opened_it() {
    let scene = Scene::set("", &[]).await;
    let key = scene.world.key_with("ana", "--expires 3s");
    let _server = scene.files.offer_stream();
    let client = scene.world.client("files").modern().bearer(&key);
    let mut stream = listen(&scene, &client).await;
    soon("the stream to be cut", async {
        while stream.event().await.unwrap().is_some() {}
    })
    .await;
    assert_eq!(
        client.call("echo", json!({ "text": "hi" })).await.verdict(),
        "401 key_expired",
        "not before"
    );
}

/// A stream depends on all the scopes it was opened with: it ends when one goes, even if its call would still be allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t36_a_stream_ends_when_scopes_are_taken_away() {
    /// `max_staleness`, and a second for the check of open streams.
    const BOUND: Duration = Duration::from_secs(2 + 1);
    /// For a machine that has other work.
    const GRACE: Duration = Duration::from_secs(5);
    let settings = [("grants.max_staleness", "'2s'"), ("grants.confirm_after", "'500ms'")];
    let scene = Scene::set("", &settings).await;
    let legacy = scene.world.connected("files", &scene.ana).await;
    for what in ["subscriptions/listen", "GET", "tools/call"] {
        let server = scene.files.offer_stream();
        let mut stream = match what {
            "subscriptions/listen" => listen(&scene, &scene.ana()).await,
            "GET" => legacy.own_stream().await,
            _ => {
                let call = legacy.request("tools/call", json!({ "name": "slow", "arguments": { "events": 3 } }));
                legacy.alike().open(&call).await.unwrap()
            }
        };
        assert_eq!(stream.header("content-type"), Some("text/event-stream"), "{what}");
        match what {
            "subscriptions/listen" => say(&server, &acknowledged()).await,
            "GET" => {
                say(
                    &server,
                    &json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed" }),
                )
                .await
            }
            _ => scene.files.step(),
        }
        assert!(
            soon("an event", stream.event()).await.unwrap().is_some(),
            "{what}: it is open"
        );

        scene.world.grant("ana", "files", "echo");
        let begun = Instant::now();
        let mut rest = Vec::new();
        while let Some(event) = soon("the stream to be cut", stream.event()).await.unwrap() {
            rest.push(event);
        }
        assert!(begun.elapsed() < BOUND + GRACE, "{what}: {:?}", begun.elapsed());
        // A stream that owes an answer ends with an error that gives the reason; a stream that owes none just ends.
        let told = rest.iter().all(|event| event.contains("grant_revoked"));
        assert!(told && rest.len() == usize::from(what != "GET"), "{what}: {rest:?}");
        assert!(
            legacy.call("echo", json!({ "text": "hi" })).await.is_result(),
            "what is left may still be done"
        );
        scene.world.grant("ana", "files", "echo,read_file,slow");
        eventually("the scopes to be back", async || {
            legacy
                .call("read_file", json!({ "path": "a" }))
                .await
                .is_result()
                .then_some(())
        })
        .await;
    }
    let endings = eventually("the outcomes", async || {
        let rows = scene.world.audit("--decision allow");
        let streamed =
            |row: &&Value| ["subscriptions/listen", "GET"].iter().any(|method| row["method"] == *method) || row["tool"] == "slow";
        let endings: Vec<Value> = rows.iter().filter(streamed).map(|row| row["outcome"]["by"].clone()).collect();
        endings.iter().all(Value::is_string).then_some(endings)
    })
    .await;
    assert_eq!(endings, ["revoked", "revoked", "revoked"]);
}
