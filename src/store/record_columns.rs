//! What a row of `audit_trail` says beside a record's bytes, read from those bytes in one pass: texts are borrowed from them.
//! A record of which one column cannot be made is a row without any.

use crate::domain::{
    AuthMethod, ClientId, DecisionKind, Digest, EnvironmentName, Event, Executed, Issuer, KeyId, Outcome, OutcomeKind, Record,
    SealedRecord, ServerName, Subject, Timestamp,
};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use uuid::Uuid;

/// The longest text that is a column: it must fit an index entry with its companions.
const LONGEST: usize = 2_048;

pub(super) const OPAQUE: &str = "opaque";

/// A row of `audit_trail`.
pub(super) struct RecordColumns<'a> {
    pub sealed: &'a SealedRecord,
    pub kind: &'static str,
    pub at: i64,
    pub environment: Option<Cow<'a, str>>,
    pub derived: Derived<'a>,
}

/// What is searched by, out of the record's bytes.
#[derive(Default)]
pub(super) struct Derived<'a> {
    pub request: Option<Cow<'a, str>>,
    pub decision: Option<&'static str>,
    pub reason: Option<Cow<'a, str>>,
    pub user: Option<Cow<'a, str>>,
    pub issuer: Option<Cow<'a, str>>,
    pub subject: Option<Cow<'a, str>>,
    pub auth_method: Option<&'static str>,
    pub client: Option<Cow<'a, str>>,
    pub key: Option<Cow<'a, str>>,
    pub server: Option<Cow<'a, str>>,
    pub method: Option<Cow<'a, str>>,
    /// Or what else was acted upon; the method tells which.
    pub tool: Option<Cow<'a, str>>,
    pub policies: Option<&'a str>,
    pub policy_set: Option<Digest>,
    pub grant_seq: Option<i64>,
    pub grant_age_ms: Option<i64>,
    pub source_ip: Option<Cow<'a, str>>,
    pub ending: Option<&'static str>,
    pub status: Option<i64>,
    pub latency_us: Option<i64>,
    pub executed: Option<&'static str>,
    pub actor: Option<Cow<'a, str>>,
    pub claimed_by: Option<Cow<'a, str>>,
}

impl<'a> RecordColumns<'a> {
    pub fn of(sealed: &'a SealedRecord) -> Self {
        let text = std::str::from_utf8(&sealed.bytes).ok();
        let record = text.and_then(|text| serde_json::from_str::<ShippedRecord>(text).ok());
        let incarnation = sealed.incarnation.hex();
        let record = record.filter(|record| record.incarnation.0.as_bytes() == incarnation && record.seq == sealed.seq);
        record
            .and_then(|record| Self::derive(sealed, record.event))
            .unwrap_or_else(|| Self::opaque(sealed))
    }

    /// `None`: a value that its column cannot hold.
    fn derive(sealed: &'a SealedRecord, event: ShippedEvent<'a>) -> Option<Self> {
        let (kind, at, environment, derived) = match event {
            ShippedEvent::Decision(decision) => (
                "decision",
                decision.at,
                decision.environment.0.clone(),
                Derived::of_decision(*decision)?,
            ),
            ShippedEvent::Outcome(outcome) => (
                "outcome",
                outcome.at,
                outcome.environment.0.clone(),
                Derived::of_outcome(outcome)?,
            ),
            ShippedEvent::Rare => {
                let event = serde_json::from_slice::<Record>(&sealed.bytes).ok()?.event;
                let environment = event.environment().to_string().into();
                (event.kind(), event.at(), environment, Derived::of_rare(&event)?)
            }
        };
        (EnvironmentName::accepts(&environment) && derived.fits()).then_some(())?;
        Some(Self {
            sealed,
            kind,
            at: storable(at)?,
            environment: Some(environment),
            derived,
        })
    }

    /// The envelope of a record that cannot be columns: found by time and environment where these can be read.
    pub fn opaque(sealed: &'a SealedRecord) -> Self {
        /// Skips what it does not know, so it reads records of a later version and texts no column can hold.
        #[derive(Deserialize)]
        struct ShippedEnvelope {
            event: ShippedStamp,
        }
        #[derive(Deserialize)]
        struct ShippedStamp {
            at: Timestamp,
            environment: EnvironmentName,
        }
        let stamp = serde_json::from_slice::<ShippedEnvelope>(&sealed.bytes)
            .map(|envelope| envelope.event)
            .ok();
        Self {
            sealed,
            kind: OPAQUE,
            at: stamp.as_ref().and_then(|stamp| storable(stamp.at)).unwrap_or(0),
            environment: stamp.map(|stamp| stamp.environment.to_string().into()),
            derived: Derived::default(),
        }
    }
}

