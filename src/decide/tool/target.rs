//! A tool, resource or prompt as Cedar entities: its action, its resource, and the groups and the server they are in.

use super::arguments::Arguments;
use super::primitive_kind::PrimitiveKind;
use super::schema;
use crate::domain::{ServerName, ToolEntry};
use cedar_policy::{Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A tool that is read but not yet joined with its policies.
pub(in crate::decide) struct UncompiledTool {
    pub entry: ToolEntry,
    pub arguments: Arguments,
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

impl UncompiledTool {
    pub fn action(&self) -> schema::Action<'_> {
        schema::Action {
            kind: PrimitiveKind::Tool,
            id: &self.target.id,
            groups: self.target.groups.iter().map(String::as_str).collect(),
            input: Some(self.arguments.arg_schema()),
        }
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

/// The entity uid `kind::"id"`.
pub(in crate::decide) fn uid(kind: &'static str, id: &str) -> EntityUid {
    let kind: EntityTypeName = kind.parse().expect("a literal that is a type name");
    EntityUid::from_type_name_and_id(kind, EntityId::new(id))
}
