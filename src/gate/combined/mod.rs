//! `/mcp`: all servers that a caller may use, behind one URL. A client of the gate itself: each message is answered here, or
//! rewritten for one server and put through `Gate::pass` like any other, with a record of its own. So nothing is judged
//! here; what comes back is renamed so that the caller can bring it back.

mod listen;
mod lists;
mod names;
mod notes;
mod own;
mod session;
mod streams;

pub(super) use names::Names;

use super::message::{fit_for_a_record, heard};
use super::screen::is_event_stream;
use super::site::{self, Verb};
use super::trail::Trail;
use super::{Errand, Gate, reply};
use crate::domain::{Call, Era, MessageId, Method, Principal, ProtocolVersion, Reason, Refusal, ServerName};
use crate::limits::PrincipalKey;
use crate::mcp::{self, AnswerKind, Heads, Message, Params, Reference, SseReader, splice};
use crate::transport::{self, Body, BodyError};
use crate::upstream::{Session, said_server};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use moka::sync::Cache;
use names::{Origin, split_name, split_uri};
use serde_json::Value;
use session::{Conversation, Held};
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

/// What an instance remembers of combined sessions. A session is taken up again without any of it.
pub struct Combined {
    conversations: Cache<String, Arc<Conversation>>,
    /// Sessions that their clients have ended.
    ended: Cache<String, ()>,
    flights: Arc<Flights>,
}

/// Requests under way and the servers they were passed on to, by session and id.
#[derive(Default)]
struct Flights(Mutex<HashMap<(String, String), ServerName>>);

/// A request under way, until its answer is out.
struct Flight {
    flights: Arc<Flights>,
    key: (String, String),
}

/// Who asks, for as long as it takes.
#[derive(Clone)]
pub(super) struct Asker {
    gate: Arc<Gate>,
    principal: Arc<Principal>,
    counted: Option<PrincipalKey>,
    source: IpAddr,
}

/// How a message comes to a server by way of the combined endpoint.
pub(super) struct Through {
    asker: Asker,
    names: Names,
    /// Of a legacy client.
    conversation: Option<Arc<Conversation>>,
    /// A session is opened if the call is permitted.
    opens: bool,
}

/// What became of a message for one server.
struct Asked {
    answered: Result<Response<Body>, Refusal>,
    trail: Trail,
    /// Whether there is a record to quote; `Err`: there cannot be one.
    recorded: Result<bool, ()>,
}

/// A request or notification with what was read from it.
struct Read<'a> {
    asker: &'a Asker,
    headers: &'a HeaderMap,
    conversation: Option<Arc<Conversation>>,
    body: Bytes,
    era: Era,
    method: Method,
    params: Params,
}

const MOST_CONVERSATIONS: u64 = 100_000;
/// An answer that is put together with others is held whole.
const LONGEST_ANSWER: usize = 16 * 1024 * 1024;

impl Combined {
    pub fn new(lifetime: Duration) -> Self {
        Self {
            conversations: Cache::builder()
                .max_capacity(MOST_CONVERSATIONS)
                .time_to_idle(lifetime)
                .build(),
            ended: Cache::builder()
                .max_capacity(MOST_CONVERSATIONS)
                .time_to_live(lifetime)
                .build(),
            flights: Arc::default(),
        }
    }

    fn conversation(&self, session: &Session) -> Option<Arc<Conversation>> {
        let label = session.label();
        if self.ended.contains_key(&label) {
            return None;
        }
        if let Some(conversation) = self.conversations.get(&label) {
            return Some(conversation);
        }
        let conversation = Arc::new(Conversation::resume(session)?);
        Some(self.conversations.get_with(label, || conversation))
    }

    fn is_ended(&self, conversation: &Conversation) -> bool {
        self.ended.contains_key(&conversation.label)
    }

    fn end(&self, conversation: &Conversation) {
        self.ended.insert(conversation.label.clone(), ());
        self.conversations.invalidate(&conversation.label);
    }
}

