//! Completes a parsed configuration: resolves paths against the file's folder, reads the files of secrets, and fills in
//! the defaults that depend on other values.

use super::document::join;
use super::{Config, IssuerConfig, IssuerKind, Secret, SigningAlgorithm, StoreKind, Variables};
use crate::domain::{Problem, quoted};
use std::path::{Path, PathBuf};

/// Container runtimes mount secrets here, with a mode that the container cannot always choose; the mode is not checked.
const MOUNTED_SECRETS: [&str; 2] = ["/run/secrets", "/var/run/secrets"];

/// Resolves every relative path against the folder of the file.
pub(super) fn resolve_paths(config: &mut Config, folder: &Path) {
    let tls = &mut config.listen.tls;
    let store = &mut config.store;
    let mut always = vec![
        &mut config.data_dir,
        &mut tls.certificate_file,
        &mut tls.key_file,
        &mut config.policies.dir,
    ];
    let mut optional = vec![
        &mut tls.client_ca_file,
        &mut store.file,
        &mut store.url_file,
        &mut store.admin_url_file,
        &mut store.ca_file,
        &mut config.keys.pepper_file,
        &mut config.journal.dir,
        &mut config.audit.key_file,
        &mut config.sessions.key_file,
    ];
    for issuer in &mut config.issuers {
        optional.extend([&mut issuer.jwks_file, &mut issuer.jwks_ca_file]);
        let introspection = issuer.introspection.as_mut();
        optional.extend(
            introspection
                .into_iter()
                .flat_map(|asked| [&mut asked.ca_file, &mut asked.client_secret_file]),
        );
    }
    for server in &mut config.servers {
        optional.push(&mut server.ca_file);
        always.extend(server.env_files.values_mut());
        optional.extend(server.credential.as_mut().map(|credential| &mut credential.value_file));
    }
    always.extend(optional.into_iter().filter_map(Option::as_mut));
    for path in always {
        *path = joined(folder, path);
    }
    for server in config.servers.iter_mut().filter(|server| !server.command.is_empty()) {
        let dir = server.working_dir.get_or_insert_default();
        *dir = joined(folder, dir);
        // A bare program name is looked up in PATH; a path is relative to the file's folder.
        if server.command[0].contains('/')
            && let Some(program) = joined(folder, Path::new(&server.command[0])).to_str()
        {
            server.command[0] = program.to_owned();
        }
    }
}

/// Joins `path` to `folder`. Leading `..` are resolved, since `data` reads better in messages than `config/../data`, but
/// not through a symbolic link, whose parent may be another folder.
fn joined(folder: &Path, path: &Path) -> PathBuf {
    let (mut folder, mut path) = (folder, path);
    while let (Ok(rest), Some(name), false) = (path.strip_prefix(".."), folder.file_name(), folder.is_symlink()) {
        if name == ".." {
            break;
        }
        (folder, path) = (folder.parent().unwrap_or(Path::new("")), rest);
    }
    folder.join(path)
}

/// Reads the `…_file` siblings of secrets. Other files are read by the rooms that use them.
pub(super) fn read_secrets(config: &mut Config) -> Vec<Problem> {
    let store = &mut config.store;
    let mut secrets = vec![
        ("store.url".to_owned(), &mut store.url, &store.url_file),
        ("store.admin_url".to_owned(), &mut store.admin_url, &store.admin_url_file),
    ];
    for (index, issuer) in config.issuers.iter_mut().enumerate() {
        if let Some(asked) = &mut issuer.introspection {
            let key = format!("issuers[{index}].introspection.client_secret");
            secrets.push((key, &mut asked.client_secret, &asked.client_secret_file));
        }
    }
    for (index, server) in config.servers.iter_mut().enumerate() {
        if let Some(credential) = &mut server.credential {
            let key = format!("servers[{index}].credential.value");
            secrets.push((key, &mut credential.value, &credential.value_file));
        }
    }
    let read = secrets
        .into_iter()
        .filter_map(|(key, secret, file)| read_secret(&key, &format!("{key}_file"), secret, file.as_ref()?).err());
    let mut problems: Vec<_> = read.collect();
    for (index, server) in config.servers.iter_mut().enumerate() {
        for (name, file) in &server.env_files {
            let mut value = server.env.remove(name);
            let [key, file_key] = ["env", "env_files"].map(|table| join(&format!("servers[{index}].{table}"), name));
            problems.extend(read_secret(&key, &file_key, &mut value, file).err());
            server.env.extend(value.map(|value| (name.clone(), value)));
        }
    }
    problems
}

