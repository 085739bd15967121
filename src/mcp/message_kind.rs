//! What a JSON-RPC message is, seen from a request. What a result means is not judged here.

use super::json::{JsonKind, Span, decode};
use crate::domain::MessageId;

/// What a server's message is, seen from the request that waits for an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MessageKind {
    /// A result; `is_error` is the tool result's `isError`.
    Result {
        is_error: bool,
    },
    /// A JSON-RPC error. Not `addressed`: its id is null or absent, as when the server could not read the request's id.
    Error {
        code: i64,
        addressed: bool,
    },
    /// An answer to another request.
    OtherResponse,
    /// A request of the server to the client.
    ServerRequest,
    ServerNotification,
    /// Nothing that a client could read.
    Malformed(String),
}

/// Compares ids by value: a server may escape a string differently, or write `7` as `7.0`.
pub(super) fn same_id(answer: &[u8], span: Span, id: &MessageId) -> bool {
    let written = &answer[span.range()];
    let sent = id.as_json();
    if written == sent.as_bytes() {
        return true;
    }
    match (span.kind, sent.starts_with('"')) {
        (JsonKind::Text(_), true) => {
            let sent: Option<String> = serde_json::from_str(sent).ok();
            sent.is_some() && decode(answer, span).ok().as_deref() == sent.as_deref()
        }
        (JsonKind::Number(_), false) => {
            let written = std::str::from_utf8(written).ok().and_then(|text| text.parse::<f64>().ok());
            written.is_some() && written == sent.parse().ok()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::{ServerMessage, error, result};
    use bytes::Bytes;

    fn message_kind(answer: &[u8], id: &MessageId) -> MessageKind {
        ServerMessage::classify(answer, id).0
    }

    fn id(text: &str) -> MessageId {
        MessageId::from_json(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn kind(answer: &str) -> MessageKind {
        message_kind(answer.as_bytes(), &id("7"))
    }

    #[test]
    fn what_a_server_sends_is_recognised() {
        let ok = |is_error| MessageKind::Result { is_error };
        let error = |code, addressed| MessageKind::Error { code, addressed };
        for (answer, wanted) in [
            (r#"{"jsonrpc":"2.0","id":7,"result":{}}"#, ok(false)),
            (r#"{"jsonrpc":"2.0","id":7.0,"result":{"isError":false}}"#, ok(false)),
            (
                r#"{"jsonrpc":"2.0","id":7,"result":{"content":[{"isError":true}],"isError":true}}"#,
                ok(true),
            ),
            (
                r#"{"jsonrpc":"2.0","id":7,"result":{"rows":[{"id":1,"Id":2}]},"extra":1}"#,
                ok(false),
            ),
            (r#"{"jsonrpc":"2.0","id":7,"result":null}"#, ok(false)),
            (
                r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"no"}}"#,
                error(-32601, true),
            ),
            (
                r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"no"}}"#,
                error(-32700, false),
            ),
            (r#"{"jsonrpc":"2.0","error":{"message":"no"}}"#, error(0, false)),
            (r#"{"jsonrpc":"2.0","id":8,"result":{}}"#, MessageKind::OtherResponse),
            (r#"{"jsonrpc":"2.0","id":"7","result":{}}"#, MessageKind::OtherResponse),
            (
                r#"{"jsonrpc":"2.0","id":8,"error":{"code":1,"message":""}}"#,
                MessageKind::OtherResponse,
            ),
            (
                r#"{"jsonrpc":"2.0","id":7,"method":"roots/list"}"#,
                MessageKind::ServerRequest,
            ),
            (
                r#"{"jsonrpc":"2.0","method":"notifications/message","params":{}}"#,
                MessageKind::ServerNotification,
            ),
        ] {
            assert_eq!(kind(answer), wanted, "{answer}");
        }
    }

    #[test]
    fn what_no_client_could_read_is_malformed() {
        for answer in [
            "",
            "null",
            "[]",
            r#"[{"jsonrpc":"2.0","id":7,"result":{}}]"#,
            r#"{"id":7,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":7}"#,
            r#"{"jsonrpc":"2.0","id":7,"result":{},"error":{}}"#,
            r#"{"jsonrpc":"2.0","id":7,"result":{},"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":7,"error":"no"}"#,
            r#"{"jsonrpc":"2.0","id":null,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":7,"id":7,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":7,"result":{"a":1,"a":2}}"#,
            r#"{"jsonrpc":"2.0","id":7,"Result":{}}"#,
            r#"{"jsonrpc":"2.0","id":7,"result":{}} x"#,
        ] {
            assert!(matches!(kind(answer), MessageKind::Malformed(_)), "{answer}");
        }
    }

    #[test]
    fn ids_are_the_same_by_what_they_mean() {
        let ours = |sent: &str, answered: &str| {
            let answer = format!(r#"{{"jsonrpc":"2.0","id":{answered},"result":1}}"#);
            message_kind(answer.as_bytes(), &id(sent)) != MessageKind::OtherResponse
        };
        assert!(ours(r#""a\/é""#, r#""a/\u00e9""#));
        assert!(ours("0", "0"));
        assert!(!ours(r#""a""#, r#""A""#));
        assert!(!ours("1", "-1"));
        assert!(!ours("1", "true"));
    }

    #[test]
    fn written_answers_are_recognised() {
        let seven = id("7");
        let wanted = MessageKind::Error {
            code: 4001,
            addressed: true,
        };
        let body = error(
            Some(&seven),
            4001,
            "no \"scope\"\n",
            Some(serde_json::json!({"reason": "missing_scope"})),
        );
        assert_eq!(message_kind(&body, &seven), wanted);
        assert_eq!(
            message_kind(&result(&seven, serde_json::json!({})), &seven),
            MessageKind::Result { is_error: false }
        );
        let nobody = error(None, 4001, "no", None);
        assert_eq!(
            message_kind(
                &ServerMessage::parse(&nobody).unwrap().readdressed(&nobody, &seven).unwrap(),
                &seven
            ),
            wanted
        );
    }
}
