//! One call, one answer: what is sent, what comes back, what is recorded.

use super::cleared_call::{Fixture, config, initialize, legacy, modern_call, tool_call, without_id};
use super::server::{STREAM, Server, answer, json, write};
use neural_guardian::config::{HumanDuration, ServerConfig};
use neural_guardian::domain::{Executed, Method, OutcomeKind, ProtocolVersion, Reason};
use neural_guardian::mcp::MessageKind;
use neural_guardian::sessions::UpstreamSessionId;
use neural_guardian::upstream::{Answer, ForwardError, ForwardHeaders, OpenedSession, Upstream};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const RESULT: &str = r#"{"jsonrpc":"2.0","id":7,"result":{"content":[]}}"#;

async fn failure(server: &Server) -> (ForwardError, neural_guardian::domain::Outcome) {
    let fixture = Fixture::new(&server.url);
    match fixture.forward(tool_call()).await {
        Err(error) => (error, fixture.outcome().await),
        Ok(_) => panic!("answered"),
    }
}

fn body(answer: Answer) -> (u16, String) {
    match answer {
        Answer::Json { status, body, .. } => (status.as_u16(), String::from_utf8(body.to_vec()).unwrap()),
        Answer::Empty { status } => (status.as_u16(), String::new()),
        Answer::Stream(_) => panic!("a stream"),
    }
}

#[tokio::test]
async fn the_judged_bytes_go_out_under_a_head_made_from_nothing() {
    let server = Server::answering("200 OK", "application/json", RESULT).await;
    let fixture = Fixture::new(&server.url);
    let headers = ForwardHeaders {
        version: None,
        owner: None,
        session: UpstreamSessionId::parse("up-1"),
        last_event_id: Some("9".to_owned()),
        params: vec![
            ("mcp-param-region".parse().unwrap(), "eu".parse().unwrap()),
            ("cookie".parse().unwrap(), "a=b".parse().unwrap()),
        ],
    };
    let call = tool_call();
    let sent = call.body.clone();
    fixture
        .upstream
        .forward(fixture.cleared(call).await, headers.clone())
        .await
        .unwrap();
    fixture
        .upstream
        .forward(fixture.cleared(modern_call()).await, headers)
        .await
        .unwrap();
    let [legacy, modern] = &server.seen()[..] else {
        panic!("not two requests")
    };
    assert_eq!(legacy.body.as_bytes(), &sent[..]);
    assert_eq!((legacy.method.as_str(), legacy.target.as_str()), ("POST", "/mcp"));
    let named = |seen: &super::server::Seen| {
        let mut fields: Vec<String> = seen.fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        fields.sort();
        fields
    };
    let host = format!("host: {}", server.url.trim_start_matches("http://").trim_end_matches("/mcp"));
    let guardian = concat!("user-agent: guardian/", env!("CARGO_PKG_VERSION"));
    let length = format!("content-length: {}", sent.len());
    let common = [
        "accept: application/json, text/event-stream",
        "accept-encoding: identity",
        "authorization: Bearer upstream-secret",
        &length,
        "content-type: application/json",
        &host,
        guardian,
        "mcp-param-region: eu",
    ];
    let with = |own: &[&str]| {
        let mut fields: Vec<String> = common.iter().chain(own).map(|field| (*field).to_owned()).collect();
        fields.sort();
        fields
    };
    assert_eq!(
        named(legacy),
        with(&["mcp-protocol-version: 2025-06-18", "mcp-session-id: up-1"])
    );
    assert_eq!(
        named(modern),
        with(&["mcp-protocol-version: 2026-07-28", "mcp-method: tools/call", "mcp-name: read"]),
        "no session and nothing to resume in the modern era"
    );
}

