//! Checks the keys of the file and the types of their values by the JSON Schema of `model.rs`, the one that is exported.
//! `jsonschema` finds all mismatches at once, where serde would stop at the first; this file puts each in a sentence.

use super::document::{Document, Node, Value, ValueSource, join};
use crate::domain::{
    ClientId, EnvironmentName, Issuer, IssuerAlias, Problem, RoleName, ServerName, did_you_mean, nearest, quoted,
};
use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{JsonType, PatternOptions, ValidationError, Validator};
use schemars::transform::{RecursiveTransform, Transform};
use serde_json::Value as Json;
use std::net::SocketAddr;

/// The schema of the whole configuration.
pub(super) struct KeySchema {
    schema: Json,
    validator: Validator,
}

/// The syntax of a text: a name, a duration or an address.
struct TextFormat {
    /// Its name in the schema.
    name: &'static str,
    expected: &'static str,
    check: fn(&str) -> Result<(), String>,
}

const TEXT_FORMATS: &[TextFormat] = &[
    TextFormat::name("EnvironmentName", parses::<EnvironmentName>),
    TextFormat::name("IssuerAlias", parses::<IssuerAlias>),
    TextFormat::name("Issuer", parses::<Issuer>),
    TextFormat::name("ClientId", parses::<ClientId>),
    TextFormat::name("RoleName", parses::<RoleName>),
    TextFormat::name("ServerName", parses::<ServerName>),
    TextFormat {
        name: "Span",
        expected: "a length of time in quotes such as `\"5s\"`",
        check: human_duration,
    },
    TextFormat {
        name: "socket-address",
        expected: "an address with a port in quotes such as `\"0.0.0.0:8443\"`",
        check: socket_address,
    },
];

impl TextFormat {
    const fn name(name: &'static str, check: fn(&str) -> Result<(), String>) -> Self {
        Self {
            name,
            expected: "a text in quotes",
            check,
        }
    }

    /// The grammar that the schema's `format` names.
    fn of(schema: &Json) -> Option<&'static Self> {
        let name = schema["format"].as_str()?;
        TEXT_FORMATS.iter().find(|grammar| grammar.name == name)
    }
}

/// Keys of earlier versions, and what they are called now.
const MOVED: [(&str, &str); 2] = [("journal.arguments", "audit.inputs"), ("journal.redact", "audit.redact")];

fn moved_to(key: &str) -> String {
    match key.split_once('.') {
        Some((section, name)) => format!("write `{name} = …` in [{section}]"),
        None => format!("write `{key} = …`"),
    }
}

/// A key or list entry of the file, and its schema.
struct Setting<'a> {
    key: String,
    node: &'a Node,
    schema: &'a Json,
}

impl KeySchema {
    pub fn of_config() -> Self {
        let schema = checkable();
        let mut options = jsonschema::options()
            .should_validate_formats(true)
            .with_pattern_options(PatternOptions::regex());
        for grammar in TEXT_FORMATS {
            options = options.with_format(grammar.name, |text: &str| (grammar.check)(text).is_ok());
        }
        let validator = options.build(&schema).expect("schemars makes a valid schema");
        Self { schema, validator }
    }

    /// The type that the key at this path takes; `None` if there is no such key, or if it takes one of some words.
    pub fn type_of(&self, path: &[String]) -> Option<JsonType> {
        let schema = path.iter().try_fold(&self.schema, |schema, step| self.child(schema, step));
        schema.and_then(type_of)
    }

    /// Reports every unknown or missing key and every value of the wrong type, in no particular order. One mismatch may
    /// be reported twice, in the same words.
    pub fn check(&self, document: &Document) -> Vec<Problem> {
        let json = document.to_json();
        let mut problems = Vec::new();
        for error in self.validator.iter_errors(&json) {
            self.explain(&error, document, &mut problems);
        }
        problems
    }

