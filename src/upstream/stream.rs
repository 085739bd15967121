//! An event stream from a server, passed frame by frame and never held: each message is recognised, the answer ends the
//! claim to an outcome, and a stream that breaks off before its answer ends with the reason.

use super::asks::{LONGEST_ID, Refusals, URL, allowed, check_result, refused, wants_too_much};
use super::failed::Failed;
use super::inbox::Inbox;
use super::outcome::Open;
use crate::domain::{ClientRequests, Ending, Era, MessageId, Method, Reason};
use crate::mcp::{AnswerKind, Said, SseFault, SseFrame, SseReader, heard, readdress};
use crate::transport::{Answered, Body, BodyError};
use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// What a subscription begins with.
const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";

/// One frame and what it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub frame: SseFrame,
    /// `None`: a comment or bare field, or an event that is no message.
    pub kind: Option<AnswerKind>,
    /// What its message says; nothing for an error.
    pub said: Said,
}

impl Piece {
    fn of(frame: SseFrame, kind: AnswerKind, said: Said) -> Self {
        Self {
            frame,
            kind: Some(kind),
            said,
        }
    }

    fn bare(frame: SseFrame) -> Self {
        Self {
            frame,
            kind: None,
            said: Said::default(),
        }
    }

    /// In place of what is not passed on: a comment, which still keeps the connection alive.
    fn withheld() -> Self {
        Self::bare(SseFrame {
            raw: Bytes::from_static(b":\n\n"),
            ..SseFrame::default()
        })
    }
}

/// What is expected of a stream.
pub(super) struct Expected {
    /// The request to be answered; `None` for the server's own stream of a legacy session.
    pub id: Option<MessageId>,
    pub era: Era,
    pub method: Method,
    /// What the server may ask of the client; it is told of what it may not.
    pub asks: ClientRequests,
    pub refusals: Option<Box<Refusals>>,
    pub max_event: usize,
    /// Between two frames; `None` where nothing is pending.
    pub idle: Option<Duration>,
}

/// A stream on its way to the client. Dropped before its end, the client has gone away and the server is hung up on.
pub struct Frames {
    source: Source,
    expected: Expected,
    answered: bool,
    /// A subscription has begun as it has to.
    acknowledged: bool,
    /// An event had an id: a legacy client may ask for the rest on another stream.
    resumable: bool,
    ended: bool,
    timer: Option<Pin<Box<Sleep>>>,
    revoked: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    outcome: Open,
}

/// Where frames come from.
enum Source {
    Body(Answered, SseReader),
    /// Messages, each of which becomes a frame.
    Link(Inbox),
}

/// What the source has for now.
enum Arrived {
    Frame(SseFrame),
    End,
    Failed(Failed),
    /// It broke off: what comes is over, but not refuted.
    Broken(Failed),
}

impl Source {
    /// `bytes` counts what arrived.
    fn poll(&mut self, context: &mut Context<'_>, bytes: &mut u64) -> Poll<Arrived> {
        let (body, reader) = match self {
            Source::Link(inbox) => {
                return inbox.poll(context).map(|item| match item {
                    Some(Ok(message)) => {
                        *bytes += message.len() as u64;
                        Arrived::Frame(event(message))
                    }
                    Some(Err(failed)) => Arrived::Failed(failed),
                    None => Arrived::End,
                });
            }
            Source::Body(body, reader) => (body, reader),
        };
        loop {
            match reader.frame() {
                Ok(Some(frame)) => return Poll::Ready(Arrived::Frame(frame)),
                Ok(None) => (),
                Err(fault) => {
                    let failed = Failed::broken("the server's stream cannot be followed").with_cause(&fault);
                    return Poll::Ready(Arrived::Failed(failed));
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
                    let failed = Failed::broken("the server broke off its stream").with_cause(&error);
                    return Poll::Ready(Arrived::Broken(failed));
                }
                None => {
                    let reader = std::mem::replace(reader, SseReader::new(0));
                    return Poll::Ready(match reader.finish() {
                        Ok(()) => Arrived::End,
                        Err(SseFault::Cut | SseFault::TooLarge(_)) => {
                            Arrived::Broken(Failed::broken("the server broke off its stream"))
                        }
                    });
                }
            }
        }
    }
}

impl Frames {
    pub(super) fn new(body: Answered, expected: Expected, outcome: Open) -> Self {
        let reader = SseReader::new(expected.max_event);
        Self::of(Source::Body(body, reader), expected, outcome)
    }

    pub(super) fn linked(inbox: Inbox, expected: Expected, outcome: Open) -> Self {
        Self::of(Source::Link(inbox), expected, outcome)
    }

    fn of(source: Source, expected: Expected, outcome: Open) -> Self {
        Self {
            source,
            acknowledged: expected.method != Method::Listen,
            expected,
            answered: false,
            resumable: false,
            ended: false,
            timer: None,
            revoked: None,
            outcome,
        }
    }

