//! Users, service accounts and the identities that name them.

use super::directory::{identity_of, kind_of, read_member, status_of};
use super::engine::{Row, Sql, Tx, args};
use super::unreadable::{ColumnError, IDENTITIES as OF_IDENTITIES, USERS, name, names, or_left_out, time};
use super::{Store, StoreError};
use crate::domain::{
    AdminAction, EnvironmentName, Issuer, Member, MemberStatus, PrincipalKind, RoleName, Subject, Timestamp, UserId,
};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A user to be made. Without an id it gets a random one.
#[derive(Debug, Clone)]
pub struct NewUser {
    pub id: Option<UserId>,
    pub kind: PrincipalKind,
    pub email: Option<String>,
    pub display_name: Option<String>,
    pub roles: Vec<RoleName>,
}

/// A user as administrators list it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct UserRow {
    pub id: UserId,
    pub kind: PrincipalKind,
    pub email: Option<String>,
    pub display_name: Option<String>,
    pub roles: Vec<RoleName>,
    pub status: MemberStatus,
    pub identities: Vec<(Issuer, Subject)>,
    #[serde(serialize_with = "super::rfc3339")]
    pub created_at: Timestamp,
}

const ADD: Sql = Sql {
    postgres: "INSERT INTO users (environment, id, kind, email, display_name, roles)
               VALUES ($1, $2::uuid, $3, $4, $5, ARRAY(SELECT jsonb_array_elements_text($6::jsonb)))",
    sqlite: "INSERT INTO users (environment, id, kind, email, display_name, roles) VALUES ($1, $2, $3, $4, $5, $6)",
};

const LIST: Sql = Sql {
    postgres: "SELECT id::text AS id, kind, email, display_name, array_to_json(roles)::text AS roles, status,
                 micros(created_at) AS created_at FROM users WHERE environment = $1 ORDER BY email, id",
    sqlite: "SELECT id, kind, email, display_name, roles, status, created_at FROM users WHERE environment = $1 ORDER BY email, id",
};

const IDENTITIES: Sql = Sql {
    postgres: "SELECT user_id::text AS user_id, issuer, subject FROM user_identities WHERE environment = $1 ORDER BY issuer, subject",
    sqlite: "SELECT user_id, issuer, subject FROM user_identities WHERE environment = $1 ORDER BY issuer, subject",
};

const SET_STATUS: Sql = Sql {
    postgres: "UPDATE users SET status = $3 WHERE environment = $1 AND id = $2::uuid",
    sqlite: "UPDATE users SET status = $3 WHERE environment = $1 AND id = $2",
};

const SET_ROLES: Sql = Sql {
    postgres: "UPDATE users SET roles = ARRAY(SELECT jsonb_array_elements_text($3::jsonb)) WHERE environment = $1 AND id = $2::uuid",
    sqlite: "UPDATE users SET roles = $3 WHERE environment = $1 AND id = $2",
};

const LINKED: Sql = Sql {
    postgres: "SELECT user_id::text AS user_id FROM user_identities WHERE environment = $1 AND issuer = $2 AND subject = $3",
    sqlite: "SELECT user_id FROM user_identities WHERE environment = $1 AND issuer = $2 AND subject = $3",
};

const LINK: Sql = Sql {
    postgres: "INSERT INTO user_identities (environment, user_id, issuer, subject) VALUES ($1, $2::uuid, $3, $4)",
    sqlite: "INSERT INTO user_identities (environment, user_id, issuer, subject) VALUES ($1, $2, $3, $4)",
};

const UNLINK: Sql = Sql::same("DELETE FROM user_identities WHERE environment = $1 AND issuer = $2 AND subject = $3");

/// The proxy's login may not write users; this function may, and does nothing else.
const ENROL: Sql =
    Sql::of_postgres("SELECT enrol($1, $2, $3, $4, ARRAY(SELECT jsonb_array_elements_text($5::jsonb)), $6)::text AS user_id");

