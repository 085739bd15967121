//! A store that plays a part: every answer, delay and failure of it is scripted, and every question counted.

#![cfg(test)]

use crate::domain::{
    ApiKey, Grant, GrantId, GrantStatus, Issuer, KeyId, Member, PartialRevocation, PrincipalKind, Revocation, Scopes, ServerName,
    Subject, Timestamp, UserId,
};
use crate::store::{Anchor, CatchUp, Delta, Directory, RevocationRows, StoreError, UnreadableRow};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A store whose every answer is scripted.
#[derive(Clone)]
pub(super) struct FakeStore(Arc<Mutex<FakeState>>);

pub(super) struct FakeState {
    pub(super) members: BTreeMap<String, Member>,
    revocations: RevocationRows,
    unreadable: Vec<UnreadableRow>,
    /// Positions, with the member each was about; `None`: the revocations.
    feed: Vec<(Anchor, Option<String>)>,
    histories: u32,
    asked: usize,
    answer_after: Duration,
    fails: bool,
    hangs: bool,
    /// Each state a grant was ever in, and since when.
    states: Vec<(String, Instant, GrantStatus)>,
}

impl FakeStore {
    pub(super) fn new<const N: usize>(names: [&str; N]) -> Self {
        let store = Self(Arc::new(Mutex::new(FakeState {
            members: BTreeMap::new(),
            revocations: RevocationRows::default(),
            unreadable: Vec::new(),
            feed: Vec::new(),
            histories: 0,
            asked: 0,
            answer_after: Duration::ZERO,
            fails: false,
            hangs: false,
            states: Vec::new(),
        })));
        {
            let mut state = store.state();
            for name in names {
                state.members.insert(name.to_owned(), member(name));
                state.states.push((name.to_owned(), Instant::now(), GrantStatus::Verified));
            }
            state.commit(None);
        }
        store
    }

    pub(super) async fn directory(&self) -> Result<Directory, StoreError> {
        self.answer(|state| Directory {
            anchor: state.head(),
            members: state.members.values().cloned().collect(),
            revocations: state.revocations.clone(),
            registry: Vec::new(),
            unreadable: state.unreadable.clone(),
        })
        .await
    }

    pub(super) async fn members(&self, users: &[UserId], at: &Anchor) -> Result<Delta, StoreError> {
        self.answer(|state| Delta {
            anchor: at.clone(),
            members: users
                .iter()
                .map(|user| (user.clone(), state.members.get(user.as_str()).cloned()))
                .collect(),
            unreadable: state.unreadable_of(users),
            ..Delta::default()
        })
        .await
    }

    pub(super) async fn catch_up(&self, anchor: &Anchor) -> Result<CatchUp, StoreError> {
        self.state().asked += 1;
        self.answer(|state| state.since(anchor)).await
    }

    /// Reads half-way through the time it takes.
    async fn answer<T>(&self, read: impl FnOnce(&FakeState) -> T) -> Result<T, StoreError> {
        let half = self.state().answer_after / 2;
        sleep(half).await;
        let answer = read(&self.state());
        sleep(half).await;
        loop {
            let (fails, hangs) = {
                let state = self.state();
                (state.fails, state.hangs)
            };
            match (fails, hangs) {
                (true, _) => {
                    return Err(StoreError::Unreachable {
                        place: "the script".to_owned(),
                        why: "it fails".to_owned(),
                    });
                }
                (false, false) => return Ok(answer),
                (false, true) => sleep(millis(50)).await,
            }
        }
    }

    pub(super) fn put(&self, member: Member) {
        let mut state = self.state();
        let name = member.id.to_string();
        state.members.insert(name.clone(), member);
        state.commit(Some(name));
    }

    /// In one transaction.
    pub(super) fn put_both(&self, one: Member, other: Member) {
        let mut state = self.state();
        let names = [one.id.to_string(), other.id.to_string()];
        for (name, member) in names.iter().zip([one, other]) {
            state.members.insert(name.clone(), member);
        }
        for name in names {
            state.commit(Some(name));
        }
    }

    pub(super) fn remove(&self, name: &str) {
        let mut state = self.state();
        state.members.remove(name);
        state.commit(Some(name.to_owned()));
    }

    pub(super) fn revoke(&self, name: &str) {
        let mut state = self.state();
        state.members.get_mut(name).unwrap().grants[0].status = GrantStatus::Revoked;
        state.commit(Some(name.to_owned()));
    }

    pub(super) fn flip(&self, name: &str) {
        let mut state = self.state();
        let grant = &mut state.members.get_mut(name).unwrap().grants[0];
        grant.status = match grant.status {
            GrantStatus::Verified => GrantStatus::Revoked,
            GrantStatus::Idle | GrantStatus::Revoked | GrantStatus::Unreadable => GrantStatus::Verified,
        };
        let status = grant.status;
        state.states.push((name.to_owned(), Instant::now(), status));
        state.commit(Some(name.to_owned()));
    }

