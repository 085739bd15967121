//! The audit trail as people ask it: who did what, when, what was decided and why, and how it ended.
//! What is shown is read from the recorded bytes; columns only find the rows.

use super::audit_changes::{AuditChange, covered_rows};
use super::engine::{ComposedSql, Row, Sql, args};
use super::{Store, StoreError};
use crate::domain::{
    AuthMethod, ClientId, Conflict, CutBy, Decision, DecisionKind, Digest, EnvironmentName, Event, Executed, GrantUsed,
    Incarnation, InputsKept, Issuer, KeyId, Outcome, OutcomeKind, PolicyId, Record, RequestId, RoleName, Scope, SealedRecord,
    Subject, Suppressed, Timestamp, ToolClass, UserId,
};
use std::borrow::Cow;

/// Which rows. Everything that is given must hold.
#[derive(Debug, Clone)]
pub struct AuditFilter {
    pub environment: EnvironmentName,
    pub kind: AuditKind,
    /// A user id, an e-mail address or a subject.
    pub user: Option<String>,
    pub server: Option<String>,
    pub tool: Option<String>,
    /// A URI or a prompt.
    pub target: Option<String>,
    pub method: Option<String>,
    pub decision: Option<DecisionKind>,
    pub reason: Option<String>,
    pub request: Option<RequestId>,
    /// From this moment on.
    pub since: Option<Timestamp>,
    /// Before this moment.
    pub until: Option<Timestamp>,
    /// At most 10,000.
    pub limit: u32,
    /// Oldest first. Otherwise newest first.
    pub ascending: bool,
}

/// Which kind of record; `Any` mixes them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AuditKind {
    #[default]
    Decision,
    Outcome,
    Policy,
    /// Also what administrators changed in the store.
    Admin,
    Suppressed,
    Conflict,
    Start,
    Gap,
    Stop,
    Opaque,
    Any,
}

/// One row; for a decision with its outcome. What a kind does not have is `None` or empty.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct AuditRow {
    pub incarnation: Incarnation,
    pub seq: u64,
    #[serde(serialize_with = "super::rfc3339")]
    pub at: Timestamp,
    pub environment: String,
    pub kind: String,
    pub decision: Option<DecisionKind>,
    /// A decision's reason code, an administrator's action, how a policy set fared.
    pub reason: Option<String>,
    pub detail: Option<String>,
    pub request: Option<RequestId>,
    pub user: Option<UserId>,
    pub email: Option<String>,
    pub issuer: Option<Issuer>,
    pub subject: Option<Subject>,
    pub auth_method: Option<AuthMethod>,
    /// Of the credential: enough to tell two apart.
    pub fingerprint: Option<String>,
    pub client: Option<ClientId>,
    pub key: Option<KeyId>,
    pub source_ip: Option<String>,
    pub server: Option<String>,
    pub method: Option<String>,
    pub tool: Option<String>,
    /// What else was acted upon: a URI, a prompt, what a stream was asked to tell of.
    pub target: Option<String>,
    /// What `decide` said, where that is not the reason.
    pub decided: Option<String>,
    /// The caller's roles by the store and by the token, and the token's claims that policies see.
    pub roles: Vec<RoleName>,
    pub token_roles: Vec<RoleName>,
    pub tenant: Option<String>,
    pub assurance: Option<String>,
    /// The class of the pinned tool.
    pub class: Option<ToolClass>,
    /// The record was cut, so that its decision cannot be made again.
    pub cut: bool,
    pub policies: Vec<PolicyId>,
    pub errors: Vec<String>,
    /// The caller's effective scopes, and those that the call needed where some were missing.
    pub scopes_held: Vec<Scope>,
    pub scopes_needed: Vec<Scope>,
    /// What is kept of the arguments, and under which version of the secret.
    pub inputs: Option<InputsKept>,
    pub inputs_key: Option<u32>,
    pub args_digest: Option<Digest>,
    pub args: Option<String>,
    pub policy_set: Option<Digest>,
    pub catalogue: Option<Digest>,
    pub grant: Option<GrantUsed>,
    pub session: Option<String>,
    pub trace: Option<String>,
    /// From the first byte of the message to the decision.
    pub took_us: Option<u64>,
    pub outcome: Option<AuditOutcome>,
    /// Who made a change: user and host of a command, or the database's login of another program.
    pub actor: Option<String>,
    /// Who they say they are.
    pub claimed_by: Option<String>,
    /// Changes of the store, each with the values before and after.
    pub changes: Vec<AuditChange>,
    /// No record covers this change: another program than Guardian made it.
    pub unhashed: bool,
    /// When the database took the row, and from which login.
    #[serde(serialize_with = "super::rfc3339")]
    pub recorded_at: Timestamp,
    pub recorded_by: String,
}

