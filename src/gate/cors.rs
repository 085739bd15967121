//! CORS (Fetch standard, section 3.2) for web pages of the configured origins. Without credentials mode: a page sends its
//! token itself. Pages of other origins are refused before, in `routing`, and get none of these headers.

use crate::transport::{self, Body};
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, request};

/// Request headers of MCP clients. `*` would not cover `Authorization`, and the names of `Mcp-Param-*` are the servers' own.
const ALLOWED_HEADERS: [&str; 8] = [
    "accept",
    "authorization",
    "content-type",
    "last-event-id",
    "mcp-method",
    "mcp-name",
    "mcp-protocol-version",
    "mcp-session-id",
];
const PARAM_HEADER: &str = "mcp-param-";
/// More names than this are not looked at.
const MOST_HEADERS: usize = 64;
/// How long a browser remembers a preflight, in seconds.
const MAX_AGE: &str = "600";

/// Whether the request asks what a page may send.
pub(super) fn is_preflight(head: &request::Parts) -> bool {
    let has = |name| head.headers.contains_key(name);
    head.method == Method::OPTIONS && has(ORIGIN) && has(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer to a preflight: the methods of the endpoint, and those of the requested headers that MCP clients send. It is the
/// same for every path, so it tells nobody which servers exist.
pub(super) fn preflight(head: &request::Parts) -> Response<Body> {
    let mut response = Response::new(transport::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE"));
    if let Some(allowed) = allowed_headers(&head.headers) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
    headers.insert(
        VARY,
        HeaderValue::from_static("origin, access-control-request-method, access-control-request-headers"),
    );
    response
}

/// Lets the page of `origin` read the response. `by_origin`: answers depend on the origin, which caches must know.
pub(super) fn allow(response: &mut Response<Body>, origin: Option<&HeaderValue>, by_origin: bool) {
    let headers = response.headers_mut();
    if by_origin && !headers.contains_key(VARY) {
        headers.insert(VARY, HeaderValue::from_static("origin"));
    }
    if let Some(origin) = origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        let exposed = HeaderValue::from_static("mcp-session-id, www-authenticate, retry-after");
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

fn allowed_headers(headers: &HeaderMap) -> Option<HeaderValue> {
    let requested = headers.get_all(ACCESS_CONTROL_REQUEST_HEADERS).iter();
    let names = requested
        .filter_map(|value| value.to_str().ok())
        .flat_map(|names| names.split(','));
    let names = names.take(MOST_HEADERS).map(|name| name.trim().to_ascii_lowercase());
    let allowed: Vec<String> = names.filter(|name| is_allowed(name)).collect();
    HeaderValue::try_from(allowed.join(", "))
        .ok()
        .filter(|value| !value.is_empty())
}

fn is_allowed(name: &str) -> bool {
    let is_token = |text: &str| !text.is_empty() && http::HeaderName::try_from(text).is_ok();
    ALLOWED_HEADERS.contains(&name) || name.strip_prefix(PARAM_HEADER).is_some_and(is_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_may_send_what_mcp_clients_send_and_nothing_else() {
        let allowed = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(ACCESS_CONTROL_REQUEST_HEADERS, value.parse().unwrap());
            }
            allowed_headers(&headers).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(
            allowed(&["authorization,content-type", "Mcp-Session-Id, MCP-Protocol-Version"]).as_deref(),
            Some("authorization, content-type, mcp-session-id, mcp-protocol-version")
        );
        assert_eq!(
            allowed(&["mcp-param-region, mcp-param-a.b"]).as_deref(),
            Some("mcp-param-region, mcp-param-a.b")
        );
        for refused in [
            "",
            "*",
            "cookie",
            "x-forwarded-for",
            "cf-access-jwt-assertion",
            "mcp-param-",
            "mcp-param-a b",
            "mcp-param-\"",
            "mcp_session_id",
            "authorization2",
        ] {
            assert_eq!(allowed(&[refused]), None, "{refused}");
        }
        let many = vec!["accept"; MOST_HEADERS].join(",") + ",authorization";
        assert_eq!(allowed(&[&many]).map(|names| names.contains("authorization")), Some(false));
    }
}
