//! Real clients, the official SDKs' and others that people use, each in a process of its own: a step goes in as one line of
//! JSON, what the client saw of it comes out as one. `bash tests/clients/install` installs them.

use super::folder::Folder;
use super::wait::LONGEST;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use tokio::sync::mpsc;
use tokio::time::timeout;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    TypescriptV1,
    TypescriptV2,
    PythonV1,
    PythonV2,
    Rmcp,
    FastMcp,
    McpRemote,
    Inspector,
    LangChain,
    OpenAiAgents,
    PydanticAi,
    AiSdk,
}

pub struct RealClient {
    process: Child,
    steps: ChildStdin,
    seen: mpsc::UnboundedReceiver<String>,
    complaints: PathBuf,
}

impl Kind {
    /// The official SDKs.
    pub const SDKS: [Kind; 5] = [
        Kind::TypescriptV1,
        Kind::TypescriptV2,
        Kind::PythonV1,
        Kind::PythonV2,
        Kind::Rmcp,
    ];

    /// The name under which its users know it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::TypescriptV1 => "TypeScript SDK 1.32.2",
            Kind::TypescriptV2 => "TypeScript SDK 2.4.0",
            Kind::PythonV1 => "Python SDK 1.30.0",
            Kind::PythonV2 => "Python SDK 2.3.0",
            Kind::Rmcp => "Rust SDK rmcp 3.8.0",
            Kind::FastMcp => "FastMCP 4.2.3",
            Kind::McpRemote => "mcp-remote 0.15.1",
            Kind::Inspector => "MCP Inspector 2.12.0",
            Kind::LangChain => "langchain-mcp-adapters 0.3.2",
            Kind::OpenAiAgents => "OpenAI Agents SDK 0.24.0",
            Kind::PydanticAi => "Pydantic AI 2.68.0",
            Kind::AiSdk => "@ai-sdk/mcp 2.0.99",
        }
    }

    /// The ways in which the client can be told to choose the era.
    pub fn modes(self) -> &'static [&'static str] {
        match self {
            Kind::TypescriptV1 | Kind::PythonV1 => &["legacy"],
            Kind::TypescriptV2 | Kind::PythonV2 | Kind::Rmcp => &["legacy", "auto", "2026-07-28"],
            Kind::FastMcp | Kind::McpRemote => &["legacy", "auto"],
            Kind::Inspector => &["legacy"],
            Kind::LangChain | Kind::OpenAiAgents | Kind::PydanticAi | Kind::AiSdk => &["its own"],
        }
    }

    fn command(self) -> Command {
        let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients");
        let (program, script) = match self {
            Kind::TypescriptV1 => ("node".into(), Some("typescript-v1.mjs")),
            Kind::TypescriptV2 => ("node".into(), Some("typescript-v2.mjs")),
            Kind::McpRemote => ("node".into(), Some("mcp-remote.mjs")),
            Kind::Inspector => (newer_node(), Some("inspector.mjs")),
            Kind::AiSdk => (newer_node(), Some("ai-sdk.mjs")),
            Kind::PythonV1 => (built.join("python-v1/bin/python"), Some("python/v1.py")),
            Kind::LangChain => (built.join("python-v1/bin/python"), Some("python/langchain_agent.py")),
            Kind::PythonV2 => (built.join("python-v2/bin/python"), Some("python/v2.py")),
            Kind::FastMcp => (built.join("python-v2/bin/python"), Some("python/fast_mcp.py")),
            Kind::OpenAiAgents => (built.join("python-v2/bin/python"), Some("python/openai_agent.py")),
            Kind::PydanticAi => (built.join("python-v2/bin/python"), Some("python/pydantic_agent.py")),
            Kind::Rmcp => (built.join("rmcp/debug/rmcp-client"), None),
        };
        let packages = clients.join("node_modules");
        let installed = if script.is_some_and(|script| script.ends_with(".mjs")) {
            &packages
        } else {
            &program
        };
        assert!(
            installed.exists(),
            "{} is not there: `bash tests/clients/install`",
            installed.display()
        );
        let mut command = Command::new(program);
        command.args(script.map(|script| clients.join(script)));
        command
    }
}

/// The Node of tests/conformance, for what needs a newer one than Debian stable has.
pub fn newer_node() -> PathBuf {
    let machine = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "x64",
    };
    let suites = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let node = suites.join(format!("node_modules/node-linux-{machine}/bin/node"));
    assert!(node.is_file(), "`npm ci` in tests/conformance first (tests/run does)");
    node
}

impl RealClient {
    /// Starts a client that trusts `ca`; its standard error, and what it keeps in its home, are kept in `folder`.
    pub fn start(kind: Kind, ca: &Path, folder: &Folder) -> RealClient {
        let complaints = folder.path().join(format!("{kind:?}.stderr"));
        let mut process = kind
            .command()
            .env("HOME", folder.path())
            .env("BROWSER", Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/browser"))
            .env("NODE_EXTRA_CA_CERTS", ca)
            .env("SSL_CERT_FILE", ca)
            .env("NO_PROXY", "localhost")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&complaints).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", kind.name()));
        let out = BufReader::new(process.stdout.take().expect("it is piped"));
        let (tell, seen) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                // The story may end before its client does.
                let _ = tell.send(line);
            }
        });
        RealClient {
            steps: process.stdin.take().expect("it is piped"),
            process,
            seen,
            complaints,
        }
    }

    /// Sends a step and returns what the client saw of it, which may be an error.
    pub async fn take(&mut self, step: &Value) -> Value {
        let written = writeln!(self.steps, "{step}");
        let line = timeout(LONGEST, self.seen.recv()).await.ok().flatten();
        let parsed = line.as_deref().and_then(|line| serde_json::from_str(line).ok());
        parsed.unwrap_or_else(|| {
            let complaints = std::fs::read_to_string(&self.complaints).unwrap_or_default();
            panic!("the client was given {step} ({written:?}) and said {line:?}\n{complaints}")
        })
    }

    pub async fn connect(&mut self, url: &str, key: &str, mode: &str) -> Value {
        self.take(&json!({ "do": "connect", "url": url, "key": key, "mode": mode }))
            .await
    }

    pub async fn list(&mut self) -> Value {
        self.take(&json!({ "do": "list" })).await
    }

    pub async fn call(&mut self, tool: &str, arguments: Value) -> Value {
        let step = json!({ "do": "call", "tool": tool, "arguments": arguments, "progress": true });
        self.take(&step).await
    }
}

impl Drop for RealClient {
    fn drop(&mut self) {
        // With the programs that it has started. All may have ended by themselves.
        let group = format!("-{}", self.process.id());
        let _ = Command::new("kill")
            .args(["-KILL", "--", &group])
            .stderr(Stdio::null())
            .status();
        let _ = self.process.wait();
    }
}
