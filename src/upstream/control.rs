//! Guardian's own requests to a server over HTTP, with the answer as JSON or from an event stream. No caller is
//! involved.

use super::answer_rules::AnswerRules;
use super::control_reply::{ControlReply, parse_control_reply};
use super::event_source::EventSource;
use super::forward_error::ForwardError;
use super::http::{Endpoint, Media, SessionField, media, read_answer_body, session_of};
use super::outcome::OutcomeGuard;
use super::server::{TransportKind, Upstream};
use super::stream::{EventStream, StreamRules};
use crate::domain::{self, ClientRequests, Era, MessageId};
use crate::sessions::UpstreamSessionId;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;

/// The response to a request of Guardian's own.
pub(super) struct ControlResponse {
    pub status: StatusCode,
    pub reply: ControlReply,
    pub session: Option<UpstreamSessionId>,
}

impl Upstream {
    /// Sends a request with this `id` and waits for its answer.
    pub(super) async fn ask(
        &self,
        era: Era,
        fields: &HeaderMap,
        id: u64,
        method: &str,
        params: &Value,
    ) -> Result<ControlResponse, ForwardError> {
        let message = serde_json::json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let id = MessageId::from_json(Bytes::from(id.to_string()));
        let endpoint = self.endpoint()?;
        let response = endpoint
            .exchange(&endpoint.client, &Method::POST, fields, &Bytes::from(message.to_string()))
            .await?;
        let status = response.status();
        let session = match session_of(response.headers()) {
            SessionField::Id(id) => Some(id),
            SessionField::None | SessionField::Broken => None,
        };
        let body = match media(response.headers()) {
            Media::Json => Some(read_answer_body(response.into_body(), &self.timeouts).await?),
            Media::Events => {
                let rules = StreamRules {
                    answer: AnswerRules {
                        id: Some(id.clone()),
                        era,
                        method: domain::Method::Ping,
                        // The server may request nothing here.
                        allowed_requests: ClientRequests::default(),
                    },
                    denials: None,
                    idle: Some(self.timeouts.idle),
                };
                let source = EventSource::of_body(response.into_body(), self.timeouts.max_event);
                let stream = EventStream::new(source, rules, OutcomeGuard::new(None));
                Some(stream.into_answer().await?.0)
            }
            Media::Other => None,
        };
        let reply = match body {
            Some(body) => parse_control_reply(&body, &id, status)?,
            None => ControlReply::Nothing,
        };
        Ok(ControlResponse { status, reply, session })
    }

    /// Sends a message that has no answer.
    pub(super) async fn notify(&self, method: &Method, fields: &HeaderMap, body: &Bytes) -> Result<(), ForwardError> {
        let endpoint = self.endpoint()?;
        endpoint.exchange(&endpoint.client, method, fields, body).await.map(drop)
    }

    fn endpoint(&self) -> Result<&Endpoint, ForwardError> {
        match &self.transport {
            TransportKind::Http(endpoint) => Ok(endpoint),
            TransportKind::Channels(_) => Err(ForwardError::bad_response("this server is spoken to over a link")),
        }
    }
}
