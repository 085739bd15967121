//! Tokens that are refused before they expire, found by what a principal carries.

use crate::domain::{Issuer, Principal, Revocation, RevocationKind, Timestamp};
use std::collections::HashMap;

/// All rows of `revocations`, by issuer, kind and value.
#[derive(Debug, Default)]
pub(super) struct Revocations(HashMap<Issuer, Kinds>);

#[derive(Debug, Default)]
struct Kinds {
    subjects: HashMap<String, Term>,
    sessions: HashMap<String, Term>,
    clients: HashMap<String, Term>,
    ids: HashMap<String, Term>,
}

#[derive(Debug, Clone, Copy)]
struct Term {
    issued_before: Timestamp,
    expires_at: Timestamp,
}

impl Revocations {
    pub(super) fn new(rows: Vec<Revocation>) -> Self {
        let mut all = Self::default();
        for row in rows {
            let kinds = all.0.entry(row.issuer).or_default();
            let values = match row.kind {
                RevocationKind::Subject => &mut kinds.subjects,
                RevocationKind::Session => &mut kinds.sessions,
                RevocationKind::Client => &mut kinds.clients,
                RevocationKind::Jti => &mut kinds.ids,
            };
            let term = Term {
                issued_before: row.issued_before,
                expires_at: row.expires_at,
            };
            values.insert(row.value, term);
        }
        all
    }

    pub(super) fn hit(&self, principal: &Principal, now: Timestamp) -> bool {
        let Some(kinds) = self.0.get(&principal.issuer) else {
            return false;
        };
        let named = [
            (&kinds.subjects, Some(principal.subject.as_str())),
            (&kinds.sessions, principal.token_session.as_deref()),
            (&kinds.clients, principal.client.as_ref().map(|client| client.as_str())),
            (&kinds.ids, principal.token_id.as_deref()),
        ];
        named.into_iter().any(|(terms, value)| {
            let term = value.and_then(|value| terms.get(value));
            term.is_some_and(|term| term.covers(principal.issued_at, now))
        })
    }
}

impl Term {
    /// A credential that does not say when it was issued may be older than any revocation.
    fn covers(&self, issued_at: Option<Timestamp>, now: Timestamp) -> bool {
        now < self.expires_at && issued_at.is_none_or(|issued_at| issued_at < self.issued_before)
    }
}
