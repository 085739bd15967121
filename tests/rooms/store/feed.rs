//! What the state of the change feed tells on Postgres: which changes it would miss, and when it has to be read anew.

use super::world::{Place, World, env, raw_postgres};
use neural_guardian::store::{CatchUp, StoreError};

const MAPPED: &str =
    "SELECT environment, user_ref, server_name, client_id, status, scopes, expires_at, grant_ref, row_version FROM";
const TABLE: &str = "(environment text, user_ref uuid, server_name text, client_id text, status text, scopes jsonb,
  expires_at timestamptz, grant_ref uuid, row_version bigint)";

/// What a directory is refused for after `sql`; `None` if it is not.
async fn gap_after(sql: &str) -> Option<String> {
    let world = World::postgres().await;
    world.by_hand(sql).await;
    match world.proxy.directory(&env()).await {
        Ok(_) => None,
        Err(StoreError::FeedMissing { what, .. }) => Some(what),
        Err(error) => panic!("{error}"),
    }
}

fn attached(table: &str, environment: &str) -> String {
    format!("SELECT guardian.attach_change_feed('{table}', 'grant', '{environment}', 'user_ref', '', '')")
}

#[tokio::test]
async fn a_mapped_table_with_its_feed_has_no_gap() {
    let own = format!(
        "CREATE TABLE schema.theirs {TABLE}; GRANT SELECT ON schema.theirs TO PUBLIC; {};
         CREATE OR REPLACE VIEW schema.grants AS {MAPPED} schema.theirs",
        attached("guardian.theirs", "environment")
    );
    assert_eq!(gap_after(&own).await, None);
    let partitioned = format!(
        "CREATE TABLE schema.theirs {TABLE} PARTITION BY LIST (environment);
         CREATE TABLE schema.part PARTITION OF schema.theirs FOR VALUES IN ('production');
         GRANT SELECT ON schema.theirs TO PUBLIC; {};
         CREATE OR REPLACE VIEW schema.grants AS {MAPPED} schema.theirs",
        attached("guardian.theirs", "=production")
    );
    assert_eq!(gap_after(&partitioned).await, None);
}

#[tokio::test]
async fn what_the_feed_would_not_tell_of_is_named() {
    let table = format!("CREATE TABLE schema.theirs {TABLE}; GRANT SELECT ON schema.theirs TO PUBLIC;");
    for (sql, told) in [
        (
            format!("{table} CREATE OR REPLACE VIEW schema.grants AS {MAPPED} schema.theirs"),
            "change feed is missing or disabled on `theirs`",
        ),
        (
            format!(
                "{table} {}; CREATE OR REPLACE VIEW schema.grants AS {MAPPED} schema.theirs",
                attached("guardian.theirs", "tenant")
            ),
            "the change feed of `theirs` names a column `tenant` that is not there",
        ),
        (
            format!(
                "CREATE TABLE schema.theirs {TABLE} PARTITION BY LIST (environment);
                 CREATE TABLE schema.part PARTITION OF schema.theirs FOR VALUES IN ('production');
                 GRANT SELECT ON schema.theirs TO PUBLIC; {};
                 ALTER TABLE schema.part DISABLE TRIGGER ALL;
                 CREATE OR REPLACE VIEW schema.grants AS {MAPPED} schema.theirs",
                attached("guardian.theirs", "environment")
            ),
            "change feed is missing or disabled on `part`",
        ),
        (
            "CREATE FUNCTION schema.status_of(uuid) RETURNS text LANGUAGE sql STABLE AS 'SELECT ''verified''::text';
             CREATE OR REPLACE VIEW schema.grants WITH (security_invoker = true) AS
               SELECT environment, user_id AS user_ref, server_name, client_id, schema.status_of(user_id) AS status, scopes,
                 expires_at, id AS grant_ref, row_version FROM schema.mcp_authorizations"
                .to_owned(),
            "the view `grants` reads through the function `status_of`",
        ),
        (
            "ALTER TABLE schema.revocations RENAME TO revocations_of_old;
             CREATE TABLE schema.bans (LIKE schema.revocations_of_old);
             CREATE VIEW schema.revocations AS SELECT * FROM schema.bans; GRANT SELECT ON schema.revocations TO guardian_proxy"
                .to_owned(),
            "change feed is missing or disabled on `bans`",
        ),
    ] {
        let gap = gap_after(&sql).await.unwrap_or_default();
        assert!(gap.contains(told), "{gap:?} does not tell {told:?}");
    }
}

/// Each may have hidden a change, so that what is in memory has to be read anew.
#[tokio::test]
async fn another_trigger_table_or_view_forces_a_reload() {
    let world = World::postgres().await;
    let Place::Postgres(server) = &world.place else {
        unreachable!("a Postgres world")
    };
    let owner = server.database.url();
    let table = format!(
        "CREATE TABLE guardian.theirs {TABLE} PARTITION BY LIST (environment);
         CREATE TABLE guardian.part PARTITION OF guardian.theirs FOR VALUES IN ('production');
         CREATE TABLE guardian.other PARTITION OF guardian.theirs FOR VALUES IN ('other');
         GRANT SELECT ON guardian.theirs TO PUBLIC; {};
         CREATE OR REPLACE VIEW guardian.grants AS {MAPPED} guardian.theirs",
        attached("guardian.theirs", "environment")
    );
    raw_postgres(&owner, &table).await.unwrap();
    world.user("a@example.com").await;
    for change in [
        "ALTER TABLE guardian.theirs DISABLE TRIGGER guardian_feed; ALTER TABLE guardian.theirs ENABLE TRIGGER guardian_feed",
        "TRUNCATE guardian.part",
        "ALTER TABLE guardian.theirs DETACH PARTITION guardian.other",
        "CREATE OR REPLACE VIEW guardian.grants AS SELECT environment, user_ref, server_name, client_id, 'revoked'::text AS status,
           scopes, expires_at, grant_ref, row_version FROM guardian.theirs",
    ] {
        let anchor = world.proxy.directory(&env()).await.unwrap().anchor;
        assert!(matches!(world.proxy.catch_up(&env(), &anchor).await.unwrap(), CatchUp::Since(_)));
        raw_postgres(&owner, change).await.unwrap();
        assert_eq!(world.proxy.catch_up(&env(), &anchor).await.unwrap(), CatchUp::Reload, "{change}");
    }
}
