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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
        Digest::of(self.index().as_bytes())
    }

    /// The text that the digest is the hash of: each tool with the hash of its definition, which is a document of its own.
    pub fn index(&self) -> String {
        let server = |(name, entry): (&ServerName, &ServerEntry)| {
            let tools = entry.tools.iter().map(|(name, tool)| (name.clone(), IndexedTool::of(tool)));
            let indexed = IndexedServer {
                enabled: entry.enabled,
                tools: tools.collect(),
            };
            (name.clone(), indexed)
        };
        let servers: BTreeMap<_, _> = self.servers.iter().map(server).collect();
        serde_json::to_string(&servers).expect("it has only text keys")
    }

    /// The catalogue whose `index` this is; `definition` finds the text with a hash. `None` if a definition is missing or
    /// something else is not as `index` writes it.
    pub fn of_index(index: &str, definition: impl Fn(&Digest) -> Option<Arc<str>>) -> Option<Self> {
        let servers: BTreeMap<ServerName, IndexedServer> = serde_json::from_str(index).ok()?;
        let mut catalogue = Self::default();
        for (name, server) in servers {
            let tools = server.tools.into_iter().map(|(name, tool)| {
                let definition = definition(&tool.definition)?;
                Some((name.clone(), tool.entry(name, definition)?))
            });
            let entry = ServerEntry {
                enabled: server.enabled,
                tools: tools.collect::<Option<_>>()?,
            };
            catalogue.servers.insert(name, entry);
        }
        Some(catalogue)
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct IndexedServer {
    enabled: bool,
    tools: BTreeMap<ToolName, IndexedTool>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct IndexedTool {
    /// SHA-256 of the definition's text.
    definition: Digest,
    pin: PinStatus,
    class: ToolClass,
    scopes: Vec<Scope>,
}

impl IndexedTool {
    fn of(tool: &ToolEntry) -> Self {
        Self {
            definition: Digest::of(tool.definition.as_bytes()),
            pin: tool.pin_status,
            class: tool.class,
            scopes: tool.scopes.clone(),
        }
    }

    fn entry(self, name: ToolName, definition: Arc<str>) -> Option<ToolEntry> {
        let mut read: serde_json::Value = serde_json::from_str(&definition).ok()?;
        Some(ToolEntry {
            name,
            pin_status: self.pin,
            digest: self.definition,
            input_schema: read.get_mut("inputSchema")?.take(),
            definition,
            class: self.class,
            scopes: self.scopes,
        })
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
