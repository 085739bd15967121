//! Checks what types cannot express: values that are each valid, but contradict each other or make an unsafe proxy.
//!
//! Looks only at values: no file, no network, no clock. What only shows at run time is reported by the room that meets
//! it.

mod address;
mod introspection;
mod secret;
mod servers_and_issuers;

use super::document::join;
use super::model::*;
use super::server::ServerConfig;
use crate::domain::{Problem, ToolName, did_you_mean, nearest, quoted};
use secrecy::ExposeSecret;
use std::net::SocketAddr;
use std::time::Duration;

/// All errors and warnings, in no particular order.
pub fn check(config: &Config) -> Vec<Problem> {
    let mut found = Vec::new();
    listen(&config.listen, &mut found);
    admin(config, &mut found);
    store(&config.store, &mut found);
    servers_and_issuers::issuers(config, &mut found);
    servers_and_issuers::servers(&config.servers, &mut found);
    policies(&config.policies, &mut found);
    grants(&config.grants, &mut found);
    limits(&config.limits, &config.servers, &mut found);
    journal(&config.journal, &mut found);
    audit(&config.audit, &mut found);
    if config.sessions.lifetime.0.is_zero() || config.sessions.lifetime.0 > days(30) {
        found.push(Problem::error(
            "sessions.lifetime",
            "`sessions.lifetime` must lie between 1ms and 30d",
        ));
    }
    if config.log.level.trim().is_empty() {
        found.push(Problem::error("log.level", "`log.level` is empty").help("use `info`"));
    }
    found
}

fn listen(listen: &Listen, found: &mut Vec<Problem>) {
    if let Err(why) = address::public_url(&listen.public_url) {
        let message = format!("`listen.public_url` is {}: {why}", quoted(&listen.public_url));
        found.push(Problem::error("listen.public_url", message).help("write it as `https://mcp.example.com`"));
    }
    for (index, host) in listen.hosts.iter().enumerate() {
        let plain = host
            .parse::<http::uri::Authority>()
            .is_ok_and(|host| !host.as_str().contains('@'));
        if !plain {
            let message = format!("`listen.hosts` has {}, which is not a host or `host:port`", quoted(host));
            found.push(Problem::error(format!("listen.hosts[{index}]"), message));
        }
    }
    for (index, origin) in listen.origins.iter().enumerate() {
        if !address::is_origin(origin) {
            let message = format!("`listen.origins` has {}, which is not an origin", quoted(origin));
            found.push(
                Problem::error(format!("listen.origins[{index}]"), message)
                    .help("write it as browsers send it: `https://app.example.com`, without a path; there is no wildcard"),
            );
        }
    }
    let tls = &listen.tls;
    match (tls.client_certificates, &tls.client_ca_file) {
        (ClientCertificates::Optional | ClientCertificates::Required, None) => found.push(Problem::error(
            "listen.tls.client_certificates",
            "`listen.tls.client_certificates` needs `client_ca_file`, the CAs that client certificates are verified against",
        )),
        (ClientCertificates::Off, Some(_)) => found.push(
            Problem::warning(
                "listen.tls.client_ca_file",
                "`listen.tls.client_ca_file` has no effect while `client_certificates` is `off`",
            )
            .help("set it to `optional` or `required`"),
        ),
        _ => {}
    }
    connection_limits(&listen.limits, found);
}

fn connection_limits(limits: &ConnectionLimits, found: &mut Vec<Problem>) {
    let at = |name: &str| format!("listen.limits.{name}");
    for (name, duration) in [
        ("handshake_timeout", limits.handshake_timeout),
        ("header_timeout", limits.header_timeout),
        ("body_timeout", limits.body_timeout),
        ("idle_timeout", limits.idle_timeout),
        ("total_timeout", limits.total_timeout),
        ("keep_alive", limits.keep_alive),
    ] {
        positive(&at(name), duration, found);
    }
    for (name, number, least) in [
        ("max_connections", limits.max_connections, 1),
        ("max_connections_per_address", limits.max_connections_per_address, 1),
        ("max_header_bytes", limits.max_header_bytes, 8 * 1024),
        ("max_body_bytes", limits.max_body_bytes, 1024),
        ("max_streams", limits.max_streams as usize, 1),
    ] {
        if number < least {
            found.push(Problem::error(
                at(name),
                format!("`{}` is {number}; the least is {least}", at(name)),
            ));
        }
    }
}

