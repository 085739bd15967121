//! The Cedar step of a decision: it evaluates the policies that can apply, with a context of only the facts they read.
//!
//! Cedar skips a policy whose evaluation errors, even a forbid. So errors are looked at before the decision, and any
//! error refuses.

use super::reads::{Fact, Reads};
use super::seat::{Outcome, Seat};
use super::shape::Fields;
use super::sight::{self, Spot, Unseen};
use super::slice::{Index, Library, Part, RuleIndex, ToolSlice};
use super::sort::Sort;
use super::standing::Held;
use super::ware::Wares;
use super::{Basis, CompiledTool, Facts, arguments, when};
use crate::domain::{PolicyId, Reason, Refusal};
use cedar_policy::{Context, Effect, RestrictedExpression};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Evaluates a tool call. The policies that decided are written to `basis`.
pub(super) fn judge(
    tool: &CompiledTool,
    arguments: &Map<String, Value>,
    held: &Held<'_>,
    facts: &Facts<'_>,
    basis: &mut Basis,
) -> Result<(), Box<Refusal>> {
    settle(&Case::of_tool(tool, Some(arguments), held, facts), basis)
}

/// Evaluates a call for a resource or prompt.
pub(super) fn judge_ware(
    wares: &Wares,
    name: &str,
    arguments: &Map<String, Value>,
    held: &Held<'_>,
    facts: &Facts<'_>,
    basis: &mut Basis,
) -> Result<(), Box<Refusal>> {
    settle(
        &Case::of_ware(wares, name, wares.indices(name), Some(arguments), held, facts),
        basis,
    )
}

/// Writes the outcome to `basis`. A call for several resources is evaluated once for each: `basis` collects the permits
/// of all, and a refusal replaces them with its own policies.
fn settle(case: &Case<'_>, basis: &mut Basis) -> Result<(), Box<Refusal>> {
    let verdict = case.verdict();
    add(&mut basis.shadow, case.shadow(&verdict));
    match verdict {
        Ok(permits) => {
            add(&mut basis.policies, case.names(&permits));
            Ok(())
        }
        Err(refusal) => {
            basis.policies = refusal.policies.clone();
            Err(refusal)
        }
    }
}

fn add(policies: &mut Vec<PolicyId>, more: Vec<PolicyId>) {
    for policy in more {
        if !policies.contains(&policy) {
            policies.push(policy);
        }
    }
}

/// Whether some arguments could be permitted, judged by the policies that read no argument.
pub(super) fn could_permit(tool: &CompiledTool, held: &Held<'_>, facts: &Facts<'_>) -> bool {
    tool.arguments().unusable().is_none() && Case::of_tool(tool, None, held, facts).could_pass()
}

/// The same for a resource or prompt. A resource has no arguments, so for it the full decision is made.
pub(super) fn could_permit_ware(wares: &Wares, name: &str, held: &Held<'_>, facts: &Facts<'_>) -> bool {
    let case = |arguments| Case::of_ware(wares, name, wares.indices(name), arguments, held, facts);
    match wares.sort() {
        Sort::Resource => case(Some(&Map::new())).verdict().is_ok(),
        Sort::Prompt | Sort::Tool => case(None).could_pass(),
    }
}

/// Whether some resource of the server could be permitted, judged by the policies that treat all its resources alike.
pub(super) fn could_permit_some(wares: &Wares, held: &Held<'_>, facts: &Facts<'_>) -> bool {
    Case::of_ware(wares, "", std::iter::once(wares.all()), Some(&Map::new()), held, facts).could_pass_somewhere()
}

/// Whether policies treat all resources or prompts that none of them names alike, so that one evaluation holds for all.
pub(super) fn is_same_for_all(wares: &Wares, held: &Held<'_>, facts: &Facts<'_>) -> bool {
    let case = Case::of_ware(wares, "", wares.indices(""), None, held, facts);
    !case.seat.slices().any(|slice| slice.slice.some_look_at_resource)
}

