//! `x-mcp-header` (MCP 2026-07-28): the arguments of a tool that clients repeat in `Mcp-Param-*` headers.
//!
//! Clients must not use a tool whose definition has an invalid `x-mcp-header`; the reason is kept for the operator.

use super::arg_types::name_beside_null;
use serde_json::{Map, Value};

/// An argument that clients repeat in the header `Mcp-Param-<name>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamHeader {
    /// The whole header name, in lower case.
    pub field: String,
    /// From the root of the arguments.
    pub path: Vec<String>,
    pub kind: ParamHeaderKind,
}

/// The type of the argument; the specification allows no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamHeaderKind {
    String,
    Integer,
    Boolean,
}

const MARK: &str = "x-mcp-header";

/// The annotated arguments of an input schema, or why an annotation is invalid.
pub(in crate::decide) fn param_headers(schema: &Value) -> Result<Vec<ParamHeader>, String> {
    let mut found = Vec::new();
    if let Value::Object(root) = schema {
        if root.contains_key(MARK) {
            return Err(format!("`{MARK}` stands at the top of its input schema"));
        }
        collect_below(root, Some(&mut Vec::new()), &mut found)?;
    }
    Ok(found)
}

/// `path` leads to the schema through `properties` alone. `None`: no such path exists, and an annotation here is invalid.
fn collect(schema: &Value, path: Option<&mut Vec<String>>, found: &mut Vec<ParamHeader>) -> Result<(), String> {
    let Value::Object(keywords) = schema else {
        return Ok(());
    };
    if let Some(mark) = keywords.get(MARK) {
        let Some(path) = &path else {
            return Err(format!("`{MARK}` stands where no argument is named"));
        };
        let param_header = read_mark(mark, keywords, path)?;
        if found.iter().any(|other| other.field == param_header.field) {
            return Err(format!("two arguments have the same `{MARK}`"));
        }
        found.push(param_header);
    }
    collect_below(keywords, path, found)
}

fn collect_below(
    keywords: &Map<String, Value>,
    mut path: Option<&mut Vec<String>>,
    found: &mut Vec<ParamHeader>,
) -> Result<(), String> {
    for (keyword, value) in keywords {
        match (keyword.as_str(), value) {
            ("properties", Value::Object(properties)) => {
                for (name, property) in properties {
                    match &mut path {
                        None => collect(property, None, found)?,
                        Some(path) => {
                            path.push(name.clone());
                            collect(property, Some(path), found)?;
                            path.pop();
                        }
                    }
                }
            }
            ("patternProperties" | "$defs" | "definitions" | "dependentSchemas" | "dependencies", Value::Object(schemas)) => {
                schemas.values().try_for_each(|schema| collect(schema, None, found))?;
            }
            (
                "items"
                | "prefixItems"
                | "additionalItems"
                | "unevaluatedItems"
                | "contains"
                | "allOf"
                | "anyOf"
                | "oneOf"
                | "not"
                | "if"
                | "then"
                | "else"
                | "additionalProperties"
                | "unevaluatedProperties"
                | "propertyNames",
                schema,
            ) => match schema {
                Value::Array(schemas) => schemas.iter().try_for_each(|schema| collect(schema, None, found))?,
                schema => collect(schema, None, found)?,
            },
            _ => {}
        }
    }
    Ok(())
}

fn read_mark(mark: &Value, keywords: &Map<String, Value>, path: &[String]) -> Result<ParamHeader, String> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let name = mark.as_str().filter(|name| !name.is_empty() && name.bytes().all(is_token));
    let name = name.ok_or_else(|| format!("an `{MARK}` is not the name of a header field"))?;
    Ok(ParamHeader {
        field: format!("mcp-param-{}", name.to_ascii_lowercase()),
        path: path.to_vec(),
        kind: header_kind(keywords).ok_or_else(|| format!("an `{MARK}` marks what is neither text, whole number nor boolean"))?,
    })
}

/// The one type of the argument. `null` may stand beside it, because a null argument counts as absent.
fn header_kind(keywords: &Map<String, Value>) -> Option<ParamHeaderKind> {
    let name = match keywords.get("type")? {
        Value::String(name) => name.as_str(),
        Value::Array(names) => name_beside_null(names)?,
        _ => return None,
    };
    match name {
        "string" => Some(ParamHeaderKind::String),
        "integer" => Some(ParamHeaderKind::Integer),
        "boolean" => Some(ParamHeaderKind::Boolean),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn marked_arguments_are_found_by_their_names() {
        let schema = json!({ "type": "object", "properties": {
            "region": { "type": "string", "x-mcp-header": "Region" },
            "filter": { "type": "object", "properties": {
                "limit": { "type": ["integer", "null"], "x-mcp-header": "Max-Rows" },
                "x-mcp-header": { "type": "number" },
            } },
            "dry": { "type": "boolean", "x-mcp-header": "dry" },
            "other": { "type": "string", "default": { "x-mcp-header": "not a mark" } },
        } });
        let found = param_headers(&schema).unwrap();
        let shown: Vec<String> = found
            .iter()
            .map(|of| format!("{} {} {:?}", of.field, of.path.join("."), of.kind))
            .collect();
        assert_eq!(shown.len(), 3);
        for wanted in [
            "mcp-param-region region String",
            "mcp-param-max-rows filter.limit Integer",
            "mcp-param-dry dry Boolean",
        ] {
            assert!(shown.iter().any(|shown| shown == wanted), "{shown:?}");
        }
        assert_eq!(param_headers(&json!({ "type": "object" })), Ok(Vec::new()));
        assert_eq!(param_headers(&json!(true)), Ok(Vec::new()));
    }

    #[test]
    fn a_wrong_mark_is_told() {
        let text = |mark: &str| json!({ "type": "string", "x-mcp-header": mark });
        for (schema, why) in [
            (json!({ "x-mcp-header": "A" }), "at the top"),
            (json!({ "properties": { "a": text("") } }), "not the name"),
            (json!({ "properties": { "a": text("a b") } }), "not the name"),
            (json!({ "properties": { "a": text("a:") } }), "not the name"),
            (json!({ "properties": { "a": text("a\r\nb") } }), "not the name"),
            (
                json!({ "properties": { "a": { "type": "string", "x-mcp-header": 7 } } }),
                "not the name",
            ),
            (
                json!({ "properties": { "a": { "type": "number", "x-mcp-header": "A" } } }),
                "neither",
            ),
            (
                json!({ "properties": { "a": { "type": "object", "x-mcp-header": "A" } } }),
                "neither",
            ),
            (
                json!({ "properties": { "a": { "type": ["string", "integer"], "x-mcp-header": "A" } } }),
                "neither",
            ),
            (
                json!({ "properties": { "a": { "$ref": "#/$defs/a", "x-mcp-header": "A" } } }),
                "neither",
            ),
            (json!({ "properties": { "a": text("A"), "b": text("a") } }), "the same"),
            (
                json!({ "properties": { "a": { "type": "array", "items": text("A") } } }),
                "no argument",
            ),
            (json!({ "anyOf": [{ "properties": { "a": text("A") } }] }), "no argument"),
            (json!({ "$defs": { "a": text("A") } }), "no argument"),
            (json!({ "additionalProperties": text("A") }), "no argument"),
            (json!({ "if": { "properties": { "a": text("A") } } }), "no argument"),
        ] {
            let found = param_headers(&schema).expect_err(&schema.to_string());
            assert!(found.contains(why), "{schema}: {found}");
        }
    }
}
