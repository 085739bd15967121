//! The Cedar step of a decision: it evaluates the policies that can apply, with a context of only the facts they read.
//!
//! Cedar skips a policy whose evaluation errors, even a forbid. So errors are looked at before the decision, and any
//! error refuses.

use super::compiled_tool::CompiledTool;
use super::eval_cache::{EvalEntry, EvalOutcome};
use super::input::DecisionInput;
use super::preconditions::ActiveGrant;
use super::slice::{CompiledPolicies, PolicyIndex, PolicySubset, ToolSlice};
use super::time_fields;
use super::unlisted::UnlistedPrimitives;
use super::verdict::Basis;
use super::visibility::{self, BlindSpot, WhyInvisible};
use crate::decide::policy::rule::RuleIndex;
use crate::decide::policy::usage::{ContextField, ContextUsage};
use crate::decide::tool::arg_types::ArgSchema;
use crate::decide::tool::arguments;
use crate::decide::tool::primitive_kind::PrimitiveKind;
use crate::domain::{PolicyId, Reason, Refusal};
use cedar_policy::{Context, Effect, RestrictedExpression};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Evaluates a tool call. The policies that decided are written to `basis`.
pub(in crate::decide) fn evaluate(
    tool: &CompiledTool,
    arguments: &Map<String, Value>,
    active_grant: &ActiveGrant<'_>,
    input: &DecisionInput<'_>,
    basis: &mut Basis,
) -> Result<(), Box<Refusal>> {
    evaluate_into(&Evaluation::of_tool(tool, Some(arguments), active_grant, input), basis)
}

/// Evaluates a call for a resource or prompt.
pub(in crate::decide) fn evaluate_unlisted(
    unlisted: &UnlistedPrimitives,
    name: &str,
    arguments: &Map<String, Value>,
    active_grant: &ActiveGrant<'_>,
    input: &DecisionInput<'_>,
    basis: &mut Basis,
) -> Result<(), Box<Refusal>> {
    evaluate_into(
        &Evaluation::of_unlisted(unlisted, name, unlisted.indices(name), Some(arguments), active_grant, input),
        basis,
    )
}

