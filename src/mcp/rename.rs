//! Renames the tools, prompts and URIs in a server's message. Where messages of several servers are merged, each name
//! must show its server. Everything else stays byte for byte; how a name is changed is the caller's business.

use super::json::{DuplicateNames, Fault, JsonKind, Malformed, Scanner, Span, decode};
use super::message_kind::SERVER_MESSAGE_BOUNDS;
use super::namespace::Namespace;
use super::splice::spliced;
use bytes::Bytes;
use std::ops::Range;

/// Renames what the message contains: items of lists, updated resources, contents, links and embedded resources. Returns
/// the same bytes if there is nothing to rename.
pub fn renamed(message: &Bytes, namespace: &Namespace) -> Result<Bytes, Malformed> {
    let mut found = FoundNames::default();
    found.message(message)?;
    let edits = found.edits(message, namespace)?;
    Ok(if edits.is_empty() {
        message.clone()
    } else {
        spliced(message, edits)
    })
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

#[derive(Default)]
struct FoundNames {
    names: Vec<Span>,
    uris: Vec<Span>,
}

impl FoundNames {
    fn edits(&self, message: &[u8], namespace: &Namespace) -> Result<Vec<(Range<usize>, String)>, Fault> {
        let written = |span: &Span, new: &dyn Fn(&str) -> String| Ok((span.range(), json_string(&new(&decode(message, *span)?))));
        let names = self.names.iter().map(|span| written(span, &|name| namespace.name(name)));
        let uris = self.uris.iter().map(|span| written(span, &|uri| namespace.uri(uri)));
        names.chain(uris).collect()
    }

    fn message(&mut self, message: &[u8]) -> Result<(), Fault> {
        let mut scanner = Scanner::open(message, &SERVER_MESSAGE_BOUNDS, DuplicateNames::Exact)?;
        let mut updated = None;
        let fields = scanner.known_members(0, &["method", "params", "result"], |scanner, index, depth| {
            match (index, scanner.peek()) {
                (1, Some(b'{')) => self.params(scanner, depth, &mut updated),
                (2, Some(b'{')) => self.result(scanner, depth),
                _ => scanner.value(depth),
            }
        })?;
        scanner.close()?;
        let method = fields.spans[0].filter(|span| matches!(span.kind, JsonKind::Text(_)));
        let method = method.map(|span| decode(message, span)).transpose()?;
        if method.as_deref() == Some("notifications/resources/updated") {
            self.uris.extend(updated);
        }
        Ok(())
    }

    fn params(&mut self, scanner: &mut Scanner<'_>, depth: usize, updated: &mut Option<Span>) -> Result<Span, Fault> {
        const MEMBERS: [&str; 3] = ["uri", "notifications", "result"];
        let start = scanner.here();
        let fields = scanner.known_members(depth, &MEMBERS, |scanner, index, depth| match (index, scanner.peek()) {
            (1, Some(b'{')) => self.granted_filter(scanner, depth),
            // A task notification: it holds the result of the task's call.
            (2, Some(b'{')) => self.result(scanner, depth),
            _ => scanner.value(depth),
        })?;
        *updated = string_span(fields.spans[0]);
        Ok(scanner.since(start, JsonKind::Object))
    }

    /// Reads the granted filter of a subscription.
    fn granted_filter(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<Span, Fault> {
        let start = scanner.here();
        scanner.known_members(depth, &["resourceSubscriptions"], |scanner, _, depth| {
            let start = scanner.here();
            if scanner.peek() != Some(b'[') {
                return scanner.value(depth);
            }
            scanner.array(depth, &mut |scanner, depth| {
                self.uris.extend(string_span(Some(scanner.value(depth)?)));
                Ok(())
            })?;
            Ok(scanner.since(start, JsonKind::Array))
        })?;
        Ok(scanner.since(start, JsonKind::Object))
    }

    fn result(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<Span, Fault> {
        const MEMBERS: [&str; 8] = [
            "tools",
            "prompts",
            "resources",
            "resourceTemplates",
            "contents",
            "content",
            "messages",
            "result",
        ];
        let start = scanner.here();
        scanner.known_members(depth, &MEMBERS, |scanner, index, depth| {
            match (MEMBERS[index], scanner.peek()) {
                ("tools" | "prompts", Some(b'[')) => each(scanner, depth, &mut |scanner, depth| {
                    let named = scanner
                        .known_members(depth, &["name"], |scanner, _, depth| scanner.value(depth))?
                        .spans[0];
                    self.names.extend(string_span(named));
                    Ok(())
                }),
                ("resources" | "contents", Some(b'[')) => each(scanner, depth, &mut |scanner, depth| {
                    let named = scanner
                        .known_members(depth, &["uri"], |scanner, _, depth| scanner.value(depth))?
                        .spans[0];
                    self.uris.extend(string_span(named));
                    Ok(())
                }),
                ("resourceTemplates", Some(b'[')) => each(scanner, depth, &mut |scanner, depth| {
                    let named = scanner
                        .known_members(depth, &["uriTemplate"], |scanner, _, depth| scanner.value(depth))?
                        .spans[0];
                    self.uris.extend(string_span(named));
                    Ok(())
                }),
                ("content", Some(b'[')) => each(scanner, depth, &mut |scanner, depth| self.block(scanner, depth)),
                ("messages", Some(b'[')) => each(scanner, depth, &mut |scanner, depth| self.prompt_message(scanner, depth)),
                // A task with status completed holds the result of its call.
                ("result", Some(b'{')) => self.result(scanner, depth),
                _ => scanner.value(depth),
            }
        })?;
        Ok(scanner.since(start, JsonKind::Object))
    }

    /// Reads one message of a prompt.
    fn prompt_message(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<(), Fault> {
        scanner.known_members(depth, &["content"], |scanner, _, depth| match scanner.peek() {
            Some(b'[') => each(scanner, depth, &mut |scanner, depth| self.block(scanner, depth)),
            Some(b'{') => {
                let start = scanner.here();
                self.block(scanner, depth)?;
                Ok(scanner.since(start, JsonKind::Object))
            }
            _ => scanner.value(depth),
        })?;
        Ok(())
    }

    /// Reads one content block: a resource link, or an embedded resource.
    fn block(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<(), Fault> {
        let mut inside = None;
        let fields = scanner.known_members(depth, &["uri", "resource"], |scanner, index, depth| {
            if index == 0 || scanner.peek() != Some(b'{') {
                return scanner.value(depth);
            }
            let start = scanner.here();
            inside = scanner
                .known_members(depth, &["uri"], |scanner, _, depth| scanner.value(depth))?
                .spans[0];
            Ok(scanner.since(start, JsonKind::Object))
        })?;
        self.uris.extend(string_span(fields.spans[0]));
        self.uris.extend(string_span(inside));
        Ok(())
    }
}

/// Reads an array; `read` reads each object in it.
fn each(
    scanner: &mut Scanner<'_>,
    depth: usize,
    read: &mut dyn FnMut(&mut Scanner<'_>, usize) -> Result<(), Fault>,
) -> Result<Span, Fault> {
    let start = scanner.here();
    scanner.array(depth, &mut |scanner, depth| match scanner.peek() {
        Some(b'{') => read(scanner, depth),
        _ => scanner.value(depth).map(drop),
    })?;
    Ok(scanner.since(start, JsonKind::Array))
}

fn string_span(span: Option<Span>) -> Option<Span> {
    span.filter(|span| matches!(span.kind, JsonKind::Text(_)))
}

fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ServerName;
    use crate::mcp::StreamKind;

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
