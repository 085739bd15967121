//! Opaque tokens by RFC 7662: what is asked, how often, and which answers are taken.

use super::*;
use http_body_util::BodyExt;
use std::collections::HashMap;

const TOKEN: &str = "mcp_0123456789abcdef";

/// Status, media type and body.
type Fault = (StatusCode, &'static str, String);

/// An introspection endpoint that knows some tokens, and remembers every question.
struct Introspector {
    url: String,
    /// The body of the answer for each token; of every other token, it says that it is not active.
    tokens: Arc<Mutex<HashMap<String, String>>>,
    /// Instead of these answers.
    fault: Arc<Mutex<Option<Fault>>>,
    asked: Arc<Mutex<Vec<(String, String)>>>,
    gate: Arc<Mutex<Option<Arc<Notify>>>>,
    arrived: Arc<Notify>,
    shutdown: ShutdownHandle,
}

impl Introspector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (shutdown, stopped) = Shutdown::new();
        let server = Self {
            url: format!("http://{}/introspect", listener.local_addr().unwrap()),
            tokens: Arc::default(),
            fault: Arc::default(),
            asked: Arc::default(),
            gate: Arc::default(),
            arrived: Arc::default(),
            shutdown,
        };
        let (tokens, fault, asked) = (server.tokens.clone(), server.fault.clone(), server.asked.clone());
        let (gate, arrived) = (server.gate.clone(), server.arrived.clone());
        let handler = move |request: http::Request<hyper::body::Incoming>, _| {
            let (tokens, fault, asked) = (tokens.clone(), fault.clone(), asked.clone());
            let (gate, arrived) = (gate.clone(), arrived.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
                let authorization = head.headers["authorization"].to_str().unwrap().to_owned();
                asked.lock().unwrap().push((authorization, body.clone()));
                arrived.notify_one();
                let held = gate.lock().unwrap().clone();
                if let Some(held) = held {
                    held.notified().await;
                }
                let token = body.strip_prefix("token=").unwrap().split('&').next().unwrap().to_owned();
                let known = tokens.lock().unwrap().get(&token).cloned();
                let answer = (
                    StatusCode::OK,
                    "application/json",
                    known.unwrap_or(r#"{"active":false}"#.to_owned()),
                );
                let (status, media_type, body) = fault.lock().unwrap().clone().unwrap_or(answer);
                Response::builder()
                    .status(status)
                    .header("content-type", media_type)
                    .header("location", "/other")
                    .body(full(body))
                    .unwrap()
            }
        };
        tokio::spawn(serve(listener, None, ConnectionLimits::default(), handler, stopped));
        server
    }

    fn knows(&self, token: &str, answer: &Value) {
        self.tokens.lock().unwrap().insert(token.to_owned(), answer.to_string());
    }

    fn fails(&self, fault: Option<(u16, &'static str, &str)>) {
        let fault = fault.map(|(status, kind, body)| (StatusCode::from_u16(status).unwrap(), kind, body.to_owned()));
        *self.fault.lock().unwrap() = fault;
    }

    fn questions(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// An issuer that asks here, as TOML.
    fn issuer(&self, alias: &str, iss: &str, of_issuer: &str, more: &str) -> String {
        let url = &self.url;
        format!(
            "[[issuers]]\nalias = \"{alias}\"\nkind = \"oidc\"\nissuer = \"{iss}\"\n{of_issuer}\n\
             [issuers.introspection]\nurl = \"{url}\"\nclient_id = \"a b\"\nclient_secret = \"s:1+2\"\n{more}\n"
        )
    }
}

impl Drop for Introspector {
    fn drop(&mut self) {
        self.shutdown.abort();
    }
}

fn answer(changes: Value) -> Value {
    with(
        json!({"active": true, "sub": "alice", "aud": RESOURCE, "exp": NOW + 600, "iat": NOW, "client_id": "c",
            "token_type": "Bearer", "scope": "echo query"}),
        changes,
    )
}

#[tokio::test]
async fn a_token_is_asked_about_once_and_then_known_for_half_a_minute() {
    let server = Introspector::start().await;
    let identity = Arc::new(identity(
        "introspection-cache",
        &server.issuer("a", ISSUER, "scopes_claim = \"scope\"", ""),
    ));
    server.knows(TOKEN, &answer(json!({})));
    let go_on = Arc::new(Notify::new());
    *server.gate.lock().unwrap() = Some(go_on.clone());
    let mut proofs = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let identity = identity.clone();
        proofs.spawn(async move { prove(&identity, TOKEN).await });
    }
    soon(server.arrived.notified()).await;
    *server.gate.lock().unwrap() = None;
    go_on.notify_one();
    let proved = soon(proofs.join_all()).await;
    let first = proved[0].as_ref().unwrap().clone();
    assert!(proved.iter().all(|proof| proof.as_ref().is_ok_and(|other| **other == *first)));
    assert_eq!(server.questions(), 1, "one question for all of them");
    let (authorization, body) = server.asked.lock().unwrap()[0].clone();
    assert_eq!(authorization, "Basic YStiOnMlM0ExJTJCMg==", "a+b:s%3A1%2B2");
    assert_eq!(body, format!("token={TOKEN}&token_type_hint=access_token"));
    assert_eq!((first.issuer.as_str(), first.subject.as_str()), (ISSUER, "alice"));
    assert_eq!(
        first.expires_at,
        Some(at(600)),
        "no skew: it is the issuer's word of this moment"
    );
    let scopes: Scopes = ["echo", "query"]
        .into_iter()
        .map(|scope| Scope::parse(scope).unwrap())
        .collect();
    assert_eq!(first.narrowed_to, Some(scopes));

    pass(Duration::from_secs(29)).await;
    let credential = Credential::Token {
        text: TOKEN,
        assertion: false,
    };
    assert!(identity.cached(&credential, RESOURCE, at(29)).is_some());
    assert!(identity.cached(&credential, RESOURCE, at(600)).is_none(), "never past `exp`");
    assert_eq!(prove_at(&identity, TOKEN, at(600)).await.err(), Some(Reason::TokenExpired));
    assert_eq!(server.questions(), 1);
    pass(Duration::from_secs(1)).await;
    assert!(identity.cached(&credential, RESOURCE, at(30)).is_none());
    let again = prove_at(&identity, TOKEN, at(30)).await.unwrap();
    assert_eq!(server.questions(), 2);
    let third = identity.cached(&credential, RESOURCE, at(30)).unwrap();
    assert!(Arc::ptr_eq(&again, &third), "an unchanged principal keeps its address");

    server.tokens.lock().unwrap().clear();
    pass(Duration::from_secs(30)).await;
    for _ in 0..3 {
        assert_eq!(
            reason(&identity, TOKEN).await,
            Some(Reason::TokenInactive),
            "its issuer revoked it"
        );
    }
    assert_eq!(server.questions(), 3, "what is not active is remembered too");
}

#[tokio::test]
async fn an_answer_is_taken_only_if_it_says_all_that_a_token_must_say() {
    use Reason::{
        MalformedCredential, TokenExpired, TokenInactive, TokenLivesTooLong, TokenNotYetValid, UnknownIssuer, WrongAudience,
        WrongTokenKind,
    };
    let server = Introspector::start().await;
    let identity = identity("introspection-answers", &server.issuer("a", ISSUER, "", ""));
    for (number, (changes, expected)) in [
        (json!({}), None),
        (
            json!({"iss": ISSUER, "token_type": "bearer", "token_use": "access_token", "nbf": NOW}),
            None,
        ),
        (
            json!({"token_type": null, "client_id": null, "iat": null, "scope": null}),
            None,
        ),
        (json!({"aud": [RESOURCE, "https://other.example.com"]}), None),
        (json!({"aud": format!("{RESOURCE}/")}), None),
        (json!({"active": false}), Some(TokenInactive)),
        (json!({"iss": "https://other.example.com"}), Some(UnknownIssuer)),
        (json!({"aud": null}), Some(WrongAudience)),
        (json!({"aud": []}), Some(WrongAudience)),
        (json!({"aud": "https://mcp.example.com/mcp/other"}), Some(WrongAudience)),
        (json!({"aud": format!("{RESOURCE}//")}), Some(WrongAudience)),
        (json!({"aud": "https://mcp.example.com/mcp/file"}), Some(WrongAudience)),
        (json!({"aud": 5}), Some(MalformedCredential)),
        (json!({"exp": null}), Some(MalformedCredential)),
        (json!({"exp": "1"}), Some(MalformedCredential)),
        (json!({"exp": NOW}), Some(TokenExpired)),
        (json!({"exp": NOW + 86_400}), None),
        (json!({"exp": NOW + 86_401}), Some(TokenLivesTooLong)),
        (json!({"exp": NOW + 86_401, "iat": null}), Some(TokenLivesTooLong)),
        (json!({"nbf": NOW + 60}), Some(TokenNotYetValid)),
        (json!({"sub": null}), Some(MalformedCredential)),
        (json!({"sub": ""}), Some(MalformedCredential)),
        (json!({"token_type": "DPoP"}), Some(WrongTokenKind)),
        (json!({"token_type": "refresh_token"}), Some(WrongTokenKind)),
        (json!({"token_use": "refresh_token"}), Some(WrongTokenKind)),
        (json!({"typ": "Refresh"}), Some(WrongTokenKind)),
        (json!({"cnf": {"jkt": "x"}}), Some(WrongTokenKind)),
    ]
    .into_iter()
    .enumerate()
    {
        let token = format!("token-of-case-{number:04}");
        server.knows(&token, &answer(changes.clone()));
        assert_eq!(reason(&identity, &token).await, expected, "{changes}");
    }

    let lenient = "allow_missing_aud = true\nlifetime_without_exp = \"5m\"";
    let lenient = super::identity(
        "introspection-lenient",
        &server.issuer("a", ISSUER, "client_ids = [\"c\"]", lenient),
    );
    for (number, (changes, expected)) in [
        (json!({"aud": null, "exp": null}), Ok(Some(at(300)))),
        (json!({"aud": null, "exp": null, "iat": NOW - 200}), Ok(Some(at(100)))),
        (json!({"exp": null, "iat": NOW - 300}), Err(TokenExpired)),
        (json!({"exp": null, "iat": null}), Ok(Some(at(300)))),
        (json!({"aud": "https://other.example.com"}), Err(WrongAudience)),
        (json!({"aud": null, "client_id": "d"}), Err(WrongAudience)),
        (json!({"aud": null, "client_id": null}), Err(WrongAudience)),
    ]
    .into_iter()
    .enumerate()
    {
        let token = format!("token-of-lenient-case-{number:04}");
        server.knows(&token, &answer(changes.clone()));
        let proved = prove(&lenient, &token).await.map(|principal| principal.expires_at);
        assert_eq!(proved, expected, "{changes}");
    }
}

#[tokio::test]
async fn no_answer_is_never_a_yes_and_is_not_asked_for_again_at_once() {
    let server = Introspector::start().await;
    let identity = identity("introspection-faults", &server.issuer("a", ISSUER, "", ""));
    let good = answer(json!({})).to_string();
    server.knows(TOKEN, &answer(json!({})));
    for (number, (status, kind, body)) in [
        (401, "application/json", good.as_str()),
        (500, "application/json", good.as_str()),
        (302, "application/json", good.as_str()),
        (200, "text/html", good.as_str()),
        (200, "application/token-introspection+jwt", "a.b.c"),
        (200, "application/json", ""),
        (200, "application/json", "[]"),
        (200, "application/json", "{}"),
        (200, "application/json", r#"{"active":"true","sub":"alice"}"#),
        (200, "application/json", r#"{"active":false,"active":true,"sub":"alice"}"#),
    ]
    .into_iter()
    .enumerate()
    {
        server.fails(Some((status, kind, body)));
        let token = format!("token-of-fault-{number:04}");
        server.knows(&token, &answer(json!({})));
        let before = server.questions();
        assert_eq!(
            reason(&identity, &token).await,
            Some(Reason::IssuerUnavailable),
            "{status} {kind} {body}"
        );
        assert_eq!(reason(&identity, &token).await, Some(Reason::IssuerUnavailable));
        assert_eq!(server.questions(), before + 1, "the second was not asked");
        pass(Duration::from_secs(5)).await;
        server.fails(None);
        assert_eq!(reason(&identity, &token).await, None);
    }
    let huge = format!("{}{}", good, " ".repeat(100 * 1024));
    server.fails(Some((200, "application/json", &huge)));
    assert_eq!(
        reason(&identity, "token-with-a-huge-answer").await,
        Some(Reason::IssuerUnavailable)
    );
}

/// Anybody can send a token that an issuer cannot answer about, or send many while it fails.
#[tokio::test]
async fn what_strangers_bring_about_pauses_nobody_who_is_known() {
    let server = Introspector::start().await;
    let identity = identity("introspection-strangers", &server.issuer("a", ISSUER, "", ""));
    server.knows(TOKEN, &answer(json!({})));
    server.knows("token-of-a-newcomer", &answer(json!({"sub": "bob"})));
    assert_eq!(reason(&identity, TOKEN).await, None);
    pass(Duration::from_secs(31)).await;

    for (status, body) in [(400, ""), (200, "[]")] {
        server.fails(Some((status, "application/json", body)));
        let stranger = format!("token-of-a-stranger-{status}");
        assert_eq!(reason(&identity, &stranger).await, Some(Reason::IssuerUnavailable));
        server.fails(None);
        assert_eq!(
            reason(&identity, "token-of-a-newcomer").await,
            None,
            "it may lie in that token"
        );
    }
    server.fails(Some((503, "application/json", "")));
    assert_eq!(
        reason(&identity, "token-of-another-one").await,
        Some(Reason::IssuerUnavailable)
    );
    server.fails(None);
    assert_eq!(
        reason(&identity, "token-of-a-third-one").await,
        Some(Reason::IssuerUnavailable)
    );
    assert_eq!(reason(&identity, TOKEN).await, None, "who was active before is asked about");
}

#[tokio::test]
async fn the_shape_of_a_token_says_who_alone_sees_it() {
    let signer = Signer::p256("1");
    let keys = Publisher::start(key_set(&[&signer])).await;
    let (first, second) = (Introspector::start().await, Introspector::start().await);
    let (one, two) = ("https://one.example.com", "https://two.example.com");
    let issuers = oidc("jwt", ISSUER, &keys.url, "")
        + &first.issuer("one", one, "", "token_prefix = \"one_\"")
        + &second.issuer("two", two, "", "token_prefix = \"two_\"");
    let identity = identity("introspection-shapes", &issuers);
    for server in [&first, &second] {
        for token in ["one_0123456789abcdef", "two_0123456789abcdef"] {
            server.knows(token, &answer(json!({})));
        }
    }
    let of = async |token: &str| {
        prove(&identity, token)
            .await
            .map(|principal| principal.issuer.as_str().to_owned())
    };
    assert_eq!(of("one_0123456789abcdef").await, Ok(one.to_owned()));
    assert_eq!(of("two_0123456789abcdef").await, Ok(two.to_owned()));
    assert_eq!((first.questions(), second.questions()), (1, 1));

    // A JWT is verified by its issuer's keys or refused, whatever an introspection endpoint would say of it.
    let jwt = signer.sign(&oidc_claims(json!({})));
    assert_eq!(of(&jwt).await, Ok(ISSUER.to_owned()));
    let of_one = signer.sign(&oidc_claims(json!({"iss": one})));
    assert_eq!(
        of(&of_one).await,
        Err(Reason::WrongTokenKind),
        "an issuer without keys has no JWTs"
    );
    for (token, expected) in [
        (format!("one_{of_one}"), Reason::MalformedCredential),
        ("one_0123456789.abc.def".to_owned(), Reason::MalformedCredential),
        ("one_short".to_owned(), Reason::UnknownIssuer),
        (format!("one_{}", "x".repeat(2048)), Reason::UnknownIssuer),
        ("One_0123456789abcdef".to_owned(), Reason::UnknownIssuer),
        ("three_0123456789abcdef".to_owned(), Reason::UnknownIssuer),
    ] {
        first.knows(&token, &answer(json!({})));
        assert_eq!(of(&token).await, Err(expected), "{token}");
    }
    let assertion = Credential::Token {
        text: "one_0123456789abcdef",
        assertion: true,
    };
    let proved = identity.verify(&assertion, None, RESOURCE, SOURCE, at(0)).await;
    assert_eq!(proved.err(), Some(Reason::MalformedCredential), "an assertion is a JWT");
    assert_eq!((first.questions(), second.questions()), (1, 1), "nobody saw one of these");
    let without = super::identity("introspection-none", &oidc("jwt", ISSUER, &keys.url, ""));
    assert_eq!(reason(&without, TOKEN).await, Some(Reason::MalformedCredential));
}

#[tokio::test]
async fn garbage_reaches_an_issuer_only_so_often_and_shuts_out_nobody_who_is_known() {
    let server = Introspector::start().await;
    let identity = Arc::new(identity("introspection-flood", &server.issuer("a", ISSUER, "", "")));
    server.knows(TOKEN, &answer(json!({})));
    assert_eq!(reason(&identity, TOKEN).await, None);
    let mut proofs = tokio::task::JoinSet::new();
    for n in 0..500 {
        let identity = identity.clone();
        proofs.spawn(async move { reason(&identity, &format!("garbage-garbage-{n:04}")).await });
    }
    let refused = soon(proofs.join_all()).await;
    let of = |reason: Reason| refused.iter().filter(|refused| **refused == Some(reason)).count();
    assert_eq!((of(Reason::TokenInactive), of(Reason::IssuerUnavailable)), (60, 440));
    assert_eq!(server.questions(), 1 + 60);

    server.knows("token-of-a-newcomer", &answer(json!({"sub": "bob"})));
    let newcomer = "token-of-a-newcomer";
    assert_eq!(
        reason(&identity, newcomer).await,
        Some(Reason::IssuerUnavailable),
        "from the network of the flood"
    );
    let credential = Credential::Token {
        text: newcomer,
        assertion: false,
    };
    let elsewhere = std::net::IpAddr::from([192, 0, 2, 1]);
    assert!(identity.verify(&credential, None, RESOURCE, elsewhere, at(0)).await.is_ok());
    pass(Duration::from_secs(31)).await;
    assert_eq!(reason(&identity, TOKEN).await, None, "who was active before is asked about");
    assert_eq!(server.questions(), 1 + 60 + 2);
    pass(Duration::from_secs(30)).await;
    assert_eq!(
        reason(&identity, "garbage-garbage-of-a-new-minute").await,
        Some(Reason::TokenInactive)
    );
}

#[tokio::test]
async fn a_caller_that_hangs_up_does_not_stop_the_question_and_a_hanging_issuer_ends_it() {
    let server = Introspector::start().await;
    let identity = Arc::new(identity("introspection-hang-up", &server.issuer("a", ISSUER, "", "")));
    server.knows(TOKEN, &answer(json!({})));
    let go_on = Arc::new(Notify::new());
    *server.gate.lock().unwrap() = Some(go_on.clone());
    let first = tokio::spawn({
        let identity = identity.clone();
        async move { prove(&identity, TOKEN).await }
    });
    soon(server.arrived.notified()).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    go_on.notify_one();
    assert_eq!(reason(&identity, TOKEN).await, None);
    assert_eq!(server.questions(), 1);

    let hanging = tokio::spawn({
        let identity = identity.clone();
        async move { reason(&identity, "token-that-hangs-0001").await }
    });
    soon(server.arrived.notified()).await;
    pass(Duration::from_secs(6)).await;
    assert_eq!(soon(hanging).await.unwrap(), Some(Reason::IssuerUnavailable));
    soon(identity.stop()).await;
}
