//! `guardian user`: who is enrolled in this environment, with which roles, and which issuers' identities are linked to them.

use super::context::{AdminContext, ConfigFile};
use super::failure::Failure;
use super::output::{Format, at, clean, comma, json_array, or_dash};
use crate::config::Config;
use crate::domain::{Issuer, MemberStatus, PrincipalKind, RoleName, Subject, UserId};
use crate::store::{NewUser, UserRow};
use serde_json::{Value as Json, json};

/// Show, enrol, disable and link users and service accounts.
#[derive(Debug, clap::Subcommand)]
pub enum UserCommand {
    /// Show who is enrolled.
    #[command(after_help = "Example:\n  guardian user list --json | jq '.[].email'")]
    List {
        #[command(flatten)]
        format: Format,
    },
    /// Enrol somebody.
    #[command(
        after_help = "Example:\n  guardian user add alice@example.com --role analyst --role reader\n  guardian user add --name nightly-build --service"
    )]
    Add {
        /// The e-mail address other commands may name the user by.
        #[arg(value_parser = email)]
        email: Option<String>,
        /// The name people know it by.
        #[arg(long)]
        name: Option<String>,
        /// May be given several times.
        #[arg(long = "role", alias = "roles", value_delimiter = ',', value_name = "ROLE")]
        roles: Vec<RoleName>,
        /// A program, not a person: policies see `Guardian::Service`.
        #[arg(long)]
        service: bool,
        /// Instead of a made-up one.
        #[arg(long)]
        id: Option<UserId>,
        #[command(flatten)]
        format: Format,
    },
    /// Let nothing of this user in any more.
    #[command(after_help = "Example:\n  guardian user disable alice@example.com")]
    Disable {
        /// By id or e-mail.
        user: String,
        #[command(flatten)]
        format: Format,
    },
    /// Let a disabled user in again.
    #[command(after_help = "Example:\n  guardian user enable alice@example.com")]
    Enable {
        /// By id or e-mail.
        user: String,
        #[command(flatten)]
        format: Format,
    },
    /// Set the roles of a user, in place of all there were.
    #[command(
        after_help = "Example:\n  guardian user roles alice@example.com analyst,reader\n  guardian user roles alice@example.com --none"
    )]
    Roles {
        /// By id or e-mail.
        user: String,
        /// Every role the user is to have.
        #[arg(value_delimiter = ',', value_name = "ROLE,…", required_unless_present = "none")]
        roles: Vec<RoleName>,
        /// Take every role away.
        #[arg(long, conflicts_with = "roles")]
        none: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Say that an identity of an issuer is this user.
    #[command(
        after_help = "Example:\n  guardian user link alice@example.com --issuer company \\\n    --subject 6f9619ff-8b86-d011-b42d-00cf4fc964ff"
    )]
    Link {
        /// By id or e-mail.
        user: String,
        #[command(flatten)]
        identity: IdentityArgs,
        #[command(flatten)]
        format: Format,
    },
    /// Take an identity away from whomever it is linked to.
    #[command(after_help = "Example:\n  guardian user unlink --issuer company --subject 6f9619ff-8b86-d011-b42d-00cf4fc964ff")]
    Unlink {
        #[command(flatten)]
        identity: IdentityArgs,
        #[command(flatten)]
        format: Format,
    },
}

#[derive(Debug, clap::Args)]
pub struct IdentityArgs {
    /// The alias of a configured issuer, or an exact `iss`; `certificate` for client certificates.
    #[arg(long, value_name = "ALIAS|ISS")]
    issuer: Issuer,
    /// The exact `sub`.
    #[arg(long, value_name = "SUB")]
    subject: Subject,
}

