//! Why a server gave no answer that may be passed on. The detail is for the caller; the cause, with host names, is not.

use crate::domain::Reason;
use crate::transport::ClientError;
use http::StatusCode;
use std::error::Error;

/// A call that was permitted and has no usable answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Failed {
    /// `UpstreamUnreachable`, `UpstreamTimeout`, `UpstreamBroken`, or why an open stream was cut.
    pub reason: Reason,
    /// For the caller: names neither hosts nor credentials.
    pub detail: String,
    /// For the record and the log.
    pub cause: Option<String>,
    /// HTTP status of the server, if it gave one.
    pub status: Option<StatusCode>,
    /// Whether the server may have received the call.
    pub may_have_run: bool,
}

impl Failed {
    pub(super) fn broken(detail: impl Into<String>) -> Self {
        Self::after_sending(Reason::UpstreamBroken, detail)
    }

    pub(super) fn late(detail: impl Into<String>) -> Self {
        Self::after_sending(Reason::UpstreamTimeout, detail)
    }

    pub(super) fn after_sending(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            cause: None,
            status: None,
            may_have_run: true,
        }
    }

    pub(super) fn of_client(error: &ClientError) -> Self {
        let (reason, detail) = match error {
            ClientError::Closed { .. } => (Reason::UpstreamBroken, "the server closed the connection before it answered"),
            ClientError::Timeout { .. } => (Reason::UpstreamTimeout, "the server did not accept a connection in time"),
            _ => (Reason::UpstreamUnreachable, "the server cannot be reached"),
        };
        Self {
            reason,
            detail: detail.to_owned(),
            cause: Some(chain(error)),
            status: None,
            may_have_run: error.may_have_been_sent(),
        }
    }

    pub(super) fn with_cause(self, error: &(dyn Error + 'static)) -> Self {
        Self {
            cause: Some(chain(error)),
            ..self
        }
    }

    pub(super) fn with_status(self, status: StatusCode) -> Self {
        Self {
            status: Some(status),
            ..self
        }
    }

    /// What a record says.
    pub(super) fn recorded(&self) -> String {
        match &self.cause {
            Some(cause) => format!("{}: {cause}", self.detail),
            None => self.detail.clone(),
        }
    }
}

/// An error with its sources, each once.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let said = source.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = source.source();
    }
    text
}
