//! Both records of each call from the spool to a store: records a second, and the processor time of this process.

use super::cpu::Meter;
use super::events::{decision, environment, outcome};
use super::postgres::Database;
use super::{judge, new_journal};
use neural_guardian::domain::DecisionKind;
use neural_guardian::journal::{Journal, Shipper, lower_priority};
use neural_guardian::store::{Store, StoreOpen};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// The least records a second, and with `--quick`.
const LEAST: f64 = 5_000.0;
const WIDE: f64 = 1_000.0;
/// The most microseconds of this process for both records of a call, and with `--quick`.
const MOST: f64 = 5.0;
const MOST_QUICK: f64 = 200.0;

pub fn measure(scratch: &Path, quick: bool) -> bool {
    let (rounds, calls) = if quick { (1, 2_000) } else { (5, 50_000) };
    let mut ok = true;
    println!("store      records/s   CPU a call   of it the shipper   SQLite");
    for store in ["sqlite", "postgres"] {
        let rounds = (0..rounds).map(|_| round(scratch, store, calls));
        let best = rounds.min_by(|a, b| a.total().total_cmp(&b.total())).expect("a round");
        let (least, most) = if quick { (WIDE, MOST_QUICK) } else { (LEAST, MOST) };
        let (fast, cheap) = (best.records >= least, best.total() <= most);
        ok &= fast && cheap;
        println!(
            "{store:<9}{:>11.0}{:>10.2} us{:>17.2} us{:>6.2} us{}{}",
            best.records,
            best.total(),
            best.shipper,
            best.sqlite,
            judge(fast),
            if cheap { "" } else { "  TOO MUCH" }
        );
    }
    ok
}

/// Records a second, and microseconds a call.
struct Round {
    records: f64,
    shipper: f64,
    sqlite: f64,
}

impl Round {
    fn total(&self) -> f64 {
        self.shipper + self.sqlite
    }
}

fn round(scratch: &Path, store: &str, calls: u64) -> Round {
    let folder = scratch.join("ship");
    std::fs::create_dir(&folder).expect("a scratch folder");
    let journal = new_journal(folder.join("journal"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(fill(&journal, calls));
    let database = (store == "postgres").then(|| runtime.block_on(Database::new()));
    let open = match &database {
        None => StoreOpen::Sqlite {
            file: folder.join("guardian.db"),
            create: true,
        },
        Some(database) => postgres_at(database.url()),
    };
    runtime
        .block_on(async { Store::open(&open).await.expect("a store").migrate(&mut |_| ()).await })
        .expect("migrations");
    let open = match database.as_ref() {
        None => open,
        Some(database) => runtime.block_on(proxy(database)),
    };
    let round = ship(&journal, open, calls);
    drop((journal, database));
    std::fs::remove_dir_all(&folder).expect("a scratch folder");
    round
}

async fn fill(journal: &Journal, calls: u64) {
    // 64 calls at once, so that they share syncs.
    for first in (0..calls).step_by(64) {
        let both = (first..calls.min(first + 64)).flat_map(|number| [decision(number, DecisionKind::Allow), outcome(number)]);
        let appended = futures_util::future::join_all(both.map(|event| journal.append(event))).await;
        assert!(appended.iter().all(Result::is_ok), "every record is durable");
    }
}

/// On a thread of its own like `guardian`'s. Told to stop before it begins, the shipper ships all there is, without a pause.
fn ship(journal: &Journal, open: StoreOpen, calls: u64) -> Round {
    let records = journal.unshipped();
    let mut meter = Meter::new(std::process::id());
    let before = meter.sample();
    let shipper = Shipper::new(journal);
    let run = move || {
        lower_priority();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .thread_name("shipper")
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let store = Store::open(&open).await.expect("a store");
            let stop = CancellationToken::new();
            stop.cancel();
            let began = Instant::now();
            shipper.run(store.clone(), stop).await;
            let took = began.elapsed();
            let cpu = meter.sample() - before;
            store.close().await;
            (took, cpu)
        })
    };
    let thread = std::thread::Builder::new()
        .name("shipper".to_owned())
        .spawn(run)
        .expect("a thread");
    let (took, cpu) = thread.join().expect("the shipper ends");
    assert_eq!(journal.unshipped(), 0, "{:?}", journal.ship_error());
    let micros = |nanos: u64| nanos as f64 / 1e3 / calls as f64;
    Round {
        records: records as f64 / took.as_secs_f64(),
        shipper: micros(cpu.shipper),
        sqlite: micros(cpu.sqlite),
    }
}

/// A login that may do what the proxy's may.
async fn proxy(database: &Database) -> StoreOpen {
    let role = format!("proxy_{}", database.name);
    database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'bench'; GRANT guardian_proxy TO {role}"
        ))
        .await;
    database
        .execute(&format!("SELECT guardian.bind_role('{role}', '{}')", environment()))
        .await;
    let url = database.url();
    let (_, rest) = url.split_once('@').expect("a URL with a user");
    postgres_at(format!("postgres://{role}:bench@{rest}"))
}

fn postgres_at(url: String) -> StoreOpen {
    StoreOpen::Postgres {
        url: url.as_str().into(),
        ca_file: None,
        max_connections: 4,
        connect_timeout: Duration::from_secs(10),
    }
}
