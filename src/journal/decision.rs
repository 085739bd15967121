//! The record of a decision, made of what was decided and of the request that it was about.

use crate::decide::Basis;
use crate::domain::{
    Call, Decision, DecisionKind, Digest, Era, RecordedRequest, Refusal, RequestId, Scope, ServerName, Target, ToolName,
};
use std::borrow::Cow;

/// A message that was refused, as far as it was read.
pub struct RefusedMessage<'a> {
    pub request: RequestId,
    pub server: Option<ServerName>,
    pub method: Cow<'static, str>,
    pub tool: Option<String>,
    pub task_tools: Vec<ToolName>,
    pub era: Option<Era>,
    pub refusal: &'a Refusal,
    /// What `decide` said, where it is not the refusal's reason.
    pub decided: Option<&'static str>,
    /// `None`: nothing was decided.
    pub basis: Option<&'a Basis>,
}

/// The record of a permit.
pub fn permitted(call: &Call, basis: Basis, request: RecordedRequest) -> Box<Decision> {
    Box::new(Decision {
        server: Some(call.server.clone()),
        method: call.method.as_str().into(),
        tool: call.tool().map(ToString::to_string),
        class: basis.class,
        task_tools: match &call.target {
            Target::Subscription(_, tools) => tools.clone(),
            _ => Vec::new(),
        },
        decision: DecisionKind::Allow,
        reason: "permitted".into(),
        policies: basis.policies,
        scopes_held: basis.scopes,
        policy_set: basis.policy_set,
        catalogue: basis.catalogue,
        known: request
            .judged
            .as_ref()
            .map(|judged| judged.known.clone())
            .filter(|_| basis.grant.is_none()),
        grant: basis.grant,
        era: Some(call.era),
        ..of_request(call.request, request)
    })
}

impl RefusedMessage<'_> {
    /// The record of the refusal.
    pub fn record(self, request: RecordedRequest) -> Box<Decision> {
        let Self { refusal, basis, .. } = self;
        let grant = basis.and_then(|basis| basis.grant.clone());
        Box::new(Decision {
            server: self.server,
            method: self.method,
            tool: self.tool,
            class: basis.and_then(|basis| basis.class),
            task_tools: self.task_tools,
            decision: DecisionKind::Deny,
            reason: refusal.reason.code().into(),
            decided: self.decided.map(Cow::Borrowed),
            detail: refusal.detail.clone(),
            policies: refusal.policies.clone(),
            errors: refusal.errors.clone(),
            scopes_held: basis.map_or_else(Vec::<Scope>::new, |basis| basis.scopes.clone()),
            scopes_needed: refusal.scopes.clone(),
            policy_set: basis.map_or(Digest::ZERO, |basis| basis.policy_set),
            catalogue: basis.map_or(Digest::ZERO, |basis| basis.catalogue),
            known: request
                .judged
                .as_ref()
                .map(|judged| judged.known.clone())
                .filter(|_| grant.is_none()),
            grant,
            era: self.era,
            ..of_request(self.request, request)
        })
    }
}

/// What does not depend on the verdict.
fn of_request(id: RequestId, request: RecordedRequest) -> Decision {
    let RecordedRequest {
        at,
        environment,
        principal,
        target,
        inputs,
        source_ip,
        session,
        trace,
        took_us,
        judged,
    } = request;
    let (now, judged_session) = judged.map_or((None, None), |judged| (judged.now, judged.session));
    Decision {
        principal,
        target,
        inputs: inputs.kept,
        inputs_key: inputs.key,
        args_digest: inputs.digest,
        args: inputs.text,
        now,
        source_ip,
        session,
        judged_session,
        trace,
        took_us,
        ..Decision::new(at, environment, id)
    }
}
