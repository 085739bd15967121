//! Brings durable records to the database, in order, each exactly once: reads them back from the segments, inserts
//! idempotently, then advances the watermark. Sleeps while there is nothing new, so that an idle database may sleep too.

use super::Journal;
use super::disk::Disk;
use super::error::JournalError;
use super::queue::locked;
use super::scan::in_file;
use super::shared::Shared;
use super::spool::{Feed, cost};
use super::watermark::{self, Watermark};
use crate::domain::SealedRecord;
use crate::store::Store;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const ROWS: usize = 2_000;
const BYTES: usize = 2 * 1024 * 1024;
/// Between the batches of a backlog, so that it does not take the processor from the calls that make it.
const REST: Duration = Duration::from_millis(200);
/// After the first new record, others may join it for this long.
const LINGER: Duration = Duration::from_millis(200);
const BACKOFF: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(10)];
/// A database that does not answer for so long is asked anew; what it did is then unknown, and does not matter.
const PATIENCE: Duration = Duration::from_secs(30);

/// Ships until it is told to stop, and then what is left.
pub struct Shipper {
    disk: Arc<dyn Disk>,
    shared: Arc<Shared>,
    shipped: Option<Watermark>,
    feed: Option<Feed>,
}

/// Records that are on their way, and where the watermark stands once they have arrived.
type Parcel = (Arc<[SealedRecord]>, Option<Watermark>);

impl Shipper {
    pub fn new(journal: &Journal) -> Self {
        let handle = &journal.0;
        Self {
            disk: handle.disk.clone(),
            shared: handle.shared.clone(),
            shipped: handle.shipped,
            feed: None,
        }
    }

    /// Brings every record to the store. When stopped, makes one more attempt with what is there and returns.
    pub async fn run(self, store: Store, stop: CancellationToken) {
        let ship = move |records: Arc<[SealedRecord]>| {
            let store = store.clone();
            async move { store.ship(&records).await.map(|_| ()).map_err(|error| error.to_string()) }
        };
        self.run_with(ship, stop).await;
    }

    pub(super) async fn run_with<F, S>(mut self, mut ship: F, stop: CancellationToken)
    where
        F: FnMut(Arc<[SealedRecord]>) -> S,
        S: Future<Output = Result<(), String>>,
    {
        let mut pause = BACKOFF[0];
        loop {
            // Asked before: what was recorded up to the stop is to be in this attempt.
            let last = stop.is_cancelled();
            match self.ship_all(&mut ship, &stop).await {
                Ok(()) => {
                    pause = BACKOFF[0];
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
                        () = tokio::time::sleep(pause) => {}
                        () = stop.cancelled() => {}
                    }
                    pause = (pause * 2).min(BACKOFF[1]);
                }
            }
        }
    }

    /// Ships until there is nothing more.
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
                    self.rest(stop).await;
                }
                failed => {
                    // What was read is to be read again.
                    self.feed = None;
                    return Err(match failed {
                        Ok(Err(error)) => error,
                        _ => "the database does not answer".to_owned(),
                    });
                }
            }
        }
    }

    async fn load(&mut self) -> Result<Parcel, String> {
        let shared = self.shared.clone();
        let mut feed = self
            .feed
            .take()
            .unwrap_or_else(|| Feed::new(shared.spool.clone(), self.shipped));
        let read = on_disk(move || {
            let (records, mark) = feed.read(ROWS, BYTES)?;
            Ok((feed, records, mark))
        });
        let (feed, records, mark) = read.await?;
        self.feed = Some(feed);
        Ok((records.into(), mark))
    }

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

    /// Takes its time with a backlog, unless it fills the spool or all is to end.
    async fn rest(&self, stop: &CancellationToken) {
        let spool = &self.shared.spool;
        let fills = spool.bytes.load(Ordering::Relaxed) > self.shared.max_bytes / 4;
        if fills || spool.records.load(Ordering::Relaxed) == 0 {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(REST) => {}
            () = stop.cancelled() => {}
        }
    }

    /// Resolves a little after there is something to ship.
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

/// Disk work, away from the threads that serve.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> Result<T, JournalError> + Send + 'static) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?;
    done.map_err(|error| match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    })
}
