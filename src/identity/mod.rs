//! From a credential to a `Principal`: who calls, proved by a token, an API key or a client certificate. Whether that caller
//! is enrolled, and what may be done in that name, is not decided here.
//!
//! `present` finds the one credential, `known` remembers what it proved, `prove` does the work. A credential that fails ends
//! the request: nothing is tried after it, and nobody is anonymous.

mod certificate;
mod issuer;
mod jwks;
mod key;
mod present;
mod settings;
mod source;
mod strict;
mod token;

pub use certificate::CERTIFICATE_ISSUER;
pub use jwks::BadKeySet;
pub use key::{KEY_ISSUER, KeyText, NewKey, Pepper, PepperError};
pub use present::Presented;
pub use settings::IdentityError;

use crate::config::{Config, IssuerKind};
use crate::domain::{Digest, IssuerAlias, Member, Principal, Reason, Timestamp};
use crate::transport::PeerCertificate;
use http::HeaderMap;
use issuer::TrustedIssuer;
use moka::sync::Cache;
use present::Rules;
use source::Shared;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use token::Token;

const MAX_KNOWN: u64 = 100_000;
const MAX_FORGED: u64 = 4_096;
/// A key's scopes are looked up anew on every call; this bounds only what is kept of unused ones.
const KEY_LIFE: Duration = Duration::from_secs(300);
/// A forged token costs one verification in this time, not one a call.
const FORGED_LIFE: Duration = Duration::from_secs(10);

pub struct Identity {
    issuers: Vec<TrustedIssuer>,
    rules: Rules,
    pepper: Arc<Pepper>,
    shared: Arc<Shared>,
    known: Cache<Slot, Known>,
    forged: Cache<Slot, ()>,
}

/// How an issuer's keys stand, for health and metrics.
#[derive(Debug, Clone)]
pub struct IssuerState {
    pub alias: IssuerAlias,
    /// Keys of the last good set and its age.
    pub keys: Option<(usize, Duration)>,
    /// Why the last fetch failed, if it did.
    pub error: Option<Arc<str>>,
}

#[derive(Clone)]
struct Known {
    principal: Arc<Principal>,
    /// Whose row a key was held against.
    owner: Option<Arc<Member>>,
    life: Duration,
}

impl Identity {
    /// Reads nothing from the net: an issuer that is down is no reason not to start.
    pub fn new(config: &Config, pepper: Arc<Pepper>) -> Result<Self, IdentityError> {
        let shared = Arc::<Shared>::default();
        Ok(Self {
            issuers: settings::issuers(config, &shared)?,
            rules: Rules {
                assertions: config
                    .issuers
                    .iter()
                    .any(|issuer| issuer.kind == IssuerKind::CloudflareAccess),
                client_certificates: config.listen.tls.client_certificates,
            },
            pepper,
            shared,
            known: Cache::builder().max_capacity(MAX_KNOWN).expire_after(Life).build(),
            forged: Cache::builder().max_capacity(MAX_FORGED).time_to_live(FORGED_LIFE).build(),
        })
    }

