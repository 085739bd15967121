//! Authenticates the caller, finds the enrolled member behind the credential, and caches both together with their Cedar
//! entity. Does not decide what the caller may do.

use crate::decide::CedarPrincipal;
use crate::domain::{
    AdminAction, ApiKey, AuthMethod, EnvironmentName, Event, Member, Principal, Reason, RecordedPrincipal, Refusal, RoleName,
    Timestamp,
};
use crate::grants::Grants;
use crate::identity::{ApiKeyText, Credential, Identity};
use crate::journal::{InputSecrets, Journal, JournalState, PersonKeys};
use crate::store::Store;
use crate::transport::Peer;
use http::HeaderMap;
use moka::sync::Cache;
use std::sync::Arc;

/// An authenticated caller with its member and its Cedar entity. Cheap to clone.
#[derive(Clone)]
pub struct CallerProfile {
    pub principal: Arc<Principal>,
    pub member: Option<Arc<Member>>,
    pub cedar_principal: CedarPrincipal,
    /// The two as records show them.
    pub recorded: Arc<RecordedPrincipal>,
    /// What the arguments are kept with; `None` for who is no user of the store, or has been erased from it.
    pub person_keys: Option<Arc<PersonKeys>>,
}

/// The principal that a credential authenticates, before the member is loaded.
#[derive(Clone)]
pub struct Authenticated {
    pub principal: Arc<Principal>,
    /// For an API key: the member who owns it, and the generation of the grants cache read before the look-up. The look-up
    /// is repeated only if the decision uses another generation.
    owner: Option<(Arc<Member>, u64)>,
}

impl From<Arc<Principal>> for Authenticated {
    fn from(principal: Arc<Principal>) -> Self {
        Self { principal, owner: None }
    }
}

/// Authenticates callers and caches a [`CallerProfile`] per (principal, member), keyed by the addresses of the two `Arc`s.
pub struct Authenticator {
    identity: Arc<Identity>,
    grants: Arc<Grants>,
    environment: EnvironmentName,
    enrolment: Option<JitEnrolment>,
    input_secrets: InputSecrets,
    profiles: Cache<(usize, usize), CallerProfile>,
}

/// Just-in-time enrolment (`members.just_in_time`): enrols a caller with a valid token or certificate on its first request.
pub struct JitEnrolment {
    pub store: Store,
    /// Where the enrolment is recorded.
    pub journal: Journal,
    pub roles: Vec<RoleName>,
}

const MAX_PROFILES: u64 = 20_000;

impl Authenticator {
    pub fn new(
        identity: Arc<Identity>,
        grants: Arc<Grants>,
        environment: EnvironmentName,
        enrolment: Option<JitEnrolment>,
        input_secrets: InputSecrets,
    ) -> Self {
        Self {
            identity,
            grants,
            environment,
            enrolment,
            input_secrets,
            profiles: Cache::new(MAX_PROFILES),
        }
    }

