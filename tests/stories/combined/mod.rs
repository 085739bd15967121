//! The combined endpoint `/mcp`: every tool of every server that a caller may use, under one URL. A call there is decided,
//! refused and recorded as it would be at the server's own endpoint, under the server's own names.

mod abuse;
mod kinds;
mod lists;
mod sessions;
mod streams;

use crate::protocol::resources_and_prompts::RESOURCES_AND_PROMPTS;
use crate::support::client::{Answer, Client};
use crate::support::issuer::Issuer;
use crate::support::on_both_stores;
use crate::support::upstream::{Fault, Received, Scripted, Upstream};
use crate::support::wait::eventually;
use crate::support::world::{POLICIES, World};
use http::HeaderValue;
use serde_json::{Value, json};

/// Adds the servers `files` and `notes` and Ana, a reader with these scopes at each; returns both servers and her key.
pub async fn two_servers(world: &mut World, scopes: [&str; 2], more: &str) -> (Upstream, Upstream, String) {
    let (files, notes) = (Upstream::start().await, Upstream::start().await);
    world.server("files", &files.url, more);
    world.server("notes", &notes.url, more);
    world.policies(&format!("{POLICIES}{RESOURCES_AND_PROMPTS}{OTHERS}"));
    world.person("ana", &["reader"]).await;
    world.grant("ana", "files", scopes[0]);
    world.grant("ana", "notes", scopes[1]);
    let key = world.key("ana");
    (files, notes, key)
}

/// Permits readers the prompt `greet` of `notes`, as `RESOURCES_AND_PROMPTS` permits that of `files`.
const OTHERS: &str = r#"
@id("notes-greet")
permit (principal in Guardian::Role::"reader", action == Guardian::Action::"get_prompt", resource == Guardian::Prompt::"notes/greet");
"#;

/// A client of the combined endpoint that has not yet sent `initialize`.
pub fn client(world: &World, key: &str) -> Client {
    let mut client = world.client("").bearer(key);
    client.path = "/mcp".into();
    client
}

pub async fn connected(world: &World, key: &str) -> Client {
    let mut client = client(world, key);
    let answer = client.handshake().await;
    assert!(answer.is_result(), "the handshake of the story: {answer:?}");
    client
}

pub async fn in_both_eras(world: &World, key: &str) -> [Client; 2] {
    [connected(world, key).await, client(world, key).modern()]
}

fn verdict(answer: &Answer) -> (u16, String, i64) {
    (
        answer.status,
        answer.reason().to_owned(),
        answer.message["error"]["code"].as_i64().unwrap_or_default(),
    )
}

