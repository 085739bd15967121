//! The arguments of calls in records: a digest, or the bytes sealed, with a key of the caller's own.
//!
//! The key is derived from a secret in a file and from 32 random bytes of the person in the database. Neither alone says
//! anything: who reads the database cannot guess what a digest stands for, and where the person's bytes are erased nobody can,
//! with the file either.

use crate::domain::{Digest, InputSalt, RequestId};
use crate::key_ring::{KEY_BYTES, KeyRing, KeyRingError};
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::{hkdf, hmac};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use std::fmt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Why the secrets of `audit.key_file` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InputSecretsError {
    #[error("cannot read the audit keys `{}`", .file.display())]
    Read { file: PathBuf, source: std::io::Error },
    #[error("cannot write the audit keys `{}`", .file.display())]
    Write { file: PathBuf, source: std::io::Error },
    #[error("audit keys `{}`, line {line}: not `version:base64` of 32 bytes", .file.display())]
    Line { file: PathBuf, line: usize },
    #[error("audit keys `{}`, line {line}: version {version} is there twice", .file.display())]
    Twice { file: PathBuf, line: usize, version: String },
    #[error("audit keys `{}` hold no key", .file.display())]
    Empty { file: PathBuf },
    #[error("no randomness for an audit key")]
    Random,
}

/// The secrets that everybody's keys are derived from. The newest makes new keys; records name the version.
#[derive(Debug)]
pub struct InputSecrets(KeyRing<u32, Zeroizing<[u8; KEY_BYTES]>>);

/// The keys of one person under one secret.
pub struct PersonKeys {
    pub version: u32,
    digest: hmac::Key,
    seal: RandomizedNonceKey,
}

impl InputSecrets {
    /// Reads the file, or creates it with one random secret. Its folder has to be there.
    pub fn load_or_create(file: &Path) -> Result<Self, InputSecretsError> {
        KeyRing::load_or_create(file, |secret| Zeroizing::new(*secret))
            .map(Self)
            .map_err(|error| InputSecretsError::of(file, error))
    }

    /// Reads the file, which must be there: what is sealed opens with no new secret.
    pub fn load(file: &Path) -> Result<Self, InputSecretsError> {
        let read = std::fs::read_to_string(file).map(Zeroizing::new).map_err(KeyRingError::Read);
        read.and_then(|text| KeyRing::parse(&text, |secret| Zeroizing::new(*secret)))
            .map(Self)
            .map_err(|error| InputSecretsError::of(file, error))
    }

    /// A secret that only this process has.
    pub fn random() -> Result<Self, InputSecretsError> {
        KeyRing::random(|secret| Zeroizing::new(*secret))
            .map(Self)
            .map_err(|error| InputSecretsError::of(Path::new(""), error))
    }

    /// The keys of the person with this salt, for new records.
    pub fn newest_keys(&self, salt: &InputSalt) -> PersonKeys {
        let (version, secret) = self.0.newest();
        PersonKeys::derive(version, secret, salt)
    }

    /// The same for records that name this version; `None` if the file has no such secret.
    pub fn keys(&self, version: u32, salt: &InputSalt) -> Option<PersonKeys> {
        Some(PersonKeys::derive(version, self.0.get(version)?, salt))
    }
}

impl InputSecretsError {
    fn of(file: &Path, error: KeyRingError) -> Self {
        let file = file.to_owned();
        match error {
            KeyRingError::Read(source) => Self::Read { file, source },
            KeyRingError::Write(source) => Self::Write { file, source },
            KeyRingError::Line(line) => Self::Line { file, line },
            KeyRingError::Twice { line, version } => Self::Twice { file, line, version },
            KeyRingError::Empty => Self::Empty { file },
            KeyRingError::NoRandomness => Self::Random,
        }
    }
}

/// One derived key; the label keeps those of one person apart.
struct KeyLength;

impl hkdf::KeyType for KeyLength {
    fn len(&self) -> usize {
        KEY_BYTES
    }
}

