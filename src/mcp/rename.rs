//! Renames the tools, prompts and URIs in a server's message. Where messages of several servers are merged, each name
//! must show its server. Everything else stays byte for byte; how a name is changed is the caller's business.

use super::answer::ANSWER_BOUNDS;
use super::json::{Fault, Kind, Malformed, Scan, Span, Twins, decode};
use super::splice::spliced;
use bytes::Bytes;
use std::ops::Range;

/// The renaming of one server's names and URIs.
pub trait Rename {
    /// The new name of a tool or prompt.
    fn name(&self, name: &str) -> String;
    /// The new form of a resource URI or URI template.
    fn uri(&self, uri: &str) -> String;
}

/// Renames what the message contains: items of lists, updated resources, contents, links and embedded resources. Returns
/// the same bytes if there is nothing to rename.
pub fn renamed(message: &Bytes, rename: &dyn Rename) -> Result<Bytes, Malformed> {
    let mut found = Found::default();
    found.message(message)?;
    let edits = found.edits(message, rename)?;
    Ok(if edits.is_empty() {
        message.clone()
    } else {
        spliced(message, edits)
    })
}

/// A tool definition with another name.
pub fn redefined(definition: &str, name: &str) -> Result<String, Malformed> {
    let mut scan = Scan::open(definition.as_bytes(), &ANSWER_BOUNDS, Twins::Exact)?;
    let fields = scan.fields(0, &["name"], |scan, _, depth| scan.value(depth))?;
    scan.close()?;
    let mut text = definition.to_owned();
    if let Some(span) = fields.spans[0] {
        text.replace_range(span.range(), &quoted(name));
    }
    Ok(text)
}

#[derive(Default)]
struct Found {
    names: Vec<Span>,
    uris: Vec<Span>,
}

impl Found {
    fn edits(&self, message: &[u8], rename: &dyn Rename) -> Result<Vec<(Range<usize>, String)>, Fault> {
        let written = |span: &Span, new: &dyn Fn(&str) -> String| Ok((span.range(), quoted(&new(&decode(message, *span)?))));
        let names = self.names.iter().map(|span| written(span, &|name| rename.name(name)));
        let uris = self.uris.iter().map(|span| written(span, &|uri| rename.uri(uri)));
        names.chain(uris).collect()
    }

    fn message(&mut self, message: &[u8]) -> Result<(), Fault> {
        let mut scan = Scan::open(message, &ANSWER_BOUNDS, Twins::Exact)?;
        let mut updated = None;
        let fields = scan.fields(0, &["method", "params", "result"], |scan, index, depth| {
            match (index, scan.peek()) {
                (1, Some(b'{')) => self.params(scan, depth, &mut updated),
                (2, Some(b'{')) => self.result(scan, depth),
                _ => scan.value(depth),
            }
        })?;
        scan.close()?;
        let method = fields.spans[0].filter(|span| matches!(span.kind, Kind::Text(_)));
        let method = method.map(|span| decode(message, span)).transpose()?;
        if method.as_deref() == Some("notifications/resources/updated") {
            self.uris.extend(updated);
        }
        Ok(())
    }

    fn params(&mut self, scan: &mut Scan<'_>, depth: usize, updated: &mut Option<Span>) -> Result<Span, Fault> {
        const MEMBERS: [&str; 3] = ["uri", "notifications", "result"];
        let start = scan.here();
        let fields = scan.fields(depth, &MEMBERS, |scan, index, depth| match (index, scan.peek()) {
            (1, Some(b'{')) => self.subscribed(scan, depth),
            // A task notification: it holds the result of the task's call.
            (2, Some(b'{')) => self.result(scan, depth),
            _ => scan.value(depth),
        })?;
        *updated = text(fields.spans[0]);
        Ok(scan.since(start, Kind::Object))
    }

    /// Reads the granted filter of a subscription.
    fn subscribed(&mut self, scan: &mut Scan<'_>, depth: usize) -> Result<Span, Fault> {
        let start = scan.here();
        scan.fields(depth, &["resourceSubscriptions"], |scan, _, depth| {
            let start = scan.here();
            if scan.peek() != Some(b'[') {
                return scan.value(depth);
            }
            scan.array(depth, &mut |scan, depth| {
                self.uris.extend(text(Some(scan.value(depth)?)));
                Ok(())
            })?;
            Ok(scan.since(start, Kind::Array))
        })?;
        Ok(scan.since(start, Kind::Object))
    }

