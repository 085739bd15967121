//! Who changed what: a record of each command's changes, in a chain, and what other programs change.

use super::world::{Folder, Place, World, actor, author, env, on_both, parse, postgres_at, raw_postgres, raw_sqlite};
use crate::postgres::Database;
use neural_guardian::domain::*;
use neural_guardian::store::{AuditFilter, AuditKind, AuditRow, RegistryRow, Store, StoreOpen};
use serde_json::Value;
use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType};
use std::collections::BTreeMap;

on_both! {
    async fn each_change_is_recorded_with_who_what_and_from_what_to_what(world) {
        let alice = world.user("alice@example.com").await;
        world.grant(&alice, "files", &["read"]).await;
        world.grant(&alice, "files", &["read", "write"]).await;
        let (env, admin) = (env(), &world.admin);
        admin.revoke_grant(&env, &alice, &parse("files"), None).await.unwrap();
        admin.add_key(&env, &alice, &super::world::key("key00001")).await.unwrap();
        admin.revoke_key(&env, &parse("key00001"), super::world::at("2026-12-01T00:00:00Z")).await.unwrap();
        admin.set_user_status(&env, &alice, MemberStatus::Disabled).await.unwrap();
        admin.set_user_status(&env, &alice, MemberStatus::Active).await.unwrap();
        admin.set_user_roles(&env, &alice, &[parse("reader")]).await.unwrap();
        admin.link_identity(&env, &alice, &parse("https://issuer"), &parse("s")).await.unwrap();
        admin.unlink_identity(&env, &parse("https://issuer"), &parse("s")).await.unwrap();
        let server = RegistryRow { server: parse("files"), name: "Files".into(), url: None, enabled: true, tool_scopes: BTreeMap::new() };
        admin.put_server(&env, &server).await.unwrap();
        admin.put_server(&env, &server).await.unwrap();
        admin.put_server(&env, &RegistryRow { enabled: false, ..server }).await.unwrap();
        let revocation = |value: &str| Revocation {
            issuer: parse("https://issuer"), kind: RevocationKind::Jti, value: value.into(),
            issued_before: super::world::at("2026-11-20T10:00:00Z"), expires_at: super::world::at("2026-11-30T10:00:00Z"),
        };
        admin.add_revocations(&env, &[revocation("a"), revocation("b")], Some("lost")).await.unwrap();
        let tool = (parse("read"), Digest::of(b"1"), "long text".to_owned());
        world.proxy.observe_tools(&env, &parse("files"), &[tool], false).await.unwrap();
        admin.pin_tool(&env, &parse("files"), None, None, "ann").await.unwrap();

        let rows = admin_rows(&world.admin).await;
        let told: Vec<_> = rows.iter().map(|row| (row.reason.as_deref().unwrap(), row.detail.as_deref().unwrap())).collect();
        let expected = [
            ("user enrolled", "alice@example.com: email alice@example.com, kind user, status active"),
            ("granted", "files: scopes read, status verified"),
            ("grant changed", "files: scopes read → read,write"),
            ("revoked", "files: status verified → revoked"),
            ("key made", "key00001 laptop: "),
            ("key revoked", "key00001 laptop"),
            ("user disabled", "alice@example.com: status active → disabled"),
            ("user enabled", "alice@example.com: status disabled → active"),
            ("roles changed", "alice@example.com: roles nothing → reader"),
            ("identity linked", "s of https://issuer"),
            ("identity unlinked", "s of https://issuer"),
            ("server registered", "files: "),
            ("server disabled", "files: enabled true → false"),
            ("tokens revoked", "jti a of https://issuer: "),
            ("tool approved", "files/read: "),
        ];
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.0 == expected.0 && told.1.starts_with(expected.1), "{told:?} is not {expected:?}");
        }
        assert_eq!(rows[13].changes.len(), 2, "one command, one record");
        for row in &rows {
            assert_eq!((row.actor.as_deref(), row.claimed_by.as_deref(), row.unhashed), (Some("ann@desk"), Some("Ann"), false));
        }
        assert_eq!(unhashed(world).await, 0);
        let of_alice = AuditFilter { user: Some("alice@example.com".into()), kind: AuditKind::Admin, ..AuditFilter::new(env.clone()) };
        assert_eq!(world.admin.audit(&of_alice).await.unwrap().len(), 11);
        verify(world).await;
    }

    async fn what_another_program_changes_is_unhashed(world) {
        let alice = world.user("alice@example.com").await;
        for by_hand in [
            "UPDATE schema.users SET status = 'disabled' WHERE email = 'alice@example.com'",
            "INSERT INTO schema.revocations (environment, issuer, kind, value) VALUES ('production', 'i', 'jti', 'v')",
            "INSERT INTO schema.mcp_registry (environment, id, name) VALUES ('production', 'files', 'Files')",
        ] {
            world.by_hand(by_hand).await;
        }
        world.grant(&alice, "files", &["read"]).await;
        let rows = admin_rows(&world.admin).await;
        let told: Vec<_> = rows.iter().map(|row| (row.reason.as_deref().unwrap(), row.unhashed)).collect();
        assert_eq!(told, [
            ("user enrolled", false), ("user disabled", true), ("tokens revoked", true), ("server registered", true), ("granted", false),
        ]);
        let login = if world.is_postgres() { superuser(world).await } else { "embedded".into() };
        assert!(rows[1..4].iter().all(|row| row.actor.as_deref() == Some(login.as_str())), "{rows:?}");
        assert_eq!(rows[1].changes[0].old.as_ref().unwrap()["status"], "active");
        assert_eq!(unhashed(world).await, 3);
        for forged in ["UPDATE schema.recorded_changes SET seq = seq + 100", "DELETE FROM schema.recorded_changes"] {
            let refused = world.try_by_hand(forged).await.unwrap_err();
            assert!(refused.to_string().contains("append-only"), "{refused}");
        }
        verify(world).await;
    }

    async fn a_change_that_was_refused_leaves_no_record(world) {
        let alice = world.user("alice@example.com").await;
        let before = admin_rows(&world.admin).await;
        world.admin.add_key(&env(), &alice, &super::world::key("key00001")).await.unwrap();
        world.admin.add_key(&env(), &alice, &super::world::key("key00001")).await.unwrap_err();
        assert!(!world.admin.revoke_key(&env(), &parse("nosuchkey"), super::world::at("2026-12-01T00:00:00Z")).await.unwrap());
        assert_eq!(admin_rows(&world.admin).await.len(), before.len() + 1);
        verify(world).await;
    }

    // More rows than fit into one record, and a row that does not fit into any.
    async fn a_big_change_is_recorded_whole(world) {
        let definition = || "x".repeat(100);
        let tools: Vec<_> = (0..150).map(|n| (parse(&format!("tool{n:03}")), Digest::of(&[n]), definition())).collect();
        world.proxy.observe_tools(&env(), &parse("files"), &tools, false).await.unwrap();
        world.admin.pin_tool(&env(), &parse("files"), None, None, "ann").await.unwrap();
        let scopes: Vec<String> = (0..1_000).map(|n| format!("scope-number-{n}")).collect();
        let alice = world.user("alice@example.com").await;
        world.grant(&alice, "files", &scopes.iter().map(String::as_str).collect::<Vec<_>>()).await;

        let rows = admin_rows(&world.admin).await;
        let pinned: Vec<_> = rows.iter().filter(|row| row.reason.as_deref() == Some("tool approved")).collect();
        assert!(pinned.len() > 1 && pinned.iter().map(|row| row.changes.len()).sum::<usize>() == 150);
        let granted = rows.last().unwrap();
        let record = &world.admin.audit_bytes(&env(), granted.incarnation, granted.seq, 1).await.unwrap()[0];
        let record: Value = serde_json::from_slice(&record.bytes).unwrap();
        assert_eq!(record["event"]["changes"][0].get("new"), None, "its digest stands for it");
        let shown = granted.changes[0].new.as_ref().unwrap()["scopes"].as_array().unwrap().len();
        assert_eq!((granted.reason.as_deref(), shown), (Some("granted"), 1_000), "shown as the trigger's row has it");
        assert_eq!(unhashed(world).await, 0);
        verify(world).await;
    }

    async fn commands_at_once_write_one_chain(world) {
        let alice = world.user("alice@example.com").await;
        let grants = (0..12).map(|n| {
            let (admin, alice) = (world.admin.clone(), alice.clone());
            tokio::spawn(async move {
                let grant = neural_guardian::store::NewGrant {
                    user: alice, server: parse(&format!("server{n}")), client: None, scopes: [parse("x")].into_iter().collect(),
                    expires_at: None, idle: false,
                };
                admin.add_grant(&env(), &grant).await.unwrap();
            })
        });
        for grant in grants.collect::<Vec<_>>() {
            grant.await.unwrap();
        }
        assert_eq!(verify(world).await, 13);
        assert_eq!(unhashed(world).await, 0);
    }

    async fn what_an_instance_does_is_covered_by_its_journal(world) {
        let (member, changes) = world.proxy
            .enrol(&env(), &parse("https://issuer"), &parse("new"), None, &[], PrincipalKind::User).await.unwrap();
        let [change] = &changes[..] else { panic!("one record: {changes:?}") };
        assert_eq!((change.action.as_str(), change.actor.clone()), ("user enrolled, identity linked", Some(actor("guardian"))));
        assert_eq!(unhashed(world).await, 2);
        world.by_hand("UPDATE schema.users SET status = 'disabled'").await;
        let by_hand = admin_rows(&world.admin).await.pop().unwrap();

        // a record that says other than what the row says, and one that names a change of somebody else
        let journal = super::audit::Journal::new();
        let mut false_digest = change.clone();
        false_digest.changes[0].row = Digest::of(b"x");
        false_digest.changes.truncate(1);
        let mut of_others = change.clone();
        of_others.changes.truncate(1);
        of_others.changes[0].seq = by_hand.seq;
        world.proxy.ship(&[journal.seal(0, Event::Admin(false_digest)), journal.seal(1, Event::Admin(of_others))]).await.unwrap();
        assert_eq!(unhashed(world).await, 3);

        world.proxy.ship(&[journal.seal(2, Event::Admin(change.clone()))]).await.unwrap();
        assert_eq!(unhashed(world).await, 1);
        let rows = admin_rows(&world.admin).await;
        let told = rows.iter().find(|row| row.reason.as_deref() == Some("user enrolled, identity linked") && row.seq == 2).unwrap();
        assert_eq!((told.user.as_ref(), told.changes.len()), (Some(&member.id), 2));
        assert!(rows.iter().any(|row| row.reason.as_deref() == Some("user disabled") && row.unhashed));
    }
}

