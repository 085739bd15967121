//! Gets an issuer's keys from a URL or a file. One fetch at a time for each issuer; no issuer waits for another.

use super::jwks::{FetchPlan, JwksState, KeySet, MAX_BYTES, RefreshTimes};
use crate::domain::{IssuerAlias, Reason};
use crate::transport::{Client, read_body};
use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use jsonwebtoken::Algorithm;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Where one issuer's keys come from, and what is known of them.
pub(super) struct JwksSource {
    pub alias: IssuerAlias,
    pub location: JwksLocation,
    pub algorithms: Vec<Algorithm>,
    pub refresh_times: RefreshTimes,
    pub shared: Arc<JwksShared>,
    pub state: ArcSwap<JwksState>,
    /// Receiver of the running fetch, which drops its sender when it ends.
    pub running_fetch: Mutex<Option<watch::Receiver<()>>>,
}

pub(super) enum JwksLocation {
    Url(Client, http::Uri),
    File(PathBuf),
}

/// State shared by the sources of all issuers.
#[derive(Default)]
pub(super) struct JwksShared {
    /// Part of the cache key of a principal: raising it makes every credential be verified again.
    pub generation: AtomicU64,
    pub fetches: TaskTracker,
    pub stop: CancellationToken,
}

impl JwksSource {
    /// A key set that holds this key. It waits for a fetch only if no known set will do.
    pub async fn keys(self: &Arc<Self>, key_id: &str) -> Result<Arc<KeySet>, Reason> {
        match self.state.load().plan(key_id, self.refresh_times, Instant::now()) {
            FetchPlan::Use(set) => return Ok(set),
            FetchPlan::UseAndRefresh(set) => {
                drop(self.fetch());
                return Ok(set);
            }
            FetchPlan::Refuse(reason) => return Err(reason),
            FetchPlan::Fetch => {}
        }
        let mut fetched = self.fetch();
        let _ = fetched.changed().await;
        self.state.load().after_fetch(key_id, self.refresh_times, Instant::now())
    }

    /// Starts a fetch, or joins the running one. The fetch is a task of its own: it goes on when the caller disconnects.
    pub fn fetch(self: &Arc<Self>) -> watch::Receiver<()> {
        let mut flight = self.running_fetch.lock().expect("no holder of this lock panics");
        if let Some(running) = &*flight
            && running.has_changed().is_ok()
        {
            return running.clone();
        }
        let (landed, fetched) = watch::channel(());
        *flight = Some(fetched.clone());
        let source = self.clone();
        let stop = self.shared.stop.clone();
        self.shared.fetches.spawn(async move {
            stop.run_until_cancelled(source.fetch_once()).await;
            drop(landed);
        });
        fetched
    }

    async fn fetch_once(&self) {
        let read = self.read().await.and_then(|bytes| {
            let set = KeySet::read(&bytes, &self.algorithms);
            set.map_err(|error| error.to_string())
        });
        let now = Instant::now();
        let before = self.state.load_full();
        let state = match read {
            Ok(set) => self.accept(set, &before, now),
            Err(why) => {
                tracing::warn!(issuer = %self.alias, from = %self.location, %why, "cannot fetch signing keys");
                JwksState {
                    good: before.good.clone(),
                    tried: Some((now, Some(why.into()))),
                }
            }
        };
        self.state.store(Arc::new(state));
    }

    fn accept(&self, set: KeySet, before: &JwksState, now: Instant) -> JwksState {
        let changed = before.good.as_ref().is_some_and(|(old, _)| old.digest != set.digest);
        if changed {
            // A key may have been removed: principals proved by it must not stay cached.
            self.shared.generation.fetch_add(1, Relaxed);
        }
        if changed || before.good.is_none() {
            tracing::info!(issuer = %self.alias, keys = set.count(), "signing keys fetched");
        }
        JwksState {
            good: Some((Arc::new(set), now)),
            tried: Some((now, None)),
        }
    }

    async fn read(&self) -> Result<Bytes, String> {
        match &self.location {
            JwksLocation::File(file) => {
                let read = tokio::fs::read(file).await.map_err(|error| error.to_string())?;
                bounded(read.into())
            }
            JwksLocation::Url(client, url) => tokio::time::timeout(FETCH_TIMEOUT, get(client, url))
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {FETCH_TIMEOUT:?}"))),
        }
    }
}

/// Refuses a document that is too large.
pub(super) fn bounded(bytes: Bytes) -> Result<Bytes, String> {
    if bytes.len() > MAX_BYTES {
        Err(format!("it is larger than {MAX_BYTES} bytes"))
    } else {
        Ok(bytes)
    }
}

/// Fetches a key set. Only 200 is accepted; a redirect would lead to somebody else's keys.
async fn get(client: &Client, url: &http::Uri) -> Result<Bytes, String> {
    let request = Request::get(url.clone())
        .header("accept", "application/json")
        .body(Full::default());
    let answer = client
        .send(request.map_err(|error| error.to_string())?)
        .await
        .map_err(|error| chain(&error))?;
    if answer.status() != http::StatusCode::OK {
        return Err(format!("the answer was {}", answer.status()));
    }
    read_body(answer.into_body(), MAX_BYTES, FETCH_TIMEOUT)
        .await
        .map_err(|problem| problem.to_string())
}

/// The error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

impl std::fmt::Display for JwksLocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            JwksLocation::Url(_, url) => write!(f, "{url}"),
            JwksLocation::File(file) => write!(f, "{}", file.display()),
        }
    }
}
