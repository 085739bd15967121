//! Checks of issuers and servers: whose tokens Guardian accepts, and which servers it calls.

use super::super::document::join;
use super::super::model::*;
use super::super::server::{ServerConfig, ServerTransport, UpstreamCredential};
use super::address::{host_ip, is_loopback_host, is_never_a_server, is_private, secure_url};
use super::introspection;
use super::positive;
use super::secret::{is_placeholder, placeholder};
use crate::domain::{OWN_ISSUERS, Problem, Scope, ServerName, ToolName, is_reserved_header, quoted};
use http::{HeaderName, HeaderValue, Uri};
use secrecy::ExposeSecret;
use std::collections::BTreeSet;
use std::time::Duration;

pub(super) fn issuers(config: &Config, found: &mut Vec<Problem>) {
    let mut aliases = BTreeSet::new();
    let mut names = BTreeSet::new();
    for (index, issuer) in config.issuers.iter().enumerate() {
        let at = |name: &str| format!("issuers[{index}].{name}");
        if OWN_ISSUERS.contains(&issuer.alias.as_str()) {
            found.push(Problem::error(
                at("alias"),
                format!("the issuer alias `{}` is taken by Guardian itself", issuer.alias),
            ));
        }
        if !aliases.insert(&issuer.alias) {
            found.push(Problem::error(
                at("alias"),
                format!("two issuers have the alias `{}`", issuer.alias),
            ));
        }
        let further = issuer.also_accept.iter().enumerate();
        let further = further.map(|(index, iss)| (at(&format!("also_accept[{index}]")), iss));
        for (key, iss) in std::iter::once((at("issuer"), &issuer.issuer)).chain(further) {
            if OWN_ISSUERS.contains(&iss.as_str()) {
                found.push(Problem::error(&key, format!("the `iss` `{iss}` is taken by Guardian itself")));
            }
            if !names.insert(iss) {
                found.push(
                    Problem::error(&key, format!("the `iss` `{iss}` is claimed twice")).help("one `iss` belongs to one issuer"),
                );
            }
        }
        one_issuer(issuer, &at, found);
    }
    introspection::token_prefixes(&config.issuers, found);
    if config.members.just_in_time && config.issuers.is_empty() {
        found.push(Problem::warning(
            "members.just_in_time",
            "`members.just_in_time` has no effect without an issuer",
        ));
    }
    if !config.members.just_in_time && !config.members.just_in_time_roles.is_empty() {
        found.push(Problem::warning(
            "members.just_in_time_roles",
            "`members.just_in_time_roles` has no effect while `just_in_time` is off",
        ));
    }
}

