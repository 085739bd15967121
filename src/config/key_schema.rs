//! The keys that the file may have and the type of value that each takes, read from the exported JSON Schema so that the
//! two cannot differ. Reports all mismatches at once; serde would stop at the first.

use super::document::{Document, Entry, Node, Origin, Value, join};
use super::problem::{Problem, did_you_mean, nearest, quoted};
use crate::domain::{ClientId, EnvironmentName, Issuer, IssuerAlias, RoleName, ServerName};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// The type of value that stands at a key.
pub(super) enum Shape {
    Table {
        keys: BTreeMap<String, Key>,
    },
    /// A table whose keys the operator chooses.
    Map {
        names: Option<&'static Grammar>,
        values: Box<Shape>,
    },
    List(Box<Shape>),
    Text(Option<&'static Grammar>),
    Integer {
        max: u64,
    },
    Boolean,
    Choice(Vec<String>),
}

pub(super) struct Key {
    shape: Shape,
    required: bool,
}

/// The syntax of a text: a name, a duration or an address.
pub(super) struct Grammar {
    /// Its name in the schema.
    name: &'static str,
    expected: &'static str,
    check: fn(&str) -> Result<(), String>,
}

const GRAMMARS: &[Grammar] = &[
    Grammar::name("EnvironmentName", parses::<EnvironmentName>),
    Grammar::name("IssuerAlias", parses::<IssuerAlias>),
    Grammar::name("Issuer", parses::<Issuer>),
    Grammar::name("ClientId", parses::<ClientId>),
    Grammar::name("RoleName", parses::<RoleName>),
    Grammar::name("ServerName", parses::<ServerName>),
    Grammar {
        name: "Span",
        expected: "a length of time in quotes such as `\"5s\"`",
        check: span,
    },
    Grammar {
        name: "socket-address",
        expected: "an address with a port in quotes such as `\"0.0.0.0:8443\"`",
        check: socket_address,
    },
];

impl Grammar {
    const fn name(name: &'static str, check: fn(&str) -> Result<(), String>) -> Self {
        Self {
            name,
            expected: "a text in quotes",
            check,
        }
    }

    fn named(name: &str) -> Option<&'static Self> {
        GRAMMARS.iter().find(|grammar| grammar.name == name)
    }
}

impl Shape {
    /// The shape of the whole configuration.
    pub fn of_config() -> Self {
        let schema = super::schema();
        Self::read(&schema, &schema)
    }

    /// The shape of a key or list entry inside this one.
    pub fn child(&self, step: &str) -> Option<&Shape> {
        match self {
            Shape::Table { keys } => keys.get(step).map(|key| &key.shape),
            Shape::Map { values: inner, .. } | Shape::List(inner) => Some(inner),
            Shape::Text(_) | Shape::Integer { .. } | Shape::Boolean | Shape::Choice(_) => None,
        }
    }

    /// Reports every unknown or missing key and every value of the wrong type.
    pub fn check(&self, document: &Document) -> Vec<Problem> {
        let mut visit = Visit {
            document,
            root: self,
            problems: Vec::new(),
        };
        visit.node("", &document.root, self);
        visit.problems
    }

    /// Reads a schema; understands only what schemars writes for `model.rs`.
    fn read(schema: &Json, root: &Json) -> Self {
        if let Some(reference) = schema["$ref"].as_str() {
            let definition = &root["$defs"][reference.trim_start_matches("#/$defs/")];
            let shape = Self::read(definition, root);
            return match shape {
                Shape::Text(_) => Shape::Text(Grammar::named(reference.trim_start_matches("#/$defs/"))),
                other => other,
            };
        }
        if let Some(options) = schema["anyOf"].as_array() {
            let given = options.iter().find(|option| option["type"] != "null").unwrap_or(schema);
            return Self::read(given, root);
        }
        let choices = choices(schema);
        if !choices.is_empty() {
            return Shape::Choice(choices);
        }
        let kind = match &schema["type"] {
            Json::Array(kinds) => kinds.iter().find_map(|kind| kind.as_str().filter(|kind| *kind != "null")),
            kind => kind.as_str(),
        };
        match kind {
            Some("object") if schema["properties"].is_object() => Self::read_table(schema, root),
            Some("object") => Shape::Map {
                names: schema["propertyNames"]["format"].as_str().and_then(Grammar::named),
                values: Box::new(Self::read(&schema["additionalProperties"], root)),
            },
            Some("array") => Shape::List(Box::new(Self::read(&schema["items"], root))),
            Some("boolean") => Shape::Boolean,
            Some("integer") => Shape::Integer {
                max: match schema["format"].as_str() {
                    Some("uint32") => u64::from(u32::MAX),
                    _ => i64::MAX as u64,
                },
            },
            _ => Shape::Text(schema["format"].as_str().and_then(Grammar::named)),
        }
    }

