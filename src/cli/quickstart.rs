//! `guardian quickstart`: starts a proxy from nothing, shows three decisions and their audit records, then keeps serving.
//!
//! Everything it makes is in one folder, and the next run uses it again. The proxy runs from a `guardian.toml` that `serve`
//! could use: there is no setting for the quickstart alone.

use super::audit::as_table;
use super::failure::Failure;
use super::output::{line, note, table};
use super::{catalogue, demo, starter_policies};
use crate::app::{self, Running};
use crate::config::{self, CheckedConfig, Config, ServerConfig, Variables};
use crate::domain::{
    ApiKey, DecisionKind, EnvironmentName, PrincipalKind, RoleName, Scope, Scopes, ServerName, Timestamp, UserId,
};
use crate::identity::{ApiKeyText, Pepper};
use crate::store::{AuditFilter, AuditRow, Author, NewGrant, NewUser, Store};
use crate::telemetry;
use crate::transport::{self, Client, ClientSettings};
use crate::upstream::scopes_of;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Full};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// See three verdicts in seconds: a demo server behind the proxy, a user, a key, the audit trail.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  guardian quickstart\n  guardian quickstart --upstream http://127.0.0.1:3000/mcp")]
pub struct QuickstartCommand {
    /// Put this MCP server (Streamable HTTP) behind the proxy instead of the built-in demo
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// The folder of files that this server may use, written into the starter policies
    #[arg(long, value_name = "DIR", requires = "upstream")]
    root: Option<PathBuf>,
    /// Folder for certificates, database, journal and configuration
    #[arg(long, default_value = ".guardian", value_name = "DIR")]
    dir: PathBuf,
    /// Port to serve on; 0 takes a free one
    #[arg(long, default_value_t = 8443)]
    port: u16,
    /// Port of metrics and health; 0 takes a free one
    #[arg(long, default_value_t = 9090)]
    metrics_port: u16,
    /// Stop after the verdicts instead of serving on
    #[arg(long)]
    once: bool,
}

const USER: &str = "demo@example.com";
const ROLE: &str = "developer";
/// `write_file` is left out, so that its call is refused for a missing scope.
const SCOPES: [&str; 5] = ["list_files", "read_file", "delete_file", "query", "count"];

impl QuickstartCommand {
    pub fn run(&self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        runtime.block_on(self.show())
    }

    async fn show(&self) -> Result<(), Failure> {
        let began = Instant::now();
        transport::install_provider();
        let folder = QuickstartFolder::prepare(self)?;
        let demo = match &self.upstream {
            None => Some(demo::start(&folder.dir.join("scratch")).await.map_err(anyhow::Error::from)?),
            Some(_) => None,
        };
        let config = folder.configure(self, demo.as_ref())?;
        telemetry::start(&config.log, std::io::stderr().is_terminal()).map_err(Failure::usage)?;
        let server = config.servers.first().cloned().context("a server was configured")?;
        let key = folder.admit_demo_user(&config, &server, self.upstream.is_some()).await?;
        let environment = config.environment.clone();
        let running = Running::start(config, false).await?;
        let client = DemoClient {
            folder: &folder,
            address: running.address,
            server: &server.name,
            key: &key,
        };
        line(format_args!(
            "Neural Guardian is serving on {} ({:.1} s after the start).\n",
            client.url(),
            began.elapsed().as_secs_f64()
        ))?;
        match &self.upstream {
            None => client.show_three_verdicts(&running.store, &environment).await?,
            Some(_) => client.show_tools().await?,
        }
        client.print_snippets(&running, self.upstream.is_some())?;
        if self.once {
            running.stop(async || std::future::pending().await).await?;
        } else {
            line(format_args!("\nServing until ctrl-c."))?;
            running.until_stopped().await?;
        }
        if let Some(demo) = demo {
            demo.stop().await;
        }
        Ok(())
    }
}

/// The folder with everything the quickstart makes, and the ports it serves on.
struct QuickstartFolder {
    dir: PathBuf,
    port: u16,
    metrics_port: u16,
}

