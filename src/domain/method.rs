//! The methods of MCP as one table: a row says in which era a client may send the method, which parameters it has, what it acts
//! upon, what it counts as, and by which HTTP verb it travels.

use super::Era;

/// The method of a message. Every method that carries authority has a variant; any other is refused.
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
    /// `subscriptions/listen`: opens the modern stream of change notifications.
    Listen,
    TasksGet,
    TasksResult,
    TasksUpdate,
    TasksCancel,
    /// `notifications/…` a client may send: initialized, cancelled, progress, roots/list_changed.
    Notification,
    /// The client's response to a request of the server, in a legacy session.
    Answer,
    /// GET: opens the server's stream of a legacy session.
    OpenStream,
    /// DELETE: ends a legacy session.
    EndSession,
}

/// What a method acts upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    Server,
    Tool,
    Resource,
    Prompt,
    /// The prompt or resource template that is completed.
    Reference,
    Task,
    /// The resources and tasks that a stream reports on.
    Subscription,
}

/// What a method counts as, for the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitClass {
    /// Not limited, because refusing it would only confuse the client.
    Free,
    /// A message to the server. Clients poll their tasks, so polling does not count as a call of the tool.
    Message,
    /// A call, of a tool if there is one.
    Call,
    /// A stream that stays open.
    Stream,
}

/// The HTTP methods of MCP's Streamable HTTP transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpVerb {
    Post,
    Get,
    Delete,
}

/// A row of the table.
struct MethodRow {
    method: Method,
    name: &'static str,
    era: Option<Era>,
    is_request: bool,
    /// The members that `params` may have; `None`: any, because nothing in them carries authority.
    allowed: Option<&'static [&'static str]>,
    required: &'static [&'static str],
    target: TargetKind,
    limit: LimitClass,
    verb: HttpVerb,
}

type Members = &'static [&'static str];
const CALL: Members = &["name", "arguments", "_meta", "inputResponses", "requestState", "task"];
const GET: Members = &["name", "arguments", "_meta", "inputResponses", "requestState"];
const READ: Members = &["uri", "_meta", "inputResponses", "requestState"];
const URI: Members = &["uri", "_meta"];
const COMPLETE: Members = &["ref", "argument", "context", "_meta"];
const LEVEL: Members = &["level", "_meta"];
const LISTEN: Members = &["notifications", "_meta"];
const TASK: Members = &["taskId", "_meta"];
const UPDATE: Members = &["taskId", "inputResponses", "_meta"];
const LIST: Members = &["cursor", "_meta"];

/// One row a method, in the order of the enum.
#[rustfmt::skip]
const TABLE: [MethodRow; 23] = {
    use LimitClass::{Call, Free, Message, Stream};
    use Method as M;
    use TargetKind::{Prompt, Reference, Resource, Server, Subscription, Task, Tool};
    const LEGACY: Option<Era> = Some(Era::Legacy);
    const MODERN: Option<Era> = Some(Era::Modern);
    [
        request(M::Initialize,    "initialize",               LEGACY, None,           &[],                         Server,       Call),
        request(M::Ping,          "ping",                     LEGACY, None,           &[],                         Server,       Free),
        request(M::Discover,      "server/discover",          MODERN, None,           &[],                         Server,       Free),
        request(M::ToolsList,     "tools/list",               None,   Some(LIST),     &[],                         Server,       Call),
        request(M::ToolsCall,     "tools/call",               None,   Some(CALL),     &["name"],                   Tool,         Call),
        request(M::ResourcesList, "resources/list",           None,   Some(LIST),     &[],                         Server,       Call),
        request(M::TemplatesList, "resources/templates/list", None,   Some(LIST),     &[],                         Server,       Call),
        request(M::ReadResource,  "resources/read",           None,   Some(READ),     &["uri"],                    Resource,     Call),
        request(M::Subscribe,     "resources/subscribe",      LEGACY, Some(URI),      &["uri"],                    Resource,     Call),
        request(M::Unsubscribe,   "resources/unsubscribe",    LEGACY, Some(URI),      &["uri"],                    Resource,     Call),
        request(M::PromptsList,   "prompts/list",             None,   Some(LIST),     &[],                         Server,       Call),
        request(M::GetPrompt,     "prompts/get",              None,   Some(GET),      &["name"],                   Prompt,       Call),
        request(M::Complete,      "completion/complete",      None,   Some(COMPLETE), &["ref", "argument"],        Reference,    Call),
        request(M::SetLevel,      "logging/setLevel",         LEGACY, Some(LEVEL),    &["level"],                  Server,       Call),
        request(M::Listen,        "subscriptions/listen",     MODERN, Some(LISTEN),   &["notifications"],          Subscription, Stream),
        request(M::TasksGet,      "tasks/get",                None,   Some(TASK),     &["taskId"],                 Task,         Message),
        request(M::TasksResult,   "tasks/result",             LEGACY, Some(TASK),     &["taskId"],                 Task,         Message),
        request(M::TasksUpdate,   "tasks/update",             MODERN, Some(UPDATE),   &["taskId", "inputResponses"],Task,         Message),
        request(M::TasksCancel,   "tasks/cancel",             None,   Some(TASK),     &["taskId"],                 Task,         Message),
        other(M::Notification, "notifications", HttpVerb::Post,   Free),
        other(M::Answer,       "answer",        HttpVerb::Post,   Free),
        other(M::OpenStream,   "GET",           HttpVerb::Get,    Stream),
        other(M::EndSession,   "DELETE",        HttpVerb::Delete, Free),
    ]
};

