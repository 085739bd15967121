//! Holds policies against the catalogue: the names in them exist, and they are typed rightly for every tool that they
//! can apply to. All problems are found at once.
//!
//! A policy that names a tool must be right for that tool. A policy for a group must be right for tools yet to come:
//! it is held against a tool that has every argument it mentions, each optional and of the type its use shows. If a
//! tool of the group then has such an argument in another type, that is the tool's doing: the policy cannot be judged
//! for it (a forbid refuses its calls, a permit does not count), which is a warning.

use super::problem::nearest;
use super::reads::Mention;
use super::rule::{ActionScope, PrincipalScope, ResourceScope, Rule};
use super::schema::{self, Action};
use super::shape::Fields;
use super::slice::RuleIndex;
use super::snapshot::Draft;
use super::suppose::{Absent, absent, conflict, hide, supposed};
use super::{Problem, arguments};
use crate::domain::{Catalogue, ServerName, Standing};
use cedar_policy::{Effect, EntityUid, PolicySet, ValidationError, ValidationMode, ValidationWarning, Validator};
use miette::Diagnostic;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What was found, and which rules each tool has.
#[derive(Default)]
pub(super) struct Checked {
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
    /// In the order of the drafts.
    pub fits: Vec<Fit>,
}

/// The rules of one tool, and what of them cannot be judged for it.
#[derive(Default)]
pub(super) struct Fit {
    pub rules: Vec<RuleIndex>,
    /// Rules that are wrong for the tool whatever a call carries.
    pub unjudgeable: BTreeSet<RuleIndex>,
    /// Rules whose conditions no call of the tool can meet, as far as they see its arguments.
    pub idle: BTreeSet<RuleIndex>,
    /// Rules that are wrong for the tool if a call carries what they mention there.
    pub conflicts: BTreeSet<(RuleIndex, usize)>,
}

/// The names that exist.
pub(super) struct Known<'a> {
    drafts: &'a [Draft],
    by_id: HashMap<&'a str, &'a Draft>,
    /// Each server with whether any of its tools is known.
    servers: BTreeMap<&'a str, bool>,
}

impl Fit {
    fn has(&self, index: usize) -> bool {
        self.rules.binary_search(&number(index)).is_ok()
    }

    fn is_settled(&self, rule: RuleIndex) -> bool {
        self.unjudgeable.contains(&rule) || self.conflicts.iter().any(|(other, _)| *other == rule)
    }
}

impl<'a> Known<'a> {
    pub fn new(catalogue: &'a Catalogue, drafts: &'a [Draft]) -> Self {
        let servers = catalogue.servers.iter();
        Self {
            drafts,
            by_id: drafts.iter().map(|draft| (draft.place.id.as_str(), draft)).collect(),
            servers: servers
                .map(|(name, entry)| (ServerName::as_str(name), !entry.tools.is_empty()))
                .collect(),
        }
    }

    fn is_group(&self, id: &str) -> bool {
        schema::GROUPS.contains(&id) || self.servers.contains_key(id)
    }

    fn look_up(&self, kind: &str, id: &str) -> Found {
        match kind {
            "Action" if self.is_group(id) => Found::Known,
            "Action" => self.tool("action", id, schema::GROUPS.into_iter().chain(self.servers.keys().copied())),
            "Tool" => self.tool("tool", id, []),
            "Server" if !self.servers.contains_key(id) => Found::Unknown {
                kind: "server",
                near: nearest(id, self.servers.keys().copied()).map(str::to_owned),
            },
            _ => Found::Known,
        }
    }

    fn tool<'b>(&'b self, kind: &'static str, id: &str, others: impl IntoIterator<Item = &'b str>) -> Found {
        if self.by_id.contains_key(id) {
            return Found::Known;
        }
        let parts = id.split_once('/');
        if let Some((server, _)) = parts
            && self.servers.get(server) == Some(&false)
        {
            return Found::Unchecked(server.to_owned());
        }
        let tools = || self.drafts.iter().map(|draft| draft.place.id.as_str());
        let near = nearest(id, tools().chain(others)).map(str::to_owned);
        let on_server = || {
            let (server, tool) = parts?;
            let names = tools().filter_map(|id| id.strip_prefix(server)?.strip_prefix('/'));
            nearest(tool, names).map(|tool| format!("{server}/{tool}"))
        };
        Found::Unknown {
            kind,
            near: near.or_else(on_server),
        }
    }
}

