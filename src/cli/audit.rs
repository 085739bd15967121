//! `guardian audit`: who did what, when, what was decided and why, and how it ended. It reads the audit trail in the store,
//! not the journal: records that are not shipped yet are missing.

use super::context::{AdminContext, ConfigFile, Login, moment_past, open_store};
use super::failure::{Failure, with_causes};
use super::output::{Format, clean, comma, exactly, json, json_line, line, note, or_dash, progress, table};
use crate::config::HumanDuration;
use crate::domain::{
    DecisionKind, Digest, EnvironmentName, Executed, Incarnation, InputsKept, Reason, RequestId, ServerName, Timestamp,
    did_you_mean, nearest,
};
use crate::journal::InputSecrets;
use crate::store::{AuditFilter, AuditKind, AuditOutcome, AuditRow};
use std::collections::HashSet;
use std::time::Duration;
use uuid::Uuid;

/// Each query of `tail` begins this long before the newest record shown, because instances ship their records at different
/// times and some arrive late.
const LATE: Duration = Duration::from_secs(120);
/// The most rows of one query.
const MOST: u32 = 10_000;

/// Ask the audit trail.
#[derive(Debug, clap::Subcommand)]
pub enum AuditCommand {
    /// Find decisions, newest first.
    #[command(
        after_help = "Examples:\n  guardian audit query --user alice@example.com --since 24h\n  guardian audit query --decision deny --json | jq -r .reason | sort | uniq -c"
    )]
    Query {
        #[command(flatten)]
        which: AuditSelector,
        /// Not before: a length of time ago (`24h`), or a moment (RFC 3339).
        #[arg(long, value_parser = moment_past, value_name = "WHEN")]
        since: Option<Timestamp>,
        /// Before: a length of time ago, or a moment.
        #[arg(long, value_parser = moment_past, value_name = "WHEN")]
        until: Option<Timestamp>,
        /// At most so many.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST)))]
        limit: u32,
        /// Oldest first.
        #[arg(long)]
        ascending: bool,
        /// Print one JSON object a line, for machines.
        #[arg(long)]
        json: bool,
    },
    /// Show decisions as they arrive, until Ctrl-C.
    ///
    /// The store is asked again and again, which keeps a database awake that would otherwise sleep.
    #[command(after_help = "Example:\n  guardian audit tail --decision deny")]
    Tail {
        #[command(flatten)]
        which: AuditSelector,
        /// How often to look.
        #[arg(long, default_value = "1s", value_parser = span, value_name = "TIME")]
        every: Duration,
        /// Print one JSON object a line, for machines.
        #[arg(long)]
        json: bool,
    },
    /// Show everything about one request, by the id that answers and log lines name.
    #[command(after_help = "Example:\n  guardian audit show 01931f0e-5f0a-7c3e-9d5b-1f6a2b3c4d5e")]
    Show {
        /// The id of the request.
        request: Uuid,
        /// Open sealed arguments with the secrets of `audit.key_file`, which has to be on this machine.
        #[arg(long)]
        open: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Print a policy set, a catalogue, a policy file or the definition of a tool as it was, by the hash that records name.
    ///
    /// A policy set and a catalogue name the hashes of what they are made of.
    #[command(
        after_help = "Example:\n  guardian audit document 30343a56987a9e7c99ad8cda4490b479d0285912fbef06f47f3e2e7cf7a41830"
    )]
    Document {
        /// The hash: `policy_set` or `catalogue` of a record, or one that such a document names.
        #[arg(value_parser = hash, value_name = "HASH")]
        digest: Digest,
    },
}

