//! The strict reader of callers' messages: a body becomes a request, a notification or a response in one pass, or it is
//! refused. The bytes are kept, so what is decided about is what is forwarded.

use super::json::{
    Bounds, DuplicateNames, Fault, JsonKind, JsonSpan, KnownMembers, Malformed, Scanner, Span, decode, fault, quoted,
};
use crate::domain::{Era, MessageId, Method, Reason};
use bytes::Bytes;

/// One message of a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Request(Request),
    Notification(Notification),
    Response(Response),
}

/// A request: it has an id and expects an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub id: MessageId,
    pub method: String,
    /// The method, if it exists in some era.
    pub known_method: Option<Method>,
    pub body: Bytes,
    pub params: Option<Params>,
}

/// A notification: it has no id and gets no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    pub method: String,
    pub body: Bytes,
    pub params: Option<Params>,
}

/// A caller's response to a request of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub id: MessageId,
    pub id_at: JsonSpan,
    /// The related task in `result._meta`.
    pub related_task: Option<OpaqueToken>,
    pub is_error: bool,
    pub body: Bytes,
}

/// An opaque string that only the server understands, with its position in the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpaqueToken {
    pub text: String,
    pub at: JsonSpan,
}

/// The parameters that authority, era or ownership depend on. The other ones stay in the body unread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params {
    /// The name of a tool or prompt, unescaped but otherwise unchanged.
    pub name: Option<String>,
    pub name_at: Option<JsonSpan>,
    /// The arguments object as written in the body.
    pub arguments: Option<Bytes>,
    /// The version that `initialize` proposes.
    pub protocol_version: Option<String>,
    pub cursor: Option<OpaqueToken>,
    pub uri: Option<String>,
    pub uri_at: Option<JsonSpan>,
    pub task_id: Option<OpaqueToken>,
    /// The state of an input-required result, returned by the client, and whether `inputResponses` come with it.
    pub request_state: Option<OpaqueToken>,
    pub input_responses: bool,
    /// The capabilities that the client declares in `initialize`.
    pub capabilities: Option<JsonSpan>,
    /// `ref`, `argument` and `context` of a completion, as written in the body.
    pub reference: Option<Bytes>,
    pub reference_at: Option<JsonSpan>,
    pub argument: Option<Bytes>,
    pub context: Option<Bytes>,
    /// The filter of `subscriptions/listen`, as written in the body.
    pub notifications: Option<Bytes>,
    pub notifications_at: Option<JsonSpan>,
    /// The task ids in that filter.
    pub subscribed_tasks: Vec<OpaqueToken>,
    /// The request that a `notifications/cancelled` cancels.
    pub request_id: Option<MessageId>,
    pub meta: Option<Meta>,
}

/// The members of `params._meta` that Guardian reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    pub protocol_version: Option<String>,
    /// The object `io.modelcontextprotocol/clientCapabilities`.
    pub client_capabilities: Option<JsonSpan>,
    /// Whether it contains the tasks extension.
    pub supports_tasks: bool,
    /// The related task in `_meta`.
    pub related_task: Option<OpaqueToken>,
    pub traceparent: Option<String>,
}

impl Message {
    /// The body as received.
    pub fn body(&self) -> &Bytes {
        match self {
            Message::Request(request) => &request.body,
            Message::Notification(notification) => &notification.body,
            Message::Response(response) => &response.body,
        }
    }
}

impl Message {
    /// Whether the message is of the modern era: it names its protocol version in `_meta`.
    pub fn is_modern(&self) -> bool {
        let params = match self {
            Message::Request(request) => &request.params,
            Message::Notification(notification) => &notification.params,
            Message::Response(_) => &None,
        };
        params
            .as_ref()
            .and_then(|params| params.meta.as_ref())
            .is_some_and(|meta| meta.protocol_version.is_some())
    }
}

impl Request {
    /// The version that the message asks for: the one in `_meta`, or the one that `initialize` proposes.
    pub fn requested_version(&self) -> Option<&str> {
        let params = self.params.as_ref()?;
        let meta = params.meta.as_ref().and_then(|meta| meta.protocol_version.as_deref());
        meta.or(params.protocol_version.as_deref())
    }

