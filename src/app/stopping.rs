//! The end of a process: the signals that ask for it, and how long it may take.

use anyhow::Result;
use std::time::Duration;

/// How long the end waits for the journal's disk. The README says so.
pub const STOP_WITHIN: Duration = Duration::from_secs(10);

/// The same once a signal says that there is no time.
pub const HURRIED_STOP: Duration = Duration::from_secs(1);

/// The process ended before the journal was written to its end.
#[derive(Debug, thiserror::Error)]
#[error(
    "stopped before the journal's disk had taken every record: calls whose outcome is missing are recorded as `unknown` by the next \
     start"
)]
pub struct JournalNotWritten;

/// SIGTERM and ctrl-c, one after the other.
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub fn new() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
