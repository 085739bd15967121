//! Every reason to refuse, with its stable code. What a client hears of it stands in `gate/refusal_text.rs`.

use super::{PolicyId, Scope};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// Why a message was refused. The code is part of records, metrics and answers and never changes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            pub const fn code(self) -> &'static str {
                match self { $(Reason::$name => $code,)* }
            }

            pub fn parse(code: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.code() == code)
            }
        }
    };
}

reasons! {
    // HTTP
    BadFraming = "bad_framing",
    UnknownPath = "unknown_path",
    WrongHost = "wrong_host",
    WrongOrigin = "wrong_origin",
    WrongHttpMethod = "wrong_http_method",
    WrongMediaType = "wrong_media_type",
    NotAcceptable = "not_acceptable",
    BodyTooLarge = "body_too_large",
    BodyTooSlow = "body_too_slow",
    Draining = "draining",
    // message
    MalformedJson = "malformed_json",
    AmbiguousJson = "ambiguous_json",
    InvalidRequest = "invalid_request",
    InvalidParams = "invalid_params",
    HeaderMismatch = "header_mismatch",
    UnsupportedVersion = "unsupported_version",
    UnknownMethod = "unknown_method",
    UnknownSession = "unknown_session",
    // caller
    NoCredential = "no_credential",
    SeveralCredentials = "several_credentials",
    MalformedCredential = "malformed_credential",
    UnknownIssuer = "unknown_issuer",
    WrongAlgorithm = "wrong_algorithm",
    UnknownSigningKey = "unknown_signing_key",
    BadSignature = "bad_signature",
    TokenExpired = "token_expired",
    /// Its life exceeds `issuers.max_lifetime`.
    TokenLivesTooLong = "token_lives_too_long",
    TokenNotYetValid = "token_not_yet_valid",
    WrongAudience = "wrong_audience",
    WrongTokenKind = "wrong_token_kind",
    WrongEnvironment = "wrong_environment",
    /// The issuer says that this opaque token is not active: unknown, expired or revoked.
    TokenInactive = "token_inactive",
    CredentialRevoked = "credential_revoked",
    BadKey = "bad_key",
    KeyExpired = "key_expired",
    KeyRevoked = "key_revoked",
    BadCertificate = "bad_certificate",
    IssuerUnavailable = "issuer_unavailable",
    // standing
    NotEnrolled = "not_enrolled",
    /// Enrolled, and not loaded: `grants.max_members` is reached.
    TooManyMembers = "too_many_members",
    MemberDisabled = "member_disabled",
    UnknownServer = "unknown_server",
    ServerDisabled = "server_disabled",
    NoGrant = "no_grant",
    GrantIdle = "grant_idle",
    GrantRevoked = "grant_revoked",
    GrantExpired = "grant_expired",
    StaleAuthorization = "stale_authorization",
    FeedMissing = "feed_missing",
    /// The grant lacks a scope: another credential would not help.
    MissingScope = "missing_scope",
    /// The grant has every scope, and the token or key was made for fewer.
    CredentialLacksScope = "credential_lacks_scope",
    // tool
    UnknownTool = "unknown_tool",
    ToolNotApproved = "tool_not_approved",
    DefinitionChanged = "definition_changed",
    InvalidArguments = "invalid_arguments",
    // resource, prompt
    UnknownTarget = "unknown_target",
    UnfitUri = "unfit_uri",
    // policy
    NoPolicyPermits = "no_policy_permits",
    ForbiddenByPolicy = "forbidden_by_policy",
    PolicyError = "policy_error",
    // limits
    RateLimited = "rate_limited",
    TooManyInFlight = "too_many_in_flight",
    TooManySessions = "too_many_sessions",
    TooManyStreams = "too_many_streams",
    // cannot judge, cannot send
    AuditUnavailable = "audit_unavailable",
    UpstreamUnreachable = "upstream_unreachable",
    UpstreamTimeout = "upstream_timeout",
    UpstreamBroken = "upstream_broken",
    Internal = "internal",
    // conversation
    ClientRequestRefused = "client_request_refused",
    UnknownCursor = "unknown_cursor",
    /// `Last-Event-ID` names no event on a stream of this caller's session.
    UnknownEvent = "unknown_event",
    UnknownState = "unknown_state",
    UnknownTask = "unknown_task",
    UnknownAnswer = "unknown_answer",
    MissingCapability = "missing_capability",
}

impl Reason {
    /// Whether it lies in what the store says of the caller: their grant, its scopes, or that they are switched off.
    pub const fn is_grant_related(self) -> bool {
        use Reason as R;
        matches!(
            self,
            R::MemberDisabled | R::NoGrant | R::GrantIdle | R::GrantRevoked | R::GrantExpired | R::MissingScope
        )
    }
}

/// A refusal with what the caller may be told and what the record keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    /// What exactly, for the caller: "argument `path` is missing". Never holds a secret.
    pub detail: Option<String>,
    /// All scopes the operation needs, when one of them is missing.
    pub scopes: Vec<Scope>,
    /// The policies that decided.
    pub policies: Vec<PolicyId>,
    /// `@reason` and `@remedy` of the first of them that has one.
    pub policy_message: Option<String>,
    pub remedy: Option<String>,
    /// When to try again, for limits and outages.
    pub retry_after: Option<std::time::Duration>,
    /// Evaluation errors: for the record and the log, never for the caller.
    pub errors: Vec<String>,
}

impl Refusal {
    pub fn new(reason: Reason) -> Self {
        Self {
            reason,
            detail: None,
            scopes: Vec::new(),
            policies: Vec::new(),
            policy_message: None,
            remedy: None,
            retry_after: None,
            errors: Vec::new(),
        }
    }

    pub fn with_detail(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            detail: Some(detail.into()),
            ..Self::new(reason)
        }
    }
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self::new(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_are_distinct_and_read_back() {
        let codes: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        assert!(Reason::ALL.iter().all(|reason| Reason::parse(reason.code()) == Some(*reason)));
    }
}
