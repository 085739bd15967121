//! A problem in a policy file: what is wrong, where, and what would help. Coloured output is left to the command.

use std::fmt;

/// One error to repair, or one warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyProblem {
    pub file: Option<String>,
    /// From 1.
    pub line: Option<usize>,
    /// From 1, in characters.
    pub column: Option<usize>,
    pub message: String,
    pub help: Option<String>,
}

impl PolicyProblem {
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            file: None,
            line: None,
            column: None,
            message: message.into(),
            help: None,
        }
    }

    /// A problem at byte `offset` of `text`, the content of `file`.
    pub(in crate::decide) fn at(file: &str, text: &str, offset: usize, message: impl Into<String>) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        Self {
            file: Some(file.to_owned()),
            line: Some(before.matches('\n').count() + 1),
            column: Some(line.chars().count() + 1),
            ..Self::new(message)
        }
    }

    pub(in crate::decide) fn help(self, help: impl Into<String>) -> Self {
        Self {
            help: Some(help.into()),
            ..self
        }
    }
}

impl fmt::Display for PolicyProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}:")?;
        }
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "{line}:{column}:")?;
        }
        if self.file.is_some() {
            write!(f, " ")?;
        }
        write!(f, "{}", self.message)?;
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
        let problem = PolicyProblem::at("a.cedar", "één\ntwö x", 11, "wrong").help("right");
        assert_eq!(problem.to_string(), "a.cedar:2:5: wrong; right");
        assert_eq!(PolicyProblem::new("wrong").to_string(), "wrong");
    }
}
