//! `guardian server`: the registry of MCP servers, their tools, and which tool definitions are approved (pinned).

use super::catalogue;
use super::context::{self, AdminContext, ConfigFile, Login, display_path};
use super::failure::{self, Failure};
use super::output::{Format, at, clean, comma, note, or_dash, progress, table};
use crate::app::process_actor;
use crate::config::PinMode;
use crate::decide;
use crate::domain::{BadName, Digest, PinStatus, Scope, ServerName, ToolClass, ToolName};
use crate::store::{RegistryRow, ServerFailure, StoredTool};
use crate::upstream::RawTool;
use crate::upstream::{pin_status, scopes_of};
use serde::Serialize;
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, BTreeSet};

/// Show servers and their tools, and approve definitions.
#[derive(Debug, clap::Subcommand)]
pub enum ServerCommand {
    /// Show the servers of the configuration and of the registry, and why one of them fails.
    #[command(after_help = "Example:\n  guardian server list")]
    List {
        #[command(flatten)]
        format: Format,
    },
    /// Put a server into the registry, which all instances share, or change what stands there.
    ///
    /// The registry says whether a server may be called and which scopes its tools need. Where it is and what credential it
    /// gets stands in the configuration.
    #[command(after_help = "Example:\n  guardian server add github --title GitHub --tool-scope create_issue=issues:write")]
    Add {
        /// As `[[servers]]` and `/mcp/<name>` have it.
        name: ServerName,
        /// The name people know it by.
        #[arg(long)]
        title: Option<String>,
        /// For people; calls go where the configuration says.
        #[arg(long)]
        url: Option<String>,
        /// Scopes a tool needs instead of the scope of its own name.
        #[arg(long = "tool-scope", value_name = "TOOL=SCOPE,…", value_parser = tool_scope)]
        tool_scopes: Vec<(String, Vec<Scope>)>,
        #[command(flatten)]
        format: Format,
    },
    /// Refuse every call to a server, on every instance.
    #[command(after_help = "Example:\n  guardian server disable github")]
    Disable {
        /// As `[[servers]]` and `/mcp/<name>` have it.
        name: ServerName,
        #[command(flatten)]
        format: Format,
    },
    /// Let a disabled server be called again.
    #[command(after_help = "Example:\n  guardian server enable github")]
    Enable {
        /// As `[[servers]]` and `/mcp/<name>` have it.
        name: ServerName,
        #[command(flatten)]
        format: Format,
    },
    /// Show the tools of a server: what is offered, what is approved, and which scopes each needs.
    ///
    /// Ends with exit code 4 if a tool waits for approval.
    #[command(after_help = "Example:\n  guardian server catalog github --refresh\n  guardian server catalog github --changes")]
    Catalog {
        /// As `[[servers]]` and `/mcp/<name>` have it.
        name: ServerName,
        /// Ask the server first. A tool seen for the first time is approved as it is, unless it has `pin = "strict"`.
        #[arg(long)]
        refresh: bool,
        /// Only tools that wait for approval, with what is new in their definitions.
        #[arg(long)]
        changes: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Approve the definitions a server offers now: of one tool, or of all.
    #[command(after_help = "Example:\n  guardian server pin github create_issue\n  guardian server pin github --all")]
    Pin {
        /// As `[[servers]]` and `/mcp/<name>` have it.
        name: ServerName,
        /// The tool whose definition is approved.
        #[arg(required_unless_present = "all")]
        tool: Option<ToolName>,
        /// Every tool it offers.
        #[arg(long, conflicts_with = "tool")]
        all: bool,
        /// Only if the offered definition still has this digest, as `catalog --json` shows it.
        #[arg(long, value_parser = digest, requires = "tool")]
        digest: Option<Digest>,
        #[command(flatten)]
        format: Format,
    },
}

/// A row of `guardian server list`.
#[derive(Serialize)]
struct ServerSummary {
    name: ServerName,
    title: Option<String>,
    url: Option<String>,
    configured: bool,
    enabled: bool,
    tools: usize,
    waiting: usize,
    /// Why its tools cannot be listed, as the running instance found it last.
    failure: Option<String>,
    failing_since: Option<String>,
    failed_at: Option<String>,
}

/// A row of `guardian server catalog`.
#[derive(Serialize)]
struct ToolSummary {
    tool: ToolName,
    #[serde(rename = "standing")]
    pin_status: PinStatus,
    scopes: Vec<Scope>,
    class: ToolClass,
    offered: Option<Digest>,
    pinned: Option<Digest>,
    pinned_at: Option<String>,
    pinned_by: Option<String>,
    /// Why no caller can use this tool, whatever their grants: its input schema is unusable.
    obstacle: Option<String>,
    /// What differs between the pinned and the offered definition, as `differing` writes it.
    #[serde(skip)]
    differs: Vec<String>,
}

impl ServerCommand {
    pub async fn run(&self, file: &ConfigFile) -> Result<(), Failure> {
        let admin = AdminContext::open(file).await?;
        let env = &admin.config.environment;
        match self {
            ServerCommand::List { format } => list(&admin, *format).await,
            ServerCommand::Add {
                name,
                title,
                url,
                tool_scopes,
                format,
            } => {
                let mut row = registered(&admin, name).await?;
                row.tool_scopes.extend(tool_scopes.iter().cloned());
                if let Some(title) = title {
                    row.name.clone_from(title);
                }
                if url.is_some() {
                    row.url.clone_from(url);
                }
                put(&admin, file, &row, *format).await
            }
            ServerCommand::Disable { name, format } => {
                admin.server(name).await?;
                let row = registered(&admin, name).await?;
                put(&admin, file, &RegistryRow { enabled: false, ..row }, *format).await
            }
            ServerCommand::Enable { name, format } => {
                admin.server(name).await?;
                let row = registered(&admin, name).await?;
                put(&admin, file, &RegistryRow { enabled: true, ..row }, *format).await
            }
            ServerCommand::Catalog {
                name,
                refresh,
                changes,
                format,
            } => {
                admin.server(name).await?;
                if *refresh {
                    ask(&admin, name).await?;
                }
                catalog(&admin, name, *changes, *format).await
            }
            ServerCommand::Pin {
                name,
                tool,
                all: _,
                digest,
                format,
            } => {
                admin.server(name).await?;
                let by = file.by.clone().unwrap_or_else(|| process_actor().user);
                let pinned = admin.store.pin_tool(env, name, tool.as_ref(), *digest, &by).await?;
                let what = if pinned.is_empty() {
                    format!("nothing of `{name}` waits for approval")
                } else {
                    format!("approved {} of `{name}`", comma(&pinned))
                };
                format.done(&json!({ "server": name, "pinned": pinned }), what)
            }
        }
    }
}

async fn list(admin: &AdminContext, format: Format) -> Result<(), Failure> {
    let env = &admin.config.environment;
    let (registry, stored) = (admin.store.list_servers(env).await?, admin.store.catalogue(env).await?);
    let failures = admin.store.server_failures(env).await?;
    let configured = &admin.config.servers;
    let names: BTreeSet<&ServerName> = configured
        .iter()
        .map(|server| &server.name)
        .chain(registry.iter().map(|row| &row.server))
        .collect();
    let listed: Vec<ServerSummary> = names
        .into_iter()
        .map(|name| {
            let in_file = configured.iter().find(|server| server.name == *name);
            let row = registry.iter().find(|row| row.server == *name);
            let failed = failures.iter().find(|failed| failed.server == *name && in_file.is_some());
            let tools: Vec<PinStatus> = stored.iter().filter(|tool| tool.server == *name).map(pin_status).collect();
            ServerSummary {
                name: name.clone(),
                title: row.map(|row| row.name.clone()),
                url: in_file
                    .and_then(|server| server.url.clone())
                    .or_else(|| row.and_then(|row| row.url.clone())),
                configured: in_file.is_some(),
                enabled: row.is_none_or(|row| row.enabled),
                tools: tools.iter().filter(|pin_status| **pin_status != PinStatus::Gone).count(),
                waiting: tools.iter().filter(|pin_status| waits(**pin_status)).count(),
                failure: failed.map(|failed| failed.failure.clone()),
                failing_since: failed.map(|failed| at(failed.since)),
                failed_at: failed.map(|failed| at(failed.seen_at)),
            }
        })
        .collect();
    let heads = ["name", "url", "state", "tools", "waiting"];
    format.list(
        &listed,
        &heads,
        "no servers; add `[[servers]]` to the configuration",
        |server| {
            let state = match (server.configured, server.enabled, &server.failure) {
                (_, false, _) => "disabled",
                (false, true, _) => "not configured",
                (true, true, Some(_)) => "failing",
                (true, true, None) => "enabled",
            };
            vec![
                server.name.to_string(),
                or_dash(server.url.as_ref()),
                state.to_owned(),
                server.tools.to_string(),
                server.waiting.to_string(),
            ]
        },
    )?;
    failures
        .iter()
        .filter(|failed| configured.iter().any(|server| server.name == failed.server))
        .try_for_each(note_failure)
}

/// Why the running instance, or the last one, could not list the tools of a server.
fn note_failure(failed: &ServerFailure) -> Result<(), Failure> {
    let (since, last) = (at(failed.since), at(failed.seen_at));
    note(format_args!(
        "`{}` fails since {since} (last at {last}): {}",
        failed.server,
        clean(&failed.failure)
    ))
}

/// Fetches the server's tools, as `serve` does, records them in the store and prints what changed.
async fn ask(admin: &AdminContext, name: &ServerName) -> Result<(), Failure> {
    let configured = admin.config.servers.iter().find(|server| server.name == *name);
    let server = configured.ok_or_else(|| {
        Failure::failed(format_args!(
            "`{name}` stands in no `[[servers]]` of the configuration, so it cannot be asked"
        ))
    })?;
    let bar = progress(format_args!("asking {name} for its tools"));
    let offered = catalogue::fetch(server).await.map_err(Failure::failed)?;
    let definitions: Vec<_> = offered
        .tools
        .iter()
        .map(|tool| (tool.name.clone(), tool.digest, tool.definition.to_string()))
        .collect();
    let pin_new = server.pin == PinMode::FirstUse;
    let observed = admin
        .store
        .observe_tools(&admin.config.environment, name, &definitions, pin_new)
        .await?;
    // only the proxy's login may say how a server does
    let proxy = context::open_store(&admin.config.store, Login::Proxy).await?;
    proxy.note_server_failure(&admin.config.environment, name, None).await?;
    drop(bar);
    for tool in &offered.rejected {
        note(format_args!("left out `{}`: {}", clean(&tool.name), clean(&tool.why)))?;
    }
    let told = [
        ("new", observed.added),
        ("changed", observed.changed),
        ("gone", observed.gone),
    ];
    told.iter()
        .filter(|(_, tools)| !tools.is_empty())
        .try_for_each(|(word, tools)| note(format_args!("{word}: {}", comma(tools))))
}

async fn catalog(admin: &AdminContext, name: &ServerName, changes: bool, format: Format) -> Result<(), Failure> {
    let env = &admin.config.environment;
    let (registry, stored) = (admin.store.list_servers(env).await?, admin.store.catalogue(env).await?);
    let configured = &admin.config.servers;
    let mut tools: Vec<ToolSummary> = stored
        .iter()
        .filter(|tool| tool.server == *name)
        .map(|tool| tool_of(tool, scopes_of(name, &tool.tool, configured, &registry)))
        .collect();
    let waiting = tools.iter().any(|tool| waits(tool.pin_status));
    if changes {
        tools.retain(|tool| waits(tool.pin_status));
    }
    let none = "no tools are known yet; `--refresh` asks the server";
    let heads = ["tool", "standing", "scopes", "says it", "approved", "by"];
    if changes && !format.json && !tools.is_empty() {
        super::output::line(differences(&tools))?;
    } else {
        format.list(
            &tools,
            &heads,
            if changes { "no tool waits for approval" } else { none },
            tool_row,
        )?;
    }
    let failures = admin.store.server_failures(env).await?;
    failures
        .iter()
        .filter(|failed| failed.server == *name)
        .try_for_each(note_failure)?;
    for (tool, obstacle) in tools.iter().filter_map(|tool| Some(tool).zip(tool.obstacle.as_ref())) {
        note(format_args!("`{}`: {}", tool.tool, clean(obstacle)))?;
    }
    if waiting {
        Err(Failure::silent(failure::FINDING))
    } else {
        Ok(())
    }
}

fn tool_of(tool: &StoredTool, scopes: Vec<Scope>) -> ToolSummary {
    let read = |text: Option<&(Digest, String)>| -> Json {
        text.and_then(|(_, text)| serde_json::from_str(text).ok()).unwrap_or_default()
    };
    let (offered, pinned) = (read(tool.offered.as_ref()), read(tool.pinned.as_ref()));
    let read = RawTool::read(if pinned.is_null() { &offered } else { &pinned });
    ToolSummary {
        tool: tool.tool.clone(),
        pin_status: pin_status(tool),
        scopes,
        class: read.map_or_else(|_| ToolClass::default(), |tool| tool.class),
        offered: tool.offered.as_ref().map(|(digest, _)| *digest),
        pinned: tool.pinned.as_ref().map(|(digest, _)| *digest),
        pinned_at: tool.pinned_at.map(at),
        pinned_by: tool.pinned_by.clone(),
        obstacle: decide::why_unusable(&if pinned.is_null() { &offered } else { &pinned }["inputSchema"]),
        differs: differing(&pinned, &offered),
    }
}

/// The members that differ, one line each: `description: "old" → "new"`. With nothing pinned, every offered member.
fn differing(pinned: &Json, offered: &Json) -> Vec<String> {
    let members = |definition: &Json| definition.as_object().cloned().unwrap_or_default();
    let (old, new) = (members(pinned), members(offered));
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let text = |value: Option<&Json>| value.map_or_else(|| "nothing".to_owned(), ToString::to_string);
    names
        .into_iter()
        .filter(|name| old.get(*name) != new.get(*name))
        .map(|name| {
            if old.is_empty() {
                format!("{name}: {}", text(new.get(name)))
            } else {
                format!("{name}: {} → {}", text(old.get(name)), text(new.get(name)))
            }
        })
        .collect()
}

fn differences(tools: &[ToolSummary]) -> String {
    let rows = tools.iter().flat_map(|tool| {
        tool.differs.iter().enumerate().map(|(index, differs)| {
            let name = if index == 0 { tool.tool.to_string() } else { String::new() };
            vec![name, differs.clone()]
        })
    });
    table(&["tool", "definition"], rows)
}

fn tool_row(tool: &ToolSummary) -> Vec<String> {
    let says = match tool.class {
        ToolClass::ReadOnly => "only reads",
        ToolClass::Additive => "only adds",
        ToolClass::Destructive => "destroys",
        ToolClass::Unannotated => "nothing",
    };
    vec![
        tool.tool.to_string(),
        word(tool.pin_status).to_owned(),
        comma(&tool.scopes),
        says.to_owned(),
        or_dash(tool.pinned_at.as_ref()),
        or_dash(tool.pinned_by.as_ref()),
    ]
}

const fn waits(pin_status: PinStatus) -> bool {
    matches!(pin_status, PinStatus::Changed | PinStatus::Unapproved)
}

const fn word(pin_status: PinStatus) -> &'static str {
    match pin_status {
        PinStatus::Pinned => "approved",
        PinStatus::Changed => "changed",
        PinStatus::Unapproved => "not approved",
        PinStatus::Gone => "gone",
    }
}

