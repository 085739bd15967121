//! Sends a cleared call once, over the transport of its server. No call is sent twice.

use super::answer::{Answer, PendingAnswer};
use super::delivery::{DeliveredBody, Delivery};
use super::denial_sender::DenialSender;
use super::event_source::EventSource;
use super::forward_error::ForwardError;
use super::http::{Endpoint, ForwardHeaders, Media, forward_headers, http_method, media, session_of, set_session_headers};
use super::outcome::OutcomeGuard;
use super::server::{TransportKind, Upstream};
use crate::domain::{Call, Era, Method};
use crate::journal::Cleared;
use crate::mcp;
use http::HeaderMap;
use std::sync::Arc;

impl Upstream {
    /// Sends a cleared call and returns the server's answer, or why there is none. Nothing is sent twice. The outcome is
    /// recorded however the call ends.
    pub async fn forward(&self, cleared: Cleared, headers: ForwardHeaders) -> Result<Answer, ForwardError> {
        let fields = forward_headers(cleared.call(), &headers);
        let (call, ticket) = cleared.into_sending();
        let outcome = OutcomeGuard::new(Some(ticket));
        let mut pending = PendingAnswer::new(&call, self.allowed_requests, self.timeouts, outcome);
        let delivered = match &self.transport {
            TransportKind::Http(endpoint) => {
                let delivered = self.exchange(endpoint, &call, &headers, &fields).await;
                pending.outcome.status = delivered.as_ref().ok().map(|delivery| delivery.status);
                delivered
            }
            TransportKind::Channels(channels) => Box::pin(channels.exchange(&call, &headers)).await,
        };
        pending.answer(delivered).await
    }

    async fn exchange(
        &self,
        endpoint: &Arc<Endpoint>,
        call: &Call,
        headers: &ForwardHeaders,
        fields: &HeaderMap,
    ) -> Result<Delivery, ForwardError> {
        let client = if call.method.is_stream() {
            &endpoint.streams
        } else {
            &endpoint.client
        };
        let response = endpoint
            .exchange(client, &http_method(call.method), fields, &call.body)
            .await?;
        let (status, session) = (response.status(), session_of(response.headers()));
        let body = match media(response.headers()) {
            Media::Events if status.is_success() => DeliveredBody::Events(
                EventSource::of_body(response.into_body(), self.timeouts.max_event),
                (call.era == Era::Legacy).then(|| self.denials(endpoint, call, headers)),
            ),
            Media::Json => DeliveredBody::Json(response.into_body()),
            Media::Events | Media::Other => DeliveredBody::Nothing,
        };
        Ok(Delivery {
            status,
            session,
            pending_session: None,
            body,
        })
    }

    /// Refuses forbidden requests in the session of this call. An `initialize` has none yet.
    fn denials(&self, endpoint: &Arc<Endpoint>, call: &Call, headers: &ForwardHeaders) -> Box<DenialSender> {
        let mut fields: HeaderMap = mcp::mirror_headers(call.era, call.version, Method::Answer, None)
            .into_iter()
            .collect();
        let session = headers.session.as_ref();
        set_session_headers(&mut fields, session.filter(|_| call.method != Method::Initialize));
        Box::new(DenialSender::over_http(endpoint.clone(), self.name.clone(), fields))
    }
}
