//! Users, grants and keys, and how the change feed tells a proxy of every change to them.

use super::world::{World, at, env, key, on_both, parse};
use neural_guardian::domain::*;
use neural_guardian::store::{Anchor, CatchUp, Delta, NewGrant, NewUser, RegistryRow, StoreError};
use std::collections::BTreeMap;

on_both! {
    async fn the_directory_is_exactly_what_was_put(world) {
        let alice = alice(world).await;
        world.admin.put_server(&env(), &files()).await.unwrap();
        let revocation = revocation("2026-11-20T11:00:00.000001Z");
        world.admin.add_revocations(&env(), std::slice::from_ref(&revocation), Some("stolen")).await.unwrap();

        let directory = world.proxy.directory(&env()).await.unwrap();
        assert_eq!(directory.members, [alice]);
        assert_eq!(directory.registry, [files()]);
        assert_eq!(directory.revocations.whole, [revocation]);
        assert!(directory.anchor.seq > 0 && !directory.anchor.tag.is_empty());
    }

    async fn an_empty_store_has_an_empty_directory_that_can_be_caught_up_with(world) {
        let directory = world.proxy.directory(&env()).await.unwrap();
        assert!(directory.anchor.is_start());
        assert_eq!((directory.members.len(), directory.registry.len(), directory.revocations.whole.len()), (0, 0, 0));
        let same = CatchUp::Since(Delta { anchor: directory.anchor.clone(), ..Delta::default() });
        assert_eq!(world.proxy.catch_up(&env(), &directory.anchor).await.unwrap(), same);

        // Changes from before the first known position may have been pruned.
        world.user("a@example.com").await;
        assert_eq!(world.proxy.catch_up(&env(), &directory.anchor).await.unwrap(), CatchUp::Reload);
    }

    async fn a_revoked_grant_shows_up(world) {
        let alice = alice(world).await;
        let anchor = anchor(world).await;
        assert!(world.admin.revoke_grant(&env(), &alice.id, &parse("files"), None).await.unwrap());

        let delta = since(world, &anchor).await;
        let [(id, Some(member))] = &delta.members[..] else { panic!("one member changed: {delta:?}") };
        assert_eq!(*id, alice.id);
        assert_eq!(member.grants[0].status, GrantStatus::Revoked);
        assert_eq!(member.grants[0].version, alice.grants[0].version + 1);
        assert!(delta.anchor.seq > anchor.seq);
        assert!(!world.admin.revoke_grant(&env(), &alice.id, &parse("files"), None).await.unwrap(), "it was revoked already");
        assert_eq!(since(world, &delta.anchor).await, Delta { anchor: delta.anchor, ..Delta::default() });
    }

    async fn every_kind_of_change_reaches_the_feed(world) {
        let alice = alice(world).await;
        let (user, env) = (&alice.id, &env());
        let mut anchor = anchor(world).await;
        for change in ["status", "roles", "link", "unlink", "grant", "key", "revoke key", "by hand", "gone"] {
            match change {
                "status" => world.admin.set_user_status(env, user, MemberStatus::Disabled).await.unwrap(),
                "roles" => world.admin.set_user_roles(env, user, &[parse("auditor")]).await.unwrap(),
                "link" => world.admin.link_identity(env, user, &parse("https://b"), &parse("2")).await.unwrap(),
                "unlink" => assert!(world.admin.unlink_identity(env, &parse("https://b"), &parse("2")).await.unwrap()),
                "grant" => drop(world.grant(user, "mail", &["send"]).await),
                "key" => world.admin.add_key(env, user, &key("key00002")).await.unwrap(),
                "revoke key" => assert!(world.admin.revoke_key(env, &parse("key00002"), at("2026-11-21T00:00:00Z")).await.unwrap()),
                "by hand" => world.by_hand("UPDATE schema.mcp_authorizations SET status = 'idle'").await,
                _ => world.by_hand("DELETE FROM schema.users").await,
            }
            let delta = since(world, &anchor).await;
            assert_eq!(delta.members.len(), 1, "{change}");
            let member = delta.members[0].1.clone();
            assert_eq!(delta.members[0].0, *user, "{change}");
            match change {
                "gone" => assert_eq!(member, None),
                _ => assert_eq!(member, Some(world.sees(user).await), "{change}"),
            }
            anchor = delta.anchor;
        }
        world.admin.put_server(env, &files()).await.unwrap();
        world.admin.add_revocations(env, std::slice::from_ref(&revocation("2026-11-20T11:00:00Z")), None).await.unwrap();
        world.proxy.observe_tools(env, &parse("files"), &[(parse("read"), Digest::of(b"r"), "{}".into())], true).await.unwrap();
        let delta = since(world, &anchor).await;
        assert_eq!(delta.registry, Some(vec![files()]));
        assert_eq!(delta.revocations.map(|all| all.whole.len()), Some(1));
        assert!(delta.catalogue_changed && delta.members.is_empty());
    }

    async fn another_history_or_too_many_changes_force_a_reload(world) {
        let alice = world.user("alice@example.com").await;
        let anchor = anchor(world).await;
        let forged = Anchor { tag: "0".repeat(32), ..anchor.clone() };
        assert_eq!(world.proxy.catch_up(&env(), &forged).await.unwrap(), CatchUp::Reload);
        let ahead = Anchor { seq: anchor.seq + 1_000_000, ..anchor.clone() };
        assert_eq!(world.proxy.catch_up(&env(), &ahead).await.unwrap(), CatchUp::Reload);

        let rename = |n: i32| format!("UPDATE schema.users SET display_name = 'name {n}';");
        world.by_hand(&(0..1_000).map(rename).collect::<String>()).await;
        assert_eq!(since(world, &anchor).await.members[0].0, alice);
        world.by_hand(&rename(1_000)).await;
        assert_eq!(world.proxy.catch_up(&env(), &anchor).await.unwrap(), CatchUp::Reload);
    }

    async fn an_environment_is_a_world_of_its_own(world) {
        let alice = alice(world).await;
        let anchor = anchor(world).await;
        world.by_hand("INSERT INTO schema.users (environment, id) VALUES ('development', '00000000-0000-0000-0000-00000000000d')").await;
        assert_eq!(world.proxy.directory(&env()).await.unwrap().members, [alice]);
        assert_eq!(since(world, &anchor).await, Delta { anchor, ..Delta::default() });
    }

    async fn a_grant_given_again_replaces_the_old_one(world) {
        let alice = world.user("alice@example.com").await;
        let first = world.grant(&alice, "files", &["read", "write"]).await;
        world.admin.revoke_grant(&env(), &alice, &parse("files"), None).await.unwrap();
        let again = world.grant(&alice, "files", &["read"]).await;
        let client = NewGrant { client: Some(parse("cursor")), ..grant(&alice, "files", &["*"]) };
        let other = world.admin.add_grant(&env(), &client).await.unwrap();

        assert_eq!(first, again);
        assert_ne!(first, other);
        let grants = world.sees(&alice).await.grants;
        assert_eq!(grants.iter().map(|grant| (grant.client.is_some(), grant.status, grant.scopes.iter().count())).collect::<Vec<_>>(),
            [(false, GrantStatus::Verified, 1), (true, GrantStatus::Verified, 1)]);
        let listed = world.admin.list_grants(&env(), Some(&alice)).await.unwrap();
        assert_eq!(listed.into_iter().map(|row| (row.user, row.email.unwrap(), row.grant)).collect::<Vec<_>>(),
            grants.into_iter().map(|grant| (alice.clone(), "alice@example.com".to_owned(), grant)).collect::<Vec<_>>());
    }

    async fn administrators_list_users_and_keys(world) {
        let alice = alice(world).await;
        let users = world.admin.list_users(&env()).await.unwrap();
        assert_eq!(users.len(), 1);
        assert_eq!((&users[0].id, &users[0].email, &users[0].identities), (&alice.id, &alice.email, &alice.identities));
        let keys = world.admin.list_keys(&env(), None).await.unwrap();
        assert_eq!(keys.len(), 1);
        assert_eq!((&keys[0].id, &keys[0].user, keys[0].expires_at), (&alice.keys[0].id, &alice.id, alice.keys[0].expires_at));
        let json = serde_json::to_value(&keys[0]).unwrap();
        assert_eq!(json["created_at"], "2026-11-20T10:00:00.123456Z");
        assert_eq!(json.get("hash"), None);
        assert!(world.admin.list_keys(&env(), Some(&parse("00000000-0000-0000-0000-000000000000"))).await.unwrap().is_empty());
    }

    async fn an_identity_belongs_to_one_user(world) {
        let (alice, bob) = (world.user("alice@example.com").await, world.user("bob@example.com").await);
        let (issuer, subject) = (parse("https://issuer"), parse("42"));
        world.admin.link_identity(&env(), &alice, &issuer, &subject).await.unwrap();
        world.admin.link_identity(&env(), &alice, &issuer, &subject).await.unwrap();
        let error = world.admin.link_identity(&env(), &bob, &issuer, &subject).await.unwrap_err();
        assert_eq!(error.to_string(), format!("`42` of `https://issuer` is linked to user `{alice}`: unlink it first"));
        assert!(world.admin.unlink_identity(&env(), &issuer, &subject).await.unwrap());
        assert!(!world.admin.unlink_identity(&env(), &issuer, &subject).await.unwrap());
        world.admin.link_identity(&env(), &bob, &issuer, &subject).await.unwrap();
        assert_eq!(world.sees(&bob).await.identities, [(issuer, subject)]);
    }

    async fn whoever_is_enrolled_twice_at_once_is_one_user(world) {
        let (issuer, subject) = (parse::<Issuer>("https://issuer"), parse::<Subject>("newcomer"));
        let roles = [parse("guest")];
        let (env, proxy) = (env(), world.proxy.clone());
        let enrol = || proxy.enrol(&env, &issuer, &subject, Some("n@example.com"), &roles, PrincipalKind::Service);
        let (a, b, c) = tokio::join!(enrol(), enrol(), enrol());
        let (all, enrolments): (Vec<_>, Vec<_>) = [a, b, c].into_iter().map(Result::unwrap).unzip();
        let member = all[0].clone();
        assert_eq!((&all[0], &all[0]), (&all[1], &all[2]));
        assert_eq!(enrolments.into_iter().flatten().count(), 1, "one of them has it to record");
        assert_eq!(member.identities, [(issuer.clone(), subject.clone())]);
        assert_eq!((member.kind, member.roles, member.status), (PrincipalKind::Service, roles.to_vec(), MemberStatus::Active));
        assert_eq!(member.email.as_deref(), Some("n@example.com"));
        assert!(member.grants.is_empty(), "enrolment grants nothing");
        assert_eq!(world.admin.list_users(&env).await.unwrap().len(), 1);
    }

    async fn what_is_named_but_not_there_is_said(world) {
        let nobody: UserId = parse("7d444840-9dc0-11d1-b245-5ffdce74fad2");
        let no_user = "no user `7d444840-9dc0-11d1-b245-5ffdce74fad2` in environment `production`";
        let (env, admin) = (&env(), &world.admin);
        assert_eq!(admin.set_user_status(env, &nobody, MemberStatus::Active).await.unwrap_err().to_string(), no_user);
        assert_eq!(admin.link_identity(env, &nobody, &parse("i"), &parse("s")).await.unwrap_err().to_string(), no_user);
        assert_eq!(admin.add_grant(env, &grant(&nobody, "files", &[])).await.unwrap_err().to_string(), no_user);
        assert_eq!(admin.add_key(env, &nobody, &key("key00001")).await.unwrap_err().to_string(), no_user);
        let error = admin.set_user_status(env, &parse("bob"), MemberStatus::Active).await.unwrap_err();
        assert_eq!(error.to_string(), "`bob` is not a user id: user ids are UUIDs such as 7d444840-9dc0-11d1-b245-5ffdce74fad2");
        assert!(matches!(error, StoreError::Invalid(_)) && !error.is_transient());
    }

    async fn ids_are_one_spelling_and_taken_once(world) {
        let user = NewUser { id: Some(parse("7D444840-9DC0-11D1-B245-5FFDCE74FAD2")), ..new_user("a@example.com") };
        let id = world.admin.add_user(&env(), &user).await.unwrap();
        assert_eq!(id.as_str(), "7d444840-9dc0-11d1-b245-5ffdce74fad2");
        let error = world.admin.add_user(&env(), &user).await.unwrap_err();
        assert_eq!(error.to_string(), format!("user `{id}` exists already in environment `production`"));
        world.admin.add_key(&env(), &id, &key("key00001")).await.unwrap();
        let error = world.admin.add_key(&env(), &id, &key("key00001")).await.unwrap_err();
        assert_eq!(error.to_string(), "key `key00001` exists already");
    }

    async fn a_row_nobody_can_read_grants_nothing_and_stops_nobody(world) {
        let alice = alice(world).await;
        let bob = world.user("bob@example.com").await;
        world.grant(&bob, "files", &["read"]).await;
        world.admin.add_key(&env(), &bob, &key("key0000b")).await.unwrap();
        world.by_hand(&format!("UPDATE schema.mcp_authorizations SET client_id = 'a client' WHERE user_id = '{bob}'")).await;
        // An empty list would mean every scope.
        world.by_hand(&format!("UPDATE schema.api_keys SET scopes = '[\"read file\"]' WHERE user_id = '{bob}'")).await;
        world.by_hand("INSERT INTO schema.mcp_registry (environment, id, name) VALUES ('production', 'No Name', '')").await;
        world.by_hand("INSERT INTO schema.mcp_registry (environment, id, name, tool_scopes) VALUES ('production', 'mail', '', '{\"send\": [5]}')").await;

        let directory = world.proxy.directory(&env()).await.unwrap();
        let [a, b] = &directory.members[..] else { panic!("two members") };
        let (a, b) = if a.id == bob { (b, a) } else { (a, b) };
        assert_eq!(*a, alice);
        assert_eq!((b.grants.len(), b.keys.len()), (0, 0));
        assert_eq!(directory.registry.iter().map(|row| (row.server.as_str(), row.enabled)).collect::<Vec<_>>(), [("mail", false)]);
    }

    async fn a_revocation_said_twice_keeps_the_later_moment(world) {
        let (early, late) = (revocation("2026-11-20T10:00:00Z"), revocation("2026-11-20T12:00:00Z"));
        world.admin.add_revocations(&env(), std::slice::from_ref(&late), None).await.unwrap();
        world.admin.add_revocations(&env(), std::slice::from_ref(&early), None).await.unwrap();
        assert_eq!(world.proxy.directory(&env()).await.unwrap().revocations.whole, [late]);
    }

    async fn a_bundle_is_of_one_moment(world) {
        let alice = world.user("alice@example.com").await;
        world.grant(&alice, "files", &["a"]).await;
        world.by_hand("UPDATE schema.users SET display_name = 'a'").await;
        let flip = |to: &str| format!(
            "BEGIN; UPDATE schema.users SET display_name = '{to}'; UPDATE schema.mcp_authorizations SET scopes = '[\"{to}\"]'; COMMIT;"
        );
        let turns: String = (0..60).map(|_| flip("b") + &flip("a")).collect();
        let reading = async {
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..60 {
                let member = world.sees(&alice).await;
                let scope = member.grants[0].scopes.iter().next().unwrap().to_string();
                assert_eq!(member.display_name.as_deref(), Some(scope.as_str()));
                seen.insert(scope);
            }
            seen
        };
        let ((), seen) = tokio::join!(world.by_hand(&turns), reading);
        assert!(seen.contains("a"));
    }
}

