//! Clients that people really use. `npm ci` in tests/clients installs them; tests/run does.

use crate::support::on_both_stores;
use crate::support::upstream::Upstream;
use crate::support::world::World;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

on_both_stores! {
    async fn a_real_typescript_client_sees_three_verdicts(world: World) {
        let files = Upstream::start().await;
        world.server("files", &files.url, "");
        let key = crate::ana(&mut world).await;
        world.start().await;
        let plan = json!([
            { "tool": "read_file", "arguments": { "path": "/srv/a" } },
            { "tool": "query", "arguments": { "sql": "select 1" } },
            { "tool": "read_file", "arguments": { "path": "/etc/passwd" } },
        ]);

        let (url, ca) = (world.resource("files"), world.file("ca.pem"));
        let seen = tokio::task::spawn_blocking(move || typescript(&url, &key, &ca, &plan)).await.unwrap();

        assert_eq!(seen["tools"], json!(["echo", "read_file", "slow"]));
        let calls = seen["calls"].as_array().unwrap();
        assert_eq!(calls[0]["content"][0]["text"], "contents of /srv/a", "{seen}");
        // The SDK shows the body of a 403 as its message.
        assert_eq!(calls[1]["verdict"], "refused");
        assert!(calls[1]["message"].as_str().unwrap().contains("missing_scope"), "{seen}");
        assert_eq!(calls[2]["data"]["reason"], "forbidden_by_policy", "{seen}");
        assert_eq!(calls[2]["data"]["remedy"], "Ask for a copy under /srv.");
        assert_eq!(files.calls().len(), 1);

        world.shipped().await;
        let rows = world.audit("--user ana@example.com");
        let verdicts: Vec<(&str, &str)> = rows
            .iter()
            .filter(|row| row["method"] == "tools/call")
            .map(|row| (row["tool"].as_str().unwrap(), row["reason"].as_str().unwrap()))
            .collect();
        assert_eq!(verdicts, [("read_file", "permitted"), ("query", "missing_scope"), ("read_file", "forbidden_by_policy")]);
    }
}

/// Runs the official SDK; gives what it saw.
pub fn typescript(url: &str, key: &str, ca: &Path, plan: &Value) -> Value {
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    assert!(
        clients.join("node_modules").is_dir(),
        "`npm ci` in tests/clients first (tests/run does)"
    );
    let output = Command::new("node")
        .current_dir(&clients)
        .env("NODE_EXTRA_CA_CERTS", ca)
        .args(["allowed-refused.mjs", url, key, &plan.to_string()])
        .output()
        .expect("node runs");
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}
