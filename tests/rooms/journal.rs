//! The question here: do the journal's public methods keep their promises on a real disk? Locks, permits from real
//! decisions, SIGKILL under load, reading back. Crashes and failing disks are simulated in `src/journal/tests`.

use crate::decide::world;
use neural_guardian::decide::{Permit, Snapshot, Verdict};
use neural_guardian::domain::{
    AuthMethod, Call, ClientId, Decision, DecisionKind, Digest, Era, Event, Fingerprint, GrantId, GrantUsed, Incarnation,
    InputsKept, Issuer, KeyId, OutcomeKind, PolicyId, Record, RecordedInputs, RecordedPrincipal, RecordedRequest, RequestId,
    Scope, SealedRecord, ServerName, Sha256, Subject, Timestamp, UserId,
};
use neural_guardian::journal::{
    Journal, JournalError, JournalSettings, JournalState, OutcomeData, Recovered, Sealed, StartFacts, read_dir,
};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

const CHILD: &str = "GUARDIAN_TEST_JOURNAL";

/// A temporary folder, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("guardian-journal-{}", Uuid::new_v4())))
    }

    fn open(&self) -> (Journal, Recovered) {
        open(&self.0).expect("the journal opens")
    }

    fn records(&self) -> Vec<SealedRecord> {
        read_dir(&self.0)
            .unwrap()
            .collect::<Result<_, _>>()
            .expect("the journal is whole")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open(dir: &Path) -> Result<(Journal, Recovered), JournalError> {
    let settings = JournalSettings {
        dir: dir.to_owned(),
        max_bytes: 1 << 30,
        segment_bytes: 64 * 1024,
        sync_timeout: Duration::from_secs(60),
        keep_shipped: Duration::ZERO,
        seal_on_conflict: false,
        allow_volatile: true,
    };
    let facts = StartFacts {
        environment: world::environment(),
        version: "0.0.0".to_owned(),
        instance: "test".to_owned(),
        instance_id: None,
    };
    Journal::open_dir(settings, facts, || Timestamp::from_secs(1))
}

fn policies() -> Snapshot {
    let all = "@id(\"readers\") permit (principal, action, resource);";
    world::compile(all, &world::catalogue([("demo", world::demo())])).unwrap()
}

fn permit(policies: &Snapshot, call: Call) -> Permit {
    match world::World::new(&["reader"]).decide(policies, call) {
        Verdict::Permit(permit) => permit,
        Verdict::Refuse(refused) => panic!("{:?}", refused.refusal),
    }
}

fn call() -> Call {
    let mut call = world::call("demo", "read_file", Some(serde_json::json!({ "path": "a" })));
    call.request = request(7);
    call
}

fn request(number: u128) -> RequestId {
    RequestId(Uuid::from_u128(number))
}

/// A decision with every field set, and with text that JSON must escape.
fn full(number: u128) -> Decision {
    let awkward = "\"\\/\u{8}\u{1f}\u{7f} <ü€\u{1f600}\u{2028}>".to_owned();
    Decision {
        principal: Some(Arc::new(RecordedPrincipal {
            user: Some(UserId::parse("u1").unwrap()),
            client: Some(ClientId::parse("client").unwrap()),
            key: Some(KeyId::parse("abcdefgh").unwrap()),
            ..RecordedPrincipal::new(
                Issuer::parse("https://idp.example.com/\"").unwrap(),
                Subject::parse("ali\\ce").unwrap(),
                AuthMethod::Key,
                Fingerprint::of(&Digest::ZERO).to_string(),
            )
        })),
        server: Some(ServerName::parse("files").unwrap()),
        method: awkward.clone().into(),
        tool: Some(awkward.clone()),
        target: Some(awkward.clone()),
        decision: DecisionKind::Allow,
        reason: "permitted".into(),
        detail: Some(awkward.clone()),
        policies: vec![PolicyId::parse("no \"such\" thing").unwrap()],
        errors: vec![awkward.clone(), String::new()],
        scopes_held: vec![Scope::parse("read_file").unwrap()],
        inputs: Some(InputsKept::Redacted),
        inputs_key: Some(3),
        args_digest: Some(Digest::of(b"args")),
        args: Some(awkward.clone()),
        policy_set: Digest::of(b"policies"),
        catalogue: Digest::of(b"catalogue"),
        grant: Some(GrantUsed::new(GrantId::parse("g1").unwrap(), -1, i64::MIN, u64::MAX)),
        source_ip: "::1".to_owned(),
        session: Some(awkward.clone()),
        trace: Some(awkward),
        era: Some(Era::Legacy),
        took_us: 250,
        ..Decision::new(
            Timestamp::from_micros(1_795_167_296_123_456),
            world::environment(),
            request(number),
        )
    }
}

/// What the gate says of the request of `full`.
fn full_request() -> RecordedRequest {
    let full = full(0);
    RecordedRequest {
        at: full.at,
        environment: full.environment,
        principal: full.principal,
        target: full.target,
        inputs: RecordedInputs {
            kept: full.inputs,
            key: full.inputs_key,
            digest: full.args_digest,
            text: full.args,
        },
        source_ip: full.source_ip,
        session: full.session,
        trace: full.trace,
        took_us: full.took_us,
        judged: None,
    }
}

fn parsed(record: &SealedRecord) -> Record {
    serde_json::from_slice(&record.bytes).unwrap()
}

#[tokio::test]
async fn the_bytes_on_disk_are_the_json_of_the_record_and_the_chain_is_what_is_documented() {
    let folder = Folder::new();
    let (journal, _) = folder.open();
    for number in 0..3 {
        assert_eq!(
            journal.append(Event::Decision(Box::new(full(number)))).await,
            Ok(1 + number as u64)
        );
    }
    journal.stop().await;
    let records = folder.records();
    assert_eq!(records.len(), 5);
    let mut head = Digest::ZERO;
    for (seq, sealed) in records.iter().enumerate() {
        let record = parsed(sealed);
        assert_eq!(serde_json::to_vec(&record).unwrap(), sealed.bytes);
        assert_eq!((record.v, record.incarnation, record.prev), (2, journal.incarnation(), head));
        assert_eq!((record.seq, sealed.seq), (seq as u64, seq as u64));
        assert_eq!(sealed.leaf, Sha256::new().update(&[0]).update(&sealed.bytes).finish());
        head = Sha256::new()
            .update(&[2])
            .update(head.as_bytes())
            .update(sealed.leaf.as_bytes())
            .finish();
        assert_eq!(sealed.head, head);
    }
    assert_eq!(parsed(&records[2]).event, Event::Decision(Box::new(full(1))));
}

#[tokio::test]
async fn a_permit_becomes_a_cleared_call_whose_record_says_what_was_permitted() {
    let folder = Folder::new();
    let (journal, _) = folder.open();
    let policies = policies();
    let cleared = journal
        .open(permit(&policies, call()), full_request())
        .await
        .map_err(|(_, sealed)| sealed)
        .unwrap();
    assert_eq!((cleared.call().request, cleared.seq()), (request(7), 1));
    let on_disk = folder.records();
    let Event::Decision(recorded) = parsed(&on_disk[1]).event else {
        panic!("a decision was expected")
    };
    assert_eq!((recorded.request, recorded.decision), (request(7), DecisionKind::Allow));
    assert_eq!(recorded.server.as_ref().map(|server| server.as_str()), Some("demo"));
    assert_eq!(
        (&*recorded.method, recorded.tool.as_deref()),
        ("tools/call", Some("read_file"))
    );
    assert_eq!(recorded.policies, [PolicyId::parse("readers").unwrap()]);
    assert_eq!(recorded.grant.as_ref().map(|grant| (grant.version, grant.seq)), Some((3, 7)));
    assert_eq!(recorded.principal, full(99).principal, "who called is the gate's to say");
    let (sent, ticket) = cleared.into_sending();
    assert_eq!((sent.arguments, journal.open_calls()), (call().arguments, 1));
    ticket.close(OutcomeData::of(OutcomeKind::Done));
    journal.stop().await;
    assert_eq!(journal.state(), JournalState::Sealed(Sealed::Stopped));
    let (refused, sealed) = journal.open(permit(&policies, call()), full_request()).await.err().unwrap();
    assert_eq!((refused.request, sealed), (request(7), Sealed::Stopped));
}

#[test]
fn a_second_user_of_the_folder_is_told_so_in_one_sentence() {
    let folder = Folder::new();
    let (journal, _) = folder.open();
    let refused = open(&folder.0).map(|_| ()).unwrap_err();
    assert!(matches!(refused, JournalError::Locked { .. }));
    let path = folder.0.canonicalize().unwrap();
    assert_eq!(
        refused.to_string(),
        format!(
            "another process uses the journal `{}`: stop it, or give this instance a `data_dir` of its own",
            path.display()
        )
    );
    drop(journal);
    folder.open();
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_in_memory_is_refused_unless_that_is_allowed() {
    let folder = Folder(PathBuf::from(format!("/dev/shm/guardian-journal-{}", Uuid::new_v4())));
    let mut settings = JournalSettings {
        dir: folder.0.clone(),
        max_bytes: 1 << 20,
        segment_bytes: 1 << 16,
        sync_timeout: Duration::from_secs(60),
        keep_shipped: Duration::ZERO,
        seal_on_conflict: false,
        allow_volatile: false,
    };
    let facts = StartFacts {
        environment: world::environment(),
        version: "0.0.0".to_owned(),
        instance: "test".to_owned(),
        instance_id: None,
    };
    let refused = Journal::open_dir(settings.clone(), facts.clone(), || Timestamp::from_secs(1)).map(|_| ());
    assert!(
        matches!(&refused, Err(JournalError::Volatile { kind, .. }) if kind == "tmpfs"),
        "{refused:?}"
    );
    settings.allow_volatile = true;
    Journal::open_dir(settings, facts, || Timestamp::from_secs(1)).unwrap();
}

#[test]
fn a_journal_killed_at_any_moment_loses_nothing_it_acknowledged() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return write_until_killed(Path::new(&dir));
    }
    let folder = Folder::new();
    let mut acknowledged = BTreeSet::new();
    for round in 0..20_u64 {
        let before = acknowledged.len();
        acknowledged.extend(killed_after(&folder.0, 1 + (round * 7_919) % 120));
        assert!(acknowledged.len() > before, "round {round} wrote nothing");
        check(&folder.records(), &acknowledged, round);
    }
    let (journal, recovered) = folder.open();
    drop(journal);
    let records = folder.records();
    check(&records, &acknowledged, 20);
    let mut open = BTreeMap::<RequestId, usize>::new();
    for record in &records {
        match parsed(record).event {
            Event::Decision(decision) => _ = open.entry(decision.request).or_default(),
            Event::Outcome(outcome) => *open.get_mut(&outcome.request).expect("a decision comes first") += 1,
            _ => {}
        }
    }
    assert!(
        open.values().all(|outcomes| *outcomes == 1),
        "each permit has exactly one outcome"
    );
    let last = records
        .iter()
        .rfind(|record| record.incarnation != journal_of(&records))
        .unwrap();
    assert_eq!(recovered.after, Some((last.incarnation, last.seq, last.head)));
}

