//! What a new user does first: three verdicts with the TypeScript SDK's client, and `guardian quickstart`.

use crate::support::folder::Folder;
use crate::support::on_both_stores;
use crate::support::ports::free_port;
use crate::support::sdk_clients::{Kind, RealClient};
use crate::support::upstream::Upstream;
use crate::support::wait::eventually;
use crate::support::world::World;
use serde_json::json;
use std::fs::File;
use std::process::{Child, Command, Stdio};

on_both_stores! {
    async fn a_real_typescript_client_sees_three_verdicts(world: World) {
        let files = Upstream::start().await;
        world.server("files", &files.url, "");
        let key = crate::ana(&mut world).await;
        world.start().await;
        let mut client = RealClient::start(Kind::TypescriptV1, &world.file("ca.pem"), &world.folder);

        client.connect(&world.resource("files"), &key, "legacy").await;
        assert_eq!(client.list().await["names"], json!(["echo", "read_file", "slow"]));
        let seen = client.call("read_file", json!({ "path": "/srv/a" })).await;
        assert_eq!(seen["text"], "contents of /srv/a", "{seen}");
        let seen = client.call("query", json!({ "sql": "select 1" })).await;
        assert_eq!((&seen["refusal"]["reason"], &seen["refusal"]["scopes"]), (&json!("missing_scope"), &json!(["query"])), "{seen}");
        let seen = client.call("read_file", json!({ "path": "/etc/passwd" })).await;
        assert_eq!(seen["refusal"]["reason"], "forbidden_by_policy", "{seen}");
        assert_eq!(seen["refusal"]["remedy"], "Ask for a copy under /srv.");
        assert_eq!(files.calls().len(), 1);

        world.shipped().await;
        let rows = world.audit("--user ana@example.com");
        let verdicts: Vec<(&str, &str)> = rows
            .iter()
            .filter(|row| row["method"] == "tools/call")
            .map(|row| (row["tool"].as_str().unwrap(), row["reason"].as_str().unwrap()))
            .collect();
        assert_eq!(verdicts, [("read_file", "permitted"), ("query", "missing_scope"), ("read_file", "forbidden_by_policy")]);
    }
}

/// The first command of the README: its printed snippets work, and a real client connects with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quickstart_shows_three_verdicts_and_serves_on() {
    let folder = Folder::new();
    let quickstart = Quickstart::start(&folder).await;
    let said = quickstart.said(&folder);
    for (heard, recorded) in [
        ("allowed", "permitted"),
        ("refused (missing_scope)", "missing_scope  "),
        ("refused (forbidden_by_policy)", "forbidden_by_policy  "),
    ] {
        assert!(
            said.contains(heard) && said.contains(recorded),
            "`{heard}` as heard and as recorded: {said}"
        );
    }

    let key = std::fs::read_to_string(folder.path().join(".guardian/demo.key")).unwrap();
    let url = format!("https://localhost:{}/mcp/demo", quickstart.port);
    let ca = folder.path().join(".guardian/certs/ca.pem");
    let mut client = RealClient::start(Kind::TypescriptV1, &ca, &folder);
    client.connect(&url, key.trim(), "legacy").await;
    let seen = client.call("read_file", json!({ "path": "welcome.txt" })).await;
    assert_eq!(seen["heard"], "answer", "{seen}");
    let seen = client
        .call("write_file", json!({ "path": "welcome.txt", "content": "mine now" }))
        .await;
    assert_eq!(seen["refusal"]["scopes"], json!(["write_file"]), "{seen}");
    let seen = client.call("delete_file", json!({ "path": "welcome.txt" })).await;
    assert_eq!(seen["refusal"]["reason"], "forbidden_by_policy", "{seen}");

    let curls: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("curl --cacert"))
        .collect();
    assert_eq!(curls.len(), 3, "{said}");
    for (curl, heard) in curls.iter().zip(["welcome", "missing_scope", "forbidden_by_policy"]) {
        let answer = Command::new("bash")
            .args(["-c", &format!("{curl} -sS")])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let answer = format!(
            "{}{}",
            String::from_utf8_lossy(&answer.stdout),
            String::from_utf8_lossy(&answer.stderr)
        );
        assert!(answer.to_lowercase().contains(heard), "{curl}: {answer}");
    }

    let told = eventually("all nine calls on record", async || {
        let told = guardian(
            &folder,
            &["-c", ".guardian/guardian.toml", "audit", "query", "--json", "--limit", "100"],
        );
        let calls = told
            .lines()
            .filter(|line| line.contains("tools/call"))
            .count()
            .max(told.matches(r#""tools/call""#).count());
        (calls >= 9).then_some(told)
    })
    .await;
    for (reason, times) in [("permitted", 3), ("missing_scope", 3), ("forbidden_by_policy", 3)] {
        assert!(told.matches(&format!("\"{reason}\"")).count() >= times, "{reason}: {told}");
    }
}

/// The quickstart before one's own server grants its tools by name, so that one that says nothing about itself is usable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quickstart_grants_the_tools_of_ones_own_server_by_name() {
    let files = Upstream::start().await;
    files.offer(json!({ "name": "note", "inputSchema": { "type": "object" } }));
    let once = |folder: &Folder, url: &str| {
        let folder = folder.path().to_owned();
        let url = url.to_owned();
        tokio::task::spawn_blocking(move || {
            let output = Command::new(env!("CARGO_BIN_EXE_guardian"))
                .args([
                    "quickstart",
                    "--once",
                    "--port",
                    "0",
                    "--metrics-port",
                    "0",
                    "--upstream",
                    &url,
                ])
                .current_dir(folder)
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )
        })
    };
    let granted = |folder: &Folder| {
        let listed = guardian(folder, &["-c", ".guardian/guardian.toml", "grant", "list", "--json"]);
        serde_json::from_str::<serde_json::Value>(&listed).unwrap()[0]["scopes"].clone()
    };
    let folder = Folder::new();
    let said = once(&folder, &files.url).await.unwrap();
    let listed = "Tools the demo user may call: echo, add, read_file, write_file, query, slow, note";
    assert!(said.contains(listed), "{said}");
    let names = [
        "add",
        "delete_file",
        "echo",
        "note",
        "prompts",
        "query",
        "read_file",
        "resources",
        "slow",
        "write_file",
    ];
    assert_eq!(granted(&folder), json!(names));

    let folder = Folder::new();
    let said = once(&folder, &format!("http://127.0.0.1:{}/mcp", free_port())).await.unwrap();
    assert!(
        said.contains("--server upstream --tools all --scopes resources,prompts"),
        "{said}"
    );
    assert_eq!(granted(&folder), json!(["prompts", "resources"]));
}

