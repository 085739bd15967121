//! T21: HTTP/2 floods and malformed frames. Guardian ends the connection or refuses the stream, its memory does not grow,
//! and other clients are served.

use super::Scene;
use crate::support::frames::{
    CONTINUATION, DATA, END, END_HEADERS, HEADERS, PING, PRIORITY, RESET, SETTINGS, WINDOW, Wire, fields, frame, indexed,
    remembered, setting,
};
use crate::support::http::{Address, Protocol};
use crate::support::upstream::Scripted;
use crate::support::wait::eventually;
use serde_json::json;

/// Frames per write.
const BATCH: usize = 500;
/// The flood counts as unbounded if the server has not ended it after so many batches.
const MOST_BATCHES: usize = 2_000;
const PUSH_PROMISE: u8 = 5;
const UNKNOWN: u8 = 0x42;
const INITIAL_WINDOW: u16 = 4;

impl Scene {
    fn h2(&self) -> Address {
        self.world.address(None, Protocol::Http2)
    }

    fn host(&self) -> String {
        format!("localhost:{}", self.world.port)
    }

    /// The HTTP/2 header fields of a call of `echo`.
    fn head(&self) -> Vec<(String, String)> {
        let text = |text: &str| text.to_owned();
        vec![
            (text(":method"), text("POST")),
            (text(":scheme"), text("https")),
            (text(":authority"), self.host()),
            (text(":path"), text("/mcp/files")),
            (text("authorization"), format!("Bearer {}", self.ana)),
            (text("content-type"), text("application/json")),
            (text("accept"), text("application/json, text/event-stream")),
            (text("mcp-protocol-version"), text("2026-07-28")),
            (text("mcp-method"), text("tools/call")),
            (text("mcp-name"), text("echo")),
        ]
    }

    pub fn block(&self) -> Vec<u8> {
        block(&self.head())
    }

    fn body(&self) -> Vec<u8> {
        self.ana()
            .request("tools/call", json!({ "name": "echo", "arguments": { "text": "hi" } }))
            .to_string()
            .into()
    }
}

