//! Validates policies against the catalogue: the names in them exist, and they are well typed for every tool they can
//! apply to. All problems are reported at once.
//!
//! A policy that names a tool must be right for that tool. A policy for a group must also be right for tools that are
//! added later, so it is validated against an imaginary tool with every argument it mentions, each optional and of the
//! type its use shows. If a tool of the group declares such an argument with another type, the policy cannot be evaluated
//! for it: a forbid refuses its calls, a permit does not count. The policy's author cannot help that, so it is a warning.

mod unlisted;

use super::applicability::{Applicability, UnlistedApplicability};
use super::entity_names::{EntityNames, Lookup};
use super::inferred_args::{MissingArgument, conflict, infer_schema, make_untyped, missing_argument};
use super::rule::{ActionScope, PolicySource, PrincipalScope, ResourceScope, Rule, RuleIndex};
use super::usage::ArgumentRef;
use super::validator::{PolicyValidator, Validation};
use crate::decide::tool::arg_types::ArgSchema;
use crate::decide::tool::arguments;
use crate::decide::tool::primitive_kind::PrimitiveKind;
use crate::decide::tool::schema::{self, Action};
use crate::decide::tool::target::ToolDefinition;
use crate::domain::{PinStatus, Problem, ToolClass, did_you_mean, is_one_edit};
use cedar_policy::Effect;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// All findings, and the policies of each tool.
#[derive(Default)]
pub(in crate::decide) struct Checked {
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
    /// In the order of the tools.
    pub applicability: Vec<Applicability>,
    /// For all resources and for all prompts, in the order of `PrimitiveKind::UNLISTED`.
    pub unlisted: Vec<UnlistedApplicability>,
}

/// Validates all policies.
pub(in crate::decide) fn check_policies(rules: &[Rule], entity_names: &EntityNames<'_>) -> Checked {
    let mut check = CatalogueCheck {
        rules,
        entity_names,
        found: Checked::default(),
        validator: PolicyValidator::new(rules, entity_names),
        asks_for_actions: Vec::new(),
        unsound: BTreeSet::new(),
        unchecked: BTreeSet::new(),
        possible: vec![false; rules.len()],
        seen: vec![false; rules.len()],
    };
    check.asks_for_actions = (0..rules.len()).map(|index| check.asks_for_actions(index)).collect();
    for index in 0..rules.len() {
        check.check_names(index);
    }
    check.found.applicability = applicability(rules, entity_names);
    for index in 0..rules.len() {
        check.check_arguments(index);
    }
    check.check_groups();
    check.check_tools();
    check.check_untyped();
    check.check_unlisted();
    check.check_impossible();
    check.check_unannotated();
    check.found.problems = one_a_place(check.found.problems);
    check.found.warnings.dedup();
    check.found
}

/// Keeps one problem per position: the validator repeats a mistake for users, for services and for every tool.
fn one_a_place(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort_by(|a, b| (&a.location, &b.message).cmp(&(&b.location, &a.message)));
    problems.dedup_by(|a, b| a.location == b.location);
    problems
}

struct CatalogueCheck<'a> {
    rules: &'a [Rule],
    entity_names: &'a EntityNames<'a>,
    found: Checked,
    validator: PolicyValidator<'a>,
    /// Whether the conditions of each policy name actions that its scope does not.
    asks_for_actions: Vec<bool>,
    /// Policies with a reported problem; they are not validated further.
    unsound: BTreeSet<usize>,
    /// Policies that name a tool of a server whose tools are not known yet.
    unchecked: BTreeSet<usize>,
    /// Whether each policy could be satisfied for some action, and whether it was validated for any.
    possible: Vec<bool>,
    seen: Vec<bool>,
}

