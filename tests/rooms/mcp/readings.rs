//! Differential tests: what lenient parsers would make of the same bytes.

use super::*;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// JSON with its members in order, duplicates and all.
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

/// How a parser finds a member.
#[derive(Debug, Clone, Copy)]
enum Manner {
    First,
    Last,
    FirstFolded,
    LastFolded,
}

const MANNERS: [Manner; 4] = [Manner::First, Manner::Last, Manner::FirstFolded, Manner::LastFolded];

impl Tree {
    fn member(&self, name: &str, manner: Manner) -> Option<&Tree> {
        let Tree::Object(members) = self else { return None };
        let fold = |text: &str| text.replace(['ſ'], "s").replace('\u{212a}', "k").to_lowercase();
        let mut exact = members.iter().filter(|(known, _)| known == name).map(|(_, value)| value);
        let mut folded = members
            .iter()
            .filter(|(known, _)| fold(known) == fold(name))
            .map(|(_, value)| value);
        match manner {
            Manner::First => exact.next(),
            Manner::Last => exact.next_back(),
            Manner::FirstFolded => folded.next(),
            Manner::LastFolded => folded.next_back(),
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Tree::Leaf(Value::String(text)) => Some(text),
            _ => None,
        }
    }
}

/// Everything accepted here means the same to every one of them.
fn every_reading_agrees(body: &[u8]) -> Result<bool, TestCaseError> {
    let Ok(Message::Request(request)) = read_text(body) else {
        return Ok(false);
    };
    prop_assert_eq!(&request.body[..], body, "forwarded are the judged bytes");
    let tree: Tree = serde_json::from_slice(body).map_err(|error| TestCaseError::fail(error.to_string()))?;
    let value: Value = serde_json::from_slice(body).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert_eq!(value["method"].as_str(), Some(request.method.as_str()));
    prop_assert_eq!(&value["id"], &serde_json::from_str::<Value>(request.id.as_json()).unwrap());
    let params = request.params.unwrap_or_default();
    let arguments: Option<Tree> = params.arguments.as_ref().map(|text| serde_json::from_slice(text).unwrap());
    for manner in MANNERS {
        prop_assert_eq!(
            tree.member("method", manner).and_then(Tree::text),
            Some(request.method.as_str()),
            "{:?}",
            manner
        );
        prop_assert!(tree.member("id", manner).is_some());
        let inside = tree.member("params", manner);
        let member = |name: &str| inside.and_then(|inside| inside.member(name, manner));
        prop_assert_eq!(member("name").and_then(Tree::text), params.name.as_deref(), "{:?}", manner);
        prop_assert_eq!(member("arguments"), arguments.as_ref(), "{:?}", manner);
    }
    if let Some(Tree::Object(_)) = arguments {
        let again: Value = serde_json::from_slice(params.arguments.as_ref().unwrap()).unwrap();
        prop_assert_eq!(&value["params"]["arguments"], &again);
    }
    Ok(true)
}

/// Names that are close to each other, in several spellings.
fn name() -> impl Strategy<Value = String> {
    let known = ["jsonrpc", "id", "method", "params", "name", "arguments", "_meta", "path", "a"];
    (proptest::sample::select(known.to_vec()), 0..12_u8).prop_map(|(name, spelling)| match spelling {
        0 => name.to_uppercase(),
        1 => name.replacen('s', "ſ", 1),
        2 => name.chars().enumerate().fold(String::new(), |mut text, (index, char)| {
            match index {
                1 => write!(text, "\\u{:04x}", u32::from(char)).unwrap(),
                _ => text.push(char),
            }
            text
        }),
        3 => format!("{name} "),
        _ => name.to_owned(),
    })
}

fn value() -> impl Strategy<Value = String> {
    let leaf = proptest::sample::select(vec![
        "1",
        "-2",
        "0.5",
        "1e3",
        "1e999",
        "\"echo\"",
        "\"tools/call\"",
        "\"e\\u0063ho\"",
        "\"2.0\"",
        "null",
        "true",
        "\"\\ud800\"",
        "[]",
        "{}",
        "12345678901234567890",
        "01",
        "NaN",
    ]);
    leaf.prop_map(str::to_owned).prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(|items| format!("[{}]", items.join(","))),
            object(proptest::collection::vec((name(), inner), 0..4)),
        ]
    })
}

fn object(members: impl Strategy<Value = Vec<(String, String)>>) -> impl Strategy<Value = String> {
    members.prop_map(|members| {
        let members: Vec<String> = members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", members.join(", "))
    })
}

/// A request with members added, doubled, reordered and respelt.
fn body() -> impl Strategy<Value = String> {
    let extras = || proptest::collection::vec((name(), value()), 0..2);
    (extras(), extras(), object(extras()), any::<bool>()).prop_flat_map(|(outer, inner, arguments, shuffled)| {
        let mut params = vec![
            ("name".to_owned(), "\"echo\"".to_owned()),
            ("arguments".to_owned(), arguments),
        ];
        params.extend(inner);
        let params: Vec<String> = params.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        let mut members = vec![
            ("jsonrpc".to_owned(), "\"2.0\"".to_owned()),
            ("id".to_owned(), "1".to_owned()),
            ("method".to_owned(), "\"tools/call\"".to_owned()),
            ("params".to_owned(), format!("{{{}}}", params.join(","))),
        ];
        members.extend(outer);
        match shuffled {
            true => object(Just(members).prop_shuffle()).boxed(),
            false => object(Just(members)).boxed(),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_accepted_reads_alike_in_every_manner(body in body()) {
        every_reading_agrees(body.as_bytes())?;
    }

    #[test]
    fn changed_bytes_are_refused_or_read_alike(body in body(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut body = body.into_bytes();
        let at = at.index(body.len());
        match cut {
            true => drop(body.remove(at)),
            false => body[at] = byte,
        }
        every_reading_agrees(&body)?;
    }

    #[test]
    fn arbitrary_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        every_reading_agrees(&body)?;
    }

    #[test]
    fn what_serde_writes_is_accepted(arguments in proptest::collection::btree_map("[a-z]{1,6}", any::<f64>().prop_filter("finite", |n| n.is_finite()), 0..12), text in "\\PC*") {
        let body = serde_json::json!({"jsonrpc":"2.0","id":text.chars().take(20).collect::<String>(),"method":"tools/call",
            "params":{"name":text.clone(),"arguments":arguments.clone(),"_meta":{"note":[text.clone(),[null,{}]]}}}).to_string();
        prop_assert!(every_reading_agrees(body.as_bytes())?);
    }
}

#[test]
fn the_generator_makes_bodies_of_both_kinds() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = body();
    let accepted = (0..500)
        .filter(|_| read_text(strategy.new_tree(&mut runner).unwrap().current()).is_ok())
        .count();
    assert!((50..450).contains(&accepted), "{accepted} of 500 accepted");
}