/// A change made with the proxy's login by hand: only rows of the same login can be covered by what it ships.
#[tokio::test]
async fn the_proxy_cannot_cover_what_an_administrator_did_by_hand() {
    let world = World::postgres().await;
    let alice = world.user("alice@example.com").await;
    let Place::Postgres(server) = &world.place else {
        unreachable!("a Postgres world")
    };
    raw_postgres(&server.admin.url, "UPDATE guardian.users SET status = 'disabled'")
        .await
        .unwrap();
    let by_hand = admin_rows(&world.admin).await.pop().unwrap();
    let mut text = String::new();
    let sql = "SELECT guardian.own_row_text(a) FROM guardian.audit_trail a WHERE bytes IS NULL ORDER BY seq DESC LIMIT 1";
    let mut connection = server.database.connect().await;
    text.push_str(&sqlx::query_scalar::<_, String>(sql).fetch_one(&mut connection).await.unwrap());
    let action = AdminAction {
        changes: vec![RecordedChange {
            seq: by_hand.seq,
            row: Digest::of(text.as_bytes()),
            change: "user disabled".into(),
            of: "alice".into(),
            old: None,
            new: None,
        }],
        user: Some(alice),
        ..AdminAction::new(
            super::world::at("2026-12-01T00:00:00Z"),
            env(),
            "user disabled",
            String::new(),
        )
    };
    let journal = super::audit::Journal::new();
    world.proxy.ship(&[journal.seal(0, Event::Admin(action))]).await.unwrap();
    assert_eq!(unhashed(&world).await, 1);
}

