//! The life of a process: start, reload, drain, stop.

use crate::ana_reads_files;
use crate::support::client::Client;
use crate::support::http::Protocol;
use crate::support::on_both_stores;
use crate::support::ports::free_port;
use crate::support::upstream::{Fault, Upstream};
use crate::support::wait::eventually;
use crate::support::world::World;
use serde_json::json;

on_both_stores! {
    async fn sigterm_drains_and_nothing_is_lost(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        files.fault("echo", Fault::Hold);
        world.start().await;
        let client = world.connected("files", &key).await;
        let held = tokio::spawn(async move { client.call("echo", json!({ "text": "held" })).await });
        files.after_calls(1).await;

        world.terminate();
        eventually("new callers to be turned away", async || {
            match world.client("files").bearer(&key).send_ping().await {
                Ok(answer) => (answer.verdict() == "503 draining").then_some(()),
                Err(_) => Some(()),
            }
        })
        .await;
        files.step();
        assert_eq!(held.await.unwrap().text(), "held");
        assert_eq!(world.ended().await.code(), Some(0));

        world.start().await;
        world.shipped().await;
        let rows = world.audit("--tool echo");
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_eq!(rows[0]["outcome"]["ending"], "done");
    }

    async fn a_server_that_comes_up_later_is_found(world: World) {
        let port = free_port();
        world.server("late", &format!("http://localhost:{port}/mcp"), "");
        world.policies("@id(\"all\") permit (principal, action in Guardian::Action::\"call_tool\", resource);");
        world.person("ana", &["reader"]).await;
        world.grant("ana", "late", "echo");
        let key = world.key("ana");
        world.start().await;
        let client = world.client("late").bearer(&key);
        assert_eq!(client.call("echo", json!({ "text": "early" })).await.verdict(), "200 upstream_unreachable");

        let late = Upstream::on(port).await;
        eventually("the server's tools to be known", async || {
            let verdict = client.call("echo", json!({ "text": "without a session" })).await.verdict();
            (!["200 upstream_unreachable", "200 unknown_tool"].contains(&verdict.as_str())).then_some(())
        })
        .await;
        let answer = world.connected("late", &key).await.call("echo", json!({ "text": "late" })).await;
        assert_eq!(answer.text(), "late");
        assert!(!late.calls().is_empty());
    }

    async fn a_second_sigterm_stops_at_once(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        files.fault("echo", Fault::Hang);
        world.start().await;
        let client = world.connected("files", &key).await;
        let request = client.request("tools/call", json!({ "name": "echo", "arguments": { "text": "a" } }));
        let hanging = tokio::spawn(async move { client.try_post(&request).await.map(|answer| answer.verdict()) });
        files.after_calls(1).await;

        world.terminate();
        eventually("draining to begin", async || (world.ready().await != Some(200)).then_some(())).await;
        world.terminate();
        world.ended().await;
        let answer = hanging.await.unwrap();
        assert!(answer.is_err() || answer.as_ref().is_ok_and(|verdict| verdict != "allowed"), "{answer:?}");

        world.start().await;
        world.shipped().await;
        let rows = world.audit("--tool echo");
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert!(rows[0]["outcome"]["ending"].is_string(), "{rows:?}");
    }

    async fn a_new_certificate_is_served_without_dropping_a_connection(world: World) {
        let (_files, key) = ana_reads_files(&mut world).await;
        world.start().await;
        let address = world.address(None, Protocol::Http1);
        let client = world.connected("files", &key).await;
        let old = address.certificate().await;

        // A certificate and a key that do not match change nothing.
        let (next, stranger) = (world.authority.server(), world.authority.server());
        std::fs::write(world.file("certs/server.key"), &stranger.key).unwrap();
        eventually("the bad pair to be noticed", async || world.log().contains("certificate").then_some(())).await;
        assert_eq!(address.certificate().await, old);

        world.install_certificate(&next);
        eventually("the new certificate", async || (address.certificate().await == next.leaf()).then_some(())).await;
        assert_eq!(client.call("echo", json!({ "text": "still here" })).await.text(), "still here");
        assert!(!client.reconnected(), "the old connection lives on");
    }

    async fn a_changed_policy_is_in_force_at_once_and_a_broken_one_never(world: World) {
        let (_files, key) = ana_reads_files(&mut world).await;
        world.start().await;
        let client = world.connected("files", &key).await;
        let verdict = async || client.call("echo", json!({ "text": "hi" })).await.verdict();
        assert_eq!(verdict().await, "allowed");

        let good = crate::support::world::POLICIES;
        let forbid = "@id(\"closed\") forbid (principal, action == Guardian::Action::\"files/echo\", resource);";
        world.folder.write("policies/rules.cedar", &format!("{good}\n{forbid}"));
        eventually("the new policy", async || (verdict().await == "200 forbidden_by_policy").then_some(())).await;

        world.folder.write("policies/rules.cedar", &good[..good.len() - 40]);
        eventually("the broken policy to be reported", async || {
            (world.metric("guardian_policy_reload_failures_total").await? > 0.0).then_some(())
        })
        .await;
        assert_eq!(verdict().await, "200 forbidden_by_policy");

        world.folder.write("policies/rules.cedar", good);
        eventually("the good policy", async || (verdict().await == "allowed").then_some(())).await;
    }

    async fn health_is_told_to_whoever_asks(world: World) {
        let (_files, _) = ana_reads_files(&mut world).await;
        world.start().await;
        let admin = crate::support::http::Address::plain(world.metrics_port);
        for path in ["/livez", "/readyz", "/health", "/metrics"] {
            assert_eq!(admin.get(path).await.unwrap().status, 200, "{path}");
        }
        assert_eq!(admin.get("/").await.unwrap().status, 404);
        assert_eq!(Client::new(world.address(None, Protocol::Http1), "files").address.get("/metrics").await.unwrap().status, 404);
    }

    async fn one_instance_a_folder(world: World) {
        let (_files, key) = ana_reads_files(&mut world).await;
        world.start().await;
        let (port, metrics) = (crate::support::ports::free_port(), crate::support::ports::free_port());
        world.set("listen.address", &format!("'127.0.0.1:{port}'")).set("admin.metrics_address", &format!("'127.0.0.1:{metrics}'"));

        let second = world.guardian("serve");

        assert_ne!(second.code, 0, "{second:?}");
        assert!(second.stderr.contains("another"), "{second:?}");
        assert_eq!(world.connected("files", &key).await.call("echo", json!({ "text": "hi" })).await.text(), "hi");
    }

    async fn a_server_that_is_down_at_the_start_is_served_when_it_comes(world: World) {
        let port = crate::support::ports::free_port();
        world.server("files", &format!("http://localhost:{port}/mcp"), "catalogue_refresh = '1s'");
        let key = crate::ana(&mut world).await;
        world.start().await;
        let client = world.client("files").modern().bearer(&key);
        let answer = client.call("echo", json!({ "text": "hi" })).await;
        assert!(!answer.is_result() && !answer.reason().is_empty(), "{answer:?}");

        let _files = crate::support::upstream::Upstream::on(port).await;
        eventually("the server to be served", async || {
            client.call("echo", json!({ "text": "hi" })).await.is_result().then_some(())
        })
        .await;
    }
}
