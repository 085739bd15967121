//! Tokens that are forged, for another audience or of another kind are refused.

use super::*;

#[tokio::test]
async fn a_forged_or_misdirected_token_names_nobody() {
    let (ours, theirs, unpublished) = (Signer::p256("1"), Signer::p256("1"), Signer::p256("1"));
    let (a, b) = (
        Publisher::start(key_set(&[&ours])).await,
        Publisher::start(key_set(&[&theirs])).await,
    );
    let other = "https://other.example.com";
    let issuers = oidc("a", ISSUER, &a.url, "") + &oidc("b", other, &b.url, "");
    let identity = identity("forged", &issuers);
    let good = oidc_claims(json!({}));
    let trap = Publisher::start(key_set(&[&unpublished])).await;

    assert_eq!(reason(&identity, &ours.sign(&good)).await, None);
    assert_eq!(
        reason(&identity, &theirs.sign(&with(good.clone(), json!({"iss": other})))).await,
        None
    );

    use Reason::*;
    let header = |header: Value| ours.sign_as(&header.to_string(), &good.to_string());
    let hmac = |secret: &[u8]| {
        Signer {
            id: "1",
            algorithm: Algorithm::HS256,
            key: EncodingKey::from_secret(secret),
            public: json!({}),
        }
        .sign(&good)
    };
    let signed = ours.sign(&good);
    let (message, signature) = signed.rsplit_once('.').unwrap();
    let swapped = format!(
        "{}.{}",
        ours.sign(&oidc_claims(json!({"sub": "root"}))).rsplit_once('.').unwrap().0,
        signature
    );
    let none = format!("{}.{}.", base64(r#"{"alg":"none","kid":"1"}"#), base64(good.to_string()));
    let raw_point = [base64_bytes(&ours.public["x"]), base64_bytes(&ours.public["y"])].concat();
    let twice = format!("{},\"sub\":\"root\"}}", good.to_string().trim_end_matches('}'));
    let cases = [
        ("no signature", format!("{message}."), BadSignature),
        ("another token's signature", swapped, BadSignature),
        ("alg none", none, WrongAlgorithm),
        ("HMAC with the public key", hmac(&raw_point), WrongAlgorithm),
        (
            "HMAC with the published key",
            hmac(ours.public.to_string().as_bytes()),
            WrongAlgorithm,
        ),
        (
            "an algorithm that is not configured",
            header(json!({"alg": "ES384", "kid": "1"})),
            WrongAlgorithm,
        ),
        (
            "RS256 said of an EC key",
            header(json!({"alg": "RS256", "kid": "1"})),
            WrongAlgorithm,
        ),
        ("another issuer's key of the same id", theirs.sign(&good), BadSignature),
        (
            "our key for another issuer",
            ours.sign(&with(good.clone(), json!({"iss": other}))),
            BadSignature,
        ),
        ("a key nobody published", unpublished.sign(&good), BadSignature),
        (
            "an unknown key id",
            header(json!({"alg": "ES256", "kid": "2"})),
            UnknownSigningKey,
        ),
        (
            "a path as key id",
            header(json!({"alg": "ES256", "kid": "../../1"})),
            UnknownSigningKey,
        ),
        (
            "SQL as key id",
            header(json!({"alg": "ES256", "kid": "1' OR '1'='1"})),
            UnknownSigningKey,
        ),
        ("no key id", header(json!({"alg": "ES256"})), UnknownSigningKey),
        (
            "its own key in the header",
            unpublished.sign_as(
                &json!({"alg": "ES256", "kid": "1", "jwk": unpublished.public}).to_string(),
                &good.to_string(),
            ),
            BadSignature,
        ),
        (
            "its own key set in the header",
            unpublished.sign_as(
                &json!({"alg": "ES256", "kid": "9", "jku": trap.url, "x5u": trap.url}).to_string(),
                &good.to_string(),
            ),
            UnknownSigningKey,
        ),
        (
            "crit",
            header(json!({"alg": "ES256", "kid": "1", "crit": ["exp"]})),
            MalformedCredential,
        ),
        (
            "a claim named twice",
            ours.sign_as(r#"{"alg":"ES256","kid":"1"}"#, &twice),
            MalformedCredential,
        ),
        ("not a token", "not-a-token".to_owned(), MalformedCredential),
    ];
    for (what, token, expected) in &cases {
        assert_eq!(reason(&identity, token).await, Some(*expected), "{what}");
        assert_eq!(reason(&identity, token).await, Some(*expected), "{what}, again");
    }
    assert_eq!(trap.fetches(), 0, "nothing that a token points at is fetched");
    assert_eq!((a.fetches(), b.fetches()), (1, 1));
    assert_eq!(reason(&identity, &signed).await, None, "and the genuine one still passes");
}

fn base64_bytes(value: &Value) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(value.as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn how_long_a_token_may_live_is_configured_by_issuer() {
    let signer = Signer::p256("1");
    let keys = Publisher::start(key_set(&[&signer])).await;
    let short = identity("short-lives", &oidc("a", ISSUER, &keys.url, "max_lifetime = \"10m\""));
    for (seconds, expected) in [(600, None), (601, Some(Reason::TokenLivesTooLong))] {
        let token = signer.sign(&oidc_claims(json!({"exp": NOW + seconds})));
        assert_eq!(reason(&short, &token).await, expected, "{seconds}");
    }
}

#[tokio::test]
async fn each_claim_is_asked_for_by_value_and_by_type() {
    let signer = Signer::p256("1");
    let keys = Publisher::start(key_set(&[&signer])).await;
    let identity = identity(
        "claims",
        &oidc("a", ISSUER, &keys.url, "also_accept = [\"https://old.example.com\"]"),
    );
    use Reason::*;
    for (changes, expected) in [
        (json!({}), None),
        (json!({"iss": "https://old.example.com"}), None),
        (json!({"aud": ["x", RESOURCE]}), None),
        (json!({"exp": NOW - 29}), None),
        (json!({"exp": NOW as f64 + 0.5}), None),
        (json!({"nbf": NOW + 30, "iat": NOW + 30}), None),
        (json!({"iat": null}), None),
        (json!({"typ": "Bearer"}), None),
        (json!({"iss": null}), Some(MalformedCredential)),
        (json!({"iss": [ISSUER]}), Some(MalformedCredential)),
        (json!({"iss": format!("{ISSUER}/")}), Some(UnknownIssuer)),
        (json!({"iss": "https://ID.example.com"}), Some(UnknownIssuer)),
        (json!({"iss": ""}), Some(UnknownIssuer)),
        (json!({"aud": null}), Some(WrongAudience)),
        (json!({"aud": "https://mcp.example.com"}), Some(WrongAudience)),
        (json!({"aud": format!("{RESOURCE}/")}), None),
        (json!({"aud": format!("{RESOURCE}//")}), Some(WrongAudience)),
        (json!({"aud": []}), Some(WrongAudience)),
        (json!({"aud": {"a": RESOURCE}}), Some(MalformedCredential)),
        (json!({"aud": [RESOURCE, 1]}), Some(MalformedCredential)),
        (json!({"aud": 1}), Some(MalformedCredential)),
        (json!({"exp": null}), Some(MalformedCredential)),
        (json!({"exp": "9999999999"}), Some(MalformedCredential)),
        (json!({"exp": [NOW + 600]}), Some(MalformedCredential)),
        (json!({"exp": NOW - 30}), Some(TokenExpired)),
        (json!({"exp": -1}), Some(TokenExpired)),
        (json!({"exp": NOW + 86_400}), None),
        (json!({"exp": NOW + 86_401}), Some(TokenLivesTooLong)),
        (json!({"exp": NOW + 86_400, "iat": NOW - 1}), Some(TokenLivesTooLong)),
        (json!({"exp": NOW + 86_400, "iat": null}), None),
        (json!({"exp": NOW + 86_401, "iat": null}), Some(TokenLivesTooLong)),
        // The last second of the year 9999, and the one after it.
        (json!({"exp": 253_402_300_799_i64}), Some(TokenLivesTooLong)),
        (json!({"exp": 253_402_300_800_i64}), Some(MalformedCredential)),
        (json!({"exp": i64::MAX}), Some(MalformedCredential)),
        (json!({"exp": 1e300}), Some(MalformedCredential)),
        (json!({"iat": i64::MIN}), Some(MalformedCredential)),
        (json!({"nbf": -1e300}), Some(MalformedCredential)),
        (json!({"nbf": NOW + 31}), Some(TokenNotYetValid)),
        (json!({"nbf": "0"}), Some(MalformedCredential)),
        (json!({"iat": NOW + 31}), Some(TokenNotYetValid)),
        (json!({"iat": true}), Some(MalformedCredential)),
        (json!({"sub": null}), Some(MalformedCredential)),
        (json!({"sub": ""}), Some(MalformedCredential)),
        (json!({"sub": 1}), Some(MalformedCredential)),
        (json!({"sub": "a\nb"}), Some(MalformedCredential)),
        (json!({"azp": 1}), Some(MalformedCredential)),
        (json!({"typ": "ID"}), Some(WrongTokenKind)),
        (json!({"typ": "Refresh"}), Some(WrongTokenKind)),
        (json!({"at_hash": "x"}), Some(WrongTokenKind)),
        (json!({"cnf": {"jkt": "x"}}), Some(WrongTokenKind)),
    ] {
        let token = signer.sign(&oidc_claims(changes.clone()));
        assert_eq!(reason(&identity, &token).await, expected, "{changes}");
    }
    for (kind, expected) in [
        ("at+jwt", None),
        ("JWT", None),
        ("dpop+jwt", Some(WrongTokenKind)),
        ("logout+jwt", Some(WrongTokenKind)),
    ] {
        let header = json!({"alg": "ES256", "kid": "1", "typ": kind}).to_string();
        let token = signer.sign_as(&header, &oidc_claims(json!({})).to_string());
        assert_eq!(reason(&identity, &token).await, expected, "{kind}");
    }
}

#[tokio::test]
async fn of_supabase_only_signed_in_people_are_callers() {
    let signer = Signer::p256("1");
    let keys = Publisher::start(key_set(&[&signer])).await;
    let iss = "https://project.supabase.co/auth/v1";
    let issuer = |more: &str| {
        format!(
            "[[issuers]]\nalias = \"main\"\nkind = \"supabase\"\nissuer = \"{iss}\"\njwks_url = \"{}\"\n{more}\n",
            keys.url
        )
    };
    let claims = |changes: Value| {
        let base = json!({
            "iss": iss, "aud": "authenticated", "exp": NOW + 600, "iat": NOW, "sub": "5b2f", "role": "authenticated", "aal": "aal2",
            "session_id": "s-1", "email": "a@example.com", "phone": "", "is_anonymous": false,
            "app_metadata": {"environments": ["production"], "tenant": "acme", "roles": ["analyst"]},
            "user_metadata": {"environments": ["production"], "roles": ["root"]}, "amr": [{"method": "password", "timestamp": NOW}],
        });
        signer.sign(&with(base, changes))
    };
    use Reason::*;
    let strict = identity("supabase", &issuer(""));
    for (changes, expected) in [
        (json!({}), None),
        (json!({"role": "anon"}), Some(WrongTokenKind)),
        (json!({"role": "service_role"}), Some(WrongTokenKind)),
        (json!({"role": null}), Some(WrongTokenKind)),
        (json!({"role": ["authenticated"]}), Some(MalformedCredential)),
        (json!({"session_id": null}), Some(WrongTokenKind)),
        (json!({"session_id": ""}), Some(WrongTokenKind)),
        (
            json!({"role": null, "session_id": null, "aud": "client-1"}),
            Some(WrongAudience),
        ),
        (json!({"is_anonymous": true}), Some(WrongTokenKind)),
        (json!({"is_anonymous": "false"}), Some(MalformedCredential)),
        (json!({"iat": null}), Some(MalformedCredential)),
        (json!({"sub": null}), Some(MalformedCredential)),
        (json!({"iss": "supabase", "sub": null}), Some(UnknownIssuer)),
        (json!({"aud": RESOURCE}), Some(WrongAudience)),
    ] {
        assert_eq!(reason(&strict, &claims(changes.clone())).await, expected, "{changes}");
    }
    let anonymous = identity("supabase-anonymous", &issuer("allow_anonymous = true"));
    assert_eq!(reason(&anonymous, &claims(json!({"is_anonymous": true}))).await, None);

    let bound = identity(
        "supabase-bound",
        &issuer(
            "environment_claim = \"app_metadata.environments\"\nroles_claim = \"app_metadata.roles\"\n\
             tenant_claim = \"app_metadata.tenant\"\nclient_ids = [\"desktop\"]",
        ),
    );
    let desktop = claims(json!({"client_id": "desktop"}));
    let principal = prove(&bound, &desktop).await.unwrap();
    assert_eq!((principal.kind, principal.method), (PrincipalKind::User, AuthMethod::Jwt));
    assert_eq!(
        (
            principal.issuer.as_str(),
            principal.alias.as_str(),
            principal.subject.as_str()
        ),
        (iss, "main", "5b2f")
    );
    assert_eq!(
        (principal.email.as_deref(), principal.tenant.as_deref()),
        (Some("a@example.com"), Some("acme"))
    );
    assert_eq!(
        (principal.assurance.as_deref(), principal.token_session.as_deref()),
        (Some("aal2"), Some("s-1"))
    );
    assert_eq!(principal.client.as_ref().map(|client| client.as_str()), Some("desktop"));
    assert_eq!(
        principal.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>(),
        ["analyst"]
    );
    assert_eq!((principal.issued_at, principal.expires_at), (Some(at(0)), Some(at(630))));
    assert!(
        Digest::of(desktop.as_bytes())
            .to_string()
            .starts_with(&principal.fingerprint.to_string())
    );
    for (changes, expected) in [
        (json!({"client_id": "phone"}), WrongAudience),
        (json!({}), WrongAudience),
        (json!({"client_id": "desktop", "azp": "phone"}), WrongAudience),
        (
            json!({"client_id": "desktop", "app_metadata": {"environments": ["dev"]}}),
            WrongEnvironment,
        ),
        (
            json!({"client_id": "desktop", "app_metadata": {"environments": "prod"}}),
            WrongEnvironment,
        ),
        (json!({"client_id": "desktop", "app_metadata": {}}), WrongEnvironment),
        (
            json!({"client_id": "desktop", "app_metadata": {"environments": {"production": true}}}),
            MalformedCredential,
        ),
        (
            json!({"client_id": "desktop", "app_metadata": {"environments": ["production"], "tenant": ["a", "b"]}}),
            MalformedCredential,
        ),
        (
            json!({"client_id": "desktop", "app_metadata": {"environments": ["production"], "roles": [1]}}),
            MalformedCredential,
        ),
    ] {
        assert_eq!(reason(&bound, &claims(changes.clone())).await, Some(expected), "{changes}");
    }
}

#[tokio::test]
async fn the_scopes_of_a_token_are_read_where_its_issuer_writes_them() {
    let signer = Signer::p256("1");
    let keys = Publisher::start(key_set(&[&signer])).await;
    let iss = "https://id.example";
    let issuer = |more: &str| {
        format!(
            "[[issuers]]\nalias = \"main\"\nkind = \"oidc\"\nissuer = \"{iss}\"\njwks_url = \"{}\"\n{more}\n",
            keys.url
        )
    };
    let claims = |changes: Value| {
        let base = json!({ "iss": iss, "aud": RESOURCE, "exp": NOW + 600, "iat": NOW, "sub": "5b2f" });
        signer.sign(&with(base, changes))
    };
    let narrows = identity("scopes", &issuer("scopes_claim = \"scope\""));
    for (changes, expected) in [
        (json!({"scope": "echo query"}), vec!["echo", "query"]),
        (json!({"scope": ["echo", "query all"]}), vec!["all", "echo", "query"]),
        (json!({"scope": "*"}), vec!["*"]),
        (json!({"scope": "  echo \u{e9} "}), vec!["echo"]),
        (json!({"scope": ""}), vec![]),
        (json!({"scp": "echo"}), vec![]),
    ] {
        let principal = prove(&narrows, &claims(changes.clone())).await.unwrap();
        let scopes = principal.narrowed_to.as_ref().expect("a token of this issuer always narrows");
        assert_eq!(
            scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>(),
            expected,
            "{changes}"
        );
    }
    for changes in [
        json!({"scope": 1}),
        json!({"scope": {"echo": true}}),
        json!({"scope": ["echo", 1]}),
    ] {
        assert_eq!(
            reason(&narrows, &claims(changes.clone())).await,
            Some(Reason::MalformedCredential),
            "{changes}"
        );
    }
    let grants_alone = identity("no-scopes", &issuer(""));
    let principal = prove(&grants_alone, &claims(json!({"scope": "echo"}))).await.unwrap();
    assert_eq!(principal.narrowed_to, None);
}

#[tokio::test]
async fn of_cloudflare_access_only_its_application_assertions_count() {
    let (signer, other) = (Signer::rsa("1"), Signer::p256("1"));
    let (keys, other_keys) = (
        Publisher::start(key_set(&[&signer])).await,
        Publisher::start(key_set(&[&other])).await,
    );
    let iss = "https://team.cloudflareaccess.com";
    let issuers = format!(
        "[[issuers]]\nalias = \"access\"\nkind = \"cloudflare_access\"\nissuer = \"{iss}\"\njwks_url = \"{}\"\naudiences = [\"tag\"]\n",
        keys.url
    ) + &oidc("other", ISSUER, &other_keys.url, "");
    let identity = identity("cloudflare", &issuers);
    let claims = |changes: Value| {
        let base = json!({"iss": iss, "aud": ["tag"], "type": "app", "sub": "u-1", "email": "a@example.com", "exp": NOW + 60, "iat": NOW, "nbf": NOW});
        signer.sign(&with(base, changes))
    };
    let assert = async |token: &str| {
        soon(identity.verify(
            &Credential::Token {
                text: token,
                assertion: true,
            },
            None,
            RESOURCE,
            SOURCE,
            at(0),
        ))
        .await
    };
    let person = assert(&claims(json!({}))).await.unwrap();
    assert_eq!((person.kind, person.subject.as_str()), (PrincipalKind::User, "u-1"));
    let service = assert(&claims(json!({"sub": "", "common_name": "bot.access", "email": null})))
        .await
        .unwrap();
    assert_eq!(
        (service.kind, service.subject.as_str()),
        (PrincipalKind::Service, "bot.access")
    );
    use Reason::*;
    for (changes, expected) in [
        (json!({"type": "org"}), WrongTokenKind),
        (json!({"type": null}), WrongTokenKind),
        (json!({"aud": ["other tag"]}), WrongAudience),
        (json!({"sub": ""}), MalformedCredential),
        (json!({"sub": null, "common_name": "bot"}), MalformedCredential),
        (json!({"sub": "", "common_name": ""}), MalformedCredential),
    ] {
        assert_eq!(assert(&claims(changes.clone())).await.err(), Some(expected), "{changes}");
    }
    let elsewhere = other.sign(&oidc_claims(json!({})));
    assert_eq!(reason(&identity, &elsewhere).await, None);
    assert_eq!(
        assert(&elsewhere).await.err(),
        Some(UnknownIssuer),
        "the assertion header is Cloudflare's alone"
    );
}

#[tokio::test]
async fn every_configured_algorithm_verifies_with_a_key_of_its_kind() {
    let (ec, rsa, ed) = (Signer::p256("ec"), Signer::rsa("rsa"), Signer::ed25519("ed"));
    let dir = scratch("algorithms");
    std::fs::write(dir.join("keys.json"), key_set(&[&ec, &rsa, &ed])).unwrap();
    let issuer = |algorithms: &str| {
        let file = dir.join("keys.json");
        let more = format!("jwks_file = \"{}\"\nalgorithms = {algorithms}", file.display());
        format!("[[issuers]]\nalias = \"a\"\nkind = \"oidc\"\nissuer = \"{ISSUER}\"\n{more}\n")
    };
    let all = identity("algorithms-all", &issuer(r#"["ES256", "RS256", "EdDSA"]"#));
    for signer in [&ec, &rsa, &ed] {
        assert_eq!(
            reason(&all, &signer.sign(&oidc_claims(json!({})))).await,
            None,
            "{:?}",
            signer.algorithm
        );
    }
    let one = identity("algorithms-one", &issuer(r#"["RS256"]"#));
    assert_eq!(
        reason(&one, &ec.sign(&oidc_claims(json!({})))).await,
        Some(Reason::WrongAlgorithm)
    );
    assert_eq!(reason(&one, &rsa.sign(&oidc_claims(json!({})))).await, None);
}
