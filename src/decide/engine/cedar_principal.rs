//! A caller as a Cedar entity, with its evaluation cache. Built once per verified credential and member version.

use super::compiled_tool::CompiledTool;
use super::eval_cache::EvalEntry;
use super::slice::{CallerKey, CompiledPolicies, PolicyIndex};
use crate::decide::tool::target::{CedarTarget, uid};
use crate::domain::{EnvironmentName, Member, Principal, PrincipalKind, RoleName};
use arc_swap::{ArcSwap, ArcSwapOption};
use cedar_policy::{Entities, Entity, EntityUid, RestrictedExpression};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// The caller as policies see it. Cheap to clone.
#[derive(Clone)]
pub struct CedarPrincipal(Arc<PrincipalData>);

struct PrincipalData {
    key: CallerKey,
    /// The caller's entity alone, without those of a call.
    entities: Entities,
    /// The tools that the caller used last. At the bound all entries are dropped. Entries are found by the identity of
    /// their `CedarTarget`, so those of an older snapshot never match.
    eval_cache: ArcSwap<Vec<Arc<EvalEntry>>>,
    address: ArcSwapOption<(IpAddr, RestrictedExpression)>,
}

/// How many tools are cached per caller.
const MAX_CACHED_TOOLS: usize = 32;

impl CedarPrincipal {
    /// The roles are those of the member and those of the credential together.
    pub fn new(principal: &Principal, member: Option<&Member>, environment: &EnvironmentName) -> Self {
        let of_member = member.iter().flat_map(|member| &member.roles);
        let roles: BTreeSet<RoleName> = of_member.chain(&principal.roles).cloned().collect();
        let kind = match principal.kind {
            PrincipalKind::User => "Guardian::User",
            PrincipalKind::Service => "Guardian::Service",
        };
        let uid = uid(kind, &format!("{}|{}", principal.alias, principal.subject));
        let in_roles: HashSet<EntityUid> = roles.iter().map(|role| self::uid("Guardian::Role", role.as_str())).collect();
        let attributes = attributes(principal, member, environment);
        let entity = Entity::new(uid.clone(), attributes, in_roles).expect("texts are values");
        Self(Arc::new(PrincipalData {
            entities: Entities::from_entities([entity], None).expect("one entity is in no circle"),
            key: CallerKey {
                uid,
                kind: principal.kind,
                roles,
            },
            eval_cache: ArcSwap::default(),
            address: ArcSwapOption::empty(),
        }))
    }

    pub(in crate::decide) fn key(&self) -> &CallerKey {
        &self.0.key
    }

    /// The cached evaluation of this tool for this caller; the first call makes it.
    pub(super) fn eval_entry(&self, tool: &CompiledTool, compiled: &CompiledPolicies) -> Arc<EvalEntry> {
        let target = &tool.definition.target;
        let cached = self.0.eval_cache.load();
        if let Some(entry) = cached.iter().find(|entry| Arc::ptr_eq(&entry.target, target)) {
            return entry.clone();
        }
        let entry = Arc::new(self.uncached_entry(target.clone(), std::iter::once(&tool.index), compiled));
        let is_full = cached.len() >= MAX_CACHED_TOOLS;
        let mut entries = if is_full { Vec::new() } else { cached.to_vec() };
        entries.push(entry.clone());
        self.0.eval_cache.store(Arc::new(entries));
        entry
    }

    /// The same for a resource or prompt, not cached: their names are unbounded.
    pub(super) fn uncached_entry<'a>(
        &self,
        target: Arc<CedarTarget>,
        indices: impl Iterator<Item = &'a PolicyIndex>,
        compiled: &CompiledPolicies,
    ) -> EvalEntry {
        EvalEntry::new(self.key(), self.0.entities.clone(), target, indices, compiled)
    }

    /// An address as Cedar's `ipaddr`. Cedar parses the name of the extension function anew each time, which takes
    /// microseconds, so the last address is cached.
    pub(super) fn address(&self, address: IpAddr) -> RestrictedExpression {
        let kept = self.0.address.load();
        if let Some((_, expression)) = kept.as_deref().filter(|(kept, _)| *kept == address) {
            return expression.clone();
        }
        let expression = RestrictedExpression::new_ip(address.to_canonical().to_string());
        self.0.address.store(Some(Arc::new((address, expression.clone()))));
        expression
    }
}

fn attributes(
    principal: &Principal,
    member: Option<&Member>,
    environment: &EnvironmentName,
) -> HashMap<String, RestrictedExpression> {
    let email = member
        .and_then(|member| member.email.as_deref())
        .or(principal.email.as_deref());
    let texts = [
        ("assurance", principal.assurance.as_deref()),
        ("client", principal.client.as_ref().map(|client| client.as_str())),
        ("email", email),
        ("environment", Some(environment.as_str())),
        ("method", Some(principal.method.as_str())),
        ("tenant", principal.tenant.as_deref()),
    ];
    let present = texts.into_iter().filter_map(|(name, text)| Some((name, text?)));
    present
        .map(|(name, text)| (name.to_owned(), RestrictedExpression::new_string(text.to_owned())))
        .collect()
}
