//! Filters the lists in answers for one caller, and renames tools, prompts and URIs where messages of several servers are merged.
//! Hidden items are removed, visible tools get their pinned definition, and everything else stays byte for byte. Filtering is a
//! courtesy; access is decided when an item is used.

use super::json::{DuplicateNames, JsonKind, Malformed, Scanner, Span, decode};
use super::namespace::Namespace;
use super::server_message::{ListItem, ListKind, ListSpans, NameSpan, ServerMessage};
use super::server_message_reader::SERVER_MESSAGE_BOUNDS;
use super::splice::Edits;
use crate::domain::{Era, Reason};
use std::collections::BTreeSet;
use std::sync::Arc;

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

impl ServerMessage {
    /// Filters the answer to a request for the list `of`, and renames what stays. An error answer is left alone; a result
    /// without the list is refused. Returns whether there were lists.
    pub fn filter_lists(
        &self,
        message: &[u8],
        of: Option<ListKind>,
        keep: VisibilityFn<'_>,
        namespace: Option<&Namespace>,
        era: Era,
        edits: &mut Edits,
    ) -> Result<bool, Malformed> {
        if let Some(fault) = &self.unclear_lists {
            return Err((**fault).clone());
        }
        if self.envelope.result.is_none() {
            return Ok(false);
        }
        if let Some(of) = of.filter(|of| self.lists.iter().all(|list| list.of != *of)) {
            let detail = format!("the answer has no list `{}`", of.member());
            return Err(Malformed::new(Reason::UpstreamBroken, detail));
        }
        if self.lists.is_empty() {
            return Ok(false);
        }
        for list in &self.lists {
            edits.replace(list.span, list.visible_items(message, keep, namespace)?);
        }
        self.mark_private(message, era, edits)?;
        Ok(true)
    }

