//! A store that is not as it should be: with rows that cannot be read.

use super::super::Grants;
use super::super::script::{issuer, secs};
use super::{principal, started};
use crate::domain::{Issuer, PartialRevocation, Principal, RevocationKind, Timestamp};
use tokio::time::sleep;

#[tokio::test(start_paused = true)]
async fn rows_that_cannot_be_read_are_counted_as_they_are_now() {
    let (grants, script) = started(|_| {}).await;
    let count = |grants: &Grants| grants.unreadable()["grants"];
    assert_eq!(grants.unreadable().len(), 6, "each table is told, also with nothing to tell");
    for (name, columns, rows) in [
        ("ann", &["scopes"][..], 1),
        ("ann", &["scopes", "status"], 2),
        ("bob", &["scopes"], 3),
        ("ann", &[], 1),
        ("bob", &[], 0),
    ] {
        sleep(secs(1)).await;
        script.unreadable(name, columns);
        grants.confirm().await.unwrap();
        assert_eq!(count(&grants), rows, "{name} {columns:?}");
    }
    sleep(secs(1)).await;
    script.unreadable("ann", &["scopes"]);
    script.restore(|_| {});
    grants.confirm().await.unwrap();
    assert_eq!((count(&grants), grants.counts().reloads), (1, 2));
    grants.stop().await;
}

/// What is not known of it is taken for all that it could be.
#[tokio::test(start_paused = true)]
async fn a_revocation_that_cannot_be_read_refuses_whatever_it_may_be_about() {
    let (grants, script) = started(|_| {}).await;
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
        script.partial_revocations(vec![row.clone()]);
        grants.confirm().await.unwrap();
        let asked = [&ann, &other_session, &elsewhere, &as_token, &later];
        assert_eq!(asked.map(|who| grants.revoked(who, at(150))), hits, "{row:?}");
        assert_eq!(asked.map(|who| grants.revoked(who, at(200))), [false; 5], "{row:?}");
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
    script.partial_revocations(vec![over, lasting]);
    grants.confirm().await.unwrap();
    assert!(grants.revoked(&ann, at(150)) && !grants.revoked(&ann, at(200)));
    grants.stop().await;
}
