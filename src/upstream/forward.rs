//! Sends a cleared call once and reads the answer: JSON, an event stream, or nothing. The outcome is recorded however
//! the call ends. No call is sent twice.

use super::answer::{Answer, accepted_answer, json_answer, refused_answer};
use super::denial_sender::DenialSender;
use super::forward_error::ForwardError;
use super::http::{
    ForwardHeaders, Media, forward_headers, http_method, media, read_answer_body, session_of, set_session_headers,
};
use super::outcome::OutcomeGuard;
use super::server::{TransportKind, Upstream};
use super::stream::{EventStream, StreamRules};
use crate::domain::{Call, Era, Method};
use crate::journal::Cleared;
use crate::mcp::{self, MessageKind, parse_server_message};
use crate::sessions::UpstreamSessionId;
use crate::transport::ResponseBody;
use http::{HeaderMap, Response, StatusCode};
use tokio::time::timeout;

impl Upstream {
    /// Sends a cleared call and returns the server's answer, or why there is none. Nothing is sent twice.
    pub async fn forward(&self, cleared: Cleared, headers: ForwardHeaders) -> Result<Answer, ForwardError> {
        let fields = forward_headers(cleared.call(), &headers);
        let (call, ticket) = cleared.into_sending();
        let mut outcome = OutcomeGuard::new(Some(ticket));
        let endpoint = match &self.transport {
            TransportKind::Http(endpoint) => endpoint,
            TransportKind::Channels(channels) => return Box::pin(channels.forward(&call, &headers, outcome)).await,
        };
        let client = if call.method.is_stream() {
            &endpoint.streams
        } else {
            &endpoint.client
        };
        match endpoint
            .exchange(client, &http_method(call.method), &fields, &call.body)
            .await
        {
            Ok(response) => {
                let session = headers.session.as_ref();
                self.answer(response, &call, session, outcome).await
            }
            Err(error) => {
                outcome.failed(&error);
                Err(error)
            }
        }
    }

    /// Chooses how to read the response: as a stream, or as one message.
    async fn answer(
        &self,
        response: Response<ResponseBody>,
        call: &Call,
        session: Option<&UpstreamSessionId>,
        mut outcome: OutcomeGuard,
    ) -> Result<Answer, ForwardError> {
        outcome.status = Some(response.status());
        let success = response.status().is_success();
        let read = match (success, media(response.headers()), &call.id, call.method) {
            (true, Media::Events, Some(_), Method::Initialize) => {
                let opened = self.opened_by_stream(response, call, &mut outcome);
                let late = |_| Err(ForwardError::timeout("the server took too long to open a session"));
                timeout(self.timeouts.first_byte, opened).await.unwrap_or_else(late)
            }
            (true, Media::Events, Some(_), _) | (true, Media::Events, None, Method::OpenStream) => {
                return Ok(Answer::Stream(self.frames(response, call, session, outcome)));
            }
            _ => self.read_answer(response, call, &mut outcome).await,
        };
        if let Err(error) = &read {
            outcome.failed(error);
        }
        read
    }

    fn frames(
        &self,
        response: Response<ResponseBody>,
        call: &Call,
        session: Option<&UpstreamSessionId>,
        outcome: OutcomeGuard,
    ) -> EventStream {
        let denials = match &self.transport {
            TransportKind::Http(endpoint) if call.era == Era::Legacy => {
                let mut headers: HeaderMap = mcp::mirror_headers(call.era, call.version, Method::Answer, None)
                    .into_iter()
                    .collect();
                set_session_headers(&mut headers, session);
                Some(Box::new(DenialSender::over_http(
                    endpoint.clone(),
                    self.name.clone(),
                    headers,
                )))
            }
            TransportKind::Http(_) | TransportKind::Channels(_) => None,
        };
        let rules = StreamRules {
            id: call.id.clone(),
            era: call.era,
            method: call.method,
            allowed_requests: self.allowed_requests,
            denials,
            max_event: self.timeouts.max_event,
            idle: (!call.method.is_stream()).then_some(self.timeouts.idle),
        };
        EventStream::new(response.into_body(), rules, outcome)
    }

    /// `initialize` is never streamed to the client: its answer is taken out of the stream, because the session id can
    /// only be sealed together with the negotiated version.
    async fn opened_by_stream(
        &self,
        response: Response<ResponseBody>,
        call: &Call,
        outcome: &mut OutcomeGuard,
    ) -> Result<Answer, ForwardError> {
        let status = response.status();
        let opening = Some(session_of(response.headers()));
        let mut stream = self.frames(response, call, None, OutcomeGuard::new(None));
        while let Some(event) = stream.next().await {
            let event = event?;
            let (Some(kind @ (MessageKind::Result { .. } | MessageKind::Error { .. })), Some(body)) =
                (event.kind, event.frame.data)
            else {
                continue;
            };
            outcome.bytes = body.len() as u64;
            return json_answer(
                status,
                body,
                (kind, event.server_message),
                call,
                self.allowed_requests,
                opening,
                outcome,
            );
        }
        Err(ForwardError::bad_response("the server ended its stream before it answered"))
    }

    /// Reads a response that is not an event stream.
    async fn read_answer(
        &self,
        response: Response<ResponseBody>,
        call: &Call,
        outcome: &mut OutcomeGuard,
    ) -> Result<Answer, ForwardError> {
        let status = response.status();
        let Some(id) = &call.id else {
            return accepted_answer(status, call.method, outcome);
        };
        if status == StatusCode::ACCEPTED || status == StatusCode::NO_CONTENT {
            return Err(ForwardError::bad_response("the server took the request without answering it").with_status(status));
        }
        let opening = (call.method == Method::Initialize).then(|| session_of(response.headers()));
        let json = media(response.headers()) == Media::Json;
        if status.is_success() && !json {
            return Err(
                ForwardError::bad_response("the server's answer is neither JSON nor an event stream").with_status(status),
            );
        }
        if !json {
            return refused_answer(status, outcome);
        }
        let body = read_answer_body(response.into_body(), &self.timeouts)
            .await
            .map_err(|error| error.with_status(status))?;
        outcome.bytes = body.len() as u64;
        let (kind, server_message) = parse_server_message(&body, id);
        if !status.is_success() && !matches!(kind, MessageKind::Error { .. }) {
            return refused_answer(status, outcome);
        }
        json_answer(
            status,
            body,
            (kind, server_message),
            call,
            self.allowed_requests,
            opening,
            outcome,
        )
    }
}
