//! `guardian policy`: checks the policies against the tools in the store, prints the Cedar schema for that, and pins the
//! policy files. A call is explained in `explain.rs`.

use super::context::{self, ConfigFile, Login, display_path};
use super::explain::ExplainCommand;
use super::failure::{self, Failure};
use super::output::{Format, clean, json, line, note};
use crate::app::manifest::Manifest;
use crate::app::policy_loader::{read_policies, settings};
use crate::config::Config;
use crate::decide::{PolicySettings, PolicySource, Snapshot, UnreadArgument};
use crate::domain::{Catalogue, Problem, ServerName, Severity, SourceLocation};
use crate::store::Store;
use crate::upstream::build_catalogue;
use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource, Report, SourceOffset};
use serde_json::json as value;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// Check policies before they judge anything.
#[derive(Debug, clap::Subcommand)]
pub enum PolicyCommand {
    /// Say everything that is wrong in the policies.
    ///
    /// They are checked strictly against the tools in the store: a misspelt tool or argument is an error here, not a policy
    /// that never applies. Text arguments that no policy looks at are listed; that is no error.
    #[command(after_help = "Example:\n  guardian policy check\n  guardian policy check drafts/ --json")]
    Check {
        /// A folder of `.cedar` files, or one such file; that of the configuration by default.
        path: Option<PathBuf>,
        #[command(flatten)]
        format: Format,
    },
    /// Print the schema that policies are checked against, made of the tools in the store.
    ///
    /// Prompts are not in the store: theirs are the arguments that the policies of the configuration name, each a text.
    #[command(after_help = "Example:\n  guardian policy schema > guardian.cedarschema")]
    Schema {},
    Explain(ExplainCommand),
    /// Approve the policies as they are: from then on no others are used.
    ///
    /// A manifest beside the policies has the digest of each file and how many forbids it has. A running Guardian, and the
    /// next start, refuse a set that is other than that: a file that was deleted, added, edited, or cut short.
    #[command(after_help = "Example:\n  guardian policy check && guardian policy pin")]
    Pin {
        #[command(flatten)]
        format: Format,
    },
}

impl PolicyCommand {
    pub async fn run(&self, file: &ConfigFile) -> Result<(), Failure> {
        match self {
            PolicyCommand::Check { path, format } => {
                let config = file.load()?;
                let catalogue = catalogue(&config).await?;
                let sources = sources(path.as_ref().unwrap_or(&config.policies.dir))?;
                report(
                    &Snapshot::compile(&sources, &catalogue, &settings(&config)),
                    &sources,
                    *format,
                )
            }
            PolicyCommand::Schema {} => {
                let config = file.load()?;
                let catalogue = catalogue(&config).await?;
                let settings = PolicySettings {
                    deny_all: true,
                    ..settings(&config)
                };
                // the policies name the arguments of prompts; if they do not compile, the schema is printed without those
                let sources = sources(&config.policies.dir).unwrap_or_default();
                let compiled = Snapshot::compile(&sources, &catalogue, &settings);
                match compiled.or_else(|_| Snapshot::compile(&[], &catalogue, &settings)) {
                    Ok(snapshot) => line(snapshot.cedar_schema().trim_end()),
                    Err(problems) => refuse(&problems, &[]),
                }
            }
            PolicyCommand::Explain(explain) => explain.run(file).await,
            PolicyCommand::Pin { format } => {
                let config = file.load()?;
                pin(&config, *format).await
            }
        }
    }
}

/// Writes the manifest, if the policies compile: with a manifest of broken policies no instance could start.
async fn pin(config: &Config, format: Format) -> Result<(), Failure> {
    let dir = &config.policies.dir;
    let sources = sources(dir)?;
    let catalogue = catalogue(config).await?;
    if let Err(problems) = Snapshot::compile(&sources, &catalogue, &settings(config)) {
        return refuse(&problems, &sources);
    }
    let before = Manifest::read(dir).ok().flatten().unwrap_or_default();
    let now = Manifest::of(&sources);
    let file = now.write(dir).map_err(|error| Failure::failed(format_args!("{error:#}")))?;
    let count = |manifest: &Manifest| manifest.0.values().filter_map(|pinned| pinned.forbids).sum::<usize>();
    let (was, is) = (count(&before), count(&now));
    if is < was {
        note(format_args!(
            "there are fewer forbids than were pinned before: {is} instead of {was}"
        ))?;
    }
    let done = value!({ "manifest": display_path(&file), "files": now.0.len(), "forbids": is, "forbids_before": was });
    format.done(
        &done,
        format_args!("pinned {} files with {is} forbids in `{}`", now.0.len(), display_path(&file)),
    )
}

/// The tools of all servers that the store knows; none before the first `serve` or `server catalog --refresh`.
pub async fn catalogue(config: &Config) -> Result<Catalogue, Failure> {
    let store = context::open_store(&config.store, Login::Administrator).await?;
    store.require_current().await?;
    catalogue_of(&store, config).await
}

