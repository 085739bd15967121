//! T15 to T17: requests that two parsers would delimit differently, bodies that turn out wrong after what looked like a
//! message, and requests for another protocol. Each is written on a raw TLS connection with a second, correct request right
//! behind it; neither may reach the server.

use super::{Scene, all};
use crate::support::http::{Address, Protocol};
use serde_json::json;

/// Short time-outs, so that a request that waits for more bytes is cut off soon.
const SHORT: [(&str, &str); 3] = [
    ("listen.limits.header_timeout", "'1s'"),
    ("listen.limits.body_timeout", "'1s'"),
    // Many bodies of unknown length wait at once.
    ("listen.limits.max_body_bytes", "65536"),
];

/// A call in parts, so that a story can replace one.
struct Parts {
    line: String,
    host: String,
    fields: String,
    body: String,
    chunked: String,
}

impl Parts {
    fn of(scene: &Scene, tool: &str) -> Parts {
        let argument = if tool == "echo" { "text" } else { "path" };
        let body = scene
            .ana()
            .request("tools/call", json!({ "name": tool, "arguments": { argument: "hi" } }))
            .to_string();
        Parts {
            line: "POST /mcp/files HTTP/1.1".into(),
            host: format!("host: localhost:{}\r\n", scene.world.port),
            fields: format!(
                "authorization: Bearer {}\r\ncontent-type: application/json\r\naccept: application/json, text/event-stream\r\n\
                 mcp-protocol-version: 2026-07-28\r\nmcp-method: tools/call\r\nmcp-name: {tool}\r\n",
                scene.ana
            ),
            chunked: format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
            body,
        }
    }

    /// The request with `Content-Length`.
    fn plain(&self) -> String {
        self.sized(&format!("content-length: {}\r\n", self.body.len()))
    }

    /// The request with these header lines in place of `Content-Length`.
    fn sized(&self, framing: &str) -> String {
        format!("{}\r\n{}{}{framing}\r\n{}", self.line, self.host, self.fields, self.body)
    }

    /// The request with these header lines and a chunked body.
    fn in_chunks(&self, framing: &str) -> String {
        self.in_these_chunks(framing, &self.chunked)
    }

    fn in_these_chunks(&self, framing: &str, chunks: &str) -> String {
        format!("{}\r\n{}{}{framing}\r\n{chunks}", self.line, self.host, self.fields)
    }

    /// The request with `Content-Length` and one more header line.
    fn and(&self, field: &str) -> String {
        self.sized(&format!("content-length: {}\r\n{field}", self.body.len()))
    }

    fn with_line(&self, line: &str) -> String {
        self.plain().replacen(&self.line, line, 1)
    }

    fn with_host(&self, host: &str) -> String {
        self.plain().replacen(&self.host, host, 1)
    }
}

