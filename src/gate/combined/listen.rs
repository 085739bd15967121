//! `subscriptions/listen` at the combined endpoint: splits the filter by server, listens to each server, and acknowledges
//! everything that the servers granted in one message.
//! If a server refuses something that the client named (a resource or a task), the whole request is refused. A server of
//! which the client named nothing is left out instead.

use super::namespace::parse_uri;
use super::server_call::ServerCall;
use super::streams::{
    EventReader, FIRST_WAIT, LONGEST_WAIT, MergedStreamBuilder, OpenResult, TOOLS_CHANGED, event_kind, open_result,
};
use super::{CombinedCaller, CombinedRequest, is_not_there};
use crate::domain::{Era, MessageId, Reason, Refusal, RequestId, ServerName};
use crate::gate::context::RequestContext;
use crate::gate::message::reject_malformed;
use crate::gate::routing::HttpVerb;
use crate::gate::screen::sse_event;
use crate::mcp::{self, JsonRpcKind, SseFrame, splice};
use crate::sessions::claimed_server;
use crate::transport::Body;
use bytes::Bytes;
use http::{HeaderMap, Response};
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
    /// The server, or the gate on its behalf, refused the subscription. The other fields identify the audit record of that
    /// refusal.
    Refused {
        refusal: Refusal,
        named: bool,
        request: RequestId,
        recorded: Result<bool, ()>,
    },
    /// The stream ended or could not be opened for now; [`ServerSubscription::follow`] retries in the background.
    Left,
}

/// The subscription to one server within a combined stream.
struct ServerSubscription {
    call: ServerCall,
    headers: HeaderMap,
    body: Bytes,
    explicit: bool,
    /// Taken by the first report, since later reports have no reader.
    reports: Option<mpsc::Sender<SubscriptionStatus>>,
    out: mpsc::Sender<Bytes>,
}

