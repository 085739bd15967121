//! Validates policies for resources and prompts. They have no pinned catalogue, so a policy is validated once for all
//! resources and once for all prompts.
//!
//! A resource has no arguments. The arguments of a prompt are optional strings with unknown names, so every argument that
//! a policy mentions is declared as one.

use super::super::applicability::{Applicability, UnlistedApplicability, unlisted_action};
use super::super::rule::Rule;
use super::{CatalogueCheck, what_then};
use crate::decide::tool::arg_types::{ArgField, ArgSchema, ArgType};
use crate::decide::tool::primitive_kind::PrimitiveKind;
use crate::domain::Problem;

impl CatalogueCheck<'_> {
    pub(super) fn check_unlisted(&mut self) {
        for kind in PrimitiveKind::UNLISTED {
            let unlisted = self.check_unlisted_kind(kind);
            self.found.unlisted.push(unlisted);
        }
    }

    fn check_unlisted_kind(&mut self, kind: PrimitiveKind) -> UnlistedApplicability {
        let rules = self.rules.iter().enumerate();
        let indices: Vec<usize> = rules
            .filter(|(index, rule)| rule.can_match(kind) && !self.unsound.contains(index))
            .map(|(index, _)| index)
            .collect();
        let arg_schema = match kind {
            PrimitiveKind::Prompt => text_arguments(indices.iter().map(|index| &self.rules[*index])),
            PrimitiveKind::Tool | PrimitiveKind::Resource => ArgSchema::new(),
        };
        let action = || unlisted_action(kind, &arg_schema);
        let validation = self.validate(action(), &indices);
        let mut applicability = Applicability {
            never_matching: validation.never_matching(self.rules).collect(),
            rules: indices,
            ..Applicability::default()
        };
        for finding in validation.findings {
            let (index, rule) = (finding.rule, &self.rules[finding.rule]);
            if rule.names_kind(kind) {
                self.unsound.insert(index);
                self.found.problems.push(finding.problem);
            } else if !applicability.is_known_mismatch(index) {
                let conflicts = self.conflicting_arguments(index, action(), &arg_schema);
                applicability.add_mismatch(index, &conflicts);
                // A policy that compares an argument with a number is meant for tools: no warning.
                if conflicts.is_empty() {
                    self.found.warnings.push(mismatch_warning(kind, rule, finding.problem));
                }
            }
        }
        UnlistedApplicability {
            kind,
            applicability,
            arg_schema,
        }
    }
}

fn mismatch_warning(kind: PrimitiveKind, rule: &Rule, mut warning: Problem) -> Problem {
    let (word, effect) = (kind.word(), what_then(rule));
    warning.message = format!("{}: it cannot judge any {word}, {effect}", warning.message);
    warning.help("ask for `resource is Guardian::Tool` first")
}

/// Declares every argument that one of the policies mentions as an optional string.
fn text_arguments<'a>(rules: impl Iterator<Item = &'a Rule>) -> ArgSchema {
    let names = rules.flat_map(|rule| rule.usage.arguments.iter().filter_map(|argument| argument.path.first()));
    let text = || ArgField {
        required: false,
        arg_type: Ok(ArgType::String),
    };
    names.map(|name| (name.clone(), text())).collect()
}
