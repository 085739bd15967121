//! Who is enrolled and not loaded, because `grants.max_members` is reached. Kept to tell them so, and to load them once there
//! is room. It holds nothing by which anybody could be let in: an id of each, and hashes of their names.

use crate::domain::{Issuer, KeyId, Member, Subject, UserId};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

#[derive(Debug, Default)]
pub(super) struct UnloadedMembers {
    users: HashMap<UserId, UnloadedMember>,
    /// Under this process's own key; two names that share a hash share a refusal.
    names: HashSet<u64>,
    hasher: RandomState,
    come: u64,
}

#[derive(Debug)]
struct UnloadedMember {
    /// Their place among those who wait.
    place: u64,
    names: Vec<u64>,
}

impl UnloadedMembers {
    pub(super) fn insert(&mut self, member: &Member) {
        let place = self.remove(&member.id).map_or(self.come, |before| before.place);
        self.come += 1;
        let identities = member
            .identities
            .iter()
            .map(|(issuer, subject)| self.identity(issuer, subject));
        let names: Vec<u64> = identities.chain(member.keys.iter().map(|key| self.key(&key.id))).collect();
        self.names.extend(&names);
        self.users.insert(member.id.clone(), UnloadedMember { place, names });
    }

    pub(super) fn forget(&mut self, user: &UserId) {
        self.remove(user);
    }

    pub(super) fn clear(&mut self) {
        self.users.clear();
        self.names.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.users.len()
    }

    pub(super) fn has_identity(&self, issuer: &Issuer, subject: &Subject) -> bool {
        self.names.contains(&self.identity(issuer, subject))
    }

    pub(super) fn has_key(&self, key: &KeyId) -> bool {
        self.names.contains(&self.key(key))
    }

    /// Those who have waited longest.
    pub(super) fn first(&self, most: usize) -> Vec<UserId> {
        let mut waiting: Vec<_> = self.users.iter().map(|(user, person)| (person.place, user)).collect();
        waiting.sort();
        waiting.into_iter().take(most).map(|(_, user)| user.clone()).collect()
    }

    fn remove(&mut self, user: &UserId) -> Option<UnloadedMember> {
        let person = self.users.remove(user)?;
        for name in &person.names {
            self.names.remove(name);
        }
        Some(person)
    }

    fn identity(&self, issuer: &Issuer, subject: &Subject) -> u64 {
        self.hasher.hash_one((issuer, subject))
    }

    fn key(&self, key: &KeyId) -> u64 {
        self.hasher.hash_one(key)
    }
}
