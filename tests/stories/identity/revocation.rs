//! A revocation binds every later call within `grants.max_staleness`.

use crate::ana_reads_files;
use crate::support::issuer::Issuer;
use crate::support::on_both_stores;
use crate::support::wait::eventually;
use crate::support::world::World;
use neural_guardian::domain::Timestamp;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

const BOUND: Duration = Duration::from_secs(2);

on_both_stores! {
    async fn a_revoked_grant_stops_within_the_bound(world: World) {
        let (_files, key) = ana_reads_files(&mut world).await;
        world.set("grants.max_staleness", "'2s'").set("grants.confirm_after", "'500ms'");
        world.start().await;
        let client = world.connected("files", &key).await;
        assert_eq!(client.call("echo", json!({ "text": "hi" })).await.text(), "hi");

        let revoked = revoke_while_calling(&world, "grant revoke --user ana@example.com --server files", async || {
            client.call("echo", json!({ "text": "hi" })).await.verdict() == "200 grant_revoked"
        })
        .await;

        assert_eq!(late(&world, revoked).await, [] as [Value; 0]);
        world.grant("ana", "files", "echo");
        eventually("the grant to be back", async || client.call("echo", json!({ "text": "hi" })).await.is_result().then_some(())).await;
    }

    async fn a_revoked_key_stops_within_the_bound(world: World) {
        let (_files, key) = ana_reads_files(&mut world).await;
        world.set("grants.max_staleness", "'2s'").set("grants.confirm_after", "'500ms'");
        world.start().await;
        let client = world.connected("files", &key).await;
        let id = key.split('_').nth(1).unwrap();

        let revoked = revoke_while_calling(&world, &format!("key revoke {id}"), async || {
            let answer = client.call("echo", json!({ "text": "hi" })).await;
            answer.status == 401
        })
        .await;

        assert_eq!(late(&world, revoked).await, [] as [Value; 0]);
    }

    async fn a_disabled_user_stops_within_the_bound(world: World) {
        let (_files, key) = ana_reads_files(&mut world).await;
        world.set("grants.max_staleness", "'2s'").set("grants.confirm_after", "'500ms'");
        world.start().await;
        let client = world.connected("files", &key).await;

        let revoked = revoke_while_calling(&world, "user disable ana@example.com", async || {
            client.call("echo", json!({ "text": "hi" })).await.verdict() == "200 member_disabled"
        })
        .await;

        assert_eq!(late(&world, revoked).await, [] as [Value; 0]);
    }

    /// Without the retry, the refresh interval of this story would hide the grant for a minute.
    async fn what_was_granted_a_moment_ago_by_another_process_is_not_refused(world: World) {
        let files = crate::support::upstream::Upstream::start().await;
        world.server("files", &files.url, "");
        world.person("ana", &["reader"]).await;
        let key = world.key("ana");
        world.guardian("user disable ana@example.com").ok();
        world.set("grants.max_staleness", "'60s'").set("grants.confirm_after", "'59s'");
        world.start().await;
        let client = world.client("files").modern().bearer(&key);
        let read_is = async |verdict: &str| {
            eventually(verdict, async || {
                let answer = client.call("read_file", json!({ "path": "/srv/a" })).await;
                (answer.verdict() == verdict).then_some(())
            })
            .await;
        };
        read_is("200 member_disabled").await;
        world.guardian("user enable ana@example.com").ok();
        read_is("200 no_grant").await;
        world.grant("ana", "files", "echo");
        read_is("200 missing_scope").await;
        world.guardian("grant revoke --user ana@example.com --server files").ok();
        read_is("200 grant_revoked").await;
        world.grant("ana", "files", "read_file");
        read_is("allowed").await;
        assert_eq!(files.calls().len(), 1);
    }

    /// What an operator does after somebody's tokens leaked.
    async fn tokens_issued_before_a_revocation_are_refused(world: World) {
        let (files, _) = ana_reads_files(&mut world).await;
        let issuer = Issuer::es256("https://id.example.test");
        world.folder.write("jwks.json", &issuer.key_set().to_string());
        world.issuer("id", &issuer.iss, "kind = 'oidc'\njwks_file = 'jwks.json'");
        world.link("ana", &issuer.iss, "ana");
        world.link("ana", &issuer.iss, "ana-too");
        world.start().await;
        let token = |subject: &str| issuer.token(subject, &world.resource("files"));
        let client = world.connected("files", &token("ana")).await;
        assert_eq!(client.call("echo", json!({ "text": "hi" })).await.text(), "hi");

        let revoked = world.guardian("token revoke --issuer id --subject ana").ok();
        assert!(revoked.stdout.contains(&format!("tokens of `ana` of `{}` issued before", issuer.iss)), "{revoked:?}");
        eventually("the token to be refused", async || {
            let answer = client.call("echo", json!({ "text": "hi" })).await;
            (answer.verdict() == "401 credential_revoked").then_some(())
        })
        .await;
        let reached = files.calls().len();
        assert_eq!(client.call("echo", json!({ "text": "hi" })).await.verdict(), "401 credential_revoked");
        assert_eq!(files.calls().len(), reached);
        let other = world.connected("files", &token("ana-too")).await;
        assert_eq!(other.call("echo", json!({ "text": "hi" })).await.text(), "hi");

        // For a user: tokens of all the user's identities, but not API keys.
        world.guardian("token revoke --user ana@example.com").ok();
        eventually("the other token to be refused", async || {
            let answer = other.call("echo", json!({ "text": "hi" })).await;
            (answer.verdict() == "401 credential_revoked").then_some(())
        })
        .await;
        let key = world.connected("files", &world.key("ana")).await;
        assert_eq!(key.call("echo", json!({ "text": "hi" })).await.text(), "hi");
        // The issuer's clock may be ahead by its skew.
        let mut claims = issuer.claims("ahead", &world.resource("files"));
        claims["iat"] = json!(claims["iat"].as_i64().unwrap() + 20);
        world.link("ana", &issuer.iss, "ahead");
        let client = world.connected("files", &issuer.sign(&claims)).await;
        assert_eq!(client.call("echo", json!({ "text": "hi" })).await.text(), "hi");
        world.guardian("token revoke --issuer id --subject ahead").ok();
        eventually("the token dated ahead to be refused", async || {
            let answer = client.call("echo", json!({ "text": "hi" })).await;
            (answer.verdict() == "401 credential_revoked").then_some(())
        })
        .await;
        let early = world.guardian("token revoke --issuer id --subject ana --until 1h");
        assert_eq!(early.code, 2, "{early:?}");
        assert!(early.stderr.contains("is too early: a token issued before") && early.stderr.contains("may live until"), "{early:?}");
        for wrong in ["token revoke", "token revoke --issuer id", "token revoke --subject ana", "token revoke --user ana@example.com --issuer id"] {
            assert_eq!(world.guardian(wrong).code, 2, "{wrong}");
        }
    }
}

/// Runs the command, then calls until a call is refused as expected; returns the time at which the command had ended.
async fn revoke_while_calling(world: &World, command: &str, refused: impl AsyncFn() -> bool) -> Timestamp {
    world.guardian(command).ok();
    let done = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    eventually("a call to be refused", async || refused().await.then_some(())).await;
    Timestamp::from_micros(i64::try_from(done.as_micros()).unwrap())
}

/// Calls that were permitted later than `grants.max_staleness` allows.
async fn late(world: &World, revoked: Timestamp) -> Vec<Value> {
    world.shipped().await;
    let rows = world.audit("--tool echo --decision allow");
    assert!(!rows.is_empty());
    let at = |row: &Value| Timestamp::parse_rfc3339(row["at"].as_str().unwrap()).unwrap();
    rows.into_iter().filter(|row| at(row) > revoked.plus(BOUND)).collect()
}
