//! Translates a server's opaque tokens (cursors, request states, task ids, ids of server requests and events) into handles bound to the
//! caller, and back. Refuses tokens that are not valid handles of this caller.
//! Replaces only the tokens: all other bytes of a message stay.

use crate::domain::{
    Call, ClientRequests, Era, Method, Principal, Reason, Refusal, ServerName, Target, TargetKind, Timestamp, ToolName,
};
use crate::mcp::{self, Edits, JsonSpan, Malformed, OpaqueToken, Params, ServerMessage};
use crate::sessions::{DecodedHandle, HandleKind, HandleOwner, SessionKeys};
use bytes::Bytes;
use moka::sync::Cache;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

/// Per-instance memory of handles. Handles verify without it, so any instance with the session keys accepts them.
pub struct HandleCache {
    keys: Arc<SessionKeys>,
    /// How long a request state is accepted.
    lifetime: Duration,
    now: fn() -> Timestamp,
    /// Handles of server requests that have been answered: each is answered once.
    answered_requests: Cache<String, ()>,
    /// The method of each server request, by handle, for the audit record of the answer.
    server_requests: Cache<String, String>,
    /// The tool that created each task. A status notification names only the task.
    task_tools: Cache<(HandleOwner, String), String>,
}

const MOST_REMEMBERED: u64 = 100_000;
const REMEMBERED_FOR: Duration = Duration::from_secs(24 * 3600);
/// Longest handle of a server request. The client returns it as a JSON-RPC id, and `mcp::read` accepts at most 1,024 bytes
/// as the id of an answer.
const LONGEST_ID: usize = 1000;

/// Longest event id of a server that gets a handle.
const LONGEST_EVENT_ID: usize = 1024;

/// The handles between one caller and one server, bound to the session if there is one.
#[derive(Clone)]
pub struct HandleTranslator {
    cache: Arc<HandleCache>,
    principal: Arc<Principal>,
    server: ServerName,
    session: String,
    allowed_requests: ClientRequests,
}

/// A message from the client with the server's own tokens restored.
pub struct Decoded {
    pub body: Bytes,
    /// The tasks that the message names.
    pub tasks: Vec<TaskRef>,
}

/// A task that the client named: the tool that created it and the server's own id.
pub struct TaskRef {
    pub tool: ToolName,
    pub id: String,
    /// The id as JSON text, and the handle that the client used.
    text: String,
    handle: String,
}

/// The claim on answering a server request. If it is dropped before [`AnswerClaim::spend`], the request can still be answered.
pub struct AnswerClaim {
    cache: Arc<HandleCache>,
    handle: String,
    sent: bool,
}

/// Encodes the tokens in the messages to the client that belong to one call.
pub struct OutboundHandles {
    translator: HandleTranslator,
    era: Era,
    method: Method,
    target: Target,
    tool: Option<ToolName>,
    /// The tasks that the client named, as (the server's JSON text, handle): answers use the same handle.
    named: Vec<(String, String)>,
}

impl HandleCache {
    pub fn new(keys: Arc<SessionKeys>, lifetime: Duration, now: fn() -> Timestamp) -> Arc<Self> {
        Arc::new(Self {
            keys,
            lifetime,
            now,
            answered_requests: bounded_cache(),
            server_requests: bounded_cache(),
            task_tools: bounded_cache(),
        })
    }
}

fn bounded_cache<K, V>() -> Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder()
        .max_capacity(MOST_REMEMBERED)
        .time_to_live(REMEMBERED_FOR)
        .build()
}

impl HandleTranslator {
    pub fn new(
        handle_cache: &Arc<HandleCache>,
        principal: Arc<Principal>,
        server: &ServerName,
        session: Option<String>,
        allowed_requests: ClientRequests,
    ) -> Self {
        Self {
            cache: handle_cache.clone(),
            principal,
            server: server.clone(),
            session: session.unwrap_or_default(),
            allowed_requests,
        }
    }

    /// Computed only when needed, because few messages hold tokens.
    fn owner(&self) -> HandleOwner {
        HandleOwner::new(&self.principal, &self.server)
    }

