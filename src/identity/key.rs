//! Guardian API keys: `ng_<id>_<secret>_<check>`. The store holds an HMAC-SHA-256 of the secret under a pepper that the
//! database does not have. A slow password hash would add nothing for 256 random bits and would make floods cheap.

use crate::domain::{
    ApiKey, AuthMethod, Digest, Fingerprint, Issuer, IssuerAlias, KEY_ISSUER, KeyId, Member, Principal, Reason, Subject,
    Timestamp,
};
use crate::key_ring::{KEY_BYTES, KeyRing, KeyRingError};
use aws_lc_rs::hmac;
use secrecy::SecretString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use zeroize::Zeroizing;

static ISSUER: LazyLock<Issuer> = LazyLock::new(|| Issuer::parse(KEY_ISSUER).expect("a literal that is an issuer"));
static ALIAS: LazyLock<IssuerAlias> = LazyLock::new(|| IssuerAlias::parse(KEY_ISSUER).expect("a literal that is an alias"));

const ID_BYTES: usize = 10;
const ID_CHARS: usize = 16;
const SECRET_BYTES: usize = 32;
const SECRET_CHARS: usize = 52;
const CHECK_CHARS: usize = 8;

/// The HMAC keys that stored hashes depend on, by version; the highest one makes new API keys.
pub struct Pepper(KeyRing<i32, hmac::Key>);

#[derive(Debug, thiserror::Error)]
/// Why the peppers cannot be used.
pub enum PepperError {
    #[error("cannot read the peppers in `{}`", file.display())]
    Unreadable { file: PathBuf, source: std::io::Error },
    #[error("cannot write a new pepper to `{}`", file.display())]
    Unwritable { file: PathBuf, source: std::io::Error },
    #[error("line {line} of `{}` is not `version:base64` of 32 bytes, with a version of its own", file.display())]
    BadLine { file: PathBuf, line: usize },
    #[error("`{}` holds no pepper", file.display())]
    Empty { file: PathBuf },
    #[error("the system gives no random bytes")]
    NoRandomness,
}

/// A new API key: `shown` is printed once, the rest is stored.
pub struct NewKey {
    pub shown: SecretString,
    pub id: KeyId,
    pub hash: [u8; 32],
    pub pepper_version: i32,
}

/// An API key as a request presents it: syntax and checksum are right, nothing else is known.
#[derive(Clone, Copy)]
pub struct ApiKeyText<'a> {
    text: &'a str,
    id: &'a str,
    secret: &'a str,
}

impl Pepper {
    /// Reads the pepper file, or creates it (and its folder) with one random pepper if it does not exist.
    pub fn load_or_create(file: &Path) -> Result<Self, PepperError> {
        let failed = |error| PepperError::of(file, error);
        if let Some(folder) = file.parent().filter(|_| !file.exists()) {
            std::fs::create_dir_all(folder).map_err(|error| failed(KeyRingError::Write(error)))?;
        }
        KeyRing::load_or_create(file, pepper).map(Self).map_err(failed)
    }

    /// Makes an API key under the newest pepper.
    pub fn new_key(&self) -> Result<NewKey, PepperError> {
        let mut id = [0; ID_BYTES];
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        fill(&mut id)?;
        fill(&mut *secret)?;
        let (id, secret) = (base32(&id), Zeroizing::new(base32(&*secret)));
        let body = Zeroizing::new(format!("ng_{id}_{}", *secret));
        let (version, pepper) = self.0.newest();
        Ok(NewKey {
            shown: format!("{}_{:08x}", *body, crc32c::crc32c(body.as_bytes())).into(),
            id: KeyId::parse(&id).expect("base32 in lower case fits a key id"),
            hash: mac(pepper, &secret),
            pepper_version: version,
        })
    }

    /// Whether `key` is the stored one, compared in constant time. Without a stored key it takes as long, so that timing
    /// does not tell which ids exist.
    pub(super) fn matches(&self, key: &ApiKeyText<'_>, stored: Option<&ApiKey>) -> bool {
        let (_, newest) = self.0.newest();
        let pepper = stored.and_then(|stored| self.0.get(stored.pepper_version));
        let hash = stored.map_or([0; 32], |stored| stored.hash);
        let equal = hmac::verify(pepper.unwrap_or(newest), key.secret.as_bytes(), &hash).is_ok();
        equal && pepper.is_some()
    }
}

fn pepper(bytes: &[u8; KEY_BYTES]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, bytes)
}

