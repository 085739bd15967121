//! Everything a decision may depend on. The gate gathers it beforehand; nothing is fetched from here.

use super::cedar_principal::CedarPrincipal;
use super::snapshot::Snapshot;
use crate::domain::{GrantsKnown, JudgedInput, Member, Principal, Reason, Timestamp};
use std::net::IpAddr;

/// The state of the world at the moment of the call.
#[derive(Clone, Copy)]
pub struct DecisionInput<'a> {
    pub now: Timestamp,
    pub source_ip: IpAddr,
    pub principal: &'a Principal,
    /// `principal` and its member as a Cedar entity.
    pub cedar_principal: &'a CedarPrincipal,
    pub enrolment: Enrolment<'a>,
    pub grant_freshness: GrantFreshness,
    pub snapshot: &'a Snapshot,
    pub session: Option<&'a str>,
}

impl DecisionInput<'_> {
    /// What a record of this time and session keeps of the input besides the caller, the grant and the two digests. All fields
    /// are named here, so that a new one needs a place in the record.
    pub fn judged(&self, at: Timestamp, session: Option<&str>) -> JudgedInput {
        let DecisionInput {
            now,
            source_ip: _,       // `source_ip`: a message has one address from end to end
            principal: _,       // `who`
            cedar_principal: _, // made of `who`
            enrolment: _,       // `who`
            grant_freshness: GrantFreshness { seq, age_ms, stale },
            snapshot: _, // `policy_set` and `catalogue`
            session: seen,
        } = *self;
        JudgedInput {
            now: Some(now).filter(|now| *now != at),
            session: (seen != session).then(|| seen.unwrap_or_default().to_owned()),
            known: GrantsKnown {
                seq,
                age_ms,
                stale: stale.map(|reason| reason.code().into()),
            },
        }
    }
}

/// Whether the caller is a member of this environment.
#[derive(Debug, Clone, Copy)]
pub enum Enrolment<'a> {
    Absent,
    Disabled,
    Active(&'a Member),
}

/// How current the cached grants are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantFreshness {
    /// Position in the change feed.
    pub seq: i64,
    pub age_ms: u64,
    /// The reason to refuse with, if the feed was not confirmed within `max_staleness`.
    pub stale: Option<Reason>,
}
