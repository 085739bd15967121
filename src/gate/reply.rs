//! The HTTP response to a refused message: a tool result, a JSON-RPC error or both with a status that the client can act on.
//! The words are in `refusal_text`. Decides nothing.

use super::refusal_text::{RefusalText, refusal_text, whole_seconds};
use crate::config::{Denials, ServerConfig, UnknownTools};
use crate::domain::{Era, MessageId, Method, Principal, PrincipalKind, ProtocolVersion, Reason, Refusal, RequestId, TargetKind};
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
    /// The called tool by the name that the client used, if it can be shown.
    pub tool: Option<String>,
    /// The audit record to quote; `None` if there is none, e.g. because refusals of unauthenticated callers are only
    /// counted.
    pub record: Option<RequestId>,
    /// Absolute URL of the protected resource metadata, for `WWW-Authenticate`.
    pub metadata: Option<&'a str>,
    /// The scopes that a client without a token may ask for, between spaces.
    pub offered_scopes: &'a str,
    pub denials: Denials,
    pub unknown_tools: UnknownTools,
    /// The raw protocol version of the request, repeated to the client if it is refused.
    pub raw_version: Option<&'a str>,
    /// The eras that the server speaks, so that the client is offered no version that would be refused too.
    pub eras: Eras,
    /// The method of the message; `None` if unknown or not read.
    pub method: Option<Method>,
    /// Whether this caller's `tools/list` hides the called tool; with `denials = "unknown_tool"` the refusal hides it too.
    pub hidden_from_caller: bool,
}

/// How the refused calls of one server look to clients.
#[derive(Debug, Clone, Copy, Default)]
pub struct RefusalStyle {
    denials: Denials,
    /// For service accounts, if not the same.
    service_denials: Option<Denials>,
    pub unknown_tools: UnknownTools,
}

impl RefusalStyle {
    pub fn of(server: &ServerConfig) -> Self {
        Self {
            denials: server.denials,
            service_denials: server.service_denials,
            unknown_tools: server.unknown_tools,
        }
    }

    pub fn denials(self, principal: Option<&Principal>) -> Denials {
        let is_service = principal.is_some_and(|principal| principal.kind == PrincipalKind::Service);
        self.service_denials.filter(|_| is_service).unwrap_or(self.denials)
    }

    /// Whether a refusal with this reason is told as if the target did not exist.
    pub fn hides(self, reason: Reason, principal: Option<&Principal>) -> bool {
        self.denials(principal) == Denials::UnknownTool && reveals_a_tool(reason)
    }
}

impl RefusalContext<'_> {
    /// Resources and prompts are refused with JSON-RPC errors, never with a tool result.
    fn targets_resource_or_prompt(&self) -> bool {
        self.method.is_some_and(Method::targets_resource_or_prompt)
    }
}

