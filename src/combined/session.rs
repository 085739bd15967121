//! The session of a legacy client at the combined endpoint. The client's `initialize` parameters are sealed into the session
//! id; the sessions with the servers are held here.
//! A server session is opened when the first call to that server is permitted. Any instance can open its own, and it is
//! opened again if the server loses it.

use super::CombinedCaller;
use super::server_call::{ServerCall, ServerCallResult, ServerPart, collect_answer};
use crate::domain::{
    ClientRequests, Digest, MessageId, Method, Principal, ProtocolVersion, Reason, Refusal, RequestId, ServerName, Timestamp,
};
use crate::gate::NegotiatedMessage;
use crate::mcp::{self, Namespace, StreamKind};
use crate::sessions::{Session, UpstreamSessionId};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::future::join_all;
use http::HeaderValue;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OnceCell, watch};
use tokio::time::timeout;

/// The client's capabilities and `clientInfo`, replayed to each server in `initialize`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientInfo {
    capabilities: Map<String, Value>,
    info: Value,
}

/// One client's combined session, with its sessions on the individual servers.
pub struct CombinedSession {
    /// Identifies session and principal. The label is too short to be unique.
    pub key: Digest,
    /// The session's name in audit records.
    pub label: String,
    pub version: ProtocolVersion,
    client_info: ClientInfo,
    /// One cell per server, so that concurrent calls open only one session.
    server_sessions: Mutex<BTreeMap<ServerName, Arc<OnceCell<ServerSession>>>>,
    replay_state: Mutex<ReplayState>,
    /// Changes whenever a server session is opened or the combined session ends.
    session_opened: watch::Sender<u64>,
}

/// Session state that is replayed to a server when it gets a new session.
#[derive(Default)]
struct ReplayState {
    /// The level of the last `logging/setLevel`.
    level: Option<LogLevel>,
    /// Subscribed resources, by server and without prefix.
    subscribed: BTreeMap<ServerName, BTreeSet<String>>,
}

/// An MCP log level, which has the names of the syslog severities (RFC 5424).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Debug,
    Info,
    Notice,
    Warning,
    Error,
    Critical,
    Alert,
    Emergency,
}

impl LogLevel {
    /// Reads the level from the body of a `logging/setLevel`.
    pub fn read(body: &[u8]) -> Option<Self> {
        let mut message: Value = serde_json::from_slice(body).ok()?;
        serde_json::from_value(message["params"]["level"].take()).ok()
    }

    fn message(self) -> Bytes {
        json!({ "jsonrpc": "2.0", "id": "guardian/level", "method": "logging/setLevel", "params": { "level": self } })
            .to_string()
            .into()
    }
}

/// An open session on one server. `session` is `None` if the server uses no session ids.
#[derive(Debug, Clone)]
pub struct ServerSession {
    pub session: Option<Session>,
    pub version: ProtocolVersion,
}

/// Largest JSON of the client's parameters, in bytes: it must fit into a session id.
const LONGEST: usize = 700;
/// Capabilities that servers act upon. If there is not enough room, only these are kept.
const NEEDED: [&str; 3] = ["roots", "sampling", "elicitation"];
/// Limits for the replayed subscriptions of all servers together: their number and their bytes.
const MOST_SUBSCRIBED: usize = 64;
const LONGEST_SUBSCRIBED: usize = 16 * 1024;
/// How long a call waits for the replay of earlier requests to a new server session.
const PATIENCE: Duration = Duration::from_secs(2);
/// The JSON-RPC id of Guardian's own `initialize`; no client's request can be in flight under it.
const OPENING: &str = "\"guardian/initialize\"";

