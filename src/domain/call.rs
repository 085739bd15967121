//! One judged message: the value that travels the request path. What was judged is what is sent.

use super::{PromptName, ResourceUri, ServerName, ToolName};
use bytes::Bytes;
use std::fmt;
use uuid::Uuid;

/// Names one message in logs, records and answers (UUIDv7, made by the app's clock).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub Uuid);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Legacy: handshake and sessions, to 2025-11-25. Modern: stateless with `_meta`, from 2026-07-28.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Era {
    Legacy,
    Modern,
}

/// The revisions spoken here; an unknown one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProtocolVersion {
    V20241105,
    V20250326,
    V20250618,
    V20251125,
    V20260728,
}

impl ProtocolVersion {
    pub const ALL: [ProtocolVersion; 5] = [
        Self::V20241105,
        Self::V20250326,
        Self::V20250618,
        Self::V20251125,
        Self::V20260728,
    ];

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V20241105 => "2024-11-05",
            Self::V20250326 => "2025-03-26",
            Self::V20250618 => "2025-06-18",
            Self::V20251125 => "2025-11-25",
            Self::V20260728 => "2026-07-28",
        }
    }

    pub const fn era(self) -> Era {
        match self {
            Self::V20260728 => Era::Modern,
            _ => Era::Legacy,
        }
    }
}

/// The JSON-RPC id of a request as its exact text, quotes included.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct MessageId(Bytes);

impl MessageId {
    /// `text` is a JSON string or integer, as the strict reader found it.
    pub fn from_json(text: Bytes) -> Self {
        Self(text)
    }

    pub fn as_json(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("null")
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_json())
    }
}

/// What a message asks for. Everything that carries authority has a variant; the rest is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    Initialize,
    Ping,
    Discover,
    ToolsList,
    ToolsCall,
    ResourcesList,
    TemplatesList,
    ReadResource,
    Subscribe,
    Unsubscribe,
    PromptsList,
    GetPrompt,
    Complete,
    SetLevel,
    /// `subscriptions/listen`: the modern stream of what changes.
    Listen,
    /// `notifications/…` a client may send: initialized, cancelled, progress, roots/list_changed.
    Notification,
    /// GET: the server's stream of a legacy session.
    OpenStream,
    /// DELETE: end of a legacy session.
    EndSession,
    /// The client's answer to a request of the server, in a legacy session.
    Answer,
    TasksGet,
    TasksResult,
    TasksUpdate,
    TasksCancel,
}

impl Method {
    pub const fn as_str(self) -> &'static str {
        match self {
            Method::Initialize => "initialize",
            Method::Ping => "ping",
            Method::Discover => "server/discover",
            Method::ToolsList => "tools/list",
            Method::ToolsCall => "tools/call",
            Method::ResourcesList => "resources/list",
            Method::TemplatesList => "resources/templates/list",
            Method::ReadResource => "resources/read",
            Method::Subscribe => "resources/subscribe",
            Method::Unsubscribe => "resources/unsubscribe",
            Method::PromptsList => "prompts/list",
            Method::GetPrompt => "prompts/get",
            Method::Complete => "completion/complete",
            Method::SetLevel => "logging/setLevel",
            Method::Listen => "subscriptions/listen",
            Method::Notification => "notifications",
            Method::OpenStream => "GET",
            Method::EndSession => "DELETE",
            Method::Answer => "answer",
            Method::TasksGet => "tasks/get",
            Method::TasksResult => "tasks/result",
            Method::TasksUpdate => "tasks/update",
            Method::TasksCancel => "tasks/cancel",
        }
    }

    /// Whether it is about resources or prompts.
    pub const fn is_of_ware(self) -> bool {
        use Method as M;
        matches!(
            self,
            M::ReadResource | M::Subscribe | M::Unsubscribe | M::GetPrompt | M::Complete | M::Listen
        )
    }

    /// Whether its answer may ask for input, to be brought with the same again. The new era alone has this.
    pub const fn takes_input(self) -> bool {
        matches!(self, Method::ToolsCall | Method::GetPrompt | Method::ReadResource)
    }

    /// Whether it names one task.
    pub const fn is_of_task(self) -> bool {
        use Method as M;
        matches!(self, M::TasksGet | M::TasksResult | M::TasksUpdate | M::TasksCancel)
    }

    /// Whether the answer is a stream that stays open with nothing pending on it.
    pub const fn is_stream(self) -> bool {
        matches!(self, Method::OpenStream | Method::Listen)
    }
}

/// What is acted upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Server,
    Tool(ToolName),
    /// Also the template of which a completion is asked.
    Resource(ResourceUri),
    Prompt(PromptName),
    /// What a stream is asked to tell of; may be none.
    Resources(Vec<ResourceUri>),
    /// What a call of this tool began; the id is the server's own.
    Task(ToolName, String),
    /// The same as `Resources`, with tasks that these tools began.
    Listened(Vec<ResourceUri>, Vec<ToolName>),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Server => Ok(()),
            Target::Tool(name) => fmt::Display::fmt(name, f),
            Target::Resource(uri) => fmt::Display::fmt(uri, f),
            Target::Prompt(name) => fmt::Display::fmt(name, f),
            Target::Task(_, id) => f.write_str(id),
            Target::Resources(uris) | Target::Listened(uris, _) => {
                let uris: Vec<&str> = uris.iter().map(ResourceUri::as_str).collect();
                f.write_str(&uris.join(" "))
            }
        }
    }
}

/// A message parsed once; the body is the exact bytes that were judged and that are sent.
#[derive(Debug, Clone)]
pub struct Call {
    pub request: RequestId,
    pub server: ServerName,
    pub era: Era,
    pub version: Option<ProtocolVersion>,
    pub method: Method,
    pub target: Target,
    /// `None` for notifications, GET and DELETE.
    pub id: Option<MessageId>,
    pub body: Bytes,
    /// `params.arguments` inside `body`; `None` if absent.
    pub arguments: Option<Bytes>,
}

impl Call {
    pub fn tool(&self) -> Option<&ToolName> {
        match &self.target {
            Target::Tool(name) | Target::Task(name, _) => Some(name),
            Target::Server | Target::Resource(_) | Target::Prompt(_) | Target::Resources(_) | Target::Listened(..) => None,
        }
    }

    /// What `Mcp-Name` mirrors.
    pub fn mirrored_name(&self) -> Option<&str> {
        match (self.method, &self.target) {
            (Method::ToolsCall, Target::Tool(name)) => Some(name.as_str()),
            (Method::GetPrompt, Target::Prompt(name)) => Some(name.as_str()),
            (Method::ReadResource, Target::Resource(uri)) => Some(uri.as_str()),
            (_, Target::Task(_, id)) => Some(id),
            _ => None,
        }
    }
}
