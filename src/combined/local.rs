//! Methods that the combined endpoint answers without asking a server: `initialize`, `ping`, `server/discover` and
//! `tools/list`. They use what was last learned of each server and the pinned tool definitions, so an unreachable server
//! hides no tools, not even its own.

use super::session::ClientInfo;
use super::{Combined, CombinedRequest, CombinedResult};
use crate::decide;
use crate::domain::{ClientRequests, Era, ProtocolVersion, Reason, ServerName};
use crate::gate::{AuthzContext, RefusedRequest, is_offered};
use crate::limits::Admission;
use crate::mcp::{self, ListKind, Namespace, Page, StreamKind};
use crate::sessions::Session;
use crate::upstream::{ServerInfo, Upstream};
use http::HeaderValue;
use serde_json::{Value, json};

/// Cache lifetime for modern clients. A client that needs changes sooner uses `subscriptions/listen`.
const TTL_MS: u64 = 60_000;
/// Longest instructions taken from one server, in characters, and from all together, in bytes.
const LONGEST_INSTRUCTIONS: usize = 4_000;
const ALL_INSTRUCTIONS: usize = 32_000;

impl CombinedRequest {
    /// Loads what the caller may do, once for the message, and refuses callers who are not enrolled, not active or not
    /// confirmed recently. A message answered locally needs an admitted caller too.
    pub(super) async fn load_authz(&mut self) -> Result<AuthzContext, Box<RefusedRequest>> {
        let gate = &self.caller.combined.parts.gate;
        let authenticated = self.caller.principal.clone().into();
        match gate.load_authz(authenticated, &self.context).await {
            Ok(authz) => self.authz = Some(authz.clone()),
            Err(refusal) => return Err(self.refuse(refusal)),
        }
        let authz = self.authz.clone().ok_or_else(|| self.refuse(Reason::Internal))?;
        match decide::is_admitted(&authz.decision_input()) {
            Ok(()) => Ok(authz),
            Err(refusal) => Err(self.refuse(refusal)),
        }
    }

    /// Counts the message against the caller's own limits only, because no server is asked.
    pub(super) fn admit(&self) -> Result<Admission, Box<RefusedRequest>> {
        let limits = &self.caller.combined.parts.limits;
        limits
            .admit_caller(self.caller.limits_key)
            .map_err(|refusal| self.refuse(*refusal))
    }

    /// Opens a combined session. The client's parameters are sealed into the session id; servers are initialised later, when
    /// first called.
    pub(super) async fn initialize(&mut self) -> CombinedResult {
        let authz = self.load_authz().await?;
        let _admission = self.admit()?;
        let combined = &self.caller.combined;
        let version = self.message.version.unwrap_or(ProtocolVersion::V20251125);
        let said = combined.merged_capabilities(&authz, Era::Legacy);
        let body = self.message.message.as_ref().map(mcp::Message::body);
        let client_info = ClientInfo::read(body.map_or(b"", |body| &body[..]));
        let session = Session {
            id: client_info
                .session_id(self.context.request)
                .ok_or_else(|| self.refuse(Reason::Internal))?,
            version,
            expires_at: self.context.at.plus(combined.parts.session_lifetime),
        };
        let sealed = combined.parts.session_keys.seal(&session, &self.caller.principal, None);
        let sealed = HeaderValue::try_from(sealed).map_err(|_| self.refuse(Reason::Internal))?;
        let mut answered = self.local(mcp::result(
            &self.id(),
            json!({
                "protocolVersion": version.as_str(),
                "capabilities": said.capabilities,
                "serverInfo": mcp::guardian_server_info(),
                "instructions": said.instructions,
            }),
        ));
        answered.response.headers_mut().insert(mcp::SESSION_ID, sealed);
        Ok(answered)
    }

    /// Answers `ping` locally. It is free, as on the endpoint of a single server.
    pub(super) async fn ping(&mut self) -> CombinedResult {
        self.load_authz().await?;
        Ok(self.local(mcp::result(&self.id(), json!({}))))
    }

