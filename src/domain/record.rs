//! The audit records. A record's bytes are its JSON, with the fields in the order given here. Every column of
//! `audit_trail` is derived from these hashed bytes, so that an edited column is noticed.

use super::gap::Gap;
use super::outcome::Outcome;
use super::recorded_principal::RecordedPrincipal;
use super::{
    ClientId, Conflict, Digest, EnvironmentName, GrantId, GrantStatus, Issuer, PolicyId, RequestId, Scope, Scopes, ServerName,
    Subject, Timestamp, ToolClass, ToolName, UserId,
};
use bytes::Bytes;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// 128 random bits, written as 32 hex digits.
macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl $name {
            /// As it stands in a record.
            pub fn hex(&self) -> [u8; 32] {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                let mut text = [0; 32];
                for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
                    pair[0] = DIGITS[usize::from(byte >> 4)];
                    pair[1] = DIGITS[usize::from(byte & 15)];
                }
                text
            }

            /// Reads 32 hex digits.
            pub fn parse(text: &str) -> Option<Self> {
                let value = u128::from_str_radix(text, 16).ok()?;
                (text.len() == 32).then(|| Self(value.to_be_bytes()))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not 32 hex digits"))
            }
        }
    };
}

random_id!(
    /// One start of one instance, so that no two histories can be confused.
    Incarnation
);
random_id!(
    /// One instance over all its starts: one data folder with its journal.
    InstanceId
);

/// One entry of the journal: `{"v":2,"incarnation":…,"seq":…,"prev":…,"event":{…}}`. Version 1 has other names for some
/// outcomes, and says less of what a decision was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredRecord")]
pub struct Record {
    pub v: u8,
    pub incarnation: Incarnation,
    /// Counts from 0 without gaps.
    pub seq: u64,
    /// Head of the chain before this record.
    pub prev: Digest,
    pub event: Event,
}

/// A record as it is read, of whichever version.
#[derive(Deserialize)]
struct StoredRecord {
    v: u8,
    incarnation: Incarnation,
    seq: u64,
    prev: Digest,
    event: Event,
}

impl From<StoredRecord> for Record {
    fn from(stored: StoredRecord) -> Self {
        let StoredRecord {
            v,
            incarnation,
            seq,
            prev,
            mut event,
        } = stored;
        if let (1, Event::Decision(decision)) = (v, &mut event) {
            decision.name_scopes_of_version_1();
        }
        Self {
            v,
            incarnation,
            seq,
            prev,
            event,
        }
    }
}

/// A record as stored on disk and shipped, with its hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedRecord {
    pub incarnation: Incarnation,
    pub seq: u64,
    pub bytes: Bytes,
    /// `SHA-256(0x00 ‖ bytes)`
    pub leaf: Digest,
    /// `SHA-256(0x02 ‖ previous head ‖ leaf)`
    pub head: Digest,
}

/// What a record tells.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    Start(Start),
    Decision(Box<Decision>),
    Outcome(Outcome),
    Policy(PolicyChange),
    Admin(AdminAction),
    Suppressed(Suppressed),
    Gap(Gap),
    Conflict(Conflict),
    Stop(Stop),
}

/// An instance started; the first record of every incarnation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    pub at: Timestamp,
    pub environment: EnvironmentName,
    pub version: String,
    pub instance: String,
    /// Which data folder this is, whatever its name and host. Records written before this field existed lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<InstanceId>,
    /// The last durable record before this start: incarnation, seq and head; `None` on the first start.
    pub after: Option<(Incarnation, u64, Digest)>,
    /// The time of that record. Records written before this field existed lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_at: Option<Timestamp>,
    /// The data folder named an instance before this start, whose journal was not there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub journal_missing: bool,
    /// Bytes cut off as a torn tail.
    pub cut: u64,
}

/// The result of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecisionKind {
    Allow,
    Deny,
}

impl DecisionKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            DecisionKind::Allow => "allow",
            DecisionKind::Deny => "deny",
        }
    }
}

