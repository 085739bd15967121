//! Why a server gave no answer that can be passed on, and why its configuration is refused. The caller is told the detail; the
//! cause may name hosts, so only the record and the log get it.

use crate::domain::{Reason, ServerName};
use crate::mcp::Malformed;
use crate::transport::ClientError;
use http::StatusCode;
use std::error::Error;
use std::path::PathBuf;

/// A permitted call that has no usable answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct ForwardError {
    /// `UpstreamUnreachable`, `UpstreamTimeout`, `UpstreamBroken`, or why Guardian stopped the call or cut its stream.
    pub reason: Reason,
    /// Shown to the caller; names no host and no credential.
    pub detail: String,
    /// For the record and the log only.
    pub cause: Option<String>,
    /// The server's HTTP status, if it sent one.
    pub status: Option<StatusCode>,
    /// Whether the server may have received the call.
    pub may_have_run: bool,
}

impl ForwardError {
    /// The server violated the protocol or broke off.
    pub(super) fn bad_response(detail: impl Into<String>) -> Self {
        Self::after_sending(Reason::UpstreamBroken, detail)
    }

    /// The server answered with a status that says nothing to the caller.
    pub(super) fn failed_with(status: StatusCode) -> Self {
        Self::bad_response(format!("the server answered with HTTP status {}", status.as_u16())).with_status(status)
    }

    /// The server exceeded a time limit.
    pub(super) fn timeout(detail: impl Into<String>) -> Self {
        Self::after_sending(Reason::UpstreamTimeout, detail)
    }

    /// Any failure after which the server may have received the call.
    pub(super) fn after_sending(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            cause: None,
            status: None,
            may_have_run: true,
        }
    }

    /// A failure before anything was sent.
    pub(super) fn before_sending(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            may_have_run: false,
            ..Self::after_sending(reason, detail)
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
            cause: Some(with_sources(error)),
            status: None,
            may_have_run: error.may_have_been_sent(),
        }
    }

    pub(super) fn with_cause(self, error: &(dyn Error + 'static)) -> Self {
        Self {
            cause: Some(with_sources(error)),
            ..self
        }
    }

    pub(super) fn with_status(self, status: StatusCode) -> Self {
        Self {
            status: Some(status),
            ..self
        }
    }

    /// The text for the outcome record: detail and cause.
    pub(super) fn recorded(&self) -> String {
        match &self.cause {
            Some(cause) => format!("{}: {cause}", self.detail),
            None => self.detail.clone(),
        }
    }
}

impl From<Malformed> for ForwardError {
    fn from(malformed: Malformed) -> Self {
        Self::bad_response(malformed.detail)
    }
}

/// An error followed by its sources, each text once.
fn with_sources(error: &(dyn Error + 'static)) -> String {
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

/// Why a server configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("server `{server}`: its URL {why}")]
    Url { server: ServerName, why: &'static str },
    #[error("server `{server}`: its credential {why}")]
    Credential { server: ServerName, why: &'static str },
    #[error("server `{server}`: cannot read its credential from `{}`", .file.display())]
    CredentialFile {
        server: ServerName,
        file: PathBuf,
        source: std::io::Error,
    },
    #[error("server `{server}`: {why}")]
    Program { server: ServerName, why: String },
    #[error("server `{server}`: no client can be made for it")]
    Client { server: ServerName, source: ClientError },
}
