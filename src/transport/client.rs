//! HTTP client: pooled connections to checked addresses, trusting one configured CA or the system's CAs. It follows no
//! redirect, repeats no request and adds only `Host` and framing to the request it is given.

use super::address::{AddressScope, address_scope, resolve};
use super::pem::{self, TlsError};
use super::pool::{HttpOrigin, Pool, PooledBody, PooledConnection};
use super::probed_stream::{Probe, ProbedStream};
use super::provider;
use bytes::Bytes;
use http::Uri;
use http_body_util::Full;
use hyper::{Request, Response};
use hyper_rustls::{ConfigBuilderExt, MaybeHttpsStream};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Settings of one `Client`.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// Trust only this CA; `None` trusts the system's CA certificates.
    pub ca_file: Option<PathBuf>,
    /// Limit for name resolution, TCP connect and TLS handshake together.
    pub connect_timeout: Duration,
    /// How long an idle connection stays in the pool.
    pub pool_idle: Duration,
    pub pool_max_idle: usize,
    /// Allow loopback and private addresses, and plain HTTP to them.
    pub allow_private: bool,
    /// Offer h2 by ALPN. All requests to a host then share one connection and its stream limit, so leave this off for
    /// long-lived streams.
    pub http2: bool,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            ca_file: None,
            connect_timeout: Duration::from_secs(5),
            pool_idle: Duration::from_secs(60),
            pool_max_idle: 256,
            allow_private: false,
            http2: false,
        }
    }
}

/// Why a request got no response.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot connect to `{host}`")]
    Connect { host: String, source: std::io::Error },
    #[error("the TLS handshake with `{host}` failed")]
    Tls {
        host: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("`{host}` took longer than {after:?} to accept a connection")]
    Timeout { host: String, after: Duration },
    #[error("`{host}` is at {ip}, which is {what}")]
    Address { host: String, ip: IpAddr, what: &'static str },
    #[error("`{url}` cannot be called: {why}")]
    Url { url: String, why: &'static str },
    #[error("this machine has no usable store of CA certificates: install `ca-certificates`, or name a CA file for `{host}`")]
    NoRoots { host: String, source: rustls::Error },
    #[error("the CA of an outgoing connection cannot be used")]
    Ca(#[from] TlsError),
    /// An established connection was lost. `sent`: the server may have received the request.
    #[error("`{host}` closed the connection before it answered")]
    Closed { host: String, sent: bool, source: hyper::Error },
}

impl ClientError {
    /// Whether the server may have received any byte of the request.
    pub fn may_have_been_sent(&self) -> bool {
        matches!(self, ClientError::Closed { sent: true, .. })
    }
}

/// An HTTP client with its connection pool. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    connector: Arc<Connector>,
    pool: Arc<Pool<Connected>>,
}

/// The body of a response from a server.
pub type ResponseBody = PooledBody<Connected>;

impl Client {
    /// Builds a client; a configured CA file is read now.
    pub fn new(settings: &ClientSettings) -> Result<Self, ClientError> {
        let roots = match &settings.ca_file {
            Some(file) => Roots::Own(Arc::new(with_alpn(own_ca(file)?, settings.http2))),
            None => Roots::Machine {
                config: Arc::default(),
                http2: settings.http2,
            },
        };
        let connector = Connector {
            roots,
            timeout: settings.connect_timeout,
            allow_private: settings.allow_private,
        };
        Ok(Self {
            connector: Arc::new(connector),
            pool: Pool::new(settings.pool_idle, settings.pool_max_idle),
        })
    }

    /// Sends the request once and returns the response head. The caller sets the time limit for waiting for the head.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<ResponseBody>, ClientError> {
        let uri = request.uri();
        let origin = HttpOrigin::of(uri).ok_or_else(|| ClientError::Url {
            url: uri.to_string(),
            why: "it is not `https`",
        })?;
        let connection = match self.pool.take(&origin) {
            Some(connection) => connection,
            // Boxed: this path is rare, and its future would make the future of every call larger.
            None => match Box::pin(self.open_connection(uri, &origin)).await {
                Ok(connection) => connection,
                // A pooled connection may have been returned in the meantime.
                Err(error) => self.pool.take(&origin).ok_or(error)?,
            },
        };
        let answer = self.pool.send(&origin, connection, request).await;
        answer.map_err(|broken| ClientError::Closed {
            host: origin.host().to_owned(),
            sent: broken.sent,
            source: broken.source,
        })
    }

    async fn open_connection(&self, uri: &Uri, origin: &HttpOrigin) -> Result<PooledConnection<Connected>, ClientError> {
        let late = |_| ClientError::Timeout {
            host: host(uri),
            after: self.connector.timeout,
        };
        let connected = async {
            let probe = Probe::default();
            let stream = self.connector.connect(uri, probe.clone()).await?;
            let is_http2 =
                matches!(&stream, MaybeHttpsStream::Https(tls) if tls.inner().get_ref().1.alpn_protocol() == Some(b"h2"));
            let begun = self.pool.handshake(origin, stream, probe, is_http2).await;
            begun.map_err(|source| ClientError::Closed {
                host: host(uri),
                sent: false,
                source,
            })
        };
        tokio::time::timeout(self.connector.timeout, connected).await.map_err(late)?
    }
}

