//! Infers argument types from the way policies use the arguments, and compares them with the arguments that a tool
//! declares.

use super::usage::ArgumentRef;
use crate::decide::tool::arg_types::{ArgField, ArgSchema, ArgType};
use crate::domain::nearest;

/// An argument that a tool does not declare, or declares without a type that policies can read.
pub(in crate::decide) struct MissingArgument {
    /// From the root of the arguments: `filter.owner`.
    pub path: String,
    /// The last part of `path`.
    pub name: String,
    pub untyped: Option<&'static str>,
    pub near: Option<String>,
}

pub(super) fn missing_argument(fields: &ArgSchema, path: &[String]) -> Option<MissingArgument> {
    let mut fields = fields;
    for (depth, name) in path.iter().enumerate() {
        let missing = |hole, near: Option<&str>| MissingArgument {
            path: path[..=depth].join("."),
            name: name.clone(),
            untyped: hole,
            near: near.map(str::to_owned),
        };
        match fields.get(name).map(|field| &field.arg_type) {
            Some(Ok(ArgType::Record(inner))) => fields = inner,
            Some(Ok(_)) => return None,
            Some(Err(why)) => return Some(missing(Some(*why), None)),
            None => return Some(missing(None, nearest(name, fields.keys().map(String::as_str)))),
        }
    }
    None
}

/// The arguments of an imaginary tool that has all mentioned ones, each optional and of the type its use shows. Also says
/// whether a type had to be guessed.
pub(super) fn infer_schema(arguments: &[ArgumentRef]) -> (ArgSchema, bool) {
    let mut fields = ArgSchema::new();
    let mut guessed = false;
    for argument in arguments {
        infer_argument(&mut fields, &argument.path, argument.arg_type.as_ref());
    }
    default_untyped(&mut fields, &mut guessed);
    (fields, guessed)
}

/// Whether the tool declares the argument at `path` with another type than the inferred one.
pub(in crate::decide) fn conflict(fields: &ArgSchema, supposed: &ArgSchema, path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return false;
    };
    let arg_type = |fields: &ArgSchema| fields.get(first).and_then(|field| field.arg_type.clone().ok());
    match (arg_type(fields), arg_type(supposed), rest) {
        (Some(ArgType::Record(fields)), Some(ArgType::Record(supposed)), rest) if !rest.is_empty() => {
            conflict(&fields, &supposed, rest)
        }
        (Some(arg_type), Some(supposed), _) => arg_type != supposed,
        _ => false,
    }
}

/// Makes the argument at `path` untyped, or its ancestor that the tool does not declare as a record.
pub(super) fn make_untyped(fields: &mut ArgSchema, path: &[String]) {
    let Some((first, rest)) = path.split_first() else {
        return;
    };
    match fields.get_mut(first).map(|field| &mut field.arg_type) {
        Some(Ok(ArgType::Record(inner))) if !rest.is_empty() => make_untyped(inner, rest),
        Some(arg_type) => *arg_type = Err(NOT_SHOWN),
        None => {}
    }
}

fn infer_argument(fields: &mut ArgSchema, path: &[String], arg_type: Option<&ArgType>) {
    let Some((first, rest)) = path.split_first() else {
        return;
    };
    let field = fields.entry(first.clone()).or_insert(ArgField {
        required: false,
        arg_type: Err(NOT_SHOWN),
    });
    match (&mut field.arg_type, rest, arg_type) {
        (Ok(ArgType::Record(inner)), rest, arg_type) => infer_argument(inner, rest, arg_type),
        (seen, [], Some(arg_type)) if seen.is_err() => *seen = Ok(arg_type.clone()),
        (_, [], _) => {}
        (seen, rest, arg_type) => {
            let mut inner = ArgSchema::new();
            infer_argument(&mut inner, rest, arg_type);
            *seen = Ok(ArgType::Record(inner));
        }
    }
}

fn default_untyped(fields: &mut ArgSchema, guessed: &mut bool) {
    for field in fields.values_mut() {
        match &mut field.arg_type {
            Ok(ArgType::Record(inner)) => default_untyped(inner, guessed),
            Ok(_) => {}
            unseen => {
                *unseen = Ok(ArgType::String);
                *guessed = true;
            }
        }
    }
}

/// For untyped arguments whose reason is never displayed.
const NOT_SHOWN: &str = "";

#[cfg(test)]
mod tests {
    use super::*;

    fn mention(path: &str, arg_type: Option<ArgType>) -> ArgumentRef {
        ArgumentRef {
            path: path.split('.').map(str::to_owned).collect(),
            value: arg_type.is_some(),
            arg_type,
        }
    }

    #[test]
    fn the_use_of_an_argument_shows_its_type() {
        let arguments = [
            mention("a", None),
            mention("a", Some(ArgType::Long)),
            mention("b", None),
            mention("c.d", Some(ArgType::Bool)),
            mention("c.e.f", None),
        ];
        let (fields, guessed) = infer_schema(&arguments);
        assert!(guessed);
        assert_eq!(fields["a"].arg_type, Ok(ArgType::Long));
        assert_eq!(fields["b"].arg_type, Ok(ArgType::String));
        let Ok(ArgType::Record(inner)) = &fields["c"].arg_type else {
            panic!("{fields:?}");
        };
        assert_eq!(inner["d"].arg_type, Ok(ArgType::Bool));
        assert!(matches!(&inner["e"].arg_type, Ok(ArgType::Record(_))));
        assert!(fields.values().all(|field| !field.required));
        assert!(!infer_schema(&arguments[..2]).1);
    }

    #[test]
    fn another_type_is_a_conflict_and_can_be_hidden() {
        let (taken, _) = infer_schema(&[mention("a.b", Some(ArgType::Long)), mention("c", Some(ArgType::String))]);
        let (mut had, _) = infer_schema(&[mention("a.b", Some(ArgType::String)), mention("c", Some(ArgType::String))]);
        let path = ["a".to_owned(), "b".to_owned()];
        assert!(conflict(&had, &taken, &path));
        assert!(!conflict(&had, &taken, &["c".to_owned()]));
        assert!(!conflict(&had, &taken, &["d".to_owned()]));
        make_untyped(&mut had, &path);
        assert!(!conflict(&had, &taken, &path));
        assert!(missing_argument(&had, &path).is_some_and(|missing| missing.untyped.is_some() && missing.path == "a.b"));
    }
}
