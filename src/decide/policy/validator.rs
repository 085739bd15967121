//! Runs Cedar's validator on policies, for one action at a time. So a finding can be attributed to a tool, and a policy
//! is validated only for tools it can apply to.

use super::entity_names::EntityNames;
use super::rule::{Rule, RuleIndex};
use crate::decide::tool::primitive_kind::PrimitiveKind;
use crate::decide::tool::schema::{self, Action};
use crate::domain::Problem;
use cedar_policy::{EntityUid, PolicySet, ValidationError, ValidationMode, ValidationWarning, Validator};
use miette::Diagnostic;
use std::collections::BTreeSet;

/// What the validator says about some policies for one action.
#[derive(Default)]
pub(in crate::decide) struct Validation {
    pub findings: Vec<ValidationFinding>,
    /// Policies whose conditions no request of the action can satisfy.
    pub impossible: BTreeSet<usize>,
    /// Other warnings, such as confusable characters, each with its policy.
    pub warnings: Vec<(usize, Problem)>,
}

/// A validation error of one policy.
pub(in crate::decide) struct ValidationFinding {
    pub rule: usize,
    pub problem: Problem,
    /// The error is reading an optional attribute without testing for it with `has` first.
    pub unguarded: bool,
}

/// The validator: all policies, and the entities each of them names.
pub(in crate::decide) struct PolicyValidator<'a> {
    rules: &'a [Rule],
    entity_names: &'a EntityNames<'a>,
    /// The entities of namespace `Guardian` that each policy names in its scope or its conditions.
    literals: Vec<Vec<EntityUid>>,
}

impl Validation {
    /// Policies that no request of the action can satisfy. One whose evaluation may error is not among them: the error
    /// refuses.
    pub fn never_matching(&self, rules: &[Rule]) -> impl Iterator<Item = RuleIndex> {
        let is_wrong = |index: &usize| self.findings.iter().any(|finding| finding.rule == *index);
        let idle = self.impossible.iter().copied();
        idle.filter(move |index| !is_wrong(index) && !rules[*index].usage.may_fail)
    }
}

impl<'a> PolicyValidator<'a> {
    pub fn new(rules: &'a [Rule], entity_names: &'a EntityNames<'a>) -> Self {
        Self {
            rules,
            entity_names,
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
    pub fn validate_for_action(&self, action: Action<'_>, indices: &[usize]) -> Validation {
        let named: BTreeSet<String> = indices.iter().flat_map(|index| self.actions(*index)).collect();
        let mut declared: Vec<Action<'_>> = Vec::new();
        let mut groups: BTreeSet<&str> = schema::GROUPS.into_iter().chain(action.groups.iter().copied()).collect();
        for id in named.iter().filter(|id| **id != action.id) {
            match (self.entity_names.tool_by_id(id), id.contains('/')) {
                (Some(tool), _) => {
                    groups.extend(tool.target.groups.iter().map(String::as_str));
                    declared.push(Action {
                        input: None,
                        ..tool.action()
                    });
                }
                (None, true) => declared.push(Action {
                    kind: PrimitiveKind::Tool,
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
        let mut validation = Validation::default();
        for warning in result.validation_warnings() {
            let index = rule_number(warning.policy_id());
            match warning {
                ValidationWarning::ImpossiblePolicy(_) => {
                    validation.impossible.insert(index);
                }
                ValidationWarning::InvalidActionApplication(_) => {}
                other => validation
                    .warnings
                    .push((index, self.rules[index].problem(message(other, index)))),
            }
        }
        validation.findings = result.validation_errors().map(|error| self.finding(error)).collect();
        validation
    }

    fn finding(&self, error: &ValidationError) -> ValidationFinding {
        let index = rule_number(error.policy_id());
        let rule = &self.rules[index];
        let label = error.labels().and_then(|mut labels| labels.next());
        let offset = label.map_or(rule.span.start, |label| label.offset());
        let mut problem = rule.problem_at(offset, message(error, index));
        problem.help = error.help().map(|help| help.to_string());
        ValidationFinding {
            rule: index,
            problem,
            unguarded: matches!(error, ValidationError::UnsafeOptionalAttributeAccess(_)),
        }
    }

    fn unusable(&self, error: &str, indices: &[usize]) -> Validation {
        let finding = |rule: &usize| ValidationFinding {
            rule: *rule,
            problem: self.rules[*rule].problem(format!("the schema of a tool is not usable: {error}")),
            unguarded: true,
        };
        Validation {
            findings: indices.iter().map(finding).collect(),
            ..Validation::default()
        }
    }
}

fn literals(rule: &Rule) -> Vec<EntityUid> {
    let ours = |uid: &EntityUid| uid.type_name().namespace() == "Guardian";
    rule.policy.entity_literals().into_iter().filter(ours).collect()
}

fn rule_number(id: &cedar_policy::PolicyId) -> usize {
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
