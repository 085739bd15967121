//! Why a server could not be asked for its tools, while it lasts. Written by the proxy, read by commands; nothing is decided
//! by it.

use super::engine::{Row, Sql, args};
use super::unreadable::{ColumnError, name, or_left_out, time};
use super::{Store, StoreError};
use crate::domain::{EnvironmentName, ServerName, Timestamp};

/// A server that cannot be asked for its tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFailure {
    pub server: ServerName,
    pub failure: String,
    pub since: Timestamp,
    /// When it failed last.
    pub seen_at: Timestamp,
}

/// As long as the column takes, in characters.
const LONGEST: usize = 8_000;

const READ: Sql = Sql {
    postgres: "SELECT server, failure, micros(since) AS since, micros(seen_at) AS seen_at FROM server_failures
               WHERE environment = $1 ORDER BY server",
    sqlite: "SELECT server, failure, since, seen_at FROM server_failures WHERE environment = $1 ORDER BY server",
};

const NOTE: Sql = Sql {
    postgres: "INSERT INTO server_failures (environment, server, failure) VALUES ($1, $2, $3)
               ON CONFLICT (environment, server) DO UPDATE SET failure = excluded.failure, seen_at = now()",
    sqlite: "INSERT INTO server_failures (environment, server, failure, since, seen_at)
             SELECT $1, $2, $3, micros, micros FROM clock WHERE true
             ON CONFLICT (environment, server) DO UPDATE SET failure = excluded.failure, seen_at = excluded.seen_at",
};

const CLEAR: Sql = Sql::same("DELETE FROM server_failures WHERE environment = $1 AND server = $2");

impl Store {
    pub async fn server_failures(&self, env: &EnvironmentName) -> Result<Vec<ServerFailure>, StoreError> {
        let rows = self.query(&READ, args![env.as_str()]).await?;
        let readable = rows.iter().filter_map(|row| or_left_out(failure_of(row), row, TABLE, KEYS));
        Ok(readable.collect())
    }

    /// Notes why the server failed just now; `None`: it does not fail any more. Returns whether that is new to the store, as far
    /// as it can tell.
    pub async fn note_server_failure(
        &self,
        env: &EnvironmentName,
        server: &ServerName,
        failure: Option<&str>,
    ) -> Result<bool, StoreError> {
        let noted = match failure {
            Some(failure) => {
                // Postgres takes no NUL in a text.
                let failure: String = failure.chars().filter(|char| *char != '\0').take(LONGEST).collect();
                self.execute(&NOTE, args![env.as_str(), server.as_str(), failure]).await
            }
            None => self.execute(&CLEAR, args![env.as_str(), server.as_str()]).await,
        };
        noted.map(|rows| rows > 0)
    }
}

const TABLE: &str = "server_failures";
const KEYS: &[&str] = &["server"];

fn failure_of(row: &Row) -> Result<ServerFailure, ColumnError> {
    Ok(ServerFailure {
        server: name(row, "server")?,
        failure: row.cell("failure")?,
        since: time(row, "since")?,
        seen_at: time(row, "seen_at")?,
    })
}
