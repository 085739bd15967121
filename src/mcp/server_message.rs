//! A server's message, parsed once: what it is, where it goes, the opaque tokens that only this client may bring back, the
//! requests to the client, and the names that Guardian may change. It does not know what is allowed.

use super::json::{Fault, JsonKind, JsonSpan, Malformed, Span, decode, fault};
use super::message_kind::{MessageKind, same_id};
use super::server_message_reader::read_server_message;
use super::splice::replace_value;
use crate::domain::{ClientRequest, MessageId, Reason};
use bytes::Bytes;
use std::iter;

/// The parts of a server's message that Guardian acts on. The spans lead into the bytes that were parsed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerMessage {
    pub(super) envelope: JsonRpcEnvelope,
    /// Why a client cannot read the message.
    pub(super) unreadable: Option<Fault>,
    /// Why its names cannot be changed, and why its lists cannot be filtered.
    pub(super) unclear_names: Option<Fault>,
    pub(super) unclear_lists: Option<Fault>,
    /// Of a request or a notification.
    pub method: Option<String>,
    /// Of a request.
    pub id: Option<JsonSpan>,
    pub result_type: ResultType,
    pub request_state: Option<JsonSpan>,
    pub next_cursor: Option<JsonSpan>,
    /// If the result is a list: the method that such a list answers.
    pub list_method: Option<&'static str>,
    /// All task ids: of the result, of related tasks, of a subscription.
    pub tasks: Vec<JsonSpan>,
    /// A refusal in the `_meta` of a result, which only Guardian may put there.
    pub claimed_refusal: Option<JsonSpan>,
    /// The progress token: `params._meta.progressToken` of a request, `params.progressToken` of a notification.
    pub progress_token: Option<JsonSpan>,
    /// The request that a `notifications/cancelled` cancels.
    pub cancelled_request: Option<JsonSpan>,
    /// The requests to the client: the message itself, or those in `inputRequests`.
    pub client_requests: Vec<ClientRequestRef>,
    /// The error -32042 (URL elicitation required, legacy): the user must open a URL first.
    pub needs_url_elicitation: bool,
    /// The `tasks` capability in the result of `initialize`.
    pub tasks_capability: Option<JsonSpan>,
    /// The version in the result of `initialize`.
    pub(super) protocol_version: Option<Span>,
    /// The resource of a `notifications/resources/updated`.
    pub(super) updated_resource: Option<Span>,
    pub(super) lists: Vec<ListSpans>,
    pub(super) cache_scope: Option<Span>,
    pub(super) ttl_ms: Option<Span>,
    /// The names and URIs outside these lists.
    pub(super) names: Vec<NameSpan>,
}

/// The members that make a message a result, an error, a request or a notification.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct JsonRpcEnvelope {
    pub is_version_2: bool,
    pub id: Option<Span>,
    pub has_method: bool,
    pub result: Option<Span>,
    pub error: Option<Span>,
    pub is_error: bool,
    pub code: Option<i64>,
}

impl JsonRpcEnvelope {
    /// All spans. A member that is added has to be named here too.
    fn spans_mut(&mut self) -> impl Iterator<Item = &mut Span> {
        let Self {
            is_version_2: _,
            id,
            has_method: _,
            result,
            error,
            is_error: _,
            code: _,
        } = self;
        [id, result, error].into_iter().flatten()
    }
}

/// A list in a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListSpans {
    pub of: ListKind,
    pub span: Span,
    pub items: Vec<ListItem>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListItem {
    pub span: Span,
    /// The member that identifies the item, if it is a string.
    pub name: Option<Span>,
}

/// A name that another server could use too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NameSpan {
    /// Of a tool or prompt.
    Name(Span),
    /// Of a resource, or of a resource template.
    Uri(Span),
}

/// The kind of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListKind {
    Tools,
    Resources,
    Templates,
    Prompts,
}

impl ListKind {
    /// The member of the result that holds the list.
    pub(super) const fn member(self) -> &'static str {
        ["tools", "resources", "resourceTemplates", "prompts"][self as usize]
    }

    /// The member that identifies an item.
    pub(super) const fn named_by(self) -> &'static [&'static str; 1] {
        match self {
            ListKind::Tools | ListKind::Prompts => &["name"],
            ListKind::Resources => &["uri"],
            ListKind::Templates => &["uriTemplate"],
        }
    }

    pub(super) const fn name_span(self, span: Span) -> NameSpan {
        match self {
            ListKind::Tools | ListKind::Prompts => NameSpan::Name(span),
            ListKind::Resources | ListKind::Templates => NameSpan::Uri(span),
        }
    }
}

