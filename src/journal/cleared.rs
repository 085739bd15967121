//! A permit from its record to its outcome: `Cleared` once the record is durable, a `OutcomeTicket` once the call is sent.
//! Exactly one outcome is recorded, however the call ends.

use super::error::Sealed;
use super::queue::Waiter;
use super::shared::JournalShared;
use crate::domain::{Call, Outcome, OutcomeKind, RequestId};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

/// A permitted call whose record is on disk: the only thing that can be sent. Dropped unsent, it records `aborted`.
pub struct Cleared {
    call: Call,
    ticket: OutcomeTicket,
    seq: u64,
}

impl Cleared {
    pub(super) fn new(call: Call, shared: Arc<JournalShared>, seq: u64) -> Self {
        shared.queue.call_started();
        let ticket = OutcomeTicket {
            request: call.request,
            shared,
            sent: None,
            closed: false,
        };
        Self { call, ticket, seq }
    }

    /// The permitted call.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// Seq of the decision's record.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Splits off the call to be sent. From here on the server may have executed it.
    pub fn into_sending(self) -> (Call, OutcomeTicket) {
        let Self { call, mut ticket, .. } = self;
        ticket.sent = Some(Instant::now());
        (call, ticket)
    }

    /// Gives the call up unsent, because the recheck found its grant gone, and records `aborted`.
    pub fn abort(self, detail: impl Into<String>) -> Call {
        let Self { call, ticket, .. } = self;
        ticket.close(OutcomeData {
            detail: Some(detail.into()),
            ..OutcomeData::of(OutcomeKind::Aborted)
        });
        call
    }
}

/// How a call ended, for its outcome record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutcomeData {
    pub kind: OutcomeKind,
    pub detail: Option<String>,
    /// HTTP status of the server's answer.
    pub status: Option<u16>,
    /// Whether the answer was a result with `isError` or a JSON-RPC error; `None` if no answer was due or none came.
    pub tool_error: Option<bool>,
    /// Bytes of the answer.
    pub bytes: u64,
}

impl OutcomeData {
    /// An outcome of which only the ending is known.
    pub fn of(kind: OutcomeKind) -> Self {
        Self {
            kind,
            detail: None,
            status: None,
            tool_error: None,
            bytes: 0,
        }
    }
}

/// A sent call that still owes an outcome record. Dropped, it records `client_closed`.
pub struct OutcomeTicket {
    request: RequestId,
    shared: Arc<JournalShared>,
    sent: Option<Instant>,
    closed: bool,
}

impl OutcomeTicket {
    /// The id that links the outcome to its decision.
    pub fn request(&self) -> RequestId {
        self.request
    }

    /// Queues the outcome; does not wait until it is durable.
    pub fn close(mut self, data: OutcomeData) {
        self.record(data);
    }

    fn record(&mut self, data: OutcomeData) {
        self.closed = true;
        let OutcomeData {
            kind,
            detail,
            status,
            tool_error,
            bytes,
        } = data;
        let latency = self.sent.map_or(0, |sent| sent.elapsed().as_micros());
        self.shared.close(Outcome {
            at: (self.shared.clock)(),
            environment: self.shared.environment.clone(),
            request: self.request,
            kind,
            detail,
            status,
            tool_error,
            latency_us: u64::try_from(latency).unwrap_or(u64::MAX),
            bytes,
            recovered: false,
        });
        self.shared.ticket_closed();
    }
}

impl Drop for OutcomeTicket {
    fn drop(&mut self) {
        if !self.closed {
            self.record(OutcomeData::of(match self.sent {
                Some(_) => OutcomeKind::ClientClosed,
                None => OutcomeKind::Aborted,
            }));
        }
    }
}

/// Waits until a permit's record is durable. If the caller drops it earlier, the permit is closed as never sent.
pub(super) struct PendingPermit {
    waiter: Waiter,
    shared: Arc<JournalShared>,
    request: RequestId,
    told: bool,
}

impl PendingPermit {
    pub fn new(waiter: Waiter, shared: Arc<JournalShared>, request: RequestId) -> Self {
        Self {
            waiter,
            shared,
            request,
            told: false,
        }
    }
}

impl Future for PendingPermit {
    type Output = Result<u64, Sealed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let told = Pin::new(&mut self.waiter).poll(context);
        self.told = told.is_ready();
        told
    }
}

impl Drop for PendingPermit {
    fn drop(&mut self) {
        if !self.told && matches!(self.waiter.leave(), Some(Ok(_))) {
            self.shared
                .close_unsent(self.request, "the caller was gone before the call was sent");
        }
    }
}
