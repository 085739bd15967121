//! T22: a client that is slow at any stage of a connection is cut off in time, a client with many connections gets no more
//! than its share, and new clients are served.

use super::{Scene, add, all};
use crate::support::client::Client;
use crate::support::frames::{CONTINUATION, DATA, END_HEADERS, HEADERS, PING, frame};
use crate::support::http::Protocol;
use crate::support::wait::{eventually, soon};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::interval;

/// The time-out of every stage.
const LIMIT: &str = "'1s'";
/// The latest end on the slowest machine. Without the time-outs of one second, the first default bound would be ten.
const ON_TIME: Duration = Duration::from_secs(9);
const DRIP: Duration = Duration::from_millis(50);

/// A client that sends something and then nothing, or the same few bytes for ever.
struct Slow {
    what: &'static str,
    way: Way,
    first: Vec<u8>,
    drip: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Tcp,
    Http1,
    Http2,
}

fn slow_ones(scene: &Scene) -> Vec<Slow> {
    let one = |what, way, first: &[u8], drip: &[u8]| Slow {
        what,
        way,
        first: first.to_vec(),
        drip: drip.to_vec(),
    };
    let hello = scene.world.address(None, Protocol::Http1).client_hello();
    let head = |framing: &str| {
        format!(
            "POST /mcp/files HTTP/1.1\r\nhost: localhost:{}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             accept: application/json, text/event-stream\r\n{framing}\r\n\r\n",
            scene.world.port, scene.ana
        )
        .into_bytes()
    };
    let with = |head: Vec<u8>, more: &str| [head, more.into()].concat();
    let (length, chunked) = (head("content-length: 1000"), head("transfer-encoding: chunked"));
    let stranger =
        b"POST /mcp/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{";
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let h2 = |frames: &[Vec<u8>]| [&preface[..], &frame(4, 0, 0, &[]), &frames.concat()].concat();
    let (block, cut) = (scene.block(), 60);
    let open = frame(HEADERS, END_HEADERS, 1, &block);
    vec![
        one("silence", Way::Tcp, b"", b""),
        one("half a TLS greeting", Way::Tcp, &hello[..hello.len() / 2], b""),
        one("a TLS greeting byte by byte", Way::Tcp, &hello[..5], &hello[5..6]),
        one("a TLS greeting and nothing after it", Way::Tcp, &hello, b""),
        one(
            "a TLS record announced and never sent",
            Way::Tcp,
            &[22, 3, 1, 0x3f, 0xff],
            b"",
        ),
        one("clear text", Way::Tcp, b"GET / HTTP/1.1\r\n", b"x: y\r\n"),
        one("silence behind TLS", Way::Http1, b"", b""),
        one("half a head", Way::Http1, b"POST /mcp/files HTTP/1.1\r\nhost: loc", b""),
        one("a head byte by byte", Way::Http1, b"POST /mcp/files HTTP/1.1\r\nx-a: ", b"a"),
        one(
            "a head line by line",
            Way::Http1,
            b"POST /mcp/files HTTP/1.1\r\n",
            b"x-a: b\r\n",
        ),
        one("empty lines before a head", Way::Http1, b"", b"\r\n"),
        one("half a body", Way::Http1, &with(length.clone(), "{"), b""),
        one("a body byte by byte", Way::Http1, &with(length, "{"), b" "),
        one("a stranger's body byte by byte", Way::Http1, stranger, b" "),
        one("half a chunk", Way::Http1, &with(chunked.clone(), "ff\r\n{"), b""),
        one("a chunk byte by byte", Way::Http1, &with(chunked.clone(), "ff\r\n{"), b" "),
        one(
            "chunks of a byte",
            Way::Http1,
            &with(chunked.clone(), "1\r\n{\r\n"),
            b"1\r\n \r\n",
        ),
        one(
            "the size of a chunk byte by byte",
            Way::Http1,
            &with(chunked.clone(), "1;"),
            b"a",
        ),
        one("no end of chunks", Way::Http1, &with(chunked.clone(), "1\r\n{\r\n0\r\n"), b""),
        one(
            "fields behind the body, one by one",
            Way::Http1,
            &with(chunked, "1\r\n{\r\n0\r\n"),
            b"x-a: b\r\n",
        ),
        one("silence behind TLS, for HTTP/2", Way::Http2, b"", b""),
        one("half a preface", Way::Http2, &preface[..10], b""),
        one("no settings", Way::Http2, preface, b""),
        one("a connection without a request", Way::Http2, &h2(&[]), b""),
        one("pings and no request", Way::Http2, &h2(&[]), &frame(PING, 0, 0, &[1; 8])),
        one("half a frame", Way::Http2, &h2(&[open[..40].to_vec()]), b""),
        one(
            "a frame byte by byte",
            Way::Http2,
            &h2(&[frame(HEADERS, END_HEADERS, 1, &[0x88; 16_000])[..20].to_vec()]),
            &[0x88],
        ),
        one(
            "a head that goes on",
            Way::Http2,
            &h2(&[frame(HEADERS, 0, 1, &block[..cut])]),
            b"",
        ),
        one(
            "a head that goes on frame by frame",
            Way::Http2,
            &h2(&[frame(HEADERS, 0, 1, &block)]),
            &frame(CONTINUATION, 0, 1, &[0x10, 1, b'a', 1, b'b']),
        ),
        one("no body", Way::Http2, &h2(std::slice::from_ref(&open)), b""),
        one("a body of single bytes", Way::Http2, &h2(&[open]), &frame(DATA, 0, 1, b" ")),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t22_every_slow_stage_ends_on_time() {
    let limits =
        ["handshake_timeout", "header_timeout", "body_timeout", "idle_timeout"].map(|name| format!("listen.limits.{name}"));
    let settings: Vec<(&str, &str)> = limits.iter().map(|name| (name.as_str(), LIMIT)).collect();
    let scene = Scene::set("", &settings).await;
    let slow = slow_ones(&scene);
    let attack = all(slow.iter().map(|slow| slow.try_patience(&scene)));
    let (ended, cost) = scene.while_bob_is_served(attack).await;
    for (slow, (took, answer)) in slow.iter().zip(ended) {
        assert!(took < ON_TIME, "{}: {took:?} {answer}", slow.what);
        assert!(
            answer.is_empty() || slow.way != Way::Http1 || answer.starts_with("HTTP/1.1 4"),
            "{}: {answer}",
            slow.what
        );
    }
    cost.is_bounded("slow peers");
    scene.nothing_reached_the_server("slow peers");
    let timed_out = scene
        .world
        .metric("guardian_refused_connections_total{cause=\"timeout\"}")
        .await;
    assert!(timed_out >= Some(5.0), "{timed_out:?}");
}

impl Slow {
    /// The time until the server hangs up, and what it sent.
    async fn try_patience(&self, scene: &Scene) -> (Duration, String) {
        let begun = Instant::now();
        let said = match self.way {
            Way::Tcp => {
                self.drip(TcpStream::connect((Ipv4Addr::LOCALHOST, scene.world.port)).await.unwrap())
                    .await
            }
            Way::Http1 => {
                self.drip(scene.world.address(None, Protocol::Http1).socket().await.unwrap())
                    .await
            }
            Way::Http2 => {
                self.drip(scene.world.address(None, Protocol::Http2).socket().await.unwrap())
                    .await
            }
        };
        (begun.elapsed(), String::from_utf8_lossy(&said).into_owned())
    }

    async fn drip(&self, socket: impl AsyncRead + AsyncWrite) -> Vec<u8> {
        let (mut read, mut write) = split(socket);
        let mut said = Vec::new();
        let listening = async {
            // The connection has ended, whether cleanly or not.
            let _ = read.read_to_end(&mut said).await;
        };
        let dripping = async {
            let mut ticks = interval(DRIP);
            let mut more = write.write_all(&self.first).await.is_ok();
            while more && !self.drip.is_empty() {
                ticks.tick().await;
                more = write.write_all(&self.drip).await.is_ok() && write.flush().await.is_ok();
            }
            let _ = write.flush().await;
            std::future::pending::<()>().await;
        };
        let end = async {
            tokio::select! {
                () = listening => (),
                () = dripping => (),
            }
        };
        soon(&format!("the end of {}", self.what), end).await;
        said
    }
}

/// The catalogue asks for ten thousand, on a machine of its own; here as many as a process may have files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t22_idle_connections_take_no_more_than_their_share() {
    const ALL: usize = 600;
    const OF_ONE: usize = 250;
    let (all, of_one) = (ALL.to_string(), OF_ONE.to_string());
    let scene = Scene::set(
        "",
        &[
            ("listen.limits.max_connections", &all),
            ("listen.limits.max_connections_per_address", &of_one),
            ("listen.limits.handshake_timeout", "'6s'"),
            ("listen.limits.header_timeout", "'6s'"),
        ],
    )
    .await;
    let port = scene.world.port;
    let ((), cost) = scene
        .while_bob_stays_served(async {
            let open = async || scene.world.metric("guardian_connections").await;
            let one = crowd([127, 0, 0, 2], port, OF_ONE + 50).await;
            eventually("one address to have its share", async || {
                (open().await? >= OF_ONE as f64).then_some(())
            })
            .await;
            assert!(add(&scene.bystander()).await, "a new client of another address is served");
            let more = [
                crowd([127, 0, 0, 3], port, OF_ONE).await,
                crowd([127, 0, 0, 4], port, OF_ONE).await,
            ];
            eventually("every place to be taken", async || {
                (open().await? >= ALL as f64).then_some(())
            })
            .await;
            assert!(turned_away(scene.bystander()).await, "beyond that nobody new is let in");
            assert!(open().await <= Some(ALL as f64));

            // No idle client leaves by itself: the time-out frees a slot.
            eventually("a new client to be served", async || {
                (!turned_away(scene.bystander()).await).then_some(())
            })
            .await;
            drop((one, more));
        })
        .await;
    cost.is_bounded("idle connections");
    let refused = scene.world.metric("guardian_refused_connections_total{cause=\"cap\"}").await;
    assert!(refused >= Some(50.0), "{refused:?}");
    scene.nothing_reached_the_server("idle connections");
}

/// Connections from one address; every second one is silent from the start, the others stop within the TLS handshake.
async fn crowd(from: [u8; 4], port: u16, count: usize) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for number in 0..count {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((from, 0))).unwrap();
        let mut stream = soon("a connection", socket.connect((Ipv4Addr::LOCALHOST, port).into()))
            .await
            .unwrap();
        if number % 2 == 0 {
            // The connection may be closed already by the cap.
            let _ = stream.write_all(&[22, 3, 1, 0, 200, 1]).await;
        }
        all.push(stream);
    }
    all
}

async fn turned_away(client: Client) -> bool {
    client.send_ping().await.is_err()
}
