//! The server's answer to a request of Guardian's own, and what is not one.

use super::error::ForwardError;
use crate::domain::{Era, MessageId, ProtocolVersion};
use crate::mcp::{MessageKind, ServerMessage};
use http::StatusCode;
use serde_json::Value;

/// What a response to Guardian says.
pub(super) enum ControlReply {
    Result(Value),
    Error {
        code: i64,
        message: String,
    },
    /// No JSON-RPC answer, only an HTTP status.
    Nothing,
}

/// Reads the answer to request `id` as a result or an error.
pub(super) fn parse_control_reply(body: &[u8], id: &MessageId, status: StatusCode) -> Result<ControlReply, ForwardError> {
    let kind = match ServerMessage::parse(body) {
        // Only Guardian reads what is inside.
        Ok(parsed) => parsed.envelope_kind(body, id),
        Err(malformed) => MessageKind::Malformed(malformed.detail),
    };
    // The parser has refused bodies that two parsers could read differently, so serde_json reads the same message.
    let message = || {
        let message: Result<Value, _> = serde_json::from_slice(body);
        message.map_err(|error| not_the_answer(&MessageKind::Malformed(error.to_string())))
    };
    match kind {
        MessageKind::Result { .. } => Ok(ControlReply::Result(message()?["result"].take())),
        MessageKind::Error { code, .. } => Ok(ControlReply::Error {
            code,
            message: message()?["error"]["message"].as_str().unwrap_or_default().to_owned(),
        }),
        _ if !status.is_success() => Ok(ControlReply::Nothing),
        other => Err(not_the_answer(&other)),
    }
}

/// Why a message is not the answer.
pub(super) fn not_the_answer(kind: &MessageKind) -> ForwardError {
    match kind {
        MessageKind::Malformed(what) => ForwardError::bad_response(format!("the server's answer cannot be read: {what}")),
        MessageKind::OtherResponse => ForwardError::bad_response("the server answered another request"),
        _ => ForwardError::bad_response("the server sent no answer"),
    }
}

/// The version that the server chose for a session.
pub(super) fn session_version(written: Option<&str>) -> Result<ProtocolVersion, ForwardError> {
    let version = written.and_then(ProtocolVersion::parse);
    version
        .filter(|version| version.era() == Era::Legacy)
        .ok_or_else(|| ForwardError::bad_response("the server chose a protocol version that is not spoken here"))
}
