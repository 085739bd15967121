//! Policies and catalogue compiled together into one immutable value. A reload replaces it whole, so no decision sees
//! half of a change.

use super::compiled_tool::CompiledTool;
use super::slice::{CompiledPolicies, PolicyIndex};
use super::unlisted::UnlistedPrimitives;
use crate::decide::policy::applicability::UnlistedApplicability;
use crate::decide::policy::check;
use crate::decide::policy::deep_stack::on_deep_stack;
use crate::decide::policy::entity_names::EntityNames;
use crate::decide::policy::rule::{self, PolicySource, Rule};
use crate::decide::tool::arguments::Arguments;
use crate::decide::tool::param_headers::{ParamHeader, param_headers};
use crate::decide::tool::primitive_kind::PrimitiveKind;
use crate::decide::tool::target::ToolDefinition;
use crate::decide::tool::{arg_types, schema};
use crate::domain::{Catalogue, Digest, PolicyId, Problem, ServerEntry, ServerName, Sha256, ToolName};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

/// Settings that change what policies mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySettings {
    /// Accept a policy set that permits nothing.
    pub deny_all: bool,
    /// The offset from UTC for `context.hour` and `context.weekday`.
    pub utc_offset_minutes: i32,
}

/// The compiled policies and catalogue that calls are decided by.
pub struct Snapshot {
    policy_set: Digest,
    catalogue: Digest,
    pub(super) utc_offset_minutes: i32,
    schema: String,
    warnings: Vec<Problem>,
    pub(super) compiled: CompiledPolicies,
    servers: HashMap<ServerName, CompiledServer>,
}

struct CompiledServer {
    enabled: bool,
    tools: HashMap<ToolName, CompiledTool>,
    /// In the order of `PrimitiveKind::UNLISTED`.
    unlisted: Vec<UnlistedPrimitives>,
}

impl Snapshot {
    /// Compiles a snapshot, or returns all problems of all files together.
    pub fn compile(sources: &[PolicySource], catalogue: &Catalogue, settings: &PolicySettings) -> Result<Snapshot, Vec<Problem>> {
        Self::compile_keeping(sources, &[], catalogue, settings)
    }

    /// The same, with forbids of an earlier set beside it; see [`missing_forbids`](super::missing_forbids).
    pub fn compile_keeping(
        sources: &[PolicySource],
        kept: &[PolicySource],
        catalogue: &Catalogue,
        settings: &PolicySettings,
    ) -> Result<Snapshot, Vec<Problem>> {
        on_deep_stack(|| Self::compile_here(sources, kept, catalogue, settings))
    }

    fn compile_here(
        sources: &[PolicySource],
        kept: &[PolicySource],
        catalogue: &Catalogue,
        settings: &PolicySettings,
    ) -> Result<Snapshot, Vec<Problem>> {
        let (rules, mut problems) = rule::read_with(sources, kept);
        problems.extend(reserved_names(catalogue));
        let tools = tool_definitions(catalogue);
        let entity_names = EntityNames::new(catalogue, &tools);
        let checked = check::check_policies(&rules, &entity_names);
        problems.extend(checked.problems);
        if problems.is_empty() && !settings.deny_all && !rules.iter().any(Rule::is_enforced_permit) {
            let problem = Problem::error("", "no policy permits anything");
            problems.push(problem.help("add a permit, or set `policies.deny_all = true`"));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let warnings = checked.warnings.into_iter().chain(tools.iter().flat_map(invisible_arguments));
        let warnings = warnings.map(Problem::into_warning).collect();
        let schema = schema(catalogue, &tools, &checked.unlisted);
        let compiled = CompiledPolicies::new(rules);
        let server = |server| empty_server(&compiled, server, &checked.unlisted);
        let mut servers: HashMap<ServerName, CompiledServer> = catalogue.servers.iter().map(server).collect();
        for (definition, applicability) in tools.into_iter().zip(checked.applicability) {
            let arg_schema = Arc::new(definition.arguments.arg_schema.clone());
            let index = PolicyIndex::new(&compiled, applicability, arg_schema);
            let server = servers.get_mut(&definition.target.server);
            let server = server.expect("the tools are made of the catalogue");
            let name = definition.entry.name.clone();
            server.tools.insert(name, CompiledTool { definition, index });
        }
        Ok(Self {
            policy_set: digest(sources.iter().chain(kept), settings),
            catalogue: catalogue.digest(),
            utc_offset_minutes: settings.utc_offset_minutes,
            schema,
            warnings,
            compiled,
            servers,
        })
    }

    /// The hash of the policy files and of the settings that change what they mean.
    pub fn policy_set(&self) -> Digest {
        self.policy_set
    }

    /// The hash of the catalogue.
    pub fn catalogue(&self) -> Digest {
        self.catalogue
    }

    /// The number of policies, shadow policies included.
    pub fn policies(&self) -> usize {
        self.compiled.rules.len()
    }

    /// The ids of the enforced forbid policies; shadow policies are not among them.
    pub fn forbids(&self) -> BTreeSet<&PolicyId> {
        let forbids = self.compiled.rules.iter().filter(|rule| rule.is_enforced_forbid());
        forbids.map(|rule| &rule.id).collect()
    }

    /// The schema that policies are validated against, in Cedar's schema syntax.
    pub fn cedar_schema(&self) -> &str {
        &self.schema
    }

    /// One tool of a server; `None` if it is not in the catalogue.
    pub fn tool(&self, server: &ServerName, tool: &str) -> Option<&CompiledTool> {
        self.servers.get(server)?.tools.get(tool)
    }

    /// Every tool of a server, in no particular order.
    pub fn tools(&self, server: &ServerName) -> impl Iterator<Item = &CompiledTool> {
        self.servers.get(server).into_iter().flat_map(|server| server.tools.values())
    }

    pub(super) fn all_tools(&self) -> impl Iterator<Item = (&ServerName, &CompiledTool)> {
        let servers = self.servers.iter();
        servers.flat_map(|(name, server)| server.tools.values().map(move |tool| (name, tool)))
    }

    /// Findings that do not reject this policy set, but that its author should know.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    pub(in crate::decide) fn unlisted(&self, server: &ServerName, kind: PrimitiveKind) -> Option<&UnlistedPrimitives> {
        self.servers
            .get(server)?
            .unlisted
            .iter()
            .find(|unlisted| unlisted.kind == kind)
    }

