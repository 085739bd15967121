//! Builds the trusted issuers from the configuration, which has checked their settings. Reads key files; fetches nothing.

use super::introspection::{Introspection, IntrospectionObserver, basic_credentials};
use super::issuer::{Introspected, TrustedIssuer};
use super::jwks::{JwksState, KeySet, RefreshTimes};
use super::jwks_source::{JwksLocation, JwksShared, JwksSource, bounded, chain};
use crate::config::{CheckedConfig, IntrospectionConfig, IssuerConfig, SigningAlgorithm};
use crate::domain::IssuerAlias;
use crate::transport::{Client, ClientError, ClientSettings};
use arc_swap::ArcSwap;
use jsonwebtoken::Algorithm;
use secrecy::ExposeSecret;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::time::Instant;

/// Idle connections to an introspection endpoint.
const MAX_IDLE: usize = 4;

/// Why an issuer's keys cannot be got. What else may be wrong with an issuer the configuration refuses.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the keys of issuer `{alias}` in `{}` cannot be used: {why}", file.display())]
    BadFile { alias: IssuerAlias, file: PathBuf, why: String },
    #[error("`{key}` of issuer `{alias}` cannot be used")]
    BadCa {
        alias: IssuerAlias,
        key: &'static str,
        source: ClientError,
    },
}

pub(super) fn issuers(
    config: &CheckedConfig,
    shared: &Arc<JwksShared>,
    observer: &Arc<IntrospectionObserver>,
) -> Result<Vec<TrustedIssuer>, IdentityError> {
    config
        .issuers
        .iter()
        .map(|issuer| trusted_issuer(issuer, config, shared, observer))
        .collect()
}

fn trusted_issuer(
    issuer: &IssuerConfig,
    config: &CheckedConfig,
    shared: &Arc<JwksShared>,
    observer: &Arc<IntrospectionObserver>,
) -> Result<TrustedIssuer, IdentityError> {
    let algorithms: Vec<Algorithm> = issuer.algorithms.iter().copied().map(jwt_algorithm).collect();
    Ok(TrustedIssuer {
        alias: issuer.alias.clone(),
        kind: issuer.kind,
        issuer: issuer.issuer.clone(),
        accepted: std::iter::once(&issuer.issuer).chain(&issuer.also_accept).cloned().collect(),
        audiences: issuer.audiences.clone(),
        client_ids: issuer.client_ids.clone(),
        environment: config.environment.clone(),
        environment_claim: issuer.environment_claim.clone(),
        roles_claim: issuer.roles_claim.clone(),
        scopes_claim: issuer.scopes_claim.clone(),
        tenant_claim: issuer.tenant_claim.clone(),
        allow_anonymous: issuer.allow_anonymous,
        skew: issuer.skew.0,
        max_lifetime: issuer.max_lifetime.0,
        keys: jwks_source(issuer, &algorithms, shared)?.map(Arc::new),
        introspection: match &issuer.introspection {
            Some(how) => Some(introspected(issuer, how, shared, observer)?),
            None => None,
        },
        algorithms,
    })
}

const fn jwt_algorithm(algorithm: SigningAlgorithm) -> Algorithm {
    match algorithm {
        SigningAlgorithm::ES256 => Algorithm::ES256,
        SigningAlgorithm::ES384 => Algorithm::ES384,
        SigningAlgorithm::RS256 => Algorithm::RS256,
        SigningAlgorithm::RS384 => Algorithm::RS384,
        SigningAlgorithm::RS512 => Algorithm::RS512,
        SigningAlgorithm::PS256 => Algorithm::PS256,
        SigningAlgorithm::PS384 => Algorithm::PS384,
        SigningAlgorithm::PS512 => Algorithm::PS512,
        SigningAlgorithm::EdDSA => Algorithm::EdDSA,
    }
}