/// One evaluation: a call, the facts, and the policies that can apply.
struct Case<'a> {
    sort: Sort,
    /// The arguments that policies can see.
    fields: &'a Fields,
    /// `None`: the arguments are not known; only policies that read no argument are evaluated.
    arguments: Option<&'a Map<String, Value>>,
    held: &'a Held<'a>,
    facts: &'a Facts<'a>,
    library: &'a Library,
    seat: Arc<Seat>,
}

impl<'a> Case<'a> {
    fn of_tool(
        tool: &'a CompiledTool,
        arguments: Option<&'a Map<String, Value>>,
        held: &'a Held<'a>,
        facts: &'a Facts<'a>,
    ) -> Self {
        let library = facts.snapshot.library();
        Self {
            sort: Sort::Tool,
            fields: tool.arguments().fields(),
            arguments,
            held,
            facts,
            library,
            seat: facts.subject.seat(tool, library),
        }
    }

    fn of_ware(
        wares: &'a Wares,
        name: &str,
        indices: impl Iterator<Item = &'a Index>,
        arguments: Option<&'a Map<String, Value>>,
        held: &'a Held<'a>,
        facts: &'a Facts<'a>,
    ) -> Self {
        let library = facts.snapshot.library();
        Self {
            sort: wares.sort(),
            fields: wares.fields(),
            arguments,
            held,
            facts,
            library,
            seat: Arc::new(facts.subject.seat_at(wares.place(name), indices, library)),
        }
    }

    /// Whether some arguments could be permitted: no policy refuses without reading arguments, and a permit holds or
    /// reads arguments.
    fn could_pass(&self) -> bool {
        if self.seat.slices().any(|slice| !slice.broken.is_empty()) {
            return false;
        }
        let Ok(mut outcome) = self.evaluate(|slice| &slice.slice.steady) else {
            return false;
        };
        outcome.merge(self.seat.fixed());
        let open = || self.seat.slices().any(|slice| slice.slice.some_permit_reads_input);
        outcome.errors.is_empty() && outcome.forbids.is_empty() && (!outcome.permits.is_empty() || open())
    }

    /// The same over resources instead of arguments: whether some resource of the server could be permitted.
    fn could_pass_somewhere(&self) -> bool {
        if self.seat.slices().any(|slice| !slice.broken.is_empty()) {
            return false;
        }
        let Ok(outcome) = self.evaluate(|slice| slice.slice.unplaced(self.library)) else {
            return false;
        };
        let open = || self.seat.slices().any(|slice| slice.slice.some_permit_looks_at_resource);
        outcome.errors.is_empty() && outcome.forbids.is_empty() && (!outcome.permits.is_empty() || open())
    }

    /// The satisfied permits, or the refusal.
    fn verdict(&self) -> Result<Vec<RuleIndex>, Box<Refusal>> {
        let broken: Vec<RuleIndex> = self.seat.slices().flat_map(|slice| slice.broken.iter().copied()).collect();
        if !broken.is_empty() {
            let why = match self.sort {
                Sort::Tool => "it cannot be judged for this tool",
                Sort::Resource => "it cannot be judged for a resource",
                Sort::Prompt => "it cannot be judged for a prompt",
            };
            let errors = broken.into_iter().map(|rule| (rule, why));
            return Err(self.unjudged(errors).into());
        }
        let blind = self.blind();
        let forbids = blind
            .iter()
            .filter(|spot| self.effect(spot.rule) == Effect::Forbid && !self.is_shadow(spot.rule));
        if let Some(first) = forbids.min_by_key(|spot| (spot.rule, spot.mention)) {
            return Err(self.unseen(first).into());
        }
        let mut outcome = self.evaluate(|slice| &slice.slice.live)?;
        outcome.merge(self.seat.fixed());
        let is_blind = |rule: &RuleIndex| blind.iter().any(|spot| spot.rule == *rule);
        outcome.errors.retain(|(rule, _)| !is_blind(rule));
        if !outcome.errors.is_empty() {
            return Err(self.unjudged(outcome.errors.into_iter()).into());
        }
        if !outcome.forbids.is_empty() {
            return Err(self.forbidden(&outcome.forbids).into());
        }
        outcome.permits.retain(|rule| !is_blind(rule));
        if outcome.permits.is_empty() {
            Err(Reason::NoPolicyPermits.into())
        } else {
            Ok(outcome.permits)
        }
    }

