//! Compares records with the audit trail, by leaf: which of them are not there, and which share their number with a row that
//! this journal did not write. On Postgres the proxy's login cannot read the trail; a function of the schema compares for it.

use super::engine::{Arg, Row, Sql, args};
use super::{Store, StoreError};
use crate::domain::{Digest, Incarnation, SealedRecord};
use std::collections::BTreeMap;

/// A record that the trail does not simply hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub incarnation: Incarnation,
    pub seq: u64,
    /// Whether the record itself is there.
    pub present: bool,
    /// Rows under its number that hold something else.
    pub others: u64,
    /// The leaf of one of those rows, if it has one and this login may see it.
    pub found: Option<Digest>,
}

impl Difference {
    pub fn place(&self) -> (Incarnation, u64) {
        (self.incarnation, self.seq)
    }

    /// Whether neither the record nor anything else is under its number.
    pub fn is_gone(&self) -> bool {
        !self.present && self.others == 0
    }
}

const COMPARE: Sql = Sql {
    postgres: "SELECT seq, present, others, leaf FROM compare_audit($1, string_to_array($2, ',')::bigint[],
                 ARRAY(SELECT substr($3::bytea, (32 * i + 1)::int, 32) FROM generate_series(0, length($3::bytea) / 32 - 1) AS i ORDER BY i))",
    sqlite: "SELECT seq, CASE WHEN length(leaf) <= 32 THEN leaf END AS leaf FROM audit_trail WHERE incarnation = $1 AND seq BETWEEN $2 AND $3",
};

impl Store {
    /// Compares these records with the trail. A record that is there, alone under its number, is not in the answer.
    pub async fn compare(&self, records: &[SealedRecord]) -> Result<Vec<Difference>, StoreError> {
        let mut incarnations: BTreeMap<Incarnation, BTreeMap<u64, Digest>> = BTreeMap::new();
        for record in records {
            incarnations
                .entry(record.incarnation)
                .or_default()
                .insert(record.seq, record.leaf);
        }
        let mut differences = Vec::new();
        for (incarnation, leaves) in incarnations {
            differences.extend(match self {
                Store::Postgres(_) => self.compared_there(incarnation, &leaves).await?,
                Store::Sqlite(_) => self.compared_here(incarnation, &leaves).await?,
            });
        }
        differences.sort_by_key(|difference| (difference.incarnation, difference.seq));
        Ok(differences)
    }

    async fn compared_there(
        &self,
        incarnation: Incarnation,
        leaves: &BTreeMap<u64, Digest>,
    ) -> Result<Vec<Difference>, StoreError> {
        let seqs: Vec<String> = leaves.keys().map(u64::to_string).collect();
        let packed: Vec<u8> = leaves.values().flat_map(|leaf| *leaf.as_bytes()).collect();
        let asked: &[Arg] = args![&incarnation.0[..], seqs.join(","), &packed[..]];
        let rows = self.query(&COMPARE, asked).await?;
        let difference = |row: &Row| {
            Ok(Difference {
                incarnation,
                seq: u64::try_from(row.get::<i64>("seq")?).unwrap_or(u64::MAX),
                present: row.get("present")?,
                others: u64::try_from(row.get::<i64>("others")?).unwrap_or(0),
                found: row.get::<Option<Vec<u8>>>("leaf")?.and_then(leaf_from),
            })
        };
        rows.iter().map(difference).collect()
    }

    async fn compared_here(
        &self,
        incarnation: Incarnation,
        leaves: &BTreeMap<u64, Digest>,
    ) -> Result<Vec<Difference>, StoreError> {
        let bound = |seq: Option<&u64>| seq.and_then(|seq| i64::try_from(*seq).ok()).unwrap_or(i64::MAX);
        let (first, last) = (bound(leaves.keys().next()), bound(leaves.keys().next_back()));
        let rows = self.query(&COMPARE, args![&incarnation.0[..], first, last]).await?;
        let mut there = BTreeMap::new();
        for row in &rows {
            let seq = u64::try_from(row.get::<i64>("seq")?).unwrap_or(u64::MAX);
            there.insert(seq, row.get::<Option<Vec<u8>>>("leaf")?.and_then(leaf_from));
        }
        let differs = leaves.iter().filter(|(seq, leaf)| there.get(seq) != Some(&Some(**leaf)));
        let difference = differs.map(|(seq, _)| Difference {
            incarnation,
            seq: *seq,
            present: false,
            others: u64::from(there.contains_key(seq)),
            found: there.get(seq).copied().flatten(),
        });
        Ok(difference.collect())
    }
}

fn leaf_from(bytes: Vec<u8>) -> Option<Digest> {
    Some(Digest::from_bytes(bytes.try_into().ok()?))
}
