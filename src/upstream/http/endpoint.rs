//! The URL of a server with the clients for it, and the headers that every request carries, with the credential that
//! authenticates Guardian.

use crate::config::{ServerConfig, UpstreamCredential};
use crate::domain::{ServerName, is_reserved_header};
use crate::transport::{Client, ClientSettings};
use crate::upstream::upstream_error::UpstreamError;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use secrecy::ExposeSecret;
use std::time::Duration;

/// A URL with the clients and headers for it.
pub struct Endpoint {
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

/// Headers that every request to one server carries. The headers of a message never repeat one of them.
pub struct BaseHeaders {
    pub post: HeaderMap,
    pub other: HeaderMap,
}

impl BaseHeaders {
    fn new(credential: Option<(HeaderName, HeaderValue)>) -> Self {
        let agent = HeaderValue::from_static(concat!("guardian/", env!("CARGO_PKG_VERSION")));
        let mut other = HeaderMap::from_iter([
            (USER_AGENT, agent),
            (ACCEPT_ENCODING, HeaderValue::from_static("identity")),
            (ACCEPT, HeaderValue::from_static("application/json, text/event-stream")),
        ]);
        other.extend(credential);
        let mut post = other.clone();
        post.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Self { post, other }
    }
}

/// Node and uvicorn close connections that were idle for five seconds. Guardian closes them earlier, so that no call
/// meets a connection that the server is closing.
const POOL_IDLE: Duration = Duration::from_secs(4);

impl Endpoint {
    pub fn new(config: &ServerConfig, url: &str) -> Result<Self, UpstreamError> {
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