    /// The triggered blind spots: the call carries an argument that a policy names and cannot see.
    fn blind(&self) -> Vec<&Spot> {
        let Some(arguments) = self.arguments else {
            return Vec::new();
        };
        let fields = self.fields;
        let hidden = |spot: &&Spot| sight::hidden(spot, self.library.rule(spot.rule), fields, arguments).is_some();
        self.seat.slices().flat_map(|slice| &slice.spots).filter(hidden).collect()
    }

    /// The shadow policies each of which would alone have reversed `verdict`.
    fn shadow(&self, verdict: &Result<Vec<RuleIndex>, Box<Refusal>>) -> Vec<PolicyId> {
        if !self.seat.slices().any(|slice| slice.has_shadow) {
            return Vec::new();
        }
        let blind = self.blind();
        let is_blind = |rule: &RuleIndex| blind.iter().any(|spot| spot.rule == *rule);
        let turned: Vec<RuleIndex> = match verdict {
            Ok(_) => {
                let unseen = blind.iter().map(|spot| spot.rule);
                let unseen = unseen.filter(|rule| self.is_shadow(*rule) && self.effect(*rule) == Effect::Forbid);
                unseen
                    .chain(self.refusing_shadows().into_iter().filter(|rule| !is_blind(rule)))
                    .collect()
            }
            Err(refusal) if refusal.reason == Reason::NoPolicyPermits => {
                let outcome = self.evaluate(|slice| &slice.slice.shadow_permits).unwrap_or_default();
                outcome.permits.into_iter().filter(|rule| !is_blind(rule)).collect()
            }
            Err(_) => Vec::new(),
        };
        self.names(&turned)
    }

    /// Shadow policies that would refuse: their forbid holds, their evaluation errors, or they read arguments that Cedar
    /// cannot represent.
    fn refusing_shadows(&self) -> Vec<RuleIndex> {
        match self.evaluate(|slice| &slice.slice.shadow) {
            Ok(outcome) => outcome
                .forbids
                .into_iter()
                .chain(outcome.errors.into_iter().map(|(rule, _)| rule))
                .collect(),
            Err(_) => {
                let all = self.seat.slices().flat_map(|slice| slice.slice.shadow.rules.iter().copied());
                all.filter(|rule| self.library.rule(*rule).reads_input()).collect()
            }
        }
    }

    /// Evaluates one part of each slice, with a context of what these parts read.
    fn evaluate(&self, part: impl Fn(&ToolSlice) -> &Part) -> Result<Outcome, Box<Refusal>> {
        let context = || {
            let mut reads = self.seat.slices().map(|slice| &part(slice).reads);
            match (reads.next(), reads.next()) {
                (Some(one), Some(other)) => self.context(&reads.fold(one.clone().and(other), Reads::and)),
                (Some(one), None) => self.context(one),
                (None, _) => Ok(Context::empty()),
            }
        };
        self.seat.ask(self.facts.subject, &part, context)
    }

