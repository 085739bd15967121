//! What a server answered, checked. Its outcome is recorded here.

use super::client_requests::{self, ELICITATION_METHOD, check_result, demands_forbidden_url};
use super::forward_error::ForwardError;
use super::http::SessionField;
use super::outcome::OutcomeGuard;
use super::stream::EventStream;
use crate::domain::{Call, ClientRequests, Era, MessageId, Method, ProtocolVersion};
use crate::mcp::{self, MessageKind, ServerMessage, readdress};
use crate::sessions::UpstreamSessionId;
use bytes::Bytes;
use http::StatusCode;

/// What a server answered. Its outcome is recorded already, except for a stream, which carries it along.
pub enum Answer {
    Json {
        status: StatusCode,
        body: Bytes,
        kind: MessageKind,
        /// What Guardian read from the message; empty for an error.
        server_message: Box<ServerMessage>,
        /// The session that an `initialize` opened.
        opened: Option<OpenedSession>,
    },
    Stream(EventStream),
    /// No body: an accepted notification, an ended session, or a refusal without a JSON-RPC error.
    Empty {
        status: StatusCode,
    },
}

impl Answer {
    /// The server's HTTP status; `None` for a stream, which always began with success.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Answer::Json { status, .. } | Answer::Empty { status } => Some(*status),
            Answer::Stream(_) => None,
        }
    }
}

/// What an `initialize` negotiated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedSession {
    pub version: ProtocolVersion,
    /// `None` if the server keeps no sessions.
    pub session: Option<UpstreamSessionId>,
}

/// Checks an answer that arrived as one message. `opening` is the session id that came with the answer to an
/// `initialize`.
pub(super) fn json_answer(
    status: StatusCode,
    body: Bytes,
    (kind, server_message): (MessageKind, ServerMessage),
    call: &Call,
    allowed_requests: ClientRequests,
    opening: Option<SessionField>,
    outcome: &mut OutcomeGuard,
) -> Result<Answer, ForwardError> {
    let nobody = MessageId::from_json(Bytes::from_static(b"null"));
    let id = call.id.as_ref().unwrap_or(&nobody);
    let (body, is_error) = addressed(body, &kind, id).map_err(|error| error.with_status(status))?;
    if matches!(kind, MessageKind::Result { .. }) {
        check_result(&server_message, call.era, call.method, allowed_requests).map_err(|error| error.with_status(status))?;
    }
    if demands_forbidden_url(&server_message, allowed_requests) {
        return Err(client_requests::denied(ELICITATION_METHOD).with_status(status));
    }
    let opened = match opening {
        Some(session) if !is_error => Some(opened(&body, session)?),
        _ => None,
    };
    outcome.done(Some(is_error));
    Ok(Answer::Json {
        status,
        body,
        kind,
        server_message: Box::new(server_message),
        opened,
    })
}

/// The result for a message without an answer (notification, GET, DELETE): only the status counts.
pub(super) fn accepted_answer(status: StatusCode, method: Method, outcome: &mut OutcomeGuard) -> Result<Answer, ForwardError> {
    if status.is_server_error() {
        return Err(failed_with(status));
    }
    if status.is_success() && method == Method::OpenStream {
        return Err(ForwardError::bad_response("the server opened no event stream").with_status(status));
    }
    outcome.done(None);
    let status = if status.is_success() && matches!(method, Method::Notification | Method::Answer) {
        StatusCode::ACCEPTED
    } else {
        status
    };
    Ok(Answer::Empty { status })
}

/// A request that the server refused without a JSON-RPC error. Statuses that a client can act on are passed on.
pub(super) fn refused_answer(status: StatusCode, outcome: &mut OutcomeGuard) -> Result<Answer, ForwardError> {
    match status {
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST => {
            outcome.done(Some(true));
            Ok(Answer::Empty { status })
        }
        status => Err(failed_with(status)),
    }
}

fn failed_with(status: StatusCode) -> ForwardError {
    ForwardError::bad_response(format!("the server answered with HTTP status {}", status.as_u16())).with_status(status)
}

/// The answer to this request and whether it is an error. An error without an id is taken as the error of this request
/// and gets its id.
fn addressed(body: Bytes, kind: &MessageKind, id: &MessageId) -> Result<(Bytes, bool), ForwardError> {
    match kind {
        MessageKind::Result { is_error } => Ok((body, *is_error)),
        MessageKind::Error { addressed: true, .. } => Ok((body, true)),
        MessageKind::Error { addressed: false, .. } => match readdress(&body, id) {
            Ok(body) => Ok((body, true)),
            Err(fault) => Err(ForwardError::bad_response(fault.detail)),
        },
        MessageKind::OtherResponse => Err(ForwardError::bad_response("the server answered another request")),
        MessageKind::ServerRequest | MessageKind::ServerNotification => {
            Err(ForwardError::bad_response("the server sent no answer"))
        }
        MessageKind::Malformed(what) => Err(ForwardError::bad_response(format!(
            "the server's answer cannot be read: {what}"
        ))),
    }
}

fn opened(body: &Bytes, session: SessionField) -> Result<OpenedSession, ForwardError> {
    let version = mcp::negotiated_version(body).and_then(|version| ProtocolVersion::parse(&version));
    let Some(version) = version.filter(|version| version.era() == Era::Legacy) else {
        return Err(ForwardError::bad_response(
            "the server chose a protocol version that is not spoken here",
        ));
    };
    match session {
        SessionField::Broken => Err(ForwardError::bad_response("the server's session id is not one")),
        SessionField::None => Ok(OpenedSession { version, session: None }),
        SessionField::Id(id) => Ok(OpenedSession {
            version,
            session: Some(id),
        }),
    }
}
