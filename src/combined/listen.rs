//! `subscriptions/listen` at the combined endpoint: splits the filter by server, listens to each server, and acknowledges
//! everything that the servers granted in one message.
//! If a server refuses something that the client named (a resource or a task), the whole request is refused. A server of
//! which the client named nothing is left out instead.

use super::routing::is_not_there;
use super::server_call::{ServerCall, ServerCallResult, ServerPart};
use super::streams::{
    EventReader, FIRST_WAIT, LONGEST_WAIT, MergedStreamBuilder, OpenResult, TOOLS_CHANGED, ToolListWatcher, event_kind,
    open_result,
};
use super::{CombinedRequest, CombinedResult};
use crate::domain::{Backoff, Era, MessageId, Reason, Refusal, ServerName};
use crate::gate::{NegotiatedMessage, RefusedRequest, RequestContext, parse_body};
use crate::mcp::{self, JsonRpcKind, Message, SseFrame, parse_uri, replace_value};
use crate::sessions::claimed_server;
use crate::transport::Body;
use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

/// How long to wait for the servers' acknowledgements before sending the combined one. Servers that acknowledge later join
/// the stream without another acknowledgement.
const PATIENCE: Duration = Duration::from_secs(2);
const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";
/// Largest body of a `subscriptions/listen`: one rewritten copy per server is held for as long as the stream is open.
const LONGEST: usize = 64 * 1024;
/// Boolean flags of the filter, each with the capability that a server needs for it.
const FLAGS: [(&str, &str); 2] = [("promptsListChanged", "prompts"), ("resourcesListChanged", "resources")];

/// The part of the filter that concerns one server.
#[derive(Default)]
struct SubscriptionFilter {
    filter: Map<String, Value>,
    /// Whether the client named a resource or a task of this server.
    explicit: bool,
}

/// The first result of listening to one server.
enum SubscriptionStatus {
    Acknowledged(Value),
    /// The server, or the gate on its behalf, refused the subscription.
    Refused {
        result: Box<ServerCallResult>,
        explicit: bool,
    },
    /// The stream ended or could not be opened for now; [`ServerSubscription::follow`] retries in the background.
    Left,
}

/// The subscription to one server within a combined stream.
struct ServerSubscription {
    call: ServerCall,
    /// The context of the next attempt.
    context: RequestContext,
    headers: HeaderMap,
    message: NegotiatedMessage,
    explicit: bool,
    /// Taken by the first report, since later reports have no reader.
    reports: Option<mpsc::Sender<SubscriptionStatus>>,
    out: mpsc::Sender<Bytes>,
}

