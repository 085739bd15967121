//! What happens to the store while Guardian serves: a disk that fills up, a file that is replaced, a feed that loses a trigger.

use crate::support::client::Client;
use crate::support::issuer::Issuer;
use crate::support::stores::{Engine, execute_in_file};
use crate::support::upstream::Upstream;
use crate::support::wait::eventually;
use crate::support::world::World;
use crate::{ana, ana_reads_files};
use serde_json::json;
use std::fs;

const ISS: &str = "https://id.example.test";

/// SQLite rolls a transaction back by itself when its disk is full. The connection must not be unusable ever after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_the_store_only_while_it_lasts() {
    let mut world = World::new(Engine::Sqlite).await;
    let files = Upstream::start().await;
    world.server("files", &files.url, "catalogue_refresh = '1s'");
    let key = ana(&mut world).await;
    let issuer = Issuer::es256(ISS);
    world.folder.write("jwks.json", &issuer.key_set().to_string());
    world.issuer("id", ISS, "kind = 'oidc'\njwks_file = 'jwks.json'");
    world
        .set("members.just_in_time", "true")
        .set("members.just_in_time_roles", "['reader']")
        .set("limits.per_principal", "{ rate = 100000, per = '1s' }")
        .set("journal.segment_bytes", "262144");
    world.start().await;
    let client = world.connected("files", &key).await;

    // The journal's segments stay below this limit; the write-ahead log of the database reaches it.
    world.limit_files(Some(1_048_576));
    eventually("the database to refuse records", async || {
        call_often(&client, 100).await;
        says_degraded(&world, "the database does not take records").await
    })
    .await;
    world.limit_files(None);

    world.shipped().await;
    let recorded = world.audit("--tool echo --decision allow").len();
    assert_eq!(recorded, files.calls().len());
    // Enrolment and pins are written over the same connection.
    let token = issuer.token("newcomer", &world.resource("files"));
    assert_eq!(
        world.client("files").bearer(&token).handshake().await.verdict(),
        "200 no_grant"
    );
    assert!(world.guardian("user list --json").ok().stdout.contains("newcomer"));
    files.redescribe("echo", "Says it back, and more.");
    eventually("the changed definition to be written down", async || {
        // Its exit code tells that a tool waits to be pinned.
        let listed = world.guardian("server catalog files --json").stdout;
        listed.contains("changed").then_some(())
    })
    .await;
}

/// A backup that is put in place of the database is what counts from then on, and what is recorded goes there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_file_that_is_replaced_is_taken_up() {
    let mut world = World::new(Engine::Sqlite).await;
    let (files, _key, client) = serving(&mut world, "'2s'").await;

    // As an operator restores a backup. The log of the old database would be replayed over it, so it has to go too.
    let (file, backup) = (world.file("data/guardian.db"), world.file("data/backup.db"));
    execute_in_file(&file, &format!("VACUUM INTO '{}'", backup.display())).await;
    fs::rename(&backup, &file).unwrap();
    eventually("calls to be refused while the old log lies beside the file", async || {
        let answer = client.call("echo", json!({ "text": "hi" })).await;
        (answer.verdict() == "200 stale_authorization").then_some(())
    })
    .await;
    says_degraded(&world, "remove the `-wal` and `-shm` files").await.unwrap();
    remove_log(&world);
    world.revoke("ana", "files");
    eventually("the revocation in the new file to bind", async || {
        let answer = client.call("echo", json!({ "text": "hi" })).await;
        (answer.verdict() == "200 grant_revoked").then_some(())
    })
    .await;
    let reached = files.calls().len();
    call_often(&client, 5).await;
    assert_eq!(files.calls().len(), reached);

    world.shipped().await;
    let denied = world.audit("--tool echo --reason grant_revoked").len();
    assert!(
        denied >= 6,
        "{denied} refusals are in the file that the store's name leads to"
    );
    assert_eq!(world.audit("--tool echo --decision allow").len(), reached);
    assert!(world.log().contains("the database file was replaced while serving"));
}

/// What other processes commit goes to a new log then, which the open connections would never read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_whose_log_was_removed_is_not_trusted() {
    let mut world = World::new(Engine::Sqlite).await;
    let (files, key, client) = serving(&mut world, "'1s'").await;

    // Nothing is in the log alone, so that removing it loses nothing that the story needs.
    execute_in_file(&world.file("data/guardian.db"), "PRAGMA wal_checkpoint(TRUNCATE)").await;
    remove_log(&world);
    world.revoke("ana", "files");
    eventually("calls to be refused", async || {
        let answer = client.call("echo", json!({ "text": "hi" })).await;
        (answer.verdict() == "200 stale_authorization").then_some(())
    })
    .await;
    says_degraded(&world, "was removed or replaced while in use: restart Guardian")
        .await
        .unwrap();
    let reached = files.calls().len();

    world.kill();
    world.start().await;
    let refused = world.client("files").bearer(&key).handshake().await;
    assert_eq!(refused.verdict(), "200 grant_revoked");
    assert_eq!(files.calls().len(), reached);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_its_database_file_gone_nothing_is_permitted_and_nothing_lost() {
    let mut world = World::new(Engine::Sqlite).await;
    let (files, _key, client) = serving(&mut world, "'1s'").await;

    let (file, aside) = (world.file("data/guardian.db"), world.file("data/aside.db"));
    fs::rename(&file, &aside).unwrap();
    eventually("calls to be refused", async || {
        let answer = client.call("echo", json!({ "text": "hi" })).await;
        (answer.verdict() == "200 stale_authorization").then_some(())
    })
    .await;
    says_degraded(&world, "guardian.db` does not exist").await.unwrap();

    fs::rename(&aside, &file).unwrap();
    eventually("calls to be permitted again", async || {
        client.call("echo", json!({ "text": "hi" })).await.is_result().then_some(())
    })
    .await;
    world.shipped().await;
    assert_eq!(world.audit("--tool echo --decision allow").len(), files.calls().len());
    assert_eq!(world.health().await["status"], "ok");
}