    /// `_meta.traceparent` (W3C Trace Context).
    pub fn trace(&self) -> Option<&str> {
        self.params.as_ref()?.meta.as_ref()?.traceparent.as_deref()
    }
}

const ENVELOPE: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];

const PARAMS: [&str; 17] = [
    "name",
    "arguments",
    "_meta",
    "inputResponses",
    "requestState",
    "task",
    "cursor",
    "protocolVersion",
    "uri",
    "taskId",
    "requestId",
    "ref",
    "argument",
    "context",
    "level",
    "notifications",
    "capabilities",
];

const META: [&str; 8] = [
    "io.modelcontextprotocol/protocolVersion",
    CAPABILITIES,
    "traceparent",
    "progressToken",
    "io.modelcontextprotocol/clientInfo",
    "io.modelcontextprotocol/logLevel",
    "tracestate",
    RELATED_TASK,
];
const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
/// The tasks extension of the modern era.
pub const TASKS: &str = "io.modelcontextprotocol/tasks";
const RELATED_TASK: &str = "io.modelcontextprotocol/related-task";

/// Longest id of a request, quotes included.
const MAX_ID_BYTES: usize = 256;
/// Longest id of a response. It is Guardian's handle for the server's id, which also carries what it is bound to.
const MAX_ANSWERED_ID_BYTES: usize = 1024;
/// Largest integer that a double holds exactly (RFC 8259, section 6).
const MAX_ID: u64 = (1 << 53) - 1;

/// Parses a whole body. It refuses everything that two parsers could read differently.
pub fn parse_message(body: Bytes, bounds: &Bounds) -> Result<Message, Malformed> {
    let mut seen = IdSeen::Nothing;
    parse_with_id(&body, bounds, &mut seen).map_err(|fault| Malformed {
        id: match fault.reason {
            Reason::MalformedJson => None,
            _ => seen.id(&body),
        },
        ..*fault
    })
}

/// The id read so far. A refused message is answered with it, unless it occurred twice.
#[derive(Clone, Copy)]
enum IdSeen {
    Nothing,
    Once(Span),
    Twice,
}

impl IdSeen {
    fn id(self, body: &Bytes) -> Option<MessageId> {
        match self {
            IdSeen::Once(span) => message_id(body, span).ok(),
            IdSeen::Nothing | IdSeen::Twice => None,
        }
    }
}

/// The spans of the members of `params`, before their types are checked.
struct RawParams {
    fields: KnownMembers<17>,
    unknown_member: Option<String>,
    meta: Option<RawMeta>,
    subscribed_tasks: Vec<Span>,
}

/// The same for `_meta`.
struct RawMeta {
    fields: KnownMembers<8>,
    related_task: Option<Span>,
    supports_tasks: bool,
}

fn parse_with_id(body: &Bytes, bounds: &Bounds, seen: &mut IdSeen) -> Result<Message, Fault> {
    let mut scanner = Scanner::open(body, bounds, DuplicateNames::Folded)?;
    match scanner.peek() {
        Some(b'{') => (),
        Some(b'[') => return Err(invalid("batches are refused in every version")),
        _ => {
            scanner.value(0)?;
            scanner.close()?;
            return Err(invalid("a message is an object"));
        }
    }
    let mut raw = None;
    let mut related_task = None;
    let fields = scanner.known_members(0, &ENVELOPE, |scanner, index, depth| match ENVELOPE[index] {
        "id" => {
            let span = scanner.value(depth)?;
            *seen = match seen {
                IdSeen::Nothing => IdSeen::Once(span),
                IdSeen::Once(_) | IdSeen::Twice => IdSeen::Twice,
            };
            Ok(span)
        }
        "params" if scanner.peek() == Some(b'{') => {
            let (span, params) = params(scanner, depth)?;
            raw = Some(params);
            Ok(span)
        }
        "result" if scanner.peek() == Some(b'{') => {
            let start = scanner.here();
            scanner.known_members(depth, &["_meta"], |scanner, _, depth| {
                let (span, inside) = meta(scanner, depth)?;
                related_task = inside.and_then(|inside| inside.related_task);
                Ok(span)
            })?;
            Ok(scanner.since(start, JsonKind::Object))
        }
        _ => scanner.value(depth),
    })?;
    if let Some(stranger) = &fields.unknown_member {
        let detail = format!("{} does not belong into a message", quoted(scanner.name(stranger)));
        scanner.close()?;
        return Err(invalid(detail));
    }
    scanner.close()?;
    message(body, fields.spans, raw, related_task)
}

