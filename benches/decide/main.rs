//! What a decision costs as policies grow in number while those that can apply stay the same.
//!
//! `cargo bench --bench decide` prints the cost at 10, 100, 1,000 and 10,000 policies and fails if it grows by half
//! from the least to the most (not with `--quick`). CPU time of this thread, least of several rounds: other load does not count.

mod world;

use neural_guardian::decide::{Verdict, could_permit, decide};
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use world::{Expect, Stage, World, name};

const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];
const MOST_GROWTH: f64 = 1.5;
const ROUNDS: usize = 15;
const CALLS: u32 = 4_000;

fn main() -> ExitCode {
    println!(
        "                          {}",
        SIZES.map(|size| format!("{size:>10}")).concat()
    );
    let mut ok = true;
    let stages = [
        (
            "permit, by role",
            Stage::new("t0", r#"{"path":"notes/today.txt","n":3}"#, Expect::Permit),
        ),
        (
            "permit, reads arguments",
            Stage::new("t1", r#"{"path":"notes/today.txt","n":3}"#, Expect::Permit),
        ),
        ("forbidden", Stage::new("t1", r#"{"path":"../secret","n":3}"#, Expect::Refuse)),
        ("reading a resource", Stage::reading("x:notes/today")),
        ("having a prompt", Stage::having("summarise", r#"{"file":"today.txt"}"#)),
    ];
    let worlds: Vec<(World, Duration)> = SIZES.iter().map(|size| World::new(*size)).collect();
    for (name, stage) in &stages {
        ok &= report(name, &worlds.iter().map(|(world, _)| cost(world, stage)).collect::<Vec<_>>());
    }
    ok &= report(
        "listing one tool",
        &worlds.iter().map(|(world, _)| listing_cost(world)).collect::<Vec<_>>(),
    );
    let compiled: String = worlds.iter().map(|(_, took)| format!("{:>8.0?}  ", took)).collect();
    println!("compiling the set         {compiled}");
    // Tests run it to see that it runs: a machine that is busy with them must not fail one.
    let judged = std::env::args().all(|argument| argument != "--quick");
    match ok || !judged {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn report(name: &str, costs: &[f64]) -> bool {
    let growth = costs[costs.len() - 1] / costs[0];
    let shown: String = costs.iter().map(|nanos| format!("{:>7.2} us", nanos / 1_000.0)).collect();
    let verdict = if growth < MOST_GROWTH { "" } else { "  TOO MUCH" };
    println!("{name:<26}{shown}   x{growth:.2}{verdict}");
    growth < MOST_GROWTH
}

/// Nanoseconds a decision.
fn cost(world: &World, stage: &Stage) -> f64 {
    let facts = world.facts();
    measure(|| {
        let verdict = decide(black_box(stage.call.clone()), &facts);
        let found = match &verdict {
            Verdict::Permit(_) => Expect::Permit,
            Verdict::Refuse(_) => Expect::Refuse,
        };
        assert_eq!(found, stage.expect);
        verdict
    })
}

fn listing_cost(world: &World) -> f64 {
    let facts = world.facts();
    let server = name("s0");
    let tool = world.snapshot.tool(&server, "t0").expect("it is in the catalogue");
    measure(|| {
        let listed = could_permit(&server, tool, &facts);
        assert!(listed);
        listed
    })
}

fn measure<T>(mut act: impl FnMut() -> T) -> f64 {
    let mut least = f64::MAX;
    for _ in 0..ROUNDS {
        let begun = thread_cpu();
        for _ in 0..CALLS {
            black_box(act());
        }
        let took = thread_cpu() - begun;
        least = least.min(took.as_nanos() as f64 / f64::from(CALLS));
    }
    least
}

/// CPU time of this thread so far, from the kernel's accounting; wall time where there is none.
fn thread_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = text
        .as_deref()
        .and_then(|text| text.split(' ').next())
        .and_then(|nanos| nanos.parse().ok());
    nanos.map_or_else(wall, Duration::from_nanos)
}

fn wall() -> Duration {
    static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    BEGUN.get_or_init(Instant::now).elapsed()
}