/// One request to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientRequestRef {
    pub method: String,
    pub capability: RequestedCapability,
}

/// What a request of the server asks the client for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestedCapability {
    Ping,
    Client(ClientRequest),
    /// A request that no client behind Guardian may get.
    Other,
}

/// `resultType` of the modern era; absent means complete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ResultType {
    #[default]
    Complete,
    InputRequired,
    Task,
    Unknown,
}

/// The kind of a message; requests and notifications carry their method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JsonRpcKind {
    Request(String),
    Notification(String),
    Response,
}

/// The subject of a server's notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerNotification {
    /// The resource with this URI has changed.
    ResourceUpdated(String),
    /// Any other notification: its content does not restrict who may receive it.
    Other,
}

impl ServerMessage {
    /// Parses a message, whichever side sent it, in one pass. It fails if the text is no JSON object, or if readers could
    /// find different members of the message itself in it. Other faults keep only those from using the message whom they
    /// concern.
    pub fn parse(message: &[u8]) -> Result<Self, Malformed> {
        Ok(read_server_message(message)?)
    }

    /// Parses and classifies a message, as seen from the request `id`. A message that no client could read has no parts.
    pub fn classify(message: &[u8], id: &MessageId) -> (MessageKind, Self) {
        match Self::parse(message) {
            Ok(parsed) => parsed.into_kind(message, id),
            Err(malformed) => (MessageKind::Malformed(malformed.detail), Self::default()),
        }
    }

    /// Classifies a parsed message.
    pub fn into_kind(self, message: &[u8], id: &MessageId) -> (MessageKind, Self) {
        let is_readable = self.unreadable.is_none() && self.envelope.is_version_2;
        let kind = self.kind(message, id);
        (kind, if is_readable { self } else { Self::default() })
    }

    /// What the message is, seen from the request `id`.
    pub fn kind(&self, message: &[u8], id: &MessageId) -> MessageKind {
        match &self.unreadable {
            Some(fault) => MessageKind::Malformed(fault.detail.clone()),
            None => self.envelope_kind(message, id),
        }
    }

    /// The same, by the members of the message itself: what is wrong inside of them is not looked at.
    pub fn envelope_kind(&self, message: &[u8], id: &MessageId) -> MessageKind {
        let envelope = &self.envelope;
        let addressed = envelope.id.filter(|span| span.kind != JsonKind::Null);
        if !envelope.is_version_2 {
            return MessageKind::Malformed(NO_VERSION.to_owned());
        }
        match (envelope.has_method, envelope.result, envelope.error, addressed) {
            (true, None, None, Some(_)) => MessageKind::ServerRequest,
            (true, None, None, None) => MessageKind::ServerNotification,
            (false, Some(_), None, Some(span)) | (false, None, Some(_), Some(span)) if !same_id(message, span, id) => {
                MessageKind::OtherResponse
            }
            (false, Some(_), None, Some(_)) => MessageKind::Result {
                is_error: envelope.is_error,
            },
            (false, None, Some(error), addressed) if error.kind == JsonKind::Object => MessageKind::Error {
                code: envelope.code.unwrap_or_default(),
                addressed: addressed.is_some(),
            },
            _ => MessageKind::Malformed("neither a result, an error, a request nor a notification".to_owned()),
        }
    }

    /// What decides where the message goes on a connection that many requests share.
    pub fn route(&self) -> Result<JsonRpcKind, Malformed> {
        let broken = |detail| Err(Malformed::new(Reason::UpstreamBroken, detail));
        let JsonRpcEnvelope { id, result, error, .. } = &self.envelope;
        if !self.envelope.is_version_2 {
            return broken(NO_VERSION);
        }
        if id.is_some_and(|id| !matches!(id.kind, JsonKind::Text(_) | JsonKind::Number(_) | JsonKind::Null)) {
            return broken("`id` is neither a text nor a number");
        }
        match (&self.method, result.or(*error)) {
            (Some(method), None) if self.id.is_some() => Ok(JsonRpcKind::Request(method.clone())),
            (Some(method), None) => Ok(JsonRpcKind::Notification(method.clone())),
            (None, Some(_)) if !self.envelope.has_method => Ok(JsonRpcKind::Response),
            _ => broken("neither a request, a notification nor an answer"),
        }
    }