    fn explain(&self, error: &ValidationError<'_>, document: &Document, problems: &mut Vec<Problem>) {
        let setting = self.setting(error, document);
        let mut report = |(source, problem): (&ValueSource, Problem)| problems.push(problem.at(document.location_of(source)));
        match error.kind() {
            // An optional key takes its type or null.
            ValidationErrorKind::AnyOf { context } => {
                let inner = context.iter().flatten();
                inner.for_each(|error| self.explain(error, document, problems));
            }
            ValidationErrorKind::Type {
                kind: TypeKind::Single(JsonType::Null),
            } => {}
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                unexpected.iter().for_each(|name| report(self.unknown(&setting, name)));
            }
            ValidationErrorKind::Required { property } => {
                let name = property.as_str().expect("a required property is named");
                if !is_misspelt(&setting, name) {
                    report((&setting.node.source, self.missing(&setting, name)));
                }
            }
            ValidationErrorKind::PropertyNames { error } => {
                let name = error.instance().as_str().expect("the name of a property is a text");
                let grammar = TextFormat::of(&setting.schema["propertyNames"]).expect("names are checked by a grammar");
                if let Err(message) = (grammar.check)(name) {
                    report((setting.origin_of(name), Problem::error(&setting.key, message)));
                }
            }
            _ => report((&setting.node.source, self.mismatch(&setting))),
        }
    }

    /// What the error is about.
    fn setting<'a>(&'a self, error: &ValidationError<'_>, document: &'a Document) -> Setting<'a> {
        let mut setting = Setting {
            key: String::new(),
            node: &document.root,
            schema: &self.schema,
        };
        // The iterator of the path would take the key `007` for an index, and leave out an empty key.
        for step in error.instance_path().as_str().split('/').skip(1) {
            let step = step.replace("~1", "/").replace("~0", "~");
            setting = Setting {
                key: match setting.node.value {
                    Value::List(_) => format!("{}[{step}]", setting.key),
                    _ => join(&setting.key, &step),
                },
                node: setting.node.child(&step).expect("an error is about a value of the file"),
                schema: self
                    .child(setting.schema, &step)
                    .expect("a value is checked only where a schema is"),
            };
        }
        setting
    }

    /// The schema of a key or list entry inside this one.
    fn child<'a>(&'a self, schema: &'a Json, step: &str) -> Option<&'a Json> {
        let any = || {
            [&schema["items"], &schema["additionalProperties"]]
                .into_iter()
                .find(|inner| inner.is_object())
        };
        schema["properties"].get(step).or_else(any).map(|inner| self.resolved(inner))
    }

    /// Follows references. Of an optional key, which takes its type or null, it takes the type: TOML has no null.
    fn resolved<'a>(&'a self, schema: &'a Json) -> &'a Json {
        let options = schema["anyOf"].as_array().into_iter().flatten();
        let given = options.into_iter().find(|option| option["type"] != "null");
        let referenced = || self.schema.pointer(schema["$ref"].as_str()?.strip_prefix('#')?);
        match given.or_else(referenced) {
            Some(inner) => self.resolved(inner),
            None => schema,
        }
    }

    /// An unknown key, with the known one that was probably meant.
    fn unknown<'a>(&self, section: &Setting<'a>, name: &str) -> (&'a ValueSource, Problem) {
        let key = join(&section.key, name);
        if let Some((_, now)) = MOVED.iter().find(|(was, _)| *was == key) {
            let problem = Problem::error(&key, format!("`{key}` is called `{now}` now"));
            return (section.origin_of(name), problem.help(format!("move it: {}", moved_to(now))));
        }
        let message = format!("unknown key {} in {}", quoted(name), section_name(&section.key));
        let help = nearest(name, known(section.schema)).map(did_you_mean).unwrap_or_else(|| {
            let mut homes = Vec::new();
            self.sections_with(name, "", &self.schema, &mut homes);
            match &homes[..] {
                [home] => format!("it belongs in {}", section_name(home)),
                _ => {
                    let mut known: Vec<&str> = known(section.schema).collect();
                    known.sort_unstable();
                    format!("known here: {}", known.join(", "))
                }
            }
        });
        let problem = Problem::error(join(&section.key, name), message).help(help);
        (section.origin_of(name), problem)
    }

    /// Finds every section that has a key of this name.
    fn sections_with(&self, name: &str, section: &str, schema: &Json, homes: &mut Vec<String>) {
        let schema = self.resolved(schema);
        if schema["properties"].get(name).is_some() {
            homes.push(section.to_owned());
        }
        for (inner, schema) in schema["properties"].as_object().into_iter().flatten() {
            self.sections_with(name, &join(section, inner), schema, homes);
        }
        if schema["items"].is_object() {
            self.sections_with(name, &format!("{section}[]"), &schema["items"], homes);
        }
    }

    fn missing(&self, section: &Setting<'_>, name: &str) -> Problem {
        let key = join(&section.key, name);
        let is_section = self.child(section.schema, name).is_some_and(is_section);
        let message = if is_section {
            format!("section [{key}] is missing")
        } else {
            format!("`{name}` is missing in {}", section_name(&section.key))
        };
        Problem::error(key, message)
    }

    /// A value that the key does not take.
    fn mismatch(&self, setting: &Setting<'_>) -> Problem {
        let Setting { key, node, schema } = setting;
        let words = choices(schema);
        let message = match &node.value {
            Value::Text(text) if !words.is_empty() => {
                let message = format!("`{key}` is {}; expected {}", quoted(text), one_of(&words));
                return Problem {
                    help: help_for_word(text, &words),
                    ..Problem::error(key, message)
                };
            }
            Value::Text(text) => TextFormat::of(schema)
                .and_then(|grammar| (grammar.check)(text).err())
                .map(|why| format!("`{key}`: {why}")),
            Value::Integer(number) if type_of(schema) == Some(JsonType::Integer) => {
                let max = schema["maximum"].as_u64().unwrap_or(i64::MAX as u64);
                Some(format!("`{key}` is {number}, outside 0 to {max}"))
            }
            _ => None,
        };
        let expected = || format!("`{key}` is {}; expected {}", found_kind(&node.value), self.expected(schema));
        Problem::error(key, message.unwrap_or_else(expected))
    }

    /// What belongs here, in words for a message.
    fn expected(&self, schema: &Json) -> String {
        let words = choices(schema);
        match type_of(schema) {
            _ if !words.is_empty() => return one_of(&words),
            Some(JsonType::Object) => "a section",
            Some(JsonType::Array) if is_section(self.resolved(&schema["items"])) => "a list of sections",
            Some(JsonType::Array) => "a list such as `[\"…\"]`",
            Some(JsonType::Integer) => "a whole number",
            Some(JsonType::Boolean) => "`true` or `false`",
            _ => TextFormat::of(schema).map_or("a text in quotes", |grammar| grammar.expected),
        }
        .to_owned()
    }
}

