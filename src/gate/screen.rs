//! The response on its way back to the caller: filters lists, encodes handles, seals session ids, passes streams on event by
//! event.
//! Cookies, challenges and redirects of a server never reach this point: `upstream` drops them.

use super::Gate;
use super::authz::{AuthzContext, AuthzSources};
use super::context::{Answered, RefusedRequest, RequestContext};
use super::forward::ForwardedCall;
use super::handles::OutboundHandles;
use super::keep_alive::KeepAliveBody;
use super::reply;
use super::visibility::ResponseFilter;
use crate::domain::{Call, Era, MessageId, Method, Reason, Refusal};
use crate::grants::GrantSnapshot;
use crate::limits::Admission;
use crate::mcp::{self, MessageKind, Namespace, ServerMessage, SseFrame};
use crate::sessions::Session;
use crate::transport::{self, Body, GuardedBody};
use crate::upstream::{Answer, EventStream, ForwardError, OpenedSession, StreamEvent};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use std::sync::Arc;

/// How to rewrite the answer to one call; made before the call is sent.
pub struct Screen {
    id: Option<MessageId>,
    era: Era,
    method: Method,
    outbound_handles: OutboundHandles,
    filter: ResponseFilter,
    /// Set for the combined endpoint, where names get the server as a prefix.
    namespace: Option<Namespace>,
}

const EVENTS: &str = "text/event-stream";
/// Larger bodies may not fit into the connection's send buffers. They keep the call's concurrency slot until they are sent.
const INLINE_BODY_LIMIT: usize = 64 * 1024;
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

impl Gate {
    /// Builds the response. A stream holds its concurrency slot until its last byte is sent; so does a large body.
    pub(super) fn respond(&self, forwarded: ForwardedCall) -> Result<Answered, Box<RefusedRequest>> {
        let ForwardedCall {
            context,
            answer,
            screen,
            grant_snapshot,
            admission,
        } = forwarded;
        let server_status = answer.status();
        let response = match answer {
            Answer::Empty { status } => Ok(screen.empty(status)),
            Answer::Json {
                status,
                body,
                server_message,
                opened,
                ..
            } => screen.result(body, &server_message).map(|body| {
                let waits = body.len() > INLINE_BODY_LIMIT;
                let mut response = reply::json_response(client_status(status, screen.era), body);
                if waits && let Some(admission) = admission {
                    response = response.map(|body| GuardedBody::new(body, admission).boxed());
                }
                if let Some(sealed) = opened.and_then(|opened| self.seal(opened, &context)) {
                    response.headers_mut().insert(mcp::SESSION_ID, sealed);
                }
                response
            }),
            Answer::Stream(stream) => Ok(self.stream(stream, screen, grant_snapshot, admission)),
        };
        match response {
            Ok(response) => Ok(Answered {
                server_status,
                ..context.answered(response)
            }),
            Err(refusal) => Err(context.refuse_permitted(refusal)),
        }
    }

    fn stream(
        &self,
        mut stream: EventStream,
        screen: Screen,
        grant_snapshot: GrantSnapshot,
        admission: Option<Admission>,
    ) -> Response<Body> {
        let (registration, cut) = self.stream_registry.register(grant_snapshot);
        stream.cancel_on(cut);
        // Streams without a pending request (GET, `subscriptions/listen`) stay open for hours; the slot only covers opening
        // them.
        let admission = admission.filter(|_| !screen.method.is_stream());
        let body = stream.into_body(move |event| screen.screen_event(event));
        let body = KeepAliveBody::new(body, self.parts.endpoints.keep_alive).boxed();
        event_stream(GuardedBody::new(body, (admission, registration)).boxed())
    }

    /// Seals the id of a session that the server opened for this caller.
    fn seal(&self, opened: OpenedSession, context: &RequestContext) -> Option<HeaderValue> {
        let session = Session {
            id: opened.session?,
            version: opened.version,
            expires_at: context.at.plus(self.parts.session_lifetime),
        };
        let (principal, server) = (context.principal.as_deref()?, context.server.as_ref());
        HeaderValue::try_from(self.parts.session_keys.seal(&session, principal, server)).ok()
    }
}

impl Screen {
    pub(super) fn new(
        call: &Call,
        outbound_handles: OutboundHandles,
        authz: AuthzContext,
        sources: Arc<AuthzSources>,
        namespace: Option<Namespace>,
    ) -> Self {
        Self {
            id: call.id.clone(),
            era: call.era,
            method: call.method,
            outbound_handles,
            filter: ResponseFilter::of(call, authz, sources),
            namespace,
        }
    }

    /// Binds later handles to the session, if it was opened only after the call was permitted.
    pub fn bind_session(&mut self, session: Option<&Session>) {
        self.outbound_handles.bind_session(session.map(Session::label));
    }

    /// The answer as this caller may see it: handles encoded, lists filtered, names prefixed.
    fn result(&self, body: Bytes, server_message: &ServerMessage) -> Result<Bytes, Refusal> {
        let handed = self
            .outbound_handles
            .encode_outbound(body, server_message)
            .ok_or_else(|| Refusal::with_detail(Reason::UpstreamBroken, "what it hands out is too long"))?;
        self.with_namespace(self.filter.answer(handed)?)
    }

