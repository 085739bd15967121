//! Builds the trusted issuers from the configuration and checks them. Reads key files; fetches nothing.

use super::certificate::CERTIFICATE_ISSUER;
use super::issuer::TrustedIssuer;
use super::jwks::{KeySet, Knowledge, Times};
use super::key::KEY_ISSUER;
use super::source::{KeySource, Place, Shared, bounded};
use crate::config::{Config, IssuerConfig, IssuerKind, SigningAlgorithm};
use crate::domain::IssuerAlias;
use crate::transport::{Client, ClientError, ClientSettings};
use arc_swap::ArcSwap;
use http::Uri;
use jsonwebtoken::Algorithm;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::time::Instant;

/// What is wrong with a configured issuer.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("issuer `{alias}` names neither `jwks_url` nor `jwks_file`")]
    NoKeys { alias: IssuerAlias },
    #[error("issuer `{alias}` names both `jwks_url` and `jwks_file`: keep one")]
    TwoPlaces { alias: IssuerAlias },
    #[error("`jwks_url` of issuer `{alias}` is `{url}`: it must be `https`, or `http` on loopback")]
    BadUrl { alias: IssuerAlias, url: String },
    #[error("the keys of issuer `{alias}` in `{}` cannot be used: {why}", file.display())]
    BadFile { alias: IssuerAlias, file: PathBuf, why: String },
    #[error("`jwks_ca_file` of issuer `{alias}` cannot be used")]
    BadCa { alias: IssuerAlias, source: ClientError },
    #[error("`{claim}` of issuer `{alias}` is written by the user: no decision may rest on it")]
    UserWritten { alias: IssuerAlias, claim: String },
    #[error("`{iss}` means more than one issuer")]
    SharedIssuer { iss: String },
    #[error("the alias `{alias}` is given twice")]
    SharedAlias { alias: IssuerAlias },
    #[error("`{name}` is Guardian's own name: no issuer may have it")]
    Reserved { name: &'static str },
    #[error("issuer `{alias}` is Cloudflare Access and needs `audiences`: the AUD tag of its application")]
    NoAudience { alias: IssuerAlias },
}

pub(super) fn issuers(config: &Config, shared: &Arc<Shared>) -> Result<Vec<TrustedIssuer>, IdentityError> {
    distinct(&config.issuers)?;
    config.issuers.iter().map(|issuer| trusted(issuer, config, shared)).collect()
}

fn distinct(issuers: &[IssuerConfig]) -> Result<(), IdentityError> {
    let mut meant = Vec::new();
    let mut aliases = Vec::new();
    for issuer in issuers {
        for name in [KEY_ISSUER, CERTIFICATE_ISSUER] {
            if issuer.alias.as_str() == name || accepted(issuer).any(|iss| iss.as_str() == name) {
                return Err(IdentityError::Reserved { name });
            }
        }
        if aliases.contains(&&issuer.alias) {
            return Err(IdentityError::SharedAlias {
                alias: issuer.alias.clone(),
            });
        }
        aliases.push(&issuer.alias);
        for iss in accepted(issuer) {
            if meant.contains(&iss) {
                return Err(IdentityError::SharedIssuer { iss: iss.to_string() });
            }
            meant.push(iss);
        }
    }
    Ok(())
}

fn accepted(issuer: &IssuerConfig) -> impl Iterator<Item = &crate::domain::Issuer> {
    std::iter::once(&issuer.issuer).chain(&issuer.also_accept)
}

fn trusted(issuer: &IssuerConfig, config: &Config, shared: &Arc<Shared>) -> Result<TrustedIssuer, IdentityError> {
    let claims = [
        &issuer.environment_claim,
        &issuer.roles_claim,
        &issuer.scopes_claim,
        &issuer.tenant_claim,
    ];
    for claim in claims.into_iter().flatten() {
        if claim.split('.').next() == Some("user_metadata") {
            return Err(IdentityError::UserWritten {
                alias: issuer.alias.clone(),
                claim: claim.clone(),
            });
        }
    }
    if issuer.kind == IssuerKind::CloudflareAccess && issuer.audiences.is_empty() {
        return Err(IdentityError::NoAudience {
            alias: issuer.alias.clone(),
        });
    }
    let algorithms = algorithms(issuer);
    Ok(TrustedIssuer {
        alias: issuer.alias.clone(),
        kind: issuer.kind,
        issuer: issuer.issuer.clone(),
        accepted: accepted(issuer).cloned().collect(),
        audiences: issuer.audiences.clone(),
        client_ids: issuer.client_ids.clone(),
        environment: config.environment.clone(),
        environment_claim: issuer.environment_claim.clone(),
        roles_claim: issuer.roles_claim.clone(),
        scopes_claim: issuer.scopes_claim.clone(),
        tenant_claim: issuer.tenant_claim.clone(),
        allow_anonymous: issuer.allow_anonymous,
        skew: issuer.skew.0,
        keys: Arc::new(source(issuer, &algorithms, shared)?),
        algorithms,
    })
}

