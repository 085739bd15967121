//! From the bytes of a message to a call: read strictly, once, and brought back to what the server itself handed out.

use super::site::Verb;
use super::talk::{BroughtTask, Talk};
use super::target;
use super::trail::Trail;
use crate::domain::{Call, Era, MessageId, Method, Principal, ProtocolVersion, Reason, Refusal, ServerName, Target, Timestamp};
use crate::mcp::{self, Heads, Message};
use crate::upstream::{Session, Upstreams};
use bytes::Bytes;

/// The session a legacy client names, if it is this caller's own on this server; anyone else's is unknown.
pub(super) fn named_session(
    heads: &Heads<'_>,
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
    heads.session.map(open).transpose()
}

/// From bytes to a call: one strict reading, the era by the body, and headers that agree with it.
pub(super) fn read(
    body: Bytes,
    heads: &Heads<'_>,
    session: Result<Option<Session>, Refusal>,
    server: &ServerName,
    talk: &Talk,
    trail: &mut Trail,
) -> Result<(Call, Option<Session>, Vec<BroughtTask>), Refusal> {
    let message = mcp::read(body, &mcp::Bounds::default()).map_err(|malformed| heard(malformed, trail))?;
    if let Message::Request(request) = &message {
        trail.id = Some(request.id.clone());
    }
    // The new era has no sessions and ignores the header.
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
            let (era, version, method) = asks(&request, heads, negotiated, trail)?;
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
            let (era, version, method) = notes(&notification, heads, negotiated, trail)?;
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
            let version = mcp::agree_headless(heads, negotiated).map_err(|malformed| heard(malformed, trail))?;
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

/// Which method a request is for, and by which rules. What it said of that is kept for the record, whatever comes of it.
pub(super) fn asks(
    request: &mcp::Request,
    heads: &Heads<'_>,
    negotiated: Option<ProtocolVersion>,
    trail: &mut Trail,
) -> Result<(Era, Option<ProtocolVersion>, Method), Refusal> {
    trail.said_version = request.said_version().map(fit_for_a_record);
    trail.trace = request.trace().map(fit_for_a_record);
    let agreed = mcp::agree(request, heads, negotiated);
    found(agreed, |era| mcp::method(request, era), &request.method, trail)
}

/// The same of a notification.
pub(super) fn notes(
    notification: &mcp::Notification,
    heads: &Heads<'_>,
    negotiated: Option<ProtocolVersion>,
    trail: &mut Trail,
) -> Result<(Era, Option<ProtocolVersion>, Method), Refusal> {
    let agreed = mcp::agree_notification(notification, heads, negotiated);
    found(
        agreed,
        |era| mcp::notification(notification, era),
        &notification.method,
        trail,
    )
}

/// The method by the rules that were agreed on; where there is none, the trail keeps what it was called.
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

pub(super) fn without_body(
    method: Method,
    heads: &Heads<'_>,
    session: Option<Session>,
    server: &ServerName,
    trail: &mut Trail,
) -> Result<(Call, Option<Session>, Vec<BroughtTask>), Refusal> {
    trail.method = Some(method);
    let version = mcp::agree_headless(heads, session.as_ref().map(|session| session.version))
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

pub(super) fn heard(malformed: mcp::Malformed, trail: &mut Trail) -> Refusal {
    if malformed.id.is_some() {
        trail.id = malformed.id;
    }
    Refusal::with_detail(malformed.reason, malformed.detail)
}

/// The id of a stranger's message, so that the challenge answers it. Nothing else of the body is believed.
pub(super) fn id_of(verb: Verb, body: Bytes) -> Option<MessageId> {
    if verb != Verb::Post {
        return None;
    }
    match mcp::read(body, &mcp::Bounds::default()) {
        Ok(Message::Request(request)) => Some(request.id),
        Ok(_) => None,
        Err(malformed) => malformed.id,
    }
}

/// Characters of what is only recorded.
const LONGEST_SAID: usize = 64;

/// Method names and trace ids are the caller's words: cut, and without control characters.
pub(super) fn fit_for_a_record(said: &str) -> String {
    if said.len() <= LONGEST_SAID && !said.chars().any(char::is_control) {
        return said.to_owned();
    }
    said.chars()
        .take(LONGEST_SAID)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