    /// Answers `server/discover`. A dual-era client should use the era in which it reaches more servers, as it cannot see
    /// the others. If that is the legacy era, `server/discover` fails with "method not found", and the client falls back to
    /// `initialize`.
    pub(super) async fn discover(&mut self) -> CombinedResult {
        let authz = self.load_authz().await?;
        let combined = &self.caller.combined;
        let reached = |era| combined.servers(&authz, era).count();
        if reached(Era::Modern) < reached(Era::Legacy) {
            return Err(self.refuse(Reason::UnknownMethod));
        }
        let said = combined.merged_capabilities(&authz, Era::Modern);
        let result = json!({
            "resultType": "complete",
            "supportedVersions": [ProtocolVersion::V20260728.as_str()],
            "capabilities": said.capabilities,
            "instructions": said.instructions,
            "ttlMs": TTL_MS,
            "cacheScope": "private",
            "_meta": { "io.modelcontextprotocol/serverInfo": mcp::guardian_server_info() },
        });
        Ok(self.local(mcp::result(&self.id(), result)))
    }

    /// Lists all tools on one page, ordered by server and name. No cursor is ever issued.
    pub(super) async fn tools(&mut self) -> CombinedResult {
        let authz = self.load_authz().await?;
        let _admission = self.admit()?;
        if self.params().is_some_and(|params| params.cursor.is_some()) {
            return Err(self.refuse(Reason::UnknownCursor));
        }
        let era = self.message.era;
        let definitions = self.caller.combined.tool_definitions(&authz, era, self.declared_requests());
        let page = Page::of(&definitions, TTL_MS);
        Ok(self.local(mcp::merge_pages(&self.id(), ListKind::Tools, &[page], None, era)))
    }

    /// The requests that the client declares to answer: in its session, or in this message.
    pub(super) fn declared_requests(&self) -> ClientRequests {
        if let Some(session) = &self.session {
            return session.declared_requests();
        }
        let meta = self.params().and_then(|params| params.meta.as_ref());
        let span = meta.and_then(|meta| meta.client_capabilities);
        let declared = span.zip(self.message.message.as_ref()).map(|(span, message)| {
            let capabilities = serde_json::from_slice(&span.of(message.body()));
            mcp::declared_requests(&capabilities.unwrap_or_default())
        });
        declared.unwrap_or_default()
    }
}

impl Combined {
    /// The servers, ordered by name, that this caller has a usable grant for and that are not known to lack the era.
    pub(super) fn servers<'a>(
        &'a self,
        authz: &'a AuthzContext,
        era: Era,
    ) -> impl Iterator<Item = (&'a ServerName, &'a Upstream)> {
        let speaks = move |server: &Upstream| !server.eras().cannot_speak(era);
        let admitted = move |name: &ServerName| decide::admits(name, &authz.decision_input());
        self.parts
            .upstreams
            .iter()
            .filter(move |(name, server)| speaks(server) && admitted(name))
    }

    /// The pinned definitions of all tools that some call of this caller could be permitted for, under their prefixed names;
    /// without those that their server does not offer to a client that declares only these requests.
    pub(super) fn tool_definitions(&self, authz: &AuthzContext, era: Era, declared: ClientRequests) -> Vec<String> {
        let input = authz.decision_input();
        let of_server = |(name, server): (&ServerName, &Upstream)| {
            let namespace = Namespace::new(name.clone(), StreamKind::Answer);
            let mut tools: Vec<_> = authz.snapshot.tools(name).collect();
            tools.sort_by(|one, other| one.entry().name.cmp(&other.entry().name));
            tools.retain(|tool| is_offered(tool, era));
            tools.retain(|tool| server.offers(&tool.entry().name, declared));
            tools.retain(|tool| decide::could_permit(name, tool, &input));
            let renamed = |tool: &decide::CompiledTool| {
                let entry = tool.entry();
                mcp::rename_tool(&entry.definition, &namespace.name(entry.name.as_str())).ok()
            };
            tools.into_iter().filter_map(renamed).collect::<Vec<_>>()
        };
        self.servers(authz, era).flat_map(of_server).collect()
    }

    /// Merges the capabilities and instructions of this caller's servers.
    fn merged_capabilities(&self, authz: &AuthzContext, era: Era) -> ServerInfo {
        let mut capabilities = ServerInfo::default();
        let mut instructions =
            "Tools and prompts of several servers: `<server>__<name>`. Resources: `<server>+<uri>`.".to_owned();
        for (name, server) in self.servers(authz, era) {
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
