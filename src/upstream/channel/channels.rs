//! The sessions and channels of one server that is reached over persistent channels.

use super::control_channel::{ControlChannel, ControlChannelCell};
use super::legacy_sse;
use super::mux::{MuxChannel, Notified, UnsolicitedRouting};
use super::queue::{ChannelMessage, QueueReceiver};
use super::sessions::{SessionEntry, SessionTable};
use super::stdio::Program;
use super::supervisor::Supervisor;
use crate::config::ServerConfig;
use crate::domain::{Call, ClientRequests, Executed, Method, ProtocolVersion};
use crate::mcp::{self, ServerMessage};
use crate::sessions::UpstreamSessionId;
use crate::upstream::delivery::{DeliveredBody, Delivery, DenialSender, EventSource};
use crate::upstream::error::ForwardError;
use crate::upstream::http::{Endpoint, ForwardHeaders};
use crate::upstream::timeouts::Timeouts;
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::DropGuard;

/// How a channel is opened.
pub enum ChannelConnector {
    Program(Program),
    LegacySse(Arc<Endpoint>),
}

/// Why Guardian answers some messages itself.
const ONE_PROGRAM: &str = "answered by Guardian, not sent: one program serves all sessions";
const KEEPS_SESSIONS: &str = "answered by Guardian, not sent: it keeps the sessions of this server itself";

/// The channels and sessions of one server.
pub struct Channels {
    connector: ChannelConnector,
    /// What outlives a single channel.
    supervisor: Supervisor,
    /// Whether one process serves all sessions.
    shared: bool,
    /// The most sessions at once.
    most: usize,
    idle: Duration,
    timeouts: Timeouts,
    allowed_requests: ClientRequests,
    sessions: Arc<SessionTable>,
    control: ControlChannelCell,
}

impl Channels {
    pub fn new(config: &ServerConfig, connector: ChannelConnector, timeouts: Timeouts, allowed_requests: ClientRequests) -> Self {
        Self {
            connector,
            // One more for Guardian's own channel, and one for its introduction with other capabilities.
            supervisor: Supervisor::new(config.name.clone(), config.max_sessions.saturating_add(2)),
            shared: !config.per_session,
            most: config.max_sessions,
            idle: config.session_idle.0,
            timeouts,
            allowed_requests,
            sessions: Arc::default(),
            control: ControlChannelCell::default(),
        }
    }

    /// Sends a call in its session and returns what the server sent.
    pub async fn exchange(&self, call: &Call, headers: &ForwardHeaders) -> Result<Delivery, ForwardError> {
        if call.method == Method::Initialize {
            return self.initialize(call, headers).await;
        }
        // The gate refuses a message without a session before this.
        let id = headers.session.as_ref();
        let Some(entry) = id.and_then(|id| self.sessions.find(id.as_str())) else {
            return Ok(Delivery::unknown_session());
        };
        entry.touch();
        if call.method == Method::EndSession {
            self.sessions.end(&entry.name);
            return Ok(Delivery::answered_here(
                StatusCode::OK,
                DeliveredBody::Nothing,
                KEEPS_SESSIONS,
            ));
        }
        if self.shared
            && let (Method::Unsubscribe | Method::SetLevel, Some(id)) = (call.method, &call.id)
        {
            // Answered locally, because the process would apply it to all sessions: others keep their resource
            // subscriptions, and log messages reach no session of a shared process.
            let taken = DeliveredBody::Message(mcp::result(id, json!({})).into());
            return Ok(Delivery::answered_here(StatusCode::OK, taken, ONE_PROGRAM));
        }
        // A failure is one of Guardian's own messages: of this one nothing was sent.
        let channel = self.channel_of(&entry).await.map_err(ForwardError::unsent)?;
        let denials = Box::new(DenialSender::over_channel(channel.clone()));
        match (&call.id, call.method) {
            (Some(_), _) => {
                let (first, rest) = self.request(call, &entry, &channel).await?;
                let messages = DeliveredBody::Messages(first, rest, denials);
                Ok(Delivery::local(StatusCode::OK, messages))
            }
            (None, Method::OpenStream) => {
                let events = EventSource::Channel(entry.push_buffer.open());
                Ok(Delivery::local(StatusCode::OK, DeliveredBody::Events(events, Some(denials))))
            }
            (None, _) => {
                let told = timeout(self.timeouts.first_byte, self.notify(call, &entry, &channel)).await;
                let told = told.unwrap_or_else(|_| Err(ForwardError::timeout("the server did not take the message in time")))?;
                let accepted = Delivery::local(StatusCode::ACCEPTED, DeliveredBody::Nothing);
                Ok(match told {
                    Notified::Taken => accepted,
                    Notified::Queued => Delivery {
                        may_be_unread: true,
                        ..accepted
                    },
                    Notified::Unsent(why) => Delivery {
                        not_sent: Some(why),
                        ..accepted
                    },
                })
            }
        }
    }

