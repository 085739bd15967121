//! Records the outcome of one sent call exactly once, whatever happens to the call.

use super::client_requests::safe_text;
use super::error::ForwardError;
use crate::domain::OutcomeKind;
use crate::journal::{OutcomeData, OutcomeTicket};
use http::StatusCode;
use std::collections::BTreeMap;

/// Owns the outcome ticket until the outcome is known. If it is dropped first, the outcome is recorded as
/// `ClientClosed`. Without a ticket, as for Guardian's own requests, nothing is recorded.
pub(super) struct OutcomeGuard {
    ticket: Option<OutcomeTicket>,
    pub status: Option<StatusCode>,
    pub bytes: u64,
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

    /// The server answered in full. `tool_error`: whether the answer was an error; `None` if no answer was due.
    pub fn done(&mut self, tool_error: Option<bool>) {
        self.close(OutcomeKind::Done, None, tool_error);
    }

    /// The call failed.
    pub fn failed(&mut self, error: &ForwardError) {
        self.status = error.status.or(self.status);
        self.close(OutcomeKind::Failed, Some(error.recorded()), None);
    }

    /// Closes the ticket; only the first call has an effect.
    pub fn close(&mut self, kind: OutcomeKind, detail: Option<String>, tool_error: Option<bool>) {
        if let Some(ticket) = self.ticket.take() {
            let told = detail.into_iter().chain(self.asked.iter().map(|((method, allowed), count)| {
                let verdict = if *allowed { "asked" } else { "was refused" };
                format!("the server {verdict} `{method}` ({count})")
            }));
            let told: Vec<_> = told.collect();
            ticket.close(OutcomeData {
                kind,
                detail: (!told.is_empty()).then(|| told.join("; ")),
                status: self.status.map(|status| status.as_u16()),
                tool_error,
                bytes: self.bytes,
            });
        }
    }
}

impl Drop for OutcomeGuard {
    fn drop(&mut self) {
        self.close(OutcomeKind::ClientClosed, None, None);
    }
}
