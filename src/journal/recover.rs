//! Recovery at the start: reads the whole folder, cuts off a torn tail, and finds the permits without an outcome.
//!
//! If an acknowledged record cannot be read back, it fails and has changed nothing.

use super::disk::Disk;
use super::error::JournalError;
use super::scan::in_file;
use super::spool::{Shelf, cost};
use super::walk::{Walk, glance};
use super::watermark::Watermark;
use crate::domain::{DecisionKind, Digest, Incarnation, RequestId, SealedRecord};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What recovery found in the folder.
#[derive(Default)]
pub(super) struct Past {
    pub shelf: Shelf,
    /// The last record of the folder: incarnation, seq and head.
    pub last: Option<(Incarnation, u64, Digest)>,
    /// Bytes cut off as a torn tail.
    pub cut: u64,
    /// Permits without an outcome.
    pub open: BTreeSet<RequestId>,
    pub watermark: Option<Watermark>,
    /// Records that are not in the database yet, and their bytes.
    pub unshipped: (u64, u64),
}

/// Reads the folder, repairs its tail, and deletes temporary files.
pub(super) fn recover(disk: &Arc<dyn Disk>) -> Result<Past, JournalError> {
    let mut walk = Walk::new(disk.clone())?;
    let mut past = Past {
        watermark: walk.watermark,
        open: walk
            .segments
            .iter()
            .flat_map(|segment| segment.header.open.iter().copied())
            .collect(),
        ..Past::default()
    };
    let known = |mark: &Watermark| {
        walk.segments
            .iter()
            .any(|segment| segment.header.incarnation == mark.incarnation)
    };
    let mark = past.watermark.filter(known);
    let mut reached = mark.is_none();
    while let Some(record) = walk.next()? {
        let here = mark.filter(|mark| mark.incarnation == record.incarnation);
        reached |= here.is_some();
        past.take(&record, here.map_or(!reached, |mark| record.seq < mark.next));
    }
    past.last = walk
        .ends
        .iter()
        .rev()
        .find(|(_, next, _)| *next > 0)
        .map(|(of, next, head)| (*of, next - 1, *head));
    past.shelf.ends = walk.ends.iter().map(|(incarnation, next, _)| (*incarnation, *next)).collect();
    past.shelf.segments = walk.segments.clone();
    if let Some((cursor, segment)) = walk.tail() {
        let fault = in_file(&**disk, &segment.name);
        past.cut = cursor.remains().map_err(&fault)?;
        cursor.cut().map_err(&fault)?;
    }
    for name in disk
        .list()
        .map_err(in_file(&**disk, ""))?
        .iter()
        .filter(|name| name.ends_with(".tmp"))
    {
        disk.remove(name).map_err(in_file(&**disk, name))?;
    }
    Ok(past)
}

impl Past {
    /// Counts the record if it is unshipped, and notes whether it opens or closes a permit.
    fn take(&mut self, record: &SealedRecord, shipped: bool) {
        if !shipped {
            self.unshipped.0 += 1;
            self.unshipped.1 += cost(record);
        }
        let Some(glance) = glance(record) else { return };
        let Some(request) = glance.request else { return };
        match (glance.decision, glance.ending) {
            (Some(DecisionKind::Allow), _) => _ = self.open.insert(request),
            (_, Some(_)) => _ = self.open.remove(&request),
            _ => {}
        }
    }
}
