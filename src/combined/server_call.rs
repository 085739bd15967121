//! One message to one server from the combined endpoint. It takes the same path as a message to the server's own endpoint,
//! with its own request context and audit records.
//! Decides nothing; it only chooses how the result is presented to the client.

use super::CombinedCaller;
use super::session::{CombinedSession, ServerSession};
use crate::domain::{Era, MessageId, Method, ProtocolVersion, Reason, Refusal, ServerName};
use crate::gate::{
    Answered, AuthzContext, CallerAuthz, DispatchOptions, Gate, NegotiatedMessage, RefusalAudit, RefusedRequest, RequestContext,
    SessionOpening, is_event_stream, negotiate, parse_body,
};
use crate::mcp::{McpHeaders, MessageKind, Namespace, ServerMessage, SseReader, StreamKind};
use crate::transport::{self, Body};
use crate::upstream::Upstream;
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::Duration;

/// How the combined endpoint sends messages to one server.
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

/// A message for one server, and what it needs on its way.
pub struct ServerPart<'a> {
    pub context: RequestContext,
    pub message: NegotiatedMessage,
    /// The client's headers, for `Mcp-Param-*`; `None` for a message that Guardian wrote.
    pub headers: Option<&'a HeaderMap>,
    pub session: Option<&'a ServerSession>,
    pub last_event_id: Option<String>,
    /// What the caller may do, if that was loaded for this message already.
    pub authz: Option<AuthzContext>,
}

/// The result of a message to one server.
pub struct ServerCallResult {
    pub answered: Result<Answered, Box<RefusedRequest>>,
    /// Whether the refusal has an audit record to quote; `Err` if the journal could not write it.
    pub recorded: Result<bool, ()>,
}

/// Answers that are merged with others are read whole, up to this size.
const LONGEST_ANSWER: usize = 16 * 1024 * 1024;

impl<'a> ServerPart<'a> {
    /// A message without a session of the server.
    pub fn new(context: RequestContext, message: NegotiatedMessage) -> Self {
        Self {
            context,
            message,
            headers: None,
            session: None,
            last_event_id: None,
            authz: None,
        }
    }

    /// A message in a session of the server, in the version that was agreed on there.
    pub fn in_session(context: RequestContext, message: NegotiatedMessage, session: &'a ServerSession) -> Self {
        let version = Some(session.version);
        Self {
            session: Some(session),
            ..Self::new(context, NegotiatedMessage { version, ..message })
        }
    }
}

impl ServerCall {
    pub fn server(&self) -> &ServerName {
        self.namespace.server()
    }

    /// The open session on this server.
    pub fn server_session(&self) -> Option<ServerSession> {
        self.session.as_ref()?.server_session(self.server())
    }

    /// A message that Guardian wrote itself, with a context of its own.
    pub fn compose(&self, body: Bytes, version: Option<ProtocolVersion>) -> Result<(RequestContext, NegotiatedMessage), Refusal> {
        let mut context = self.caller.context(self.session.as_deref()).for_server(self.server().clone());
        let message = parse_body(body, &mut context.message)?;
        let message = negotiate(message, &McpHeaders::default(), version, &mut context.message)?;
        Ok((context, message))
    }

    /// Whether the answer shows that the server has lost the session; if so, forgets it. 404 says so (MCP, session
    /// management). Some servers say 400, which can mean other things too, so those are pinged to find out.
    pub async fn session_is_lost(&self, server_session: &ServerSession, status: Option<StatusCode>) -> bool {
        let lost = match status {
            Some(StatusCode::NOT_FOUND) => true,
            Some(StatusCode::BAD_REQUEST) => {
                let status = self.ping(server_session).await;
                matches!(status, Some(StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST))
            }
            _ => false,
        };
        if lost && let Some(session) = &self.session {
            session.invalidate(self.server(), server_session);
        }
        lost
    }

