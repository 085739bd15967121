//! The configuration as a tree whose values know where they come from: a position in the file, or an environment
//! variable.
//!
//! It knows TOML, overrides and `${VAR}`. Which keys exist and what they mean is up to `key_schema` and `check`.

use super::Variables;
use crate::domain::{Problem, SourceLocation, quoted};
use jsonschema::JsonType;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

const PREFIX: &str = "GUARDIAN__";

/// The parsed file, with its text for line and column numbers.
pub(super) struct Document {
    file: PathBuf,
    text: String,
    pub root: Node,
}

pub(super) struct Node {
    pub value: Value,
    pub source: ValueSource,
}

pub(super) enum Value {
    Text(String),
    Integer(i64),
    Boolean(bool),
    /// A TOML value that no setting accepts, and what to call it in a message.
    Other(&'static str),
    List(Vec<Node>),
    Table(BTreeMap<String, TableEntry>),
}

/// A value in a table, with the origin of its key.
pub(super) struct TableEntry {
    pub key: ValueSource,
    pub node: Node,
}

/// Where a key or value was written.
#[derive(Clone)]
pub(super) enum ValueSource {
    Offset(usize),
    Variable(String),
}

/// Reads the file's text.
pub(super) fn read_file(path: &Path) -> Result<String, Problem> {
    std::fs::read_to_string(path).map_err(|error| {
        let why = match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
            std::io::ErrorKind::InvalidData => "it is not UTF-8 text".to_owned(),
            _ => error.to_string(),
        };
        Problem::error("", format!("cannot read the configuration `{}`: {why}", path.display()))
            .help("name another with `--config`, or run `guardian quickstart`, which needs none")
    })
}

impl Document {
    /// Parses the text; all syntax errors are reported.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Vec<Problem>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        let document = Self {
            file: file.to_owned(),
            text: text.to_owned(),
            root: Node::table(&table),
        };
        if errors.is_empty() {
            return Ok(document);
        }
        Err(super::sorted(
            errors
                .iter()
                .map(|error| {
                    let at = error.span().map_or(0, |span| span.start);
                    Problem::error("", format!("not TOML: {}", error.message().replace('\n', ", ")))
                        .at(document.location_of(&ValueSource::Offset(at)))
                })
                .collect(),
        ))
    }

    /// Replaces values of the file by the variables `GUARDIAN__SECTION__KEY`. `type_of` says which type a key takes.
    pub fn overlay(&mut self, variables: &Variables, type_of: &dyn Fn(&[String]) -> Option<JsonType>) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (name, text) in variables.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
            let path: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_lowercase).collect();
            let setting = Override {
                path: &path,
                text,
                source: ValueSource::Variable(name.clone()),
                type_of,
            };
            if let Err(message) = setting.set(&mut self.root, 0) {
                problems.push(Problem::error(path.join("."), message).at(SourceLocation::Variable(name.clone())));
            }
        }
        problems
    }

    /// Replaces `${VAR}` in every string of the file; `$${` stands for a literal `${`. Values from variables are left as
    /// they are.
    pub fn expand(&mut self, variables: &Variables) -> Vec<Problem> {
        let mut problems = Vec::new();
        self.root.expand("", variables, &mut |key, source, message| {
            problems.push((Problem::error(key, message), source.clone()));
        });
        problems
            .into_iter()
            .map(|(problem, source)| problem.at(self.location_of(&source)))
            .collect()
    }

    pub fn to_json(&self) -> Json {
        self.root.to_json()
    }

    /// The place of an origin, with line and column.
    pub fn location_of(&self, source: &ValueSource) -> SourceLocation {
        match source {
            ValueSource::Variable(name) => SourceLocation::Variable(name.clone()),
            ValueSource::Offset(offset) => SourceLocation::in_file(&self.file, &self.text, *offset),
        }
    }

    /// Gives a problem its place: where its key stands, or else the nearest section around it.
    pub fn locate(&self, problem: Problem) -> Problem {
        if problem.location != SourceLocation::Nowhere {
            return problem;
        }
        let mut node = &self.root;
        for step in key_segments(&problem.key) {
            match node.child(step) {
                Some(child) => node = child,
                None => break,
            }
        }
        let location = self.location_of(&node.source);
        problem.at(location)
    }

    /// An error of the file as a whole.
    pub fn file_problem(&self, message: String) -> Problem {
        Problem::error("", message).at(self.location_of(&ValueSource::Offset(0)))
    }
}

