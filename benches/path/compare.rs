//! Starts everything, gives each proxy its windows in turn, and compares what they cost.

use super::against::OURS;
use super::cpu::Meter;
use super::guardian::Guardian;
use super::issuer::Issuer;
use super::load::{CONNECTIONS, Load};
use super::passthrough::Passthrough;
use super::place::Scratch;
use super::report::{Cost, Series, heads, line, summary};
use super::server::{self, JUDGED, REUSED};
use super::{Callers, Options, Store, Verdict};
use clap::ValueEnum;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::TlsConnector;

pub fn compare(options: &Options) -> ExitCode {
    let (rounds, window) = if options.quick {
        (3, Duration::from_millis(700))
    } else {
        (9, Duration::from_millis(2_500))
    };
    let scratch = Scratch::new();
    make_certificates(&scratch.0);
    let issuer = Issuer::new(&scratch.0.join("jwks.json"));
    let tls = client_tls(&scratch.0.join("certs"));
    let server = server::start();
    let passthrough = Passthrough::start(&scratch.0.join("certs"), server);
    let mut guardians = Vec::new();
    for store in options.stores() {
        let start =
            |program: &Path, name: &str| Guardian::start(program, &scratch.0, &format!("{name}-{store:?}"), store, server);
        guardians.push((Proxy::Ours(store), start(Path::new(OURS), "ours")));
        if let Some(program) = &options.against_program {
            guardians.push((Proxy::Against(store), start(program, "against")));
        }
    }
    if guardians.is_empty() {
        return ExitCode::SUCCESS;
    }
    let mut runs = Vec::new();
    for callers in options.callers() {
        let authorizations = guardians[0].1.authorizations(callers, &issuer);
        runs.push(Run::of_passthrough(&passthrough, callers, authorizations));
        for verdict in options.verdicts() {
            for (proxy, guardian) in &guardians {
                let authorizations = guardian.authorizations(callers, &issuer);
                runs.push(Run::of_guardian(*proxy, guardian, callers, verdict, authorizations));
            }
        }
    }
    println!("{CONNECTIONS} connections, {rounds} rounds of {window:?} after one to warm up");
    heads();
    for round in 0..=rounds {
        // What grows or slows down in the course of a round is not always to the same one's disadvantage.
        runs.reverse();
        for run in &mut runs {
            let cost = run.measure(&tls, window);
            line(&run.series.name, &cost);
            if round > 0 {
                run.series.costs.push(cost);
            }
        }
    }
    judge(&runs, options)
}

/// Says what it all comes to, and fails above the limits.
fn judge(runs: &[Run], options: &Options) -> ExitCode {
    let (mut excess, mut limit_was_checked) = (Vec::new(), options.limit.is_none());
    let mut check = |what: &str, ratio: f64, limit: Option<f64>| {
        if let Some(limit) = limit.filter(|limit| ratio > *limit) {
            excess.push(format!("{what}: {ratio:.2} times, more than {limit}"));
        }
    };
    println!("\nthe least of each");
    heads();
    for run in runs {
        let Some(verdict) = run.verdict else {
            line(&run.series.name, &run.series.least());
            continue;
        };
        let floor = runs
            .iter()
            .find(|floor| floor.verdict.is_none() && floor.callers == run.callers);
        let floor = floor.expect("the passthrough has the load of all callers");
        summary(&run.series, &floor.series);
        if (run.proxy, run.callers, verdict) == (Proxy::Ours(Store::Sqlite), Callers::Tokens, Verdict::Reused) {
            check(&run.series.name, run.series.ratio(&floor.series), options.limit);
            limit_was_checked = true;
        }
    }
    for ours in runs {
        let Proxy::Ours(store) = ours.proxy else { continue };
        let same = |run: &&Run| (run.proxy, run.callers, run.verdict) == (Proxy::Against(store), ours.callers, ours.verdict);
        if let Some(other) = runs.iter().find(same) {
            let ratio = ours.series.ratio(&other.series);
            let median = ours.series.median_ratio(&other.series);
            println!(
                "{}: {ratio:.3} times the other commit (median of the rounds {median:.3})",
                ours.series.name
            );
            check(
                &format!("{}, against the other commit", ours.series.name),
                ratio,
                options.against_limit,
            );
        }
    }
    if !limit_was_checked {
        excess.push("--limit is of tokens, reused, sqlite, which was not run".to_owned());
    }
    for excess in &excess {
        eprintln!("{excess}");
    }
    if excess.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Proxy {
    Passthrough,
    Ours(Store),
    /// That of the other commit.
    Against(Store),
}

/// One proxy under one load, and what it cost in each round.
struct Run<'a> {
    proxy: Proxy,
    callers: Callers,
    verdict: Option<Verdict>,
    guardian: Option<&'a Guardian>,
    pid: u32,
    load: Load,
    series: Series,
}

