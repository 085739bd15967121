//! The demo MCP server over its own socket, in both eras, as Guardian's upstream client meets it.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use neural_guardian::cli::demo::{self, Demo};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use std::path::PathBuf;

#[tokio::test]
async fn a_legacy_client_shakes_hands_lists_and_calls() {
    let test = Test::start("legacy").await;
    let opened = test.initialize("2025-06-18").await;
    assert_eq!(opened.status, StatusCode::OK);
    assert_eq!(opened.json["result"]["protocolVersion"], "2025-06-18");
    assert_eq!(opened.json["result"]["serverInfo"]["name"], "guardian-demo");
    let session = opened.headers["mcp-session-id"].to_str().unwrap().to_owned();
    let heads = [("mcp-session-id", session.as_str()), ("mcp-protocol-version", "2025-06-18")];

    let noted = test
        .post(&heads, json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }))
        .await;
    assert_eq!((noted.status, noted.text.as_str()), (StatusCode::ACCEPTED, ""));
    assert_eq!(test.request(&heads, "ping", json!({})).await.json["result"], json!({}));

    let listed = test.request(&heads, "tools/list", json!({})).await;
    assert_eq!(
        names(&listed.json),
        ["list_files", "read_file", "write_file", "delete_file", "query", "count"]
    );
    assert_eq!(
        listed.json["result"].as_object().unwrap().len(),
        1,
        "nothing of the later era: {}",
        listed.text
    );

    let read = test
        .request(&heads, "tools/call", call("read_file", json!({ "path": "welcome.txt" })))
        .await;
    assert!(said(&read.json).starts_with("Welcome!"));
    let unknown = test.request(&heads, "resources/list", json!({})).await;
    assert_eq!((unknown.status, code(&unknown)), (StatusCode::OK, -32601));
    test.stop().await;
}

#[tokio::test]
async fn an_unknown_revision_is_offered_the_latest_legacy_one() {
    let test = Test::start("negotiate").await;
    for (asked, given) in [
        ("2024-11-05", "2024-11-05"),
        ("2025-11-25", "2025-11-25"),
        ("2026-07-28", "2025-11-25"),
        ("x", "2025-11-25"),
    ] {
        assert_eq!(
            test.initialize(asked).await.json["result"]["protocolVersion"],
            given,
            "{asked}"
        );
    }
    test.stop().await;
}

#[tokio::test]
async fn a_session_is_known_and_ended_and_a_single_call_by_hand_needs_none() {
    let test = Test::start("session").await;
    let without = test.request(&[], "tools/list", json!({})).await;
    assert_eq!(without.status, StatusCode::OK);
    assert_eq!(test.open(Method::GET, &[]).await.status(), StatusCode::BAD_REQUEST);
    let forged = test.request(&[("mcp-session-id", "forged")], "tools/list", json!({})).await;
    assert_eq!((forged.status, code(&forged)), (StatusCode::NOT_FOUND, -32001));

    let session = test.session("2025-11-25").await;
    let heads = [("mcp-session-id", session.as_str())];
    let other = [heads[0], ("mcp-protocol-version", "2025-03-26")];
    assert_eq!(
        test.request(&other, "tools/list", json!({})).await.status,
        StatusCode::BAD_REQUEST
    );

    let mut stream = test.open(Method::GET, &heads).await;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    assert_eq!(frame(stream.body_mut()).await.unwrap(), ": keep-alive\n\n");

    assert_eq!(test.open(Method::DELETE, &heads).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(frame(stream.body_mut()).await, None, "its stream ends with it");
    let after = test.request(&heads, "tools/list", json!({})).await;
    assert_eq!(after.status, StatusCode::NOT_FOUND);
    assert_eq!(test.open(Method::DELETE, &heads).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(test.open(Method::GET, &heads).await.status(), StatusCode::NOT_FOUND);
    test.stop().await;
}

#[tokio::test]
async fn a_count_streams_its_progress_and_then_its_result() {
    let test = Test::start("count").await;
    let session = test.session("2025-06-18").await;
    let heads = [("mcp-session-id", session.as_str())];
    let mut params = call("count", json!({ "to": 3, "delay_ms": 1 }));
    params["_meta"] = json!({ "progressToken": "p1" });
    let answer = test.request(&heads, "tools/call", params).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let events = events(&answer.text);
    let progress: Vec<_> = events[..3]
        .iter()
        .map(|event| {
            assert_eq!(event["params"]["progressToken"], "p1");
            event["params"]["progress"].as_u64().unwrap()
        })
        .collect();
    assert_eq!(progress, [1, 2, 3]);
    assert_eq!((events.len(), said(&events[3])), (4, "Counted to 3.".to_owned()));

    let silent = test
        .request(&heads, "tools/call", call("count", json!({ "to": 2, "delay_ms": 0 })))
        .await;
    assert_eq!(self::events(&silent.text).len(), 1, "no token, no progress");
    test.stop().await;
}

#[tokio::test]
async fn stopping_ends_what_is_still_counting() {
    let test = Test::start("stopping").await;
    let session = test.session("2025-06-18").await;
    let mut params = call("count", json!({ "to": 100, "delay_ms": 2000 }));
    params["_meta"] = json!({ "progressToken": 1 });
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params });
    let answer = test
        .send(Method::POST, &[("mcp-session-id", session.as_str())], body.to_string())
        .await;
    assert_eq!(answer.status(), StatusCode::OK);
    test.stop().await;
}