#[derive(Debug)]
struct Connector {
    roots: Roots,
    timeout: Duration,
    allow_private: bool,
}

/// Trusted CAs. The system's store is opened on first use, so that Guardian runs on a machine without one as long as no
/// connection needs it.
#[derive(Debug, Clone)]
enum Roots {
    Own(Arc<ClientConfig>),
    Machine {
        config: Arc<OnceLock<Result<Arc<ClientConfig>, rustls::Error>>>,
        http2: bool,
    },
}

/// The stream under a connection: TCP, with TLS for `https`.
pub type Connected = MaybeHttpsStream<TokioIo<ProbedStream>>;

impl Connector {
    async fn connect(&self, uri: &Uri, probe: Probe) -> Result<Connected, ClientError> {
        let host = host(uri);
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if self.allow_private => false,
            _ => {
                return Err(ClientError::Url {
                    url: uri.to_string(),
                    why: "it is not `https`",
                });
            }
        };
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let addresses = self.addresses(&host, port, secure).await?;
        let tcp = self.dial(&addresses).await.map_err(|source| match source.kind() {
            std::io::ErrorKind::TimedOut => ClientError::Timeout {
                host: format!("{host}:{port}"),
                after: self.timeout,
            },
            _ => ClientError::Connect {
                host: format!("{host}:{port}"),
                source,
            },
        })?;
        let _ = tcp.set_nodelay(true);
        let tcp = TokioIo::new(ProbedStream::new(tcp, probe));
        if !secure {
            return Ok(MaybeHttpsStream::Http(tcp));
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(bare).map_err(|_| ClientError::Url {
            url: uri.to_string(),
            why: "its host is not a name or an address",
        })?;
        let tls = TlsConnector::from(self.roots.config(&host)?)
            .connect(name, TokioIo::new(tcp))
            .await;
        tls.map(MaybeHttpsStream::from).map_err(|source| ClientError::Tls {
            host: format!("{host}:{port}"),
            source: Box::new(source),
        })
    }

    /// Resolves `host` and requires every address to be allowed. One forbidden address rejects the whole name, because
    /// the next resolution could put that address first.
    async fn addresses(&self, host: &str, port: u16, secure: bool) -> Result<Vec<SocketAddr>, ClientError> {
        let addresses = resolve(host, port).await.map_err(|source| ClientError::Connect {
            host: host.to_owned(),
            source,
        })?;
        for address in &addresses {
            let what = match (address_scope(address.ip()), self.allow_private, secure) {
                (AddressScope::Never, ..) => "never the address of a server",
                (AddressScope::Private, false, _) => "on loopback or a private network, which the configuration does not allow",
                (AddressScope::Public, _, false) => "public, where clear text is not allowed: use `https`",
                (AddressScope::Public, _, true) | (AddressScope::Private, true, _) => continue,
            };
            return Err(ClientError::Address {
                host: host.to_owned(),
                ip: address.ip(),
                what,
            });
        }
        Ok(addresses)
    }

    /// Tries the addresses in order; each attempt gets an equal share of the remaining time.
    async fn dial(&self, addresses: &[SocketAddr]) -> std::io::Result<TcpStream> {
        let started = Instant::now();
        let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
        for (tried, address) in addresses.iter().enumerate() {
            let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            let share = self.timeout.saturating_sub(started.elapsed()) / left;
            last = match tokio::time::timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => return Ok(tcp),
                Ok(Err(error)) => error,
                Err(_) => std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer"),
            };
        }
        Err(last)
    }
}

impl Roots {
    fn config(&self, host: &str) -> Result<Arc<ClientConfig>, ClientError> {
        match self {
            Roots::Own(config) => Ok(config.clone()),
            Roots::Machine { config, http2 } => config
                .get_or_init(|| machine_roots().map(|config| Arc::new(with_alpn(config, *http2))))
                .clone()
                .map_err(|source| ClientError::NoRoots {
                    host: host.to_owned(),
                    source,
                }),
        }
    }
}

fn own_ca(file: &std::path::Path) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(pem::roots(file)?).with_no_client_auth())
}

fn machine_roots() -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(builder.try_with_platform_verifier()?.with_no_client_auth())
}

fn with_alpn(mut config: ClientConfig, http2: bool) -> ClientConfig {
    config.alpn_protocols = if http2 {
        vec![b"h2".to_vec(), b"http/1.1".to_vec()]
    } else {
        vec![b"http/1.1".to_vec()]
    };
    config
}

fn host(uri: &Uri) -> String {
    uri.host().unwrap_or_default().to_owned()
}