pub async fn catalogue_of(store: &Store, config: &Config) -> Result<Catalogue, Failure> {
    let env = &config.environment;
    let (registry, stored) = (store.list_servers(env).await?, store.catalogue(env).await?);
    Ok(build_catalogue(&config.servers, &registry, &stored))
}

/// Reads the `.cedar` files of a folder, or the one file at `path`.
pub fn sources(path: &Path) -> Result<Vec<PolicySource>, Failure> {
    read_policies(path).map_err(|error| Failure::usage(format_args!("{error:#}")))
}

/// Prints the errors or warnings; fails if the policies do not compile.
fn report(compiled: &Result<Snapshot, Vec<Problem>>, sources: &[PolicySource], format: Format) -> Result<(), Failure> {
    let (problems, warnings) = match compiled {
        Ok(snapshot) => (&[][..], snapshot.warnings()),
        Err(problems) => (&problems[..], &[][..]),
    };
    let unread = compiled.as_ref().map(Snapshot::unread_arguments).unwrap_or_default();
    if format.json {
        json(&value!({
            "policies": compiled.as_ref().ok().map(Snapshot::policies),
            "policy_set": compiled.as_ref().ok().map(Snapshot::policy_set),
            "problems": problems.iter().map(as_json).collect::<Vec<_>>(),
            "warnings": warnings.iter().map(as_json).collect::<Vec<_>>(),
            "unread_arguments": unread,
        }))?;
    } else {
        for problem in problems.iter().chain(warnings) {
            note(drawn(problem, sources))?;
        }
        unread_by_server(&unread).iter().try_for_each(line)?;
        if let Ok(snapshot) = compiled {
            line(format_args!(
                "{} policies are right, policy set {}",
                snapshot.policies(),
                snapshot.policy_set().short()
            ))?;
        }
    }
    match compiled {
        Ok(_) => Ok(()),
        Err(_) => Err(Failure::silent(failure::USAGE)),
    }
}

/// A line for each server: how many of its tools' text arguments no policy looks at, and which.
fn unread_by_server(unread: &[UnreadArgument]) -> Vec<String> {
    let mut servers: BTreeMap<&ServerName, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
    for one in unread {
        let arguments = servers.entry(&one.server).or_default();
        arguments.entry(&one.argument).or_default().push(one.tool.as_str());
    }
    let of_tools = |(argument, tools): (&&str, &Vec<&str>)| match tools.as_slice() {
        [tool] => format!("{} ({})", clean(argument), clean(tool)),
        several => format!("{} ({} tools)", clean(argument), several.len()),
    };
    let line = |(server, arguments): (&&ServerName, &BTreeMap<&str, Vec<&str>>)| {
        let count: usize = arguments.values().map(Vec::len).sum();
        let names: Vec<String> = arguments.iter().map(of_tools).collect();
        format!("`{server}`: no policy looks at {count} text arguments: {}", names.join(", "))
    };
    servers.iter().map(line).collect()
}

/// Prints the problems and fails.
pub fn refuse(problems: &[Problem], sources: &[PolicySource]) -> Result<(), Failure> {
    problems.iter().try_for_each(|problem| note(drawn(problem, sources)))?;
    Err(Failure::silent(failure::USAGE))
}

fn as_json(problem: &Problem) -> serde_json::Value {
    let (file, line, column) = match &problem.location {
        SourceLocation::InFile { file, line, column } => (Some(file), Some(line), Some(column)),
        _ => (None, None, None),
    };
    value!({
        "file": file,
        "line": line,
        "column": column,
        "message": problem.message,
        "help": problem.help,
    })
}

/// A problem as text: on a terminal with the policy line it is about, elsewhere on one line.
fn drawn(problem: &Problem, sources: &[PolicySource]) -> String {
    let word = match problem.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let drawing = if std::io::stderr().is_terminal() {
        drawing(problem, sources)
    } else {
        None
    };
    format!("{word}: {}", drawing.unwrap_or_else(|| problem.unlabelled()))
}

fn drawing(problem: &Problem, sources: &[PolicySource]) -> Option<String> {
    let SourceLocation::InFile { file, line, column } = &problem.location else {
        return None;
    };
    let source = sources.iter().find(|source| Path::new(&source.file) == file)?;
    let offset = SourceOffset::from_location(&source.text, *line, *column);
    let mut diagnostic = MietteDiagnostic::new(&problem.message).with_label(LabeledSpan::at_offset(offset.offset(), "here"));
    diagnostic.help.clone_from(&problem.help);
    let report = Report::new(diagnostic).with_source_code(NamedSource::new(&source.file, source.text.clone()));
    let mut text = String::new();
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor());
    handler.render_report(&mut text, report.as_ref()).ok()?;
    Some(text.trim().to_owned())
}