impl ClientInfo {
    /// Reads the parameters from the body of an `initialize`. If they are too long, drops the optional capabilities first,
    /// then all capabilities, then `clientInfo`.
    pub fn read(body: &[u8]) -> Self {
        let message: Value = serde_json::from_slice(body).unwrap_or_default();
        let said = |name: &str, most: usize| -> String {
            let text = message["params"]["clientInfo"][name].as_str().unwrap_or("unknown");
            text.chars().take(most).collect()
        };
        let mut client_info = Self {
            capabilities: message["params"]["capabilities"].as_object().cloned().unwrap_or_default(),
            info: json!({ "name": said("name", 40), "version": said("version", 20) }),
        };
        if client_info.text().len() > LONGEST {
            client_info.capabilities.retain(|name, _| NEEDED.contains(&name.as_str()));
        }
        if client_info.text().len() > LONGEST {
            client_info.capabilities.clear();
        }
        if client_info.text().len() > LONGEST {
            client_info.info = json!({ "name": "unknown", "version": "unknown" });
        }
        client_info
    }

    /// The session id that carries these parameters; the request id makes it unique.
    pub fn session_id(&self, id: RequestId) -> Option<UpstreamSessionId> {
        UpstreamSessionId::parse(&format!("{}.{}", id.0.simple(), URL_SAFE_NO_PAD.encode(self.text())))
    }

    fn of(id: &UpstreamSessionId) -> Option<Self> {
        let (_, written) = id.as_str().split_once('.')?;
        let text = URL_SAFE_NO_PAD.decode(written).ok()?;
        let (capabilities, info) = serde_json::from_slice(&text).ok()?;
        Some(Self { capabilities, info })
    }

    fn text(&self) -> String {
        json!([self.capabilities, self.info]).to_string()
    }
}

impl CombinedSession {
    /// The requests that the client declared to answer.
    pub fn declared_requests(&self) -> ClientRequests {
        mcp::declared_requests(&self.client_info.capabilities)
    }

    /// Restores a session from its id, with no server sessions open.
    pub fn resume(key: Digest, session: &Session) -> Option<Self> {
        Some(Self {
            key,
            label: session.label(),
            version: session.version,
            client_info: ClientInfo::of(&session.id)?,
            server_sessions: Mutex::default(),
            replay_state: Mutex::default(),
            session_opened: watch::Sender::default(),
        })
    }

    /// All servers with an open session.
    pub fn open_sessions(&self) -> Vec<(ServerName, ServerSession)> {
        let seats = self.server_sessions();
        let open = seats
            .iter()
            .filter_map(|(server, cell)| Some((server.clone(), cell.get()?.clone())));
        open.collect()
    }

    /// The open session on one server.
    pub fn server_session(&self, server: &ServerName) -> Option<ServerSession> {
        self.server_sessions().get(server)?.get().cloned()
    }

    /// Forgets a session that the server has lost, unless another has replaced it; the next call opens a new one.
    pub fn invalidate(&self, server: &ServerName, lost: &ServerSession) {
        let mut seats = self.server_sessions();
        let same = |cell: &Arc<OnceCell<ServerSession>>| cell.get().is_some_and(|server_session| server_session.is_same(lost));
        if seats.get(server).is_some_and(same) {
            seats.remove(server);
        }
    }

    /// Forgets all server sessions and returns them, so that they can be ended at the servers.
    pub fn end(&self) -> Vec<(ServerName, ServerSession)> {
        let ended = self.open_sessions();
        self.server_sessions().clear();
        self.session_opened.send_modify(|count| *count += 1);
        ended
    }

    pub fn set_level(&self, level: LogLevel) {
        self.replay_state().level = Some(level);
    }

    /// Stores a subscription for replay; does nothing beyond the limits.
    pub fn subscribe(&self, server: &ServerName, uri: &str) {
        let mut replay_state = self.replay_state();
        let all = || replay_state.subscribed.values().flatten();
        let bytes: usize = all().map(String::len).sum();
        if all().count() < MOST_SUBSCRIBED && bytes + uri.len() <= LONGEST_SUBSCRIBED {
            replay_state
                .subscribed
                .entry(server.clone())
                .or_default()
                .insert(uri.to_owned());
        }
    }

    pub fn unsubscribe(&self, server: &ServerName, uri: &str) {
        if let Some(subscribed) = self.replay_state().subscribed.get_mut(server) {
            subscribed.remove(uri);
        }
    }