on_both_stores! {
    async fn every_server_is_behind_one_url(world: World) {
        let (files, notes, key) = two_servers(&mut world, ["echo,read_file", "echo,add"], "").await;
        world.start().await;
        for client in in_both_eras(&world, &key).await {
            assert_eq!(client.list().await, ["files__echo", "files__read_file", "notes__add", "notes__echo"]);
            assert_eq!(client.call("files__read_file", json!({ "path": "/srv/a" })).await.text(), "contents of /srv/a");
            assert_eq!(client.call("notes__add", json!({ "a": 1, "b": 2 })).await.text(), "3");
        }
        for (server, tool) in [(&files, "read_file"), (&notes, "add")] {
            let calls = server.calls();
            assert_eq!(calls.iter().map(|call| call.tool().unwrap()).collect::<Vec<_>>(), [tool, tool]);
            assert_eq!(calls[1].header("mcp-name"), Some(tool), "the header says what the body says");
            assert!(calls.iter().all(|call| !call.everything().contains("__") && !call.everything().contains("ng_")));
        }
        world.shipped().await;
        let rows = world.audit("--user ana@example.com");
        let called: Vec<_> = rows.iter().filter(|row| row["method"] == "tools/call").map(|row| (row["server"].as_str().unwrap(), row["tool"].as_str().unwrap(), row["outcome"]["ending"].as_str().unwrap())).collect();
        assert_eq!(called, [("files", "read_file", "done"), ("notes", "add", "done"), ("files", "read_file", "done"), ("notes", "add", "done")]);
        let labels: Vec<_> = rows.iter().filter(|row| row["method"] == "tools/call").map(|row| row["session"].clone()).collect();
        assert!(labels[0].is_string() && labels[0] == labels[1], "one conversation: {labels:?}");
        assert!(labels[2].is_null());
    }

    async fn each_caller_sees_what_that_caller_may_call(world: World) {
        let (_files, _notes, ana) = two_servers(&mut world, ["echo", "query"], "").await;
        world.person("ben", &["writer"]).await;
        world.grant("ben", "notes", "*");
        world.person("eve", &["reader"]).await;
        let (ben, eve) = (world.key("ben"), world.key("eve"));
        world.start().await;
        for client in in_both_eras(&world, &ana).await {
            assert_eq!(client.list().await, ["files__echo", "notes__query"]);
        }
        for client in in_both_eras(&world, &ben).await {
            let listed = client.list().await;
            assert!(listed.len() == 7 && listed.iter().all(|name| name.starts_with("notes__")), "{listed:?}");
        }
        for client in in_both_eras(&world, &eve).await {
            assert_eq!(client.list().await, Vec::<String>::new());
        }
        let answer = client(&world, &ana).modern().ask("tools/list", json!({})).await;
        assert_eq!(answer.message["result"]["cacheScope"], "private");
        assert!(answer.message["result"]["tools"][0]["inputSchema"]["properties"]["text"].is_object(), "{answer:?}");
    }

    /// Tools are prefixed even when there is only one server: adding a second one must not rename the tools of the first.
    async fn one_server_alone_is_named_too(world: World) {
        let (_files, key) = crate::ana_reads_files(&mut world).await;
        world.start().await;
        for client in in_both_eras(&world, &key).await {
            assert_eq!(client.list().await, ["files__echo", "files__read_file", "files__slow"]);
            assert_eq!(client.call("echo", json!({ "text": "hi" })).await.verdict(), "200 unknown_tool");
            assert_eq!(client.call("files__echo", json!({ "text": "hi" })).await.text(), "hi");
        }
    }

    /// The same call by the same caller gets the same status, reason, code and record at either endpoint.
    async fn a_call_is_judged_as_on_the_servers_own_endpoint(world: World) {
        let (files, notes, ana) = two_servers(&mut world, ["echo,read_file,add,query", "*"], "").await;
        world.set("limits.tools", "{ 'files/add' = { rate = 1, per = '600s' } }");
        world.person("off", &["reader"]).await;
        world.person("late", &["reader"]).await;
        world.person("out", &["reader"]).await;
        for (name, more) in [("off", ""), ("late", " --expires 1s"), ("out", "")] {
            world.guardian(&format!("grant add --user {name}@example.com --server files --scopes *{more}")).ok();
        }
        world.guardian("user disable off@example.com").ok();
        world.revoke("out", "files");
        let keys = [("ana", ana.clone()), ("off", world.key("off")), ("late", world.key("late")), ("out", world.key("out"))];
        world.start().await;
        let late = world.client("files").bearer(&keys[2].1);
        eventually("a grant to expire", async || (late.send_ping().await.ok()?.reason() == "grant_expired").then_some(())).await;
        let calls = [
            ("ana", "echo", json!({ "text": "hi" }), "allowed"),
            ("ana", "write_file", json!({ "path": "/a", "text": "" }), "missing_scope"),
            ("ana", "read_file", json!({ "path": "/etc/passwd" }), "forbidden_by_policy"),
            ("ana", "echo", json!({ "txt": "hi" }), "invalid_arguments"),
            ("ana", "rm", json!({}), "unknown_tool"),
            ("off", "echo", json!({ "text": "hi" }), "member_disabled"),
            ("late", "echo", json!({ "text": "hi" }), "grant_expired"),
            ("out", "echo", json!({ "text": "hi" }), "grant_revoked"),
        ];
        for (who, tool, arguments, expected) in &calls {
            let key = &keys.iter().find(|(name, _)| name == who).unwrap().1;
            let own = world.client("files").modern().bearer(key).call(tool, arguments.clone()).await;
            let combined = client(&world, key).modern().call(&format!("files__{tool}"), arguments.clone()).await;
            assert_eq!(verdict(&own), verdict(&combined), "{who} {tool}: {combined:?}");
            assert_eq!(own.data()["scopes"], combined.data()["scopes"]);
            assert_eq!(own.data()["remedy"], combined.data()["remedy"]);
            assert!(combined.verdict().ends_with(expected), "{who} {tool}: {combined:?}");
            let challenge = |answer: &Answer| answer.header("www-authenticate").map(|text| text.replace("/mcp/files\"", "/mcp\""));
            assert_eq!(challenge(&own), challenge(&combined));
        }
        // Legacy clients complete the handshake before anything is refused.
        for client in in_both_eras(&world, &ana).await {
            assert_eq!(client.call("files__write_file", json!({ "path": "/a", "text": "" })).await.reason(), "missing_scope");
            assert_eq!(client.call("files__read_file", json!({ "path": "/etc/passwd" })).await.data()["remedy"], "Ask for a copy under /srv.");
        }
        let counted = client(&world, &ana).modern();
        assert_eq!(counted.call("files__add", json!({ "a": 1, "b": 2 })).await.verdict(), "allowed");
        let own = world.client("files").modern().bearer(&ana).call("add", json!({ "a": 1, "b": 2 })).await;
        assert_eq!(own.reason(), "rate_limited", "counted together");
        let limited = counted.call("files__add", json!({ "a": 1, "b": 2 })).await;
        assert_eq!((limited.verdict().as_str(), limited.header("retry-after").is_some()), ("200 rate_limited", true));
        let sent: Vec<_> = files.calls().iter().map(|call| call.tool().unwrap().to_owned()).collect();
        assert_eq!(sent, ["echo", "echo", "add"], "a refused call never leaves");
        let ours = |received: &&Received| received.message["params"]["clientInfo"]["name"] == "stories";
        assert_eq!(files.received().iter().filter(ours).count(), 0, "no session was opened for what was refused");
        assert_eq!(notes.calls().len(), 0);

        world.shipped().await;
        let rows = world.audit("--decision deny");
        for (who, tool, _, expected) in &calls[1..] {
            let same = rows.iter().filter(|row| row["server"] == "files" && row["tool"] == *tool && row["reason"] == *expected).count();
            assert!(same >= 2, "{who} {tool} {expected}: {rows:#?}");
        }
    }

    /// A session, handle or name of one endpoint means nothing at another.
    async fn there_is_no_way_around(world: World) {
        let (files, notes, key) = two_servers(&mut world, ["echo", "add"], "").await;
        let secret = Upstream::start().await;
        world.server("secret", &secret.url, "");
        world.start().await;
        let unknown = async |client: &Client, tool: &str| {
            let answer = client.call(tool, json!({ "text": "hi" })).await;
            let record = answer.data()["record"].as_str().unwrap();
            let text = answer.text().replace(&format!("`{tool}`"), "T").replace(record, "R");
            (answer.verdict(), text, answer.data()["remedy"].clone())
        };
        for client in in_both_eras(&world, &key).await {
            let nothing = unknown(&client, "nowhere__echo").await;
            assert_eq!((nothing.0.as_str(), nothing.1.as_str()), ("200 unknown_tool", "There is no tool T. List the tools again. (record R)"));
            let meant = unknown(&client, "echo").await;
            assert_eq!((meant.0.as_str(), meant.1.as_str()), ("200 unknown_tool", "There is no tool T. Did you mean `files__echo`? (record R)"));
            for tool in ["secret__echo", "read_file", "__echo", "Files__echo", "files__notes__add", "files_echo", "notes__files__echo", "files.echo", "_files__echo"] {
                assert_eq!(unknown(&client, tool).await, nothing, "{tool}");
            }
            assert_eq!(client.call("files__add", json!({ "a": 1, "b": 2 })).await.reason(), "missing_scope", "a scope of another server");
            for (method, params) in [
                ("resources/read", json!({ "uri": "secret+notes://a/1" })),
                ("resources/read", json!({ "uri": "notes://a/1" })),
                ("prompts/get", json!({ "name": "secret__greet" })),
                ("prompts/get", json!({ "name": "greet" })),
                ("completion/complete", json!({ "ref": { "type": "ref/prompt", "name": "secret__greet" }, "argument": { "name": "who", "value": "" } })),
            ] {
                assert_eq!(client.ask(method, params.clone()).await.verdict(), "200 unknown_target", "{method} {params}");
            }
        }
        let modern = client(&world, &key).modern();
        let named = async |header: &str| {
            let request = modern.request("tools/call", json!({ "name": "files__echo", "arguments": { "text": "hi" } }));
            let mut headers = modern.base_headers();
            headers.insert("mcp-method", HeaderValue::from_static("tools/call"));
            headers.insert("mcp-name", HeaderValue::from_str(header).unwrap());
            Answer::read(modern.send("POST", headers, request.to_string().into()).await.unwrap()).await.unwrap()
        };
        for header in ["notes__echo", "echo", "files__add", "files__Echo"] {
            assert_eq!(named(header).await.verdict(), "400 header_mismatch", "{header}");
        }
        assert_eq!(named("files__echo").await.text(), "hi");
        assert_eq!(named("=?base64?ZmlsZXNfX2VjaG8=?=").await.text(), "hi");

        let legacy = connected(&world, &key).await;
        let batch = json!([legacy.request("tools/call", json!({ "name": "files__echo", "arguments": { "text": "hi" } }))]);
        let answer = Answer::read(legacy.send("POST", legacy.base_headers(), batch.to_string().into()).await.unwrap()).await.unwrap();
        assert_eq!(answer.verdict(), "400 invalid_request");
        let twice = r#"{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"files__echo","name":"notes__add","arguments":{}}}"#;
        let answer = Answer::read(legacy.send("POST", legacy.base_headers(), twice.into()).await.unwrap()).await.unwrap();
        assert_eq!(answer.verdict(), "400 ambiguous_json");
        assert_eq!((files.calls().len(), notes.calls().len(), secret.calls().len()), (2, 0, 0));
        world.shipped().await;
        let rows = world.audit("--decision deny");
        let secrets: Vec<_> = rows.iter().filter(|row| row["server"] == "secret").map(|row| (row["tool"].clone(), row["reason"].clone())).collect();
        assert!(secrets.contains(&(json!("echo"), json!("no_grant"))), "the record says what was asked for: {secrets:?}");
        let unnamed = rows.iter().find(|row| row["reason"] == "unknown_tool" && row["tool"] == "Files__echo").unwrap_or_else(|| panic!("{rows:#?}"));
        assert!(unnamed["server"].is_null());
    }

    /// The combined endpoint has its own metadata, challenge and audience, and each server's endpoint has its own too.
    async fn a_token_is_good_where_it_was_made_for(world: World) {
        let (_files, _notes, _key) = two_servers(&mut world, ["echo", "echo"], "").await;
        let issuer = Issuer::es256("https://id.example.test");
        world.folder.write("keys.json", &issuer.key_set().to_string());
        world.issuer("id", &issuer.iss, "kind = 'oidc'\njwks_file = 'keys.json'");
        world.link("ana", &issuer.iss, "ana");
        world.start().await;
        let base = format!("https://localhost:{}", world.port);
        let with = |audience: &str| issuer.token("ana", audience);
        let combined = |token: &str| {
            let mut client = world.client("").modern().bearer(token);
            client.path = "/mcp".into();
            client
        };
        let hi = || json!({ "text": "hi" });
        assert_eq!(combined(&with(&format!("{base}/mcp"))).call("files__echo", hi()).await.text(), "hi");
        let refused = combined(&with(&world.resource("files"))).call("files__echo", hi()).await;
        assert_eq!(refused.verdict(), "401 wrong_audience");
        let challenge = refused.header("www-authenticate").unwrap();
        assert!(challenge.contains(&format!("resource_metadata=\"{base}/.well-known/oauth-protected-resource/mcp\"")), "{challenge}");
        let refused = world.client("files").modern().bearer(&with(&format!("{base}/mcp"))).call("echo", hi()).await;
        assert_eq!(refused.verdict(), "401 wrong_audience");
        for path in ["/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp"] {
            let document = world.address(None, crate::support::http::Protocol::Http1).get(path).await.unwrap();
            let document: Value = serde_json::from_str(&document.text().await.unwrap()).unwrap();
            assert_eq!(document["resource"], format!("{base}/mcp"), "{path}");
        }
    }

    /// The list shows the pinned tools even of a server that is down; a call of such a tool says that the server is down.
    async fn a_dead_server_hides_nobody(world: World) {
        let (files, notes, key) = two_servers(&mut world, ["echo,slow", "echo"], "first_byte_timeout = '2s'").await;
        world.start().await;
        for fault in [Fault::Status(500), Fault::Garbage] {
            files.fault("echo", fault);
            for client in in_both_eras(&world, &key).await {
                assert_eq!(client.list().await, ["files__echo", "files__slow", "notes__echo"]);
                assert_eq!(client.call("files__echo", json!({ "text": "hi" })).await.reason(), "upstream_broken");
                assert_eq!(client.call("notes__echo", json!({ "text": "hi" })).await.text(), "hi");
            }
        }
        files.behave();
        // From here on `files` accepts every request and answers none.
        let held = std::sync::Mutex::new(Vec::new());
        files.script(move |_| {
            let (sender, events) = tokio::sync::mpsc::channel(1);
            held.lock().unwrap().push(sender);
            Some(Scripted::Stream(events))
        });
        for client in in_both_eras(&world, &key).await {
            assert_eq!(client.list().await, ["files__echo", "files__slow", "notes__echo"]);
            let other = client.alike();
            let request = client.request("tools/call", json!({ "name": "files__echo", "arguments": { "text": "hi" } }));
            let hanging = client.open(&request);
            let call = other.call("notes__echo", json!({ "text": "hi" }));
            let (_, answer) = tokio::join!(hanging, call);
            assert_eq!(answer.text(), "hi");
        }
        assert_eq!(notes.calls().len(), 6);
    }
}
