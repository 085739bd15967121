//! The namespace of the combined endpoint: adds the server to names and finds it again. Tools and prompts become
//! `<server>__<name>`, resources `<server>+<uri>`, and SSE event ids get the server and the stream as a prefix.
//! A server name holds no `__` and does not end with `_`, so the first `__` always separates the two parts.

use super::sse::SseFrame;
use crate::domain::{MessageId, ServerName};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::Value;

/// Rewrites the names of one server for the combined endpoint.
#[derive(Debug, Clone)]
pub struct Namespace {
    server: ServerName,
    stream_kind: StreamKind,
    /// The request id on a stream that resumes its answer: the resuming GET has no request id of its own.
    resumed: Option<Value>,
}

/// A parsed event id of the combined endpoint.
#[derive(Debug, PartialEq)]
pub struct EventCursor<'a> {
    pub server: ServerName,
    pub stream_kind: StreamKind,
    /// The id of the request whose answer the event belongs to.
    pub request: Option<Value>,
    /// The event id as the server wrote it.
    pub id: &'a str,
}

/// The kind of stream an event was sent on. A client that resumes with `Last-Event-ID` means that stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    /// The stream that answers a request.
    Answer,
    /// The server's GET stream of a session.
    Own,
}

/// Separates the server from the name.
const BETWEEN: &str = "__";
/// Prefix for server names that begin with a digit, because a URI scheme must begin with a letter (RFC 3986 3.1). No other
/// server name begins like this: `_` becomes `.`, and server names hold no `__`.
const DIGIT_PREFIX: &str = "n..";

impl Namespace {
    pub fn new(server: ServerName, stream_kind: StreamKind) -> Self {
        Self {
            server,
            stream_kind,
            resumed: None,
        }
    }

    /// For a stream that resumes the answer to `request`.
    pub fn resuming(server: ServerName, request: Option<Value>) -> Self {
        Self {
            resumed: request,
            ..Self::new(server, StreamKind::Answer)
        }
    }

    pub fn server(&self) -> &ServerName {
        &self.server
    }

    /// Prefixes the event's id with the server, the kind of stream and, for answers, the request id. A client may send the
    /// id back in `Last-Event-ID`.
    pub fn event(&self, frame: &mut SseFrame, request: Option<&MessageId>) {
        let Some(id) = frame.id.take().filter(|id| !id.is_empty()) else {
            return;
        };
        let resumed = self.resumed.as_ref().map(Value::to_string);
        let request = request.map(MessageId::as_json).or(resumed.as_deref()).unwrap_or_default();
        let before = match self.stream_kind {
            StreamKind::Answer => format!("a.{}.{}.", self.server, URL_SAFE_NO_PAD.encode(request)),
            StreamKind::Own => format!("o.{}.", self.server),
        };
        let id: Bytes = [before.as_bytes(), &id].concat().into();
        frame.raw = with_id(&frame.raw, &id);
        frame.id = Some(id);
    }
}

impl Namespace {
    /// The name of a tool or prompt with its server.
    pub fn name(&self, name: &str) -> String {
        format!("{}{BETWEEN}{name}", self.server)
    }

    /// A resource URI or URI template with its server.
    pub fn uri(&self, uri: &str) -> String {
        format!("{}+{uri}", scheme(&self.server))
    }
}

/// Splits `<server>__<name>`; `None` if there is no valid server prefix.
pub fn parse_name(name: &str) -> Option<(ServerName, &str)> {
    let (server, name) = name.split_once(BETWEEN)?;
    Some((ServerName::parse(server).ok()?, name))
}

/// Splits `<server>+<uri>`, also for resource templates.
pub fn parse_uri(uri: &str) -> Option<(ServerName, &str)> {
    let (written, uri) = uri.split_once('+')?;
    let server = match written.strip_prefix(DIGIT_PREFIX) {
        Some(rest) => ServerName::parse(&rest.replace('.', "_")),
        None => ServerName::parse(&written.replace('.', "_")),
    };
    // Accepts only the canonical spelling of the prefix: policies compare URIs byte for byte, and so do searches in the
    // audit.
    let server = server.ok().filter(|server| scheme(server) == written)?;
    Some((server, uri))
}

/// Parses an event id written by [`Namespace::event`].
pub fn parse_event_id(id: &str) -> Option<EventCursor<'_>> {
    let (origin, rest) = id.split_once('.')?;
    let (server, rest) = rest.split_once('.')?;
    let server = ServerName::parse(server).ok()?;
    match origin {
        "o" => Some(EventCursor {
            server,
            stream_kind: StreamKind::Own,
            request: None,
            id: rest,
        }),
        "a" => {
            let (request, id) = rest.split_once('.')?;
            let request = URL_SAFE_NO_PAD.decode(request).ok()?;
            Some(EventCursor {
                server,
                stream_kind: StreamKind::Answer,
                request: serde_json::from_slice(&request).ok(),
                id,
            })
        }
        _ => None,
    }
}

