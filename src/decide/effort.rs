//! Bounds the work that checking one value against a JSON Schema can take. The schema comes from a server, which may
//! be hostile: references can make a short schema cost more than all time there is.
//!
//! Counts, for the costliest value there could be, how many schemas are applied along one path into it, down to
//! the depth that the reader of messages allows. Breadth is paid for by the size of the message and is not counted.

use super::shape::resolve;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// How deep arguments may be.
const DEPTH: usize = 64;
/// How many schemas may be applied along one path.
const MAX_EFFORT: u64 = 20_000;
/// How many (schema, depth) pairs are looked at before giving up.
const MAX_STEPS: usize = 200_000;

/// Refuses a schema that could take too long, or that refers to something other than its own parts.
pub(super) fn bounded(schema: &Value) -> Result<(), String> {
    let mut estimate = Estimate {
        root: schema,
        known: HashMap::new(),
        steps: 0,
    };
    match estimate.value(schema, DEPTH)? {
        effort if effort <= MAX_EFFORT => Ok(()),
        _ => Err("the input schema refers to itself in more ways than can be checked".to_owned()),
    }
}

struct Estimate<'a> {
    root: &'a Value,
    /// `None` while it is being counted: a schema that applies itself in place counts once.
    known: HashMap<(*const Value, usize), Option<u64>>,
    steps: usize,
}

/// What a schema costs at one place: for itself and those applied with it, and for what lies below.
#[derive(Default)]
struct Cost {
    here: u64,
    /// Schemas for the members of an object: for any member, and by name.
    members: u64,
    named: HashMap<String, u64>,
    /// Schemas for the elements of an array.
    elements: u64,
}

impl<'a> Estimate<'a> {
    /// The effort for a value at `depth` levels above the deepest.
    fn value(&mut self, schema: &'a Value, depth: usize) -> Result<u64, String> {
        let key = (std::ptr::from_ref(schema), depth);
        if let Some(known) = self.known.get(&key) {
            return Ok(known.unwrap_or(1));
        }
        self.known.insert(key, None);
        let mut cost = Cost::default();
        self.apply(schema, depth, &mut cost, &mut Vec::new())?;
        let named = cost.named.values().copied().max().unwrap_or(0);
        let below = cost.members.saturating_add(named).max(cost.elements);
        let effort = cost.here.saturating_add(below);
        self.known.insert(key, Some(effort));
        Ok(effort)
    }

    /// Adds what `schema` costs at a place, with everything that it applies at the same place.
    fn apply(&mut self, schema: &'a Value, depth: usize, cost: &mut Cost, open: &mut Vec<*const Value>) -> Result<(), String> {
        self.steps += 1;
        if self.steps > MAX_STEPS || cost.here > MAX_EFFORT {
            return Err("the input schema is too complex to be checked".to_owned());
        }
        cost.here += 1;
        let Value::Object(keywords) = schema else {
            return Ok(());
        };
        if open.contains(&std::ptr::from_ref(schema)) {
            return Ok(());
        }
        open.push(schema);
        self.in_place(keywords, depth, cost, open)?;
        open.pop();
        match depth {
            0 => Ok(()),
            _ => self.below(keywords, depth - 1, cost),
        }
    }

    fn in_place(
        &mut self,
        keywords: &'a Map<String, Value>,
        depth: usize,
        cost: &mut Cost,
        open: &mut Vec<*const Value>,
    ) -> Result<(), String> {
        for (keyword, value) in keywords {
            match (keyword.as_str(), value) {
                ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(reference)) => {
                    let target = resolve(self.root, reference);
                    let target = target.ok_or_else(|| outside(reference))?;
                    self.apply(target, depth, cost, open)?;
                }
                ("allOf" | "anyOf" | "oneOf", Value::Array(parts)) => {
                    for part in parts {
                        self.apply(part, depth, cost, open)?;
                    }
                }
                ("not" | "if" | "then" | "else", part) => self.apply(part, depth, cost, open)?,
                ("dependentSchemas" | "dependencies", Value::Object(parts)) => {
                    for part in parts.values() {
                        self.apply(part, depth, cost, open)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn below(&mut self, keywords: &'a Map<String, Value>, depth: usize, cost: &mut Cost) -> Result<(), String> {
        for (keyword, value) in keywords {
            match (keyword.as_str(), value) {
                ("properties", Value::Object(properties)) => {
                    for (name, property) in properties {
                        let effort = self.value(property, depth)?;
                        let sum = cost.named.entry(name.clone()).or_default();
                        *sum = sum.saturating_add(effort);
                    }
                }
                ("patternProperties", Value::Object(properties)) => {
                    for property in properties.values() {
                        cost.members = cost.members.saturating_add(self.value(property, depth)?);
                    }
                }
                ("additionalProperties" | "unevaluatedProperties" | "propertyNames", property) => {
                    cost.members = cost.members.saturating_add(self.value(property, depth)?);
                }
                ("items" | "prefixItems", Value::Array(items)) => {
                    for item in items {
                        cost.elements = cost.elements.max(self.value(item, depth)?);
                    }
                }
                ("items" | "additionalItems" | "unevaluatedItems" | "contains", item) => {
                    cost.elements = cost.elements.saturating_add(self.value(item, depth)?);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn outside(reference: &str) -> String {
    let shown: String = reference.chars().take(100).flat_map(char::escape_debug).collect();
    format!(
        "its input schema refers to `{shown}`, which is not part of it and is never fetched; \
         the server has to put it under the schema's own `$defs`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ordinary_and_recursive_schemas_pass() {
        let node = json!({ "$ref": "#/$defs/node" });
        for schema in [
            json!(true),
            json!({ "type": "object", "properties": { "a": { "type": "string" } } }),
            json!({ "$ref": "#" }),
            json!({ "$ref": "#/$defs/node", "$defs": { "node": {
                "properties": { "left": node, "right": node, "children": { "type": "array", "items": node } } } } }),
            json!({ "$ref": "#/$defs/node", "$defs": { "node": {
                "properties": { "one_or_many": { "anyOf": [node, { "type": "array", "items": node }] } } } } }),
        ] {
            assert_eq!(bounded(&schema), Ok(()), "{schema}");
        }
    }

    #[test]
    fn a_schema_that_doubles_at_every_level_is_refused() {
        let node = json!({ "$ref": "#/$defs/node" });
        for inner in [
            json!({ "allOf": [{ "properties": { "a": node } }, { "properties": { "a": node } }] }),
            json!({ "properties": { "a": { "anyOf": [node, node] } } }),
            json!({ "properties": { "a": node }, "additionalProperties": node, "patternProperties": { "": node } }),
            json!({ "items": node, "contains": node }),
        ] {
            let schema = json!({ "$ref": "#/$defs/node", "$defs": { "node": inner } });
            assert!(bounded(&schema).is_err(), "{schema}");
        }
    }
}
