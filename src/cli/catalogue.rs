//! The catalogue as commands see it: what the store holds of every server, and what a server says when it is asked.

use super::failure::with_causes;
use super::output::clean;
use crate::config::{ServerConfig, Span};
use crate::domain::{Catalogue, Scope, ServerEntry, ServerName, Standing, ToolEntry, ToolName};
use crate::store::{RegistryRow, StoredTool};
use crate::upstream::{FetchFailed, Offer, RawTool, Upstream};
use std::collections::BTreeMap;
use std::time::Duration;

/// A server that is only in the registry is known too; it cannot be called before it is configured.
pub fn assemble(configured: &[ServerConfig], registry: &[RegistryRow], stored: &[StoredTool]) -> Catalogue {
    let names = configured
        .iter()
        .map(|server| &server.name)
        .chain(registry.iter().map(|row| &row.server));
    let mut servers: BTreeMap<ServerName, ServerEntry> = names
        .map(|name| {
            let row = registry.iter().find(|row| row.server == *name);
            let entry = ServerEntry {
                enabled: row.is_none_or(|row| row.enabled),
                tools: BTreeMap::new(),
            };
            (name.clone(), entry)
        })
        .collect();
    for tool in stored {
        if let (Some(server), Some(entry)) = (servers.get_mut(&tool.server), entry(tool, configured, registry)) {
            server.tools.insert(tool.tool.clone(), entry);
        }
    }
    Catalogue { servers }
}

/// How what is offered and what is pinned stand to each other.
pub fn standing(tool: &StoredTool) -> Standing {
    match (&tool.offered, &tool.pinned) {
        (Some((offered, _)), Some((pinned, _))) if offered == pinned => Standing::Pinned,
        (Some(_), Some(_)) => Standing::Changed,
        (None, Some(_)) => Standing::Gone,
        (_, None) => Standing::Unapproved,
    }
}

/// The registry's scopes for a tool, else those of the configuration, else the scope of its own name.
pub fn scopes(server: &ServerName, tool: &ToolName, configured: &[ServerConfig], registry: &[RegistryRow]) -> Vec<Scope> {
    let of_row = registry
        .iter()
        .find(|row| row.server == *server)
        .and_then(|row| row.tool_scopes.get(tool.as_str()));
    let of_file = || {
        let server = configured.iter().find(|known| known.name == *server)?;
        let scopes = server.tool_scopes.get(tool.as_str())?;
        Some(scopes.iter().filter_map(|scope| Scope::parse(scope).ok()).collect())
    };
    of_row
        .cloned()
        .or_else(of_file)
        .unwrap_or_else(|| Scope::parse(tool.as_str()).into_iter().collect())
}

/// Asks a server for its tools, as `serve` does.
pub async fn fetch(server: &ServerConfig, patience: Duration) -> Result<Offer, String> {
    let name = &server.name;
    let upstream = Upstream::new(server).map_err(|error| with_causes(&error))?;
    match tokio::time::timeout(patience, upstream.fetch_tools()).await {
        Ok(Ok(offer)) => Ok(offer),
        Ok(Err(FetchFailed::Failed(failed))) => Err(match &failed.cause {
            Some(cause) => format!("server `{name}`: {failed}: {}", clean(cause)),
            None => format!("server `{name}`: {failed}"),
        }),
        Ok(Err(error)) => Err(format!("server `{name}`: {}", clean(&error.to_string()))),
        Err(_) => Err(format!("server `{name}` did not list its tools within {}", Span(patience))),
    }
}

fn entry(tool: &StoredTool, configured: &[ServerConfig], registry: &[RegistryRow]) -> Option<ToolEntry> {
    let (digest, text) = tool.pinned.as_ref().or(tool.offered.as_ref())?;
    let read = RawTool::read(&serde_json::from_str(text).ok()?).ok()?;
    Some(ToolEntry {
        name: tool.tool.clone(),
        standing: standing(tool),
        digest: *digest,
        definition: read.definition,
        input_schema: read.input_schema,
        annotations: read.annotations,
        scopes: scopes(&tool.server, &tool.tool, configured, registry),
    })
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
        let catalogue = assemble(&[], &registry, &tools);
        let demo = &catalogue.servers["demo"];
        let standings: Vec<_> = demo.tools.values().map(|tool| (tool.name.as_str(), tool.standing)).collect();
        assert_eq!(
            standings,
            [
                ("gone", Standing::Gone),
                ("new", Standing::Unapproved),
                ("other", Standing::Changed),
                ("same", Standing::Pinned),
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