impl QuickstartFolder {
    /// Makes the folder and the development certificates, and picks the ports.
    fn prepare(arguments: &QuickstartCommand) -> Result<Self> {
        app::make_private_folder(&arguments.dir)?;
        let dir = arguments.dir.canonicalize()?;
        transport::dev_certificates(&dir.join("certs"), &[], app::now())?;
        Ok(Self {
            dir,
            port: free_port(arguments.port, "--port")?,
            metrics_port: free_port(arguments.metrics_port, "--metrics-port")?,
        })
    }

    /// Writes `guardian.toml` and loads it as `serve` would.
    fn configure(&self, arguments: &QuickstartCommand, demo: Option<&demo::Demo>) -> Result<CheckedConfig> {
        let (name, url, credential) = match (demo, &arguments.upstream) {
            (Some(demo), _) => {
                private_file(&self.dir.join("demo.credential"), demo.credential.expose_secret())?;
                ("demo", demo.url(), "credential = { value_file = \"demo.credential\" }\n")
            }
            (None, Some(url)) => ("upstream", url.clone(), ""),
            (None, None) => unreachable!("either there is an upstream or the demo runs"),
        };
        let text = format!(
            "# Made by `guardian quickstart`; made anew by each. A commented one is config/guardian.toml.\n\
             environment = \"quickstart\"\ndata_dir = \"data\"\n\n\
             [listen]\naddress = \"127.0.0.1:{port}\"\npublic_url = \"https://localhost:{port}\"\nhosts = [\"127.0.0.1:{port}\"]\n\n\
             [listen.tls]\ncertificate_file = \"certs/server.pem\"\nkey_file = \"certs/server-key.pem\"\n\n\
             [admin]\nmetrics_address = \"127.0.0.1:{metrics}\"\n\n\
             [policies]\ndir = {policies:?}\n\n\
             [journal]\nallow_volatile = true\n\n\
             [log]\nlevel = \"warn\"\n\n\
             [[servers]]\nname = \"{name}\"\nurl = {url:?}\nallow_private_address = true\n{credential}",
            port = self.port,
            metrics = self.metrics_port,
            policies = self.policies(arguments.root.as_deref())?,
        );
        let file = self.dir.join("guardian.toml");
        private_file(&file, &text)?;
        let loaded = config::load(&file, &Variables::new())
            .map_err(|problems| anyhow::anyhow!(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))?;
        Ok(loaded.config)
    }

    /// The folder `policies` of the current directory, for readers in the repository; else, and for a server with a folder of
    /// its own, a copy of the starter policies.
    fn policies(&self, root: Option<&Path>) -> Result<PathBuf> {
        let near = Path::new("policies");
        if near.is_dir() && root.is_none() {
            return Ok(near.canonicalize()?);
        }
        let dir = self.dir.join("policies");
        if !dir.is_dir() {
            std::fs::create_dir(&dir)?;
            std::fs::create_dir(dir.join("examples"))?;
            for (name, text) in starter_policies::POLICIES.iter().chain(starter_policies::EXAMPLES) {
                std::fs::write(dir.join(name), text)?;
            }
        }
        if let Some(root) = root {
            let refused = |why: &str| format!("`--root {}` cannot be used: {why}", root.display());
            let place = root.canonicalize().with_context(|| refused("there is no such folder"))?;
            let place = place.to_str().with_context(|| refused("its name is no text"))?;
            let file = dir.join(starter_policies::PATHS);
            let text =
                std::fs::read_to_string(&file).with_context(|| refused(&format!("`{}` cannot be read", file.display())))?;
            let text = starter_policies::with_root(&text, place).map_err(|why| anyhow::anyhow!(refused(&why)))?;
            std::fs::write(&file, text)?;
        }
        Ok(dir)
    }

