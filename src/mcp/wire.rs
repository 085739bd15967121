//! Reads what routes messages on a connection that many requests share: the kind of a message, its id, its progress
//! token, the request it cancels. To which session it belongs is decided elsewhere.

use super::answer::ANSWER_BOUNDS;
use super::json::{Fault, Kind, Malformed, Scan, Span, Twins, decode, fault};
use super::splice::Place;
use crate::domain::Reason;

/// The routing data of a message, whichever side sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wire {
    pub kind: WireKind,
    /// Of a request or an answer. An answer with a `null` id has none.
    pub id: Option<Place>,
    /// The progress token: `params._meta.progressToken` of a request, `params.progressToken` of a notification.
    pub progress: Option<Place>,
    /// The request that a `notifications/cancelled` cancels.
    pub cancels: Option<Place>,
}

/// The kind of a message; requests and notifications carry their method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WireKind {
    Request(String),
    Notification(String),
    Answer,
}

/// Parses one message.
pub fn wire(message: &[u8]) -> Result<Wire, Malformed> {
    Ok(read(message)?)
}

fn read(message: &[u8]) -> Result<Wire, Fault> {
    let mut scan = Scan::open(message, &ANSWER_BOUNDS, Twins::Exact)?;
    let (mut asked, mut told, mut cancels) = (None, None, None);
    let fields = scan.fields(
        0,
        &["jsonrpc", "id", "method", "params", "result", "error"],
        |scan, index, depth| {
            if index != 3 || scan.peek() != Some(b'{') {
                return scan.value(depth);
            }
            let start = scan.here();
            let params = scan.fields(depth, &["_meta", "progressToken", "requestId"], |scan, index, depth| {
                if index != 0 || scan.peek() != Some(b'{') {
                    return scan.value(depth);
                }
                let start = scan.here();
                let meta = scan.fields(depth, &["progressToken"], |scan, _, depth| scan.value(depth))?;
                asked = name(meta.spans[0]);
                Ok(scan.since(start, Kind::Object))
            })?;
            (told, cancels) = (name(params.spans[1]), name(params.spans[2]));
            Ok(scan.since(start, Kind::Object))
        },
    )?;
    scan.close()?;
    let [jsonrpc, id, method, _, result, error] = fields.spans;
    if jsonrpc.is_none_or(|span| &message[span.range()] != b"\"2.0\"") {
        return Err(fault(Reason::UpstreamBroken, "`jsonrpc` is not \"2.0\""));
    }
    if id.is_some_and(|id| !matches!(id.kind, Kind::Text(_) | Kind::Number(_) | Kind::Null)) {
        return Err(fault(Reason::UpstreamBroken, "`id` is neither a text nor a number"));
    }
    let id = name(id);
    let (kind, progress) = match (method, result.or(error)) {
        (Some(method), None) => {
            let method = decode(message, method)?.into_owned();
            match id {
                Some(_) => (WireKind::Request(method), asked),
                None => (WireKind::Notification(method), told),
            }
        }
        (None, Some(_)) => (WireKind::Answer, None),
        _ => {
            return Err(fault(
                Reason::UpstreamBroken,
                "neither a request, a notification nor an answer",
            ));
        }
    };
    let cancels = cancels.filter(|_| kind == WireKind::Notification("notifications/cancelled".to_owned()));
    Ok(Wire {
        kind,
        id,
        progress,
        cancels,
    })
}

/// Ids and progress tokens are strings or numbers.
fn name(span: Option<Span>) -> Option<Place> {
    span.filter(|span| matches!(span.kind, Kind::Text(_) | Kind::Number(_)))
        .map(Place::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (WireKind, [Option<&str>; 3]) {
        let wire = wire(text.as_bytes()).unwrap();
        let at = |place: Option<Place>| place.map(|place| &text[place.range()]);
        (wire.kind, [at(wire.id), at(wire.progress), at(wire.cancels)])
    }

    #[test]
    fn ids_and_tokens_are_found_where_the_kind_of_a_message_has_them() {
        let request = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"_meta":{"progressToken":"p"},"progressToken":1,"requestId":2}}"#;
        assert_eq!(
            read(request),
            (WireKind::Request("tools/call".into()), [Some("7"), Some("\"p\""), None])
        );
        let progress =
            r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":3,"_meta":{"progressToken":4}}}"#;
        assert_eq!(
            read(progress),
            (
                WireKind::Notification("notifications/progress".into()),
                [None, Some("3"), None]
            )
        );
        let cancelled = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"a"}}"#;
        assert_eq!(
            read(cancelled),
            (
                WireKind::Notification("notifications/cancelled".into()),
                [None, None, Some("\"a\"")]
            )
        );
        // Members inside a result route nothing.
        let answer = r#"{"jsonrpc":"2.0","id":"1","result":{"id":2,"method":"x","params":{"progressToken":3}}}"#;
        assert_eq!(read(answer), (WireKind::Answer, [Some("\"1\""), None, None]));
        let nobody = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"?"}}"#;
        assert_eq!(read(nobody), (WireKind::Answer, [None, None, None]));
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
            assert!(wire(text.as_bytes()).is_err(), "{text}");
        }
    }
}
