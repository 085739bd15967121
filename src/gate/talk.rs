//! What goes back and forth between one caller and one server beside questions and answers: cursors, request states, task
//! ids, and what the server asks of the client. The caller gets handles and brings them back; whatever else it brings is
//! unknown. Both ways the rest of a message stays byte for byte.

use crate::domain::{Call, ClientRequests, Era, Method, Principal, Reason, Refusal, ServerName, Target, Timestamp, ToolName};
use crate::mcp::{self, Params, Place, Said, Token, splice};
use crate::upstream::{Handed, Holder, SessionKeys};
use bytes::Bytes;
use moka::sync::Cache;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

/// What an instance remembers of all conversations. None of it is needed to take a handle back.
pub struct Talks {
    keys: Arc<SessionKeys>,
    /// How long a request state is taken back.
    lifetime: Duration,
    now: fn() -> Timestamp,
    /// Requests of servers that were answered, by their handles: each is answered once.
    answered: Cache<String, ()>,
    /// What was asked under these handles, for the records of the answers.
    asked: Cache<String, String>,
    /// The tools that began tasks, for messages that name a task and nothing else.
    begun: Cache<(Holder, String), String>,
}

const MOST_REMEMBERED: u64 = 100_000;
const REMEMBERED_FOR: Duration = Duration::from_secs(24 * 3600);
/// Longer ids than this are not taken back from clients.
const LONGEST_ID: usize = 1000;

/// One caller's conversation with one server, in one session where there is one.
#[derive(Clone)]
pub struct Talk {
    talks: Arc<Talks>,
    principal: Arc<Principal>,
    server: ServerName,
    session: String,
    asks: ClientRequests,
}

/// What a message says once everything that was handed out is the server's own again.
pub struct Brought {
    pub body: Bytes,
    /// The tasks that it names.
    pub tasks: Vec<BroughtTask>,
}

pub struct BroughtTask {
    pub tool: ToolName,
    pub id: String,
    /// The same as JSON text, and as the caller wrote it.
    text: String,
    handle: String,
}

/// An answer on its way. Dropped before it is sent, the request still waits for one.
pub struct Claim {
    talks: Arc<Talks>,
    handle: String,
    sent: bool,
}

/// What becomes of messages on the way to the caller.
pub struct Handing {
    talk: Talk,
    era: Era,
    method: Method,
    target: Target,
    tool: Option<ToolName>,
    /// The tasks that the caller named, by the server's text: they come back as they were written.
    named: Vec<(String, String)>,
}

impl Talks {
    pub fn new(keys: Arc<SessionKeys>, lifetime: Duration, now: fn() -> Timestamp) -> Arc<Self> {
        Arc::new(Self {
            keys,
            lifetime,
            now,
            answered: remembered(),
            asked: remembered(),
            begun: remembered(),
        })
    }
}

fn remembered<K, V>() -> Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder()
        .max_capacity(MOST_REMEMBERED)
        .time_to_live(REMEMBERED_FOR)
        .build()
}

impl Talk {
    pub fn new(
        talks: &Arc<Talks>,
        principal: &Arc<Principal>,
        server: &ServerName,
        session: Option<String>,
        asks: ClientRequests,
    ) -> Self {
        Self {
            talks: talks.clone(),
            principal: principal.clone(),
            server: server.clone(),
            session: session.unwrap_or_default(),
            asks,
        }
    }

    /// Few messages hold anything that is bound to it.
    fn holder(&self) -> Holder {
        Holder::new(&self.principal, &self.server)
    }

    /// A request or notification as the server is to have it.
    pub fn bring(&self, body: &Bytes, params: Option<&Params>, method: Method, era: Era) -> Result<Brought, Refusal> {
        let none = |body: &Bytes| Brought {
            body: body.clone(),
            tasks: Vec::new(),
        };
        let Some(params) = params else { return Ok(none(body)) };
        let mut edits = Vec::new();
        if let Some(cursor) = params.cursor.as_ref().filter(|_| is_list(method)) {
            let handed = Handed::Cursor { method: method.as_str() };
            edits.push((cursor.at, self.taken(handed, cursor, Reason::UnknownCursor)?.text));
        }
        self.bring_input(params, method, era, &mut edits)?;
        let meta = params.meta.as_ref();
        let named = params.task_id.as_ref().filter(|_| method.is_of_task());
        let listened = params.listened_tasks.iter().filter(|_| method == Method::Listen);
        let tasks: Vec<&Token> = named.into_iter().chain(listened).collect();
        if era == Era::Modern && !tasks.is_empty() && !meta.is_some_and(|meta| meta.does_tasks) {
            return Err(Reason::MissingCapability.into());
        }
        let tasks = tasks.into_iter().map(|task| self.bring_task(task, &mut edits));
        let tasks = tasks.collect::<Result<_, _>>()?;
        if let Some(related) = meta.and_then(|meta| meta.related_task.as_ref()) {
            edits.push((related.at, self.taken(Handed::Task, related, Reason::UnknownTask)?.text));
        }
        let capabilities = match era {
            Era::Legacy => params.capabilities,
            Era::Modern => meta.and_then(|meta| meta.client_capabilities),
        };
        if let Some(place) = capabilities {
            let pruned = mcp::prune(body, place, self.asks)
                .map_err(|malformed| Refusal::with_detail(malformed.reason, malformed.detail))?;
            edits.extend(pruned.map(|text| (place, text)));
        }
        Ok(Brought {
            body: splice(body, edits),
            tasks,
        })
    }

