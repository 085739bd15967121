//! A trusted issuer: the checks that its tokens must pass, in the order of `TrustedIssuer::verify`. A token that passes
//! names a caller (issuer, subject) and says nothing about what that caller may do.

use super::introspection::Introspection;
use super::jwks_source::JwksSource;
use super::jwt::{Claims, Jwt};
use crate::config::IssuerKind;
use crate::domain::{
    AuthMethod, ClientId, Digest, EnvironmentName, Fingerprint, Issuer, IssuerAlias, Principal, PrincipalKind, Reason, RoleName,
    Scope, Scopes, Subject, Timestamp,
};
use jsonwebtoken::Algorithm;
use std::sync::Arc;
use std::time::Duration;

const MAX_ROLES: usize = 64;

/// One configured issuer, with its defaults filled in.
pub(super) struct TrustedIssuer {
    pub alias: IssuerAlias,
    pub kind: IssuerKind,
    /// The `iss` that principals carry.
    pub issuer: Issuer,
    /// All `iss` values that mean this issuer.
    pub accepted: Vec<Issuer>,
    pub algorithms: Vec<Algorithm>,
    pub audiences: Vec<String>,
    pub client_ids: Vec<ClientId>,
    pub environment: EnvironmentName,
    pub environment_claim: Option<String>,
    pub roles_claim: Option<String>,
    pub scopes_claim: Option<String>,
    pub tenant_claim: Option<String>,
    pub allow_anonymous: bool,
    pub skew: Duration,
    pub max_lifetime: Duration,
    /// For JWTs.
    pub keys: Option<Arc<JwksSource>>,
    /// For opaque tokens.
    pub introspection: Option<Introspected>,
}

/// How the opaque tokens of an issuer are checked.
pub(super) struct Introspected {
    pub endpoint: Arc<Introspection>,
    pub allow_missing_aud: bool,
    pub lifetime_without_exp: Option<Duration>,
}

impl TrustedIssuer {
    /// Verifies a token whose `iss` selected this issuer. Cheap checks come before the signature; claims that describe
    /// the caller are read only after it.
    pub async fn verify(&self, jwt: &Jwt<'_>, credential: &Digest, audience: &str, now: Timestamp) -> Result<Principal, Reason> {
        let keys = self.keys.as_ref().ok_or(Reason::WrongTokenKind)?;
        if !self.algorithms.contains(&jwt.algorithm) {
            return Err(Reason::WrongAlgorithm);
        }
        let expires_at = self.check_expiry(&jwt.claims, now)?;
        self.check_audience(&jwt.claims, audience)?;
        let keys = keys.keys(&jwt.key_id).await?;
        keys.verify(&jwt.key_id, jwt.algorithm, jwt.message, jwt.signature)?;
        let issued_at = self.check_not_before(&jwt.claims, now)?;
        if !matches!(jwt.kind.as_deref(), None | Some("jwt" | "at+jwt" | "application/at+jwt")) {
            return Err(Reason::WrongTokenKind);
        }
        let (kind, subject) = self.check_token_type(&jwt.claims)?;
        let client = self.check_client(&jwt.claims)?;
        self.check_environment(&jwt.claims)?;
        self.principal(&jwt.claims, credential, (kind, subject), client, (issued_at, expires_at))
    }

    /// Verifies what the issuer said of an active token. It passes the checks of a JWT, as far as they do not concern its
    /// signature; `exp` is the issuer's word of this moment, so no skew is added.
    pub fn verify_introspected(
        &self,
        claims: &Claims,
        how: &Introspected,
        credential: &Digest,
        audience: &str,
        now: Timestamp,
    ) -> Result<Principal, Reason> {
        if let Some(issuer) = claims.text("iss")?
            && !self.accepted.iter().any(|accepted| accepted.as_str() == issuer)
        {
            return Err(Reason::UnknownIssuer);
        }
        let issued_at = self.check_not_before(claims, now)?;
        let lifetime = |lifetime: Duration| issued_at.unwrap_or(now).plus(lifetime);
        let longest = how.lifetime_without_exp.map(lifetime);
        let expires_at = claims.time("exp")?.or(longest).ok_or(Reason::MalformedCredential)?;
        if now >= expires_at {
            return Err(Reason::TokenExpired);
        }
        self.check_lifetime(issued_at, expires_at, now)?;
        if claims.has("aud") || !how.allow_missing_aud {
            self.check_audience(claims, audience)?;
        }
        // RFC 7662 takes the values of `token_type` from RFC 6749, where "bearer" is in any case; some servers tell access
        // from refresh tokens there, others in `token_use`.
        let is = |name: &str, kinds: &[&str]| {
            let named = claims.text(name)?;
            Ok(named.is_none_or(|named| kinds.iter().any(|kind| kind.eq_ignore_ascii_case(named))))
        };
        if !is("token_type", &["bearer", "access_token"])? || !is("token_use", &["access_token", "access"])? {
            return Err(Reason::WrongTokenKind);
        }
        let caller = self.check_token_type(claims)?;
        let client = self.check_client(claims)?;
        self.check_environment(claims)?;
        self.principal(claims, credential, caller, client, (issued_at, expires_at))
    }

