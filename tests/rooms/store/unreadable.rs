//! A row that cannot be read is disabled by itself and named: it grants nothing, what it takes away stays away, and whoever
//! else is in the store is served.

use super::world::{World, at, env, key, on_both, parse};
use neural_guardian::domain::*;
use neural_guardian::store::{CatchUp, Delta, Directory, RegistryRow, StoreError, UnreadableRow};

on_both! {
    async fn a_mapped_grant_that_cannot_be_read_is_no_grant_and_stops_nobody(world) {
        let (ann, bob) = (world.user("ann@example.com").await, world.user("bob@example.com").await);
        map_grants(world).await;
        theirs(world, &ann, "files", &[]).await;
        let bad: &[(&str, &str, &str)] = match world.is_postgres() {
            true => &[
                ("server_name", "NULL", "is NULL"),
                ("server_name", "'No Name'", "holds no name"),
                ("client_id", "'a client'", "holds no name"),
                ("status", "NULL", "is NULL"),
                ("scopes", "NULL", "is NULL"),
                ("scopes", "'null'", "is not a list of strings"),
                ("scopes", "'\"read\"'", "is not a list of strings"),
                ("scopes", "'{}'", "is not a list of strings"),
                ("scopes", "'[\"read\", 5]'", "is not a list of strings"),
                ("scopes", "'[\"read\", \"read file\"]'", "holds no name"),
                ("grant_ref", "NULL", "is NULL"),
                ("row_version", "NULL", "is NULL"),
            ],
            false => &[
                ("server_name", "NULL", "is NULL"),
                ("server_name", "7", "has another type"),
                ("client_id", "CAST(x'ff' AS TEXT)", "has another type"),
                ("status", "NULL", "is NULL"),
                ("scopes", "NULL", "is NULL"),
                ("scopes", "'read'", "is not a list of strings"),
                ("scopes", "'[\"read\"'", "is not a list of strings"),
                ("scopes", "CAST(x'ff' AS TEXT)", "has another type"),
                ("scopes", "5", "has another type"),
                // must not become "never"
                ("expires_at", "'2027-01-01'", "has another type"),
                ("expires_at", "1.5", "has another type"),
                ("grant_ref", "NULL", "is NULL"),
                ("row_version", "'1'", "has another type"),
                ("row_version", "NULL", "is NULL"),
            ],
        };
        for (column, value, why) in bad {
            world.by_hand(&format!("DELETE FROM schema.theirs WHERE user_ref = '{bob}'")).await;
            theirs(world, &bob, "files", &[]).await;
            theirs(world, &bob, "mail", &[(column, value)]).await;
            let directory = directory(world).await;
            assert_eq!(servers(&directory, &ann), ["files"], "{column} = {value}");
            assert_eq!(servers(&directory, &bob), ["files"], "{column} = {value}");
            let [row] = &directory.unreadable[..] else { panic!("{column} = {value}: {:?}", directory.unreadable) };
            assert_eq!((row.table, row.column, row.user.as_deref()), ("grants", *column, Some(bob.as_str())), "{value}");
            assert!(row.why.starts_with(why), "{column} = {value}: {row}");
            assert!(row.row.starts_with(&format!("user_ref {bob}")), "{row}");
        }
        // of nobody
        world.by_hand(&format!("DELETE FROM schema.theirs WHERE user_ref = '{bob}'")).await;
        theirs(world, &bob, "mail", &[("user_ref", "NULL")]).await;
        let directory = directory(world).await;
        assert_eq!((servers(&directory, &ann), servers(&directory, &bob).len()), (vec!["files".to_owned()], 0));
        assert_eq!(directory.unreadable.iter().map(|row| (row.column, row.user.is_some())).collect::<Vec<_>>(), [("user_ref", false)]);
    }

    async fn a_grant_for_one_client_that_cannot_be_read_still_goes_before_the_one_for_any(world) {
        let ann = world.user("ann@example.com").await;
        map_grants(world).await;
        theirs(world, &ann, "files", &[]).await;
        theirs(world, &ann, "files", &[("client_id", "'cursor'"), ("scopes", "NULL")]).await;
        let directory = directory(world).await;
        let grants = &directory.members[0].grants;
        let told: Vec<_> = grants.iter().map(|grant| (grant.client.as_ref().map(|client| client.to_string()), grant.status)).collect();
        assert_eq!(told, [(None, GrantStatus::Verified), (Some("cursor".into()), GrantStatus::Unreadable)]);
        assert!(grants[1].scopes.is_empty());
        assert_eq!(directory.unreadable.len(), 1);
    }

    async fn what_cannot_be_read_and_is_put_right_comes_by_the_feed(world) {
        let (ann, bob) = (world.user("ann@example.com").await, world.user("bob@example.com").await);
        for user in [&ann, &bob] {
            world.grant(user, "files", &["read"]).await;
        }
        // as a view that takes these scopes for none
        let view = "SELECT environment, user_id AS user_ref, server_name, client_id, status,
            CASE WHEN scopes = '[\"broken\"]' THEN NULL ELSE scopes END AS scopes, expires_at, id AS grant_ref, row_version FROM schema.mcp_authorizations";
        world.by_hand(&match world.is_postgres() {
            true => format!("CREATE OR REPLACE VIEW schema.grants WITH (security_invoker = true) AS {view}"),
            false => format!("DROP VIEW grants; CREATE VIEW grants AS {view}"),
        }).await;
        let anchor = directory(world).await.anchor;
        world.grant(&bob, "files", &["broken"]).await;
        let delta = since(world, &anchor).await;
        assert_eq!(delta.members[0].1.as_ref().unwrap().grants, []);
        let row = &delta.unreadable[0];
        assert_eq!((row.table, row.column, row.why.as_str()), ("grants", "scopes", "is NULL"));
        assert!(row.to_string().starts_with(&format!("a row of `grants` cannot be read (user_ref {bob}, grant_ref ")), "{row}");
        world.grant(&bob, "files", &["read"]).await;
        let delta = since(world, &delta.anchor).await;
        assert_eq!((delta.members[0].1.as_ref().unwrap().grants.len(), delta.unreadable), (1, vec![]));
        let again = world.proxy.members(&env(), &[ann.clone(), parse("nobody")], &delta.anchor).await.unwrap();
        assert!(again.members.iter().any(|(id, member)| *id == ann && member.is_some()), "{again:?}");
    }

    async fn a_user_who_cannot_be_read_is_not_enrolled_and_keeps_nobody_out(world) {
        let ann = world.user("ann@example.com").await;
        loosen(world).await;
        let bad: &[(&str, &str)] = match world.is_postgres() {
            // without a role, somebody could be spared what is forbidden to it
            true => &[("kind", "'robot'"), ("kind", "NULL"), ("roles", "ARRAY['reader', NULL]"), ("roles", "ARRAY['']"), ("roles", "NULL"), ("status", "NULL")],
            false => &[
                ("kind", "'robot'"), ("kind", "CAST(x'ff' AS TEXT)"), ("roles", "'[\"reader\", 5]'"), ("roles", "'[\"\"]'"), ("roles", "'{}'"),
                ("roles", "'[[\"reader\"]]'"), ("status", "CAST(x'ff' AS TEXT)"), ("email", "CAST(x'ff' AS TEXT)"), ("display_name", "CAST(x'ff' AS TEXT)"),
            ],
        };
        for (n, (column, value)) in bad.iter().enumerate() {
            let bob = world.user(&format!("{n}@example.com")).await;
            world.admin.link_identity(&env(), &bob, &parse("https://issuer"), &parse(&format!("bob{n}"))).await.unwrap();
            let anchor = directory(world).await.anchor;
            unchecked(world, &format!("UPDATE schema.users SET {column} = {value} WHERE id = '{bob}'")).await;
            let delta = since(world, &anchor).await;
            assert_eq!(delta.members, [(bob.clone(), None)], "{column} = {value}");
            assert_eq!(delta.unreadable.iter().map(of).collect::<Vec<_>>(), [("users", *column, Some(bob.as_str()))], "{value}");
        }
        let directory = directory(world).await;
        assert_eq!(directory.members.iter().map(|member| &member.id).collect::<Vec<_>>(), [&ann]);
        assert_eq!(directory.unreadable.len(), bad.len(), "what hangs on them is not told too");
        assert_eq!(world.admin.list_users(&env()).await.unwrap().len(), 1);
    }

    async fn a_key_or_an_identity_that_cannot_be_read_is_none(world) {
        let ann = world.user("ann@example.com").await;
        loosen(world).await;
        let keys: &[(&str, &str)] = match world.is_postgres() {
            true => &[("key_hash", "'\\x00'"), ("key_hash", "NULL"), ("pepper_version", "NULL"), ("scopes", "'[5]'"), ("scopes", "NULL"), ("created_at", "NULL"), ("name", "NULL")],
            false => &[("key_hash", "x'00'"), ("pepper_version", "3000000000"), ("scopes", "'[5]'"), ("scopes", "'[\"read file\"]'"), ("name", "CAST(x'ff' AS TEXT)")],
        };
        for (n, (column, value)) in keys.iter().enumerate() {
            let id = format!("key0000{n}");
            world.admin.add_key(&env(), &ann, &key(&id)).await.unwrap();
            unchecked(world, &format!("UPDATE schema.api_keys SET {column} = {value} WHERE key_id = '{id}'")).await;
            let told = directory(world).await.unreadable;
            assert_eq!(of(&told[n]), ("api_keys", *column, Some(ann.as_str())), "{value}");
            assert!(told[n].row.ends_with(&format!("key_id {id}")), "{}", told[n]);
        }
        world.admin.add_key(&env(), &ann, &key("key0000x")).await.unwrap();
        world.admin.link_identity(&env(), &ann, &parse("https://issuer"), &parse("ann")).await.unwrap();
        let link = |issuer: &str, subject: &str| format!(
            "INSERT INTO schema.user_identities (environment, user_id, issuer, subject) VALUES ('production', '{ann}', '{issuer}', '{subject}')"
        );
        world.by_hand(&link("an issuer", "a")).await;
        world.by_hand(&link("https://issuer", "")).await;
        let directory = directory(world).await;
        let member = &directory.members[0];
        assert_eq!(member.keys.iter().map(|key| key.id.as_str()).collect::<Vec<_>>(), ["key0000x"]);
        assert_eq!(member.identities, [(parse("https://issuer"), parse("ann"))]);
        let identities: Vec<_> = directory.unreadable.iter().filter(|row| row.table == "user_identities").map(of).collect();
        assert_eq!(identities, [("user_identities", "issuer", Some(ann.as_str())), ("user_identities", "subject", Some(ann.as_str()))]);
        assert_eq!(world.sees(&ann).await, *member);
    }

    async fn of_a_revocation_that_cannot_be_read_everything_it_may_mean_is_in_force(world) {
        loosen(world).await;
        let row = |issuer: &str, kind: &str, value: &str, before: &str, until: &str| format!(
            "INSERT INTO schema.revocations (environment, issuer, kind, value, issued_before, expires_at)
             VALUES ('production', {issuer}, {kind}, {value}, {before}, {until})"
        );
        let (before, until, broken) = match world.is_postgres() {
            true => ("'2026-11-20T11:00:00Z'", "'2026-11-22T00:00:00Z'", "NULL"),
            false => ("1795172400000000", "1795305600000000", "CAST(x'ff' AS TEXT)"),
        };
        let good = row("'https://issuer'", "'session'", "'s1'", before, until);
        world.by_hand(&good).await;
        let mut written = vec![
            ("issuer", row("'an issuer'", "'session'", "'s2'", before, until)),
            ("issuer", row(broken, "'session'", "'s3'", before, until)),
            ("kind", row("'https://issuer'", "'sesion'", "'s4'", before, until)),
            ("value", row("'https://issuer'", "'session'", broken, before, until)),
            ("issuer", row(broken, "'session'", broken, before, until)),
        ];
        if world.is_postgres() {
            written.push(("issued_before", row("'https://issuer'", "'session'", "'s6'", "NULL", until)));
            written.push(("expires_at", row("'https://issuer'", "'session'", "'s7'", before, "NULL")));
        }
        let whole = PartialRevocation {
            issuer: Some(parse("https://issuer")),
            kind: Some(RevocationKind::Session),
            value: None,
            issued_before: at("2026-11-20T11:00:00Z"),
            expires_at: at("2026-11-22T00:00:00Z"),
        };
        let value = |value: &str| PartialRevocation { value: Some(value.into()), ..whole.clone() };
        let far = Timestamp::from_micros(i64::MAX);
        let mut wanted = vec![
            PartialRevocation { issuer: None, ..value("s2") },
            PartialRevocation { issuer: None, ..value("s3") },
            PartialRevocation { kind: None, ..value("s4") },
            whole.clone(),
        ];
        if world.is_postgres() {
            wanted.push(PartialRevocation { issued_before: far, ..value("s6") });
            wanted.push(PartialRevocation { expires_at: far, ..value("s7") });
        }
        for (_, sql) in &written {
            unchecked(world, sql).await;
        }
        let directory = directory(world).await;
        assert_eq!(directory.revocations.whole.len(), 1);
        let partial = &directory.revocations.partial;
        assert!(wanted.iter().all(|row| partial.contains(row)) && partial.len() == wanted.len(), "{partial:#?}");
        let mut told: Vec<_> = directory.unreadable.iter().map(|row| (row.table, row.column)).collect();
        let mut expected: Vec<_> = written.iter().map(|(column, _)| ("revocations", *column)).collect();
        told.sort();
        expected.sort();
        assert_eq!(told, expected);
    }

    async fn a_server_of_which_the_row_cannot_be_read_is_disabled(world) {
        loosen(world).await;
        let bad: &[(&str, &str)] = match world.is_postgres() {
            true => &[("enabled", "NULL"), ("name", "NULL"), ("type", "NULL"), ("tool_scopes", "NULL"), ("tool_scopes", "'{\"send\": [5]}'"), ("tool_scopes", "'[]'")],
            false => &[("name", "CAST(x'ff' AS TEXT)"), ("url", "CAST(x'ff' AS TEXT)"), ("tool_scopes", "'{\"send\": [5]}'"), ("tool_scopes", "'{\"send\": \"a\"}'")],
        };
        world.admin.put_server(&env(), &server("files")).await.unwrap();
        world.by_hand("INSERT INTO schema.mcp_registry (environment, id, name) VALUES ('production', 'No Name', '')").await;
        for (n, (column, value)) in bad.iter().enumerate() {
            let name = format!("mail{n}");
            world.admin.put_server(&env(), &server(&name)).await.unwrap();
            unchecked(world, &format!("UPDATE schema.mcp_registry SET {column} = {value} WHERE id = '{name}'")).await;
            let directory = directory(world).await;
            let enabled: Vec<_> = directory.registry.iter().filter(|row| row.enabled).map(|row| row.server.to_string()).collect();
            assert_eq!((enabled, directory.registry.len()), (vec!["files".to_owned()], n + 2), "{column} = {value}");
            let told = &directory.unreadable;
            assert!(told.iter().any(|row| (row.table, row.column, row.row.as_str()) == ("mcp_registry", column, &format!("id {name}"))), "{told:?}");
            assert_eq!(told.len(), n + 2);
            // what cannot be read of it would be lost
            let error = world.admin.server(&env(), &parse(&name)).await.unwrap_err();
            assert!(matches!(&error, StoreError::Invalid(text) if text.contains("put it right in the database first")), "{error}");
        }
        assert_eq!(world.admin.server(&env(), &parse("files")).await.unwrap(), Some(server("files")));
        assert_eq!(world.admin.server(&env(), &parse("other")).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_time_that_is_too_far_for_our_numbers_stops_nobody() {
    let world = &World::postgres().await;
    let user = world.user("alice@example.com").await;
    world.grant(&user, "files", &["read"]).await;
    world
        .by_hand("UPDATE schema.mcp_authorizations SET expires_at = '294276-12-31 23:59:59+00'")
        .await;
    let far = Some(Timestamp::from_micros(i64::MAX));
    assert_eq!(world.sees(&user).await.grants[0].expires_at, far);
    assert_eq!(directory(world).await.unreadable, []);
}

/// What a table of the operator's calls a user is any text; the feed tells it as it stands there.
#[tokio::test]
async fn a_mapped_user_who_has_no_uuid_keeps_nobody_from_being_followed() {
    let world = &World::postgres().await;
    let ann = world.user("ann@example.com").await;
    let written = ann.to_string().to_uppercase();
    world
        .by_hand(&format!(
            "CREATE TABLE schema.theirs (user_id text, status text);
             GRANT SELECT ON schema.theirs TO PUBLIC;
             SELECT guardian.attach_change_feed('guardian.theirs', 'grant', '=production', 'user_id', '', '');
             INSERT INTO schema.theirs VALUES ('{written}', 'verified'), ('user_2ab', 'verified');
             CREATE OR REPLACE VIEW schema.grants AS
             SELECT 'production' AS environment, CASE WHEN user_id ~ '-' THEN user_id::uuid END AS user_ref, 'files' AS server_name,
               NULL::text AS client_id, status, '[\"read\"]'::jsonb AS scopes, NULL::timestamptz AS expires_at,
               '00000000-0000-0000-0000-000000000001'::uuid AS grant_ref, 1::bigint AS row_version FROM schema.theirs"
        ))
        .await;
    let anchor = directory(world).await.anchor;
    world
        .by_hand(&format!(
            "UPDATE schema.theirs SET status = 'revoked' WHERE user_id = '{written}'"
        ))
        .await;
    let delta = since(world, &anchor).await;
    let ann_now = delta.members.iter().find(|(id, _)| *id == ann).unwrap().1.as_ref();
    assert_eq!(ann_now.unwrap().grants[0].status, GrantStatus::Revoked);

    // The view may translate what is no UUID, so that only a whole reading is sure to see the change.
    world
        .by_hand("UPDATE schema.theirs SET status = 'revoked' WHERE user_id = 'user_2ab'")
        .await;
    let after = world.proxy.catch_up(&env(), &delta.anchor).await.unwrap();
    assert_eq!(after, CatchUp::Reload);
}

fn of(row: &UnreadableRow) -> (&'static str, &'static str, Option<&str>) {
    (row.table, row.column, row.user.as_deref())
}

/// The view over a table of the operator's own that promises nothing.
async fn map_grants(world: &World) {
    let columns = "environment, user_ref, server_name, client_id, status, scopes, expires_at, grant_ref, row_version";
    world
        .by_hand(&match world.is_postgres() {
            true => format!(
                "CREATE TABLE schema.theirs (environment text, user_ref uuid, server_name text, client_id text, status text, scopes jsonb,
                   expires_at timestamptz, grant_ref uuid, row_version bigint);
                 GRANT SELECT ON schema.theirs TO PUBLIC;
                 SELECT guardian.attach_change_feed('guardian.theirs', 'grant', 'environment', 'user_ref', 'server_name', 'grant_ref');
                 CREATE OR REPLACE VIEW schema.grants AS SELECT {columns} FROM schema.theirs"
            ),
            false => format!(
                "CREATE TABLE theirs ({columns}); DROP VIEW grants; CREATE VIEW grants AS SELECT {columns} FROM theirs"
            ),
        })
        .await;
}

/// A row of it, in order but for these columns.
async fn theirs(world: &World, user: &UserId, server: &str, but: &[(&str, &str)]) {
    let values = [
        ("environment", "'production'".to_owned()),
        ("user_ref", format!("'{user}'")),
        ("server_name", format!("'{server}'")),
        ("client_id", "NULL".to_owned()),
        ("status", "'verified'".to_owned()),
        ("scopes", "'[\"read\"]'".to_owned()),
        ("expires_at", "NULL".to_owned()),
        ("grant_ref", format!("'{}'", uuid::Uuid::new_v4())),
        ("row_version", "1".to_owned()),
    ];
    let values = values.map(|(column, value)| {
        let other = but.iter().find(|(name, _)| *name == column);
        other.map_or(value, |(_, value)| (*value).to_owned())
    });
    world
        .by_hand(&format!("INSERT INTO schema.theirs VALUES ({})", values.join(", ")))
        .await;
}

/// Tables that hold what the shipped ones refuse to, as a view in place of one would.
async fn loosen(world: &World) {
    if world.is_postgres() {
        world
            .by_hand(
                "ALTER TABLE guardian.revocations DROP CONSTRAINT revocations_pkey;
                 DO $$ DECLARE t regclass; name text; BEGIN
                   FOREACH t IN ARRAY ARRAY['guardian.users', 'guardian.api_keys', 'guardian.revocations', 'guardian.mcp_registry']::regclass[] LOOP
                     FOR name IN SELECT conname FROM pg_constraint WHERE conrelid = t AND contype = 'c' LOOP
                       EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', t, name);
                     END LOOP;
                     FOR name IN SELECT attname FROM pg_attribute WHERE attrelid = t AND attnum > 0 AND attnotnull
                         AND attname NOT IN ('id', 'environment', 'key_id') LOOP
                       EXECUTE format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', t, name);
                     END LOOP;
                   END LOOP;
                 END $$",
            )
            .await;
    }
}

/// Past the checks of the table.
async fn unchecked(world: &World, sql: &str) {
    let before = if world.is_postgres() {
        ""
    } else {
        "PRAGMA ignore_check_constraints = ON; "
    };
    world.by_hand(&format!("{before}{sql}")).await;
}

fn servers(directory: &Directory, user: &UserId) -> Vec<String> {
    let member = directory.members.iter().find(|member| member.id == *user).unwrap();
    member.grants.iter().map(|grant| grant.server.to_string()).collect()
}

fn server(name: &str) -> RegistryRow {
    RegistryRow {
        server: parse(name),
        name: name.into(),
        url: None,
        enabled: true,
        tool_scopes: [("delete".to_owned(), vec![parse("write")])].into(),
    }
}

async fn directory(world: &World) -> Directory {
    world.proxy.directory(&env()).await.unwrap()
}

async fn since(world: &World, anchor: &neural_guardian::store::Anchor) -> Delta {
    match world.proxy.catch_up(&env(), anchor).await.unwrap() {
        CatchUp::Since(delta) => delta,
        CatchUp::Reload => panic!("a reload was not expected"),
    }
}