    fn replay_state(&self) -> std::sync::MutexGuard<'_, ReplayState> {
        self.replay_state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signals each newly opened server session.
    pub fn session_opened(&self) -> watch::Receiver<u64> {
        self.session_opened.subscribe()
    }

    fn cell(&self, server: &ServerName) -> Arc<OnceCell<ServerSession>> {
        self.server_sessions().entry(server.clone()).or_default().clone()
    }

    fn server_sessions(&self) -> std::sync::MutexGuard<'_, BTreeMap<ServerName, Arc<OnceCell<ServerSession>>>> {
        self.server_sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServerSession {
    pub fn is_same(&self, other: &ServerSession) -> bool {
        self.session == other.session
    }

    fn is_over(&self, now: Timestamp) -> bool {
        self.session.as_ref().is_some_and(|session| session.expires_at <= now)
    }
}

impl ServerCall {
    /// The session for a call, opened if there is none. Of concurrent calls one opens it and the others wait.
    pub fn open_session(&self) -> Pin<Box<dyn Future<Output = Result<ServerSession, Refusal>> + Send + '_>> {
        Box::pin(async move {
            let session = self.session.as_ref().ok_or(Reason::Internal)?;
            let now = self.caller.combined.now();
            if let Some(server_session) = session
                .server_session(self.server())
                .filter(|server_session| server_session.is_over(now))
            {
                session.invalidate(self.server(), &server_session);
            }
            let cell = session.cell(self.server());
            let server_session = cell.get_or_try_init(|| self.initialize_server(session)).await?;
            Ok(server_session.clone())
        })
    }

