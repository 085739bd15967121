//! Servers reached by Streamable HTTP: one exchange for each message, built from nothing but what must be sent. A request is
//! repeated only if no byte of it can have reached the server. What an answer means is not judged here.

use super::error::{ForwardError, UpstreamError};
use super::timeouts::Timeouts;
use crate::config::{ServerConfig, UpstreamCredential};
use crate::domain::{self, Call, Era, HttpVerb, ProtocolVersion, ServerName, is_reserved_header};
use crate::mcp;
use crate::sessions::{HandleOwner, UpstreamSessionId};
use crate::transport::{Client, ClientError, ClientSettings, ResponseBody};
use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use secrecy::ExposeSecret;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;
use tokio::time::timeout;

/// What a request needs beside the call itself. No value is taken from the caller unchecked.
#[derive(Debug, Clone, Default)]
pub struct ForwardHeaders {
    /// The upstream's own session id, unsealed from the id that the caller sent.
    pub session: Option<UpstreamSessionId>,
    /// The protocol version of that session, if it was not yet known when the call was decided.
    pub version: Option<ProtocolVersion>,
    /// `Last-Event-ID`, to resume a stream of the caller's own session.
    pub last_event_id: Option<String>,
    /// The owner of the session that an `initialize` opens.
    pub owner: Option<HandleOwner>,
    /// `Mcp-Param-*` headers that were checked against the arguments.
    pub params: Vec<(HeaderName, HeaderValue)>,
}

pub const fn http_method(method: domain::Method) -> Method {
    match method.verb() {
        HttpVerb::Post => Method::POST,
        HttpVerb::Get => Method::GET,
        HttpVerb::Delete => Method::DELETE,
    }
}

/// The MCP headers of this call, written from the call that was decided.
pub fn forward_headers(call: &Call, headers: &ForwardHeaders) -> HeaderMap {
    let mut fields: HeaderMap =
        mcp::mirror_headers(call.era, headers.version.or(call.version), call.method, call.mirrored_name())
            .into_iter()
            .collect();
    let of_arguments = headers
        .params
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("mcp-param-"));
    fields.extend(of_arguments.cloned());
    if call.era == Era::Modern {
        return fields;
    }
    set_session_headers(&mut fields, headers.session.as_ref());
    if call.method == domain::Method::OpenStream
        && let Some(Ok(last)) = headers.last_event_id.as_ref().map(|last| HeaderValue::from_str(last))
    {
        fields.insert(mcp::LAST_EVENT_ID, last);
    }
    fields
}

/// Adds `Mcp-Session-Id`, marked sensitive so that `Debug` hides it and HPACK never indexes it.
pub fn set_session_headers(fields: &mut HeaderMap, session: Option<&UpstreamSessionId>) {
    if let Some(Ok(mut session)) = session.map(|session| HeaderValue::from_str(session.as_str())) {
        session.set_sensitive(true);
        fields.insert(mcp::SESSION_ID, session);
    }
}

/// Reads the session id of a response. It is used only for answers to `initialize`.
pub fn session_of(headers: &HeaderMap) -> Result<Option<UpstreamSessionId>, ForwardError> {
    let mut values = headers.get_all(mcp::SESSION_ID).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let id = value
        .to_str()
        .ok()
        .and_then(UpstreamSessionId::parse)
        .filter(|_| values.next().is_none());
    id.map(Some)
        .ok_or_else(|| ForwardError::bad_response("the server's session id is not one"))
}

