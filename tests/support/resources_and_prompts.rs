//! What the recording MCP server has besides tools: resources, templates, prompts, completions.

use super::upstream::Received;
use serde_json::{Value, json};

pub const RESOURCES: [&str; 4] = ["notes://a/1", "notes://a/2", "notes://secret/1", "notes://b"];

/// The capabilities that the server declares for these.
pub fn capabilities() -> Value {
    json!({ "resources": { "subscribe": true, "listChanged": true }, "prompts": { "listChanged": true }, "completions": {} })
}

/// The result of a method that is answered here.
pub fn result(received: &Received) -> Option<Value> {
    let params = &received.message["params"];
    Some(match received.method() {
        "resources/list" => json!({ "resources": resources(), "x": 1.50 }),
        "resources/templates/list" => json!({ "resourceTemplates": [
            { "uriTemplate": "notes://a/{number}", "name": "notes", "extra": [1] },
            { "uriTemplate": "notes:// broken", "name": "broken" },
        ] }),
        "resources/read" => json!({ "contents": [{ "uri": params["uri"], "text": format!("contents of {}", params["uri"]) }] }),
        "resources/subscribe" | "resources/unsubscribe" | "logging/setLevel" => json!({}),
        "prompts/list" => json!({ "prompts": [
            { "name": "greet", "arguments": [{ "name": "who" }], "extra": { "a": 1 } },
            { "name": "deploy", "arguments": [{ "name": "env" }] },
        ] }),
        "prompts/get" => json!({ "messages": [{ "role": "user", "content": { "type": "text", "text": params["name"] } }] }),
        "completion/complete" => json!({ "completion": { "values": ["one", "two"], "total": 2, "hasMore": false } }),
        _ => return None,
    })
}

/// The last of these resources has a URI in a spelling that Guardian refuses.
fn resources() -> Vec<Value> {
    let uris = RESOURCES.iter().copied().chain(["notes://a/../secret/1"]);
    uris.map(|uri| json!({ "uri": uri, "name": uri, "extra": { "of": uri } }))
        .collect()
}

/// Whether the modern era's result of this kind carries `ttlMs` and `cacheScope`.
pub fn is_kept(result: &Value) -> bool {
    ["tools", "resources", "resourceTemplates", "prompts", "contents"]
        .iter()
        .any(|member| result.get(member).is_some())
}

/// The first event of a modern subscription.
pub fn acknowledged(received: &Received) -> Value {
    json!({ "jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": {
        "_meta": { "io.modelcontextprotocol/subscriptionId": received.message["id"] },
        "notifications": received.message["params"]["notifications"],
    } })
}

/// A notification that a resource has changed.
pub fn updated(uri: &str) -> Value {
    json!({ "jsonrpc": "2.0", "method": "notifications/resources/updated", "params": { "uri": uri } })
}

/// A notification that a list has changed.
pub fn changed(list: &str) -> Value {
    json!({ "jsonrpc": "2.0", "method": format!("notifications/{list}/list_changed") })
}
