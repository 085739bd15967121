//! Opens channels: starts a program, or opens the event stream of the legacy HTTP+SSE transport.

use super::legacy_sse;
use super::mux::{MuxChannel, UnsolicitedRouting};
use super::stdio::Program;
use super::supervisor::Supervisor;
use crate::domain::ClientRequests;
use crate::upstream::forward_error::ForwardError;
use crate::upstream::http::Endpoint;
use crate::upstream::timeouts::Timeouts;
use std::sync::Arc;

/// How a channel is opened.
pub enum ChannelConnector {
    Program(Program),
    LegacySse(Arc<Endpoint>),
}

impl ChannelConnector {
    /// Opens a channel, after the delay and once a slot is free.
    pub async fn open(
        &self,
        supervisor: &Supervisor,
        routing: UnsolicitedRouting,
        allowed_requests: ClientRequests,
        timeouts: &Timeouts,
    ) -> Result<Arc<MuxChannel>, ForwardError> {
        let lease = supervisor.lease().await?;
        let opened = match self {
            ChannelConnector::Program(program) => program.start(routing, allowed_requests, timeouts.max_answer, lease),
            ChannelConnector::LegacySse(endpoint) => {
                legacy_sse::open_channel(endpoint, routing, allowed_requests, timeouts.max_event, lease).await
            }
        };
        opened.inspect_err(|_| supervisor.failed())
    }
}
