//! MCP servers that people use, behind Guardian with the policies that it ships: what an operator, a developer and an analyst
//! see and may call. `bash tests/servers/install` installs the servers.

use crate::support::client::{Answer, Client};
use crate::support::golden::golden;
use crate::support::real_servers::{Root, SERVERS, add_all};
use crate::support::server::{Body, serve};
use crate::support::stores::Engine;
use crate::support::wait::eventually;
use crate::support::world::World;
use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

const ROLES: [&str; 3] = ["operator", "developer", "analyst"];

/// A call, and a word of the answer of a server that did what it was asked.
struct Call(&'static str, Value, &'static str);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_starter_policies_fit_servers_that_people_use() {
    let page = page().await;
    let mut world = World::new(Engine::Sqlite).await;
    let root = Root::new(&world);
    world.starter_policies(&root.path);
    add_all(&mut world, &root);
    for role in ROLES {
        world.person(role, &[role]).await;
    }
    world.start().await;
    known(&world).await;
    let keys = ROLES.map(|role| {
        SERVERS.iter().for_each(|server| grant_all(&world, role, server));
        world.key(role)
    });
    // A grant of everything names nothing.
    world.person("starred", &["developer"]).await;
    ["sqlite", "notes"]
        .iter()
        .for_each(|server| world.grant("starred", server, "*"));
    let starred = world.key("starred");
    let mut found = HEAD.to_owned();
    for server in SERVERS {
        let mut clients = Vec::new();
        for key in &keys {
            clients.push(connected(&world, server, key).await);
        }
        listed(&mut found, &world, server, &clients).await;
        if ["sqlite", "notes"].contains(&server) {
            let sees = world.connected(server, &starred).await.list().await;
            writeln!(found, "    a developer whose grant is `*`: {}", joined(&sees)).unwrap();
        }
        for call in calls(server, &root.path, page) {
            called(&mut found, &call, &clients).await;
        }
        found.push('\n');
    }
    world.terminate();
    world.ended().await;
    assert_eq!(left_behind(&root), Vec::<String>::new());
    assert!(!found.contains(" without `"), "{found}");
    let found = found
        .replace(&root.path, "<root>")
        .replace(&format!("127.0.0.1:{page}"), "<page>");
    golden("real_servers.txt", &found);
}

const HEAD: &str = "\
MCP servers that people use, as programs behind Guardian with the policies that it ships. Written by
tests/stories/servers/real.rs from what the real binary answers. Each caller's grant names every tool of the server.
First who sees a tool, then what calls give: what the server's answer consists of, or why Guardian refuses the call.

";

