//! The access matrix: every kind of caller and every kind of request, with the real binary's answers, in a readable file.

use crate::protocol::resources_and_prompts::RESOURCES_AND_PROMPTS;
use crate::support::certificates::Authority;
use crate::support::client::{Answer, Client};
use crate::support::golden::golden;
use crate::support::http::{Address, Protocol};
use crate::support::issuer::Issuer;
use crate::support::on_both_stores;
use crate::support::ports::free_port;
use crate::support::upstream::{Fault, Upstream};
use crate::support::wait::eventually;
use crate::support::world::{POLICIES, World};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use neural_guardian::domain::Reason;
use serde_json::{Value, json};
use std::fmt::Write;

const ISS: &str = "https://id.example.test";

/// Reasons that need an event which the matrix cannot stage, and the stories that stage it.
const ELSEWHERE: &[(Reason, &str)] = &[
    (Reason::Draining, "sigterm_drains_and_nothing_is_lost"),
    (Reason::BodyTooSlow, "slow_clients_are_cut_and_the_others_served"),
    (
        Reason::TooManyInFlight,
        "too_many_calls_at_once_are_refused_and_the_slots_come_back",
    ),
    (Reason::TooManySessions, "sessions_are_bounded_and_one_that_is_not_used_ends"),
    (Reason::TooManyStreams, "a_stream_of_what_changes_counts_among_streams"),
    (Reason::StaleAuthorization, "with_the_database_gone_calls_stop_at_the_bound"),
    (Reason::FeedMissing, "a_mapped_table_without_its_feed_is_not_served"),
    (Reason::TooManyMembers, "users_above_the_limit_are_told_and_the_others_served"),
    (Reason::DefinitionChanged, "a_changed_tool_definition_is_refused_until_pinned"),
    (Reason::AuditUnavailable, "a_journal_that_cannot_write_refuses_every_call"),
    (Reason::TokenInactive, "a_token_ends_with_its_issuers_word_or_guardians_own"),
    (Reason::CredentialRevoked, "tokens_issued_before_a_revocation_are_refused"),
    (
        Reason::ClientRequestRefused,
        "an_answer_that_asks_for_what_it_may_not_ends_the_call",
    ),
    (Reason::UnknownAnswer, "only_the_one_who_was_asked_answers_and_once"),
    (Reason::UnknownCursor, "a_cursor_goes_on_for_the_one_it_was_given_to"),
    (Reason::UnknownEvent, "an_event_is_resumed_after_by_whom_it_was_sent_to"),
    (Reason::UnknownState, "a_call_that_needs_more_is_repeated_with_it"),
    (Reason::UnknownTask, "a_task_of_the_old_era_is_its_callers"),
    (
        Reason::MissingCapability,
        "a_client_that_does_no_tasks_is_told_so_before_any_is_looked_for",
    ),
    (Reason::UnknownTarget, "a_refused_resource_is_told_as_the_operator_wants"),
];

/// Reasons that no message from outside can cause, and why.
const NEVER: &[(Reason, &str)] = &[(Reason::Internal, "a broken invariant; no known message leads to it")];

on_both_stores! {
    async fn the_access_matrix_is_as_it_is_written(world: World) {
        let scene = Scene::set(&mut world).await;
        let mut text = String::from(
            "Who may do what. Written by the stories from what the real binary answers; see tests/stories/decisions/matrix.rs.\n\
             `allowed`, or the HTTP status and the reason of the refusal.\n",
        );
        text.push_str(&scene.callers(&world).await);
        text.push_str(&scene.combined(&world).await);
        text.push_str(&scene.oddities(&world).await);
        text.push_str(&elsewhere());
        golden("access.txt", &text);
    }
}

#[test]
fn every_reason_is_in_the_matrix_or_in_a_story_that_brings_it_about() {
    let matrix = include_str!("../../golden/access.txt");
    let stories = crate::stories();
    for reason in Reason::ALL {
        let in_matrix = matrix.lines().any(|line| line.ends_with(&format!(" {}", reason.code())));
        let elsewhere = ELSEWHERE.iter().find(|(listed, _)| listed == reason).map(|(_, story)| *story);
        let never = NEVER.iter().any(|(listed, _)| listed == reason);
        if let Some(story) = elsewhere {
            let told = stories
                .iter()
                .any(|text| text.contains(&format!("async fn {story}(")) && text.contains(reason.code()));
            assert!(
                told,
                "the story `{story}` for {reason:?} is missing or does not name its code"
            );
        }
        let places = usize::from(in_matrix) + usize::from(elsewhere.is_some()) + usize::from(never);
        assert_eq!(places, 1, "{reason:?} (`{}`) must be in exactly one place", reason.code());
    }
}