fn admin(config: &Config, found: &mut Vec<Problem>) {
    let (data, metrics) = (config.listen.address, config.admin.metrics_address);
    if collide(data, metrics) {
        found.push(
            Problem::error(
                "admin.metrics_address",
                format!("`admin.metrics_address` and `listen.address` both claim port {}", data.port()),
            )
            .help("give one of them another port"),
        );
    }
    if !address::is_private(metrics.ip()) || metrics.ip().is_unspecified() {
        found.push(
            Problem::warning(
                "admin.metrics_address",
                format!("`admin.metrics_address` {metrics} answers in clear text beyond this machine"),
            )
            .help("keep it on loopback or a private network"),
        );
    }
}

/// Whether two listeners would bind the same port.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

fn store(store: &StoreConfig, found: &mut Vec<Problem>) {
    match store.kind {
        StoreKind::Sqlite => {
            for (key, given) in [("url", store.url.is_some()), ("admin_url", store.admin_url.is_some())] {
                if given {
                    found.push(
                        Problem::error(
                            format!("store.{key}"),
                            format!("`store.{key}` is for Postgres, but `store.kind` is `sqlite`"),
                        )
                        .help("set `kind = \"postgres\"`, or drop it"),
                    );
                }
            }
        }
        StoreKind::Postgres => {
            if store.url.is_none() && store.url_file.is_none() {
                found.push(
                    Problem::error("store", "`store.kind` is `postgres`, but there is no `url`")
                        .help("set `url = \"${DATABASE_URL}\"`, or `url_file`"),
                );
            }
            if store.file.is_some() {
                found.push(
                    Problem::error("store.file", "`store.file` is for SQLite, but `store.kind` is `postgres`")
                        .help("drop one of them"),
                );
            }
        }
    }
    for (key, url) in [("store.url", &store.url), ("store.admin_url", &store.admin_url)] {
        if let Some(url) = url {
            secret::database_url(key, url.expose_secret(), found);
        }
    }
    if store.max_connections == 0 {
        found.push(Problem::error(
            "store.max_connections",
            "`store.max_connections` is 0; the least is 1",
        ));
    }
    positive("store.connect_timeout", store.connect_timeout, found);
}

fn policies(policies: &PoliciesConfig, found: &mut Vec<Problem>) {
    if policies.utc_offset_minutes().is_none() {
        let message = format!(
            "`policies.utc_offset` is {}, which is not an offset",
            quoted(&policies.utc_offset)
        );
        found.push(Problem::error("policies.utc_offset", message).help("write it as `+01:00` or `-05:30`"));
    }
    if policies.deny_all {
        found.push(Problem::warning(
            "policies.deny_all",
            "`policies.deny_all` lets Guardian start although nothing is permitted",
        ));
    }
}

fn grants(grants: &GrantsConfig, found: &mut Vec<Problem>) {
    let most = Duration::from_secs(60);
    if grants.max_staleness.0.is_zero() || grants.max_staleness.0 > most {
        let message = format!(
            "`grants.max_staleness` is {}; it must lie between 1ms and 60s",
            grants.max_staleness
        );
        found.push(Problem::error("grants.max_staleness", message).help("a revoked grant works for at most that long"));
    }
    if grants.confirm_after.0 >= grants.max_staleness.0 {
        found.push(Problem::error(
            "grants.confirm_after",
            "`grants.confirm_after` must be shorter than `grants.max_staleness`",
        ));
    }
    if grants.confirm_timeout.0.is_zero() || grants.confirm_timeout.0 > most {
        found.push(Problem::error(
            "grants.confirm_timeout",
            "`grants.confirm_timeout` must lie between 1ms and 60s",
        ));
    }
    if grants.max_members == 0 {
        found.push(Problem::error(
            "grants.max_members",
            "`grants.max_members` is 0; nobody could be known",
        ));
    }
}

