//! The request path. Read `Gate::serve` from top to bottom: that is the product.
//!
//! A call is a value that each step consumes: `Call` → `decide` → `Permit` → `Journal::open` → `Cleared` →
//! `Upstream::forward` → `Answer` → reply. A step cannot be skipped, and only what was decided on is sent. This file only
//! puts the steps in order: HTTP statuses and error texts are in `reply`, the rules in `decide`.

mod alive;
mod bodies;
mod caller;
mod combined;
mod lens;
mod message;
mod metadata;
mod mirror;
mod noise;
mod redact;
mod reply;
mod screen;
mod site;
mod standing;
mod streams;
mod talk;
mod target;
mod trail;

pub use caller::{Callers, JustInTime};
pub use metadata::Metadata;
pub use redact::Redaction;
pub use site::Site;

use crate::config::Denials;
use crate::decide::{self, Basis, DecisionInput, Permit, Snapshot, Verdict};
use crate::domain::{
    AuthMethod, Call, Decision, EnvironmentName, Era, Event, Method, Principal, Reason, Refusal, RequestId, ServerName, Timestamp,
};
use crate::grants::{GrantSnapshot, Grants};
use crate::journal::{Cleared, Journal, JournalState};
use crate::limits::{Admission, Limits, PrincipalKey};
use crate::mcp;
use crate::telemetry::Metrics;
use crate::transport::{Body, BodyProblem, Peer};
use crate::upstream::{Eras, ForwardError, ForwardHeaders, HandleOwner, Session, Upstream, Upstreams};
use arc_swap::ArcSwap;
use bodies::{Bodies, Unread};
use bytes::Bytes;
use caller::{Caller, Proved};
use combined::{Combined, Through};
use http::{HeaderMap, Request, Response, StatusCode, request};
use hyper::body::Incoming;
use lens::{Lens, Viewer};
use message::{heard, id_of, named_session, read, without_body};
use noise::Noise;
use reply::Listener;
use screen::{Open, Screen, Sealing, is_event_stream};
use site::{Route, Verb};
use standing::Standing;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use streams::{Held, Streams};
use talk::{Handing, Talk, Talks};
use trail::Trail;

/// The clock and the source of request ids, passed in so that tests can control them.
#[derive(Clone, Copy)]
pub struct Clock {
    pub now: fn() -> Timestamp,
    pub request: fn() -> RequestId,
}

/// The rooms that the request path uses, and its settings. Nothing here is locked across an await.
pub struct GateParts {
    pub environment: EnvironmentName,
    pub site: Site,
    pub metadata: Metadata,
    pub callers: Callers,
    pub grants: Arc<Grants>,
    pub limits: Arc<Limits>,
    pub journal: Journal,
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
    bodies: Bodies,
    noise: Noise,
    streams: Arc<Streams>,
    talks: Arc<Talks>,
    combined: Combined,
    draining: AtomicBool,
}

/// The request of an authenticated caller.
struct Errand<'a> {
    headers: &'a HeaderMap,
    verb: Verb,
    body: Result<Bytes, Unread>,
    proved: Proved,
    counted: Option<PrincipalKey>,
}

/// Largest body that is read for an unauthenticated caller; only the request id in it is used.
const STRANGERS_BODY: usize = 64 * 1024;
/// Most open streams of one caller: each holds a connection to its server for hours.
const MOST_STREAMS: usize = 64;
/// If the body took longer than this to arrive, the credential is checked again.
const SLOW: Duration = Duration::from_secs(1);

