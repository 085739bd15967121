//! Ships durable records to the database in order: reads them from the segments, inserts them idempotently, then advances
//! the watermark. A batch may be sent twice; each record arrives once.
//!
//! Waits for new records without polling the database, so that an idle one can suspend.

use super::Journal;
use super::conflicts::Conflicts;
use super::disk::Disk;
use super::documents::Documents;
use super::error::{JournalError, Sealed};
use super::queue::locked;
use super::rewind::{self, RewindFrom, Rewinding};
use super::scan::in_file;
use super::shared::JournalShared;
use super::spool::{SpoolReader, cost};
use super::watermark::{self, Watermark};
use crate::domain::{AdminAction, Backoff, Event, SealedRecord};
use crate::store::{Difference, Store};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A batch ends at this many records or bytes.
const ROWS: usize = 2_000;
const BYTES: usize = 2 * 1024 * 1024;
/// Pause between the batches of a backlog, so that shipping leaves the CPU to the calls.
const BACKLOG_PAUSE: Duration = Duration::from_millis(200);
/// After the first new record the shipper waits this long, so that more records share the batch.
const LINGER: Duration = Duration::from_millis(200);
/// First and longest pause after a failed batch.
const BACKOFF: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(10)];
/// After this long without an answer the batch is sent again. Whether the database committed it is unknown, and does not
/// matter: the insert is idempotent.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two batches of kept records that are compared with the trail.
const REWIND_PAUSE: Duration = Duration::from_millis(50);
/// Conflict records that are queued at once, so that they leave room for those of calls.
const CONFLICTS_AT_ONCE: usize = 128;

const NOTHING_KEPT: &str = "the database lost records that it had taken; they are not kept any more and cannot be shipped again";

/// Where records go, and what is there. The other implementor is the database of the tests, which fails.
pub(super) trait ShipTarget {
    fn ship(&self, records: Arc<[SealedRecord]>) -> impl Future<Output = Result<(), String>> + Send;
    fn compare(&self, records: Arc<[SealedRecord]>) -> impl Future<Output = Result<Vec<Difference>, String>> + Send;
}

/// The database, with the documents that records name ahead of the records.
pub(super) struct StoreTarget {
    pub store: Store,
    pub documents: Arc<Documents>,
}

impl ShipTarget for StoreTarget {
    async fn ship(&self, records: Arc<[SealedRecord]>) -> Result<(), String> {
        self.documents.ship(&self.store).await?;
        ShipTarget::ship(&self.store, records).await
    }

    async fn compare(&self, records: Arc<[SealedRecord]>) -> Result<Vec<Difference>, String> {
        ShipTarget::compare(&self.store, records).await
    }
}

impl ShipTarget for Store {
    async fn ship(&self, records: Arc<[SealedRecord]>) -> Result<(), String> {
        Store::ship(self, &records)
            .await
            .map(|_| ())
            .map_err(|error| error.to_string())
    }

    async fn compare(&self, records: Arc<[SealedRecord]>) -> Result<Vec<Difference>, String> {
        Store::compare(self, &records).await.map_err(|error| error.to_string())
    }
}

/// Ships until it is stopped, then makes one attempt to ship what is left.
///
/// Each batch is compared with the trail once it is committed, together with the last record of the batch before. If that one is
/// gone, the database lost what it had taken (a standby that lagged behind was promoted, an older copy was restored): then the kept
/// records are compared with the trail too, and those that it lacks are shipped again.
pub struct Shipper {
    disk: Arc<dyn Disk>,
    shared: Arc<JournalShared>,
    documents: Arc<Documents>,
    shipped: Option<Watermark>,
    reader: Option<SpoolReader>,
    /// The last record that the trail is known to have taken. Of earlier starts, once it is looked for.
    last: Option<SealedRecord>,
    has_looked: bool,
    /// That record was gone from the trail, and the kept ones are not compared to the end yet.
    has_lost: bool,
    conflicts: Conflicts,
    rewinding: Option<Rewinding>,
}

/// A batch of records, and the watermark to store once it is shipped.
type ShipBatch = (Arc<[SealedRecord]>, Option<Watermark>);

