//! Servers reached over persistent channels: a stdio process or an event stream for each session, or one process that
//! all sessions share. A session has a random id that leads to its channel on this instance only; when the channel
//! ends, so does the session.

use super::asks::Refusals;
use super::events;
use super::failed::Failed;
use super::forward::{Answer, ForwardHeads, SessionField};
use super::handles::Holder;
use super::inbox::Mailbox;
use super::keys::UpstreamSessionId;
use super::link::{Heard, Link};
use super::outcome::Open;
use super::server::{Endpoint, Patience, Upstream};
use super::speak::Said;
use super::stdio::Program;
use super::stream::{Expected, Frames};
use crate::config::ServerConfig;
use crate::domain::{Call, ClientRequests, Era, Method, ProtocolVersion, Reason, ServerName};
use crate::mcp::{self, MessageKind};
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
pub(super) struct Links {
    door: Door,
    /// What outlives a single channel.
    pub keep: Keep,
    /// Whether one process serves all sessions.
    shared: bool,
    /// The most sessions at once.
    most: usize,
    idle: Duration,
    patience: Patience,
    asks: ClientRequests,
    seats: Arc<Seats>,
    /// The channel that Guardian uses for its own requests; a shared process has only this one.
    own: Mutex<Arc<OnceCell<Own>>>,
}

/// How a channel is opened.
pub(super) enum Door {
    Program(Program),
    Events(Arc<Endpoint>),
}

/// The state of a server that outlives its channels.
#[derive(Clone)]
pub(super) struct Keep {
    pub server: ServerName,
    pub tasks: TaskTracker,
    stop: CancellationToken,
    /// Limits the open channels.
    places: Arc<Semaphore>,
    backoff: Arc<Mutex<Backoff>>,
}

/// A channel on which Guardian itself has sent `initialize`.
#[derive(Clone)]
struct Own {
    link: Arc<Link>,
    version: ProtocolVersion,
    /// The server's `initialize` result.
    hello: Value,
}

/// The sessions on this instance, by id.
#[derive(Default)]
pub(super) struct Seats(Mutex<HashMap<Arc<str>, Arc<Seat>>>);

struct Seat {
    name: Arc<str>,
    holder: Holder,
    /// The messages for the session's GET stream.
    mail: Arc<Mailbox>,
    /// The session's own channel; unset if the process is shared.
    link: OnceLock<Arc<Link>>,
    /// When the session was last used.
    used: Mutex<Instant>,
}

/// Exponential delay before a failed server is started again.
#[derive(Default)]
struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The longest delay that a caller waits out; with more to wait, the call fails at once.
const WAITED_FOR: Duration = Duration::from_secs(2);
/// A channel that lasted this long resets the delay.
const LASTED: Duration = Duration::from_secs(60);
/// How long a new session waits for an old channel to end, when all slots are taken.
const FOR_A_PLACE: Duration = Duration::from_secs(6);

impl Links {
    pub fn new(config: &ServerConfig, door: Door, patience: Patience, asks: ClientRequests) -> Self {
        Self {
            door,
            keep: Keep {
                server: config.name.clone(),
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
                // One more, for Guardian's own channel.
                places: Arc::new(Semaphore::new(
                    config.max_sessions.saturating_add(1).min(Semaphore::MAX_PERMITS),
                )),
                backoff: Arc::default(),
            },
            shared: !config.per_session,
            most: config.max_sessions,
            idle: config.session_idle.0,
            patience,
            asks,
            seats: Arc::default(),
            own: Mutex::default(),
        }
    }

