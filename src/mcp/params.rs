//! The parameters of methods that carry authority: which members are allowed, which are required, what they name.
//!
//! Unknown members are refused, because a server might read one as authority that the policies did not see.

use super::client_message::Params;
use super::json::{Bounds, DuplicateNames, Fault, JsonKind, Malformed, Scanner, Span, decode, fault, quoted};
use crate::domain::Reason;
use bytes::Bytes;
use std::collections::BTreeMap;

/// The prompt or resource that a completion is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    Prompt(String),
    /// The URI of a resource, or a resource template.
    Resource(String),
}

/// A completion: its subject, and the arguments known so far, among them the one being typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    pub of: Reference,
    pub arguments: BTreeMap<String, String>,
}

/// Parses the parameters of `completion/complete`.
pub fn completion(params: &Params) -> Result<Completion, Malformed> {
    let of = reference(params.reference.as_ref().ok_or_else(|| missing("ref"))?)?;
    let argument = Object::read(
        params.argument.as_ref().ok_or_else(|| missing("argument"))?,
        &["name", "value"],
        "argument",
    )?;
    let (name, value) = (argument.text(0)?, argument.text(1)?);
    let mut arguments = match &params.context {
        Some(context) => settled_arguments(context)?,
        None => BTreeMap::new(),
    };
    let name = name.ok_or_else(|| missing("argument.name"))?;
    arguments.insert(name, value.ok_or_else(|| missing("argument.value"))?);
    Ok(Completion { of, arguments })
}

/// The resource URIs in the filter of `subscriptions/listen`, in order.
pub fn subscribed_uris(params: &Params) -> Result<Vec<String>, Malformed> {
    const FILTER: [&str; 5] = [
        "toolsListChanged",
        "promptsListChanged",
        "resourcesListChanged",
        "resourceSubscriptions",
        "taskIds",
    ];
    let text = params.notifications.as_ref().ok_or_else(|| missing("notifications"))?;
    let filter = Object::read(text, &FILTER, "notifications")?;
    let [flags @ .., uris, _] = filter.spans;
    if flags.iter().flatten().any(|span| !matches!(span.kind, JsonKind::Bool(_))) {
        return Err(bad("a member of `notifications` is not a boolean").into());
    }
    match uris {
        Some(span) => Ok(texts(&text.slice(span.range()))?),
        None => Ok(Vec::new()),
    }
}

fn reference(text: &Bytes) -> Result<Reference, Fault> {
    let of = Object::read(text, &["type", "name", "uri", "title"], "ref")?;
    of.text(3)?;
    match (of.text(0)?.as_deref(), of.text(1)?, of.text(2)?) {
        (Some("ref/prompt"), Some(name), None) => Ok(Reference::Prompt(name)),
        (Some("ref/resource"), None, Some(uri)) => Ok(Reference::Resource(uri)),
        _ => Err(bad("`ref` is neither a prompt with its `name` nor a resource with its `uri`")),
    }
}

/// Parses `context.arguments` of a completion.
fn settled_arguments(context: &Bytes) -> Result<BTreeMap<String, String>, Fault> {
    let context = Object::read(context, &["arguments"], "context")?;
    let Some(span) = context.spans[0] else {
        return Ok(BTreeMap::new());
    };
    // The strict parse of the body has refused duplicate names here.
    serde_json::from_slice(&context.text[span.range()]).map_err(|_| bad("`context.arguments` is not an object of strings"))
}

fn texts(list: &Bytes) -> Result<Vec<String>, Fault> {
    let wrong = || bad("`notifications.resourceSubscriptions` is not an array of strings");
    let bounds = Bounds::default();
    let mut scanner = Scanner::open(list, &bounds, DuplicateNames::Folded)?;
    if scanner.peek() != Some(b'[') {
        return Err(wrong());
    }
    let mut texts = Vec::new();
    scanner.array(0, &mut |scanner, depth| {
        let span = scanner.value(depth)?;
        match span.kind {
            JsonKind::Text(_) => texts.push(decode(list, span)?.into_owned()),
            _ => return Err(wrong()),
        }
        Ok(())
    })?;
    scanner.close()?;
    Ok(texts)
}

/// An object inside the parameters that has only `N` known members.
struct Object<'a, const N: usize> {
    text: &'a Bytes,
    names: &'static [&'static str; N],
    spans: [Option<Span>; N],
}

impl<'a, const N: usize> Object<'a, N> {
    fn read(text: &'a Bytes, names: &'static [&'static str; N], what: &str) -> Result<Self, Fault> {
        let bounds = Bounds::default();
        let mut scanner = Scanner::open(text, &bounds, DuplicateNames::Folded)?;
        let fields = scanner.known_members(0, names, |scanner, _, depth| scanner.value(depth))?;
        if let Some(stranger) = &fields.unknown_member {
            return Err(bad(format!(
                "{} does not belong into `{what}`",
                quoted(scanner.name(stranger))
            )));
        }
        scanner.close()?;
        Ok(Self {
            text,
            names,
            spans: fields.spans,
        })
    }

    fn text(&self, index: usize) -> Result<Option<String>, Fault> {
        match self.spans[index] {
            None => Ok(None),
            Some(span) if matches!(span.kind, JsonKind::Text(_)) => Ok(Some(decode(self.text, span)?.into_owned())),
            Some(_) => Err(bad(format!("`{}` is not a string", self.names[index]))),
        }
    }
}

fn missing(name: &str) -> Malformed {
    Malformed::new(Reason::InvalidParams, format!("`{name}` is missing"))
}

fn bad(detail: impl Into<String>) -> Fault {
    fault(Reason::InvalidParams, detail)
}