impl Store {
    pub async fn add_user(&self, env: &EnvironmentName, user: &NewUser) -> Result<UserId, StoreError> {
        let mut change = self.change(env).await?;
        let id = insert_user(&mut change.tx, env, user).await?;
        change.commit().await?;
        Ok(id)
    }

    pub async fn list_users(&self, env: &EnvironmentName) -> Result<Vec<UserRow>, StoreError> {
        let mut tx = self.read().await?;
        let mut identities: BTreeMap<String, Vec<(Issuer, Subject)>> = BTreeMap::new();
        for row in tx.fetch(&IDENTITIES, args![env.as_str()]).await? {
            let read = row.cell::<String>("user_id").and_then(|user| Ok((user, identity_of(&row)?)));
            if let Some((user, identity)) = or_left_out(read, &row, OF_IDENTITIES, &["user_id", "issuer", "subject"]) {
                identities.entry(user).or_default().push(identity);
            }
        }
        let mut users = Vec::new();
        for row in tx.fetch(&LIST, args![env.as_str()]).await? {
            users.extend(or_left_out(user_of(&row, &mut identities), &row, USERS, &["id"]));
        }
        tx.commit().await?;
        Ok(users)
    }

    pub async fn set_user_status(&self, env: &EnvironmentName, user: &UserId, to: MemberStatus) -> Result<(), StoreError> {
        self.change_user(&SET_STATUS, env, user, to.as_str()).await
    }

    /// Replaces the roles of a user.
    pub async fn set_user_roles(&self, env: &EnvironmentName, user: &UserId, roles: &[RoleName]) -> Result<(), StoreError> {
        self.change_user(&SET_ROLES, env, user, &serde_json::json!(roles).to_string())
            .await
    }

    async fn change_user(&self, sql: &Sql, env: &EnvironmentName, user: &UserId, to: &str) -> Result<(), StoreError> {
        let mut change = self.change(env).await?;
        match change.tx.execute(sql, args![env.as_str(), uuid_of(user)?, to]).await? {
            0 => Err(no_user(env, user)),
            _ => change.commit().await.map(drop),
        }
    }

    /// Links (issuer, subject) to a user. Linking again is nothing; what is linked to somebody else stays there.
    pub async fn link_identity(
        &self,
        env: &EnvironmentName,
        user: &UserId,
        issuer: &Issuer,
        subject: &Subject,
    ) -> Result<(), StoreError> {
        let mut change = self.change(env).await?;
        match linked_user(&mut change.tx, env, issuer, subject).await? {
            Some(holder) if holder == uuid_of(user)? => return Ok(()),
            Some(holder) => {
                let text = format!("`{subject}` of `{issuer}` is linked to user `{holder}`: unlink it first");
                return Err(StoreError::Conflict(text));
            }
            None => insert_identity(&mut change.tx, env, user, issuer, subject).await?,
        }
        change.commit().await.map(drop)
    }

    /// Whether there was such a link.
    pub async fn unlink_identity(&self, env: &EnvironmentName, issuer: &Issuer, subject: &Subject) -> Result<bool, StoreError> {
        let args = args![env.as_str(), issuer.as_str(), subject.as_str()];
        let mut change = self.change(env).await?;
        let unlinked = change.tx.execute(&UNLINK, args).await? > 0;
        change.commit().await?;
        Ok(unlinked)
    }

