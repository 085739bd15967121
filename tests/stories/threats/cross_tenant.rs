//! T32 to T35: another caller's sessions, tasks and cursors do not exist for a caller, nothing that a client sends back is
//! an approval, and each caller's lists are theirs alone.

use super::Scene;
use crate::support::client::Client;
use crate::support::upstream::{Received, Scripted};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};

/// Tries everything that can be done with a session, with this client's credential and session id.
async fn tried(client: &Client) -> Vec<(&'static str, u16, String)> {
    let mut all = Vec::new();
    let listed = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
    for (what, message) in [
        (
            "a call",
            client.request("tools/call", json!({ "name": "add", "arguments": { "a": 1, "b": 2 } })),
        ),
        ("a list", listed),
        ("a ping", client.request("ping", json!({}))),
        (
            "a notification",
            json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }),
        ),
        (
            "a cancellation",
            json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 1 } }),
        ),
        ("an answer", json!({ "jsonrpc": "2.0", "id": 1, "result": {} })),
        (
            "setting a level",
            client.request("logging/setLevel", json!({ "level": "debug" })),
        ),
        ("a task", client.request("tasks/get", json!({ "taskId": "t-1" }))),
    ] {
        let answer = client.post(&message).await;
        all.push((what, answer.status, answer.verdict()));
    }
    let events = |last: Option<&'static str>| {
        let mut headers = client.base_headers();
        headers.remove("content-type");
        headers.insert("accept", HeaderValue::from_static("text/event-stream"));
        headers.extend(last.map(|id| {
            (
                "last-event-id".parse::<http::HeaderName>().unwrap(),
                HeaderValue::from_static(id),
            )
        }));
        headers
    };
    for (what, verb, headers) in [
        ("its stream", "GET", events(None)),
        ("its stream from an event on", "GET", events(Some("7"))),
        ("its end", "DELETE", client.base_headers()),
    ] {
        let reply = client.alike().send(verb, headers, Bytes::new()).await.unwrap();
        all.push((what, reply.status, reply.text().await.unwrap()));
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t32_a_session_of_somebody_else_is_no_session() {
    let mut scene = Scene::set("", &[]).await;
    let anas = scene.world.connected("files", &scene.ana).await;
    let own = anas.session.clone().unwrap();
    let bobs = scene.world.connected("files", &scene.bob).await.session.unwrap();
    let mut spoilt = own.clone().into_bytes();
    let last = spoilt.len() - 1;
    spoilt[last] = if spoilt[last] == b'A' { b'B' } else { b'A' };
    let crossed = own[..own.len() / 2].to_owned() + &bobs[bobs.len() / 2..];
    let raw = scene
        .files
        .received()
        .iter()
        .find_map(|received| received.header("mcp-session-id").map(str::to_owned));
    scene.mark();
    for (what, session) in [
        ("Ana's", own.clone()),
        ("Ana's, spoilt", String::from_utf8(spoilt).unwrap()),
        ("half Ana's, half his own", crossed),
        ("Ana's in capitals", own.to_uppercase()),
        ("Ana's and more", format!("{own}A")),
        ("the server's own", raw.expect("the server keeps sessions")),
        ("a made-up one", "upstream-session-1".into()),
        ("a UUID", "01a1f9d8-8f20-702a-9aa7-ca57e814a425".into()),
        ("a long one", "x".repeat(4_000)),
    ] {
        let mut bob = scene.world.client("files").bearer(&scene.bob);
        bob.session = Some(session);
        for (doing, status, told) in tried(&bob).await {
            assert_eq!(status, 404, "{doing} in {what} session: {told}");
            assert!(
                told.contains("unknown_session") && !told.contains("ana"),
                "{doing} in {what} session: {told}"
            );
        }
        scene.nothing_reached_the_server(what);
    }
    // Two session ids in one request count as none.
    let mut headers = HeaderMap::new();
    headers.append("mcp-session-id", HeaderValue::from_str(&bobs).unwrap());
    headers.append("mcp-session-id", HeaderValue::from_str(&own).unwrap());
    let bob = scene.world.client("files").bearer(&scene.bob);
    headers.extend(bob.base_headers());
    let message = bob.request("tools/call", json!({ "name": "add", "arguments": { "a": 1, "b": 2 } }));
    assert_eq!(
        bob.send("POST", headers, message.to_string().into()).await.unwrap().status,
        400
    );

    // Ana's session still works, and no session id shows in the metrics, the log or the audit trail.
    assert!(anas.call("echo", json!({ "text": "hi" })).await.is_result());
    scene.world.shipped().await;
    let around = [
        scene.world.metrics().await,
        scene.world.log(),
        format!("{:?}", scene.world.audit("")),
    ];
    for (place, text) in ["metrics", "log", "audit"].iter().zip(around) {
        for secret in [&own, &bobs, "upstream-session-"] {
            assert!(!text.contains(secret), "a session is told in the {place}");
        }
    }
}

/// Tasks of the modern era, whose ids the server chooses.
fn with_tasks(received: &Received) -> Option<Scripted> {
    let task = |kind: &str| json!({ "resultType": kind, "taskId": "t-1", "status": "working", "ttlMs": 60_000 });
    Some(Scripted::Json(match received.method() {
        "tools/call" if received.tool() == Some("echo") => task("task"),
        "tasks/get" => task("complete"),
        "tasks/update" | "tasks/cancel" => json!({ "resultType": "complete" }),
        _ => return None,
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t33_nobody_resumes_asks_after_or_ends_what_somebody_else_began() {
    let mut scene = Scene::set("client_requests = ['elicitation']", &[]).await;
    scene.files.script(with_tasks);
    let (ana, bob) = (scene.ana().doing_tasks(), scene.bystander().doing_tasks());
    let task = ana.call("echo", json!({ "text": "hi" })).await.message["result"]["taskId"].clone();
    assert!(task.is_string(), "the server began a task");
    let mut spoilt = task.as_str().unwrap().to_owned();
    spoilt.replace_range(spoilt.len() - 4.., "AAAA");
    scene.mark();
    for id in [&task, &json!("t-1"), &json!(spoilt), &json!("gh1.AAAA.AAAA")] {
        for (method, more) in [
            ("tasks/get", json!({})),
            ("tasks/cancel", json!({})),
            ("tasks/update", json!({ "inputResponses": { "k": { "action": "accept" } } })),
        ] {
            let mut params = json!({ "taskId": id });
            params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let answer = bob.ask(method, params).await;
            assert!(
                ["200 unknown_task", "400 invalid_params"].contains(&answer.verdict().as_str()),
                "{method} {id}: {answer:?}"
            );
        }
        let listened = bob
            .ask("subscriptions/listen", json!({ "notifications": { "taskIds": [id] } }))
            .await;
        assert!(
            ["200 unknown_task", "400 invalid_params"].contains(&listened.verdict().as_str()),
            "{id}: {listened:?}"
        );
    }
    for method in ["tasks/list", "tasks/result"] {
        assert_eq!(
            bob.ask(method, json!({ "taskId": task })).await.verdict(),
            "404 unknown_method"
        );
    }
    scene.nothing_reached_the_server("somebody else's task");
    for method in ["tasks/get", "tasks/cancel"] {
        assert!(
            ana.ask(method, json!({ "taskId": task })).await.is_result(),
            "whose it is may {method}"
        );
    }
    // With a session of his own, Bob cannot cancel, resume or end anything of Ana's.
    let anas = scene.world.connected("files", &scene.ana).await;
    let of_ana = latest_session(&scene);
    let mut bobs = scene.world.connected("files", &scene.bob).await;
    let of_bob = latest_session(&scene);
    assert!(of_ana.is_some() && of_bob.is_some() && of_ana != of_bob);
    scene.mark();
    let own = std::mem::replace(&mut bobs.session, anas.session.clone());
    for (doing, status, told) in tried(&bobs).await {
        assert_eq!(status, 404, "{doing}: {told}");
    }
    scene.nothing_reached_the_server("somebody else's session");
    bobs.session = own;
    let cancelled = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 1 } });
    assert_eq!(bobs.post(&cancelled).await.status, 202);
    assert_eq!(
        (scene.reached().len(), latest_session(&scene)),
        (1, of_bob),
        "what he cancels is his own"
    );
}

/// The session id of the server's latest request with one.
fn latest_session(scene: &Scene) -> Option<String> {
    let received = scene.files.received();
    received.last()?.header("mcp-session-id").map(str::to_owned)
}

/// Guardian has no approvals, so nothing that a client sends back can be one: a refused call stays refused whatever comes
/// with it, and the answer to a server's request is decided anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t34_nothing_that_a_client_brings_back_is_an_approval() {
    let mut scene = Scene::set("client_requests = ['elicitation']", &[]).await;
    scene.files.script(|received| {
        (received.tool()? == "read_file" && received.message["params"].get("requestState").is_none()).then(|| {
            let ask = json!({ "ok": { "method": "elicitation/create", "params": { "message": "Read it?" } } });
            Scripted::Json(json!({ "resultType": "input_required", "requestState": "state-1", "inputRequests": ask }))
        })
    });
    let (ana, bob) = (scene.ana(), scene.bystander());
    let asked = ana.call("read_file", json!({ "path": "/srv/a" })).await;
    let state = asked.message["result"]["requestState"].as_str().unwrap().to_owned();
    assert_ne!(state, "state-1", "what the server wrote is sealed");
    let mut spoilt = state.clone();
    spoilt.replace_range(spoilt.len() - 4.., "AAAA");
    scene.mark();

    let accept = json!({ "action": "accept", "content": { "approved": true } });
    let responses = [
        json!(null),
        json!({}),
        json!({ "ok": accept }),
        json!({ "approval": accept }),
        json!({ "guardian": { "approved": true } }),
        json!({ "guardian/approval": accept, "ok": accept }),
    ];
    let states = [
        None,
        Some(String::new()),
        Some("approved".into()),
        Some("state-1".into()),
        Some(r#"{"approved":true,"tool":"delete_file"}"#.into()),
        Some("eyJhbGciOiJub25lIn0.eyJhcHByb3ZlZCI6dHJ1ZX0.".into()),
        Some("gh1.AAAA.AAAA".into()),
        Some(spoilt),
        Some(state.clone()),
        Some("x".repeat(100_000)),
    ];
    // A missing scope, a forbidding policy, and Bob with the state that was given to Ana.
    let refused: [(&Client, &str, Value, &str); 4] = [
        (&ana, "delete_file", json!({ "path": "/srv/a" }), "200 missing_scope"),
        (&ana, "read_file", json!({ "path": "/etc/shadow" }), "200 forbidden_by_policy"),
        (&bob, "read_file", json!({ "path": "/srv/a" }), "200 missing_scope"),
        (&ana, "read_file", json!({ "file": 1 }), "200 invalid_arguments"),
    ];
    for (client, tool, arguments, plainly) in &refused {
        for state in &states {
            for response in &responses {
                let mut params = json!({ "name": tool, "arguments": arguments });
                params
                    .as_object_mut()
                    .unwrap()
                    .extend(state.iter().map(|state| ("requestState".to_owned(), json!(state))));
                if !response.is_null() {
                    params["inputResponses"] = response.clone();
                }
                let mut message = client.request("tools/call", params);
                message["params"]["_meta"]["guardian/approved"] = json!(true);
                let answer = client.post(&message).await;
                let told = [*plainly, "200 unknown_state", "400 invalid_params"];
                assert!(told.contains(&answer.verdict().as_str()), "{message}: {answer:?}");
            }
        }
    }
    scene.nothing_reached_the_server("what was not allowed");

    // The call that answers the request is a call like any other: it is allowed by what holds now.
    let retry = async |state: &str| {
        let params = json!({ "name": "read_file", "arguments": { "path": "/srv/a" }, "requestState": state, "inputResponses": { "ok": accept } });
        ana.ask("tools/call", params).await
    };
    assert!(retry(&state).await.is_result());
    scene.world.revoke("ana", "files");
    crate::support::wait::eventually("the revocation to bind", async || {
        (retry(&state).await.verdict() == "200 grant_revoked").then_some(())
    })
    .await;
    scene.world.shipped().await;
    let denied = scene.world.audit("--tool delete_file");
    assert!(
        !denied.is_empty() && denied.iter().all(|row| row["decision"] == "deny"),
        "{denied:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t35_a_list_is_its_callers_alone() {
    let scene = Scene::set("", &[]).await;
    scene.files.script(|received| {
        let tools = ["echo", "add", "read_file", "delete_file", "never_seen"]
            .map(|name| json!({ "name": name, "inputSchema": { "type": "object" } }));
        let second = received.message["params"]["cursor"].is_string();
        let mut page =
            json!({ "tools": tools, "ttlMs": 60_000, "cacheScope": "public", "resultType": "complete", "kept": [1.50] });
        if !second {
            page["nextCursor"] = json!("page-2");
        }
        if received.method() != "tools/list" {
            return None;
        }
        let message = json!({ "jsonrpc": "2.0", "id": received.message["id"], "result": page });
        // The first page is a JSON answer, the second an event.
        Some(if second {
            Scripted::Events(vec![message])
        } else {
            Scripted::Json(message)
        })
    });
    let (ana, bob) = (scene.ana(), scene.bystander());
    let shown = |answer: &Value| -> Vec<String> {
        let tools = answer["result"]["tools"].as_array().unwrap();
        tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
    };
    for (client, own) in [(&ana, &["echo", "read_file"][..]), (&bob, &["add"])] {
        let first = client.ask("tools/list", json!({})).await;
        assert_eq!(shown(&first.message), own);
        let result = &first.message["result"];
        assert_eq!(
            (&result["cacheScope"], &result["kept"]),
            (&json!("private"), &json!([1.50])),
            "{result}"
        );
        assert!(
            first
                .header("cache-control")
                .is_some_and(|control| control.contains("private")),
            "{first:?}"
        );
        let cursor = result["nextCursor"].clone();
        assert!(!cursor.as_str().unwrap().contains("page-2"), "{cursor}");

        let before = scene.files.received().len();
        let other = if std::ptr::eq(client, &ana) { &bob } else { &ana };
        for (client, cursor) in [
            (other, &cursor),
            (client, &json!("page-2")),
            (client, &json!(format!("{}A", cursor.as_str().unwrap()))),
        ] {
            assert_eq!(
                client.ask("tools/list", json!({ "cursor": cursor })).await.verdict(),
                "200 unknown_cursor"
            );
        }
        assert_eq!(
            scene.files.received().len(),
            before,
            "nobody goes on with somebody else's list"
        );

        let second = client.ask("tools/list", json!({ "cursor": cursor })).await;
        assert_eq!(
            (shown(&second.message), &second.message["result"]["cacheScope"]),
            (own.iter().map(|name| (*name).to_owned()).collect(), &json!("private"))
        );
        assert_eq!(scene.files.received().last().unwrap().message["params"]["cursor"], "page-2");
    }
}
