//! What a client is told when it is refused: one table from `Reason` to HTTP status, JSON-RPC code, sentence and remedy.
//!
//! Decides nothing. Discloses no secret, because a `Refusal` never holds one.

use crate::config::Denials;
use crate::domain::{Era, MessageId, Method, ProtocolVersion, Reason, Refusal, RequestId};
use crate::mcp;
use crate::transport::{self, Body};
use crate::upstream::Eras;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value, json};

/// What the wording and the status of a refusal depend on, beside its reason.
pub struct RefusalContext<'a> {
    pub id: Option<&'a MessageId>,
    pub era: Era,
    /// Whether the caller uses a token, so that it could get one with more scopes.
    pub may_step_up: bool,
    /// The audit record to quote; `None` if there is none, e.g. because refusals of unauthenticated callers are only
    /// counted.
    pub record: Option<RequestId>,
    /// Absolute URL of the protected resource metadata, for `WWW-Authenticate`.
    pub metadata: &'a str,
    pub denials: Denials,
    /// The raw protocol version of the request, repeated to the client if it is refused.
    pub raw_version: Option<&'a str>,
    /// The eras that the server speaks, so that the client is offered no version that would be refused too.
    pub eras: Eras,
    /// The method of the message; `None` if unknown or not read.
    pub method: Option<Method>,
    /// Whether this caller's `tools/list` hides the called tool; with `denials = "unknown_tool"` the refusal hides it too.
    pub hidden_from_caller: bool,
}

impl RefusalContext<'_> {
    /// Resources and prompts are refused with JSON-RPC errors, never with a tool result.
    fn targets_resource_or_prompt(&self) -> bool {
        self.method.is_some_and(Method::targets_resource_or_prompt)
    }
}

struct RefusalText {
    status: u16,
    /// The JSON-RPC code: the specification's if it has one, else our own outside -32768…-32000.
    code: i64,
    sentence: &'static str,
    remedy: Option<&'static str>,
}

/// The table of all refusals. The `match` is exhaustive, so each reason has exactly one row.
const fn refusal_text(reason: Reason) -> RefusalText {
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
        R::TokenNotYetValid => (401, 4010, "the token is not valid yet", Some("check the clocks")),
        R::WrongAudience => (401, 4010, "the token was not made for this server", None),
        R::WrongTokenKind => (401, 4010, "this kind of token is not accepted", Some("send an access token")),
        R::WrongEnvironment => (401, 4010, "the token was not made for this environment", None),
        R::CredentialRevoked => (401, 4010, "the credential was revoked", Some("sign in again")),
        R::BadKey => (401, 4010, "the key is not known", None),
        R::KeyExpired => (401, 4010, "the key has expired", Some("ask the operator for a new one")),
        R::KeyRevoked => (401, 4010, "the key was revoked", Some("ask the operator for a new one")),
        R::BadCertificate => (401, 4010, "the client certificate is not accepted", None),
        R::IssuerUnavailable => (
            503,
            5031,
            "the keys of the token's issuer cannot be had at the moment",
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
            "your grant does not cover this tool",
            Some("ask the operator for the scopes named"),
        ),
        R::UnknownTool => (200, -32602, "unknown tool", Some("list the tools again")),
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
        R::InvalidArguments => (200, -32602, "the arguments are not what the tool takes", None),
        R::NoPolicyPermits => (200, 4036, "no policy permits this call", None),
        R::ForbiddenByPolicy => (200, 4037, "a policy forbids this call", None),
        R::PolicyError => (
            200,
            4038,
            "this call could not be judged and is therefore refused",
            Some("quote the record to the operator"),
        ),
        R::RateLimited => (429, 4290, "too many calls", Some("wait as long as retry_after_ms says")),
        R::TooManyInFlight => (429, 4291, "too many calls at once", Some("wait for one of them to finish")),
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

/// The complete HTTP response to a refused message.
pub fn refusal_response(refusal: &Refusal, to: &RefusalContext<'_>) -> Response<Body> {
    let text = refusal_text(refusal.reason);
    let by_policy = matches!(
        refusal.reason,
        Reason::NoPolicyPermits | Reason::ForbiddenByPolicy | Reason::PolicyError
    );
    if by_policy
        && to.denials == Denials::ToolResult
        && !to.targets_resource_or_prompt()
        && let Some(id) = to.id
    {
        let shown = format!("Refused: {}.", sentence(&text, refusal).trim_end_matches('.'));
        let result = json!({ "content": [{ "type": "text", "text": shown }], "isError": true, "resultType": "complete",
            "_meta": { "guardian/refusal": data(&text, refusal, to) } });
        return json_response(StatusCode::OK, mcp::result(id, result));
    }
    if to.denials == Denials::UnknownTool && (to.hidden_from_caller || reveals_a_tool(refusal.reason)) {
        let denials = Denials::Error;
        let unknown = if to.targets_resource_or_prompt() {
            Reason::UnknownTarget
        } else {
            Reason::UnknownTool
        };
        return refusal_response(&unknown.into(), &RefusalContext { denials, ..*to });
    }
    let body = mcp::error(
        to.id,
        text.code,
        &sentence(&text, refusal),
        Some(Value::Object(data(&text, refusal, to))),
    );
    let status = status(refusal.reason, text.status, to);
    let mut response = json_response(status, body);
    let headers = response.headers_mut();
    if let Some(challenge) = challenge(refusal, status, to.metadata) {
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
    if let Some(after) = retry_after_secs(refusal, status) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(after));
    }
    if refusal.reason == Reason::WrongHttpMethod {
        headers.insert(header::ALLOW, HeaderValue::from_static("POST, GET, DELETE"));
    }
    response
}

