//! The server's answer to a request of Guardian's own.

use super::forward_error::ForwardError;
use crate::domain::MessageId;
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
    let unreadable = |what: String| ForwardError::bad_response(format!("the server's answer cannot be read: {what}"));
    let kind = match ServerMessage::parse(body) {
        // Only Guardian reads what is inside.
        Ok(parsed) => parsed.envelope_kind(body, id),
        Err(malformed) => MessageKind::Malformed(malformed.detail),
    };
    match kind {
        MessageKind::Result { .. } | MessageKind::Error { .. } => (),
        _ if !status.is_success() => return Ok(ControlReply::Nothing),
        MessageKind::Malformed(what) => return Err(unreadable(what)),
        MessageKind::OtherResponse => return Err(ForwardError::bad_response("the server answered another request")),
        MessageKind::ServerRequest | MessageKind::ServerNotification => {
            return Err(ForwardError::bad_response("the server sent no answer"));
        }
    }
    // The parser has refused bodies that two parsers could read differently, so serde_json reads the same message.
    let mut message: Value = serde_json::from_slice(body).map_err(|error| unreadable(error.to_string()))?;
    Ok(match kind {
        MessageKind::Error { code, .. } => ControlReply::Error {
            code,
            message: message["error"]["message"].as_str().unwrap_or_default().to_owned(),
        },
        _ => ControlReply::Result(message["result"].take()),
    })
}
