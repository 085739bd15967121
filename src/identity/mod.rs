//! Authentication: from a credential (bearer JWT, API key or client certificate) to a verified `Principal`. Whether the
//! caller is enrolled, and what it may do, is decided elsewhere.
//!
//! `present` finds the one credential, `known` looks in the cache, `prove` verifies it. A credential that fails ends the
//! request: no other one is tried, and nobody is anonymous.

mod certificate;
mod issuer;
mod jwks;
mod key;
mod present;
mod settings;
mod source;
mod strict;
mod token;

pub use jwks::BadKeySet;
pub use key::{KeyText, NewKey, Pepper, PepperError};
pub use present::Presented;
pub use settings::IdentityError;

use crate::config::{CheckedConfig, IssuerKind};
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
/// How long an API key stays cached. This bounds only memory: every call compares the key with its stored row anew.
const KEY_LIFE: Duration = Duration::from_secs(300);
/// How long a bad signature is remembered, so that repeating the token does not cost a verification each time.
const FORGED_LIFE: Duration = Duration::from_secs(10);

/// Verifies credentials, and caches the principals they prove.
pub struct Identity {
    issuers: Vec<TrustedIssuer>,
    rules: Rules,
    pepper: Arc<Pepper>,
    shared: Arc<Shared>,
    known: Cache<Slot, Known>,
    forged: Cache<Slot, ()>,
}

/// The state of an issuer's key set, for health and metrics.
#[derive(Debug, Clone)]
pub struct IssuerState {
    pub alias: IssuerAlias,
    /// Number of keys in the last good set, and its age.
    pub keys: Option<(usize, Duration)>,
    /// Why the last fetch failed, if it did.
    pub error: Option<Arc<str>>,
}

#[derive(Clone)]
struct Known {
    principal: Arc<Principal>,
    /// The stored member that an API key was checked against.
    owner: Option<Arc<Member>>,
    life: Duration,
}

impl Identity {
    /// Fetches nothing over the network: an unreachable issuer must not keep Guardian from starting.
    pub fn new(config: &CheckedConfig, pepper: Arc<Pepper>) -> Result<Self, IdentityError> {
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

    /// Finds the one credential of a request. A certificate beside a token or API key is one too many, except where
    /// `client_certificates = "required"`: there it only opens the connection.
    pub fn present<'a>(
        &self,
        headers: &'a HeaderMap,
        certificate: Option<&Arc<PeerCertificate>>,
    ) -> Result<Presented<'a>, Reason> {
        present::present(headers, certificate, self.rules)
    }

    /// The cached principal of this credential, unless it has expired. API keys are never answered from the cache: only
    /// their stored row tells whether one was revoked, so `prove` must check it each time.
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

    /// Verifies a credential for a call of the resource `audience`. It waits for nothing but a fetch of the issuer's
    /// keys. `owner` is the member that the presented API key belongs to now.
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

    /// Empties the cache, so that every credential is verified again.
    pub fn forget_all(&self) {
        self.shared.generation.fetch_add(1, Relaxed);
        self.known.invalidate_all();
    }

    /// Starts to fetch the keys of all issuers, so that the first callers need not wait.
    pub fn warm(&self) {
        for issuer in &self.issuers {
            drop(issuer.keys.fetch());
        }
    }

    /// The state of every issuer's key set.
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

    /// Cancels running fetches and waits until they have ended.
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
            // The key matched this very row before, so no HMAC is needed.
            return key::standing(stored, now).map(|()| known.principal.clone());
        }
        let matches = self.pepper.matches(key, stored);
        let stored = stored.filter(|_| matches).ok_or(Reason::BadKey)?;
        key::standing(stored, now)?;
        let member = owner.as_ref().ok_or(Reason::BadKey)?;
        let principal = key::principal(member, stored, &slot.credential)?;
        // The gate caches callers by the address of this value, so an unchanged principal keeps its `Arc`.
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
        // Not longer than `jwks_refresh`, so that tokens of a removed key stop being accepted.
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

/// Cache key of a principal. It holds the audience, and the generation in which verification began: a result overtaken by
/// `forget_all` or by a changed key set is stored under an old generation and never found.
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

/// Each cached principal has its own lifetime; reading it does not prolong that.
struct Life;

impl moka::Expiry<Slot, Known> for Life {
    fn expire_after_create(&self, _: &Slot, known: &Known, _: std::time::Instant) -> Option<Duration> {
        Some(known.life)
    }

    fn expire_after_update(&self, _: &Slot, known: &Known, _: std::time::Instant, _: Option<Duration>) -> Option<Duration> {
        Some(known.life)
    }
}
