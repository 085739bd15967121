//! Everything a decision may depend on. Gathered by the gate before; nothing is fetched from in here.

use super::{Snapshot, Subject};
use crate::domain::{Member, Principal, Reason, Timestamp};
use std::net::IpAddr;

/// What is known at the moment of the call.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub now: Timestamp,
    pub source_ip: IpAddr,
    pub principal: &'a Principal,
    /// The Cedar side of `principal` and its member.
    pub subject: &'a Subject,
    pub enrolment: Enrolment<'a>,
    pub view: View,
    pub snapshot: &'a Snapshot,
    pub session: Option<&'a str>,
}

/// Whether the caller is a member of this environment.
#[derive(Debug, Clone, Copy)]
pub enum Enrolment<'a> {
    Absent,
    Disabled,
    Active(&'a Member),
}

/// How current the knowledge of grants is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Position of the change feed.
    pub seq: i64,
    pub age_ms: u64,
    /// Where it was not confirmed within `max_staleness`: what a call is refused with.
    pub stale: Option<Reason>,
}
