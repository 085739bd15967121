//! `guardian check`: everything that `serve` would refuse to start with, and what it would start with and not work, at once.

use super::catalogue::{self, PATIENCE};
use super::context::{self, ConfigFile, Login, display_path, now};
use super::failure::{self, Failure, with_causes};
use super::output::{self, Format, clean, line, note, progress};
use crate::app::policy_loader::{pinned_policies, settings};
use crate::config::{self, CheckedConfig, Config, IssuerConfig, ServerConfig, StoreKind};
use crate::decide::Snapshot;
use crate::domain::{Catalogue, Problem, Severity, SourceLocation};
use crate::identity::{Identity, Pepper, probe_introspection};
use crate::store::{Store, StoreError, UnreadableRow};
use crate::transport::{self, Client, ClientError, ClientSettings};
use crate::upstream::RejectedTool;
use crate::upstream::build_catalogue;
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, StatusCode, header};
use http_body_util::Full;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// Say everything that is wrong: configuration, certificates, policies, store, servers and issuers.
///
/// Nothing is changed. What `serve` would refuse ends with exit code 2, an unreachable store with 3, and what `serve` would
/// start with but not work with (a server that does not answer) with 4.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  guardian check --config /etc/guardian/guardian.toml\n  guardian check --schema > config/guardian.schema.json"
)]
pub struct CheckCommand {
    /// Print the JSON Schema of the configuration instead.
    #[arg(long)]
    schema: bool,
    /// Look at files only: ask neither store nor servers, and leave the policies, which are checked against both.
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum FindingSeverity {
    Warning,
    /// Does not work now; `serve` starts nevertheless.
    Trouble,
    StoreUnreachable,
    Refused,
}

/// What was looked at, and what was found there.
struct CheckItem {
    area: &'static str,
    at: String,
    found: Vec<Finding>,
}

struct Finding {
    severity: FindingSeverity,
    message: String,
    location: Option<SourceLocation>,
}

#[derive(Default)]
struct Findings(Vec<CheckItem>);

impl CheckCommand {
    pub async fn run(&self, file: &ConfigFile) -> Result<(), Failure> {
        if self.schema {
            return output::json(&config::schema());
        }
        let mut findings = Findings::default();
        findings.begin("configuration", display_path(&file.path));
        match file.read() {
            Err(problems) => findings.configuration(&problems),
            Ok(loaded) => {
                findings.configuration(&loaded.warnings);
                self.parts(&loaded.config, &mut findings).await;
            }
        }
        findings.print(self.format)
    }

