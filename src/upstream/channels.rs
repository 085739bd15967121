//! Servers reached over persistent channels: a stdio process or an event stream for each session, or one process that
//! all sessions share. A session has a random id that leads to its channel on this instance only; when the channel
//! ends, so does the session.

use super::client_requests::DenialSender;
use super::control::ControlReply;
use super::forward::{Answer, ForwardHeaders, SessionField};
use super::forward_error::ForwardError;
use super::legacy_sse;
use super::mux::{MuxChannel, UnsolicitedRouting};
use super::outcome::OutcomeGuard;
use super::queue::PushBuffer;
use super::server::{Endpoint, Timeouts, Upstream};
use super::stdio::Program;
use super::stream::{EventStream, StreamRules};
use crate::config::ServerConfig;
use crate::domain::{Backoff, Call, ClientRequests, Era, Method, ProtocolVersion, Reason, ServerName};
use crate::mcp::{self, MessageKind};
use crate::sessions::{HandleOwner, UpstreamSessionId};
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The channels and sessions of one server.
pub(super) struct Channels {
    connector: ChannelConnector,
    /// What outlives a single channel.
    pub supervisor: Supervisor,
    /// Whether one process serves all sessions.
    shared: bool,
    /// The most sessions at once.
    most: usize,
    idle: Duration,
    timeouts: Timeouts,
    allowed_requests: ClientRequests,
    sessions: Arc<SessionTable>,
    /// The channel that Guardian uses for its own requests; a shared process has only this one.
    control: Mutex<Arc<OnceCell<ControlChannel>>>,
}

/// How a channel is opened.
pub(super) enum ChannelConnector {
    Program(Program),
    LegacySse(Arc<Endpoint>),
}

/// The state of a server that outlives its channels.
#[derive(Clone)]
pub(super) struct Supervisor {
    pub server: ServerName,
    pub tasks: TaskTracker,
    stop: CancellationToken,
    /// Limits the open channels.
    slots: Arc<Semaphore>,
    restart_delay: Arc<Mutex<RestartDelay>>,
}

/// A channel on which Guardian itself has sent `initialize`.
#[derive(Clone)]
struct ControlChannel {
    channel: Arc<MuxChannel>,
    version: ProtocolVersion,
    /// The server's `initialize` result.
    server_info: Value,
}

/// The sessions on this instance, by id.
#[derive(Default)]
pub(super) struct SessionTable(Mutex<HashMap<Arc<str>, Arc<SessionEntry>>>);

struct SessionEntry {
    name: Arc<str>,
    owner: HandleOwner,
    /// The messages for the session's GET stream.
    push_buffer: Arc<PushBuffer>,
    /// The session's own channel; unset if the process is shared.
    channel: OnceLock<Arc<MuxChannel>>,
    /// When the session was last used.
    used: Mutex<Instant>,
}

/// Until when a failed server is not started again.
struct RestartDelay {
    backoff: Backoff,
    until: Option<Instant>,
}

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The longest delay that a caller waits out; with more to wait, the call fails at once.
const MAX_BACKOFF_WAIT: Duration = Duration::from_secs(2);
/// A channel that lasted this long resets the delay.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// How long a new session waits for an old channel to end, when all slots are taken.
const SLOT_WAIT: Duration = Duration::from_secs(6);

impl Channels {
    pub fn new(config: &ServerConfig, connector: ChannelConnector, timeouts: Timeouts, allowed_requests: ClientRequests) -> Self {
        Self {
            connector,
            supervisor: Supervisor {
                server: config.name.clone(),
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
                // One more, for Guardian's own channel.
                slots: Arc::new(Semaphore::new(
                    config.max_sessions.saturating_add(1).min(Semaphore::MAX_PERMITS),
                )),
                restart_delay: Arc::default(),
            },
            shared: !config.per_session,
            most: config.max_sessions,
            idle: config.session_idle.0,
            timeouts,
            allowed_requests,
            sessions: Arc::default(),
            control: Mutex::default(),
        }
    }