impl<'a> Derived<'a> {
    fn of_decision(decision: ShippedDecision<'a>) -> Option<Self> {
        let who = decision.principal;
        let (mut issuer, mut subject, mut user, mut auth_method, mut client, mut key) = (None, None, None, None, None, None);
        if let Some(who) = who {
            issuer = Some(name(who.issuer, Issuer::accepts)?);
            subject = Some(name(who.subject, Subject::accepts)?);
            user = optional(who.user, uuid)?;
            auth_method = Some(who.method.as_str());
            client = optional(who.client, |client| name(client, ClientId::accepts))?;
            key = optional(who.key, |key| name(key, KeyId::accepts))?;
        }
        let target = decision.target.map(|target| truncated(target.0));
        // A list without members is left out.
        let policies = decision.policies.map_or("[]", RawValue::get);
        policies.starts_with('[').then_some(())?;
        Some(Self {
            request: Some(uuid(decision.request)?),
            decision: Some(decision.decision.as_str()),
            reason: Some(decision.reason.0),
            user,
            issuer,
            subject,
            auth_method,
            client,
            key,
            server: optional(decision.server, |server| name(server, ServerName::accepts))?,
            method: Some(decision.method.0),
            tool: decision.tool.map(|tool| tool.0).or(target),
            policies: Some(policies),
            policy_set: Some(decision.policy_set.unwrap_or(Digest::ZERO)),
            grant_seq: decision.grant.as_ref().map(|grant| grant.seq),
            grant_age_ms: decision.grant.map(|grant| i64::try_from(grant.age_ms)).transpose().ok()?,
            source_ip: Some(decision.source_ip.0),
            latency_us: Some(i64::try_from(decision.took_us).ok()?),
            ..Self::default()
        })
    }

    fn of_outcome(outcome: ShippedOutcome<'a>) -> Option<Self> {
        let (kind, executed) = match outcome.executed {
            Some(executed) => (outcome.kind, executed),
            None => {
                let (kind, executed, _) = Outcome::of_version_1(outcome.kind, outcome.tool_error, outcome.status);
                (kind, executed)
            }
        };
        Some(Self {
            request: Some(uuid(outcome.request)?),
            ending: Some(kind.as_str()),
            executed: Some(executed.as_str()),
            status: outcome.status.map(i64::from),
            latency_us: Some(i64::try_from(outcome.latency_us).ok()?),
            ..Self::default()
        })
    }

    fn of_rare(event: &Event) -> Option<Self> {
        let nothing = Self::default();
        let text = |text: &str| Some(Cow::Owned(text.to_owned()));
        match event {
            // A call leaves these two; they are read without the detour of an owned event.
            Event::Decision(_) | Event::Outcome(_) => None,
            Event::Policy(change) => Some(Self {
                reason: Some(if change.rejected.is_some() { "rejected" } else { "in_force" }.into()),
                policy_set: Some(change.policy_set),
                ..nothing
            }),
            Event::Admin(admin) => Some(Self {
                reason: text(&admin.action),
                user: admin.user.as_ref().and_then(|user| uuid(Text(user.to_string().into()))),
                server: admin.server.clone().map(Cow::Owned),
                actor: admin.actor.as_ref().map(|actor| actor.to_string().into()),
                claimed_by: admin.claimed_by.clone().map(Cow::Owned),
                ..nothing
            }),
            Event::Suppressed(suppressed) => {
                let who = suppressed.principal.as_ref();
                let user = who.and_then(|who| who.user.as_ref());
                Some(Self {
                    reason: text(&suppressed.reason),
                    user: user
                        .map(|user| Uuid::try_parse(user.as_str()))
                        .transpose()
                        .ok()?
                        .map(|user| user.to_string().into()),
                    issuer: who.and_then(|who| text(who.issuer.as_str())),
                    subject: who.and_then(|who| text(who.subject.as_str())),
                    source_ip: text(&suppressed.network),
                    ..nothing
                })
            }
            Event::Conflict(conflict) => Some(Self {
                reason: Some(if conflict.beside { "row_beside" } else { "row_in_place" }.into()),
                ..nothing
            }),
            Event::Start(_) | Event::Gap(_) | Event::Stop(_) => Some(nothing),
        }
    }

