//! The request path. Read [`Gate::handle`] and [`Gate::dispatch`]: that is the product.
//!
//! A message is a value that each stage consumes: `AuthenticatedRequest` → `NegotiatedMessage` → `ParsedCall` →
//! `AuthorizedCall` (with the `Permit`) → `RecordedCall` (with `Cleared`) → `ForwardedCall` (with the `Answer`) → `Answered`. A
//! stage cannot be skipped, and only what was decided on is sent. This file puts the stages in order; each has a file of its
//! own. HTTP statuses and error texts are in `reply`, the rules in `decide`.

mod admission;
mod authn;
mod authz;
mod body_budget;
mod call;
mod context;
mod cors;
mod forward;
mod handles;
mod inputs;
mod keep_alive;
mod message;
mod metadata;
mod param_headers;
mod receive;
mod record;
mod refusal_sampling;
mod refusal_text;
mod reply;
mod routing;
mod screen;
mod stream_registry;
mod visibility;

pub use authn::{Authenticator, JitEnrolment};
pub use authz::{AuthzContext, CallerAuthz, is_offered};
pub use context::{Answered, MessageSummary, RefusalAudit, RefusedRequest, RequestContext};
pub use forward::{DispatchOptions, SessionOpening};
pub use inputs::InputKeeper;
pub use keep_alive::KeepAliveBody;
pub use message::{NegotiatedMessage, bodyless_message, negotiate, parse_body, reject_malformed, safe_text};
pub use metadata::Metadata;
pub use receive::AuthenticatedRequest;
pub use reply::{RefusalStyle, json_response};
pub use routing::{Endpoints, media_types};
pub use screen::{event_stream, is_event_stream};
pub use stream_registry::Registration;

use crate::decide::Snapshot;
use crate::domain::{AuthMethod, EnvironmentName, HttpVerb, Method, Reason, Refusal, RequestId, ServerName, Timestamp};
use crate::grants::Grants;
use crate::journal::Journal;
use crate::limits::Limits;
use crate::mcp::{self, McpHeaders};
use crate::sessions::{HandleKind, HandleOwner, Session, SessionKeys};
use crate::telemetry::{GaugeGuard, Metrics};
use crate::transport::{Body, GuardedBody, Peer};
use crate::upstream::{Eras, Upstream, Upstreams};
use arc_swap::ArcSwap;
use authz::AuthzSources;
use body_budget::BodyBudget;
use handles::HandleCache;
use http::{Request, Response};
use hyper::body::Incoming;
use receive::ReceivedRequest;
use refusal_sampling::RefusalAggregator;
use reply::RefusalContext;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use stream_registry::StreamRegistry;

/// The clock and the source of request ids, passed in so that tests can control them.
#[derive(Clone, Copy)]
pub struct Clock {
    pub now: fn() -> Timestamp,
    pub request: fn() -> RequestId,
}

/// The rooms that the request path uses, and its settings. Nothing here is locked across an await.
pub struct GateParts {
    pub environment: EnvironmentName,
    pub endpoints: Endpoints,
    pub metadata: Metadata,
    pub authenticator: Authenticator,
    pub grants: Arc<Grants>,
    pub limits: Arc<Limits>,
    pub journal: Journal,
    pub session_keys: Arc<SessionKeys>,
    pub upstreams: Arc<Upstreams>,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub refusal_styles: BTreeMap<ServerName, RefusalStyle>,
    pub session_lifetime: Duration,
    pub input_keeper: InputKeeper,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
}

/// The request path of one instance.
pub struct Gate {
    parts: GateParts,
    authz_sources: Arc<AuthzSources>,
    body_budget: BodyBudget,
    refusals: RefusalAggregator,
    stream_registry: Arc<StreamRegistry>,
    handle_cache: Arc<HandleCache>,
    draining: AtomicBool,
}

/// A handled request.
pub enum Handled {
    Response(Response<Body>),
    /// A request for all servers at once, which the caller of `handle` answers. The guard keeps it counted as in flight.
    ForAllServers(Box<AuthenticatedRequest>, GaugeGuard),
}

impl Gate {
    pub fn new(parts: GateParts) -> Self {
        Self {
            authz_sources: Arc::new(AuthzSources {
                environment: parts.environment.clone(),
                snapshot: parts.snapshot.clone(),
                grants: parts.grants.clone(),
                now: parts.clock.now,
            }),
            body_budget: BodyBudget::new(parts.endpoints.max_body),
            handle_cache: HandleCache::new(parts.session_keys.clone(), parts.session_lifetime, parts.clock.now),
            parts,
            refusals: RefusalAggregator::default(),
            stream_registry: Arc::default(),
            draining: AtomicBool::new(false),
        }
    }

