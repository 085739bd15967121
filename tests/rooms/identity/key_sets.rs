//! Key sets: fetched once, kept for a while, forgotten when they change.

use super::*;

#[tokio::test]
async fn a_rotated_key_is_fetched_and_the_old_one_forgotten() {
    let (old, new) = (Signer::p256("old"), Signer::p256("new"));
    let keys = Publisher::start(key_set(&[&old])).await;
    let identity = identity("rotation", &oidc("a", ISSUER, &keys.url, ""));
    let refetch = Duration::from_secs(30);
    let (before, after) = (old.sign(&oidc_claims(json!({}))), new.sign(&oidc_claims(json!({}))));
    let credential = Credential::Token {
        text: &before,
        assertion: false,
    };
    prove(&identity, &before).await.unwrap();
    assert!(identity.cached(&credential, RESOURCE, at(0)).is_some());

    keys.publish(200, key_set(&[&new]));
    pass(refetch).await;
    assert_eq!(reason(&identity, &after).await, None, "an unknown key id makes it look again");
    assert_eq!(keys.fetches(), 2);
    assert!(
        identity.cached(&credential, RESOURCE, at(0)).is_none(),
        "what the old key proved is forgotten"
    );
    pass(refetch).await;
    assert_eq!(reason(&identity, &before).await, Some(Reason::UnknownSigningKey));

    for (status, body) in [
        (500, key_set(&[&old])),
        (302, key_set(&[&old])),
        (200, "<html>".to_owned()),
        (200, format!("{{\"keys\":[{}]}}", vec!["{}"; 10_000].join(","))),
        (200, format!("{}{}", key_set(&[&old]), " ".repeat(300 * 1024))),
    ] {
        keys.publish(status, body);
        let fetches = keys.fetches();
        pass(refetch).await;
        assert_eq!(reason(&identity, &before).await, Some(Reason::UnknownSigningKey), "{status}");
        assert_eq!(
            keys.fetches(),
            fetches + 1,
            "{status}: it was asked once, and a redirect was not followed"
        );
        let again = new.sign(&oidc_claims(json!({"jti": fetches.to_string()})));
        assert_eq!(reason(&identity, &again).await, None, "the last good set stays");
        assert!(identity.issuers()[0].error.is_some());
    }
}

#[tokio::test]
async fn unknown_key_ids_cannot_make_it_fetch_often() {
    let signer = Signer::p256("1");
    let keys = Publisher::start(key_set(&[&signer])).await;
    let identity = Arc::new(identity("flood", &oidc("a", ISSUER, &keys.url, "")));
    let mut proofs = tokio::task::JoinSet::new();
    for at in 0..200 {
        let identity = identity.clone();
        let token = signer.sign_as(
            &json!({"alg": "ES256", "kid": format!("kid-{at}")}).to_string(),
            &oidc_claims(json!({})).to_string(),
        );
        proofs.spawn(async move { reason(&identity, &token).await });
    }
    for refused in soon(proofs.join_all()).await {
        assert_eq!(refused, Some(Reason::UnknownSigningKey));
    }
    assert_eq!(keys.fetches(), 1, "all of them joined the first");
    assert_eq!(reason(&identity, &signer.sign(&oidc_claims(json!({})))).await, None);
    assert_eq!(keys.fetches(), 1);
}

#[tokio::test]
async fn an_issuer_that_is_down_stops_nobody_else() {
    let (signer, other) = (Signer::p256("1"), Signer::p256("1"));
    let (up, hanging) = (
        Publisher::start(key_set(&[&signer])).await,
        Publisher::start(key_set(&[&other])).await,
    );
    let go_on = Arc::new(Notify::new());
    *hanging.gate.lock().unwrap() = Some(go_on.clone());
    let (hung, refused) = ("https://hung.example.com", "https://refused.example.com");
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let issuers = oidc("up", ISSUER, &up.url, "")
        + &oidc("hung", hung, &hanging.url, "")
        + &oidc("refused", refused, &format!("http://{closed}/"), "");
    let identity = Arc::new(identity("down", &issuers));
    let token = other.sign(&oidc_claims(json!({"iss": hung})));
    let (waiting, held) = (identity.clone(), token.clone());
    let waiting = tokio::spawn(async move { prove(&waiting, &held).await });
    soon(hanging.arrived.notified()).await;

    assert_eq!(reason(&identity, &signer.sign(&oidc_claims(json!({})))).await, None);
    for _ in 0..2 {
        let unavailable = reason(&identity, &signer.sign(&oidc_claims(json!({"iss": refused})))).await;
        assert_eq!(unavailable, Some(Reason::IssuerUnavailable));
    }
    assert!(!waiting.is_finished());
    go_on.notify_one();
    assert!(soon(waiting).await.unwrap().is_ok());
    let states = identity.issuers();
    assert_eq!(
        states.iter().map(|state| state.keys.is_some()).collect::<Vec<_>>(),
        [true, true, false]
    );
}

