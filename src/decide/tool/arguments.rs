//! Validates arguments against the tool's pinned JSON Schema and converts them, value by value, to Cedar expressions.
//!
//! Cedar's own JSON conversion is never used on arguments: it would interpret `__entity` and `__extn` as entities and
//! extension calls.

use super::arg_types::{ArgField, ArgSchema, ArgType};
use super::{arg_types, schema_cost};
use crate::domain::{Reason, Refusal, SafeText, did_you_mean, nearest, quoted};
use cedar_policy::RestrictedExpression;
use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{JsonType, PatternOptions, ValidationError, Validator};
use serde_json::{Map, Number, Value};

/// The argument validator of one tool, and the arguments that policies can see.
pub(in crate::decide) struct Arguments {
    /// The error says why the schema cannot be used; then every call of the tool is refused.
    validator: Result<Validator, String>,
    pub arg_schema: ArgSchema,
    /// `arg_schema` names every argument: no other keyword of the schema adds one.
    names_all: bool,
}

/// Larger schemas and patterns are refused: compiling them costs too much.
const MAX_SCHEMA_BYTES: usize = 256 * 1024;
const MAX_PATTERN_BYTES: usize = 1024 * 1024;
const MAX_DETAIL: usize = 200;
/// What a refusal shows of the names in a call and in a schema.
const LONGEST_NAME: usize = 64;
const MOST_NAMES: usize = 6;

impl Arguments {
    /// Compiles an input schema. It never fails: a schema that cannot be used makes the tool unusable.
    pub fn compile(schema: &Value) -> Self {
        Self {
            validator: validator(schema),
            arg_schema: arg_types::arguments(schema),
            names_all: names_all_arguments(schema),
        }
    }

    /// Why no call of this tool can be validated.
    pub fn why_unusable(&self) -> Option<&str> {
        self.validator.as_ref().err().map(String::as_str)
    }

    /// Parses and validates the arguments of a call of `tool`. Absent arguments are `{}`.
    pub fn read(&self, tool: &str, text: Option<&[u8]>) -> Result<Map<String, Value>, Box<Refusal>> {
        let validator = self.validator.as_ref().map_err(|why| Refusal {
            errors: vec![why.clone()],
            ..Refusal::with_detail(Reason::PolicyError, "the arguments of this tool cannot be checked")
        })?;
        let value = match text {
            None => Value::Object(Map::new()),
            Some(text) => serde_json::from_slice(text).map_err(|_| invalid("the arguments are not JSON"))?,
        };
        if let Err(error) = validator.validate(&value) {
            return Err(invalid(&self.explained(&error, tool, &value)));
        }
        match value {
            Value::Object(arguments) => Ok(arguments),
            _ => Err(invalid("the arguments are not an object")),
        }
    }

    /// Says which rule of the schema is broken and where, and the name that was probably meant. It contains no argument value,
    /// because values may be secret; the names that a caller invented are theirs to read.
    fn explained(&self, error: &ValidationError<'_>, tool: &str, sent: &Value) -> String {
        let path = error.instance_path().as_str();
        let whole = match path {
            "" => "the arguments".to_owned(),
            path => format!("argument `{}`", cut(&path[1..])),
        };
        match error.kind() {
            ValidationErrorKind::Required { property } => {
                let name = property.as_str().unwrap_or_default();
                match self.misspelt(name, sent).filter(|_| path.is_empty()) {
                    Some(misspelt) => format!("{}; {}", not_an_argument(misspelt, tool), did_you_mean(&cut(name))),
                    None => {
                        let prefix = path.strip_prefix('/').map(|path| format!("{path}/")).unwrap_or_default();
                        format!("argument `{}` is missing", cut(&format!("{prefix}{name}")))
                    }
                }
            }
            ValidationErrorKind::Type { kind } => {
                let kinds: Vec<JsonType> = match kind {
                    TypeKind::Single(kind) => vec![*kind],
                    TypeKind::Multiple(kinds) => kinds.iter().collect(),
                };
                wrong_type(&whole, &kinds, error.instance())
            }
            ValidationErrorKind::AdditionalProperties { unexpected }
            | ValidationErrorKind::UnevaluatedProperties { unexpected } => match (unexpected.first(), path) {
                (Some(name), "") => self.unexpected(name, tool),
                (Some(_), _) | (None, _) => format!("{whole} must have no members beside those of the schema"),
            },
            ValidationErrorKind::FalseSchema => format!("{whole} must be left out"),
            kind if says_only_the_schema(kind) => format!("{whole}: {}", error.masked_with("it")),
            kind if path.is_empty() => format!("{whole} break the rule `{}` of the schema", kind.keyword()),
            kind => format!("{whole} breaks the rule `{}` of the schema", kind.keyword()),
        }
    }

