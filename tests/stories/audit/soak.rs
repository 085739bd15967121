//! Hours of mixed load on both stores: memory, files and threads stay flat. `tests/long/run` runs it for
//! an hour, the everyday run for seconds.

use crate::ana_reads_files;
use crate::support::client::Client;
use crate::support::stores::Engine;
use crate::support::upstream::{Fault, Upstream};
use crate::support::wait::moment;
use crate::support::world::World;
use serde_json::json;
use std::time::{Duration, Instant};

/// What the last third may have more than the one before it.
const MORE_MEMORY: f64 = 1.05;
const SLACK: f64 = 2.0 * 1024.0 * 1024.0;
const MORE_FILES: f64 = 3.0;
const MORE_THREADS: f64 = 2.0;

/// Minutes in the everyday run, to see that it runs; the bounds are for those that last.
const SHORT: f64 = 0.05;
const LASTING: usize = 60;

/// One sample a second.
struct Sample {
    memory: f64,
    files: f64,
    threads: f64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_files_and_threads_stay_flat() {
    let minutes: f64 = std::env::var("GUARDIAN_SOAK_MINUTES").map_or(SHORT, |minutes| minutes.parse().unwrap());
    let time = Duration::from_secs_f64(minutes * 60.0);
    let (sqlite, postgres) = tokio::join!(soak(Engine::Sqlite, time), soak(Engine::Postgres, time));
    let problems = [sqlite, postgres].concat();
    assert!(problems.is_empty(), "{problems:#?}");
}

async fn soak(engine: Engine, time: Duration) -> Vec<String> {
    let mut world = World::new(engine).await;
    let (files, key) = ana_reads_files(&mut world).await;
    world
        .set("limits.per_principal", "{ rate = 100000, per = '1s' }")
        .set("journal.segment_bytes", "1048576");
    files.fault("slow", Fault::Stream);
    world.start().await;
    let until = Instant::now() + time;
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let (world_client, key) = (world.client("files"), key.clone());
            tokio::spawn(mixed_calls(world_client, key, caller, until))
        })
        .collect();
    let mut samples = Vec::new();
    while Instant::now() < until && callers.iter().all(|caller| !caller.is_finished()) {
        moment(Duration::from_secs(1)).await;
        files.forget();
        let (files, threads) = world.files_and_threads();
        samples.push(Sample {
            memory: world.resident() as f64,
            files: files as f64,
            threads: threads as f64,
        });
    }
    let mut calls = 0;
    for caller in callers {
        calls += caller.await.unwrap();
    }
    world.shipped().await;
    let problems = if samples.len() >= LASTING {
        judge(engine, &samples, calls)
    } else {
        Vec::new()
    };
    world.terminate();
    assert!(world.ended().await.success(), "{}", world.log());
    drop::<Upstream>(files);
    problems
}

/// Sessions of a hundred messages: results, streams, refusals, lists, and strangers between them.
async fn mixed_calls(stranger: Client, key: String, caller: usize, until: Instant) -> u64 {
    let mut calls = 0;
    while Instant::now() < until {
        assert_eq!(stranger.alike().handshake().await.status, 401);
        let mut client = stranger.alike().bearer(&key);
        assert!(client.handshake().await.is_result());
        for number in 0..100 {
            let answer = match number % 10 {
                0 => client.ask("tools/list", json!({})).await,
                3 | 7 => client.call("slow", json!({ "events": 1 })).await,
                5 => {
                    let refused = client.call("read_file", json!({ "path": "/etc/passwd" })).await;
                    assert!(!refused.is_result(), "{refused:?}");
                    continue;
                }
                _ => client.call("echo", json!({ "text": format!("{caller}-{number}") })).await,
            };
            assert!(answer.is_result(), "{answer:?}");
            calls += 1;
            moment(Duration::from_millis(20)).await;
        }
    }
    calls
}

/// The last third beside the middle one; the first warms up.
fn judge(engine: Engine, samples: &[Sample], calls: u64) -> Vec<String> {
    let third = samples.len() / 3;
    let median = |of: fn(&Sample) -> f64, part: usize| {
        let mut values: Vec<f64> = samples[part * third..(part + 1) * third].iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let thirds = |of: fn(&Sample) -> f64| [0, 1, 2].map(|part| median(of, part));
    let (memory, files, threads) = (
        thirds(|sample| sample.memory),
        thirds(|sample| sample.files),
        thirds(|sample| sample.threads),
    );
    println!(
        "{engine:?}: {calls} calls; memory {:.1?} MiB, files {files:?}, threads {threads:?} by thirds",
        memory.map(|bytes| bytes / 1024.0 / 1024.0)
    );
    let mut problems = Vec::new();
    let mut bound = |what: &str, [_, middle, last]: [f64; 3], most: f64| {
        if last > most {
            problems.push(format!("{engine:?}: {what} grew from {middle} to {last}; the most is {most}"));
        }
    };
    bound("memory", memory, memory[1] * MORE_MEMORY + SLACK);
    bound("open files", files, files[1] + MORE_FILES);
    bound("threads", threads, threads[1] + MORE_THREADS);
    problems
}