/// Gives each program the variables that its `env_from` names.
pub(super) fn read_variables(config: &mut Config, variables: &Variables) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, server) in config.servers.iter_mut().enumerate() {
        for (position, variable) in server.env_from.iter().enumerate() {
            let problem = |message: String| Problem::error(format!("servers[{index}].env_from[{position}]"), message);
            let (name, shown) = (&server.name, quoted(variable));
            match variables.get(variable) {
                Some(_) if server.env.contains_key(variable) => problems.push(
                    problem(format!("server `{name}`: {shown} is given twice"))
                        .help("keep one of `env`, `env_files` and `env_from`"),
                ),
                Some(value) => {
                    server.env.insert(variable.clone(), value.clone().into());
                }
                None => problems.push(
                    problem(format!("server `{name}`: {shown} is not set in Guardian's environment"))
                        .help("set it where Guardian is started, or drop it from `env_from`"),
                ),
            }
        }
    }
    problems
}

fn read_secret(key: &str, file_key: &str, secret: &mut Option<Secret>, file: &Path) -> Result<(), Problem> {
    let problem = |message: String| Problem::error(file_key, message);
    let shown = file.display();
    if secret.is_some() {
        return Err(problem(format!("`{key}` is given twice, as it is and by `{file_key}`")).help("keep one of them"));
    }
    let text = std::fs::read_to_string(file).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => problem(format!("`{file_key}` names `{shown}`, which does not exist")),
        std::io::ErrorKind::InvalidData => problem(format!("`{file_key}` names `{shown}`, which is not text")),
        _ => problem(format!("cannot read `{shown}`, which `{file_key}` names: {error}")),
    })?;
    if readable_by_others(file) {
        return Err(
            problem(format!("`{shown}`, which `{file_key}` names, can be read by other users"))
                .help(format!("`chmod 600 {shown}`")),
        );
    }
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(problem(format!("`{shown}`, which `{file_key}` names, is empty"))),
        text => {
            *secret = Some(text.to_owned().into());
            Ok(())
        }
    }
}

#[cfg(unix)]
fn readable_by_others(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let mounted = MOUNTED_SECRETS.iter().any(|folder| file.starts_with(folder));
    !mounted && std::fs::metadata(file).is_ok_and(|meta| meta.permissions().mode() & 0o044 != 0)
}

#[cfg(not(unix))]
fn readable_by_others(_: &Path) -> bool {
    false
}

/// Fills in what an issuer's kind implies and the files in `data_dir`, and drops a trailing slash of `public_url`.
pub(super) fn fill_defaults(config: &mut Config) {
    if let Some(plain) = config.listen.public_url.strip_suffix('/') {
        config.listen.public_url = plain.to_owned();
    }
    config.issuers.iter_mut().for_each(fill_issuer_defaults);
    let data = |name: &str| Some(config.data_dir.join(name));
    if config.store.kind == StoreKind::Sqlite && config.store.file.is_none() {
        config.store.file = data("guardian.db");
    }
    let defaults: [(&mut Option<PathBuf>, _); 4] = [
        (&mut config.keys.pepper_file, "pepper"),
        (&mut config.journal.dir, "journal"),
        (&mut config.audit.key_file, "audit.keys"),
        (&mut config.sessions.key_file, "session.keys"),
    ];
    for (path, name) in defaults {
        if path.is_none() {
            *path = data(name);
        }
    }
}

fn fill_issuer_defaults(issuer: &mut IssuerConfig) {
    let base = issuer.issuer.as_str().trim_end_matches('/').to_owned();
    let (algorithms, jwks, audience) = match issuer.kind {
        IssuerKind::Oidc => (vec![SigningAlgorithm::ES256, SigningAlgorithm::RS256], None, None),
        IssuerKind::Supabase => (
            vec![SigningAlgorithm::ES256, SigningAlgorithm::RS256],
            Some(format!("{base}/.well-known/jwks.json")),
            Some("authenticated".to_owned()),
        ),
        IssuerKind::CloudflareAccess => (
            vec![SigningAlgorithm::RS256],
            Some(format!("{base}/cdn-cgi/access/certs")),
            None,
        ),
    };
    if issuer.algorithms.is_empty() {
        issuer.algorithms = algorithms;
    }
    if issuer.jwks_url.is_none() && issuer.jwks_file.is_none() {
        issuer.jwks_url = jwks;
    }
    if issuer.audiences.is_empty() {
        issuer.audiences.extend(audience);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_from_the_folder_of_the_file() {
        for (folder, path, whole) in [
            ("config", "../data", "data"),
            ("", "data", "data"),
            ("/etc/guardian", "/var/x", "/var/x"),
            ("/etc/guardian", "../../x", "/x"),
            ("a/..", "../x", "a/../../x"),
            ("", "../x", "../x"),
            ("config", "./x", "config/./x"),
        ] {
            assert_eq!(joined(Path::new(folder), Path::new(path)), Path::new(whole));
        }
    }
}
