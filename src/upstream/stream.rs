//! Relays a server's event stream frame by frame, without buffering the whole. Each message is classified and checked;
//! the answer closes the outcome, and a stream that ends before its answer gets a final error.

use super::answer::AnswerRules;
use super::channel::ChannelMessage;
use super::client_requests::{ELICITATION_METHOD, LONGEST_ID};
use super::delivery::{DenialSender, EventSource, SourceEvent};
use super::error::ForwardError;
use super::outcome::OutcomeGuard;
use crate::domain::{CutBy, Era, Executed, MessageId, Method, OutcomeKind, Reason};
use crate::journal::OutcomeData;
use crate::mcp::{MessageKind, ServerMessage, SseFrame};
use crate::transport::{Body, BodyError};
use bytes::{Bytes, BytesMut};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The first notification of every `subscriptions/listen` stream.
const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";

/// One frame and the message in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamEvent {
    pub frame: SseFrame,
    /// `None` for a comment, a bare field, or an event of another type than `message`.
    pub kind: Option<MessageKind>,
    /// What Guardian read from the message; empty for an error.
    pub server_message: ServerMessage,
}

impl StreamEvent {
    /// A frame with a message.
    fn message(frame: SseFrame, kind: MessageKind, server_message: ServerMessage) -> Self {
        Self {
            frame,
            kind: Some(kind),
            server_message,
        }
    }

    /// Stands in for a withheld message: a comment, which still keeps the connection alive.
    fn placeholder() -> Self {
        let raw = Bytes::from_static(b":\n\n");
        SseFrame {
            raw,
            ..SseFrame::default()
        }
        .into()
    }
}

/// A frame without a message.
impl From<SseFrame> for StreamEvent {
    fn from(frame: SseFrame) -> Self {
        Self {
            frame,
            ..Self::default()
        }
    }
}

/// A stream on its way to the client. Dropping it before its end means that the client is gone; it closes the server's
/// stream.
pub struct EventStream {
    source: EventSource,
    /// The request that the stream answers.
    rules: AnswerRules,
    /// Sends the server an error for every forbidden request; legacy only.
    denials: Option<Box<DenialSender>>,
    /// The longest pause between two frames; `None` for a stream that answers no request.
    idle: Option<Duration>,
    /// Whether the answer was passed on.
    answered: bool,
    /// Whether the acknowledgement of a subscription was seen; true for any other stream.
    acknowledged: bool,
    /// Whether an event had an id, so that a legacy client can resume the stream with `Last-Event-ID`.
    resumable: bool,
    ended: bool,
    timer: Option<Pin<Box<Sleep>>>,
    revoked: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    outcome: OutcomeGuard,
}

impl EventStream {
    pub(super) fn new(
        source: EventSource,
        rules: AnswerRules,
        denials: Option<Box<DenialSender>>,
        idle: Option<Duration>,
        outcome: OutcomeGuard,
    ) -> Self {
        Self {
            source,
            acknowledged: rules.method != Method::Listen,
            rules,
            denials,
            idle,
            answered: false,
            resumable: false,
            ended: false,
            timer: None,
            revoked: None,
            outcome,
        }
    }

    /// Ends the stream when `token` is cancelled: the last item is then a `GrantRevoked` failure, if an answer is still
    /// due, and the outcome is `Cut`.
    pub fn cancel_on(&mut self, token: CancellationToken) {
        self.outcome.revoked = Some(token.clone());
        self.revoked = Some(Box::pin(token.cancelled_owned()));
    }

    /// The next frame. A failure is always the last item.
    pub async fn next(&mut self) -> Option<Result<StreamEvent, ForwardError>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The answer, taken out of the stream. What comes before it is dropped.
    pub(super) async fn into_answer(mut self) -> Result<(Bytes, MessageKind, ServerMessage), ForwardError> {
        while let Some(event) = self.next().await {
            let event = event?;
            if let (Some(kind @ (MessageKind::Result { .. } | MessageKind::Error { .. })), Some(body)) =
                (event.kind, event.frame.data)
            {
                return Ok((body, kind, event.server_message));
            }
        }
        Err(ForwardError::bad_response("the server ended its stream before it answered"))
    }

    /// Turns the stream into a response body. `screen` returns the bytes to send for a frame or for the final failure;
    /// `None` sends nothing.
    pub fn into_body(self, screen: impl FnMut(Result<StreamEvent, ForwardError>) -> Option<Bytes> + Send + 'static) -> Body {
        UnsyncBoxBody::new(ScreenedBody {
            stream: self,
            screen: Box::new(screen),
        })
    }