impl CatalogueCheck<'_> {
    /// Checks that every action, tool and server exists, and that the scope can match something.
    fn check_names(&mut self, index: usize) {
        let rule = &self.rules[index];
        let mut problems = Vec::new();
        for uid in self.validator.literals(index) {
            let id = uid.id().unescaped();
            match self.entity_names.look_up(uid.type_name().basename(), id) {
                Lookup::Exists => {}
                Lookup::Unchecked(server) => {
                    let message = format!("the tools of server `{server}` are not known yet: not checked");
                    self.found.warnings.push(rule.problem_at_entity(id, message));
                    self.unchecked.insert(index);
                }
                Lookup::Impossible(why) => {
                    let message = format!("nothing is called `{}`: {why}", arguments::cut(id));
                    problems.push(rule.problem_at_entity(id, message));
                }
                Lookup::Unknown { kind, near } => {
                    let named = if kind == "server" {
                        id.split('/').next().unwrap_or(id)
                    } else {
                        id
                    };
                    let mut problem = rule.problem_at_entity(id, format!("there is no {kind} `{}`", arguments::cut(named)));
                    problem.help = near.as_deref().map(did_you_mean);
                    problems.push(problem);
                }
            }
        }
        for unknown in &rule.usage.unknown_attributes {
            let mut problem = rule.problem_at_attribute(&unknown.name, format!("`{}` has no `{}`", unknown.of, unknown.name));
            problem.help = unknown.near.map(did_you_mean);
            problems.push(problem);
        }
        if let ActionScope::Is(group) = &rule.action
            && self.entity_names.is_group(group)
        {
            let problem = rule.problem_at_entity(group, format!("`{group}` is a group of actions, which no action equals"));
            problems.push(problem.help("write `action in` instead of `action ==`"));
        }
        if rule.principal == PrincipalScope::Nobody {
            let problem = rule.problem("no caller can be the principal of its scope");
            let help = "callers are `Guardian::User` or `Guardian::Service`, in `Guardian::Role`";
            problems.push(problem.help(help));
        }
        if rule.resource == ResourceScope::Nothing {
            let problem = rule.problem("nothing can be the resource of its scope");
            let help = "there are `Guardian::Tool`, `Guardian::Resource` and `Guardian::Prompt`, in `Guardian::Server`";
            problems.push(problem.help(help));
        }
        if !problems.is_empty() {
            self.found.problems.append(&mut problems);
            self.unsound.insert(index);
        }
    }

    /// Checks argument names. A policy that names tools may mention only their arguments. A policy for a group gets a
    /// warning if a name looks like a misspelling.
    fn check_arguments(&mut self, index: usize) {
        let rule = &self.rules[index];
        if self.unsound.contains(&index) || rule.usage.arguments.is_empty() {
            return;
        }
        let applicability = self.found.applicability.iter().zip(self.entity_names.tools);
        let tools: Vec<&ToolDefinition> = applicability
            .filter(|(applicability, tool)| {
                applicability.has(index) && (!rule.names_tools_only() || rule.names_tool(&tool.target.id))
            })
            .map(|(_, tool)| tool)
            .collect();
        if tools.is_empty() {
            return;
        }
        for argument in &rule.usage.arguments {
            let missing = tools
                .iter()
                .map(|tool| missing_argument(&tool.arguments.arg_schema, &argument.path));
            let Some(missing) = missing.collect::<Option<Vec<MissingArgument>>>() else {
                continue;
            };
            let Some(problem) = missing_problem(rule, &tools, missing) else {
                continue;
            };
            match (rule.names_tools_only(), &problem.help) {
                (true, _) => {
                    self.found.problems.push(problem);
                    self.unsound.insert(index);
                }
                (false, Some(help)) if !self.is_asked_for(&rule.source, help) => self.found.warnings.push(problem),
                (false, _) => {}
            }
        }
    }

    /// Whether a policy of the same file asks for the argument that a help names: its author knows both names.
    fn is_asked_for(&self, file: &Arc<PolicySource>, help: &str) -> bool {
        let mut beside = self.rules.iter().filter(|rule| Arc::ptr_eq(&rule.source, file));
        let is_named = |argument: &ArgumentRef| argument.path.last().is_some_and(|name| did_you_mean(name) == help);
        beside.any(|rule| rule.usage.arguments.iter().any(is_named))
    }

    /// Validates the policies whose scope is not limited to named tools against an imaginary tool with all arguments they
    /// mention.
    fn check_groups(&mut self) {
        let mut alike: BTreeMap<(ArgSchema, BTreeSet<String>), Vec<usize>> = BTreeMap::new();
        for (index, rule) in self.rules.iter().enumerate() {
            if !rule.names_tools_only() && rule.can_match(PrimitiveKind::Tool) && !self.unsound.contains(&index) {
                let actions = self.validator.actions(index);
                alike
                    .entry((infer_schema(&rule.usage.arguments).0, actions))
                    .or_default()
                    .push(index);
            }
        }
        for ((fields, actions), mut indices) in alike {
            let is_group = |id: &&str| !id.contains('/') && !PrimitiveKind::is_action(id);
            let named: BTreeSet<&str> = actions.iter().map(String::as_str).filter(is_group).collect();
            let everything = schema::GROUPS.into_iter().chain(named.iter().copied());
            self.check_group(everything.collect(), &fields, &indices);
            // No tool is in all groups: a condition that excludes one of them may hold for a tool of the others.
            for groups in possible_groups(&named) {
                indices.retain(|index| self.asks_for_actions[*index] && !self.possible[*index] && !self.unsound.contains(index));
                if indices.is_empty() {
                    break;
                }
                self.check_group(groups, &fields, &indices);
            }
        }
    }

    /// Validates policies against an imaginary tool of these groups.
    fn check_group(&mut self, groups: BTreeSet<&str>, fields: &ArgSchema, indices: &[usize]) {
        let any_tool = Action {
            kind: PrimitiveKind::Tool,
            id: "any tool",
            groups: groups.into_iter().collect(),
            input: Some(fields),
        };
        for finding in self.validate(any_tool, indices).findings {
            let index = finding.rule;
            if !finding.unguarded && self.holds_for_some_tool(index) {
                continue;
            }
            self.found.problems.push(finding.problem);
            self.unsound.insert(index);
        }
    }

    /// Whether the policy is well typed for a real tool. If it is, the error came from a guessed type and is none.
    fn holds_for_some_tool(&mut self, index: usize) -> bool {
        let (supposed, guessed) = infer_schema(&self.rules[index].usage.arguments);
        if !guessed {
            return false;
        }
        let tools = self.entity_names.tools;
        let is_candidate = |position: &usize| {
            let fields = &tools[*position].arguments.arg_schema;
            self.found.applicability[*position].has(index) && supposed.keys().any(|name| fields.contains_key(name))
        };
        let candidates: Vec<usize> = (0..tools.len()).filter(is_candidate).collect();
        let mut actions = candidates.into_iter().map(|position| tools[position].action());
        actions.any(|action| self.validate(action, &[index]).findings.is_empty())
    }

    /// Validates every policy for every tool that it can apply to.
    fn check_tools(&mut self) {
        for (position, tool) in self.entity_names.tools.iter().enumerate() {
            let rules = self.found.applicability[position].rules.iter().copied();
            let indices: Vec<usize> = rules.filter(|index| self.differs(*index, tool)).collect();
            if indices.is_empty() {
                continue;
            }
            let validation = self.validate(tool.action(), &indices);
            let applicability = &mut self.found.applicability[position];
            applicability.never_matching.extend(validation.never_matching(self.rules));
            for finding in validation.findings {
                let is_named = self.rules[finding.rule].names_tool(&tool.target.id);
                if is_named && tool.entry.pin_status != PinStatus::Unapproved {
                    self.found.problems.push(finding.problem);
                } else if !self.found.applicability[position].is_known_mismatch(finding.rule) {
                    self.record_mismatch(position, finding.rule, finding.problem);
                }
            }
        }
    }

    /// Records that a policy for a group is ill typed for one tool: because of arguments with another type, or in any
    /// case.
    fn record_mismatch(&mut self, position: usize, index: usize, problem: Problem) {
        let tool = &self.entity_names.tools[position];
        let rule = &self.rules[index];
        let conflicts = self.conflicting_arguments(index, tool.action(), &tool.arguments.arg_schema);
        self.found.applicability[position].add_mismatch(index, &conflicts);
        let path = |argument: &usize| format!("`{}`", rule.usage.arguments[*argument].path.join("."));
        let names: BTreeSet<String> = conflicts.iter().map(path).collect();
        let which = if names.is_empty() {
            "at all".to_owned()
        } else {
            format!("with {}", names.into_iter().collect::<Vec<_>>().join(" or "))
        };
        let help = "the tool has the argument in another type than the policy takes it for";
        let warning = not_evaluable_warning(rule, tool, problem.message.clone(), &which, problem);
        self.found.warnings.push(warning.help(help));
    }

    /// The arguments of a policy because of which alone it is ill typed for an action: its schema `fields` has them in
    /// another type. None: the policy is ill typed in any case.
    fn conflicting_arguments(&mut self, index: usize, action: Action<'_>, fields: &ArgSchema) -> Vec<usize> {
        let arguments = &self.rules[index].usage.arguments;
        let (supposed, _) = infer_schema(arguments);
        let is_conflict = |argument: &usize| conflict(fields, &supposed, &arguments[*argument].path);
        let mut conflicts: Vec<usize> = (0..arguments.len()).filter(is_conflict).collect();
        let mut without = fields.clone();
        for argument in &conflicts {
            make_untyped(&mut without, &arguments[*argument].path);
        }
        let input = Some(&without);
        if !conflicts.is_empty() && !self.validate(Action { input, ..action }, &[index]).findings.is_empty() {
            conflicts.clear();
        }
        conflicts
    }

    /// Warns about a mentioned argument that a tool declares without a type that policies can read.
    fn check_untyped(&mut self) {
        for (tool, applicability) in self.entity_names.tools.iter().zip(&self.found.applicability) {
            for index in &applicability.rules {
                let rule = &self.rules[*index];
                let missing = |argument: &ArgumentRef| missing_argument(&tool.arguments.arg_schema, &argument.path);
                let mut missing = rule.usage.arguments.iter().filter_map(missing);
                if let Some(hole) = missing.find(|missing| missing.untyped.is_some()) {
                    let at = rule.problem_at_attribute(&hole.name, "");
                    let message = format!("policy `{}`: it asks for `{}`", rule.id, hole.path);
                    let warning = not_evaluable_warning(rule, tool, message, &format!("with `{}`", hole.path), at);
                    let help = "the tool's schema gives the argument no type that policies can read";
                    self.found.warnings.push(warning.help(help));
                }
            }
        }
    }

    /// Whether validation for this tool can differ from validation for the imaginary tool.
    fn differs(&self, index: usize, tool: &ToolDefinition) -> bool {
        let rule = &self.rules[index];
        let may = self.asks_for_actions[index] || rule.reads_input() || rule.names_tool(&tool.target.id);
        may && !self.unsound.contains(&index)
    }

    fn asks_for_actions(&self, index: usize) -> bool {
        let actions = self.validator.actions(index);
        !actions.iter().all(|id| self.rules[index].action.names(id))
    }

    /// Runs the validator. It records warnings and satisfiability on the side, and each policy's warnings only once.
    fn validate(&mut self, action: Action<'_>, indices: &[usize]) -> Validation {
        let mut validation = self.validator.validate_for_action(action, indices);
        for (index, warning) in std::mem::take(&mut validation.warnings) {
            if !self.seen[index] {
                self.found.warnings.push(warning);
            }
        }
        for index in indices {
            self.seen[*index] = true;
            self.possible[*index] |= !validation.impossible.contains(index);
        }
        validation
    }

    /// Warns about unannotated tools, if policies tell destructive ones apart and forget these, which may destroy as well.
    fn check_unannotated(&mut self) {
        let is_named = |group: &str| (0..self.rules.len()).any(|index| self.validator.actions(index).contains(group));
        let tools = self.entity_names.tools.iter();
        let count = tools
            .filter(|tool| tool.target.groups.iter().any(|group| group == "unannotated"))
            .count();
        if count > 0 && is_named("destructive") && !is_named("unannotated") {
            let message = format!(
                "policies name the group `destructive`, and none names `unannotated`: tools whose servers do not say what they do \
                 ({count} now) are judged as if they destroyed nothing"
            );
            let help = "name both groups: `action in [Guardian::Action::\"destructive\", Guardian::Action::\"unannotated\"]`";
            self.found.warnings.push(Problem::error("", message).help(help));
        }
    }

    /// Warns about valid policies that can have no effect.
    fn check_impossible(&mut self) {
        for (index, rule) in self.rules.iter().enumerate() {
            if self.unsound.contains(&index) {
                continue;
            }
            let fits = || self.found.applicability.iter().any(|applicability| applicability.has(index));
            let for_nothing = || !PrimitiveKind::ALL.iter().any(|kind| rule.can_match(*kind));
            if (rule.names_tools_only() || for_nothing()) && !self.unchecked.contains(&index) && !fits() {
                let problem = rule.problem("nothing is of its action and of its resource: it has no effect");
                self.found.warnings.push(problem);
            }
            if self.seen[index] && !self.possible[index] {
                let problem = rule.problem("its conditions can never hold: it has no effect");
                self.found.warnings.push(problem);
            }
        }
    }
}

