//! The first two stages: checks the head of an HTTP request, authenticates its caller and reads its body. Does not look into
//! the message.

use super::authn::Authenticated;
use super::body_budget::BodyRefused;
use super::context::{Answered, RefusedRequest, RequestContext};
use super::message::peek_id;
use super::routing::{self, Route};
use super::{Gate, cors, reply};
use crate::domain::{HttpVerb, Reason, Refusal, ServerName, Timestamp};
use crate::limits::PrincipalKey;
use crate::transport::{BodyProblem, Peer};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, request};
use hyper::body::Incoming;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The request of an authenticated caller. `context` names the caller.
pub struct AuthenticatedRequest {
    pub context: RequestContext,
    pub headers: HeaderMap,
    pub verb: HttpVerb,
    pub body: Result<Bytes, BodyRefused>,
    pub authenticated: Authenticated,
    pub limits_key: PrincipalKey,
}

/// A request that passed the first two stages.
pub(super) enum ReceivedRequest {
    /// For one server, or for all of them if `context.server` is `None`.
    Message(AuthenticatedRequest),
    /// A document that needs no caller.
    Document(Answered),
}

/// Largest body that is read for an unauthenticated caller; only the request id in it is used.
const UNAUTHENTICATED_MAX_BODY: usize = 64 * 1024;
/// If the body took longer than this to arrive, the credential is checked again.
const REVERIFY_AFTER: Duration = Duration::from_secs(1);

impl Gate {
    /// Checks the head, authenticates the caller and reads the body.
    pub(super) async fn receive(&self, request: Request<Incoming>, peer: &Peer) -> Result<ReceivedRequest, Box<RefusedRequest>> {
        let (mut head, body) = request.into_parts();
        let clock = &self.parts.clock;
        let mut context = RequestContext::new((clock.request)(), (clock.now)(), peer.address.ip(), peer.http2);
        context.exchange = head.extensions.remove().unwrap_or_default();
        let route = self.checked_route(&head, &mut context);
        if route.is_ok() && cors::is_preflight(&head) {
            return Ok(ReceivedRequest::Document(context.answered(cors::preflight(&head))));
        }
        let server = match route {
            Ok(Route::Metadata(server)) => return self.resource_metadata(&head, server, context).map(ReceivedRequest::Document),
            Ok(Route::SignIn) => {
                let absent = self.parts.metadata.no_sign_in();
                return Ok(ReceivedRequest::Document(context.answered(absent)));
            }
            Ok(Route::Combined) => None,
            Ok(Route::Mcp(server)) => Some(server),
            Err(refusal) => return Err(context.refuse(refusal)),
        };
        match routing::verb(&head) {
            Ok(verb) => {
                let context = RequestContext { server, ..context };
                self.authenticated(head, verb, body, peer, context)
                    .await
                    .map(ReceivedRequest::Message)
            }
            Err(refusal) => Err(context.refuse(refusal)),
        }
    }

    /// Checks the head and notes which web page may read the response: of a document for everybody, any.
    fn checked_route(&self, head: &request::Parts, context: &mut RequestContext) -> Result<Route, Refusal> {
        let endpoints = &self.parts.endpoints;
        endpoints.check_head(head)?;
        let route = routing::route(head);
        context.allowed_origin = match route {
            Ok(Route::Metadata(_) | Route::SignIn) => Some(HeaderValue::from_static("*")),
            Ok(Route::Mcp(_) | Route::Combined) | Err(_) => endpoints.check_origin(&head.headers)?.cloned(),
        };
        route
    }

    /// Authenticates the caller and reads the body. The body of an unauthenticated caller is read too, up to a small size, so
    /// that the refusal answers its request id.
    async fn authenticated(
        &self,
        head: request::Parts,
        verb: HttpVerb,
        body: Incoming,
        peer: &Peer,
        mut context: RequestContext,
    ) -> Result<AuthenticatedRequest, Box<RefusedRequest>> {
        let authenticated = self.authenticate(&head, peer, context.server.as_ref(), context.at).await;
        let endpoints = &self.parts.endpoints;
        let (most, limits_key) = match &authenticated {
            Ok(authenticated) => (endpoints.max_body, Some(PrincipalKey::of(&authenticated.principal))),
            Err(_) => (endpoints.max_body.min(UNAUTHENTICATED_MAX_BODY), None),
        };
        let body = self.body_budget.read(body, most, endpoints.body_timeout, limits_key).await;
        let (mut authenticated, limits_key) = match (authenticated, limits_key) {
            (Ok(authenticated), Some(limits_key)) => (authenticated, limits_key),
            (Err(reason), _) => {
                context.message.id = body.ok().and_then(|body| peek_id(verb, body));
                return Err(context.refuse(reason));
            }
            (Ok(_), None) => return Err(context.refuse(Reason::Internal)),
        };
        context.principal = Some(authenticated.principal.clone());
        // The decision uses the time at which the body has arrived: a slow body takes up to half a minute, and the token may
        // expire meanwhile.
        let began = std::mem::replace(&mut context.at, (self.parts.clock.now)());
        if context.at.since(began) >= REVERIFY_AFTER {
            authenticated = match self.authenticate(&head, peer, context.server.as_ref(), context.at).await {
                Ok(authenticated) => authenticated,
                Err(reason) => return Err(context.refuse(reason)),
            };
        }
        if self.draining.load(Ordering::Relaxed) {
            return Err(context.refuse(Reason::Draining));
        }
        if !self.parts.grants.is_admitted() {
            context.message.id = body.ok().and_then(|body| peek_id(verb, body));
            return Err(context.refuse(Reason::StaleAuthorization));
        }
        Ok(AuthenticatedRequest {
            context,
            headers: head.headers,
            verb,
            body,
            authenticated,
            limits_key,
        })
    }

    async fn authenticate(
        &self,
        head: &request::Parts,
        peer: &Peer,
        server: Option<&ServerName>,
        now: Timestamp,
    ) -> Result<Authenticated, Reason> {
        let audience = self.parts.endpoints.resource(server);
        self.parts
            .authenticator
            .authenticate(&head.headers, peer, &audience, now)
            .await
    }

    fn resource_metadata(
        &self,
        head: &request::Parts,
        server: Option<ServerName>,
        context: RequestContext,
    ) -> Result<Answered, Box<RefusedRequest>> {
        if head.method != http::Method::GET {
            return Err(context.refuse(Reason::WrongHttpMethod));
        }
        // Of a server that does not exist it looks the same, so that strangers cannot try names.
        let metadata = &self.parts.metadata;
        let response = match metadata.document(&self.parts.endpoints, server.as_ref()) {
            Some(document) => reply::json_response(StatusCode::OK, document),
            None => metadata.no_sign_in(),
        };
        Ok(context.answered(response))
    }
}

impl From<BodyRefused> for Refusal {
    fn from(refused: BodyRefused) -> Self {
        match refused {
            BodyRefused::NoRoom => Refusal {
                retry_after: Some(Duration::from_secs(1)),
                ..Refusal::with_detail(Reason::TooManyInFlight, "too many messages are still on their way")
            },
            BodyRefused::Problem(BodyProblem::TooLarge) => Reason::BodyTooLarge.into(),
            BodyRefused::Problem(BodyProblem::TooSlow) => Reason::BodyTooSlow.into(),
            BodyRefused::Problem(problem @ (BodyProblem::Broken | BodyProblem::Trailers)) => {
                Refusal::with_detail(Reason::BadFraming, problem.to_string())
            }
        }
    }
}
