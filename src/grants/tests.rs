//! The question here: how often does the lease ask the store, what holds when the store fails, and is any call decided on
//! knowledge older than promised? With a scripted store, on a paused clock. Whether a committed change binds the next
//! decision over a real store is tested in `tests/rooms/grants.rs`.

mod rows;

use super::directory_source::DirectorySource;
use super::fake_store::{FakeStore, identity, issuer, key_id, member, millis, secs, user};
use super::{Changes, GrantSnapshot, Grants, GrantsView};
use crate::config::{GrantsConfig, HumanDuration};
use crate::domain::{
    AuthMethod, Digest, Fingerprint, GrantId, GrantStatus, Issuer, IssuerAlias, Member, MemberStatus, Principal, PrincipalKind,
    Reason, Revocation, RevocationKind, Timestamp,
};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

#[tokio::test(start_paused = true)]
async fn without_calls_nothing_is_asked() {
    let (grants, store) = started(|_| {}).await;
    sleep(secs(30 * 24 * 3_600)).await;
    assert_eq!(store.asked(), 0);
    assert_eq!((grants.counts().confirms, grants.counts().reloads), (0, 1));
    grants.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_proxy_asks_once_in_confirm_after() {
    let (grants, store) = started(|_| {}).await;
    for _ in 0..10_000 {
        sleep(millis(1)).await;
        assert!(grants.fresh().await.unwrap().age <= millis(1_030));
    }
    assert!((9..=10).contains(&store.asked()), "{}", store.asked());
    grants.stop().await;
}

#[tokio::test(start_paused = true)]
async fn past_confirm_after_a_call_is_served_at_once_and_the_next_sees_the_change() {
    let (grants, store) = started(|_| {}).await;
    store.revoke("ann");
    sleep(secs(2)).await;
    let called = Instant::now();
    let view = grants.fresh().await.unwrap();
    assert_eq!((called.elapsed(), view.age), (Duration::ZERO, secs(2)));
    assert_eq!(status(&grants), GrantStatus::Verified);
    sleep(millis(1)).await;
    assert_eq!(status(&grants), GrantStatus::Revoked);
    assert_eq!((grants.fresh().await.unwrap().seq, store.asked()), (2, 1));
    grants.stop().await;
}

#[tokio::test(start_paused = true)]
async fn past_the_bound_all_callers_wait_for_one_confirmation() {
    let (grants, store) = started(|_| {}).await;
    store.revoke("ann");
    store.answer_after(millis(300));
    sleep(secs(60)).await;
    let grants = Arc::new(grants);
    let calls: Vec<_> = (0..100)
        .map(|n| {
            let grants = grants.clone();
            tokio::spawn(async move {
                sleep(millis(n)).await;
                let view = grants.fresh().await.unwrap();
                (status(&grants), view.age <= millis(300))
            })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap(), (GrantStatus::Revoked, true));
    }
    assert_eq!(store.asked(), 1);
    grants.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stops_answering_is_outlived_for_max_staleness_and_no_longer() {
    let (grants, store) = started(|_| {}).await;
    store.hang(true);
    let start = Instant::now();
    while start.elapsed() <= secs(5) {
        grants.fresh().await.unwrap();
        sleep(millis(100)).await;
    }
    let called = Instant::now();
    let stale = grants.fresh().await.unwrap_err();
    assert_eq!(called.elapsed(), millis(800), "the longest wait of a call");
    assert!(stale.age > secs(5));
    for _ in 0..1_000 {
        assert!(grants.fresh().await.is_err());
        sleep(millis(10)).await;
    }
    store.hang(false);
    while grants.fresh().await.is_err() {
        sleep(millis(100)).await;
    }
    assert!(grants.view().age < secs(1));
    grants.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_asked_ever_more_rarely_and_by_calls_alone() {
    let (grants, store) = started(|_| {}).await;
    store.fail(true);
    sleep(secs(6)).await;
    let stale = grants.fresh().await.unwrap_err();
    assert_eq!(stale.why.as_deref(), Some("cannot reach the script: it fails"));
    assert_eq!(stale.retry_after, secs(1));

    let before = store.asked();
    let start = Instant::now();
    while start.elapsed() < secs(60) {
        let called = Instant::now();
        assert!(grants.fresh().await.is_err());
        assert!(called.elapsed() <= millis(800));
        sleep(millis(50)).await;
    }
    // 0.2, 0.4, 0.8, 1.6, 3.2, 6.4 and then every 10 seconds.
    let asked = store.asked() - before;
    assert!((9..=11).contains(&asked), "{asked}");

    let before = store.asked();
    sleep(secs(3_600)).await;
    assert_eq!(store.asked(), before, "no calls, no questions");

    store.fail(false);
    assert!(grants.fresh().await.is_ok());
    grants.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_served_while_the_store_fails_leaves_no_question_behind() {
    let (grants, store) = started(|_| {}).await;
    store.fail(true);
    sleep(secs(2)).await;
    grants.fresh().await.unwrap();
    sleep(millis(100)).await;
    grants.fresh().await.unwrap();
    let asked = store.asked();
    sleep(secs(3_600)).await;
    assert_eq!((asked, store.asked()), (1, 1));
    grants.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hint_asks_at_once_even_after_failures() {
    let (grants, store) = started(|_| {}).await;
    store.fail(true);
    for _ in 0..20 {
        sleep(secs(10)).await;
        assert!(grants.fresh().await.is_err());
    }
    store.fail(false);
    store.revoke("ann");
    grants.confirm_now();
    sleep(millis(21)).await;
    assert_eq!(status(&grants), GrantStatus::Revoked);

    let before = store.asked();
    for _ in 0..1_000 {
        grants.confirm_now();
        sleep(millis(1)).await;
    }
    assert!(store.asked() - before <= 51, "hints are bundled: {}", store.asked() - before);
    grants.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_was_granted_a_moment_ago_is_known_at_once_and_refused_calls_cost_four_questions_a_second() {
    let (grants, store) = started(|_| {}).await;
    let generation = grants.fresh().await.unwrap().generation;
    sleep(millis(1)).await;
    assert!(!grants.refresh_and_compare(&user("ann"), generation).await);
    assert_eq!(store.asked(), 1);
    sleep(millis(260)).await;
    store.revoke("ann");
    assert!(grants.refresh_and_compare(&user("ann"), generation).await);
    assert_eq!((status(&grants), store.asked()), (GrantStatus::Revoked, 2));

    let generation = grants.fresh().await.unwrap().generation;
    let (start, before) = (Instant::now(), store.asked());
    while start.elapsed() < secs(10) {
        assert!(!grants.refresh_and_compare(&user("ann"), generation).await);
        sleep(millis(1)).await;
    }
    let asked = store.asked() - before;
    assert!((38..=41).contains(&asked), "{asked}");

    let before = store.asked();
    let grants = Arc::new(grants);
    let all = (0..1_000).map(|n| {
        let grants = grants.clone();
        tokio::spawn(async move { grants.refresh_and_compare(&user(&format!("u{n}")), generation).await })
    });
    for one in all.collect::<Vec<_>>() {
        assert!(!one.await.unwrap());
    }
    assert_eq!(store.asked() - before, 1, "all who ask at once share one question");

    store.fail(true);
    sleep(secs(2)).await;
    let called = Instant::now();
    assert!(!grants.refresh_and_compare(&user("ann"), generation).await);
    assert!(
        called.elapsed() <= millis(800),
        "a failing store does not hold up a refusal for long"
    );
    grants.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_was_enrolled_a_moment_ago_is_found_and_who_is_not_costs_one_question_a_second() {
    let (grants, store) = started(|_| {}).await;
    sleep(millis(100)).await;
    store.put(member("bob"));
    let (issuer, subject) = identity("bob");
    assert!(grants.by_identity(&issuer, &subject).is_none());
    assert!(grants.find_by_identity(&issuer, &subject).await.is_some());
    assert_eq!(store.asked(), 1);

    let (issuer, subject) = identity("nobody");
    let start = Instant::now();
    let before = store.asked();
    while start.elapsed() < secs(10) {
        assert!(grants.find_by_identity(&issuer, &subject).await.is_none());
        sleep(millis(10)).await;
    }
    let asked = store.asked() - before;
    assert!((9..=11).contains(&asked), "{asked}");

    store.fail(true);
    sleep(secs(2)).await;
    let called = Instant::now();
    assert!(grants.find_by_key(&key_id("nobody")).await.is_none());
    assert!(
        called.elapsed() <= millis(800),
        "a failing store does not hold anybody up for long"
    );
    grants.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_unknown_keys_is_bounded() {
    let (grants, store) = started(|_| {}).await;
    let grants = Arc::new(grants);
    let start = Instant::now();
    let calls: Vec<_> = (0..3_000)
        .map(|n| {
            let grants = grants.clone();
            tokio::spawn(async move {
                sleep(millis(n)).await;
                grants.find_by_key(&key_id(&format!("unknown{n}"))).await
            })
        })
        .collect();
    for call in calls {
        assert!(call.await.unwrap().is_none());
    }
    assert!(start.elapsed() < secs(4));
    assert!(store.asked() <= 152, "{}", store.asked());
    grants.stop().await;
}

#[tokio::test(start_paused = true)]
async fn another_history_is_loaded_whole() {
    let (grants, store) = started(|_| {}).await;
    let mut changes = grants.changes();
    sleep(secs(2)).await;
    store.put(member("bob"));
    grants.confirm().await.unwrap();
    assert!(grants.by_id(&user("bob")).is_some());
    assert!(!changes.has_changed().unwrap(), "members are neither registry nor catalogue");

    // The same positions, written again with other tags and without bob: a restore.
    sleep(secs(2)).await;
    store.restore(|state| {
        state.members.remove("bob");
        state.members.insert("eve".to_owned(), member("eve"));
    });
    let view = grants.confirm().await.unwrap();
    assert_eq!((view.seq, grants.counts().reloads, grants.counts().members), (2, 2, 2));
    assert!(grants.by_id(&user("bob")).is_none());
    let (issuer, subject) = identity("bob");
    assert!(grants.by_identity(&issuer, &subject).is_none());
    assert!(grants.by_key(&key_id("bob")).is_none());
    assert!(grants.by_key(&key_id("eve")).is_some());
    let generation = view.generation;
    assert_eq!(
        *changes.borrow_and_update(),
        Changes {
            registry: generation,
            catalogue: generation
        }
    );
    grants.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_moves_leads_to_its_new_owner_only() {
    let (grants, store) = started(|_| {}).await;
    let (issuer, subject) = identity("ann");
    for (from, to) in [("ann", "zoe"), ("zoe", "ann")] {
        sleep(secs(1)).await;
        let mut old = member(from);
        old.identities.clear();
        let mut new = member(to);
        new.identities = vec![(issuer.clone(), subject.clone())];
        store.put_both(old, new);
        grants.confirm().await.unwrap();
        assert_eq!(grants.by_identity(&issuer, &subject).unwrap().id, user(to));
    }
    grants.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_ticket_holds_until_what_it_stands_on_changes() {
    let (grants, store) = started(|_| {}).await;
    let now = Timestamp::from_secs(1_000);
    let view = grants.fresh().await.unwrap();
    let grant_snapshot = ticket("ann", view);
    assert_eq!(grants.recheck(&grant_snapshot, now), Ok(()));

    let change = async |change: &dyn Fn(&mut Member)| {
        let mut changed = member("ann");
        change(&mut changed);
        sleep(secs(1)).await;
        store.put(changed);
        grants.confirm().await.unwrap();
        grants.recheck(&grant_snapshot, now)
    };
    assert_eq!(
        change(&|ann| ann.email = None).await,
        Ok(()),
        "somebody else's change, or one that does not matter"
    );
    for (expected, edit) in [
        (
            Reason::StaleAuthorization,
            &(|ann: &mut Member| ann.grants[0].version = 2) as &dyn Fn(&mut Member),
        ),
        (Reason::GrantRevoked, &|ann| ann.grants[0].status = GrantStatus::Revoked),
        (Reason::GrantIdle, &|ann| ann.grants[0].status = GrantStatus::Idle),
        (Reason::GrantExpired, &|ann| {
            ann.grants[0].expires_at = Some(Timestamp::from_secs(1_000))
        }),
        (Reason::NoGrant, &|ann| ann.grants.clear()),
        (Reason::MemberDisabled, &|ann| ann.status = MemberStatus::Disabled),
        (Reason::KeyRevoked, &|ann| {
            ann.keys[0].revoked_at = Some(Timestamp::from_secs(999))
        }),
        (Reason::KeyExpired, &|ann| {
            ann.keys[0].expires_at = Some(Timestamp::from_secs(1_000))
        }),
        (Reason::BadKey, &|ann| ann.keys.clear()),
    ] {
        assert_eq!(change(edit).await, Err(expected));
    }
    assert_eq!(change(&|_| {}).await, Ok(()));
    sleep(secs(1)).await;
    store.remove("ann");
    grants.confirm().await.unwrap();
    assert_eq!(grants.recheck(&grant_snapshot, now), Err(Reason::NotEnrolled));
    grants.stop().await;
}

/// A row written by hand may end before the last token that it covers; one that bars a caller for a time ends when it says.
#[tokio::test(start_paused = true)]
async fn a_token_that_was_revoked_does_not_come_back_to_life() {
    let (grants, store) = started(|_| {}).await;
    sleep(secs(1)).await;
    let at = Timestamp::from_secs;
    let barred = |issued_before, expires_at| Revocation {
        issuer: issuer(),
        kind: RevocationKind::Subject,
        value: "ann".to_owned(),
        issued_before,
        expires_at,
    };
    let ann = |issued_at| Principal {
        issued_at,
        ..principal("ann")
    };
    store.revocations(vec![barred(at(100), at(200))]);
    grants.confirm().await.unwrap();
    for (issued_at, now, is_revoked) in [
        (Some(at(99)), at(199), true),
        (Some(at(99)), at(1_000_000), true),
        (Some(at(100)), at(199), false),
        // When it was issued is not known: it may be older or newer.
        (None, at(199), true),
        (None, at(200), false),
    ] {
        assert_eq!(grants.revoked(&ann(issued_at), now), is_revoked, "{issued_at:?} at {now}");
    }

    sleep(secs(1)).await;
    store.revocations(vec![barred(at(i64::MAX), at(200))]);
    grants.confirm().await.unwrap();
    assert!(grants.revoked(&ann(Some(at(150))), at(160)));
    assert!(grants.revoked(&ann(Some(at(150))), at(210)));
    assert!(!grants.revoked(&ann(Some(at(200))), at(210)));
    grants.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_revocation_covers_what_was_issued_before_it_while_it_lasts() {
    let (grants, store) = started(|_| {}).await;
    sleep(secs(1)).await;
    let at = Timestamp::from_secs;
    let revoked = |kind, value: &str| Revocation {
        issuer: issuer(),
        kind,
        value: value.to_owned(),
        issued_before: at(100),
        expires_at: at(200),
    };
    store.revocations(vec![
        revoked(RevocationKind::Subject, "bob"),
        revoked(RevocationKind::Session, "s1"),
        revoked(RevocationKind::Client, "c1"),
        revoked(RevocationKind::Jti, "j1"),
    ]);
    grants.confirm().await.unwrap();

    let ann = |issued_at| Principal {
        issued_at,
        ..principal("ann")
    };
    let old = ann(Some(at(99)));
    assert!(!grants.revoked(&old, at(150)));
    for hit in [
        Principal {
            subject: identity("bob").1,
            ..old.clone()
        },
        Principal {
            token_session: Some("s1".into()),
            ..old.clone()
        },
        Principal {
            client: Some("c1".parse().unwrap()),
            ..old.clone()
        },
        Principal {
            token_id: Some("j1".into()),
            ..old.clone()
        },
    ] {
        assert!(grants.revoked(&hit, at(150)), "{hit:?}");
        assert!(grants.revoked(&hit, at(200)), "it may live still");
        assert!(
            !grants.revoked(
                &Principal {
                    issued_at: Some(at(100)),
                    ..hit.clone()
                },
                at(150)
            ),
            "issued since"
        );
        assert!(
            grants.revoked(
                &Principal {
                    issued_at: None,
                    ..hit.clone()
                },
                at(150)
            ),
            "issued who knows when"
        );
        let elsewhere = Issuer::parse("https://else.example").unwrap();
        assert!(!grants.revoked(
            &Principal {
                issuer: elsewhere,
                ..hit.clone()
            },
            at(150)
        ));
    }
    grants.stop().await;
}

#[tokio::test(start_paused = true)]
async fn with_no_staleness_allowed_every_call_asks() {
    let (grants, store) = started(|config| config.max_staleness = HumanDuration(Duration::ZERO)).await;
    for n in 1..=20 {
        sleep(millis(50)).await;
        store.revoke("ann");
        assert_eq!(grants.fresh().await.unwrap().seq, n + 1);
        assert_eq!(store.asked(), n as usize);
    }
    grants.stop().await;
}

#[tokio::test(start_paused = true)]
async fn stopping_ends_the_task_and_the_copy_grows_stale() {
    let (grants, _script) = started(|_| {}).await;
    grants.stop().await;
    grants.stop().await;
    sleep(secs(6)).await;
    assert!(grants.fresh().await.is_err());
    assert!(grants.by_id(&user("ann")).is_some());
}

#[derive(Debug, Clone)]
enum SimStep {
    Flip(usize),
    Call,
    Advance(u64),
    AnswerAfter(u64),
    Fail(bool),
    Hang(bool),
    Hint,
    Restore,
}

fn step() -> impl Strategy<Value = SimStep> {
    prop_oneof![
        4 => (0..3usize).prop_map(SimStep::Flip),
        8 => Just(SimStep::Call),
        6 => (0..3_000u64).prop_map(SimStep::Advance),
        2 => (0..1_500u64).prop_map(SimStep::AnswerAfter),
        1 => any::<bool>().prop_map(SimStep::Fail),
        1 => any::<bool>().prop_map(SimStep::Hang),
        1 => Just(SimStep::Hint),
        1 => Just(SimStep::Restore),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// The contract itself: a call that is let in knows everything that was committed more than `max_staleness` before.
    #[test]
    fn no_call_is_decided_on_older_knowledge_than_promised(steps in proptest::collection::vec(step(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let store = FakeStore::new(["u0", "u1", "u2"]);
            let grants = Grants::from_source(DirectorySource::Fake(store.clone()), &GrantsConfig::default()).await.unwrap();
            for step in steps {
                match step {
                    SimStep::Flip(n) => store.flip(&format!("u{n}")),
                    SimStep::Advance(by) => sleep(millis(by)).await,
                    SimStep::AnswerAfter(by) => store.answer_after(millis(by)),
                    SimStep::Fail(fails) => store.fail(fails),
                    SimStep::Hang(hangs) => store.hang(hangs),
                    SimStep::Hint => grants.confirm_now(),
                    SimStep::Restore => store.restore(|_| {}),
                    SimStep::Call => {
                        let called = Instant::now();
                        let answer = grants.fresh().await;
                        prop_assert!(called.elapsed() <= millis(801), "{:?}", called.elapsed());
                        let Ok(view) = answer else { continue };
                        prop_assert!(view.age <= secs(5), "{:?}", view);
                        for n in 0..3 {
                            let name = format!("u{n}");
                            let seen = grants.by_id(&user(&name)).unwrap().grants[0].status;
                            let possible = store.since(&name, view.age);
                            prop_assert!(possible.contains(&seen), "{name} is seen {seen:?}, it was {possible:?}");
                        }
                    }
                }
            }
            grants.stop().await;
            Ok(())
        })?;
    }
}

async fn started(change: impl FnOnce(&mut GrantsConfig)) -> (Grants, FakeStore) {
    let mut config = GrantsConfig::default();
    change(&mut config);
    let store = FakeStore::new(["ann"]);
    let grants = Grants::from_source(DirectorySource::Fake(store.clone()), &config)
        .await
        .unwrap();
    (grants, store)
}

fn status(grants: &Grants) -> GrantStatus {
    grants.by_id(&user("ann")).unwrap().grants[0].status
}

fn ticket(name: &str, view: GrantsView) -> GrantSnapshot {
    let principal = Principal {
        method: AuthMethod::Key,
        key: Some(key_id(name)),
        ..principal(name)
    };
    GrantSnapshot {
        generation: view.generation,
        member: user(name),
        grant: Some((GrantId::parse(name).unwrap(), 1)),
        principal: Arc::new(principal),
    }
}

fn principal(name: &str) -> Principal {
    let (issuer, subject) = identity(name);
    Principal::new(
        PrincipalKind::User,
        issuer,
        IssuerAlias::parse("main").unwrap(),
        subject,
        AuthMethod::Jwt,
        Fingerprint::of(&Digest::ZERO),
    )
}