    fn fits(&self) -> bool {
        let texts = [
            &self.reason,
            &self.subject,
            &self.client,
            &self.server,
            &self.method,
            &self.tool,
            &self.source_ip,
            &self.actor,
            &self.claimed_by,
        ];
        texts
            .into_iter()
            .flatten()
            .all(|text| text.len() <= LONGEST && !text.as_bytes().contains(&0))
    }
}

fn name<'a>(text: Text<'a>, accepts: fn(&str) -> bool) -> Option<Cow<'a, str>> {
    accepts(&text.0).then_some(text.0)
}

/// Absent, or with a value that its column can hold; `None` for any other.
fn optional<'a>(text: Option<Text<'a>>, column: impl FnOnce(Text<'a>) -> Option<Cow<'a, str>>) -> Option<Option<Cow<'a, str>>> {
    match text {
        Some(text) => column(text).map(Some),
        None => Some(None),
    }
}

/// A UUID as the journal writes it, with hyphens and in lower case, is taken as it is.
fn uuid(text: Text<'_>) -> Option<Cow<'_, str>> {
    let hyphens = [8, 13, 18, 23];
    let bytes = text.0.as_bytes();
    let well_formed = bytes.len() == 36
        && bytes.iter().enumerate().all(|(at, byte)| match byte {
            b'-' => hyphens.contains(&at),
            b'0'..=b'9' | b'a'..=b'f' => !hyphens.contains(&at),
            _ => false,
        });
    if well_formed {
        return Some(text.0);
    }
    Uuid::try_parse(&text.0).ok().map(|uuid| Cow::Owned(uuid.to_string()))
}

/// As much as a column holds. The record has the rest.
fn truncated(text: Cow<'_, str>) -> Cow<'_, str> {
    let longest = LONGEST - 8; // leaves room for a character that is longer than one byte
    if text.len() <= LONGEST {
        return text;
    }
    let fits = text.char_indices().map(|(at, _)| at).take_while(|at| *at <= longest).last();
    Cow::Owned(text[..fits.unwrap_or(0)].to_owned())
}

/// Years 1970 to 9999, which both engines can hold and print.
fn storable(at: Timestamp) -> Option<i64> {
    (0..253_402_300_800_000_000).contains(&at.micros()).then(|| at.micros())
}

// ---- the record's bytes, as far as they are columns

#[derive(Deserialize)]
struct ShippedRecord<'a> {
    #[serde(borrow)]
    incarnation: Text<'a>,
    seq: u64,
    #[serde(borrow)]
    event: ShippedEvent<'a>,
}

enum ShippedEvent<'a> {
    Decision(Box<ShippedDecision<'a>>),
    Outcome(ShippedOutcome<'a>),
    /// One that is not of a call: there are few of these.
    Rare,
}

#[derive(Deserialize)]
struct ShippedDecision<'a> {
    at: Timestamp,
    #[serde(borrow)]
    environment: Text<'a>,
    #[serde(borrow)]
    request: Text<'a>,
    #[serde(borrow, rename = "who")]
    principal: Option<ShippedPrincipal<'a>>,
    #[serde(borrow)]
    server: Option<Text<'a>>,
    #[serde(borrow)]
    method: Text<'a>,
    #[serde(borrow)]
    tool: Option<Text<'a>>,
    #[serde(borrow, default)]
    target: Option<Text<'a>>,
    decision: DecisionKind,
    #[serde(borrow)]
    reason: Text<'a>,
    #[serde(borrow, default)]
    policies: Option<&'a RawValue>,
    policy_set: Option<Digest>,
    grant: Option<ShippedGrant>,
    #[serde(borrow)]
    source_ip: Text<'a>,
    took_us: u64,
}

#[derive(Deserialize)]
struct ShippedPrincipal<'a> {
    #[serde(borrow)]
    issuer: Text<'a>,
    #[serde(borrow)]
    subject: Text<'a>,
    #[serde(borrow)]
    user: Option<Text<'a>>,
    method: AuthMethod,
    #[serde(borrow)]
    client: Option<Text<'a>>,
    #[serde(borrow)]
    key: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct ShippedGrant {
    seq: i64,
    age_ms: u64,
}

#[derive(Deserialize)]
struct ShippedOutcome<'a> {
    at: Timestamp,
    #[serde(borrow)]
    environment: Text<'a>,
    #[serde(borrow)]
    request: Text<'a>,
    #[serde(rename = "ending")]
    kind: OutcomeKind,
    executed: Option<Executed>,
    status: Option<u16>,
    tool_error: Option<bool>,
    latency_us: u64,
}

