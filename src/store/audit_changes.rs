//! Changes of the store as the audit trail shows them: told by the rows that triggers wrote, with who made them.

use super::StoreError;
use super::audit::AuditRow;
use super::change_words::RowChange;
use super::changes::summary;
use super::engine::Row;
use crate::domain::{AdminAction, RecordedChange, UserId};

/// One change of a row of the store.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct AuditChange {
    /// The row's number among the database's own.
    pub seq: u64,
    /// In words, such as `granted`.
    pub change: String,
    pub of: String,
    pub old: Option<serde_json::Value>,
    pub new: Option<serde_json::Value>,
}

impl AuditRow {
    pub(super) fn with_admin(self, admin: AdminAction, covered: &[CoveredRow]) -> Self {
        let named = admin.changes.into_iter().map(AuditChange::from).collect();
        let shown = Self {
            reason: Some(admin.action),
            detail: Some(admin.detail),
            actor: admin.actor.map(|actor| actor.to_string()),
            claimed_by: admin.claimed_by,
            user: admin.user,
            server: admin.server,
            ..self
        };
        shown.with_covered(covered, named)
    }

    /// What was changed is told by the rows that the triggers wrote, which nobody can word; a record that covers them says who
    /// did it. What it names besides is told by it alone: its rows are no longer kept, or it covers none of them.
    pub(super) fn with_covered(self, covered: &[CoveredRow], named: Vec<AuditChange>) -> Self {
        if covered.is_empty() {
            return Self { changes: named, ..self };
        }
        let is_covered = |change: &AuditChange| covered.iter().any(|row| row.change.seq == change.seq);
        let mut changes: Vec<AuditChange> = covered.iter().map(|row| row.change.clone()).collect();
        changes.extend(named.into_iter().filter(|change| !is_covered(change)));
        let words = changes.iter().map(|change| change.change.as_str()).collect();
        let details = covered.iter().map(|row| row.detail.as_str()).collect();
        let (words, details) = summary(words, details);
        Self {
            reason: Some(words),
            detail: Some(details),
            changes,
            ..self
        }
    }

    /// The database's own rows have no bytes: what they say stands in their columns.
    pub(super) fn with_change(self, row: &Row) -> Result<Self, StoreError> {
        let change: Option<String> = row.get("change")?;
        let change = change.and_then(|change| serde_json::from_str::<serde_json::Value>(&change).ok());
        let value = |name: &str| {
            change
                .as_ref()
                .and_then(|change| change.get(name))
                .filter(|value| !value.is_null())
        };
        let text = |column| Ok::<_, StoreError>(row.get::<Option<String>>(column)?.unwrap_or_default());
        let (relation, op) = (text("method")?, text("reason")?);
        let server: Option<String> = row.get("server_name")?;
        let told = RowChange {
            relation: &relation,
            op: &op,
            server: server.as_deref(),
            old: value("old"),
            new: value("new"),
        };
        let user: Option<String> = row.get("user_id")?;
        let actor: Option<String> = row.get("actor")?;
        Ok(Self {
            reason: Some(told.words().to_owned()),
            detail: Some(told.detail()),
            user: user.and_then(|user| UserId::parse(&user).ok()),
            server: server.clone(),
            actor: Some(actor.unwrap_or_else(|| self.recorded_by.clone())),
            claimed_by: row.get("claimed_by")?,
            changes: vec![AuditChange {
                seq: self.seq,
                change: told.words().to_owned(),
                of: told.of(),
                old: value("old").cloned(),
                new: value("new").cloned(),
            }],
            unhashed: row.get("unhashed")?,
            ..self
        })
    }
}

/// A row that a trigger wrote and a record covers.
pub(super) struct CoveredRow {
    change: AuditChange,
    detail: String,
}

pub(super) fn covered_rows(row: &Row) -> Result<Vec<CoveredRow>, StoreError> {
    let json: Option<String> = row.get("covered")?;
    let rows: Vec<serde_json::Value> = json.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
    let mut covered: Vec<CoveredRow> = rows.iter().map(CoveredRow::of).collect();
    covered.sort_by_key(|row| row.change.seq);
    Ok(covered)
}

impl CoveredRow {
    fn of(row: &serde_json::Value) -> Self {
        let text = |name: &str| row.get(name).and_then(serde_json::Value::as_str);
        let value = |name: &str| row.pointer(&format!("/change/{name}")).filter(|value| !value.is_null());
        let told = RowChange {
            relation: text("relation").unwrap_or_default(),
            op: text("op").unwrap_or_default(),
            server: text("server"),
            old: value("old"),
            new: value("new"),
        };
        Self {
            change: AuditChange {
                seq: row.get("seq").and_then(serde_json::Value::as_u64).unwrap_or(0),
                change: told.words().to_owned(),
                of: told.of(),
                old: value("old").cloned(),
                new: value("new").cloned(),
            },
            detail: told.detail(),
        }
    }
}

impl From<RecordedChange> for AuditChange {
    fn from(change: RecordedChange) -> Self {
        Self {
            seq: change.seq,
            change: change.change,
            of: change.of,
            old: change.old,
            new: change.new,
        }
    }
}
