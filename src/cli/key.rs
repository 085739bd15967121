//! `guardian key`: makes, lists and revokes API keys. A key is printed once, when it is made; the store keeps only its HMAC.

use super::context::{AdminContext, ConfigFile, moment_ahead, now};
use super::failure::{Failure, with_causes};
use super::output::{Format, at, clean, comma, json, line, note, or_dash};
use crate::domain::{ApiKey, KeyId, Scope, Timestamp};
use crate::identity::Pepper;
use crate::store::KeyRow;
use secrecy::ExposeSecret;

/// Make, show and revoke API keys.
#[derive(Debug, clap::Subcommand)]
pub enum KeyCommand {
    /// Make a key and print it, once.
    #[command(
        after_help = "Examples:\n  guardian key new --user alice@example.com --name laptop --expires 90d\n  export GUARDIAN_KEY=$(guardian key new --user ci --scopes read_file)"
    )]
    New {
        /// Whose it is, by id or e-mail.
        #[arg(long, value_name = "USER")]
        user: String,
        /// To know it by later.
        #[arg(long, default_value = "")]
        name: String,
        /// Narrow it to these scopes of its owner's grants.
        #[arg(long, value_delimiter = ',', value_name = "SCOPE,…")]
        scopes: Vec<Scope>,
        /// A length of time from now (`90d`), or a moment (RFC 3339).
        #[arg(long, value_parser = moment_ahead, value_name = "WHEN")]
        expires: Option<Timestamp>,
        #[command(flatten)]
        format: Format,
    },
    /// Show which keys there are; never the keys themselves.
    #[command(after_help = "Example:\n  guardian key list --user alice@example.com")]
    List {
        /// Only of this user, by id or e-mail.
        #[arg(long, value_name = "USER")]
        user: Option<String>,
        #[command(flatten)]
        format: Format,
    },
    /// Let a key open nothing any more.
    #[command(after_help = "Example:\n  guardian key revoke 3kz8q1v7p2m5n4rt")]
    Revoke {
        /// The part of the key between `ng_` and the next `_`.
        id: KeyId,
        #[command(flatten)]
        format: Format,
    },
}

impl KeyCommand {
    pub async fn run(&self, file: &ConfigFile) -> Result<(), Failure> {
        let admin = AdminContext::open(file).await?;
        let env = &admin.config.environment;
        match self {
            KeyCommand::New {
                user,
                name,
                scopes,
                expires,
                format,
            } => {
                let owner = admin.user(user).await?;
                let made = pepper(&admin)?
                    .new_key()
                    .map_err(|error| Failure::failed(with_causes(&error)))?;
                let key = ApiKey {
                    id: made.id,
                    name: name.clone(),
                    hash: made.hash,
                    pepper_version: made.pepper_version,
                    scopes: scopes.iter().cloned().collect(),
                    created_at: now(),
                    expires_at: *expires,
                    revoked_at: None,
                };
                admin.store.add_key(env, &owner.id, &key).await?;
                let shown = made.shown.expose_secret();
                if format.json {
                    return json(
                        &serde_json::json!({ "id": key.id, "key": shown, "user": owner.id, "expires_at": expires.map(at) }),
                    );
                }
                line(shown)?;
                note(format_args!(
                    "key `{}` of `{}`: keep it now, it is not shown again",
                    key.id,
                    clean(user)
                ))
            }
            KeyCommand::List { user, format } => {
                let user = admin.user_if_named(user.as_deref()).await?;
                let keys = admin.store.list_keys(env, user.as_ref()).await?;
                let heads = ["key", "user", "name", "scopes", "state", "made", "expires"];
                let now = now();
                format.list(&keys, &heads, "no keys; `guardian key new` makes one", |key| {
                    key_row(key, now)
                })
            }
            KeyCommand::Revoke { id, format } => {
                if !admin.store.revoke_key(env, id, now()).await? {
                    return Err(Failure::failed(format_args!(
                        "there is no key `{id}` to revoke; `guardian key list` shows all"
                    )));
                }
                format.done(
                    &serde_json::json!({ "id": id, "revoked": true }),
                    format_args!("`{id}` opens nothing any more"),
                )
            }
        }
    }
}

/// Loads the peppers, and creates the file if there is none.
fn pepper(admin: &AdminContext) -> Result<Pepper, Failure> {
    let file = admin.config.keys.pepper_file.clone();
    let file = file.unwrap_or_else(|| admin.config.data_dir.join("pepper"));
    Pepper::load_or_create(&file).map_err(|error| Failure::failed(with_causes(&error)))
}

fn key_row(key: &KeyRow, now: Timestamp) -> Vec<String> {
    let state = match (key.revoked_at, key.expires_at) {
        (Some(_), _) => "revoked",
        (None, Some(expires)) if expires <= now => "expired",
        (None, _) => "good",
    };
    vec![
        key.id.to_string(),
        key.email.clone().unwrap_or_else(|| key.user.to_string()),
        key.name.clone(),
        if key.scopes.is_empty() {
            "its owner's".to_owned()
        } else {
            comma(&key.scopes)
        },
        state.to_owned(),
        at(key.created_at),
        or_dash(key.expires_at.map(at)),
    ]
}
