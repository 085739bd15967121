//! Fetches a server's tools, in whichever era the server speaks. Definitions are read and digested here; which of them
//! are pinned, and what a caller may see, is decided elsewhere.

use super::answer::AnswerRules;
use super::channel::{ControlChannel, MuxChannel};
use super::conditional_tools::{ConditionalTools, names_digest, tool_name, tool_names};
use super::control_reply::{ControlReply, parse_control_reply};
use super::delivery::{DenialSender, EventSource};
use super::error::ForwardError;
use super::http::{Endpoint, Media, media, read_answer_body, session_of, set_session_headers};
use super::outcome::OutcomeGuard;
use super::server::{Eras, ServerInfo, TransportKind, Upstream};
use super::stream::EventStream;
use crate::domain::{ClientRequests, Digest, Era, MessageId, Method, ProtocolVersion, ToolClass, ToolName};
use crate::mcp::{canonical, declare_capabilities, guardian_client_info, guardian_initialize, initialized, mirror_headers};
use crate::sessions::UpstreamSessionId;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// One tool as its server offers it.
#[derive(Debug, Clone, PartialEq)]
pub struct RawTool {
    pub name: ToolName,
    /// The whole definition as canonical JSON (RFC 8785).
    pub definition: Arc<str>,
    /// SHA-256 of `definition`.
    pub digest: Digest,
    pub input_schema: Value,
    pub class: ToolClass,
}

/// A tool that Guardian offers to nobody, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedTool {
    pub name: String,
    pub why: String,
}

/// The tools that a server offers at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct OfferedTools {
    pub tools: Vec<RawTool>,
    pub rejected: Vec<RejectedTool>,
    pub eras: Eras,
}

/// What a server lists to one kind of client.
struct ToolListing {
    tools: Vec<Value>,
    eras: Eras,
    server_info: ServerInfo,
}

