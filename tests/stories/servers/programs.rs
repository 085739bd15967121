//! Programs that cannot start, die or hang: the operator hears why, callers hear that they did, and the other servers serve.

use crate::support::stdio::{Notes, call};
use crate::support::stores::Engine;
use crate::support::wait::eventually;
use crate::support::world::World;
use serde_json::json;
use std::time::{Duration, Instant};

/// A program that writes two lines, with a secret and an escape, and exits.
const DIES: &str = r#"command = ['sh', '-c', 'echo "reading the vault" >&2; printf "no entry for $TOKEN \033[31m\n" >&2; exit 7']
env = { TOKEN = 'hunter2-hunter2' }"#;
const PERMIT: &str = "@id(\"all\") permit (principal, action, resource);";
const WHY: &str = "its program exited with code 7: reading the vault | no entry for [secret] \\u{1b}[31m";

#[tokio::test]
async fn a_program_that_dies_says_why_and_keeps_no_other_from_serving() {
    let mut world = World::new(Engine::Sqlite).await;
    let notes = Notes::program(&mut world, "").await;
    world.piped("dead", DIES);
    world.piped("missing", "command = ['no-such-program']");
    world.grant("ana", "dead", "*");
    world.grant("ana", "missing", "*");

    let told = world.guardian("check");
    assert_eq!(told.code, 4, "{told:?}");
    for line in [
        format!("error    server: server `dead`: {WHY}"),
        "error    server: server `missing`: its program cannot be started: its command `no-such-program` is in no folder of PATH"
            .to_owned(),
    ] {
        assert!(told.stdout.contains(&line), "{told:?}");
    }
    let asked = world.guardian("server catalog dead --refresh");
    assert!(asked.code == 1 && asked.stderr.contains(WHY), "{asked:?}");

    world.start().await;
    eventually("the warning, and again", async || {
        let log = world.log();
        (log.matches("its program exited with code 7").count() >= 2).then_some(())
    })
    .await;
    let log = world.log();
    assert!(
        log.contains("its program exited with code 7") && log.contains("no entry for [secret]"),
        "{log}"
    );
    assert!(!log.contains("hunter2"), "{log}");

    // So do the commands, of what the running instance found.
    let listed = eventually("the failure to be written down", async || {
        let listed = world.guardian("server list");
        (listed.stderr.contains(WHY) && listed.stderr.contains("no-such-program")).then_some(listed)
    })
    .await;
    let row = |name: &str| {
        listed
            .stdout
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default()
            .to_owned()
    };
    assert!(
        row("dead").contains("failing") && row("notes").contains("enabled"),
        "{listed:?}"
    );
    let catalog = world.guardian("server catalog dead");
    assert!(catalog.stderr.contains(WHY), "{catalog:?}");

    // Callers hear how it ended, and nothing that it wrote.
    for (server, why) in [
        ("dead", "its program exited with code 7"),
        ("missing", "its program cannot be started"),
    ] {
        let refused = world.client(server).bearer(&notes.ana).handshake().await;
        assert_eq!(refused.verdict(), "200 upstream_unreachable");
        let text = refused.message.to_string();
        assert!(text.contains(why), "{text}");
        for private in ["vault", "secret", "no-such-program", "PATH"] {
            assert!(!text.contains(private), "{private}: {text}");
        }
    }
    let client = world.connected("notes", &notes.ana).await;
    assert_eq!(client.call("echo", json!({ "text": "hi" })).await.text(), "hi");
}

/// A program that refuses to list its tools, and says with which secret it failed.
const REFUSES: &str = r#"command = ['node', '-e', '''
  require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
    const { id, method } = JSON.parse(line);
    const welcome = { protocolVersion: "2025-11-25", capabilities: { tools: {} }, serverInfo: { name: "x", version: "1" } };
    const error = { code: -32000, message: "401 for " + process.env.TOKEN };
    const answer = method === "initialize" ? { result: welcome } : { error };
    if (id !== undefined) console.log(JSON.stringify({ jsonrpc: "2.0", id, ...answer }));
  });
