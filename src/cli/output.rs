//! Output of the commands: tables for people, JSON for programs, a spinner while a person waits. `table` escapes control
//! characters in its cells; any other text that users or servers wrote goes through `clean` before it is printed.

use super::failure::Failure;
use crate::domain::{SafeText, Timestamp};
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::fmt::Display;
use std::io::{IsTerminal, Write, stdout};
use std::time::Duration;

#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Format {
    /// Print JSON, for machines.
    #[arg(long)]
    pub json: bool,
}

impl Format {
    /// Prints a list: one JSON array with `--json`, else a table, or `none` on standard error if the list is empty.
    pub fn list<T: Serialize>(
        self,
        items: &[T],
        heads: &[&str],
        none: &str,
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<(), Failure> {
        if self.json {
            return json(&items);
        }
        if items.is_empty() {
            return note(none);
        }
        line(table(heads, items.iter().map(row)))
    }

    /// Prints what a command did: `value` with `--json`, else `sentence`.
    pub fn done(self, value: &impl Serialize, sentence: impl Display) -> Result<(), Failure> {
        if self.json { json(value) } else { line(sentence) }
    }
}

/// A table without borders; control characters in cells are escaped.
pub fn table(heads: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(heads.iter().map(|head| head.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

pub fn json_array(items: impl Iterator<Item = serde_json::Value>) -> Result<(), Failure> {
    json(&items.collect::<Vec<_>>())
}

/// Prints a value as indented JSON.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::failed(format_args!("cannot print this as JSON: {error}")))?;
    line(text)
}

/// Prints a value as JSON on one line, so that a reader can take a stream line by line.
pub fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text =
        serde_json::to_string(value).map_err(|error| Failure::failed(format_args!("cannot print this as JSON: {error}")))?;
    line(text)
}

/// Prints a line on standard output, flushed so that a pipe sees it at once.
pub fn line(text: impl Display) -> Result<(), Failure> {
    let mut out = stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Prints a stored text exactly, so that a program can hash it. On a terminal its control characters are escaped line by line.
pub fn exactly(text: &str) -> Result<(), Failure> {
    let mut out = stdout().lock();
    if out.is_terminal() {
        text.lines().try_for_each(|line| writeln!(out, "{}", clean(line)))?;
    } else {
        out.write_all(text.as_bytes())?;
    }
    Ok(out.flush()?)
}

/// Prints a line on standard error: standard output holds only the command's answer.
pub fn note(text: impl Display) -> Result<(), Failure> {
    eprintln!("{text}");
    Ok(())
}

/// No stored text can move the cursor or forge a row.
pub fn clean(text: &str) -> String {
    SafeText::uncut(text).to_string()
}

pub fn or_dash<T: Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

pub fn comma<T: Display>(values: impl IntoIterator<Item = T>) -> String {
    let values: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
    values.join(",")
}

/// A time without its fraction of a second, which people do not compare.
pub fn at(time: Timestamp) -> String {
    Timestamp::from_secs(time.secs()).to_string()
}

/// A spinner on standard error, shown only if that is a terminal. Dropping it clears it.
pub struct Progress(ProgressBar);

pub fn progress(what: impl Display) -> Progress {
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::hidden()
    };
    bar.set_style(ProgressStyle::default_spinner());
    bar.set_message(what.to_string());
    bar.enable_steady_tick(Duration::from_millis(100));
    Progress(bar)
}

impl Progress {
    /// Replaces the text beside the spinner.
    pub fn now(&self, what: impl Display) {
        self.0.set_message(what.to_string());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_text_cannot_forge_a_row() {
        let rows = [vec!["a\nb\u{1b}[2J".to_owned(), "c".to_owned()]];
        assert_eq!(table(&["x", "y"], rows.into_iter()), "X              Y\na\\nb\\u{1b}[2J  c");
    }
}
