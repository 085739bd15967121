//! Records the outcome of one sent call exactly once, whatever happens to the call.

use super::client_requests::safe_text;
use super::error::ForwardError;
use crate::domain::{CutBy, Executed, OutcomeKind};
use crate::journal::{OutcomeData, OutcomeTicket};
use http::StatusCode;
use std::collections::BTreeMap;
use tokio_util::sync::CancellationToken;

/// Owns the outcome ticket until the outcome is known. If it is dropped first, the record says who ended the exchange.
/// Without a ticket, as for Guardian's own requests, nothing is recorded.
pub(super) struct OutcomeGuard {
    ticket: Option<OutcomeTicket>,
    pub status: Option<StatusCode>,
    pub bytes: u64,
    /// Whether the server acted upon the message, if that is known before the end: of an open stream it is.
    pub acted: Option<Executed>,
    /// Cancelled when the caller loses the authorisation for a stream.
    pub revoked: Option<CancellationToken>,
    /// The requests that the server made of the client, by method and whether they were allowed, with their counts.
    asked: BTreeMap<(String, bool), u32>,
}

/// The most different requests that one record lists.
const MOST_KINDS: usize = 8;

impl OutcomeGuard {
    pub fn new(ticket: Option<OutcomeTicket>) -> Self {
        Self {
            ticket,
            status: None,
            bytes: 0,
            acted: None,
            revoked: None,
            asked: BTreeMap::new(),
        }
    }

    /// Counts a request of the server to the client.
    pub fn asked(&mut self, method: &str, allowed: bool) {
        let kind = (safe_text(method), allowed);
        if self.asked.len() < MOST_KINDS || self.asked.contains_key(&kind) {
            *self.asked.entry(kind).or_default() += 1;
        }
    }

    /// The server answered in full.
    pub fn done(&mut self) {
        self.close(OutcomeData::of(OutcomeKind::Done));
    }

    /// The call failed.
    pub fn failed(&mut self, error: &ForwardError) {
        self.status = error.status.or(self.status);
        self.close(OutcomeData {
            executed: error.executed,
            by: error.by,
            detail: Some(error.recorded()),
            ..OutcomeData::of(error.kind)
        });
    }

    /// The caller's authorisation for the stream was revoked.
    pub fn revoke(&mut self) {
        self.close(OutcomeData::cut(CutBy::Revoked));
    }

    /// Closes the ticket; only the first call has an effect. Status and bytes are those of this guard.
    pub fn close(&mut self, outcome: OutcomeData) {
        if let Some(ticket) = self.ticket.take() {
            let asked = self.asked.iter().map(|((method, allowed), count)| {
                let verdict = if *allowed { "asked" } else { "was refused" };
                format!("the server {verdict} `{method}` ({count})")
            });
            let told: Vec<_> = outcome.detail.into_iter().chain(asked).collect();
            ticket.close(OutcomeData {
                executed: match (outcome.kind, self.acted) {
                    (OutcomeKind::NotSent, _) | (_, None) => outcome.executed,
                    (_, Some(acted)) => acted,
                },
                detail: (!told.is_empty()).then(|| told.join("; ")),
                status: self.status.map(|status| status.as_u16()),
                bytes: self.bytes,
                ..outcome
            });
        }
    }
}

impl Drop for OutcomeGuard {
    fn drop(&mut self) {
        let Some(ticket) = &self.ticket else { return };
        let is_revoked = self.revoked.as_ref().is_some_and(CancellationToken::is_cancelled);
        let outcome = if is_revoked {
            OutcomeData::cut(CutBy::Revoked)
        } else {
            ticket.dropped()
        };
        self.close(outcome);
    }
}
