//! A problem of the configuration: where it is, what it is, and what to do. It never holds the value of a secret.

use crate::domain::SafeText;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// An error or warning about the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConfigProblem {
    pub severity: Severity,
    #[serde(rename = "place")]
    pub location: SourceLocation,
    /// The dotted key: `servers[0].url`. Empty for the file as a whole.
    pub key: String,
    pub message: String,
    pub help: Option<String>,
}

/// Whether a problem keeps Guardian from starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Guardian does not start.
    Error,
    /// Guardian starts nevertheless.
    Warning,
}

/// Where the offending value was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceLocation {
    /// Lines and columns count from 1; columns count characters.
    File { file: PathBuf, line: usize, column: usize },
    /// An environment variable that overrides the file.
    Variable(String),
    /// Nowhere: the value is a default, or the configuration never was a file.
    Nowhere,
}

impl ConfigProblem {
    pub(super) fn error(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            location: SourceLocation::Nowhere,
            key: key.into(),
            message: message.into(),
            help: None,
        }
    }

    pub(super) fn warning(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(key, message)
        }
    }

    pub(super) fn at(self, location: SourceLocation) -> Self {
        Self { location, ..self }
    }

    pub(super) fn help(self, help: impl Into<String>) -> Self {
        Self {
            help: Some(help.into()),
            ..self
        }
    }
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            SourceLocation::File { file, line, column } => write!(f, "{}:{line}:{column}: ", file.display())?,
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

impl std::error::Error for ConfigProblem {}

/// Foreign text in backticks.
pub(super) fn quoted(text: &str) -> String {
    format!("`{}`", SafeText::new(text, 80))
}