impl CombinedRequest {
    /// Answers `subscriptions/listen` with one stream over all servers that the filter concerns.
    pub(super) async fn listen(&mut self) -> CombinedResult {
        let body = self.message.message.as_ref().map(Message::body).cloned().unwrap_or_default();
        if body.len() > LONGEST {
            return Err(self.refuse(Reason::BodyTooLarge));
        }
        let filters = self.subscription_filters().await?;
        let (builder, watcher) = MergedStreamBuilder::begin(self).await?;
        let (reports, heard) = mpsc::channel(filters.len().max(1));
        let (out, frames) = mpsc::channel(1);
        let mut members = JoinSet::new();
        for (server, filter) in filters {
            let member = self.subscription(server, filter, &body, reports.clone(), out.clone())?;
            members.spawn(member.follow());
        }
        drop(reports);
        let granted = self.granted(heard).await?;
        let wants_tools = self.filter()["toolsListChanged"] == true;
        let stream = MergedSubscriptions {
            acknowledged: self.acknowledgement(granted),
            watcher: wants_tools.then_some(watcher),
            tag: self.id(),
            members,
            frames,
            out,
        };
        let cut = builder.cut.clone();
        let (first, rest) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            tokio::select! {
                () = stream.run(first) => (),
                () = cut.cancelled() => (),
            }
        });
        Ok(self.respond(builder.response(rest, task), true))
    }

    /// The subscription to one server: the client's message with that server's part of the filter.
    fn subscription(
        &self,
        server: ServerName,
        filter: SubscriptionFilter,
        body: &Bytes,
        reports: mpsc::Sender<SubscriptionStatus>,
        out: mpsc::Sender<Bytes>,
    ) -> Result<ServerSubscription, Box<RefusedRequest>> {
        let at = self.params().and_then(|params| params.notifications_at);
        let at = at.ok_or_else(|| self.refuse(Reason::InvalidParams))?;
        let mut context = self.part_context(&server);
        let body = replace_value(body, at, Value::Object(filter.filter).to_string());
        let message = parse_body(body, &mut context.message).map_err(|refusal| self.refuse(refusal))?;
        Ok(ServerSubscription {
            call: self.caller.server_call(server, None, false),
            context,
            headers: self.headers.clone(),
            message: NegotiatedMessage {
                message: Some(message),
                ..self.message.clone()
            },
            explicit: filter.explicit,
            reports: Some(reports),
            out,
        })
    }

    /// What the servers grant within the time limit, together; a refusal if one of them refuses what the client named.
    async fn granted(&self, mut heard: mpsc::Receiver<SubscriptionStatus>) -> Result<Map<String, Value>, Box<RefusedRequest>> {
        let mut granted = Map::new();
        if self.filter()["toolsListChanged"] == true {
            granted.insert("toolsListChanged".to_owned(), true.into());
        }
        let until = Instant::now() + PATIENCE;
        while let Ok(Some(report)) = timeout_at(until, heard.recv()).await {
            match report {
                SubscriptionStatus::Acknowledged(part) => merge_granted(&mut granted, &part),
                SubscriptionStatus::Refused { result, explicit: true } => {
                    let gate = &self.caller.combined.parts.gate;
                    let hidden = result.reason().is_some_and(is_not_there)
                        || result
                            .answered
                            .as_ref()
                            .is_err_and(|refused| gate.hides_what_is_refused(refused));
                    let otherwise = hidden.then(|| Reason::UnknownTarget.into());
                    return Err(result.into_combined_refusal(self.context.clone(), otherwise));
                }
                SubscriptionStatus::Refused { .. } | SubscriptionStatus::Left => (),
            }
        }
        Ok(granted)
    }

    fn acknowledgement(&self, granted: Map<String, Value>) -> Bytes {
        let id: Value = serde_json::from_str(self.id().as_json()).unwrap_or_default();
        let acknowledged = json!({ "jsonrpc": "2.0", "method": ACKNOWLEDGED, "params": {
            "_meta": { "io.modelcontextprotocol/subscriptionId": id },
            "notifications": granted,
        } });
        mcp::sse_event(acknowledged.to_string().as_bytes())
    }

    fn filter(&self) -> Value {
        let filter = self.params().and_then(|params| params.notifications.as_ref());
        filter.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default()
    }

    /// Splits the client's filter by server. Refuses a resource or task of a server that this caller cannot use.
    async fn subscription_filters(&mut self) -> Result<BTreeMap<ServerName, SubscriptionFilter>, Box<RefusedRequest>> {
        let uris = match self.params().map(mcp::subscribed_uris) {
            Some(Ok(uris)) => uris,
            Some(Err(malformed)) => return Err(self.refuse(Refusal::with_detail(malformed.reason, malformed.detail))),
            None => return Err(self.refuse(Reason::InvalidParams)),
        };
        let filter = self.filter();
        let authz = self.load_authz().await?;
        let mut filters: BTreeMap<ServerName, SubscriptionFilter> = BTreeMap::new();
        let mut known = BTreeSet::new();
        for (name, server) in self.caller.combined.servers(&authz, Era::Modern) {
            known.insert(name);
            let server_info = server.server_info();
            let wanted = |(flag, of): &&(&str, &str)| filter[*flag] == true && !server_info.is_known_to_lack(of);
            for (flag, _) in FLAGS.iter().filter(wanted) {
                let own = &mut filters.entry(name.clone()).or_default().filter;
                own.insert((*flag).to_owned(), true.into());
            }
        }
        let uris = uris.iter().map(|uri| {
            let there = parse_uri(uri).filter(|(server, _)| known.contains(server));
            let (server, uri) = there.ok_or(Reason::UnknownTarget)?;
            Ok(("resourceSubscriptions", server, uri.to_owned()))
        });
        let tasks = self
            .params()
            .map_or(&[][..], |params| &params.subscribed_tasks)
            .iter()
            .map(|task| {
                let there = claimed_server(&task.text).filter(|server| known.contains(server));
                let server = there.ok_or(Reason::UnknownTask)?;
                Ok(("taskIds", server, task.text.clone()))
            });
        for named in uris.chain(tasks) {
            let (member, server, text) = named.map_err(|reason: Reason| self.refuse(reason))?;
            let filters = filters.entry(server).or_default();
            filters.explicit = true;
            let list = filters.filter.entry(member).or_insert_with(|| json!([]));
            list.as_array_mut().expect("it is made above").push(text.into());
        }
        Ok(filters)
    }
}

/// The stream of all subscriptions.
struct MergedSubscriptions {
    /// The first event.
    acknowledged: Bytes,
    /// Set if the client wants to hear of changes of its tool list.
    watcher: Option<ToolListWatcher>,
    tag: MessageId,
    members: JoinSet<()>,
    frames: mpsc::Receiver<Bytes>,
    out: mpsc::Sender<Bytes>,
}

impl MergedSubscriptions {
    /// Runs until the client is gone.
    async fn run(self, to: mpsc::Sender<Bytes>) {
        let Self {
            acknowledged,
            watcher,
            tag,
            members,
            frames,
            out,
        } = self;
        if to.send(acknowledged).await.is_err() {
            return;
        }
        let looking = async move {
            match watcher {
                // The watcher's sender keeps the channel open, as the one below does.
                Some(watcher) => watcher.tell_changes(out, Some(tag)).await,
                None => {
                    std::future::pending::<()>().await;
                    drop(out);
                }
            }
        };
        tokio::select! {
            () = forward_frames(frames, &to) => (),
            () = looking => (),
        }
        drop(members);
    }
}

