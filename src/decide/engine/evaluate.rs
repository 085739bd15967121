//! The Cedar step of a decision: it evaluates the policies that can apply, with a context of only the facts they read.
//!
//! Cedar skips a policy whose evaluation errors, even a forbid. So errors are looked at before the decision, and any
//! error refuses.

use super::compiled_tool::CompiledTool;
use super::eval_cache::{EvalEntry, EvalOutcome};
use super::input::DecisionInput;
use super::preconditions::ActiveGrant;
use super::slice::{PolicySubset, Slice, ToolSlice};
use super::time_fields;
use super::unlisted::UnlistedPrimitives;
use super::verdict::Basis;
use super::visibility::{self, BlindSpot, WhyInvisible};
use crate::decide::policy::rule::{Rule, RuleIndex};
use crate::decide::policy::usage::{ContextField, ContextUsage};
use crate::decide::tool::arg_types::ArgSchema;
use crate::decide::tool::arguments;
use crate::decide::tool::primitive_kind::PrimitiveKind;
use crate::domain::{PolicyId, Reason, Refusal, Scope};
use cedar_policy::{Context, Effect, RestrictedExpression};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

/// One evaluation: a call, the facts, and the policies that can apply.
pub(in crate::decide) struct Evaluation<'a> {
    kind: PrimitiveKind,
    /// The arguments that policies can see.
    arg_schema: &'a ArgSchema,
    /// `None`: the arguments are not known; only policies that read no argument are evaluated.
    arguments: Option<&'a Map<String, Value>>,
    /// The scopes that the call needs.
    needs: &'a [Scope],
    active_grant: &'a ActiveGrant<'a>,
    input: &'a DecisionInput<'a>,
    entry: Arc<EvalEntry>,
}

impl<'a> Evaluation<'a> {
    pub fn of_tool(
        tool: &'a CompiledTool,
        arguments: Option<&'a Map<String, Value>>,
        active_grant: &'a ActiveGrant<'a>,
        input: &'a DecisionInput<'a>,
    ) -> Self {
        Self {
            kind: PrimitiveKind::Tool,
            arg_schema: &tool.definition.arguments.arg_schema,
            arguments,
            needs: &tool.definition.needs,
            active_grant,
            input,
            entry: input.cedar_principal.eval_entry(tool, &input.snapshot.compiled),
        }
    }

    /// Of a resource or prompt; without a name, of any of the server. A resource has no arguments, so they are known.
    pub fn of_unlisted(
        unlisted: &'a UnlistedPrimitives,
        name: Option<&str>,
        arguments: Option<&'a Map<String, Value>>,
        active_grant: &'a ActiveGrant<'a>,
        input: &'a DecisionInput<'a>,
    ) -> Self {
        static NONE: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
        let target = unlisted.target(name.unwrap_or_default());
        let entry = input
            .cedar_principal
            .uncached_entry(target, unlisted.indices(name), &input.snapshot.compiled);
        Self {
            kind: unlisted.kind,
            arg_schema: &unlisted.arg_schema,
            arguments: match unlisted.kind {
                PrimitiveKind::Resource => Some(&NONE),
                PrimitiveKind::Prompt | PrimitiveKind::Tool => arguments,
            },
            needs: &unlisted.needs,
            active_grant,
            input,
            entry: Arc::new(entry),
        }
    }

    /// Decides the call and writes the policies that decided to `basis`. A call for several resources is evaluated once for
    /// each: `basis` collects the permits of all, and a refusal replaces them with its own policies.
    pub fn decide(&self, basis: &mut Basis) -> Result<(), Box<Refusal>> {
        let verdict = self.verdict();
        add(&mut basis.shadow, self.shadow(&verdict));
        match verdict {
            Ok(permits) => {
                add(&mut basis.policies, self.policy_ids(&permits));
                Ok(())
            }
            Err(refusal) => {
                basis.policies = refusal.policies.clone();
                Err(refusal)
            }
        }
    }

    /// Whether the call is permitted; if its arguments are not known, whether some could be: no policy refuses without
    /// reading arguments, and a permit holds or reads arguments.
    pub fn could_be_permitted(&self) -> bool {
        if self.arguments.is_some() {
            return self.verdict().is_ok();
        }
        let outcome = self.evaluate_part(|slice| &slice.slice.argument_free);
        let outcome = outcome.map(|outcome| outcome.merge(&self.entry.context_free_outcome));
        self.leaves_open(outcome, |slice| slice.some_permit_reads_input)
    }

    /// The same over resources instead of arguments: whether some resource of the server could be permitted.
    pub fn could_be_permitted_for_some_resource(&self) -> bool {
        let compiled = &self.input.snapshot.compiled;
        let outcome = self.evaluate_part(|slice| slice.slice.resource_independent(compiled));
        self.leaves_open(outcome, |slice| slice.some_permit_depends_on_resource)
    }