/// The server's row of the registry, or a new row with the defaults.
async fn registered(admin: &AdminContext, name: &ServerName) -> Result<RegistryRow, Failure> {
    let known = admin.store.server(&admin.config.environment, name).await?;
    let new = || RegistryRow {
        server: name.clone(),
        name: name.to_string(),
        url: None,
        enabled: true,
        tool_scopes: BTreeMap::new(),
    };
    Ok(known.unwrap_or_else(new))
}

/// Writes the row to the registry and prints what that means for calls.
async fn put(admin: &AdminContext, file: &ConfigFile, row: &RegistryRow, format: Format) -> Result<(), Failure> {
    admin.store.put_server(&admin.config.environment, row).await?;
    let state = if row.enabled {
        "may be called"
    } else {
        "is disabled: every call to it is refused"
    };
    let configured = admin.config.servers.iter().any(|server| server.name == row.server);
    let hint = if configured {
        String::new()
    } else {
        format!(
            "; it stands in no `[[servers]]` of {}, so nothing goes there yet",
            display_path(&file.path)
        )
    };
    format.done(&row_json(row), format_args!("`{}` {state}{hint}", row.server))
}

fn row_json(row: &RegistryRow) -> Json {
    json!({ "name": row.server, "title": row.name, "url": row.url, "enabled": row.enabled, "tool_scopes": row.tool_scopes })
}

