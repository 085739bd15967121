//! Reads a tool's JSON Schema as Cedar types: the arguments that policies can see.
//!
//! An argument without an equivalent Cedar type is a hole: it stays untyped, and its type is never guessed. Policies that
//! name it are reported, and a call that carries it cannot bypass them (see `visibility.rs`).

use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// A type that policies can read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::decide) enum ArgType {
    String,
    Long,
    Bool,
    /// JSON `number`; policies see at most four digits after the point.
    Decimal,
    /// JSON `array`; policies cannot see order or repetition.
    Set(Box<ArgType>),
    Record(ArgSchema),
}

/// Arguments, or the members of a record, by name.
pub(in crate::decide) type ArgSchema = BTreeMap<String, ArgField>;

/// One argument.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::decide) struct ArgField {
    pub required: bool,
    /// The type, or why policies cannot read the argument.
    pub arg_type: Result<ArgType, &'static str>,
}

/// Bounds on what is read of a schema, which may be hostile; what lies beyond is untyped.
const MAX_DEPTH: usize = 8;
const MAX_FIELDS: usize = 1_000;
const MAX_STEPS: usize = 20_000;

/// The arguments of a tool as policies see them.
pub(in crate::decide) fn arguments(schema: &Value) -> ArgSchema {
    let mut reader = SchemaReader {
        root: schema,
        fields: MAX_FIELDS,
        steps: MAX_STEPS,
        open: Vec::new(),
    };
    match reader.read_type(schema) {
        Ok(NullableType {
            arg_type: ArgType::Record(fields),
            ..
        }) => fields,
        _ => ArgSchema::new(),
    }
}

/// Every untyped argument with its path (`filter.tags`) and the reason, for warnings.
pub(in crate::decide) fn untyped_arguments(fields: &ArgSchema) -> Vec<(String, &'static str)> {
    let mut holes = Vec::new();
    for (name, field) in fields {
        match field.arg_type.as_ref().map(innermost) {
            Err(why) => holes.push((name.clone(), *why)),
            Ok(ArgType::Record(inner)) => {
                let inner = untyped_arguments(inner).into_iter();
                holes.extend(inner.map(|(path, why)| (format!("{name}.{path}"), why)));
            }
            Ok(_) => {}
        }
    }
    holes
}

fn innermost(arg_type: &ArgType) -> &ArgType {
    match arg_type {
        ArgType::Set(element) => innermost(element),
        other => other,
    }
}

/// A type, and whether `null` may replace the value (policies then see the argument as absent).
#[derive(PartialEq)]
struct NullableType {
    arg_type: ArgType,
    nullable: bool,
}

type UntypedReason = &'static str;

struct SchemaReader<'a> {
    root: &'a Value,
    /// How many more arguments may be read.
    fields: usize,
    /// How many more schemas may be visited. References can multiply exponentially.
    steps: usize,
    /// The schemas being read, outermost first. A schema that contains itself is recursive.
    open: Vec<*const Value>,
}

impl<'a> SchemaReader<'a> {
    fn read_type(&mut self, schema: &'a Value) -> Result<NullableType, UntypedReason> {
        if self.open.contains(&std::ptr::from_ref(schema)) {
            return Err("it contains itself");
        }
        if self.open.len() > 4 * MAX_DEPTH {
            return Err("it is nested too deeply");
        }
        if self.steps == 0 {
            return Err("the schema is too large");
        }
        self.steps -= 1;
        self.open.push(schema);
        let seen = match schema {
            Value::Object(schema) => self.read_object(schema),
            _ => Err("any value is allowed"),
        };
        self.open.pop();
        seen
    }

    fn read_object(&mut self, schema: &'a Map<String, Value>) -> Result<NullableType, UntypedReason> {
        if let Some(reference) = schema.get("$ref") {
            let target = reference.as_str().and_then(|text| resolve(self.root, text));
            return self.read_type(target.ok_or("it refers to a schema elsewhere")?);
        }
        match schema.get("type") {
            Some(Value::String(name)) => self.typed(name, schema),
            Some(Value::Array(names)) => self.one_of_types(names, schema),
            Some(_) => Err("its type is not a type"),
            None => self.untyped(schema),
        }
    }

    fn typed(&mut self, name: &str, schema: &'a Map<String, Value>) -> Result<NullableType, UntypedReason> {
        let arg_type = match name {
            "string" => ArgType::String,
            "integer" => ArgType::Long,
            "number" => ArgType::Decimal,
            "boolean" => ArgType::Bool,
            "array" => self.array(schema)?,
            "object" => ArgType::Record(self.properties(schema)?),
            _ => return Err("its type is not one that policies have"),
        };
        Ok(NullableType {
            arg_type,
            nullable: false,
        })
    }

