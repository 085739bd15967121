//! A body that holds something until its last byte is sent: a concurrency slot, a registration, a gauge.

use super::{Body, BodyError};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A body that keeps a value alive until its last byte is sent.
pub struct GuardedBody<T> {
    body: Body,
    _with: T,
}

impl<T: Send + Unpin + 'static> GuardedBody<T> {
    pub fn new(body: Body, with: T) -> Self {
        Self { body, _with: with }
    }

    pub fn boxed(self) -> Body {
        UnsyncBoxBody::new(self)
    }
}

impl<T: Unpin> http_body::Body for GuardedBody<T> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
