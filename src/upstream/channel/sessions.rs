//! The sessions of one server on this instance. A session has a random id that leads to its channel; when the channel
//! ends, so does the session.

use super::mux::MuxChannel;
use super::queue::PushBuffer;
use super::supervisor::too_many_sessions;
use crate::sessions::HandleOwner;
use crate::upstream::error::ForwardError;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// The sessions on this instance, by id.
#[derive(Default)]
pub struct SessionTable(Mutex<HashMap<Arc<str>, Arc<SessionEntry>>>);

/// One session.
pub struct SessionEntry {
    pub name: Arc<str>,
    owner: HandleOwner,
    /// The messages for the session's GET stream.
    pub push_buffer: Arc<PushBuffer>,
    /// The session's own channel; unset if the process is shared.
    pub channel: OnceLock<Arc<MuxChannel>>,
    /// When the session was last used.
    used: Mutex<Instant>,
}

impl SessionTable {
    /// Creates the entry of a new session, one of at most `most`. A caller with half of all sessions, or anyone when there
    /// are no more, gives up the least recently used session of its own that is not busy; without one, the call is refused.
    pub fn reserve(
        self: &Arc<Self>,
        owner: HandleOwner,
        most: usize,
        is_busy: impl Fn(&SessionEntry) -> bool,
    ) -> Result<PendingSession, ForwardError> {
        let mut sessions = self.map();
        sessions.retain(|_, entry| !entry.is_gone());
        let own: Vec<_> = sessions.values().filter(|entry| entry.owner == owner).cloned().collect();
        if own.len() >= most.div_ceil(2) || sessions.len() >= most {
            let unused = own
                .into_iter()
                .filter(|entry| !is_busy(entry))
                .max_by_key(|entry| entry.unused());
            let unused = unused.ok_or_else(too_many_sessions)?;
            sessions.remove(&unused.name);
            unused.end();
        }
        let entry = Arc::new(SessionEntry {
            name: uuid::Uuid::new_v4().simple().to_string().into(),
            owner,
            push_buffer: Arc::default(),
            channel: OnceLock::new(),
            used: Mutex::new(Instant::now()),
        });
        sessions.insert(entry.name.clone(), entry.clone());
        Ok(PendingSession {
            table: self.clone(),
            entry,
            stays: false,
        })
    }

    /// Ends sessions that were idle too long or whose channel is gone.
    pub fn sweep(&self, idle: Duration, is_busy: impl Fn(&SessionEntry) -> bool) {
        let entries: Vec<_> = self.map().values().cloned().collect();
        for entry in entries {
            if is_busy(&entry) {
                entry.touch();
            }
            if entry.is_gone() || entry.unused() > idle {
                self.end(&entry.name);
            }
        }
    }

    fn map(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<SessionEntry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn find(&self, name: &str) -> Option<Arc<SessionEntry>> {
        let entry = self.map().get(name).cloned()?;
        if entry.is_gone() {
            self.end(name);
            return None;
        }
        Some(entry)
    }

    pub fn end(&self, name: &str) {
        let entry = self.map().remove(name);
        if let Some(entry) = entry {
            entry.end();
        }
    }

    /// Sends to the GET stream of every session. A session without one, or with a full one, misses the message and
    /// learns of the change at its next request.
    pub fn tell_all(&self, message: &Bytes) {
        for entry in self.map().values() {
            entry.push_buffer.put(message.clone());
        }
    }
}

impl SessionEntry {
    pub fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How long the session was not used.
    fn unused(&self) -> Duration {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn is_gone(&self) -> bool {
        self.channel.get().is_some_and(|channel| channel.is_gone())
    }

    fn end(&self) {
        self.push_buffer.close();
        if let Some(channel) = self.channel.get() {
            channel.end.cancel();
        }
    }
}

/// A session that is being opened; dropped before `stay`, it is ended.
pub struct PendingSession {
    table: Arc<SessionTable>,
    pub entry: Arc<SessionEntry>,
    stays: bool,
}

impl PendingSession {
    pub fn stay(mut self) {
        self.stays = true;
    }
}

impl Drop for PendingSession {
    fn drop(&mut self) {
        if !self.stays {
            self.table.end(&self.entry.name);
        }
    }
}