impl<'a> Setting<'a> {
    /// Where the key of this name was written in this section.
    fn origin_of(&self, name: &str) -> &'a ValueSource {
        match &self.node.value {
            Value::Table(entries) => entries.get(name).map_or(&self.node.source, |entry| &entry.key),
            _ => &self.node.source,
        }
    }
}

/// The exported schema with what it leaves open: the grammar of each named text, and the largest number of 32 bits.
fn checkable() -> Json {
    let mut schema = schemars::schema_for!(super::Config);
    let mut bound = RecursiveTransform(|schema: &mut schemars::Schema| {
        if schema.get("format").is_some_and(|format| format == "uint32") {
            schema.insert("maximum".to_owned(), u32::MAX.into());
        }
    });
    bound.transform(&mut schema);
    let mut schema = schema.to_value();
    for grammar in TEXT_FORMATS {
        if let Some(definition) = schema["$defs"].get_mut(grammar.name) {
            definition["format"] = grammar.name.into();
        }
    }
    schema
}

/// The type of a value; an optional one may also be null.
fn type_of(schema: &Json) -> Option<JsonType> {
    let name = match &schema["type"] {
        Json::Array(names) => names.iter().find(|name| *name != "null")?,
        name => name,
    };
    name.as_str()?.parse().ok()
}

