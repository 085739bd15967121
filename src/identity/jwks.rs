//! A JSON Web Key Set (RFC 7517) as an issuer publishes it: which of its keys are used, and when the set must be fetched
//! again. Fetches nothing itself.

use super::jwt::strict_object;
use crate::domain::{Digest, Reason};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

pub(super) const MAX_BYTES: usize = 256 * 1024;
const MAX_KEYS: usize = 100;
/// Least time between two fetches while no set is usable, and between two refreshes.
const RETRY: Duration = Duration::from_secs(5);

/// The usable public keys of one issuer, by key id. Symmetric keys are never among them: whoever can read the set could
/// sign with them.
pub(super) struct KeySet {
    keys: HashMap<String, Vec<SigningKey>>,
    pub digest: Digest,
}

/// A key with the algorithms it may verify, fixed by its type, its own `alg` and the configuration.
pub(super) struct SigningKey {
    key: DecodingKey,
    algorithms: Vec<Algorithm>,
}

#[derive(Debug, thiserror::Error)]
/// Why a document is not a usable key set.
pub enum BadKeySet {
    #[error("it is not a JSON object with an array `keys`")]
    NotAKeySet,
    #[error("it holds more than {MAX_KEYS} keys")]
    TooManyKeys,
}

impl KeySet {
    /// Parses a key set. Keys that cannot be used are left out: one odd key does not disable the others.
    pub fn read(bytes: &[u8], allowed: &[Algorithm]) -> Result<Self, BadKeySet> {
        let mut set = strict_object(bytes).ok_or(BadKeySet::NotAKeySet)?;
        let Some(serde_json::Value::Array(found)) = set.remove("keys") else {
            return Err(BadKeySet::NotAKeySet);
        };
        if found.len() > MAX_KEYS {
            return Err(BadKeySet::TooManyKeys);
        }
        let mut keys: HashMap<_, Vec<_>> = HashMap::new();
        for key in found {
            let Ok(jwk) = serde_json::from_value::<Jwk>(key) else {
                continue;
            };
            if let (Some(id), Some(key)) = (&jwk.common.key_id, SigningKey::of(&jwk, allowed)) {
                keys.entry(id.clone()).or_default().push(key);
            }
        }
        Ok(Self {
            keys,
            digest: Digest::of(bytes),
        })
    }

    pub fn count(&self) -> usize {
        self.keys.values().map(Vec::len).sum()
    }

    pub fn has(&self, id: &str) -> bool {
        self.keys.contains_key(id)
    }

    /// Checks the signature with the keys of this id that allow the algorithm.
    pub fn verify(&self, id: &str, algorithm: Algorithm, message: &str, signature: &str) -> Result<(), Reason> {
        let keys = self.keys.get(id).ok_or(Reason::UnknownSigningKey)?;
        let mut fitting = keys.iter().filter(|key| key.algorithms.contains(&algorithm)).peekable();
        if fitting.peek().is_none() {
            return Err(Reason::WrongAlgorithm);
        }
        let verified = |key: &SigningKey| jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key.key, algorithm);
        if fitting.any(|key| verified(key).unwrap_or(false)) {
            Ok(())
        } else {
            Err(Reason::BadSignature)
        }
    }
}

