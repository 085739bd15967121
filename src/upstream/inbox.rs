//! Bounded queues between a channel to a server and the receivers of its messages. A queue holds one message of any
//! size or many small ones; the sender waits for room, or is told that there is none.

use super::failed::Failed;
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
const MOST_PARKED: usize = 64;
const MOST_PARKED_BYTES: usize = 256 * 1024;

type Item = (Result<Bytes, Failed>, Option<OwnedSemaphorePermit>);

/// The receiving end.
pub(super) struct Inbox {
    items: mpsc::UnboundedReceiver<Item>,
    /// A message that was received and put back.
    first: Option<Bytes>,
    /// Called when the receiver stops waiting, to cancel the request at the server.
    give_up: Option<Box<dyn FnOnce() + Send>>,
}

/// The sending end.
#[derive(Clone)]
pub(super) struct Outlet {
    items: mpsc::UnboundedSender<Item>,
    room: Arc<Semaphore>,
}

/// A new queue.
pub(super) fn inbox() -> (Outlet, Inbox) {
    let (items, received) = mpsc::unbounded_channel();
    let outlet = Outlet {
        items,
        room: Arc::new(Semaphore::new(ROOM as usize)),
    };
    let inbox = Inbox {
        items: received,
        first: None,
        give_up: None,
    };
    (outlet, inbox)
}

impl Inbox {
    /// The next message; `None` when there are no more. A failure is the last item.
    pub async fn next(&mut self) -> Option<Result<Bytes, Failed>> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failed>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        self.items.poll_recv(context).map(|item| item.map(|(message, _)| message))
    }

    /// Puts back a message, so that `next` returns it again.
    pub fn give_back(&mut self, message: Bytes) {
        self.first = Some(message);
    }

    /// Sets what `give_up` calls.
    pub fn on_giving_up(&mut self, tell: impl FnOnce() + Send + 'static) {
        self.give_up = Some(Box::new(tell));
    }

    /// The receiver stops waiting for the answer.
    pub fn give_up(&mut self) {
        if let Some(tell) = self.give_up.take() {
            tell();
        }
    }
}

impl Outlet {
    /// Queues a message, waiting for room.
    pub async fn put(&self, message: Bytes) {
        if let Ok(permit) = self.room.clone().acquire_many_owned(size(&message)).await {
            let _ = self.items.send((Ok(message), Some(permit)));
        }
    }

    /// Queues a message if there is room; returns whether it was queued.
    pub fn try_put(&self, message: Bytes) -> bool {
        match self.room.clone().try_acquire_many_owned(size(&message)) {
            Ok(permit) => self.items.send((Ok(message), Some(permit))).is_ok(),
            Err(_) => false,
        }
    }

    /// Queues the last item, which needs no room.
    pub fn fail(&self, failed: Failed) {
        let _ = self.items.send((Err(failed), None));
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
pub(super) struct Mailbox(Mutex<Mail>);

#[derive(Default)]
struct Mail {
    open: Option<Outlet>,
    parked: VecDeque<Bytes>,
    parked_bytes: usize,
    closed: bool,
}

impl Mailbox {
    /// Opens the stream. One that was open before ends, because a client that opens another has lost the first.
    pub fn open(&self) -> Inbox {
        let (outlet, inbox) = inbox();
        let mut mail = self.mail();
        for message in mail.parked.drain(..) {
            // Always fits: the limit of the buffer is not larger than that of the queue.
            outlet.try_put(message);
        }
        mail.parked_bytes = 0;
        mail.open = (!mail.closed).then_some(outlet);
        inbox
    }

    /// Whether a client reads the stream.
    pub fn is_open(&self) -> bool {
        self.mail().open.as_ref().is_some_and(|open| !open.is_closed())
    }

    /// Sends on the open stream; `false` if none is open or its queue is full.
    pub fn put(&self, message: Bytes) -> bool {
        self.mail().open.as_ref().is_some_and(|open| open.try_put(message))
    }

    /// Buffers a message for the stream that will be opened; `false` if the buffer is full or the session has ended.
    pub fn park(&self, message: Bytes) -> bool {
        let mut mail = self.mail();
        let bytes = mail.parked_bytes + message.len() + OVERHEAD as usize;
        if mail.closed || mail.parked.len() >= MOST_PARKED || bytes > MOST_PARKED_BYTES {
            return false;
        }
        mail.parked_bytes = bytes;
        mail.parked.push_back(message);
        true
    }

    /// Ends the stream and accepts no more messages.
    pub fn close(&self) {
        *self.mail() = Mail {
            closed: true,
            ..Mail::default()
        };
    }

    fn mail(&self) -> MutexGuard<'_, Mail> {
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
        let (outlet, mut inbox) = inbox();
        assert!(outlet.try_put(message(100 * 1024 * 1024)));
        assert!(!outlet.try_put(message(1)));
        assert_eq!(inbox.next().await.unwrap().unwrap().len(), 100 * 1024 * 1024);
        let taken = (0..10_000).take_while(|_| outlet.try_put(message(1))).count();
        assert_eq!(taken, (ROOM / (OVERHEAD + 1)) as usize);
        outlet.fail(Failed::broken("over"));
        for _ in 0..taken {
            assert!(inbox.next().await.unwrap().is_ok());
        }
        assert!(inbox.next().await.unwrap().is_err());
        drop(outlet);
        assert!(inbox.next().await.is_none());
    }

    #[tokio::test]
    async fn who_waits_for_room_goes_on_when_there_is_some_or_nobody_reads() {
        let (outlet, mut read) = inbox();
        assert!(outlet.try_put(message(ROOM as usize)));
        let put = tokio::spawn({
            let outlet = outlet.clone();
            async move { outlet.put(message(2)).await }
        });
        assert_eq!(read.next().await.unwrap().unwrap().len(), ROOM as usize);
        assert_eq!(read.next().await.unwrap().unwrap().len(), 2);
        put.await.unwrap();
        assert!(outlet.try_put(message(ROOM as usize)));
        let put = tokio::spawn(async move { outlet.put(message(3)).await });
        drop(read);
        put.await.unwrap();
    }

    #[tokio::test]
    async fn what_came_before_a_stream_was_opened_is_on_it_and_a_second_one_takes_its_place() {
        let mailbox = Mailbox::default();
        assert!(!mailbox.put(message(1)) && !mailbox.is_open());
        assert!(mailbox.park(message(2)));
        assert!(!mailbox.park(message(MOST_PARKED_BYTES)));
        let mut first = mailbox.open();
        assert!(mailbox.is_open() && mailbox.put(message(3)));
        assert_eq!(first.next().await.unwrap().unwrap().len(), 2);
        let mut second = mailbox.open();
        assert_eq!(first.next().await.unwrap().unwrap().len(), 3);
        assert!(first.next().await.is_none());
        assert!(mailbox.put(message(4)));
        assert_eq!(second.next().await.unwrap().unwrap().len(), 4);
        mailbox.close();
        assert!(second.next().await.is_none());
        assert!(!mailbox.park(message(1)) && mailbox.open().next().await.is_none());
    }
}
