//! A whole Guardian in a folder of its own: configuration, policies, store, callers with grants, and the process.

use super::issuer::{AUDIENCE, ISS, Issuer};
use super::load::CONNECTIONS;
use super::place::{end, free_address, on_core, wait_for};
use super::stores::Database;
use super::{Callers, Store};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Guardian {
    pub child: Child,
    pub address: SocketAddr,
    metrics: SocketAddr,
    key: String,
    /// Dropped after the process has ended.
    _database: Option<Database>,
}

impl Guardian {
    /// `program` is the binary; `scratch` holds certificates and key set, and gets the folder `name`.
    pub fn start(program: &Path, scratch: &Path, name: &str, store: Store, server: SocketAddr) -> Self {
        let folder = scratch.join(name);
        let (address, metrics) = (free_address(), free_address());
        std::fs::create_dir(&folder).expect("a scratch folder");
        write_policies(&folder.join("policies"));
        let database = match store {
            Store::Sqlite => None,
            Store::Postgres => Some(block_on(Database::create())),
        };
        let text = configuration(address, metrics, server, database.as_ref());
        std::fs::write(folder.join("guardian.toml"), text).expect("a scratch folder");
        let installation = Installation { program, folder };
        installation.migrate(database.as_ref());
        let key = installation.enrol();
        let child = on_core(0, program)
            .args(["serve", "-c"])
            .arg(installation.config())
            .spawn()
            .expect("guardian starts");
        wait_for(address);
        Self {
            child,
            address,
            metrics,
            key,
            _database: database,
        }
    }

    /// The `authorization` header of each connection.
    pub fn authorizations(&self, callers: Callers, issuer: &Issuer) -> Vec<String> {
        let of = |number| match callers {
            Callers::Tokens => format!("Bearer {}", issuer.token(&subject(number))),
            Callers::Key => format!("Bearer {}", self.key),
        };
        (0..CONNECTIONS).map(of).collect()
    }

    /// Returns when every record is in the store; `look` is called again and again until then.
    pub fn settle(&self, mut look: impl FnMut()) {
        let until = Instant::now() + Duration::from_secs(300);
        while self.unshipped() > 0 {
            assert!(Instant::now() < until, "the records are not shipped");
            std::thread::sleep(Duration::from_millis(50));
            look();
        }
    }

    fn unshipped(&self) -> u64 {
        let mut stream = TcpStream::connect(self.metrics).expect("the metrics are served");
        let request = format!("GET /metrics HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.metrics);
        stream.write_all(request.as_bytes()).expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let line = answer.lines().find_map(|line| line.strip_prefix("guardian_audit_unshipped "));
        line.and_then(|number| number.trim().parse().ok())
            .expect("a number of records")
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// The starter policies, and those of the tool `judged`.
fn write_policies(folder: &Path) {
    let starter = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    std::fs::create_dir(folder).expect("a scratch folder");
    for file in std::fs::read_dir(starter).expect("the starter policies").flatten() {
        if file.path().extension().is_some_and(|extension| extension == "cedar") {
            std::fs::copy(file.path(), folder.join(file.file_name())).expect("a scratch folder");
        }
    }
    std::fs::write(folder.join("90-judged.cedar"), include_str!("judged.cedar")).expect("a scratch folder");
}

/// Only with keys that earlier commits know too: `--against` gives them the same.
fn configuration(address: SocketAddr, metrics: SocketAddr, server: SocketAddr, database: Option<&Database>) -> String {
    let store = database.map_or(String::new(), |database| {
        format!(
            "[store]\nkind = \"postgres\"\nurl = \"{}\"\nadmin_url = \"{}\"\n",
            database.proxy_url(),
            database.admin_url()
        )
    });
    format!(
        r#"
data_dir = "data"
[listen]
address = "{address}"
public_url = "https://localhost:{port}"
[listen.tls]
certificate_file = "../certs/server.pem"
key_file = "../certs/server-key.pem"
[admin]
metrics_address = "{metrics}"
[policies]
dir = "policies"
[limits]
per_principal = {{ rate = 100000000, per = "1s" }}
[log]
level = "warn"
[[issuers]]
alias = "bench"
kind = "oidc"
issuer = "{ISS}"
jwks_file = "../jwks.json"
audiences = ["{AUDIENCE}"]
[[servers]]
name = "bench"
url = "http://{server}/mcp"
allow_private_address = true
{store}"#,
        port = address.port(),
    )
}

struct Installation<'a> {
    program: &'a Path,
    folder: PathBuf,
}

impl Installation<'_> {
    fn config(&self) -> PathBuf {
        self.folder.join("guardian.toml")
    }

    fn migrate(&self, database: Option<&Database>) {
        match database {
            None => drop(self.run(&["db", "migrate"])),
            Some(database) => {
                block_on(database.alone(|| self.run(&["db", "migrate"])));
                self.run(&["db", "bind", &database.proxy, "--environment", "default"]);
            }
        }
    }

    /// A user with a token for each connection, and one more with a key, which is returned.
    fn enrol(&self) -> String {
        for number in 0..CONNECTIONS {
            let (email, subject) = (format!("{}@bench", subject(number)), subject(number));
            self.enrol_user(&email);
            self.run(&["user", "link", &email, "--issuer", "bench", "--subject", &subject]);
        }
        self.enrol_user("key@bench");
        let made = self.run(&["key", "new", "--user", "key@bench", "--json"]);
        let made: serde_json::Value = serde_json::from_str(&made).expect("JSON");
        made["key"].as_str().expect("a key").to_owned()
    }

    fn enrol_user(&self, email: &str) {
        self.run(&["user", "add", email, "--role", "developer"]);
        self.run(&["grant", "add", "--user", email, "--server", "bench", "--scopes", "*"]);
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new(self.program)
            .args(arguments)
            .arg("-c")
            .arg(self.config())
            .stderr(Stdio::inherit())
            .output()
            .expect("guardian runs");
        assert!(output.status.success(), "guardian {arguments:?} failed");
        String::from_utf8(output.stdout).expect("text")
    }
}

fn subject(number: usize) -> String {
    format!("caller-{number}")
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}
