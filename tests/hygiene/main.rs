//! Rules about the source, checked by reading it: which room may use which, where each technology lives, what the
//! dependency tree may contain. Nothing here runs Guardian.
//!
//! A failure lists `file:line` and what to do. If the rule is wrong rather than the line, change the table in this
//! folder in the same commit and say why there.

mod dependencies;
mod floors;
mod habits;
mod names;
mod source;
mod structure;
mod technologies;

use source::{Finding, Source};

/// Fails if there are findings: one line for each, below the sentence that says what to do about them.
fn hold(rule: &str, findings: Vec<Finding>) {
    let list: Vec<String> = findings.iter().map(Finding::to_string).collect();
    assert!(list.is_empty(), "\n{rule}\n\n  {}\n", list.join("\n  "));
}

fn sources() -> Vec<Source> {
    Source::tree("src")
}