/// The part of the file that lists `ELSEWHERE` and `NEVER`.
fn elsewhere() -> String {
    let mut text = String::from("\nRefusals that something else has to happen for, and the story that makes it happen\n");
    for (reason, story) in ELSEWHERE {
        writeln!(text, "    {:<24} {}", reason.code(), story.replace('_', " ")).unwrap();
    }
    text.push_str("\nRefusals that nobody can bring about from outside\n");
    for (reason, why) in NEVER {
        writeln!(text, "    {:<24} {why}", reason.code()).unwrap();
    }
    text
}

struct Scene {
    issuer: Issuer,
    other_algorithm: Issuer,
    by_environment: Issuer,
    supabase: Issuer,
    access: Issuer,
    unreachable: Issuer,
    keys: Vec<(&'static str, String)>,
    files: Upstream,
    broken: Upstream,
    silent: Upstream,
    others: Vec<Upstream>,
    clients_authority: Authority,
}

impl Scene {
    async fn set(world: &mut World) -> Scene {
        let issuer = Issuer::es256(ISS);
        let scene = Scene {
            other_algorithm: Issuer::rs256(ISS),
            by_environment: Issuer::es256("https://envs.example.test"),
            supabase: Issuer::es256("https://project.supabase.example.test/auth/v1"),
            access: Issuer::rs256("https://team.cloudflareaccess.example.test"),
            unreachable: Issuer::es256("https://gone.example.test"),
            issuer,
            keys: Vec::new(),
            files: Upstream::start().await,
            broken: Upstream::start().await,
            silent: Upstream::start().await,
            others: vec![Upstream::start().await, Upstream::start().await, Upstream::start().await],
            clients_authority: Authority::new("clients of the tests"),
        };
        scene.configure(world);
        scene.enrol(world).await
    }

    fn configure(&self, world: &mut World) {
        for (alias, issuer, more) in [
            ("id", &self.issuer, "kind = 'oidc'\nalgorithms = ['ES256']"),
            (
                "envs",
                &self.by_environment,
                "kind = 'oidc'\nenvironment_claim = 'app_metadata.environments'",
            ),
            ("supabase", &self.supabase, "kind = 'supabase'"),
            (
                "access",
                &self.access,
                "kind = 'cloudflare_access'\naudiences = ['the-application']",
            ),
        ] {
            world.folder.write(&format!("{alias}.json"), &issuer.key_set().to_string());
            world.issuer(alias, &issuer.iss, &format!("jwks_file = '{alias}.json'\n{more}"));
        }
        let nowhere = format!("kind = 'oidc'\njwks_url = 'https://localhost:{}/jwks.json'", free_port());
        world.issuer("gone", &self.unreachable.iss, &nowhere);
        world.folder.write("clients-ca.pem", &self.clients_authority.pem);
        world
            .set("listen.tls.client_ca_file", "'clients-ca.pem'")
            .set("listen.tls.client_certificates", "'optional'");
        world.set("listen.limits.max_body_bytes", "10000");
        world.set("limits.tools", "{ 'limited/echo' = { rate = 1, per = '600s', burst = 1 } }");
        world.server("files", &self.files.url, "");
        world.server("other", &self.others[0].url, "");
        world.server("strict", &self.others[1].url, "pin = 'strict'");
        world.server("limited", &self.others[2].url, "");
        world.server("unreachable", &format!("http://localhost:{}/mcp", free_port()), "");
        world.server("broken", &self.broken.url, "");
        world.server("silent", &self.silent.url, "first_byte_timeout = '1s'");
        let errs = "@id(\"overflows\") forbid (principal, action == Guardian::Action::\"files/add\", resource)\n\
                    when { context.input.a + 9223372036854775807 > 0 };";
        world.policies(&format!("{POLICIES}\n{RESOURCES_AND_PROMPTS}\n{errs}"));
        self.broken.fault("echo", Fault::Status(500));
        self.silent.fault("echo", Fault::Hang);
    }

