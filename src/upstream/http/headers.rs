//! The MCP headers of a request to a server, and the session id in its response.

use crate::domain::{Call, Era, HttpVerb, Method, ProtocolVersion};
use crate::mcp;
use crate::sessions::HandleOwner;
use crate::sessions::UpstreamSessionId;
use http::{HeaderMap, HeaderName, HeaderValue};

/// What a request needs beside the call itself. No value is taken from the caller unchecked.
#[derive(Debug, Clone, Default)]
pub struct ForwardHeaders {
    /// The upstream's own session id, unsealed from the id that the caller sent.
    pub session: Option<UpstreamSessionId>,
    /// The protocol version of that session, if it was not yet known when the call was decided.
    pub version: Option<ProtocolVersion>,
    /// `Last-Event-ID`, to resume a stream of the caller's own session.
    pub last_event_id: Option<String>,
    /// The owner of the session that an `initialize` opens.
    pub owner: Option<HandleOwner>,
    /// `Mcp-Param-*` headers that were checked against the arguments.
    pub params: Vec<(HeaderName, HeaderValue)>,
}

pub const fn http_method(method: Method) -> http::Method {
    match method.verb() {
        HttpVerb::Post => http::Method::POST,
        HttpVerb::Get => http::Method::GET,
        HttpVerb::Delete => http::Method::DELETE,
    }
}

/// The MCP headers of this call, written from the call that was decided.
pub fn forward_headers(call: &Call, headers: &ForwardHeaders) -> HeaderMap {
    let mut fields: HeaderMap =
        mcp::mirror_headers(call.era, headers.version.or(call.version), call.method, call.mirrored_name())
            .into_iter()
            .collect();
    let of_arguments = headers
        .params
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("mcp-param-"));
    fields.extend(of_arguments.cloned());
    if call.era == Era::Modern {
        return fields;
    }
    set_session_headers(&mut fields, headers.session.as_ref());
    if call.method == Method::OpenStream
        && let Some(Ok(last)) = headers.last_event_id.as_ref().map(|last| HeaderValue::from_str(last))
    {
        fields.insert(mcp::LAST_EVENT_ID, last);
    }
    fields
}

/// Adds `Mcp-Session-Id`, marked sensitive so that `Debug` hides it and HPACK never indexes it.
pub fn set_session_headers(fields: &mut HeaderMap, session: Option<&UpstreamSessionId>) {
    if let Some(Ok(mut session)) = session.map(|session| HeaderValue::from_str(session.as_str())) {
        session.set_sensitive(true);
        fields.insert(mcp::SESSION_ID, session);
    }
}

/// The `Mcp-Session-Id` header of a response.
pub enum SessionField {
    None,
    Id(UpstreamSessionId),
    Broken,
}

/// Reads the session id of a response. It is used only for answers to `initialize`.
pub fn session_of(headers: &HeaderMap) -> SessionField {
    let mut values = headers.get_all(mcp::SESSION_ID).iter();
    match (values.next(), values.next()) {
        (None, _) => SessionField::None,
        (Some(value), None) => match value.to_str().ok().and_then(UpstreamSessionId::parse) {
            Some(id) => SessionField::Id(id),
            None => SessionField::Broken,
        },
        (Some(_), Some(_)) => SessionField::Broken,
    }
}