#[tokio::test]
async fn a_grant_without_end_may_say_so_in_the_way_of_postgres() {
    let world = &World::postgres().await;
    let user = world.user("alice@example.com").await;
    world.grant(&user, "files", &["read"]).await;
    for (written, end) in [("infinity", i64::MAX), ("-infinity", -i64::MAX)] {
        world
            .by_hand(&format!("UPDATE schema.mcp_authorizations SET expires_at = '{written}'"))
            .await;
        assert_eq!(
            world.sees(&user).await.grants[0].expires_at,
            Some(Timestamp::from_micros(end))
        );
    }
}

#[tokio::test]
async fn a_truncated_table_forces_a_reload() {
    let world = &World::postgres().await;
    world
        .admin
        .add_revocations(&env(), std::slice::from_ref(&revocation("2026-11-20T11:00:00Z")), None)
        .await
        .unwrap();
    let anchor = anchor(world).await;
    world.by_hand("TRUNCATE schema.revocations").await;
    assert_eq!(world.proxy.catch_up(&env(), &anchor).await.unwrap(), CatchUp::Reload);
}

/// A reader of the feed ends up with the current state while many write: no change may appear below a position already read.
#[tokio::test]
async fn a_reader_of_the_feed_misses_nothing_while_many_write() {
    let world = &World::postgres().await;
    let mut users = Vec::new();
    for n in 0..150 {
        users.push(world.user(&format!("{n}@example.com")).await);
    }
    let start = world.proxy.directory(&env()).await.unwrap();
    let written = std::cell::Cell::new(false);
    let writing = async {
        // Each user is written once, because a later change would hide a missed one.
        let writers = users.chunks(25).map(|users| async move {
            for (n, user) in users.iter().enumerate() {
                let level = ["READ COMMITTED", "REPEATABLE READ"][n % 2];
                // Rows are written long before the commit, and some get their position long before it too: commits overtake
                // each other.
                let early = if n % 3 == 0 { "SET CONSTRAINTS ALL IMMEDIATE;" } else { "" };
                let end = if n % 10 == 9 { "ROLLBACK" } else { "COMMIT" };
                world
                    .by_hand(&format!(
                        "BEGIN ISOLATION LEVEL {level};
                         INSERT INTO schema.mcp_authorizations (environment, user_id, server_name) VALUES ('production', '{user}', 'files');
                         {early} SELECT pg_sleep(random() * 0.01); {end};"
                    ))
                    .await;
            }
        });
        futures_join(writers).await;
        written.set(true);
    };
    let reading = async {
        let mut held: BTreeMap<UserId, Member> = start.members.into_iter().map(|member| (member.id.clone(), member)).collect();
        let mut anchor = start.anchor.clone();
        loop {
            let last = written.get();
            let delta = since(world, &anchor).await;
            held.extend(delta.members.into_iter().filter_map(|(id, member)| Some((id, member?))));
            anchor = delta.anchor;
            if last {
                return held;
            }
        }
    };
    let ((), held) = tokio::join!(writing, reading);
    let there = world.proxy.directory(&env()).await.unwrap().members;
    assert_eq!(there.iter().map(|member| member.grants.len()).sum::<usize>(), 138);
    let there: BTreeMap<UserId, Member> = there.into_iter().map(|member| (member.id.clone(), member)).collect();
    assert_eq!(held, there);
}

