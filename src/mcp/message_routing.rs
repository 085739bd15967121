//! Reads what routes messages on a connection that many requests share: the kind of a message, its id, its progress
//! token, the request it cancels. To which session it belongs is decided elsewhere.

use super::json::{DuplicateNames, Fault, JsonKind, Malformed, Scanner, Span, decode, fault};
use super::message_kind::SERVER_MESSAGE_BOUNDS;
use super::splice::JsonSpan;
use crate::domain::Reason;

/// The routing data of a message, whichever side sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageRouting {
    pub kind: JsonRpcKind,
    /// Of a request or an answer. An answer with a `null` id has none.
    pub id: Option<JsonSpan>,
    /// The progress token: `params._meta.progressToken` of a request, `params.progressToken` of a notification.
    pub progress_token: Option<JsonSpan>,
    /// The request that a `notifications/cancelled` cancels.
    pub cancelled_request: Option<JsonSpan>,
}

/// The kind of a message; requests and notifications carry their method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JsonRpcKind {
    Request(String),
    Notification(String),
    Response,
}

/// Parses one message.
pub fn read_routing(message: &[u8]) -> Result<MessageRouting, Malformed> {
    Ok(parse_routing(message)?)
}

fn parse_routing(message: &[u8]) -> Result<MessageRouting, Fault> {
    let mut scanner = Scanner::open(message, &SERVER_MESSAGE_BOUNDS, DuplicateNames::Exact)?;
    let (mut asked, mut told, mut cancels) = (None, None, None);
    let fields = scanner.known_members(
        0,
        &["jsonrpc", "id", "method", "params", "result", "error"],
        |scanner, index, depth| {
            if index != 3 || scanner.peek() != Some(b'{') {
                return scanner.value(depth);
            }
            let start = scanner.here();
            let params = scanner.known_members(depth, &["_meta", "progressToken", "requestId"], |scanner, index, depth| {
                if index != 0 || scanner.peek() != Some(b'{') {
                    return scanner.value(depth);
                }
                let start = scanner.here();
                let meta = scanner.known_members(depth, &["progressToken"], |scanner, _, depth| scanner.value(depth))?;
                asked = id_or_token(meta.spans[0]);
                Ok(scanner.since(start, JsonKind::Object))
            })?;
            (told, cancels) = (id_or_token(params.spans[1]), id_or_token(params.spans[2]));
            Ok(scanner.since(start, JsonKind::Object))
        },
    )?;
    scanner.close()?;
    let [jsonrpc, id, method, _, result, error] = fields.spans;
    if jsonrpc.is_none_or(|span| &message[span.range()] != b"\"2.0\"") {
        return Err(fault(Reason::UpstreamBroken, "`jsonrpc` is not \"2.0\""));
    }
    if id.is_some_and(|id| !matches!(id.kind, JsonKind::Text(_) | JsonKind::Number(_) | JsonKind::Null)) {
        return Err(fault(Reason::UpstreamBroken, "`id` is neither a text nor a number"));
    }
    let id = id_or_token(id);
    let (kind, progress) = match (method, result.or(error)) {
        (Some(method), None) => {
            let method = decode(message, method)?.into_owned();
            match id {
                Some(_) => (JsonRpcKind::Request(method), asked),
                None => (JsonRpcKind::Notification(method), told),
            }
        }
        (None, Some(_)) => (JsonRpcKind::Response, None),
        _ => {
            return Err(fault(
                Reason::UpstreamBroken,
                "neither a request, a notification nor an answer",
            ));
        }
    };
    let cancels = cancels.filter(|_| kind == JsonRpcKind::Notification("notifications/cancelled".to_owned()));
    Ok(MessageRouting {
        kind,
        id,
        progress_token: progress,
        cancelled_request: cancels,
    })
}

/// Ids and progress tokens are strings or numbers.
fn id_or_token(span: Option<Span>) -> Option<JsonSpan> {
    span.filter(|span| matches!(span.kind, JsonKind::Text(_) | JsonKind::Number(_)))
        .map(JsonSpan::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routing_of(text: &str) -> (JsonRpcKind, [Option<&str>; 3]) {
        let wire = read_routing(text.as_bytes()).unwrap();
        let at = |span: Option<JsonSpan>| span.map(|span| &text[span.range()]);
        (wire.kind, [at(wire.id), at(wire.progress_token), at(wire.cancelled_request)])
    }

    #[test]
    fn ids_and_tokens_are_found_where_the_kind_of_a_message_has_them() {
        let request = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"_meta":{"progressToken":"p"},"progressToken":1,"requestId":2}}"#;
        assert_eq!(
            routing_of(request),
            (JsonRpcKind::Request("tools/call".into()), [Some("7"), Some("\"p\""), None])
        );
        let progress =
            r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":3,"_meta":{"progressToken":4}}}"#;
        assert_eq!(
            routing_of(progress),
            (
                JsonRpcKind::Notification("notifications/progress".into()),
                [None, Some("3"), None]
            )
        );
        let cancelled = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"a"}}"#;
        assert_eq!(
            routing_of(cancelled),
            (
                JsonRpcKind::Notification("notifications/cancelled".into()),
                [None, None, Some("\"a\"")]
            )
        );
        // Members inside a result route nothing.
        let answer = r#"{"jsonrpc":"2.0","id":"1","result":{"id":2,"method":"x","params":{"progressToken":3}}}"#;
        assert_eq!(routing_of(answer), (JsonRpcKind::Response, [Some("\"1\""), None, None]));
        let nobody = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"?"}}"#;
        assert_eq!(routing_of(nobody), (JsonRpcKind::Response, [None, None, None]));
    }

    #[test]
    fn what_is_no_message_or_could_be_two_is_refused() {
        for text in [
            "Server listening",
            "{}",
            r#"{"level":30,"msg":"ready"}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":1,"id":2,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"Id":2,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"a","result":{}}"#,
            r#"{"jsonrpc":"2.0","method":"a","params":{"progressToken":1,"progressToken":2}}"#,
            r#"[{"jsonrpc":"2.0","id":1,"result":{}}]"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{}} {}"#,
        ] {
            assert!(read_routing(text.as_bytes()).is_err(), "{text}");
        }
    }
}