    /// A Cedar context of the facts in `reads` and no others.
    fn context(&self, reads: &Reads) -> Result<Context, Box<Refusal>> {
        let facts = self.facts;
        let mut pairs: Vec<(String, RestrictedExpression)> = Vec::new();
        let mut add = |fact: Fact, value| pairs.push((fact.name().to_owned(), value));
        if let (true, Some(members)) = (reads.fact(Fact::Input), self.arguments) {
            let fields = self.fields;
            add(Fact::Input, arguments::input(members, fields, reads.names())?);
        }
        if reads.fact(Fact::Scopes) {
            let scopes = self.held.scopes.iter();
            let scopes = scopes.map(|scope| RestrictedExpression::new_string(scope.as_str().to_owned()));
            add(Fact::Scopes, RestrictedExpression::new_set(scopes));
        }
        if reads.fact(Fact::SourceIp) {
            add(Fact::SourceIp, facts.subject.address(facts.source_ip));
        }
        if reads.fact(Fact::Now) {
            add(Fact::Now, RestrictedExpression::new_datetime(when::datetime(facts.now)));
        }
        let offset = facts.snapshot.utc_offset_minutes();
        if reads.fact(Fact::Hour) {
            add(Fact::Hour, RestrictedExpression::new_long(when::hour(facts.now, offset)));
        }
        if reads.fact(Fact::Weekday) {
            add(
                Fact::Weekday,
                RestrictedExpression::new_long(when::weekday(facts.now, offset)),
            );
        }
        if let (true, Some(session)) = (reads.fact(Fact::Session), facts.session) {
            add(Fact::Session, RestrictedExpression::new_string(session.to_owned()));
        }
        Context::from_pairs(pairs).map_err(|_| {
            let errors = vec!["the context of the call could not be built".to_owned()];
            let refusal = Refusal::new(Reason::PolicyError);
            Refusal { errors, ..refusal }.into()
        })
    }

    fn forbidden(&self, forbids: &[RuleIndex]) -> Refusal {
        let rules = || forbids.iter().map(|index| self.library.rule(*index));
        Refusal {
            policies: self.names(forbids),
            policy_message: rules().find_map(|rule| rule.said.clone()),
            remedy: rules().find_map(|rule| rule.remedy.clone()),
            ..Refusal::new(Reason::ForbiddenByPolicy)
        }
    }

    fn unjudged(&self, errors: impl Iterator<Item = (RuleIndex, &'static str)>) -> Refusal {
        let (rules, errors): (Vec<RuleIndex>, Vec<String>) = errors
            .map(|(rule, why)| (rule, format!("policy `{}`: {why}", self.library.rule(rule).id)))
            .unzip();
        Refusal {
            policies: self.names(&rules),
            errors,
            ..Refusal::new(Reason::PolicyError)
        }
    }

    /// The refusal for a blind spot. The caller can leave out an undeclared argument, so that is their error. An argument
    /// without a readable type is the operator's problem.
    fn unseen(&self, spot: &Spot) -> Refusal {
        let rule = self.library.rule(spot.rule);
        let argument = rule.looks.mentions[spot.mention].path.join(".");
        let fields = self.fields;
        let why = self
            .arguments
            .and_then(|arguments| sight::hidden(spot, rule, fields, arguments));
        match why {
            Some(Unseen::Undeclared) => Refusal {
                policies: vec![rule.id.clone()],
                ..Refusal::with_detail(
                    Reason::InvalidArguments,
                    format!(
                        "argument `{argument}` is not one of this {}, and policies ask for it",
                        self.sort.word()
                    ),
                )
            },
            Some(Unseen::Untyped) | None => Refusal {
                detail: Some(format!("argument `{argument}` has no type that policies can read")),
                ..self.unjudged([(spot.rule, "it asks for an argument that has no type that policies can read")].into_iter())
            },
        }
    }

    fn effect(&self, rule: RuleIndex) -> Effect {
        self.library.rule(rule).effect
    }

    fn is_shadow(&self, rule: RuleIndex) -> bool {
        self.library.rule(rule).shadow
    }

    fn names(&self, rules: &[RuleIndex]) -> Vec<PolicyId> {
        let mut rules = rules.to_vec();
        rules.sort_unstable();
        rules.dedup();
        let mut names: Vec<PolicyId> = Vec::with_capacity(rules.len());
        for rule in rules {
            let name = &self.library.rule(rule).id;
            // A forbid that has changed may stand beside its earlier form.
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }
}