/// A table behind the view `guardian.grants` that tells of no change could hide a revocation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapped_table_without_its_feed_is_not_served() {
    let mut world = World::new(Engine::Postgres).await;
    let (files, key) = ana_reads_files(&mut world).await;
    world
        .set("grants.max_staleness", "'2s'")
        .set("grants.confirm_after", "'500ms'");
    map_grants(&world).await;
    let refused = world.guardian("check");
    assert!(
        refused.code != 0 && format!("{refused:?}").contains("change feed is missing or disabled on `public.their_grants`"),
        "{refused:?}"
    );
    world.sql(ATTACH).await;
    world.start().await;
    let client = world.connected("files", &key).await;
    assert_eq!(client.call("echo", json!({ "text": "hi" })).await.text(), "hi");

    world
        .sql("ALTER TABLE public.their_grants DISABLE TRIGGER guardian_feed")
        .await;
    world.sql("UPDATE public.their_grants SET status = 'revoked'").await;
    eventually("calls to be refused", async || {
        let answer = client.call("echo", json!({ "text": "hi" })).await;
        (answer.verdict() == "200 feed_missing").then_some(())
    })
    .await;
    let reached = files.calls().len();
    call_often(&client, 5).await;
    assert_eq!(files.calls().len(), reached);
    says_degraded(&world, "change feed is missing or disabled on `public.their_grants`")
        .await
        .unwrap();

    // What was changed meanwhile is known as soon as the feed is whole again.
    world
        .sql("ALTER TABLE public.their_grants ENABLE TRIGGER guardian_feed")
        .await;
    eventually("the revocation to be known", async || {
        let answer = client.call("echo", json!({ "text": "hi" })).await;
        (answer.verdict() == "200 grant_revoked").then_some(())
    })
    .await;
    assert_eq!(files.calls().len(), reached);

    // The same where the trigger was away between two confirmations.
    world
        .sql(
            "BEGIN; ALTER TABLE public.their_grants DISABLE TRIGGER guardian_feed;
             UPDATE public.their_grants SET status = 'verified';
             ALTER TABLE public.their_grants ENABLE TRIGGER guardian_feed; COMMIT",
        )
        .await;
    eventually("the grant to be known", async || {
        client.call("echo", json!({ "text": "hi" })).await.is_result().then_some(())
    })
    .await;
}

const ATTACH: &str =
    "SELECT {t}attach_change_feed('public.their_grants', 'grant', 'environment', 'user_id', 'server_name', 'id')";

/// The platform's own table of grants behind the view that the proxy reads, with a copy of what was granted.
async fn map_grants(world: &World) {
    world
        .sql(
            "CREATE TABLE public.their_grants AS SELECT * FROM {t}mcp_authorizations;
             GRANT SELECT ON public.their_grants TO guardian_proxy;
             CREATE VIEW public.granted WITH (security_invoker = true) AS SELECT * FROM public.their_grants;
             GRANT SELECT ON public.granted TO guardian_proxy;
             CREATE OR REPLACE VIEW {t}grants WITH (security_invoker = true) AS
               SELECT environment, user_id AS user_ref, server_name, client_id, status, scopes, expires_at,
                      id AS grant_ref, row_version FROM public.granted",
        )
        .await;
}

/// Guardian serves Ana, who has called five times, and every record of it is in the database.
async fn serving(world: &mut World, max_staleness: &str) -> (Upstream, String, Client) {
    let (files, key) = ana_reads_files(world).await;
    world
        .set("grants.max_staleness", max_staleness)
        .set("grants.confirm_after", "'500ms'");
    world.start().await;
    let client = world.connected("files", &key).await;
    call_often(&client, 5).await;
    world.shipped().await;
    (files, key, client)
}

async fn call_often(client: &Client, times: usize) {
    for _ in 0..times {
        client.call("echo", json!({ "text": "hi" })).await;
    }
}

async fn says_degraded(world: &World, what: &str) -> Option<()> {
    let health = world.health().await;
    (health["status"] == "degraded" && health["degraded"].to_string().contains(what)).then_some(())
}

fn remove_log(world: &World) {
    for beside in ["data/guardian.db-wal", "data/guardian.db-shm"] {
        fs::remove_file(world.file(beside)).unwrap();
    }
}