    /// Checks the credential only; enrolment and grants are checked later, for the decision. `audience` is the URL of the
    /// resource that is called.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        peer: &Peer,
        audience: &str,
        now: Timestamp,
    ) -> Result<Authenticated, Reason> {
        let credential = self.identity.extract_credential(headers, peer.certificate.as_ref())?;
        // Before the keys are loaded a key cannot be told from a wrong one.
        if matches!(credential, Credential::Key(_)) && !self.grants.is_admitted() {
            return Err(Reason::StaleAuthorization);
        }
        if let Some(principal) = self.identity.cached(&credential, audience, now) {
            return Ok(Authenticated { principal, owner: None });
        }
        let generation = self.grants.generation();
        // A key created a moment ago may not be in the cache yet. `find_by_key` then asks the store once more; such look-ups
        // are rate-limited.
        let owner = match &credential {
            Credential::Key(key) => self.grants.find_by_key(&key.id()).await,
            Credential::Token { .. } | Credential::Certificate(_) => None,
        };
        let principal = match (
            self.identity
                .verify(&credential, owner.clone(), audience, peer.address.ip(), now)
                .await,
            &credential,
        ) {
            // Only who holds the key learns that its owner is enrolled and not loaded.
            (Err(Reason::BadKey), Credential::Key(key)) if self.is_unloaded(key) => return Err(Reason::TooManyMembers),
            (verified, _) => verified?,
        };
        let owner = owner.map(|member| (member, generation));
        Ok(Authenticated { principal, owner })
    }

    fn is_unloaded(&self, key: &ApiKeyText<'_>) -> bool {
        self.grants
            .unloaded_key(&key.id())
            .is_some_and(|stored| self.identity.holds(key, &stored))
    }

    /// Loads the member behind an authenticated principal and builds their Cedar entity. `generation` is that of the grants
    /// view on which the decision will be made.
    pub async fn load_profile(
        &self,
        authenticated: Authenticated,
        generation: u64,
        now: Timestamp,
    ) -> Result<CallerProfile, Refusal> {
        let member = match self.member(&authenticated, generation, now).await? {
            // Rarely taken, and boxed because its future is too large to be part of every call's future.
            None => Box::pin(self.enrol(&authenticated.principal)).await?,
            found => found,
        };
        let principal = authenticated.principal;
        let key = (address(Some(&principal)), address(member.as_ref()));
        if let Some(caller) = self.profiles.get(&key) {
            return Ok(caller);
        }
        let cedar_principal = CedarPrincipal::new(&principal, member.as_deref(), &self.environment);
        let recorded = Arc::new(RecordedPrincipal::of(&principal, member.as_deref()));
        let salt = member.as_ref().and_then(|member| member.input_salt.as_ref());
        let person_keys = salt.map(|salt| Arc::new(self.input_secrets.newest_keys(salt)));
        // The entry holds both `Arc`s, so neither address can be reused for another value while the entry exists.
        let caller = CallerProfile {
            principal,
            member,
            cedar_principal,
            recorded,
            person_keys,
        };
        self.profiles.insert(key, caller.clone());
        Ok(caller)
    }

    /// A key is looked up by its id, every other credential by (issuer, subject). Checks revocations on every call, so a
    /// cached principal does not outlive the revocation of its key, token, session or client.
    async fn member(
        &self,
        authenticated: &Authenticated,
        generation: u64,
        now: Timestamp,
    ) -> Result<Option<Arc<Member>>, Reason> {
        let principal = &*authenticated.principal;
        if self.grants.revoked(principal, now) {
            return Err(Reason::CredentialRevoked);
        }
        let Some(id) = &principal.key else {
            return Ok(self.grants.find_by_identity(&principal.issuer, &principal.subject).await);
        };
        let stands = |key: &ApiKey| key.revoked_at.is_none() && key.expires_at.is_none_or(|expiry| now < expiry);
        let owner = match &authenticated.owner {
            Some((owner, seen)) if *seen == generation => Some(owner.clone()),
            _ => self.grants.by_key(id),
        };
        let owner = owner.filter(|member| member.key(id).is_some_and(stands));
        owner.map(Some).ok_or(Reason::CredentialRevoked)
    }

    /// Somebody whom nothing is known of; but they may be enrolled already, and not loaded for want of room.
    async fn enrol(&self, principal: &Principal) -> Result<Option<Arc<Member>>, Refusal> {
        self.has_room_for(principal)?;
        let Some(JitEnrolment { store, journal, roles }) = &self.enrolment else {
            return Ok(None);
        };
        if principal.method == AuthMethod::Key {
            return Ok(None);
        }
        // The enrolment would be committed, and nobody could record who it was.
        if matches!(journal.state(), JournalState::Sealed(_)) {
            return Err(Refusal::new(Reason::AuditUnavailable));
        }
        let enrolled = store
            .enrol(
                &self.environment,
                &principal.issuer,
                &principal.subject,
                principal.email.as_deref(),
                roles,
                principal.kind,
            )
            .await;
        match enrolled {
            Ok((_, changes)) => record_enrolment(journal, changes).await,
            Err(error) => {
                tracing::warn!(%error, "cannot enrol just in time");
                return Ok(None);
            }
        }
        self.grants.confirm().await.map_err(|stale| Refusal::new(stale.reason))?;
        let member = self.grants.by_identity(&principal.issuer, &principal.subject);
        if member.is_none() {
            self.has_room_for(principal)?;
        }
        Ok(member)
    }

    fn has_room_for(&self, principal: &Principal) -> Result<(), Reason> {
        if self.grants.leaves_out(&principal.issuer, &principal.subject) {
            Err(Reason::TooManyMembers)
        } else {
            Ok(())
        }
    }
}

/// Where the journal cannot take the record, the change stays unhashed in the trail, and the call that comes next is refused.
async fn record_enrolment(journal: &Journal, changes: Vec<AdminAction>) {
    for change in changes {
        if let Err(sealed) = journal.append(Event::Admin(change)).await {
            tracing::error!(%sealed, "an enrolment just in time cannot be recorded");
        }
    }
}

fn address<T>(value: Option<&Arc<T>>) -> usize {
    value.map_or(0, |value| Arc::as_ptr(value).addr())
}
