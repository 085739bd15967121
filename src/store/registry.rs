//! Servers as the store knows them: whether they are enabled and which scopes their tools need.

use super::directory::{name, names};
use super::engine::{Row, Sql, Tx, args};
use super::{Store, StoreError};
use crate::domain::{EnvironmentName, Scope, ServerName};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RegistryRow {
    pub server: ServerName,
    /// For people.
    pub name: String,
    pub url: Option<String>,
    pub enabled: bool,
    /// Scopes a tool needs instead of the scope of its own name.
    pub tool_scopes: BTreeMap<String, Vec<Scope>>,
}

const READ: Sql = Sql {
    postgres: "SELECT id, name, url, enabled::int::bigint AS enabled, tool_scopes::text AS tool_scopes
               FROM mcp_registry WHERE environment = $1 AND type = 'server' ORDER BY id",
    sqlite: "SELECT id, name, url, enabled, tool_scopes FROM mcp_registry WHERE environment = $1 AND type = 'server' ORDER BY id",
};

const PUT: Sql = Sql {
    postgres:
        "INSERT INTO mcp_registry (environment, id, name, url, enabled, tool_scopes) VALUES ($1, $2, $3, $4, $5 = 1, $6::jsonb)
               ON CONFLICT (environment, id) DO UPDATE
               SET name = excluded.name, url = excluded.url, enabled = excluded.enabled, tool_scopes = excluded.tool_scopes",
    sqlite: "INSERT INTO mcp_registry (environment, id, name, url, enabled, tool_scopes) VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (environment, id) DO UPDATE
             SET name = excluded.name, url = excluded.url, enabled = excluded.enabled, tool_scopes = excluded.tool_scopes",
};

impl Store {
    /// Adds a server or replaces what is known of it.
    pub async fn put_server(&self, env: &EnvironmentName, server: &RegistryRow) -> Result<(), StoreError> {
        let scopes = serde_json::json!(server.tool_scopes).to_string();
        let (name, url) = (server.name.as_str(), server.url.as_deref());
        let mut tx = self.write().await?;
        tx.execute(
            &PUT,
            args![env.as_str(), server.server.as_str(), name, url, server.enabled, scopes],
        )
        .await?;
        tx.commit().await
    }

    pub async fn list_servers(&self, env: &EnvironmentName) -> Result<Vec<RegistryRow>, StoreError> {
        let mut tx = self.read().await?;
        let servers = read_registry(&mut tx, env).await?;
        tx.commit().await?;
        Ok(servers)
    }
}

pub(super) async fn read_registry(tx: &mut Tx, env: &EnvironmentName) -> Result<Vec<RegistryRow>, StoreError> {
    let rows = tx.fetch(&READ, args![env.as_str()]).await?;
    let servers: Result<Vec<_>, _> = rows.iter().map(server_of).collect();
    Ok(servers?.into_iter().flatten().collect())
}

fn server_of(row: &Row) -> Result<Option<RegistryRow>, StoreError> {
    let (id, scopes): (String, String) = (row.get("id")?, row.get("tool_scopes")?);
    let Some(server) = name(&id, "mcp_registry.id") else {
        return Ok(None);
    };
    let (tool_scopes, whole) = tool_scopes_of(&scopes);
    Ok(Some(RegistryRow {
        server,
        name: row.get("name")?,
        url: row.get("url")?,
        // fewer required scopes than somebody wrote would be a hole: the server waits until the row is right
        enabled: row.get::<i64>("enabled")? != 0 && whole,
        tool_scopes,
    }))
}

fn tool_scopes_of(json: &str) -> (BTreeMap<String, Vec<Scope>>, bool) {
    let Ok(tools) = serde_json::from_str::<BTreeMap<String, serde_json::Value>>(json) else {
        return (BTreeMap::new(), false);
    };
    let mut all_whole = true;
    let scopes = tools.into_iter().map(|(tool, scopes)| {
        let (scopes, whole) = names(&scopes.to_string(), "mcp_registry.tool_scopes");
        all_whole &= whole;
        (tool, scopes)
    });
    (scopes.collect(), all_whole)
}
