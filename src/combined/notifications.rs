//! Notifications, answers to server requests, `logging/setLevel` and DELETE at the combined endpoint, all legacy only. Each
//! goes to the one server that it concerns, if that is known, else to all servers with an open session. Opens no sessions.

use super::server_call::ServerPart;
use super::session::{CombinedSession, LogLevel, ServerSession};
use super::{CombinedRequest, CombinedResult};
use crate::domain::{Reason, Refusal, ServerName};
use crate::gate::Answered;
use crate::mcp::{self, Message};
use crate::sessions::claimed_server;
use crate::transport;
use futures_util::future::join_all;
use http::{Response, StatusCode};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// Time limit for each server; the answer to the client does not depend on what the servers say.
const PATIENCE: Duration = Duration::from_secs(2);

impl CombinedRequest {
    /// Passes a notification to the servers that it concerns and answers 202.
    pub(super) async fn notify(&self, session: &Arc<CombinedSession>) -> Answered {
        let open = session.open_sessions();
        let cancelled = self.params().and_then(|params| params.request_id.as_ref());
        let known = cancelled.and_then(|id| self.caller.combined.in_flight.server(session.key, id));
        let method = match &self.message.message {
            Some(Message::Notification(notification)) => notification.method.as_str(),
            _ => "",
        };
        let meant: Vec<_> = match method {
            // Each server got its own `notifications/initialized` when its session was opened.
            "notifications/initialized" => Vec::new(),
            "notifications/cancelled" => open
                .into_iter()
                .filter(|(server, _)| known.as_ref().is_none_or(|known| known == server))
                .collect(),
            _ => open,
        };
        let is_split = !meant.is_empty();
        self.send_to_servers(session, meant).await;
        self.respond(accepted(), is_split)
    }

    /// Passes a client's answer to the server that sent the request, in the session of that request.
    pub(super) async fn pass_answer(&self, session: &Arc<CombinedSession>) -> CombinedResult {
        let handle: Option<String> = match &self.message.message {
            Some(Message::Response(response)) => serde_json::from_str(response.id.as_json()).ok(),
            _ => None,
        };
        let server = handle.as_deref().and_then(claimed_server);
        let open = server.and_then(|server| Some((session.server_session(&server)?, server)));
        let Some((server_session, server)) = open else {
            return Err(self.refuse(Reason::UnknownAnswer));
        };
        let call = self.caller.server_call(server, Some(session.clone()), false);
        let part = ServerPart::in_session(self.part_context(call.server()), self.message.clone(), &server_session);
        let result = call.ask(part).await;
        let response = result.mask_session_404().response(&self.caller.combined.parts.gate);
        Ok(self.respond(response, true))
    }

    /// Sets the log level on all servers with an open session, and stores it for those that get one later.
    pub(super) async fn set_level(&mut self) -> CombinedResult {
        self.load_authz().await?;
        drop(self.admit()?);
        let Some(session) = self.session.clone() else {
            return Err(self.refuse(Reason::InvalidRequest));
        };
        let body = self.message.message.as_ref().map(Message::body);
        let Some(level) = body.and_then(|body| LogLevel::read(body)) else {
            return Err(self.refuse(Refusal::with_detail(Reason::InvalidParams, "`level` is none")));
        };
        session.set_level(level);
        let mut open = session.open_sessions();
        open.retain(|(server, _)| !self.caller.server_call(server.clone(), None, false).lacks("logging"));
        let is_split = !open.is_empty();
        self.send_to_servers(&session, open).await;
        let mut answered = self.local(mcp::result(&self.id(), json!({})));
        answered.is_split = is_split;
        Ok(answered)
    }

    /// Ends the combined session and all server sessions opened for it.
    pub(super) async fn end(&self, session: &Arc<CombinedSession>) -> Answered {
        self.caller.combined.end(session);
        let mut open = session.end();
        open.retain(|(_, server_session)| server_session.session.is_some());
        let is_split = !open.is_empty();
        self.send_to_servers(session, open).await;
        self.respond(Response::new(transport::empty()), is_split)
    }

    /// Sends the message in each of these sessions. Failures are ignored: each part has its own record.
    async fn send_to_servers(&self, session: &Arc<CombinedSession>, meant: Vec<(ServerName, ServerSession)>) {
        let sending = meant.into_iter().map(|(server, server_session)| async move {
            let call = self.caller.server_call(server, Some(session.clone()), false);
            let part = ServerPart::in_session(self.part_context(call.server()), self.message.clone(), &server_session);
            let _ = tokio::time::timeout(PATIENCE, call.ask(part)).await;
        });
        join_all(sending).await;
    }
}

fn accepted() -> Response<transport::Body> {
    let mut response = Response::new(transport::empty());
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}