impl Gate {
    pub fn new(parts: GateParts) -> Self {
        Self {
            bodies: Bodies::new(parts.site.max_body),
            talks: Talks::new(parts.upstreams.sessions().clone(), parts.session_lifetime, parts.clock.now),
            combined: Combined::new(parts.session_lifetime),
            parts,
            noise: Noise::default(),
            streams: Arc::default(),
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
        let mut trail = Trail::new((self.parts.clock.request)(), (self.parts.clock.now)(), peer.address.ip());
        let answered = self.serve(&head, body, &peer, &mut trail).await;
        let (response, error) = match answered {
            Ok(response) => (response, ""),
            Err(refusal) => {
                let refused = self.refuse(&refusal, &trail).await;
                // Two HTTP/1.1 parsers may disagree on where a badly framed request ends, so the connection is closed
                // (request smuggling).
                let ends = refusal.reason == Reason::BadFraming && !peer.http2;
                (if ends { reply::last(refused) } else { refused }, refusal.reason.code())
            }
        };
        // A request forwarded by the combined endpoint is counted once per server, in `Through::ask`.
        if !trail.passed_on {
            self.count(&trail, error);
        }
        // A stream is in flight until its end; every other answer is complete here.
        if is_event_stream(&response) {
            return response.map(|body| Held::new(body, in_flight).boxed());
        }
        response
    }

    fn count(&self, trail: &Trail, error: &'static str) {
        let method = trail.method.map_or("none", Method::as_str);
        self.parts
            .metrics
            .operation(method, trail.server.as_ref(), error, trail.started.elapsed());
    }

    async fn serve(
        self: &Arc<Self>,
        head: &request::Parts,
        body: Incoming,
        peer: &Peer,
        trail: &mut Trail,
    ) -> Result<Response<Body>, Refusal> {
        self.parts.site.admit(head)?;
        let upstreams = &*self.parts.upstreams;
        let server = match site::route(head)? {
            Route::Metadata(server) => return self.document(head, server, upstreams),
            Route::Combined => None,
            Route::Mcp(server) => Some(server),
        };
        let verb = site::verb(head)?;
        trail.server.clone_from(&server);
        let proved = self.prove(head, peer, server.as_ref(), trail.at).await;
        let most = if proved.is_ok() {
            self.parts.site.max_body
        } else {
            self.parts.site.max_body.min(STRANGERS_BODY)
        };
        let counted = proved.as_ref().ok().map(|proved| PrincipalKey::of(&proved.principal));
        let body = self.bodies.read(body, most, self.parts.site.body_timeout, counted).await;
        let proved = match proved {
            Ok(proved) => proved,
            Err(reason) => {
                trail.id = body.ok().and_then(|body| id_of(verb, body));
                return Err(reason.into());
            }
        };
        trail.principal = Some(proved.principal.clone());
        // The decision uses the time at which the body has arrived: a slow body takes up to half a minute, and the token may
        // expire meanwhile.
        let asked = std::mem::replace(&mut trail.at, (self.parts.clock.now)());
        let proved = if trail.at.since(asked) < SLOW {
            proved
        } else {
            self.prove(head, peer, server.as_ref(), trail.at).await?
        };
        if self.draining.load(Ordering::Relaxed) {
            return Err(Reason::Draining.into());
        }
        let headers = &head.headers;
        let errand = Errand {
            headers,
            verb,
            body,
            proved,
            counted,
        };
        match server {
            Some(server) => self.pass(errand, server, None, trail).await,
            None => Box::pin(self.combined(errand, trail)).await,
        }
    }

    /// Handles one message for one server, from its bytes to its answer. `through` is set for messages from the combined
    /// endpoint.
    async fn pass(
        &self,
        errand: Errand<'_>,
        server: ServerName,
        through: Option<&Through>,
        trail: &mut Trail,
    ) -> Result<Response<Body>, Refusal> {
        let Errand {
            headers,
            verb,
            body,
            proved,
            counted,
        } = errand;
        let upstreams = &*self.parts.upstreams;
        site::media_types(headers, verb)?;
        let mcp_headers = mcp::read_mcp_headers(headers).map_err(|malformed| heard(malformed, trail))?;
        let session = named_session(&mcp_headers, upstreams, &proved.principal, &server, trail.at);
        let label = session.as_ref().ok().and_then(Option::as_ref).map(Session::label);
        let allowed_requests = upstreams.get(&server).map(Upstream::allowed_requests).unwrap_or_default();
        let talk = Talk::new(&self.talks, &proved.principal, &server, label, allowed_requests);
        let (call, mut session, tasks) = match verb {
            Verb::Post => read(body.map_err(unread)?, &mcp_headers, session, &server, &talk, trail)?,
            Verb::Get => without_body(Method::OpenStream, &mcp_headers, session?, &server, trail)?,
            Verb::Delete => without_body(Method::EndSession, &mcp_headers, session?, &server, trail)?,
        };
        trail.session = match through {
            Some(through) => through.label(),
            None => session.as_ref().map(Session::label),
        };
        let mut standing = self.standing(proved, trail).await?;
        let upstream = upstreams.get(&server).ok_or(Reason::UnknownServer)?;
        refuse_other_era(&call, upstream)?;
        let verdict = match decide::decide(call, &standing.facts(trail)) {
            Verdict::Refuse(refused) => Box::pin(self.judge_again(*refused, &mut standing, trail)).await?,
            permitted => permitted,
        };
        let permit = match verdict {
            Verdict::Permit(permit) => permit,
            Verdict::Refuse(refused) => {
                let invalid = refused.refusal.reason == Reason::InvalidArguments;
                trail.unseen = invalid && !shown(&refused.call, &standing.facts(trail));
                trail.basis = Some(refused.basis);
                return Err(never_seen(upstream, &standing.snapshot, refused.refusal));
            }
        };
        let Standing {
            caller,
            generation,
            snapshot,
            ..
        } = standing;
        let params =
            mirror::fields(permit.call(), headers, &snapshot).inspect_err(|_| trail.basis = Some(permit.basis().clone()))?;
        let admission = if through.is_some_and(|through| through.is_counted) {
            None
        } else {
            self.admit(&permit, &caller.principal, counted)
                .inspect_err(|_| trail.basis = Some(permit.basis().clone()))?
        };
        let handing = Handing::of(talk, permit.call(), tasks);
        let lens = Lens::of(permit.call(), self.viewer(&caller, trail));
        let mut screen = Screen::of(permit.call(), handing, lens, through.map(Through::names));
        let arguments = self.parts.redaction.apply(trail.arguments.as_deref());
        let decision = trail.permitted(&self.parts.environment, arguments);
        let ticket = ticket(generation, &caller, permit.basis());
        let cleared = match self.record(permit, decision, trail).await {
            Ok(cleared) => cleared,
            Err(refusal) => {
                give_back(admission);
                return Err(refusal);
            }
        };
        let mut version = None;
        if let Some(through) = through.filter(|through| through.opens(cleared.call())) {
            match through.session().await {
                Ok(held) => (session, version) = (held.session, Some(held.version)),
                Err(refusal) => {
                    cleared.abort("no session could be opened");
                    give_back(admission);
                    return Err(refusal);
                }
            }
            screen.in_session(session.as_ref());
        }
        if let Err(reason) = self.parts.grants.recheck(&ticket, (self.parts.clock.now)()) {
            cleared.abort(reason.code());
            give_back(admission);
            return Err(reason.into());
        }
        if let Some(claim) = trail.claim.take() {
            claim.spend();
        }
        let forward = ForwardHeaders {
            session: session.map(|session| session.id),
            version,
            last_event_id: mcp_headers.last_event_id.map(str::to_owned),
            owner: (trail.method == Some(Method::Initialize)).then(|| HandleOwner::new(&caller.principal, &server)),
            params,
        };
        let answer = upstream.forward(cleared, forward).await.inspect_err(|error| {
            let cause = error.cause.as_deref().unwrap_or_default();
            tracing::warn!(request = %trail.request, %server, %error, cause, "the server did not answer properly");
        })?;
        trail.answered = answer.status();
        let sealing = Sealing {
            keys: upstreams.sessions(),
            principal: &caller.principal,
            server: &server,
            now: trail.at,
            lifetime: self.parts.session_lifetime,
        };
        screen.reply(
            answer,
            &sealing,
            admission,
            Open {
                streams: self.streams.clone(),
                ticket,
                keep_alive: self.parts.site.keep_alive,
            },
        )
    }

    fn viewer(&self, caller: &Caller, trail: &Trail) -> Viewer {
        Viewer {
            environment: self.parts.environment.clone(),
            snapshot: self.parts.snapshot.clone(),
            grants: self.parts.grants.clone(),
            now: self.parts.clock.now,
            principal: caller.principal.clone(),
            member: caller.member.clone(),
            cedar_principal: caller.cedar_principal.clone(),
            source_ip: trail.source,
            session: trail.session.clone(),
        }
    }

    async fn prove(
        &self,
        head: &request::Parts,
        peer: &Peer,
        server: Option<&ServerName>,
        now: Timestamp,
    ) -> Result<Proved, Reason> {
        let audience = self.parts.site.resource(server);
        self.parts.callers.prove(&head.headers, peer, &audience, now).await
    }

    /// Writes the decision to the journal and waits for the sync. If that fails, nothing is sent.
    async fn record(&self, permit: Permit, decision: Box<Decision>, trail: &mut Trail) -> Result<Cleared, Refusal> {
        match self.parts.journal.open(permit, decision).await {
            Ok(cleared) => {
                trail.recorded = true;
                self.parts.metrics.permitted(trail.started.elapsed());
                Ok(cleared)
            }
            Err((_, sealed)) => {
                tracing::error!(request = %trail.request, %sealed, "refused: the decision cannot be recorded");
                Err(Reason::AuditUnavailable.into())
            }
        }
    }
}

impl Gate {
    /// Records a refusal and answers it. If it cannot be recorded, answers `audit_unavailable` instead.
    async fn refuse(&self, refusal: &Refusal, trail: &Trail) -> Response<Body> {
        let recorded = self.put_down(refusal, trail).await;
        let unrecorded = Refusal::new(Reason::AuditUnavailable);
        match recorded {
            Ok(recorded) => self.tell(refusal, recorded, trail),
            Err(()) => self.tell(&unrecorded, false, trail),
        }
    }

