//! Reads the bytes of a message: one strict parse, then era, version and method, which the headers must agree with. Does not
//! look at what the message acts on.

use super::context::MessageSummary;
use crate::domain::{Era, HttpVerb, MessageId, Method, ProtocolVersion, Reason, Refusal, SafeText};
use crate::mcp::{self, Edits, McpHeaders, Message, Params};
use bytes::Bytes;

/// A message whose era, version and method are known.
#[derive(Clone)]
pub struct NegotiatedMessage {
    pub era: Era,
    pub version: Option<ProtocolVersion>,
    pub method: Method,
    /// `None` for GET and DELETE.
    pub message: Option<Message>,
    /// Replacements in the body that are still to be made, such as a name without its server.
    pub edits: Edits,
}

impl NegotiatedMessage {
    /// The message that a GET or DELETE stands for.
    pub fn bodyless(method: Method, version: Option<ProtocolVersion>) -> Self {
        Self {
            era: Era::Legacy,
            version,
            method,
            message: None,
            edits: Edits::default(),
        }
    }

    /// The parameters of a request or notification.
    pub fn params(&self) -> Option<&Params> {
        match self.message.as_ref()? {
            Message::Request(request) => request.params.as_ref(),
            Message::Notification(notification) => notification.params.as_ref(),
            Message::Response(_) => None,
        }
    }

    pub fn params_mut(&mut self) -> Option<&mut Params> {
        match self.message.as_mut()? {
            Message::Request(request) => request.params.as_mut(),
            Message::Notification(notification) => notification.params.as_mut(),
            Message::Response(_) => None,
        }
    }
}

/// Parses a POST body.
pub fn parse_body(body: Bytes, summary: &mut MessageSummary) -> Result<Message, Refusal> {
    let message = mcp::parse_message(body, &mcp::Bounds::default()).map_err(|malformed| reject_malformed(malformed, summary))?;
    if let Message::Request(request) = &message {
        summary.id = Some(request.id.clone());
    }
    if message.is_modern() {
        summary.era = Era::Modern;
    }
    Ok(message)
}

/// Resolves era, version and method. `session_version` is the version of the session that the message belongs to. Keeps the
/// raw version, method and trace id for the audit record, even if the message is refused.
pub fn negotiate(
    message: Message,
    mcp_headers: &McpHeaders<'_>,
    session_version: Option<ProtocolVersion>,
    summary: &mut MessageSummary,
) -> Result<NegotiatedMessage, Refusal> {
    let negotiated = match &message {
        Message::Request(request) => {
            summary.raw_version = request.requested_version().map(safe_text);
            summary.trace = request.trace().map(safe_text);
            let agreed = mcp::negotiate(request, mcp_headers, session_version);
            resolve_method(agreed, |era| mcp::method(request, era), &request.method, summary)?
        }
        Message::Notification(notification) => {
            let agreed = mcp::negotiate_notification(notification, mcp_headers, session_version);
            let method = |era| mcp::notification(notification, era);
            resolve_method(agreed, method, &notification.method, summary)?
        }
        Message::Response(_) => {
            summary.method = Some(Method::Answer);
            let version = mcp::negotiate_bodyless(mcp_headers, session_version);
            let version = version.map_err(|malformed| reject_malformed(malformed, summary))?;
            (Era::Legacy, version, Method::Answer)
        }
    };
    let (era, version, method) = negotiated;
    Ok(NegotiatedMessage {
        era,
        version,
        method,
        message: Some(message),
        edits: Edits::default(),
    })
}

/// Resolves the version of a GET or DELETE.
pub fn bodyless_message(
    method: Method,
    mcp_headers: &McpHeaders<'_>,
    session_version: Option<ProtocolVersion>,
    summary: &mut MessageSummary,
) -> Result<NegotiatedMessage, Refusal> {
    let version = mcp::negotiate_bodyless(mcp_headers, session_version);
    let version = version.map_err(|malformed| reject_malformed(malformed, summary))?;
    Ok(NegotiatedMessage::bodyless(method, version))
}

/// Resolves the method in the negotiated era. If there is none, the audit record gets the raw method name.
fn resolve_method(
    agreed: Result<(Era, Option<ProtocolVersion>), mcp::Malformed>,
    method: impl FnOnce(Era) -> Option<Method>,
    raw: &str,
    summary: &mut MessageSummary,
) -> Result<(Era, Option<ProtocolVersion>, Method), Refusal> {
    let found = agreed
        .map_err(|malformed| reject_malformed(malformed, summary))
        .and_then(|(era, version)| {
            summary.era = era;
            let method = method(era).ok_or(Reason::UnknownMethod)?;
            Ok((era, version, method))
        });
    match &found {
        Ok((.., method)) => summary.method = Some(*method),
        Err(_) => summary.raw_method = Some(safe_text(raw)),
    }
    found
}

/// The refusal for a malformed message. Keeps the message's id, if it could be read, so that the refusal answers it.
pub fn reject_malformed(malformed: mcp::Malformed, summary: &mut MessageSummary) -> Refusal {
    if malformed.id.is_some() {
        summary.id = malformed.id;
    }
    Refusal::with_detail(malformed.reason, malformed.detail)
}

/// The request id in an unauthenticated message, so that the 401 answers it. Nothing else of the body is used.
pub fn peek_id(verb: HttpVerb, body: Bytes) -> Option<MessageId> {
    if verb != HttpVerb::Post {
        return None;
    }
    match mcp::parse_message(body, &mcp::Bounds::default()) {
        Ok(Message::Request(request)) => Some(request.id),
        Ok(_) => None,
        Err(malformed) => malformed.id,
    }
}

/// Longest raw text that is kept for a record.
const MAX_SAFE_TEXT: usize = 64;

/// A caller's text as a record may hold it.
pub fn safe_text(raw: &str) -> String {
    SafeText::new(raw, MAX_SAFE_TEXT).to_string()
}