impl Gate {
    /// A message for all servers together.
    pub(super) async fn combined(self: &Arc<Self>, errand: Errand<'_>, trail: &mut Trail) -> Result<Response<Body>, Refusal> {
        let Errand {
            headers,
            verb,
            body,
            principal,
            counted,
        } = errand;
        site::media_types(headers, verb)?;
        let heads = mcp::read_heads(headers).map_err(|malformed| heard(malformed, trail))?;
        let asker = Asker {
            gate: self.clone(),
            principal,
            counted,
            source: trail.source,
        };
        let conversation = match heads.session {
            Some(sealed) => asker.conversation(sealed).map(Some).ok_or(Reason::UnknownSession.into()),
            None => Ok(None),
        };
        if let Ok(Some(conversation)) = &conversation {
            trail.session = Some(conversation.label.clone());
        }
        let method = match verb {
            Verb::Post => {
                let body = body.map_err(super::unread)?;
                return asker.message(body, headers, &heads, conversation, trail).await;
            }
            Verb::Get => Method::OpenStream,
            Verb::Delete => Method::EndSession,
        };
        trail.method = Some(method);
        let conversation = conversation?.ok_or_else(no_session)?;
        mcp::agree_headless(&heads, Some(conversation.version)).map_err(|malformed| heard(malformed, trail))?;
        match verb {
            Verb::Delete => Ok(asker.end(&conversation, trail).await),
            _ => asker.own_stream(conversation, heads.last_event_id, trail).await,
        }
    }
}

impl Asker {
    /// Answered here, or by the servers it is for.
    async fn message(
        &self,
        body: Bytes,
        headers: &HeaderMap,
        heads: &Heads<'_>,
        conversation: Result<Option<Arc<Conversation>>, Refusal>,
        trail: &mut Trail,
    ) -> Result<Response<Body>, Refusal> {
        let message = mcp::read(body, &mcp::Bounds::default()).map_err(|malformed| heard(malformed, trail))?;
        if let Message::Request(request) = &message {
            trail.id = Some(request.id.clone());
        }
        let conversation = match message.is_modern() {
            true => None,
            false => conversation?,
        };
        if message.is_modern() {
            (trail.era, trail.session) = (Era::Modern, None);
        }
        let negotiated = conversation.as_ref().map(|conversation| conversation.version);
        match message {
            Message::Request(request) => {
                trail.said_method = Some(fit_for_a_record(&request.method));
                trail.said_version = request.said_version().map(fit_for_a_record);
                trail.trace = request.trace().map(fit_for_a_record);
                let (era, version) = mcp::agree(&request, heads, negotiated).map_err(|malformed| heard(malformed, trail))?;
                trail.era = era;
                let method = mcp::method(&request, era).ok_or(Reason::UnknownMethod)?;
                trail.method = Some(method);
                let sessionless = era == Era::Legacy && conversation.is_none();
                if sessionless && !matches!(method, Method::Initialize | Method::Ping) {
                    return Err(no_session());
                }
                let read = Read {
                    asker: self,
                    headers,
                    conversation,
                    body: request.body,
                    era,
                    method,
                    params: request.params.unwrap_or_default(),
                };
                self.request(read, &request.id, version, trail).await
            }
            Message::Notification(notification) => {
                trail.said_method = Some(fit_for_a_record(&notification.method));
                let (era, _) =
                    mcp::agree_notification(&notification, heads, negotiated).map_err(|malformed| heard(malformed, trail))?;
                trail.era = era;
                let method = mcp::notification(&notification, era).ok_or(Reason::UnknownMethod)?;
                trail.method = Some(method);
                let conversation = conversation.ok_or_else(no_session)?;
                Ok(self.note(&conversation, &notification, trail).await)
            }
            Message::Response(response) => {
                trail.method = Some(Method::Answer);
                let conversation = conversation.ok_or_else(no_session)?;
                mcp::agree_headless(heads, negotiated).map_err(|malformed| heard(malformed, trail))?;
                self.answer(&conversation, response, trail).await
            }
        }
    }

