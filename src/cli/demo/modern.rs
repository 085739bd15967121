//! The modern era, 2026-07-28: every request carries its version and capabilities, its headers repeat parts of the body,
//! and there are no sessions.

use super::DemoServer;
use super::http::{DemoMessage, VERSION_HEADER, single};
use super::legacy::VERSIONS;
use super::reply::{self, HttpReply};
use super::tools::{self, CallOutcome};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;

const VERSION: &str = "2026-07-28";
const VERSION_KEY: &str = "io.modelcontextprotocol/protocolVersion";
const CAPABILITIES_KEY: &str = "io.modelcontextprotocol/clientCapabilities";
const SERVER_INFO_KEY: &str = "io.modelcontextprotocol/serverInfo";
/// How long a client may cache a list.
const TTL_MS: u64 = 60_000;

/// A message is modern if its `_meta` has a version, or if its version header is not a legacy one: then the error can say
/// what `_meta` lacks.
pub(super) fn is_modern(message: &DemoMessage, headers: &HeaderMap) -> bool {
    meta(message, VERSION_KEY).is_some()
        || headers.contains_key(VERSION_HEADER)
            && single(headers, VERSION_HEADER).is_none_or(|version| !VERSIONS.contains(&version))
}

pub(super) fn answer(server: &Arc<DemoServer>, headers: &HeaderMap, message: DemoMessage) -> HttpReply {
    let Some(id) = &message.id else {
        return reply::empty(StatusCode::ACCEPTED);
    };
    if let Err(refusal) = check_request(headers, &message, id) {
        return *refusal;
    }
    match message.method.as_str() {
        "server/discover" => reply::result(id, &listed(discovered())),
        "tools/list" if message.params.contains_key("cursor") => {
            reply::error(StatusCode::OK, id, reply::INVALID_PARAMS, "there is no further page")
        }
        "tools/list" => reply::result(id, &listed(json!({ "tools": tools::definitions() }))),
        "tools/call" => match tools::call(server, &message.params) {
            Ok(CallOutcome::Done(result)) => reply::result(id, &complete(result)),
            Ok(CallOutcome::Count(count)) => count.stream(server, id.clone(), server.stop.clone(), complete),
            Err(text) => reply::error(StatusCode::OK, id, reply::INVALID_PARAMS, &text),
        },
        other => {
            let text = format!("there is no method `{other}`");
            reply::error(StatusCode::NOT_FOUND, id, reply::METHOD_NOT_FOUND, &text)
        }
    }
}

/// Checks in the order of the specification: the required `_meta` members, the version header, the version, the other
/// headers.
fn check_request(headers: &HeaderMap, message: &DemoMessage, id: &Value) -> Result<(), Box<HttpReply>> {
    let refuse = |code, text: &str, data| Err(Box::new(reply::error_with(StatusCode::BAD_REQUEST, id, code, text, data)));
    let Some(version) = meta(message, VERSION_KEY).and_then(Value::as_str) else {
        return refuse(reply::INVALID_PARAMS, &format!("`_meta` has no `{VERSION_KEY}`"), None);
    };
    if !meta(message, CAPABILITIES_KEY).is_some_and(Value::is_object) {
        return refuse(reply::INVALID_PARAMS, &format!("`_meta` has no `{CAPABILITIES_KEY}`"), None);
    }
    if single(headers, VERSION_HEADER) != Some(version) {
        return refuse(reply::HEADER_MISMATCH, "`MCP-Protocol-Version` differs from the body", None);
    }
    if version != VERSION {
        let data = json!({ "supported": supported(), "requested": version });
        return refuse(reply::UNSUPPORTED_VERSION, "unsupported protocol version", Some(data));
    }
    if single(headers, "mcp-method") != Some(message.method.as_str()) {
        return refuse(reply::HEADER_MISMATCH, "`Mcp-Method` differs from the body", None);
    }
    if message.method == "tools/call" {
        let said = single(headers, "mcp-name").and_then(decoded);
        let name = message.params.get("name").and_then(Value::as_str);
        if said.is_none() || said.as_deref() != name {
            return refuse(reply::HEADER_MISMATCH, "`Mcp-Name` differs from the body", None);
        }
    }
    Ok(())
}

fn discovered() -> Value {
    json!({
        "supportedVersions": supported(),
        "capabilities": { "tools": {} },
        "instructions": tools::INSTRUCTIONS,
    })
}

/// Adds what every modern result has.
fn complete(mut result: Value) -> Value {
    result["resultType"] = json!("complete");
    result["_meta"] = json!({ SERVER_INFO_KEY: tools::server_info() });
    result
}

/// A result that clients and shared caches may keep, because it is the same for every caller.
fn listed(result: Value) -> Value {
    let mut result = complete(result);
    result["ttlMs"] = json!(TTL_MS);
    result["cacheScope"] = json!("public");
    result
}

fn supported() -> Vec<&'static str> {
    std::iter::once(VERSION).chain(VERSIONS.into_iter().rev()).collect()
}

fn meta<'a>(message: &'a DemoMessage, key: &str) -> Option<&'a Value> {
    message.params.get("_meta")?.get(key)
}

/// A header value as it is, or decoded if it is `=?base64?…?=`.
fn decoded(value: &str) -> Option<String> {
    match value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) {
        Some(coded) => String::from_utf8(STANDARD.decode(coded).ok()?).ok(),
        None => Some(value.to_owned()),
    }
}
