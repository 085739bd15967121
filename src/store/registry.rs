//! Servers as the store knows them: whether they are enabled and which scopes their tools need.

use super::engine::{Row, Sql, Tx, args};
use super::unreadable::{ColumnError, REGISTRY, UnreadableRow, name, names_in};
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
    postgres: "SELECT id, type, name, url, enabled::int::bigint AS enabled, tool_scopes::text AS tool_scopes
               FROM mcp_registry WHERE environment = $1 AND coalesce(type, 'server') = 'server' ORDER BY id",
    sqlite: "SELECT id, type, name, url, enabled, tool_scopes
             FROM mcp_registry WHERE environment = $1 AND coalesce(type, 'server') = 'server' ORDER BY id",
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
        let args = args![env.as_str(), server.server.as_str(), name, url, server.enabled, scopes];
        let mut change = self.change(env).await?;
        change.tx.execute(&PUT, args).await?;
        change.commit().await.map(drop)
    }

    pub async fn list_servers(&self, env: &EnvironmentName) -> Result<Vec<RegistryRow>, StoreError> {
        let mut tx = self.read().await?;
        let mut unreadable = Vec::new();
        let servers = read_registry(&mut tx, env, &mut unreadable).await?;
        tx.commit().await?;
        unreadable.iter().for_each(|row| tracing::warn!("disabled: {row}"));
        Ok(servers)
    }

    /// One server as it stands there, to be changed and put back; an error where that would lose what cannot be read of it.
    pub async fn server(&self, env: &EnvironmentName, server: &ServerName) -> Result<Option<RegistryRow>, StoreError> {
        for row in self.query(&READ, args![env.as_str()]).await? {
            if name::<ServerName>(&row, "id").is_ok_and(|id| id == *server) {
                let unreadable = |flaw: ColumnError| format!("{}: put it right in the database first", unreadable(&row, flaw));
                return server_of(&row)
                    .map(Some)
                    .map_err(|flaw| StoreError::Invalid(unreadable(flaw)));
            }
        }
        Ok(None)
    }
}

/// A server of which the row cannot be read is disabled: it could be called where somebody switched it off, or with fewer
/// scopes than somebody wrote. A row whose id is no name is of no server that could be called, and is only told.
pub(super) async fn read_registry(
    tx: &mut Tx,
    env: &EnvironmentName,
    all_unreadable: &mut Vec<UnreadableRow>,
) -> Result<Vec<RegistryRow>, StoreError> {
    let mut servers = Vec::new();
    for row in tx.fetch(&READ, args![env.as_str()]).await? {
        match server_of(&row) {
            Ok(server) => servers.push(server),
            Err(flaw) => {
                servers.extend(name(&row, "id").ok().map(disabled));
                all_unreadable.push(unreadable(&row, flaw));
            }
        }
    }
    Ok(servers)
}

fn disabled(server: ServerName) -> RegistryRow {
    RegistryRow {
        name: server.to_string(),
        server,
        url: None,
        enabled: false,
        tool_scopes: BTreeMap::new(),
    }
}

fn unreadable(row: &Row, flaw: ColumnError) -> UnreadableRow {
    flaw.in_row(row, REGISTRY, &["id"], None)
}

fn server_of(row: &Row) -> Result<RegistryRow, ColumnError> {
    row.cell::<String>("type")?;
    Ok(RegistryRow {
        server: name(row, "id")?,
        name: row.cell("name")?,
        url: row.cell_or_null("url")?,
        enabled: row.cell::<i64>("enabled")? != 0,
        tool_scopes: tool_scopes_of(&row.cell::<String>("tool_scopes")?)?,
    })
}

fn tool_scopes_of(json: &str) -> Result<BTreeMap<String, Vec<Scope>>, ColumnError> {
    let column = "tool_scopes";
    let tools: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(json).map_err(|_| ColumnError::new(column, "is no JSON object"))?;
    let scopes = tools
        .into_iter()
        .map(|(tool, scopes)| Ok((tool, names_in(&scopes.to_string(), column)?)));
    scopes.collect()
}
