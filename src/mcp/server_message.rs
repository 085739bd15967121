//! Parses a server's message once. It finds the requests to the client, and the opaque tokens that only this client may
//! bring back. It does not know which requests are allowed.

use super::json::{DuplicateNames, Fault, JsonKind, Scanner, Span, decode, fault};
use super::message_kind::{JsonRpcEnvelope, MessageKind, SERVER_MESSAGE_BOUNDS};
use super::splice::JsonSpan;
use crate::domain::{ClientRequest, MessageId, Reason};

/// The parts of a server's message that Guardian acts on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerMessage {
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
    /// The request that a `notifications/cancelled` cancels.
    pub cancelled_request: Option<JsonSpan>,
    /// The requests to the client: the message itself, or those in `inputRequests`.
    pub client_requests: Vec<ClientRequestRef>,
    /// The error -32042 (URL elicitation required, legacy): the user must open a URL first.
    pub needs_url_elicitation: bool,
    /// The `tasks` capability in the result of `initialize`.
    pub tasks_capability: Option<JsonSpan>,
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

/// Classifies a server's message as `message_kind` does, and parses it in the same pass.
pub fn parse_server_message(message: &[u8], id: &MessageId) -> (MessageKind, ServerMessage) {
    match parse_with_envelope(message) {
        Ok((envelope, server_message)) => (envelope.kind(message, id), server_message),
        Err(fault) => (MessageKind::Malformed(fault.detail), ServerMessage::default()),
    }
}

fn parse_with_envelope(message: &[u8]) -> Result<(JsonRpcEnvelope, ServerMessage), Fault> {
    let reader = ServerMessageReader {
        text: message,
        server_message: ServerMessage::default(),
        is_error: None,
        code: None,
    };
    reader.parse()
}

const LISTS: [(&str, &str); 4] = [
    ("tools", "tools/list"),
    ("prompts", "prompts/list"),
    ("resources", "resources/list"),
    ("resourceTemplates", "resources/templates/list"),
];
/// The legacy error that asks for a URL elicitation without sending a request.
const URL_ELICITATION_REQUIRED: &str = "-32042";
/// The member of `_meta` that names the task a message belongs to.
const RELATED: &str = "io.modelcontextprotocol/related-task";

struct ServerMessageReader<'a> {
    text: &'a [u8],
    server_message: ServerMessage,
    is_error: Option<Span>,
    code: Option<Span>,
}

/// The parameters that change what a request to the client asks for.
#[derive(Default)]
struct RequestMode {
    mode: Option<Span>,
    /// The client would have to run the request as a task, which Guardian does not support.
    as_task: bool,
}

