//! The MCP servers behind Guardian: their pools, sessions, tool lists and answers. Only a cleared call is sent, with the
//! server's own credential and nothing of the caller's. Who may call, and what a caller is told, is decided elsewhere.

mod asks;
mod catalogue;
mod exchange;
mod failed;
mod forward;
mod handles;
mod keys;
mod outcome;
mod pins;
mod server;
mod speak;
mod stream;

pub use catalogue::{FetchFailed, LeftOut, Offer, RawTool};
pub use failed::Failed;
pub use forward::{Answer, ForwardHeads, Opened};
pub use handles::{Handed, Holder, Returned};
pub use keys::{Session, SessionKeys, SessionKeysError, UpstreamSessionId};
pub use pins::{assemble, scopes_of, standing};
pub use server::{Eras, Upstream, UpstreamError};
pub use stream::{Frames, Piece};

use crate::config::ServerConfig;
use crate::domain::ServerName;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Every configured server, and the keys that seal their sessions.
pub struct Upstreams {
    servers: BTreeMap<ServerName, Upstream>,
    sessions: Arc<SessionKeys>,
}

impl Upstreams {
    pub fn new(configs: &[ServerConfig], sessions: SessionKeys) -> Result<Self, UpstreamError> {
        let mut servers = BTreeMap::new();
        for config in configs {
            servers.insert(config.name.clone(), Upstream::new(config)?);
        }
        Ok(Self {
            servers,
            sessions: Arc::new(sessions),
        })
    }

    pub fn get(&self, name: &ServerName) -> Option<&Upstream> {
        self.servers.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ServerName, &Upstream)> {
        self.servers.iter()
    }

    pub fn sessions(&self) -> &Arc<SessionKeys> {
        &self.sessions
    }
}
