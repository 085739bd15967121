//! Filters the lists in answers for one caller. Hidden items are removed, visible tools get their pinned definition, and
//! everything else stays byte for byte. Filtering is a courtesy; access is decided when an item is used.

use super::json::{DuplicateNames, Fault, JsonKind, Malformed, Scanner, Span, decode};
use super::message_kind::SERVER_MESSAGE_BOUNDS;
use super::splice::spliced;
use crate::domain::{Era, Reason};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// The kind of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListKind {
    Tools,
    Resources,
    Templates,
    Prompts,
}

/// What the caller is shown of one item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListVisibility {
    /// Removed from the list.
    Hidden,
    /// Kept byte for byte.
    Unchanged,
    /// Replaced by this definition. A second item with the same name is dropped.
    Replaced(Arc<str>),
}

/// Decides by the name or URI of an item what the caller is shown of it.
pub type VisibilityFn<'a> = &'a mut dyn FnMut(ListKind, &str) -> ListVisibility;

impl ListKind {
    const ALL: [ListKind; 4] = [ListKind::Tools, ListKind::Resources, ListKind::Templates, ListKind::Prompts];
    const MEMBERS: [&'static str; 5] = ["tools", "resources", "resourceTemplates", "prompts", "cacheScope"];

    /// The member of the result that holds the list.
    pub(super) const fn member(self) -> &'static str {
        Self::MEMBERS[self as usize]
    }

    /// The member that identifies an item.
    const fn named_by(self) -> &'static [&'static str; 1] {
        match self {
            ListKind::Tools | ListKind::Prompts => &["name"],
            ListKind::Resources => &["uri"],
            ListKind::Templates => &["uriTemplate"],
        }
    }
}

/// Filters the answer to a request for the list `of`. An error answer is returned unchanged; a result without the list is
/// refused.
pub fn filter_list(answer: &[u8], of: ListKind, keep: VisibilityFn<'_>, era: Era) -> Result<Bytes, Malformed> {
    let lists = Lists::read(answer)?;
    match lists.result {
        None => Ok(Bytes::copy_from_slice(answer)),
        Some(_) if lists.lists.iter().all(|list| list.of != of) => {
            let member = of.member();
            Err(Malformed::new(
                Reason::UpstreamBroken,
                format!("the answer has no list `{member}`"),
            ))
        }
        Some(result) => Ok(lists.rewritten(answer, result, keep, era)?),
    }
}

/// The same for an answer whose request is not known; `None` if it contains no list.
pub fn filter_if_list(answer: &[u8], keep: VisibilityFn<'_>, era: Era) -> Result<Option<Bytes>, Malformed> {
    let lists = Lists::read(answer)?;
    match lists.result {
        Some(result) if !lists.lists.is_empty() => Ok(Some(lists.rewritten(answer, result, keep, era)?)),
        _ => Ok(None),
    }
}

/// Marks an answer as private (`cacheScope`), because other callers may not be allowed to have it. An error answer is
/// returned unchanged.
pub fn mark_private(answer: &[u8], era: Era) -> Result<Bytes, Malformed> {
    let lists = Lists::read(answer)?;
    match lists.result.filter(|result| result.kind == JsonKind::Object) {
        Some(result) => Ok(spliced(answer, lists.private(answer, result, era).into_iter().collect())),
        None => Ok(Bytes::copy_from_slice(answer)),
    }
}

/// The lists in an answer, and the other members that filtering needs.
struct Lists {
    result: Option<Span>,
    cache_scope: Option<Span>,
    lists: Vec<List>,
}

struct List {
    of: ListKind,
    span: Span,
    items: Vec<ListItem>,
}

struct ListItem {
    span: Span,
    name: Option<Span>,
}

impl Lists {
    fn read(answer: &[u8]) -> Result<Self, Fault> {
        let mut scanner = Scanner::open(answer, &SERVER_MESSAGE_BOUNDS, DuplicateNames::Exact)?;
        let mut lists = Vec::new();
        let mut cache_scope = None;
        let fields = scanner.known_members(0, &["jsonrpc", "id", "result", "error"], |scanner, index, depth| {
            if index != 2 || scanner.peek() != Some(b'{') {
                return scanner.value(depth);
            }
            let start = scanner.here();
            let fields = scanner.known_members(depth, &ListKind::MEMBERS, |scanner, index, depth| {
                match ListKind::ALL.get(index) {
                    Some(of) if scanner.peek() == Some(b'[') => {
                        let (span, items) = items(scanner, *of, depth)?;
                        lists.push(List { of: *of, span, items });
                        Ok(span)
                    }
                    _ => scanner.value(depth),
                }
            })?;
            cache_scope = fields.spans[ListKind::ALL.len()];
            Ok(scanner.since(start, JsonKind::Object))
        })?;
        scanner.close()?;
        Ok(Self {
            result: fields.spans[2],
            cache_scope,
            lists,
        })
    }

