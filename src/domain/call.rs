//! One message as the value that travels the request path. What was decided on is what is sent.

use super::{Method, PromptName, ResourceUri, ServerName, ToolName};
use bytes::Bytes;
use std::fmt;
use uuid::Uuid;

/// Identifies one message in logs, records and answers (a UUIDv7 from the app's clock).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub Uuid);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The two families of MCP revisions. Legacy: handshake and sessions, up to 2025-11-25. Modern: stateless with `_meta`,
/// from 2026-07-28.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Era {
    Legacy,
    Modern,
}

/// The MCP revisions that Guardian speaks; any other is refused.
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

    /// The version of exactly this text.
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

    /// The era to which the version belongs.
    pub const fn era(self) -> Era {
        match self {
            Self::V20260728 => Era::Modern,
            _ => Era::Legacy,
        }
    }
}

/// The JSON-RPC id of a request as its exact JSON text, with the quotes of a string.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct MessageId(Bytes);

impl MessageId {
    /// `text` is a JSON string or integer, as the strict parser found it.
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

/// What a message acts upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Server,
    Tool(ToolName),
    /// A resource, or the template that a completion is requested for.
    Resource(ResourceUri),
    Prompt(PromptName),
    /// The resources that a `subscriptions/listen` stream is to report on; may be empty.
    Resources(Vec<ResourceUri>),
    /// A task that a call of this tool began; the id is the server's own.
    Task(ToolName, String),
    /// As `Resources`, with the tools whose tasks the stream is to report on.
    Subscription(Vec<ResourceUri>, Vec<ToolName>),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Server => Ok(()),
            Target::Tool(name) => fmt::Display::fmt(name, f),
            Target::Resource(uri) => fmt::Display::fmt(uri, f),
            Target::Prompt(name) => fmt::Display::fmt(name, f),
            Target::Task(_, id) => f.write_str(id),
            Target::Resources(uris) | Target::Subscription(uris, _) => {
                let uris: Vec<&str> = uris.iter().map(ResourceUri::as_str).collect();
                f.write_str(&uris.join(" "))
            }
        }
    }
}

/// A message, parsed once; `body` holds the exact bytes that were decided on and are sent.
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
    /// The tool that is called, or that began the task.
    pub fn tool(&self) -> Option<&ToolName> {
        match &self.target {
            Target::Tool(name) | Target::Task(name, _) => Some(name),
            Target::Server | Target::Resource(_) | Target::Prompt(_) | Target::Resources(_) | Target::Subscription(..) => None,
        }
    }

    /// The value that the header `Mcp-Name` must repeat.
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