impl UserCommand {
    pub async fn run(&self, file: &ConfigFile) -> Result<(), Failure> {
        let admin = AdminContext::open(file).await?;
        let (store, env) = (&admin.store, &admin.config.environment);
        match self {
            UserCommand::List { format } => {
                let users = store.list_users(env).await?;
                if format.json {
                    return json_array(users.iter().map(as_json));
                }
                let heads = ["e-mail", "id", "kind", "status", "roles", "identities"];
                format.list(
                    &users,
                    &heads,
                    "nobody is enrolled; `guardian user add` enrols somebody",
                    user_row,
                )
            }
            UserCommand::Add {
                email,
                name,
                roles,
                service,
                id,
                format,
            } => {
                if email.is_none() && name.is_none() && id.is_none() {
                    return Err(Failure::usage(
                        "give an e-mail address, `--name` or `--id`, to know the user by",
                    ));
                }
                if let Some(email) = email
                    && store
                        .list_users(env)
                        .await?
                        .iter()
                        .any(|user| user.email.as_ref() == Some(email))
                {
                    return Err(Failure::failed(format_args!(
                        "there is a user `{0}` already; `guardian user roles {0}` changes its roles",
                        clean(email)
                    )));
                }
                let user = NewUser {
                    id: id.clone(),
                    kind: if *service {
                        PrincipalKind::Service
                    } else {
                        PrincipalKind::User
                    },
                    email: email.clone(),
                    display_name: name.clone(),
                    roles: roles.clone(),
                };
                let id = store.add_user(env, &user).await?;
                format.done(
                    &json!({ "id": id, "email": email, "roles": roles }),
                    format_args!("enrolled as {id}; they need a grant next: `guardian grant add`"),
                )
            }
            UserCommand::Disable { user, format } => set(&admin, user, MemberStatus::Disabled, *format).await,
            UserCommand::Enable { user, format } => set(&admin, user, MemberStatus::Active, *format).await,
            UserCommand::Roles {
                user,
                roles,
                none: _,
                format,
            } => {
                let id = admin.user_id(user).await?;
                store.set_user_roles(env, &id, roles).await?;
                let now = if roles.is_empty() {
                    "no role".to_owned()
                } else {
                    comma(roles)
                };
                format.done(
                    &json!({ "id": id, "roles": roles }),
                    format_args!("`{}` now has {}", clean(user), clean(&now)),
                )
            }
            UserCommand::Link { user, identity, format } => {
                let id = admin.user_id(user).await?;
                let issuer = exact(&admin.config, &identity.issuer);
                store.link_identity(env, &id, &issuer, &identity.subject).await?;
                let sentence = format!("`{}` of `{issuer}` is now `{}`", identity.subject, clean(user));
                format.done(&json!({ "id": id, "issuer": issuer, "subject": identity.subject }), sentence)
            }
            UserCommand::Unlink { identity, format } => {
                let issuer = exact(&admin.config, &identity.issuer);
                if !store.unlink_identity(env, &issuer, &identity.subject).await? {
                    return Err(Failure::failed(format_args!(
                        "`{}` of `{issuer}` is linked to nobody",
                        identity.subject
                    )));
                }
                format.done(
                    &json!({ "issuer": issuer, "subject": identity.subject, "unlinked": true }),
                    format_args!("`{}` of `{issuer}` is nobody now", identity.subject),
                )
            }
        }
    }
}

async fn set(admin: &AdminContext, user: &str, to: MemberStatus, format: Format) -> Result<(), Failure> {
    let id = admin.user_id(user).await?;
    admin.store.set_user_status(&admin.config.environment, &id, to).await?;
    let word = to.as_str();
    format.done(
        &json!({ "id": id, "status": word }),
        format_args!("`{}` is {word}", clean(user)),
    )
}

/// The `iss` of the issuer with this alias; any other text is taken as the exact `iss`.
pub fn exact(config: &Config, named: &Issuer) -> Issuer {
    let by_alias = config.issuers.iter().find(|issuer| issuer.alias.as_str() == named.as_str());
    by_alias.map_or_else(|| named.clone(), |issuer| issuer.issuer.clone())
}

/// Accepts `name@host` without spaces and control characters; nothing more is checked.
fn email(text: &str) -> Result<String, String> {
    let (name, host) = text.split_once('@').unwrap_or_default();
    let plain = text.len() <= 320 && !text.chars().any(|c| c.is_control() || c.is_whitespace());
    if plain && !name.is_empty() && !host.is_empty() {
        Ok(text.to_owned())
    } else {
        Err("it is not an e-mail address".to_owned())
    }
}

fn as_json(user: &UserRow) -> Json {
    let identity = |(issuer, subject): &(Issuer, Subject)| json!({ "issuer": issuer, "subject": subject });
    json!({
        "id": user.id,
        "email": user.email,
        "name": user.display_name,
        "kind": user.kind,
        "status": user.status,
        "roles": user.roles,
        "identities": user.identities.iter().map(identity).collect::<Vec<_>>(),
        "created_at": at(user.created_at),
    })
}

fn user_row(user: &UserRow) -> Vec<String> {
    vec![
        or_dash(user.email.as_ref().or(user.display_name.as_ref())),
        user.id.to_string(),
        user.kind.as_str().to_owned(),
        user.status.as_str().to_owned(),
        if user.roles.is_empty() {
            "-".to_owned()
        } else {
            comma(&user.roles)
        },
        user.identities.len().to_string(),
    ]
}
