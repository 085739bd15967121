//! Sends a cleared call once and reads the answer: JSON, an event stream, or nothing. The outcome is recorded however
//! the call ends. No call is sent twice.

use super::client_requests::{self, DenialSender, ELICITATION_METHOD, check_result, demands_forbidden_url};
use super::exchange::{Media, media};
use super::forward_error::ForwardError;
use super::outcome::OutcomeGuard;
use super::server::{TransportKind, Upstream};
use super::stream::{EventStream, StreamRules};
use crate::domain::{Call, Era, MessageId, Method, ProtocolVersion};
use crate::journal::Cleared;
use crate::mcp::{self, MessageKind, ServerMessage, parse_server_message, readdress};
use crate::sessions::{HandleOwner, UpstreamSessionId};
use crate::transport::ResponseBody;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use tokio::time::timeout;

/// What a request needs beside the call itself. No value is taken from the caller unchecked.
#[derive(Debug, Clone, Default)]
pub struct ForwardHeaders {
    /// The upstream's own session id, unsealed from the id that the caller sent.
    pub session: Option<UpstreamSessionId>,
    /// The protocol version of that session, if it was not yet known when the call was decided.
    pub version: Option<ProtocolVersion>,
    /// `Last-Event-ID`, to resume a stream of the caller's own session.
    pub last_event_id: Option<String>,
    /// The owner of the session that an `initialize` opens.
    pub owner: Option<HandleOwner>,
    /// `Mcp-Param-*` headers that were checked against the arguments.
    pub params: Vec<(HeaderName, HeaderValue)>,
}

/// What a server answered. Its outcome is recorded already, except for a stream, which carries it along.
pub enum Answer {
    Json {
        status: StatusCode,
        body: Bytes,
        kind: MessageKind,
        /// What Guardian read from the message; empty for an error.
        server_message: Box<ServerMessage>,
        /// The session that an `initialize` opened.
        opened: Option<OpenedSession>,
    },
    Stream(EventStream),
    /// No body: an accepted notification, an ended session, or a refusal without a JSON-RPC error.
    Empty {
        status: StatusCode,
    },
}

impl Answer {
    /// The server's HTTP status; `None` for a stream, which always began with success.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Answer::Json { status, .. } | Answer::Empty { status } => Some(*status),
            Answer::Stream(_) => None,
        }
    }
}

/// What an `initialize` negotiated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedSession {
    pub version: ProtocolVersion,
    /// `None` if the server keeps no sessions.
    pub session: Option<UpstreamSessionId>,
}

impl Upstream {
    /// Sends a cleared call and returns the server's answer, or why there is none. Nothing is sent twice.
    pub async fn forward(&self, cleared: Cleared, headers: ForwardHeaders) -> Result<Answer, ForwardError> {
        let fields = forward_headers(cleared.call(), &headers);
        let (call, ticket) = cleared.into_sending();
        let mut outcome = OutcomeGuard::new(Some(ticket));
        let endpoint = match &self.transport {
            TransportKind::Http(endpoint) => endpoint,
            TransportKind::Channels(channels) => return Box::pin(channels.forward(self, &call, &headers, outcome)).await,
        };
        let client = if call.method.is_stream() {
            &endpoint.streams
        } else {
            &endpoint.client
        };
        match endpoint
            .exchange(client, &http_method(call.method), &fields, &call.body)
            .await
        {
            Ok(response) => {
                let session = headers.session.as_ref();
                self.answer(response, &call, session, outcome).await
            }
            Err(error) => {
                outcome.failed(&error);
                Err(error)
            }
        }
    }

    /// Chooses how to read the response: as a stream, or as one message.
    async fn answer(
        &self,
        response: Response<ResponseBody>,
        call: &Call,
        session: Option<&UpstreamSessionId>,
        mut outcome: OutcomeGuard,
    ) -> Result<Answer, ForwardError> {
        outcome.status = Some(response.status());
        let success = response.status().is_success();
        let read = match (success, media(response.headers()), &call.id, call.method) {
            (true, Media::Events, Some(_), Method::Initialize) => {
                let opened = self.opened_by_stream(response, call, &mut outcome);
                let late = |_| Err(ForwardError::timeout("the server took too long to open a session"));
                timeout(self.timeouts.first_byte, opened).await.unwrap_or_else(late)
            }
            (true, Media::Events, Some(_), _) | (true, Media::Events, None, Method::OpenStream) => {
                return Ok(Answer::Stream(self.frames(response, call, session, outcome)));
            }
            _ => self.read_answer(response, call, &mut outcome).await,
        };
        if let Err(error) = &read {
            outcome.failed(error);
        }
        read
    }

