//! One configured server: its transport, its limits and what is known of it. What it answers is not read here.

use super::channel::{ChannelConnector, Channels, Program};
use super::conditional_tools::ConditionalTools;
use super::error::UpstreamError;
use super::http::Endpoint;
use super::timeouts::Timeouts;
use crate::config::{ServerConfig, ServerTransport};
use crate::domain::{ClientRequests, Era, ServerName, ToolName};
use arc_swap::ArcSwap;
use serde_json::Value;
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
    pub(super) conditional_tools: Arc<ArcSwap<ConditionalTools>>,
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
            (None, _) => (linked(ChannelConnector::Program(Program::new(config))), Eras::Legacy),
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
            conditional_tools: Arc::default(),
        })
    }

    /// The channels, if the server is reached over them.
    pub(super) fn channels(&self) -> Option<&Channels> {
        match &self.transport {
            TransportKind::Http(_) => None,
            TransportKind::Channels(channels) => Some(channels),
        }
    }

    /// Ends every process and channel of this server, and opens no more.
    pub async fn stop(&self) {
        if let Some(channels) = self.channels() {
            channels.stop();
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
        self.channels().is_some()
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

    /// Whether the server offers this tool to a client that answers these requests, as far as that same fetch showed.
    pub fn offers(&self, tool: &ToolName, declared: ClientRequests) -> bool {
        self.conditional_tools.load().offers(tool, declared)
    }

    /// Stores what a `fetch_tools` found.
    pub(super) fn set_capabilities(&self, eras: Eras, server_info: ServerInfo) {
        self.eras.store(eras as u8, Ordering::Relaxed);
        self.server_info.store(Arc::new(server_info));
    }
}

/// A server's self-description, as of the last time its tools were fetched. Empty until then.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServerInfo {
    /// The `capabilities` object; `None` if nothing is known.
    pub capabilities: Option<Value>,
    pub instructions: Option<String>,
}

impl ServerInfo {
    /// Reads the result of an `initialize` or a `server/discover`.
    pub fn read(result: &Value) -> Self {
        Self {
            capabilities: Some(result["capabilities"].clone()).filter(Value::is_object),
            instructions: result["instructions"]
                .as_str()
                .map(str::to_owned)
                .filter(|text| !text.is_empty()),
        }
    }

    /// Merges two descriptions: a server may offer more in one era than in the other.
    pub fn merge(self, other: Self) -> Self {
        let capabilities = match (self.capabilities, other.capabilities) {
            (Some(mut one), Some(other)) => {
                merge_json(&mut one, &other);
                Some(one)
            }
            (one, other) => one.or(other),
        };
        Self {
            capabilities,
            instructions: self.instructions.or(other.instructions),
        }
    }

    /// Whether the server is known not to have this capability.
    pub fn is_known_to_lack(&self, capability: &str) -> bool {
        self.capabilities
            .as_ref()
            .is_some_and(|capabilities| capabilities.get(capability).is_none())
    }
}

fn merge_json(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                merge_json(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into @ Value::Null, from) => *into = from.clone(),
        (Value::Bool(into), Value::Bool(from)) => *into |= from,
        _ => (),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_either_has_both_have() {
        let of = |capabilities: Value| ServerInfo::read(&json!({ "capabilities": capabilities }));
        let both = of(json!({ "tools": {}, "resources": { "subscribe": false } })).merge(of(
            json!({ "tools": { "listChanged": true }, "resources": { "subscribe": true } }),
        ));
        let wanted = json!({ "tools": { "listChanged": true }, "resources": { "subscribe": true } });
        assert_eq!(both.capabilities, Some(wanted));
        assert!(both.is_known_to_lack("prompts") && !both.is_known_to_lack("tools"));
        assert!(!ServerInfo::default().is_known_to_lack("prompts"), "nothing is known");
        assert_eq!(ServerInfo::default().merge(of(json!({}))), of(json!({})));
    }
}
