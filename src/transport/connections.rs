//! Counts open connections, in total and per network, against their limits, and tells when an HTTP/2 connection is
//! idle. It closes no connection itself.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// The connections of one listener, or of several that share their limits.
#[derive(Debug, Default)]
pub struct Connections {
    open: AtomicUsize,
    by_network: Mutex<HashMap<Network, usize>>,
    accepted: AtomicU64,
    refused: AtomicU64,
    failed_handshakes: AtomicU64,
    timed_out: AtomicU64,
    flooded: AtomicU64,
}

/// A snapshot of the counters, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionCounts {
    pub open: usize,
    pub accepted: u64,
    /// Closed at once because a limit was reached.
    pub refused: u64,
    pub failed_handshakes: u64,
    /// Closed because the TLS handshake or an idle HTTP/2 connection exceeded its time limit.
    pub timed_out: u64,
    /// Closed because the peer flooded the connection with HTTP/2 frames that make no progress.
    pub flooded: u64,
}

/// The unit of the per-address limit: one IPv4 address or one IPv6 /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Network {
    V4([u8; 4]),
    V6([u8; 8]),
}

/// One counted connection; dropping it frees its slot.
pub(super) struct ConnectionSlot {
    connections: Arc<Connections>,
    network: Network,
}

impl Connections {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn counts(&self) -> ConnectionCounts {
        ConnectionCounts {
            open: self.open.load(Relaxed),
            accepted: self.accepted.load(Relaxed),
            refused: self.refused.load(Relaxed),
            failed_handshakes: self.failed_handshakes.load(Relaxed),
            timed_out: self.timed_out.load(Relaxed),
            flooded: self.flooded.load(Relaxed),
        }
    }

    /// A slot for a connection from `address`, or `None` if either limit is reached.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr, max: usize, max_per_address: usize) -> Option<ConnectionSlot> {
        let network = Network::of(address);
        let mut by_network = self.by_network.lock().expect("no holder of this lock panics");
        let here = by_network.get(&network).copied().unwrap_or(0);
        if self.open.load(Relaxed) >= max || here >= max_per_address {
            self.refused.fetch_add(1, Relaxed);
            return None;
        }
        by_network.insert(network, here + 1);
        self.open.fetch_add(1, Relaxed);
        self.accepted.fetch_add(1, Relaxed);
        Some(ConnectionSlot {
            connections: self.clone(),
            network,
        })
    }
}

impl ConnectionSlot {
    pub(super) fn handshake_failed(&self) {
        self.connections.failed_handshakes.fetch_add(1, Relaxed);
    }

    pub(super) fn timed_out(&self) {
        self.connections.timed_out.fetch_add(1, Relaxed);
    }

    pub(super) fn flooded(&self) {
        self.connections.flooded.fetch_add(1, Relaxed);
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut by_network = self.connections.by_network.lock().expect("no holder of this lock panics");
        self.connections.open.fetch_sub(1, Relaxed);
        if let Some(count) = by_network.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                by_network.remove(&self.network);
            }
        }
    }
}

impl Network {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let mut prefix = [0; 8];
                prefix.copy_from_slice(&v6.octets()[..8]);
                Self::V6(prefix)
            }
        }
    }
}

/// The requests in flight on an HTTP/2 connection. hyper has no idle time-out for a connection that answers pings, so
/// Guardian measures it.
#[derive(Debug)]
pub(super) struct Activity {
    opened: Instant,
    running: AtomicU32,
    /// Milliseconds from `opened` to the end of the last response.
    quiet_since: AtomicU64,
}

/// One request in flight, until its response body is dropped.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Activity>);

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            opened: Instant::now(),
            running: AtomicU32::new(0),
            quiet_since: AtomicU64::new(0),
        })
    }

    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        self.running.fetch_add(1, Relaxed);
        InFlight(self.clone())
    }

    /// Completes when no request was in flight for `limit`.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let quiet_since = self.opened + Duration::from_millis(self.quiet_since.load(Relaxed));
            let running = self.running.load(Relaxed) > 0;
            let due = quiet_since + limit;
            if running {
                tokio::time::sleep(limit).await;
            } else if Instant::now() < due {
                tokio::time::sleep_until(due).await;
            } else {
                return;
            }
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let now = u64::try_from(self.0.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.quiet_since.fetch_max(now, Relaxed);
        self.0.running.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_ipv6_network_counts_as_one_address_and_a_mapped_address_as_its_ipv4() {
        let connections = Connections::new();
        let first = connections.admit(address("2001:db8:0:1::1"), 10, 1);
        assert!(first.is_some());
        assert!(connections.admit(address("2001:db8:0:1:ffff::2"), 10, 1).is_none());
        assert!(connections.admit(address("2001:db8:0:2::1"), 10, 1).is_some());
        let mapped = connections.admit(address("::ffff:192.0.2.1"), 10, 1);
        assert!(mapped.is_some());
        assert!(connections.admit(address("192.0.2.1"), 10, 1).is_none());
    }

    #[test]
    fn a_dropped_place_is_free_again() {
        let connections = Connections::new();
        let slot = connections.admit(address("192.0.2.1"), 1, 1).unwrap();
        assert!(connections.admit(address("192.0.2.2"), 1, 1).is_none(), "the cap over all");
        drop(slot);
        assert!(connections.admit(address("192.0.2.2"), 1, 1).is_some());
        assert_eq!(connections.counts().refused, 1);
        assert!(
            connections.by_network.lock().unwrap().is_empty(),
            "no trace of closed connections is kept"
        );
    }
}