#[tokio::test]
async fn get_and_delete_carry_the_session_and_no_body() {
    let server = Server::start(|seen, stream| {
        let answer = match seen.method.as_str() {
            "GET" => answer("405 Method Not Allowed", "text/plain", "no"),
            _ => answer("200 OK", "text/plain", "bye"),
        };
        write(stream, Arc::new(answer.into_bytes()))
    })
    .await;
    let fixture = Fixture::new(&server.url);
    let headers = ForwardHeaders {
        session: UpstreamSessionId::parse("up-1"),
        last_event_id: Some("9".to_owned()),
        ..ForwardHeaders::default()
    };
    for (method, status) in [(Method::OpenStream, 405), (Method::EndSession, 200)] {
        let cleared = fixture.cleared(without_id(method, "")).await;
        let answer = fixture.upstream.forward(cleared, headers.clone()).await.unwrap();
        assert_eq!(body(answer), (status, String::new()));
    }
    let [get, delete] = &server.seen()[..] else {
        panic!("not two requests")
    };
    assert_eq!(
        (get.method.as_str(), get.field("accept"), get.field("last-event-id")),
        ("GET", Some("text/event-stream"), Some("9"))
    );
    assert_eq!((delete.method.as_str(), delete.field("last-event-id")), ("DELETE", None));
    for seen in [get, delete] {
        assert_eq!(
            (seen.field("mcp-session-id"), seen.field("content-type"), seen.body.as_str()),
            (Some("up-1"), None, "")
        );
    }
    let outcomes = fixture.outcomes().await;
    let outcomes: Vec<_> = outcomes.iter().map(|outcome| (outcome.kind, outcome.executed)).collect();
    assert_eq!(
        outcomes,
        [
            (OutcomeKind::RefusedByServer, Executed::No),
            (OutcomeKind::Done, Executed::Yes)
        ]
    );
}

#[tokio::test]
async fn an_answer_comes_back_as_it_is_and_is_recorded() {
    let failing = r#"{"jsonrpc":"2.0", "id":7, "result":{"content":[],"isError":true}}"#;
    let refused = r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32602,"message":"no such tool"}}"#;
    let unknown = &refused.replace("-32602", "-32601");
    let (done, no) = (OutcomeKind::Done, OutcomeKind::RefusedByServer);
    for (status, media, text, kind, executed) in [
        ("200 OK", "application/json", RESULT, done, Executed::Yes),
        ("200 OK", "Application/JSON; charset=utf-8", RESULT, done, Executed::Yes),
        ("200 OK", "application/json", failing, OutcomeKind::ToolError, Executed::Yes),
        ("200 OK", "application/json", refused, no, Executed::Unknown),
        ("200 OK", "application/json", unknown, no, Executed::No),
        ("400 Bad Request", "application/json", refused, no, Executed::Unknown),
        ("404 Not Found", "application/json", refused, no, Executed::No),
        ("429 Too Many Requests", "application/json", refused, no, Executed::No),
        (
            "500 Internal Server Error",
            "application/json",
            refused,
            no,
            Executed::Unknown,
        ),
    ] {
        let server = Server::answering(status, media, text).await;
        let fixture = Fixture::new(&server.url);
        let answered = fixture.forward(tool_call()).await.unwrap();
        let code: u16 = status[..3].parse().unwrap();
        assert_eq!(body(answered), (code, text.to_owned()));
        let outcome = fixture.outcome().await;
        assert_eq!((outcome.kind, outcome.executed, outcome.status), (kind, executed, Some(code)));
        assert_eq!(outcome.bytes, text.len() as u64);
    }
}

#[tokio::test]
async fn an_error_that_names_no_request_is_addressed_to_this_one() {
    let nobody = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"Session not found"}}"#;
    let server = Server::answering("404 Not Found", "application/json", nobody).await;
    let (status, text) = body(Fixture::new(&server.url).forward(tool_call()).await.unwrap());
    assert_eq!((status, text), (404, nobody.replace("null", "7")));
}

#[tokio::test]
async fn what_the_client_must_not_hear_ends_here() {
    let (no, broken) = (OutcomeKind::RefusedByServer, OutcomeKind::Broken);
    for (status, extra, kind, executed) in [
        (
            "401 Unauthorized",
            "www-authenticate: Bearer resource_metadata=\"https://evil\"\r\n",
            no,
            Executed::No,
        ),
        (
            "403 Forbidden",
            "www-authenticate: Bearer error=\"insufficient_scope\"\r\n",
            no,
            Executed::No,
        ),
        (
            "407 Proxy Authentication Required",
            "proxy-authenticate: Basic\r\n",
            no,
            Executed::No,
        ),
        ("301 Moved Permanently", "location: /elsewhere\r\n", no, Executed::Unknown),
        (
            "307 Temporary Redirect",
            "location: http://127.0.0.1:1/mcp\r\n",
            no,
            Executed::Unknown,
        ),
        ("304 Not Modified", "", no, Executed::Unknown),
        ("200 OK", "content-encoding: gzip\r\n", broken, Executed::Unknown),
        (
            "200 OK",
            "content-encoding: identity\r\ncontent-encoding: br\r\n",
            broken,
            Executed::Unknown,
        ),
    ] {
        let server = Server::saying(format!(
            "HTTP/1.1 {status}\r\n{extra}set-cookie: a=b\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{RESULT}",
            RESULT.len()
        ))
        .await;
        let (error, outcome) = failure(&server).await;
        assert_eq!(error.reason, Reason::UpstreamBroken, "{status}: {error}");
        assert_eq!(error.status.map(|status| status.as_u16()), status[..3].parse().ok());
        assert!(
            !error.detail.contains("evil") && !error.detail.contains("elsewhere"),
            "{error}"
        );
        assert_eq!(
            (outcome.kind, outcome.executed, outcome.status),
            (kind, executed, status[..3].parse().ok())
        );
        assert_eq!(server.seen().len(), 1, "never followed, never repeated");
    }
}

