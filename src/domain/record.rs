//! What the journal keeps. The bytes of a record are its JSON in the order of these fields; every column of
//! `audit_trail` is derived from those bytes, so nothing that is not hashed can be edited.

use super::{
    AuthMethod, ClientId, Digest, EnvironmentName, GrantId, Issuer, KeyId, PolicyId, RequestId, Scope, ServerName, Subject,
    Timestamp, UserId,
};
use bytes::Bytes;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;

/// One start of one instance: 128 random bits, so that no two histories can be confused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(pub [u8; 16]);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Incarnation {
    pub fn parse(text: &str) -> Option<Self> {
        let value = u128::from_str_radix(text, 16).ok()?;
        (text.len() == 32).then(|| Self(value.to_be_bytes()))
    }
}

impl Serialize for Incarnation {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Incarnation {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not 32 hex digits"))
    }
}

/// One entry of the journal: `{"v":1,"incarnation":…,"seq":…,"prev":…,"event":{…}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub v: u8,
    pub incarnation: Incarnation,
    /// Without gaps from 0.
    pub seq: u64,
    /// The chain's head before this record.
    pub prev: Digest,
    pub event: Event,
}

/// A record as it lies on disk and is shipped.
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

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    Start(Start),
    Decision(Box<Decision>),
    Outcome(Outcome),
    Policy(PolicyChange),
    Admin(Admin),
    Suppressed(Suppressed),
    Stop(Stop),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    pub at: Timestamp,
    pub environment: EnvironmentName,
    pub version: String,
    pub instance: String,
    /// The incarnation before, its last durable seq and head; `None` on the first start.
    pub after: Option<(Incarnation, u64, Digest)>,
    /// Bytes of a torn tail that were cut off.
    pub cut: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decided {
    Allow,
    Deny,
}

/// Who called, as far as it was proved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    pub issuer: Issuer,
    pub subject: Subject,
    pub user: Option<UserId>,
    pub method: AuthMethod,
    pub fingerprint: String,
    pub client: Option<ClientId>,
    pub key: Option<KeyId>,
}

/// The grant that was decided upon, and how old the knowledge of it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantUsed {
    pub id: GrantId,
    pub version: i64,
    /// Position of the change feed.
    pub seq: i64,
    pub age_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    pub at: Timestamp,
    pub environment: EnvironmentName,
    pub request: RequestId,
    pub who: Option<Who>,
    pub server: Option<ServerName>,
    pub method: Cow<'static, str>,
    pub tool: Option<String>,
    /// What else was acted upon: a URI, a prompt, what a stream was asked to tell of. Records of before have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    pub decision: Decided,
    /// A `Reason` code; `permitted` for an allow.
    pub reason: Cow<'static, str>,
    pub detail: Option<String>,
    pub policies: Vec<PolicyId>,
    pub errors: Vec<String>,
    pub scopes: Vec<Scope>,
    pub args_digest: Option<Digest>,
    /// Arguments as JSON text with the configured fields redacted; `None` unless `journal.arguments` asks for them.
    pub args: Option<String>,
    pub policy_set: Digest,
    pub catalogue: Digest,
    pub grant: Option<GrantUsed>,
    pub source_ip: String,
    pub session: Option<String>,
    pub trace: Option<String>,
    pub era: Option<super::Era>,
    /// From the first byte of the message to this decision.
    pub took_us: u64,
}

/// How a permitted call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The server answered in full.
    Done,
    /// The server could not be reached, broke off or answered with nonsense.
    Failed,
    /// The client went away first.
    ClientClosed,
    /// The grant was gone at the last look before sending: nothing was sent.
    Aborted,
    /// An open stream was cut because the authorisation went away.
    Revoked,
    /// Found without an outcome after a crash: may have been executed.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub at: Timestamp,
    pub environment: EnvironmentName,
    pub request: RequestId,
    pub ending: Ending,
    pub detail: Option<String>,
    /// HTTP status of the server.
    pub status: Option<u16>,
    /// The result said `isError`, or was a JSON-RPC error.
    pub tool_error: Option<bool>,
    pub latency_us: u64,
    pub bytes: u64,
    /// Written by recovery, not by the call.
    pub recovered: bool,
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

/// Something the operator did or the instance did to itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admin {
    pub at: Timestamp,
    pub environment: EnvironmentName,
    pub action: String,
    pub detail: String,
}

/// Unauthenticated noise, counted instead of recorded one by one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suppressed {
    pub at: Timestamp,
    pub environment: EnvironmentName,
    pub reason: String,
    /// Address prefix: /24 or /56.
    pub network: String,
    pub count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    pub at: Timestamp,
    pub environment: EnvironmentName,
}

/// In one pass, since `kind` is written first. What serde derives for a tagged enum takes it anywhere, and for that takes
/// the whole event apart into loose values before it looks.
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
                    "admin" => Admin::deserialize(rest).map(Event::Admin),
                    "suppressed" => Suppressed::deserialize(rest).map(Event::Suppressed),
                    "stop" => Stop::deserialize(rest).map(Event::Stop),
                    unknown => Err(de::Error::custom(format!("`{unknown}` is no kind of event"))),
                }
            }
        }
        d.deserialize_map(ByKind)
    }
}

impl Event {
    pub fn at(&self) -> Timestamp {
        match self {
            Event::Start(event) => event.at,
            Event::Decision(event) => event.at,
            Event::Outcome(event) => event.at,
            Event::Policy(event) => event.at,
            Event::Admin(event) => event.at,
            Event::Suppressed(event) => event.at,
            Event::Stop(event) => event.at,
        }
    }

    pub fn environment(&self) -> &EnvironmentName {
        match self {
            Event::Start(event) => &event.environment,
            Event::Decision(event) => &event.environment,
            Event::Outcome(event) => &event.environment,
            Event::Policy(event) => &event.environment,
            Event::Admin(event) => &event.environment,
            Event::Suppressed(event) => &event.environment,
            Event::Stop(event) => &event.environment,
        }
    }

    pub const fn kind(&self) -> &'static str {
        match self {
            Event::Start(_) => "start",
            Event::Decision(_) => "decision",
            Event::Outcome(_) => "outcome",
            Event::Policy(_) => "policy",
            Event::Admin(_) => "admin",
            Event::Suppressed(_) => "suppressed",
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
