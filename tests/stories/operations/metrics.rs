//! What `/metrics` says while Guardian serves, and what a caller never has to wait or pay for.

use crate::ana_reads_files;
use crate::support::issuer::Issuer;
use crate::support::on_both_stores;
use crate::support::upstream::Fault;
use crate::support::wait::eventually;
use crate::support::world::World;
use serde_json::json;
use std::sync::atomic::Ordering;

on_both_stores! {
    async fn requests_in_flight_are_counted_until_their_answer_ends(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        files.fault("echo", Fault::Hold);
        world.start().await;
        let client = world.connected("files", &key).await;
        let in_flight = async || world.metric("guardian_requests_in_flight ").await;
        assert_eq!(in_flight().await, Some(0.0));

        let held = tokio::spawn(async move { client.call("echo", json!({ "text": "held" })).await });
        files.after_calls(1).await;
        assert_eq!(in_flight().await, Some(1.0));
        files.step();
        assert_eq!(held.await.unwrap().text(), "held");
        eventually("the call to be over", async || (in_flight().await? == 0.0).then_some(())).await;

        // A stream is in flight until its last event.
        let modern = world.client("files").modern().bearer(&key);
        let slow = modern.request("tools/call", json!({ "name": "slow", "arguments": { "events": 1 } }));
        let mut stream = modern.open(&slow).await.unwrap();
        files.step();
        assert!(stream.event().await.unwrap().unwrap().contains("progress"));
        assert_eq!(in_flight().await, Some(1.0));
        files.step();
        while let Ok(Some(_)) = stream.event().await {}
        eventually("the stream to be over", async || (in_flight().await? == 0.0).then_some(())).await;
    }

    async fn the_lag_of_a_revocation_is_observed(world: World) {
        let (_files, key) = ana_reads_files(&mut world).await;
        world.set("grants.confirm_after", "'100ms'");
        world.start().await;
        let client = world.connected("files", &key).await;
        assert_eq!(world.metric("guardian_revocation_lag_seconds_count").await, Some(0.0));

        world.revoke("ana", "files");
        eventually("the revocation to bind", async || {
            (client.call("echo", json!({ "text": "hi" })).await.verdict() == "200 grant_revoked").then_some(())
        })
        .await;

        assert_eq!(world.metric("guardian_revocation_lag_seconds_count").await, Some(1.0));
        let lag = world.metric("guardian_revocation_lag_seconds_sum").await.unwrap();
        assert!((0.0..60.0).contains(&lag), "{lag}");
    }

    async fn the_first_caller_does_not_wait_for_the_keys_of_an_issuer(world: World) {
        let (_files, _) = ana_reads_files(&mut world).await;
        let issuer = Issuer::es256("https://id.example.test");
        let url = issuer.serve(&world.authority).await;
        world.issuer("id", &issuer.iss, &format!("kind = 'oidc'\njwks_url = '{url}'\njwks_ca_file = 'ca.pem'"));
        world.link("ana", &issuer.iss, "ana-at-work");
        world.start().await;

        eventually("the keys to be fetched before anybody calls", async || {
            (issuer.fetches.load(Ordering::SeqCst) == 1).then_some(())
        })
        .await;
        let token = issuer.token("ana-at-work", &world.resource("files"));
        let client = world.connected("files", &token).await;
        assert_eq!(client.call("echo", json!({ "text": "hi" })).await.text(), "hi");
        assert_eq!(issuer.fetches.load(Ordering::SeqCst), 1);
    }
}
