//! Notifications, answers to server requests, `logging/setLevel` and DELETE at the combined endpoint, all legacy only. Each
//! goes to the one server that it concerns, if that is known, else to all servers with an open session. Opens no sessions.

use super::session::{Conversation, Held, Level};
use super::through::all;
use super::{Asker, Read, answer};
use crate::domain::{MessageId, Reason, Refusal, ServerName};
use crate::gate::context::RequestContext;
use crate::gate::routing::HttpVerb;
use crate::mcp::{self, Notification};
use crate::transport::{self, Body};
use crate::upstream::claimed_server;
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::json;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Time limit for each server; the answer to the client does not depend on what the servers say.
const PATIENCE: Duration = Duration::from_secs(2);

impl Asker {
    /// Passes a notification to the servers that it concerns and answers 202.
    pub(super) async fn note(
        &self,
        conversation: &Arc<Conversation>,
        notification: &Notification,
        context: &mut RequestContext,
    ) -> Response<Body> {
        let open = conversation.open();
        let cancelled = notification.params.as_ref().and_then(|params| params.request_id.as_ref());
        let known = cancelled.and_then(|id| self.gate.combined.flights.server(conversation.key, id));
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
        self.tell(conversation, meant, HttpVerb::Post, &notification.body).await;
        accepted()
    }

    /// Passes a client's answer to the server that sent the request, in the session of that request.
    pub(super) async fn answer(
        &self,
        conversation: &Arc<Conversation>,
        response: mcp::Response,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        let handle: Option<String> = serde_json::from_str(response.id.as_json()).ok();
        let server = handle.as_deref().and_then(claimed_server).ok_or(Reason::UnknownAnswer)?;
        let held = conversation.held(&server).ok_or(Reason::UnknownAnswer)?;
        context.delegated = true;
        let through = self.through(server, Some(conversation.clone()), false);
        let asked = through.ask(HttpVerb::Post, &held.fields(), response.body).await;
        Ok(asked.keeping_the_session().response(&self.gate))
    }

    /// Sets the log level on all servers with an open session, and stores it for those that get one later.
    pub(super) async fn set_level(
        &self,
        read: &Read<'_>,
        id: &MessageId,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        self.standing(context).await?;
        drop(self.admit()?);
        let conversation = read.conversation.as_ref().ok_or(Reason::InvalidRequest)?;
        let level = Level::read(&read.body);
        conversation.set_level(level.ok_or_else(|| Refusal::with_detail(Reason::InvalidParams, "`level` is none"))?);
        let mut open = conversation.open();
        open.retain(|(server, _)| !self.through(server.clone(), None, false).lacks("logging"));
        context.delegated = !open.is_empty();
        self.tell(conversation, open, HttpVerb::Post, &read.body).await;
        Ok(answer(mcp::result(id, json!({}))))
    }

    /// Ends the combined session and all server sessions opened for it.
    pub(super) async fn end(&self, conversation: &Arc<Conversation>, context: &mut RequestContext) -> Response<Body> {
        self.gate.combined.end(conversation);
        let mut open = conversation.end();
        open.retain(|(_, held)| held.session.is_some());
        context.delegated = !open.is_empty();
        self.tell(conversation, open, HttpVerb::Delete, &Bytes::new()).await;
        Response::new(transport::empty())
    }

    /// Sends the same message in each of these sessions. Failures are ignored: each sub-call has its own record.
    async fn tell(&self, conversation: &Arc<Conversation>, meant: Vec<(ServerName, Held)>, verb: HttpVerb, body: &Bytes) {
        let told = meant.into_iter().map(|(server, held)| {
            let telling = async move {
                let through = self.through(server, Some(conversation.clone()), false);
                let _ = tokio::time::timeout(PATIENCE, through.ask(verb, &held.fields(), body.clone())).await;
            };
            Box::pin(telling) as Pin<Box<dyn Future<Output = ()> + Send>>
        });
        all(told.collect()).await;
    }
}

fn accepted() -> Response<Body> {
    let mut response = Response::new(transport::empty());
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}