    /// Sends a cleared call and returns the server's answer, or why there is none.
    pub async fn forward(
        &self,
        server: &Upstream,
        call: &Call,
        headers: &ForwardHeaders,
        mut outcome: OutcomeGuard,
    ) -> Result<Answer, ForwardError> {
        if call.method == Method::Initialize {
            let opened = self.initialize(server, call, headers, &mut outcome).await;
            return opened.inspect_err(|error| outcome.failed(error));
        }
        let entry = match &headers.session {
            None => Err(StatusCode::BAD_REQUEST),
            Some(id) => self.sessions.find(id.as_str()).ok_or(StatusCode::NOT_FOUND),
        };
        let entry = match entry {
            Ok(entry) => entry,
            Err(status) => {
                outcome.done(call.id.is_some().then_some(true));
                return Ok(Answer::Empty { status });
            }
        };
        entry.touch();
        if call.method == Method::EndSession {
            self.sessions.end(&entry.name);
            outcome.done(None);
            return Ok(Answer::Empty { status: StatusCode::OK });
        }
        if self.shared
            && let (Method::Unsubscribe | Method::SetLevel, Some(id)) = (call.method, &call.id)
        {
            // Answered locally, because the process would apply it to all sessions: others keep their resource
            // subscriptions, and log messages reach no session of a shared process.
            let taken = mcp::result(id, json!({}));
            let heard = mcp::parse_server_message(&taken, id);
            return server.json_answer(StatusCode::OK, taken, heard, call, None, &mut outcome);
        }
        let channel = match self.channel_of(&entry).await {
            Ok(channel) => channel,
            Err(error) => {
                outcome.failed(&error);
                return Err(error);
            }
        };
        match (&call.id, call.method) {
            (Some(_), _) => self.request(server, call, &entry, &channel, outcome).await,
            (None, Method::OpenStream) => {
                let receiver = entry.push_buffer.open();
                Ok(Answer::Stream(EventStream::over_channel(
                    receiver,
                    self.stream_rules(call, &channel),
                    outcome,
                )))
            }
            (None, _) => {
                let told = timeout(self.timeouts.first_byte, self.notify(call, &entry, &channel)).await;
                let late = |_| Err(ForwardError::timeout("the server did not take the message in time"));
                if let Err(error) = told.unwrap_or_else(late) {
                    outcome.failed(&error);
                    return Err(error);
                }
                outcome.done(None);
                let status = StatusCode::ACCEPTED;
                Ok(Answer::Empty { status })
            }
        }
    }

    /// Guardian's own channel, opened if there is none, and the server's `initialize` result.
    pub async fn shared_control_channel(&self) -> Result<(Arc<MuxChannel>, Value), ForwardError> {
        let ControlChannel {
            channel,
            server_info: hello,
            ..
        } = self.control_channel().await?;
        Ok((channel, hello))
    }

    /// Ends sessions that were idle too long or whose channel is gone.
    pub fn sweep(&self) {
        let seats: Vec<_> = self.sessions.map().values().cloned().collect();
        for entry in seats {
            if self.is_busy(&entry) {
                entry.touch();
            }
            if entry.is_gone() || entry.unused() > self.idle {
                self.sessions.end(&entry.name);
            }
        }
    }

    /// Ends all channels and opens no more.
    pub fn stop(&self) {
        self.supervisor.stop.cancel();
        self.supervisor.tasks.close();
    }

    /// Waits until all channels have ended.
    pub async fn stopped(&self) {
        self.supervisor.tasks.wait().await;
    }

    /// Sends a request. The answer is a single message, or a stream if another message comes first.
    async fn request(
        &self,
        server: &Upstream,
        call: &Call,
        entry: &SessionEntry,
        channel: &Arc<MuxChannel>,
        mut outcome: OutcomeGuard,
    ) -> Result<Answer, ForwardError> {
        let first = async {
            let mut receiver = channel.request(&entry.name, call.method, &call.body).await?;
            let first = timeout(self.timeouts.first_byte, receiver.next()).await;
            let Ok(first) = first else {
                receiver.give_up();
                return Err(ForwardError::timeout("the server did not answer in time"));
            };
            let first = first.unwrap_or_else(|| Err(ForwardError::bad_response("the server is gone")))?;
            Ok((receiver, first))
        };
        let sent = timeout(self.timeouts.first_byte.saturating_mul(2), first).await;
        let late = |_| Err(ForwardError::timeout("the server did not take the request in time"));
        let read = match sent.unwrap_or_else(late) {
            Ok((mut receiver, first)) => match self.as_answer(server, call, &first, &mut outcome) {
                Some(answer) => answer,
                None => {
                    receiver.unread(first);
                    return Ok(Answer::Stream(EventStream::over_channel(
                        receiver,
                        self.stream_rules(call, channel),
                        outcome,
                    )));
                }
            },
            Err(error) => Err(error),
        };
        read.inspect_err(|error| outcome.failed(error))
    }

