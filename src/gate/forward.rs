//! The sixth stage: sends a recorded call to its server. The grants are asked once more just before, and nothing is sent
//! twice.

use super::Gate;
use super::context::{RefusedRequest, RequestContext};
use super::record::{RecordedCall, refund};
use super::screen::Screen;
use crate::domain::{Method, ProtocolVersion, Reason, Refusal};
use crate::grants::GrantSnapshot;
use crate::limits::{Admission, PrincipalKey};
use crate::mcp::Namespace;
use crate::sessions::{HandleOwner, Session};
use crate::upstream::{Answer, ForwardError, ForwardHeaders};
use http::HeaderMap;
use std::pin::Pin;

/// How a message reaches its server, and how the answer comes back.
pub struct DispatchOptions<'a> {
    /// The client's headers; only `Mcp-Param-*` are used.
    pub headers: &'a HeaderMap,
    /// The server's session that the message belongs to.
    pub session: Option<Session>,
    /// The server's own id of the event to resume after, on a stream of that session.
    pub last_event_id: Option<String>,
    /// Opens a session once the call is permitted, if there is none before.
    pub opening: Option<SessionOpening<'a>>,
    /// `None` for a message that was counted against the limits already.
    pub limits_key: Option<PrincipalKey>,
    /// Set where names in the answer get the server as a prefix.
    pub namespace: Option<Namespace>,
}

/// The opening of a session: `None` if the server keeps no sessions, and the version that was agreed on.
pub type SessionOpening<'a> = Pin<Box<dyn Future<Output = Result<(Option<Session>, ProtocolVersion), Refusal>> + Send + 'a>>;

/// An answered call.
pub(super) struct ForwardedCall {
    pub context: Box<RequestContext>,
    pub answer: Answer,
    pub screen: Screen,
    pub grant_snapshot: GrantSnapshot,
    pub admission: Option<Admission>,
}

impl Gate {
    /// Opens a session if one is to be opened, checks the grants again, and sends the call.
    pub(super) async fn forward(
        &self,
        mut recorded: RecordedCall,
        mut to: DispatchOptions<'_>,
    ) -> Result<ForwardedCall, Box<RefusedRequest>> {
        let mut version = None;
        if let Some(opening) = to.opening.take() {
            match opening.await {
                Ok((opened, agreed)) => (to.session, version) = (opened, Some(agreed)),
                Err(refusal) => return Err(recorded.abort(refusal, "no session could be opened")),
            }
            recorded.screen.bind_session(to.session.as_ref());
        }
        let now = (self.parts.clock.now)();
        if let Err(reason) = self.parts.grants.recheck(&recorded.grant_snapshot, now) {
            return Err(recorded.abort(reason.into(), reason.code()));
        }
        let call = recorded.cleared.call();
        let Some(upstream) = self.parts.upstreams.get(&call.server) else {
            return Err(recorded.abort(Reason::UnknownServer.into(), Reason::UnknownServer.code()));
        };
        let opens = call.method == Method::Initialize;
        // Guardian keeps the sessions of such a server itself, and the server could not tell whose message this is.
        if upstream.is_persistent() && to.session.is_none() && !opens {
            let refusal = Refusal::with_detail(Reason::InvalidRequest, "`Mcp-Session-Id` is missing: initialize first");
            return Err(recorded.abort(refusal, "not sent: the client has no session"));
        }
        let headers = ForwardHeaders {
            owner: opens.then(|| HandleOwner::new(&recorded.grant_snapshot.principal, &call.server)),
            session: to.session.map(|session| session.id),
            version,
            last_event_id: to.last_event_id,
            params: recorded.params,
        };
        if let Some(claim) = recorded.claim {
            claim.spend();
        }
        match upstream.forward(recorded.cleared, headers).await {
            Ok(answer) => Ok(ForwardedCall {
                context: recorded.context,
                answer,
                screen: recorded.screen,
                grant_snapshot: recorded.grant_snapshot,
                admission: recorded.admission,
            }),
            Err(error) => {
                let (server, why) = (upstream.name(), error.for_operator());
                tracing::warn!(request = %recorded.context.request, %server, why, "the server did not answer properly");
                Err(recorded.context.refuse_permitted(error.into()))
            }
        }
    }
}

impl RecordedCall {
    /// Ends a recorded call that is not sent after all. It uses up nothing.
    fn abort(self, refusal: Refusal, why: &'static str) -> Box<RefusedRequest> {
        self.cleared.abort(why);
        refund(self.admission);
        self.context.refuse_permitted(refusal)
    }
}

impl From<ForwardError> for Refusal {
    fn from(error: ForwardError) -> Self {
        Refusal::with_detail(error.reason, error.detail)
    }
}
