//! The resources and prompts of one server. No pinned catalogue lists them, so the policies that apply to one follow from
//! its name alone.

use super::slice::{CompiledPolicies, PolicyIndex};
use crate::decide::policy::applicability::UnlistedApplicability;
use crate::decide::policy::rule::{ResourceScope, Rule, RuleIndex};
use crate::decide::tool::arg_types::ArgSchema;
use crate::decide::tool::arguments;
use crate::decide::tool::primitive_kind::PrimitiveKind;
use crate::decide::tool::target::CedarTarget;
use crate::domain::{Reason, Refusal, Scope, ServerName};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::Arc;

/// All resources, or all prompts, of one server.
pub(in crate::decide) struct UnlistedPrimitives {
    pub kind: PrimitiveKind,
    server: ServerName,
    /// The scope that a call for one of them needs.
    pub needs: Vec<Scope>,
    /// The arguments that policies can see.
    pub arg_schema: Arc<ArgSchema>,
    /// The policies whose scope names no single resource or prompt.
    general: PolicyIndex,
    /// The policies whose scope names one, by its name.
    named: HashMap<String, PolicyIndex>,
    /// All of them.
    all: PolicyIndex,
}

impl UnlistedPrimitives {
    pub fn new(compiled: &CompiledPolicies, server: &ServerName, unlisted: &UnlistedApplicability) -> Self {
        let kind = unlisted.kind;
        let name_of = |rule: &Rule| match &rule.resource {
            ResourceScope::One(_, id) => id
                .split_once('/')
                .filter(|(on, _)| *on == server.as_str())
                .map(|(_, name)| name.to_owned()),
            _ => None,
        };
        let is_on_server = |index: &RuleIndex| match &compiled.rule(*index).resource {
            ResourceScope::Server(_, other) => other == server.as_str(),
            ResourceScope::One(..) => name_of(compiled.rule(*index)).is_some(),
            ResourceScope::Any | ResourceScope::Kind(_) => true,
            ResourceScope::Nothing => false,
        };
        let here: Vec<RuleIndex> = unlisted.applicability.rules.iter().copied().filter(is_on_server).collect();
        let arg_schema = Arc::new(unlisted.arg_schema.clone());
        let index = |rules: Vec<RuleIndex>| PolicyIndex::new(compiled, unlisted.applicability.of(rules), arg_schema.clone());
        let mut any = Vec::new();
        let mut named: HashMap<String, Vec<RuleIndex>> = HashMap::new();
        for rule in &here {
            match name_of(compiled.rule(*rule)) {
                None => any.push(*rule),
                Some(name) => named.entry(name).or_default().push(*rule),
            }
        }
        Self {
            general: index(any),
            named: named.into_iter().map(|(name, rules)| (name, index(rules))).collect(),
            all: index(here),
            needs: Scope::parse(scope(kind)).into_iter().collect(),
            server: server.clone(),
            arg_schema,
            kind,
        }
    }

    /// The policies for the resource or prompt `name`: those for all, then those that name it. Without a name, all policies:
    /// a resource template can produce any resource.
    pub fn indices(&self, name: Option<&str>) -> impl Iterator<Item = &PolicyIndex> {
        let (first, second) = match name {
            Some(name) => (&self.general, self.named.get(name)),
            None => (&self.all, None),
        };
        std::iter::once(first).chain(second)
    }

    pub fn is_named_by_policy(&self, name: &str) -> bool {
        self.named.contains_key(name)
    }

    pub fn target(&self, name: &str) -> Arc<CedarTarget> {
        Arc::new(CedarTarget::of_unlisted(self.kind, &self.server, name).expect("a tool is no ware"))
    }

    /// Reads the arguments of a prompt. MCP defines them as strings.
    pub fn read_arguments(&self, arguments: Option<&[u8]>) -> Result<Map<String, Value>, Box<Refusal>> {
        let refused = |detail| Refusal::with_detail(Reason::InvalidArguments, detail);
        let Some(text) = arguments else {
            return Ok(Map::new());
        };
        let members: Map<String, Value> =
            serde_json::from_slice(text).map_err(|_| refused("the arguments are not an object".to_owned()))?;
        match members.iter().find(|(_, value)| !value.is_string()) {
            None => Ok(members),
            Some((name, _)) => Err(refused(format!("argument `{}` is not a text", arguments::cut(name))).into()),
        }
    }
}

/// The scope that covers all primitives of a kind. `resources` covers reading and subscribing, `prompts` covers getting
/// one.
pub(super) const fn scope(kind: PrimitiveKind) -> &'static str {
    match kind {
        PrimitiveKind::Tool => "*",
        PrimitiveKind::Resource => "resources",
        PrimitiveKind::Prompt => "prompts",
    }
}