    /// Sends the client's `initialize` to the server as a call of its own, authorised and recorded, followed by
    /// `notifications/initialized` and the replay of session state.
    async fn initialize_server(&self, session: &Arc<CombinedSession>) -> Result<ServerSession, Refusal> {
        let ClientInfo { capabilities, info } = &session.client_info;
        let params = mcp::initialize_params(session.version, capabilities, info);
        let body = format!(r#"{{"jsonrpc":"2.0","id":{OPENING},"method":"initialize","params":{params}}}"#);
        let plainly = ServerCall {
            caller: self.caller.clone(),
            namespace: Namespace::new(self.server().clone(), StreamKind::Answer),
            session: Some(session.clone()),
            opens: false,
            is_counted: true,
        };
        let (context, message) = plainly.compose(body.into(), None)?;
        let response = match plainly.ask(ServerPart::new(context, message)).await.answered {
            Ok(answered) => answered.response,
            Err(refused) => return Err(refused.refusal),
        };
        let refused = || Refusal::with_detail(Reason::UpstreamBroken, "it opened no session");
        let sealed = response.headers().get(mcp::SESSION_ID).cloned();
        let id = MessageId::from_json(Bytes::from_static(OPENING.as_bytes()));
        let answer = collect_answer(response, &id).await.ok_or_else(refused)?;
        let parsed = mcp::ServerMessage::parse(&answer).ok();
        let version = parsed.and_then(|parsed| parsed.negotiated_version(&answer));
        let version = version.and_then(|version| ProtocolVersion::parse(&version));
        let server_session = ServerSession {
            session: match sealed {
                Some(sealed) => Some(self.unsealed(&sealed).ok_or_else(refused)?),
                None => None,
            },
            version: version.ok_or_else(refused)?,
        };
        let told = plainly.ask_in(&server_session, mcp::initialized()).await?;
        if let Err(refused) = told.answered {
            return Err(refused.refusal);
        }
        let _ = timeout(PATIENCE, self.replay_state(session, &plainly, &server_session)).await;
        if self.caller.combined.is_ended(session) {
            self.end_session(session, &plainly, &server_session).await;
            return Err(Reason::UnknownSession.into());
        }
        session.session_opened.send_modify(|count| *count += 1);
        Ok(server_session)
    }

    /// Ends a session of the server that came too late, if the server keeps sessions.
    async fn end_session(&self, session: &CombinedSession, plainly: &ServerCall, server_session: &ServerSession) {
        if server_session.session.is_none() {
            return;
        }
        let end = NegotiatedMessage::bodyless(Method::EndSession, None);
        let mut context = self.caller.part_context(session, self.server());
        context.message.method = Some(Method::EndSession);
        plainly.ask(ServerPart::in_session(context, end, server_session)).await;
    }

    fn unsealed(&self, sealed: &HeaderValue) -> Option<Session> {
        let combined = &self.caller.combined;
        let keys = &combined.parts.session_keys;
        keys.open(
            sealed.to_str().ok()?,
            &self.caller.principal,
            Some(self.server()),
            combined.now(),
        )
    }

    /// Replays the log level and subscriptions that the client set before this server had a session. The server's answers
    /// are ignored.
    async fn replay_state(&self, session: &CombinedSession, plainly: &ServerCall, server_session: &ServerSession) {
        let (level, subscribed) = {
            let replay_state = session.replay_state();
            (
                replay_state.level,
                replay_state.subscribed.get(self.server()).cloned().unwrap_or_default(),
            )
        };
        let subscriptions = subscribed.iter().enumerate().map(|(number, uri)| {
            let params = json!({ "uri": uri });
            format!(r#"{{"jsonrpc":"2.0","id":"guardian/subscribe/{number}","method":"resources/subscribe","params":{params}}}"#)
        });
        let level = level.filter(|_| !self.lacks("logging")).map(LogLevel::message);
        let wishes = level.into_iter().chain(subscriptions.map(Bytes::from));
        join_all(wishes.map(|body| plainly.ask_in(server_session, body))).await;
    }

    /// Sends a message that Guardian wrote in a session of the server.
    async fn ask_in(&self, server_session: &ServerSession, body: Bytes) -> Result<ServerCallResult, Refusal> {
        let (context, message) = self.compose(body, Some(server_session.version))?;
        Ok(self.ask(ServerPart::in_session(context, message, server_session)).await)
    }
}

impl CombinedCaller {
    /// Opens the sealed session id; `None` unless it is this caller's own combined session.
    pub fn session(&self, sealed: &str) -> Option<Arc<CombinedSession>> {
        let keys = &self.combined.parts.session_keys;
        let session = keys.open(sealed, &self.principal, None, self.combined.now())?;
        self.combined.session(&self.principal, &session)
    }
}

/// The cache key of a session, bound to its principal and client.
pub fn key_of(principal: &Principal, session: &Session) -> Digest {
    let (issuer, subject) = (principal.issuer.as_str(), principal.subject.as_str());
    let client = principal.client.as_ref().map(ToString::to_string);
    Digest::of(json!([issuer, subject, client, session.id.as_str()]).to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn introduction(capabilities: Value) -> ClientInfo {
        let info = json!({ "name": "n".repeat(300), "version": "1", "title": "t" });
        let message = json!({ "params": { "capabilities": capabilities, "clientInfo": info } });
        ClientInfo::read(message.to_string().as_bytes())
    }

    #[test]
    fn what_a_client_says_of_itself_travels_in_its_session() {
        let said = json!({ "roots": { "listChanged": true }, "elicitation": { "form": {}, "url": {} }, "experimental": {} });
        let client_info = introduction(said.clone());
        assert_eq!(Value::Object(client_info.capabilities.clone()), said);
        let id = client_info.session_id(RequestId(Uuid::nil())).unwrap();
        assert_eq!(ClientInfo::of(&id), Some(client_info));
    }

    #[test]
    fn however_much_a_client_says_there_is_a_session() {
        let long = json!({ "sampling": {}, "experimental": { "x": "y".repeat(5_000) } });
        assert_eq!(
            introduction(long).capabilities,
            *json!({ "sampling": {} }).as_object().unwrap()
        );
        let longer = introduction(json!({ "sampling": { "x": "\u{1F600}".repeat(5_000) } }));
        assert!(longer.capabilities.is_empty());
        assert!(longer.session_id(RequestId(Uuid::nil())).is_some());
        let nothing = ClientInfo::read(b"{}");
        assert!(nothing.session_id(RequestId(Uuid::nil())).is_some());
    }
}
