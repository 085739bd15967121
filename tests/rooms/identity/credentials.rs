//! API keys and client certificates.

use super::*;

fn member(id: &str) -> Member {
    Member::new(UserId::parse(id).unwrap(), PrincipalKind::Service)
}

#[tokio::test]
async fn an_api_key_names_its_owner_for_as_long_as_the_store_says_so() {
    let dir = scratch("keys");
    let pepper = pepper(&dir);
    let identity = Identity::new(&config(""), pepper.clone()).unwrap();
    let new = pepper.new_key().unwrap();
    let stored = ApiKey {
        id: new.id.clone(),
        name: "ci".to_owned(),
        hash: new.hash,
        pepper_version: new.pepper_version,
        scopes: [Scope::parse("read").unwrap()].into_iter().collect(),
        created_at: at(-100),
        expires_at: Some(at(100)),
        revoked_at: None,
    };
    let with = |key: ApiKey| {
        Arc::new(Member {
            keys: vec![key],
            ..member("u-1")
        })
    };
    let store = Mutex::new(Some(with(stored.clone())));
    let mut headers = HeaderMap::new();
    headers.insert(
        "authorization",
        format!("Bearer {}", new.shown.expose_secret()).parse().unwrap(),
    );
    let presented = identity.extract_credential(&headers, None).unwrap();
    let prove = async |now: i64| {
        let owner = store.lock().unwrap().clone();
        identity.verify(&presented, owner, RESOURCE, SOURCE, at(now)).await
    };

    let principal = prove(0).await.unwrap();
    assert_eq!((principal.kind, principal.method), (PrincipalKind::Service, AuthMethod::Key));
    assert_eq!(
        (
            principal.issuer.as_str(),
            principal.alias.as_str(),
            principal.subject.as_str()
        ),
        ("guardian", "guardian", "u-1")
    );
    assert_eq!(
        (principal.key.as_ref(), principal.narrowed_to.as_ref()),
        (Some(&new.id), Some(&stored.scopes))
    );
    assert!(
        Arc::ptr_eq(&principal, &prove(1).await.unwrap()),
        "the same caller is the same value"
    );
    assert!(
        identity.cached(&presented, RESOURCE, at(0)).is_none(),
        "and is looked up every time all the same"
    );
    assert_eq!(prove(100).await.err(), Some(Reason::KeyExpired));

    *store.lock().unwrap() = Some(with(ApiKey {
        scopes: Scopes::default(),
        ..stored.clone()
    }));
    assert_eq!(prove(0).await.unwrap().narrowed_to, None, "changed scopes count at once");
    *store.lock().unwrap() = Some(with(ApiKey {
        revoked_at: Some(at(0)),
        ..stored.clone()
    }));
    assert_eq!(prove(0).await.err(), Some(Reason::KeyRevoked));
    let other = pepper.new_key().unwrap();
    *store.lock().unwrap() = Some(with(ApiKey {
        hash: other.hash,
        revoked_at: Some(at(0)),
        ..stored
    }));
    assert_eq!(
        prove(0).await.err(),
        Some(Reason::BadKey),
        "whoever has not the secret learns nothing of the key"
    );
    *store.lock().unwrap() = None;
    assert_eq!(prove(0).await.err(), Some(Reason::BadKey));
}

#[test]
fn a_pepper_is_made_once_whoever_comes_first() {
    let file = scratch("pepper").join("deep/pepper");
    let made: Vec<_> = std::thread::scope(|threads| {
        let makers: Vec<_> = (0..8)
            .map(|_| threads.spawn(|| Pepper::load_or_create(&file).unwrap().new_key().unwrap()))
            .collect();
        makers.into_iter().map(|maker| maker.join().unwrap()).collect()
    });
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let left: Vec<_> = std::fs::read_dir(file.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["pepper"], "nothing lies beside it");
    let identity = Identity::new(&config(""), Arc::new(Pepper::load_or_create(&file).unwrap())).unwrap();
    for new in made {
        let stored = ApiKey {
            id: new.id,
            name: String::new(),
            hash: new.hash,
            pepper_version: new.pepper_version,
            scopes: Scopes::default(),
            created_at: at(0),
            expires_at: None,
            revoked_at: None,
        };
        let mut headers = HeaderMap::new();
        headers.insert(
            "authorization",
            format!("Bearer {}", new.shown.expose_secret()).parse().unwrap(),
        );
        let presented = identity.extract_credential(&headers, None).unwrap();
        let owner = Arc::new(Member {
            keys: vec![stored],
            ..member("u-1")
        });
        let proof = identity.verify(&presented, Some(owner), RESOURCE, SOURCE, at(0));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert!(runtime.block_on(proof).is_ok(), "all of them have the same pepper");
    }
}

#[tokio::test]
async fn a_client_certificate_names_its_holder() {
    let identity = identity("certificate", "");
    let certificate = Arc::new(PeerCertificate {
        digest: Digest::of(b"der"),
        subject_cn: Some("Bot".to_owned()),
        uri_sans: vec!["spiffe://example/bot".to_owned()],
        dns_sans: Vec::new(),
        not_before: at(-10),
        not_after: at(10),
    });
    let headers = HeaderMap::new();
    let presented = identity.extract_credential(&headers, Some(&certificate)).unwrap();
    let prove = async |now: i64| identity.verify(&presented, None, RESOURCE, SOURCE, at(now)).await;
    let bot = prove(0).await.unwrap();
    assert_eq!(
        (bot.method, bot.issuer.as_str(), bot.subject.as_str()),
        (AuthMethod::Certificate, "certificate", "uri:spiffe://example/bot")
    );
    assert!(identity.cached(&presented, RESOURCE, at(9)).is_some());
    assert!(identity.cached(&presented, RESOURCE, at(10)).is_none());
    assert_eq!(prove(11).await.err(), Some(Reason::BadCertificate));
    let mut both = HeaderMap::new();
    both.insert("authorization", "Bearer a.b.c".parse().unwrap());
    assert_eq!(
        identity.extract_credential(&both, Some(&certificate)).err(),
        Some(Reason::SeveralCredentials)
    );
}