/// What is wrong with a request, and its bytes.
type Odd = (&'static str, Vec<u8>);

fn lengths(call: &Parts) -> Vec<Odd> {
    let length = call.body.len();
    let lines = |fields: &[String]| {
        call.sized(&fields.iter().map(|field| format!("{field}\r\n")).collect::<String>())
            .into_bytes()
    };
    let one = |value: String| lines(&[format!("content-length: {value}")]);
    let overflow = u128::from(u64::MAX) + 1 + length as u128;
    vec![
        ("a length with zeros", one(format!("0000{length}"))),
        ("a length with a plus", one(format!("+{length}"))),
        ("a length with a minus", one(format!("-{length}"))),
        ("a length with a fraction", one(format!("{length}.0"))),
        ("a length with an exponent", one("2e2".into())),
        ("a length in hexadecimal", one(format!("{length:#x}"))),
        ("a length in quotes", one(format!("\"{length}\""))),
        ("a length with a parameter", one(format!("{length};a=b"))),
        ("a length with a word behind it", one(format!("{length} 0"))),
        ("a length beyond all numbers", one(overflow.to_string())),
        ("an empty length", one(String::new())),
        ("a length in other digits", one(length.to_string().replace('2', "\u{662}"))),
        ("the same length twice in a list", one(format!("{length}, {length}"))),
        ("two lengths in a list", one(format!("{length}, 0"))),
        (
            "two lengths, the longer first",
            lines(&[format!("content-length: {length}"), "content-length: 0".into()]),
        ),
        (
            "two lengths, the shorter first",
            lines(&["content-length: 0".into(), format!("content-length: {length}")]),
        ),
        (
            "a space before the colon of a length",
            lines(&[format!("content-length : {length}")]),
        ),
        ("a length with an underscore", lines(&[format!("content_length: {length}")])),
        (
            "a length with an underscore beside one without",
            call.and("content_length: 0\r\n").into(),
        ),
        ("a folded length", lines(&["content-length:".into(), format!(" {length}")])),
        (
            "a length behind a bare return",
            call.and("x-a: b\rcontent-length: 0\r\n").into(),
        ),
        (
            "a length that is folded away",
            call.and("x-a: b\r\n content-length: 0\r\n").into(),
        ),
        ("a length that is too short", one((length - 1).to_string())),
        ("a length that reaches into the next request", one((length + 40).to_string())),
        ("a body behind GET", call.with_line("GET /mcp/files HTTP/1.1").into()),
        ("a body behind DELETE", call.with_line("DELETE /mcp/files HTTP/1.1").into()),
        ("a body behind HEAD", call.with_line("HEAD /mcp/files HTTP/1.1").into()),
    ]
}

fn codings(call: &Parts) -> Vec<Odd> {
    let lines = |fields: &[&str]| {
        call.in_chunks(&fields.iter().map(|field| format!("{field}\r\n")).collect::<String>())
            .into_bytes()
    };
    let one = |value: &str| lines(&[&format!("transfer-encoding: {value}")]);
    let length = format!("content-length: {}", call.chunked.len());
    vec![
        ("a coding before chunked", one("gzip, chunked")),
        ("chunked twice in a list", one("chunked, chunked")),
        ("a coding behind chunked", one("chunked, identity")),
        ("no coding but identity", one("identity")),
        ("a coding that nobody knows", one("xchunked")),
        ("chunked with a parameter", one("chunked;q=1")),
        ("chunked in quotes", one("\"chunked\"")),
        ("chunked with a comma", one("chunked,")),
        ("a comma and chunked", one(",chunked")),
        ("chunked behind a vertical tab", one("\x0bchunked")),
        ("chunked and a NUL", one("chunked\0")),
        ("an empty coding", one("")),
        (
            "chunked in two lines",
            lines(&["transfer-encoding: chunked", "transfer-encoding: chunked"]),
        ),
        (
            "identity and chunked in two lines",
            lines(&["transfer-encoding: identity", "transfer-encoding: chunked"]),
        ),
        (
            "chunked and identity in two lines",
            lines(&["transfer-encoding: chunked", "transfer-encoding: identity"]),
        ),
        (
            "a space before the colon of a coding",
            lines(&["transfer-encoding : chunked"]),
        ),
        ("a tab before the colon of a coding", lines(&["transfer-encoding\t: chunked"])),
        ("a coding with an underscore", lines(&["transfer_encoding: chunked"])),
        (
            "a coding with an underscore beside a length",
            lines(&["transfer_encoding: chunked", &length]),
        ),
        ("a folded coding", lines(&["transfer-encoding:", " chunked"])),
        ("half a coding folded", lines(&["transfer-encoding: chun", "\tked"])),
        (
            "a coding that is folded away",
            lines(&["x-a: b", " transfer-encoding: chunked"]),
        ),
        (
            "a coding behind a bare return",
            lines(&["x-a: b\rtransfer-encoding: chunked"]),
        ),
        (
            "a coding in HTTP/1.0",
            call.in_chunks("transfer-encoding: chunked\r\n")
                .replacen("HTTP/1.1", "HTTP/1.0", 1)
                .into(),
        ),
        (
            "a coding and a connection that drops it",
            lines(&["transfer-encoding: chunked", "connection: transfer-encoding"]),
        ),
    ]
}

fn chunks(call: &Parts) -> Vec<Odd> {
    let (body, length) = (&call.body, call.body.len());
    let these = |chunks: String| call.in_these_chunks("transfer-encoding: chunked\r\n", &chunks).into_bytes();
    let sized = |size: String| these(format!("{size}\r\n{body}\r\n0\r\n\r\n"));
    let ended = |end: &str| these(format!("{length:x}\r\n{body}\r\n0\r\n{end}"));
    vec![
        ("a size with an x", sized(format!("0x{length:x}"))),
        ("a size with a minus", sized(format!("-{length:x}"))),
        ("a size with a plus", sized(format!("+{length:x}"))),
        ("a size with a space before it", sized(format!(" {length:x}"))),
        ("a size of no digits", sized(String::new())),
        ("a size of a letter", sized("g".into())),
        ("a size beyond all numbers", sized(format!("1{:016x}", length))),
        ("a size that is too small", sized(format!("{:x}", length - 1))),
        ("a size that is too large", sized(format!("{:x}", length + 1))),
        (
            "a size that ends with a line feed",
            these(format!("{length:x}\n{body}\r\n0\r\n\r\n")),
        ),
        (
            "a size that ends with a return",
            these(format!("{length:x}\r{body}\r\n0\r\n\r\n")),
        ),
        ("an extension with a line feed", sized(format!("{length:x};a=\"\n\""))),
        (
            "an extension that is longer than a head",
            sized(format!("{length:x};a={}", "b".repeat(70_000))),
        ),
        (
            "a chunk that ends with a line feed",
            these(format!("{length:x}\r\n{body}\n0\r\n\r\n")),
        ),
        ("a chunk that does not end", these(format!("{length:x}\r\n{body}0\r\n\r\n"))),
        ("a credential behind the chunks", ended("authorization: Bearer other\r\n\r\n")),
        ("a length behind the chunks", ended("content-length: 0\r\n\r\n")),
        ("a coding behind the chunks", ended("transfer-encoding: chunked\r\n\r\n")),
        ("any field behind the chunks", ended("x-a: b\r\n\r\n")),
        ("no field behind the chunks", ended("x-a\r\n\r\n")),
        ("no end of the chunks", ended("")),
    ]
}

fn heads(call: &Parts) -> Vec<Odd> {
    let bytes = |text: String| text.into_bytes();
    vec![
        ("two hosts", bytes(call.and("host: other\r\n"))),
        ("the same host twice", bytes(call.and(&call.host))),
        ("no host", bytes(call.with_host(""))),
        ("an empty host", bytes(call.with_host("host:\r\n"))),
        (
            "a user in the host",
            bytes(call.plain().replacen("localhost", "root@localhost", 1)),
        ),
        (
            "a space before the colon of a host",
            bytes(call.plain().replacen("host:", "host :", 1)),
        ),
        (
            "another host in the line",
            bytes(call.with_line("POST https://evil.test/mcp/files HTTP/1.1")),
        ),
        (
            "a scheme and another host in the line",
            bytes(call.with_line("POST http://evil.test/mcp/files HTTP/1.1")),
        ),
        ("a target without a slash", bytes(call.with_line("POST mcp/files HTTP/1.1"))),
        ("a star for a target", bytes(call.with_line("POST * HTTP/1.1"))),
        ("no target", bytes(call.with_line("POST  HTTP/1.1"))),
        ("two targets", bytes(call.with_line("POST /mcp/files /mcp/files HTTP/1.1"))),
        ("a dot in the path", bytes(call.with_line("POST /mcp/./files HTTP/1.1"))),
        ("two dots in the path", bytes(call.with_line("POST /mcp/x/../files HTTP/1.1"))),
        (
            "encoded dots in the path",
            bytes(call.with_line("POST /mcp/x/%2e%2e/files HTTP/1.1")),
        ),
        (
            "an encoded slash in the path",
            bytes(call.with_line("POST /mcp%2ffiles HTTP/1.1")),
        ),
        (
            "an encoded letter in the path",
            bytes(call.with_line("POST /mcp/%66iles HTTP/1.1")),
        ),
        (
            "an encoded NUL in the path",
            bytes(call.with_line("POST /mcp/files%00 HTTP/1.1")),
        ),
        ("a backslash in the path", bytes(call.with_line("POST /mcp\\files HTTP/1.1"))),
        (
            "a parameter in the path",
            bytes(call.with_line("POST /mcp/files;a=b HTTP/1.1")),
        ),
        ("UTF-8 in the path", bytes(call.with_line("POST /mcp/files\u{e9} HTTP/1.1"))),
        ("HTTP/1.0", bytes(call.with_line("POST /mcp/files HTTP/1.0"))),
        ("HTTP/1.2", bytes(call.with_line("POST /mcp/files HTTP/1.2"))),
        ("HTTP/2.0 in a line", bytes(call.with_line("POST /mcp/files HTTP/2.0"))),
        ("HTTP in small letters", bytes(call.with_line("POST /mcp/files http/1.1"))),
        ("no version", bytes(call.with_line("POST /mcp/files"))),
        ("a preface of HTTP/2", bytes("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into())),
        (
            "a method that is no token",
            bytes(call.with_line("PO(ST /mcp/files HTTP/1.1")),
        ),
        ("a name with a space", bytes(call.and("x a: b\r\n"))),
        ("a name that is no token", bytes(call.and("x\u{e9}: b\r\n"))),
        ("no name", bytes(call.and(": b\r\n"))),
        ("no colon", bytes(call.and("x-a\r\n"))),
        ("a NUL in a value", bytes(call.and("x-a: b\0c\r\n"))),
        ("a bare return in a value", bytes(call.and("x-a: b\rc\r\n"))),
        ("a folded field", bytes(call.and("x-a: b\r\n c\r\n"))),
        (
            "a field folded at the start",
            bytes(call.plain().replacen("host:", " x-a: b\r\nhost:", 1)),
        ),
        ("a hundred and more fields", bytes(call.and(&"x-a: b\r\n".repeat(120)))),
        (
            "a field of 70 kB",
            bytes(call.and(&format!("x-a: {}\r\n", "b".repeat(70_000)))),
        ),
        ("an expectation", bytes(call.and("expect: 100-continue\r\n"))),
        ("an expectation of anything", bytes(call.and("expect: anything\r\n"))),
        ("trailers announced", bytes(call.and("trailer: authorization\r\n"))),
        (
            "a connection that drops the credential",
            bytes(call.and("connection: close, authorization\r\n")),
        ),
        (
            "a connection that drops the name",
            bytes(call.and("connection: Mcp-Name\r\n")),
        ),
        ("a connection that drops the host", bytes(call.and("connection: host\r\n"))),
        (
            "a name of ours with an underscore",
            bytes(call.and("mcp_name: read_file\r\n")),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t15_no_framing_smuggles_a_request_in() {
    let scene = Scene::set("", &SHORT).await;
    let (call, inner) = (Parts::of(&scene, "echo"), Parts::of(&scene, "read_file"));
    let address = scene.world.address(None, Protocol::Http1);
    let odd = [lengths(&call), codings(&call), chunks(&call), heads(&call)].concat();
    assert!(odd.len() >= 72, "{}", odd.len());
    let (wrong, cost) = scene
        .while_bob_is_served(wrongly_answered(&scene, &address, &odd, &inner))
        .await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    cost.is_bounded("odd framing");

    // Both requests are calls where nothing is wrong, and sending one behind the other is not wrong either.
    let answer = address
        .raw((call.plain() + &inner.and("connection: close\r\n")).as_bytes())
        .await;
    assert_eq!(answer.matches("HTTP/1.1 200 ").count(), 2, "{answer}");
    let chunked = call.in_chunks("transfer-encoding: Chunked\r\nconnection: close\r\n");
    assert!(address.raw(chunked.as_bytes()).await.starts_with("HTTP/1.1 200 "));
    let reached = scene.reached();
    assert_eq!(
        reached.iter().map(|received| received.tool().unwrap()).collect::<Vec<_>>(),
        ["echo", "read_file", "echo"]
    );
    for received in reached {
        let length = received.body.len().to_string();
        assert_eq!(
            (received.header("content-length"), received.header("transfer-encoding")),
            (Some(length.as_str()), None)
        );
    }
}

/// Sends each odd request with the correct one behind it; returns those that were not refused as they must be.
async fn wrongly_answered(scene: &Scene, address: &Address, odd: &[Odd], inner: &Parts) -> Vec<String> {
    let mut wrong = Vec::new();
    for some in odd.chunks(16) {
        let before = scene.reached().len();
        let bytes: Vec<Vec<u8>> = some
            .iter()
            .map(|(_, bytes)| [bytes, inner.plain().as_bytes()].concat())
            .collect();
        let answers = all(bytes.iter().map(|bytes| address.raw(bytes))).await;
        for ((what, _), answer) in some.iter().zip(answers) {
            let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4");
            if !refused || answer.contains("HTTP/1.1 2") {
                wrong.push(format!("{what}: {answer}"));
            }
        }
        let reached = scene.reached().split_off(before);
        if !reached.is_empty() {
            let what: Vec<_> = some.iter().map(|(what, _)| *what).collect();
            wrong.push(format!("one of {what:?} reached the server: {reached:?}"));
        }
    }
    wrong
}

/// hyper settles these before Guardian sees them. What is left is one request with new framing, which is the last of its
/// connection or which no parser takes for two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t15_what_is_settled_before_us_is_one_request_and_framed_anew() {
    let mut scene = Scene::set("", &SHORT).await;
    let (call, inner) = (Parts::of(&scene, "echo"), Parts::of(&scene, "read_file"));
    let address = scene.world.address(None, Protocol::Http1);
    let chunked = "transfer-encoding: chunked\r\n";
    let length = format!("content-length: {}\r\n", call.chunked.len());
    let nothing = "content-length: 0\r\n";
    let own = format!("content-length: {}\r\n", call.body.len());
    for (what, bytes, closes) in [
        ("the same length twice", call.sized(&own.repeat(2)), false),
        ("a length and a coding", call.in_chunks(&format!("{length}{chunked}")), true),
        ("a coding and a length", call.in_chunks(&format!("{chunked}{length}")), true),
        (
            "a coding and a length of nothing",
            call.in_chunks(&format!("{chunked}{nothing}")),
            true,
        ),
        (
            "lines that end with a line feed",
            call.and("connection: close\r\n").replace("\r\n", "\n"),
            true,
        ),
        (
            "empty lines before it",
            format!("\r\n\r\n{}", call.and("connection: close\r\n")),
            true,
        ),
        (
            "a fragment",
            call.and("connection: close\r\n").replacen("/mcp/files", "/mcp/files#a", 1),
            true,
        ),
        (
            "an extension of a chunk",
            call.in_these_chunks(chunked, &call.chunked.replacen("\r\n", ";a=b\r\n", 1)),
            false,
        ),
        (
            "a size with zeros",
            call.in_these_chunks(chunked, &format!("000{}", call.chunked)),
            false,
        ),
    ] {
        scene.mark();
        let answer = address.raw((bytes + &inner.and("connection: close\r\n")).as_bytes()).await;
        let reached: Vec<String> = scene
            .reached()
            .iter()
            .map(|received| received.tool().unwrap_or_default().to_owned())
            .collect();
        let expected: &[&str] = if closes { &["echo"] } else { &["echo", "read_file"] };
        assert_eq!(reached, expected, "{what}: {answer}");
        for received in scene.reached() {
            let length = received.body.len().to_string();
            assert_eq!(
                (received.header("content-length"), received.header("transfer-encoding")),
                (Some(length.as_str()), None),
                "{what}"
            );
            assert_eq!(received.path, "/mcp");
        }
    }
}

/// The body turns out to be wrong after the whole message has arrived: Guardian has not sent the message on by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t16_a_message_is_judged_when_its_body_has_ended() {
    let scene = Scene::set("", &SHORT).await;
    let call = Parts::of(&scene, "echo");
    let whole = format!("{:x}\r\n{}\r\n", call.body.len(), call.body);
    let address = scene.world.address(None, Protocol::Http1);
    let endings = [
        ("a size that is none", "zz\r\n"),
        ("a size beyond all numbers", "fffffffffffffffff\r\n"),
        ("garbage", "\0\0\0\0"),
        ("half a chunk", "10\r\n    "),
        ("a chunk without an end", "1\r\n x"),
        ("a second message", "2\r\n{}\r\n0\r\n\r\n"),
        ("a field", "0\r\nx-a: b\r\n\r\n"),
        ("a credential", "0\r\nauthorization: Bearer other\r\n\r\n"),
        ("half an end", "0\r\n"),
        ("nothing", ""),
    ];
    let answers = all(endings.iter().map(|(_, ending)| {
        let bytes = call.in_these_chunks("transfer-encoding: chunked\r\n", &format!("{whole}{ending}"));
        let address = &address;
        async move { address.raw(bytes.as_bytes()).await }
    }))
    .await;
    for ((what, _), answer) in endings.iter().zip(answers) {
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{what}: {answer}");
    }
    // The same with `Content-Length`: all but the last byte has arrived.
    let short = call.plain();
    let answer = address.raw(&short.as_bytes()[..short.len() - 1]).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    scene.nothing_reached_the_server("bodies that end wrongly");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t17_no_other_protocol_and_no_other_method_is_forwarded() {
    let mut scene = Scene::set("credential = { value = 'Bearer the-servers-own' }", &SHORT).await;
    let (call, inner) = (Parts::of(&scene, "echo"), Parts::of(&scene, "read_file"));
    let address = scene.world.address(None, Protocol::Http1);
    let bare = |method: &str, target: &str, more: &str| {
        format!("{method} {target} HTTP/1.1\r\n{}{}{more}\r\n", call.host, call.fields).into_bytes()
    };
    let odd: Vec<Odd> = vec![
        (
            "an upgrade to WebSocket",
            bare("GET", "/mcp/files", "upgrade: websocket\r\nconnection: upgrade\r\n"),
        ),
        (
            "an upgrade to HTTP/2",
            call.and("upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABk\r\n")
                .into(),
        ),
        ("an upgrade to TLS", call.and("upgrade: TLS/1.2\r\n").into()),
        ("an upgrade without its field", call.and("connection: upgrade\r\n").into()),
        (
            "CONNECT to elsewhere",
            b"CONNECT evil.test:443 HTTP/1.1\r\nhost: evil.test:443\r\n\r\n".to_vec(),
        ),
        (
            "CONNECT to here",
            bare("CONNECT", &format!("localhost:{}", scene.world.port), ""),
        ),
        ("CONNECT to a path", bare("CONNECT", "/mcp/files", "")),
        ("TRACE", bare("TRACE", "/mcp/files", "")),
    ];
    let wrong = wrongly_answered(&scene, &address, &odd, &inner).await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for method in [
        "PUT", "PATCH", "OPTIONS", "HEAD", "TRACK", "DEBUG", "PROPFIND", "post", "Post", "GETPOST",
    ] {
        let answer = address.raw(&bare(method, "/mcp/files", "connection: close\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{method}: {answer}");
    }
    scene.nothing_reached_the_server("other protocols and methods");

    // A method override is an ordinary header, and `Connection` cannot remove a header that Guardian sets.
    for field in [
        "x-http-method-override: DELETE\r\n",
        "x-http-method: DELETE\r\n",
        "x-method-override: GET\r\n",
        "connection: close, x-a\r\nx-a: b\r\n",
        "connection: keep-alive, close\r\nkeep-alive: timeout=100\r\n",
    ] {
        scene.mark();
        let answer = address
            .raw(call.and(&format!("{field}connection: close\r\n")).as_bytes())
            .await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{field}: {answer}");
        let reached = scene.reached();
        let [received] = &reached[..] else {
            panic!("{field}: {reached:?}")
        };
        assert_eq!(
            (received.verb.as_str(), received.header("authorization")),
            ("POST", Some("Bearer the-servers-own"))
        );
        for name in [
            "x-http-method-override",
            "x-http-method",
            "x-method-override",
            "x-a",
            "keep-alive",
        ] {
            assert_eq!(received.header(name), None, "{field}");
        }
    }
}
