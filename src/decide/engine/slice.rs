//! Selects the policies that can apply to a tool and a caller. Cedar's cost grows with the number of policies, so the
//! others are left out.
//!
//! A policy is indexed by tool (from its action and resource scope), then by caller (from its principal scope). Slices
//! are cached per set of roles, so no policy set is built twice. Leaving out a policy whose scope cannot match never
//! changes a verdict; a property test compares slices with the whole set.

use super::visibility::{self, BlindSpot};
use crate::decide::policy::applicability::Applicability;
use crate::decide::policy::rule::{PrincipalScope, Rule, RuleIndex};
use crate::decide::policy::usage::ContextUsage;
use crate::decide::tool::arg_types::ArgSchema;
use crate::domain::{PrincipalKind, RoleName};
use cedar_policy::{Effect, EntityUid, PolicySet};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// Bounds of the two caches: sets of roles per tool, and slices over all tools. A full cache is cleared.
const MAX_ROLE_SETS: usize = 1_024;
const MAX_SHARED: usize = 16_384;

/// All policies and the slices made of them. Tools with the same applicable policies share one slice.
pub(in crate::decide) struct CompiledPolicies {
    pub rules: Vec<Rule>,
    slices: RwLock<HashMap<Vec<RuleIndex>, Arc<Slice>>>,
}

/// The policies that can apply to one tool and some callers, split by what they read.
pub(in crate::decide) struct Slice {
    /// Enforced policies that read no context: their outcome is the same for every call.
    pub context_free: PolicySubset,
    /// Enforced policies that read the context.
    pub context_dependent: PolicySubset,
    /// The part of `context_dependent` that reads no argument.
    pub argument_free: PolicySubset,
    pub some_permit_reads_input: bool,
    /// Shadow policies; `shadow_permits` are the permits among them.
    pub shadow: PolicySubset,
    pub shadow_permits: PolicySubset,
    /// Some enforced policy (or some enforced permit) treats the primitives of a server differently.
    pub some_depend_on_resource: bool,
    pub some_permit_depends_on_resource: bool,
    /// The enforced policies that do not. Built on first use, which is rare.
    resource_independent: OnceLock<PolicySubset>,
}

/// Policies as Cedar evaluates them, with everything that they read.
pub(in crate::decide) struct PolicySubset {
    pub rules: Vec<RuleIndex>,
    pub set: PolicySet,
    pub context_usage: ContextUsage,
}

/// A slice applied to one tool.
pub(in crate::decide) struct ToolSlice {
    pub slice: Arc<Slice>,
    /// Enforced forbids that cannot be evaluated for this tool, whatever the arguments.
    pub not_evaluable: Vec<RuleIndex>,
    /// The possible blind spots: arguments that a policy names and may not see.
    pub blind_spots: Vec<BlindSpot>,
    pub has_shadow: bool,
}

/// What decides which policies apply to a caller.
pub(in crate::decide) struct CallerKey {
    pub kind: PrincipalKind,
    pub roles: BTreeSet<RoleName>,
    pub uid: EntityUid,
}

/// The policies of one tool, indexed by principal scope.
pub(in crate::decide) struct PolicyIndex {
    filed: Vec<(RuleIndex, ScopeFilter)>,
    roles: HashMap<String, usize>,
    personal: HashMap<EntityUid, Arc<ToolSlice>>,
    kept: RwLock<HashMap<RoleSetKey, Arc<ToolSlice>>>,
    not_evaluable: BTreeSet<RuleIndex>,
    /// Policies that no call of the tool can satisfy as long as they see the arguments they name. They are not evaluated,
    /// but their blind spots count.
    never_matching: BTreeSet<RuleIndex>,
    conflicts: BTreeSet<(RuleIndex, usize)>,
    arg_schema: Arc<ArgSchema>,
}

/// The callers that a policy of an `PolicyIndex` is for. Policies for a single principal are indexed separately.
#[derive(Clone, Copy)]
struct ScopeFilter {
    kind: Option<PrincipalKind>,
    role: Option<usize>,
}

