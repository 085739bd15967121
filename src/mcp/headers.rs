//! The MCP header fields, and whether they agree with the body. The body decides the era, the method and the target. A
//! header that contradicts it is refused, and the headers sent upstream are generated from the body.

use super::client_message::{Notification, Params, Request};
use super::json::{Malformed, quoted};
use crate::domain::{Era, Method, ProtocolVersion, Reason, TargetKind};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::borrow::Cow;

pub const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
pub const METHOD: HeaderName = HeaderName::from_static("mcp-method");
pub const NAME: HeaderName = HeaderName::from_static("mcp-name");
pub const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
pub const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The prefix of the headers that mirror arguments (`x-mcp-header`), with no name behind it.
const NAMELESS_PARAM: HeaderName = HeaderName::from_static("mcp-param-");

/// The MCP header fields of one HTTP request; each occurs at most once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct McpHeaders<'a> {
    pub protocol_version: Option<&'a str>,
    pub method: Option<&'a str>,
    pub name: Option<&'a str>,
    pub session: Option<&'a str>,
    pub last_event_id: Option<&'a str>,
}

/// Longest value of one of these fields. The connection bounds the whole head.
const MAX_VALUE: usize = 8 * 1024;

/// Takes the MCP header fields. A field that is repeated, empty, too long or not printable ASCII is refused.
pub fn read_mcp_headers(headers: &HeaderMap) -> Result<McpHeaders<'_>, Malformed> {
    if headers.contains_key(&NAMELESS_PARAM) {
        return Err(Malformed::new(Reason::HeaderMismatch, "`Mcp-Param-` names no parameter"));
    }
    Ok(McpHeaders {
        protocol_version: single(headers, &PROTOCOL_VERSION)?,
        method: single(headers, &METHOD)?,
        name: single(headers, &NAME)?,
        session: single(headers, &SESSION_ID)?,
        last_event_id: single(headers, &LAST_EVENT_ID)?,
    })
}

/// Determines the era from the body and checks that the headers agree. `session_version` is the version that the session
/// negotiated, if there is one.
pub fn negotiate(
    request: &Request,
    mcp_headers: &McpHeaders<'_>,
    session_version: Option<ProtocolVersion>,
) -> Result<(Era, Option<ProtocolVersion>), Malformed> {
    let named = NamedMethod {
        name: &request.method,
        method: request.known_method,
        is_request: true,
        params: request.params.as_ref(),
    };
    negotiate_any(&named, mcp_headers, session_version).map_err(|fault| Malformed {
        id: Some(request.id.clone()),
        ..fault
    })
}

/// The same for a notification.
pub fn negotiate_notification(
    notification: &Notification,
    mcp_headers: &McpHeaders<'_>,
    session_version: Option<ProtocolVersion>,
) -> Result<(Era, Option<ProtocolVersion>), Malformed> {
    let named = NamedMethod {
        name: &notification.method,
        method: None,
        is_request: false,
        params: notification.params.as_ref(),
    };
    negotiate_any(&named, mcp_headers, session_version)
}

/// The version for messages that only the legacy era has: GET, DELETE and responses. A session uses its negotiated
/// version. The header SHOULD repeat it, so another known legacy version is accepted and has no effect.
pub fn negotiate_bodyless(
    mcp_headers: &McpHeaders<'_>,
    session_version: Option<ProtocolVersion>,
) -> Result<Option<ProtocolVersion>, Malformed> {
    let Some(written) = mcp_headers.protocol_version else {
        return Ok(session_version);
    };
    let version = known_version(written)?;
    if version.era() == Era::Modern {
        return Err(mismatch(
            "MCP-Protocol-Version names a version without sessions, the message has no `_meta`",
        ));
    }
    Ok(Some(session_version.unwrap_or(version)))
}

/// The method, if it exists in this era and Guardian supports it.
pub fn method(request: &Request, era: Era) -> Option<Method> {
    request.known_method.filter(|method| method.is_in(era))
}

/// `Method::Notification`, if clients of this era may send this notification.
pub fn notification(notification: &Notification, era: Era) -> Option<Method> {
    const LEGACY: [&str; 4] = [
        "notifications/initialized",
        "notifications/cancelled",
        "notifications/progress",
        "notifications/roots/list_changed",
    ];
    (era == Era::Legacy && LEGACY.contains(&notification.method.as_str())).then_some(Method::Notification)
}

