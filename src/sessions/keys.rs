//! Sealed session ids. A client holds the upstream's session id encrypted and bound to its principal, so that any
//! replica with the keys can use it and no other principal can. There is no session table.

use crate::domain::{Digest, Principal, ProtocolVersion, ServerName, Timestamp};
use crate::key_ring::{KEY_BYTES, KeyRing, KeyRingError};
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fmt;
use std::path::{Path, PathBuf};

/// The session id that a server assigned. It is a bearer secret, so `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct UpstreamSessionId(String);

impl UpstreamSessionId {
    /// Accepts visible ASCII, as MCP requires, up to a length that can be sealed into a header.
    pub fn parse(text: &str) -> Option<Self> {
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        (matches!(text.len(), 1..=1024) && visible).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for UpstreamSessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(session)")
    }
}

/// The content of a sealed session id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub id: UpstreamSessionId,
    /// The protocol version negotiated by `initialize`.
    pub version: ProtocolVersion,
    pub expires_at: Timestamp,
}

impl Session {
    /// A digest that identifies the session in records and logs and cannot be used as its id.
    pub fn label(&self) -> String {
        Digest::of(self.id.as_str().as_bytes()).short()
    }
}

/// Why the session keys cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum SessionKeysError {
    #[error("cannot read session keys `{}`", .file.display())]
    Read { file: PathBuf, source: std::io::Error },
    #[error("cannot write session keys `{}`", .file.display())]
    Write { file: PathBuf, source: std::io::Error },
    #[error("session keys `{}`, line {line}: not `version:base64` of 32 bytes", .file.display())]
    Line { file: PathBuf, line: usize },
    #[error("session keys `{}`, line {line}: version {version} is there twice", .file.display())]
    Twice { file: PathBuf, line: usize, version: String },
    #[error("session keys `{}` hold no key", .file.display())]
    Empty { file: PathBuf },
    #[error("no randomness for a session key")]
    Random,
}

/// The newest key seals and every key opens.
#[derive(Debug)]
pub struct SessionKeys(KeyRing<u32, DerivedKeys>);

/// The keys derived from one line of the file: one seals session ids, the other signs the handles of `handles.rs`.
struct DerivedKeys {
    sealing_key: RandomizedNonceKey,
    handle_key: hmac::Key,
}

/// The prefix of every sealed id; it names the format.
const PREFIX: &str = "gs1.";
const VERSION_LEN: usize = 4;

impl SessionKeys {
    /// Reads the file, or creates it with one random key. Its folder has to be there.
    pub fn load_or_create(file: &Path) -> Result<Self, SessionKeysError> {
        KeyRing::load_or_create(file, DerivedKeys::of)
            .map(Self)
            .map_err(|error| SessionKeysError::of(file, error))
    }

    /// A random key that only this process has.
    pub fn random() -> Result<Self, SessionKeysError> {
        KeyRing::random(DerivedKeys::of)
            .map(Self)
            .map_err(|error| SessionKeysError::of(Path::new(""), error))
    }