/// Identifies callers with the same applicable policies: their kind, and which of the roles named by the tool's policies
/// they have.
#[derive(PartialEq, Eq, Hash)]
struct RoleSetKey {
    kind: PrincipalKind,
    roles: BTreeSet<usize>,
}

impl CompiledPolicies {
    pub fn new(rules: Vec<Rule>) -> Self {
        Self {
            rules,
            slices: RwLock::default(),
        }
    }

    pub fn rule(&self, index: RuleIndex) -> &Rule {
        &self.rules[index]
    }

    fn slice(&self, rules: Vec<RuleIndex>) -> Arc<Slice> {
        if let Some(slice) = self.slices.read().unwrap_or_else(PoisonError::into_inner).get(&rules) {
            return slice.clone();
        }
        let slice = Arc::new(Slice::new(self, &rules));
        let mut slices = self.slices.write().unwrap_or_else(PoisonError::into_inner);
        if slices.len() >= MAX_SHARED {
            slices.clear();
        }
        slices.entry(rules).or_insert(slice).clone()
    }
}

impl Slice {
    fn new(compiled: &CompiledPolicies, rules: &[RuleIndex]) -> Self {
        let part = |wanted: &dyn Fn(&Rule) -> bool| PolicySubset::new(compiled, rules, wanted);
        let is_open = |rule: &Rule| !rule.shadow && rule.effect == Effect::Permit && rule.reads_input();
        let looks = |rule: &Rule| !rule.shadow && rule.depends_on_resource();
        let some = |wanted: &dyn Fn(&Rule) -> bool| rules.iter().any(|index| wanted(compiled.rule(*index)));
        Self {
            context_free: part(&|rule| !rule.shadow && rule.usage.context.is_empty()),
            context_dependent: part(&|rule| !rule.shadow && !rule.usage.context.is_empty()),
            argument_free: part(&|rule| !rule.shadow && !rule.usage.context.is_empty() && !rule.reads_input()),
            some_permit_reads_input: some(&is_open),
            shadow: part(&|rule| rule.shadow),
            shadow_permits: part(&|rule| rule.shadow && rule.effect == Effect::Permit),
            some_depend_on_resource: some(&looks),
            some_permit_depends_on_resource: some(&|rule| looks(rule) && rule.effect == Effect::Permit),
            resource_independent: OnceLock::new(),
        }
    }

    /// The enforced policies that treat all primitives of a server alike.
    pub fn resource_independent(&self, compiled: &CompiledPolicies) -> &PolicySubset {
        self.resource_independent.get_or_init(|| {
            let mut rules = [&self.context_free.rules[..], &self.context_dependent.rules].concat();
            rules.sort_unstable();
            PolicySubset::new(compiled, &rules, &|rule| !rule.depends_on_resource())
        })
    }
}

impl PolicySubset {
    fn new(compiled: &CompiledPolicies, rules: &[RuleIndex], wanted: &dyn Fn(&Rule) -> bool) -> Self {
        let mut part = Self {
            rules: Vec::new(),
            set: PolicySet::new(),
            context_usage: ContextUsage::none(),
        };
        for index in rules {
            let rule = compiled.rule(*index);
            if wanted(rule) {
                part.rules.push(*index);
                part.context_usage.add(&rule.usage.context);
                part.set
                    .add(rule.conditions.clone())
                    .expect("each rule has a number of its own");
            }
        }
        part
    }
}

