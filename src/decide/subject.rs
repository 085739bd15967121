//! The Cedar side of a caller, built once per verified credential and version of the member.

use super::tool::Place;
use crate::domain::{EnvironmentName, Member, Principal, PrincipalKind, RoleName};
use arc_swap::ArcSwapOption;
use cedar_policy::{Entities, Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Cheap to clone.
#[derive(Clone)]
pub struct Subject(Arc<Inner>);

struct Inner {
    uid: EntityUid,
    kind: PrincipalKind,
    roles: BTreeSet<RoleName>,
    entity: Entity,
    /// The caller among the tools it used last. Only saves building them again.
    placed: ArcSwapOption<Placed>,
}

/// A caller and some tools, as Cedar's hierarchy.
pub(super) struct Placed {
    entities: Entities,
    places: Vec<Arc<Place>>,
}

/// Tools kept beside a caller; past it they are forgotten.
const MAX_PLACES: usize = 32;

impl Subject {
    /// Roles are those of the member and those of the credential together.
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
        Self(Arc::new(Inner {
            entity: Entity::new(uid.clone(), attributes, in_roles).expect("texts are values"),
            uid,
            kind: principal.kind,
            roles,
            placed: ArcSwapOption::empty(),
        }))
    }

    pub(super) fn uid(&self) -> &EntityUid {
        &self.0.uid
    }

    pub(super) fn kind(&self) -> PrincipalKind {
        self.0.kind
    }

    pub(super) fn roles(&self) -> &BTreeSet<RoleName> {
        &self.0.roles
    }

    /// The caller with a tool.
    pub(super) fn at(&self, place: &Arc<Place>) -> Arc<Placed> {
        let placed = self.0.placed.load();
        if let Some(placed) = placed.as_ref().filter(|placed| placed.holds(place)) {
            return placed.clone();
        }
        let mut places = match placed.as_ref() {
            Some(placed) if placed.places.len() < MAX_PLACES => placed.places.clone(),
            _ => Vec::new(),
        };
        // the same tool of an older snapshot
        places.retain(|other| other.action != place.action);
        places.push(place.clone());
        let entities = places
            .iter()
            .flat_map(|place| place.entities.clone())
            .chain([self.0.entity.clone()]);
        let placed = Arc::new(Placed {
            entities: Entities::from_entities(entities, None).expect("roles, groups and servers are in nothing"),
            places,
        });
        self.0.placed.store(Some(placed.clone()));
        placed
    }
}

impl Placed {
    pub fn entities(&self) -> &Entities {
        &self.entities
    }

    fn holds(&self, place: &Arc<Place>) -> bool {
        self.places.iter().any(|other| Arc::ptr_eq(other, place))
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

pub(super) fn uid(kind: &'static str, id: &str) -> EntityUid {
    let kind: EntityTypeName = kind.parse().expect("a literal that is a type name");
    EntityUid::from_type_name_and_id(kind, EntityId::new(id))
}
