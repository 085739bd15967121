//! `/mcp`: all servers of a caller behind one URL. Each message is either answered here, or rewritten for one server and
//! given to [`Gate::dispatch`] like any other, with its own audit record.
//! It does not decide about calls: the gate does, and does not know this room. Names, URIs, event ids and cursors in answers
//! get the server as a prefix, so that the server can be found when the caller sends them back.

mod in_flight;
mod listen;
mod lists;
mod local;
mod notifications;
mod routing;
mod server_call;
mod session;
mod streams;

use crate::domain::{Digest, Era, HttpVerb, MessageId, Method, Principal, Reason, Refusal, ServerName, TargetKind, Timestamp};
use crate::gate::{
    Answered, AuthenticatedRequest, AuthzContext, Clock, Gate, Handled, NegotiatedMessage, RefusedRequest, RequestContext,
    bodyless_message, json_response, media_types, negotiate, parse_body, reject_malformed,
};
use crate::grants::Grants;
use crate::limits::{Limits, PrincipalKey};
use crate::mcp::{self, McpHeaders, Message, Params};
use crate::sessions::{Session, SessionKeys};
use crate::transport::{Body, ExchangeEnd, Peer};
use crate::upstream::Upstreams;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use in_flight::InFlightRequests;
use moka::sync::Cache;
use session::{CombinedSession, key_of};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// What the combined endpoint uses, and its settings.
pub struct CombinedParts {
    pub gate: Arc<Gate>,
    pub upstreams: Arc<Upstreams>,
    pub grants: Arc<Grants>,
    pub limits: Arc<Limits>,
    pub session_keys: Arc<SessionKeys>,
    pub session_lifetime: Duration,
    pub keep_alive: Duration,
    pub clock: Clock,
}

/// The combined endpoint of one instance.
pub struct Combined {
    parts: CombinedParts,
    /// Combined sessions on this instance. It is only a cache: a session can be resumed on any instance from its sealed id.
    sessions: Cache<Digest, Arc<CombinedSession>>,
    /// Sessions that their clients ended with DELETE on this instance. Without this entry the sealed id could be resumed
    /// until it expires.
    ended: Cache<Digest, ()>,
    in_flight: Arc<InFlightRequests>,
}

/// The caller of a combined request. Owned, so that streams can outlive the request.
#[derive(Clone)]
struct CombinedCaller {
    combined: Arc<Combined>,
    principal: Arc<Principal>,
    limits_key: PrincipalKey,
    source: IpAddr,
    exchange: ExchangeEnd,
}

/// A message at `/mcp`.
struct CombinedRequest {
    caller: CombinedCaller,
    context: RequestContext,
    headers: HeaderMap,
    session: Option<Arc<CombinedSession>>,
    message: NegotiatedMessage,
    /// What the caller may do, once it was loaded.
    authz: Option<AuthzContext>,
}

type CombinedResult = Result<Answered, Box<RefusedRequest>>;

const MAX_SESSIONS: u64 = 20_000;
const MAX_ENDED_SESSIONS: u64 = 1_000_000;

impl Combined {
    pub fn new(parts: CombinedParts) -> Self {
        let lifetime = parts.session_lifetime;
        Self {
            parts,
            sessions: Cache::builder().max_capacity(MAX_SESSIONS).time_to_idle(lifetime).build(),
            ended: Cache::builder()
                .max_capacity(MAX_ENDED_SESSIONS)
                .time_to_live(lifetime)
                .build(),
            in_flight: Arc::default(),
        }
    }

    /// Answers one HTTP request. The gate answers it, unless it is to `/mcp`.
    pub async fn handle(self: &Arc<Self>, request: Request<Incoming>, peer: Arc<Peer>) -> Response<Body> {
        let gate = &self.parts.gate;
        match gate.handle(request, peer).await {
            Handled::Response(response) => response,
            Handled::ForAllServers(request, in_flight) => {
                let answered = Box::pin(self.answer(*request)).await;
                gate.finish(answered, in_flight).await
            }
        }
    }