fn params(scanner: &mut Scanner<'_>, depth: usize) -> Result<(Span, RawParams), Fault> {
    let start = scanner.here();
    let mut in_meta = None;
    let mut subscribed_tasks = Vec::new();
    let fields = scanner.known_members(depth, &PARAMS, |scanner, index, depth| {
        if PARAMS[index] == "notifications" && scanner.peek() == Some(b'{') {
            return subscription_filter(scanner, depth, &mut subscribed_tasks);
        }
        if PARAMS[index] != "_meta" {
            return scanner.value(depth);
        }
        let (span, inside) = meta(scanner, depth)?;
        in_meta = inside;
        Ok(span)
    })?;
    let unknown_member = fields.unknown_member.as_ref().map(|name| scanner.name(name).to_owned());
    let span = scanner.since(start, JsonKind::Object);
    let raw = RawParams {
        fields,
        unknown_member,
        meta: in_meta,
        subscribed_tasks,
    };
    Ok((span, raw))
}

/// Reads the filter of `subscriptions/listen` and collects the spans of its task ids.
fn subscription_filter(scanner: &mut Scanner<'_>, depth: usize, tasks: &mut Vec<Span>) -> Result<Span, Fault> {
    let start = scanner.here();
    scanner.known_members(depth, &["taskIds"], |scanner, _, depth| {
        if scanner.peek() != Some(b'[') {
            return Err(bad_params("`taskIds` is not an array"));
        }
        let start = scanner.here();
        scanner.array(depth, &mut |scanner, depth| {
            tasks.push(scanner.value(depth)?);
            Ok(())
        })?;
        Ok(scanner.since(start, JsonKind::Array))
    })?;
    Ok(scanner.since(start, JsonKind::Object))
}

/// Reads `_meta`. If it is an object, also returns the related task and whether the client supports tasks.
fn meta(scanner: &mut Scanner<'_>, depth: usize) -> Result<(Span, Option<RawMeta>), Fault> {
    if scanner.peek() != Some(b'{') {
        return Ok((scanner.value(depth)?, None));
    }
    let start = scanner.here();
    let (mut related_task, mut supports_tasks) = (None, false);
    let fields = scanner.known_members(depth, &META, |scanner, index, depth| {
        let start = scanner.here();
        match META[index] {
            RELATED_TASK if scanner.peek() == Some(b'{') => {
                related_task = scanner
                    .known_members(depth, &["taskId"], |scanner, _, depth| scanner.value(depth))?
                    .spans[0];
            }
            CAPABILITIES if scanner.peek() == Some(b'{') => {
                scanner.known_members(depth, &["extensions"], |scanner, _, depth| match scanner.peek() {
                    Some(b'{') => {
                        let start = scanner.here();
                        let extensions = scanner.known_members(depth, &[TASKS], |scanner, _, depth| scanner.value(depth))?;
                        supports_tasks = extensions.spans[0].is_some_and(|span| span.kind == JsonKind::Object);
                        Ok(scanner.since(start, JsonKind::Object))
                    }
                    _ => scanner.value(depth),
                })?;
            }
            _ => return scanner.value(depth),
        }
        Ok(scanner.since(start, JsonKind::Object))
    })?;
    let inside = RawMeta {
        fields,
        related_task,
        supports_tasks,
    };
    Ok((scanner.since(start, JsonKind::Object), Some(inside)))
}

