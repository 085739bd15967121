//! Validates policies against the catalogue: the names in them exist, and they are well typed for every tool they can
//! apply to. All problems are reported at once.
//!
//! A policy that names a tool must be right for that tool. A policy for a group must also be right for tools that are
//! added later, so it is validated against an imaginary tool with every argument it mentions, each optional and of the
//! type its use shows. If a tool of the group declares such an argument with another type, the policy cannot be evaluated
//! for it: a forbid refuses its calls, a permit does not count. The policy's author cannot help that, so it is a warning.

mod unlisted;

use super::applicability::{Applicability, UnlistedApplicability, number};
use super::entity_names::{EntityNames, Lookup};
use super::inferred_args::{MissingArgument, conflict, infer_schema, make_untyped, missing_argument};
use super::rule::{ActionScope, PrincipalScope, ResourceScope, Rule, RuleIndex};
use super::usage::ArgumentRef;
use super::validator::{PolicyValidator, Validation, ValidationFinding};
use crate::decide::tool::arg_types::ArgSchema;
use crate::decide::tool::arguments;
use crate::decide::tool::primitive_kind::PrimitiveKind;
use crate::decide::tool::schema::{self, Action};
use crate::decide::tool::target::ToolDefinition;
use crate::domain::{PinStatus, Problem, did_you_mean, is_one_edit};
use cedar_policy::Effect;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// All findings, and the policies of each tool.
#[derive(Default)]
pub(in crate::decide) struct Checked {
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
    /// In the order of the drafts.
    pub applicability: Vec<Applicability>,
    /// For all resources and for all prompts, in the order of `PrimitiveKind::WARES`.
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
                    self.found.problems.push(rule.problem_at_entity(id, message));
                    self.unsound.insert(index);
                }
                Lookup::Unknown { kind, near } => {
                    let named = if kind == "server" {
                        id.split('/').next().unwrap_or(id)
                    } else {
                        id
                    };
                    let mut problem = rule.problem_at_entity(id, format!("there is no {kind} `{}`", arguments::cut(named)));
                    problem.help = near.as_deref().map(did_you_mean);
                    self.found.problems.push(problem);
                    self.unsound.insert(index);
                }
            }
        }
        for unknown in &rule.usage.unknown_attributes {
            let mut problem = rule.problem_at_attribute(&unknown.name, format!("`{}` has no `{}`", unknown.of, unknown.name));
            problem.help = unknown.near.map(did_you_mean);
            self.found.problems.push(problem);
            self.unsound.insert(index);
        }
        if let ActionScope::Is(group) = &rule.action
            && self.entity_names.is_group(group)
        {
            let problem = rule.problem_at_entity(group, format!("`{group}` is a group of actions, which no action equals"));
            self.found
                .problems
                .push(problem.help("write `action in` instead of `action ==`"));
            self.unsound.insert(index);
        }
        if rule.principal == PrincipalScope::Nobody {
            let problem = rule.problem("no caller can be the principal of its scope");
            let help = "callers are `Guardian::User` or `Guardian::Service`, in `Guardian::Role`";
            self.found.problems.push(problem.help(help));
            self.unsound.insert(index);
        }
        if rule.resource == ResourceScope::Nothing {
            let problem = rule.problem("nothing can be the resource of its scope");
            let help = "there are `Guardian::Tool`, `Guardian::Resource` and `Guardian::Prompt`, in `Guardian::Server`";
            self.found.problems.push(problem.help(help));
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
            .filter(|(applicability, uncompiled)| {
                applicability.has(index) && (!rule.names_tools_only() || rule.names_tool(&uncompiled.target.id))
            })
            .map(|(_, uncompiled)| uncompiled)
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
                (false, Some(_)) => self.found.warnings.push(problem),
                (false, None) => {}
            }
        }
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
        for ((fields, actions), indices) in alike {
            let is_group = |id: &&str| !id.contains('/') && !PrimitiveKind::is_action(id);
            let groups = actions.iter().map(String::as_str).filter(is_group);
            let any_tool = Action {
                kind: PrimitiveKind::Tool,
                id: "any tool",
                groups: schema::GROUPS
                    .into_iter()
                    .chain(groups)
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .collect(),
                input: Some(&fields),
            };
            for finding in self.validate(any_tool, &indices).findings {
                let index = finding.rule;
                if !finding.unguarded && self.holds_for_some_tool(index) {
                    continue;
                }
                self.found.problems.push(finding.problem);
                self.unsound.insert(index);
            }
        }
    }

    /// Whether the policy is well typed for a real tool. If it is, the error came from a guessed type and is none.
    fn holds_for_some_tool(&mut self, index: usize) -> bool {
        let (supposed, guessed) = infer_schema(&self.rules[index].usage.arguments);
        if !guessed {
            return false;
        }
        let has_any =
            |uncompiled: &&ToolDefinition| supposed.keys().any(|name| uncompiled.arguments.arg_schema.contains_key(name));
        let applicability = self.entity_names.tools.iter().zip(&self.found.applicability);
        let tools = applicability
            .filter(|(_, applicability)| applicability.has(index))
            .map(|(uncompiled, _)| uncompiled);
        let tools: Vec<&ToolDefinition> = tools.filter(has_any).collect();
        tools
            .into_iter()
            .any(|uncompiled| self.validate(uncompiled.action(), &[index]).findings.is_empty())
    }

    /// Validates every policy for every tool that it can apply to.
    fn check_tools(&mut self) {
        for (position, uncompiled) in self.entity_names.tools.iter().enumerate() {
            let indices: Vec<usize> = self.found.applicability[position]
                .rules
                .iter()
                .map(|rule| *rule as usize)
                .collect();
            let indices: Vec<usize> = indices.into_iter().filter(|index| self.differs(*index, uncompiled)).collect();
            if indices.is_empty() {
                continue;
            }
            let Validation {
                findings, impossible, ..
            } = self.validate(uncompiled.action(), &indices);
            let wrong: BTreeSet<usize> = findings.iter().map(|finding| finding.rule).collect();
            let idle = impossible
                .difference(&wrong)
                .filter(|index| !self.rules[**index].usage.may_fail);
            self.found.applicability[position]
                .never_matching
                .extend(idle.map(|index| number(*index)));
            for finding in findings {
                let rule = &self.rules[finding.rule];
                if rule.names_tool(&uncompiled.target.id) && uncompiled.entry.pin_status != PinStatus::Unapproved {
                    self.found.problems.push(finding.problem);
                    continue;
                }
                let index = finding.rule;
                if !self.found.applicability[position].is_known_mismatch(number(index)) {
                    self.record_mismatch(position, finding);
                }
            }
        }
    }

    /// Records that a policy for a group is ill typed for one tool: because of arguments with another type, or in any
    /// case.
    fn record_mismatch(&mut self, position: usize, finding: ValidationFinding) {
        let uncompiled = &self.entity_names.tools[position];
        let rule = &self.rules[finding.rule];
        let (supposed, _) = infer_schema(&rule.usage.arguments);
        let arguments = rule.usage.arguments.iter().enumerate();
        let conflicts: Vec<(usize, &ArgumentRef)> = arguments
            .filter(|(_, argument)| conflict(&uncompiled.arguments.arg_schema, &supposed, &argument.path))
            .collect();
        let mut without = uncompiled.arguments.arg_schema.clone();
        conflicts
            .iter()
            .for_each(|(_, argument)| make_untyped(&mut without, &argument.path));
        let action = Action {
            input: Some(&without),
            ..uncompiled.action()
        };
        let settled = !conflicts.is_empty() && self.validate(action, &[finding.rule]).findings.is_empty();

        let applicability = &mut self.found.applicability[position];
        let which = if settled {
            applicability
                .conflicts
                .extend(conflicts.iter().map(|(mention, _)| (number(finding.rule), *mention)));
            let names: BTreeSet<String> = conflicts
                .iter()
                .map(|(_, argument)| format!("`{}`", argument.path.join(".")))
                .collect();
            format!("with {}", names.into_iter().collect::<Vec<_>>().join(" or "))
        } else {
            applicability.not_evaluable.insert(number(finding.rule));
            "at all".to_owned()
        };
        let (message, at) = (finding.problem.message.clone(), finding.problem);
        let help = "the tool has the argument in another type than the policy takes it for";
        self.found
            .warnings
            .push(not_evaluable_warning(rule, uncompiled, message, &which, at).help(help));
    }

    /// Warns about a mentioned argument that a tool declares without a type that policies can read.
    fn check_untyped(&mut self) {
        for (uncompiled, applicability) in self.entity_names.tools.iter().zip(&self.found.applicability) {
            for index in &applicability.rules {
                let rule = &self.rules[*index as usize];
                let holes = rule
                    .usage
                    .arguments
                    .iter()
                    .filter_map(|argument| missing_argument(&uncompiled.arguments.arg_schema, &argument.path));
                if let Some(hole) = holes.into_iter().find(|missing| missing.untyped.is_some()) {
                    let at = rule.problem_at_attribute(&hole.name, "");
                    let message = format!("policy `{}`: it asks for `{}`", rule.id, hole.path);
                    let which = format!("with `{}`", hole.path);
                    let help = "the tool's schema gives the argument no type that policies can read";
                    self.found
                        .warnings
                        .push(not_evaluable_warning(rule, uncompiled, message, &which, at).help(help));
                }
            }
        }
    }

    /// Whether validation for this tool can differ from validation for the imaginary tool.
    fn differs(&self, index: usize, uncompiled: &ToolDefinition) -> bool {
        let rule = &self.rules[index];
        let may = self.asks_for_actions[index] || rule.reads_input() || rule.names_tool(&uncompiled.target.id);
        may && !self.unsound.contains(&index)
    }

    fn asks_for_actions(&self, index: usize) -> bool {
        let in_scope = |id: &String| match &self.rules[index].action {
            ActionScope::Any => false,
            ActionScope::Is(other) => id == other,
            ActionScope::In(ids) => ids.contains(id),
        };
        !self.validator.actions(index).iter().all(in_scope)
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

    /// Warns about valid policies that can have no effect.
    fn check_impossible(&mut self) {
        for (index, rule) in self.rules.iter().enumerate() {
            let fits = || self.found.applicability.iter().any(|applicability| applicability.has(index));
            let for_nothing = || !PrimitiveKind::ALL.iter().any(|kind| rule.can_match(*kind));
            if (rule.names_tools_only() || for_nothing())
                && !self.unsound.contains(&index)
                && !self.unchecked.contains(&index)
                && !fits()
            {
                self.found
                    .warnings
                    .push(rule.problem("nothing is of its action and of its resource: it has no effect"));
            }
            if self.seen[index] && !self.possible[index] && !self.unsound.contains(&index) {
                self.found
                    .warnings
                    .push(rule.problem("its conditions can never hold: it has no effect"));
            }
        }
    }
}