    /// Refuses every new request from now on; running ones go on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Answers one HTTP request, unless it is for all servers at once.
    pub async fn handle(&self, request: Request<Incoming>, peer: Arc<Peer>) -> Handled {
        let in_flight = self.parts.metrics.request_started();
        let answered = match self.receive(request, &peer).await {
            Ok(ReceivedRequest::Message(request)) if request.context.server.is_none() => {
                return Handled::ForAllServers(Box::new(request), in_flight);
            }
            Ok(ReceivedRequest::Message(request)) => self.answer(request).await,
            Ok(ReceivedRequest::Document(answered)) => Ok(answered),
            Err(refused) => Err(refused),
        };
        Handled::Response(self.finish(answered, in_flight).await)
    }

    /// Answers a message for one server on that server's own endpoint.
    async fn answer(&self, request: AuthenticatedRequest) -> Result<Answered, Box<RefusedRequest>> {
        let AuthenticatedRequest {
            mut context,
            headers,
            verb,
            body,
            authenticated,
            limits_key,
        } = request;
        let read = media_types(&headers, verb).and_then(|()| {
            let mcp_headers = mcp::read_mcp_headers(&headers);
            let mcp_headers = mcp_headers.map_err(|malformed| reject_malformed(malformed, &mut context.message))?;
            let session = self.named_session(&mcp_headers, &context);
            let (message, session) = read_message(verb, body, &mcp_headers, session, &mut context.message)?;
            let resumed = mcp_headers.last_event_id.filter(|_| message.method == Method::OpenStream);
            let last_event_id = resumed.map(|handle| self.own_event_id(handle, &context, session.as_ref()));
            Ok((message, session, last_event_id.transpose()?))
        });
        let (message, session, last_event_id) = match read {
            Ok(read) => read,
            Err(refusal) => return Err(context.refuse(refusal)),
        };
        context.message.session = session.as_ref().map(Session::label);
        let options = DispatchOptions {
            headers: &headers,
            session,
            last_event_id,
            opening: None,
            limits_key: Some(limits_key),
            namespace: None,
        };
        self.dispatch(context, message, CallerAuthz::Authenticated(authenticated), options)
            .await
    }

    /// Handles one message for the server that `context` names, stage by stage.
    pub async fn dispatch(
        &self,
        context: RequestContext,
        message: NegotiatedMessage,
        caller: CallerAuthz,
        mut options: DispatchOptions<'_>,
    ) -> Result<Answered, Box<RefusedRequest>> {
        // In one place from here: each stage hands on a pointer.
        let parsed = self.parse_call(Box::new(context), message, options.session.as_ref())?;
        let authorized = self.authorize(parsed, caller, options.headers, options.limits_key).await?;
        let recorded = self.record(authorized, options.namespace.take()).await?;
        let forwarded = self.forward(recorded, options).await?;
        self.respond(forwarded)
    }

    /// Opens the sealed session id of a legacy client. Another caller's or server's session is unknown.
    fn named_session(&self, mcp_headers: &McpHeaders<'_>, context: &RequestContext) -> Result<Option<Session>, Refusal> {
        let (Some(sealed), Some(principal)) = (mcp_headers.session, &context.principal) else {
            return Ok(None);
        };
        let session = self
            .parts
            .session_keys
            .open(sealed, principal, context.server.as_ref(), context.at);
        session.map(Some).ok_or(Reason::UnknownSession.into())
    }
}

impl Gate {
    /// The server's own id of the event that `Last-Event-ID` names. It must have been sent on a stream of this session.
    fn own_event_id(&self, handle: &str, context: &RequestContext, session: Option<&Session>) -> Result<String, Refusal> {
        let (Some(principal), Some(server)) = (&context.principal, &context.server) else {
            return Err(Reason::Internal.into());
        };
        let label = session.map(Session::label).unwrap_or_default();
        let (kind, owner) = (HandleKind::Event { session: &label }, HandleOwner::new(principal, server));
        let decoded = self.parts.session_keys.verify(kind, handle, &owner);
        Ok(decoded.ok_or(Reason::UnknownEvent)?.text)
    }
}

/// Reads a message on a server's own endpoint, and tells the session that it belongs to.
fn read_message(
    verb: HttpVerb,
    body: Result<bytes::Bytes, body_budget::BodyRefused>,
    mcp_headers: &McpHeaders<'_>,
    session: Result<Option<Session>, Refusal>,
    summary: &mut MessageSummary,
) -> Result<(NegotiatedMessage, Option<Session>), Refusal> {
    let version = |session: &Option<Session>| session.as_ref().map(|session| session.version);
    let method = match verb {
        HttpVerb::Post => {
            let message = parse_body(body?, summary)?;
            // The modern era has no sessions and ignores `Mcp-Session-Id`.
            let session = if message.is_modern() { None } else { session? };
            return Ok((negotiate(message, mcp_headers, version(&session), summary)?, session));
        }
        HttpVerb::Get => Method::OpenStream,
        HttpVerb::Delete => Method::EndSession,
    };
    let session = session?;
    summary.method = Some(method);
    let message = bodyless_message(method, mcp_headers, version(&session), summary)?;
    if session.is_none() && method == Method::EndSession {
        return Err(Reason::UnknownSession.into());
    }
    Ok((message, session))
}

