//! A whole installation in a folder: certificates, configuration, policies, a store, and the real `guardian` process.

use super::certificates::{Authority, Pair};
use super::client::Client;
use super::folder::Folder;
use super::http::{Address, Protocol};
use super::ports::free_port;
use super::stores::{Database, Engine, StoredRecord, count_in_file, execute_in_file, records_in_file};
use super::wait::{LONGEST, eventually};
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use toml::Table;

pub struct World {
    pub folder: Folder,
    pub authority: Authority,
    pub port: u16,
    pub metrics_port: u16,
    pub database: Option<Database>,
    /// The content of `guardian.toml`.
    pub config: Table,
    policies: Vec<(String, String)>,
    process: Option<Child>,
    migrated: bool,
}

/// The exit code and output of a command.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Readers may call what only reads, writers everything else, and nobody may read under /etc.
pub const POLICIES: &str = r#"
@id("readers-read")
permit (principal in Guardian::Role::"reader", action in Guardian::Action::"read_only", resource);

@id("writers-write")
permit (principal in Guardian::Role::"writer", action in Guardian::Action::"call_tool", resource);

@id("nothing-under-etc")
@reason("Files under /etc are off limits.")
@remedy("Ask for a copy under /srv.")
forbid (principal, action == Guardian::Action::"files/read_file", resource)
when { context.input.path like "/etc/*" };
"#;

impl World {
    /// Makes a folder, certificates, the policies above and an empty store; starts nothing.
    pub async fn new(engine: Engine) -> World {
        match engine {
            Engine::Sqlite => Self::with(None),
            Engine::Postgres => Self::with(Some(Database::create().await)),
        }
    }

    /// The same with the store given; `None` is an embedded one.
    pub fn with(database: Option<Database>) -> World {
        let (port, metrics_port) = (free_port(), free_port());
        let folder = Folder::new();
        let config = basics(port, metrics_port, database.as_ref());
        let world = World {
            folder,
            authority: Authority::new("Guardian's tests"),
            port,
            metrics_port,
            database,
            config,
            policies: vec![("rules.cedar".into(), POLICIES.into())],
            process: None,
            migrated: false,
        };
        world.install_certificate(&world.authority.server());
        world.folder.write("ca.pem", &world.authority.pem);
        world
    }

    /// Another instance beside this one: a folder and ports of its own, the same store, keys and policies.
    pub fn replica(&self) -> World {
        let (port, metrics_port) = (free_port(), free_port());
        let mut other = World {
            folder: Folder::new(),
            authority: Authority::new("Guardian's tests"),
            port,
            metrics_port,
            database: None,
            config: self.config.clone(),
            policies: self.policies.clone(),
            process: None,
            migrated: true,
        };
        other.install_certificate(&other.authority.server());
        let text = |value: String| format!("'{value}'");
        let of_first = |name: &str| format!("'{}'", self.file(name).display());
        other
            .set("listen.address", &text(format!("127.0.0.1:{port}")))
            .set("listen.public_url", &text(format!("https://localhost:{port}")))
            .set("admin.metrics_address", &text(format!("127.0.0.1:{metrics_port}")))
            .set("keys.pepper_file", &of_first("data/pepper"))
            .set("sessions.key_file", &of_first("data/session.keys"))
            .set("audit.key_file", &of_first("data/audit.keys"));
        if self.database.is_none() {
            other.set("store.file", &of_first("data/guardian.db"));
        }
        other
    }

    /// The resident memory of the process, in bytes.
    pub fn resident(&self) -> u64 {
        let id = self.process.as_ref().expect("a running process").id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("Linux says so");
        line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
    }

