//! Ships durable records to the database in order: reads them from the segments, inserts them idempotently, then advances
//! the watermark. A batch may be sent twice; each record arrives once.
//!
//! Waits for new records without polling the database, so that an idle one can suspend.

use super::Journal;
use super::disk::Disk;
use super::documents::Documents;
use super::error::JournalError;
use super::queue::locked;
use super::scan::in_file;
use super::shared::JournalShared;
use super::spool::{SpoolReader, cost};
use super::watermark::{self, Watermark};
use crate::domain::{Backoff, SealedRecord};
use crate::store::Store;
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

/// Ships until it is stopped, then makes one attempt to ship what is left.
pub struct Shipper {
    disk: Arc<dyn Disk>,
    shared: Arc<JournalShared>,
    documents: Arc<Documents>,
    shipped: Option<Watermark>,
    reader: Option<SpoolReader>,
}

/// A batch of records, and the watermark to store once it is shipped.
type ShipBatch = (Arc<[SealedRecord]>, Option<Watermark>);

impl Shipper {
    pub fn new(journal: &Journal) -> Self {
        let handle = &journal.0;
        Self {
            disk: handle.disk.clone(),
            shared: handle.shared.clone(),
            documents: handle.documents.clone(),
            shipped: *locked(&handle.shipped),
            reader: None,
        }
    }

    /// Ships every record to the store. When stopped, makes one more attempt and returns.
    pub async fn run(self, store: Store, stop: CancellationToken) {
        let documents = self.documents.clone();
        let ship = move |records: Arc<[SealedRecord]>| {
            let (store, documents) = (store.clone(), documents.clone());
            async move {
                documents.ship(&store).await?;
                store.ship(&records).await.map(|_| ()).map_err(|error| error.to_string())
            }
        };
        self.run_with(ship, stop).await;
    }

    pub(super) async fn run_with<F, S>(mut self, mut ship: F, stop: CancellationToken)
    where
        F: FnMut(Arc<[SealedRecord]>) -> S,
        S: Future<Output = Result<(), String>>,
    {
        let mut backoff = Backoff::new(BACKOFF[0], BACKOFF[1]);
        loop {
            // Read first: the attempt after the stop must include everything recorded before it.
            let last = stop.is_cancelled();
            match self.ship_all(&mut ship, &stop).await {
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

    /// Ships batch after batch until none is left.
    async fn ship_all<F, S>(&mut self, ship: &mut F, stop: &CancellationToken) -> Result<(), String>
    where
        F: FnMut(Arc<[SealedRecord]>) -> S,
        S: Future<Output = Result<(), String>>,
    {
        loop {
            let (records, mark) = self.load().await?;
            if records.is_empty() {
                return Ok(());
            }
            match tokio::time::timeout(PATIENCE, ship(records.clone())).await {
                Ok(Ok(())) => {
                    self.shipped(&records, mark).await?;
                    self.pause(stop).await;
                }
                failed => {
                    // The batch must be read again.
                    self.reader = None;
                    return Err(match failed {
                        Ok(Err(error)) => error,
                        _ => "the database does not answer".to_owned(),
                    });
                }
            }
        }
    }

    /// Reads the next batch from disk.
    async fn load(&mut self) -> Result<ShipBatch, String> {
        let shared = self.shared.clone();
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
            spool.drop_shipped(&mark)
        });
        stored.await
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
        if shared.spool.records.load(Ordering::SeqCst) == 0 {
            shared.shipper.notified().await;
        }
        shared.shipper_waits.store(false, Ordering::SeqCst);
        if shared.spool.records.load(Ordering::Relaxed) < ROWS as u64 {
            tokio::time::sleep(LINGER).await;
        }
    }
}

/// Runs disk work on tokio's blocking threads.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> Result<T, JournalError> + Send + 'static) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?;
    done.map_err(|error| match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    })
}
