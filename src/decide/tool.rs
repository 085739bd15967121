//! One tool with everything derived from its definition once: the argument validator, the Cedar entities, the applicable
//! policies.

use super::arguments::Arguments;
use super::cedar_principal::uid;
use super::param_headers::{self, ParamHeader};
use super::primitive_kind::PrimitiveKind;
use super::schema;
use super::slice::PolicyIndex;
use crate::domain::{Refusal, Scope, ServerName, ToolEntry};
use cedar_policy::{Entity, EntityId, EntityUid, RestrictedExpression};
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A tool of the catalogue, ready for decisions.
pub struct CompiledTool {
    entry: ToolEntry,
    needs: Vec<Scope>,
    arguments: Arguments,
    param_headers: Result<Vec<ParamHeader>, String>,
    target: Arc<CedarTarget>,
    index: PolicyIndex,
}

/// The Cedar action and resource entities of a tool, resource or prompt, with the groups and the server they are in.
pub(super) struct CedarTarget {
    /// `<server>/<tool name, URI or prompt name>`
    pub id: String,
    pub groups: Vec<String>,
    pub server: ServerName,
    pub action: EntityUid,
    pub resource: EntityUid,
    pub entities: [Entity; 2],
}

impl CompiledTool {
    /// The catalogue entry.
    pub fn entry(&self) -> &ToolEntry {
        &self.entry
    }

    pub(super) fn new(entry: ToolEntry, arguments: Arguments, target: Arc<CedarTarget>, index: PolicyIndex) -> Self {
        let own = || Scope::parse(entry.name.as_str()).into_iter().collect();
        Self {
            needs: if entry.scopes.is_empty() {
                own()
            } else {
                entry.scopes.clone()
            },
            param_headers: param_headers::param_headers(&entry.input_schema),
            entry,
            arguments,
            target,
            index,
        }
    }

    /// The arguments that clients of the modern era repeat in `Mcp-Param-*` headers, or why these clients cannot use the
    /// tool.
    pub fn param_headers(&self) -> Result<&[ParamHeader], &str> {
        self.param_headers.as_deref().map_err(String::as_str)
    }

    /// All scopes that a call needs; by default the scope of the tool's own name.
    pub(super) fn needs(&self) -> &[Scope] {
        &self.needs
    }

    pub(super) fn arguments(&self) -> &Arguments {
        &self.arguments
    }

    pub(super) fn read_arguments(&self, arguments: Option<&[u8]>) -> Result<Map<String, Value>, Box<Refusal>> {
        self.arguments.read(arguments)
    }

    pub(super) fn target(&self) -> &Arc<CedarTarget> {
        &self.target
    }

    pub(super) fn index(&self) -> &PolicyIndex {
        &self.index
    }
}

impl CedarTarget {
    /// The entities of a resource or prompt; `None` for a tool.
    pub fn of_unlisted(kind: PrimitiveKind, server: &ServerName, name: &str) -> Option<Self> {
        let (action, attribute) = (kind.action_uid()?.clone(), kind.attribute()?);
        let id = format!("{server}/{name}");
        let resource = EntityUid::from_type_name_and_id(kind.entity_type().clone(), EntityId::new(&id));
        let attributes = HashMap::from([(attribute.to_owned(), RestrictedExpression::new_string(name.to_owned()))]);
        let in_server = HashSet::from([uid("Guardian::Server", server.as_str())]);
        let entity = Entity::new(resource.clone(), attributes, in_server).expect("a text is a value");
        Some(Self {
            entities: [Entity::new_no_attrs(action.clone(), HashSet::new()), entity],
            id,
            groups: Vec::new(),
            server: server.clone(),
            action,
            resource,
        })
    }

    /// The entities of a tool.
    pub fn new(server: &ServerName, entry: &ToolEntry) -> Self {
        let id = format!("{server}/{}", entry.name);
        let groups: Vec<String> = schema::groups(server, entry).into_iter().map(str::to_owned).collect();
        let action = uid("Guardian::Action", &id);
        let resource = uid("Guardian::Tool", &id);
        let in_groups: HashSet<EntityUid> = groups.iter().map(|group| uid("Guardian::Action", group)).collect();
        let in_server = HashSet::from([uid("Guardian::Server", server.as_str())]);
        Self {
            entities: [
                Entity::new_no_attrs(action.clone(), in_groups),
                Entity::new_no_attrs(resource.clone(), in_server),
            ],
            id,
            groups,
            server: server.clone(),
            action,
            resource,
        }
    }
}