    /// Restores the server's own tokens in a request or notification, and removes capabilities that the server may not use.
    /// `edits` are the replacements that are to be made besides.
    pub fn decode_inbound(
        &self,
        body: &Bytes,
        params: Option<&Params>,
        method: Method,
        era: Era,
        mut edits: Edits,
    ) -> Result<Decoded, Refusal> {
        let Some(params) = params else {
            return Decoded::new(body, edits, Vec::new());
        };
        if let Some(cursor) = params.cursor.as_ref().filter(|_| is_list(method)) {
            let handle_kind = HandleKind::Cursor { method: method.as_str() };
            self.restore(handle_kind, cursor, Reason::UnknownCursor, &mut edits)?;
        }
        self.decode_input(params, method, era, &mut edits)?;
        let meta = params.meta.as_ref();
        let named = params.task_id.as_ref().filter(|_| method.target_kind() == TargetKind::Task);
        let listened = params.subscribed_tasks.iter().filter(|_| method == Method::Listen);
        let tasks: Vec<&OpaqueToken> = named.into_iter().chain(listened).collect();
        if era == Era::Modern && !tasks.is_empty() && !meta.is_some_and(|meta| meta.supports_tasks) {
            return Err(Reason::MissingCapability.into());
        }
        let tasks = tasks.into_iter().map(|task| self.decode_task(task, &mut edits));
        let tasks = tasks.collect::<Result<_, _>>()?;
        if let Some(related) = meta.and_then(|meta| meta.related_task.as_ref()) {
            self.restore(HandleKind::Task, related, Reason::UnknownTask, &mut edits)?;
        }
        let capabilities = match era {
            Era::Legacy => params.capabilities,
            Era::Modern => meta.and_then(|meta| meta.client_capabilities),
        };
        if let Some(span) = capabilities {
            let pruned = mcp::prune_capabilities(body, span, self.allowed_requests).map_err(refuse_malformed)?;
            pruned.into_iter().for_each(|text| edits.replace(span, text));
        }
        Decoded::new(body, edits, tasks)
    }

    /// Checks the multi-round-trip members of a modern request. `requestState` must have been issued for the same method and
    /// target; `inputResponses` is refused if the server may make no requests to clients.
    fn decode_input(&self, params: &Params, method: Method, era: Era, edits: &mut Edits) -> Result<(), Refusal> {
        let misplaced = |name: &str| Refusal::with_detail(Reason::InvalidParams, format!("`{name}` does not belong here"));
        let repeats = era == Era::Modern && method.takes_input();
        if let Some(state) = &params.request_state {
            if !repeats {
                return Err(misplaced("requestState"));
            }
            let target = params.name.as_deref().or(params.uri.as_deref()).unwrap_or_default();
            let handle_kind = HandleKind::State {
                method: method.as_str(),
                target,
            };
            let HandleCache { keys, now, .. } = &*self.cache;
            let decoded = keys.verify_before(now(), handle_kind, &state.text, &self.owner());
            edits.replace(state.at, decoded.ok_or(Reason::UnknownState)?.text);
        }
        let answers = repeats || (era == Era::Modern && method == Method::TasksUpdate);
        if params.input_responses && !answers {
            return Err(misplaced("inputResponses"));
        }
        if params.input_responses && self.allowed_requests.is_empty() {
            return Err(Refusal::with_detail(
                Reason::InvalidParams,
                "`inputResponses` answers nothing: this server may ask nothing",
            ));
        }
        Ok(())
    }

    fn decode_task(&self, named: &OpaqueToken, edits: &mut Edits) -> Result<TaskRef, Refusal> {
        let decoded = self.restore(HandleKind::Task, named, Reason::UnknownTask, edits)?;
        let unknown = || Refusal::new(Reason::UnknownTask);
        let task = TaskRef {
            tool: ToolName::parse(&decoded.note).map_err(|_| unknown())?,
            id: serde_json::from_str(&decoded.text).map_err(|_| unknown())?,
            text: decoded.text,
            handle: named.text.clone(),
        };
        self.remember(&task.text, task.tool.as_str());
        Ok(task)
    }

