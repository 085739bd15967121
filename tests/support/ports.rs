//! Ports that no other test running now will pick: each test process has a range of its own below the ephemeral ones.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 10_000;
const RANGE: u16 = 150;

/// A port on loopback that is free now.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let tries = std::iter::repeat_with(|| FIRST + slot() * RANGE + NEXT.fetch_add(1, Ordering::Relaxed) % RANGE);
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    tries.take(usize::from(RANGE)).find(free).expect("one of 150 ports is free")
}

/// The number of this process among the tests running at once; without nextest all tests share one process.
fn slot() -> u16 {
    let slot = std::env::var("NEXTEST_TEST_GLOBAL_SLOT").ok();
    slot.and_then(|text| text.parse().ok()).unwrap_or(0) % 60
}

#[test]
fn free_ports_differ() {
    assert_ne!(free_port(), free_port());
}