impl Gate {
    /// Turns the result into the response: records and words a refusal, and counts the request.
    pub async fn finish(&self, answered: Result<Answered, Box<RefusedRequest>>, in_flight: GaugeGuard) -> Response<Body> {
        let origin = match &answered {
            Ok(answered) => answered.context.allowed_origin.clone(),
            Err(refused) => refused.context.allowed_origin.clone(),
        };
        let mut response = match answered {
            Ok(answered) => {
                // A message that was split is counted once for each server.
                if !answered.is_split {
                    self.count(&answered.context, "");
                }
                answered.response
            }
            Err(refused) => {
                let response = self.respond_refused(&refused).await;
                if !matches!(refused.audit, RefusalAudit::PartRecorded(_)) {
                    self.count(&refused.context, refused.refusal.reason.code());
                }
                // Two HTTP/1.1 parsers may disagree on where a badly framed request ends, so the connection is closed
                // (request smuggling).
                if refused.refusal.reason == Reason::BadFraming && !refused.context.is_http2 {
                    reply::close_after(response)
                } else {
                    response
                }
            }
        };
        cors::allow(&mut response, origin.as_ref(), self.parts.endpoints.has_origins());
        // A stream is in flight until its end; every other answer is complete here.
        if is_event_stream(&response) {
            return response.map(|body| GuardedBody::new(body, in_flight).boxed());
        }
        response
    }

    /// Counts a message that was answered, or refused with `error`.
    pub fn count(&self, context: &RequestContext, error: &'static str) {
        let method = context.message.method.map_or("none", Method::as_str);
        self.parts
            .metrics
            .operation(method, context.server.as_ref(), error, context.started.elapsed());
    }

    /// Records a refusal and answers it. If it cannot be recorded, answers `audit_unavailable` instead.
    async fn respond_refused(&self, refused: &RefusedRequest) -> Response<Body> {
        let recorded = self.audit_refusal(refused).await;
        self.refusal_response(refused, recorded)
    }

    /// Whether this caller must not learn that what the server refuses is there.
    pub fn hides_what_is_refused(&self, refused: &RefusedRequest) -> bool {
        let style = refused
            .context
            .server
            .as_ref()
            .and_then(|server| self.parts.refusal_styles.get(server));
        style.is_some_and(|style| style.hides(refused.refusal.reason, refused.context.principal.as_deref()))
    }

    /// The response to a refused message. `recorded` is what `audit_refusal` returned.
    pub fn refusal_response(&self, refused: &RefusedRequest, recorded: Result<bool, ()>) -> Response<Body> {
        let RefusedRequest { refusal, context, .. } = refused;
        let server = context.server.as_ref();
        let endpoint = server.filter(|_| !context.is_part);
        let metadata = self.parts.metadata.url(&self.parts.endpoints, endpoint);
        let style = server.and_then(|server| self.parts.refusal_styles.get(server).copied());
        let style = style.unwrap_or_default();
        let eras = server.and_then(|server| self.parts.upstreams.get(server));
        let uses_token = |principal: &Arc<crate::domain::Principal>| principal.method == AuthMethod::Jwt;
        let unrecorded = Refusal::new(Reason::AuditUnavailable);
        reply::refusal_response(
            if recorded.is_ok() { refusal } else { &unrecorded },
            &RefusalContext {
                id: context.message.id.as_ref(),
                era: context.message.era,
                may_step_up: context.principal.as_ref().is_none_or(uses_token),
                record: (recorded == Ok(true)).then_some(context.request),
                metadata: metadata.as_deref(),
                offered_scopes: self.parts.metadata.scopes(endpoint),
                tool: context.called_tool(),
                denials: style.denials(context.principal.as_deref()),
                unknown_tools: style.unknown_tools,
                raw_version: context.message.raw_version.as_deref(),
                eras: eras.map_or(Eras::Unknown, Upstream::eras),
                method: context.message.method,
                hidden_from_caller: refused.hidden_from_caller && recorded.is_ok(),
            },
        )
    }

    /// Whether this is the snapshot of policies that is in force.
    pub fn has_snapshot(&self, snapshot: &Arc<Snapshot>) -> bool {
        Arc::ptr_eq(snapshot, &self.parts.snapshot.load())
    }

    /// Cuts open streams whose authorisation has ended; the app calls it once a second. It also keeps the grants confirmed
    /// while no calls do. If they cannot be confirmed, all streams are cut.
    pub async fn recheck_streams(&self) {
        if self.stream_registry.is_empty() {
            return;
        }
        let fresh = self.parts.grants.fresh().await.is_ok();
        let cut = self
            .stream_registry
            .recheck(&self.parts.grants, fresh, (self.parts.clock.now)());
        if cut > 0 {
            tracing::info!(streams = cut, "cut: their authorisation is gone");
        }
    }
}
