//! What must hold of the database before a proxy serves with it. Looks, and makes audit partitions ahead; changes nothing else.

use super::engine::{Sql, StoreLocation, args};
use super::{Store, StoreError};
use crate::domain::EnvironmentName;

const SELF_CHECK: Sql = Sql::of_postgres("SELECT problem FROM self_check($1) UNION ALL SELECT problem FROM unrecorded_changes()");
const BIND_ROLE: Sql = Sql::of_postgres("SELECT bind_role($1, $2)::text");

/// Without one of these the audit trail could be edited or a change be missed.
const TRIGGERS: Sql = Sql {
    postgres: "",
    sqlite: "SELECT wanted.value AS name FROM json_each($1) AS wanted
             WHERE NOT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'trigger' AND name = wanted.value)",
};

/// What makes a commit survive a loss of power, and the triggers and references hold.
const PRAGMAS: &[(Sql, &str, i64)] = &[
    (Sql::same("PRAGMA synchronous"), "synchronous", 2),
    (Sql::same("PRAGMA foreign_keys"), "foreign_keys", 1),
    (Sql::same("PRAGMA recursive_triggers"), "recursive_triggers", 1),
];

impl Store {
    /// Reasons not to serve this environment, as the proxy's own login; none is good.
    pub async fn self_check(&self, env: &EnvironmentName) -> Result<Vec<String>, StoreError> {
        match self {
            Store::Postgres(_) => {
                let rows = self.query(&SELF_CHECK, args![env.as_str()]).await?;
                rows.iter().map(|row| row.get("problem")).collect()
            }
            Store::Sqlite(engine) => check_file(self, &engine.location).await,
        }
    }

    /// Makes the audit partitions of this month and the next two. Returns what it made.
    pub async fn ensure_partitions(&self) -> Result<Vec<String>, StoreError> {
        match self {
            Store::Postgres(engine) => engine.ensure_partitions().await,
            Store::Sqlite(_) => Ok(Vec::new()),
        }
    }

    /// Lets a login role act in an environment (Postgres; the embedded store has no roles).
    pub async fn bind_role(&self, role: &str, env: &EnvironmentName) -> Result<(), StoreError> {
        let Store::Postgres(_) = self else {
            return Err(StoreError::Invalid("the embedded store has no roles to bind".to_owned()));
        };
        let mut change = self.change(env).await?;
        change.tx.fetch(&BIND_ROLE, args![role, env.as_str()]).await?;
        change.commit().await.map(drop)
    }
}

/// The same for an SQLite file.
pub(super) async fn check_file(store: &Store, location: &StoreLocation) -> Result<Vec<String>, StoreError> {
    let mut problems = Vec::new();
    // on the connection that writes
    let mut tx = store.write().await?;
    for row in tx.fetch(&Sql::same("PRAGMA journal_mode"), args![]).await? {
        let mode: String = row.get("journal_mode")?;
        if mode != "wal" {
            problems.push(format!("{} is in journal mode `{mode}`, not `wal`", location));
        }
    }
    for (pragma, name, wanted) in PRAGMAS {
        for row in tx.fetch(pragma, args![]).await? {
            let is: i64 = row.get(name)?;
            if is != *wanted {
                problems.push(format!("{} is used with {name} = {is}, not {wanted}", location));
            }
        }
    }
    let feeds = ["grant", "key", "user", "identity", "registry", "revocation", "catalogue"];
    let mut wanted = vec!["audit_no_update".to_owned(), "audit_no_delete".to_owned()];
    wanted.extend(
        feeds
            .iter()
            .flat_map(|feed| ["i", "u", "d"].map(|op| format!("feed_{feed}_{op}"))),
    );
    wanted.extend(["recorded_no_update", "recorded_no_delete", "own_record_insert"].map(str::to_owned));
    let recorded = ["grant", "key", "user", "identity", "registry", "revocation", "pin", "setting"];
    wanted.extend(
        recorded
            .iter()
            .flat_map(|table| ["i", "u", "d"].map(|op| format!("own_{table}_{op}"))),
    );
    for row in tx.fetch(&TRIGGERS, args![serde_json::json!(wanted).to_string()]).await? {
        problems.push(format!("trigger `{}` is missing", row.get::<String>("name")?));
    }
    Ok(problems)
}
