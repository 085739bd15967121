//! The request path. Read `Gate::route_request` from top to bottom: that is the product.
//!
//! A call is a value that each step consumes: `Call` → `decide` → `Permit` → `Journal::open` → `Cleared` →
//! `Upstream::forward` → `Answer` → reply. A step cannot be skipped, and only what was decided on is sent. This file only
//! puts the steps in order: HTTP statuses and error texts are in `reply`, the rules in `decide`.

mod authn;
mod authz;
mod body_budget;
mod combined;
mod context;
mod handles;
mod keep_alive;
mod message;
mod metadata;
mod param_headers;
mod redact;
mod refusal_sampling;
mod reply;
mod routing;
mod screen;
mod stream_registry;
mod target;
mod visibility;

pub use authn::{Authenticator, JitEnrolment};
pub use metadata::Metadata;
pub use redact::Redaction;
pub use routing::Endpoints;

use crate::config::Denials;
use crate::decide::{self, Basis, DecisionInput, Permit, Snapshot, Verdict};
use crate::domain::{
    AuthMethod, Call, Decision, EnvironmentName, Era, Event, Method, Principal, Reason, Refusal, RequestId, ServerName, Timestamp,
};
use crate::grants::{GrantSnapshot, Grants};
use crate::journal::{Cleared, Journal, JournalState};
use crate::limits::{Admission, Limits, PrincipalKey};
use crate::mcp;
use crate::sessions::{HandleOwner, Session, SessionKeys};
use crate::telemetry::Metrics;
use crate::transport::{Body, BodyProblem, Peer};
use crate::upstream::{Eras, ForwardError, ForwardHeaders, Upstream, Upstreams};
use arc_swap::ArcSwap;
use authn::{Authenticated, CallerProfile};
use authz::AuthzContext;
use body_budget::{BodyBudget, BodyRefused};
use bytes::Bytes;
use combined::{Combined, ServerCall};
use context::RequestContext;
use handles::{HandleCache, HandleTranslator, OutboundHandles};
use http::{HeaderMap, Request, Response, StatusCode, request};
use hyper::body::Incoming;
use message::{bodyless_call, named_session, parse_call, peek_id, reject_malformed};
use refusal_sampling::RefusalAggregator;
use reply::RefusalContext;
use routing::{HttpVerb, Route};
use screen::{Screen, SessionSealer, StreamGuards, is_event_stream};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use stream_registry::{GuardedBody, StreamRegistry};
use visibility::{FilterContext, ResponseFilter};

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
    pub denials: BTreeMap<ServerName, Denials>,
    pub session_lifetime: Duration,
    pub redaction: Redaction,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
}

/// The request path of one instance.
pub struct Gate {
    parts: GateParts,
    body_budget: BodyBudget,
    refusals: RefusalAggregator,
    stream_registry: Arc<StreamRegistry>,
    handle_cache: Arc<HandleCache>,
    combined: Combined,
    draining: AtomicBool,
}

/// The request of an authenticated caller.
struct AuthenticatedRequest<'a> {
    headers: &'a HeaderMap,
    verb: HttpVerb,
    body: Result<Bytes, BodyRefused>,
    authenticated: Authenticated,
    counted: Option<PrincipalKey>,
}

/// Largest body that is read for an unauthenticated caller; only the request id in it is used.
const UNAUTHENTICATED_MAX_BODY: usize = 64 * 1024;
/// Most open streams of one caller: each holds a connection to its server for hours.
const MAX_STREAMS_PER_PRINCIPAL: usize = 64;
/// If the body took longer than this to arrive, the credential is checked again.
const REVERIFY_AFTER: Duration = Duration::from_secs(1);

