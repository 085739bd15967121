//! `/mcp`: all servers of a caller behind one URL. Each message is either answered here, or rewritten for one server and
//! sent through `Gate::pass` like any other, with its own audit record.
//! It does not decide about calls: `Gate::pass` does. Names, URIs, event ids and cursors in answers get the server as a
//! prefix, so that the server can be found when the caller sends them back.

mod in_flight;
mod listen;
mod lists;
mod local;
mod namespace;
mod notifications;
mod server_call;
mod session;
mod streams;

pub(super) use namespace::Namespace;
pub(super) use server_call::ServerCall;

use super::context::RequestContext;
use super::message::{reject_malformed, resolve_notification, resolve_request, safe_text};
use super::routing::{self, HttpVerb};
use super::{AuthenticatedRequest, Gate, reply};
use crate::decide;
use crate::domain::{Digest, Era, MessageId, Method, Principal, ProtocolVersion, Reason, Refusal, ServerName};
use crate::limits::PrincipalKey;
use crate::mcp::{self, McpHeaders, Message, Params, Reference, splice};
use crate::sessions::{Session, claimed_server};
use crate::transport::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use in_flight::InFlightRequests;
use moka::sync::Cache;
use namespace::{StreamKind, parse_name, parse_uri};
use serde_json::Value;
use server_call::ServerCallResult;
use session::{CombinedSession, key_of};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Combined sessions on this instance. It is only a cache: a session can be resumed on any instance from its sealed id.
pub struct Combined {
    sessions: Cache<Digest, Arc<CombinedSession>>,
    /// Sessions that their clients ended with DELETE on this instance. Without this entry the sealed id could be resumed
    /// until it expires.
    ended: Cache<Digest, ()>,
    in_flight: Arc<InFlightRequests>,
}

/// The caller of a combined request. Owned, so that streams can outlive the request.
#[derive(Clone)]
pub(super) struct CombinedCaller {
    gate: Arc<Gate>,
    principal: Arc<Principal>,
    counted: Option<PrincipalKey>,
    source: IpAddr,
}

/// A parsed request or notification at `/mcp`.
struct CombinedRequest<'a> {
    caller: &'a CombinedCaller,
    headers: &'a HeaderMap,
    session: Option<Arc<CombinedSession>>,
    body: Bytes,
    era: Era,
    method: Method,
    params: Params,
}

/// A message rewritten for one server.
struct RoutedRequest<'a> {
    server: ServerName,
    /// The target's name without the server prefix; for a task, its handle.
    name: &'a str,
    body: Bytes,
    headers: HeaderMap,
}

const MAX_SESSIONS: u64 = 20_000;
const MAX_ENDED_SESSIONS: u64 = 1_000_000;

impl Combined {
    pub fn new(lifetime: Duration) -> Self {
        Self {
            sessions: Cache::builder().max_capacity(MAX_SESSIONS).time_to_idle(lifetime).build(),
            ended: Cache::builder()
                .max_capacity(MAX_ENDED_SESSIONS)
                .time_to_live(lifetime)
                .build(),
            in_flight: Arc::default(),
        }
    }

    fn session(&self, principal: &Principal, session: &Session) -> Option<Arc<CombinedSession>> {
        let key = key_of(principal, session);
        if self.ended.contains_key(&key) {
            return None;
        }
        if let Some(session) = self.sessions.get(&key) {
            return Some(session);
        }
        let session = Arc::new(CombinedSession::resume(key, session)?);
        Some(self.sessions.get_with(key, || session))
    }

    fn is_ended(&self, session: &CombinedSession) -> bool {
        self.ended.contains_key(&session.key)
    }

    fn end(&self, session: &CombinedSession) {
        self.ended.insert(session.key, ());
        self.sessions.invalidate(&session.key);
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
        let caller = CombinedCaller {
            gate: self.clone(),
            principal: authenticated.principal,
            counted,
            source: context.source,
        };
        let session = match mcp_headers.session {
            Some(sealed) => caller.session(sealed).map(Some).ok_or(Reason::UnknownSession.into()),
            None => Ok(None),
        };
        if let Ok(Some(session)) = &session {
            context.session = Some(session.label.clone());
        }
        let method = match verb {
            HttpVerb::Post => {
                let body = body.map_err(super::body_refusal)?;
                return caller.message(body, headers, &mcp_headers, session, context).await;
            }
            HttpVerb::Get => Method::OpenStream,
            HttpVerb::Delete => Method::EndSession,
        };
        context.method = Some(method);
        let session = session?.ok_or_else(no_session)?;
        mcp::negotiate_bodyless(&mcp_headers, Some(session.version)).map_err(|malformed| reject_malformed(malformed, context))?;
        match verb {
            HttpVerb::Delete => Ok(caller.end(&session, context).await),
            _ => caller.own_stream(session, mcp_headers.last_event_id, context).await,
        }
    }
}

