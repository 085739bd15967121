//! Merges the streams of all servers into one. Each server's stream is opened by its own authorised and recorded call, and
//! is reopened with backoff for as long as the client listens. A server without a stream does not end the others.
//! Guardian sends `notifications/tools/list_changed` itself, when the list that it would give this caller has changed.

use super::CombinedCaller;
use super::namespace::{EventCursor, Namespace, StreamKind, parse_event_id};
use super::server_call::{ServerCall, ServerCallResult};
use super::session::{CombinedSession, ServerSession};
use crate::decide::Snapshot;
use crate::domain::{Digest, MessageId, Reason, Refusal, ServerName};
use crate::gate::authz::AuthzContext;
use crate::gate::context::RequestContext;
use crate::gate::keep_alive::KeepAliveBody;
use crate::gate::routing::HttpVerb;
use crate::gate::screen::{event_stream, is_event_stream, sse_event};
use crate::gate::stream_registry;
use crate::grants::GrantSnapshot;
use crate::mcp::{self, JsonRpcKind, SseFrame, SseReader};
use crate::transport::{Body, BodyError};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
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
use tokio::task::JoinSet;
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

impl CombinedCaller {
    /// Answers GET with the merged GET streams of all server sessions; sessions opened later join. If `Last-Event-ID` names
    /// an event of an answer, resumes that answer instead.
    pub(super) async fn own_stream(
        &self,
        session: Arc<CombinedSession>,
        last: Option<&str>,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        let last = match last.and_then(parse_event_id) {
            Some(cursor) if cursor.stream_kind == StreamKind::Answer => return self.resume(&session, cursor, context).await,
            Some(cursor) => Some((cursor.server, cursor.id.to_owned())),
            None => None,
        };
        let (builder, watcher) = MergedStreamBuilder::begin(self, context).await?;
        let (out, frames) = mpsc::channel(1);
        let following = StreamFollower {
            caller: self.clone(),
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
        Ok(builder.response(frames, task))
    }

    /// Resumes a broken answer stream at the server that was sending it.
    async fn resume(
        &self,
        session: &Arc<CombinedSession>,
        cursor: EventCursor<'_>,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        let EventCursor {
            server,
            request,
            id: last,
            ..
        } = cursor;
        let gone = || Refusal::with_detail(Reason::InvalidRequest, "what came before this event is not known any more");
        let server_session = session.server_session(&server).ok_or_else(gone)?;
        context.delegated = true;
        let call = ServerCall {
            namespace: Namespace::resuming(server.clone(), request.clone()),
            ..self.server_call(server, Some(session.clone()), false)
        };
        let result = call
            .ask(HttpVerb::Get, &stream_headers(&server_session, Some(last)), Bytes::new())
            .await;
        let response = result.mask_session_404().response(&self.gate);
        if !is_event_stream(&response) {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        let (out, frames) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            let mut reading = EventReader::new(body);
            while let Some(frame) = reading.next().await {
                // This stream resumes one answer only. Another id may be that of a request to another server, whose answer a
                // server must not be able to forge.
                let foreign = response_id(&frame).is_some_and(|id| Some(id) != request);
                if !foreign && out.send(frame.raw).await.is_err() {
                    return;
                }
            }
        });
        let merged = ChannelBody {
            frames,
            _task: AbortOnDropHandle::new(task),
        };
        let body = KeepAliveBody::new(UnsyncBoxBody::new(merged), self.gate.parts.endpoints.keep_alive).boxed();
        Ok(Response::from_parts(head, UnsyncBoxBody::new(body)))
    }
}

/// A combined stream that is registered but has no body yet.
pub(super) struct MergedStreamBuilder {
    keep_alive: Duration,
    registration: stream_registry::Registration,
    pub cut: CancellationToken,
}

/// What the caller's tool list was when it was last checked.
pub(super) struct ToolListWatcher {
    caller: CombinedCaller,
    context: RequestContext,
    snapshot: Arc<Snapshot>,
    generation: u64,
    visible_tools: Digest,
}

impl MergedStreamBuilder {
    /// Registers the stream. It depends on the caller's membership and credential alone; the grants are checked on the
    /// stream of each server.
    pub async fn begin(caller: &CombinedCaller, context: &mut RequestContext) -> Result<(Self, ToolListWatcher), Refusal> {
        let gate = &caller.gate;
        let authz = caller.load_authz(context).await?;
        drop(caller.admit()?);
        gate.check_stream_limit(&caller.principal)?;
        let member = authz.caller.member.as_ref().ok_or(Reason::NotEnrolled)?;
        let (registration, cut) = gate.stream_registry.register(GrantSnapshot {
            generation: authz.generation,
            member: member.id.clone(),
            grant: None,
            principal: caller.principal.clone(),
        });
        let mut of_stream = RequestContext::new(context.request, context.at, context.source);
        (of_stream.era, of_stream.session) = (context.era, context.session.clone());
        let watcher = ToolListWatcher {
            caller: caller.clone(),
            visible_tools: visible_tools_digest(&authz, caller, context),
            context: of_stream,
            snapshot: authz.snapshot,
            generation: authz.generation,
        };
        let builder = Self {
            keep_alive: gate.parts.endpoints.keep_alive,
            registration,
            cut,
        };
        Ok((builder, watcher))
    }