impl Gate {
    pub fn new(parts: GateParts) -> Self {
        Self {
            body_budget: BodyBudget::new(parts.endpoints.max_body),
            handle_cache: HandleCache::new(parts.session_keys.clone(), parts.session_lifetime, parts.clock.now),
            combined: Combined::new(parts.session_lifetime),
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

    /// Answers one HTTP request, whatever it is.
    pub async fn handle(self: &Arc<Self>, request: Request<Incoming>, peer: Arc<Peer>) -> Response<Body> {
        let in_flight = self.parts.metrics.request_started();
        let (head, body) = request.into_parts();
        let mut context = RequestContext::new((self.parts.clock.request)(), (self.parts.clock.now)(), peer.address.ip());
        let answered = self.route_request(&head, body, &peer, &mut context).await;
        let (response, error) = match answered {
            Ok(response) => (response, ""),
            Err(refusal) => {
                let refused = self.respond_refused(&refusal, &context).await;
                // Two HTTP/1.1 parsers may disagree on where a badly framed request ends, so the connection is closed
                // (request smuggling).
                let ends = refusal.reason == Reason::BadFraming && !peer.http2;
                (
                    if ends { reply::close_after(refused) } else { refused },
                    refusal.reason.code(),
                )
            }
        };
        // A request forwarded by the combined endpoint is counted once per server, in `ServerCall::ask`.
        if !context.delegated {
            self.count(&context, error);
        }
        // A stream is in flight until its end; every other answer is complete here.
        if is_event_stream(&response) {
            return response.map(|body| GuardedBody::new(body, in_flight).boxed());
        }
        response
    }

    fn count(&self, context: &RequestContext, error: &'static str) {
        let method = context.method.map_or("none", Method::as_str);
        self.parts
            .metrics
            .operation(method, context.server.as_ref(), error, context.started.elapsed());
    }

    async fn route_request(
        self: &Arc<Self>,
        head: &request::Parts,
        body: Incoming,
        peer: &Peer,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        self.parts.endpoints.check_head(head)?;
        let upstreams = &*self.parts.upstreams;
        let server = match routing::route(head)? {
            Route::Metadata(server) => return self.resource_metadata(head, server, upstreams),
            Route::Combined => None,
            Route::Mcp(server) => Some(server),
        };
        let verb = routing::verb(head)?;
        context.server.clone_from(&server);
        let authenticated = self.authenticate(head, peer, server.as_ref(), context.at).await;
        let most = if authenticated.is_ok() {
            self.parts.endpoints.max_body
        } else {
            self.parts.endpoints.max_body.min(UNAUTHENTICATED_MAX_BODY)
        };
        let counted = authenticated
            .as_ref()
            .ok()
            .map(|authenticated| PrincipalKey::of(&authenticated.principal));
        let body = self
            .body_budget
            .read(body, most, self.parts.endpoints.body_timeout, counted)
            .await;
        let authenticated = match authenticated {
            Ok(authenticated) => authenticated,
            Err(reason) => {
                context.id = body.ok().and_then(|body| peek_id(verb, body));
                return Err(reason.into());
            }
        };
        context.principal = Some(authenticated.principal.clone());
        // The decision uses the time at which the body has arrived: a slow body takes up to half a minute, and the token may
        // expire meanwhile.
        let asked = std::mem::replace(&mut context.at, (self.parts.clock.now)());
        let authenticated = if context.at.since(asked) < REVERIFY_AFTER {
            authenticated
        } else {
            self.authenticate(head, peer, server.as_ref(), context.at).await?
        };
        if self.draining.load(Ordering::Relaxed) {
            return Err(Reason::Draining.into());
        }
        let headers = &head.headers;
        let request = AuthenticatedRequest {
            headers,
            verb,
            body,
            authenticated,
            counted,
        };
        match server {
            Some(server) => self.handle_message(request, server, None, context).await,
            None => Box::pin(self.combined(request, context)).await,
        }
    }

    /// Handles one message for one server, from its bytes to its answer. `through` is set for messages from the combined
    /// endpoint.
    async fn handle_message(
        &self,
        request: AuthenticatedRequest<'_>,
        server: ServerName,
        server_call: Option<&ServerCall>,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        let AuthenticatedRequest {
            headers,
            verb,
            body,
            authenticated,
            counted,
        } = request;
        let upstreams = &*self.parts.upstreams;
        routing::media_types(headers, verb)?;
        let mcp_headers = mcp::read_mcp_headers(headers).map_err(|malformed| reject_malformed(malformed, context))?;
        let session = named_session(
            &mcp_headers,
            &self.parts.session_keys,
            &authenticated.principal,
            &server,
            context.at,
        );
        let label = session.as_ref().ok().and_then(Option::as_ref).map(Session::label);
        let allowed_requests = upstreams.get(&server).map(Upstream::allowed_requests).unwrap_or_default();
        let translator = HandleTranslator::new(&self.handle_cache, &authenticated.principal, &server, label, allowed_requests);
        let (call, mut session, tasks) = match verb {
            HttpVerb::Post => parse_call(
                body.map_err(body_refusal)?,
                &mcp_headers,
                session,
                &server,
                &translator,
                context,
            )?,
            HttpVerb::Get => bodyless_call(Method::OpenStream, &mcp_headers, session?, &server, context)?,
            HttpVerb::Delete => bodyless_call(Method::EndSession, &mcp_headers, session?, &server, context)?,
        };
        context.session = match server_call {
            Some(server_call) => server_call.label(),
            None => session.as_ref().map(Session::label),
        };
        let mut authz = self.load_authz(authenticated, context).await?;
        let upstream = upstreams.get(&server).ok_or(Reason::UnknownServer)?;
        check_era(&call, upstream)?;
        let verdict = match decide::decide(call, &authz.decision_input(context)) {
            Verdict::Refuse(refused) => Box::pin(self.redecide_with_fresh_grants(*refused, &mut authz, context)).await?,
            permitted => permitted,
        };
        let permit = match verdict {
            Verdict::Permit(permit) => permit,
            Verdict::Refuse(refused) => {
                let invalid = refused.refusal.reason == Reason::InvalidArguments;
                context.hidden_from_caller = invalid && !is_listed(&refused.call, &authz.decision_input(context));
                context.basis = Some(refused.basis);
                return Err(unreachable_if_never_listed(upstream, &authz.snapshot, refused.refusal));
            }
        };
        let AuthzContext {
            caller,
            generation,
            snapshot,
            ..
        } = authz;
        if self.parts.grants.has_disabled(&server) {
            context.basis = Some(permit.basis().clone());
            return Err(Reason::ServerDisabled.into());
        }
        let params = param_headers::checked_headers(permit.call(), headers, &snapshot)
            .inspect_err(|_| context.basis = Some(permit.basis().clone()))?;
        let admission = if server_call.is_some_and(|server_call| server_call.is_counted) {
            None
        } else {
            self.admit(&permit, &caller.principal, counted)
                .inspect_err(|_| context.basis = Some(permit.basis().clone()))?
        };
        let outbound_handles = OutboundHandles::of(translator, permit.call(), tasks);
        let filter = ResponseFilter::of(permit.call(), self.filter_context(&caller, context));
        let mut screen = Screen::of(
            permit.call(),
            outbound_handles,
            filter,
            server_call.map(ServerCall::namespace),
        );
        let arguments = self.parts.redaction.apply(context.arguments.as_deref());
        let decision = context.permitted(&self.parts.environment, arguments);
        let ticket = grant_snapshot(generation, &caller, permit.basis());
        let cleared = match self.record(permit, decision, context).await {
            Ok(cleared) => cleared,
            Err(refusal) => {
                refund(admission);
                return Err(refusal);
            }
        };
        let mut version = None;
        if let Some(server_call) = server_call.filter(|server_call| server_call.opens(cleared.call())) {
            match server_call.session().await {
                Ok(server_session) => (session, version) = (server_session.session, Some(server_session.version)),
                Err(refusal) => {
                    cleared.abort("no session could be opened");
                    refund(admission);
                    return Err(refusal);
                }
            }
            screen.bind_session(session.as_ref());
        }
        if let Err(reason) = self.parts.grants.recheck(&ticket, (self.parts.clock.now)()) {
            cleared.abort(reason.code());
            refund(admission);
            return Err(reason.into());
        }
        if let Some(claim) = context.answer_claim.take() {
            claim.spend();
        }
        let forward = ForwardHeaders {
            session: session.map(|session| session.id),
            version,
            last_event_id: mcp_headers.last_event_id.map(str::to_owned),
            owner: (context.method == Some(Method::Initialize)).then(|| HandleOwner::new(&caller.principal, &server)),
            params,
        };
        let answer = upstream.forward(cleared, forward).await.inspect_err(|error| {
            let cause = error.cause.as_deref().unwrap_or_default();
            tracing::warn!(request = %context.request, %server, %error, cause, "the server did not answer properly");
        })?;
        context.answered = answer.status();
        let sealer = SessionSealer {
            keys: &self.parts.session_keys,
            principal: &caller.principal,
            server: &server,
            now: context.at,
            lifetime: self.parts.session_lifetime,
        };
        screen.reply(
            answer,
            &sealer,
            admission,
            StreamGuards {
                streams: self.stream_registry.clone(),
                ticket,
                keep_alive: self.parts.endpoints.keep_alive,
            },
        )
    }

    fn filter_context(&self, caller: &CallerProfile, context: &RequestContext) -> FilterContext {
        FilterContext {
            environment: self.parts.environment.clone(),
            snapshot: self.parts.snapshot.clone(),
            grants: self.parts.grants.clone(),
            now: self.parts.clock.now,
            principal: caller.principal.clone(),
            member: caller.member.clone(),
            cedar_principal: caller.cedar_principal.clone(),
            source_ip: context.source,
            session: context.session.clone(),
        }
    }

    async fn authenticate(
        &self,
        head: &request::Parts,
        peer: &Peer,
        server: Option<&ServerName>,
        now: Timestamp,
    ) -> Result<Authenticated, Reason> {
        let audience = self.parts.endpoints.resource(server);
        self.parts
            .authenticator
            .authenticate(&head.headers, peer, &audience, now)
            .await
    }

    /// Writes the decision to the journal and waits for the sync. If that fails, nothing is sent.
    async fn record(&self, permit: Permit, decision: Box<Decision>, context: &mut RequestContext) -> Result<Cleared, Refusal> {
        match self.parts.journal.open(permit, decision).await {
            Ok(cleared) => {
                context.recorded = true;
                self.parts.metrics.permitted(context.started.elapsed());
                Ok(cleared)
            }
            Err((_, sealed)) => {
                tracing::error!(request = %context.request, %sealed, "refused: the decision cannot be recorded");
                Err(Reason::AuditUnavailable.into())
            }
        }
    }
}

impl Gate {
    /// Records a refusal and answers it. If it cannot be recorded, answers `audit_unavailable` instead.
    async fn respond_refused(&self, refusal: &Refusal, context: &RequestContext) -> Response<Body> {
        let recorded = self.audit_refusal(refusal, context).await;
        let unrecorded = Refusal::new(Reason::AuditUnavailable);
        match recorded {
            Ok(recorded) => self.refusal_response(refusal, recorded, context),
            Err(()) => self.refusal_response(&unrecorded, false, context),
        }
    }

    /// Records the refusal of an authenticated caller; counts that of an unauthenticated one. `Ok(true)` if there is a
    /// record to quote, `Err` if the journal cannot write.
    async fn audit_refusal(&self, refusal: &Refusal, context: &RequestContext) -> Result<bool, ()> {
        let recorded = match &context.principal {
            _ if context.recorded => Ok(true),
            _ if context.audited.is_some() => return context.audited.ok_or(()),
            None => {
                self.refusals.count(refusal.reason, context.source);
                self.parts.metrics.unauthenticated(refusal.reason);
                Ok(false)
            }
            Some(principal) => self.record_refusal(refusal, principal, context).await,
        };
        let reason = match recorded {
            Ok(_) => refusal.reason,
            Err(()) => Reason::AuditUnavailable,
        };
        tracing::info!(
            request = %context.request, reason = reason.code(), method = context.method(),
            server = context.server.as_ref().map_or("", ServerName::as_str), "refused"
        );
        recorded
    }

    fn refusal_response(&self, refusal: &Refusal, recorded: bool, context: &RequestContext) -> Response<Body> {
        let server = context.server.as_ref();
        let metadata = self.parts.endpoints.metadata_url(server.filter(|_| !context.via_combined));
        let denials = server.and_then(|server| self.parts.denials.get(server).copied());
        let eras = server.and_then(|server| self.parts.upstreams.get(server));
        reply::refusal_response(
            refusal,
            &RefusalContext {
                id: context.id.as_ref(),
                era: context.era,
                may_step_up: context
                    .principal
                    .as_ref()
                    .is_none_or(|caller| caller.method == AuthMethod::Jwt),
                record: recorded.then_some(context.request),
                metadata: &metadata,
                denials: denials.unwrap_or_default(),
                raw_version: context.raw_version.as_deref(),
                eras: eras.map_or(Eras::Unknown, Upstream::eras),
                method: context.method,
                hidden_from_caller: context.hidden_from_caller,
            },
        )
    }

    /// `Ok(false)` if the refusal was only counted, `Err` if the journal cannot write.
    async fn record_refusal(&self, refusal: &Refusal, principal: &Principal, context: &RequestContext) -> Result<bool, ()> {
        self.parts.metrics.refused(refusal.reason, context.started.elapsed());
        if refusal.reason == Reason::AuditUnavailable {
            return Ok(false);
        }
        let name = format!("{}|{}", principal.issuer, principal.subject);
        if !self
            .refusals
            .may_record_in_full(&name, refusal.reason, context.source, context.at)
        {
            return Ok(false);
        }
        let decision = context.refused(
            &self.parts.environment,
            refusal,
            self.parts.redaction.apply(context.arguments.as_deref()),
        );
        self.parts
            .journal
            .append(Event::Decision(decision))
            .await
            .map(|_| true)
            .map_err(|sealed| {
                tracing::error!(request = %context.request, %sealed, "a refusal cannot be recorded");
            })
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

    /// Records the counted refusals; the app calls it once a second. While the journal is sealed, the counts are kept.
    pub async fn flush_refusals(&self) {
        if matches!(self.parts.journal.state(), JournalState::Sealed(_)) {
            return;
        }
        for event in self.refusals.drain(&self.parts.environment, (self.parts.clock.now)()) {
            if let Err(sealed) = self.parts.journal.append(event).await {
                tracing::warn!(%sealed, "counted refusals cannot be recorded");
            }
        }
    }

    /// Applies the rate and concurrency limits. They come after the decision, so that a call refused by it uses up nothing.
    fn admit(&self, permit: &Permit, principal: &Principal, counted: Option<PrincipalKey>) -> Result<Option<Admission>, Refusal> {
        let call = permit.call();
        let counted = || counted.unwrap_or_else(|| PrincipalKey::of(principal));
        match call.method {
            // These methods are not limited, because refusing them would only confuse the client.
            Method::Discover | Method::Ping | Method::Notification | Method::EndSession | Method::Answer => Ok(None),
            Method::OpenStream | Method::Listen => {
                self.check_stream_limit(principal)?;
                let admission = self.parts.limits.admit(counted(), &call.server, None);
                admission.map(Some).map_err(|refusal| *refusal)
            }
            // Clients poll their tasks, so polling does not count as a call of the tool.
            Method::TasksGet | Method::TasksResult | Method::TasksUpdate | Method::TasksCancel => {
                let admission = self.parts.limits.admit(counted(), &call.server, None);
                admission.map(Some).map_err(|refusal| *refusal)
            }
            Method::Initialize
            | Method::ToolsList
            | Method::ToolsCall
            | Method::ResourcesList
            | Method::TemplatesList
            | Method::ReadResource
            | Method::Subscribe
            | Method::Unsubscribe
            | Method::PromptsList
            | Method::GetPrompt
            | Method::Complete
            | Method::SetLevel => {
                let admission = self.parts.limits.admit(counted(), &call.server, call.tool());
                admission.map(Some).map_err(|refusal| *refusal)
            }
        }
    }

    fn check_stream_limit(&self, principal: &Principal) -> Result<(), Refusal> {
        if self.stream_registry.of(principal) < MAX_STREAMS_PER_PRINCIPAL {
            return Ok(());
        }
        Err(Refusal {
            retry_after: Some(Duration::from_secs(1)),
            ..Refusal::with_detail(
                Reason::TooManyInFlight,
                format!("{MAX_STREAMS_PER_PRINCIPAL} streams are open"),
            )
        })
    }

    fn resource_metadata(
        &self,
        head: &request::Parts,
        server: Option<ServerName>,
        upstreams: &Upstreams,
    ) -> Result<Response<Body>, Refusal> {
        if head.method != http::Method::GET {
            return Err(Reason::WrongHttpMethod.into());
        }
        if let Some(server) = &server {
            upstreams.get(server).ok_or(Reason::UnknownServer)?;
        }
        let mut response = reply::json_response(
            StatusCode::OK,
            self.parts.metadata.document(&self.parts.endpoints, server.as_ref()),
        );
        response
            .headers_mut()
            .insert(http::header::ACCESS_CONTROL_ALLOW_ORIGIN, http::HeaderValue::from_static("*"));
        Ok(response)
    }
}

/// Refuses the other era if the server speaks only one. The status makes a dual-era client fall back to the other era.
fn check_era(call: &Call, upstream: &Upstream) -> Result<(), Refusal> {
    match (call.era, call.method) {
        (era, _) if !upstream.eras().cannot_speak(era) => Ok(()),
        (Era::Modern, Method::Discover) => Err(Reason::UnknownMethod.into()),
        (Era::Modern, _) => Err(Refusal::with_detail(
            Reason::UnsupportedVersion,
            "this server speaks 2025-11-25 and older",
        )),
        (Era::Legacy, _) => Err(Refusal::with_detail(
            Reason::UnsupportedVersion,
            "this server speaks 2026-07-28",
        )),
    }
}

/// Whether the called tool is in this caller's `tools/list`.
fn is_listed(call: &Call, input: &DecisionInput<'_>) -> bool {
    let tool = call.tool().and_then(|tool| input.snapshot.tool(&call.server, tool.as_str()));
    tool.is_some_and(|tool| decide::could_permit(&call.server, tool, input))
}

/// The tools of a server that was never reached are unknown: reports the server as unreachable instead of the tool as
/// unknown.
fn unreachable_if_never_listed(upstream: &Upstream, snapshot: &Snapshot, refusal: Refusal) -> Refusal {
    let never = upstream.eras() == Eras::Unknown && snapshot.tools(upstream.name()).next().is_none();
    if refusal.reason == Reason::UnknownTool && never {
        Refusal::with_detail(Reason::UpstreamUnreachable, "it has not told its tools yet")
    } else {
        refusal
    }
}

/// A call that is refused after all uses up nothing.
fn refund(admission: Option<Admission>) {
    if let Some(admission) = admission {
        admission.refund();
    }
}

/// What later rechecks compare with the current grants.
fn grant_snapshot(generation: u64, caller: &CallerProfile, basis: &Basis) -> GrantSnapshot {
    let member = caller.member.as_ref().map(|member| member.id.clone());
    GrantSnapshot {
        generation,
        member: member.expect("nobody is permitted who is not enrolled"),
        grant: basis.grant.as_ref().map(|grant| (grant.id.clone(), grant.version)),
        principal: caller.principal.clone(),
    }
}

fn body_refusal(refused: BodyRefused) -> Refusal {
    match refused {
        BodyRefused::NoRoom => Refusal {
            retry_after: Some(Duration::from_secs(1)),
            ..Refusal::with_detail(Reason::TooManyInFlight, "too many messages are still on their way")
        },
        BodyRefused::Problem(BodyProblem::TooLarge) => Reason::BodyTooLarge.into(),
        BodyRefused::Problem(BodyProblem::TooSlow) => Reason::BodyTooSlow.into(),
        BodyRefused::Problem(problem @ (BodyProblem::Broken | BodyProblem::Trailers)) => {
            Refusal::with_detail(Reason::BadFraming, problem.to_string())
        }
    }
}

impl From<ForwardError> for Refusal {
    fn from(error: ForwardError) -> Self {
        Refusal::with_detail(error.reason, error.detail)
    }
}
