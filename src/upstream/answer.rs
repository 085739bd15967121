//! Sends a cleared call once, over the transport of its server, and makes its answer of what was delivered: what makes a
//! server's message the answer to a request, and whether the client may get it. The outcome is recorded here.

use super::client_requests::{ELICITATION_METHOD, denied, is_allowed};
use super::control_reply::{not_the_answer, session_version};
use super::delivery::{DeliveredBody, Delivery, DenialSender, EventSource};
use super::error::{ForwardError, executed_after, executed_after_error};
use super::http::{
    Endpoint, ForwardHeaders, Media, forward_headers, http_method, media, read_answer_body, session_of, set_session_headers,
};
use super::outcome::OutcomeGuard;
use super::server::{TransportKind, Upstream};
use super::stream::EventStream;
use super::timeouts::Timeouts;
use crate::domain::{Call, ClientRequest, ClientRequests, Era, Executed, MessageId, Method, OutcomeKind, ProtocolVersion};
use crate::journal::{Cleared, OutcomeData};
use crate::mcp::{self, MessageKind, ResultType, ServerMessage};
use crate::sessions::UpstreamSessionId;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use std::sync::Arc;
use tokio::time::timeout;

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
    /// Sends a cleared call and returns the server's answer, or why there is none. Nothing is sent twice. The outcome is
    /// recorded however the call ends.
    pub async fn forward(&self, cleared: Cleared, headers: ForwardHeaders) -> Result<Answer, ForwardError> {
        let fields = forward_headers(cleared.call(), &headers);
        let (call, ticket) = cleared.into_sending();
        let outcome = OutcomeGuard::new(Some(ticket));
        let rules = AnswerRules {
            id: call.id.clone(),
            era: call.era,
            method: call.method,
            allowed_requests: self.allowed_requests,
        };
        let mut pending = PendingAnswer {
            rules,
            timeouts: self.timeouts,
            outcome,
        };
        let delivered = match &self.transport {
            TransportKind::Http(endpoint) => {
                let delivered = self.exchange(endpoint, &call, &headers, &fields).await;
                pending.outcome.status = delivered.as_ref().ok().map(|delivery| delivery.status);
                delivered
            }
            TransportKind::Channels(channels) => Box::pin(channels.exchange(&call, &headers)).await,
        };
        pending.answer(delivered).await
    }

    async fn exchange(
        &self,
        endpoint: &Arc<Endpoint>,
        call: &Call,
        headers: &ForwardHeaders,
        fields: &HeaderMap,
    ) -> Result<Delivery, ForwardError> {
        let client = if call.method.is_stream() {
            &endpoint.streams
        } else {
            &endpoint.client
        };
        let response = endpoint
            .exchange(client, &http_method(call.method), fields, &call.body)
            .await?;
        let (status, session) = (response.status(), session_of(response.headers()));
        let body = match media(response.headers()) {
            Media::Events if status.is_success() => DeliveredBody::Events(
                EventSource::of_body(response.into_body(), self.timeouts.max_event),
                (call.era == Era::Legacy).then(|| self.denials(endpoint, call, headers)),
            ),
            Media::Json => DeliveredBody::Json(response.into_body()),
            Media::Events | Media::Other => DeliveredBody::Nothing,
        };
        Ok(Delivery {
            status,
            session,
            pending_session: None,
            body,
            not_sent: None,
            may_be_unread: false,
        })
    }

    /// Refuses forbidden requests in the session of this call. An `initialize` has none yet.
    fn denials(&self, endpoint: &Arc<Endpoint>, call: &Call, headers: &ForwardHeaders) -> Box<DenialSender> {
        let mut fields: HeaderMap = mcp::mirror_headers(call.era, call.version, Method::Answer, None)
            .into_iter()
            .collect();
        let session = headers.session.as_ref();
        set_session_headers(&mut fields, session.filter(|_| call.method != Method::Initialize));
        Box::new(DenialSender::over_http(endpoint.clone(), self.name.clone(), fields))
    }
}

/// A call that was sent and waits for its answer.
struct PendingAnswer {
    rules: AnswerRules,
    timeouts: Timeouts,
    outcome: OutcomeGuard,
}