/// A URL with the clients and headers for it.
pub struct Endpoint {
    pub uri: Uri,
    /// For calls: HTTP/2 if the server offers it, otherwise pooled HTTP/1.1.
    pub client: Client,
    /// For long-lived streams: HTTP/1.1, one connection each, so that open streams never use up the stream limit of the
    /// HTTP/2 connection that calls share.
    pub streams: Client,
    /// The headers of every request, with the credential that authenticates Guardian to this server. The headers of a message
    /// never repeat one of them.
    base_headers: HeaderMap,
    pub first_byte: Duration,
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
        let mut base_headers = HeaderMap::from_iter([
            (
                USER_AGENT,
                HeaderValue::from_static(concat!("guardian/", env!("CARGO_PKG_VERSION"))),
            ),
            (ACCEPT_ENCODING, HeaderValue::from_static("identity")),
            (ACCEPT, HeaderValue::from_static("application/json, text/event-stream")),
        ]);
        base_headers.extend(credential.transpose()?);
        Ok(Self {
            uri: endpoint(&config.name, url)?,
            client: made(&settings)?,
            streams: made(&ClientSettings {
                http2: false,
                ..settings
            })?,
            base_headers,
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

/// The most attempts for a request whose connection was closed before anything was sent on it.
const UNSENT_TRIES: usize = 3;

/// Time limit for a whole response body, as a multiple of the idle time-out.
const SLOWEST: u32 = 10;

/// The media type of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    Json,
    Events,
    Other,
}

impl Endpoint {
    /// Sends one request and waits for the response head. `mcp` holds the headers of this message.
    pub async fn exchange(
        &self,
        client: &Client,
        method: &Method,
        mcp: &HeaderMap,
        body: &Bytes,
    ) -> Result<Response<ResponseBody>, ForwardError> {
        self.exchange_at(&self.uri, client, method, mcp, body).await
    }

    /// The same, for another URL of this server.
    pub async fn exchange_at(
        &self,
        uri: &Uri,
        client: &Client,
        method: &Method,
        mcp: &HeaderMap,
        body: &Bytes,
    ) -> Result<Response<ResponseBody>, ForwardError> {
        let late = || ForwardError::timeout("the server did not answer in time");
        let sent = pin!(async {
            let mut tries = 1;
            loop {
                match client.send(self.request(uri, method, mcp, body)).await {
                    Err(ClientError::Closed { sent: false, .. }) if tries < UNSENT_TRIES => tries += 1,
                    sent => return sent.map_err(|error| ForwardError::of_client(&error)),
                }
            }
        });
        let answer = timeout(self.first_byte, sent).await.map_err(|_| late())??;
        check_head(&answer).map_err(|error| error.with_status(answer.status()))?;
        Ok(answer)
    }

    /// Builds the whole head except `Host` and framing, which the connection adds from the URL and the body.
    fn request(&self, uri: &Uri, method: &Method, mcp: &HeaderMap, body: &Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri.clone();
        let own = &self.base_headers;
        // Room for all headers at once, with `Content-Type`, `Host` and framing.
        let mut headers = HeaderMap::with_capacity(own.len() + mcp.len() + 3);
        headers.extend(own.iter().map(|(name, value)| (name.clone(), value.clone())));
        if *method == Method::GET {
            headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        } else if *method == Method::POST {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        headers.extend(mcp.iter().map(|(name, value)| (name.clone(), value.clone())));
        *request.headers_mut() = headers;
        request
    }
}

/// The media type, ignoring case and parameters (RFC 9110 section 8.3).
pub fn media(headers: &HeaderMap) -> Media {
    let text = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim();
    match essence {
        _ if essence.eq_ignore_ascii_case("application/json") => Media::Json,
        _ if essence.eq_ignore_ascii_case("text/event-stream") => Media::Events,
        _ => Media::Other,
    }
}

/// Refuses response heads that must not be relayed. The server's 401 and redirects concern Guardian, not the client.
fn check_head<B>(answer: &Response<B>) -> Result<(), ForwardError> {
    let refused = ForwardError::refused_with;
    let encoded = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"identity");
    match answer.status() {
        status @ StatusCode::UNAUTHORIZED => Err(refused(status, "the server refuses Guardian's credential")),
        status @ StatusCode::FORBIDDEN => Err(refused(status, "the server forbids this to Guardian")),
        status @ StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            Err(refused(status, "a proxy before the server asks for a credential"))
        }
        status if status.is_redirection() => Err(refused(status, "the server redirects, which is never followed")),
        status if status.is_informational() => Err(ForwardError::bad_response("the server answered with no final status")),
        _ if answer.headers().get_all(CONTENT_ENCODING).iter().any(encoded) => Err(ForwardError::bad_response(
            "the server's answer is encoded, which was not offered",
        )),
        _ => Ok(()),
    }
}

/// Reads a response body that is not a stream.
pub async fn read_answer_body(mut body: ResponseBody, timeouts: &Timeouts) -> Result<Bytes, ForwardError> {
    let (max, idle) = (timeouts.max_answer, timeouts.idle);
    if body.size_hint().lower() > max as u64 {
        return Err(too_large(max));
    }
    let first = poll_fn(|context| Poll::Ready(Pin::new(&mut body).poll_frame(context))).await;
    // Most bodies arrive together with the head: they need no timer and no copy.
    if let Poll::Ready(Some(Ok(frame))) = &first
        && let Some(data) = frame.data_ref()
        && body.is_end_stream()
    {
        return if data.len() > max {
            Err(too_large(max))
        } else {
            Ok(data.clone())
        };
    }
    let rest = pin!(collect(body, first, max, idle));
    timeout(idle.saturating_mul(SLOWEST), rest)
        .await
        .unwrap_or_else(|_| Err(ForwardError::timeout("the server's answer took too long to arrive")))
}

/// Reads a body whose first frame was already polled.
async fn collect(
    mut body: ResponseBody,
    mut first: Poll<Option<Result<Frame<Bytes>, hyper::Error>>>,
    max: usize,
    idle: Duration,
) -> Result<Bytes, ForwardError> {
    let mut whole = BytesMut::new();
    loop {
        let frame = match std::mem::replace(&mut first, Poll::Pending) {
            Poll::Ready(frame) => frame,
            Poll::Pending => timeout(idle, body.frame())
                .await
                .map_err(|_| ForwardError::timeout("the server stopped in the middle of its answer"))?,
        };
        let Some(frame) = frame else {
            return Ok(whole.freeze());
        };
        let frame = frame
            .map_err(|error| ForwardError::bad_response("the server broke off in the middle of its answer").with_cause(&error))?;
        // Trailers are ignored.
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > max - whole.len() {
            return Err(too_large(max));
        }
        if whole.is_empty() {
            whole = BytesMut::from(data);
        } else {
            whole.extend_from_slice(&data);
        }
    }
}

fn too_large(max: usize) -> ForwardError {
    ForwardError::bad_response(format!("the server's answer is larger than {max} bytes"))
}
