//! Which requests a server may make of its client (sampling, elicitation, roots), set per server. In the legacy era a
//! forbidden request is withheld and refused; in the modern era it makes the call fail.

use super::forward_error::ForwardError;
use crate::domain::{ClientRequest, ClientRequests, Era, Method, Reason, SafeText};
use crate::mcp::{ClientRequestRef, RequestedCapability, ResultType, ServerMessage};

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
