//! How the official SDKs behave with Guardian. Every client takes the same steps, and a golden file under
//! tests/golden/clients shows what it saw: after a change of a status or body, its diff shows which clients still work.

use crate::support::golden::golden;
use crate::support::sdk_clients::{Kind, RealClient};
use crate::support::stores::Engine;
use crate::support::upstream::{Fault, Upstream};
use crate::support::wait::eventually;
use crate::support::world::World;
use serde_json::{Value, json};
use std::fmt::Write;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typescript_v1_hears_what_its_file_says() {
    hears(Kind::TypescriptV1, "typescript-v1.txt").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typescript_v2_hears_what_its_file_says() {
    hears(Kind::TypescriptV2, "typescript-v2.txt").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_v1_hears_what_its_file_says() {
    hears(Kind::PythonV1, "python-v1.txt").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_v2_hears_what_its_file_says() {
    hears(Kind::PythonV2, "python-v2.txt").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rmcp_hears_what_its_file_says() {
    hears(Kind::Rmcp, "rmcp.txt").await;
}

const RULES: &str = r#"
@id("everybody-calls")
permit (principal in Guardian::Role::"reader", action in Guardian::Action::"call_tool", resource);

@id("nothing-under-etc")
@reason("Files under /etc are off limits.")
@remedy("Ask for a copy under /srv.")
forbid (principal, action in [Guardian::Action::"files/read_file", Guardian::Action::"notes/read_file"], resource)
when { context.input.path like "/etc/*" };
"#;

/// Runs the steps in both eras if the client has both: the one it asks for first and the one it falls back to.
async fn hears(kind: Kind, file: &str) {
    let mut told = format!(
        "What {} hears of Guardian, step by step. `then` is what becomes of the client: another call on the same connection.\n",
        kind.name()
    );
    for mode in kind.modes().iter().filter(|mode| **mode != "2026-07-28") {
        let mut tale = Tale::begin(kind, mode).await;
        tale.tell().await;
        told += &tale.told;
    }
    golden(&format!("clients/{file}"), &told);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_client_finds_an_era_that_the_server_speaks() {
    let mut world = World::new(Engine::Sqlite).await;
    let servers = [
        ("older", Upstream::legacy().await, "a server of 2025-11-25 and older"),
        ("newer", Upstream::modern().await, "a server of 2026-07-28 alone"),
        ("both", Upstream::start().await, "a server of both eras"),
    ];
    world.policies("@id(\"everybody\") permit (principal, action, resource);");
    for (name, server, _) in &servers {
        world.server(name, &server.url, "");
    }
    world.person("ana", &["reader"]).await;
    servers.iter().for_each(|(name, ..)| world.grant("ana", name, "echo"));
    let key = world.key("ana");
    world.start().await;

    let mut told = "Which era a client speaks through Guardian, by the mode it is in and the server behind.\n".to_owned();
    for (kind, mode) in Kind::SDKS
        .iter()
        .flat_map(|kind| kind.modes().iter().map(move |mode| (*kind, mode)))
    {
        let mut client = RealClient::start(kind, &world.file("ca.pem"), &world.folder);
        writeln!(told, "\n{}, mode {mode}", kind.name()).unwrap();
        for (name, _, what) in &servers {
            let mut seen = client.connect(&world.resource(name), &key, mode).await;
            if seen["heard"] == "connected" {
                let answer = client.call("echo", json!({ "text": "hello" })).await;
                seen = if answer["text"] == "hello" {
                    json!({ "heard": "era", "protocol": seen["protocol"] })
                } else {
                    answer
                };
            }
            writeln!(
                told,
                "  {what}\n      {}",
                without_runs(&seen, &world).replace('\n', "\n      ")
            )
            .unwrap();
        }
    }
    golden("clients/eras.txt", &told);
}

/// Two servers behind the combined endpoint, with every client that can call them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_client_calls_all_servers_behind_one_url() {
    let mut world = World::new(Engine::Sqlite).await;
    let (files, notes) = (Upstream::start().await, Upstream::start().await);
    world.server("files", &files.url, "");
    world.server("notes", &notes.url, "");
    world.policies(RULES);
    world.person("ana", &["reader"]).await;
    world.grant("ana", "files", "echo,read_file,slow");
    world.grant("ana", "notes", "echo,add");
    let key = world.key("ana");
    world.start().await;
    let url = format!("https://localhost:{}/mcp", world.port);

    let mut told = "What clients hear of the combined endpoint, with two servers behind it.\n".to_owned();
    for (kind, mode) in Kind::SDKS
        .iter()
        .flat_map(|kind| kind.modes().iter().map(move |mode| (*kind, mode)))
    {
        let mut client = RealClient::start(kind, &world.file("ca.pem"), &world.folder);
        writeln!(told, "\n{}, mode {mode}", kind.name()).unwrap();
        let mut steps = vec![("connects", client.connect(&url, &key, mode).await)];
        steps.push(("lists the tools", client.list().await));
        (0..3).for_each(|_| files.step());
        for (what, tool, arguments) in [
            ("calls a tool", "files__echo", json!({ "text": "hello" })),
            ("calls one of the other server", "notes__add", json!({ "a": 1, "b": 2 })),
            (
                "calls a tool that streams its progress",
                "files__slow",
                json!({ "events": 2 }),
            ),
            (
                "is forbidden by a policy",
                "files__read_file",
                json!({ "path": "/etc/passwd" }),
            ),
            ("calls a tool that there is not", "elsewhere__echo", json!({})),
        ] {
            steps.push((what, client.call(tool, arguments).await));
        }
        files.forget_sessions();
        let seen = client.call("files__echo", json!({ "text": "hello" })).await;
        steps.push(("comes back after a server was restarted", seen));
        for (what, seen) in steps {
            let shown = without_runs(&seen, &world).replace('\n', "\n      ");
            writeln!(told, "  {what}\n      {shown}").unwrap();
        }
    }
    golden("clients/combined.txt", &told);
}

/// One client in one mode, and the text of what it has seen so far.
struct Tale {
    world: World,
    server: Upstream,
    client: RealClient,
    mode: &'static str,
    key: String,
    told: String,
}

impl Tale {
    async fn begin(kind: Kind, mode: &'static str) -> Tale {
        let mut world = World::new(Engine::Sqlite).await;
        let server = Upstream::start().await;
        world.server("files", &server.url, "");
        world.server("notes", &server.url, "denials = 'error'");
        world.set("limits.tools", "{ 'files/add' = { rate = 1, per = '60s' } }");
        world.policies(RULES);
        world.person("ana", &["reader"]).await;
        world.grant("ana", "files", "echo,add,read_file,slow");
        world.grant("ana", "notes", "read_file");
        world.person("ben", &["reader"]).await;
        let key = world.key("ana");
        world.start().await;
        Tale {
            client: RealClient::start(kind, &world.file("ca.pem"), &world.folder),
            world,
            server,
            mode,
            key,
            told: format!("\n== mode: {mode}\n"),
        }
    }

    async fn tell(&mut self) {
        let connected = self.connect("files", &self.key.clone()).await;
        self.say("connects", &connected);
        let listed = self.client.list().await;
        self.say("lists the tools", &listed);
        self.calls("calls a tool", "echo", json!({ "text": "hello" })).await;
        (0..4).for_each(|_| self.server.step());
        self.calls("calls a tool that streams its progress", "slow", json!({ "events": 3 }))
            .await;
        self.calls("has no scope for the tool", "query", json!({ "sql": "select 1" }))
            .await;
        self.calls("is forbidden by a policy", "read_file", json!({ "path": "/etc/passwd" }))
            .await;
        self.calls("misspells an argument", "read_file", json!({ "pth": "/srv/a" }))
            .await;
        self.calls("calls a tool that is not there", "raed_file", json!({ "path": "/srv/a" }))
            .await;
        self.calls("calls once, as often as it may", "add", json!({ "a": 1, "b": 2 }))
            .await;
        self.calls("calls more often than it may", "add", json!({ "a": 1, "b": 2 }))
            .await;
        self.server.fault("read_file", Fault::Status(500));
        self.calls(
            "calls a server that is out of order",
            "read_file",
            json!({ "path": "/srv/a" }),
        )
        .await;
        self.server.fault("slow", Fault::Break);
        self.server.step();
        self.calls("calls a server that breaks off in mid-stream", "slow", json!({}))
            .await;
        self.server.behave();
        self.server.forget_sessions();
        self.calls(
            "comes back after the server was restarted",
            "echo",
            json!({ "text": "hello" }),
        )
        .await;
        self.lose_the_sessions().await;
        self.calls(
            "comes back when Guardian knows its session no more",
            "echo",
            json!({ "text": "hello" }),
        )
        .await;
        self.revoke_the_key().await;
        let seen = self.client.call("echo", json!({ "text": "hello" })).await;
        self.say("calls with a key that was revoked", &seen);

        let key = self.world.key("ana");
        self.connect("notes", &key).await;
        let seen = self.client.call("read_file", json!({ "path": "/etc/passwd" })).await;
        self.say("is forbidden by a policy, where denials are errors", &seen);
        let bens = self.world.key("ben");
        let seen = self.connect("files", &bens).await;
        self.say("connects without a grant", &seen);
        let seen = self.connect("nowhere", &key).await;
        self.say("connects to a server that is not there", &seen);
        for request in self.server.received() {
            let leaks = request.everything().contains("ng_");
            assert!(!leaks, "a key of Guardian reached the server: {}", request.everything());
        }
    }

    async fn connect(&mut self, server: &str, key: &str) -> Value {
        self.client.connect(&self.world.resource(server), key, self.mode).await
    }

    /// Makes one call. If it fails or is refused, notes whether the connection still works; a broken connection is replaced.
    async fn calls(&mut self, what: &str, tool: &str, arguments: Value) {
        let seen = self.client.call(tool, arguments).await;
        self.say(what, &seen);
        if seen["heard"] == "answer" && seen["refusal"].is_null() {
            return;
        }
        let next = self.client.call("echo", json!({ "text": "still here" })).await;
        let alive = next["text"] == "still here";
        let then = if alive {
            "alive".to_owned()
        } else {
            format!("dead: {}", self.shown(&next))
        };
        writeln!(self.told, "      then {}", then.replace('\n', "\n      ")).unwrap();
        if !alive {
            let anew = self.connect("files", &self.key.clone()).await;
            assert_eq!(anew["heard"], "connected", "after {what}: {anew}");
            let settled = self.client.call("echo", json!({ "text": "hello" })).await;
            assert_eq!(settled["text"], "hello", "after {what}: {settled}");
        }
    }

    /// Restarts Guardian without the keys that seal its sessions.
    async fn lose_the_sessions(&mut self) {
        self.world.kill();
        std::fs::remove_file(self.world.file("data/session.keys")).unwrap();
        self.world.start().await;
    }

    /// Revokes the key, and waits until Guardian refuses it.
    async fn revoke_the_key(&mut self) {
        let keys = self.world.guardian("key list --user ana@example.com --json").ok().rows();
        let id = keys[0]["id"].as_str().unwrap_or_else(|| panic!("{keys:?}"));
        self.world.guardian(&format!("key revoke {id}")).ok();
        let bystander = self.world.client("files").modern().bearer(&self.key);
        eventually("the key to be refused", async || {
            let refused = bystander.ask("server/discover", json!({})).await.status == 401;
            refused.then_some(())
        })
        .await;
    }

    fn say(&mut self, what: &str, seen: &Value) {
        let shown = self.shown(seen);
        writeln!(self.told, "\n  {what}\n      {}", shown.replace('\n', "\n      ")).unwrap();
    }

    fn shown(&self, seen: &Value) -> String {
        without_runs(seen, &self.world)
    }
}

/// What the client saw, without what differs from run to run.
pub(super) fn without_runs(seen: &Value, world: &World) -> String {
    let text = shown(seen).replace(&format!("localhost:{}", world.port), "localhost:PORT");
    let names = ["retry_after_ms", "not before", "\"id\""];
    names
        .into_iter()
        .fold(without_ids(&text), |text, name| without_numbers(&text, name))
}

fn shown(seen: &Value) -> String {
    let word = |name: &str| seen[name].as_str().unwrap_or("nothing");
    match word("heard") {
        "connected" if seen.get("protocol").is_none() => "connected".to_owned(),
        "connected" => format!("connected to {}, speaks {}", word("server"), word("protocol")),
        "era" => format!("speaks {}, calls", word("protocol")),
        "tools" => {
            let names = seen["names"].as_array().expect("names");
            let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
            format!("sees {}", names.join(", "))
        }
        "answer" => {
            let kind = if seen["isError"] == true {
                "a result that says it is an error"
            } else {
                "answer"
            };
            let refusal = seen.get("refusal").filter(|refusal| !refusal.is_null());
            let refusal = refusal.map(|refusal| format!("\nwith {refusal}")).unwrap_or_default();
            format!("{}{kind} {:?}{refusal}", progress(seen), word("text"))
        }
        "model" => {
            let told = seen["told"].as_array().expect("texts").iter();
            let told: Vec<String> = told.map(|text| format!("its model is told {text}")).collect();
            format!("{}{}", progress(seen), told.join("\n"))
        }
        "error" => {
            let code = seen.get("code").filter(|code| !code.is_null());
            let code = code.map(|code| format!(" {code}")).unwrap_or_default();
            let with = |name: &str| seen.get(name).filter(|value| !value.is_null());
            let status = with("status").map(|status| format!(" (HTTP {status})")).unwrap_or_default();
            let scope = with("scope").map(|scope| format!("\nscope {scope}")).unwrap_or_default();
            let data = with("data").map(|data| format!("\ndata {data}")).unwrap_or_default();
            format!("error {}{code}{status}: {}{scope}{data}", word("error"), word("message"))
        }
        other => panic!("{other}: {seen}"),
    }
}

fn progress(seen: &Value) -> String {
    let steps = seen["progress"].as_array().into_iter().flatten();
    steps.map(|step| format!("progress {step}, ")).collect()
}

/// Replaces each record id by `RECORD`.
fn without_ids(text: &str) -> String {
    const LENGTH: usize = 36;
    let is_id = |part: &str| {
        let fits = |(at, byte): (usize, u8)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        };
        part.bytes().enumerate().all(fits)
    };
    let mut kept = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        match rest.get(..LENGTH) {
            Some(part) if is_id(part) => {
                kept += "RECORD";
                rest = &rest[LENGTH..];
            }
            _ => {
                kept.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    kept
}

/// Replaces each number under this name by `N`, in any client's notation.
fn without_numbers(text: &str, name: &str) -> String {
    let mut parts = text.split(name);
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let number = part.trim_start_matches(['\\', '"', '\'', ':', ' ']);
        let after = number.trim_start_matches(|c: char| c.is_ascii_digit());
        let between = &part[..part.len() - number.len()];
        let counted = if after.len() < number.len() { "N" } else { "" };
        kept += &format!("{name}{between}{counted}{after}");
    }
    kept
}

#[test]
fn what_differs_from_run_to_run_is_left_out() {
    let id = "0199f4c2-1111-7abc-8def-0123456789ab";
    assert_eq!(without_ids(&format!("é\"{id}\"")), "é\"RECORD\"");
    assert_eq!(without_ids("12345678-1234"), "12345678-1234");
    let waits = |text| without_numbers(text, "retry_after_ms");
    assert_eq!(waits(r#"{"retry_after_ms":5999,"x":1}"#), r#"{"retry_after_ms":N,"x":1}"#);
    assert_eq!(waits("as retry_after_ms says, 5"), "as retry_after_ms says, 5");
    assert_eq!(
        without_numbers(r#"{"id":null,"code":5}"#, "\"id\""),
        r#"{"id":null,"code":5}"#
    );
}
