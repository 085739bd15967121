//! Each technology is named in one room (a few in several), so that replacing it is a change in one place.

use crate::source::{Source, words};
use crate::{hold, sources};

/// Crates, as code spells them, and the rooms that may name them.
const HOMES: &[(&[&str], &[&str])] = &[
    (&["cedar_policy", "cedar_policy_core"], &["decide"]),
    (&["jsonschema"], &["decide", "config"]),
    (&["sqlx"], &["store"]),
    (
        &["rustls", "tokio_rustls", "hyper_rustls", "rcgen", "x509_parser"],
        &["transport"],
    ),
    (&["governor"], &["limits"]),
    (&["jsonwebtoken"], &["identity"]),
    (&["moka"], &["identity", "grants", "gate", "combined"]),
    (&["rustix"], &["upstream", "journal", "transport", "app"]),
    (&["thread_priority"], &["journal"]),
    (&["mimalloc"], &["main"]),
    (&["crc32c"], &["journal", "identity"]),
    (&["prometheus_client", "tracing_subscriber"], &["telemetry"]),
    (&["clap", "comfy_table", "indicatif"], &["cli", "main"]),
    (&["anyhow"], &["cli", "app", "main"]),
];

/// Rooms that must stay pure: no `async`, no clock, no randomness, no sockets, no files.
const PURE: &[&str] = &["domain", "decide", "mcp"];
const IMPURE: &[&str] = &["tokio", "async", "await", "SystemTime", "Instant", "env", "TcpStream", "File"];

#[test]
fn a_technology_is_named_in_its_own_room() {
    let findings = sources().iter().flat_map(strangers).collect();
    hold(
        "Ask the room that owns the technology for what you need (HOMES in tests/hygiene/technologies.rs).",
        findings,
    );
}

#[test]
fn pure_rooms_have_no_clock_runtime_or_socket() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| PURE.contains(&source.room())) {
        for (number, line) in source.shipped() {
            let impure = words(line).filter(|(_, word)| IMPURE.contains(word));
            findings.extend(impure.map(|(_, word)| source.finding(number, format!("`{word}` in a pure room"))));
        }
    }
    hold("Time, randomness and files come in as arguments here.", findings);
}

fn strangers(source: &Source) -> Vec<crate::source::Finding> {
    let mut findings = Vec::new();
    for (number, line) in source.shipped() {
        for (at, word) in words(line) {
            let is_path = line[at + word.len()..].trim_start().starts_with("::") || line.trim_start().starts_with("use ");
            let homes = HOMES.iter().find(|(names, _)| names.contains(&word)).map(|(_, homes)| *homes);
            if let Some(homes) = homes.filter(|homes| is_path && !homes.contains(&source.room())) {
                findings.push(source.finding(number, format!("`{word}` belongs in {}", homes.join(", "))));
            }
        }
    }
    findings
}

#[test]
fn a_stranger_is_seen() {
    let found = |file: &str, text: &str| strangers(&Source::new(file.into(), text.into())).len();
    assert_eq!(found("src/gate/mod.rs", "use sqlx::Row;"), 1);
    assert_eq!(found("src/gate/mod.rs", "fn a(b: governor::Quota, governor: u8) {}"), 1);
    assert_eq!(found("src/store/sqlite.rs", "use sqlx::Row;"), 0);
    assert_eq!(found("src/gate/mod.rs", "// sqlx::Row\nlet x = \"sqlx::Row\";"), 0);
}
