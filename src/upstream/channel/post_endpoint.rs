//! The POST side of a legacy HTTP+SSE channel. The answers come on the event stream.

use crate::domain::Reason;
use crate::upstream::forward_error::ForwardError;
use crate::upstream::http::Endpoint;
use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The POST side of one channel.
pub struct PostEndpoint {
    endpoint: Arc<Endpoint>,
    to: Uri,
    tasks: TaskTracker,
    end: CancellationToken,
    /// Limits the replies that are being posted at once.
    room: Arc<Semaphore>,
}

/// The most replies in flight at once.
const MOST_REPLIES: usize = 16;

impl PostEndpoint {
    pub fn new(endpoint: Arc<Endpoint>, to: Uri, tasks: TaskTracker, end: CancellationToken) -> Self {
        Self {
            endpoint,
            to,
            tasks,
            end,
            room: Arc::new(Semaphore::new(MOST_REPLIES)),
        }
    }

    /// Posts a message and waits until the server has accepted it.
    pub async fn post(&self, body: Bytes) -> Result<(), ForwardError> {
        post(&self.endpoint, &self.to, &body).await
    }

    /// Posts a request in the background; `on_failure` hears if the server does not accept it. Its answer comes on the
    /// event stream, possibly before the POST is acknowledged.
    pub fn post_request(&self, body: Bytes, on_failure: impl FnOnce(ForwardError) + Send + 'static) {
        let (endpoint, to, end) = (self.endpoint.clone(), self.to.clone(), self.end.clone());
        self.tasks.spawn(async move {
            let Some(posted) = end.run_until_cancelled(post(&endpoint, &to, &body)).await else {
                return;
            };
            match posted {
                // Some servers acknowledge the POST only after they have answered on the stream, so a time-out here is
                // no failure.
                Ok(()) => (),
                Err(error) if error.reason == Reason::UpstreamTimeout => (),
                Err(error) => on_failure(error),
            }
        });
    }

    /// Posts a reply in the background, or drops it if `MOST_REPLIES` are in flight: the caller reads the stream and
    /// must not wait.
    pub fn post_if_there_is_room(&self, body: Bytes) {
        let Ok(place) = self.room.clone().try_acquire_owned() else {
            return;
        };
        let (endpoint, to, end) = (self.endpoint.clone(), self.to.clone(), self.end.clone());
        self.tasks.spawn(async move {
            let posted = end.run_until_cancelled(post(&endpoint, &to, &body)).await;
            if let Some(Err(error)) = posted {
                tracing::debug!(%error, "the server did not take a reply");
            }
            drop(place);
        });
    }
}

async fn post(endpoint: &Endpoint, to: &Uri, body: &Bytes) -> Result<(), ForwardError> {
    let none = HeaderMap::new();
    let response = endpoint.exchange_at(to, &endpoint.client, &Method::POST, &none, body).await?;
    match response.status() {
        status if status.is_success() => Ok(()),
        status => Err(
            ForwardError::bad_response(format!("the server answered with HTTP status {}", status.as_u16())).with_status(status),
        ),
    }
}
