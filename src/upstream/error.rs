//! Why a server gave no answer that can be passed on, and why its configuration is refused. The caller is told the detail; the
//! cause may name hosts, so only the record and the log get it.

use crate::domain::{CutBy, Executed, OutcomeKind, Reason, ServerName};
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
    /// Shown to the caller. It may name the configured address of the server; it holds no credential and nothing that a
    /// program wrote.
    pub detail: String,
    /// For the record and the log only.
    pub cause: Option<String>,
    /// What the server's program last wrote to its standard error, without the secrets of its environment: for the log and
    /// for commands only, because nobody knows what else is in it.
    pub last_lines: Option<String>,
    /// The server's HTTP status, if it sent one.
    pub status: Option<StatusCode>,
    /// How this ended the call, for its record.
    pub kind: OutcomeKind,
    /// `No` only if it is certain.
    pub executed: Executed,
    /// Why Guardian ended the call, if it did.
    pub by: Option<CutBy>,
}

impl ForwardError {
    /// The server violated the protocol or broke off.
    pub(super) fn bad_response(detail: impl Into<String>) -> Self {
        Self::after_sending(Reason::UpstreamBroken, detail)
    }

    /// The server answered with a status that says nothing to the caller.
    pub(super) fn failed_with(status: StatusCode) -> Self {
        Self::refused_with(status, format!("the server answered with HTTP status {}", status.as_u16()))
    }

    /// The server refused the call with this status.
    pub(super) fn refused_with(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status: Some(status),
            kind: OutcomeKind::RefusedByServer,
            executed: executed_after(status),
            ..Self::bad_response(detail)
        }
    }

    /// The server exceeded a time limit.
    pub(super) fn timeout(detail: impl Into<String>) -> Self {
        Self {
            kind: OutcomeKind::TimedOut,
            ..Self::after_sending(Reason::UpstreamTimeout, detail)
        }
    }

    /// Guardian ended the call.
    pub(super) fn cut(by: CutBy, reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            kind: OutcomeKind::Cut,
            by: Some(by),
            ..Self::after_sending(reason, detail)
        }
    }

    /// Any failure after which the server may have received the call.
    pub(super) fn after_sending(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            cause: None,
            last_lines: None,
            status: None,
            kind: OutcomeKind::Broken,
            executed: Executed::Unknown,
            by: None,
        }
    }

    /// A failure before anything was sent.
    pub(super) fn before_sending(reason: Reason, detail: impl Into<String>) -> Self {
        Self::after_sending(reason, detail).unsent()
    }

    /// The same failure, of a call of which certainly nothing reached the server.
    pub(super) fn unsent(self) -> Self {
        Self {
            kind: OutcomeKind::NotSent,
            executed: Executed::No,
            ..self
        }
    }

    pub(super) fn of_client(error: &ClientError) -> Self {
        let (reason, detail) = match error {
            ClientError::Closed { .. } => (
                Reason::UpstreamBroken,
                "it closed the connection before it answered".to_owned(),
            ),
            ClientError::Timeout { host, .. } => (Reason::UpstreamTimeout, format!("`{host}` did not accept a connection")),
            ClientError::Connect { host, source } => (Reason::UpstreamUnreachable, why_not_connected(host, source)),
            ClientError::Tls { host, .. } => (Reason::UpstreamUnreachable, format!("the TLS handshake with `{host}` failed")),
            ClientError::Address { .. } | ClientError::Url { .. } | ClientError::NoRoots { .. } | ClientError::Ca(_) => (
                Reason::UpstreamUnreachable,
                "its configuration does not allow a connection".to_owned(),
            ),
        };
        // Where the detail says it all, the cause would say it again.
        let is_told = matches!(error, ClientError::Connect { .. });
        let failed = Self {
            cause: (!is_told).then(|| with_sources(error)),
            ..Self::after_sending(reason, detail)
        };
        if error.may_have_been_sent() { failed } else { failed.unsent() }
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

    /// The text for the log and for commands: what is recorded, and what the program last said.
    pub fn for_operator(&self) -> String {
        match &self.last_lines {
            Some(lines) => format!("{}: {lines}", self.recorded()),
            None => self.recorded(),
        }
    }
}

/// Whether the tool may have run although the server answered with this status. These are given before a message is acted
/// upon: no access, no such endpoint or session, a form of request that is not taken, too many of them.
pub(super) fn executed_after(status: StatusCode) -> Executed {
    match status {
        StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::NOT_FOUND
        | StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::NOT_ACCEPTABLE
        | StatusCode::PROXY_AUTHENTICATION_REQUIRED
        | StatusCode::LENGTH_REQUIRED
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::URI_TOO_LONG
        | StatusCode::UNSUPPORTED_MEDIA_TYPE
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Executed::No,
        _ => Executed::Unknown,
    }
}

/// Whether the tool may have run although the server answered with this JSON-RPC error. A tool itself may answer with most
/// of them, so only those count that are given before a method is called.
pub(super) fn executed_after_error(code: i64) -> Executed {
    const PARSE_ERROR: i64 = -32700;
    const METHOD_NOT_FOUND: i64 = -32601;
    const HEADER_MISMATCH: i64 = -32020;
    const UNSUPPORTED_VERSION: i64 = -32022;
    match code {
        PARSE_ERROR | METHOD_NOT_FOUND | HEADER_MISMATCH | UNSUPPORTED_VERSION => Executed::No,
        _ => Executed::Unknown,
    }
}

/// Why no connection was made, in words. The address is the configured one.
fn why_not_connected(address: &str, error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => format!("connection refused by {address}"),
        ErrorKind::ConnectionReset => format!("connection reset by {address}"),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => format!("there is no route to {address}"),
        ErrorKind::TimedOut => format!("{address} did not accept a connection"),
        // The resolver's errors have no number of the system.
        _ if error.raw_os_error().is_none() => format!("{address} has no address ({error})"),
        _ => format!("cannot connect to {address} ({error})"),
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
    #[error("server `{server}`: no client can be made for it")]
    Client { server: ServerName, source: ClientError },
}
