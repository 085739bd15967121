//! How lenient parsers find a member: the first of its name or the last, with exact or case-folded names. In a message that
//! the strict reader accepts, all of them must find what it found. The rooms and the fuzz target check that.

use super::reader::{Bounds, Message, parse_message};
use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// JSON with its members in order, duplicates included.
#[derive(Debug, Clone, PartialEq)]
enum Tree {
    Object(Vec<(String, Tree)>),
    Array(Vec<Tree>),
    Leaf(Value),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Tree;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("json")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
                Ok(Tree::Leaf(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
                Ok(Tree::Leaf(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
                Ok(Tree::Leaf(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
                Ok(Tree::Leaf(value.into()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
                Ok(Tree::Leaf(value.into()))
            }
            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Leaf(Value::Null))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
                let mut array = Vec::new();
                while let Some(item) = items.next_element()? {
                    array.push(item);
                }
                Ok(Tree::Array(array))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Tree, A::Error> {
                let mut object = Vec::new();
                while let Some(member) = members.next_entry()? {
                    object.push(member);
                }
                Ok(Tree::Object(object))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// How a parser chooses among members.
#[derive(Debug, Clone, Copy)]
enum MemberRule {
    First,
    Last,
    FirstFolded,
    LastFolded,
}

const RULES: [MemberRule; 4] = [
    MemberRule::First,
    MemberRule::Last,
    MemberRule::FirstFolded,
    MemberRule::LastFolded,
];

impl Tree {
    fn member(&self, name: &str, rule: MemberRule) -> Option<&Tree> {
        let Tree::Object(members) = self else { return None };
        let fold = |text: &str| text.replace(['ſ'], "s").replace('\u{212a}', "k").to_lowercase();
        let mut exact = members.iter().filter(|(known, _)| known == name).map(|(_, value)| value);
        let mut folded = members
            .iter()
            .filter(|(known, _)| fold(known) == fold(name))
            .map(|(_, value)| value);
        match rule {
            MemberRule::First => exact.next(),
            MemberRule::Last => exact.next_back(),
            MemberRule::FirstFolded => folded.next(),
            MemberRule::LastFolded => folded.next_back(),
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Tree::Leaf(Value::String(text)) => Some(text),
            _ => None,
        }
    }
}

/// Whether the strict reader accepts the body as a request; an error names what a lenient parser finds otherwise.
pub fn every_reading_agrees(body: &[u8]) -> Result<bool, String> {
    let Ok(Message::Request(request)) = parse_message(Bytes::copy_from_slice(body), &Bounds::default()) else {
        return Ok(false);
    };
    let same = |what: &str, holds: bool| {
        if holds {
            Ok(())
        } else {
            Err(format!("{what} of {}", String::from_utf8_lossy(body)))
        }
    };
    let parsed = |error: serde_json::Error| format!("{error} in {}", String::from_utf8_lossy(body));
    same("the bytes", request.body[..] == *body)?;
    let tree: Tree = serde_json::from_slice(body).map_err(parsed)?;
    let value: Value = serde_json::from_slice(body).map_err(parsed)?;
    let id: Value = serde_json::from_str(request.id.as_json()).map_err(parsed)?;
    same("the id", value["id"] == id)?;
    let params = request.params.unwrap_or_default();
    let arguments = params.arguments.as_deref().map(serde_json::from_slice::<Tree>);
    let arguments = arguments.transpose().map_err(parsed)?;
    let version = params.meta.as_ref().and_then(|meta| meta.protocol_version.as_deref());
    for rule in RULES {
        let method = tree.member("method", rule).and_then(Tree::text);
        same("the method", method == Some(request.method.as_str()))?;
        same("the id", tree.member("id", rule).is_some())?;
        same(
            "no answer",
            tree.member("result", rule).or(tree.member("error", rule)).is_none(),
        )?;
        let inside = tree.member("params", rule);
        let member = |name: &str| inside.and_then(|inside| inside.member(name, rule));
        same("the arguments", member("arguments") == arguments.as_ref())?;
        for (name, found) in [
            ("name", params.name.as_deref()),
            ("uri", params.uri.as_deref()),
            ("cursor", params.cursor.as_ref().map(|cursor| cursor.text.as_str())),
            ("taskId", params.task_id.as_ref().map(|task| task.text.as_str())),
            ("requestState", params.request_state.as_ref().map(|state| state.text.as_str())),
        ] {
            same(name, member(name).and_then(Tree::text) == found)?;
        }
        let named = member("_meta").and_then(|meta| meta.member("io.modelcontextprotocol/protocolVersion", rule));
        same("the version", named.and_then(Tree::text) == version)?;
    }
    Ok(true)
}
