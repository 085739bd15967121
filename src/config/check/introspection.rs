//! Checks how opaque tokens are introspected (RFC 7662): where, as whom, and that each token belongs to one issuer.

use super::super::model::{HumanDuration, IntrospectionConfig, IssuerConfig, IssuerKind};
use super::address::secure_url;
use super::secret::{is_placeholder, placeholder};
use crate::domain::{Problem, quoted};
use secrecy::ExposeSecret;
use std::time::Duration;

/// An answer is used no longer: until then a revoked token still works.
const LONGEST_CACHE: Duration = Duration::from_secs(30);
const LONGEST_LIFETIME: Duration = Duration::from_secs(86_400);
const LONGEST_PREFIX: usize = 64;

pub(super) fn introspection(
    issuer: &IssuerConfig,
    asked: &IntrospectionConfig,
    at: &dyn Fn(&str) -> String,
    found: &mut Vec<Problem>,
) {
    let alias = &issuer.alias;
    let at = |name: &str| at(&format!("introspection.{name}"));
    let mut error = |name: &str, message: String| found.push(Problem::error(at(name), message));
    if issuer.kind != IssuerKind::Oidc {
        error(
            "url",
            format!("issuer `{alias}`: only issuers of kind `oidc` introspect; the tokens of the others are JWTs"),
        );
    }
    if let Err(why) = secure_url(&asked.url) {
        error(
            "url",
            format!("the introspection `url` of `{alias}` is {}: {why}", quoted(&asked.url)),
        );
    }
    if asked.client_id.trim().is_empty() {
        error("client_id", format!("the introspection `client_id` of `{alias}` is empty"));
    }
    let lives = |duration: HumanDuration, most: Duration| (Duration::from_secs(1)..=most).contains(&duration.0);
    if !lives(asked.cache, LONGEST_CACHE) {
        error(
            "cache",
            format!(
                "issuer `{alias}` caches answers for {}; it must lie between 1s and 30s",
                asked.cache
            ),
        );
    }
    if let Some(lifetime) = asked.lifetime_without_exp
        && !lives(lifetime, LONGEST_LIFETIME)
    {
        let message = format!("`lifetime_without_exp` of `{alias}` is {lifetime}; it must lie between 1s and 1d");
        error("lifetime_without_exp", message);
    }
    if let Some(prefix) = &asked.token_prefix
        && let Err(why) = is_token_prefix(prefix)
    {
        error(
            "token_prefix",
            format!("`token_prefix` of `{alias}` is {}: {why}", quoted(prefix)),
        );
    }
    match (&asked.client_secret, &asked.client_secret_file) {
        (None, None) => found.push(
            Problem::error(at("client_id"), format!("the client of issuer `{alias}` has no secret"))
                .help("set `client_secret = \"${VAR}\"`, or `client_secret_file`"),
        ),
        (Some(secret), _) if is_placeholder(secret.expose_secret()) => found.push(placeholder(
            &at("client_secret"),
            &format!("the client secret of issuer `{alias}`"),
        )),
        _ => {}
    }
    if asked.allow_missing_aud && issuer.client_ids.is_empty() {
        found.push(
            Problem::warning(
                at("allow_missing_aud"),
                format!("issuer `{alias}`: tokens that were made for another service are accepted"),
            )
            .help("name the clients that may call in `client_ids`"),
        );
    }
}

/// Each opaque token is shown to one issuer alone: whoever is asked about a token could use it.
pub(super) fn token_prefixes(issuers: &[IssuerConfig], found: &mut Vec<Problem>) {
    let asked: Vec<_> = issuers
        .iter()
        .enumerate()
        .filter_map(|(index, issuer)| Some((index, issuer, issuer.introspection.as_ref()?.token_prefix.as_deref())))
        .collect();
    if asked.len() < 2 {
        return;
    }
    for (place, (index, issuer, prefix)) in asked.iter().enumerate() {
        let Some(prefix) = prefix else {
            let message = format!("several issuers introspect, and `{}` has no `token_prefix`", issuer.alias);
            found.push(
                Problem::error(format!("issuers[{index}].introspection.url"), message)
                    .help("a token is shown to one issuer alone: say what the tokens of each begin with"),
            );
            continue;
        };
        for (_, other, before) in &asked[..place] {
            if before.is_some_and(|before| before.starts_with(prefix) || prefix.starts_with(before)) {
                found.push(Problem::error(
                    format!("issuers[{index}].introspection.token_prefix"),
                    format!("tokens that begin with {} could be of `{}` too", quoted(prefix), other.alias),
                ));
            }
        }
    }
}

fn is_token_prefix(prefix: &str) -> Result<(), &'static str> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
    if prefix.is_empty() || prefix.len() > LONGEST_PREFIX || !prefix.bytes().all(fits) {
        return Err("it must be 1 to 64 letters, digits and `-._~+/`");
    }
    if prefix.starts_with("ng_") {
        return Err("Guardian's own keys begin with `ng_`");
    }
    Ok(())
}