    async fn ping(&self, server_session: &ServerSession) -> Option<StatusCode> {
        let ping = Bytes::from_static(br#"{"jsonrpc":"2.0","id":"guardian/ping","method":"ping"}"#);
        let (context, message) = self.compose(ping, Some(server_session.version)).ok()?;
        let call = self.caller.server_call(self.server().clone(), self.session.clone(), false);
        call.ask(ServerPart::in_session(context, message, server_session))
            .await
            .server_status()
    }

    /// Whether a message for an unknown session cannot have reached the server: on persistent channels the session is looked
    /// up in this process before anything is sent.
    pub fn is_local_session(&self) -> bool {
        self.upstream().is_some_and(Upstream::is_persistent)
    }

    /// Whether the server is known not to have a capability.
    pub fn lacks(&self, capability: &str) -> bool {
        let server = self.upstream();
        server.is_some_and(|server| server.server_info().is_known_to_lack(capability))
    }

    fn upstream(&self) -> Option<&Upstream> {
        self.caller.combined.parts.upstreams.get(self.server())
    }

    /// Sends one message, with its own request context and audit records.
    pub async fn ask(&self, part: ServerPart<'_>) -> ServerCallResult {
        let gate = &self.caller.combined.parts.gate;
        let opens = self.opens && part.message.era == Era::Legacy && self.session.is_some();
        let opening = || -> SessionOpening<'_> {
            Box::pin(async move {
                let opened = self.open_session().await?;
                Ok((opened.session, opened.version))
            })
        };
        let no_headers = HeaderMap::new();
        let session = self.session.as_ref().map(|session| session.key.to_string());
        let options = DispatchOptions {
            headers: part.headers.unwrap_or(&no_headers),
            session: part.session.and_then(|session| session.session.clone()),
            last_event_id: part.last_event_id,
            opening: opens.then(opening),
            limits_key: (!self.is_counted).then_some(self.caller.limits_key),
            namespace: Some(self.namespace.clone().in_session(session.unwrap_or_default())),
        };
        let caller = match part.authz {
            Some(authz) => CallerAuthz::Loaded(authz),
            None => CallerAuthz::Authenticated(self.caller.principal.clone().into()),
        };
        let answered = gate.dispatch(part.context, part.message, caller, options).await;
        let recorded = match &answered {
            Ok(answered) => {
                gate.count(&answered.context, "");
                Ok(true)
            }
            Err(refused) => {
                let recorded = gate.audit_refusal(refused).await;
                gate.count(&refused.context, refused.refusal.reason.code());
                recorded
            }
        };
        ServerCallResult { answered, recorded }
    }
}

impl CombinedCaller {
    /// A [`ServerCall`] for messages that count as calls of their own.
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
    /// The HTTP status of the server's answer.
    pub fn server_status(&self) -> Option<StatusCode> {
        self.answered.as_ref().ok()?.server_status
    }

    /// The reason of the refusal, if the message was refused.
    pub fn reason(&self) -> Option<Reason> {
        self.answered.as_ref().err().map(|refused| refused.refusal.reason)
    }

    /// The response to the client.
    pub fn response(self, gate: &Gate) -> Response<Body> {
        match self.answered {
            Ok(answered) => answered.response,
            Err(refused) => gate.refusal_response(&refused, self.recorded),
        }
    }

    /// Turns a refusal into one of the combined endpoint that quotes the server's audit record. `otherwise` is what the
    /// client hears instead of the server's refusal.
    pub fn into_combined_refusal(self, context: RequestContext, otherwise: Option<Refusal>) -> Box<RefusedRequest> {
        let (request, refusal) = match self.answered {
            Ok(answered) => (answered.context.request, Reason::Internal.into()),
            Err(refused) => (refused.context.request, refused.refusal),
        };
        let refusal = match self.recorded {
            Ok(_) => otherwise.unwrap_or(refusal),
            Err(()) => Reason::AuditUnavailable.into(),
        };
        let mut refused = RequestContext { request, ..context }.refuse(refusal);
        refused.audit = RefusalAudit::PartRecorded(self.recorded == Ok(true));
        refused
    }

    /// A legacy client reads 404 as the end of its own session, but only the server's session is gone: sends 200 instead.
    pub fn mask_session_404(mut self) -> Self {
        if let Ok(answered) = &mut self.answered
            && answered.context.message.era == Era::Legacy
            && answered.response.status() == StatusCode::NOT_FOUND
        {
            *answered.response.status_mut() = StatusCode::OK;
        }
        self
    }
}

/// A GET in a session of the server.
pub fn stream_request(context: RequestContext, session: &ServerSession, last_event_id: Option<String>) -> ServerPart<'_> {
    let mut part = ServerPart::in_session(context, NegotiatedMessage::bodyless(Method::OpenStream, None), session);
    part.context.message.method = Some(Method::OpenStream);
    part.last_event_id = last_event_id;
    part
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
            if let MessageKind::Result { .. } | MessageKind::Error { .. } = ServerMessage::classify(&data, id).0 {
                return Some(data);
            }
        }
    }
    None
}
