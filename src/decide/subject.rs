//! The Cedar side of a caller, built once per verified credential and version of the member.

use crate::domain::{EnvironmentName, Member, Principal, PrincipalKind, RoleName};
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
    entities: Entities,
}

impl Subject {
    /// Roles are those of the member and those of the credential together.
    pub fn new(principal: &Principal, member: Option<&Member>, environment: &EnvironmentName) -> Self {
        let roles: BTreeSet<RoleName> = member
            .iter()
            .flat_map(|member| &member.roles)
            .chain(&principal.roles)
            .cloned()
            .collect();
        let kind = match principal.kind {
            PrincipalKind::User => "Guardian::User",
            PrincipalKind::Service => "Guardian::Service",
        };
        let uid = uid(kind, &format!("{}|{}", principal.alias, principal.subject));
        let parents: HashSet<EntityUid> = roles.iter().map(|role| uid_of_role(role)).collect();
        let attributes = attributes(principal, member, environment);
        let entity = Entity::new(uid.clone(), attributes, parents).expect("strings are values");
        let entities = Entities::from_entities([entity], None).expect("one entity has no duplicate and no cycle");
        Self(Arc::new(Inner {
            uid,
            kind: principal.kind,
            roles,
            entities,
        }))
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
    [
        ("email", email),
        ("tenant", principal.tenant.as_deref()),
        ("environment", Some(environment.as_str())),
        ("method", Some(principal.method.as_str())),
        ("assurance", principal.assurance.as_deref()),
        ("client", principal.client.as_ref().map(|client| client.as_str())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), RestrictedExpression::new_string(value?.to_owned()))))
    .collect()
}

fn uid_of_role(role: &RoleName) -> EntityUid {
    uid("Guardian::Role", role.as_str())
}

pub(super) fn uid(kind: &'static str, id: &str) -> EntityUid {
    let kind: EntityTypeName = kind.parse().expect("a literal that is a type name");
    EntityUid::from_type_name_and_id(kind, EntityId::new(id))
}

impl Subject {
    pub(super) fn uid(&self) -> &EntityUid {
        &self.0.uid
    }

    pub(super) fn kind(&self) -> PrincipalKind {
        self.0.kind
    }

    pub(super) fn roles(&self) -> &BTreeSet<RoleName> {
        &self.0.roles
    }

    pub(super) fn entities(&self) -> &Entities {
        &self.0.entities
    }
}
