//! One HTTP exchange with a server: builds the request from nothing but what must be sent, and checks the response
//! head. A request is repeated only if no byte of it can have reached the server.

use super::endpoint::Endpoint;
use crate::transport::{Client, ClientError, ResponseBody};
use crate::upstream::forward_error::ForwardError;
use crate::upstream::timeouts::Timeouts;
use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;
use tokio::time::timeout;

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
        let sent = pin!(self.send(uri, client, method, mcp, body));
        let answer = timeout(self.first_byte, sent).await.map_err(|_| late())??;
        check_head(&answer).map_err(|error| error.with_status(answer.status()))?;
        Ok(answer)
    }

    async fn send(
        &self,
        uri: &Uri,
        client: &Client,
        method: &Method,
        mcp: &HeaderMap,
        body: &Bytes,
    ) -> Result<Response<ResponseBody>, ForwardError> {
        let mut tries = 1;
        loop {
            match client.send(self.request(uri, method, mcp, body)).await {
                Ok(answer) => return Ok(answer),
                Err(ClientError::Closed { sent: false, .. }) if tries < UNSENT_TRIES => tries += 1,
                Err(error) => return Err(ForwardError::of_client(&error)),
            }
        }
    }

    /// Builds the whole head except `Host` and framing, which the connection adds from the URL and the body.
    fn request(&self, uri: &Uri, method: &Method, mcp: &HeaderMap, body: &Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri.clone();
        let own = match *method {
            Method::POST => &self.base_headers.post,
            _ => &self.base_headers.other,
        };
        // Room for all headers at once, with `Host` and framing.
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
    let encoded = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"identity");
    match answer.status() {
        StatusCode::UNAUTHORIZED => Err(ForwardError::bad_response("the server refuses Guardian's credential")),
        StatusCode::FORBIDDEN => Err(ForwardError::bad_response("the server forbids this to Guardian")),
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            Err(ForwardError::bad_response("a proxy before the server asks for a credential"))
        }
        status if status.is_redirection() => Err(ForwardError::bad_response("the server redirects, which is never followed")),
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
