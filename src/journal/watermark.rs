//! The shipper's watermark, up to which the database has the records: a small file with two slots, written in turn.
//!
//! It is written in place rather than renamed, so that a full disk cannot keep the shipper from making room. A slot torn
//! by a crash fails its checksum; then the other slot counts, and the records since are shipped again.

use super::disk::{Disk, read_up_to, replace, write_whole};
use super::format::{array_at, u32_at, u64_at};
use crate::domain::Incarnation;
use std::io;

pub(super) const NAME: &str = "shipped";
const MAGIC: &[u8; 8] = b"NGSHIPD1";
const SLOT: usize = 64;
/// Offsets of the slots, on different pages so that a torn write hits only one.
const SLOTS: [usize; 2] = [0, 4_096];

/// Every record of earlier incarnations, and every record of this one below `next`, is in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Watermark {
    pub incarnation: Incarnation,
    pub next: u64,
}

impl Watermark {
    /// The newest valid slot; `None` if nothing was shipped yet or no slot is valid.
    pub fn load(disk: &dyn Disk) -> io::Result<Option<Self>> {
        Ok(read(disk)?.map(|(_, mark)| mark))
    }

    /// Creates the file in its full size, so that `store` has nothing to allocate.
    pub fn prepare(disk: &dyn Disk) -> io::Result<()> {
        match disk.open(NAME) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => replace(disk, NAME, &[0; SLOTS[1] + SLOT]),
            opened => opened.map(|_| ()),
        }
    }

    /// Overwrites the older slot and syncs it.
    pub fn store(&self, disk: &dyn Disk) -> io::Result<()> {
        let round = read(disk)?.map_or(0, |(round, _)| round) + 1;
        let file = disk.open(NAME)?;
        write_whole(&*file, &self.encode(round), SLOTS[(round % 2) as usize] as u64)?;
        file.sync()
    }

    fn encode(&self, round: u64) -> [u8; SLOT] {
        let mut out = [0; SLOT];
        out[..8].copy_from_slice(MAGIC);
        out[8..16].copy_from_slice(&round.to_le_bytes());
        out[16..32].copy_from_slice(&self.incarnation.0);
        out[32..40].copy_from_slice(&self.next.to_le_bytes());
        let crc = crc32c::crc32c(&out[..SLOT - 4]);
        out[SLOT - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(slot: &[u8]) -> Option<(u64, Self)> {
        if slot.len() < SLOT || &slot[..8] != MAGIC || crc32c::crc32c(&slot[..SLOT - 4]) != u32_at(slot, SLOT - 4) {
            return None;
        }
        let mark = Self {
            incarnation: Incarnation(array_at(slot, 16)),
            next: u64_at(slot, 32),
        };
        Some((u64_at(slot, 8), mark))
    }
}

fn read(disk: &dyn Disk) -> io::Result<Option<(u64, Watermark)>> {
    let file = match disk.open(NAME) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![0; SLOTS[1] + SLOT];
    let length = read_up_to(&*file, &mut bytes, 0)?;
    let slots = SLOTS.map(|at| Watermark::decode(&bytes[at.min(length)..(at + SLOT).min(length)]));
    Ok(slots.into_iter().flatten().max_by_key(|(round, _)| *round))
}
