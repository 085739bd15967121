//! Builds HTTP responses: JSON-RPC results and errors, as JSON or as an event stream. Callers choose which.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

pub(super) type HttpReply = Response<UnsyncBoxBody<Bytes, Infallible>>;

pub(super) const PARSE_ERROR: i64 = -32700;
pub(super) const INVALID_REQUEST: i64 = -32600;
pub(super) const METHOD_NOT_FOUND: i64 = -32601;
pub(super) const INVALID_PARAMS: i64 = -32602;
pub(super) const SESSION_NOT_FOUND: i64 = -32001;
pub(super) const HEADER_MISMATCH: i64 = -32020;
pub(super) const UNSUPPORTED_VERSION: i64 = -32022;

pub(super) fn result(id: &Value, result: &Value) -> HttpReply {
    json_body(StatusCode::OK, &json!({ "jsonrpc": "2.0", "id": id, "result": result }))
}

pub(super) fn error(status: StatusCode, id: &Value, code: i64, message: &str) -> HttpReply {
    error_with(status, id, code, message, None)
}

pub(super) fn error_with(status: StatusCode, id: &Value, code: i64, message: &str, data: Option<Value>) -> HttpReply {
    let mut error = json!({ "code": code, "message": message });
    if let Some(data) = data {
        error["data"] = data;
    }
    json_body(status, &json!({ "jsonrpc": "2.0", "id": id, "error": error }))
}

pub(super) fn plain(status: StatusCode, text: &'static str) -> HttpReply {
    with_header(
        respond(status, Full::from(text).boxed_unsync()),
        header::CONTENT_TYPE,
        "text/plain; charset=utf-8",
    )
}

pub(super) fn empty(status: StatusCode) -> HttpReply {
    respond(status, Full::default().boxed_unsync())
}

/// An event stream. It ends when the sender is dropped; the sender is closed when the client disconnects.
pub(super) fn events(events: mpsc::Receiver<Bytes>) -> HttpReply {
    let reply = respond(StatusCode::OK, Events(events).boxed_unsync());
    let reply = with_header(reply, header::CONTENT_TYPE, "text/event-stream");
    let reply = with_header(reply, header::CACHE_CONTROL, "no-store");
    with_header(reply, HeaderName::from_static("x-accel-buffering"), "no")
}

pub(super) fn sse_event(message: &Value) -> Bytes {
    Bytes::from(format!("event: message\ndata: {message}\n\n"))
}

pub(super) fn with_header(mut reply: HttpReply, name: HeaderName, value: &'static str) -> HttpReply {
    reply.headers_mut().insert(name, HeaderValue::from_static(value));
    reply
}

fn json_body(status: StatusCode, body: &Value) -> HttpReply {
    let reply = respond(status, Full::from(body.to_string()).boxed_unsync());
    with_header(reply, header::CONTENT_TYPE, "application/json")
}

fn respond(status: StatusCode, body: UnsyncBoxBody<Bytes, Infallible>) -> HttpReply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    reply
}

/// The receiving end as a response body.
struct Events(mpsc::Receiver<Bytes>);

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}
