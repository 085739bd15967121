//! What is wrong is said in one clear sentence, with an exit code a script can use, before anything is served.

use crate::support::certificates::Authority;
use crate::support::golden::golden;
use crate::support::ports::free_port;
use crate::support::stores::Engine;
use crate::support::upstream::Upstream;
use crate::support::world::{Ended, POLICIES, World};
use std::fmt::Write;
use std::net::TcpListener;

/// Policies are judged against the tools of a server that was seen before.
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

    let mut world = World::new(Engine::Sqlite).await;
    crate::ana_reads_files(&mut world).await;
    let taken = TcpListener::bind(("127.0.0.1", world.port)).unwrap();
    say(&mut text, &world, "the port is in use", "serve", world.guardian("serve"));
    drop(taken);
    let taken = TcpListener::bind(("127.0.0.1", world.metrics_port)).unwrap();
    say(
        &mut text,
        &world,
        "the port of the metrics is in use",
        "serve",
        world.guardian("serve"),
    );
    drop(taken);

    let mut world = World::new(Engine::Sqlite).await;
    world.server(
        "files",
        &format!("http://localhost:{}/mcp", free_port()),
        "connect_timeout = '1s'",
    );
    say(
        &mut text,
        &world,
        "the store was never made",
        "serve",
        world.guardian("serve"),
    );
    world.folder.write("data/guardian.db", &"not a database ".repeat(100));
    say(
        &mut text,
        &world,
        "the store is something else",
        "serve",
        world.guardian("serve"),
    );

    let mut world = World::new(Engine::Sqlite).await;
    world.server(
        "files",
        &format!("http://localhost:{}/mcp", free_port()),
        "connect_timeout = '1s'",
    );
    crate::ana(&mut world).await;
    say(
        &mut text,
        &world,
        "the server cannot be reached",
        "check",
        world.guardian("check"),
    );

    let mut world = World::new(Engine::Sqlite).await;
    let url = format!("postgres://guardian:canary-password@localhost:{}/guardian", free_port());
    world.set(
        "store",
        &format!("{{ kind = 'postgres', url = '{url}', admin_url = '{url}', connect_timeout = '1s' }}"),
    );
    for command in ["serve", "check", "db migrate", "user list"] {
        say(
            &mut text,
            &world,
            "the store cannot be reached",
            command,
            world.guardian(command),
        );
    }
    assert!(!text.contains("canary"), "{text}");

    let mut world = World::new(Engine::Postgres).await;
    crate::ana_reads_files(&mut world).await;
    world.set("store.url", &format!("'{}'", world.database.as_ref().unwrap().admin_url()));
    say(
        &mut text,
        &world,
        "the login may do more than a proxy may",
        "serve",
        world.guardian("serve"),
    );
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

/// What was wrong, the command, how it ended, and what it said; without what differs from run to run.
fn say(text: &mut String, world: &World, what: &str, command: &str, ended: Ended) {
    let said = format!("{}{}", ended.stdout, ended.stderr);
    let folder = world.folder.path().to_string_lossy().into_owned();
    let mut said = said.replace(&folder, "<folder>");
    for (found, shown) in [(world.port, "<port>"), (world.metrics_port, "<metrics port>")] {
        said = said.replace(&found.to_string(), shown);
    }
    let lines: Vec<String> = said.lines().map(|line| without_numbers(line.trim_end())).collect();
    writeln!(
        text,
        "# {what}\n$ guardian {command}\n{}\n(exit code {})\n",
        lines.join("\n"),
        ended.code
    )
    .unwrap();
}

/// Ids, times and ports of this run become `<id>` and `…`.
fn without_numbers(line: &str) -> String {
    let mut shown = String::new();
    for piece in line.split_inclusive(|c: char| !c.is_alphanumeric() && c != '-') {
        let word = piece.trim_end_matches(|c: char| !c.is_alphanumeric() && c != '-');
        let is_id = word.len() == 36 && word.matches('-').count() == 4;
        let is_number = word.chars().filter(char::is_ascii_digit).count() >= 5;
        shown.push_str(match (is_id, is_number) {
            (true, _) => "<id>",
            (false, true) => "…",
            (false, false) => word,
        });
        shown.push_str(&piece[word.len()..]);
    }
    shown
}
