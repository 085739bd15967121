//! Rate limits per caller, per tool of a caller and per server, and limits on concurrent calls per caller and per server.
//! All or nothing: a refused call changes no counter. Counters live in this process; a reload builds a new `Limits` and
//! starts from zero.

mod counter_table;
mod rate;

use crate::config::{LimitsConfig, Rate, ServerConfig};
use crate::domain::{Principal, Reason, Refusal, ServerName, Sha256, ToolName};
use counter_table::{CounterTable, Counters, TableFull, ToolKey};
use governor::clock::{Clock, MonotonicClock, Reference};
use governor::nanos::Nanos;
use rate::{Limit, Tat};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The key of a caller's counters: a hash of the proved issuer and subject, never of anything the client merely claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PrincipalKey([u8; 16]);

impl PrincipalKey {
    pub fn of(principal: &Principal) -> Self {
        let (issuer, subject) = (principal.issuer.as_str().as_bytes(), principal.subject.as_str().as_bytes());
        let length = (issuer.len() as u64).to_be_bytes();
        let digest = Sha256::new().update(&length).update(issuer).update(subject).finish();
        let mut key = [0; 16];
        key.copy_from_slice(&digest.as_bytes()[..16]);
        Self(key)
    }
}

/// All unusable limits in the configuration, reported together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct BadLimits(pub Vec<String>);

/// The limits of this instance, with the counters of every caller, tool and server.
pub struct Limits<C: Clock = MonotonicClock> {
    clock: C,
    /// Taken after the limiters below started, so a counter that is idle by this clock is idle by theirs.
    start: C::Instant,
    counter_table: Arc<CounterTable>,
    hasher: RandomState,
    per_principal: Option<Limit<C>>,
    per_tool: Option<Limit<C>>,
    servers: HashMap<ServerName, ServerLimits<C>>,
    /// Stands in for the server of messages that Guardian answers itself.
    no_server: ServerLimits<C>,
    max_concurrency_per_principal: usize,
    /// When a call last swept the full table: nanoseconds since `start`, plus one; 0: never.
    swept: AtomicU64,
}

/// The limits and counters of one server.
struct ServerLimits<C: Clock> {
    limit: Option<Limit<C>>,
    tools: HashMap<ToolName, Limit<C>>,
    max_concurrency: usize,
    counters: Arc<Mutex<Counters>>,
}

/// The concurrency slots of one admitted call; dropping it frees them.
#[must_use = "dropping it frees the slots of the call"]
pub struct Admission {
    counter_table: Arc<CounterTable>,
    server: Arc<Mutex<Counters>>,
    who: PrincipalKey,
    tool: Option<ToolKey>,
    /// What the call took from each rate counter, in nanoseconds.
    consumed: Consumed,
}

#[derive(Debug, Clone, Copy, Default)]
struct Consumed {
    principal: u64,
    tool: u64,
    server: u64,
}

/// Calls sweep a full table at most this often; in between, new keys are refused at once.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

impl Limits {
    /// Builds the limits on the monotonic clock.
    pub fn new(config: &LimitsConfig, servers: &[ServerConfig]) -> Result<Self, BadLimits> {
        Self::with_clock(config, servers, MonotonicClock)
    }
}

impl<C: Clock + Clone> Limits<C> {
    /// The same, on a clock that tests can hold still.
    pub fn with_clock(config: &LimitsConfig, servers: &[ServerConfig], clock: C) -> Result<Self, BadLimits> {
        let mut builder = LimitBuilder {
            clock: &clock,
            problems: Vec::new(),
        };
        let per_principal = config
            .per_principal
            .and_then(|rate| builder.limit(rate, "per_principal", "each caller"));
        let per_tool = config
            .per_tool
            .and_then(|rate| builder.limit(rate, "per_tool", "each caller of a tool"));
        let mut table = builder.servers(config, servers);
        let unknown_keys = builder.add_tools(config, &mut table);
        let mut problems = builder.problems;
        problems.extend(unknown_keys);
        if !problems.is_empty() {
            problems.dedup();
            return Err(BadLimits(problems));
        }
        Ok(Self {
            start: clock.now(),
            clock,
            counter_table: Arc::new(CounterTable::new(config.max_keys)),
            hasher: RandomState::new(),
            per_principal,
            per_tool,
            servers: table,
            no_server: ServerLimits {
                limit: None,
                tools: HashMap::new(),
                max_concurrency: usize::MAX,
                counters: Arc::default(),
            },
            max_concurrency_per_principal: config.max_concurrency_per_principal,
            swept: AtomicU64::new(0),
        })
    }
}

/// Builds limits and collects what is wrong with them.
struct LimitBuilder<'a, C> {
    clock: &'a C,
    problems: Vec<String>,
}