/// A JSON string: borrowed unless it holds an escape. serde's derive borrows a `Cow`, but not one in an `Option`.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Borrows;
        impl<'de> Visitor<'de> for Borrows {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        d.deserialize_str(Borrows)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for ShippedEvent<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct ByKind;
        impl<'de> Visitor<'de> for ByKind {
            type Value = ShippedEvent<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event that begins with its kind")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut event: A) -> Result<ShippedEvent<'de>, A::Error> {
                if event.next_key::<Text<'de>>()?.is_none_or(|key| key.0 != "kind") {
                    return Err(de::Error::missing_field("kind"));
                }
                let kind: Text<'de> = event.next_value()?;
                match &*kind.0 {
                    "decision" => {
                        let decision = ShippedDecision::deserialize(MapAccessDeserializer::new(event))?;
                        Ok(ShippedEvent::Decision(Box::new(decision)))
                    }
                    "outcome" => ShippedOutcome::deserialize(MapAccessDeserializer::new(event)).map(ShippedEvent::Outcome),
                    _ => {
                        while event.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                        Ok(ShippedEvent::Rare)
                    }
                }
            }
        }
        d.deserialize_map(ByKind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Incarnation;

    /// The columns of records that earlier versions wrote, and of what a record must not look like.
    #[test]
    fn columns_say_what_the_record_says() {
        for line in include_str!("../../tests/golden/records.jsonl").lines() {
            let record: Record = serde_json::from_str(line).unwrap();
            let sealed = sealed(line, record.incarnation, record.seq);
            let columns = RecordColumns::of(&sealed);
            assert_eq!((columns.kind, columns.at), (record.event.kind(), record.event.at().micros()));
            assert_eq!(columns.environment.as_deref(), Some(record.event.environment().as_str()));
            let derived = columns.derived;
            if let Event::Decision(decision) = &record.event {
                let who = decision.principal.as_ref();
                assert_eq!(derived.request.as_deref(), Some(&*decision.request.to_string()));
                assert_eq!(derived.decision, Some(decision.decision.as_str()));
                assert_eq!(
                    derived.user.as_deref(),
                    who.and_then(|who| who.user.as_ref()).map(|user| user.as_str())
                );
                assert_eq!(derived.subject.as_deref(), who.map(|who| who.subject.as_str()));
                assert_eq!(derived.policies, Some(&*serde_json::json!(decision.policies).to_string()));
                assert_eq!(derived.policy_set, Some(decision.policy_set));
                assert_eq!(
                    derived.tool,
                    decision.tool.clone().or(decision.target.clone()).map(Cow::Owned)
                );
            }
            if let Event::Outcome(outcome) = &record.event {
                let said = (Some(outcome.kind.as_str()), Some(outcome.executed.as_str()));
                assert_eq!((derived.ending, derived.executed), said);
            }
            if let Event::Suppressed(suppressed) = &record.event {
                let who = suppressed.principal.as_ref();
                assert_eq!(derived.subject.as_deref(), who.map(|who| who.subject.as_str()));
            }
            let other = sealed_as(&sealed, record.seq + 1);
            assert_eq!(RecordColumns::of(&other).kind, OPAQUE);
        }
    }

    fn sealed(text: &str, incarnation: Incarnation, seq: u64) -> SealedRecord {
        SealedRecord {
            incarnation,
            seq,
            bytes: text.to_owned().into(),
            leaf: Digest::ZERO,
            head: Digest::ZERO,
        }
    }

    fn sealed_as(sealed: &SealedRecord, seq: u64) -> SealedRecord {
        SealedRecord { seq, ..sealed.clone() }
    }
}
