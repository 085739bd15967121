//! The fourth stage: gathers what the decision depends on besides the call (the caller's member and grants, how fresh they
//! are, the policies), asks `decide`, and applies the limits. Only `decide` judges the call.

use super::Gate;
use super::authn::{Authenticated, CallerProfile};
use super::call::ParsedCall;
use super::context::{RefusedRequest, RequestContext};
use super::handles::{AnswerClaim, OutboundHandles};
use super::param_headers::{HeaderField, checked_headers};
use crate::config::Denials;
use crate::decide::{
    self, CedarPrincipal, CompiledTool, DecisionInput, Enrolment, GrantFreshness, Permit, Refused, Snapshot, Verdict,
};
use crate::domain::{
    Call, EnvironmentName, Era, GrantUsed, JudgedInput, MemberStatus, Method, Principal, Reason, Refusal, Timestamp,
    did_you_mean, nearest,
};
use crate::grants::{GrantSnapshot, Grants};
use crate::limits::{Admission, PrincipalKey};
use crate::upstream::{Eras, Upstream};
use arc_swap::ArcSwap;
use http::HeaderMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Who calls and what they may do, as loaded at one moment. Cheap to clone.
#[derive(Clone)]
pub struct AuthzContext {
    pub caller: CallerProfile,
    pub snapshot: Arc<Snapshot>,
    pub generation: u64,
    grant_freshness: GrantFreshness,
    at: Timestamp,
    source: IpAddr,
    session: Option<String>,
}

/// The sender of a message: authenticated only, or with what they may do loaded already.
pub enum CallerAuthz {
    Authenticated(Authenticated),
    Loaded(AuthzContext),
}

/// A permitted call that was counted against the limits.
pub(super) struct AuthorizedCall {
    pub context: Box<RequestContext>,
    pub permit: Permit,
    pub authz: AuthzContext,
    pub handles: OutboundHandles,
    pub claim: Option<AnswerClaim>,
    /// `Mcp-Param-*` headers that were checked against the arguments.
    pub params: Vec<HeaderField>,
    pub admission: Option<Admission>,
}

/// Who receives an answer.
pub(super) struct CallerView {
    caller: CallerProfile,
    source: IpAddr,
    session: Option<String>,
}

/// The sources of current policies and grants.
pub(super) struct AuthzSources {
    pub environment: EnvironmentName,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub grants: Arc<Grants>,
    pub now: fn() -> Timestamp,
}

impl AuthzContext {
    /// The input for `decide`.
    pub fn decision_input(&self) -> DecisionInput<'_> {
        DecisionInput {
            now: self.at,
            source_ip: self.source,
            principal: &self.caller.principal,
            cedar_principal: &self.caller.cedar_principal,
            enrolment: enrolment(&self.caller),
            grant_freshness: self.grant_freshness,
            snapshot: &self.snapshot,
            session: self.session.as_deref(),
        }
    }

    /// What the record of this message keeps of the input.
    pub(super) fn judged(&self, context: &RequestContext) -> JudgedInput {
        self.decision_input().judged(context.at, context.message.session.as_deref())
    }

    /// Refuses the message with everything that it was decided by.
    fn refuse(&self, context: Box<RequestContext>, refusal: Refusal) -> Box<RefusedRequest> {
        let judged = self.judged(&context);
        let mut refused = context.refuse(refusal);
        refused.caller = Some(self.caller.clone());
        refused.judged = Some(judged);
        refused
    }

    /// What is needed to look again later. It holds no snapshot, which would outlive many reloads in a stream.
    pub(super) fn into_view(self) -> CallerView {
        CallerView {
            caller: self.caller,
            source: self.source,
            session: self.session,
        }
    }

    /// What later rechecks compare with the current grants; `None` for a caller who is not enrolled.
    pub fn grant_snapshot(&self, grant: Option<&GrantUsed>) -> Option<GrantSnapshot> {
        Some(GrantSnapshot {
            generation: self.generation,
            member: self.caller.member.as_ref()?.id.clone(),
            grant: grant.map(|grant| (grant.id.clone(), grant.version)),
            principal: self.caller.principal.clone(),
        })
    }
}