    async fn request(
        &self,
        read: Read<'_>,
        id: &MessageId,
        version: Option<ProtocolVersion>,
        trail: &mut Trail,
    ) -> Result<Response<Body>, Refusal> {
        match read.method {
            Method::Initialize => self.initialize(&read, id, version, trail).await,
            Method::Ping => self.ping(id, trail).await,
            Method::Discover => self.discover(id, trail).await,
            Method::ToolsList => self.tools(&read, id, trail).await,
            Method::ResourcesList | Method::TemplatesList | Method::PromptsList => self.list(&read, id, trail).await,
            Method::SetLevel => self.set_level(&read, id, trail).await,
            Method::Listen => self.listen(&read, id, trail).await,
            Method::ToolsCall | Method::GetPrompt => {
                let said = read.params.name.as_deref().unwrap_or_default();
                let split = split_name(said);
                self.pass_on(&read, split, read.params.name_at, id, trail).await
            }
            Method::ReadResource | Method::Subscribe | Method::Unsubscribe => {
                let said = read.params.uri.as_deref().unwrap_or_default();
                self.pass_on(&read, split_uri(said), read.params.uri_at, id, trail).await
            }
            Method::Complete => self.complete(&read, id, trail).await,
            Method::TasksGet | Method::TasksResult | Method::TasksUpdate | Method::TasksCancel => {
                let task = read
                    .params
                    .task_id
                    .as_ref()
                    .map(|task| task.text.as_str())
                    .unwrap_or_default();
                let server = said_server(task).ok_or(Reason::UnknownTask)?;
                let body = read.body.clone();
                self.to_server(&read, server, body, read.headers.clone(), id, trail).await
            }
            // Neither is a request.
            Method::Notification | Method::Answer | Method::OpenStream | Method::EndSession => Err(Reason::UnknownMethod.into()),
        }
    }

    /// To the server that the name says, which gets it as it calls the thing itself.
    async fn pass_on(
        &self,
        read: &Read<'_>,
        split: Option<(ServerName, &str)>,
        at: Option<mcp::Place>,
        id: &MessageId,
        trail: &mut Trail,
    ) -> Result<Response<Body>, Refusal> {
        let said = read.params.name.as_deref().or(read.params.uri.as_deref());
        let (Some((server, name)), Some(at)) = (split, at) else {
            return Err(self.nothing(read, said, trail).await);
        };
        let wish = (server.clone(), name.to_owned());
        let body = splice(&read.body, vec![(at, Value::from(name).to_string())]);
        let mut headers = read.headers.clone();
        if headers.contains_key(mcp::NAME) {
            let name = HeaderValue::from_str(&mcp::encode_sentinel(name)).map_err(|_| Refusal::new(Reason::HeaderMismatch))?;
            headers.insert(mcp::NAME, name);
        }
        let response = self.to_server(read, server, body, headers, id, trail).await?;
        match (read.method, &read.conversation) {
            (Method::Subscribe, Some(conversation)) if response.status() == StatusCode::OK => {
                conversation.subscribe(&wish.0, &wish.1);
            }
            (Method::Unsubscribe, Some(conversation)) => conversation.unsubscribe(&wish.0, &wish.1),
            _ => (),
        }
        Ok(response)
    }

    /// A completion is for the server of what it completes.
    async fn complete(&self, read: &Read<'_>, id: &MessageId, trail: &mut Trail) -> Result<Response<Body>, Refusal> {
        let completion = mcp::completion(&read.params).map_err(|malformed| heard(malformed, trail))?;
        let (said, split, member) = match &completion.of {
            Reference::Prompt(name) => (name, split_name(name), "name"),
            Reference::Resource(uri) => (uri, split_uri(uri), "uri"),
        };
        let (Some((server, name)), Some(at), Some(reference)) = (split, read.params.reference_at, &read.params.reference) else {
            return Err(self.nothing(read, Some(said), trail).await);
        };
        let mut reference: Value = serde_json::from_slice(reference).map_err(|_| Refusal::new(Reason::InvalidParams))?;
        reference[member] = name.into();
        let body = splice(&read.body, vec![(at, reference.to_string())]);
        self.to_server(read, server, body, read.headers.clone(), id, trail).await
    }

    /// What is asked for no server can have. Who may ask for nothing hears that first.
    async fn nothing(&self, read: &Read<'_>, said: Option<&str>, trail: &mut Trail) -> Refusal {
        let said = said.map(fit_for_a_record);
        match read.method {
            Method::ToolsCall => trail.tool = said,
            _ => trail.target = said,
        }
        trail.arguments.clone_from(&read.params.arguments);
        match self.standing(trail).await {
            Ok(_) => unknown(read.method).into(),
            Err(refusal) => refusal,
        }
    }

    /// Passed on, and answered as the server's own endpoint would. A server that there is not for this caller is not told
    /// from one that there is not at all.
    async fn to_server(
        &self,
        read: &Read<'_>,
        server: ServerName,
        body: Bytes,
        headers: HeaderMap,
        id: &MessageId,
        trail: &mut Trail,
    ) -> Result<Response<Body>, Refusal> {
        trail.passed_on = true;
        let flight = read.conversation.as_ref().map(|conversation| {
            let flights = &self.gate.combined.flights;
            flights.begin(&conversation.label, id, &server)
        });
        let asked = read.ask(server, &headers, body).await;
        match asked.answered {
            Err(ref refusal) if is_not_there(refusal.reason) => Err(asked.refused_here(trail, unknown(read.method))),
            _ => {
                let response = asked.response(&self.gate);
                Ok(match flight {
                    Some(flight) => response.map(|body| Flying { body, _flight: flight }.boxed()),
                    None => response,
                })
            }
        }
    }
}