    /// Sends a message that has no answer.
    async fn notify(&self, call: &Call, entry: &SessionEntry, channel: &Arc<MuxChannel>) -> Result<(), ForwardError> {
        let wire = mcp::read_routing(&call.body).map_err(|malformed| ForwardError::bad_response(malformed.detail))?;
        match &wire.kind {
            _ if wire.cancelled_request.is_some() => channel.cancel(&entry.name, &call.body).await,
            // Guardian has already sent it to the shared process.
            mcp::JsonRpcKind::Notification(method) if self.shared && method == "notifications/initialized" => Ok(()),
            _ => channel.notify(call.body.clone()).await,
        }
    }

    /// Reads `message` as the answer to `call`; `None` if it is another message, which then begins a stream.
    fn as_answer(
        &self,
        server: &Upstream,
        call: &Call,
        message: &Bytes,
        outcome: &mut OutcomeGuard,
    ) -> Option<Result<Answer, ForwardError>> {
        let heard = mcp::parse_server_message(message, call.id.as_ref()?);
        match heard.0 {
            MessageKind::Result { .. } | MessageKind::Error { .. } => {
                outcome.bytes = message.len() as u64;
                Some(server.json_answer(StatusCode::OK, message.clone(), heard, call, None, outcome))
            }
            MessageKind::OtherResponse
            | MessageKind::ServerRequest
            | MessageKind::ServerNotification
            | MessageKind::Malformed(_) => None,
        }
    }

    /// The rules for the stream that answers this call.
    fn stream_rules(&self, call: &Call, channel: &Arc<MuxChannel>) -> StreamRules {
        StreamRules {
            id: call.id.clone(),
            era: Era::Legacy,
            method: call.method,
            allowed_requests: self.allowed_requests,
            denials: Some(Box::new(DenialSender::over_channel(channel.clone()))),
            max_event: self.timeouts.max_event,
            idle: (!call.method.is_stream()).then_some(self.timeouts.idle),
        }
    }

    /// Opens a session. Whatever fails, the session and its channel are ended again.
    async fn initialize(
        &self,
        server: &Upstream,
        call: &Call,
        headers: &ForwardHeaders,
        outcome: &mut OutcomeGuard,
    ) -> Result<Answer, ForwardError> {
        let owner = headers
            .owner
            .clone()
            .ok_or_else(|| ForwardError::bad_response("a session is somebody's"))?;
        let arriving = PendingSession {
            channels: self,
            seat: Some(self.reserve_session(owner)?),
        };
        let entry = arriving.seat.clone().expect("it has just arrived");
        let body = if self.shared {
            self.initialize_shared(call).await?
        } else {
            let channel = self.open(UnsolicitedRouting::Session(entry.push_buffer.clone())).await?;
            let channel = entry.channel.get_or_init(|| channel);
            let late = |_| Err(ForwardError::timeout("the server took too long to open a session"));
            let answer = async {
                let mut receiver = channel.request(&entry.name, call.method, &call.body).await?;
                receiver
                    .next()
                    .await
                    .unwrap_or_else(|| Err(ForwardError::bad_response("the server is gone")))
            };
            timeout(self.timeouts.first_byte, answer).await.unwrap_or_else(late)?
        };
        let id = call
            .id
            .as_ref()
            .ok_or_else(|| ForwardError::bad_response("a request without an id"))?;
        let heard = mcp::parse_server_message(&body, id);
        let name = UpstreamSessionId::parse(&entry.name).ok_or_else(|| ForwardError::bad_response("a session has a name"))?;
        outcome.bytes = body.len() as u64;
        let answer = server.json_answer(StatusCode::OK, body, heard, call, Some(SessionField::Id(name)), outcome)?;
        if matches!(&answer, Answer::Json { opened: Some(_), .. }) {
            arriving.stay();
        }
        Ok(answer)
    }

    /// Answers `initialize` for a shared process: with the server's own result, in the older of its version and the
    /// client's.
    async fn initialize_shared(&self, call: &Call) -> Result<Bytes, ForwardError> {
        let ControlChannel {
            version,
            server_info: mut hello,
            ..
        } = self.control_channel().await?;
        let asked: Value = serde_json::from_slice(&call.body).unwrap_or_default();
        let asked = asked["params"]["protocolVersion"].as_str().and_then(ProtocolVersion::parse);
        let version = asked.map_or(version, |asked| asked.min(version));
        hello["protocolVersion"] = version.as_str().into();
        let id = call
            .id
            .as_ref()
            .ok_or_else(|| ForwardError::bad_response("a request without an id"))?;
        Ok(mcp::result(id, hello))
    }

