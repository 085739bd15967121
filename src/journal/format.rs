//! The byte layout of a segment file. Encodes and checks bytes; opens no file and knows no state machine.
//!
//! All numbers are little-endian. A segment is written once, from front to back. After the last batch come zeros, written
//! ahead so that a sync has no file size to update, or the torn remains of a write that was never acknowledged.
//!
//! ```text
//! segment := header, open permits, batch…
//!
//! header, 128 bytes
//!    0   8  magic `NGJOURNL`
//!    8   4  format version, 1
//!   12   4  how many open permits follow
//!   16  16  incarnation
//!   32   8  segment number: unique in the folder, growing over all incarnations
//!   40   8  seq of the first record
//!   48  32  head of the chain before it
//!   80   8  number of the segment this one supersedes after a fault; 0: none
//!   88   8  … from this seq on: records from there in lower segments of this incarnation are void
//!   96   4  crc32c of the open permits
//!  100  24  zero
//!  124   4  crc32c of bytes 0..124
//! open permits: 16 bytes each, the request ids of permits without an outcome when the segment began,
//!               so that recovery needs no segment that was shipped and deleted
//!
//! batch := batch header, frame…
//! batch header, 40 bytes
//!    0   4  mark FF 4E 47 42, which no record contains because FF is not valid UTF-8
//!    4   4  crc32c of bytes 8..40
//!    8   8  segment number
//!   16   8  seq of the first record
//!   24   8  durable: every record below this seq was on disk before this batch was written
//!   32   4  records in the batch
//!   36   4  bytes of its frames
//! frame := length u32, crc32c u32 of length ‖ bytes, bytes: the JSON of `domain::Record`, at most 16 KiB
//! ```

use crate::domain::{Digest, Incarnation, RequestId};
use uuid::Uuid;

pub(super) const HEADER: usize = 128;
pub(super) const BATCH: usize = 40;
pub(super) const FRAME: usize = 8;
/// A header that lists more open permits than this is taken for corrupt.
const MAX_OPEN: u32 = 1 << 20;
const MAGIC: &[u8; 8] = b"NGJOURNL";
const VERSION: u32 = 1;
pub(super) const MARK: [u8; 4] = *b"\xffNGB";

/// What is wrong with the bytes; the caller adds the file and the offset.
pub(super) type Corruption = &'static str;

/// The header of a segment with its list of open permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub incarnation: Incarnation,
    pub number: u64,
    pub first_seq: u64,
    /// Head of the chain before `first_seq`.
    pub prev: Digest,
    /// Number of the failed segment that this one replaces; that one's records from `first_seq` on are void.
    pub supersedes: Option<u64>,
    pub open: Vec<RequestId>,
}

impl SegmentHeader {
    pub fn encode(&self) -> Vec<u8> {
        let open: Vec<u8> = self.open.iter().flat_map(|request| *request.0.as_bytes()).collect();
        let mut out = Vec::with_capacity(HEADER + open.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(self.open.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.incarnation.0);
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.first_seq.to_le_bytes());
        out.extend_from_slice(self.prev.as_bytes());
        out.extend_from_slice(&self.supersedes.unwrap_or(0).to_le_bytes());
        out.extend_from_slice(&self.supersedes.map_or(0, |_| self.first_seq).to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(&open).to_le_bytes());
        out.resize(HEADER - 4, 0);
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out.extend_from_slice(&open);
        out
    }

    /// Decodes the fixed part. `rest(n)` reads the `n` bytes of open permits behind it; `None` if the file ends before.
    pub fn decode<E>(
        fixed: &[u8; HEADER],
        rest: impl FnOnce(usize) -> Result<Option<Vec<u8>>, E>,
    ) -> Result<Result<Self, Corruption>, E> {
        if &fixed[..8] != MAGIC {
            return Ok(Err("this is not a segment of the journal"));
        }
        if crc32c::crc32c(&fixed[..HEADER - 4]) != u32_at(fixed, HEADER - 4) {
            return Ok(Err("the segment header does not match its checksum"));
        }
        if u32_at(fixed, 8) != VERSION {
            return Ok(Err("the segment was written by a newer version"));
        }
        let count = u32_at(fixed, 12);
        if count > MAX_OPEN {
            return Ok(Err("the segment header names too many open permits"));
        }
        let Some(open) = rest(count as usize * 16)? else {
            return Ok(Err("the list of open permits is cut off"));
        };
        if crc32c::crc32c(&open) != u32_at(fixed, 96) {
            return Ok(Err("the list of open permits does not match its checksum"));
        }
        let supersedes = u64_at(fixed, 80);
        Ok(Ok(Self {
            incarnation: Incarnation(array_at(fixed, 16)),
            number: u64_at(fixed, 32),
            first_seq: u64_at(fixed, 40),
            prev: Digest::from_bytes(array_at(fixed, 48)),
            supersedes: (supersedes != 0).then_some(supersedes),
            open: open
                .chunks_exact(16)
                .map(|id| RequestId(Uuid::from_bytes(array_at(id, 0))))
                .collect(),
        }))
    }

