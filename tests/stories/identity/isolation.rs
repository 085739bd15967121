//! Isolation: the caller's credentials from the server, one caller's session from another's, and secrets from everything
//! that is written or answered.

use crate::support::issuer::Issuer;
use crate::support::on_both_stores;
use crate::support::upstream::{Fault, Upstream};
use crate::support::wait::eventually;
use crate::support::world::World;
use crate::{ana, ana_reads_files};
use http::HeaderMap;
use serde_json::json;

const ISSUER: &str = "https://id.example.test";

on_both_stores! {
    async fn the_callers_token_cookies_and_identity_headers_never_reach_the_server(world: World) {
        let files = Upstream::start().await;
        world.server("files", &files.url, "credential = { value = 'Bearer the-servers-own' }");
        let issuer = Issuer::es256(ISSUER);
        world.folder.write("jwks.json", &issuer.key_set().to_string());
        world.issuer("id", ISSUER, "kind = 'oidc'\njwks_file = 'jwks.json'");
        ana(&mut world).await;
        world.link("ana", ISSUER, "ana-at-the-issuer");
        world.start().await;

        let token = issuer.token("ana-at-the-issuer", &world.resource("files"));
        let forged = [
            ("cookie", "canary-cookie=1"),
            ("x-forwarded-for", "canary-forwarded"),
            ("x-forwarded-user", "canary-user"),
            ("forwarded", "for=canary-forwarded"),
            ("x-user", "canary-user"),
            ("x-api-key", "canary-key"),
            ("x-guardian-user", "canary-user"),
            ("proxy-authorization", "Basic canary"),
            ("mcp-param-user", "canary-param"),
            ("user-agent", "canary-agent"),
        ];
        let mut client = world.client("files").bearer(&token);
        for (name, value) in forged {
            client = client.with(name, value);
        }
        client.handshake().await;
        assert_eq!(client.call("echo", json!({ "text": "hi" })).await.text(), "hi");
        world.client("files").modern().bearer(&token).call("echo", json!({ "text": "hi" })).await.text();
        client.send("DELETE", client.base_headers(), Default::default()).await.unwrap();

        let received = files.received();
        assert!(received.len() >= 4, "{received:?}");
        for request in received {
            let everything = request.everything();
            assert!(!everything.contains(&token), "{everything}");
            assert!(!everything.contains("canary"), "{everything}");
            assert!(!everything.contains("ana"), "{everything}");
            assert_eq!(request.header("authorization"), Some("Bearer the-servers-own"), "{everything}");
            assert!(request.header("mcp-session-id").is_none_or(|session| session.starts_with("upstream-session")));
        }
    }

    async fn nothing_of_the_servers_own_headers_reaches_the_caller(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        world.start().await;
        let client = world.connected("files", &key).await;

        files.fault("echo", Fault::Cookies);
        let answer = client.call("echo", json!({ "text": "hi" })).await;
        assert_eq!(answer.text(), "hi");
        assert_eq!((answer.header("set-cookie"), answer.header("x-powered-by")), (None, None));

        for fault in [Fault::Challenge, Fault::Redirect("https://elsewhere.test/mcp".into()), Fault::Status(500), Fault::Garbage] {
            files.fault("echo", fault.clone());
            let answer = client.call("echo", json!({ "text": "hi" })).await;
            assert_eq!(answer.verdict(), "200 upstream_broken", "{fault:?}");
            let told = format!("{:?} {}", answer.headers, answer.body);
            assert!(!told.contains("elsewhere") && !told.contains("out of order"), "{told}");
            assert_eq!((answer.header("www-authenticate"), answer.header("location")), (None, None));
        }
        assert_eq!(files.received().iter().filter(|request| request.path != "/mcp").count(), 0, "no redirect is followed");
    }

    async fn a_foreign_session_id_is_unknown(world: World) {
        let (files, ana) = ana_reads_files(&mut world).await;
        world.person("bob", &["reader"]).await;
        world.grant("bob", "files", "*");
        let bob = world.key("bob");
        world.start().await;
        let mut anas = world.connected("files", &ana).await;
        let mut bobs = world.connected("files", &bob).await;
        assert_ne!(anas.session, bobs.session);
        assert!(!anas.session.as_ref().unwrap().contains("upstream-session"), "the server's own id is not shown");

        let before = files.received().len();
        std::mem::swap(&mut anas.session, &mut bobs.session);
        assert_eq!(bobs.call("echo", json!({ "text": "hi" })).await.verdict(), "404 unknown_session");
        let mut spoiled = bobs.session.clone().unwrap();
        spoiled.replace_range(spoiled.len() - 6.., "AAAAAA");
        for forged in [spoiled, "upstream-session-1".into(), "x".repeat(200)] {
            bobs.session = Some(forged);
            assert_eq!(bobs.call("echo", json!({ "text": "hi" })).await.verdict(), "404 unknown_session");
            assert_eq!(bobs.send("DELETE", bobs.base_headers(), Default::default()).await.unwrap().status, 404);
        }
        assert_eq!(files.received().len(), before);
    }

    async fn a_session_of_one_server_is_unknown_to_another(world: World) {
        let (_files, key) = ana_reads_files(&mut world).await;
        let other = Upstream::start().await;
        world.server("other", &other.url, "");
        world.grant("ana", "other", "*");
        world.start().await;

        let mut client = world.connected("files", &key).await;
        client.path = "/mcp/other".into();

        assert_eq!(client.call("echo", json!({ "text": "hi" })).await.verdict(), "404 unknown_session");
        assert_eq!(other.calls().len(), 0);
    }

    /// Every secret is a canary; no file, log or answer may contain one.
    async fn secrets_appear_nowhere(world: World) {
        let files = Upstream::start().await;
        world.server("files", &files.url, "credential = { value = 'Bearer canary-credential' }");
        let issuer = Issuer::es256(ISSUER);
        world.folder.write("jwks.json", &issuer.key_set().to_string());
        world.issuer("id", ISSUER, "kind = 'oidc'\njwks_file = 'jwks.json'");
        world.set("audit.inputs", "'redacted'").set("audit.redact", "['text']").set("log.level", "'trace'");
        let key = ana(&mut world).await;
        world.link("ana", ISSUER, "ana");
        world.start().await;
        let secret = key.split('_').nth(2).expect("ng_<id>_<secret>_<crc>").to_owned();
        let token = issuer.token("ana", &world.resource("files"));
        let bad = format!("{}canary", &token[..token.len() - 6]);
        let signature = token.rsplit('.').next().unwrap().to_owned();
        let words = ["canary".to_owned(), secret, signature, key.clone(), token.clone()];

        let mut answers = Vec::new();
        for credential in [&key, &token, &bad, &format!("{key}x"), &"ng_canarycanary_canary_canary".to_owned()] {
            let mut client = world.client("files").bearer(credential).with("cookie", "a=canary-cookie");
            answers.push(client.handshake().await);
            for text in ["canary-argument", "\u{202e}canary-argument\n"] {
                answers.push(client.call("query", json!({ "sql": 1, "text": text })).await);
            }
            client.call("echo", json!({ "text": "canary-argument" })).await;
        }
        files.fault("echo", Fault::Status(500));
        answers.push(world.connected("files", &key).await.call("echo", json!({ "text": "canary-argument" })).await);
        world.shipped().await;
        let audit = format!("{:?}", world.audit(""));
        let metrics = world.metrics().await;
        world.terminate();
        world.ended().await;

        let mut written = vec![("the audit".to_owned(), audit), ("the metrics".to_owned(), metrics)];
        written.extend(answers.iter().map(|answer| (answer.verdict(), format!("{:?} {}", answer.headers, answer.body))));
        for file in world.folder.files().iter().filter(|file| !file.ends_with("guardian.toml")) {
            written.push((file.display().to_string(), String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned()));
        }
        assert!(written.iter().any(|(name, text)| name.ends_with("guardian.log") && text.contains("missing_scope")));
        assert!(written.len() > 10, "the search looks at something");
        for (place, text) in written {
            for word in &words {
                let found = text.find(word.as_str()).map(|at| text[at.saturating_sub(100)..].chars().take(200).collect::<String>());
                assert_eq!(found, None, "{word} is in {place}");
            }
        }
    }

    async fn a_caller_of_one_server_cannot_call_another(world: World) {
        let (_files, key) = ana_reads_files(&mut world).await;
        let other = Upstream::start().await;
        world.server("other", &other.url, "");
        world.start().await;

        let mut client = world.client("other").bearer(&key);
        assert_eq!(client.handshake().await.verdict(), "200 no_grant");
        assert_eq!(client.call("echo", json!({ "text": "hi" })).await.verdict(), "200 no_grant");
        let token = Issuer::es256(ISSUER).token("ana", &world.resource("files"));
        assert_eq!(world.client("other").bearer(&token).handshake().await.status, 401);
        // Guardian itself fetches the tools of `other`; no request of a caller reaches it.
        eventually("the catalogue to be fetched", async || (!other.received().is_empty()).then_some(())).await;
        assert_eq!(other.calls().len(), 0);
    }

    async fn two_credentials_are_none(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        world.start().await;

        let answer = world.client("files").bearer(&key).bearer(&key).handshake().await;
        assert_eq!(answer.verdict(), "401 several_credentials");
        let mut elsewhere = HeaderMap::new();
        elsewhere.insert("cookie", format!("authorization={key}").parse().unwrap());
        elsewhere.insert("x-api-key", key.parse().unwrap());
        let mut client = world.client("files");
        client.headers = elsewhere;
        assert_eq!(client.handshake().await.verdict(), "401 no_credential");
        assert_eq!(files.calls().len(), 0);
    }
}
