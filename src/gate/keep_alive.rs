//! Keeps an SSE stream alive: sends a comment line whenever the stream has been silent for `keep_alive`, so that no proxy on
//! the way closes it as idle. Clients ignore SSE comments, and no limit counts them.

use crate::transport::{Body, BodyError};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Sleep;

/// An SSE body made of whole events, with keep-alive comments between them. Every frame of `body` must end at an event
/// boundary.
pub struct KeepAliveBody {
    body: Body,
    every: Duration,
    /// The keep-alive timer; `None` until the inner body is pending.
    silence: Option<Pin<Box<Sleep>>>,
}

const COMMENT: Bytes = Bytes::from_static(b":\n\n");

impl KeepAliveBody {
    pub fn new(body: Body, every: Duration) -> Self {
        Self {
            body,
            every,
            silence: None,
        }
    }

    pub fn boxed(self) -> Body {
        UnsyncBoxBody::new(self)
    }
}

impl http_body::Body for KeepAliveBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.silence = None;
            return Poll::Ready(frame);
        }
        let every = self.every;
        let silence = self.silence.get_or_insert_with(|| Box::pin(tokio::time::sleep(every)));
        std::task::ready!(silence.as_mut().poll(context));
        self.silence = None;
        Poll::Ready(Some(Ok(Frame::data(COMMENT))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    struct TestBody(mpsc::Receiver<Bytes>);

    impl http_body::Body for TestBody {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            self.0
                .poll_recv(context)
                .map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
        }
    }

    async fn next(body: &mut Body) -> Option<Bytes> {
        Some(body.frame().await?.unwrap().into_data().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_gets_a_comment_and_a_busy_one_none() {
        let (say, said) = mpsc::channel(1);
        let every = Duration::from_secs(15);
        let mut body = KeepAliveBody::new(UnsyncBoxBody::new(TestBody(said)), every).boxed();
        let begun = Instant::now();
        assert_eq!(next(&mut body).await, Some(COMMENT));
        assert_eq!(next(&mut body).await, Some(COMMENT));
        assert_eq!(begun.elapsed().as_secs(), 30);
        let event = Bytes::from_static(b"data: {}\n\n");
        let told = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(10));
            for _ in 0..4 {
                ticks.tick().await;
                say.send(Bytes::from_static(b"data: {}\n\n")).await.unwrap();
            }
            say
        });
        for _ in 0..4 {
            assert_eq!(
                next(&mut body).await.as_ref(),
                Some(&event),
                "nothing between events ten seconds apart"
            );
        }
        let say = told.await.unwrap();
        let silent = Instant::now();
        assert_eq!(next(&mut body).await, Some(COMMENT));
        assert_eq!(silent.elapsed(), every, "counted from the last event");
        drop(say);
        assert_eq!(next(&mut body).await, None);
    }
}
