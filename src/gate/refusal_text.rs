//! The words of a refusal: one table from `Reason` to HTTP status, JSON-RPC code, sentence and remedy, and how the
//! particulars of a refusal complete them. Discloses no secret, because a `Refusal` never holds one.

use super::reply::RefusalContext;
use crate::domain::{Reason, Refusal};
use std::time::Duration;

pub(super) struct RefusalText {
    pub status: u16,
    /// The JSON-RPC code: the specification's if it has one, else our own outside -32768…-32000.
    pub code: i64,
    pub sentence: &'static str,
    pub remedy: Option<&'static str>,
}

/// The table of all refusals. The `match` is exhaustive, so each reason has exactly one row.
pub(super) const fn refusal_text(reason: Reason) -> RefusalText {
    use Reason as R;
    let (status, code, sentence, remedy) = match reason {
        R::BadFraming => (
            400,
            -32600,
            "the HTTP request is framed in a way that two readers could understand differently",
            None,
        ),
        R::UnknownPath => (404, 4040, "there is nothing at this path", Some("use /mcp/<server>")),
        R::WrongHost => (
            421,
            4210,
            "this host name is not served here",
            Some("use the host of the configured public URL"),
        ),
        R::WrongOrigin => (
            403,
            4031,
            "requests from this web origin are not accepted",
            Some("ask the operator to list the origin"),
        ),
        R::WrongHttpMethod => (405, 4050, "this HTTP method is not offered here", None),
        R::WrongMediaType => (
            415,
            4150,
            "the body must be sent as application/json in UTF-8, not encoded",
            None,
        ),
        R::NotAcceptable => (
            406,
            4060,
            "the client must accept both application/json and text/event-stream",
            Some("send both in Accept"),
        ),
        R::BodyTooLarge => (413, 4130, "the message is larger than is accepted", None),
        R::BodyTooSlow => (408, 4080, "the message did not arrive in time", None),
        R::Draining => (503, 5030, "this instance is shutting down", Some("try again")),
        R::MalformedJson => (400, -32700, "the message is not JSON", None),
        R::AmbiguousJson => (
            400,
            -32600,
            "the message could be read in two ways",
            Some("send each member once, spelled exactly"),
        ),
        R::InvalidRequest => (400, -32600, "the message is not one JSON-RPC 2.0 request", None),
        R::InvalidParams => (
            400,
            -32602,
            "the parameters of the message are not what the method takes",
            None,
        ),
        R::HeaderMismatch => (400, -32020, "a header says something else than the message", None),
        R::UnsupportedVersion => (400, -32022, "this protocol version is not spoken here", None),
        R::UnknownMethod => (404, -32601, "method not found", None),
        R::UnknownSession => (404, 4041, "there is no such session", Some("initialize again")),
        R::NoCredential => (
            401,
            4010,
            "a credential is needed",
            Some("send `Authorization: Bearer` with an access token or a Guardian key"),
        ),
        R::SeveralCredentials => (401, 4010, "more than one credential was sent", Some("send exactly one")),
        R::MalformedCredential => (401, 4010, "the credential cannot be read", None),
        R::UnknownIssuer => (401, 4010, "the token comes from an issuer that is not accepted here", None),
        R::WrongAlgorithm => (401, 4010, "the token is signed in a way its issuer does not use", None),
        R::UnknownSigningKey => (401, 4010, "the token is signed with a key its issuer does not publish", None),
        R::BadSignature => (401, 4010, "the token's signature does not match", None),
        R::TokenExpired => (401, 4010, "the token has expired", Some("sign in again")),
        R::TokenLivesTooLong => (
            401,
            4010,
            "the token lives longer than tokens of this issuer may here",
            Some("ask the operator about `issuers.max_lifetime`"),
        ),
        R::TokenNotYetValid => (401, 4010, "the token is not valid yet", Some("check the clocks")),
        R::WrongAudience => (401, 4010, "the token was not made for this server", None),
        R::WrongTokenKind => (401, 4010, "this kind of token is not accepted", Some("send an access token")),
        R::WrongEnvironment => (401, 4010, "the token was not made for this environment", None),
        R::TokenInactive => (
            401,
            4010,
            "the token's issuer says that it is not active",
            Some("sign in again"),
        ),
        R::CredentialRevoked => (401, 4010, "the credential was revoked", Some("sign in again")),
        R::BadKey => (401, 4010, "the key is not known", Some("ask the operator for a new one")),
        R::KeyExpired => (401, 4010, "the key has expired", Some("ask the operator for a new one")),
        R::KeyRevoked => (401, 4010, "the key was revoked", Some("ask the operator for a new one")),
        R::BadCertificate => (401, 4010, "the client certificate is not accepted", None),
        R::IssuerUnavailable => (
            503,
            5031,
            "the issuer of the token cannot be asked at the moment",
            Some("try again later"),
        ),
        R::NotEnrolled => (403, 4032, "you are not enrolled here", Some("ask the operator to enrol you")),
        R::TooManyMembers => (
            403,
            4032,
            "you are enrolled, but this gateway knows as many users as it may, and you are not among them",
            Some("ask the operator to raise `grants.max_members`"),
        ),
        R::MemberDisabled => (403, 4032, "your account is disabled here", Some("ask the operator")),
        R::UnknownServer => (
            404,
            4042,
            "there is no such server",
            Some("use /mcp/<server> with a server you were given"),
        ),
        R::ServerDisabled => (404, 4042, "this server is switched off", None),
        R::NoGrant => (
            403,
            4033,
            "you have no grant for this server",
            Some("ask the operator to grant you access"),
        ),
        R::GrantIdle => (
            403,
            4033,
            "your grant for this server is not verified yet",
            Some("finish its verification"),
        ),
        R::GrantRevoked => (403, 4033, "your grant for this server was revoked", Some("ask the operator")),
        R::GrantExpired => (
            403,
            4033,
            "your grant for this server has expired",
            Some("ask the operator to renew it"),
        ),
        R::StaleAuthorization => (
            503,
            5032,
            "your authorisation cannot be confirmed at the moment",
            Some("try again"),
        ),
        R::FeedMissing => (
            503,
            5034,
            "your authorisation cannot be confirmed: the database does not report every change of it",
            Some("ask the operator to look at the health page and the log"),
        ),
        R::MissingScope => (
            403,
            4030,
            "your grant does not cover this",
            Some("ask the operator for the scopes named"),
        ),
        R::CredentialLacksScope => (
            403,
            4030,
            "your grant covers this, but your credential does not",
            Some("use one that has the scopes named"),
        ),
        R::UnknownTool => (200, -32602, "there is no such tool", Some("list the tools again")),
        R::UnknownTarget => (200, -32602, "there is nothing of this name", None),
        R::UnfitUri => (
            200,
            -32602,
            "resources are named by URIs in their normal form",
            Some("write the URI as RFC 3986 normalises it"),
        ),
        R::ToolNotApproved => (
            200,
            4034,
            "this tool has not been approved yet",
            Some("ask the operator to pin it"),
        ),
        R::DefinitionChanged => (
            200,
            4035,
            "the server changed this tool since it was approved",
            Some("ask the operator to look at it and pin it again"),
        ),
        R::InvalidArguments => (
            200,
            -32602,
            "the arguments are not what the tool takes",
            Some("correct the arguments and call again"),
        ),
        R::NoPolicyPermits => (200, 4036, "no policy permits this call", None),
        R::ForbiddenByPolicy => (200, 4037, "a policy forbids this call", None),
        R::PolicyError => (
            200,
            4038,
            "this call could not be judged and is therefore refused",
            Some("quote the record to the operator"),
        ),
        R::RateLimited => (429, 4290, "too many calls", Some("try again later")),
        R::TooManyInFlight => (429, 4291, "too many calls at once", Some("wait for one of them to finish")),
        R::TooManySessions => (
            429,
            4292,
            "the server has as many sessions as it may have",
            Some("end a session, or try again later"),
        ),
        R::TooManyStreams => (429, 4293, "too many streams are open", Some("close one of them")),
        R::AuditUnavailable => (
            503,
            5033,
            "the audit record cannot be written, so nothing is sent",
            Some("try again later"),
        ),
        R::UpstreamUnreachable => (502, 5020, "the server cannot be reached", Some("try again later")),
        R::UpstreamTimeout => (504, 5040, "the server did not answer in time", None),
        R::UpstreamBroken => (502, 5021, "the server answered in a way that cannot be passed on", None),
        R::ClientRequestRefused => (
            502,
            5022,
            "the server asked for something that it may not ask of clients",
            Some("ask the operator to list it in `client_requests`"),
        ),
        R::UnknownCursor => (200, -32602, "there is no such cursor", Some("list from the beginning")),
        R::UnknownEvent => (
            400,
            4001,
            "Last-Event-ID names no event of this session",
            Some("open the stream without it"),
        ),
        R::UnknownState => (200, -32602, "there is no such request state", Some("call again without it")),
        R::UnknownTask => (200, -32602, "there is no such task", None),
        R::MissingCapability => (
            400,
            -32021,
            "this is for clients that declare the tasks extension",
            Some("declare it in the client's capabilities"),
        ),
        R::UnknownAnswer => (400, -32600, "no request of a server is waiting for this answer", None),
        R::Internal => (
            500,
            5000,
            "something went wrong here",
            Some("quote the record to the operator"),
        ),
    };
    RefusalText {
        status,
        code,
        sentence,
        remedy,
    }
}

