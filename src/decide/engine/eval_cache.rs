//! The entries of the evaluation cache, one per caller and tool: the policies that apply, and the outcome of those that
//! read no context. They only save work; they never change a verdict.

use super::slice::{CallerKey, CompiledPolicies, PolicyIndex, PolicySubset, ToolSlice};
use crate::decide::policy::rule::RuleIndex;
use crate::decide::tool::target::CedarTarget;
use cedar_policy::{AuthorizationError, Authorizer, Context, Decision, Entities, EvaluationError, Request, Response};
use std::sync::{Arc, LazyLock};

static AUTHORIZER: LazyLock<Authorizer> = LazyLock::new(Authorizer::new);

/// The cached evaluation of one tool, resource or prompt for one caller.
pub(in crate::decide) struct EvalEntry {
    pub target: Arc<CedarTarget>,
    entities: Entities,
    /// For each index, the slice for the caller's kind and roles, and the slice for the caller alone.
    slices: Vec<Arc<ToolSlice>>,
    /// The outcome of the policies that read no context.
    pub context_free_outcome: EvalOutcome,
}

/// Which policies are satisfied and which failed to evaluate. When a forbid is satisfied, Cedar does not report the
/// satisfied permits.
#[derive(Debug, Clone, Default)]
pub(in crate::decide) struct EvalOutcome {
    pub permits: Vec<RuleIndex>,
    pub forbids: Vec<RuleIndex>,
    pub errors: Vec<(RuleIndex, &'static str)>,
}

impl EvalEntry {
    pub fn new<'a>(
        caller: &CallerKey,
        entities: Entities,
        target: Arc<CedarTarget>,
        indices: impl Iterator<Item = &'a PolicyIndex>,
        compiled: &CompiledPolicies,
    ) -> Self {
        let entities = entities.add_entities(target.entities.clone(), None);
        let mut entry = Self {
            entities: entities.expect("a tool and its action are other entities than the caller"),
            slices: indices
                .flat_map(|index| std::iter::once(index.general(compiled, caller)).chain(index.personal(caller).cloned()))
                .collect(),
            context_free_outcome: EvalOutcome::default(),
            target,
        };
        entry.context_free_outcome = entry
            .evaluate(caller, |slice| &slice.slice.context_free, || Ok::<_, ()>(Context::empty()))
            .unwrap_or_default();
        entry
    }

    /// The policies that can apply. No policy is in two slices.
    pub fn slices(&self) -> impl Iterator<Item = &ToolSlice> {
        self.slices.iter().map(Arc::as_ref)
    }

    /// Evaluates one part of each slice. The context is built only if there is a policy to evaluate.
    pub fn evaluate<E>(
        &self,
        caller: &CallerKey,
        part: impl Fn(&ToolSlice) -> &PolicySubset,
        context: impl FnOnce() -> Result<Context, E>,
    ) -> Result<EvalOutcome, E> {
        let mut outcome = EvalOutcome::default();
        let parts = || self.slices().map(&part).filter(|part| !part.rules.is_empty());
        if parts().next().is_none() {
            return Ok(outcome);
        }
        let target = &self.target;
        let request = Request::new(
            caller.uid.clone(),
            target.action.clone(),
            target.resource.clone(),
            context()?,
            None,
        )
        .expect("nothing is checked without a schema");
        for part in parts() {
            outcome.add(&AUTHORIZER.is_authorized(&request, &part.set, &self.entities));
        }
        Ok(outcome)
    }
}

impl EvalOutcome {
    /// Joins two outcomes, in policy order.
    pub fn merge(mut self, other: &EvalOutcome) -> Self {
        self.permits.extend(&other.permits);
        self.forbids.extend(&other.forbids);
        self.errors.extend(&other.errors);
        self.permits.sort_unstable();
        self.forbids.sort_unstable();
        self.errors.sort_unstable();
        self
    }

    fn add(&mut self, response: &Response) {
        let satisfied = response.diagnostics().reason().map(number);
        match response.decision() {
            Decision::Allow => self.permits.extend(satisfied),
            Decision::Deny => self.forbids.extend(satisfied),
        }
        for AuthorizationError::PolicyEvaluationError(error) in response.diagnostics().errors() {
            self.errors.push((number(error.policy_id()), kind_of(error.inner())));
        }
    }
}

fn number(id: &cedar_policy::PolicyId) -> RuleIndex {
    let id: &str = id.as_ref();
    id.parse().expect("policies are numbered when they are read")
}

/// The kind of the error. Cedar's own text would contain values, which may be secret.
fn kind_of(error: &EvaluationError) -> &'static str {
    match error {
        EvaluationError::EntityDoesNotExist(_) => "it reads an attribute of an entity that is not known",
        EvaluationError::EntityAttrDoesNotExist(_) => "it reads an attribute that the entity does not have",
        EvaluationError::RecordAttrDoesNotExist(_) => "it reads an attribute that the record does not have",
        EvaluationError::FailedExtensionFunctionLookup(_) => "it calls a function that does not exist",
        EvaluationError::TypeError(_) => "it meets a value of the wrong type",
        EvaluationError::WrongNumArguments(_) => "it calls a function with the wrong number of arguments",
        EvaluationError::IntegerOverflow(_) => "its arithmetic overflows",
        EvaluationError::FailedExtensionFunctionExecution(_) => "a function it calls does not accept the value",
        EvaluationError::RecursionLimit(_) => "it is nested too deeply",
        _ => "it cannot be evaluated",
    }
}