/// The folder of one's own server is written into the policies, which are in force from the first call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quickstart_writes_the_folder_of_ones_own_server_into_the_policies() {
    let files = Upstream::start().await;
    let folder = Folder::new();
    folder.write("project/notes.txt", "hi");
    let once = |root: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_guardian"));
        command
            .args(["quickstart", "--once", "--port", "0", "--metrics-port", "0", "--upstream"])
            .args([&files.url, "--root", root])
            .current_dir(folder.path());
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    for _ in 0..2 {
        let output = once("project").await.unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let root = folder.path().join("project").canonicalize().unwrap();
    let explained = |path: &str| {
        let arguments = json!({ "path": path }).to_string();
        let asked = [
            "policy",
            "explain",
            "--user",
            "demo@example.com",
            "--server",
            "upstream",
            "--tool",
            "read_file",
            "--args",
        ];
        let asked = [&["-c", ".guardian/guardian.toml"], &asked[..], &[&arguments, "--json"]].concat();
        guardian(&folder, &asked)
    };
    let inside = explained(root.join("notes.txt").to_str().unwrap());
    assert!(inside.contains("\"permit\"") || inside.contains("\"allow\""), "{inside}");
    assert!(explained("/srv/mcp/notes.txt").contains("paths.root"));

    for (root, why) in [
        ("nowhere", "there is no such folder"),
        (".", "the policies name another folder already"),
    ] {
        let output = once(root).await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains(why) && said.contains(&format!("--root {root}")),
            "{said}"
        );
    }
}

/// `guardian quickstart` in a folder of its own; stopped when the story ends.
struct Quickstart {
    process: Child,
    port: u16,
}

impl Quickstart {
    async fn start(folder: &Folder) -> Quickstart {
        let (port, metrics) = (free_port(), free_port());
        let out = File::create(folder.path().join("quickstart.txt")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_guardian"));
        command.args([
            "quickstart",
            "--port",
            &port.to_string(),
            "--metrics-port",
            &metrics.to_string(),
        ]);
        let streams = command
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out);
        let mut quickstart = Quickstart {
            process: streams.spawn().unwrap(),
            port,
        };
        eventually("quickstart to have said everything", async || {
            if let Some(status) = quickstart.process.try_wait().unwrap() {
                panic!("ended with {status}: {}", quickstart.said(folder));
            }
            quickstart.said(folder).contains("Serving until").then_some(())
        })
        .await;
        quickstart
    }

    fn said(&self, folder: &Folder) -> String {
        std::fs::read_to_string(folder.path().join("quickstart.txt")).unwrap()
    }
}

impl Drop for Quickstart {
    fn drop(&mut self) {
        // The process may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn guardian(folder: &Folder, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_guardian"))
        .args(arguments)
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