impl<C: Clock + Clone> LimitBuilder<'_, C> {
    fn limit(&mut self, rate: Rate, name: &str, whose: &str) -> Option<Limit<C>> {
        let limit = Limit::new(rate, whose, self.clock);
        limit
            .map_err(|problem| self.problems.push(format!("`limits.{name}`: {problem}")))
            .ok()
    }

    fn servers(&mut self, config: &LimitsConfig, servers: &[ServerConfig]) -> HashMap<ServerName, ServerLimits<C>> {
        let mut table = HashMap::new();
        for server in servers {
            let (rate, name) = match config.servers.get(&server.name) {
                Some(own) => (Some(*own), format!("servers.{}", server.name)),
                None => (config.per_server, "per_server".to_owned()),
            };
            let own = ServerLimits {
                limit: rate.and_then(|rate| self.limit(rate, &name, &format!("server `{}`", server.name))),
                tools: HashMap::new(),
                max_concurrency: server.max_concurrency,
                counters: Arc::default(),
            };
            table.insert(server.name.clone(), own);
        }
        table
    }

    /// Adds the limits of single tools. Returns what is said of keys that name nothing configured.
    fn add_tools(&mut self, config: &LimitsConfig, table: &mut HashMap<ServerName, ServerLimits<C>>) -> Vec<String> {
        let mut unknown_keys = Vec::new();
        for (name, rate) in &config.tools {
            let parsed = name
                .split_once('/')
                .and_then(|(server, tool)| Some((table.get_mut(server)?, ToolName::parse(tool).ok()?)));
            match parsed {
                Some((server, tool)) => {
                    let whose = format!("each caller of `{name}`");
                    if let Some(limit) = self.limit(*rate, &format!("tools.\"{name}\""), &whose) {
                        server.tools.insert(tool, limit);
                    }
                }
                None => unknown_keys.push(format!(
                    "`limits.tools.\"{name}\"`: not `<server>/<tool>` of a configured server"
                )),
            }
        }
        for name in config.servers.keys().filter(|name| !table.contains_key(*name)) {
            unknown_keys.push(format!("`limits.servers.{name}`: no server of this name is configured"));
        }
        unknown_keys
    }
}

impl<C: Clock> Limits<C> {
    /// Takes one call from every counter that applies, or from none. `tool` is in the catalogue, or `None` if the message
    /// calls no tool.
    pub fn admit(&self, who: PrincipalKey, server: &ServerName, tool: Option<&ToolName>) -> Result<Admission, Box<Refusal>> {
        let Some(server_limits) = self.servers.get(server) else {
            return Err(Box::new(Reason::UnknownServer.into()));
        };
        let tool = tool.and_then(|tool| {
            let limit = server_limits.tools.get(tool.as_str()).or(self.per_tool.as_ref())?;
            let key = ToolKey {
                who,
                tool: self.hasher.hash_one((server, tool)),
            };
            Some((key, limit))
        });
        self.counted(who, server_limits, tool)
    }

    /// The same for a message that Guardian answers itself: only the caller's own counters apply.
    pub fn admit_caller(&self, who: PrincipalKey) -> Result<Admission, Box<Refusal>> {
        self.counted(who, &self.no_server, None)
    }

    /// Removes every counter that equals a new one. A timer calls this.
    pub fn sweep(&self) {
        self.counter_table.sweep(self.elapsed());
    }

    /// How many counters of callers and their tools are held; never more than `max_keys`.
    pub fn keys(&self) -> usize {
        self.counter_table.len()
    }

    /// Tries to admit the call, and once more if the table was full and could be swept.
    fn counted(
        &self,
        who: PrincipalKey,
        server_limits: &ServerLimits<C>,
        tool: Option<(ToolKey, &Limit<C>)>,
    ) -> Result<Admission, Box<Refusal>> {
        self.attempt(who, server_limits, tool).or_else(|not| match not {
            NotAdmitted::Refused(refusal) => Err(refusal),
            NotAdmitted::Full if self.sweep_when_due() => {
                self.attempt(who, server_limits, tool).map_err(NotAdmitted::into_refusal)
            }
            NotAdmitted::Full => Err(NotAdmitted::Full.into_refusal()),
        })
    }