/// Everything that an administrator's login could try with SQL of its own.
#[tokio::test]
async fn the_administrators_login_cannot_forge_a_record() {
    let world = World::postgres().await;
    world.user("alice@example.com").await;
    let Place::Postgres(server) = &world.place else {
        unreachable!("a Postgres world")
    };
    let login = &server.admin.role;
    raw_postgres(&server.admin.url, "UPDATE guardian.users SET status = 'disabled'")
        .await
        .unwrap();
    let by_hand = admin_rows(&world.admin).await.pop().unwrap();
    let mut connection = server.database.connect().await;
    let sql = "SELECT guardian.own_row_text(a) FROM guardian.audit_trail a WHERE bytes IS NULL ORDER BY seq DESC LIMIT 1";
    let text = sqlx::query_scalar::<_, String>(sql).fetch_one(&mut connection).await.unwrap();
    let row = Digest::of(text.as_bytes());
    // The record is built by the database's own words, so that only one thing is wrong with it each time.
    let append = |seq: &str, prev: &str, environment: &str, login: &str, at: &str, changes: &str| {
        format!(
            "DO $$ DECLARE c record; BEGIN SELECT * INTO c FROM guardian.lock_change_chain('production');
             PERFORM guardian.append_change('production', convert_to(format(
               '{{\"v\":2,\"incarnation\":\"%s\",\"seq\":%s,\"prev\":\"%s\",\"event\":{{\"kind\":\"admin\",\"at\":%s,\"environment\":\"{environment}\",\"action\":\"x\",\"detail\":\"\",\"actor\":{{\"user\":\"ann\",\"uid\":1,\"host\":\"desk\"}},\"login\":\"{login}\",\"changes\":[{changes}]}}}}',
               encode(c.incarnation, 'hex'), {seq}, {prev}, {at}), 'UTF8')); END $$"
        )
    };
    let (seq, prev, now) = ("c.next", "encode(c.head, 'hex')", "c.at");
    let earlier = format!("{{\"seq\":{},\"row\":\"{row}\",\"change\":\"x\",\"of\":\"\"}}", by_hand.seq);
    for (why, refused) in [
        (
            "another place in the chain",
            append("c.next + 1", prev, "production", login, now, ""),
        ),
        (
            "another head",
            append(seq, "encode(sha256(c.head), 'hex')", "production", login, now, ""),
        ),
        ("another environment", append(seq, prev, "development", login, now, "")),
        ("another login", append(seq, prev, "production", "postgres", now, "")),
        (
            "another time",
            append(seq, prev, "production", login, "c.at - 3600000000", ""),
        ),
        (
            "a row of an earlier transaction",
            append(seq, prev, "production", login, now, &earlier),
        ),
        ("no row at all", append(seq, prev, "production", login, now, "")),
        (
            "a time to come",
            append(seq, prev, "production", login, "c.at + 120000000", ""),
        ),
        (
            "a chain of another environment",
            "SELECT guardian.lock_change_chain('development')".to_owned(),
        ),
        ("the proxy's function", "SELECT guardian.cover_changes('x', 0)".to_owned()),
        (
            "the table of the chain",
            "UPDATE guardian.change_chain SET next = 0".to_owned(),
        ),
        (
            "the table of rows",
            "UPDATE guardian.recorded_changes SET record = 0, incarnation = 'x'".to_owned(),
        ),
        (
            "the trail",
            "INSERT INTO guardian.audit_trail (incarnation) VALUES ('x')".to_owned(),
        ),
    ] {
        let error = raw_postgres(&server.admin.url, &refused).await.expect_err(why);
        let code = error
            .as_database_error()
            .and_then(|error| error.code())
            .expect("an SQLSTATE")
            .into_owned();
        assert_eq!(code, "42501", "{why}: {error}");
    }
    for function in ["lock_change_chain('production')", "append_change('production', 'x')"] {
        let error = raw_postgres(&server.proxy.url, &format!("SELECT guardian.{function}"))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("permission denied for function"), "{error}");
    }
    assert_eq!(unhashed(&world).await, 1);
    // who owns the schema may record a migration, and nothing else that leaves no row
    let owner = superuser(&world).await;
    let empty = append(seq, prev, "production", &owner, now, "");
    raw_postgres(&server.database.url(), &empty).await.unwrap_err();
    let migrated = empty.replace("\"action\":\"x\"", "\"action\":\"schema migrated\"");
    raw_postgres(&server.database.url(), &migrated).await.unwrap();
    verify(&world).await;
}