    /// The sent name that nearly is the missing argument's, and is no argument.
    fn misspelt<'a>(&self, missing: &str, sent: &'a Value) -> Option<&'a str> {
        let undeclared = |name: &&str| !self.arg_schema.contains_key(*name);
        let sent = sent.as_object()?.keys().map(String::as_str).filter(undeclared);
        nearest(missing, sent).filter(|_| self.names_all)
    }

    fn unexpected(&self, name: &str, tool: &str) -> String {
        let known = || self.arg_schema.keys().map(String::as_str);
        let refused = not_an_argument(name, tool);
        match nearest(name, known()) {
            Some(meant) => format!("{refused}; {}", did_you_mean(&cut(meant))),
            None if !self.names_all => refused,
            None if known().len() == 0 => format!("{refused}, which takes none"),
            None => {
                let mut names: Vec<String> = known().take(MOST_NAMES).map(quoted).collect();
                if known().len() > MOST_NAMES {
                    names.push(format!("and {} more", known().len() - MOST_NAMES));
                }
                format!("{refused}, which takes {}", names.join(", "))
            }
        }
    }
}

/// A name that no program would give an argument may be anything, a secret as well: it is not repeated.
fn not_an_argument(name: &str, tool: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.len() <= LONGEST_NAME && name.chars().all(is_plain) {
        format!("{} is not an argument of `{tool}`", quoted(name))
    } else {
        format!("one of the names is not an argument of `{tool}`")
    }
}

/// Whether `properties` names all that the schema says of arguments.
fn names_all_arguments(schema: &Value) -> bool {
    const OTHERS: [&str; 9] = [
        "$ref",
        "$dynamicRef",
        "allOf",
        "anyOf",
        "oneOf",
        "if",
        "patternProperties",
        "dependentSchemas",
        "propertyNames",
    ];
    schema
        .as_object()
        .is_some_and(|schema| OTHERS.iter().all(|keyword| !schema.contains_key(*keyword)))
}

/// Values are never converted, because the server might convert them otherwise than policies would.
fn wrong_type(whole: &str, kinds: &[JsonType], sent: &Value) -> String {
    let article = |kind: &str| if kind.starts_with(['a', 'i', 'o']) { "an" } else { "a" };
    let named = |kind: &JsonType| match kind.as_str() {
        "null" => "null".to_owned(),
        kind => format!("{} {kind}", article(kind)),
    };
    let wanted: Vec<String> = kinds.iter().map(named).collect();
    let sent_kind = JsonType::from(sent);
    let is_scalar = |kind: &JsonType| !matches!(kind, JsonType::Array | JsonType::Object | JsonType::Null);
    let hint = if sent.is_string() && kinds.iter().any(is_scalar) {
        ": it is not converted"
    } else {
        ""
    };
    format!("{whole} must be {}, not {}{hint}", wanted.join(" or "), named(&sent_kind))
}

fn validator(schema: &Value) -> Result<Validator, String> {
    if schema.to_string().len() > MAX_SCHEMA_BYTES {
        return Err(format!("the input schema is larger than {MAX_SCHEMA_BYTES} bytes"));
    }
    schema_cost::check_cost(schema)?;
    let patterns = PatternOptions::regex()
        .size_limit(MAX_PATTERN_BYTES)
        .dfa_size_limit(MAX_PATTERN_BYTES);
    jsonschema::options()
        .should_validate_formats(false)
        .with_pattern_options(patterns)
        .build(schema)
        .map_err(|error| cut(&format!("the input schema is not usable: {error}")))
}