    /// Sends a cleared call and returns the server's answer, or why there is none.
    pub async fn forward(
        &self,
        server: &Upstream,
        call: &Call,
        heads: &ForwardHeads,
        mut outcome: Open,
    ) -> Result<Answer, Failed> {
        if call.method == Method::Initialize {
            let opened = self.initialize(server, call, heads, &mut outcome).await;
            return opened.inspect_err(|failed| outcome.failed(failed));
        }
        let seat = match &heads.session {
            None => Err(StatusCode::BAD_REQUEST),
            Some(id) => self.seats.find(id.as_str()).ok_or(StatusCode::NOT_FOUND),
        };
        let seat = match seat {
            Ok(seat) => seat,
            Err(status) => {
                outcome.done(call.id.is_some().then_some(true));
                return Ok(Answer::Empty { status });
            }
        };
        seat.touch();
        if call.method == Method::EndSession {
            self.seats.end(&seat.name);
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
            return server.whole_answer(StatusCode::OK, taken, heard, call, None, &mut outcome);
        }
        let link = match self.link_of(&seat).await {
            Ok(link) => link,
            Err(failed) => {
                outcome.failed(&failed);
                return Err(failed);
            }
        };
        match (&call.id, call.method) {
            (Some(_), _) => self.ask(server, call, &seat, &link, outcome).await,
            (None, Method::OpenStream) => {
                let inbox = seat.mail.open();
                Ok(Answer::Stream(Frames::linked(inbox, self.expected(call, &link), outcome)))
            }
            (None, _) => {
                let told = timeout(self.patience.first_byte, self.tell(call, &seat, &link)).await;
                let late = |_| Err(Failed::late("the server did not take the message in time"));
                if let Err(failed) = told.unwrap_or_else(late) {
                    outcome.failed(&failed);
                    return Err(failed);
                }
                outcome.done(None);
                let status = StatusCode::ACCEPTED;
                Ok(Answer::Empty { status })
            }
        }
    }

    /// Guardian's own channel, opened if there is none, and the server's `initialize` result.
    pub async fn own_link(&self) -> Result<(Arc<Link>, Value), Failed> {
        let Own { link, hello, .. } = self.own().await?;
        Ok((link, hello))
    }

    /// Ends sessions that were idle too long or whose channel is gone.
    pub fn sweep(&self) {
        let seats: Vec<_> = self.seats.map().values().cloned().collect();
        for seat in seats {
            if self.is_busy(&seat) {
                seat.touch();
            }
            if seat.is_gone() || seat.unused() > self.idle {
                self.seats.end(&seat.name);
            }
        }
    }

    /// Ends all channels and opens no more.
    pub fn stop(&self) {
        self.keep.stop.cancel();
        self.keep.tasks.close();
    }

    /// Waits until all channels have ended.
    pub async fn stopped(&self) {
        self.keep.tasks.wait().await;
    }

    /// Sends a request. The answer is a single message, or a stream if another message comes first.
    async fn ask(
        &self,
        server: &Upstream,
        call: &Call,
        seat: &Seat,
        link: &Arc<Link>,
        mut outcome: Open,
    ) -> Result<Answer, Failed> {
        let first = async {
            let mut inbox = link.request(&seat.name, call.method, &call.body).await?;
            let first = timeout(self.patience.first_byte, inbox.next()).await;
            let Ok(first) = first else {
                inbox.give_up();
                return Err(Failed::late("the server did not answer in time"));
            };
            let first = first.unwrap_or_else(|| Err(Failed::broken("the server is gone")))?;
            Ok((inbox, first))
        };
        let sent = timeout(self.patience.first_byte.saturating_mul(2), first).await;
        let late = |_| Err(Failed::late("the server did not take the request in time"));
        let read = match sent.unwrap_or_else(late) {
            Ok((mut inbox, first)) => match self.whole(server, call, &first, &mut outcome) {
                Some(answer) => answer,
                None => {
                    inbox.give_back(first);
                    return Ok(Answer::Stream(Frames::linked(inbox, self.expected(call, link), outcome)));
                }
            },
            Err(failed) => Err(failed),
        };
        read.inspect_err(|failed| outcome.failed(failed))
    }

    /// Sends a message that has no answer.
    async fn tell(&self, call: &Call, seat: &Seat, link: &Arc<Link>) -> Result<(), Failed> {
        let wire = mcp::read_routing(&call.body).map_err(|malformed| Failed::broken(malformed.detail))?;
        match &wire.kind {
            _ if wire.cancelled_request.is_some() => link.cancel(&seat.name, &call.body).await,
            // Guardian has already sent it to the shared process.
            mcp::JsonRpcKind::Notification(method) if self.shared && method == "notifications/initialized" => Ok(()),
            _ => link.say(call.body.clone()).await,
        }
    }

