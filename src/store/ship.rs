//! Records of the journal into `audit_trail`: a batch in one transaction, each record once however often it is sent.
//! Every column is derived from the record's bytes; what cannot be a column goes in as the bytes alone.

use super::bulk::{Bulk, BulkColumn, BulkRow, Cell, CellType};
use super::changes::cover_shipped;
use super::engine::{Sql, Tx, args};
use super::record_columns::{OPAQUE, RecordColumns};
use super::{Store, StoreError};
use crate::domain::{AdminAction, Event, Record, SealedRecord};
use std::sync::LazyLock;

/// What became of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shipped {
    /// Rows that were not there before; the others of the batch were.
    pub inserted: u64,
    /// Rows of it that hold their bytes alone.
    pub opaque: u64,
}

const WIDTH: usize = 31;

const fn column(name: &'static str, holds: CellType) -> BulkColumn {
    BulkColumn {
        name,
        holds,
        postgres: "",
    }
}

const fn made(name: &'static str, holds: CellType, postgres: &'static str) -> BulkColumn {
    BulkColumn { name, holds, postgres }
}

impl BulkRow<WIDTH> for RecordColumns<'_> {
    const TABLE: &'static str = "audit_trail";
    const KEY: &'static str = "incarnation, seq";
    const COLUMNS: [BulkColumn; WIDTH] = [
        column("incarnation", CellType::Bytes),
        column("seq", CellType::Int),
        made("occurred_at", CellType::Int, "at_micros(r.occurred_at)"),
        // a record that names no environment belongs to the one this login is bound to; on SQLite to that of its journal
        made(
            "environment",
            CellType::Text,
            "coalesce(r.environment, (environments_of(current_user))[1], 'unknown')",
        ),
        column("kind", CellType::Text),
        made("request_id", CellType::Text, "r.request_id::uuid"),
        column("decision", CellType::Text),
        column("reason", CellType::Text),
        made("user_id", CellType::Text, "r.user_id::uuid"),
        column("issuer", CellType::Text),
        column("subject", CellType::Text),
        column("auth_method", CellType::Text),
        column("client_id", CellType::Text),
        column("key_id", CellType::Text),
        column("server_name", CellType::Text),
        column("method", CellType::Text),
        column("tool_name", CellType::Text),
        made("policies", CellType::Text, "r.policies::jsonb"),
        column("policy_set", CellType::Bytes),
        column("grant_seq", CellType::Int),
        column("grant_age_ms", CellType::Int),
        column("source_ip", CellType::Text),
        column("ending", CellType::Text),
        column("status", CellType::Int),
        column("latency_us", CellType::Int),
        column("executed", CellType::Text),
        column("actor", CellType::Text),
        column("claimed_by", CellType::Text),
        column("bytes", CellType::Bytes),
        column("leaf", CellType::Bytes),
        column("head", CellType::Bytes),
    ];

    fn cells(&self) -> [Cell<'_>; WIDTH] {
        let derived = &self.derived;
        [
            Cell::Bytes(&self.sealed.incarnation.0),
            Cell::Int(i64::try_from(self.sealed.seq).unwrap_or(i64::MAX)),
            Cell::Int(self.at),
            Cell::text(self.environment.as_deref()),
            Cell::Text(self.kind),
            Cell::text(derived.request.as_deref()),
            Cell::text(derived.decision),
            Cell::text(derived.reason.as_deref()),
            Cell::text(derived.user.as_deref()),
            Cell::text(derived.issuer.as_deref()),
            Cell::text(derived.subject.as_deref()),
            Cell::text(derived.auth_method),
            Cell::text(derived.client.as_deref()),
            Cell::text(derived.key.as_deref()),
            Cell::text(derived.server.as_deref()),
            Cell::text(derived.method.as_deref()),
            Cell::text(derived.tool.as_deref()),
            Cell::text(derived.policies),
            Cell::bytes(derived.policy_set.as_ref().map(|digest| &digest.as_bytes()[..])),
            Cell::int(derived.grant_seq),
            Cell::int(derived.grant_age_ms),
            Cell::text(derived.source_ip.as_deref()),
            Cell::text(derived.ending),
            Cell::int(derived.status),
            Cell::int(derived.latency_us),
            Cell::text(derived.executed),
            Cell::text(derived.actor.as_deref()),
            Cell::text(derived.claimed_by.as_deref()),
            Cell::Bytes(&self.sealed.bytes),
            Cell::Bytes(self.sealed.leaf.as_bytes()),
            Cell::Bytes(self.sealed.head.as_bytes()),
        ]
    }
}

/// Half of all rows are outcomes, and nearly all others are decisions.
static AUDIT_TRAIL: LazyLock<Bulk> = LazyLock::new(|| {
    let outcome = [
        "incarnation",
        "seq",
        "occurred_at",
        "environment",
        "kind",
        "request_id",
        "ending",
        "status",
        "latency_us",
        "executed",
        "bytes",
        "leaf",
        "head",
    ];
    Bulk::new::<WIDTH, RecordColumns>(&[&outcome])
});

