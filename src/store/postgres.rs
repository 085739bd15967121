//! Opening Postgres: what the URL may say, TLS that is verified unless told otherwise, and a pool that lets an idle
//! database sleep.

use super::StoreError;
use super::audit_partitions::Upkeep;
use super::engine::{PostgresEngine, StoreLocation, with_timeout_of};
use crate::config::Secret;
use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, Executor};
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Below the five minutes after which a serverless Postgres closes what is idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(240);
const MAX_LIFETIME: Duration = Duration::from_secs(1_800);

pub(super) fn prepare_postgres(
    url: &Secret,
    ca_file: Option<&Path>,
    max_connections: u32,
    connect_timeout: Duration,
) -> Result<PostgresEngine, StoreError> {
    let (options, warnings) = parse(url.expose_secret(), ca_file)?;
    let location = Arc::new(location_of(&options));
    let pool = PgPoolOptions::new()
        .min_connections(0)
        .max_connections(max_connections.max(1))
        .acquire_timeout(connect_timeout)
        .idle_timeout(IDLE_TIMEOUT)
        .max_lifetime(MAX_LIFETIME)
        .test_before_acquire(true)
        .after_connect(|connection, _| {
            Box::pin(async move {
                // statements name tables without a schema, and nobody's temporary table stands before ours
                connection.execute("SET search_path = guardian, pg_temp").await.map(|_| ())
            })
        })
        .connect_lazy_with(options);
    Ok(PostgresEngine {
        pool,
        location,
        warnings: warnings.into(),
        upkeep: Upkeep::default(),
        author: None,
    })
}

/// A pool hides why it cannot connect behind its own timeout, so the first connection is made without one.
pub(super) async fn try_once(engine: &PostgresEngine) -> Result<(), StoreError> {
    let (options, timeout) = (engine.pool.connect_options(), engine.pool.options().get_acquire_timeout());
    let connection = with_timeout_of(timeout, &engine.location, options.connect()).await?;
    let _ = connection.close().await;
    Ok(())
}

/// Reads the URL. No error text holds a piece of it, since a badly escaped password may be in any piece.
fn parse(url: &str, ca_file: Option<&Path>) -> Result<(PgConnectOptions, Vec<String>), StoreError> {
    const UNREADABLE: &str = "cannot be read: it is `postgres://user:password@host:port/database`, with special characters in \
                              the password as %XX";
    let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
    let rest = rest.ok_or_else(|| bad("does not begin with `postgres://`"))?;
    // an `@` after the host: what stands before it is the tail of a password that holds a `/`, `?` or `#`
    if rest.split_once(['/', '?', '#']).is_some_and(|(_, tail)| tail.contains('@')) {
        return Err(bad(UNREADABLE));
    }
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let query = UrlQuery::read(query)?;
    let options = PgConnectOptions::from_str(&query.rebuild(base)).map_err(|_| bad(UNREADABLE))?;
    let mut warnings = Vec::new();
    let mut options = direct_host(options, &mut warnings);
    let local = is_local(&options);
    if !query.names_sslmode {
        options = options.ssl_mode(if local { PgSslMode::Prefer } else { PgSslMode::VerifyFull });
    } else if !local && !matches!(options.get_ssl_mode(), PgSslMode::VerifyFull) {
        warnings.push("the store's URL does not make sure who answers: use sslmode=verify-full".to_owned());
    }
    if let Some(file) = ca_file {
        let pem = std::fs::read(file).map_err(|error| {
            StoreError::Configuration(format!("cannot read the store's CA file `{}`: {error}", file.display()))
        })?;
        options = options.ssl_root_cert_from_pem(pem);
    }
    if options.get_port() == 6543 && options.get_host().ends_with(".supabase.com") {
        return Err(bad(
            "names Supabase's transaction pooler (port 6543), which mixes up prepared statements: use port 5432",
        ));
    }
    Ok((options.application_name("guardian"), warnings))
}

fn bad(text: &str) -> StoreError {
    StoreError::Configuration(format!("the store's URL {text}"))
}

/// The part after `?`.
struct UrlQuery {
    kept: String,
    names_sslmode: bool,
}

