//! The namespace of the combined endpoint: adds the server to names and finds it again. Tools and prompts become
//! `<server>__<name>`, resources `<server>+<uri>`. The handles of SSE event ids carry the kind of stream.
//! A server name holds no `__` and does not end with `_`, so the first `__` always separates the two parts.

use crate::domain::{MessageId, ServerName};
use serde_json::Value;

/// Rewrites the names of one server for the combined endpoint.
#[derive(Debug, Clone)]
pub struct Namespace {
    server: ServerName,
    stream_kind: StreamKind,
    /// The request id on a stream that resumes its answer: the resuming GET has no request id of its own.
    resumed: Option<Value>,
    session: String,
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
            session: String::new(),
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

    /// The combined session that event ids are bound to.
    pub fn in_session(self, session: String) -> Self {
        Self { session, ..self }
    }

    pub fn session(&self) -> &str {
        &self.session
    }

    /// What the handle of an event says beside the server's own id: the kind of stream and, for an answer, the request.
    pub fn event_note(&self, request: Option<&MessageId>) -> String {
        let resumed = self.resumed.as_ref().map(Value::to_string);
        let request = request.map(MessageId::as_json).or(resumed.as_deref()).unwrap_or_default();
        match self.stream_kind {
            StreamKind::Answer => format!("a{request}"),
            StreamKind::Own => "o".to_owned(),
        }
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

/// Parses what [`Namespace::event_note`] wrote: the kind of stream, and the id of the request that the stream answers.
pub fn parse_event_note(note: &str) -> Option<(StreamKind, Option<Value>)> {
    match note.strip_prefix('a') {
        Some(request) => Some((StreamKind::Answer, serde_json::from_str(request).ok())),
        None => (note == "o").then_some((StreamKind::Own, None)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ResourceUri;
    use bytes::Bytes;
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
        for unknown in ["7", "x", "oo", ""] {
            assert_eq!(parse_event_note(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn an_event_says_on_which_stream_it_was() {
        let answer = Namespace::new(ServerName::parse("a").unwrap(), StreamKind::Answer);
        for (request, wanted) in [("7", Value::from(7)), ("\"7\"", "7".into())] {
            let note = answer.event_note(Some(&MessageId::from_json(Bytes::from(request))));
            assert_eq!(parse_event_note(&note), Some((StreamKind::Answer, Some(wanted.clone()))));
            let resumed = Namespace::resuming(answer.server().clone(), Some(wanted));
            assert_eq!(resumed.event_note(None), note);
        }
        assert_eq!(parse_event_note(&answer.event_note(None)), Some((StreamKind::Answer, None)));
        assert_eq!(parse_event_note(&names("a").event_note(None)), Some((StreamKind::Own, None)));
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
