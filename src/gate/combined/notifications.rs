//! Notifications, answers to server requests, `logging/setLevel` and DELETE at the combined endpoint, all legacy only. Each
//! goes to the one server that it concerns, if that is known, else to all servers with an open session. Opens no sessions.

use super::server_call::join_all;
use super::session::{CombinedSession, LogLevel, ServerSession};
use super::{CombinedCaller, CombinedRequest, local_response};
use crate::domain::{MessageId, Reason, Refusal, ServerName};
use crate::gate::context::RequestContext;
use crate::gate::routing::HttpVerb;
use crate::mcp::{self, Notification};
use crate::sessions::claimed_server;
use crate::transport::{self, Body};
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::json;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Time limit for each server; the answer to the client does not depend on what the servers say.
const PATIENCE: Duration = Duration::from_secs(2);

impl CombinedCaller {
    /// Passes a notification to the servers that it concerns and answers 202.
    pub(super) async fn notify(
        &self,
        session: &Arc<CombinedSession>,
        notification: &Notification,
        context: &mut RequestContext,
    ) -> Response<Body> {
        let open = session.open_sessions();
        let cancelled = notification.params.as_ref().and_then(|params| params.request_id.as_ref());
        let known = cancelled.and_then(|id| self.gate.combined.in_flight.server(session.key, id));
        let meant: Vec<_> = match notification.method.as_str() {
            // Each server got its own `notifications/initialized` when its session was opened.
            "notifications/initialized" => Vec::new(),
            "notifications/cancelled" => open
                .into_iter()
                .filter(|(server, _)| known.as_ref().is_none_or(|known| known == server))
                .collect(),
            _ => open,
        };
        context.delegated = !meant.is_empty();
        self.send_to_servers(session, meant, HttpVerb::Post, &notification.body).await;
        accepted()
    }

    /// Passes a client's answer to the server that sent the request, in the session of that request.
    pub(super) async fn answer(
        &self,
        session: &Arc<CombinedSession>,
        response: mcp::Response,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        let handle: Option<String> = serde_json::from_str(response.id.as_json()).ok();
        let server = handle.as_deref().and_then(claimed_server).ok_or(Reason::UnknownAnswer)?;
        let server_session = session.server_session(&server).ok_or(Reason::UnknownAnswer)?;
        context.delegated = true;
        let call = self.server_call(server, Some(session.clone()), false);
        let result = call.ask(HttpVerb::Post, &server_session.headers(), response.body).await;
        Ok(result.mask_session_404().response(&self.gate))
    }

    /// Sets the log level on all servers with an open session, and stores it for those that get one later.
    pub(super) async fn set_level(
        &self,
        request: &CombinedRequest<'_>,
        id: &MessageId,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        self.load_authz(context).await?;
        drop(self.admit()?);
        let session = request.session.as_ref().ok_or(Reason::InvalidRequest)?;
        let level = LogLevel::read(&request.body);
        session.set_level(level.ok_or_else(|| Refusal::with_detail(Reason::InvalidParams, "`level` is none"))?);
        let mut open = session.open_sessions();
        open.retain(|(server, _)| !self.server_call(server.clone(), None, false).lacks("logging"));
        context.delegated = !open.is_empty();
        self.send_to_servers(session, open, HttpVerb::Post, &request.body).await;
        Ok(local_response(mcp::result(id, json!({}))))
    }

    /// Ends the combined session and all server sessions opened for it.
    pub(super) async fn end(&self, session: &Arc<CombinedSession>, context: &mut RequestContext) -> Response<Body> {
        self.gate.combined.end(session);
        let mut open = session.end();
        open.retain(|(_, server_session)| server_session.session.is_some());
        context.delegated = !open.is_empty();
        self.send_to_servers(session, open, HttpVerb::Delete, &Bytes::new()).await;
        Response::new(transport::empty())
    }

    /// Sends the same message in each of these sessions. Failures are ignored: each sub-call has its own record.
    async fn send_to_servers(
        &self,
        session: &Arc<CombinedSession>,
        meant: Vec<(ServerName, ServerSession)>,
        verb: HttpVerb,
        body: &Bytes,
    ) {
        let told = meant.into_iter().map(|(server, server_session)| {
            let telling = async move {
                let call = self.server_call(server, Some(session.clone()), false);
                let _ = tokio::time::timeout(PATIENCE, call.ask(verb, &server_session.headers(), body.clone())).await;
            };
            Box::pin(telling) as Pin<Box<dyn Future<Output = ()> + Send>>
        });
        join_all(told.collect()).await;
    }
}

fn accepted() -> Response<Body> {
    let mut response = Response::new(transport::empty());
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}
