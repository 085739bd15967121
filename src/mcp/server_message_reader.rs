//! The one pass over a server's message. A fault that concerns only some uses of the message is noted, and the pass goes on.

use super::json::{Bounds, DuplicateNames, Fault, JsonKind, JsonSpan, Scanner, Span, decode};
use super::server_message::{
    ClientRequestRef, JsonRpcEnvelope, ListItem, ListKind, ListSpans, NameSpan, RESOURCE_UPDATED, RequestedCapability,
    ResultType, ServerMessage, broken,
};
use crate::domain::ClientRequest;

/// Bounds for messages of servers. Their length in bytes is bounded where they are received.
pub(super) const SERVER_MESSAGE_BOUNDS: Bounds = Bounds {
    depth: 100,
    members: 1_000_000,
    number_digits: 300,
};

const LIST_METHODS: [(&str, &str); 4] = [
    ("tools", "tools/list"),
    ("prompts", "prompts/list"),
    ("resources", "resources/list"),
    ("resourceTemplates", "resources/templates/list"),
];
/// The members of a result. The order of the first thirteen is that of `result_members`.
const RESULT: [&str; 20] = [
    "isError",
    "resultType",
    "requestState",
    "nextCursor",
    "taskId",
    "inputRequests",
    LIST_METHODS[0].0,
    LIST_METHODS[1].0,
    LIST_METHODS[2].0,
    LIST_METHODS[3].0,
    "cacheScope",
    "ttlMs",
    "protocolVersion",
    "capabilities",
    "task",
    "_meta",
    "contents",
    "content",
    "messages",
    "result",
];
/// The members of a result inside a message that hold names.
const NAMED: [&str; 8] = [
    LIST_METHODS[0].0,
    LIST_METHODS[1].0,
    LIST_METHODS[2].0,
    LIST_METHODS[3].0,
    "contents",
    "content",
    "messages",
    "result",
];
/// The legacy error that asks for a URL elicitation without sending a request.
const URL_ELICITATION_REQUIRED: &str = "-32042";
/// The member of `_meta` that names the task a message belongs to.
/// Where Guardian tells its own refusals.
const REFUSAL: &str = "guardian/refusal";
const RELATED: &str = "io.modelcontextprotocol/related-task";

pub(super) fn read_server_message(message: &[u8]) -> Result<ServerMessage, Fault> {
    let reader = Reader {
        text: message,
        message: ServerMessage::default(),
        request_mode: RequestMode::default(),
        cancelled: None,
        told: None,
        asked: None,
        is_version_unclear: false,
    };
    reader.read()
}

struct Reader<'a> {
    text: &'a [u8],
    message: ServerMessage,
    request_mode: RequestMode,
    /// `params.requestId`.
    cancelled: Option<JsonSpan>,
    /// `params.progressToken`, and that in `params._meta`.
    told: Option<JsonSpan>,
    asked: Option<JsonSpan>,
    is_version_unclear: bool,
}

/// The parameters that change what a request to the client asks for.
#[derive(Default)]
struct RequestMode {
    mode: Option<Span>,
    /// The client would have to run the request as a task, which Guardian does not support.
    as_task: bool,
}

/// Whom a fault keeps from using the message: bits.
type Concern = u8;
/// Everybody: the message could be another one.
const ALL: Concern = 1;
const CLIENTS: Concern = 2;
const NAMES: Concern = 4;
const LISTS: Concern = 8;
const VERSION: Concern = 16;

