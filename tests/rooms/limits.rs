//! `limits` on a clock that stands still, compared with a model in whole nanoseconds that does not use governor.

use governor::clock::FakeRelativeClock;
use neural_guardian::config::{HumanDuration, LimitsConfig, Rate, ServerConfig};
use neural_guardian::domain::{
    AuthMethod, Digest, Fingerprint, Issuer, IssuerAlias, Principal, PrincipalKind, Reason, ServerName, Subject, ToolName,
};
use neural_guardian::limits::{Admission, Limits, PrincipalKey};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

#[test]
fn a_burst_then_one_every_interval_and_the_wait_told_is_exact() {
    let (limits, clock) = limits(|config| config.per_principal = rate(10, 1_000, 3));
    for _ in 0..3 {
        let _ended = limits.admit(ann(), &files(), None).unwrap();
    }
    let refusal = limits.admit(ann(), &files(), None).unwrap_err();
    assert_eq!(refusal.reason, Reason::RateLimited);
    assert_eq!(refusal.retry_after, Some(Duration::from_millis(100)));
    assert_eq!(
        refusal.detail.as_deref(),
        Some("at most 10 calls in 1s, 3 at once, for each caller")
    );

    clock.advance(Duration::from_nanos(99_999_999));
    let wait = limits.admit(ann(), &files(), None).unwrap_err().retry_after;
    assert_eq!(wait, Some(Duration::from_nanos(1)));
    clock.advance(Duration::from_nanos(1));
    assert!(limits.admit(ann(), &files(), None).is_ok());
}

#[test]
fn callers_do_not_share_counters_but_share_the_servers() {
    let (limits, _) = limits(|config| {
        config.per_principal = rate(1, 1_000, 1);
        config.per_server = rate(2, 1_000, 2);
    });
    assert!(limits.admit(ann(), &files(), None).is_ok());
    assert!(limits.admit(bob(), &files(), None).is_ok());
    let refusal = limits.admit(key("eve"), &files(), None).unwrap_err();
    assert!(refusal.detail.unwrap().ends_with("for server `files`"));
    assert!(limits.admit(key("eve"), &town(), None).is_ok());
}

#[test]
fn a_tools_own_rate_stands_over_the_general_one_and_a_servers_too() {
    let (limits, _) = limits(|config| {
        config.per_tool = rate(5, 1_000, 5);
        config.tools = BTreeMap::from([("files/delete".to_owned(), rate(1, 60_000, 1).unwrap())]);
        config.servers = BTreeMap::from([(town(), rate(1, 1_000, 1).unwrap())]);
    });
    assert!(limits.admit(ann(), &files(), Some(&tool("delete"))).is_ok());
    let refusal = limits.admit(ann(), &files(), Some(&tool("delete"))).unwrap_err();
    assert_eq!(refusal.retry_after, Some(Duration::from_secs(60)));
    assert!(limits.admit(ann(), &files(), Some(&tool("read"))).is_ok());
    assert!(limits.admit(ann(), &files(), Some(&tool("read"))).is_ok());
    assert!(limits.admit(ann(), &town(), Some(&tool("delete"))).is_ok());
    assert!(limits.admit(ann(), &town(), Some(&tool("read"))).is_err());
}

#[test]
fn slots_are_freed_by_dropping_and_a_full_house_takes_no_rate() {
    let (limits, _) = limits(|config| {
        config.per_principal = rate(3, 60_000, 3);
        config.max_concurrency_per_principal = 2;
    });
    let first = limits.admit(ann(), &files(), None).unwrap();
    let second = limits.admit(ann(), &town(), None).unwrap();
    for _ in 0..10 {
        let refusal = limits.admit(ann(), &files(), None).unwrap_err();
        assert_eq!(refusal.reason, Reason::TooManyInFlight);
    }
    drop(first);
    let third = limits
        .admit(ann(), &files(), None)
        .expect("the third of three, so the ten took none");
    drop((second, third));
    assert_eq!(limits.admit(ann(), &files(), None).unwrap_err().reason, Reason::RateLimited);
}