    /// The id of an answer; `None` if it is `null` or absent.
    pub fn response_id(&self) -> Option<JsonSpan> {
        let id = self.envelope.id.filter(|span| span.kind != JsonKind::Null);
        id.filter(|_| !self.envelope.has_method).map(JsonSpan::from)
    }

    /// The answer with another id, as text and as parsed: every span still leads to its value.
    pub fn with_response_id(mut self, message: &Bytes, id: &MessageId) -> (Bytes, Self) {
        let Some(old) = self.response_id() else {
            return (message.clone(), self);
        };
        let written = replace_value(message, old, id.as_json().to_owned());
        let kind = match id.as_json() {
            text if text.starts_with('"') => JsonKind::Text(text.contains('\\')),
            number => JsonKind::Number(number.parse::<i64>().is_ok()),
        };
        self.envelope.id = self.envelope.id.map(|span| Span { kind, ..span });
        let (old_length, length) = (old.end - old.start, id.as_json().len() as u32);
        for span in self.spans_mut() {
            // No span lies inside an id, so each of its ends is at the id's start or before, or at its end or behind.
            for at in [&mut span.start, &mut span.end] {
                if *at >= old.end {
                    *at = (*at - old_length).saturating_add(length);
                }
            }
        }
        (written, self)
    }

    /// All spans. A member that is added to the message has to be named here too.
    fn spans_mut(&mut self) -> impl Iterator<Item = &mut JsonSpan> {
        let Self {
            envelope,
            unreadable: _,
            unclear_names: _,
            unclear_lists: _,
            method: _,
            id,
            result_type: _,
            request_state,
            next_cursor,
            list_method: _,
            tasks,
            claimed_refusal,
            progress_token,
            cancelled_request,
            client_requests: _,
            needs_url_elicitation: _,
            tasks_capability,
            protocol_version,
            updated_resource,
            lists,
            cache_scope,
            ttl_ms,
            names,
        } = self;
        let in_lists = lists.iter_mut().flat_map(|list| {
            let items = list.items.iter_mut();
            iter::once(&mut list.span).chain(items.flat_map(|item| iter::once(&mut item.span).chain(&mut item.name)))
        });
        let names = names.iter_mut().map(|(NameSpan::Name(span) | NameSpan::Uri(span))| span);
        let values = [protocol_version, updated_resource, cache_scope, ttl_ms];
        let values = values.into_iter().flatten().chain(envelope.spans_mut());
        let with_kind = values.chain(in_lists).chain(names);
        let plain = [
            id,
            request_state,
            next_cursor,
            claimed_refusal,
            progress_token,
            cancelled_request,
            tasks_capability,
        ];
        let plain = plain.into_iter().flatten().chain(tasks);
        with_kind.map(|span| &mut span.at).chain(plain)
    }

