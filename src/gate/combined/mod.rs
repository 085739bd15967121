//! `/mcp`: all servers of a caller behind one URL. Each message is either answered here, or rewritten for one server and
//! sent through `Gate::pass` like any other, with its own audit record.
//! It does not decide about calls: `Gate::pass` does. Names, URIs, event ids and cursors in answers get the server as a
//! prefix, so that the server can be found when the caller sends them back.

mod flights;
mod listen;
mod lists;
mod names;
mod notes;
mod own;
mod session;
mod streams;
mod through;

pub(super) use names::Names;
pub(super) use through::Through;

use super::context::RequestContext;
use super::message::{reject_malformed, resolve_notification, resolve_request, safe_text};
use super::routing::{self, HttpVerb};
use super::{AuthenticatedRequest, Gate, reply};
use crate::decide;
use crate::domain::{Digest, Era, MessageId, Method, Principal, ProtocolVersion, Reason, Refusal, ServerName};
use crate::limits::PrincipalKey;
use crate::mcp::{self, McpHeaders, Message, Params, Reference, splice};
use crate::transport::Body;
use crate::upstream::{Session, claimed_server};
use bytes::Bytes;
use flights::Flights;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use moka::sync::Cache;
use names::{Origin, split_name, split_uri};
use serde_json::Value;
use session::{Conversation, key_of};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use through::Asked;

/// Combined sessions on this instance. It is only a cache: a session can be resumed on any instance from its sealed id.
pub struct Combined {
    conversations: Cache<Digest, Arc<Conversation>>,
    /// Sessions that their clients ended with DELETE on this instance. Without this entry the sealed id could be resumed
    /// until it expires.
    ended: Cache<Digest, ()>,
    flights: Arc<Flights>,
}

/// The caller of a combined request. Owned, so that streams can outlive the request.
#[derive(Clone)]
pub(super) struct Asker {
    gate: Arc<Gate>,
    principal: Arc<Principal>,
    counted: Option<PrincipalKey>,
    source: IpAddr,
}

/// A parsed request or notification at `/mcp`.
struct Read<'a> {
    asker: &'a Asker,
    headers: &'a HeaderMap,
    conversation: Option<Arc<Conversation>>,
    body: Bytes,
    era: Era,
    method: Method,
    params: Params,
}

/// A message rewritten for one server.
struct Addressed<'a> {
    server: ServerName,
    /// The target's name without the server prefix; for a task, its handle.
    name: &'a str,
    body: Bytes,
    headers: HeaderMap,
}

const MOST_CONVERSATIONS: u64 = 20_000;
const MOST_ENDED: u64 = 1_000_000;

impl Combined {
    pub fn new(lifetime: Duration) -> Self {
        Self {
            conversations: Cache::builder()
                .max_capacity(MOST_CONVERSATIONS)
                .time_to_idle(lifetime)
                .build(),
            ended: Cache::builder().max_capacity(MOST_ENDED).time_to_live(lifetime).build(),
            flights: Arc::default(),
        }
    }

    fn conversation(&self, principal: &Principal, session: &Session) -> Option<Arc<Conversation>> {
        let key = key_of(principal, session);
        if self.ended.contains_key(&key) {
            return None;
        }
        if let Some(conversation) = self.conversations.get(&key) {
            return Some(conversation);
        }
        let conversation = Arc::new(Conversation::resume(key, session)?);
        Some(self.conversations.get_with(key, || conversation))
    }

    fn is_ended(&self, conversation: &Conversation) -> bool {
        self.ended.contains_key(&conversation.key)
    }

    fn end(&self, conversation: &Conversation) {
        self.ended.insert(conversation.key, ());
        self.conversations.invalidate(&conversation.key);
    }
}

impl Gate {
    /// Handles one HTTP request to `/mcp`, which no single server owns.
    pub(super) async fn combined(
        self: &Arc<Self>,
        request: AuthenticatedRequest<'_>,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        let AuthenticatedRequest {
            headers,
            verb,
            body,
            authenticated,
            counted,
        } = request;
        routing::media_types(headers, verb)?;
        let mcp_headers = mcp::read_mcp_headers(headers).map_err(|malformed| reject_malformed(malformed, context))?;
        let asker = Asker {
            gate: self.clone(),
            principal: authenticated.principal,
            counted,
            source: context.source,
        };
        let conversation = match mcp_headers.session {
            Some(sealed) => asker.conversation(sealed).map(Some).ok_or(Reason::UnknownSession.into()),
            None => Ok(None),
        };
        if let Ok(Some(conversation)) = &conversation {
            context.session = Some(conversation.label.clone());
        }
        let method = match verb {
            HttpVerb::Post => {
                let body = body.map_err(super::body_refusal)?;
                return asker.message(body, headers, &mcp_headers, conversation, context).await;
            }
            HttpVerb::Get => Method::OpenStream,
            HttpVerb::Delete => Method::EndSession,
        };
        context.method = Some(method);
        let conversation = conversation?.ok_or_else(no_session)?;
        mcp::negotiate_bodyless(&mcp_headers, Some(conversation.version))
            .map_err(|malformed| reject_malformed(malformed, context))?;
        match verb {
            HttpVerb::Delete => Ok(asker.end(&conversation, context).await),
            _ => asker.own_stream(conversation, mcp_headers.last_event_id, context).await,
        }
    }
}