    /// Reads `message` as the answer to `call`; `None` if it is another message, which then begins a stream.
    fn whole(&self, server: &Upstream, call: &Call, message: &Bytes, outcome: &mut Open) -> Option<Result<Answer, Failed>> {
        let heard = mcp::parse_server_message(message, call.id.as_ref()?);
        match heard.0 {
            MessageKind::Result { .. } | MessageKind::Error { .. } => {
                outcome.bytes = message.len() as u64;
                Some(server.whole_answer(StatusCode::OK, message.clone(), heard, call, None, outcome))
            }
            MessageKind::OtherResponse
            | MessageKind::ServerRequest
            | MessageKind::ServerNotification
            | MessageKind::Malformed(_) => None,
        }
    }

    /// The rules for the stream that answers this call.
    fn expected(&self, call: &Call, link: &Arc<Link>) -> Expected {
        Expected {
            id: call.id.clone(),
            era: Era::Legacy,
            method: call.method,
            asks: self.asks,
            refusals: Some(Box::new(Refusals::over(link.clone()))),
            max_event: self.patience.max_event,
            idle: (!call.method.is_stream()).then_some(self.patience.idle),
        }
    }

    /// Opens a session. Whatever fails, the session and its channel are ended again.
    async fn initialize(
        &self,
        server: &Upstream,
        call: &Call,
        heads: &ForwardHeads,
        outcome: &mut Open,
    ) -> Result<Answer, Failed> {
        let holder = heads
            .holder
            .clone()
            .ok_or_else(|| Failed::broken("a session is somebody's"))?;
        let arriving = Arriving {
            links: self,
            seat: Some(self.take_seat(holder)?),
        };
        let seat = arriving.seat.clone().expect("it has just arrived");
        let body = if self.shared {
            self.introduce(call).await?
        } else {
            let link = self.open(Heard::One(seat.mail.clone())).await?;
            let link = seat.link.get_or_init(|| link);
            let late = |_| Err(Failed::late("the server took too long to open a session"));
            let answer = async {
                let mut inbox = link.request(&seat.name, call.method, &call.body).await?;
                inbox
                    .next()
                    .await
                    .unwrap_or_else(|| Err(Failed::broken("the server is gone")))
            };
            timeout(self.patience.first_byte, answer).await.unwrap_or_else(late)?
        };
        let id = call.id.as_ref().ok_or_else(|| Failed::broken("a request without an id"))?;
        let heard = mcp::parse_server_message(&body, id);
        let name = UpstreamSessionId::parse(&seat.name).ok_or_else(|| Failed::broken("a session has a name"))?;
        outcome.bytes = body.len() as u64;
        let answer = server.whole_answer(StatusCode::OK, body, heard, call, Some(SessionField::Id(name)), outcome)?;
        if matches!(&answer, Answer::Json { opened: Some(_), .. }) {
            arriving.stay();
        }
        Ok(answer)
    }

    /// Answers `initialize` for a shared process: with the server's own result, in the older of its version and the
    /// client's.
    async fn introduce(&self, call: &Call) -> Result<Bytes, Failed> {
        let Own { version, mut hello, .. } = self.own().await?;
        let asked: Value = serde_json::from_slice(&call.body).unwrap_or_default();
        let asked = asked["params"]["protocolVersion"].as_str().and_then(ProtocolVersion::parse);
        let version = asked.map_or(version, |asked| asked.min(version));
        hello["protocolVersion"] = version.as_str().into();
        let id = call.id.as_ref().ok_or_else(|| Failed::broken("a request without an id"))?;
        Ok(mcp::result(id, hello))
    }

    /// Guardian's own channel; concurrent callers share one attempt to open it.
    async fn own(&self) -> Result<Own, Failed> {
        let cell = {
            let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            if own.get().is_some_and(|own| own.link.is_gone()) {
                *own = Arc::default();
            }
            own.clone()
        };
        cell.get_or_try_init(|| self.introduced()).await.cloned()
    }