fn one_issuer(issuer: &IssuerConfig, at: &dyn Fn(&str) -> String, found: &mut Vec<Problem>) {
    let alias = &issuer.alias;
    match issuer.kind {
        IssuerKind::Oidc => {
            if issuer.jwks_url.is_none() && issuer.jwks_file.is_none() && issuer.introspection.is_none() {
                found.push(
                    Problem::error(
                        at("alias"),
                        format!("issuer `{alias}` is of kind `oidc` and has neither `jwks_url` nor `jwks_file`"),
                    )
                    .help("name its keys, or an `introspection` endpoint if its tokens are no JWTs"),
                );
            }
        }
        IssuerKind::Supabase | IssuerKind::CloudflareAccess => {
            if let Err(why) = secure_url(issuer.issuer.as_str()) {
                found.push(Problem::error(
                    at("issuer"),
                    format!("the `issuer` of `{alias}` is `{}`: {why}", issuer.issuer),
                ));
            }
        }
    }
    if issuer.kind == IssuerKind::CloudflareAccess {
        if issuer.audiences.is_empty() {
            found.push(
                Problem::error(
                    at("alias"),
                    format!("issuer `{alias}` is of kind `cloudflare_access` and has no `audiences`"),
                )
                .help("name the application's AUD tag, or every application of the team is accepted"),
            );
        }
        if issuer
            .algorithms
            .iter()
            .any(|algorithm| *algorithm != SigningAlgorithm::RS256)
        {
            found.push(Problem::error(
                at("algorithms"),
                format!("issuer `{alias}`: Cloudflare Access signs with RS256 alone"),
            ));
        }
    }
    if issuer.jwks_url.is_some() && issuer.jwks_file.is_some() {
        found.push(
            Problem::error(
                at("jwks_file"),
                format!("issuer `{alias}` has both `jwks_url` and `jwks_file`"),
            )
            .help("keep one of them"),
        );
    }
    if let Some(url) = &issuer.jwks_url
        && let Err(why) = secure_url(url)
    {
        found.push(Problem::error(
            at("jwks_url"),
            format!("the `jwks_url` of `{alias}` is {}: {why}", quoted(url)),
        ));
    }
    for (name, claim) in [
        ("roles_claim", &issuer.roles_claim),
        ("environment_claim", &issuer.environment_claim),
        ("scopes_claim", &issuer.scopes_claim),
        ("tenant_claim", &issuer.tenant_claim),
    ] {
        let Some(claim) = claim else { continue };
        if claim.split('.').any(str::is_empty) {
            found.push(Problem::error(
                at(name),
                format!("`{name}` of `{alias}` is {}, which is not a dotted claim", quoted(claim)),
            ));
        }
        if claim.split('.').any(|step| step.eq_ignore_ascii_case("user_metadata")) {
            found.push(
                Problem::error(
                    at(name),
                    format!("`{name}` of `{alias}` lies in `user_metadata`, which users write themselves"),
                )
                .help("use a claim that only the issuer sets, such as one in `app_metadata`"),
            );
        }
    }
    scopes_supported(issuer, at, found);
    if issuer.allow_anonymous && issuer.kind != IssuerKind::Supabase {
        found.push(Problem::error(
            at("allow_anonymous"),
            format!("issuer `{alias}`: only `supabase` issuers have anonymous sign-ins"),
        ));
    }
    if issuer.audiences.iter().any(|audience| audience.trim().is_empty()) {
        found.push(Problem::error(
            at("audiences"),
            format!("issuer `{alias}` has an empty audience"),
        ));
    }
    if issuer.skew.0 > Duration::from_secs(300) {
        found.push(Problem::error(
            at("skew"),
            format!("issuer `{alias}` tolerates a skew of {}; the most is 5m", issuer.skew),
        ));
    }
    if let Some(asked) = &issuer.introspection {
        introspection::introspection(issuer, asked, at, found);
    }
    positive(&at("max_lifetime"), issuer.max_lifetime, found);
    positive(&at("jwks_refresh"), issuer.jwks_refresh, found);
    positive(&at("jwks_refetch"), issuer.jwks_refetch, found);
    if issuer.jwks_keep.0 < issuer.jwks_refresh.0 {
        found.push(Problem::error(
            at("jwks_keep"),
            format!("issuer `{alias}`: `jwks_keep` is shorter than `jwks_refresh`"),
        ));
    }
}

fn scopes_supported(issuer: &IssuerConfig, at: &dyn Fn(&str) -> String, found: &mut Vec<Problem>) {
    let (key, alias) = (at("scopes_supported"), &issuer.alias);
    for scope in &issuer.scopes_supported {
        if let Err(error) = Scope::parse(scope) {
            found.push(Problem::error(&key, format!("`scopes_supported` of `{alias}`: {error}")));
        } else if scope == "*" {
            let message = format!("`scopes_supported` of `{alias}` has `*`, which is for grants");
            found.push(Problem::error(&key, message).help("name the scopes that clients are to ask for"));
        }
    }
    if !issuer.scopes_supported.is_empty() && issuer.scopes_claim.is_none() {
        let message = format!("`scopes_supported` of `{alias}` has no effect without `scopes_claim`");
        found.push(
            Problem::warning(&key, message).help("set `scopes_claim`: the scopes of a token then narrow its owner's grants"),
        );
    }
}

