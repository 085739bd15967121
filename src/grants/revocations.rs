//! Tokens that are refused before they expire, found by what a principal carries.

use crate::domain::{Issuer, PartialRevocation, Principal, Revocation, RevocationKind, Timestamp};
use crate::store::RevocationRows;
use std::collections::HashMap;

/// All rows of `revocations`, by issuer, kind and value.
#[derive(Debug, Default)]
pub(super) struct Revocations {
    of: HashMap<Issuer, Revoked>,
    /// Of rows whose issuer cannot be read.
    of_any_issuer: Revoked,
}

#[derive(Debug, Default)]
struct Revoked {
    subjects: HashMap<String, Terms>,
    sessions: HashMap<String, Terms>,
    clients: HashMap<String, Terms>,
    ids: HashMap<String, Terms>,
    /// Of rows whose value cannot be read.
    everything: Terms,
}

/// None of them covers all that another one does.
#[derive(Debug, Default)]
struct Terms(Vec<Term>);

#[derive(Debug, Clone, Copy)]
struct Term {
    issued_before: Timestamp,
    expires_at: Timestamp,
}

impl Revocations {
    pub(super) fn new(rows: RevocationRows) -> Self {
        let mut all = Self::default();
        for row in rows.whole {
            all.add(row.into());
        }
        for row in rows.partial {
            all.add(row);
        }
        all
    }

    fn add(&mut self, row: PartialRevocation) {
        let term = Term {
            issued_before: row.issued_before,
            expires_at: row.expires_at,
        };
        let revoked = match row.issuer {
            Some(issuer) => self.of.entry(issuer).or_default(),
            None => &mut self.of_any_issuer,
        };
        let Some(value) = row.value else {
            return revoked.everything.add(term);
        };
        let kinds: &mut [&mut HashMap<String, Terms>] = match row.kind {
            Some(RevocationKind::Subject) => &mut [&mut revoked.subjects],
            Some(RevocationKind::Session) => &mut [&mut revoked.sessions],
            Some(RevocationKind::Client) => &mut [&mut revoked.clients],
            Some(RevocationKind::Jti) => &mut [&mut revoked.ids],
            None => &mut [
                &mut revoked.subjects,
                &mut revoked.sessions,
                &mut revoked.clients,
                &mut revoked.ids,
            ],
        };
        for values in kinds {
            values.entry(value.clone()).or_default().add(term);
        }
    }

    pub(super) fn hit(&self, principal: &Principal, now: Timestamp) -> bool {
        let of_issuer = self.of.get(&principal.issuer);
        of_issuer.is_some_and(|revoked| revoked.hit(principal, now)) || self.of_any_issuer.hit(principal, now)
    }
}

impl Revoked {
    fn hit(&self, principal: &Principal, now: Timestamp) -> bool {
        let named = [
            (&self.subjects, Some(principal.subject.as_str())),
            (&self.sessions, principal.token_session.as_deref()),
            (&self.clients, principal.client.as_ref().map(|client| client.as_str())),
            (&self.ids, principal.token_id.as_deref()),
        ];
        let covers = |terms: &Terms| terms.cover(principal.issued_at, now);
        named
            .into_iter()
            .any(|(terms, value)| value.and_then(|value| terms.get(value)).is_some_and(covers))
            || covers(&self.everything)
    }
}

impl From<Revocation> for PartialRevocation {
    fn from(row: Revocation) -> Self {
        Self {
            issuer: Some(row.issuer),
            kind: Some(row.kind),
            value: Some(row.value),
            issued_before: row.issued_before,
            expires_at: row.expires_at,
        }
    }
}

impl Terms {
    fn add(&mut self, term: Term) {
        if self.0.iter().any(|held| held.contains(term)) {
            return;
        }
        self.0.retain(|held| !term.contains(*held));
        self.0.push(term);
    }

    fn cover(&self, issued_at: Option<Timestamp>, now: Timestamp) -> bool {
        self.0.iter().any(|term| term.covers(issued_at, now))
    }
}

impl Term {
    /// A credential that does not say when it was issued may be older than any revocation. One that was issued while the
    /// revocation lasted is refused as long as it lives, however soon the revocation was set to end.
    fn covers(&self, issued_at: Option<Timestamp>, now: Timestamp) -> bool {
        let lasts = now < self.expires_at;
        issued_at.map_or(lasts, |issued_at| {
            issued_at < self.issued_before && (lasts || issued_at < self.expires_at)
        })
    }

    fn contains(&self, other: Term) -> bool {
        self.issued_before >= other.issued_before && self.expires_at >= other.expires_at
    }
}