    /// Enrols the demo user if there is none, sets its grant, and returns its API key. The grant names tools: those of the
    /// demo, or every tool that the reader's own server lists.
    async fn admit_demo_user(&self, config: &CheckedConfig, server: &ServerConfig, is_own: bool) -> Result<String> {
        app::make_private_folder(&config.data_dir)?;
        let author = Author::Command {
            actor: app::process_actor(),
            claimed_by: None,
        };
        let store = Store::open(&app::store_open(config)?).await?.authored(author);
        store.migrate(&mut |_| {}).await?;
        let environment = &config.environment;
        let users = store.list_users(environment).await?;
        let user = match users.into_iter().find(|user| user.email.as_deref() == Some(USER)) {
            Some(user) => user.id,
            None => {
                let role = RoleName::parse(ROLE).expect("a literal that is a role");
                let name = Some("Demo user".to_owned());
                let user = NewUser {
                    id: None,
                    kind: PrincipalKind::User,
                    email: Some(USER.to_owned()),
                    display_name: name,
                    roles: vec![role],
                };
                store.add_user(environment, &user).await?
            }
        };
        let scopes: Scopes = if is_own {
            self.own_scopes(config, server, &store).await?
        } else {
            SCOPES.iter().map(|scope| Scope::parse(scope)).collect::<Result<_, _>>()?
        };
        let grant = NewGrant {
            user: user.clone(),
            server: server.name.clone(),
            client: None,
            scopes,
            expires_at: None,
            idle: false,
        };
        store.add_grant(environment, &grant).await?;
        self.demo_key(&store, config, &user, app::now()).await
    }

    /// The scopes of every tool that the server lists now, of resources and of prompts, each by name. If it does not answer,
    /// the reader is told how to grant its tools later.
    async fn own_scopes(&self, config: &CheckedConfig, server: &ServerConfig, store: &Store) -> Result<Scopes> {
        let registry = store.list_servers(&config.environment).await?;
        let tools = match catalogue::fetch(server).await {
            Ok(offered) => offered.tools,
            Err(why) => {
                let (program, config) = (program(), display_path(&self.dir.join("guardian.toml")));
                let _ = note(format_args!(
                    "{why}. When it answers: `{program} grant add -c {config} --user {USER} --server {} --tools all --scopes resources,prompts`",
                    server.name
                ));
                Vec::new()
            }
        };
        let needed = tools
            .iter()
            .flat_map(|tool| scopes_of(&server.name, &tool.name, &config.servers, &registry));
        let named = needed.filter(|scope| scope.as_str() != "*");
        let others = ["resources", "prompts"]
            .into_iter()
            .map(Scope::parse)
            .collect::<Result<Vec<_>, _>>()?;
        Ok(named.chain(others).collect())
    }

    /// The API key of the last run, if the store still accepts it; else a new one.
    async fn demo_key(&self, store: &Store, config: &Config, user: &UserId, now: Timestamp) -> Result<String> {
        let file = self.dir.join("demo.key");
        let pepper = Pepper::load_or_create(app::required_path(&config.keys.pepper_file))?;
        if let Ok(kept) = std::fs::read_to_string(&file)
            && let Ok(id) = ApiKeyText::read(kept.trim()).map(|key| key.id())
            && store
                .list_keys(&config.environment, Some(user))
                .await?
                .iter()
                .any(|key| key.id == id && key.revoked_at.is_none())
        {
            return Ok(kept.trim().to_owned());
        }
        let made = pepper.new_key()?;
        let key = ApiKey {
            id: made.id,
            name: "quickstart".to_owned(),
            hash: made.hash,
            pepper_version: made.pepper_version,
            scopes: Scopes::default(),
            created_at: now,
            expires_at: None,
            revoked_at: None,
        };
        store.add_key(&config.environment, user, &key).await?;
        private_file(&file, made.shown.expose_secret())?;
        Ok(made.shown.expose_secret().to_owned())
    }
}

/// An MCP client with the demo user's API key, which makes the calls that the quickstart shows.
struct DemoClient<'a> {
    folder: &'a QuickstartFolder,
    address: SocketAddr,
    server: &'a ServerName,
    key: &'a str,
}

