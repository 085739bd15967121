//! Records of the journal into `audit_trail`: a batch in one transaction, each record once however often it is sent.
//! Every column is derived from the record's bytes; what cannot be a column goes in as the bytes alone.

use super::engine::{Arg, Sql, Tx, row};
use super::{Store, StoreError};
use crate::domain::{Decision, EnvironmentName, Event, Record, SealedRecord, Timestamp};
use serde::Deserialize;
use uuid::Uuid;

/// What became of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shipped {
    /// Rows that were not there before; the others of the batch were.
    pub inserted: u64,
    /// Rows of it that hold their bytes alone.
    pub opaque: u64,
}

/// The longest text that is a column: it must fit an index entry with its companions.
const LONGEST: usize = 2_048;

const INSERT: Sql = Sql {
    // a record that names no environment belongs to the one this login is bound to; on SQLite to that of its journal
    postgres: "INSERT INTO audit_trail (incarnation, seq, occurred_at, environment, kind, request_id, decision, reason, user_id,
                 issuer, subject, auth_method, client_id, key_id, server_name, method, tool_name, policies, policy_set, grant_seq,
                 grant_age_ms, source_ip, ending, status, latency_us, bytes, leaf, head)
               SELECT r.incarnation, r.seq, at_micros(r.occurred_at),
                 coalesce(r.environment, (environments_of(current_user))[1], 'unknown'), r.kind, r.request_id::uuid, r.decision,
                 r.reason, r.user_id::uuid, r.issuer, r.subject, r.auth_method, r.client_id, r.key_id, r.server_name, r.method,
                 r.tool_name, r.policies::jsonb, r.policy_set, r.grant_seq, r.grant_age_ms, r.source_ip, r.ending, r.status,
                 r.latency_us, r.bytes, r.leaf, r.head
               FROM unnest($1::bytea[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                 $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[],
                 $17::text[], $18::text[], $19::bytea[], $20::bigint[], $21::bigint[], $22::text[], $23::text[], $24::bigint[],
                 $25::bigint[], $26::bytea[], $27::bytea[], $28::bytea[])
                 AS r (incarnation, seq, occurred_at, environment, kind, request_id, decision, reason, user_id, issuer, subject,
                 auth_method, client_id, key_id, server_name, method, tool_name, policies, policy_set, grant_seq, grant_age_ms,
                 source_ip, ending, status, latency_us, bytes, leaf, head)
               ON CONFLICT DO NOTHING",
    sqlite: "WITH r (incarnation, seq, occurred_at, environment, kind, request_id, decision, reason, user_id, issuer, subject,
               auth_method, client_id, key_id, server_name, method, tool_name, policies, policy_set, grant_seq, grant_age_ms,
               source_ip, ending, status, latency_us, bytes, leaf, head) AS (VALUES {rows})
             INSERT INTO audit_trail (incarnation, seq, occurred_at, environment, kind, request_id, decision, reason, user_id,
               issuer, subject, auth_method, client_id, key_id, server_name, method, tool_name, policies, policy_set, grant_seq,
               grant_age_ms, source_ip, ending, status, latency_us, bytes, leaf, head)
             SELECT r.incarnation, r.seq, r.occurred_at,
               coalesce(r.environment,
                 (SELECT a.environment FROM audit_trail a WHERE a.incarnation = r.incarnation ORDER BY a.seq LIMIT 1), 'unknown'),
               r.kind, r.request_id, r.decision, r.reason, r.user_id, r.issuer, r.subject, r.auth_method, r.client_id, r.key_id,
               r.server_name, r.method, r.tool_name, r.policies, r.policy_set, r.grant_seq, r.grant_age_ms, r.source_ip,
               r.ending, r.status, r.latency_us, r.bytes, r.leaf, r.head
             FROM r WHERE true
             ON CONFLICT (incarnation, seq) DO NOTHING",
};

const MICROS_OF_DAY: i64 = 86_400_000_000;

/// The journal forgets what was committed, so the commit must have reached the disk whatever the database's own setting is.
const DURABLE_COMMIT: Sql = Sql::of_postgres(
    "SELECT set_config('synchronous_commit', 'on', true)
     WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')",
);