    /// Records the refusal of an authenticated caller; counts that of an unauthenticated one. `Ok(true)` if there is a
    /// record to quote, `Err` if the journal cannot write.
    async fn put_down(&self, refusal: &Refusal, trail: &Trail) -> Result<bool, ()> {
        let recorded = match &trail.principal {
            _ if trail.recorded => Ok(true),
            _ if trail.put_down.is_some() => return trail.put_down.ok_or(()),
            None => {
                self.noise.count(refusal.reason, trail.source);
                self.parts.metrics.unauthenticated(refusal.reason);
                Ok(false)
            }
            Some(principal) => self.record_refusal(refusal, principal, trail).await,
        };
        let reason = match recorded {
            Ok(_) => refusal.reason,
            Err(()) => Reason::AuditUnavailable,
        };
        tracing::info!(
            request = %trail.request, reason = reason.code(), method = trail.method(),
            server = trail.server.as_ref().map_or("", ServerName::as_str), "refused"
        );
        recorded
    }

    fn tell(&self, refusal: &Refusal, recorded: bool, trail: &Trail) -> Response<Body> {
        let server = trail.server.as_ref();
        let metadata = self.parts.site.metadata_url(server.filter(|_| !trail.through));
        let denials = server.and_then(|server| self.parts.denials.get(server).copied());
        let eras = server.and_then(|server| self.parts.upstreams.get(server));
        reply::refuse(
            refusal,
            &Listener {
                id: trail.id.as_ref(),
                era: trail.era,
                may_step_up: trail.principal.as_ref().is_none_or(|caller| caller.method == AuthMethod::Jwt),
                record: recorded.then_some(trail.request),
                metadata: &metadata,
                denials: denials.unwrap_or_default(),
                said_version: trail.said_version.as_deref(),
                eras: eras.map_or(Eras::Unknown, Upstream::eras),
                method: trail.method,
                unseen: trail.unseen,
            },
        )
    }