/// What is known of a name.
enum Found {
    Known,
    /// A tool of this server, which has not shown any yet.
    Unchecked(String),
    Unknown {
        kind: &'static str,
        near: Option<String>,
    },
}

pub(super) fn check(rules: &[Rule], known: &Known<'_>) -> Checked {
    let mut check = Check {
        rules,
        known,
        found: Checked::default(),
        literals: rules.iter().map(literals).collect(),
        asks_for_actions: Vec::new(),
        unsound: BTreeSet::new(),
        unchecked: BTreeSet::new(),
        possible: vec![false; rules.len()],
        seen: vec![false; rules.len()],
    };
    check.asks_for_actions = rules
        .iter()
        .zip(&check.literals)
        .map(|(rule, literals)| asks_for_actions(rule, literals))
        .collect();
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
    check.impossible();
    check.found.problems = one_a_place(check.found.problems);
    check.found.warnings.dedup();
    check.found
}

/// The same mistake is found for users and for services, and for every tool.
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
    /// The actions, tools and servers that each rule names anywhere.
    literals: Vec<Vec<EntityUid>>,
    /// Whether the conditions of each rule name actions beside those of its scope.
    asks_for_actions: Vec<bool>,
    /// Rules of which enough is said already.
    unsound: BTreeSet<usize>,
    /// Rules that name tools of which nothing is known yet.
    unchecked: BTreeSet<usize>,
    /// Whether some kind of call could satisfy each rule, and whether it was looked at.
    possible: Vec<bool>,
    seen: Vec<bool>,
}

/// What Cedar says of one rule.
struct Finding {
    rule: usize,
    problem: Problem,
    /// An argument is read without asking first whether it is there.
    unguarded: bool,
}

