//! Merges the streams of all servers into one. Each server's stream is opened by its own authorised and recorded call, and
//! is reopened with backoff for as long as the client listens. A server without a stream does not end the others.
//! Guardian sends `notifications/tools/list_changed` itself, when the list that it would give this caller has changed.

use super::Asker;
use super::names::{Names, Origin, Spot, split_event};
use super::session::{Conversation, Held};
use super::through::{Asked, Through};
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
const LOOK: Duration = Duration::from_secs(1);
/// Largest event of one server; the same limit as on the server's own endpoint.
const LONGEST_EVENT: usize = 16 * 1024 * 1024;
pub(super) const TOOLS_CHANGED: &str = "notifications/tools/list_changed";

impl Asker {
    /// Answers GET with the merged GET streams of all server sessions; sessions opened later join. If `Last-Event-ID` names
    /// an event of an answer, resumes that answer instead.
    pub(super) async fn own_stream(
        &self,
        conversation: Arc<Conversation>,
        last: Option<&str>,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        let last = match last.and_then(split_event) {
            Some(spot) if spot.origin == Origin::Answer => return self.resume(&conversation, spot, context).await,
            Some(spot) => Some((spot.server, spot.id.to_owned())),
            None => None,
        };
        let (merging, seen) = Merging::begin(self, context).await?;
        let (out, frames) = mpsc::channel(1);
        let following = Following {
            asker: self.clone(),
            conversation,
            out: out.clone(),
        };
        let looking = seen.tell_changes(out.clone(), None);
        let cut = merging.cut.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = following.all(last) => (),
                () = looking => (),
                () = cut.cancelled() => (),
            }
        });
        Ok(merging.response(frames, task))
    }

    /// Resumes a broken answer stream at the server that was sending it.
    async fn resume(
        &self,
        conversation: &Arc<Conversation>,
        spot: Spot<'_>,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        let Spot {
            server,
            request,
            id: last,
            ..
        } = spot;
        let gone = || Refusal::with_detail(Reason::InvalidRequest, "what came before this event is not known any more");
        let held = conversation.held(&server).ok_or_else(gone)?;
        context.delegated = true;
        let through = Through {
            names: Names::resuming(server.clone(), request.clone()),
            ..self.through(server, Some(conversation.clone()), false)
        };
        let asked = through.ask(HttpVerb::Get, &fields(&held, Some(last)), Bytes::new()).await;
        let response = asked.keeping_the_session().response(&self.gate);
        if !is_event_stream(&response) {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        let (out, frames) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            let mut reading = Reading::new(body);
            while let Some(frame) = reading.next().await {
                // This stream resumes one answer only. Another id may be that of a request to another server, whose answer a
                // server must not be able to forge.
                let foreign = answered(&frame).is_some_and(|id| Some(id) != request);
                if !foreign && out.send(frame.raw).await.is_err() {
                    return;
                }
            }
        });
        let merged = Merged {
            frames,
            _task: AbortOnDropHandle::new(task),
        };
        let body = KeepAliveBody::new(UnsyncBoxBody::new(merged), self.gate.parts.endpoints.keep_alive).boxed();
        Ok(Response::from_parts(head, UnsyncBoxBody::new(body)))
    }
}

/// A combined stream that is registered but has no body yet.
pub(super) struct Merging {
    keep_alive: Duration,
    registration: stream_registry::Registration,
    pub cut: CancellationToken,
}

/// What the caller's tool list was when it was last checked.
pub(super) struct Seen {
    asker: Asker,
    context: RequestContext,
    snapshot: Arc<Snapshot>,
    generation: u64,
    shown: Digest,
}

