//! The fifth stage: writes the decision to the journal and waits until it is on disk. Refusals are recorded here too, or
//! counted if there are too many.

use super::Gate;
use super::authn::CallerProfile;
use super::authz::AuthorizedCall;
use super::context::{MessageSummary, RefusalAudit, RefusedRequest, RequestContext};
use super::handles::AnswerClaim;
use super::param_headers::HeaderField;
use super::screen::Screen;
use crate::domain::{Decision, Event, JudgedInput, Principal, Reason, RecordedPrincipal, RecordedRequest, ServerName};
use crate::grants::GrantSnapshot;
use crate::journal::{Cleared, JournalState, RefusedMessage};
use crate::limits::Admission;
use crate::mcp::Namespace;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt::{Display, Write};
use std::sync::Arc;

/// A call whose decision is on disk.
pub(super) struct RecordedCall {
    pub context: Box<RequestContext>,
    pub cleared: Cleared,
    pub grant_snapshot: GrantSnapshot,
    /// How the answer is rewritten for this caller.
    pub screen: Screen,
    pub claim: Option<AnswerClaim>,
    pub params: Vec<HeaderField>,
    pub admission: Option<Admission>,
}

impl Gate {
    /// Records the permit. If that fails, nothing is sent, and the call uses up nothing.
    pub(super) async fn record(
        &self,
        authorized: AuthorizedCall,
        namespace: Option<Namespace>,
    ) -> Result<RecordedCall, Box<RefusedRequest>> {
        let AuthorizedCall {
            context, permit, authz, ..
        } = authorized;
        let Some(grant_snapshot) = authz.grant_snapshot(permit.basis().grant.as_ref()) else {
            return Err(context.refuse(Reason::NotEnrolled));
        };
        let judged = authz.judged(&context);
        let request = self.recorded_request(&context, Some(&authz.caller), Some(judged), permit.arguments());
        let sources = self.authz_sources.clone();
        let screen = Screen::new(permit.call(), authorized.handles, authz, sources, namespace);
        match self.parts.journal.open(permit, request).await {
            Ok(cleared) => {
                self.parts.metrics.permitted(context.started.elapsed());
                let cleared = cleared.in_exchange(context.exchange.clone());
                Ok(RecordedCall {
                    context,
                    cleared,
                    grant_snapshot,
                    screen,
                    claim: authorized.claim,
                    params: authorized.params,
                    admission: authorized.admission,
                })
            }
            Err((_, sealed)) => {
                refund(authorized.admission);
                tracing::error!(request = %context.request, %sealed, "refused: the decision cannot be recorded");
                Err(context.refuse(Reason::AuditUnavailable))
            }
        }
    }

    fn recorded_request(
        &self,
        context: &RequestContext,
        caller: Option<&CallerProfile>,
        judged: Option<JudgedInput>,
        parsed: Option<&Map<String, Value>>,
    ) -> RecordedRequest {
        let known = || {
            context
                .principal
                .as_deref()
                .map(|principal| Arc::new(RecordedPrincipal::of(principal, None)))
        };
        let keys = caller.and_then(|caller| caller.person_keys.as_deref());
        let sent = context.message.arguments.as_deref();
        RecordedRequest {
            at: context.at,
            environment: self.parts.environment.clone(),
            principal: caller.map(|caller| caller.recorded.clone()).or_else(known),
            target: context.message.target.clone(),
            inputs: self.parts.input_keeper.keep(context.request, keys, parsed, sent),
            source_ip: to_string_once(&context.source),
            session: context.message.session.clone(),
            trace: context.message.trace.clone(),
            took_us: u64::try_from(context.started.elapsed().as_micros()).unwrap_or(u64::MAX),
            judged,
        }
    }

    /// Records the refusal of an authenticated caller; counts that of an unauthenticated one. `Ok(true)` if there is a
    /// record to quote, `Err` if the journal cannot write.
    pub async fn audit_refusal(&self, refused: &RefusedRequest) -> Result<bool, ()> {
        let RefusedRequest { refusal, context, .. } = refused;
        let recorded = match (refused.audit, &context.principal) {
            (RefusalAudit::PermitRecorded, _) => Ok(true),
            (RefusalAudit::PartRecorded(recorded), _) => return Ok(recorded),
            (RefusalAudit::Pending, None) => {
                self.refusals.count(refusal.reason, context.source);
                self.parts.metrics.unauthenticated(refusal.reason);
                Ok(false)
            }
            (RefusalAudit::Pending, Some(principal)) => self.record_refusal(refused, principal).await,
        };
        let reason = match recorded {
            Ok(_) => refusal.reason,
            Err(()) => Reason::AuditUnavailable,
        };
        tracing::info!(
            request = %context.request, reason = reason.code(), method = context.message.method_name(),
            server = context.server.as_ref().map_or("", ServerName::as_str), "refused"
        );
        recorded
    }

    /// `Ok(false)` if the refusal was only counted, `Err` if the journal cannot write.
    async fn record_refusal(&self, refused: &RefusedRequest, principal: &Principal) -> Result<bool, ()> {
        let RefusedRequest { refusal, context, .. } = refused;
        self.parts.metrics.refused(refusal.reason, context.started.elapsed());
        if refusal.reason == Reason::AuditUnavailable {
            return Ok(false);
        }
        let member = refused.caller.as_ref().and_then(|caller| caller.member.as_deref());
        let reason = refusal.reason;
        if !self
            .refusals
            .may_record_in_full(principal, member, reason, context.source, context.at)
        {
            return Ok(false);
        }
        let decision = Event::Decision(self.denied(refused));
        self.parts.journal.append(decision).await.map(|_| true).map_err(|sealed| {
            tracing::error!(request = %context.request, %sealed, "a refusal cannot be recorded");
        })
    }

    /// The record of a refusal.
    fn denied(&self, refused: &RefusedRequest) -> Box<Decision> {
        let RefusedRequest {
            refusal, context, basis, ..
        } = refused;
        let MessageSummary {
            tool,
            task_tools,
            method,
            era,
            ..
        } = &context.message;
        let (caller, judged) = (refused.caller.as_ref(), refused.judged.clone());
        let message = RefusedMessage {
            request: context.request,
            server: context.server.clone(),
            method: recorded_method(&context.message),
            tool: tool.clone(),
            task_tools: task_tools.clone(),
            era: method.map(|_| *era),
            refusal,
            decided: refused.decided,
            basis: basis.as_ref(),
        };
        message.record(self.recorded_request(context, caller, judged, refused.arguments.as_ref()))
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
}

/// A call that is refused after all uses up nothing.
pub(super) fn refund(admission: Option<Admission>) {
    if let Some(admission) = admission {
        admission.refund();
    }
}

fn recorded_method(message: &MessageSummary) -> Cow<'static, str> {
    match message.method {
        Some(method) => method.as_str().into(),
        None => message.method_name().to_owned().into(),
    }
}

/// Formats into one allocation, because this runs for every call.
fn to_string_once(value: &impl Display) -> String {
    let mut text = String::with_capacity(40);
    _ = write!(text, "{value}");
    text
}
