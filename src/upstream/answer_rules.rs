//! What makes a server's message the answer to one request, and whether the client may get it.

use super::client_requests::{ELICITATION_METHOD, denied, is_allowed};
use super::forward_error::ForwardError;
use crate::domain::{ClientRequest, ClientRequests, Era, MessageId, Method};
use crate::mcp::{MessageKind, ResultType, ServerMessage};
use bytes::Bytes;

/// The request that waits for an answer, and what its server may ask of the client.
#[derive(Debug, Clone)]
pub(super) struct AnswerRules {
    /// `None` for a message without an answer, and for the GET stream of a legacy session.
    pub id: Option<MessageId>,
    pub era: Era,
    pub method: Method,
    pub allowed_requests: ClientRequests,
}

impl AnswerRules {
    /// Checks a message that must be the answer. Returns it, and whether it is an error. An error without an id is taken as
    /// the error of this request and gets its id.
    pub fn check(
        &self,
        body: Bytes,
        kind: &MessageKind,
        message: ServerMessage,
    ) -> Result<(Bytes, ServerMessage, bool), ForwardError> {
        let unreadable = |what: &str| ForwardError::bad_response(format!("the server's answer cannot be read: {what}"));
        match (kind, &self.id) {
            (MessageKind::Result { is_error }, _) => {
                self.check_result(&message)?;
                Ok((body, message, *is_error))
            }
            (MessageKind::Error { .. }, _) if self.demands_forbidden_url(&message) => Err(denied(ELICITATION_METHOD)),
            (MessageKind::Error { addressed: false, .. }, Some(id)) => match message.readdressed(&body, id) {
                Ok(body) => Ok((body, ServerMessage::default(), true)),
                Err(fault) => Err(ForwardError::bad_response(fault.detail)),
            },
            (MessageKind::Error { .. }, _) => Ok((body, message, true)),
            (MessageKind::OtherResponse, _) => Err(ForwardError::bad_response("the server answered another request")),
            (MessageKind::ServerRequest | MessageKind::ServerNotification, _) => {
                Err(ForwardError::bad_response("the server sent no answer"))
            }
            (MessageKind::Malformed(what), _) => Err(unreadable(what)),
        }
    }

    /// Whether the server may make all requests that the message holds.
    pub fn allows_requests_in(&self, message: &ServerMessage) -> bool {
        let mut requests = message.client_requests.iter();
        requests.all(|request| is_allowed(request, self.allowed_requests))
    }

    /// Whether an error (code -32042) demands URL elicitation although the configuration does not allow it.
    pub fn demands_forbidden_url(&self, message: &ServerMessage) -> bool {
        message.needs_url_elicitation && !self.allowed_requests.allow(ClientRequest::ElicitationUrl)
    }

    /// Whether a result may go to the client: its `resultType` must suit the method, and every request in it must be
    /// allowed. Legacy results have neither, so they pass.
    fn check_result(&self, message: &ServerMessage) -> Result<(), ForwardError> {
        if self.era == Era::Legacy {
            return Ok(());
        }
        let wrong = match message.result_type {
            ResultType::Complete => None,
            ResultType::InputRequired if self.method.takes_input() => None,
            ResultType::InputRequired => Some("the server asks for input where none can be given"),
            ResultType::Task if self.method == Method::ToolsCall => None,
            ResultType::Task => Some("the server makes a task of what cannot be one"),
            ResultType::Unknown => Some("the server's result is of a type that is not known"),
        };
        if let Some(wrong) = wrong {
            return Err(ForwardError::bad_response(wrong));
        }
        let mut requests = message.client_requests.iter();
        match requests.find(|request| !is_allowed(request, self.allowed_requests)) {
            None => Ok(()),
            Some(request) => Err(denied(&request.method)),
        }
    }
}