impl Read<'_> {
    /// Asks one server. One that has lost its session gets another, once.
    async fn ask(&self, server: ServerName, headers: &HeaderMap, body: Bytes) -> Asked {
        let mut headers = headers.clone();
        headers.remove(mcp::SESSION_ID);
        headers.remove(mcp::LAST_EVENT_ID);
        if let Some(conversation) = &self.conversation {
            let version = HeaderValue::from_static(conversation.version.as_str());
            headers.insert(mcp::PROTOCOL_VERSION, version);
        }
        let through = self.asker.through(server, self.conversation.clone(), true);
        let before = through.held();
        let mut asked = through.ask(Verb::Post, &headers, body.clone()).await;
        let lost = match &before {
            Some(held) => through.has_lost(held, asked.trail.answered).await,
            None => false,
        };
        if let (true, Some(StatusCode::NOT_FOUND)) = (lost, asked.trail.answered) {
            asked = through.ask(Verb::Post, &headers, body).await;
        }
        asked.keeping_the_session()
    }
}

impl Through {
    pub fn names(&self) -> Names {
        self.names.clone()
    }

    pub fn label(&self) -> Option<String> {
        self.conversation.as_ref().map(|conversation| conversation.label.clone())
    }

    /// Whether a session is to be opened for this call.
    pub fn opens(&self, call: &Call) -> bool {
        self.opens && call.era == Era::Legacy && self.conversation.is_some()
    }

    fn server(&self) -> &ServerName {
        self.names.server()
    }

    fn held(&self) -> Option<Held> {
        self.conversation.as_ref()?.held(self.server())
    }

    /// Whether the server has lost the session, by what it answered in it. If it has, the next call opens another. Some
    /// servers say it with a status that can mean other things too: those are asked again.
    async fn has_lost(&self, held: &Held, answered: Option<StatusCode>) -> bool {
        let lost = match answered {
            Some(StatusCode::NOT_FOUND) => true,
            Some(StatusCode::BAD_REQUEST) => {
                let ping = Bytes::from_static(br#"{"jsonrpc":"2.0","id":"guardian/ping","method":"ping"}"#);
                let through = self.asker.through(self.server().clone(), self.conversation.clone(), false);
                let answered = through.ask(Verb::Post, &held.fields(), ping).await.trail.answered;
                matches!(answered, Some(StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST))
            }
            _ => false,
        };
        if let (true, Some(conversation)) = (lost, &self.conversation) {
            conversation.lose(self.server(), held);
        }
        lost
    }

    /// Whether the server is known to lack a capability.
    fn lacks(&self, capability: &str) -> bool {
        let server = self.asker.gate.parts.upstreams.get(self.server());
        server.is_some_and(|server| server.hello().lacks(capability))
    }

    /// One message for one server, with a trail and records of its own.
    async fn ask(&self, verb: Verb, headers: &HeaderMap, body: Bytes) -> Asked {
        let Asker {
            gate,
            principal,
            counted,
            source,
        } = &self.asker;
        let clock = &gate.parts.clock;
        let mut trail = Trail::new((clock.request)(), (clock.now)(), *source);
        trail.principal = Some(principal.clone());
        trail.server = Some(self.server().clone());
        trail.through = true;
        let errand = Errand {
            headers,
            verb,
            body: Ok(body),
            principal: principal.clone(),
            counted: *counted,
        };
        let answered = gate.pass(errand, self.server().clone(), Some(self), &mut trail).await;
        let (error, recorded) = match &answered {
            Ok(_) => ("", Ok(true)),
            Err(refusal) => (refusal.reason.code(), gate.put_down(refusal, &trail).await),
        };
        gate.count(&trail, error);
        Asked {
            answered,
            trail,
            recorded,
        }
    }
}

impl Asker {
    fn through(&self, server: ServerName, conversation: Option<Arc<Conversation>>, opens: bool) -> Through {
        Through {
            asker: self.clone(),
            names: Names::new(server, Origin::Answer),
            conversation,
            opens,
        }
    }
}

impl Asked {
    /// What the caller is told.
    fn response(self, gate: &Gate) -> Response<Body> {
        match (self.answered, self.recorded) {
            (Ok(response), _) => response,
            (Err(refusal), Ok(recorded)) => gate.tell(&refusal, recorded, &self.trail),
            (Err(_), Err(())) => gate.tell(&Reason::AuditUnavailable.into(), false, &self.trail),
        }
    }

