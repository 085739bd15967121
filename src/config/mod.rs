//! The configuration: one TOML file, parsed, checked as a whole, and turned into typed values.
//!
//! `load` reports all problems at once, each with its place in the file. It opens the file and the secret files it names,
//! nothing else: certificates, policies, the store and the servers are checked by their own rooms.

mod check;
mod document;
mod key_schema;
mod model;
mod resolve;
mod server;

pub use model::*;
pub use server::{Denials, PinMode, ServerConfig, ServerTransport, UnknownTools, UpstreamCredential};

use crate::domain::{Problem, Severity};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::Path;

/// A configuration that is complete and holds none of the errors that `check` finds. Only `load` and `parse` make one, so
/// whoever takes it need not check again.
#[derive(Debug, Clone)]
pub struct CheckedConfig(Config);

impl Deref for CheckedConfig {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.0
    }
}

/// A configuration without errors, and the warnings about it.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: CheckedConfig,
    pub warnings: Vec<Problem>,
}

/// Environment variables: `${VAR}` in the file reads any of them, `GUARDIAN__SECTION__KEY` overrides the file.
pub type Variables = BTreeMap<String, String>;

/// Reads the file, applies overrides, expands `${VAR}`, checks, and completes. In the result, paths are absolute or
/// relative to the working directory, secrets are read, and defaults are filled in.
pub fn load(path: &Path, variables: &Variables) -> Result<Loaded, Vec<Problem>> {
    let text = document::read_file(path).map_err(|problem| vec![problem])?;
    parse(path, &text, variables)
}

/// Like `load`, with the file's text given.
pub fn parse(path: &Path, text: &str, variables: &Variables) -> Result<Loaded, Vec<Problem>> {
    let keys = key_schema::KeySchema::of_config();
    let mut document = document::Document::parse(path, text)?;
    let mut problems = document.overlay(variables, &|key| keys.type_of(key));
    problems.extend(document.expand(variables));
    problems.extend(keys.check(&document));
    if !problems.is_empty() {
        return Err(sorted(problems));
    }
    let mut config: Config = serde_json::from_value(document.to_json())
        .map_err(|error| vec![document.file_problem(format!("the configuration does not fit together: {error}"))])?;
    resolve::resolve_paths(&mut config, path.parent().unwrap_or(Path::new("")));
    let mut findings = resolve::read_secrets(&mut config);
    findings.extend(resolve::read_variables(&mut config, variables));
    resolve::fill_defaults(&mut config);
    findings.extend(check::check(&config));
    let findings = sorted(findings.into_iter().map(|problem| document.locate(problem)).collect());
    if findings.iter().any(|problem| problem.severity == Severity::Error) {
        Err(findings)
    } else {
        Ok(Loaded {
            config: CheckedConfig(config),
            warnings: findings,
        })
    }
}

/// The JSON Schema of the file, for editors.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Config).to_value()
}

fn sorted(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort_by(|a, b| (&a.location, &a.key).cmp(&(&b.location, &b.key)));
    problems.dedup();
    problems
}