#[tokio::test]
async fn a_modern_client_needs_no_session() {
    let test = Test::start("modern").await;
    let found = test.modern("server/discover", None, json!({})).await;
    assert_eq!(found.status, StatusCode::OK);
    let result = &found.json["result"];
    assert_eq!(
        result["supportedVersions"],
        json!(["2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"])
    );
    assert_eq!(result["resultType"], "complete");
    assert_eq!((&result["ttlMs"], &result["cacheScope"]), (&json!(60_000), &json!("public")));
    assert_eq!(result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "guardian-demo");
    assert!(!found.headers.contains_key("mcp-session-id"));

    let listed = test.modern("tools/list", None, json!({})).await;
    assert_eq!(
        (names(&listed.json).len(), &listed.json["result"]["cacheScope"]),
        (6, &json!("public"))
    );

    let sql = json!({ "sql": "SELECT name FROM cities WHERE country = 'Peru'" });
    let called = test.modern("tools/call", Some("query"), call("query", sql)).await;
    assert_eq!(said(&called.json), "name\nLima");
    assert_eq!(called.json["result"]["resultType"], "complete");

    let counted = test
        .modern("tools/call", Some("count"), call("count", json!({ "to": 1, "delay_ms": 0 })))
        .await;
    assert_eq!(events(&counted.text).pop().unwrap()["result"]["resultType"], "complete");

    for gone in ["initialize", "ping", "resources/list"] {
        let answer = test.modern(gone, None, json!({})).await;
        assert_eq!((answer.status, code(&answer)), (StatusCode::NOT_FOUND, -32601), "{gone}");
    }
    test.stop().await;
}

#[tokio::test]
async fn modern_headers_must_repeat_what_the_body_says() {
    let test = Test::start("headers").await;
    let version = ("mcp-protocol-version", "2026-07-28");
    let method = ("mcp-method", "tools/call");
    let name = ("mcp-name", "read_file");
    let coded = ("mcp-name", "=?base64?cmVhZF9maWxl?=");
    let params = call("read_file", json!({ "path": "welcome.txt" }));
    for (heads, expected) in [
        (vec![version, method, name], None),
        (vec![version, method, coded], None),
        (vec![method, name], Some(-32020)),
        (vec![("mcp-protocol-version", "2025-11-25"), method, name], Some(-32020)),
        (vec![version, version, method, name], Some(-32020)),
        (vec![version, name], Some(-32020)),
        (vec![version, ("mcp-method", "TOOLS/CALL"), name], Some(-32020)),
        (vec![version, method], Some(-32020)),
        (vec![version, method, ("mcp-name", "delete_file")], Some(-32020)),
        (vec![version, method, name, name], Some(-32020)),
    ] {
        let answer = test.request(&heads, "tools/call", enveloped(params.clone())).await;
        let status = expected.map_or(StatusCode::OK, |_| StatusCode::BAD_REQUEST);
        assert_eq!(
            (answer.status, answer.json["error"]["code"].as_i64()),
            (status, expected),
            "{heads:?}"
        );
    }
    // The `_meta` envelope is missing, is incomplete, or names an unknown revision.
    let heads = [version, ("mcp-method", "tools/list")];
    let bare = test.request(&heads, "tools/list", json!({})).await;
    assert_eq!((bare.status, code(&bare)), (StatusCode::BAD_REQUEST, -32602));
    let half = json!({ "_meta": { "io.modelcontextprotocol/protocolVersion": "2026-07-28" } });
    assert_eq!(code(&test.request(&heads, "tools/list", half).await), -32602);
    let future = json!({ "_meta": {
        "io.modelcontextprotocol/protocolVersion": "2099-01-01",
        "io.modelcontextprotocol/clientCapabilities": {},
    } });
    let heads = [("mcp-protocol-version", "2099-01-01"), ("mcp-method", "tools/list")];
    let answer = test.request(&heads, "tools/list", future).await;
    assert_eq!((answer.status, code(&answer)), (StatusCode::BAD_REQUEST, -32022));
    assert_eq!(answer.json["error"]["data"]["requested"], "2099-01-01");
    test.stop().await;
}