impl PepperError {
    fn of(file: &Path, error: KeyRingError) -> Self {
        let file = file.to_owned();
        match error {
            KeyRingError::Read(source) => Self::Unreadable { file, source },
            KeyRingError::Write(source) => Self::Unwritable { file, source },
            KeyRingError::Line(line) | KeyRingError::Twice { line, .. } => Self::BadLine { file, line },
            KeyRingError::Empty => Self::Empty { file },
            KeyRingError::NoRandomness => Self::NoRandomness,
        }
    }
}

impl<'a> ApiKeyText<'a> {
    /// Parses an API key. A wrong checksum means a mistyped or truncated key, which is refused without a look-up.
    pub fn read(text: &'a str) -> Result<Self, Reason> {
        let mut parts = text.strip_prefix("ng_").ok_or(Reason::MalformedCredential)?.split('_');
        let (Some(id), Some(secret), Some(check), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(Reason::BadKey);
        };
        let shaped =
            |part: &str, chars: usize| part.len() == chars && part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'));
        if !shaped(id, ID_CHARS) || !shaped(secret, SECRET_CHARS) || check.len() != CHECK_CHARS {
            return Err(Reason::BadKey);
        }
        let body = &text[..text.len() - CHECK_CHARS - 1];
        let sum = crc32c::crc32c(body.as_bytes());
        if check
            .bytes()
            .rev()
            .enumerate()
            .all(|(at, digit)| HEX[(sum >> (4 * at)) as usize & 15] == digit)
        {
            Ok(Self { text, id, secret })
        } else {
            Err(Reason::BadKey)
        }
    }

    /// The public part, by which the key is looked up.
    pub fn id(&self) -> KeyId {
        KeyId::parse(self.id).expect("base32 in lower case fits a key id")
    }

    pub(super) fn digest(&self) -> Digest {
        Digest::of(self.text.as_bytes())
    }
}

impl fmt::Debug for ApiKeyText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key(ng_{}_…)", self.id)
    }
}

/// Refuses a matched key that is revoked or expired.
pub(super) fn check_key_validity(key: &ApiKey, now: Timestamp) -> Result<(), Reason> {
    if key.revoked_at.is_some() {
        return Err(Reason::KeyRevoked);
    }
    if key.expires_at.is_some_and(|expires_at| expires_at <= now) {
        Err(Reason::KeyExpired)
    } else {
        Ok(())
    }
}

/// The principal of an API key: its subject is the id of the member who owns the key.
pub(super) fn key_principal(member: &Member, key: &ApiKey, credential: &Digest) -> Result<Principal, Reason> {
    Ok(Principal {
        kind: member.kind,
        issuer: ISSUER.clone(),
        alias: ALIAS.clone(),
        subject: Subject::parse(member.id.as_str()).map_err(|_| Reason::BadKey)?,
        method: AuthMethod::Key,
        fingerprint: Fingerprint::of(credential),
        client: None,
        token_session: None,
        token_id: None,
        email: member.email.as_deref().map(Into::into),
        tenant: None,
        assurance: None,
        roles: Vec::new(),
        key: Some(key.id.clone()),
        narrowed_to: (!key.scopes.is_empty()).then(|| key.scopes.clone()),
        issued_at: Some(key.created_at),
        expires_at: key.expires_at,
    })
}

fn mac(pepper: &hmac::Key, secret: &str) -> [u8; 32] {
    let tag = hmac::sign(pepper, secret.as_bytes());
    tag.as_ref().try_into().expect("HMAC-SHA-256 has 32 bytes")
}

fn fill(bytes: &mut [u8]) -> Result<(), PepperError> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| PepperError::NoRandomness)
}