    /// Just-in-time enrolment: the member that (issuer, subject) names, made if there is none; and what the instance has to
    /// record of it.
    pub async fn enrol(
        &self,
        env: &EnvironmentName,
        issuer: &Issuer,
        subject: &Subject,
        email: Option<&str>,
        roles: &[RoleName],
        kind: PrincipalKind,
    ) -> Result<(Member, Vec<AdminAction>), StoreError> {
        let mut change = self.change_by_anyone(env).await?;
        let tx = &mut change.tx;
        let user = match self {
            Store::Postgres(_) => {
                let roles = serde_json::json!(roles).to_string();
                let args = args![env.as_str(), issuer.as_str(), subject.as_str(), email, roles, kind.as_str()];
                let row = tx.fetch_one(&ENROL, args).await?;
                row.map(|row| row.get::<String>("user_id")).transpose()?
            }
            Store::Sqlite(_) => match linked_user(tx, env, issuer, subject).await? {
                Some(user) => Some(user),
                None => {
                    let email = email.map(str::to_owned);
                    let user = NewUser {
                        id: None,
                        kind,
                        email,
                        display_name: None,
                        roles: roles.to_vec(),
                    };
                    let id = insert_user(tx, env, &user).await?;
                    insert_identity(tx, env, &id, issuer, subject).await?;
                    Some(id.to_string())
                }
            },
        };
        let user = user.and_then(|user| UserId::parse(&user).ok());
        let user = user.ok_or_else(|| StoreError::NotFound(format!("user for `{subject}` of `{issuer}`")))?;
        let member = read_member(tx, env, &user).await?;
        let changes = change.commit().await?;
        member.map(|member| (member, changes)).ok_or_else(|| no_user(env, &user))
    }
}

async fn insert_user(tx: &mut Tx, env: &EnvironmentName, user: &NewUser) -> Result<UserId, StoreError> {
    let id = match &user.id {
        Some(id) => uuid_of(id)?,
        None => Uuid::new_v4().to_string(),
    };
    let roles = serde_json::json!(user.roles).to_string();
    let (email, display_name) = (user.email.as_deref(), user.display_name.as_deref());
    let args = args![env.as_str(), id.as_str(), user.kind.as_str(), email, display_name, roles];
    match tx.execute(&ADD, args).await {
        Err(StoreError::Conflict(_)) => Err(StoreError::Conflict(format!(
            "user `{id}` exists already in environment `{env}`"
        ))),
        done => done.map(|_| UserId::parse(&id).expect("a UUID is a user id")),
    }
}

async fn linked_user(
    tx: &mut Tx,
    env: &EnvironmentName,
    issuer: &Issuer,
    subject: &Subject,
) -> Result<Option<String>, StoreError> {
    let row = tx
        .fetch_one(&LINKED, args![env.as_str(), issuer.as_str(), subject.as_str()])
        .await?;
    row.map(|row| row.get("user_id")).transpose()
}

async fn insert_identity(
    tx: &mut Tx,
    env: &EnvironmentName,
    user: &UserId,
    issuer: &Issuer,
    subject: &Subject,
) -> Result<(), StoreError> {
    let args = args![env.as_str(), uuid_of(user)?, issuer.as_str(), subject.as_str()];
    match tx.execute(&LINK, args).await {
        Err(StoreError::NotFound(_)) => Err(no_user(env, user)),
        done => done.map(|_| ()),
    }
}

fn user_of(row: &Row, identities: &mut BTreeMap<String, Vec<(Issuer, Subject)>>) -> Result<UserRow, ColumnError> {
    let id: UserId = name(row, "id")?;
    Ok(UserRow {
        kind: kind_of(row)?,
        email: row.cell_or_null("email")?,
        display_name: row.cell_or_null("display_name")?,
        roles: names(row, "roles")?,
        status: status_of(row)?,
        identities: identities.remove(id.as_str()).unwrap_or_default(),
        created_at: time(row, "created_at")?,
        id,
    })
}

/// The one spelling of a user id in both stores: a UUID in lower case with hyphens.
pub(super) fn uuid_of(user: &UserId) -> Result<String, StoreError> {
    match Uuid::try_parse(user.as_str()) {
        Ok(uuid) => Ok(uuid.to_string()),
        Err(_) => Err(StoreError::Invalid(format!(
            "`{user}` is not a user id: user ids are UUIDs such as 7d444840-9dc0-11d1-b245-5ffdce74fad2"
        ))),
    }
}

pub(super) fn no_user(env: &EnvironmentName, user: &UserId) -> StoreError {
    StoreError::NotFound(format!("user `{user}` in environment `{env}`"))
}
