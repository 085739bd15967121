//! Validates policies against the catalogue: the names in them exist, and they are well typed for every tool they can
//! apply to. All problems are reported at once.
//!
//! A policy that names a tool must be right for that tool. A policy for a group must also be right for tools that are
//! added later, so it is validated against an imaginary tool with every argument it mentions, each optional and of the
//! type its use shows. If a tool of the group declares such an argument with another type, the policy cannot be evaluated
//! for it: a forbid refuses its calls, a permit does not count. The policy's author cannot help that, so it is a warning.

mod wares;

use super::known::{Found, Known};
use super::reads::Mention;
use super::rule::{ActionScope, PrincipalScope, ResourceScope, Rule};
use super::schema::{self, Action};
use super::shape::Fields;
use super::slice::RuleIndex;
use super::snapshot::Draft;
use super::sort::Sort;
use super::suppose::{Absent, absent, conflict, hide, supposed};
use super::typing::{Finding, Typing, Typist};
use super::{Problem, arguments};
use crate::domain::PinStatus;
use cedar_policy::Effect;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// All findings, and the policies of each tool.
#[derive(Default)]
pub(super) struct Checked {
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
    /// In the order of the drafts.
    pub fits: Vec<Fit>,
    /// For all resources and for all prompts, in the order of `Sort::WARES`.
    pub wares: Vec<WareFit>,
}

/// The policies for all resources or all prompts, and the arguments they can see.
pub(super) struct WareFit {
    pub sort: Sort,
    pub fit: Fit,
    pub fields: Fields,
}

/// The policies that can apply to one tool, and those of them that cannot be evaluated for it.
#[derive(Default)]
pub(super) struct Fit {
    pub rules: Vec<RuleIndex>,
    /// Policies that are ill typed for the tool, whatever a call carries.
    pub unjudgeable: BTreeSet<RuleIndex>,
    /// Policies whose conditions no call of the tool can satisfy, as long as they see the arguments they name.
    pub idle: BTreeSet<RuleIndex>,
    /// Policies that are ill typed for the tool only if a call carries the mentioned argument; the number is its position
    /// in `mentions`.
    pub conflicts: BTreeSet<(RuleIndex, usize)>,
}

impl Fit {
    /// The same, for some of its policies.
    pub fn of(&self, rules: Vec<RuleIndex>) -> Self {
        let among = |set: &BTreeSet<RuleIndex>| rules.iter().copied().filter(|rule| set.contains(rule)).collect();
        let conflicts = rules
            .iter()
            .flat_map(|rule| self.conflicts.range((*rule, 0)..=(*rule, usize::MAX)));
        Self {
            unjudgeable: among(&self.unjudgeable),
            idle: among(&self.idle),
            conflicts: conflicts.copied().collect(),
            rules,
        }
    }

    fn has(&self, index: usize) -> bool {
        self.rules.binary_search(&number(index)).is_ok()
    }

    fn is_settled(&self, rule: RuleIndex) -> bool {
        self.unjudgeable.contains(&rule) || self.conflicts.iter().any(|(other, _)| *other == rule)
    }
}

/// Validates all policies.
pub(super) fn check(rules: &[Rule], known: &Known<'_>) -> Checked {
    let mut check = Check {
        rules,
        known,
        found: Checked::default(),
        typist: Typist::new(rules, known),
        asks_for_actions: Vec::new(),
        unsound: BTreeSet::new(),
        unchecked: BTreeSet::new(),
        possible: vec![false; rules.len()],
        seen: vec![false; rules.len()],
    };
    check.asks_for_actions = (0..rules.len()).map(|index| check.asks_for_actions(index)).collect();
    for index in 0..rules.len() {
        check.names(index);
    }
    check.found.fits = fits(rules, known);
    for index in 0..rules.len() {
        check.arguments(index);
    }
    check.groups();
    check.tools();
    check.holes();
    check.wares();
    check.impossible();
    check.found.problems = one_a_place(check.found.problems);
    check.found.warnings.dedup();
    check.found
}

