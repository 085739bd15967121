//! Evaluation cache, one entry per caller and tool: the policies that apply, and the outcome of those that read no
//! context. It only saves work; it never changes a verdict.

use super::slice::{Index, Library, Part, RuleIndex, ToolSlice};
use super::tool::Place;
use super::{CompiledTool, Subject};
use cedar_policy::{AuthorizationError, Authorizer, Context, Decision, Entities, EvaluationError, Request, Response};
use std::sync::{Arc, LazyLock};

static AUTHORIZER: LazyLock<Authorizer> = LazyLock::new(Authorizer::new);

/// The cached evaluation of one tool, resource or prompt for one caller.
pub(super) struct Seat {
    place: Arc<Place>,
    entities: Entities,
    /// For each index, the slice for the caller's kind and roles, and the slice for the caller alone.
    slices: Vec<Arc<ToolSlice>>,
    fixed: Outcome,
}

/// The tools that a caller used last. At the bound all entries are dropped. Entries are found by the identity of their
/// `Place`, so those of an older snapshot never match.
#[derive(Default)]
pub(super) struct Seats(Vec<Arc<Seat>>);

/// How many tools are cached per caller.
const MAX_SEATS: usize = 32;

/// Which policies are satisfied and which failed to evaluate. When a forbid is satisfied, Cedar does not report the
/// satisfied permits.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    pub permits: Vec<RuleIndex>,
    pub forbids: Vec<RuleIndex>,
    pub errors: Vec<(RuleIndex, &'static str)>,
}

impl Seat {
    pub fn new<'a>(
        subject: &Subject,
        caller: Entities,
        place: Arc<Place>,
        indices: impl Iterator<Item = &'a Index>,
        library: &Library,
    ) -> Self {
        let entities = caller.add_entities(place.entities.clone(), None);
        let mut seat = Self {
            entities: entities.expect("a tool and its action are other entities than the caller"),
            slices: indices
                .flat_map(|index| std::iter::once(index.general(library, subject)).chain(index.personal(subject).cloned()))
                .collect(),
            fixed: Outcome::default(),
            place,
        };
        seat.fixed = seat
            .ask(subject, |slice| &slice.slice.fixed, || Ok::<_, ()>(Context::empty()))
            .unwrap_or_default();
        seat
    }

    /// The outcome of the policies that read no context.
    pub fn fixed(&self) -> &Outcome {
        &self.fixed
    }

    /// The policies that can apply. No policy is in two slices.
    pub fn slices(&self) -> impl Iterator<Item = &ToolSlice> {
        self.slices.iter().map(Arc::as_ref)
    }

    /// Evaluates one part of each slice. The context is built only if there is a policy to evaluate.
    pub fn ask<E>(
        &self,
        subject: &Subject,
        part: impl Fn(&ToolSlice) -> &Part,
        context: impl FnOnce() -> Result<Context, E>,
    ) -> Result<Outcome, E> {
        let mut outcome = Outcome::default();
        let parts = || self.slices().map(&part).filter(|part| !part.rules.is_empty());
        if parts().next().is_none() {
            return Ok(outcome);
        }
        let place = &self.place;
        let request = Request::new(
            subject.uid().clone(),
            place.action.clone(),
            place.resource.clone(),
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

impl Seats {
    pub fn find(&self, tool: &CompiledTool) -> Option<&Arc<Seat>> {
        self.0.iter().find(|seat| Arc::ptr_eq(&seat.place, tool.place()))
    }

    pub fn with(&self, seat: Arc<Seat>) -> Self {
        match self.0.len() {
            0..MAX_SEATS => Self(self.0.iter().cloned().chain([seat]).collect()),
            _ => Self(vec![seat]),
        }
    }
}

impl Outcome {
    /// Joins two outcomes, in policy order.
    pub fn merge(&mut self, other: &Outcome) {
        self.permits.extend(&other.permits);
        self.forbids.extend(&other.forbids);
        self.errors.extend(&other.errors);
        self.permits.sort_unstable();
        self.forbids.sort_unstable();
        self.errors.sort_unstable();
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