    /// Cut the stream when `token` is cancelled: its last item is then a failure for `GrantRevoked`, its ending `Revoked`.
    pub fn cut_by(&mut self, token: CancellationToken) {
        self.revoked = Some(Box::pin(token.cancelled_owned()));
    }

    /// The next frame. A failure is the last item.
    pub async fn next(&mut self) -> Option<Result<Piece, Failed>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The stream as the body of an answer. `screen` writes what the client is sent for a frame or for the failure at the
    /// end; `None` leaves it out.
    pub fn into_body(self, screen: impl FnMut(Result<Piece, Failed>) -> Option<Bytes> + Send + 'static) -> Body {
        UnsyncBoxBody::new(Screened {
            frames: self,
            screen: Box::new(screen),
        })
    }

    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Piece, Failed>>> {
        if self
            .revoked
            .as_mut()
            .is_some_and(|revoked| revoked.as_mut().poll(context).is_ready())
        {
            self.revoked = None;
            return Poll::Ready(self.revoke());
        }
        if let Some(refusals) = &mut self.expected.refusals {
            refusals.poll(context);
        }
        if self.ended {
            return Poll::Ready(None);
        }
        match self.source.poll(context, &mut self.outcome.bytes) {
            Poll::Ready(Arrived::Frame(frame)) => {
                self.timer = None;
                Poll::Ready(self.judge(frame))
            }
            Poll::Ready(Arrived::Failed(failed)) => Poll::Ready(self.fail(failed)),
            Poll::Ready(Arrived::Broken(failed)) => Poll::Ready(self.end(failed)),
            Poll::Ready(Arrived::End) => Poll::Ready(self.end_of_stream()),
            Poll::Pending if self.out_of_time(context) => {
                if let Source::Link(inbox) = &mut self.source {
                    inbox.give_up();
                }
                Poll::Ready(self.fail(Failed::late("the server stopped in the middle of its stream")))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn out_of_time(&mut self, context: &mut Context<'_>) -> bool {
        let Some(idle) = self.expected.idle else {
            return false;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
        timer.as_mut().poll(context).is_ready()
    }

    fn judge(&mut self, frame: SseFrame) -> Option<Result<Piece, Failed>> {
        self.resumable |= frame.id.is_some();
        let Some(data) = frame.data.clone().filter(|data| !data.is_empty()) else {
            return Some(Ok(Piece::bare(frame)));
        };
        // Clients read no event of another type.
        if frame
            .event
            .as_ref()
            .is_some_and(|event| event != "message" && !event.is_empty())
        {
            return Some(Ok(Piece::withheld()));
        }
        let Some(id) = self.expected.id.clone() else {
            return self.judge_unasked(frame, &data);
        };
        let (kind, said) = heard(&data, &id);
        match &kind {
            AnswerKind::ServerNotification if !self.acknowledged && said.method.as_deref() != Some(ACKNOWLEDGED) => self.fail(
                Failed::broken("the server's subscription does not begin with its acknowledgement"),
            ),
            AnswerKind::ServerNotification => {
                self.acknowledged = true;
                Some(Ok(self.note(frame, said)))
            }
            AnswerKind::ServerRequest if self.expected.era == Era::Legacy && !self.answered => {
                Some(Ok(self.ask(frame, &data, said)))
            }
            // The answer has been passed on; what comes after it is cut off without a word.
            _ if self.answered => {
                self.ended = true;
                None
            }
            AnswerKind::Result { is_error } => {
                let is_error = *is_error;
                match check_result(&said, self.expected.era, self.expected.method, self.expected.asks) {
                    Ok(()) => self.answer(Piece::of(frame, kind, said), is_error),
                    Err(failed) => self.fail(failed),
                }
            }
            AnswerKind::Error { .. } if wants_too_much(&said, self.expected.asks) => self.fail(refused(URL)),
            AnswerKind::Error { addressed: true, .. } => self.answer(Piece::of(frame, kind, said), true),
            AnswerKind::Error { addressed: false, .. } => match readdress(&data, &id) {
                Ok(data) => self.answer(Piece::of(event(data), kind, said), true),
                Err(fault) => self.fail(Failed::broken(fault.detail)),
            },
            AnswerKind::ServerRequest => self.fail(Failed::broken(
                "the server asks the client something, which this protocol version has not",
            )),
            AnswerKind::NotOurs => self.fail(Failed::broken("the server answered another request")),
            AnswerKind::Malformed(what) => {
                let failed = Failed::broken(format!("the server sent a message that cannot be read: {what}"));
                self.fail(failed)
            }
        }
    }

    /// On the server's own stream: everything that is a message, answers to earlier requests of a resumed stream too.
    fn judge_unasked(&mut self, frame: SseFrame, data: &[u8]) -> Option<Result<Piece, Failed>> {
        let nobody = MessageId::from_json(Bytes::from_static(b"null"));
        let (kind, said) = heard(data, &nobody);
        match kind {
            AnswerKind::Malformed(_) => self.fail(Failed::broken("the server sent a message that cannot be read")),
            AnswerKind::ServerRequest => Some(Ok(self.ask(frame, data, said))),
            AnswerKind::ServerNotification => Some(Ok(self.note(frame, said))),
            _ if wants_too_much(&said, self.expected.asks) => {
                self.outcome.asked(URL, false);
                Some(Ok(Piece::withheld()))
            }
            kind => Some(Ok(Piece::of(frame, kind, said))),
        }
    }

    /// A request to the client: passed on if it is allowed, else answered for it.
    fn ask(&mut self, frame: SseFrame, data: &[u8], said: Said) -> Piece {
        let short = said.id.is_some_and(|id| id.range().len() <= LONGEST_ID);
        let may = short && said.asks.iter().all(|ask| allowed(ask, self.expected.asks));
        said.asks.iter().for_each(|ask| self.outcome.asked(&ask.method, may));
        if may {
            return Piece::of(frame, AnswerKind::ServerRequest, said);
        }
        if let (Some(refusals), Some(id)) = (&mut self.expected.refusals, said.id) {
            refusals.send(id.text(data));
        }
        Piece::withheld()
    }

    /// A notification that asks for what is not allowed, as that of a task can, is not passed on.
    fn note(&mut self, frame: SseFrame, said: Said) -> Piece {
        let may = said.asks.iter().all(|ask| allowed(ask, self.expected.asks));
        said.asks.iter().for_each(|ask| self.outcome.asked(&ask.method, may));
        match may {
            true => Piece::of(frame, AnswerKind::ServerNotification, said),
            false => Piece::withheld(),
        }
    }

    fn answer(&mut self, piece: Piece, is_error: bool) -> Option<Result<Piece, Failed>> {
        self.answered = true;
        self.outcome.done(Some(is_error));
        Some(Ok(piece))
    }

    fn end_of_stream(&mut self) -> Option<Result<Piece, Failed>> {
        match self.answered || self.expected.id.is_none() {
            true => {
                self.ended = true;
                self.outcome.done(None);
                None
            }
            false => self.end(Failed::broken("the server ended its stream before it answered")),
        }
    }

    /// The server is gone. A legacy client that has seen event ids asks for the rest on another stream: an error would end
    /// what can still be answered.
    fn end(&mut self, failed: Failed) -> Option<Result<Piece, Failed>> {
        let resumable = self.resumable && self.expected.era == Era::Legacy;
        if self.answered || !resumable || self.expected.id.is_none() {
            return self.fail(failed);
        }
        self.ended = true;
        let detail = format!("{}; the client may resume it", failed.recorded());
        self.outcome.close(Ending::Unknown, Some(detail), None);
        None
    }

    /// Nobody waits for an answer any more, or somebody does and hears why there is none.
    fn fail(&mut self, failed: Failed) -> Option<Result<Piece, Failed>> {
        self.ended = true;
        let failed = Failed {
            status: self.outcome.status,
            ..failed
        };
        self.outcome.failed(&failed);
        (!self.answered && self.expected.id.is_some()).then_some(Err(failed))
    }

    fn revoke(&mut self) -> Option<Result<Piece, Failed>> {
        if self.ended {
            return None;
        }
        self.ended = true;
        let detail = "the authorisation for this stream is gone";
        self.outcome.close(Ending::Revoked, Some(detail.to_owned()), None);
        let failed = Failed::after_sending(Reason::GrantRevoked, detail);
        (!self.answered && self.expected.id.is_some()).then_some(Err(failed))
    }
}

/// A frame of our own with one message.
pub(super) fn event(data: Bytes) -> SseFrame {
    let mut raw = b"event: message".to_vec();
    for line in data.split(|byte| *byte == b'\n') {
        raw.extend_from_slice(b"\ndata: ");
        raw.extend_from_slice(line);
    }
    raw.extend_from_slice(b"\n\n");
    SseFrame {
        raw: raw.into(),
        event: Some(Bytes::from_static(b"message")),
        data: Some(data),
        id: None,
    }
}

/// Frames that have arrived are put together up to so many bytes: a server may send a million tiny ones.
const TOGETHER: usize = 16 * 1024;

struct Screened {
    frames: Frames,
    screen: Screen,
}

type Screen = Box<dyn FnMut(Result<Piece, Failed>) -> Option<Bytes> + Send>;

impl Screened {
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            match std::task::ready!(self.frames.poll_next(context)) {
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

impl http_body::Body for Screened {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(first) = std::task::ready!(self.poll_piece(context)) else {
            return Poll::Ready(None);
        };
        let mut together: Option<BytesMut> = None;
        // What is here already goes out with it; nothing is waited for.
        while together.as_ref().map_or(first.len(), BytesMut::len) < TOGETHER {
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