impl Store {
    /// Stores records, in one transaction. Sending some of them again is harmless. An error means that nothing is known of
    /// any of them: send all again (`StoreError::is_transient` tells whether that can help by itself).
    pub async fn ship(&self, records: &[SealedRecord]) -> Result<Shipped, StoreError> {
        if records.is_empty() {
            return Ok(Shipped::default());
        }
        let mut rows: Vec<Columns> = records.iter().map(Columns::of).collect();
        let environment = rows.iter().find_map(|row| row.environment.clone());
        rows.iter_mut()
            .for_each(|row| row.environment = row.environment.take().or_else(|| environment.clone()));
        let newest = rows.iter().map(|row| row.at).max().unwrap_or_default();
        if let Store::Postgres(engine) = self {
            engine.keep_partitions(newest / MICROS_OF_DAY).await;
        }
        let mut tx = self.write().await?;
        if let Store::Postgres(_) = self {
            tx.fetch(&DURABLE_COMMIT, &[]).await?;
        }
        let shipped = match insert(&mut tx, &rows).await {
            Err(StoreError::Unstorable { .. }) => one_by_one(&mut tx, &rows).await?,
            shipped => shipped?,
        };
        tx.commit().await?;
        if let Store::Postgres(engine) = self {
            engine.keep_statistics(shipped.inserted).await;
        }
        Ok(shipped)
    }
}

