//! The resources and prompts of one server. No pinned catalogue lists them, so the policies that apply to one follow from
//! its name alone.

use super::check::WareFit;
use super::rule::{ResourceScope, Rule};
use super::shape::Fields;
use super::slice::{Index, Library, RuleIndex};
use super::sort::Sort;
use super::tool::Place;
use crate::domain::{Reason, Refusal, Scope, ServerName};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::Arc;

/// All resources, or all prompts, of one server.
pub(super) struct Wares {
    sort: Sort,
    server: ServerName,
    /// The scope that a call for one of them needs.
    needs: Vec<Scope>,
    /// The arguments that policies can see.
    fields: Arc<Fields>,
    /// The policies whose scope names no single resource or prompt.
    any: Index,
    /// The policies whose scope names one, by its name.
    named: HashMap<String, Index>,
    /// All of them: a resource template can produce any resource.
    all: Index,
}

impl Wares {
    pub fn new(library: &Library, server: &ServerName, of: &WareFit) -> Self {
        let sort = of.sort;
        let name_of = |rule: &Rule| match &rule.resource {
            ResourceScope::One(_, id) => id
                .split_once('/')
                .filter(|(on, _)| *on == server.as_str())
                .map(|(_, name)| name.to_owned()),
            _ => None,
        };
        let is_on_server = |index: &RuleIndex| match &library.rule(*index).resource {
            ResourceScope::Server(_, other) => other == server.as_str(),
            ResourceScope::One(..) => name_of(library.rule(*index)).is_some(),
            ResourceScope::Any | ResourceScope::Sort(_) => true,
            ResourceScope::Nothing => false,
        };
        let here: Vec<RuleIndex> = of.fit.rules.iter().copied().filter(is_on_server).collect();
        let fields = Arc::new(of.fields.clone());
        let index = |rules: Vec<RuleIndex>| Index::new(library, of.fit.of(rules), fields.clone());
        let mut any = Vec::new();
        let mut named: HashMap<String, Vec<RuleIndex>> = HashMap::new();
        for rule in &here {
            match name_of(library.rule(*rule)) {
                None => any.push(*rule),
                Some(name) => named.entry(name).or_default().push(*rule),
            }
        }
        Self {
            any: index(any),
            named: named.into_iter().map(|(name, rules)| (name, index(rules))).collect(),
            all: index(here),
            needs: Scope::parse(scope(sort)).into_iter().collect(),
            server: server.clone(),
            fields,
            sort,
        }
    }

    pub fn sort(&self) -> Sort {
        self.sort
    }

    pub fn needs(&self) -> &[Scope] {
        &self.needs
    }

    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// The policies for the resource or prompt `name`: those for all, then those that name it.
    pub fn indices(&self, name: &str) -> impl Iterator<Item = &Index> {
        std::iter::once(&self.any).chain(self.named.get(name))
    }

    pub fn is_named(&self, name: &str) -> bool {
        self.named.contains_key(name)
    }

    pub fn all(&self) -> &Index {
        &self.all
    }

    pub fn place(&self, name: &str) -> Arc<Place> {
        Arc::new(Place::of_ware(self.sort, &self.server, name).expect("a tool is no ware"))
    }

    /// Reads the arguments of a prompt. MCP defines them as strings.
    pub fn read(&self, arguments: Option<&[u8]>) -> Result<Map<String, Value>, Box<Refusal>> {
        let refused = |detail| Refusal::with_detail(Reason::InvalidArguments, detail);
        let Some(text) = arguments else {
            return Ok(Map::new());
        };
        let members: Map<String, Value> =
            serde_json::from_slice(text).map_err(|_| refused("the arguments are not an object".to_owned()))?;
        match members.iter().find(|(_, value)| !value.is_string()) {
            None => Ok(members),
            Some((name, _)) => Err(refused(format!("argument `{}` is not a text", super::arguments::cut(name))).into()),
        }
    }
}

/// The scope that covers all primitives of a kind. `resources` covers reading and subscribing, `prompts` covers getting
/// one.
const fn scope(sort: Sort) -> &'static str {
    match sort {
        Sort::Tool => "*",
        Sort::Resource => "resources",
        Sort::Prompt => "prompts",
    }
}
