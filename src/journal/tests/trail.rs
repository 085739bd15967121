//! The trail against the journal: rows that are not ours, and records that the database took and lost.

use super::super::disk::Disk;
use super::super::rewind::{NAME, RewindFrom};
use super::super::{Journal, JournalSettings, JournalState, Sealed, Shipper};
use super::shipping::Database;
use super::simulated::{Fate, Op, Simulated};
use super::{event, note, open_with, records, segment_names, settings};
use crate::domain::{Conflict, Digest, Event, Incarnation, SealedRecord};
use crate::store::Store;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

fn keeping() -> JournalSettings {
    JournalSettings {
        keep_shipped: Duration::from_secs(3_600),
        ..settings()
    }
}

/// Ships until nothing is left, what this adds to the journal included.
async fn ship(shipper: &mut Shipper, journal: &Journal, store: &Store) {
    let stop = CancellationToken::new();
    stop.cancel();
    for round in 0.. {
        assert!(round < 2_000, "the shipper never comes to an end");
        shipper.round(store, &stop).await;
        if journal.unshipped() == 0 && !shipper.is_comparing() {
            return;
        }
    }
}

async fn fill(journal: &Journal, notes: usize) {
    for number in 0..notes {
        journal.append(note(&format!("{number} {}", "x".repeat(400)))).await.unwrap();
    }
}

fn forged(incarnation: Incarnation, seqs: std::ops::Range<u64>) -> Vec<SealedRecord> {
    let row = |seq: u64| SealedRecord {
        incarnation,
        seq,
        bytes: Bytes::from(format!("forged {seq}")),
        leaf: Digest::of(&seq.to_be_bytes()),
        head: Digest::ZERO,
    };
    seqs.map(row).collect()
}

/// The records that the trail holds, as themselves or carried by conflict records, by seq.
async fn told(database: &Database, incarnation: Incarnation) -> BTreeMap<u64, Vec<u8>> {
    let mut told: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut parts: BTreeMap<u64, BTreeMap<u32, Conflict>> = BTreeMap::new();
    for row in database.rows(&[incarnation]).await {
        if row.bytes.starts_with(b"forged") {
            continue;
        }
        if let Event::Conflict(conflict) = event(&row)
            && conflict.record.is_some()
        {
            parts.entry(conflict.seq).or_default().insert(conflict.part, conflict);
        }
        told.insert(row.seq, row.bytes.to_vec());
    }
    for (seq, parts) in parts {
        let whole: String = parts.values().filter_map(|part| part.record.clone()).collect();
        let of = parts.values().next().unwrap().parts;
        assert_eq!(parts.len(), of as usize, "parts of record {seq}");
        told.insert(seq, whole.into_bytes());
    }
    told
}

#[tokio::test]
async fn a_displaced_record_is_carried_whole_however_often_it_is_displaced() {
    let (disk, database) = (Simulated::new(), Database::new().await);
    let (journal, _) = open_with(&disk, &keeping()).unwrap();
    let mut shipper = Shipper::new(&journal);
    let incarnation = journal.incarnation();
    // START, 3 notes and the longest that a record can be; then more rows ahead for the records that carry them.
    database.store.ship(&forged(incarnation, 1..23)).await.unwrap();
    fill(&journal, 3).await;
    journal.append(note(&"\"".repeat(2_000))).await.unwrap();
    journal
        .append(note(&format!("{}{}", "\\".repeat(1_000), "ä\"".repeat(3_300))))
        .await
        .unwrap();
    let ours = records(&disk);
    assert!(ours.iter().any(|record| record.bytes.len() > 8_000));
    ship(&mut shipper, &journal, &database.store).await;

    let told = told(&database, incarnation).await;
    for record in &ours {
        assert_eq!(
            told.get(&record.seq).map(Vec::as_slice),
            Some(&record.bytes[..]),
            "record {}",
            record.seq
        );
    }
    assert_eq!(journal.findings().conflicts(), 22, "each forged row, once");
    assert!(journal.findings().sentences()[0].contains("under the numbers of 22 of its records (the first: record 1 of"));
    assert_eq!(journal.state(), JournalState::Open);
    journal.append(note("calls go on")).await.unwrap();
    let after = journal.unshipped();
    ship(&mut shipper, &journal, &database.store).await;
    assert_eq!((after, journal.findings().conflicts()), (1, 22));
}