fn journal_of(records: &[SealedRecord]) -> Incarnation {
    records.last().unwrap().incarnation
}

fn check(records: &[SealedRecord], acknowledged: &BTreeSet<(String, u64)>, round: u64) {
    let mut next = BTreeMap::<String, u64>::new();
    for record in records {
        let next = next.entry(record.incarnation.to_string()).or_default();
        assert_eq!(record.seq, *next, "round {round}: a gap in {}", record.incarnation);
        *next += 1;
    }
    for (incarnation, seq) in acknowledged {
        assert!(
            next.get(incarnation).is_some_and(|next| seq < next),
            "round {round}: {incarnation} {seq} is lost"
        );
    }
}

/// Runs this test again as a child that writes, kills the child after so many acknowledged records, and returns those.
fn killed_after(dir: &Path, records: u64) -> Vec<(String, u64)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "journal::a_journal_killed_at_any_moment_loses_nothing_it_acknowledged",
            "--nocapture",
        ])
        .env(CHILD, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let ack = |line: String| {
        let mut words = line.strip_prefix("ack ")?.split(' ').map(str::to_owned);
        Some((words.next()?, words.next()?.parse().unwrap()))
    };
    let mut acknowledged: Vec<_> = lines.by_ref().filter_map(ack).take(records as usize).collect();
    child.kill().unwrap();
    acknowledged.extend(lines.filter_map(ack));
    let status = child.wait().unwrap();
    assert!(!status.success(), "the child ended before it was killed: {status}");
    acknowledged
}

/// Sixteen callers at once; each prints what was acknowledged, after the acknowledgement.
fn write_until_killed(dir: &Path) {
    let (journal, _) = open(dir).expect("the journal opens after a kill");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let policies = Arc::new(policies());
    let permits = (0..16).map(|_| {
        let (journal, policies) = (journal.clone(), policies.clone());
        runtime.spawn(async move {
            let mut open = Vec::new();
            for _ in 0..1_000_000 {
                let mut call = call();
                call.request = RequestId(Uuid::new_v4());
                let cleared = journal
                    .open(permit(&policies, call), full_request())
                    .await
                    .map_err(|(_, sealed)| sealed)
                    .unwrap();
                println!("ack {} {}", journal.incarnation(), cleared.seq());
                let (call, ticket) = cleared.into_sending();
                match call.request.0.as_bytes()[0] % 3 {
                    0 => ticket.close(OutcomeData::of(OutcomeKind::Done)),
                    1 => drop(ticket),
                    _ => open.push(ticket),
                }
            }
        })
    });
    let permits: Vec<_> = permits.collect();
    for permit in permits {
        runtime.block_on(permit).unwrap();
    }
}