/// The grant a decision rests on, and how old the knowledge of it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantUsed {
    pub id: GrantId,
    pub version: i64,
    /// The position in the change feed up to which grants were known.
    pub seq: i64,
    pub age_ms: u64,
    /// Only a refusal names one that is not verified.
    #[serde(default = "verified", skip_serializing_if = "is_verified")]
    pub status: GrantStatus,
    /// The grant's own scopes; `None`: `scopes_held` are just these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Scopes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// What was known of grants when a decision was made, where it rests on none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantsKnown {
    /// The position in the change feed up to which grants were known.
    pub seq: i64,
    pub age_ms: u64,
    /// The reason to refuse with, since that knowledge was too old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<Cow<'static, str>>,
}

/// What a decision was made from besides the call, the caller and the grant, where the record of its message says otherwise
/// or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JudgedInput {
    /// `None`: the time of the record.
    pub now: Option<Timestamp>,
    /// `None`: the session of the record. Empty: none.
    pub session: Option<String>,
    pub known: GrantsKnown,
}

/// What a record keeps of the arguments of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputsKept {
    /// A digest under the caller's own key; without a user nothing.
    Digest,
    /// The text, with the values of some names replaced.
    Redacted,
    /// The bytes as sent, encrypted with the caller's own key.
    Sealed,
    /// The bytes as sent.
    Plain,
}

/// The arguments of a message as its record keeps them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordedInputs {
    /// `None`: no arguments were sent.
    pub kept: Option<InputsKept>,
    /// The version of the secret that the caller's key is derived from.
    pub key: Option<u32>,
    pub digest: Option<Digest>,
    pub text: Option<String>,
}

/// What a decision record says of the request itself. Call and verdict give the rest.
#[derive(Debug, Clone)]
pub struct RecordedRequest {
    pub at: Timestamp,
    pub environment: EnvironmentName,
    pub principal: Option<Arc<RecordedPrincipal>>,
    pub target: Option<String>,
    pub inputs: RecordedInputs,
    pub source_ip: String,
    pub session: Option<String>,
    pub trace: Option<String>,
    pub took_us: u64,
    /// `None`: the message was refused before anything was loaded that it could be decided by.
    pub judged: Option<JudgedInput>,
}

/// A message was permitted or refused. With the documents that `policy_set` and `catalogue` name, it holds everything that
/// the decision was made from. What does not apply is left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    pub at: Timestamp,
    pub environment: EnvironmentName,
    pub request: RequestId,
    #[serde(rename = "who", default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<Arc<RecordedPrincipal>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerName>,
    pub method: Cow<'static, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// The class of the pinned tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ToolClass>,
    /// What else the message acts upon: a resource's URI, a prompt, a task, or the URIs that a stream reports on. Records
    /// written before this field existed lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The tools whose tasks a stream reports on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub task_tools: Vec<ToolName>,
    pub decision: DecisionKind,
    /// A `Reason` code; `permitted` for an allow.
    pub reason: Cow<'static, str>,
    /// What `decide` said, where that is not the reason: `permitted`, a `Reason` code, or `not_asked`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided: Option<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyId>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
    /// The caller's effective scopes, as judged: the grant's, narrowed by those of the credential.
    #[serde(default, alias = "scopes", skip_serializing_if = "Vec::is_empty")]
    pub scopes_held: Vec<Scope>,
    /// The scopes that the call needs, if some of them are missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes_needed: Vec<Scope>,
    /// What is kept of the arguments; `None` if none were sent, and in version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<InputsKept>,
    /// The version of the secret behind `args_digest` and sealed `args`; without one the digest is the plain SHA-256 of
    /// version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs_key: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args_digest: Option<Digest>,
    /// The arguments as `inputs` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<String>,
    #[serde(default = "no_digest", skip_serializing_if = "is_no_digest")]
    pub policy_set: Digest,
    #[serde(default = "no_digest", skip_serializing_if = "is_no_digest")]
    pub catalogue: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantUsed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<GrantsKnown>,
    /// The time that the decision used, if it is not `at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<Timestamp>,
    pub source_ip: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The session that the decision saw, if it is not `session`; empty for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged_session: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub era: Option<super::Era>,
    /// Microseconds from the first byte of the message to this decision.
    pub took_us: u64,
    /// Something that the decision was made from did not fit and was cut, so that it cannot be made again from this record.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

impl GrantUsed {
    /// A verified grant without an end, for any client, whose scopes nothing narrows.
    pub const fn new(id: GrantId, version: i64, seq: i64, age_ms: u64) -> Self {
        Self {
            id,
            version,
            seq,
            age_ms,
            status: GrantStatus::Verified,
            scopes: None,
            client: None,
            expires_at: None,
        }
    }
}