const HEX: &[u8; 16] = b"0123456789abcdef";
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// RFC 4648 base32 in lower case without padding: easy to read aloud, and one double click selects it.
fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    for block in bytes.chunks(5) {
        let mut five = [0; 5];
        five[..block.len()].copy_from_slice(block);
        let bits = five.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        let chars = (block.len() * 8).div_ceil(5);
        text.extend((0..chars).map(|at| char::from(BASE32[(bits >> (35 - 5 * at)) as usize & 31])));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Scopes;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use secrecy::ExposeSecret;

    fn peppers(text: &str) -> Result<Pepper, PepperError> {
        KeyRing::parse(text, pepper)
            .map(Pepper)
            .map_err(|error| PepperError::of(Path::new("pepper"), error))
    }

    fn two() -> Pepper {
        peppers(&format!("1:{}\n2:{}\n", STANDARD.encode([1; 32]), STANDARD.encode([2; 32]))).unwrap()
    }

    fn stored(new: &NewKey) -> ApiKey {
        ApiKey {
            id: new.id.clone(),
            name: "test".to_owned(),
            hash: new.hash,
            pepper_version: new.pepper_version,
            scopes: Scopes::default(),
            created_at: Timestamp::from_secs(0),
            expires_at: None,
            revoked_at: None,
        }
    }

    #[test]
    fn base32_is_the_published_one() {
        for (bytes, text) in [
            ("", ""),
            ("f", "my"),
            ("fo", "mzxq"),
            ("foo", "mzxw6"),
            ("foob", "mzxw6yq"),
            ("fooba", "mzxw6ytb"),
        ] {
            assert_eq!(base32(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn a_new_key_is_known_by_its_hash_alone() {
        let pepper = two();
        let new = pepper.new_key().unwrap();
        assert_eq!(new.pepper_version, 2);
        let key = ApiKeyText::read(new.shown.expose_secret()).unwrap();
        assert_eq!(key.id(), new.id);
        assert!(pepper.matches(&key, Some(&stored(&new))));
        assert!(!pepper.matches(&key, None), "an unknown id");
        let other = stored(&pepper.new_key().unwrap());
        assert!(!pepper.matches(&key, Some(&other)), "another key's row");
        for version in [1, 3] {
            let moved = ApiKey {
                pepper_version: version,
                ..stored(&new)
            };
            assert!(!pepper.matches(&key, Some(&moved)), "under another pepper, known or not");
        }
        let zeroed = ApiKey {
            hash: [0; 32],
            ..stored(&new)
        };
        assert!(!pepper.matches(&key, Some(&zeroed)));
    }

    #[test]
    fn an_older_pepper_still_verifies() {
        let old = peppers(&format!("1:{}", STANDARD.encode([1; 32]))).unwrap();
        let new = old.new_key().unwrap();
        let key = ApiKeyText::read(new.shown.expose_secret()).unwrap();
        assert!(two().matches(&key, Some(&stored(&new))));
    }

    #[test]
    fn a_typing_error_is_found_without_a_lookup() {
        let new = two().new_key().unwrap();
        let shown = new.shown.expose_secret();
        assert_eq!(shown.len(), 3 + ID_CHARS + 1 + SECRET_CHARS + 1 + CHECK_CHARS);
        for at in 0..shown.len() {
            let mut typo = shown.as_bytes().to_vec();
            typo[at] = if typo[at] == b'a' { b'b' } else { b'a' };
            assert!(ApiKeyText::read(std::str::from_utf8(&typo).unwrap()).is_err(), "at {at}");
            assert!(ApiKeyText::read(&shown[..at]).is_err(), "cut at {at}");
        }
        for bad in [
            format!("{shown}a"),
            format!("{shown}_a"),
            shown.to_uppercase(),
            "ng___".to_owned(),
        ] {
            assert!(ApiKeyText::read(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nothing_printed_holds_the_secret() {
        let new = two().new_key().unwrap();
        let key = ApiKeyText::read(new.shown.expose_secret()).unwrap();
        assert!(!format!("{key:?} {:?}", new.shown).contains(key.secret));
    }

    #[test]
    fn a_pepper_file_is_exact() {
        let good = STANDARD.encode([1; 32]);
        for bad in [
            String::new(),
            "1".to_owned(),
            "1:".to_owned(),
            "1:AAAA".to_owned(),
            format!("x:{good}"),
            format!("1:{good}\n1:{good}"),
        ] {
            assert!(peppers(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_that_was_withdrawn_or_ran_out_is_refused() {
        let now = Timestamp::from_secs(1_000);
        let key = stored(&two().new_key().unwrap());
        assert_eq!(check_key_validity(&key, now), Ok(()));
        let expired = ApiKey {
            expires_at: Some(now),
            ..key.clone()
        };
        assert_eq!(check_key_validity(&expired, now), Err(Reason::KeyExpired));
        let revoked = ApiKey {
            revoked_at: Some(Timestamp::from_secs(2_000)),
            ..expired
        };
        assert_eq!(
            check_key_validity(&revoked, now),
            Err(Reason::KeyRevoked),
            "whatever clock the database has"
        );
    }
}