impl Merging {
    /// Registers the stream. It depends on the caller's membership and credential alone; the grants are checked on the
    /// stream of each server.
    pub async fn begin(asker: &Asker, context: &mut RequestContext) -> Result<(Self, Seen), Refusal> {
        let gate = &asker.gate;
        let authz = asker.standing(context).await?;
        drop(asker.admit()?);
        gate.check_stream_limit(&asker.principal)?;
        let member = authz.caller.member.as_ref().ok_or(Reason::NotEnrolled)?;
        let (registration, cut) = gate.stream_registry.register(GrantSnapshot {
            generation: authz.generation,
            member: member.id.clone(),
            grant: None,
            principal: asker.principal.clone(),
        });
        let mut of_stream = RequestContext::new(context.request, context.at, context.source);
        (of_stream.era, of_stream.session) = (context.era, context.session.clone());
        let seen = Seen {
            asker: asker.clone(),
            shown: shown(&authz, asker, context),
            context: of_stream,
            snapshot: authz.snapshot,
            generation: authz.generation,
        };
        let merging = Self {
            keep_alive: gate.parts.endpoints.keep_alive,
            registration,
            cut,
        };
        Ok((merging, seen))
    }

    /// The response. Dropping its body aborts the task, and the end of the task ends the body.
    pub fn response(self, frames: mpsc::Receiver<Bytes>, task: tokio::task::JoinHandle<()>) -> Response<Body> {
        let merged = Merged {
            frames,
            _task: AbortOnDropHandle::new(task),
        };
        let body = KeepAliveBody::new(UnsyncBoxBody::new(merged), self.keep_alive).boxed();
        event_stream(stream_registry::GuardedBody::new(body, self.registration).boxed())
    }
}

impl Seen {
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
            sleep(LOOK).await;
            if self.looks_anew().await && out.send(sse_event(message.as_bytes())).await.is_err() {
                return;
            }
        }
    }

    /// Whether the caller's tool list has changed. It is computed only if the policies, the pinned tools or the grants have.
    async fn looks_anew(&mut self) -> bool {
        let parts = &self.asker.gate.parts;
        if Arc::ptr_eq(&self.snapshot, &parts.snapshot.load()) && self.generation == parts.grants.generation() {
            return false;
        }
        self.context.at = (parts.clock.now)();
        let Ok(authz) = self.asker.standing(&mut self.context).await else {
            return false;
        };
        let shown = shown(&authz, &self.asker, &self.context);
        (self.snapshot, self.generation) = (authz.snapshot, authz.generation);
        std::mem::replace(&mut self.shown, shown) != shown
    }
}

fn shown(authz: &AuthzContext, asker: &Asker, context: &RequestContext) -> Digest {
    Digest::of(asker.gate.definitions(authz, context.era, context).join("\n").as_bytes())
}

/// Follows the GET streams of all sessions of one combined session.
#[derive(Clone)]
struct Following {
    asker: Asker,
    conversation: Arc<Conversation>,
    out: mpsc::Sender<Bytes>,
}

