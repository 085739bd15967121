//! Policies and catalogue compiled together into one immutable value. A reload replaces it whole, so no decision sees
//! half of a change.

use super::arguments::Arguments;
use super::check::WareFit;
use super::known::Known;
use super::rule::{self, Rule};
use super::slice::{Index, Library};
use super::sort::Sort;
use super::tool::{CompiledTool, Place};
use super::ware::Wares;
use super::{Problem, check, mirror, schema, shape};
use crate::domain::{Catalogue, Digest, EnvironmentName, PolicyId, ServerEntry, ServerName, Sha256, ToolEntry, ToolName};
use cedar_policy::Effect;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

/// One policy file as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySource {
    pub file: String,
    pub text: String,
}

/// Settings that change what policies mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Accept a policy set that permits nothing.
    pub deny_all: bool,
    /// The offset from UTC for `context.hour` and `context.weekday`.
    pub utc_offset_minutes: i32,
    pub environment: EnvironmentName,
}

/// The compiled policies and catalogue that calls are decided by.
pub struct Snapshot {
    policy_set: Digest,
    catalogue: Digest,
    settings: Settings,
    schema: String,
    warnings: Vec<Problem>,
    library: Library,
    servers: HashMap<ServerName, Server>,
}

struct Server {
    enabled: bool,
    tools: HashMap<ToolName, CompiledTool>,
    /// In the order of `Sort::WARES`.
    wares: Vec<Wares>,
}

/// A tool that is read but not yet joined with its policies.
pub(super) struct Draft {
    pub entry: ToolEntry,
    pub arguments: Arguments,
    pub place: Arc<Place>,
}

impl Snapshot {
    /// Compiles a snapshot, or returns all problems of all files together.
    pub fn compile(sources: &[PolicySource], catalogue: &Catalogue, settings: &Settings) -> Result<Snapshot, Vec<Problem>> {
        Self::compile_keeping(sources, &[], catalogue, settings)
    }

