//! A power cut at every disk operation of a busy run: every acknowledged record survives, and the chain holds.

use super::super::{Journal, JournalState, OutcomeData, OutcomeTicket};
use super::simulated::{Fate, Simulated};
use super::{Dice, allow, call, event, note, open, open_with, outcomes, read, records, settings, until};
use crate::domain::{OutcomeKind, SealedRecord};
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Writes notes one by one and concurrently, and permits with and without an outcome, over several segments. Stops early
/// when the disk is gone. Returns the calls that are still open.
async fn busy(journal: &Journal) -> Vec<OutcomeTicket> {
    let mut open = Vec::new();
    for round in 0..2 {
        for step in 0..4 {
            if journal.append(note(&"x".repeat(200 * step))).await.is_err() {
                return open;
            }
        }
        let at_once = (0..6).map(|number| journal.clear(call(round * 100 + number), allow(round * 100 + number)));
        let mut cleared = Vec::new();
        for opened in join_all(at_once).await {
            let Ok(opened) = opened else { return open };
            cleared.push(opened.into_sending().1);
        }
        cleared
            .drain(..3)
            .for_each(|ticket| ticket.close(OutcomeData::of(OutcomeKind::Done)));
        open.append(&mut cleared);
    }
    open
}

/// Every operation after the first `operations` fails. Returns the count of operations.
fn gone_after(disk: &Simulated, operations: usize) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    disk.script(move |_, _| match counted.fetch_add(1, Ordering::SeqCst) {
        number if number < operations => Fate::Works,
        _ => Fate::Fails(io::ErrorKind::Other),
    });
    count
}

/// Runs until the disk fails after so many operations. Returns the records that were durable by then, and the count.
async fn run_until_gone(disk: &Simulated, operations: usize) -> (BTreeMap<(String, u64), SealedRecord>, usize) {
    let count = gone_after(disk, operations);
    let Ok((journal, _)) = open_with(disk, &settings()) else {
        return (BTreeMap::new(), count.load(Ordering::SeqCst));
    };
    let open = busy(&journal).await;
    let durable = journal.0.shared.spool.durable.load(Ordering::SeqCst);
    let incarnation = journal.incarnation();
    drop(journal);
    drop(open);
    let acknowledged = read(disk)
        .0
        .into_iter()
        .filter(|record| record.incarnation == incarnation && record.seq < durable);
    let acknowledged: BTreeMap<_, _> = acknowledged
        .map(|record| ((record.incarnation.to_string(), record.seq), record))
        .collect();
    assert_eq!(acknowledged.len() as u64, durable);
    (acknowledged, count.load(Ordering::SeqCst))
}

#[tokio::test]
async fn a_power_cut_at_any_operation_loses_nothing_that_was_acknowledged() {
    let mut operations = 0;
    loop {
        let disk = Simulated::new();
        // An earlier incarnation, so that there is something to recover.
        let (journal, _) = open(&disk);
        journal.append(note("earlier")).await.unwrap();
        drop(journal);
        let before = records(&disk);
        let (acknowledged, total) = run_until_gone(&disk, operations).await;
        assert_eq!(disk.broken_rules(), Vec::<String>::new(), "after {operations} operations");
        for (seed, odds) in [0, 100, 50, 95].into_iter().enumerate() {
            let mut dice = Dice((operations * 8 + seed) as u64);
            let after = disk.crash(|| dice.roll() % 100 < odds);
            survives(
                &after,
                &before,
                &acknowledged,
                &format!("after {operations} operations, seed {seed}"),
            );
        }
        if total <= operations {
            break;
        }
        operations += 1;
    }
    assert!(
        operations > 40,
        "the run was too short to prove anything: {operations} operations"
    );
}

fn survives(disk: &Simulated, before: &[SealedRecord], acknowledged: &BTreeMap<(String, u64), SealedRecord>, when: &str) {
    let (journal, recovered) = open_with(disk, &settings()).unwrap_or_else(|error| panic!("{when}: {error}"));
    drop(journal);
    let found = records(disk);
    assert_eq!(&found[..before.len()], before, "{when}");
    let by_key: BTreeMap<_, _> = found
        .iter()
        .map(|record| ((record.incarnation.to_string(), record.seq), record))
        .collect();
    assert_eq!(by_key.len(), found.len(), "{when}: a record is there twice");
    for (key, record) in acknowledged {
        assert_eq!(by_key.get(key), Some(&record), "{when}");
    }
    let unknown = outcomes(disk)
        .iter()
        .filter(|outcome| outcome.kind == OutcomeKind::Unknown)
        .count();
    assert_eq!(unknown, recovered.unknown, "{when}");
}

#[tokio::test]
async fn a_killed_process_leaves_every_written_record() {
    let disk = Simulated::new();
    let (journal, _) = open(&disk);
    let open_calls = busy(&journal).await;
    drop(journal);
    drop(open_calls);
    let before = records(&disk);
    let (_, recovered) = open(&disk.reboot());
    assert_eq!((recovered.cut, recovered.unknown), (0, 6));
    let last = before.last().unwrap();
    assert_eq!(recovered.after, Some((last.incarnation, last.seq, last.head)));
}

#[tokio::test]
async fn a_disk_that_fails_now_and_then_keeps_what_it_acknowledged_and_a_chain_without_gaps() {
    for seed in 0..8 {
        let disk = Simulated::new();
        let (journal, _) = open(&disk);
        let mut dice = Dice(seed);
        disk.script(move |_, _| match dice.roll() % 100 {
            0..5 => Fate::Fails(io::ErrorKind::Other),
            5..7 => Fate::Half,
            _ => Fate::Works,
        });
        let mut acknowledged = BTreeMap::new();
        for number in 0..60 {
            let text = format!("{number} {}", "x".repeat(number * 10));
            match journal.append(note(&text)).await {
                Ok(seq) => _ = acknowledged.insert(seq, note(&text)),
                Err(_) => until(|| journal.state() == JournalState::Open).await,
            }
        }
        assert!(acknowledged.len() > 40, "seed {seed}: {}", acknowledged.len());
        assert_eq!(disk.broken_rules(), Vec::<String>::new(), "seed {seed}");
        let mut dice = Dice(seed + 100);
        for odds in [0, 50, 100] {
            let image = disk.crash(|| dice.roll() % 100 < odds);
            drop(open(&image));
            let found: BTreeMap<_, _> = records(&image)
                .iter()
                .filter(|record| record.incarnation == journal.incarnation())
                .map(|record| (record.seq, event(record)))
                .collect();
            assert_eq!(
                found.keys().copied().collect::<Vec<_>>(),
                (0..found.len() as u64).collect::<Vec<_>>()
            );
            for (seq, note) in &acknowledged {
                assert_eq!(found.get(seq), Some(note), "seed {seed}, odds {odds}");
            }
        }
    }
}