    fn result(&mut self, scan: &mut Scan<'_>, depth: usize) -> Result<Span, Fault> {
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
        let start = scan.here();
        scan.fields(depth, &MEMBERS, |scan, index, depth| match (MEMBERS[index], scan.peek()) {
            ("tools" | "prompts", Some(b'[')) => each(scan, depth, &mut |scan, depth| {
                let named = scan.fields(depth, &["name"], |scan, _, depth| scan.value(depth))?.spans[0];
                self.names.extend(text(named));
                Ok(())
            }),
            ("resources" | "contents", Some(b'[')) => each(scan, depth, &mut |scan, depth| {
                let named = scan.fields(depth, &["uri"], |scan, _, depth| scan.value(depth))?.spans[0];
                self.uris.extend(text(named));
                Ok(())
            }),
            ("resourceTemplates", Some(b'[')) => each(scan, depth, &mut |scan, depth| {
                let named = scan
                    .fields(depth, &["uriTemplate"], |scan, _, depth| scan.value(depth))?
                    .spans[0];
                self.uris.extend(text(named));
                Ok(())
            }),
            ("content", Some(b'[')) => each(scan, depth, &mut |scan, depth| self.block(scan, depth)),
            ("messages", Some(b'[')) => each(scan, depth, &mut |scan, depth| self.said(scan, depth)),
            // A task with status completed holds the result of its call.
            ("result", Some(b'{')) => self.result(scan, depth),
            _ => scan.value(depth),
        })?;
        Ok(scan.since(start, Kind::Object))
    }

    /// Reads one message of a prompt.
    fn said(&mut self, scan: &mut Scan<'_>, depth: usize) -> Result<(), Fault> {
        scan.fields(depth, &["content"], |scan, _, depth| match scan.peek() {
            Some(b'[') => each(scan, depth, &mut |scan, depth| self.block(scan, depth)),
            Some(b'{') => {
                let start = scan.here();
                self.block(scan, depth)?;
                Ok(scan.since(start, Kind::Object))
            }
            _ => scan.value(depth),
        })?;
        Ok(())
    }

    /// Reads one content block: a resource link, or an embedded resource.
    fn block(&mut self, scan: &mut Scan<'_>, depth: usize) -> Result<(), Fault> {
        let mut inside = None;
        let fields = scan.fields(depth, &["uri", "resource"], |scan, index, depth| {
            if index == 0 || scan.peek() != Some(b'{') {
                return scan.value(depth);
            }
            let start = scan.here();
            inside = scan.fields(depth, &["uri"], |scan, _, depth| scan.value(depth))?.spans[0];
            Ok(scan.since(start, Kind::Object))
        })?;
        self.uris.extend(text(fields.spans[0]));
        self.uris.extend(text(inside));
        Ok(())
    }
}

/// Reads an array; `read` reads each object in it.
fn each(
    scan: &mut Scan<'_>,
    depth: usize,
    read: &mut dyn FnMut(&mut Scan<'_>, usize) -> Result<(), Fault>,
) -> Result<Span, Fault> {
    let start = scan.here();
    scan.array(depth, &mut |scan, depth| match scan.peek() {
        Some(b'{') => read(scan, depth),
        _ => scan.value(depth).map(drop),
    })?;
    Ok(scan.since(start, Kind::Array))
}

fn text(span: Option<Span>) -> Option<Span> {
    span.filter(|span| matches!(span.kind, Kind::Text(_)))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Of(&'static str);

    impl Rename for Of {
        fn name(&self, name: &str) -> String {
            format!("{}__{name}", self.0)
        }

        fn uri(&self, uri: &str) -> String {
            format!("{}+{uri}", self.0)
        }
    }

    fn given(message: &str) -> String {
        let given = renamed(&Bytes::copy_from_slice(message.as_bytes()), &Of("f")).unwrap();
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
        assert_eq!(renamed(&message, &Of("f")).unwrap().as_ptr(), message.as_ptr());
        assert!(
            renamed(
                &Bytes::from_static(br#"{"result":{"contents":[{"uri":"x:1","URI":"x:2"}]}}"#),
                &Of("f")
            )
            .is_err()
        );
    }

    #[test]
    fn a_definition_keeps_all_but_its_name() {
        let definition = r#"{"description":"name","inputSchema":{"name":{"type":"string"}},"name":"a"}"#;
        let wanted = r#"{"description":"name","inputSchema":{"name":{"type":"string"}},"name":"f__a"}"#;
        assert_eq!(redefined(definition, "f__a").unwrap(), wanted);
    }
}
