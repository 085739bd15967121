//! Notifications of servers, as far as their content decides which callers may receive them.

use super::json::{DuplicateNames, Fault, JsonKind, Scanner, Span, decode};
use super::message_kind::SERVER_MESSAGE_BOUNDS;

/// The subject of a server's notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerNotification {
    /// The resource with this URI has changed.
    ResourceUpdated(String),
    /// Any other notification: its content does not restrict who may receive it.
    Other,
}

/// `None`: the message cannot be read, or it is a resource update without a readable URI.
pub fn parse_server_notification(message: &[u8]) -> Option<ServerNotification> {
    let (method, uri) = parse_params(message).ok()?;
    match decode(message, method?).ok()?.as_ref() {
        "notifications/resources/updated" => Some(ServerNotification::ResourceUpdated(decode(message, uri?).ok()?.into_owned())),
        _ => Some(ServerNotification::Other),
    }
}

fn parse_params(message: &[u8]) -> Result<(Option<Span>, Option<Span>), Fault> {
    let mut scanner = Scanner::open(message, &SERVER_MESSAGE_BOUNDS, DuplicateNames::Exact)?;
    let mut uri = None;
    let fields = scanner.known_members(0, &["method", "params"], |scanner, index, depth| {
        if index != 1 || scanner.peek() != Some(b'{') {
            return scanner.value(depth);
        }
        let start = scanner.here();
        uri = scanner
            .known_members(depth, &["uri"], |scanner, _, depth| scanner.value(depth))?
            .spans[0];
        Ok(scanner.since(start, JsonKind::Object))
    })?;
    scanner.close()?;
    let text = |span: Option<Span>| span.filter(|span| matches!(span.kind, JsonKind::Text(_)));
    Ok((text(fields.spans[0]), text(uri)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_names_its_resource() {
        let of = |text: &str| parse_server_notification(text.as_bytes());
        let updated =
            r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"_meta":{},"uri":"file:\/\/\/a"}}"#;
        assert_eq!(of(updated), Some(ServerNotification::ResourceUpdated("file:///a".to_owned())));
        let escaped = r#"{"jsonrpc":"2.0","method":"notifications/resources/upd\u0061ted","params":{"uri":"x:y"}}"#;
        assert_eq!(of(escaped), Some(ServerNotification::ResourceUpdated("x:y".to_owned())));
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
        assert_eq!(of(changed), Some(ServerNotification::Other));
    }
}