    /// Told as a refusal of the combined endpoint, with the record of the server's own.
    fn refused_here(self, trail: &mut Trail, reason: Reason) -> Refusal {
        trail.request = self.trail.request;
        trail.recorded = self.recorded == Ok(true);
        match self.recorded {
            Ok(_) => reason.into(),
            Err(()) => Reason::AuditUnavailable.into(),
        }
    }

    /// To a legacy client 404 says that its session is gone. A server's session is not the client's.
    fn keeping_the_session(mut self) -> Self {
        if let (Ok(response), Era::Legacy) = (&mut self.answered, self.trail.era)
            && response.status() == StatusCode::NOT_FOUND
        {
            *response.status_mut() = StatusCode::OK;
        }
        self
    }
}

impl Flights {
    fn begin(self: &Arc<Self>, label: &str, id: &MessageId, server: &ServerName) -> Flight {
        let key = (label.to_owned(), id.as_json().to_owned());
        self.map().insert(key.clone(), server.clone());
        Flight {
            flights: self.clone(),
            key,
        }
    }

    /// Whose request this is.
    fn server(&self, label: &str, id: &MessageId) -> Option<ServerName> {
        let key = (label.to_owned(), id.as_json().to_owned());
        self.map().get(&key).cloned()
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), ServerName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.map().remove(&self.key);
    }
}

/// The body of an answer to a request that is under way until all of it is out.
struct Flying {
    body: Body,
    _flight: Flight,
}

impl Flying {
    fn boxed(self) -> Body {
        UnsyncBoxBody::new(self)
    }
}

impl http_body::Body for Flying {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// The answer in a response, whichever way it comes.
async fn whole(response: Response<Body>, id: &MessageId) -> Option<Bytes> {
    let events = is_event_stream(&response);
    let mut body = response.into_body();
    if !events {
        return transport::read_body(body, LONGEST_ANSWER, Duration::MAX).await.ok();
    }
    let mut reader = SseReader::new(LONGEST_ANSWER);
    while let Some(frame) = body.frame().await {
        reader.push(frame.ok()?.into_data().ok()?);
        while let Some(frame) = reader.frame().ok()? {
            let Some(data) = frame.data.filter(|data| !data.is_empty()) else {
                continue;
            };
            if let AnswerKind::Result { .. } | AnswerKind::Error { .. } = mcp::answer_kind(&data, id) {
                return Some(data);
            }
        }
    }
    None
}

/// All of them at once; the results in the order of the futures.
async fn all<T>(futures: Vec<Pin<Box<dyn Future<Output = T> + Send + '_>>>) -> Vec<T> {
    let mut slots: Vec<_> = futures.into_iter().map(|future| (Some(future), None)).collect();
    poll_fn(|context| {
        for (future, result) in &mut slots {
            if let Some(Poll::Ready(ready)) = future.as_mut().map(|future| future.as_mut().poll(context)) {
                (*future, *result) = (None, Some(ready));
            }
        }
        match slots.iter().all(|(future, _)| future.is_none()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    slots.into_iter().filter_map(|(_, result)| result).collect()
}

/// How it is said that there is no such thing.
const fn unknown(method: Method) -> Reason {
    match method {
        Method::ToolsCall => Reason::UnknownTool,
        Method::TasksGet | Method::TasksResult | Method::TasksUpdate | Method::TasksCancel => Reason::UnknownTask,
        _ => Reason::UnknownTarget,
    }
}

/// Refusals that tell of a server which the caller has nothing of.
const fn is_not_there(reason: Reason) -> bool {
    matches!(reason, Reason::UnknownServer | Reason::ServerDisabled | Reason::NoGrant)
}

fn no_session() -> Refusal {
    Refusal::with_detail(Reason::InvalidRequest, "`Mcp-Session-Id` is missing: initialize first")
}

/// An answer of Guardian's own.
fn answer(body: Bytes) -> Response<Body> {
    reply::json(StatusCode::OK, body)
}