/// Splits a key: `servers[0].url` is `servers`, `0`, `url`. A quoted step may hold dots.
fn key_segments(key: &str) -> Vec<&str> {
    let mut steps = Vec::new();
    let mut rest = key;
    while !rest.is_empty() {
        let (step, after) = match rest.strip_prefix('"') {
            Some(inside) => inside.split_once('"').unwrap_or((inside, "")),
            None => rest.split_at(rest.find(['.', '[', ']']).unwrap_or(rest.len())),
        };
        if !step.is_empty() {
            steps.push(step);
        }
        rest = after.trim_start_matches(['.', '[', ']']);
    }
    steps
}

impl Node {
    fn table(table: &Spanned<DeTable<'_>>) -> Self {
        Self {
            source: ValueSource::Offset(table.span().start),
            value: Value::of_table(table.get_ref()),
        }
    }

    fn of(value: &Spanned<DeValue<'_>>, source: &dyn Fn(usize) -> ValueSource) -> Self {
        let plain = |text: &str| text.replace('_', "");
        Self {
            source: source(value.span().start),
            value: match value.get_ref() {
                DeValue::String(text) => Value::Text(text.to_string()),
                DeValue::Integer(number) => match i64::from_str_radix(&plain(number.as_str()), number.radix()) {
                    Ok(number) => Value::Integer(number),
                    Err(_) => Value::Other("an integer out of range"),
                },
                DeValue::Float(_) => Value::Other("a decimal number"),
                DeValue::Boolean(truth) => Value::Boolean(*truth),
                DeValue::Datetime(_) => Value::Other("a date"),
                DeValue::Array(items) => Value::List(items.iter().map(|item| Self::of(item, source)).collect()),
                DeValue::Table(table) => Value::of_entries(table, source),
            },
        }
    }

    pub fn child(&self, step: &str) -> Option<&Node> {
        match &self.value {
            Value::Table(entries) => entries.get(step).map(|entry| &entry.node),
            Value::List(items) => items.get(step.parse::<usize>().ok()?),
            _ => None,
        }
    }

    fn expand(&mut self, key: &str, variables: &Variables, report: &mut dyn FnMut(&str, &ValueSource, String)) {
        match &mut self.value {
            Value::Text(text) if matches!(self.source, ValueSource::Offset(_)) => match expanded(text, variables) {
                Ok(expanded) => *text = expanded,
                Err(message) => report(key, &self.source, format!("`{key}` {message}")),
            },
            Value::List(items) => items
                .iter_mut()
                .enumerate()
                .for_each(|(index, item)| item.expand(&format!("{key}[{index}]"), variables, report)),
            Value::Table(entries) => entries
                .iter_mut()
                .for_each(|(name, entry)| entry.node.expand(&join(key, name), variables, report)),
            Value::Text(_) | Value::Integer(_) | Value::Boolean(_) | Value::Other(_) => {}
        }
    }

    fn to_json(&self) -> Json {
        match &self.value {
            Value::Text(text) => Json::from(text.as_str()),
            // A number with a fraction: of no type that a key takes.
            Value::Other(_) => Json::from(0.5),
            Value::Integer(number) => Json::from(*number),
            Value::Boolean(truth) => Json::from(*truth),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Table(entries) => Json::Object(entries.iter().map(|(key, e)| (key.clone(), e.node.to_json())).collect()),
        }
    }
}

/// A variable `GUARDIAN__SECTION__KEY` and where its value goes.
struct Override<'a> {
    path: &'a [String],
    text: &'a str,
    source: ValueSource,
    type_of: &'a dyn Fn(&[String]) -> Option<JsonType>,
}

