//! T11 to T13 and T18 to T20: what headers say about the body, the message, its destination and its sender. No header
//! decides what is allowed; all must be true, or the request is refused.

use super::Scene;
use crate::support::client::{Answer, Client, MODERN};
use crate::support::http::Protocol;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

impl Scene {
    /// A call of a tool that Ana may call, and of one that she may not.
    fn calls(&self) -> [Value; 2] {
        let client = self.ana();
        [
            client.request("tools/call", json!({ "name": "echo", "arguments": { "text": "hi" } })),
            client.request("tools/call", json!({ "name": "delete_file", "arguments": { "path": "hi" } })),
        ]
    }

    fn heads_of(&self, message: &Value) -> HeaderMap {
        let mut headers = self.ana().base_headers();
        let text = |text: &Value| HeaderValue::from_str(text.as_str().unwrap()).unwrap();
        headers.insert("mcp-method", text(&message["method"]));
        headers.insert("mcp-name", text(&message["params"]["name"]));
        headers
    }
}

/// The same headers with these values of one field.
fn with(mut headers: HeaderMap, name: &str, values: &[&[u8]]) -> HeaderMap {
    let name: HeaderName = name.parse().unwrap();
    headers.remove(&name);
    for value in values {
        headers.append(&name, HeaderValue::from_bytes(value).unwrap());
    }
    headers
}

async fn send(client: &Client, headers: HeaderMap, body: impl Into<bytes::Bytes>) -> Answer {
    Answer::read(client.send("POST", headers, body.into()).await.unwrap())
        .await
        .unwrap()
}

/// Whatever the content type, a forbidden call is not made, and an allowed one only as JSON in UTF-8.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t11_no_content_type_switches_enforcement_off() {
    let mut scene = Scene::set("", &[]).await;
    let [allowed, forbidden] = scene.calls();
    let client = scene.ana();
    let good: &[&[&str]] = &[
        &["application/json"],
        &["Application/JSON"],
        &["APPLICATION/JSON"],
        &["application/json; charset=utf-8"],
        &["application/json;charset=UTF-8"],
        &["application/json ; charset=\"utf-8\""],
    ];
    let bad: &[&[&str]] = &[
        &[],
        &[""],
        &["json"],
        &["application"],
        &["application/"],
        &["application/*"],
        &["*/*"],
        &["text/json"],
        &["text/plain"],
        &["text/plain; application/json"],
        &["text/event-stream"],
        &["application/jsonp"],
        &["application/json-rpc"],
        &["application/json-seq"],
        &["application/vnd.api+json"],
        &["application/octet-stream"],
        &["application/x-www-form-urlencoded"],
        &["multipart/form-data; boundary=a"],
        &["multipart/form-data; boundary=application/json"],
        &["application/json, text/plain"],
        &["text/plain, application/json"],
        &["application/json, application/json"],
        &["application/json", "application/json"],
        &["application/json", "text/plain"],
        &["text/plain", "application/json"],
        &["application/json; charset=utf-16"],
        &["application/json; charset=utf-7"],
        &["application/json; charset=iso-8859-1"],
        &["application/json; charset="],
        &["application/json; charset=utf-8; charset=utf-16"],
        &["application/json/x"],
        &["application /json"],
        &["\"application/json\""],
    ];
    for (values, accepted) in good
        .iter()
        .map(|values| (values, true))
        .chain(bad.iter().map(|values| (values, false)))
    {
        let values: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
        let what = format!(
            "{:?}",
            values.iter().map(|value| String::from_utf8_lossy(value)).collect::<Vec<_>>()
        );
        scene.mark();
        let answer = send(
            &client,
            with(scene.heads_of(&forbidden), "content-type", &values),
            forbidden.to_string(),
        )
        .await;
        let told = if accepted {
            "200 missing_scope"
        } else {
            "415 wrong_media_type"
        };
        assert_eq!(answer.verdict(), told, "{what}");
        let answer = send(
            &client,
            with(scene.heads_of(&allowed), "content-type", &values),
            allowed.to_string(),
        )
        .await;
        let told = if accepted { "allowed" } else { "415 wrong_media_type" };
        assert_eq!(answer.verdict(), told, "{what}");
        assert_eq!(scene.reached().len(), usize::from(accepted), "{what}");
    }
}

