//! Waiting for an event elsewhere: the one place in the tests that polls. Only `moment` waits for a fixed time to pass.

use std::future::Future;
use std::time::{Duration, Instant};

/// Long enough for a debug build on a busy machine; a story that reaches it fails.
pub const LONGEST: Duration = Duration::from_secs(30);

/// Calls `look` again and again until it returns something.
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

/// Awaits a future, and fails the story instead of hanging it.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LONGEST, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {LONGEST:?} for {what}"),
    }
}

/// Lets this much time pass: for a kill that is to come at any moment, never for something to have happened.
pub async fn moment(time: Duration) {
    tokio::time::sleep(time).await;
}
