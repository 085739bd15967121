//! The legacy era, 2024-11-05 to 2025-11-25: `initialize`, sessions, the GET stream and DELETE.

use super::http::{DemoMessage, VERSION_HEADER, accepts, single};
use super::reply::{self, HttpReply};
use super::tools::{self, CallOutcome};
use super::{DemoServer, random_hex};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The supported versions, oldest first. A client that asks for another one is offered the last.
pub(super) const VERSIONS: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];

const SESSION_HEADER: &str = "mcp-session-id";
const MAX_SESSIONS: usize = 1_000;
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The open sessions. Past `MAX_SESSIONS` the oldest is ended for a new one.
#[derive(Default)]
pub(super) struct DemoSessions(Mutex<Table>);

#[derive(Default)]
struct Table {
    open: HashMap<String, DemoSession>,
    order: VecDeque<String>,
}

#[derive(Clone)]
struct DemoSession {
    version: &'static str,
    /// Cancelled at the end of the session, which ends its streams.
    end: CancellationToken,
}

impl DemoSessions {
    fn start(&self, version: &'static str, end: CancellationToken) -> Option<String> {
        let id = random_hex()?;
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while table.open.len() >= MAX_SESSIONS {
            let oldest = table.order.pop_front()?;
            if let Some(session) = table.open.remove(&oldest) {
                session.end.cancel();
            }
        }
        table.order.push_back(id.clone());
        table.open.insert(id.clone(), DemoSession { version, end });
        Some(id)
    }

    fn find(&self, id: &str) -> Option<DemoSession> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.open.get(id).cloned()
    }

    fn end(&self, id: &str) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.order.retain(|known| known != id);
        if let Some(session) = table.open.remove(id) {
            session.end.cancel();
        }
    }
}

pub(super) fn answer(server: &Arc<DemoServer>, headers: &HeaderMap, message: DemoMessage) -> HttpReply {
    if message.method == "initialize" {
        return initialize(server, &message);
    }
    // a request without a session id is served too, so that one curl command is enough: no method here depends on a session
    let session = if headers.contains_key(SESSION_HEADER) || message.id.is_none() {
        session(server, headers, message.id.as_ref())
    } else {
        Ok(DemoSession {
            version: VERSIONS[VERSIONS.len() - 1],
            end: server.stop.child_token(),
        })
    };
    let session = match session {
        Ok(session) => session,
        Err(refusal) => return *refusal,
    };
    let Some(id) = &message.id else {
        return reply::empty(StatusCode::ACCEPTED);
    };
    match message.method.as_str() {
        "ping" => reply::result(id, &json!({})),
        "tools/list" if message.params.contains_key("cursor") => {
            reply::error(StatusCode::OK, id, reply::INVALID_PARAMS, "there is no further page")
        }
        "tools/list" => reply::result(id, &json!({ "tools": tools::definitions() })),
        "tools/call" => match tools::call(server, &message.params) {
            Ok(CallOutcome::Done(result)) => reply::result(id, &result),
            Ok(CallOutcome::Count(count)) => count.stream(server, id.clone(), session.end, |result| result),
            Err(text) => reply::error(StatusCode::OK, id, reply::INVALID_PARAMS, &text),
        },
        other => {
            let text = format!("there is no method `{other}`");
            reply::error(StatusCode::OK, id, reply::METHOD_NOT_FOUND, &text)
        }
    }
}

/// GET: an event stream with keep-alive comments only, since this server sends no message of its own.
pub(super) fn open_stream(server: &Arc<DemoServer>, headers: &HeaderMap) -> HttpReply {
    if !accepts(headers, "text/event-stream") {
        return reply::plain(StatusCode::NOT_ACCEPTABLE, "accept text/event-stream\n");
    }
    let session = match session(server, headers, None) {
        Ok(session) => session,
        Err(refusal) => return *refusal,
    };
    let (sender, receiver) = mpsc::channel(1);
    server.streams.spawn(async move {
        while sender.send(Bytes::from_static(b": keep-alive\n\n")).await.is_ok() {
            tokio::select! {
                () = session.end.cancelled() => return,
                () = sender.closed() => return,
                () = tokio::time::sleep(KEEP_ALIVE) => {}
            }
        }
    });
    reply::events(receiver)
}

/// DELETE: ends the session.
pub(super) fn end_session(server: &Arc<DemoServer>, headers: &HeaderMap) -> HttpReply {
    if let Err(refusal) = session(server, headers, None) {
        return *refusal;
    }
    if let Some(id) = single(headers, SESSION_HEADER) {
        server.sessions.end(id);
    }
    reply::empty(StatusCode::NO_CONTENT)
}

fn initialize(server: &Arc<DemoServer>, message: &DemoMessage) -> HttpReply {
    let Some(id) = &message.id else {
        let text = "`initialize` is a request";
        return reply::error(StatusCode::BAD_REQUEST, &Value::Null, reply::INVALID_REQUEST, text);
    };
    let Some(asked) = message.params.get("protocolVersion").and_then(Value::as_str) else {
        let text = "`protocolVersion` is missing";
        return reply::error(StatusCode::OK, id, reply::INVALID_PARAMS, text);
    };
    let latest = VERSIONS[VERSIONS.len() - 1];
    let version = VERSIONS.into_iter().find(|version| *version == asked).unwrap_or(latest);
    let Some(session) = server.sessions.start(version, server.stop.child_token()) else {
        return reply::plain(StatusCode::INTERNAL_SERVER_ERROR, "no random bytes\n");
    };
    let mut answer = reply::result(
        id,
        &json!({
            "protocolVersion": version,
            "capabilities": { "tools": { "listChanged": false } },
            "serverInfo": tools::server_info(),
            "instructions": tools::INSTRUCTIONS,
        }),
    );
    let session = HeaderValue::from_str(&session).expect("hex digits are a header value");
    answer.headers_mut().insert(SESSION_HEADER, session);
    answer
}

/// The session that `Mcp-DemoSession-Id` names, or the response that refuses the request.
fn session(server: &DemoServer, headers: &HeaderMap, id: Option<&Value>) -> Result<DemoSession, Box<HttpReply>> {
    let refuse = |status, code, text: &str| Err(Box::new(reply::error(status, id.unwrap_or(&Value::Null), code, text)));
    let Some(name) = single(headers, SESSION_HEADER) else {
        let text = "`Mcp-Session-Id` is missing; begin with `initialize`";
        return refuse(StatusCode::BAD_REQUEST, reply::INVALID_REQUEST, text);
    };
    let Some(session) = server.sessions.find(name) else {
        return refuse(StatusCode::NOT_FOUND, reply::SESSION_NOT_FOUND, "there is no such session");
    };
    // `MCP-Protocol-Version` may be absent: versions before 2025-06-18 do not have it
    if headers.contains_key(VERSION_HEADER) && single(headers, VERSION_HEADER) != Some(session.version) {
        let text = format!("this session speaks {}", session.version);
        return refuse(StatusCode::BAD_REQUEST, reply::INVALID_REQUEST, &text);
    }
    Ok(session)
}