impl ServerSubscription {
    /// Listens to the server and reconnects with backoff, until the server refuses or the client is gone.
    async fn follow(mut self) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            match open_result(self.call.ask(self.part()).await) {
                OpenResult::Stream(response) => {
                    backoff.reset();
                    if self.forward_events(response.into_body()).await.is_err() {
                        return;
                    }
                }
                OpenResult::Pending => (),
                OpenResult::Unavailable(result) => {
                    let (result, explicit) = (Box::new(refused(result)), self.explicit);
                    return self.report(SubscriptionStatus::Refused { result, explicit }).await;
                }
            }
            self.report(SubscriptionStatus::Left).await;
            sleep(backoff.failed()).await;
            let parts = &self.call.caller.combined.parts;
            self.context = self.context.again((parts.clock.request)());
            self.context.at = (parts.clock.now)();
        }
    }

    fn part(&self) -> ServerPart<'_> {
        ServerPart {
            headers: Some(&self.headers),
            ..ServerPart::new(self.context.clone(), self.message.clone())
        }
    }

    /// Forwards the events of one stream until it ends; `Err` if the client is gone.
    async fn forward_events(&mut self, body: Body) -> Result<(), ()> {
        let mut reading = EventReader::new(body);
        while let Some(frame) = reading.next().await {
            match event_kind(&frame) {
                Some(JsonRpcKind::Notification(method)) if method == ACKNOWLEDGED => {
                    self.report(SubscriptionStatus::Acknowledged(granted_filter(&frame))).await;
                }
                Some(JsonRpcKind::Notification(method)) if method == TOOLS_CHANGED => (),
                Some(JsonRpcKind::Notification(_)) => self.out.send(frame.raw).await.map_err(|_| ())?,
                // This server has closed its subscription. The streams of the other servers go on.
                Some(JsonRpcKind::Response) => return Ok(()),
                Some(JsonRpcKind::Request(_)) | None => (),
            }
        }
        Ok(())
    }

    async fn report(&mut self, report: SubscriptionStatus) {
        if let Some(reports) = self.reports.take() {
            // The send fails once the combined acknowledgement was sent: the server then joins silently.
            let _ = reports.send(report).await;
        }
    }
}

/// An answer that is no stream counts as a refusal.
fn refused(result: ServerCallResult) -> ServerCallResult {
    let no_stream = || Refusal::with_detail(Reason::UpstreamBroken, "it opened no stream of what changes");
    let answered = match result.answered {
        Ok(answered) => Err(answered.context.refuse(no_stream())),
        refused => refused,
    };
    ServerCallResult { answered, ..result }
}

async fn forward_frames(mut frames: mpsc::Receiver<Bytes>, to: &mpsc::Sender<Bytes>) {
    while let Some(frame) = frames.recv().await {
        if to.send(frame).await.is_err() {
            return;
        }
    }
}

/// The granted filter in a server's acknowledgement.
fn granted_filter(frame: &SseFrame) -> Value {
    let message = frame
        .data
        .as_ref()
        .and_then(|data| serde_json::from_slice::<Value>(data).ok());
    let granted = message.as_ref().and_then(|message| message.pointer("/params/notifications"));
    granted.cloned().unwrap_or_default()
}

/// Merges the filter that one server granted into the combined one.
fn merge_granted(granted: &mut Map<String, Value>, part: &Value) {
    for (name, value) in part.as_object().into_iter().flatten() {
        match (granted.get_mut(name), value) {
            (Some(Value::Array(all)), Value::Array(more)) => all.extend(more.iter().cloned()),
            (Some(all), Value::Bool(true)) => *all = true.into(),
            (Some(_), _) => (),
            // Guardian sends tool list changes itself and ignores those of servers.
            (None, _) if name == "toolsListChanged" => (),
            (None, value) => drop(granted.insert(name.clone(), value.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_that_grants_nothing_readable_grants_nothing() {
        for (data, granted) in [
            (json!({ "params": { "notifications": { "a": true } } }), json!({ "a": true })),
            (json!({ "params": [1] }), json!(null)),
            (json!({}), json!(null)),
        ] {
            let frame = SseFrame {
                data: Some(data.to_string().into()),
                id: None,
                event: None,
                raw: Bytes::new(),
            };
            assert_eq!(granted_filter(&frame), granted);
        }
    }

    #[test]
    fn what_servers_grant_is_granted_together() {
        let mut granted = Map::new();
        for part in [
            json!({ "promptsListChanged": false, "resourceSubscriptions": ["a+x:1"], "toolsListChanged": true }),
            json!({ "promptsListChanged": true, "resourceSubscriptions": ["b+x:1"] }),
            json!(null),
        ] {
            merge_granted(&mut granted, &part);
        }
        let wanted = json!({ "promptsListChanged": true, "resourceSubscriptions": ["a+x:1", "b+x:1"] });
        assert_eq!(Value::Object(granted), wanted);
    }
}