    fn rewritten(&self, answer: &[u8], result: Span, keep: VisibilityFn<'_>, era: Era) -> Result<Bytes, Fault> {
        let lists = self
            .lists
            .iter()
            .map(|list| Ok((list.span.range(), list.visible_items(answer, keep)?)));
        let mut edits = lists.collect::<Result<Vec<_>, Fault>>()?;
        edits.extend(self.private(answer, result, era));
        Ok(spliced(answer, edits))
    }

    fn private(&self, answer: &[u8], result: Span, era: Era) -> Option<(Range<usize>, String)> {
        let inside = result.range().start + 1;
        let is_empty = answer[inside..].trim_ascii_start().starts_with(b"}");
        match self.cache_scope {
            Some(span) => Some((span.range(), r#""private""#.to_owned())),
            None if era == Era::Legacy => None,
            None if is_empty => Some((inside..inside, r#""cacheScope":"private""#.to_owned())),
            None => Some((inside..inside, r#""cacheScope":"private","#.to_owned())),
        }
    }
}

fn items(scanner: &mut Scanner<'_>, of: ListKind, depth: usize) -> Result<(Span, Vec<ListItem>), Fault> {
    let start = scanner.here();
    let mut items = Vec::new();
    scanner.array(depth, &mut |scanner, depth| {
        let start = scanner.here();
        let (span, name) = match scanner.peek() {
            Some(b'{') => {
                let fields = scanner.known_members(depth, of.named_by(), |scanner, _, depth| scanner.value(depth))?;
                (scanner.since(start, JsonKind::Object), fields.spans[0])
            }
            _ => (scanner.value(depth)?, None),
        };
        items.push(ListItem {
            span,
            name: name.filter(|span| matches!(span.kind, JsonKind::Text(_))),
        });
        Ok(())
    })?;
    Ok((scanner.since(start, JsonKind::Array), items))
}

impl List {
    fn visible_items(&self, answer: &[u8], keep: VisibilityFn<'_>) -> Result<String, Fault> {
        let mut text = String::from("[");
        let mut seen = BTreeSet::new();
        for ListItem { span, name } in &self.items {
            let Some(name) = name.map(|name| decode(answer, name)).transpose()? else {
                continue;
            };
            let shown = keep(self.of, &name);
            let definition = match &shown {
                ListVisibility::Hidden => continue,
                ListVisibility::Replaced(_) if !seen.insert(name) => continue,
                ListVisibility::Replaced(definition) => definition,
                ListVisibility::Unchanged => {
                    std::str::from_utf8(&answer[span.range()]).expect("the reader has seen that it is UTF-8")
                }
            };
            if text.len() > 1 {
                text.push(',');
            }
            text.push_str(definition);
        }
        text.push(']');
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(answer: &str, era: Era) -> String {
        let mut keep = |_: ListKind, name: &str| match name {
            "hidden" | "Hidden" => ListVisibility::Hidden,
            name => ListVisibility::Replaced(format!(r#"{{"name":"{name}","pinned":true}}"#).into()),
        };
        let filtered = filter_list(answer.as_bytes(), ListKind::Tools, &mut keep, era);
        String::from_utf8(filtered.unwrap().to_vec()).unwrap()
    }

    #[test]
    fn hidden_tools_go_and_shown_ones_are_as_pinned() {
        let answer = r#"{ "jsonrpc":"2.0", "id":1, "result":{"nextCursor":"c", "tools":[ {"name":"b","description":"new"}, {"name":"hidden"},
            {"description":"nameless"}, 7, {"name":1}, {"n\u0061me":"a"}, {"name":"b"} ], "x" : 1.50}}"#;
        let wanted = r#"{ "jsonrpc":"2.0", "id":1, "result":{"nextCursor":"c", "tools":[{"name":"b","pinned":true},{"name":"a","pinned":true}], "x" : 1.50}}"#;
        assert_eq!(filtered(answer, Era::Legacy), wanted);
        let emptied = filtered(
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"hidden"}]}}"#,
            Era::Legacy,
        );
        assert_eq!(emptied, r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[]}}"#);
        let empty = "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"tools\":[]\n}}";
        assert_eq!(filtered(empty, Era::Legacy), empty);
    }

    #[test]
    fn what_is_not_pinned_stays_as_it_is_and_in_its_order() {
        let answer = r#"{"jsonrpc":"2.0","id":1,"result":{"resources":[ {"uri":"x:1" , "n":1.50}, {"uri":"x:secret"},{"name":"x:2"}, {"n":2,"u\u0072i":"x:3"},{"uri":"x:1"} ],"ttlMs":5}}"#;
        let keep = &mut |of: ListKind, uri: &str| {
            assert_eq!(of, ListKind::Resources);
            if uri == "x:secret" {
                ListVisibility::Hidden
            } else {
                ListVisibility::Unchanged
            }
        };
        let shown = filter_list(answer.as_bytes(), ListKind::Resources, keep, Era::Legacy).unwrap();
        let wanted = r#"{"jsonrpc":"2.0","id":1,"result":{"resources":[{"uri":"x:1" , "n":1.50},{"n":2,"u\u0072i":"x:3"},{"uri":"x:1"}],"ttlMs":5}}"#;
        assert_eq!(shown, wanted);
        for (list, of) in [
            (r#""resourceTemplates":[{"uriTemplate":"x:{a}"}]"#, ListKind::Templates),
            (r#""prompts":[{"name":"p"}]"#, ListKind::Prompts),
        ] {
            let answer = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{{list}}}}}"#);
            let hide = &mut |seen: ListKind, _: &str| {
                if seen == of {
                    ListVisibility::Hidden
                } else {
                    ListVisibility::Unchanged
                }
            };
            let shown = filter_list(answer.as_bytes(), of, hide, Era::Legacy).unwrap();
            assert!(shown.ends_with(b"[]}}"), "{shown:?}");
            assert!(filter_list(answer.as_bytes(), ListKind::Tools, hide, Era::Legacy).is_err());
        }
    }

