//! Turns the bytes of a message into a call: one strict parse, era and headers checked, the caller's handles replaced by the
//! server's own tokens. Does not decide whether the call may be made.

use super::context::RequestContext;
use super::handles::{HandleTranslator, TaskRef};
use super::routing::HttpVerb;
use super::target;
use crate::domain::{Call, Era, MessageId, Method, Principal, ProtocolVersion, Reason, Refusal, ServerName, Target, Timestamp};
use crate::mcp::{self, McpHeaders, Message};
use crate::sessions::{Session, SessionKeys};
use bytes::Bytes;

/// Opens the sealed session id of a legacy client. Another caller's or server's session is unknown.
pub(super) fn named_session(
    mcp_headers: &McpHeaders<'_>,
    keys: &SessionKeys,
    caller: &Principal,
    server: &ServerName,
    now: Timestamp,
) -> Result<Option<Session>, Refusal> {
    let open = |sealed| {
        keys.open(sealed, caller, Some(server), now)
            .ok_or(Refusal::new(Reason::UnknownSession))
    };
    mcp_headers.session.map(open).transpose()
}

/// Parses a POST body into a call, with its session and the tasks that it names. The body determines the era, and the
/// headers must agree with it.
pub(super) fn parse_call(
    body: Bytes,
    mcp_headers: &McpHeaders<'_>,
    session: Result<Option<Session>, Refusal>,
    server: &ServerName,
    translator: &HandleTranslator,
    context: &mut RequestContext,
) -> Result<(Call, Option<Session>, Vec<TaskRef>), Refusal> {
    let message = mcp::parse_message(body, &mcp::Bounds::default()).map_err(|malformed| reject_malformed(malformed, context))?;
    if let Message::Request(request) = &message {
        context.id = Some(request.id.clone());
    }
    // The modern era has no sessions and ignores `Mcp-Session-Id`.
    let session = if message.is_modern() { None } else { session? };
    if message.is_modern() {
        context.era = Era::Modern;
    }
    let negotiated = session.as_ref().map(|session| session.version);
    let mut call = Call {
        request: context.request,
        server: server.clone(),
        era: Era::Legacy,
        version: None,
        method: Method::Notification,
        target: Target::Server,
        id: None,
        body: Bytes::new(),
        arguments: None,
    };
    let mut tasks = Vec::new();
    match message {
        Message::Request(request) => {
            let (era, version, method) = resolve_request(&request, mcp_headers, negotiated, context)?;
            let decoded = translator.decode_inbound(&request.body, request.params.as_ref(), method, era)?;
            call = Call {
                era,
                version,
                method,
                id: Some(request.id),
                body: decoded.body,
                ..call
            };
            call = target::resolve_target(call, request.params, &decoded.tasks, context)?;
            tasks = decoded.tasks;
        }
        Message::Notification(notification) => {
            let (era, version, method) = resolve_notification(&notification, mcp_headers, negotiated, context)?;
            let decoded = translator.decode_inbound(&notification.body, notification.params.as_ref(), method, era)?;
            call = Call {
                era,
                version,
                method,
                body: decoded.body,
                ..call
            };
        }
        Message::Response(response) => {
            context.method = Some(Method::Answer);
            let version =
                mcp::negotiate_bodyless(mcp_headers, negotiated).map_err(|malformed| reject_malformed(malformed, context))?;
            let (body, claim, asked) = translator.answer(&response)?;
            (context.answer_claim, context.target) = (Some(claim), asked);
            call = Call {
                version,
                method: Method::Answer,
                body,
                ..call
            };
        }
    }
    Ok((call, session, tasks))
}