    /// Polls for the next frame.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<StreamEvent, ForwardError>>> {
        if self
            .revoked
            .as_mut()
            .is_some_and(|revoked| revoked.as_mut().poll(context).is_ready())
        {
            self.revoked = None;
            return Poll::Ready(self.revoke());
        }
        if let Some(denials) = &mut self.denials {
            denials.poll(context);
        }
        if self.ended {
            return Poll::Ready(None);
        }
        match self.source.poll(context, &mut self.outcome.bytes) {
            Poll::Ready(SourceEvent::Frame(frame, answer)) => {
                self.timer = None;
                Poll::Ready(self.screen_event(frame, answer))
            }
            Poll::Ready(SourceEvent::Failed(error)) => Poll::Ready(self.fail(error)),
            Poll::Ready(SourceEvent::Broken(error)) => Poll::Ready(self.end(error)),
            Poll::Ready(SourceEvent::End) => Poll::Ready(self.end_of_stream()),
            Poll::Pending if self.out_of_time(context) => {
                self.source.give_up();
                Poll::Ready(self.fail(ForwardError::timeout("the server stopped in the middle of its stream")))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Whether the pause between two frames was too long. The timer starts at the first wait.
    fn out_of_time(&mut self, context: &mut Context<'_>) -> bool {
        let Some(idle) = self.idle else {
            return false;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
        timer.as_mut().poll(context).is_ready()
    }

    /// Decides what becomes of one frame.
    fn screen_event(&mut self, frame: SseFrame, answer: Option<Box<ServerMessage>>) -> Option<Result<StreamEvent, ForwardError>> {
        self.resumable |= frame.id.is_some();
        let Some(data) = frame.data.clone().filter(|data| !data.is_empty()) else {
            return Some(Ok(frame.into()));
        };
        // MCP clients read only events of type `message`; any other is withheld, as its content was not checked.
        if frame
            .event
            .as_ref()
            .is_some_and(|event| event != "message" && !event.is_empty())
        {
            return Some(Ok(StreamEvent::placeholder()));
        }
        let Some(id) = self.rules.id.clone() else {
            return self.screen_unsolicited(frame, &data);
        };
        let (_, (kind, server_message)) = ChannelMessage {
            text: data.clone(),
            answer,
        }
        .classify(&id);
        match kind {
            MessageKind::ServerNotification if !self.acknowledged && server_message.method.as_deref() != Some(ACKNOWLEDGED) => {
                self.fail(ForwardError::bad_response(
                    "the server's subscription does not begin with its acknowledgement",
                ))
            }
            MessageKind::ServerNotification => {
                if !std::mem::replace(&mut self.acknowledged, true) {
                    self.outcome.acted = Some(Executed::Yes);
                }
                Some(Ok(self.relay(frame, &data, kind, server_message)))
            }
            MessageKind::ServerRequest if self.rules.era == Era::Legacy && !self.answered => {
                Some(Ok(self.relay(frame, &data, kind, server_message)))
            }
            // After the answer only notifications are relayed. Any other message ends the stream without an error.
            _ if self.answered => {
                self.ended = true;
                None
            }
            MessageKind::ServerRequest => self.fail(ForwardError::bad_response(
                "the server asks the client something, which this protocol version has not",
            )),
            MessageKind::Malformed(what) => {
                let detail = format!("the server sent a message that cannot be read: {what}");
                self.fail(ForwardError::bad_response(detail))
            }
            kind => match self.rules.check(data.clone(), &kind, server_message) {
                Ok((body, server_message, outcome)) => {
                    self.answered = true;
                    self.outcome.close(outcome);
                    let frame = if body == data { frame } else { SseFrame::message(body) };
                    Some(Ok(StreamEvent::message(frame, kind, server_message)))
                }
                Err(error) => self.fail(error),
            },
        }
    }

    /// Judges a message on a GET stream. Answers are relayed too: a resumed stream may deliver the answer to an earlier
    /// request.
    fn screen_unsolicited(&mut self, frame: SseFrame, data: &[u8]) -> Option<Result<StreamEvent, ForwardError>> {
        let nobody = MessageId::from_json(Bytes::from_static(b"null"));
        let (kind, server_message) = ServerMessage::classify(data, &nobody);
        match kind {
            MessageKind::Malformed(_) => self.fail(ForwardError::bad_response("the server sent a message that cannot be read")),
            MessageKind::ServerRequest | MessageKind::ServerNotification => {
                Some(Ok(self.relay(frame, data, kind, server_message)))
            }
            _ if self.rules.demands_forbidden_url(&server_message) => {
                self.outcome.asked(ELICITATION_METHOD, false);
                Some(Ok(StreamEvent::placeholder()))
            }
            kind => Some(Ok(StreamEvent::message(frame, kind, server_message))),
        }
    }

    /// Relays a request or a notification, unless it asks the client for what is not allowed: a task's status can hold requests
    /// too. A request that is withheld is answered with an error.
    fn relay(&mut self, frame: SseFrame, data: &[u8], kind: MessageKind, server_message: ServerMessage) -> StreamEvent {
        let short = server_message.id.is_none_or(|id| id.range().len() <= LONGEST_ID);
        let may = short && self.rules.allows_requests_in(&server_message);
        for client_request in &server_message.client_requests {
            self.outcome.asked(&client_request.method, may);
        }
        if may {
            return StreamEvent::message(frame, kind, server_message);
        }
        if let (Some(denials), Some(id)) = (&mut self.denials, server_message.id) {
            denials.send(id.text(data));
        }
        StreamEvent::placeholder()
    }

    /// The server ended its stream.
    fn end_of_stream(&mut self) -> Option<Result<StreamEvent, ForwardError>> {
        if self.answered || self.rules.id.is_none() {
            self.ended = true;
            self.outcome.done();
            return None;
        }
        self.end(ForwardError::bad_response("the server ended its stream before it answered"))
    }

    /// The connection to the server was lost. If a legacy client can resume the stream, it gets no error, because an
    /// error would end a request that can still be answered.
    fn end(&mut self, error: ForwardError) -> Option<Result<StreamEvent, ForwardError>> {
        let resumable = self.resumable && self.rules.era == Era::Legacy;
        if self.answered || !resumable || self.rules.id.is_none() {
            return self.fail(error);
        }
        self.ended = true;
        let detail = format!("{}; the client may resume it", error.recorded());
        self.outcome.close(OutcomeData {
            detail: Some(detail),
            ..OutcomeData::of(OutcomeKind::Unknown)
        });
        None
    }

    /// Ends the stream with a failure. The client gets it as an error only if a request is still unanswered.
    fn fail(&mut self, error: ForwardError) -> Option<Result<StreamEvent, ForwardError>> {
        self.ended = true;
        let error = ForwardError {
            status: self.outcome.status,
            ..error
        };
        self.outcome.failed(&error);
        (!self.answered && self.rules.id.is_some()).then_some(Err(error))
    }

    /// Ends the stream because the caller's authorisation was revoked.
    fn revoke(&mut self) -> Option<Result<StreamEvent, ForwardError>> {
        if self.ended {
            return None;
        }
        self.ended = true;
        self.outcome.revoke();
        let error = ForwardError::cut(CutBy::Revoked, Reason::GrantRevoked, CutBy::Revoked.detail());
        (!self.answered && self.rules.id.is_some()).then_some(Err(error))
    }
}

/// Frames that are ready are sent together up to this size, because a server may send very many tiny ones.
const BATCH_BYTES: usize = 16 * 1024;

/// The response body that `EventStream::into_body` returns.
struct ScreenedBody {
    stream: EventStream,
    screen: ScreenFn,
}

type ScreenFn = Box<dyn FnMut(Result<StreamEvent, ForwardError>) -> Option<Bytes> + Send>;

impl ScreenedBody {
    /// The bytes of the next frame that the screen did not drop.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            match std::task::ready!(self.stream.poll_next(context)) {
                None => return Poll::Ready(None),
                Some(item) => {
                    if let Some(bytes) = (self.screen)(item).filter(|bytes| !bytes.is_empty()) {
                        return Poll::Ready(Some(bytes));
                    }
                }
            }
        }
    }
}

impl http_body::Body for ScreenedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(first) = std::task::ready!(self.poll_piece(context)) else {
            return Poll::Ready(None);
        };
        let mut together: Option<BytesMut> = None;
        // Appends only what is ready now; it does not wait for more.
        while together.as_ref().map_or(first.len(), BytesMut::len) < BATCH_BYTES {
            let Poll::Ready(Some(next)) = self.poll_piece(context) else {
                break;
            };
            together
                .get_or_insert_with(|| BytesMut::from(&first[..]))
                .extend_from_slice(&next);
        }
        Poll::Ready(Some(Ok(Frame::data(together.map_or(first, BytesMut::freeze)))))
    }
}
