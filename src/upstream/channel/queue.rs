//! Bounded queues between a channel to a server and the receivers of its messages. A queue holds one message of any
//! size or many small ones; the sender waits for room, or is told that there is none.

use crate::domain::MessageId;
use crate::mcp::{MessageKind, ServerMessage};
use crate::upstream::error::ForwardError;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// The bytes of messages that one queue may hold; a larger message is queued alone.
const ROOM: u32 = 256 * 1024;
/// What each message counts for beside its text.
const OVERHEAD: u32 = 256;
/// Limits for messages that wait until the client opens its stream.
const MAX_BUFFERED: usize = 64;
const MAX_BUFFERED_BYTES: usize = 256 * 1024;

/// One message of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelMessage {
    pub text: Bytes,
    /// An answer as it was parsed for its route. Other messages are parsed again by who gets them: a queue holds one answer,
    /// but many of those.
    pub answer: Option<Box<ServerMessage>>,
}

impl ChannelMessage {
    /// The message, and what it is for the request `id`.
    pub fn classify(self, id: &MessageId) -> (Bytes, (MessageKind, ServerMessage)) {
        let classified = match self.answer {
            Some(answer) => answer.into_kind(&self.text, id),
            None => ServerMessage::classify(&self.text, id),
        };
        (self.text, classified)
    }
}

impl From<Bytes> for ChannelMessage {
    fn from(text: Bytes) -> Self {
        Self { text, answer: None }
    }
}

type QueueItem = (Result<ChannelMessage, ForwardError>, Option<OwnedSemaphorePermit>);

/// The receiving end.
pub struct QueueReceiver {
    items: mpsc::UnboundedReceiver<QueueItem>,
    /// A message that was received and put back.
    first: Option<ChannelMessage>,
    /// Called when the receiver stops waiting, to cancel the request at the server; returns whether it may have got it.
    give_up: Option<Box<dyn FnOnce() -> bool + Send>>,
}

/// The sending end.
#[derive(Clone)]
pub struct QueueSender {
    items: mpsc::UnboundedSender<QueueItem>,
    room: Arc<Semaphore>,
}

/// A new queue.
pub fn queue() -> (QueueSender, QueueReceiver) {
    let (items, received) = mpsc::unbounded_channel();
    let sender = QueueSender {
        items,
        room: Arc::new(Semaphore::new(ROOM as usize)),
    };
    let receiver = QueueReceiver {
        items: received,
        first: None,
        give_up: None,
    };
    (sender, receiver)
}

impl QueueReceiver {
    /// The next message; `None` when there are no more. A failure is the last item.
    pub async fn next(&mut self) -> Option<Result<ChannelMessage, ForwardError>> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<ChannelMessage, ForwardError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        self.items.poll_recv(context).map(|item| item.map(|(message, _)| message))
    }

    /// Puts back a message, so that `next` returns it again.
    pub fn unread(&mut self, message: ChannelMessage) {
        self.first = Some(message);
    }

    /// Sets what `give_up` calls.
    pub fn on_giving_up(&mut self, tell: impl FnOnce() -> bool + Send + 'static) {
        self.give_up = Some(Box::new(tell));
    }

    /// The receiver stops waiting for the answer. `false`: the request never reached the server, and never will.
    pub fn give_up(&mut self) -> bool {
        self.give_up.take().is_none_or(|tell| tell())
    }
}

impl QueueSender {
    /// Queues a message, waiting for room.
    pub async fn put(&self, message: ChannelMessage) {
        if let Ok(permit) = self.room.clone().acquire_many_owned(size(&message.text)).await {
            let _ = self.items.send((Ok(message), Some(permit)));
        }
    }

    /// Queues a message if there is room; returns whether it was queued.
    pub fn try_put(&self, message: ChannelMessage) -> bool {
        match self.room.clone().try_acquire_many_owned(size(&message.text)) {
            Ok(permit) => self.items.send((Ok(message), Some(permit))).is_ok(),
            Err(_) => false,
        }
    }

    /// Queues the last item, which needs no room.
    pub fn fail(&self, error: ForwardError) {
        let _ = self.items.send((Err(error), None));
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.items.is_closed()
    }
}

fn size(message: &Bytes) -> u32 {
    u32::try_from(message.len())
        .unwrap_or(ROOM)
        .saturating_add(OVERHEAD)
        .min(ROOM)
}

/// The messages for a session's own GET stream: those that belong to no call.
#[derive(Default)]
pub struct PushBuffer(Mutex<PushState>);