    /// Ends sessions that were idle too long or whose channel is gone.
    pub fn sweep(&self) {
        self.sessions.sweep(self.idle, |entry| self.is_busy(entry));
    }

    /// Ends all channels and opens no more.
    pub fn stop(&self) {
        self.supervisor.stop();
    }

    /// Waits until all channels have ended.
    pub async fn stopped(&self) {
        self.supervisor.tasks.wait().await;
    }

    /// Sends a request and waits for the first message that belongs to it.
    async fn request(
        &self,
        call: &Call,
        entry: &SessionEntry,
        channel: &Arc<MuxChannel>,
    ) -> Result<(ChannelMessage, QueueReceiver), ForwardError> {
        let patience = self.timeouts.first_byte;
        let sent = timeout(patience, channel.request(&entry.name, call.method, &call.body)).await;
        let unsent = |_| Err(timed_out_unsent("the server did not take the request in time"));
        let mut receiver = sent.unwrap_or_else(unsent)?;
        match timeout(patience, receiver.next()).await {
            Ok(first) => {
                let first = first.unwrap_or_else(|| Err(ForwardError::bad_response("the server is gone")))?;
                Ok((first, receiver))
            }
            Err(_) if receiver.give_up() => Err(ForwardError::timeout("the server did not answer in time")),
            Err(_) => Err(timed_out_unsent("the server did not read the request in time")),
        }
    }

    /// Sends a message that has no answer.
    async fn notify(&self, call: &Call, entry: &SessionEntry, channel: &Arc<MuxChannel>) -> Result<Notified, ForwardError> {
        let parsed = ServerMessage::parse(&call.body).map_err(|malformed| ForwardError::from(malformed).unsent())?;
        match parsed.method.as_deref() {
            Some("notifications/cancelled") => channel.cancel(&entry.name, &call.body, &parsed).await,
            // Guardian has already sent it to the shared process.
            Some("notifications/initialized") if self.shared => Ok(Notified::Unsent(ONE_PROGRAM)),
            _ => channel.notify(call.body.clone()).await,
        }
    }

    /// Opens a session. If its answer does not open it, the session and its channel are ended again.
    async fn initialize(&self, call: &Call, headers: &ForwardHeaders) -> Result<Delivery, ForwardError> {
        let owner = headers
            .owner
            .clone()
            .ok_or_else(|| ForwardError::bad_response("a session is somebody's").unsent())?;
        let pending = self.sessions.reserve(owner, self.most, |entry| self.is_busy(entry))?;
        let entry = &pending.entry;
        let body = if self.shared {
            self.initialize_shared(call).await.map_err(ForwardError::unsent)?.into()
        } else {
            let routing = UnsolicitedRouting::Session(entry.push_buffer.clone());
            let channel = self.open(routing).await.map_err(ForwardError::unsent)?;
            let channel = entry.channel.get_or_init(|| channel);
            let answer = async {
                let mut receiver = channel.request(&entry.name, call.method, &call.body).await?;
                let first = receiver.next().await;
                first.unwrap_or_else(|| Err(ForwardError::bad_response("the server is gone")))
            };
            let late = |_| {
                Err(ForwardError {
                    last_lines: channel.last_lines(),
                    ..ForwardError::timeout("the server took too long to open a session")
                })
            };
            timeout(self.timeouts.first_byte, answer).await.unwrap_or_else(late)?
        };
        let name = UpstreamSessionId::parse(&entry.name).ok_or_else(|| ForwardError::bad_response("a session has a name"))?;
        Ok(Delivery {
            session: Ok(Some(name)),
            pending_session: Some(pending),
            not_sent: self.shared.then_some(ONE_PROGRAM),
            ..Delivery::local(StatusCode::OK, DeliveredBody::Message(body))
        })
    }

