//! The strict reader of callers' messages: a body becomes a request, a notification or a response in one pass, or it is
//! refused. The bytes are kept, so what is decided about is what is forwarded.

use super::json::{Bounds, Fault, Fields, Kind, Malformed, Scan, Span, Twins, decode, fault, quoted};
use super::params;
use super::splice::Place;
use crate::domain::{MessageId, Reason};
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
    pub id_at: Place,
    /// The related task in `result._meta`.
    pub related_task: Option<Token>,
    pub is_error: bool,
    pub body: Bytes,
}

/// An opaque string that only the server understands, with its position in the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    pub at: Place,
}

/// The parameters that authority, era or ownership depend on. The other ones stay in the body unread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params {
    /// The name of a tool or prompt, unescaped but otherwise unchanged.
    pub name: Option<String>,
    pub name_at: Option<Place>,
    /// The arguments object as written in the body.
    pub arguments: Option<Bytes>,
    /// The version that `initialize` proposes.
    pub protocol_version: Option<String>,
    pub cursor: Option<Token>,
    pub uri: Option<String>,
    pub uri_at: Option<Place>,
    pub task_id: Option<Token>,
    /// The state of an input-required result, returned by the client, and whether `inputResponses` come with it.
    pub request_state: Option<Token>,
    pub input_responses: bool,
    /// The capabilities that the client declares in `initialize`.
    pub capabilities: Option<Place>,
    /// `ref`, `argument` and `context` of a completion, as written in the body.
    pub reference: Option<Bytes>,
    pub reference_at: Option<Place>,
    pub argument: Option<Bytes>,
    pub context: Option<Bytes>,
    /// The filter of `subscriptions/listen`, as written in the body.
    pub notifications: Option<Bytes>,
    pub notifications_at: Option<Place>,
    /// The task ids in that filter.
    pub listened_tasks: Vec<Token>,
    /// The request that a `notifications/cancelled` cancels.
    pub request_id: Option<MessageId>,
    pub meta: Option<Meta>,
}