    fn read_table(schema: &Json, root: &Json) -> Self {
        let required = |name: &str| {
            schema["required"]
                .as_array()
                .is_some_and(|names| names.iter().any(|n| n == name))
        };
        let keys = schema["properties"].as_object().into_iter().flatten().map(|(name, inner)| {
            let key = Key {
                shape: Self::read(inner, root),
                required: required(name),
            };
            (name.clone(), key)
        });
        Shape::Table { keys: keys.collect() }
    }

    /// What belongs here, in words for a message.
    fn expected(&self) -> String {
        match self {
            Shape::Table { .. } | Shape::Map { .. } => "a section".to_owned(),
            Shape::List(inner) if matches!(**inner, Shape::Table { .. }) => "a list of sections".to_owned(),
            Shape::List(_) => "a list such as `[\"…\"]`".to_owned(),
            Shape::Text(grammar) => grammar.map_or("a text in quotes", |grammar| grammar.expected).to_owned(),
            Shape::Integer { .. } => "a whole number".to_owned(),
            Shape::Boolean => "`true` or `false`".to_owned(),
            Shape::Choice(words) => one_of(words),
        }
    }
}

/// A walk through document and shape side by side.
struct Visit<'a> {
    document: &'a Document,
    root: &'a Shape,
    problems: Vec<Problem>,
}

impl Visit<'_> {
    fn node(&mut self, key: &str, node: &Node, shape: &Shape) {
        match (shape, &node.value) {
            (Shape::Table { keys }, Value::Table(entries)) => self.table(key, node, keys, entries),
            (Shape::Map { names, values }, Value::Table(entries)) => {
                for (name, entry) in entries {
                    if let Some(Err(message)) = names.map(|grammar| (grammar.check)(name)) {
                        self.report(key, &entry.key, message, None);
                    }
                    self.node(&join(key, name), &entry.node, values);
                }
            }
            (Shape::List(inner), Value::List(items)) => {
                for (index, item) in items.iter().enumerate() {
                    self.node(&format!("{key}[{index}]"), item, inner);
                }
            }
            (Shape::Text(grammar), Value::Text(text)) => {
                if let Some(Err(message)) = grammar.map(|grammar| (grammar.check)(text)) {
                    self.report(key, &node.origin, format!("`{key}`: {message}"), None);
                }
            }
            (Shape::Integer { max }, Value::Integer(number)) => {
                if u64::try_from(*number).map_or(true, |number| number > *max) {
                    self.report(key, &node.origin, format!("`{key}` is {number}, outside 0 to {max}"), None);
                }
            }
            (Shape::Boolean, Value::Boolean(_)) => {}
            (Shape::Choice(words), Value::Text(text)) if words.contains(text) => {}
            (Shape::Choice(words), Value::Text(text)) => {
                let message = format!("`{key}` is {}; expected {}", quoted(text), one_of(words));
                let help = if shared_secret(text, words) {
                    Some("whoever can verify a shared secret can also forge with it: let the issuer sign with ES256".to_owned())
                } else {
                    did_you_mean(text, words.iter().map(String::as_str))
                };
                self.report(key, &node.origin, message, help);
            }
            (shape, value) => {
                let message = format!("`{key}` is {}; expected {}", found(value), shape.expected());
                self.report(key, &node.origin, message, None);
            }
        }
    }

    fn table(&mut self, section: &str, node: &Node, keys: &BTreeMap<String, Key>, entries: &BTreeMap<String, Entry>) {
        let mut misspelt = Vec::new();
        for (name, entry) in entries {
            match keys.get(name) {
                Some(key) => self.node(&join(section, name), &entry.node, &key.shape),
                None => misspelt.extend(self.unknown(section, name, &entry.key, keys)),
            }
        }
        for (name, key) in keys {
            if key.required && !entries.contains_key(name) && !misspelt.contains(name) {
                let what = match key.shape {
                    Shape::Table { .. } => format!("section [{}] is missing", join(section, name)),
                    _ => format!("`{name}` is missing in {}", section_name(section)),
                };
                self.report(&join(section, name), &node.origin, what, None);
            }
        }
    }

    /// Reports an unknown key, and returns the known key that was probably meant.
    fn unknown(&mut self, section: &str, name: &str, origin: &Origin, keys: &BTreeMap<String, Key>) -> Option<String> {
        let message = format!("unknown key {} in {}", quoted(name), section_name(section));
        let meant = nearest(name, keys.keys().map(String::as_str)).map(str::to_owned);
        let help = meant
            .as_ref()
            .map(|meant| format!("did you mean `{meant}`?"))
            .unwrap_or_else(|| {
                let mut homes = Vec::new();
                homes_of(name, "", self.root, &mut homes);
                match &homes[..] {
                    [home] => format!("it belongs in {}", section_name(home)),
                    _ => format!("known here: {}", keys.keys().cloned().collect::<Vec<_>>().join(", ")),
                }
            });
        self.report(&join(section, name), origin, message, Some(help));
        meant
    }

    fn report(&mut self, key: &str, origin: &Origin, message: String, help: Option<String>) {
        let problem = Problem {
            help,
            ..Problem::error(key, message)
        };
        self.problems.push(problem.at(self.document.place_of(origin)));
    }
}