/// The complete HTTP response to a refused message.
pub fn refusal_response(refusal: &Refusal, to: &RefusalContext<'_>) -> Response<Body> {
    if to.denials == Denials::UnknownTool && (to.hidden_from_caller || reveals_a_tool(refusal.reason)) {
        let denials = Denials::ToolResult;
        let unknown = match to.method.map(Method::target_kind) {
            Some(TargetKind::Task) => Reason::UnknownTask,
            _ if to.targets_resource_or_prompt() => Reason::UnknownTarget,
            _ => Reason::UnknownTool,
        };
        let to = RefusalContext {
            denials,
            tool: to.tool.clone(),
            ..*to
        };
        return refusal_response(&unknown.into(), &to);
    }
    let text = refusal_text(refusal.reason);
    let status = status(refusal.reason, text.status, to);
    let mut response = match to.id.filter(|_| is_told_in_result(refusal.reason, status, to)) {
        Some(id) => json_response(StatusCode::OK, mcp::result(id, tool_result(&text, refusal, to))),
        None => json_response(status, error(&text, refusal, to)),
    };
    let headers = response.headers_mut();
    if let Some(challenge) = challenge(refusal, status, to) {
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

/// Whether the refusal is told in the result of the tool, where a model reads it. Agents give up at a JSON-RPC error, or show
/// their model none of it. Invalid arguments are always told so (SEP-1303).
fn is_told_in_result(reason: Reason, status: StatusCode, to: &RefusalContext<'_>) -> bool {
    use Reason as R;
    if to.method != Some(Method::ToolsCall) || status != StatusCode::OK {
        return false;
    }
    match reason {
        R::InvalidArguments => true,
        R::UnknownTool => to.unknown_tools == UnknownTools::ToolResult,
        R::NotEnrolled | R::TooManyMembers | R::CredentialLacksScope => to.denials != Denials::Error,
        R::NoPolicyPermits | R::ForbiddenByPolicy | R::PolicyError => to.denials != Denials::Error,
        R::ToolNotApproved | R::DefinitionChanged => to.denials != Denials::Error,
        reason => (is_limit(reason) || reason.is_grant_related()) && to.denials != Denials::Error,
    }
}

const fn is_limit(reason: Reason) -> bool {
    use Reason as R;
    matches!(
        reason,
        R::RateLimited | R::TooManyInFlight | R::TooManySessions | R::TooManyStreams
    )
}

fn tool_result(text: &RefusalText, refusal: &Refusal, to: &RefusalContext<'_>) -> Value {
    let mut result = json!({
        "content": [{ "type": "text", "text": text.text_for_model(refusal, to) }],
        "isError": true,
        "_meta": { "guardian/refusal": data(text, refusal, to) },
    });
    if to.era == Era::Modern {
        result["resultType"] = "complete".into();
    }
    result
}

fn error(text: &RefusalText, refusal: &Refusal, to: &RefusalContext<'_>) -> Bytes {
    let data = Value::Object(data(text, refusal, to));
    mcp::error(to.id, text.code, &text.message(refusal, to), Some(data))
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
            | R::CredentialLacksScope
            | R::NoPolicyPermits
            | R::ForbiddenByPolicy
            | R::PolicyError
    )
}

/// The refusal as a bare JSON-RPC error, for use inside a response that has its own status.
pub fn body(refusal: &Refusal, id: Option<&MessageId>) -> Bytes {
    let to = RefusalContext {
        id,
        era: Era::Legacy,
        may_step_up: false,
        tool: None,
        record: None,
        metadata: None,
        offered_scopes: "",
        denials: Denials::Error,
        unknown_tools: UnknownTools::Error,
        raw_version: None,
        eras: Eras::Unknown,
        method: None,
        hidden_from_caller: false,
    };
    error(&refusal_text(refusal.reason), refusal, &to)
}

/// The HTTP status. The refusal of a valid request is answered with 200, so that it reaches whoever asked: legacy clients may
/// drop their session on any other status, and a client with a token takes 403 for an invitation to sign in again. So 403 is
/// left to what another token can mend.
/// Modern clients get the status of limits (but for tool calls), of failing servers and of decisions that cannot be made at
/// the moment. A message without a readable id keeps the error status, because its client could not tell which request a 200
/// answers.
fn status(reason: Reason, status: u16, to: &RefusalContext<'_>) -> StatusCode {
    use Reason as R;
    let asked = to.id.is_some();
    let legacy = to.era == Era::Legacy;
    let in_band = match reason {
        R::UnknownMethod => legacy,
        R::NotEnrolled | R::TooManyMembers => asked,
        R::CredentialLacksScope => asked && !to.may_step_up,
        R::StaleAuthorization | R::FeedMissing | R::AuditUnavailable => asked && legacy,
        R::UpstreamUnreachable | R::UpstreamTimeout | R::UpstreamBroken | R::ClientRequestRefused => asked && legacy,
        reason if is_limit(reason) => match to.method {
            Some(Method::ToolsCall) => asked,
            method => legacy && (asked || method.is_some()),
        },
        reason => asked && reason.is_grant_related(),
    };
    if in_band {
        StatusCode::OK
    } else {
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// For programs to act on: `data` of a JSON-RPC error, `_meta` of a tool result.
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
    if let Some(remedy) = text.remedy(refusal, to) {
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
fn challenge(refusal: &Refusal, status: StatusCode, to: &RefusalContext<'_>) -> Option<HeaderValue> {
    let own_scopes = refusal
        .scopes
        .iter()
        .map(|scope| scope.as_str())
        .collect::<Vec<_>>()
        .join(" ");
    let (error, scope) = match (status.as_u16(), refusal.reason) {
        (401, Reason::NoCredential) => (None, to.offered_scopes),
        (401, _) => (Some("invalid_token"), to.offered_scopes),
        (403, Reason::CredentialLacksScope) => (Some("insufficient_scope"), own_scopes.as_str()),
        _ => return None,
    };
    let scope = Some(scope).filter(|scope| !scope.is_empty());
    let parameters = [("error", error), ("scope", scope), ("resource_metadata", to.metadata)];
    let parameters = parameters
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name}=\"{}\"", value?)));
    let text = format!("Bearer {}", parameters.collect::<Vec<_>>().join(", "));
    HeaderValue::from_str(text.trim_end()).ok()
}