/// The calls that are shown, in order: the tool, its arguments, and why the call ends as it does.
const CALLS: [(&str, &str, &str); 3] = [
    ("read_file", r#"{"path":"welcome.txt"}"#, "granted, and a policy permits it"),
    (
        "write_file",
        r#"{"path":"welcome.txt","content":"mine now"}"#,
        "the grant does not hold the scope `write_file`",
    ),
    ("delete_file", r#"{"path":"welcome.txt"}"#, "granted, but a policy forbids it"),
];

impl DemoClient<'_> {
    fn url(&self) -> String {
        format!("https://localhost:{}/mcp/{}", self.address.port(), self.server)
    }

    async fn show_three_verdicts(&self, store: &Store, environment: &EnvironmentName) -> Result<(), Failure> {
        let began = app::now();
        let mut rows = Vec::new();
        for (tool, arguments, _) in CALLS {
            let answer = self
                .call(
                    "tools/call",
                    json!({ "name": tool, "arguments": serde_json::from_str::<Value>(arguments).expect("a literal that is JSON") }),
                )
                .await?;
            let (verdict, heard) = verdict(&answer);
            rows.push(vec![format!("{tool} {arguments}"), verdict, heard]);
        }
        line(format_args!(
            "Three calls, made just now over TLS with the demo user's key:\n"
        ))?;
        line(format_args!(
            "{}\n",
            table(&["call", "verdict", "what the client hears"], rows.into_iter())
        ))?;
        line(format_args!(
            "The same three in the audit trail (`{}`):\n",
            self.audit_command()
        ))?;
        line(format_args!("{}", self.audit(store, environment, began).await?))?;
        Ok(())
    }

    async fn show_tools(&self) -> Result<(), Failure> {
        let hello = json!({ "protocolVersion": VERSION, "capabilities": {}, "clientInfo": { "name": "guardian-quickstart", "version": "1" } });
        let (_, session) = self.post(&request("initialize", hello), None).await?;
        let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        self.post(&initialized, session.as_deref()).await?;
        let (answer, _) = self.post(&request("tools/list", json!({})), session.as_deref()).await?;
        let answer = message(&answer)?;
        let tools = answer["result"]["tools"].as_array().cloned().unwrap_or_default();
        let names: Vec<_> = tools.iter().filter_map(|tool| tool["name"].as_str()).collect();
        if names.is_empty() {
            line(format_args!(
                "The server lists no tool that the demo user may call: {}\n",
                verdict(&answer).1
            ))
        } else {
            line(format_args!("Tools the demo user may call: {}\n", names.join(", ")))
        }
    }

    async fn call(&self, method: &str, params: Value) -> Result<Value> {
        message(&self.post(&request(method, params), None).await?.0)
    }

    /// Sends one message through the proxy; returns the body of the answer, and the session if it begins one.
    async fn post(&self, message: &Value, session: Option<&str>) -> Result<(String, Option<String>)> {
        let client = Client::new(&ClientSettings {
            ca_file: Some(self.folder.dir.join("certs/ca.pem")),
            allow_private: true,
            ..ClientSettings::default()
        })?;
        let mut request = http::Request::post(self.url())
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("authorization", format!("Bearer {}", self.key));
        if let Some(session) = session {
            request = request
                .header("mcp-session-id", session)
                .header("mcp-protocol-version", VERSION);
        }
        let answer = client
            .send(request.body(Full::new(Bytes::from(message.to_string())))?)
            .await?;
        let begun = answer.headers().get("mcp-session-id").and_then(|id| id.to_str().ok());
        let begun = begun.map(str::to_owned);
        let body = answer.into_body().collect().await?.to_bytes();
        Ok((String::from_utf8_lossy(&body).into_owned(), begun))
    }

    /// The three records as a table. The journal has them already; the shipper gets five seconds to bring them and their
    /// outcomes to the audit trail. A refused call has no outcome.
    async fn audit(&self, store: &Store, environment: &EnvironmentName, since: Timestamp) -> Result<String> {
        let until = Instant::now() + Duration::from_secs(5);
        let filter = AuditFilter {
            since: Some(since),
            limit: 3,
            ..AuditFilter::new(environment.clone())
        };
        let rows: Vec<AuditRow> = loop {
            let rows = store.audit(&filter).await?;
            let whole = rows.len() == 3
                && rows
                    .iter()
                    .all(|row| row.decision == Some(DecisionKind::Deny) || row.outcome.is_some());
            if whole || Instant::now() > until {
                break rows;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        ensure!(!rows.is_empty(), "no record reached the audit trail within five seconds");
        Ok(as_table(rows.iter().rev()))
    }

    fn audit_command(&self) -> String {
        format!(
            "{} audit query -c {}",
            program(),
            display_path(&self.folder.dir.join("guardian.toml"))
        )
    }

    fn print_snippets(&self, running: &Running, upstream: bool) -> Result<(), Failure> {
        let (url, key, server) = (self.url(), self.key, self.server);
        let ca = display_path(&self.folder.dir.join("certs/ca.pem"));
        let full_ca = self.folder.dir.join("certs/ca.pem").display().to_string();
        line(format_args!("\nClaude Code:\n  export NODE_EXTRA_CA_CERTS={full_ca}"))?;
        line(format_args!(
            "  claude mcp add --transport http {server} {url} --header \"Authorization: Bearer {key}\""
        ))?;
        line(format_args!("\nCursor (.cursor/mcp.json):\n  {}", cursor(server, &url, key)))?;
        line(format_args!("\nVS Code (.vscode/mcp.json):\n  {}", vscode(server, &url, key)))?;
        line(format_args!(
            "  Both need the development CA: start them with NODE_EXTRA_CA_CERTS={full_ca}"
        ))?;
        if !upstream {
            line(format_args!("\ncurl:"))?;
            for (tool, arguments, why) in CALLS {
                line(format_args!("  # {why}\n  {}", curl(&ca, key, &url, tool, arguments)))?;
            }
        }
        line(format_args!("\nAudit:   {}", self.audit_command()))?;
        line(format_args!("Health:  curl http://{}/health", running.metrics_address))?;
        line(format_args!(
            "Config:  {}",
            display_path(&self.folder.dir.join("guardian.toml"))
        ))
    }
}

/// The version in which the tools of one's own server are listed.
const VERSION: &str = "2025-06-18";

fn request(method: &str, params: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params })
}

/// The message of an answer; in an event stream that is the last event.
fn message(text: &str) -> Result<Value> {
    let json = text.lines().rev().find_map(|line| line.strip_prefix("data:")).unwrap_or(text);
    serde_json::from_str(json.trim()).with_context(|| format!("the answer is not JSON: {text}"))
}

/// What a response says: allowed or refused, and the text that the client sees.
fn verdict(answer: &Value) -> (String, String) {
    let (result, error) = (&answer["result"], &answer["error"]);
    let told = match error.is_null() {
        true => (&result["_meta"]["guardian/refusal"], &result["content"][0]["text"]),
        false => (&error["data"], &error["message"]),
    };
    let (refusal, text) = (told.0, told.1.as_str().unwrap_or_default());
    let text = text.lines().next().unwrap_or_default().to_owned();
    let verdict = match refusal["reason"].as_str() {
        Some(reason) => format!("refused ({reason})"),
        None if error.is_null() && result["isError"] != true => "allowed".to_owned(),
        None => "allowed, and failed".to_owned(),
    };
    (verdict, text)
}

fn cursor(server: &ServerName, url: &str, key: &str) -> String {
    json!({ "mcpServers": { server.as_str(): { "url": url, "headers": { "Authorization": format!("Bearer {key}") } } } })
        .to_string()
}

fn vscode(server: &ServerName, url: &str, key: &str) -> String {
    let headers = json!({ "Authorization": format!("Bearer {key}") });
    json!({ "servers": { server.as_str(): { "type": "http", "url": url, "headers": headers } } }).to_string()
}

fn curl(ca: &str, key: &str, url: &str, tool: &str, arguments: &str) -> String {
    let body =
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{tool}","arguments":{arguments}}}}}"#);
    format!("curl --cacert {ca} -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d '{body}' {url}")
}

/// The program name for printed commands, as the reader typed it; under `cargo run`, the path of the binary.
fn program() -> String {
    let own = std::env::current_exe().unwrap_or_default();
    match std::env::var_os("CARGO") {
        Some(_) => display_path(&own),
        None => std::env::args().next().unwrap_or_else(|| "guardian".to_owned()),
    }
}

/// A path relative to the current directory, if it is below that.
fn display_path(path: &Path) -> String {
    let here = std::env::current_dir()
        .and_then(|here| here.canonicalize())
        .unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}

/// The port, or a free one for 0. The socket is closed again: another process could take the port before the proxy does.
fn free_port(wanted: u16, flag: &str) -> Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", wanted))
        .with_context(|| format!("port {wanted} is taken: choose another with `{flag}`, or 0 for a free one"))?;
    Ok(listener.local_addr()?.port())
}

/// Replaces a file by a new one with mode 0600, which no other user could open in between.
fn private_file(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let _ = std::fs::remove_file(path);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write `{}`", path.display()))?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("cannot write `{}`", path.display()))
}
