//! In-flight requests of combined sessions: maps (session, request id) to the server that got the request, so that
//! `notifications/cancelled` reaches only that server.

use crate::domain::{Digest, MessageId, ServerName};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.in_flight.map().remove(&self.key);
    }
}
