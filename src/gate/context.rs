//! What is known of a request. [`RequestContext`] travels with a message from stage to stage; at any point of the path it
//! holds enough to record and answer a refusal.

use super::authn::CallerProfile;
use crate::decide::Basis;
use crate::domain::{Era, JudgedInput, MessageId, Method, Principal, Refusal, RequestId, ServerName, Timestamp, ToolName};
use crate::mcp::{Namespace, StreamKind};
use crate::transport::{Body, ExchangeEnd};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Map, Value};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// One message on its way through the stages. The receiving stage makes it and the parser fills in `message`; no later
/// stage changes it.
#[derive(Clone)]
pub struct RequestContext {
    pub request: RequestId,
    /// The time that the decision uses: when the body had arrived.
    pub at: Timestamp,
    pub started: Instant,
    pub source: IpAddr,
    /// The request came over HTTP/2, where a badly framed request does not endanger the next one.
    pub is_http2: bool,
    /// Knows who ended the exchange with the client, if it ends before its answer.
    pub exchange: ExchangeEnd,
    /// The origin of the web page that may read the response (CORS).
    pub allowed_origin: Option<HeaderValue>,
    pub server: Option<ServerName>,
    /// `None` until the caller is authenticated.
    pub principal: Option<Arc<Principal>>,
    /// The message is the part of one server in a message to all of them.
    pub is_part: bool,
    pub message: MessageSummary,
}

/// What the message says, as far as it was read: for records, replies and metrics.
#[derive(Clone)]
pub struct MessageSummary {
    pub id: Option<MessageId>,
    pub era: Era,
    pub method: Option<Method>,
    /// The method name as received, if no method was resolved; truncated and without control characters.
    pub raw_method: Option<String>,
    /// The requested protocol version as received; truncated and without control characters.
    pub raw_version: Option<String>,
    pub tool: Option<String>,
    /// The target other than a tool: a URI, a prompt, or the subjects of a subscription.
    pub target: Option<String>,
    /// The tools whose tasks a subscription is to report on.
    pub task_tools: Vec<ToolName>,
    pub arguments: Option<Bytes>,
    /// The label of the session, for records.
    pub session: Option<String>,
    pub trace: Option<String>,
}

/// A response for the client, and what is counted of it.
pub struct Answered {
    pub response: Response<Body>,
    pub context: RequestContext,
    /// The HTTP status of the server's answer; `None` for a stream, and if no server was asked.
    pub server_status: Option<StatusCode>,
    /// The parts of the message, one for each server, are counted instead of the whole.
    pub is_split: bool,
}

/// A refused message, with everything that its record and its response are made of.
pub struct RefusedRequest {
    pub refusal: Refusal,
    pub context: RequestContext,
    /// The caller, once loaded.
    pub caller: Option<CallerProfile>,
    pub judged: Option<JudgedInput>,
    pub basis: Option<Basis>,
    /// What `decide` said, where it is not this refusal.
    pub decided: Option<&'static str>,
    /// The arguments, if they were parsed before the refusal.
    pub arguments: Option<Map<String, Value>>,
    /// The called tool exists, but this caller's `tools/list` hides it.
    pub hidden_from_caller: bool,
    pub audit: RefusalAudit,
}

/// What the journal says of a refused message already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalAudit {
    /// Nothing yet.
    Pending,
    /// The call was permitted and recorded, so a later failure is its outcome and not a second decision.
    PermitRecorded,
    /// The part of one server was recorded (`true`) or only counted (`false`), and this refusal quotes its record.
    PartRecorded(bool),
}

impl RequestContext {
    pub fn new(request: RequestId, at: Timestamp, source: IpAddr, is_http2: bool) -> Self {
        Self {
            request,
            at,
            started: Instant::now(),
            source,
            is_http2,
            exchange: ExchangeEnd::default(),
            allowed_origin: None,
            server: None,
            principal: None,
            is_part: false,
            message: MessageSummary::default(),
        }
    }

    /// The same request as the part of one server.
    pub fn for_server(self, server: ServerName) -> Self {
        Self {
            server: Some(server),
            is_part: true,
            ..self
        }
    }

    /// The same message with a record of its own.
    pub fn again(&self, request: RequestId) -> Self {
        Self {
            request,
            started: Instant::now(),
            ..self.clone()
        }
    }

    /// The called tool by the name that the client used.
    pub fn called_tool(&self) -> Option<String> {
        let tool = self.message.tool.as_deref()?;
        Some(self.client_name(tool))
    }

    /// A server's own name for a tool as this client knows it: with the server before it, if the client sees all servers
    /// together.
    pub fn client_name(&self, tool: &str) -> String {
        match self.server.as_ref().filter(|_| self.is_part) {
            Some(server) => Namespace::new(server.clone(), StreamKind::Answer).name(tool),
            None => tool.to_owned(),
        }
    }

    /// Refuses the message with what is known of it.
    pub fn refuse(self, refusal: impl Into<Refusal>) -> Box<RefusedRequest> {
        Box::new(RefusedRequest {
            refusal: refusal.into(),
            context: self,
            caller: None,
            judged: None,
            basis: None,
            decided: None,
            arguments: None,
            hidden_from_caller: false,
            audit: RefusalAudit::Pending,
        })
    }

    /// Refuses a call whose permit is recorded: the refusal is its outcome.
    pub fn refuse_permitted(self, refusal: Refusal) -> Box<RefusedRequest> {
        let mut refused = self.refuse(refusal);
        refused.audit = RefusalAudit::PermitRecorded;
        refused
    }

    /// A response that no server took part in.
    pub fn answered(self, response: Response<Body>) -> Answered {
        Answered {
            response,
            context: self,
            server_status: None,
            is_split: false,
        }
    }
}

impl Default for MessageSummary {
    /// A message is of the legacy era until it says otherwise.
    fn default() -> Self {
        Self {
            id: None,
            era: Era::Legacy,
            method: None,
            raw_method: None,
            raw_version: None,
            tool: None,
            target: None,
            task_tools: Vec::new(),
            arguments: None,
            session: None,
            trace: None,
        }
    }
}

impl MessageSummary {
    /// The method's name for logs and records.
    pub fn method_name(&self) -> &str {
        match (&self.method, &self.raw_method) {
            (Some(method), _) => method.as_str(),
            (None, Some(raw)) => raw,
            (None, None) => "unreadable",
        }
    }
}