impl PersonKeys {
    fn derive(version: u32, secret: &[u8; KEY_BYTES], salt: &InputSalt) -> Self {
        let person = hkdf::Salt::new(hkdf::HKDF_SHA256, &salt.0).extract(secret);
        let key = |label: &[u8]| {
            let mut key = Zeroizing::new([0; KEY_BYTES]);
            let filled = person
                .expand(&[label], KeyLength)
                .and_then(|key_bytes| key_bytes.fill(&mut *key));
            filled.expect("HKDF gives as many bytes as a hash has");
            key
        };
        Self {
            version,
            digest: hmac::Key::new(hmac::HMAC_SHA256, &*key(b"guardian audit digest")),
            seal: RandomizedNonceKey::new(&AES_256_GCM, &*key(b"guardian audit seal")).expect("AES-256 takes 32 bytes"),
        }
    }

    /// A digest of the arguments that means something only to who has the key.
    pub fn digest(&self, arguments: &[u8]) -> Digest {
        let tag = hmac::sign(&self.digest, arguments);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(tag.as_ref());
        Digest::from_bytes(bytes)
    }

    /// The arguments sealed for the record of this request, as text.
    pub fn seal(&self, request: RequestId, arguments: &[u8]) -> String {
        let mut sealed = Vec::with_capacity(arguments.len() + NONCE_LEN + 16);
        sealed.extend_from_slice(arguments);
        let nonce = self
            .seal
            .seal_in_place_append_tag(Aad::from(request.0.as_bytes()), &mut sealed)
            .expect("AES-GCM seals what fits into memory");
        sealed.extend_from_slice(nonce.as_ref());
        STANDARD_NO_PAD.encode(sealed)
    }

    /// The arguments again; `None` if they were sealed with another key or for another request, or changed since.
    pub fn open(&self, request: RequestId, sealed: &str) -> Option<Vec<u8>> {
        let mut sealed = STANDARD_NO_PAD.decode(sealed).ok()?;
        let text = sealed.len().checked_sub(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(&sealed.split_off(text)).ok()?;
        let opened = self.seal.open_in_place(nonce, Aad::from(request.0.as_bytes()), &mut sealed);
        opened.ok().map(|opened| opened.to_vec())
    }
}

impl fmt::Debug for PersonKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "(keys of version {})", self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const REQUEST: RequestId = RequestId(Uuid::from_u128(7));

    #[test]
    fn only_the_person_s_own_key_opens_what_was_sealed_for_a_request() {
        let secrets = InputSecrets::random().unwrap();
        let (ana, ben) = (InputSalt([1; 32]), InputSalt([2; 32]));
        let keys = secrets.newest_keys(&ana);
        let sealed = keys.seal(REQUEST, b"{\"a\":1.0}");
        assert_ne!(sealed, keys.seal(REQUEST, b"{\"a\":1.0}"), "each time with another nonce");

        assert_eq!(secrets.keys(1, &ana).unwrap().open(REQUEST, &sealed).unwrap(), b"{\"a\":1.0}");
        assert_eq!(secrets.keys(1, &ben).unwrap().open(REQUEST, &sealed), None);
        assert_eq!(InputSecrets::random().unwrap().newest_keys(&ana).open(REQUEST, &sealed), None);
        assert_eq!(keys.open(RequestId(Uuid::from_u128(8)), &sealed), None);
        assert_eq!(keys.open(REQUEST, "AAAA"), None);
        assert!(secrets.keys(2, &ana).is_none());
    }

    #[test]
    fn the_same_arguments_have_another_digest_for_everybody() {
        let secrets = InputSecrets::random().unwrap();
        let of = |secrets: &InputSecrets, salt| secrets.newest_keys(&InputSalt([salt; 32])).digest(b"{}");
        assert_eq!(of(&secrets, 1), of(&secrets, 1));
        assert_ne!(of(&secrets, 1), of(&secrets, 2));
        assert_ne!(of(&secrets, 1), of(&InputSecrets::random().unwrap(), 1));
        assert_ne!(of(&secrets, 1), Digest::of(b"{}"));
    }
}
