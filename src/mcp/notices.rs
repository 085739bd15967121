//! Notifications of servers, as far as their content decides which callers may receive them.

use super::answer::ANSWER_BOUNDS;
use super::json::{Fault, Kind, Scan, Span, Twins, decode};

/// The subject of a server's notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The resource with this URI has changed.
    Updated(String),
    /// Any other notification: its content does not restrict who may receive it.
    Other,
}

/// `None`: the message cannot be read, or it is a resource update without a readable URI.
pub fn notice(message: &[u8]) -> Option<Notice> {
    let (method, uri) = read(message).ok()?;
    match decode(message, method?).ok()?.as_ref() {
        "notifications/resources/updated" => Some(Notice::Updated(decode(message, uri?).ok()?.into_owned())),
        _ => Some(Notice::Other),
    }
}

fn read(message: &[u8]) -> Result<(Option<Span>, Option<Span>), Fault> {
    let mut scan = Scan::open(message, &ANSWER_BOUNDS, Twins::Exact)?;
    let mut uri = None;
    let fields = scan.fields(0, &["method", "params"], |scan, index, depth| {
        if index != 1 || scan.peek() != Some(b'{') {
            return scan.value(depth);
        }
        let start = scan.here();
        uri = scan.fields(depth, &["uri"], |scan, _, depth| scan.value(depth))?.spans[0];
        Ok(scan.since(start, Kind::Object))
    })?;
    scan.close()?;
    let text = |span: Option<Span>| span.filter(|span| matches!(span.kind, Kind::Text(_)));
    Ok((text(fields.spans[0]), text(uri)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_names_its_resource() {
        let of = |text: &str| notice(text.as_bytes());
        let updated =
            r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"_meta":{},"uri":"file:\/\/\/a"}}"#;
        assert_eq!(of(updated), Some(Notice::Updated("file:///a".to_owned())));
        let escaped = r#"{"jsonrpc":"2.0","method":"notifications/resources/upd\u0061ted","params":{"uri":"x:y"}}"#;
        assert_eq!(of(escaped), Some(Notice::Updated("x:y".to_owned())));
        for illegible in [
            r#"{"jsonrpc":"2.0","method":"notifications/resources/updated"}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":7}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"x:y","uri":"x:z"}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"x:y","URI":"x:z"}}"#,
            r#"{"jsonrpc":"2.0","method":7}"#,
        ] {
            assert_eq!(of(illegible), None, "{illegible}");
        }
        let changed = r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;
        assert_eq!(of(changed), Some(Notice::Other));
    }
}