    /// Marks an answer as private (`cacheScope`), because other callers may not be allowed to have it. An error answer is
    /// left alone.
    pub fn mark_private(&self, message: &[u8], era: Era, edits: &mut Edits) -> Result<(), Malformed> {
        if let Some(fault) = &self.unclear_lists {
            return Err((**fault).clone());
        }
        let result = self.envelope.result.filter(|result| result.kind == JsonKind::Object);
        let Some(inside) = result.map(|result| result.range().start + 1) else {
            return Ok(());
        };
        let is_empty = message[inside..].trim_ascii_start().starts_with(b"}");
        match self.cache_scope {
            Some(span) => edits.replace(span, r#""private""#.to_owned()),
            None if era == Era::Legacy => (),
            None if is_empty => edits.insert(inside, r#""cacheScope":"private""#.to_owned()),
            None => edits.insert(inside, r#""cacheScope":"private","#.to_owned()),
        }
        Ok(())
    }
}

impl ListSpans {
    fn visible_items(&self, message: &[u8], keep: VisibilityFn<'_>, namespace: Option<&Namespace>) -> Result<String, Malformed> {
        let mut text = String::from("[");
        let mut seen = BTreeSet::new();
        for item in &self.items {
            let Some(span) = item.name else { continue };
            let name = decode(message, span)?;
            let shown = match keep(self.of, &name) {
                ListVisibility::Hidden => continue,
                ListVisibility::Replaced(_) if seen.contains(&*name) => continue,
                ListVisibility::Replaced(definition) => {
                    let shown = match namespace {
                        Some(namespace) => rename_tool(&definition, &namespace.name(&name))?,
                        None => definition.to_string(),
                    };
                    seen.insert(name);
                    shown
                }
                ListVisibility::Unchanged => self.item_text(message, item, namespace)?,
            };
            if text.len() > 1 {
                text.push(',');
            }
            text.push_str(&shown);
        }
        text.push(']');
        Ok(text)
    }

    /// An item as it was written, but for its name.
    fn item_text(&self, message: &[u8], item: &ListItem, namespace: Option<&Namespace>) -> Result<String, Malformed> {
        let item_range = item.span.range();
        let mut text = String::from_utf8_lossy(&message[item_range.clone()]).into_owned();
        if let (Some(namespace), Some(name)) = (namespace, item.name) {
            let renamed = self.of.name_span(name).renamed(message, namespace)?;
            let range = name.range();
            text.replace_range(range.start - item_range.start..range.end - item_range.start, &renamed);
        }
        Ok(text)
    }
}

impl ServerMessage {
    /// Renames what the message contains: updated resources, contents, links and embedded resources, and the items of its
    /// lists unless they are filtered, which renames them too.
    pub fn rename(
        &self,
        message: &[u8],
        namespace: &Namespace,
        are_lists_filtered: bool,
        edits: &mut Edits,
    ) -> Result<(), Malformed> {
        if let Some(fault) = &self.unclear_names {
            return Err((**fault).clone());
        }
        for name in &self.names {
            edits.replace(name.span(), name.renamed(message, namespace)?);
        }
        for list in self.lists.iter().filter(|_| !are_lists_filtered) {
            for span in list.items.iter().filter_map(|item| item.name) {
                edits.replace(span, list.of.name_span(span).renamed(message, namespace)?);
            }
        }
        Ok(())
    }
}

impl NameSpan {
    fn span(self) -> Span {
        match self {
            NameSpan::Name(span) | NameSpan::Uri(span) => span,
        }
    }

    /// The new name as JSON text.
    pub(super) fn renamed(self, message: &[u8], namespace: &Namespace) -> Result<String, Malformed> {
        let name = decode(message, self.span())?;
        Ok(json_string(&match self {
            NameSpan::Name(_) => namespace.name(&name),
            NameSpan::Uri(_) => namespace.uri(&name),
        }))
    }
}

/// A tool definition with another name.
pub fn rename_tool(definition: &str, name: &str) -> Result<String, Malformed> {
    let mut scanner = Scanner::open(definition.as_bytes(), &SERVER_MESSAGE_BOUNDS, DuplicateNames::Exact)?;
    let fields = scanner.known_members(0, &["name"], |scanner, _, depth| scanner.value(depth))?;
    scanner.close()?;
    let mut text = definition.to_owned();
    if let Some(span) = fields.spans[0] {
        text.replace_range(span.range(), &json_string(name));
    }
    Ok(text)
}

fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ServerName;
    use crate::mcp::StreamKind;
    use bytes::Bytes;

    fn edited(
        answer: &[u8],
        edit: impl FnOnce(&ServerMessage, &mut Edits) -> Result<bool, Malformed>,
    ) -> Result<Option<Bytes>, Malformed> {
        let mut edits = Edits::default();
        let edited = edit(&ServerMessage::parse(answer)?, &mut edits)?;
        let answer = edits.apply(&Bytes::copy_from_slice(answer))?;
        Ok(edited.then_some(answer))
    }

    fn filter_list(answer: &[u8], of: ListKind, keep: VisibilityFn<'_>, era: Era) -> Result<Bytes, Malformed> {
        let filtered = edited(answer, |parsed, edits| {
            parsed.filter_lists(answer, Some(of), keep, None, era, edits)
        })?;
        Ok(filtered.unwrap_or_else(|| Bytes::copy_from_slice(answer)))
    }

    fn filter_if_list(answer: &[u8], keep: VisibilityFn<'_>, era: Era) -> Result<Option<Bytes>, Malformed> {
        edited(answer, |parsed, edits| {
            parsed.filter_lists(answer, None, keep, None, era, edits)
        })
    }

    fn mark_private(answer: &[u8], era: Era) -> Result<Bytes, Malformed> {
        let marked = edited(answer, |parsed, edits| parsed.mark_private(answer, era, edits).map(|()| true))?;
        Ok(marked.unwrap())
    }

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

    fn renamed(message: &Bytes, namespace: &Namespace) -> Result<Bytes, Malformed> {
        let mut edits = Edits::default();
        ServerMessage::parse(message)?.rename(message, namespace, false, &mut edits)?;
        edits.apply(message)
    }

    fn namespace(server: &str) -> Namespace {
        Namespace::new(ServerName::parse(server).unwrap(), StreamKind::Answer)
    }

    fn given(message: &str) -> String {
        let given = renamed(&Bytes::copy_from_slice(message.as_bytes()), &namespace("f")).unwrap();
        String::from_utf8(given.to_vec()).unwrap()
    }

    #[test]
    fn what_a_message_names_is_renamed_and_the_rest_stays() {
        for (message, wanted) in [
            (
                r#"{ "jsonrpc":"2.0", "id":1,"result":{"prompts":[ {"name":"a", "arguments":[{"name":"who"}]}, 7 ],"x":1.50}}"#,
                r#"{ "jsonrpc":"2.0", "id":1,"result":{"prompts":[ {"name":"f__a", "arguments":[{"name":"who"}]}, 7 ],"x":1.50}}"#,
            ),
            (
                r#"{"result":{"resources":[{"uri":"x:\u0031","name":"n"}],"contents":[{"uri":"x:2"}],"resourceTemplates":[{"uriTemplate":"x:{a}","name":"n"}]}}"#,
                r#"{"result":{"resources":[{"uri":"f+x:1","name":"n"}],"contents":[{"uri":"f+x:2"}],"resourceTemplates":[{"uriTemplate":"f+x:{a}","name":"n"}]}}"#,
            ),
            (
                r#"{"result":{"content":[{"type":"text","text":"x:1"},{"type":"resource_link","uri":"x:1","name":"n"},{"type":"resource","resource":{"uri":"x:2","text":"t"}}],"structuredContent":{"uri":"x:3"}}}"#,
                r#"{"result":{"content":[{"type":"text","text":"x:1"},{"type":"resource_link","uri":"f+x:1","name":"n"},{"type":"resource","resource":{"uri":"f+x:2","text":"t"}}],"structuredContent":{"uri":"x:3"}}}"#,
            ),
            (
                r#"{"result":{"messages":[{"role":"user","content":{"type":"resource_link","uri":"x:1"}},{"content":[{"uri":"x:2"}]},{"content":"x:3"}]}}"#,
                r#"{"result":{"messages":[{"role":"user","content":{"type":"resource_link","uri":"f+x:1"}},{"content":[{"uri":"f+x:2"}]},{"content":"x:3"}]}}"#,
            ),
            (
                r#"{"result":{"taskId":"t","result":{"content":[{"uri":"x:1"}]}}}"#,
                r#"{"result":{"taskId":"t","result":{"content":[{"uri":"f+x:1"}]}}}"#,
            ),
            (
                r#"{"params":{"uri":"x:1","_meta":{}},"method":"notifications/resources/updated"}"#,
                r#"{"params":{"uri":"f+x:1","_meta":{}},"method":"notifications/resources/updated"}"#,
            ),
            (
                r#"{"method":"notifications/subscriptions/acknowledged","params":{"notifications":{"resourceSubscriptions":["x:1","x:2"]}}}"#,
                r#"{"method":"notifications/subscriptions/acknowledged","params":{"notifications":{"resourceSubscriptions":["f+x:1","f+x:2"]}}}"#,
            ),
        ] {
            assert_eq!(given(message), wanted);
        }
    }

    #[test]
    fn what_names_nothing_is_the_same_bytes() {
        let message = Bytes::from_static(br#"{"method":"elicitation/create","id":1,"params":{"uri":"x:1","name":"n"}}"#);
        assert_eq!(renamed(&message, &namespace("f")).unwrap().as_ptr(), message.as_ptr());
        assert!(
            renamed(
                &Bytes::from_static(br#"{"result":{"contents":[{"uri":"x:1","URI":"x:2"}]}}"#),
                &namespace("f")
            )
            .is_err()
        );
    }

    #[test]
    fn a_definition_keeps_all_but_its_name() {
        let definition = r#"{"description":"name","inputSchema":{"name":{"type":"string"}},"name":"a"}"#;
        let wanted = r#"{"description":"name","inputSchema":{"name":{"type":"string"}},"name":"f__a"}"#;
        assert_eq!(rename_tool(definition, "f__a").unwrap(), wanted);
    }
}