    fn one_of_types(&mut self, names: &'a [Value], schema: &'a Map<String, Value>) -> Result<NullableType, UntypedReason> {
        let name = name_beside_null(names).ok_or("it may be of several types")?;
        let seen = self.typed(name, schema)?;
        let nullable = names.iter().any(|name| name == "null");
        Ok(NullableType { nullable, ..seen })
    }

    fn untyped(&mut self, schema: &'a Map<String, Value>) -> Result<NullableType, UntypedReason> {
        if let Some(Value::Array(branches)) = schema.get("anyOf").or_else(|| schema.get("oneOf")) {
            return self.one_of(branches);
        }
        if let Some(Value::Array(parts)) = schema.get("allOf") {
            return match parts.as_slice() {
                [only] => self.read_type(only),
                _ => Err("it combines several schemas"),
            };
        }
        if let Some(Value::Array(values)) = schema.get("enum") {
            return literals(values.iter());
        }
        if let Some(value) = schema.get("const") {
            return literals([value].into_iter());
        }
        if schema.contains_key("properties") {
            self.typed("object", schema)
        } else {
            Err("it has no type")
        }
    }

    /// Branches of one type are that type, even if some of them allow `null`.
    fn one_of(&mut self, branches: &'a [Value]) -> Result<NullableType, UntypedReason> {
        let is_null = |branch: &Value| branch.get("type").is_some_and(|name| name == "null");
        let read = |branch| (!is_null(branch)).then(|| self.read_type(branch)).transpose();
        one_type(branches.iter().map(read))
    }

    fn array(&mut self, schema: &'a Map<String, Value>) -> Result<ArgType, UntypedReason> {
        if schema.contains_key("prefixItems") {
            return Err("its elements are of several types");
        }
        let items = schema.get("items").ok_or("the type of its elements is not given")?;
        let element = self.read_type(items)?;
        if element.nullable {
            Err("its elements may be null")
        } else {
            Ok(ArgType::Set(Box::new(element.arg_type)))
        }
    }

    fn properties(&mut self, schema: &'a Map<String, Value>) -> Result<ArgSchema, UntypedReason> {
        let Some(Value::Object(properties)) = schema.get("properties") else {
            return match self.open.len() {
                1 => Ok(ArgSchema::new()),
                _ => Err("its members are not named"),
            };
        };
        let required: BTreeSet<&str> = match schema.get("required") {
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => BTreeSet::new(),
        };
        let fields = properties
            .iter()
            .map(|(name, schema)| (name.clone(), self.field(schema, required.contains(name.as_str()))));
        Ok(fields.collect())
    }

    fn field(&mut self, schema: &'a Value, required: bool) -> ArgField {
        let seen = self.read_field(schema);
        ArgField {
            required: required && !seen.as_ref().is_ok_and(|seen| seen.nullable),
            arg_type: seen.map(|seen| seen.arg_type),
        }
    }

    fn read_field(&mut self, schema: &'a Value) -> Result<NullableType, UntypedReason> {
        if self.fields == 0 {
            return Err("the tool has too many arguments");
        }
        self.fields -= 1;
        if self.open.len() > MAX_DEPTH {
            return Err("it is nested too deeply");
        }
        self.read_type(schema)
    }
}

/// The only type of a list of types, `null` aside.
pub(super) fn name_beside_null(names: &[Value]) -> Option<&str> {
    let mut others = names.iter().filter_map(Value::as_str).filter(|name| *name != "null");
    others.next().filter(|_| others.next().is_none())
}

/// The schema that a local reference names: `#`, `#/$defs/x`.
pub(super) fn resolve<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    let pointer = reference.strip_prefix('#')?;
    if pointer.contains('%') { None } else { root.pointer(pointer) }
}

/// The one type that all values of an enumeration have.
fn literals<'a>(values: impl Iterator<Item = &'a Value>) -> Result<NullableType, UntypedReason> {
    let read = |value: &Value| {
        let arg_type = match value {
            Value::Null => return Ok(None),
            Value::String(_) => ArgType::String,
            Value::Bool(_) => ArgType::Bool,
            Value::Number(number) if number.is_i64() => ArgType::Long,
            _ => return Err("it may be of several types"),
        };
        let nullable = false;
        Ok(Some(NullableType { arg_type, nullable }))
    };
    one_type(values.map(read))
}