#[test]
fn a_server_has_its_own_slots_over_all_callers() {
    let (limits, _) = limits(|config| config.per_principal = None);
    let held: Vec<_> = (0..4)
        .map(|n| limits.admit(key(&format!("user {n}")), &files(), None).unwrap())
        .collect();
    assert_eq!(
        limits.admit(ann(), &files(), None).unwrap_err().reason,
        Reason::TooManyInFlight
    );
    assert!(limits.admit(ann(), &town(), None).is_ok());
    drop(held);
    assert!(limits.admit(ann(), &files(), None).is_ok());
}

#[test]
fn a_full_table_is_swept_and_refuses_only_the_new() {
    let (limits, clock) = limits(|config| {
        config.per_principal = rate(1, 10_000, 2);
        config.max_keys = 3;
    });
    for name in ["a", "b", "c"] {
        assert!(limits.admit(key(name), &files(), None).is_ok());
    }
    let refusal = limits.admit(key("d"), &files(), None).unwrap_err();
    assert_eq!(refusal.reason, Reason::RateLimited);
    assert_eq!(
        refusal.detail.as_deref(),
        Some("too many callers are active; no room to count another")
    );
    assert!(refusal.retry_after.is_some());
    assert!(limits.admit(key("a"), &files(), None).is_ok(), "the known go on");

    clock.advance(Duration::from_secs(10));
    assert!(limits.admit(key("d"), &files(), None).is_ok(), "b and c are idle again");
    assert_eq!(limits.keys(), 2, "a owes a call yet, d is new");
}

#[test]
fn a_running_call_is_never_swept_away() {
    let (limits, clock) = limits(|config| {
        config.per_principal = rate(1, 1_000, 1);
        config.max_concurrency_per_principal = 1;
    });
    let running = limits.admit(ann(), &files(), None).unwrap();
    clock.advance(Duration::from_secs(3_600));
    limits.sweep();
    assert_eq!(
        limits.admit(ann(), &files(), None).unwrap_err().reason,
        Reason::TooManyInFlight
    );
    drop(running);
    limits.sweep();
    assert_eq!(limits.keys(), 0);
}

#[test]
fn a_call_that_was_never_sent_gives_back_what_it_took() {
    let (limits, _) = limits(|config| {
        config.per_principal = rate(1, 60_000, 1);
        config.per_tool = rate(1, 60_000, 1);
        config.per_server = rate(1, 60_000, 1);
    });
    for _ in 0..5 {
        limits.admit(ann(), &files(), Some(&tool("read"))).unwrap().refund();
    }
    assert!(limits.admit(ann(), &files(), Some(&tool("read"))).is_ok());
    assert!(limits.admit(ann(), &files(), Some(&tool("read"))).is_err());
}

#[test]
fn what_is_no_limit_is_named_all_at_once() {
    let mut config = roomy();
    config.per_principal = rate(0, 1_000, 1);
    config.per_tool = rate(1, 1_000, 0);
    config.per_server = rate(u32::MAX, 1, 1);
    config.tools = BTreeMap::from([
        ("files".to_owned(), rate(1, 1_000, 1).unwrap()),
        ("else/read".to_owned(), rate(1, 1_000, 1).unwrap()),
        (
            "files/read".to_owned(),
            Rate {
                rate: 1,
                per: HumanDuration(Duration::MAX),
                burst: Some(u32::MAX),
            },
        ),
    ]);
    config.servers = BTreeMap::from([(ServerName::parse("nowhere").unwrap(), rate(1, 1_000, 1).unwrap())]);
    let problems = Limits::new(&config, &servers()).err().unwrap().0;
    assert_eq!(
        problems,
        [
            "`limits.per_principal`: `rate` must be at least 1",
            "`limits.per_tool`: `burst` must be at least 1",
            "`limits.per_server`: `per` is too short for so many calls",
            "`limits.tools.\"files/read\"`: `per` is too long",
            "`limits.tools.\"else/read\"`: not `<server>/<tool>` of a configured server",
            "`limits.tools.\"files\"`: not `<server>/<tool>` of a configured server",
            "`limits.servers.nowhere`: no server of this name is configured",
        ]
    );
}

#[test]
fn issuer_and_subject_cannot_be_shifted_into_each_other() {
    let keys: HashSet<_> = [("ab", "c"), ("a", "bc"), ("abc", "c"), ("ab", "cc")]
        .into_iter()
        .map(|(issuer, subject)| PrincipalKey::of(&principal(issuer, subject)))
        .collect();
    assert_eq!(keys.len(), 4);
}