#[tokio::test]
async fn only_its_own_credential_opens_it() {
    let test = Test::start("credential").await;
    let credential = test.demo.credential.expose_secret().to_owned();
    let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" }).to_string();
    for presented in [
        vec![],
        vec!["Bearer wrong"],
        vec![&credential[..credential.len() - 1]],
        vec![credential.as_str(), credential.as_str()],
    ] {
        let mut request = Request::post(test.demo.url())
            .header("content-type", "application/json")
            .header("accept", "*/*");
        for value in &presented {
            request = request.header("authorization", *value);
        }
        let answer = test
            .client
            .request(request.body(Full::from(ping.clone())).unwrap())
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{presented:?}");
        assert_eq!(answer.headers()["www-authenticate"], "Bearer");
    }
    let again = demo::start(&test.scratch).await.unwrap();
    assert_ne!(again.credential.expose_secret(), credential, "new on each start");
    again.stop().await;
    assert!(!format!("{:?}", test.demo).contains(&credential[7..]));
    test.stop().await;
}

#[tokio::test]
async fn what_is_not_mcp_is_told_so() {
    let test = Test::start("http").await;
    let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" }).to_string();
    type Heads = [(&'static str, &'static str)];
    let cases: [(&Heads, &str, StatusCode); 8] = [
        (&[("content-type", "text/plain")], &ping, StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (&[("accept", "application/json")], &ping, StatusCode::NOT_ACCEPTABLE),
        (&[("origin", "https://evil.example")], &ping, StatusCode::FORBIDDEN),
        (&[], "{", StatusCode::BAD_REQUEST),
        (&[], "[]", StatusCode::BAD_REQUEST),
        (&[], r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, StatusCode::BAD_REQUEST),
        (&[], r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, StatusCode::BAD_REQUEST),
        (
            &[],
            &format!("\"{}\"", "x".repeat(1024 * 1024)),
            StatusCode::PAYLOAD_TOO_LARGE,
        ),
    ];
    for (heads, body, status) in cases {
        let answer = test.send(Method::POST, heads, body.to_owned()).await;
        assert_eq!(answer.status(), status, "{heads:?} {}", &body[..body.len().min(60)]);
    }
    let put = test.open(Method::PUT, &[]).await;
    assert_eq!(
        (put.status(), &put.headers()["allow"]),
        (StatusCode::METHOD_NOT_ALLOWED, &"POST, GET, DELETE".parse().unwrap())
    );
    test.stop().await;
}

#[tokio::test]
async fn a_tool_that_fails_says_so_and_an_unknown_one_is_an_error() {
    let test = Test::start("tools").await;
    let session = test.session("2025-06-18").await;
    let heads = [("mcp-session-id", session.as_str())];
    for (tool, arguments, expected) in [
        (
            "read_file",
            json!({ "path": "../secret" }),
            "is not a path inside the scratch folder",
        ),
        ("read_file", json!({}), "missing field `path`"),
        ("read_file", json!({ "path": 7 }), "invalid type"),
        (
            "read_file",
            json!({ "path": "welcome.txt", "more": 1 }),
            "unknown field `more`",
        ),
        ("count", json!({ "to": 0 }), "`to` must be from 1 to 100"),
        (
            "count",
            json!({ "to": 1, "delay_ms": 9_999 }),
            "`delay_ms` must be at most 2000",
        ),
        (
            "query",
            json!({ "sql": "DROP TABLE cities" }),
            "the only statement allowed is",
        ),
    ] {
        let answer = test.request(&heads, "tools/call", call(tool, arguments)).await;
        assert_eq!(answer.json["result"]["isError"], true, "{tool}: {}", answer.text);
        assert!(said(&answer.json).contains(expected), "{tool}: {}", answer.text);
    }
    let unknown = test.request(&heads, "tools/call", call("Read_File", json!({}))).await;
    assert_eq!(code(&unknown), -32602);
    test.stop().await;
}

#[tokio::test]
async fn the_schemas_are_closed_and_agree_with_what_the_tools_take() {
    let test = Test::start("schemas").await;
    let listed = test.modern("tools/list", None, json!({})).await;
    let tools = listed.json["result"]["tools"].as_array().unwrap().clone();
    let validator = |name: &str| {
        let tool = tools.iter().find(|tool| tool["name"] == name).unwrap();
        assert_eq!(tool["inputSchema"]["additionalProperties"], false, "{name}");
        jsonschema::validator_for(&tool["inputSchema"]).unwrap()
    };
    for (name, good, bad) in [
        ("list_files", json!({}), json!({ "path": null })),
        ("read_file", json!({ "path": "welcome.txt" }), json!({ "path": "" })),
        ("write_file", json!({ "path": "a", "content": "" }), json!({ "path": "a" })),
        ("delete_file", json!({ "path": "a" }), json!({ "path": "a", "force": true })),
        ("query", json!({ "sql": "SELECT * FROM cities" }), json!({ "sql": ["x"] })),
        ("count", json!({ "to": 1, "delay_ms": 0 }), json!({ "to": 1.5 })),
    ] {
        assert!(validator(name).is_valid(&good), "{name}");
        assert!(!validator(name).is_valid(&bad), "{name}");
        let accepted = test.modern("tools/call", Some(name), call(name, good)).await;
        assert!(!accepted.text.contains("\"isError\":true"), "{}", accepted.text);
        let refused = test.modern("tools/call", Some(name), call(name, bad)).await;
        assert!(refused.text.contains("\"isError\":true"), "{}", refused.text);
    }
    let hint = |name: &str, hint: &str| tools.iter().find(|tool| tool["name"] == name).unwrap()["annotations"][hint].clone();
    for reading in ["list_files", "read_file", "query", "count"] {
        assert_eq!(hint(reading, "readOnlyHint"), true);
    }
    assert_eq!(hint("write_file", "destructiveHint"), false);
    assert_eq!(hint("delete_file", "destructiveHint"), true);
    test.stop().await;
}

struct Test {
    demo: Demo,
    client: Client<HttpConnector, Full<Bytes>>,
    scratch: PathBuf,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
    json: Value,
}

impl Test {
    async fn start(name: &str) -> Self {
        let scratch = std::env::temp_dir().join(format!("guardian-rooms-demo-{}-{name}", std::process::id()));
        Self {
            demo: demo::start(&scratch).await.unwrap(),
            client: Client::builder(TokioExecutor::new()).build_http(),
            scratch,
        }
    }

    async fn stop(self) {
        let address = self.demo.address;
        self.demo.stop().await;
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
        std::fs::remove_dir_all(self.scratch).unwrap();
    }

    async fn initialize(&self, version: &str) -> Answer {
        let params = json!({ "protocolVersion": version, "capabilities": {}, "clientInfo": { "name": "test", "version": "0" } });
        self.request(&[], "initialize", params).await
    }

    async fn session(&self, version: &str) -> String {
        self.initialize(version).await.headers["mcp-session-id"]
            .to_str()
            .unwrap()
            .to_owned()
    }

    async fn modern(&self, method: &str, name: Option<&str>, params: Value) -> Answer {
        let mut heads = vec![("mcp-protocol-version", "2026-07-28"), ("mcp-method", method)];
        heads.extend(name.map(|name| ("mcp-name", name)));
        self.request(&heads, method, enveloped(params)).await
    }

    async fn request(&self, heads: &[(&str, &str)], method: &str, params: Value) -> Answer {
        let body = json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": params });
        self.post(heads, body).await
    }

    async fn post(&self, heads: &[(&str, &str)], body: Value) -> Answer {
        let answer = self.send(Method::POST, heads, body.to_string()).await;
        let (head, body) = answer.into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Answer {
            status: head.status,
            headers: head.headers,
            json: serde_json::from_str(&text).unwrap_or(Value::Null),
            text,
        }
    }

    async fn open(&self, method: Method, heads: &[(&str, &str)]) -> http::Response<Incoming> {
        self.send(method, heads, String::new()).await
    }

    async fn send(&self, method: Method, heads: &[(&str, &str)], body: String) -> http::Response<Incoming> {
        let mut request = Request::builder()
            .method(method)
            .uri(self.demo.url())
            .header("authorization", self.demo.credential.expose_secret());
        for (name, value) in [
            ("content-type", "application/json"),
            ("accept", "application/json, text/event-stream"),
        ] {
            if !heads.iter().any(|head| head.0 == name) {
                request = request.header(name, value);
            }
        }
        for (name, value) in heads {
            request = request.header(*name, *value);
        }
        self.client.request(request.body(Full::from(body)).unwrap()).await.unwrap()
    }
}

fn enveloped(mut params: Value) -> Value {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "0" },
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    params
}

fn call(tool: &str, arguments: Value) -> Value {
    json!({ "name": tool, "arguments": arguments })
}

fn said(message: &Value) -> String {
    message["result"]["content"][0]["text"].as_str().unwrap().to_owned()
}

fn code(answer: &Answer) -> i64 {
    assert!(answer.json["id"] == 7, "{}", answer.text);
    answer.json["error"]["code"].as_i64().unwrap()
}

fn names(message: &Value) -> Vec<&str> {
    let tools = message["result"]["tools"].as_array().unwrap();
    tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect()
}

fn events(text: &str) -> Vec<Value> {
    text.split_terminator("\n\n")
        .map(|event| serde_json::from_str(event.strip_prefix("event: message\ndata: ").unwrap()).unwrap())
        .collect()
}

async fn frame(body: &mut Incoming) -> Option<String> {
    let data = body.frame().await?.ok()?.into_data().ok()?;
    Some(String::from_utf8(data.to_vec()).unwrap())
}
