//! HTTP of the demo server: checks path, credential, method, media types and body, then hands the message to its era.

use super::reply::{self, HttpReply};
use super::{DemoServer, legacy, modern};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::{Map, Value};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq;

/// A JSON-RPC request or notification of a client.
pub(super) struct DemoMessage {
    pub(super) id: Option<Value>,
    pub(super) method: String,
    pub(super) params: Map<String, Value>,
}

pub(super) const VERSION_HEADER: &str = "mcp-protocol-version";

const MAX_BODY_BYTES: usize = 1024 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) async fn handle_request(server: Arc<DemoServer>, request: Request<Incoming>) -> Result<HttpReply, Infallible> {
    Ok(route(&server, request).await)
}

async fn route(server: &Arc<DemoServer>, request: Request<Incoming>) -> HttpReply {
    if request.uri().path() != "/mcp" {
        return reply::plain(StatusCode::NOT_FOUND, "the MCP endpoint is /mcp\n");
    }
    let (head, body) = request.into_parts();
    if !proved(&head.headers, &server.credential) {
        let refusal = reply::plain(StatusCode::UNAUTHORIZED, "this server answers only to its own credential\n");
        return reply::with_header(refusal, header::WWW_AUTHENTICATE, "Bearer");
    }
    if head.headers.contains_key(header::ORIGIN) {
        return reply::plain(StatusCode::FORBIDDEN, "browsers may not call this server\n");
    }
    match head.method {
        Method::POST => post(server, &head.headers, body).await,
        Method::GET => legacy::open_stream(server, &head.headers),
        Method::DELETE => legacy::end_session(server, &head.headers),
        _ => {
            let refusal = reply::plain(StatusCode::METHOD_NOT_ALLOWED, "POST, GET or DELETE\n");
            reply::with_header(refusal, header::ALLOW, "POST, GET, DELETE")
        }
    }
}

async fn post(server: &Arc<DemoServer>, headers: &HeaderMap, body: Incoming) -> HttpReply {
    if !is_json(headers) {
        return reply::plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body must be application/json\n");
    }
    if !accepts(headers, "application/json") || !accepts(headers, "text/event-stream") {
        return reply::plain(
            StatusCode::NOT_ACCEPTABLE,
            "accept both application/json and text/event-stream\n",
        );
    }
    let whole = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await;
    let body = match whole {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return reply::plain(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large or broke off\n"),
        Err(_) => return reply::plain(StatusCode::REQUEST_TIMEOUT, "the body took too long\n"),
    };
    let message = match parse_message(&body) {
        Ok(message) => message,
        Err(refusal) => return *refusal,
    };
    if modern::is_modern(&message, headers) {
        modern::answer(server, headers, message)
    } else {
        legacy::answer(server, headers, message)
    }
}

fn parse_message(body: &Bytes) -> Result<DemoMessage, Box<HttpReply>> {
    let refuse = |id: &Value, code, text: &str| Err(Box::new(reply::error(StatusCode::BAD_REQUEST, id, code, text)));
    let value = match serde_json::from_slice(body) {
        Ok(Value::Object(value)) => value,
        Ok(_) => return refuse(&Value::Null, reply::INVALID_REQUEST, "a message is one JSON object"),
        Err(error) => return refuse(&Value::Null, reply::PARSE_ERROR, &format!("not JSON: {error}")),
    };
    let mut value = value;
    let id = value.remove("id");
    let known_id = match &id {
        None => &Value::Null,
        Some(id) if id.is_string() || id.is_i64() || id.is_u64() => id,
        Some(_) => return refuse(&Value::Null, reply::INVALID_REQUEST, "an id is a string or an integer"),
    };
    if value.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return refuse(known_id, reply::INVALID_REQUEST, "`jsonrpc` must be \"2.0\"");
    }
    let Some(Value::String(method)) = value.remove("method") else {
        // a response ends here too: this server sends no requests to its clients
        return refuse(known_id, reply::INVALID_REQUEST, "`method` is missing");
    };
    let params = match value.remove("params") {
        None => Map::new(),
        Some(Value::Object(params)) => params,
        Some(_) => return refuse(known_id, reply::INVALID_PARAMS, "`params` must be an object"),
    };
    Ok(DemoMessage { id, method, params })
}

/// Whether exactly one `Authorization` header is there and holds the credential; compared in constant time.
fn proved(headers: &HeaderMap, credential: &str) -> bool {
    let mut presented = headers.get_all(header::AUTHORIZATION).iter();
    match (presented.next(), presented.next()) {
        (Some(one), None) => one.as_bytes().ct_eq(credential.as_bytes()).into(),
        _ => false,
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|value| value.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

/// Whether `Accept` names this media type; `*/*` is enough, as on many servers.
pub(super) fn accepts(headers: &HeaderMap, wanted: &str) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|range| range.split(';').next())
        .any(|range| range.trim().eq_ignore_ascii_case(wanted) || range.trim() == "*/*")
}

/// The value of a header that occurs once; `None` if it is absent, repeated or not text.
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok().map(str::trim),
        _ => None,
    }
}
