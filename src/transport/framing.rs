//! Refuses request heads that hyper accepts but two HTTP parsers could read differently (request smuggling), or that
//! ask for another protocol. It sees only the head and knows no routes.
//!
//! Two cases are invisible here because hyper has already settled them. If a request has both `Transfer-Encoding` and
//! `Content-Length`, hyper keeps the former and closes the connection after the answer; a fragment in the target is
//! dropped. Both are safe: a forwarded request is framed anew, and its path comes from the configuration.

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, Method, Version};

/// Headers that decide something in Guardian or upstream. A request may not spell them with underscores, nor name them
/// in `Connection` to have them dropped.
const SENSITIVE_HEADERS: &[&str] = &[
    "accept",
    "authorization",
    "cf-access-jwt-assertion",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "forwarded",
    "host",
    "last-event-id",
    "mcp-method",
    "mcp-name",
    "mcp-protocol-version",
    "mcp-session-id",
    "origin",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-api-key",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-user",
    "x-real-ip",
];

/// Checks a request head; `Err` says what is wrong, in words for the client.
pub fn framing(head: &Parts) -> Result<(), &'static str> {
    check_version(head)?;
    check_method(&head.method)?;
    check_length(&head.headers)?;
    check_body(head)?;
    check_host(head)?;
    check_target(head)?;
    check_fields(&head.headers)
}

/// The host and port that the request is for; `None` if the head did not pass `framing`.
pub fn authority(head: &Parts) -> Option<&str> {
    match head.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => head.headers.get(HOST)?.to_str().ok(),
    }
}

fn check_version(head: &Parts) -> Result<(), &'static str> {
    match head.version {
        Version::HTTP_11 | Version::HTTP_2 => Ok(()),
        _ => Err("only HTTP/1.1 and HTTP/2 are spoken here"),
    }
}

fn check_method(method: &Method) -> Result<(), &'static str> {
    match *method {
        Method::CONNECT => Err("CONNECT is not accepted"),
        Method::TRACE => Err("TRACE is not accepted"),
        _ => Ok(()),
    }
}

fn check_length(headers: &HeaderMap) -> Result<(), &'static str> {
    let coding = at_most_one(headers, &TRANSFER_ENCODING, "several Transfer-Encoding fields")?;
    let length = at_most_one(headers, &CONTENT_LENGTH, "several Content-Length fields")?;
    if let Some(coding) = coding
        && !coding.eq_ignore_ascii_case(b"chunked")
    {
        return Err("the only Transfer-Encoding accepted is chunked");
    }
    if coding.is_some() && length.is_some() {
        return Err("Transfer-Encoding and Content-Length exclude each other");
    }
    match length {
        None | Some(b"0") => Ok(()),
        Some([b'1'..=b'9', rest @ ..]) if rest.iter().all(u8::is_ascii_digit) => Ok(()),
        Some(_) => Err("Content-Length is not a plain number"),
    }
}

/// Some servers read a body after GET, HEAD, DELETE or OPTIONS and some do not, so these methods may have none.
fn check_body(head: &Parts) -> Result<(), &'static str> {
    let bare = matches!(head.method, Method::GET | Method::HEAD | Method::DELETE | Method::OPTIONS);
    let length = head.headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    if bare && (length || head.headers.contains_key(TRANSFER_ENCODING)) {
        Err("this method takes no body")
    } else {
        Ok(())
    }
}

fn check_host(head: &Parts) -> Result<(), &'static str> {
    let host = at_most_one(&head.headers, &HOST, "several Host fields")?;
    let named = head.uri.authority().map(|authority| authority.as_str().as_bytes());
    match (named, host) {
        (None, None | Some(b"")) => Err("the request names no host"),
        (Some(named), Some(host)) if !named.eq_ignore_ascii_case(host) => Err("the request names two different hosts"),
        // HTTP/1.1 requires `Host` even if the request target is absolute (RFC 9112 section 3.2).
        (Some(_), None) if head.version == Version::HTTP_11 => Err("the Host field is missing"),
        (named, host) => match named.or(host) {
            Some(name) if name.contains(&b'@') => Err("the host holds a user name"),
            _ => Ok(()),
        },
    }
}

fn check_target(head: &Parts) -> Result<(), &'static str> {
    let path = head.uri.path();
    if !path.starts_with('/') {
        return Err("the target does not start with a slash");
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,:@=".contains(&byte);
    if !path.bytes().all(plain) {
        return Err("the path holds an encoded or unusual character");
    }
    if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        Err("the path holds a dot segment")
    } else {
        Ok(())
    }
}

fn check_fields(headers: &HeaderMap) -> Result<(), &'static str> {
    if headers.contains_key(UPGRADE) {
        return Err("Upgrade is not accepted");
    }
    if headers.contains_key(EXPECT) {
        return Err("Expect is not accepted");
    }
    if headers.contains_key(TRAILER) {
        return Err("fields after the body are not accepted");
    }
    for value in headers.get_all(CONNECTION) {
        let mut options = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        if options.any(|option| is_sensitive(option) && !option.eq_ignore_ascii_case(b"te")) {
            return Err("Connection names a field that must not be dropped");
        }
    }
    // hyper takes a `"` in the names of HTTP/2, which is no token (RFC 9110 5.1): HTTP/1.1 could not carry it any further.
    if headers.keys().any(|name| name.as_str().contains('"')) {
        return Err("the name of a field holds a character that HTTP/1.1 forbids");
    }
    if headers
        .keys()
        .any(|name| name.as_str().contains('_') && is_sensitive(name.as_str().replace('_', "-").as_bytes()))
    {
        Err("a field is spelt with an underscore in place of a hyphen")
    } else {
        Ok(())
    }
}

