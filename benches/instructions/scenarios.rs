//! What is counted: each scenario does the same thing again and again between two marks.
//!
//! Inputs are fixed. What chance brings in nevertheless (hash maps, threads) is within the tolerance by far.

use super::events::{decision, environment, outcome};
use super::world::{Expect, Stage, World};
use bytes::Bytes;
use neural_guardian::decide::decide;
use neural_guardian::domain::{DecisionKind, Event, Timestamp};
use neural_guardian::journal::{Journal, JournalSettings, Shipper, StartFacts};
use neural_guardian::mcp;
use neural_guardian::store::{Store, StoreOpen};
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The names as `counts.txt` has them, in the order in which they run, and how often each does its work. That of the journal
/// is a call's, which leaves two records.
pub const SCENARIOS: [(&str, u64); 5] = [
    ("decide-reused", DECISIONS),
    ("decide-judged", DECISIONS),
    ("parse", BODIES),
    ("record", CALLS),
    ("ship", CALLS),
];
const DECISIONS: u64 = 2_000;
const BODIES: u64 = 2_000;
const CALLS: u64 = 500;

/// Callgrind writes what it counted so far and begins anew where this function is entered.
#[inline(never)]
pub fn mark() {
    black_box(());
}

pub fn run(scratch: &Path) {
    let by_role = r#"@id("developer") permit(principal in Guardian::Role::"developer", action, resource);"#;
    decisions(&World::with(by_role.to_owned(), 1).0);
    decisions(&World::new(10).0);
    parsing();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(recording_and_shipping(scratch));
}

/// With policies that read the arguments of `t1`, or with none: then the verdict on the call before is reused.
fn decisions(world: &World) {
    let facts = world.facts();
    let stage = Stage::new("t1", r#"{"path":"notes/today.txt","n":3}"#, Expect::Permit);
    mark();
    for _ in 0..DECISIONS {
        drop(black_box(decide(black_box(stage.call.clone()), &facts)));
    }
    mark();
}

fn parsing() {
    let text = "x".repeat(700);
    let body = Bytes::from(format!(
        r#"{{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{{"_meta":{{"io.modelcontextprotocol/protocolVersion":"2026-06-30","progressToken":4}},"name":"write_file","arguments":{{"path":"notes/today.txt","text":"{text}","lines":[1,2.5,-3e4],"as":{{"owner":"ana","mode":"0644"}},"force":false,"note":"a \"quoted\" wörd"}}}}}}"#
    ));
    let bounds = mcp::Bounds::default();
    mark();
    for _ in 0..BODIES {
        drop(black_box(mcp::parse_message(black_box(body.clone()), &bounds)).expect("a strict body"));
    }
    mark();
}

/// Both records of each call, durable; then all of them from the spool to SQLite.
async fn recording_and_shipping(scratch: &Path) {
    let settings = JournalSettings {
        dir: scratch.join("journal"),
        max_bytes: 1 << 30,
        segment_bytes: 64 << 20,
        sync_timeout: Duration::from_secs(600),
        keep_shipped: Duration::ZERO,
        seal_on_conflict: false,
        allow_volatile: true,
    };
    let start = StartFacts {
        environment: environment(),
        version: "1".to_owned(),
        instance: "bench".to_owned(),
        instance_id: None,
    };
    let (journal, _) = Journal::open_dir(settings, start, || Timestamp::from_secs(1_795_000_000)).expect("a new journal");
    let open = StoreOpen::Sqlite {
        file: scratch.join("guardian.db"),
        create: true,
    };
    let store = Store::open(&open).await.expect("a new store");
    store.migrate(&mut |_| ()).await.expect("migrations");
    let events: Vec<Event> = (0..CALLS)
        .flat_map(|number| [decision(number, DecisionKind::Allow), outcome(number)])
        .collect();
    mark();
    for event in events {
        journal.append(event).await.expect("a durable record");
    }
    mark();
    // Told to stop before it begins, it ships what is there, without a rest, and returns.
    let stop = CancellationToken::new();
    stop.cancel();
    let shipper = Shipper::new(&journal);
    mark();
    shipper.run(store.clone(), stop).await;
    mark();
    assert_eq!(journal.unshipped(), 0, "{:?}", journal.ship_error());
    store.close().await;
}
