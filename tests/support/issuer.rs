//! An issuer of tokens: keys made when the test starts, the key set in a file or behind a URL, and tokens with any claims a
//! story wants.

use super::certificates::{Authority, server_tls};
use super::server::{Answering, Body, serve};
use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use time::OffsetDateTime;

pub struct Issuer {
    pub iss: String,
    algorithm: Algorithm,
    keys: Arc<Mutex<Vec<Key>>>,
    /// How often its key set was fetched.
    pub fetches: Arc<AtomicUsize>,
}

struct Key {
    id: String,
    private: EncodingKey,
    public: Value,
}

impl Issuer {
    pub fn es256(iss: &str) -> Issuer {
        Self::new(iss, Algorithm::ES256)
    }

    pub fn rs256(iss: &str) -> Issuer {
        Self::new(iss, Algorithm::RS256)
    }

    fn new(iss: &str, algorithm: Algorithm) -> Issuer {
        let keys = Arc::new(Mutex::new(vec![Key::new("k1", algorithm)]));
        Issuer {
            iss: iss.into(),
            algorithm,
            keys,
            fetches: Arc::default(),
        }
    }

    /// Replaces the key: the old one leaves the key set.
    pub fn rotate(&self) {
        let mut keys = self.keys.lock().unwrap();
        let next = format!("k{}", keys[0].id[1..].parse::<u32>().unwrap() + 1);
        *keys = vec![Key::new(&next, self.algorithm)];
    }

    /// Signs these claims, unchanged, with the current key.
    pub fn sign(&self, claims: &Value) -> String {
        let key_id = self.keys.lock().unwrap()[0].id.clone();
        self.sign_as(&key_id, claims)
    }

    /// Signs with the current key under another key id.
    pub fn sign_as(&self, key_id: &str, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(key_id.into());
        header.typ = Some("at+jwt".into());
        jsonwebtoken::encode(&header, claims, &self.keys.lock().unwrap()[0].private).unwrap()
    }

    /// A normal token of this issuer for a caller of `audience`, valid for ten minutes.
    pub fn token(&self, subject: &str, audience: &str) -> String {
        self.sign(&self.claims(subject, audience))
    }

    /// The claims of such a token, so that a story can change them.
    pub fn claims(&self, subject: &str, audience: &str) -> Value {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        json!({ "iss": self.iss, "sub": subject, "aud": audience, "iat": now - 1, "exp": now + 600, "client_id": "guardian-tests" })
    }

    pub fn key_set(&self) -> Value {
        key_set(&self.keys)
    }

    /// Serves the key set over TLS and returns its URL.
    pub async fn serve(&self, authority: &Authority) -> String {
        let (keys, fetches) = (self.keys.clone(), self.fetches.clone());
        let answer: Answering = Arc::new(move |_| {
            fetches.fetch_add(1, Ordering::SeqCst);
            let body = Full::new(Bytes::from(key_set(&keys).to_string()));
            let body = body.map_err(|never| match never {}).boxed_unsync();
            Box::pin(async move {
                Response::builder()
                    .header("content-type", "application/json")
                    .body(body)
                    .unwrap()
            })
        });
        let port = serve(0, Some(server_tls(&authority.server(), None)), answer).await;
        format!("https://localhost:{port}/jwks.json")
    }
}

/// An introspection endpoint (RFC 7662) for opaque tokens.
#[derive(Clone, Default)]
pub struct Introspection {
    tokens: Arc<Mutex<BTreeMap<String, Value>>>,
    questions: Arc<Mutex<Vec<Question>>>,
    out_of_order: Arc<AtomicBool>,
}

/// What Guardian asked.
#[derive(Debug, Clone)]
pub struct Question {
    pub authorization: String,
    pub body: String,
}

impl Introspection {
    /// Answers `{"active":true, …}` for this token from now on.
    pub fn knows(&self, token: &str, answer: Value) {
        self.tokens.lock().unwrap().insert(token.into(), answer);
    }

    /// The token is not active any more.
    pub fn forgets(&self, token: &str) {
        self.tokens.lock().unwrap().remove(token);
    }

    /// Answers 500 to everything.
    pub fn is_out_of_order(&self, broken: bool) {
        self.out_of_order.store(broken, Ordering::SeqCst);
    }

    pub fn questions(&self) -> Vec<Question> {
        self.questions.lock().unwrap().clone()
    }

    /// Serves the endpoint over TLS and returns its URL.
    pub async fn serve(&self, authority: &Authority) -> String {
        let endpoint = self.clone();
        let answer: Answering = Arc::new(move |request| {
            let endpoint = endpoint.clone();
            Box::pin(async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                let authorization = head.headers.get("authorization").and_then(|value| value.to_str().ok());
                endpoint.answer(authorization.unwrap_or_default(), &String::from_utf8_lossy(&body))
            })
        });
        let port = serve(0, Some(server_tls(&authority.server(), None)), answer).await;
        format!("https://localhost:{port}/introspect")
    }

    fn answer(&self, authorization: &str, body: &str) -> Response<Body> {
        self.questions.lock().unwrap().push(Question {
            authorization: authorization.into(),
            body: body.into(),
        });
        let token = body
            .split('&')
            .find_map(|field| field.strip_prefix("token="))
            .unwrap_or_default();
        let known = self.tokens.lock().unwrap().get(token).cloned();
        let said = known.unwrap_or_else(|| json!({ "active": false }));
        let status = if self.out_of_order.load(Ordering::SeqCst) { 500 } else { 200 };
        let body = Full::new(Bytes::from(said.to_string())).map_err(|never| match never {});
        Response::builder()
            .status(status)
            .header("content-type", "application/json")
            .body(body.boxed_unsync())
            .unwrap()
    }
}

fn key_set(keys: &Mutex<Vec<Key>>) -> Value {
    let keys: Vec<Value> = keys.lock().unwrap().iter().map(|key| key.public.clone()).collect();
    json!({ "keys": keys })
}

impl Key {
    fn new(id: &str, algorithm: Algorithm) -> Key {
        let private = match algorithm {
            Algorithm::ES256 => {
                let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
                EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap()
            }
            Algorithm::RS256 => {
                let pair = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
                EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).unwrap()
            }
            other => unreachable!("no story signs with {other:?}"),
        };
        let mut public = Jwk::from_encoding_key(&private, algorithm).unwrap();
        public.common.key_id = Some(id.into());
        Key {
            id: id.into(),
            private,
            public: serde_json::to_value(public).unwrap(),
        }
    }
}

#[test]
fn a_token_verifies_with_the_key_set_and_with_nothing_else() {
    for issuer in [Issuer::es256("https://a.test"), Issuer::rs256("https://a.test")] {
        let verifies = |token: &str| {
            let set: jsonwebtoken::jwk::JwkSet = serde_json::from_value(issuer.key_set()).unwrap();
            let key = jsonwebtoken::DecodingKey::from_jwk(&set.keys[0]).unwrap();
            let mut rules = jsonwebtoken::Validation::new(issuer.algorithm);
            rules.set_audience(&["files"]);
            jsonwebtoken::decode::<Value>(token, &key, &rules).is_ok()
        };
        let token = issuer.token("ana", "files");
        assert!(verifies(&token));
        issuer.rotate();
        assert!(!verifies(&token));
    }
}
