//! Which policies can apply to a tool, or to all resources or prompts, and which of them cannot be evaluated for it. Made by
//! `check.rs`; slices are cut by it.

use super::rule::RuleIndex;
use crate::decide::tool::arg_types::ArgSchema;
use crate::decide::tool::primitive_kind::PrimitiveKind;
use crate::decide::tool::schema::Action;
use std::collections::BTreeSet;

/// The policies that can apply to one tool, and those of them that cannot be evaluated for it.
#[derive(Default)]
pub(in crate::decide) struct Applicability {
    pub rules: Vec<RuleIndex>,
    /// Policies that are ill typed for the tool, whatever a call carries.
    pub not_evaluable: BTreeSet<RuleIndex>,
    /// Policies whose conditions no call of the tool can satisfy, as long as they see the arguments they name.
    pub never_matching: BTreeSet<RuleIndex>,
    /// Policies that are ill typed for the tool only if a call carries the mentioned argument; the number is its position
    /// in `mentions`.
    pub conflicts: BTreeSet<(RuleIndex, usize)>,
}

impl Applicability {
    /// The same, for some of its policies.
    pub fn of(&self, rules: Vec<RuleIndex>) -> Self {
        let among = |set: &BTreeSet<RuleIndex>| rules.iter().copied().filter(|rule| set.contains(rule)).collect();
        let conflicts = rules
            .iter()
            .flat_map(|rule| self.conflicts.range((*rule, 0)..=(*rule, usize::MAX)));
        Self {
            not_evaluable: among(&self.not_evaluable),
            never_matching: among(&self.never_matching),
            conflicts: conflicts.copied().collect(),
            rules,
        }
    }

    pub fn has(&self, index: RuleIndex) -> bool {
        self.rules.binary_search(&index).is_ok()
    }

    /// Notes that a policy is ill typed: if a call carries one of these arguments, or without any, whatever it carries.
    pub fn add_mismatch(&mut self, rule: RuleIndex, arguments: &[usize]) {
        if arguments.is_empty() {
            self.not_evaluable.insert(rule);
        }
        self.conflicts.extend(arguments.iter().map(|argument| (rule, *argument)));
    }

    pub fn is_known_mismatch(&self, rule: RuleIndex) -> bool {
        self.not_evaluable.contains(&rule) || self.conflicts.iter().any(|(other, _)| *other == rule)
    }
}

/// The policies for all resources or all prompts, and the arguments they can see.
pub(in crate::decide) struct UnlistedApplicability {
    pub kind: PrimitiveKind,
    pub applicability: Applicability,
    pub arg_schema: ArgSchema,
}

impl UnlistedApplicability {
    pub fn action(&self) -> Action<'_> {
        unlisted_action(self.kind, &self.arg_schema)
    }
}

pub(super) fn unlisted_action(kind: PrimitiveKind, fields: &ArgSchema) -> Action<'_> {
    Action {
        kind,
        id: kind.action().unwrap_or_default(),
        groups: Vec::new(),
        input: Some(fields),
    }
}
