//! Requests that are under way for servers: which of them a client takes back is known by their ids.

use crate::domain::{Digest, MessageId, ServerName};
use crate::transport::{Body, BodyError};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

/// Requests under way and the servers they were passed on to, by session and id.
#[derive(Default)]
pub struct Flights(Mutex<HashMap<(Digest, String), ServerName>>);

/// A request under way, until its answer is out.
pub struct Flight {
    flights: Arc<Flights>,
    key: (Digest, String),
}

impl Flights {
    pub fn begin(self: &Arc<Self>, session: Digest, id: &MessageId, server: &ServerName) -> Flight {
        let key = (session, id.as_json().to_owned());
        self.map().insert(key.clone(), server.clone());
        Flight {
            flights: self.clone(),
            key,
        }
    }

    /// Whose request this is.
    pub fn server(&self, session: Digest, id: &MessageId) -> Option<ServerName> {
        self.map().get(&(session, id.as_json().to_owned())).cloned()
    }

    fn map(&self) -> MutexGuard<'_, HashMap<(Digest, String), ServerName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    /// The body of an answer, with which the request ends.
    pub fn with(self, body: Body) -> Body {
        UnsyncBoxBody::new(Flying { body, _flight: self })
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.map().remove(&self.key);
    }
}

/// The body of an answer to a request that is under way until all of it is out.
struct Flying {
    body: Body,
    _flight: Flight,
}

impl http_body::Body for Flying {
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
