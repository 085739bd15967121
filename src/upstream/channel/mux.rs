//! A JSON-RPC multiplexer over one persistent channel. Each request gets its own id and progress token on the channel,
//! so requests of different callers never collide. A message from the server goes to the request or session it belongs
//! to, with the caller's original id and token restored, or to nobody.

use super::legacy_sse::PostEndpoint;
use super::queue::{ChannelMessage, PushBuffer, QueueReceiver, QueueSender, queue};
use super::stderr::LastLines;
use crate::config::HumanDuration;
use crate::domain::{ClientRequests, CutBy, MessageId, Method, Reason};
use crate::mcp::{self, Edits, JsonRpcKind, JsonSpan, MessageKind, ServerMessage, replace_value};
use crate::upstream::client_requests::is_allowed;
use crate::upstream::control_reply::{ControlReply, parse_control_reply};
use crate::upstream::error::ForwardError;
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// One open channel.
pub struct MuxChannel {
    sink: Sink,
    routing: UnsolicitedRouting,
    allowed_requests: ClientRequests,
    state: Mutex<MuxState>,
    /// Counts received lines that were not MCP messages.
    non_message_lines: AtomicU64,
    /// Ends the channel when cancelled.
    pub end: CancellationToken,
}

/// The write side.
pub enum Sink {
    /// The standard input of a process, one message a line, and what it last wrote to its standard error.
    Lines(mpsc::Sender<Outbound>, Arc<LastLines>),
    /// The POST endpoint of the legacy HTTP+SSE transport.
    LegacySse(PostEndpoint),
}

/// A message on its way to a process.
pub struct Outbound {
    /// The number of a request.
    pub request: Option<u64>,
    pub text: Bytes,
}

/// Who gets messages that belong to no request.
pub enum UnsolicitedRouting {
    /// The one session that owns the channel.
    Session(Arc<PushBuffer>),
    /// All sessions get list and resource change notifications. Nobody gets the rest, because it may be about one
    /// caller.
    AllSessions(Broadcast),
    /// Nobody: the channel is Guardian's own.
    Drop,
    /// Nobody either. Guardian tries what the server does with other capabilities; that it then ends is no failure.
    DropProbe,
}

/// Sends a message to all sessions.
type Broadcast = Box<dyn Fn(&Bytes) + Send + Sync>;

#[derive(Default)]
struct MuxState {
    /// The id of the last request.
    last: u64,
    pending: BTreeMap<u64, Pending>,
    /// Why the channel ended.
    gone: Option<ForwardError>,
    /// Whether the server has ever answered a request.
    answered: bool,
}

/// A request that waits for its answer.
struct Pending {
    session: Arc<str>,
    /// The caller's original id and progress token.
    id: MessageId,
    token: Option<Bytes>,
    /// Whether requests and notifications of the server may be sent along with this request's answer.
    accepts_server_messages: bool,
    /// Whether the server may have got any of it.
    sent: bool,
    to: QueueSender,
}

