//! API keys: their public part, their hash, whom they belong to. The secret itself never comes here. Also the revocations
//! of what other issuers made.

use super::engine::{Row, Sql, args};
use super::unreadable::{ColumnError, KEYS, name, names, or_left_out, time, time_or_null};
use super::users::{no_user, uuid_of};
use super::{Store, StoreError};
use crate::domain::{ApiKey, EnvironmentName, KeyId, Revocation, Scope, Timestamp, UserId};

/// A key as administrators list it: without its hash.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct KeyRow {
    pub id: KeyId,
    pub user: UserId,
    pub email: Option<String>,
    pub name: String,
    /// Empty: everything its owner's grants allow.
    pub scopes: Vec<Scope>,
    #[serde(serialize_with = "super::rfc3339")]
    pub created_at: Timestamp,
    #[serde(serialize_with = "super::rfc3339_or_null")]
    pub expires_at: Option<Timestamp>,
    #[serde(serialize_with = "super::rfc3339_or_null")]
    pub revoked_at: Option<Timestamp>,
}

const ADD: Sql = Sql {
    postgres: "INSERT INTO api_keys (environment, user_id, key_id, name, key_hash, pepper_version, scopes, created_at, expires_at, revoked_at)
               VALUES ($1, $2::uuid, $3, $4, $5, $6::int, $7::jsonb, at_micros($8), at_micros($9), at_micros($10))",
    sqlite: "INSERT INTO api_keys (environment, user_id, key_id, name, key_hash, pepper_version, scopes, created_at, expires_at, revoked_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
};

const REVOKE: Sql = Sql {
    postgres: "UPDATE api_keys SET revoked_at = at_micros($3) WHERE environment = $1 AND key_id = $2 AND revoked_at IS NULL",
    sqlite: "UPDATE api_keys SET revoked_at = $3 WHERE environment = $1 AND key_id = $2 AND revoked_at IS NULL",
};

const LIST: Sql = Sql {
    postgres: "SELECT k.key_id, k.user_id::text AS user_id, u.email, k.name, k.scopes::text AS scopes, micros(k.created_at) AS created_at,
                 micros(k.expires_at) AS expires_at, micros(k.revoked_at) AS revoked_at
               FROM api_keys k JOIN users u ON u.environment = k.environment AND u.id = k.user_id
               WHERE k.environment = $1 AND ($2::text IS NULL OR k.user_id = $2::uuid) ORDER BY u.email, k.created_at, k.key_id",
    sqlite: "SELECT k.key_id, k.user_id, u.email, k.name, k.scopes, k.created_at, k.expires_at, k.revoked_at
             FROM api_keys k JOIN users u ON u.environment = k.environment AND u.id = k.user_id
             WHERE k.environment = $1 AND ($2 IS NULL OR k.user_id = $2) ORDER BY u.email, k.created_at, k.key_id",
};

const ADD_REVOCATION: Sql = Sql {
    postgres: "INSERT INTO revocations (environment, issuer, kind, value, issued_before, expires_at, reason)
               VALUES ($1, $2, $3, $4, at_micros($5), at_micros($6), $7)
               ON CONFLICT (environment, issuer, kind, value) DO UPDATE
               SET issued_before = greatest(revocations.issued_before, excluded.issued_before),
                   expires_at = greatest(revocations.expires_at, excluded.expires_at), reason = excluded.reason",
    sqlite: "INSERT INTO revocations (environment, issuer, kind, value, issued_before, expires_at, reason)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (environment, issuer, kind, value) DO UPDATE
             SET issued_before = max(issued_before, excluded.issued_before),
                 expires_at = max(expires_at, excluded.expires_at), reason = excluded.reason",
};

impl Store {
    pub async fn add_key(&self, env: &EnvironmentName, user: &UserId, key: &ApiKey) -> Result<(), StoreError> {
        let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.as_str()).collect();
        let args = args![
            env.as_str(),
            uuid_of(user)?,
            key.id.as_str(),
            key.name.as_str(),
            &key.hash[..],
            i64::from(key.pepper_version),
            serde_json::json!(scopes).to_string(),
            key.created_at.micros(),
            key.expires_at.map(Timestamp::micros),
            key.revoked_at.map(Timestamp::micros),
        ];
        let mut change = self.change(env).await?;
        match change.tx.execute(&ADD, args).await {
            Err(StoreError::NotFound(_)) => return Err(no_user(env, user)),
            Err(StoreError::Conflict(_)) => return Err(StoreError::Conflict(format!("key `{}` exists already", key.id))),
            done => done?,
        };
        change.commit().await.map(drop)
    }

    /// Whether there was such a key that was not revoked yet.
    pub async fn revoke_key(&self, env: &EnvironmentName, key: &KeyId, now: Timestamp) -> Result<bool, StoreError> {
        let mut change = self.change(env).await?;
        let args = args![env.as_str(), key.as_str(), now.micros()];
        let revoked = change.tx.execute(&REVOKE, args).await? > 0;
        change.commit().await?;
        Ok(revoked)
    }

    /// Of one user, or of all.
    pub async fn list_keys(&self, env: &EnvironmentName, user: Option<&UserId>) -> Result<Vec<KeyRow>, StoreError> {
        let user = user.map(uuid_of).transpose()?;
        let mut keys = Vec::new();
        for row in self.query(&LIST, args![env.as_str(), user]).await? {
            keys.extend(or_left_out(listed(&row), &row, KEYS, &["user_id", "key_id"]));
        }
        Ok(keys)
    }

    /// Refuses tokens of each named thing issued before a moment. Said twice, the later moment and the later end hold.
    pub async fn add_revocations(
        &self,
        env: &EnvironmentName,
        revocations: &[Revocation],
        reason: Option<&str>,
    ) -> Result<(), StoreError> {
        let mut change = self.change(env).await?;
        for of in revocations {
            let (issuer, kind, value) = (of.issuer.as_str(), of.kind.as_str(), of.value.as_str());
            let (before, until) = (of.issued_before.micros(), of.expires_at.micros());
            let args = args![env.as_str(), issuer, kind, value, before, until, reason];
            change.tx.execute(&ADD_REVOCATION, args).await?;
        }
        change.commit().await.map(drop)
    }
}

fn listed(row: &Row) -> Result<KeyRow, ColumnError> {
    Ok(KeyRow {
        id: name(row, "key_id")?,
        user: name(row, "user_id")?,
        email: row.cell_or_null("email")?,
        name: row.cell("name")?,
        scopes: names(row, "scopes")?,
        created_at: time(row, "created_at")?,
        expires_at: time_or_null(row, "expires_at")?,
        revoked_at: time_or_null(row, "revoked_at")?,
    })
}
