//! What a call costs, the whole process counted, beside a bare hyper+rustls passthrough made of the same crates in the same run.
//!
//! Both proxies stand before the same server, on a core that load and server leave to them, and get the same load: 64 TLS
//! connections in a closed loop, each with a `tools/call` of about 1 KiB, either of 64 callers with ES256 tokens or of one with
//! an API key. The verdict on it is either reused or found by nine policies that read the arguments. What counts is the
//! processor time of all threads of the proxy's process per call, in interleaved windows; bringing both records of each call
//! to the store is counted to the last record. The ratio of the least totals is the figure to quote: absolute times depend on
//! the machine. With Postgres as the store only Guardian's own process is counted.
//!
//! `cargo bench --profile dist --bench path` measures what ships; `-- --help` tells of the arguments. `-- --against REV` runs
//! another commit's `guardian` beside this one.

mod against;
mod compare;
mod cpu;
mod guardian;
mod issuer;
mod load;
mod passthrough;
mod place;
#[path = "../../tests/support/postgres.rs"]
mod postgres;
mod report;
mod server;
#[path = "../../tests/support/stores.rs"]
#[expect(dead_code, reason = "stories use the rest of it")]
mod stores;

use clap::{Parser, ValueEnum};
use compare::compare;
use place::on_core;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What `guardian` has when it is built to be shipped; the passthrough has it too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a call costs beside a bare passthrough.
#[derive(Parser)]
#[command(about)]
struct Options {
    /// Short windows and few of them: to see that it runs, not to quote.
    #[arg(long)]
    quick: bool,
    /// Fail when 64 callers with tokens, verdict reused, on SQLite, cost more than this many times the passthrough.
    #[arg(long, value_name = "RATIO")]
    limit: Option<f64>,
    /// Only with this store. Postgres is the one that GUARDIAN_TEST_POSTGRES names.
    #[arg(long)]
    store: Option<Store>,
    /// Only with this verdict.
    #[arg(long)]
    only: Option<Verdict>,
    /// Only with these callers.
    #[arg(long)]
    callers: Option<Callers>,
    /// Build and run the `guardian` of this commit beside this one's.
    #[arg(long, value_name = "REV")]
    against: Option<String>,
    /// Fail when any scenario costs more than this many times what it cost in `--against`.
    #[arg(long, value_name = "RATIO", requires = "against")]
    against_limit: Option<f64>,
    /// Where the binary of `--against` is.
    #[arg(long, hide = true)]
    against_program: Option<PathBuf>,
    /// Be the load and the server, on their core.
    #[arg(long, hide = true)]
    pinned: bool,
    /// Be the passthrough.
    #[arg(long, hide = true, num_args = 3)]
    passthrough: Option<Vec<String>>,
    /// Said by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Store {
    Sqlite,
    Postgres,
}

/// Who sends the calls, one on each connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Callers {
    /// As many as there are connections, each with a token of its own.
    Tokens,
    /// One, with an API key.
    Key,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Verdict {
    /// The policies do not read the arguments: what they said of the first call holds for the next.
    Reused,
    /// Nine policies read the arguments of each call.
    Judged,
}

fn main() -> ExitCode {
    let options = Options::parse();
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .expect("no provider was installed before");
    match &options.passthrough {
        Some(arguments) => {
            passthrough::serve(&arguments[0], &arguments[1], Path::new(&arguments[2]));
            ExitCode::SUCCESS
        }
        None if options.pinned => compare(&options),
        None => pinned(&options),
    }
}

/// This program once more, with load and server on a core that the proxies leave to them.
fn pinned(options: &Options) -> ExitCode {
    let mut command = on_core(1, std::env::current_exe().expect("this program"));
    command.args(std::env::args_os().skip(1)).arg("--pinned");
    if let Some(revision) = &options.against {
        command.arg("--against-program").arg(against::build(revision));
    }
    let status = command.status().expect("`taskset` of util-linux is there");
    if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
