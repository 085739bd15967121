//! The entries T1 to T8 of the threat catalogue, as far as one body shows them.

use super::*;

#[test]
fn t1_a_member_twice_at_any_depth_is_ambiguous() {
    for body in [
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"tools/call"}"#,
        r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","jsonrpc":"2.0","id":1,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a"},"params":{"name":"b"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"a"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","n\u0061me":"b"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"\u006eame":"a","n\u0061me":"b"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_meta":{"x":1,"\u0078":1}}}"#,
        &call(r#"{"path":"/a","path":"/b"}"#),
        &call(r#"{"a":[[{"b":{"c":1,"d":2,"c":3}}]]}"#),
        &call(r#"{"\ud83d\ude00":1,"😀":2}"#),
        &call(r#"{"a\/b":1,"a/b":2}"#),
        &call(r#"{"":1,"":2}"#),
        &call(r#"{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1,"h":1,"i":1,"j":1,"k":1,"b":2}"#),
    ] {
        assert_eq!(reason(body), Reason::AmbiguousJson, "{body}");
    }
}

#[test]
fn t2_names_that_folding_makes_equal_are_ambiguous() {
    for body in [
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","Method":"tools/call"}"#,
        r#"{"JSONRPC":"2.0","id":1,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","Id":1,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","paramS":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","param\u017f":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","paramſ":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","Name":"b"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"NAME":"b"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","argumentſ":{}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","tas\u212a":{}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_Meta":{}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_meta":{"io.modelcontextprotocol/ProtocolVersion":"2026-07-28"}}}"#,
        &call(r#"{"path":"/a","Path":"/b"}"#),
        &call(r#"{"mask":1,"mas\u212a":2}"#),
        &call(r#"{"straße":1,"STRAßE":2}"#),
        &call(r#"{"ÄRGER":1,"ärger":2}"#),
        &call(r#"{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1,"h":1,"i":1,"j":1,"K":1,"\u212a":2}"#),
    ] {
        assert_eq!(reason(body), Reason::AmbiguousJson, "{body}");
    }
    request(&call(
        r#"{"path":"/a","paths":[],"pat":"","PATHX":1,"Name":"a member of arguments may have any one spelling"}"#,
    ));
}

#[test]
fn t2_strangers_beside_known_members_are_refused() {
    assert_eq!(
        reason(r#"{"jsonrpc":"2.0","id":1,"method":"ping","extra":1}"#),
        Reason::InvalidRequest
    );
    assert_eq!(
        reason(r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{},"_meta":{}}"#),
        Reason::InvalidRequest
    );
    for stranger in ["extra", "toolName", "arguments ", "cursor", "uri", "protocolVersion", "ref"] {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"a","{stranger}":"x"}}}}"#);
        assert_eq!(reason(&body), Reason::InvalidParams, "{body}");
    }
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
    for body in [
        r#""ping""#,
        "1",
        "null",
        "{}",
        r#"{"id":1,"method":"ping"}"#,
        r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#,
        r#"{"jsonrpc":2.0,"id":1,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0 ","id":1,"method":"ping"}"#,
        r#"{"jsonrpc":"2\u002e0","id":1,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":null}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":["ping"]}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","error":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":{},"params":{}}"#,
        r#"{"jsonrpc":"2.0","result":{}}"#,
        r#"{"jsonrpc":"2.0","id":null,"result":{}}"#,
        r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"a"}}"#,
        r#"{"jsonrpc":"2.0","method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"notifications/initialized"}"#,
        r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1.0,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1e2,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":-0,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":9007199254740992,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":123456789012345678901234567890,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":true,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":[1],"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#,
        &format!(r#"{{"jsonrpc":"2.0","id":"{}","method":"ping"}}"#, "x".repeat(300)),
    ] {
        assert_eq!(reason(body), Reason::InvalidRequest, "{body}");
    }
    for params in ["null", "[]", r#"["echo",{}]"#, r#""x""#, "1"] {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#);
        assert_eq!(reason(&body), Reason::InvalidParams, "{body}");
    }
    for params in [
        r#"{}"#,
        r#"{"name":null}"#,
        r#"{"name":["echo"]}"#,
        r#"{"name":1}"#,
        r#"{"name":"a","arguments":[]}"#,
        r#"{"name":"a","arguments":null}"#,
        r#"{"name":"a","arguments":"{}"}"#,
        r#"{"name":"a","_meta":[]}"#,
        r#"{"name":"a","_meta":null}"#,
        r#"{"name":"a","inputResponses":[]}"#,
        r#"{"name":"a","requestState":{}}"#,
        r#"{"name":"a","task":true}"#,
        r#"{"name":"a","_meta":{"io.modelcontextprotocol/protocolVersion":20260728}}"#,
        r#"{"name":"a","_meta":{"io.modelcontextprotocol/clientCapabilities":[]}}"#,
    ] {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#);
        assert_eq!(reason(&body), Reason::InvalidParams, "{body}");
    }
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
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let utf16: Vec<u8> = ping.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let utf16_be: Vec<u8> = ping.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let utf32: Vec<u8> = ping.chars().flat_map(|char| u32::from(char).to_le_bytes()).collect();
    let with_mark = [b"\xef\xbb\xbf", ping.as_bytes()].concat();
    let quoted = |bytes: &[u8]| [br#"{"jsonrpc":"2.0","id":1,"method":"ping"#, bytes, br#""}"#].concat();
    for body in [
        utf16,
        utf16_be,
        utf32,
        with_mark,
        quoted(b"\xff"),
        quoted(b"\x80"),
        quoted(b"\xc0\xaf"),
        quoted(b"\xe0\x80\xaf"),
        quoted(b"\xed\xa0\x80"),
        quoted(b"\xed\xa0\xbd\xed\xb8\x80"),
        quoted(b"\xf4\x90\x80\x80"),
        quoted(b"\xc3"),
        quoted(b"\0"),
        quoted(br"\ud800"),
        b"+AHsAIg-".to_vec(),
    ] {
        assert_eq!(reason(&body), Reason::MalformedJson, "{body:x?}");
    }
    assert_eq!(
        reason(call(r#"{"a\u0000b":1}"#)),
        Reason::AmbiguousJson,
        "a name that ends early for some"
    );
}

#[test]
fn t5_nothing_follows_the_message() {
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    for tail in ["{}", "\n{}", ",", "]", "}", "\0", "x", "//", "/**/", "\u{feff}", ping] {
        assert_eq!(reason(format!("{ping}{tail}")), Reason::MalformedJson, "{tail:?}");
    }
    request(&format!("{ping}\r\n"));
}

#[test]
fn t6_depth_and_members_are_bounded_and_cheap() {
    let deep = |levels: usize| call(&format!("{}{}{}", r#"{"a":"#.repeat(levels), 1, "}".repeat(levels)));
    request(&deep(62));
    assert_eq!(reason(deep(63)), Reason::MalformedJson);
    let brackets = |levels: usize| format!(r#"{{"a":{}"#, "[".repeat(levels));
    assert_eq!(reason(call(&brackets(12_000))), Reason::MalformedJson);
    assert_eq!(reason("[".repeat(30_000)), Reason::InvalidRequest);
    assert_eq!(reason(r#"{"a":"#.repeat(30_000)), Reason::MalformedJson);
    let wide = |count: usize, name: fn(usize) -> String| {
        let members: Vec<String> = (0..count).map(|index| format!(r#""{}":1"#, name(index))).collect();
        call(&format!("{{{}}}", members.join(",")))
    };
    request(&wide(9_994, |index| format!("k{index}")));
    assert_eq!(reason(wide(10_001, |index| format!("k{index}"))), Reason::MalformedJson);
    assert_eq!(
        reason(wide(5_000, |index| format!("k{}", index % 4_999))),
        Reason::AmbiguousJson
    );
    request(&call(&format!(r#"{{"n":{}}}"#, "1".repeat(300))));
    assert_eq!(
        reason(call(&format!(r#"{{"n":{}}}"#, "1".repeat(5_000)))),
        Reason::MalformedJson
    );
    assert_eq!(
        reason(call(&format!(r#"{{"n":0.{}}}"#, "1".repeat(5_000)))),
        Reason::MalformedJson
    );
}

#[test]
fn t7_batches_are_refused_even_of_one() {
    for body in [
        "[]",
        "[1]",
        &format!("[{}]", call("{}")),
        &format!(" \n[{},{}]", call("{}"), call("{}")),
    ] {
        assert_eq!(reason(body), Reason::InvalidRequest, "{body}");
    }
}

#[test]
fn t8_a_tool_name_is_what_the_bytes_say_after_unescaping() {
    let name = |written: &str| {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{written}"}}}}"#);
        request(&body).params.unwrap().name.unwrap()
    };
    assert_eq!(name("echo"), "echo");
    assert_eq!(name(r"e\u0063ho"), "echo");
    for kept in ["Echo", " echo", "echo ", "e%63ho", "e\u{301}cho", "ｅcho", "a/b", ""] {
        assert_eq!(name(kept), kept, "no trimming, folding, decoding or normalising");
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
