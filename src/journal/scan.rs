//! Reads a segment back record by record, and checks each record against its checksum and the chain.
//!
//! Reports what it finds and where; whether that is a torn tail or damage, `walk` decides.

use super::disk::{Disk, DiskFile, read_up_to};
use super::error::{Damage, JournalError};
use super::format::{BATCH, BatchHeader, Corruption, FRAME, HEADER, MARK, SegmentHeader, frame_crc, u32_at};
use crate::domain::{Chain, MAX_RECORD, SealedRecord};
use std::io;
use std::path::PathBuf;

const WINDOW: usize = 256 * 1024;

/// A segment on disk, known by its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub name: String,
    pub header: SegmentHeader,
}

/// The file name of a segment; names sort in the order of the numbers.
pub(super) fn segment_name(number: u64) -> String {
    format!("{number:012}.seg")
}

/// All segments in the folder by number, each incarnation's together.
pub(super) fn segments(disk: &dyn Disk) -> Result<Vec<Segment>, JournalError> {
    let mut names: Vec<_> = disk.list().map_err(in_file(disk, ""))?;
    names.retain(|name| name.ends_with(".seg"));
    names.sort_unstable();
    let segments: Vec<_> = names
        .into_iter()
        .map(|name| read_header(disk, name))
        .collect::<Result<_, _>>()?;
    let mut seen = Vec::new();
    for segment in &segments {
        let incarnation = segment.header.incarnation;
        if seen.last() == Some(&incarnation) {
            continue;
        }
        if seen.contains(&incarnation) {
            return Err(damaged(disk, segment, "segments of several incarnations are mixed"));
        }
        seen.push(incarnation);
    }
    Ok(segments)
}

fn read_header(disk: &dyn Disk, name: String) -> Result<Segment, JournalError> {
    let damage = |what: Corruption| {
        JournalError::Damaged(Damage {
            file: disk.path(&name),
            offset: 0,
            seq: 0,
            what: what.to_owned(),
        })
    };
    let file = disk.open(&name).map_err(in_file(disk, &name))?;
    let mut fixed = [0; HEADER];
    if read_up_to(&*file, &mut fixed, 0).map_err(in_file(disk, &name))? < HEADER {
        return Err(damage("the segment header is cut off"));
    }
    let rest = |length: usize| {
        let mut open = vec![0; length];
        let read = read_up_to(&*file, &mut open, HEADER as u64)?;
        Ok((read == length).then_some(open))
    };
    let header = SegmentHeader::decode(&fixed, rest)
        .map_err(in_file(disk, &name))?
        .map_err(damage)?;
    if segment_name(header.number) != name {
        return Err(damage("the file does not bear its segment's number"));
    }
    Ok(Segment { name, header })
}

/// What the cursor found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ScanStep {
    Record(SealedRecord),
    /// Only zeros follow.
    End,
    /// The bytes there are not the next record.
    Bad(Corruption),
}

/// Reads one segment from its beginning.
pub(super) struct SegmentCursor {
    file: Box<dyn DiskFile>,
    pub segment: u64,
    pub offset: u64,
    pub chain: Chain,
    /// Every record below this seq was on disk, according to the batch headers read so far.
    pub durable: u64,
    /// Records and bytes left in the current batch.
    left: (u32, u64),
    window: Vec<u8>,
    window_at: u64,
}

impl SegmentCursor {
    pub fn open(disk: &dyn Disk, segment: &Segment) -> io::Result<Self> {
        let header = &segment.header;
        Ok(Self {
            file: disk.open(&segment.name)?,
            segment: header.number,
            offset: header.len(),
            chain: Chain {
                incarnation: header.incarnation,
                next: header.first_seq,
                head: header.prev,
            },
            durable: header.first_seq,
            left: (0, 0),
            window: Vec::new(),
            window_at: 0,
        })
    }

    /// Reads the next record and moves past it, or says what lies there instead.
    pub fn step(&mut self) -> io::Result<ScanStep> {
        if self.left.0 == 0
            && let Some(end) = self.enter_batch()?
        {
            return Ok(end);
        }
        let head = self.bytes(FRAME)?;
        if head.len() < FRAME || head.iter().all(|byte| *byte == 0) {
            return self.end_or("a record is cut off");
        }
        let (length, crc) = (u32_at(head, 0), u32_at(head, 4));
        let size = FRAME + length as usize;
        if length as usize > MAX_RECORD || size as u64 > self.left.1 {
            return self.end_or("the length of a record is impossible");
        }
        let frame = self.bytes(size)?;
        if frame.len() < size {
            return self.end_or("a record is cut off");
        }
        if frame_crc(length.to_le_bytes(), &frame[FRAME..]) != crc {
            return self.end_or("a record does not match its checksum");
        }
        let at = self.at(size);
        let Some(record) = self.chain.accept(&self.window[at][FRAME..]) else {
            return self.end_or("a record does not follow the one before it");
        };
        self.offset += size as u64;
        self.left = (self.left.0 - 1, self.left.1 - size as u64);
        Ok(ScanStep::Record(record))
    }

