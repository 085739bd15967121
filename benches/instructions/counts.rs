//! The counts that the repository keeps, and how new ones are judged by them.

use super::scenarios::SCENARIOS;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const FILE: &str = "benches/instructions/counts.txt";
const BLESS: &str = "`cargo bench --bench instructions -- --bless \"why\"`";
const HEAD: &str = "\
# Instructions of Guardian's own functions for one decision, one body, both records of a call, and shipping these.
# Written by `cargo bench --bench instructions -- --bless \"why\"`; the reason is why a count is what it is since it last changed.
";
/// A count may rise by so much; one that falls by so much should be kept.
const TOLERANCE: f64 = 0.05;

pub struct Counts {
    /// The compiler that the counts are of. Another one makes other code.
    compiler: String,
    entries: Vec<Entry>,
}

struct Entry {
    name: String,
    count: u64,
    reason: String,
}

impl Counts {
    pub fn load() -> Self {
        let text = std::fs::read_to_string(path()).unwrap_or_default();
        let mut counts = Self {
            compiler: String::new(),
            entries: Vec::new(),
        };
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
            match name {
                "compiler" => counts.compiler = rest.trim().to_owned(),
                name => {
                    let (count, reason) = rest.trim().split_once(' ').unwrap_or((rest.trim(), ""));
                    counts.entries.push(Entry {
                        name: name.to_owned(),
                        count: count.parse().unwrap_or_else(|_| panic!("{FILE}: no count in `{line}`")),
                        reason: reason.trim().to_owned(),
                    });
                }
            }
        }
        counts
    }

    /// Says how each count compares, and fails when one has risen.
    pub fn judge(&self, counted: &[u64]) -> ExitCode {
        let (mut risen, mut fallen) = (Vec::new(), Vec::new());
        for ((name, _), count) in SCENARIOS.into_iter().zip(counted) {
            let Some(kept) = self.entries.iter().find(|entry| entry.name == name) else {
                println!("{name:<14} {count:>8} instructions");
                risen.push(format!("no count is kept for `{name}`"));
                continue;
            };
            let change = *count as f64 / kept.count as f64 - 1.0;
            println!("{name:<14} {count:>8} instructions ({:+.1} %)", change * 100.0);
            let told = format!(
                "`{name}` takes {count} instructions, {:+.1} % of the {} kept",
                change * 100.0,
                kept.count
            );
            if change > TOLERANCE {
                risen.push(told);
            } else if change < -TOLERANCE {
                fallen.push(told);
            }
        }
        let compiler = compiler();
        if self.compiler != compiler {
            println!(
                "not judged: the counts kept are of `{}`, this is `{compiler}`; keep new ones with {BLESS}",
                self.compiler
            );
            return ExitCode::SUCCESS;
        }
        for told in fallen {
            println!("{told}: keep that with {BLESS}");
        }
        for told in &risen {
            eprintln!("{told}: make it cheaper, or say why it costs more with {BLESS}, and commit {FILE} with the change");
        }
        if risen.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    /// Keeps the counts that are not what they were. With another compiler all are.
    pub fn bless(&mut self, counted: &[u64], reason: &str) {
        let compiler = compiler();
        let mut text = format!("{HEAD}compiler {compiler}\n");
        for ((name, _), count) in SCENARIOS.into_iter().zip(counted) {
            let kept = self
                .entries
                .iter()
                .find(|entry| entry.name == name && self.compiler == compiler);
            let same = kept.filter(|kept| (*count as f64 / kept.count as f64 - 1.0).abs() < SPREAD);
            let (count, reason) = same.map_or((*count, reason), |kept| (kept.count, &kept.reason));
            writeln!(text, "{name:<14} {count:>8}  {reason}").expect("a string takes what is written to it");
        }
        std::fs::write(path(), &text).expect("the repository can be written");
        print!("{text}");
    }
}

/// What chance does to a count. Less is no change.
const SPREAD: f64 = 0.01;

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE)
}

/// Its version, and what it compiles for.
fn compiler() -> String {
    let output = Command::new("rustc").arg("--version").output().expect("rustc runs");
    let version = String::from_utf8(output.stdout).expect("text");
    format!("{}, {}", version.trim(), std::env::consts::ARCH)
}
