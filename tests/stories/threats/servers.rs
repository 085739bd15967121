//! T23: a server that does not accept, stays silent, answers too little, too much or something else, or is an impostor. The
//! caller is told in time, nothing is sent twice or elsewhere, and the outcome is recorded.

use super::Scene;
use crate::support::certificates::Authority;
use crate::support::hostile_server::{HostileServer, Then};
use crate::support::stores::Engine;
use crate::support::upstream::Upstream;
use crate::support::wait::soon;
use crate::support::world::World;
use std::time::{Duration, Instant};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// The server's limits, and the longest that a call may take in all.
const LIMITS: &str = "connect_timeout = '1s'\nfirst_byte_timeout = '1s'\nidle_timeout = '200ms'\nmax_answer_bytes = 1048576";
const ON_TIME: Duration = Duration::from_secs(9);
const DRIP: Duration = Duration::from_millis(20);
const ANSWER: &str = r#"{"jsonrpc":"2.0","id":"seven","result":{"content":[{"type":"text","text":"hi"}]}}"#;

const BROKEN: &str = "502 upstream_broken";
const LATE: &str = "504 upstream_timeout";
const UNREACHABLE: &str = "502 upstream_unreachable";

/// What the server writes, and what the caller is told.
struct Misdeed {
    what: &'static str,
    says: Vec<u8>,
    then: Then,
    told: &'static str,
}

/// An answer with this status line and these header lines, of the right length.
fn whole(status: &str, fields: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{fields}content-length: {}\r\n\r\n{body}", body.len())
}