    async fn enrol(mut self, world: &mut World) -> Scene {
        for (name, roles) in [
            ("reader", &["reader"][..]),
            ("writer", &["writer"]),
            ("both", &["reader", "writer"]),
            ("roleless", &[]),
            ("narrow", &["reader"]),
            ("disabled", &["reader"]),
            ("grantless", &["reader"]),
            ("idle", &["reader"]),
            ("revoked", &["reader"]),
            ("lapsed", &["reader"]),
        ] {
            world.person(name, roles).await;
            self.keys.push((name, world.key(name)));
        }
        for name in ["reader", "writer", "both", "roleless", "disabled", "revoked"] {
            world.grant(name, "files", "*");
        }
        world.grant("narrow", "files", "echo,read_file");
        world.grant("idle", "files", "*");
        let of_idle = "user_id = (SELECT id FROM {t}users WHERE email = 'idle@example.com')";
        world
            .sql(&format!("UPDATE {{t}}mcp_authorizations SET status = 'idle' WHERE {of_idle}"))
            .await;
        world
            .guardian("grant add --user lapsed@example.com --server files --scopes * --expires 1s")
            .ok();
        world.revoke("revoked", "files");
        world.guardian("user disable disabled@example.com").ok();
        for server in ["strict", "limited", "unreachable", "broken", "silent"] {
            world.grant("reader", server, "*");
        }
        let narrowed = world.key_with("reader", "--scopes echo");
        let expired = world.key_with("reader", "--expires 1s");
        let revoked = world.key("reader");
        world
            .guardian(&format!("key revoke {}", revoked.split('_').nth(1).unwrap()))
            .ok();
        self.keys
            .extend([("narrowed", narrowed), ("expired", expired), ("revoked key", revoked)]);
        for issuer in [&self.issuer, &self.by_environment, &self.supabase, &self.access] {
            world.link("reader", &issuer.iss, "reader");
        }
        world.link("reader", "certificate", "uri:spiffe://example.test/reader");
        world.start().await;
        let client = world.client("files").bearer(self.key("expired"));
        eventually("a key to expire", async || {
            (client.send_ping().await.ok()?.reason() == "key_expired").then_some(())
        })
        .await;
        let client = world.client("files").bearer(self.key("lapsed"));
        eventually("a grant to expire", async || {
            (client.send_ping().await.ok()?.reason() == "grant_expired").then_some(())
        })
        .await;
        self
    }

    fn key(&self, name: &str) -> &str {
        &self.keys.iter().find(|(known, _)| *known == name).unwrap().1
    }

    // ---- the first part: callers × requests

    async fn callers(&self, world: &World) -> String {
        let mut text = String::new();
        for (who, client) in self.clients(world) {
            writeln!(text, "\n{who}").unwrap();
            let verdicts = asks(client).await;
            let same = verdicts.iter().all(|(_, verdict)| *verdict == verdicts[0].1);
            if same {
                writeln!(text, "    {:<40} {}", "whatever it asks", verdicts[0].1).unwrap();
            } else {
                for (ask, verdict) in &verdicts {
                    writeln!(text, "    {ask:<40} {verdict}").unwrap();
                }
            }
        }
        text
    }

