//! What most commands start with: the configuration, the store, the clock, and the user or server that an argument names.

use super::failure::Failure;
use super::output::{clean, comma};
use crate::app::process_actor;
use crate::config::{self, CheckedConfig, HumanDuration, Loaded, Secret, StoreConfig, StoreKind, Variables};
use crate::domain::{Problem, ServerName, Timestamp, UserId, did_you_mean, nearest};
use crate::store::{Author, Store, StoreError, StoreOpen, UserRow};
use std::collections::BTreeSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

#[derive(Debug, Clone, clap::Args)]
pub struct ConfigFile {
    /// The configuration file.
    // the argument is global, so clap would confuse its default id `path` with that of `policy check [PATH]`
    #[arg(
        id = "config-file",
        short = 'c',
        long = "config",
        value_name = "FILE",
        env = "GUARDIAN_CONFIG",
        hide_env_values = true,
        default_value = "config/guardian.toml",
        global = true
    )]
    pub path: PathBuf,
    /// Who makes a change, for the record: claimed, beside the user of the operating system.
    #[arg(long, global = true, value_name = "NAME", value_parser = claimed_name)]
    pub by: Option<String>,
}

impl ConfigFile {
    /// Loads the configuration with its warnings, for commands that show them.
    pub fn read(&self) -> Result<Loaded, Vec<Problem>> {
        config::load(&self.path, &variables())
    }

    /// Whom the records of this command's changes name.
    pub fn author(&self) -> Author {
        Author::Command {
            actor: process_actor(),
            claimed_by: self.by.clone(),
        }
    }

    /// Loads the configuration without its warnings.
    pub fn load(&self) -> Result<CheckedConfig, Failure> {
        let loaded = self.read().map_err(|problems| Failure::configuration(&problems))?;
        Ok(loaded.config)
    }
}

fn claimed_name(text: &str) -> Result<String, String> {
    let plain = text.chars().count() <= 100 && !text.chars().any(char::is_control) && !text.trim().is_empty();
    plain
        .then(|| text.to_owned())
        .ok_or_else(|| "give a name of at most 100 characters, without control characters".to_owned())
}

/// The environment variables that are UTF-8; the configuration can use no others.
fn variables() -> Variables {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// What an administrative command needs: the configuration, and a store whose schema is current.
pub struct AdminContext {
    pub config: CheckedConfig,
    pub store: Store,
}

impl AdminContext {
    /// Opens the store with the administrator's login; refuses a schema that is behind or ahead of this program.
    pub async fn open(file: &ConfigFile) -> Result<Self, Failure> {
        let config = file.load()?;
        let store = open_store(&config.store, Login::Administrator).await?.authored(file.author());
        store.require_current().await?;
        Ok(Self { config, store })
    }

    /// Finds a user by id or e-mail address.
    pub async fn user(&self, named: &str) -> Result<UserRow, Failure> {
        let users = self.store.list_users(&self.config.environment).await?;
        who(users, named)
    }

    /// Checks that the configuration or the registry has this server; the error names the nearest one.
    pub async fn server(&self, named: &ServerName) -> Result<(), Failure> {
        let env = &self.config.environment;
        let mut known: BTreeSet<ServerName> = self.config.servers.iter().map(|server| server.name.clone()).collect();
        known.extend(self.store.list_servers(env).await?.into_iter().map(|row| row.server));
        if known.contains(named) {
            return Ok(());
        }
        let near = nearest(named.as_str(), known.iter().map(ServerName::as_str));
        let help = near.map_or_else(|| "`guardian server list` shows all".to_owned(), did_you_mean);
        Err(Failure::failed(format_args!("there is no server `{named}`; {help}")))
    }

    pub async fn user_id(&self, named: &str) -> Result<UserId, Failure> {
        self.user(named).await.map(|user| user.id)
    }

    /// As `user_id`; without a name it is `None`, which stands for all users.
    pub async fn user_if_named(&self, named: Option<&str>) -> Result<Option<UserId>, Failure> {
        match named {
            Some(named) => self.user_id(named).await.map(Some),
            None => Ok(None),
        }
    }
}

/// The one user with this id or e-mail address, whose letter case does not count. If several match, none is chosen.
fn who(users: Vec<UserRow>, named: &str) -> Result<UserRow, Failure> {
    let shown = clean(named);
    let has_email = |user: &UserRow| user.email.as_deref().is_some_and(|email| email.eq_ignore_ascii_case(named));
    let (mut found, others): (Vec<_>, Vec<_>) = users
        .into_iter()
        .partition(|user| user.id.as_str() == named || has_email(user));
    match (found.pop(), found.is_empty()) {
        (Some(user), true) => Ok(user),
        (Some(user), false) => {
            let ids = comma(found.iter().chain([&user]).map(|user| &user.id));
            Err(Failure::failed(format_args!(
                "`{shown}` is the e-mail of several users ({ids}); name one by its id"
            )))
        }
        (None, _) => {
            let emails = others.iter().filter_map(|user| user.email.as_deref());
            let help = match nearest(named, emails) {
                Some(email) => did_you_mean(&clean(email)),
                None => format!("`guardian user add {shown}` makes one, `guardian user list` shows all"),
            };
            Err(Failure::failed(format_args!("there is no user `{shown}`; {help}")))
        }
    }
}

/// Which login a command uses on Postgres; SQLite has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Login {
    /// `store.url`, as `serve` does.
    Proxy,
    /// `store.admin_url`, or `store.url` where that is missing.
    Administrator,
}

