//! Guardian's own channel to a server, on which it has sent `initialize`. A shared process has only this one.

use super::mux::MuxChannel;
use crate::domain::{ClientRequests, ProtocolVersion};
use crate::mcp::{guardian_initialize, initialized};
use crate::upstream::control_reply::{ControlReply, session_version};
use crate::upstream::error::ForwardError;
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::OnceCell;

/// A channel on which Guardian itself has sent `initialize`.
#[derive(Clone)]
pub struct ControlChannel {
    pub channel: Arc<MuxChannel>,
    pub version: ProtocolVersion,
    /// The server's `initialize` result.
    pub server_info: Value,
}

/// The place of that channel; it is opened when needed, and again after it has ended.
#[derive(Default)]
pub struct ControlChannelCell(Mutex<Arc<OnceCell<ControlChannel>>>);

impl ControlChannelCell {
    /// The channel; concurrent callers share one attempt to open it.
    pub async fn get_or_open(
        &self,
        open: impl Future<Output = Result<ControlChannel, ForwardError>>,
    ) -> Result<ControlChannel, ForwardError> {
        let cell = {
            let mut control = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if control.get().is_some_and(|control| control.channel.is_gone()) {
                *control = Arc::default();
            }
            control.clone()
        };
        cell.get_or_try_init(|| open).await.cloned()
    }

    /// The channel if it is open.
    pub fn get(&self) -> Option<Arc<MuxChannel>> {
        let cell = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cell.get().map(|control| control.channel.clone())
    }
}

impl ControlChannel {
    /// Sends `initialize`, as a client that answers these requests, and `notifications/initialized`. If that fails, the channel is ended.
    pub async fn initialize(
        channel: Arc<MuxChannel>,
        requests: ClientRequests,
        patience: Duration,
    ) -> Result<Self, ForwardError> {
        let guard = channel.end.clone().drop_guard();
        let server_info = match channel
            .request_for_guardian("initialize", &guardian_initialize(requests), patience)
            .await?
        {
            ControlReply::Result(result) => result,
            ControlReply::Error { code, .. } => {
                return Err(ForwardError::bad_response(format!(
                    "the server refuses `initialize` ({code})"
                )));
            }
            ControlReply::Nothing => return Err(ForwardError::bad_response("the server does not answer `initialize`")),
        };
        let version = session_version(server_info["protocolVersion"].as_str())?;
        channel.notify(initialized()).await?;
        guard.disarm();
        Ok(Self {
            channel,
            version,
            server_info,
        })
    }
}
