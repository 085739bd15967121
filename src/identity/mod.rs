//! Authentication: from a credential (bearer JWT, API key or client certificate) to a verified `Principal`. Whether the
//! caller is enrolled, and what it may do, is decided elsewhere.
//!
//! `extract_credential` finds the one credential, `known` looks in the cache, `prove` verifies it. A credential that fails ends the
//! request: no other one is tried, and nobody is anonymous.

mod build;
mod certificate;
mod credential;
mod introspection;
mod issuer;
mod jwks;
mod jwks_source;
mod jwt;
mod key;

pub use build::{IdentityError, probe_introspection};
pub use credential::Credential;
pub use jwks::BadKeySet;
pub use key::{ApiKeyText, NewKey, Pepper, PepperError};

use crate::config::{CheckedConfig, IssuerKind};
use crate::domain::{ApiKey, Digest, IssuerAlias, Member, Principal, Reason, Timestamp};
use crate::transport::PeerCertificate;
use credential::CredentialRules;
use http::HeaderMap;
use introspection::{IntrospectionObserver, TokenState};
use issuer::{Introspected, TrustedIssuer};
use jwks_source::JwksShared;
use jwt::Jwt;
use moka::sync::Cache;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::Instant;

const MAX_CACHED: u64 = 100_000;
const MAX_BAD_SIGNATURES: u64 = 4_096;
/// How long an API key stays cached. This bounds only memory: every call compares the key with its stored row anew.
const KEY_TTL: Duration = Duration::from_secs(300);
/// How long a bad signature is remembered, so that repeating the token does not cost a verification each time.
const BAD_SIGNATURE_TTL: Duration = Duration::from_secs(10);

/// Verifies credentials, and caches the principals they prove.
pub struct Identity {
    issuers: Vec<TrustedIssuer>,
    credential_rules: CredentialRules,
    pepper: Arc<Pepper>,
    shared: Arc<JwksShared>,
    introspection_observer: Arc<IntrospectionObserver>,
    cache: Cache<CacheKey, CachedIdentity>,
    bad_signatures: Cache<CacheKey, ()>,
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
struct CachedIdentity {
    principal: Arc<Principal>,
    /// The stored member that an API key was checked against.
    owner: Option<Arc<Member>>,
    /// For an opaque token: until when the answer of its issuer is used.
    until: Option<Instant>,
    ttl: Duration,
}

impl Identity {
    /// Fetches nothing over the network: an unreachable issuer must not keep Guardian from starting.
    pub fn new(config: &CheckedConfig, pepper: Arc<Pepper>) -> Result<Self, IdentityError> {
        let shared = Arc::<JwksShared>::default();
        let introspection_observer = Arc::default();
        Ok(Self {
            issuers: build::issuers(config, &shared, &introspection_observer)?,
            introspection_observer,
            credential_rules: CredentialRules {
                assertions: config
                    .issuers
                    .iter()
                    .any(|issuer| issuer.kind == IssuerKind::CloudflareAccess),
                client_certificates: config.listen.tls.client_certificates,
            },
            pepper,
            shared,
            cache: Cache::builder().max_capacity(MAX_CACHED).expire_after(CacheExpiry).build(),
            bad_signatures: Cache::builder()
                .max_capacity(MAX_BAD_SIGNATURES)
                .time_to_live(BAD_SIGNATURE_TTL)
                .build(),
        })
    }

