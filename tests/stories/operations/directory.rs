//! What the store holds of users and grants is not always as it should be; those whose rows are right are served.

use crate::ana_reads_files;
use crate::support::http::Address;
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
            (of_bob.call("echo", echo.clone()).await.verdict() == "403 no_grant").then_some(())
        })
        .await;
        for run in ["the one that saw it break", "the next"] {
            assert_eq!(of_ana.call("echo", echo.clone()).await.verdict(), "allowed", "{run}");
            assert_eq!(of_bob.call("echo", echo.clone()).await.verdict(), "403 no_grant", "{run}");
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
}

async fn health(world: &World) -> Value {
    let reply = Address::plain(world.metrics_port).get("/health").await.unwrap();
    serde_json::from_str(&reply.text().await.unwrap()).unwrap()
}
