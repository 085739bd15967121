//! A real Postgres for tests: an empty database on a cluster of its own, or on the one that `GUARDIAN_TEST_POSTGRES` names
//! (URL of a superuser). This file knows no table.
#![allow(dead_code, reason = "each test binary uses its part")]

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// An empty database. Dropping it removes the database, its logins and, if it has one, its own cluster.
pub struct Database {
    pub name: String,
    admin: PgConnectOptions,
    logins: Vec<String>,
    siblings: Vec<String>,
    /// The last field: it must outlive the others, whose `drop` needs it.
    cluster: Option<Cluster>,
}

impl Database {
    pub async fn new() -> Self {
        match std::env::var("GUARDIAN_TEST_POSTGRES") {
            Ok(url) => {
                let admin = PgConnectOptions::from_str(&url).expect("GUARDIAN_TEST_POSTGRES is a Postgres URL");
                Self::made_on(admin, None).await
            }
            Err(_) => Self::on_own_cluster().await,
        }
    }

    /// An empty database on a cluster of its own, which can be stopped and started and which speaks TLS.
    pub async fn on_own_cluster() -> Self {
        let cluster = Cluster::start();
        Self::made_on(cluster.options(), Some(cluster)).await
    }

    /// URL of another empty database on the same cluster.
    pub async fn sibling(&mut self) -> String {
        let name = format!("guardian_{}", Uuid::new_v4().simple());
        self.execute(&format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'"))
            .await;
        self.siblings.push(name.clone());
        self.admin.clone().database(&name).to_url_lossy().to_string()
    }

    async fn made_on(server: PgConnectOptions, cluster: Option<Cluster>) -> Self {
        let name = format!("guardian_{}", Uuid::new_v4().simple());
        let mut connection = server.connect().await.expect("the test cluster answers");
        run(
            &mut connection,
            format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'"),
        )
        .await;
        connection.close().await.expect("a test connection closes");
        Self {
            admin: server.database(&name),
            name,
            logins: Vec::new(),
            siblings: Vec::new(),
            cluster,
        }
    }

    /// URL of a superuser.
    pub fn url(&self) -> String {
        self.admin.to_url_lossy().to_string()
    }

    /// URL of a new login role with a password and the memberships given.
    pub async fn login(&mut self, attributes: &str, groups: &[&str]) -> Login {
        let role = format!("login_{}", Uuid::new_v4().simple());
        let password = Uuid::new_v4().simple().to_string();
        self.execute(&format!("CREATE ROLE {role} LOGIN PASSWORD '{password}' {attributes}"))
            .await;
        for group in groups {
            self.execute(&format!("GRANT {group} TO {role}")).await;
        }
        self.logins.push(role.clone());
        let url = self
            .admin
            .clone()
            .username(&role)
            .password(&password)
            .to_url_lossy()
            .to_string();
        Login { role, url, password }
    }

    /// Runs statements as the superuser.
    pub async fn execute(&self, sql: &str) {
        let mut connection = self.connect().await;
        run(&mut connection, sql.to_owned()).await;
        connection.close().await.expect("a test connection closes");
    }

    pub async fn connect(&self) -> PgConnection {
        self.admin.connect().await.expect("the test database answers")
    }

    /// The database's own cluster; panics if it has none.
    pub fn cluster(&mut self) -> &mut Cluster {
        self.cluster.as_mut().expect("this database has a cluster of its own")
    }
}

pub struct Login {
    pub role: String,
    pub url: String,
    pub password: String,
}

async fn run(connection: &mut PgConnection, sql: String) {
    let done = connection.execute(AssertSqlSafe(sql.clone())).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

impl Drop for Database {
    fn drop(&mut self) {
        if self.cluster.is_some() {
            return;
        }
        let databases: Vec<String> = self.siblings.drain(..).chain([self.name.clone()]).collect();
        let (logins, admin) = (std::mem::take(&mut self.logins), self.admin.clone().database("postgres"));
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime starts").block_on(async move {
                let mut connection = admin.connect().await.expect("the test cluster answers");
                for database in databases {
                    run(&mut connection, format!("DROP DATABASE {database} WITH (FORCE)")).await;
                }
                for login in logins {
                    // a login that made the group roles is their grantor from PostgreSQL 16 on, and stays
                    let _ = connection.execute(AssertSqlSafe(format!("DROP ROLE {login}"))).await;
                }
            });
        });
        let _ = cleaning.join();
    }
}

