//! In-flight requests of combined sessions: maps (session, request id) to the server that got the request, so that
//! `notifications/cancelled` reaches only that server.

use crate::domain::{Digest, MessageId, ServerName};
use crate::transport::{Body, BodyError};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

/// The server of each in-flight request, keyed by session and request id.
#[derive(Default)]
pub struct InFlightRequests(Mutex<HashMap<(Digest, String), ServerName>>);

/// Keeps one request registered; removes it when dropped.
pub struct InFlightGuard {
    in_flight: Arc<InFlightRequests>,
    key: (Digest, String),
}

impl InFlightRequests {
    /// Registers a request; it stays registered until the returned [`InFlightGuard`] is dropped.
    pub fn begin(self: &Arc<Self>, session: Digest, id: &MessageId, server: &ServerName) -> InFlightGuard {
        let key = (session, id.as_json().to_owned());
        self.map().insert(key.clone(), server.clone());
        InFlightGuard {
            in_flight: self.clone(),
            key,
        }
    }

    /// The server that got the request with this id.
    pub fn server(&self, session: Digest, id: &MessageId) -> Option<ServerName> {
        self.map().get(&(session, id.as_json().to_owned())).cloned()
    }

    fn map(&self) -> MutexGuard<'_, HashMap<(Digest, String), ServerName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InFlightGuard {
    /// Keeps the request registered until the whole body of its answer has been sent.
    pub fn with(self, body: Body) -> Body {
        UnsyncBoxBody::new(InFlightBody { body, _flight: self })
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.in_flight.map().remove(&self.key);
    }
}

/// The body of an answer, with the registration of its request.
struct InFlightBody {
    body: Body,
    _flight: InFlightGuard,
}

impl http_body::Body for InFlightBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
