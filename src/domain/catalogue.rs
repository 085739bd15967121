//! The tools of every server as they were pinned: what policies are typed by and arguments are checked against.

use super::{Digest, Scope, ServerName, ToolName};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Whether a tool's definition is the one somebody approved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// The server offers exactly what is pinned.
    Pinned,
    /// The server now offers something else than what is pinned: hidden and refused until pinned again.
    Changed,
    /// Never pinned (`pin = "strict"`): hidden and refused until pinned.
    Unapproved,
    /// Pinned, but the server no longer offers it.
    Gone,
}

/// Self-asserted hints; they count only because they are part of a pinned definition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Annotations {
    pub read_only: bool,
    pub destructive: bool,
}

/// One tool: its pinned definition (or, if never pinned, the offered one).
#[derive(Debug, Clone, PartialEq)]
pub struct ToolEntry {
    pub name: ToolName,
    pub standing: Standing,
    /// SHA-256 over the canonical definition.
    pub digest: Digest,
    /// The definition object in canonical JSON, as listed to callers.
    pub definition: Arc<str>,
    pub input_schema: serde_json::Value,
    pub annotations: Annotations,
    /// Every one of these is needed; the tool's own name unless the registry maps it.
    pub scopes: Vec<Scope>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServerEntry {
    pub enabled: bool,
    pub tools: BTreeMap<ToolName, ToolEntry>,
}

/// All servers this instance stands before.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalogue {
    pub servers: BTreeMap<ServerName, ServerEntry>,
}

impl Catalogue {
    /// One hash over all servers and pins; every decision record names it. Whatever a decision can depend on is in it.
    pub fn digest(&self) -> Digest {
        let mut hash = super::Sha256::new();
        for (server, entry) in &self.servers {
            hash = hash.update(format!("{server}\0{}\n", entry.enabled).as_bytes());
            for (tool, pinned) in &entry.tools {
                let line = format!(
                    "{server}\0{tool}\0{}\0{:?}\0{:?}\n",
                    pinned.digest, pinned.standing, pinned.scopes
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
