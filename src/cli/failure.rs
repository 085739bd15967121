//! How a command ends when it does not succeed: an exit code for scripts and sentences for people.

use crate::config::Problem;
use crate::store::StoreError;
use std::error::Error;
use std::fmt::Display;
use std::io;
use std::process::ExitCode;

pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  could not be done
  2  the command line, the configuration or a policy is wrong
  3  the store cannot be reached
  4  done, and what was looked at is not as it should be";

pub const FAILED: u8 = 1;
pub const USAGE: u8 = 2;
pub const UNREACHABLE: u8 = 3;
pub const FINDING: u8 = 4;

/// Why a command ends early. Each sentence says what, where and what to do.
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

    /// The findings are printed already.
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

/// The store's sentence, with what to do where only a command knows it.
pub fn advised(error: &StoreError) -> String {
    match error {
        StoreError::DatabaseMissing(_) => format!("{error}: `guardian db migrate` makes an embedded one"),
        _ => error.to_string(),
    }
}

/// Nothing can be asked of the store at all, as it is.
pub fn is_unreachable(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Unreachable { .. }
            | StoreError::WrongPassword { .. }
            | StoreError::DatabaseMissing(_)
            | StoreError::Tls { .. }
            | StoreError::Busy { .. }
    )
}

/// A reader that went away (`guardian … | head`) is no failure.
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
            Err(error) => Self::failed(format_args!("{error:#}")),
        }
    }
}

/// An error and what caused it, as one sentence.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
