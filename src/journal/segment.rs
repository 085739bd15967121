//! The segment being written: created atomically under a temporary name, then appended to.

use super::disk::{Disk, DiskFile, write_whole};
use super::format::SegmentHeader;
use super::scan::{Segment, segment_name};
use std::io;

/// Zeros are written this far ahead, so that most syncs find the blocks allocated and the file size unchanged, which
/// halves the cost of a sync. At full speed the journal uses this much in about thirty syncs.
const AHEAD: usize = 2 * 1024 * 1024;
static ZEROS: [u8; AHEAD] = [0; AHEAD];

/// The open segment; `written` is where data and zeros end.
pub(super) struct ActiveSegment {
    file: Box<dyn DiskFile>,
    pub number: u64,
    offset: u64,
    written: u64,
    limit: u64,
}

impl ActiveSegment {
    /// Writes the header to a temporary file, syncs it, renames it, and syncs the folder.
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

    /// Appends a batch and syncs it. After an error this segment must not be touched again.
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

    /// Whether the batch fits under the size limit. A fresh segment is given any batch.
    pub fn has_room(&self, batch: usize) -> bool {
        self.offset + batch as u64 <= self.limit
    }

    /// Cuts off the zeros written ahead. An error is harmless: readers take trailing zeros for the end.
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
            // A disk too full for the zeros may still have room for the batch.
            Err(error) if is_full(&error) => self.written = end,
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Whether there is no room on the disk.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::WriteZero
    )
}