''']
env = { TOKEN = 'hunter2-hunter2' }"#;

#[tokio::test]
async fn what_a_program_answers_to_guardian_is_shown_without_its_secrets() {
    let mut world = World::new(Engine::Sqlite).await;
    world.piped("refuses", REFUSES);
    world.policies(PERMIT);
    world.start().await;
    let listed = eventually("the failure to be written down", async || {
        let listed = world.guardian("server list");
        listed.stderr.contains("the server refuses `tools/list`").then_some(listed)
    })
    .await;
    assert!(listed.stderr.contains("401 for [secret] (-32000)"), "{listed:?}");
    let log = world.log();
    assert!(log.contains("401 for [secret]") && !log.contains("hunter2"), "{log}");
}

#[tokio::test]
async fn a_program_that_hangs_says_what_it_wrote_last() {
    let mut world = World::new(Engine::Sqlite).await;
    world.piped(
        "asleep",
        "command = ['sh', '-c', 'echo waiting for the vault >&2; exec sleep 100']\nfirst_byte_timeout = '1s'",
    );
    world.policies(PERMIT);
    world.migrate().await;
    let told = world.guardian("check");
    let why = "server `asleep`: `initialize` was not answered within 1s: waiting for the vault";
    assert!(told.code == 4 && told.stdout.contains(why), "{told:?}");
}

#[tokio::test]
async fn a_check_takes_as_long_as_its_slowest_server() {
    let mut world = World::new(Engine::Sqlite).await;
    for name in 0..12 {
        world.piped(&format!("p{name}"), "command = ['sh', '-c', 'sleep 2; exit 1']");
    }
    world.migrate().await;
    let begun = Instant::now();
    let told = world.guardian("check");
    assert_eq!(told.stdout.matches("its program exited with code 1").count(), 12, "{told:?}");
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_program_gets_the_variables_of_guardian_that_are_named() {
    let mut world = World::new(Engine::Sqlite).await;
    let notes = Notes::program(&mut world, "env_from = ['NO_COLOR']").await;
    world.start().await;
    let client = world.connected("notes", &notes.ana).await;
    let env = eventually("the tools to be known", async || {
        let answer = client.call("env", json!({})).await;
        (answer.status == 200 && answer.message["result"].is_object()).then(|| answer.text().to_owned())
    })
    .await;
    let env: serde_json::Value = serde_json::from_str(&env).unwrap();
    assert_eq!(env["NO_COLOR"], "1");
}

/// What policies cannot read of a tool is said when the tool is new, some of it one by one, and not again when another
/// server's list changes.
#[tokio::test]
async fn a_warning_of_a_tool_is_logged_when_it_is_new() {
    let mut world = World::new(Engine::Sqlite).await;
    Notes::program(&mut world, "").await;
    // It lists its tools later, which changes the tools in force once more.
    let slow = world.config["servers"][0]["command"].clone();
    let words: Vec<&str> = slow.as_array().unwrap().iter().filter_map(|word| word.as_str()).collect();
    world.piped(
        "slow",
        &format!("command = ['sh', '-c', 'sleep 4; exec {}']", words.join(" ")),
    );
    let env = world.config["servers"][0]["env"].as_table_mut().unwrap();
    env.insert("UNTYPED".to_owned(), "1".into());
    world.start().await;
    eventually("the tools of both to be known", async || {
        let servers = world.guardian("server list --json").ok().rows();
        servers.iter().all(|server| server["tools"].as_u64() > Some(0)).then_some(())
    })
    .await;
    let told = |what: &str| world.log().matches(what).count();
    eventually("the second change", async || {
        (told("policies and tools in force") >= 2).then_some(())
    })
    .await;
    assert_eq!(told("policies cannot read argument"), 5, "{}", world.log());
    assert_eq!(told("further warnings"), 1);
    let log = world.log();
    let late = log
        .lines()
        .filter(|line| line.contains("within two seconds") && line.contains("slow"));
    assert_eq!(late.count(), 1, "the start does not wait, and does not give up: {log}");
    assert_eq!(told("cannot be listed"), 0);
}

/// Nobody knows whose message it would be, so it is not sent, and its record says so.
#[tokio::test]
async fn a_call_without_a_session_is_not_sent_to_a_program() {
    let mut world = World::new(Engine::Sqlite).await;
    let notes = Notes::program(&mut world, "per_session = false").await;
    world.start().await;
    eventually("the tools to be known", async || {
        let servers = world.guardian("server list --json").ok().rows();
        (servers[0]["tools"].as_u64() > Some(0)).then_some(())
    })
    .await;
    let mut client = world.client("notes").bearer(&notes.ana);
    let refused = client.post(&call(json!(1), "echo", json!({ "text": "unsent" }))).await;
    assert_eq!(refused.verdict(), "400 invalid_request");
    assert!(refused.message.to_string().contains("initialize first"), "{refused:?}");
    // A session that is not known here is not sent either.
    client.handshake().await;
    let mut headers = client.base_headers();
    headers.remove("content-type");
    client.send("DELETE", headers, bytes::Bytes::new()).await.unwrap();
    assert_eq!(client.call("echo", json!({ "text": "late" })).await.status, 404);
    let sent = |message: &serde_json::Value| message["method"] == "tools/call";
    assert!(!notes.messages().iter().any(sent), "{:?}", notes.messages());
    world.shipped().await;
    let rows = world.audit("--tool echo");
    let endings: Vec<_> = rows
        .iter()
        .map(|row| (row["outcome"]["ending"].clone(), row["outcome"]["detail"].clone()))
        .collect();
    assert_eq!(
        endings,
        [
            (json!("not_sent"), json!("not sent: the client has no session")),
            (json!("not_sent"), json!("not sent: the session is not known here")),
        ],
        "{rows:?}"
    );
}
