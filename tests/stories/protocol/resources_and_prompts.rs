//! Resources, prompts, completions and subscriptions: decided, recorded and listed like tools.

use crate::support::client::{Answer, Client};
use crate::support::on_both_stores;
use crate::support::resources_and_prompts::{acknowledged, changed, updated};
use crate::support::upstream::{Scripted, Upstream, say};
use crate::support::world::{POLICIES, World};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

/// Readers may read notes that are not secret and get the prompt `greet`; writers may get `deploy`, not for production.
pub const RESOURCES_AND_PROMPTS: &str = r#"
@id("readers-read-notes")
permit (principal in Guardian::Role::"reader", action == Guardian::Action::"read_resource", resource)
when { resource.uri like "notes://*" };

@id("no-secrets")
@reason("Secret notes are nobody's business.")
forbid (principal, action == Guardian::Action::"read_resource", resource)
when { resource.uri like "notes://secret/*" };

@id("readers-are-greeted")
permit (principal in Guardian::Role::"reader", action == Guardian::Action::"get_prompt", resource == Guardian::Prompt::"files/greet");

@id("writers-deploy")
permit (principal in Guardian::Role::"writer", action == Guardian::Action::"get_prompt", resource == Guardian::Prompt::"files/deploy")
unless { context.input has env && context.input.env == "prod" };
"#;

