//! The texts in calls that no policy looks at: what they say is judged by nobody, whatever a policy for another argument
//! forbids. `guardian policy check` lists them.

use super::compiled_tool::CompiledTool;
use super::snapshot::Snapshot;
use crate::decide::policy::usage::ArgumentRef;
use crate::decide::tool::arg_types::{ArgSchema, ArgType};
use crate::domain::{ServerName, ToolName};
use serde::Serialize;
use serde_json::Value;

/// A text argument, or a list with texts in it, that no enforced policy looks at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct UnreadArgument {
    pub server: ServerName,
    pub tool: ToolName,
    /// From the root of the arguments: `filter.owner`.
    pub argument: String,
}

impl Snapshot {
    /// The text arguments of every tool that no enforced policy looks at, in the order of their names.
    pub fn unread_arguments(&self) -> Vec<UnreadArgument> {
        let unread = |(server, tool): (&ServerName, &CompiledTool)| {
            let (server, name) = (server.clone(), tool.definition.entry.name.clone());
            let rules = tool.index.judging().map(|index| self.compiled.rule(index));
            let looked_at: Vec<&ArgumentRef> = rules
                .filter(|rule| !rule.shadow)
                .flat_map(|rule| &rule.usage.arguments)
                .collect();
            let mut texts = Vec::new();
            add_texts(&tool.definition.arguments.arg_schema, &mut Vec::new(), &mut texts);
            let is_unread = move |path: &Vec<String>| !looked_at.iter().any(|argument| covers(argument, path));
            let schema = &tool.definition.entry.input_schema;
            let texts = texts.into_iter().filter(|path| !is_fixed(schema, path)).filter(is_unread);
            let unread = texts.map(move |path| UnreadArgument {
                server: server.clone(),
                tool: name.clone(),
                argument: path.join("."),
            });
            unread.collect::<Vec<_>>()
        };
        let mut all: Vec<UnreadArgument> = self.all_tools().flat_map(unread).collect();
        all.sort();
        all
    }
}

fn add_texts(fields: &ArgSchema, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    for (name, field) in fields {
        path.push(name.clone());
        match &field.arg_type {
            Ok(ArgType::Record(inner)) => add_texts(inner, path, found),
            Ok(arg_type) if has_text(arg_type) => found.push(path.clone()),
            Ok(_) | Err(_) => {}
        }
        path.pop();
    }
}

fn has_text(arg_type: &ArgType) -> bool {
    match arg_type {
        ArgType::String => true,
        ArgType::Set(element) => has_text(element),
        ArgType::Record(fields) => fields.values().filter_map(|field| field.arg_type.as_ref().ok()).any(has_text),
        ArgType::Long | ArgType::Bool | ArgType::Decimal => false,
    }
}

/// A text that can only be one of a few says nothing of its own.
fn is_fixed(schema: &Value, path: &[String]) -> bool {
    let property = path.iter().fold(schema, |schema, name| &schema["properties"][name]);
    ["enum", "const"].iter().any(|keyword| property.get(keyword).is_some())
}

/// Whether a policy that names `argument` looks at the text at `path`: it names it, or reads what it is in.
fn covers(argument: &ArgumentRef, path: &[String]) -> bool {
    argument.path == path || argument.value && path.starts_with(&argument.path)
}