/// Finds every section that has a key of this name.
fn homes_of(name: &str, section: &str, shape: &Shape, homes: &mut Vec<String>) {
    match shape {
        Shape::Table { keys } => {
            if keys.contains_key(name) {
                homes.push(section.to_owned());
            }
            for (inner, key) in keys {
                homes_of(name, &join(section, inner), &key.shape, homes);
            }
        }
        Shape::List(inner) => homes_of(name, &format!("{section}[]"), inner, homes),
        _ => {}
    }
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

fn found(value: &Value) -> &'static str {
    match value {
        Value::Text(_) => "a text",
        Value::Integer(_) => "a number",
        Value::Boolean(_) => "a truth value",
        Value::Other(_, name) => name,
        Value::List(_) => "a list",
        Value::Table(_) => "a section",
    }
}

fn one_of(words: &[String]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match &quoted[..] {
        [one] => one.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
        [] => String::new(),
    }
}

/// Whether the text is an HMAC algorithm. They are missing on purpose, so the message must not take one for a
/// misspelling.
fn shared_secret(text: &str, words: &[String]) -> bool {
    text.starts_with("HS") && words.iter().any(|word| word == "ES256")
}

/// The words that the schema allows, if it lists them.
fn choices(schema: &Json) -> Vec<String> {
    let words = |list: &Json| -> Vec<String> {
        let words = list.as_array().into_iter().flatten().filter_map(Json::as_str);
        words.map(str::to_owned).collect()
    };
    match schema["oneOf"].as_array() {
        Some(options) => options
            .iter()
            .flat_map(|option| match option["const"].as_str() {
                Some(word) => vec![word.to_owned()],
                None => words(&option["enum"]),
            })
            .collect(),
        None => words(&schema["enum"]),
    }
}

fn parses<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<(), String> {
    text.parse::<T>().map(drop).map_err(|error| error.to_string())
}

fn span(text: &str) -> Result<(), String> {
    match super::Span::parse(text) {
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
        let schema = super::super::schema();
        for (name, definition) in schema["$defs"].as_object().unwrap() {
            let text = definition["type"] == "string" && choices(definition).is_empty();
            assert!(!text || Grammar::named(name).is_some(), "{name}");
        }
    }
}
