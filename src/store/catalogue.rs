//! What each server offers and what somebody approved of it. The proxy may note offers and pin what was never pinned;
//! a pin is changed by an administrator alone.

use super::engine::{Arg, Row, Sql, Tx, args};
use super::unreadable::{ColumnError, name, or_left_out, time_or_null};
use super::{Store, StoreError};
use crate::domain::{AdminAction, Digest, EnvironmentName, ServerName, Timestamp, ToolName};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTool {
    pub server: ServerName,
    pub tool: ToolName,
    /// What the server offered when it was last asked; `None`: no longer this tool.
    pub offered: Option<(Digest, String)>,
    /// What somebody approved.
    pub pinned: Option<(Digest, String)>,
    pub pinned_at: Option<Timestamp>,
    pub pinned_by: Option<String>,
}

/// How an offer differs from the one before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Never seen before.
    pub added: Vec<ToolName>,
    /// Offered with another definition than before, or offered again.
    pub changed: Vec<ToolName>,
    /// Offered before, not now.
    pub gone: Vec<ToolName>,
    /// What an instance has to record of it.
    pub changes: Vec<AdminAction>,
}

const READ: Sql = Sql {
    postgres: "SELECT server, tool, offered_digest, offered_definition, pinned_digest, pinned_definition,
                 micros(pinned_at) AS pinned_at, pinned_by FROM server_tools WHERE environment = $1 ORDER BY server, tool",
    sqlite: "SELECT server, tool, offered_digest, offered_definition, pinned_digest, pinned_definition, pinned_at, pinned_by
             FROM server_tools WHERE environment = $1 ORDER BY server, tool",
};

const DIGESTS: Sql = Sql::same(
    "SELECT tool, offered_digest, pinned_digest FROM server_tools WHERE environment = $1 AND server = $2 ORDER BY tool",
);

/// Environment, server, tool, offered digest and definition, whether to pin what was never pinned.
const NOTE: Sql = Sql {
    postgres: "SELECT note_offer(t.environment, t.server, t.tool, t.digest, t.definition, t.pin = 1)
               FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::bigint[])
                 AS t (environment, server, tool, digest, definition, pin)",
    sqlite: "WITH t (environment, server, tool, digest, definition, pin) AS (VALUES {rows})
             INSERT INTO server_tools (environment, server, tool, offered_digest, offered_definition,
               pinned_digest, pinned_definition, pinned_at, pinned_by)
             SELECT environment, server, tool, digest, definition, iif(pin, digest, NULL), iif(pin, definition, NULL),
               iif(pin, micros, NULL), iif(pin, 'first use', NULL)
             FROM t, clock WHERE true
             ON CONFLICT (environment, server, tool) DO UPDATE SET
               offered_digest = excluded.offered_digest, offered_definition = excluded.offered_definition,
               offered_since = (SELECT micros FROM clock),
               pinned_definition = iif(pinned_digest IS NULL, excluded.pinned_definition, pinned_definition),
               pinned_at = iif(pinned_digest IS NULL, excluded.pinned_at, pinned_at),
               pinned_by = iif(pinned_digest IS NULL, excluded.pinned_by, pinned_by),
               pinned_digest = coalesce(pinned_digest, excluded.pinned_digest)",
};

const PIN: Sql = Sql {
    postgres: "UPDATE server_tools SET pinned_digest = offered_digest, pinned_definition = offered_definition, pinned_at = now(),
                 pinned_by = $5 WHERE environment = $1 AND server = $2 AND tool = $3 AND offered_digest = $4",
    sqlite: "UPDATE server_tools SET pinned_digest = offered_digest, pinned_definition = offered_definition,
               pinned_at = (SELECT micros FROM clock), pinned_by = $5
             WHERE environment = $1 AND server = $2 AND tool = $3 AND offered_digest = $4",
};

impl Store {
    pub async fn catalogue(&self, env: &EnvironmentName) -> Result<Vec<StoredTool>, StoreError> {
        let rows = self.query(&READ, args![env.as_str()]).await?;
        Ok(rows
            .iter()
            .filter_map(|row| or_left_out(tool_of(row), row, TABLE, KEYS))
            .collect())
    }

