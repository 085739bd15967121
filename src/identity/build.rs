//! Builds the trusted issuers from the configuration, which has checked their settings. Reads key files; fetches nothing.

use super::issuer::TrustedIssuer;
use super::jwks::{JwksState, KeySet, RefreshTimes};
use super::jwks_source::{JwksLocation, JwksShared, JwksSource, bounded};
use crate::config::{CheckedConfig, IssuerConfig, SigningAlgorithm};
use crate::domain::IssuerAlias;
use crate::transport::{Client, ClientError, ClientSettings};
use arc_swap::ArcSwap;
use jsonwebtoken::Algorithm;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::time::Instant;

/// Why an issuer's keys cannot be got. What else may be wrong with an issuer the configuration refuses.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the keys of issuer `{alias}` in `{}` cannot be used: {why}", file.display())]
    BadFile { alias: IssuerAlias, file: PathBuf, why: String },
    #[error("`jwks_ca_file` of issuer `{alias}` cannot be used")]
    BadCa { alias: IssuerAlias, source: ClientError },
}

pub(super) fn issuers(config: &CheckedConfig, shared: &Arc<JwksShared>) -> Result<Vec<TrustedIssuer>, IdentityError> {
    config
        .issuers
        .iter()
        .map(|issuer| trusted_issuer(issuer, config, shared))
        .collect()
}

fn trusted_issuer(
    issuer: &IssuerConfig,
    config: &CheckedConfig,
    shared: &Arc<JwksShared>,
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
        keys: Arc::new(jwks_source(issuer, &algorithms, shared)?),
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

fn jwks_source(issuer: &IssuerConfig, algorithms: &[Algorithm], shared: &Arc<JwksShared>) -> Result<JwksSource, IdentityError> {
    let location = jwks_location(issuer)?;
    let state = match &location {
        JwksLocation::File(file) => read_file(issuer, file, algorithms)?,
        JwksLocation::Url(..) => JwksState::default(),
    };
    Ok(JwksSource {
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
    })
}

fn jwks_location(issuer: &IssuerConfig) -> Result<JwksLocation, IdentityError> {
    if let Some(file) = &issuer.jwks_file {
        return Ok(JwksLocation::File(file.clone()));
    }
    let url = issuer
        .jwks_url
        .as_ref()
        .expect("a checked issuer has a file of keys or a URL");
    let url = url.parse().expect("the URL of a checked issuer is one");
    // A private address is allowed: the operator chose the URL, TLS authenticates its server, and redirects are not
    // followed.
    let settings = ClientSettings {
        ca_file: issuer.jwks_ca_file.clone(),
        allow_private: true,
        pool_max_idle: 1,
        ..Default::default()
    };
    let client = Client::new(&settings).map_err(|source| IdentityError::BadCa {
        alias: issuer.alias.clone(),
        source,
    })?;
    Ok(JwksLocation::Url(client, url))
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