#[derive(Debug, clap::Args)]
pub struct AuditSelector {
    /// By id, e-mail or subject.
    #[arg(long)]
    user: Option<String>,
    /// Calls of this server.
    #[arg(long)]
    server: Option<ServerName>,
    /// Calls of this tool.
    #[arg(long)]
    tool: Option<String>,
    /// Messages about this resource or prompt.
    #[arg(long, value_name = "URI|PROMPT")]
    target: Option<String>,
    /// Messages of this method, such as `resources/read`.
    #[arg(long)]
    method: Option<String>,
    /// What was decided.
    #[arg(long, value_enum)]
    decision: Option<DecisionFilter>,
    /// A reason code such as `missing_scope`.
    #[arg(long, value_parser = reason, value_name = "CODE")]
    reason: Option<String>,
    /// What kind of record.
    #[arg(long, value_enum, default_value = "decision")]
    kind: RecordKind,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum DecisionFilter {
    Allow,
    Deny,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum RecordKind {
    /// With how each ended.
    Decision,
    /// A policy set or catalogue came into force, or was rejected.
    Policy,
    /// What was changed, by whom; `unhashed` where another program than Guardian made the change.
    Admin,
    /// Refusals that were counted, by caller or network.
    Suppressed,
    /// The trail held a row that no instance wrote under the number of a record.
    Conflict,
    /// An instance started.
    Start,
    /// An instance started although its journal and the audit trail did not agree.
    Gap,
    /// An instance stopped.
    Stop,
    /// All of these.
    Any,
}

impl AuditCommand {
    pub async fn run(&self, file: &ConfigFile) -> Result<(), Failure> {
        let admin = AdminContext::open(file).await?;
        let env = &admin.config.environment;
        match self {
            AuditCommand::Query {
                which,
                since,
                until,
                limit,
                ascending,
                json,
            } => {
                let filter = AuditFilter {
                    since: *since,
                    until: *until,
                    limit: *limit,
                    ascending: *ascending,
                    ..which.filter(env)
                };
                let bar = progress("asking the audit trail");
                let rows = admin.store.audit(&filter).await?;
                drop(bar);
                print(&rows, *json, rows.len() >= *limit as usize)
            }
            AuditCommand::Tail { which, every, json } => tail(&admin, which, *every, *json).await,
            AuditCommand::Show { request, open, format } => show(&admin, RequestId(*request), *open, *format).await,
            AuditCommand::Document { digest } => document(&admin, digest).await,
        }
    }
}

impl AuditSelector {
    fn filter(&self, env: &EnvironmentName) -> AuditFilter {
        AuditFilter {
            kind: match self.kind {
                RecordKind::Decision => AuditKind::Decision,
                RecordKind::Policy => AuditKind::Policy,
                RecordKind::Admin => AuditKind::Admin,
                RecordKind::Suppressed => AuditKind::Suppressed,
                RecordKind::Conflict => AuditKind::Conflict,
                RecordKind::Start => AuditKind::Start,
                RecordKind::Gap => AuditKind::Gap,
                RecordKind::Stop => AuditKind::Stop,
                RecordKind::Any => AuditKind::Any,
            },
            user: self.user.clone(),
            server: self.server.as_ref().map(ToString::to_string),
            tool: self.tool.clone(),
            target: self.target.clone(),
            method: self.method.clone(),
            decision: self.decision.map(|verdict| match verdict {
                DecisionFilter::Allow => DecisionKind::Allow,
                DecisionFilter::Deny => DecisionKind::Deny,
            }),
            reason: self.reason.clone(),
            limit: MOST,
            ascending: true,
            ..AuditFilter::new(env.clone())
        }
    }
}

fn print(rows: &[AuditRow], as_json: bool, more: bool) -> Result<(), Failure> {
    if as_json {
        return rows.iter().try_for_each(json_line);
    }
    if rows.is_empty() {
        return note("nothing of the kind is in the audit trail");
    }
    line(as_table(rows.iter()))?;
    if more {
        note("there may be more: raise `--limit`, or narrow with `--since`")?;
    }
    Ok(())
}

async fn tail(admin: &AdminContext, which: &AuditSelector, every: Duration, as_json: bool) -> Result<(), Failure> {
    let mut shown: HashSet<(Incarnation, u64)> = HashSet::new();
    let newest = AuditFilter {
        limit: 10,
        ascending: false,
        ..which.filter(&admin.config.environment)
    };
    let mut rows = admin.store.audit(&newest).await?;
    rows.reverse();
    let mut from = rows.last().map_or_else(super::context::now, |row| row.at);
    // later queries do not go back beyond the ten rows shown first: older rows would look as if they were new
    let began = rows.first().map_or(from, |row| row.at);
    loop {
        rows.retain(|row| shown.insert((row.incarnation, row.seq)));
        for row in &rows {
            if as_json {
                json_line(row)?;
            } else {
                line(row_line(row))?;
            }
            from = from.max(row.at);
        }
        tokio::time::sleep(every).await;
        let since = AuditFilter {
            since: Some(from.minus(LATE).max(began)),
            ..which.filter(&admin.config.environment)
        };
        rows = match admin.store.audit(&since).await {
            Ok(rows) => rows,
            Err(error) if error.is_transient() => {
                note(format_args!("{error}; trying again"))?;
                Vec::new()
            }
            Err(error) => return Err(error.into()),
        };
    }
}

async fn document(admin: &AdminContext, digest: &Digest) -> Result<(), Failure> {
    let env = &admin.config.environment;
    let kind = admin.store.document_kinds(env, digest).await?.first().copied();
    let document = match kind {
        Some(kind) => admin.store.document(env, kind, digest).await?,
        None => None,
    };
    match document {
        Some(document) => exactly(&document.text),
        None => Err(Failure::failed(format_args!(
            "the audit trail has no document `{digest}` in the environment `{env}`; one that came into force in the last few \
             seconds may still be on its way"
        ))),
    }
}

/// The arguments of a record that holds them sealed, opened. Needs what the proxy has: its file of secrets and its login.
async fn opened(admin: &AdminContext, row: &AuditRow) -> Result<Option<String>, Failure> {
    let (Some(InputsKept::Sealed), Some(sealed), Some(request)) = (row.inputs, &row.args, row.request) else {
        return Ok(row.args.clone());
    };
    let file = crate::app::required_path(&admin.config.audit.key_file);
    let secrets = InputSecrets::load(file).map_err(|error| Failure::failed(with_causes(&error)))?;
    let (Some(user), Some(version)) = (&row.user, row.inputs_key) else {
        return Err(Failure::failed("the record does not say whose key sealed its arguments"));
    };
    let proxy = open_store(&admin.config.store, Login::Proxy).await?;
    let salt = proxy.input_salt(&admin.config.environment, user).await?;
    let salt = salt.ok_or_else(|| {
        Failure::failed(format_args!(
            "the arguments cannot be opened by anybody: what the key of user `{user}` was made of is erased"
        ))
    })?;
    let keys = secrets
        .keys(version, &salt)
        .ok_or_else(|| Failure::failed(format_args!("`{}` has no key of version {version}", file.display())))?;
    let opened = keys.open(request, sealed).and_then(|bytes| String::from_utf8(bytes).ok());
    opened.map(Some).ok_or_else(|| {
        Failure::failed(format_args!(
            "the key of version {version} in `{}` is not the one that sealed the arguments",
            file.display()
        ))
    })
}

async fn show(admin: &AdminContext, request: RequestId, open: bool, format: Format) -> Result<(), Failure> {
    let filter = AuditFilter {
        request: Some(request),
        limit: 10,
        ascending: true,
        ..AuditFilter::new(admin.config.environment.clone())
    };
    let mut rows = admin.store.audit(&filter).await?;
    if open {
        for row in &mut rows {
            row.args = opened(admin, row).await?;
        }
    }
    if rows.is_empty() {
        return Err(Failure::failed(format_args!(
            "the audit trail has no request `{request}` in the environment `{}`; the last few seconds may still be on their way",
            admin.config.environment
        )));
    }
    if format.json {
        return rows.iter().try_for_each(json);
    }
    rows.iter().try_for_each(|row| {
        let value = serde_json::to_value(row).map_err(Failure::failed)?;
        let mut lines = Vec::new();
        flatten_fields("", &value, &mut lines);
        let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        lines
            .iter()
            .try_for_each(|(name, text)| line(format_args!("{name:<width$}  {}", clean(text))))
    })
}

/// Flattens the members that have a value; the name of a nested one is its path, such as `outcome.status`.
fn flatten_fields(prefix: &str, value: &serde_json::Value, lines: &mut Vec<(String, String)>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let name = format!("{prefix}{name}");
        match value {
            serde_json::Value::Null => {}
            serde_json::Value::Object(_) => flatten_fields(&format!("{name}."), value, lines),
            serde_json::Value::Array(items) if items.is_empty() => {}
            serde_json::Value::Array(items) => {
                let texts = items
                    .iter()
                    .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned));
                lines.push((name, comma(texts)));
            }
            serde_json::Value::String(text) => lines.push((name, text.clone())),
            other => lines.push((name, other.to_string())),
        }
    }
}