fn not_evaluable_warning(rule: &Rule, uncompiled: &ToolDefinition, message: String, which: &str, at: Problem) -> Problem {
    let effect = match (rule.effect, rule.shadow) {
        (Effect::Permit, _) => "the permit then does not count",
        (Effect::Forbid, false) => "they are then refused",
        (Effect::Forbid, true) => "they would then be refused",
    };
    let tool = &uncompiled.target.id;
    Problem {
        message: format!("{message}: it cannot judge calls of tool `{tool}` {which}, {effect}"),
        ..at
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
        let ids: &[String] = match &rule.action {
            ActionScope::Any => &[],
            ActionScope::Is(id) => std::slice::from_ref(id),
            ActionScope::In(ids) => ids,
        };
        match rule.action {
            ActionScope::Any => anywhere.push(number(index)),
            _ => ids.iter().for_each(|id| by_action.entry(id).or_default().push(number(index))),
        }
    }
    let applicability = |uncompiled: &ToolDefinition| {
        let target = &uncompiled.target;
        let ids = target.groups.iter().chain([&target.id]);
        let by_name = ids.filter_map(|id| by_action.get(id.as_str())).flatten();
        let mut fitting: Vec<RuleIndex> = by_name.chain(&anywhere).copied().collect();
        fitting.retain(|index| match &rules[*index as usize].resource {
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