/// A compressed body is refused unread; nothing is decompressed to look into it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t12_an_encoded_body_is_refused_before_it_is_unpacked() {
    let scene = Scene::set("", &[]).await;
    let [allowed, _] = scene.calls();
    let client = scene.ana();
    for values in [
        &["gzip"][..],
        &["x-gzip"],
        &["GZIP"],
        &["deflate"],
        &["br"],
        &["zstd"],
        &["compress"],
        &["identity"],
        &["gzip, gzip"],
        &["identity, gzip"],
        &["gzip", "identity"],
        &[""],
        &["aes128gcm"],
    ] {
        let values: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
        // Whether the compressed bytes hold a message or not.
        for body in [allowed.to_string().into_bytes(), gzip_bomb()] {
            let answer = send(&client, with(scene.heads_of(&allowed), "content-encoding", &values), body).await;
            assert_eq!(answer.verdict(), "415 wrong_media_type", "{values:?}");
        }
    }
    let bomb = async {
        for _ in 0..20 {
            let headers = with(scene.heads_of(&allowed), "content-encoding", &[b"gzip"]);
            assert_eq!(send(&client, headers, gzip_bomb().repeat(20)).await.status, 415);
        }
    };
    let ((), cost) = scene.while_bob_is_served(bomb).await;
    cost.is_bounded("a bomb");
    scene.nothing_reached_the_server("encoded bodies");
}

/// 70 kB of gzip that expand to 10 MB of zeros: one block that repeats a zero with the longest match length.
fn gzip_bomb() -> Vec<u8> {
    const HEAD: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    // One final block with fixed Huffman codes: a zero, then matches of length 258 at distance 1, and the end of block.
    let mut bits: Vec<u8> = vec![1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0];
    for _ in 0..40_650 {
        bits.extend([1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0]);
    }
    bits.extend([0; 7]);
    let byte = |bits: &[u8]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | bit);
    HEAD.into_iter().chain(bits.chunks(8).map(byte)).chain([0; 8]).collect()
}