/// Rows as a table, in the order given.
pub fn as_table<'a>(rows: impl Iterator<Item = &'a AuditRow>) -> String {
    table(&HEADS, rows.map(audit_row))
}

const HEADS: [&str; 8] = ["time", "decision", "reason", "user", "server", "what", "ended", "request"];

fn audit_row(row: &AuditRow) -> Vec<String> {
    let who = row.email.clone().or_else(|| row.subject.as_ref().map(ToString::to_string));
    let what = row.tool.as_ref().or(row.target.as_ref()).or(row.method.as_ref());
    let what = what.or(row.detail.as_ref().filter(|_| row.kind == "admin"));
    let kind = if row.unhashed { UNHASHED } else { &row.kind };
    vec![
        millis(row.at),
        row.decision
            .map_or_else(|| kind.to_owned(), |decision| decision.as_str().to_owned()),
        or_dash(row.reason.as_ref()),
        or_dash(who),
        or_dash(row.server.as_ref()),
        or_dash(what),
        row.outcome.as_ref().map_or_else(
            || or_dash(row.actor.as_ref().map(|actor| by(actor, row.claimed_by.as_deref()))),
            ended,
        ),
        or_dash(row.request.as_ref()),
    ]
}

/// A change that no record covers: another program than Guardian made it.
const UNHASHED: &str = "unhashed";

