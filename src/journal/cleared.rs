//! A permit from its record to its outcome: `Cleared` once the record is durable, a `OutcomeTicket` once the call is sent.
//! Exactly one outcome is recorded, however the call ends. A ticket that is dropped asks the exchange with the client who ended
//! it: the client, or Guardian.

use super::error::Sealed;
use super::queue::Waiter;
use super::shared::JournalShared;
use crate::domain::{Call, CutBy, Executed, Outcome, OutcomeKind, RequestId};
use crate::transport::ExchangeEnd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

/// A permitted call whose record is on disk: the only thing that can be sent. Dropped unsent, it records `not_sent`.
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
            exchange: ExchangeEnd::default(),
        };
        Self { call, ticket, seq }
    }

    /// The call belongs to this exchange with a client: the exchange knows why it ended.
    pub fn in_exchange(mut self, exchange: ExchangeEnd) -> Self {
        self.ticket.exchange = exchange;
        self
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

    /// Gives the call up unsent, because the recheck found its grant gone, and records `not_sent`.
    pub fn abort(self, detail: impl Into<String>) -> Call {
        let Self { call, ticket, .. } = self;
        ticket.close(OutcomeData {
            detail: Some(detail.into()),
            ..OutcomeData::of(OutcomeKind::NotSent)
        });
        call
    }
}

/// How a call ended, for its outcome record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutcomeData {
    pub kind: OutcomeKind,
    pub executed: Executed,
    /// Why Guardian ended the call, if it did.
    pub by: Option<CutBy>,
    pub detail: Option<String>,
    /// HTTP status of the server's answer.
    pub status: Option<u16>,
    /// Bytes of the answer.
    pub bytes: u64,
}

impl OutcomeData {
    /// An outcome of which only the kind is known.
    pub fn of(kind: OutcomeKind) -> Self {
        Self {
            kind,
            executed: kind.executed(),
            by: None,
            detail: None,
            status: None,
            bytes: 0,
        }
    }

    /// Guardian ended the call.
    pub fn cut(by: CutBy) -> Self {
        Self {
            by: Some(by),
            detail: Some(by.detail().to_owned()),
            ..Self::of(OutcomeKind::Cut)
        }
    }
}

/// A call that still owes an outcome record. Dropped, it records who ended the exchange.
pub struct OutcomeTicket {
    request: RequestId,
    shared: Arc<JournalShared>,
    sent: Option<Instant>,
    closed: bool,
    exchange: ExchangeEnd,
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

    /// The outcome if the exchange ends now, before its answer.
    pub fn dropped(&self) -> OutcomeData {
        match (self.sent, self.exchange.cut_by(Instant::now())) {
            (Some(_), None) => OutcomeData::of(OutcomeKind::ClientClosed),
            (Some(_), Some(by)) => OutcomeData::cut(by),
            (None, None) => OutcomeData {
                detail: Some("the client was gone before the call was sent".to_owned()),
                ..OutcomeData::of(OutcomeKind::NotSent)
            },
            (None, Some(by)) => OutcomeData {
                kind: OutcomeKind::NotSent,
                executed: Executed::No,
                ..OutcomeData::cut(by)
            },
        }
    }

    fn record(&mut self, data: OutcomeData) {
        self.closed = true;
        let OutcomeData {
            kind,
            executed,
            by,
            detail,
            status,
            bytes,
        } = data;
        if matches!(by, Some(CutBy::Drain | CutBy::Stop)) {
            self.shared.cut_by_stop.fetch_add(1, Ordering::Relaxed);
        }
        let latency = self.sent.map_or(0, |sent| sent.elapsed().as_micros());
        self.shared.close(Outcome {
            at: (self.shared.clock)(),
            environment: self.shared.environment.clone(),
            request: self.request,
            kind,
            executed,
            by,
            detail,
            status,
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
            self.record(self.dropped());
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
                .close_unsent(self.request, "the exchange ended before the call was sent");
        }
    }
}
