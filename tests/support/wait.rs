//! Waiting for a thing that happens elsewhere: the one place in the tests that polls. Nothing here waits for time to pass.

use std::future::Future;
use std::time::{Duration, Instant};

/// Long enough for a debug build on a busy machine; a story that needs all of it has failed.
pub const LONGEST: Duration = Duration::from_secs(30);

/// Looks again and again until there is something to see.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONGEST;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < deadline, "waited {LONGEST:?} for {what}");
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
}

/// Fails the story instead of hanging it.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LONGEST, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {LONGEST:?} for {what}"),
    }
}