    async fn introduced(&self) -> Result<Own, Failed> {
        let heard = if self.shared {
            Heard::All(self.seats.clone())
        } else {
            Heard::Nobody
        };
        let link = Ending(Some(self.open(heard).await?));
        let own = link.0.clone().expect("it was just opened");
        let params = json!({
            "protocolVersion": ProtocolVersion::V20251125.as_str(),
            "capabilities": {},
            "clientInfo": { "name": "neural-guardian", "version": env!("CARGO_PKG_VERSION") },
        });
        let hello = match own.ask("initialize", &params, self.patience.first_byte).await? {
            Said::Result(hello) => hello,
            Said::Error { code, .. } => return Err(Failed::broken(format!("the server refuses `initialize` ({code})"))),
            Said::Nothing => return Err(Failed::broken("the server does not answer `initialize`")),
        };
        let version = hello["protocolVersion"].as_str().and_then(ProtocolVersion::parse);
        let version = version
            .filter(|version| version.era() == Era::Legacy)
            .ok_or_else(|| Failed::broken("the server chose a protocol version that is not spoken here"))?;
        let initialized = Bytes::from_static(br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
        own.say(initialized).await?;
        link.stay();
        Ok(Own {
            link: own,
            version,
            hello,
        })
    }

    /// The channel of a session: its own, or that of the shared process.
    async fn link_of(&self, seat: &Seat) -> Result<Arc<Link>, Failed> {
        match seat.link.get() {
            Some(link) => Ok(link.clone()),
            None => Ok(self.own().await?.link),
        }
    }

    /// Opens a channel, after the delay and once a slot is free.
    async fn open(&self, heard: Heard) -> Result<Arc<Link>, Failed> {
        let unreachable = |detail: String| Failed {
            may_have_run: false,
            ..Failed::after_sending(Reason::UpstreamUnreachable, detail)
        };
        let wait = self.keep.wait();
        if wait > WAITED_FOR {
            let detail = format!("it keeps ending, and is tried again in {} s", wait.as_secs().max(1));
            return Err(unreachable(detail));
        }
        sleep(wait).await;
        let place = timeout(FOR_A_PLACE, self.keep.places.clone().acquire_owned()).await;
        let Ok(Ok(place)) = place else { return Err(full()) };
        if self.keep.stop.is_cancelled() {
            return Err(unreachable("Guardian is stopping".to_owned()));
        }
        let begun = Begun {
            keep: self.keep.clone(),
            since: Instant::now(),
            _place: place,
        };
        let opened = match &self.door {
            Door::Program(program) => program.start(heard, self.asks, self.patience.max_answer, begun),
            Door::Events(endpoint) => events::open(endpoint, heard, self.asks, self.patience.max_event, begun).await,
        };
        opened.inspect_err(|_| self.keep.failed())
    }

    /// Creates the entry of a new session. A caller with half of all sessions, or anyone when there are no more, gives
    /// up the least recently used idle session of its own; without one, the call is refused.
    fn take_seat(&self, holder: Holder) -> Result<Arc<Seat>, Failed> {
        let mut seats = self.seats.map();
        seats.retain(|_, seat| !seat.is_gone());
        let own: Vec<_> = seats.values().filter(|seat| seat.holder == holder).cloned().collect();
        if own.len() >= self.most.div_ceil(2) || seats.len() >= self.most {
            let unused = own
                .into_iter()
                .filter(|seat| !self.is_busy(seat))
                .max_by_key(|seat| seat.unused());
            let unused = unused.ok_or_else(full)?;
            seats.remove(&unused.name);
            unused.end();
        }
        let seat = Arc::new(Seat {
            name: uuid::Uuid::new_v4().simple().to_string().into(),
            holder,
            mail: Arc::default(),
            link: OnceLock::new(),
            used: Mutex::new(Instant::now()),
        });
        seats.insert(seat.name.clone(), seat.clone());
        Ok(seat)
    }

    /// Whether the session has an open GET stream or a request waiting.
    fn is_busy(&self, seat: &Seat) -> bool {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let link = seat.link.get().or_else(|| own.get().map(|own| &own.link));
        seat.mail.is_open() || link.is_some_and(|link| link.is_busy(&seat.name))
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.stop();
    }
}

fn full() -> Failed {
    Failed {
        may_have_run: false,
        ..Failed::after_sending(Reason::TooManyInFlight, "it has as many sessions as it may have")
    }
}

/// A session that is being opened; dropped before `stay`, it is ended.
struct Arriving<'a> {
    links: &'a Links,
    seat: Option<Arc<Seat>>,
}

