//! The one place that makes an answer of what a transport delivered, and records the outcome.

use super::answer_rules::AnswerRules;
use super::delivery::{DeliveredBody, Delivery};
use super::denial_sender::DenialSender;
use super::event_source::EventSource;
use super::forward_error::ForwardError;
use super::http::{SessionField, read_answer_body};
use super::outcome::OutcomeGuard;
use super::stream::{EventStream, StreamRules};
use super::timeouts::Timeouts;
use crate::domain::{Call, ClientRequests, Era, Method, ProtocolVersion};
use crate::mcp::{MessageKind, ServerMessage};
use crate::sessions::UpstreamSessionId;
use bytes::Bytes;
use http::StatusCode;
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

/// A call that was sent and waits for its answer.
pub(super) struct PendingAnswer {
    rules: AnswerRules,
    timeouts: Timeouts,
    pub outcome: OutcomeGuard,
}

impl PendingAnswer {
    pub fn new(call: &Call, allowed_requests: ClientRequests, timeouts: Timeouts, outcome: OutcomeGuard) -> Self {
        let rules = AnswerRules {
            id: call.id.clone(),
            era: call.era,
            method: call.method,
            allowed_requests,
        };
        Self {
            rules,
            timeouts,
            outcome,
        }
    }

    /// Makes the answer of what was delivered: a stream, one message, or nothing but a status.
    pub async fn answer(mut self, delivered: Result<Delivery, ForwardError>) -> Result<Answer, ForwardError> {
        let Delivery {
            status,
            session,
            pending_session,
            body,
        } = delivered.inspect_err(|error| self.outcome.failed(error))?;
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
            (DeliveredBody::Nothing, Some(_), _) => self.refused(status),
        };
        if let (Ok(Answer::Json { opened: Some(_), .. }), Some(pending)) = (&read, pending_session) {
            pending.stay();
        }
        read.inspect_err(|error| self.outcome.failed(error))
    }

    fn stream(self, source: EventSource, denials: Option<Box<DenialSender>>) -> Answer {
        let idle = (!self.rules.method.is_stream()).then_some(self.timeouts.idle);
        let rules = StreamRules {
            answer: self.rules,
            denials,
            idle,
        };
        Answer::Stream(EventStream::new(source, rules, self.outcome))
    }

    /// `initialize` is never streamed to the client: its answer is taken out of the stream, because the session id can
    /// only be sealed together with the negotiated version.
    async fn opened_by_stream(
        &mut self,
        status: StatusCode,
        session: SessionField,
        source: EventSource,
        denials: Option<Box<DenialSender>>,
    ) -> Result<Answer, ForwardError> {
        let rules = StreamRules {
            answer: self.rules.clone(),
            denials,
            idle: Some(self.timeouts.idle),
        };
        let stream = EventStream::new(source, rules, OutcomeGuard::new(None));
        let late = |_| Err(ForwardError::timeout("the server took too long to open a session"));
        let answer = timeout(self.timeouts.first_byte, stream.into_answer()).await;
        let (body, kind, message) = answer.unwrap_or_else(late)?;
        self.whole(status, session, body, (kind, message))
    }

    /// An answer that is one message.
    fn whole(
        &mut self,
        status: StatusCode,
        session: SessionField,
        body: Bytes,
        (kind, server_message): (MessageKind, ServerMessage),
    ) -> Result<Answer, ForwardError> {
        self.outcome.bytes = body.len() as u64;
        if !status.is_success() && !matches!(kind, MessageKind::Error { .. }) {
            return self.refused(status);
        }
        let checked = self.rules.check(body, &kind, server_message);
        let (body, server_message, is_error) = checked.map_err(|error| error.with_status(status))?;
        let opened = if self.rules.method == Method::Initialize && !is_error {
            Some(opened(server_message.negotiated_version(&body), session)?)
        } else {
            None
        };
        self.outcome.done(Some(is_error));
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
            return Err(failed_with(status));
        }
        if status.is_success() && method == Method::OpenStream {
            return Err(ForwardError::bad_response("the server opened no event stream").with_status(status));
        }
        self.outcome.done(None);
        let status = if status.is_success() && matches!(method, Method::Notification | Method::Answer) {
            StatusCode::ACCEPTED
        } else {
            status
        };
        Ok(Answer::Empty { status })
    }

    /// A request that was not answered with a message. Statuses that a client can act on are passed on.
    fn refused(&mut self, status: StatusCode) -> Result<Answer, ForwardError> {
        match status {
            status if status.is_success() => {
                Err(ForwardError::bad_response("the server's answer is neither JSON nor an event stream").with_status(status))
            }
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST => {
                self.outcome.done(Some(true));
                Ok(Answer::Empty { status })
            }
            status => Err(failed_with(status)),
        }
    }
}

fn failed_with(status: StatusCode) -> ForwardError {
    ForwardError::bad_response(format!("the server answered with HTTP status {}", status.as_u16())).with_status(status)
}

/// What the result of `initialize` negotiated.
fn opened(version: Option<String>, session: SessionField) -> Result<OpenedSession, ForwardError> {
    let version = version.and_then(|version| ProtocolVersion::parse(&version));
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