/// Converts `arguments` to the record `context.input`: the typed ones that are read.
pub(in crate::decide) fn input(
    arguments: &Map<String, Value>,
    fields: &ArgSchema,
    is_read: impl Fn(&str) -> bool,
) -> Result<RestrictedExpression, Box<Refusal>> {
    record(arguments, fields, is_read, "")
}

fn record(
    members: &Map<String, Value>,
    fields: &ArgSchema,
    is_read: impl Fn(&str) -> bool,
    prefix: &str,
) -> Result<RestrictedExpression, Box<Refusal>> {
    let mut pairs = Vec::new();
    for (name, ArgField { required, arg_type }) in fields {
        let (true, Ok(arg_type)) = (is_read(name), arg_type) else {
            continue;
        };
        match members.get(name) {
            Some(Value::Null) | None if *required => return Err(inexpressible(&format!("{prefix}{name}"), "is missing")),
            Some(Value::Null) | None => {}
            Some(value) => pairs.push((name.clone(), expression(value, arg_type, &|| format!("{prefix}{name}"))?)),
        }
    }
    Ok(RestrictedExpression::new_record(pairs).expect("the keys of a map are distinct"))
}

/// Converts one value. It must be of the declared type, because policies are validated for that type.
fn expression(value: &Value, arg_type: &ArgType, at: &dyn Fn() -> String) -> Result<RestrictedExpression, Box<Refusal>> {
    match (arg_type, value) {
        (ArgType::String, Value::String(text)) => Ok(RestrictedExpression::new_string(text.clone())),
        (ArgType::Bool, Value::Bool(flag)) => Ok(RestrictedExpression::new_bool(*flag)),
        (ArgType::Long, Value::Number(number)) => match number.as_i64() {
            Some(number) => Ok(RestrictedExpression::new_long(number)),
            None => Err(inexpressible(&at(), "is not written as a whole number of at most 64 bits")),
        },
        (ArgType::Decimal, Value::Number(number)) => match decimal(number) {
            Some(text) => Ok(RestrictedExpression::new_decimal(text)),
            None => Err(inexpressible(
                &at(),
                "has more digits than policies can compare: four after the point, eleven before",
            )),
        },
        (ArgType::Set(arg_type), Value::Array(elements)) => {
            let elements = elements.iter().map(|element| expression(element, arg_type, at));
            Ok(RestrictedExpression::new_set(elements.collect::<Result<Vec<_>, _>>()?))
        }
        (ArgType::Record(fields), Value::Object(members)) => record(members, fields, |_| true, &format!("{}.", at())),
        _ => Err(inexpressible(&at(), "is not of the type that policies read")),
    }
}

/// Converts a number to Cedar's `decimal`, which has four digits after the point. Up to the limit a double holds these
/// exactly.
fn decimal(number: &Number) -> Option<String> {
    const LIMIT: f64 = 1e11;
    let number = number.as_f64().filter(|number| number.abs() < LIMIT)?;
    let text = number.to_string();
    match text.split_once('.') {
        None => Some(format!("{text}.0")),
        Some((_, fraction)) => (fraction.len() <= 4).then_some(text),
    }
}

/// Whether the masked text of such an error contains no part of the value. That of `propertyNames` contains a member
/// name.
fn says_only_the_schema(kind: &ValidationErrorKind) -> bool {
    use ValidationErrorKind as K;
    matches!(
        kind,
        K::Constant { .. }
            | K::Enum { .. }
            | K::Pattern { .. }
            | K::MaxLength { .. }
            | K::MinLength { .. }
            | K::MultipleOf { .. }
    ) || matches!(
        kind,
        K::Maximum { .. } | K::Minimum { .. } | K::ExclusiveMaximum { .. } | K::ExclusiveMinimum { .. }
    ) || matches!(kind, K::MaxItems { .. } | K::MinItems { .. } | K::UniqueItems)
}