    /// What a retry brings: the state that was handed out for the very same, and answers where something can be asked.
    fn bring_input(&self, params: &Params, method: Method, era: Era, edits: &mut Vec<(Place, String)>) -> Result<(), Refusal> {
        let misplaced = |name: &str| Refusal::with_detail(Reason::InvalidParams, format!("`{name}` does not belong here"));
        let repeats = era == Era::Modern && method.takes_input();
        if let Some(state) = &params.request_state {
            if !repeats {
                return Err(misplaced("requestState"));
            }
            let target = params.name.as_deref().or(params.uri.as_deref()).unwrap_or_default();
            let handed = Handed::State {
                method: method.as_str(),
                target,
            };
            let Talks { keys, now, .. } = &*self.talks;
            let returned = keys.take_back_before(now(), handed, &state.text, &self.holder());
            edits.push((state.at, returned.ok_or(Reason::UnknownState)?.text));
        }
        let answers = repeats || (era == Era::Modern && method == Method::TasksUpdate);
        match params.input_responses {
            true if !answers => Err(misplaced("inputResponses")),
            true if self.asks.is_empty() => Err(Refusal::with_detail(
                Reason::InvalidParams,
                "`inputResponses` answers nothing: this server may ask nothing",
            )),
            _ => Ok(()),
        }
    }

    fn bring_task(&self, named: &Token, edits: &mut Vec<(Place, String)>) -> Result<BroughtTask, Refusal> {
        let returned = self.taken(Handed::Task, named, Reason::UnknownTask)?;
        let unknown = || Refusal::new(Reason::UnknownTask);
        let task = BroughtTask {
            tool: ToolName::parse(&returned.note).map_err(|_| unknown())?,
            id: serde_json::from_str(&returned.text).map_err(|_| unknown())?,
            text: returned.text,
            handle: named.text.clone(),
        };
        edits.push((named.at, task.text.clone()));
        self.remember(&task.text, task.tool.as_str());
        Ok(task)
    }

    /// The client's answer to a request of the server, if that was asked in this session and has no answer yet.
    /// With it comes what it answers, where this instance passed that on.
    pub fn answer(&self, answer: &mcp::Response) -> Result<(Bytes, Claim, Option<String>), Refusal> {
        let unknown = || Refusal::new(Reason::UnknownAnswer);
        let handle: String = serde_json::from_str(answer.id.as_json()).map_err(|_| unknown())?;
        let handed = Handed::Request { session: &self.session };
        let keys = &self.talks.keys;
        let returned = keys.take_back(handed, &handle, &self.holder()).ok_or_else(unknown)?;
        let mut edits = vec![(answer.id_at, returned.text)];
        if let Some(related) = &answer.related_task {
            edits.push((related.at, self.taken(Handed::Task, related, Reason::UnknownAnswer)?.text));
        }
        let asked = self.talks.asked.get(&handle);
        let claim = Claim::new(&self.talks, handle).ok_or_else(unknown)?;
        Ok((splice(&answer.body, edits), claim, asked))
    }

    fn taken(&self, handed: Handed<'_>, token: &Token, otherwise: Reason) -> Result<crate::upstream::Returned, Refusal> {
        self.talks
            .keys
            .take_back(handed, &token.text, &self.holder())
            .ok_or(Refusal::new(otherwise))
    }

    fn remember(&self, task: &str, tool: &str) {
        let key = (self.holder(), task.to_owned());
        self.talks.begun.insert(key, tool.to_owned());
    }
}

impl Claim {
    /// `None` if the request has its answer.
    fn new(talks: &Arc<Talks>, handle: String) -> Option<Self> {
        let entry = talks.answered.entry(handle.clone()).or_insert(());
        entry.is_fresh().then(|| Self {
            talks: talks.clone(),
            handle,
            sent: false,
        })
    }

