//! Gathers what a decision depends on besides the call: the caller's member and grants, how fresh they are, and the policy
//! snapshot. Does not decide.

use super::Gate;
use super::authn::{Authenticated, CallerProfile};
use super::context::RequestContext;
use crate::decide::{self, DecisionInput, Enrolment, GrantFreshness, Refused, Snapshot, Verdict};
use crate::domain::{MemberStatus, Refusal};
use std::sync::Arc;

/// The authorisation context of one message.
pub struct AuthzContext {
    pub caller: CallerProfile,
    pub grant_freshness: GrantFreshness,
    pub generation: u64,
    pub snapshot: Arc<Snapshot>,
}

impl AuthzContext {
    /// The input for `decide`.
    pub fn decision_input<'a>(&'a self, context: &'a RequestContext) -> DecisionInput<'a> {
        DecisionInput {
            now: context.at,
            source_ip: context.source,
            principal: &self.caller.principal,
            cedar_principal: &self.caller.cedar_principal,
            enrolment: enrolment(&self.caller),
            grant_freshness: self.grant_freshness,
            snapshot: &self.snapshot,
            session: context.session.as_deref(),
        }
    }
}

impl Gate {
    /// Loads the member and the policy snapshot. Takes the grants view first, so that the decision rests on data at least as
    /// new as that view.
    pub(super) async fn load_authz(
        &self,
        authenticated: Authenticated,
        context: &mut RequestContext,
    ) -> Result<AuthzContext, Refusal> {
        let (grant_freshness, generation) = self.fresh_grants().await;
        let caller = self
            .parts
            .authenticator
            .load_profile(authenticated, generation, context.at)
            .await?;
        context.member.clone_from(&caller.member);
        Ok(AuthzContext {
            caller,
            grant_freshness,
            generation,
            snapshot: self.parts.snapshot.load_full(),
        })
    }

    /// If the refusal lies in the grants, confirms them and decides once more, so that a grant added by another process
    /// takes effect at once.
    pub(super) async fn redecide_with_fresh_grants(
        &self,
        refused: Refused,
        authz: &mut AuthzContext,
        context: &mut RequestContext,
    ) -> Result<Verdict, Refusal> {
        let moved_on = match &authz.caller.member {
            Some(member) if refused.refusal.reason.is_grant_related() => {
                self.parts.grants.refresh_and_compare(&member.id, authz.generation).await
            }
            _ => false,
        };
        if !moved_on {
            return Ok(Verdict::Refuse(Box::new(refused)));
        }
        *authz = self.load_authz(authz.caller.principal.clone().into(), context).await?;
        Ok(decide::decide(refused.call, &authz.decision_input(context)))
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
