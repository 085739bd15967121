//! Why the configuration of a server is refused.

use crate::domain::ServerName;
use crate::transport::ClientError;
use std::path::PathBuf;

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
