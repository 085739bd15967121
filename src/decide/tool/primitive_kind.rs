//! The kinds of MCP primitives. Each tool has a Cedar action of its own; all resources share one action, and so do all
//! prompts.

use cedar_policy::{EntityTypeName, EntityUid};
use std::sync::LazyLock;

/// The kind of an MCP primitive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::decide) enum PrimitiveKind {
    Tool,
    Resource,
    Prompt,
}

impl PrimitiveKind {
    pub const ALL: [PrimitiveKind; 3] = [PrimitiveKind::Tool, PrimitiveKind::Resource, PrimitiveKind::Prompt];
    /// The kinds that have no pinned catalogue.
    pub const UNLISTED: [PrimitiveKind; 2] = [PrimitiveKind::Resource, PrimitiveKind::Prompt];

    /// The Cedar entity type, without its namespace.
    pub const fn entity(self) -> &'static str {
        match self {
            PrimitiveKind::Tool => "Tool",
            PrimitiveKind::Resource => "Resource",
            PrimitiveKind::Prompt => "Prompt",
        }
    }

    /// For messages to people.
    pub const fn word(self) -> &'static str {
        match self {
            PrimitiveKind::Tool => "tool",
            PrimitiveKind::Resource => "resource",
            PrimitiveKind::Prompt => "prompt",
        }
    }

    /// The Cedar action that all primitives of this kind share; tools share none.
    pub const fn action(self) -> Option<&'static str> {
        match self {
            PrimitiveKind::Tool => None,
            PrimitiveKind::Resource => Some("read_resource"),
            PrimitiveKind::Prompt => Some("get_prompt"),
        }
    }

    /// The attribute of `resource` that policies can read.
    pub const fn attribute(self) -> Option<&'static str> {
        match self {
            PrimitiveKind::Tool => None,
            PrimitiveKind::Resource => Some("uri"),
            PrimitiveKind::Prompt => Some("name"),
        }
    }

    /// The kind with this entity type, if there is one.
    pub fn of_entity(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.entity() == name)
    }

    /// Whether `id` is the action shared by all resources or by all prompts.
    pub fn is_action(id: &str) -> bool {
        Self::UNLISTED.iter().any(|kind| kind.action() == Some(id))
    }

    /// The Cedar entity type. Parsing a type name takes Cedar microseconds, so each is parsed once.
    pub fn entity_type(self) -> &'static EntityTypeName {
        static TYPES: LazyLock<[EntityTypeName; 3]> =
            LazyLock::new(|| PrimitiveKind::ALL.map(|kind| parsed(&format!("Guardian::{}", kind.entity()))));
        &TYPES[self as usize]
    }

    /// `action` as a Cedar entity.
    pub fn action_uid(self) -> Option<&'static EntityUid> {
        static ACTIONS: LazyLock<[Option<EntityUid>; 3]> = LazyLock::new(|| {
            let uid = |action| EntityUid::from_type_name_and_id(parsed("Guardian::Action"), cedar_policy::EntityId::new(action));
            PrimitiveKind::ALL.map(|kind| kind.action().map(uid))
        });
        ACTIONS[self as usize].as_ref()
    }
}

fn parsed(name: &str) -> EntityTypeName {
    name.parse().expect("a literal that is a type name")
}
