//! The session of a legacy client at the combined endpoint. The client's `initialize` parameters are sealed into the session
//! id; the sessions with the servers are held here.
//! A server session is opened when the first call to that server is permitted. Any instance can open its own, and it is
//! opened again if the server loses it.

use super::Asker;
use super::names::{Names, Origin};
use super::through::{Through, all, whole};
use crate::domain::{Digest, MessageId, Principal, ProtocolVersion, Reason, Refusal, RequestId, ServerName, Timestamp};
use crate::gate::routing::HttpVerb;
use crate::mcp;
use crate::upstream::{Session, UpstreamSessionId};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
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
pub struct Introduction {
    capabilities: Map<String, Value>,
    info: Value,
}

/// One client's combined session, with its sessions on the individual servers.
pub struct Conversation {
    /// Identifies session and principal. The label is too short to be unique.
    pub key: Digest,
    /// The session's name in audit records.
    pub label: String,
    pub version: ProtocolVersion,
    introduction: Introduction,
    /// One cell per server, so that concurrent calls open only one session.
    seats: Mutex<BTreeMap<ServerName, Arc<OnceCell<Held>>>>,
    wishes: Mutex<Wishes>,
    /// Changes whenever a server session is opened or the combined session ends.
    joined: watch::Sender<u64>,
}

/// Session state that is replayed to a server when it gets a new session.
#[derive(Default)]
struct Wishes {
    /// The level of the last `logging/setLevel`.
    level: Option<Level>,
    /// Subscribed resources, by server and without prefix.
    subscribed: BTreeMap<ServerName, BTreeSet<String>>,
}

/// An MCP log level, which has the names of the syslog severities (RFC 5424).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Debug,
    Info,
    Notice,
    Warning,
    Error,
    Critical,
    Alert,
    Emergency,
}

