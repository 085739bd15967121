//! What is recorded where an instance starts although its journal and the audit trail do not agree.

use super::{EnvironmentName, Incarnation, InstanceId, Timestamp};
use serde::{Deserialize, Serialize};

/// The journal and the audit trail did not agree at a start, and the operator let the instance start all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    pub at: Timestamp,
    pub environment: EnvironmentName,
    pub instance_id: InstanceId,
    /// What was found, as the operator was told.
    pub found: String,
    pub missing: Vec<MissingRecords>,
    /// Records that were marked as shipped and are shipped again.
    pub shipped_again: u64,
    /// The operating system's user and the host of the process that was started with `--accept-gap`.
    pub accepted_by: String,
}

/// Records that are not, or not as they were written, in both the journal and the trail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingRecords {
    pub incarnation: Incarnation,
    pub from: u64,
    /// The last one; `None` if nobody knows how many there were.
    pub to: Option<u64>,
}

impl MissingRecords {
    pub fn covers(&self, incarnation: Incarnation, seq: u64) -> bool {
        self.incarnation == incarnation && self.from <= seq && self.to.is_none_or(|to| seq <= to)
    }
}
