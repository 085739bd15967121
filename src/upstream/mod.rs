//! The MCP servers behind Guardian: connections, sessions, tool lists, answers. Only a `Cleared` call is sent, with the
//! server's own credential and nothing of the caller's. Who may call, and what the caller is told, is decided
//! elsewhere.

mod answer;
mod catalogue;
mod channel;
mod client_requests;
mod conditional_tools;
mod control_reply;
mod delivery;
mod error;
mod http;
mod line_reader;
mod outcome;
mod pins;
mod server;
mod stream;
mod timeouts;

pub use answer::{Answer, OpenedSession};
pub use catalogue::{FetchFailed, OfferedTools, RawTool, RejectedTool};
pub use error::{ForwardError, UpstreamError};
pub use http::ForwardHeaders;
pub use pins::{build_catalogue, pin_status, scopes_of};
pub use server::{Eras, ServerInfo, Upstream};
pub use stream::{EventStream, StreamEvent};

use crate::config::ServerConfig;
use crate::domain::ServerName;
use channel::Channels;
use std::collections::BTreeMap;

/// Time limit for all server processes and channels to end at shutdown. Processes are killed before it passes.
const ENDING: std::time::Duration = std::time::Duration::from_secs(10);

/// Every configured server.
pub struct Upstreams {
    servers: BTreeMap<ServerName, Upstream>,
}

impl Upstreams {
    /// Builds every configured server. Nothing is connected or started yet.
    pub fn new(configs: &[ServerConfig]) -> Result<Self, UpstreamError> {
        let mut servers = BTreeMap::new();
        for config in configs {
            servers.insert(config.name.clone(), Upstream::new(config)?);
        }
        Ok(Self { servers })
    }

    /// Ends sessions that nobody uses. The app calls it once a second.
    pub fn sweep(&self) {
        self.channels().for_each(Channels::sweep);
    }

    /// Ends every process and channel, and opens no more.
    pub async fn stop(&self) {
        self.channels().for_each(Channels::stop);
        let all = async {
            for channels in self.channels() {
                channels.stopped().await;
            }
        };
        if tokio::time::timeout(ENDING, all).await.is_err() {
            tracing::warn!("some servers did not end in time");
        }
    }

    fn channels(&self) -> impl Iterator<Item = &Channels> {
        self.servers.values().filter_map(Upstream::channels)
    }

    pub fn get(&self, name: &ServerName) -> Option<&Upstream> {
        self.servers.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ServerName, &Upstream)> {
        self.servers.iter()
    }
}