    pub(super) fn server_enabled(&self, server: &ServerName) -> Option<bool> {
        self.servers.get(server).map(|server| server.enabled)
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("policy_set", &self.policy_set)
            .field("catalogue", &self.catalogue)
            .field("policies", &self.policies())
            .finish_non_exhaustive()
    }
}

fn tool_definitions(catalogue: &Catalogue) -> Vec<ToolDefinition> {
    let servers = catalogue.servers.iter();
    let tools = servers.flat_map(|(server, entry)| entry.tools.values().map(move |tool| (server, tool)));
    tools.map(|(server, tool)| ToolDefinition::new(server, tool)).collect()
}

fn empty_server(
    compiled: &CompiledPolicies,
    (name, entry): (&ServerName, &ServerEntry),
    unlisted: &[UnlistedApplicability],
) -> (ServerName, CompiledServer) {
    let server = CompiledServer {
        enabled: entry.enabled,
        tools: HashMap::new(),
        unlisted: unlisted
            .iter()
            .map(|fit| UnlistedPrimitives::new(compiled, name, fit))
            .collect(),
    };
    (name.clone(), server)
}

fn reserved_names(catalogue: &Catalogue) -> impl Iterator<Item = Problem> {
    let taken = catalogue
        .servers
        .keys()
        .filter(|name| schema::RESERVED.contains(&name.as_str()));
    taken.map(|name| {
        Problem::error("", format!("server `{name}` has the name of an action that policies know"))
            .help("give the server another name in the configuration")
    })
}

/// Why callers cannot use a tool with this input schema, whatever they are granted: a sentence for the operator.
pub fn why_unusable(input_schema: &Value) -> Option<String> {
    why_arguments_unusable(&Arguments::compile(input_schema), &param_headers(input_schema))
}

fn why_arguments_unusable(arguments: &Arguments, param_headers: &Result<Vec<ParamHeader>, String>) -> Option<String> {
    if let Some(why) = arguments.why_unusable() {
        return Some(format!("it is listed to nobody and every call of it is refused: {why}"));
    }
    let why = param_headers.as_ref().err()?;
    Some(format!(
        "clients of 2026-07-28 are not shown it, since they must not use it: {why}; the server has to mark its arguments otherwise"
    ))
}

/// Warnings about a tool that cannot be used and about arguments that policies cannot read.
fn invisible_arguments(tool: &ToolDefinition) -> Vec<Problem> {
    let id = &tool.target.id;
    let obstacle = why_arguments_unusable(&tool.arguments, &tool.param_headers);
    let obstacle = obstacle.map(|obstacle| Problem::error("", format!("tool `{id}`: {obstacle}")));
    if tool.arguments.why_unusable().is_some() {
        return obstacle.into_iter().collect();
    }
    let holes = arg_types::untyped_arguments(&tool.arguments.arg_schema).into_iter();
    let holes = holes.map(|(argument, why)| {
        Problem::error(
            "",
            format!("policies cannot read argument `{argument}` of tool `{id}`: {why}"),
        )
    });
    obstacle.into_iter().chain(holes).collect()
}

fn schema(catalogue: &Catalogue, tools: &[ToolDefinition], unlisted: &[UnlistedApplicability]) -> String {
    let servers = catalogue.servers.keys().map(ServerName::as_str);
    let groups = schema::GROUPS.into_iter().chain(servers);
    let tools = tools.iter().map(ToolDefinition::action);
    let actions: Vec<_> = unlisted.iter().map(UnlistedApplicability::action).chain(tools).collect();
    schema::schema_text(groups, &actions)
}

/// The files are hashed in the order of their names, so that the order of reading does not matter.
fn digest<'a>(sources: impl Iterator<Item = &'a PolicySource>, settings: &PolicySettings) -> Digest {
    let offset = settings.utc_offset_minutes.to_string();
    let by_name: BTreeMap<(&str, &str), ()> = sources.map(|source| ((&*source.file, &*source.text), ())).collect();
    by_name
        .keys()
        .fold(Sha256::new().update(offset.as_bytes()), |hash, (file, text)| {
            hash.update(Digest::of(file.as_bytes()).as_bytes())
                .update(Digest::of(text.as_bytes()).as_bytes())
        })
        .finish()
}