/// The header fields that mirror the body, for the request upstream.
pub fn mirror_headers(
    era: Era,
    version: Option<ProtocolVersion>,
    method: Method,
    name: Option<&str>,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut fields = Vec::with_capacity(3);
    if let Some(version) = version.filter(|_| method != Method::Initialize) {
        fields.push((PROTOCOL_VERSION, HeaderValue::from_static(version.as_str())));
    }
    if era == Era::Modern && method != Method::Notification {
        fields.push((METHOD, HeaderValue::from_static(method.as_str())));
        if let Some(Ok(name)) = name.map(|name| HeaderValue::from_str(&encode_header_value(name))) {
            fields.push((NAME, name));
        }
    }
    fields
}

/// The method of a message as its body names it, with its parameters.
struct NamedMethod<'a> {
    name: &'a str,
    /// The method, if a request of this name exists in some era.
    method: Option<Method>,
    is_request: bool,
    params: Option<&'a Params>,
}

fn negotiate_any(
    named: &NamedMethod<'_>,
    mcp_headers: &McpHeaders<'_>,
    session_version: Option<ProtocolVersion>,
) -> Result<(Era, Option<ProtocolVersion>), Malformed> {
    named.check_mirrored_headers(mcp_headers)?;
    let meta = named.params.and_then(|params| params.meta.as_ref());
    match meta.and_then(|meta| meta.protocol_version.as_deref()) {
        Some(written) => {
            let capable = meta.is_some_and(|meta| meta.client_capabilities.is_some());
            let version = named.modern_version(written, capable, mcp_headers)?;
            Ok((Era::Modern, Some(version)))
        }
        None if named.method == Some(Method::Discover) => Err(Malformed::new(
            Reason::InvalidParams,
            "`_meta` does not name the protocol version",
        )),
        None => Ok((Era::Legacy, named.legacy_version(mcp_headers, session_version)?)),
    }
}

impl NamedMethod<'_> {
    /// In every era `Mcp-Method` and `Mcp-Name` must equal what the body says, if they are there. Only the modern era
    /// requires them.
    fn check_mirrored_headers(&self, mcp_headers: &McpHeaders<'_>) -> Result<(), Malformed> {
        if mcp_headers.method.is_some_and(|written| written != self.name) {
            return Err(mismatch(format!("Mcp-Method does not name {}", quoted(self.name))));
        }
        let Some(written) = mcp_headers.name else {
            return Ok(());
        };
        let Some(decoded) = decode_header_value(written) else {
            return Err(mismatch("Mcp-Name is not canonical base64 of UTF-8"));
        };
        match self.mirrored_name() {
            Some(name) if name != decoded => Err(mismatch("Mcp-Name does not name what the body names")),
            _ => Ok(()),
        }
    }

    fn modern_version(&self, written: &str, capable: bool, mcp_headers: &McpHeaders<'_>) -> Result<ProtocolVersion, Malformed> {
        if !capable {
            let detail = "`_meta` lacks `io.modelcontextprotocol/clientCapabilities`";
            return Err(Malformed::new(Reason::InvalidParams, detail));
        }
        if mcp_headers.protocol_version != Some(written) {
            return Err(mismatch("MCP-Protocol-Version is not the version in `_meta`"));
        }
        let version = known_version(written)?;
        if version.era() != Era::Modern {
            return Err(unsupported(written));
        }
        // No notification of this era is defined for clients, so none has a required `Mcp-Method`.
        if self.is_request && mcp_headers.method.is_none() {
            return Err(mismatch("Mcp-Method is missing"));
        }
        // A method that this era does not have is refused as unknown later.
        let exists = self.method.is_some_and(|method| method.is_in(Era::Modern));
        if exists && self.mirrored_name().is_some() && mcp_headers.name.is_none() {
            return Err(mismatch("Mcp-Name is missing"));
        }
        Ok(version)
    }

    fn legacy_version(
        &self,
        mcp_headers: &McpHeaders<'_>,
        session_version: Option<ProtocolVersion>,
    ) -> Result<Option<ProtocolVersion>, Malformed> {
        if self.method != Some(Method::Initialize) {
            return negotiate_bodyless(mcp_headers, session_version);
        }
        // The header of an `initialize` is only a wish; the version in the result decides.
        negotiate_bodyless(mcp_headers, None)?;
        let Some(proposed) = self.params.and_then(|params| params.protocol_version.as_deref()) else {
            return Err(Malformed::new(Reason::InvalidParams, "`protocolVersion` is missing"));
        };
        Ok(ProtocolVersion::parse(proposed).filter(|version| version.era() == Era::Legacy))
    }

    /// The value that `Mcp-Name` mirrors for this method.
    fn mirrored_name(&self) -> Option<&str> {
        let params = self.params?;
        match self.method?.target_kind() {
            TargetKind::Tool | TargetKind::Prompt => params.name.as_deref(),
            TargetKind::Resource => params.uri.as_deref(),
            TargetKind::Task => params.task_id.as_ref().map(|task| task.text.as_str()),
            TargetKind::Server | TargetKind::Reference | TargetKind::Subscription => None,
        }
    }
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Malformed> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(mismatch(format!("{name} is there more than once")));
    }
    let text = std::str::from_utf8(value.as_bytes()).unwrap_or_default();
    let text = text.trim_matches([' ', '\t']);
    if fits_header(text) {
        Ok(Some(text))
    } else {
        Err(mismatch(format!("{name} is empty, too long or not printable ASCII")))
    }
}