/// What became of a message that has no answer.
pub enum Notified {
    /// The server accepted it.
    Taken,
    /// It waits for the process to read it.
    Queued,
    /// Not sent, for this reason.
    Unsent(&'static str),
}

/// The most pending requests on one channel. Calls have limits of their own elsewhere.
const MOST_PENDING: usize = 4_096;

/// Notifications that a shared process may send to all sessions: they reveal nothing of a caller and only say that
/// something should be fetched again.
const BROADCAST: [&str; 4] = [
    "notifications/tools/list_changed",
    "notifications/prompts/list_changed",
    "notifications/resources/list_changed",
    "notifications/resources/updated",
];

impl MuxChannel {
    pub fn new(sink: Sink, routing: UnsolicitedRouting, allowed_requests: ClientRequests, end: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            sink,
            routing,
            allowed_requests,
            state: Mutex::default(),
            non_message_lines: AtomicU64::new(0),
            end,
        })
    }

    /// Sends a request. The inbox receives its answer and the messages that belong to it.
    pub async fn request(
        self: &Arc<Self>,
        session: &Arc<str>,
        method: Method,
        body: &Bytes,
    ) -> Result<QueueReceiver, ForwardError> {
        let registered = self.register(session, method, body);
        let (number, mut receiver, text) = registered.map_err(ForwardError::unsent)?;
        let channel = Arc::downgrade(self);
        receiver.on_giving_up(move || channel.upgrade().is_none_or(|channel| channel.give_up(number)));
        match &self.sink {
            Sink::Lines(lines, _) => {
                let request = Some(number);
                let sent = lines.send(Outbound { request, text }).await;
                sent.map_err(|_| self.why_gone().unsent())?;
            }
            Sink::LegacySse(post_endpoint) => {
                let channel = self.clone();
                post_endpoint.post_request(text, move |error| channel.fail(number, error));
            }
        }
        Ok(receiver)
    }

    /// Sends a message that has no answer.
    pub async fn notify(&self, text: Bytes) -> Result<Notified, ForwardError> {
        match &self.sink {
            Sink::Lines(lines, _) => {
                let sent = lines.send(Outbound { request: None, text }).await;
                sent.map(|()| Notified::Queued).map_err(|_| self.why_gone().unsent())
            }
            Sink::LegacySse(post_endpoint) => post_endpoint.post(text).await.map(|()| Notified::Taken),
        }
    }

    /// Sends a `notifications/cancelled`, if it names a pending request of this session.
    pub async fn cancel(&self, session: &str, body: &Bytes, parsed: &ServerMessage) -> Result<Notified, ForwardError> {
        let Some(span) = parsed.cancelled_request else {
            return self.notify(body.clone()).await;
        };
        let named = span.text(body);
        let number = {
            let state = self.state();
            let own = |pending: &Pending| &*pending.session == session && *pending.id.as_json() == *named;
            state
                .pending
                .iter()
                .find(|(_, pending)| own(pending))
                .map(|(number, _)| *number)
        };
        match number {
            Some(number) => self.notify(replace_value(body, span, number.to_string())).await,
            None => Ok(Notified::Unsent("not sent: it cancels no request that is under way")),
        }
    }

    /// Whether this request is still waited for. If so, it counts as sent from now on; otherwise it never will be.
    pub fn begin_sending(&self, number: u64) -> bool {
        let mut state = self.state();
        match state.pending.get_mut(&number) {
            Some(pending) if !pending.to.is_closed() => {
                pending.sent = true;
                true
            }
            _ => {
                state.pending.remove(&number);
                false
            }
        }
    }

    /// The server took no byte of this request after all.
    pub fn not_sent(&self, number: u64) {
        if let Some(pending) = self.state().pending.get_mut(&number) {
            pending.sent = false;
        }
    }

    /// Sends a request of Guardian's own and waits for the answer.
    pub async fn request_for_guardian(
        self: &Arc<Self>,
        method: &str,
        params: &Value,
        patience: Duration,
    ) -> Result<ControlReply, ForwardError> {
        let message = json!({ "jsonrpc": "2.0", "id": 0, "method": method, "params": params });
        let asked = async {
            let own: Arc<str> = "".into();
            let mut receiver = self.request(&own, Method::Ping, &Bytes::from(message.to_string())).await?;
            receiver.next().await.unwrap_or_else(|| Err(self.why_gone()))
        };
        let late = |_| {
            Err(ForwardError {
                last_lines: self.last_lines(),
                ..ForwardError::timeout(format!("`{method}` was not answered within {}", HumanDuration(patience)))
            })
        };
        let reply = timeout(patience, asked).await.unwrap_or_else(late)?;
        parse_control_reply(&reply.text, &MessageId::from_json(Bytes::from_static(b"0")), StatusCode::OK)
    }

    /// Hands a message from the server to its receiver. Only a channel with a single session waits for a slow receiver.
    pub async fn received(&self, message: Bytes) {
        let routed = ServerMessage::parse(&message).and_then(|parsed| Ok((parsed.route()?, parsed)));
        let (kind, parsed) = match routed {
            Ok(routed) => routed,
            // Many programs print other text on standard output; it is counted and dropped.
            Err(malformed) => {
                let count = self.non_message_lines.fetch_add(1, Ordering::Relaxed) + 1;
                if count.is_power_of_two() {
                    tracing::debug!(%malformed, count, "the server sent what is no message");
                }
                return;
            }
        };
        match (&kind, parsed.id) {
            (JsonRpcKind::Response, _) => self.answer(message, parsed).await,
            (JsonRpcKind::Request(method), Some(id)) if method == "ping" => {
                let id = MessageId::from_json(id.of(&message));
                self.reply(mcp::result(&id, json!({})));
            }
            (JsonRpcKind::Request(_), Some(id)) => {
                if !self.route(&message, Some(&parsed)).await {
                    self.refuse(id.text(&message));
                }
            }
            (JsonRpcKind::Notification(method), _) if method == "notifications/progress" => {
                if let Some(token) = parsed.progress_token {
                    self.progress(message, token).await;
                }
            }
            (JsonRpcKind::Notification(method), _) => match &self.routing {
                UnsolicitedRouting::AllSessions(broadcast) if BROADCAST.contains(&method.as_str()) => broadcast(&message),
                UnsolicitedRouting::AllSessions(_) | UnsolicitedRouting::Drop | UnsolicitedRouting::DropProbe => (),
                UnsolicitedRouting::Session(_) => drop(self.route(&message, None).await),
            },
            (JsonRpcKind::Request(_), None) => (),
        }
    }

    /// Ends the channel. Every pending request fails with `error`; a later request fails with the reason of the first call.
    pub fn fail_all(&self, error: ForwardError) {
        let pending = {
            let mut state = self.state();
            state.gone.get_or_insert(error.clone());
            std::mem::take(&mut state.pending)
        };
        for pending in pending.into_values() {
            let error = error.clone();
            pending.to.fail(if pending.sent { error } else { error.unsent() });
        }
        if let UnsolicitedRouting::Session(push_buffer) = &self.routing {
            push_buffer.close();
        }
        self.end.cancel();
    }

    /// Fails one pending request.
    pub fn fail(&self, number: u64, error: ForwardError) {
        if let Some(pending) = self.state().pending.remove(&number) {
            pending.to.fail(error);
        }
    }

    /// Whether the channel has ended or is about to.
    pub fn is_gone(&self) -> bool {
        self.end.is_cancelled() || self.state().gone.is_some()
    }

    /// Whether a request of this session is pending and its caller still waits.
    pub fn is_busy(&self, session: &str) -> bool {
        let state = self.state();
        let mut own = state.pending.values().filter(|pending| &*pending.session == session);
        own.any(|pending| !pending.to.is_closed())
    }

    /// Whether the server has ever answered a request.
    pub fn has_answered(&self) -> bool {
        self.state().answered
    }

    /// Whether the channel probes what the server does with other capabilities: its end says nothing of the server.
    pub fn is_probe(&self) -> bool {
        matches!(self.routing, UnsolicitedRouting::DropProbe)
    }

    /// Whether the channel belongs to one session.
    pub fn is_private(&self) -> bool {
        matches!(self.routing, UnsolicitedRouting::Session(_))
    }

    /// Answers a request of the server with an error.
    pub fn refuse(&self, id: &str) {
        let id = MessageId::from_json(Bytes::copy_from_slice(id.as_bytes()));
        self.reply(mcp::error(Some(&id), -32601, "the client does not offer this", None));
    }

    /// Registers a request and replaces its id and progress token with the channel's number.
    fn register(&self, session: &Arc<str>, method: Method, body: &Bytes) -> Result<(u64, QueueReceiver, Bytes), ForwardError> {
        let parsed = ServerMessage::parse(body)?;
        let id = parsed
            .id
            .ok_or_else(|| ForwardError::bad_response("a request without an id"))?;
        let (sender, receiver) = queue();
        let mut state = self.state();
        if let Some(gone) = &state.gone {
            return Err(gone.clone());
        }
        if state.pending.len() >= MOST_PENDING {
            let left = state.pending.iter().find(|(_, pending)| pending.to.is_closed());
            let left = left.map(|(number, _)| *number);
            let left = left.ok_or_else(|| ForwardError::bad_response("the server has too many requests to answer"))?;
            state.pending.remove(&left);
        }
        state.last += 1;
        let number = state.last;
        state.pending.insert(
            number,
            Pending {
                session: session.clone(),
                id: MessageId::from_json(id.of(body)),
                token: parsed.progress_token.map(|token| token.of(body)),
                accepts_server_messages: matches!(method, Method::ToolsCall | Method::GetPrompt | Method::ReadResource),
                // A POST begins at once.
                sent: matches!(self.sink, Sink::LegacySse(_)),
                to: sender,
            },
        );
        let mut edits = Edits::default();
        for span in [Some(id), parsed.progress_token].into_iter().flatten() {
            edits.replace(span, number.to_string());
        }
        Ok((number, receiver, edits.apply(body)?))
    }

    /// Hands an answer to its request. An answer without an id belongs to the only pending request, if there is just
    /// one.
    async fn answer(&self, message: Bytes, parsed: ServerMessage) {
        let named = parsed.response_id().map(|id| id.text(&message).parse::<u64>().ok());
        let pending = {
            let mut state = self.state();
            let number = match named {
                Some(number) => number,
                None if state.pending.len() == 1 => state.pending.keys().next().copied(),
                None => None,
            };
            let pending = number.and_then(|number| state.pending.remove(&number));
            state.answered |= pending.is_some();
            pending
        };
        let Some(pending) = pending else {
            return tracing::debug!("the server answered what nobody waits for");
        };
        let (text, answer) = parsed.with_response_id(&message, &pending.id);
        let answer = Some(Box::new(answer));
        self.put(&pending.to, ChannelMessage { text, answer }).await;
    }

    /// Hands a progress notification to the request that its token names.
    async fn progress(&self, message: Bytes, span: JsonSpan) {
        let found = span.text(&message).parse::<u64>().ok().and_then(|number| {
            let state = self.state();
            let pending = state.pending.get(&number)?;
            Some((number, pending.to.clone(), pending.token.clone()?))
        });
        if let Some((number, to, token)) = found {
            // Bytes that were read from a JSON message are UTF-8, so this loses nothing.
            let token = String::from_utf8_lossy(&token).into_owned();
            if !self.put(&to, replace_value(&message, span, token).into()).await {
                self.fail(number, too_slow());
            }
        }
    }

    /// Sends a message along with the newest pending request that carries others, else to the open GET stream, else to
    /// the buffer for the next GET stream. Returns whether a receiver took it.
    async fn route(&self, message: &Bytes, request: Option<&ServerMessage>) -> bool {
        let UnsolicitedRouting::Session(push_buffer) = &self.routing else {
            return false;
        };
        let call = {
            let state = self.state();
            let open = state
                .pending
                .values()
                .rev()
                .find(|pending| pending.accepts_server_messages && !pending.to.is_closed());
            open.map(|pending| pending.to.clone())
        };
        if let Some(call) = call {
            call.put(message.clone().into()).await;
            return true;
        }
        if push_buffer.is_open() {
            return push_buffer.put(message.clone());
        }
        request.is_none_or(|request| self.may_ask(message, request)) && push_buffer.buffer(message.clone())
    }

    /// Whether the server may make this request. Checked before buffering, because nobody would see a refusal in the
    /// stream.
    fn may_ask(&self, message: &[u8], request: &ServerMessage) -> bool {
        let nobody = MessageId::from_json(Bytes::from_static(b"null"));
        let mut requests = request.client_requests.iter();
        request.kind(message, &nobody) == MessageKind::ServerRequest
            && requests.all(|request| is_allowed(request, self.allowed_requests))
    }

    /// Queues a message for its receiver. A slow receiver slows down the server if the channel is private; on a shared
    /// channel its request fails instead.
    async fn put(&self, to: &QueueSender, message: ChannelMessage) -> bool {
        if self.is_private() {
            to.put(message).await;
            return true;
        }
        if to.is_closed() || to.try_put(message) {
            return true;
        }
        to.fail(too_slow());
        false
    }

    /// Sends a reply without waiting, because the caller is the reading task. If the server accepts no replies, the
    /// reply is dropped.
    fn reply(&self, body: Bytes) {
        match &self.sink {
            Sink::Lines(lines, _) => drop(lines.try_send(Outbound {
                request: None,
                text: body,
            })),
            Sink::LegacySse(post_endpoint) => post_endpoint.post_if_there_is_room(body),
        }
    }

    /// Forgets a request and tells the server that it is cancelled. `false`: the server never got it, and never will.
    fn give_up(&self, number: u64) -> bool {
        let pending = self.state().pending.remove(&number);
        let sent = pending.as_ref().is_none_or(|pending| pending.sent);
        if sent && pending.is_some() {
            let cancelled = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled",
                "params": { "requestId": number, "reason": "it took too long" } });
            self.reply(Bytes::from(cancelled.to_string()));
        }
        sent
    }

    /// What the process last wrote to its standard error.
    pub fn last_lines(&self) -> Option<String> {
        match &self.sink {
            Sink::Lines(_, last_lines) => last_lines.text(),
            Sink::LegacySse(_) => None,
        }
    }

    /// Why the channel ended, for a message that cannot be sent.
    fn why_gone(&self) -> ForwardError {
        let gone = self.state().gone.clone();
        gone.unwrap_or_else(|| ForwardError::bad_response("the server is gone"))
    }

    fn state(&self) -> MutexGuard<'_, MuxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn too_slow() -> ForwardError {
    let detail = "the answer was not read fast enough, and others wait for this server too";
    ForwardError::cut(CutBy::SlowClient, Reason::UpstreamBroken, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Executed, OutcomeKind};

    /// Takes the lines as the task that writes them does.
    struct Sent(mpsc::Receiver<Outbound>, Arc<MuxChannel>);

    impl Sent {
        async fn recv(&mut self) -> Option<Bytes> {
            let line = self.0.recv().await?;
            assert!(line.request.is_none_or(|number| self.1.begin_sending(number)));
            Some(line.text)
        }

        fn try_recv(&mut self) -> Result<Outbound, mpsc::error::TryRecvError> {
            self.0.try_recv()
        }
    }

    fn link(routing: UnsolicitedRouting) -> (Arc<MuxChannel>, Sent) {
        let (lines, sent) = mpsc::channel(64);
        let channel = MuxChannel::new(
            Sink::Lines(lines, Arc::default()),
            routing,
            ClientRequests::default(),
            CancellationToken::new(),
        );
        (channel.clone(), Sent(sent, channel))
    }

    fn call(id: &str, token: &str) -> Bytes {
        let meta = format!(r#"{{ "_meta":{{"progressToken": {token}}},"name":"echo", "arguments":{{"n":1.50}} }}"#);
        format!(r#"{{"params":{meta}, "id" : {id},"method":"tools/call","jsonrpc":"2.0"}}"#).into()
    }

    async fn begin(channel: &Arc<MuxChannel>, session: &str, body: &Bytes) -> QueueReceiver {
        channel.request(&session.into(), Method::ToolsCall, body).await.unwrap()
    }

    async fn next(receiver: &mut QueueReceiver) -> String {
        let message = receiver.next().await.unwrap().unwrap();
        String::from_utf8(message.text.to_vec()).unwrap()
    }

    fn say(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[tokio::test]
    async fn callers_with_one_id_never_meet_and_nothing_else_of_a_message_changes() {
        let (channel, mut sent) = link(UnsolicitedRouting::Drop);
        let body = call("\"a\\u00e9\"", "\"p\"");
        let mut ana = begin(&channel, "ana", &body).await;
        let mut bob = begin(&channel, "bob", &body).await;
        assert_eq!(sent.recv().await.unwrap(), call("1", "1"));
        assert_eq!(sent.recv().await.unwrap(), call("2", "2"));
        let progress = |token: &str| {
            say(&format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{token}}}}}"#
            ))
        };
        channel.received(progress("2")).await;
        channel.received(progress("3")).await;
        channel.received(progress("\"p\"")).await;
        channel.received(say(r#"{"jsonrpc":"2.0", "id":2, "result":{"id":1}}"#)).await;
        channel
            .received(say(r#"{"jsonrpc":"2.0","id":2,"result":{"again":1}}"#))
            .await;
        channel.received(say(r#"{"jsonrpc":"2.0","id":"a\u00e9","result":{}}"#)).await;
        assert!(next(&mut bob).await.contains(r#""progressToken":"p""#));
        assert_eq!(
            next(&mut bob).await,
            r#"{"jsonrpc":"2.0", "id":"a\u00e9", "result":{"id":1}}"#
        );
        assert!(bob.next().await.is_none());
        channel
            .received(say(r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"?"}}"#))
            .await;
        assert!(next(&mut ana).await.contains("-32700"), "it is the only one that waits");
        assert!(ana.next().await.is_none());
    }

    #[tokio::test]
    async fn only_ones_own_requests_are_taken_back() {
        let (channel, mut sent) = link(UnsolicitedRouting::Drop);
        let _ana = begin(&channel, "ana", &call("7", "7")).await;
        let mut bob = begin(&channel, "bob", &call("7", "7")).await;
        let cancel = |id: &str| {
            say(&format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{id}}}}}"#
            ))
        };
        let take_back = async |session: &str, body: Bytes| {
            let parsed = ServerMessage::parse(&body).unwrap();
            channel.cancel(session, &body, &parsed).await
        };
        take_back("bob", cancel("7")).await.unwrap();
        take_back("eve", cancel("7")).await.unwrap();
        take_back("ana", cancel("1")).await.unwrap();
        for _ in 0..2 {
            sent.recv().await.unwrap();
        }
        assert!(bob.give_up());
        assert_eq!(sent.recv().await.unwrap(), cancel("2"));
        assert!(String::from_utf8_lossy(&sent.recv().await.unwrap()).contains(r#""requestId":2"#));
        assert!(sent.try_recv().is_err());
    }

    #[tokio::test]
    async fn what_nobody_may_answer_is_refused_and_what_nobody_owns_is_dropped() {
        let (channel, mut sent) = link(UnsolicitedRouting::AllSessions(Box::new(|_| ())));
        let mut ana = begin(&channel, "ana", &call("1", "1")).await;
        sent.recv().await.unwrap();
        channel
            .received(say(r#"{"jsonrpc":"2.0","id":"s","method":"sampling/createMessage"}"#))
            .await;
        channel.received(say(r#"{"jsonrpc":"2.0","id":4,"method":"ping"}"#)).await;
        channel
            .received(say(
                r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"of bob"}}"#,
            ))
            .await;
        channel.received(say("no message")).await;
        assert!(String::from_utf8_lossy(&sent.recv().await.unwrap()).contains("-32601"));
        assert_eq!(sent.recv().await.unwrap(), r#"{"jsonrpc":"2.0","id":4,"result":{}}"#);
        channel.fail_all(ForwardError::bad_response("over"));
        assert_eq!(ana.next().await.unwrap(), Err(ForwardError::bad_response("over")));
        let refused = channel
            .request(&"ana".into(), Method::ToolsCall, &call("2", "2"))
            .await
            .err()
            .unwrap();
        assert_eq!(refused.executed, Executed::No);
    }

    /// What nobody waits for any more is not written, so the record can say that the call was not sent.
    #[tokio::test]
    async fn what_was_not_written_is_known_not_to_have_run() {
        let (channel, mut sent) = link(UnsolicitedRouting::Drop);
        let mut written = begin(&channel, "ana", &call("1", "1")).await;
        let mut late = begin(&channel, "ana", &call("2", "2")).await;
        let gone = begin(&channel, "ana", &call("3", "3")).await;
        let mut waiting = begin(&channel, "ana", &call("4", "4")).await;
        drop(gone);
        assert!(!late.give_up(), "it was not written yet");
        sent.recv().await.unwrap();
        let given_up = [sent.0.recv().await, sent.0.recv().await].map(|line| line.unwrap().request.unwrap());
        assert_eq!(given_up.map(|number| channel.begin_sending(number)), [false, false]);
        channel.fail_all(ForwardError::bad_response("its program ended"));
        let outcome = async |receiver: &mut QueueReceiver| {
            let error = receiver.next().await.unwrap().unwrap_err();
            (error.kind, error.executed)
        };
        assert_eq!(outcome(&mut written).await, (OutcomeKind::Broken, Executed::Unknown));
        assert_eq!(outcome(&mut waiting).await, (OutcomeKind::NotSent, Executed::No));
        let later = channel.request(&"ana".into(), Method::ToolsCall, &call("5", "5")).await;
        assert_eq!(later.err().unwrap().executed, Executed::No);
    }

    /// A forbidden request is refused before it is buffered: no stream is open that would refuse it.
    #[tokio::test]
    async fn what_is_parked_may_be_asked() {
        let push_buffer = Arc::new(PushBuffer::default());
        let (channel, mut sent) = link(UnsolicitedRouting::Session(push_buffer.clone()));
        channel
            .received(say(r#"{"jsonrpc":"2.0","id":1,"method":"roots/list"}"#))
            .await;
        assert!(String::from_utf8_lossy(&sent.recv().await.unwrap()).contains("-32601"));
        channel
            .received(say(r#"{"jsonrpc":"2.0","method":"notifications/message","params":{}}"#))
            .await;
        assert!(next(&mut push_buffer.open()).await.contains("notifications/message"));
    }
}