    /// Guardian's own channel; concurrent callers share one attempt to open it.
    async fn control_channel(&self) -> Result<ControlChannel, ForwardError> {
        let cell = {
            let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
            if control.get().is_some_and(|control| control.channel.is_gone()) {
                *control = Arc::default();
            }
            control.clone()
        };
        cell.get_or_try_init(|| self.open_control_channel()).await.cloned()
    }

    async fn open_control_channel(&self) -> Result<ControlChannel, ForwardError> {
        let routing = if self.shared {
            UnsolicitedRouting::AllSessions(self.sessions.clone())
        } else {
            UnsolicitedRouting::Drop
        };
        let link = CloseOnDrop(Some(self.open(routing).await?));
        let own = link.0.clone().expect("it was just opened");
        let params = json!({
            "protocolVersion": ProtocolVersion::V20251125.as_str(),
            "capabilities": {},
            "clientInfo": { "name": "neural-guardian", "version": env!("CARGO_PKG_VERSION") },
        });
        let hello = match own
            .request_for_guardian("initialize", &params, self.timeouts.first_byte)
            .await?
        {
            ControlReply::Result(hello) => hello,
            ControlReply::Error { code, .. } => {
                return Err(ForwardError::bad_response(format!(
                    "the server refuses `initialize` ({code})"
                )));
            }
            ControlReply::Nothing => return Err(ForwardError::bad_response("the server does not answer `initialize`")),
        };
        let version = hello["protocolVersion"].as_str().and_then(ProtocolVersion::parse);
        let version = version
            .filter(|version| version.era() == Era::Legacy)
            .ok_or_else(|| ForwardError::bad_response("the server chose a protocol version that is not spoken here"))?;
        let initialized = Bytes::from_static(br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
        own.notify(initialized).await?;
        link.stay();
        Ok(ControlChannel {
            channel: own,
            version,
            server_info: hello,
        })
    }

    /// The channel of a session: its own, or that of the shared process.
    async fn channel_of(&self, entry: &SessionEntry) -> Result<Arc<MuxChannel>, ForwardError> {
        match entry.channel.get() {
            Some(channel) => Ok(channel.clone()),
            None => Ok(self.control_channel().await?.channel),
        }
    }

    /// Opens a channel, after the delay and once a slot is free.
    async fn open(&self, routing: UnsolicitedRouting) -> Result<Arc<MuxChannel>, ForwardError> {
        let unreachable = |detail: String| ForwardError {
            may_have_run: false,
            ..ForwardError::after_sending(Reason::UpstreamUnreachable, detail)
        };
        let wait = self.supervisor.wait();
        if wait > MAX_BACKOFF_WAIT {
            let detail = format!("it keeps ending, and is tried again in {} s", wait.as_secs().max(1));
            return Err(unreachable(detail));
        }
        sleep(wait).await;
        let place = timeout(SLOT_WAIT, self.supervisor.slots.clone().acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            return Err(too_many_sessions());
        };
        if self.supervisor.stop.is_cancelled() {
            return Err(unreachable("Guardian is stopping".to_owned()));
        }
        let lease = ChannelLease {
            supervisor: self.supervisor.clone(),
            since: Instant::now(),
            _slot: place,
        };
        let opened = match &self.connector {
            ChannelConnector::Program(program) => program.start(routing, self.allowed_requests, self.timeouts.max_answer, lease),
            ChannelConnector::LegacySse(endpoint) => {
                legacy_sse::open_channel(endpoint, routing, self.allowed_requests, self.timeouts.max_event, lease).await
            }
        };
        opened.inspect_err(|_| self.supervisor.failed())
    }

    /// Creates the entry of a new session. A caller with half of all sessions, or anyone when there are no more, gives
    /// up the least recently used idle session of its own; without one, the call is refused.
    fn reserve_session(&self, owner: HandleOwner) -> Result<Arc<SessionEntry>, ForwardError> {
        let mut seats = self.sessions.map();
        seats.retain(|_, entry| !entry.is_gone());
        let own: Vec<_> = seats.values().filter(|entry| entry.owner == owner).cloned().collect();
        if own.len() >= self.most.div_ceil(2) || seats.len() >= self.most {
            let unused = own
                .into_iter()
                .filter(|entry| !self.is_busy(entry))
                .max_by_key(|entry| entry.unused());
            let unused = unused.ok_or_else(too_many_sessions)?;
            seats.remove(&unused.name);
            unused.end();
        }
        let entry = Arc::new(SessionEntry {
            name: uuid::Uuid::new_v4().simple().to_string().into(),
            owner,
            push_buffer: Arc::default(),
            channel: OnceLock::new(),
            used: Mutex::new(Instant::now()),
        });
        seats.insert(entry.name.clone(), entry.clone());
        Ok(entry)
    }

    /// Whether the session has an open GET stream or a request waiting.
    fn is_busy(&self, entry: &SessionEntry) -> bool {
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let channel = entry.channel.get().or_else(|| control.get().map(|control| &control.channel));
        entry.push_buffer.is_open() || channel.is_some_and(|channel| channel.is_busy(&entry.name))
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        self.stop();
    }
}

fn too_many_sessions() -> ForwardError {
    ForwardError {
        may_have_run: false,
        ..ForwardError::after_sending(Reason::TooManyInFlight, "it has as many sessions as it may have")
    }
}

/// A session that is being opened; dropped before `stay`, it is ended.
struct PendingSession<'a> {
    channels: &'a Channels,
    seat: Option<Arc<SessionEntry>>,
}