impl SigningKey {
    /// `None` if the key may not verify signatures, or allows none of the configured algorithms.
    fn of(jwk: &Jwk, allowed: &[Algorithm]) -> Option<Self> {
        use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
        let for_signatures = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
        let operations = jwk.common.key_operations.as_ref();
        if !for_signatures || operations.is_some_and(|operations| !operations.contains(&KeyOperations::Verify)) {
            return None;
        }
        let by_kind: &[Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::EllipticCurve(key) => match key.curve {
                EllipticCurve::P256 => &[ES256],
                EllipticCurve::P384 => &[ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => &[EdDSA],
            AlgorithmParameters::RSA(_) => &[RS256, RS384, RS512, PS256, PS384, PS512],
            _ => return None,
        };
        let own = |algorithm: &Algorithm| {
            jwk.common
                .key_algorithm
                .is_none_or(|own| own == KeyAlgorithm::from(*algorithm))
        };
        let fits = |algorithm: &&Algorithm| allowed.contains(algorithm) && own(algorithm);
        let algorithms: Vec<_> = by_kind.iter().filter(fits).copied().collect();
        if algorithms.is_empty() {
            return None;
        }
        Some(Self {
            key: DecodingKey::from_jwk(jwk).ok()?,
            algorithms,
        })
    }
}

/// What is known of an issuer's key set.
#[derive(Clone, Default)]
pub(super) struct JwksState {
    /// The last good set and when it was fetched.
    pub good: Option<(Arc<KeySet>, Instant)>,
    /// When a fetch last ended, and its error if it failed.
    pub tried: Option<(Instant, Option<Arc<str>>)>,
}

/// How long a set is used before a refresh, how long it is kept if refreshing fails, and the least time between fetches
/// for unknown key ids.
#[derive(Debug, Clone, Copy)]
pub(super) struct RefreshTimes {
    pub refresh: Duration,
    pub keep: Duration,
    pub refetch: Duration,
}

/// What to do to verify a token with a given key id.
pub(super) enum FetchPlan {
    Use(Arc<KeySet>),
    /// The set is usable and due for a refresh, which happens in the background.
    UseAndRefresh(Arc<KeySet>),
    /// The caller must wait for a fetch.
    Fetch,
    Refuse(Reason),
}

impl JwksState {
    /// Decides how to get a set with this key id; changes nothing.
    pub fn plan(&self, key_id: &str, refresh_times: RefreshTimes, now: Instant) -> FetchPlan {
        let since_tried = self.tried.as_ref().map(|(at, _)| now.saturating_duration_since(*at));
        let rested = |rest: Duration| since_tried.is_none_or(|since| since >= rest);
        match self.usable(refresh_times, now) {
            Some((set, age)) if set.has(key_id) => {
                if age >= refresh_times.refresh && rested(RETRY) {
                    FetchPlan::UseAndRefresh(set)
                } else {
                    FetchPlan::Use(set)
                }
            }
            Some(_) if rested(refresh_times.refetch) => FetchPlan::Fetch,
            Some(_) => FetchPlan::Refuse(Reason::UnknownSigningKey),
            None if rested(RETRY) => FetchPlan::Fetch,
            None => FetchPlan::Refuse(Reason::IssuerUnavailable),
        }
    }

    /// The set to use after a fetch has ended, successful or not.
    pub fn after_fetch(&self, key_id: &str, refresh_times: RefreshTimes, now: Instant) -> Result<Arc<KeySet>, Reason> {
        match self.usable(refresh_times, now) {
            Some((set, _)) if set.has(key_id) => Ok(set),
            Some(_) => Err(Reason::UnknownSigningKey),
            None => Err(Reason::IssuerUnavailable),
        }
    }

    fn usable(&self, refresh_times: RefreshTimes, now: Instant) -> Option<(Arc<KeySet>, Duration)> {
        let (set, at) = self.good.as_ref()?;
        let age = now.saturating_duration_since(*at);
        (age <= refresh_times.keep).then(|| (set.clone(), age))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: RefreshTimes = RefreshTimes {
        refresh: Duration::from_secs(600),
        keep: Duration::from_secs(3_600),
        refetch: Duration::from_secs(30),
    };
    const P256: &str = r#""kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0""#;

    fn set(keys: &[String], allowed: &[Algorithm]) -> KeySet {
        KeySet::read(format!(r#"{{"keys":[{}]}}"#, keys.join(",")).as_bytes(), allowed).unwrap()
    }

    #[test]
    fn only_public_signing_keys_of_allowed_algorithms_are_taken() {
        let rsa = r#""kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB""#;
        let key = |id: &str, rest: &str| format!(r#"{{"kid":"{id}",{rest}}}"#);
        let keys = [
            key("ec", P256),
            key("ec-sig", &format!(r#"{P256},"use":"sig","alg":"ES256","key_ops":["verify"]"#)),
            key("rsa", rsa),
            key("rsa-384", &format!(r#"{rsa},"alg":"RS384""#)),
            key("oct", r#""kty":"oct","k":"c2VjcmV0","alg":"HS256""#),
            key("enc", &format!(r#"{P256},"use":"enc""#)),
            key("signs", &format!(r#"{P256},"key_ops":["sign"]"#)),
            key("other-alg", &format!(r#"{P256},"alg":"ES384""#)),
            key("oaep", &format!(r#"{rsa},"alg":"RSA-OAEP""#)),
            key("strange", r#""kty":"XYZ""#),
            key("half", r#""kty":"EC","crv":"P-256""#),
            format!("{{{P256}}}"),
            "5".to_owned(),
        ];
        let mut found: Vec<_> = set(&keys, &[Algorithm::ES256, Algorithm::RS256]).keys.into_keys().collect();
        found.sort();
        assert_eq!(found, ["ec", "ec-sig", "rsa"]);
        let rsa_only = set(&keys, &[Algorithm::RS256, Algorithm::RS384]);
        assert_eq!(
            (rsa_only.has("ec"), rsa_only.has("rsa"), rsa_only.has("rsa-384")),
            (false, true, true)
        );
        let tried = rsa_only.verify("rsa-384", Algorithm::RS256, "a.b", "c2ln");
        assert_eq!(tried, Err(Reason::WrongAlgorithm), "a key keeps to its own algorithm");
        assert_eq!(
            rsa_only.verify("rsa", Algorithm::ES256, "a.b", "c2ln"),
            Err(Reason::WrongAlgorithm)
        );
        assert_eq!(
            rsa_only.verify("rsa", Algorithm::RS256, "a.b", "c2ln"),
            Err(Reason::BadSignature)
        );
    }

    #[test]
    fn what_is_not_a_key_set_replaces_nothing() {
        for bad in ["", "<html>", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[],"keys":[]}"#] {
            assert!(KeySet::read(bad.as_bytes(), &[Algorithm::ES256]).is_err(), "{bad}");
        }
        let many = vec!["{}"; MAX_KEYS + 1].join(",");
        assert!(KeySet::read(format!(r#"{{"keys":[{many}]}}"#).as_bytes(), &[Algorithm::ES256]).is_err());
        assert_eq!(set(&[], &[Algorithm::ES256]).count(), 0, "an issuer may have no key");
    }

    fn told(state: &JwksState, key_id: &str, now: Instant) -> String {
        match state.plan(key_id, TIMES, now) {
            FetchPlan::Use(_) => "use".to_owned(),
            FetchPlan::UseAndRefresh(_) => "use and refresh".to_owned(),
            FetchPlan::Fetch => "fetch".to_owned(),
            FetchPlan::Refuse(reason) => reason.code().to_owned(),
        }
    }

    #[test]
    fn a_set_is_used_refreshed_kept_for_a_while_and_then_no_longer() {
        let start = Instant::now();
        let at = |secs: u64| start + Duration::from_secs(secs);
        let keys = Arc::new(set(&[format!(r#"{{"kid":"1",{P256}}}"#)], &[Algorithm::ES256]));
        let knows = |good: Option<u64>, tried: Option<u64>| JwksState {
            good: good.map(|secs| (keys.clone(), at(secs))),
            tried: tried.map(|secs| (at(secs), None)),
        };
        for (good, tried, key_id, now, expected) in [
            (None, None, "1", 0, "fetch"),
            (None, Some(0), "1", 4, "issuer_unavailable"),
            (None, Some(0), "1", 5, "fetch"),
            (Some(0), Some(0), "1", 1, "use"),
            (Some(0), Some(0), "1", 599, "use"),
            (Some(0), Some(0), "1", 600, "use and refresh"),
            (Some(0), Some(599), "1", 601, "use"),
            (Some(0), Some(3_598), "1", 3_600, "use"),
            (Some(0), Some(3_598), "1", 3_601, "issuer_unavailable"),
            (Some(0), Some(3_000), "1", 3_601, "fetch"),
            (Some(0), Some(0), "2", 29, "unknown_signing_key"),
            (Some(0), Some(0), "2", 30, "fetch"),
            (Some(0), Some(30), "2", 59, "unknown_signing_key"),
            (Some(0), Some(30), "2", 60, "fetch"),
        ] {
            assert_eq!(
                told(&knows(good, tried), key_id, at(now)),
                expected,
                "{good:?} {tried:?} {key_id} {now}"
            );
        }
    }
}
