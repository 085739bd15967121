//! The kinds of MCP primitives. Each tool has a Cedar action of its own; all resources share one action, and so do all
//! prompts.

use cedar_policy::{EntityTypeName, EntityUid};
use std::sync::LazyLock;

/// The kind of an MCP primitive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Sort {
    Tool,
    Resource,
    Prompt,
}

impl Sort {
    pub const ALL: [Sort; 3] = [Sort::Tool, Sort::Resource, Sort::Prompt];
    /// The kinds that have no pinned catalogue.
    pub const WARES: [Sort; 2] = [Sort::Resource, Sort::Prompt];

    /// The Cedar entity type, without its namespace.
    pub const fn entity(self) -> &'static str {
        match self {
            Sort::Tool => "Tool",
            Sort::Resource => "Resource",
            Sort::Prompt => "Prompt",
        }
    }

    /// For messages to people.
    pub const fn word(self) -> &'static str {
        match self {
            Sort::Tool => "tool",
            Sort::Resource => "resource",
            Sort::Prompt => "prompt",
        }
    }

    /// The Cedar action that all primitives of this kind share; tools share none.
    pub const fn action(self) -> Option<&'static str> {
        match self {
            Sort::Tool => None,
            Sort::Resource => Some("read_resource"),
            Sort::Prompt => Some("get_prompt"),
        }
    }

    /// The attribute of `resource` that policies can read.
    pub const fn attribute(self) -> Option<&'static str> {
        match self {
            Sort::Tool => None,
            Sort::Resource => Some("uri"),
            Sort::Prompt => Some("name"),
        }
    }

    /// The kind with this entity type, if there is one.
    pub fn of_entity(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|sort| sort.entity() == name)
    }

    /// Whether `id` is the action shared by all resources or by all prompts.
    pub fn is_action(id: &str) -> bool {
        Self::WARES.iter().any(|sort| sort.action() == Some(id))
    }

    /// The Cedar entity type. Parsing a type name takes Cedar microseconds, so each is parsed once.
    pub fn entity_type(self) -> &'static EntityTypeName {
        static TYPES: LazyLock<[EntityTypeName; 3]> =
            LazyLock::new(|| Sort::ALL.map(|sort| parsed(&format!("Guardian::{}", sort.entity()))));
        &TYPES[self as usize]
    }

    /// `action` as a Cedar entity.
    pub fn action_uid(self) -> Option<&'static EntityUid> {
        static ACTIONS: LazyLock<[Option<EntityUid>; 3]> = LazyLock::new(|| {
            let uid = |action| EntityUid::from_type_name_and_id(parsed("Guardian::Action"), cedar_policy::EntityId::new(action));
            Sort::ALL.map(|sort| sort.action().map(uid))
        });
        ACTIONS[self as usize].as_ref()
    }
}

fn parsed(name: &str) -> EntityTypeName {
    name.parse().expect("a literal that is a type name")
}