fn algorithms(issuer: &IssuerConfig) -> Vec<Algorithm> {
    let default: &[SigningAlgorithm] = match issuer.kind {
        IssuerKind::CloudflareAccess => &[SigningAlgorithm::RS256],
        IssuerKind::Oidc | IssuerKind::Supabase => &[SigningAlgorithm::ES256, SigningAlgorithm::RS256],
    };
    let chosen = match issuer.algorithms.as_slice() {
        [] => default,
        chosen => chosen,
    };
    chosen.iter().map(|algorithm| known(*algorithm)).collect()
}

const fn known(algorithm: SigningAlgorithm) -> Algorithm {
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

fn source(issuer: &IssuerConfig, algorithms: &[Algorithm], shared: &Arc<Shared>) -> Result<KeySource, IdentityError> {
    let place = place(issuer)?;
    let knowledge = match &place {
        Place::File(file) => read_file(issuer, file, algorithms)?,
        Place::Url(..) => Knowledge::default(),
    };
    Ok(KeySource {
        alias: issuer.alias.clone(),
        place,
        algorithms: algorithms.to_vec(),
        times: Times {
            refresh: issuer.jwks_refresh.0,
            keep: issuer.jwks_keep.0.max(issuer.jwks_refresh.0),
            refetch: issuer.jwks_refetch.0,
        },
        shared: shared.clone(),
        knowledge: ArcSwap::from_pointee(knowledge),
        flight: Mutex::default(),
    })
}

fn place(issuer: &IssuerConfig) -> Result<Place, IdentityError> {
    let alias = || issuer.alias.clone();
    let base = issuer.issuer.as_str().trim_end_matches('/');
    let url = match (&issuer.jwks_url, &issuer.jwks_file, issuer.kind) {
        (Some(_), Some(_), _) => return Err(IdentityError::TwoPlaces { alias: alias() }),
        (None, Some(file), _) => return Ok(Place::File(file.clone())),
        (Some(url), None, _) => url.clone(),
        (None, None, IssuerKind::Supabase) => format!("{base}/.well-known/jwks.json"),
        (None, None, IssuerKind::CloudflareAccess) => format!("{base}/cdn-cgi/access/certs"),
        (None, None, IssuerKind::Oidc) => return Err(IdentityError::NoKeys { alias: alias() }),
    };
    let uri = url.parse::<Uri>().ok().filter(protected);
    let uri = uri.ok_or_else(|| IdentityError::BadUrl { alias: alias(), url })?;
    // A private address is allowed: the operator chose the URL, TLS authenticates its server, and redirects are not
    // followed.
    let settings = ClientSettings {
        ca_file: issuer.jwks_ca_file.clone(),
        allow_private: true,
        pool_max_idle: 1,
        ..Default::default()
    };
    let client = Client::new(&settings).map_err(|source| IdentityError::BadCa { alias: alias(), source })?;
    Ok(Place::Url(client, uri))
}

/// Keys must come over TLS or from loopback: whoever can change them on their way can pose as every user of the issuer.
fn protected(uri: &Uri) -> bool {
    let on_loopback = matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
    match uri.scheme_str() {
        Some("https") => uri.host().is_some_and(|host| !host.is_empty()),
        Some("http") => on_loopback,
        _ => false,
    }
}

fn read_file(issuer: &IssuerConfig, file: &Path, algorithms: &[Algorithm]) -> Result<Knowledge, IdentityError> {
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
    Ok(Knowledge {
        good: Some((Arc::new(set), now)),
        tried: Some((now, None)),
    })
}