    async fn parts(&self, config: &CheckedConfig, findings: &mut Findings) {
        let bar = progress("checking");
        findings.begin("logging", config.log.level.clone());
        findings.refuse(crate::telemetry::check_level(&config.log).err());
        let tls = &config.listen.tls;
        findings.begin("certificates", display_path(&tls.certificate_file));
        findings.refuse(transport::check_tls(tls, now()));
        findings.warn(transport::warnings(tls, now()));
        findings.begin("data folder", display_path(&config.data_dir));
        findings.refuse(unusable(&config.data_dir));
        if self.offline {
            return;
        }
        bar.now("asking the store");
        if let Some(catalogue) = store(config, findings).await {
            policies(config, &catalogue, findings);
        }
        bar.now(format_args!("calling {} servers", config.servers.len()));
        let fetched = join_all(config.servers.iter().map(catalogue::fetch)).await;
        for (server, fetched) in config.servers.iter().zip(fetched) {
            findings.begin("server", of_server(server));
            match fetched {
                Ok(offered) => findings.warn(offered.rejected.iter().map(|tool| left_out(server, tool))),
                Err(message) => findings.trouble([message]),
            }
        }
        findings.begin("credentials", format_args!("{} issuers", config.issuers.len()));
        findings.refuse(credentials(config).err());
        for issuer in config.issuers.iter().filter(|issuer| issuer.jwks_url.is_some()) {
            bar.now(format_args!("fetching the keys of {}", issuer.alias));
            findings.begin(
                "issuer",
                format!("{} at {}", issuer.alias, issuer.jwks_url.as_deref().unwrap_or_default()),
            );
            findings.trouble(publishes(issuer).await.err());
        }
        for issuer in &config.issuers {
            let (alias, Some(asked)) = (&issuer.alias, &issuer.introspection) else {
                continue;
            };
            bar.now(format_args!("asking {alias} about a token"));
            findings.begin("issuer", format!("{alias} at {}", asked.url));
            let why = probe_introspection(issuer).await.err();
            findings.trouble(why.map(|why| format!("issuer `{alias}` cannot be asked about tokens: {}", clean(&why))));
        }
    }
}

/// Arguments may be secret.
fn of_server(server: &ServerConfig) -> String {
    match &server.url {
        Some(url) => format!("{} at {}", server.name, clean(url)),
        None => format!(
            "{} by {}",
            server.name,
            clean(server.command.first().map_or("", String::as_str))
        ),
    }
}

fn left_out(server: &ServerConfig, tool: &RejectedTool) -> String {
    let (name, why) = (clean(&tool.name), clean(&tool.why));
    format!("server `{}`: its tool `{name}` cannot be offered: {why}", server.name)
}

/// What callers are proved by. Before the first key is made there is no pepper, and nothing is made here.
fn credentials(config: &CheckedConfig) -> Result<(), String> {
    let Some(file) = config.keys.pepper_file.as_deref().filter(|file| file.exists()) else {
        return Ok(());
    };
    let pepper = Pepper::load_or_create(file).map_err(|error| with_causes(&error))?;
    Identity::new(config, Arc::new(pepper))
        .map_err(|error| with_causes(&error))
        .map(drop)
}

/// A folder that exists can be listed; one that does not can be made in the one above it. Nothing is written to find out.
fn unusable(dir: &Path) -> Option<String> {
    match std::fs::metadata(dir) {
        Ok(meta) if meta.is_dir() => match std::fs::read_dir(dir) {
            Ok(_) => None,
            Err(error) => Some(format!("cannot use the data folder `{}`: {error}", display_path(dir))),
        },
        Ok(_) => Some(format!("`data_dir` is `{}`, which is not a folder", display_path(dir))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => Some(format!("cannot use the data folder `{}`: {error}", display_path(dir))),
    }
}

/// Whether the proxy could serve from it; what it knows of tools if so.
async fn store(config: &Config, findings: &mut Findings) -> Option<Catalogue> {
    findings.begin("store", "");
    if let (StoreKind::Sqlite, Some(file)) = (config.store.kind, config.store.file.as_deref())
        && !file.exists()
    {
        let file = display_path(file);
        findings.warn([format!(
            "the database `{file}` is not there yet: `serve` makes it, `guardian db migrate` does so now"
        )]);
        return None;
    }
    let store = match context::open_store(&config.store, Login::Proxy).await {
        Ok(store) => store,
        Err(error) => {
            findings.store(error);
            return None;
        }
    };
    findings.at(store.location());
    findings.warn(store.warnings().iter().cloned());
    match of_store(config, &store, findings).await {
        Ok(catalogue) => Some(catalogue),
        Err(error) => {
            findings.store(error);
            None
        }
    }
}

async fn of_store(config: &Config, store: &Store, findings: &mut Findings) -> Result<Catalogue, StoreError> {
    store.require_current().await?;
    let env = &config.environment;
    findings.refuse(store.self_check(env).await?);
    let (directory, stored) = (store.directory(env).await?, store.catalogue(env).await?);
    unreadable(&directory.unreadable, findings);
    let (enrolled, max) = (directory.members.len(), config.grants.max_members);
    if enrolled > max {
        findings.trouble([format_args!(
            "{enrolled} users are enrolled and `grants.max_members` is {max}: those above it are refused ({}); raise it",
            enrolled - max
        )]);
    }
    let unhashed = store.unhashed_changes(env).await?;
    if unhashed > 0 {
        findings.warn([format!(
            "{unhashed} changes of the store are unhashed: another program than guardian made them, or the record of an instance \
             is still on its way; `guardian audit query --kind admin` shows who and what"
        )]);
    }
    Ok(build_catalogue(&config.servers, &directory.registry, &stored))
}

/// Each permits nothing, and nobody else is the worse for it.
fn unreadable(rows: &[UnreadableRow], findings: &mut Findings) {
    const NAMED: usize = 100;
    findings.trouble(rows.iter().take(NAMED));
    if rows.len() > NAMED {
        findings.trouble([format_args!("{} further rows cannot be read", rows.len() - NAMED)]);
    }
}

fn policies(config: &Config, catalogue: &Catalogue, findings: &mut Findings) {
    findings.begin("policies", display_path(&config.policies.dir));
    match pinned_policies(&config.policies) {
        Err(error) => findings.refuse(format!("{error:#}").lines()),
        Ok(sources) => match Snapshot::compile(&sources, catalogue, &settings(config)) {
            Ok(snapshot) => findings.warn(snapshot.warnings().iter().map(Problem::unlabelled)),
            Err(problems) => findings.refuse(problems),
        },
    }
}

async fn publishes(issuer: &IssuerConfig) -> Result<(), String> {
    let Some(url) = &issuer.jwks_url else { return Ok(()) };
    let client = Client::new(&ClientSettings {
        ca_file: issuer.jwks_ca_file.clone(),
        connect_timeout: PATIENCE,
        allow_private: true,
        ..ClientSettings::default()
    });
    let alias = &issuer.alias;
    let status = ask(client, get(url, "application/json")?).await;
    match status.map_err(|why| format!("the keys of issuer `{alias}` cannot be fetched: {why}"))? {
        StatusCode::OK => Ok(()),
        status => Err(format!(
            "the keys of issuer `{alias}` cannot be fetched: `{}` answers HTTP {}",
            clean(url),
            status.as_u16()
        )),
    }
}

fn get(url: &str, accept: &'static str) -> Result<Request<Full<Bytes>>, String> {
    Request::get(url)
        .header(header::ACCEPT, accept)
        .body(Full::new(Bytes::new()))
        .map_err(|_| format!("`{}` is not a URL", clean(url)))
}

async fn ask(client: Result<Client, ClientError>, request: Request<Full<Bytes>>) -> Result<StatusCode, String> {
    let answered = async { client?.send(request).await };
    match tokio::time::timeout(PATIENCE, answered).await {
        Ok(Ok(response)) => Ok(response.status()),
        Ok(Err(error)) => Err(with_causes(&error)),
        Err(_) => Err(format!("nothing came within {PATIENCE:?}")),
    }
}

impl Findings {
    /// What is found from here on is found there.
    fn begin(&mut self, area: &'static str, at: impl ToString) {
        self.0.push(CheckItem {
            area,
            at: at.to_string(),
            found: Vec::new(),
        });
    }

    /// What is looked at, once it is known.
    fn at(&mut self, at: String) {
        if let Some(look) = self.0.last_mut() {
            look.at = at;
        }
    }

    fn configuration(&mut self, problems: &[Problem]) {
        for problem in problems {
            let weight = match problem.severity {
                Severity::Error => FindingSeverity::Refused,
                Severity::Warning => FindingSeverity::Warning,
            };
            self.add(weight, problem.unlabelled(), Some(problem.location.clone()));
        }
    }

    fn store(&mut self, error: StoreError) {
        let weight = if failure::is_unreachable(&error) {
            FindingSeverity::StoreUnreachable
        } else {
            FindingSeverity::Refused
        };
        self.add(weight, failure::advised(&error), None);
    }

    fn refuse(&mut self, messages: impl IntoIterator<Item = impl ToString>) {
        messages
            .into_iter()
            .for_each(|message| self.add(FindingSeverity::Refused, message.to_string(), None));
    }

    fn trouble(&mut self, messages: impl IntoIterator<Item = impl ToString>) {
        messages
            .into_iter()
            .for_each(|message| self.add(FindingSeverity::Trouble, message.to_string(), None));
    }

    fn warn(&mut self, messages: impl IntoIterator<Item = impl ToString>) {
        messages
            .into_iter()
            .for_each(|message| self.add(FindingSeverity::Warning, message.to_string(), None));
    }

    fn add(&mut self, weight: FindingSeverity, message: String, location: Option<SourceLocation>) {
        let look = self.0.last_mut().expect("something is looked at before anything is found");
        look.found.push(Finding {
            severity: weight,
            message,
            location,
        });
    }

    fn print(&self, format: Format) -> Result<(), Failure> {
        let weights = || self.0.iter().flat_map(|look| &look.found).map(|finding| finding.severity);
        let errors = weights().filter(|weight| *weight != FindingSeverity::Warning).count();
        if format.json {
            output::json(&json!({ "ok": errors == 0, "findings": self.to_json() }))?
        } else {
            self.lines(errors)?
        }
        match weights().max() {
            None | Some(FindingSeverity::Warning) => Ok(()),
            Some(FindingSeverity::Trouble) => Err(Failure::silent(failure::FINDING)),
            Some(FindingSeverity::StoreUnreachable) => Err(Failure::silent(failure::UNREACHABLE)),
            Some(FindingSeverity::Refused) => Err(Failure::silent(failure::USAGE)),
        }
    }

    fn lines(&self, errors: usize) -> Result<(), Failure> {
        for CheckItem { area, at, found } in &self.0 {
            if found.is_empty() {
                line(format_args!("ok       {area}: {at}"))?;
            }
            for finding in found {
                line(format_args!("{:<8} {area}: {}", finding.severity.word(), finding.message))?;
            }
        }
        match errors {
            0 => Ok(()),
            1 => note("1 problem"),
            _ => note(format_args!("{errors} problems")),
        }
    }

    fn to_json(&self) -> Vec<serde_json::Value> {
        let each = self
            .0
            .iter()
            .flat_map(|look| look.found.iter().map(move |finding| (look, finding)));
        each.map(|(look, finding)| {
            json!({ "area": look.area, "severity": finding.severity.word(), "message": finding.message, "place": finding.location })
        })
        .collect()
    }
}

impl FindingSeverity {
    const fn word(self) -> &'static str {
        match self {
            FindingSeverity::Warning => "warning",
            FindingSeverity::Trouble | FindingSeverity::StoreUnreachable | FindingSeverity::Refused => "error",
        }
    }
}