impl Level {
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
pub struct Held {
    pub session: Option<Session>,
    pub version: ProtocolVersion,
    /// The sealed session id, as clients of the server's own endpoint send it.
    sealed: Option<HeaderValue>,
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

impl Introduction {
    /// Reads the parameters from the body of an `initialize`. If they are too long, drops the optional capabilities first,
    /// then all capabilities, then `clientInfo`.
    pub fn read(body: &[u8]) -> Self {
        let message: Value = serde_json::from_slice(body).unwrap_or_default();
        let said = |name: &str, most: usize| -> String {
            let text = message["params"]["clientInfo"][name].as_str().unwrap_or("unknown");
            text.chars().take(most).collect()
        };
        let mut introduction = Self {
            capabilities: message["params"]["capabilities"].as_object().cloned().unwrap_or_default(),
            info: json!({ "name": said("name", 40), "version": said("version", 20) }),
        };
        if introduction.text().len() > LONGEST {
            introduction.capabilities.retain(|name, _| NEEDED.contains(&name.as_str()));
        }
        if introduction.text().len() > LONGEST {
            introduction.capabilities.clear();
        }
        if introduction.text().len() > LONGEST {
            introduction.info = json!({ "name": "unknown", "version": "unknown" });
        }
        introduction
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

impl Conversation {
    /// Restores a session from its id, with no server sessions open.
    pub fn resume(key: Digest, session: &Session) -> Option<Self> {
        Some(Self {
            key,
            label: session.label(),
            version: session.version,
            introduction: Introduction::of(&session.id)?,
            seats: Mutex::default(),
            wishes: Mutex::default(),
            joined: watch::Sender::default(),
        })
    }

    /// All servers with an open session.
    pub fn open(&self) -> Vec<(ServerName, Held)> {
        let seats = self.seats();
        let open = seats
            .iter()
            .filter_map(|(server, cell)| Some((server.clone(), cell.get()?.clone())));
        open.collect()
    }

    /// The open session on one server.
    pub fn held(&self, server: &ServerName) -> Option<Held> {
        self.seats().get(server)?.get().cloned()
    }

    /// Forgets a session that the server has lost, unless another has replaced it; the next call opens a new one.
    pub fn lose(&self, server: &ServerName, lost: &Held) {
        let mut seats = self.seats();
        let same = |cell: &Arc<OnceCell<Held>>| cell.get().is_some_and(|held| held.is_same(lost));
        if seats.get(server).is_some_and(same) {
            seats.remove(server);
        }
    }

    /// Forgets all server sessions and returns them, so that they can be ended at the servers.
    pub fn end(&self) -> Vec<(ServerName, Held)> {
        let ended = self.open();
        self.seats().clear();
        self.joined.send_modify(|count| *count += 1);
        ended
    }

    pub fn set_level(&self, level: Level) {
        self.wishes().level = Some(level);
    }

    /// Stores a subscription for replay; does nothing beyond the limits.
    pub fn subscribe(&self, server: &ServerName, uri: &str) {
        let mut wishes = self.wishes();
        let all = || wishes.subscribed.values().flatten();
        let bytes: usize = all().map(String::len).sum();
        if all().count() < MOST_SUBSCRIBED && bytes + uri.len() <= LONGEST_SUBSCRIBED {
            wishes.subscribed.entry(server.clone()).or_default().insert(uri.to_owned());
        }
    }

    pub fn unsubscribe(&self, server: &ServerName, uri: &str) {
        if let Some(subscribed) = self.wishes().subscribed.get_mut(server) {
            subscribed.remove(uri);
        }
    }

    fn wishes(&self) -> std::sync::MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signals each newly opened server session.
    pub fn joined(&self) -> watch::Receiver<u64> {
        self.joined.subscribe()
    }

    fn cell(&self, server: &ServerName) -> Arc<OnceCell<Held>> {
        self.seats().entry(server.clone()).or_default().clone()
    }

    fn seats(&self) -> std::sync::MutexGuard<'_, BTreeMap<ServerName, Arc<OnceCell<Held>>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// The request headers for a message in this session.
    pub fn fields(&self) -> HeaderMap {
        let mut fields = plain_fields();
        fields.insert(mcp::PROTOCOL_VERSION, HeaderValue::from_static(self.version.as_str()));
        if let Some(sealed) = &self.sealed {
            fields.insert(mcp::SESSION_ID, sealed.clone());
        }
        fields
    }

    pub fn is_same(&self, other: &Held) -> bool {
        self.session == other.session
    }

    fn is_over(&self, now: Timestamp) -> bool {
        self.session.as_ref().is_some_and(|session| session.expires_at <= now)
    }
}

impl Through {
    /// The session for a call, opened if there is none. Of concurrent calls one opens it and the others wait.
    pub fn session(&self) -> Pin<Box<dyn Future<Output = Result<Held, Refusal>> + Send + '_>> {
        Box::pin(async move {
            let conversation = self.conversation.as_ref().ok_or(Reason::Internal)?;
            let now = (self.asker.gate.parts.clock.now)();
            if let Some(held) = conversation.held(self.server()).filter(|held| held.is_over(now)) {
                conversation.lose(self.server(), &held);
            }
            let cell = conversation.cell(self.server());
            let held = cell.get_or_try_init(|| self.introduce(conversation)).await?;
            Ok(held.clone())
        })
    }

    /// Sends the client's `initialize` to the server as a call of its own, authorised and recorded, followed by
    /// `notifications/initialized` and the replay of session state.
    async fn introduce(&self, conversation: &Arc<Conversation>) -> Result<Held, Refusal> {
        let server = self.server();
        let Introduction { capabilities, info } = &conversation.introduction;
        let params =
            json!({ "protocolVersion": conversation.version.as_str(), "capabilities": capabilities, "clientInfo": info });
        let body = format!(r#"{{"jsonrpc":"2.0","id":{OPENING},"method":"initialize","params":{params}}}"#);
        let plainly = Through {
            asker: self.asker.clone(),
            names: Names::new(server.clone(), Origin::Answer),
            conversation: Some(conversation.clone()),
            opens: false,
            is_counted: true,
        };
        let asked = plainly.ask(HttpVerb::Post, &plain_fields(), body.into()).await;
        let response = asked.answered?;
        let refused = || Refusal::with_detail(Reason::UpstreamBroken, "it opened no session");
        let sealed = response.headers().get(mcp::SESSION_ID).cloned();
        let id = MessageId::from_json(Bytes::from_static(OPENING.as_bytes()));
        let answer = whole(response, &id).await.ok_or_else(refused)?;
        let version = mcp::negotiated_version(&answer).and_then(|version| ProtocolVersion::parse(&version));
        let version = version.ok_or_else(refused)?;
        let gate = &self.asker.gate;
        let opened = |sealed: &HeaderValue| {
            let keys = gate.parts.upstreams.sessions();
            let now = (gate.parts.clock.now)();
            keys.open(sealed.to_str().ok()?, &self.asker.principal, Some(server), now)
        };
        let held = Held {
            session: sealed.as_ref().and_then(opened),
            version,
            sealed,
        };
        let initialized = Bytes::from_static(br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
        plainly.ask(HttpVerb::Post, &held.fields(), initialized).await.answered?;
        let _ = timeout(PATIENCE, self.wish_again(conversation, &plainly, &held)).await;
        if gate.combined.is_ended(conversation) {
            drop(plainly.ask(HttpVerb::Delete, &held.fields(), Bytes::new()).await);
            return Err(Reason::UnknownSession.into());
        }
        conversation.joined.send_modify(|count| *count += 1);
        Ok(held)
    }

    /// Replays the log level and subscriptions that the client set before this server had a session. The server's answers
    /// are ignored.
    async fn wish_again(&self, conversation: &Conversation, plainly: &Through, held: &Held) {
        let (level, subscribed) = {
            let wishes = conversation.wishes();
            (
                wishes.level,
                wishes.subscribed.get(self.server()).cloned().unwrap_or_default(),
            )
        };
        let subscriptions = subscribed.iter().enumerate().map(|(number, uri)| {
            let params = json!({ "uri": uri });
            format!(r#"{{"jsonrpc":"2.0","id":"guardian/subscribe/{number}","method":"resources/subscribe","params":{params}}}"#)
        });
        let level = level.filter(|_| !self.lacks("logging")).map(Level::message);
        let wishes = level.into_iter().chain(subscriptions.map(Bytes::from)).map(|body| {
            let asking = async move { drop(plainly.ask(HttpVerb::Post, &held.fields(), body).await) };
            Box::pin(asking) as Pin<Box<dyn Future<Output = ()> + Send>>
        });
        all(wishes.collect()).await;
    }
}

impl Asker {
    /// Opens the sealed session id; `None` unless it is this caller's own combined session.
    pub fn conversation(&self, sealed: &str) -> Option<Arc<Conversation>> {
        let gate = &self.gate;
        let keys = gate.parts.upstreams.sessions();
        let session = keys.open(sealed, &self.principal, None, (gate.parts.clock.now)())?;
        gate.combined.conversation(&self.principal, &session)
    }
}

/// The cache key of a session, bound to its principal and client.
pub fn key_of(principal: &Principal, session: &Session) -> Digest {
    let (issuer, subject) = (principal.issuer.as_str(), principal.subject.as_str());
    let client = principal.client.as_ref().map(ToString::to_string);
    Digest::of(json!([issuer, subject, client, session.id.as_str()]).to_string().as_bytes())
}

/// The content headers of every POST.
pub fn plain_fields() -> HeaderMap {
    let mut fields = HeaderMap::new();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    fields.insert(
        header::ACCEPT,
        HeaderValue::from_static("application/json, text/event-stream"),
    );
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn introduction(capabilities: Value) -> Introduction {
        let info = json!({ "name": "n".repeat(300), "version": "1", "title": "t" });
        let message = json!({ "params": { "capabilities": capabilities, "clientInfo": info } });
        Introduction::read(message.to_string().as_bytes())
    }

    #[test]
    fn what_a_client_says_of_itself_travels_in_its_session() {
        let said = json!({ "roots": { "listChanged": true }, "elicitation": { "form": {}, "url": {} }, "experimental": {} });
        let introduction = introduction(said.clone());
        assert_eq!(Value::Object(introduction.capabilities.clone()), said);
        let id = introduction.session_id(RequestId(Uuid::nil())).unwrap();
        assert_eq!(Introduction::of(&id), Some(introduction));
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
        let nothing = Introduction::read(b"{}");
        assert!(nothing.session_id(RequestId(Uuid::nil())).is_some());
    }
}
