//! Merges the streams of all servers into one. Each server's stream is opened by its own authorised and recorded call, and
//! is reopened with backoff for as long as the client listens. A server without a stream does not end the others.
//! Guardian sends `notifications/tools/list_changed` itself, when the list that it would give this caller has changed.

use super::server_call::{ServerCall, ServerCallResult, stream_request};
use super::session::{CombinedSession, ServerSession};
use super::{CombinedCaller, CombinedRequest, CombinedResult};
use crate::decide::{self, Snapshot};
use crate::domain::{Backoff, ClientRequests, Digest, Era, MessageId, Reason, Refusal, ServerName};
use crate::gate::{AuthzContext, KeepAliveBody, RefusedRequest, Registration, RequestContext, event_stream, is_event_stream};
use crate::mcp::{self, JsonRpcKind, Namespace, SseFrame, SseReader, StreamKind, parse_event_note};
use crate::sessions::{HandleKind, HandleOwner, claimed_server};
use crate::transport::{Body, BodyError, GuardedBody};
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use serde_json::Value;
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Back-off between attempts to open a server's stream: the first and the longest wait.
pub(super) const FIRST_WAIT: Duration = Duration::from_secs(1);
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How often to check whether the caller's tool list has changed.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Largest event of one server; the same limit as on the server's own endpoint.
const LONGEST_EVENT: usize = 16 * 1024 * 1024;
pub(super) const TOOLS_CHANGED: &str = "notifications/tools/list_changed";

impl CombinedRequest {
    /// Answers GET with the merged GET streams of all server sessions; sessions opened later join. If `Last-Event-ID` names
    /// an event of an answer, resumes that answer instead.
    pub(super) async fn own_stream(&mut self, session: Arc<CombinedSession>, last: Option<&str>) -> CombinedResult {
        let last = match last {
            Some(handle) => match self.caller.event_cursor(handle, &session) {
                Some(cursor) if cursor.stream_kind == StreamKind::Answer => return self.resume(&session, cursor).await,
                Some(cursor) => Some((cursor.server, handle.to_owned())),
                None => return Err(self.refuse(Reason::UnknownEvent)),
            },
            None => None,
        };
        let (builder, watcher) = MergedStreamBuilder::begin(self).await?;
        let (out, frames) = mpsc::channel(1);
        let following = StreamFollower {
            caller: self.caller.clone(),
            session,
            out: out.clone(),
        };
        let looking = watcher.tell_changes(out.clone(), None);
        let cut = builder.cut.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = following.all(last) => (),
                () = looking => (),
                () = cut.cancelled() => (),
            }
        });
        Ok(self.respond(builder.response(frames, task), false))
    }

    /// Resumes a broken answer stream at the server that was sending it.
    async fn resume(&self, session: &Arc<CombinedSession>, cursor: EventCursor) -> CombinedResult {
        let EventCursor {
            server,
            request,
            id: last,
            ..
        } = cursor;
        let Some(server_session) = session.server_session(&server) else {
            let gone = "what came before this event is not known any more";
            return Err(self.refuse(Refusal::with_detail(Reason::InvalidRequest, gone)));
        };
        let call = ServerCall {
            namespace: Namespace::resuming(server.clone(), request.clone()),
            ..self.caller.server_call(server, Some(session.clone()), false)
        };
        let part = stream_request(self.part_context(call.server()), &server_session, Some(last));
        let result = call.ask(part).await;
        let parts = &self.caller.combined.parts;
        let response = result.mask_session_404().response(&parts.gate);
        if !is_event_stream(&response) {
            return Ok(self.respond(response, true));
        }
        let (head, body) = response.into_parts();
        let (out, frames) = mpsc::channel(1);
        let task = tokio::spawn(pass_resumed(body, request, out));
        let response = Response::from_parts(head, merged_body(frames, task, parts.keep_alive));
        Ok(self.respond(response, true))
    }
}

/// The event that a client resumes after.
struct EventCursor {
    server: ServerName,
    stream_kind: StreamKind,
    /// The id of the request whose answer the event belongs to.
    request: Option<Value>,
    /// The event id as the server wrote it.
    id: String,
}

