//! Infers argument types from the way policies use the arguments, and compares them with the arguments that a tool
//! declares.

use super::problem::nearest;
use super::reads::Mention;
use super::shape::{Field, Fields, Shape};

/// An argument that a tool does not declare, or declares without a type that policies can read.
pub(super) struct Absent {
    /// From the root of the arguments: `filter.owner`.
    pub path: String,
    /// The last part of `path`.
    pub name: String,
    pub hole: Option<&'static str>,
    pub near: Option<String>,
}

pub(super) fn absent(fields: &Fields, path: &[String]) -> Option<Absent> {
    let mut fields = fields;
    for (depth, name) in path.iter().enumerate() {
        let absent = |hole, near: Option<&str>| Absent {
            path: path[..=depth].join("."),
            name: name.clone(),
            hole,
            near: near.map(str::to_owned),
        };
        match fields.get(name).map(|field| &field.shape) {
            Some(Ok(Shape::Record(inner))) => fields = inner,
            Some(Ok(_)) => return None,
            Some(Err(why)) => return Some(absent(Some(*why), None)),
            None => return Some(absent(None, nearest(name, fields.keys().map(String::as_str)))),
        }
    }
    None
}

/// The arguments of an imaginary tool that has all mentioned ones, each optional and of the type its use shows. Also says
/// whether a type had to be guessed.
pub(super) fn supposed(mentions: &[Mention]) -> (Fields, bool) {
    let mut fields = Fields::new();
    let mut guessed = false;
    for mention in mentions {
        suppose(&mut fields, &mention.path, mention.shape.as_ref());
    }
    guess(&mut fields, &mut guessed);
    (fields, guessed)
}

/// Whether the tool declares the argument at `path` with another type than the inferred one.
pub(super) fn conflict(fields: &Fields, supposed: &Fields, path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return false;
    };
    let shape = |fields: &Fields| fields.get(first).and_then(|field| field.shape.clone().ok());
    match (shape(fields), shape(supposed), rest) {
        (Some(Shape::Record(fields)), Some(Shape::Record(supposed)), rest) if !rest.is_empty() => {
            conflict(&fields, &supposed, rest)
        }
        (Some(shape), Some(supposed), _) => shape != supposed,
        _ => false,
    }
}

/// Makes the argument at `path` untyped, or its ancestor that the tool does not declare as a record.
pub(super) fn hide(fields: &mut Fields, path: &[String]) {
    let Some((first, rest)) = path.split_first() else {
        return;
    };
    match fields.get_mut(first).map(|field| &mut field.shape) {
        Some(Ok(Shape::Record(inner))) if !rest.is_empty() => hide(inner, rest),
        Some(shape) => *shape = Err(NOT_SHOWN),
        None => {}
    }
}

fn suppose(fields: &mut Fields, path: &[String], shape: Option<&Shape>) {
    let Some((first, rest)) = path.split_first() else {
        return;
    };
    let field = fields.entry(first.clone()).or_insert(Field {
        required: false,
        shape: Err(NOT_SHOWN),
    });
    match (&mut field.shape, rest, shape) {
        (Ok(Shape::Record(inner)), rest, shape) => suppose(inner, rest, shape),
        (seen, [], Some(shape)) if seen.is_err() => *seen = Ok(shape.clone()),
        (_, [], _) => {}
        (seen, rest, shape) => {
            let mut inner = Fields::new();
            suppose(&mut inner, rest, shape);
            *seen = Ok(Shape::Record(inner));
        }
    }
}

fn guess(fields: &mut Fields, guessed: &mut bool) {
    for field in fields.values_mut() {
        match &mut field.shape {
            Ok(Shape::Record(inner)) => guess(inner, guessed),
            Ok(_) => {}
            unseen => {
                *unseen = Ok(Shape::String);
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

    fn mention(path: &str, shape: Option<Shape>) -> Mention {
        Mention {
            path: path.split('.').map(str::to_owned).collect(),
            value: shape.is_some(),
            shape,
        }
    }

    #[test]
    fn the_use_of_an_argument_shows_its_type() {
        let mentions = [
            mention("a", None),
            mention("a", Some(Shape::Long)),
            mention("b", None),
            mention("c.d", Some(Shape::Bool)),
            mention("c.e.f", None),
        ];
        let (fields, guessed) = supposed(&mentions);
        assert!(guessed);
        assert_eq!(fields["a"].shape, Ok(Shape::Long));
        assert_eq!(fields["b"].shape, Ok(Shape::String));
        let Ok(Shape::Record(inner)) = &fields["c"].shape else {
            panic!("{fields:?}");
        };
        assert_eq!(inner["d"].shape, Ok(Shape::Bool));
        assert!(matches!(&inner["e"].shape, Ok(Shape::Record(_))));
        assert!(fields.values().all(|field| !field.required));
        assert!(!supposed(&mentions[..2]).1);
    }

    #[test]
    fn another_type_is_a_conflict_and_can_be_hidden() {
        let (taken, _) = supposed(&[mention("a.b", Some(Shape::Long)), mention("c", Some(Shape::String))]);
        let (mut had, _) = supposed(&[mention("a.b", Some(Shape::String)), mention("c", Some(Shape::String))]);
        let path = ["a".to_owned(), "b".to_owned()];
        assert!(conflict(&had, &taken, &path));
        assert!(!conflict(&had, &taken, &["c".to_owned()]));
        assert!(!conflict(&had, &taken, &["d".to_owned()]));
        hide(&mut had, &path);
        assert!(!conflict(&had, &taken, &path));
        assert!(absent(&had, &path).is_some_and(|absent| absent.hole.is_some() && absent.path == "a.b"));
    }
}
