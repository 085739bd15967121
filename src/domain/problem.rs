//! A problem of the configuration or of a policy: where it is, what it is, and what to do. It never holds the value of a
//! secret. Coloured output is left to the command.

use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};

/// An error to repair, or a warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub severity: Severity,
    pub location: SourceLocation,
    /// The dotted key of the configuration: `servers[0].url`. Empty for a file as a whole, and for policies.
    pub key: String,
    pub message: String,
    pub help: Option<String>,
}

/// Whether a problem keeps Guardian from starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Guardian does not start, or does not take the policies.
    Error,
    /// Guardian starts nevertheless.
    Warning,
}

/// Where the offending text was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceLocation {
    /// Lines and columns count from 1; columns count characters.
    #[serde(rename = "file")]
    InFile { file: PathBuf, line: usize, column: usize },
    /// An environment variable that overrides the file.
    Variable(String),
    /// Nowhere: the value is a default, the configuration never was a file, or no file is to blame.
    Nowhere,
}

impl SourceLocation {
    /// The place of byte `offset` of `text`, the content of `file`.
    pub fn in_file(file: impl AsRef<Path>, text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        Self::InFile {
            file: file.as_ref().to_owned(),
            line: before.matches('\n').count() + 1,
            column: line.chars().count() + 1,
        }
    }
}

impl Problem {
    pub fn error(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            location: SourceLocation::Nowhere,
            key: key.into(),
            message: message.into(),
            help: None,
        }
    }

    pub fn warning(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self::error(key, message).into_warning()
    }

    pub fn at(self, location: SourceLocation) -> Self {
        Self { location, ..self }
    }

    pub fn help(self, help: impl Into<String>) -> Self {
        Self {
            help: Some(help.into()),
            ..self
        }
    }

    pub fn into_warning(self) -> Self {
        Self {
            severity: Severity::Warning,
            ..self
        }
    }

    /// The problem without the word `warning`, for places that say of themselves what is a warning.
    pub fn unlabelled(&self) -> String {
        let error = Self {
            severity: Severity::Error,
            ..self.clone()
        };
        error.to_string()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            SourceLocation::InFile { file, line, column } => write!(f, "{}:{line}:{column}: ", file.display())?,
            SourceLocation::Variable(name) => write!(f, "environment variable {name}: ")?,
            SourceLocation::Nowhere => {}
        }
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_counted_in_lines_and_characters() {
        let place = SourceLocation::in_file("a.cedar", "één\ntwö x", 11);
        let problem = Problem::warning("", "wrong").at(place).help("right");
        assert_eq!(problem.to_string(), "a.cedar:2:5: warning: wrong; right");
        assert_eq!(problem.unlabelled(), "a.cedar:2:5: wrong; right");
        assert_eq!(Problem::error("", "wrong").to_string(), "wrong");
    }
}