    /// `Ok(false)` if the refusal was only counted, `Err` if the journal cannot write.
    async fn record_refusal(&self, refusal: &Refusal, principal: &Principal, trail: &Trail) -> Result<bool, ()> {
        self.parts.metrics.refused(refusal.reason, trail.started.elapsed());
        if refusal.reason == Reason::AuditUnavailable {
            return Ok(false);
        }
        let name = format!("{}|{}", principal.issuer, principal.subject);
        if !self.noise.records(&name, refusal.reason, trail.source, trail.at) {
            return Ok(false);
        }
        let decision = trail.refused(
            &self.parts.environment,
            refusal,
            self.parts.redaction.apply(trail.arguments.as_deref()),
        );
        self.parts
            .journal
            .append(Event::Decision(decision))
            .await
            .map(|_| true)
            .map_err(|sealed| {
                tracing::error!(request = %trail.request, %sealed, "a refusal cannot be recorded");
            })
    }

    /// Cuts open streams whose authorisation has ended; the app calls it once a second. It also keeps the grants confirmed
    /// while no calls do. If they cannot be confirmed, all streams are cut.
    pub async fn recheck_streams(&self) {
        if self.streams.is_empty() {
            return;
        }
        let fresh = self.parts.grants.fresh().await.is_ok();
        let cut = self.streams.recheck(&self.parts.grants, fresh, (self.parts.clock.now)());
        if cut > 0 {
            tracing::info!(streams = cut, "cut: their authorisation is gone");
        }
    }

