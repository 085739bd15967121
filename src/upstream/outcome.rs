//! The claim of one sent call to an outcome: closed once, whatever happens to the call.

use super::asks::shown;
use super::failed::Failed;
use crate::domain::Ending;
use crate::journal::{Closing, Ticket};
use http::StatusCode;
use std::collections::BTreeMap;

/// Holds the ticket until the ending is known. Dropped before, the client has gone away.
/// Without a ticket it records nothing: for what Guardian asks on its own.
pub(super) struct Open {
    ticket: Option<Ticket>,
    pub status: Option<StatusCode>,
    pub bytes: u64,
    /// What the server asked of the client, and whether it might.
    asked: BTreeMap<(String, bool), u32>,
}

/// Kinds of requests that an outcome tells of.
const MOST_KINDS: usize = 8;

impl Open {
    pub fn new(ticket: Option<Ticket>) -> Self {
        Self {
            ticket,
            status: None,
            bytes: 0,
            asked: BTreeMap::new(),
        }
    }

    /// The server asked the client something.
    pub fn asked(&mut self, method: &str, allowed: bool) {
        let kind = (shown(method), allowed);
        if self.asked.len() < MOST_KINDS || self.asked.contains_key(&kind) {
            *self.asked.entry(kind).or_default() += 1;
        }
    }

    /// The server answered in full. `tool_error`: whether it answered with an error, where there was something to answer.
    pub fn done(&mut self, tool_error: Option<bool>) {
        self.close(Ending::Done, None, tool_error);
    }

    pub fn failed(&mut self, failed: &Failed) {
        self.status = failed.status.or(self.status);
        self.close(Ending::Failed, Some(failed.recorded()), None);
    }

    pub fn close(&mut self, ending: Ending, detail: Option<String>, tool_error: Option<bool>) {
        if let Some(ticket) = self.ticket.take() {
            let told = detail.into_iter().chain(self.asked.iter().map(|((method, allowed), count)| {
                let verdict = if *allowed { "asked" } else { "was refused" };
                format!("the server {verdict} `{method}` ({count})")
            }));
            let told: Vec<_> = told.collect();
            ticket.close(Closing {
                ending,
                detail: (!told.is_empty()).then(|| told.join("; ")),
                status: self.status.map(|status| status.as_u16()),
                tool_error,
                bytes: self.bytes,
            });
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.close(Ending::ClientClosed, None, None);
    }
}
