//! Turns the bytes of a message into a call: one strict parse, era and headers checked, the caller's handles replaced by the
//! server's own tokens. Does not decide whether the call may be made.

use super::site::Verb;
use super::talk::{BroughtTask, Talk};
use super::target;
use super::trail::Trail;
use crate::domain::{Call, Era, MessageId, Method, Principal, ProtocolVersion, Reason, Refusal, ServerName, Target, Timestamp};
use crate::mcp::{self, McpHeaders, Message};
use crate::upstream::{Session, Upstreams};
use bytes::Bytes;

/// Opens the sealed session id of a legacy client. Another caller's or server's session is unknown.
pub(super) fn named_session(
    mcp_headers: &McpHeaders<'_>,
    upstreams: &Upstreams,
    caller: &Principal,
    server: &ServerName,
    now: Timestamp,
) -> Result<Option<Session>, Refusal> {
    let open = |sealed| {
        upstreams
            .sessions()
            .open(sealed, caller, Some(server), now)
            .ok_or(Refusal::new(Reason::UnknownSession))
    };
    mcp_headers.session.map(open).transpose()
}

/// Parses a POST body into a call, with its session and the tasks that it names. The body determines the era, and the
/// headers must agree with it.
pub(super) fn read(
    body: Bytes,
    mcp_headers: &McpHeaders<'_>,
    session: Result<Option<Session>, Refusal>,
    server: &ServerName,
    talk: &Talk,
    trail: &mut Trail,
) -> Result<(Call, Option<Session>, Vec<BroughtTask>), Refusal> {
    let message = mcp::parse_message(body, &mcp::Bounds::default()).map_err(|malformed| heard(malformed, trail))?;
    if let Message::Request(request) = &message {
        trail.id = Some(request.id.clone());
    }
    // The modern era has no sessions and ignores `Mcp-Session-Id`.
    let session = if message.is_modern() { None } else { session? };
    if message.is_modern() {
        trail.era = Era::Modern;
    }
    let negotiated = session.as_ref().map(|session| session.version);
    let mut call = Call {
        request: trail.request,
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
            let (era, version, method) = asks(&request, mcp_headers, negotiated, trail)?;
            let brought = talk.bring(&request.body, request.params.as_ref(), method, era)?;
            call = Call {
                era,
                version,
                method,
                id: Some(request.id),
                body: brought.body,
                ..call
            };
            call = target::aim(call, request.params, &brought.tasks, trail)?;
            tasks = brought.tasks;
        }
        Message::Notification(notification) => {
            let (era, version, method) = notes(&notification, mcp_headers, negotiated, trail)?;
            let brought = talk.bring(&notification.body, notification.params.as_ref(), method, era)?;
            call = Call {
                era,
                version,
                method,
                body: brought.body,
                ..call
            };
        }
        Message::Response(response) => {
            trail.method = Some(Method::Answer);
            let version = mcp::negotiate_bodyless(mcp_headers, negotiated).map_err(|malformed| heard(malformed, trail))?;
            let (body, claim, asked) = talk.answer(&response)?;
            (trail.claim, trail.target) = (Some(claim), asked);
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
pub(super) fn asks(
    request: &mcp::Request,
    mcp_headers: &McpHeaders<'_>,
    negotiated: Option<ProtocolVersion>,
    trail: &mut Trail,
) -> Result<(Era, Option<ProtocolVersion>, Method), Refusal> {
    trail.said_version = request.requested_version().map(fit_for_a_record);
    trail.trace = request.trace().map(fit_for_a_record);
    let agreed = mcp::negotiate(request, mcp_headers, negotiated);
    found(agreed, |era| mcp::method(request, era), &request.method, trail)
}

/// Resolves the era, version and method of a notification.
pub(super) fn notes(
    notification: &mcp::Notification,
    mcp_headers: &McpHeaders<'_>,
    negotiated: Option<ProtocolVersion>,
    trail: &mut Trail,
) -> Result<(Era, Option<ProtocolVersion>, Method), Refusal> {
    let agreed = mcp::negotiate_notification(notification, mcp_headers, negotiated);
    found(
        agreed,
        |era| mcp::notification(notification, era),
        &notification.method,
        trail,
    )
}

/// Resolves the method in the negotiated era. If there is none, the audit record gets the raw method name.
fn found(
    agreed: Result<(Era, Option<ProtocolVersion>), mcp::Malformed>,
    method: impl FnOnce(Era) -> Option<Method>,
    said: &str,
    trail: &mut Trail,
) -> Result<(Era, Option<ProtocolVersion>, Method), Refusal> {
    let found = agreed
        .map_err(|malformed| heard(malformed, trail))
        .and_then(|(era, version)| {
            trail.era = era;
            let method = method(era).ok_or(Reason::UnknownMethod)?;
            Ok((era, version, method))
        });
    match &found {
        Ok((.., method)) => trail.method = Some(*method),
        Err(_) => trail.said_method = Some(fit_for_a_record(said)),
    }
    found
}

/// The call that a GET or DELETE stands for.
pub(super) fn without_body(
    method: Method,
    mcp_headers: &McpHeaders<'_>,
    session: Option<Session>,
    server: &ServerName,
    trail: &mut Trail,
) -> Result<(Call, Option<Session>, Vec<BroughtTask>), Refusal> {
    trail.method = Some(method);
    let version = mcp::negotiate_bodyless(mcp_headers, session.as_ref().map(|session| session.version))
        .map_err(|malformed| heard(malformed, trail))?;
    if session.is_none() && method == Method::EndSession {
        return Err(Reason::UnknownSession.into());
    }
    let call = Call {
        request: trail.request,
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
pub(super) fn heard(malformed: mcp::Malformed, trail: &mut Trail) -> Refusal {
    if malformed.id.is_some() {
        trail.id = malformed.id;
    }
    Refusal::with_detail(malformed.reason, malformed.detail)
}

/// The request id in an unauthenticated message, so that the 401 answers it. Nothing else of the body is used.
pub(super) fn id_of(verb: Verb, body: Bytes) -> Option<MessageId> {
    if verb != Verb::Post {
        return None;
    }
    match mcp::parse_message(body, &mcp::Bounds::default()) {
        Ok(Message::Request(request)) => Some(request.id),
        Ok(_) => None,
        Err(malformed) => malformed.id,
    }
}

/// Longest raw text that is kept for a record, in characters.
const LONGEST_SAID: usize = 64;

/// Makes a caller's text safe for a record: truncated, and without control characters.
pub(super) fn fit_for_a_record(said: &str) -> String {
    if said.len() <= LONGEST_SAID && !said.chars().any(char::is_control) {
        return said.to_owned();
    }
    said.chars()
        .take(LONGEST_SAID)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
