//! Clients that people use, and an authorization server made with the Python SDK: one look at the browser is enough, and a
//! refusal that a new token cannot help does not open it again.

use super::foreign::tells;
use super::sdks::without_runs;
use crate::support::golden::golden;
use crate::support::sdk_authorization::{INTROSPECTION_SECRET, SdkAuthorizationServer};
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fastmcp_opens_it_once_more_for_what_its_token_lacks() {
    opens_it_once_more(Kind::FastMcp).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mcp_remote_opens_it_once_more_for_what_its_token_lacks() {
    opens_it_once_more(Kind::McpRemote).await;
}

/// All the scopes that the authorization server knows.
const SCOPES: &str = "echo,add,query,read_file,slow";

async fn opens_the_browser_once(kind: Kind, name: &str) {
    let mut told = format!("How {} signs in, knowing only Guardian's URL.\n", kind.name());
    for (tokens, mode) in [("jwt", "legacy"), ("opaque", "auto")] {
        told += &tale(kind, tokens, mode).await;
    }
    golden(&format!("clients/sign-in-{name}.txt"), &told);
}

async fn tale(kind: Kind, tokens: &str, mode: &str) -> String {
    let (mut world, server) = (World::new(Engine::Sqlite).await, Upstream::start().await);
    world.set("limits.tools", "{ 'files/add' = { rate = 1, per = '60s' } }");
    let issuer = begin(&mut world, &server, tokens, SCOPES).await;
    world.grant("ana", "files", "echo,add,read_file");
    world.start().await;
    let mut client = RealClient::start(kind, &world.file("ca.pem"), &world.folder);
    let mut told = format!("\n== access tokens: {tokens}; mode: {mode}\n");
    let mut say = |what: &str, seen: &Value| {
        let shown = without_runs(seen, &world).replace('\n', "\n      ");
        writeln!(told, "\n  {what}\n      {shown}").unwrap();
    };

    let step = json!({ "do": "connect", "url": world.resource("files"), "mode": mode, "sign_in": true });
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
            "has a token for the tool, and no grant",
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
    // FastMCP asks for the page itself before it opens the browser.
    writeln!(told, "\n  all that the authorization server did").unwrap();
    asked.iter().for_each(|line| writeln!(told, "      {line}").unwrap());
    if visits(&world) != 1 {
        wrong.push(format!("the browser was opened {} times", visits(&world)));
    }
    assert!(wrong.is_empty(), "{}\n{told}", wrong.join("\n"));
    told
}

/// The user consented to less than the grant has. A new token helps, so the client is challenged and asks for one, once.
async fn opens_it_once_more(kind: Kind) {
    let (mut world, server) = (World::new(Engine::Sqlite).await, Upstream::start().await);
    let issuer = begin(&mut world, &server, "jwt", "echo").await;
    world.grant("ana", "files", "echo,query");
    world.start().await;
    let mut client = RealClient::start(kind, &world.file("ca.pem"), &world.folder);
    let mode = kind.modes().last().expect("a mode");
    let step = json!({ "do": "connect", "url": world.resource("files"), "mode": mode, "sign_in": true });
    let seen = client.take(&step).await;
    assert_eq!(seen["heard"], "connected", "{seen}");
    let seen = client.call("query", json!({ "sql": "select 1" })).await;
    assert_eq!(seen["text"], "0 rows", "{seen}");
    let seen = client.call("echo", json!({ "text": "hello" })).await;
    assert_eq!(seen["text"], "hello", "{seen}");
    drop(client);
    let asked = issuer.end();
    assert_eq!(visits(&world), 2, "{asked:?}");
    assert_eq!(server.calls().len(), 2, "each call reached the server once");
}

/// Adds a server `files` and Ana, who signs in at an authorization server; her first token has only these scopes.
async fn begin(world: &mut World, server: &Upstream, tokens: &str, first: &str) -> SdkAuthorizationServer {
    world.server("files", &server.url, "");
    let issuer = SdkAuthorizationServer::start(world, tokens, "subject-of-ana", SCOPES, first);
    world.issuer("id", &issuer.issuer, &verified_by(&issuer.issuer, tokens));
    world.person("ana", &["reader"]).await;
    world.link("ana", &issuer.issuer, "subject-of-ana");
    issuer
}

/// How often the browser was opened.
fn visits(world: &World) -> usize {
    let noted = std::fs::read_to_string(world.file("visits")).unwrap_or_default();
    noted.lines().count()
}

/// How Guardian verifies access tokens of this kind, as TOML for its issuer.
fn verified_by(issuer: &str, tokens: &str) -> String {
    let at = issuer.trim_end_matches('/');
    let how = if tokens == "jwt" {
        format!("jwks_url = '{at}/jwks.json'\njwks_ca_file = 'ca.pem'")
    } else {
        let client = format!("client_id = 'guardian', client_secret = '{INTROSPECTION_SECRET}'");
        format!("introspection = {{ url = '{at}/introspect', ca_file = 'ca.pem', {client} }}")
    };
    format!("kind = 'oidc'\nscopes_claim = 'scope'\n{how}")
}