impl Decision {
    /// A refusal of which nothing else is known.
    pub const fn new(at: Timestamp, environment: EnvironmentName, request: RequestId) -> Self {
        Self {
            at,
            environment,
            request,
            principal: None,
            server: None,
            method: Cow::Borrowed(""),
            tool: None,
            class: None,
            target: None,
            task_tools: Vec::new(),
            decision: DecisionKind::Deny,
            reason: Cow::Borrowed(""),
            decided: None,
            detail: None,
            policies: Vec::new(),
            errors: Vec::new(),
            scopes_held: Vec::new(),
            scopes_needed: Vec::new(),
            inputs: None,
            inputs_key: None,
            args_digest: None,
            args: None,
            policy_set: Digest::ZERO,
            catalogue: Digest::ZERO,
            grant: None,
            known: None,
            now: None,
            source_ip: String::new(),
            session: None,
            judged_session: None,
            trace: None,
            era: None,
            took_us: 0,
            cut: false,
        }
    }

    /// Version 1 had one name for the scopes that a permitted caller held and for those that a refused call needed.
    fn name_scopes_of_version_1(&mut self) {
        if self.decision == DecisionKind::Deny {
            self.scopes_needed = std::mem::take(&mut self.scopes_held);
        }
    }
}

const fn verified() -> GrantStatus {
    GrantStatus::Verified
}

fn is_verified(status: &GrantStatus) -> bool {
    *status == GrantStatus::Verified
}

const fn no_digest() -> Digest {
    Digest::ZERO
}

fn is_no_digest(digest: &Digest) -> bool {
    *digest == Digest::ZERO
}

/// A policy set or catalogue came into force, or was rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyChange {
    pub at: Timestamp,
    pub environment: EnvironmentName,
    pub policy_set: Digest,
    pub catalogue: Digest,
    pub policies: usize,
    /// `None`: in force. Otherwise why the new set was rejected and the old one stays.
    pub rejected: Option<String>,
}

/// An action of the operator, or of the instance on its own. Records of version 1 have the first four fields alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminAction {
    pub at: Timestamp,
    pub environment: EnvironmentName,
    /// What was done, in words such as `granted`.
    pub action: String,
    /// To what, and from what to what, for people.
    pub detail: String,
    /// Who did it; `None`: the instance whose journal this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// Who they say they are (`--by`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_by: Option<String>,
    /// The database's login that the command used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
    /// Whose rows and which server's all the changes are of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The database's own rows that this record covers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<RecordedChange>,
}

impl AdminAction {
    /// Of an instance, without changes of the store.
    pub fn new(at: Timestamp, environment: EnvironmentName, action: &str, detail: String) -> Self {
        Self {
            at,
            environment,
            action: action.to_owned(),
            detail,
            actor: None,
            claimed_by: None,
            login: None,
            user: None,
            server: None,
            changes: Vec::new(),
        }
    }
}

/// The user of an operating system who runs a command or an instance, as that program found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// The name of the real user id; the number, where the system knows no name.
    pub user: String,
    pub uid: u32,
    pub host: String,
    /// Who became this user through sudo, as sudo's variable says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo_user: Option<String>,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.user, self.host)?;
        match &self.sudo_user {
            Some(user) => write!(f, " (sudo: {user})"),
            None => Ok(()),
        }
    }
}

/// A row that a trigger of the store wrote about one change, as the record that covers it repeats it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedChange {
    /// The row's number among the database's own.
    pub seq: u64,
    /// SHA-256 of the row as text.
    pub row: Digest,
    /// In words, such as `granted`.
    pub change: String,
    /// What was changed.
    pub of: String,
    /// The values before and after. Both are missing where they are too long for a record: the digest stands for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<serde_json::Value>,
}

/// Refusals that were counted instead of recorded one by one, so that they cannot flood the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suppressed {
    pub at: Timestamp,
    pub environment: EnvironmentName,
    pub reason: String,
    /// Whether the callers were authenticated. Records of version 1 do not say so.
    #[serde(default)]
    pub authenticated: bool,
    /// The caller who was refused. `None` for unauthenticated callers, and for authenticated ones beyond the number that is
    /// counted one by one.
    #[serde(rename = "who", default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<SuppressedPrincipal>,
    /// Address prefix: /24 or /56. `others` if there were too many, or if one caller called from several.
    pub network: String,
    pub count: u64,
}

