//! Stops a caller from bypassing a policy by sending an argument in a form that the policy cannot see.
//!
//! Cedar sees only arguments that a tool declares and that have a Cedar type. If a policy tests `context.input has path`,
//! and the tool has no `path` of such a type, the test is false, whatever the call carries. So when a call carries an
//! argument that a policy names and cannot see (a blind spot), that policy's result is not used: a forbid refuses, a
//! permit does not count.

use super::reads::Mention;
use super::rule::Rule;
use super::shape::{Field, Fields, Shape};
use super::slice::RuleIndex;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// A blind spot: an argument that a policy names and may not see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spot {
    pub rule: RuleIndex,
    /// Position in the policy's mentions.
    pub mention: usize,
    /// The tool declares the argument with another type than the policy uses it as.
    pub conflict: bool,
}

/// Why a policy cannot see an argument that a call carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unseen {
    /// The tool's schema does not declare it.
    Undeclared,
    /// The tool's schema gives it no type that Cedar has, or another type than the policy takes it for.
    Untyped,
}

/// The possible blind spots of a policy: its mentions that are not always visible.
pub(super) fn spots(index: RuleIndex, rule: &Rule, fields: &Fields, conflicts: &BTreeSet<(RuleIndex, usize)>) -> Vec<Spot> {
    let spot = |(mention, named): (usize, &Mention)| {
        let conflict = conflicts.contains(&(index, mention));
        let spot = Spot {
            rule: index,
            mention,
            conflict,
        };
        (conflict || !certain(fields, &named.path, named.value)).then_some(spot)
    };
    rule.looks.mentions.iter().enumerate().filter_map(spot).collect()
}

/// Whether the call triggers this blind spot: it carries an argument here that the policy cannot see.
pub(super) fn hidden(spot: &Spot, rule: &Rule, fields: &Fields, arguments: &Map<String, Value>) -> Option<Unseen> {
    let mention = &rule.looks.mentions[spot.mention];
    if spot.conflict {
        carried(&mention.path, arguments).then_some(Unseen::Untyped)
    } else {
        unseen(fields, &mention.path, mention.value, arguments)
    }
}

fn carried(path: &[String], arguments: &Map<String, Value>) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return true;
    };
    let value = rest
        .iter()
        .try_fold(arguments.get(first), |value, name| Some(value?.get(name)));
    value.flatten().is_some_and(|value| !value.is_null())
}

/// Whether everything at `path` is visible, whatever a call carries.
fn certain(fields: &Fields, path: &[String], value: bool) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return !value;
    };
    match (fields.get(first).map(|field| &field.shape), rest) {
        (Some(Ok(shape)), []) => !value || closed(shape),
        (Some(Ok(Shape::Record(inner))), rest) => certain(inner, rest, value),
        _ => false,
    }
}

/// Whether all of a value of this type is visible. A record may carry members that are not declared, so it is not.
fn closed(shape: &Shape) -> bool {
    match shape {
        Shape::String | Shape::Long | Shape::Bool | Shape::Decimal => true,
        Shape::Set(element) => closed(element),
        Shape::Record(_) => false,
    }
}

fn unseen(fields: &Fields, path: &[String], value: bool, members: &Map<String, Value>) -> Option<Unseen> {
    let Some((first, rest)) = path.split_first() else {
        return if value { unseen_in_record(fields, members) } else { None };
    };
    let carried = members.get(first).filter(|carried| !carried.is_null())?;
    match (&fields.get(first).ok_or(Unseen::Undeclared).map(|field| &field.shape), rest) {
        (Err(why), _) => Some(*why),
        (Ok(Ok(shape)), []) => {
            if value {
                unseen_in(shape, carried)
            } else {
                None
            }
        }
        (Ok(Ok(Shape::Record(inner))), rest) => match carried {
            Value::Object(members) => unseen(inner, rest, value, members),
            _ => Some(Unseen::Untyped),
        },
        _ => Some(Unseen::Untyped),
    }
}

fn unseen_in(shape: &Shape, value: &Value) -> Option<Unseen> {
    match (shape, value) {
        (Shape::Record(fields), Value::Object(members)) => unseen_in_record(fields, members),
        (Shape::Set(element), Value::Array(values)) => values.iter().find_map(|value| unseen_in(element, value)),
        (Shape::Record(_) | Shape::Set(_), _) => Some(Unseen::Untyped),
        _ => None,
    }
}

fn unseen_in_record(fields: &Fields, members: &Map<String, Value>) -> Option<Unseen> {
    let mut carried = members.iter().filter(|(_, value)| !value.is_null());
    carried.find_map(|(name, value)| match fields.get(name) {
        None => Some(Unseen::Undeclared),
        Some(Field { shape: Ok(shape), .. }) => unseen_in(shape, value),
        Some(Field { shape: Err(_), .. }) => Some(Unseen::Untyped),
    })
}

#[cfg(test)]
mod tests {
    use super::super::shape::arguments;
    use super::*;
    use serde_json::json;

    fn fields() -> Fields {
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
        let hides = unseen(&fields(), &path, value, &members).is_some();
        assert!(!hides || !certain(&fields(), &path, value), "what is certain is never unseen");
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
        assert!(certain(&fields(), &["path".to_owned()], true));
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
