//! Small rules that a reviewer should not have to check by hand.

use crate::source::{Finding, Source, words};
use crate::{hold, sources};

const LONGEST_FILE: usize = 700;
/// Macros and notes that mark unfinished code.
const UNFINISHED: &[&str] = &["todo", "unimplemented", "dbg"];
const NOTES: &[&str] = &["TODO", "FIXME", "XXX", "HACK"];

/// The files that may sleep, because they poll.
const POLLING: &[&str] = &["tests/support/wait.rs", "tests/support/postgres.rs"];

#[test]
fn a_file_is_one_idea() {
    let long = |source: &Source| match source.text.lines().count() {
        lines if lines > LONGEST_FILE => Some(source.finding(lines, format!("{lines} lines, at most {LONGEST_FILE}"))),
        _ => None,
    };
    hold(
        "Split the file where its ideas part.",
        sources().iter().filter_map(long).collect(),
    );
}

#[test]
fn a_file_opens_with_what_it_is() {
    let mute = |source: &&Source| !source.text.starts_with("//! ");
    let findings = everything()
        .iter()
        .filter(mute)
        .map(|source| source.finding(1, "does not open with `//!`"))
        .collect();
    hold(
        "Begin with two or three lines: what the file is and what it deliberately does not do.",
        findings,
    );
}

#[test]
fn what_ships_does_not_unwrap() {
    let findings = sources()
        .iter()
        .flat_map(|source| shipped_with(source, ".unwrap()"))
        .collect();
    hold("Return an error, or `expect` the invariant that holds, in words.", findings);
}

#[test]
fn nothing_is_left_unfinished() {
    let mut findings = Vec::new();
    for source in everything()
        .iter()
        .filter(|source| !source.file.starts_with("tests/hygiene/"))
    {
        for (number, line) in source.lines() {
            let macros = words(line).filter(|(at, word)| UNFINISHED.contains(word) && line[at + word.len()..].starts_with('!'));
            findings.extend(macros.map(|(_, word)| source.finding(number, format!("`{word}!`"))));
            if line.contains("#[ignore") {
                findings.push(source.finding(number, "`#[ignore]`"));
            }
        }
        for (index, line) in source.text.lines().enumerate() {
            let notes = words(line).filter(|(_, word)| NOTES.contains(word));
            findings.extend(notes.map(|(_, word)| source.finding(index + 1, format!("`{word}`"))));
        }
    }
    hold("Finish it, or write it down as an issue.", findings);
}

#[test]
fn tests_wait_for_things_and_do_not_sleep() {
    let naps = |source: &Source| shipped_with(source, "sleep(");
    let tests = Source::tree("tests");
    let awake = tests
        .iter()
        .filter(|source| !source.file.starts_with("tests/hygiene/") && !POLLING.contains(&source.file.as_str()));
    hold(
        "Wait for the thing itself (tests/support/wait.rs is the place that polls).",
        awake.flat_map(naps).collect(),
    );
}

fn everything() -> Vec<Source> {
    ["src", "tests", "benches"].into_iter().flat_map(Source::tree).collect()
}

fn shipped_with(source: &Source, pattern: &str) -> Vec<Finding> {
    let lines = source.shipped().filter(|(_, line)| line.contains(pattern));
    lines
        .map(|(number, _)| source.finding(number, format!("`{pattern}`")))
        .collect()
}