/// The caller whose refusals were counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SuppressedPrincipal {
    pub issuer: Issuer,
    pub subject: Subject,
    pub user: Option<UserId>,
}

/// The instance stopped in order; the last record of its incarnation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    pub at: Timestamp,
    pub environment: EnvironmentName,
}

/// Reads an event in one pass, relying on `kind` being the first member. serde's derive for tagged enums accepts `kind`
/// anywhere, for which it first buffers the whole event as loose values.
impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct ByKind;
        impl<'de> Visitor<'de> for ByKind {
            type Value = Event;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event that begins with its kind")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut event: A) -> Result<Event, A::Error> {
                if event.next_key::<Cow<'de, str>>()?.as_deref() != Some("kind") {
                    return Err(de::Error::missing_field("kind"));
                }
                let kind: Cow<'de, str> = event.next_value()?;
                let rest = MapAccessDeserializer::new(event);
                match &*kind {
                    "start" => Start::deserialize(rest).map(Event::Start),
                    "decision" => Decision::deserialize(rest).map(|event| Event::Decision(Box::new(event))),
                    "outcome" => Outcome::deserialize(rest).map(Event::Outcome),
                    "policy" => PolicyChange::deserialize(rest).map(Event::Policy),
                    "admin" => AdminAction::deserialize(rest).map(Event::Admin),
                    "suppressed" => Suppressed::deserialize(rest).map(Event::Suppressed),
                    "gap" => Gap::deserialize(rest).map(Event::Gap),
                    "conflict" => Conflict::deserialize(rest).map(Event::Conflict),
                    "stop" => Stop::deserialize(rest).map(Event::Stop),
                    unknown => Err(de::Error::custom(format!("`{unknown}` is no kind of event"))),
                }
            }
        }
        d.deserialize_map(ByKind)
    }
}

impl Event {
    /// When it happened.
    pub fn at(&self) -> Timestamp {
        match self {
            Event::Start(event) => event.at,
            Event::Decision(event) => event.at,
            Event::Outcome(event) => event.at,
            Event::Policy(event) => event.at,
            Event::Admin(event) => event.at,
            Event::Suppressed(event) => event.at,
            Event::Gap(event) => event.at,
            Event::Conflict(event) => event.at,
            Event::Stop(event) => event.at,
        }
    }

    /// The environment it belongs to.
    pub fn environment(&self) -> &EnvironmentName {
        match self {
            Event::Start(event) => &event.environment,
            Event::Decision(event) => &event.environment,
            Event::Outcome(event) => &event.environment,
            Event::Policy(event) => &event.environment,
            Event::Admin(event) => &event.environment,
            Event::Suppressed(event) => &event.environment,
            Event::Gap(event) => &event.environment,
            Event::Conflict(event) => &event.environment,
            Event::Stop(event) => &event.environment,
        }
    }

    /// The value of `kind` in the JSON.
    pub const fn kind(&self) -> &'static str {
        match self {
            Event::Start(_) => "start",
            Event::Decision(_) => "decision",
            Event::Outcome(_) => "outcome",
            Event::Policy(_) => "policy",
            Event::Admin(_) => "admin",
            Event::Suppressed(_) => "suppressed",
            Event::Gap(_) => "gap",
            Event::Conflict(_) => "conflict",
            Event::Stop(_) => "stop",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_reads_back_and_only_with_its_kind_in_front() {
        let (at, environment) = (Timestamp::from_micros(7), EnvironmentName::parse("test").unwrap());
        let stop = Event::Stop(Stop { at, environment });
        let text = serde_json::to_string(&stop).unwrap();
        assert_eq!(text, r#"{"kind":"stop","at":7,"environment":"test"}"#);
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), stop);
        for bad in [
            r#"{"at":7,"kind":"stop","environment":"test"}"#,
            r#"{"kind":"pause","at":7,"environment":"test"}"#,
            "{}",
        ] {
            assert!(serde_json::from_str::<Event>(bad).is_err(), "{bad}");
        }
    }
}