impl Following {
    /// Runs until the client is gone or the session ends. `last` is the event after which one server's stream resumes.
    async fn all(self, mut last: Option<(ServerName, String)>) {
        let mut followed = BTreeSet::new();
        let mut members = JoinSet::new();
        let mut joined = self.conversation.joined();
        loop {
            joined.borrow_and_update();
            if self.asker.gate.combined.is_ended(&self.conversation) {
                return;
            }
            for (server, _) in self.conversation.open() {
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
        let mut joined = self.conversation.joined();
        let mut wait = FIRST_WAIT;
        let mut heard = false;
        loop {
            joined.borrow_and_update();
            let Some(held) = self.conversation.held(&server) else {
                match joined.changed().await {
                    Ok(()) => continue,
                    Err(_) => return,
                }
            };
            let through = Through {
                names: Names::new(server.clone(), Origin::Own),
                ..self.asker.through(server.clone(), Some(self.conversation.clone()), false)
            };
            let asked = through
                .ask(HttpVerb::Get, &fields(&held, last.as_deref()), Bytes::new())
                .await;
            match became(asked) {
                Became::Stream(response) => {
                    (wait, heard) = (FIRST_WAIT, true);
                    if self.pour(response.into_body(), &mut last).await.is_err() {
                        return;
                    }
                }
                Became::Late => (),
                Became::Nothing(status) => {
                    last = None;
                    // The session had a stream before, so 404 means that the server has lost it: open another at once,
                    // because the server sends its notifications there. A server that never had a stream also answers 404.
                    if status == Some(StatusCode::NOT_FOUND) && std::mem::take(&mut heard) {
                        self.conversation.lose(&server, &held);
                        let opened = self.asker.through(server.clone(), Some(self.conversation.clone()), true);
                        if opened.session().await.is_ok() {
                            continue;
                        }
                    }
                    if self.until_another(&server, &held, &mut joined).await.is_err() {
                        return;
                    }
                }
            }
            sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Waits until the server has another session.
    async fn until_another(&self, server: &ServerName, held: &Held, joined: &mut watch::Receiver<u64>) -> Result<(), ()> {
        loop {
            joined.changed().await.map_err(|_| ())?;
            if self.conversation.held(server).is_some_and(|now| !now.is_same(held)) {
                return Ok(());
            }
        }
    }

    /// Forwards one stream until it ends; `Err` if the client is gone.
    async fn pour(&self, body: Body, last: &mut Option<String>) -> Result<(), ()> {
        let mut reading = Reading::new(body);
        while let Some(frame) = reading.next().await {
            if let Some(id) = &frame.id {
                let spot = std::str::from_utf8(id).ok().and_then(split_event);
                *last = spot.map(|spot| spot.id.to_owned());
            }
            match said(&frame) {
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
pub(super) enum Became {
    Stream(Response<Body>),
    /// Not now: a temporary failure, worth another attempt.
    Late,
    /// The server has no stream or refuses it; with the HTTP status, if it answered.
    Nothing(Option<StatusCode>),
}

/// Classifies the response to the request that opens a stream.
pub(super) fn became(asked: Asked) -> Became {
    match asked.answered {
        Ok(response) if is_event_stream(&response) => Became::Stream(response),
        Ok(response) => Became::Nothing(Some(response.status())),
        Err(refusal) => match refusal.reason {
            Reason::UpstreamUnreachable
            | Reason::UpstreamTimeout
            | Reason::UpstreamBroken
            | Reason::StaleAuthorization
            | Reason::FeedMissing
            | Reason::AuditUnavailable
            | Reason::RateLimited
            | Reason::TooManyInFlight => Became::Late,
            _ => Became::Nothing(None),
        },
    }
}

/// Reads the SSE frames of a response that Guardian wrote, skipping keep-alive comments.
pub(super) struct Reading {
    body: Body,
    reader: SseReader,
}

impl Reading {
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
pub(super) fn said(frame: &SseFrame) -> Option<JsonRpcKind> {
    let data = frame.data.as_ref().filter(|data| !data.is_empty())?;
    Some(mcp::read_routing(data).ok()?.kind)
}

/// The id of the request that the frame answers; `None` if it is no answer.
fn answered(frame: &SseFrame) -> Option<Value> {
    let data = frame.data.as_ref().filter(|_| said(frame) == Some(JsonRpcKind::Response))?;
    let mut message: Value = serde_json::from_slice(data).ok()?;
    Some(message["id"].take())
}

fn fields(held: &Held, last: Option<&str>) -> http::HeaderMap {
    let mut fields = held.fields();
    if let Some(Ok(last)) = last.map(HeaderValue::from_str) {
        fields.insert(mcp::LAST_EVENT_ID, last);
    }
    fields
}

/// A body fed by a channel. The channel holds one frame, so a slow client slows the servers down.
struct Merged {
    frames: mpsc::Receiver<Bytes>,
    _task: AbortOnDropHandle<()>,
}

impl http_body::Body for Merged {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.frames
            .poll_recv(context)
            .map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