fn message(body: &Bytes, spans: [Option<Span>; 6], raw: Option<RawParams>, related_task: Option<Span>) -> Result<Message, Fault> {
    let [jsonrpc, id, method, params, result, error] = spans;
    if jsonrpc.is_none_or(|span| &body[span.range()] != b"\"2.0\"") {
        return Err(invalid("`jsonrpc` is not \"2.0\""));
    }
    let Some(method) = method else {
        return response(body, id, related_task, params, result, error).map(Message::Response);
    };
    let id = id.map(|span| message_id(body, span)).transpose()?;
    if result.is_some() || error.is_some() {
        return Err(invalid("a message with a method and a result or error"));
    }
    let method = match string_param(body, "method", Some(method)) {
        Ok(Some(method)) => method,
        _ => return Err(invalid("`method` is not a string")),
    };
    let announced = method.starts_with("notifications/");
    if announced && id.is_some() {
        return Err(invalid("a notification has no id"));
    }
    if !announced && id.is_none() {
        return Err(invalid(format!("{} needs an id", quoted(&method))));
    }
    let known_method = Method::of_request(&method);
    let params = match (params, raw) {
        (None, _) => match known_method.and_then(|method| method.required_params().first()) {
            Some(missing) => return Err(bad_params(format!("`{missing}` is missing"))),
            None => None,
        },
        (Some(_), None) => return Err(bad_params("`params` is not an object")),
        (Some(_), Some(raw)) => Some(Params::read(body, known_method, raw)?),
    };
    let body = body.clone();
    Ok(match id {
        Some(id) => Message::Request(Request {
            id,
            method,
            known_method,
            body,
            params,
        }),
        None => Message::Notification(Notification { method, body, params }),
    })
}

fn response(
    body: &Bytes,
    id: Option<Span>,
    related_task: Option<Span>,
    params: Option<Span>,
    result: Option<Span>,
    error: Option<Span>,
) -> Result<Response, Fault> {
    if params.is_some() {
        return Err(invalid("a message without a method"));
    }
    if result.is_some() == error.is_some() {
        return Err(invalid("a message that is neither request, notification nor response"));
    }
    let id = id.ok_or_else(|| invalid("a response without an id"))?;
    Ok(Response {
        id: bounded_id(body, id, MAX_ANSWERED_ID_BYTES)?,
        id_at: id.into(),
        related_task: token(body, "taskId", related_task)?,
        is_error: error.is_some(),
        body: body.clone(),
    })
}

impl Params {
    fn read(body: &Bytes, method: Option<Method>, raw: RawParams) -> Result<Self, Fault> {
        let [
            name,
            arguments,
            meta,
            responses,
            state,
            task,
            cursor,
            version,
            uri,
            task_id,
            request_id,
            reference,
            argument,
            context,
            level,
            notifications,
            capabilities,
        ] = raw.fields.spans;
        let name_at = name.map(JsonSpan::from);
        let name = string_param(body, "name", name)?;
        object("_meta", meta)?;
        let meta = raw.meta.as_ref().map(|meta| Meta::read(body, meta)).transpose()?;
        // A method that the modern era does not have is refused as unknown later, whatever its parameters.
        let modern = meta.as_ref().is_some_and(|meta| meta.protocol_version.is_some());
        if let Some(method) = method.filter(|method| !modern || method.is_in(Era::Modern)) {
            only_known(method, &raw.fields.spans, raw.unknown_member)?;
        }
        string_param(body, "level", level)?;
        object("task", task)?;
        let capabilities = capabilities.filter(|_| method == Some(Method::Initialize));
        let piece = |name, span| Ok::<_, Fault>(object(name, span)?.map(|span| body.slice(span.range())));
        let subscribed_tasks = raw
            .subscribed_tasks
            .into_iter()
            .map(|span| token(body, "taskIds", Some(span)));
        Ok(Self {
            name,
            name_at,
            arguments: piece("arguments", arguments)?,
            reference: piece("ref", reference)?,
            reference_at: reference.map(JsonSpan::from),
            argument: piece("argument", argument)?,
            context: piece("context", context)?,
            notifications: piece("notifications", notifications)?,
            notifications_at: notifications.map(JsonSpan::from),
            protocol_version: string_param(body, "protocolVersion", version)?,
            cursor: token(body, "cursor", cursor)?,
            uri: string_param(body, "uri", uri)?,
            uri_at: uri.map(JsonSpan::from),
            task_id: token(body, "taskId", task_id)?,
            request_state: token(body, "requestState", state)?,
            input_responses: object("inputResponses", responses)?.is_some(),
            capabilities: object("capabilities", capabilities)?.map(JsonSpan::from),
            subscribed_tasks: subscribed_tasks.filter_map(Result::transpose).collect::<Result<_, Fault>>()?,
            request_id: request_id.map(|span| message_id(body, span)).transpose()?,
            meta,
        })
    }
}

