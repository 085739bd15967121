//! Fetches a server's tool list for commands and turns failures into sentences. It stores nothing.

use super::failure::with_causes;
use super::output::clean;
use crate::config::{HumanDuration, ServerConfig};
use crate::upstream::{OfferedTools, Upstream};
use std::time::Duration;

/// A program may be downloaded first (`npx`, `uvx`), so it gets more time than a server that is only called.
pub const PATIENCE: Duration = Duration::from_secs(10);
pub const PATIENCE_WITH_PROGRAMS: Duration = Duration::from_secs(30);

/// Fetches a server's tools with the code that `serve` uses, over a connection of its own.
pub async fn fetch(server: &ServerConfig) -> Result<OfferedTools, String> {
    let name = &server.name;
    let patience = if server.url.is_some() {
        PATIENCE
    } else {
        PATIENCE_WITH_PROGRAMS
    };
    let mut hurried = server.clone();
    hurried.first_byte_timeout.0 = hurried.first_byte_timeout.0.min(patience);
    let upstream = Upstream::new(&hurried).map_err(|error| with_causes(&error))?;
    // What takes too long inside says what it was, so it has a little more time here.
    let fetched = tokio::time::timeout(patience + Duration::from_secs(1), upstream.fetch_tools()).await;
    upstream.stop().await;
    match fetched {
        Ok(Ok(offered)) => Ok(offered),
        Ok(Err(error)) => Err(format!("server `{name}`: {}", clean(&error.for_operator()))),
        Err(_) => Err(format!(
            "server `{name}` did not list its tools within {}",
            HumanDuration(patience)
        )),
    }
}
