//! The hash chain and the envelope that carries it: turns the JSON of an event into the exact bytes of a record.
//!
//! `leaf = SHA-256(0x00 ‖ bytes)`, `head = SHA-256(0x02 ‖ previous head ‖ leaf)`. The RFC 6962 tree of an incarnation
//! is computed from these leaves, as they are read back from disk; it is no part of the append path.

use crate::domain::{Digest, Incarnation, SealedRecord, Sha256};
use bytes::Bytes;
use std::io::Write;

/// Bytes of an envelope around an event, at most.
pub(super) const ENVELOPE: usize = 192;

/// Where the chain of one incarnation stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub incarnation: Incarnation,
    /// Seq of the next record.
    pub next: u64,
    /// Head over all records below `next`; zero before the first.
    pub head: Digest,
}

impl Chain {
    pub fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            next: 0,
            head: Digest::ZERO,
        }
    }

    /// Appends the record of this event, whose JSON is `event`, and moves on.
    pub fn seal(&mut self, event: &[u8], out: &mut Vec<u8>) {
        let begin = out.len();
        self.envelope(out);
        out.extend_from_slice(event);
        out.push(b'}');
        self.advance(leaf(&out[begin..]));
    }

    /// Takes a record that was read back, if it is the next one of this chain.
    pub fn accept(&mut self, bytes: &[u8]) -> Option<SealedRecord> {
        let mut envelope = Vec::with_capacity(ENVELOPE);
        self.envelope(&mut envelope);
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

    /// Exactly as serde writes the fields of `domain::Record` before the event.
    fn envelope(&self, out: &mut Vec<u8>) {
        let Self { incarnation, next, head } = self;
        write!(
            out,
            r#"{{"v":1,"incarnation":"{incarnation}","seq":{next},"prev":"{head}","event":"#
        )
        .expect("writing to memory does not fail");
    }

    fn advance(&mut self, leaf: Digest) {
        self.head = Sha256::new()
            .update(&[2])
            .update(self.head.as_bytes())
            .update(leaf.as_bytes())
            .finish();
        self.next += 1;
    }
}

fn leaf(bytes: &[u8]) -> Digest {
    Sha256::new().update(&[0]).update(bytes).finish()
}