    /// The same, with forbids of an earlier set beside it; see [`missing_forbids`](super::missing_forbids).
    pub fn compile_keeping(
        sources: &[PolicySource],
        kept: &[PolicySource],
        catalogue: &Catalogue,
        settings: &Settings,
    ) -> Result<Snapshot, Vec<Problem>> {
        let (rules, mut problems) = rule::read_with(sources, kept);
        problems.extend(reserved_names(catalogue));
        let drafts = drafts(catalogue);
        let known = Known::new(catalogue, &drafts);
        let checked = check::check(&rules, &known);
        problems.extend(checked.problems);
        if problems.is_empty() && !settings.deny_all && !rules.iter().any(permits) {
            let problem = Problem::new("no policy permits anything");
            problems.push(problem.help("add a permit, or set `policies.deny_all = true`"));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut warnings = checked.warnings;
        warnings.extend(drafts.iter().flat_map(blanks));
        let schema = schema(catalogue, &drafts, &checked.wares);
        let library = Library::new(rules);
        let server = |server| empty_server(&library, server, &checked.wares);
        let mut servers: HashMap<ServerName, Server> = catalogue.servers.iter().map(server).collect();
        for (draft, fit) in drafts.into_iter().zip(checked.fits) {
            let index = Index::new(&library, fit, Arc::new(draft.arguments.fields().clone()));
            let server = servers
                .get_mut(&draft.place.server)
                .expect("drafts are made of the catalogue");
            let name = draft.entry.name.clone();
            server
                .tools
                .insert(name, CompiledTool::new(draft.entry, draft.arguments, draft.place, index));
        }
        Ok(Self {
            policy_set: digest(sources.iter().chain(kept), settings),
            catalogue: catalogue.digest(),
            settings: settings.clone(),
            schema,
            warnings,
            library,
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
        self.library.rules().len()
    }

    /// The ids of the enforced forbid policies; shadow policies are not among them.
    pub fn forbids(&self) -> BTreeSet<&PolicyId> {
        let forbids = self.library.rules().iter().filter(|rule| is_forbid(rule));
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

    /// Findings that do not reject this policy set, but that its author should know.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    pub(super) fn wares(&self, server: &ServerName, sort: Sort) -> Option<&Wares> {
        self.servers.get(server)?.wares.iter().find(|wares| wares.sort() == sort)
    }

    pub(super) fn server_enabled(&self, server: &ServerName) -> Option<bool> {
        self.servers.get(server).map(|server| server.enabled)
    }

    pub(super) fn library(&self) -> &Library {
        &self.library
    }

    pub(super) fn utc_offset_minutes(&self) -> i32 {
        self.settings.utc_offset_minutes
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

/// The number of enforced forbid policies in a file; `None` if the file cannot be read.
pub fn forbids(source: &PolicySource) -> Option<usize> {
    let (rules, problems) = rule::read(std::slice::from_ref(source));
    problems
        .is_empty()
        .then(|| rules.iter().filter(|rule| is_forbid(rule)).count())
}

pub(super) fn is_forbid(rule: &Rule) -> bool {
    rule.effect == Effect::Forbid && !rule.shadow
}

fn permits(rule: &Rule) -> bool {
    rule.effect == Effect::Permit && !rule.shadow
}

fn drafts(catalogue: &Catalogue) -> Vec<Draft> {
    let tools = catalogue
        .servers
        .iter()
        .flat_map(|(server, entry)| entry.tools.values().map(move |tool| (server, tool)));
    tools
        .map(|(server, entry)| Draft {
            arguments: Arguments::compile(&entry.input_schema),
            place: Arc::new(Place::new(server, entry)),
            entry: entry.clone(),
        })
        .collect()
}

fn empty_server(library: &Library, (name, entry): (&ServerName, &ServerEntry), wares: &[WareFit]) -> (ServerName, Server) {
    let server = Server {
        enabled: entry.enabled,
        tools: HashMap::new(),
        wares: wares.iter().map(|fit| Wares::new(library, name, fit)).collect(),
    };
    (name.clone(), server)
}

fn reserved_names(catalogue: &Catalogue) -> impl Iterator<Item = Problem> {
    let taken = catalogue
        .servers
        .keys()
        .filter(|name| schema::RESERVED.contains(&name.as_str()));
    taken.map(|name| {
        Problem::new(format!("server `{name}` has the name of an action that policies know"))
            .help("give the server another name in the configuration")
    })
}

/// Why callers cannot use a tool with this input schema, whatever they are granted: a sentence for the operator.
pub fn obstacle(input_schema: &Value) -> Option<String> {
    obstacle_to(&Arguments::compile(input_schema), input_schema)
}

fn obstacle_to(arguments: &Arguments, input_schema: &Value) -> Option<String> {
    if let Some(why) = arguments.unusable() {
        return Some(format!("it is listed to nobody and every call of it is refused: {why}"));
    }
    let why = mirror::mirrored(input_schema).err()?;
    Some(format!(
        "clients of 2026-07-28 are not shown it, since they must not use it: {why}; the server has to mark its arguments otherwise"
    ))
}

/// Warnings about a tool that cannot be used and about arguments that policies cannot read.
fn blanks(draft: &Draft) -> Vec<Problem> {
    let tool = &draft.place.id;
    let obstacle = obstacle_to(&draft.arguments, &draft.entry.input_schema);
    let obstacle = obstacle.map(|obstacle| Problem::new(format!("tool `{tool}`: {obstacle}")));
    if draft.arguments.unusable().is_some() {
        return obstacle.into_iter().collect();
    }
    let holes = shape::holes(draft.arguments.fields()).into_iter();
    let holes =
        holes.map(|(argument, why)| Problem::new(format!("policies cannot read argument `{argument}` of tool `{tool}`: {why}")));
    obstacle.into_iter().chain(holes).collect()
}

fn schema(catalogue: &Catalogue, drafts: &[Draft], wares: &[WareFit]) -> String {
    let groups = schema::GROUPS
        .into_iter()
        .chain(catalogue.servers.keys().map(ServerName::as_str));
    let actions: Vec<schema::Action<'_>> = wares
        .iter()
        .map(WareFit::action)
        .chain(drafts.iter().map(Draft::action))
        .collect();
    schema::text(groups, &actions)
}

impl Draft {
    pub fn action(&self) -> schema::Action<'_> {
        schema::Action {
            sort: Sort::Tool,
            id: &self.place.id,
            groups: self.place.groups.iter().map(String::as_str).collect(),
            input: Some(self.arguments.fields()),
        }
    }
}

/// The files are hashed in the order of their names, so that the order of reading does not matter.
fn digest<'a>(sources: impl Iterator<Item = &'a PolicySource>, settings: &Settings) -> Digest {
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