    /// The session id that the client gets instead of the upstream's. Without `server` it is a session of the combined
    /// endpoint.
    pub fn seal(&self, session: &Session, principal: &Principal, server: Option<&ServerName>) -> String {
        let (version, key) = self.0.newest();
        let mut text = session.expires_at.micros().to_be_bytes().to_vec();
        text.extend_from_slice(session.version.as_str().as_bytes());
        text.extend_from_slice(session.id.as_str().as_bytes());
        let bound = Aad::from(associated_data(version, principal, server));
        let nonce = key
            .sealing_key
            .seal_in_place_append_tag(bound, &mut text)
            .expect("AES-GCM seals a short text");
        let sealed = [&version.to_be_bytes(), nonce.as_ref().as_slice(), &text].concat();
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(sealed))
    }

    /// Opens a sealed id for this principal and server, unless it has expired. Every failure gives the same `None`.
    pub fn open(&self, sealed: &str, principal: &Principal, server: Option<&ServerName>, now: Timestamp) -> Option<Session> {
        let mut sealed = URL_SAFE_NO_PAD.decode(sealed.strip_prefix(PREFIX)?).ok()?;
        let (version, rest) = sealed.split_at_mut_checked(VERSION_LEN)?;
        let (nonce, text) = rest.split_at_mut_checked(NONCE_LEN)?;
        let version = u32::from_be_bytes(version.try_into().ok()?);
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let bound = Aad::from(associated_data(version, principal, server));
        let text = self.0.get(version)?.sealing_key.open_in_place(nonce, bound, text).ok()?;
        let session = Session::read(text)?;
        (now < session.expires_at).then_some(session)
    }

    /// The newest key, which signs handles, with its version.
    pub(super) fn issuing_key(&self) -> (u32, &hmac::Key) {
        let (version, keys) = self.0.newest();
        (version, &keys.handle_key)
    }

    /// The key that verifies handles of this version.
    pub(super) fn verifying_key(&self, version: u32) -> Option<&hmac::Key> {
        self.0.get(version).map(|keys| &keys.handle_key)
    }

    #[cfg(test)]
    pub(super) fn parse(text: &str, file: &Path) -> Result<Self, SessionKeysError> {
        KeyRing::parse(text, DerivedKeys::of)
            .map(Self)
            .map_err(|error| SessionKeysError::of(file, error))
    }
}