/// Opens the store; a missing SQLite file is an error.
pub async fn open_store(store: &StoreConfig, login: Login) -> Result<Store, StoreError> {
    Store::open(&address(store, login, false)?).await
}

/// Opens the store as administrator, and creates the SQLite file and its folder if they are missing.
pub async fn open_or_create(store: &StoreConfig) -> Result<Store, Failure> {
    if let (StoreKind::Sqlite, Some(folder)) = (store.kind, store.file.as_deref().and_then(Path::parent)) {
        std::fs::create_dir_all(folder)
            .map_err(|error| Failure::failed(format_args!("cannot make the folder `{}`: {error}", display_path(folder))))?;
    }
    Ok(Store::open(&address(store, Login::Administrator, true)?).await?)
}

fn address(store: &StoreConfig, login: Login, create: bool) -> Result<StoreOpen, StoreError> {
    let missing = |what: &str| StoreError::Configuration(format!("the configuration names no `store.{what}`"));
    match store.kind {
        StoreKind::Sqlite => Ok(StoreOpen::Sqlite {
            file: store.file.clone().ok_or_else(|| missing("file"))?,
            create,
        }),
        StoreKind::Postgres => {
            let url: Option<&Secret> = match login {
                Login::Proxy => store.url.as_ref(),
                Login::Administrator => store.administration_url(),
            };
            Ok(StoreOpen::Postgres {
                url: url.cloned().ok_or_else(|| missing("url"))?,
                ca_file: store.ca_file.clone(),
                max_connections: store.max_connections,
                connect_timeout: store.connect_timeout.0,
            })
        }
    }
}

pub fn now() -> Timestamp {
    Timestamp::from_datetime(SystemTime::now().into())
}

/// Parses `30d` as thirty days from now, or a time in RFC 3339.
pub fn moment_ahead(text: &str) -> Result<Timestamp, String> {
    moment(text, |span| now().plus(span.0))
}

/// Parses `2h` as two hours ago, or a time in RFC 3339.
pub fn moment_past(text: &str) -> Result<Timestamp, String> {
    moment(text, |span| now().minus(span.0))
}

fn moment(text: &str, from_now: impl Fn(HumanDuration) -> Timestamp) -> Result<Timestamp, String> {
    HumanDuration::parse(text)
        .map(from_now)
        .or_else(|| Timestamp::parse_rfc3339(text))
        .ok_or_else(|| "write a length of time such as `90m` or `30d`, or a moment such as `2027-01-31T12:00:00Z`".to_owned())
}

/// Runs a command on a single-threaded runtime, which is enough to query and print.
pub fn block_on<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    crate::transport::install_provider();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .map_err(|error| Failure::failed(format_args!("cannot start: {error}")))?
        .block_on(command)
}

/// A path for messages, with control characters escaped.
pub fn display_path(path: &Path) -> String {
    clean(&path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{MemberStatus, PrincipalKind};

    fn user(id: &str, email: Option<&str>) -> UserRow {
        UserRow {
            id: UserId::parse(id).unwrap(),
            kind: PrincipalKind::User,
            email: email.map(str::to_owned),
            display_name: None,
            roles: Vec::new(),
            status: MemberStatus::Active,
            identities: Vec::new(),
            created_at: Timestamp::from_secs(0),
        }
    }

    #[test]
    fn a_user_is_found_by_id_or_e_mail_and_never_by_guessing() {
        let users = || {
            vec![
                user("1", Some("alice@example.com")),
                user("2", Some("twin@example.com")),
                user("3", Some("Twin@example.com")),
                user("4", None),
            ]
        };
        let found = |named: &str| who(users(), named).map(|user| user.id.to_string());
        assert_eq!(found("4").unwrap(), "4");
        assert_eq!(found("ALICE@example.com").unwrap(), "1");
        let said = |named: &str| format!("{:?}", found(named).unwrap_err());
        assert!(said("alicia@example.com").contains("did you mean `alice@example.com`?"));
        assert!(said("twin@example.com").contains("several users (2,3)"));
        assert!(
            said("x\u{1b}[2J").contains("no user `x\\\\u{1b}[2J`"),
            "{}",
            said("x\u{1b}[2J")
        );
    }

    #[test]
    fn a_moment_is_a_length_of_time_or_a_date() {
        assert_eq!(
            moment_past("2027-01-31T12:00:00Z"),
            Ok(Timestamp::parse_rfc3339("2027-01-31T12:00:00Z").unwrap())
        );
        let (past, ahead) = (moment_past("1h").unwrap(), moment_ahead("1h").unwrap());
        assert!(ahead.since(past).as_secs() >= 7_200);
        assert!(moment_ahead("yesterday").is_err());
    }
}