/// The groups that one tool can be in, as far as policies name them: `call_tool`, one class or none, one server.
fn possible_groups<'a>(named: &BTreeSet<&'a str>) -> Vec<BTreeSet<&'a str>> {
    let is_server = |group: &&str| !schema::GROUPS.contains(group);
    let servers: Vec<Option<&str>> = std::iter::once(None)
        .chain(named.iter().copied().filter(is_server).map(Some))
        .collect();
    let classes = CLASSES
        .iter()
        .flat_map(|class| servers.iter().map(move |server| (class.group(), *server)));
    let groups = classes.map(|(class, server)| std::iter::once("call_tool").chain(class).chain(server).collect());
    groups.collect()
}

/// An additive tool comes first: it is in no group of its own, so that most conditions that exclude a group hold for it.
const CLASSES: [ToolClass; 4] = [
    ToolClass::Additive,
    ToolClass::ReadOnly,
    ToolClass::Destructive,
    ToolClass::Unannotated,
];

fn not_evaluable_warning(rule: &Rule, tool: &ToolDefinition, message: String, which: &str, at: Problem) -> Problem {
    let (tool, effect) = (&tool.target.id, what_then(rule));
    Problem {
        message: format!("{message}: it cannot judge calls of tool `{tool}` {which}, {effect}"),
        ..at
    }
}

