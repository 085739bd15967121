//! Which requests a server may make of its client (sampling, elicitation, roots), set per server. In the legacy era a
//! forbidden request is withheld and refused; in the modern era it makes the call fail.

use super::error::ForwardError;
use crate::domain::{ClientRequests, CutBy, Reason, SafeText};
use crate::mcp::{ClientRequestRef, RequestedCapability};

/// The longest request id of a server that is passed on: a longer one does not fit into the handle that the client gets
/// for it.
pub(super) const LONGEST_ID: usize = 512;

/// The method that an error with code -32042 stands for.
pub(super) const ELICITATION_METHOD: &str = "elicitation/create";

/// Whether this request is allowed.
pub(super) fn is_allowed(client_request: &ClientRequestRef, requests: ClientRequests) -> bool {
    match client_request.capability {
        RequestedCapability::Ping => true,
        RequestedCapability::Client(request) => requests.allow(request),
        RequestedCapability::Other => false,
    }
}

/// The failure for a client request that the configuration does not allow.
pub(super) fn denied(method: &str) -> ForwardError {
    ForwardError::cut(
        CutBy::ForbiddenRequest,
        Reason::ClientRequestRefused,
        format!("`{}`", safe_text(method)),
    )
}

/// Text from a server, as a record or a message may hold it.
pub(super) fn safe_text(word: &str) -> String {
    SafeText::new(word, 64).to_string()
}
