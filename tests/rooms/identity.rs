//! `identity` against forged credentials, and against issuers that rotate, fail and lie: a real key set server that counts.

mod credentials;
mod introspection;
mod key_sets;
mod tokens;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use hyper::{Response, StatusCode};
use jsonwebtoken::{Algorithm, EncodingKey};
use neural_guardian::config::{self, CheckedConfig, ConnectionLimits, Variables};
use neural_guardian::domain::{
    ApiKey, AuthMethod, Digest, Member, Principal, PrincipalKind, Reason, Scope, Scopes, Timestamp, UserId,
};
use neural_guardian::identity::{Credential, Identity, IdentityError, Pepper};
use neural_guardian::transport::{PeerCertificate, Shutdown, ShutdownHandle, full, serve};
use rcgen::KeyPair;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;

const NOW: i64 = 1_795_167_296;
const RESOURCE: &str = "https://mcp.example.com/mcp/files";
/// Where requests come from.
const SOURCE: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const ISSUER: &str = "https://id.example.com";
/// A time-out that no passing test reaches.
const NEVER: Duration = Duration::from_secs(20);

fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(NOW + secs)
}

/// Sets the clock forward.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(NEVER, what).await.expect("it happens at all")
}

fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("identity").join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// A signing key with its public half as a JWK.
struct Signer {
    id: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
    public: Value,
}

impl Signer {
    fn p256(id: &'static str) -> Self {
        let pair = KeyPair::generate().unwrap();
        let point = pair.public_key_raw().to_vec();
        let public = json!({"kid": id, "kty": "EC", "crv": "P-256", "x": base64(&point[1..33]), "y": base64(&point[33..])});
        Self {
            id,
            algorithm: Algorithm::ES256,
            key: EncodingKey::from_ec_der(&pair.serialize_der()),
            public,
        }
    }

    fn ed25519(id: &'static str) -> Self {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let public = json!({"kid": id, "kty": "OKP", "crv": "Ed25519", "x": base64(pair.public_key_raw())});
        Self {
            id,
            algorithm: Algorithm::EdDSA,
            key: EncodingKey::from_ed_der(&pair.serialize_der()),
            public,
        }
    }

    fn rsa(id: &'static str) -> Self {
        let pair = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
        let key = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).unwrap();
        let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&key, Algorithm::RS256);
        let mut public = serde_json::to_value(jwk.unwrap()).unwrap();
        public["kid"] = json!(id);
        Self {
            id,
            algorithm: Algorithm::RS256,
            key,
            public,
        }
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_as(
            &json!({"alg": self.algorithm, "kid": self.id, "typ": "JWT"}).to_string(),
            &claims.to_string(),
        )
    }

    /// Signs with this key and its own algorithm, whatever the header says.
    fn sign_as(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", base64(header.as_bytes()), base64(claims.as_bytes()));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.key, self.algorithm).unwrap();
        format!("{message}.{signature}")
    }
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn key_set(signers: &[&Signer]) -> String {
    json!({"keys": signers.iter().map(|signer| &signer.public).collect::<Vec<_>>()}).to_string()
}

/// `base` with these changes; `null` removes a member.
fn with(mut base: Value, changes: Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => base.as_object_mut().unwrap().remove(name),
            value => base.as_object_mut().unwrap().insert(name.clone(), value.clone()),
        };
    }
    base
}

fn oidc_claims(changes: Value) -> Value {
    with(
        json!({"iss": ISSUER, "aud": RESOURCE, "sub": "alice", "exp": NOW + 600, "iat": NOW}),
        changes,
    )
}

/// An issuer's web server whose answers can be changed and which counts every request.
struct Publisher {
    url: String,
    answer: Arc<Mutex<(StatusCode, String)>>,
    count: Arc<AtomicUsize>,
    /// If set, each request waits for one notification.
    gate: Arc<Mutex<Option<Arc<Notify>>>>,
    arrived: Arc<Notify>,
    shutdown: ShutdownHandle,
}

impl Publisher {
    async fn start(body: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let answer = Arc::new(Mutex::new((StatusCode::OK, body)));
        let count = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(Mutex::new(None::<Arc<Notify>>));
        let arrived = Arc::new(Notify::new());
        let (shutdown, stopped) = Shutdown::new();
        let (says, counts, gates, arrives) = (answer.clone(), count.clone(), gate.clone(), arrived.clone());
        let handler = move |_, _| {
            counts.fetch_add(1, SeqCst);
            arrives.notify_one();
            let (held, says) = (gates.lock().unwrap().clone(), says.clone());
            async move {
                if let Some(held) = held {
                    held.notified().await;
                }
                let (status, body) = says.lock().unwrap().clone();
                Response::builder()
                    .status(status)
                    .header("location", "/other")
                    .body(full(body))
                    .unwrap()
            }
        };
        tokio::spawn(serve(listener, None, ConnectionLimits::default(), handler, stopped));
        Self {
            url,
            answer,
            count,
            gate,
            arrived,
            shutdown,
        }
    }

    fn publish(&self, status: u16, body: impl Into<String>) {
        *self.answer.lock().unwrap() = (StatusCode::from_u16(status).unwrap(), body.into());
    }

    fn fetches(&self) -> usize {
        self.count.load(SeqCst)
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.shutdown.abort();
    }
}

fn config(issuers: &str) -> CheckedConfig {
    let text = format!(
        r#"
        environment = "production"
        [listen]
        address = "127.0.0.1:0"
        public_url = "https://mcp.example.com"
        [listen.tls]
        certificate_file = "unused"
        key_file = "unused"
        client_ca_file = "unused"
        client_certificates = "optional"
        {issuers}"#
    );
    config::parse(Path::new("guardian.toml"), &text, &Variables::new())
        .unwrap()
        .config
}

fn pepper(dir: &Path) -> Arc<Pepper> {
    Arc::new(Pepper::load_or_create(&dir.join("pepper")).unwrap())
}

fn identity(name: &str, issuers: &str) -> Identity {
    Identity::new(&config(issuers), pepper(&scratch(name))).unwrap()
}

/// An `oidc` issuer called `alias` whose keys are at `url`.
fn oidc(alias: &str, iss: &str, url: &str, more: &str) -> String {
    format!("[[issuers]]\nalias = \"{alias}\"\nkind = \"oidc\"\nissuer = \"{iss}\"\njwks_url = \"{url}\"\n{more}\n")
}

async fn prove(identity: &Identity, token: &str) -> Result<Arc<Principal>, Reason> {
    prove_at(identity, token, at(0)).await
}

async fn prove_at(identity: &Identity, token: &str, now: Timestamp) -> Result<Arc<Principal>, Reason> {
    soon(identity.verify(
        &Credential::Token {
            text: token,
            assertion: false,
        },
        None,
        RESOURCE,
        SOURCE,
        now,
    ))
    .await
}

async fn reason(identity: &Identity, token: &str) -> Option<Reason> {
    prove(identity, token).await.err()
}
