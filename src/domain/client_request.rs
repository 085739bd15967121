//! What a server may request from the client that called it. Whether the client asks a person before it answers is up to
//! the client.

use serde::{Deserialize, Serialize};

/// One kind of request from a server to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientRequest {
    /// `sampling/createMessage`: to have the client's model write something.
    Sampling,
    /// `elicitation/create`: to have the user fill in a form.
    Elicitation,
    /// The same with a URL that the user is to open.
    ElicitationUrl,
    /// `roots/list`: which folders the client works in.
    Roots,
}

impl ClientRequest {
    /// Every kind.
    pub const ALL: [ClientRequest; 4] = [Self::Sampling, Self::Elicitation, Self::ElicitationUrl, Self::Roots];
}

/// The kinds of request that one server may send to its clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientRequests([bool; 4]);

impl ClientRequests {
    /// Whether the server may send this kind.
    pub fn allow(self, request: ClientRequest) -> bool {
        self.0[request as usize]
    }

    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// The kinds that may be sent.
    pub fn kinds(self) -> impl Iterator<Item = ClientRequest> {
        ClientRequest::ALL.into_iter().filter(move |kind| self.allow(*kind))
    }

    /// Whether all of these kinds are among `others`.
    pub fn are_among(self, others: Self) -> bool {
        self.kinds().all(|kind| others.allow(kind))
    }
}

impl FromIterator<ClientRequest> for ClientRequests {
    fn from_iter<I: IntoIterator<Item = ClientRequest>>(requests: I) -> Self {
        let mut allowed = Self::default();
        requests.into_iter().for_each(|request| allowed.0[request as usize] = true);
        allowed
    }
}
