//! The question here: what does the journal still hold after the machine crashes, or the disk fails, fills up or hangs? On a
//! simulated disk, and with a view inside the room. `tests/rooms/journal.rs` uses the public methods on a real disk.

mod crashes;
mod damage;
mod faults;
mod permits;
mod shipping;
mod simulated;
mod trail;

use super::disk::Disk;
use super::reader::FolderReader;
use super::{Journal, JournalError, JournalSettings, Recovered, StartFacts};
use crate::domain::{
    AdminAction, Call, Decision, DecisionKind, EnvironmentName, Era, Event, Method, Outcome, Record, RequestId, SealedRecord,
    ServerName, Target, Timestamp, ToolName,
};
use bytes::Bytes;
use simulated::Simulated;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Small, so that a few records fill a segment.
const SEGMENT: u64 = 4 * 1024;

fn settings() -> JournalSettings {
    JournalSettings {
        dir: "unused".into(),
        max_bytes: 1024 * 1024,
        segment_bytes: SEGMENT,
        sync_timeout: Duration::from_secs(60),
        keep_shipped: Duration::ZERO,
        seal_on_conflict: false,
        allow_volatile: true,
    }
}

fn open_with(disk: &Simulated, settings: &JournalSettings) -> Result<(Journal, Recovered), JournalError> {
    let facts = StartFacts {
        environment: environment(),
        version: "0.0.0".to_owned(),
        instance: "test".to_owned(),
        instance_id: None,
    };
    Journal::open_on(Arc::new(disk.clone()), settings, facts, Box::new(|| Timestamp::from_secs(1)))
}

fn open(disk: &Simulated) -> (Journal, Recovered) {
    open_with(disk, &settings()).expect("the journal opens")
}

fn environment() -> EnvironmentName {
    EnvironmentName::parse("test").unwrap()
}

fn note(text: &str) -> Event {
    Event::Admin(AdminAction::new(
        Timestamp::from_secs(1),
        environment(),
        "note",
        text.to_owned(),
    ))
}

fn request(number: u128) -> RequestId {
    RequestId(Uuid::from_u128(number))
}

fn call(number: u128) -> Call {
    Call {
        request: request(number),
        server: ServerName::parse("files").unwrap(),
        era: Era::Modern,
        version: None,
        method: Method::ToolsCall,
        target: Target::Tool(ToolName::parse("read").unwrap()),
        id: None,
        body: Bytes::new(),
        arguments: None,
    }
}

fn allow(number: u128) -> Decision {
    Decision {
        method: "tools/call".into(),
        decision: DecisionKind::Allow,
        reason: "permitted".into(),
        source_ip: "127.0.0.1".to_owned(),
        era: Some(Era::Modern),
        took_us: 1,
        ..Decision::new(Timestamp::from_secs(1), environment(), request(number))
    }
}

/// All records in the folder, and the error that ended the reading, if one did.
fn read(disk: &Simulated) -> (Vec<SealedRecord>, Option<JournalError>) {
    let mut records = Vec::new();
    let mut reader = match FolderReader::new(Arc::new(disk.clone())) {
        Ok(reader) => reader,
        Err(error) => return (records, Some(error)),
    };
    loop {
        match reader.next() {
            Ok(Some(record)) => records.push(record),
            Ok(None) => return (records, None),
            Err(error) => return (records, Some(error)),
        }
    }
}

fn records(disk: &Simulated) -> Vec<SealedRecord> {
    let (records, error) = read(disk);
    assert!(error.is_none(), "{error:?}");
    records
}

fn event(record: &SealedRecord) -> Event {
    serde_json::from_slice::<Record>(&record.bytes).unwrap().event
}

fn outcomes(disk: &Simulated) -> Vec<Outcome> {
    let events = records(disk);
    let outcomes = events.iter().map(event).filter_map(|event| match event {
        Event::Outcome(outcome) => Some(outcome),
        _ => None,
    });
    outcomes.collect()
}

fn kinds(disk: &Simulated) -> Vec<&'static str> {
    records(disk).iter().map(|record| event(record).kind()).collect()
}

fn segment_names(disk: &Simulated) -> Vec<String> {
    let mut names = disk.list().unwrap();
    names.retain(|name| name.ends_with(".seg"));
    names
}

/// A small random generator: the same seed makes the same choices.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}

/// Waits for a change made by another thread that sends no signal.
async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
    }
}
