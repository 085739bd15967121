//! MCP servers that people use, each a program of an official package. `bash tests/servers/install` installs them.

use super::world::World;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Their names, as `add_all` puts them into the configuration.
pub const SERVERS: [&str; 12] = [
    "filesystem",
    "everything",
    "memory",
    "thinking",
    "git",
    "sqlite",
    "time",
    "fetch",
    "playwright",
    "context7",
    "notion",
    "notes",
];

/// The root of the servers that work on files: a Git repository with notes, a secret and a database.
pub struct Root {
    pub path: String,
}

impl Root {
    pub fn new(world: &World) -> Root {
        let root = world.file("files");
        let write = |name: &str, text: &str| world.folder.write(&format!("files/{name}"), text);
        write("notes.txt", "ada was here\n");
        write("plans/today.txt", "write the tests\n");
        write(".env", "TOKEN=never-to-be-seen\n");
        // A folder whose name begins like the root's.
        world.folder.write("files-of-others/plan.txt", "never-to-be-seen\n");
        git(&root, &["init", "--quiet", "--initial-branch=main"]);
        git(&root, &["add", "notes.txt"]);
        git(&root, &["commit", "--quiet", "--message=first"]);
        Root {
            path: root.to_str().unwrap().to_owned(),
        }
    }

    fn of(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }
}

/// Puts every server into the configuration. Those that keep nothing for a client are one program for all.
pub fn add_all(world: &mut World, root: &Root) {
    let shared = "per_session = false";
    let python = |version: &str, program: &str| {
        let environment = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/servers");
        let program = environment.join(format!("python-{version}/bin/{program}"));
        assert!(program.exists(), "`bash tests/servers/install` (tests/run does)");
        program.to_str().unwrap().to_owned()
    };
    let notes = folder().join("python/notes.py");
    let mut add = |name: &str, command: &[&str], more: &str| {
        let text = format!("command = {command:?}\nworking_dir = {:?}\n{more}", root.path);
        world.piped(name, &text);
    };
    add("filesystem", &["node", &official("filesystem"), &root.path], shared);
    let asks = "client_requests = ['sampling', 'elicitation', 'elicitation_url', 'roots']";
    add("everything", &["node", &official("everything"), "stdio"], asks);
    let memory = format!("{shared}\nenv = {{ MEMORY_FILE_PATH = {:?} }}", root.of("memory.jsonl"));
    add("memory", &["node", &official("memory")], &memory);
    add("thinking", &["node", &official("sequential-thinking")], shared);
    let repository = ["--repository", &root.path];
    add(
        "git",
        &[&[&*python("v2", "mcp-server-git")], &repository[..]].concat(),
        shared,
    );
    let database = ["--db-path", &root.of("data.db")];
    add(
        "sqlite",
        &[&[&*python("v1", "mcp-server-sqlite")], &database[..]].concat(),
        shared,
    );
    add("time", &[&python("v2", "mcp-server-time"), "--local-timezone", "UTC"], shared);
    add("fetch", &[&python("v2", "mcp-server-fetch"), "--allow-private-ips"], shared);
    // Debian's Chromium; the sandbox of a browser needs more rights than a container of tests has.
    let chromium = [
        "--executable-path",
        "/usr/bin/chromium",
        "--headless",
        "--no-sandbox",
        "--isolated",
    ];
    add(
        "playwright",
        &[&["node", &*package("@playwright/mcp/cli.js")], &chromium[..]].concat(),
        "",
    );
    add("context7", &["node", &package("@upstash/context7-mcp/dist/index.js")], shared);
    let token = format!("{shared}\nenv = {{ NOTION_TOKEN = 'ntn_none' }}");
    add(
        "notion",
        &["node", &package("@notionhq/notion-mcp-server/bin/cli.mjs")],
        &token,
    );
    add("notes", &[&python("v1", "python"), notes.to_str().unwrap()], shared);
}

/// The script of a server of the protocol's own project.
pub fn official(name: &str) -> String {
    package(&format!("@modelcontextprotocol/server-{name}/dist/index.js"))
}

fn package(name: &str) -> String {
    let modules = folder().join("node_modules");
    assert!(modules.exists(), "`bash tests/servers/install` (tests/run does)");
    modules.join(name).to_str().unwrap().to_owned()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers")
}

/// Git as nobody in particular, whatever the machine's configuration says.
fn git(folder: &Path, arguments: &[&str]) {
    let who = [
        "-c",
        "user.name=Ada",
        "-c",
        "user.email=ada@example.com",
        "-c",
        "commit.gpgsign=false",
    ];
    let status = Command::new("git").current_dir(folder).args(who).args(arguments).status();
    assert!(status.expect("git is installed").success(), "git {arguments:?}");
}