    /// Returns `exp` plus the tolerated skew: everything that relies on the token ends then, and not before.
    fn check_expiry(&self, claims: &Claims, now: Timestamp) -> Result<Timestamp, Reason> {
        let expires_at = claims.time("exp")?.ok_or(Reason::MalformedCredential)?;
        if now >= expires_at.plus(self.skew) {
            return Err(Reason::TokenExpired);
        }
        self.check_lifetime(claims.time("iat")?, expires_at, now)?;
        Ok(expires_at.plus(self.skew))
    }

    /// A token that lives longer than this issuer's may is refused, since whoever loses it loses it for so long.
    fn check_lifetime(&self, issued_at: Option<Timestamp>, expires_at: Timestamp, now: Timestamp) -> Result<(), Reason> {
        if expires_at.since(issued_at.unwrap_or(now)) <= self.max_lifetime {
            Ok(())
        } else {
            Err(Reason::TokenLivesTooLong)
        }
    }

    /// Checks `nbf` and `iat` against the clock, and returns `iat`.
    fn check_not_before(&self, claims: &Claims, now: Timestamp) -> Result<Option<Timestamp>, Reason> {
        let issued_at = claims.time("iat")?;
        let begins_at = claims.time("nbf")?;
        let latest = now.plus(self.skew);
        if [issued_at, begins_at].into_iter().flatten().all(|at| at <= latest) {
            Ok(issued_at)
        } else {
            Err(Reason::TokenNotYetValid)
        }
    }

    /// Checks that `aud` names an accepted audience.
    fn check_audience(&self, claims: &Claims, audience: &str) -> Result<(), Reason> {
        if !claims.has("aud") {
            return Err(Reason::WrongAudience);
        }
        let default = match self.kind {
            IssuerKind::Supabase => "authenticated",
            IssuerKind::Oidc | IssuerKind::CloudflareAccess => audience,
        };
        // `https://host/mcp/` is the same resource: some clients ask for their token with the slash that URL parsers add.
        let ours = |named: &&str| match self.audiences.as_slice() {
            [] => *named == default || named.strip_suffix('/') == Some(default),
            audiences => audiences.iter().any(|audience| audience == named),
        };
        if claims.texts("aud")?.iter().any(ours) {
            Ok(())
        } else {
            Err(Reason::WrongAudience)
        }
    }