impl RefusalText {
    /// What happened, with what exactly.
    pub fn sentence(&self, refusal: &Refusal, to: &RefusalContext<'_>) -> String {
        match (refusal.reason, &refusal.policy_message, &refusal.detail) {
            (_, Some(message), _) => message.clone(),
            (Reason::InvalidArguments, None, Some(detail)) => detail.clone(),
            (Reason::UnknownTool, None, detail) => {
                let what = to.tool.as_ref().map(|tool| format!("there is no tool `{tool}`"));
                let what = what.unwrap_or_else(|| self.sentence.to_owned());
                with_detail(&what, detail.as_deref())
            }
            (_, None, detail) => with_detail(self.sentence, detail.as_deref()),
        }
    }

    /// What to do.
    pub fn remedy(&self, refusal: &Refusal, to: &RefusalContext<'_>) -> Option<String> {
        if refusal.remedy.is_some() {
            return refusal.remedy.clone();
        }
        let scopes = || refusal.scopes.iter().map(|scope| format!("`{}`", scope.as_str()));
        let scopes = match refusal.scopes.len() {
            0 => None,
            1 => Some(format!("the scope {}", scopes().collect::<String>())),
            _ => Some(format!("the scopes {}", scopes().collect::<Vec<_>>().join(", "))),
        };
        match (refusal.reason, scopes, refusal.retry_after) {
            (Reason::MissingScope, Some(scopes), _) => Some(format!("ask the operator to grant you {scopes}")),
            (Reason::CredentialLacksScope, Some(scopes), _) if to.may_step_up => {
                Some(format!("sign in again and ask for {scopes}"))
            }
            (Reason::CredentialLacksScope, Some(scopes), _) => Some(format!("use a credential with {scopes}")),
            (Reason::RateLimited, _, Some(after)) => Some(format!("try again, but not before {} s", whole_seconds(after))),
            _ => self.remedy.map(str::to_owned),
        }
    }