/// The server name as the beginning of a URI scheme, which allows no `_` and must begin with a letter.
fn scheme(server: &ServerName) -> String {
    let written = server.as_str().replace('_', ".");
    if written.starts_with(|first: char| first.is_ascii_digit()) {
        format!("{DIGIT_PREFIX}{written}")
    } else {
        written
    }
}

/// Replaces the `id` lines of a frame; all other bytes stay.
fn with_id(raw: &[u8], id: &[u8]) -> Bytes {
    let mut written = Vec::with_capacity(raw.len() + id.len());
    let mut rest = raw;
    while !rest.is_empty() {
        let end = rest
            .iter()
            .position(|byte| matches!(byte, b'\r' | b'\n'))
            .unwrap_or(rest.len());
        let (line, after) = rest.split_at(end);
        let ending = match after {
            [b'\r', b'\n', ..] => 2,
            [] => 0,
            _ => 1,
        };
        if line == b"id" || line.starts_with(b"id:") {
            written.extend_from_slice(&[b"id: ", id].concat());
        } else {
            written.extend_from_slice(line);
        }
        written.extend_from_slice(&after[..ending]);
        rest = &after[ending..];
    }
    written.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ResourceUri;
    use crate::mcp::SseReader;
    use proptest::prelude::*;

    fn names(server: &str) -> Namespace {
        Namespace::new(ServerName::parse(server).unwrap(), StreamKind::Own)
    }

    #[test]
    fn names_say_whose_they_are() {
        assert_eq!(names("git_hub").name("create__issue"), "git_hub__create__issue");
        assert_eq!(names("2fa").uri("file:///a"), "n..2fa+file:///a");
        assert_eq!(names("my_files").uri("file:///a"), "my.files+file:///a");
        for unknown in ["echo", "_a__b", "A__b", "__b", ""] {
            assert_eq!(parse_name(unknown), None, "{unknown}");
        }
        for unknown in [
            "file:///a",
            "my_files+file:///a",
            "2fa+file:///a",
            "n..a+file:///a",
            "N..2fa+x:y",
            "+x:y",
            "a..b+x:y",
        ] {
            assert_eq!(parse_uri(unknown), None, "{unknown}");
        }
        for unknown in ["7", "o.files", "x.files.7", "o.Files.7", ""] {
            assert_eq!(parse_event_id(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn an_event_keeps_all_but_its_id() {
        for (raw, wanted) in [
            ("id: 7\nretry: 3\ndata: \n\n", "id: o.a.7\nretry: 3\ndata: \n\n"),
            ("data: {}\r\nid:7\r\n\r\n", "data: {}\r\nid: o.a.7\r\n\r\n"),
            ("data: id: 7\rid: 7\r\r", "data: id: 7\rid: o.a.7\r\r"),
            ("data: {}\n\n", "data: {}\n\n"),
        ] {
            let mut reader = SseReader::new(100);
            reader.push(Bytes::from_static(raw.as_bytes()));
            let mut frame = reader.frame().unwrap().unwrap();
            names("a").event(&mut frame, None);
            assert_eq!(frame.raw, wanted);
            let id = frame.id.map(|id| String::from_utf8(id.to_vec()).unwrap());
            if let Some(id) = id {
                let cursor = parse_event_id(&id).unwrap();
                assert_eq!(
                    (cursor.server.as_str(), cursor.stream_kind, cursor.id),
                    ("a", StreamKind::Own, "7")
                );
            }
        }
    }

    #[test]
    fn an_event_of_an_answer_says_of_which() {
        for (request, wanted) in [("7", Value::from(7)), ("\"7\"", "7".into())] {
            let mut reader = SseReader::new(100);
            reader.push(Bytes::from_static(b"id: e.1\ndata: {}\n\n"));
            let mut frame = reader.frame().unwrap().unwrap();
            let namespace = Namespace::new(ServerName::parse("a").unwrap(), StreamKind::Answer);
            namespace.event(&mut frame, Some(&MessageId::from_json(Bytes::from(request))));
            let id = String::from_utf8(frame.id.unwrap().to_vec()).unwrap();
            let cursor = parse_event_id(&id).unwrap();
            assert_eq!(
                (cursor.stream_kind, cursor.request, cursor.id),
                (StreamKind::Answer, Some(wanted), "e.1")
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn what_was_written_is_found_back(server in "[a-z0-9_-]{1,8}", name in "[A-Za-z0-9_.+-]{0,8}", uri in "[a-z0-9+.-]{0,6}:[a-z+/_.]{0,8}") {
            prop_assume!(ServerName::parse(&server).is_ok());
            let namespace = names(&server);
            let written = namespace.name(&name);
            prop_assert_eq!(parse_name(&written), Some((namespace.server.clone(), name.as_str())));
            let written = namespace.uri(&uri);
            prop_assert_eq!(parse_uri(&written), Some((namespace.server.clone(), uri.as_str())));
            let written = namespace.uri("x:y");
            prop_assert!(ResourceUri::parse(&written).is_ok(), "{}", written);
        }
    }
}
