//! The published conformance suites, run against a server directly and against Guardian in front of it. Each check must
//! have the same result both ways. `npm ci` in tests/conformance installs the suites; `tests/run` does that.

use crate::support::ports::free_port;
use crate::support::real_servers::official;
use crate::support::sdk_clients::newer_node as node;
use crate::support::stores::Engine;
use crate::support::world::World;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The results of a suite: `scenario/check` → one status, or a list of them if the check ran several times.
type Checks = BTreeMap<String, Value>;

/// The one check that fails behind Guardian on purpose. The client suite calls with `"verbose": null` where the tool's
/// schema says boolean. Policies cannot see a `null` that the schema does not allow: to them the argument is absent, while
/// a server that ignores its own schema may not treat it as absent. Guardian sends only what it decided about, so it
/// refuses the call.
const RIGHTLY_DIFFERENT: &[&str] = &["2026-07-28/http-custom-headers/sep-2243-client-omit-null"];

/// Checks that are not made with server-everything behind Guardian. The suite calls a tool that this server does not have. The
/// server says so in a stream, and the suite judges the stream; Guardian says so itself, in JSON.
const NOT_MADE: &[&str] = &[
    "server-sse-polling/incoming-sse-event",
    "server-sse-polling/server-sse-priming-event",
    "server-sse-polling/server-sse-retry-field",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_of_the_older_versions_finds_the_server_behind_guardian_unchanged() {
    the_suite_finds_no_difference("0.1", 44).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_of_2025_11_25_finds_the_server_behind_guardian_unchanged() {
    the_suite_finds_no_difference("0.2/2025-11-25", 84).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_of_2026_07_28_finds_the_server_behind_guardian_unchanged() {
    the_suite_finds_no_difference("0.2/2026-07-28", 196).await;
}

/// server-everything has none of the tools that the suites call, and speaks no version after 2025-11-25: most checks fail
/// directly too. What passes must pass behind Guardian.
///
/// With `CONFORMANCE_URL` and `CONFORMANCE_SERVER`, its name in the answer to `initialize`, it is another server that runs
/// already: `--no-capture` shows how many of its checks pass and fail, and which differ.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suites_find_server_everything_behind_guardian_unchanged() {
    let (server, expected) = match std::env::var("CONFORMANCE_URL") {
        Ok(url) => (Fixture::running(url), [None; 3]),
        Err(_) => (Fixture::everything(), [Some(13), Some(47), Some(11)]),
    };
    let mut world = World::new(Engine::Sqlite).await;
    world.server("everything", &server.url, CONVERSES);
    let key = anything_goes(&mut world, &["everything"]).await;
    for (suite, expected) in ["0.1", "0.2/2025-11-25", "0.2/2026-07-28"].into_iter().zip(expected) {
        let (direct, through) = server.judged(&world, &key, "everything", suite).await;
        say(suite, &direct, &through);
        let passes = count(&direct, "SUCCESS");
        assert_eq!(
            passes,
            expected.unwrap_or(passes),
            "{suite} is not the suite it was: {direct:#?}"
        );
        let made = |(check, _): &(String, Value)| through.contains_key(check) || !NOT_MADE.contains(&check.as_str());
        let direct: Checks = direct.into_iter().filter(made).collect();
        same(&direct, &through);
    }
}

async fn the_suite_finds_no_difference(suite: &'static str, passes: usize) {
    let fixture = Fixture::start();
    let mut world = World::new(Engine::Sqlite).await;
    world.server("fixture", &fixture.url, CONVERSES);
    let key = anything_goes(&mut world, &["fixture"]).await;
    let (direct, through) = fixture.judged(&world, &key, "fixture", suite).await;
    assert_eq!(count(&direct, "FAILURE"), 0, "the server itself fails: {direct:#?}");
    assert_eq!(
        count(&direct, "SUCCESS"),
        passes,
        "the suite is not the one it was: {direct:#?}"
    );
    same(&direct, &through);
}

/// The suite judges a client by what the suite's servers receive, so Guardian in between must not show there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite_cannot_tell_a_client_behind_guardian_from_one_that_is_not() {
    let scenarios: Vec<String> = serde_json::from_value(run(Command::new(node()).args(["run.mjs", "scenarios"]))).unwrap();
    let mut world = World::new(Engine::Sqlite).await;
    let mut ways = serde_json::Map::new();
    let mut servers = Vec::new();
    for scenario in &scenarios {
        let (server, relay) = (format!("s{}", servers.len()), free_port());
        let settings = format!("{CONVERSES}\ncatalogue_refresh = '1s'");
        world.server(&server, &format!("http://127.0.0.1:{relay}/mcp"), &settings);
        ways.insert(scenario.clone(), json!({ "url": world.resource(&server), "relay": relay }));
        servers.push(server);
    }
    let servers: Vec<&str> = servers.iter().map(String::as_str).collect();
    let key = anything_goes(&mut world, &servers).await;
    let ways = Value::from(ways).to_string();
    let behind = |what: &str, world: &World| {
        let mut command = Command::new(node());
        command
            .args(["run.mjs", what, &ways])
            .env("CONFORMANCE_BEARER", &key)
            .env("NODE_EXTRA_CA_CERTS", world.file("ca.pem"));
        command
    };
    // Guardian's own requests to a server would show too. It makes them in this first run and does not repeat them.
    let learnt = behind("learn", &world).current_dir(folder()).output().expect("node runs");
    assert!(learnt.status.success(), "{}", String::from_utf8_lossy(&learnt.stderr));
    world.terminate();
    world.ended().await;
    for server in world.config["servers"].as_array_mut().unwrap() {
        server["catalogue_refresh"] = "1h".into();
    }
    world.start().await;

    let direct = judge(Command::new(node()).args(["run.mjs", "client"])).await;
    assert_eq!(count(&direct, "FAILURE"), 0, "the client itself fails: {direct:#?}");
    assert_eq!(count(&direct, "SUCCESS"), 84, "the suite is not the one it was: {direct:#?}");

    let through = judge(&mut behind("client", &world)).await;
    same(&direct, &through);
}

/// The server may make every request of a client that the protocol has.
const CONVERSES: &str = "client_requests = ['sampling', 'elicitation', 'elicitation_url', 'roots']";

/// A suite runs everything at once from one address, so no policy and no limit may interfere. It sends `Origin: http://…`
/// for the server it was given, whatever the URL's scheme, and it tries `evil.example.com`.
async fn anything_goes(world: &mut World, servers: &[&str]) -> String {
    let plenty = "{ rate = 1_000_000, per = '1m' }";
    let origins = format!("['http://localhost:{}']", world.port);
    world
        .policies("@id(\"anything\") permit (principal, action, resource);")
        .set("limits.per_principal", plenty)
        .set("limits.per_tool", plenty)
        .set("limits.per_server", plenty)
        .set("listen.origins", &origins);
    let hosts = ["localhost", "127.0.0.1", "evil.example.com"];
    world.install_certificate(&world.authority.server_named(&hosts));
    world.person("ana", &["reader"]).await;
    for server in servers {
        world.grant("ana", server, "*");
    }
    let key = world.key("ana");
    world.start().await;
    key
}

/// A server for the suites. A process that the story started is stopped when the story ends.
struct Fixture {
    process: Option<Child>,
    url: String,
    /// Its name in the answer to `initialize`.
    name: String,
}

impl Fixture {
    /// The server of tests/conformance.
    fn start() -> Fixture {
        let mut process = Command::new(node())
            .current_dir(folder())
            .arg("server.mjs")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        let url = said["url"].as_str().unwrap().to_owned();
        Fixture {
            process: Some(process),
            url,
            name: "conformance-fixture".into(),
        }
    }

    /// server-everything of tests/servers, as Streamable HTTP.
    fn everything() -> Fixture {
        let port = free_port();
        let mut process = Command::new("node")
            .args([&official("everything"), "streamableHttp"])
            .env("PORT", port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("listening on port")), "the server ended");
        // A pipe that nobody reads would stop the server.
        std::thread::spawn(move || lines.for_each(drop));
        Fixture {
            process: Some(process),
            url: format!("http://127.0.0.1:{port}/mcp"),
            name: "mcp-servers/everything".into(),
        }
    }

    /// A server that the story did not start.
    fn running(url: String) -> Fixture {
        Fixture {
            process: None,
            url,
            name: std::env::var("CONFORMANCE_SERVER").expect("the name of the server"),
        }
    }

    /// The results of a suite: directly, and behind Guardian, which knows the server by this name.
    async fn judged(&self, world: &World, key: &str, named: &str, suite: &str) -> (Checks, Checks) {
        let judged = |url: &str| {
            let mut command = Command::new(node());
            command
                .args(["run.mjs", "server", suite, url])
                .env("CONFORMANCE_SERVER", &self.name);
            command
        };
        let direct = judge(&mut judged(&self.url)).await;
        let mut through = judged(&world.resource(named));
        through
            .env("CONFORMANCE_BEARER", key)
            .env("NODE_EXTRA_CA_CERTS", world.file("ca.pem"));
        (direct, judge(&mut through).await)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // The process may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

async fn judge(command: &mut Command) -> Checks {
    let found = tokio::task::block_in_place(|| run(command));
    serde_json::from_value(found).unwrap()
}

/// Runs a command in tests/conformance; its standard error is shown when the story fails.
fn run(command: &mut Command) -> Value {
    let output = command.current_dir(folder()).output().expect("node runs");
    eprintln!("---- {command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Shows how many checks pass and fail, and which differ.
fn say(suite: &str, direct: &Checks, through: &Checks) {
    let figures = |checks: &Checks| format!("{} / {}", count(checks, "SUCCESS"), count(checks, "FAILURE"));
    eprintln!("{suite}: {} directly, {} through Guardian", figures(direct), figures(through));
    for (check, status) in through.iter().filter(|(check, status)| direct.get(*check) != Some(status)) {
        let before = direct.get(check).map_or("not made".into(), Value::to_string);
        eprintln!("{check}: {before} directly, {status} through Guardian");
    }
}

/// Fails if a check has another status behind Guardian, unless it passes only there.
fn same(direct: &Checks, through: &Checks) {
    let mut differences = Vec::new();
    for (check, status) in direct {
        let now = through.get(check);
        let failure = json!("FAILURE");
        let expected = if RIGHTLY_DIFFERENT.contains(&check.as_str()) {
            &failure
        } else {
            status
        };
        if now != Some(expected) && now != Some(&json!("SUCCESS")) {
            let now = now.map_or("lost".into(), Value::to_string);
            differences.push(format!("{check}: {status} directly, {now} through Guardian"));
        }
    }
    for (check, status) in through {
        if !direct.contains_key(check) && status != "SUCCESS" {
            differences.push(format!("{check}: not checked directly, {status} through Guardian"));
        }
    }
    assert!(
        differences.is_empty(),
        "{} checks differ:\n{}",
        differences.len(),
        differences.join("\n")
    );
}

fn count(checks: &Checks, status: &str) -> usize {
    let times = |found: &Value| match found {
        Value::Array(several) => several.iter().filter(|one| *one == status).count(),
        one => usize::from(one == status),
    };
    checks.values().map(times).sum()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance")
}