    /// Answers `initialize` for a shared process: with the server's own result, in the older of its version and the
    /// client's.
    async fn initialize_shared(&self, call: &Call) -> Result<Bytes, ForwardError> {
        let ControlChannel {
            version,
            mut server_info,
            ..
        } = self.control_channel().await?;
        let asked: Value = serde_json::from_slice(&call.body).unwrap_or_default();
        let asked = asked["params"]["protocolVersion"].as_str().and_then(ProtocolVersion::parse);
        let version = asked.map_or(version, |asked| asked.min(version));
        server_info["protocolVersion"] = version.as_str().into();
        let id = call
            .id
            .as_ref()
            .ok_or_else(|| ForwardError::bad_response("a request without an id"))?;
        Ok(mcp::result(id, server_info))
    }

    /// A text of the server without the secrets that it was started with.
    pub fn without_secrets(&self, text: &str) -> String {
        match &self.connector {
            ChannelConnector::Program(program) => program.without_secrets(text),
            ChannelConnector::LegacySse(_) => text.to_owned(),
        }
    }

    /// Guardian's own channel, opened if there is none.
    pub async fn control_channel(&self) -> Result<ControlChannel, ForwardError> {
        let open = async {
            let sessions = self.sessions.clone();
            let routing = if self.shared {
                UnsolicitedRouting::AllSessions(Box::new(move |message| sessions.tell_all(message)))
            } else {
                UnsolicitedRouting::Drop
            };
            // A shared process may request nothing: its configuration lists no requests.
            let channel = self.open(routing).await?;
            ControlChannel::initialize(channel, self.allowed_requests, self.timeouts.first_byte).await
        };
        self.control.get_or_open(open).await
    }

    /// A channel on which Guardian introduces itself as a client that answers these requests. It ends with the guard.
    pub async fn introduce(&self, requests: ClientRequests) -> Result<(ControlChannel, DropGuard), ForwardError> {
        let channel = self.open(UnsolicitedRouting::DropProbe).await?;
        let guard = channel.end.clone().drop_guard();
        let control = ControlChannel::initialize(channel, requests, self.timeouts.first_byte).await?;
        Ok((control, guard))
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
        let lease = self.supervisor.lease().await?;
        let (allowed, timeouts) = (self.allowed_requests, &self.timeouts);
        let opened = match &self.connector {
            ChannelConnector::Program(program) => program.start(routing, allowed, timeouts.max_answer, lease),
            ChannelConnector::LegacySse(endpoint) => {
                legacy_sse::open_channel(endpoint, routing, allowed, timeouts.max_event, lease).await
            }
        };
        opened.inspect_err(|error| self.supervisor.failed(error))
    }

    /// Whether the session has an open GET stream or a request waiting.
    fn is_busy(&self, entry: &SessionEntry) -> bool {
        let channel = entry.channel.get().cloned().or_else(|| self.control.get());
        entry.push_buffer.is_open() || channel.is_some_and(|channel| channel.is_busy(&entry.name))
    }
}

/// A time limit was exceeded before anything was sent.
fn timed_out_unsent(detail: &str) -> ForwardError {
    ForwardError {
        executed: Executed::No,
        ..ForwardError::timeout(detail)
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        self.stop();
    }
}