const MICROS_OF_DAY: i64 = 86_400_000_000;

/// The journal forgets what was committed, so the commit must have reached the disk whatever the database's own setting is.
pub(super) const DURABLE_COMMIT: Sql = Sql::of_postgres(
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
        let mut rows: Vec<RecordColumns> = records.iter().map(RecordColumns::of).collect();
        let environment = rows.iter().find_map(|row| row.environment.clone());
        rows.iter_mut()
            .for_each(|row| row.environment = row.environment.take().or_else(|| environment.clone()));
        let newest = rows.iter().map(|row| row.at).max().unwrap_or_default();
        if let Store::Postgres(engine) = self {
            engine.keep_partitions(newest / MICROS_OF_DAY).await;
        }
        let shipped = match self.ship_by(&mut rows, insert).await {
            Err(StoreError::Unstorable { .. }) => self.ship_by(&mut rows, one_by_one).await?,
            shipped => shipped?,
        };
        if let Store::Postgres(engine) = self {
            engine.keep_statistics(shipped.inserted).await;
        }
        Ok(shipped)
    }

    /// One transaction.
    async fn ship_by<'r>(
        &self,
        rows: &mut [RecordColumns<'r>],
        insert: impl AsyncFnOnce(&mut Tx, &[RecordColumns<'r>]) -> Result<Shipped, StoreError>,
    ) -> Result<Shipped, StoreError> {
        let mut tx = self.write().await?;
        match self {
            Store::Postgres(_) => drop(tx.fetch(&DURABLE_COMMIT, &[]).await?),
            Store::Sqlite(_) => name_environments(&mut tx, rows).await?,
        }
        let shipped = insert(&mut tx, rows).await?;
        cover_shipped(&mut tx, &with_changes(rows)).await?;
        tx.commit().await?;
        Ok(shipped)
    }
}

/// The records among these that say which changes of the store their instance made.
fn with_changes<'a>(rows: &[RecordColumns<'a>]) -> Vec<(&'a SealedRecord, AdminAction)> {
    let admin = rows.iter().filter(|row| row.kind == "admin").map(|row| row.sealed);
    admin
        .filter_map(|record| match serde_json::from_slice::<Record>(&record.bytes).ok()?.event {
            Event::Admin(admin) if !admin.changes.is_empty() => Some((record, admin)),
            _ => None,
        })
        .collect()
}

/// Rows whose records name no environment get that of their journal.
async fn name_environments(tx: &mut Tx, rows: &mut [RecordColumns<'_>]) -> Result<(), StoreError> {
    const OF_JOURNAL: Sql = Sql::same("SELECT environment FROM audit_trail WHERE incarnation = $1 ORDER BY seq LIMIT 1");
    for row in rows.iter_mut().filter(|row| row.environment.is_none()) {
        let first = tx.fetch_one(&OF_JOURNAL, args![&row.sealed.incarnation.0[..]]).await?;
        let known = first.map(|first| first.get::<String>("environment")).transpose()?;
        row.environment = Some(known.map_or("unknown".into(), Into::into));
    }
    Ok(())
}

async fn insert(tx: &mut Tx, rows: &[RecordColumns<'_>]) -> Result<Shipped, StoreError> {
    Ok(shipped(tx.insert_bulk(&AUDIT_TRAIL, rows).await?, rows))
}

/// The database refused a value in one of these rows, and will again: that row goes in as its bytes alone.
async fn one_by_one(tx: &mut Tx, rows: &[RecordColumns<'_>]) -> Result<Shipped, StoreError> {
    let mut all = Shipped::default();
    for row in rows {
        let mut one = std::slice::from_ref(row);
        let inserted = match tx.try_insert_bulk(&AUDIT_TRAIL, one).await {
            Err(StoreError::Unstorable { what, .. }) => {
                tracing::warn!(incarnation = %row.sealed.incarnation, seq = row.sealed.seq, what, "an audit record is stored as bytes alone");
                let bare = [opaque(row)];
                let inserted = tx.insert_bulk(&AUDIT_TRAIL, &bare).await?;
                all.opaque += 1;
                one = &[];
                inserted
            }
            inserted => inserted?,
        };
        let one = shipped(inserted, one);
        all.inserted += one.inserted;
        all.opaque += one.opaque;
    }
    Ok(all)
}

fn shipped(inserted: u64, rows: &[RecordColumns<'_>]) -> Shipped {
    let opaque = rows.iter().filter(|row| row.kind == OPAQUE).count();
    Shipped {
        inserted,
        opaque: u64::try_from(opaque).unwrap_or(u64::MAX),
    }
}

fn opaque<'a>(row: &RecordColumns<'a>) -> RecordColumns<'a> {
    let bare = RecordColumns::opaque(row.sealed);
    let environment = bare.environment.clone().or_else(|| row.environment.clone());
    RecordColumns { environment, ..bare }
}