impl Asker {
    /// Parses the body and handles the message in it.
    async fn message(
        &self,
        body: Bytes,
        headers: &HeaderMap,
        mcp_headers: &McpHeaders<'_>,
        conversation: Result<Option<Arc<Conversation>>, Refusal>,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        let message =
            mcp::parse_message(body, &mcp::Bounds::default()).map_err(|malformed| reject_malformed(malformed, context))?;
        if let Message::Request(request) = &message {
            context.id = Some(request.id.clone());
        }
        let conversation = if message.is_modern() { None } else { conversation? };
        if message.is_modern() {
            (context.era, context.session) = (Era::Modern, None);
        }
        let negotiated = conversation.as_ref().map(|conversation| conversation.version);
        match message {
            Message::Request(request) => {
                let (era, version, method) = resolve_request(&request, mcp_headers, negotiated, context)?;
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
                self.request(read, &request.id, version, context).await
            }
            Message::Notification(notification) => {
                resolve_notification(&notification, mcp_headers, negotiated, context)?;
                let conversation = conversation.ok_or_else(no_session)?;
                Ok(self.note(&conversation, &notification, context).await)
            }
            Message::Response(response) => {
                context.method = Some(Method::Answer);
                let conversation = conversation.ok_or_else(no_session)?;
                mcp::negotiate_bodyless(mcp_headers, negotiated).map_err(|malformed| reject_malformed(malformed, context))?;
                self.answer(&conversation, response, context).await
            }
        }
    }

    async fn request(
        &self,
        read: Read<'_>,
        id: &MessageId,
        version: Option<ProtocolVersion>,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        match read.method {
            Method::Initialize => self.initialize(&read, id, version, context).await,
            Method::Ping => self.ping(id, context).await,
            Method::Discover => self.discover(id, context).await,
            Method::ToolsList => self.tools(&read, id, context).await,
            Method::ResourcesList | Method::TemplatesList | Method::PromptsList => self.list(&read, id, context).await,
            Method::SetLevel => self.set_level(&read, id, context).await,
            Method::Listen => self.listen(&read, id, context).await,
            Method::ToolsCall | Method::GetPrompt => {
                let said = read.params.name.as_deref().unwrap_or_default();
                self.pass_on(&read, split_name(said), read.params.name_at, context).await
            }
            Method::ReadResource | Method::Subscribe | Method::Unsubscribe => {
                let said = read.params.uri.as_deref().unwrap_or_default();
                self.pass_on(&read, split_uri(said), read.params.uri_at, context).await
            }
            Method::Complete => self.complete(&read, context).await,
            Method::TasksGet | Method::TasksResult | Method::TasksUpdate | Method::TasksCancel => {
                let task = read.params.task_id.as_ref().map(|task| task.text.as_str());
                let Some((name, server)) = task.and_then(|task| Some((task, claimed_server(task)?))) else {
                    return Err(self.nothing(&read, task, context).await);
                };
                let addressed = Addressed {
                    server,
                    name,
                    body: read.body.clone(),
                    headers: read.headers.clone(),
                };
                self.to_server(&read, addressed, context).await
            }
            // `resolve_request` never yields these methods for a request.
            Method::Notification | Method::Answer | Method::OpenStream | Method::EndSession => Err(Reason::UnknownMethod.into()),
        }
    }

    /// Routes by the server prefix of a name or URI. Replaces it in the body and in `Mcp-Name` by the server's own name.
    async fn pass_on(
        &self,
        read: &Read<'_>,
        split: Option<(ServerName, &str)>,
        at: Option<mcp::JsonSpan>,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        let said = read.params.name.as_deref().or(read.params.uri.as_deref());
        let (Some((server, name)), Some(at)) = (split, at) else {
            return Err(self.nothing(read, said, context).await);
        };
        let body = splice(&read.body, vec![(at, Value::from(name).to_string())]);
        let mut headers = read.headers.clone();
        if headers.contains_key(mcp::NAME) {
            let name =
                HeaderValue::from_str(&mcp::encode_header_value(name)).map_err(|_| Refusal::new(Reason::HeaderMismatch))?;
            headers.insert(mcp::NAME, name);
        }
        let addressed = Addressed {
            server,
            name,
            body,
            headers,
        };
        self.to_server(read, addressed, context).await
    }