    /// The answer goes out: there is no other.
    pub fn spend(mut self) {
        self.sent = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.sent {
            self.talks.answered.invalidate(&self.handle);
        }
    }
}

impl Handing {
    /// For the answer to a call, and for what comes with it.
    pub fn of(talk: Talk, call: &Call, tasks: Vec<BroughtTask>) -> Self {
        Self {
            talk,
            era: call.era,
            method: call.method,
            target: call.target.clone(),
            tool: call.tool().cloned(),
            named: tasks.into_iter().map(|task| (task.text, task.handle)).collect(),
        }
    }

    /// The session was not open yet when the call was judged.
    pub fn in_session(&mut self, label: Option<String>) {
        self.talk.session = label.unwrap_or_default();
    }

    /// Whether it is for this caller: a subscription tells of the tasks it was opened for.
    pub fn is_for(&self, message: &[u8], said: &Said) -> bool {
        let named = |place: &Place| self.named.iter().any(|(text, _)| text == place.text(message));
        self.method != Method::Listen || said.tasks.iter().all(named)
    }

    /// The message as the caller may have it; `None` if something in it cannot be handed out.
    pub fn hand_out(&self, message: Bytes, said: &Said) -> Option<Bytes> {
        let mut edits = Vec::new();
        // In the new era a server takes back nothing but the caller's own subscription.
        let cancels = said.cancels.iter().filter(|_| self.era == Era::Legacy);
        for place in said.id.iter().chain(cancels) {
            let handle = self.hand(
                Handed::Request {
                    session: &self.talk.session,
                },
                place.text(&message),
            )?;
            if handle.len() > LONGEST_ID {
                return None;
            }
            // What is asked again may be answered again.
            self.talk.talks.answered.invalidate(&handle);
            if let (Some(_), Some(method)) = (said.id, &said.method) {
                self.talk.talks.asked.insert(handle.clone(), method.clone());
            }
            edits.push((*place, handle));
        }
        if let Some(place) = said.next_cursor {
            let method = said.lists.unwrap_or(self.method.as_str());
            edits.push((place, self.hand(Handed::Cursor { method }, place.text(&message))?));
        }
        if let Some(place) = said.request_state {
            let handed = Handed::State {
                method: self.method.as_str(),
                target: &self.target.to_string(),
            };
            let Talks { keys, lifetime, now, .. } = &*self.talk.talks;
            let until = now().plus(*lifetime);
            edits.push((
                place,
                keys.hand_until(until, handed, place.text(&message), &self.talk.holder())?,
            ));
        }
        let of_status = said.method.as_deref().is_some_and(is_of_status);
        for place in &said.tasks {
            edits.push((*place, self.task(place.text(&message), of_status)?));
        }
        let mut edits: Vec<_> = edits
            .into_iter()
            .map(|(place, handle)| (place, format!("\"{handle}\"")))
            .collect();
        if let Some(place) = said.tasks_offered.filter(|_| self.method == Method::Initialize) {
            // Whose tasks they are a list does not say, so there is none.
            let kept = mcp::without(&message, place, "list").ok()?;
            edits.extend(kept.map(|text| (place, text)));
        }
        Some(splice(&message, edits))
    }

    fn hand(&self, handed: Handed<'_>, text: &str) -> Option<String> {
        self.talk.talks.keys.hand(handed, "", text, &self.talk.holder())
    }

    /// Without a tool the handle names the task, but no method takes it. Then it is not the one that the caller holds: the
    /// status of a task that was begun on another instance is not told under it, and the caller asks for it.
    fn task(&self, text: &str, of_status: bool) -> Option<String> {
        if let Some((_, handle)) = self.named.iter().find(|(named, _)| named == text) {
            return Some(handle.clone());
        }
        let (talks, holder) = (&self.talk.talks, self.talk.holder());
        let tool = match &self.tool {
            Some(tool) => {
                self.talk.remember(text, tool.as_str());
                tool.to_string()
            }
            None => match talks.begun.get(&(holder.clone(), text.to_owned())) {
                None if of_status => return None,
                tool => tool.unwrap_or_default(),
            },
        };
        talks.keys.hand(Handed::Task, &tool, text, &holder)
    }
}

/// What a server tells of a task without being asked, in either era.
fn is_of_status(method: &str) -> bool {
    matches!(method, "notifications/tasks/status" | "notifications/tasks")
}

const fn is_list(method: Method) -> bool {
    matches!(
        method,
        Method::ToolsList | Method::ResourcesList | Method::TemplatesList | Method::PromptsList
    )
}
