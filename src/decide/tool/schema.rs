//! Writes the Cedar schema of a catalogue: one action per tool, with the tool's arguments as types. It is written as text
//! for people and as JSON for Cedar, which parses JSON twenty times faster; a test holds that both say the same.

use super::arg_types::{ArgField, ArgSchema, ArgType};
use super::primitive_kind::PrimitiveKind;
use crate::domain::{PinStatus, ServerName, ToolEntry};
use cedar_policy::Schema;
use serde_json::{Map, Value, json};
use std::fmt::{self, Write};

/// A Cedar action as the schema declares it: that of a tool, or the one all resources or all prompts share.
pub(in crate::decide) struct Action<'a> {
    pub kind: PrimitiveKind,
    /// `<server>/<tool>`, or the shared action of its kind.
    pub id: &'a str,
    pub groups: Vec<&'a str>,
    /// The arguments; `None` declares the action by name only.
    pub input: Option<&'a ArgSchema>,
}

/// The action groups that exist in every catalogue.
pub(in crate::decide) const GROUPS: [&str; 4] = ["call_tool", "read_only", "destructive", "unannotated"];

/// Names of actions and groups that a server may not have, because a server's name is the group of its tools.
pub(in crate::decide) const RESERVED: [&str; 10] = [
    "call_tool",
    "read_only",
    "destructive",
    "unannotated",
    "read_resource",
    "get_prompt",
    "list",
    "complete",
    "subscribe",
    "task",
];

/// The groups of a tool's action. The group of its class follows from pinned annotations only: a server's own claim must
/// not widen access.
pub(in crate::decide) fn groups<'a>(server: &'a ServerName, tool: &ToolEntry) -> Vec<&'a str> {
    let mut groups = vec!["call_tool", server.as_str()];
    if tool.pin_status != PinStatus::Unapproved {
        groups.extend(tool.class.group());
    }
    groups
}

/// The schema of these groups and actions as text.
pub(in crate::decide) fn schema_text<'a>(groups: impl IntoIterator<Item = &'a str>, actions: &[Action<'_>]) -> String {
    let mut text = HEAD.to_owned();
    for group in groups {
        text.push_str(&format!("    action {};\n", Quoted(group)));
    }
    for action in actions {
        action.write(&mut text).expect("a string takes what is written to it");
    }
    text.push_str("}\n");
    text
}

/// The same schema, parsed from its JSON form.
pub(in crate::decide) fn schema<'a>(groups: impl IntoIterator<Item = &'a str>, actions: &[Action<'_>]) -> Result<Schema, String> {
    Schema::from_json_value(schema_json(groups, actions)).map_err(|error| error.to_string())
}

fn schema_json<'a>(groups: impl IntoIterator<Item = &'a str>, actions: &[Action<'_>]) -> Value {
    let mut all: Map<String, Value> = groups.into_iter().map(|group| (group.to_owned(), json!({}))).collect();
    all.extend(actions.iter().map(|action| (action.id.to_owned(), action.json())));
    let text = |name: &str| {
        let text = json!({ "type": "String", "required": ALWAYS.contains(&name) });
        (name.to_owned(), text)
    };
    let caller = json!({
        "memberOfTypes": ["Role"],
        "shape": { "type": "Record", "attributes": PRINCIPAL.map(text).into_iter().collect::<Map<_, _>>() },
    });
    let ware = |kind: PrimitiveKind| {
        let attribute = kind.attribute().map(|name| (name.to_owned(), json!({ "type": "String" })));
        let attributes: Map<String, Value> = attribute.into_iter().collect();
        json!({ "memberOfTypes": ["Server"], "shape": { "type": "Record", "attributes": attributes } })
    };
    json!({ "Guardian": {
        "entityTypes": {
            "Role": {}, "Server": {}, "Tool": { "memberOfTypes": ["Server"] }, "Resource": ware(PrimitiveKind::Resource),
            "Prompt": ware(PrimitiveKind::Prompt), "User": caller, "Service": caller,
        },
        "actions": all,
    } })
}

/// The attributes that a principal may have.
pub(in crate::decide) const PRINCIPAL: [&str; 6] = ["assurance", "client", "email", "environment", "method", "tenant"];

/// The attributes of prompts and resources.
pub(in crate::decide) const RESOURCE: [&str; 2] = ["name", "uri"];

