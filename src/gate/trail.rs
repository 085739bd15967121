//! What is known of a message so far: enough to record and answer a refusal at any point of the path.

use super::talk::Claim;
use crate::decide::Basis;
use crate::domain::{
    Decided, Decision, Digest, EnvironmentName, Era, Member, MessageId, Method, Principal, Refusal, RequestId, ServerName,
    Timestamp, Who,
};
use bytes::Bytes;
use http::StatusCode;
use std::borrow::Cow;
use std::fmt::{Display, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// Grows along the path; read by the record and by the reply.
pub struct Trail {
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
    /// What the message called its method where that is none that is known, as far as it is fit for a record.
    pub said_method: Option<String>,
    /// The protocol version that the message asks for, likewise.
    pub said_version: Option<String>,
    pub tool: Option<String>,
    /// What else is acted upon: a URI, a prompt, what a stream is asked to tell of.
    pub target: Option<String>,
    pub arguments: Option<Bytes>,
    pub session: Option<String>,
    pub trace: Option<String>,
    pub basis: Option<Basis>,
    /// The caller's answer to what the server asked, until it is sent.
    pub claim: Option<Claim>,
    /// The tool is there, but this caller is not shown it.
    pub unseen: bool,
    /// It came by way of the combined endpoint.
    pub through: bool,
    /// Servers were asked on its behalf, each with a trail of its own.
    pub passed_on: bool,
    /// The status that the server answered with, unless it streams.
    pub answered: Option<StatusCode>,
    /// The permit is on record already: what goes wrong now is an outcome, not a decision.
    pub recorded: bool,
    /// A refusal that was put down already, and whether in full.
    pub put_down: Option<bool>,
}

impl Trail {
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
            said_method: None,
            said_version: None,
            tool: None,
            target: None,
            arguments: None,
            session: None,
            trace: None,
            basis: None,
            claim: None,
            unseen: false,
            through: false,
            passed_on: false,
            answered: None,
            recorded: false,
            put_down: None,
        }
    }

    pub fn method(&self) -> &str {
        match (&self.method, &self.said_method) {
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

    /// What was permitted and why is for the journal to fill in: it has the permit.
    pub fn permitted(&self, environment: &EnvironmentName, arguments: Option<String>) -> Box<Decision> {
        self.decision(environment, Decided::Allow, "permitted", arguments)
    }

    pub fn refused(&self, environment: &EnvironmentName, refusal: &Refusal, arguments: Option<String>) -> Box<Decision> {
        let mut decision = self.decision(environment, Decided::Deny, refusal.reason.code(), arguments);
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
        decision: Decided,
        reason: &'static str,
        args: Option<String>,
    ) -> Box<Decision> {
        Box::new(Decision {
            at: self.at,
            environment: environment.clone(),
            request: self.request,
            who: self.principal.as_deref().map(|principal| self.who(principal)),
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
            source_ip: written(&self.source),
            session: self.session.clone(),
            trace: self.trace.clone(),
            era: self.method.map(|_| self.era),
            took_us: u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX),
        })
    }

    fn who(&self, principal: &Principal) -> Who {
        Who {
            issuer: principal.issuer.clone(),
            subject: principal.subject.clone(),
            user: self.member.as_ref().map(|member| member.id.clone()),
            method: principal.method,
            fingerprint: written(&principal.fingerprint),
            client: principal.client.clone(),
            key: principal.key.clone(),
        }
    }
}

/// As text, in one piece of memory: every call is recorded.
fn written(value: &impl Display) -> String {
    let mut text = String::with_capacity(40);
    _ = write!(text, "{value}");
    text
}
