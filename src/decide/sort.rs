//! What can be acted upon: tools, of which each has an action of its own, and resources and prompts, which share one.

use cedar_policy::{EntityTypeName, EntityUid};
use std::sync::LazyLock;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Sort {
    Tool,
    Resource,
    Prompt,
}

impl Sort {
    pub const ALL: [Sort; 3] = [Sort::Tool, Sort::Resource, Sort::Prompt];
    /// Those that no catalogue lists.
    pub const WARES: [Sort; 2] = [Sort::Resource, Sort::Prompt];

    /// The name of its entities in policies.
    pub const fn entity(self) -> &'static str {
        match self {
            Sort::Tool => "Tool",
            Sort::Resource => "Resource",
            Sort::Prompt => "Prompt",
        }
    }

    pub const fn word(self) -> &'static str {
        match self {
            Sort::Tool => "tool",
            Sort::Resource => "resource",
            Sort::Prompt => "prompt",
        }
    }

    /// The action that all of them share.
    pub const fn action(self) -> Option<&'static str> {
        match self {
            Sort::Tool => None,
            Sort::Resource => Some("read_resource"),
            Sort::Prompt => Some("get_prompt"),
        }
    }

    /// What policies can ask `resource` for.
    pub const fn attribute(self) -> Option<&'static str> {
        match self {
            Sort::Tool => None,
            Sort::Resource => Some("uri"),
            Sort::Prompt => Some("name"),
        }
    }

    pub fn of_entity(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|sort| sort.entity() == name)
    }

    pub fn is_action(id: &str) -> bool {
        Self::WARES.iter().any(|sort| sort.action() == Some(id))
    }

    /// Cedar parses names of types for microseconds; these are parsed once.
    pub fn entity_type(self) -> &'static EntityTypeName {
        static TYPES: LazyLock<[EntityTypeName; 3]> =
            LazyLock::new(|| Sort::ALL.map(|sort| parsed(&format!("Guardian::{}", sort.entity()))));
        &TYPES[self as usize]
    }

    /// The action that all of them share, as an entity.
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