/// An administrator's login changes a row by hand and covers it itself, in one transaction. Returns what the database says.
async fn cover_by_hand(world: &World, event: &str, change: &str, tail: &str) -> Result<u64, sqlx::Error> {
    let Place::Postgres(server) = &world.place else {
        unreachable!("a Postgres world")
    };
    let sql = format!(
        "DO $$ DECLARE c record; o record; BEGIN
           UPDATE guardian.users SET status = CASE status WHEN 'active' THEN 'disabled' ELSE 'active' END
            WHERE environment = 'production' AND email = 'alice@example.com';
           SELECT * INTO o FROM guardian.own_changes('production');
           SELECT * INTO c FROM guardian.lock_change_chain('production');
           PERFORM guardian.append_change('production', convert_to(
             format('{{\"v\":2,\"incarnation\":\"%s\",\"seq\":%s,\"prev\":\"%s\",\"event\":', encode(c.incarnation, 'hex'), c.next,
                    encode(c.head, 'hex'))
             || format('{event}', c.at, session_user, o.user_ref, format('{change}', o.seq,
                  encode(sha256(convert_to(o.row_text, 'UTF8')), 'hex'), o.change::jsonb -> 'old', o.change::jsonb -> 'new'))
             || {tail}, 'UTF8'));
         END $$"
    );
    raw_postgres(&server.admin.url, &sql).await
}