impl PendingAnswer {
    /// Makes the answer of what was delivered: a stream, one message, or nothing but a status.
    async fn answer(mut self, delivered: Result<Delivery, ForwardError>) -> Result<Answer, ForwardError> {
        let Delivery {
            status,
            session,
            pending_session,
            body,
            not_sent,
            may_be_unread,
        } = delivered.inspect_err(|error| self.outcome.failed(error))?;
        if let Some(why) = not_sent {
            self.outcome.close(OutcomeData {
                detail: Some(why.to_owned()),
                ..OutcomeData::of(OutcomeKind::NotSent)
            });
            if matches!(body, DeliveredBody::Nothing) {
                return Ok(Answer::Empty { status });
            }
        }
        if may_be_unread {
            self.outcome.acted = Some(Executed::Unknown);
        }
        let id = self.rules.id.clone();
        let read = match (body, id, self.rules.method) {
            (DeliveredBody::Events(source, denials), Some(_), Method::Initialize) => {
                self.opened_by_stream(status, session, source, denials).await
            }
            (DeliveredBody::Events(source, denials), Some(_), _)
            | (DeliveredBody::Events(source, denials), None, Method::OpenStream) => return Ok(self.stream(source, denials)),
            (_, None, method) => self.accepted(status, method),
            (_, Some(_), _) if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) => {
                Err(ForwardError::bad_response("the server took the request without answering it").with_status(status))
            }
            (DeliveredBody::Messages(first, mut rest, denials), Some(id), _) => {
                let kind = first.answer.as_ref().map(|answer| answer.kind(&first.text, &id));
                if !matches!(kind, Some(MessageKind::Result { .. } | MessageKind::Error { .. })) {
                    rest.unread(first);
                    return Ok(self.stream(EventSource::Channel(rest), Some(denials)));
                }
                let (text, parsed) = first.classify(&id);
                self.whole(status, session, text, parsed)
            }
            (DeliveredBody::Message(message), Some(id), _) => {
                let (text, parsed) = message.classify(&id);
                self.whole(status, session, text, parsed)
            }
            (DeliveredBody::Json(body), Some(id), _) => match read_answer_body(body, &self.timeouts).await {
                Ok(body) => {
                    let parsed = ServerMessage::classify(&body, &id);
                    self.whole(status, session, body, parsed)
                }
                Err(error) => Err(error.with_status(status)),
            },
            (DeliveredBody::Nothing, Some(_), _) => self.refused(status, executed_after(status)),
        };
        if let (Ok(Answer::Json { opened: Some(_), .. }), Some(pending)) = (&read, pending_session) {
            pending.stay();
        }
        read.inspect_err(|error| self.outcome.failed(error))
    }

    fn stream(mut self, source: EventSource, denials: Option<Box<DenialSender>>) -> Answer {
        if self.rules.id.is_none() {
            // A stream of a channel is Guardian's own: its messages come over the channel anyway.
            self.outcome.acted = Some(match source {
                EventSource::Body(..) => Executed::Yes,
                EventSource::Channel(_) => Executed::No,
            });
        }
        let idle = (!self.rules.method.is_stream()).then_some(self.timeouts.idle);
        Answer::Stream(EventStream::new(source, self.rules, denials, idle, self.outcome))
    }

    /// `initialize` is never streamed to the client: its answer is taken out of the stream, because the session id can
    /// only be sealed together with the negotiated version.
    async fn opened_by_stream(
        &mut self,
        status: StatusCode,
        session: Result<Option<UpstreamSessionId>, ForwardError>,
        source: EventSource,
        denials: Option<Box<DenialSender>>,
    ) -> Result<Answer, ForwardError> {
        let (rules, idle) = (self.rules.clone(), Some(self.timeouts.idle));
        let stream = EventStream::new(source, rules, denials, idle, OutcomeGuard::new(None));
        let late = |_| Err(ForwardError::timeout("the server took too long to open a session"));
        let answer = timeout(self.timeouts.first_byte, stream.into_answer()).await;
        let (body, kind, message) = answer.unwrap_or_else(late)?;
        self.whole(status, session, body, (kind, message))
    }

    /// An answer that is one message.
    fn whole(
        &mut self,
        status: StatusCode,
        session: Result<Option<UpstreamSessionId>, ForwardError>,
        body: Bytes,
        (kind, server_message): (MessageKind, ServerMessage),
    ) -> Result<Answer, ForwardError> {
        self.outcome.bytes = body.len() as u64;
        if !status.is_success() && !matches!(kind, MessageKind::Error { .. }) {
            // A result says that the server acted, whatever the status says.
            return match kind {
                MessageKind::Result { .. } => self.refused(status, Executed::Unknown),
                _ => self.refused(status, executed_after(status)),
            };
        }
        let checked = self.rules.check(body, &kind, server_message);
        let (body, server_message, outcome) = checked.map_err(|error| error.with_status(status))?;
        let opened = if self.rules.method == Method::Initialize && outcome.kind == OutcomeKind::Done {
            let version = session_version(server_message.negotiated_version(&body).as_deref())?;
            Some(OpenedSession {
                version,
                session: session?,
            })
        } else {
            None
        };
        self.outcome.close(match (outcome.kind, executed_after(status)) {
            (OutcomeKind::RefusedByServer, Executed::No) => OutcomeData {
                executed: Executed::No,
                ..outcome
            },
            _ => outcome,
        });
        Ok(Answer::Json {
            status,
            body,
            kind,
            server_message: Box::new(server_message),
            opened,
        })
    }

    /// A message without an answer (notification, GET, DELETE): only the status counts.
    fn accepted(&mut self, status: StatusCode, method: Method) -> Result<Answer, ForwardError> {
        if status.is_server_error() {
            return Err(ForwardError::failed_with(status));
        }
        if status.is_success() && method == Method::OpenStream {
            return Err(ForwardError::bad_response("the server opened no event stream").with_status(status));
        }
        if status.is_success() {
            self.outcome.done();
        } else {
            self.outcome.close(OutcomeData {
                executed: executed_after(status),
                ..OutcomeData::of(OutcomeKind::RefusedByServer)
            });
        }
        let status = if status.is_success() && matches!(method, Method::Notification | Method::Answer) {
            StatusCode::ACCEPTED
        } else {
            status
        };
        Ok(Answer::Empty { status })
    }

    /// A request that was not answered with a message. Statuses that a client can act on are passed on.
    fn refused(&mut self, status: StatusCode, executed: Executed) -> Result<Answer, ForwardError> {
        match status {
            status if status.is_success() => {
                Err(ForwardError::bad_response("the server's answer is neither JSON nor an event stream").with_status(status))
            }
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST => {
                self.outcome.close(OutcomeData {
                    executed,
                    ..OutcomeData::of(OutcomeKind::RefusedByServer)
                });
                Ok(Answer::Empty { status })
            }
            status => Err(ForwardError {
                executed,
                ..ForwardError::failed_with(status)
            }),
        }
    }
}

