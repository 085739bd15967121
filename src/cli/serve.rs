//! `guardian serve`: loads the configuration, starts the log, and runs the app until that stops.

use super::context::ConfigFile;
use super::failure::Failure;
use super::output::note;
use crate::{app, telemetry};
use std::io::IsTerminal;

/// Stand before the configured servers until told to stop.
///
/// SIGTERM and Ctrl-C let running calls finish; the second one cuts them, and one that comes while the journal is written to
/// its end does not wait for that.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  guardian serve --config /etc/guardian/guardian.toml")]
pub struct ServeCommand {
    /// Start although the journal and the audit trail do not agree: ship again what the journal holds, and record what is
    /// missing and who accepted that. For one start.
    #[arg(long)]
    accept_gap: bool,
}

impl ServeCommand {
    pub fn run(&self, file: &ConfigFile) -> Result<(), Failure> {
        let loaded = file.read().map_err(|problems| Failure::configuration(&problems))?;
        for warning in &loaded.warnings {
            note(warning)?;
        }
        telemetry::start(&loaded.config.log, std::io::stderr().is_terminal()).map_err(Failure::usage)?;
        Ok(app::serve(loaded.config, self.accept_gap)?)
    }
}
