//! `guardian db`: migrates the schema of the store, shows its state, and binds Postgres logins to an environment.

use super::context::{self, ConfigFile, Login};
use super::failure::{self, Failure};
use super::output::{self, Format, clean, line, progress};
use crate::domain::EnvironmentName;
use crate::store::Store;
use serde_json::json;

/// Prepare the store.
#[derive(Debug, clap::Subcommand)]
pub enum DbCommand {
    /// Bring the schema up to this program's version; makes the SQLite file if there is none.
    #[command(after_help = "Example:\n  guardian db migrate")]
    Migrate {
        #[command(flatten)]
        format: Format,
    },
    /// Let a login of the database see one environment's rows (Postgres).
    #[command(after_help = "Example:\n  guardian db bind guardian_proxy_prod --environment production")]
    Bind {
        /// The login, as the database knows it.
        role: String,
        /// That of the configuration by default.
        #[arg(long)]
        environment: Option<EnvironmentName>,
        #[command(flatten)]
        format: Format,
    },
    /// Show which migrations are applied and which are pending (exit code 4).
    #[command(after_help = "Example:\n  guardian db status --json")]
    Status {
        #[command(flatten)]
        format: Format,
    },
}

impl DbCommand {
    pub async fn run(&self, file: &ConfigFile) -> Result<(), Failure> {
        let config = file.load()?;
        match self {
            DbCommand::Migrate { format } => {
                let store = context::open_or_create(&config.store).await?.authored(file.author());
                migrate(&store, &config.environment, *format).await
            }
            DbCommand::Bind {
                role,
                environment,
                format,
            } => {
                let store = context::open_store(&config.store, Login::Administrator)
                    .await?
                    .authored(file.author());
                let environment = environment.as_ref().unwrap_or(&config.environment);
                store.bind_role(role, environment).await?;
                format.done(
                    &json!({ "role": role, "environment": environment }),
                    format_args!("`{}` sees the rows of `{environment}`", clean(role)),
                )
            }
            DbCommand::Status { format } => {
                let store = context::open_store(&config.store, Login::Administrator).await?;
                status(&store, *format).await
            }
        }
    }
}

async fn migrate(store: &Store, environment: &EnvironmentName, format: Format) -> Result<(), Failure> {
    let bar = progress(format_args!("migrating {}", store.location()));
    let mut done = Vec::new();
    store
        .migrate(&mut |step| {
            bar.now(format_args!("migrating {}: {step}", store.location()));
            done.push(step.to_owned());
        })
        .await?;
    if !done.is_empty() {
        store.note_migrated(environment, &done).await?;
    }
    drop(bar);
    match (format.json, done.len()) {
        (true, _) => output::json(&json!({ "applied": done })),
        (false, 0) => line(format_args!("{} is up to date", store.location())),
        (false, _) => line(format_args!("applied {} to {}", done.join(", "), store.location())),
    }
}

async fn status(store: &Store, format: Format) -> Result<(), Failure> {
    let status = store.status().await?;
    let current = status.pending.is_empty() && status.unknown.is_empty();
    if format.json {
        output::json(&status)?;
    } else {
        line(format_args!(
            "{}, schema version {}",
            clean(&store.location()),
            status.version
        ))?;
        for step in &status.applied {
            line(format_args!("  applied  {step}"))?;
        }
        for step in &status.pending {
            line(format_args!("  pending  {step}"))?;
        }
        for version in &status.unknown {
            line(format_args!("  unknown  {version:04}: made by a newer guardian"))?;
        }
    }
    if current {
        Ok(())
    } else {
        Err(Failure::silent(failure::FINDING))
    }
}