on_both_stores! {
    async fn what_a_reader_may_read_reaches_the_server_and_is_on_record(world: World) {
        let (files, key) = ana(&mut world, "*").await;
        world.start().await;

        for client in clients(&world, &key).await {
            let read = client.ask("resources/read", json!({ "uri": "notes://a/1" })).await;
            assert_eq!(read.message["result"]["contents"][0]["uri"], "notes://a/1", "{read:?}");
            let secret = client.ask("resources/read", json!({ "uri": "notes://secret/1" })).await;
            assert_eq!(secret.verdict(), "200 forbidden_by_policy");
            assert_eq!(secret.message["error"]["message"], "Secret notes are nobody's business.");
            let other = client.ask("resources/read", json!({ "uri": "other:1" })).await;
            assert_eq!(other.verdict(), "200 no_policy_permits");
        }

        let arrived: Vec<_> = files.received().into_iter().filter(|received| received.method() == "resources/read").collect();
        assert_eq!(arrived.len(), 2);
        assert_eq!((arrived[0].header("mcp-name"), arrived[1].header("mcp-name")), (None, Some("notes://a/1")));
        world.shipped().await;
        let rows = world.audit("--target notes://a/1");
        assert_eq!(rows.len(), 2, "{rows:?}");
        for row in &rows {
            assert_eq!((&row["method"], &row["target"], &row["tool"]), (&json!("resources/read"), &json!("notes://a/1"), &Value::Null));
            assert_eq!((&row["policies"], &row["outcome"]["ending"]), (&json!(["readers-read-notes"]), &json!("done")));
        }
        let refused = world.audit("--method resources/read --decision deny");
        let targets: Vec<&str> = refused.iter().map(|row| row["target"].as_str().unwrap()).collect();
        assert_eq!(targets, ["notes://secret/1", "other:1", "notes://secret/1", "other:1"]);
    }

    async fn resources_and_prompts_need_scopes_of_their_own(world: World) {
        let (files, key) = ana(&mut world, "echo").await;
        world.start().await;
        let before = files.received().len();

        for client in clients(&world, &key).await {
            for (method, params, scope) in [
                ("resources/read", json!({ "uri": "notes://a/1" }), "resources"),
                ("prompts/get", json!({ "name": "greet" }), "prompts"),
                ("completion/complete", completion(json!({ "type": "ref/prompt", "name": "greet" })), "prompts"),
                ("completion/complete", completion(json!({ "type": "ref/resource", "uri": "notes://a/{number}" })), "resources"),
            ] {
                let answer = client.ask(method, params).await;
                assert_eq!(answer.reason(), "missing_scope", "{method}");
                assert_eq!(answer.data()["scopes"], json!([scope]));
                assert_eq!((answer.status, answer.header("www-authenticate")), (200, None), "another credential would not help");
            }
            for list in ["resources", "prompts"] {
                let answer = client.ask(&format!("{list}/list"), json!({})).await;
                assert_eq!(answer.message["result"][list], json!([]));
            }
        }
        let wares = ["resources/read", "prompts/get", "completion/complete"];
        let arrived = files.received().split_off(before).into_iter().filter(|received| wares.contains(&received.method()));
        assert_eq!(arrived.count(), 0);
    }

    /// Lists keep the server's order and every member and number as written; items that the caller may not have are left out.
    async fn lists_show_what_the_caller_may_have(world: World) {
        let (_files, ana) = ana(&mut world, "*").await;
        world.person("will", &["writer"]).await;
        world.grant("will", "files", "*");
        let will = world.key("will");
        world.start().await;

        for (key, resources, templates, prompts) in [
            (&ana, &["notes://a/1", "notes://a/2", "notes://b"][..], &["notes://a/{number}"][..], &["greet"][..]),
            (&will, &[], &[], &["deploy"]),
        ] {
            for client in clients(&world, key).await {
                let answer = client.ask("resources/list", json!({})).await;
                assert_eq!(names(&answer, "resources", "uri"), resources);
                assert!(answer.body.contains(r#""x":1.5"#), "{}", answer.body);
                assert!(resources.is_empty() || answer.message["result"]["resources"][0]["extra"] == json!({ "of": "notes://a/1" }));
                let listed = client.ask("resources/templates/list", json!({})).await;
                assert_eq!(names(&listed, "resourceTemplates", "uriTemplate"), templates);
                let listed = client.ask("prompts/list", json!({})).await;
                assert_eq!(names(&listed, "prompts", "name"), prompts);
                let read = client.ask("resources/read", json!({ "uri": "notes://a/1" })).await;
                for kept in [&answer, &listed, &read].into_iter().filter(|answer| answer.is_result() && client.version == "2026-07-28") {
                    assert_eq!(kept.message["result"]["cacheScope"], "private", "{kept:?}");
                    assert_eq!(kept.header("cache-control"), Some("private, no-store"));
                }
            }
        }
    }

    async fn lists_are_filtered_in_streams_and_when_they_are_played_again(world: World) {
        let (files, key) = ana(&mut world, "*").await;
        let own = files.offer_stream();
        files.script(|received| {
            // Only for the client's request: Guardian fetches lists too, and must get the real ones.
            let (member, items) = some_list(received.method()).filter(|_| received.message["id"] == "list")?;
            let list = json!({ "jsonrpc": "2.0", "id": received.message["id"], "result": { member: items, "cacheScope": "public" } });
            Some(Scripted::Events(vec![list]))
        });
        world.start().await;

        for client in clients(&world, &key).await {
            for (list, member, name, wanted) in LISTS {
                let mut request = client.request(list, json!({}));
                request["id"] = json!("list");
                let answer = client.post(&request).await;
                assert_eq!(names(&answer, member, name), wanted, "{list}");
                assert_eq!(answer.header("content-type"), Some("text/event-stream"));
                assert_eq!(answer.message["result"]["cacheScope"], "private");
            }
        }
        let client = world.connected("files", &key).await;
        let mut stream = client.own_stream().await;
        for (list, member, name, wanted) in LISTS {
            let (_, items) = some_list(list).unwrap();
            say(&own, &json!({ "jsonrpc": "2.0", "id": 77, "result": { member: items } })).await;
            let replayed = stream.message().await;
            let items = replayed["result"][member].as_array().unwrap();
            let shown: Vec<&str> = items.iter().map(|item| item[name].as_str().unwrap()).collect();
            assert_eq!(shown, wanted, "{list}");
        }
    }

    async fn a_prompt_is_judged_with_its_arguments(world: World) {
        let (files, _) = ana(&mut world, "*").await;
        world.person("will", &["writer"]).await;
        world.grant("will", "files", "prompts");
        let will = world.key("will");
        world.start().await;

        for client in clients(&world, &will).await {
            let get = async |name: &str, arguments: Value| {
                client.ask("prompts/get", json!({ "name": name, "arguments": arguments })).await.verdict()
            };
            assert_eq!(get("deploy", json!({ "env": "staging" })).await, "allowed");
            assert_eq!(get("deploy", json!({})).await, "allowed");
            assert_eq!(get("deploy", json!({ "env": "prod" })).await, "200 no_policy_permits");
            assert_eq!(get("deploy", json!({ "env": 1 })).await, "200 invalid_arguments");
            assert_eq!(get("greet", json!({})).await, "200 no_policy_permits");

            let complete = async |reference: Value, settled: Value| {
                let mut params = completion(reference);
                params["context"] = json!({ "arguments": settled });
                client.ask("completion/complete", params).await.verdict()
            };
            let deploy = || json!({ "type": "ref/prompt", "name": "deploy" });
            assert_eq!(complete(deploy(), json!({})).await, "allowed");
            assert_eq!(complete(deploy(), json!({ "env": "prod" })).await, "200 no_policy_permits");
            assert_eq!(complete(json!({ "type": "ref/prompt", "name": "greet" }), json!({})).await, "200 no_policy_permits");
            assert!(complete(json!({ "type": "ref/resource", "uri": "notes://a/{number}" }), json!({})).await.ends_with(" missing_scope"));
        }
        world.shipped().await;
        let rows = world.audit("--target deploy --method prompts/get --decision allow");
        assert_eq!(rows.len(), 4, "{rows:?}");
        assert!(rows[0]["args_digest"].is_string());
        assert_eq!(world.audit("--tool deploy"), [] as [Value; 0], "a prompt is no tool");
        let arrived = files.received();
        assert!(arrived.iter().filter(|received| received.method() == "prompts/get").all(|received| received.arguments()["env"] != "prod"));
    }

    /// Each of these is a second spelling that a server might resolve to a resource the caller may not read.
    async fn a_resource_has_one_spelling(world: World) {
        let (files, key) = ana(&mut world, "*").await;
        world.start().await;

        for client in clients(&world, &key).await {
            for uri in [
                "notes://a/../secret/1",
                "notes://a/%2E%2E/secret/1",
                "notes://a/%2e%2e/secret/1",
                "notes://%73ecret/1",
                "notes://a%2F..%2Fsecret/1",
                "NOTES://secret/1",
                "notes://secret/1\n",
                " notes://secret/1",
                "notes:\\\\secret\\1",
                "notes://secr\u{e9}t/1",
                "",
            ] {
                let message = client.request("resources/read", json!({ "uri": uri }));
                let mut headers = client.base_headers();
                if client.version == "2026-07-28" {
                    headers.insert("mcp-method", HeaderValue::from_static("resources/read"));
                    headers.insert("mcp-name", HeaderValue::from_str(&encoded(uri)).unwrap());
                }
                let reply = client.send("POST", headers, message.to_string().into()).await.unwrap();
                let answer = Answer::read(reply).await.unwrap();
                assert_eq!((answer.verdict().as_str(), &answer.message["error"]["code"]), ("200 unfit_uri", &json!(-32602)), "{uri:?}");
            }
            for more in ["url", "path", "extra", "name"] {
                let answer = client.ask("resources/read", json!({ "uri": "notes://a/1", more: "notes://secret/1" })).await;
                assert_eq!(answer.verdict(), "400 invalid_params", "{more}");
            }
            let upper = client.ask("resources/read", json!({ "uri": "notes://a/1", "URI": "notes://secret/1" })).await;
            assert_eq!(upper.verdict(), "400 ambiguous_json");
        }
        assert_eq!(files.received().iter().filter(|received| received.method() == "resources/read").count(), 0);
    }

    async fn each_era_has_its_methods_and_statuses(world: World) {
        let (files, key) = ana(&mut world, "*").await;
        world.start().await;
        let [legacy, modern] = clients(&world, &key).await;

        let level = json!({ "level": "warning" });
        assert_eq!(legacy.ask("logging/setLevel", level.clone()).await.verdict(), "allowed");
        assert_eq!(legacy.ask("ping", json!({})).await.verdict(), "allowed");
        assert_eq!(legacy.ask("resources/subscribe", json!({ "uri": "notes://a/1" })).await.verdict(), "allowed");
        assert_eq!(legacy.ask("resources/subscribe", json!({ "uri": "notes://secret/1" })).await.verdict(), "200 forbidden_by_policy");
        assert_eq!(legacy.ask("resources/unsubscribe", json!({ "uri": "notes://secret/1" })).await.verdict(), "allowed");
        assert_eq!(legacy.ask("subscriptions/listen", json!({ "notifications": {} })).await.verdict(), "200 unknown_method");
        for (method, params) in [
            ("logging/setLevel", level),
            ("ping", json!({})),
            ("resources/subscribe", json!({ "uri": "notes://a/1" })),
            ("resources/unsubscribe", json!({ "uri": "notes://a/1" })),
        ] {
            let answer = modern.ask(method, params).await;
            assert_eq!((answer.verdict().as_str(), &answer.message["error"]["code"]), ("404 unknown_method", &json!(-32601)), "{method}");
        }
        assert_eq!(files.received().iter().filter(|received| received.method() == "resources/subscribe").count(), 1);
    }

    async fn a_subscription_that_does_not_begin_with_its_acknowledgement_ends(world: World) {
        let (files, key) = ana(&mut world, "*").await;
        world.start().await;
        let client = world.client("files").modern().bearer(&key);
        let ask = || client.ask("subscriptions/listen", json!({ "notifications": { "toolsListChanged": true } }));
        files.script(|received| (received.method() == "subscriptions/listen").then(|| Scripted::Events(vec![changed("tools"), acknowledged(received)])));
        let answer = ask().await;
        assert_eq!(answer.reason(), "upstream_broken", "{answer:?}");
        assert!(!answer.body.contains("list_changed"), "{answer:?}");
        files.script(|received| (received.method() == "subscriptions/listen").then(|| Scripted::Events(vec![acknowledged(received), changed("tools")])));
        let answer = ask().await;
        assert!(answer.body.contains("acknowledged") && answer.body.contains("list_changed"), "{answer:?}");
        // A server's own error is passed on.
        files.script(|received| {
            let error = json!({ "jsonrpc": "2.0", "id": received.message["id"], "error": { "code": -32602, "message": "no" } });
            (received.method() == "subscriptions/listen").then(|| Scripted::Events(vec![error]))
        });
        assert_eq!(ask().await.message["error"]["message"], "no");
    }

    /// A subscription is refused as a whole if one of its resources is. Updates reach only those who may read the resource then.
    async fn a_stream_tells_of_what_the_caller_may_read(world: World) {
        let (files, key) = ana(&mut world, "*").await;
        world.start().await;
        let client = world.client("files").modern().bearer(&key);

        let both = json!({ "resourceSubscriptions": ["notes://a/1", "notes://secret/1"] });
        assert_eq!(client.ask("subscriptions/listen", json!({ "notifications": both })).await.verdict(), "200 forbidden_by_policy");
        let many = json!({ "resourceSubscriptions": vec!["notes://a/1"; 300] });
        assert_eq!(client.ask("subscriptions/listen", json!({ "notifications": many })).await.verdict(), "400 invalid_params");
        assert_eq!(files.received().iter().filter(|received| received.method() == "subscriptions/listen").count(), 0);

        let server = files.offer_stream();
        let filter = json!({ "toolsListChanged": true, "resourceSubscriptions": ["notes://a/1", "notes://b"] });
        let request = client.request("subscriptions/listen", json!({ "notifications": filter }));
        let opening = client.open(&request);
        let answering = async {
            let arrived = files.arrived("the stream to be asked for", |received| received.method() == "subscriptions/listen").await;
            assert_eq!((arrived.header("mcp-method"), arrived.header("mcp-name")), (Some("subscriptions/listen"), None));
            say(&server, &acknowledged(&arrived)).await;
        };
        let (reply, ()) = tokio::join!(opening, answering);
        let mut stream = reply.unwrap();
        assert_eq!((stream.status, stream.header("content-type")), (200, Some("text/event-stream")));
        let acknowledgement = stream.message().await;
        assert_eq!(acknowledgement["method"], "notifications/subscriptions/acknowledged");
        assert_eq!(acknowledgement["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], request["id"]);
        for (message, heard) in [
            (updated("notes://a/1"), true),
            (updated("notes://secret/1"), false),
            (updated("notes://a/../secret/1"), false),
            (json!({ "jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {} }), false),
            (changed("tools"), true),
            (changed("resources"), true),
            (updated("notes://b"), true),
        ] {
            say(&server, &message).await;
            if heard {
                assert_eq!(stream.message().await, message);
            }
        }
        world.shipped().await;
        let rows = world.audit("--method subscriptions/listen --decision allow");
        assert_eq!((rows.len(), &rows[0]["target"]), (1, &json!("notes://a/1 notes://b")), "{rows:?}");

        world.guardian("grant revoke --user ana@example.com --server files").ok();
        let last = stream.message().await;
        assert_eq!((&last["id"], &last["error"]["data"]["reason"]), (&request["id"], &json!("grant_revoked")));
        assert_eq!(stream.event().await.unwrap(), None);
    }

    /// Ana opens the stream as a reader. When she loses that role it stays open, without updates of what readers may read.
    async fn a_stream_that_stays_open_heeds_what_changes(world: World) {
        let (files, key) = ana(&mut world, "*").await;
        let server = files.offer_stream();
        world.set("grants.max_staleness", "'2s'").set("grants.confirm_after", "'500ms'");
        world.start().await;
        let client = world.connected("files", &key).await;
        let mut stream = client.own_stream().await;
        say(&server, &updated("notes://a/1")).await;
        assert_eq!(stream.message().await, updated("notes://a/1"));

        world.guardian("user roles ana@example.com writer").ok();
        let other = world.connected("files", &key).await;
        crate::support::wait::eventually("the roles to be known", async || {
            let answer = other.ask("resources/read", json!({ "uri": "notes://a/1" })).await;
            (answer.verdict() == "200 no_policy_permits").then_some(())
        })
        .await;
        say(&server, &updated("notes://a/1")).await;
        say(&server, &changed("resources")).await;
        assert_eq!(stream.message().await, changed("resources"));
    }

    async fn a_stream_of_what_changes_counts_among_streams(world: World) {
        let (files, key) = ana(&mut world, "*").await;
        let open = std::sync::Mutex::new(Vec::new());
        files.script(move |received| {
            let (sender, events) = tokio::sync::mpsc::channel(1);
            (received.method() == "subscriptions/listen").then(|| {
                sender.try_send(Ok(Bytes::from_static(b":\n\n"))).unwrap();
                open.lock().unwrap().push(sender);
                Scripted::Stream(events)
            })
        });
        world.start().await;
        let mut streams = Vec::new();
        for _ in 0..64 {
            let client = world.client("files").modern().bearer(&key);
            let request = client.request("subscriptions/listen", json!({ "notifications": {} }));
            let reply = client.open(&request).await.unwrap();
            assert_eq!(reply.status, 200);
            streams.push((client, reply));
        }
        let client = world.client("files").modern().bearer(&key);
        let answer = client.ask("subscriptions/listen", json!({ "notifications": {} })).await;
        assert_eq!(answer.verdict(), "429 too_many_streams");
        assert_eq!(client.ask("resources/list", json!({})).await.verdict(), "allowed", "a stream takes no place of a call");
    }

    /// The refusal of a resource is not a tool result, and does not tell whether the resource exists.
    async fn a_refused_resource_is_told_as_the_operator_wants(world: World) {
        let files = Upstream::start().await;
        for (name, denials) in [("files", "tool_result"), ("hidden", "unknown_tool")] {
            world.server(name, &files.url, &format!("denials = '{denials}'"));
        }
        world.policies(&format!("{POLICIES}{RESOURCES_AND_PROMPTS}"));
        world.person("ana", &["reader"]).await;
        world.grant("ana", "files", "*");
        world.grant("ana", "hidden", "*");
        let key = world.key("ana");
        world.start().await;

        let ask = async |server: &str, method: &str, params: Value| {
            world.client(server).modern().bearer(&key).ask(method, params).await
        };
        let secret = || json!({ "uri": "notes://secret/1" });
        assert_eq!(ask("files", "resources/read", secret()).await.verdict(), "200 forbidden_by_policy");
        for (method, params) in [
            ("resources/read", secret()),
            ("prompts/get", json!({ "name": "deploy", "arguments": {} })),
            ("prompts/get", json!({ "name": "greet", "arguments": { "who": 1 } })),
            ("completion/complete", completion(json!({ "type": "ref/prompt", "name": "deploy" }))),
            ("subscriptions/listen", json!({ "notifications": { "resourceSubscriptions": ["notes://secret/1"] } })),
        ] {
            let answer = ask("hidden", method, params).await;
            assert_eq!((answer.verdict().as_str(), &answer.message["error"]["code"]), ("200 unknown_target", &json!(-32602)), "{method}");
            assert_eq!(answer.data()["policies"], Value::Null);
        }
    }

    /// T13: a header that mirrors the body must say what the body says, once and in one spelling.
    async fn headers_that_name_something_else_never_leave(world: World) {
        let (files, key) = ana(&mut world, "*").await;
        world.start().await;
        let client = world.client("files").modern().bearer(&key);

        for (method, params, name) in [
            ("resources/read", json!({ "uri": "notes://a/1" }), "notes://a/1"),
            ("prompts/get", json!({ "name": "greet" }), "greet"),
        ] {
            let sent = async |method_fields: &[&str], name_fields: &[&str], version: &[&str]| {
                let mut headers = client.base_headers();
                headers.remove("mcp-protocol-version");
                for (field, values) in [("mcp-method", method_fields), ("mcp-name", name_fields), ("mcp-protocol-version", version)] {
                    values.iter().for_each(|value| {
                        headers.append(HeaderName::from_static(field), HeaderValue::from_str(value).unwrap());
                    });
                }
                let body = client.request(method, params.clone()).to_string();
                let answer = Answer::read(client.send("POST", headers, body.into()).await.unwrap()).await.unwrap();
                if answer.is_result() {
                    "allowed".to_owned()
                } else {
                    format!("{} {}", answer.status, answer.message["error"]["code"])
                }
            };
            let now = &["2026-07-28"][..];
            assert_eq!(sent(&[method], &[name], now).await, "allowed");
            assert_eq!(sent(&[method], &[&encoded(name)], now).await, "allowed");
            for (methods, names) in [
                (&[method][..], &[][..]),
                (&[], &[name]),
                (&[method], &["notes://b"]),
                (&["tools/call"], &[name]),
                (&[method], &[name, name]),
                (&[method, method], &[name]),
                (&[method], &[&*format!("{name}, {name}")]),
                (&[method], &[&*name.to_uppercase()]),
                (&[&*method.to_uppercase()], &[name]),
                (&[method], &["=?base64?bm90ZXM6Ly9h?="]),
                (&[method], &["=?BASE64?bm90ZXM6Ly9hLzE=?="]),
                (&[method], &["=?base64?!?="]),
            ] {
                assert_eq!(sent(methods, names, now).await, "400 -32020", "{methods:?} {names:?}");
            }
            for version in [&[][..], &["2025-06-18"], &["2026-07-28", "2026-07-28"], &["2026-07-28, 2026-07-28"]] {
                assert_eq!(sent(&[method], &[name], version).await, "400 -32020", "{version:?}");
            }
        }
        let arrived: Vec<_> = files.received().into_iter().filter(|received| received.header("mcp-name").is_some()).collect();
        let names: Vec<_> = arrived.iter().map(|received| received.header("mcp-name").unwrap()).collect();
        assert_eq!(names, ["notes://a/1", "notes://a/1", "greet", "greet"], "written anew from the body");
    }

    /// T14: `Mcp-Param-*` headers that a tool declares must repeat its arguments; others pass and mean nothing.
    async fn arguments_and_the_fields_that_repeat_them_agree(world: World) {
        let files = Upstream::start().await;
        let schema = json!({ "type": "object", "additionalProperties": false, "properties": {
            "region": { "type": "string", "x-mcp-header": "Region" },
            "page": { "type": "object", "properties": { "size": { "type": ["integer", "null"], "x-mcp-header": "Page-Size" } } },
            "dry": { "type": "boolean", "x-mcp-header": "Dry" },
            "sql": { "type": "string" },
        } });
        let read = json!({ "readOnlyHint": true });
        files.offer(json!({ "name": "rows", "inputSchema": schema, "annotations": read }));
        let wrong = json!({ "type": "object", "properties": { "n": { "type": "number", "x-mcp-header": "N" } } });
        files.offer(json!({ "name": "wrong", "inputSchema": wrong, "annotations": read }));
        world.server("files", &files.url, "");
        world.person("ana", &["reader"]).await;
        world.grant("ana", "files", "*");
        let key = world.key("ana");
        world.start().await;
        let client = world.client("files").modern().bearer(&key);

        let call = async |arguments: Value, fields: &[(&'static str, &str)]| {
            let mut headers = client.base_headers();
            headers.insert("mcp-method", HeaderValue::from_static("tools/call"));
            headers.insert("mcp-name", HeaderValue::from_static("rows"));
            for (name, value) in fields {
                headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
            }
            let body = client.request("tools/call", json!({ "name": "rows", "arguments": arguments })).to_string();
            let answer = Answer::read(client.send("POST", headers, body.into()).await.unwrap()).await.unwrap();
            if answer.is_result() {
                "allowed".to_owned()
            } else {
                format!("{} {} {}", answer.status, answer.message["error"]["code"], answer.reason())
            }
        };
        let (region, size, dry) = ("mcp-param-region", "mcp-param-page-size", "mcp-param-dry");
        let full = || json!({ "region": "\u{e4} b", "page": { "size": 42.0 }, "dry": false });
        assert_eq!(call(json!({}), &[]).await, "allowed");
        assert_eq!(call(json!({ "page": { "size": null } }), &[]).await, "allowed");
        let more = [("mcp-param-other", "a"), ("mcp-param-other", "=?base64?!"), ("mcp-param-dry-run", "true")];
        let fields = [(region, "=?base64?w6QgYg==?="), (size, "042"), (dry, "false")];
        assert_eq!(call(full(), &[&fields[..], &more].concat()).await, "allowed");

        let refused = "400 -32020 header_mismatch";
        for fields in [
            &[][..],
            &[(region, "=?base64?w6QgYg==?="), (size, "42")],
            &[(region, "a"), (size, "42"), (dry, "false")],
            &[(region, "=?base64?w6QgYg==?="), (size, "43"), (dry, "false")],
            &[(region, "=?base64?w6QgYg==?="), (size, "42"), (dry, "False")],
            &[(region, "=?base64?w6QgYg==?="), (region, "=?base64?w6QgYg==?="), (size, "42"), (dry, "false")],
        ] {
            assert_eq!(call(full(), fields).await, refused, "{fields:?}");
        }
        assert_eq!(call(json!({}), &[(region, "eu")]).await, refused);
        assert_eq!(call(json!({ "region": null }), &[(region, "null")]).await, "200 null invalid_arguments");

        let calls = files.calls();
        assert_eq!(calls.len(), 3);
        let params = |headers: &HeaderMap| -> Vec<String> {
            let mut params: Vec<String> = headers
                .iter()
                .filter(|(name, _)| name.as_str().starts_with("mcp-param-"))
                .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
                .collect();
            params.sort();
            params
        };
        assert_eq!(params(&calls[0].headers), [""; 0]);
        assert_eq!(
            params(&calls[2].headers),
            [
                "mcp-param-dry-run: true",
                "mcp-param-dry: false",
                "mcp-param-other: =?base64?!",
                "mcp-param-other: a",
                "mcp-param-page-size: 42",
                "mcp-param-region: =?base64?w6QgYg==?=",
            ]
        );
        assert!(!client.list().await.contains(&"wrong".to_owned()));
        let left_out = client.call("wrong", json!({ "n": 1 })).await;
        assert_eq!(left_out.verdict(), "200 unknown_tool");
        let legacy = world.connected("files", &key).await;
        assert!(legacy.list().await.contains(&"wrong".to_owned()), "clients of before know nothing of such fields");
        assert_eq!(legacy.call("wrong", json!({ "n": 1 })).await.verdict(), "allowed");
        assert_eq!(legacy.call("rows", full()).await.verdict(), "allowed");
    }
}

const LISTS: [(&str, &str, &str, &[&str]); 4] = [
    ("tools/list", "tools", "name", &["echo"]),
    ("resources/list", "resources", "uri", &["notes://b"]),
    (
        "resources/templates/list",
        "resourceTemplates",
        "uriTemplate",
        &["notes://{any}"],
    ),
    ("prompts/list", "prompts", "name", &["greet"]),
];

/// A list with items that a reader may have and items that not, and the name of its member in the result.
fn some_list(method: &str) -> Option<(&'static str, Value)> {
    Some(match method {
        "resources/list" => (
            "resources",
            json!([{ "uri": "notes://secret/1" }, { "uri": "notes://b", "extra": 1.5 }, { "name": "notes://b" }, 7]),
        ),
        "resources/templates/list" => (
            "resourceTemplates",
            json!([{ "uriTemplate": "notes://{any}" }, { "uriTemplate": 7 }]),
        ),
        "prompts/list" => ("prompts", json!([{ "name": "deploy" }, { "name": "greet" }])),
        "tools/list" => (
            "tools",
            json!([{ "name": "delete_file" }, { "name": "echo" }, { "name": "rm" }]),
        ),
        _ => return None,
    })
}

async fn ana(world: &mut World, scopes: &str) -> (Upstream, String) {
    let files = Upstream::start().await;
    world.server("files", &files.url, "");
    world.policies(&format!("{POLICIES}{RESOURCES_AND_PROMPTS}"));
    world.person("ana", &["reader"]).await;
    world.grant("ana", "files", scopes);
    let key = world.key("ana");
    (files, key)
}

/// One client of each era.
async fn clients(world: &World, key: &str) -> [Client; 2] {
    [
        world.connected("files", key).await,
        world.client("files").modern().bearer(key),
    ]
}

fn names<'a>(answer: &'a Answer, member: &str, name: &str) -> Vec<&'a str> {
    let items = answer.message["result"][member].as_array();
    let items = items.unwrap_or_else(|| panic!("no list `{member}`: {answer:?}"));
    items.iter().map(|item| item[name].as_str().unwrap()).collect()
}

fn completion(reference: Value) -> Value {
    json!({ "ref": reference, "argument": { "name": "who", "value": "o" } })
}

/// The header encoding of a value that is not plain text.
fn encoded(text: &str) -> String {
    neural_guardian::mcp::encode_header_value(text).into_owned()
}