impl UrlQuery {
    /// Keeps what the driver understands, drops what other clients put into such URLs, refuses the rest: the driver would
    /// log it, value included.
    fn read(text: &str) -> Result<Self, StoreError> {
        const UNDERSTOOD: &[&str] = &[
            "sslmode",
            "ssl-mode",
            "sslrootcert",
            "ssl-root-cert",
            "ssl-ca",
            "sslcert",
            "ssl-cert",
            "sslkey",
            "ssl-key",
            "statement-cache-capacity",
            "host",
            "hostaddr",
            "port",
            "dbname",
            "user",
            "password",
            "application_name",
            "options",
        ];
        const SSL_MODES: &[&str] = &["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
        const MEANT_FOR_OTHERS: &[&str] = &[
            "channel_binding",
            "connect_timeout",
            "connection_limit",
            "gssencmode",
            "keepalives",
            "keepalives_count",
            "keepalives_idle",
            "keepalives_interval",
            "pgbouncer",
            "pool_timeout",
            "schema",
            "sslnegotiation",
            "sslsni",
            "target_session_attrs",
            "tcp_user_timeout",
        ];
        let mut kept = Vec::new();
        let mut names_sslmode = false;
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let key = pair.split_once('=').map_or(pair, |(key, _)| key);
            let (known, value) = (UNDERSTOOD.contains(&key), pair.split_once('=').map_or("", |(_, value)| value));
            match key {
                "sslmode" | "ssl-mode" if !SSL_MODES.contains(&value) => {
                    return Err(bad(&format!("has an `sslmode` that is none of {}", SSL_MODES.join(", "))));
                }
                _ if known => kept.push(pair),
                _ if MEANT_FOR_OTHERS.contains(&key) => {}
                _ => return Err(bad("has a parameter that is not known here")),
            }
            names_sslmode |= matches!(key, "sslmode" | "ssl-mode");
        }
        Ok(Self {
            kept: kept.join("&"),
            names_sslmode,
        })
    }

    fn rebuild(&self, base: &str) -> String {
        match self.kept.is_empty() {
            true => base.to_owned(),
            false => format!("{base}?{}", self.kept),
        }
    }
}

/// Neon's `-pooler` hosts are PgBouncer in transaction mode: no LISTEN, no session. The same name without it is direct.
fn direct_host(options: PgConnectOptions, warnings: &mut Vec<String>) -> PgConnectOptions {
    let host = options.get_host();
    let Some((first, rest)) = host.split_once('.') else {
        return options;
    };
    match first.strip_suffix("-pooler") {
        Some(compute) if compute.starts_with("ep-") => {
            let host = format!("{compute}.{rest}");
            warnings.push(format!("the store's URL names a pooled host: using the direct one, `{host}`"));
            options.host(&host)
        }
        _ => options,
    }
}

fn is_local(options: &PgConnectOptions) -> bool {
    let host = options.get_host().trim_start_matches('[').trim_end_matches(']');
    options.get_socket().is_some() || host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn location_of(options: &PgConnectOptions) -> StoreLocation {
    let host = match options.get_socket() {
        Some(folder) => folder.display().to_string(),
        None => options.get_host().to_owned(),
    };
    let user = options.get_username().to_owned();
    let database = options.get_database().unwrap_or(&user).to_owned();
    StoreLocation::Postgres {
        host: format!("{host}:{}", options.get_port()),
        database,
        user,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(url: &str) -> (String, Vec<String>) {
        let (options, warnings) = parse(url, None).unwrap();
        (format!("{:?}", options.get_ssl_mode()), warnings)
    }

    #[test]
    fn tls_is_verified_unless_the_url_or_the_place_says_otherwise() {
        for (url, expected) in [
            ("postgres://u:p@db.example/d", "VerifyFull"),
            ("postgres://u:p@db.example/d?channel_binding=require", "VerifyFull"),
            ("postgres://u:p@db.example/d?sslmode=verify-full", "VerifyFull"),
            ("postgres://u:p@localhost.example/d", "VerifyFull"),
            ("postgres://u:p@localhost/d", "Prefer"),
            ("postgres://u:p@127.0.0.1/d", "Prefer"),
            ("postgres://u:p@[::1]/d", "Prefer"),
            ("postgres://u:p@%2Fvar%2Frun/d", "Prefer"),
            ("postgres://u:p@x/d?host=/var/run", "Prefer"),
            ("postgres://u:p@localhost/d?sslmode=require", "Require"),
        ] {
            assert_eq!(mode(url), (expected.to_owned(), Vec::new()), "{url}");
        }
        let said = vec!["the store's URL does not make sure who answers: use sslmode=verify-full".to_owned()];
        assert_eq!(
            mode("postgres://u:p@db.example/d?sslmode=require"),
            ("Require".to_owned(), said.clone())
        );
        assert_eq!(
            mode("postgres://u:p@db.example/d?sslmode=disable"),
            ("Disable".to_owned(), said)
        );
    }

    #[test]
    fn a_pooled_host_is_replaced_by_the_direct_one() {
        let host = |url: &str| {
            let (options, warnings) = parse(url, None).unwrap();
            (options.get_host().to_owned(), warnings)
        };
        let said = "the store's URL names a pooled host: using the direct one, `ep-dark-sea-1.eu-central-1.aws.neon.tech`";
        assert_eq!(
            host("postgres://u:p@ep-dark-sea-1-pooler.eu-central-1.aws.neon.tech/d?sslmode=verify-full"),
            ("ep-dark-sea-1.eu-central-1.aws.neon.tech".to_owned(), vec![said.to_owned()])
        );
        for own in ["my-pooler.example", "ep-pool-pooler"] {
            assert_eq!(host(&format!("postgres://u:p@{own}/d")), (own.to_owned(), Vec::new()));
        }
    }
}
