//! Opaque tokens: Guardian asks their issuer (RFC 7662), seldom, and lets nobody in while it gets no answer.

use crate::ana_reads_files;
use crate::support::issuer::{Introspection, Issuer};
use crate::support::on_both_stores;
use crate::support::wait::eventually;
use crate::support::world::World;
use serde_json::{Value, json};
use time::OffsetDateTime;

const ISS: &str = "https://id.example.test";
const TOKEN: &str = "mcp_5dbd0f2cb2b54c7e";
const SECRET: &str = "h:ush 5e1f";

fn active(world: &World, changes: Value) -> Value {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let mut answer = json!({ "active": true, "sub": "subject-of-ana", "aud": world.resource("files"), "iat": now - 1,
        "exp": now + 600, "client_id": "cli", "sid": "s-1", "scope": "echo", "token_type": "Bearer" });
    for (name, value) in changes.as_object().unwrap() {
        answer[name] = value.clone();
    }
    answer
}

/// An issuer that has JWTs and opaque tokens.
async fn issuer_of_both(world: &mut World, more: &str) -> (Issuer, Introspection) {
    let (issuer, endpoint) = (Issuer::es256(ISS), Introspection::default());
    let url = endpoint.serve(&world.authority).await;
    world.folder.write("jwks.json", &issuer.key_set().to_string());
    world.folder.write_private("secret", SECRET);
    world.issuer(
        "id",
        ISS,
        &format!(
            "kind = 'oidc'\njwks_file = 'jwks.json'\nscopes_claim = 'scope'\n[introspection]\nurl = '{url}'\nca_file = 'ca.pem'\n\
             client_id = 'guardian'\nclient_secret_file = 'secret'\n{more}"
        ),
    );
    world.link("ana", ISS, "subject-of-ana");
    (issuer, endpoint)
}

on_both_stores! {
    async fn an_opaque_token_is_asked_about_once_and_says_who_calls_and_for_what(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        let (issuer, endpoint) = issuer_of_both(&mut world, "").await;
        endpoint.knows(TOKEN, active(&world, json!({})));
        world.start().await;
        let client = world.connected("files", TOKEN).await;
        for _ in 0..5 {
            assert_eq!(client.call("echo", json!({ "text": "hi" })).await.text(), "hi");
        }
        assert_eq!(client.call("read_file", json!({ "path": "/srv/a" })).await.reason(), "credential_lacks_scope", "`scope` narrows the grant");
        let asked = endpoint.questions();
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert_eq!(asked[0].body, format!("token={TOKEN}&token_type_hint=access_token"));
        assert_eq!(asked[0].authorization, "Basic Z3VhcmRpYW46aCUzQXVzaCs1ZTFm", "guardian:h%3Aush+5e1f");

        // A JWT of the same issuer, and a key, are nothing to ask about.
        let mut claims = issuer.claims("subject-of-ana", &world.resource("files"));
        claims["scope"] = json!("echo");
        for credential in [&issuer.sign(&claims), &key] {
            assert_eq!(world.connected("files", credential).await.call("echo", json!({ "text": "hi" })).await.text(), "hi");
        }
        assert_eq!(endpoint.questions().len(), 1);

        world.shipped().await;
        let users: Vec<_> = world.audit("--tool echo").iter().map(|row| row["user"].clone()).collect();
        assert!(users.len() == 7 && users.iter().all(|user| *user == users[0]), "{users:?}");
        assert!(files.received().iter().all(|request| !request.everything().contains(TOKEN)), "the token goes to its issuer alone");
        for secret in [TOKEN, SECRET, "h%3Aush", "Z3VhcmRpYW4"] {
            assert!(!world.log().contains(secret), "{}", world.log());
        }
        assert_eq!(world.metric("guardian_introspections_total{outcome=\"active\"}").await, Some(1.0));
    }

    async fn a_token_ends_with_its_issuers_word_or_guardians_own(world: World) {
        let (_files, _) = ana_reads_files(&mut world).await;
        let (_, endpoint) = issuer_of_both(&mut world, "cache = '1s'").await;
        let tokens = ["mcp_revoked_by_its_issuer", "mcp_revoked_by_guardian_1", "mcp_of_another_resource_1"];
        endpoint.knows(tokens[0], active(&world, json!({})));
        endpoint.knows(tokens[1], active(&world, json!({ "sid": "s-2" })));
        endpoint.knows(tokens[2], active(&world, json!({ "aud": "https://other.example.test/mcp/files" })));
        world.start().await;
        let verdict = async |token: &str| world.client("files").modern().bearer(token).call("echo", json!({ "text": "hi" })).await.verdict();
        assert_eq!(verdict(tokens[0]).await, "allowed");
        assert_eq!(verdict(tokens[1]).await, "allowed");
        assert_eq!(verdict(tokens[2]).await, "401 wrong_audience");
        assert_eq!(verdict("mcp_that_nobody_issued").await, "401 token_inactive");

        endpoint.forgets(tokens[0]);
        eventually("the issuer's revocation to bind", async || (verdict(tokens[0]).await == "401 token_inactive").then_some(())).await;
        world.guardian("token revoke --issuer id --session s-2").ok();
        eventually("Guardian's revocation to bind", async || (verdict(tokens[1]).await == "401 credential_revoked").then_some(())).await;
    }

    /// Neither what was known before nor anything else lets somebody in while the issuer gives no answer.
    async fn no_answer_is_503_and_lets_nobody_in(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        let (_, endpoint) = issuer_of_both(&mut world, "cache = '1s'").await;
        endpoint.knows(TOKEN, active(&world, json!({})));
        world.start().await;
        let call = async |credential: &str| world.client("files").modern().bearer(credential).call("echo", json!({ "text": "hi" })).await;
        assert_eq!(call(TOKEN).await.verdict(), "allowed");
        endpoint.is_out_of_order(true);
        let refused = eventually("the answer to grow old", async || {
            let answer = call(TOKEN).await;
            (answer.verdict() != "allowed").then_some(answer)
        })
        .await;
        assert_eq!(refused.verdict(), "503 issuer_unavailable");
        assert_eq!((refused.header("retry-after"), refused.header("www-authenticate")), (Some("1"), None));
        assert_eq!(call("mcp_that_nobody_issued").await.status, 503);
        assert_eq!(call(&key).await.verdict(), "allowed", "a key needs no issuer");
        let calls = files.calls().len();
        for _ in 0..20 {
            assert_eq!(call(TOKEN).await.status, 503);
        }
        assert_eq!(files.calls().len(), calls);
        endpoint.is_out_of_order(false);
        eventually("the issuer to be asked again", async || (call(TOKEN).await.verdict() == "allowed").then_some(())).await;
        assert!(world.log().contains("cannot introspect a token"), "{}", world.log());
    }
}

/// Neither `check` nor a start fails because an issuer is down, but `check` says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_asks_the_issuer_about_a_token_that_nobody_has() {
    let mut world = World::new(crate::support::stores::Engine::Sqlite).await;
    let (_files, _) = ana_reads_files(&mut world).await;
    let (_, endpoint) = issuer_of_both(&mut world, "").await;
    let checked = world.guardian("check");
    assert!(
        !checked.stdout.contains("cannot be asked") && endpoint.questions().len() == 1,
        "{checked:?}"
    );
    endpoint.is_out_of_order(true);
    let checked = world.guardian("check");
    assert!(
        checked
            .stdout
            .contains("issuer `id` cannot be asked about tokens: the answer was 500"),
        "{checked:?}"
    );
    assert!(!checked.stdout.contains(SECRET) && !checked.stderr.contains(SECRET));
}
