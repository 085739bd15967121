//! Bounds the work of validating one value against a JSON Schema. The schema comes from a server, which may be hostile:
//! nested references can give a short schema exponential cost.
//!
//! The cost is the number of schemas applied along one path into the most expensive value, down to the depth that the
//! JSON reader allows. Breadth is not counted, because the size limit of a message bounds it.

use super::arg_types::resolve;
use crate::domain::SafeText;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// How deep arguments may be nested; the depth in `mcp::Bounds::default`.
const DEPTH: usize = 64;
/// How many schemas may be applied along one path.
const MAX_COST: u64 = 20_000;
/// How many schemas may be applied inside each other along one path, ten for each level of a value: validation recurses over
/// them on the stack of a serving thread.
const MAX_NESTED: usize = 640;
/// How many times a schema is visited before the estimate gives up.
const MAX_STEPS: usize = 200_000;

/// Refuses a schema that is too expensive to validate against, or that refers to another document.
pub(super) fn check_cost(schema: &Value) -> Result<(), String> {
    let mut estimate = CostModel {
        root: schema,
        known: HashMap::new(),
        steps: 0,
        nested: 0,
        deepest: 0,
    };
    if estimate.value(schema, DEPTH)? > MAX_COST {
        return Err("the input schema refers to itself in more ways than can be checked".to_owned());
    }
    Ok(())
}

struct CostModel<'a> {
    root: &'a Value,
    /// The cost per (schema, depth). `None` while it is being computed: a schema that applies itself in place counts
    /// once.
    known: HashMap<(*const Value, usize), Option<ValueCost>>,
    steps: usize,
    /// How many schemas are being applied inside each other, and the most that were.
    nested: usize,
    deepest: usize,
}

#[derive(Clone, Copy)]
struct ValueCost {
    cost: u64,
    /// How many schemas are applied inside each other.
    nested: usize,
}

/// The cost of a schema at one place in a value, and of the schemas for the values below.
#[derive(Default)]
struct Cost {
    here: u64,
    /// Schemas for members of an object: those for any member, and those by name.
    members: u64,
    named: HashMap<String, u64>,
    /// Schemas for elements of an array.
    elements: u64,
}

impl<'a> CostModel<'a> {
    /// The cost for a value that may nest `depth` levels deeper.
    fn value(&mut self, schema: &'a Value, depth: usize) -> Result<u64, String> {
        let key = (std::ptr::from_ref(schema), depth);
        if let Some(known) = self.known.get(&key).copied() {
            let known = known.unwrap_or(ValueCost { cost: 1, nested: 1 });
            self.reach(self.nested + known.nested)?;
            return Ok(known.cost);
        }
        self.known.insert(key, None);
        let mut cost = Cost::default();
        let before = std::mem::replace(&mut self.deepest, self.nested);
        self.apply(schema, depth, &mut cost, &mut Vec::new())?;
        let nested = self.deepest - self.nested;
        self.deepest = self.deepest.max(before);
        let named = cost.named.values().copied().max().unwrap_or(0);
        let below = cost.members.saturating_add(named).max(cost.elements);
        let effort = cost.here.saturating_add(below);
        self.known.insert(key, Some(ValueCost { cost: effort, nested }));
        Ok(effort)
    }

    fn reach(&mut self, nested: usize) -> Result<(), String> {
        self.deepest = self.deepest.max(nested);
        if nested > MAX_NESTED {
            return Err("the input schema applies too many schemas inside each other".to_owned());
        }
        Ok(())
    }

    /// Adds the cost of `schema` and of everything it applies to the same value.
    fn apply(&mut self, schema: &'a Value, depth: usize, cost: &mut Cost, open: &mut Vec<*const Value>) -> Result<(), String> {
        self.steps += 1;
        if self.steps > MAX_STEPS || cost.here > MAX_COST {
            return Err("the input schema is too complex to be checked".to_owned());
        }
        cost.here += 1;
        let Value::Object(keywords) = schema else {
            return Ok(());
        };
        if open.contains(&std::ptr::from_ref(schema)) {
            return Ok(());
        }
        self.nested += 1;
        self.reach(self.nested)?;
        open.push(schema);
        self.in_place(keywords, depth, cost, open)?;
        open.pop();
        if depth > 0 {
            self.below(keywords, depth - 1, cost)?;
        }
        self.nested -= 1;
        Ok(())
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
                    let target = resolve(self.root, reference).ok_or_else(|| outside(reference))?;
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
    let shown = SafeText::new(reference, 100);
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
            assert_eq!(check_cost(&schema), Ok(()), "{schema}");
        }
    }

    /// A chain of references, some of them to the schema of a member.
    fn chain(length: usize, is_member: impl Fn(usize) -> bool) -> Value {
        let link = |number: usize| {
            let next = json!({ "$ref": format!("#/$defs/{}", number + 1) });
            let schema = if is_member(number) {
                json!({ "properties": { "a": next } })
            } else {
                next
            };
            (number.to_string(), schema)
        };
        let links = (0..length)
            .map(link)
            .chain([(length.to_string(), json!({ "type": "string" }))]);
        json!({ "$ref": "#/$defs/0", "$defs": links.collect::<Map<_, _>>() })
    }

    #[test]
    fn schemas_inside_each_other_are_bounded() {
        assert_eq!(check_cost(&chain(600, |_| false)), Ok(()));
        assert_eq!(check_cost(&chain(5_000, |_| true)), Ok(()), "a value is not so deep");
        for schema in [
            chain(700, |_| false),
            chain(5_000, |_| false),
            chain(5_000, |number| number % 20 == 0),
        ] {
            assert!(
                check_cost(&schema).is_err_and(|why| why.contains("inside each other")),
                "{schema}"
            );
        }
        // The second half of the chain is known from a shorter path when the whole is followed.
        let mut schema = chain(1_000, |number| number == 500);
        schema["$defs"]["root"] =
            json!({ "properties": { "a": { "properties": { "a": { "$ref": "#/$defs/501" } } }, "b": { "$ref": "#/$defs/0" } } });
        schema["$ref"] = json!("#/$defs/root");
        assert!(check_cost(&schema).is_err_and(|why| why.contains("inside each other")));
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
            assert!(check_cost(&schema).is_err(), "{schema}");
        }
    }
}
