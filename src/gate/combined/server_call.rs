//! One message to one server from the combined endpoint. It takes the same path as a message to the server's own endpoint,
//! with its own request context and audit records.
//! Decides nothing; it only chooses how the result is presented to the client.

use super::CombinedCaller;
use super::namespace::{Namespace, StreamKind};
use super::session::{CombinedSession, ServerSession};
use crate::domain::{Call, Era, MessageId, Reason, Refusal, ServerName};
use crate::gate::context::RequestContext;
use crate::gate::routing::HttpVerb;
use crate::gate::screen::is_event_stream;
use crate::gate::{AuthenticatedRequest, Gate};
use crate::mcp::{self, MessageKind, SseReader};
use crate::transport::{self, Body};
use crate::upstream::Upstream;
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// How the combined endpoint sends a message to one server.
pub struct ServerCall {
    pub caller: CombinedCaller,
    pub namespace: Namespace,
    /// The combined session, for a legacy client.
    pub session: Option<Arc<CombinedSession>>,
    /// Open a server session if the call is permitted.
    pub opens: bool,
    /// The message belongs to a call that was already counted against the limits.
    pub is_counted: bool,
}

/// The result of a message to one server.
pub struct ServerCallResult {
    pub answered: Result<Response<Body>, Refusal>,
    pub context: RequestContext,
    /// Whether the refusal has an audit record to quote; `Err` if the journal could not write it.
    pub recorded: Result<bool, ()>,
}

/// Answers that are merged with others are read whole, up to this size.
const LONGEST_ANSWER: usize = 16 * 1024 * 1024;

impl ServerCall {
    pub fn namespace(&self) -> Namespace {
        self.namespace.clone()
    }

    /// The combined session's label for audit records.
    pub fn label(&self) -> Option<String> {
        self.session.as_ref().map(|session| session.label.clone())
    }

    /// Whether this call needs a server session.
    pub fn opens(&self, call: &Call) -> bool {
        self.opens && call.era == Era::Legacy && self.session.is_some()
    }

    pub fn server(&self) -> &ServerName {
        self.namespace.server()
    }

    /// The open session on this server.
    pub fn server_session(&self) -> Option<ServerSession> {
        self.session.as_ref()?.server_session(self.server())
    }

    /// Whether the answer shows that the server has lost the session; if so, forgets it. 404 says so (MCP, session
    /// management). Some servers say 400, which can mean other things too, so those are pinged to find out.
    pub async fn session_is_lost(&self, server_session: &ServerSession, answered: Option<StatusCode>) -> bool {
        let lost = match answered {
            Some(StatusCode::NOT_FOUND) => true,
            Some(StatusCode::BAD_REQUEST) => {
                let ping = Bytes::from_static(br#"{"jsonrpc":"2.0","id":"guardian/ping","method":"ping"}"#);
                let call = self.caller.server_call(self.server().clone(), self.session.clone(), false);
                let answered = call
                    .ask(HttpVerb::Post, &server_session.headers(), ping)
                    .await
                    .context
                    .answered;
                matches!(answered, Some(StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST))
            }
            _ => false,
        };
        if lost && let Some(session) = &self.session {
            session.invalidate(self.server(), server_session);
        }
        lost
    }

    /// Whether a message for an unknown session cannot have reached the server: on persistent channels the session is looked
    /// up in this process before anything is sent.
    pub fn is_local_session(&self) -> bool {
        let server = self.caller.gate.parts.upstreams.get(self.server());
        server.is_some_and(Upstream::is_persistent)
    }

    /// Whether the server is known not to have a capability.
    pub fn lacks(&self, capability: &str) -> bool {
        let server = self.caller.gate.parts.upstreams.get(self.server());
        server.is_some_and(|server| server.server_info().is_known_to_lack(capability))
    }

    /// Sends one message, with its own request context and audit records.
    pub async fn ask(&self, verb: HttpVerb, headers: &HeaderMap, body: Bytes) -> ServerCallResult {
        let CombinedCaller {
            gate,
            principal,
            counted,
            source,
        } = &self.caller;
        let clock = &gate.parts.clock;
        let mut context = RequestContext::new((clock.request)(), (clock.now)(), *source);
        context.principal = Some(principal.clone());
        context.server = Some(self.server().clone());
        context.via_combined = true;
        let request = AuthenticatedRequest {
            headers,
            verb,
            body: Ok(body),
            authenticated: principal.clone().into(),
            counted: *counted,
        };
        let answered = gate
            .handle_message(request, self.server().clone(), Some(self), &mut context)
            .await;
        let (error, recorded) = match &answered {
            Ok(_) => ("", Ok(true)),
            Err(refusal) => (refusal.reason.code(), gate.audit_refusal(refusal, &context).await),
        };
        gate.count(&context, error);
        ServerCallResult {
            answered,
            context,
            recorded,
        }
    }
}

impl CombinedCaller {
    /// A [`ServerCall`] for a message that counts as a call of its own.
    pub fn server_call(&self, server: ServerName, session: Option<Arc<CombinedSession>>, opens: bool) -> ServerCall {
        ServerCall {
            caller: self.clone(),
            namespace: Namespace::new(server, StreamKind::Answer),
            session,
            opens,
            is_counted: false,
        }
    }
}

impl ServerCallResult {
    /// The response to the client.
    pub fn response(self, gate: &Gate) -> Response<Body> {
        match (self.answered, self.recorded) {
            (Ok(response), _) => response,
            (Err(refusal), Ok(recorded)) => gate.refusal_response(&refusal, recorded, &self.context),
            (Err(_), Err(())) => gate.refusal_response(&Reason::AuditUnavailable.into(), false, &self.context),
        }
    }

