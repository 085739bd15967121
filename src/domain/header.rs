//! Header fields that the exchange with a server needs for itself.

/// Fields of HTTP, of the connection, of proxies on the way, and of the event stream. Those of MCP begin with `mcp-`.
const RESERVED_HEADERS: [&str; 18] = [
    "accept",
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "last-event-id",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

/// Whether no credential for a server may be sent in this header field.
pub fn is_reserved_header(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    RESERVED_HEADERS.contains(&name.as_str()) || name.starts_with("mcp-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_cannot_take_a_field_that_the_exchange_needs() {
        for reserved in [
            "Host",
            "trailer",
            "Proxy-Authorization",
            "MCP-Session-Id",
            "mcp-anything",
            "cookie",
        ] {
            assert!(is_reserved_header(reserved), "{reserved}");
        }
        for free in ["authorization", "X-Api-Key", "x-mcp-token", "apikey"] {
            assert!(!is_reserved_header(free), "{free}");
        }
    }
}
