//! What a server says of itself in `initialize` or `server/discover`: capabilities and instructions. Nothing is asked
//! here.

use serde_json::Value;

/// A server's self-description, as of the last time its tools were fetched. Empty until then.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServerInfo {
    /// The `capabilities` object; `None` if nothing is known.
    pub capabilities: Option<Value>,
    pub instructions: Option<String>,
}

impl ServerInfo {
    /// Reads the result of an `initialize` or a `server/discover`.
    pub fn read(result: &Value) -> Self {
        Self {
            capabilities: Some(result["capabilities"].clone()).filter(Value::is_object),
            instructions: result["instructions"]
                .as_str()
                .map(str::to_owned)
                .filter(|text| !text.is_empty()),
        }
    }

    /// Merges two descriptions: a server may offer more in one era than in the other.
    pub fn merge(self, other: Self) -> Self {
        let capabilities = match (self.capabilities, other.capabilities) {
            (Some(mut one), Some(other)) => {
                merge_json(&mut one, &other);
                Some(one)
            }
            (one, other) => one.or(other),
        };
        Self {
            capabilities,
            instructions: self.instructions.or(other.instructions),
        }
    }

    /// Whether the server is known not to have this capability.
    pub fn is_known_to_lack(&self, capability: &str) -> bool {
        self.capabilities
            .as_ref()
            .is_some_and(|capabilities| capabilities.get(capability).is_none())
    }
}

fn merge_json(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                merge_json(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into @ Value::Null, from) => *into = from.clone(),
        (Value::Bool(into), Value::Bool(from)) => *into |= from,
        _ => (),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_either_has_both_have() {
        let of = |capabilities: Value| ServerInfo::read(&json!({ "capabilities": capabilities }));
        let both = of(json!({ "tools": {}, "resources": { "subscribe": false } })).merge(of(
            json!({ "tools": { "listChanged": true }, "resources": { "subscribe": true } }),
        ));
        let wanted = json!({ "tools": { "listChanged": true }, "resources": { "subscribe": true } });
        assert_eq!(both.capabilities, Some(wanted));
        assert!(both.is_known_to_lack("prompts") && !both.is_known_to_lack("tools"));
        assert!(!ServerInfo::default().is_known_to_lack("prompts"), "nothing is known");
        assert_eq!(ServerInfo::default().merge(of(json!({}))), of(json!({})));
    }
}
