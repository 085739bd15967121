//! Who a verified credential names. Enrolment and grants are another matter: see `Member`.

use super::{ClientId, Digest, Issuer, IssuerAlias, KeyId, RoleName, Scopes, Subject, Timestamp};
use std::fmt;
use std::sync::Arc;

/// How the caller proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthMethod {
    Jwt,
    Key,
    Certificate,
}

impl AuthMethod {
    pub const fn as_str(self) -> &'static str {
        match self {
            AuthMethod::Jwt => "jwt",
            AuthMethod::Key => "key",
            AuthMethod::Certificate => "certificate",
        }
    }
}

/// A person or a program; the Cedar entity type follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrincipalKind {
    User,
    Service,
}

/// The first 16 hex digits of the credential's SHA-256: enough to correlate, nothing to replay.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 8]);

impl Fingerprint {
    pub fn of(credential: &Digest) -> Self {
        let mut head = [0; 8];
        head.copy_from_slice(&credential.as_bytes()[..8]);
        Self(head)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A proved caller. (issuer, subject) names it; a bare subject never does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    pub kind: PrincipalKind,
    /// Exact issuer as `user_identities` holds it. Keys: `guardian`. Certificates: `certificate`.
    pub issuer: Issuer,
    /// Its short name in the configuration; for keys and certificates the same words as above.
    pub alias: IssuerAlias,
    pub subject: Subject,
    pub method: AuthMethod,
    pub fingerprint: Fingerprint,
    pub client: Option<ClientId>,
    /// `session_id` / `sid` of the token, for revocations.
    pub token_session: Option<Arc<str>>,
    /// `jti` of the token, for revocations.
    pub token_id: Option<Arc<str>>,
    pub email: Option<Arc<str>>,
    pub tenant: Option<Arc<str>>,
    /// `aal` or `acr`.
    pub assurance: Option<Arc<str>>,
    /// Roles that a configured claim of the token carries, beside those of `users.roles`.
    pub roles: Vec<RoleName>,
    /// The API key used.
    pub key: Option<KeyId>,
    /// The scopes that the credential itself narrows its owner's grants to (`None`: no narrowing).
    pub narrowed_to: Option<Scopes>,
    pub issued_at: Option<Timestamp>,
    /// When it stops counting: of a token, that is its `exp` and the tolerance for clocks.
    pub expires_at: Option<Timestamp>,
}

impl Principal {
    /// Somebody of whom nothing is known but who it is and what proved it.
    pub fn new(
        kind: PrincipalKind,
        issuer: Issuer,
        alias: IssuerAlias,
        subject: Subject,
        method: AuthMethod,
        fingerprint: Fingerprint,
    ) -> Self {
        Self {
            kind,
            issuer,
            alias,
            subject,
            method,
            fingerprint,
            client: None,
            token_session: None,
            token_id: None,
            email: None,
            tenant: None,
            assurance: None,
            roles: Vec::new(),
            key: None,
            narrowed_to: None,
            issued_at: None,
            expires_at: None,
        }
    }
}