impl SessionKeysError {
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

impl Session {
    fn read(text: &[u8]) -> Option<Self> {
        let (expires_at, rest) = text.split_at_checked(8)?;
        let (version, id) = rest.split_at_checked("2025-11-25".len())?;
        Some(Self {
            id: UpstreamSessionId::parse(std::str::from_utf8(id).ok()?)?,
            version: ProtocolVersion::parse(std::str::from_utf8(version).ok()?)?,
            expires_at: Timestamp::from_micros(i64::from_be_bytes(expires_at.try_into().ok()?)),
        })
    }
}

/// Stands for the combined endpoint; no server can have this name.
const ALL: &str = "*";

/// The associated data of a seal: key version, principal and server. Each part is length-prefixed, so that two
/// different lists of parts never encode alike.
fn associated_data(version: u32, principal: &Principal, server: Option<&ServerName>) -> Vec<u8> {
    let client = principal.client.as_ref().map_or("", |client| client.as_str());
    let parts = [
        "guardian session",
        principal.issuer.as_str(),
        principal.subject.as_str(),
        client,
        server.map_or(ALL, ServerName::as_str),
    ];
    let mut bytes = version.to_be_bytes().to_vec();
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes
}

impl DerivedKeys {
    /// Handles are signed with a key of their own, derived from the sealing key, so that no handle can pass for a seal.
    fn of(key: &[u8; KEY_BYTES]) -> Self {
        let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), b"guardian handles");
        Self {
            sealing_key: RandomizedNonceKey::new(&AES_256_GCM, key).expect("AES-256 takes 32 bytes"),
            handle_key: hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::{AuthMethod, ClientId, Fingerprint, Issuer, IssuerAlias, PrincipalKind, Subject};
    use base64::engine::general_purpose::STANDARD;

    pub fn principal(issuer: &str, subject: &str, client: Option<&str>) -> Principal {
        Principal {
            client: client.map(|client| ClientId::parse(client).unwrap()),
            ..Principal::new(
                PrincipalKind::User,
                Issuer::parse(issuer).unwrap(),
                IssuerAlias::parse("a").unwrap(),
                Subject::parse(subject).unwrap(),
                AuthMethod::Jwt,
                Fingerprint::of(&Digest::ZERO),
            )
        }
    }

    fn server(name: &str) -> ServerName {
        ServerName::parse(name).unwrap()
    }

    fn session() -> Session {
        Session {
            id: UpstreamSessionId::parse("0f6c-upstream").unwrap(),
            version: ProtocolVersion::V20250618,
            expires_at: Timestamp::from_secs(1_000),
        }
    }

    const NOW: Timestamp = Timestamp::from_secs(999);

    #[test]
    fn a_session_opens_for_whom_it_was_sealed_and_nobody_else() {
        let keys = SessionKeys::random().unwrap();
        let alice = principal("https://i", "alice", Some("cli"));
        let sealed = keys.seal(&session(), &alice, Some(&server("files")));
        assert!(
            sealed.bytes().all(|byte| byte.is_ascii_graphic()) && !sealed.contains("upstream"),
            "{sealed}"
        );
        assert_eq!(keys.open(&sealed, &alice, Some(&server("files")), NOW), Some(session()));
        for other in [
            principal("https://i", "bob", Some("cli")),
            principal("https://j", "alice", Some("cli")),
            principal("https://i", "alice", Some("other")),
            principal("https://i", "alice", None),
            principal("https://ia", "lice", Some("cli")),
        ] {
            assert_eq!(keys.open(&sealed, &other, Some(&server("files")), NOW), None, "{other:?}");
        }
        assert_eq!(keys.open(&sealed, &alice, Some(&server("file")), NOW), None);
        assert_eq!(keys.open(&sealed, &alice, None, NOW), None);
        let combined = keys.seal(&session(), &alice, None);
        assert_eq!(keys.open(&combined, &alice, None, NOW), Some(session()));
        assert_eq!(keys.open(&combined, &alice, Some(&server("files")), NOW), None);
        assert_eq!(
            keys.open(&sealed, &alice, Some(&server("files")), Timestamp::from_secs(1_000)),
            None,
            "expired"
        );
    }

    #[test]
    fn a_changed_seal_opens_nothing() {
        let keys = SessionKeys::random().unwrap();
        let alice = principal("https://i", "alice", None);
        let sealed = keys.seal(&session(), &alice, Some(&server("files")));
        for index in 0..sealed.len() {
            let mut changed = sealed.clone().into_bytes();
            changed[index] = if changed[index] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(keys.open(&changed, &alice, Some(&server("files")), NOW), None, "{changed}");
        }
        for cut in 0..sealed.len() {
            assert_eq!(keys.open(&sealed[..cut], &alice, Some(&server("files")), NOW), None);
        }
        let again = keys.seal(&session(), &alice, Some(&server("files")));
        assert_ne!(sealed, again, "a fresh nonce each time");
        assert_eq!(
            SessionKeys::random()
                .unwrap()
                .open(&sealed, &alice, Some(&server("files")), NOW),
            None
        );
    }

    #[test]
    fn keys_are_rotated_by_adding_a_line() {
        let file = Path::new("session.keys");
        let line = |version: u32, byte: u8| format!("{version}:{}\n", STANDARD.encode([byte; 32]));
        let alice = principal("https://i", "alice", None);
        let old = SessionKeys::parse(&line(1, 7), file).unwrap();
        let both = SessionKeys::parse(&format!("# two\n\n{}{}", line(2, 8), line(1, 7)), file).unwrap();
        let new = SessionKeys::parse(&line(2, 8), file).unwrap();
        let sealed_before = old.seal(&session(), &alice, Some(&server("files")));
        let sealed_after = both.seal(&session(), &alice, Some(&server("files")));
        assert_eq!(
            both.open(&sealed_before, &alice, Some(&server("files")), NOW),
            Some(session())
        );
        assert_eq!(new.open(&sealed_after, &alice, Some(&server("files")), NOW), Some(session()));
        assert_eq!(new.open(&sealed_before, &alice, Some(&server("files")), NOW), None);
        for broken in [
            "",
            "# none",
            "1",
            "1:",
            "x:AAAA",
            "1:AAAA",
            &format!("{}{}", line(1, 1), line(1, 2)),
        ] {
            assert!(SessionKeys::parse(broken, file).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_missing_file_is_created_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = std::env::temp_dir().join(format!("guardian-session-keys-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("session.keys");
        let _ = std::fs::remove_file(&file);
        let alice = principal("https://i", "alice", None);
        let sealed = SessionKeys::load_or_create(&file)
            .unwrap()
            .seal(&session(), &alice, Some(&server("files")));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let again = SessionKeys::load_or_create(&file).unwrap();
        assert_eq!(again.open(&sealed, &alice, Some(&server("files")), NOW), Some(session()));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "nothing else is left behind");
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(
            SessionKeys::load_or_create(&file)
                .unwrap_err()
                .to_string()
                .contains("session.keys")
        );
    }
}