/// How a permitted call ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct AuditOutcome {
    #[serde(serialize_with = "super::rfc3339")]
    pub at: Timestamp,
    #[serde(rename = "ending")]
    pub kind: OutcomeKind,
    /// Whether the tool may have run.
    pub executed: Executed,
    /// Why Guardian ended the call, if it did.
    pub by: Option<CutBy>,
    pub detail: Option<String>,
    pub status: Option<u16>,
    pub latency_us: u64,
    pub bytes: u64,
    pub recovered: bool,
}

const MAX_ROWS: u32 = 10_000;

/// The `+` keeps SQLite, which has no statistics, from reading all outcomes there are for each row.
const SELECT: Sql = Sql {
    postgres: "SELECT d.incarnation, d.seq, micros(d.occurred_at) AS occurred_at, micros(d.recorded_at) AS recorded_at,
                 d.recorded_by::text AS recorded_by, d.environment, d.kind, d.bytes, d.reason, d.user_id::text AS user_id,
                 d.server_name, d.method, d.change::text AS change, d.actor, d.claimed_by,
                 d.bytes IS NULL AND EXISTS (SELECT FROM recorded_changes c WHERE c.seq = d.seq) AS unhashed,
                 CASE WHEN d.kind = 'admin' AND d.bytes IS NOT NULL THEN
                   (SELECT json_agg(json_build_object('seq', a.seq, 'relation', a.method, 'op', a.reason, 'server', a.server_name,
                                                      'change', a.change) ORDER BY a.seq)::text
                      FROM recorded_changes c JOIN audit_trail a
                        ON a.incarnation = '\\x00000000000000000000000000000000' AND a.seq = c.seq AND a.bytes IS NULL
                     WHERE c.incarnation = d.incarnation AND c.record = d.seq) END AS covered,
                 (SELECT u.email FROM users u WHERE u.environment = d.environment AND u.id = d.user_id) AS email,
                 CASE WHEN d.kind = 'decision' THEN
                   (SELECT o.bytes FROM audit_trail o WHERE o.request_id = d.request_id AND o.environment = d.environment
                      AND o.kind = 'outcome' ORDER BY o.occurred_at LIMIT 1) END AS outcome
               FROM audit_trail d WHERE d.environment = ?",
    sqlite: "SELECT d.incarnation, d.seq, d.occurred_at, d.recorded_at, d.recorded_by, d.environment, d.kind, d.bytes, d.reason,
               d.user_id, d.server_name, d.method, d.change, d.actor, d.claimed_by,
               d.bytes IS NULL AND EXISTS (SELECT 1 FROM recorded_changes c WHERE c.seq = d.seq) AS unhashed,
               CASE WHEN d.kind = 'admin' AND d.bytes IS NOT NULL THEN
                 (SELECT json_group_array(json_object('seq', a.seq, 'relation', a.method, 'op', a.reason, 'server', a.server_name,
                                                      'change', json(a.change)))
                    FROM recorded_changes c JOIN audit_trail a
                      ON a.incarnation = zeroblob(16) AND a.seq = c.seq AND a.bytes IS NULL
                   WHERE c.incarnation = d.incarnation AND c.record = d.seq) END AS covered,
               (SELECT u.email FROM users u WHERE u.environment = d.environment AND u.id = d.user_id) AS email,
               CASE WHEN d.kind = 'decision' THEN
                 (SELECT o.bytes FROM audit_trail o WHERE o.request_id = d.request_id AND +o.environment = d.environment
                    AND +o.kind = 'outcome' ORDER BY o.occurred_at LIMIT 1) END AS outcome
             FROM audit_trail d WHERE d.environment = ?",
};

