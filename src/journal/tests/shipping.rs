//! Shipping: every record reaches the database in order and once, however the database behaves.

use super::super::shipper::ShipTarget;
use super::super::watermark::Watermark;
use super::super::{Journal, Shipper};
use super::simulated::Simulated;
use super::{environment, note, open, open_with, records, segment_names, settings, until};
use crate::domain::{Incarnation, SealedRecord};
use crate::store::{Difference, Store, StoreOpen};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;

/// A SQLite database in a folder of its own, removed with the test.
pub struct Database {
    pub store: Store,
    folder: PathBuf,
}

impl Database {
    pub async fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("guardian-shipping-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("guardian.db");
        let store = Store::open(&StoreOpen::Sqlite { file, create: true }).await.unwrap();
        store.migrate(&mut |_| ()).await.unwrap();
        Self { store, folder }
    }

    /// All rows of these incarnations, with leaf and head.
    pub async fn rows(&self, of: &[Incarnation]) -> Vec<SealedRecord> {
        let mut rows = Vec::new();
        for incarnation in of {
            rows.extend(self.store.audit_bytes(&environment(), *incarnation, 0, 10_000).await.unwrap());
        }
        rows
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Ships everything there is, and returns.
async fn ship_once(journal: &Journal, store: &Store) {
    let stop = CancellationToken::new();
    stop.cancel();
    Shipper::new(journal).run(store.clone(), stop).await;
}

async fn fill(journal: &Journal, notes: usize) {
    for number in 0..notes {
        journal.append(note(&format!("{number} {}", "x".repeat(400)))).await.unwrap();
    }
}

#[tokio::test]
async fn everything_arrives_once_over_several_lives_and_its_segments_go() {
    let (disk, database) = (Simulated::new(), Database::new().await);
    let (mut incarnations, mut written) = (Vec::new(), Vec::new());
    let look = |written: &mut Vec<SealedRecord>| {
        let new: Vec<_> = records(&disk)
            .into_iter()
            .filter(|record| !written.contains(record))
            .collect();
        written.extend(new);
    };
    for life in 0..3 {
        let (journal, _) = open(&disk);
        incarnations.push(journal.incarnation());
        fill(&journal, 25).await;
        look(&mut written);
        if life == 1 {
            ship_once(&journal, &database.store).await;
            assert_eq!((journal.unshipped(), journal.unshipped_bytes()), (0, 0));
            assert_eq!(segment_names(&disk).len(), 1);
            fill(&journal, 3).await;
        }
        journal.stop().await;
        look(&mut written);
    }
    let (journal, recovered) = open(&disk);
    incarnations.push(journal.incarnation());
    look(&mut written);
    assert_eq!(
        recovered.unshipped,
        (3 + 1) + (1 + 25 + 1) + 1,
        "what the second life left, the third, this START"
    );
    ship_once(&journal, &database.store).await;
    assert_eq!(journal.unshipped(), 0);
    assert_eq!(database.rows(&incarnations).await, written);
}

/// Refuses the first batch, and answers the second with an error after it took it.
struct Forgetful {
    attempts: Arc<AtomicUsize>,
    sent: Arc<Mutex<Vec<(u64, usize)>>>,
    store: Store,
}

impl ShipTarget for Forgetful {
    async fn ship(&self, records: Arc<[SealedRecord]>) -> Result<(), String> {
        let attempt = self.attempts.fetch_add(1, Ordering::SeqCst);
        self.sent.lock().unwrap().push((records[0].seq, records.len()));
        if attempt == 0 {
            return Err("no connection".to_owned());
        }
        ShipTarget::ship(&self.store, records).await?;
        match attempt {
            1 => Err("the connection broke while it answered".to_owned()),
            _ => Ok(()),
        }
    }

    async fn compare(&self, records: Arc<[SealedRecord]>) -> Result<Vec<Difference>, String> {
        ShipTarget::compare(&self.store, records).await
    }
}

#[tokio::test]
async fn a_lost_answer_and_a_refusing_database_cost_nothing_and_double_nothing() {
    let (disk, database) = (Simulated::new(), Database::new().await);
    let (journal, _) = open(&disk);
    fill(&journal, 700).await;
    let expected = records(&disk);
    let attempts = Arc::new(AtomicUsize::new(0));
    let sent = Arc::new(Mutex::new(Vec::new()));
    let stop = CancellationToken::new();
    let trail = Forgetful {
        attempts: attempts.clone(),
        sent: sent.clone(),
        store: database.store.clone(),
    };
    let shipping = tokio::spawn(Shipper::new(&journal).run_with(trail, stop.clone()));
    until(|| journal.ship_error().is_some()).await;
    until(|| journal.unshipped() == 0).await;
    stop.cancel();
    shipping.await.unwrap();
    assert_eq!(journal.ship_error(), None);
    assert_eq!(*sent.lock().unwrap(), [(0, 701), (0, 701), (0, 701)]);
    assert_eq!(database.rows(&[journal.incarnation()]).await, expected);
}

#[tokio::test]
async fn a_shipper_that_waits_wakes_for_a_new_record_and_ships_what_is_left_when_it_stops() {
    let (disk, database) = (Simulated::new(), Database::new().await);
    let (journal, _) = open(&disk);
    let stop = CancellationToken::new();
    let shipping = tokio::spawn(Shipper::new(&journal).run(database.store.clone(), stop.clone()));
    for _ in 0..3 {
        until(|| journal.unshipped() == 0).await;
        journal.append(note("new")).await.unwrap();
    }
    journal.stop().await;
    stop.cancel();
    shipping.await.unwrap();
    let shipped = database.rows(&[journal.incarnation()]).await;
    assert_eq!(shipped, records(&disk));
    assert_eq!(shipped.len(), 5);
}

#[tokio::test]
async fn a_start_that_lost_the_watermark_of_the_last_batch_ships_it_again() {
    let (disk, database) = (Simulated::new(), Database::new().await);
    let (journal, _) = open(&disk);
    fill(&journal, 3).await;
    let image = disk.reboot();
    let before = records(&disk);
    ship_once(&journal, &database.store).await;
    let incarnation = journal.incarnation();
    drop(journal);
    let (journal, recovered) = open(&image);
    assert_eq!(recovered.unshipped, 5);
    let expected = records(&image);
    assert_eq!(expected[..4], before);
    ship_once(&journal, &database.store).await;
    let rows = database.rows(&[incarnation, journal.incarnation()]).await;
    assert_eq!(rows, expected);
}

#[tokio::test]
async fn a_superseded_record_is_shipped_as_it_lies_in_the_segment_that_counts() {
    use super::simulated::{Fate, Op};
    let (disk, database) = (Simulated::new(), Database::new().await);
    let mut settings = settings();
    settings.segment_bytes = 1024 * 1024;
    let (journal, _) = open_with(&disk, &settings).unwrap();
    fill(&journal, 3).await;
    let mut failed = false;
    disk.script(move |op, _| match op {
        Op::Sync if !failed => {
            failed = true;
            Fate::Fails(std::io::ErrorKind::Other)
        }
        _ => Fate::Works,
    });
    fill(&journal, 3).await;
    assert_eq!(segment_names(&disk).len(), 2);
    ship_once(&journal, &database.store).await;
    let rows = database.rows(&[journal.incarnation()]).await;
    assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<_>>(), (0..7).collect::<Vec<_>>());
    assert_eq!(segment_names(&disk).len(), 1);
}

#[test]
fn the_watermark_outlives_a_torn_write_of_its_newest_slot() {
    use super::super::disk::Disk;
    let disk = Simulated::new();
    Watermark::prepare(&disk).unwrap();
    assert_eq!(Watermark::load(&disk).unwrap(), None);
    let mark = |next| Watermark {
        incarnation: Incarnation([3; 16]),
        next,
    };
    for next in 1..6 {
        mark(next).store(&disk).unwrap();
        assert_eq!(Watermark::load(&disk).unwrap(), Some(mark(next)));
        for slot in [0, 4_096] {
            let image = disk.reboot();
            let file = image.open(super::super::watermark::NAME).unwrap();
            file.write_at(&[0xff; 20], slot + 40).unwrap();
            let left = Watermark::load(&image).unwrap().map(|mark| mark.next);
            assert!(
                left == Some(next) || left == Some(next - 1) || next == 1,
                "{left:?} of {next}"
            );
        }
    }
}
