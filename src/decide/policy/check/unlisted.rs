//! Validates policies for resources and prompts. They have no pinned catalogue, so a policy is validated once for all
//! resources and once for all prompts.
//!
//! A resource has no arguments. The arguments of a prompt are optional strings with unknown names, so every argument that
//! a policy mentions is declared as one.

use super::super::applicability::{Applicability, UnlistedApplicability, number, unlisted_action};
use super::super::inferred_args::{conflict, infer_schema, make_untyped};
use super::super::rule::Rule;
use super::super::validator::{Validation, ValidationFinding};
use super::CatalogueCheck;
use crate::decide::tool::arg_types::{ArgField, ArgSchema, ArgType};
use crate::decide::tool::primitive_kind::PrimitiveKind;
use cedar_policy::Effect;
use std::collections::BTreeSet;

impl CatalogueCheck<'_> {
    pub(super) fn check_unlisted(&mut self) {
        for kind in PrimitiveKind::UNLISTED {
            let ware = self.check_unlisted_kind(kind);
            self.found.unlisted.push(ware);
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
        let Validation {
            findings, impossible, ..
        } = self.validate(unlisted_action(kind, &arg_schema), &indices);
        let wrong: BTreeSet<usize> = findings.iter().map(|finding| finding.rule).collect();
        let idle = impossible
            .difference(&wrong)
            .filter(|index| !self.rules[**index].usage.may_fail);
        let mut applicability = Applicability {
            rules: indices.iter().map(|index| number(*index)).collect(),
            never_matching: idle.map(|index| number(*index)).collect(),
            ..Applicability::default()
        };
        for finding in findings {
            if self.rules[finding.rule].names_kind(kind) {
                self.unsound.insert(finding.rule);
                self.found.problems.push(finding.problem);
            } else if !applicability.is_known_mismatch(number(finding.rule)) {
                self.record_unlisted_mismatch(kind, &arg_schema, finding, &mut applicability);
            }
        }
        UnlistedApplicability {
            kind,
            applicability,
            arg_schema,
        }
    }

    /// Records a policy for everything that is ill typed for this kind: because it uses arguments as something else than
    /// strings, or in any case.
    fn record_unlisted_mismatch(
        &mut self,
        kind: PrimitiveKind,
        fields: &ArgSchema,
        finding: ValidationFinding,
        applicability: &mut Applicability,
    ) {
        let rule = &self.rules[finding.rule];
        let (supposed, _) = infer_schema(&rule.usage.arguments);
        let arguments = || rule.usage.arguments.iter().enumerate();
        let conflicts: Vec<usize> = arguments()
            .filter(|(_, argument)| conflict(fields, &supposed, &argument.path))
            .map(|(place, _)| place)
            .collect();
        let mut without = fields.clone();
        conflicts
            .iter()
            .for_each(|place| make_untyped(&mut without, &rule.usage.arguments[*place].path));
        let settled = !conflicts.is_empty()
            && self
                .validate(unlisted_action(kind, &without), &[finding.rule])
                .findings
                .is_empty();
        let rule = &self.rules[finding.rule];
        if settled {
            // No warning: a policy that compares an argument with a number is meant for tools.
            applicability
                .conflicts
                .extend(conflicts.into_iter().map(|place| (number(finding.rule), place)));
            return;
        }
        applicability.not_evaluable.insert(number(finding.rule));
        let effect = match (rule.effect, rule.shadow) {
            (Effect::Permit, _) => "the permit then does not count",
            (Effect::Forbid, false) => "they are then refused",
            (Effect::Forbid, true) => "they would then be refused",
        };
        let mut warning = finding.problem;
        let word = kind.word();
        warning.message = format!("{}: it cannot judge any {word}, {effect}", warning.message);
        self.found.warnings.push(warning.help(format!(
            "ask for `resource is Guardian::{}` first",
            PrimitiveKind::Tool.entity()
        )));
    }
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