/// The request that waits for an answer, and what its server may ask of the client.
#[derive(Debug, Clone)]
pub(super) struct AnswerRules {
    /// `None` for a message without an answer, and for the GET stream of a legacy session.
    pub id: Option<MessageId>,
    pub era: Era,
    pub method: Method,
    pub allowed_requests: ClientRequests,
}

impl AnswerRules {
    /// Checks a message that must be the answer. Returns it, and how it ends the call. An error without an id is taken as the
    /// error of this request and gets its id.
    pub fn check(
        &self,
        body: Bytes,
        kind: &MessageKind,
        message: ServerMessage,
    ) -> Result<(Bytes, ServerMessage, OutcomeData), ForwardError> {
        match (kind, &self.id) {
            (MessageKind::Result { is_error }, _) => {
                self.check_result(&message)?;
                let outcome = outcome_of_result(*is_error, message.result_type);
                Ok((body, message, outcome))
            }
            (MessageKind::Error { .. }, _) if self.demands_forbidden_url(&message) => Err(denied(ELICITATION_METHOD)),
            (MessageKind::Error { code, addressed: false }, Some(id)) => {
                let readdressed = message.readdressed(&body, id)?;
                Ok((readdressed, ServerMessage::default(), outcome_of_error(*code)))
            }
            (MessageKind::Error { code, .. }, _) => Ok((body, message, outcome_of_error(*code))),
            (other, _) => Err(not_the_answer(other)),
        }
    }

    /// Whether the server may make all requests that the message holds.
    pub fn allows_requests_in(&self, message: &ServerMessage) -> bool {
        let mut requests = message.client_requests.iter();
        requests.all(|request| is_allowed(request, self.allowed_requests))
    }

    /// Whether an error (code -32042) demands URL elicitation although the configuration does not allow it.
    pub fn demands_forbidden_url(&self, message: &ServerMessage) -> bool {
        message.needs_url_elicitation && !self.allowed_requests.allow(ClientRequest::ElicitationUrl)
    }

    /// Whether a result may go to the client: its `resultType` must suit the method, and every request in it must be
    /// allowed. Legacy results have neither, so they pass.
    fn check_result(&self, message: &ServerMessage) -> Result<(), ForwardError> {
        if self.era == Era::Legacy {
            return Ok(());
        }
        let wrong = match message.result_type {
            ResultType::Complete => None,
            ResultType::InputRequired if self.method.takes_input() => None,
            ResultType::InputRequired => Some("the server asks for input where none can be given"),
            ResultType::Task if self.method == Method::ToolsCall => None,
            ResultType::Task => Some("the server makes a task of what cannot be one"),
            ResultType::Unknown => Some("the server's result is of a type that is not known"),
        };
        if let Some(wrong) = wrong {
            return Err(ForwardError::bad_response(wrong));
        }
        let mut requests = message.client_requests.iter();
        match requests.find(|request| !is_allowed(request, self.allowed_requests)) {
            None => Ok(()),
            Some(request) => Err(denied(&request.method)),
        }
    }
}

/// A result that asks for input does not say whether the tool has begun.
fn outcome_of_result(is_error: bool, result: ResultType) -> OutcomeData {
    let outcome = OutcomeData::of(if is_error { OutcomeKind::ToolError } else { OutcomeKind::Done });
    match result {
        ResultType::InputRequired => OutcomeData {
            executed: Executed::Unknown,
            ..outcome
        },
        ResultType::Complete | ResultType::Task | ResultType::Unknown => outcome,
    }
}

fn outcome_of_error(code: i64) -> OutcomeData {
    OutcomeData {
        executed: executed_after_error(code),
        detail: Some(format!("JSON-RPC error {code}")),
        ..OutcomeData::of(OutcomeKind::RefusedByServer)
    }
}
