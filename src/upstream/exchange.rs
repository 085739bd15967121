//! One HTTP exchange with a server: a request made from nothing but what is meant to be sent, and the head of its answer,
//! held to the rules that no answer may break. Nothing is repeated once a byte of it may have been received.

use super::failed::Failed;
use super::server::{Endpoint, Upstream};
use crate::transport::{Answered, Client, ClientError};
use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;
use tokio::time::timeout;

/// How often a request is given to another connection because the first was closed before anything was sent on it.
const UNSENT_TRIES: usize = 3;

/// An answer of slow pieces may take this many idle times.
const SLOWEST: u32 = 10;

/// What the body of an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Media {
    Json,
    Events,
    Other,
}

impl Upstream {
    /// Reads an answer that is no stream.
    pub(super) async fn collect(&self, mut body: Answered) -> Result<Bytes, Failed> {
        let (max, idle) = (self.patience.max_answer, self.patience.idle);
        if body.size_hint().lower() > max as u64 {
            return Err(too_large(max));
        }
        let first = poll_fn(|context| Poll::Ready(Pin::new(&mut body).poll_frame(context))).await;
        // Most answers come with their head: no clock is started for them, and nothing is copied.
        if let Poll::Ready(Some(Ok(frame))) = &first
            && let Some(data) = frame.data_ref()
            && body.is_end_stream()
        {
            return match data.len() > max {
                true => Err(too_large(max)),
                false => Ok(data.clone()),
            };
        }
        let rest = pin!(collect(body, first, max, idle));
        timeout(idle.saturating_mul(SLOWEST), rest)
            .await
            .unwrap_or_else(|_| Err(Failed::late("the server's answer took too long to arrive")))
    }
}

impl Endpoint {
    /// Sends one request and waits for the head of the answer. `mcp` are the fields that this message has of its own.
    pub async fn exchange(
        &self,
        client: &Client,
        method: &Method,
        mcp: &HeaderMap,
        body: &Bytes,
    ) -> Result<Response<Answered>, Failed> {
        self.exchange_at(&self.uri, client, method, mcp, body).await
    }

    /// The same with another URL of this server.
    pub async fn exchange_at(
        &self,
        uri: &Uri,
        client: &Client,
        method: &Method,
        mcp: &HeaderMap,
        body: &Bytes,
    ) -> Result<Response<Answered>, Failed> {
        let late = || Failed::late("the server did not answer in time");
        let sent = pin!(self.send(uri, client, method, mcp, body));
        let answer = timeout(self.first_byte, sent).await.map_err(|_| late())??;
        check_head(&answer).map_err(|failed| failed.with_status(answer.status()))?;
        Ok(answer)
    }

    async fn send(
        &self,
        uri: &Uri,
        client: &Client,
        method: &Method,
        mcp: &HeaderMap,
        body: &Bytes,
    ) -> Result<Response<Answered>, Failed> {
        let mut tries = 1;
        loop {
            match client.send(self.request(uri, method, mcp, body)).await {
                Ok(answer) => return Ok(answer),
                Err(ClientError::Closed { sent: false, .. }) if tries < UNSENT_TRIES => tries += 1,
                Err(error) => return Err(Failed::of_client(&error)),
            }
        }
    }

    /// The whole head is made here. `Host` and framing are added by the connection, from the endpoint and the body.
    fn request(&self, uri: &Uri, method: &Method, mcp: &HeaderMap, body: &Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri.clone();
        let own = match *method {
            Method::POST => &self.heads.post,
            _ => &self.heads.other,
        };
        // Room for all at once, and for `Host` and the framing.
        let mut headers = HeaderMap::with_capacity(own.len() + mcp.len() + 2);
        headers.extend(own.iter().map(|(name, value)| (name.clone(), value.clone())));
        if *method == Method::GET {
            headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        }
        headers.extend(mcp.iter().map(|(name, value)| (name.clone(), value.clone())));
        *request.headers_mut() = headers;
        request
    }
}

/// What every request to one server begins with. No field of a message has the name of one of these.
pub(super) struct OwnHeads {
    post: HeaderMap,
    other: HeaderMap,
}

impl OwnHeads {
    pub fn new(credential: Option<(HeaderName, HeaderValue)>) -> Self {
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

/// The essence of the content type, whatever its spelling and parameters.
pub(super) fn media(headers: &HeaderMap) -> Media {
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

/// What a server asks of Guardian is between the two of them: the client hears neither challenges nor new places to go.
fn check_head<B>(answer: &Response<B>) -> Result<(), Failed> {
    let encoded = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"identity");
    match answer.status() {
        StatusCode::UNAUTHORIZED => Err(Failed::broken("the server refuses Guardian's credential")),
        StatusCode::FORBIDDEN => Err(Failed::broken("the server forbids this to Guardian")),
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => Err(Failed::broken("a proxy before the server asks for a credential")),
        status if status.is_redirection() => Err(Failed::broken("the server redirects, which is never followed")),
        status if status.is_informational() => Err(Failed::broken("the server answered with no final status")),
        _ if answer.headers().get_all(CONTENT_ENCODING).iter().any(encoded) => {
            Err(Failed::broken("the server's answer is encoded, which was not offered"))
        }
        _ => Ok(()),
    }
}

/// What is left of an answer whose first frame was asked for already.
async fn collect(
    mut body: Answered,
    mut first: Poll<Option<Result<Frame<Bytes>, hyper::Error>>>,
    max: usize,
    idle: Duration,
) -> Result<Bytes, Failed> {
    let mut whole = BytesMut::new();
    loop {
        let frame = match std::mem::replace(&mut first, Poll::Pending) {
            Poll::Ready(frame) => frame,
            Poll::Pending => timeout(idle, body.frame())
                .await
                .map_err(|_| Failed::late("the server stopped in the middle of its answer"))?,
        };
        let Some(frame) = frame else {
            return Ok(whole.freeze());
        };
        let frame =
            frame.map_err(|error| Failed::broken("the server broke off in the middle of its answer").with_cause(&error))?;
        // Trailers say nothing here.
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > max - whole.len() {
            return Err(too_large(max));
        }
        match whole.is_empty() {
            true => whole = BytesMut::from(data),
            false => whole.extend_from_slice(&data),
        }
    }
}

fn too_large(max: usize) -> Failed {
    Failed::broken(format!("the server's answer is larger than {max} bytes"))
}