impl CombinedCaller {
    /// Answers `subscriptions/listen` with one stream over all servers that the filter concerns.
    pub(super) async fn listen(
        &self,
        request: &CombinedRequest<'_>,
        id: &MessageId,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        if request.body.len() > LONGEST {
            return Err(Reason::BodyTooLarge.into());
        }
        let filters = self.subscription_filters(request, context).await?;
        let at = request.params.notifications_at.ok_or(Reason::InvalidParams)?;
        let (builder, watcher) = MergedStreamBuilder::begin(self, context).await?;
        context.delegated = true;
        let (reports, mut heard) = mpsc::channel(filters.len().max(1));
        let (out, frames) = mpsc::channel(1);
        let mut members = JoinSet::new();
        for (server, SubscriptionFilter { filter, explicit: named }) in filters {
            let member = ServerSubscription {
                call: self.server_call(server, None, false),
                headers: request.headers.clone(),
                body: splice(&request.body, vec![(at, Value::Object(filter).to_string())]),
                explicit: named,
                reports: Some(reports.clone()),
                out: out.clone(),
            };
            members.spawn(member.follow());
        }
        drop(reports);
        let mut granted = Map::new();
        let wants_tools = filter(request)["toolsListChanged"] == true;
        if wants_tools {
            granted.insert("toolsListChanged".to_owned(), true.into());
        }
        let until = Instant::now() + PATIENCE;
        while let Ok(Some(report)) = timeout_at(until, heard.recv()).await {
            match report {
                SubscriptionStatus::Acknowledged(part) => merge_granted(&mut granted, &part),
                SubscriptionStatus::Refused {
                    refusal,
                    named: true,
                    request,
                    recorded,
                } => {
                    (context.request, context.audited) = (request, recorded.ok());
                    return Err(match (recorded, is_not_there(refusal.reason)) {
                        (Err(()), _) => Reason::AuditUnavailable.into(),
                        (Ok(_), true) => Reason::UnknownTarget.into(),
                        (Ok(_), false) => refusal,
                    });
                }
                SubscriptionStatus::Refused { .. } | SubscriptionStatus::Left => (),
            }
        }
        let acknowledged = json!({ "jsonrpc": "2.0", "method": ACKNOWLEDGED, "params": {
            "_meta": { "io.modelcontextprotocol/subscriptionId": serde_json::from_str::<Value>(id.as_json()).unwrap_or_default() },
            "notifications": granted,
        } });
        let changes = watcher.tell_changes(out.clone(), Some(id.clone()));
        let looking = async move {
            if wants_tools {
                changes.await
            } else {
                std::future::pending().await
            }
        };
        let cut = builder.cut.clone();
        let (first, rest) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            if first.send(sse_event(acknowledged.to_string().as_bytes())).await.is_err() {
                return;
            }
            tokio::select! {
                () = forward_frames(frames, &first) => (),
                () = looking => (),
                () = cut.cancelled() => (),
            }
            members.shutdown().await;
            drop(out);
        });
        Ok(builder.response(rest, task))
    }

    /// Splits the client's filter by server. Refuses a resource or task of a server that this caller cannot use.
    async fn subscription_filters(
        &self,
        request: &CombinedRequest<'_>,
        context: &mut RequestContext,
    ) -> Result<BTreeMap<ServerName, SubscriptionFilter>, Refusal> {
        let uris = mcp::subscribed_uris(&request.params).map_err(|malformed| reject_malformed(malformed, context))?;
        let filter = filter(request);
        let authz = self.load_authz(context).await?;
        let mut filters: BTreeMap<ServerName, SubscriptionFilter> = BTreeMap::new();
        let mut known = BTreeSet::new();
        for (name, server) in self.gate.servers(&authz, Era::Modern, context) {
            known.insert(name);
            let server_info = server.server_info();
            let flags = FLAGS
                .iter()
                .filter(|(flag, of)| filter[*flag] == true && !server_info.is_known_to_lack(of));
            for (flag, _) in flags {
                filters
                    .entry(name.clone())
                    .or_default()
                    .filter
                    .insert((*flag).to_owned(), true.into());
            }
        }
        let uris = uris.iter().map(|uri| {
            let there = parse_uri(uri).filter(|(server, _)| known.contains(server));
            let (server, uri) = there.ok_or(Reason::UnknownTarget)?;
            Ok(("resourceSubscriptions", server, uri.to_owned()))
        });
        let tasks = request.params.subscribed_tasks.iter().map(|task| {
            let there = claimed_server(&task.text).filter(|server| known.contains(server));
            let server = there.ok_or(Reason::UnknownTask)?;
            Ok(("taskIds", server, task.text.clone()))
        });
        for named in uris.chain(tasks) {
            let (member, server, text) = named.map_err(|reason: Reason| Refusal::new(reason))?;
            let filters = filters.entry(server).or_default();
            filters.explicit = true;
            let list = filters.filter.entry(member).or_insert_with(|| json!([]));
            list.as_array_mut().expect("it is made above").push(text.into());
        }
        Ok(filters)
    }
}

impl ServerSubscription {
    /// Listens to the server and reconnects with backoff, until the server refuses or the client is gone.
    async fn follow(mut self) {
        let mut wait = FIRST_WAIT;
        loop {
            let result = self.call.ask(HttpVerb::Post, &self.headers, self.body.clone()).await;
            let (request, recorded) = (result.context.request, result.recorded);
            let refusal = result.answered.as_ref().err().cloned();
            match open_result(result) {
                OpenResult::Stream(response) => {
                    wait = FIRST_WAIT;
                    if self.forward_events(response.into_body()).await.is_err() {
                        return;
                    }
                }
                OpenResult::Pending => (),
                OpenResult::Unavailable(_) => {
                    let refusal = refusal
                        .unwrap_or_else(|| Refusal::with_detail(Reason::UpstreamBroken, "it opened no stream of what changes"));
                    let named = self.explicit;
                    let report = SubscriptionStatus::Refused {
                        refusal,
                        named,
                        request,
                        recorded,
                    };
                    self.report(report).await;
                    return;
                }
            }
            self.report(SubscriptionStatus::Left).await;
            sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
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

async fn forward_frames(mut frames: mpsc::Receiver<Bytes>, to: &mpsc::Sender<Bytes>) {
    while let Some(frame) = frames.recv().await {
        if to.send(frame).await.is_err() {
            return;
        }
    }
}

fn filter(request: &CombinedRequest<'_>) -> Value {
    let filter = request.params.notifications.as_ref();
    filter.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default()
}

/// The granted filter in a server's acknowledgement.
fn granted_filter(frame: &SseFrame) -> Value {
    let message = frame
        .data
        .as_ref()
        .and_then(|data| serde_json::from_slice::<Value>(data).ok());
    message.unwrap_or_default()["params"]["notifications"].take()
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
