//! The caller as audit records show them: everything that a decision can depend on, of the credential and of the store apart.

use super::{
    AuthMethod, ClientId, Issuer, IssuerAlias, KeyId, Member, MemberStatus, Principal, PrincipalKind, RoleName, Scopes, Subject,
    UserId,
};
use serde::{Deserialize, Serialize};

/// The caller, as far as it was proved. What does not apply is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedPrincipal {
    pub issuer: Issuer,
    /// The issuer's short name, which Cedar's principals have; `None` in version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<IssuerAlias>,
    pub subject: Subject,
    #[serde(default = "user", skip_serializing_if = "is_user")]
    pub kind: PrincipalKind,
    /// The enrolled user; `None` if nobody is enrolled, or if the message was refused before the user was looked up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disabled: bool,
    pub method: AuthMethod,
    pub fingerprint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// The address that policies see: the store's, else the token's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assurance: Option<String>,
    /// Roles that the store gives.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<RoleName>,
    /// Roles that the token gives.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub token_roles: Vec<RoleName>,
    /// The scopes to which the credential narrows its owner's grants; `None`: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub narrowed_to: Option<Scopes>,
}

impl RecordedPrincipal {
    /// A caller who is no user of the store, and of whom nothing else is known.
    pub const fn new(issuer: Issuer, subject: Subject, method: AuthMethod, fingerprint: String) -> Self {
        Self {
            issuer,
            alias: None,
            subject,
            kind: PrincipalKind::User,
            user: None,
            disabled: false,
            method,
            fingerprint,
            client: None,
            key: None,
            email: None,
            tenant: None,
            assurance: None,
            roles: Vec::new(),
            token_roles: Vec::new(),
            narrowed_to: None,
        }
    }

    /// Both are taken apart in full, so that a field added to one of them needs a place here, or a reason to have none.
    pub fn of(principal: &Principal, member: Option<&Member>) -> Self {
        let Principal {
            kind,
            issuer,
            alias,
            subject,
            method,
            fingerprint,
            client,
            token_session: _, // for revocations, which are checked before a decision
            token_id: _,      // the same
            email,
            tenant,
            assurance,
            roles,
            key,
            narrowed_to,
            issued_at: _,  // checked when the credential is verified
            expires_at: _, // the same
        } = principal;
        let text = |text: &Option<std::sync::Arc<str>>| text.as_deref().map(str::to_owned);
        let recorded = Self {
            alias: Some(alias.clone()),
            kind: *kind,
            client: client.clone(),
            key: key.clone(),
            email: text(email),
            tenant: text(tenant),
            assurance: text(assurance),
            token_roles: roles.clone(),
            narrowed_to: narrowed_to.clone(),
            ..Self::new(issuer.clone(), subject.clone(), *method, fingerprint.to_string())
        };
        let Some(member) = member else {
            return recorded;
        };
        let Member {
            id,
            kind: _, // the principal's counts
            email,
            display_name: _, // for people
            roles,
            status,
            identities: _, // how the member was found
            keys: _,       // the same
            grants: _,     // the one that counts is in the record
            input_salt: _, // a secret
        } = member;
        Self {
            user: Some(id.clone()),
            disabled: *status == MemberStatus::Disabled,
            email: email.clone().or(recorded.email),
            roles: roles.clone(),
            ..recorded
        }
    }
}

const fn user() -> PrincipalKind {
    PrincipalKind::User
}

fn is_user(kind: &PrincipalKind) -> bool {
    *kind == PrincipalKind::User
}
