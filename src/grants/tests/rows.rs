//! A store that is not as it should be: with more users than may be loaded, with rows that cannot be read.

use super::super::Grants;
use super::super::directory_source::DirectorySource;
use super::super::fake_store::{FakeStore, identity, issuer, key_id, member, millis, secs, user};
use super::{principal, started, status};
use crate::config::GrantsConfig;
use crate::domain::{GrantStatus, Issuer, PartialRevocation, Principal, RevocationKind, Timestamp};
use tokio::time::sleep;

#[tokio::test(start_paused = true)]
async fn of_more_members_than_allowed_the_first_are_served_and_the_others_known_to_be_left_out() {
    let (grants, store) = limited(2, ["ann", "bob", "eve"]).await;
    assert_eq!(loaded(&grants), ["ann", "bob"]);
    assert_eq!(left_out(&grants), ["eve"]);
    let counts = grants.counts();
    assert_eq!((counts.members, counts.left_out, counts.max_members), (2, 1, 2));

    store.put(member("zoe"));
    store.put(member("eve"));
    store.revoke("ann");
    sleep(secs(1)).await;
    grants.confirm().await.unwrap();
    assert_eq!(left_out(&grants), ["eve", "zoe"]);
    assert_eq!(grants.counts().left_out, 2, "each counts once");
    assert_eq!(status(&grants), GrantStatus::Revoked, "those held are kept up to date");
    let (issuer, nobody) = identity("nobody");
    assert!(!grants.leaves_out(&issuer, &nobody) && grants.unloaded_key(&key_id("nobody")).is_none());
    grants.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_member_too_many_turns_nobody_away_at_a_full_load() {
    let (grants, store) = limited(2, ["bob", "eve"]).await;
    sleep(secs(1)).await;
    store.restore(|state| {
        // before them in any order
        state.members.insert("ann".to_owned(), member("ann"));
        state.members.get_mut("bob").unwrap().grants[0].status = GrantStatus::Revoked;
    });
    grants.confirm().await.unwrap();
    assert_eq!(grants.counts().reloads, 2);
    assert_eq!((loaded(&grants), left_out(&grants)), (vec!["bob", "eve"], vec!["ann"]));
    assert_eq!(grants.by_id(&user("bob")).unwrap().grants[0].status, GrantStatus::Revoked);
    sleep(secs(60)).await;
    assert!(grants.fresh().await.is_ok());
    grants.stop().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_is_left_out_comes_in_when_somebody_goes() {
    let (grants, store) = limited(2, ["ann", "bob", "eve", "zoe"]).await;
    sleep(secs(1)).await;
    store.remove("ann");
    grants.confirm().await.unwrap();
    sleep(millis(1)).await;
    assert_eq!((loaded(&grants), left_out(&grants)), (vec!["bob", "eve"], vec!["zoe"]));
    let generation = grants.generation();
    sleep(secs(1)).await;
    store.remove("zoe");
    grants.confirm().await.unwrap();
    assert_eq!((loaded(&grants), left_out(&grants)), (vec!["bob", "eve"], vec![]));
    assert!(grants.generation() > generation);
    assert_eq!((grants.counts().left_out, grants.counts().reloads), (0, 1));
    grants.stop().await;
}

#[tokio::test(start_paused = true)]
async fn rows_that_cannot_be_read_are_counted_as_they_are_now() {
    let (grants, store) = started(|_| {}).await;
    let count = |grants: &Grants| grants.unreadable()["grants"];
    assert_eq!(grants.unreadable().len(), 7, "each table is told, also with nothing to tell");
    for (name, columns, rows) in [
        ("ann", &["scopes"][..], 1),
        ("ann", &["scopes", "status"], 2),
        ("bob", &["scopes"], 3),
        ("ann", &[], 1),
        ("bob", &[], 0),
    ] {
        sleep(secs(1)).await;
        store.unreadable(name, columns);
        grants.confirm().await.unwrap();
        assert_eq!(count(&grants), rows, "{name} {columns:?}");
    }
    sleep(secs(1)).await;
    store.unreadable("ann", &["scopes"]);
    store.restore(|_| {});
    grants.confirm().await.unwrap();
    assert_eq!((count(&grants), grants.counts().reloads), (1, 2));
    grants.stop().await;
}

/// What is not known of it is taken for all that it could be.
#[tokio::test(start_paused = true)]
async fn a_revocation_that_cannot_be_read_refuses_whatever_it_may_be_about() {
    let (grants, store) = started(|_| {}).await;
    let at = Timestamp::from_secs;
    let whole = PartialRevocation {
        issuer: Some(issuer()),
        kind: Some(RevocationKind::Session),
        value: Some("s1".to_owned()),
        issued_before: at(100),
        expires_at: at(200),
    };
    let ann = Principal {
        issued_at: Some(at(99)),
        token_session: Some("s1".into()),
        ..principal("ann")
    };
    let other_session = Principal {
        token_session: Some("s2".into()),
        ..ann.clone()
    };
    let elsewhere = Principal {
        issuer: Issuer::parse("https://else.example").unwrap(),
        ..ann.clone()
    };
    let as_token = Principal {
        token_session: None,
        token_id: Some("s1".into()),
        ..ann.clone()
    };
    let later = Principal {
        issued_at: Some(at(100)),
        ..ann.clone()
    };
    // for each: the session, another one, the same elsewhere, a token of that name, and the session issued since
    for (row, hits) in [
        (whole.clone(), [true, false, false, false, false]),
        (
            PartialRevocation {
                value: None,
                ..whole.clone()
            },
            [true, true, false, true, false],
        ),
        (
            PartialRevocation {
                issuer: None,
                ..whole.clone()
            },
            [true, false, true, false, false],
        ),
        (
            PartialRevocation {
                kind: None,
                ..whole.clone()
            },
            [true, false, false, true, false],
        ),
        (
            PartialRevocation {
                issued_before: Timestamp::from_micros(i64::MAX),
                ..whole.clone()
            },
            [true, false, false, false, true],
        ),
    ] {
        sleep(secs(1)).await;
        store.partial_revocations(vec![row.clone()]);
        grants.confirm().await.unwrap();
        let asked = [&ann, &other_session, &elsewhere, &as_token, &later];
        assert_eq!(asked.map(|who| grants.revoked(who, at(150))), hits, "{row:?}");
        assert_eq!(
            asked.map(|who| grants.revoked(who, at(200))),
            hits,
            "{row:?}, as long as the token lives"
        );
        let asked = asked.map(|who| Principal {
            issued_at: Some(at(200)),
            ..who.clone()
        });
        assert_eq!(asked.map(|who| grants.revoked(&who, at(200))), [false; 5], "{row:?}");
    }
    // What is over stays over, whatever else is in doubt.
    let over = PartialRevocation {
        value: None,
        issued_before: Timestamp::from_micros(i64::MAX),
        ..whole.clone()
    };
    let lasting = PartialRevocation {
        value: None,
        issued_before: at(50),
        expires_at: Timestamp::from_micros(i64::MAX),
        ..whole
    };
    sleep(secs(1)).await;
    store.partial_revocations(vec![over, lasting]);
    grants.confirm().await.unwrap();
    for (issued_at, is_revoked) in [(199, true), (200, false)] {
        let ann = Principal {
            issued_at: Some(at(issued_at)),
            ..ann.clone()
        };
        assert_eq!(grants.revoked(&ann, at(200)), is_revoked, "issued at {issued_at}");
    }
    grants.stop().await;
}

async fn limited<const N: usize>(max_members: usize, names: [&str; N]) -> (Grants, FakeStore) {
    let config = GrantsConfig {
        max_members,
        ..GrantsConfig::default()
    };
    let store = FakeStore::new(names);
    let grants = Grants::from_source(DirectorySource::Fake(store.clone()), &config)
        .await
        .unwrap();
    (grants, store)
}

const EVERYBODY: [&str; 4] = ["ann", "bob", "eve", "zoe"];

fn loaded(grants: &Grants) -> Vec<&'static str> {
    let loaded = |name: &&str| {
        let (issuer, subject) = identity(name);
        let found = [
            grants.by_id(&user(name)).is_some(),
            grants.by_identity(&issuer, &subject).is_some(),
            grants.by_key(&key_id(name)).is_some(),
        ];
        assert!(found == [found[0]; 3], "{name} {found:?}");
        found[0]
    };
    EVERYBODY.into_iter().filter(loaded).collect()
}

fn left_out(grants: &Grants) -> Vec<&'static str> {
    let left_out = |name: &&str| {
        let (issuer, subject) = identity(name);
        let left_out = grants.leaves_out(&issuer, &subject);
        assert_eq!(left_out, grants.unloaded_key(&key_id(name)).is_some(), "{name}");
        left_out
    };
    EVERYBODY.into_iter().filter(left_out).collect()
}
