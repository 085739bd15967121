//! Checks of URLs, origins, hosts and addresses. Resolves no name and opens no connection.

use http::Uri;
use http::uri::Authority;
use std::net::IpAddr;

/// `https`, with a host and without user name, path, query or fragment.
pub(super) fn public_url(url: &str) -> Result<(), &'static str> {
    let uri: Uri = url.parse().map_err(|_| "it is not a URL")?;
    let authority = uri.authority().filter(names_host).ok_or("it names no host")?;
    match uri.scheme_str() {
        Some("https") if authority.as_str().contains('@') => Err("it holds a user name"),
        Some("https") if !matches!(uri.path(), "" | "/") || uri.query().is_some() || url.contains('#') => {
            Err("it must have no path")
        }
        Some("https") => Ok(()),
        _ => Err("it must begin with `https://`"),
    }
}

/// `https`, or `http` on loopback, without a user name. Whoever can change an issuer's keys on their way can pose as every
/// user of it.
pub(super) fn secure_url(url: &str) -> Result<(), &'static str> {
    let uri: Uri = url.parse().map_err(|_| "it is not a URL")?;
    let authority = uri.authority().filter(names_host).ok_or("it names no host")?;
    match uri.scheme_str() {
        _ if authority.as_str().contains('@') => Err("it holds a user name"),
        Some("https") => Ok(()),
        Some("http") if is_loopback_host(authority.host()) => Ok(()),
        _ => Err("it must begin with `https://`"),
    }
}

/// `https://:443` has an authority without a host.
fn names_host(authority: &&Authority) -> bool {
    !authority.host().is_empty()
}

/// A scheme and an authority, as browsers send it, without a wildcard.
pub(super) fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else {
        return false;
    };
    let scheme_is_plain = !scheme.is_empty()
        && scheme
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    scheme_is_plain && !authority.contains(['@', '*']) && authority.parse::<Authority>().is_ok()
}

pub(super) fn is_loopback_host(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host_ip(host).is_some_and(|ip| ip.is_loopback())
}

/// The host of `host:port`.
pub(super) fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}

pub(super) fn host_ip(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Loopback, private, link-local, shared (100.64.0.0/10) and unspecified addresses.
pub(super) fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && (64..128).contains(&ip.octets()[1]);
            ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified() || shared
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// Addresses that no MCP server has: link-local ones, where clouds serve their metadata, and those of no single machine.
pub(super) fn is_never_a_server(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_unspecified() || ip.is_multicast(),
    }
}
