//! The metrics of `/metrics`, in OpenMetrics text. Every label has a bounded set of values: reasons, methods, configured
//! servers, causes, the hash of the one policy set in force. No label holds a user, an argument or a tool.

use crate::domain::{Digest, Reason, ServerName};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

/// Buckets in seconds for a decision and for a journal append: 10 µs to 1 s.
const SHORT: [f64; 12] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.01, 0.05, 0.25, 1.0,
];
/// Buckets in seconds for an MCP request, as OpenTelemetry's MCP conventions advise.
const OPERATION: [f64; 14] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
/// Buckets in seconds for the lag of a revocation: 5 ms to 5 s.
const LAG: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// The label of every server that is not configured: callers choose such names, so a label each would grow without bound.
const UNKNOWN_SERVER: &str = "unknown";

/// Every metric of this process.
pub struct Metrics {
    registry: Registry,
    servers: BTreeSet<ServerName>,
    permitted: Counter,
    /// Indexed by `Reason as usize`.
    refused: Vec<Counter>,
    unauthenticated: Family<ReasonLabel, Counter>,
    introspections: Family<OutcomeLabel, Counter>,
    decision: Histogram,
    append: Histogram,
    unshipped: Gauge,
    unshipped_bytes: Gauge,
    conflicts: Counter,
    shipped_again: Counter,
    kept_bytes: Gauge,
    grants_age: Gauge<f64, AtomicU64>,
    members_left_out: Gauge,
    unreadable_rows: Family<TableLabel, Gauge>,
    revocation_lag: Histogram,
    policy_set: Family<HashLabel, Gauge>,
    reload_failures: Counter,
    operation: Family<OperationLabels, Histogram, fn() -> Histogram>,
    /// The histograms of `operation` by method and error type: a look-up here allocates no label strings.
    operations: RwLock<HashMap<(&'static str, &'static str), Operations>>,
    connections: Gauge,
    in_flight: Gauge,
    refused_connections: Family<CauseLabel, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    decision: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TableLabel {
    table: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HashLabel {
    hash: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    mcp_method_name: &'static str,
    server: String,
    error_type: &'static str,
}

/// Histograms by configured server; `None` is every other server.
type Operations = HashMap<Option<ServerName>, Histogram>;

/// Keeps a gauge raised by one until dropped.
#[derive(Debug)]
pub struct GaugeGuard(Gauge);

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// `servers` are the configured servers; no other name becomes a label.
    pub fn new(servers: impl IntoIterator<Item = ServerName>) -> Self {
        let decisions = Family::<DecisionLabels, Counter>::default();
        let counter = |decision, reason| decisions.get_or_create_owned(&DecisionLabels { decision, reason });
        let mut metrics = Self {
            registry: Registry::default(),
            servers: servers.into_iter().collect(),
            permitted: counter("allow", "permitted"),
            refused: Reason::ALL.iter().map(|reason| counter("deny", reason.code())).collect(),
            unauthenticated: Family::default(),
            introspections: Family::default(),
            decision: Histogram::new(SHORT),
            append: Histogram::new(SHORT),
            unshipped: Gauge::default(),
            unshipped_bytes: Gauge::default(),
            conflicts: Counter::default(),
            shipped_again: Counter::default(),
            kept_bytes: Gauge::default(),
            grants_age: Gauge::default(),
            members_left_out: Gauge::default(),
            unreadable_rows: Family::default(),
            revocation_lag: Histogram::new(LAG),
            policy_set: Family::default(),
            reload_failures: Counter::default(),
            operation: Family::new_with_constructor(|| Histogram::new(OPERATION)),
            operations: RwLock::default(),
            connections: Gauge::default(),
            in_flight: Gauge::default(),
            refused_connections: Family::default(),
        };
        metrics.register(decisions);
        metrics
    }

    /// Registers all metrics; the encoder appends `_total` to the names of counters.
    fn register(&mut self, decisions: Family<DecisionLabels, Counter>) {
        let r = &mut self.registry;
        r.register("guardian_decisions", "Messages judged, by verdict and reason", decisions);
        r.register("guardian_decision_seconds", "From facts to verdict", self.decision.clone());
        r.register(
            "guardian_audit_append_seconds",
            "Until a record is durable",
            self.append.clone(),
        );
        r.register(
            "guardian_audit_unshipped",
            "Records not yet in the audit trail",
            self.unshipped.clone(),
        );
        r.register(
            "guardian_audit_unshipped_bytes",
            "Bytes of the records not yet in the audit trail",
            self.unshipped_bytes.clone(),
        );
        r.register(
            "guardian_audit_conflicts",
            "Records under whose number the audit trail holds another row",
            self.conflicts.clone(),
        );
        r.register(
            "guardian_audit_shipped_again",
            "Records that the database had taken and lost",
            self.shipped_again.clone(),
        );
        r.register(
            "guardian_audit_kept_bytes",
            "Bytes of records kept after the database took them",
            self.kept_bytes.clone(),
        );
        r.register(
            "guardian_grants_age_seconds",
            "Age of the knowledge of grants",
            self.grants_age.clone(),
        );
        r.register(
            "guardian_members_left_out",
            "Users who are refused because grants.max_members is reached",
            self.members_left_out.clone(),
        );
        r.register(
            "guardian_unreadable_rows",
            "Rows of the store that are disabled because they cannot be read",
            self.unreadable_rows.clone(),
        );
        r.register(
            "guardian_revocation_lag_seconds",
            "From a change's commit until it binds here",
            self.revocation_lag.clone(),
        );
        r.register("guardian_policy_set", "The policy set in force", self.policy_set.clone());
        r.register(
            "guardian_policy_reload_failures",
            "Policy sets rejected while an older one stayed",
            self.reload_failures.clone(),
        );
        r.register(
            "mcp_server_operation_duration_seconds",
            "MCP requests, from head to end of answer",
            self.operation.clone(),
        );
        r.register("guardian_connections", "Open client connections", self.connections.clone());
        r.register("guardian_requests_in_flight", "Requests being served", self.in_flight.clone());
        r.register(
            "guardian_refused_connections",
            "Connections refused, by cause",
            self.refused_connections.clone(),
        );
        r.register(
            "guardian_unauthenticated",
            "Requests without a valid credential, by reason",
            self.unauthenticated.clone(),
        );
        r.register(
            "guardian_introspections",
            "Questions to issuers about opaque tokens, by outcome",
            self.introspections.clone(),
        );
    }

    /// A message was permitted; `took` is the time from facts to verdict.
    pub fn permitted(&self, took: Duration) {
        self.permitted.inc();
        self.decision.observe(took.as_secs_f64());
    }

    /// A message was refused; `took` is the time from facts to verdict.
    pub fn refused(&self, reason: Reason, took: Duration) {
        self.refused[reason as usize].inc();
        self.decision.observe(took.as_secs_f64());
    }

    /// A request had no valid credential.
    pub fn unauthenticated(&self, reason: Reason) {
        let label = ReasonLabel { reason: reason.code() };
        self.unauthenticated.get_or_create(&label).inc();
    }

    /// A question to an issuer about an opaque token ended like this.
    pub fn introspected(&self, outcome: &'static str) {
        self.introspections.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// A record is durable in the journal, `took` after it was queued.
    pub fn audit_appended(&self, took: Duration) {
        self.append.observe(took.as_secs_f64());
    }

    /// How many journal records the audit trail does not have yet, and their bytes on disk.
    pub fn audit_unshipped(&self, records: u64, bytes: u64) {
        self.unshipped.set(i64::try_from(records).unwrap_or(i64::MAX));
        self.unshipped_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// What comparing with the audit trail has found so far, and the bytes that are kept for it.
    pub fn audit_compared(&self, conflicts: u64, shipped_again: u64, kept_bytes: u64) {
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        self.conflicts.inner().store(conflicts, relaxed);
        self.shipped_again.inner().store(shipped_again, relaxed);
        self.kept_bytes.set(i64::try_from(kept_bytes).unwrap_or(i64::MAX));
    }

    /// How long ago the grants in memory were confirmed.
    pub fn grants_age(&self, age: Duration) {
        self.grants_age.set(age.as_secs_f64());
    }

    pub fn members_left_out(&self, users: u64) {
        self.members_left_out.set(i64::try_from(users).unwrap_or(i64::MAX));
    }

    /// How many rows of a table are disabled now.
    pub fn unreadable_rows(&self, table: &'static str, rows: u64) {
        let gauge = self.unreadable_rows.get_or_create_owned(&TableLabel { table });
        gauge.set(i64::try_from(rows).unwrap_or(i64::MAX));
    }

    /// A change of grants took effect here, `lag` after its commit.
    pub fn revocation_applied(&self, lag: Duration) {
        self.revocation_lag.observe(lag.as_secs_f64());
    }

    /// This policy set is in force from now on, in place of the one before.
    pub fn policy_set(&self, hash: &Digest) {
        self.policy_set.clear();
        let label = HashLabel { hash: hash.to_string() };
        self.policy_set.get_or_create(&label).set(1);
    }

    /// A policy set was rejected and the old one stayed in force.
    pub fn policy_reload_failed(&self) {
        self.reload_failures.inc();
    }

    /// Records the duration of an MCP request. `method` and `error_type` are literals of the code, so that labels stay
    /// bounded; an empty `error_type` is success.
    pub fn operation(&self, method: &'static str, server: Option<&ServerName>, error_type: &'static str, took: Duration) {
        let known = server.and_then(|server| self.servers.get(server));
        let place = (method, error_type);
        let found = read_lock(&self.operations)
            .get(&place)
            .and_then(|operations| operations.get(&known.cloned()).cloned());
        let histogram = found.unwrap_or_else(|| {
            let labels = OperationLabels {
                mcp_method_name: method,
                server: known.map_or(UNKNOWN_SERVER, ServerName::as_str).to_owned(),
                error_type,
            };
            let made = self.operation.get_or_create_owned(&labels);
            let mut operations = self.operations.write().unwrap_or_else(PoisonError::into_inner);
            operations.entry(place).or_default().insert(known.cloned(), made.clone());
            made
        });
        histogram.observe(took.as_secs_f64());
    }

    /// How many client connections are open now.
    pub fn connections(&self, open: usize) {
        self.connections.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    /// Counts the request as in flight until the value is dropped.
    pub fn request_started(&self) -> GaugeGuard {
        self.in_flight.inc();
        GaugeGuard(self.in_flight.clone())
    }

    /// Sets the counter of connections refused for this cause: `so_far` counts from the start of the process.
    pub fn connections_refused(&self, cause: &'static str, so_far: u64) {
        let counter = self.refused_connections.get_or_create(&CauseLabel { cause });
        counter.inner().store(so_far, std::sync::atomic::Ordering::Relaxed);
    }

    /// The answer of `/metrics`: `application/openmetrics-text; version=1.0.0; charset=utf-8`.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("writing to a string cannot fail");
        text
    }
}

fn read_lock<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        Metrics::new([ServerName::parse("demo").unwrap()])
    }

    #[test]
    fn what_happened_is_what_is_shown() {
        let metrics = metrics();
        let took = Duration::from_micros(30);
        metrics.permitted(took);
        metrics.refused(Reason::MissingScope, took);
        metrics.refused(Reason::MissingScope, took);
        metrics.unauthenticated(Reason::BadSignature);
        metrics.audit_unshipped(7, 700);
        metrics.connections_refused("per_address", 1);
        metrics.policy_reload_failed();
        metrics.grants_age(Duration::from_millis(1_500));
        metrics.members_left_out(3);
        metrics.unreadable_rows("grants", 2);
        let held = metrics.request_started();
        let text = metrics.encode();
        for line in [
            r#"guardian_decisions_total{decision="allow",reason="permitted"} 1"#,
            r#"guardian_decisions_total{decision="deny",reason="missing_scope"} 2"#,
            r#"guardian_decisions_total{decision="deny",reason="internal"} 0"#,
            "guardian_decision_seconds_count 3",
            r#"guardian_unauthenticated_total{reason="bad_signature"} 1"#,
            "guardian_audit_unshipped 7",
            "guardian_audit_unshipped_bytes 700",
            r#"guardian_refused_connections_total{cause="per_address"} 1"#,
            "guardian_policy_reload_failures_total 1",
            "guardian_grants_age_seconds 1.5",
            "guardian_members_left_out 3",
            r#"guardian_unreadable_rows{table="grants"} 2"#,
            "guardian_requests_in_flight 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        drop(held);
        assert!(metrics.encode().contains("guardian_requests_in_flight 0\n"));
    }

    #[test]
    fn only_one_policy_set_is_in_force() {
        let metrics = metrics();
        metrics.policy_set(&Digest::of(b"old"));
        metrics.policy_set(&Digest::of(b"new"));
        let text = metrics.encode();
        let shown: Vec<_> = text.lines().filter(|line| line.starts_with("guardian_policy_set{")).collect();
        assert_eq!(shown, [format!("guardian_policy_set{{hash=\"{}\"}} 1", Digest::of(b"new"))]);
    }

    #[test]
    fn a_server_that_is_not_configured_is_no_label() {
        let metrics = metrics();
        for n in 0..100 {
            let made_up = ServerName::parse(&format!("made-up-{n}")).unwrap();
            metrics.operation("tools/call", Some(&made_up), "unknown_server", Duration::ZERO);
        }
        metrics.operation("tools/call", ServerName::parse("demo").ok().as_ref(), "", Duration::ZERO);
        let text = metrics.encode();
        assert!(!text.contains("made-up"), "{text}");
        let counts = text
            .lines()
            .filter(|line| line.starts_with("mcp_server_operation_duration_seconds_count{"));
        assert_eq!(counts.count(), 2);
    }
}
