//! `guardian grant`: lists, adds and revokes grants: which user may use which server, with which scopes, until when.

use super::context::{AdminContext, ConfigFile, moment_ahead};
use super::failure::Failure;
use super::output::{Format, at, clean, comma, json_array, note, or_dash};
use super::policy;
use crate::domain::{ClientId, GrantStatus, PinStatus, Scope, ServerName, Timestamp, ToolEntry, ToolName, did_you_mean, nearest};
use crate::store::{GrantRow, NewGrant};
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, BTreeSet};

/// Show, give and take away grants.
#[derive(Debug, clap::Subcommand)]
pub enum GrantCommand {
    /// Show grants.
    #[command(after_help = "Example:\n  guardian grant list --user alice@example.com")]
    List {
        /// Only of this user, by id or e-mail.
        #[arg(long, value_name = "USER")]
        user: Option<String>,
        /// Only for this server.
        #[arg(long)]
        server: Option<ServerName>,
        #[command(flatten)]
        format: Format,
    },
    /// Give a user tools or scopes on a server, in place of any grant there was.
    #[command(
        after_help = "Examples:\n  guardian grant add --user alice@example.com --server demo \\\n    --tools read_file,list_files --expires 30d\n  guardian grant add --user alice@example.com --server demo --tools all --scopes resources,prompts"
    )]
    Add {
        /// By id or e-mail.
        #[arg(long, value_name = "USER")]
        user: String,
        /// A configured server.
        #[arg(long)]
        server: ServerName,
        /// Known tools of the server, or `all` of them: the grant then names the scopes that each needs. Tools that the
        /// server offers later are not in it.
        #[arg(long, value_delimiter = ',', value_name = "TOOL,…")]
        tools: Vec<ToolName>,
        /// Scopes as they are: `resources`, `prompts`, names of tools, or what tools are mapped to. `*` covers everything,
        /// also what the server offers later, but names no tool: the starter policies then keep developers and members
        /// from tools whose server does not say what they do.
        #[arg(long, required_unless_present = "tools", value_delimiter = ',', value_name = "SCOPE,…")]
        scopes: Vec<Scope>,
        /// A length of time from now (`30d`), or a moment (RFC 3339).
        #[arg(long, value_parser = moment_ahead, value_name = "WHEN")]
        expires: Option<Timestamp>,
        /// Only for tokens issued to this OAuth client.
        #[arg(long, value_name = "ID")]
        client: Option<ClientId>,
        /// Prepare it only: it permits nothing until it is added again without this.
        #[arg(long)]
        idle: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Take a grant away. It binds every call from `grants.max_staleness` on, usually at once.
    #[command(after_help = "Example:\n  guardian grant revoke --user alice@example.com --server demo")]
    Revoke {
        /// By id or e-mail.
        #[arg(long, value_name = "USER")]
        user: String,
        /// A configured server.
        #[arg(long)]
        server: ServerName,
        /// The grant for this OAuth client alone.
        #[arg(long, value_name = "ID")]
        client: Option<ClientId>,
        #[command(flatten)]
        format: Format,
    },
}

impl GrantCommand {
    pub async fn run(&self, file: &ConfigFile) -> Result<(), Failure> {
        let admin = AdminContext::open(file).await?;
        let env = &admin.config.environment;
        match self {
            GrantCommand::List { user, server, format } => {
                let user = admin.user_if_named(user.as_deref()).await?;
                let mut grants = admin.store.list_grants(env, user.as_ref()).await?;
                grants.retain(|row| server.as_ref().is_none_or(|server| row.grant.server == *server));
                if format.json {
                    return json_array(grants.iter().map(as_json));
                }
                let heads = ["user", "server", "client", "status", "scopes", "expires"];
                format.list(&grants, &heads, "no grants; `guardian grant add` makes one", grant_row)
            }
            GrantCommand::Add {
                user,
                server,
                tools,
                scopes,
                expires,
                client,
                idle,
                format,
            } => {
                let owner = admin.user(user).await?;
                admin.server(server).await?;
                let mut scopes: BTreeSet<Scope> = scopes.iter().cloned().collect();
                if !tools.is_empty() {
                    scopes.extend(scopes_of_tools(&admin, server, tools).await?);
                }
                let grant = NewGrant {
                    user: owner.id,
                    server: server.clone(),
                    client: client.clone(),
                    scopes: scopes.iter().cloned().collect(),
                    expires_at: *expires,
                    idle: *idle,
                };
                let id = admin.store.add_grant(env, &grant).await?;
                let word = if *idle { "may, once it is verified," } else { "may" };
                let until = expires.map_or(String::new(), |expires| format!(" until {}", at(expires)));
                format.done(
                    &json!({ "id": id, "user": grant.user, "server": server, "client": client, "scopes": scopes, "expires_at": expires.map(at) }),
                    format_args!("{} {word} use {} on `{server}`{until}", clean(user), comma(scopes)),
                )
            }
            GrantCommand::Revoke {
                user,
                server,
                client,
                format,
            } => {
                let id = admin.user_id(user).await?;
                if !admin.store.revoke_grant(env, &id, server, client.as_ref()).await? {
                    let user = clean(user);
                    return Err(Failure::failed(format_args!(
                        "`{user}` has no such grant on `{server}`; `guardian grant list --user {user}` shows all"
                    )));
                }
                format.done(
                    &json!({ "user": id, "server": server, "client": client, "revoked": true }),
                    format_args!(
                        "revoked; no call is decided on the old grant after {}",
                        admin.config.grants.max_staleness
                    ),
                )
            }
        }
    }
}

