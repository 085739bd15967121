//! Finds placeholders given as secrets, and checks database URLs, which contain a password. Messages never repeat either.

use super::address::{host_of, is_loopback_host};
use crate::domain::Problem;

/// Values from examples: whoever starts with one of them forgot to set the secret.
const PLACEHOLDERS: [&str; 20] = [
    "changeme",
    "change-me",
    "change_me",
    "changeit",
    "secret",
    "password",
    "passw0rd",
    "postgres",
    "admin",
    "root",
    "token",
    "apikey",
    "api-key",
    "test",
    "example",
    "placeholder",
    "default",
    "todo",
    "dummy",
    "secretkey",
];

/// Checks a database URL. Its messages never repeat it, because it holds a password.
pub(super) fn database_url(key: &str, url: &str, found: &mut Vec<Problem>) {
    let Some(rest) = ["postgres://", "postgresql://"]
        .iter()
        .find_map(|scheme| url.strip_prefix(scheme))
    else {
        found.push(Problem::error(key, format!("`{key}` does not begin with `postgres://`")));
        return;
    };
    let (authority, query) = (
        rest.split(['/', '?']).next().unwrap_or(rest),
        rest.split_once('?').map_or("", |(_, query)| query),
    );
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if user.split_once(':').is_some_and(|(_, password)| is_placeholder(password)) {
        found.push(placeholder(key, &format!("the password in `{key}`")));
    }
    let mode = query.split('&').find_map(|pair| pair.strip_prefix("sslmode="));
    let remote = !host.is_empty() && !is_loopback_host(host_of(host));
    if remote && mode.is_some_and(|mode| !matches!(mode, "require" | "verify-ca" | "verify-full")) {
        found.push(
            Problem::warning(
                key,
                format!("`{key}` reaches its database over the network, perhaps in clear text"),
            )
            .help("use `sslmode=verify-full`"),
        );
    }
    if key == "store.url" && host.contains("-pooler.") {
        found.push(
            Problem::warning(
                key,
                "`store.url` names a pooled endpoint, where changes of grants cannot be listened for",
            )
            .help("use the direct endpoint: the same host without `-pooler`"),
        );
    }
}

pub(super) fn placeholder(key: &str, what: &str) -> Problem {
    Problem::error(key, format!("{what} is a placeholder, not a secret")).help("set the real one by `${VAR}` or a `…_file`")
}

/// Whether the value looks like one to be replaced.
pub(super) fn is_placeholder(secret: &str) -> bool {
    let plain = secret.trim().to_lowercase();
    let bracketed = plain.starts_with('<') && plain.ends_with('>');
    let repeated = plain.len() >= 3 && plain.bytes().all(|b| matches!(b, b'x' | b'*' | b'.'));
    let asks = plain.starts_with("your-") || plain.starts_with("your_");
    bracketed || repeated || asks || PLACEHOLDERS.contains(&plain.as_str())
}
