//! Merges the pages of a list from several answers into one answer. The items keep their bytes, in the order of the
//! pages.

use super::json::JsonSpan;
use super::server_message::{ListKind, ServerMessage};
use crate::domain::{Era, MessageId};
use bytes::Bytes;

/// One page of a list, taken from one answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The items as they were written, separated by commas.
    items: String,
    pub next_cursor: Option<String>,
    /// For how long the page may be cached.
    pub ttl_ms: Option<u64>,
}

impl Page {
    /// A page of items that are already written as JSON.
    pub fn of(items: &[String], ttl_ms: u64) -> Self {
        Self {
            items: items.join(","),
            next_cursor: None,
            ttl_ms: Some(ttl_ms),
        }
    }

    /// The page in an answer; `None` if it does not contain the list `of`.
    pub fn read(answer: &[u8], of: ListKind) -> Option<Self> {
        let parsed = ServerMessage::parse(answer).ok()?;
        let list = parsed
            .lists
            .iter()
            .find(|list| list.of == of && parsed.unclear_lists.is_none())?;
        let list = list.span.range();
        let items = std::str::from_utf8(answer.get(list.start + 1..list.end - 1)?).ok()?;
        let cursor = parsed.next_cursor.map(|span| span.text(answer));
        let ttl = parsed.ttl_ms.map(|span| JsonSpan::from(span).text(answer));
        Some(Self {
            items: items.trim().to_owned(),
            next_cursor: cursor.and_then(|text| serde_json::from_str(text).ok()),
            ttl_ms: ttl.and_then(|ttl| ttl.parse().ok()),
        })
    }
}

/// Writes one answer with the items of all pages. It is private to one caller (`cacheScope`) and may be cached no longer
/// than the shortest-lived page.
pub fn merge_pages(id: &MessageId, of: ListKind, pages: &[Page], next_cursor: Option<&str>, era: Era) -> Bytes {
    let things: Vec<&str> = pages
        .iter()
        .map(|page| &*page.items)
        .filter(|items| !items.is_empty())
        .collect();
    let member = of.member();
    let mut result = format!(r#"{{"{member}":[{}]"#, things.join(","));
    if let Some(cursor) = next_cursor {
        result.push_str(&format!(r#","nextCursor":{}"#, serde_json::Value::from(cursor)));
    }
    if era == Era::Modern {
        let ttl = pages
            .iter()
            .map(|page| page.ttl_ms.unwrap_or_default())
            .min()
            .unwrap_or_default();
        result.push_str(&format!(r#","resultType":"complete","cacheScope":"private","ttlMs":{ttl}"#));
    }
    format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}}}"#, id.as_json()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_put_together_as_they_were_written() {
        let first = br#"{"jsonrpc":"2.0","id":1,"result":{"resources":[ {"uri":"x:1" , "n":1.50},{"uri":"x:2"} ],"nextCursor":"p\u0032","ttlMs":900}}"#;
        let second = br#"{"jsonrpc":"2.0","id":1,"result":{"resources":[{"uri":"y:1"}],"ttlMs":30}}"#;
        let empty = br#"{"jsonrpc":"2.0","id":1,"result":{"resources":[ ] ,"ttlMs":50}}"#;
        let page = |text: &[u8]| Page::read(text, ListKind::Resources).unwrap();
        assert_eq!(page(first).next_cursor.as_deref(), Some("p2"));
        let id = MessageId::from_json(Bytes::from_static(b"\"a\""));
        let pages = [page(first), page(empty), page(second)];
        let items = r#"[{"uri":"x:1" , "n":1.50},{"uri":"x:2"},{"uri":"y:1"}]"#;
        assert_eq!(
            merge_pages(&id, ListKind::Resources, &pages, Some("c"), Era::Legacy),
            format!(r#"{{"jsonrpc":"2.0","id":"a","result":{{"resources":{items},"nextCursor":"c"}}}}"#)
        );
        assert_eq!(
            merge_pages(&id, ListKind::Resources, &pages, None, Era::Modern),
            format!(
                r#"{{"jsonrpc":"2.0","id":"a","result":{{"resources":{items},"resultType":"complete","cacheScope":"private","ttlMs":30}}}}"#
            )
        );
        assert_eq!(
            merge_pages(&id, ListKind::Tools, &[], None, Era::Legacy),
            r#"{"jsonrpc":"2.0","id":"a","result":{"tools":[]}}"#
        );
    }

    #[test]
    fn what_holds_no_such_list_is_no_page() {
        for answer in [
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[]}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"resources":{}}}"#,
            "[]",
        ] {
            assert_eq!(Page::read(answer.as_bytes(), ListKind::Resources), None, "{answer}");
        }
    }
}