#[tokio::test]
async fn what_is_no_answer_is_not_passed_on() {
    let cases = [
        answer("200 OK", "text/html", "<html>"),
        answer("200 OK", "application/json-seq", RESULT),
        answer("200 OK", "application/json", "{\"jsonrpc\":\"2.0\",\"id\":8,\"result\":{}}"),
        answer(
            "200 OK",
            "application/json",
            "{\"jsonrpc\":\"2.0\",\"id\":7,\"id\":7,\"result\":{}}",
        ),
        answer(
            "200 OK",
            "application/json",
            "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"roots/list\"}",
        ),
        answer("200 OK", "application/json", &format!("[{RESULT}]")),
        answer("200 OK", "application/json", "not json"),
        answer("200 OK", "application/json", ""),
        answer("202 Accepted", "application/json", ""),
        answer("204 No Content", "application/json", ""),
        answer("502 Bad Gateway", "text/html", "<html>"),
        answer("503 Service Unavailable", "application/json", "{\"error\":\"down\"}"),
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n{".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{".to_owned(),
        "SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(),
        String::new(),
    ];
    for case in cases {
        let server = Server::saying(case.clone()).await;
        let (error, outcome) = failure(&server).await;
        assert_eq!(error.reason, Reason::UpstreamBroken, "{case}: {error}");
        let is_status = case.starts_with("HTTP/1.1 5");
        let kind = if is_status {
            OutcomeKind::RefusedByServer
        } else {
            OutcomeKind::Broken
        };
        assert_eq!((outcome.kind, outcome.executed), (kind, Executed::Unknown), "{case}");
        assert_eq!(server.seen().len(), 1, "a call is never repeated: {case}");
    }
}

#[tokio::test]
async fn a_refusal_without_a_message_keeps_the_status_that_clients_act_upon() {
    for (status, media, text) in [
        ("404 Not Found", "text/plain", "Session not found"),
        ("404 Not Found", "application/json", "{\"error\":\"no session\"}"),
        ("400 Bad Request", "text/plain", "Missing session"),
        ("405 Method Not Allowed", "text/html", "no"),
    ] {
        let server = Server::answering(status, media, text).await;
        let fixture = Fixture::new(&server.url);
        let answered = fixture.forward(tool_call()).await.unwrap();
        assert_eq!(body(answered), (status[..3].parse().unwrap(), String::new()));
        let outcome = fixture.outcome().await;
        let executed = if status.starts_with("400") {
            Executed::Unknown
        } else {
            Executed::No
        };
        assert_eq!((outcome.kind, outcome.executed), (OutcomeKind::RefusedByServer, executed));
    }
}

#[tokio::test]
async fn an_answer_larger_than_allowed_is_dropped_unread() {
    let declared = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000000\r\n\r\n".to_owned();
    let server = Server::saying(declared).await;
    assert!(failure(&server).await.0.detail.contains("larger than 65536 bytes"));
    let server = Server::start(|_, mut stream| async move {
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n";
        let mut going = stream.write_all(head).await;
        while going.is_ok() {
            going = stream.write_all(&[b' '; 4096]).await;
        }
    })
    .await;
    let (error, outcome) = failure(&server).await;
    assert!(error.detail.contains("larger than 65536 bytes"), "{error}");
    assert_eq!(outcome.kind, OutcomeKind::Broken);
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_on() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n";
    for said in ["", "HTTP/1.1 200", head, &format!("{head}{{\"json")] {
        let said = said.to_owned();
        let server = Server::start(move |_, mut stream| {
            let said = said.clone();
            async move {
                let _ = stream.write_all(said.as_bytes()).await;
                std::future::pending::<()>().await;
            }
        })
        .await;
        let fixture = Fixture::with(ServerConfig {
            first_byte_timeout: HumanDuration(Duration::from_millis(500)),
            idle_timeout: HumanDuration(Duration::from_millis(100)),
            ..config(&server.url)
        });
        let error = fixture.forward(tool_call()).await.err().unwrap();
        assert_eq!(error.reason, Reason::UpstreamTimeout, "{error}");
        let outcome = fixture.outcome().await;
        assert_eq!((outcome.kind, outcome.executed), (OutcomeKind::TimedOut, Executed::Unknown));
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn an_answer_in_drops_is_given_up_on_too() {
    let server = Server::start(|_, mut stream| async move {
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 60000\r\n\r\n";
        let mut going = stream.write_all(head).await;
        let mut drops = tokio::time::interval(Duration::from_millis(5));
        while going.is_ok() {
            drops.tick().await;
            going = stream.write_all(b" ").await;
        }
    })
    .await;
    let fixture = Fixture::impatient(&server.url, Duration::from_millis(40));
    let error = fixture.forward(tool_call()).await.err().unwrap();
    assert_eq!(error.reason, Reason::UpstreamTimeout, "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable_and_the_record_says_so() {
    let unused = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let fixture = Fixture::new(&format!("http://{unused}/mcp"));
    let error = fixture.forward(tool_call()).await.err().unwrap();
    assert_eq!((error.reason, error.executed), (Reason::UpstreamUnreachable, Executed::No));
    let told = format!("connection refused by {unused}");
    assert_eq!(error.detail, told);
    assert_eq!(error.for_operator(), told, "said once");
    let outcome = fixture.outcome().await;
    assert_eq!((outcome.kind, outcome.executed), (OutcomeKind::NotSent, Executed::No));
    assert_eq!(outcome.detail.unwrap(), told);
    let forbidden = Fixture::with(ServerConfig {
        allow_private_address: false,
        ..config(&format!("http://{unused}/mcp"))
    });
    assert_eq!(
        forbidden.forward(tool_call()).await.err().unwrap().reason,
        Reason::UpstreamUnreachable
    );
}

#[tokio::test]
async fn a_caller_that_hangs_up_leaves_an_outcome() {
    let (told, heard) = tokio::sync::oneshot::channel();
    let told = std::sync::Mutex::new(Some(told));
    let server = Server::start(move |_, mut stream| {
        let told = told.lock().unwrap().take().unwrap();
        async move {
            let mut rest = Vec::new();
            let closed = stream.read_to_end(&mut rest).await;
            let _ = told.send(closed.is_ok());
        }
    })
    .await;
    let fixture = Fixture::new(&server.url);
    let mut forward = Box::pin(
        fixture
            .upstream
            .forward(fixture.cleared(tool_call()).await, ForwardHeaders::default()),
    );
    while server.seen().is_empty() {
        let waited = tokio::time::timeout(Duration::from_millis(5), &mut forward).await;
        assert!(waited.is_err(), "answered");
    }
    drop(forward);
    assert!(heard.await.unwrap(), "the server sees the connection end");
    assert_eq!(fixture.outcome().await.kind, OutcomeKind::ClientClosed);
}

#[tokio::test]
async fn notifications_are_taken_whatever_the_server_writes_beside() {
    let notification = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    for said in [
        answer("202 Accepted", "application/json", ""),
        answer("200 OK", "application/json", "null"),
        answer("204 No Content", "text/plain", ""),
        format!("{STREAM}data: x\n\n"),
    ] {
        let server = Server::saying(said).await;
        let fixture = Fixture::new(&server.url);
        let answered = fixture.forward(without_id(Method::Notification, notification)).await.unwrap();
        assert_eq!(body(answered), (202, String::new()));
        let outcome = fixture.outcome().await;
        assert_eq!((outcome.kind, outcome.executed), (OutcomeKind::Done, Executed::Yes));
    }
    let server = Server::answering("404 Not Found", "text/plain", "").await;
    let answered = Fixture::new(&server.url)
        .forward(without_id(Method::Notification, notification))
        .await
        .unwrap();
    assert_eq!(body(answered), (404, String::new()), "the session is gone");
    let server = Server::answering("503 Service Unavailable", "text/plain", "").await;
    assert!(
        Fixture::new(&server.url)
            .forward(without_id(Method::Notification, notification))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn initialize_opens_a_session_in_either_shape() {
    let result = json!({"jsonrpc":"2.0","id":7,"result":{"protocolVersion":"2025-03-26","capabilities":{},"serverInfo":{}}});
    let with_session = json(&result).replacen("\r\n", "\r\nmcp-session-id: up-1\r\n", 1);
    let streamed = format!(
        "{}id: 0\ndata:\n\n: hello\n\nevent: message\ndata: {result}\n\n",
        STREAM.replacen("\r\n", "\r\nMcp-Session-Id: up-1\r\n", 1)
    );
    let session = |id: Option<&str>| OpenedSession {
        version: ProtocolVersion::V20250326,
        session: id.and_then(UpstreamSessionId::parse),
    };
    for (said, wanted) in [
        (with_session, session(Some("up-1"))),
        (streamed, session(Some("up-1"))),
        (json(&result), session(None)),
    ] {
        let server = Server::saying(said).await;
        let fixture = Fixture::new(&server.url);
        let Ok(Answer::Json { body, opened, kind, .. }) = fixture.forward(initialize()).await else {
            panic!("no answer")
        };
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).unwrap(), result);
        assert_eq!((opened, kind), (Some(wanted), MessageKind::Result { is_error: false }));
        assert_eq!(fixture.outcome().await.kind, OutcomeKind::Done);
        assert_eq!(server.seen()[0].field("mcp-protocol-version"), None);
    }
}

#[tokio::test]
async fn an_initialize_that_agrees_on_nothing_known_is_broken() {
    let result = |version: &str| json(&json!({"jsonrpc":"2.0","id":7,"result":{"protocolVersion":version}}));
    let sessions = |fields: &str| result("2025-06-18").replacen("\r\n", &format!("\r\n{fields}"), 1);
    for said in [
        result("2026-07-28"),
        result("2027-01-01"),
        format!("{STREAM}data: {{\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{{\"protocolVersion\":\"2027-01-01\"}}}}\n\n"),
        format!("{STREAM}: hello\n\n"),
        json(&json!({"jsonrpc":"2.0","id":7,"result":{}})),
        sessions("mcp-session-id: a b\r\n"),
        sessions("mcp-session-id: a\r\nmcp-session-id: b\r\n"),
        sessions(&format!("mcp-session-id: {}\r\n", "x".repeat(2_000))),
    ] {
        let server = Server::saying(said.clone()).await;
        let fixture = Fixture::new(&server.url);
        let error = fixture.forward(initialize()).await.err().unwrap();
        assert_eq!(error.reason, Reason::UpstreamBroken, "{said}");
        assert_eq!(fixture.outcome().await.kind, OutcomeKind::Broken);
    }
}

#[tokio::test]
async fn a_session_id_counts_for_initialize_alone() {
    let said = answer("200 OK", "application/json", RESULT).replacen("\r\n", "\r\nmcp-session-id: other\r\n", 1);
    let server = Server::saying(said).await;
    let Ok(Answer::Json { opened, .. }) = Fixture::new(&server.url).forward(legacy("{}")).await else {
        panic!("no answer")
    };
    assert_eq!(opened, None);
}

#[test]
fn a_server_that_cannot_be_called_is_refused_at_the_start() {
    let refusal = |change: &dyn Fn(&mut ServerConfig)| {
        let mut config = config("http://127.0.0.1:1/mcp");
        change(&mut config);
        Upstream::new(&config).err().unwrap().to_string()
    };
    for url in [
        "",
        "mcp",
        "ftp://a/",
        "https:///mcp",
        "https://user:secret@host/mcp",
        "unix:/run/a",
    ] {
        let text = refusal(&|config| config.url = Some(url.to_owned()));
        assert!(
            text.starts_with("server `files`: its URL") && !text.contains("secret"),
            "{url}: {text}"
        );
    }
    for header in [
        "host",
        "Content-Type",
        "mcp-session-id",
        "trailer",
        "proxy-authorization",
        "a b",
        "",
    ] {
        let text = refusal(&|config| config.credential.as_mut().unwrap().header = header.to_owned());
        assert!(
            text.contains("credential") && !text.contains("upstream-secret"),
            "{header}: {text}"
        );
    }
    for value in ["", "  ", "secret\nx: y"] {
        let text = refusal(&|config| config.credential.as_mut().unwrap().value = Some(value.to_owned().into()));
        assert!(text.contains("credential") && !text.contains("secret"), "{text}");
    }
    assert!(refusal(&|config| config.credential.as_mut().unwrap().value = None).contains("either"));
}
