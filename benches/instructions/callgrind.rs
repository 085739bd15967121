//! Runs this program under callgrind and adds up the instructions of Guardian's own functions.

use super::scenarios::SCENARIOS;
use std::path::Path;
use std::process::{Command, Stdio};

/// A function is Guardian's own if its name says so: it is of this crate, or of a trait or type parameter's that is. What
/// the compiler put inline into it counts with it; the standard library, malloc, SQLite and other crates do not.
const OWN: &str = "neural_guardian::";

pub fn is_there() -> bool {
    let asked = Command::new("valgrind")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}

/// Instructions that each scenario takes to do its work once.
pub fn count(scratch: &Path) -> Vec<u64> {
    let out = scratch.join("callgrind.out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--compress-strings=no", "--compress-pos=no"])
        .arg("--dump-before=instructions::scenarios::mark")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe().expect("this program"))
        .arg("--run")
        .arg(scratch)
        .output()
        .expect("valgrind runs");
    assert!(
        output.status.success(),
        "callgrind failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Each mark begins a new file: what lies between the two marks of a scenario is in every second one.
    let own = |(index, (_, times)): (usize, (&str, u64))| {
        let file = format!("{}.{}", out.display(), 2 * index + 2);
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("`{file}`: {error}"));
        own_instructions(&text) / times
    };
    SCENARIOS.into_iter().enumerate().map(own).collect()
}

/// The sum of what Guardian's own functions ran themselves, without what they called.
fn own_instructions(profile: &str) -> u64 {
    let (mut sum, mut own, mut called) = (0, false, false);
    for line in profile.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            own = name.contains(OWN);
        } else if line.starts_with("calls=") {
            // The next line is what the callee cost.
            called = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit()) && !std::mem::take(&mut called) && own {
            let cost = line.split(' ').nth(1).and_then(|cost| cost.parse::<u64>().ok());
            sum += cost.unwrap_or_else(|| panic!("a line and its cost, not `{line}`"));
        }
    }
    sum
}