impl CombinedCaller {
    /// Verifies `Last-Event-ID`: it must have been sent to this caller, on a stream of this combined session.
    fn event_cursor(&self, handle: &str, session: &CombinedSession) -> Option<EventCursor> {
        let server = claimed_server(handle)?;
        let owner = HandleOwner::new(&self.principal, &server);
        let binding = session.key.to_string();
        let kind = HandleKind::Event { session: &binding };
        let decoded = self.combined.parts.session_keys.verify(kind, handle, &owner)?;
        let (stream_kind, request) = parse_event_note(&decoded.note)?;
        Some(EventCursor {
            server,
            stream_kind,
            request,
            id: decoded.text,
        })
    }
}

/// Passes on the events of one resumed answer. Another id may be that of a request to another server, whose answer a server
/// must not be able to forge.
async fn pass_resumed(body: Body, request: Option<Value>, out: mpsc::Sender<Bytes>) {
    let mut reading = EventReader::new(body);
    while let Some(frame) = reading.next().await {
        let foreign = response_id(&frame).is_some_and(|id| Some(id) != request);
        if !foreign && out.send(frame.raw).await.is_err() {
            return;
        }
    }
}

/// A combined stream that is registered but has no body yet.
pub(super) struct MergedStreamBuilder {
    keep_alive: Duration,
    registration: Registration,
    pub cut: CancellationToken,
}

/// What the caller's tool list was when it was last checked.
pub(super) struct ToolListWatcher {
    caller: CombinedCaller,
    context: RequestContext,
    era: Era,
    /// The requests that the client declared to answer.
    declared: ClientRequests,
    snapshot: Arc<Snapshot>,
    generation: u64,
    visible_tools: Digest,
}

impl MergedStreamBuilder {
    /// Registers the stream. It depends on the caller's membership and credential alone; the grants are checked on the
    /// stream of each server.
    pub async fn begin(request: &mut CombinedRequest) -> Result<(Self, ToolListWatcher), Box<RefusedRequest>> {
        let authz = request.load_authz().await?;
        drop(request.admit()?);
        let (caller, era, declared) = (&request.caller, request.message.era, request.declared_requests());
        let parts = &caller.combined.parts;
        let grant_snapshot = authz
            .grant_snapshot(None)
            .ok_or_else(|| request.refuse(Reason::NotEnrolled))?;
        let opened = parts.gate.open_stream(grant_snapshot);
        let (registration, cut) = opened.map_err(|refusal| request.refuse(refusal))?;
        let watcher = ToolListWatcher {
            visible_tools: visible_tools_digest(&authz, caller, era, declared),
            caller: caller.clone(),
            context: request.context.clone(),
            era,
            declared,
            snapshot: authz.snapshot,
            generation: authz.generation,
        };
        let builder = Self {
            keep_alive: parts.keep_alive,
            registration,
            cut,
        };
        Ok((builder, watcher))
    }

    /// The response. Dropping its body aborts the task, and the end of the task ends the body.
    pub fn response(self, frames: mpsc::Receiver<Bytes>, task: JoinHandle<()>) -> Response<Body> {
        let body = merged_body(frames, task, self.keep_alive);
        event_stream(GuardedBody::new(body, self.registration).boxed())
    }
}

/// A body of the frames that `task` sends.
fn merged_body(frames: mpsc::Receiver<Bytes>, task: JoinHandle<()>, keep_alive: Duration) -> Body {
    let merged = ChannelBody {
        frames,
        _task: AbortOnDropHandle::new(task),
    };
    KeepAliveBody::new(UnsyncBoxBody::new(merged), keep_alive).boxed()
}