/// What follows from a policy that cannot be evaluated.
fn what_then(rule: &Rule) -> &'static str {
    match (rule.effect, rule.shadow) {
        (Effect::Permit, _) => "the permit then does not count",
        (Effect::Forbid, false) => "they are then refused",
        (Effect::Forbid, true) => "they would then be refused",
    }
}

/// The problem of an argument that none of `tools` has. For a group, help is offered only if one edit turns the name into
/// an existing one: other names may be meant for tools added later.
fn missing_problem(rule: &Rule, tools: &[&ToolDefinition], missing: Vec<MissingArgument>) -> Option<Problem> {
    let near = missing.iter().find_map(|missing| Some((missing, missing.near.as_ref()?)));
    let is_slip = |(missing, near): &(&MissingArgument, &String)| is_one_edit(&missing.name, near);
    let near = near
        .filter(|found| rule.names_tools_only() || is_slip(found))
        .map(|(_, near)| near.clone());
    let first = missing.into_iter().min_by_key(|missing| missing.untyped.is_none())?;
    let path = &first.path;
    let message = match (first.untyped, tools) {
        (Some(why), [tool]) => format!(
            "argument `{path}` of tool `{}` cannot be read by policies: {why}",
            tool.target.id
        ),
        (Some(why), _) => format!("argument `{path}` of its tools cannot be read by policies: {why}"),
        (None, [tool]) => format!("tool `{}` has no argument `{path}`", tool.target.id),
        (None, _) => format!("none of its tools has an argument `{path}`"),
    };
    let mut problem = rule.problem_at_attribute(&first.name, message);
    problem.help = near.as_deref().map(did_you_mean);
    Some(problem)
}

