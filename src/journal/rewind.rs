//! Shipping kept records again: from where, remembered in a small file until it is done, and how far it is.
//!
//! The file outlives a crash in the middle: rows that were shipped after the loss would hide it from whoever looks at the newest row.

use super::disk::{Disk, read_up_to, replace};
use super::spool::{Spool, SpoolReader};
use super::watermark::Watermark;
use crate::domain::{Incarnation, SealedRecord};
use std::io;
use std::sync::Arc;

pub(super) const NAME: &str = "rewind";

/// Where to begin; `None`: with the oldest record that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RewindFrom(pub Option<Watermark>);

impl RewindFrom {
    /// What the file says; one that cannot be read says everything.
    pub fn load(disk: &dyn Disk) -> io::Result<Option<Self>> {
        let file = match disk.open(NAME) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = [0; 64];
        let length = read_up_to(&*file, &mut bytes, 0)?;
        Ok(Some(Self(std::str::from_utf8(&bytes[..length]).ok().and_then(position))))
    }

    pub fn store(&self, disk: &dyn Disk) -> io::Result<()> {
        let text = match self.0 {
            Some(at) => format!("{} {}\n", at.incarnation, at.next),
            None => "oldest\n".to_owned(),
        };
        replace(disk, NAME, text.as_bytes())
    }

    pub fn forget(disk: &dyn Disk) -> io::Result<()> {
        match disk.remove(NAME) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => disk.sync_folder(),
        }
    }
}

fn position(text: &str) -> Option<Watermark> {
    let (incarnation, next) = text.trim_end().split_once(' ')?;
    Some(Watermark {
        incarnation: Incarnation::parse(incarnation)?,
        next: next.parse().ok()?,
    })
}

/// A comparison of kept records with the trail that is under way.
pub(super) struct Rewinding {
    /// The next record to compare; `None`: the oldest.
    at: Option<Watermark>,
    /// What was shipped when it began ends here.
    stop: Watermark,
    from_oldest: bool,
    pub compared: u64,
    pub missing: u64,
    /// The first and the last record that was missing.
    pub lost: Option<[(Incarnation, u64); 2]>,
    /// The oldest record that is kept was missing, and it is not the first that there ever was.
    pub older_lost: bool,
}

impl Rewinding {
    pub fn new(from: RewindFrom, stop: Watermark) -> Self {
        Self {
            at: from.0,
            stop,
            from_oldest: from.0.is_none(),
            compared: 0,
            missing: 0,
            lost: None,
            older_lost: false,
        }
    }

    /// Reads from here to the end of what is to be compared.
    pub fn reader(&self, spool: Arc<Spool>) -> SpoolReader {
        SpoolReader::new(spool, self.at).up_to(self.stop)
    }

    /// Accounts for these records, of which those of `missing` were shipped again. The next one is at `at`.
    pub fn note(&mut self, records: &[SealedRecord], missing: &[SealedRecord], at: Option<Watermark>) {
        let place = |record: &SealedRecord| (record.incarnation, record.seq);
        if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
            let begin = self.lost.map_or(place(first), |[begin, _]| begin);
            self.lost = Some([begin, place(last)]);
            self.older_lost |= self.from_oldest && self.compared == 0 && records.first() == Some(first) && !is_very_first(first);
        }
        self.compared += records.len() as u64;
        self.missing += missing.len() as u64;
        self.at = at;
    }

    /// What was found, as a sentence.
    pub fn told(&self) -> String {
        let Some([(first, from), (last, to)]) = self.lost else {
            return format!("the audit trail has all {} records that are kept", self.compared);
        };
        let older = match self.older_lost {
            true => "; the oldest record that was kept is among them, so older ones may be lost for good",
            false => "",
        };
        format!(
            "the database had lost {} records that it had taken (of {} that were compared, from {first} record {from} to {last} \
             record {to}); they were shipped again{older}",
            self.missing, self.compared
        )
    }
}

/// Whether no record of this journal is older: the START of a first start.
fn is_very_first(record: &SealedRecord) -> bool {
    record.seq == 0 && super::reader::read_summary(record).is_some_and(|start| start.after.is_none())
}
