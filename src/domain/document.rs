//! What decisions were made by, kept once under its own hash: policy sets and catalogues, and the texts that they are made of.

use super::Digest;
use std::sync::Arc;

/// What a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DocumentKind {
    /// The files of a policy set by their hashes, and the settings that change what they mean; `policy_set` of records.
    PolicySet,
    /// The text of one policy file.
    PolicyFile,
    /// The tools of all servers by the hashes of their definitions; `catalogue` of records.
    Catalogue,
    /// The definition of one tool.
    Tool,
}

impl DocumentKind {
    pub const ALL: [DocumentKind; 4] = [Self::PolicySet, Self::PolicyFile, Self::Catalogue, Self::Tool];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PolicySet => "policy_set",
            Self::PolicyFile => "policy_file",
            Self::Catalogue => "catalogue",
            Self::Tool => "tool",
        }
    }
}

/// A text and its SHA-256, which is its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptDocument {
    pub kind: DocumentKind,
    pub digest: Digest,
    pub text: Arc<str>,
}

impl KeptDocument {
    /// The longest text of one document: more than any answer of a server or policy file may have.
    pub const MOST_BYTES: usize = 16 * 1024 * 1024;

    pub fn new(kind: DocumentKind, text: impl Into<Arc<str>>) -> Self {
        let text = text.into();
        Self {
            kind,
            digest: Digest::of(text.as_bytes()),
            text,
        }
    }
}
