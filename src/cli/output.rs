//! What commands print: tables for people, JSON for machines, progress where a person waits. Foreign text is made harmless
//! for a terminal.

use super::failure::Failure;
use crate::domain::Timestamp;
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
    /// A list: as a table, or as one JSON array.
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

    /// What was done: a sentence, or an object.
    pub fn done(self, value: &impl Serialize, sentence: impl Display) -> Result<(), Failure> {
        match self.json {
            true => json(value),
            false => line(sentence),
        }
    }
}

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

pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::failed(format_args!("cannot print this as JSON: {error}")))?;
    line(text)
}

/// One value a line, for streams.
pub fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text =
        serde_json::to_string(value).map_err(|error| Failure::failed(format_args!("cannot print this as JSON: {error}")))?;
    line(text)
}

pub fn line(text: impl Display) -> Result<(), Failure> {
    let mut out = stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Beside the answer: on standard error.
pub fn note(text: impl Display) -> Result<(), Failure> {
    eprintln!("{text}");
    Ok(())
}

/// Control characters escaped, so that no stored text can move the cursor or forge a row.
pub fn clean(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c.is_control() {
            true => c.escape_default().collect::<Vec<_>>(),
            false => vec![c],
        })
        .collect()
}

pub fn or_dash<T: Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

pub fn comma<T: Display>(values: impl IntoIterator<Item = T>) -> String {
    let values: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
    values.join(",")
}

/// To the second, which is what people compare.
pub fn at(time: Timestamp) -> String {
    Timestamp::from_secs(time.secs()).to_string()
}

/// Shows on a terminal that something takes its time; silent elsewhere. Gone when dropped.
pub struct Progress(ProgressBar);

pub fn progress(what: impl Display) -> Progress {
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::new_spinner(),
        false => ProgressBar::hidden(),
    };
    bar.set_style(ProgressStyle::default_spinner());
    bar.set_message(what.to_string());
    bar.enable_steady_tick(Duration::from_millis(100));
    Progress(bar)
}

impl Progress {
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