const BYTES: Sql = Sql::same(
    "SELECT incarnation, seq, bytes, leaf, head FROM audit_trail
     WHERE environment = $1 AND incarnation = $2 AND seq >= $3 AND bytes IS NOT NULL ORDER BY seq LIMIT $4",
);

const INCARNATIONS: Sql = Sql::same(
    "SELECT incarnation, count(*) AS records, min(seq) AS first, max(seq) AS last FROM audit_trail
     WHERE environment = $1 AND bytes IS NOT NULL GROUP BY incarnation ORDER BY incarnation",
);

/// A row that a record covers is told by that record, as long as the record is there.
const TOLD_ONCE: Sql = Sql::same(
    " AND NOT (d.bytes IS NULL AND EXISTS (SELECT 1 FROM recorded_changes c JOIN audit_trail r
        ON r.incarnation = c.incarnation AND r.seq = c.record WHERE c.seq = d.seq))",
);

impl AuditFilter {
    /// The newest 50 decisions.
    pub fn new(environment: EnvironmentName) -> Self {
        Self {
            environment,
            kind: AuditKind::Decision,
            user: None,
            server: None,
            tool: None,
            target: None,
            method: None,
            decision: None,
            reason: None,
            request: None,
            since: None,
            until: None,
            limit: 50,
            ascending: false,
        }
    }

    fn compose(&self) -> ComposedSql {
        let mut sql = ComposedSql::default();
        sql.push_with(SELECT, self.environment.as_str())
            .push(Sql::same(self.kind.condition()));
        if matches!(self.kind, AuditKind::Admin | AuditKind::Any) {
            sql.push(TOLD_ONCE);
        }
        if let Some(user) = &self.user {
            push_user(&mut sql, user);
        }
        let texts = [
            (" AND d.server_name = ?", &self.server),
            // a prompt may have the name of a tool
            (
                " AND d.tool_name = ? AND d.method NOT IN ('prompts/get', 'completion/complete')",
                &self.tool,
            ),
            (" AND d.tool_name = ? AND d.method <> 'tools/call'", &self.target),
            (" AND d.method = ?", &self.method),
            (" AND d.reason = ?", &self.reason),
        ];
        for (part, text) in texts {
            if let Some(text) = text {
                sql.push_with(Sql::same(part), text.as_str());
            }
        }
        if let Some(decision) = self.decision {
            sql.push(Sql::same(match decision {
                DecisionKind::Allow => " AND d.decision = 'allow'",
                DecisionKind::Deny => " AND d.decision = 'deny'",
            }));
        }
        if let Some(request) = self.request {
            sql.push_with(
                Sql::each(" AND d.request_id = ?::uuid", " AND d.request_id = ?"),
                request.to_string(),
            );
        }
        self.push_times(&mut sql);
        sql
    }

    fn push_times(&self, sql: &mut ComposedSql) {
        if let Some(since) = self.since {
            sql.push_with(
                Sql::each(" AND d.occurred_at >= at_micros(?)", " AND d.occurred_at >= ?"),
                since.micros(),
            );
        }
        if let Some(until) = self.until {
            sql.push_with(
                Sql::each(" AND d.occurred_at < at_micros(?)", " AND d.occurred_at < ?"),
                until.micros(),
            );
        }
        sql.push(Sql::same(match self.ascending {
            true => " ORDER BY d.occurred_at, d.incarnation, d.seq",
            false => " ORDER BY d.occurred_at DESC, d.incarnation DESC, d.seq DESC",
        }));
        sql.push_with(Sql::same(" LIMIT ?"), i64::from(self.limit.clamp(1, MAX_ROWS)));
    }
}