#[derive(Default)]
struct PushState {
    open: Option<QueueSender>,
    buffered: VecDeque<Bytes>,
    buffered_bytes: usize,
    closed: bool,
}

impl PushBuffer {
    /// Opens the stream. One that was open before ends, because a client that opens another has lost the first.
    pub fn open(&self) -> QueueReceiver {
        let (sender, receiver) = queue();
        let mut mail = self.state();
        for message in mail.buffered.drain(..) {
            // Always fits: the limit of the buffer is not larger than that of the queue.
            sender.try_put(message.into());
        }
        mail.buffered_bytes = 0;
        mail.open = (!mail.closed).then_some(sender);
        receiver
    }

    /// Whether a client reads the stream.
    pub fn is_open(&self) -> bool {
        self.state().open.as_ref().is_some_and(|open| !open.is_closed())
    }

    /// Sends on the open stream; `false` if none is open or its queue is full.
    pub fn put(&self, message: Bytes) -> bool {
        self.state().open.as_ref().is_some_and(|open| open.try_put(message.into()))
    }

    /// Buffers a message for the stream that will be opened; `false` if the buffer is full or the session has ended.
    pub fn buffer(&self, message: Bytes) -> bool {
        let mut mail = self.state();
        let bytes = mail.buffered_bytes + message.len() + OVERHEAD as usize;
        if mail.closed || mail.buffered.len() >= MAX_BUFFERED || bytes > MAX_BUFFERED_BYTES {
            return false;
        }
        mail.buffered_bytes = bytes;
        mail.buffered.push_back(message);
        true
    }

    /// Ends the stream and accepts no more messages.
    pub fn close(&self) {
        *self.state() = PushState {
            closed: true,
            ..PushState::default()
        };
    }

    fn state(&self) -> MutexGuard<'_, PushState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Bytes {
        Bytes::from(vec![b'x'; length])
    }

    #[tokio::test]
    async fn an_inbox_holds_one_large_message_or_some_small_ones_and_then_no_more() {
        let (sender, mut receiver) = queue();
        assert!(sender.try_put(message(100 * 1024 * 1024).into()));
        assert!(!sender.try_put(message(1).into()));
        assert_eq!(receiver.next().await.unwrap().unwrap().text.len(), 100 * 1024 * 1024);
        let taken = (0..10_000).take_while(|_| sender.try_put(message(1).into())).count();
        assert_eq!(taken, (ROOM / (OVERHEAD + 1)) as usize);
        sender.fail(ForwardError::bad_response("over"));
        for _ in 0..taken {
            assert!(receiver.next().await.unwrap().is_ok());
        }
        assert!(receiver.next().await.unwrap().is_err());
        drop(sender);
        assert!(receiver.next().await.is_none());
    }

    #[tokio::test]
    async fn who_waits_for_room_goes_on_when_there_is_some_or_nobody_reads() {
        let (sender, mut read) = queue();
        assert!(sender.try_put(message(ROOM as usize).into()));
        let put = tokio::spawn({
            let sender = sender.clone();
            async move { sender.put(message(2).into()).await }
        });
        assert_eq!(read.next().await.unwrap().unwrap().text.len(), ROOM as usize);
        assert_eq!(read.next().await.unwrap().unwrap().text.len(), 2);
        put.await.unwrap();
        assert!(sender.try_put(message(ROOM as usize).into()));
        let put = tokio::spawn(async move { sender.put(message(3).into()).await });
        drop(read);
        put.await.unwrap();
    }

    #[tokio::test]
    async fn what_came_before_a_stream_was_opened_is_on_it_and_a_second_one_takes_its_place() {
        let push_buffer = PushBuffer::default();
        assert!(!push_buffer.put(message(1)) && !push_buffer.is_open());
        assert!(push_buffer.buffer(message(2)));
        assert!(!push_buffer.buffer(message(MAX_BUFFERED_BYTES)));
        let mut first = push_buffer.open();
        assert!(push_buffer.is_open() && push_buffer.put(message(3)));
        assert_eq!(first.next().await.unwrap().unwrap().text.len(), 2);
        let mut second = push_buffer.open();
        assert_eq!(first.next().await.unwrap().unwrap().text.len(), 3);
        assert!(first.next().await.is_none());
        assert!(push_buffer.put(message(4)));
        assert_eq!(second.next().await.unwrap().unwrap().text.len(), 4);
        push_buffer.close();
        assert!(second.next().await.is_none());
        assert!(!push_buffer.buffer(message(1)) && push_buffer.open().next().await.is_none());
    }
}
