//! Migrations: in the binary, applied in order, each in one transaction, recorded with a checksum. They never go back.

use super::engine::{Sql, StoreLocation, args};
use super::{Store, StoreError};
use crate::domain::EnvironmentName;
use sqlx::migrate::{Migrate, Migration, MigrationType, Migrator};
use sqlx::{Connection, SqlSafeStr};

/// Where the schema stands.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct MigrationStatus {
    pub engine: &'static str,
    /// Of the newest migration applied; 0 before the first.
    pub version: i64,
    pub applied: Vec<String>,
    pub pending: Vec<String>,
    /// Versions in the database that this program does not know.
    pub unknown: Vec<i64>,
}

struct MigrationStep {
    version: i64,
    name: &'static str,
    sql: &'static str,
}

const POSTGRES: &[MigrationStep] = &[
    MigrationStep {
        version: 1,
        name: "guardian",
        sql: include_str!("postgres/0001_guardian.sql"),
    },
    MigrationStep {
        version: 2,
        name: "feed_state",
        sql: include_str!("postgres/0002_feed_state.sql"),
    },
    MigrationStep {
        version: 3,
        name: "server_failures",
        sql: include_str!("postgres/0003_server_failures.sql"),
    },
    MigrationStep {
        version: 4,
        name: "audit_partitions",
        sql: include_str!("postgres/0004_audit_partitions.sql"),
    },
    MigrationStep {
        version: 5,
        name: "audit_records",
        sql: include_str!("postgres/0005_audit_records.sql"),
    },
    MigrationStep {
        version: 6,
        name: "changes",
        sql: include_str!("postgres/0006_changes.sql"),
    },
    MigrationStep {
        version: 7,
        name: "policy_documents",
        sql: include_str!("postgres/0007_policy_documents.sql"),
    },
    MigrationStep {
        version: 8,
        name: "trail_comparison",
        sql: include_str!("postgres/0008_trail_comparison.sql"),
    },
    MigrationStep {
        version: 9,
        name: "audit_conflicts",
        sql: include_str!("postgres/0009_audit_conflicts.sql"),
    },
];
const SQLITE: &[MigrationStep] = &[
    MigrationStep {
        version: 1,
        name: "guardian",
        sql: include_str!("sqlite/0001_guardian.sql"),
    },
    MigrationStep {
        version: 2,
        name: "server_failures",
        sql: include_str!("sqlite/0002_server_failures.sql"),
    },
    MigrationStep {
        version: 3,
        name: "audit_records",
        sql: include_str!("sqlite/0003_audit_records.sql"),
    },
    MigrationStep {
        version: 4,
        name: "changes",
        sql: include_str!("sqlite/0004_changes.sql"),
    },
    MigrationStep {
        version: 5,
        name: "policy_documents",
        sql: include_str!("sqlite/0005_policy_documents.sql"),
    },
];

const APPLIED: Sql = Sql {
    postgres: "SELECT version, checksum FROM guardian.migrations ORDER BY version",
    sqlite: "SELECT version, checksum FROM migrations ORDER BY version",
};

impl Store {
    /// Brings the schema up to this program's version; tells each step and does nothing where nothing is pending.
    /// On Postgres this needs a login with CREATEROLE and CREATE on the database, not a superuser.
    pub async fn migrate(&self, on_step: &mut (dyn FnMut(&str) + Send)) -> Result<(), StoreError> {
        let status = self.status().await?;
        self.refuse_newer(&status)?;
        for step in self.steps().iter().filter(|step| step.version > status.version) {
            on_step(&step.to_string());
            self.run_to(step.version).await?;
        }
        Ok(())
    }

    /// Records that somebody migrated the schema, in the chain of this environment's changes.
    pub async fn note_migrated(&self, env: &EnvironmentName, steps: &[String]) -> Result<(), StoreError> {
        let change = self.change_by_anyone(env).await?;
        change.commit_noting("schema migrated", steps.join(", ")).await
    }

