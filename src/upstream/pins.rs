//! Builds the tool catalogue in force from configuration, registry and stored pins. Nothing is fetched here.

use super::catalogue::RawTool;
use crate::config::ServerConfig;
use crate::domain::{Catalogue, PinStatus, Scope, ServerEntry, ServerName, ToolEntry, ToolName};
use crate::store::{RegistryRow, StoredTool};
use std::collections::BTreeMap;

/// The tools of every server with the scopes they need and their pin status. A server that is only in the registry is
/// included.
pub fn build_catalogue(configured: &[ServerConfig], registry: &[RegistryRow], stored: &[StoredTool]) -> Catalogue {
    let names = configured
        .iter()
        .map(|server| &server.name)
        .chain(registry.iter().map(|row| &row.server));
    let mut catalogue = Catalogue::default();
    for name in names {
        let enabled = registry.iter().find(|row| row.server == *name).is_none_or(|row| row.enabled);
        catalogue.servers.insert(
            name.clone(),
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
        if let Some(tool) = entry_of(tool, configured, registry) {
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
        pin_status: pin_status(tool),
        digest: *digest,
        definition: read.definition,
        input_schema: read.input_schema,
        class: read.class,
        scopes: scopes_of(&tool.server, &tool.tool, servers, registry),
    })
}

/// The scopes that a tool needs: those of the registry, else of the configuration, else the scope of the tool's own
/// name. An unreadable or empty list never means that no scope is needed.
pub fn scopes_of(server: &ServerName, tool: &ToolName, servers: &[ServerConfig], registry: &[RegistryRow]) -> Vec<Scope> {
    let name = tool.as_str();
    let row = registry.iter().find(|row| row.server == *server);
    let of_row = row.and_then(|row| row.tool_scopes.get(name).cloned());
    let of_file = || {
        let written = servers.iter().find(|known| known.name == *server)?.tool_scopes.get(name)?;
        written
            .iter()
            .map(|scope| Scope::parse(scope))
            .collect::<Result<Vec<_>, _>>()
            .ok()
    };
    let own = || vec![Scope::parse(name).expect("every tool name is a scope")];
    of_row
        .or_else(of_file)
        .filter(|scopes| !scopes.is_empty())
        .unwrap_or_else(own)
}

/// Compares what a server offers with what is pinned.
pub fn pin_status(tool: &StoredTool) -> PinStatus {
    match (&tool.pinned, &tool.offered) {
        (None, _) => PinStatus::Unapproved,
        (Some(_), None) => PinStatus::Gone,
        (Some((pinned, _)), Some((offered, _))) if pinned == offered => PinStatus::Pinned,
        (Some(_), Some(_)) => PinStatus::Changed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Digest, Timestamp};

    fn stored(tool: &str, offered: Option<&str>, pinned: Option<&str>) -> StoredTool {
        let definition = |text: &str| {
            let definition = format!(r#"{{"description":"{text}","inputSchema":{{"type":"object"}},"name":"{tool}"}}"#);
            (Digest::of(definition.as_bytes()), definition)
        };
        StoredTool {
            server: ServerName::parse("demo").unwrap(),
            tool: ToolName::parse(tool).unwrap(),
            offered: offered.map(definition),
            pinned: pinned.map(definition),
            pinned_at: pinned.map(|_| Timestamp::from_secs(0)),
            pinned_by: None,
        }
    }

    fn row(server: &str, enabled: bool, tool_scopes: &[(&str, &str)]) -> RegistryRow {
        let scopes = tool_scopes
            .iter()
            .map(|(tool, scope)| ((*tool).to_owned(), vec![Scope::parse(scope).unwrap()]));
        RegistryRow {
            server: ServerName::parse(server).unwrap(),
            name: server.to_owned(),
            url: None,
            enabled,
            tool_scopes: scopes.collect(),
        }
    }

    #[test]
    fn the_catalogue_holds_what_is_pinned_and_how_it_stands() {
        let tools = [
            stored("same", Some("x"), Some("x")),
            stored("other", Some("y"), Some("x")),
            stored("new", Some("x"), None),
            stored("gone", None, Some("x")),
            stored("never", None, None),
        ];
        let registry = [row("demo", true, &[("same", "files:read")]), row("off", false, &[])];
        let catalogue = build_catalogue(&[], &registry, &tools);
        let demo = &catalogue.servers["demo"];
        let standings: Vec<_> = demo
            .tools
            .values()
            .map(|tool| (tool.name.as_str(), tool.pin_status))
            .collect();
        assert_eq!(
            standings,
            [
                ("gone", PinStatus::Gone),
                ("new", PinStatus::Unapproved),
                ("other", PinStatus::Changed),
                ("same", PinStatus::Pinned),
            ]
        );
        assert!(
            demo.tools["other"].definition.contains("\"x\""),
            "the pinned one, not the offered"
        );
        assert_eq!(demo.tools["same"].scopes, [Scope::parse("files:read").unwrap()]);
        assert_eq!(demo.tools["new"].scopes, [Scope::parse("new").unwrap()]);
        assert!(demo.enabled && !catalogue.servers["off"].enabled);
    }
}