impl Meta {
    fn read(body: &Bytes, inside: &RawMeta) -> Result<Self, Fault> {
        let [version, capabilities, traceparent, ..] = inside.fields.spans;
        Ok(Self {
            protocol_version: string_param(body, META[0], version)?,
            client_capabilities: object(META[1], capabilities)?.map(JsonSpan::from),
            supports_tasks: inside.supports_tasks,
            related_task: token(body, "taskId", inside.related_task)?,
            traceparent: string_param(body, META[2], traceparent)?,
        })
    }
}

/// Checks that the parameters are those the method allows, and that the required ones are there.
fn only_known(method: Method, spans: &[Option<Span>; 17], stranger: Option<String>) -> Result<(), Fault> {
    let given = || {
        PARAMS
            .iter()
            .zip(spans)
            .filter(|(_, span)| span.is_some())
            .map(|(name, _)| *name)
    };
    if let Some(allowed) = method.allowed_params() {
        let unasked = given().find(|name| !allowed.contains(name)).map(str::to_owned);
        if let Some(name) = stranger.or(unasked) {
            let detail = format!(
                "{} does not belong into the parameters of `{}`",
                quoted(&name),
                method.as_str()
            );
            return Err(bad_params(detail));
        }
    }
    match method
        .required_params()
        .iter()
        .find(|needed| !given().any(|name| name == **needed))
    {
        Some(missing) => Err(bad_params(format!("`{missing}` is missing"))),
        None => Ok(()),
    }
}

fn string_param(body: &Bytes, name: &str, span: Option<Span>) -> Result<Option<String>, Fault> {
    let Some(span) = span else { return Ok(None) };
    match span.kind {
        JsonKind::Text(_) => Ok(Some(decode(body, span)?.into_owned())),
        _ => Err(bad_params(format!("`{name}` is not a string"))),
    }
}

fn token(body: &Bytes, name: &str, span: Option<Span>) -> Result<Option<OpaqueToken>, Fault> {
    let text = string_param(body, name, span)?;
    Ok(text.zip(span).map(|(text, span)| OpaqueToken { text, at: span.into() }))
}

fn object(name: &str, span: Option<Span>) -> Result<Option<Span>, Fault> {
    match span {
        Some(span) if span.kind != JsonKind::Object => Err(bad_params(format!("`{name}` is not an object"))),
        other => Ok(other),
    }
}

/// A string, or an integer that all parsers read as the same value.
fn message_id(body: &Bytes, span: Span) -> Result<MessageId, Fault> {
    bounded_id(body, span, MAX_ID_BYTES)
}

fn bounded_id(body: &Bytes, span: Span, most: usize) -> Result<MessageId, Fault> {
    let written = std::str::from_utf8(&body[span.range()]).unwrap_or_default();
    match span.kind {
        JsonKind::Text(_) if written.len() > most => return Err(invalid(format!("an id longer than {most} bytes"))),
        JsonKind::Number(true) if written != "-0" => {
            let digits = written.strip_prefix('-').unwrap_or(written);
            if !digits.parse::<u64>().is_ok_and(|number| number <= MAX_ID) {
                return Err(invalid("an id beyond 2^53 - 1"));
            }
        }
        JsonKind::Text(_) => (),
        _ => return Err(invalid("an id is a string or an integer")),
    }
    Ok(MessageId::from_json(body.slice(span.range())))
}

fn invalid(detail: impl Into<String>) -> Fault {
    fault(Reason::InvalidRequest, detail)
}

fn bad_params(detail: impl Into<String>) -> Fault {
    fault(Reason::InvalidParams, detail)
}