impl Check<'_> {
    /// Every action, tool and server exists, and the scope can match something.
    fn names(&mut self, index: usize) {
        let rule = &self.rules[index];
        for uid in &self.literals[index] {
            let id = uid.id().unescaped();
            match self.known.look_up(uid.type_name().basename(), id) {
                Found::Known => {}
                Found::Unchecked(server) => {
                    let message = format!("the tools of server `{server}` are not known yet: not checked");
                    self.found.warnings.push(rule.problem_at_entity(id, message));
                    self.unchecked.insert(index);
                }
                Found::Unknown { kind, near } => {
                    let mut problem = rule.problem_at_entity(id, format!("there is no {kind} `{}`", arguments::cut(id)));
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
            let problem = rule.problem("no tool can be the resource of its scope");
            self.found
                .problems
                .push(problem.help("tools are `Guardian::Tool`, in `Guardian::Server`"));
            self.unsound.insert(index);
        }
    }

    /// Every argument of a policy that names tools is one of them; in a group, a name that is nearly one is remarked on.
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

    /// Policies that are not only for tools they name, against a tool with all that they mention.
    fn groups(&mut self) {
        let mut alike: BTreeMap<(Fields, BTreeSet<String>), Vec<usize>> = BTreeMap::new();
        for (index, rule) in self.rules.iter().enumerate() {
            if !rule.names_tools_only() && !self.unsound.contains(&index) {
                let actions = actions(&self.literals[index]);
                alike
                    .entry((supposed(&rule.looks.mentions).0, actions))
                    .or_default()
                    .push(index);
            }
        }
        for ((fields, actions), indices) in alike {
            let groups = actions.iter().map(String::as_str).filter(|id| !id.contains('/'));
            let any_tool = Action {
                id: "any tool",
                groups: schema::GROUPS
                    .into_iter()
                    .chain(groups)
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .collect(),
                input: Some(&fields),
            };
            for finding in self.validate(any_tool, &indices).0 {
                let index = finding.rule;
                if !finding.unguarded && self.holds_for_some_tool(index) {
                    continue;
                }
                self.found.problems.push(finding.problem);
                self.unsound.insert(index);
            }
        }
    }

    /// When a type had to be guessed, a tool for which the policy is right shows that it can be.
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
            .any(|draft| self.validate(draft.action(), &[index]).0.is_empty())
    }

    /// Every policy against every tool that it can apply to.
    fn tools(&mut self) {
        for (position, draft) in self.known.drafts.iter().enumerate() {
            let indices: Vec<usize> = self.found.fits[position].rules.iter().map(|rule| *rule as usize).collect();
            let indices: Vec<usize> = indices.into_iter().filter(|index| self.differs(*index, draft)).collect();
            if indices.is_empty() {
                continue;
            }
            let (findings, impossible) = self.validate(draft.action(), &indices);
            let wrong: BTreeSet<usize> = findings.iter().map(|finding| finding.rule).collect();
            let idle = impossible
                .difference(&wrong)
                .filter(|index| !self.rules[**index].looks.can_err);
            self.found.fits[position].idle.extend(idle.map(|index| number(*index)));
            for finding in findings {
                let rule = &self.rules[finding.rule];
                if rule.names_tool(&draft.place.id) && draft.entry.standing != Standing::Unapproved {
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

    /// A policy for a group is wrong for one tool of it: because of arguments in another type, or altogether.
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
        let settled = !conflicts.is_empty() && self.validate(action, &[finding.rule]).0.is_empty();

        let fit = &mut self.found.fits[position];
        let which = match settled {
            true => {
                fit.conflicts
                    .extend(conflicts.iter().map(|(mention, _)| (number(finding.rule), *mention)));
                let names: BTreeSet<String> = conflicts
                    .iter()
                    .map(|(_, mention)| format!("`{}`", mention.path.join(".")))
                    .collect();
                format!("with {}", names.into_iter().collect::<Vec<_>>().join(" or "))
            }
            false => {
                fit.unjudgeable.insert(number(finding.rule));
                "at all".to_owned()
            }
        };
        let (message, at) = (finding.problem.message.clone(), finding.problem);
        let help = "the tool has the argument in another type than the policy takes it for";
        self.found
            .warnings
            .push(cannot_judge(rule, draft, message, &which, at).help(help));
    }

    /// Arguments that a policy for a group asks for and that a tool has in no type that policies can read.
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

    /// Whether the rule could be typed otherwise for this tool than for any tool.
    fn differs(&self, index: usize, draft: &Draft) -> bool {
        let rule = &self.rules[index];
        let may = self.asks_for_actions[index] || rule.reads_input() || rule.names_tool(&draft.place.id);
        may && !self.unsound.contains(&index)
    }

    /// Asks Cedar about some rules for one action: what is wrong, and which can never be satisfied.
    fn validate(&mut self, action: Action<'_>, indices: &[usize]) -> (Vec<Finding>, BTreeSet<usize>) {
        let named: BTreeSet<String> = indices.iter().flat_map(|index| actions(&self.literals[*index])).collect();
        let mut declared: Vec<Action<'_>> = Vec::new();
        let mut groups: BTreeSet<&str> = schema::GROUPS.into_iter().chain(action.groups.iter().copied()).collect();
        for id in named.iter().filter(|id| **id != action.id) {
            match (self.known.by_id.get(id.as_str()), id.contains('/')) {
                (Some(draft), _) => {
                    groups.extend(draft.place.groups.iter().map(String::as_str));
                    declared.push(Action {
                        input: None,
                        ..draft.action()
                    });
                }
                (None, true) => declared.push(Action {
                    id,
                    groups: Vec::new(),
                    input: None,
                }),
                (None, false) => {
                    groups.insert(id);
                }
            }
        }
        declared.push(action);
        let schema = match schema::schema(groups, &declared) {
            Ok(schema) => schema,
            Err(error) => {
                let problem = |rule: &usize| self.rules[*rule].problem(format!("the schema of a tool is not usable: {error}"));
                let finding = |rule: &usize| Finding {
                    rule: *rule,
                    problem: problem(rule),
                    unguarded: true,
                };
                return (indices.iter().map(finding).collect(), BTreeSet::new());
            }
        };
        let policies = indices.iter().map(|index| self.rules[*index].policy.clone());
        let set = PolicySet::from_policies(policies).expect("each rule has a number of its own");
        let result = Validator::new(schema).validate(&set, ValidationMode::Strict);
        let mut impossible = BTreeSet::new();
        for warning in result.validation_warnings() {
            let index = place(warning.policy_id());
            match warning {
                ValidationWarning::ImpossiblePolicy(_) => {
                    impossible.insert(index);
                }
                ValidationWarning::InvalidActionApplication(_) => {}
                other if !self.seen[index] => {
                    let problem = self.rules[index].problem(message(other, index));
                    self.found.warnings.push(problem);
                }
                _ => {}
            }
        }
        for index in indices {
            self.seen[*index] = true;
            self.possible[*index] |= !impossible.contains(index);
        }
        let findings = result.validation_errors().map(|error| self.finding(error)).collect();
        (findings, impossible)
    }

    fn finding(&self, error: &ValidationError) -> Finding {
        let index = place(error.policy_id());
        let rule = &self.rules[index];
        let offset = error
            .labels()
            .and_then(|mut labels| labels.next())
            .map(|label| label.offset());
        let mut problem = rule.problem_at(offset.unwrap_or(rule.span.start), message(error, index));
        problem.help = error.help().map(|help| help.to_string());
        Finding {
            rule: index,
            problem,
            unguarded: matches!(error, ValidationError::UnsafeOptionalAttributeAccess(_)),
        }
    }

    /// Policies that are right but can do nothing.
    fn impossible(&mut self) {
        for (index, rule) in self.rules.iter().enumerate() {
            let fits = || self.found.fits.iter().any(|fit| fit.has(index));
            if rule.names_tools_only() && !self.unsound.contains(&index) && !self.unchecked.contains(&index) && !fits() {
                self.found
                    .warnings
                    .push(rule.problem("no tool is of its action and of its resource: it has no effect"));
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

/// An argument that none of some tools has. Of a group, only a slip of the pen is sure to be meant for one of them.
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

/// Which rules can apply to which tools, by action and resource.
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
            ResourceScope::Any => true,
            ResourceScope::Tool(id) => *id == place.id,
            ResourceScope::Server(server) => server == place.server.as_str(),
            ResourceScope::Nothing => false,
        });
        // `==` a group equals none of its actions
        fitting.retain(|index| !matches!(&rules[*index as usize].action, ActionScope::Is(id) if *id != place.id));
        fitting.sort_unstable();
        fitting.dedup();
        Fit {
            rules: fitting,
            ..Fit::default()
        }
    };
    known.drafts.iter().map(fit).collect()
}

fn literals(rule: &Rule) -> Vec<EntityUid> {
    let ours = |uid: &EntityUid| uid.type_name().namespace() == "Guardian";
    rule.policy.entity_literals().into_iter().filter(ours).collect()
}

fn actions(literals: &[EntityUid]) -> BTreeSet<String> {
    let actions = literals.iter().filter(|uid| uid.type_name().basename() == "Action");
    actions.map(|uid| uid.id().unescaped().to_owned()).collect()
}

fn asks_for_actions(rule: &Rule, literals: &[EntityUid]) -> bool {
    let in_scope = |id: &String| match &rule.action {
        ActionScope::Any => false,
        ActionScope::Is(other) => id == other,
        ActionScope::In(ids) => ids.contains(id),
    };
    !actions(literals).iter().all(in_scope)
}

fn number(index: usize) -> RuleIndex {
    RuleIndex::try_from(index).expect("fewer policies than would fit into memory")
}

fn place(id: &cedar_policy::PolicyId) -> usize {
    let id: &str = id.as_ref();
    id.parse().expect("policies are numbered when they are read")
}

/// Cedar's words without its name for the policy.
fn message(error: &dyn std::fmt::Display, index: usize) -> String {
    let text = error.to_string();
    let prefix = format!("for policy `{index}`");
    match text.strip_prefix(&prefix) {
        Some(rest) => rest.trim_start_matches([',', ':', ' ']).to_owned(),
        None => text,
    }
}