    pub(super) fn revocations(&self, rows: Vec<Revocation>) {
        let mut state = self.state();
        state.revocations.whole = rows;
        state.commit(None);
    }

    pub(super) fn partial_revocations(&self, rows: Vec<PartialRevocation>) {
        let mut state = self.state();
        state.revocations.partial = rows;
        state.commit(None);
    }

    /// These rows of this user cannot be read from now on, and no others.
    pub(super) fn unreadable(&self, name: &str, columns: &[&'static str]) {
        let mut state = self.state();
        state.unreadable.retain(|row| row.user.as_deref() != Some(name));
        state.unreadable.extend(columns.iter().map(|column| UnreadableRow {
            table: "grants",
            row: format!("user_ref {name}"),
            user: Some(name.to_owned()),
            column,
            why: "is NULL".to_owned(),
        }));
        state.commit(Some(name.to_owned()));
    }

    /// The same positions again, as another history.
    pub(super) fn restore(&self, change: impl FnOnce(&mut FakeState)) {
        let mut state = self.state();
        change(&mut state);
        state.histories += 1;
        let tag = format!("history {}", state.histories);
        for (anchor, _) in &mut state.feed {
            anchor.tag.clone_from(&tag);
        }
    }

    /// Every state the grant was in during the last `age`.
    pub(super) fn since(&self, name: &str, age: Duration) -> Vec<GrantStatus> {
        let state = self.state();
        let from = Instant::now() - age;
        let states: Vec<_> = state.states.iter().filter(|state| state.0 == name).collect();
        let first = states.iter().rposition(|state| state.1 < from).unwrap_or(0);
        states[first..].iter().map(|state| state.2).collect()
    }

    pub(super) fn answer_after(&self, by: Duration) {
        self.state().answer_after = by;
    }

    pub(super) fn fail(&self, fails: bool) {
        self.state().fails = fails;
    }

    pub(super) fn hang(&self, hangs: bool) {
        self.state().hangs = hangs;
    }

    pub(super) fn asked(&self) -> usize {
        self.state().asked
    }

    fn state(&self) -> std::sync::MutexGuard<'_, FakeState> {
        self.0.lock().unwrap()
    }
}

impl FakeState {
    fn commit(&mut self, about: Option<String>) {
        let anchor = Anchor {
            seq: self.feed.len() as i64 + 1,
            tag: format!("history {}", self.histories),
            fingerprint: String::new(),
        };
        self.feed.push((anchor, about));
    }

    fn head(&self) -> Anchor {
        self.feed.last().unwrap().0.clone()
    }

    fn unreadable_of(&self, users: &[UserId]) -> Vec<UnreadableRow> {
        let of = |row: &&UnreadableRow| users.iter().any(|user| Some(user.as_str()) == row.user.as_deref());
        self.unreadable.iter().filter(of).cloned().collect()
    }

    fn since(&self, anchor: &Anchor) -> CatchUp {
        let Some(known) = self.feed.iter().position(|(held, _)| held == anchor) else {
            return CatchUp::Reload;
        };
        let changed: BTreeSet<_> = self.feed[known + 1..].iter().map(|(_, about)| about.clone()).collect();
        let users: Vec<UserId> = changed.iter().flatten().map(|name| user(name)).collect();
        CatchUp::Since(Delta {
            anchor: self.head(),
            unreadable: self.unreadable_of(&users),
            members: changed
                .iter()
                .flatten()
                .map(|name| (user(name), self.members.get(name).cloned()))
                .collect(),
            revocations: changed.contains(&None).then(|| self.revocations.clone()),
            ..Delta::default()
        })
    }
}

pub(super) fn member(name: &str) -> Member {
    Member {
        email: Some(format!("{name}@example.com")),
        identities: vec![identity(name)],
        keys: vec![ApiKey {
            id: key_id(name),
            name: String::new(),
            hash: [0; 32],
            pepper_version: 1,
            scopes: Scopes::default(),
            created_at: Timestamp::from_secs(0),
            expires_at: None,
            revoked_at: None,
        }],
        grants: vec![Grant {
            id: GrantId::parse(name).unwrap(),
            server: ServerName::parse("files").unwrap(),
            client: None,
            status: GrantStatus::Verified,
            scopes: Scopes::default(),
            expires_at: None,
            version: 1,
        }],
        ..Member::new(user(name), PrincipalKind::User)
    }
}

pub(super) fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

pub(super) fn issuer() -> Issuer {
    Issuer::parse("https://issuer.example").unwrap()
}

pub(super) fn identity(name: &str) -> (Issuer, Subject) {
    (issuer(), Subject::parse(name).unwrap())
}

pub(super) fn key_id(name: &str) -> KeyId {
    KeyId::parse(&format!("key00000{name}")).unwrap()
}

pub(super) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(super) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
