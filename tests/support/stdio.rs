//! Servers that are processes: `tests/clients/stdio-server.mjs`, which does what its tools' arguments say and writes down
//! what reaches it, and one made with an official package. `bash tests/clients/install` installs what they need.

use super::client::Client;
use super::http::Reply;
use super::wait::eventually;
use super::world::World;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Readers may call whatever only reads, and nobody may echo the text `plot`.
const POLICIES: &str = r#"
@id("readers-read")
permit (principal in Guardian::Role::"reader", action in Guardian::Action::"read_only", resource);

@id("nobody-plots")
forbid (principal, action == Guardian::Action::"notes/echo", resource)
when { context.input has text && context.input.text == "plot" };
"#;

/// A stdio server `notes`, and Ana and Bob, who may call all of its tools.
pub struct Notes {
    pub record: PathBuf,
    pub ana: String,
    pub bob: String,
}

/// A process that serves HTTP+SSE until this is dropped.
pub struct Sse {
    process: Child,
    pub port: u16,
}

fn script(name: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name);
    script.to_str().unwrap().to_owned()
}

impl Notes {
    /// Adds the stdio server; `more` is TOML for the rest of its entry.
    pub async fn program(world: &mut World, more: &str) -> Notes {
        let record = world.file("record");
        let text = format!(
            "command = ['node', '{}']\nenv = {{ RECORD = '{}', TOKEN = 'notes-own-secret' }}\n{more}",
            script("stdio-server.mjs"),
            record.display()
        );
        world.piped("notes", &text);
        Self::people(world, record).await
    }

    pub async fn sse(world: &mut World, arguments: &[&str]) -> (Sse, Notes) {
        let record = world.file("record");
        let sse = Sse::start("stdio-server.mjs", arguments, &record);
        world.server(
            "notes",
            &format!("http://127.0.0.1:{}/sse", sse.port),
            "transport = 'sse'\ncredential = { value = 'Bearer own' }\n",
        );
        let notes = Self::people(world, record).await;
        (sse, notes)
    }

    async fn people(world: &mut World, record: PathBuf) -> Notes {
        world.policies(POLICIES);
        let mut keys = Vec::new();
        for name in ["ana", "bob"] {
            world.person(name, &["reader"]).await;
            world.grant(name, "notes", "*");
            keys.push(world.key(name));
        }
        let [ana, bob] = keys.try_into().unwrap();
        Notes { record, ana, bob }
    }

    /// Ana and Bob, each with a session.
    pub async fn both(&self, world: &World) -> (Client, Client) {
        (
            world.connected("notes", &self.ana).await,
            world.connected("notes", &self.bob).await,
        )
    }

    /// Everything that the server has written down.
    pub fn recorded(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.record).unwrap_or_default();
        // The last line may not be complete yet.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The messages that reached the server.
    pub fn messages(&self) -> Vec<Value> {
        let lines = self.recorded().into_iter();
        lines
            .filter(|line| !line["message"].is_null())
            .map(|line| line["message"].clone())
            .collect()
    }

    pub async fn arrived(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        eventually(what, async || self.messages().into_iter().find(|message| is(message))).await
    }
}

impl Sse {
    pub fn start(name: &str, arguments: &[&str], record: &Path) -> Sse {
        let mut process = Command::new("node")
            .arg(script(name))
            .arg("sse")
            .args(arguments)
            .env("RECORD", record)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().unwrap_or_else(|_| panic!("no port: {line:?}"));
        Sse { process, port }
    }
}

impl Drop for Sse {
    fn drop(&mut self) {
        // The process may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The TOML entry of a server made with the official TypeScript package.
pub fn official() -> String {
    format!("command = ['node', '{}']\n", script("sdk-server.mjs"))
}

/// Whether the process exists and is not a zombie.
pub fn is_alive(id: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

pub async fn gone(id: &str) {
    eventually(&format!("process {id} to be gone"), async || (!is_alive(id)).then_some(())).await;
}

/// Starts a call that is answered when `release` is called with its name; it reports progress first.
pub async fn hold(client: &Client, id: Value, name: &str) -> Reply {
    let held = call(id, "hold", json!({ "name": name }));
    client.alike().open(&held).await.unwrap()
}

/// A call of this tool with this id, which is also its progress token.
pub fn call(id: Value, tool: &str, arguments: Value) -> Value {
    let params = json!({ "name": tool, "arguments": arguments, "_meta": { "progressToken": id } });
    json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params })
}
