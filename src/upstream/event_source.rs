//! Where the frames of an event stream come from: an HTTP response, or the messages of a channel.

use super::channel::QueueReceiver;
use super::forward_error::ForwardError;
use crate::mcp::{ServerMessage, SseFault, SseFrame, SseReader};
use crate::transport::ResponseBody;
use http_body::Body as _;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Where the frames come from.
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
            EventSource::Channel(receiver) => receiver.give_up(),
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
