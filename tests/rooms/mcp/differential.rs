//! Differential tests: lenient parsers must read the same message from the bytes that the strict reader accepts.

use super::lenient_parsers::every_reading_agrees;
use super::*;

/// Similar names, in several spellings.
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

/// A request with members added, repeated, reordered and spelt with escapes.
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
        if shuffled {
            object(Just(members).prop_shuffle()).boxed()
        } else {
            object(Just(members)).boxed()
        }
    })
}

fn agree_all(body: &[u8]) -> Result<bool, TestCaseError> {
    every_reading_agrees(body).map_err(TestCaseError::fail)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_accepted_reads_alike_in_every_manner(body in body()) {
        agree_all(body.as_bytes())?;
    }

    #[test]
    fn changed_bytes_are_refused_or_read_alike(body in body(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut body = body.into_bytes();
        let at = at.index(body.len());
        if cut {
            body.remove(at);
        } else {
            body[at] = byte;
        }
        agree_all(&body)?;
    }

    #[test]
    fn arbitrary_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        agree_all(&body)?;
    }

    #[test]
    fn what_serde_writes_is_accepted(arguments in proptest::collection::btree_map("[a-z]{1,6}", any::<f64>().prop_filter("finite", |n| n.is_finite()), 0..12), text in "\\PC*") {
        let body = serde_json::json!({"jsonrpc":"2.0","id":text.chars().take(20).collect::<String>(),"method":"tools/call",
            "params":{"name":text.clone(),"arguments":arguments.clone(),"_meta":{"note":[text.clone(),[null,{}]]}}}).to_string();
        prop_assert!(agree_all(body.as_bytes())?);
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

#[test]
fn the_bodies_that_the_fuzzer_kept_are_refused_or_read_alike() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/differential");
    let mut accepted = 0;
    for file in std::fs::read_dir(corpus).unwrap() {
        let body = std::fs::read(file.unwrap().path()).unwrap();
        accepted += usize::from(every_reading_agrees(&body).unwrap());
    }
    assert!(accepted > 5, "{accepted} accepted");
}