    /// Routes `completion/complete` to the server of the prompt or resource template that it completes.
    async fn complete(&self, read: &Read<'_>, context: &mut RequestContext) -> Result<Response<Body>, Refusal> {
        let completion = mcp::completion(&read.params).map_err(|malformed| reject_malformed(malformed, context))?;
        let (said, split, member) = match &completion.of {
            Reference::Prompt(name) => (name, split_name(name), "name"),
            Reference::Resource(uri) => (uri, split_uri(uri), "uri"),
        };
        let (Some((server, name)), Some(at), Some(reference)) = (split, read.params.reference_at, &read.params.reference) else {
            return Err(self.nothing(read, Some(said), context).await);
        };
        let mut reference: Value = serde_json::from_slice(reference).map_err(|_| Refusal::new(Reason::InvalidParams))?;
        reference[member] = name.into();
        let addressed = Addressed {
            server,
            name,
            body: splice(&read.body, vec![(at, reference.to_string())]),
            headers: read.headers.clone(),
        };
        self.to_server(read, addressed, context).await
    }

    /// The target has no server prefix, so no server can own it. A caller who is not admitted (not enrolled, disabled, stale
    /// grants) gets that refusal instead.
    async fn nothing(&self, read: &Read<'_>, said: Option<&str>, context: &mut RequestContext) -> Refusal {
        put_down(read, said, context);
        match self.standing(context).await {
            Ok(_) => unknown(read.method).into(),
            Err(refusal) => refusal,
        }
    }

    /// Forwards a message to one server and answers as that server's own endpoint would. Servers that the caller has no
    /// grant for look exactly like servers that do not exist.
    async fn to_server(
        &self,
        read: &Read<'_>,
        to: Addressed<'_>,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        put_down(read, read.params.name.as_deref().or(read.params.uri.as_deref()), context);
        let here = match self.standing(context).await {
            Ok(authz) => match decide::refuses(&to.server, &authz.decision_input(context)) {
                Some(reason) if is_not_there(reason) => Err(unknown(read.method).into()),
                _ => Ok(()),
            },
            Err(refusal) => Err(refusal),
        };
        context.delegated = true;
        let flight = read.conversation.as_ref().zip(context.id.as_ref()).map(|(conversation, id)| {
            let flights = &self.gate.combined.flights;
            flights.begin(conversation.key, id, &to.server)
        });
        let asked = read.ask(to.server.clone(), &to.headers, to.body).await;
        if let Some(conversation) = &read.conversation
            && asked.answered.is_ok()
        {
            match read.method {
                Method::Subscribe => conversation.subscribe(&to.server, to.name),
                Method::Unsubscribe => conversation.unsubscribe(&to.server, to.name),
                _ => (),
            }
        }
        match (&asked.answered, here) {
            (Err(_), Err(refusal)) => Err(asked.refused_here(context, refusal)),
            (Err(refusal), Ok(())) if is_not_there(refusal.reason) => Err(asked.refused_here(context, unknown(read.method))),
            _ => {
                let response = asked.response(&self.gate);
                Ok(match flight {
                    Some(flight) => response.map(|body| flight.with(body)),
                    None => response,
                })
            }
        }
    }
}

impl Read<'_> {
    /// Sends the message to one server. If the server has lost its session, opens another session and sends the message once
    /// more.
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
        let mut asked = through.ask(HttpVerb::Post, &headers, body.clone()).await;
        let lost = match &before {
            Some(held) => through.has_lost(held, asked.context.answered).await,
            None => false,
        };
        if lost && asked.context.answered == Some(StatusCode::NOT_FOUND) {
            match self.method {
                // The first attempt may have been carried out although the server says 404, so a tool call is never sent
                // twice.
                Method::ToolsCall | Method::TasksUpdate if !through.never_left() => {
                    let why = "it has lost its session, and another is opened for the next call";
                    asked.answered = Err(Refusal::with_detail(Reason::UpstreamBroken, why));
                }
                _ => asked = through.ask(HttpVerb::Post, &headers, body).await,
            }
        }
        asked.keeping_the_session()
    }
}

/// Sets what the audit record says the message acts on, in case the combined endpoint refuses it.
fn put_down(read: &Read<'_>, said: Option<&str>, context: &mut RequestContext) {
    let said = said.map(safe_text);
    match read.method {
        Method::ToolsCall => context.tool = said,
        _ => context.target = said,
    }
    context.arguments.clone_from(&read.params.arguments);
}

/// The refusal for a target that does not exist, by method.
const fn unknown(method: Method) -> Reason {
    match method {
        Method::ToolsCall => Reason::UnknownTool,
        Method::TasksGet | Method::TasksResult | Method::TasksUpdate | Method::TasksCancel => Reason::UnknownTask,
        _ => Reason::UnknownTarget,
    }
}

/// Refusals that would reveal whether a server exists to a caller without access to it.
const fn is_not_there(reason: Reason) -> bool {
    matches!(reason, Reason::UnknownServer | Reason::ServerDisabled | Reason::NoGrant)
}

fn no_session() -> Refusal {
    Refusal::with_detail(Reason::InvalidRequest, "`Mcp-Session-Id` is missing: initialize first")
}

/// A 200 with a JSON body that Guardian wrote.
fn answer(body: Bytes) -> Response<Body> {
    reply::json_response(StatusCode::OK, body)
}
