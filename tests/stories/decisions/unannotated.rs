//! A tool whose server does not say what it does: whom the starter policies let call it, and what people are told of it.

use crate::support::on_both_stores;
use crate::support::upstream::Upstream;
use crate::support::world::World;
use serde_json::{Value, json};

/// The starter policies as one text.
pub fn starter() -> String {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files
        .filter(|file| file.extension().is_some_and(|end| end == "cedar"))
        .collect();
    files.sort();
    files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
}

fn note() -> Value {
    let schema = json!({ "type": "object", "properties": { "text": { "type": "string" } } });
    json!({ "name": "note", "inputSchema": schema, "annotations": { "title": "Note", "openWorldHint": false } })
}

on_both_stores! {
    async fn an_unannotated_tool_is_for_those_whose_grant_names_it(world: World) {
        let files = Upstream::start().await;
        files.offer(note());
        world.server("files", &files.url, "");
        world.policies(&starter());
        for (name, role) in [("broad", "developer"), ("dora", "developer"), ("anna", "analyst"), ("oscar", "operator")] {
            world.person(name, &[role]).await;
        }
        let unknown = world.guardian("grant add --user dora@example.com --server files --tools all");
        assert_eq!(unknown.code, 1, "{unknown:?}");
        assert!(unknown.stderr.contains("`guardian server catalog files --refresh` asks the server"), "{unknown:?}");
        // A fresh install: no policy is said to have no effect before any tool is known.
        let fresh = world.guardian("policy check").ok();
        assert_eq!(fresh.stderr, "", "{fresh:?}");
        assert!(fresh.stdout.contains("policies are right"), "{fresh:?}");

        world.guardian("server catalog files --refresh").ok();
        world.grant("broad", "files", "*");
        world.grant("oscar", "files", "*");
        for name in ["dora", "anna"] {
            world.guardian(&format!("grant add --user {name}@example.com --server files --tools all --scopes prompts")).ok();
        }
        let granted = world.guardian("grant list --user dora@example.com --json").ok().json();
        assert_eq!(
            granted[0]["scopes"],
            json!(["add", "delete_file", "echo", "note", "prompts", "query", "read_file", "slow", "write_file"])
        );
        let keys = ["broad", "dora", "anna", "oscar"].map(|name| world.key(name));
        world.start().await;

        let reads = ["echo", "add", "read_file", "query", "slow"];
        let writes = ["echo", "add", "read_file", "write_file", "query", "slow"];
        for (key, verdict, listed) in [
            (&keys[0], "200 forbidden_by_policy", writes.to_vec()),
            (&keys[1], "allowed", [&writes[..], &["note"]].concat()),
            (&keys[2], "200 no_policy_permits", reads.to_vec()),
            (&keys[3], "allowed", vec!["echo", "add", "read_file", "write_file", "delete_file", "query", "slow", "note"]),
        ] {
            let client = world.connected("files", key).await;
            assert_eq!(client.list().await, listed);
            assert_eq!(client.call("note", json!({ "text": "a" })).await.verdict(), verdict);
            let mut all = world.client("files").bearer(key).modern();
            all.path = "/mcp".into();
            let mut prefixed: Vec<String> = listed.iter().map(|name| format!("files__{name}")).collect();
            prefixed.sort();
            assert_eq!(all.list().await, prefixed);
            assert_eq!(all.call("files__note", json!({ "text": "a" })).await.verdict(), verdict);
        }
        let heard = world.connected("files", &keys[0]).await.call("note", json!({})).await.message.to_string();
        assert!(heard.contains("The server does not say what this tool does, and your grant does not name it."), "{heard}");

        let rows = world.guardian("server catalog files --json").ok().rows();
        let class = |tool: &str| rows.iter().find(|row| row["tool"] == tool).unwrap()["class"].clone();
        assert_eq!([class("note"), class("echo"), class("delete_file")], ["unannotated", "read_only", "destructive"]);
        let shown = world.guardian("server catalog files").ok().stdout;
        assert!(shown.lines().any(|line| line.starts_with("note ") && line.contains(" nothing ")), "{shown}");
        let explained = world.guardian("policy explain --user broad@example.com --server files --tool note").ok().stdout;
        assert!(explained.contains("its server does not say what it does"), "{explained}");
        let schema = world.guardian("policy schema").ok().stdout;
        assert!(schema.contains(r#"action "files/note" in ["call_tool", "files", "unannotated"]"#), "{schema}");
    }

    async fn grants_name_tools_by_what_they_need(world: World) {
        let files = Upstream::start().await;
        world.server("files", &files.url, "tool_scopes = { add = ['sums:read', 'sums:write'] }");
        world.server("strict", &files.url, "pin = 'strict'");
        world.person("ana", &["reader"]).await;
        world.guardian("server catalog files --refresh").ok();
        world.guardian("server catalog strict --refresh");
        world.guardian("server add files --tool-scope slow=*").ok();
        let scopes = |command: &str| {
            let done = world.guardian(&format!("grant add --user ana@example.com {command} --json"));
            let scopes = serde_json::from_str::<Value>(&done.stdout).map_or(Value::Null, |json| json["scopes"].clone());
            (scopes, done.stderr)
        };
        assert_eq!(scopes("--server files --tools add,echo").0, json!(["echo", "sums:read", "sums:write"]));
        let (all, said) = scopes("--server files --tools all");
        assert_eq!(
            all,
            json!(["delete_file", "echo", "query", "read_file", "sums:read", "sums:write", "write_file"]),
            "`*` is never written for a name"
        );
        assert!(said.contains("`--scopes '*'`"), "{said}");
        assert_eq!(scopes("--server files --scopes *").0, json!(["*"]));
        let (none, said) = scopes("--server files --tools ecko");
        assert!(none.is_null() && said.contains("`files` has no tool `ecko`; did you mean `echo`?"), "{said}");
        let (none, said) = scopes("--server strict --tools all");
        assert!(none.is_null() && said.contains("nobody has approved them: add"), "{said}");
        let (none, said) = scopes("--server files");
        assert!(none.is_null() && said.contains("--scopes"), "{said}");
    }

    async fn texts_that_no_policy_looks_at_are_listed(world: World) {
        let files = Upstream::start().await;
        let text = json!({ "type": "string" });
        let list = json!({ "type": "array", "items": text });
        let properties = json!({
            "path": text, "paths": list, "note": text, "names": list, "sort": { "enum": ["up", "down"] }, "depth": { "type": "integer" },
            "options": { "type": "object", "properties": { "root": text } },
            "edits": { "type": "array", "items": { "type": "object", "properties": { "old": text } } },
        });
        files.offer(json!({ "name": "many", "inputSchema": { "type": "object", "properties": properties }, "annotations": { "readOnlyHint": true } }));
        files.offer(json!({ "name": "more", "inputSchema": { "type": "object", "properties": { "note": text } } }));
        files.offer(json!({ "name": "find", "inputSchema": { "type": "object", "properties": { "query": text } }, "annotations": { "readOnlyHint": true } }));
        world.server("files", &files.url, "");
        world.policies(&starter());
        world.migrate().await;
        world.guardian("server catalog files --refresh").ok();
        let checked = world.guardian("policy check").ok();
        let wanted = "`files`: no policy looks at 8 text arguments: edits (many), names (many), note (2 tools), \
                      options.root (many), query (find), text (2 tools)";
        assert!(checked.stdout.lines().any(|line| line == wanted), "{checked:?}");
        let json = world.guardian("policy check --json").ok().json();
        let unread = json["unread_arguments"].as_array().unwrap();
        assert_eq!(unread.len(), 8);
        assert_eq!(unread[0], json!({ "server": "files", "tool": "echo", "argument": "text" }));
    }
}