impl Override<'_> {
    /// Sets the value inside `node`, to which the first `depth` steps of the path lead.
    fn set(&self, node: &mut Node, depth: usize) -> Result<(), String> {
        let Some(step) = self.path.get(depth) else {
            *node = self.node(self.value()?);
            return Ok(());
        };
        let missing = || match (self.type_of)(&self.path[..=depth]) {
            Some(JsonType::Array) => self.node(Value::List(Vec::new())),
            _ => self.node(Value::Table(BTreeMap::new())),
        };
        let inner = match &mut node.value {
            Value::Table(entries) => {
                let entry = entries.entry(step.clone()).or_insert_with(|| TableEntry {
                    key: self.source.clone(),
                    node: missing(),
                });
                &mut entry.node
            }
            Value::List(items) => {
                let index: usize = step
                    .parse()
                    .map_err(|_| format!("{} is not an index; the first entry is 0", quoted(step)))?;
                if index > items.len() {
                    return Err(format!("entry {index} cannot follow {} entries", items.len()));
                }
                if index == items.len() {
                    items.push(missing());
                }
                &mut items[index]
            }
            _ => return Err(format!("{} lies inside a setting that is not a section", quoted(step))),
        };
        self.set(inner, depth + 1)
    }

    /// The text as the type that the key takes. What does not convert stays text, for `key_schema` to report.
    fn value(&self) -> Result<Value, String> {
        let text = || Value::Text(self.text.to_owned());
        Ok(match (self.type_of)(self.path) {
            Some(JsonType::Integer) => self
                .text
                .trim()
                .replace('_', "")
                .parse()
                .map_or_else(|_| text(), Value::Integer),
            Some(JsonType::Boolean) => self.text.trim().parse().map_or_else(|_| text(), Value::Boolean),
            Some(JsonType::Array) if !self.text.trim_start().starts_with('[') => {
                let items = self.text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Value::List(items.map(|item| self.node(Value::Text(item.to_owned()))).collect())
            }
            Some(JsonType::Array | JsonType::Object) => {
                let parsed =
                    DeValue::parse(self.text).map_err(|_| "expected a TOML value such as `[\"a\", \"b\"]` or `{ key = 1 }`")?;
                Node::of(&parsed, &|_| self.source.clone()).value
            }
            _ => text(),
        })
    }

    fn node(&self, value: Value) -> Node {
        Node {
            value,
            source: self.source.clone(),
        }
    }
}

impl Value {
    fn of_table(table: &DeTable<'_>) -> Self {
        Self::of_entries(table, &ValueSource::Offset)
    }

    fn of_entries(table: &DeTable<'_>, source: &dyn Fn(usize) -> ValueSource) -> Self {
        let entries = table.iter().map(|(key, value)| {
            let entry = TableEntry {
                key: source(key.span().start),
                node: Node::of(value, source),
            };
            (key.get_ref().to_string(), entry)
        });
        Self::Table(entries.collect())
    }
}

/// Joins section and name: `a.b`. A name that is not a bare TOML key is quoted.
pub(super) fn join(section: &str, name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    let name = if bare { name.to_owned() } else { format!("\"{name}\"") };
    match section {
        "" => name,
        section => format!("{section}.{name}"),
    }
}

/// Replaces `${VAR}` once: a variable's value is not expanded again.
fn expanded(text: &str, variables: &Variables) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if let Some(before) = rest[..at].strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let (name, after) = rest[at + 2..].split_once('}').ok_or("has a `${` without its `}`")?;
        let value = variables
            .get(name)
            .ok_or_else(|| format!("asks for the environment variable {}, which is not set", quoted(name)))?;
        out.push_str(value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_replaced_and_a_doubled_dollar_is_not() {
        let variables = Variables::from([("A".to_owned(), "x${B}".to_owned())]);
        assert_eq!(expanded("<${A}> $${A} $5", &variables).unwrap(), "<x${B}> ${A} $5");
        assert!(expanded("${B}", &variables).is_err());
        assert!(expanded("${A", &variables).is_err());
    }

    #[test]
    fn a_key_path_falls_into_its_steps() {
        assert_eq!(key_segments("servers[0].url"), ["servers", "0", "url"]);
        assert_eq!(
            key_segments("limits.tools.\"demo/a.b\".rate"),
            ["limits", "tools", "demo/a.b", "rate"]
        );
    }
}