    fn clients(&self, world: &World) -> Vec<(&'static str, Client)> {
        let files = world.resource("files");
        let bearer = |credential: &str| world.client("files").bearer(credential);
        let spoilt = |issuer: &Issuer, name: &str, value: Value| {
            let mut claims = issuer.claims("reader", &files);
            claims[name] = value;
            bearer(&issuer.sign(&claims))
        };
        let token = |issuer: &Issuer| issuer.token("reader", &files);
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let presenting = |authority: &Authority, uris: &[&str]| {
            let pair = authority.client("reader", uris);
            Client::new(
                Address::tls(world.port, &world.authority, Some(&pair), Protocol::Http1),
                "files",
            )
        };
        let mut other_secret = self.key("reader").to_owned();
        other_secret.replace_range(other_secret.len() - 12..other_secret.len() - 9, "aaa");
        let mut forged = token(&self.issuer);
        forged.replace_range(forged.len() - 20..forged.len() - 10, "AAAAAAAAAA");
        let supabase = |role: &str| {
            let mut claims = self.supabase.claims("reader", "authenticated");
            (claims["role"], claims["is_anonymous"], claims["session_id"]) = (json!(role), json!(false), json!("s-1"));
            bearer(&self.supabase.sign(&claims))
        };
        let environment = |names: Value| spoilt(&self.by_environment, "app_metadata", json!({ "environments": names }));
        vec![
            ("nobody: no credential", world.client("files")),
            (
                "two credentials at once",
                bearer(self.key("reader")).bearer(&token(&self.issuer)),
            ),
            ("a word that is no credential", bearer("open-sesame")),
            (
                "a token of an issuer that is not configured",
                bearer(&Issuer::es256("https://elsewhere.test").token("reader", &files)),
            ),
            ("a token signed with another algorithm", bearer(&token(&self.other_algorithm))),
            ("a token signed with a key the issuer does not publish", {
                bearer(&self.issuer.sign_as("k99", &self.issuer.claims("reader", &files)))
            }),
            ("a token whose signature was changed", bearer(&forged)),
            ("a token that has expired", spoilt(&self.issuer, "exp", json!(now - 600))),
            (
                "a token that lives too long",
                spoilt(&self.issuer, "exp", json!(now + 2 * 86_400)),
            ),
            ("a token that is not valid yet", spoilt(&self.issuer, "nbf", json!(now + 600))),
            (
                "a token made for another server",
                bearer(&self.issuer.token("reader", &world.resource("other"))),
            ),
            ("a Supabase service key, which is no user's token", supabase("service_role")),
            ("a token for another environment", environment(json!(["staging"]))),
            ("a token whose issuer's keys cannot be had", bearer(&token(&self.unreachable))),
            ("a key with another secret", bearer(&other_secret)),
            ("a key that has expired", bearer(self.key("expired"))),
            ("a key that was revoked", bearer(self.key("revoked key"))),
            (
                "a certificate with two names",
                presenting(&self.clients_authority, &["spiffe://a.test/a", "spiffe://a.test/b"]),
            ),
            (
                "a token of somebody who is not enrolled",
                spoilt(&self.issuer, "sub", json!("stranger")),
            ),
            ("somebody whose account is disabled", bearer(self.key("disabled"))),
            ("somebody without a grant", bearer(self.key("grantless"))),
            ("somebody whose grant is not verified yet", bearer(self.key("idle"))),
            ("somebody whose grant was revoked", bearer(self.key("revoked"))),
            ("somebody whose grant has expired", bearer(self.key("lapsed"))),
            ("a reader with every scope, by key", bearer(self.key("reader"))),
            ("the same, by token", bearer(&token(&self.issuer))),
            ("the same, by a Supabase token", supabase("authenticated")),
            ("the same, by a Cloudflare Access assertion", {
                let mut claims = self.access.claims("reader", "the-application");
                (claims["type"], claims["aud"]) = (json!("app"), json!(["the-application"]));
                world
                    .client("files")
                    .with("cf-access-jwt-assertion", &self.access.sign(&claims))
            }),
            ("the same, by a token for this environment", environment(json!(["default"]))),
            (
                "the same, by certificate",
                presenting(&self.clients_authority, &["spiffe://example.test/reader"]),
            ),
            ("the same, by a key narrowed to echo", bearer(self.key("narrowed"))),
            ("a reader with the scopes echo and read_file", bearer(self.key("narrow"))),
            ("a writer with every scope", bearer(self.key("writer"))),
            ("a reader and writer with every scope", bearer(self.key("both"))),
            ("somebody with every scope and no role", bearer(self.key("roleless"))),
        ]
    }

    /// The same callers at the combined endpoint.
    async fn combined(&self, world: &World) -> String {
        let mut text = String::from("\nThe same callers at `/mcp`, calling `files__echo`\n");
        for (who, client) in self.clients(world) {
            let mut client = client.modern();
            client.path = "/mcp".into();
            let verdict = client.call("files__echo", json!({ "text": "hi" })).await.verdict();
            writeln!(text, "    {who:<60} {verdict}").unwrap();
        }
        text
    }

    // ---- the second part: a reader's odd requests

