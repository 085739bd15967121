//! Policies and catalogue compiled together: one immutable value, swapped whole.

use super::Problem;
use crate::domain::{Catalogue, Digest, EnvironmentName, Reason, Refusal, Scope, ServerName, Sha256, ToolEntry, ToolName};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

/// One policy file as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySource {
    pub file: String,
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Accept a set that permits nothing.
    pub deny_all: bool,
    /// Of `context.hour` and `context.weekday`.
    pub utc_offset_minutes: i32,
    pub environment: EnvironmentName,
}

/// What calls are judged by.
pub struct Snapshot {
    policy_set: Digest,
    catalogue: Digest,
    policies: usize,
    schema: String,
    warnings: Vec<Problem>,
    servers: HashMap<ServerName, Server>,
}

struct Server {
    enabled: bool,
    tools: HashMap<ToolName, Arc<CompiledTool>>,
}

/// A tool with everything that is made of its definition once.
pub struct CompiledTool {
    entry: ToolEntry,
    needs: Vec<Scope>,
}

impl Snapshot {
    pub fn compile(sources: &[PolicySource], catalogue: &Catalogue, _settings: &Settings) -> Result<Snapshot, Vec<Problem>> {
        Ok(Self {
            policy_set: digest(sources),
            catalogue: catalogue.digest(),
            policies: sources.len(),
            schema: String::new(),
            warnings: Vec::new(),
            servers: HashMap::new(),
        })
    }

    pub fn policy_set(&self) -> Digest {
        self.policy_set
    }

    pub fn catalogue(&self) -> Digest {
        self.catalogue
    }

    /// How many there are, shadow policies included.
    pub fn policies(&self) -> usize {
        self.policies
    }

    /// The schema that policies are checked against, in Cedar's own notation.
    pub fn cedar_schema(&self) -> &str {
        &self.schema
    }

    pub fn tool(&self, server: &ServerName, tool: &str) -> Option<&CompiledTool> {
        self.servers.get(server)?.tools.get(tool).map(Arc::as_ref)
    }

    /// What does not stop this set, but should be known.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    pub(super) fn server_enabled(&self, server: &ServerName) -> Option<bool> {
        self.servers.get(server).map(|server| server.enabled)
    }
}

impl CompiledTool {
    pub fn entry(&self) -> &ToolEntry {
        &self.entry
    }

    pub(super) fn needs(&self) -> &[Scope] {
        &self.needs
    }

    pub(super) fn arguments(&self, _text: Option<&[u8]>) -> Result<Value, Refusal> {
        Err(Reason::InvalidArguments.into())
    }
}

fn digest(sources: &[PolicySource]) -> Digest {
    sources
        .iter()
        .fold(Sha256::new(), |hash, source| {
            hash.update(Digest::of(source.file.as_bytes()).as_bytes())
                .update(Digest::of(source.text.as_bytes()).as_bytes())
        })
        .finish()
}
