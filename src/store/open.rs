//! How a store is named before it is opened.

use crate::config::Secret;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Clone)]
pub enum StoreOpen {
    Sqlite {
        file: PathBuf,
        create: bool,
    },
    Postgres {
        url: Secret,
        ca_file: Option<PathBuf>,
        max_connections: u32,
        connect_timeout: Duration,
    },
}
