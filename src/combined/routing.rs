//! Messages that concern one server: finds the server in the name, URI or task, takes its prefix off, and sends the message
//! on.

use super::server_call::{ServerCallResult, ServerPart};
use super::{CombinedRequest, CombinedResult};
use crate::decide;
use crate::domain::{MessageId, Method, Reason, Refusal, ServerName, TargetKind, did_you_mean};
use crate::gate::{AuthzContext, NegotiatedMessage, RefusedRequest, RequestContext, is_offered, safe_text};
use crate::mcp::{self, Namespace, Reference, StreamKind, parse_name, parse_uri};
use crate::sessions::claimed_server;
use crate::transport::GuardedBody;
use http::StatusCode;
use serde_json::Value;

/// A message rewritten for one server.
struct RoutedMessage {
    server: ServerName,
    /// The target's name without the server prefix; for a task, its handle.
    name: String,
    message: NegotiatedMessage,
}

impl CombinedRequest {
    /// Sends the message to the server that its target belongs to.
    pub(super) async fn route(&mut self) -> CombinedResult {
        let params = self.params();
        let named = match self.message.method.target_kind() {
            TargetKind::Reference => return self.complete().await,
            TargetKind::Tool | TargetKind::Prompt => params.and_then(|params| params.name.as_deref()),
            TargetKind::Resource => params.and_then(|params| params.uri.as_deref()),
            _ => params
                .and_then(|params| params.task_id.as_ref())
                .map(|task| task.text.as_str()),
        };
        let named = named.map(str::to_owned);
        if self.message.method == Method::ToolsCall {
            self.context.message.tool = named.as_deref().map(safe_text);
        }
        match named.as_deref().and_then(|named| self.routed(named)) {
            Some(routed) => self.forward_to_server(routed).await,
            None => Err(self.refuse_unknown_target(named.as_deref()).await),
        }
    }

    /// The message for the server that `named` begins with, where it is called by the server's own name.
    fn routed(&self, named: &str) -> Option<RoutedMessage> {
        let mut message = self.message.clone();
        let params = message.params_mut()?;
        let (server, name, at) = match self.message.method.target_kind() {
            TargetKind::Tool | TargetKind::Prompt => {
                let (server, name) = parse_name(named)?;
                params.name = Some(name.to_owned());
                (server, name, params.name_at?)
            }
            TargetKind::Resource => {
                let (server, uri) = parse_uri(named)?;
                params.uri = Some(uri.to_owned());
                (server, uri, params.uri_at?)
            }
            // A task's handle is the server's own; it claims a server, and the gate verifies it.
            _ => {
                let (server, name) = (claimed_server(named)?, named.to_owned());
                return Some(RoutedMessage { server, name, message });
            }
        };
        message.edits.replace(at, Value::from(name).to_string());
        let name = name.to_owned();
        Some(RoutedMessage { server, name, message })
    }

    /// Routes `completion/complete` to the server of the prompt or resource template that it completes.
    async fn complete(&mut self) -> CombinedResult {
        let completion = match self.params().map(mcp::completion) {
            Some(Ok(completion)) => completion,
            Some(Err(malformed)) => return Err(self.refuse(Refusal::with_detail(malformed.reason, malformed.detail))),
            None => return Err(self.refuse(Reason::InvalidParams)),
        };
        let (named, split, member) = match &completion.of {
            Reference::Prompt(name) => (name, parse_name(name), "name"),
            Reference::Resource(uri) => (uri, parse_uri(uri), "uri"),
        };
        let Some((server, name)) = split else {
            return Err(self.refuse_unknown_target(Some(named)).await);
        };
        match self.with_reference(member, name) {
            Some(message) => {
                let name = name.to_owned();
                self.forward_to_server(RoutedMessage { server, name, message }).await
            }
            None => Err(self.refuse(Reason::InvalidParams)),
        }
    }

    /// The message with the server's own name in its `ref`.
    fn with_reference(&self, member: &str, name: &str) -> Option<NegotiatedMessage> {
        let mut message = self.message.clone();
        let params = message.params_mut()?;
        let mut reference: Value = serde_json::from_slice(params.reference.as_ref()?).ok()?;
        reference[member] = name.into();
        let (at, reference) = (params.reference_at?, reference.to_string());
        params.reference = Some(reference.clone().into());
        message.edits.replace(at, reference);
        Some(message)
    }

    /// The target has no server prefix, so no server can own it. A caller who is not admitted (not enrolled, disabled, stale
    /// grants) gets that refusal instead.
    async fn refuse_unknown_target(&mut self, named: Option<&str>) -> Box<RefusedRequest> {
        let mut refused = match self.load_authz().await {
            Ok(authz) => {
                let meant = named.and_then(|tool| self.listed_tool_named(tool, &authz));
                self.refuse(Refusal {
                    remedy: meant.map(|tool| did_you_mean(&tool)),
                    ..unknown_reason(self.message.method).into()
                })
            }
            Err(refused) => refused,
        };
        let summary = &mut refused.context.message;
        let named = named.map(safe_text);
        if self.message.method != Method::ToolsCall {
            summary.target = named;
        }
        summary.arguments = self.params().and_then(|params| params.arguments.clone());
        refused
    }

