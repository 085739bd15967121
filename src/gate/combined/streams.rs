//! The streams of all servers as one: each is opened in a judged and recorded call of its own and followed for as long as the
//! client listens. One that ends is opened again after a while; one that never begins is no reason to end the others.
//! That a list of tools has changed Guardian says itself, once the list that it gives has.

use super::Asker;
use super::names::{Names, Origin, Spot, split_event};
use super::session::{Conversation, Held};
use super::through::{Asked, Through};
use crate::decide::Snapshot;
use crate::domain::{Digest, MessageId, Reason, Refusal, ServerName};
use crate::gate::alive::Alive;
use crate::gate::screen::{event, event_stream, is_event_stream};
use crate::gate::site::Verb;
use crate::gate::standing::Standing;
use crate::gate::streams;
use crate::gate::trail::Trail;
use crate::grants::Ticket;
use crate::mcp::{self, SseFrame, SseReader, WireKind};
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

pub(super) const FIRST_WAIT: Duration = Duration::from_secs(1);
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How often it is looked whether the list of tools has changed.
const LOOK: Duration = Duration::from_secs(1);
/// Of one server; as for its own endpoint.
const LONGEST_EVENT: usize = 16 * 1024 * 1024;
pub(super) const TOOLS_CHANGED: &str = "notifications/tools/list_changed";

impl Asker {
    /// GET: what servers send on the streams of their sessions. Those that this client speaks to later join.
    pub(super) async fn own_stream(
        &self,
        conversation: Arc<Conversation>,
        last: Option<&str>,
        trail: &mut Trail,
    ) -> Result<Response<Body>, Refusal> {
        let last = match last.and_then(split_event) {
            Some(spot) if spot.origin == Origin::Answer => return self.resume(&conversation, spot, trail).await,
            Some(spot) => Some((spot.server, spot.id.to_owned())),
            None => None,
        };
        let (merging, seen) = Merging::begin(self, trail).await?;
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

    /// The rest of an answer that broke off, from the server that gave it.
    async fn resume(
        &self,
        conversation: &Arc<Conversation>,
        spot: Spot<'_>,
        trail: &mut Trail,
    ) -> Result<Response<Body>, Refusal> {
        let Spot {
            server,
            request,
            id: last,
            ..
        } = spot;
        let gone = || Refusal::with_detail(Reason::InvalidRequest, "what came before this event is not known any more");
        let held = conversation.held(&server).ok_or_else(gone)?;
        trail.passed_on = true;
        let through = Through {
            names: Names::resuming(server.clone(), request.clone()),
            ..self.through(server, Some(conversation.clone()), false)
        };
        let asked = through.ask(Verb::Get, &fields(&held, Some(last)), Bytes::new()).await;
        let response = asked.keeping_the_session().response(&self.gate);
        if !is_event_stream(&response) {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        let (out, frames) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            let mut reading = Reading::new(body);
            while let Some(frame) = reading.next().await {
                // This stream brings the rest of one answer. Any other may be to what another server was asked.
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
        let body = Alive::new(UnsyncBoxBody::new(merged), self.gate.parts.site.keep_alive).boxed();
        Ok(Response::from_parts(head, UnsyncBoxBody::new(body)))
    }
}

/// One client's stream over those of servers.
pub(super) struct Merging {
    keep_alive: Duration,
    enrolled: streams::Enrolled,
    pub cut: CancellationToken,
}

/// What the client has been told of the tools so far.
pub(super) struct Seen {
    asker: Asker,
    trail: Trail,
    snapshot: Arc<Snapshot>,
    generation: u64,
    shown: Digest,
}

impl Merging {
    /// The stream stands on the caller; on grants stands what servers say on it.
    pub async fn begin(asker: &Asker, trail: &mut Trail) -> Result<(Self, Seen), Refusal> {
        let gate = &asker.gate;
        let standing = asker.standing(trail).await?;
        drop(asker.admit()?);
        gate.has_room_for_a_stream(&asker.principal)?;
        let member = standing.caller.member.as_ref().ok_or(Reason::NotEnrolled)?;
        let (enrolled, cut) = gate.streams.enrol(Ticket {
            generation: standing.generation,
            member: member.id.clone(),
            grant: None,
            principal: asker.principal.clone(),
        });
        let mut of_stream = Trail::new(trail.request, trail.at, trail.source);
        (of_stream.era, of_stream.session) = (trail.era, trail.session.clone());
        let seen = Seen {
            asker: asker.clone(),
            shown: shown(&standing, asker, trail),
            trail: of_stream,
            snapshot: standing.snapshot,
            generation: standing.generation,
        };
        let merging = Self {
            keep_alive: gate.parts.site.keep_alive,
            enrolled,
            cut,
        };
        Ok((merging, seen))
    }

    /// The answer; the stream lasts as long as the task and no longer than its reader.
    pub fn response(self, frames: mpsc::Receiver<Bytes>, task: tokio::task::JoinHandle<()>) -> Response<Body> {
        let merged = Merged {
            frames,
            _task: AbortOnDropHandle::new(task),
        };
        let body = Alive::new(UnsyncBoxBody::new(merged), self.keep_alive).boxed();
        event_stream(streams::Held::new(body, self.enrolled).boxed())
    }
}

impl Seen {
    /// Says so when the tools that this caller is shown have changed; `tag` is the subscription that wants to know.
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
            if self.looks_anew().await && out.send(event(message.as_bytes())).await.is_err() {
                return;
            }
        }
    }

    /// Whether the caller is shown other tools than before. It is looked at closely only when something has changed.
    async fn looks_anew(&mut self) -> bool {
        let parts = &self.asker.gate.parts;
        if Arc::ptr_eq(&self.snapshot, &parts.snapshot.load()) && self.generation == parts.grants.generation() {
            return false;
        }
        self.trail.at = (parts.clock.now)();
        let Ok(standing) = self.asker.standing(&mut self.trail).await else {
            return false;
        };
        let shown = shown(&standing, &self.asker, &self.trail);
        (self.snapshot, self.generation) = (standing.snapshot, standing.generation);
        std::mem::replace(&mut self.shown, shown) != shown
    }
}

fn shown(standing: &Standing, asker: &Asker, trail: &Trail) -> Digest {
    Digest::of(asker.gate.definitions(standing, trail.era, trail).join("\n").as_bytes())
}

/// Follows the streams of a legacy client's sessions.
#[derive(Clone)]
struct Following {
    asker: Asker,
    conversation: Arc<Conversation>,
    out: mpsc::Sender<Bytes>,
}

impl Following {
    /// Until nobody reads; `last` is the event that the stream goes on after.
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

