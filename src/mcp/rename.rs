//! Renames the tools, prompts and URIs in a server's message. Where messages of several servers are merged, each name
//! must show its server. Everything else stays byte for byte; how a name is changed is the caller's business.

use super::json::{DuplicateNames, Malformed, Scanner, Span, decode};
use super::namespace::Namespace;
use super::server_message::{NameSpan, ServerMessage};
use super::server_message_reader::SERVER_MESSAGE_BOUNDS;
use super::splice::Edits;

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