async fn futures_join(futures: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut running: Vec<_> = futures.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        running.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if running.is_empty() {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

/// Alice with one of everything, added through the store.
async fn alice(world: &World) -> Member {
    let id = world.user("alice@example.com").await;
    let (env, expires_at) = (env(), Some(at("2027-01-01T00:00:00.000001Z")));
    world
        .admin
        .set_user_roles(&env, &id, &[parse("developer"), parse("on call")])
        .await
        .unwrap();
    world
        .admin
        .link_identity(&env, &id, &parse("https://issuer"), &parse("alice"))
        .await
        .unwrap();
    world.admin.add_key(&env, &id, &key("key00001")).await.unwrap();
    let grant = NewGrant {
        client: Some(parse("cursor")),
        expires_at,
        ..grant(&id, "files", &["read_file", "*"])
    };
    world.admin.add_grant(&env, &grant).await.unwrap();
    let plain = world.grant(&id, "files", &[]).await;
    let client = world.admin.list_grants(&env, Some(&id)).await.unwrap()[1].grant.id.clone();
    let bare = |id, client, scopes: Scopes, expires_at| Grant {
        id,
        server: parse("files"),
        client,
        status: GrantStatus::Verified,
        scopes,
        expires_at,
        version: 1,
    };
    let input_salt = world.proxy.member(&env, &id).await.unwrap().unwrap().input_salt;
    assert!(input_salt.is_some(), "everybody has one");
    Member {
        input_salt,
        id,
        kind: PrincipalKind::User,
        email: Some("alice@example.com".into()),
        display_name: None,
        roles: vec![parse("developer"), parse("on call")],
        status: MemberStatus::Active,
        identities: vec![(parse("https://issuer"), parse("alice"))],
        keys: vec![key("key00001")],
        grants: vec![
            bare(plain, None, Scopes::default(), None),
            bare(
                client,
                Some(parse("cursor")),
                [parse("read_file"), parse("*")].into_iter().collect(),
                expires_at,
            ),
        ],
    }
}

pub fn new_user(email: &str) -> NewUser {
    NewUser {
        id: None,
        kind: PrincipalKind::User,
        email: Some(email.into()),
        display_name: None,
        roles: vec![],
    }
}

fn grant(user: &UserId, server: &str, scopes: &[&str]) -> NewGrant {
    let scopes = scopes.iter().map(|scope| parse(scope)).collect();
    NewGrant {
        user: user.clone(),
        server: parse(server),
        client: None,
        scopes,
        expires_at: None,
        idle: false,
    }
}

fn files() -> RegistryRow {
    RegistryRow {
        server: parse("files"),
        name: "Files".into(),
        url: Some("https://files.internal/mcp".into()),
        enabled: true,
        tool_scopes: [("delete".to_owned(), vec![parse("write"), parse("danger")])].into(),
    }
}

fn revocation(issued_before: &str) -> Revocation {
    Revocation {
        issuer: parse("https://issuer"),
        kind: RevocationKind::Session,
        value: "session 1".into(),
        issued_before: at(issued_before),
        expires_at: at("2026-11-22T00:00:00Z"),
    }
}

async fn anchor(world: &World) -> Anchor {
    world.proxy.directory(&env()).await.unwrap().anchor
}

async fn since(world: &World, anchor: &Anchor) -> Delta {
    match world.proxy.catch_up(&env(), anchor).await.unwrap() {
        CatchUp::Since(delta) => delta,
        CatchUp::Reload => panic!("a reload was not expected"),
    }
}