fn push_user(sql: &mut ComposedSql, user: &str) {
    match uuid::Uuid::try_parse(user) {
        Ok(id) => sql.push_with(Sql::each(" AND d.user_id = ?::uuid", " AND d.user_id = ?"), id.to_string()),
        Err(_) => {
            let part = " AND (d.subject = ? OR d.user_id IN
                         (SELECT u.id FROM users u WHERE u.environment = d.environment AND u.email = ?))";
            sql.push_with(Sql::same(part), user)
        }
    };
}

impl AuditKind {
    // literals, so that the planner can use the indexes made for one kind
    const fn condition(self) -> &'static str {
        match self {
            Self::Decision => " AND d.kind = 'decision'",
            Self::Outcome => " AND d.kind = 'outcome'",
            Self::Policy => " AND d.kind = 'policy'",
            Self::Admin => " AND d.kind = 'admin'",
            Self::Suppressed => " AND d.kind = 'suppressed'",
            Self::Conflict => " AND d.kind = 'conflict'",
            Self::Start => " AND d.kind = 'start'",
            Self::Gap => " AND d.kind = 'gap'",
            Self::Stop => " AND d.kind = 'stop'",
            Self::Opaque => " AND d.kind = 'opaque'",
            Self::Any => "",
        }
    }
}

/// How much of one incarnation the store holds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct AuditSpan {
    pub incarnation: Incarnation,
    pub records: u64,
    pub first: u64,
    pub last: u64,
}

impl Store {
    pub async fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>, StoreError> {
        let sql = filter.compose();
        let rows = self.query(&sql, &sql.args).await?;
        rows.iter().map(AuditRow::of).collect()
    }

    /// The records of one incarnation as they were shipped, from a number on, in order.
    pub async fn audit_bytes(
        &self,
        env: &EnvironmentName,
        of: Incarnation,
        from: u64,
        limit: u32,
    ) -> Result<Vec<SealedRecord>, StoreError> {
        let from = i64::try_from(from).unwrap_or(i64::MAX);
        let limit = i64::from(limit.clamp(1, MAX_ROWS));
        let rows = self.query(&BYTES, args![env.as_str(), &of.0[..], from, limit]).await?;
        rows.iter().map(sealed_record).collect()
    }

    /// Which incarnations there are records of, and from where to where.
    pub async fn audit_incarnations(&self, env: &EnvironmentName) -> Result<Vec<AuditSpan>, StoreError> {
        let rows = self.query(&INCARNATIONS, args![env.as_str()]).await?;
        let span = |row: &Row| {
            Ok(AuditSpan {
                incarnation: Incarnation(fixed(row, "incarnation")?),
                records: count(row, "records")?,
                first: count(row, "first")?,
                last: count(row, "last")?,
            })
        };
        rows.iter().map(span).collect()
    }
}

fn sealed_record(row: &Row) -> Result<SealedRecord, StoreError> {
    Ok(SealedRecord {
        incarnation: Incarnation(fixed(row, "incarnation")?),
        seq: count(row, "seq")?,
        bytes: row.get::<Vec<u8>>("bytes")?.into(),
        leaf: Digest::from_bytes(fixed(row, "leaf")?),
        head: Digest::from_bytes(fixed(row, "head")?),
    })
}

