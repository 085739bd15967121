//! Which requests a server may make of its client (sampling, elicitation, roots), set per server. In the legacy era a
//! forbidden request is withheld and answered here with an error, in the server's own session; in the modern era it
//! makes the call fail.

use super::forward_error::ForwardError;
use super::mux::MuxChannel;
use super::server::Upstream;
use crate::domain::{ClientRequest, ClientRequests, Era, Method, Reason, SafeText};
use crate::mcp::{self, ClientRequestRef, RequestedCapability, ResultType, ServerMessage};
use bytes::Bytes;
use http::HeaderMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The longest request id of a server that is passed on: a longer one does not fit into the handle that the client gets
/// for it.
pub(super) const LONGEST_ID: usize = 512;

/// Whether this request is allowed.
pub(super) fn is_allowed(client_request: &ClientRequestRef, requests: ClientRequests) -> bool {
    match client_request.capability {
        RequestedCapability::Ping => true,
        RequestedCapability::Client(request) => requests.allow(request),
        RequestedCapability::Other => false,
    }
}

/// Whether a result may go to the client: its `resultType` must suit the method, and every request in it must be
/// allowed. Legacy results have neither, so they pass.
pub(super) fn check_result(
    server_message: &ServerMessage,
    era: Era,
    method: Method,
    requests: ClientRequests,
) -> Result<(), ForwardError> {
    if era == Era::Legacy {
        return Ok(());
    }
    match server_message.result_type {
        ResultType::Complete => (),
        ResultType::InputRequired if method.takes_input() => (),
        ResultType::InputRequired => {
            return Err(ForwardError::bad_response(
                "the server asks for input where none can be given",
            ));
        }
        ResultType::Task if method == Method::ToolsCall => (),
        ResultType::Task => return Err(ForwardError::bad_response("the server makes a task of what cannot be one")),
        ResultType::Unknown => {
            return Err(ForwardError::bad_response(
                "the server's result is of a type that is not known",
            ));
        }
    }
    match server_message
        .client_requests
        .iter()
        .find(|client_request| !is_allowed(client_request, requests))
    {
        None => Ok(()),
        Some(client_request) => Err(denied(&client_request.method)),
    }
}

/// Whether an error (code -32042) demands URL elicitation although the configuration does not allow it.
pub(super) fn demands_forbidden_url(server_message: &ServerMessage, requests: ClientRequests) -> bool {
    server_message.needs_url_elicitation && !requests.allow(ClientRequest::ElicitationUrl)
}

/// The method that such an error stands for.
pub(super) const ELICITATION_METHOD: &str = "elicitation/create";

/// The failure for a client request that the configuration does not allow.
pub(super) fn denied(method: &str) -> ForwardError {
    ForwardError::after_sending(Reason::ClientRequestRefused, format!("`{}`", safe_text(method)))
}

/// Text from a server, as a record or a message may hold it.
pub(super) fn safe_text(word: &str) -> String {
    SafeText::new(word, 64).to_string()
}

/// Sends the server an error for each of its requests that was refused. The stream that carries those requests polls it
/// and owns it, so unsent errors are dropped with the stream.
pub(super) struct DenialSender {
    to: DenialTarget,
    sending: Vec<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// Where a refused request came from.
enum DenialTarget {
    /// An HTTP server; the headers carry the session and version of the stream.
    Server(Upstream, HeaderMap),
    Channel(Arc<MuxChannel>),
}

/// The most unsent errors per stream. A server that asks faster than it accepts errors gets no more of them.
const MOST_AT_ONCE: usize = 16;

impl DenialSender {
    /// For requests from an HTTP server.
    pub fn new(upstream: Upstream, fields: HeaderMap) -> Self {
        Self {
            to: DenialTarget::Server(upstream, fields),
            sending: Vec::new(),
        }
    }

    /// For requests that came over a channel.
    pub fn over_channel(channel: Arc<MuxChannel>) -> Self {
        Self {
            to: DenialTarget::Channel(channel),
            sending: Vec::new(),
        }
    }

    /// Refuses one request. `id` is the JSON text that the server wrote.
    pub fn send(&mut self, id: &str) {
        let (upstream, fields) = match &self.to {
            DenialTarget::Channel(channel) => return channel.refuse(id),
            DenialTarget::Server(..) if self.sending.len() >= MOST_AT_ONCE => return,
            DenialTarget::Server(upstream, fields) => (upstream.clone(), fields.clone()),
        };
        let id = crate::domain::MessageId::from_json(Bytes::copy_from_slice(id.as_bytes()));
        let body = mcp::error(Some(&id), -32601, "the client does not offer this", None);
        self.sending.push(Box::pin(async move {
            if let Err(error) = upstream.notify(&http::Method::POST, &fields, &body).await {
                tracing::debug!(server = %upstream.name(), %error, "the server did not take a refusal");
            }
        }));
    }

    /// Makes progress on sending.
    pub fn poll(&mut self, context: &mut Context<'_>) {
        self.sending
            .retain_mut(|sending| matches!(sending.as_mut().poll(context), Poll::Pending));
    }
}
