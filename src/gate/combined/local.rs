//! Methods that the combined endpoint answers without asking a server: `initialize`, `ping`, `server/discover` and
//! `tools/list`. They use what was last learned of each server and the pinned tool definitions, so an unreachable server
//! hides no tools, not even its own.

use super::session::ClientInfo;
use super::{CombinedCaller, CombinedRequest, local_response};
use crate::decide;
use crate::domain::{Era, MessageId, ProtocolVersion, Reason, Refusal, ServerName};
use crate::gate::Gate;
use crate::gate::authz::AuthzContext;
use crate::gate::combined::namespace::Namespace;
use crate::gate::context::RequestContext;
use crate::limits::{Admission, PrincipalKey};
use crate::mcp::{self, ListKind, Page, Rename};
use crate::sessions::Session;
use crate::transport::Body;
use crate::upstream::{ServerInfo, Upstream};
use http::{HeaderValue, Response};
use serde_json::{Value, json};

/// Cache lifetime for modern clients. A client that needs changes sooner uses `subscriptions/listen`.
const TTL_MS: u64 = 60_000;
/// Longest instructions taken from one server, in characters, and from all together, in bytes.
const LONGEST_INSTRUCTIONS: usize = 4_000;
const ALL_INSTRUCTIONS: usize = 32_000;

impl CombinedCaller {
    /// Loads the authorisation context and refuses callers who are not enrolled, not active or not confirmed recently. A
    /// message answered locally needs an admitted caller too.
    pub(super) async fn load_authz(&self, context: &mut RequestContext) -> Result<AuthzContext, Refusal> {
        let authz = self.gate.load_authz(self.principal.clone().into(), context).await?;
        decide::is_admitted(&authz.decision_input(context))?;
        Ok(authz)
    }

    /// Counts the message against the caller's own limits only, because no server is asked.
    pub(super) fn admit(&self) -> Result<Admission, Refusal> {
        let who = self.counted.unwrap_or_else(|| PrincipalKey::of(&self.principal));
        self.gate.parts.limits.admit_caller(who).map_err(|refusal| *refusal)
    }

    /// Opens a combined session. The client's parameters are sealed into the session id; servers are initialised later, when
    /// first called.
    pub(super) async fn initialize(
        &self,
        request: &CombinedRequest<'_>,
        id: &MessageId,
        version: Option<ProtocolVersion>,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        let authz = self.load_authz(context).await?;
        let _admission = self.admit()?;
        let gate = &self.gate;
        let version = version.unwrap_or(ProtocolVersion::V20251125);
        let said = gate.merged_capabilities(&authz, Era::Legacy, context);
        let session = Session {
            id: ClientInfo::read(&request.body)
                .session_id(context.request)
                .ok_or(Reason::Internal)?,
            version,
            expires_at: context.at.plus(gate.parts.session_lifetime),
        };
        let sealed = gate.parts.session_keys.seal(&session, &self.principal, None);
        let result = json!({
            "protocolVersion": version.as_str(),
            "capabilities": said.capabilities,
            "serverInfo": server_info(),
            "instructions": said.instructions,
        });
        let mut response = local_response(mcp::result(id, result));
        let sealed = HeaderValue::try_from(sealed).map_err(|_| Refusal::new(Reason::Internal))?;
        response.headers_mut().insert(mcp::SESSION_ID, sealed);
        Ok(response)
    }

    /// Answers `ping` locally. It is free, as on the endpoint of a single server.
    pub(super) async fn ping(&self, id: &MessageId, context: &mut RequestContext) -> Result<Response<Body>, Refusal> {
        self.load_authz(context).await?;
        Ok(local_response(mcp::result(id, json!({}))))
    }

    /// Answers `server/discover`. A dual-era client should use the era in which it reaches more servers, as it cannot see
    /// the others. If that is the legacy era, `server/discover` fails with "method not found", and the client falls back to
    /// `initialize`.
    pub(super) async fn discover(&self, id: &MessageId, context: &mut RequestContext) -> Result<Response<Body>, Refusal> {
        let authz = self.load_authz(context).await?;
        let gate = &self.gate;
        let reached = |era| gate.servers(&authz, era, context).count();
        if reached(Era::Modern) < reached(Era::Legacy) {
            return Err(Reason::UnknownMethod.into());
        }
        let said = gate.merged_capabilities(&authz, Era::Modern, context);
        let result = json!({
            "resultType": "complete",
            "supportedVersions": [ProtocolVersion::V20260728.as_str()],
            "capabilities": said.capabilities,
            "instructions": said.instructions,
            "ttlMs": TTL_MS,
            "cacheScope": "private",
            "_meta": { "io.modelcontextprotocol/serverInfo": server_info() },
        });
        Ok(local_response(mcp::result(id, result)))
    }

