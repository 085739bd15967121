//! How many connections are open, in all and from one address, and which of them are idle. It closes nothing itself.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// The connections of one or several listeners that share their caps.
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

/// For metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionCounts {
    pub open: usize,
    pub accepted: u64,
    /// Closed at once because a cap was reached.
    pub refused: u64,
    pub failed_handshakes: u64,
    /// Closed because a handshake or an idle period ran too long.
    pub timed_out: u64,
    /// Ended because the peer said too much that asks for nothing.
    pub flooded: u64,
}

/// What counts as one address: an IPv4 address, an IPv6 /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Network {
    V4([u8; 4]),
    V6([u8; 8]),
}

/// A counted connection; dropping it frees its place.
pub(super) struct Place {
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

    /// A place within both caps, or `None`.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr, max: usize, max_per_address: usize) -> Option<Place> {
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
        Some(Place {
            connections: self.clone(),
            network,
        })
    }
}

impl Place {
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

impl Drop for Place {
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

/// What an h2 connection is busy with; hyper has no idle limit for one that answers pings.
#[derive(Debug)]
pub(super) struct Activity {
    opened: Instant,
    running: AtomicU32,
    /// Milliseconds after `opened` when the last answer ended.
    quiet_since: AtomicU64,
}

/// One running answer.
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

    /// Ends when nothing ran for `limit`.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let quiet_since = self.opened + Duration::from_millis(self.quiet_since.load(Relaxed));
            let running = self.running.load(Relaxed) > 0;
            let due = quiet_since + limit;
            match (running, Instant::now() >= due) {
                (false, true) => return,
                (false, false) => tokio::time::sleep_until(due).await,
                (true, _) => tokio::time::sleep(limit).await,
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
        let place = connections.admit(address("192.0.2.1"), 1, 1).unwrap();
        assert!(connections.admit(address("192.0.2.2"), 1, 1).is_none(), "the cap over all");
        drop(place);
        assert!(connections.admit(address("192.0.2.2"), 1, 1).is_some());
        assert_eq!(connections.counts().refused, 1);
        assert!(
            connections.by_network.lock().unwrap().is_empty(),
            "no trace of closed connections is kept"
        );
    }
}