    /// A tool in this caller's `tools/list` that was called without its server.
    fn listed_tool_named(&self, named: &str, authz: &AuthzContext) -> Option<String> {
        if self.message.method != Method::ToolsCall {
            return None;
        }
        let combined = &self.caller.combined;
        let mut servers = combined.servers(authz, self.message.era);
        servers.find_map(|(server, upstream)| {
            let tool = authz.snapshot.tool(server, named)?;
            let is_listed = is_offered(tool, self.message.era)
                && upstream.offers(&tool.entry().name, self.declared_requests())
                && decide::could_permit(server, tool, &authz.decision_input());
            is_listed.then(|| Namespace::new(server.clone(), StreamKind::Answer).name(named))
        })
    }

    /// Forwards a message to one server and answers as that server's own endpoint would. Servers that the caller has no
    /// grant for look exactly like servers that do not exist.
    async fn forward_to_server(&mut self, routed: RoutedMessage) -> CombinedResult {
        let RoutedMessage { server, name, message } = routed;
        let otherwise = self.hidden_refusal(&server).await;
        let in_flight = &self.caller.combined.in_flight;
        let ids = self.session.as_ref().zip(self.context.message.id.as_ref());
        let in_flight = ids.map(|(session, id): (_, &MessageId)| in_flight.begin(session.key, id, &server));
        let result = self.ask(server.clone(), message).await;
        if let Some(session) = self.session.as_ref().filter(|_| result.answered.is_ok()) {
            match self.message.method {
                Method::Subscribe => session.subscribe(&server, &name),
                Method::Unsubscribe => session.unsubscribe(&server, &name),
                _ => (),
            }
        }
        let otherwise = match result.reason() {
            None => None,
            Some(reason) if otherwise.is_none() && is_not_there(reason) => Some(unknown_reason(self.message.method).into()),
            Some(_) => otherwise,
        };
        if otherwise.is_some() {
            return Err(result.into_combined_refusal(self.context.clone(), otherwise));
        }
        let response = result.response(&self.caller.combined.parts.gate);
        let response = match in_flight {
            Some(in_flight) => response.map(|body| GuardedBody::new(body, in_flight).boxed()),
            None => response,
        };
        Ok(self.respond(response, true))
    }

    /// What the caller hears instead of the server's refusal, if they may not know of the server.
    async fn hidden_refusal(&mut self, server: &ServerName) -> Option<Refusal> {
        match self.load_authz().await {
            Ok(authz) => {
                let reason = decide::refuses(server, &authz.decision_input())?;
                is_not_there(reason).then(|| unknown_reason(self.message.method).into())
            }
            Err(refused) => Some(refused.refusal),
        }
    }

    /// Sends the message to one server. If the server has lost its session, opens another session and sends the message once
    /// more.
    pub(super) async fn ask(&self, server: ServerName, message: NegotiatedMessage) -> ServerCallResult {
        let call = self.caller.server_call(server, self.session.clone(), true);
        let before = call.server_session();
        let part = |message, authz: Option<AuthzContext>| ServerPart {
            headers: Some(&self.headers),
            authz,
            ..ServerPart::new(self.part_context(call.server()), message)
        };
        let mut result = call.ask(part(message.clone(), self.authz.clone())).await;
        let lost = match &before {
            Some(server_session) => call.session_is_lost(server_session, result.server_status()).await,
            None => false,
        };
        if lost && result.server_status() == Some(StatusCode::NOT_FOUND) {
            match (self.message.method, &mut result.answered) {
                // The first attempt may have been carried out although the server says 404, so a tool call is never sent
                // twice.
                (Method::ToolsCall | Method::TasksUpdate, Ok(answered)) if !call.is_local_session() => {
                    let why = "it has lost its session, and another is opened for the next call";
                    let refusal = Refusal::with_detail(Reason::UpstreamBroken, why);
                    result.answered = Err(answered.context.clone().refuse(refusal));
                }
                _ => {
                    let mut again = part(message, None);
                    again.context.at = self.caller.combined.now();
                    result = call.ask(again).await;
                }
            }
        }
        result.mask_session_404()
    }

    /// The context of the part of one server, with a record of its own.
    pub(super) fn part_context(&self, server: &ServerName) -> RequestContext {
        let request = (self.caller.combined.parts.clock.request)();
        self.context.again(request).for_server(server.clone())
    }
}

/// The refusal for a target that does not exist, by method.
const fn unknown_reason(method: Method) -> Reason {
    match method.target_kind() {
        TargetKind::Tool => Reason::UnknownTool,
        TargetKind::Task => Reason::UnknownTask,
        _ => Reason::UnknownTarget,
    }
}

/// Refusals that would reveal whether a server exists to a caller without access to it.
pub(super) const fn is_not_there(reason: Reason) -> bool {
    matches!(reason, Reason::UnknownServer | Reason::ServerDisabled | Reason::NoGrant)
}
