//! The hash chain, and the envelope that carries it: turns the JSON of an event into the exact bytes of a record.
//!
//! `leaf = SHA-256(0x00 ‖ bytes)`, `head = SHA-256(0x02 ‖ previous head ‖ leaf)`. The leaves are those of an RFC 6962
//! tree, which can be computed from the records on disk; appending does not compute it.

use super::{Digest, Incarnation, SealedRecord, Sha256};
use bytes::Bytes;

/// No record is longer.
pub const MAX_RECORD: usize = 16 * 1024;
/// Most bytes that the envelope adds to an event.
pub const ENVELOPE: usize = 192;
/// The version of the records that are written, and of those that can be read, as digits.
const VERSION: u8 = b'2';
const VERSIONS: [u8; 2] = [b'1', VERSION];
const VERSION_AT: usize = r#"{"v":"#.len();

/// The state of one incarnation's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub incarnation: Incarnation,
    /// Seq of the next record.
    pub next: u64,
    /// Head after all records below `next`; zero before the first.
    pub head: Digest,
}

impl Chain {
    /// An empty chain.
    pub fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            next: 0,
            head: Digest::ZERO,
        }
    }

    /// Writes the record of this event, given as JSON, to `out` and advances the chain.
    pub fn seal(&mut self, event: &[u8], out: &mut Vec<u8>) {
        let begin = out.len();
        self.envelope(VERSION, out);
        out.extend_from_slice(event);
        out.push(b'}');
        self.advance(leaf(&out[begin..]));
    }

    /// Checks that these bytes are the chain's next record, and advances; `None` if they are not.
    pub fn accept(&mut self, bytes: &[u8]) -> Option<SealedRecord> {
        let version = bytes.get(VERSION_AT).filter(|version| VERSIONS.contains(version))?;
        let mut envelope = Vec::with_capacity(ENVELOPE);
        self.envelope(*version, &mut envelope);
        if !bytes.starts_with(&envelope) || bytes.last() != Some(&b'}') {
            return None;
        }
        let seq = self.next;
        let leaf = leaf(bytes);
        self.advance(leaf);
        Some(SealedRecord {
            incarnation: self.incarnation,
            seq,
            bytes: Bytes::copy_from_slice(bytes),
            leaf,
            head: self.head,
        })
    }

    /// Writes the fields of `domain::Record` before the event, byte for byte as serde would. By hand, because formatting
    /// costs as much as hashing.
    fn envelope(&self, version: u8, out: &mut Vec<u8>) {
        out.extend_from_slice(br#"{"v":"#);
        out.push(version);
        out.extend_from_slice(br#","incarnation":""#);
        hex(&self.incarnation.0, out);
        out.extend_from_slice(br#"","seq":"#);
        decimal(self.next, out);
        out.extend_from_slice(br#","prev":""#);
        hex(self.head.as_bytes(), out);
        out.extend_from_slice(br#"","event":"#);
    }

    fn advance(&mut self, leaf: Digest) {
        let mut both = [2; 65];
        both[1..33].copy_from_slice(self.head.as_bytes());
        both[33..].copy_from_slice(leaf.as_bytes());
        self.head = Digest::of(&both);
        self.next += 1;
    }
}

fn leaf(bytes: &[u8]) -> Digest {
    Sha256::new().update(&[0]).update(bytes).finish()
}

fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend(
        bytes
            .iter()
            .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]),
    );
}

fn decimal(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{EnvironmentName, Event, Record, Stop, Timestamp};

    #[test]
    fn the_bytes_of_a_record_are_those_serde_writes() {
        let event = Event::Stop(Stop {
            at: Timestamp::from_micros(-7),
            environment: EnvironmentName::parse("test").unwrap(),
        });
        let mut chain = Chain::new(Incarnation([0xa5; 16]));
        for next in [0, 9, 10, 4_711, u64::MAX - 1] {
            chain.next = next;
            let record = Record {
                v: 2,
                incarnation: chain.incarnation,
                seq: next,
                prev: chain.head,
                event: event.clone(),
            };
            let mut bytes = Vec::new();
            chain.seal(&serde_json::to_vec(&event).unwrap(), &mut bytes);
            assert_eq!(String::from_utf8(bytes).unwrap(), serde_json::to_string(&record).unwrap());
        }
    }

    #[test]
    fn a_record_is_accepted_in_its_place_only() {
        let mut chain = Chain::new(Incarnation([1; 16]));
        let begin = chain.clone();
        let (mut first, mut second) = (Vec::new(), Vec::new());
        chain.seal(br#"{"kind":"one"}"#, &mut first);
        chain.seal(br#"{"kind":"two"}"#, &mut second);
        let mut reader = begin.clone();
        assert_eq!(reader.accept(&second), None);
        assert_eq!(reader, begin);
        let leaf = Digest::of(&[b"\0", &first[..]].concat());
        let head = Digest::of(&[b"\x02", &Digest::ZERO.as_bytes()[..], &leaf.as_bytes()[..]].concat());
        let record = reader.accept(&first).unwrap();
        assert_eq!((record.seq, record.leaf, record.head), (0, leaf, head));
        assert_eq!(reader.accept(&first), None);
        assert_eq!(reader.accept(&second).unwrap().seq, 1);
        assert_eq!(reader, chain);
    }

    #[test]
    fn records_of_version_1_are_read_and_unknown_versions_are_not() {
        let begin = Chain::new(Incarnation([1; 16]));
        let mut written = Vec::new();
        begin.clone().seal(br#"{"kind":"one"}"#, &mut written);
        for (version, is_read) in [(b'1', true), (b'2', true), (b'0', false), (b'3', false)] {
            written[VERSION_AT] = version;
            assert_eq!(begin.clone().accept(&written).is_some(), is_read, "{}", version as char);
        }
        assert_eq!(begin.clone().accept(b"{"), None);
    }
}
