//! Runs Cedar's validator on policies, for one action at a time. So a finding can be attributed to a tool, and a policy
//! is validated only for tools it can apply to.

use super::Problem;
use super::known::Known;
use super::rule::Rule;
use super::schema::{self, Action};
use super::sort::Sort;
use cedar_policy::{EntityUid, PolicySet, ValidationError, ValidationMode, ValidationWarning, Validator};
use miette::Diagnostic;
use std::collections::BTreeSet;

/// What the validator says about some policies for one action.
#[derive(Default)]
pub(super) struct Typing {
    pub findings: Vec<Finding>,
    /// Policies whose conditions no request of the action can satisfy.
    pub impossible: BTreeSet<usize>,
    /// Other warnings, such as confusable characters, each with its policy.
    pub warnings: Vec<(usize, Problem)>,
}

/// A validation error of one policy.
pub(super) struct Finding {
    pub rule: usize,
    pub problem: Problem,
    /// The error is reading an optional attribute without testing for it with `has` first.
    pub unguarded: bool,
}

/// The validator: all policies, and the entities each of them names.
pub(super) struct Typist<'a> {
    rules: &'a [Rule],
    known: &'a Known<'a>,
    /// The entities of namespace `Guardian` that each policy names in its scope or its conditions.
    literals: Vec<Vec<EntityUid>>,
}

impl<'a> Typist<'a> {
    pub fn new(rules: &'a [Rule], known: &'a Known<'a>) -> Self {
        Self {
            rules,
            known,
            literals: rules.iter().map(literals).collect(),
        }
    }

    pub fn literals(&self, index: usize) -> &[EntityUid] {
        &self.literals[index]
    }

    /// The actions that a policy names in its scope or its conditions.
    pub fn actions(&self, index: usize) -> BTreeSet<String> {
        let actions = self.literals[index]
            .iter()
            .filter(|uid| uid.type_name().basename() == "Action");
        actions.map(|uid| uid.id().unescaped().to_owned()).collect()
    }

    /// Validates some policies for one action. The schema also declares the other actions that they name, without
    /// arguments, so that naming them is no error.
    pub fn hold(&self, action: Action<'_>, indices: &[usize]) -> Typing {
        let named: BTreeSet<String> = indices.iter().flat_map(|index| self.actions(*index)).collect();
        let mut declared: Vec<Action<'_>> = Vec::new();
        let mut groups: BTreeSet<&str> = schema::GROUPS.into_iter().chain(action.groups.iter().copied()).collect();
        for id in named.iter().filter(|id| **id != action.id) {
            match (self.known.draft(id), id.contains('/')) {
                (Some(draft), _) => {
                    groups.extend(draft.place.groups.iter().map(String::as_str));
                    declared.push(Action {
                        input: None,
                        ..draft.action()
                    });
                }
                (None, true) => declared.push(Action {
                    sort: Sort::Tool,
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
            Err(error) => return self.unusable(&error, indices),
        };
        let policies = indices.iter().map(|index| self.rules[*index].policy.clone());
        let set = PolicySet::from_policies(policies).expect("each rule has a number of its own");
        let result = Validator::new(schema).validate(&set, ValidationMode::Strict);
        let mut typing = Typing::default();
        for warning in result.validation_warnings() {
            let index = place(warning.policy_id());
            match warning {
                ValidationWarning::ImpossiblePolicy(_) => {
                    typing.impossible.insert(index);
                }
                ValidationWarning::InvalidActionApplication(_) => {}
                other => typing
                    .warnings
                    .push((index, self.rules[index].problem(message(other, index)))),
            }
        }
        typing.findings = result.validation_errors().map(|error| self.finding(error)).collect();
        typing
    }

    fn finding(&self, error: &ValidationError) -> Finding {
        let index = place(error.policy_id());
        let rule = &self.rules[index];
        let label = error.labels().and_then(|mut labels| labels.next());
        let offset = label.map_or(rule.span.start, |label| label.offset());
        let mut problem = rule.problem_at(offset, message(error, index));
        problem.help = error.help().map(|help| help.to_string());
        Finding {
            rule: index,
            problem,
            unguarded: matches!(error, ValidationError::UnsafeOptionalAttributeAccess(_)),
        }
    }

    fn unusable(&self, error: &str, indices: &[usize]) -> Typing {
        let finding = |rule: &usize| Finding {
            rule: *rule,
            problem: self.rules[*rule].problem(format!("the schema of a tool is not usable: {error}")),
            unguarded: true,
        };
        Typing {
            findings: indices.iter().map(finding).collect(),
            ..Typing::default()
        }
    }
}

fn literals(rule: &Rule) -> Vec<EntityUid> {
    let ours = |uid: &EntityUid| uid.type_name().namespace() == "Guardian";
    rule.policy.entity_literals().into_iter().filter(ours).collect()
}

fn place(id: &cedar_policy::PolicyId) -> usize {
    let id: &str = id.as_ref();
    id.parse().expect("policies are numbered when they are read")
}

/// Cedar's message without its prefix `for policy …`, which has the internal id.
fn message(error: &dyn std::fmt::Display, index: usize) -> String {
    let text = error.to_string();
    let prefix = format!("for policy `{index}`");
    match text.strip_prefix(&prefix) {
        Some(rest) => rest.trim_start_matches([',', ':', ' ']).to_owned(),
        None => text,
    }
}
