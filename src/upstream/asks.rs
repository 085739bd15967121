//! What servers ask of the clients that called them, held to what each may ask. In the old era a request that is not
//! allowed is withheld and answered here, in the server's own session; in the new one it ends the call it came with.

use super::failed::Failed;
use super::link::Link;
use super::server::Upstream;
use crate::domain::{ClientRequest, ClientRequests, Era, Method, Reason};
use crate::mcp::{self, Ask, ResultType, Said, Wish};
use bytes::Bytes;
use http::HeaderMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The longest id that still fits into what the client is given for it.
pub(super) const LONGEST_ID: usize = 512;

/// Whether a server may ask this.
pub(super) fn allowed(ask: &Ask, requests: ClientRequests) -> bool {
    match ask.wish {
        Wish::Ping => true,
        Wish::Client(request) => requests.allow(request),
        Wish::Other => false,
    }
}

/// Whether a result may go to the client: of a type that its method can have, asking for nothing that is not allowed.
pub(super) fn check_result(said: &Said, era: Era, method: Method, requests: ClientRequests) -> Result<(), Failed> {
    if era == Era::Legacy {
        return Ok(());
    }
    match said.result_type {
        ResultType::Complete => (),
        ResultType::InputRequired if method.takes_input() => (),
        ResultType::InputRequired => return Err(Failed::broken("the server asks for input where none can be given")),
        ResultType::Task if method == Method::ToolsCall => (),
        ResultType::Task => return Err(Failed::broken("the server makes a task of what cannot be one")),
        ResultType::Unknown => return Err(Failed::broken("the server's result is of a type that is not known")),
    }
    match said.asks.iter().find(|ask| !allowed(ask, requests)) {
        None => Ok(()),
        Some(ask) => Err(refused(&ask.method)),
    }
}

/// Whether an error asks for what a request may not ask for.
pub(super) fn wants_too_much(said: &Said, requests: ClientRequests) -> bool {
    said.wants_url && !requests.allow(ClientRequest::ElicitationUrl)
}

/// What such an error asks for.
pub(super) const URL: &str = "elicitation/create";

pub(super) fn refused(method: &str) -> Failed {
    Failed::after_sending(Reason::ClientRequestRefused, format!("`{}`", shown(method)))
}

/// A server's word, fit for a record or a sentence.
pub(super) fn shown(word: &str) -> String {
    word.chars().take(64).flat_map(char::escape_debug).collect()
}

/// Tells a server that some of its requests go nowhere. Polled with the stream they came on, and gone with it.
pub(super) struct Refusals {
    to: Asker,
    sending: Vec<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// Where a refused request came from.
enum Asker {
    /// With the session and version that its stream belongs to.
    Server(Upstream, HeaderMap),
    Link(Arc<Link>),
}

/// A server that asks faster than it takes refusals hears no more of them.
const MOST_AT_ONCE: usize = 16;

impl Refusals {
    pub fn new(upstream: Upstream, fields: HeaderMap) -> Self {
        Self {
            to: Asker::Server(upstream, fields),
            sending: Vec::new(),
        }
    }

    pub fn over(link: Arc<Link>) -> Self {
        Self {
            to: Asker::Link(link),
            sending: Vec::new(),
        }
    }

    /// `id` as the server wrote it.
    pub fn send(&mut self, id: &str) {
        let (upstream, fields) = match &self.to {
            Asker::Link(link) => return link.refuse(id),
            Asker::Server(..) if self.sending.len() >= MOST_AT_ONCE => return,
            Asker::Server(upstream, fields) => (upstream.clone(), fields.clone()),
        };
        let id = crate::domain::MessageId::from_json(Bytes::copy_from_slice(id.as_bytes()));
        let body = mcp::error(Some(&id), -32601, "the client does not offer this", None);
        self.sending.push(Box::pin(async move {
            if let Err(failed) = upstream.tell(&http::Method::POST, &fields, &body).await {
                tracing::debug!(server = %upstream.name(), %failed, "the server did not take a refusal");
            }
        }));
    }

    pub fn poll(&mut self, context: &mut Context<'_>) {
        self.sending
            .retain_mut(|sending| matches!(sending.as_mut().poll(context), Poll::Pending));
    }
}