pub(super) fn servers(servers: &[ServerConfig], found: &mut Vec<Problem>) {
    let mut names = BTreeSet::new();
    for (index, server) in servers.iter().enumerate() {
        let at = |name: &str| format!("servers[{index}].{name}");
        let name = &server.name;
        if !names.insert(name) {
            found.push(Problem::error(at("name"), format!("two servers have the name `{name}`")));
        }
        match (&server.url, server.command.is_empty()) {
            (Some(url), true) => {
                if let Err((why, help)) = server_url(url, server) {
                    found.push(Problem::error(at("url"), format!("the `url` of server `{name}` {why}")).help(help));
                }
            }
            (None, false) => program(server, &at, found),
            (None, true) => found.push(
                Problem::error(
                    format!("servers[{index}]"),
                    format!("server `{name}` has neither `url` nor `command`"),
                )
                .help("a server is reached at a URL, or started as a program"),
            ),
            (Some(_), false) => found.push(
                Problem::error(at("command"), format!("server `{name}` has both `url` and `command`")).help("keep one of them"),
            ),
        }
        if server.command.is_empty() {
            of_programs_alone(server, &at, found);
        }
        if let Some(given) = &server.credential {
            credential(name, given, &at, found);
        }
        for (tool, scopes) in &server.tool_scopes {
            let key = join(&at("tool_scopes"), tool);
            if let Err(error) = ToolName::parse(tool) {
                found.push(Problem::error(&key, format!("server `{name}`: {error}")));
            }
            if scopes.is_empty() {
                found.push(
                    Problem::error(&key, format!("server `{name}`: {} needs no scope at all", quoted(tool)))
                        .help("drop the line, and it needs the scope of its own name"),
                );
            }
            for error in scopes.iter().filter_map(|scope| Scope::parse(scope).err()) {
                found.push(Problem::error(
                    &key,
                    format!("server `{name}`, tool {}: {error}", quoted(tool)),
                ));
            }
            if scopes.iter().any(|scope| scope == "*") {
                found.push(Problem::error(
                    &key,
                    format!(
                        "server `{name}`, tool {}: `*` is for grants; a tool needs named scopes",
                        quoted(tool)
                    ),
                ));
            }
        }
        for (key, duration) in [
            ("connect_timeout", server.connect_timeout),
            ("first_byte_timeout", server.first_byte_timeout),
            ("idle_timeout", server.idle_timeout),
            ("catalogue_refresh", server.catalogue_refresh),
            ("session_idle", server.session_idle),
        ] {
            positive(&at(key), duration, found);
        }
        for (key, number) in [
            ("max_answer_bytes", server.max_answer_bytes),
            ("max_concurrency", server.max_concurrency),
            ("max_sessions", server.max_sessions),
        ] {
            if number == 0 {
                found.push(Problem::error(
                    at(key),
                    format!("`{key}` of server `{name}` is 0; the least is 1"),
                ));
            }
        }
    }
    if servers.is_empty() {
        found.push(
            Problem::warning("servers", "no `[[servers]]`: there is nothing to call").help("add one with `name` and `url`"),
        );
    }
}

/// Checks a server that is started as a program: no setting meant for URLs, and an environment that can be set.
fn program(server: &ServerConfig, at: &dyn Fn(&str) -> String, found: &mut Vec<Problem>) {
    let name = &server.name;
    if server.command[0].is_empty() || server.command.iter().any(|word| word.contains('\0')) {
        found.push(
            Problem::error(at("command"), format!("the `command` of server `{name}` names no program"))
                .help("write it as `[\"program\", \"argument\"]`"),
        );
    }
    for (key, given) in [
        ("transport", server.transport != ServerTransport::Http),
        ("ca_file", server.ca_file.is_some()),
        ("credential", server.credential.is_some()),
        ("allow_private_address", server.allow_private_address),
    ] {
        if given {
            let message = format!("`{key}` of server `{name}` is for a server with a `url`");
            found.push(
                Problem::error(at(key), message).help("drop it; what a program needs is in its `env`, `env_files` or `env_from`"),
            );
        }
    }
    if !server.per_session && !server.client_requests.is_empty() {
        let message = format!("server `{name}` may ask its clients something, but one process serves all of them");
        found.push(
            Problem::error(at("client_requests"), message)
                .help("set `per_session = true`: whom a shared process asks nobody can tell"),
        );
    }
    for (variable, value) in &server.env {
        let key = join(&at("env"), variable);
        if variable.is_empty() || variable.contains(['=', '\0']) || value.expose_secret().contains('\0') {
            let message = format!("server `{name}`: {} cannot be set in an environment", quoted(variable));
            found.push(Problem::error(&key, message));
        }
        if is_placeholder(value.expose_secret()) && sounds_secret(variable) {
            found.push(placeholder(&key, &format!("{} of server `{name}`", quoted(variable))));
        }
    }
}