impl ToolListWatcher {
    /// Sends `notifications/tools/list_changed` whenever this caller's tool list has changed. `tag` is the subscription id
    /// of a `subscriptions/listen`.
    pub async fn tell_changes(mut self, out: mpsc::Sender<Bytes>, tag: Option<MessageId>) {
        let message = match tag {
            Some(tag) => format!(
                r#"{{"jsonrpc":"2.0","method":"{TOOLS_CHANGED}","params":{{"_meta":{{"io.modelcontextprotocol/subscriptionId":{}}}}}}}"#,
                tag.as_json()
            ),
            None => format!(r#"{{"jsonrpc":"2.0","method":"{TOOLS_CHANGED}"}}"#),
        };
        loop {
            sleep(POLL_INTERVAL).await;
            if self.tools_changed().await && out.send(mcp::sse_event(message.as_bytes())).await.is_err() {
                return;
            }
        }
    }

    /// Whether the caller's tool list has changed. It is computed only if the policies, the pinned tools or the grants have.
    async fn tools_changed(&mut self) -> bool {
        let parts = &self.caller.combined.parts;
        if parts.gate.has_snapshot(&self.snapshot) && self.generation == parts.grants.generation() {
            return false;
        }
        self.context.at = (parts.clock.now)();
        let authenticated = self.caller.principal.clone().into();
        let Ok(authz) = parts.gate.load_authz(authenticated, &self.context).await else {
            return false;
        };
        if decide::is_admitted(&authz.decision_input()).is_err() {
            return false;
        }
        let shown = visible_tools_digest(&authz, &self.caller, self.era, self.declared);
        (self.snapshot, self.generation) = (authz.snapshot, authz.generation);
        std::mem::replace(&mut self.visible_tools, shown) != shown
    }
}

fn visible_tools_digest(authz: &AuthzContext, caller: &CombinedCaller, era: Era, declared: ClientRequests) -> Digest {
    Digest::of(caller.combined.tool_definitions(authz, era, declared).join("\n").as_bytes())
}

/// Follows the GET streams of all sessions of one combined session.
#[derive(Clone)]
struct StreamFollower {
    caller: CombinedCaller,
    session: Arc<CombinedSession>,
    out: mpsc::Sender<Bytes>,
}

impl StreamFollower {
    /// Runs until the client is gone or the session ends. `last` is the handle of the event after which one server's stream
    /// resumes.
    async fn all(self, mut last: Option<(ServerName, String)>) {
        let mut followed = BTreeSet::new();
        let mut members = JoinSet::new();
        let mut joined = self.session.session_opened();
        loop {
            joined.borrow_and_update();
            if self.caller.combined.is_ended(&self.session) {
                return;
            }
            for (server, _) in self.session.open_sessions() {
                if followed.insert(server.clone()) {
                    let last = last.take_if(|(of, _)| *of == server).map(|(_, last)| last);
                    members.spawn(self.clone().one(server, last));
                }
            }
            tokio::select! {
                changed = joined.changed() => if changed.is_err() { return },
                () = self.out.closed() => return,
            }
        }
    }

    /// Keeps the stream of one server open: reopens it with backoff.
    async fn one(self, server: ServerName, mut last: Option<String>) {
        let mut joined = self.session.session_opened();
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut heard = false;
        loop {
            joined.borrow_and_update();
            let Some(server_session) = self.session.server_session(&server) else {
                match joined.changed().await {
                    Ok(()) => continue,
                    Err(_) => return,
                }
            };
            let call = ServerCall {
                namespace: Namespace::new(server.clone(), StreamKind::Own),
                ..self.caller.server_call(server.clone(), Some(self.session.clone()), false)
            };
            let context = self.caller.part_context(&self.session, &server);
            let cursor = last.as_deref().and_then(|last| self.caller.event_cursor(last, &self.session));
            let last_event_id = cursor.map(|cursor| cursor.id);
            let result = call.ask(stream_request(context, &server_session, last_event_id)).await;
            match open_result(result) {
                OpenResult::Stream(response) => {
                    backoff.reset();
                    heard = true;
                    if self.forward_events(response.into_body(), &mut last).await.is_err() {
                        return;
                    }
                }
                OpenResult::Pending => (),
                OpenResult::Unavailable(result) => {
                    last = None;
                    let status = result.answered.ok().map(|answered| answered.response.status());
                    // The session had a stream before, so 404 means that the server has lost it: open another at once,
                    // because the server sends its notifications there. A server that never had a stream also answers 404.
                    if status == Some(StatusCode::NOT_FOUND) && std::mem::take(&mut heard) {
                        self.session.invalidate(&server, &server_session);
                        let opened = self.caller.server_call(server.clone(), Some(self.session.clone()), true);
                        if opened.open_session().await.is_ok() {
                            continue;
                        }
                    }
                    if self.until_another(&server, &server_session, &mut joined).await.is_err() {
                        return;
                    }
                }
            }
            sleep(backoff.failed()).await;
        }
    }