/// A request; `era` is `None` if it exists in both eras.
const fn request(
    method: Method,
    name: &'static str,
    era: Option<Era>,
    allowed: Option<Members>,
    required: Members,
    target: TargetKind,
    limit: LimitClass,
) -> MethodRow {
    MethodRow {
        method,
        name,
        era,
        is_request: true,
        allowed,
        required,
        target,
        limit,
        verb: HttpVerb::Post,
    }
}

/// What is no request; it exists in the legacy era alone.
const fn other(method: Method, name: &'static str, verb: HttpVerb, limit: LimitClass) -> MethodRow {
    MethodRow {
        is_request: false,
        verb,
        ..request(method, name, Some(Era::Legacy), None, &[], TargetKind::Server, limit)
    }
}

impl Method {
    /// The method of a request, in whichever era it exists.
    pub fn of_request(name: &str) -> Option<Self> {
        let row = TABLE.iter().find(|row| row.is_request && row.name == name)?;
        Some(row.method)
    }

    /// The method that logs and records call so; the other way round from `as_str`.
    pub fn of_record(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.name == name).map(|row| row.method)
    }

    const fn row(self) -> &'static MethodRow {
        &TABLE[self as usize]
    }

    /// The word in logs and records: the JSON-RPC method, or `notifications`, `answer` or the HTTP verb.
    pub const fn as_str(self) -> &'static str {
        self.row().name
    }

    /// Whether clients of this era may send it.
    pub fn is_in(self, era: Era) -> bool {
        self.row().era.is_none_or(|only| only == era)
    }

    /// The members that `params` may have; `None`: any, because nothing in them carries authority. Other members are
    /// refused, because a server might read one as authority that the policies did not see.
    pub const fn allowed_params(self) -> Option<&'static [&'static str]> {
        self.row().allowed
    }

    pub const fn required_params(self) -> &'static [&'static str] {
        self.row().required
    }

    pub const fn target_kind(self) -> TargetKind {
        self.row().target
    }

    pub const fn limit_class(self) -> LimitClass {
        self.row().limit
    }

    pub const fn verb(self) -> HttpVerb {
        self.row().verb
    }

    /// Whether the method acts upon resources or prompts, lists excepted.
    pub const fn targets_resource_or_prompt(self) -> bool {
        use TargetKind as T;
        matches!(self.target_kind(), T::Resource | T::Prompt | T::Reference | T::Subscription)
    }

    /// Whether its result may ask the client for input, which the client sends by repeating the request (modern era
    /// only).
    pub const fn takes_input(self) -> bool {
        matches!(self, Method::ToolsCall | Method::GetPrompt | Method::ReadResource)
    }

    /// Whether the answer is a stream that stays open without a pending request.
    pub const fn is_stream(self) -> bool {
        matches!(self.limit_class(), LimitClass::Stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_method_finds_its_own_row() {
        for (number, row) in TABLE.iter().enumerate() {
            assert_eq!(row.method as usize, number, "{}", row.name);
            assert_eq!(Method::of_request(row.name), row.is_request.then_some(row.method));
            let allowed = row.allowed.unwrap_or(row.required);
            assert!(row.required.iter().all(|name| allowed.contains(name)), "{}", row.name);
        }
    }
}
