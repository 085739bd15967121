//! Response bodies, and reading a request body whole under a size and time limit. Nothing here looks at the content.

use super::connections::InFlight;
use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// The body of every response that Guardian sends.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Why a response body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the answer ran longer than its limit")]
    TooLong,
    #[error("the answer broke off")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A body that holds `bytes`.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body without content.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Why a request body could not be read completely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyProblem {
    #[error("the body is larger than the limit")]
    TooLarge,
    #[error("the body did not arrive in time")]
    TooSlow,
    #[error("the body broke off")]
    Broken,
    #[error("fields after the body are not accepted")]
    Trailers,
}

/// Reads the whole body within `max_bytes` and `timeout`. A body that arrives in one frame, as almost all do, is not
/// copied.
pub async fn read_body<B>(body: B, max_bytes: usize, timeout: Duration) -> Result<Bytes, BodyProblem>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    if body.size_hint().lower() > max_bytes as u64 {
        return Err(BodyProblem::TooLarge);
    }
    let whole = pin!(collect(body, max_bytes));
    tokio::time::timeout(timeout, whole)
        .await
        .unwrap_or(Err(BodyProblem::TooSlow))
}

async fn collect<B>(mut body: B, max_bytes: usize) -> Result<Bytes, BodyProblem>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let Some(first) = next_data(&mut body, max_bytes).await? else {
        return Ok(Bytes::new());
    };
    if body.is_end_stream() {
        return Ok(first);
    }
    let Some(second) = next_data(&mut body, max_bytes - first.len()).await? else {
        return Ok(first);
    };
    let expected = body.size_hint().exact().unwrap_or(0).min(max_bytes as u64) as usize;
    let mut whole = BytesMut::with_capacity(first.len() + second.len() + expected);
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&second);
    while let Some(next) = next_data(&mut body, max_bytes - whole.len()).await? {
        whole.extend_from_slice(&next);
    }
    Ok(whole.freeze())
}

async fn next_data<B>(body: &mut B, room: usize) -> Result<Option<Bytes>, BodyProblem>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let Some(frame) = body.frame().await else { return Ok(None) };
    let bytes = frame
        .map_err(|_| BodyProblem::Broken)?
        .into_data()
        .map_err(|_| BodyProblem::Trailers)?;
    if bytes.len() > room {
        Err(BodyProblem::TooLarge)
    } else {
        Ok(Some(bytes))
    }
}

/// A response body with a deadline. The timer is created at the first `Poll::Pending`, because most bodies never wait.
pub(super) struct DeadlineBody {
    inner: Body,
    deadline: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
    /// Counts the response as in flight until this body is dropped.
    _in_flight: Option<InFlight>,
}

impl DeadlineBody {
    pub(super) fn new(inner: Body, deadline: Instant, in_flight: Option<InFlight>) -> Self {
        Self {
            inner,
            deadline,
            sleep: None,
            _in_flight: in_flight,
        }
    }
}

impl http_body::Body for DeadlineBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        // Once the timer exists, a peer that keeps reading slowly is held to the deadline as well.
        if this.sleep.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Some(Err(BodyError::TooLong)));
        }
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        if this.sleep.is_none() {
            let mut sleep = Box::pin(tokio::time::sleep_until(this.deadline));
            if sleep.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Some(Err(BodyError::TooLong)));
            }
            this.sleep = Some(sleep);
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