    async fn answer(self: &Arc<Self>, request: AuthenticatedRequest) -> CombinedResult {
        let AuthenticatedRequest {
            mut context,
            headers,
            verb,
            body,
            authenticated,
            limits_key,
        } = request;
        let caller = CombinedCaller {
            combined: self.clone(),
            principal: authenticated.principal,
            limits_key,
            source: context.source,
            exchange: context.exchange.clone(),
        };
        let read = media_types(&headers, verb).and_then(|()| {
            let mcp_headers = mcp::read_mcp_headers(&headers);
            let mcp_headers = mcp_headers.map_err(|malformed| reject_malformed(malformed, &mut context.message))?;
            let body = (verb == HttpVerb::Post).then(|| body.map_err(Refusal::from));
            let (message, session) = caller.read(verb, body, &mcp_headers, &mut context)?;
            Ok((message, session, mcp_headers.last_event_id.map(str::to_owned)))
        });
        let (message, session, last_event_id) = match read {
            Ok(read) => read,
            Err(refusal) => return Err(context.refuse(refusal)),
        };
        let request = CombinedRequest {
            caller,
            context,
            headers,
            session,
            message,
            authz: None,
        };
        request.answer(last_event_id).await
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

    fn now(&self) -> Timestamp {
        (self.parts.clock.now)()
    }
}

impl CombinedCaller {
    /// Reads the message and finds the combined session that it belongs to.
    fn read(
        &self,
        verb: HttpVerb,
        body: Option<Result<Bytes, Refusal>>,
        mcp_headers: &McpHeaders<'_>,
        context: &mut RequestContext,
    ) -> Result<(NegotiatedMessage, Option<Arc<CombinedSession>>), Refusal> {
        let session = match mcp_headers.session {
            Some(sealed) => self.session(sealed).map(Some).ok_or(Refusal::new(Reason::UnknownSession)),
            None => Ok(None),
        };
        let summary = &mut context.message;
        if let Ok(Some(session)) = &session {
            summary.session = Some(session.label.clone());
        }
        let Some(body) = body else {
            let method = if verb == HttpVerb::Get {
                Method::OpenStream
            } else {
                Method::EndSession
            };
            summary.method = Some(method);
            let session = session?.ok_or_else(no_session)?;
            let message = bodyless_message(method, mcp_headers, Some(session.version), summary)?;
            return Ok((message, Some(session)));
        };
        let message = parse_body(body?, summary)?;
        let session = if message.is_modern() { None } else { session? };
        if message.is_modern() {
            summary.session = None;
        }
        let version = session.as_ref().map(|session| session.version);
        if matches!(message, Message::Response(_)) && session.is_none() {
            summary.method = Some(Method::Answer);
            return Err(no_session());
        }
        let message = negotiate(message, mcp_headers, version, summary)?;
        let starts = matches!(message.method, Method::Initialize | Method::Ping);
        if message.era == Era::Legacy && session.is_none() && !starts {
            return Err(no_session());
        }
        Ok((message, session))
    }

    /// A context for a message that Guardian sends itself.
    fn context(&self, session: Option<&CombinedSession>) -> RequestContext {
        let parts = &self.combined.parts;
        let mut context = RequestContext::new((parts.clock.request)(), (parts.clock.now)(), self.source, false);
        context.exchange = self.exchange.clone();
        context.principal = Some(self.principal.clone());
        context.message.session = session.map(|session| session.label.clone());
        context
    }

    /// The same for one server.
    fn part_context(&self, session: &CombinedSession, server: &ServerName) -> RequestContext {
        self.context(Some(session)).for_server(server.clone())
    }
}

impl CombinedRequest {
    /// Answers the message here, or through the servers that it concerns.
    async fn answer(mut self, last_event_id: Option<String>) -> CombinedResult {
        let Some(session) = self.session.clone() else {
            return self.answer_request().await;
        };
        match self.message.method {
            Method::OpenStream => self.own_stream(session, last_event_id.as_deref()).await,
            Method::EndSession => Ok(self.end(&session).await),
            Method::Notification => Ok(self.notify(&session).await),
            Method::Answer => self.pass_answer(&session).await,
            _ => self.answer_request().await,
        }
    }

    async fn answer_request(mut self) -> CombinedResult {
        match self.message.method {
            Method::Initialize => self.initialize().await,
            Method::Ping => self.ping().await,
            Method::Discover => self.discover().await,
            Method::ToolsList => self.tools().await,
            Method::ResourcesList | Method::TemplatesList | Method::PromptsList => self.list().await,
            Method::SetLevel => self.set_level().await,
            Method::Listen => self.listen().await,
            method if method.target_kind() != TargetKind::Server => self.route().await,
            // The others need a session, which `read` has asked for.
            _ => Err(self.refuse(Reason::UnknownMethod)),
        }
    }

    fn params(&self) -> Option<&Params> {
        self.message.params()
    }

    /// The id that the response answers.
    fn id(&self) -> MessageId {
        let null = || MessageId::from_json(Bytes::from_static(b"null"));
        self.context.message.id.clone().unwrap_or_else(null)
    }

    fn refuse(&self, refusal: impl Into<Refusal>) -> Box<RefusedRequest> {
        let mut refused = self.context.clone().refuse(refusal);
        refused.caller = self.authz.as_ref().map(|authz| authz.caller.clone());
        refused
    }

    /// An answer that Guardian wrote.
    fn local(&self, body: Bytes) -> Answered {
        self.respond(json_response(StatusCode::OK, body), false)
    }

    /// `is_split` if servers were asked, each with a record of its own.
    fn respond(&self, response: Response<Body>, is_split: bool) -> Answered {
        Answered {
            is_split,
            ..self.context.clone().answered(response)
        }
    }
}

fn no_session() -> Refusal {
    Refusal::with_detail(Reason::InvalidRequest, "`Mcp-Session-Id` is missing: initialize first")
}