    /// Waits until the server has another session.
    async fn until_another(
        &self,
        server: &ServerName,
        server_session: &ServerSession,
        joined: &mut watch::Receiver<u64>,
    ) -> Result<(), ()> {
        loop {
            joined.changed().await.map_err(|_| ())?;
            if self
                .session
                .server_session(server)
                .is_some_and(|now| !now.is_same(server_session))
            {
                return Ok(());
            }
        }
    }

    /// Forwards one stream until it ends; `Err` if the client is gone.
    async fn forward_events(&self, body: Body, last: &mut Option<String>) -> Result<(), ()> {
        let mut reading = EventReader::new(body);
        while let Some(frame) = reading.next().await {
            if let Some(id) = &frame.id {
                *last = std::str::from_utf8(id).ok().filter(|id| !id.is_empty()).map(str::to_owned);
            }
            match event_kind(&frame) {
                Some(JsonRpcKind::Notification(method)) if method == TOOLS_CHANGED => (),
                // No request was sent on a GET stream. The id may be that of a request to another server, whose answer this
                // one must not be able to forge.
                Some(JsonRpcKind::Response) => (),
                _ => self.out.send(frame.raw).await.map_err(|_| ())?,
            }
        }
        Ok(())
    }
}

/// The result of opening a stream.
pub(super) enum OpenResult {
    Stream(Response<Body>),
    /// Not now: a temporary failure, worth another attempt.
    Pending,
    /// The server has no stream or refuses it.
    Unavailable(ServerCallResult),
}

/// Classifies the response to the request that opens a stream.
pub(super) fn open_result(result: ServerCallResult) -> OpenResult {
    match result.answered {
        Ok(answered) if is_event_stream(&answered.response) => OpenResult::Stream(answered.response),
        Err(ref refused) if is_temporary(refused.refusal.reason) => OpenResult::Pending,
        _ => OpenResult::Unavailable(result),
    }
}

const fn is_temporary(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::UpstreamUnreachable
            | Reason::UpstreamTimeout
            | Reason::UpstreamBroken
            | Reason::StaleAuthorization
            | Reason::FeedMissing
            | Reason::AuditUnavailable
            | Reason::RateLimited
            | Reason::TooManyInFlight
            | Reason::TooManySessions
            | Reason::TooManyStreams
    )
}

/// Reads the SSE frames of a response that Guardian wrote, skipping keep-alive comments.
pub(super) struct EventReader {
    body: Body,
    reader: SseReader,
}

impl EventReader {
    pub fn new(body: Body) -> Self {
        Self {
            body,
            reader: SseReader::new(LONGEST_EVENT + LONGEST_EVENT / 8),
        }
    }

    /// The next frame; `None` at the end of the stream or on any error.
    pub async fn next(&mut self) -> Option<SseFrame> {
        loop {
            while let Some(frame) = self.reader.frame().ok()? {
                if frame.data.is_some() || frame.id.is_some() {
                    return Some(frame);
                }
            }
            let piece = self.body.frame().await?.ok()?;
            self.reader.push(piece.into_data().ok()?);
        }
    }
}

/// The kind of message in a frame; `None` if the frame holds no message.
pub(super) fn event_kind(frame: &SseFrame) -> Option<JsonRpcKind> {
    let data = frame.data.as_ref().filter(|data| !data.is_empty())?;
    mcp::ServerMessage::parse(data).ok()?.route().ok()
}

/// The id of the request that the frame answers; `None` if it is no answer.
fn response_id(frame: &SseFrame) -> Option<Value> {
    let data = frame
        .data
        .as_ref()
        .filter(|_| event_kind(frame) == Some(JsonRpcKind::Response))?;
    let mut message: Value = serde_json::from_slice(data).ok()?;
    Some(message["id"].take())
}

/// A body fed by a channel. The channel holds one frame, so a slow client slows the servers down.
struct ChannelBody {
    frames: mpsc::Receiver<Bytes>,
    _task: AbortOnDropHandle<()>,
}

impl http_body::Body for ChannelBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.frames
            .poll_recv(context)
            .map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
