//! Who is enrolled and not loaded, because `grants.max_members` is reached. Kept to tell them so, and to load them once there
//! is room. Nobody is let in by it: it holds an id of each, hashes of their identities, and their keys as the store has them.

use crate::domain::{ApiKey, Issuer, KeyId, Member, Subject, UserId};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

#[derive(Debug, Default)]
pub(super) struct UnloadedMembers {
    users: HashMap<UserId, UnloadedMember>,
    /// Under this process's own key; two names that share a hash share a refusal.
    names: HashSet<u64>,
    /// What tells whether a caller holds a key, so that nobody else learns that its owner is enrolled.
    keys: HashMap<KeyId, ApiKey>,
    hasher: RandomState,
    come: u64,
}

#[derive(Debug)]
struct UnloadedMember {
    /// Their place among those who wait.
    place: u64,
    names: Vec<u64>,
    keys: Vec<KeyId>,
}

impl UnloadedMembers {
    pub(super) fn insert(&mut self, member: &Member) {
        let place = self.remove(&member.id).map_or(self.come, |before| before.place);
        self.come += 1;
        let identities = member
            .identities
            .iter()
            .map(|(issuer, subject)| self.identity(issuer, subject));
        let names: Vec<u64> = identities.collect();
        let keys = member.keys.iter().map(|key| key.id.clone()).collect();
        self.names.extend(&names);
        self.keys.extend(member.keys.iter().map(|key| (key.id.clone(), key.clone())));
        self.users.insert(member.id.clone(), UnloadedMember { place, names, keys });
    }

    pub(super) fn forget(&mut self, user: &UserId) {
        self.remove(user);
    }

    pub(super) fn clear(&mut self) {
        self.users.clear();
        self.names.clear();
        self.keys.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.users.len()
    }

    pub(super) fn has_identity(&self, issuer: &Issuer, subject: &Subject) -> bool {
        self.names.contains(&self.identity(issuer, subject))
    }

    pub(super) fn key(&self, key: &KeyId) -> Option<&ApiKey> {
        self.keys.get(key)
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
        for key in &person.keys {
            self.keys.remove(key);
        }
        Some(person)
    }

    fn identity(&self, issuer: &Issuer, subject: &Subject) -> u64 {
        self.hasher.hash_one((issuer, subject))
    }
}
