//! Selects the policies that can apply to a tool and a caller. Cedar's cost grows with the number of policies, so the
//! others are left out.
//!
//! A policy is indexed by tool (from its action and resource scope), then by caller (from its principal scope). Slices
//! are cached per set of roles, so no policy set is built twice. Leaving out a policy whose scope cannot match never
//! changes a verdict; a property test compares slices with the whole set.

use super::Subject;
use super::check::Fit;
use super::reads::Reads;
use super::rule::{PrincipalScope, Rule};
use super::shape::Fields;
use super::sight::{self, Spot};
use crate::domain::PrincipalKind;
use cedar_policy::{Effect, EntityUid, PolicySet};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// Position of a policy in the list of all policies.
pub(super) type RuleIndex = u32;

/// Bounds of the two caches: sets of roles per tool, and slices over all tools. A full cache is cleared.
const MAX_KEPT: usize = 1_024;
const MAX_SHARED: usize = 16_384;

/// All policies and the slices made of them. Tools with the same applicable policies share one slice.
pub(super) struct Library {
    rules: Vec<Rule>,
    slices: RwLock<HashMap<Vec<RuleIndex>, Arc<Slice>>>,
}

/// The policies that can apply to one tool and some callers, split by what they read.
pub(super) struct Slice {
    /// Enforced policies that read no context: their outcome is the same for every call.
    pub fixed: Part,
    /// Enforced policies that read the context.
    pub live: Part,
    /// The part of `live` that reads no argument.
    pub steady: Part,
    pub some_permit_reads_input: bool,
    /// Shadow policies; `shadow_permits` are the permits among them.
    pub shadow: Part,
    pub shadow_permits: Part,
    /// Some enforced policy (or some enforced permit) treats the primitives of a server differently.
    pub some_look_at_resource: bool,
    pub some_permit_looks_at_resource: bool,
    /// The enforced policies that do not. Built on first use, which is rare.
    unplaced: OnceLock<Part>,
}

/// Policies as Cedar evaluates them, with everything that they read.
pub(super) struct Part {
    pub rules: Vec<RuleIndex>,
    pub set: PolicySet,
    pub reads: Reads,
}

/// A slice applied to one tool.
pub(super) struct ToolSlice {
    pub slice: Arc<Slice>,
    /// Enforced forbids that cannot be evaluated for this tool, whatever the arguments.
    pub broken: Vec<RuleIndex>,
    /// The possible blind spots: arguments that a policy names and may not see.
    pub spots: Vec<Spot>,
    pub has_shadow: bool,
}

/// The policies of one tool, indexed by principal scope.
pub(super) struct Index {
    filed: Vec<(RuleIndex, Filed)>,
    roles: HashMap<String, usize>,
    personal: HashMap<EntityUid, Arc<ToolSlice>>,
    kept: RwLock<HashMap<Key, Arc<ToolSlice>>>,
    broken: BTreeSet<RuleIndex>,
    /// Policies that no call of the tool can satisfy as long as they see the arguments they name. They are not evaluated,
    /// but their blind spots count.
    idle: BTreeSet<RuleIndex>,
    conflicts: BTreeSet<(RuleIndex, usize)>,
    fields: Arc<Fields>,
}

/// The callers that a policy of an `Index` is for. Policies for a single principal are indexed separately.
#[derive(Clone, Copy)]
struct Filed {
    kind: Option<PrincipalKind>,
    role: Option<usize>,
}

/// Identifies callers with the same applicable policies: their kind, and which of the roles named by the tool's policies
/// they have. Role numbers below 128 are bits of `low`.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    kind: PrincipalKind,
    low: u128,
    high: Vec<usize>,
}

impl Library {
    pub fn new(rules: Vec<Rule>) -> Self {
        Self {
            rules,
            slices: RwLock::default(),
        }
    }

    pub fn rule(&self, index: RuleIndex) -> &Rule {
        &self.rules[index as usize]
    }

    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    fn slice(&self, rules: Vec<RuleIndex>) -> Arc<Slice> {
        let found = self
            .slices
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&rules)
            .cloned();
        found.unwrap_or_else(|| {
            let slice = Arc::new(Slice::new(self, &rules));
            let mut slices = self.slices.write().unwrap_or_else(PoisonError::into_inner);
            if slices.len() >= MAX_SHARED {
                slices.clear();
            }
            slices.entry(rules).or_insert(slice).clone()
        })
    }
}

impl Slice {
    fn new(library: &Library, rules: &[RuleIndex]) -> Self {
        let part = |wanted: &dyn Fn(&Rule) -> bool| Part::new(library, rules, wanted);
        let is_open = |rule: &Rule| !rule.shadow && rule.effect == Effect::Permit && rule.reads_input();
        let looks = |rule: &Rule| !rule.shadow && rule.looks_at_resource();
        let some = |wanted: &dyn Fn(&Rule) -> bool| rules.iter().any(|index| wanted(library.rule(*index)));
        Self {
            fixed: part(&|rule| !rule.shadow && rule.looks.reads.is_empty()),
            live: part(&|rule| !rule.shadow && !rule.looks.reads.is_empty()),
            steady: part(&|rule| !rule.shadow && !rule.looks.reads.is_empty() && !rule.reads_input()),
            some_permit_reads_input: some(&is_open),
            shadow: part(&|rule| rule.shadow),
            shadow_permits: part(&|rule| rule.shadow && rule.effect == Effect::Permit),
            some_look_at_resource: some(&looks),
            some_permit_looks_at_resource: some(&|rule| looks(rule) && rule.effect == Effect::Permit),
            unplaced: OnceLock::new(),
        }
    }

