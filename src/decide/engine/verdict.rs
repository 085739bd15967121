//! The result of a decision: a permit that nothing else can make, or a refusal. Each carries the facts it rests on.

use super::input::DecisionInput;
use super::preconditions::ActiveGrant;
use super::snapshot::Snapshot;
use crate::domain::{Call, Digest, Grant, GrantUsed, PolicyId, Reason, Refusal, Scope, ToolClass};
use serde_json::{Map, Value};

/// The verdict on one call.
#[derive(Debug)]
pub enum Verdict {
    Permit(Permit),
    Refuse(Box<Refused>),
}

/// A call that may be recorded and then forwarded. Only `decide` makes one.
#[derive(Debug)]
pub struct Permit {
    call: Call,
    arguments: Option<Map<String, Value>>,
    basis: Basis,
}

/// A refused call, with the reason.
#[derive(Debug)]
pub struct Refused {
    pub call: Call,
    pub arguments: Option<Map<String, Value>>,
    pub refusal: Refusal,
    pub basis: Basis,
}

/// What a verdict rests on; the audit record is made of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Basis {
    /// The policies that decided, in the order of their files.
    pub policies: Vec<PolicyId>,
    /// The `@mode("shadow")` policies each of which would alone have reversed this verdict.
    pub shadow: Vec<PolicyId>,
    /// The caller's effective scopes: the grant's, narrowed by those of the credential.
    pub scopes: Vec<Scope>,
    /// The grant that counts, with the age of the cached grants. That of a refusal need not be usable.
    pub grant: Option<GrantUsed>,
    /// The class of the called tool.
    pub class: Option<ToolClass>,
    /// The policies and the catalogue that were in force.
    pub policy_set: Digest,
    pub catalogue: Digest,
}

impl Permit {
    pub(in crate::decide) fn new(call: Call, arguments: Option<Map<String, Value>>, basis: Basis) -> Self {
        Self { call, arguments, basis }
    }

    /// The permitted call.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// The arguments of a tool or prompt as they were parsed and judged.
    pub fn arguments(&self) -> Option<&Map<String, Value>> {
        self.arguments.as_ref()
    }

    /// What the permit rests on.
    pub fn basis(&self) -> &Basis {
        &self.basis
    }

    /// Takes the permit apart, once its call has been recorded.
    pub(crate) fn into_parts(self) -> (Call, Basis) {
        (self.call, self.basis)
    }
}

impl Basis {
    pub(in crate::decide) fn new(snapshot: &Snapshot) -> Self {
        Self {
            policies: Vec::new(),
            shadow: Vec::new(),
            scopes: Vec::new(),
            grant: None,
            class: None,
            policy_set: snapshot.policy_set(),
            catalogue: snapshot.catalogue(),
        }
    }

    /// Rests on this grant. Its own scopes are kept only where the credential narrows them.
    pub(in crate::decide) fn set_grant(&mut self, active_grant: &ActiveGrant<'_>, input: &DecisionInput<'_>) {
        self.scopes = active_grant.scopes.iter().map(|scope| (*scope).clone()).collect();
        let narrowed = input.principal.narrowed_to.is_some();
        self.grant = Some(GrantUsed {
            scopes: narrowed.then(|| active_grant.grant.scopes.clone()),
            ..used(active_grant.grant, input)
        });
    }

    /// Rests on a grant that cannot be used.
    pub(in crate::decide) fn set_unusable_grant(&mut self, grant: &Grant, input: &DecisionInput<'_>) {
        self.grant = Some(GrantUsed {
            scopes: Some(grant.scopes.clone()),
            ..used(grant, input)
        });
    }
}

fn used(grant: &Grant, input: &DecisionInput<'_>) -> GrantUsed {
    let Grant {
        id,
        server: _, // that of the call
        client,
        status,
        scopes: _, // see above
        expires_at,
        version,
    } = grant;
    GrantUsed {
        id: id.clone(),
        version: *version,
        seq: input.grant_freshness.seq,
        age_ms: input.grant_freshness.age_ms,
        status: *status,
        scopes: None,
        client: client.clone(),
        expires_at: *expires_at,
    }
}

impl From<Reason> for Box<Refusal> {
    fn from(reason: Reason) -> Self {
        Box::new(Refusal::new(reason))
    }
}