/// A cluster in a temporary folder, removed when dropped and also when the test process dies.
pub struct Cluster {
    folder: PathBuf,
    port: u16,
    running: Option<Child>,
}

impl Cluster {
    pub fn start() -> Self {
        let mut cluster = Self::empty();
        cluster.init();
        cluster.run();
        cluster
    }

    fn empty() -> Self {
        let folder = std::env::temp_dir().join(format!("guardian-pg-{}", Uuid::new_v4().simple()));
        fs::create_dir(&folder).expect("a temporary folder can be made");
        if let Some((uid, gid)) = postgres_user() {
            chown(&folder, Some(uid), Some(gid)).expect("root gives the folder away");
        }
        Self {
            folder,
            port: 0,
            running: None,
        }
    }

    /// A standby that streams from this cluster, on a port of its own.
    pub fn standby(&self) -> Self {
        let mut standby = Self::empty();
        let made = command("pg_basebackup", &standby.folder)
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres"])
            .args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-D"])
            .arg(standby.data())
            .output()
            .expect("pg_basebackup can be run");
        assert!(
            made.status.success(),
            "pg_basebackup: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        standby.run();
        standby
    }

    /// This cluster is gone; the other one answers at its address from now on.
    pub fn replaced_by(&mut self, mut other: Self) {
        self.stop();
        other.stop();
        std::mem::swap(&mut self.folder, &mut other.folder);
        self.run();
    }

    /// Keeps a copy of the data as it is now.
    pub fn save(&mut self) {
        self.stop();
        let copied = command("sh", &self.folder)
            .args(["-c", "rm -rf saved && cp -a data saved"])
            .status();
        assert!(copied.expect("a shell can be run").success());
        self.run();
    }

    /// Goes back to that copy.
    pub fn go_back(&mut self) {
        self.stop();
        let moved = command("sh", &self.folder)
            .args(["-c", "rm -rf data && mv saved data"])
            .status();
        assert!(moved.expect("a shell can be run").success());
        self.run();
    }

    fn init(&self) {
        let made = command("initdb", &self.folder)
            .args([
                "-A",
                "trust",
                "--no-sync",
                "--no-instructions",
                "--no-locale",
                "-E",
                "UTF8",
                "-U",
                "postgres",
                "-D",
            ])
            .arg(self.data())
            .output()
            .expect("initdb can be run");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
    }

    /// Starts the cluster: the first time on a free port, later on the same one.
    pub fn run(&mut self) {
        for _ in 0..5 {
            if self.port == 0 {
                self.port = free_port();
            }
            let _ = fs::remove_file(self.data().join("postmaster.pid"));
            let mut running = self.spawn();
            if self.is_ready(&mut running) {
                self.running = Some(running);
                return;
            }
            let _ = running.wait();
            self.port = 0;
        }
        panic!(
            "Postgres does not start: {}",
            fs::read_to_string(self.folder.join("log")).unwrap_or_default()
        );
    }

    /// A shell runs the server: when its standard input closes, because of `stop` or the death of this process, the shell
    /// stops the server by its process id.
    fn spawn(&self) -> Child {
        let keep = r#"exec 3<&0; "$0" "$@" 3<&- & server=$!; { cat <&3 >/dev/null; kill -QUIT $server 2>/dev/null; } & wait $server; kill $! 2>/dev/null"#;
        let log = fs::File::create(self.folder.join("log")).expect("a log can be written");
        command("sh", &self.folder)
            .arg("-c")
            .arg(keep)
            .arg(bin("postgres"))
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(&self.folder)
            .args([
                "-p",
                &self.port.to_string(),
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "fsync=off",
            ])
            .args([
                "-c",
                "full_page_writes=off",
                "-c",
                "autovacuum=off",
                "-c",
                "max_connections=80",
                "-c",
                "shared_buffers=32MB",
            ])
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a file handle is cloned"))
            .stderr(log)
            .spawn()
            .expect("a shell can be run")
    }

    /// Waits until `postmaster.pid` says that the server is ready; false if the server exits.
    fn is_ready(&self, running: &mut Child) -> bool {
        let patience = Instant::now() + Duration::from_secs(60);
        while Instant::now() < patience {
            let status = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
            let ready = |line: &str| matches!(line.trim(), "ready" | "standby");
            if status.lines().nth(7).is_some_and(ready) {
                return true;
            }
            if running.try_wait().is_ok_and(|exit| exit.is_some()) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// Restarts with further settings, and with these lines before all others of `pg_hba.conf`.
    pub fn reconfigure(&mut self, settings: &str, hba: &str) {
        self.stop();
        let configuration = self.data().join("postgresql.conf");
        let rules = self.data().join("pg_hba.conf");
        let before = fs::read_to_string(&configuration).expect("the configuration can be read");
        fs::write(&configuration, format!("{before}\n{settings}\n")).expect("the configuration can be written");
        let before = fs::read_to_string(&rules).expect("the rules can be read");
        fs::write(&rules, format!("{hba}\n{before}")).expect("the rules can be written");
        self.run();
    }

    /// Puts a file that only the server may read into its data folder.
    pub fn put(&self, name: &str, text: &str) {
        let file = self.data().join(name);
        fs::write(&file, text).expect("a file can be written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("its mode can be set");
        if let Some((uid, gid)) = postgres_user() {
            chown(&file, Some(uid), Some(gid)).expect("root gives the file away");
        }
    }

    /// Stops the server at once, as a crash would.
    pub fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            drop(running.stdin.take());
            let _ = running.wait();
        }
    }

    /// As the superuser.
    pub fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username("postgres")
            .database("postgres")
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn command(program: &str, folder: &Path) -> Command {
    let path = if program == "sh" {
        PathBuf::from("/bin/sh")
    } else {
        bin(program)
    };
    let mut command = Command::new(path);
    command.current_dir(folder).env("LC_ALL", "C");
    // Postgres refuses to run as root
    if let Some((uid, gid)) = postgres_user() {
        command.uid(uid).gid(gid);
    }
    command
}

/// The path of a program of the newest installed Postgres.
fn bin(program: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<(u32, PathBuf)> = versions
        .filter_map(|version| Some((version.file_name().to_str()?.parse().ok()?, version.path().join("bin"))))
        .collect();
    folders.sort();
    let from_path = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .unwrap_or_default();
    let told = Command::new("pg_config").arg("--bindir").output().ok();
    let told = told.map(|told| PathBuf::from(String::from_utf8_lossy(&told.stdout).trim()));
    let folders = folders
        .into_iter()
        .rev()
        .map(|(_, folder)| folder)
        .chain(told)
        .chain(from_path);
    folders
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("no `{program}` found: install PostgreSQL (apt-get install postgresql)"))
}

/// The user and group to run Postgres as when the tests run as root.
fn postgres_user() -> Option<(u32, u32)> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let root = status
        .lines()
        .any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"));
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let of = |user: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(user))?;
        let mut ids = line.split(':').skip(2).map(|id| id.parse().ok());
        Some((ids.next()??, ids.next()??))
    };
    root.then(|| {
        of("postgres")
            .or_else(|| of("nobody"))
            .expect("there is a user `postgres` or `nobody`")
    })
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
    listener.local_addr().expect("a bound socket has an address").port()
}