/// The scopes that these tools need, or all known tools of the server that are approved. An unapproved tool is left out of
/// `all`: nobody has looked at it yet.
async fn scopes_of_tools(admin: &AdminContext, server: &ServerName, tools: &[ToolName]) -> Result<BTreeSet<Scope>, Failure> {
    let catalogue = policy::catalogue_of(&admin.store, &admin.config).await?;
    let known = catalogue.servers.get(server).map(|entry| &entry.tools);
    let known: BTreeMap<&ToolName, &ToolEntry> = known.into_iter().flatten().collect();
    let all = matches!(tools, [only] if only.as_str() == ALL && !known.contains_key(only));
    let named: Vec<&ToolEntry> = if all {
        let (unapproved, named): (Vec<&ToolEntry>, Vec<&ToolEntry>) = known
            .values()
            .filter(|tool| tool.pin_status != PinStatus::Gone)
            .partition(|tool| tool.pin_status == PinStatus::Unapproved);
        if !unapproved.is_empty() {
            let names = comma(unapproved.iter().map(|tool| &tool.name));
            note(format_args!(
                "left out, since nobody has approved them: {names}; `guardian server pin {server}` does"
            ))?;
        }
        named
    } else {
        let find = |name: &ToolName| known.get(name).copied().ok_or_else(|| unknown_tool(server, name, &known));
        tools.iter().map(find).collect::<Result<_, _>>()?
    };
    if named.is_empty() {
        return Err(Failure::failed(format_args!(
            "no approved tool of `{server}` is known; `guardian server catalog {server} --refresh` asks the server"
        )));
    }
    let mut scopes: BTreeSet<Scope> = named.iter().flat_map(|tool| tool.scopes.iter().cloned()).collect();
    if scopes.remove("*") {
        note("a tool that is mapped to the scope `*` needs `--scopes '*'`, which covers everything: not granted")?;
    }
    Ok(scopes)
}

/// The word that stands for every known tool of the server.
const ALL: &str = "all";

fn unknown_tool(server: &ServerName, named: &ToolName, known: &BTreeMap<&ToolName, &ToolEntry>) -> Failure {
    let near = nearest(named.as_str(), known.keys().map(|name| name.as_str()));
    let help = near.map_or_else(|| format!("`guardian server catalog {server}` shows all"), did_you_mean);
    Failure::failed(format_args!("`{server}` has no tool `{named}`; {help}"))
}

fn as_json(row: &GrantRow) -> Json {
    let grant = &row.grant;
    json!({
        "id": grant.id,
        "user": row.user,
        "email": row.email,
        "server": grant.server,
        "client": grant.client,
        "status": grant.status,
        "scopes": grant.scopes,
        "expires_at": grant.expires_at.map(at),
        "version": grant.version,
    })
}

fn grant_row(row: &GrantRow) -> Vec<String> {
    let grant = &row.grant;
    let status = match grant.status {
        GrantStatus::Idle => "idle",
        GrantStatus::Verified => "verified",
        GrantStatus::Revoked => "revoked",
        GrantStatus::Unreadable => "unreadable",
    };
    vec![
        row.email.clone().unwrap_or_else(|| row.user.to_string()),
        grant.server.to_string(),
        or_dash(grant.client.as_ref()),
        status.to_owned(),
        comma(grant.scopes.iter()),
        or_dash(grant.expires_at.map(at)),
    ]
}