#[tokio::test]
async fn a_caller_that_hangs_up_does_not_stop_the_fetch() {
    let signer = Signer::p256("1");
    let keys = Publisher::start(key_set(&[&signer])).await;
    let go_on = Arc::new(Notify::new());
    *keys.gate.lock().unwrap() = Some(go_on.clone());
    let identity = Arc::new(identity("hang-up", &oidc("a", ISSUER, &keys.url, "")));
    let token = signer.sign(&oidc_claims(json!({})));
    let (first, text) = (identity.clone(), token.clone());
    let first = tokio::spawn(async move { prove(&first, &text).await });
    soon(keys.arrived.notified()).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    go_on.notify_one();
    assert_eq!(reason(&identity, &token).await, None);
    assert_eq!(keys.fetches(), 1);
    soon(identity.stop()).await;
}

#[tokio::test]
async fn what_was_proved_is_remembered_no_longer_than_it_holds() {
    let signer = Signer::p256("1");
    let keys = Publisher::start(key_set(&[&signer])).await;
    let identity = Arc::new(identity("memory", &oidc("a", ISSUER, &keys.url, "audiences = [\"any\"]")));
    let token = signer.sign(&oidc_claims(json!({"aud": "any"})));
    let credential = Credential::Token {
        text: &token,
        assertion: false,
    };
    assert!(identity.cached(&credential, RESOURCE, at(0)).is_none());
    let proved = prove(&identity, &token).await.unwrap();
    let known = identity.cached(&credential, RESOURCE, at(0)).unwrap();
    assert!(Arc::ptr_eq(&proved, &known));
    assert!(
        identity
            .cached(&credential, "https://mcp.example.com/mcp/other", at(0))
            .is_none(),
        "for one resource"
    );
    assert!(
        identity
            .cached(
                &Credential::Token {
                    text: &token,
                    assertion: true
                },
                RESOURCE,
                at(0)
            )
            .is_none()
    );
    assert!(identity.cached(&credential, RESOURCE, at(629)).is_some());
    assert!(
        identity.cached(&credential, RESOURCE, at(630)).is_none(),
        "not past its end and the tolerance for clocks"
    );
    assert_eq!(prove_at(&identity, &token, at(700)).await.err(), Some(Reason::TokenExpired));
    identity.forget_all();
    assert!(identity.cached(&credential, RESOURCE, at(0)).is_none());
}

#[tokio::test]
async fn a_proof_that_a_revocation_overtakes_is_not_remembered() {
    let signer = Signer::p256("1");
    let keys = Publisher::start(key_set(&[&signer])).await;
    let go_on = Arc::new(Notify::new());
    *keys.gate.lock().unwrap() = Some(go_on.clone());
    let identity = Arc::new(identity("overtaken", &oidc("a", ISSUER, &keys.url, "")));
    let token = signer.sign(&oidc_claims(json!({})));
    let (proving, text) = (identity.clone(), token.clone());
    let proving = tokio::spawn(async move { prove(&proving, &text).await });
    soon(keys.arrived.notified()).await;
    identity.forget_all();
    go_on.notify_one();
    assert!(soon(proving).await.unwrap().is_ok());
    assert!(
        identity
            .cached(
                &Credential::Token {
                    text: &token,
                    assertion: false
                },
                RESOURCE,
                at(0)
            )
            .is_none()
    );
}

#[test]
fn what_the_configuration_accepts_of_an_issuer_is_accepted_at_the_start() {
    let pepper = pepper(&scratch("accepted"));
    for url in [
        "https://id.example.com/keys",
        "http://localhost:3000/keys",
        "http://LOCALHOST/keys",
        "http://127.0.0.2/keys",
        "http://[::1]:3000/keys",
    ] {
        let accepted = Identity::new(&config(&oidc("a", ISSUER, url, "")), pepper.clone());
        assert!(accepted.is_ok(), "{url}: nothing is fetched");
    }
    for (kind, more) in [("supabase", ""), ("cloudflare_access", "audiences = [\"tag\"]")] {
        let issuers = format!("[[issuers]]\nalias = \"a\"\nkind = \"{kind}\"\nissuer = \"{ISSUER}\"\n{more}\n");
        assert!(
            Identity::new(&config(&issuers), pepper.clone()).is_ok(),
            "{kind} says where its keys are"
        );
    }
}

#[test]
fn keys_that_cannot_be_read_are_refused_at_the_start() {
    let dir = scratch("unreadable");
    let pepper = pepper(&dir);
    std::fs::write(dir.join("empty.json"), r#"{"keys":[]}"#).unwrap();
    let issuer = |more: &str| format!("[[issuers]]\nalias = \"a\"\nkind = \"oidc\"\nissuer = \"{ISSUER}\"\n{more}\n");
    let empty = format!("jwks_file = \"{}\"", dir.join("empty.json").display());
    for (issuers, sentence) in [
        (issuer("jwks_file = \"/missing.json\""), "`/missing.json` cannot be used"),
        (issuer(&empty), "it holds no key"),
        (
            oidc("a", ISSUER, "https://id.example.com/keys", "jwks_ca_file = \"/missing.pem\""),
            "`jwks_ca_file` of issuer `a` cannot be used",
        ),
    ] {
        let error: IdentityError = Identity::new(&config(&issuers), pepper.clone()).err().expect(sentence);
        assert!(error.to_string().contains(sentence), "`{error}` should say `{sentence}`");
    }
}
