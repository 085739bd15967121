//! One configured server: its transport, its limits and what is known of it. What it answers is not read here.

use super::channel::{ChannelConnector, Channels, Program};
use super::http::Endpoint;
use super::server_info::ServerInfo;
use super::timeouts::Timeouts;
use super::upstream_error::UpstreamError;
use crate::config::{ServerConfig, ServerTransport};
use crate::domain::{ClientRequests, Era, ServerName};
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// An MCP server that calls are forwarded to. Clones share its state.
#[derive(Clone)]
pub struct Upstream {
    pub(super) name: ServerName,
    pub(super) transport: TransportKind,
    pub(super) timeouts: Timeouts,
    pub(super) allowed_requests: ClientRequests,
    eras: Arc<AtomicU8>,
    server_info: Arc<ArcSwap<ServerInfo>>,
}

/// The transport to a server.
#[derive(Clone)]
pub(super) enum TransportKind {
    /// Streamable HTTP: one exchange for each message.
    Http(Arc<Endpoint>),
    /// Persistent channels: stdio processes or the legacy HTTP+SSE transport.
    Channels(Arc<Channels>),
}

/// The eras that a server was found to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eras {
    /// The server was not asked yet, or could not be reached.
    Unknown,
    Legacy,
    Modern,
    Both,
}

impl Eras {
    /// Whether the server is known not to speak `era`.
    pub fn cannot_speak(self, era: Era) -> bool {
        matches!((self, era), (Eras::Legacy, Era::Modern) | (Eras::Modern, Era::Legacy))
    }
}

impl Upstream {
    /// Checks the configuration. Nothing is connected or started yet.
    pub fn new(config: &ServerConfig) -> Result<Self, UpstreamError> {
        let timeouts = Timeouts::new(config);
        let allowed_requests: ClientRequests = config.client_requests.iter().copied().collect();
        let linked = |connector| TransportKind::Channels(Arc::new(Channels::new(config, connector, timeouts, allowed_requests)));
        let (way, eras) = match (&config.url, config.transport) {
            (None, _) => (linked(ChannelConnector::Program(Program::find(config)?)), Eras::Legacy),
            (Some(url), ServerTransport::Sse) => (
                linked(ChannelConnector::LegacySse(Arc::new(Endpoint::new(config, url)?))),
                Eras::Legacy,
            ),
            (Some(url), ServerTransport::Http) => (TransportKind::Http(Arc::new(Endpoint::new(config, url)?)), Eras::Unknown),
        };
        Ok(Self {
            name: config.name.clone(),
            transport: way,
            timeouts,
            allowed_requests,
            eras: Arc::new(AtomicU8::new(eras as u8)),
            server_info: Arc::default(),
        })
    }

    /// Ends sessions that nobody uses.
    pub fn sweep(&self) {
        if let TransportKind::Channels(channels) = &self.transport {
            channels.sweep();
        }
    }

    /// Ends every process and channel of this server and opens no more. `stopped` waits for their end.
    pub fn stop(&self) {
        if let TransportKind::Channels(channels) = &self.transport {
            channels.stop();
        }
    }

    /// Waits until everything that `stop` ends has ended.
    pub async fn stopped(&self) {
        if let TransportKind::Channels(channels) = &self.transport {
            channels.stopped().await;
        }
    }

    pub fn name(&self) -> &ServerName {
        &self.name
    }

    /// What this server may request of its clients.
    pub fn allowed_requests(&self) -> ClientRequests {
        self.allowed_requests
    }

    /// Whether the server is reached over persistent channels. Guardian itself then keeps its sessions.
    pub fn is_persistent(&self) -> bool {
        matches!(self.transport, TransportKind::Channels(_))
    }

    /// The eras found by the last successful `fetch_tools`.
    pub fn eras(&self) -> Eras {
        const ALL: [Eras; 4] = [Eras::Unknown, Eras::Legacy, Eras::Modern, Eras::Both];
        ALL[usize::from(self.eras.load(Ordering::Relaxed)) & 3]
    }

    /// The server's self-description from that same fetch.
    pub fn server_info(&self) -> Arc<ServerInfo> {
        self.server_info.load_full()
    }

    /// Stores what a `fetch_tools` found.
    pub(super) fn set_capabilities(&self, eras: Eras, server_info: ServerInfo) {
        self.eras.store(eras as u8, Ordering::Relaxed);
        self.server_info.store(Arc::new(server_info));
    }
}
