//! What the store holds of users and grants is not always as it should be; those whose rows are right are served.

use crate::ana_reads_files;
use crate::support::http::Address;
use crate::support::issuer::Issuer;
use crate::support::on_both_stores;
use crate::support::wait::eventually;
use crate::support::world::World;
use serde_json::{Value, json};

on_both_stores! {
    /// A mapped view in which somebody's scopes are NULL.
    async fn one_grant_that_cannot_be_read_stops_nobody_else(world: World) {
        let (_files, anas) = ana_reads_files(&mut world).await;
        world.person("bob", &["reader"]).await;
        world.grant("bob", "files", "echo");
        let bobs = world.key("bob");
        let columns = "environment, user_id AS user_ref, server_name, client_id, status,
            CASE WHEN scopes = '[\"broken\"]' THEN NULL ELSE scopes END AS scopes, expires_at, id AS grant_ref, row_version";
        world.sql(&match world.database {
            Some(_) => format!("CREATE OR REPLACE VIEW guardian.grants WITH (security_invoker = true) AS SELECT {columns} FROM {{t}}mcp_authorizations"),
            None => format!("DROP VIEW grants; CREATE VIEW grants AS SELECT {columns} FROM mcp_authorizations"),
        })
        .await;
        world.start().await;
        let of_bob = world.client("files").modern().bearer(&bobs);
        let of_ana = world.client("files").modern().bearer(&anas);
        let echo = json!({ "text": "hi" });
        assert_eq!(of_bob.call("echo", echo.clone()).await.verdict(), "allowed");
        assert_eq!(health(&world).await["degraded"], json!([]));

        world.grant("bob", "files", "broken");
        eventually("the grant to be disabled", async || {
            (of_bob.call("echo", echo.clone()).await.verdict() == "200 no_grant").then_some(())
        })
        .await;
        for run in ["the one that saw it break", "the next"] {
            assert_eq!(of_ana.call("echo", echo.clone()).await.verdict(), "allowed", "{run}");
            assert_eq!(of_bob.call("echo", echo.clone()).await.verdict(), "200 no_grant", "{run}");
            assert_eq!(world.metric("guardian_unreadable_rows{table=\"grants\"}").await, Some(1.0), "{run}");
            assert_eq!(world.metric("guardian_unreadable_rows{table=\"users\"}").await, Some(0.0), "{run}");
            let told = health(&world).await;
            assert_eq!(told["degraded"], json!(["rows of the store cannot be read and are disabled (1 of `grants`): the log and `guardian check` name them"]), "{run}");
            assert_eq!(world.ready().await, Some(200), "{run}");
            let log = world.log();
            let lines: Vec<&str> = log.lines().filter(|line| line.contains("a row of `grants` cannot be read")).collect();
            assert_eq!(lines.len(), if run == "the next" { 2 } else { 1 }, "told once a run: {lines:?}");
            assert!(lines[0].contains("`scopes` is NULL") && lines[0].contains("user_ref ") && lines[0].contains("grant_ref "), "{lines:?}");
            let checked = world.guardian("check");
            assert_eq!(checked.code, 4, "{checked:?}");
            let named = checked.stdout.lines().find(|line| line.contains("a row of `grants` cannot be read")).unwrap();
            assert!(named.starts_with("error    store: ") && named.contains("`scopes` is NULL"), "{named}");
            if run == "the next" {
                break;
            }
            world.kill();
            world.start().await;
        }
        world.grant("bob", "files", "echo");
        eventually("the grant to be back", async || {
            (of_bob.call("echo", echo.clone()).await.verdict() == "allowed").then_some(())
        })
        .await;
        assert_eq!(world.metric("guardian_unreadable_rows{table=\"grants\"}").await, Some(0.0));
        assert_eq!(health(&world).await["status"], "ok");
        assert_eq!(world.guardian("check").code, 0);
    }

    /// `grants.max_members`, reached, then passed, then a whole load, then a restart.
    async fn users_above_the_limit_are_told_and_the_others_served(world: World) {
        let (files, anas) = ana_reads_files(&mut world).await;
        world.person("bob", &["reader"]).await;
        world.grant("bob", "files", "echo");
        let bobs = world.key("bob");
        let issuer = Issuer::es256("https://id.example.test");
        world.folder.write("jwks.json", &issuer.key_set().to_string());
        world.issuer("id", &issuer.iss, "kind = 'oidc'\njwks_file = 'jwks.json'");
        world.set("grants.max_members", "2");
        world.start().await;

        world.person("eve", &["reader"]).await;
        world.grant("eve", "files", "echo");
        world.link("eve", &issuer.iss, "eve");
        let token = |subject: &str| issuer.token(subject, &world.resource("files"));
        let eves = [world.key("eve"), token("eve")].map(|credential| world.client("files").modern().bearer(&credential));
        let stranger = world.client("files").modern().bearer(&token("stranger"));
        let [of_ana, of_bob] = [&anas, &bobs].map(|key| world.client("files").modern().bearer(key));
        let verdict = async |client: &crate::support::client::Client| client.call("echo", json!({ "text": "hi" })).await.verdict();
        for moment in ["right after", "after a whole load", "after a restart"] {
            match moment {
                "right after" => eventually("eve to be known", async || (verdict(&eves[1]).await != "200 not_enrolled").then_some(())).await,
                "after a whole load" => {
                    world.sql("DELETE FROM {t}change_log; UPDATE {t}users SET display_name = 'somebody'").await;
                    eventually("a whole load", async || {
                        verdict(&of_ana).await;
                        world.log().contains("loading all anew").then_some(())
                    })
                    .await;
                }
                _ => {
                    world.kill();
                    world.start().await;
                }
            }
            assert_eq!((verdict(&of_ana).await, verdict(&of_bob).await), ("allowed".into(), "allowed".into()), "{moment}");
            for client in &eves {
                let refused = client.call("echo", json!({ "text": "hi" })).await;
                assert_eq!(refused.verdict(), "200 too_many_members", "{moment}");
                assert_eq!(refused.data()["remedy"], "ask the operator to raise `grants.max_members`");
            }
            assert_eq!(verdict(&stranger).await, "200 not_enrolled", "{moment}");
            let told = health(&world).await;
            assert_eq!(told["status"], "degraded", "{moment}");
            assert_eq!(
                told["degraded"],
                json!(["3 users are enrolled and `grants.max_members` is 2: those above it are refused as `too_many_members` (1 now); raise it and restart"])
            );
            assert_eq!((world.ready().await, world.metric("guardian_members_left_out").await), (Some(200), Some(1.0)), "{moment}");
            let checked = world.guardian("check");
            assert_eq!(checked.code, 4, "{checked:?}");
            assert!(checked.stdout.contains("3 users are enrolled and `grants.max_members` is 2"), "{checked:?}");
        }
        world.revoke("bob", "files");
        eventually("the revocation to bind", async || (verdict(&of_bob).await == "200 grant_revoked").then_some(())).await;

        world.sql("DELETE FROM {t}users WHERE email = 'bob@example.com'").await;
        eventually("eve to come in", async || (verdict(&eves[0]).await == "allowed").then_some(())).await;
        assert_eq!((verdict(&eves[1]).await, verdict(&of_ana).await), ("allowed".into(), "allowed".into()));
        assert_eq!(health(&world).await["status"], "ok");
        assert_eq!(world.guardian("check").code, 0);
        drop(files);
    }

    /// Nobody who is enrolled on their first call is let in past the limit, and nobody is enrolled twice.
    async fn who_is_enrolled_just_in_time_is_left_out_too(world: World) {
        let (_files, _) = ana_reads_files(&mut world).await;
        let issuer = Issuer::es256("https://id.example.test");
        world.folder.write("jwks.json", &issuer.key_set().to_string());
        world.issuer("id", &issuer.iss, "kind = 'oidc'\njwks_file = 'jwks.json'");
        world.set("grants.max_members", "1").set("members.just_in_time", "true");
        world.start().await;
        let eve = world.client("files").modern().bearer(&issuer.token("eve", &world.resource("files")));
        for _ in 0..3 {
            assert_eq!(eve.call("echo", json!({ "text": "hi" })).await.verdict(), "200 too_many_members");
        }
        let users = world.guardian("user list --json").ok().rows();
        assert_eq!(users.len(), 2, "{users:?}");
    }
}

async fn health(world: &World) -> Value {
    let reply = Address::plain(world.metrics_port).get("/health").await.unwrap();
    serde_json::from_str(&reply.text().await.unwrap()).unwrap()
}