    /// Checks that this is an access token: ID tokens, service keys and other kinds of login name no caller.
    fn check_token_type(&self, claims: &Claims) -> Result<(PrincipalKind, Subject), Reason> {
        let subject = claims.text("sub")?;
        // Only ID tokens hold `at_hash` or `c_hash` (OpenID Connect Core). `cnf` (RFC 7800) binds a token to a key, whose
        // possession is not checked here.
        if ["at_hash", "c_hash", "cnf"].iter().any(|name| claims.has(name)) {
            return Err(Reason::WrongTokenKind);
        }
        match self.kind {
            IssuerKind::Oidc => {
                if claims.text("typ")?.is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
                    return Err(Reason::WrongTokenKind);
                }
            }
            IssuerKind::Supabase => {
                if claims.text("role")? != Some("authenticated") || claims.text("session_id")?.is_none_or(str::is_empty) {
                    return Err(Reason::WrongTokenKind);
                }
                if claims.flag("is_anonymous")? && !self.allow_anonymous {
                    return Err(Reason::WrongTokenKind);
                }
                claims.time("iat")?.ok_or(Reason::MalformedCredential)?;
            }
            IssuerKind::CloudflareAccess => {
                if claims.text("type")? != Some("app") {
                    return Err(Reason::WrongTokenKind);
                }
                if subject == Some("") {
                    let name = claims.text("common_name")?.ok_or(Reason::MalformedCredential)?;
                    return kind_and_subject(PrincipalKind::Service, name);
                }
            }
        }
        kind_and_subject(PrincipalKind::User, subject.ok_or(Reason::MalformedCredential)?)
    }

    /// Checks `client_id` and `azp` against the configured clients, if there are any.
    fn check_client(&self, claims: &Claims) -> Result<Option<ClientId>, Reason> {
        let named = [claims.text("client_id")?, claims.text("azp")?];
        let mut client = None;
        for name in named.into_iter().flatten() {
            let id = ClientId::parse(name).map_err(|_| Reason::MalformedCredential)?;
            if !self.client_ids.is_empty() && !self.client_ids.contains(&id) {
                return Err(Reason::WrongAudience);
            }
            client = client.or(Some(id));
        }
        if client.is_none() && !self.client_ids.is_empty() {
            Err(Reason::WrongAudience)
        } else {
            Ok(client)
        }
    }

    /// Checks that the configured claim names this environment.
    fn check_environment(&self, claims: &Claims) -> Result<(), Reason> {
        let Some(path) = &self.environment_claim else { return Ok(()) };
        if claims.texts(path)?.contains(&self.environment.as_str()) {
            Ok(())
        } else {
            Err(Reason::WrongEnvironment)
        }
    }

    fn principal(
        &self,
        claims: &Claims,
        credential: &Digest,
        (kind, subject): (PrincipalKind, Subject),
        client: Option<ClientId>,
        (issued_at, expires_at): (Option<Timestamp>, Timestamp),
    ) -> Result<Principal, Reason> {
        let shared = |name: &str| claims.text(name).map(|text| text.map(Arc::from));
        let either = |first: &str, second: &str| Ok(shared(first)?.or(shared(second)?));
        let verified = !claims.has("email_verified") || claims.flag("email_verified")?;
        Ok(Principal {
            kind,
            issuer: self.issuer.clone(),
            alias: self.alias.clone(),
            subject,
            method: AuthMethod::Jwt,
            fingerprint: Fingerprint::of(credential),
            client,
            token_session: either("session_id", "sid")?,
            token_id: shared("jti")?,
            email: shared("email")?.filter(|_| verified),
            tenant: self.tenant(claims)?,
            assurance: either("aal", "acr")?,
            roles: self.roles(claims)?,
            key: None,
            narrowed_to: self.scopes(claims)?,
            issued_at,
            expires_at: Some(expires_at),
        })
    }

    fn tenant(&self, claims: &Claims) -> Result<Option<Arc<str>>, Reason> {
        let Some(path) = &self.tenant_claim else { return Ok(None) };
        match claims.texts(path)?.as_slice() {
            [] => Ok(None),
            [tenant] => Ok(Some(Arc::from(*tenant))),
            _ => Err(Reason::MalformedCredential),
        }
    }

    fn roles(&self, claims: &Claims) -> Result<Vec<RoleName>, Reason> {
        let Some(path) = &self.roles_claim else {
            return Ok(Vec::new());
        };
        let roles = claims.texts(path)?;
        if roles.len() > MAX_ROLES {
            return Err(Reason::MalformedCredential);
        }
        let parse = |role: &str| RoleName::parse(role).map_err(|_| Reason::MalformedCredential);
        roles.into_iter().map(parse).collect()
    }

    /// The scopes that narrow the grants. Values that no grant could hold are left out, and a missing claim gives the
    /// empty set, which permits nothing.
    fn scopes(&self, claims: &Claims) -> Result<Option<Scopes>, Reason> {
        let Some(path) = &self.scopes_claim else { return Ok(None) };
        let scopes = claims.texts(path)?.into_iter().flat_map(|text| text.split(' '));
        Ok(Some(scopes.filter_map(|scope| Scope::parse(scope).ok()).collect()))
    }
}

fn kind_and_subject(kind: PrincipalKind, subject: &str) -> Result<(PrincipalKind, Subject), Reason> {
    Ok((kind, Subject::parse(subject).map_err(|_| Reason::MalformedCredential)?))
}
