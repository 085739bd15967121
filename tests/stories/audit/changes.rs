//! Who changed what: each command leaves a hashed record, and what another program changes is shown as unhashed.

use crate::ana_reads_files;
use crate::support::issuer::Issuer;
use crate::support::on_both_stores;
use crate::support::stores::Engine;
use crate::support::wait::eventually;
use crate::support::world::World;
use serde_json::{Value, json};
use sqlx::Connection;
use std::process::Command;

on_both_stores! {
    async fn each_command_leaves_a_record_with_actor_claim_words_and_old_and_new(world: World) {
        world.server("files", "http://127.0.0.1:1/mcp", "");
        world.migrate().await;
        let by = |command: &str| world.guardian(&format!("--by Ann {command}")).ok();
        by("user add bob@example.com --role reader");
        by("grant add --user bob@example.com --server files --scopes echo");
        by("grant add --user bob@example.com --server files --scopes echo,write");
        by("grant revoke --user bob@example.com --server files");
        let key = by("key new --user bob@example.com --name laptop --json").json()["id"].as_str().unwrap().to_owned();
        by(&format!("key revoke {key}"));
        by("user roles bob@example.com writer");
        by("user disable bob@example.com");
        by("user link bob@example.com --issuer https://id.example --subject bob");
        by("token revoke --user bob@example.com --reason lost");
        by("user unlink --issuer https://id.example --subject bob");
        by("server add files --title Files");
        by("server disable files");

        let rows = world.audit("--kind admin");
        let told: Vec<(&str, String)> = rows
            .iter()
            .map(|row| {
                let change = |name: &str| row["changes"][0][name].clone();
                let (old, new) = (change("old"), change("new"));
                let told = match row["reason"].as_str().unwrap() {
                    "granted" | "grant changed" => format!("{} → {}", old["scopes"], new["scopes"]),
                    "revoked" | "user disabled" => format!("{} → {}", old["status"], new["status"]),
                    "roles changed" => format!("{} → {}", old["roles"], new["roles"]),
                    "server disabled" => format!("{} → {}", old["enabled"], new["enabled"]),
                    "tokens revoked" => new["value"].to_string(),
                    _ => String::new(),
                };
                (row["reason"].as_str().unwrap(), told)
            })
            .filter(|(words, _)| !["schema migrated", "login bound"].contains(words))
            .collect();
        let expected = [
            ("user enrolled", ""), ("granted", r#"null → ["echo"]"#), ("grant changed", r#"["echo"] → ["echo","write"]"#),
            ("revoked", r#""verified" → "revoked""#), ("key made", ""), ("key revoked", ""),
            ("roles changed", r#"["reader"] → ["writer"]"#), ("user disabled", r#""active" → "disabled""#), ("identity linked", ""),
            ("tokens revoked", r#""bob""#), ("identity unlinked", ""), ("server registered", ""), ("server disabled", "true → false"),
        ];
        assert_eq!(told, expected.map(|(words, told)| (words, told.to_owned())));
        let actor = format!("{}@{}", printed("/usr/bin/id", &["-run"]), std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim());
        for row in &rows {
            assert_eq!((&row["actor"], &row["unhashed"]), (&json!(actor), &json!(false)), "{row}");
            let claimed = !["schema migrated", "login bound"].contains(&row["reason"].as_str().unwrap());
            assert_eq!(row["claimed_by"], if claimed { json!("Ann") } else { Value::Null }, "{row}");
        }
        let kinds = if world.database.is_some() { 15 } else { 14 };
        assert_eq!(rows.len(), kinds, "the schema's migration and, on Postgres, the login are on record too");
        let table = world.guardian("audit query --kind admin --limit 1").ok().stdout;
        assert!(table.contains("server disabled") && table.contains("files: enabled true → false"), "{table}");
        assert!(table.contains(&format!("by {actor}, claimed to be Ann")), "{table}");
        let checked = world.guardian("check --json");
        assert!(!checked.stdout.contains("unhashed"), "{checked:?}");
    }

    async fn a_change_by_another_program_is_unhashed_and_names_its_login(world: World) {
        let (_files, _) = ana_reads_files(&mut world).await;
        world.sql("UPDATE {t}users SET status = 'disabled' WHERE email = 'ana@example.com'").await;
        world.sql("INSERT INTO {t}revocations (environment, issuer, kind, value) VALUES ('default', 'i', 'jti', 'v')").await;
        let rows = world.audit("--kind admin");
        let login = match &world.database {
            Some(database) => database.admin_url().split("//").nth(1).unwrap().split([':', '@']).next().unwrap().to_owned(),
            None => "embedded".to_owned(),
        };
        let told: Vec<_> = rows.iter().filter(|row| row["unhashed"] == true).map(|row| (&row["reason"], &row["actor"])).collect();
        assert_eq!(told, [(&json!("user disabled"), &json!(login)), (&json!("tokens revoked"), &json!(login))]);
        let table = world.guardian("audit query --kind admin").ok().stdout;
        let line = table.lines().find(|line| line.contains("user disabled")).unwrap();
        assert!(line.contains("unhashed") && line.contains("status active → disabled") && line.contains(&format!("by {login}")), "{line}");
        let checked = world.guardian("check");
        assert!(checked.stdout.contains("2 changes of the store are unhashed"), "{checked:?}");
    }

    async fn sudo_is_noted_as_such(world: World) {
        world.migrate().await;
        let mut command = world.command();
        let done = command.env("SUDO_USER", "eve").args(["user", "add", "bob@example.com"]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        let rows = world.audit("--kind admin");
        let actor = rows.last().unwrap()["actor"].as_str().unwrap();
        assert!(actor.ends_with(" (sudo: eve)"), "{actor}");
        let refused = world.guardian_with(&["--by", "a\nb", "user", "add", "eve@example.com"]);
        assert_eq!(refused.code, 2, "{refused:?}");
    }

    async fn two_commands_at_once_both_leave_their_record(world: World) {
        world.migrate().await;
        world.write();
        let before = world.audit("--kind admin").len();
        let commands: Vec<_> = (0..6)
            .map(|n| world.command().args(["user", "add", &format!("user{n}@example.com")]).spawn().unwrap())
            .collect();
        for mut command in commands {
            assert!(command.wait().unwrap().success());
        }
        let rows = world.audit("--kind admin");
        let seqs: Vec<u64> = rows.iter().map(|row| row["seq"].as_u64().unwrap()).collect();
        assert_eq!(rows.len(), before + 6);
        assert_eq!(seqs.iter().collect::<std::collections::BTreeSet<_>>().len(), rows.len(), "{seqs:?}");
        assert!(rows.iter().all(|row| row["unhashed"] == false && row["incarnation"] == rows[0]["incarnation"]));
    }

    /// What the instance does by itself is covered by its journal, and not by anybody's command.
    async fn an_enrolment_just_in_time_and_an_approval_at_first_use_are_covered(world: World) {
        let (_files, _) = ana_reads_files(&mut world).await;
        let issuer = Issuer::es256("https://id.example.test");
        world.folder.write("jwks.json", &issuer.key_set().to_string());
        world.issuer("id", &issuer.iss, "kind = 'oidc'\njwks_file = 'jwks.json'");
        world.set("members.just_in_time", "true");
        world.start().await;
        let eve = world.client("files").modern().bearer(&issuer.token("eve", &world.resource("files")));
        eve.call("echo", json!({ "text": "hi" })).await;
        world.shipped().await;
        let rows = world.audit("--kind admin");
        assert!(rows.iter().all(|row| row["unhashed"] == false), "{rows:#?}");
        let named = |words: &str| rows.iter().filter(|row| row["reason"] == words).count();
        let count = (named("user enrolled, identity linked"), named("tool approved"), named("tools offered"));
        assert_eq!((count.0, count.1 > 0, count.2), (1, true, 1), "{rows:#?}");
    }
}

/// Killed at the moment at which its transaction waits for the chain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_killed_in_between_leaves_neither_change_nor_record_on_postgres() {
    let mut world = World::new(Engine::Postgres).await;
    world.migrate().await;
    world.write();
    let database = world.database.as_ref().unwrap();
    let before = (
        world.audit("--kind admin").len(),
        database.count("SELECT count(*) FROM guardian.users").await,
    );
    let mut holder = sqlx::PgConnection::connect(&database.admin_url()).await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT FROM guardian.change_chain FOR UPDATE")
        .execute(&mut holder)
        .await
        .unwrap();
    let mut command = world.command().args(["user", "add", "bob@example.com"]).spawn().unwrap();
    eventually("the command to wait for the chain", async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        (database.count(waiting).await == 1).then_some(())
    })
    .await;
    command.kill().unwrap();
    command.wait().unwrap();
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.unwrap();
    eventually("the killed command's connection to end", async || {
        let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'guardian'";
        (database.count(open).await == 0).then_some(())
    })
    .await;
    let after = (
        world.audit("--kind admin").len(),
        database.count("SELECT count(*) FROM guardian.users").await,
    );
    assert_eq!(after, before);
    world.guardian("user add bob@example.com").ok();
    assert_eq!(world.audit("--kind admin").len(), before.0 + 1);
}

/// Killed in the first sync of its commit, or in whichever sync it does first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_killed_in_between_leaves_both_or_neither_on_sqlite() {
    let mut world = World::new(Engine::Sqlite).await;
    world.migrate().await;
    world.write();
    for nth in 1..=4 {
        let killed = Command::new("strace")
            .args(["-f", "-o", "/dev/null", "-e", "trace=pwrite64", "-e"])
            .arg(format!("inject=pwrite64:signal=KILL:when={nth}"))
            .arg(env!("CARGO_BIN_EXE_guardian"))
            .arg("-c")
            .arg(world.file("guardian.toml"))
            .current_dir(world.folder.path())
            .args(["user", "add", &format!("user{nth}@example.com")])
            .output()
            .expect("strace is installed");
        assert!(!killed.status.success() || nth > 1, "{killed:?}");
        let users = world.guardian("user list --json").ok().rows().len();
        let rows = world.audit("--kind admin");
        let enrolled = rows.iter().filter(|row| row["reason"] == "user enrolled").count();
        assert_eq!(users, enrolled, "{nth}");
        assert!(rows.iter().all(|row| row["unhashed"] == false), "{rows:#?}");
    }
}

fn printed(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
