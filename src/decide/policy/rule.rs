//! Reads policy files into [`Rule`]s, one per policy: its id, annotations, scope, and what its conditions read. Whether
//! the entities it names exist is checked in `check.rs`.

use super::deep_stack::on_deep_stack;
use super::usage::{self, ContextField, PolicyUsage};
use super::{depth, source_spans};
use crate::decide::tool::primitive_kind::PrimitiveKind;
use crate::domain::{PolicyId, PrincipalKind, Problem, SourceLocation, did_you_mean, nearest};
use cedar_policy::{
    ActionConstraint, Effect, EntityTypeName, EntityUid, Policy, PolicySet, PrincipalConstraint, ResourceConstraint, pst,
};
use miette::Diagnostic;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// One policy file as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySource {
    pub file: String,
    pub text: String,
}

impl PolicySource {
    fn problem_at(&self, offset: usize, message: impl Into<String>) -> Problem {
        Problem::error("", message).at(SourceLocation::in_file(&self.file, &self.text, offset))
    }
}

/// Position of a policy in the list of all policies.
pub(in crate::decide) type RuleIndex = usize;

/// One policy. Its position in the list is its id inside Cedar; `id` is its `@id` for people.
pub(in crate::decide) struct Rule {
    pub id: PolicyId,
    pub policy: Policy,
    /// The policy without its scope. Slices use it, because their policies' scopes are known to match.
    pub conditions: Policy,
    pub effect: Effect,
    /// `@mode("shadow")`: evaluated and reported, but not enforced.
    pub shadow: bool,
    pub message: Option<String>,
    pub remedy: Option<String>,
    pub principal: PrincipalScope,
    pub action: ActionScope,
    pub resource: ResourceScope,
    pub usage: PolicyUsage,
    pub source: Arc<PolicySource>,
    pub span: Range<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::decide) enum PrincipalScope {
    Any,
    Kind(PrincipalKind),
    Role(Option<PrincipalKind>, String),
    One(EntityUid),
    /// An entity type that no caller has: it never matches.
    Nobody,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::decide) enum ActionScope {
    Any,
    /// `==`: exactly this action.
    Is(String),
    /// `in`: these actions and the members of these groups.
    In(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::decide) enum ResourceScope {
    Any,
    Kind(PrimitiveKind),
    /// `<server>/<tool name, URI or prompt name>`
    One(PrimitiveKind, String),
    Server(Option<PrimitiveKind>, String),
    /// An entity type that no resource of a call has: it never matches.
    Nothing,
}

impl ActionScope {
    /// The actions and groups that it names; `None`: it matches every action.
    pub fn ids(&self) -> Option<&[String]> {
        match self {
            ActionScope::Any => None,
            ActionScope::Is(id) => Some(std::slice::from_ref(id)),
            ActionScope::In(ids) => Some(ids),
        }
    }

    pub fn names(&self, id: &str) -> bool {
        self.ids().is_some_and(|ids| ids.iter().any(|named| named == id))
    }
}

impl Rule {
    pub fn is_enforced_forbid(&self) -> bool {
        self.effect == Effect::Forbid && !self.shadow
    }

    pub fn is_enforced_permit(&self) -> bool {
        self.effect == Effect::Permit && !self.shadow
    }

    /// A problem located at the beginning of this policy.
    pub fn problem(&self, message: impl AsRef<str>) -> Problem {
        self.problem_at(self.span.start, message)
    }

    pub fn problem_at(&self, offset: usize, message: impl AsRef<str>) -> Problem {
        let message = format!("policy `{}`: {}", self.id, message.as_ref());
        self.source.problem_at(offset, message)
    }

    /// A problem located at the first attribute called `name`.
    pub fn problem_at_attribute(&self, name: &str, message: impl AsRef<str>) -> Problem {
        let at = source_spans::attribute(&self.source.text, &self.span, name);
        self.problem_at(at.unwrap_or(self.span.start), message)
    }

    /// A problem located at the first entity with this `id`.
    pub fn problem_at_entity(&self, id: &str, message: impl AsRef<str>) -> Problem {
        let at = source_spans::entity(&self.source.text, &self.span, id);
        self.problem_at(at.unwrap_or(self.span.start), message)
    }

    pub fn reads_input(&self) -> bool {
        self.usage.context.reads(ContextField::Input)
    }

    /// Whether the scope names `tool` (`<server>/<tool>`) itself, not only a group or server it is in.
    pub fn names_tool(&self, tool: &str) -> bool {
        self.action.names(tool) || matches!(&self.resource, ResourceScope::One(PrimitiveKind::Tool, id) if id == tool)
    }

    /// Whether the scope can match only tools that it names one by one.
    pub fn names_tools_only(&self) -> bool {
        let by_action = self.action.ids().is_some_and(|ids| ids.iter().all(|id| id.contains('/')));
        by_action || matches!(self.resource, ResourceScope::One(PrimitiveKind::Tool, _))
    }

    /// Whether the scope can match a primitive of this kind.
    pub fn can_match(&self, kind: PrimitiveKind) -> bool {
        let is_its = |id: &String| match kind.action() {
            Some(action) => id == action,
            None => !PrimitiveKind::is_action(id),
        };
        self.action.ids().is_none_or(|ids| ids.iter().any(is_its))
            && match &self.resource {
                ResourceScope::Any | ResourceScope::Server(None, _) => true,
                ResourceScope::Kind(of) | ResourceScope::One(of, _) | ResourceScope::Server(Some(of), _) => *of == kind,
                ResourceScope::Nothing => false,
            }
    }

    /// Whether the scope names this kind, instead of matching it only because it matches everything.
    pub fn names_kind(&self, kind: PrimitiveKind) -> bool {
        kind.action().is_some_and(|action| self.action.names(action))
            || match &self.resource {
                ResourceScope::Kind(of) | ResourceScope::One(of, _) | ResourceScope::Server(Some(of), _) => *of == kind,
                ResourceScope::Any | ResourceScope::Server(None, _) | ResourceScope::Nothing => false,
            }
    }

    /// Whether the policy can treat two primitives of one server differently, by its scope or its conditions.
    pub fn depends_on_resource(&self) -> bool {
        self.usage.reads_resource || matches!(self.resource, ResourceScope::One(..))
    }
}

/// The number of enforced forbid policies in a file; `None` if the file cannot be read.
pub fn forbids(source: &PolicySource) -> Option<usize> {
    on_deep_stack(|| {
        let (rules, problems) = read_policies(std::slice::from_ref(source));
        problems
            .is_empty()
            .then(|| rules.iter().filter(|rule| rule.is_enforced_forbid()).count())
    })
}

/// Reads all policies of all files, in order, and every problem found.
pub(super) fn read_policies(sources: &[PolicySource]) -> (Vec<Rule>, Vec<Problem>) {
    read_with(sources, &[])
}

/// The rules of `kept` come last. Each may have the name of another: it is an earlier form of it.
pub(in crate::decide) fn read_with(sources: &[PolicySource], kept: &[PolicySource]) -> (Vec<Rule>, Vec<Problem>) {
    let mut reader = PolicyReader::default();
    for source in sources {
        reader.file(Arc::new(source.clone()));
    }
    for source in kept {
        reader.names.clear();
        reader.file(Arc::new(source.clone()));
    }
    (reader.rules, reader.problems)
}

#[derive(Default)]
struct PolicyReader {
    rules: Vec<Rule>,
    problems: Vec<Problem>,
    /// Where each id was first used.
    names: HashMap<PolicyId, (Arc<PolicySource>, usize)>,
}

impl PolicyReader {
    fn file(&mut self, source: Arc<PolicySource>) {
        if let Some((at, bound)) = depth::too_deep(&source.text) {
            let problem = source.problem_at(at, bound.to_string());
            return self.problems.push(problem.help("write it as several policies"));
        }
        let set: PolicySet = match source.text.parse() {
            Ok(set) => set,
            Err(errors) => return self.unreadable(&source, &errors),
        };
        let spans = source_spans::statements(&source.text);
        for template in set.templates() {
            let at = span_of(template.id(), &spans).start;
            let problem = source.problem_at(at, "policy templates are not supported");
            self.problems
                .push(problem.help("write the entity instead of `?principal` or `?resource`"));
        }
        let mut policies: Vec<(Range<usize>, &Policy)> =
            set.policies().map(|policy| (span_of(policy.id(), &spans), policy)).collect();
        policies.sort_by_key(|(span, _)| span.start);
        for (span, policy) in policies {
            match self.rule(&source, span, policy) {
                Ok(rule) => self.rules.push(rule),
                Err(problem) => self.problems.push(problem),
            }
        }
    }

    fn unreadable(&mut self, source: &PolicySource, errors: &cedar_policy::ParseErrors) {
        for error in errors.iter() {
            let label = error.labels().and_then(|mut labels| labels.next());
            let offset = label.as_ref().map_or(0, |label| label.offset());
            let mut message = error.to_string();
            if let Some(detail) = label.as_ref().and_then(|label| label.label()) {
                message = format!("{message}: {detail}");
            }
            let mut problem = source.problem_at(offset, message);
            problem.help = error.help().map(|help| help.to_string());
            self.problems.push(problem);
        }
    }

    fn rule(&mut self, source: &Arc<PolicySource>, span: Range<usize>, policy: &Policy) -> Result<Rule, Problem> {
        let at = |offset: usize, message: String| source.problem_at(offset, message);
        let notes: HashMap<&str, &str> = policy.annotations().collect();
        let note = |name: &str| notes.get(name).copied().filter(|text| !text.is_empty());
        let place = |name: &str| source_spans::annotation(&source.text, &span, name).unwrap_or(span.start);

        let id = note("id").ok_or_else(|| {
            at(span.start, "policy has no name".to_owned()).help("write `@id(\"…\")` before it; records and refusals quote it")
        })?;
        let id = PolicyId::parse(id).map_err(|error| at(place("id"), error.to_string()))?;
        if let Some((file, first)) = self.names.get(&id) {
            let first = file.problem_at(*first, "the first is there").to_string();
            return Err(at(place("id"), format!("policy `{id}` is defined twice")).help(first));
        }
        self.names.insert(id.clone(), (source.clone(), place("id")));
        for name in notes.keys().copied() {
            // Cedar allows any annotation, so names that are no misspelling are left alone.
            if !ANNOTATIONS.contains(&name)
                && let Some(known) = nearest(name, ANNOTATIONS)
            {
                let message = format!("policy `{id}`: unknown annotation `@{name}`");
                return Err(at(place(name), message).help(did_you_mean(&format!("@{known}"))));
            }
        }
        let shadow = match notes.get("mode").copied() {
            None | Some("enforce") => false,
            Some("shadow") => true,
            Some(other) => {
                let message = format!("policy `{id}`: `{}` is not a mode", other.escape_debug());
                return Err(at(place("mode"), message).help("write `@mode(\"shadow\")` or leave it out"));
            }
        };

        let named = policy.new_id(cedar_policy::PolicyId::new(self.rules.len().to_string()));
        let tree = named.to_pst();
        let read = tree.and_then(|tree| Ok((usage::policy_usage(tree.body()), conditions(tree.body())?)));
        let (usage, conditions) = read.map_err(|error| at(span.start, format!("policy `{id}`: {error}")))?;
        Ok(Rule {
            policy: named,
            conditions,
            effect: policy.effect(),
            shadow,
            message: note("reason").map(str::to_owned),
            remedy: note("remedy").map(str::to_owned),
            principal: principal_scope(policy.principal_constraint()),
            action: action_scope(policy.action_constraint()),
            resource: resource_scope(policy.resource_constraint()),
            usage,
            source: source.clone(),
            span,
            id,
        })
    }
}

fn conditions(policy: &pst::Template) -> Result<Policy, pst::PstConstructionError> {
    let unscoped = pst::Template::new(
        policy.id.clone(),
        policy.effect,
        pst::PrincipalConstraint::Any,
        pst::ActionConstraint::Any,
        pst::ResourceConstraint::Any,
    );
    let unscoped = unscoped.try_with_clauses(policy.clauses().iter().cloned())?;
    Policy::from_pst(pst::Policy::Static(unscoped.try_into()?))
}

/// The span of a policy. Cedar ids the policies of a text `policy0`, `policy1`, … in their order.
fn span_of(id: &cedar_policy::PolicyId, spans: &[Range<usize>]) -> Range<usize> {
    let name: &str = id.as_ref();
    let index: Option<usize> = name.strip_prefix("policy").and_then(|number| number.parse().ok());
    index.and_then(|index| spans.get(index)).cloned().unwrap_or(0..0)
}

const ANNOTATIONS: [&str; 5] = ["id", "reason", "remedy", "mode", "description"];

fn kind(name: &EntityTypeName) -> Option<PrincipalKind> {
    match name.to_string().as_str() {
        "Guardian::User" => Some(PrincipalKind::User),
        "Guardian::Service" => Some(PrincipalKind::Service),
        _ => None,
    }
}

fn is(name: &EntityTypeName, known: &str) -> bool {
    name.to_string() == known
}

fn id(uid: &EntityUid) -> String {
    uid.id().unescaped().to_owned()
}

fn principal_scope(constraint: PrincipalConstraint) -> PrincipalScope {
    // `in uid`: matches the members of a role; an entity is also `in` itself (Cedar).
    let among = |wanted: Option<PrincipalKind>, uid: EntityUid| match kind(uid.type_name()) {
        None if is(uid.type_name(), "Guardian::Role") => PrincipalScope::Role(wanted, id(&uid)),
        Some(kind) if wanted.is_none_or(|wanted| wanted == kind) => PrincipalScope::One(uid),
        _ => PrincipalScope::Nobody,
    };
    let scope = match constraint {
        PrincipalConstraint::Any => Some(PrincipalScope::Any),
        PrincipalConstraint::Eq(uid) => kind(uid.type_name()).map(|_| PrincipalScope::One(uid)),
        PrincipalConstraint::Is(name) => kind(&name).map(PrincipalScope::Kind),
        PrincipalConstraint::In(uid) => Some(among(None, uid)),
        PrincipalConstraint::IsIn(name, uid) => kind(&name).map(|kind| among(Some(kind), uid)),
    };
    scope.unwrap_or(PrincipalScope::Nobody)
}

fn action_scope(constraint: ActionConstraint) -> ActionScope {
    match constraint {
        ActionConstraint::Any => ActionScope::Any,
        ActionConstraint::Eq(uid) => ActionScope::Is(id(&uid)),
        ActionConstraint::In(uids) => ActionScope::In(uids.iter().map(id).collect()),
    }
}

fn resource_scope(constraint: ResourceConstraint) -> ResourceScope {
    let kind = |name: &EntityTypeName| {
        let is_ours = name.namespace() == "Guardian";
        PrimitiveKind::of_entity(name.basename()).filter(|_| is_ours)
    };
    let among = |wanted: Option<PrimitiveKind>, uid: EntityUid| match kind(uid.type_name()) {
        Some(of) if wanted.is_none_or(|wanted| wanted == of) => ResourceScope::One(of, id(&uid)),
        None if is(uid.type_name(), "Guardian::Server") => ResourceScope::Server(wanted, id(&uid)),
        _ => ResourceScope::Nothing,
    };
    let scope = match constraint {
        ResourceConstraint::Any => Some(ResourceScope::Any),
        ResourceConstraint::Eq(uid) => kind(uid.type_name()).map(|of| ResourceScope::One(of, id(&uid))),
        ResourceConstraint::Is(name) => kind(&name).map(ResourceScope::Kind),
        ResourceConstraint::In(uid) => Some(among(None, uid)),
        ResourceConstraint::IsIn(name, uid) => kind(&name).map(|of| among(Some(of), uid)),
    };
    scope.unwrap_or(ResourceScope::Nothing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(texts: &[&str]) -> (Vec<Rule>, Vec<String>) {
        let sources: Vec<PolicySource> = (0..)
            .zip(texts)
            .map(|(index, text)| PolicySource {
                file: format!("{index}.cedar"),
                text: (*text).to_owned(),
            })
            .collect();
        let (rules, problems) = super::read_policies(&sources);
        (rules, problems.iter().map(Problem::to_string).collect())
    }

    #[test]
    fn every_policy_has_a_name_of_its_own() {
        let (rules, problems) = read_text(&[
            "@id(\"a\") permit(principal, action, resource);\npermit(principal, action, resource);\n",
            "// a comment; with a semicolon\n@reason(\"x\")\n@id(\"a\") forbid(principal, action, resource);\n@id(\"b\") forbid(principal, action, resource);",
        ]);
        assert_eq!(rules.iter().map(|rule| rule.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(
            problems,
            [
                "0.cedar:2:1: policy has no name; write `@id(\"…\")` before it; records and refusals quote it",
                "1.cedar:3:1: policy `a` is defined twice; 0.cedar:1:1: the first is there",
            ]
        );
    }

    #[test]
    fn all_files_are_read_even_if_one_is_broken() {
        let (rules, problems) = read_text(&[
            "@id(\"a\")\npermit(principal, action, resource) when { context. };\n",
            "@id(\"b\") permit(principal == ?principal, action, resource);\n@id(\"c\") @mode(\"shdow\") permit(principal, action, resource);",
            "@id(\"d\") @resaon(\"x\") permit(principal, action, resource);\n@id(\"e\") @owner(\"me\") permit(principal, action, resource);",
        ]);
        assert_eq!(rules.iter().map(|rule| rule.id.as_str()).collect::<Vec<_>>(), ["e"]);
        assert_eq!(problems.len(), 4, "{problems:#?}");
        assert!(problems[0].starts_with("0.cedar:2:53: "), "{problems:#?}");
        assert_eq!(
            problems[1..],
            [
                "1.cedar:1:1: policy templates are not supported; write the entity instead of `?principal` or `?resource`",
                "1.cedar:2:10: policy `c`: `shdow` is not a mode; write `@mode(\"shadow\")` or leave it out",
                "2.cedar:1:10: policy `d`: unknown annotation `@resaon`; did you mean `@reason`?",
            ]
        );
    }

    #[test]
    fn the_scope_is_read() {
        let (rules, problems) = read_text(&[r#"
            @id("1") permit(principal in Guardian::Role::"r", action == Guardian::Action::"s/t", resource in Guardian::Server::"s");
            @id("2") permit(principal is Guardian::User in Guardian::Role::"r", action in [Guardian::Action::"s/t", Guardian::Action::"g"], resource is Guardian::Tool);
            @id("3") permit(principal is Guardian::User in Guardian::Service::"x|y", action, resource == Guardian::Server::"s");
        "#]);
        assert_eq!(problems, [""; 0]);
        assert_eq!(rules[0].principal, PrincipalScope::Role(None, "r".to_owned()));
        assert_eq!(rules[0].action, ActionScope::Is("s/t".to_owned()));
        assert_eq!(rules[0].resource, ResourceScope::Server(None, "s".to_owned()));
        assert_eq!(
            rules[1].principal,
            PrincipalScope::Role(Some(PrincipalKind::User), "r".to_owned())
        );
        assert!(rules[1].names_tool("s/t") && !rules[1].names_tools_only());
        assert_eq!(rules[2].principal, PrincipalScope::Nobody);
        assert_eq!(rules[2].resource, ResourceScope::Nothing);
    }
}
