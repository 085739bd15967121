//! Answers a server's forbidden requests with an error, in the server's own session.

use super::channel::MuxChannel;
use super::http::Endpoint;
use crate::domain::{MessageId, ServerName};
use crate::mcp;
use bytes::Bytes;
use http::HeaderMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Sends the server an error for each of its requests that was refused. The stream that carries those requests polls it
/// and owns it, so unsent errors are dropped with the stream.
pub(super) struct DenialSender {
    to: DenialTarget,
    sending: Vec<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// Where a refused request came from.
enum DenialTarget {
    /// An HTTP server; the headers carry the session and version of the stream.
    Http(Arc<Endpoint>, ServerName, HeaderMap),
    Channel(Arc<MuxChannel>),
}

/// The most unsent errors per stream. A server that asks faster than it accepts errors gets no more of them.
const MOST_AT_ONCE: usize = 16;

impl DenialSender {
    /// For requests from an HTTP server.
    pub fn over_http(endpoint: Arc<Endpoint>, server: ServerName, headers: HeaderMap) -> Self {
        Self {
            to: DenialTarget::Http(endpoint, server, headers),
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
        let (endpoint, server, headers) = match &self.to {
            DenialTarget::Channel(channel) => return channel.refuse(id),
            DenialTarget::Http(..) if self.sending.len() >= MOST_AT_ONCE => return,
            DenialTarget::Http(endpoint, server, headers) => (endpoint.clone(), server.clone(), headers.clone()),
        };
        let id = MessageId::from_json(Bytes::copy_from_slice(id.as_bytes()));
        let body = mcp::error(Some(&id), -32601, "the client does not offer this", None);
        self.sending.push(Box::pin(async move {
            if let Err(error) = endpoint
                .exchange(&endpoint.client, &http::Method::POST, &headers, &body)
                .await
            {
                tracing::debug!(%server, %error, "the server did not take a refusal");
            }
        }));
    }

    /// Makes progress on sending.
    pub fn poll(&mut self, context: &mut Context<'_>) {
        self.sending
            .retain_mut(|sending| matches!(sending.as_mut().poll(context), Poll::Pending));
    }
}