impl ServerMessageReader<'_> {
    fn parse(mut self) -> Result<(JsonRpcEnvelope, ServerMessage), Fault> {
        let mut scanner = Scanner::open(self.text, &SERVER_MESSAGE_BOUNDS, DuplicateNames::Exact)?;
        let mut request_mode = RequestMode::default();
        let fields = scanner.known_members(
            0,
            &["jsonrpc", "id", "method", "params", "result", "error"],
            |scanner, index, depth| match (index, scanner.peek()) {
                (3, Some(b'{')) => self.params(scanner, depth, &mut request_mode),
                (4, Some(b'{')) => self.result(scanner, depth),
                (5, Some(b'{')) => self.error(scanner, depth),
                _ => scanner.value(depth),
            },
        )?;
        scanner.close()?;
        let [jsonrpc, id, method, _, result, error] = fields.spans;
        let envelope = JsonRpcEnvelope::of(self.text, [jsonrpc, id, method, result, error], self.is_error, self.code)?;
        let Some(method) = method else {
            self.server_message.cancelled_request = None;
            return Ok((envelope, self.server_message));
        };
        let method = decode_text(self.text, "method", method)?;
        let id = id.filter(|id| id.kind != JsonKind::Null);
        if id.is_some() {
            let capability = self.requested_capability(&method, &request_mode)?;
            self.server_message.client_requests.push(ClientRequestRef {
                method: method.clone(),
                capability,
            });
        }
        self.server_message.cancelled_request = self
            .server_message
            .cancelled_request
            .filter(|_| method == "notifications/cancelled");
        self.server_message.id = id.map(JsonSpan::from);
        self.server_message.method = Some(method);
        Ok((envelope, self.server_message))
    }

    fn result(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<Span, Fault> {
        const MEMBERS: [&str; 13] = [
            "isError",
            "capabilities",
            "resultType",
            "requestState",
            "nextCursor",
            "taskId",
            "task",
            "_meta",
            "inputRequests",
            LISTS[0].0,
            LISTS[1].0,
            LISTS[2].0,
            LISTS[3].0,
        ];
        let start = scanner.here();
        let fields = scanner.known_members(depth, &MEMBERS, |scanner, index, depth| {
            match (MEMBERS[index], scanner.peek()) {
                ("task", Some(b'{')) => self.task(scanner, depth),
                ("_meta", Some(b'{')) => self.meta(scanner, depth),
                ("inputRequests", Some(b'{')) => self.requests(scanner, depth),
                ("capabilities", Some(b'{')) => self.offers(scanner, depth),
                _ => scanner.value(depth),
            }
        })?;
        let [is_error, _, kind, state, cursor, task, _, _, asked, lists @ ..] = fields.spans;
        self.is_error = is_error;
        self.server_message.result_type = match kind {
            None => ResultType::Complete,
            Some(span) => match decode_text(self.text, "resultType", span)?.as_str() {
                "complete" => ResultType::Complete,
                "input_required" => ResultType::InputRequired,
                "task" => ResultType::Task,
                _ => ResultType::Unknown,
            },
        };
        self.server_message.request_state = opaque_span("requestState", state)?;
        self.server_message.next_cursor = opaque_span("nextCursor", cursor)?;
        self.server_message.tasks.extend(opaque_span("taskId", task)?);
        if asked.is_some_and(|span| !matches!(span.kind, JsonKind::Object | JsonKind::Null)) {
            return Err(broken("`inputRequests` is not an object"));
        }
        let listed = LISTS.iter().zip(lists).find(|(_, span)| span.is_some());
        self.server_message.list_method = listed.map(|((_, method), _)| *method);
        Ok(scanner.since(start, JsonKind::Object))
    }

    fn params(&mut self, scanner: &mut Scanner<'_>, depth: usize, request_mode: &mut RequestMode) -> Result<Span, Fault> {
        const MEMBERS: [&str; 7] = [
            "requestId",
            "taskId",
            "mode",
            "task",
            "_meta",
            "notifications",
            "inputRequests",
        ];
        let start = scanner.here();
        let fields = scanner.known_members(depth, &MEMBERS, |scanner, index, depth| {
            match (MEMBERS[index], scanner.peek()) {
                ("_meta", Some(b'{')) => self.meta(scanner, depth),
                ("notifications", Some(b'{')) => self.granted_tasks(scanner, depth),
                ("inputRequests", Some(b'{')) => self.requests(scanner, depth),
                _ => scanner.value(depth),
            }
        })?;
        let [cancels, task, mode, as_task, ..] = fields.spans;
        self.server_message.cancelled_request = cancels
            .filter(|span| matches!(span.kind, JsonKind::Text(_) | JsonKind::Number(_)))
            .map(JsonSpan::from);
        self.server_message.tasks.extend(opaque_span("taskId", task)?);
        *request_mode = RequestMode {
            mode,
            as_task: as_task.is_some(),
        };
        Ok(scanner.since(start, JsonKind::Object))
    }

    fn error(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<Span, Fault> {
        let start = scanner.here();
        let fields = scanner.known_members(depth, &["code"], |scanner, _, depth| scanner.value(depth))?;
        self.code = fields.spans[0];
        let code = self.code.map(|span| &self.text[span.range()]);
        self.server_message.needs_url_elicitation = code == Some(URL_ELICITATION_REQUIRED.as_bytes());
        Ok(scanner.since(start, JsonKind::Object))
    }

    /// Reads `capabilities`: `{"tasks": {…}}`.
    fn offers(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<Span, Fault> {
        let start = scanner.here();
        let fields = scanner.known_members(depth, &["tasks"], |scanner, _, depth| scanner.value(depth))?;
        let tasks = fields.spans[0].filter(|span| span.kind == JsonKind::Object);
        self.server_message.tasks_capability = tasks.map(JsonSpan::from);
        Ok(scanner.since(start, JsonKind::Object))
    }

    /// Reads `{"taskId": …}`.
    fn task(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<Span, Fault> {
        let start = scanner.here();
        let fields = scanner.known_members(depth, &["taskId"], |scanner, _, depth| scanner.value(depth))?;
        self.server_message.tasks.extend(opaque_span("taskId", fields.spans[0])?);
        Ok(scanner.since(start, JsonKind::Object))
    }

    fn meta(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<Span, Fault> {
        let start = scanner.here();
        scanner.known_members(depth, &[RELATED], |scanner, _, depth| match scanner.peek() {
            Some(b'{') => self.task(scanner, depth),
            _ => scanner.value(depth),
        })?;
        Ok(scanner.since(start, JsonKind::Object))
    }

    /// Reads the granted filter of a subscription: `{"taskIds": […]}`.
    fn granted_tasks(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<Span, Fault> {
        let start = scanner.here();
        scanner.known_members(depth, &["taskIds"], |scanner, _, depth| {
            if scanner.peek() != Some(b'[') {
                return scanner.value(depth);
            }
            let start = scanner.here();
            scanner.array(depth, &mut |scanner, depth| {
                let id = scanner.value(depth)?;
                self.server_message.tasks.extend(opaque_span("taskIds", Some(id))?);
                Ok(())
            })?;
            Ok(scanner.since(start, JsonKind::Array))
        })?;
        Ok(scanner.since(start, JsonKind::Object))
    }

    /// Reads `inputRequests`: `{"<key>": {"method": …, "params": {…}}, …}`.
    fn requests(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<Span, Fault> {
        let start = scanner.here();
        scanner.object(depth, &mut |scanner, _, depth| {
            let mut request_mode = RequestMode::default();
            let fields = scanner.known_members(depth, &["method", "params"], |scanner, index, depth| {
                if index == 0 || scanner.peek() != Some(b'{') {
                    return scanner.value(depth);
                }
                let start = scanner.here();
                let fields = scanner.known_members(depth, &["mode", "task"], |scanner, _, depth| scanner.value(depth))?;
                request_mode = RequestMode {
                    mode: fields.spans[0],
                    as_task: fields.spans[1].is_some(),
                };
                Ok(scanner.since(start, JsonKind::Object))
            })?;
            let method = fields.spans[0].ok_or_else(|| broken("a request to the client has no method"))?;
            let method = decode_text(self.text, "method", method)?;
            let capability = match self.requested_capability(&method, &request_mode)? {
                RequestedCapability::Ping => RequestedCapability::Other,
                capability => capability,
            };
            self.server_message
                .client_requests
                .push(ClientRequestRef { method, capability });
            Ok(())
        })?;
        Ok(scanner.since(start, JsonKind::Object))
    }

    fn requested_capability(&self, method: &str, request_mode: &RequestMode) -> Result<RequestedCapability, Fault> {
        let mode = request_mode
            .mode
            .map(|mode| decode_text(self.text, "mode", mode))
            .transpose()?;
        Ok(match (method, mode.as_deref()) {
            ("ping", _) => RequestedCapability::Ping,
            _ if request_mode.as_task => RequestedCapability::Other,
            ("sampling/createMessage", _) => RequestedCapability::Client(ClientRequest::Sampling),
            ("roots/list", _) => RequestedCapability::Client(ClientRequest::Roots),
            ("elicitation/create", None | Some("form")) => RequestedCapability::Client(ClientRequest::Elicitation),
            ("elicitation/create", Some("url")) => RequestedCapability::Client(ClientRequest::ElicitationUrl),
            _ => RequestedCapability::Other,
        })
    }
}

/// An opaque string, which only the server understands. `null` counts as absent.
fn opaque_span(name: &str, span: Option<Span>) -> Result<Option<JsonSpan>, Fault> {
    match span {
        None => Ok(None),
        Some(span) => match span.kind {
            JsonKind::Text(_) => Ok(Some(span.into())),
            JsonKind::Null => Ok(None),
            _ => Err(broken(format!("`{name}` is not a string"))),
        },
    }
}

fn decode_text(message: &[u8], name: &str, span: Span) -> Result<String, Fault> {
    match span.kind {
        JsonKind::Text(_) => Ok(decode(message, span)?.into_owned()),
        _ => Err(broken(format!("`{name}` is not a string"))),
    }
}

fn broken(detail: impl Into<String>) -> Fault {
    fault(Reason::UpstreamBroken, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(message: &str) -> ServerMessage {
        super::parse_with_envelope(message.as_bytes())
            .unwrap_or_else(|fault| panic!("{message}: {fault}"))
            .1
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
        assert_eq!(none, ServerMessage::default());
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
            super::parse_with_envelope(message.as_bytes())
                .map(|(_, server_message)| server_message.result_type)
                .ok()
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
            assert!(super::parse_with_envelope(message.as_bytes()).is_err(), "{message}");
        }
    }

    #[test]
    fn a_message_is_recognised_as_without_reading_it() {
        let id = MessageId::from_json(bytes::Bytes::from_static(b"7"));
        for message in [
            r#"{"jsonrpc":"2.0","id":7,"result":{"isError":true,"taskId":"a"}}"#,
            r#"{"jsonrpc":"2.0","id":7.0,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":7,"result":null}"#,
            r#"{"jsonrpc":"2.0","id":8,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"no"}}"#,
            r#"{"jsonrpc":"2.0","error":{"message":"no"}}"#,
            r#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/message","params":{}}"#,
            r#"{"jsonrpc":"2.0","id":7,"result":{},"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":7,"result":{"a":1,"a":2}}"#,
            r#"{"id":7,"result":{}}"#,
            "[]",
        ] {
            let kind = super::super::message_kind(message.as_bytes(), &id);
            assert_eq!(parse_server_message(message.as_bytes(), &id).0, kind, "{message}");
        }
    }
}
