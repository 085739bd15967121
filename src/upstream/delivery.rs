//! What a transport delivered for one call: the head, messages or an event stream, and the way to refuse requests in it.
//! Transports judge nothing: what it means is decided in `answer`.

use super::channel::{ChannelMessage, MuxChannel, PendingSession, QueueReceiver};
use super::error::ForwardError;
use super::http::Endpoint;
use crate::domain::{MessageId, ServerName};
use crate::mcp::{self, ServerMessage, SseFault, SseFrame, SseReader};
use crate::sessions::UpstreamSessionId;
use crate::transport::ResponseBody;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::Body as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The head of a response, or what stands for it on a channel, and the messages.
pub(super) struct Delivery {
    pub status: StatusCode,
    /// The session id that came with the response.
    pub session: Result<Option<UpstreamSessionId>, ForwardError>,
    /// The session on this instance that `initialize` opens; it ends with the delivery unless it is kept.
    pub pending_session: Option<PendingSession>,
    pub body: DeliveredBody,
    /// Why the message was answered here and not sent, if so.
    pub not_sent: Option<&'static str>,
    /// Whether a message without an answer reached the server, if the delivery cannot show it.
    pub may_be_unread: bool,
}

pub(super) enum DeliveredBody {
    /// Nothing that could be an answer.
    Nothing,
    /// A JSON document, not read yet.
    Json(ResponseBody),
    /// One whole message.
    Message(ChannelMessage),
    /// The messages of a channel for one request. If the first is the answer, it is the only one.
    Messages(ChannelMessage, QueueReceiver, Box<DenialSender>),
    /// An event stream, and how forbidden requests in it are answered.
    Events(EventSource, Option<Box<DenialSender>>),
}

impl Delivery {
    /// A body that came without HTTP.
    pub fn local(status: StatusCode, body: DeliveredBody) -> Self {
        Self {
            status,
            session: Ok(None),
            pending_session: None,
            body,
            not_sent: None,
            may_be_unread: false,
        }
    }

    /// What Guardian answers in place of the server.
    pub fn answered_here(status: StatusCode, body: DeliveredBody, why: &'static str) -> Self {
        Self {
            not_sent: Some(why),
            ..Self::local(status, body)
        }
    }

    /// A message that is for no session on this instance.
    pub fn unknown_session() -> Self {
        Self {
            not_sent: Some("not sent: the session is not known here"),
            ..Self::local(StatusCode::NOT_FOUND, DeliveredBody::Nothing)
        }
    }
}

/// Where the frames of an event stream come from.
pub(super) enum EventSource {
    Body(ResponseBody, SseReader),
    /// Messages from a channel; each becomes one frame.
    Channel(QueueReceiver),
}

/// What the source delivers next.
pub(super) enum SourceEvent {
    /// An answer from a channel was parsed before.
    Frame(SseFrame, Option<Box<ServerMessage>>),
    End,
    /// The stream cannot continue.
    Failed(ForwardError),
    /// The connection was cut, so a legacy client may be able to resume the stream.
    Broken(ForwardError),
}

impl EventSource {
    /// The frames of a response body.
    pub fn of_body(body: ResponseBody, max_event: usize) -> Self {
        EventSource::Body(body, SseReader::new(max_event))
    }

    /// Stops waiting, and tells the server so on a channel.
    pub fn give_up(&mut self) {
        match self {
            EventSource::Channel(receiver) => {
                receiver.give_up();
            }
            EventSource::Body(..) => (),
        }
    }

    /// Polls for the next frame and adds the received bytes to `bytes`.
    pub fn poll(&mut self, context: &mut Context<'_>, bytes: &mut u64) -> Poll<SourceEvent> {
        let (body, reader) = match self {
            EventSource::Channel(receiver) => {
                return receiver.poll(context).map(|item| match item {
                    Some(Ok(message)) => {
                        *bytes += message.text.len() as u64;
                        SourceEvent::Frame(SseFrame::message(message.text), message.answer)
                    }
                    Some(Err(error)) => SourceEvent::Failed(error),
                    None => SourceEvent::End,
                });
            }
            EventSource::Body(body, reader) => (body, reader),
        };
        loop {
            match reader.frame() {
                Ok(Some(frame)) => return Poll::Ready(SourceEvent::Frame(frame, None)),
                Ok(None) => (),
                Err(fault) => {
                    let error = ForwardError::bad_response("the server's stream cannot be followed").with_cause(&fault);
                    return Poll::Ready(SourceEvent::Failed(error));
                }
            }
            match std::task::ready!(Pin::new(&mut *body).poll_frame(context)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        *bytes += data.len() as u64;
                        reader.push(data);
                    }
                }
                Some(Err(error)) => {
                    let error = ForwardError::bad_response("the server broke off its stream").with_cause(&error);
                    return Poll::Ready(SourceEvent::Broken(error));
                }
                None => {
                    let reader = std::mem::replace(reader, SseReader::new(0));
                    return Poll::Ready(match reader.finish() {
                        Ok(()) => SourceEvent::End,
                        Err(SseFault::Cut | SseFault::TooLarge(_)) => {
                            SourceEvent::Broken(ForwardError::bad_response("the server broke off its stream"))
                        }
                    });
                }
            }
        }
    }
}

/// Sends the server an error for each of its requests that was refused. The stream that carries those requests polls it
/// and owns it, so unsent errors are dropped with the stream.
pub(super) struct DenialSender {
    to: DenialTarget,
    sending: Vec<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// Where a refused request came from.
enum DenialTarget {
    /// An HTTP server; the headers carry the session and version of the stream.
    Http(Arc<Endpoint>, ServerName, HeaderMap),
    Channel(Arc<MuxChannel>),
}

/// The most unsent errors per stream. A server that asks faster than it accepts errors gets no more of them.
const MOST_AT_ONCE: usize = 16;

impl DenialSender {
    /// For requests from an HTTP server.
    pub fn over_http(endpoint: Arc<Endpoint>, server: ServerName, headers: HeaderMap) -> Self {
        Self {
            to: DenialTarget::Http(endpoint, server, headers),
            sending: Vec::new(),
        }
    }

    /// For requests that came over a channel.
    pub fn over_channel(channel: Arc<MuxChannel>) -> Self {
        Self {
            to: DenialTarget::Channel(channel),
            sending: Vec::new(),
        }
    }

    /// Refuses one request. `id` is the JSON text that the server wrote.
    pub fn send(&mut self, id: &str) {
        let (endpoint, server, headers) = match &self.to {
            DenialTarget::Channel(channel) => return channel.refuse(id),
            DenialTarget::Http(..) if self.sending.len() >= MOST_AT_ONCE => return,
            DenialTarget::Http(endpoint, server, headers) => (endpoint.clone(), server.clone(), headers.clone()),
        };
        let id = MessageId::from_json(Bytes::copy_from_slice(id.as_bytes()));
        let body = mcp::error(Some(&id), -32601, "the client does not offer this", None);
        self.sending.push(Box::pin(async move {
            if let Err(error) = endpoint
                .exchange(&endpoint.client, &http::Method::POST, &headers, &body)
                .await
            {
                tracing::debug!(%server, %error, "the server did not take a refusal");
            }
        }));
    }

    /// Makes progress on sending.
    pub fn poll(&mut self, context: &mut Context<'_>) {
        self.sending
            .retain_mut(|sending| matches!(sending.as_mut().poll(context), Poll::Pending));
    }
}