impl CallerView {
    /// What this caller may do now. The grants are assumed to be fresh: a stream whose grants cannot be confirmed is cut by
    /// `Gate::recheck_streams` within a second.
    pub(super) fn now(&self, sources: &AuthzSources) -> AuthzContext {
        let known = self.caller.member.as_ref();
        let member = known.and_then(|member| sources.grants.by_id(&member.id));
        let principal = self.caller.principal.clone();
        let cedar_principal = match (&member, known) {
            (Some(now), Some(then)) if !Arc::ptr_eq(now, then) => {
                CedarPrincipal::new(&principal, Some(now), &sources.environment)
            }
            _ => self.caller.cedar_principal.clone(),
        };
        AuthzContext {
            caller: CallerProfile {
                principal,
                member,
                cedar_principal,
                // Nothing is recorded of what this caller is shown.
                recorded: self.caller.recorded.clone(),
                person_keys: None,
            },
            snapshot: sources.snapshot.load_full(),
            generation: 0,
            grant_freshness: GrantFreshness {
                seq: 0,
                age_ms: 0,
                stale: None,
            },
            at: (sources.now)(),
            source: self.source,
            session: self.session.clone(),
        }
    }
}

impl Gate {
    /// Loads the member and the policy snapshot. Takes the grants view first, so that the decision rests on data at least as
    /// new as that view.
    pub async fn load_authz(&self, authenticated: Authenticated, context: &RequestContext) -> Result<AuthzContext, Refusal> {
        let (grant_freshness, generation) = self.fresh_grants().await;
        let caller = self
            .parts
            .authenticator
            .load_profile(authenticated, generation, context.at)
            .await?;
        Ok(AuthzContext {
            caller,
            snapshot: self.parts.snapshot.load_full(),
            generation,
            grant_freshness,
            at: context.at,
            source: context.source,
            session: context.message.session.clone(),
        })
    }

    /// Decides the call, checks its `Mcp-Param-*` headers and counts it against the limits. `limits_key` is `None` for a
    /// message that was counted already.
    pub(super) async fn authorize(
        &self,
        parsed: ParsedCall,
        caller: CallerAuthz,
        headers: &HeaderMap,
        limits_key: Option<PrincipalKey>,
    ) -> Result<AuthorizedCall, Box<RefusedRequest>> {
        let ParsedCall {
            context,
            call,
            handles,
            claim,
        } = parsed;
        let mut authz = match self.load_caller(caller, &context).await {
            Ok(authz) => authz,
            Err(refusal) => return Err(context.refuse(refusal)),
        };
        let permit = match self.permit(call, &mut authz, &context).await {
            Ok(permit) => permit,
            Err(unpermitted) => return Err(unpermitted.refuse(context, &authz)),
        };
        let allowed = self.check_server_enabled(&permit).and_then(|()| {
            let params = checked_headers(&permit, headers, &authz.snapshot)?;
            Ok((params, self.admit(&permit, &authz.caller.principal, limits_key)?))
        });
        match allowed {
            Ok((params, admission)) => Ok(AuthorizedCall {
                context,
                permit,
                authz,
                handles,
                claim,
                params,
                admission,
            }),
            Err(refusal) => {
                let mut refused = authz.refuse(context, refusal);
                refused.decided = Some("permitted");
                refused.basis = Some(permit.basis().clone());
                refused.arguments = permit.arguments().cloned();
                Err(refused)
            }
        }
    }

    async fn load_caller(&self, caller: CallerAuthz, context: &RequestContext) -> Result<AuthzContext, Refusal> {
        match caller {
            CallerAuthz::Authenticated(authenticated) => self.load_authz(authenticated, context).await,
            CallerAuthz::Loaded(authz) => Ok(authz),
        }
    }

    /// Asks `decide`.
    async fn permit(&self, call: Call, authz: &mut AuthzContext, context: &RequestContext) -> Result<Permit, Unpermitted> {
        let upstream = self.parts.upstreams.get(&call.server).ok_or(Reason::UnknownServer)?;
        check_era(&call, upstream)?;
        let verdict = match decide::decide(call, &authz.decision_input()) {
            // Rarely taken, and boxed because its future is too large to be part of every call's future.
            Verdict::Refuse(refused) => Box::pin(self.redecide_with_fresh_grants(refused, authz, context)).await?,
            permitted => permitted,
        };
        match verdict {
            Verdict::Permit(permit) => Ok(permit),
            Verdict::Refuse(mut refused) => {
                let invalid = refused.refusal.reason == Reason::InvalidArguments;
                let hidden = invalid && !is_listed(&refused.call, &authz.decision_input());
                let said = refused.refusal.reason;
                refused.refusal = unreachable_if_never_listed(upstream, &authz.snapshot, refused.refusal);
                // A search among all names would show by its time that the tool is not there.
                let may_suggest = !self.denies_as_unknown(&refused.call, &authz.caller.principal);
                if refused.refusal.reason == Reason::UnknownTool && may_suggest {
                    let meant = listed_tool_like(&refused.call, &authz.decision_input());
                    refused.refusal.remedy = meant.map(|tool| did_you_mean(&context.client_name(tool)));
                }
                Err(Unpermitted::Decided(refused, said, hidden))
            }
        }
    }