#[test]
fn threads_together_get_exactly_the_burst() {
    let (limits, _) = limits(|config| {
        config.per_principal = rate(1, 3_600_000, 1_000);
        config.per_server = rate(1, 3_600_000, 1_500);
        config.max_concurrency_per_principal = usize::MAX;
    });
    let admitted = |who: PrincipalKey| (0..1_200).filter(|_| limits.admit(who, &town(), None).is_ok()).count();
    let total: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = [ann(), ann(), bob(), bob()]
            .map(|who| scope.spawn(move || admitted(who)))
            .into();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(total, 1_500, "had a refusal taken anything, fewer would have come through");
}

#[derive(Debug, Clone)]
enum Step {
    Call { who: usize, server: usize, tool: Option<usize> },
    GiveBack { who: usize, server: usize, tool: Option<usize> },
    End(usize),
    Advance(u64),
    Sweep,
}

const WHO: [&str; 3] = ["ann", "bob", "eve"];
const TOOLS: [&str; 2] = ["read", "delete"];

fn step() -> impl Strategy<Value = Step> {
    let call = (0..WHO.len(), 0..2usize, proptest::option::of(0..TOOLS.len()));
    prop_oneof![
        8 => call.clone().prop_map(|(who, server, tool)| Step::Call { who, server, tool }),
        1 => call.prop_map(|(who, server, tool)| Step::GiveBack { who, server, tool }),
        3 => (0..8usize).prop_map(Step::End),
        3 => (0..400_000_000u64).prop_map(Step::Advance),
        1 => Just(Step::Sweep),
    ]
}

/// A token bucket of `burst * interval` nanoseconds that fills by one per nanosecond; a call takes `interval`.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    interval: u64,
    full: u64,
    level: u64,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        let interval = rate.per.0.as_nanos() as u64 / u64::from(rate.rate);
        let full = interval * u64::from(rate.burst.unwrap());
        Self {
            interval,
            full,
            level: full,
        }
    }

    fn wait(&self) -> u64 {
        self.interval.saturating_sub(self.level)
    }
}

#[derive(Default)]
struct Model {
    buckets: BTreeMap<String, Bucket>,
    running: Vec<(usize, usize)>,
}

enum Expected {
    Admitted,
    Busy,
    Wait(u64),
}

impl Model {
    fn call(&mut self, config: &LimitsConfig, who: usize, server: usize, tool: Option<usize>, keep: bool) -> Expected {
        if self.running.iter().filter(|running| running.0 == who).count() >= config.max_concurrency_per_principal
            || server == 0 && self.running.iter().filter(|running| running.1 == 0).count() >= 4
        {
            return Expected::Busy;
        }
        let mut asked = vec![
            (format!("{who}"), config.per_principal),
            (format!("server {server}"), config.per_server),
        ];
        if let Some(tool) = tool {
            let own = config
                .tools
                .get(&format!("{}/{}", servers()[server].name, TOOLS[tool]))
                .copied();
            asked.push((format!("{who} {server} {tool}"), own.or(config.per_tool)));
        }
        asked.retain(|(_, rate)| rate.is_some());
        for (name, rate) in &asked {
            self.buckets.entry(name.clone()).or_insert_with(|| Bucket::new(rate.unwrap()));
        }
        let wait = asked.iter().map(|(name, _)| self.buckets[name].wait()).max().unwrap_or(0);
        if wait > 0 {
            return Expected::Wait(wait);
        }
        if keep {
            for (name, _) in &asked {
                let bucket = self.buckets.get_mut(name).unwrap();
                bucket.level -= bucket.interval;
            }
            self.running.push((who, server));
        }
        Expected::Admitted
    }

    fn advance(&mut self, nanos: u64) {
        for bucket in self.buckets.values_mut() {
            bucket.level = bucket.full.min(bucket.level + nanos);
        }
    }
}