/// The refusal of a value that a policy reads and that Cedar cannot represent.
fn inexpressible(at: &str, why: &str) -> Box<Refusal> {
    invalid(&format!("argument `{at}` {why}"))
}

fn invalid(detail: &str) -> Box<Refusal> {
    Refusal::with_detail(Reason::InvalidArguments, cut(detail)).into()
}

/// Foreign text as a refusal may hold it.
pub(in crate::decide) fn cut(text: &str) -> String {
    SafeText::new(text, MAX_DETAIL - "…".len()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn detail(schema: Value, arguments: Value) -> String {
        let refusal = Arguments::compile(&schema)
            .read("t", Some(arguments.to_string().as_bytes()))
            .unwrap_err();
        assert_eq!(refusal.reason, Reason::InvalidArguments);
        refusal.detail.unwrap()
    }

    fn seen(property: Value, value: Value) -> Result<RestrictedExpression, String> {
        let arguments = Arguments::compile(&json!({ "properties": { "a": property } }));
        let members = arguments
            .read("t", Some(json!({ "a": value }).to_string().as_bytes()))
            .unwrap();
        input(&members, &arguments.arg_schema, |_| true).map_err(|refusal| refusal.detail.unwrap())
    }

    #[test]
    fn a_refusal_names_the_place_and_the_rule_but_no_value() {
        let schema = json!({
            "type": "object",
            "required": ["path"],
            "additionalProperties": false,
            "properties": {
                "path": { "type": "string", "maxLength": 10, "pattern": "^[a-z/]*$" },
                "mode": { "enum": ["r", "w"] },
                "o": { "type": "object", "required": ["x"] },
                "names": { "type": "object", "propertyNames": { "maxLength": 3 } },
            },
        });
        let detail = |arguments| detail(schema.clone(), arguments);
        assert_eq!(detail(json!({})), "argument `path` is missing");
        assert_eq!(detail(json!({ "path": "a", "o": {} })), "argument `o/x` is missing");
        assert_eq!(detail(json!({ "path": 3 })), "argument `path` must be a string, not a number");
        assert_eq!(detail(json!([])), "the arguments must be an object, not an array");
        // A model corrects itself if it reads the name that it meant.
        let (unknown, meant) = ("`pth` is not an argument of `t`", "did you mean `path`?");
        assert_eq!(detail(json!({ "path": "a", "pth": 1 })), format!("{unknown}; {meant}"));
        assert_eq!(detail(json!({ "pth": "a" })), format!("{unknown}; {meant}"));
        assert_eq!(
            detail(json!({ "path": "a", "verbose": true })),
            "`verbose` is not an argument of `t`, which takes `mode`, `names`, `o`, `path`"
        );
        assert_eq!(
            detail(json!({ "path": "a", "key=s3cret": 1 })),
            "one of the names is not an argument of `t`, which takes `mode`, `names`, `o`, `path`",
            "what no program would call an argument may be a secret"
        );
        for (arguments, rule) in [
            (json!({ "path": "s3cret" }), "pattern"),
            (json!({ "path": "secretsecretsecret" }), "maxLength"),
            (json!({ "path": "a", "mode": "secret" }), "enum"),
            (json!({ "path": "a", "names": { "secret": 1 } }), "propertyNames"),
        ] {
            let detail = detail(arguments);
            assert!(!detail.contains("cret"), "{rule}: {detail}");
        }
    }

    #[test]
    fn of_names_it_says_only_what_is_so() {
        let taken = |schema| detail(schema, json!({ "x": 1 }));
        let closed = |properties| json!({ "additionalProperties": false, "properties": properties });
        assert_eq!(taken(closed(json!({}))), "`x` is not an argument of `t`, which takes none");
        let many: Map<String, Value> = (0..9).map(|n| (format!("name_{n}"), json!({}))).collect();
        let names = "`name_0`, `name_1`, `name_2`, `name_3`, `name_4`, `name_5`, and 3 more";
        assert_eq!(
            taken(closed(many.into())),
            format!("`x` is not an argument of `t`, which takes {names}")
        );
        let mut open = closed(json!({}));
        open["patternProperties"] = json!({ "^y": {} });
        assert_eq!(taken(open), "`x` is not an argument of `t`");
        let both = json!({ "required": ["path"], "properties": { "path": {} }, "allOf": [{ "properties": { "paths": {} } }] });
        assert_eq!(detail(both, json!({ "paths": [] })), "argument `path` is missing");
    }

    #[test]
    fn a_detail_is_short_and_harmless() {
        let long = "é".repeat(500);
        assert!(cut(&long).len() <= 200 + "…".len());
        assert_eq!(cut("a\u{1b}[1m\u{202e}"), "a\\u{1b}[1m\\u{202e}");
        let schema = json!({ "additionalProperties": { "type": "string" } });
        assert!(detail(schema, json!({ (long): 1 })).len() < 300);
    }

    #[test]
    fn nothing_in_a_value_is_interpreted() {
        let entity = json!({ "__entity": { "type": "Guardian::Role", "id": "admin" } });
        let shape = json!({ "type": "object", "properties": { "__entity": { "type": "object", "properties": {
            "type": { "type": "string" }, "id": { "type": "string" } } } } });
        let expression = seen(shape, entity).unwrap();
        let context = cedar_policy::Context::from_pairs([("input".to_owned(), expression)]).unwrap();
        let shown = format!("{:?}", context.get("input").unwrap());
        assert!(shown.contains("__entity") && !shown.contains("EntityUid"), "{shown}");
    }

    #[test]
    fn what_a_policy_reads_is_exact_or_refused() {
        let integer = || json!({ "type": "integer" });
        assert!(seen(integer(), json!(i64::MIN)).is_ok());
        for value in [json!(1.0), json!(u64::MAX), json!(1e30)] {
            assert_eq!(
                seen(integer(), value).unwrap_err(),
                "argument `a` is not written as a whole number of at most 64 bits"
            );
        }
        let number = || json!({ "type": "number" });
        for value in [json!(0.1), json!(-1.25), json!(7), json!(1e3), json!(99999999999.9999)] {
            assert!(seen(number(), value.clone()).is_ok(), "{value}");
        }
        for value in [json!(0.00001), json!(1e300), json!(1e11), json!(1e-9)] {
            assert!(seen(number(), value.clone()).is_err(), "{value}");
        }
        assert!(seen(json!({ "type": ["string", "null"] }), Value::Null).is_ok());
    }

    #[test]
    fn every_decimal_that_is_made_is_one() {
        for value in [
            json!(0.1),
            json!(-0.0),
            json!(1e-4),
            json!(99999999999.9999),
            json!(-99_999_999_999_i64),
        ] {
            let expression = seen(json!({ "type": "number" }), value.clone()).unwrap();
            let context = cedar_policy::Context::from_pairs([("input".to_owned(), expression)]);
            assert!(context.is_ok(), "{value}");
        }
    }

    #[test]
    fn a_hostile_schema_is_refused_when_compiled() {
        let mut laughs = serde_json::Map::new();
        for level in 0..26 {
            let next = json!({ "$ref": format!("#/$defs/d{}", level + 1) });
            laughs.insert(format!("d{level}"), json!({ "allOf": [next, next] }));
        }
        laughs.insert("d26".to_owned(), json!({ "type": "object" }));
        for schema in [
            json!({ "$ref": "#/$defs/d0", "$defs": laughs }),
            json!({ "$ref": "http://127.0.0.1:1/schema" }),
            json!({ "$ref": "file:///etc/passwd" }),
            json!({ "properties": { "a": { "pattern": "(?=x)y" } } }),
            json!({ "properties": { "a": { "pattern": "((a{1000}){1000}){1000}" } } }),
            json!({ "type": "strin" }),
            json!({ "description": "x".repeat(MAX_SCHEMA_BYTES) }),
        ] {
            let arguments = Arguments::compile(&schema);
            assert!(arguments.why_unusable().is_some_and(|why| why.len() < 300), "{schema}");
            assert_eq!(arguments.read("t", None).unwrap_err().reason, Reason::PolicyError);
        }
    }
}