    /// Whether a permit holds, or might by what was not evaluated, and no policy refuses.
    fn leaves_open(&self, outcome: Result<EvalOutcome, Box<Refusal>>, some_permit_might_hold: impl Fn(&Slice) -> bool) -> bool {
        let might = || self.entry.slices().any(|slice| some_permit_might_hold(&slice.slice));
        self.entry.slices().all(|slice| slice.not_evaluable.is_empty())
            && outcome.is_ok_and(|outcome| {
                outcome.errors.is_empty() && outcome.forbids.is_empty() && (!outcome.permits.is_empty() || might())
            })
    }

    /// Whether policies treat all resources or prompts that none of them names alike, so that one evaluation holds for all.
    pub fn is_same_for_all_unnamed(&self) -> bool {
        !self.entry.slices().any(|slice| slice.slice.some_depend_on_resource)
    }

    /// The satisfied permits, or the refusal.
    fn verdict(&self) -> Result<Vec<RuleIndex>, Box<Refusal>> {
        let broken = || self.entry.slices().flat_map(|slice| &slice.not_evaluable);
        if broken().next().is_some() {
            let why = match self.kind {
                PrimitiveKind::Tool => "it cannot be judged for this tool",
                PrimitiveKind::Resource => "it cannot be judged for a resource",
                PrimitiveKind::Prompt => "it cannot be judged for a prompt",
            };
            return Err(self.not_evaluable(broken().map(|rule| (*rule, why))).into());
        }
        let blind = self.triggered_blind_spots();
        let forbids = blind
            .iter()
            .filter(|(blind_spot, _)| self.rule(blind_spot.rule).is_enforced_forbid());
        if let Some((first, why)) = forbids.min_by_key(|(blind_spot, _)| (blind_spot.rule, blind_spot.argument)) {
            return Err(self.invisible_argument(first, *why).into());
        }
        let outcome = self.evaluate_part(|slice| &slice.slice.context_dependent)?;
        let mut outcome = outcome.merge(&self.entry.context_free_outcome);
        let is_blind = |rule: &RuleIndex| blind.iter().any(|(blind_spot, _)| blind_spot.rule == *rule);
        outcome.errors.retain(|(rule, _)| !is_blind(rule));
        if !outcome.errors.is_empty() {
            return Err(self.not_evaluable(outcome.errors.into_iter()).into());
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

    /// The triggered blind spots, with the reason of each: the call carries an argument that a policy names and cannot see.
    fn triggered_blind_spots(&self) -> Vec<(&BlindSpot, WhyInvisible)> {
        let Some(arguments) = self.arguments else {
            return Vec::new();
        };
        let possible = self.entry.slices().flat_map(|slice| &slice.blind_spots);
        let triggered = possible.filter_map(|blind_spot| {
            let why = visibility::why_blind(blind_spot, self.rule(blind_spot.rule), self.arg_schema, arguments)?;
            Some((blind_spot, why))
        });
        triggered.collect()
    }

    /// The shadow policies each of which would alone have reversed `verdict`.
    fn shadow(&self, verdict: &Result<Vec<RuleIndex>, Box<Refusal>>) -> Vec<PolicyId> {
        if !self.entry.slices().any(|slice| slice.has_shadow) {
            return Vec::new();
        }
        let blind = self.triggered_blind_spots();
        let is_blind = |rule: &RuleIndex| blind.iter().any(|(blind_spot, _)| blind_spot.rule == *rule);
        let turned: Vec<RuleIndex> = match verdict {
            Ok(_) => {
                let unseen = blind.iter().map(|(blind_spot, _)| blind_spot.rule);
                let unseen = unseen.filter(|rule| self.rule(*rule).shadow && self.rule(*rule).effect == Effect::Forbid);
                unseen
                    .chain(self.refusing_shadows().into_iter().filter(|rule| !is_blind(rule)))
                    .collect()
            }
            Err(refusal) if refusal.reason == Reason::NoPolicyPermits => {
                let outcome = self.evaluate_part(|slice| &slice.slice.shadow_permits).unwrap_or_default();
                outcome.permits.into_iter().filter(|rule| !is_blind(rule)).collect()
            }
            Err(_) => Vec::new(),
        };
        self.policy_ids(&turned)
    }

    /// Shadow policies that would refuse: their forbid holds, their evaluation errors, or they read arguments that Cedar
    /// cannot represent.
    fn refusing_shadows(&self) -> Vec<RuleIndex> {
        match self.evaluate_part(|slice| &slice.slice.shadow) {
            Ok(outcome) => outcome
                .forbids
                .into_iter()
                .chain(outcome.errors.into_iter().map(|(rule, _)| rule))
                .collect(),
            Err(_) => {
                let all = self.entry.slices().flat_map(|slice| slice.slice.shadow.rules.iter().copied());
                all.filter(|rule| self.rule(*rule).reads_input()).collect()
            }
        }
    }

    /// Evaluates one part of each slice, with a context of what these parts read.
    fn evaluate_part(&self, part: impl Fn(&ToolSlice) -> &PolicySubset) -> Result<EvalOutcome, Box<Refusal>> {
        let context = || self.context(|| self.entry.slices().map(|slice| &part(slice).context_usage));
        self.entry.evaluate(self.input.cedar_principal.key(), &part, context)
    }

    /// A Cedar context of the facts that one of `usages` reads and no others.
    fn context<'b, I: Iterator<Item = &'b ContextUsage>>(&self, usages: impl Fn() -> I) -> Result<Context, Box<Refusal>> {
        let is_read = |argument: &str| usages().any(|usage| usage.reads_argument(argument));
        let mut pairs = Vec::new();
        for field in ContextField::ALL {
            if usages().any(|usage| usage.reads(field))
                && let Some(value) = self.fact(field, is_read)?
            {
                pairs.push((field.name().to_owned(), value));
            }
        }
        Context::from_pairs(pairs).map_err(|_| {
            let errors = vec!["the context of the call could not be built".to_owned()];
            let refusal = Refusal::new(Reason::PolicyError);
            Refusal { errors, ..refusal }.into()
        })
    }

    /// The value of one fact; `None` if the call has none. Of the arguments, only those that are read.
    fn fact(&self, field: ContextField, is_read: impl Fn(&str) -> bool) -> Result<Option<RestrictedExpression>, Box<Refusal>> {
        let input = self.input;
        let offset = input.snapshot.utc_offset_minutes;
        let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
        Ok(Some(match field {
            ContextField::Input => match self.arguments {
                Some(members) => arguments::input(members, self.arg_schema, is_read)?,
                None => return Ok(None),
            },
            ContextField::Scopes => {
                let scopes = self.active_grant.scopes.iter();
                RestrictedExpression::new_set(scopes.map(|scope| text(scope.as_str())))
            }
            ContextField::ScopeNamed => RestrictedExpression::new_bool(self.active_grant.names(self.needs, self.kind)),
            ContextField::SourceIp => input.cedar_principal.address(input.source_ip),
            ContextField::Now => RestrictedExpression::new_datetime(time_fields::datetime(input.now)),
            ContextField::Hour => RestrictedExpression::new_long(time_fields::hour(input.now, offset)),
            ContextField::Weekday => RestrictedExpression::new_long(time_fields::weekday(input.now, offset)),
            ContextField::Session => return Ok(input.session.map(text)),
        }))
    }

    fn forbidden(&self, forbids: &[RuleIndex]) -> Refusal {
        let rules = || forbids.iter().map(|index| self.rule(*index));
        Refusal {
            policies: self.policy_ids(forbids),
            policy_message: rules().find_map(|rule| rule.message.clone()),
            remedy: rules().find_map(|rule| rule.remedy.clone()),
            ..Refusal::new(Reason::ForbiddenByPolicy)
        }
    }

    fn not_evaluable(&self, errors: impl Iterator<Item = (RuleIndex, &'static str)>) -> Refusal {
        let (rules, errors): (Vec<RuleIndex>, Vec<String>) = errors
            .map(|(rule, why)| (rule, format!("policy `{}`: {why}", self.rule(rule).id)))
            .unzip();
        Refusal {
            policies: self.policy_ids(&rules),
            errors,
            ..Refusal::new(Reason::PolicyError)
        }
    }

    /// The refusal for a blind spot. The caller can leave out an undeclared argument, so that is their error. An argument
    /// without a readable type is the operator's problem.
    fn invisible_argument(&self, blind_spot: &BlindSpot, why: WhyInvisible) -> Refusal {
        let rule = self.rule(blind_spot.rule);
        let argument = rule.usage.arguments[blind_spot.argument].path.join(".");
        match why {
            WhyInvisible::Undeclared => {
                let kind = self.kind.word();
                let detail = format!("argument `{argument}` is not one of this {kind}, and policies ask for it");
                Refusal {
                    policies: vec![rule.id.clone()],
                    ..Refusal::with_detail(Reason::InvalidArguments, detail)
                }
            }
            WhyInvisible::Untyped => {
                let why = "it asks for an argument that has no type that policies can read";
                Refusal {
                    detail: Some(format!("argument `{argument}` has no type that policies can read")),
                    ..self.not_evaluable([(blind_spot.rule, why)].into_iter())
                }
            }
        }
    }

    fn rule(&self, index: RuleIndex) -> &Rule {
        self.input.snapshot.compiled.rule(index)
    }

    /// The ids of these policies in their order. A forbid that has changed may stand beside its earlier form, which has the
    /// same id.
    fn policy_ids(&self, rules: &[RuleIndex]) -> Vec<PolicyId> {
        let rules: BTreeSet<RuleIndex> = rules.iter().copied().collect();
        let mut ids = Vec::with_capacity(rules.len());
        add(&mut ids, rules.into_iter().map(|rule| self.rule(rule).id.clone()));
        ids
    }
}

fn add(policies: &mut Vec<PolicyId>, more: impl IntoIterator<Item = PolicyId>) {
    for policy in more {
        if !policies.contains(&policy) {
            policies.push(policy);
        }
    }
}
