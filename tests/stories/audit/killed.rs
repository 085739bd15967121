//! `kill -9` again and again, at any moment, also while Guardian starts: what the server saw is counted on its own side, and the
//! trail is read and hashed here, without Guardian's code.

use crate::ana_reads_files;
use crate::support::client::Client;
use crate::support::on_both_stores;
use crate::support::stores::StoredRecord;
use crate::support::wait::moment;
use crate::support::world::World;
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// On each store. `tests/long/run` asks for more.
const ROUNDS: usize = 25;

on_both_stores! {
    async fn killed_at_any_moment_the_trail_tells_what_the_server_saw(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        world
            .set("audit.inputs", "'redacted'")
            .set("journal.segment_bytes", "65536")
            .set("limits.per_principal", "{ rate = 100000, per = '1s' }");
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let sees = seen.clone();
        files.on_call(move |call| sees.lock().unwrap().push(nonce(call.arguments())));
        let rounds = std::env::var("GUARDIAN_KILL_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
        let mut chance = Chance(u64::from(std::process::id()));
        println!("seed {}", chance.0);

        let mut answered = Vec::new();
        let mut before = 0;
        for round in 0..rounds {
            if round % 2 == 1 {
                world.spawn();
                moment(Duration::from_millis(chance.below(400))).await;
                world.kill();
            }
            world.start().await;
            let mut load = Vec::new();
            for caller in 0..3 {
                let client = world.connected("files", &key).await;
                load.push(tokio::spawn(call_until_cut(client, format!("{round}-{caller}"))));
            }
            files.after_calls(before + 8 + chance.below(24) as usize).await;
            moment(Duration::from_micros(chance.below(4_000))).await;
            world.kill();
            for caller in load {
                answered.extend(caller.await.unwrap());
            }
            before = seen.lock().unwrap().len();
            files.forget();
        }
        world.start().await;
        world.shipped().await;
        world.terminate();
        world.ended().await;

        let records = world.records().await;
        hashes_and_numbers_are_right(&records);
        let seen = seen.lock().unwrap().clone();
        assert!(seen.len() >= 8 * rounds, "{} calls in {rounds} rounds", seen.len());
        calls_are_told_as_they_were(&records, &seen, &answered);
    }
}

/// Calls until the connection breaks; returns the nonces of the calls that were answered with a result. Every fifth call is
/// refused.
async fn call_until_cut(client: Client, name: String) -> Vec<String> {
    let mut answered = Vec::new();
    for number in 0.. {
        let nonce = format!("{name}-{number}");
        let refused = number % 5 == 4;
        let call = if refused {
            json!({ "name": "read_file", "arguments": { "path": format!("/etc/{nonce}") } })
        } else {
            json!({ "name": "echo", "arguments": { "text": nonce } })
        };
        match client.try_post(&client.request("tools/call", call)).await {
            Ok(answer) if refused => assert!(!answer.is_result(), "{answer:?}"),
            Ok(answer) => {
                assert!(answer.is_result(), "{answer:?}");
                answered.push(nonce);
            }
            Err(_) => break,
        }
    }
    answered
}

fn nonce(arguments: &Value) -> String {
    let text = arguments["text"].as_str().or(arguments["path"].as_str());
    text.unwrap_or_else(|| panic!("no nonce in {arguments}"))
        .trim_start_matches("/etc/")
        .to_owned()
}

fn kind(record: &StoredRecord) -> String {
    let said: Value = serde_json::from_slice(&record.bytes).unwrap();
    said["event"]["kind"].as_str().unwrap().to_owned()
}

/// Each incarnation counts from 0 without a gap or a double, its hashes are those of its bytes, and it begins where another one
/// ended.
fn hashes_and_numbers_are_right(records: &[StoredRecord]) {
    let mut ends: BTreeMap<String, (i64, String)> = BTreeMap::new();
    let mut begun_after: Vec<Value> = Vec::new();
    for incarnation in records.chunk_by(|one, next| one.incarnation == next.incarnation) {
        let of_commands = kind(&incarnation[0]) == "admin";
        let mut head = vec![0; 32];
        for (seq, record) in (0..).zip(incarnation) {
            let place = format!("{}/{seq}", hex(&record.incarnation));
            assert_eq!(record.seq, seq, "a gap or a double at {place}");
            let leaf = hash(0, &[&record.bytes]);
            assert_eq!(hex(&record.leaf), hex(&leaf), "the leaf of {place}");
            let said: Value = serde_json::from_slice(&record.bytes).unwrap();
            assert_eq!(said["prev"], json!(hex(&head)), "the head before {place}");
            assert_eq!(
                (&said["seq"], &said["incarnation"]),
                (&json!(seq), &json!(hex(&record.incarnation)))
            );
            head = hash(2, &[&head, &leaf]);
            assert_eq!(hex(&record.head), hex(&head), "the head of {place}");
            if of_commands {
                assert_eq!(kind(record), "admin", "{place}");
                continue;
            }
            assert_eq!(seq == 0, kind(record) == "start", "{place} is {}", kind(record));
            if seq == 0 {
                begun_after.push(said["event"]["after"].clone());
            }
        }
        let last = incarnation.last().unwrap();
        if of_commands {
            continue;
        }
        ends.insert(hex(&last.incarnation), (last.seq, hex(&head)));
    }
    let first = begun_after.iter().filter(|after| after.is_null()).count();
    assert_eq!(first, 1, "one start came after nothing");
    let mut followed = BTreeSet::new();
    for after in begun_after.iter().filter(|after| !after.is_null()) {
        let of = after[0].as_str().unwrap();
        let (seq, head) = &ends[of];
        assert_eq!((&after[1], &after[2]), (&json!(seq), &json!(head)), "the end of {of}");
        assert!(followed.insert(of), "two starts came after {of}");
    }
    assert_eq!(followed.len() + 1, ends.len());
}

/// Every nonce that the server saw has one permit, and was seen once; every permit has one outcome; nothing refused was seen.
fn calls_are_told_as_they_were(records: &[StoredRecord], seen: &[String], answered: &[String]) {
    let mut permits: BTreeMap<String, String> = BTreeMap::new();
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    let mut refused = BTreeSet::new();
    for record in records {
        let said: Value = serde_json::from_slice(&record.bytes).unwrap();
        let event = &said["event"];
        let request = event["request"].as_str().unwrap_or_default().to_owned();
        match (event["kind"].as_str().unwrap(), event["decision"].as_str()) {
            ("decision", Some("allow")) if event["tool"].is_string() => {
                let nonce = nonce_of(event);
                assert!(
                    permits.insert(request, nonce).is_none(),
                    "two permits of one request: {event}"
                );
            }
            ("decision", Some("allow")) => drop(permits.insert(request, String::new())),
            ("decision", _) if event["tool"].is_string() => drop(refused.insert(nonce_of(event))),
            ("outcome", _) => *outcomes.entry(request).or_default() += 1,
            _ => {}
        }
    }
    let of_tools: Vec<&String> = permits.values().filter(|nonce| !nonce.is_empty()).collect();
    let permitted: BTreeSet<&String> = of_tools.iter().copied().collect();
    assert_eq!(permitted.len(), of_tools.len(), "a call was permitted twice");
    let once: BTreeSet<&String> = seen.iter().collect();
    assert_eq!(once.len(), seen.len(), "the server saw a call twice");
    let unrecorded: Vec<_> = once.difference(&permitted).collect();
    assert!(unrecorded.is_empty(), "seen without a permit: {unrecorded:?}");
    let forwarded: Vec<_> = refused.iter().filter(|nonce| once.contains(nonce)).collect();
    assert!(forwarded.is_empty(), "refused and seen: {forwarded:?}");
    assert!(!refused.is_empty(), "no refusal was recorded");
    let never_seen: Vec<_> = answered.iter().filter(|nonce| !once.contains(nonce)).collect();
    assert!(
        never_seen.is_empty(),
        "answered, and the server did not see it: {never_seen:?}"
    );
    for (request, nonce) in &permits {
        assert_eq!(outcomes.get(request), Some(&1), "outcomes of {request}, call {nonce}");
    }
    assert_eq!(outcomes.len(), permits.len(), "an outcome without a permit");
    println!(
        "{} records, {} calls seen, {} answered, {} permits, {} refusals",
        records.len(),
        seen.len(),
        answered.len(),
        permits.len(),
        refused.len()
    );
}

/// The arguments that the record keeps.
fn nonce_of(event: &Value) -> String {
    let kept = event["args"].as_str().unwrap_or_else(|| panic!("no arguments in {event}"));
    nonce(&serde_json::from_str(kept).unwrap())
}

fn hash(prefix: u8, parts: &[&[u8]]) -> Vec<u8> {
    let whole = [&[&[prefix][..]], parts].concat().concat();
    digest(&SHA256, &whole).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Numbers that differ from run to run, and are the same for the same seed (xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.max(1);
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
