//! What a decision is: a permit that nothing else can make, or a refusal, each with what it rests on.

use super::standing::Held;
use super::{Facts, Snapshot};
use crate::domain::{Call, Digest, GrantUsed, PolicyId, Reason, Refusal, Scope};

#[derive(Debug)]
pub enum Verdict {
    Permit(Permit),
    Refuse(Box<Refused>),
}

/// A call that may be recorded and then sent. Only `decide` makes one.
#[derive(Debug)]
pub struct Permit {
    call: Call,
    basis: Basis,
}

#[derive(Debug)]
pub struct Refused {
    pub call: Call,
    pub refusal: Refusal,
    pub basis: Basis,
}

/// What a verdict rests on, for the record.
#[derive(Debug, Clone, PartialEq)]
pub struct Basis {
    /// The policies that decided, in the order of their files.
    pub policies: Vec<PolicyId>,
    /// `@mode("shadow")` policies of which each alone would have turned this verdict around.
    pub shadow: Vec<PolicyId>,
    /// The scopes the caller held: the grant's, narrowed by those of the key.
    pub scopes: Vec<Scope>,
    pub grant: Option<GrantUsed>,
    pub policy_set: Digest,
    pub catalogue: Digest,
}

impl Permit {
    pub(super) fn new(call: Call, basis: Basis) -> Self {
        Self { call, basis }
    }

    pub fn call(&self) -> &Call {
        &self.call
    }

    pub fn basis(&self) -> &Basis {
        &self.basis
    }

    pub(crate) fn into_parts(self) -> (Call, Basis) {
        (self.call, self.basis)
    }
}

impl Basis {
    pub(super) fn new(snapshot: &Snapshot) -> Self {
        Self {
            policies: Vec::new(),
            shadow: Vec::new(),
            scopes: Vec::new(),
            grant: None,
            policy_set: snapshot.policy_set(),
            catalogue: snapshot.catalogue(),
        }
    }

    pub(super) fn hold(&mut self, held: &Held<'_>, facts: &Facts<'_>) {
        self.scopes = held.scopes.iter().map(|scope| (*scope).clone()).collect();
        self.grant = Some(GrantUsed {
            id: held.grant.id.clone(),
            version: held.grant.version,
            seq: facts.view.seq,
            age_ms: facts.view.age_ms,
        });
    }
}

impl From<Reason> for Box<Refusal> {
    fn from(reason: Reason) -> Self {
        Box::new(Refusal::new(reason))
    }
}