/// The attributes that every principal has.
const ALWAYS: [&str; 2] = ["environment", "method"];

const HEAD: &str = "\
namespace Guardian {
    entity Role;
    entity Server;
    entity Tool in [Server];
    entity Resource in [Server] {
        uri: String,
    };
    entity Prompt in [Server] {
        name: String,
    };
    entity User in [Role] {
        assurance?: String,
        client?: String,
        email?: String,
        environment: String,
        method: String,
        tenant?: String,
    };
    entity Service in [Role] {
        assurance?: String,
        client?: String,
        email?: String,
        environment: String,
        method: String,
        tenant?: String,
    };
";

impl Action<'_> {
    fn write(&self, text: &mut String) -> fmt::Result {
        write!(text, "    action {}", Quoted(self.id))?;
        for (index, group) in self.groups.iter().enumerate() {
            let before = if index == 0 { " in [" } else { ", " };
            write!(text, "{before}{}", Quoted(group))?;
        }
        if !self.groups.is_empty() {
            text.push(']');
        }
        let Some(input) = self.input else {
            return text.write_str(";\n");
        };
        write!(
            text,
            " appliesTo {{
        principal: [User, Service],
        resource: [{}],
        context: {{
            input: ",
            self.kind.entity()
        )?;
        write_fields(input, 12, text)?;
        text.write_str(
            ",
            scopes: Set<String>,
            scope_named: Bool,
            source_ip: ipaddr,
            now: datetime,
            hour: Long,
            weekday: Long,
            session?: String,
        },
    };
",
        )
    }

    fn json(&self) -> Value {
        let groups: Vec<Value> = self.groups.iter().map(|group| json!({ "id": group })).collect();
        let mut action = json!({ "memberOf": groups });
        if let Some(input) = self.input {
            let context = json!({
                "input": json_record(input),
                "scopes": { "type": "Set", "element": { "type": "String" } },
                "scope_named": { "type": "Boolean" },
                "source_ip": { "type": "Extension", "name": "ipaddr" },
                "now": { "type": "Extension", "name": "datetime" },
                "hour": { "type": "Long" },
                "weekday": { "type": "Long" },
                "session": { "type": "String", "required": false },
            });
            action["appliesTo"] = json!({
                "principalTypes": ["User", "Service"],
                "resourceTypes": [self.kind.entity()],
                "context": { "type": "Record", "attributes": context },
            });
        }
        action
    }
}

fn json_record(fields: &ArgSchema) -> Value {
    let attribute = |(name, field): (&String, &ArgField)| {
        let mut shape = json_type(field.arg_type.as_ref().ok()?);
        shape["required"] = json!(field.required);
        Some((name.clone(), shape))
    };
    json!({ "type": "Record", "attributes": fields.iter().filter_map(attribute).collect::<Map<_, _>>() })
}

fn json_type(arg_type: &ArgType) -> Value {
    match arg_type {
        ArgType::String => json!({ "type": "String" }),
        ArgType::Long => json!({ "type": "Long" }),
        ArgType::Bool => json!({ "type": "Boolean" }),
        ArgType::Decimal => json!({ "type": "Extension", "name": "decimal" }),
        ArgType::Set(element) => json!({ "type": "Set", "element": json_type(element) }),
        ArgType::Record(fields) => json_record(fields),
    }
}

fn write_fields(fields: &ArgSchema, indent: usize, text: &mut String) -> fmt::Result {
    let visible = fields.iter();
    let visible: Vec<_> = visible
        .filter_map(|(name, field)| Some((name, field.required, field.arg_type.as_ref().ok()?)))
        .collect();
    if visible.is_empty() {
        return text.write_str("{}");
    }
    text.push_str("{\n");
    for (name, required, arg_type) in visible {
        let mark = if required { "" } else { "?" };
        write!(text, "{:indent$}    {}{mark}: ", "", Quoted(name))?;
        write_type(arg_type, indent + 4, text)?;
        text.push_str(",\n");
    }
    write!(text, "{:indent$}}}", "")
}

fn write_type(arg_type: &ArgType, indent: usize, text: &mut String) -> fmt::Result {
    match arg_type {
        ArgType::String => text.write_str("String"),
        ArgType::Long => text.write_str("Long"),
        ArgType::Bool => text.write_str("Bool"),
        ArgType::Decimal => text.write_str("decimal"),
        ArgType::Record(fields) => write_fields(fields, indent, text),
        ArgType::Set(element) => {
            text.push_str("Set<");
            write_type(element, indent, text)?;
            text.write_str(">")
        }
    }
}

