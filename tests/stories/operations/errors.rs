//! Mistakes are reported in one clear sentence, with an exit code that a script can use, before anything is served.

use crate::support::certificates::Authority;
use crate::support::golden::golden;
use crate::support::ports::free_port;
use crate::support::stores::Engine;
use crate::support::upstream::Upstream;
use crate::support::world::{Ended, POLICIES, World};
use neural_guardian::domain::Timestamp;
use std::fmt::Write;
use std::net::TcpListener;

/// Policies are checked against the tools of a server that was seen in an earlier run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_policy_set_is_said_to_be_one_and_never_starts() {
    let mut world = World::new(Engine::Sqlite).await;
    let (files, _key) = crate::ana_reads_files(&mut world).await;
    world.start().await;
    world.terminate();
    world.ended().await;
    let seen = files.received().len();

    let mut text = String::new();
    for (what, policies) in [
        (
            "a full stop instead of a semicolon",
            POLICIES.replace("resource);\n\n@id(\"writers", "resource).\n\n@id(\"writers"),
        ),
        (
            "a bracket that is not closed",
            POLICIES.replace("like \"/etc/*\" }", "like \"/etc/*\""),
        ),
        (
            "an argument that the tool does not have",
            POLICIES.replace("input.path", "input.pth"),
        ),
        (
            "a tool that does not exist",
            POLICIES.replace("files/read_file", "files/raed_file"),
        ),
        (
            "a comparison that makes no sense",
            POLICIES.replace("context.input.path like \"/etc/*\"", "context.input.path > 3"),
        ),
        ("two policies with one id", POLICIES.replace("writers-write", "readers-read")),
        ("a policy without an id", POLICIES.replace("@id(\"writers-write\")\n", "")),
        (
            "a kind of principal that does not exist",
            POLICIES.replace("Guardian::Role::\"writer\"", "Guardian::Group::\"writer\""),
        ),
        (
            "a template that is never filled in",
            POLICIES.replace(
                "permit (principal in Guardian::Role::\"writer\"",
                "permit (principal in ?principal",
            ),
        ),
        (
            "nothing that permits anything",
            "@id(\"no\") forbid (principal, action, resource);".into(),
        ),
        (
            "a condition in more brackets than Cedar can read",
            POLICIES.replace(
                "context.input.path like",
                &format!("{}true{} && context.input.path like", "(".repeat(100), ")".repeat(100)),
            ),
        ),
        (
            "a condition of more operators than Cedar can read",
            POLICIES.replace(
                "context.input.path like",
                &format!("{}context.input.path like", "true && ".repeat(300)),
            ),
        ),
        ("an empty file", String::new()),
    ] {
        world.policies(&policies);
        say(&mut text, &world, what, "check", world.guardian("check"));
        let served = world.guardian("serve");
        assert_ne!(served.code, 0, "{what}: {served:?}");
    }
    world.set("policies.dir", "'nowhere'");
    say(
        &mut text,
        &world,
        "a folder that does not exist",
        "check",
        world.guardian("check"),
    );
    golden("errors/policies.txt", &text);
    assert_eq!(files.calls().len(), 0);
    assert!(seen > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_cannot_serve_is_said_to_be_one() {
    let mut world = World::new(Engine::Sqlite).await;
    let (_files, _key) = crate::ana_reads_files(&mut world).await;
    let mut text = String::new();
    let good = world.authority.server();
    let certificate = |text: &str| std::fs::write(world.file("certs/server.pem"), text).unwrap();
    let key = |text: &str| std::fs::write(world.file("certs/server.key"), text).unwrap();
    let mut tell = |what: &str| {
        say(&mut text, &world, what, "check", world.guardian("check"));
        let served = world.guardian("serve");
        assert_ne!(served.code, 0, "{what}: {served:?}");
        world.install_certificate(&good);
    };

    world.install_certificate(&world.authority.expired_server());
    tell("a certificate that has expired");
    key(&Authority::new("somebody else").server().key);
    tell("a key that belongs to another certificate");
    certificate("not PEM at all\n");
    tell("a certificate file without a certificate");
    key(&good.certificate);
    tell("a key file without a key");
    std::fs::remove_file(world.file("certs/server.pem")).unwrap();
    tell("no certificate file");
    std::fs::remove_file(world.file("certs/server.key")).unwrap();
    tell("no key file");
    world
        .set("listen.tls.client_ca_file", "'nowhere.pem'")
        .set("listen.tls.client_certificates", "'optional'");
    say(
        &mut text,
        &world,
        "no file of client authorities",
        "check",
        world.guardian("check"),
    );
    golden("errors/certificates.txt", &text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_keeps_it_from_starting_is_said_in_a_sentence() {
    let mut text = String::new();
    let mut tell = |world: &World, what: &str, command: &str| say(&mut text, world, what, command, world.guardian(command));

    let mut world = World::new(Engine::Sqlite).await;
    crate::ana_reads_files(&mut world).await;
    let taken = TcpListener::bind(("127.0.0.1", world.port)).unwrap();
    tell(&world, "the port is in use", "serve");
    drop(taken);
    let taken = TcpListener::bind(("127.0.0.1", world.metrics_port)).unwrap();
    tell(&world, "the port of the metrics is in use", "serve");
    drop(taken);
    world.config["servers"] = toml::Value::Array(Vec::new());
    world.server(
        "files",
        &format!("http://localhost:{}/mcp", free_port()),
        "connect_timeout = '1s'",
    );
    tell(&world, "the server cannot be reached", "check");

    let world = World::new(Engine::Sqlite).await;
    world.folder.write("data/guardian.db", &"not a database ".repeat(100));
    tell(&world, "the store is something else", "serve");
    tell(&world, "the store is something else", "user list");

    let mut world = World::new(Engine::Postgres).await;
    tell(&world, "the store was never made", "serve");
    tell(&world, "the store was never made", "user list");
    world.migrate().await;
    let login = world.config["store"]["url"].clone();
    world.config["store"]["url"] = world.database.as_ref().unwrap().admin_url().into();
    tell(&world, "the login may do more than a proxy may", "serve");
    world.config["store"]["url"] = login;
    world.set("environment", "'production'");
    tell(&world, "the login belongs to another environment", "serve");

    let mut world = World::new(Engine::Sqlite).await;
    let url = format!("postgres://guardian:canary-password@localhost:{}/guardian", free_port());
    world.set(
        "store",
        &format!("{{ kind = 'postgres', url = '{url}', admin_url = '{url}', connect_timeout = '1s' }}"),
    );
    // `serve` waits for it.
    for command in ["check", "db migrate", "user list"] {
        tell(&world, "the store cannot be reached", command);
    }
    assert!(!text.contains("canary"), "{text}");
    golden("errors/start.txt", &text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_cannot_do_what_it_is_asked_says_so() {
    let mut world = World::new(Engine::Sqlite).await;
    let files = Upstream::start().await;
    world.server("files", &files.url, "");
    world.person("ana", &["reader"]).await;
    let mut text = String::new();
    for command in [
        "user link nobody@example.com --issuer https://a.test --subject a",
        "grant add --user nobody@example.com --server files --scopes a",
        "grant add --user ana@example.com --server nowhere --scopes a",
        "grant revoke --user ana@example.com --server files",
        "key new --user nobody@example.com --name a",
        "key revoke abcdefgh",
        "server pin nowhere --all",
        "server pin files no_such_tool",
        "audit show 00000000-0000-7000-8000-000000000000",
        "audit query --since yesterday",
        "gratn list",
        "user add ana@example.com",
        "grant add --user ana@example.com --server files --scopes read_file --expires yesterday",
    ] {
        say(&mut text, &world, command, command, world.guardian(command));
    }
    golden("errors/commands.txt", &text);
}

/// Appends the mistake, the command, its exit and its output, without what differs from run to run.
fn say(text: &mut String, world: &World, what: &str, command: &str, ended: Ended) {
    let said = format!("{}{}", ended.stdout, ended.stderr);
    let folder = world.folder.path().to_string_lossy().into_owned();
    let mut said = said.replace(&folder, "<folder>");
    for (found, shown) in [(world.port, "<port>"), (world.metrics_port, "<metrics port>")] {
        said = said.replace(&found.to_string(), shown);
    }
    // What `check` found to be right, and what `serve` logged before, is left out.
    let wrong = said.lines().filter(|line| !line.starts_with("ok ") && !line.starts_with('{'));
    let lines: Vec<String> = wrong.map(|line| without_numbers(line.trim_end())).collect();
    writeln!(
        text,
        "# {what}\n$ guardian {command}\n{}\n(exit code {})\n",
        lines.join("\n"),
        ended.code
    )
    .unwrap();
}

/// Replaces ids, times and ports of this run by `<id>`, `<time>` and `…`.
fn without_numbers(line: &str) -> String {
    let end_of_word = |c: char| c == ' ' || c == '`' || c == '"';
    line.split_inclusive(end_of_word)
        .map(|piece| {
            let word = piece.trim_end_matches(|c: char| end_of_word(c) || c == ':');
            let shown = match Timestamp::parse_rfc3339(word) {
                Some(_) => "<time>".to_owned(),
                None => without_ids(word),
            };
            format!("{shown}{}", &piece[word.len()..])
        })
        .collect()
}

fn without_ids(word: &str) -> String {
    let mut shown = String::new();
    for piece in word.split_inclusive(|c: char| !c.is_alphanumeric() && c != '-') {
        let part = piece.trim_end_matches(|c: char| !c.is_alphanumeric() && c != '-');
        let is_id = part.len() == 36 && part.matches('-').count() == 4;
        let is_number = part.chars().filter(char::is_ascii_digit).count() >= 5;
        shown.push_str(match (is_id, is_number) {
            (true, _) => "<id>",
            (false, true) => "…",
            (false, false) => part,
        });
        shown.push_str(&piece[part.len()..]);
    }
    shown
}
