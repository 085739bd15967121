//! How a listener is told to end: first `drain`, then, if somebody is in a hurry, `abort`. Reading signals is the app's business.

use std::future::Future;
use tokio_util::sync::CancellationToken;

/// The side that waits. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Stop {
    drain: CancellationToken,
    abort: CancellationToken,
}

/// The side that tells.
#[derive(Debug, Clone)]
pub struct StopHandle(Stop);

impl Stop {
    pub fn new() -> (StopHandle, Stop) {
        let stop = Stop {
            drain: CancellationToken::new(),
            abort: CancellationToken::new(),
        };
        (StopHandle(stop.clone()), stop)
    }

    /// Ends when no new work is to be taken.
    pub fn draining(&self) -> impl Future<Output = ()> + '_ {
        self.drain.cancelled()
    }

    /// Ends when running work is to be dropped.
    pub fn aborted(&self) -> impl Future<Output = ()> + '_ {
        self.abort.cancelled()
    }

    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// A further abort that this one implies, for a listener whose drain ran out of time.
    pub(super) fn cut(&self) -> CancellationToken {
        self.abort.child_token()
    }
}

impl StopHandle {
    /// No new connection, no new request on an old one; what runs may finish.
    pub fn drain(&self) {
        self.0.drain.cancel();
    }

    /// Everything ends now.
    pub fn abort(&self) {
        self.0.drain.cancel();
        self.0.abort.cancel();
    }
}
