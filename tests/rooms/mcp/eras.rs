//! The era follows from the body, and the headers must agree.

use super::*;

fn heads(fields: &[(&'static str, &str)]) -> http::HeaderMap {
    let mut map = http::HeaderMap::new();
    for (name, value) in fields {
        map.append(*name, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    map
}

fn judged(
    body: &str,
    fields: &[(&'static str, &str)],
    session: Option<ProtocolVersion>,
) -> Result<(Era, Option<ProtocolVersion>), Reason> {
    let map = heads(fields);
    let mcp_headers = read_mcp_headers(&map).map_err(|fault| fault.reason)?;
    negotiate(&request(body), &mcp_headers, session).map_err(|fault| fault.reason)
}

const MODERN: &str = "2026-07-28";
const META: &str =
    r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;

fn modern_call() -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"echo",{META}}}}}"#)
}

fn legacy_call() -> String {
    call("{}")
}

#[test]
fn a_modern_call_needs_headers_that_mirror_it() {
    let (version, method, name) = (
        ("mcp-protocol-version", MODERN),
        ("mcp-method", "tools/call"),
        ("mcp-name", "echo"),
    );
    let accepted = Ok((Era::Modern, Some(ProtocolVersion::V20260728)));
    assert_eq!(judged(&modern_call(), &[version, method, name], None), accepted);
    assert_eq!(
        judged(&modern_call(), &[version, method, ("mcp-name", "=?base64?ZWNobw==?=")], None),
        accepted
    );
    assert_eq!(
        judged(&modern_call(), &[version, method, ("mcp-name", " echo\t")], None),
        accepted,
        "white space around a value is not part of it"
    );
    let mismatch = Err(Reason::HeaderMismatch);
    for fields in [
        vec![],
        vec![version, method],
        vec![version, name],
        vec![method, name],
        vec![version, version, method, name],
        vec![version, method, method, name],
        vec![version, method, name, name],
        vec![("mcp-protocol-version", "2026-07-28, 2026-07-28"), method, name],
        vec![("mcp-protocol-version", "2025-11-25"), method, name],
        vec![("mcp-protocol-version", "v2026-07-28"), method, name],
        vec![version, ("mcp-method", "Tools/Call"), name],
        vec![version, ("mcp-method", "tools/list"), name],
        vec![version, ("mcp-method", "=?base64?dG9vbHMvY2FsbA==?="), name],
        vec![version, method, ("mcp-name", "Echo")],
        vec![version, method, ("mcp-name", "echo,echo")],
        vec![version, method, ("mcp-name", "")],
        vec![version, method, ("mcp-name", "écho")],
        vec![version, method, ("mcp-name", "=?BASE64?ZWNobw==?=")],
        vec![version, method, ("mcp-name", "=?base64?ZWNobw?=")],
        vec![version, method, ("mcp-name", "=?base64?PT9iYXNlNjQ/WldOb2J3PT0/PQ==?=")],
    ] {
        assert_eq!(judged(&modern_call(), &fields, None), mismatch, "{fields:?}");
    }
}

#[test]
fn the_body_decides_the_era() {
    let legacy = ("mcp-protocol-version", "2025-11-25");
    let modern = ("mcp-protocol-version", MODERN);
    assert_eq!(
        judged(&modern_call(), &[legacy], Some(ProtocolVersion::V20251125)),
        Err(Reason::HeaderMismatch)
    );
    assert_eq!(judged(&legacy_call(), &[modern], None), Err(Reason::HeaderMismatch));
    assert_eq!(
        judged(&legacy_call(), &[legacy], None),
        Ok((Era::Legacy, Some(ProtocolVersion::V20251125)))
    );
    assert_eq!(
        judged(&legacy_call(), &[legacy], Some(ProtocolVersion::V20251125)),
        Ok((Era::Legacy, Some(ProtocolVersion::V20251125)))
    );
    assert_eq!(
        judged(&legacy_call(), &[], Some(ProtocolVersion::V20250618)),
        Ok((Era::Legacy, Some(ProtocolVersion::V20250618)))
    );
    assert_eq!(judged(&legacy_call(), &[], None), Ok((Era::Legacy, None)));
    assert_eq!(
        judged(&legacy_call(), &[legacy], Some(ProtocolVersion::V20250618)),
        Ok((Era::Legacy, Some(ProtocolVersion::V20250618))),
        "a session speaks what it negotiated"
    );
    assert_eq!(
        judged(&legacy_call(), &[modern], Some(ProtocolVersion::V20250618)),
        Err(Reason::HeaderMismatch)
    );
    assert_eq!(
        judged(&legacy_call(), &[("mcp-name", "other")], None),
        Err(Reason::HeaderMismatch)
    );
    assert_eq!(
        judged(&legacy_call(), &[("mcp-method", "tools/list")], None),
        Err(Reason::HeaderMismatch)
    );
    assert_eq!(
        judged(&legacy_call(), &[("mcp-protocol-version", "2027-01-01")], None),
        Err(Reason::UnsupportedVersion)
    );
}

#[test]
fn versions_nobody_speaks_here_are_named_as_such() {
    for version in ["2027-01-01", "2025-11-25", "latest"] {
        let body = modern_call().replace(MODERN, version);
        let fields = [
            ("mcp-protocol-version", version),
            ("mcp-method", "tools/call"),
            ("mcp-name", "echo"),
        ];
        assert_eq!(judged(&body, &fields, None), Err(Reason::UnsupportedVersion), "{version}");
    }
    let lacking = modern_call().replace(r#","io.modelcontextprotocol/clientCapabilities":{}"#, "");
    assert_eq!(judged(&lacking, &[], None), Err(Reason::InvalidParams));
    let discover = r#"{"jsonrpc":"2.0","id":1,"method":"server/discover"}"#;
    assert_eq!(judged(discover, &[], None), Err(Reason::InvalidParams));
}

#[test]
fn initialize_is_legacy_and_proposes_a_version() {
    let initialize =
        |version: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{{"protocolVersion":"{version}"}}}}"#);
    assert_eq!(
        judged(&initialize("2025-06-18"), &[], None),
        Ok((Era::Legacy, Some(ProtocolVersion::V20250618)))
    );
    assert_eq!(
        judged(&initialize("2026-07-28"), &[], None),
        Ok((Era::Legacy, None)),
        "the server will propose another"
    );
    assert_eq!(
        judged(&initialize("2025-06-18"), &[("mcp-protocol-version", "2025-11-25")], None),
        Ok((Era::Legacy, Some(ProtocolVersion::V20250618)))
    );
    assert_eq!(
        judged(&initialize("2025-06-18"), &[("mcp-protocol-version", MODERN)], None),
        Err(Reason::HeaderMismatch)
    );
    assert_eq!(
        judged(r#"{"jsonrpc":"2.0","id":1,"method":"initialize"}"#, &[], None),
        Err(Reason::InvalidParams)
    );
}

#[test]
fn each_era_has_its_methods() {
    let known = |name: &str, era| {
        let params = match name {
            "tools/call" | "prompts/get" => r#"{"name":"x"}"#,
            "resources/read" | "resources/subscribe" | "resources/unsubscribe" => r#"{"uri":"x:y"}"#,
            "completion/complete" => r#"{"ref":{"type":"ref/prompt","name":"x"},"argument":{"name":"a","value":""}}"#,
            "logging/setLevel" => r#"{"level":"info"}"#,
            "subscriptions/listen" => r#"{"notifications":{}}"#,
            _ => "{}",
        };
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{name}","params":{params}}}"#);
        method(&request(&body), era).is_some()
    };
    for (name, legacy, modern) in [
        ("initialize", true, false),
        ("ping", true, false),
        ("server/discover", false, true),
        ("tools/list", true, true),
        ("tools/call", true, true),
        ("tools/Call", false, false),
        ("resources/list", true, true),
        ("resources/templates/list", true, true),
        ("resources/read", true, true),
        ("resources/subscribe", true, false),
        ("resources/unsubscribe", true, false),
        ("prompts/list", true, true),
        ("prompts/get", true, true),
        ("completion/complete", true, true),
        ("logging/setLevel", true, false),
        ("subscriptions/listen", false, true),
        ("resources/write", false, false),
        ("", false, false),
    ] {
        assert_eq!(
            (known(name, Era::Legacy), known(name, Era::Modern)),
            (legacy, modern),
            "{name}"
        );
    }
}

#[test]
fn a_method_that_the_modern_era_has_lost_is_unknown_whatever_its_parameters_are() {
    for name in [
        "resources/subscribe",
        "resources/unsubscribe",
        "logging/setLevel",
        "tasks/result",
    ] {
        let body = |params: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{name}","params":{{{params}}}}}"#);
        assert_eq!(method(&request(&body(META)), Era::Modern), None, "{name}");
        assert_eq!(
            reason(body("")),
            Reason::InvalidParams,
            "{name} in its own era lacks something"
        );
    }
}

#[test]
fn heads_hold_each_field_once() {
    let map = heads(&[
        ("mcp-session-id", "abc"),
        ("last-event-id", "7"),
        ("mcp-protocol-version", "2025-06-18"),
    ]);
    let read = read_mcp_headers(&map).unwrap();
    let wanted = McpHeaders {
        session: Some("abc"),
        last_event_id: Some("7"),
        protocol_version: Some("2025-06-18"),
        ..McpHeaders::default()
    };
    assert_eq!(read, wanted);
    assert!(read_mcp_headers(&heads(&[("mcp-session-id", "a"), ("mcp-session-id", "a")])).is_err());
    assert!(read_mcp_headers(&heads(&[("last-event-id", "\u{e9}")])).is_err());
    assert!(
        read_mcp_headers(&heads(&[("mcp-param-", "1")])).is_err(),
        "a parameter without a name"
    );
    assert!(read_mcp_headers(&heads(&[("mcp-param-a", "1")])).is_ok());
}