    /// Notes what a server offers now: all of its tools. Nothing is written where nothing changed. With `pin_new` a tool
    /// that was never pinned is pinned as it is.
    pub async fn observe_tools(
        &self,
        env: &EnvironmentName,
        server: &ServerName,
        offered: &[(ToolName, Digest, String)],
        pin_new: bool,
    ) -> Result<Observed, StoreError> {
        let mut change = self.change_by_anyone(env).await?;
        let mut known = known_digests(&mut change.tx, env, server).await?;
        let mut observed = Observed::default();
        let mut notes = Vec::new();
        for (tool, digest, definition) in offered {
            match known.remove(tool) {
                None => observed.added.push(tool.clone()),
                Some(before) if before.offered != Some(*digest) => observed.changed.push(tool.clone()),
                Some(before) if before.pinned.is_none() && pin_new => {}
                Some(_) => continue,
            }
            notes.push(note_args(env, server, tool, Some((digest, definition)), pin_new));
        }
        for (tool, _) in known.into_iter().filter(|(_, before)| before.offered.is_some()) {
            notes.push(note_args(env, server, &tool, None, false));
            observed.gone.push(tool);
        }
        if !notes.is_empty() {
            change.tx.insert_rows(&NOTE, &notes).await?;
            observed.changes = change.commit().await?;
        }
        Ok(observed)
    }

    /// Approves what a server offers now: one tool, or all. With `digest` only if the offer is exactly that one.
    /// Returns the tools whose pin changed.
    pub async fn pin_tool(
        &self,
        env: &EnvironmentName,
        server: &ServerName,
        tool: Option<&ToolName>,
        digest: Option<Digest>,
        by: &str,
    ) -> Result<Vec<ToolName>, StoreError> {
        let mut change = self.change(env).await?;
        let known = known_digests(&mut change.tx, env, server).await?;
        let wanted = known.into_iter().filter(|(name, _)| tool.is_none_or(|tool| tool == name));
        let offers: Vec<_> = wanted
            .filter_map(|(name, known)| known.offered.map(|offer| (name, offer, known.pinned)))
            .collect();
        if offers.is_empty() {
            let what = tool.map_or_else(|| "tools".to_owned(), |tool| format!("tool `{tool}`"));
            return Err(StoreError::NotFound(format!("{what} that server `{server}` offers")));
        }
        let mut changed = Vec::new();
        for (name, offer, pinned) in offers {
            if let Some(asked) = digest.filter(|asked| *asked != offer) {
                let (asked, offer) = (asked.short(), offer.short());
                return Err(StoreError::Conflict(format!(
                    "server `{server}` now offers `{name}` as {offer}, not as {asked}"
                )));
            }
            if pinned == Some(offer) {
                continue;
            }
            let args = args![env.as_str(), server.as_str(), name.as_str(), &offer.as_bytes()[..], by];
            if change.tx.execute(&PIN, args).await? == 0 {
                return Err(StoreError::Conflict(format!(
                    "server `{server}` changed `{name}` just now: look again"
                )));
            }
            changed.push(name);
        }
        change.commit().await?;
        Ok(changed)
    }
}

const TABLE: &str = "server_tools";
const KEYS: &[&str] = &["server", "tool"];

struct KnownDigests {
    offered: Option<Digest>,
    pinned: Option<Digest>,
}

async fn known_digests(
    tx: &mut Tx,
    env: &EnvironmentName,
    server: &ServerName,
) -> Result<BTreeMap<ToolName, KnownDigests>, StoreError> {
    let mut known = BTreeMap::new();
    for row in tx.fetch(&DIGESTS, args![env.as_str(), server.as_str()]).await? {
        if let Some(tool) = or_left_out(name(&row, "tool"), &row, TABLE, KEYS) {
            let digests = KnownDigests {
                offered: digest_of(&row, "offered_digest").ok().flatten(),
                pinned: digest_of(&row, "pinned_digest").ok().flatten(),
            };
            known.insert(tool, digests);
        }
    }
    Ok(known)
}

fn note_args(
    env: &EnvironmentName,
    server: &ServerName,
    tool: &ToolName,
    offer: Option<(&Digest, &String)>,
    pin: bool,
) -> Vec<Arg> {
    let (digest, definition) = offer.map(|(digest, text)| (&digest.as_bytes()[..], text.as_str())).unzip();
    args![env.as_str(), server.as_str(), tool.as_str(), digest, definition, pin].to_vec()
}

/// A tool of which the row cannot be read is unknown, and so nobody's to call.
fn tool_of(row: &Row) -> Result<StoredTool, ColumnError> {
    Ok(StoredTool {
        server: name(row, "server")?,
        tool: name(row, "tool")?,
        offered: digest_of(row, "offered_digest")?.zip(row.cell_or_null("offered_definition")?),
        pinned: digest_of(row, "pinned_digest")?.zip(row.cell_or_null("pinned_definition")?),
        pinned_at: time_or_null(row, "pinned_at")?,
        pinned_by: row.cell_or_null("pinned_by")?,
    })
}

fn digest_of(row: &Row, column: &'static str) -> Result<Option<Digest>, ColumnError> {
    let bytes = row.cell_or_null::<Vec<u8>>(column)?;
    Ok(bytes.and_then(|bytes| bytes.try_into().ok()).map(Digest::from_bytes))
}
