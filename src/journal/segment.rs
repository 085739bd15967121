//! The segment being written: made so that it is whole or not there, filled from front to back.

use super::disk::{Disk, DiskFile, write_whole};
use super::format::SegmentHeader;
use super::scan::{Segment, segment_name};
use std::io;

/// Zeros are written this far ahead, so that most syncs find their blocks allocated and the file's size unchanged. That
/// halves what a sync costs. At its fastest a journal comes this far in some thirty of them.
const AHEAD: usize = 2 * 1024 * 1024;
static ZEROS: [u8; AHEAD] = [0; AHEAD];

pub(super) struct Active {
    file: Box<dyn DiskFile>,
    pub number: u64,
    offset: u64,
    written: u64,
    limit: u64,
}

impl Active {
    /// Written, synced and named before it is used.
    pub fn create(disk: &dyn Disk, header: SegmentHeader, limit: u64) -> io::Result<(Self, Segment)> {
        let name = segment_name(header.number);
        let temporary = format!("{name}.tmp");
        let bytes = header.encode();
        let made = Self::make(disk, &bytes, &temporary, &name);
        let file = made.inspect_err(|_| _ = disk.remove(&temporary))?;
        let active = Self {
            file,
            number: header.number,
            offset: bytes.len() as u64,
            written: bytes.len() as u64,
            limit,
        };
        Ok((active, Segment { name, header }))
    }

    /// Appends a batch and makes it durable. After an error this segment must not be touched again.
    pub fn append(&mut self, batch: &[u8]) -> io::Result<()> {
        let end = self.offset + batch.len() as u64;
        if end > self.written {
            self.write_ahead(end)?;
        }
        write_whole(&*self.file, batch, self.offset)?;
        self.file.sync()?;
        self.offset = end;
        Ok(())
    }

    /// Whether the batch still belongs into this segment. A fresh one takes any.
    pub fn has_room(&self, batch: usize) -> bool {
        self.offset + batch as u64 <= self.limit
    }

    /// Gives back the blocks written ahead; harmless if it fails.
    pub fn trim(&self) {
        let _ = self.file.cut(self.offset);
    }

    fn make(disk: &dyn Disk, bytes: &[u8], temporary: &str, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = disk.create(temporary)?;
        write_whole(&*file, bytes, 0)?;
        file.sync()?;
        disk.rename(temporary, name)?;
        disk.sync_folder()?;
        Ok(file)
    }

    fn write_ahead(&mut self, end: u64) -> io::Result<()> {
        let zeros = usize::try_from(self.limit.saturating_sub(end)).unwrap_or(AHEAD).min(AHEAD);
        match write_whole(&*self.file, &ZEROS[..zeros], end) {
            Ok(()) => self.written = end + zeros as u64,
            // No room for zeros may still be room for the batch.
            Err(error) if is_full(&error) => self.written = end,
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::WriteZero
    )
}