impl CombinedCaller {
    /// Parses the body and handles the message in it.
    async fn message(
        &self,
        body: Bytes,
        headers: &HeaderMap,
        mcp_headers: &McpHeaders<'_>,
        session: Result<Option<Arc<CombinedSession>>, Refusal>,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        let message =
            mcp::parse_message(body, &mcp::Bounds::default()).map_err(|malformed| reject_malformed(malformed, context))?;
        if let Message::Request(request) = &message {
            context.id = Some(request.id.clone());
        }
        let session = if message.is_modern() { None } else { session? };
        if message.is_modern() {
            (context.era, context.session) = (Era::Modern, None);
        }
        let negotiated = session.as_ref().map(|session| session.version);
        match message {
            Message::Request(request) => {
                let (era, version, method) = resolve_request(&request, mcp_headers, negotiated, context)?;
                let sessionless = era == Era::Legacy && session.is_none();
                if sessionless && !matches!(method, Method::Initialize | Method::Ping) {
                    return Err(no_session());
                }
                let combined_request = CombinedRequest {
                    caller: self,
                    headers,
                    session,
                    body: request.body,
                    era,
                    method,
                    params: request.params.unwrap_or_default(),
                };
                self.request(combined_request, &request.id, version, context).await
            }
            Message::Notification(notification) => {
                resolve_notification(&notification, mcp_headers, negotiated, context)?;
                let session = session.ok_or_else(no_session)?;
                Ok(self.notify(&session, &notification, context).await)
            }
            Message::Response(response) => {
                context.method = Some(Method::Answer);
                let session = session.ok_or_else(no_session)?;
                mcp::negotiate_bodyless(mcp_headers, negotiated).map_err(|malformed| reject_malformed(malformed, context))?;
                self.answer(&session, response, context).await
            }
        }
    }

    async fn request(
        &self,
        request: CombinedRequest<'_>,
        id: &MessageId,
        version: Option<ProtocolVersion>,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        match request.method {
            Method::Initialize => self.initialize(&request, id, version, context).await,
            Method::Ping => self.ping(id, context).await,
            Method::Discover => self.discover(id, context).await,
            Method::ToolsList => self.tools(&request, id, context).await,
            Method::ResourcesList | Method::TemplatesList | Method::PromptsList => self.list(&request, id, context).await,
            Method::SetLevel => self.set_level(&request, id, context).await,
            Method::Listen => self.listen(&request, id, context).await,
            Method::ToolsCall | Method::GetPrompt => {
                let said = request.params.name.as_deref().unwrap_or_default();
                self.route_by_name(&request, parse_name(said), request.params.name_at, context)
                    .await
            }
            Method::ReadResource | Method::Subscribe | Method::Unsubscribe => {
                let said = request.params.uri.as_deref().unwrap_or_default();
                self.route_by_name(&request, parse_uri(said), request.params.uri_at, context)
                    .await
            }
            Method::Complete => self.complete(&request, context).await,
            Method::TasksGet | Method::TasksResult | Method::TasksUpdate | Method::TasksCancel => {
                let task = request.params.task_id.as_ref().map(|task| task.text.as_str());
                let Some((name, server)) = task.and_then(|task| Some((task, claimed_server(task)?))) else {
                    return Err(self.refuse_unknown_target(&request, task, context).await);
                };
                let addressed = RoutedRequest {
                    server,
                    name,
                    body: request.body.clone(),
                    headers: request.headers.clone(),
                };
                self.forward_to_server(&request, addressed, context).await
            }
            // `resolve_request` never yields these methods for a request.
            Method::Notification | Method::Answer | Method::OpenStream | Method::EndSession => Err(Reason::UnknownMethod.into()),
        }
    }

    /// Routes by the server prefix of a name or URI. Replaces it in the body and in `Mcp-Name` by the server's own name.
    async fn route_by_name(
        &self,
        request: &CombinedRequest<'_>,
        split: Option<(ServerName, &str)>,
        at: Option<mcp::JsonSpan>,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        let said = request.params.name.as_deref().or(request.params.uri.as_deref());
        let (Some((server, name)), Some(at)) = (split, at) else {
            return Err(self.refuse_unknown_target(request, said, context).await);
        };
        let body = splice(&request.body, vec![(at, Value::from(name).to_string())]);
        let mut headers = request.headers.clone();
        if headers.contains_key(mcp::NAME) {
            let name =
                HeaderValue::from_str(&mcp::encode_header_value(name)).map_err(|_| Refusal::new(Reason::HeaderMismatch))?;
            headers.insert(mcp::NAME, name);
        }
        let addressed = RoutedRequest {
            server,
            name,
            body,
            headers,
        };
        self.forward_to_server(request, addressed, context).await
    }