    /// Copies a JSON-RPC error and gives it the id `id`.
    pub fn readdressed(&self, message: &[u8], id: &MessageId) -> Result<Bytes, Malformed> {
        let error = self.envelope.error.filter(|_| self.envelope.is_version_2);
        let Some(error) = error else {
            return Err(Malformed::new(Reason::UpstreamBroken, "the answer is no error"));
        };
        let mut text = format!(r#"{{"jsonrpc":"2.0","id":{},"error":"#, id.as_json()).into_bytes();
        text.extend_from_slice(&message[error.range()]);
        text.push(b'}');
        Ok(text.into())
    }

    /// The protocol version in the result of an `initialize`.
    pub fn negotiated_version(&self, message: &[u8]) -> Option<String> {
        let version = decode(message, self.protocol_version?).ok()?;
        Some(version.into_owned())
    }

    /// What decides who may receive the notification; `None` if a resource update has no readable URI.
    pub fn notification(&self, message: &[u8]) -> Option<ServerNotification> {
        if self.method.as_deref()? != RESOURCE_UPDATED {
            return Some(ServerNotification::Other);
        }
        let uri = self.updated_resource.filter(|_| self.unclear_names.is_none())?;
        Some(ServerNotification::ResourceUpdated(decode(message, uri).ok()?.into_owned()))
    }
}

pub(super) const RESOURCE_UPDATED: &str = "notifications/resources/updated";
const NO_VERSION: &str = "`jsonrpc` is not \"2.0\"";

pub(super) fn broken(detail: impl Into<String>) -> Fault {
    fault(Reason::UpstreamBroken, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(message: &str) -> ServerMessage {
        let parsed = ServerMessage::parse(message.as_bytes()).unwrap();
        assert_eq!(parsed.unreadable, None, "{message}");
        parsed
    }

    fn at(message: &str, span: Option<JsonSpan>) -> &str {
        span.map_or("", |span| span.text(message.as_bytes()))
    }

    #[test]
    fn what_is_asked_of_the_client_is_found_wherever_it_is_asked() {
        let asked = |message: &str| {
            read(message)
                .client_requests
                .iter()
                .map(|client_request| client_request.capability)
                .collect::<Vec<_>>()
        };
        let request = |method: &str, params: &str| {
            asked(&format!(
                r#"{{"jsonrpc":"2.0","id":4,"method":"{method}","params":{params}}}"#
            ))
        };
        use ClientRequest as Of;
        assert_eq!(request("ping", "{}"), [RequestedCapability::Ping]);
        assert_eq!(request("roots/list", "{}"), [RequestedCapability::Client(Of::Roots)]);
        assert_eq!(
            request("sampling/createMessage", r#"{"mode":"x"}"#),
            [RequestedCapability::Client(Of::Sampling)]
        );
        assert_eq!(
            request("elicitation/create", "{}"),
            [RequestedCapability::Client(Of::Elicitation)]
        );
        assert_eq!(
            request("elicitation/create", r#"{"mode":"form"}"#),
            [RequestedCapability::Client(Of::Elicitation)]
        );
        assert_eq!(
            request("elicitation/create", r#"{"m\u006fde":"url"}"#),
            [RequestedCapability::Client(Of::ElicitationUrl)]
        );
        assert_eq!(
            request("elicitation/create", r#"{"mode":"other"}"#),
            [RequestedCapability::Other]
        );
        assert_eq!(request("elicitation/create", r#"{"task":{}}"#), [RequestedCapability::Other]);
        assert_eq!(request("tasks/get", r#"{"taskId":"a"}"#), [RequestedCapability::Other]);
        assert_eq!(
            asked(
                r#"{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","inputRequests":{
                "a":{"method":"elicitation/create","params":{"mode":"url"}},"b":{"params":{},"method":"roots/list"},"c":{"method":"ping"}}}}"#
            ),
            [
                RequestedCapability::Client(Of::ElicitationUrl),
                RequestedCapability::Client(Of::Roots),
                RequestedCapability::Other
            ]
        );
        assert_eq!(
            asked(r#"{"jsonrpc":"2.0","method":"roots/list"}"#),
            [],
            "nobody answers a notification"
        );
    }

    #[test]
    fn what_a_client_brings_back_is_found() {
        let message = r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[{"nextCursor":"no"}],"nextCursor":"p\u00e9","_meta":{"io.modelcontextprotocol/related-task":{"taskId":"t1"}},"task":{"taskId":"t2","status":"working"},"taskId":"t3","requestState":"s","structuredContent":{"taskId":"no"}}}"#;
        let server_message = read(message);
        assert_eq!(at(message, server_message.next_cursor), r#""p\u00e9""#);
        assert_eq!(at(message, server_message.request_state), r#""s""#);
        let tasks: Vec<_> = server_message
            .tasks
            .iter()
            .map(|span| span.text(message.as_bytes()))
            .collect();
        assert_eq!(tasks, [r#""t1""#, r#""t2""#, r#""t3""#]);
        assert_eq!(server_message.list_method, Some("tools/list"));
        let message = r#"{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"notifications":{"taskIds":["a","b"]}}}"#;
        assert_eq!(read(message).tasks.len(), 2);
        let none = read(r#"{"jsonrpc":"2.0","id":1,"result":{"nextCursor":null,"requestState":null}}"#);
        assert_eq!((none.next_cursor, none.request_state), (None, None));
    }

    #[test]
    fn only_a_cancellation_takes_a_request_back() {
        let note = |method: &str| format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{{"requestId":7}}}}"#);
        let message = note("notifications/cancelled");
        assert_eq!(at(&message, read(&message).cancelled_request), "7");
        assert_eq!(read(&note("notifications/message")).cancelled_request, None);
    }

    #[test]
    fn a_result_has_one_of_three_types() {
        let kind = |written: &str| {
            let message = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"resultType":{written}}}}}"#);
            let parsed = ServerMessage::parse(message.as_bytes()).unwrap();
            parsed.unreadable.is_none().then_some(parsed.result_type)
        };
        assert_eq!(kind(r#""complete""#), Some(ResultType::Complete));
        assert_eq!(kind(r#""input\u005frequired""#), Some(ResultType::InputRequired));
        assert_eq!(kind(r#""task""#), Some(ResultType::Task));
        assert_eq!(kind(r#""Task""#), Some(ResultType::Unknown));
        assert!(kind("null").is_none() && kind("1").is_none());
        assert_eq!(
            read(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#).result_type,
            ResultType::Complete
        );
    }

    #[test]
    fn an_error_can_ask_too() {
        let wants = |error: &str| read(&format!(r#"{{"jsonrpc":"2.0","id":1,"error":{error}}}"#)).needs_url_elicitation;
        assert!(wants(r#"{"code":-32042,"message":"","data":{"elicitations":[]}}"#));
        assert!(!wants(r#"{"code":-32602,"message":"-32042"}"#));
    }

    #[test]
    fn what_could_be_read_twofold_is_refused() {
        for result in [
            r#"{"taskId":5}"#,
            r#"{"requestState":{}}"#,
            r#"{"nextCursor":["a"]}"#,
            r#"{"inputRequests":[]}"#,
            r#"{"inputRequests":{"a":{"params":{}}}}"#,
            r#"{"inputRequests":{"a":1}}"#,
            r#"{"InputRequests":{}}"#,
            r#"{"resulttype":"task"}"#,
            r#"{"inputRequests":{"a":{"method":"roots/list","Method":"ping"}}}"#,
        ] {
            let message = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#);
            let id = MessageId::from_json(Bytes::from_static(b"1"));
            let (kind, parsed) = ServerMessage::classify(message.as_bytes(), &id);
            assert!(
                matches!(kind, MessageKind::Malformed(_)) && parsed == ServerMessage::default(),
                "{message}"
            );
        }
    }

    fn routing_of(text: &str) -> (JsonRpcKind, [Option<&str>; 3]) {
        let parsed = ServerMessage::parse(text.as_bytes()).unwrap();
        let at = |span: Option<JsonSpan>| span.map(|span| &text[span.range()]);
        let id = parsed.id.or(parsed.response_id());
        (
            parsed.route().unwrap(),
            [at(id), at(parsed.progress_token), at(parsed.cancelled_request)],
        )
    }

    #[test]
    fn ids_and_tokens_are_found_where_the_kind_of_a_message_has_them() {
        let request = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"_meta":{"progressToken":"p"},"progressToken":1,"requestId":2}}"#;
        assert_eq!(
            routing_of(request),
            (JsonRpcKind::Request("tools/call".into()), [Some("7"), Some("\"p\""), None])
        );
        let progress =
            r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":3,"_meta":{"progressToken":4}}}"#;
        assert_eq!(
            routing_of(progress),
            (
                JsonRpcKind::Notification("notifications/progress".into()),
                [None, Some("3"), None]
            )
        );
        let cancelled = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"a"}}"#;
        assert_eq!(
            routing_of(cancelled),
            (
                JsonRpcKind::Notification("notifications/cancelled".into()),
                [None, None, Some("\"a\"")]
            )
        );
        // Members inside a result route nothing.
        let answer = r#"{"jsonrpc":"2.0","id":"1","result":{"id":2,"method":"x","params":{"progressToken":3}}}"#;
        assert_eq!(routing_of(answer), (JsonRpcKind::Response, [Some("\"1\""), None, None]));
        let nobody = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"?"}}"#;
        assert_eq!(routing_of(nobody), (JsonRpcKind::Response, [None, None, None]));
    }

    #[test]
    fn what_is_no_message_or_could_be_two_is_refused() {
        for text in [
            "Server listening",
            "{}",
            r#"{"level":30,"msg":"ready"}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":1,"id":2,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"Id":2,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"a","result":{}}"#,
            r#"{"jsonrpc":"2.0","method":"a","params":{"progressToken":1,"progressToken":2}}"#,
            r#"[{"jsonrpc":"2.0","id":1,"result":{}}]"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{}} {}"#,
        ] {
            let route = ServerMessage::parse(text.as_bytes()).and_then(|parsed| parsed.route());
            assert!(route.is_err(), "{text}");
        }
    }

    #[test]
    fn an_update_names_its_resource() {
        let of = |text: &str| ServerMessage::parse(text.as_bytes()).ok()?.notification(text.as_bytes());
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