    #[test]
    fn what_one_may_read_is_not_for_all() {
        let private = |answer: &str, era| mark_private(answer.as_bytes(), era).unwrap();
        let read = r#"{"jsonrpc":"2.0","id":1,"result":{"contents":[],"cacheScope":"public"}}"#;
        let kept = r#"{"jsonrpc":"2.0","id":1,"result":{"contents":[],"cacheScope":"private"}}"#;
        assert_eq!(private(read, Era::Modern), kept);
        let bare = r#"{"jsonrpc":"2.0","id":1,"result":{"contents":[]}}"#;
        assert_eq!(private(bare, Era::Legacy), bare);
        assert!(private(bare, Era::Modern).starts_with(br#"{"jsonrpc":"2.0","id":1,"result":{"cacheScope":"private","#));
        let empty = r#"{"jsonrpc":"2.0","id":1,"result":{ }}"#;
        let kept = r#"{"jsonrpc":"2.0","id":1,"result":{"cacheScope":"private" }}"#;
        assert_eq!(private(empty, Era::Modern), kept);
        let error = r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"no"}}"#;
        assert_eq!(private(error, Era::Modern), error);
    }

    #[test]
    fn a_list_is_found_in_an_answer_to_nobody_knows_what() {
        let listed = |answer: &str| {
            let found = filter_if_list(answer.as_bytes(), &mut |_, _| ListVisibility::Hidden, Era::Legacy);
            found.map(|found| found.map(|body| String::from_utf8(body.to_vec()).unwrap()))
        };
        let hidden = listed(r#"{"jsonrpc":"2.0","id":9,"result":{"tools":[{"name":"hidden"}]}}"#);
        assert_eq!(hidden.unwrap().unwrap(), r#"{"jsonrpc":"2.0","id":9,"result":{"tools":[]}}"#);
        assert_eq!(listed(r#"{"jsonrpc":"2.0","id":9,"result":{"content":[]}}"#), Ok(None));
        assert!(listed(r#"{"jsonrpc":"2.0","id":9,"result":{"Tools":[{"name":"hidden"}]}}"#).is_err());
    }

    #[test]
    fn a_filtered_list_is_private() {
        let list = |scope: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{{scope}"tools":[],"ttlMs":5}}}}"#);
        for scope in [
            r#""cacheScope":"public","#,
            r#""cacheScope": 7 ,"#,
            r#""cacheScope":"private","#,
            "",
        ] {
            let shown: serde_json::Value = serde_json::from_str(&filtered(&list(scope), Era::Modern)).unwrap();
            assert_eq!(shown["result"]["cacheScope"], "private", "{scope}");
        }
        assert_eq!(filtered(&list(""), Era::Legacy), list(""));
    }

    #[test]
    fn errors_pass_and_what_cannot_be_filtered_does_not() {
        let error = r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"tools"}}"#;
        assert_eq!(filtered(error, Era::Modern), error);
        for answer in [
            r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":[]}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":{"a":{"name":"hidden"}}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[],"tools":[{"name":"hidden"}]}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[],"Tools":[{"name":"hidden"}]}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"a","name":"hidden"}]}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[]}"#,
        ] {
            assert!(
                filter_list(
                    answer.as_bytes(),
                    ListKind::Tools,
                    &mut |_, _| ListVisibility::Hidden,
                    Era::Legacy
                )
                .is_err(),
                "{answer}"
            );
        }
    }
}