/// What it may say of a change is what the trigger says; the words are not believed, and the row's own are shown.
#[tokio::test]
async fn an_administrators_login_that_covers_its_own_change_by_hand_hides_nothing() {
    const EVENT: &str = r#"{"kind":"admin","at":%s,"environment":"production","action":"granted","detail":"lie","actor":{"user":"eve","uid":1,"host":"h"},"login":"%s","user":"%s","changes":[%s]}"#;
    const CHANGE: &str = r#"{"seq":%1$s,"row":"%2$s","change":"granted","of":"lie","old":%3$s,"new":%4$s}"#;
    let world = World::postgres().await;
    world.user("alice@example.com").await;
    let end = "'}'";
    for (why, event, change, tail) in [
        (
            "no values",
            EVENT.into(),
            CHANGE.replace(r#","old":%3$s,"new":%4$s"#, ""),
            end,
        ),
        ("one value", EVENT.into(), CHANGE.replace(r#","old":%3$s"#, ""), end),
        ("other values", EVENT.into(), CHANGE.replace("%4$s", "%3$s"), end),
        (
            "another user",
            EVENT
                .replace(r#""user":"%s""#, r#""user":"00000000-0000-0000-0000-000000000001""#)
                .replace("[%s]", "[%4$s]")
                .replace("%s", "%%")
                .replacen("%%", "%1$s", 1)
                .replacen("%%", "%2$s", 1),
            CHANGE.into(),
            end,
        ),
        (
            "a server",
            EVENT.replace(r#""changes""#, r#""server":"files","changes""#),
            CHANGE.into(),
            end,
        ),
        (
            "a second event",
            EVENT.into(),
            CHANGE.into(),
            r#"',"event":{"kind":"admin"}}'"#,
        ),
        ("a member besides", EVENT.into(), CHANGE.into(), r#"',"x":1}'"#),
        ("a newline after it", EVENT.into(), CHANGE.into(), "E'}\n'"),
        (
            "two details",
            EVENT.replace(r#""detail""#, r#""detail":"","detail""#),
            CHANGE.into(),
            end,
        ),
        (
            "two words",
            EVENT.into(),
            CHANGE.replace(r#""of""#, r#""of":"","o\u0066""#),
            end,
        ),
        (
            "no actor",
            EVENT.replace(r#""actor":{"user":"eve","uid":1,"host":"h"},"#, ""),
            CHANGE.into(),
            end,
        ),
        (
            "an actor without a number",
            EVENT.replace(r#""uid":1"#, r#""uid":"1""#),
            CHANGE.into(),
            end,
        ),
        (
            "an action that is no text",
            EVENT.replace(r#""granted""#, "1"),
            CHANGE.into(),
            end,
        ),
        (
            "a time that is a text",
            EVENT.replace(r#""at":%s"#, r#""at":"%s""#),
            CHANGE.into(),
            end,
        ),
    ] {
        let error = cover_by_hand(&world, &event, &change, tail).await.expect_err(why);
        let code = error
            .as_database_error()
            .and_then(|error| error.code())
            .map(|code| code.into_owned());
        assert_eq!(code.as_deref(), Some("42501"), "{why}: {error}");
    }
    let before = admin_rows(&world.admin).await;
    cover_by_hand(&world, EVENT, CHANGE, end).await.unwrap();
    let rows = admin_rows(&world.admin).await;
    let told = rows.last().unwrap();
    assert_eq!(
        (rows.len(), told.reason.as_deref()),
        (before.len() + 1, Some("user disabled"))
    );
    assert_eq!(told.detail.as_deref(), Some("alice@example.com: status active → disabled"));
    assert_eq!(
        (told.actor.as_deref(), &*told.changes[0].change, &*told.changes[0].of),
        (Some("eve@h"), "user disabled", "alice@example.com")
    );
    assert_eq!(unhashed(&world).await, 0);
    verify(&world).await;
}

/// Who ships records can add none to the chain of changes, nor learn where it is.
#[tokio::test]
async fn the_proxys_login_adds_no_row_to_the_chain_of_changes() {
    let world = World::postgres().await;
    world.user("alice@example.com").await;
    let Place::Postgres(server) = &world.place else {
        unreachable!("a Postgres world")
    };
    let chain = admin_rows(&world.admin).await.pop().unwrap();
    let insert = |incarnation: &str| {
        format!(
            "INSERT INTO guardian.audit_trail (incarnation, seq, occurred_at, environment, kind, bytes, leaf, head)
             VALUES ('\\x{incarnation}', 900, now(), 'production', 'admin', 'x', sha256('x'), sha256('x'))"
        )
    };
    let error = raw_postgres(&server.proxy.url, &insert(&chain.incarnation.to_string()))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("row-level security"), "{error}");
    raw_postgres(&server.proxy.url, &insert(&"ab".repeat(16))).await.unwrap();
    for table in ["recorded_changes", "change_chain"] {
        let error = raw_postgres(&server.proxy.url, &format!("SELECT incarnation FROM guardian.{table}"))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("permission denied"), "{error}");
    }
    assert_eq!(world.proxy.unhashed_changes(&env()).await.unwrap(), 0);
}

/// A row that own_changes would miss for its time is an error, not a change without a record.
#[tokio::test]
async fn a_clock_that_is_set_back_hides_no_change() {
    let world = World::postgres().await;
    let alice = world.user("alice@example.com").await;
    for (back, is_recorded) in [("1 minute", true), ("1 hour", false)] {
        world
            .by_hand(&format!(
                "CREATE OR REPLACE FUNCTION schema.set_back() RETURNS trigger LANGUAGE plpgsql AS $$
                 BEGIN NEW.occurred_at := now() - interval '{back}'; RETURN NEW; END $$;
                 CREATE OR REPLACE TRIGGER a_set_back BEFORE INSERT ON schema.audit_trail FOR EACH ROW
                 WHEN (NEW.bytes IS NULL) EXECUTE FUNCTION schema.set_back()"
            ))
            .await;
        let status = if is_recorded {
            MemberStatus::Disabled
        } else {
            MemberStatus::Active
        };
        let changed = world.admin.set_user_status(&env(), &alice, status).await;
        assert_eq!(changed.is_ok(), is_recorded, "{changed:?}");
        assert_eq!(unhashed(&world).await, 0);
    }
}

/// A store handle that names nobody changes nothing.
#[tokio::test]
async fn a_change_without_an_author_is_refused() {
    let world = World::sqlite().await;
    let user = super::users::new_user("a@example.com");
    let error = world.proxy.add_user(&env(), &user).await.unwrap_err();
    assert_eq!(error.to_string(), "this handle of the store names nobody who makes changes");
}

#[tokio::test]
async fn a_table_that_is_emptied_and_a_login_that_is_bound_are_on_record() {
    let world = World::postgres().await;
    world.user("alice@example.com").await;
    world
        .by_hand("TRUNCATE schema.revocations; INSERT INTO schema.role_bindings VALUES ('somebody', '*')")
        .await;
    world
        .by_hand(
            "ALTER TABLE schema.revocations DISABLE TRIGGER own_record; ALTER TABLE schema.users DISABLE TRIGGER own_record_t",
        )
        .await;
    let rows = admin_rows(&world.admin).await;
    let told: Vec<_> = rows[rows.len() - 2..]
        .iter()
        .map(|row| (row.reason.as_deref().unwrap(), row.unhashed))
        .collect();
    assert_eq!(told, [("table emptied", true), ("login bound", true)]);
    let emptied = 1;
    assert_eq!(unhashed(&world).await, emptied, "logins are bound by hand as the manual says");
    let mut problems = world.proxy.self_check(&env()).await.unwrap();
    problems.sort();
    assert_eq!(
        problems,
        [
            "changes of revocations are not recorded: trigger own_record is missing or disabled",
            "changes of users are not recorded: trigger own_record_t is missing or disabled",
        ]
    );
}

/// Rows that the triggers of earlier versions wrote are no finding; what comes after the migration is.
#[tokio::test]
async fn a_store_of_an_earlier_version_keeps_its_rows_and_reports_none_of_them() {
    const SQLITE: &[&str] = &[
        include_str!("../../../src/store/sqlite/0001_guardian.sql"),
        include_str!("../../../src/store/sqlite/0002_server_failures.sql"),
        include_str!("../../../src/store/sqlite/0003_audit_records.sql"),
    ];
    const POSTGRES: &[&str] = &[
        include_str!("../../../src/store/postgres/0001_guardian.sql"),
        include_str!("../../../src/store/postgres/0002_feed_state.sql"),
        include_str!("../../../src/store/postgres/0003_server_failures.sql"),
        include_str!("../../../src/store/postgres/0004_audit_partitions.sql"),
        include_str!("../../../src/store/postgres/0005_audit_records.sql"),
    ];
    let folder = Folder::new();
    let create = StoreOpen::Sqlite {
        file: folder.file(),
        create: true,
    };
    Store::open(&create).await.unwrap().close().await;
    let database = Database::new().await;
    let by_hand = async |is_postgres: bool, sql: &str| match is_postgres {
        true => drop(
            raw_postgres(&database.url(), &sql.replace("schema.", "guardian."))
                .await
                .unwrap(),
        ),
        false => drop(raw_sqlite(&folder.file(), &sql.replace("schema.", "")).await.unwrap()),
    };
    by_hand(true, "CREATE SCHEMA guardian").await;
    for (is_postgres, steps, bytes) in [(true, POSTGRES, "bytea"), (false, SQLITE, "BLOB")] {
        by_hand(
            is_postgres,
            &format!(
                "CREATE TABLE schema.migrations (version bigint PRIMARY KEY, description text NOT NULL,
            installed_on timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP, success boolean NOT NULL, checksum {bytes} NOT NULL,
            execution_time bigint NOT NULL)"
            ),
        )
        .await;
        for (version, sql) in (1..).zip(steps) {
            let migration = Migration::new(version, "x".into(), MigrationType::Simple, sql.into_sql_str(), false);
            let checksum: String = migration.checksum.iter().map(|byte| format!("{byte:02x}")).collect();
            let checksum = if is_postgres {
                format!("'\\x{checksum}'")
            } else {
                format!("x'{checksum}'")
            };
            by_hand(is_postgres, &format!("BEGIN; {sql}; COMMIT")).await;
            by_hand(
                is_postgres,
                &format!(
                    "INSERT INTO schema.migrations (version, description, success, checksum, execution_time)
                VALUES ({version}, 'x', true, {checksum}, 0)"
                ),
            )
            .await;
        }
        let insert =
            "INSERT INTO schema.users (environment, id, email) VALUES ('production', '00000000-0000-0000-0000-00000000000";
        by_hand(is_postgres, &format!("{insert}1', 'before@example.com')")).await;
        by_hand(is_postgres, "UPDATE schema.users SET status = 'disabled'").await;
        let open = if is_postgres {
            postgres_at(&database.url())
        } else {
            create.clone()
        };
        let store = Store::open(&open).await.unwrap().authored(author());
        store.migrate(&mut |_| ()).await.unwrap();
        by_hand(is_postgres, &format!("{insert}2', 'after@example.com')")).await;
        store
            .add_user(&env(), &super::users::new_user("hashed@example.com"))
            .await
            .unwrap();
        let rows = admin_rows(&store).await;
        let told: Vec<_> = rows
            .iter()
            .map(|row| (row.reason.as_deref().unwrap(), row.email.as_deref(), row.unhashed))
            .collect();
        let (before, after) = (Some("before@example.com"), Some("after@example.com"));
        assert_eq!(
            told,
            [
                ("user enrolled", before, false),
                ("user disabled", before, false),
                ("user enrolled", after, true),
                ("user enrolled", Some("hashed@example.com"), false),
            ]
        );
        assert_eq!(store.unhashed_changes(&env()).await.unwrap(), 1);
    }
}

async fn admin_rows(store: &Store) -> Vec<AuditRow> {
    let filter = AuditFilter {
        kind: AuditKind::Admin,
        ascending: true,
        limit: 10_000,
        ..AuditFilter::new(env())
    };
    let mut rows = store.audit(&filter).await.unwrap();
    rows.retain(|row| !row.detail.as_ref().is_some_and(|detail| detail.starts_with("login_")));
    rows
}

async fn unhashed(world: &World) -> u64 {
    world.admin.unhashed_changes(&env()).await.unwrap()
}

async fn superuser(world: &World) -> String {
    let Place::Postgres(server) = &world.place else {
        unreachable!("a Postgres world")
    };
    let mut connection = server.database.connect().await;
    sqlx::query_scalar("SELECT session_user::text")
        .fetch_one(&mut connection)
        .await
        .unwrap()
}

/// Reads the chain of changes without Guardian's code: place, hashes, and each covered row. Returns how many records it has.
async fn verify(world: &World) -> usize {
    let spans = world.admin.audit_incarnations(&env()).await.unwrap();
    let mut records = 0;
    for span in spans {
        let stored = world.admin.audit_bytes(&env(), span.incarnation, 0, 10_000).await.unwrap();
        let mut head = [0_u8; 32];
        for (seq, record) in stored.iter().enumerate() {
            let json: Value = serde_json::from_slice(&record.bytes).unwrap();
            assert_eq!((&json["v"], &json["seq"], record.seq), (&2.into(), &seq.into(), seq as u64));
            assert_eq!(json["incarnation"], span.incarnation.to_string());
            assert_eq!(json["prev"], Digest::from_bytes(head).to_string());
            let leaf = Digest::of(&[&[0][..], &record.bytes[..]].concat());
            let next = Digest::of(&[&[2][..], &head[..], &leaf.as_bytes()[..]].concat());
            assert_eq!((record.leaf, record.head), (leaf, next));
            assert!(record.bytes.len() <= 16_384);
            head = *next.as_bytes();
        }
        records += stored.len();
    }
    records
}
