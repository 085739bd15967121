//! The issuer of the callers' tokens: one ES256 key, its key set in a file, and a token for each caller.

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;
use std::path::Path;

pub const ISS: &str = "https://issuer.bench";
pub const AUDIENCE: &str = "bench";
const KEY_ID: &str = "k1";

pub struct Issuer {
    private: EncodingKey,
}

impl Issuer {
    /// A new key, whose public half is written to `key_set`.
    pub fn new(key_set: &Path) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        let private = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).expect("a key of this curve");
        let mut public = Jwk::from_encoding_key(&private, Algorithm::ES256).expect("a public key");
        public.common.key_id = Some(KEY_ID.to_owned());
        std::fs::write(key_set, json!({ "keys": [public] }).to_string()).expect("a scratch folder");
        Self { private }
    }

    /// Valid for a day, which no run takes.
    pub fn token(&self, subject: &str) -> String {
        let header = Header {
            kid: Some(KEY_ID.to_owned()),
            typ: Some("at+jwt".to_owned()),
            ..Header::new(Algorithm::ES256)
        };
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let claims = json!({
            "iss": ISS, "sub": subject, "aud": AUDIENCE, "iat": now - 1, "exp": now + 43_200, "client_id": "bench", "scope": "tools",
        });
        jsonwebtoken::encode(&header, &claims, &self.private).expect("a token")
    }
}
