//! The network of an address, by which callers without a credential are counted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The /24 (IPv4) or /56 (IPv6) of an address.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & (u32::MAX << 8)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 72)).into(),
    }
}