/// Headers that mirror the message must appear once, say what it says, and never stand in for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t13_fields_that_repeat_the_message_agree_with_it_or_it_is_refused() {
    let mut scene = Scene::set("", &[]).await;
    let [allowed, forbidden] = scene.calls();
    let client = scene.ana();
    let wrong: &[(&str, &[&[u8]])] = &[
        ("mcp-method", &[]),
        ("mcp-method", &[b""]),
        ("mcp-method", &[b"tools/list"]),
        ("mcp-method", &[b"Tools/Call"]),
        ("mcp-method", &[b"tools/call, tools/call"]),
        ("mcp-method", &[b"tools/call", b"tools/call"]),
        ("mcp-method", &[b"tools/call", b"tools/list"]),
        ("mcp-method", &[b"tools%2Fcall"]),
        ("mcp-method", &[b"\"tools/call\""]),
        ("mcp-method", &[b"=?base64?dG9vbHMvY2FsbA==?="]),
        ("mcp-name", &[]),
        ("mcp-name", &[b""]),
        ("mcp-name", &[b"read_file"]),
        ("mcp-name", &[b"Echo"]),
        ("mcp-name", &[b"echo;"]),
        ("mcp-name", &[b"echo, echo"]),
        ("mcp-name", &[b"echo", b"echo"]),
        ("mcp-name", &[b"echo", b"read_file"]),
        ("mcp-name", &[b"%65cho"]),
        ("mcp-name", &[b"\"echo\""]),
        ("mcp-name", &[b"ech\xc3\xb6"]),
        ("mcp-name", &[b"ech\xf6"]),
        // The marker in upper case, the other alphabet, no or too much padding, non-zero spare bits, encoded twice, cut off.
        ("mcp-name", &[b"=?BASE64?ZWNobw==?="]),
        ("mcp-name", &[b"=?Base64?ZWNobw==?="]),
        ("mcp-name", &[b"=?base64?ZWNobw?="]),
        ("mcp-name", &[b"=?base64?ZWNobw=?="]),
        ("mcp-name", &[b"=?base64?ZWNobw===?="]),
        ("mcp-name", &[b"=?base64?ZWNobx==?="]),
        ("mcp-name", &[b"=?base64?ZWNo bw==?="]),
        ("mcp-name", &[b"=?base64?ZWNobw=="]),
        ("mcp-name", &[b"=?base64??="]),
        ("mcp-name", &[b"=?base64?_-__?="]),
        ("mcp-name", &[b"=?base64?PT9iYXNlNjQ/WldOb2J3PT0/PQ==?="]),
        ("mcp-name", &[b"=?base64?cmVhZF9maWxl?="]),
        ("mcp-name", &[b"=?utf-8?B?ZWNobw==?="]),
        ("mcp-protocol-version", &[]),
        ("mcp-protocol-version", &[b""]),
        ("mcp-protocol-version", &[b"2025-11-25"]),
        ("mcp-protocol-version", &[b"2024-11-05"]),
        ("mcp-protocol-version", &[b"2026-07-28 2026-07-28"]),
        ("mcp-protocol-version", &[b"2026-07-28, 2026-07-28"]),
        ("mcp-protocol-version", &[b"2026-07-28", b"2026-07-28"]),
        ("mcp-protocol-version", &[b"2026-07-28", b"2025-11-25"]),
        ("mcp-protocol-version", &[b"=?base64?MjAyNi0wNy0yOA==?="]),
    ];
    for (name, values) in wrong {
        let what = format!(
            "{name}: {:?}",
            values.iter().map(|value| String::from_utf8_lossy(value)).collect::<Vec<_>>()
        );
        for message in [&allowed, &forbidden] {
            let answer = send(&client, with(scene.heads_of(&allowed), name, values), message.to_string()).await;
            assert_eq!(
                (answer.status, answer.reason()),
                (400, "header_mismatch"),
                "{what}: {answer:?}"
            );
            assert_eq!(answer.message["error"]["code"], -32020, "{what}");
        }
    }
    scene.nothing_reached_the_server("fields that disagree");

    // With whatever headers, or none: the message decides.
    let legacy = scene.world.connected("files", &scene.ana).await;
    let plain = legacy.request("tools/call", json!({ "name": "delete_file", "arguments": { "path": "hi" } }));
    scene.mark();
    for (name, value, told) in [
        ("x-a", "b", "200 missing_scope"),
        ("mcp-protocol-version", "2025-06-18", "200 missing_scope"),
        ("mcp-name", "echo", "400 header_mismatch"),
        ("mcp-method", "tools/list", "400 header_mismatch"),
        ("mcp-protocol-version", MODERN, "400 header_mismatch"),
        ("mcp-protocol-version", "1999-01-01", "400 unsupported_version"),
    ] {
        let headers = with(legacy.base_headers(), name, &[value.as_bytes()]);
        assert_eq!(
            send(&legacy, headers, plain.to_string()).await.verdict(),
            told,
            "{name}: {value}"
        );
    }
    let headers = with(legacy.base_headers(), "mcp-protocol-version", &[]);
    assert_eq!(
        send(&legacy, headers, plain.to_string()).await.verdict(),
        "200 missing_scope",
        "no version"
    );
    scene.nothing_reached_the_server("messages that may not be sent");

    // Copies of headers behind the body are not headers.
    let copied = format!(
        "POST /mcp/files HTTP/1.1\r\nhost: localhost:{}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         accept: */*\r\nmcp-protocol-version: {MODERN}\r\nmcp-method: tools/call\r\ntransfer-encoding: chunked\r\n\r\n\
         {:x}\r\n{allowed}\r\n0\r\nmcp-name: echo\r\n\r\n",
        scene.world.port,
        scene.ana,
        allowed.to_string().len(),
    );
    let answer = scene.world.address(None, Protocol::Http1).raw(copied.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    scene.nothing_reached_the_server("a name behind the body");
    assert_eq!(
        send(&client, scene.heads_of(&allowed), allowed.to_string()).await.verdict(),
        "allowed"
    );
    let written = with(scene.heads_of(&allowed), "mcp-name", &[b"=?base64?ZWNobw==?="]);
    assert_eq!(send(&client, written, allowed.to_string()).await.verdict(), "allowed");
    let names: Vec<_> = scene
        .reached()
        .iter()
        .map(|received| received.header("mcp-name").map(str::to_owned))
        .collect();
    assert_eq!(
        names,
        [Some("echo".into()), Some("echo".into())],
        "written anew from the message"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t18_a_path_is_a_route_byte_for_byte() {
    let scene = Scene::set("", &[]).await;
    let [allowed, _] = scene.calls();
    for path in [
        "/",
        "//",
        "/mcp/",
        "/mcp/files/",
        "/mcp/files//",
        "//mcp/files",
        "/mcp//files",
        "/MCP/files",
        "/mcp/Files",
        "/mcp/FILES",
        "/mcp/file",
        "/mcp/filess",
        "/mcp/files/x",
        "/mcp/files.",
        "/mcp/files?",
        "/mcp/files?a=b",
        "/mcp/files?/mcp/files",
        "/mcp/files&a",
        "/mcp/files,files",
        "/mcp/files@evil.test",
        "/mcp/files:8443",
        "/mcp/*",
        "/mcp/files/../files",
        "/mcp/./files",
        "/mcp/../mcp/files",
        "/mcp/%66iles",
        "/mcp%2Ffiles",
        "/mcp/files%20",
        "/mcp/files%00",
        "/mcp/files%2e",
        "/%2e%2e/mcp/files",
        "/mcp/files;v=1",
        "/.well-known/oauth-protected-resource/mcp/files",
        "/.well-known/../mcp/files",
        "/admin",
        "/metrics",
        "/mcp/http://evil.test/",
        "/mcp/localhost",
    ] {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let mut client = Client::new(scene.world.address(None, protocol), "files").bearer(&scene.ana);
            client.path = path.into();
            let answer = send(&client, scene.heads_of(&allowed), allowed.to_string()).await;
            assert!([400, 404, 405].contains(&answer.status), "{path}: {answer:?}");
            assert!(answer.header("location").is_none(), "{path}: {answer:?}");
        }
    }
    scene.nothing_reached_the_server("other paths");
}

/// Only a verified credential says who the caller is. Headers that intermediaries use for it mean nothing here and are not
/// forwarded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t19_no_other_field_is_an_identity_or_goes_further() {
    let mut scene = Scene::set("credential = { value = 'Bearer the-servers-own' }", &[]).await;
    let [allowed, _] = scene.calls();
    let (ana, bob) = (scene.ana.clone(), scene.bob.clone());
    let fields = [
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-host", "evil.test"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-port", "1"),
        ("x-forwarded-server", "evil.test"),
        ("x-forwarded-uri", "/mcp/other"),
        ("x-forwarded-prefix", "/other"),
        ("x-forwarded-method", "GET"),
        ("x-forwarded-user", "ana@example.com"),
        ("x-forwarded-email", "ana@example.com"),
        ("x-forwarded-groups", "admin"),
        ("x-forwarded-preferred-username", "ana"),
        ("x-forwarded-access-token", &ana),
        ("x-forwarded-client-cert", "By=spiffe://a;URI=spiffe://example.test/ana"),
        ("x-original-url", "/mcp/other"),
        ("x-rewrite-url", "/mcp/other"),
        ("x-real-ip", "10.0.0.1"),
        ("true-client-ip", "10.0.0.1"),
        ("cf-connecting-ip", "10.0.0.1"),
        ("cf-access-authenticated-user-email", "ana@example.com"),
        ("x-auth-request-user", "ana@example.com"),
        ("x-auth-request-access-token", &ana),
        ("x-user", "ana@example.com"),
        ("x-user-id", "ana"),
        ("x-remote-user", "ana@example.com"),
        ("remote-user", "ana@example.com"),
        ("x-email", "ana@example.com"),
        ("x-roles", "admin"),
        ("x-scopes", "*"),
        ("x-client-cert", "-----BEGIN CERTIFICATE-----"),
        ("x-ssl-client-verify", "SUCCESS"),
        ("x-amzn-oidc-data", &ana),
        ("x-amzn-oidc-identity", "ana"),
        ("x-ms-client-principal", "YW5h"),
        ("x-goog-authenticated-user-email", "accounts.google.com:ana@example.com"),
        ("x-goog-iap-jwt-assertion", &ana),
        ("l5d-client-id", "ana.example.serviceaccount.identity.linkerd.cluster.local"),
        ("l5d-dst-override", "evil.test:80"),
        ("x-envoy-peer-metadata", "ana"),
        ("x-spiffe-id", "spiffe://example.test/ana"),
        ("x-guardian-user", "ana"),
        ("x-guardian-principal", "ana"),
        ("guardian-record", "0"),
        ("forwarded", "for=10.0.0.1;host=evil.test;proto=http"),
        ("via", "1.1 evil.test"),
        ("x-api-key", &ana),
        ("api-key", &ana),
        ("x-auth-token", &ana),
        ("x-access-token", &ana),
        ("token", &ana),
        ("proxy-authorization", &ana),
        ("www-authenticate", "Bearer"),
        ("cookie", &ana),
        ("cookie", "authorization=Bearer; session=ana"),
    ];
    for (name, value) in fields {
        scene.mark();
        let nobody = with(without(scene.heads_of(&allowed), "authorization"), name, &[value.as_bytes()]);
        let answer = send(&scene.world.client("files"), nobody, allowed.to_string()).await;
        assert_eq!(answer.status, 401, "{name} is no identity: {answer:?}");
        // Bob has no scope for `echo`; posing as Ana in headers does not give him one.
        let posing = with(
            scene.heads_of(&allowed),
            "authorization",
            &[format!("Bearer {bob}").as_bytes()],
        );
        let answer = send(
            &scene.world.client("files"),
            with(posing, name, &[value.as_bytes()]),
            allowed.to_string(),
        )
        .await;
        assert_eq!(answer.verdict(), "200 missing_scope", "{name}");
        scene.nothing_reached_the_server(name);

        let own = with(scene.heads_of(&allowed), name, &[value.as_bytes()]);
        let answer = send(&scene.world.client("files"), own, allowed.to_string()).await;
        assert_eq!(answer.verdict(), "allowed", "{name}");
        let reached = scene.reached();
        let [received] = &reached[..] else {
            panic!("{name}: {reached:?}")
        };
        assert_eq!(received.header(name), None, "{name} goes no further");
        assert!(!received.everything().contains(&ana), "{name}");
        assert_eq!(received.header("authorization"), Some("Bearer the-servers-own"), "{name}");
    }
    scene.mark();
    for name in [
        "x_forwarded_user",
        "x-forwarded_user",
        "mcp_session_id",
        "x_api_key",
        "proxy_authorization",
    ] {
        let posing = with(scene.heads_of(&allowed), name, &[b"ana"]);
        let answer = send(&scene.world.client("files"), posing, allowed.to_string()).await;
        assert_eq!(answer.verdict(), "400 bad_framing", "{name}");
    }
    scene.nothing_reached_the_server("underscores");
    // What intermediaries' headers say about the source address is not recorded either.
    scene.world.shipped().await;
    let rows = scene.world.audit("--tool echo");
    assert!(
        rows.len() > fields.len() && rows.iter().all(|row| row["source_ip"] == "127.0.0.1"),
        "{:?}",
        rows[0]
    );
}