async fn insert(tx: &mut Tx, rows: &[Columns<'_>]) -> Result<Shipped, StoreError> {
    let opaque = rows.iter().filter(|row| row.kind == OPAQUE).count();
    let args: Vec<Vec<Arg>> = rows.iter().map(Columns::args).collect();
    Ok(Shipped {
        inserted: tx.insert_rows(&INSERT, &args).await?,
        opaque: u64::try_from(opaque).unwrap_or(u64::MAX),
    })
}

/// The database refused a value in one of these rows, and will again: that row goes in as its bytes alone.
async fn one_by_one(tx: &mut Tx, rows: &[Columns<'_>]) -> Result<Shipped, StoreError> {
    let mut shipped = Shipped::default();
    for row in rows {
        let one = match insert(tx, std::slice::from_ref(row)).await {
            Err(StoreError::Unstorable { what, .. }) => {
                tracing::warn!(incarnation = %row.sealed.incarnation, seq = row.sealed.seq, what, "an audit record is stored as bytes alone");
                insert(tx, &[Columns::opaque(row.sealed)]).await?
            }
            one => one?,
        };
        shipped.inserted += one.inserted;
        shipped.opaque += one.opaque;
    }
    Ok(shipped)
}

const OPAQUE: &str = "opaque";

/// A row of `audit_trail`.
struct Columns<'a> {
    sealed: &'a SealedRecord,
    kind: &'static str,
    at: i64,
    environment: Option<String>,
    derived: Derived,
}

/// What is searched by, out of the record's bytes.
#[derive(Default)]
struct Derived {
    request: Option<String>,
    decision: Option<&'static str>,
    reason: Option<String>,
    user: Option<String>,
    issuer: Option<String>,
    subject: Option<String>,
    auth_method: Option<&'static str>,
    client: Option<String>,
    key: Option<String>,
    server: Option<String>,
    method: Option<String>,
    /// Or what else was acted upon; the method tells which.
    tool: Option<String>,
    policies: Option<String>,
    policy_set: Option<Vec<u8>>,
    grant_seq: Option<i64>,
    grant_age_ms: Option<i64>,
    source_ip: Option<String>,
    ending: Option<&'static str>,
    status: Option<i64>,
    latency_us: Option<i64>,
}

impl<'a> Columns<'a> {
    fn of(sealed: &'a SealedRecord) -> Self {
        let record = serde_json::from_slice::<Record>(&sealed.bytes).ok();
        let record = record.filter(|record| record.incarnation == sealed.incarnation && record.seq == sealed.seq);
        record
            .and_then(|record| Self::derive(sealed, &record.event))
            .unwrap_or_else(|| Self::opaque(sealed))
    }

    /// `None`: a value that its column cannot hold.
    fn derive(sealed: &'a SealedRecord, event: &Event) -> Option<Self> {
        let derived = Derived::of(event).filter(Derived::fits)?;
        let environment = Some(event.environment().to_string());
        Some(Self {
            sealed,
            kind: event.kind(),
            at: storable(event.at())?,
            environment,
            derived,
        })
    }

    /// The envelope of a record that cannot be columns: found by time and environment where these can be read.
    fn opaque(sealed: &'a SealedRecord) -> Self {
        /// Skips what it does not know, so it reads records of a later version and texts no column can hold.
        #[derive(Deserialize)]
        struct ShippedEnvelope {
            event: ShippedEvent,
        }
        #[derive(Deserialize)]
        struct ShippedEvent {
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
            environment: stamp.map(|stamp| stamp.environment.to_string()),
            derived: Derived::default(),
        }
    }

    fn args(&self) -> Vec<Arg> {
        let derived = &self.derived;
        row![
            &self.sealed.incarnation.0[..],
            i64::try_from(self.sealed.seq).unwrap_or(i64::MAX),
            self.at,
            self.environment.clone(),
            self.kind,
            derived.request.clone(),
            derived.decision,
            derived.reason.clone(),
            derived.user.clone(),
            derived.issuer.clone(),
            derived.subject.clone(),
            derived.auth_method,
            derived.client.clone(),
            derived.key.clone(),
            derived.server.clone(),
            derived.method.clone(),
            derived.tool.clone(),
            derived.policies.clone(),
            derived.policy_set.as_deref(),
            derived.grant_seq,
            derived.grant_age_ms,
            derived.source_ip.clone(),
            derived.ending,
            derived.status,
            derived.latency_us,
            &self.sealed.bytes[..],
            &self.sealed.leaf.as_bytes()[..],
            &self.sealed.head.as_bytes()[..],
        ]
    }
}

impl Derived {
    fn of(event: &Event) -> Option<Self> {
        let nothing = Self::default();
        match event {
            Event::Decision(decision) => Self::of_decision(decision),
            Event::Outcome(outcome) => Some(Self {
                request: Some(outcome.request.to_string()),
                ending: Some(outcome.kind.as_str()),
                status: outcome.status.map(i64::from),
                latency_us: Some(i64::try_from(outcome.latency_us).ok()?),
                ..nothing
            }),
            Event::Policy(change) => Some(Self {
                reason: Some(if change.rejected.is_some() { "rejected" } else { "in_force" }.to_owned()),
                policy_set: Some(change.policy_set.as_bytes().to_vec()),
                ..nothing
            }),
            Event::Admin(admin) => Some(Self {
                reason: Some(admin.action.clone()),
                ..nothing
            }),
            Event::Suppressed(noise) => Some(Self {
                reason: Some(noise.reason.clone()),
                source_ip: Some(noise.network.clone()),
                ..nothing
            }),
            Event::Start(_) | Event::Stop(_) => Some(nothing),
        }
    }

    fn of_decision(decision: &Decision) -> Option<Self> {
        let who = decision.principal.as_ref();
        let grant = decision.grant.as_ref();
        let user = who.and_then(|who| who.user.as_ref());
        Some(Self {
            request: Some(decision.request.to_string()),
            decision: Some(decision.decision.as_str()),
            reason: Some(decision.reason.clone().into_owned()),
            user: user
                .map(|user| Uuid::try_parse(user.as_str()))
                .transpose()
                .ok()?
                .map(|user| user.to_string()),
            issuer: who.map(|who| who.issuer.to_string()),
            subject: who.map(|who| who.subject.to_string()),
            auth_method: who.map(|who| who.method.as_str()),
            client: who.and_then(|who| who.client.as_ref()).map(ToString::to_string),
            key: who.and_then(|who| who.key.as_ref()).map(ToString::to_string),
            server: decision.server.as_ref().map(ToString::to_string),
            method: Some(decision.method.clone().into_owned()),
            tool: decision.tool.clone().or_else(|| decision.target.as_deref().map(truncated)),
            policies: Some(serde_json::json!(decision.policies).to_string()),
            policy_set: Some(decision.policy_set.as_bytes().to_vec()),
            grant_seq: grant.map(|grant| grant.seq),
            grant_age_ms: grant.map(|grant| i64::try_from(grant.age_ms)).transpose().ok()?,
            source_ip: Some(decision.source_ip.clone()),
            latency_us: Some(i64::try_from(decision.took_us).ok()?),
            ending: None,
            status: None,
        })
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
        ];
        texts
            .into_iter()
            .flatten()
            .all(|text| text.len() <= LONGEST && !text.contains('\0'))
    }
}

/// As much as a column holds. The record has the rest.
fn truncated(text: &str) -> String {
    let longest = LONGEST - 8; // leaves room for a character that is longer than one byte
    let fits = text.char_indices().map(|(at, _)| at).take_while(|at| *at <= longest).last();
    match text.len() <= LONGEST {
        true => text.to_owned(),
        false => text[..fits.unwrap_or(0)].to_owned(),
    }
}

/// Years 1970 to 9999, which both engines can hold and print.
fn storable(at: Timestamp) -> Option<i64> {
    (0..253_402_300_800_000_000).contains(&at.micros()).then(|| at.micros())
}