    /// Length of the header with its open permits; there the first batch begins.
    pub fn len(&self) -> u64 {
        (HEADER + self.open.len() * 16) as u64
    }
}

/// The header of a batch; the fields are described above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchHeader {
    pub segment: u64,
    pub first_seq: u64,
    pub durable: u64,
    pub records: u32,
    pub bytes: u32,
}

impl BatchHeader {
    pub fn encode(&self) -> [u8; BATCH] {
        let mut out = [0; BATCH];
        out[..4].copy_from_slice(&MARK);
        out[8..16].copy_from_slice(&self.segment.to_le_bytes());
        out[16..24].copy_from_slice(&self.first_seq.to_le_bytes());
        out[24..32].copy_from_slice(&self.durable.to_le_bytes());
        out[32..36].copy_from_slice(&self.records.to_le_bytes());
        out[36..40].copy_from_slice(&self.bytes.to_le_bytes());
        let crc = crc32c::crc32c(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Decodes a batch header; `None` if the bytes are none, or belong to another segment.
    pub fn decode(bytes: &[u8], segment: u64) -> Option<Self> {
        let bytes = bytes.get(..BATCH)?;
        if bytes[..4] != MARK || crc32c::crc32c(&bytes[8..]) != u32_at(bytes, 4) || u64_at(bytes, 8) != segment {
            return None;
        }
        Some(Self {
            segment,
            first_seq: u64_at(bytes, 16),
            durable: u64_at(bytes, 24),
            records: u32_at(bytes, 32),
            bytes: u32_at(bytes, 36),
        })
    }
}

/// Fills in length and checksum of a frame: eight bytes were left free at `at`, and its record ends with `out`.
pub(super) fn close_frame(out: &mut [u8], at: usize) {
    let length = ((out.len() - at - FRAME) as u32).to_le_bytes();
    let crc = frame_crc(length, &out[at + FRAME..]);
    out[at..at + 4].copy_from_slice(&length);
    out[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
}

pub(super) fn frame_crc(length: [u8; 4], bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length), bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

pub(super) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N]
        .try_into()
        .expect("a slice of N bytes is an array of N bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            incarnation: Incarnation([7; 16]),
            number: 3,
            first_seq: 41,
            prev: Digest::of(b"prev"),
            supersedes: Some(2),
            open: vec![RequestId(Uuid::from_u128(1)), RequestId(Uuid::from_u128(2))],
        }
    }

    fn decode(bytes: &[u8]) -> Result<SegmentHeader, Corruption> {
        let fixed = bytes[..HEADER].try_into().unwrap();
        let rest = |n: usize| Ok::<_, ()>(bytes.get(HEADER..HEADER + n).map(<[u8]>::to_vec));
        SegmentHeader::decode(&fixed, rest).unwrap()
    }

    #[test]
    fn a_segment_header_reads_back() {
        let bytes = header().encode();
        assert_eq!(bytes.len() as u64, header().len());
        assert_eq!(decode(&bytes), Ok(header()));
    }

    #[test]
    fn every_flipped_bit_of_a_segment_header_is_seen() {
        let bytes = header().encode();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_batch_header_counts_only_in_its_own_segment_and_unharmed() {
        let batch = BatchHeader {
            segment: 9,
            first_seq: 5,
            durable: 5,
            records: 2,
            bytes: 99,
        };
        let bytes = batch.encode();
        assert_eq!(BatchHeader::decode(&bytes, 9), Some(batch));
        assert_eq!(BatchHeader::decode(&bytes, 8), None);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(BatchHeader::decode(&flipped, 9), None, "bit {bit}");
        }
    }
}
