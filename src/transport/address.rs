//! Decides which IP addresses the HTTP client may connect to (SSRF and DNS rebinding). A host name is resolved once,
//! every address is classified, and the connection uses exactly those addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The class of an IP address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddressScope {
    Public,
    /// Loopback, private and shared address space: allowed only if the configuration allows private addresses.
    Private,
    /// Never a server's address: unspecified, multicast, broadcast, link-local (cloud metadata services), reserved.
    Never,
}

/// Resolves `host` to socket addresses. `host` may be an IP literal in any form the system resolver accepts, such as
/// `0x7f.1`.
pub(super) async fn resolve(host: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let found: Vec<_> = tokio::net::lookup_host((bare, port)).await?.collect();
    if found.is_empty() {
        Err(std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address"))
    } else {
        Ok(found)
    }
}

pub(super) fn address_scope(ip: IpAddr) -> AddressScope {
    match ip {
        IpAddr::V4(v4) => scope_v4(v4),
        IpAddr::V6(v6) => scope_v6(v6),
    }
}

fn scope_v4(ip: Ipv4Addr) -> AddressScope {
    let [a, b, c, _] = ip.octets();
    match (a, b, c) {
        (0, ..) | (169, 254, _) | (224..=255, ..) => AddressScope::Never,
        (192, 0, 2) | (198, 51, 100) | (203, 0, 113) => AddressScope::Never,
        (10, ..) | (127, ..) | (172, 16..=31, _) | (192, 168, _) => AddressScope::Private,
        // carrier-grade NAT (RFC 6598), IETF assignments (RFC 6890), benchmarks (RFC 2544)
        (100, 64..=127, _) | (192, 0, 0) | (198, 18..=19, _) => AddressScope::Private,
        _ => AddressScope::Public,
    }
}

fn scope_v6(ip: Ipv6Addr) -> AddressScope {
    let segments = ip.segments();
    let embedded = |at: usize| {
        let [a, b] = segments[at].to_be_bytes();
        let [c, d] = segments[at + 1].to_be_bytes();
        scope_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 1] => AddressScope::Private,
        [0, 0, 0, 0, 0, 0, 0, 0] => AddressScope::Never,
        // An IPv4 address inside IPv6: mapped, compatible, NAT64, 6to4. Never `Public`, because a public IPv4 server
        // has no reason to be written this way.
        [0, 0, 0, 0, 0, 0xffff | 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => embedded(6).at_most_private(),
        [0x2002, ..] => embedded(1).at_most_private(),
        // local-use NAT64 (RFC 8215), Teredo, documentation, discard-only
        [0x64, 0xff9b, ..] | [0x2001, 0, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] | [0x100, 0, 0, 0, ..] => {
            AddressScope::Never
        }
        [0xfe80..=0xfeff, ..] | [0xff00..=0xffff, ..] => AddressScope::Never,
        [0xfc00..=0xfdff, ..] => AddressScope::Private,
        _ => AddressScope::Public,
    }
}

impl AddressScope {
    fn at_most_private(self) -> Self {
        match self {
            AddressScope::Public | AddressScope::Private => AddressScope::Private,
            AddressScope::Never => AddressScope::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_an_inner_address_is_inner() {
        use AddressScope::*;
        for (text, expected) in [
            ("8.8.8.8", Public),
            ("2606:4700::1111", Public),
            ("127.0.0.1", Private),
            ("127.255.0.1", Private),
            ("10.1.2.3", Private),
            ("172.16.0.1", Private),
            ("172.32.0.1", Public),
            ("192.168.1.1", Private),
            ("100.64.0.1", Private),
            ("::1", Private),
            ("fd00::1", Private),
            ("::ffff:127.0.0.1", Private),
            ("::ffff:8.8.8.8", Private),
            ("::127.0.0.1", Private),
            ("64:ff9b::7f00:1", Private),
            ("2002:7f00:1::", Private),
            ("169.254.169.254", Never),
            ("::ffff:169.254.169.254", Never),
            ("64:ff9b::a9fe:a9fe", Never),
            ("0.0.0.0", Never),
            ("0.1.2.3", Never),
            ("255.255.255.255", Never),
            ("224.0.0.1", Never),
            ("240.0.0.1", Never),
            ("192.0.2.7", Never),
            ("::", Never),
            ("::ffff:0.0.0.0", Never),
            ("fe80::1", Never),
            ("fec0::1", Never),
            ("ff02::1", Never),
            ("2001:db8::1", Never),
            ("2001:0:1::1", Never),
        ] {
            assert_eq!(address_scope(text.parse().unwrap()), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn an_address_in_octal_or_hexadecimal_is_judged_as_what_it_resolves_to() {
        for host in ["0x7f.1", "0177.0.0.1", "2130706433"] {
            if let Ok(found) = resolve(host, 443).await {
                assert!(
                    found
                        .iter()
                        .all(|address| address_scope(address.ip()) != AddressScope::Public),
                    "{host}"
                );
            }
        }
        let bracketed = resolve("[::1]", 443).await.unwrap();
        assert_eq!(address_scope(bracketed[0].ip()), AddressScope::Private);
    }
}