    /// Makes every check before any counter changes. It holds the locks of all counters, taken in this order everywhere.
    fn attempt(
        &self,
        who: PrincipalKey,
        server_limits: &ServerLimits<C>,
        tool: Option<(ToolKey, &Limit<C>)>,
    ) -> Result<Admission, NotAdmitted> {
        let mut shard = self.counter_table.shard(who);
        let mut server = lock(&server_limits.counters);
        let principal = shard.principal(who);
        if principal.in_flight >= self.max_concurrency_per_principal {
            return Err(over_concurrency("this caller", self.max_concurrency_per_principal));
        }
        if server.in_flight >= server_limits.max_concurrency {
            return Err(over_concurrency("this server", server_limits.max_concurrency));
        }

        let mut limit_check = LimitCheck::default();
        let principal_tat = limit_check.take(self.per_principal.as_ref(), principal.tat);
        let tool_tat = match tool {
            Some((key, limit)) => limit_check.take(Some(limit), shard.tool(key)),
            None => Tat::NEW,
        };
        let server_tat = limit_check.take(server_limits.limit.as_ref(), server.tat);
        limit_check.finish()?;

        let counters = Counters {
            tat: principal_tat,
            in_flight: principal.in_flight + 1,
        };
        shard.put(who, counters, tool.map(|(key, _)| (key, tool_tat)))?;
        server.tat = server_tat;
        server.in_flight += 1;
        Ok(Admission {
            counter_table: self.counter_table.clone(),
            server: server_limits.counters.clone(),
            who,
            tool: tool.map(|(key, _)| key),
            consumed: Consumed {
                principal: self.per_principal.as_ref().map_or(0, Limit::interval),
                tool: tool.map_or(0, |(_, limit)| limit.interval()),
                server: server_limits.limit.as_ref().map_or(0, Limit::interval),
            },
        })
    }

    /// Sweeps the full table, unless that was done within `SWEEP_PAUSE`: a flood of new callers must not make every call
    /// walk it. True if it swept.
    fn sweep_when_due(&self) -> bool {
        let now = self.elapsed().as_u64() + 1;
        let last = self.swept.load(Ordering::Relaxed);
        let due = last == 0 || now.saturating_sub(last) >= SWEEP_PAUSE.as_nanos() as u64;
        let mine = due
            && self
                .swept
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if mine {
            self.sweep();
        }
        mine
    }

    fn elapsed(&self) -> Nanos {
        self.clock.now().duration_since(self.start)
    }
}

impl Admission {
    /// Returns what an admitted call took, if the journal refused it and it was never sent. One interval less in the
    /// theoretical arrival time undoes one call, exactly unless the counter has become idle since.
    pub fn refund(self) {
        let mut shard = self.counter_table.shard(self.who);
        shard.refund(
            self.who,
            self.consumed.principal,
            self.tool.map(|key| (key, self.consumed.tool)),
        );
        let mut server = lock(&self.server);
        server.tat = server.tat.minus(self.consumed.server);
        // `Drop` takes the locks again.
        drop(server);
        drop(shard);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.counter_table.shard(self.who).release(self.who);
        let mut server = lock(&self.server);
        server.in_flight = server.in_flight.saturating_sub(1);
    }
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").field("who", &self.who).finish_non_exhaustive()
    }
}

enum NotAdmitted {
    Refused(Box<Refusal>),
    /// The table has no room for a new counter.
    Full,
}

impl NotAdmitted {
    fn into_refusal(self) -> Box<Refusal> {
        match self {
            NotAdmitted::Refused(refusal) => refusal,
            NotAdmitted::Full => Box::new(Refusal {
                retry_after: Some(SWEEP_PAUSE),
                ..Refusal::with_detail(Reason::RateLimited, "too many callers are active; no room to count another")
            }),
        }
    }
}

impl From<TableFull> for NotAdmitted {
    fn from(_: TableFull) -> Self {
        NotAdmitted::Full
    }
}

/// The verdicts of all limits: none is skipped, so that the wait told to the client is long enough for every one.
#[derive(Default)]
struct LimitCheck {
    wait: Option<Duration>,
    by: Vec<String>,
}

impl LimitCheck {
    /// The counter's state after this call; unchanged if there is no limit or the limit refuses.
    fn take<C: Clock>(&mut self, limit: Option<&Limit<C>>, tat: Tat) -> Tat {
        let Some(limit) = limit else { return tat };
        match limit.take(tat) {
            Ok(next) => next,
            Err(wait) => {
                self.wait = self.wait.max(Some(wait));
                self.by.push(limit.to_string());
                tat
            }
        }
    }

    fn finish(self) -> Result<(), NotAdmitted> {
        let Some(wait) = self.wait else { return Ok(()) };
        Err(NotAdmitted::Refused(Box::new(Refusal {
            retry_after: Some(wait),
            ..Refusal::with_detail(Reason::RateLimited, self.by.join(" and "))
        })))
    }
}

fn over_concurrency(of: &str, most: usize) -> NotAdmitted {
    NotAdmitted::Refused(Box::new(Refusal {
        retry_after: Some(Duration::from_secs(1)),
        ..Refusal::with_detail(Reason::TooManyInFlight, format!("{most} calls of {of} are running"))
    }))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