/// What is called on each server. The last calls of a server are those that try to get round a policy.
fn calls(server: &str, root: &str, page: u16) -> Vec<Call> {
    let at = |name: &str| format!("{root}/{name}");
    let url = |name: &str| format!("http://127.0.0.1:{page}/{name}");
    let sum = json!({ "a": 2, "b": 40 });
    let ada = json!([{ "name": "ada", "entityType": "person", "observations": ["was here"] }]);
    match server {
        "filesystem" => vec![
            Call("list_allowed_directories", json!({}), "/files"),
            Call("read_text_file", json!({ "path": at("notes.txt") }), "ada was here"),
            Call("read_text_file", json!({ "path": "notes.txt" }), "ada was here"),
            Call("list_directory", json!({ "path": root }), "notes.txt"),
            Call("search_files", json!({ "path": root, "pattern": "**/*.txt" }), "today.txt"),
            Call("create_directory", json!({ "path": at("new") }), "created"),
            Call("write_file", json!({ "path": at("new/a.txt"), "content": "a" }), "wrote"),
            Call(
                "read_multiple_files",
                json!({ "paths": [at("notes.txt"), at("plans/today.txt")] }),
                "ada was here",
            ),
            Call("read_text_file", json!({ "path": at(".env") }), ""),
            Call("read_text_file", json!({ "path": "/etc/hostname" }), ""),
            Call("read_text_file", json!({ "path": at("../files-of-others/plan.txt") }), ""),
            Call("read_text_file", json!({ "path": format!("{root}-of-others/plan.txt") }), ""),
            Call("read_multiple_files", json!({ "paths": [at(".env")] }), "never-to-be-seen"),
            Call(
                "move_file",
                json!({ "source": at("new/a.txt"), "destination": "/etc/a.txt" }),
                "",
            ),
            Call("move_file", json!({ "source": at(".env"), "destination": at("env.txt") }), ""),
        ],
        "everything" => vec![
            Call("echo", json!({ "message": "hello" }), "hello"),
            Call("get-sum", sum, "42"),
            Call("get-sum", json!({ "a": "2", "b": 40 }), ""),
            Call("get-tiny-image", json!({}), "image"),
            Call("get-structured-content", json!({ "location": "Chicago" }), "temperature"),
            Call("toggle-simulated-logging", json!({}), "logging"),
            Call(
                "gzip-file-as-resource",
                json!({ "name": "a.gz", "data": "file:///etc/hostname" }),
                "",
            ),
        ],
        "memory" => vec![
            Call("create_entities", json!({ "entities": ada }), "entities"),
            Call("read_graph", json!({}), "was here"),
            Call("search_nodes", json!({ "query": "ada" }), "was here"),
            Call("open_nodes", json!({ "names": ["ada"] }), "was here"),
            Call("delete_entities", json!({ "entityNames": ["nobody"] }), "deleted"),
        ],
        "thinking" => vec![Call(
            "sequentialthinking",
            json!({ "thought": "first", "nextThoughtNeeded": false, "thoughtNumber": 1, "totalThoughts": 1 }),
            "thoughtHistoryLength",
        )],
        "git" => vec![
            Call("git_status", json!({ "repo_path": root }), "On branch main"),
            Call("git_log", json!({ "repo_path": root, "max_count": 1 }), "first"),
            Call("git_show", json!({ "repo_path": root, "revision": "HEAD" }), "ada was here"),
            Call(
                "git_add",
                json!({ "repo_path": root, "files": ["plans/today.txt"] }),
                "staged",
            ),
            Call(
                "git_create_branch",
                json!({ "repo_path": root, "branch_name": "work" }),
                "work",
            ),
            Call("git_reset", json!({ "repo_path": root }), "reset"),
            Call("git_add", json!({ "repo_path": root, "files": [".env"] }), "staged"),
            Call("git_show", json!({ "repo_path": root, "revision": "HEAD:.env" }), ""),
            Call("git_diff", json!({ "repo_path": root, "target": "--output=/tmp/diff" }), ""),
            Call("git_status", json!({ "repo_path": "/" }), ""),
            Call("git_status", json!({ "repo_path": "." }), ""),
            Call("git_status", json!({ "repo_path": "$HOME/other" }), ""),
            Call("git_log", json!({ "repo_path": at("..") }), ""),
            Call("git_status", json!({ "repo_path": format!("{root}-of-others") }), ""),
        ],
        "sqlite" => vec![
            Call(
                "create_table",
                json!({ "query": "CREATE TABLE IF NOT EXISTS people (name TEXT)" }),
                "created",
            ),
            Call(
                "write_query",
                json!({ "query": "INSERT INTO people VALUES ('ada')" }),
                "affected_rows",
            ),
            Call("list_tables", json!({}), "people"),
            Call("describe_table", json!({ "table_name": "people" }), "TEXT"),
            Call("read_query", json!({ "query": "SELECT name FROM people" }), "ada"),
            Call("read_query", json!({ "query": "SELECT 1; DROP TABLE people" }), ""),
            Call("read_query", json!({ "query": "DELETE FROM people" }), ""),
            Call("write_query", json!({ "query": "ATTACH '/tmp/other.db' AS other" }), ""),
        ],
        "time" => vec![
            Call("get_current_time", json!({ "timezone": "Europe/Zurich" }), "Europe/Zurich"),
            Call(
                "convert_time",
                json!({ "source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo" }),
                "21:00",
            ),
        ],
        "fetch" => vec![
            Call("fetch", json!({ "url": url("page") }), "loopback page"),
            Call("fetch", json!({ "url": "file:///etc/hostname" }), ""),
        ],
        "playwright" => vec![
            Call("browser_navigate", json!({ "url": url("page") }), "loopback page"),
            Call("browser_snapshot", json!({}), "Page URL"),
            Call("browser_snapshot", json!({ "filename": "guardian.toml" }), ""),
            Call("browser_take_screenshot", json!({ "scale": "css" }), "image"),
            Call(
                "browser_take_screenshot",
                json!({ "scale": "css", "filename": "/tmp/shot.png" }),
                "",
            ),
            Call("browser_file_upload", json!({ "paths": ["/etc/hostname"] }), ""),
            Call("browser_navigate", json!({ "url": "file:///etc/hostname" }), ""),
        ],
        "notes" => vec![
            Call("add_note", json!({ "text": "buy milk" }), "notes"),
            Call("forget_notes", json!({}), "0 notes"),
            Call("add_note", json!({ "txt": "buy milk" }), ""),
        ],
        _ => Vec::new(),
    }
}

