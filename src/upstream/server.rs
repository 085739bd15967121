//! One configured server: its address, Guardian's credential for it, time-outs and size limits. What it answers is not
//! read here.

use super::channels::{ChannelConnector, Channels};
use super::exchange::BaseHeaders;
use super::server_info::ServerInfo;
use super::stdio::Program;
use crate::config::{ServerConfig, ServerTransport, UpstreamCredential};
use crate::domain::{ClientRequests, Era, ServerName, is_reserved_header};
use crate::transport::{Client, ClientError, ClientSettings};
use arc_swap::ArcSwap;
use http::{HeaderName, HeaderValue, Uri};
use secrecy::ExposeSecret;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

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

/// A URL with the clients and headers for it.
pub(super) struct Endpoint {
    pub uri: Uri,
    /// For calls: HTTP/2 if the server offers it, otherwise pooled HTTP/1.1.
    pub client: Client,
    /// For long-lived streams: HTTP/1.1, one connection each, so that open streams never use up the stream limit of the
    /// HTTP/2 connection that calls share.
    pub streams: Client,
    /// The headers of every request, with the credential that authenticates Guardian to this server.
    pub base_headers: BaseHeaders,
    pub first_byte: Duration,
}

/// Time and size limits of one answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    pub first_byte: Duration,
    pub idle: Duration,
    pub max_answer: usize,
    pub max_event: usize,
}

/// Why a server configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("server `{server}`: its URL {why}")]
    Url { server: ServerName, why: &'static str },
    #[error("server `{server}`: its credential {why}")]
    Credential { server: ServerName, why: &'static str },
    #[error("server `{server}`: cannot read its credential from `{}`", .file.display())]
    CredentialFile {
        server: ServerName,
        file: PathBuf,
        source: std::io::Error,
    },
    #[error("server `{server}`: {why}")]
    Program { server: ServerName, why: String },
    #[error("server `{server}`: no client can be made for it")]
    Client { server: ServerName, source: ClientError },
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

/// Node and uvicorn close connections that were idle for five seconds. Guardian closes them earlier, so that no call
/// meets a connection that the server is closing.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// The largest stream event; an event is held in memory until it is complete.
const MAX_EVENT_BYTES: usize = 16 * 1024 * 1024;

impl Upstream {
    /// Checks the configuration. Nothing is connected or started yet.
    pub fn new(config: &ServerConfig) -> Result<Self, UpstreamError> {
        let timeouts = Timeouts {
            first_byte: config.first_byte_timeout.0,
            idle: config.idle_timeout.0,
            max_answer: config.max_answer_bytes,
            max_event: config.max_answer_bytes.min(MAX_EVENT_BYTES),
        };
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

impl Endpoint {
    fn new(config: &ServerConfig, url: &str) -> Result<Self, UpstreamError> {
        let settings = ClientSettings {
            ca_file: config.ca_file.clone(),
            connect_timeout: config.connect_timeout.0,
            pool_idle: POOL_IDLE,
            pool_max_idle: config.max_concurrency,
            allow_private: config.allow_private_address,
            http2: true,
        };
        let made = |settings: &ClientSettings| {
            Client::new(settings).map_err(|source| UpstreamError::Client {
                server: config.name.clone(),
                source,
            })
        };
        let credential = config
            .credential
            .as_ref()
            .map(|credential| read_credential(&config.name, credential));
        Ok(Self {
            uri: endpoint(&config.name, url)?,
            client: made(&settings)?,
            streams: made(&ClientSettings {
                http2: false,
                ..settings
            })?,
            base_headers: BaseHeaders::new(credential.transpose()?),
            first_byte: config.first_byte_timeout.0,
        })
    }
}

fn endpoint(server: &ServerName, url: &str) -> Result<Uri, UpstreamError> {
    let wrong = |why| UpstreamError::Url {
        server: server.clone(),
        why,
    };
    let uri: Uri = url.parse().map_err(|_| wrong("is not a URL"))?;
    match uri.scheme_str() {
        Some("https" | "http") => (),
        _ => return Err(wrong("is neither `https` nor `http`")),
    }
    match uri.authority() {
        Some(authority) if authority.as_str().contains('@') => Err(wrong("holds a user name: use `credential`")),
        Some(authority) if !authority.host().is_empty() => Ok(uri),
        _ => Err(wrong("names no host")),
    }
}

fn read_credential(server: &ServerName, config: &UpstreamCredential) -> Result<(HeaderName, HeaderValue), UpstreamError> {
    let wrong = |why| UpstreamError::Credential {
        server: server.clone(),
        why,
    };
    let name: HeaderName = config.header.parse().map_err(|_| wrong("names no header field"))?;
    if is_reserved_header(name.as_str()) {
        return Err(wrong("may not be sent in that header field"));
    }
    let text = match (&config.value, &config.value_file) {
        // Loading a configuration has already read `value_file` into `value`.
        (Some(value), _) => value.expose_secret().to_owned(),
        (None, Some(file)) => std::fs::read_to_string(file).map_err(|source| UpstreamError::CredentialFile {
            server: server.clone(),
            file: file.clone(),
            source,
        })?,
        (None, None) => return Err(wrong("needs either `value` or `value_file`")),
    };
    let text = text.trim();
    if text.is_empty() {
        return Err(wrong("is empty"));
    }
    let mut value = HeaderValue::from_str(text).map_err(|_| wrong("holds characters that no header field carries"))?;
    value.set_sensitive(true);
    Ok((name, value))
}