    /// What is applied and what is pending, for any login that may see the schema.
    pub async fn status(&self) -> Result<MigrationStatus, StoreError> {
        let steps = self.steps();
        let applied = self.applied().await?;
        for (version, checksum) in &applied {
            let step = steps.iter().find(|step| step.version == *version);
            if step.is_some_and(|step| *step.migration().checksum != **checksum) {
                let what = format!("migration {version} was applied with another text than this program has");
                return Err(StoreError::broken(self.location(), what));
            }
        }
        let has = |step: &&MigrationStep| applied.iter().any(|(version, _)| *version == step.version);
        Ok(MigrationStatus {
            engine: self.engine(),
            version: applied.last().map_or(0, |(version, _)| *version),
            applied: steps.iter().filter(has).map(MigrationStep::to_string).collect(),
            pending: steps.iter().filter(|step| !has(step)).map(MigrationStep::to_string).collect(),
            unknown: applied
                .iter()
                .map(|(version, _)| *version)
                .filter(|v| steps.iter().all(|step| step.version != *v))
                .collect(),
        })
    }

    /// Refuses a schema that is behind or ahead of this program.
    pub async fn require_current(&self) -> Result<(), StoreError> {
        let status = self.status().await?;
        self.refuse_newer(&status)?;
        match status.pending.is_empty() {
            true => Ok(()),
            false => Err(StoreError::NotMigrated(self.location())),
        }
    }

    fn refuse_newer(&self, status: &MigrationStatus) -> Result<(), StoreError> {
        match status.unknown.last() {
            None => Ok(()),
            Some(found) => {
                let known = self.steps().last().map_or(0, |step| step.version);
                Err(StoreError::NewerSchema {
                    place: self.location(),
                    found: *found,
                    known,
                })
            }
        }
    }

    async fn applied(&self) -> Result<Vec<(i64, Vec<u8>)>, StoreError> {
        let rows = match self.query(&APPLIED, args![]).await {
            Err(StoreError::NotMigrated(_)) => return Ok(Vec::new()),
            rows => rows?,
        };
        rows.iter()
            .map(|row| Ok((row.get("version")?, row.get("checksum")?)))
            .collect()
    }

    async fn run_to(&self, version: i64) -> Result<(), StoreError> {
        let mut migrator = Migrator::with_migrations(self.steps().iter().map(MigrationStep::migration).collect());
        match self {
            Store::Postgres(engine) => {
                migrator.dangerous_set_table_name("guardian.migrations");
                migrator.create_schema("guardian");
                let connection = engine.pool.acquire().await;
                let mut connection = connection.map_err(|error| StoreError::of(error, &engine.location))?.detach();
                let done = apply(&migrator, version, &mut connection, &engine.location).await;
                // closing gives back the lock that a failed migration still holds
                let _ = connection.close().await;
                done
            }
            Store::Sqlite(engine) => {
                migrator.dangerous_set_table_name("migrations");
                let open = engine.file.current().await?;
                let connection = open.writer.acquire().await;
                let mut connection = connection.map_err(|error| StoreError::of(error, &engine.location))?;
                let done = apply(&migrator, version, &mut *connection, &engine.location).await;
                // a failed migration may leave its transaction open
                if done.is_err() {
                    connection.close_on_drop();
                }
                done
            }
        }
    }

    fn steps(&self) -> &'static [MigrationStep] {
        match self {
            Store::Postgres(_) => POSTGRES,
            Store::Sqlite(_) => SQLITE,
        }
    }

    fn engine(&self) -> &'static str {
        match self {
            Store::Postgres(_) => "postgres",
            Store::Sqlite(_) => "sqlite",
        }
    }
}

async fn apply<C: Migrate>(migrator: &Migrator, version: i64, on: &mut C, location: &StoreLocation) -> Result<(), StoreError> {
    migrator
        .run_direct(Some(version), on, false)
        .await
        .map_err(|error| StoreError::of_migration(error, location))
}

impl MigrationStep {
    fn migration(&self) -> Migration {
        Migration::new(
            self.version,
            self.name.into(),
            MigrationType::Simple,
            self.sql.into_sql_str(),
            false,
        )
    }
}

impl std::fmt::Display for MigrationStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04} {}", self.version, self.name)
    }
}
