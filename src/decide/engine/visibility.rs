//! Stops a caller from bypassing a policy by sending an argument in a form that the policy cannot see.
//!
//! Cedar sees only arguments that a tool declares and that have a Cedar type. If a policy tests `context.input has path`,
//! and the tool has no `path` of such a type, the test is false, whatever the call carries. So when a call carries an
//! argument that a policy names and cannot see (a blind spot), that policy's result is not used: a forbid refuses, a
//! permit does not count.

use crate::decide::policy::rule::{Rule, RuleIndex};
use crate::decide::policy::usage::ArgumentRef;
use crate::decide::tool::arg_types::{ArgField, ArgSchema, ArgType};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// A blind spot: an argument that a policy names and may not see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::decide) struct BlindSpot {
    pub rule: RuleIndex,
    /// Position in the policy's mentions.
    pub argument: usize,
    /// The tool declares the argument with another type than the policy uses it as.
    pub conflict: bool,
}

/// Why a policy cannot see an argument that a call carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::decide) enum WhyInvisible {
    /// The tool's schema does not declare it.
    Undeclared,
    /// The tool's schema gives it no type that Cedar has, or another type than the policy takes it for.
    Untyped,
}

/// The possible blind spots of a policy: its mentions that are not always visible.
pub(super) fn possible_blind_spots(
    index: RuleIndex,
    rule: &Rule,
    fields: &ArgSchema,
    conflicts: &BTreeSet<(RuleIndex, usize)>,
) -> Vec<BlindSpot> {
    let blind_spot = |(mention, named): (usize, &ArgumentRef)| {
        let conflict = conflicts.contains(&(index, mention));
        let blind_spot = BlindSpot {
            rule: index,
            argument: mention,
            conflict,
        };
        (conflict || !always_visible(fields, &named.path, named.value)).then_some(blind_spot)
    };
    rule.usage.arguments.iter().enumerate().filter_map(blind_spot).collect()
}

/// Whether the call triggers this blind spot: it carries an argument here that the policy cannot see.
pub(super) fn why_blind(
    blind_spot: &BlindSpot,
    rule: &Rule,
    fields: &ArgSchema,
    arguments: &Map<String, Value>,
) -> Option<WhyInvisible> {
    let argument = &rule.usage.arguments[blind_spot.argument];
    if blind_spot.conflict {
        is_present(&argument.path, arguments).then_some(WhyInvisible::Untyped)
    } else {
        why_invisible(fields, &argument.path, argument.value, arguments)
    }
}

fn is_present(path: &[String], arguments: &Map<String, Value>) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return true;
    };
    let value = rest
        .iter()
        .try_fold(arguments.get(first), |value, name| Some(value?.get(name)));
    value.flatten().is_some_and(|value| !value.is_null())
}

/// Whether everything at `path` is visible, whatever a call carries.
fn always_visible(fields: &ArgSchema, path: &[String], value: bool) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return !value;
    };
    match (fields.get(first).map(|field| &field.arg_type), rest) {
        (Some(Ok(arg_type)), []) => !value || closed(arg_type),
        (Some(Ok(ArgType::Record(inner))), rest) => always_visible(inner, rest, value),
        _ => false,
    }
}

/// Whether all of a value of this type is visible. A record may carry members that are not declared, so it is not.
fn closed(arg_type: &ArgType) -> bool {
    match arg_type {
        ArgType::String | ArgType::Long | ArgType::Bool | ArgType::Decimal => true,
        ArgType::Set(element) => closed(element),
        ArgType::Record(_) => false,
    }
}

fn why_invisible(fields: &ArgSchema, path: &[String], value: bool, members: &Map<String, Value>) -> Option<WhyInvisible> {
    let Some((first, rest)) = path.split_first() else {
        return if value {
            why_invisible_in_record(fields, members)
        } else {
            None
        };
    };
    let carried = members.get(first).filter(|carried| !carried.is_null())?;
    match (
        &fields.get(first).ok_or(WhyInvisible::Undeclared).map(|field| &field.arg_type),
        rest,
    ) {
        (Err(why), _) => Some(*why),
        (Ok(Ok(arg_type)), []) => {
            if value {
                why_invisible_in_value(arg_type, carried)
            } else {
                None
            }
        }
        (Ok(Ok(ArgType::Record(inner))), rest) => match carried {
            Value::Object(members) => why_invisible(inner, rest, value, members),
            _ => Some(WhyInvisible::Untyped),
        },
        _ => Some(WhyInvisible::Untyped),
    }
}

