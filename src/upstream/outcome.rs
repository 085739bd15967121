//! The claim of one sent call to an outcome: closed once, whatever happens to the call.

use super::failed::Failed;
use crate::domain::Ending;
use crate::journal::{Closing, Ticket};
use http::StatusCode;

/// Holds the ticket until the ending is known. Dropped before, the client has gone away.
/// Without a ticket it records nothing: for what Guardian asks on its own.
pub(super) struct Open {
    ticket: Option<Ticket>,
    pub status: Option<StatusCode>,
    pub bytes: u64,
}

impl Open {
    pub fn new(ticket: Option<Ticket>) -> Self {
        Self {
            ticket,
            status: None,
            bytes: 0,
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
            ticket.close(Closing {
                ending,
                detail,
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