impl AuditRow {
    fn of(row: &Row) -> Result<Self, StoreError> {
        let bare = Self::bare(row)?;
        let bytes: Option<Vec<u8>> = row.get("bytes")?;
        let Some(bytes) = bytes else { return bare.with_change(row) };
        let outcome = row.get::<Option<Vec<u8>>>("outcome")?.and_then(|bytes| event_of(&bytes));
        let covered = covered_rows(row)?;
        let shown = match event_of(&bytes) {
            Some(Event::Admin(admin)) => bare.with_admin(admin, &covered),
            _ if !covered.is_empty() => bare.with_covered(&covered, Vec::new()),
            Some(Event::Decision(decision)) => bare.with_decision(*decision),
            Some(Event::Outcome(outcome)) => Self {
                request: Some(outcome.request),
                outcome: Some(outcome.into()),
                ..bare
            },
            Some(Event::Policy(change)) => Self {
                reason: Some(if change.rejected.is_some() { "rejected" } else { "in_force" }.to_owned()),
                detail: change.rejected,
                policy_set: Some(change.policy_set),
                catalogue: Some(change.catalogue),
                ..bare
            },
            Some(Event::Suppressed(suppressed)) => bare.with_suppressed(suppressed),
            Some(Event::Conflict(conflict)) => {
                let detail = Some(told_of(&conflict));
                Self {
                    reason: Some(if conflict.beside { "row_beside" } else { "row_in_place" }.to_owned()),
                    detail,
                    ..bare
                }
            }
            Some(Event::Start(start)) => Self {
                detail: Some(format!("{} on {}", start.version, start.instance)),
                ..bare
            },
            Some(Event::Gap(gap)) => Self {
                detail: Some(format!("{}; accepted by {}", gap.found, gap.accepted_by)),
                ..bare
            },
            Some(Event::Stop(_)) | None => bare,
        };
        Ok(match outcome {
            Some(Event::Outcome(outcome)) => Self {
                outcome: Some(outcome.into()),
                ..shown
            },
            _ => shown,
        })
    }

    fn bare(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            incarnation: Incarnation(fixed(row, "incarnation")?),
            seq: count(row, "seq")?,
            at: Timestamp::from_micros(row.get("occurred_at")?),
            environment: row.get("environment")?,
            kind: row.get("kind")?,
            email: row.get("email")?,
            recorded_at: Timestamp::from_micros(row.get("recorded_at")?),
            recorded_by: row.get("recorded_by")?,
            decision: None,
            reason: None,
            detail: None,
            request: None,
            user: None,
            issuer: None,
            subject: None,
            auth_method: None,
            fingerprint: None,
            client: None,
            key: None,
            source_ip: None,
            server: None,
            method: None,
            tool: None,
            target: None,
            policies: Vec::new(),
            errors: Vec::new(),
            scopes_held: Vec::new(),
            scopes_needed: Vec::new(),
            inputs: None,
            inputs_key: None,
            decided: None,
            roles: Vec::new(),
            token_roles: Vec::new(),
            tenant: None,
            assurance: None,
            class: None,
            cut: false,
            args_digest: None,
            args: None,
            policy_set: None,
            catalogue: None,
            grant: None,
            session: None,
            trace: None,
            took_us: None,
            outcome: None,
            actor: None,
            claimed_by: None,
            changes: Vec::new(),
            unhashed: false,
        })
    }

    fn with_decision(self, decision: Decision) -> Self {
        let who = decision.principal;
        let who = who.as_deref();
        Self {
            decided: decision.decided.map(Cow::into_owned),
            roles: who.map(|who| who.roles.clone()).unwrap_or_default(),
            token_roles: who.map(|who| who.token_roles.clone()).unwrap_or_default(),
            tenant: who.and_then(|who| who.tenant.clone()),
            assurance: who.and_then(|who| who.assurance.clone()),
            class: decision.class,
            cut: decision.cut,
            decision: Some(decision.decision),
            reason: Some(decision.reason.into_owned()),
            detail: decision.detail,
            request: Some(decision.request),
            user: who.and_then(|who| who.user.clone()),
            issuer: who.map(|who| who.issuer.clone()),
            subject: who.map(|who| who.subject.clone()),
            auth_method: who.map(|who| who.method),
            fingerprint: who.map(|who| who.fingerprint.clone()),
            client: who.and_then(|who| who.client.clone()),
            key: who.and_then(|who| who.key.clone()),
            source_ip: Some(decision.source_ip),
            server: decision.server.map(|server| server.to_string()),
            method: Some(decision.method.into_owned()),
            tool: decision.tool,
            target: decision.target,
            policies: decision.policies,
            errors: decision.errors,
            scopes_held: decision.scopes_held,
            scopes_needed: decision.scopes_needed,
            inputs: decision.inputs,
            inputs_key: decision.inputs_key,
            args_digest: decision.args_digest,
            args: decision.args,
            policy_set: Some(decision.policy_set),
            catalogue: Some(decision.catalogue),
            grant: decision.grant,
            session: decision.session,
            trace: decision.trace,
            took_us: Some(decision.took_us),
            ..self
        }
    }

    fn with_suppressed(self, suppressed: Suppressed) -> Self {
        let whom = match (suppressed.authenticated, &suppressed.principal) {
            (true, None) => ", of several callers",
            (_, Some(_)) | (false, None) => "",
        };
        let who = suppressed.principal;
        Self {
            detail: Some(format!("{} times{whom}", suppressed.count)),
            reason: Some(suppressed.reason),
            user: who.as_ref().and_then(|who| who.user.clone()),
            issuer: who.as_ref().map(|who| who.issuer.clone()),
            subject: who.map(|who| who.subject),
            source_ip: Some(suppressed.network),
            ..self
        }
    }
}

