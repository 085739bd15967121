//! Fetching tools from servers of both eras, as JSON and as events, with everything that can be wrong about them.

use super::cleared_call::config;
use super::server::{STREAM, Seen, Server, answer, json, write};
use neural_guardian::domain::{ClientRequest, Digest, Era, ToolClass, ToolName};
use neural_guardian::upstream::{Eras, FetchFailed, OfferedTools, Upstream};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

fn tool(name: &str) -> Value {
    json!({ "name": name, "inputSchema": { "type": "object" } })
}

fn ok(seen: &Seen, result: Value) -> String {
    json(&json!({ "jsonrpc": "2.0", "id": seen.json()["id"], "result": result }))
}

fn refused(seen: &Seen, status: &str, code: i64) -> String {
    let error = json!({ "jsonrpc": "2.0", "id": seen.json()["id"], "error": { "code": code, "message": "no" } });
    answer(status, "application/json", &error.to_string())
}

fn is_modern(seen: &Seen) -> bool {
    seen.json()["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
        && seen.field("mcp-protocol-version") == Some("2026-07-28")
        && seen.field("mcp-method") == Some(&seen.called())
}

async fn server(say: impl Fn(&Seen) -> String + Send + Sync + 'static) -> (Server, Upstream) {
    let server = Server::start(move |seen, stream| write(stream, Arc::new(say(&seen).into_bytes()))).await;
    let upstream = Upstream::new(&config(&server.url)).unwrap();
    (server, upstream)
}

/// A legacy server with sessions; `tools` answers `tools/list`.
fn legacy(tools: impl Fn(&Seen) -> String + Send + Sync + 'static) -> impl Fn(&Seen) -> String + Send + Sync + 'static {
    move |seen| match seen.called().as_str() {
        "initialize" => ok(seen, json!({ "protocolVersion": "2025-06-18", "capabilities": {} })).replacen(
            "\r\n",
            "\r\nmcp-session-id: up-1\r\n",
            1,
        ),
        _ if seen.field("mcp-session-id") != Some("up-1") => refused(seen, "400 Bad Request", -32000),
        "notifications/initialized" => answer("202 Accepted", "application/json", ""),
        "tools/list" => tools(seen),
        "DELETE" => answer("200 OK", "text/plain", ""),
        _ => refused(seen, "200 OK", -32601),
    }
}

fn names(offered: &OfferedTools) -> Vec<&str> {
    offered.tools.iter().map(|tool| tool.name.as_str()).collect()
}

#[tokio::test]
async fn a_legacy_server_is_shaken_hands_with_and_left_again() {
    let pages = |seen: &Seen| match seen.json()["params"]["cursor"].as_str() {
        None => ok(seen, json!({ "tools": [tool("a")], "nextCursor": "2" })),
        Some("2") => ok(seen, json!({ "tools": [tool("b")], "nextCursor": "3" })),
        Some(_) => ok(seen, json!({ "tools": [tool("c")] })),
    };
    let (server, upstream) = server(legacy(pages)).await;
    assert_eq!(upstream.eras(), Eras::Unknown);
    let offered = upstream.fetch_tools().await.unwrap();
    assert_eq!(
        (names(&offered), offered.rejected.len(), offered.eras),
        (vec!["a", "b", "c"], 0, Eras::Legacy)
    );
    assert_eq!(upstream.eras(), Eras::Legacy);
    assert!(upstream.eras().cannot_speak(Era::Modern) && !upstream.eras().cannot_speak(Era::Legacy));
    let mut seen = server.seen();
    let plain = seen.split_off(7);
    let called: Vec<String> = seen.iter().map(Seen::called).collect();
    let again: Vec<String> = plain.iter().map(Seen::called).collect();
    assert_eq!(
        called, again,
        "as a client that answers requests, and as one that answers none"
    );
    let declared = |seen: &[Seen]| seen[0].json()["params"]["capabilities"].clone();
    assert_eq!((declared(&seen), declared(&plain)), (json!({ "roots": {} }), json!({})));
    let wanted = [
        "initialize",
        "notifications/initialized",
        "tools/list",
        "tools/list",
        "tools/list",
        "DELETE",
        "server/discover",
    ];
    assert_eq!(called, wanted);
    assert!(
        seen.iter()
            .all(|seen| seen.field("authorization") == Some("Bearer upstream-secret"))
    );
    assert_eq!(seen[2].field("mcp-protocol-version"), Some("2025-06-18"), "as it was agreed");
    assert!(is_modern(&seen[6]) && seen[6].field("mcp-session-id").is_none());
}

#[tokio::test]
async fn answers_may_come_as_streams() {
    let say = legacy(|seen| ok(seen, json!({ "tools": [tool("a")] })));
    let (_server, upstream) = server(move |seen| {
        let said = say(seen);
        match said.split_once("\r\n\r\n") {
            Some((head, body)) if head.contains("application/json") && !body.is_empty() && seen.method == "POST" => {
                let noise = "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{}}\r\n\r\n";
                format!("{STREAM}: hi\r\n\r\n{noise}event: message\r\ndata: {body}\r\n\r\n").replacen(
                    "\r\n",
                    "\r\nmcp-session-id: up-1\r\n",
                    1,
                )
            }
            _ => said,
        }
    })
    .await;
    assert_eq!(names(&upstream.fetch_tools().await.unwrap()), ["a"]);
}

#[tokio::test]
async fn a_modern_server_is_asked_without_a_session() {
    for refusal in [
        ("400 Bad Request", -32022),
        ("404 Not Found", -32601),
        ("200 OK", -32601),
        ("400 Bad Request", -32020),
        ("400 Bad Request", -32602),
    ] {
        let (server, upstream) = server(move |seen| match seen.called().as_str() {
            "tools/list" if is_modern(seen) => ok(
                seen,
                json!({ "resultType": "complete", "tools": [tool("a")], "ttlMs": 1, "cacheScope": "public" }),
            ),
            _ => refused(seen, refusal.0, refusal.1),
        })
        .await;
        let offered = upstream.fetch_tools().await.unwrap();
        assert_eq!((names(&offered), offered.eras), (vec!["a"], Eras::Modern), "{refusal:?}");
        assert!(upstream.eras().cannot_speak(Era::Legacy));
        let asked: Vec<_> = server.seen().iter().map(Seen::called).collect();
        assert_eq!(asked[..3], ["initialize", "tools/list", "server/discover"]);
        assert_eq!(asked[3..], asked[..3], "once more, as a client that answers no requests");
        upstream.fetch_tools().await.unwrap();
        assert_eq!(server.seen().len(), 9, "a list that has not changed is not compared again");
    }
}

/// Which tools depend on what the client answers is found by listing with more and with less.
#[tokio::test]
async fn what_only_some_clients_are_offered_is_known() {
    let answers_roots = |seen: &Seen| {
        let declared = &seen.json()["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"];
        declared.get("roots").is_some()
    };
    let (_server, upstream) = server(move |seen| match seen.called().as_str() {
        "tools/list" if is_modern(seen) => {
            let other = if answers_roots(seen) {
                tool("folders")
            } else {
                tool("ask_for_folders")
            };
            ok(
                seen,
                json!({ "resultType": "complete", "tools": [tool("a"), other], "ttlMs": 1, "cacheScope": "public" }),
            )
        }
        _ => refused(seen, "404 Not Found", -32601),
    })
    .await;
    for _ in 0..2 {
        let offered = upstream.fetch_tools().await.unwrap();
        assert_eq!(names(&offered), ["a", "folders", "ask_for_folders"]);
    }
    let offers = |tool: &str, declared: &[ClientRequest]| {
        upstream.offers(&ToolName::parse(tool).unwrap(), declared.iter().copied().collect())
    };
    assert!(offers("a", &[]) && offers("folders", &[ClientRequest::Roots]));
    assert!(!offers("folders", &[]) && !offers("folders", &[ClientRequest::Sampling]));
}

/// A server that waits for an answer of its client before it lists its tools gets one, and it is an error.
#[tokio::test]
async fn what_a_server_asks_while_its_tools_are_listed_is_refused() {
    let say = legacy(|seen| ok(seen, json!({ "tools": [tool("a")] })));
    let answered = Arc::new(tokio::sync::Semaphore::new(0));
    let server = Server::start(move |seen, mut stream| {
        let (said, answered) = (say(&seen), answered.clone());
        async move {
            if seen.method == "POST" && seen.json()["id"] == "r" {
                answered.add_permits(1);
            }
            if seen.called() != "tools/list" {
                return write(stream, Arc::new(said.into_bytes())).await;
            }
            let asked = r#"{"jsonrpc":"2.0","id":"r","method":"roots/list"}"#;
            stream
                .write_all(format!("{STREAM}data: {asked}\r\n\r\n").as_bytes())
                .await
                .unwrap();
            answered.acquire().await.unwrap().forget();
            let (_, body) = said.split_once("\r\n\r\n").unwrap();
            stream.write_all(format!("data: {body}\r\n\r\n").as_bytes()).await.unwrap();
        }
    })
    .await;
    let upstream = Upstream::new(&config(&server.url)).unwrap();
    assert_eq!(names(&upstream.fetch_tools().await.unwrap()), ["a"]);
    let refused = server
        .seen()
        .into_iter()
        .find(|seen| seen.method == "POST" && seen.json()["id"] == "r");
    let refused = refused.expect("an answer to what it asked");
    assert_eq!(refused.json()["error"]["code"], -32601);
    assert_eq!(refused.field("mcp-session-id"), Some("up-1"));
}

#[tokio::test]
async fn a_server_that_answers_initialize_with_the_new_version_is_a_modern_one() {
    let (_server, upstream) = server(|seen| match seen.called().as_str() {
        "tools/list" if is_modern(seen) => ok(seen, json!({ "resultType": "complete", "tools": [tool("a")] })),
        "initialize" => ok(seen, json!({ "protocolVersion": "2026-07-28", "capabilities": {} })),
        _ => refused(seen, "404 Not Found", -32601),
    })
    .await;
    let offered = upstream.fetch_tools().await.unwrap();
    assert_eq!((names(&offered), offered.eras), (vec!["a"], Eras::Modern));
}

#[tokio::test]
async fn a_server_of_both_eras_is_known_as_such() {
    let old = legacy(|seen| ok(seen, json!({ "tools": [tool("a")] })));
    let (_server, upstream) = server(move |seen| match seen.called().as_str() {
        "server/discover" if is_modern(seen) => ok(seen, json!({ "supportedVersions": ["2026-07-28"] })),
        _ => old(seen),
    })
    .await;
    assert_eq!(upstream.fetch_tools().await.unwrap().eras, Eras::Both);
}

#[tokio::test]
async fn tools_that_cannot_be_told_apart_or_checked_are_left_out_and_named() {
    let (_server, upstream) = server(legacy(|seen| {
        ok(seen, json!({ "tools": [tool("good"), tool("twice"), tool("a b"), tool("twice"), tool(""), {"name": "no-schema"}, {"inputSchema": {}}, 7,
            {"name": "odd", "inputSchema": true}, tool("Good")] }))
    }))
    .await;
    let offered = upstream.fetch_tools().await.unwrap();
    assert_eq!(names(&offered), ["good", "Good"]);
    let left_out: Vec<&str> = offered.rejected.iter().map(|left_out| left_out.name.as_str()).collect();
    assert_eq!(
        left_out,
        ["twice", "a b", "twice", "", "no-schema", "(no name)", "(no name)", "odd"]
    );
    assert!(offered.rejected.iter().all(|left_out| !left_out.why.is_empty()));
}

#[tokio::test]
async fn a_definition_has_one_text_however_it_is_written() {
    let one = r#"{"name":"a","description":"d","inputSchema":{"type":"object","maxProperties":1e1},"annotations":{"readOnlyHint":true},"icons":[],"x":{"b":1,"a":2}}"#;
    let other = r#"{ "x":{"a":2,"b":1.0}, "icons":[ ], "inputSchema":{"maxProperties":10,"type":"object"}, "annotations":{"readOnlyHint":true}, "description":"\u0064", "name":"a" }"#;
    let changed = one.replace("\"d\"", "\"e\"");
    let mut offered = Vec::new();
    for text in [one, other, &changed] {
        let text = text.to_owned();
        let (_server, upstream) = server(legacy(move |seen| {
            let body = format!(
                r#"{{"jsonrpc":"2.0","id":{},"result":{{"tools":[{text}]}}}}"#,
                seen.json()["id"]
            );
            answer("200 OK", "application/json", &body)
        }))
        .await;
        offered.push(upstream.fetch_tools().await.unwrap().tools.remove(0));
    }
    assert_eq!(offered[0], offered[1]);
    assert_ne!(offered[0].digest, offered[2].digest);
    assert_eq!(offered[0].digest, Digest::of(offered[0].definition.as_bytes()));
    let wanted = r#"{"annotations":{"readOnlyHint":true},"description":"d","icons":[],"inputSchema":{"maxProperties":10,"type":"object"},"name":"a","x":{"a":2,"b":1}}"#;
    assert_eq!(&*offered[0].definition, wanted);
}

#[tokio::test]
async fn hints_are_read_as_the_specification_defaults_them() {
    let hinted = |name: &str, hints: Value| json!({ "name": name, "inputSchema": {}, "annotations": hints });
    let (_server, upstream) = server(legacy(move |seen| {
        ok(seen, json!({ "tools": [tool("none"), hinted("empty", json!({})), hinted("reads", json!({"readOnlyHint": true, "destructiveHint": true})),
            hinted("adds", json!({"destructiveHint": false})), hinted("deletes", json!({"destructiveHint": true})), hinted("odd", json!({"readOnlyHint": "yes"})), hinted("writes", json!({"readOnlyHint": false})),
            hinted("titled", json!({"title": "T", "idempotentHint": true, "openWorldHint": false})), hinted("odder", json!({"readOnlyHint": false, "destructiveHint": "no"}))] }))
    }))
    .await;
    let offered = upstream.fetch_tools().await.unwrap();
    let found: Vec<(&str, ToolClass)> = offered.tools.iter().map(|tool| (tool.name.as_str(), tool.class)).collect();
    let wanted = [
        ("none", ToolClass::Unannotated),
        ("empty", ToolClass::Unannotated),
        ("reads", ToolClass::ReadOnly),
        ("adds", ToolClass::Additive),
        ("deletes", ToolClass::Destructive),
        ("odd", ToolClass::Unannotated),
        ("writes", ToolClass::Destructive),
        ("titled", ToolClass::Unannotated),
        ("odder", ToolClass::Destructive),
    ];
    assert_eq!(found, wanted);
}

#[tokio::test]
async fn a_server_without_tools_offers_none() {
    let (_server, upstream) = server(legacy(|seen| refused(seen, "200 OK", -32601))).await;
    assert!(upstream.fetch_tools().await.unwrap().tools.is_empty());
}

#[tokio::test]
async fn a_list_without_an_end_is_given_up_on() {
    let loops = |seen: &Seen| ok(seen, json!({ "tools": [], "nextCursor": "again" }));
    let grows = |seen: &Seen| {
        let id = seen.json()["id"].to_string();
        ok(seen, json!({ "tools": [], "nextCursor": id }))
    };
    let heaps = |seen: &Seen| {
        let id = seen.json()["id"].to_string();
        let tools: Vec<Value> = (0..600).map(|index| tool(&format!("t{id}-{index}"))).collect();
        ok(seen, json!({ "tools": tools, "nextCursor": id }))
    };
    let (looping, one) = server(legacy(loops)).await;
    let (growing, two) = server(legacy(grows)).await;
    let (_heaping, three) = server(legacy(heaps)).await;
    for upstream in [one, two, three] {
        assert_eq!(upstream.fetch_tools().await, Err(FetchFailed::Endless));
        assert_eq!(
            upstream.eras(),
            Eras::Unknown,
            "nothing is known of a server that could not be asked"
        );
    }
    assert!(looping.seen().len() < 8 && growing.seen().len() < 110);
    assert_eq!(
        looping.seen().iter().filter(|seen| seen.method == "DELETE").count(),
        1,
        "its session is ended all the same"
    );
}

#[tokio::test]
async fn what_is_no_list_is_said_clearly() {
    for (said, text) in [
        (
            answer("503 Service Unavailable", "text/html", "<html>"),
            "the server answers `initialize` with HTTP status 503",
        ),
        (
            answer("401 Unauthorized", "application/json", "{}"),
            "the server refuses Guardian's credential",
        ),
        (
            json(&json!({"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"1.0"}})),
            "not what the protocol says: its protocol version",
        ),
        (
            json(&json!({"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"boom\u{1b}[31m"}})),
            "refuses `initialize`: boom[31m (-32603)",
        ),
        (
            json(&json!({"jsonrpc":"2.0","id":9,"result":{}})),
            "the server answered another request",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"jsonrpc\":\"2.0\",\"id\":1,\"id\":1,\"result\":{}}"
                .to_owned(),
            "cannot be read: member `id` is there twice",
        ),
    ] {
        let (_server, upstream) = server(move |_| said.clone()).await;
        let failed = upstream.fetch_tools().await.unwrap_err().to_string();
        assert!(failed.contains(text), "{failed}");
    }
    let (_server, upstream) = server(legacy(|seen| ok(seen, json!({ "tools": {} })))).await;
    assert!(matches!(
        upstream.fetch_tools().await,
        Err(FetchFailed::Nonsense {
            method: "tools/list",
            ..
        })
    ));
}
