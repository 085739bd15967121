//! Grants: which user may use which server, with which scopes.

use super::directory::grant_of;
use super::engine::{Row, Sql, args};
use super::unreadable::{ColumnError, name, or_left_out};
use super::users::{no_user, uuid_of};
use super::{Store, StoreError};
use crate::domain::{ClientId, EnvironmentName, Grant, GrantId, Scopes, ServerName, Timestamp, UserId};
use uuid::Uuid;

/// A grant to be made, or to take the place of the one for the same user, server and client.
#[derive(Debug, Clone)]
pub struct NewGrant {
    pub user: UserId,
    pub server: ServerName,
    /// `None`: any OAuth client of this user.
    pub client: Option<ClientId>,
    pub scopes: Scopes,
    pub expires_at: Option<Timestamp>,
    /// Not verified yet: it permits nothing until it is granted again without this.
    pub idle: bool,
}

/// A grant as administrators list it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct GrantRow {
    pub user: UserId,
    pub email: Option<String>,
    #[serde(flatten)]
    pub grant: Grant,
}

const PUT: Sql = Sql {
    postgres: "INSERT INTO mcp_authorizations AS g (id, environment, user_id, server_name, client_id, status, scopes, expires_at)
               VALUES ($1::uuid, $2, $3::uuid, $4, $5, $8, $6::jsonb, at_micros($7))
               ON CONFLICT ON CONSTRAINT one_grant DO UPDATE
               SET status = excluded.status, scopes = excluded.scopes, expires_at = excluded.expires_at
               RETURNING g.id::text AS id",
    sqlite: "INSERT INTO mcp_authorizations (id, environment, user_id, server_name, client_id, status, scopes, expires_at)
             VALUES ($1, $2, $3, $4, $5, $8, $6, $7)
             ON CONFLICT (environment, user_id, server_name, ifnull(client_id, '')) DO UPDATE
             SET status = excluded.status, scopes = excluded.scopes, expires_at = excluded.expires_at
             RETURNING id",
};

const REVOKE: Sql = Sql {
    postgres:
        "UPDATE mcp_authorizations SET status = 'revoked' WHERE environment = $1 AND user_id = $2::uuid AND server_name = $3
                 AND client_id IS NOT DISTINCT FROM $4 AND status <> 'revoked'",
    sqlite: "UPDATE mcp_authorizations SET status = 'revoked' WHERE environment = $1 AND user_id = $2 AND server_name = $3
               AND client_id IS $4 AND status <> 'revoked'",
};

const LIST: Sql = Sql {
    postgres: "SELECT g.user_id::text AS user_id, u.email, g.id::text AS grant_ref, g.server_name, g.client_id, g.status,
                 g.scopes::text AS scopes, micros(g.expires_at) AS expires_at, g.row_version
               FROM mcp_authorizations g JOIN users u ON u.environment = g.environment AND u.id = g.user_id
               WHERE g.environment = $1 AND ($2::text IS NULL OR g.user_id = $2::uuid)
               ORDER BY u.email, g.user_id, g.server_name, coalesce(g.client_id, '')",
    sqlite:
        "SELECT g.user_id, u.email, g.id AS grant_ref, g.server_name, g.client_id, g.status, g.scopes, g.expires_at, g.row_version
             FROM mcp_authorizations g JOIN users u ON u.environment = g.environment AND u.id = g.user_id
             WHERE g.environment = $1 AND ($2 IS NULL OR g.user_id = $2)
             ORDER BY u.email, g.user_id, g.server_name, coalesce(g.client_id, '')",
};

impl Store {
    /// Grants, or grants anew: the result holds exactly these scopes.
    pub async fn add_grant(&self, env: &EnvironmentName, grant: &NewGrant) -> Result<GrantId, StoreError> {
        let scopes: Vec<&str> = grant.scopes.iter().map(|scope| scope.as_str()).collect();
        let args = args![
            Uuid::new_v4().to_string(),
            env.as_str(),
            uuid_of(&grant.user)?,
            grant.server.as_str(),
            grant.client.as_ref().map(|client| client.as_str()),
            serde_json::json!(scopes).to_string(),
            grant.expires_at.map(Timestamp::micros),
            if grant.idle { "idle" } else { "verified" },
        ];
        let mut change = self.change(env).await?;
        let row = match change.tx.fetch_one(&PUT, args).await {
            Err(StoreError::NotFound(_)) => return Err(no_user(env, &grant.user)),
            row => row?,
        };
        let row = row.expect("an upsert returns its row");
        let id = GrantId::parse(&row.get::<String>("id")?).expect("a UUID is a grant id");
        change.commit().await?;
        Ok(id)
    }

    /// Whether there was such a grant that was not revoked yet.
    pub async fn revoke_grant(
        &self,
        env: &EnvironmentName,
        user: &UserId,
        server: &ServerName,
        client: Option<&ClientId>,
    ) -> Result<bool, StoreError> {
        let client = client.map(|client| client.as_str());
        let args = args![env.as_str(), uuid_of(user)?, server.as_str(), client];
        let mut change = self.change(env).await?;
        let revoked = change.tx.execute(&REVOKE, args).await? > 0;
        change.commit().await?;
        Ok(revoked)
    }

    /// Of one user, or of all.
    pub async fn list_grants(&self, env: &EnvironmentName, user: Option<&UserId>) -> Result<Vec<GrantRow>, StoreError> {
        let user = user.map(uuid_of).transpose()?;
        let mut grants = Vec::new();
        for row in self.query(&LIST, args![env.as_str(), user]).await? {
            grants.extend(or_left_out(
                listed(&row),
                &row,
                "mcp_authorizations",
                &["user_id", "grant_ref"],
            ));
        }
        Ok(grants)
    }
}

fn listed(row: &Row) -> Result<GrantRow, ColumnError> {
    Ok(GrantRow {
        user: name(row, "user_id")?,
        email: row.cell_or_null("email")?,
        grant: grant_of(row)?,
    })
}