    /// Lists all tools on one page, ordered by server and name. No cursor is ever issued.
    pub(super) async fn tools(
        &self,
        request: &CombinedRequest<'_>,
        id: &MessageId,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        let authz = self.load_authz(context).await?;
        let _admission = self.admit()?;
        if request.params.cursor.is_some() {
            return Err(Reason::UnknownCursor.into());
        }
        let page = Page::of(&self.gate.tool_definitions(&authz, request.era, context), TTL_MS);
        Ok(local_response(mcp::merge_pages(
            id,
            ListKind::Tools,
            &[page],
            None,
            request.era,
        )))
    }
}

impl Gate {
    /// The servers, ordered by name, that this caller has a usable grant for and that are not known to lack the era.
    pub(super) fn servers<'a>(
        &'a self,
        authz: &'a AuthzContext,
        era: Era,
        context: &'a RequestContext,
    ) -> impl Iterator<Item = (&'a ServerName, &'a Upstream)> {
        let speaks = move |server: &Upstream| !server.eras().cannot_speak(era);
        let admitted = move |name: &ServerName| decide::admits(name, &authz.decision_input(context));
        self.parts
            .upstreams
            .iter()
            .filter(move |(name, server)| speaks(server) && admitted(name))
    }

    /// The pinned definitions of all tools that some call of this caller could be permitted for, under their prefixed names.
    pub(super) fn tool_definitions(&self, authz: &AuthzContext, era: Era, context: &RequestContext) -> Vec<String> {
        let input = authz.decision_input(context);
        let of_server = |name: &ServerName| {
            let namespace = Namespace::new(name.clone(), super::StreamKind::Answer);
            let mut tools: Vec<_> = authz.snapshot.tools(name).collect();
            tools.sort_by(|one, other| one.entry().name.cmp(&other.entry().name));
            tools.retain(|tool| era == Era::Legacy || tool.param_headers().is_ok());
            tools.retain(|tool| decide::could_permit(name, tool, &input));
            let renamed = |tool: &decide::CompiledTool| {
                let entry = tool.entry();
                mcp::rename_tool(&entry.definition, &namespace.name(entry.name.as_str())).ok()
            };
            tools.into_iter().filter_map(renamed).collect::<Vec<_>>()
        };
        self.servers(authz, era, context)
            .flat_map(|(name, _)| of_server(name))
            .collect()
    }

    /// Merges the capabilities and instructions of this caller's servers.
    fn merged_capabilities(&self, authz: &AuthzContext, era: Era, context: &RequestContext) -> ServerInfo {
        let mut capabilities = ServerInfo::default();
        let mut instructions =
            "Tools and prompts of several servers: `<server>__<name>`. Resources: `<server>+<uri>`.".to_owned();
        for (name, server) in self.servers(authz, era, context) {
            let server_info = server.server_info();
            if let Some(text) = &server_info.instructions {
                let text: String = text.chars().take(LONGEST_INSTRUCTIONS).collect();
                if instructions.len() + text.len() < ALL_INSTRUCTIONS {
                    instructions.push_str(&format!("\n\n# {name}\n\n{text}"));
                }
            }
            capabilities = capabilities.merge(ServerInfo::clone(&server_info));
        }
        ServerInfo {
            capabilities: Some(offered_capabilities(capabilities.capabilities.unwrap_or_default(), era)),
            instructions: Some(instructions),
        }
    }
}

/// The merged capabilities reduced to those that the combined endpoint forwards.
fn offered_capabilities(mut of_servers: Value, era: Era) -> Value {
    const TASKS: &str = "io.modelcontextprotocol/tasks";
    let mut offered = json!({ "tools": { "listChanged": true } });
    for name in ["resources", "prompts", "completions"] {
        if let Some(capability) = of_servers.get_mut(name) {
            offered[name] = capability.take();
        }
    }
    match era {
        Era::Legacy => {
            for name in ["logging", "tasks"] {
                if let Some(capability) = of_servers.get_mut(name) {
                    offered[name] = capability.take();
                }
            }
            // `tasks/list` is not offered: its result does not say whose tasks it holds.
            if let Some(tasks) = offered.get_mut("tasks").and_then(Value::as_object_mut) {
                tasks.remove("list");
            }
        }
        Era::Modern => {
            if let Some(tasks) = of_servers["extensions"].get_mut(TASKS) {
                offered["extensions"] = json!({ TASKS: tasks.take() });
            }
        }
    }
    offered
}

fn server_info() -> Value {
    json!({ "name": "neural-guardian", "title": "Neural Guardian", "version": env!("CARGO_PKG_VERSION") })
}
