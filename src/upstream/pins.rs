//! What is in force of a server's tools: configuration, registry and the stored pins put together. Nothing is asked here.

use super::catalogue::RawTool;
use super::{Upstream, Upstreams};
use crate::config::ServerConfig;
use crate::domain::{Catalogue, Scope, ServerEntry, Standing, ToolEntry};
use crate::store::{RegistryRow, StoredTool};
use std::collections::BTreeMap;

impl Upstreams {
    /// The server that `/mcp` stands for: the only one, if there is only one.
    pub fn only(&self) -> Option<&Upstream> {
        let mut servers = self.iter();
        match (servers.next(), servers.next()) {
            (Some((_, only)), None) => Some(only),
            _ => None,
        }
    }
}

/// The servers of the configuration and those of the registry; the configuration wins where both name one.
pub fn known_servers(configured: &[ServerConfig], registry: &[RegistryRow]) -> Vec<ServerConfig> {
    let mut servers = configured.to_vec();
    for row in registry {
        let known = servers.iter().any(|server| server.name == row.server);
        if let (false, Some(url)) = (known, &row.url) {
            servers.push(ServerConfig::at(row.server.clone(), url.clone()));
        }
    }
    servers
}

/// The tools of these servers as they were pinned, each with the scopes it needs and how it stands today.
pub fn assemble(servers: &[ServerConfig], registry: &[RegistryRow], stored: Vec<StoredTool>) -> Catalogue {
    let mut catalogue = Catalogue::default();
    for server in servers {
        let enabled = registry
            .iter()
            .find(|row| row.server == server.name)
            .is_none_or(|row| row.enabled);
        catalogue.servers.insert(
            server.name.clone(),
            ServerEntry {
                enabled,
                tools: BTreeMap::new(),
            },
        );
    }
    for tool in stored {
        let Some(entry) = catalogue.servers.get_mut(&tool.server) else {
            continue;
        };
        if let Some(tool) = entry_of(&tool, servers, registry) {
            entry.tools.insert(tool.name.clone(), tool);
        }
    }
    catalogue
}

fn entry_of(tool: &StoredTool, servers: &[ServerConfig], registry: &[RegistryRow]) -> Option<ToolEntry> {
    let (digest, definition) = tool.pinned.as_ref().or(tool.offered.as_ref())?;
    let read = RawTool::read(&serde_json::from_str(definition).ok()?).ok()?;
    Some(ToolEntry {
        name: tool.tool.clone(),
        standing: standing(tool),
        digest: *digest,
        definition: read.definition,
        input_schema: read.input_schema,
        annotations: read.annotations,
        scopes: scopes(tool, servers, registry)?,
    })
}

/// The registry's scopes for a tool, else those of the configuration, else the scope of its own name. What does not read
/// as scopes, or names none, never means that none is needed.
fn scopes(tool: &StoredTool, servers: &[ServerConfig], registry: &[RegistryRow]) -> Option<Vec<Scope>> {
    let name = tool.tool.as_str();
    let of_row = registry
        .iter()
        .find(|row| row.server == tool.server)
        .and_then(|row| row.tool_scopes.get(name).cloned());
    let of_file = || {
        let written = servers
            .iter()
            .find(|server| server.name == tool.server)?
            .tool_scopes
            .get(name)?;
        written
            .iter()
            .map(|scope| Scope::parse(scope))
            .collect::<Result<Vec<_>, _>>()
            .ok()
    };
    match of_row.or_else(of_file).filter(|scopes| !scopes.is_empty()) {
        Some(scopes) => Some(scopes),
        None => Some(vec![Scope::parse(name).ok()?]),
    }
}

fn standing(tool: &StoredTool) -> Standing {
    match (&tool.pinned, &tool.offered) {
        (None, _) => Standing::Unapproved,
        (Some(_), None) => Standing::Gone,
        (Some((pinned, _)), Some((offered, _))) if pinned == offered => Standing::Pinned,
        (Some(_), Some(_)) => Standing::Changed,
    }
}