/// Whether a variable's name suggests a secret. For others, values such as `test` or `default` are fine.
fn sounds_secret(variable: &str) -> bool {
    let name = variable.to_ascii_uppercase();
    ["TOKEN", "SECRET", "PASSWORD", "KEY"].iter().any(|word| name.contains(word))
}

/// Checks that a server with a URL has no settings meant for programs.
fn of_programs_alone(server: &ServerConfig, at: &dyn Fn(&str) -> String, found: &mut Vec<Problem>) {
    for (key, given) in [
        // What `env_from` names is in `env` by now.
        ("env", server.env.keys().any(|name| !server.env_from.contains(name))),
        ("env_files", !server.env_files.is_empty()),
        ("env_from", !server.env_from.is_empty()),
        ("working_dir", server.working_dir.is_some()),
        ("per_session", !server.per_session),
    ] {
        if given {
            let message = format!("`{key}` of server `{}` is for a server with a `command`", server.name);
            found.push(Problem::error(at(key), message).help("drop it"));
        }
    }
}

fn server_url(url: &str, server: &ServerConfig) -> Result<(), (String, &'static str)> {
    let shown = quoted(url);
    let example = "write it as `https://host/mcp`";
    let uri: Uri = url
        .parse()
        .map_err(|_| (format!("is {shown}, which is not a URL"), example))?;
    let host = uri.host().unwrap_or_default().to_owned();
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(("holds a user name or password".to_owned(), "use `[servers.credential]`"));
    }
    let open = match uri.scheme_str() {
        Some("https") => false,
        Some("http") => true,
        _ => return Err((format!("is {shown}, which is neither `https://` nor `http://`"), example)),
    };
    if host.is_empty() {
        return Err((format!("is {shown}, which names no host"), example));
    }
    if host_ip(&host).is_some_and(is_never_a_server) {
        return Err((
            format!("is {shown}, which is never the address of a server"),
            "use its name, or an address of a network",
        ));
    }
    let private = is_loopback_host(&host) || host_ip(&host).is_some_and(is_private);
    match (private, open, server.allow_private_address) {
        (true, _, false) => Err((
            format!("is {shown}, an address on loopback or a private network"),
            "set `allow_private_address = true` if that is meant",
        )),
        (false, true, false) => Err((
            format!("is {shown}, which sends calls and the credential in clear text"),
            "use `https://`, or set `allow_private_address = true` for a server on your own network",
        )),
        _ => Ok(()),
    }
}

fn credential(server: &ServerName, credential: &UpstreamCredential, at: &dyn Fn(&str) -> String, found: &mut Vec<Problem>) {
    if HeaderName::try_from(&credential.header).is_err() || is_reserved_header(&credential.header) {
        let message = format!(
            "the credential of server `{server}` cannot travel in the header {}",
            quoted(&credential.header)
        );
        found.push(Problem::error(at("credential.header"), message).help("use `authorization` or one such as `x-api-key`"));
    }
    match (&credential.value, &credential.value_file) {
        (None, None) => found.push(
            Problem::error(at("credential"), format!("the credential of server `{server}` is empty"))
                .help("set `value = \"Bearer ${TOKEN}\"`, or `value_file`"),
        ),
        (Some(value), _) => {
            let value = value.expose_secret();
            if HeaderValue::try_from(value).is_err() || value.trim().is_empty() || !value.is_ascii() {
                found.push(Problem::error(
                    at("credential.value"),
                    format!("the credential of server `{server}` is not a header value: visible ASCII on one line"),
                ));
            }
            let bare = value.split_once(' ').map_or(value, |(_, secret)| secret);
            if is_placeholder(bare) {
                found.push(placeholder(
                    &at("credential.value"),
                    &format!("the credential of server `{server}`"),
                ));
            }
        }
        (None, Some(_)) => {}
    }
}