/// The members of `params._meta` that Guardian reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    pub protocol_version: Option<String>,
    /// The object `io.modelcontextprotocol/clientCapabilities`.
    pub client_capabilities: Option<Place>,
    /// Whether it contains the tasks extension.
    pub does_tasks: bool,
    /// The related task in `_meta`.
    pub related_task: Option<Token>,
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
    pub fn said_version(&self) -> Option<&str> {
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
pub fn read(body: Bytes, bounds: &Bounds) -> Result<Message, Malformed> {
    let mut seen = Seen::Nothing;
    read_seen(&body, bounds, &mut seen).map_err(|fault| Malformed {
        id: match fault.reason {
            Reason::MalformedJson => None,
            _ => seen.id(&body),
        },
        ..*fault
    })
}

/// The id read so far. A refused message is answered with it, unless it occurred twice.
#[derive(Clone, Copy)]
enum Seen {
    Nothing,
    Once(Span),
    Twice,
}

impl Seen {
    fn id(self, body: &Bytes) -> Option<MessageId> {
        match self {
            Seen::Once(span) => message_id(body, span).ok(),
            Seen::Nothing | Seen::Twice => None,
        }
    }
}

/// The spans of the members of `params`, before their types are checked.
struct Inside {
    fields: Fields<17>,
    stranger: Option<String>,
    meta: Option<InMeta>,
    listened_tasks: Vec<Span>,
}

/// The same for `_meta`.
struct InMeta {
    fields: Fields<8>,
    related_task: Option<Span>,
    does_tasks: bool,
}

fn read_seen(body: &Bytes, bounds: &Bounds, seen: &mut Seen) -> Result<Message, Fault> {
    let mut scan = Scan::open(body, bounds, Twins::Folded)?;
    match scan.peek() {
        Some(b'{') => (),
        Some(b'[') => return Err(invalid("batches are refused in every version")),
        _ => {
            scan.value(0)?;
            scan.close()?;
            return Err(invalid("a message is an object"));
        }
    }
    let mut inside = None;
    let mut related_task = None;
    let fields = scan.fields(0, &ENVELOPE, |scan, index, depth| match ENVELOPE[index] {
        "id" => {
            let span = scan.value(depth)?;
            *seen = match seen {
                Seen::Nothing => Seen::Once(span),
                Seen::Once(_) | Seen::Twice => Seen::Twice,
            };
            Ok(span)
        }
        "params" if scan.peek() == Some(b'{') => {
            let (span, params) = params(scan, depth)?;
            inside = Some(params);
            Ok(span)
        }
        "result" if scan.peek() == Some(b'{') => {
            let start = scan.here();
            scan.fields(depth, &["_meta"], |scan, _, depth| {
                let (span, inside) = meta(scan, depth)?;
                related_task = inside.and_then(|inside| inside.related_task);
                Ok(span)
            })?;
            Ok(scan.since(start, Kind::Object))
        }
        _ => scan.value(depth),
    })?;
    if let Some(stranger) = &fields.stranger {
        let detail = format!("{} does not belong into a message", quoted(scan.name(stranger)));
        scan.close()?;
        return Err(invalid(detail));
    }
    scan.close()?;
    message(body, fields.spans, inside, related_task)
}

fn params(scan: &mut Scan<'_>, depth: usize) -> Result<(Span, Inside), Fault> {
    let start = scan.here();
    let mut in_meta = None;
    let mut listened_tasks = Vec::new();
    let fields = scan.fields(depth, &PARAMS, |scan, index, depth| {
        if PARAMS[index] == "notifications" && scan.peek() == Some(b'{') {
            return listened(scan, depth, &mut listened_tasks);
        }
        if PARAMS[index] != "_meta" {
            return scan.value(depth);
        }
        let (span, inside) = meta(scan, depth)?;
        in_meta = inside;
        Ok(span)
    })?;
    let stranger = fields.stranger.as_ref().map(|name| scan.name(name).to_owned());
    let span = scan.since(start, Kind::Object);
    let inside = Inside {
        fields,
        stranger,
        meta: in_meta,
        listened_tasks,
    };
    Ok((span, inside))
}

/// Reads the filter of `subscriptions/listen` and collects the spans of its task ids.
fn listened(scan: &mut Scan<'_>, depth: usize, tasks: &mut Vec<Span>) -> Result<Span, Fault> {
    let start = scan.here();
    scan.fields(depth, &["taskIds"], |scan, _, depth| {
        if scan.peek() != Some(b'[') {
            return Err(bad_params("`taskIds` is not an array"));
        }
        let start = scan.here();
        scan.array(depth, &mut |scan, depth| {
            tasks.push(scan.value(depth)?);
            Ok(())
        })?;
        Ok(scan.since(start, Kind::Array))
    })?;
    Ok(scan.since(start, Kind::Object))
}

/// Reads `_meta`. If it is an object, also returns the related task and whether the client supports tasks.
fn meta(scan: &mut Scan<'_>, depth: usize) -> Result<(Span, Option<InMeta>), Fault> {
    if scan.peek() != Some(b'{') {
        return Ok((scan.value(depth)?, None));
    }
    let start = scan.here();
    let (mut related_task, mut does_tasks) = (None, false);
    let fields = scan.fields(depth, &META, |scan, index, depth| {
        let start = scan.here();
        match META[index] {
            RELATED_TASK if scan.peek() == Some(b'{') => {
                related_task = scan.fields(depth, &["taskId"], |scan, _, depth| scan.value(depth))?.spans[0];
            }
            CAPABILITIES if scan.peek() == Some(b'{') => {
                scan.fields(depth, &["extensions"], |scan, _, depth| match scan.peek() {
                    Some(b'{') => {
                        let start = scan.here();
                        let extensions = scan.fields(depth, &[TASKS], |scan, _, depth| scan.value(depth))?;
                        does_tasks = extensions.spans[0].is_some_and(|span| span.kind == Kind::Object);
                        Ok(scan.since(start, Kind::Object))
                    }
                    _ => scan.value(depth),
                })?;
            }
            _ => return scan.value(depth),
        }
        Ok(scan.since(start, Kind::Object))
    })?;
    let inside = InMeta {
        fields,
        related_task,
        does_tasks,
    };
    Ok((scan.since(start, Kind::Object), Some(inside)))
}

fn message(body: &Bytes, spans: [Option<Span>; 6], inside: Option<Inside>, related_task: Option<Span>) -> Result<Message, Fault> {
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
    let method = match text(body, "method", Some(method)) {
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
    let params = match (params, inside) {
        (None, _) => match params::needed(&method).first() {
            Some(missing) => return Err(bad_params(format!("`{missing}` is missing"))),
            None => None,
        },
        (Some(_), None) => return Err(bad_params("`params` is not an object")),
        (Some(_), Some(inside)) => Some(Params::read(body, &method, inside)?),
    };
    let body = body.clone();
    Ok(match id {
        Some(id) => Message::Request(Request {
            id,
            method,
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
    fn read(body: &Bytes, method: &str, inside: Inside) -> Result<Self, Fault> {
        let spans = inside.fields.spans;
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
        ] = spans;
        let name_at = name.map(Place::from);
        let name = text(body, "name", name)?;
        object("_meta", meta)?;
        let meta = inside.meta.map(|meta| Meta::read(body, &meta)).transpose()?;
        let modern = meta.as_ref().is_some_and(|meta| meta.protocol_version.is_some());
        if !(modern && params::lost(method)) {
            only_known(method, &spans, inside.stranger)?;
        }
        text(body, "level", level)?;
        let piece = |name, span| Ok::<_, Fault>(object(name, span)?.map(|span| body.slice(span.range())));
        let capabilities = match method {
            "initialize" => object("capabilities", capabilities)?.map(Place::from),
            _ => None,
        };
        let listened = inside
            .listened_tasks
            .into_iter()
            .map(|span| token(body, "taskIds", Some(span)));
        let listened_tasks = listened.filter_map(Result::transpose).collect::<Result<_, Fault>>()?;
        object("task", task)?;
        Ok(Self {
            name,
            name_at,
            arguments: piece("arguments", arguments)?,
            reference: piece("ref", reference)?,
            reference_at: reference.map(Place::from),
            argument: piece("argument", argument)?,
            context: piece("context", context)?,
            notifications: piece("notifications", notifications)?,
            notifications_at: notifications.map(Place::from),
            protocol_version: text(body, "protocolVersion", version)?,
            cursor: token(body, "cursor", cursor)?,
            uri: text(body, "uri", uri)?,
            uri_at: uri.map(Place::from),
            task_id: token(body, "taskId", task_id)?,
            request_state: token(body, "requestState", state)?,
            input_responses: object("inputResponses", responses)?.is_some(),
            capabilities,
            listened_tasks,
            request_id: request_id.map(|span| message_id(body, span)).transpose()?,
            meta,
        })
    }
}

impl Meta {
    fn read(body: &Bytes, inside: &InMeta) -> Result<Self, Fault> {
        let [version, capabilities, traceparent, ..] = inside.fields.spans;
        Ok(Self {
            protocol_version: text(body, META[0], version)?,
            client_capabilities: object(META[1], capabilities)?.map(Place::from),
            does_tasks: inside.does_tasks,
            related_task: token(body, "taskId", inside.related_task)?,
            traceparent: text(body, META[2], traceparent)?,
        })
    }
}

/// Checks that the parameters are those the method allows, and that the required ones are there.
fn only_known(method: &str, spans: &[Option<Span>; 17], stranger: Option<String>) -> Result<(), Fault> {
    let given = || {
        PARAMS
            .iter()
            .zip(spans)
            .filter(|(_, span)| span.is_some())
            .map(|(name, _)| *name)
    };
    if let Some(allowed) = params::allowed(method) {
        let unasked = given().find(|name| !allowed.contains(name)).map(str::to_owned);
        if let Some(name) = stranger.or(unasked) {
            let detail = format!("{} does not belong into the parameters of `{method}`", quoted(&name));
            return Err(bad_params(detail));
        }
    }
    match params::needed(method)
        .iter()
        .find(|needed| !given().any(|name| name == **needed))
    {
        Some(missing) => Err(bad_params(format!("`{missing}` is missing"))),
        None => Ok(()),
    }
}

fn text(body: &Bytes, name: &str, span: Option<Span>) -> Result<Option<String>, Fault> {
    let Some(span) = span else { return Ok(None) };
    match span.kind {
        Kind::Text(_) => Ok(Some(decode(body, span)?.into_owned())),
        _ => Err(bad_params(format!("`{name}` is not a string"))),
    }
}

fn token(body: &Bytes, name: &str, span: Option<Span>) -> Result<Option<Token>, Fault> {
    let text = text(body, name, span)?;
    Ok(text.zip(span).map(|(text, span)| Token { text, at: span.into() }))
}

fn object(name: &str, span: Option<Span>) -> Result<Option<Span>, Fault> {
    match span {
        Some(span) if span.kind != Kind::Object => Err(bad_params(format!("`{name}` is not an object"))),
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
        Kind::Text(_) if written.len() > most => return Err(invalid(format!("an id longer than {most} bytes"))),
        Kind::Number(true) if written != "-0" => {
            let digits = written.strip_prefix('-').unwrap_or(written);
            if !digits.parse::<u64>().is_ok_and(|number| number <= MAX_ID) {
                return Err(invalid("an id beyond 2^53 - 1"));
            }
        }
        Kind::Text(_) => (),
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