/// A Cedar string literal. Everything but printable ASCII and letters or digits is escaped.
pub(in crate::decide) struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for char in self.0.chars() {
            match char {
                '"' | '\\' => write!(f, "\\{char}")?,
                ' '..='~' => f.write_char(char)?,
                _ if char.is_alphanumeric() => f.write_char(char)?,
                _ => write!(f, "\\u{{{:x}}}", u32::from(char))?,
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::super::arg_types::arguments;
    use super::*;
    use cedar_policy::SchemaFragment;

    /// The schema text, after checking that the JSON form says the same.
    fn one(id: &str, schema: Value) -> String {
        let fields = arguments(&schema);
        let actions = [Action {
            kind: PrimitiveKind::Tool,
            id,
            groups: vec!["call_tool", "s"],
            input: Some(&fields),
        }];
        let text = schema_text(["call_tool", "s"], &actions);
        let of_text = SchemaFragment::from_cedarschema_str(&text)
            .unwrap_or_else(|error| panic!("{error}: {text}"))
            .0;
        let of_json = SchemaFragment::from_json_value(schema_json(["call_tool", "s"], &actions)).unwrap();
        assert_eq!(
            plain(of_text.to_json_value().unwrap()),
            plain(of_json.to_json_value().unwrap())
        );
        self::schema(["call_tool", "s"], &actions).unwrap();
        text
    }

    /// Normalises a schema: removes default values, and unifies the two ways to write a type.
    fn plain(value: Value) -> Value {
        match value {
            Value::Object(members) => {
                let is_type = |members: &Map<String, Value>| members.get("type").is_some_and(|name| name == "EntityOrCommon");
                let mut members = members;
                if is_type(&members) {
                    let name = members.remove("name").unwrap();
                    let name = name.as_str().unwrap().trim_start_matches("__cedar::");
                    let extension = matches!(name, "ipaddr" | "datetime" | "decimal");
                    if extension {
                        members.insert("type".to_owned(), json!("Extension"));
                        members.insert("name".to_owned(), json!(name));
                    } else {
                        members.insert("type".to_owned(), json!(if name == "Bool" { "Boolean" } else { name }));
                    }
                }
                let is_default = |name: &str, value: &Value| match name {
                    "required" => *value == json!(true),
                    "annotations" => true,
                    "appliesTo" => *value == json!({}),
                    _ => value.is_null() || *value == json!([]),
                };
                let plain = members.into_iter().map(|(name, value)| (name, plain(value)));
                Value::Object(plain.filter(|(name, value)| !is_default(name, value)).collect())
            }
            Value::Array(elements) => elements.into_iter().map(plain).collect(),
            other => other,
        }
    }

    #[test]
    fn a_schema_is_readable() {
        let text = one(
            "s/move-file",
            json!({
                "type": "object",
                "required": ["from"],
                "properties": {
                    "from": { "type": "string" },
                    "to-dir": { "type": "string" },
                    "options": { "type": "object", "properties": { "retries": { "type": "integer" } } },
                    "tags": { "type": "array", "items": { "type": "string" } },
                    "any": {},
                },
            }),
        );
        let action = text.split_once("    action \"s/move-file\"").unwrap().1;
        assert_eq!(
            action,
            r#" in ["call_tool", "s"] appliesTo {
        principal: [User, Service],
        resource: [Tool],
        context: {
            input: {
                "from": String,
                "options"?: {
                    "retries"?: Long,
                },
                "tags"?: Set<String>,
                "to-dir"?: String,
            },
            scopes: Set<String>,
            scope_named: Bool,
            source_ip: ipaddr,
            now: datetime,
            hour: Long,
            weekday: Long,
            session?: String,
        },
    };
}
"#
        );
    }

    #[test]
    fn no_property_name_breaks_the_schema() {
        for name in [
            "",
            "in",
            "if",
            "String",
            "__entity",
            "__extn",
            "__cedar",
            "a b",
            "a\"b",
            "a\\b",
            "ä",
            "\u{0}",
            "\u{202e}",
            "🦀",
            "*",
            "Guardian::Tool",
        ] {
            one("s/t", json!({ "properties": { name: { "type": "string" } } }));
        }
    }
}