proptest! {
    #[test]
    fn a_refused_call_leaves_every_counter_as_it_was(steps in proptest::collection::vec(step(), 1..200)) {
        let mut config = roomy();
        config.per_principal = rate(7, 1_000, 4);
        config.per_tool = rate(3, 1_000, 2);
        config.per_server = rate(11, 1_000, 5);
        config.tools = BTreeMap::from([("files/delete".to_owned(), rate(1, 1_000, 1).unwrap())]);
        config.max_concurrency_per_principal = 3;
        let clock = FakeRelativeClock::default();
        let limits = Limits::with_clock(&config, &servers(), clock.clone()).unwrap();
        let mut model = Model::default();
        let mut running: Vec<Admission> = Vec::new();

        for step in steps {
            match step {
                Step::Call { who, server, tool } | Step::GiveBack { who, server, tool } => {
                    let keep = matches!(step, Step::Call { .. });
                    let expected = model.call(&config, who, server, tool, keep);
                    let tool = tool.map(|tool| self::tool(TOOLS[tool]));
                    let got = limits.admit(key(WHO[who]), &servers()[server].name, tool.as_ref());
                    match (expected, got) {
                        (Expected::Admitted, Ok(admission)) if keep => running.push(admission),
                        (Expected::Admitted, Ok(admission)) => admission.refund(),
                        (Expected::Busy, Err(refusal)) => prop_assert_eq!(refusal.reason, Reason::TooManyInFlight),
                        (Expected::Wait(wait), Err(refusal)) => {
                            prop_assert_eq!(refusal.reason, Reason::RateLimited);
                            prop_assert_eq!(refusal.retry_after, Some(Duration::from_nanos(wait)));
                        }
                        (_, got) => prop_assert!(false, "the model disagrees with {:?}", got),
                    }
                }
                Step::End(n) if n < running.len() => {
                    drop(running.swap_remove(n));
                    model.running.swap_remove(n);
                }
                Step::End(_) => {}
                Step::Advance(nanos) => {
                    clock.advance(Duration::from_nanos(nanos));
                    model.advance(nanos);
                }
                Step::Sweep => limits.sweep(),
            }
        }
    }

    #[test]
    fn there_are_never_more_keys_than_configured(calls in proptest::collection::vec((0..50u32, 0..3_000u64), 1..300)) {
        let (limits, clock) = limits(|config| {
            config.per_principal = rate(1, 1_000, 3);
            config.per_tool = rate(1, 1_000, 3);
            config.max_keys = 9;
        });
        for (who, millis) in calls {
            let _ended = limits.admit(key(&who.to_string()), &files(), Some(&tool("read")));
            prop_assert!(limits.keys() <= 9);
            clock.advance(Duration::from_millis(millis / 10));
        }
        clock.advance(Duration::from_secs(10));
        limits.sweep();
        prop_assert_eq!(limits.keys(), 0);
    }
}

fn limits(change: impl FnOnce(&mut LimitsConfig)) -> (Limits<FakeRelativeClock>, FakeRelativeClock) {
    let mut config = roomy();
    change(&mut config);
    let clock = FakeRelativeClock::default();
    (Limits::with_clock(&config, &servers(), clock.clone()).unwrap(), clock)
}

fn roomy() -> LimitsConfig {
    LimitsConfig {
        per_principal: None,
        max_keys: 1_000,
        ..LimitsConfig::default()
    }
}

fn rate(rate: u32, per_millis: u64, burst: u32) -> Option<Rate> {
    Some(Rate {
        rate,
        per: HumanDuration(Duration::from_millis(per_millis)),
        burst: Some(burst),
    })
}

fn servers() -> [ServerConfig; 2] {
    let parse = |text: &str| toml::from_str(text).unwrap();
    [
        parse("name = 'files'\nurl = 'http://127.0.0.1:1/mcp'\nmax_concurrency = 4"),
        parse("name = 'town'\nurl = 'http://127.0.0.1:2/mcp'\nmax_concurrency = 100000"),
    ]
}

fn files() -> ServerName {
    ServerName::parse("files").unwrap()
}

fn town() -> ServerName {
    ServerName::parse("town").unwrap()
}

fn tool(name: &str) -> ToolName {
    ToolName::parse(name).unwrap()
}

fn ann() -> PrincipalKey {
    key("ann")
}

fn bob() -> PrincipalKey {
    key("bob")
}

fn key(subject: &str) -> PrincipalKey {
    PrincipalKey::of(&principal("https://issuer.example", subject))
}

fn principal(issuer: &str, subject: &str) -> Principal {
    Principal::new(
        PrincipalKind::User,
        Issuer::parse(issuer).unwrap(),
        IssuerAlias::parse("main").unwrap(),
        Subject::parse(subject).unwrap(),
        AuthMethod::Jwt,
        Fingerprint::of(&Digest::ZERO),
    )
}
