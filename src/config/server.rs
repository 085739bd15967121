//! One `[[servers]]` entry: where a server is or how it is started, what it may do, and its time-outs and limits.

use super::model::{HumanDuration, Secret, seconds};
use crate::domain::{ClientRequest, ServerName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PinMode {
    /// A tool seen for the first time is pinned as it is; a later change is refused until pinned again.
    #[default]
    FirstUse,
    /// Nothing is callable before `guardian server pin`.
    Strict,
}

/// What a server speaks at its URL.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServerTransport {
    /// Streamable HTTP.
    #[default]
    Http,
    /// The HTTP+SSE of 2024-11-05: a stream that names where messages are posted.
    Sse,
}

/// How a refused tool call looks to the client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Denials {
    /// A tool result with `isError`, which models read as feedback.
    #[default]
    ToolResult,
    /// A JSON-RPC error with reason, policies and remedy.
    Error,
    /// As if the tool did not exist.
    UnknownTool,
}

/// How the call of a tool that does not exist looks to the client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnknownTools {
    /// A tool result with `isError`: a tool that went away must not end the run of an agent.
    #[default]
    ToolResult,
    /// A JSON-RPC error.
    Error,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Clients reach it at `/mcp/<name>`.
    pub name: ServerName,
    /// Where it is, unless it is a program.
    #[serde(default)]
    pub url: Option<String>,
    /// How it is spoken to at its URL.
    #[serde(default)]
    pub transport: ServerTransport,
    /// The program and its arguments, for a server that speaks over its standard input and output. No shell reads them.
    #[serde(default)]
    pub command: Vec<String>,
    /// The program's environment, beside PATH, HOME, LANG, LC_ALL, TZ and TMPDIR, which are Guardian's own.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub env: BTreeMap<String, Secret>,
    /// The same, from files that hold one value each.
    #[serde(default)]
    pub env_files: BTreeMap<String, PathBuf>,
    /// Names of further variables of Guardian's own environment that the program gets, such as `SSL_CERT_FILE`.
    #[serde(default)]
    pub env_from: Vec<String>,
    /// Where the program runs: the folder of this file by default.
    #[serde(default)]
    pub working_dir: Option<PathBuf>,
    /// A process for each session of a client; off: one for all, which can ask its clients nothing.
    #[serde(default = "default_per_session")]
    pub per_session: bool,
    /// Programs and `sse` servers: sessions at once. One caller may have half of them.
    #[serde(default = "number::<32>")]
    pub max_sessions: usize,
    /// Programs and `sse` servers: a session that was not used for so long is ended.
    #[serde(default = "seconds::<1_800>")]
    pub session_idle: HumanDuration,
    /// Its CA, PEM, if it is not a public one.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The credential Guardian presents to it. The caller's own is never sent.
    #[serde(default)]
    pub credential: Option<UpstreamCredential>,
    #[serde(default)]
    pub pin: PinMode,
    /// Refusals of `tools/call` by policy, scope, grant, limit or a changed definition.
    #[serde(default)]
    pub denials: Denials,
    /// The same for service accounts: as for everybody by default.
    #[serde(default)]
    pub service_denials: Option<Denials>,
    #[serde(default)]
    pub unknown_tools: UnknownTools,
    /// What it may ask of the clients that call it. The rest is cut from what clients declare, and refused when asked all the same.
    #[serde(default)]
    pub client_requests: Vec<ClientRequest>,
    /// Scopes a tool needs instead of the scope of its own name.
    #[serde(default)]
    pub tool_scopes: BTreeMap<String, Vec<String>>,
    #[serde(default = "seconds::<5>")]
    pub connect_timeout: HumanDuration,
    /// Until the head of the answer.
    #[serde(default = "seconds::<120>")]
    pub first_byte_timeout: HumanDuration,
    /// Between two pieces of the answer.
    #[serde(default = "seconds::<300>")]
    pub idle_timeout: HumanDuration,
    /// Largest answer that is not a stream.
    #[serde(default = "number::<{ 64 * 1024 * 1024 }>")]
    pub max_answer_bytes: usize,
    /// Calls to it at once, over all callers.
    #[serde(default = "number::<256>")]
    pub max_concurrency: usize,
    /// How often its tool list is fetched anew.
    #[serde(default = "seconds::<60>")]
    pub catalogue_refresh: HumanDuration,
    /// Allow an address on loopback or a private network.
    #[serde(default)]
    pub allow_private_address: bool,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamCredential {
    /// Header to send it in.
    #[serde(default = "default_credential_header")]
    pub header: String,
    /// The whole header value, such as `Bearer ${GITHUB_TOKEN}`.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub value: Option<Secret>,
    /// A file that holds it.
    #[serde(default)]
    pub value_file: Option<PathBuf>,
}

const fn number<const NUMBER: usize>() -> usize {
    NUMBER
}

fn default_per_session() -> bool {
    true
}

fn default_credential_header() -> String {
    "authorization".to_owned()
}