impl Shipper {
    /// What the journal holds was compared with the trail, where that is to be done.
    pub fn new(journal: &Journal) -> Self {
        let handle = &journal.0;
        handle.shared.spool.held.store(false, Ordering::Relaxed);
        Self {
            disk: handle.disk.clone(),
            shared: handle.shared.clone(),
            documents: handle.documents.clone(),
            shipped: *locked(&handle.shipped),
            reader: None,
            last: None,
            has_looked: false,
            has_lost: false,
            conflicts: Conflicts::default(),
            rewinding: None,
        }
    }

    /// Ships every record to the store. When stopped, makes one more attempt and returns.
    pub async fn run(self, store: Store, stop: CancellationToken) {
        let documents = self.documents.clone();
        self.run_with(StoreTarget { store, documents }, stop).await;
    }

    pub(super) async fn run_with(mut self, trail: impl ShipTarget, stop: CancellationToken) {
        let mut backoff = Backoff::new(BACKOFF[0], BACKOFF[1]);
        loop {
            // Read first: the attempt after the stop must include everything recorded before it.
            let last = stop.is_cancelled();
            match self.ship_all(&trail, &stop).await {
                Ok(()) => {
                    backoff.reset();
                    *locked(&self.shared.ship_error) = None;
                    if last {
                        return;
                    }
                    tokio::select! {
                        () = self.something_new() => {}
                        () = stop.cancelled() => {}
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the database does not take the journal's records; trying again");
                    *locked(&self.shared.ship_error) = Some(error);
                    if last {
                        return;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(backoff.failed()) => {}
                        () = stop.cancelled() => {}
                    }
                }
            }
        }
    }

    #[cfg(test)]
    pub(super) async fn round(&mut self, trail: &impl ShipTarget, stop: &CancellationToken) {
        self.ship_all(trail, stop).await.expect("the database takes everything");
    }

    #[cfg(test)]
    pub(super) fn is_comparing(&self) -> bool {
        self.rewinding.is_some() || self.shared.findings.is_asked_for()
    }

    /// Ships batch after batch until none is left, and compares kept records in between, if that is wanted.
    async fn ship_all(&mut self, trail: &impl ShipTarget, stop: &CancellationToken) -> Result<(), String> {
        loop {
            self.take_asked_for().await?;
            let (records, mark) = self.load().await?;
            if !records.is_empty() {
                if let Err(error) = self.ship_batch(trail, records.clone()).await {
                    // The batch must be read again.
                    self.reader = None;
                    return Err(error);
                }
                self.shipped(&records, mark).await?;
                *locked(&self.shared.ship_error) = None;
                self.pause(stop).await;
            }
            self.compare_kept(trail).await?;
            if records.is_empty() && self.rewinding.is_none() && !self.shared.findings.is_asked_for() {
                return Ok(());
            }
            if records.is_empty() {
                tokio::time::sleep(REWIND_PAUSE).await;
            }
            if stop.is_cancelled() && records.is_empty() {
                // What is not compared yet is remembered for the next start.
                return Ok(());
            }
        }
    }

    /// Ships new records, and makes sure that the trail has them and what it took before.
    async fn ship_batch(&mut self, trail: &impl ShipTarget, records: Arc<[SealedRecord]>) -> Result<(), String> {
        let last = self.last.clone();
        let differences = self.deliver(trail, &records, last.as_ref()).await?;
        let last = last.map(|last| (last.incarnation, last.seq));
        if let Some(lost) = differences.iter().find(|one| one.is_gone() && Some(one.place()) == last) {
            tracing::error!(incarnation = %lost.incarnation, seq = lost.seq, "the database lost a record that it had taken");
            self.has_lost = true;
            let what = "the database lost records that it had taken; those that are kept are being shipped again";
            self.shared.findings.tell_loss(what.to_owned(), true);
            self.shared.findings.ask_for(RewindFrom(None));
            // Remembered before the watermark moves on, or a crash between the two would hide the loss.
            self.take_asked_for().await?;
        }
        self.last = records.last().cloned();
        Ok(())
    }

    /// Ships records and compares them with the trail, and `also` one more. Afterwards each of them is there, or carried by a
    /// durable conflict record.
    async fn deliver(
        &mut self,
        trail: &impl ShipTarget,
        records: &Arc<[SealedRecord]>,
        also: Option<&SealedRecord>,
    ) -> Result<Vec<Difference>, String> {
        patiently(trail.ship(records.clone())).await?;
        let asked = also.into_iter().chain(records.iter()).cloned().collect();
        let differences = patiently(trail.compare(asked)).await?;
        self.record_conflicts(records, &differences).await?;
        let also = also.map(|also| (also.incarnation, also.seq));
        let gone = differences.iter().find(|one| one.is_gone() && Some(one.place()) != also);
        match gone {
            Some(gone) => Err(format!(
                "the database does not have record {} that it has just taken",
                gone.seq
            )),
            None => Ok(differences),
        }
    }

    /// Raises the alarm for rows that are not ours, and makes the records of it durable.
    async fn record_conflicts(&mut self, records: &[SealedRecord], differences: &[Difference]) -> Result<(), String> {
        let shared = self.shared.clone();
        let plan = self
            .conflicts
            .plan(records, differences, (shared.clock)(), &shared.environment);
        if let Some(first) = plan.new.first() {
            let found = first.found.map(|leaf| leaf.to_string());
            let place = format!("the first: record {} of {}", first.seq, first.incarnation);
            // Counted before the records of it are durable: the seal must not wait for that.
            let records = self.conflicts.count_new(&plan.new);
            if records > 0 {
                shared.findings.add_conflicts(records, &place);
                tracing::error!(
                    records, incarnation = %first.incarnation, seq = first.seq, found,
                    "the audit trail holds other rows under the numbers of our records"
                );
            }
        }
        for events in plan.events.chunks(CONFLICTS_AT_ONCE) {
            let waiting: Result<Vec<_>, _> = events.iter().map(|event| shared.append(event)).collect();
            for written in waiting.map_err(not_recorded)? {
                written.await.map_err(not_recorded)?;
            }
        }
        self.conflicts.done(plan);
        Ok(())
    }

    /// Reads the next batch from disk.
    async fn load(&mut self) -> Result<ShipBatch, String> {
        let shared = self.shared.clone();
        if !std::mem::replace(&mut self.has_looked, true) {
            self.last = self.last_of_earlier_start().await;
        }
        let mut reader = self
            .reader
            .take()
            .unwrap_or_else(|| SpoolReader::new(shared.spool.clone(), self.shipped));
        let read = on_disk(move || {
            let (records, mark) = reader.read(ROWS, BYTES)?;
            Ok((reader, records, mark))
        });
        let (reader, records, mark) = read.await?;
        self.reader = Some(reader);
        Ok((records.into(), mark))
    }

    /// The record before the watermark, if it is kept.
    async fn last_of_earlier_start(&self) -> Option<SealedRecord> {
        let mark = self.shipped?;
        let before = Watermark {
            next: mark.next.checked_sub(1)?,
            ..mark
        };
        let mut reader = SpoolReader::new(self.shared.spool.clone(), Some(before)).up_to(mark);
        let (records, _) = on_disk(move || reader.read(1, 1)).await.ok()?;
        records
            .into_iter()
            .find(|record| (record.incarnation, record.seq) == (before.incarnation, before.next))
    }

    /// Accounts for a shipped batch, stores the watermark, and deletes segments that are no longer needed.
    async fn shipped(&mut self, records: &[SealedRecord], mark: Option<Watermark>) -> Result<(), String> {
        let spool = &self.shared.spool;
        spool.records.fetch_sub(records.len() as u64, Ordering::Relaxed);
        spool.bytes.fetch_sub(records.iter().map(cost).sum(), Ordering::Relaxed);
        self.shipped = mark;
        let Some(mark) = mark else { return Ok(()) };
        let (disk, spool) = (self.disk.clone(), spool.clone());
        let stored = on_disk(move || {
            mark.store(&*disk).map_err(in_file(&*disk, watermark::NAME))?;
            spool.release(&mark);
            Ok(())
        });
        stored.await
    }

    /// Begins to compare kept records, if somebody wants that, and remembers it on disk.
    async fn take_asked_for(&mut self) -> Result<(), String> {
        let Some(from) = self.shared.findings.take_asked_for() else {
            return Ok(());
        };
        let from = if self.rewinding.is_some() { RewindFrom(None) } else { from };
        let Some(stop) = self.shipped.filter(|mark| self.shared.spool.find(mark).is_some()) else {
            return Ok(());
        };
        if let Err(error) = self.documents.ship_again().await {
            self.shared.findings.ask_for(from);
            return Err(error);
        }
        self.shared.spool.comparing.store(true, Ordering::Relaxed);
        self.rewinding = Some(Rewinding::new(from, stop));
        let disk = self.disk.clone();
        let stored = on_disk(move || from.store(&*disk).map_err(in_file(&*disk, rewind::NAME))).await;
        if let Err(error) = stored {
            tracing::warn!(
                error,
                "that kept records must be compared with the trail is not remembered over a restart"
            );
        }
        Ok(())
    }

    /// Compares the next kept records with the trail and ships again what it lacks.
    async fn compare_kept(&mut self, trail: &impl ShipTarget) -> Result<(), String> {
        let Some(rewinding) = &self.rewinding else { return Ok(()) };
        let mut reader = rewinding.reader(self.shared.spool.clone());
        let (records, at) = on_disk(move || reader.read(ROWS, BYTES)).await?;
        if records.is_empty() {
            return self.end_comparison().await;
        }
        let records: Arc<[SealedRecord]> = records.into();
        let differences = patiently(trail.compare(records.clone())).await?;
        self.record_conflicts(&records, &differences).await?;
        let gone: BTreeSet<_> = differences
            .iter()
            .filter(|one| one.is_gone())
            .map(Difference::place)
            .collect();
        let is_gone = |record: &&SealedRecord| gone.contains(&(record.incarnation, record.seq));
        let missing: Arc<[SealedRecord]> = records.iter().filter(is_gone).cloned().collect();
        if !missing.is_empty() {
            self.deliver(trail, &missing, None).await?;
            self.shared.findings.add_shipped_again(missing.len() as u64);
        }
        if let Some(rewinding) = &mut self.rewinding {
            rewinding.note(&records, &missing, at);
        }
        Ok(())
    }

    /// Tells what the comparison found.
    async fn end_comparison(&mut self) -> Result<(), String> {
        let disk = self.disk.clone();
        on_disk(move || RewindFrom::forget(&*disk).map_err(in_file(&*disk, rewind::NAME))).await?;
        let Some(rewinding) = self.rewinding.take() else {
            return Ok(());
        };
        self.shared.spool.comparing.store(false, Ordering::Relaxed);
        let has_lost = std::mem::take(&mut self.has_lost);
        let (told, for_good) = match (rewinding.missing, has_lost) {
            (0, false) => {
                tracing::info!("{}", rewinding.told());
                return Ok(());
            }
            (0, true) => (NOTHING_KEPT.to_owned(), true),
            (1.., _) => (rewinding.told(), rewinding.older_lost),
        };
        tracing::error!("{told}");
        self.shared.findings.tell_loss(told.clone(), for_good);
        let event = Event::Admin(AdminAction::new(
            (self.shared.clock)(),
            self.shared.environment.clone(),
            "records_shipped_again",
            told,
        ));
        let recorded = match self.shared.append(&event) {
            Ok(written) => written.await.map(|_| ()),
            Err(sealed) => Err(sealed),
        };
        if let Err(error) = recorded {
            tracing::warn!(%error, "that records were shipped again is in the log only");
        }
        Ok(())
    }

    /// Pauses before the next batch of a backlog, unless the backlog takes a quarter of the spool or shipping is to stop.
    async fn pause(&self, stop: &CancellationToken) {
        let spool = &self.shared.spool;
        let fills = spool.bytes.load(Ordering::Relaxed) > self.shared.max_bytes / 4;
        if fills || spool.records.load(Ordering::Relaxed) == 0 {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(BACKLOG_PAUSE) => {}
            () = stop.cancelled() => {}
        }
    }

    /// Waits until there is something to ship, and a little longer if that is less than a batch.
    async fn something_new(&self) {
        let shared = &self.shared;
        shared.shipper_waits.store(true, Ordering::SeqCst);
        if shared.spool.records.load(Ordering::SeqCst) == 0 && !shared.findings.is_asked_for() {
            shared.shipper.notified().await;
        }
        shared.shipper_waits.store(false, Ordering::SeqCst);
        if shared.spool.records.load(Ordering::Relaxed) < ROWS as u64 {
            tokio::time::sleep(LINGER).await;
        }
    }
}

/// Waits for the database, at most `PATIENCE`.
async fn patiently<T>(answer: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(answer) => answer,
        Err(_) => Err("the database does not answer".to_owned()),
    }
}

fn not_recorded(sealed: Sealed) -> String {
    format!("a row in the place of a record cannot be recorded: {sealed}")
}

/// Runs disk work on tokio's blocking threads.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> Result<T, JournalError> + Send + 'static) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?;
    done.map_err(|error| match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    })
}