/// Closes the HTTP/1.1 connection after this response, so that nothing after the refused request is parsed. HTTP/2 frames
/// delimit each request and need no such header.
pub fn close_after(mut response: Response<Body>) -> Response<Body> {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

/// Refusals that would tell an existing tool from one that does not exist. With `denials = "unknown_tool"` all of them read
/// `unknown_tool`.
const fn reveals_a_tool(reason: Reason) -> bool {
    use Reason as R;
    matches!(
        reason,
        R::UnknownTool
            | R::ToolNotApproved
            | R::DefinitionChanged
            | R::MissingScope
            | R::NoPolicyPermits
            | R::ForbiddenByPolicy
            | R::PolicyError
    )
}

/// The refusal as a bare JSON-RPC error, for use inside a response that has its own status.
pub fn body(refusal: &Refusal, id: Option<&MessageId>) -> Bytes {
    let text = refusal_text(refusal.reason);
    let to = RefusalContext {
        id,
        era: Era::Legacy,
        may_step_up: false,
        record: None,
        metadata: "",
        denials: Denials::Error,
        raw_version: None,
        eras: Eras::Unknown,
        method: None,
        hidden_from_caller: false,
    };
    mcp::error(
        id,
        text.code,
        &sentence(&text, refusal),
        Some(Value::Object(data(&text, refusal, &to))),
    )
}

/// The HTTP status, by era. Legacy clients may drop their session on any status but 200, so they get the refusal of a valid
/// request as a JSON-RPC error with 200: limits, failing servers, and decisions that cannot be made at the moment.
/// Missing grants and scopes too, except for callers with a token: the specification requires 403 there, and their clients
/// react by getting another token.
/// A message without a readable id keeps the error status, because its client could not tell which request a 200 answers.
fn status(reason: Reason, status: u16, to: &RefusalContext<'_>) -> StatusCode {
    use Reason as R;
    let asked = to.id.is_some();
    let in_band = match reason {
        R::UnknownMethod => true,
        R::RateLimited | R::TooManyInFlight => asked || to.method.is_some(),
        R::StaleAuthorization | R::FeedMissing | R::AuditUnavailable => asked,
        R::UpstreamUnreachable | R::UpstreamTimeout | R::UpstreamBroken | R::ClientRequestRefused => asked,
        R::NotEnrolled | R::TooManyMembers => asked && !to.may_step_up,
        reason => asked && reason.is_grant_related() && !to.may_step_up,
    };
    if to.era == Era::Legacy && in_band {
        StatusCode::OK
    } else {
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

fn sentence(text: &RefusalText, refusal: &Refusal) -> String {
    match (&refusal.policy_message, &refusal.detail) {
        (Some(said), _) => said.clone(),
        (None, Some(detail)) => format!("{}: {detail}", text.sentence),
        (None, None) => text.sentence.to_owned(),
    }
}

/// `data` of the JSON-RPC error, for programs and models to act on.
fn data(text: &RefusalText, refusal: &Refusal, to: &RefusalContext<'_>) -> Map<String, Value> {
    let mut data = Map::new();
    data.insert("reason".to_owned(), refusal.reason.code().into());
    if !refusal.scopes.is_empty() {
        data.insert(
            "scopes".to_owned(),
            refusal.scopes.iter().map(|scope| scope.as_str()).collect(),
        );
    }
    if !refusal.policies.is_empty() {
        data.insert(
            "policies".to_owned(),
            refusal.policies.iter().map(|policy| policy.as_str()).collect(),
        );
    }
    if let Some(remedy) = refusal.remedy.as_deref().or(text.remedy) {
        data.insert("remedy".to_owned(), remedy.into());
    }
    if let Some(after) = refusal.retry_after {
        data.insert(
            "retry_after_ms".to_owned(),
            u64::try_from(after.as_millis()).unwrap_or(u64::MAX).into(),
        );
    }
    if refusal.reason == Reason::UnsupportedVersion {
        data.insert("supported".to_owned(), supported_versions(to.era, to.eras).into());
        if let Some(requested) = to.raw_version {
            data.insert("requested".to_owned(), requested.into());
        }
    }
    if refusal.reason == Reason::MissingCapability {
        data.insert("requiredCapabilities".to_owned(), json!({ "extensions": { mcp::TASKS: {} } }));
    }
    if let Some(record) = to.record {
        data.insert("record".to_owned(), record.to_string().into());
    }
    data
}

/// The versions that the client can ask for instead, newest first: those of its era, or of the other era if the server
/// speaks only that.
fn supported_versions(asked: Era, eras: Eras) -> Vec<&'static str> {
    let era = match (asked, eras.cannot_speak(asked)) {
        (Era::Legacy, false) | (Era::Modern, true) => Era::Legacy,
        (Era::Modern, false) | (Era::Legacy, true) => Era::Modern,
    };
    let versions = ProtocolVersion::ALL.iter().rev();
    versions
        .filter(|version| version.era() == era)
        .map(|version| version.as_str())
        .collect()
}

/// `WWW-Authenticate` (RFC 6750 section 3, RFC 9728 section 5.1): where to get a token, or which scopes are missing.
fn challenge(refusal: &Refusal, status: StatusCode, metadata: &str) -> Option<HeaderValue> {
    let text = match (status.as_u16(), refusal.reason) {
        (401, Reason::NoCredential) => format!("Bearer resource_metadata=\"{metadata}\""),
        (401, _) => format!("Bearer error=\"invalid_token\", resource_metadata=\"{metadata}\""),
        (403, Reason::MissingScope | Reason::NoGrant | Reason::GrantIdle | Reason::GrantRevoked | Reason::GrantExpired) => {
            let scopes: Vec<_> = refusal.scopes.iter().map(|scope| scope.as_str()).collect();
            let scope = if scopes.is_empty() {
                String::new()
            } else {
                format!("scope=\"{}\", ", scopes.join(" "))
            };
            format!("Bearer error=\"insufficient_scope\", {scope}resource_metadata=\"{metadata}\"")
        }
        _ => return None,
    };
    HeaderValue::from_str(&text).ok()
}

fn retry_after_secs(refusal: &Refusal, status: StatusCode) -> Option<u64> {
    match (refusal.retry_after, status.as_u16()) {
        (Some(after), _) => Some(after.as_secs() + u64::from(after.subsec_nanos() > 0)),
        (None, 503) => Some(1),
        (None, _) => None,
    }
}

/// A JSON response that no cache may store.
pub fn json_response(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(transport::full(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Scope;

    fn to(era: Era, denials: Denials) -> RefusalContext<'static> {
        RefusalContext {
            id: None,
            era,
            may_step_up: true,
            record: None,
            metadata: "https://g.example/.well-known/x",
            denials,
            raw_version: None,
            eras: Eras::Unknown,
            method: None,
            hidden_from_caller: false,
        }
    }

    #[test]
    fn own_codes_stay_out_of_the_reserved_range() {
        for reason in Reason::ALL {
            let text = refusal_text(*reason);
            let reserved = (-32768..=-32000).contains(&text.code);
            let specified = [-32700, -32600, -32601, -32602, -32020, -32021, -32022].contains(&text.code);
            assert!(!reserved || specified, "{reason:?} uses {}", text.code);
            assert!(StatusCode::from_u16(text.status).is_ok());
        }
    }

    #[test]
    fn a_missing_scope_names_all_scopes_in_one_challenge() {
        let mut refusal = Refusal::new(Reason::MissingScope);
        refusal.scopes = vec![Scope::parse("a").unwrap(), Scope::parse("b").unwrap()];
        let response = refusal_response(&refusal, &to(Era::Legacy, Denials::Error));
        assert_eq!(response.status(), 403);
        let challenge = response.headers()[header::WWW_AUTHENTICATE].to_str().unwrap();
        assert!(challenge.contains("scope=\"a b\""), "{challenge}");
    }

    #[test]
    fn a_refused_version_is_told_back_with_those_that_the_server_speaks() {
        let refused = |eras| {
            let to = RefusalContext {
                raw_version: Some("2030-01-01"),
                eras,
                ..to(Era::Modern, Denials::Error)
            };
            let refusal = Refusal::new(Reason::UnsupportedVersion);
            data(&refusal_text(refusal.reason), &refusal, &to)
        };
        assert_eq!(refused(Eras::Both)["requested"], "2030-01-01");
        assert_eq!(refused(Eras::Modern)["supported"], json!(["2026-07-28"]));
        let older = json!(["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"]);
        assert_eq!(refused(Eras::Legacy)["supported"], older);
        assert_eq!(refused(Eras::Both), refused(Eras::Unknown));
    }

    #[test]
    fn a_legacy_request_is_answered_in_band_but_for_those_who_can_get_a_token_with_more() {
        let id = MessageId::from_json(Bytes::from_static(b"1"));
        let told = |reason: Reason, era, may_step_up, id| {
            let to = RefusalContext {
                id,
                may_step_up,
                ..to(era, Denials::Error)
            };
            let response = refusal_response(&reason.into(), &to);
            let challenged = response.headers().contains_key(header::WWW_AUTHENTICATE);
            (response.status().as_u16(), challenged)
        };
        let legacy = |reason, may_step_up| told(reason, Era::Legacy, may_step_up, Some(&id));
        for reason in [Reason::NoGrant, Reason::GrantRevoked, Reason::MissingScope] {
            assert_eq!(
                (legacy(reason, false), legacy(reason, true)),
                ((200, false), (403, true)),
                "{reason:?}"
            );
            assert_eq!(told(reason, Era::Modern, false, Some(&id)), (403, true), "{reason:?}");
            assert_eq!(told(reason, Era::Legacy, false, None), (403, true), "{reason:?}");
        }
        assert_eq!(
            (legacy(Reason::NotEnrolled, false).0, legacy(Reason::NotEnrolled, true).0),
            (200, 403)
        );
        for (reason, status) in [
            (Reason::UpstreamBroken, 502),
            (Reason::UpstreamTimeout, 504),
            (Reason::AuditUnavailable, 503),
            (Reason::StaleAuthorization, 503),
        ] {
            assert_eq!((legacy(reason, true).0, legacy(reason, false).0), (200, 200), "{reason:?}");
            assert_eq!(told(reason, Era::Modern, true, Some(&id)).0, status);
        }
        // The client or a load balancer must act on these statuses.
        for (reason, status) in [(Reason::BadKey, 401), (Reason::UnknownSession, 404), (Reason::Draining, 503)] {
            assert_eq!(legacy(reason, false).0, status, "{reason:?}");
        }
    }

    #[test]
    fn a_limit_is_told_in_band_to_legacy_clients() {
        let id = MessageId::from_json(Bytes::from_static(b"1"));
        let refusal = Refusal {
            retry_after: Some(std::time::Duration::from_millis(1_500)),
            ..Refusal::new(Reason::RateLimited)
        };
        let legacy = refusal_response(
            &refusal,
            &RefusalContext {
                id: Some(&id),
                ..to(Era::Legacy, Denials::Error)
            },
        );
        let modern = refusal_response(&refusal, &to(Era::Modern, Denials::Error));
        assert_eq!((legacy.status().as_u16(), modern.status().as_u16()), (200, 429));
        let unread = refusal_response(&refusal, &to(Era::Legacy, Denials::Error));
        assert_eq!(unread.status(), 429, "it is not said which message this would answer");
        assert_eq!(modern.headers()[header::RETRY_AFTER], "2");
    }

    #[test]
    fn only_a_failed_credential_is_called_invalid() {
        let none = refusal_response(&Reason::NoCredential.into(), &to(Era::Legacy, Denials::Error));
        let bad = refusal_response(&Reason::BadSignature.into(), &to(Era::Legacy, Denials::Error));
        assert!(!none.headers()[header::WWW_AUTHENTICATE].to_str().unwrap().contains("error="));
        assert!(
            bad.headers()[header::WWW_AUTHENTICATE]
                .to_str()
                .unwrap()
                .contains("error=\"invalid_token\"")
        );
    }
}
