//! The request context: what is known of a message so far. At any point of the path it holds enough to record and answer a
//! refusal.

use super::handles::AnswerClaim;
use crate::decide::Basis;
use crate::domain::{
    Decision, DecisionKind, Digest, EnvironmentName, Era, Member, MessageId, Method, Principal, RecordedPrincipal, Refusal,
    RequestId, ServerName, Timestamp,
};
use bytes::Bytes;
use http::StatusCode;
use std::borrow::Cow;
use std::fmt::{Display, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// The context of one request. Each step fills in more; the audit record and the reply are made from it.
pub struct RequestContext {
    pub request: RequestId,
    pub at: Timestamp,
    pub started: Instant,
    pub source: IpAddr,
    pub server: Option<ServerName>,
    pub principal: Option<Arc<Principal>>,
    pub member: Option<Arc<Member>>,
    pub id: Option<MessageId>,
    pub era: Era,
    pub method: Option<Method>,
    /// The method name as received, if no method was resolved; truncated and without control characters.
    pub raw_method: Option<String>,
    /// The requested protocol version as received; truncated and without control characters.
    pub raw_version: Option<String>,
    pub tool: Option<String>,
    /// The target other than a tool: a URI, a prompt, or the subjects of a subscription.
    pub target: Option<String>,
    pub arguments: Option<Bytes>,
    pub session: Option<String>,
    pub trace: Option<String>,
    pub basis: Option<Basis>,
    /// The claim on answering a server request; taken when the answer is forwarded.
    pub answer_claim: Option<AnswerClaim>,
    /// The called tool exists, but this caller's `tools/list` hides it.
    pub hidden_from_caller: bool,
    /// The message comes from the combined endpoint.
    pub via_combined: bool,
    /// The combined endpoint forwarded the message; each server's part has a context and records of its own.
    pub delegated: bool,
    /// The HTTP status of the server's answer; `None` for a stream.
    pub answered: Option<StatusCode>,
    /// The permit is in the journal already, so a later failure is an outcome and not a second decision.
    pub recorded: bool,
    /// Set if the refusal was recorded by a sub-call: `true` if in full, `false` if only counted.
    pub audited: Option<bool>,
}

impl RequestContext {
    pub fn new(request: RequestId, at: Timestamp, source: IpAddr) -> Self {
        Self {
            request,
            at,
            started: Instant::now(),
            source,
            server: None,
            principal: None,
            member: None,
            id: None,
            era: Era::Legacy,
            method: None,
            raw_method: None,
            raw_version: None,
            tool: None,
            target: None,
            arguments: None,
            session: None,
            trace: None,
            basis: None,
            answer_claim: None,
            hidden_from_caller: false,
            via_combined: false,
            delegated: false,
            answered: None,
            recorded: false,
            audited: None,
        }
    }

    /// The method's name for logs and records.
    pub fn method(&self) -> &str {
        match (&self.method, &self.raw_method) {
            (Some(method), _) => method.as_str(),
            (None, Some(said)) => said,
            (None, None) => "unreadable",
        }
    }

    fn recorded_method(&self) -> Cow<'static, str> {
        match self.method {
            Some(method) => method.as_str().into(),
            None => self.method().to_owned().into(),
        }
    }

    /// The record of a permit. `Journal::open` fills in the policies, scopes, grant and digests from the `Permit`.
    pub fn permitted(&self, environment: &EnvironmentName, arguments: Option<String>) -> Box<Decision> {
        self.decision(environment, DecisionKind::Allow, "permitted", arguments)
    }

    /// The record of a refusal.
    pub fn refused(&self, environment: &EnvironmentName, refusal: &Refusal, arguments: Option<String>) -> Box<Decision> {
        let mut decision = self.decision(environment, DecisionKind::Deny, refusal.reason.code(), arguments);
        decision.detail = refusal.detail.clone();
        decision.errors = refusal.errors.clone();
        decision.scopes = refusal.scopes.clone();
        decision.policies = refusal.policies.clone();
        if let Some(basis) = &self.basis {
            decision.policy_set = basis.policy_set;
            decision.catalogue = basis.catalogue;
            decision.grant = basis.grant.clone();
        }
        decision
    }

    fn decision(
        &self,
        environment: &EnvironmentName,
        decision: DecisionKind,
        reason: &'static str,
        args: Option<String>,
    ) -> Box<Decision> {
        Box::new(Decision {
            at: self.at,
            environment: environment.clone(),
            request: self.request,
            principal: self.principal.as_deref().map(|principal| self.recorded_principal(principal)),
            server: self.server.clone(),
            method: self.recorded_method(),
            tool: self.tool.clone(),
            target: self.target.clone(),
            decision,
            reason: reason.into(),
            detail: None,
            policies: Vec::new(),
            errors: Vec::new(),
            scopes: Vec::new(),
            args_digest: self.arguments.as_deref().map(Digest::of),
            args,
            policy_set: Digest::ZERO,
            catalogue: Digest::ZERO,
            grant: None,
            source_ip: to_string_once(&self.source),
            session: self.session.clone(),
            trace: self.trace.clone(),
            era: self.method.map(|_| self.era),
            took_us: u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX),
        })
    }

    fn recorded_principal(&self, principal: &Principal) -> RecordedPrincipal {
        RecordedPrincipal {
            issuer: principal.issuer.clone(),
            subject: principal.subject.clone(),
            user: self.member.as_ref().map(|member| member.id.clone()),
            method: principal.method,
            fingerprint: to_string_once(&principal.fingerprint),
            client: principal.client.clone(),
            key: principal.key.clone(),
        }
    }
}

/// Formats into one allocation, because this runs for every call.
fn to_string_once(value: &impl Display) -> String {
    let mut text = String::with_capacity(40);
    _ = write!(text, "{value}");
    text
}
