//! Pinned policies: a set that differs from its manifest is not used, even if it is valid.

use crate::support::client::Client;
use crate::support::on_both_stores;
use crate::support::upstream::Upstream;
use crate::support::wait::eventually;
use crate::support::world::{POLICIES, World};
use serde_json::json;

on_both_stores! {
    async fn pinned_policies_are_used_as_they_were_pinned_or_not_at_all(world: World) {
        let files = Upstream::start().await;
        world.server("files", &files.url, "");
        let key = crate::ana(&mut world).await;
        world.start().await;
        let manifest = world.guardian("policy pin").ok();
        assert!(manifest.stdout.contains("pinned 1 files with 1 forbids"), "{manifest:?}");
        let client = world.client("files").modern().bearer(&key);
        let (permits, _) = POLICIES.split_once("@id(\"nothing-under-etc\")").unwrap();
        let pinned = std::fs::read_to_string(world.file("policies/manifest.txt")).unwrap();
        let path = |name: &str| world.file(&format!("policies/{name}"));

        // Each of these sets compiles and, without the manifest, would permit what is forbidden.
        let cut = || world.folder.write("policies/rules.cedar", permits);
        cut();
        refused(&world, 1, "policy `rules.cedar` is not as it was pinned: it had 1 forbid, it has 0 forbids").await;
        world.folder.write("policies/more.cedar", permits);
        std::fs::remove_file(path("rules.cedar")).unwrap();
        refused(&world, 2, "policy `rules.cedar`, which is pinned with 1 forbid, is not there").await;
        assert!(world.log().contains("policy `more.cedar` is not pinned"));
        std::fs::remove_file(path("more.cedar")).unwrap();
        cut();
        std::fs::remove_file(path("manifest.txt")).unwrap();
        refused(&world, 3, "the manifest of the policies is gone").await;
        assert_eq!(shadow(&client).await, "200 forbidden_by_policy");
        assert!(files.calls().is_empty());

        // A start with them is refused too.
        world.terminate();
        world.ended().await;
        world.folder.write("policies/manifest.txt", &pinned);
        world.policies(permits);
        for command in ["serve", "check"] {
            let ended = world.guardian(command);
            assert_ne!(ended.code, 0, "{command}: {ended:?}");
            let said = format!("{}{}", ended.stdout, ended.stderr);
            assert!(said.contains("policy `rules.cedar` is not as it was pinned") && said.contains("`guardian policy pin` approves"), "{said}");
        }

        let approved = world.guardian("policy pin").ok();
        assert!(approved.stderr.contains("fewer forbids than were pinned before: 0 instead of 1"), "{approved:?}");
        world.start().await;
        assert_eq!(shadow(&client).await, "allowed");
    }

    async fn without_a_manifest_a_forbid_that_is_gone_is_told_of(world: World) {
        let (_files, key) = crate::ana_reads_files(&mut world).await;
        world.start().await;
        let client = world.client("files").modern().bearer(&key);
        assert_eq!(shadow(&client).await, "200 forbidden_by_policy");
        let (permits, _) = POLICIES.split_once("@id(\"nothing-under-etc\")").unwrap();
        world.folder.write("policies/rules.cedar", permits);
        eventually("the set to be in force", async || (shadow(&client).await == "allowed").then_some(())).await;
        assert!(world.log().contains("this forbid is there no more") && world.log().contains("nothing-under-etc"));

        world.terminate();
        world.ended().await;
        world.set("policies.require_manifest", "true");
        for command in ["serve", "check"] {
            let ended = world.guardian(command);
            let said = format!("{}{}", ended.stdout, ended.stderr);
            assert!(ended.code != 0 && said.contains("has no manifest, which `policies.require_manifest` demands"), "{command}: {said}");
        }
        world.guardian("policy pin").ok();
        world.start().await;
        assert_eq!(shadow(&client).await, "200 forbidden_by_policy");
    }
}

async fn shadow(client: &Client) -> String {
    client.call("read_file", json!({ "path": "/etc/shadow" })).await.verdict()
}

/// Waits until at least this many sets have been refused, the last for this reason.
async fn refused(world: &World, sets: usize, why: &str) {
    eventually(why, async || {
        let failures = world.metric("guardian_policy_reload_failures_total").await?;
        (failures >= sets as f64 && world.log().contains(why)).then_some(())
    })
    .await;
}
