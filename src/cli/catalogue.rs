//! Fetches a server's tool list for commands and turns failures into sentences. It stores nothing.

use super::failure::with_causes;
use super::output::clean;
use crate::config::{HumanDuration, ServerConfig};
use crate::upstream::{FetchFailed, OfferedTools, Upstream};
use std::time::Duration;

/// Fetches a server's tools with the code that `serve` uses, over a connection of its own.
pub async fn fetch(server: &ServerConfig, patience: Duration) -> Result<OfferedTools, String> {
    let name = &server.name;
    let upstream = Upstream::new(server).map_err(|error| with_causes(&error))?;
    let fetched = tokio::time::timeout(patience, upstream.fetch_tools()).await;
    upstream.stop().await;
    match fetched {
        Ok(Ok(offered)) => Ok(offered),
        Ok(Err(FetchFailed::Failed(error))) => Err(match &error.cause {
            Some(cause) => format!("server `{name}`: {error}: {}", clean(cause)),
            None => format!("server `{name}`: {error}"),
        }),
        Ok(Err(error)) => Err(format!("server `{name}`: {}", clean(&error.to_string()))),
        Err(_) => Err(format!(
            "server `{name}` did not list its tools within {}",
            HumanDuration(patience)
        )),
    }
}