/// Why a server's tools could not be fetched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchFailed {
    #[error(transparent)]
    Failed(#[from] ForwardError),
    #[error("the server refuses `{method}`: {message} ({code})")]
    Refused {
        method: &'static str,
        code: i64,
        message: String,
    },
    #[error("the server answers `{method}` with HTTP status {status}")]
    Status { method: &'static str, status: u16 },
    #[error("the server's answer to `{method}` is not what the protocol says: {why}")]
    Nonsense { method: &'static str, why: &'static str },
    #[error("the server's list of tools has no end")]
    Endless,
    #[error("the server's list of tools takes too long")]
    Late,
}

impl FetchFailed {
    /// The text for the log and for commands.
    pub fn for_operator(&self) -> String {
        match self {
            FetchFailed::Failed(error) => error.for_operator(),
            other => other.to_string(),
        }
    }
}

const MAX_PAGES: usize = 100;
const MAX_TOOLS: usize = 5_000;
const METHOD_NOT_FOUND: i64 = -32601;
const UNSUPPORTED_VERSION: i64 = -32022;

impl Upstream {
    /// Fetches all tools and detects which eras the server speaks.
    pub async fn fetch_tools(&self) -> Result<OfferedTools, FetchFailed> {
        let all = self.timeouts.first_byte.saturating_add(self.timeouts.idle);
        let fetched = tokio::time::timeout(all, self.fetch()).await;
        let fetched = fetched.unwrap_or(Err(FetchFailed::Late));
        let ToolListing {
            tools: listed,
            eras,
            server_info,
        } = fetched.map_err(|failed| self.without_secrets(failed))?;
        self.set_capabilities(eras, server_info);
        let (tools, left_out) = read_tools(listed);
        Ok(OfferedTools {
            tools,
            rejected: left_out,
            eras,
        })
    }

    /// What a program says of its failure may hold the secrets that it was given.
    fn without_secrets(&self, failed: FetchFailed) -> FetchFailed {
        match (failed, &self.transport) {
            (FetchFailed::Refused { method, code, message }, TransportKind::Channels(channels)) => FetchFailed::Refused {
                method,
                code,
                message: channels.without_secrets(&message),
            },
            (failed, _) => failed,
        }
    }

    /// All tools, also those that only some clients are offered.
    async fn fetch(&self) -> Result<ToolListing, FetchFailed> {
        let mut listed = match &self.transport {
            TransportKind::Channels(channels) => self.list_over(channels.control_channel().await?).await?,
            TransportKind::Http(_) => self.list_as(self.allowed_requests).await?,
        };
        self.find_conditional_tools(&mut listed.tools).await;
        Ok(listed)
    }

    /// What the server lists to a client that answers these requests.
    async fn list_as(&self, requests: ClientRequests) -> Result<ToolListing, FetchFailed> {
        if let TransportKind::Channels(channels) = &self.transport {
            let (control, _guard) = channels.introduce(requests).await?;
            return self.list_over(control).await;
        }
        let modern = ControlSession::Modern(requests);
        let (tools, eras, server_info) = match self.handshake(requests).await? {
            Some((legacy, server_info)) => {
                let listed = self.list(&legacy).await;
                self.end_session(&legacy).await;
                let (eras, server_info) = match self.discover(&modern).await {
                    Some(modern) => (Eras::Both, server_info.merge(modern)),
                    None => (Eras::Legacy, server_info),
                };
                (listed?, eras, server_info)
            }
            None => {
                let listed = self.list(&modern).await?;
                (listed, Eras::Modern, self.discover(&modern).await.unwrap_or_default())
            }
        };
        Ok(ToolListing {
            tools,
            eras,
            server_info,
        })
    }

    async fn list_over(&self, control: ControlChannel) -> Result<ToolListing, FetchFailed> {
        Ok(ToolListing {
            tools: self.list(&ControlSession::Channel(control.channel)).await?,
            eras: Eras::Legacy,
            server_info: ServerInfo::read(&control.server_info),
        })
    }

    /// Opens a legacy session; `None` if the server does not speak that era.
    async fn handshake(&self, requests: ClientRequests) -> Result<Option<(ControlSession, ServerInfo)>, FetchFailed> {
        let params = guardian_initialize(requests);
        let asked = self
            .ask(Era::Legacy, &HeaderMap::new(), 1, "initialize", &params, None)
            .await?;
        let ControlResponse { status, reply, session } = asked;
        let result = match reply {
            ControlReply::Result(result) => result,
            ControlReply::Error {
                code: UNSUPPORTED_VERSION | METHOD_NOT_FOUND,
                ..
            } => return Ok(None),
            // A modern server rejects `initialize`: it misses `_meta` or the headers that mirror the body, or does not
            // know the method.
            _ if matches!(status.as_u16(), 400 | 404) => return Ok(None),
            other => return Err(refusal("initialize", status.as_u16(), other)),
        };
        let version = match result["protocolVersion"].as_str().and_then(ProtocolVersion::parse) {
            Some(version) if version.era() == Era::Legacy => version,
            // A modern server that answers `initialize` anyway.
            Some(_) => return Ok(None),
            None => {
                let (method, why) = ("initialize", "its protocol version is not spoken here");
                return Err(FetchFailed::Nonsense { method, why });
            }
        };
        let legacy = ControlSession::Legacy { version, session };
        self.notify(&http::Method::POST, &legacy.fields(Method::Notification), &initialized())
            .await?;
        Ok(Some((legacy, ServerInfo::read(&result))))
    }

    /// Fetches all pages of `tools/list`.
    async fn list(&self, session: &ControlSession) -> Result<Vec<Value>, FetchFailed> {
        let mut listed = Vec::new();
        let mut cursor: Option<String> = None;
        let mut cursors = BTreeSet::new();
        for page in 0..MAX_PAGES {
            let fields = session.fields(Method::ToolsList);
            let params = session.params(cursor.as_deref());
            let (said, status) = match session {
                ControlSession::Channel(channel) => (
                    channel
                        .request_for_guardian("tools/list", &params, self.timeouts.first_byte)
                        .await?,
                    200,
                ),
                ControlSession::Legacy { .. } | ControlSession::Modern(_) => {
                    let id = 2 + page as u64;
                    let denials = self.denials_in(session);
                    let response = self.ask(session.era(), &fields, id, "tools/list", &params, denials).await?;
                    (response.reply, response.status.as_u16())
                }
            };
            let mut result = match said {
                ControlReply::Result(result) => result,
                ControlReply::Error {
                    code: METHOD_NOT_FOUND, ..
                } if session.era() == Era::Legacy => return Ok(listed),
                other => return Err(refusal("tools/list", status, other)),
            };
            let Value::Array(tools) = result["tools"].take() else {
                let (method, why) = ("tools/list", "there are no `tools`");
                return Err(FetchFailed::Nonsense { method, why });
            };
            listed.extend(tools);
            if listed.len() > MAX_TOOLS {
                return Err(FetchFailed::Endless);
            }
            match result["nextCursor"].as_str() {
                None => return Ok(listed),
                Some(next) if !cursors.insert(next.to_owned()) => return Err(FetchFailed::Endless),
                Some(next) => cursor = Some(next.to_owned()),
            }
        }
        Err(FetchFailed::Endless)
    }

    /// Ends the session. A server that does not support DELETE will expire it.
    async fn end_session(&self, session: &ControlSession) {
        if let ControlSession::Legacy { session: Some(_), .. } = session {
            let _ = self
                .notify(&http::Method::DELETE, &session.fields(Method::EndSession), &Bytes::new())
                .await;
        }
    }

    /// Sends `server/discover`, which only modern servers understand; `None` if there is no result.
    async fn discover(&self, modern: &ControlSession) -> Option<ServerInfo> {
        let (fields, params) = (modern.fields(Method::Discover), modern.params(None));
        let asked = self.ask(Era::Modern, &fields, 1, "server/discover", &params, None).await;
        match asked.ok()?.reply {
            ControlReply::Result(result) => Some(ServerInfo::read(&result)),
            ControlReply::Error { .. } | ControlReply::Nothing => None,
        }
    }
}

impl Upstream {
    /// Adds the tools that only other clients are offered, and stores which tools depend on the capabilities of a client.
    /// Only a list that has changed is compared; what cannot be found out now stays as it was, and is tried again with the
    /// next fetch.
    async fn find_conditional_tools(&self, listed: &mut Vec<Value>) {
        if self.allowed_requests.is_empty() {
            return;
        }
        let of = names_digest(listed);
        let mut known = self.conditional_tools.load_full();
        // Of a tool that only other clients are offered, a changed definition is seen only there.
        if known.of != Some(of) || !known.hidden.is_empty() {
            match self.compare(of, listed).await {
                Ok(found) => {
                    known = Arc::new(found);
                    self.conditional_tools.store(known.clone());
                }
                Err(error) => {
                    let why = error.for_operator();
                    tracing::warn!(server = %self.name(), why, "which tools need a capability of the client is not known");
                }
            }
        }
        listed.extend(known.hidden.iter().cloned());
    }

    async fn compare(&self, of: Digest, listed: &[Value]) -> Result<ConditionalTools, FetchFailed> {
        let plain = self.list_as(ClientRequests::default()).await?.tools;
        let (all, without) = (tool_names(listed), tool_names(&plain));
        let conditional: BTreeSet<&str> = all.difference(&without).copied().collect();
        let mut needs: BTreeMap<String, Vec<ClientRequests>> = BTreeMap::new();
        let kinds: Vec<ClientRequests> = self
            .allowed_requests
            .kinds()
            .map(|kind| [kind].into_iter().collect())
            .collect();
        // With one kind, that is the one.
        if kinds.len() > 1 && !conditional.is_empty() {
            for kind in kinds {
                let ToolListing { tools, .. } = self.list_as(kind).await?;
                for name in tool_names(&tools).intersection(&conditional) {
                    needs.entry((*name).to_owned()).or_default().push(kind);
                }
            }
        }
        for name in conditional {
            needs.entry(name.to_owned()).or_insert_with(|| vec![self.allowed_requests]);
        }
        let hidden = plain.iter().filter(|tool| !all.contains(tool_name(tool)));
        Ok(ConditionalTools {
            of: Some(of),
            needs,
            hidden: hidden.cloned().collect(),
        })
    }
}

/// The response to a request of Guardian's own.
struct ControlResponse {
    status: StatusCode,
    reply: ControlReply,
    session: Option<UpstreamSessionId>,
}

impl Upstream {
    /// Sends a request with this `id` and waits for its answer.
    async fn ask(
        &self,
        era: Era,
        fields: &HeaderMap,
        id: u64,
        method: &str,
        params: &Value,
        denials: Option<Box<DenialSender>>,
    ) -> Result<ControlResponse, ForwardError> {
        let message = serde_json::json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let id = MessageId::from_json(Bytes::from(id.to_string()));
        let endpoint = self.endpoint()?;
        let response = endpoint
            .exchange(
                &endpoint.client,
                &http::Method::POST,
                fields,
                &Bytes::from(message.to_string()),
            )
            .await?;
        let status = response.status();
        let session = session_of(response.headers()).ok().flatten();
        let body = match media(response.headers()) {
            Media::Json => Some(read_answer_body(response.into_body(), &self.timeouts).await?),
            Media::Events => {
                let rules = AnswerRules {
                    id: Some(id.clone()),
                    era,
                    method: Method::Ping,
                    // The server may request nothing here, whatever Guardian introduced itself with.
                    allowed_requests: ClientRequests::default(),
                };
                let source = EventSource::of_body(response.into_body(), self.timeouts.max_event);
                let stream = EventStream::new(source, rules, denials, Some(self.timeouts.idle), OutcomeGuard::new(None));
                Some(stream.into_answer().await?.0)
            }
            Media::Other => None,
        };
        let reply = match body {
            Some(body) => parse_control_reply(&body, &id, status)?,
            None => ControlReply::Nothing,
        };
        Ok(ControlResponse { status, reply, session })
    }

    /// How requests that the server makes in this session are refused.
    fn denials_in(&self, session: &ControlSession) -> Option<Box<DenialSender>> {
        let (TransportKind::Http(endpoint), ControlSession::Legacy { .. }) = (&self.transport, session) else {
            return None;
        };
        let fields = session.fields(Method::Answer);
        let denials = DenialSender::over_http(endpoint.clone(), self.name.clone(), fields);
        Some(Box::new(denials))
    }

    /// Sends a message that has no answer.
    async fn notify(&self, method: &http::Method, fields: &HeaderMap, body: &Bytes) -> Result<(), ForwardError> {
        let endpoint = self.endpoint()?;
        endpoint.exchange(&endpoint.client, method, fields, body).await.map(drop)
    }

    fn endpoint(&self) -> Result<&Endpoint, ForwardError> {
        match &self.transport {
            TransportKind::Http(endpoint) => Ok(endpoint),
            TransportKind::Channels(_) => Err(ForwardError::bad_response("this server is spoken to over a link")),
        }
    }
}

/// How Guardian speaks to this server while it fetches the tools.
enum ControlSession {
    Legacy {
        version: ProtocolVersion,
        session: Option<UpstreamSessionId>,
    },
    /// As a client that answers these requests.
    Modern(ClientRequests),
    /// Over a persistent channel on which Guardian has sent `initialize`.
    Channel(Arc<MuxChannel>),
}

impl ControlSession {
    fn era(&self) -> Era {
        match self {
            ControlSession::Legacy { .. } | ControlSession::Channel(_) => Era::Legacy,
            ControlSession::Modern(_) => Era::Modern,
        }
    }

    fn fields(&self, method: Method) -> HeaderMap {
        match self {
            ControlSession::Legacy { version, session } => {
                let mut fields: HeaderMap = mirror_headers(Era::Legacy, Some(*version), method, None)
                    .into_iter()
                    .collect();
                set_session_headers(&mut fields, session.as_ref());
                fields
            }
            ControlSession::Channel(_) => HeaderMap::new(),
            ControlSession::Modern(_) => mirror_headers(Era::Modern, Some(ProtocolVersion::V20260728), method, None)
                .into_iter()
                .collect(),
        }
    }

    fn params(&self, cursor: Option<&str>) -> Value {
        let mut params = json!({});
        if let Some(cursor) = cursor {
            params["cursor"] = cursor.into();
        }
        if let ControlSession::Modern(requests) = self {
            params["_meta"] = json!({
                "io.modelcontextprotocol/protocolVersion": ProtocolVersion::V20260728.as_str(),
                "io.modelcontextprotocol/clientCapabilities": declare_capabilities(*requests),
                "io.modelcontextprotocol/clientInfo": guardian_client_info(),
            });
        }
        params
    }
}

impl RawTool {
    /// Reads a definition, as offered or as pinned.
    pub fn read(definition: &Value) -> Result<Self, RejectedTool> {
        let shown = definition["name"].as_str().unwrap_or("(no name)");
        let left_out = |why: String| RejectedTool {
            name: shown.chars().take(200).collect(),
            why,
        };
        let name = ToolName::parse(shown).map_err(|error| left_out(error.to_string()))?;
        if !definition["inputSchema"].is_object() {
            return Err(left_out("its `inputSchema` is not an object".to_owned()));
        }
        let text: Arc<str> = canonical(definition).into();
        // Parse the schema from the canonical text, so that arguments are checked against exactly what was digested,
        // down to the spelling of numbers.
        let mut pinned: Value = serde_json::from_str(&text).map_err(|error| left_out(error.to_string()))?;
        Ok(Self {
            name,
            digest: Digest::of(text.as_bytes()),
            definition: text,
            input_schema: pinned["inputSchema"].take(),
            class: class(&pinned["annotations"]),
        })
    }
}

/// A hint that is no boolean says nothing.
fn class(hints: &Value) -> ToolClass {
    ToolClass::of_hints(hints["readOnlyHint"].as_bool(), hints["destructiveHint"].as_bool())
}

/// Separates usable tools from unusable ones. If several tools share a name, none of them is usable.
fn read_tools(listed: Vec<Value>) -> (Vec<RawTool>, Vec<RejectedTool>) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for definition in &listed {
        *counts
            .entry(definition["name"].as_str().unwrap_or_default().to_owned())
            .or_default() += 1;
    }
    let (mut tools, mut left_out) = (Vec::new(), Vec::new());
    for definition in &listed {
        match RawTool::read(definition) {
            Ok(tool) if counts[tool.name.as_str()] > 1 => left_out.push(RejectedTool {
                name: tool.name.to_string(),
                why: "the server offers several tools of this name".to_owned(),
            }),
            Ok(tool) => tools.push(tool),
            Err(why) => left_out.push(why),
        }
    }
    (tools, left_out)
}

fn refusal(method: &'static str, status: u16, said: ControlReply) -> FetchFailed {
    match said {
        ControlReply::Error { code, message } => FetchFailed::Refused {
            method,
            code,
            message: message.chars().filter(|char| !char.is_control()).take(200).collect(),
        },
        ControlReply::Nothing | ControlReply::Result(_) => FetchFailed::Status { method, status },
    }
}
