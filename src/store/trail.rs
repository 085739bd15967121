//! What a start asks the audit trail, to compare it with the journal. It answers for incarnations and instances that the
//! caller can name; the proxy's login cannot read the trail otherwise.

use super::engine::{Sql, args};
use super::{Store, StoreError};
use crate::domain::{Digest, EnvironmentName, Incarnation, InstanceId, Record, Timestamp};

/// How much of an incarnation is in the trail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrailSpan {
    /// Records of the range that was asked for.
    pub stored: u64,
    /// The last record of the incarnation.
    pub newest: Option<u64>,
}

const SPAN: Sql = Sql {
    postgres: "SELECT stored, newest FROM trail_span($1, $2, $3)",
    sqlite: "SELECT (SELECT count(*) FROM audit_trail WHERE incarnation = $1 AND seq >= $2 AND seq < $3) AS stored,
               (SELECT max(seq) FROM audit_trail WHERE incarnation = $1) AS newest",
};
const HAS: Sql = Sql {
    postgres: "SELECT 1::bigint AS found WHERE trail_has($1, $2, $3, $4)",
    sqlite: "SELECT 1 AS found FROM audit_trail WHERE incarnation = $1 AND seq = $2 AND (leaf = $3 OR head = $4)",
};
const STARTS: Sql = Sql {
    postgres: "SELECT bytes FROM trail_starts($1, $2)",
    sqlite: "SELECT bytes FROM audit_trail WHERE environment = $1 AND kind IN ('start', 'gap')
               AND instr(bytes, CAST($2 AS BLOB)) > 0 ORDER BY occurred_at DESC LIMIT 10000",
};
const KEPT_SINCE: Sql = Sql {
    postgres: "SELECT coalesce(micros(trail_kept_since()), 0) AS since",
    sqlite: "SELECT (SELECT micros FROM clock) - 86400000000 * max(30, CAST(value AS INTEGER)) AS since
             FROM settings WHERE key = 'audit_retention_days'",
};

impl Store {
    pub async fn trail_span(&self, of: Incarnation, from: u64, until: u64) -> Result<TrailSpan, StoreError> {
        let rows = self.query(&SPAN, args![&of.0[..], signed(from), signed(until)]).await?;
        let Some(row) = rows.first() else {
            return Err(StoreError::broken(self.location(), "the audit trail gives no answer"));
        };
        let unsigned = |number: i64| u64::try_from(number).unwrap_or_default();
        Ok(TrailSpan {
            stored: unsigned(row.get("stored")?),
            newest: row.get::<Option<i64>>("newest")?.map(unsigned),
        })
    }

    /// Whether the trail has this record with this leaf or this head.
    pub async fn trail_has(
        &self,
        of: Incarnation,
        seq: u64,
        leaf: Option<&Digest>,
        head: Option<&Digest>,
    ) -> Result<bool, StoreError> {
        let bytes = |digest: Option<&Digest>| digest.map(|digest| digest.as_bytes().to_vec());
        let (leaf, head) = (bytes(leaf), bytes(head));
        let rows = self
            .query(&HAS, args![&of.0[..], signed(seq), leaf.as_deref(), head.as_deref()])
            .await?;
        Ok(!rows.is_empty())
    }

    /// The starts and gaps of this instance, newest first. Rows that are no such records are left out.
    pub async fn trail_starts(&self, env: &EnvironmentName, instance: InstanceId) -> Result<Vec<Record>, StoreError> {
        let rows = self.query(&STARTS, args![env.as_str(), instance.to_string()]).await?;
        let bytes: Vec<Vec<u8>> = rows.iter().map(|row| row.get("bytes")).collect::<Result<_, _>>()?;
        Ok(bytes.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok()).collect())
    }

    /// Rows before this time may be gone by retention.
    pub async fn trail_kept_since(&self) -> Result<Timestamp, StoreError> {
        let rows = self.query(&KEPT_SINCE, args![]).await?;
        let since = rows.first().map(|row| row.get("since")).transpose()?;
        Ok(Timestamp::from_micros(since.unwrap_or(0)))
    }
}

fn signed(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}
