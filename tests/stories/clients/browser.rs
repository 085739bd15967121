//! A real browser: Chromium runs a page that calls through Guardian with `fetch`, once from a listed origin and once from
//! another. `tests/run` installs it.

use crate::ana_reads_files;
use crate::support::issuer::Issuer;
use crate::support::server::{Answering, serve};
use crate::support::stores::Engine;
use crate::support::wait::soon;
use crate::support::world::World;
use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Calls as an MCP client in a page would, and posts what it could read to the server that the page came from.
const PAGE: &str = r#"<!doctype html><title>page</title><script type="module">
const { url, metadata, key } = JSON.parse(CONFIG);
const seen = {};
const attempt = async (name, what) => {
  try { seen[name] = await what(); } catch (error) { seen[name] = error.name; }
};
const headers = { "content-type": "application/json", accept: "application/json, text/event-stream", authorization: `Bearer ${key}` };
const post = (message, more) => fetch(url, { method: "POST", headers: { ...headers, ...more }, body: JSON.stringify({ jsonrpc: "2.0", ...message }) });
const read = async (answer) => {
  const text = await answer.text();
  return JSON.parse(text.startsWith("{") ? text : text.split("\n").find((line) => line.startsWith("data: ")).slice(6));
};
await attempt("session", async () => {
  const params = { protocolVersion: "2025-11-25", capabilities: {}, clientInfo: { name: "page", version: "1" } };
  const answer = await post({ id: 1, method: "initialize", params });
  seen.id = answer.headers.get("mcp-session-id");
  return answer.status;
});
const session = { "mcp-session-id": seen.id ?? "none", "mcp-protocol-version": "2025-11-25" };
await attempt("initialized", async () => (await post({ method: "notifications/initialized" }, session)).status);
await attempt("tools", async () => (await read(await post({ id: 2, method: "tools/list" }, session))).result.tools.map((tool) => tool.name));
await attempt("call", async () => {
  const params = { name: "echo", arguments: { text: "from a page" } };
  return (await read(await post({ id: 3, method: "tools/call", params }, session))).result.content[0].text;
});
await attempt("modern", async () => {
  const _meta = { "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {} };
  const params = { name: "echo", arguments: { text: "of this year" }, _meta };
  const more = { "mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "echo" };
  return (await read(await post({ id: 4, method: "tools/call", params }, more))).result.content[0].text;
});
await attempt("unauthenticated", async () => {
  const answer = await post({ id: 5, method: "ping" }, { authorization: "Bearer wrong" });
  return [answer.status, answer.headers.get("www-authenticate")];
});
await attempt("forbidden", async () => (await post({ id: 6, method: "ping" }, { "x-other": "1" })).status);
await attempt("ended", async () => (await fetch(url, { method: "DELETE", headers: { authorization: headers.authorization, ...session } })).status);
await attempt("metadata", async () => (await (await fetch(metadata, { headers: { "mcp-protocol-version": "2025-11-25" } })).json()).resource);
await fetch("/seen", { method: "POST", body: JSON.stringify(seen) });
</script>"#;

/// A web server for the page, and what the page has seen.
async fn page(told: mpsc::UnboundedSender<Value>) -> (u16, Arc<std::sync::Mutex<String>>) {
    let config = Arc::new(std::sync::Mutex::new(String::new()));
    let shown = config.clone();
    let answer: Answering = Arc::new(move |request| {
        let (told, page) = (told.clone(), PAGE.replace("CONFIG", &shown.lock().unwrap()));
        Box::pin(async move {
            let posted = request.method() == http::Method::POST;
            let body = request
                .into_body()
                .collect()
                .await
                .map(|body| body.to_bytes())
                .unwrap_or_default();
            if posted {
                // The story may have ended.
                let _ = told.send(serde_json::from_slice(&body).unwrap_or_default());
            }
            let body = Full::new(Bytes::from(page)).map_err(|never| match never {});
            Response::builder()
                .header("content-type", "text/html; charset=utf-8")
                .body(body.boxed_unsync())
                .unwrap()
        })
    });
    (serve(0, None, answer).await, config)
}

struct Browser(Child);

impl Browser {
    /// Opens the page. The certificate is a test's own, which is not what this story is about.
    fn open(world: &World, url: &str) -> Browser {
        let profile = world.file(&format!("chromium-{}", url.len()));
        let process = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
            ])
            .args([
                "--disable-background-networking",
                "--disable-sync",
                "--no-proxy-server",
                "--ignore-certificate-errors",
            ])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg("--remote-debugging-port=0")
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Browser(process.unwrap_or_else(|error| panic!("chromium is not there (`apt-get install chromium`): {error}")))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_a_listed_origin_lists_and_calls_and_another_reads_nothing() {
    let mut world = World::new(Engine::Sqlite).await;
    let (files, key) = ana_reads_files(&mut world).await;
    let issuer = Issuer::es256("https://id.example.test");
    world.folder.write("jwks.json", &issuer.key_set().to_string());
    world.issuer("id", &issuer.iss, "kind = 'oidc'\njwks_file = 'jwks.json'");
    let (tell, mut told) = mpsc::unbounded_channel();
    let (listed, config) = page(tell.clone()).await;
    let (other, config_of_other) = page(tell).await;
    world.set("listen.origins", &format!("['http://127.0.0.1:{listed}']"));
    world.start().await;
    let metadata = format!(
        "https://localhost:{}/.well-known/oauth-protected-resource/mcp/files",
        world.port
    );
    let text = json!({ "url": world.resource("files"), "metadata": metadata, "key": key }).to_string();
    for config in [config, config_of_other] {
        *config.lock().unwrap() = json!(text).to_string();
    }

    let browser = Browser::open(&world, &format!("http://127.0.0.1:{listed}/"));
    let seen = soon("the page to have called", told.recv()).await.unwrap();
    drop(browser);
    let challenge = format!("Bearer error=\"invalid_token\", resource_metadata=\"{metadata}\"");
    assert!(seen["id"].as_str().is_some_and(|id| id.len() > 20), "{seen}");
    for (name, expected) in [
        ("session", json!(200)),
        ("initialized", json!(202)),
        ("tools", json!(["echo", "read_file", "slow"])),
        ("call", json!("from a page")),
        ("modern", json!("of this year")),
        ("unauthenticated", json!([401, challenge])),
        ("forbidden", json!("TypeError")),
        ("ended", json!(200)),
        ("metadata", json!(world.resource("files"))),
    ] {
        assert_eq!(seen[name], expected, "{name}: {seen}");
    }

    let calls = files.calls().len();
    let browser = Browser::open(&world, &format!("http://127.0.0.1:{other}/other"));
    let seen = soon("the other page to have tried", told.recv()).await.unwrap();
    drop(browser);
    for name in [
        "session",
        "initialized",
        "tools",
        "call",
        "modern",
        "unauthenticated",
        "forbidden",
        "ended",
    ] {
        assert_eq!(seen[name], "TypeError", "{name}: {seen}");
    }
    assert_eq!(
        (seen.get("id"), &seen["metadata"]),
        (None, &json!(world.resource("files"))),
        "{seen}"
    );
    assert_eq!(files.calls().len(), calls, "nothing of it reached the server");
}