/// Who of the callers sees which of the server's tools.
async fn listed(found: &mut String, world: &World, server: &str, clients: &[Client]) {
    let mut views = Vec::new();
    for client in clients {
        views.push(client.list().await);
    }
    let tools = tools(world, server);
    writeln!(found, "{server}: {} tools", tools.len()).unwrap();
    for tool in tools {
        let sees = |(role, view): (&'static str, &Vec<String>)| view.contains(&tool).then(|| role.to_owned());
        let who: Vec<_> = ROLES.into_iter().zip(&views).filter_map(sees).collect();
        writeln!(found, "    {tool:34} {}", joined(&who)).unwrap();
    }
}

/// What one call gives to each of the callers.
async fn called(found: &mut String, Call(tool, arguments, proof): &Call, clients: &[Client]) {
    writeln!(found, "    {tool} {arguments}").unwrap();
    let mut answers: Vec<(String, Vec<String>)> = Vec::new();
    for (role, client) in ROLES.into_iter().zip(clients) {
        let seen = seen(&client.call(tool, arguments.clone()).await, proof);
        match answers.iter_mut().find(|(same, _)| *same == seen) {
            Some((_, roles)) => roles.push(role.to_owned()),
            None => answers.push((seen, vec![role.to_owned()])),
        }
    }
    for (seen, roles) in answers {
        writeln!(found, "        {:28} {seen}", roles.join(", ")).unwrap();
    }
}

/// The kinds of content that came, or the reason why the call was refused.
fn seen(answer: &Answer, proof: &str) -> String {
    let result = &answer.message["result"];
    let refusal = match &result["_meta"]["guardian/refusal"] {
        Value::Null => answer.data(),
        refusal => refusal,
    };
    if let Some(reason) = refusal["reason"].as_str() {
        let policies = refusal["policies"].as_array().into_iter().flatten();
        let by: Vec<&str> = policies.filter_map(Value::as_str).collect();
        let status = if answer.status == 200 {
            String::new()
        } else {
            format!(" ({})", answer.status)
        };
        return format!("refused{status}: {reason} {}", by.join(", ")).trim_end().to_owned();
    }
    let Some(content) = result["content"].as_array() else {
        panic!("neither a result nor a refusal: {answer:?}");
    };
    let mut kinds: Vec<&str> = content.iter().filter_map(|block| block["type"].as_str()).collect();
    kinds.dedup();
    let kinds = kinds.join(" and ");
    if result["isError"] == true {
        return format!("the server's own error: {kinds}");
    }
    if answer.body.contains(proof) {
        kinds
    } else {
        format!("{kinds} without `{proof}`: {}", answer.body)
    }
}

fn joined(words: &[String]) -> String {
    if words.is_empty() { "nobody".into() } else { words.join(", ") }
}

/// A session; the client can do whatever a server may ask of one.
async fn connected(world: &World, server: &str, key: &str) -> Client {
    let mut client = world.client(server).bearer(key);
    client.capabilities = json!({ "roots": {}, "sampling": {}, "elicitation": { "form": {}, "url": {} } });
    let answer = client.handshake().await;
    assert!(answer.is_result(), "the handshake with {server}: {answer:?}");
    client
}

async fn known(world: &World) {
    eventually("the tools of all servers to be known", async || {
        let servers = world.guardian("server list --json").ok().rows();
        let known = servers.iter().filter(|server| server["tools"].as_u64() > Some(0));
        (known.count() == SERVERS.len()).then_some(())
    })
    .await;
}

fn tools(world: &World, server: &str) -> Vec<String> {
    let rows = world.guardian(&format!("server catalog {server} --json")).ok().rows();
    rows.iter()
        .map(|row| row["tool"].as_str().unwrap_or_else(|| panic!("{row}")).to_owned())
        .collect()
}

/// A grant that names every tool of the server.
fn grant_all(world: &World, name: &str, server: &str) {
    let who = format!("--user {name}@example.com --server {server}");
    world.guardian(&format!("grant add {who} --tools all")).ok();
}

/// A page on loopback; the server of every other path says that there is nothing.
async fn page() -> u16 {
    let answer = |path: &str| {
        let (status, text) = match path {
            "/page" => (
                200,
                "<!doctype html><title>A loopback page</title><h1>This is a loopback page</h1>",
            ),
            _ => (404, ""),
        };
        let body = Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {});
        let answer = Response::builder().status(status).header("content-type", "text/html");
        answer.body(Body::new(body)).unwrap()
    };
    serve(
        0,
        None,
        Arc::new(move |request| Box::pin(std::future::ready(answer(request.uri().path())))),
    )
    .await
}

/// The commands of processes that still run in the folder of the servers.
fn left_behind(root: &Root) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let inside = |process: &Path| std::fs::read_link(process.join("cwd")).is_ok_and(|folder| folder.starts_with(&root.path));
    let command = |process: &Path| std::fs::read_to_string(process.join("cmdline")).unwrap_or_default();
    processes
        .filter(|process| inside(process))
        .map(|process| command(&process))
        .collect()
}