    fn frames(
        &self,
        response: Response<ResponseBody>,
        call: &Call,
        session: Option<&UpstreamSessionId>,
        outcome: OutcomeGuard,
    ) -> EventStream {
        let denials = (call.era == Era::Legacy).then(|| {
            let mut fields: HeaderMap = mcp::mirror_headers(call.era, call.version, Method::Answer, None)
                .into_iter()
                .collect();
            set_session_headers(&mut fields, session);
            Box::new(DenialSender::new(self.clone(), fields))
        });
        let rules = StreamRules {
            id: call.id.clone(),
            era: call.era,
            method: call.method,
            allowed_requests: self.allowed_requests,
            denials,
            max_event: self.timeouts.max_event,
            idle: (!call.method.is_stream()).then_some(self.timeouts.idle),
        };
        EventStream::new(response.into_body(), rules, outcome)
    }

    /// `initialize` is never streamed to the client: its answer is taken out of the stream, because the session id can
    /// only be sealed together with the negotiated version.
    async fn opened_by_stream(
        &self,
        response: Response<ResponseBody>,
        call: &Call,
        outcome: &mut OutcomeGuard,
    ) -> Result<Answer, ForwardError> {
        let status = response.status();
        let opening = Some(session_of(response.headers()));
        let mut stream = self.frames(response, call, None, OutcomeGuard::new(None));
        while let Some(event) = stream.next().await {
            let event = event?;
            let (Some(kind @ (MessageKind::Result { .. } | MessageKind::Error { .. })), Some(body)) =
                (event.kind, event.frame.data)
            else {
                continue;
            };
            outcome.bytes = body.len() as u64;
            return self.json_answer(status, body, (kind, event.server_message), call, opening, outcome);
        }
        Err(ForwardError::bad_response("the server ended its stream before it answered"))
    }

    /// Reads a response that is not an event stream.
    async fn read_answer(
        &self,
        response: Response<ResponseBody>,
        call: &Call,
        outcome: &mut OutcomeGuard,
    ) -> Result<Answer, ForwardError> {
        let status = response.status();
        let Some(id) = &call.id else {
            return accepted_answer(status, call.method, outcome);
        };
        if status == StatusCode::ACCEPTED || status == StatusCode::NO_CONTENT {
            return Err(ForwardError::bad_response("the server took the request without answering it").with_status(status));
        }
        let opening = (call.method == Method::Initialize).then(|| session_of(response.headers()));
        let json = media(response.headers()) == Media::Json;
        if status.is_success() && !json {
            return Err(
                ForwardError::bad_response("the server's answer is neither JSON nor an event stream").with_status(status),
            );
        }
        if !json {
            return refused_answer(status, outcome);
        }
        let body = self
            .collect(response.into_body())
            .await
            .map_err(|error| error.with_status(status))?;
        outcome.bytes = body.len() as u64;
        let (kind, server_message) = parse_server_message(&body, id);
        if !status.is_success() && !matches!(kind, MessageKind::Error { .. }) {
            return refused_answer(status, outcome);
        }
        self.json_answer(status, body, (kind, server_message), call, opening, outcome)
    }

    /// Checks an answer that arrived as one message. `opening` is the session id that came with the answer to an
    /// `initialize`.
    pub(super) fn json_answer(
        &self,
        status: StatusCode,
        body: Bytes,
        (kind, server_message): (MessageKind, ServerMessage),
        call: &Call,
        opening: Option<SessionField>,
        outcome: &mut OutcomeGuard,
    ) -> Result<Answer, ForwardError> {
        let nobody = MessageId::from_json(Bytes::from_static(b"null"));
        let id = call.id.as_ref().unwrap_or(&nobody);
        let (body, is_error) = addressed(body, &kind, id).map_err(|error| error.with_status(status))?;
        if matches!(kind, MessageKind::Result { .. }) {
            check_result(&server_message, call.era, call.method, self.allowed_requests)
                .map_err(|error| error.with_status(status))?;
        }
        if demands_forbidden_url(&server_message, self.allowed_requests) {
            return Err(client_requests::denied(ELICITATION_METHOD).with_status(status));
        }
        let opened = match opening {
            Some(session) if !is_error => Some(opened(&body, session)?),
            _ => None,
        };
        outcome.done(Some(is_error));
        Ok(Answer::Json {
            status,
            body,
            kind,
            server_message: Box::new(server_message),
            opened,
        })
    }
}

/// The result for a message without an answer (notification, GET, DELETE): only the status counts.
fn accepted_answer(status: StatusCode, method: Method, outcome: &mut OutcomeGuard) -> Result<Answer, ForwardError> {
    if status.is_server_error() {
        return Err(failed_with(status));
    }
    if status.is_success() && method == Method::OpenStream {
        return Err(ForwardError::bad_response("the server opened no event stream").with_status(status));
    }
    outcome.done(None);
    let status = if status.is_success() && matches!(method, Method::Notification | Method::Answer) {
        StatusCode::ACCEPTED
    } else {
        status
    };
    Ok(Answer::Empty { status })
}