    /// The processor time that the process has used.
    pub fn processor_time(&self) -> Duration {
        /// One tick; `sysconf(_SC_CLK_TCK)` is 100 on every Linux.
        const TICK: Duration = Duration::from_millis(10);
        let id = self.process.as_ref().expect("a running process").id();
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
        let after_the_name = stat.rsplit(") ").next().unwrap();
        let ticks = after_the_name
            .split(' ')
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse::<u32>().unwrap());
        TICK * ticks.sum::<u32>()
    }

    /// Sets `a.b.c` of the configuration to a TOML value: `world.set("limits.max_keys", "10")`.
    pub fn set(&mut self, key: &str, value: &str) -> &mut Self {
        let parsed: Table =
            toml::from_str(&format!("value = {value}")).unwrap_or_else(|error| panic!("{key} = {value}: {error}"));
        let mut table = &mut self.config;
        let mut names: Vec<&str> = key.split('.').collect();
        let last = names.pop().expect("a key");
        for name in names {
            let entry = table.entry(name).or_insert_with(|| Table::new().into());
            table = entry.as_table_mut().expect("a table");
        }
        table.insert(last.into(), parsed["value"].clone());
        self
    }

    /// Adds an MCP server; `more` is TOML for the rest of its entry.
    pub fn server(&mut self, name: &str, url: &str, more: &str) -> &mut Self {
        let text = format!("name = '{name}'\nurl = '{url}'\nallow_private_address = true\n{more}");
        self.push("servers", &text)
    }

    /// Adds a stdio server; `text` is TOML for its entry.
    pub fn piped(&mut self, name: &str, text: &str) -> &mut Self {
        self.push("servers", &format!("name = '{name}'\n{text}"))
    }

    pub fn issuer(&mut self, alias: &str, iss: &str, more: &str) -> &mut Self {
        self.push("issuers", &format!("alias = '{alias}'\nissuer = '{iss}'\n{more}"))
    }

    fn push(&mut self, list: &str, text: &str) -> &mut Self {
        let entry: Table = toml::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let list = self.config.entry(list).or_insert_with(|| toml::Value::Array(Vec::new()));
        list.as_array_mut().expect("a list").push(entry.into());
        self
    }

    /// Replaces all policies.
    pub fn policies(&mut self, text: &str) -> &mut Self {
        self.policies = vec![("rules.cedar".into(), text.into())];
        self
    }

    /// Replaces all policies by those that Guardian ships, for servers whose root is this folder.
    pub fn starter_policies(&mut self, root: &str) -> &mut Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let policies = files.filter(|file| file.extension().is_some_and(|extension| extension == "cedar"));
        let named = |file: PathBuf| {
            let text = std::fs::read_to_string(&file).unwrap().replace("/srv/mcp", root);
            (file.file_name().unwrap().to_str().unwrap().to_owned(), text)
        };
        self.policies = policies.map(named).collect();
        assert!(
            self.policies.iter().any(|(_, text)| text.contains(root)),
            "no policy names a folder"
        );
        self
    }

    pub fn install_certificate(&self, pair: &Pair) {
        std::fs::create_dir_all(self.folder.path().join("certs")).unwrap();
        pair.write(&self.folder.path().join("certs"), "server");
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes configuration and policies as they are now.
    pub fn write(&self) {
        self.folder.rewrite("guardian.toml", &toml::to_string(&self.config).unwrap());
        for (name, text) in &self.policies {
            self.folder.rewrite(&format!("policies/{name}"), text);
        }
    }

    // ---- commands

    /// Runs `guardian` with this installation's configuration; the arguments are separated by spaces.
    pub fn guardian(&self, arguments: &str) -> Ended {
        self.guardian_with(&arguments.split_whitespace().collect::<Vec<_>>())
    }

    pub fn guardian_with(&self, arguments: &[&str]) -> Ended {
        self.write();
        let mut command = self.command();
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let process = command.spawn().unwrap();
        let id = process.id();
        let (done, ended) = mpsc::channel();
        std::thread::spawn(move || done.send(process.wait_with_output().unwrap()));
        match ended.recv_timeout(LONGEST) {
            Ok(output) => Ended {
                code: output.status.code().unwrap_or(-1),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            },
            Err(_) => {
                signal("KILL", id);
                panic!("`guardian {}` is still running after {LONGEST:?}", arguments.join(" "));
            }
        }
    }

    /// Makes or updates the store; the second call does nothing.
    pub async fn migrate(&mut self) {
        if std::mem::replace(&mut self.migrated, true) {
            return;
        }
        match &self.database {
            None => drop(self.guardian("db migrate").ok()),
            Some(database) => {
                database.alone(|| self.guardian("db migrate").ok()).await;
                self.guardian(&format!("db bind {} --environment default", database.proxy))
                    .ok();
            }
        }
    }

    /// Adds a user with these roles and the e-mail address `<name>@example.com`.
    pub async fn person(&mut self, name: &str, roles: &[&str]) -> &mut Self {
        self.migrate().await;
        let roles: Vec<String> = roles.iter().map(|role| format!("--role {role}")).collect();
        self.guardian(&format!("user add {name}@example.com {}", roles.join(" ")))
            .ok();
        self
    }

    /// Adds a service account with these roles.
    pub async fn service(&mut self, name: &str, roles: &[&str]) -> &mut Self {
        self.migrate().await;
        let roles: Vec<String> = roles.iter().map(|role| format!("--role {role}")).collect();
        self.guardian(&format!("user add {name}@example.com --service {}", roles.join(" ")))
            .ok();
        self
    }

    /// Grants scopes, separated by commas, on a server.
    pub fn grant(&self, name: &str, server: &str, scopes: &str) {
        self.guardian(&format!(
            "grant add --user {name}@example.com --server {server} --scopes {scopes}"
        ))
        .ok();
    }

    pub fn revoke(&self, name: &str, server: &str) {
        self.guardian(&format!("grant revoke --user {name}@example.com --server {server}"))
            .ok();
    }

    /// Makes a new API key for this user.
    pub fn key(&self, name: &str) -> String {
        self.key_with(name, "")
    }

    pub fn key_with(&self, name: &str, more: &str) -> String {
        let made = self
            .guardian(&format!("key new --user {name}@example.com --name test --json {more}"))
            .ok();
        made.json()["key"]
            .as_str()
            .unwrap_or_else(|| panic!("no key in {made:?}"))
            .to_owned()
    }

    /// Links this user to tokens of this issuer with this subject.
    pub fn link(&self, name: &str, iss: &str, subject: &str) {
        self.guardian(&format!("user link {name}@example.com --issuer {iss} --subject {subject}"))
            .ok();
    }

    /// Rows of the audit trail, oldest first; `filter` as `guardian audit query` takes it.
    pub fn audit(&self, filter: &str) -> Vec<Value> {
        self.guardian(&format!("audit query --ascending --limit 10000 --json {filter}"))
            .ok()
            .rows()
    }

    /// Waits until every record has reached the store.
    pub async fn shipped(&self) {
        eventually("the journal to be shipped", async || {
            let unshipped = self.metric("guardian_audit_unshipped").await?;
            (unshipped == 0.0).then_some(())
        })
        .await;
    }

    /// Runs SQL in the store as its owner; `{t}` stands for the prefix of table names.
    pub async fn sql(&self, text: &str) {
        match &self.database {
            None => execute_in_file(&self.file("data/guardian.db"), &text.replace("{t}", "")).await,
            Some(database) => database.execute(&text.replace("{t}", "guardian.")).await,
        }
    }

    /// Every record of the trail, by incarnation and seq.
    pub async fn records(&self) -> Vec<StoredRecord> {
        match &self.database {
            None => records_in_file(&self.file("data/guardian.db")).await,
            Some(database) => database.records().await,
        }
    }

    /// The number that a query returns in the store; `{t}` stands for the prefix of table names.
    pub async fn count(&self, text: &str) -> i64 {
        match &self.database {
            None => count_in_file(&self.file("data/guardian.db"), &text.replace("{t}", "")).await,
            Some(database) => database.count(&text.replace("{t}", "guardian.")).await,
        }
    }

    // ---- the process

    /// How many open files and threads the process has.
    pub fn files_and_threads(&self) -> (usize, usize) {
        let id = self.process.as_ref().expect("a running process").id();
        let entries = |of: &str| std::fs::read_dir(format!("/proc/{id}/{of}")).unwrap().count();
        (entries("fd"), entries("task"))
    }

    /// Starts `guardian serve` and waits until it is ready.
    pub async fn start(&mut self) -> &mut Self {
        self.start_with(&[]).await
    }

    /// The same with more arguments of `serve`.
    pub async fn start_with(&mut self, arguments: &[&str]) -> &mut Self {
        self.migrate().await;
        self.spawn_with(arguments);
        eventually("`guardian serve` to be ready", async || {
            if let Some(status) = self.exited() {
                panic!("`guardian serve` ended with {status}:\n{}", self.log());
            }
            (self.ready().await == Some(200)).then_some(())
        })
        .await;
        self
    }

    /// Starts `guardian serve` without waiting for anything.
    pub fn spawn(&mut self) {
        self.spawn_with(&[]);
    }

    fn spawn_with(&mut self, arguments: &[&str]) {
        assert!(self.process.is_none(), "one process at a time");
        self.write();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.file("guardian.log"))
            .unwrap();
        let mut command = self.command();
        command
            .arg("serve")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.process = Some(command.spawn().unwrap());
    }

    /// `guardian` with this installation's configuration, which must have been written.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_guardian"));
        let ours = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GUARDIAN"));
        for (name, _) in ours {
            command.env_remove(name);
        }
        command.env("NO_COLOR", "1").env("TZ", "UTC").current_dir(self.folder.path());
        command.arg("-c").arg(self.file("guardian.toml"));
        command
    }

    /// The status of `/readyz`; `None` while nothing listens.
    pub async fn ready(&self) -> Option<u16> {
        Address::plain(self.metrics_port)
            .get("/readyz")
            .await
            .ok()
            .map(|reply| reply.status)
    }

    pub async fn metrics(&self) -> String {
        Address::plain(self.metrics_port)
            .get("/metrics")
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
    }

    /// The value of the first sample whose line starts with `name`.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let metrics = self.metrics().await;
        let line = metrics.lines().find(|line| line.starts_with(name))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// No file of the process may grow beyond so many bytes; `None` lifts the limit.
    pub fn limit_files(&self, bytes: Option<u64>) {
        let id = self.process.as_ref().expect("a running process").id();
        let soft = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
        let done = Command::new("prlimit")
            .args(["--pid", &id.to_string(), &format!("--fsize={soft}:unlimited")])
            .status();
        assert!(done.unwrap().success());
    }

    /// What `/health` says.
    pub async fn health(&self) -> Value {
        let reply = Address::plain(self.metrics_port).get("/health").await.unwrap();
        serde_json::from_str(&reply.text().await.unwrap()).unwrap()
    }

    /// The id of the process.
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("a running process").id()
    }

    /// What `/readyz` says.
    pub async fn readiness(&self) -> String {
        match Address::plain(self.metrics_port).get("/readyz").await {
            Ok(reply) => reply.text().await.unwrap(),
            Err(_) => String::new(),
        }
    }

    /// Ends the process in order, with exit code 0.
    pub async fn stop(&mut self) {
        self.terminate();
        assert_eq!(self.ended().await.code(), Some(0));
    }

    /// Kills the process (SIGKILL), by its id.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("a running process");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    pub fn terminate(&self) {
        signal("TERM", self.process.as_ref().expect("a running process").id());
    }

    /// Waits until the process ends by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let status = eventually("`guardian serve` to end", async || self.exited()).await;
        self.process = None;
        status
    }

    fn exited(&mut self) -> Option<ExitStatus> {
        self.process.as_mut().and_then(|process| process.try_wait().unwrap())
    }

    /// Everything `serve` has written to its standard streams.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.file("guardian.log")).unwrap_or_default()
    }

    // ---- callers

    /// A client without a credential, on HTTP/1.1.
    pub fn client(&self, server: &str) -> Client {
        Client::new(self.address(None, Protocol::Http1), server)
    }

    /// A client with a key, after its handshake.
    pub async fn connected(&self, server: &str, key: &str) -> Client {
        let mut client = self.client(server).bearer(key);
        let answer = client.handshake().await;
        assert!(answer.is_result(), "the handshake of the story: {answer:?}");
        client
    }

    pub fn address(&self, presents: Option<&Pair>, protocol: Protocol) -> Address {
        Address::tls(self.port, &self.authority, presents, protocol)
    }

    /// The audience of tokens for a server.
    pub fn resource(&self, server: &str) -> String {
        format!("https://localhost:{}/mcp/{server}", self.port)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // The process may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let last: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("---- the end of guardian.log");
            last.iter().rev().for_each(|line| eprintln!("{line}"));
        } else {
            assert!(!self.log().contains("panicked at"), "{}", self.log());
        }
    }
}