    /// The stream of one server, again and again.
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
            let asked = through.ask(Verb::Get, &fields(&held, last.as_deref()), Bytes::new()).await;
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
                    // What it told before it lost the session it tells in another. Servers without streams say 404 too.
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

    /// Until this client has another session of the server.
    async fn until_another(&self, server: &ServerName, held: &Held, joined: &mut watch::Receiver<u64>) -> Result<(), ()> {
        loop {
            joined.changed().await.map_err(|_| ())?;
            if self.conversation.held(server).is_some_and(|now| !now.is_same(held)) {
                return Ok(());
            }
        }
    }

    /// Everything of a stream, to its end; `Err` when nobody reads it any more.
    async fn pour(&self, body: Body, last: &mut Option<String>) -> Result<(), ()> {
        let mut reading = Reading::new(body);
        while let Some(frame) = reading.next().await {
            if let Some(id) = &frame.id {
                let spot = std::str::from_utf8(id).ok().and_then(split_event);
                *last = spot.map(|spot| spot.id.to_owned());
            }
            match said(&frame) {
                Some(WireKind::Notification(method)) if method == TOOLS_CHANGED => (),
                // Nothing was asked on this stream. It may be the id of what another server was asked.
                Some(WireKind::Answer) => (),
                _ => self.out.send(frame.raw).await.map_err(|_| ())?,
            }
        }
        Ok(())
    }
}

/// What became of the opening of a stream.
pub(super) enum Became {
    Stream(Response<Body>),
    /// It may come to be: the server did not answer properly.
    Late,
    /// There is none.
    Nothing(Option<StatusCode>),
}

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

/// The frames of a stream that Guardian has written, without the comments that keep it alive.
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

    /// `None` at the end, however it comes.
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

/// What kind of message a frame carries.
pub(super) fn said(frame: &SseFrame) -> Option<WireKind> {
    let data = frame.data.as_ref().filter(|data| !data.is_empty())?;
    Some(mcp::wire(data).ok()?.kind)
}

/// The id that an answer has.
fn answered(frame: &SseFrame) -> Option<Value> {
    let data = frame.data.as_ref().filter(|_| said(frame) == Some(WireKind::Answer))?;
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

/// Frames of many streams, one after the other. What is not read is not taken from the servers.
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