/// Whether a text may stand in an MCP header field.
pub fn fits_header(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_VALUE && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

fn known_version(written: &str) -> Result<ProtocolVersion, Malformed> {
    ProtocolVersion::parse(written).ok_or_else(|| unsupported(written))
}

fn unsupported(written: &str) -> Malformed {
    Malformed::new(
        Reason::UnsupportedVersion,
        format!("protocol version {} is not spoken here", quoted(written)),
    )
}

fn mismatch(detail: impl Into<String>) -> Malformed {
    Malformed::new(Reason::HeaderMismatch, detail)
}

/// How a mirrored header carries a value that is no plain header value (MCP 2026-07-28).
const OPEN: &str = "=?base64?";
const CLOSE: &str = "?=";

/// Decodes a header value; `None` if it is marked as encoded but is not canonical base64 of UTF-8. The markers are lower
/// case, and a value is decoded only once.
pub fn decode_header_value(value: &str) -> Option<Cow<'_, str>> {
    let Some(inner) = value.strip_prefix(OPEN).and_then(|rest| rest.strip_suffix(CLOSE)) else {
        return Some(Cow::Borrowed(value));
    };
    let bytes = STANDARD.decode(inner).ok()?;
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

/// Encodes `text`, if necessary, so that `decode_header_value` returns it.
pub fn encode_header_value(text: &str) -> Cow<'_, str> {
    let printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    let trimmed = !text.starts_with(' ') && !text.ends_with(' ') && !text.is_empty();
    if printable && trimmed && !text.starts_with(OPEN) {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(format!("{OPEN}{}{CLOSE}", STANDARD.encode(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        for text in ["echo", "", " a", "a ", "a b", "ä", "a\n", "=?base64?YQ==?=", "=?base64?"] {
            let written = encode_header_value(text);
            assert!(http::HeaderValue::from_str(&written).is_ok(), "{written}");
            assert_eq!(decode_header_value(&written).as_deref(), Some(text));
        }
    }

    #[test]
    fn only_the_exact_form_is_a_sentinel() {
        assert_eq!(decode_header_value("=?base64?ZWNobw==?=").as_deref(), Some("echo"));
        for plain in ["=?BASE64?ZWNobw==?=", "=?base64?ZWNobw==", "=?utf-8?B?ZWNobw==?="] {
            assert_eq!(decode_header_value(plain).as_deref(), Some(plain));
        }
        for broken in [
            "=?base64?ZWNobw?=",
            "=?base64?ZWNobx==?=",
            "=?base64?ZWNo_w==?=",
            "=?base64?ZWNo bw==?=",
            "=?base64?/w==?=",
        ] {
            assert_eq!(decode_header_value(broken), None, "{broken}");
        }
        assert_eq!(
            decode_header_value("=?base64?PT9iYXNlNjQ/WVE9PT89?=").as_deref(),
            Some("=?base64?YQ==?="),
            "decoded once"
        );
    }
}