    /// Routes `completion/complete` to the server of the prompt or resource template that it completes.
    async fn complete(&self, request: &CombinedRequest<'_>, context: &mut RequestContext) -> Result<Response<Body>, Refusal> {
        let completion = mcp::completion(&request.params).map_err(|malformed| reject_malformed(malformed, context))?;
        let (said, split, member) = match &completion.of {
            Reference::Prompt(name) => (name, parse_name(name), "name"),
            Reference::Resource(uri) => (uri, parse_uri(uri), "uri"),
        };
        let (Some((server, name)), Some(at), Some(reference)) = (split, request.params.reference_at, &request.params.reference)
        else {
            return Err(self.refuse_unknown_target(request, Some(said), context).await);
        };
        let mut reference: Value = serde_json::from_slice(reference).map_err(|_| Refusal::new(Reason::InvalidParams))?;
        reference[member] = name.into();
        let addressed = RoutedRequest {
            server,
            name,
            body: splice(&request.body, vec![(at, reference.to_string())]),
            headers: request.headers.clone(),
        };
        self.forward_to_server(request, addressed, context).await
    }

    /// The target has no server prefix, so no server can own it. A caller who is not admitted (not enrolled, disabled, stale
    /// grants) gets that refusal instead.
    async fn refuse_unknown_target(
        &self,
        request: &CombinedRequest<'_>,
        said: Option<&str>,
        context: &mut RequestContext,
    ) -> Refusal {
        note_target(request, said, context);
        match self.load_authz(context).await {
            Ok(_) => unknown_reason(request.method).into(),
            Err(refusal) => refusal,
        }
    }

    /// Forwards a message to one server and answers as that server's own endpoint would. Servers that the caller has no
    /// grant for look exactly like servers that do not exist.
    async fn forward_to_server(
        &self,
        request: &CombinedRequest<'_>,
        to: RoutedRequest<'_>,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        note_target(
            request,
            request.params.name.as_deref().or(request.params.uri.as_deref()),
            context,
        );
        let here = match self.load_authz(context).await {
            Ok(authz) => match decide::refuses(&to.server, &authz.decision_input(context)) {
                Some(reason) if is_not_there(reason) => Err(unknown_reason(request.method).into()),
                _ => Ok(()),
            },
            Err(refusal) => Err(refusal),
        };
        context.delegated = true;
        let in_flight = request.session.as_ref().zip(context.id.as_ref()).map(|(session, id)| {
            let in_flight = &self.gate.combined.in_flight;
            in_flight.begin(session.key, id, &to.server)
        });
        let result = request.ask(to.server.clone(), &to.headers, to.body).await;
        if let Some(session) = &request.session
            && result.answered.is_ok()
        {
            match request.method {
                Method::Subscribe => session.subscribe(&to.server, to.name),
                Method::Unsubscribe => session.unsubscribe(&to.server, to.name),
                _ => (),
            }
        }
        match (&result.answered, here) {
            (Err(_), Err(refusal)) => Err(result.into_combined_refusal(context, refusal)),
            (Err(refusal), Ok(())) if is_not_there(refusal.reason) => {
                Err(result.into_combined_refusal(context, unknown_reason(request.method)))
            }
            _ => {
                let response = result.response(&self.gate);
                Ok(match in_flight {
                    Some(in_flight) => response.map(|body| in_flight.with(body)),
                    None => response,
                })
            }
        }
    }
}

impl CombinedRequest<'_> {
    /// Sends the message to one server. If the server has lost its session, opens another session and sends the message once
    /// more.
    async fn ask(&self, server: ServerName, headers: &HeaderMap, body: Bytes) -> ServerCallResult {
        let mut headers = headers.clone();
        headers.remove(mcp::SESSION_ID);
        headers.remove(mcp::LAST_EVENT_ID);
        if let Some(session) = &self.session {
            let version = HeaderValue::from_static(session.version.as_str());
            headers.insert(mcp::PROTOCOL_VERSION, version);
        }
        let call = self.caller.server_call(server, self.session.clone(), true);
        let before = call.server_session();
        let mut result = call.ask(HttpVerb::Post, &headers, body.clone()).await;
        let lost = match &before {
            Some(server_session) => call.session_is_lost(server_session, result.context.answered).await,
            None => false,
        };
        if lost && result.context.answered == Some(StatusCode::NOT_FOUND) {
            match self.method {
                // The first attempt may have been carried out although the server says 404, so a tool call is never sent
                // twice.
                Method::ToolsCall | Method::TasksUpdate if !call.is_local_session() => {
                    let why = "it has lost its session, and another is opened for the next call";
                    result.answered = Err(Refusal::with_detail(Reason::UpstreamBroken, why));
                }
                _ => result = call.ask(HttpVerb::Post, &headers, body).await,
            }
        }
        result.mask_session_404()
    }
}

/// Sets what the audit record says the message acts on, in case the combined endpoint refuses it.
fn note_target(request: &CombinedRequest<'_>, said: Option<&str>, context: &mut RequestContext) {
    let said = said.map(safe_text);
    match request.method {
        Method::ToolsCall => context.tool = said,
        _ => context.target = said,
    }
    context.arguments.clone_from(&request.params.arguments);
}

/// The refusal for a target that does not exist, by method.
const fn unknown_reason(method: Method) -> Reason {
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
fn local_response(body: Bytes) -> Response<Body> {
    reply::json_response(StatusCode::OK, body)
}