fn misdeeds(elsewhere: &str) -> Vec<Misdeed> {
    use Then::{Close, Drip, Hold, Repeat};
    let does = |what, told, says: &[u8], then| Misdeed {
        what,
        says: says.to_vec(),
        then,
        told,
    };
    let json = "content-type: application/json\r\n";
    let events = "content-type: text/event-stream\r\n";
    let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
    let length = |length: usize| head(&format!("{json}content-length: {length}\r\n"));
    let chunked = head(&format!("{json}transfer-encoding: chunked\r\n"));
    let to = |status: &str| whole(status, &format!("location: {elsewhere}\r\n{json}"), ANSWER);
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let much = vec![b'x'; 64 * 1024];
    let times = 1_600;
    let much_chunk = chunk(&"x".repeat(64 * 1024)).into_bytes();
    let mut all = vec![
        does("silence", LATE, b"", Hold),
        does("hanging up at once", BROKEN, b"", Close),
        does("half a head", LATE, b"HTTP/1.1 200 OK\r\ncontent-ty", Hold),
        does("half a head and the end", BROKEN, b"HTTP/1.1 200 OK\r\ncontent-ty", Close),
        does(
            "a head byte by byte",
            LATE,
            b"HTTP/1.1 200 OK\r\nx-a: ",
            Drip(b"a".to_vec(), DRIP),
        ),
        does(
            "a head line by line",
            LATE,
            b"HTTP/1.1 200 OK\r\n",
            Drip(b"x-a: b\r\n".to_vec(), DRIP),
        ),
        does(
            "nothing but interim answers",
            LATE,
            b"",
            Drip(b"HTTP/1.1 103 Early Hints\r\n\r\n".to_vec(), DRIP),
        ),
        does(
            "a flood of interim answers",
            LATE,
            b"",
            Repeat(b"HTTP/1.1 102 Processing\r\n\r\n".repeat(1_000), 100, Vec::new()),
        ),
        does(
            "another protocol",
            BROKEN,
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
            Hold,
        ),
        does("garbage", BROKEN, b"\x00\x01\x02 what is this?\r\n\r\n", Hold),
        does("a greeting of SSH", BROKEN, b"SSH-2.0-OpenSSH_9.2\r\n", Hold),
        does("TLS where none was asked for", BROKEN, &[22, 3, 3, 0, 2, 2, 40], Hold),
        does("HTTP/2 where none was asked for", BROKEN, &[0, 0, 0, 4, 0, 0, 0, 0, 0], Hold),
        does("HTTP/0.9", BROKEN, ANSWER.as_bytes(), Close),
        does(
            "HTTP/3.0",
            BROKEN,
            whole("200 OK", json, ANSWER).replace("/1.1", "/3.0").as_bytes(),
            Close,
        ),
        does(
            "a status of no three digits",
            BROKEN,
            whole("20 OK", json, ANSWER).as_bytes(),
            Close,
        ),
        does(
            "a field without a colon",
            BROKEN,
            whole("200 OK", "content-type application/json\r\n", ANSWER).as_bytes(),
            Close,
        ),
        does(
            "a field with a space before its colon",
            BROKEN,
            whole("200 OK", "content-type : application/json\r\n", ANSWER).as_bytes(),
            Close,
        ),
        does(
            "a folded field",
            BROKEN,
            whole("200 OK", "content-type: application/json\r\n x\r\n", ANSWER).as_bytes(),
            Close,
        ),
        does(
            "a field of a megabyte",
            BROKEN,
            head(&format!("x-a: {}\r\n", "a".repeat(1 << 20))).as_bytes(),
            Hold,
        ),
        does(
            "ten thousand fields",
            BROKEN,
            head(&"x-a: b\r\n".repeat(10_000)).as_bytes(),
            Hold,
        ),
        does("no type", BROKEN, whole("200 OK", "", ANSWER).as_bytes(), Close),
        does(
            "another type",
            BROKEN,
            whole("200 OK", "content-type: text/html\r\n", ANSWER).as_bytes(),
            Close,
        ),
        does("no content", BROKEN, b"HTTP/1.1 204 No Content\r\n\r\n", Close),
        does(
            "taken and never answered",
            BROKEN,
            b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n",
            Close,
        ),
        does(
            "an encoded answer",
            BROKEN,
            whole(
                "200 OK",
                "content-type: application/json\r\ncontent-encoding: gzip\r\n",
                "\u{1f}\u{8b}",
            )
            .as_bytes(),
            Close,
        ),
        does(
            "a challenge",
            BROKEN,
            whole(
                "401 Unauthorized",
                &format!("www-authenticate: Bearer resource_metadata=\"{elsewhere}\"\r\n"),
                "",
            )
            .as_bytes(),
            Close,
        ),
        does(
            "a proxy's challenge",
            BROKEN,
            whole("407 Proxy Authentication Required", "proxy-authenticate: Basic\r\n", "").as_bytes(),
            Close,
        ),
        does("silence behind the head", LATE, length(ANSWER.len()).as_bytes(), Hold),
        does(
            "half a body",
            LATE,
            format!("{}{}", length(ANSWER.len()), &ANSWER[..20]).as_bytes(),
            Hold,
        ),
        does(
            "half a body and the end",
            BROKEN,
            format!("{}{}", length(ANSWER.len()), &ANSWER[..20]).as_bytes(),
            Close,
        ),
        does(
            "a body byte by byte",
            LATE,
            length(100_000).as_bytes(),
            Drip(b" ".to_vec(), DRIP),
        ),
        does(
            "chunks byte by byte",
            LATE,
            chunked.as_bytes(),
            Drip(b"1\r\n \r\n".to_vec(), DRIP),
        ),
        does(
            "a stream byte by byte",
            LATE,
            head(events).as_bytes(),
            Drip(b"d".to_vec(), DRIP),
        ),
        does(
            "a length that is too long",
            LATE,
            format!("{}{ANSWER}", length(ANSWER.len() + 1)).as_bytes(),
            Hold,
        ),
        does(
            "a length that is too long, and the end",
            BROKEN,
            format!("{}{ANSWER}", length(ANSWER.len() + 1)).as_bytes(),
            Close,
        ),
        does(
            "a length that is too short",
            BROKEN,
            format!("{}{ANSWER}", length(ANSWER.len() - 1)).as_bytes(),
            Hold,
        ),
        does(
            "a length of nothing",
            BROKEN,
            format!("{}{ANSWER}", length(0)).as_bytes(),
            Hold,
        ),
        does(
            "two lengths",
            BROKEN,
            format!(
                "{}{ANSWER}",
                length(ANSWER.len()).replace("\r\n\r\n", "\r\ncontent-length: 7\r\n\r\n")
            )
            .as_bytes(),
            Hold,
        ),
        does(
            "a length that is no number",
            BROKEN,
            head(&format!("{json}content-length: 1e3\r\n")).as_bytes(),
            Hold,
        ),
        does(
            "a chunk of no size",
            BROKEN,
            format!("{chunked}zz\r\n{ANSWER}\r\n0\r\n\r\n").as_bytes(),
            Hold,
        ),
        does(
            "a chunk of more than can be",
            BROKEN,
            format!("{chunked}fffffffffffffffff\r\n{ANSWER}\r\n0\r\n\r\n").as_bytes(),
            Hold,
        ),
        does(
            "a chunk that is longer than its size",
            BROKEN,
            format!("{chunked}5\r\n{ANSWER}\r\n0\r\n\r\n").as_bytes(),
            Hold,
        ),
        does(
            "chunks that never end",
            LATE,
            format!("{chunked}{}", chunk(ANSWER)).as_bytes(),
            Hold,
        ),
        does(
            "chunks that break off",
            BROKEN,
            format!("{chunked}{}", chunk(ANSWER)).as_bytes(),
            Close,
        ),
        does(
            "a hundred megabytes, announced",
            BROKEN,
            length(100 << 20).as_bytes(),
            Repeat(much.clone(), times, Vec::new()),
        ),
        does(
            "a hundred megabytes in chunks",
            BROKEN,
            chunked.as_bytes(),
            Repeat(much_chunk, times, b"0\r\n\r\n".to_vec()),
        ),
        does(
            "a hundred megabytes to the end",
            BROKEN,
            head(json).as_bytes(),
            Repeat(much.clone(), times, Vec::new()),
        ),
        does(
            "a hundred megabytes in one event",
            BROKEN,
            format!("{}data: ", head(events)).as_bytes(),
            Repeat(much, times, Vec::new()),
        ),
    ];
    let statuses = [
        ("300 Multiple Choices", "a choice of places"),
        ("301 Moved Permanently", "another place for ever"),
        ("302 Found", "another place"),
        ("303 See Other", "another place to look"),
        ("304 Not Modified", "nothing new"),
        ("307 Temporary Redirect", "another place for now"),
        ("308 Permanent Redirect", "another place for good"),
    ];
    all.extend(statuses.map(|(status, what)| does(what, BROKEN, to(status).as_bytes(), Close)));
    let failures = [
        ("500 Internal Server Error", "a failure"),
        ("502 Bad Gateway", "a failure behind it"),
        ("503 Service Unavailable", "no service"),
        ("403 Forbidden", "no leave"),
        ("418 I'm a teapot", "a teapot"),
        ("999 Beyond", "a status that nobody knows"),
    ];
    all.extend(failures.map(|(status, what)| {
        does(
            what,
            BROKEN,
            whole(status, "content-type: text/plain\r\n", "out of order").as_bytes(),
            Close,
        )
    }));
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t23_whatever_a_server_does_the_call_ends_in_time_and_is_on_record() {
    let (scene, hostile) = Scene::with_hostile_server(LIMITS, &[]).await;
    let elsewhere = Upstream::start().await;
    let misdeeds = misdeeds(&elsewhere.url);
    let client = scene.ana();
    let attack = async {
        let mut wrong = Vec::new();
        for misdeed in &misdeeds {
            let before = hostile.calls().len();
            hostile.act(misdeed.says.clone(), misdeed.then.clone());
            let begun = Instant::now();
            let answer = client.post(&scene.echo(&client)).await;
            let took = begun.elapsed();
            let said = format!("{:?} {}", answer.headers, answer.body);
            let status = if answer.header("content-type") == Some("text/event-stream") {
                &misdeed.told[..3]
            } else {
                ""
            };
            let told = if status.is_empty() {
                answer.verdict()
            } else {
                format!("{status} {}", answer.reason())
            };
            let quiet = ["elsewhere", "out of order", "location", "localhost", "www-auth"]
                .iter()
                .all(|word| !said.contains(word));
            let once = hostile.calls().len() == before + 1;
            if told != misdeed.told || took > ON_TIME || !quiet || !once {
                wrong.push(format!(
                    "{}: {told} after {took:?}, sent {} times: {said}",
                    misdeed.what,
                    hostile.calls().len() - before
                ));
            }
        }
        wrong
    };
    let (wrong, cost) = scene.while_bob_is_served(attack).await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    cost.is_bounded("a server's misdeeds");
    assert_eq!(elsewhere.received().len(), 0, "nobody goes where a server sends them");

    for (row, misdeed) in scene.outcomes(misdeeds.len()).await.iter().zip(&misdeeds) {
        let outcome = &row["outcome"];
        let expected = match outcome["status"].as_u64() {
            Some(status) if !(100..300).contains(&status) => "refused_by_server",
            _ if misdeed.told == LATE => "timed_out",
            _ => "broken",
        };
        assert_eq!(outcome["ending"], expected, "{}: {row}", misdeed.what);
        let executed = match outcome["status"].as_u64() {
            Some(401 | 403 | 407) => "no",
            _ => "unknown",
        };
        assert_eq!(outcome["executed"], executed, "{}: {row}", misdeed.what);
        assert!(
            outcome["detail"].as_str().is_some_and(|detail| !detail.is_empty()),
            "{}: {row}",
            misdeed.what
        );
    }
    hostile.behave();
    assert_eq!(
        client.post(&scene.echo(&client)).await.text(),
        "hi",
        "a server that behaves is served again"
    );
}

/// Bytes behind an answer belong to no answer, and not to the next one on the same connection either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t23_the_rest_of_one_answer_is_never_the_next() {
    let (scene, hostile) = Scene::with_hostile_server(LIMITS, &[]).await;
    let poison = ANSWER.replace("hi", "poison");
    let json = "content-type: application/json\r\nset-cookie: session=poison\r\n";
    let client = scene.ana();
    for behind in [
        whole("200 OK", json, &poison),
        format!("\r\n{}", whole("200 OK", json, &poison)),
        "garbage".into(),
    ] {
        hostile.act(whole("200 OK", json, ANSWER) + &behind, Then::GoOn);
        for _ in 0..10 {
            let answer = client.post(&scene.echo(&client)).await;
            assert!(
                !answer.body.contains("poison") && answer.header("set-cookie").is_none(),
                "{answer:?}"
            );
            assert!(answer.is_result() || answer.verdict() == BROKEN, "{answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t23_a_server_that_cannot_be_reached_is_reported_in_time() {
    let (scene, mut hostile) = Scene::with_hostile_server(LIMITS, &[]).await;
    let client = scene.ana();
    hostile.leave().await;
    assert_eq!(
        client.post(&scene.echo(&client)).await.verdict(),
        UNREACHABLE,
        "nobody listens"
    );
    let (_listener, _waiting) = full_queue(hostile.port).await;
    let begun = Instant::now();
    assert_eq!(client.post(&scene.echo(&client)).await.verdict(), LATE, "nobody accepts");
    assert!(begun.elapsed() < ON_TIME);
    for row in scene.outcomes(2).await {
        let outcome = &row["outcome"];
        assert!(outcome["ending"] == "not_sent" && outcome["executed"] == "no", "{row}");
    }
    assert_eq!(hostile.calls().len(), 0);
}

/// A listener that accepts nothing and whose queue is full: a new connection waits.
async fn full_queue(port: u16) -> (tokio::net::TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(([127, 0, 0, 1], port).into()).unwrap();
    let listener = socket.listen(1).unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(("127.0.0.1", port))).await {
        waiting.push(stream.unwrap());
        assert!(waiting.len() < 100, "the queue has an end");
    }
    (listener, waiting)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t23_a_server_with_another_certificate_hears_nothing() {
    let (ours, theirs) = (Authority::new("upstream"), Authority::new("somebody else"));
    let files = Upstream::start().await;
    let hostile = HostileServer::with_tls(&files, &ours).await;
    let world = World::new(Engine::Sqlite).await;
    world.folder.write("upstream.pem", &ours.pem);
    let scene = Scene::within(
        world,
        files,
        &hostile.url,
        &format!("{LIMITS}\nca_file = 'upstream.pem'"),
        &[],
    )
    .await;
    let client = scene.ana();
    for (what, pair) in [
        ("another authority", theirs.server()),
        ("another name", ours.server_named(&["elsewhere.test"])),
        ("expired", ours.expired_server()),
        ("a client's certificate", ours.client("localhost", &["spiffe://a.test/a"])),
    ] {
        hostile.show(&pair);
        let answer = client.post(&scene.echo(&client)).await;
        assert_eq!(answer.verdict(), UNREACHABLE, "{what}");
    }
    hostile.act("", Then::Hold);
    assert_eq!(hostile.calls().len(), 0, "not a byte of a call went out");
    for row in scene.outcomes(4).await {
        let detail = row["outcome"]["detail"].as_str().unwrap();
        assert!(row["outcome"]["ending"] == "not_sent" && detail.contains("TLS"), "{row}");
    }
    hostile.behave();
    hostile.show(&ours.server());
    let answer = soon("an answer", client.post(&scene.echo(&client))).await;
    assert_eq!(answer.text(), "hi", "the right one is spoken to again");
}