/// Keeps one problem per position: the validator repeats a mistake for users, for services and for every tool.
fn one_a_place(mut problems: Vec<Problem>) -> Vec<Problem> {
    fn place(problem: &Problem) -> (&Option<String>, Option<usize>, Option<usize>) {
        (&problem.file, problem.line, problem.column)
    }
    problems.sort_by(|a, b| place(a).cmp(&place(b)).then_with(|| b.message.cmp(&a.message)));
    problems.dedup_by(|a, b| place(a) == place(b));
    problems
}

struct Check<'a> {
    rules: &'a [Rule],
    known: &'a Known<'a>,
    found: Checked,
    typist: Typist<'a>,
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

impl Check<'_> {
    /// Checks that every action, tool and server exists, and that the scope can match something.
    fn names(&mut self, index: usize) {
        let rule = &self.rules[index];
        for uid in self.typist.literals(index) {
            let id = uid.id().unescaped();
            match self.known.look_up(uid.type_name().basename(), id) {
                Found::Known => {}
                Found::Unchecked(server) => {
                    let message = format!("the tools of server `{server}` are not known yet: not checked");
                    self.found.warnings.push(rule.problem_at_entity(id, message));
                    self.unchecked.insert(index);
                }
                Found::Never(why) => {
                    let message = format!("nothing is called `{}`: {why}", arguments::cut(id));
                    self.found.problems.push(rule.problem_at_entity(id, message));
                    self.unsound.insert(index);
                }
                Found::Unknown { kind, near } => {
                    let named = if kind == "server" {
                        id.split('/').next().unwrap_or(id)
                    } else {
                        id
                    };
                    let mut problem = rule.problem_at_entity(id, format!("there is no {kind} `{}`", arguments::cut(named)));
                    problem.help = near.map(|near| format!("did you mean `{near}`?"));
                    self.found.problems.push(problem);
                    self.unsound.insert(index);
                }
            }
        }
        for unknown in &rule.looks.unknown {
            let mut problem = rule.problem_at_attribute(&unknown.name, format!("`{}` has no `{}`", unknown.of, unknown.name));
            problem.help = unknown.near.map(|near| format!("did you mean `{near}`?"));
            self.found.problems.push(problem);
            self.unsound.insert(index);
        }
        if let ActionScope::Is(group) = &rule.action
            && self.known.is_group(group)
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
    fn arguments(&mut self, index: usize) {
        let rule = &self.rules[index];
        if self.unsound.contains(&index) || rule.looks.mentions.is_empty() {
            return;
        }
        let fits = self.found.fits.iter().zip(self.known.drafts);
        let tools: Vec<&Draft> = fits
            .filter(|(fit, draft)| fit.has(index) && (!rule.names_tools_only() || rule.names_tool(&draft.place.id)))
            .map(|(_, draft)| draft)
            .collect();
        if tools.is_empty() {
            return;
        }
        for mention in &rule.looks.mentions {
            let absent = tools.iter().map(|tool| absent(tool.arguments.fields(), &mention.path));
            let Some(absent) = absent.collect::<Option<Vec<Absent>>>() else {
                continue;
            };
            let Some(problem) = missing(rule, &tools, absent) else {
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
    fn groups(&mut self) {
        let mut alike: BTreeMap<(Fields, BTreeSet<String>), Vec<usize>> = BTreeMap::new();
        for (index, rule) in self.rules.iter().enumerate() {
            if !rule.names_tools_only() && rule.reaches(Sort::Tool) && !self.unsound.contains(&index) {
                let actions = self.typist.actions(index);
                alike
                    .entry((supposed(&rule.looks.mentions).0, actions))
                    .or_default()
                    .push(index);
            }
        }
        for ((fields, actions), indices) in alike {
            let is_group = |id: &&str| !id.contains('/') && !Sort::is_action(id);
            let groups = actions.iter().map(String::as_str).filter(is_group);
            let any_tool = Action {
                sort: Sort::Tool,
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
        let (supposed, guessed) = supposed(&self.rules[index].looks.mentions);
        if !guessed {
            return false;
        }
        let has_any = |draft: &&Draft| supposed.keys().any(|name| draft.arguments.fields().contains_key(name));
        let fits = self.known.drafts.iter().zip(&self.found.fits);
        let tools = fits.filter(|(_, fit)| fit.has(index)).map(|(draft, _)| draft);
        let tools: Vec<&Draft> = tools.filter(has_any).collect();
        tools
            .into_iter()
            .any(|draft| self.validate(draft.action(), &[index]).findings.is_empty())
    }

    /// Validates every policy for every tool that it can apply to.
    fn tools(&mut self) {
        for (position, draft) in self.known.drafts.iter().enumerate() {
            let indices: Vec<usize> = self.found.fits[position].rules.iter().map(|rule| *rule as usize).collect();
            let indices: Vec<usize> = indices.into_iter().filter(|index| self.differs(*index, draft)).collect();
            if indices.is_empty() {
                continue;
            }
            let Typing {
                findings, impossible, ..
            } = self.validate(draft.action(), &indices);
            let wrong: BTreeSet<usize> = findings.iter().map(|finding| finding.rule).collect();
            let idle = impossible
                .difference(&wrong)
                .filter(|index| !self.rules[**index].looks.can_err);
            self.found.fits[position].idle.extend(idle.map(|index| number(*index)));
            for finding in findings {
                let rule = &self.rules[finding.rule];
                if rule.names_tool(&draft.place.id) && draft.entry.pin_status != PinStatus::Unapproved {
                    self.found.problems.push(finding.problem);
                    continue;
                }
                let index = finding.rule;
                if !self.found.fits[position].is_settled(number(index)) {
                    self.settle(position, finding);
                }
            }
        }
    }

    /// Records that a policy for a group is ill typed for one tool: because of arguments with another type, or in any
    /// case.
    fn settle(&mut self, position: usize, finding: Finding) {
        let draft = &self.known.drafts[position];
        let rule = &self.rules[finding.rule];
        let (supposed, _) = supposed(&rule.looks.mentions);
        let mentions = rule.looks.mentions.iter().enumerate();
        let conflicts: Vec<(usize, &Mention)> = mentions
            .filter(|(_, mention)| conflict(draft.arguments.fields(), &supposed, &mention.path))
            .collect();
        let mut without = draft.arguments.fields().clone();
        conflicts.iter().for_each(|(_, mention)| hide(&mut without, &mention.path));
        let action = Action {
            input: Some(&without),
            ..draft.action()
        };
        let settled = !conflicts.is_empty() && self.validate(action, &[finding.rule]).findings.is_empty();

        let fit = &mut self.found.fits[position];
        let which = if settled {
            fit.conflicts
                .extend(conflicts.iter().map(|(mention, _)| (number(finding.rule), *mention)));
            let names: BTreeSet<String> = conflicts
                .iter()
                .map(|(_, mention)| format!("`{}`", mention.path.join(".")))
                .collect();
            format!("with {}", names.into_iter().collect::<Vec<_>>().join(" or "))
        } else {
            fit.unjudgeable.insert(number(finding.rule));
            "at all".to_owned()
        };
        let (message, at) = (finding.problem.message.clone(), finding.problem);
        let help = "the tool has the argument in another type than the policy takes it for";
        self.found
            .warnings
            .push(cannot_judge(rule, draft, message, &which, at).help(help));
    }

    /// Warns about a mentioned argument that a tool declares without a type that policies can read.
    fn holes(&mut self) {
        for (draft, fit) in self.known.drafts.iter().zip(&self.found.fits) {
            for index in &fit.rules {
                let rule = &self.rules[*index as usize];
                let holes = rule
                    .looks
                    .mentions
                    .iter()
                    .filter_map(|mention| absent(draft.arguments.fields(), &mention.path));
                if let Some(hole) = holes.into_iter().find(|absent| absent.hole.is_some()) {
                    let at = rule.problem_at_attribute(&hole.name, "");
                    let message = format!("policy `{}`: it asks for `{}`", rule.id, hole.path);
                    let which = format!("with `{}`", hole.path);
                    let help = "the tool's schema gives the argument no type that policies can read";
                    self.found
                        .warnings
                        .push(cannot_judge(rule, draft, message, &which, at).help(help));
                }
            }
        }
    }

    /// Whether validation for this tool can differ from validation for the imaginary tool.
    fn differs(&self, index: usize, draft: &Draft) -> bool {
        let rule = &self.rules[index];
        let may = self.asks_for_actions[index] || rule.reads_input() || rule.names_tool(&draft.place.id);
        may && !self.unsound.contains(&index)
    }

    fn asks_for_actions(&self, index: usize) -> bool {
        let in_scope = |id: &String| match &self.rules[index].action {
            ActionScope::Any => false,
            ActionScope::Is(other) => id == other,
            ActionScope::In(ids) => ids.contains(id),
        };
        !self.typist.actions(index).iter().all(in_scope)
    }

    /// Runs the validator. It records warnings and satisfiability on the side, and each policy's warnings only once.
    fn validate(&mut self, action: Action<'_>, indices: &[usize]) -> Typing {
        let mut typing = self.typist.hold(action, indices);
        for (index, warning) in std::mem::take(&mut typing.warnings) {
            if !self.seen[index] {
                self.found.warnings.push(warning);
            }
        }
        for index in indices {
            self.seen[*index] = true;
            self.possible[*index] |= !typing.impossible.contains(index);
        }
        typing
    }

    /// Warns about valid policies that can have no effect.
    fn impossible(&mut self) {
        for (index, rule) in self.rules.iter().enumerate() {
            let fits = || self.found.fits.iter().any(|fit| fit.has(index));
            let for_nothing = || !Sort::ALL.iter().any(|sort| rule.reaches(*sort));
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

fn cannot_judge(rule: &Rule, draft: &Draft, message: String, which: &str, at: Problem) -> Problem {
    let effect = match (rule.effect, rule.shadow) {
        (Effect::Permit, _) => "the permit then does not count",
        (Effect::Forbid, false) => "they are then refused",
        (Effect::Forbid, true) => "they would then be refused",
    };
    let tool = &draft.place.id;
    Problem {
        message: format!("{message}: it cannot judge calls of tool `{tool}` {which}, {effect}"),
        ..at
    }
}

/// The problem of an argument that none of `tools` has. For a group, help is offered only if one edit turns the name into
/// an existing one: other names may be meant for tools added later.
fn missing(rule: &Rule, tools: &[&Draft], absent: Vec<Absent>) -> Option<Problem> {
    let near = absent.iter().find_map(|absent| Some((absent, absent.near.as_ref()?)));
    let is_slip = |(absent, near): &(&Absent, &String)| strsim::damerau_levenshtein(near, &absent.name) == 1;
    let near = near
        .filter(|found| rule.names_tools_only() || is_slip(found))
        .map(|(_, near)| near.clone());
    let first = absent.into_iter().min_by_key(|absent| absent.hole.is_none())?;
    let path = &first.path;
    let message = match (first.hole, tools) {
        (Some(why), [tool]) => format!(
            "argument `{path}` of tool `{}` cannot be read by policies: {why}",
            tool.place.id
        ),
        (Some(why), _) => format!("argument `{path}` of its tools cannot be read by policies: {why}"),
        (None, [tool]) => format!("tool `{}` has no argument `{path}`", tool.place.id),
        (None, _) => format!("none of its tools has an argument `{path}`"),
    };
    let mut problem = rule.problem_at_attribute(&first.name, message);
    problem.help = near.map(|near| format!("did you mean `{near}`?"));
    Some(problem)
}

/// The policies that can apply to each tool, by action and resource scope.
fn fits(rules: &[Rule], known: &Known<'_>) -> Vec<Fit> {
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
    let fit = |draft: &Draft| {
        let place = &draft.place;
        let ids = place.groups.iter().chain([&place.id]);
        let by_name = ids.filter_map(|id| by_action.get(id.as_str())).flatten();
        let mut fitting: Vec<RuleIndex> = by_name.chain(&anywhere).copied().collect();
        fitting.retain(|index| match &rules[*index as usize].resource {
            ResourceScope::Any | ResourceScope::Sort(Sort::Tool) => true,
            ResourceScope::One(Sort::Tool, id) => *id == place.id,
            ResourceScope::Server(None | Some(Sort::Tool), server) => server == place.server.as_str(),
            ResourceScope::Sort(_) | ResourceScope::One(..) | ResourceScope::Server(..) | ResourceScope::Nothing => false,
        });
        fitting.sort_unstable();
        fitting.dedup();
        Fit {
            rules: fitting,
            ..Fit::default()
        }
    };
    known.drafts.iter().map(fit).collect()
}

fn number(index: usize) -> RuleIndex {
    RuleIndex::try_from(index).expect("fewer policies than would fit into memory")
}