#[tokio::test]
async fn more_forged_rows_than_are_carried_are_counted_and_end() {
    let (disk, database) = (Simulated::new(), Database::new().await);
    let (journal, _) = open_with(&disk, &keeping()).unwrap();
    let mut shipper = Shipper::new(&journal);
    let incarnation = journal.incarnation();
    database.store.ship(&forged(incarnation, 1..400)).await.unwrap();
    fill(&journal, 20).await;
    ship(&mut shipper, &journal, &database.store).await;
    let written = records(&disk).len();
    assert!(written < 20 + 64 + 10, "{written} records");
    // Traffic that gets past the forged rows brings the count.
    for _ in 0..40 {
        fill(&journal, 10).await;
        ship(&mut shipper, &journal, &database.store).await;
    }
    let conflicts: Vec<Conflict> = database
        .rows(&[incarnation])
        .await
        .iter()
        .filter(|row| !row.bytes.starts_with(b"forged"))
        .filter_map(|row| match event(row) {
            Event::Conflict(conflict) => Some(conflict),
            _ => None,
        })
        .collect();
    let counted: u64 = conflicts.iter().map(|conflict| conflict.count).sum();
    let plain = records(&disk)
        .iter()
        .filter(|record| record.seq < 400 && matches!(event(record), Event::Admin(_)))
        .count() as u64;
    assert!(counted >= plain, "{counted} counted or carried of {plain}: {conflicts:?}");
    assert_eq!(journal.findings().conflicts(), 399);
}

#[tokio::test]
async fn sealing_on_a_conflict_refuses_all_but_its_record() {
    let (disk, database) = (Simulated::new(), Database::new().await);
    let settings = JournalSettings {
        seal_on_conflict: true,
        ..keeping()
    };
    let (journal, _) = open_with(&disk, &settings).unwrap();
    let mut shipper = Shipper::new(&journal);
    database.store.ship(&forged(journal.incarnation(), 1..2)).await.unwrap();
    fill(&journal, 2).await;
    ship(&mut shipper, &journal, &database.store).await;
    assert_eq!(journal.state(), JournalState::Sealed(Sealed::Conflict));
    assert_eq!(journal.append(note("refused")).await, Err(Sealed::Conflict));
    assert_eq!(
        told(&database, journal.incarnation()).await.len(),
        4,
        "START, two notes, the conflict"
    );
}

/// Rows that the database loses come back from kept segments, over several starts, oldest first, and none is doubled.
#[tokio::test]
async fn what_the_database_lost_is_shipped_again() {
    let (disk, first) = (Simulated::new(), Database::new().await);
    let mut incarnations = Vec::new();
    for _ in 0..3 {
        let (journal, _) = open_with(&disk, &keeping()).unwrap();
        incarnations.push(journal.incarnation());
        fill(&journal, 25).await;
        ship(&mut Shipper::new(&journal), &journal, &first.store).await;
        journal.stop().await;
    }
    assert!(segment_names(&disk).len() > 6, "{:?}", segment_names(&disk));
    let (journal, recovered) = open_with(&disk, &keeping()).unwrap();
    let mut shipper = Shipper::new(&journal);
    incarnations.push(journal.incarnation());
    assert_eq!(recovered.unshipped, 2, "the last STOP and this START: {recovered:?}");
    assert!(journal.kept_bytes() > 20_000);
    ship(&mut shipper, &journal, &first.store).await;
    let lost = records(&disk).len() as u64;

    // The database as it was before all this; one new record tells that it is another.
    let second = Database::new().await;
    fill(&journal, 1).await;
    ship(&mut shipper, &journal, &second.store).await;
    assert_eq!(journal.findings().shipped_again(), lost);
    assert_eq!(second.rows(&incarnations).await, records(&disk));
    let told = &journal.findings().sentences()[0];
    assert!(
        told.starts_with(&format!(
            "the database had lost {lost} records that it had taken (of {lost} that were compared"
        )),
        "{told}"
    );
    assert!(!told.contains("for good"), "{told}");
    let last = event(records(&disk).last().unwrap());
    assert!(
        matches!(&last, Event::Admin(admin) if admin.action == "records_shipped_again" && admin.detail == *told),
        "{last:?}"
    );
    assert!(disk.open(NAME).is_err(), "it is done");
}

