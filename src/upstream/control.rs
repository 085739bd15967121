//! Guardian's own requests to a server over HTTP, with the answer as JSON or from an event stream. No caller is
//! involved.

use super::control_reply::{ControlReply, parse_control_reply};
use super::forward_error::ForwardError;
use super::http::{Endpoint, Media, SessionField, media, read_answer_body, session_of};
use super::outcome::OutcomeGuard;
use super::server::{TransportKind, Upstream};
use super::stream::{EventStream, StreamRules};
use crate::domain::{self, ClientRequests, Era, MessageId};
use crate::mcp::MessageKind;
use crate::sessions::UpstreamSessionId;
use crate::transport::ResponseBody;
use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};
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
            Media::Events => Some(self.answer_in(response, era, id.clone()).await?),
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

    /// Takes the answer out of an event stream. The server may request nothing here: `asks` is empty.
    async fn answer_in(&self, response: Response<ResponseBody>, era: Era, id: MessageId) -> Result<Bytes, ForwardError> {
        let rules = StreamRules {
            id: Some(id),
            era,
            method: domain::Method::Ping,
            allowed_requests: ClientRequests::default(),
            denials: None,
            max_event: self.timeouts.max_event,
            idle: Some(self.timeouts.idle),
        };
        let mut stream = EventStream::new(response.into_body(), rules, OutcomeGuard::new(None));
        while let Some(event) = stream.next().await {
            let event = event?;
            if let (Some(MessageKind::Result { .. } | MessageKind::Error { .. }), Some(data)) = (event.kind, event.frame.data) {
                return Ok(data);
            }
        }
        Err(ForwardError::bad_response("the server ended its stream before it answered"))
    }
}
