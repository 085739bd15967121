//! The shutdown signal of a listener: `drain` first, `abort` if that must be cut short. Operating-system signals are
//! handled in `app`.

use crate::domain::CutBy;
use std::future::Future;
use tokio_util::sync::CancellationToken;

/// The receiving side. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown {
    drain: CancellationToken,
    abort: CancellationToken,
}

/// The sending side.
#[derive(Debug, Clone)]
pub struct ShutdownHandle(Shutdown);

impl Shutdown {
    /// A handle and its receiving side.
    pub fn new() -> (ShutdownHandle, Shutdown) {
        let shutdown = Shutdown {
            drain: CancellationToken::new(),
            abort: CancellationToken::new(),
        };
        (ShutdownHandle(shutdown.clone()), shutdown)
    }

    /// Completes when no new work may be accepted.
    pub fn draining(&self) -> impl Future<Output = ()> + '_ {
        self.drain.cancelled()
    }

    /// Completes when running work must be dropped.
    pub fn aborted(&self) -> impl Future<Output = ()> + '_ {
        self.abort.cancelled()
    }

    /// Why running work is dropped, when it is.
    pub(super) fn cut_by(&self) -> CutBy {
        if self.abort.is_cancelled() {
            CutBy::Stop
        } else {
            CutBy::Drain
        }
    }

    /// A token that `abort` cancels too; a listener cancels it alone when its own drain times out.
    pub(super) fn cut(&self) -> CancellationToken {
        self.abort.child_token()
    }
}

impl ShutdownHandle {
    /// Accept no new connections and no new requests on existing ones; running requests may finish.
    pub fn drain(&self) {
        self.0.drain.cancel();
    }

    /// End everything now.
    pub fn abort(&self) {
        self.0.drain.cancel();
        self.0.abort.cancel();
    }
}