impl<'a> Run<'a> {
    fn of_passthrough(passthrough: &Passthrough, callers: Callers, authorizations: Vec<String>) -> Self {
        Self {
            proxy: Proxy::Passthrough,
            callers,
            verdict: None,
            guardian: None,
            pid: passthrough.child.id(),
            load: Load {
                to: passthrough.address,
                path: "/mcp",
                tool: REUSED,
                authorizations,
            },
            series: Series::new(format!("passthrough, {}", word(callers))),
        }
    }

    fn of_guardian(
        proxy: Proxy,
        guardian: &'a Guardian,
        callers: Callers,
        verdict: Verdict,
        authorizations: Vec<String>,
    ) -> Self {
        let (whose, store) = match proxy {
            Proxy::Passthrough => unreachable!("a passthrough is no guardian"),
            Proxy::Ours(store) => ("guardian", store),
            Proxy::Against(store) => ("the other commit", store),
        };
        let name = format!("{whose}, {}, {}, {}", word(callers), word(verdict), word(store));
        Self {
            proxy,
            callers,
            verdict: Some(verdict),
            guardian: Some(guardian),
            pid: guardian.child.id(),
            load: Load {
                to: guardian.address,
                path: "/mcp/bench",
                tool: match verdict {
                    Verdict::Reused => REUSED,
                    Verdict::Judged => JUDGED,
                },
                authorizations,
            },
            series: Series::new(name),
        }
    }

    /// One window. Nothing is left to ship when it begins, and its cost is known when nothing is left of its own.
    fn measure(&self, tls: &TlsConnector, window: Duration) -> Cost {
        self.settle(|| {});
        let mut meter = Meter::new(self.pid);
        let before = meter.sample();
        let mut marks = Vec::new();
        let done = self.load.run(tls, window, || marks.push(meter.sample()));
        self.settle(|| _ = meter.sample());
        let until_shipped = meter.sample() - before;
        Cost::new(
            marks[1] - marks[0],
            done.calls,
            until_shipped,
            done.all_calls,
            done.took.as_secs_f64(),
        )
    }

    fn settle(&self, look: impl FnMut()) {
        if let Some(guardian) = self.guardian {
            guardian.settle(look);
        }
    }
}

impl Options {
    fn stores(&self) -> Vec<Store> {
        let there = |store: &Store| {
            let there = *store == Store::Sqlite || std::env::var_os("GUARDIAN_TEST_POSTGRES").is_some();
            if !there {
                println!("Postgres is left out: GUARDIAN_TEST_POSTGRES names none");
            }
            there
        };
        all_or(self.store).filter(there).collect()
    }

    fn callers(&self) -> impl Iterator<Item = Callers> {
        all_or(self.callers)
    }

    fn verdicts(&self) -> impl Iterator<Item = Verdict> {
        all_or(self.only)
    }
}

fn all_or<T: ValueEnum + Copy + PartialEq + 'static>(only: Option<T>) -> impl Iterator<Item = T> {
    let all = T::value_variants().iter().copied();
    all.filter(move |one| only.is_none_or(|only| only == *one))
}

/// As the command line has it.
fn word(value: impl ValueEnum) -> String {
    let value = value.to_possible_value().expect("no value is hidden");
    value.get_name().to_owned()
}

fn make_certificates(scratch: &Path) {
    let now = neural_guardian::domain::Timestamp::from_datetime(time::OffsetDateTime::now_utc());
    neural_guardian::transport::dev_certificates(&scratch.join("certs"), &[], now).expect("certificates");
}

fn client_tls(certificates: &Path) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(certificates.join("ca.pem")).expect("a CA"))
        .expect("a CA");
    TlsConnector::from(Arc::new(
        rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth(),
    ))
}