fn block(head: &[(String, String)]) -> Vec<u8> {
    fields(head.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

/// The odd stream ids that a client uses (RFC 9113, 5.1.1).
fn streams() -> impl Iterator<Item = u32> {
    (1..).step_by(2)
}

/// A flood: the same frames again and again.
struct Flood {
    what: &'static str,
    /// Sent once, at the start.
    first: Vec<u8>,
    /// Sent until the server ends the connection.
    again: Again,
}

type Again = Box<dyn Fn(&mut dyn Iterator<Item = u32>) -> Vec<u8> + Send>;

fn floods(scene: &Scene) -> Vec<Flood> {
    let block = scene.block();
    let open = frame(HEADERS, END_HEADERS, 1, &block);
    let same = |bytes: Vec<u8>| -> Again { Box::new(move |_| bytes.clone()) };
    let flood = |what, first: &[u8], again| Flood {
        what,
        first: first.to_vec(),
        again,
    };
    let begin = frame(HEADERS, 0, 1, &block);
    let reset = {
        let block = block.clone();
        Box::new(move |streams: &mut dyn Iterator<Item = u32>| {
            let stream = streams.next().expect("there are enough");
            [
                frame(HEADERS, END_HEADERS, stream, &block),
                frame(RESET, 0, stream, &[0, 0, 0, 8]),
            ]
            .concat()
        })
    };
    let malformed = Box::new(move |streams: &mut dyn Iterator<Item = u32>| {
        let stream = streams.next().expect("there are enough");
        // The server itself has to reset each of these streams.
        frame(
            HEADERS,
            END_HEADERS | END,
            stream,
            &fields([(":method", "GET"), ("te", "gzip"), (":path", "/")]),
        )
    });
    vec![
        flood("streams begun and reset", &[], reset),
        flood("streams that the server must reset", &[], malformed),
        flood(
            "heads that never end, in whole frames",
            &begin,
            same(frame(CONTINUATION, 0, 1, &fields([("x-a", "b")]).repeat(1_000))),
        ),
        flood(
            "heads that never end, in empty frames",
            &begin,
            same(frame(CONTINUATION, 0, 1, &[])),
        ),
        flood("empty data", &open, same(frame(DATA, 0, 1, &[]))),
        flood("data of one byte", &open, same(frame(DATA, 0, 1, b" "))),
        flood("padding without data", &open, same(frame(DATA, 8, 1, &[255; 256]))),
        flood("pings", &open, same(frame(PING, 0, 0, &[7; 8]))),
        flood("settings", &open, same(frame(SETTINGS, 0, 0, &setting(3, 100)))),
        flood(
            "settings that change the table",
            &open,
            same(frame(SETTINGS, 0, 0, &[setting(1, 0), setting(1, 4096)].concat())),
        ),
        flood("priorities", &open, same(frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 7]))),
        flood("frames of no known kind", &open, same(frame(UNKNOWN, 0, 0, &[0; 8]))),
        flood("windows widened by one", &open, same(frame(WINDOW, 0, 0, &[0, 0, 0, 1]))),
        flood(
            "windows widened beyond all",
            &[],
            same(frame(WINDOW, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t21_a_flood_of_frames_ends_its_connection_and_nothing_else() {
    let scene = Scene::set("", &[]).await;
    let address = scene.h2();
    for flood in floods(&scene) {
        // Once while the client reads what the server sends, once while it does not.
        for listens in [true, false] {
            let what = format!("a flood of {} (listening: {listens})", flood.what);
            let attack = async {
                let mut wire = if listens {
                    Wire::open(&address, &[]).await
                } else {
                    Wire::deaf(&address, &[]).await
                };
                let mut streams = streams();
                wire.say(&flood.first).await;
                let mut batches = 0;
                while batches < MOST_BATCHES && !wire.so_far().is_over() {
                    let batch: Vec<u8> = (0..BATCH).flat_map(|_| (flood.again)(&mut streams)).collect();
                    batches = if wire.say(&batch).await { batches + 1 } else { MOST_BATCHES };
                }
                if listens {
                    drop(wire.hear(&format!("the end of {what}"), |heard| heard.goaway.is_some()).await);
                } else {
                    wire.until_hung_up_on(&what).await;
                }
            };
            let ((), cost) = scene.while_bob_is_served(attack).await;
            cost.is_bounded(&what);
        }
    }
    scene.nothing_reached_the_server("floods");
    let floods = scene
        .world
        .metric("guardian_refused_connections_total{cause=\"flood\"}")
        .await;
    assert_eq!(floods, Some(12.0), "those that h2 itself does not end");
}

/// Header fields of 64 MiB in a few bytes each: the peer's HPACK table is filled once and then referred to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t21_a_head_that_unfolds_to_64_mib_is_never_unfolded() {
    let scene = Scene::set("", &[]).await;
    let address = scene.h2();
    let cookie = "c".repeat(4_000);
    for (what, name) in [("cookies", "cookie"), ("fields", "x-bomb")] {
        let ((answer, whole), cost) = scene
            .while_bob_is_served(async {
                let mut wire = Wire::open(&address, &[]).await;
                let mut block = scene.block();
                block.extend(remembered(name, &cookie));
                block.extend([indexed(62); 16_000]);
                let (first, rest) = block.split_at(16_000);
                wire.say(&[frame(HEADERS, END, 1, first), frame(CONTINUATION, END_HEADERS, 1, rest)].concat())
                    .await;
                let answer = wire.answer(1).await;
                // The connection may stay open: the state it keeps is bounded.
                wire.say(
                    &[
                        frame(HEADERS, END_HEADERS, 3, &scene.block()),
                        frame(DATA, END, 3, &scene.body()),
                    ]
                    .concat(),
                )
                .await;
                (answer, wire.answer(3).await)
            })
            .await;
        assert!(["431", "reset", "goaway"].contains(&answer.as_str()), "{what}: {answer}");
        assert!(["200", "goaway", "closed"].contains(&whole.as_str()), "{what}: {whole}");
        cost.is_bounded(what);
    }
    assert!(
        scene
            .reached()
            .iter()
            .all(|received| received.header("cookie").is_none() && received.header("x-bomb").is_none())
    );
}

/// A call that is correct but for one thing.
struct Falsehood {
    what: &'static str,
    frames: Vec<u8>,
}

fn falsehoods(scene: &Scene) -> Vec<Falsehood> {
    let (head, body) = (scene.head(), scene.body());
    let send = |head: &[(String, String)]| [frame(HEADERS, END_HEADERS, 1, &block(head)), frame(DATA, END, 1, &body)].concat();
    let with = |what, name: &str, value: &str| {
        let head: Vec<_> = head.iter().cloned().chain([(name.to_owned(), value.to_owned())]).collect();
        Falsehood {
            what,
            frames: send(&head),
        }
    };
    let instead = |what, name: &str, value: &str| {
        let mut head = head.clone();
        head.iter_mut()
            .filter(|(known, _)| known == name)
            .for_each(|field| field.1 = value.to_owned());
        Falsehood {
            what,
            frames: send(&head),
        }
    };
    let without = |what, name: &str| {
        let head: Vec<_> = head.iter().filter(|(known, _)| known != name).cloned().collect();
        Falsehood {
            what,
            frames: send(&head),
        }
    };
    let told = |what, frames: &[Vec<u8>]| Falsehood {
        what,
        frames: frames.concat(),
    };
    let own = block(&head);
    let open = frame(HEADERS, END_HEADERS, 1, &own);
    let trailers = |named: &[(&str, &str)]| {
        [
            open.clone(),
            frame(DATA, 0, 1, &body),
            frame(HEADERS, END_HEADERS | END, 1, &fields(named.iter().copied())),
        ]
        .concat()
    };
    vec![
        with("another host beside the authority", "host", "evil.test"),
        with("two hosts", "host", ""),
        instead("another authority", ":authority", "evil.test"),
        instead("a user in the authority", ":authority", &format!("root@{}", scene.host())),
        instead("an empty authority", ":authority", ""),
        without("no authority", ":authority"),
        without("no path", ":path"),
        without("no scheme", ":scheme"),
        without("no method", ":method"),
        instead("an empty path", ":path", ""),
        instead("a path without a slash", ":path", "mcp/files"),
        instead("a whole URL for a path", ":path", "https://evil.test/mcp/files"),
        instead("a star for a path", ":path", "*"),
        instead("a query", ":path", "/mcp/files?a"),
        instead("a line end in the path", ":path", "/mcp/files\r\nx-a: b"),
        instead("a space in the path", ":path", "/mcp/files HTTP/1.1"),
        instead("CONNECT", ":method", "CONNECT"),
        instead("TRACE", ":method", "TRACE"),
        instead("a method with a line end", ":method", "POST / HTTP/1.1\r\nx-a: b\r\n\r\nPOST"),
        with("a protocol", ":protocol", "websocket"),
        with("a second path, behind the fields", ":path", "/mcp/files"),
        with("an unknown pseudo-field", ":user", "root"),
        with("a status", ":status", "200"),
        with("a line end in a value", "x-a", "b\r\nauthorization: Bearer other"),
        with("a line feed in a value", "x-a", "b\nc"),
        with("a carriage return in a value", "x-a", "b\rc"),
        with("a NUL in a value", "x-a", "b\0c"),
        with("a line end in a name", "x-a\r\nx-b", "c"),
        with("a colon in a name", "x-a: b", "c"),
        with("a space in a name", "x a", "c"),
        with("a name in capitals", "Mcp-Name", "echo"),
        with("no name", "", "c"),
        with("Transfer-Encoding", "transfer-encoding", "chunked"),
        with("Connection", "connection", "close"),
        with("Keep-Alive", "keep-alive", "timeout=5"),
        with("Proxy-Connection", "proxy-connection", "keep-alive"),
        with("Upgrade", "upgrade", "websocket"),
        with("TE", "te", "gzip"),
        with("Expect", "expect", "100-continue"),
        with("trailers announced", "trailer", "authorization"),
        with("a length that is too long", "content-length", "100000"),
        with("a length that is too short", "content-length", "7"),
        with("a length that is no number", "content-length", "0x10"),
        told(
            "a head of three frames",
            &[
                frame(HEADERS, END, 1, &own),
                frame(CONTINUATION, 0, 1, &fields([("x-a", "a".repeat(16_000).as_str())])),
                frame(CONTINUATION, 0, 1, &fields([("x-b", "b".repeat(16_000).as_str())])),
                frame(CONTINUATION, END_HEADERS, 1, &fields([("x-c", "c".repeat(16_000).as_str())])),
            ],
        ),
        Falsehood {
            what: "a credential behind the body",
            frames: trailers(&[("authorization", "Bearer other")]),
        },
        Falsehood {
            what: "a pseudo-field behind the body",
            frames: trailers(&[(":path", "/other")]),
        },
        Falsehood {
            what: "fields behind the body",
            frames: trailers(&[("x-a", "b")]),
        },
        told(
            "an even stream",
            &[frame(HEADERS, END_HEADERS, 2, &own), frame(DATA, END, 2, &body)],
        ),
        told("stream 0", &[frame(HEADERS, END_HEADERS, 0, &own)]),
        told("data on stream 0", &[frame(DATA, END, 0, &body)]),
        told("data on no stream", &[frame(DATA, END, 1, &body)]),
        told(
            "data in the middle of a head",
            &[frame(HEADERS, 0, 1, &own), frame(DATA, END, 1, &body)],
        ),
        told(
            "another head in the middle of a head",
            &[frame(HEADERS, 0, 1, &own), frame(HEADERS, END_HEADERS | END, 3, &own)],
        ),
        told("the rest of no head", &[frame(CONTINUATION, END_HEADERS, 1, &own)]),
        told(
            "a promise",
            &[frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2], &own[..]].concat())],
        ),
        told("a window widened by nothing", &[open.clone(), frame(WINDOW, 0, 1, &[0; 4])]),
        told(
            "more padding than frame",
            &[frame(HEADERS, END_HEADERS | 8, 1, &[&[255], &own[..50]].concat())],
        ),
        told(
            "a stream that waits for itself",
            &[
                frame(HEADERS, END_HEADERS | 0x20, 1, &[&[0, 0, 0, 1, 7], &own[..]].concat()),
                frame(DATA, END, 1, &body),
            ],
        ),
        told("settings of no whole number", &[frame(SETTINGS, 0, 0, &[0; 5])]),
        told("settings of a stream", &[frame(SETTINGS, 0, 1, &setting(3, 1))]),
        told(
            "a frame longer than is allowed",
            &[open.clone(), frame(DATA, END, 1, &[b' '; 20_000])],
        ),
        told(
            "a table that grows beyond what was allowed",
            &[frame(
                HEADERS,
                END_HEADERS | END,
                1,
                &[&[0x3f, 0xff, 0xff, 0x7f], &own[..]].concat(),
            )],
        ),
        told(
            "a field from nowhere in the table",
            &[frame(
                HEADERS,
                END_HEADERS | END,
                1,
                &[&own[..], &[0xff, 0xff, 0x7f]].concat(),
            )],
        ),
        told(
            "a length that does not end",
            &[frame(
                HEADERS,
                END_HEADERS | END,
                1,
                &[&own[..], &[0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]].concat(),
            )],
        ),
        told(
            "a bit string that is no text",
            &[frame(
                HEADERS,
                END_HEADERS | END,
                1,
                &[&own[..], &[0x00, 0x84, 0xff, 0xff, 0xff, 0xff]].concat(),
            )],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t21_what_two_readers_of_frames_could_understand_differently_never_leaves() {
    let mut scene = Scene::set("", &[]).await;
    let address = scene.h2();
    let mut wire = Wire::open(&address, &[]).await;
    wire.say(
        &[
            frame(HEADERS, END_HEADERS, 1, &scene.block()),
            frame(DATA, END, 1, &scene.body()),
        ]
        .concat(),
    )
    .await;
    assert_eq!(wire.answer(1).await, "200", "without a falsehood it is a call");
    assert_eq!(scene.reached().len(), 1);
    scene.mark();
    for Falsehood { what, frames } in falsehoods(&scene) {
        let mut wire = Wire::open(&address, &[]).await;
        wire.say(&frames).await;
        let answer = wire.refusal().await;
        assert!(
            answer.starts_with('4') || ["reset", "goaway"].contains(&answer.as_str()),
            "{what}: {answer}"
        );
        scene.nothing_reached_the_server(what);
    }
    scene.while_bob_is_served(std::future::ready(())).await;
}

/// An answer that the client does not read stays at the server, or else counts as a call in flight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t21_whoever_opens_no_window_holds_little_memory() {
    const ANSWER: usize = 512 * 1024;
    const PLACES: usize = 8;
    const ASKED: u32 = 100;
    let scene = Scene::set("", &[("limits.max_concurrency_per_principal", &PLACES.to_string())]).await;
    scene.files.script(|received| {
        let text = json!({ "content": [{ "type": "text", "text": "x".repeat(ANSWER) }] });
        (received.tool() == Some("echo")).then_some(Scripted::Json(text))
    });
    let address = scene.h2();
    let (mut wire, cost) = scene
        .while_bob_is_served(async {
            let mut wire = Wire::open(&address, &[(INITIAL_WINDOW, 0)]).await;
            for stream in streams().take(ASKED as usize) {
                wire.say(
                    &[
                        frame(HEADERS, END_HEADERS, stream, &scene.block()),
                        frame(DATA, END, stream, &scene.body()),
                    ]
                    .concat(),
                )
                .await;
                wire.hear("a head", |heard| heard.statuses.contains_key(&stream)).await;
            }
            wire
        })
        .await;
    let heard = wire.so_far();
    assert!(heard.bodies.values().all(Vec::is_empty), "no window, no data");
    assert!(heard.statuses.values().all(|status| status == "200"), "{:?}", heard.statuses);
    assert_eq!(scene.reached().len(), PLACES, "the others are refused in their answer");
    cost.is_bounded("answers that nobody takes");

    // A client that reads its answers may call again.
    let room = (ANSWER as u32 * 2).to_be_bytes();
    let first = streams().next().expect("there are some");
    wire.say(&[frame(WINDOW, 0, 0, &room), frame(WINDOW, 0, first, &room)].concat())
        .await;
    wire.hear("a whole answer", |heard| heard.ended.contains(&first)).await;
    let mut again = streams().skip(ASKED as usize);
    eventually("a place", async || {
        let stream = again.next().expect("there are enough");
        wire.say(
            &[
                frame(HEADERS, END_HEADERS, stream, &scene.block()),
                frame(DATA, END, stream, &scene.body()),
            ]
            .concat(),
        )
        .await;
        wire.hear("a head", |heard| heard.statuses.contains_key(&stream)).await;
        (scene.reached().len() > PLACES).then_some(())
    })
    .await;

    // A client that leaves frees its slots; over HTTP/1.1 the same answer comes whole and with its length.
    wire.hang_up().await;
    let client = scene.ana();
    let answer = eventually("the places to be free", async || {
        let answer = client.call("echo", json!({ "text": "hi" })).await;
        answer.is_result().then_some(answer)
    })
    .await;
    assert_eq!(answer.text().len(), ANSWER);
    assert_eq!(answer.header("content-length"), Some(answer.body.len().to_string().as_str()));
}
