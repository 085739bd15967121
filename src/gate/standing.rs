//! Gathers what a decision depends on besides the call: the caller's member and grants, how fresh they are, and the policy
//! snapshot. Does not decide.

use super::Gate;
use super::caller::{Caller, Proved};
use super::trail::Trail;
use crate::decide::{self, DecisionInput, Enrolment, GrantFreshness, Refused, Snapshot, Verdict};
use crate::domain::{MemberStatus, Refusal};
use std::sync::Arc;

/// The authorisation context of one message.
pub struct Standing {
    pub caller: Caller,
    pub grant_freshness: GrantFreshness,
    pub generation: u64,
    pub snapshot: Arc<Snapshot>,
}

impl Standing {
    /// The input for `decide`.
    pub fn facts<'a>(&'a self, trail: &'a Trail) -> DecisionInput<'a> {
        DecisionInput {
            now: trail.at,
            source_ip: trail.source,
            principal: &self.caller.principal,
            cedar_principal: &self.caller.cedar_principal,
            enrolment: enrolment(&self.caller),
            grant_freshness: self.grant_freshness,
            snapshot: &self.snapshot,
            session: trail.session.as_deref(),
        }
    }
}

impl Gate {
    /// Loads the member and the policy snapshot. Takes the grants view first, so that the decision rests on data at least as
    /// new as that view.
    pub(super) async fn standing(&self, proved: Proved, trail: &mut Trail) -> Result<Standing, Refusal> {
        let (grant_freshness, generation) = self.view().await;
        let caller = self.parts.callers.recognise(proved, generation, trail.at).await?;
        trail.member.clone_from(&caller.member);
        Ok(Standing {
            caller,
            grant_freshness,
            generation,
            snapshot: self.parts.snapshot.load_full(),
        })
    }

    /// If the refusal lies in the grants, confirms them and decides once more, so that a grant added by another process
    /// takes effect at once.
    pub(super) async fn judge_again(
        &self,
        refused: Refused,
        standing: &mut Standing,
        trail: &mut Trail,
    ) -> Result<Verdict, Refusal> {
        let moved_on = match &standing.caller.member {
            Some(member) if refused.refusal.reason.is_grant_related() => {
                self.parts.grants.refresh_and_compare(&member.id, standing.generation).await
            }
            _ => false,
        };
        if !moved_on {
            return Ok(Verdict::Refuse(Box::new(refused)));
        }
        *standing = self.standing(standing.caller.principal.clone().into(), trail).await?;
        Ok(decide::decide(refused.call, &standing.facts(trail)))
    }

    /// The age of the grants. Waits for a confirmation only if they are older than `max_staleness`.
    async fn view(&self) -> (GrantFreshness, u64) {
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

fn enrolment(caller: &Caller) -> Enrolment<'_> {
    match caller.member.as_deref() {
        None => Enrolment::Absent,
        Some(member) if member.status == MemberStatus::Disabled => Enrolment::Disabled,
        Some(member) => Enrolment::Active(member),
    }
}

fn millis(age: std::time::Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}
