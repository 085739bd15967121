//! Messages that Guardian itself writes: answers, what opens a session with a server, and how it names itself.

use super::capabilities::declare_capabilities;
use crate::domain::{ClientRequests, MessageId, ProtocolVersion};
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

const NAME: &str = "neural-guardian";

/// Guardian as a client (`clientInfo`).
pub fn guardian_client_info() -> Value {
    json!({ "name": NAME, "version": crate::VERSION })
}

/// Guardian as a server (`serverInfo`).
pub fn guardian_server_info() -> Value {
    json!({ "name": NAME, "title": "Neural Guardian", "version": crate::VERSION })
}

/// The parameters of an `initialize` that Guardian sends for itself, as a client that answers these requests.
pub fn guardian_initialize(requests: ClientRequests) -> Value {
    initialize_params(
        ProtocolVersion::V20251125,
        &declare_capabilities(requests),
        &guardian_client_info(),
    )
}

/// The parameters of an `initialize`.
pub fn initialize_params(version: ProtocolVersion, capabilities: &impl Serialize, client_info: &Value) -> Value {
    json!({ "protocolVersion": version.as_str(), "capabilities": capabilities, "clientInfo": client_info })
}

/// The notification that follows the answer to `initialize`.
pub fn initialized() -> Bytes {
    Bytes::from_static(br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#)
}

/// Writes a JSON-RPC error; without an id it carries `null`.
pub fn error(id: Option<&MessageId>, code: i64, message: &str, data: Option<Value>) -> Bytes {
    let id = id.map_or("null", MessageId::as_json);
    let message = Value::from(message);
    match data {
        None => format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":{message}}}}}"#),
        Some(data) => format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":{message},"data":{data}}}}}"#),
    }
    .into()
}

/// Writes a JSON-RPC result.
pub fn result(id: &MessageId, result: Value) -> Bytes {
    format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, id.as_json()).into()
}
