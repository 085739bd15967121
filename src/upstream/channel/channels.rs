//! The sessions and channels of one server that is reached over persistent channels.

use super::connector::ChannelConnector;
use super::control_channel::{ControlChannel, ControlChannelCell};
use super::mux::{MuxChannel, UnsolicitedRouting};
use super::sessions::{SessionEntry, SessionTable};
use super::supervisor::Supervisor;
use crate::config::ServerConfig;
use crate::domain::{Call, ClientRequests, Era, Method, ProtocolVersion};
use crate::mcp::{self, MessageKind};
use crate::sessions::UpstreamSessionId;
use crate::upstream::answer::{Answer, json_answer};
use crate::upstream::denial_sender::DenialSender;
use crate::upstream::forward_error::ForwardError;
use crate::upstream::http::{ForwardHeaders, SessionField};
use crate::upstream::outcome::OutcomeGuard;
use crate::upstream::stream::{EventStream, StreamRules};
use crate::upstream::timeouts::Timeouts;
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

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
            // One more, for Guardian's own channel.
            supervisor: Supervisor::new(config.name.clone(), config.max_sessions.saturating_add(1)),
            shared: !config.per_session,
            most: config.max_sessions,
            idle: config.session_idle.0,
            timeouts,
            allowed_requests,
            sessions: Arc::default(),
            control: ControlChannelCell::default(),
        }
    }

    /// Sends a cleared call and returns the server's answer, or why there is none.
    pub async fn forward(
        &self,
        call: &Call,
        headers: &ForwardHeaders,
        mut outcome: OutcomeGuard,
    ) -> Result<Answer, ForwardError> {
        if call.method == Method::Initialize {
            let opened = self.initialize(call, headers, &mut outcome).await;
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
            return json_answer(StatusCode::OK, taken, heard, call, self.allowed_requests, None, &mut outcome);
        }
        let channel = match self.channel_of(&entry).await {
            Ok(channel) => channel,
            Err(error) => {
                outcome.failed(&error);
                return Err(error);
            }
        };
        match (&call.id, call.method) {
            (Some(_), _) => self.request(call, &entry, &channel, outcome).await,
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

    /// Sends a request. The answer is a single message, or a stream if another message comes first.
    async fn request(
        &self,
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
            Ok((mut receiver, first)) => match self.as_answer(call, &first, &mut outcome) {
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
    fn as_answer(&self, call: &Call, message: &Bytes, outcome: &mut OutcomeGuard) -> Option<Result<Answer, ForwardError>> {
        let heard = mcp::parse_server_message(message, call.id.as_ref()?);
        match heard.0 {
            MessageKind::Result { .. } | MessageKind::Error { .. } => {
                outcome.bytes = message.len() as u64;
                Some(json_answer(
                    StatusCode::OK,
                    message.clone(),
                    heard,
                    call,
                    self.allowed_requests,
                    None,
                    outcome,
                ))
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
        call: &Call,
        headers: &ForwardHeaders,
        outcome: &mut OutcomeGuard,
    ) -> Result<Answer, ForwardError> {
        let owner = headers
            .owner
            .clone()
            .ok_or_else(|| ForwardError::bad_response("a session is somebody's"))?;
        let pending = self.sessions.reserve(owner, self.most, |entry| self.is_busy(entry))?;
        let entry = &pending.entry;
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
        let answer = json_answer(
            StatusCode::OK,
            body,
            heard,
            call,
            self.allowed_requests,
            Some(SessionField::Id(name)),
            outcome,
        )?;
        if matches!(&answer, Answer::Json { opened: Some(_), .. }) {
            pending.stay();
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

    async fn control_channel(&self) -> Result<ControlChannel, ForwardError> {
        let open = async {
            let sessions = self.sessions.clone();
            let routing = if self.shared {
                UnsolicitedRouting::AllSessions(Box::new(move |message| sessions.tell_all(message)))
            } else {
                UnsolicitedRouting::Drop
            };
            ControlChannel::initialize(self.open(routing).await?, self.timeouts.first_byte).await
        };
        self.control.get_or_open(open).await
    }

    /// The channel of a session: its own, or that of the shared process.
    async fn channel_of(&self, entry: &SessionEntry) -> Result<Arc<MuxChannel>, ForwardError> {
        match entry.channel.get() {
            Some(channel) => Ok(channel.clone()),
            None => Ok(self.control_channel().await?.channel),
        }
    }

    async fn open(&self, routing: UnsolicitedRouting) -> Result<Arc<MuxChannel>, ForwardError> {
        self.connector
            .open(&self.supervisor, routing, self.allowed_requests, &self.timeouts)
            .await
    }

    /// Whether the session has an open GET stream or a request waiting.
    fn is_busy(&self, entry: &SessionEntry) -> bool {
        let channel = entry.channel.get().cloned().or_else(|| self.control.get());
        entry.push_buffer.is_open() || channel.is_some_and(|channel| channel.is_busy(&entry.name))
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        self.stop();
    }
}