/// Who made a change, and who they say they are.
fn by(actor: &str, claimed: Option<&str>) -> String {
    match claimed {
        Some(claimed) => format!("by {actor}, claimed to be {claimed}"),
        None => format!("by {actor}"),
    }
}

/// How a call ended: who cut it, after how long, and whether its tool may have run if the kind does not say so.
fn ended(outcome: &AuditOutcome) -> String {
    let mut text = outcome.kind.as_str().replace('_', " ");
    if let Some(by) = outcome.by {
        text.push_str(&format!(" by {}", by.as_str().replace('_', " ")));
    }
    text.push_str(&format!(" {}ms", outcome.latency_us / 1_000));
    let is_told_by_kind = outcome.executed == outcome.kind.executed() && outcome.executed != Executed::Unknown;
    text.push_str(match outcome.executed {
        _ if is_told_by_kind => "",
        Executed::No => ", did not run",
        Executed::Yes => ", ran",
        Executed::Unknown => ", may have run",
    });
    text
}

/// The cells of a row on one line: `tail` cannot know the widths of later rows.
fn row_line(of: &AuditRow) -> String {
    let cells = audit_row(of);
    let cells: Vec<String> = cells.iter().map(|cell| clean(cell)).collect();
    cells.join("  ")
}

/// A time with exactly three decimals, so that the columns of `tail` line up.
fn millis(at: Timestamp) -> String {
    let text = Timestamp::from_secs(at.secs()).to_string();
    format!("{}.{:03}Z", text.trim_end_matches('Z'), at.millis().rem_euclid(1_000))
}

/// Accepts a reason code; an unknown one would find no record, so it is an error that names the nearest.
fn reason(text: &str) -> Result<String, String> {
    let codes = || Reason::ALL.iter().map(|reason| reason.code()).chain(["permitted"]);
    if codes().any(|code| code == text) {
        return Ok(text.to_owned());
    }
    let help = nearest(text, codes()).map_or_else(|| format!("there are {}", comma(codes())), did_you_mean);
    Err(format!("there is no such reason; {help}"))
}

fn hash(text: &str) -> Result<Digest, String> {
    Digest::parse_hex(text).ok_or_else(|| "a hash is 64 hexadecimal digits in lower case".to_owned())
}

fn span(text: &str) -> Result<Duration, String> {
    match HumanDuration::parse(text) {
        Some(span) if !span.0.is_zero() => Ok(span.0),
        _ => Err("write a length of time such as `500ms` or `5s`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_reason_is_told_and_not_searched_for() {
        assert_eq!(reason("missing_scope"), Ok("missing_scope".to_owned()));
        assert!(reason("mising_scope").unwrap_err().contains("did you mean `missing_scope`?"));
    }

    #[test]
    fn what_a_row_does_not_have_is_not_shown() {
        let row = serde_json::json!({
            "a": null, "b": [], "c": ["x", 1], "d": { "e": "f", "g": null }, "h": 2
        });
        let mut lines = Vec::new();
        flatten_fields("", &row, &mut lines);
        let shown: Vec<_> = lines.iter().map(|(name, text)| format!("{name}={text}")).collect();
        assert_eq!(shown, ["c=x,1", "d.e=f", "h=2"]);
    }

    #[test]
    fn times_are_of_one_width() {
        assert_eq!(millis(Timestamp::from_micros(1_500_007_000)), "1970-01-01T00:25:00.007Z");
        assert_eq!(millis(Timestamp::from_secs(1)), "1970-01-01T00:00:01.000Z");
    }
}