    async fn oddities(&self, world: &World) -> String {
        let key = self.key("reader");
        let reader = world.connected("files", key).await;
        let echo = |client: &Client| client.request("tools/call", json!({ "name": "echo", "arguments": { "text": "hi" } }));
        let mut text = String::from("\nThe reader with every scope, asking oddly\n");
        let mut say = |what: &str, answer: Answer| writeln!(text, "    {what:<60} {}", answer.verdict()).unwrap();

        for (what, server) in [
            ("calling a server that does not exist", "nowhere"),
            ("calling a tool nobody has approved yet", "strict"),
            ("calling a server that answers with an error", "broken"),
            ("calling a server that does not answer", "silent"),
        ] {
            let client = world.client(server).modern().bearer(key);
            say(what, client.post(&echo(&client)).await);
        }
        world
            .client("limited")
            .modern()
            .bearer(key)
            .call("echo", json!({ "text": "hi" }))
            .await;
        say(
            "opening a session with a server that is down",
            world.client("unreachable").bearer(key).handshake().await,
        );
        let limited = world.client("limited").modern().bearer(key);
        say(
            "calling a tool more often than is allowed",
            limited.post(&echo(&limited)).await,
        );
        world.guardian("server disable other").ok();
        let other = world.client("other").bearer(key);
        let switched_off = eventually("a server to be switched off", async || {
            let answer = other.send_ping().await.unwrap();
            (answer.reason() == "server_disabled").then_some(answer)
        })
        .await;
        say("calling a server that is switched off", switched_off);

        for (what, method, path, header, body) in [
            ("at a path where nothing is", "POST", "/nothing", ("x-a", "b"), None),
            ("with another host name", "POST", "/mcp/files", ("host", "evil.test"), None),
            (
                "from a foreign web page",
                "POST",
                "/mcp/files",
                ("origin", "https://evil.test"),
                None,
            ),
            ("by PUT", "PUT", "/mcp/files", ("x-a", "b"), None),
            ("as text/plain", "POST", "/mcp/files", ("content-type", "text/plain"), None),
            (
                "accepting JSON only",
                "POST",
                "/mcp/files",
                ("accept", "application/json"),
                None,
            ),
            ("with an expectation", "POST", "/mcp/files", ("expect", "anything"), None),
            (
                "with a body that is too large",
                "POST",
                "/mcp/files",
                ("x-a", "b"),
                Some("x".repeat(20_000)),
            ),
            (
                "with half a message",
                "POST",
                "/mcp/files",
                ("x-a", "b"),
                Some("{\"jsonrpc\":".into()),
            ),
            (
                "with a member twice",
                "POST",
                "/mcp/files",
                ("x-a", "b"),
                Some(r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#.into()),
            ),
            (
                "with a batch",
                "POST",
                "/mcp/files",
                ("x-a", "b"),
                Some(r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#.into()),
            ),
            (
                "without the name of a tool",
                "POST",
                "/mcp/files",
                ("x-a", "b"),
                Some(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{}}"#.into()),
            ),
            (
                "with an unknown method",
                "POST",
                "/mcp/files",
                ("x-a", "b"),
                Some(r#"{"jsonrpc":"2.0","id":1,"method":"tools/destroy"}"#.into()),
            ),
            (
                "with a session that is not theirs",
                "POST",
                "/mcp/files",
                ("mcp-session-id", "made-up"),
                None,
            ),
            (
                "with a version nobody speaks",
                "POST",
                "/mcp/files",
                ("mcp-protocol-version", "2031-01-01"),
                None,
            ),
        ] {
            let mut headers = reader.base_headers();
            headers.insert(HeaderName::from_static(header.0), HeaderValue::from_static(header.1));
            let body = body.unwrap_or_else(|| echo(&reader).to_string());
            let mut client = Client::new(reader.address.clone(), "files");
            client.path = path.into();
            let reply = client.send(method, headers, Bytes::from(body)).await.unwrap();
            say(what, Answer::read(reply).await.unwrap());
        }
        let modern = world.client("files").modern().bearer(key);
        let mut headers = modern.base_headers();
        headers.insert("mcp-method", HeaderValue::from_static("tools/call"));
        headers.insert("mcp-name", HeaderValue::from_static("read_file"));
        let reply = modern.send("POST", headers, echo(&modern).to_string().into()).await.unwrap();
        say("with a header that names another tool", Answer::read(reply).await.unwrap());
        let secret = json!({ "notifications": { "resourceSubscriptions": ["notes://a/1", "notes://secret/1"] } });
        say(
            "listening to a resource that may not be read",
            modern.ask("subscriptions/listen", secret).await,
        );
        say(
            "setting a level that is a matter of each request now",
            modern.ask("logging/setLevel", json!({ "level": "debug" })).await,
        );
        say(
            "reading a resource with a parameter nobody knows",
            modern
                .ask("resources/read", json!({ "uri": "notes://a/1", "as": "root" }))
                .await,
        );
        text
    }
}

/// Sends each request of the matrix as this caller, and returns the request's name with its verdict.
async fn asks(mut client: Client) -> Vec<(String, String)> {
    let mut verdicts = vec![("initialize".to_owned(), client.handshake().await.verdict())];
    for (list, member, name) in [
        ("tools/list", "tools", "name"),
        ("resources/list", "resources", "uri"),
        ("resources/templates/list", "resourceTemplates", "uriTemplate"),
        ("prompts/list", "prompts", "name"),
    ] {
        let listed = client.ask(list, json!({})).await;
        verdicts.push((list.to_owned(), shown(&listed, member, name)));
    }
    for (tool, arguments) in [
        ("echo", json!({ "text": "hi" })),
        ("read_file", json!({ "path": "/srv/a" })),
        ("read_file", json!({ "path": "/etc/a" })),
        ("write_file", json!({ "path": "/srv/a", "text": "b" })),
        ("delete_file", json!({ "path": "/srv/a" })),
        ("add", json!({ "a": 1, "b": 2 })),
        ("read_file", json!({ "file": 1 })),
        ("no_such_tool", json!({})),
    ] {
        let words: Vec<String> = arguments
            .as_object()
            .unwrap()
            .values()
            .map(|value| value.to_string().replace('"', ""))
            .collect();
        verdicts.push((
            format!("{tool} {}", words.join(" ")),
            client.call(tool, arguments).await.verdict(),
        ));
    }
    let of_prompt =
        |name: &str| json!({ "ref": { "type": "ref/prompt", "name": name }, "argument": { "name": "who", "value": "" } });
    let of_template =
        json!({ "ref": { "type": "ref/resource", "uri": "notes://a/{number}" }, "argument": { "name": "number", "value": "" } });
    for (ask, method, params) in [
        (
            "resources/read notes://a/1",
            "resources/read",
            json!({ "uri": "notes://a/1" }),
        ),
        (
            "resources/read notes://secret/1",
            "resources/read",
            json!({ "uri": "notes://secret/1" }),
        ),
        (
            "resources/read notes://a/../b",
            "resources/read",
            json!({ "uri": "notes://a/../b" }),
        ),
        (
            "resources/subscribe notes://a/1",
            "resources/subscribe",
            json!({ "uri": "notes://a/1" }),
        ),
        (
            "resources/subscribe notes://secret/1",
            "resources/subscribe",
            json!({ "uri": "notes://secret/1" }),
        ),
        (
            "resources/unsubscribe notes://secret/1",
            "resources/unsubscribe",
            json!({ "uri": "notes://secret/1" }),
        ),
        ("prompts/get greet", "prompts/get", json!({ "name": "greet" })),
        (
            "prompts/get deploy prod",
            "prompts/get",
            json!({ "name": "deploy", "arguments": { "env": "prod" } }),
        ),
        (
            "prompts/get deploy staging",
            "prompts/get",
            json!({ "name": "deploy", "arguments": { "env": "staging" } }),
        ),
        ("completion of prompt greet", "completion/complete", of_prompt("greet")),
        ("completion of notes://a/{number}", "completion/complete", of_template),
        ("logging/setLevel debug", "logging/setLevel", json!({ "level": "debug" })),
        ("subscriptions/listen", "subscriptions/listen", json!({ "notifications": {} })),
    ] {
        verdicts.push((ask.to_owned(), client.ask(method, params).await.verdict()));
    }
    verdicts
}

fn shown(listed: &Answer, member: &str, name: &str) -> String {
    match listed.message["result"][member].as_array() {
        None => listed.verdict(),
        Some(items) if items.is_empty() => "allowed: nothing".into(),
        Some(items) => {
            let names: Vec<&str> = items.iter().map(|item| item[name].as_str().unwrap()).collect();
            format!("allowed: {}", names.join(", "))
        }
    }
}