fn introspected(
    issuer: &IssuerConfig,
    how: &IntrospectionConfig,
    shared: &Arc<JwksShared>,
    observer: &Arc<IntrospectionObserver>,
) -> Result<Introspected, IdentityError> {
    let client = issuer_client(issuer, "introspection.ca_file", how.ca_file.as_ref(), MAX_IDLE)?;
    let url = how.url.parse().expect("the URL of a checked issuer is one");
    let secret = how
        .client_secret
        .as_ref()
        .expect("a checked issuer has the secret of its client");
    Ok(Introspected {
        endpoint: Arc::new(Introspection::new(
            (issuer.alias.clone(), client, url),
            basic_credentials(&how.client_id, secret.expose_secret()),
            how.token_prefix.clone(),
            how.cache.0,
            shared.clone(),
            observer.clone(),
        )),
        allow_missing_aud: how.allow_missing_aud,
        lifetime_without_exp: how.lifetime_without_exp.map(|lifetime| lifetime.0),
    })
}

/// Asks the introspection endpoint of an issuer, if it has one, about a token that nobody has.
pub async fn probe_introspection(issuer: &IssuerConfig) -> Result<(), String> {
    let Some(how) = &issuer.introspection else { return Ok(()) };
    match introspected(issuer, how, &Arc::default(), &Arc::default()) {
        Ok(introspected) => introspected.endpoint.probe().await,
        Err(error) => Err(chain(&error)),
    }
}

/// `None` for an issuer that is asked about its tokens instead.
fn jwks_source(
    issuer: &IssuerConfig,
    algorithms: &[Algorithm],
    shared: &Arc<JwksShared>,
) -> Result<Option<JwksSource>, IdentityError> {
    let Some(location) = jwks_location(issuer)? else {
        return Ok(None);
    };
    let state = match &location {
        JwksLocation::File(file) => read_file(issuer, file, algorithms)?,
        JwksLocation::Url(..) => JwksState::default(),
    };
    Ok(Some(JwksSource {
        alias: issuer.alias.clone(),
        location,
        algorithms: algorithms.to_vec(),
        refresh_times: RefreshTimes {
            refresh: issuer.jwks_refresh.0,
            keep: issuer.jwks_keep.0,
            refetch: issuer.jwks_refetch.0,
        },
        shared: shared.clone(),
        state: ArcSwap::from_pointee(state),
        running_fetch: Mutex::default(),
    }))
}

fn jwks_location(issuer: &IssuerConfig) -> Result<Option<JwksLocation>, IdentityError> {
    if let Some(file) = &issuer.jwks_file {
        return Ok(Some(JwksLocation::File(file.clone())));
    }
    let Some(url) = &issuer.jwks_url else { return Ok(None) };
    let url = url.parse().expect("the URL of a checked issuer is one");
    let client = issuer_client(issuer, "jwks_ca_file", issuer.jwks_ca_file.as_ref(), 1)?;
    Ok(Some(JwksLocation::Url(client, url)))
}

/// A private address is allowed: the operator chose the URL, TLS authenticates its server, and redirects are not followed.
fn issuer_client(
    issuer: &IssuerConfig,
    key: &'static str,
    ca_file: Option<&PathBuf>,
    pool_max_idle: usize,
) -> Result<Client, IdentityError> {
    let settings = ClientSettings {
        ca_file: ca_file.cloned(),
        allow_private: true,
        pool_max_idle,
        ..Default::default()
    };
    Client::new(&settings).map_err(|source| IdentityError::BadCa {
        alias: issuer.alias.clone(),
        key,
        source,
    })
}

fn read_file(issuer: &IssuerConfig, file: &Path, algorithms: &[Algorithm]) -> Result<JwksState, IdentityError> {
    let bad = |why: String| IdentityError::BadFile {
        alias: issuer.alias.clone(),
        file: file.to_owned(),
        why,
    };
    let bytes = std::fs::read(file).map_err(|error| bad(error.to_string()))?;
    let set = KeySet::read(&bounded(bytes.into()).map_err(bad)?, algorithms).map_err(|error| bad(error.to_string()))?;
    if set.count() == 0 {
        return Err(bad("it holds no key for the configured algorithms".to_owned()));
    }
    let now = Instant::now();
    Ok(JwksState {
        good: Some((Arc::new(set), now)),
        tried: Some((now, None)),
    })
}