fn is_sensitive(name: &[u8]) -> bool {
    SENSITIVE_HEADERS
        .iter()
        .any(|weighty| name.eq_ignore_ascii_case(weighty.as_bytes()))
}

fn at_most_one<'a>(
    headers: &'a HeaderMap,
    name: &http::HeaderName,
    several: &'static str,
) -> Result<Option<&'a [u8]>, &'static str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value.map(|value| value.as_bytes())),
        (_, Some(_)) => Err(several),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn head(target: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::post(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn what_real_clients_send_passes() {
        let fields = [
            ("host", "mcp.example.com:8443"),
            ("content-type", "application/json"),
            ("accept", "application/json, text/event-stream"),
            ("content-length", "120"),
            ("connection", "keep-alive"),
            ("te", "trailers"),
            ("x_custom", "a field of the client's own"),
        ];
        assert_eq!(framing(&head("/mcp/files?x=1", &fields)), Ok(()));
        assert_eq!(
            framing(&head("/mcp/a", &[("host", "a"), ("transfer-encoding", "Chunked")])),
            Ok(())
        );
        assert_eq!(framing(&head("https://a/mcp/a", &[("host", "A")])), Ok(()));
        assert_eq!(
            framing(&head("/mcp/a", &[("host", "a"), ("connection", "close, TE")])),
            Ok(())
        );
        let metadata = head("/.well-known/oauth-protected-resource/mcp/files", &[("host", "a")]);
        assert_eq!(framing(&metadata), Ok(()));
        assert_eq!(authority(&metadata), Some("a"));
    }

    #[test]
    fn heads_that_two_parsers_could_read_differently_are_refused() {
        let host = ("host", "a");
        let refused: &[(&str, &[(&str, &str)])] = &[
            ("/", &[host, ("transfer-encoding", "gzip, chunked")]),
            ("/", &[host, ("transfer-encoding", "chunked, chunked")]),
            ("/", &[host, ("transfer-encoding", "identity")]),
            (
                "/",
                &[host, ("transfer-encoding", "identity"), ("transfer-encoding", "chunked")],
            ),
            (
                "/",
                &[host, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            ),
            ("/", &[host, ("transfer-encoding", "chunked"), ("content-length", "5")]),
            ("/", &[host, ("transfer_encoding", "chunked")]),
            ("/", &[host, ("content-length", "0000123")]),
            ("/", &[host, ("content-length", "00")]),
            ("/", &[host, ("content-length", "+5")]),
            ("/", &[host, ("content-length", "5, 5")]),
            ("/", &[host, ("content-length", "")]),
            ("/", &[host, ("content-length", "5"), ("content-length", "5")]),
            ("/", &[host, ("content_length", "5")]),
            ("/", &[]),
            ("/", &[("host", "")]),
            ("/", &[host, host]),
            ("/", &[("host", "user@a")]),
            ("https://a/", &[]),
            ("https://a/", &[("host", "b")]),
            ("https://a:443/", &[host]),
            ("*", &[host]),
            ("/mcp/../admin", &[host]),
            ("/mcp/./a", &[host]),
            ("/mcp/..", &[host]),
            ("/mcp/%2e%2e/a", &[host]),
            ("/mcp/%00", &[host]),
            ("/mcp/a;b", &[host]),
            ("/mcp/ä", &[host]),
            ("/", &[host, ("expect", "100-continue")]),
            ("/", &[host, ("expect", "anything")]),
            ("/", &[host, ("upgrade", "websocket")]),
            ("/", &[host, ("trailer", "authorization")]),
            ("/", &[host, ("connection", "close, Authorization")]),
            ("/", &[host, ("connection", "close"), ("connection", "mcp-session-id")]),
            ("/", &[host, ("connection", "upgrade")]),
            ("/", &[host, ("mcp_method", "tools/list")]),
            ("/", &[host, ("x-forwarded_user", "root")]),
        ];
        for (target, fields) in refused {
            assert!(framing(&head(target, fields)).is_err(), "{target} {fields:?}");
        }
    }

    /// hyper reads the names of HTTP/2 by a table of their own, which has the quotation mark.
    #[test]
    fn a_name_that_http_1_forbids_is_refused_on_http_2() {
        for name in ["mcp-param-\"a", "\"", "a\"b"] {
            let mut quoted = head("/mcp/a", &[("host", "a")]);
            quoted.version = Version::HTTP_2;
            assert_eq!(framing(&quoted), Ok(()));
            let name = http::HeaderName::from_lowercase(name.as_bytes()).unwrap();
            quoted.headers.insert(name, "1".parse().unwrap());
            assert!(framing(&quoted).is_err());
        }
    }

    #[test]
    fn only_a_post_has_a_body() {
        for method in [Method::GET, Method::HEAD, Method::DELETE, Method::OPTIONS] {
            let with = |name: &str, value: &str| {
                let mut bare = head("/mcp/a", &[("host", "a"), (name, value)]);
                bare.method = method.clone();
                framing(&bare)
            };
            assert_eq!(with("content-length", "0"), Ok(()), "{method}");
            assert!(with("content-length", "1").is_err(), "{method}");
            assert!(with("transfer-encoding", "chunked").is_err(), "{method}");
        }
    }

    #[test]
    fn other_versions_and_tunnels_are_refused() {
        let mut old = head("/", &[("host", "a")]);
        old.version = Version::HTTP_10;
        assert!(framing(&old).is_err());
        for method in [Method::CONNECT, Method::TRACE] {
            let mut tunnel = head("/", &[("host", "a")]);
            tunnel.method = method;
            assert!(framing(&tunnel).is_err());
        }
    }
}