fn tool_scope(text: &str) -> Result<(String, Vec<Scope>), String> {
    let (tool, scopes) = text.split_once('=').ok_or("write it as `tool=scope` or `tool=scope,scope`")?;
    let tool = ToolName::parse(tool).map_err(|error| error.to_string())?;
    let scopes: Result<Vec<Scope>, BadName> = scopes.split(',').map(Scope::parse).collect();
    Ok((tool.to_string(), scopes.map_err(|error| error.to_string())?))
}

fn digest(text: &str) -> Result<Digest, String> {
    Digest::parse_hex(text).ok_or_else(|| format!("`{}` is not 64 lower-case hex digits", clean(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_member_by_member() {
        let old = json!({ "name": "a", "description": "reads", "annotations": { "readOnlyHint": true } });
        let new = json!({ "name": "a", "description": "reads all", "title": "A" });
        assert_eq!(
            differing(&old, &new),
            [
                r#"annotations: {"readOnlyHint":true} → nothing"#,
                r#"description: "reads" → "reads all""#,
                r#"title: nothing → "A""#,
            ]
        );
        assert_eq!(differing(&old, &old), [""; 0]);
        assert_eq!(differing(&Json::Null, &json!({ "name": "a" })), [r#"name: "a""#]);
    }

    #[test]
    fn scopes_of_a_tool_are_read_as_they_are_typed() {
        let (tool, scopes) = tool_scope("create_issue=issues:write,issues:read").unwrap();
        assert_eq!(
            (tool.as_str(), comma(scopes).as_str()),
            ("create_issue", "issues:write,issues:read")
        );
        for bad in ["create_issue", "create issue=a", "a=", "a=b,,c", "=a"] {
            assert!(tool_scope(bad).is_err(), "{bad}");
        }
    }
}