    /// The enforced policies that treat all primitives of a server alike.
    pub fn unplaced(&self, library: &Library) -> &Part {
        self.unplaced.get_or_init(|| {
            let mut rules: Vec<RuleIndex> = self.fixed.rules.iter().chain(&self.live.rules).copied().collect();
            rules.sort_unstable();
            Part::new(library, &rules, &|rule| !rule.looks_at_resource())
        })
    }
}

impl Part {
    fn new(library: &Library, rules: &[RuleIndex], wanted: &dyn Fn(&Rule) -> bool) -> Self {
        let mut part = Self {
            rules: Vec::new(),
            set: PolicySet::new(),
            reads: Reads::none(),
        };
        for index in rules {
            let rule = library.rule(*index);
            if wanted(rule) {
                part.rules.push(*index);
                part.reads.add(&rule.looks.reads);
                part.set
                    .add(rule.conditions.clone())
                    .expect("each rule has a number of its own");
            }
        }
        part
    }
}

impl Index {
    /// Indexes the policies that can apply to a tool. If one cannot be evaluated for the tool, a permit is left out and a
    /// forbid refuses every call.
    pub fn new(library: &Library, fit: Fit, fields: Arc<Fields>) -> Self {
        let mut index = Self {
            filed: Vec::new(),
            roles: HashMap::new(),
            personal: HashMap::new(),
            kept: RwLock::default(),
            broken: fit.unjudgeable,
            idle: fit.idle,
            conflicts: fit.conflicts,
            fields,
        };
        let mut personal: HashMap<EntityUid, Vec<RuleIndex>> = HashMap::new();
        for number in &fit.rules {
            let rule = library.rule(*number);
            if rule.effect == Effect::Permit && index.broken.contains(number) {
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
            index.filed.push((*number, Filed { kind, role }));
        }
        let slice = |(uid, rules)| (uid, Arc::new(index.tool_slice(library, rules)));
        index.personal = personal.into_iter().map(slice).collect();
        index
    }

    /// The policies for callers of this kind and these roles.
    pub fn general(&self, library: &Library, subject: &Subject) -> Arc<ToolSlice> {
        let key = self.key(subject);
        if let Some(kept) = self.kept.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return kept.clone();
        }
        let slice = Arc::new(self.tool_slice(library, self.select(&key)));
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.entry(key).or_insert(slice).clone()
    }

    /// The policies whose scope names this caller.
    pub fn personal(&self, subject: &Subject) -> Option<&Arc<ToolSlice>> {
        if self.personal.is_empty() {
            None
        } else {
            self.personal.get(subject.uid())
        }
    }

    fn number_of(&mut self, role: &str) -> usize {
        let next = self.roles.len();
        *self.roles.entry(role.to_owned()).or_insert(next)
    }

    fn key(&self, subject: &Subject) -> Key {
        let mut key = Key {
            kind: subject.kind(),
            low: 0,
            high: Vec::new(),
        };
        if self.roles.is_empty() {
            return key;
        }
        for role in subject.roles() {
            match self.roles.get(role.as_str()) {
                Some(number @ 0..128) => key.low |= 1 << number,
                Some(number) => key.high.push(*number),
                None => {}
            }
        }
        key
    }

    fn select(&self, key: &Key) -> Vec<RuleIndex> {
        let is_in = |role: usize| match role {
            0..128 => key.low & (1 << role) != 0,
            _ => key.high.contains(&role),
        };
        let applies = |filed: &Filed| filed.kind.is_none_or(|kind| kind == key.kind) && filed.role.is_none_or(is_in);
        let found = self.filed.iter().filter(|(_, filed)| applies(filed));
        found.map(|(rule, _)| *rule).collect()
    }

    fn tool_slice(&self, library: &Library, rules: Vec<RuleIndex>) -> ToolSlice {
        let is_shadow = |index: &RuleIndex| library.rule(*index).shadow;
        let spots = |index: &RuleIndex| sight::spots(*index, library.rule(*index), &self.fields, &self.conflicts);
        let (broken, mut judged): (Vec<_>, Vec<_>) = rules.into_iter().partition(|rule| self.broken.contains(rule));
        let spots: Vec<Spot> = judged.iter().flat_map(spots).collect();
        let has_shadow = judged.iter().any(is_shadow);
        judged.retain(|rule| !self.idle.contains(rule));
        ToolSlice {
            broken: broken.into_iter().filter(|rule| !is_shadow(rule)).collect(),
            slice: library.slice(judged),
            spots,
            has_shadow,
        }
    }
}
