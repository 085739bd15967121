//! Finds the forbids of one set of policies that another does not have. It compares what they say, not their names, and
//! does not know which of two conditions is the narrower: a forbid that says anything else counts as missing.

use super::deep_stack::on_deep_stack;
use super::rule::{self, PolicySource, Rule};
use crate::domain::PolicyId;
use cedar_policy::pst;
use std::collections::{BTreeMap, HashSet};

/// The forbids of `old` that `new` does not have with the same scope and conditions, each as a source of its own.
pub fn missing_forbids(old: &[PolicySource], new: &[PolicySource]) -> Vec<PolicySource> {
    on_deep_stack(|| compare(old, new))
}

fn compare(old: &[PolicySource], new: &[PolicySource]) -> Vec<PolicySource> {
    let (old, new) = (forbids(old), forbids(new));
    let texts: HashSet<String> = new.iter().map(text).collect();
    let mut changed = old.iter().filter(|rule| !texts.contains(&text(rule))).peekable();
    if changed.peek().is_none() {
        return Vec::new();
    }
    let meanings: Vec<pst::Template> = new.iter().filter_map(meaning).collect();
    changed
        .filter(|rule| meaning(rule).is_none_or(|meaning| !meanings.contains(&meaning)))
        .map(|rule| PolicySource {
            file: rule.source.file.clone(),
            text: text(rule),
        })
        .collect()
}

/// What the forbids of these sources are called.
pub fn forbid_names(sources: &[PolicySource]) -> Vec<PolicyId> {
    on_deep_stack(|| forbids(sources).into_iter().map(|rule| rule.id).collect())
}

/// Each source is read by itself: an earlier form of a forbid has the name of the later one.
fn forbids(sources: &[PolicySource]) -> Vec<Rule> {
    let rules = sources
        .iter()
        .flat_map(|source| rule::read_policies(std::slice::from_ref(source)).0);
    rules.filter(Rule::is_enforced_forbid).collect()
}

/// As it is written, annotations included.
fn text(rule: &Rule) -> String {
    rule.policy.to_string()
}

/// Scope and conditions without the name and the other annotations.
fn meaning(rule: &Rule) -> Option<pst::Template> {
    let body = rule.policy.to_pst().ok()?.body().clone();
    let nameless = pst::PolicyID("".into());
    Some(body.with_id(nameless).with_annotations(BTreeMap::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERMIT: &str = r#"@id("all") permit (principal, action, resource);"#;
    const ETC: &str = r#"@id("etc") forbid (principal, action, resource) when { context.hour > 8 };"#;
    const NIGHT: &str = r#"@id("night") forbid (principal, action, resource) when { context.hour < 5 };"#;

    fn sources(texts: &[&str]) -> Vec<PolicySource> {
        let name = |(index, text): (usize, &&str)| PolicySource {
            file: format!("{index}.cedar"),
            text: (*text).to_owned(),
        };
        texts.iter().enumerate().map(name).collect()
    }

    fn missing(old: &[&str], new: &[&str]) -> Vec<String> {
        let missing = missing_forbids(&sources(old), &sources(new));
        missing.into_iter().map(|source| source.text).collect()
    }

    #[test]
    fn a_forbid_that_is_gone_or_says_anything_else_is_missing() {
        let both = format!("{PERMIT}\n{ETC}\n// why\n{NIGHT}");
        assert_eq!(missing(&[&both], &[PERMIT]), [ETC, NIGHT]);
        assert_eq!(missing(&[&both], &[]), [ETC, NIGHT]);
        assert_eq!(missing(&[&both], &[&ETC.replace("> 8", "> 9"), NIGHT]), [ETC]);
        assert_eq!(missing(&[&both], &[&format!("@mode(\"shadow\") {ETC}"), NIGHT]), [ETC]);
        assert_eq!(missing(&[&both], &[&ETC.replace("forbid", "permit"), NIGHT]), [ETC]);
        assert_eq!(missing(&[&both], &["what cannot be read", NIGHT]), [ETC]);
    }

    #[test]
    fn a_forbid_that_only_moves_or_is_written_otherwise_is_not_missing() {
        let both = format!("{PERMIT}\n{ETC}\n{NIGHT}");
        assert_eq!(missing(&[&both], &[NIGHT, PERMIT, ETC]), [""; 0]);
        let otherwise = ETC.replace("etc", "day").replace(" when ", "\n// by day\n  when\n");
        assert_eq!(
            missing(&[&both], &[&format!("@reason(\"closed\") {otherwise}"), NIGHT]),
            [""; 0]
        );
    }

    #[test]
    fn a_forbid_and_its_earlier_form_are_both_looked_for() {
        let changed = ETC.replace("> 8", "> 9");
        assert_eq!(missing(&[&changed, ETC], &[&changed]), [ETC]);
        assert_eq!(missing(&[PERMIT], &[ETC]), [""; 0]);
    }
}