/// Whether the file's author does not choose its keys.
fn is_section(schema: &Json) -> bool {
    schema["properties"].is_object()
}

/// The keys of a section.
fn known(schema: &Json) -> impl Iterator<Item = &str> {
    schema["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| name.as_str())
}

/// Whether the section has an unknown key that probably stands for this one.
fn is_misspelt(section: &Setting<'_>, name: &str) -> bool {
    let Value::Table(entries) = &section.node.value else {
        return false;
    };
    entries
        .keys()
        .filter(|key| known(section.schema).all(|known| known != *key))
        .any(|key| nearest(key, known(section.schema)) == Some(name))
}

/// The name of a section in messages: `[[servers]]` for `servers[1]`, the top level for the empty path.
fn section_name(section: &str) -> String {
    match section.split_once('[') {
        _ if section.is_empty() => "the top level".to_owned(),
        Some((list, rest)) => match rest.split_once("].") {
            Some((_, inner)) => format!("[{list}.{inner}]"),
            None => format!("[[{list}]]"),
        },
        None => format!("[{section}]"),
    }
}

fn found_kind(value: &Value) -> &'static str {
    match value {
        Value::Text(_) => "a text",
        Value::Integer(_) => "a number",
        Value::Boolean(_) => "a truth value",
        Value::Other(name) => name,
        Value::List(_) => "a list",
        Value::Table(_) => "a section",
    }
}

fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match &quoted[..] {
        [one] => one.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
        [] => String::new(),
    }
}

/// HMAC algorithms are missing on purpose, so the message must not take one for a misspelling.
fn help_for_word(text: &str, words: &[&str]) -> Option<String> {
    if text.starts_with("HS") && words.contains(&"ES256") {
        Some("whoever can verify a shared secret can also forge with it: let the issuer sign with ES256".to_owned())
    } else {
        nearest(text, words.iter().copied()).map(did_you_mean)
    }
}

/// The words that the schema allows, if it lists them. A word with a description stands in a schema of its own.
fn choices(schema: &Json) -> Vec<&str> {
    let options = schema["oneOf"].as_array().map_or(std::slice::from_ref(schema), Vec::as_slice);
    let words = options.iter().flat_map(|option| match &option["enum"] {
        Json::Array(words) => words.as_slice(),
        _ => std::slice::from_ref(&option["const"]),
    });
    words.filter_map(Json::as_str).collect()
}

fn parses<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<(), String> {
    text.parse::<T>().map(drop).map_err(|error| error.to_string())
}

fn human_duration(text: &str) -> Result<(), String> {
    match super::HumanDuration::parse(text) {
        Some(_) => Ok(()),
        None => Err(format!(
            "{} is not a length of time such as `250ms`, `5s`, `10m`, `24h` or `7d`",
            quoted(text)
        )),
    }
}

fn socket_address(text: &str) -> Result<(), String> {
    match text.parse::<SocketAddr>() {
        Ok(_) => Ok(()),
        Err(_) => Err(format!(
            "{} is not an address with a port such as `0.0.0.0:8443` or `[::]:8443`",
            quoted(text)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_the_schema_names_has_its_grammar() {
        let schema = checkable();
        for (name, definition) in schema["$defs"].as_object().unwrap() {
            let text = definition["type"] == "string" && choices(definition).is_empty();
            assert!(!text || TextFormat::of(definition).is_some(), "{name}");
        }
    }
}
