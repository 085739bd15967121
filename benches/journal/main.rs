//! How fast the journal makes records durable, beside a bare loop that appends and syncs as much in the same folder, and what it
//! takes to bring the two records of a call to each store.
//!
//! `cargo bench --profile dist --bench journal` prints the figures; it fails where the journal makes less than its share of
//! what the disk gives (`MOST`), or ships too slowly. `-- --quick` has short windows and wide bounds: only a mistake exceeds
//! them on a busy machine. Postgres is the one that GUARDIAN_TEST_POSTGRES names, or a throw-away cluster.

mod append;
#[path = "../path/cpu.rs"]
mod cpu;
#[path = "../instructions/events.rs"]
mod events;
#[path = "../../tests/support/postgres.rs"]
mod postgres;
mod ship;

use clap::Parser;
use neural_guardian::domain::Timestamp;
use neural_guardian::journal::{Journal, JournalSettings, StartFacts};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// What `guardian` has when it is built to be shipped.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What the journal does beside a bare loop, and what shipping costs.
#[derive(Parser)]
#[command(about)]
struct Options {
    /// Short windows and wide bounds: to see that it runs, not to quote.
    #[arg(long)]
    quick: bool,
    /// Only `append` or `ship`.
    #[arg(long)]
    only: Option<String>,
    /// Said by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let wanted = |part: &str| options.only.as_deref().is_none_or(|only| only == part);
    let scratch = Scratch::new();
    let mut ok = true;
    if wanted("append") {
        ok &= append::compare(&scratch.0, options.quick);
    }
    if wanted("ship") {
        ok &= ship::measure(&scratch.0, options.quick);
    }
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A folder on the disk of the build, so that a sync is a sync; it goes when this is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("journal-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a scratch folder");
        Self(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn new_journal(dir: PathBuf) -> Journal {
    let settings = JournalSettings {
        dir,
        max_bytes: 16 << 30,
        segment_bytes: 64 << 20,
        sync_timeout: Duration::from_secs(60),
        keep_shipped: Duration::ZERO,
        seal_on_conflict: false,
        allow_volatile: true,
    };
    let start = StartFacts {
        environment: events::environment(),
        version: "1".to_owned(),
        instance: "bench".to_owned(),
        instance_id: None,
    };
    let opened = Journal::open_dir(settings, start, || Timestamp::from_secs(1_795_000_000));
    opened.expect("a new journal").0
}

fn judge(ok: bool) -> &'static str {
    if ok { "" } else { "  TOO LITTLE" }
}