fn limits(limits: &LimitsConfig, servers: &[ServerConfig], found: &mut Vec<Problem>) {
    let known = |name: &str| servers.iter().any(|server| server.name.as_str() == name);
    let near = |name: &str| nearest(name, servers.iter().map(|server| server.name.as_str())).map(did_you_mean);
    let overall = [
        ("limits.per_principal", &limits.per_principal),
        ("limits.per_tool", &limits.per_tool),
        ("limits.per_server", &limits.per_server),
    ];
    for (key, limit) in overall {
        if let Some(limit) = limit {
            rate(key, limit, found);
        }
    }
    for (tool, limit) in &limits.tools {
        let key = join("limits.tools", tool);
        rate(&key, limit, found);
        match tool.split_once('/') {
            Some((server, tool)) if ToolName::parse(tool).is_ok() => {
                if !known(server) {
                    let message = format!(
                        "`limits.tools` names {}, but there is no server {}",
                        quoted(&format!("{server}/{tool}")),
                        quoted(server)
                    );
                    found.push(Problem {
                        help: near(server),
                        ..Problem::error(&key, message)
                    });
                }
            }
            _ => found.push(
                Problem::error(&key, format!("`limits.tools` names {}", quoted(tool)))
                    .help("write it as `\"<server>/<tool>\"`; there is no wildcard"),
            ),
        }
    }
    for (server, limit) in &limits.servers {
        let key = join("limits.servers", server.as_str());
        rate(&key, limit, found);
        if !known(server.as_str()) {
            let message = format!("`limits.servers` names `{server}`, but there is no such server");
            found.push(Problem {
                help: near(server.as_str()),
                ..Problem::error(&key, message)
            });
        }
    }
    for (key, number) in [
        ("limits.max_concurrency_per_principal", limits.max_concurrency_per_principal),
        ("limits.max_keys", limits.max_keys),
    ] {
        if number == 0 {
            found.push(Problem::error(key, format!("`{key}` is 0; nothing could be called")));
        }
    }
}

fn rate(key: &str, rate: &Rate, found: &mut Vec<Problem>) {
    if rate.rate == 0 || rate.burst == Some(0) {
        let what = if rate.rate == 0 { "rate" } else { "burst" };
        found.push(
            Problem::error(key, format!("`{what}` of `{key}` is 0; nothing could be called"))
                .help("to forbid a tool, write a policy"),
        );
    }
    if rate.per.0.is_zero() || rate.per.0 > days(1) {
        found.push(Problem::error(
            key,
            format!("`per` of `{key}` is {}; it must lie between 1ms and 1d", rate.per),
        ));
    }
}

fn journal(journal: &JournalConfig, found: &mut Vec<Problem>) {
    if journal.segment_bytes < 64 * 1024 {
        found.push(Problem::error(
            "journal.segment_bytes",
            format!("`journal.segment_bytes` is {}; the least is 65536", journal.segment_bytes),
        ));
    }
    if journal.max_bytes / 4 < journal.segment_bytes {
        found.push(Problem::error(
            "journal.max_bytes",
            "`journal.max_bytes` must hold at least four segments of `journal.segment_bytes`",
        ));
    }
    positive("journal.sync_timeout", journal.sync_timeout, found);
    // Rows that retention has removed must not be taken for lost: it keeps at least 30 days.
    if journal.keep_shipped.0 > days(14) {
        found.push(Problem::error(
            "journal.keep_shipped",
            format!("`journal.keep_shipped` is {}; the most is 14d", journal.keep_shipped),
        ));
    }
}

fn audit(audit: &AuditConfig, found: &mut Vec<Problem>) {
    if !audit.redact.is_empty() && audit.inputs != Inputs::Redacted {
        found.push(Problem::warning(
            "audit.redact",
            "`audit.redact` has no effect unless `audit.inputs` is `redacted`",
        ));
    }
}

fn positive(key: &str, duration: HumanDuration, found: &mut Vec<Problem>) {
    if duration.0.is_zero() {
        found.push(Problem::error(key, format!("`{key}` is 0")).help("write a length of time such as `\"5s\"`"));
    }
}

const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 86_400)
}
