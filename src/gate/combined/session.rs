//! A legacy client's session of the combined endpoint: what it needs to open sessions of servers, sealed into its id, and the
//! sessions that are open here. They are opened when the first call for a server is permitted, by any instance anew, and
//! opened again when a server has lost its own.

use super::Asker;
use super::names::{Names, Origin};
use super::through::{Through, all, whole};
use crate::domain::{Digest, MessageId, Principal, ProtocolVersion, Reason, Refusal, RequestId, ServerName, Timestamp};
use crate::gate::site::Verb;
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

/// What a client said of itself, as servers are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    capabilities: Map<String, Value>,
    info: Value,
}

/// One client's conversation with all servers at once.
pub struct Conversation {
    /// Whose session it is, and which. A label would be too short to tell one from another.
    pub key: Digest,
    /// Names it in records.
    pub label: String,
    pub version: ProtocolVersion,
    introduction: Introduction,
    seats: Mutex<BTreeMap<ServerName, Arc<OnceCell<Held>>>>,
    wishes: Mutex<Wishes>,
    /// Told when a session is opened.
    joined: watch::Sender<u64>,
}

/// What holds for a session: said again to a server that gets another.
#[derive(Default)]
struct Wishes {
    /// Of the last `logging/setLevel`.
    level: Option<Level>,
    /// Resources that the client wants to hear of, as their servers call them.
    subscribed: BTreeMap<ServerName, BTreeSet<String>>,
}

/// How much a client wants to be told.
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
    /// Of the body of a `logging/setLevel`.
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

/// An open session of one server; without an id where the server keeps none.
#[derive(Debug, Clone)]
pub struct Held {
    pub session: Option<Session>,
    pub version: ProtocolVersion,
    /// The session as clients bring it.
    sealed: Option<HeaderValue>,
}

/// What a client says of itself has to fit into the id of its session.
const LONGEST: usize = 700;
/// What servers act upon; the rest is said if there is room.
const NEEDED: [&str; 3] = ["roots", "sampling", "elicitation"];
/// Of all servers: what is remembered for one that gets another session, and the bytes of it.
const MOST_SUBSCRIBED: usize = 64;
const LONGEST_SUBSCRIBED: usize = 16 * 1024;
/// How long a call waits until its server has heard again what was wished before.
const PATIENCE: Duration = Duration::from_secs(2);
/// No client has an id like it under way.
const OPENING: &str = "\"guardian/initialize\"";

impl Introduction {
    /// Of the body of an `initialize`.
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

    /// What the id of the session holds; `id` makes it one of a kind.
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
    /// As the id of the session says.
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

    /// The servers that know this client now.
    pub fn open(&self) -> Vec<(ServerName, Held)> {
        let seats = self.seats();
        let open = seats
            .iter()
            .filter_map(|(server, cell)| Some((server.clone(), cell.get()?.clone())));
        open.collect()
    }

    pub fn held(&self, server: &ServerName) -> Option<Held> {
        self.seats().get(server)?.get().cloned()
    }

    /// The server has lost this session: the next call opens another.
    pub fn lose(&self, server: &ServerName, lost: &Held) {
        let mut seats = self.seats();
        let same = |cell: &Arc<OnceCell<Held>>| cell.get().is_some_and(|held| held.is_same(lost));
        if seats.get(server).is_some_and(same) {
            seats.remove(server);
        }
    }

    /// Ends all at once and tells which there were.
    pub fn end(&self) -> Vec<(ServerName, Held)> {
        let ended = self.open();
        self.seats().clear();
        self.joined.send_modify(|count| *count += 1);
        ended
    }

    pub fn set_level(&self, level: Level) {
        self.wishes().level = Some(level);
    }

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
    /// The fields of a message in this session.
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
    /// The session that a call goes into. Of several that come at once, one opens it and the others wait.
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

    /// `initialize` as this client would have said it, judged and recorded as if it had.
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
        let asked = plainly.ask(Verb::Post, &plain_fields(), body.into()).await;
        let response = asked.answered?;
        let refused = || Refusal::with_detail(Reason::UpstreamBroken, "it opened no session");
        let sealed = response.headers().get(mcp::SESSION_ID).cloned();
        let id = MessageId::from_json(Bytes::from_static(OPENING.as_bytes()));
        let answer = whole(response, &id).await.ok_or_else(refused)?;
        let version = mcp::negotiated(&answer).and_then(|version| ProtocolVersion::parse(&version));
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
        plainly.ask(Verb::Post, &held.fields(), initialized).await.answered?;
        let _ = timeout(PATIENCE, self.wish_again(conversation, &plainly, &held)).await;
        if gate.combined.is_ended(conversation) {
            drop(plainly.ask(Verb::Delete, &held.fields(), Bytes::new()).await);
            return Err(Reason::UnknownSession.into());
        }
        conversation.joined.send_modify(|count| *count += 1);
        Ok(held)
    }

    /// What the client said of its session before this server knew it. What the server makes of it changes nothing.
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
            let asking = async move { drop(plainly.ask(Verb::Post, &held.fields(), body).await) };
            Box::pin(asking) as Pin<Box<dyn Future<Output = ()> + Send>>
        });
        all(wishes.collect()).await;
    }
}

impl Asker {
    /// The session a legacy client names, if it is this caller's own of the combined endpoint.
    pub fn conversation(&self, sealed: &str) -> Option<Arc<Conversation>> {
        let gate = &self.gate;
        let keys = gate.parts.upstreams.sessions();
        let session = keys.open(sealed, &self.principal, None, (gate.parts.clock.now)())?;
        gate.combined.conversation(&self.principal, &session)
    }
}

/// One of a kind, for each holder of a session.
pub fn key_of(principal: &Principal, session: &Session) -> Digest {
    let (issuer, subject) = (principal.issuer.as_str(), principal.subject.as_str());
    let client = principal.client.as_ref().map(ToString::to_string);
    Digest::of(json!([issuer, subject, client, session.id.as_str()]).to_string().as_bytes())
}

/// What every POST needs.
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