    /// Records the counted refusals; the app calls it once a second. While the journal is sealed, the counts are kept.
    pub async fn record_noise(&self) {
        if matches!(self.parts.journal.state(), JournalState::Sealed(_)) {
            return;
        }
        for event in self.noise.drain(&self.parts.environment, (self.parts.clock.now)()) {
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
                self.has_room_for_a_stream(principal)?;
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

    fn has_room_for_a_stream(&self, principal: &Principal) -> Result<(), Refusal> {
        if self.streams.of(principal) < MOST_STREAMS {
            return Ok(());
        }
        Err(Refusal {
            retry_after: Some(Duration::from_secs(1)),
            ..Refusal::with_detail(Reason::TooManyInFlight, format!("{MOST_STREAMS} streams are open"))
        })
    }

    fn document(
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
        let mut response = reply::json(
            StatusCode::OK,
            self.parts.metadata.document(&self.parts.site, server.as_ref()),
        );
        response
            .headers_mut()
            .insert(http::header::ACCESS_CONTROL_ALLOW_ORIGIN, http::HeaderValue::from_static("*"));
        Ok(response)
    }
}

/// Refuses the other era if the server speaks only one. The status makes a dual-era client fall back to the other era.
fn refuse_other_era(call: &Call, upstream: &Upstream) -> Result<(), Refusal> {
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
fn shown(call: &Call, input: &DecisionInput<'_>) -> bool {
    let tool = call.tool().and_then(|tool| input.snapshot.tool(&call.server, tool.as_str()));
    tool.is_some_and(|tool| decide::could_permit(&call.server, tool, input))
}

/// The tools of a server that was never reached are unknown: reports the server as unreachable instead of the tool as
/// unknown.
fn never_seen(upstream: &Upstream, snapshot: &Snapshot, refusal: Refusal) -> Refusal {
    let never = upstream.eras() == Eras::Unknown && snapshot.tools(upstream.name()).next().is_none();
    if refusal.reason == Reason::UnknownTool && never {
        Refusal::with_detail(Reason::UpstreamUnreachable, "it has not told its tools yet")
    } else {
        refusal
    }
}

/// A call that is refused after all uses up nothing.
fn give_back(admission: Option<Admission>) {
    if let Some(admission) = admission {
        admission.refund();
    }
}

/// What later rechecks compare with the current grants.
fn ticket(generation: u64, caller: &Caller, basis: &Basis) -> GrantSnapshot {
    let member = caller.member.as_ref().map(|member| member.id.clone());
    GrantSnapshot {
        generation,
        member: member.expect("nobody is permitted who is not enrolled"),
        grant: basis.grant.as_ref().map(|grant| (grant.id.clone(), grant.version)),
        principal: caller.principal.clone(),
    }
}

fn unread(unread: Unread) -> Refusal {
    match unread {
        Unread::NoRoom => Refusal {
            retry_after: Some(Duration::from_secs(1)),
            ..Refusal::with_detail(Reason::TooManyInFlight, "too many messages are still on their way")
        },
        Unread::Problem(BodyProblem::TooLarge) => Reason::BodyTooLarge.into(),
        Unread::Problem(BodyProblem::TooSlow) => Reason::BodyTooSlow.into(),
        Unread::Problem(problem @ (BodyProblem::Broken | BodyProblem::Trailers)) => {
            Refusal::with_detail(Reason::BadFraming, problem.to_string())
        }
    }
}

impl From<ForwardError> for Refusal {
    fn from(error: ForwardError) -> Self {
        Refusal::with_detail(error.reason, error.detail)
    }
}