impl Ended {
    /// Asserts that the command succeeded.
    pub fn ok(self) -> Ended {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Parses the output as one JSON array, or as one object per line.
    pub fn rows(&self) -> Vec<Value> {
        let lines = || {
            self.stdout
                .lines()
                .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{self:?}")))
                .collect()
        };
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| lines())
    }
}

/// Sends a signal to a process of this story.
fn signal(name: &str, id: u32) {
    let status = Command::new("sh")
        .arg("-c")
        .arg(format!("kill -{name} {id}"))
        .status()
        .unwrap();
    assert!(status.success(), "kill -{name} {id}");
}

fn basics(port: u16, metrics_port: u16, database: Option<&Database>) -> Table {
    let store = match database {
        None => "kind = 'sqlite'".to_owned(),
        Some(database) => {
            format!(
                "kind = 'postgres'\nurl = '{}'\nadmin_url = '{}'",
                database.proxy_url(),
                database.admin_url()
            )
        }
    };
    let text = format!(
        "
        data_dir = 'data'
        [listen]
        address = '127.0.0.1:{port}'
        public_url = 'https://localhost:{port}'
        [listen.tls]
        certificate_file = 'certs/server.pem'
        key_file = 'certs/server.key'
        [admin]
        metrics_address = '127.0.0.1:{metrics_port}'
        [journal]
        allow_volatile = true
        [log]
        level = 'info,neural_guardian=debug'
        [store]
        {store}
        "
    );
    toml::from_str(&text).unwrap()
}