    /// Restores the id of an answer to a server request. The request must be of this session and not answered yet. Also
    /// returns the request's method, if this instance passed the request on.
    pub fn answer(&self, answer: &mcp::Response) -> Result<(Bytes, AnswerClaim, Option<String>), Refusal> {
        let unknown = || Refusal::new(Reason::UnknownAnswer);
        let handle: String = serde_json::from_str(answer.id.as_json()).map_err(|_| unknown())?;
        let handle_kind = HandleKind::Request { session: &self.session };
        let keys = &self.cache.keys;
        let decoded = keys.verify(handle_kind, &handle, &self.owner()).ok_or_else(unknown)?;
        let mut edits = Edits::default();
        edits.replace(answer.id_at, decoded.text);
        if let Some(related) = &answer.related_task {
            self.restore(HandleKind::Task, related, Reason::UnknownAnswer, &mut edits)?;
        }
        let asked = self.cache.server_requests.get(&handle);
        let claim = AnswerClaim::new(&self.cache, handle).ok_or_else(unknown)?;
        Ok((edits.apply(&answer.body).map_err(refuse_malformed)?, claim, asked))
    }

    /// Verifies a handle and puts the server's own text in its place.
    fn restore(
        &self,
        handle_kind: HandleKind<'_>,
        token: &OpaqueToken,
        otherwise: Reason,
        edits: &mut Edits,
    ) -> Result<DecodedHandle, Refusal> {
        let decoded = self.cache.keys.verify(handle_kind, &token.text, &self.owner());
        let decoded = decoded.ok_or(Refusal::new(otherwise))?;
        edits.replace(token.at, decoded.text.clone());
        Ok(decoded)
    }

    fn remember(&self, task: &str, tool: &str) {
        let key = (self.owner(), task.to_owned());
        self.cache.task_tools.insert(key, tool.to_owned());
    }
}

impl Decoded {
    fn new(body: &Bytes, edits: Edits, tasks: Vec<TaskRef>) -> Result<Self, Refusal> {
        let body = edits.apply(body).map_err(refuse_malformed)?;
        Ok(Self { body, tasks })
    }
}

fn refuse_malformed(malformed: Malformed) -> Refusal {
    Refusal::with_detail(malformed.reason, malformed.detail)
}

impl AnswerClaim {
    /// `None` if the request has been answered already.
    fn new(handle_cache: &Arc<HandleCache>, handle: String) -> Option<Self> {
        let entry = handle_cache.answered_requests.entry(handle.clone()).or_insert(());
        entry.is_fresh().then(|| Self {
            cache: handle_cache.clone(),
            handle,
            sent: false,
        })
    }

    /// Marks the answer as sent; no other is accepted.
    pub fn spend(mut self) {
        self.sent = true;
    }
}

impl Drop for AnswerClaim {
    fn drop(&mut self) {
        if !self.sent {
            self.cache.answered_requests.invalidate(&self.handle);
        }
    }
}

impl OutboundHandles {
    /// Encodes what belongs to `call`; `tasks` are those that the call named.
    pub fn of(translator: HandleTranslator, call: &Call, tasks: Vec<TaskRef>) -> Self {
        Self {
            translator,
            era: call.era,
            method: call.method,
            target: call.target.clone(),
            tool: call.tool().cloned(),
            named: tasks.into_iter().map(|task| (task.text, task.handle)).collect(),
        }
    }

    /// Binds handles to a session that was opened only after the call was permitted.
    pub fn bind_session(&mut self, label: Option<String>) {
        self.translator.session = label.unwrap_or_default();
    }

    /// The id of an event as a handle for `Last-Event-ID`. On the combined endpoint, `session` is the combined session. `None`
    /// for an id that could not come back in a header.
    pub fn event_id(&self, id: &[u8], note: &str, session: Option<&str>) -> Option<String> {
        let id = std::str::from_utf8(id).ok()?;
        if id.len() > LONGEST_EVENT_ID || !mcp::fits_header(id) {
            return None;
        }
        let session = session.unwrap_or(&self.translator.session);
        let keys = &self.translator.cache.keys;
        keys.issue(HandleKind::Event { session }, note, id, &self.translator.owner())
    }

