//! The copy itself: members whole, found by id, identity or key, each by one look. Only the keeper writes; anybody reads,
//! without a lock (but to learn of somebody who is not found whether they are left out). Whoever reads between two writes may
//! find a member as it was: the generation, which is counted up after them, tells so.

use super::revocations::Revocations;
use super::unloaded::UnloadedMembers;
use crate::domain::{Issuer, KeyId, Member, Principal, Subject, Timestamp, UserId};
use crate::store::{RegistryRow, RevocationRows};
use arc_swap::ArcSwap;
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// No entry expires or is evicted by itself: absent means absent in the store, or left out.
pub(super) struct Cache {
    members: moka::sync::Cache<UserId, Arc<Member>>,
    identities: moka::sync::Cache<IdentityKey, Arc<Member>>,
    keys: moka::sync::Cache<KeyId, Arc<Member>>,
    revocations: ArcSwap<Revocations>,
    registry: ArcSwap<Vec<RegistryRow>>,
    len: AtomicU64,
    max: usize,
    unloaded: RwLock<UnloadedMembers>,
}

/// Never a joined string.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct IdentityKey {
    issuer: Issuer,
    subject: Subject,
}

impl Cache {
    pub(super) fn new(max: usize) -> Self {
        Self {
            members: moka::sync::Cache::builder().build(),
            identities: moka::sync::Cache::builder().build(),
            keys: moka::sync::Cache::builder().build(),
            revocations: ArcSwap::default(),
            registry: ArcSwap::default(),
            len: AtomicU64::new(0),
            max,
            unloaded: RwLock::default(),
        }
    }

    pub(super) fn by_id(&self, user: &UserId) -> Option<Arc<Member>> {
        self.members.get(user)
    }

    pub(super) fn by_identity(&self, issuer: &Issuer, subject: &Subject) -> Option<Arc<Member>> {
        let identity = IdentityKey {
            issuer: issuer.clone(),
            subject: subject.clone(),
        };
        let member = self.identities.get(&identity)?;
        identity.is_of(&member).then_some(member)
    }

    pub(super) fn by_key(&self, key: &KeyId) -> Option<Arc<Member>> {
        let member = self.keys.get(key)?;
        member.key(key).is_some().then_some(member)
    }

    pub(super) fn revoked(&self, principal: &Principal, now: Timestamp) -> bool {
        self.revocations.load().hit(principal, now)
    }

    pub(super) fn registry(&self) -> Arc<Vec<RegistryRow>> {
        self.registry.load_full()
    }

    pub(super) fn members(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Who is enrolled and not loaded for want of room.
    pub(super) fn left_out(&self) -> RwLockReadGuard<'_, UnloadedMembers> {
        self.unloaded.read().unwrap_or_else(PoisonError::into_inner)
    }

    // ↓ for the one writer

    pub(super) fn replace_revocations(&self, rows: RevocationRows) {
        self.revocations.store(Arc::new(Revocations::new(rows)));
    }

    pub(super) fn replace_registry(&self, rows: Vec<RegistryRow>) {
        self.registry.store(Arc::new(rows));
    }

    /// Everybody who is not among these goes. Whoever is held stays, whatever their place among these; the room that is left
    /// is for the first of the others.
    pub(super) fn replace_members(&self, members: Vec<Member>) {
        let staying: HashSet<&UserId> = members.iter().map(|member| &member.id).collect();
        let going: Vec<UserId> = self
            .members
            .iter()
            .map(|(id, _)| id.as_ref().clone())
            .filter(|id| !staying.contains(id))
            .collect();
        for id in going {
            self.remove(&id);
        }
        let (held, new): (Vec<_>, Vec<_>) = members.into_iter().partition(|member| self.members.contains_key(&member.id));
        let left_out: Vec<Member> = held
            .into_iter()
            .chain(new)
            .filter_map(|member| self.load(member).err())
            .collect();
        let mut all = self.left_out_mut();
        all.clear();
        left_out.iter().for_each(|member| all.insert(member));
    }

    /// Whoever is held already is brought up to date; somebody new is left out where there is no room.
    pub(super) fn put(&self, member: Member) {
        let id = member.id.clone();
        match self.load(member) {
            Ok(()) => self.left_out_mut().forget(&id),
            Err(member) => self.left_out_mut().insert(&member),
        }
    }

    pub(super) fn remove(&self, id: &UserId) {
        match self.members.remove(id) {
            None => self.left_out_mut().forget(id),
            Some(member) => {
                self.len.fetch_sub(1, Ordering::Relaxed);
                self.forget_names(&member, None);
            }
        }
    }

    /// Some of those left out for whom there is room now.
    pub(super) fn to_be_loaded(&self, most: usize) -> Vec<UserId> {
        let room = self.max.saturating_sub(usize::try_from(self.members()).unwrap_or(usize::MAX));
        let unloaded = self.left_out();
        if room == 0 || unloaded.len() == 0 {
            return Vec::new();
        }
        unloaded.first(room.min(most))
    }

    /// The member back where there is no room.
    fn load(&self, member: Member) -> Result<(), Member> {
        let id = member.id.clone();
        let before = self.members.get(&id);
        if before.is_none() && self.len.load(Ordering::Relaxed) >= self.max as u64 {
            return Err(member);
        }
        let member = Arc::new(member);
        self.members.insert(id.clone(), member.clone());
        match before {
            Some(before) => self.forget_names(&before, Some(&member)),
            None => {
                self.len.fetch_add(1, Ordering::Relaxed);
            }
        }
        for identity in identities_of(&member) {
            self.identities.insert(identity, member.clone());
        }
        for key in &member.keys {
            self.keys.insert(key.id.clone(), member.clone());
        }
        Ok(())
    }

    fn left_out_mut(&self) -> RwLockWriteGuard<'_, UnloadedMembers> {
        self.unloaded.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out the names `now` no longer has, unless they lead to somebody else by now.
    fn forget_names(&self, before: &Member, now: Option<&Member>) {
        for identity in identities_of(before).filter(|identity| !now.is_some_and(|now| identity.is_of(now))) {
            if leads_to(self.identities.get(&identity), before) {
                self.identities.invalidate(&identity);
            }
        }
        let kept = |id: &KeyId| now.is_some_and(|now| now.keys.iter().any(|key| key.id == *id));
        for key in before.keys.iter().filter(|key| !kept(&key.id)) {
            if leads_to(self.keys.get(&key.id), before) {
                self.keys.invalidate(&key.id);
            }
        }
    }
}

impl IdentityKey {
    fn is_of(&self, member: &Member) -> bool {
        member
            .identities
            .iter()
            .any(|(issuer, subject)| *issuer == self.issuer && *subject == self.subject)
    }
}

fn leads_to(found: Option<Arc<Member>>, member: &Member) -> bool {
    found.is_some_and(|found| found.id == member.id)
}

fn identities_of(member: &Member) -> impl Iterator<Item = IdentityKey> {
    member.identities.iter().map(|(issuer, subject)| IdentityKey {
        issuer: issuer.clone(),
        subject: subject.clone(),
    })
}
