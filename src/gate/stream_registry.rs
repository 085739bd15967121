//! The registry of open streams. `Gate::recheck_streams` calls [`StreamRegistry::recheck`] once a second, which cuts the streams
//! whose grant, credential or membership has ended.

use crate::domain::{Principal, Timestamp};
use crate::grants::{GrantSnapshot, Grants};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

/// All open streams.
#[derive(Default)]
pub struct StreamRegistry {
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, (GrantSnapshot, CancellationToken)>>,
}

/// The registration of one stream; dropped together with its body.
pub struct Registration {
    streams: Arc<StreamRegistry>,
    number: u64,
}

impl StreamRegistry {
    /// Registers a stream. The returned token is cancelled when its authorisation ends.
    pub fn register(self: &Arc<Self>, ticket: GrantSnapshot) -> (Registration, CancellationToken) {
        let (number, token) = (self.next.fetch_add(1, Ordering::Relaxed), CancellationToken::new());
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, (ticket, token.clone()));
        (
            Registration {
                streams: self.clone(),
                number,
            },
            token,
        )
    }

    pub fn is_empty(&self) -> bool {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// The number of open streams of one caller.
    pub fn of(&self, principal: &Principal) -> usize {
        let same = |other: &Principal| other.issuer == principal.issuer && other.subject == principal.subject;
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.values().filter(|(ticket, _)| same(&ticket.principal)).count()
    }

    /// Cuts the streams whose authorisation has ended, or all of them if the grants are not `fresh`; returns how many. The newest
    /// come first: a merged stream is older than the streams in it, and these must know why they end.
    pub fn recheck(&self, grants: &Grants, fresh: bool, now: Timestamp) -> usize {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = open.values().rev().filter(|(ticket, _)| {
            !fresh || ticket.principal.expires_at.is_some_and(|end| end <= now) || grants.revalidate(ticket, now).is_err()
        });
        gone.map(|(_, token)| token.cancel()).count()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.streams
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.number);
    }
}
