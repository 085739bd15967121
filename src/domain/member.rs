//! A user or service account as the store holds it, with identities, keys and grants. It is read and replaced as a whole.

use super::{ClientId, GrantId, Issuer, KeyId, PrincipalKind, RoleName, Scope, ServerName, Subject, Timestamp, UserId};
use std::collections::BTreeSet;

/// Whether the account may be used at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberStatus {
    Active,
    Disabled,
}

impl MemberStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            MemberStatus::Active => "active",
            MemberStatus::Disabled => "disabled",
        }
    }
}

/// The state of a grant; only `Verified` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantStatus {
    Idle,
    Verified,
    Revoked,
    /// What the row says cannot be read. It permits nothing; it is kept where it goes before a wider grant.
    Unreadable,
}

/// A set of scopes, compared as whole strings. `*` covers every scope; nothing else is a pattern.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Scopes(BTreeSet<Scope>);

impl Scopes {
    /// Whether the set holds this scope or `*`.
    pub fn covers(&self, scope: &Scope) -> bool {
        self.0.contains(scope) || self.0.contains("*")
    }

    pub fn iter(&self) -> impl Iterator<Item = &Scope> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().collect())
    }
}

/// A row of `mcp_authorizations`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Grant {
    pub id: GrantId,
    pub server: ServerName,
    /// `None`: any OAuth client of this user.
    pub client: Option<ClientId>,
    pub status: GrantStatus,
    pub scopes: Scopes,
    pub expires_at: Option<Timestamp>,
    pub version: i64,
}

/// A row of `api_keys`. `hash` is the HMAC-SHA-256 of the secret under the pepper of `pepper_version`.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    pub id: KeyId,
    pub name: String,
    pub hash: [u8; 32],
    pub pepper_version: i32,
    /// Scopes the key is limited to; empty: everything that its owner's grants allow.
    pub scopes: Scopes,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKey")
            .field("id", &self.id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// 32 random bytes of one person (`audit_salts`). Without them nobody can tell what a digest of their arguments stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InputSalt(pub [u8; 32]);

impl std::fmt::Debug for InputSalt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(salt)")
    }
}

/// A user or service account of this environment, with all that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub id: UserId,
    pub kind: PrincipalKind,
    pub email: Option<String>,
    pub display_name: Option<String>,
    pub roles: Vec<RoleName>,
    pub status: MemberStatus,
    pub identities: Vec<(Issuer, Subject)>,
    pub keys: Vec<ApiKey>,
    pub grants: Vec<Grant>,
    /// What the person's key for recorded arguments is derived from; `None` where it was erased.
    pub input_salt: Option<InputSalt>,
}

impl Member {
    /// An active member without identities, keys or grants.
    pub fn new(id: UserId, kind: PrincipalKind) -> Self {
        Self {
            id,
            kind,
            email: None,
            display_name: None,
            roles: Vec::new(),
            status: MemberStatus::Active,
            identities: Vec::new(),
            keys: Vec::new(),
            grants: Vec::new(),
            input_salt: None,
        }
    }

    pub fn key(&self, id: &KeyId) -> Option<&ApiKey> {
        self.keys.iter().find(|key| key.id == *id)
    }
}

/// What a revocation names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevocationKind {
    Subject,
    Session,
    Client,
    Jti,
}

impl RevocationKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            RevocationKind::Subject => "subject",
            RevocationKind::Session => "session",
            RevocationKind::Client => "client",
            RevocationKind::Jti => "jti",
        }
    }
}

/// Tokens that match `kind` and `value` and were issued before `issued_before` are refused, until the row expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    pub issuer: Issuer,
    pub kind: RevocationKind,
    pub value: String,
    pub issued_before: Timestamp,
    pub expires_at: Timestamp,
}

/// What can be read of a revocation that cannot be read whole. What is not known of it is taken for everything it could be,
/// so that a doubt refuses and never lets in: `None` stands for each issuer, each kind, each value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialRevocation {
    pub issuer: Option<Issuer>,
    pub kind: Option<RevocationKind>,
    pub value: Option<String>,
    pub issued_before: Timestamp,
    pub expires_at: Timestamp,
}