    /// The one credential of a request; a certificate beside a token or key counts only where every connection must have one.
    pub fn present<'a>(
        &self,
        headers: &'a HeaderMap,
        certificate: Option<&Arc<PeerCertificate>>,
    ) -> Result<Presented<'a>, Reason> {
        present::present(headers, certificate, self.rules)
    }

    /// Whom this credential proved before, if that still holds. Keys are never answered from here: whether one is revoked is
    /// known to the grants alone, so `prove` asks every time.
    pub fn known(&self, presented: &Presented<'_>, audience: &str, now: Timestamp) -> Option<Arc<Principal>> {
        if matches!(presented, Presented::Key(_)) {
            return None;
        }
        let known = self.known.get(&self.slot(presented, audience))?;
        known
            .principal
            .expires_at
            .is_none_or(|end| now < end)
            .then_some(known.principal)
    }

    /// Whom this credential proves, for a call of the resource `audience`. It waits only for an issuer's keys.
    /// `owner` is whoever a presented key is stored with now.
    pub async fn prove(
        &self,
        presented: &Presented<'_>,
        owner: Option<Arc<Member>>,
        audience: &str,
        now: Timestamp,
    ) -> Result<Arc<Principal>, Reason> {
        let slot = self.slot(presented, audience);
        match presented {
            Presented::Key(key) => self.prove_key(key, owner, slot, now),
            Presented::Certificate(certificate) => {
                let principal = certificate::principal(certificate, now)?;
                let life = certificate.not_after.since(now);
                Ok(self.remember(slot, principal, None, life))
            }
            Presented::Token { text, .. } => {
                if self.forged.contains_key(&slot) {
                    return Err(Reason::BadSignature);
                }
                let proved = self.prove_token(text, &slot, audience, now).await;
                if matches!(proved, Err(Reason::BadSignature)) {
                    self.forged.insert(slot, ());
                }
                let (principal, life) = proved?;
                Ok(self.remember(slot, principal, None, life))
            }
        }
    }

    /// Everything proved so far must be proved again: a revocation came in.
    pub fn forget_all(&self) {
        self.shared.generation.fetch_add(1, Relaxed);
        self.known.invalidate_all();
    }

    /// Begins to fetch the keys of all issuers, so that the first callers need not wait.
    pub fn warm(&self) {
        for issuer in &self.issuers {
            drop(issuer.keys.fetch());
        }
    }

    pub fn issuers(&self) -> Vec<IssuerState> {
        let state = |issuer: &TrustedIssuer| {
            let knowledge = issuer.keys.knowledge.load();
            IssuerState {
                alias: issuer.alias.clone(),
                keys: knowledge.good.as_ref().map(|(set, at)| (set.count(), at.elapsed())),
                error: knowledge.tried.as_ref().and_then(|(_, error)| error.clone()),
            }
        };
        self.issuers.iter().map(state).collect()
    }

    /// Ends running fetches.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        self.shared.fetches.close();
        self.shared.fetches.wait().await;
    }

    fn prove_key(
        &self,
        key: &KeyText<'_>,
        owner: Option<Arc<Member>>,
        slot: Slot,
        now: Timestamp,
    ) -> Result<Arc<Principal>, Reason> {
        let stored = owner.as_ref().and_then(|owner| owner.key(&key.id()));
        let known = self.known.get(&slot);
        if let (Some(owner), Some(stored), Some(known)) = (&owner, stored, &known)
            && known.owner.as_ref().is_some_and(|before| Arc::ptr_eq(before, owner))
        {
            // The same key, held against the same row as then.
            return key::standing(stored, now).map(|()| known.principal.clone());
        }
        let matches = self.pepper.matches(key, stored);
        let stored = stored.filter(|_| matches).ok_or(Reason::BadKey)?;
        key::standing(stored, now)?;
        let member = owner.as_ref().ok_or(Reason::BadKey)?;
        let principal = key::principal(member, stored, &slot.credential)?;
        // The same caller is the same value, so that what hangs on it need not be built again.
        let principal = match known {
            Some(known) if *known.principal == principal => known.principal,
            _ => Arc::new(principal),
        };
        Ok(self.keep(slot, principal, owner, KEY_LIFE))
    }

    async fn prove_token(
        &self,
        text: &str,
        slot: &Slot,
        audience: &str,
        now: Timestamp,
    ) -> Result<(Principal, Duration), Reason> {
        let token = Token::read(text)?;
        let said = token.claims.text("iss")?.ok_or(Reason::MalformedCredential)?;
        let means = |issuer: &&TrustedIssuer| issuer.accepted.iter().any(|accepted| accepted.as_str() == said);
        let issuer = self.issuers.iter().find(means).ok_or(Reason::UnknownIssuer)?;
        if slot.kind == Kind::Assertion && issuer.kind != IssuerKind::CloudflareAccess {
            return Err(Reason::UnknownIssuer);
        }
        let principal = issuer.prove(&token, &slot.credential, audience, now).await?;
        let left = principal.expires_at.map_or(Duration::ZERO, |end| end.since(now));
        // No longer than a key set is used without another look, so that a key which is gone stops counting.
        Ok((principal, left.min(issuer.keys.times.refresh)))
    }

    fn remember(&self, slot: Slot, principal: Principal, owner: Option<Arc<Member>>, life: Duration) -> Arc<Principal> {
        self.keep(slot, Arc::new(principal), owner, life)
    }

    fn keep(&self, slot: Slot, principal: Arc<Principal>, owner: Option<Arc<Member>>, life: Duration) -> Arc<Principal> {
        let known = Known {
            principal: principal.clone(),
            owner,
            life,
        };
        self.known.insert(slot, known);
        principal
    }

    fn slot(&self, presented: &Presented<'_>, audience: &str) -> Slot {
        let token = |text: &str, kind| (Digest::of(text.as_bytes()), kind, Digest::of(audience.as_bytes()));
        let (credential, kind, audience) = match presented {
            Presented::Token { text, assertion: false } => token(text, Kind::Token),
            Presented::Token { text, assertion: true } => token(text, Kind::Assertion),
            Presented::Key(key) => (key.digest(), Kind::Key, Digest::ZERO),
            Presented::Certificate(certificate) => (certificate.digest, Kind::Certificate, Digest::ZERO),
        };
        Slot {
            credential,
            kind,
            audience,
            generation: self.shared.generation.load(Relaxed),
        }
    }
}

/// Where what a credential proved is kept: for one audience, and under the generation in which the proof began, so that one
/// that `forget_all` overtakes is never found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Slot {
    credential: Digest,
    kind: Kind,
    audience: Digest,
    generation: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Token,
    Assertion,
    Key,
    Certificate,
}

/// Each identity has its own life; reading does not prolong it.
struct Life;

impl moka::Expiry<Slot, Known> for Life {
    fn expire_after_create(&self, _: &Slot, known: &Known, _: std::time::Instant) -> Option<Duration> {
        Some(known.life)
    }

    fn expire_after_update(&self, _: &Slot, known: &Known, _: std::time::Instant, _: Option<Duration>) -> Option<Duration> {
        Some(known.life)
    }
}