/// The one type that all of these are. `None` among them stands for `null`.
fn one_type(all: impl Iterator<Item = Result<Option<NullableType>, UntypedReason>>) -> Result<NullableType, UntypedReason> {
    let (mut first, mut nullable) = (None, false);
    for seen in all {
        let Some(seen) = seen? else {
            nullable = true;
            continue;
        };
        nullable |= seen.nullable;
        if *first.get_or_insert_with(|| seen.arg_type.clone()) != seen.arg_type {
            return Err("it may be of several types");
        }
    }
    let arg_type = first.ok_or("it can only be null")?;
    Ok(NullableType { arg_type, nullable })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(property: Value) -> ArgField {
        arguments(&json!({ "type": "object", "properties": { "a": property } }))
            .remove("a")
            .unwrap()
    }

    fn shape(property: Value) -> Result<ArgType, &'static str> {
        of(property).arg_type
    }

    #[test]
    fn plain_types_are_seen() {
        assert_eq!(shape(json!({ "type": "string" })), Ok(ArgType::String));
        assert_eq!(shape(json!({ "type": "integer" })), Ok(ArgType::Long));
        assert_eq!(shape(json!({ "type": "number" })), Ok(ArgType::Decimal));
        assert_eq!(shape(json!({ "type": "boolean" })), Ok(ArgType::Bool));
        assert_eq!(shape(json!({ "enum": ["a", "b"] })), Ok(ArgType::String));
        assert_eq!(shape(json!({ "const": 3 })), Ok(ArgType::Long));
        assert_eq!(
            shape(json!({ "type": "array", "items": { "type": "string" } })),
            Ok(ArgType::Set(Box::new(ArgType::String)))
        );
    }

    #[test]
    fn what_may_be_null_is_optional() {
        let schema = json!({
            "type": "object",
            "required": ["a", "b", "c"],
            "properties": {
                "a": { "anyOf": [{ "type": "string" }, { "type": "null" }] },
                "b": { "type": ["integer", "null"] },
                "c": { "type": "boolean" },
            },
        });
        let fields = arguments(&schema);
        assert_eq!(
            fields["a"],
            ArgField {
                required: false,
                arg_type: Ok(ArgType::String)
            }
        );
        assert_eq!(
            fields["b"],
            ArgField {
                required: false,
                arg_type: Ok(ArgType::Long)
            }
        );
        assert_eq!(
            fields["c"],
            ArgField {
                required: true,
                arg_type: Ok(ArgType::Bool)
            }
        );
    }

    #[test]
    fn what_cedar_has_no_type_for_is_a_hole() {
        for property in [
            json!({}),
            json!(true),
            json!({ "type": ["string", "integer"] }),
            json!({ "anyOf": [{ "type": "string" }, { "type": "integer" }] }),
            json!({ "type": "array" }),
            json!({ "type": "array", "items": { "type": ["string", "null"] } }),
            json!({ "type": "object", "additionalProperties": { "type": "string" } }),
            json!({ "type": "null" }),
            json!({ "enum": [1, "a"] }),
            json!({ "$ref": "https://example.com/x" }),
            json!({ "allOf": [{ "type": "string" }, { "minLength": 2 }] }),
        ] {
            assert!(shape(property.clone()).is_err(), "{property}");
        }
    }

    #[test]
    fn local_references_are_followed_and_recursion_ends_in_a_hole() {
        let schema = json!({
            "type": "object",
            "properties": { "tree": { "$ref": "#/$defs/tree" }, "name": { "$ref": "#/$defs/name" } },
            "$defs": {
                "name": { "type": "string" },
                "tree": { "type": "object", "properties": { "name": { "$ref": "#/$defs/name" }, "child": { "$ref": "#/$defs/tree" } } },
            },
        });
        let fields = arguments(&schema);
        assert_eq!(fields["name"].arg_type, Ok(ArgType::String));
        assert_eq!(untyped_arguments(&fields), [("tree.child".to_owned(), "it contains itself")]);
    }

    #[test]
    fn a_deep_schema_does_not_exhaust_the_stack() {
        let mut schema = json!({ "type": "string" });
        for _ in 0..60 {
            schema = json!({ "type": "object", "properties": { "a": schema } });
        }
        assert_eq!(untyped_arguments(&arguments(&schema)).len(), 1);
        let mut schema = json!({ "type": "string" });
        for _ in 0..60 {
            schema = json!({ "allOf": [schema] });
        }
        assert!(shape(schema).is_err());
    }

    #[test]
    fn a_schema_that_multiplies_ends_in_a_hole() {
        let mut defs = serde_json::Map::new();
        for level in 0..30 {
            let next = json!({ "$ref": format!("#/$defs/d{}", level + 1) });
            defs.insert(format!("d{level}"), json!({ "anyOf": [next, next] }));
        }
        defs.insert("d30".to_owned(), json!({ "type": "string" }));
        let schema = json!({ "properties": { "a": { "$ref": "#/$defs/d0" } }, "$defs": defs });
        assert!(arguments(&schema)["a"].arg_type.is_err());
    }

    #[test]
    fn a_tool_without_named_arguments_has_none() {
        for schema in [
            json!({ "type": "object" }),
            json!({}),
            json!(true),
            json!({ "type": "string" }),
        ] {
            assert_eq!(arguments(&schema), ArgSchema::new());
        }
    }
}