fn retry_after_secs(refusal: &Refusal, status: StatusCode) -> Option<u64> {
    match (refusal.retry_after, status.as_u16()) {
        (Some(after), _) => Some(whole_seconds(after)),
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
            tool: None,
            record: None,
            metadata: Some("https://g.example/.well-known/x"),
            offered_scopes: "",
            denials,
            unknown_tools: UnknownTools::default(),
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

    fn with_scopes(reason: Reason) -> Refusal {
        Refusal {
            scopes: vec![Scope::parse("a").unwrap(), Scope::parse("b").unwrap()],
            ..Refusal::new(reason)
        }
    }

    /// The status, the challenge, and whether a tool result tells it.
    fn told(refusal: &Refusal, to: &RefusalContext<'_>) -> (u16, Option<String>, bool) {
        let response = refusal_response(refusal, to);
        let challenge = response.headers().get(header::WWW_AUTHENTICATE);
        let challenge = challenge.map(|challenge| challenge.to_str().unwrap().to_owned());
        let status = response.status();
        (status.as_u16(), challenge, is_told_in_result(refusal.reason, status, to))
    }

    #[test]
    fn only_what_another_token_can_mend_is_challenged() {
        let id = MessageId::from_json(Bytes::from_static(b"1"));
        for era in [Era::Legacy, Era::Modern] {
            let asking = |may_step_up, method| RefusalContext {
                id: Some(&id),
                method: Some(method),
                may_step_up,
                ..to(era, Denials::ToolResult)
            };
            let (status, challenge, _) = told(&with_scopes(Reason::CredentialLacksScope), &asking(true, Method::ToolsCall));
            assert_eq!(status, 403);
            assert!(challenge.unwrap().contains("scope=\"a b\""));
            let key = told(&with_scopes(Reason::CredentialLacksScope), &asking(false, Method::ToolsCall));
            assert_eq!(key, (200, None, true));
            for reason in [
                Reason::NoGrant,
                Reason::GrantRevoked,
                Reason::MissingScope,
                Reason::NotEnrolled,
                Reason::MemberDisabled,
            ] {
                for may_step_up in [true, false] {
                    let refusal = with_scopes(reason);
                    assert_eq!(
                        told(&refusal, &asking(may_step_up, Method::ToolsCall)),
                        (200, None, true),
                        "{reason:?}"
                    );
                    assert_eq!(
                        told(&refusal, &asking(may_step_up, Method::Initialize)),
                        (200, None, false),
                        "{reason:?}"
                    );
                }
                let unasked = told(&with_scopes(reason), &to(era, Denials::ToolResult));
                assert_eq!(unasked, (403, None, false), "{reason:?}");
            }
        }
    }

    #[test]
    fn the_text_tells_what_to_do() {
        let id = MessageId::from_json(Bytes::from_static(b"1"));
        let to = RefusalContext {
            id: Some(&id),
            method: Some(Method::ToolsCall),
            tool: Some("query".to_owned()),
            ..to(Era::Modern, Denials::ToolResult)
        };
        let text = |refusal: Refusal| refusal_text(refusal.reason).text_for_model(&refusal, &to);
        assert_eq!(
            text(with_scopes(Reason::MissingScope)),
            "Refused: your grant does not cover this. Ask the operator to grant you the scopes `a`, `b`."
        );
        let unknown = Refusal {
            remedy: Some("did you mean `quest`?".to_owned()),
            ..Refusal::new(Reason::UnknownTool)
        };
        assert_eq!(text(unknown), "There is no tool `query`. Did you mean `quest`?");
        let arguments = Refusal::with_detail(Reason::InvalidArguments, "argument `path` is missing");
        assert_eq!(
            text(arguments),
            "Invalid arguments: argument `path` is missing. Correct the arguments and call again."
        );
        let limited = Refusal {
            retry_after: Some(std::time::Duration::from_millis(11_200)),
            ..Refusal::with_detail(Reason::RateLimited, "at most 1 calls in 60s")
        };
        assert_eq!(
            text(limited.clone()),
            "Refused: too many calls: at most 1 calls in 60s. Try again, but not before 12 s."
        );
        assert_eq!(
            refusal_text(Reason::RateLimited).message(&limited, &to),
            "too many calls: at most 1 calls in 60s; try again, but not before 12 s"
        );
        let policy = Refusal {
            policy_message: Some("Files are closed.".to_owned()),
            remedy: Some("Ask for a copy.".to_owned()),
            ..Refusal::new(Reason::ForbiddenByPolicy)
        };
        assert_eq!(text(policy), "Refused: Files are closed. Ask for a copy.");
    }

    #[test]
    fn a_hidden_tool_is_told_like_one_that_does_not_exist() {
        let id = MessageId::from_json(Bytes::from_static(b"1"));
        for unknown_tools in [UnknownTools::ToolResult, UnknownTools::Error] {
            let to = RefusalContext {
                id: Some(&id),
                method: Some(Method::ToolsCall),
                tool: Some("deploy".to_owned()),
                unknown_tools,
                ..to(Era::Legacy, Denials::UnknownTool)
            };
            let said = |refusal: &Refusal| {
                let response = refusal_response(refusal, &to);
                (response.status(), format!("{:?}", response.headers()), written(refusal, &to))
            };
            let gone = Refusal::with_detail(Reason::UnknownTool, "the server no longer offers this tool");
            let near = Refusal {
                remedy: Some("did you mean `depot`?".to_owned()),
                ..Refusal::new(Reason::UnknownTool)
            };
            let unknown = said(&Refusal::new(Reason::UnknownTool));
            for refusal in [
                with_scopes(Reason::MissingScope),
                with_scopes(Reason::CredentialLacksScope),
                Refusal::new(Reason::ForbiddenByPolicy),
                Refusal::new(Reason::DefinitionChanged),
                gone,
                near,
            ] {
                assert_eq!(said(&refusal), unknown, "{refusal:?}");
            }
        }
    }

    /// The body.
    fn written(refusal: &Refusal, to: &RefusalContext<'_>) -> String {
        use http_body_util::BodyExt;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let body = refusal_response(refusal, to).into_body();
        let bytes = runtime.block_on(body.collect()).unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
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
    fn failing_servers_keep_their_status_in_the_modern_era_alone() {
        let id = MessageId::from_json(Bytes::from_static(b"1"));
        let status = |reason: Reason, era| {
            let to = RefusalContext {
                id: Some(&id),
                method: Some(Method::ToolsCall),
                ..to(era, Denials::ToolResult)
            };
            told(&reason.into(), &to)
        };
        for (reason, modern) in [
            (Reason::UpstreamBroken, 502),
            (Reason::UpstreamTimeout, 504),
            (Reason::AuditUnavailable, 503),
            (Reason::StaleAuthorization, 503),
        ] {
            assert_eq!(status(reason, Era::Legacy), (200, None, false), "{reason:?}");
            assert_eq!(status(reason, Era::Modern), (modern, None, false), "{reason:?}");
        }
        // The client or a load balancer must act on these statuses.
        for (reason, code) in [(Reason::BadKey, 401), (Reason::UnknownSession, 404), (Reason::Draining, 503)] {
            assert_eq!(status(reason, Era::Legacy).0, code, "{reason:?}");
        }
    }

    #[test]
    fn a_limit_is_told_in_band_for_tool_calls_and_to_legacy_clients() {
        let id = MessageId::from_json(Bytes::from_static(b"1"));
        let refusal = Refusal {
            retry_after: Some(std::time::Duration::from_millis(1_500)),
            ..Refusal::new(Reason::RateLimited)
        };
        for (era, method, denials, expected) in [
            (Era::Legacy, Method::ToolsCall, Denials::ToolResult, (200, true)),
            (Era::Modern, Method::ToolsCall, Denials::ToolResult, (200, true)),
            (Era::Modern, Method::ToolsCall, Denials::Error, (200, false)),
            (Era::Legacy, Method::ToolsList, Denials::ToolResult, (200, false)),
            (Era::Modern, Method::ToolsList, Denials::ToolResult, (429, false)),
        ] {
            let to = RefusalContext {
                id: Some(&id),
                method: Some(method),
                ..to(era, denials)
            };
            let (status, _, in_result) = told(&refusal, &to);
            assert_eq!((status, in_result), expected, "{era:?} {method:?} {denials:?}");
            assert_eq!(refusal_response(&refusal, &to).headers()[header::RETRY_AFTER], "2");
        }
        let unread = refusal_response(&refusal, &to(Era::Legacy, Denials::ToolResult));
        assert_eq!(unread.status(), 429, "it is not said which message this would answer");
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
