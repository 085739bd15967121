//! The principal that a verified credential names. Its enrolment and grants are in `Member`.

use super::{ClientId, Digest, Issuer, IssuerAlias, KeyId, RoleName, Scopes, Subject, Timestamp};
use std::fmt;
use std::sync::Arc;

/// The issuer of API keys in `user_identities` and in principals.
pub const KEY_ISSUER: &str = "guardian";
/// The issuer of client certificates.
pub const CERTIFICATE_ISSUER: &str = "certificate";
/// Guardian's own issuers: no configured one may have such an alias or `iss`.
pub const OWN_ISSUERS: [&str; 2] = [KEY_ISSUER, CERTIFICATE_ISSUER];

/// How the caller proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthMethod {
    Jwt,
    Key,
    Certificate,
}

impl AuthMethod {
    /// The word in records and policies.
    pub const fn as_str(self) -> &'static str {
        match self {
            AuthMethod::Jwt => "jwt",
            AuthMethod::Key => "key",
            AuthMethod::Certificate => "certificate",
        }
    }
}

/// A person or a program; its Cedar entity type is `Guardian::User` or `Guardian::Service`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrincipalKind {
    User,
    Service,
}

impl PrincipalKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            PrincipalKind::User => "user",
            PrincipalKind::Service => "service",
        }
    }
}

/// The first 16 hex digits of the credential's SHA-256: enough to correlate uses, useless for a replay.
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

/// A proved caller, identified by issuer and subject together, never by the subject alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    pub kind: PrincipalKind,
    /// The issuer exactly as in `user_identities`; `guardian` for API keys, `certificate` for certificates.
    pub issuer: Issuer,
    /// The issuer's short name in the configuration; the same two words for API keys and certificates.
    pub alias: IssuerAlias,
    pub subject: Subject,
    pub method: AuthMethod,
    pub fingerprint: Fingerprint,
    pub client: Option<ClientId>,
    /// `session_id` or `sid` of the token; revocations can name it.
    pub token_session: Option<Arc<str>>,
    /// `jti` of the token; revocations can name it.
    pub token_id: Option<Arc<str>>,
    pub email: Option<Arc<str>>,
    pub tenant: Option<Arc<str>>,
    /// `aal` or `acr` of the token.
    pub assurance: Option<Arc<str>>,
    /// Roles from the configured claim of the token, in addition to `users.roles`.
    pub roles: Vec<RoleName>,
    /// The API key, if that was the credential.
    pub key: Option<KeyId>,
    /// Scopes to which the credential itself narrows its owner's grants; `None`: no narrowing.
    pub narrowed_to: Option<Scopes>,
    pub issued_at: Option<Timestamp>,
    /// When the credential expires: for a token, `exp` plus the tolerated clock skew.
    pub expires_at: Option<Timestamp>,
}

impl Principal {
    /// A principal of which only the identity and its proof are known.
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