impl Arriving<'_> {
    fn stay(mut self) {
        self.seat = None;
    }
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        if let Some(seat) = self.seat.take() {
            self.links.seats.end(&seat.name);
        }
    }
}

/// A channel that is ended when dropped, unless `stay` was called.
struct Ending(Option<Arc<Link>>);

impl Ending {
    fn stay(mut self) {
        self.0 = None;
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(link) = self.0.take() {
            link.end.cancel();
        }
    }
}

impl Seat {
    fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How long the session was not used.
    fn unused(&self) -> Duration {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn is_gone(&self) -> bool {
        self.link.get().is_some_and(|link| link.is_gone())
    }

    fn end(&self) {
        self.mail.close();
        if let Some(link) = self.link.get() {
            link.end.cancel();
        }
    }
}

impl Seats {
    fn map(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Seat>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, name: &str) -> Option<Arc<Seat>> {
        let seat = self.map().get(name).cloned()?;
        if seat.is_gone() {
            self.end(name);
            return None;
        }
        Some(seat)
    }

    fn end(&self, name: &str) {
        let seat = self.map().remove(name);
        if let Some(seat) = seat {
            seat.end();
        }
    }

    /// Sends to the GET stream of every session. A session without one, or with a full one, misses the message and
    /// learns of the change at its next request.
    pub fn tell_all(&self, message: &Bytes) {
        for seat in self.map().values() {
            seat.mail.put(message.clone());
        }
    }
}

/// The lease of an open channel: its slot, and the report of how it ended.
pub(super) struct Begun {
    pub keep: Keep,
    since: Instant,
    _place: OwnedSemaphorePermit,
}

impl Begun {
    /// A token that ends this channel; `stop` ends all of them.
    pub fn end(&self) -> CancellationToken {
        self.keep.stop.child_token()
    }

    /// Reports that the channel ended without being told to. It counts as a failure of the server, except for a
    /// session's own channel that has answered once: there the caller's own doing often ends it, and other sessions
    /// must not be delayed.
    pub fn ended_by_itself(&self, link: &Link) {
        if self.since.elapsed() >= LASTED {
            *self.keep.backoff() = Backoff::default();
        }
        if !(link.is_private() && link.has_answered()) {
            self.keep.failed();
        }
    }
}

impl Keep {
    fn wait(&self) -> Duration {
        self.backoff().wait(Instant::now())
    }

    fn failed(&self) {
        self.backoff().failed(Instant::now());
    }

    fn backoff(&self) -> MutexGuard<'_, Backoff> {
        self.backoff.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backoff {
    /// Doubles the delay with each failure in a row, up to `LONGEST_WAIT`.
    fn failed(&mut self, now: Instant) {
        let wait = FIRST_WAIT.saturating_mul(1 << self.failures.min(16)).min(LONGEST_WAIT);
        self.failures += 1;
        self.until = Some(now + wait);
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
        let (now, mut backoff) = (Instant::now(), Backoff::default());
        assert_eq!(backoff.wait(now), Duration::ZERO);
        let mut waits = Vec::new();
        for _ in 0..40 {
            backoff.failed(now);
            waits.push(backoff.wait(now).as_millis());
        }
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[39], LONGEST_WAIT.as_millis());
        assert!(waits.is_sorted());
        assert_eq!(backoff.wait(now + LONGEST_WAIT), Duration::ZERO);
    }
}