impl Reader<'_> {
    fn read(mut self) -> Result<ServerMessage, Fault> {
        let mut scanner = Scanner::open(self.text, &SERVER_MESSAGE_BOUNDS, DuplicateNames::Exact)?;
        let fields = scanner.known_members(
            0,
            &["jsonrpc", "id", "method", "params", "result", "error"],
            |scanner, index, depth| match (index, scanner.peek()) {
                (3, Some(b'{')) => self.params(scanner, depth),
                (4, Some(b'{')) => self.result(scanner, depth),
                (5, Some(b'{')) => self.error(scanner, depth),
                _ => scanner.value(depth),
            },
        )?;
        scanner.close()?;
        let [jsonrpc, id, method, _, result, error] = fields.spans;
        self.message.envelope = JsonRpcEnvelope {
            is_version_2: jsonrpc.is_some_and(|span| &self.text[span.range()] == b"\"2.0\""),
            id,
            has_method: method.is_some(),
            result,
            error,
            ..self.message.envelope
        };
        if let Some(method) = method {
            self.method(method, id.filter(|id| id.kind != JsonKind::Null))?;
        }
        Ok(self.message)
    }

    /// Finishes a request or notification.
    fn method(&mut self, method: Span, id: Option<Span>) -> Result<(), Fault> {
        let Some(method) = self.text_or_note("method", method)? else {
            return Ok(());
        };
        if id.is_some() {
            let request_mode = std::mem::take(&mut self.request_mode);
            self.client_request(method.clone(), &request_mode, |capability| capability)?;
        }
        self.message.progress_token = if id.is_some() { self.asked } else { self.told };
        self.message.cancelled_request = self.cancelled.filter(|_| method == "notifications/cancelled");
        self.message.id = id.map(JsonSpan::from);
        match self.message.updated_resource {
            Some(uri) if method == RESOURCE_UPDATED => self.message.names.push(NameSpan::Uri(uri)),
            _ => self.message.updated_resource = None,
        }
        self.message.method = Some(method);
        Ok(())
    }

    fn result(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<Span, Fault> {
        let concern = |index| match RESULT[index] {
            "tools" | "prompts" | "resources" | "resourceTemplates" => CLIENTS | NAMES | LISTS,
            "cacheScope" | "ttlMs" => LISTS,
            "contents" | "content" | "messages" | "result" => NAMES,
            "protocolVersion" => VERSION,
            _ => CLIENTS,
        };
        let (span, spans) = self.members(scanner, depth, &RESULT, concern, |reader, scanner, index, depth| {
            match (RESULT[index], scanner.peek()) {
                ("task", Some(b'{')) => reader.task(scanner, depth),
                ("_meta", Some(b'{')) => reader.meta(scanner, depth, false),
                ("inputRequests", Some(b'{')) => reader.requests(scanner, depth),
                ("capabilities", Some(b'{')) => reader.offers(scanner, depth),
                ("tools" | "prompts" | "resources" | "resourceTemplates", Some(b'[')) => {
                    let list = reader.list(scanner, RESULT[index], depth, NAMES | LISTS)?;
                    let span = list.span;
                    reader.message.lists.push(list);
                    Ok(span)
                }
                (member, _) => reader.named(scanner, member, depth),
            }
        })?;
        self.result_members(spans)?;
        Ok(span)
    }

    fn result_members(&mut self, spans: [Option<Span>; RESULT.len()]) -> Result<(), Fault> {
        let [is_error, result_type, state, cursor, task, asked, lists @ ..] = spans;
        let [tools, prompts, resources, templates, cache_scope, ttl_ms, version, ..] = lists;
        self.message.envelope.is_error = is_error.is_some_and(|span| span.kind == JsonKind::Bool(true));
        if let Some(span) = result_type {
            self.message.result_type = match self.text_or_note("resultType", span)?.as_deref() {
                Some("complete") | None => ResultType::Complete,
                Some("input_required") => ResultType::InputRequired,
                Some("task") => ResultType::Task,
                Some(_) => ResultType::Unknown,
            };
        }
        self.message.request_state = self.opaque("requestState", state)?;
        self.message.next_cursor = self.opaque("nextCursor", cursor)?;
        let task = self.opaque("taskId", task)?;
        self.message.tasks.extend(task);
        if asked.is_some_and(|span| !matches!(span.kind, JsonKind::Object | JsonKind::Null)) {
            self.note(CLIENTS, broken("`inputRequests` is not an object"))?;
        }
        let mut listed = LIST_METHODS.iter().zip([tools, prompts, resources, templates]);
        self.message.list_method = listed.find(|(_, span)| span.is_some()).map(|((_, method), _)| *method);
        (self.message.cache_scope, self.message.ttl_ms) = (cache_scope, ttl_ms);
        self.message.protocol_version = text_span(version).filter(|_| !self.is_version_unclear);
        Ok(())
    }

    fn params(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<Span, Fault> {
        const MEMBERS: [&str; 10] = [
            "requestId",
            "progressToken",
            "taskId",
            "mode",
            "task",
            "uri",
            "_meta",
            "notifications",
            "inputRequests",
            "result",
        ];
        let concern = |index| match MEMBERS[index] {
            "requestId" | "progressToken" | "_meta" => ALL,
            "uri" | "result" => NAMES,
            "notifications" => CLIENTS | NAMES,
            _ => CLIENTS,
        };
        let (span, spans) = self.members(scanner, depth, &MEMBERS, concern, |reader, scanner, index, depth| {
            match (MEMBERS[index], scanner.peek()) {
                ("_meta", Some(b'{')) => reader.meta(scanner, depth, true),
                ("notifications", Some(b'{')) => reader.granted_filter(scanner, depth),
                ("inputRequests", Some(b'{')) => reader.requests(scanner, depth),
                // A task notification: it holds the result of the task's call.
                ("result", Some(b'{')) => reader.named(scanner, "result", depth),
                _ => scanner.value(depth),
            }
        })?;
        let [cancels, told, task, mode, as_task, uri, ..] = spans;
        (self.cancelled, self.told) = (id_or_token(cancels), id_or_token(told));
        let task = self.opaque("taskId", task)?;
        self.message.tasks.extend(task);
        self.message.updated_resource = text_span(uri);
        self.request_mode = RequestMode {
            mode,
            as_task: as_task.is_some(),
        };
        Ok(span)
    }

    fn error(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<Span, Fault> {
        let (span, [code]) = self.object(scanner, depth, &["code"], CLIENTS)?;
        let code = code.map(|span| &self.text[span.range()]);
        self.message.needs_url_elicitation = code == Some(URL_ELICITATION_REQUIRED.as_bytes());
        self.message.envelope.code = code.and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
        Ok(span)
    }

    /// Reads `capabilities`: `{"tasks": {…}}`.
    fn offers(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<Span, Fault> {
        let (span, [tasks]) = self.object(scanner, depth, &["tasks"], CLIENTS)?;
        self.message.tasks_capability = tasks.filter(|span| span.kind == JsonKind::Object).map(JsonSpan::from);
        Ok(span)
    }

    /// Reads `{"taskId": …}`.
    fn task(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<Span, Fault> {
        let (span, [task]) = self.object(scanner, depth, &["taskId"], CLIENTS)?;
        let task = self.opaque("taskId", task)?;
        self.message.tasks.extend(task);
        Ok(span)
    }

    fn meta(&mut self, scanner: &mut Scanner<'_>, depth: usize, of_params: bool) -> Result<Span, Fault> {
        let concern = |index| match index {
            0 | 2 => CLIENTS,
            _ => ALL * Concern::from(of_params),
        };
        let members = &[RELATED, "progressToken", REFUSAL];
        let (span, [_, token, refusal]) =
            self.members(scanner, depth, members, concern, |reader, scanner, index, depth| {
                match (index, scanner.peek()) {
                    (0, Some(b'{')) => reader.task(scanner, depth),
                    _ => scanner.value(depth),
                }
            })?;
        if of_params {
            self.asked = id_or_token(token);
        } else {
            self.message.claimed_refusal = refusal.map(JsonSpan::from);
        }
        Ok(span)
    }

    /// Reads the granted filter of a subscription: `{"taskIds": […], "resourceSubscriptions": […]}`.
    fn granted_filter(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<Span, Fault> {
        let members = &["taskIds", "resourceSubscriptions"];
        let concern = |index| if index == 0 { CLIENTS } else { NAMES };
        let read = self.members(scanner, depth, members, concern, |reader, scanner, index, depth| {
            if scanner.peek() != Some(b'[') {
                return scanner.value(depth);
            }
            let start = scanner.here();
            scanner.array(depth, &mut |scanner, depth| {
                let span = scanner.value(depth)?;
                if index == 0 {
                    let task = reader.opaque("taskIds", Some(span))?;
                    reader.message.tasks.extend(task);
                } else {
                    reader.uri_span(Some(span));
                }
                Ok(())
            })?;
            Ok(scanner.since(start, JsonKind::Array))
        });
        Ok(read?.0)
    }

    /// Reads `inputRequests`: `{"<key>": {"method": …, "params": {…}}, …}`.
    fn requests(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<Span, Fault> {
        let start = scanner.here();
        scanner.object(depth, &mut |scanner, _, depth| {
            if scanner.peek() != Some(b'{') {
                let fault = scanner.malformed("not an object");
                scanner.value(depth)?;
                return self.note(CLIENTS, fault);
            }
            let mut request_mode = RequestMode::default();
            let members = &["method", "params"];
            let (_, [method, _]) = self.members(
                scanner,
                depth,
                members,
                |_| CLIENTS,
                |reader, scanner, index, depth| {
                    if index == 0 || scanner.peek() != Some(b'{') {
                        return scanner.value(depth);
                    }
                    let (span, [mode, task]) = reader.object(scanner, depth, &["mode", "task"], CLIENTS)?;
                    let as_task = task.is_some();
                    request_mode = RequestMode { mode, as_task };
                    Ok(span)
                },
            )?;
            let Some(method) = method else {
                return self.note(CLIENTS, broken("a request to the client has no method"));
            };
            let Some(method) = self.text_or_note("method", method)? else {
                return Ok(());
            };
            self.client_request(method, &request_mode, |capability| match capability {
                RequestedCapability::Ping => RequestedCapability::Other,
                capability => capability,
            })
        })?;
        Ok(scanner.since(start, JsonKind::Object))
    }

    fn client_request(
        &mut self,
        method: String,
        request_mode: &RequestMode,
        adjust: impl Fn(RequestedCapability) -> RequestedCapability,
    ) -> Result<(), Fault> {
        let mode = match request_mode.mode {
            Some(mode) => match self.text_or_note("mode", mode)? {
                Some(mode) => Some(mode),
                None => return Ok(()),
            },
            None => None,
        };
        let capability = match (method.as_str(), mode.as_deref()) {
            ("ping", _) => RequestedCapability::Ping,
            _ if request_mode.as_task => RequestedCapability::Other,
            ("sampling/createMessage", _) => RequestedCapability::Client(ClientRequest::Sampling),
            ("roots/list", _) => RequestedCapability::Client(ClientRequest::Roots),
            ("elicitation/create", None | Some("form")) => RequestedCapability::Client(ClientRequest::Elicitation),
            ("elicitation/create", Some("url")) => RequestedCapability::Client(ClientRequest::ElicitationUrl),
            _ => RequestedCapability::Other,
        };
        let capability = adjust(capability);
        self.message.client_requests.push(ClientRequestRef { method, capability });
        Ok(())
    }

    /// Reads a list and its items.
    fn list(&mut self, scanner: &mut Scanner<'_>, member: &str, depth: usize, concern: Concern) -> Result<ListSpans, Fault> {
        let of = match member {
            "prompts" => ListKind::Prompts,
            "resources" => ListKind::Resources,
            "resourceTemplates" => ListKind::Templates,
            _ => ListKind::Tools,
        };
        let start = scanner.here();
        let mut items = Vec::new();
        scanner.array(depth, &mut |scanner, depth| {
            let (span, name) = match scanner.peek() {
                Some(b'{') => {
                    let (span, [name]) = self.object(scanner, depth, of.named_by(), concern)?;
                    (span, text_span(name))
                }
                _ => (scanner.value(depth)?, None),
            };
            items.push(ListItem { span, name });
            Ok(())
        })?;
        let span = scanner.since(start, JsonKind::Array);
        Ok(ListSpans { of, span, items })
    }

    /// Reads a member of a result that holds names, outside of the result's own lists.
    fn named(&mut self, scanner: &mut Scanner<'_>, member: &str, depth: usize) -> Result<Span, Fault> {
        match (member, scanner.peek()) {
            ("tools" | "prompts" | "resources" | "resourceTemplates", Some(b'[')) => {
                let ListSpans { of, span, items } = self.list(scanner, member, depth, NAMES)?;
                let names = items.iter().filter_map(|item| Some(of.name_span(item.name?)));
                self.message.names.extend(names);
                Ok(span)
            }
            ("contents", Some(b'[')) => self.each(scanner, depth, Self::uri),
            ("content", Some(b'[')) => self.each(scanner, depth, Self::block),
            ("messages", Some(b'[')) => self.each(scanner, depth, Self::prompt_message),
            // A task with status completed holds the result of its call.
            ("result", Some(b'{')) => {
                let read = self.members(
                    scanner,
                    depth,
                    &NAMED,
                    |_| NAMES,
                    |reader, scanner, index, depth| reader.named(scanner, NAMED[index], depth),
                );
                Ok(read?.0)
            }
            _ => scanner.value(depth),
        }
    }

    /// Reads an array; `read` reads each object in it.
    fn each(
        &mut self,
        scanner: &mut Scanner<'_>,
        depth: usize,
        read: fn(&mut Self, &mut Scanner<'_>, usize) -> Result<Span, Fault>,
    ) -> Result<Span, Fault> {
        let start = scanner.here();
        scanner.array(depth, &mut |scanner, depth| match scanner.peek() {
            Some(b'{') => read(self, scanner, depth).map(drop),
            _ => scanner.value(depth).map(drop),
        })?;
        Ok(scanner.since(start, JsonKind::Array))
    }

    /// Reads one message of a prompt.
    fn prompt_message(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<Span, Fault> {
        let read = self.members(
            scanner,
            depth,
            &["content"],
            |_| NAMES,
            |reader, scanner, _, depth| match scanner.peek() {
                Some(b'[') => reader.each(scanner, depth, Self::block),
                Some(b'{') => reader.block(scanner, depth),
                _ => scanner.value(depth),
            },
        );
        Ok(read?.0)
    }

    /// Reads one content block: a resource link, or an embedded resource.
    fn block(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<Span, Fault> {
        let members = &["uri", "resource"];
        let (span, [uri, _]) = self.members(
            scanner,
            depth,
            members,
            |_| NAMES,
            |reader, scanner, index, depth| match (index, scanner.peek()) {
                (1, Some(b'{')) => reader.uri(scanner, depth),
                _ => scanner.value(depth),
            },
        )?;
        self.uri_span(uri);
        Ok(span)
    }

    /// Reads `{"uri": …}`.
    fn uri(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Result<Span, Fault> {
        let (span, [uri]) = self.object(scanner, depth, &["uri"], NAMES)?;
        self.uri_span(uri);
        Ok(span)
    }

    fn uri_span(&mut self, span: Option<Span>) {
        self.message.names.extend(text_span(span).map(NameSpan::Uri));
    }

    /// Reads an object and keeps the spans of its known members.
    fn object<const N: usize>(
        &mut self,
        scanner: &mut Scanner<'_>,
        depth: usize,
        known: &[&'static str; N],
        concern: Concern,
    ) -> Result<(Span, [Option<Span>; N]), Fault> {
        self.members(
            scanner,
            depth,
            known,
            |_| concern,
            |_, scanner, _, depth| scanner.value(depth),
        )
    }

    /// The same; `inner` reads the known members. `concern` says whom it concerns that one has another spelling too.
    fn members<const N: usize>(
        &mut self,
        scanner: &mut Scanner<'_>,
        depth: usize,
        known: &[&'static str; N],
        concern: impl Fn(usize) -> Concern,
        mut inner: impl FnMut(&mut Self, &mut Scanner<'_>, usize, usize) -> Result<Span, Fault>,
    ) -> Result<(Span, [Option<Span>; N]), Fault> {
        let start = scanner.here();
        let fields =
            scanner.known_members_or_twins(depth, known, true, |scanner, index, depth| inner(self, scanner, index, depth))?;
        for (index, fault) in fields.twins {
            self.note(concern(index), fault)?;
        }
        Ok((scanner.since(start, JsonKind::Object), fields.spans))
    }

    fn note(&mut self, concern: Concern, fault: Fault) -> Result<(), Fault> {
        if concern & ALL != 0 {
            return Err(fault);
        }
        let message = &mut self.message;
        for (of, slot) in [
            (CLIENTS, &mut message.unreadable),
            (NAMES, &mut message.unclear_names),
            (LISTS, &mut message.unclear_lists),
        ] {
            if concern & of != 0 {
                slot.get_or_insert_with(|| fault.clone());
            }
        }
        self.is_version_unclear |= concern & VERSION != 0;
        Ok(())
    }

    /// An opaque string, which only the server understands. `null` counts as absent.
    fn opaque(&mut self, name: &str, span: Option<Span>) -> Result<Option<JsonSpan>, Fault> {
        let Some(span) = span.filter(|span| span.kind != JsonKind::Null) else {
            return Ok(None);
        };
        if text_span(Some(span)).is_none() {
            self.note(CLIENTS, broken(format!("`{name}` is not a string")))?;
            return Ok(None);
        }
        Ok(Some(span.into()))
    }

    fn text_or_note(&mut self, name: &str, span: Span) -> Result<Option<String>, Fault> {
        match text_span(Some(span)) {
            Some(span) => Ok(Some(decode(self.text, span)?.into_owned())),
            None => {
                self.note(CLIENTS, broken(format!("`{name}` is not a string")))?;
                Ok(None)
            }
        }
    }
}

fn text_span(span: Option<Span>) -> Option<Span> {
    span.filter(|span| matches!(span.kind, JsonKind::Text(_)))
}

/// Ids and progress tokens are strings or numbers.
fn id_or_token(span: Option<Span>) -> Option<JsonSpan> {
    span.filter(|span| matches!(span.kind, JsonKind::Text(_) | JsonKind::Number(_)))
        .map(JsonSpan::from)
}
