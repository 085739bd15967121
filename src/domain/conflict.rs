//! What is recorded where the audit trail holds another row than ours. Finds none: the shipper does.

use super::{Digest, EnvironmentName, Incarnation, Timestamp};
use serde::{Deserialize, Serialize};

/// The audit trail holds a row that this journal did not write, under the number of one of its records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    pub at: Timestamp,
    pub environment: EnvironmentName,
    /// The record; where records are only counted, the first of them.
    #[serde(rename = "of")]
    pub incarnation: Incarnation,
    pub seq: u64,
    pub leaf: Digest,
    /// The leaf of the other row, if it has one and this login may see it.
    pub found: Option<Digest>,
    /// Whether the record itself is in the trail too, beside the other row.
    pub beside: bool,
    /// The record's bytes where it is not: all of them, or this `part` (from 1) of so many `parts`.
    pub record: Option<String>,
    pub part: u32,
    pub parts: u32,
    /// How many conflict records that carried these bytes before were displaced in the same way.
    pub again: u32,
    /// With neither `record` nor `beside`: more records were displaced than a journal carries. So many, up to the seq `through`.
    pub count: u64,
    pub through: u64,
}