fn why_invisible_in_value(arg_type: &ArgType, value: &Value) -> Option<WhyInvisible> {
    match (arg_type, value) {
        (ArgType::Record(fields), Value::Object(members)) => why_invisible_in_record(fields, members),
        (ArgType::Set(element), Value::Array(values)) => values.iter().find_map(|value| why_invisible_in_value(element, value)),
        (ArgType::Record(_) | ArgType::Set(_), _) => Some(WhyInvisible::Untyped),
        _ => None,
    }
}

fn why_invisible_in_record(fields: &ArgSchema, members: &Map<String, Value>) -> Option<WhyInvisible> {
    let mut carried = members.iter().filter(|(_, value)| !value.is_null());
    carried.find_map(|(name, value)| match fields.get(name) {
        None => Some(WhyInvisible::Undeclared),
        Some(ArgField {
            arg_type: Ok(arg_type), ..
        }) => why_invisible_in_value(arg_type, value),
        Some(ArgField { arg_type: Err(_), .. }) => Some(WhyInvisible::Untyped),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::tool::arg_types::arguments;
    use serde_json::json;

    fn fields() -> ArgSchema {
        arguments(&json!({ "properties": {
            "path": { "type": "string" },
            "any": {},
            "filter": { "type": "object", "properties": { "owner": { "type": "string" }, "any": {} } },
            "list": { "type": "array", "items": { "type": "object", "properties": { "a": { "type": "string" } } } },
        } }))
    }

    fn hides(path: &str, value: bool, arguments: Value) -> bool {
        let path: Vec<String> = path.split('.').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let Value::Object(members) = arguments else { panic!() };
        let hides = why_invisible(&fields(), &path, value, &members).is_some();
        assert!(
            !hides || !always_visible(&fields(), &path, value),
            "what is certain is never unseen"
        );
        hides
    }

    #[test]
    fn a_declared_argument_is_seen() {
        assert!(!hides("path", true, json!({ "path": "x" })));
        assert!(!hides(
            "filter.owner",
            true,
            json!({ "filter": { "owner": "x", "other": 1 } })
        ));
        assert!(always_visible(&fields(), &["path".to_owned()], true));
    }

    #[test]
    fn an_argument_that_is_not_carried_hides_nothing() {
        for path in ["any", "file", "filter.any", "filter.file", "file.name"] {
            assert!(
                !hides(path, true, json!({ "path": "x", "filter": { "owner": "x" } })),
                "{path}"
            );
            assert!(!hides(path, true, json!({ "any": null, "file": null })), "{path}");
        }
    }

    #[test]
    fn holes_and_undeclared_arguments_are_noticed_at_any_depth() {
        assert!(hides("any", false, json!({ "any": "x" })));
        assert!(hides("file", false, json!({ "file": "x" })));
        assert!(hides("file.name", true, json!({ "file": "x" })));
        assert!(hides("filter.any", true, json!({ "filter": { "any": 1 } })));
        assert!(hides("filter.file", false, json!({ "filter": { "file": 1 } })));
    }

    #[test]
    fn whoever_reads_a_record_whole_reads_all_that_is_in_it() {
        assert!(!hides("filter", true, json!({ "filter": { "owner": "x" } })));
        assert!(hides("filter", true, json!({ "filter": { "owner": "x", "more": 1 } })));
        assert!(!hides("filter", false, json!({ "filter": { "more": 1 } })));
        assert!(hides("list", true, json!({ "list": [{ "a": "x" }, { "b": 1 }] })));
        assert!(hides("", true, json!({ "file": 1 })));
        assert!(!hides("", true, json!({ "path": "x" })));
    }
}