    fn with_namespace(&self, body: Bytes) -> Result<Bytes, Refusal> {
        let unreadable = |_| Refusal::with_detail(Reason::UpstreamBroken, "what it names cannot be read");
        match &self.namespace {
            None => Ok(body),
            Some(namespace) => mcp::renamed(&body, namespace).map_err(unreadable),
        }
    }

    fn screen_event(&self, event: Result<StreamEvent, ForwardError>) -> Option<Bytes> {
        let StreamEvent {
            mut frame,
            kind,
            server_message,
        } = match event {
            Err(error) => return Some(sse_event(&self.refusal_event(&error.into()))),
            Ok(event) => event,
        };
        if let Some(namespace) = &self.namespace {
            namespace.event(&mut frame, self.id.as_ref());
        }
        match kind {
            None | Some(MessageKind::Error { .. } | MessageKind::Malformed(_)) => Some(frame.raw),
            Some(MessageKind::Result { .. }) => Some(self.answered(frame, &server_message)),
            Some(MessageKind::OtherResponse) => self.replayed(frame, &server_message),
            Some(MessageKind::ServerNotification) if !frame.data.as_ref().is_some_and(|data| self.filter.may_receive(data)) => {
                None
            }
            Some(MessageKind::ServerRequest | MessageKind::ServerNotification) => self.server_message(frame, &server_message),
        }
    }

    fn answered(&self, mut frame: SseFrame, server_message: &ServerMessage) -> Bytes {
        let data = frame.data.take().unwrap_or_default();
        match self.result(data.clone(), server_message) {
            Ok(body) if body == data => frame.raw,
            Ok(body) => replace_data(&frame, &body),
            Err(refusal) => sse_event(&self.refusal_event(&refusal)),
        }
    }

    /// An answer to an earlier request on a resumed stream; dropped if it cannot be rewritten for this caller.
    fn replayed(&self, mut frame: SseFrame, server_message: &ServerMessage) -> Option<Bytes> {
        let data = frame.data.take()?;
        let handed = self.outbound_handles.encode_outbound(data.clone(), server_message)?;
        let seen = match self.filter.replayed(&handed) {
            Ok(None) => handed,
            Ok(Some(body)) => body,
            Err(()) => return None,
        };
        match self.with_namespace(seen).ok()? {
            body if body == data => Some(frame.raw),
            body => Some(replace_data(&frame, &body)),
        }
    }

    /// A request or notification from the server; dropped if it is not for this caller or cannot be rewritten.
    fn server_message(&self, mut frame: SseFrame, server_message: &ServerMessage) -> Option<Bytes> {
        let data = frame.data.take()?;
        if !self.outbound_handles.is_for(&data, server_message) {
            return None;
        }
        match self
            .with_namespace(self.outbound_handles.encode_outbound(data.clone(), server_message)?)
            .ok()?
        {
            body if body == data => Some(frame.raw),
            body => Some(replace_data(&frame, &body)),
        }
    }

    /// The response head was sent already, so a refusal can only be sent as the JSON-RPC answer.
    fn refusal_event(&self, refusal: &Refusal) -> Bytes {
        reply::body(refusal, self.id.as_ref())
    }

    fn empty(&self, status: StatusCode) -> Response<Body> {
        let refused = !status.is_success() && self.id.is_some();
        let mut response = if refused {
            reply::json_response(status, reply::body(&Reason::UpstreamBroken.into(), self.id.as_ref()))
        } else {
            Response::new(transport::empty())
        };
        *response.status_mut() = status;
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        response
    }
}

/// Wraps an SSE body in a response that no cache or proxy may store or buffer.
pub fn event_stream(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(EVENTS));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("private, no-cache, no-store, no-transform"),
    );
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

pub fn is_event_stream(response: &Response<Body>) -> bool {
    response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value == EVENTS)
}

/// The status for the client. Legacy clients may drop their session on an error status, so they get 200 and find the error
/// in the body. A 404 is passed on because it does mean that the session is gone.
fn client_status(status: StatusCode, era: Era) -> StatusCode {
    match (era, status) {
        (Era::Modern, _) | (Era::Legacy, StatusCode::NOT_FOUND) => status,
        (Era::Legacy, _) => StatusCode::OK,
    }
}

/// The event with other data. It keeps its id, so that the client can resume after it.
fn replace_data(frame: &SseFrame, data: &[u8]) -> Bytes {
    match &frame.id {
        Some(id) => [b"id: ".as_slice(), id, b"\n", &sse_event(data)].concat().into(),
        None => sse_event(data),
    }
}

/// Encodes a message as an SSE event. Each line of the message gets its own `data:` field, as JSON may contain line breaks.
pub fn sse_event(data: &[u8]) -> Bytes {
    let mut event = b"event: message\n".to_vec();
    for line in data.split(|byte| *byte == b'\n') {
        event.extend_from_slice(b"data: ");
        event.extend_from_slice(line);
        event.push(b'\n');
    }
    event.push(b'\n');
    event.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_in_several_lines_stays_one_event() {
        assert_eq!(sse_event(b"{\n\n}"), "event: message\ndata: {\ndata: \ndata: }\n\n");
    }
}
