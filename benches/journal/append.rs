//! Callers in a closed loop, each waiting for its record to be durable, and the bare loop of one thread.

use super::events::decision;
use super::{judge, new_journal};
use neural_guardian::domain::DecisionKind;
use neural_guardian::journal::Journal;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Callers, and the least share of the bare loop: of its records with one caller, of its syncs with several.
const CALLERS: [(usize, f64); 3] = [(1, 0.75), (16, 0.9), (128, 0.9)];
/// The least records a sync, of as many as there are callers.
const TOGETHER: f64 = 0.5;
/// With `--quick`: the least records of the bare loop's syncs, and the least records a sync. What a journal leaves of the syncs of
/// a fast disk while its callers gather says nothing in a busy hour.
const WIDE: f64 = 0.25;
/// What a record takes on disk beside its JSON, and what a batch does.
const FRAME: usize = 8;
const BATCH: usize = 40;
/// The mark that a batch begins with; no record holds it.
const MARK: [u8; 4] = *b"\xffNGB";

pub fn compare(scratch: &Path, quick: bool) -> bool {
    let (rounds, window) = if quick { (2, 200) } else { (7, 1_500) };
    let window = Duration::from_millis(window);
    let mut ok = true;
    println!("callers   records/s   p50      p99      records a sync   syncs/s   bare syncs/s   share");
    for (callers, least) in CALLERS {
        let mut rounds: Vec<Round> = (0..rounds).map(|_| round(scratch, callers, window)).collect();
        rounds.sort_by(|a, b| a.share().total_cmp(&b.share()));
        let round = &rounds[rounds.len() / 2];
        let together = round.records / round.syncs / callers as f64;
        let enough = match quick {
            true => round.records >= WIDE * round.bare && together >= WIDE,
            false => round.share() >= least && together >= TOGETHER,
        };
        ok &= enough;
        println!(
            "{callers:>7}{:>12.0}{:>8.0} us{:>7.0} us{:>14.1}{:>12.0}{:>14.0}{:>10.2}{}",
            round.records,
            round.p50,
            round.p99,
            round.records / round.syncs,
            round.syncs,
            round.bare,
            round.share(),
            judge(enough)
        );
    }
    ok
}

/// Per second and in microseconds.
struct Round {
    records: f64,
    p50: f64,
    p99: f64,
    syncs: f64,
    bare: f64,
}

impl Round {
    /// The part of the bare loop's syncs that the journal makes. With one caller these are records.
    fn share(&self) -> f64 {
        self.syncs / self.bare
    }
}

/// The journal between two halves of the bare loop, which writes what a batch of this round is on average.
fn round(scratch: &Path, callers: usize, window: Duration) -> Round {
    let folder = scratch.join("append");
    let journal = new_journal(folder.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let began = Instant::now();
    let mut waits = runtime.block_on(all(&journal, callers, began + window));
    let took = began.elapsed().as_secs_f64();
    runtime.block_on(journal.stop());
    drop(journal);
    let (batches, bytes) = batches(&folder);
    std::fs::remove_dir_all(&folder).expect("a scratch folder");
    let bare = bare(scratch, bytes / batches, window);
    waits.sort_unstable();
    let at = |share: usize| waits[waits.len() * share / 100].as_secs_f64() * 1e6;
    Round {
        records: waits.len() as f64 / took,
        p50: at(50),
        p99: at(99),
        syncs: batches as f64 / took,
        bare,
    }
}

async fn all(journal: &Journal, callers: usize, until: Instant) -> Vec<Duration> {
    let call = async |caller: usize| {
        let mut waits = Vec::new();
        for number in 0.. {
            let event = decision((caller as u64) << 32 | number, DecisionKind::Deny);
            let began = Instant::now();
            journal.append(event).await.expect("a durable record");
            waits.push(began.elapsed());
            if Instant::now() >= until {
                break;
            }
        }
        waits
    };
    let calls = (0..callers).map(call);
    futures_util::future::join_all(calls).await.concat()
}

/// How many batches lie in the folder, and their bytes.
fn batches(folder: &Path) -> (usize, usize) {
    let files = std::fs::read_dir(folder).expect("the journal's folder").flatten();
    let segments = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "seg"));
    let (mut batches, mut bytes) = (0, 0);
    for segment in segments {
        let text = std::fs::read(segment.path()).expect("a segment");
        let marks = text.windows(MARK.len()).filter(|window| *window == MARK).count();
        (batches, bytes) = (batches + marks, bytes + text.len());
    }
    (batches, bytes.max(batches * (FRAME + BATCH)))
}

/// Appends so much and syncs it, again and again, as the journal does: into a file that is zeros for a few MiB ahead. Returns
/// syncs a second.
fn bare(scratch: &Path, bytes: usize, window: Duration) -> f64 {
    const AHEAD: usize = 2 << 20;
    let path = scratch.join("bare");
    let options = OpenOptions::new().write(true).create_new(true).clone();
    let file: File = options.open(&path).expect("a scratch file");
    let (text, zeros) = (vec![b'x'; bytes], vec![0; AHEAD]);
    let (mut at, mut written, mut syncs) = (0, 0, 0_u32);
    let began = Instant::now();
    while began.elapsed() < window {
        let end = at + bytes as u64;
        if end > written {
            file.write_all_at(&zeros, end).expect("zeros");
            written = end + AHEAD as u64;
        }
        file.write_all_at(&text, at).expect("a write");
        file.sync_data().expect("a sync");
        (at, syncs) = (end, syncs + 1);
    }
    let took = began.elapsed().as_secs_f64();
    std::fs::remove_file(path).expect("a scratch file");
    f64::from(syncs) / took
}
