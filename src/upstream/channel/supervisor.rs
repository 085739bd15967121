//! The state of one server that outlives its channels: slots for open channels, the back-off after failures, the token
//! that ends everything.

use super::mux::MuxChannel;
use crate::domain::{Backoff, Reason, ServerName};
use crate::upstream::error::ForwardError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The state of a server that outlives its channels.
#[derive(Clone)]
pub struct Supervisor {
    pub server: ServerName,
    pub tasks: TaskTracker,
    stop: CancellationToken,
    /// Limits the open channels.
    slots: Arc<Semaphore>,
    restart_delay: Arc<Mutex<RestartDelay>>,
}

/// Until when a failed server is not started again, and why it failed.
struct RestartDelay {
    backoff: Backoff,
    until: Option<Instant>,
    why: Option<ForwardError>,
}

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The longest delay that a caller waits out; with more to wait, the call fails at once.
const MAX_BACKOFF_WAIT: Duration = Duration::from_secs(2);
/// A channel that lasted this long resets the delay.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// How long a new session waits for an old channel to end, when all slots are taken.
const SLOT_WAIT: Duration = Duration::from_secs(6);

impl Supervisor {
    pub fn new(server: ServerName, channels: usize) -> Self {
        Self {
            server,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            slots: Arc::new(Semaphore::new(channels.min(Semaphore::MAX_PERMITS))),
            restart_delay: Arc::default(),
        }
    }

    /// A slot for one more channel, after the delay and once one is free.
    pub async fn lease(&self) -> Result<ChannelLease, ForwardError> {
        let wait = self.restart_delay().wait(Instant::now());
        if wait > MAX_BACKOFF_WAIT {
            return Err(self.keeps_failing(wait));
        }
        sleep(wait).await;
        let slot = timeout(SLOT_WAIT, self.slots.clone().acquire_owned()).await;
        let Ok(Ok(slot)) = slot else {
            return Err(too_many_sessions());
        };
        if self.stop.is_cancelled() {
            return Err(ForwardError::before_sending(
                Reason::UpstreamUnreachable,
                "Guardian is stopping",
            ));
        }
        Ok(ChannelLease {
            supervisor: self.clone(),
            since: Instant::now(),
            _slot: slot,
        })
    }

    /// Ends all channels and opens no more.
    pub fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
    }

    pub fn failed(&self, why: &ForwardError) {
        self.restart_delay().failed(Instant::now(), why);
    }

    /// The last failure again, with when the next attempt is due.
    fn keeps_failing(&self, wait: Duration) -> ForwardError {
        let why = self.restart_delay().why.clone();
        let said = why.as_ref().map_or("it keeps ending", |why| &why.detail);
        let detail = format!("{said}; it is tried again in {} s", wait.as_secs().max(1));
        let unsent = ForwardError::before_sending(Reason::UpstreamUnreachable, detail);
        match why {
            Some(ForwardError { cause, last_lines, .. }) => ForwardError {
                cause,
                last_lines,
                ..unsent
            },
            None => unsent,
        }
    }

    fn restart_delay(&self) -> MutexGuard<'_, RestartDelay> {
        self.restart_delay.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lease of an open channel: its slot, and the report of how it ended.
pub struct ChannelLease {
    pub supervisor: Supervisor,
    since: Instant,
    _slot: OwnedSemaphorePermit,
}

impl ChannelLease {
    /// A token that ends this channel; `stop` ends all of them.
    pub fn end(&self) -> CancellationToken {
        self.supervisor.stop.child_token()
    }

    /// Reports that the channel ended without being told to. It counts as a failure of the server, except for a
    /// session's own channel that has answered once: there the caller's own doing often ends it, and other sessions
    /// must not be delayed.
    pub fn note_failure(&self, channel: &MuxChannel, why: &ForwardError) {
        if self.since.elapsed() >= STABLE_AFTER {
            *self.supervisor.restart_delay() = RestartDelay::default();
        }
        let of_caller = channel.is_private() && channel.has_answered();
        if !channel.is_probe() && !of_caller {
            self.supervisor.failed(why);
        }
    }
}

impl Default for RestartDelay {
    fn default() -> Self {
        Self {
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
            until: None,
            why: None,
        }
    }
}

impl RestartDelay {
    fn failed(&mut self, now: Instant, why: &ForwardError) {
        self.until = Some(now + self.backoff.failed());
        self.why = Some(why.clone());
    }

    fn wait(&self, now: Instant) -> Duration {
        self.until
            .map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }
}

pub fn too_many_sessions() -> ForwardError {
    ForwardError::before_sending(Reason::TooManySessions, "no more can be started now")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_doubles_the_wait_up_to_a_bound() {
        let (now, mut restart_delay) = (Instant::now(), RestartDelay::default());
        assert_eq!(restart_delay.wait(now), Duration::ZERO);
        let mut waits = Vec::new();
        for _ in 0..40 {
            restart_delay.failed(now, &ForwardError::bad_response("over"));
            waits.push(restart_delay.wait(now).as_millis());
        }
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[39], LONGEST_WAIT.as_millis());
        assert!(waits.is_sorted());
        assert_eq!(restart_delay.wait(now + LONGEST_WAIT), Duration::ZERO);
    }
}
