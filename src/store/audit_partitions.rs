//! Keeps the audit trail's partitions on Postgres made ahead and counted, while records are shipped: nothing is asked of a
//! database that nobody writes to, because an idle one may be asleep.

use super::StoreError;
use super::engine::{PostgresEngine, Row, Sql};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What was done last. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Upkeep(Arc<Mutex<Done>>);

#[derive(Default)]
struct Done {
    /// The day, since 1970, whose first records found the partitions made.
    day: Option<i64>,
    rows: u64,
    /// After so many rows of this day they are counted again.
    count_at: u64,
}

const FIRST_COUNT: u64 = 1_000;
const ENSURE_PARTITIONS: Sql = Sql::of_postgres("SELECT partition_name, result FROM ensure_partitions(2)");
const ANALYZE: Sql = Sql::of_postgres("SELECT analyze_audit()::text");

impl Upkeep {
    fn lock(&self) -> MutexGuard<'_, Done> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether these are the first records of this day.
    fn begins(&self, day: i64) -> bool {
        let mut done = self.lock();
        let begins = done.day != Some(day);
        if begins {
            *done = Done {
                day: Some(day),
                rows: 0,
                count_at: FIRST_COUNT,
            };
        }
        begins
    }

    /// Whether there are ten times as many rows as when they were counted last.
    fn has_grown(&self, rows: u64) -> bool {
        let mut done = self.lock();
        done.rows += rows;
        let has_grown = done.rows >= done.count_at;
        if has_grown {
            done.count_at = done.rows * 10;
        }
        has_grown
    }
}

impl PostgresEngine {
    /// Makes partitions ahead with the first records of a day. A failure is logged and holds up nothing: the records go to the
    /// default partition, and move when theirs is made.
    pub(super) async fn keep_partitions(&self, day: i64) {
        if !self.upkeep.begins(day) {
            return;
        }
        match self.ensure_partitions().await {
            Ok(made) => made.iter().for_each(|made| tracing::info!(made, "database")),
            Err(error) => {
                self.upkeep.lock().day = None;
                tracing::warn!(%error, "audit partitions cannot be made ahead");
            }
        }
    }

    /// Has rows counted for the planner as they become many.
    pub(super) async fn keep_statistics(&self, rows: u64) {
        if self.upkeep.has_grown(rows)
            && let Err(error) = self.query(&ANALYZE, &[]).await
        {
            tracing::warn!(%error, "the rows of the audit trail cannot be counted for the planner");
        }
    }

    /// Makes the audit partitions of this month and the next two. Returns what it made.
    pub(super) async fn ensure_partitions(&self) -> Result<Vec<String>, StoreError> {
        let mut tx = self.begin("BEGIN").await?;
        let rows = tx.fetch(&ENSURE_PARTITIONS, &[]).await?;
        let said = |row: &Row| {
            let (name, result): (String, String) = (row.get("partition_name")?, row.get("result")?);
            Ok(format!("{name}: {result}"))
        };
        let said = rows.iter().map(said).collect();
        tx.commit().await?;
        said
    }
}