    /// Whether the message is for this caller: a subscription only receives the tasks that it named.
    pub fn is_for(&self, message: &[u8], server_message: &ServerMessage) -> bool {
        let named = |span: &JsonSpan| self.named.iter().any(|(text, _)| text == span.text(message));
        self.method != Method::Listen || server_message.tasks.iter().all(named)
    }

    /// Encodes all tokens in a message for the client; `None` if one of them is too long or must not be disclosed.
    pub fn encode_outbound(&self, message: &[u8], server_message: &ServerMessage, edits: &mut Edits) -> Option<()> {
        let mut replace = |span: JsonSpan, handle: String| edits.replace(span, format!("\"{handle}\""));
        // A modern server's `notifications/cancelled` names the client's own subscription, which is no handle.
        let cancels = server_message.cancelled_request.iter().filter(|_| self.era == Era::Legacy);
        for span in server_message.id.iter().chain(cancels) {
            let handle = self.issue(
                HandleKind::Request {
                    session: &self.translator.session,
                },
                span.text(message),
            )?;
            if handle.len() > LONGEST_ID {
                return None;
            }
            // The server may reuse the id, and then waits for a new answer.
            self.translator.cache.answered_requests.invalidate(&handle);
            if let (Some(_), Some(method)) = (server_message.id, &server_message.method) {
                self.translator.cache.server_requests.insert(handle.clone(), method.clone());
            }
            replace(*span, handle);
        }
        if let Some(span) = server_message.next_cursor {
            let method = server_message.list_method.unwrap_or(self.method.as_str());
            replace(span, self.issue(HandleKind::Cursor { method }, span.text(message))?);
        }
        if let Some(span) = server_message.request_state {
            let handle_kind = HandleKind::State {
                method: self.method.as_str(),
                target: &self.target.to_string(),
            };
            let HandleCache { keys, lifetime, now, .. } = &*self.translator.cache;
            let until = now().plus(*lifetime);
            let handle = keys.issue_until(until, handle_kind, span.text(message), &self.translator.owner())?;
            replace(span, handle);
        }
        let of_status = server_message.method.as_deref().is_some_and(is_task_status);
        for span in &server_message.tasks {
            replace(*span, self.task(span.text(message), of_status)?);
        }
        if let Some(span) = server_message.tasks_capability.filter(|_| self.method == Method::Initialize) {
            // `tasks/list` is not offered: its result does not say whose tasks it holds.
            if let Some(kept) = mcp::without_member(message, span, "list").ok()? {
                edits.replace(span, kept);
            }
        }
        Some(())
    }

    fn issue(&self, handle_kind: HandleKind<'_>, text: &str) -> Option<String> {
        self.translator
            .cache
            .keys
            .issue(handle_kind, "", text, &self.translator.owner())
    }

    /// The handle of a task. It includes the tool that created the task; without a tool no method accepts it.
    /// A handle without the tool would differ from the one that the client holds. So the status of a task created on another
    /// instance is not sent (`None`), and the client polls instead.
    fn task(&self, text: &str, of_status: bool) -> Option<String> {
        if let Some((_, handle)) = self.named.iter().find(|(named, _)| named == text) {
            return Some(handle.clone());
        }
        let (handle_cache, owner) = (&self.translator.cache, self.translator.owner());
        let tool = match &self.tool {
            Some(tool) => {
                self.translator.remember(text, tool.as_str());
                tool.to_string()
            }
            None => match handle_cache.task_tools.get(&(owner.clone(), text.to_owned())) {
                None if of_status => return None,
                tool => tool.unwrap_or_default(),
            },
        };
        handle_cache.keys.issue(HandleKind::Task, &tool, text, &owner)
    }
}

/// Whether this is a task status notification, of either era.
fn is_task_status(method: &str) -> bool {
    matches!(method, "notifications/tasks/status" | "notifications/tasks")
}

const fn is_list(method: Method) -> bool {
    matches!(
        method,
        Method::ToolsList | Method::ResourcesList | Method::TemplatesList | Method::PromptsList
    )
}