impl PolicyIndex {
    /// Indexes the policies that can apply to a tool. If one cannot be evaluated for the tool, a permit is left out and a
    /// forbid refuses every call.
    pub fn new(compiled: &CompiledPolicies, applicability: Applicability, arg_schema: Arc<ArgSchema>) -> Self {
        let mut index = Self {
            filed: Vec::new(),
            roles: HashMap::new(),
            personal: HashMap::new(),
            kept: RwLock::default(),
            not_evaluable: applicability.not_evaluable,
            never_matching: applicability.never_matching,
            conflicts: applicability.conflicts,
            arg_schema,
        };
        let mut personal: HashMap<EntityUid, Vec<RuleIndex>> = HashMap::new();
        for number in &applicability.rules {
            let rule = compiled.rule(*number);
            if rule.effect == Effect::Permit && index.not_evaluable.contains(number) {
                continue;
            }
            let (kind, role) = match &rule.principal {
                PrincipalScope::Any => (None, None),
                PrincipalScope::Kind(kind) => (Some(*kind), None),
                PrincipalScope::Role(kind, role) => (*kind, Some(index.number_of(role))),
                PrincipalScope::One(uid) => {
                    personal.entry(uid.clone()).or_default().push(*number);
                    continue;
                }
                PrincipalScope::Nobody => continue,
            };
            index.filed.push((*number, ScopeFilter { kind, role }));
        }
        let slice = |(uid, rules)| (uid, Arc::new(index.tool_slice(compiled, rules)));
        index.personal = personal.into_iter().map(slice).collect();
        index
    }

    /// The policies for callers of this kind and these roles.
    pub fn general(&self, compiled: &CompiledPolicies, caller: &CallerKey) -> Arc<ToolSlice> {
        let key = self.key(caller);
        if let Some(kept) = self.kept.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return kept.clone();
        }
        let slice = Arc::new(self.tool_slice(compiled, self.select(&key)));
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_ROLE_SETS {
            kept.clear();
        }
        kept.entry(key).or_insert(slice).clone()
    }

    /// The policies whose scope names this caller.
    pub fn personal(&self, caller: &CallerKey) -> Option<&Arc<ToolSlice>> {
        self.personal.get(&caller.uid)
    }

    /// The policies that some call of the tool can satisfy, and those that cannot be evaluated for it.
    pub fn judging(&self) -> impl Iterator<Item = RuleIndex> {
        let general = self.filed.iter().map(|(rule, _)| *rule);
        let personal = self.personal.values().flat_map(|tool| {
            let slice = &tool.slice;
            let judged = slice.context_free.rules.iter().chain(&slice.context_dependent.rules);
            judged.chain(&tool.not_evaluable).copied()
        });
        general.chain(personal).filter(|rule| !self.never_matching.contains(rule))
    }

    fn number_of(&mut self, role: &str) -> usize {
        let next = self.roles.len();
        *self.roles.entry(role.to_owned()).or_insert(next)
    }

    fn key(&self, caller: &CallerKey) -> RoleSetKey {
        let named = caller.roles.iter().filter_map(|role| self.roles.get(role.as_str()));
        RoleSetKey {
            kind: caller.kind,
            roles: named.copied().collect(),
        }
    }

    fn select(&self, key: &RoleSetKey) -> Vec<RuleIndex> {
        let is_in = |role| key.roles.contains(&role);
        let applies = |filed: &ScopeFilter| filed.kind.is_none_or(|kind| kind == key.kind) && filed.role.is_none_or(is_in);
        let found = self.filed.iter().filter(|(_, filed)| applies(filed));
        found.map(|(rule, _)| *rule).collect()
    }

    fn tool_slice(&self, compiled: &CompiledPolicies, rules: Vec<RuleIndex>) -> ToolSlice {
        let is_shadow = |index: &RuleIndex| compiled.rule(*index).shadow;
        let blind_spots = |index: &RuleIndex| {
            visibility::possible_blind_spots(*index, compiled.rule(*index), &self.arg_schema, &self.conflicts)
        };
        let (broken, mut judged): (Vec<_>, Vec<_>) = rules.into_iter().partition(|rule| self.not_evaluable.contains(rule));
        let blind_spots: Vec<BlindSpot> = judged.iter().flat_map(blind_spots).collect();
        let has_shadow = judged.iter().any(is_shadow);
        judged.retain(|rule| !self.never_matching.contains(rule));
        ToolSlice {
            not_evaluable: broken.into_iter().filter(|rule| !is_shadow(rule)).collect(),
            slice: compiled.slice(judged),
            blind_spots,
            has_shadow,
        }
    }
}