#[tokio::test]
async fn a_comparison_that_was_cut_off_goes_on_after_a_restart() {
    let (disk, first) = (Simulated::new(), Database::new().await);
    let (journal, _) = open_with(&disk, &keeping()).unwrap();
    let mut shipper = Shipper::new(&journal);
    let mut incarnations = vec![journal.incarnation()];
    fill(&journal, 25).await;
    ship(&mut shipper, &journal, &first.store).await;
    RewindFrom(None).store(&disk).unwrap();
    let image = disk.reboot();
    let (journal, _) = open_with(&image, &keeping()).unwrap();
    let mut shipper = Shipper::new(&journal);
    incarnations.push(journal.incarnation());
    let second = Database::new().await;
    // As if what came after the loss had been shipped before the crash.
    second.store.ship(&records(&image)[20..]).await.unwrap();
    ship(&mut shipper, &journal, &second.store).await;
    assert_eq!(second.rows(&incarnations).await, records(&image));
    assert_eq!(journal.findings().shipped_again(), 20);
}

#[tokio::test]
async fn where_nothing_is_kept_a_loss_is_told_of_for_good() {
    let (disk, first) = (Simulated::new(), Database::new().await);
    let (journal, _) = open_with(&disk, &settings()).unwrap();
    let mut shipper = Shipper::new(&journal);
    fill(&journal, 40).await;
    ship(&mut shipper, &journal, &first.store).await;
    assert_eq!(segment_names(&disk).len(), 1);
    let second = Database::new().await;
    fill(&journal, 1).await;
    ship(&mut shipper, &journal, &second.store).await;
    let told = &journal.findings().sentences()[0];
    assert!(told.contains("older ones may be lost for good"), "{told}");
}

/// What the disk lacks is taken from kept segments before a record is refused.
#[tokio::test]
async fn a_full_disk_takes_kept_segments_before_it_refuses() {
    let (disk, database) = (Simulated::new(), Database::new().await);
    let (journal, _) = open_with(&disk, &keeping()).unwrap();
    let mut shipper = Shipper::new(&journal);
    fill(&journal, 60).await;
    ship(&mut shipper, &journal, &database.store).await;
    let kept = segment_names(&disk);
    let mut removed = 0;
    disk.script(move |op, _| {
        removed += usize::from(op == Op::Remove);
        match op {
            Op::Write if removed < 2 => Fate::Fails(ErrorKind::StorageFull),
            _ => Fate::Works,
        }
    });
    journal.append(note("fits")).await.unwrap();
    disk.works_again();
    assert_eq!(journal.refused(), 0);
    let left = segment_names(&disk);
    assert!(!left.contains(&kept[0]) && left.contains(&kept[3]), "{kept:?} {left:?}");
}

#[tokio::test]
async fn a_segment_that_cannot_be_deleted_is_deleted_later() {
    let (disk, database) = (Simulated::new(), Database::new().await);
    let (journal, _) = open_with(&disk, &settings()).unwrap();
    let mut shipper = Shipper::new(&journal);
    fill(&journal, 40).await;
    let before = segment_names(&disk);
    let fails = Arc::new(AtomicBool::new(true));
    disk.script({
        let fails = fails.clone();
        move |op, name| match op {
            Op::Remove if name.ends_with(".seg") && fails.load(Ordering::Relaxed) => Fate::Fails(ErrorKind::PermissionDenied),
            _ => Fate::Works,
        }
    });
    ship(&mut shipper, &journal, &database.store).await;
    assert_eq!(segment_names(&disk), before);
    assert_eq!(journal.ship_error(), None, "shipping goes on");
    fails.store(false, Ordering::Relaxed);
    fill(&journal, 1).await;
    ship(&mut shipper, &journal, &database.store).await;
    assert_eq!(segment_names(&disk).len(), 1);
}

/// Kept segments never take more than half of the spool.
#[tokio::test]
async fn kept_segments_are_bounded() {
    let (disk, database) = (Simulated::new(), Database::new().await);
    let settings = JournalSettings {
        max_bytes: 64 * 1024,
        ..keeping()
    };
    let (journal, _) = open_with(&disk, &settings).unwrap();
    let mut shipper = Shipper::new(&journal);
    for _ in 0..10 {
        fill(&journal, 20).await;
        ship(&mut shipper, &journal, &database.store).await;
        assert!(journal.kept_bytes() <= 32 * 1024, "{}", journal.kept_bytes());
    }
    assert!(journal.kept_bytes() > 16 * 1024);
    assert_eq!(journal.state(), JournalState::Open);
}
