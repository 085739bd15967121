//! What a transport delivered for one call. Transports judge nothing: what it means is decided in `answer`.

use super::channel::{ChannelMessage, PendingSession, QueueReceiver};
use super::denial_sender::DenialSender;
use super::event_source::EventSource;
use super::http::SessionField;
use crate::transport::ResponseBody;
use http::StatusCode;

/// The head of a response, or what stands for it on a channel, and the messages.
pub(super) struct Delivery {
    pub status: StatusCode,
    /// The session id that came with the response.
    pub session: SessionField,
    /// The session on this instance that `initialize` opens; it ends with the delivery unless it is kept.
    pub pending_session: Option<PendingSession>,
    pub body: DeliveredBody,
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
            session: SessionField::None,
            pending_session: None,
            body,
        }
    }
}
