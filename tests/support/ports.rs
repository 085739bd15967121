//! Ports that no other test on this machine picks: each is reserved by a locked file until its process ends.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

/// Below the range that the system uses for outgoing connections, and above 10080, the last port that `fetch` blocks (WHATWG
/// Fetch, "bad port"): a client on Node would never reach it.
const FIRST: u16 = 10_100;
const COUNT: u16 = 8_900;

/// A port on loopback that is free now and stays reserved for this process.
pub fn free_port() -> u16 {
    static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let mut held = HELD.lock().unwrap();
    // Processes start at different ports, so that they seldom try the same one.
    let start = u16::try_from(std::process::id() % u32::from(COUNT)).expect("less than 8,900");
    for offset in 0..COUNT {
        let port = FIRST + (start + offset) % COUNT;
        if let Some(lock) = hold(port) {
            held.push(lock);
            return port;
        }
    }
    panic!("no port is free between {FIRST} and {}", FIRST + COUNT);
}

fn hold(port: u16) -> Option<File> {
    let lock = File::create(std::env::temp_dir().join(format!("guardian-port-{port}.lock"))).ok()?;
    lock.try_lock().ok()?;
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
    Some(lock)
}

#[test]
fn free_ports_differ() {
    assert_ne!(free_port(), free_port());
}