    fn denies_as_unknown(&self, call: &Call, principal: &Principal) -> bool {
        let style = self.parts.refusal_styles.get(&call.server);
        style.is_some_and(|style| style.denials(Some(principal)) == Denials::UnknownTool)
    }

    /// If the refusal lies in the grants, confirms them and decides once more, so that a grant added by another process
    /// takes effect at once.
    async fn redecide_with_fresh_grants(
        &self,
        refused: Box<Refused>,
        authz: &mut AuthzContext,
        context: &RequestContext,
    ) -> Result<Verdict, Refusal> {
        let moved_on = match &authz.caller.member {
            Some(member) if refused.refusal.reason.is_grant_related() => {
                self.parts.grants.refresh_and_compare(&member.id, authz.generation).await
            }
            _ => false,
        };
        if !moved_on {
            return Ok(Verdict::Refuse(refused));
        }
        *authz = self.load_authz(authz.caller.principal.clone().into(), context).await?;
        Ok(decide::decide(refused.call, &authz.decision_input()))
    }

    /// The age of the grants. Waits for a confirmation only if they are older than `max_staleness`.
    async fn fresh_grants(&self) -> (GrantFreshness, u64) {
        let (view, stale) = match self.parts.grants.fresh().await {
            Ok(view) => (view, None),
            Err(stale) => {
                let why = stale.why.as_deref().unwrap_or_default();
                tracing::warn!(%stale, why, "the knowledge of grants is too old to decide upon");
                (self.parts.grants.view(), Some(stale.reason))
            }
        };
        (
            GrantFreshness {
                seq: view.seq,
                age_ms: millis(view.age),
                stale,
            },
            view.generation,
        )
    }

    /// A server that was disabled since the policies were compiled.
    fn check_server_enabled(&self, permit: &Permit) -> Result<(), Refusal> {
        if self.parts.grants.has_disabled(&permit.call().server) {
            return Err(Reason::ServerDisabled.into());
        }
        Ok(())
    }
}

/// Why a call got no permit: a check before the decision, or the decision itself.
enum Unpermitted {
    Checked(Refusal),
    /// With the reason that `decide` gave. The flag tells whether this caller's `tools/list` hides the called tool.
    Decided(Box<Refused>, Reason, bool),
}

impl Unpermitted {
    fn refuse(self, context: Box<RequestContext>, authz: &AuthzContext) -> Box<RefusedRequest> {
        match self {
            Unpermitted::Checked(refusal) => {
                let mut refused = authz.refuse(context, refusal);
                refused.decided = Some("not_asked");
                refused
            }
            Unpermitted::Decided(decided, said, hidden_from_caller) => {
                let mut refused = authz.refuse(context, decided.refusal);
                refused.decided = Some(said.code()).filter(|_| said != refused.refusal.reason);
                refused.basis = Some(decided.basis);
                refused.arguments = decided.arguments;
                refused.hidden_from_caller = hidden_from_caller;
                refused
            }
        }
    }
}

impl<T: Into<Refusal>> From<T> for Unpermitted {
    fn from(refusal: T) -> Self {
        Unpermitted::Checked(refusal.into())
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
    tool.is_some_and(|tool| is_offered(tool, call.era) && decide::could_permit(&call.server, tool, input))
}

/// Whether the era has such tools: one with an invalid `x-mcp-header` does not exist for modern clients.
pub fn is_offered(tool: &CompiledTool, era: Era) -> bool {
    era == Era::Legacy || tool.param_headers().is_ok()
}

/// The tool in this caller's `tools/list` that an unknown one probably means.
fn listed_tool_like<'a>(call: &'a Call, input: &DecisionInput<'a>) -> Option<&'a str> {
    let tools = || input.snapshot.tools(&call.server);
    let near = nearest(call.tool()?.as_str(), tools().map(|tool| tool.entry().name.as_str()))?;
    let tool = input.snapshot.tool(&call.server, near)?;
    (is_offered(tool, call.era) && decide::could_permit(&call.server, tool, input)).then_some(near)
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

fn enrolment(caller: &CallerProfile) -> Enrolment<'_> {
    match caller.member.as_deref() {
        None => Enrolment::Absent,
        Some(member) if member.status == MemberStatus::Disabled => Enrolment::Disabled,
        Some(member) => Enrolment::Active(member),
    }
}

fn millis(age: std::time::Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}
