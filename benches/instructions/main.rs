//! How many instructions of Guardian's own functions it takes to decide, parse, record and ship, counted by callgrind.
//!
//! Unlike time the counts hardly depend on the machine or on what else runs: `counts.txt` keeps them, and this fails when one
//! has risen by more than 5 %. `cargo bench --bench instructions -- --bless "why"` writes those that have changed, with the
//! reason; commit the file with the change that it is about.

mod callgrind;
mod counts;
mod events;
mod scenarios;
#[path = "../decide/world.rs"]
#[expect(dead_code, reason = "the bench of decisions uses the rest of it")]
mod world;

use clap::Parser;
use counts::Counts;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Counts instructions and compares them with counts.txt.
#[derive(Parser)]
#[command(about)]
struct Options {
    /// Write the counts that have changed, for this reason.
    #[arg(long, value_name = "REASON")]
    bless: Option<String>,
    /// Be what is counted.
    #[arg(long, hide = true)]
    run: Option<PathBuf>,
    /// Said by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(scratch) = &options.run {
        scenarios::run(scratch);
        return ExitCode::SUCCESS;
    }
    if !callgrind::is_there() {
        println!("instructions are not counted: valgrind is not installed");
        return ExitCode::SUCCESS;
    }
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("instructions-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).expect("a scratch folder");
    let counted = callgrind::count(&scratch);
    std::fs::remove_dir_all(&scratch).expect("a scratch folder");
    let mut kept = Counts::load();
    match &options.bless {
        Some(reason) => {
            kept.bless(&counted, reason);
            ExitCode::SUCCESS
        }
        None => kept.judge(&counted),
    }
}
