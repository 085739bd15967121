//! A tool, resource or prompt as Cedar entities: its action, its resource, and the groups and the server they are in.

use super::arguments::Arguments;
use super::param_headers::{self, ParamHeader};
use super::primitive_kind::PrimitiveKind;
use super::schema;
use crate::domain::{Scope, ServerName, ToolEntry};
use cedar_policy::{Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A tool's definition with everything derived from it once.
pub(in crate::decide) struct ToolDefinition {
    pub entry: ToolEntry,
    /// All scopes that a call needs; by default the scope of the tool's own name.
    pub needs: Vec<Scope>,
    pub arguments: Arguments,
    pub param_headers: Result<Vec<ParamHeader>, String>,
    pub target: Arc<CedarTarget>,
}

/// The Cedar action and resource entities of a tool, resource or prompt, with the groups and the server they are in.
pub(in crate::decide) struct CedarTarget {
    /// `<server>/<tool name, URI or prompt name>`
    pub id: String,
    pub groups: Vec<String>,
    pub server: ServerName,
    pub action: EntityUid,
    pub resource: EntityUid,
    pub entities: [Entity; 2],
}

impl ToolDefinition {
    pub fn new(server: &ServerName, entry: &ToolEntry) -> Self {
        let own = || Scope::parse(entry.name.as_str()).into_iter().collect();
        Self {
            needs: if entry.scopes.is_empty() {
                own()
            } else {
                entry.scopes.clone()
            },
            arguments: Arguments::compile(&entry.input_schema),
            param_headers: param_headers::param_headers(&entry.input_schema),
            target: Arc::new(CedarTarget::of_tool(server, entry)),
            entry: entry.clone(),
        }
    }

    pub fn action(&self) -> schema::Action<'_> {
        schema::Action {
            kind: PrimitiveKind::Tool,
            id: &self.target.id,
            groups: self.target.groups.iter().map(String::as_str).collect(),
            input: Some(&self.arguments.arg_schema),
        }
    }
}

impl CedarTarget {
    /// The entities of a resource or prompt; `None` for a tool.
    pub fn of_unlisted(kind: PrimitiveKind, server: &ServerName, name: &str) -> Option<Self> {
        let action = Entity::new_no_attrs(kind.action_uid()?.clone(), HashSet::new());
        let id = format!("{server}/{name}");
        let uid = EntityUid::from_type_name_and_id(kind.entity_type().clone(), EntityId::new(&id));
        let attributes = HashMap::from([(
            kind.attribute()?.to_owned(),
            RestrictedExpression::new_string(name.to_owned()),
        )]);
        let resource = Entity::new(uid, attributes, in_server(server)).expect("a text is a value");
        Some(Self::new(server, id, Vec::new(), [action, resource]))
    }

    /// The entities of a tool.
    pub fn of_tool(server: &ServerName, entry: &ToolEntry) -> Self {
        let id = format!("{server}/{}", entry.name);
        let groups: Vec<String> = schema::groups(server, entry).into_iter().map(str::to_owned).collect();
        let in_groups = groups.iter().map(|group| uid("Guardian::Action", group)).collect();
        let action = Entity::new_no_attrs(uid("Guardian::Action", &id), in_groups);
        let resource = Entity::new_no_attrs(uid("Guardian::Tool", &id), in_server(server));
        Self::new(server, id, groups, [action, resource])
    }

    fn new(server: &ServerName, id: String, groups: Vec<String>, entities: [Entity; 2]) -> Self {
        Self {
            id,
            groups,
            server: server.clone(),
            action: entities[0].uid(),
            resource: entities[1].uid(),
            entities,
        }
    }
}

fn in_server(server: &ServerName) -> HashSet<EntityUid> {
    HashSet::from([uid("Guardian::Server", server.as_str())])
}

/// The entity uid `kind::"id"`.
pub(in crate::decide) fn uid(kind: &'static str, id: &str) -> EntityUid {
    let kind: EntityTypeName = kind.parse().expect("a literal that is a type name");
    EntityUid::from_type_name_and_id(kind, EntityId::new(id))
}