/// A request that the server refused without a JSON-RPC error. Statuses that a client can act on are passed on.
fn refused_answer(status: StatusCode, outcome: &mut OutcomeGuard) -> Result<Answer, ForwardError> {
    match status {
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST => {
            outcome.done(Some(true));
            Ok(Answer::Empty { status })
        }
        status => Err(failed_with(status)),
    }
}

fn failed_with(status: StatusCode) -> ForwardError {
    ForwardError::bad_response(format!("the server answered with HTTP status {}", status.as_u16())).with_status(status)
}

/// The answer to this request and whether it is an error. An error without an id is taken as the error of this request
/// and gets its id.
fn addressed(body: Bytes, kind: &MessageKind, id: &MessageId) -> Result<(Bytes, bool), ForwardError> {
    match kind {
        MessageKind::Result { is_error } => Ok((body, *is_error)),
        MessageKind::Error { addressed: true, .. } => Ok((body, true)),
        MessageKind::Error { addressed: false, .. } => match readdress(&body, id) {
            Ok(body) => Ok((body, true)),
            Err(fault) => Err(ForwardError::bad_response(fault.detail)),
        },
        MessageKind::OtherResponse => Err(ForwardError::bad_response("the server answered another request")),
        MessageKind::ServerRequest | MessageKind::ServerNotification => {
            Err(ForwardError::bad_response("the server sent no answer"))
        }
        MessageKind::Malformed(what) => Err(ForwardError::bad_response(format!(
            "the server's answer cannot be read: {what}"
        ))),
    }
}

fn opened(body: &Bytes, session: SessionField) -> Result<OpenedSession, ForwardError> {
    let version = mcp::negotiated_version(body).and_then(|version| ProtocolVersion::parse(&version));
    let Some(version) = version.filter(|version| version.era() == Era::Legacy) else {
        return Err(ForwardError::bad_response(
            "the server chose a protocol version that is not spoken here",
        ));
    };
    match session {
        SessionField::Broken => Err(ForwardError::bad_response("the server's session id is not one")),
        SessionField::None => Ok(OpenedSession { version, session: None }),
        SessionField::Id(id) => Ok(OpenedSession {
            version,
            session: Some(id),
        }),
    }
}

/// The `Mcp-Session-Id` header of a response.
pub(super) enum SessionField {
    None,
    Id(UpstreamSessionId),
    Broken,
}

/// Reads the session id of a response. It is used only for answers to `initialize`.
pub(super) fn session_of(headers: &HeaderMap) -> SessionField {
    let mut values = headers.get_all(mcp::SESSION_ID).iter();
    match (values.next(), values.next()) {
        (None, _) => SessionField::None,
        (Some(value), None) => match value.to_str().ok().and_then(UpstreamSessionId::parse) {
            Some(id) => SessionField::Id(id),
            None => SessionField::Broken,
        },
        (Some(_), Some(_)) => SessionField::Broken,
    }
}

const fn http_method(method: Method) -> http::Method {
    match method {
        Method::OpenStream => http::Method::GET,
        Method::EndSession => http::Method::DELETE,
        Method::Initialize
        | Method::Ping
        | Method::Discover
        | Method::ToolsList
        | Method::ToolsCall
        | Method::ResourcesList
        | Method::TemplatesList
        | Method::ReadResource
        | Method::Subscribe
        | Method::Unsubscribe
        | Method::PromptsList
        | Method::GetPrompt
        | Method::Complete
        | Method::SetLevel
        | Method::Listen
        | Method::Notification
        | Method::Answer
        | Method::TasksGet
        | Method::TasksResult
        | Method::TasksUpdate
        | Method::TasksCancel => http::Method::POST,
    }
}

/// The MCP headers of this call, written from the call that was decided.
fn forward_headers(call: &Call, headers: &ForwardHeaders) -> HeaderMap {
    let mut fields: HeaderMap =
        mcp::mirror_headers(call.era, headers.version.or(call.version), call.method, call.mirrored_name())
            .into_iter()
            .collect();
    let of_arguments = headers
        .params
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("mcp-param-"));
    fields.extend(of_arguments.cloned());
    if call.era == Era::Modern {
        return fields;
    }
    set_session_headers(&mut fields, headers.session.as_ref());
    if call.method == Method::OpenStream
        && let Some(Ok(last)) = headers.last_event_id.as_ref().map(|last| HeaderValue::from_str(last))
    {
        fields.insert(mcp::LAST_EVENT_ID, last);
    }
    fields
}

/// Adds `Mcp-Session-Id`, marked sensitive so that `Debug` hides it and HPACK never indexes it.
pub(super) fn set_session_headers(fields: &mut HeaderMap, session: Option<&UpstreamSessionId>) {
    if let Some(Ok(mut session)) = session.map(|session| HeaderValue::from_str(session.as_str())) {
        session.set_sensitive(true);
        fields.insert(mcp::SESSION_ID, session);
    }
}
