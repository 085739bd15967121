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
use crate::domain::{Catalogue, Digest, DocumentKind, KeptDocument, PolicyId, Problem, ServerEntry, ServerName, ToolName};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
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
    documents: Vec<KeptDocument>,
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
        // By name, so that the order of reading changes neither the digest nor the order of the policies.
        let mut sources = sources.to_vec();
        sources.sort_by(|one, other| (&one.file, &one.text).cmp(&(&other.file, &other.text)));
        let (rules, mut problems) = rule::read_with(&sources, kept);
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
        let documents = documents(&sources, kept, catalogue, settings).map_err(|problem| vec![problem])?;
        Ok(Self {
            policy_set: documents[0].digest,
            catalogue: documents[1].digest,
            documents,
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

    /// Everything that the snapshot was compiled from, for the audit trail: `snapshot_of` compiles it again.
    pub fn documents(&self) -> &[KeptDocument] {
        &self.documents
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

/// A policy set as the document that its digest is the hash of.
#[derive(Serialize, Deserialize)]
struct PolicySetIndex {
    utc_offset_minutes: i32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    deny_all: bool,
    /// The name of each file and the hash of its text, in the order of the names.
    files: Vec<(String, Digest)>,
    /// Forbids of an earlier set beside them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    kept: Vec<(String, Digest)>,
}

/// The policy set and the catalogue as documents, in this order, then the documents that they name.
fn documents(
    sources: &[PolicySource],
    kept: &[PolicySource],
    catalogue: &Catalogue,
    settings: &PolicySettings,
) -> Result<Vec<KeptDocument>, Problem> {
    let file = |source: &PolicySource| KeptDocument::new(DocumentKind::PolicyFile, source.text.as_str());
    let files: Vec<KeptDocument> = sources.iter().chain(kept).map(file).collect();
    let named = |source: &PolicySource, file: &KeptDocument| (source.file.clone(), file.digest);
    let names = |sources: &[PolicySource], files: &[KeptDocument]| sources.iter().zip(files).map(|(s, f)| named(s, f)).collect();
    let index = PolicySetIndex {
        utc_offset_minutes: settings.utc_offset_minutes,
        deny_all: settings.deny_all,
        files: names(sources, &files),
        kept: names(kept, &files[sources.len()..]),
    };
    let index = serde_json::to_string(&index).expect("it has only texts and numbers");
    let tools = catalogue.servers.values().flat_map(|server| server.tools.values());
    let tools = tools.map(|tool| KeptDocument::new(DocumentKind::Tool, tool.definition.clone()));
    let sets = [
        KeptDocument::new(DocumentKind::PolicySet, index),
        KeptDocument::new(DocumentKind::Catalogue, catalogue.index()),
    ];
    let documents: Vec<KeptDocument> = sets.into_iter().chain(files).chain(tools).collect();
    match documents
        .iter()
        .find(|document| document.text.len() > KeptDocument::MOST_BYTES)
    {
        None => Ok(documents),
        Some(document) => {
            let (kind, most) = (document.kind.as_str().replace('_', " "), KeptDocument::MOST_BYTES);
            Err(Problem::error(
                "",
                format!("a {kind} is longer than {most} bytes, which the audit trail cannot keep"),
            ))
        }
    }
}

/// Compiles the snapshot that documents name; `document` finds a text by its kind and hash. The error says what is missing.
pub fn snapshot_of(
    policy_set: &Digest,
    catalogue: &Digest,
    document: impl Fn(DocumentKind, &Digest) -> Option<Arc<str>>,
) -> Result<Snapshot, String> {
    let found = |kind: DocumentKind, digest: &Digest| {
        let text = document(kind, digest).filter(|text| Digest::of(text.as_bytes()) == *digest);
        text.ok_or_else(|| format!("there is no {} `{digest}`", kind.as_str().replace('_', " ")))
    };
    let index: PolicySetIndex = serde_json::from_str(&found(DocumentKind::PolicySet, policy_set)?)
        .map_err(|error| format!("the policy set `{policy_set}` cannot be read: {error}"))?;
    let sources = |files: &[(String, Digest)]| -> Result<Vec<PolicySource>, String> {
        let source = |(file, digest): &(String, Digest)| {
            Ok(PolicySource {
                file: file.clone(),
                text: found(DocumentKind::PolicyFile, digest)?.to_string(),
            })
        };
        files.iter().map(source).collect()
    };
    let text = found(DocumentKind::Catalogue, catalogue)?;
    let definition = |digest: &Digest| found(DocumentKind::Tool, digest).ok();
    let read = Catalogue::of_index(&text, definition)
        .ok_or_else(|| format!("the catalogue `{catalogue}` is not whole: a definition of a tool is missing"))?;
    let settings = PolicySettings {
        deny_all: index.deny_all,
        utc_offset_minutes: index.utc_offset_minutes,
    };
    let compiled = Snapshot::compile_keeping(&sources(&index.files)?, &sources(&index.kept)?, &read, &settings);
    compiled.map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}
