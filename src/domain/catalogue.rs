//! The pinned tools of every server. Policies are type-checked against them, and arguments validated.

use super::{Digest, Scope, ServerName, ToolName};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Whether a tool's definition is the approved one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PinStatus {
    /// The server offers exactly what is pinned.
    Pinned,
    /// The server now offers another definition than the pinned one: hidden and refused until pinned again.
    Changed,
    /// Never pinned (`pin = "strict"`): hidden and refused until pinned.
    Unapproved,
    /// Pinned, but the server no longer offers it.
    Gone,
}

/// What a server's annotations say about its own tool; they count only as part of a pinned definition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolClass {
    /// `readOnlyHint: true`.
    ReadOnly,
    /// It writes and destroys nothing: `destructiveHint: false`.
    Additive,
    /// `destructiveHint: true`, or `readOnlyHint: false` with nothing else, which MCP reads as destructive.
    Destructive,
    /// Neither hint. MCP's default is that such a tool may destroy; most servers have just not annotated it.
    #[default]
    Unannotated,
}

impl ToolClass {
    /// The class that two hints make. `destructiveHint` has a meaning only for a tool that does not just read.
    pub const fn of_hints(read_only: Option<bool>, destructive: Option<bool>) -> Self {
        match (read_only, destructive) {
            (Some(true), _) => ToolClass::ReadOnly,
            (_, Some(false)) => ToolClass::Additive,
            (_, Some(true)) | (Some(false), None) => ToolClass::Destructive,
            (None, None) => ToolClass::Unannotated,
        }
    }

    /// The action group of this class in policies; an additive tool has none.
    pub const fn group(self) -> Option<&'static str> {
        match self {
            ToolClass::ReadOnly => Some("read_only"),
            ToolClass::Additive => None,
            ToolClass::Destructive => Some("destructive"),
            ToolClass::Unannotated => Some("unannotated"),
        }
    }

    /// For people: what its server says of the tool.
    pub const fn sentence(self) -> &'static str {
        match self {
            ToolClass::ReadOnly => "its server says that it only reads",
            ToolClass::Additive => "its server says that it writes and destroys nothing",
            ToolClass::Destructive => "its server says that it may destroy",
            ToolClass::Unannotated => "its server does not say what it does",
        }
    }
}

/// One tool, with its pinned definition (or, if it was never pinned, the offered one).
#[derive(Debug, Clone, PartialEq)]
pub struct ToolEntry {
    pub name: ToolName,
    pub pin_status: PinStatus,
    /// SHA-256 of the definition in canonical JSON.
    pub digest: Digest,
    /// The definition in canonical JSON, as callers see it in lists.
    pub definition: Arc<str>,
    pub input_schema: serde_json::Value,
    pub class: ToolClass,
    /// A call needs all of these; the tool's own name unless the registry maps it to others.
    pub scopes: Vec<Scope>,
}

/// One server with its tools.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServerEntry {
    pub enabled: bool,
    pub tools: BTreeMap<ToolName, ToolEntry>,
}

/// All servers of this instance.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalogue {
    pub servers: BTreeMap<ServerName, ServerEntry>,
}

impl Catalogue {
    /// One hash over everything in the catalogue that a decision can depend on; every decision record names it.
    pub fn digest(&self) -> Digest {
        let mut hash = super::Sha256::new();
        for (server, entry) in &self.servers {
            hash = hash.update(format!("{server}\0{}\n", entry.enabled).as_bytes());
            for (tool, pinned) in &entry.tools {
                let line = format!(
                    "{server}\0{tool}\0{}\0{:?}\0{:?}\n",
                    pinned.digest, pinned.pin_status, pinned.scopes
                );
                hash = hash.update(line.as_bytes());
            }
        }
        hash.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_switched_off_is_another_catalogue() {
        let with = |enabled| {
            let entry = ServerEntry {
                enabled,
                tools: BTreeMap::new(),
            };
            let servers = BTreeMap::from([(ServerName::parse("files").unwrap(), entry)]);
            Catalogue { servers }.digest()
        };
        assert_ne!(with(true), with(false));
        assert_ne!(with(false), Catalogue::default().digest());
    }
}