    /// The text of a JSON-RPC error. Many clients show nothing else of it, so the remedy is in it.
    pub fn message(&self, refusal: &Refusal, to: &RefusalContext<'_>) -> String {
        let sentence = self.sentence(refusal, to);
        match self.remedy(refusal, to) {
            Some(remedy) if sentence.ends_with(['.', '?', '!']) => format!("{sentence} {remedy}"),
            Some(remedy) if remedy.starts_with(char::is_uppercase) => format!("{sentence}. {remedy}"),
            Some(remedy) => format!("{sentence}; {remedy}"),
            None => sentence,
        }
    }

    /// The text of a tool result, for a model: what happened, what to do, and the record to quote.
    pub fn text_for_model(&self, refusal: &Refusal, to: &RefusalContext<'_>) -> String {
        let opening = match refusal.reason {
            Reason::InvalidArguments => "Invalid arguments: ",
            Reason::UnknownTool => "",
            _ => "Refused: ",
        };
        let mut text = as_sentence(&self.sentence(refusal, to), opening);
        if let Some(remedy) = self.remedy(refusal, to) {
            text.push(' ');
            text.push_str(&as_sentence(&remedy, ""));
        }
        if let Some(record) = to.record {
            text.push_str(&format!(" (record {record})"));
        }
        text
    }
}

fn with_detail(what: &str, detail: Option<&str>) -> String {
    match detail {
        Some(detail) => format!("{what}: {detail}"),
        None => what.to_owned(),
    }
}

/// `opening` and `text` as one sentence, with a capital letter and a full stop.
fn as_sentence(text: &str, opening: &str) -> String {
    let mut sentence = opening.to_owned();
    let mut letters = text.chars();
    match letters.next() {
        Some(first) if opening.is_empty() => sentence.extend(first.to_uppercase()),
        first => sentence.extend(first),
    }
    sentence.push_str(letters.as_str());
    if !sentence.ends_with(['.', '?', '!']) {
        sentence.push('.');
    }
    sentence
}

/// Whole seconds that are not too short.
pub(super) fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
