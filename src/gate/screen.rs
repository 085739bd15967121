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
use crate::mcp::{self, Edits, Malformed, MessageKind, Namespace, ServerMessage, SseFrame, sse_event};
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
            } => screen.result(&body, &server_message).map(|body| {
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
            filter: ResponseFilter::of(call, authz.into_view(), sources),
            namespace,
        }
    }

    /// Binds later handles to the session, if it was opened only after the call was permitted.
    pub fn bind_session(&mut self, session: Option<&Session>) {
        self.outbound_handles.bind_session(session.map(Session::label));
    }

    /// The answer as this caller may see it: handles encoded, lists filtered, names prefixed, in one splice.
    fn result(&self, body: &Bytes, message: &ServerMessage) -> Result<Bytes, Refusal> {
        let broken = |detail| Refusal::with_detail(Reason::UpstreamBroken, detail);
        let mut edits = Edits::default();
        // A call that was carried out must not read as one that Guardian refused.
        if let Some(claimed) = message.claimed_refusal {
            edits.replace(claimed, "null".to_owned());
        }
        let encoded = self.outbound_handles.encode_outbound(body, message, &mut edits);
        encoded.ok_or_else(|| broken("what it hands out is too long"))?;
        let filtered = self.filter.answer(body, message, self.namespace.as_ref(), &mut edits);
        let filtered = filtered.map_err(|_| broken("its list cannot be read"))?;
        let renamed = self.rename(body, message, filtered, &mut edits);
        renamed.map_err(|_| broken("what it names cannot be read"))?;
        edits.apply(body).map_err(|_| broken("it cannot be rewritten"))
    }

    fn rename(&self, body: &[u8], message: &ServerMessage, are_lists_filtered: bool, edits: &mut Edits) -> Result<(), Malformed> {
        match &self.namespace {
            None => Ok(()),
            Some(namespace) => message.rename(body, namespace, are_lists_filtered, edits),
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
        frame.id = frame.id.take().map(|id| self.event_id(&id));
        match kind {
            None | Some(MessageKind::Error { .. } | MessageKind::Malformed(_)) => Some(frame.into_bytes()),
            Some(MessageKind::Result { .. }) => Some(self.answered(frame, &server_message)),
            Some(MessageKind::OtherResponse) => self.replayed(frame, &server_message),
            Some(MessageKind::ServerNotification) if !self.may_receive(&frame, &server_message) => None,
            Some(MessageKind::ServerRequest | MessageKind::ServerNotification) => self.server_message(frame, &server_message),
        }
    }

    /// The id of an event for the client. Clients forget the last id when they read an empty one.
    fn event_id(&self, id: &[u8]) -> Bytes {
        if id.is_empty() {
            return Bytes::new();
        }
        let namespace = self.namespace.as_ref();
        let note = namespace.map(|namespace| namespace.event_note(self.id.as_ref()));
        let session = namespace.map(Namespace::session);
        let handle = self.outbound_handles.event_id(id, &note.unwrap_or_default(), session);
        handle.map(Bytes::from).unwrap_or_default()
    }

    fn may_receive(&self, frame: &SseFrame, message: &ServerMessage) -> bool {
        let data = frame.data.as_ref();
        data.is_some_and(|data| self.filter.may_receive(data, message))
    }

    fn answered(&self, mut frame: SseFrame, message: &ServerMessage) -> Bytes {
        let data = frame.data.take().unwrap_or_default();
        match self.result(&data, message) {
            Ok(body) => with_data(frame, &data, &body),
            Err(refusal) => sse_event(&self.refusal_event(&refusal)),
        }
    }

    /// An answer to an earlier request on a resumed stream; dropped if it cannot be rewritten for this caller.
    fn replayed(&self, mut frame: SseFrame, message: &ServerMessage) -> Option<Bytes> {
        let data = frame.data.take()?;
        let mut edits = Edits::default();
        if let Some(claimed) = message.claimed_refusal {
            edits.replace(claimed, "null".to_owned());
        }
        self.outbound_handles.encode_outbound(&data, message, &mut edits)?;
        let filtered = self
            .filter
            .replayed(&data, message, self.namespace.as_ref(), &mut edits)
            .ok()?;
        self.rename(&data, message, filtered, &mut edits).ok()?;
        Some(with_data(frame, &data, &edits.apply(&data).ok()?))
    }

    /// A request or notification from the server; dropped if it is not for this caller or cannot be rewritten.
    fn server_message(&self, mut frame: SseFrame, message: &ServerMessage) -> Option<Bytes> {
        let data = frame.data.take()?;
        if !self.outbound_handles.is_for(&data, message) {
            return None;
        }
        let mut edits = Edits::default();
        self.outbound_handles.encode_outbound(&data, message, &mut edits)?;
        self.rename(&data, message, false, &mut edits).ok()?;
        Some(with_data(frame, &data, &edits.apply(&data).ok()?))
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

/// The event with `body` instead of `data`. It keeps its id, so that the client can resume after it.
fn with_data(frame: SseFrame, data: &[u8], body: &[u8]) -> Bytes {
    match &frame.id {
        _ if body == data => frame.into_bytes(),
        Some(id) => [b"id: ".as_slice(), id, b"\n", &sse_event(body)].concat().into(),
        None => sse_event(body),
    }
}