impl From<Outcome> for AuditOutcome {
    fn from(outcome: Outcome) -> Self {
        Self {
            at: outcome.at,
            kind: outcome.kind,
            executed: outcome.executed,
            by: outcome.by,
            detail: outcome.detail,
            status: outcome.status,
            latency_us: outcome.latency_us,
            bytes: outcome.bytes,
            recovered: outcome.recovered,
        }
    }
}

fn event_of(bytes: &[u8]) -> Option<Event> {
    serde_json::from_slice::<Record>(bytes).ok().map(|record| record.event)
}

fn count(row: &Row, column: &'static str) -> Result<u64, StoreError> {
    Ok(u64::try_from(row.get::<i64>(column)?).unwrap_or(0))
}

fn fixed<const N: usize>(row: &Row, column: &'static str) -> Result<[u8; N], StoreError> {
    row.get::<Vec<u8>>(column)?
        .try_into()
        .map_err(|_| StoreError::broken("the store", format!("column `{column}` is not {N} bytes long")))
}

/// What a conflict record says, in a sentence.
fn told_of(conflict: &Conflict) -> String {
    let Conflict {
        incarnation,
        seq,
        through,
        ..
    } = conflict;
    match (&conflict.record, conflict.beside) {
        (_, true) => format!("another row stands beside record {seq} of {incarnation}"),
        (Some(_), false) => format!(
            "another row stands in the place of record {seq} of {incarnation}; this carries the record, part {} of {}",
            conflict.part, conflict.parts
        ),
        (None, false) => format!(
            "other rows stand in the place of {} records of {incarnation}, from {seq} to {through}",
            conflict.count
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::{Connection, Executor, Row as _, SqliteConnection};

    #[tokio::test]
    async fn the_outcome_of_a_decision_is_found_by_its_request() {
        let mut store = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        for migration in [
            include_str!("sqlite/0001_guardian.sql"),
            include_str!("sqlite/0003_audit_records.sql"),
            include_str!("sqlite/0004_changes.sql"),
        ] {
            store.execute(migration).await.unwrap();
        }
        let plan = sqlx::query(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {}", SELECT.sqlite)));
        let steps = plan.bind("production").fetch_all(&mut store).await.unwrap();
        let steps: Vec<String> = steps.iter().map(|step| step.get("detail")).collect();
        let outcome = steps.iter().find(|step| step.starts_with("SEARCH o "));
        assert!(outcome.is_some_and(|step| step.contains("audit_request")), "{steps:#?}");
    }
}
