//! Validates policies for resources and prompts. They have no pinned catalogue, so a policy is validated once for all
//! resources and once for all prompts.
//!
//! A resource has no arguments. The arguments of a prompt are optional strings with unknown names, so every argument that
//! a policy mentions is declared as one.

use super::super::rule::Rule;
use super::super::schema::Action;
use super::super::shape::{Field, Fields, Shape};
use super::super::sort::Sort;
use super::super::suppose::{conflict, hide, supposed};
use super::super::typing::{Finding, Typing};
use super::{Check, Fit, WareFit, number};
use cedar_policy::Effect;
use std::collections::BTreeSet;

impl Check<'_> {
    pub(super) fn wares(&mut self) {
        for sort in Sort::WARES {
            let ware = self.ware(sort);
            self.found.wares.push(ware);
        }
    }

    fn ware(&mut self, sort: Sort) -> WareFit {
        let rules = self.rules.iter().enumerate();
        let indices: Vec<usize> = rules
            .filter(|(index, rule)| rule.reaches(sort) && !self.unsound.contains(index))
            .map(|(index, _)| index)
            .collect();
        let fields = match sort {
            Sort::Prompt => texts(indices.iter().map(|index| &self.rules[*index])),
            Sort::Tool | Sort::Resource => Fields::new(),
        };
        let Typing {
            findings, impossible, ..
        } = self.validate(action(sort, &fields), &indices);
        let wrong: BTreeSet<usize> = findings.iter().map(|finding| finding.rule).collect();
        let idle = impossible
            .difference(&wrong)
            .filter(|index| !self.rules[**index].looks.can_err);
        let mut fit = Fit {
            rules: indices.iter().map(|index| number(*index)).collect(),
            idle: idle.map(|index| number(*index)).collect(),
            ..Fit::default()
        };
        for finding in findings {
            if self.rules[finding.rule].names_sort(sort) {
                self.unsound.insert(finding.rule);
                self.found.problems.push(finding.problem);
            } else if !fit.is_settled(number(finding.rule)) {
                self.settle_ware(sort, &fields, finding, &mut fit);
            }
        }
        WareFit { sort, fit, fields }
    }

    /// Records a policy for everything that is ill typed for this kind: because it uses arguments as something else than
    /// strings, or in any case.
    fn settle_ware(&mut self, sort: Sort, fields: &Fields, finding: Finding, fit: &mut Fit) {
        let rule = &self.rules[finding.rule];
        let (supposed, _) = supposed(&rule.looks.mentions);
        let mentions = || rule.looks.mentions.iter().enumerate();
        let conflicts: Vec<usize> = mentions()
            .filter(|(_, mention)| conflict(fields, &supposed, &mention.path))
            .map(|(place, _)| place)
            .collect();
        let mut without = fields.clone();
        conflicts
            .iter()
            .for_each(|place| hide(&mut without, &rule.looks.mentions[*place].path));
        let settled = !conflicts.is_empty() && self.validate(action(sort, &without), &[finding.rule]).findings.is_empty();
        let rule = &self.rules[finding.rule];
        if settled {
            // No warning: a policy that compares an argument with a number is meant for tools.
            fit.conflicts
                .extend(conflicts.into_iter().map(|place| (number(finding.rule), place)));
            return;
        }
        fit.unjudgeable.insert(number(finding.rule));
        let effect = match (rule.effect, rule.shadow) {
            (Effect::Permit, _) => "the permit then does not count",
            (Effect::Forbid, false) => "they are then refused",
            (Effect::Forbid, true) => "they would then be refused",
        };
        let mut warning = finding.problem;
        let word = sort.word();
        warning.message = format!("{}: it cannot judge any {word}, {effect}", warning.message);
        self.found
            .warnings
            .push(warning.help(format!("ask for `resource is Guardian::{}` first", Sort::Tool.entity())));
    }
}

impl WareFit {
    pub fn action(&self) -> Action<'_> {
        action(self.sort, &self.fields)
    }
}

fn action(sort: Sort, fields: &Fields) -> Action<'_> {
    Action {
        sort,
        id: sort.action().unwrap_or_default(),
        groups: Vec::new(),
        input: Some(fields),
    }
}

/// Declares every argument that one of the policies mentions as an optional string.
fn texts<'a>(rules: impl Iterator<Item = &'a Rule>) -> Fields {
    let names = rules.flat_map(|rule| rule.looks.mentions.iter().filter_map(|mention| mention.path.first()));
    let text = || Field {
        required: false,
        shape: Ok(Shape::String),
    };
    names.map(|name| (name.clone(), text())).collect()
}
