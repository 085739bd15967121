//! Clients that people use, and an authorization server made with the Python SDK: one look at the browser is enough, and a
//! refusal that a new token cannot help does not open it again.

use super::foreign::tells;
use super::sdks::without_runs;
use crate::support::golden::golden;
use crate::support::sdk_authorization::SdkAuthorizationServer;
use crate::support::sdk_clients::{Kind, RealClient};
use crate::support::stores::Engine;
use crate::support::upstream::Upstream;
use crate::support::world::World;
use serde_json::{Value, json};
use std::fmt::Write;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fastmcp_opens_the_browser_once() {
    opens_the_browser_once(Kind::FastMcp, "fastmcp").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mcp_remote_opens_the_browser_once() {
    opens_the_browser_once(Kind::McpRemote, "mcp-remote").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_inspector_opens_the_browser_once() {
    opens_the_browser_once(Kind::Inspector, "inspector").await;
}

async fn opens_the_browser_once(kind: Kind, name: &str) {
    let mut told = format!("How {} signs in, knowing only Guardian's URL.\n", kind.name());
    for tokens in ["jwt"] {
        told += &tale(kind, tokens).await;
    }
    golden(&format!("clients/sign-in-{name}.txt"), &told);
}

async fn tale(kind: Kind, tokens: &str) -> String {
    let mut world = World::new(Engine::Sqlite).await;
    let server = Upstream::start().await;
    world.server("files", &server.url, "");
    world.set("limits.tools", "{ 'files/add' = { rate = 1, per = '60s' } }");
    let issuer = SdkAuthorizationServer::start(&world, tokens, "subject-of-ana", "echo,add,query,read_file,slow");
    let keys = format!("{}/jwks.json", issuer.issuer.trim_end_matches('/'));
    let settings = format!("kind = 'oidc'\njwks_url = '{keys}'\njwks_ca_file = 'ca.pem'\n");
    world.issuer("id", &issuer.issuer, &settings);
    world.person("ana", &["reader"]).await;
    world.link("ana", &issuer.issuer, "subject-of-ana");
    world.grant("ana", "files", "echo,add,read_file");
    world.start().await;
    let mut client = RealClient::start(kind, &world.file("ca.pem"), &world.folder);
    let mut told = format!("\n== access tokens: {tokens}\n");
    let mut say = |what: &str, seen: &Value| {
        let shown = without_runs(seen, &world).replace('\n', "\n      ");
        writeln!(told, "\n  {what}\n      {shown}").unwrap();
    };

    let step = json!({ "do": "connect", "url": world.resource("files"), "mode": "legacy", "sign_in": true });
    say("connects", &client.take(&step).await);
    say("lists the tools", &client.list().await);
    let mut wrong = Vec::new();
    for (what, tool, arguments, part) in [
        ("calls a tool", "echo", json!({ "text": "hello" }), None),
        (
            "is forbidden by a policy",
            "read_file",
            json!({ "path": "/etc/passwd" }),
            Some("Files under /etc are off limits"),
        ),
        ("calls once, as often as it may", "add", json!({ "a": 1, "b": 2 }), None),
        (
            "calls more often than it may",
            "add",
            json!({ "a": 1, "b": 2 }),
            Some("not before"),
        ),
        (
            "has no grant for the tool",
            "query",
            json!({ "sql": "select 1" }),
            Some("query"),
        ),
        ("calls a tool as before", "echo", json!({ "text": "hello" }), None),
    ] {
        let seen = client.call(tool, arguments).await;
        say(what, &seen);
        let right = part.map_or(seen["heard"] == "answer", |part| tells(&seen, part));
        if !right {
            wrong.push(format!("{what}: {seen}"));
        }
    }
    drop(client);
    let asked = issuer.end();
    writeln!(told, "\n  all that the authorization server did").unwrap();
    asked.iter().for_each(|line| writeln!(told, "      {line}").unwrap());
    let visits = std::fs::read_to_string(world.file("visits")).unwrap_or_default();
    if visits.lines().count() != 1 {
        wrong.push(format!("the browser was opened {} times: {visits}", visits.lines().count()));
    }
    assert!(wrong.is_empty(), "{}\n{told}", wrong.join("\n"));
    told
}