    /// The response. Dropping its body aborts the task, and the end of the task ends the body.
    pub fn response(self, frames: mpsc::Receiver<Bytes>, task: tokio::task::JoinHandle<()>) -> Response<Body> {
        let merged = ChannelBody {
            frames,
            _task: AbortOnDropHandle::new(task),
        };
        let body = KeepAliveBody::new(UnsyncBoxBody::new(merged), self.keep_alive).boxed();
        event_stream(stream_registry::GuardedBody::new(body, self.registration).boxed())
    }
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
            if self.tools_changed().await && out.send(sse_event(message.as_bytes())).await.is_err() {
                return;
            }
        }
    }

    /// Whether the caller's tool list has changed. It is computed only if the policies, the pinned tools or the grants have.
    async fn tools_changed(&mut self) -> bool {
        let parts = &self.caller.gate.parts;
        if Arc::ptr_eq(&self.snapshot, &parts.snapshot.load()) && self.generation == parts.grants.generation() {
            return false;
        }
        self.context.at = (parts.clock.now)();
        let Ok(authz) = self.caller.load_authz(&mut self.context).await else {
            return false;
        };
        let shown = visible_tools_digest(&authz, &self.caller, &self.context);
        (self.snapshot, self.generation) = (authz.snapshot, authz.generation);
        std::mem::replace(&mut self.visible_tools, shown) != shown
    }
}

fn visible_tools_digest(authz: &AuthzContext, caller: &CombinedCaller, context: &RequestContext) -> Digest {
    Digest::of(
        caller
            .gate
            .tool_definitions(authz, context.era, context)
            .join("\n")
            .as_bytes(),
    )
}

/// Follows the GET streams of all sessions of one combined session.
#[derive(Clone)]
struct StreamFollower {
    caller: CombinedCaller,
    session: Arc<CombinedSession>,
    out: mpsc::Sender<Bytes>,
}

impl StreamFollower {
    /// Runs until the client is gone or the session ends. `last` is the event after which one server's stream resumes.
    async fn all(self, mut last: Option<(ServerName, String)>) {
        let mut followed = BTreeSet::new();
        let mut members = JoinSet::new();
        let mut joined = self.session.session_opened();
        loop {
            joined.borrow_and_update();
            if self.caller.gate.combined.is_ended(&self.session) {
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
        let mut wait = FIRST_WAIT;
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
            let result = call
                .ask(HttpVerb::Get, &stream_headers(&server_session, last.as_deref()), Bytes::new())
                .await;
            match open_result(result) {
                OpenResult::Stream(response) => {
                    (wait, heard) = (FIRST_WAIT, true);
                    if self.forward_events(response.into_body(), &mut last).await.is_err() {
                        return;
                    }
                }
                OpenResult::Pending => (),
                OpenResult::Unavailable(status) => {
                    last = None;
                    // The session had a stream before, so 404 means that the server has lost it: open another at once,
                    // because the server sends its notifications there. A server that never had a stream also answers 404.
                    if status == Some(StatusCode::NOT_FOUND) && std::mem::take(&mut heard) {
                        self.session.invalidate(&server, &server_session);
                        let opened = self.caller.server_call(server.clone(), Some(self.session.clone()), true);
                        if opened.session().await.is_ok() {
                            continue;
                        }
                    }
                    if self.until_another(&server, &server_session, &mut joined).await.is_err() {
                        return;
                    }
                }
            }
            sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
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
                let cursor = std::str::from_utf8(id).ok().and_then(parse_event_id);
                *last = cursor.map(|cursor| cursor.id.to_owned());
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
    /// The server has no stream or refuses it; with the HTTP status, if it answered.
    Unavailable(Option<StatusCode>),
}

/// Classifies the response to the request that opens a stream.
pub(super) fn open_result(result: ServerCallResult) -> OpenResult {
    match result.answered {
        Ok(response) if is_event_stream(&response) => OpenResult::Stream(response),
        Ok(response) => OpenResult::Unavailable(Some(response.status())),
        Err(refusal) => match refusal.reason {
            Reason::UpstreamUnreachable
            | Reason::UpstreamTimeout
            | Reason::UpstreamBroken
            | Reason::StaleAuthorization
            | Reason::FeedMissing
            | Reason::AuditUnavailable
            | Reason::RateLimited
            | Reason::TooManyInFlight => OpenResult::Pending,
            _ => OpenResult::Unavailable(None),
        },
    }
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
    Some(mcp::read_routing(data).ok()?.kind)
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

fn stream_headers(server_session: &ServerSession, last: Option<&str>) -> http::HeaderMap {
    let mut fields = server_session.headers();
    if let Some(Ok(last)) = last.map(HeaderValue::from_str) {
        fields.insert(mcp::LAST_EVENT_ID, last);
    }
    fields
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