    /// Finds the one credential of a request. A certificate beside a token or API key is one too many, except where
    /// `client_certificates = "required"`: there it only opens the connection.
    pub fn extract_credential<'a>(
        &self,
        headers: &'a HeaderMap,
        certificate: Option<&Arc<PeerCertificate>>,
    ) -> Result<Credential<'a>, Reason> {
        credential::extract_credential(headers, certificate, self.credential_rules)
    }

    /// The cached principal of this credential, unless it has expired. API keys are never answered from the cache: only
    /// their stored row tells whether one was revoked, so `prove` must check it each time.
    pub fn cached(&self, credential: &Credential<'_>, audience: &str, now: Timestamp) -> Option<Arc<Principal>> {
        if matches!(credential, Credential::Key(_)) {
            return None;
        }
        let cached = self.cache.get(&self.cache_key(credential, audience))?;
        let holds = cached.until.is_none_or(|until| Instant::now() < until);
        let lives = cached.principal.expires_at.is_none_or(|end| now < end);
        (holds && lives).then_some(cached.principal)
    }

    /// Verifies a credential for a call of the resource `audience`, from the address `source`. It waits for nothing but a
    /// fetch of the issuer's keys, or its answer about an opaque token. `owner` is the member that the presented API key
    /// belongs to now.
    pub async fn verify(
        &self,
        credential: &Credential<'_>,
        owner: Option<Arc<Member>>,
        audience: &str,
        source: IpAddr,
        now: Timestamp,
    ) -> Result<Arc<Principal>, Reason> {
        let cache_key = self.cache_key(credential, audience);
        match credential {
            Credential::Key(key) => self.verify_key(key, owner, cache_key, now),
            Credential::Certificate(certificate) => {
                let principal = certificate::certificate_principal(certificate, now)?;
                let ttl = certificate.not_after.since(now);
                Ok(self.remember(cache_key, principal, None, ttl))
            }
            Credential::Token { text, assertion: false } if is_opaque(text) => {
                self.verify_opaque(text, cache_key, audience, source, now).await
            }
            Credential::Token { text, .. } => {
                if self.bad_signatures.contains_key(&cache_key) {
                    return Err(Reason::BadSignature);
                }
                let proved = self.verify_token(text, &cache_key, audience, now).await;
                if matches!(proved, Err(Reason::BadSignature)) {
                    self.bad_signatures.insert(cache_key, ());
                }
                let (principal, ttl) = proved?;
                Ok(self.remember(cache_key, principal, None, ttl))
            }
        }
    }

    /// Empties the cache, so that every credential is verified again.
    pub fn forget_all(&self) {
        self.shared.generation.fetch_add(1, Relaxed);
        self.cache.invalidate_all();
        for issuer in self.issuers.iter().filter_map(|issuer| issuer.introspection.as_ref()) {
            issuer.endpoint.forget_all();
        }
    }

    /// Calls `observe` with how each question to an introspection endpoint ended: `active`, `inactive`, `failed`, or
    /// `not_asked` because of the bounds. Only the first call of this counts.
    pub fn observe_introspections(&self, observe: impl Fn(&'static str) + Send + Sync + 'static) {
        let _ = self.introspection_observer.set(Box::new(observe));
    }

    /// Whether this is the key of a stored row.
    pub fn holds(&self, key: &ApiKeyText<'_>, stored: &ApiKey) -> bool {
        self.pepper.matches(key, Some(stored))
    }

    /// Starts to fetch the keys of all issuers, so that the first callers need not wait.
    pub fn warm(&self) {
        for keys in self.issuers.iter().filter_map(|issuer| issuer.keys.as_ref()) {
            drop(keys.fetch());
        }
    }

    /// The state of every issuer's key set; an issuer without one has none.
    pub fn issuers(&self) -> Vec<IssuerState> {
        let state = |issuer: &TrustedIssuer| {
            let state = issuer.keys.as_ref()?.state.load();
            Some(IssuerState {
                alias: issuer.alias.clone(),
                keys: state.good.as_ref().map(|(set, at)| (set.count(), at.elapsed())),
                error: state.tried.as_ref().and_then(|(_, error)| error.clone()),
            })
        };
        self.issuers.iter().filter_map(state).collect()
    }

    /// Cancels running fetches and waits until they have ended.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        self.shared.fetches.close();
        self.shared.fetches.wait().await;
    }

    fn verify_key(
        &self,
        key: &ApiKeyText<'_>,
        owner: Option<Arc<Member>>,
        cache_key: CacheKey,
        now: Timestamp,
    ) -> Result<Arc<Principal>, Reason> {
        let stored = owner.as_ref().and_then(|owner| owner.key(&key.id()));
        let cached = self.cache.get(&cache_key);
        if let (Some(owner), Some(stored), Some(cached)) = (&owner, stored, &cached)
            && cached.owner.as_ref().is_some_and(|before| Arc::ptr_eq(before, owner))
        {
            // The key matched this very row before, so no HMAC is needed.
            return key::check_key_validity(stored, now).map(|()| cached.principal.clone());
        }
        let matches = self.pepper.matches(key, stored);
        let stored = stored.filter(|_| matches).ok_or(Reason::BadKey)?;
        key::check_key_validity(stored, now)?;
        let member = owner.as_ref().ok_or(Reason::BadKey)?;
        let principal = key::key_principal(member, stored, &cache_key.credential)?;
        // The gate caches callers by the address of this value, so an unchanged principal keeps its `Arc`.
        let principal = match cached {
            Some(cached) if *cached.principal == principal => cached.principal,
            _ => Arc::new(principal),
        };
        Ok(self.keep(cache_key, principal, owner, KEY_TTL))
    }

    async fn verify_token(
        &self,
        text: &str,
        cache_key: &CacheKey,
        audience: &str,
        now: Timestamp,
    ) -> Result<(Principal, Duration), Reason> {
        let jwt = Jwt::read(text)?;
        let said = jwt.claims.text("iss")?.ok_or(Reason::MalformedCredential)?;
        let means = |issuer: &&TrustedIssuer| issuer.accepted.iter().any(|accepted| accepted.as_str() == said);
        let issuer = self.issuers.iter().find(means).ok_or(Reason::UnknownIssuer)?;
        if cache_key.kind == CredentialKind::Assertion && issuer.kind != IssuerKind::CloudflareAccess {
            return Err(Reason::UnknownIssuer);
        }
        let principal = issuer.verify(&jwt, &cache_key.credential, audience, now).await?;
        let left = principal.expires_at.map_or(Duration::ZERO, |end| end.since(now));
        // Not longer than `jwks_refresh`, so that tokens of a removed key stop being accepted.
        let refresh = issuer.keys.as_ref().map_or(Duration::ZERO, |keys| keys.refresh_times.refresh);
        Ok((principal, left.min(refresh)))
    }

    /// Asks the one issuer that can have made an opaque token. No other issuer ever sees it, and a token of the shape of a JWT
    /// is never asked about.
    async fn verify_opaque(
        &self,
        text: &str,
        cache_key: CacheKey,
        audience: &str,
        source: IpAddr,
        now: Timestamp,
    ) -> Result<Arc<Principal>, Reason> {
        let (issuer, how) = self.issuer_of_opaque(text)?;
        let (claims, until) = match how.endpoint.answer(text, cache_key.credential, source).await? {
            TokenState::Active { claims, until } => (claims, until),
            TokenState::Inactive { .. } => return Err(Reason::TokenInactive),
        };
        let principal = issuer.verify_introspected(&claims, how, &cache_key.credential, audience, now)?;
        // The gate caches callers by the address of this value, so an unchanged principal keeps its `Arc`.
        let principal = match self.cache.get(&cache_key) {
            Some(cached) if *cached.principal == principal => cached.principal,
            _ => Arc::new(principal),
        };
        let cached = CachedIdentity {
            principal: principal.clone(),
            owner: None,
            until: Some(until),
            ttl: KEY_TTL,
        };
        self.cache.insert(cache_key, cached);
        Ok(principal)
    }

    fn issuer_of_opaque(&self, text: &str) -> Result<(&TrustedIssuer, &Introspected), Reason> {
        let mut reason = Reason::MalformedCredential;
        for issuer in &self.issuers {
            match &issuer.introspection {
                Some(how) if how.endpoint.may_know(text) => return Ok((issuer, how)),
                Some(_) => reason = Reason::UnknownIssuer,
                None => {}
            }
        }
        Err(reason)
    }

    fn remember(&self, cache_key: CacheKey, principal: Principal, owner: Option<Arc<Member>>, ttl: Duration) -> Arc<Principal> {
        self.keep(cache_key, Arc::new(principal), owner, ttl)
    }

    fn keep(&self, cache_key: CacheKey, principal: Arc<Principal>, owner: Option<Arc<Member>>, ttl: Duration) -> Arc<Principal> {
        let cached = CachedIdentity {
            principal: principal.clone(),
            owner,
            until: None,
            ttl,
        };
        self.cache.insert(cache_key, cached);
        principal
    }

    fn cache_key(&self, credential: &Credential<'_>, audience: &str) -> CacheKey {
        let token = |text: &str, kind| (Digest::of(text.as_bytes()), kind, Digest::of(audience.as_bytes()));
        let (credential, kind, audience) = match credential {
            Credential::Token { text, assertion: false } => token(text, CredentialKind::Token),
            Credential::Token { text, assertion: true } => token(text, CredentialKind::Assertion),
            Credential::Key(key) => (key.digest(), CredentialKind::Key, Digest::ZERO),
            Credential::Certificate(certificate) => (certificate.digest, CredentialKind::Certificate, Digest::ZERO),
        };
        CacheKey {
            credential,
            kind,
            audience,
            generation: self.shared.generation.load(Relaxed),
        }
    }
}

/// A JWT has two dots (JWS, RFC 7515) or four (JWE). Its shape alone says how a token is verified, so that none can be taken
/// to the other way.
fn is_opaque(token: &str) -> bool {
    token.bytes().filter(|byte| *byte == b'.').count() < 2
}

/// Cache key of a principal. It holds the audience, and the generation in which verification began: a result overtaken by
/// `forget_all` or by a changed key set is stored under an old generation and never found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct CacheKey {
    credential: Digest,
    kind: CredentialKind,
    audience: Digest,
    generation: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum CredentialKind {
    Token,
    Assertion,
    Key,
    Certificate,
}

/// Each cached principal has its own lifetime; reading it does not prolong that.
struct CacheExpiry;

impl moka::Expiry<CacheKey, CachedIdentity> for CacheExpiry {
    fn expire_after_create(&self, _: &CacheKey, cached: &CachedIdentity, _: std::time::Instant) -> Option<Duration> {
        Some(cached.ttl)
    }

    fn expire_after_update(
        &self,
        _: &CacheKey,
        cached: &CachedIdentity,
        _: std::time::Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(cached.ttl)
    }
}