/// The policies that can apply to each tool, by action and resource scope.
fn applicability(rules: &[Rule], entity_names: &EntityNames<'_>) -> Vec<Applicability> {
    let mut by_action: HashMap<&str, Vec<RuleIndex>> = HashMap::new();
    let mut anywhere = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        match rule.action.ids() {
            None => anywhere.push(index),
            Some(ids) => ids.iter().for_each(|id| by_action.entry(id).or_default().push(index)),
        }
    }
    let applicability = |tool: &ToolDefinition| {
        let target = &tool.target;
        let ids = target.groups.iter().chain([&target.id]);
        let by_name = ids.filter_map(|id| by_action.get(id.as_str())).flatten();
        let mut fitting: Vec<RuleIndex> = by_name.chain(&anywhere).copied().collect();
        fitting.retain(|index| match &rules[*index].resource {
            ResourceScope::Any | ResourceScope::Kind(PrimitiveKind::Tool) => true,
            ResourceScope::One(PrimitiveKind::Tool, id) => *id == target.id,
            ResourceScope::Server(None | Some(PrimitiveKind::Tool), server) => server == target.server.as_str(),
            ResourceScope::Kind(_) | ResourceScope::One(..) | ResourceScope::Server(..) | ResourceScope::Nothing => false,
        });
        fitting.sort_unstable();
        fitting.dedup();
        Applicability {
            rules: fitting,
            ..Applicability::default()
        }
    };
    entity_names.tools.iter().map(applicability).collect()
}
