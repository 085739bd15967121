//! Torn tails and flipped bits: what recovery may cut off, and what it must refuse.

use super::super::disk::Disk;
use super::super::{Journal, JournalError};
use super::simulated::Simulated;
use super::{note, open, open_with, read, records, segment_names, settings};
use crate::domain::SealedRecord;

/// The START and three batches of one note each, all in one segment, as a killed process leaves them.
async fn written() -> (Simulated, Vec<SealedRecord>) {
    let disk = Simulated::new();
    let (journal, _) = open(&disk);
    for text in ["one", "two", "three"] {
        journal.append(note(text)).await.unwrap();
    }
    killed(journal, &disk)
}

fn killed(journal: Journal, disk: &Simulated) -> (Simulated, Vec<SealedRecord>) {
    let image = disk.reboot();
    drop(journal);
    let records = records(&image);
    (image, records)
}

fn contents(disk: &Simulated, name: &str) -> Vec<u8> {
    let file = disk.open(name).unwrap();
    let mut bytes = vec![0; file.size().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn with(disk: &Simulated, name: &str, bytes: &[u8]) -> Simulated {
    let copy = disk.reboot();
    let file = copy.open(name).unwrap();
    file.cut(0).unwrap();
    file.write_at(bytes, 0).unwrap();
    file.sync().unwrap();
    copy
}

/// Where each batch begins, and where the last one ends.
fn batches(bytes: &[u8]) -> Vec<usize> {
    let marks = bytes
        .windows(4)
        .enumerate()
        .filter(|(_, window)| *window == super::super::format::MARK);
    let mut at: Vec<_> = marks.map(|(at, _)| at).collect();
    at.push(bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1);
    at
}

#[tokio::test]
async fn a_last_batch_cut_at_any_byte_is_a_torn_tail() {
    let (disk, before) = written().await;
    let [name] = &segment_names(&disk)[..] else {
        panic!("one segment was expected")
    };
    let bytes = contents(&disk, name);
    let [.., begin, end] = batches(&bytes)[..] else {
        panic!("batches were expected")
    };
    for (zeros, step) in [(0, 1), (1_000, 7)] {
        for at in (begin..end).step_by(step) {
            let mut torn = bytes[..at].to_vec();
            torn.resize(at + zeros, 0);
            let torn = with(&disk, name, &torn);
            let (journal, recovered) = open_with(&torn, &settings()).unwrap_or_else(|error| panic!("cut at {at}: {error}"));
            drop(journal);
            let found = records(&torn);
            assert_eq!(found[..3], before[..3], "cut at {at}");
            assert_eq!(found.len(), 4, "cut at {at}: the new START follows");
            assert_eq!(recovered.after.map(|(_, seq, head)| (seq, head)), Some((2, before[2].head)));
            assert!(recovered.cut <= (at - begin) as u64, "cut at {at}: {}", recovered.cut);
        }
    }
}

#[tokio::test]
async fn a_bit_flipped_in_the_last_batch_costs_that_batch_alone() {
    let (disk, before) = written().await;
    let name = &segment_names(&disk)[0];
    let bytes = contents(&disk, name);
    let [.., begin, end] = batches(&bytes)[..] else {
        panic!("batches were expected")
    };
    for bit in (begin * 8..end * 8).step_by(3) {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let (found, error) = read(&with(&disk, name, &flipped));
        assert!(error.is_none(), "bit {bit}: {error:?}");
        assert_eq!(found, before[..3], "bit {bit}");
    }
}

#[tokio::test]
async fn a_bit_flipped_before_the_last_batch_is_damage_that_is_named_and_not_repaired() {
    let (disk, _) = written().await;
    let name = &segment_names(&disk)[0];
    let bytes = contents(&disk, name);
    let at = batches(&bytes);
    for bit in (0..at[3] * 8).step_by(5) {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let flipped = with(&disk, name, &flipped);
        let before = contents(&flipped, name);
        let Err(JournalError::Damaged(damage)) = open_with(&flipped, &settings()).map(|_| ()) else {
            panic!("bit {bit} was not seen")
        };
        assert_eq!(damage.file.to_str(), Some(name.as_str()), "bit {bit}");
        assert!(damage.offset <= (bit / 8) as u64, "bit {bit}: {damage}");
        assert_eq!(contents(&flipped, name), before, "bit {bit}");
    }
}

#[tokio::test]
async fn a_missing_segment_is_damage_wherever_it_was() {
    let disk = Simulated::new();
    let (journal, _) = open(&disk);
    for _ in 0..12 {
        journal.append(note(&"x".repeat(1_000))).await.unwrap();
    }
    let (image, _) = killed(journal, &disk);
    let (journal, _) = open(&image);
    journal.append(note("the next life")).await.unwrap();
    let (image, _) = killed(journal, &image);
    let names = segment_names(&image);
    assert!(names.len() > 3, "{names:?}");
    for name in &names[..names.len() - 1] {
        let image = image.reboot();
        image.remove(name).unwrap();
        let opened = open_with(&image, &settings()).map(|_| ());
        assert!(matches!(opened, Err(JournalError::Damaged(_))), "without {name}: {opened:?}");
    }
}