    /// Turns the result into a refusal of the combined endpoint that quotes the server's audit record.
    pub fn into_combined_refusal(self, context: &mut RequestContext, refusal: impl Into<Refusal>) -> Refusal {
        context.request = self.context.request;
        context.audited = self.recorded.ok();
        match self.recorded {
            Ok(_) => refusal.into(),
            Err(()) => Reason::AuditUnavailable.into(),
        }
    }

    /// A legacy client reads 404 as the end of its own session, but only the server's session is gone: sends 200 instead.
    pub fn mask_session_404(mut self) -> Self {
        if let (Ok(response), Era::Legacy) = (&mut self.answered, self.context.era)
            && response.status() == StatusCode::NOT_FOUND
        {
            *response.status_mut() = StatusCode::OK;
        }
        self
    }
}

/// The JSON-RPC answer to request `id` in a response, whether it is plain JSON or an event stream.
pub async fn collect_answer(response: Response<Body>, id: &MessageId) -> Option<Bytes> {
    let events = is_event_stream(&response);
    let mut body = response.into_body();
    if !events {
        return transport::read_body(body, LONGEST_ANSWER, Duration::MAX).await.ok();
    }
    let mut reader = SseReader::new(LONGEST_ANSWER);
    while let Some(frame) = body.frame().await {
        reader.push(frame.ok()?.into_data().ok()?);
        while let Some(frame) = reader.frame().ok()? {
            let Some(data) = frame.data.filter(|data| !data.is_empty()) else {
                continue;
            };
            if let MessageKind::Result { .. } | MessageKind::Error { .. } = mcp::message_kind(&data, id) {
                return Some(data);
            }
        }
    }
    None
}

/// Runs all futures concurrently and returns their results in order.
pub async fn join_all<T>(futures: Vec<Pin<Box<dyn Future<Output = T> + Send + '_>>>) -> Vec<T> {
    let mut slots: Vec<_> = futures.into_iter().map(|future| (Some(future), None)).collect();
    poll_fn(|context| {
        for (future, result) in &mut slots {
            if let Some(Poll::Ready(ready)) = future.as_mut().map(|future| future.as_mut().poll(context)) {
                (*future, *result) = (None, Some(ready));
            }
        }
        if slots.iter().all(|(future, _)| future.is_none()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    slots.into_iter().filter_map(|(_, result)| result).collect()
}
