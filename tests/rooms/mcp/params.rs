//! The parameters of methods with a target: only known members, each of its type, and the target that they name.

use super::*;
use neural_guardian::mcp::{Reference, completion, subscribed_uris};
use std::collections::BTreeMap;

fn asked(method: &str, params: &str) -> Request {
    request(&format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#
    ))
}

fn refused(method: &str, params: &str) -> Malformed {
    let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
    read_text(&body).expect_err(&body)
}

/// Methods with valid parameters.
const RIGHT: [(&str, &str); 12] = [
    ("tools/call", r#"{"name":"x","arguments":{}}"#),
    ("prompts/get", r#"{"name":"x","arguments":{"a":"b"}}"#),
    ("resources/read", r#"{"uri":"x:y"}"#),
    ("resources/subscribe", r#"{"uri":"x:y"}"#),
    ("resources/unsubscribe", r#"{"uri":"x:y"}"#),
    (
        "completion/complete",
        r#"{"ref":{"type":"ref/prompt","name":"x"},"argument":{"name":"a","value":"b"}}"#,
    ),
    ("logging/setLevel", r#"{"level":"debug"}"#),
    ("subscriptions/listen", r#"{"notifications":{"toolsListChanged":true}}"#),
    ("tools/list", r#"{"cursor":"x"}"#),
    ("resources/list", r#"{"cursor":"x"}"#),
    ("resources/templates/list", r#"{"cursor":"x"}"#),
    ("prompts/list", r#"{"cursor":"x"}"#),
];

#[test]
fn what_a_method_does_not_take_is_refused_beside_what_it_takes() {
    for (method, right) in RIGHT {
        assert!(asked(method, right).params.is_some());
        let with_meta = right.replacen('{', r#"{"_meta":{"progressToken":1},"#, 1);
        assert!(asked(method, &with_meta).params.is_some(), "{method}");
        for more in [
            r#""extra":1"#,
            r#""url":"x:z""#,
            r#""taskId":"t""#,
            r#""protocolVersion":"2025-06-18""#,
            r#""\u0061s":"admin""#,
        ] {
            let fault = refused(method, &right.replacen('{', &format!("{{{more},"), 1));
            assert_eq!(fault.reason, Reason::InvalidParams, "{method} {more}");
            assert!(fault.detail.contains("does not belong"), "{method} {more}: {}", fault.detail);
        }
    }
    for (method, other) in [
        ("prompts/get", r#""uri":"x:y""#),
        ("resources/read", r#""name":"x""#),
        ("resources/subscribe", r#""requestState":"s""#),
    ] {
        let right = RIGHT.iter().find(|(name, _)| *name == method).unwrap().1;
        assert_eq!(
            refused(method, &right.replacen('{', &format!("{{{other},"), 1)).reason,
            Reason::InvalidParams
        );
    }
}

#[test]
fn a_known_parameter_in_another_spelling_is_refused() {
    for (method, right) in RIGHT {
        let first = right.split('"').nth(1).unwrap();
        let upper = right.replacen(first, &first.to_uppercase(), 1);
        assert_eq!(refused(method, &upper).reason, Reason::AmbiguousJson, "{upper}");
        let both = right.replacen('{', &format!(r#"{{"{}":1,"#, first.to_uppercase()), 1);
        assert_eq!(refused(method, &both).reason, Reason::AmbiguousJson, "{both}");
    }
}

#[test]
fn what_is_needed_is_there() {
    for (method, right) in RIGHT.iter().filter(|(method, _)| !method.ends_with("/list")) {
        let bare = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}"}}"#);
        for body in [
            bare,
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{}}}}"#),
        ] {
            let fault = read_text(&body).expect_err(&body);
            assert_eq!(fault.reason, Reason::InvalidParams);
            assert!(fault.detail.ends_with("is missing"), "{}", fault.detail);
        }
        let first = right.split('"').nth(1).unwrap();
        let wrong = format!(r#"{{"{first}":7}}"#);
        assert_eq!(refused(method, &wrong).reason, Reason::InvalidParams, "{method} {wrong}");
    }
}

#[test]
fn a_completion_names_a_prompt_or_a_resource() {
    let read = |params: &str| completion(&asked("completion/complete", params).params.unwrap());
    let of_prompt = read(
        r#"{"ref":{"type":"ref/prompt","name":"p","title":"P"},"argument":{"name":"a","value":"1"},"context":{"arguments":{"a":"0","b":"2"}}}"#,
    )
    .unwrap();
    assert_eq!(of_prompt.of, Reference::Prompt("p".to_owned()));
    let arguments = [("a", "1"), ("b", "2")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(of_prompt.arguments, BTreeMap::from(arguments));
    let of_template = read(r#"{"ref":{"type":"ref/resource","uri":"x:{y}"},"argument":{"name":"y","value":""}}"#).unwrap();
    assert_eq!(of_template.of, Reference::Resource("x:{y}".to_owned()));
    for (reference, argument, context) in [
        (r#"{"type":"ref/tool","name":"p"}"#, r#"{"name":"a","value":""}"#, "{}"),
        (r#"{"type":"ref/prompt","uri":"x:y"}"#, r#"{"name":"a","value":""}"#, "{}"),
        (
            r#"{"type":"ref/prompt","name":"p","uri":"x:y"}"#,
            r#"{"name":"a","value":""}"#,
            "{}",
        ),
        (
            r#"{"type":"ref/resource","uri":"x:y","name":"p"}"#,
            r#"{"name":"a","value":""}"#,
            "{}",
        ),
        (r#"{"type":"ref/prompt","name":7}"#, r#"{"name":"a","value":""}"#, "{}"),
        (
            r#"{"type":"ref/prompt","name":"p","as":"x"}"#,
            r#"{"name":"a","value":""}"#,
            "{}",
        ),
        (r#"{"name":"p"}"#, r#"{"name":"a","value":""}"#, "{}"),
        (r#"{"type":"ref/prompt","name":"p"}"#, r#"{"name":"a"}"#, "{}"),
        (r#"{"type":"ref/prompt","name":"p"}"#, r#"{"value":""}"#, "{}"),
        (r#"{"type":"ref/prompt","name":"p"}"#, r#"{"name":"a","value":1}"#, "{}"),
        (
            r#"{"type":"ref/prompt","name":"p"}"#,
            r#"{"name":"a","value":"","more":1}"#,
            "{}",
        ),
        (
            r#"{"type":"ref/prompt","name":"p"}"#,
            r#"{"name":"a","value":""}"#,
            r#"{"arguments":{"b":1}}"#,
        ),
        (
            r#"{"type":"ref/prompt","name":"p"}"#,
            r#"{"name":"a","value":""}"#,
            r#"{"arguments":[]}"#,
        ),
        (
            r#"{"type":"ref/prompt","name":"p"}"#,
            r#"{"name":"a","value":""}"#,
            r#"{"other":{}}"#,
        ),
    ] {
        let params = format!(r#"{{"ref":{reference},"argument":{argument},"context":{context}}}"#);
        assert_eq!(read(&params).expect_err(&params).reason, Reason::InvalidParams);
    }
}

#[test]
fn a_stream_names_the_resources_it_is_to_tell_of() {
    let read = |filter: &str| {
        subscribed_uris(
            &asked("subscriptions/listen", &format!(r#"{{"notifications":{filter}}}"#))
                .params
                .unwrap(),
        )
    };
    assert_eq!(read("{}").unwrap(), [""; 0]);
    assert_eq!(
        read(r#"{"toolsListChanged":true,"promptsListChanged":false,"resourcesListChanged":true}"#).unwrap(),
        [""; 0]
    );
    assert_eq!(
        read(r#"{"resourceSubscriptions":["x:a","x:\u0062"]}"#).unwrap(),
        ["x:a", "x:b"]
    );
    for wrong in [
        r#"{"resourceSubscriptions":"x:a"}"#,
        r#"{"resourceSubscriptions":{"0":"x:a"}}"#,
        r#"{"resourceSubscriptions":["x:a",["x:b"]]}"#,
        r#"{"resourceSubscriptions":[1]}"#,
        r#"{"resourceSubscriptions":null}"#,
        r#"{"toolsListChanged":"yes"}"#,
        r#"{"everything":true}"#,
    ] {
        assert_eq!(read(wrong).expect_err(wrong).reason, Reason::InvalidParams);
    }
    assert_eq!(
        read(r#"{"ToolsListChanged":true}"#).unwrap_err().reason,
        Reason::AmbiguousJson
    );
}