    /// Drops what was read ahead, because the file may have grown since.
    pub fn refresh(&mut self) {
        self.window.clear();
    }

    /// The highest `durable` in any batch header from here to the end of the segment; searches every byte for the batch
    /// mark.
    pub fn max_durable_seq(&mut self) -> io::Result<u64> {
        let mut durable = self.durable;
        let mut at = self.offset;
        let mut chunk = vec![0; WINDOW];
        loop {
            let read = read_up_to(&*self.file, &mut chunk, at)?;
            for found in find_marks(&chunk[..read]) {
                if let Some(batch) = BatchHeader::decode(&chunk[found..read], self.segment) {
                    durable = durable.max(batch.durable);
                }
            }
            if read < chunk.len() {
                return Ok(durable);
            }
            // Windows overlap, so that a header across their border is found.
            at += (chunk.len() - BATCH + 1) as u64;
        }
    }

    /// Bytes from here to the last one that is not zero.
    pub fn trailing_bytes(&self) -> io::Result<u64> {
        let mut at = self.offset;
        let mut last = at;
        let mut chunk = vec![0; WINDOW];
        loop {
            let read = read_up_to(&*self.file, &mut chunk, at)?;
            if let Some(found) = chunk[..read].iter().rposition(|byte| *byte != 0) {
                last = at + found as u64 + 1;
            }
            if read < chunk.len() {
                return Ok(last - self.offset);
            }
            at += read as u64;
        }
    }

    /// Truncates the file at the cursor.
    pub fn cut(&self) -> io::Result<()> {
        if self.file.size()? > self.offset {
            self.file.cut(self.offset)
        } else {
            Ok(())
        }
    }

    /// Reads a batch header, if one follows; otherwise says what does.
    fn enter_batch(&mut self) -> io::Result<Option<ScanStep>> {
        let segment = self.segment;
        let Some(batch) = BatchHeader::decode(self.bytes(BATCH)?, segment) else {
            return self.end_or("this is no batch header").map(Some);
        };
        if batch.first_seq != self.chain.next {
            return Ok(Some(ScanStep::Bad("a batch does not follow the one before it")));
        }
        if batch.records == 0 {
            return Ok(Some(ScanStep::Bad("a batch is empty")));
        }
        self.durable = self.durable.max(batch.durable);
        self.left = (batch.records, u64::from(batch.bytes));
        self.offset += BATCH as u64;
        Ok(None)
    }

    /// The end of the segment if only zeros follow, else this flaw.
    fn end_or(&mut self, corruption: Corruption) -> io::Result<ScanStep> {
        Ok(match self.trailing_bytes()? {
            0 => ScanStep::End,
            _ => ScanStep::Bad(corruption),
        })
    }

    /// The next `size` bytes, or fewer at the end of the file.
    fn bytes(&mut self, size: usize) -> io::Result<&[u8]> {
        if self.at(size).len() < size {
            self.window.resize(WINDOW, 0);
            let read = read_up_to(&*self.file, &mut self.window, self.offset)?;
            self.window.truncate(read);
            self.window_at = self.offset;
        }
        let at = self.at(size);
        Ok(&self.window[at])
    }

    fn at(&self, size: usize) -> std::ops::Range<usize> {
        let from = usize::try_from(self.offset - self.window_at)
            .unwrap_or(usize::MAX)
            .min(self.window.len());
        from..(from + size).min(self.window.len())
    }
}

fn find_marks(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let candidates = bytes.iter().enumerate().filter(|(_, byte)| **byte == MARK[0]);
    candidates.map(|(at, _)| at).filter(|at| bytes[*at..].starts_with(&MARK))
}

pub(super) fn in_file(disk: &dyn Disk, name: &str) -> impl Fn(io::Error) -> JournalError {
    let file: PathBuf = disk.path(name);
    move |source| JournalError::File {
        file: file.clone(),
        source,
    }
}

pub(super) fn damaged(disk: &dyn Disk, segment: &Segment, what: &str) -> JournalError {
    JournalError::Damaged(Damage {
        file: disk.path(&segment.name),
        offset: 0,
        seq: segment.header.first_seq,
        what: what.to_owned(),
    })
}
