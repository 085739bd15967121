//! The starter policies: each file with the cases beside it, and that they load whatever tools the servers have.

use super::world::*;
use neural_guardian::decide::{PolicySource, Snapshot, Verdict};
use neural_guardian::domain::{Catalogue, Grant, Method, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases {
    case: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    roles: Vec<String>,
    /// The server; that of the demo if none is named.
    server: Option<String>,
    /// The scopes of the grant; everything if none are named.
    scopes: Option<Vec<String>>,
    tool: Option<String>,
    resource: Option<String>,
    prompt: Option<String>,
    input: Option<Value>,
    at: Option<String>,
    expect: String,
    policy: Option<String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("policies")
}

fn sources() -> Vec<PolicySource> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "cedar"));
    files.sort();
    let source = |file: PathBuf| PolicySource {
        text: std::fs::read_to_string(&file).unwrap(),
        file: file.file_name().unwrap().to_str().unwrap().to_owned(),
    };
    files.into_iter().map(source).collect()
}

fn starter(catalogue: &Catalogue) -> Snapshot {
    Snapshot::compile(&sources(), catalogue, &settings()).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

/// The demo server, and tools as public servers declare them (server-filesystem, git, sqlite, memory, fetch).
fn servers() -> Catalogue {
    let texts = |names: &[&str]| {
        let text = |name: &&str| ((*name).to_owned(), json!({ "type": "string" }));
        properties(&[], Value::Object(names.iter().map(text).collect()))
    };
    let with_list = |texts: Value, name: &str| {
        let mut schema = texts;
        schema["properties"][name] = json!({ "type": "array", "items": { "type": "string" } });
        schema
    };
    let files = vec![
        read_only(tool("read_text_file", texts(&["path"]))),
        read_only(tool("read_multiple_files", with_list(texts(&[]), "paths"))),
        read_only(tool("directory_tree", with_list(texts(&["path"]), "excludePatterns"))),
        destructive(tool("move_file", texts(&["source", "destination"]))),
        tool(
            "anything",
            texts(&[
                "file",
                "filename",
                "file_path",
                "filePath",
                "directory",
                "dir",
                "folder",
                "source",
                "cwd",
                "src",
            ]),
        ),
    ];
    let git = vec![
        read_only(tool("git_show", texts(&["repo_path", "revision"]))),
        tool("git_add", with_list(texts(&["repo_path"]), "files")),
    ];
    let sqlite = ["read_query", "write_query", "create_table"].map(|name| unannotated(tool(name, texts(&["query"]))));
    let neo = vec![
        unannotated(tool("run", texts(&["statement"]))),
        unannotated(tool("list", texts(&[]))),
    ];
    let web = vec![
        read_only(tool("search_nodes", texts(&["query"]))),
        read_only(tool("fetch", texts(&["url"]))),
        read_only(tool("convert", texts(&["uri"]))),
        read_only(tool("browser_snapshot", texts(&["filename"]))),
    ];
    catalogue([
        ("demo", demo()),
        ("files", files),
        ("git", git),
        ("sqlite", sqlite.into()),
        ("neo", neo),
        ("web", web),
    ])
}

impl Case {
    fn verdict(&self, snapshot: &Snapshot) -> Verdict {
        let roles: Vec<&str> = self.roles.iter().map(String::as_str).collect();
        let mut world = World::new(&roles);
        if let Some(text) = &self.at {
            world.now = Timestamp::parse_rfc3339(text).unwrap();
        }
        let server = self.server.as_deref().unwrap_or("demo");
        let names = self.scopes.iter().flatten().map(String::as_str);
        world.member.grants = vec![Grant {
            scopes: match &self.scopes {
                Some(_) => scopes(names),
                None => scopes(["*"]),
            },
            ..grant(server, [])
        }];
        let asked = match (&self.tool, &self.resource, &self.prompt) {
            (Some(tool), None, None) => call(server, tool, self.input.clone()),
            (None, Some(uri), None) => about(server, Method::ReadResource, uri),
            (None, None, Some(prompt)) => get_prompt(server, prompt, self.input.clone()),
            _ => panic!("{}: one of `tool`, `resource` and `prompt`", self.name),
        };
        world.decide(snapshot, asked)
    }
}

#[test]
fn every_file_decides_as_its_cases_say() {
    let snapshot = starter(&servers());
    assert_eq!(snapshot.warnings(), []);
    let mut wrong = Vec::new();
    let mut decided = BTreeSet::new();
    for source in sources() {
        let file = folder().join("cases").join(source.file.replace(".cedar", ".toml"));
        let cases: Cases = toml::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        for expected in [true, false] {
            let there = cases.case.iter().any(|case| (case.expect == "permit") == expected);
            assert!(there, "{} needs cases that are allowed and cases that are not", source.file);
        }
        for case in cases.case {
            let verdict = shown(&case.verdict(&snapshot));
            let mut words = verdict.split(' ');
            let right = words.next() == Some(&case.expect);
            decided.extend(words.map(str::to_owned));
            if !right
                || case
                    .policy
                    .as_ref()
                    .is_some_and(|policy| !verdict.split(' ').any(|word| word == policy))
            {
                wrong.push(format!("{}: {}: {verdict}", source.file, case.name));
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
    let all: BTreeSet<String> = sources()
        .iter()
        .flat_map(|source| {
            source
                .text
                .split("@id(\"")
                .skip(1)
                .map(|rest| rest.split('"').next().unwrap().to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(decided, all, "every policy decides in some case");
}

#[test]
fn they_load_whatever_tools_there_are() {
    let odd = |property: Value| {
        let names = [
            "path",
            "file",
            "filename",
            "file_path",
            "directory",
            "source",
            "destination",
            "paths",
            "files",
            "filePath",
            "dir",
            "folder",
            "repo_path",
            "revision",
            "url",
            "uri",
            "cwd",
            "sql",
            "statement",
            "query",
        ];
        let all: serde_json::Map<String, Value> = names.iter().map(|name| ((*name).to_owned(), property.clone())).collect();
        catalogue([("odd", vec![tool("t", properties(&[], Value::Object(all)))])])
    };
    for fresh in [
        catalogue([]),
        catalogue([("none", vec![])]),
        catalogue([("plain", vec![tool("ping", json!({ "type": "object" }))])]),
        catalogue([("plain", vec![unannotated(tool("ping", json!({ "type": "object" })))])]),
        catalogue([("demo", demo())]),
    ] {
        assert_eq!(starter(&fresh).warnings(), []);
    }
    for property in [
        json!({}),
        json!({ "type": "string" }),
        json!({ "type": "integer" }),
        json!({ "type": "array", "items": { "type": "string" } }),
        json!({ "type": "object", "properties": { "path": { "type": "string" } } }),
        json!({ "anyOf": [{ "type": "string" }, { "type": "null" }] }),
    ] {
        starter(&odd(property));
    }
}

#[test]
fn the_example_of_working_hours_closes_what_may_destroy_at_night() {
    let file = "examples/working-hours.cedar";
    let text = std::fs::read_to_string(folder().join(file)).unwrap();
    let mut all = sources();
    all.push(PolicySource {
        file: file.to_owned(),
        text,
    });
    let snapshot = Snapshot::compile(&all, &servers(), &settings()).unwrap_or_else(|problems| panic!("{problems:#?}"));
    let mut world = World::new(&["operator"]);
    world.member.grants = ["demo", "sqlite"].map(|server| grant(server, ["*"])).into();
    for (now, is_open) in [
        ("2026-11-16T07:59:59Z", false),
        ("2026-11-16T08:00:00Z", true),
        ("2026-11-20T17:59:59Z", true),
        ("2026-11-20T18:00:00Z", false),
        ("2026-11-21T12:00:00Z", false),
    ] {
        world.now = at(now);
        let judged = if is_open {
            "permit roles.operator"
        } else {
            "forbidden_by_policy destructive.working-hours"
        };
        let delete = call("demo", "delete_file", Some(json!({ "path": "x" })));
        assert_eq!(shown(&world.decide(&snapshot, delete)), judged, "{now}");
        let write = call("sqlite", "write_query", Some(json!({ "query": "DELETE FROM x" })));
        assert_eq!(shown(&world.decide(&snapshot, write)), judged, "{now}");
        assert_eq!(
            world.verdict(&snapshot, "read_file", json!({ "path": "x" })),
            "permit roles.operator",
            "{now}"
        );
    }
}

#[test]
fn a_developer_hears_why_and_what_to_do() {
    let snapshot = starter(&catalogue([("demo", demo())]));
    for hour in 0..24 {
        let mut world = World::new(&["developer"]);
        world.now = at(&format!("2026-11-18T{hour:02}:30:00Z"));
        let Verdict::Refuse(refused) = world.decide(&snapshot, call("demo", "delete_file", Some(json!({ "path": "x" })))) else {
            panic!("permitted at {hour}");
        };
        assert_eq!(
            refused.refusal.policy_message.as_deref(),
            Some("Only operators may use destructive tools.")
        );
        assert_eq!(
            refused.refusal.remedy.as_deref(),
            Some("Ask an operator to do it, or an administrator for the role `operator`.")
        );
    }
}

#[test]
fn a_path_in_a_form_that_policies_cannot_read_does_not_slip_past() {
    let list = json!({ "type": "array", "items": { "type": "string" } });
    let tools = vec![
        tool("list", properties(&[], json!({ "path": list, "note": { "type": "string" } }))),
        tool("any", properties(&[], json!({ "path": {}, "note": { "type": "string" } }))),
        tool("undeclared", properties(&[], json!({ "note": { "type": "string" } }))),
    ];
    let snapshot = starter(&catalogue([("demo", tools)]));
    let world = World::new(&["admin"]);
    let verdict = |tool: &str, arguments: Value| world.verdict(&snapshot, tool, arguments);
    assert_eq!(verdict("list", json!({ "path": ["/etc/passwd"] })), "policy_error paths.root");
    assert_eq!(verdict("any", json!({ "path": "/etc/passwd" })), "policy_error paths.root");
    assert_eq!(
        verdict("undeclared", json!({ "path": "/etc/passwd" })),
        "invalid_arguments paths.root"
    );
    for tool in ["list", "any", "undeclared"] {
        assert_eq!(verdict(tool, json!({ "note": "x" })), "permit roles.admin", "{tool}");
    }
}