fn without(mut headers: HeaderMap, name: &str) -> HeaderMap {
    headers.remove(name);
    headers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t20_a_web_page_or_a_name_that_is_not_ours_gets_nowhere() {
    let settings = [
        ("listen.origins", "['https://app.example.test']"),
        ("listen.hosts", "['mcp.example.test']"),
    ];
    let mut scene = Scene::set("", &settings).await;
    let [allowed, _] = scene.calls();
    let port = scene.world.port;
    let client = scene.world.client("files");
    let own = format!("localhost:{port}");
    let ask = async |name: &str, values: &[&[u8]]| {
        send(&client, with(scene.heads_of(&allowed), name, values), allowed.to_string()).await
    };
    for values in [
        &["https://evil.test"][..],
        &["null"],
        &[""],
        &["*"],
        &["https://app.example.test.evil.test"],
        &["https://evil.test/https://app.example.test"],
        &["https://app.example.test:8443"],
        &["http://app.example.test"],
        &["https://app.example.test/"],
        &["https://app.example.test, https://evil.test"],
        &["https://evil.test, https://app.example.test"],
        &["https://evil.test", "https://app.example.test"],
        &["https://app.example.test", "https://evil.test"],
        &["https://user@app.example.test"],
        &["app.example.test"],
        &["file://"],
        &["chrome-extension://a"],
        &["http://localhost"],
        &["http://127.0.0.1"],
        &["https://xn--app.example.test"],
    ] {
        let bytes: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
        let answer = ask("origin", &bytes).await;
        assert_eq!(answer.verdict(), "403 wrong_origin", "{values:?}");
        assert_eq!(answer.header("access-control-allow-origin"), None, "{values:?}");
    }
    for (host, told) in [
        ("evil.test", "421 wrong_host"),
        ("localhost", "421 wrong_host"),
        ("localhost:1", "421 wrong_host"),
        ("localhost.evil.test", "421 wrong_host"),
        ("127.0.0.1", "421 wrong_host"),
        ("[::1]", "421 wrong_host"),
        ("0.0.0.0", "421 wrong_host"),
        ("mcp.example.test.", "421 wrong_host"),
        ("mcp.example.test:443", "421 wrong_host"),
        ("mcp.example.test, evil.test", "421 wrong_host"),
        ("evil.test#mcp.example.test", "421 wrong_host"),
        ("mcp.example.test/", "421 wrong_host"),
        ("root@mcp.example.test", "400 bad_framing"),
        ("", "400 bad_framing"),
    ] {
        assert_eq!(ask("host", &[host.as_bytes()]).await.verdict(), told, "{host}");
    }
    let rebound = format!("evil.test:{port}");
    assert_eq!(
        ask("host", &[rebound.as_bytes()]).await.verdict(),
        "421 wrong_host",
        "a name that leads here"
    );
    scene.nothing_reached_the_server("pages and names that are not ours");
    for (name, value) in [
        ("host", own.as_str()),
        ("host", "MCP.example.test"),
        ("origin", "https://app.example.test"),
    ] {
        assert_eq!(ask(name, &[value.as_bytes()]).await.verdict(), "allowed", "{name}: {value}");
    }
    scene.mark();
}
