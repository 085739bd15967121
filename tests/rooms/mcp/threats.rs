//! The entries T1 to T8 of the threat catalogue, as far as they concern one body. The bodies are those that the stories
//! send.

use super::*;

#[path = "../../support/bodies.rs"]
mod bodies;

#[track_caller]
fn all_are<T: AsRef<[u8]>>(bodies: Vec<T>, expected: Reason) {
    assert!(!bodies.is_empty());
    for body in &bodies {
        assert_eq!(reason(body), expected, "{}", String::from_utf8_lossy(body.as_ref()));
    }
}

#[test]
fn t1_a_member_twice_at_any_depth_is_ambiguous() {
    all_are(bodies::twice(), Reason::AmbiguousJson);
}

#[test]
fn t2_names_that_folding_makes_equal_are_ambiguous() {
    all_are(bodies::folded(), Reason::AmbiguousJson);
    request(&call(
        r#"{"path":"/a","paths":[],"pat":"","PATHX":1,"Name":"a member of arguments may have any one spelling"}"#,
    ));
}

#[test]
fn t2_strangers_beside_known_members_are_refused() {
    all_are(bodies::strangers(), Reason::InvalidRequest);
    all_are(bodies::strange_params(), Reason::InvalidParams);
    request(
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{},"_meta":{"x/y":1},
        "inputResponses":{"a":{}},"requestState":"s","task":{"ttl":1}}}"#,
    );
    request(
        r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{},"new":1}}"#,
    );
}

#[test]
fn t3_a_message_of_no_clear_shape_is_refused() {
    all_are(bodies::shapeless(), Reason::InvalidRequest);
    all_are(bodies::shapeless_params(), Reason::InvalidParams);
    assert!(matches!(
        read_text(r#"{"jsonrpc":"2.0","id":"x","result":{}}"#),
        Ok(Message::Response(response)) if !response.is_error
    ));
    assert!(matches!(
        read_text(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}"#),
        Ok(Message::Notification(_))
    ));
}

#[test]
fn t4_only_plain_utf8_is_text() {
    all_are(bodies::no_text(), Reason::MalformedJson);
    assert_eq!(
        reason(call(r#"{"a\u0000b":1}"#)),
        Reason::AmbiguousJson,
        "a name that ends early for some"
    );
}

#[test]
fn t5_nothing_follows_the_message_and_all_of_it_is_json() {
    all_are(bodies::no_json(), Reason::MalformedJson);
    request(&format!("{}\r\n", r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#));
}

#[test]
fn t6_depth_and_members_are_bounded_and_cheap() {
    let heavy = bodies::heavy().into_iter().map(|(_, body)| body).collect();
    all_are(heavy, Reason::MalformedJson);
    let deep = |levels: usize| call(&format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels)));
    request(&deep(62));
    request(&call(&bodies::wide(9_994, |index| format!("k{index}"))));
    assert_eq!(
        reason(call(&bodies::wide(5_000, |index| format!("k{}", index % 4_999)))),
        Reason::AmbiguousJson
    );
    request(&call(&format!(r#"{{"n":{}}}"#, "1".repeat(300))));
}

#[test]
fn t7_batches_are_refused_even_of_one() {
    all_are(bodies::batches(), Reason::InvalidRequest);
}

#[test]
fn t8_a_tool_name_is_what_the_bytes_say_after_unescaping() {
    let name = |written: &str| {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{written}"}}}}"#);
        request(&body).params.unwrap().name.unwrap()
    };
    assert_eq!(name("echo"), "echo");
    assert_eq!(name(r"e\u0063ho"), "echo");
    for (written, read) in bodies::other_names() {
        assert_eq!(name(&written), read, "no trimming, folding, decoding or normalising");
    }
}

#[test]
fn a_refused_request_still_has_its_id_where_one_was_read() {
    let id = |body: &str| read_text(body).unwrap_err().id.map(|id| id.as_json().to_owned());
    assert_eq!(
        id(r#"{"jsonrpc":"2.0","id":7,"method":"ping","extra":1}"#).as_deref(),
        Some("7")
    );
    let quoted = r#"{"jsonrpc":"2.0","id":"a\"b","method":"tools/call"}"#;
    assert_eq!(id(quoted).as_deref(), Some(r#""a\"b""#));
    assert_eq!(
        id(r#"{"jsonrpc":"2.0","method":"tools/call","params":{},"id":"q"}"#).as_deref(),
        Some("\"q\"")
    );
    assert_eq!(id(r#"{"jsonrpc":"2.0","id":7,"id":8,"method":"ping"}"#), None);
    assert_eq!(id(r#"{"jsonrpc":"2.0","id":7,"method":"ping""#), None);
}