impl PendingSession<'_> {
    fn stay(mut self) {
        self.seat = None;
    }
}

impl Drop for PendingSession<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.seat.take() {
            self.channels.sessions.end(&entry.name);
        }
    }
}

/// A channel that is ended when dropped, unless `stay` was called.
struct CloseOnDrop(Option<Arc<MuxChannel>>);

impl CloseOnDrop {
    fn stay(mut self) {
        self.0 = None;
    }
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(channel) = self.0.take() {
            channel.end.cancel();
        }
    }
}

impl SessionEntry {
    fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How long the session was not used.
    fn unused(&self) -> Duration {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn is_gone(&self) -> bool {
        self.channel.get().is_some_and(|channel| channel.is_gone())
    }

    fn end(&self) {
        self.push_buffer.close();
        if let Some(channel) = self.channel.get() {
            channel.end.cancel();
        }
    }
}

impl SessionTable {
    fn map(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<SessionEntry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, name: &str) -> Option<Arc<SessionEntry>> {
        let entry = self.map().get(name).cloned()?;
        if entry.is_gone() {
            self.end(name);
            return None;
        }
        Some(entry)
    }

    fn end(&self, name: &str) {
        let entry = self.map().remove(name);
        if let Some(entry) = entry {
            entry.end();
        }
    }

    /// Sends to the GET stream of every session. A session without one, or with a full one, misses the message and
    /// learns of the change at its next request.
    pub fn tell_all(&self, message: &Bytes) {
        for entry in self.map().values() {
            entry.push_buffer.put(message.clone());
        }
    }
}

/// The lease of an open channel: its slot, and the report of how it ended.
pub(super) struct ChannelLease {
    pub supervisor: Supervisor,
    since: Instant,
    _slot: OwnedSemaphorePermit,
}

impl ChannelLease {
    /// A token that ends this channel; `stop` ends all of them.
    pub fn end(&self) -> CancellationToken {
        self.supervisor.stop.child_token()
    }

    /// Reports that the channel ended without being told to. It counts as a failure of the server, except for a
    /// session's own channel that has answered once: there the caller's own doing often ends it, and other sessions
    /// must not be delayed.
    pub fn note_failure(&self, channel: &MuxChannel) {
        if self.since.elapsed() >= STABLE_AFTER {
            *self.supervisor.restart_delay() = RestartDelay::default();
        }
        if !(channel.is_private() && channel.has_answered()) {
            self.supervisor.failed();
        }
    }
}

impl Supervisor {
    fn wait(&self) -> Duration {
        self.restart_delay().wait(Instant::now())
    }

    fn failed(&self) {
        self.restart_delay().failed(Instant::now());
    }

    fn restart_delay(&self) -> MutexGuard<'_, RestartDelay> {
        self.restart_delay.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for RestartDelay {
    fn default() -> Self {
        Self {
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
            until: None,
        }
    }
}

impl RestartDelay {
    fn failed(&mut self, now: Instant) {
        self.until = Some(now + self.backoff.failed());
    }

    fn wait(&self, now: Instant) -> Duration {
        self.until
            .map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_doubles_the_wait_up_to_a_bound() {
        let (now, mut restart_delay) = (Instant::now(), RestartDelay::default());
        assert_eq!(restart_delay.wait(now), Duration::ZERO);
        let mut waits = Vec::new();
        for _ in 0..40 {
            restart_delay.failed(now);
            waits.push(restart_delay.wait(now).as_millis());
        }
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[39], LONGEST_WAIT.as_millis());
        assert!(waits.is_sorted());
        assert_eq!(restart_delay.wait(now + LONGEST_WAIT), Duration::ZERO);
    }
}