/// Writes the outcome to `basis`. A call for several resources is evaluated once for each: `basis` collects the permits
/// of all, and a refusal replaces them with its own policies.
fn evaluate_into(evaluation: &Evaluation<'_>, basis: &mut Basis) -> Result<(), Box<Refusal>> {
    let verdict = evaluation.verdict();
    add(&mut basis.shadow, evaluation.shadow(&verdict));
    match verdict {
        Ok(permits) => {
            add(&mut basis.policies, evaluation.policy_ids(&permits));
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
pub(in crate::decide) fn could_permit(tool: &CompiledTool, active_grant: &ActiveGrant<'_>, input: &DecisionInput<'_>) -> bool {
    tool.arguments().why_unusable().is_none() && Evaluation::of_tool(tool, None, active_grant, input).could_be_permitted()
}

/// The same for a resource or prompt. A resource has no arguments, so for it the full decision is made.
pub(super) fn could_permit_unlisted(
    unlisted: &UnlistedPrimitives,
    name: &str,
    active_grant: &ActiveGrant<'_>,
    input: &DecisionInput<'_>,
) -> bool {
    let evaluation = |arguments| Evaluation::of_unlisted(unlisted, name, unlisted.indices(name), arguments, active_grant, input);
    match unlisted.kind() {
        PrimitiveKind::Resource => evaluation(Some(&Map::new())).verdict().is_ok(),
        PrimitiveKind::Prompt | PrimitiveKind::Tool => evaluation(None).could_be_permitted(),
    }
}

/// Whether some resource of the server could be permitted, judged by the policies that treat all its resources alike.
pub(super) fn could_permit_any_resource(
    unlisted: &UnlistedPrimitives,
    active_grant: &ActiveGrant<'_>,
    input: &DecisionInput<'_>,
) -> bool {
    Evaluation::of_unlisted(
        unlisted,
        "",
        std::iter::once(unlisted.all()),
        Some(&Map::new()),
        active_grant,
        input,
    )
    .could_be_permitted_for_some_resource()
}

/// Whether policies treat all resources or prompts that none of them names alike, so that one evaluation holds for all.
pub(super) fn is_same_for_all_unnamed(
    unlisted: &UnlistedPrimitives,
    active_grant: &ActiveGrant<'_>,
    input: &DecisionInput<'_>,
) -> bool {
    let evaluation = Evaluation::of_unlisted(unlisted, "", unlisted.indices(""), None, active_grant, input);
    !evaluation.entry.slices().any(|slice| slice.slice.some_depend_on_resource)
}

/// One evaluation: a call, the facts, and the policies that can apply.
struct Evaluation<'a> {
    kind: PrimitiveKind,
    /// The arguments that policies can see.
    arg_schema: &'a ArgSchema,
    /// `None`: the arguments are not known; only policies that read no argument are evaluated.
    arguments: Option<&'a Map<String, Value>>,
    active_grant: &'a ActiveGrant<'a>,
    input: &'a DecisionInput<'a>,
    compiled: &'a CompiledPolicies,
    entry: Arc<EvalEntry>,
}

impl<'a> Evaluation<'a> {
    fn of_tool(
        tool: &'a CompiledTool,
        arguments: Option<&'a Map<String, Value>>,
        active_grant: &'a ActiveGrant<'a>,
        input: &'a DecisionInput<'a>,
    ) -> Self {
        let compiled = input.snapshot.compiled_policies();
        Self {
            kind: PrimitiveKind::Tool,
            arg_schema: tool.arguments().arg_schema(),
            arguments,
            active_grant,
            input,
            compiled,
            entry: input.cedar_principal.eval_entry(tool, compiled),
        }
    }

    fn of_unlisted(
        unlisted: &'a UnlistedPrimitives,
        name: &str,
        indices: impl Iterator<Item = &'a PolicyIndex>,
        arguments: Option<&'a Map<String, Value>>,
        active_grant: &'a ActiveGrant<'a>,
        input: &'a DecisionInput<'a>,
    ) -> Self {
        let compiled = input.snapshot.compiled_policies();
        Self {
            kind: unlisted.kind(),
            arg_schema: unlisted.arg_schema(),
            arguments,
            active_grant,
            input,
            compiled,
            entry: Arc::new(input.cedar_principal.uncached_entry(unlisted.target(name), indices, compiled)),
        }
    }

    /// Whether some arguments could be permitted: no policy refuses without reading arguments, and a permit holds or
    /// reads arguments.
    fn could_be_permitted(&self) -> bool {
        if self.entry.slices().any(|slice| !slice.not_evaluable.is_empty()) {
            return false;
        }
        let Ok(mut outcome) = self.evaluate_part(|slice| &slice.slice.argument_free) else {
            return false;
        };
        outcome.merge(self.entry.context_free_outcome());
        let open = || self.entry.slices().any(|slice| slice.slice.some_permit_reads_input);
        outcome.errors.is_empty() && outcome.forbids.is_empty() && (!outcome.permits.is_empty() || open())
    }

    /// The same over resources instead of arguments: whether some resource of the server could be permitted.
    fn could_be_permitted_for_some_resource(&self) -> bool {
        if self.entry.slices().any(|slice| !slice.not_evaluable.is_empty()) {
            return false;
        }
        let Ok(outcome) = self.evaluate_part(|slice| slice.slice.resource_independent(self.compiled)) else {
            return false;
        };
        let open = || self.entry.slices().any(|slice| slice.slice.some_permit_depends_on_resource);
        outcome.errors.is_empty() && outcome.forbids.is_empty() && (!outcome.permits.is_empty() || open())
    }

    /// The satisfied permits, or the refusal.
    fn verdict(&self) -> Result<Vec<RuleIndex>, Box<Refusal>> {
        let broken: Vec<RuleIndex> = self
            .entry
            .slices()
            .flat_map(|slice| slice.not_evaluable.iter().copied())
            .collect();
        if !broken.is_empty() {
            let why = match self.kind {
                PrimitiveKind::Tool => "it cannot be judged for this tool",
                PrimitiveKind::Resource => "it cannot be judged for a resource",
                PrimitiveKind::Prompt => "it cannot be judged for a prompt",
            };
            let errors = broken.into_iter().map(|rule| (rule, why));
            return Err(self.not_evaluable(errors).into());
        }
        let blind = self.triggered_blind_spots();
        let forbids = blind
            .iter()
            .filter(|blind_spot| self.effect(blind_spot.rule) == Effect::Forbid && !self.is_shadow(blind_spot.rule));
        if let Some(first) = forbids.min_by_key(|blind_spot| (blind_spot.rule, blind_spot.argument)) {
            return Err(self.invisible_argument(first).into());
        }
        let mut outcome = self.evaluate_part(|slice| &slice.slice.context_dependent)?;
        outcome.merge(self.entry.context_free_outcome());
        let is_blind = |rule: &RuleIndex| blind.iter().any(|blind_spot| blind_spot.rule == *rule);
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

    /// The triggered blind spots: the call carries an argument that a policy names and cannot see.
    fn triggered_blind_spots(&self) -> Vec<&BlindSpot> {
        let Some(arguments) = self.arguments else {
            return Vec::new();
        };
        let fields = self.arg_schema;
        let hidden = |blind_spot: &&BlindSpot| {
            visibility::why_blind(blind_spot, self.compiled.rule(blind_spot.rule), fields, arguments).is_some()
        };
        self.entry
            .slices()
            .flat_map(|slice| &slice.blind_spots)
            .filter(hidden)
            .collect()
    }

    /// The shadow policies each of which would alone have reversed `verdict`.
    fn shadow(&self, verdict: &Result<Vec<RuleIndex>, Box<Refusal>>) -> Vec<PolicyId> {
        if !self.entry.slices().any(|slice| slice.has_shadow) {
            return Vec::new();
        }
        let blind = self.triggered_blind_spots();
        let is_blind = |rule: &RuleIndex| blind.iter().any(|blind_spot| blind_spot.rule == *rule);
        let turned: Vec<RuleIndex> = match verdict {
            Ok(_) => {
                let unseen = blind.iter().map(|blind_spot| blind_spot.rule);
                let unseen = unseen.filter(|rule| self.is_shadow(*rule) && self.effect(*rule) == Effect::Forbid);
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
                all.filter(|rule| self.compiled.rule(*rule).reads_input()).collect()
            }
        }
    }

    /// Evaluates one part of each slice, with a context of what these parts read.
    fn evaluate_part(&self, part: impl Fn(&ToolSlice) -> &PolicySubset) -> Result<EvalOutcome, Box<Refusal>> {
        let context = || {
            let mut context_usage = self.entry.slices().map(|slice| &part(slice).context_usage);
            match (context_usage.next(), context_usage.next()) {
                (Some(one), Some(other)) => self.context(&context_usage.fold(one.clone().and(other), ContextUsage::and)),
                (Some(one), None) => self.context(one),
                (None, _) => Ok(Context::empty()),
            }
        };
        self.entry.evaluate(self.input.cedar_principal.key(), &part, context)
    }

    /// A Cedar context of the facts in `reads` and no others.
    fn context(&self, context_usage: &ContextUsage) -> Result<Context, Box<Refusal>> {
        let input = self.input;
        let mut pairs: Vec<(String, RestrictedExpression)> = Vec::new();
        let mut add = |field: ContextField, value| pairs.push((field.name().to_owned(), value));
        if let (true, Some(members)) = (context_usage.reads(ContextField::Input), self.arguments) {
            let fields = self.arg_schema;
            add(ContextField::Input, arguments::input(members, fields, context_usage.names())?);
        }
        if context_usage.reads(ContextField::Scopes) {
            let scopes = self.active_grant.scopes.iter();
            let scopes = scopes.map(|scope| RestrictedExpression::new_string(scope.as_str().to_owned()));
            add(ContextField::Scopes, RestrictedExpression::new_set(scopes));
        }
        if context_usage.reads(ContextField::SourceIp) {
            add(ContextField::SourceIp, input.cedar_principal.address(input.source_ip));
        }
        if context_usage.reads(ContextField::Now) {
            add(
                ContextField::Now,
                RestrictedExpression::new_datetime(time_fields::datetime(input.now)),
            );
        }
        let offset = input.snapshot.utc_offset_minutes();
        if context_usage.reads(ContextField::Hour) {
            add(
                ContextField::Hour,
                RestrictedExpression::new_long(time_fields::hour(input.now, offset)),
            );
        }
        if context_usage.reads(ContextField::Weekday) {
            add(
                ContextField::Weekday,
                RestrictedExpression::new_long(time_fields::weekday(input.now, offset)),
            );
        }
        if let (true, Some(session)) = (context_usage.reads(ContextField::Session), input.session) {
            add(ContextField::Session, RestrictedExpression::new_string(session.to_owned()));
        }
        Context::from_pairs(pairs).map_err(|_| {
            let errors = vec!["the context of the call could not be built".to_owned()];
            let refusal = Refusal::new(Reason::PolicyError);
            Refusal { errors, ..refusal }.into()
        })
    }

    fn forbidden(&self, forbids: &[RuleIndex]) -> Refusal {
        let rules = || forbids.iter().map(|index| self.compiled.rule(*index));
        Refusal {
            policies: self.policy_ids(forbids),
            policy_message: rules().find_map(|rule| rule.message.clone()),
            remedy: rules().find_map(|rule| rule.remedy.clone()),
            ..Refusal::new(Reason::ForbiddenByPolicy)
        }
    }

    fn not_evaluable(&self, errors: impl Iterator<Item = (RuleIndex, &'static str)>) -> Refusal {
        let (rules, errors): (Vec<RuleIndex>, Vec<String>) = errors
            .map(|(rule, why)| (rule, format!("policy `{}`: {why}", self.compiled.rule(rule).id)))
            .unzip();
        Refusal {
            policies: self.policy_ids(&rules),
            errors,
            ..Refusal::new(Reason::PolicyError)
        }
    }

    /// The refusal for a blind spot. The caller can leave out an undeclared argument, so that is their error. An argument
    /// without a readable type is the operator's problem.
    fn invisible_argument(&self, blind_spot: &BlindSpot) -> Refusal {
        let rule = self.compiled.rule(blind_spot.rule);
        let argument = rule.usage.arguments[blind_spot.argument].path.join(".");
        let fields = self.arg_schema;
        let why = self
            .arguments
            .and_then(|arguments| visibility::why_blind(blind_spot, rule, fields, arguments));
        match why {
            Some(WhyInvisible::Undeclared) => Refusal {
                policies: vec![rule.id.clone()],
                ..Refusal::with_detail(
                    Reason::InvalidArguments,
                    format!(
                        "argument `{argument}` is not one of this {}, and policies ask for it",
                        self.kind.word()
                    ),
                )
            },
            Some(WhyInvisible::Untyped) | None => Refusal {
                detail: Some(format!("argument `{argument}` has no type that policies can read")),
                ..self.not_evaluable(
                    [(
                        blind_spot.rule,
                        "it asks for an argument that has no type that policies can read",
                    )]
                    .into_iter(),
                )
            },
        }
    }

    fn effect(&self, rule: RuleIndex) -> Effect {
        self.compiled.rule(rule).effect
    }

    fn is_shadow(&self, rule: RuleIndex) -> bool {
        self.compiled.rule(rule).shadow
    }

    fn policy_ids(&self, rules: &[RuleIndex]) -> Vec<PolicyId> {
        let mut rules = rules.to_vec();
        rules.sort_unstable();
        rules.dedup();
        let mut names: Vec<PolicyId> = Vec::with_capacity(rules.len());
        for rule in rules {
            let name = &self.compiled.rule(rule).id;
            // A forbid that has changed may stand beside its earlier form.
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }
}
