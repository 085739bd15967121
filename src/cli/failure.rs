//! Why a command failed: an exit code for scripts and sentences for people.

use crate::app;
use crate::domain::Problem;
use crate::store::StoreError;
use std::error::Error;
use std::fmt::Display;
use std::io;
use std::process::ExitCode;

/// What each exit code means, for `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  could not be done
  2  the command line, the configuration or a policy is wrong
  3  the store cannot be reached
  4  done, and what was looked at is not as it should be
  5  `serve` does not start: the journal and the audit trail do not agree
  70  `serve` ended before the journal's disk had taken every record";

pub const FAILED: u8 = 1;
pub const USAGE: u8 = 2;
pub const UNREACHABLE: u8 = 3;
pub const FINDING: u8 = 4;
const TRAIL_DISAGREES: u8 = 5;
const NOT_WRITTEN: u8 = 70;

/// Ends a command with this exit code and these sentences; each says what is wrong, where, and what to do.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    sentences: Vec<String>,
}

impl Failure {
    pub fn failed(sentence: impl Display) -> Self {
        Self::with(FAILED, sentence)
    }

    pub fn usage(sentence: impl Display) -> Self {
        Self::with(USAGE, sentence)
    }

    /// Ends the command without a sentence: it has printed its findings, or nobody reads the output any more.
    pub fn silent(code: u8) -> Self {
        Self {
            code,
            sentences: Vec::new(),
        }
    }

    pub fn configuration(problems: &[Problem]) -> Self {
        Self {
            code: USAGE,
            sentences: problems.iter().map(Problem::to_string).collect(),
        }
    }

    fn with(code: u8, sentence: impl Display) -> Self {
        Self {
            code,
            sentences: vec![sentence.to_string()],
        }
    }

    /// Prints the sentences on standard error.
    pub fn report(self) -> ExitCode {
        for sentence in self.sentences {
            eprintln!("error: {sentence}");
        }
        ExitCode::from(self.code)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::Configuration(_) | StoreError::Invalid(_) => USAGE,
            _ if is_unreachable(&error) => UNREACHABLE,
            _ => FAILED,
        };
        Self::with(code, advised(&error))
    }
}

/// The store's error text, with the command that helps: the store does not know the commands.
pub fn advised(error: &StoreError) -> String {
    match error {
        StoreError::DatabaseMissing(_) => format!("{error}: `guardian db migrate` makes an embedded one"),
        _ => error.to_string(),
    }
}

/// Whether the store answers no query at all, so that another query would fail too.
pub fn is_unreachable(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Unreachable { .. }
            | StoreError::WrongPassword { .. }
            | StoreError::DatabaseMissing(_)
            | StoreError::Tls { .. }
            | StoreError::Busy { .. }
            | StoreError::DiskFails { .. }
    )
}

/// A closed pipe (`guardian … | head`) is no failure.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::silent(0),
            _ => Self::failed(format_args!("cannot write the answer: {error}")),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<StoreError>() {
            Ok(error) => error.into(),
            Err(error) => {
                let code = match () {
                    () if error.is::<app::TrailDisagrees>() => TRAIL_DISAGREES,
                    () if error.is::<app::JournalNotWritten>() => NOT_WRITTEN,
                    () => FAILED,
                };
                Self::with(code, format_args!("{error:#}"))
            }
        }
    }
}

/// An error and its chain of sources as one sentence, separated by colons.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