/// Resolves the era, version and method of a request. Keeps the raw version and trace id for the audit record, even if the
/// request is refused.
pub(super) fn resolve_request(
    request: &mcp::Request,
    mcp_headers: &McpHeaders<'_>,
    negotiated: Option<ProtocolVersion>,
    context: &mut RequestContext,
) -> Result<(Era, Option<ProtocolVersion>, Method), Refusal> {
    context.raw_version = request.requested_version().map(safe_text);
    context.trace = request.trace().map(safe_text);
    let agreed = mcp::negotiate(request, mcp_headers, negotiated);
    resolve_method(agreed, |era| mcp::method(request, era), &request.method, context)
}

/// Resolves the era, version and method of a notification.
pub(super) fn resolve_notification(
    notification: &mcp::Notification,
    mcp_headers: &McpHeaders<'_>,
    negotiated: Option<ProtocolVersion>,
    context: &mut RequestContext,
) -> Result<(Era, Option<ProtocolVersion>, Method), Refusal> {
    let agreed = mcp::negotiate_notification(notification, mcp_headers, negotiated);
    resolve_method(
        agreed,
        |era| mcp::notification(notification, era),
        &notification.method,
        context,
    )
}

/// Resolves the method in the negotiated era. If there is none, the audit record gets the raw method name.
fn resolve_method(
    agreed: Result<(Era, Option<ProtocolVersion>), mcp::Malformed>,
    method: impl FnOnce(Era) -> Option<Method>,
    said: &str,
    context: &mut RequestContext,
) -> Result<(Era, Option<ProtocolVersion>, Method), Refusal> {
    let found = agreed
        .map_err(|malformed| reject_malformed(malformed, context))
        .and_then(|(era, version)| {
            context.era = era;
            let method = method(era).ok_or(Reason::UnknownMethod)?;
            Ok((era, version, method))
        });
    match &found {
        Ok((.., method)) => context.method = Some(*method),
        Err(_) => context.raw_method = Some(safe_text(said)),
    }
    found
}

/// The call that a GET or DELETE stands for.
pub(super) fn bodyless_call(
    method: Method,
    mcp_headers: &McpHeaders<'_>,
    session: Option<Session>,
    server: &ServerName,
    context: &mut RequestContext,
) -> Result<(Call, Option<Session>, Vec<TaskRef>), Refusal> {
    context.method = Some(method);
    let version = mcp::negotiate_bodyless(mcp_headers, session.as_ref().map(|session| session.version))
        .map_err(|malformed| reject_malformed(malformed, context))?;
    if session.is_none() && method == Method::EndSession {
        return Err(Reason::UnknownSession.into());
    }
    let call = Call {
        request: context.request,
        server: server.clone(),
        era: Era::Legacy,
        version,
        method,
        target: Target::Server,
        id: None,
        body: Bytes::new(),
        arguments: None,
    };
    Ok((call, session, Vec::new()))
}

/// The refusal for a malformed message. Keeps the message's id, if it could be read, so that the refusal answers it.
pub(super) fn reject_malformed(malformed: mcp::Malformed, context: &mut RequestContext) -> Refusal {
    if malformed.id.is_some() {
        context.id = malformed.id;
    }
    Refusal::with_detail(malformed.reason, malformed.detail)
}

/// The request id in an unauthenticated message, so that the 401 answers it. Nothing else of the body is used.
pub(super) fn peek_id(verb: HttpVerb, body: Bytes) -> Option<MessageId> {
    if verb != HttpVerb::Post {
        return None;
    }
    match mcp::parse_message(body, &mcp::Bounds::default()) {
        Ok(Message::Request(request)) => Some(request.id),
        Ok(_) => None,
        Err(malformed) => malformed.id,
    }
}

/// Longest raw text that is kept for a record, in characters.
const MAX_SAFE_TEXT: usize = 64;

/// Makes a caller's text safe for a record: truncated, and without control characters.
pub(super) fn safe_text(said: &str) -> String {
    if said.len() <= MAX_SAFE_TEXT && !said.chars().any(char::is_control) {
        return said.to_owned();
    }
    said.chars()
        .take(MAX_SAFE_TEXT)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
