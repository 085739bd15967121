//! Before the first call is admitted the journal is compared with the audit trail. A start that finds less than there was is
//! refused, in numbers, until the operator accepts the gap; that is put on record.

use crate::ana_reads_files;
use crate::support::on_both_stores;
use crate::support::stores::Engine;
use crate::support::wait::eventually;
use crate::support::world::{Ended, World};
use serde_json::json;
use std::fs;
use std::path::Path;

const DISAGREES: i32 = 5;

on_both_stores! {
    async fn an_older_backup_of_the_database_is_noticed_and_the_gap_put_on_record(world: World) {
        let (files, key) = ana_reads_files(&mut world).await;
        world.set("journal.keep_shipped", "'0s'");
        run(&mut world, &key, 3).await;
        run(&mut world, &key, 4).await;
        let before = world.audit("--kind any").len();
        restore_backup(&world, 3).await;

        let refused = refused(&world);
        assert!(refused.contains("were shipped and are neither in the trail nor in the journal"), "{refused}");
        assert!(refused.contains("records 3 to "), "{refused}");
        assert!(refused.contains("which the journal still holds"), "{refused}");
        assert!(refused.contains("--accept-gap"), "{refused}");
        assert_eq!(files.calls().len(), 7);

        world.start_with(&["--accept-gap"]).await;
        world.shipped().await;
        let echoes = world.audit("--tool echo").len();
        assert!((4..7).contains(&echoes), "the second run is whole again, of the first some is gone: {echoes}");
        let gaps = world.audit("--kind gap");
        assert_eq!(gaps.len(), 1, "{gaps:?}");
        let detail = gaps[0]["detail"].as_str().unwrap();
        assert!(detail.contains("records 3 to ") && detail.contains("accepted by"), "{detail}");
        world.stop().await;
        assert!(world.audit("--kind any").len() < before + 10);

        // What was accepted is not asked about again.
        run(&mut world, &key, 1).await;
        assert_eq!(world.audit("--kind gap").len(), 1);
    }

    /// What was shipped is kept for a day.
    async fn after_an_older_backup_what_is_kept_is_shipped_again(world: World) {
        let (_files, key) = ana_reads_files(&mut world).await;
        run(&mut world, &key, 3).await;
        run(&mut world, &key, 4).await;
        restore_backup(&world, 3).await;

        let refused = refused(&world);
        assert!(refused.contains("were shipped and are not in the trail; the journal still keeps them"), "{refused}");
        assert!(!refused.contains("neither in the trail nor in the journal"), "{refused}");
        world.start_with(&["--accept-gap"]).await;
        world.shipped().await;
        eventually("all calls to be in the trail again", async || (world.audit("--tool echo").len() == 7).then_some(())).await;
        assert_eq!(world.audit("--kind gap").len(), 1);
        world.stop().await;
        run(&mut world, &key, 1).await;
        assert_eq!((world.audit("--tool echo").len(), world.audit("--kind gap").len()), (8, 1));
    }

    async fn a_deleted_journal_is_noticed_and_a_new_instance_starts_freely(world: World) {
        let (_files, key) = ana_reads_files(&mut world).await;
        run(&mut world, &key, 2).await;
        fs::remove_dir_all(world.file("data/journal")).unwrap();

        let refused = refused(&world);
        assert!(refused.contains("is missing: the folder held none of its records"), "{refused}");
        assert!(refused.contains("what was not shipped is lost"), "{refused}");
        world.start_with(&["--accept-gap"]).await;
        world.shipped().await;
        assert_eq!(world.audit("--kind gap").len(), 1);
        world.stop().await;
        run(&mut world, &key, 1).await;

        fs::remove_dir_all(world.file("data/journal")).unwrap();
        fs::remove_file(world.file("data/instance")).unwrap();
        run(&mut world, &key, 1).await;
        assert_eq!(world.audit("--tool echo").len(), 4);
    }

    /// The commit is done and the watermark not written: no fault.
    async fn a_watermark_that_says_too_little_is_no_fault(world: World) {
        let (_files, key) = ana_reads_files(&mut world).await;
        run(&mut world, &key, 2).await;
        let watermark = world.file("data/journal/shipped");
        fs::write(&watermark, vec![0; fs::read(&watermark).unwrap().len()]).unwrap();
        world.start().await;
        world.shipped().await;
        assert_eq!(world.audit("--tool echo").len(), 2);
        world.stop().await;
    }
}

/// Records that no database ever took are marked as shipped: the checksum of the mark is no secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_watermark_is_noticed_and_the_records_are_shipped_again() {
    let mut world = World::new(Engine::Postgres).await;
    let (files, key) = ana_reads_files(&mut world).await;
    world
        .set("grants.max_staleness", "'60s'")
        .set("grants.confirm_after", "'30s'");
    world.start().await;
    world.shipped().await;
    let client = world.connected("files", &key).await;
    world.database.as_ref().unwrap().go_down().await;
    for _ in 0..10 {
        client.call("echo", json!({ "text": "unshipped" })).await.text();
    }
    world.kill();
    world.database.as_ref().unwrap().come_back().await;
    forge_watermark(&world.file("data/journal"));

    let refused = refused(&world);
    assert!(refused.contains("which the journal still holds"), "{refused}");
    world.start_with(&["--accept-gap"]).await;
    world.shipped().await;
    assert_eq!(world.audit("--tool echo --decision allow").len(), files.calls().len());
    assert_eq!(files.calls().len(), 10);
    world.stop().await;
    world.start().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_folder_that_is_older_than_the_trail_is_noticed() {
    let mut world = World::new(Engine::Sqlite).await;
    let (_files, key) = ana_reads_files(&mut world).await;
    run(&mut world, &key, 1).await;
    let (journal, copy, newer) = (world.file("data/journal"), world.file("copy"), world.file("newer"));
    copy_folder(&journal, &copy);
    run(&mut world, &key, 1).await;
    fs::rename(&journal, &newer).unwrap();
    copy_folder(&copy, &journal);

    let refused = refused(&world);
    assert!(
        refused.contains("goes on where this journal stood") && refused.contains("runs with a copy of it"),
        "{refused}"
    );
    fs::remove_dir_all(&journal).unwrap();
    fs::rename(&newer, &journal).unwrap();
    run(&mut world, &key, 1).await;
}

/// Whoever may drop old partitions does not make the next start impossible.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_retention_dropped_are_not_missed() {
    let mut world = World::new(Engine::Postgres).await;
    let (_files, key) = ana_reads_files(&mut world).await;
    run(&mut world, &key, 2).await;
    delete_rows(&world, 0).await;
    // As `drop_expired_partitions` notes it, for a month that is not over yet.
    let month = "to_char(now() AT TIME ZONE 'UTC', 'YYYYMM')";
    world
        .sql(&format!(
            "INSERT INTO guardian.retention_log (partition_name, rows_dropped) VALUES ('audit_trail_' || {month}, 1)"
        ))
        .await;
    run(&mut world, &key, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_tail_that_is_cut_off_is_told() {
    let mut world = World::new(Engine::Sqlite).await;
    let (_files, key) = ana_reads_files(&mut world).await;
    world.start().await;
    let client = world.connected("files", &key).await;
    client.call("echo", json!({ "text": "hi" })).await.text();
    world.shipped().await;
    world.kill();
    let segment = newest_segment(&world.file("data/journal"));
    let mut bytes = fs::read(&segment).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    bytes.truncate(end);
    bytes.extend([7; 100]);
    fs::write(&segment, bytes).unwrap();

    world.start().await;
    let log = world.log();
    assert!(
        log.contains("a torn tail of the journal was cut off") && log.contains(r#""bytes":100"#),
        "{log}"
    );
}

/// Serves for so many calls, until all of it is shipped.
async fn run(world: &mut World, key: &str, calls: usize) {
    world.start().await;
    let client = world.connected("files", key).await;
    for _ in 0..calls {
        assert_eq!(client.call("echo", json!({ "text": "hi" })).await.text(), "hi");
    }
    world.shipped().await;
    world.stop().await;
}

/// What a start says that is refused.
fn refused(world: &World) -> String {
    let Ended { code, stderr, .. } = world.guardian("serve");
    assert_eq!(code, DISAGREES, "{stderr}");
    stderr
}

/// The trail as it was when it had the first `kept` records of each start.
async fn restore_backup(world: &World, kept: usize) {
    delete_rows(world, kept).await;
}

async fn delete_rows(world: &World, from: usize) {
    let delete = format!("DELETE FROM {{t}}audit_trail WHERE bytes IS NOT NULL AND seq >= {from}");
    if world.database.is_some() {
        let trigger = |how: &str| format!("ALTER TABLE {{t}}audit_trail {how} TRIGGER audit_append_only");
        world
            .sql(&format!("{}; {delete}; {}", trigger("DISABLE"), trigger("ENABLE")))
            .await;
    } else {
        let trigger = "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit_trail
             WHEN OLD.occurred_at > (SELECT micros FROM clock)
               - 86400000000 * (SELECT max(30, CAST(value AS INTEGER)) FROM settings WHERE key = 'audit_retention_days')
             BEGIN SELECT RAISE(ABORT, 'audit_trail is append-only: DELETE refused'); END";
        world.sql(&format!("DROP TRIGGER audit_no_delete; {delete}; {trigger}")).await;
    }
}

/// Writes into both slots that everything in the folder is shipped.
fn forge_watermark(folder: &Path) {
    let text = String::from_utf8_lossy(&fs::read(newest_segment(folder)).unwrap()).into_owned();
    let last = text.rsplit(r#"{"v":2,"incarnation":""#).next().unwrap();
    let incarnation = u128::from_str_radix(&last[..32], 16).unwrap();
    let seq = last.split(r#""seq":"#).nth(1).unwrap().split(',').next().unwrap();
    let mut slot = [0; 64];
    slot[..8].copy_from_slice(b"NGSHIPD1");
    slot[8..16].copy_from_slice(&1_000_u64.to_le_bytes());
    slot[16..32].copy_from_slice(&incarnation.to_be_bytes());
    slot[32..40].copy_from_slice(&(seq.parse::<u64>().unwrap() + 1).to_le_bytes());
    let crc = crc32c::crc32c(&slot[..60]);
    slot[60..].copy_from_slice(&crc.to_le_bytes());
    let file = folder.join("shipped");
    let mut bytes = fs::read(&file).unwrap();
    bytes[..64].copy_from_slice(&slot);
    fs::write(&file, bytes).unwrap();
}

fn newest_segment(folder: &Path) -> std::path::PathBuf {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let segments = files.filter(|file| file.extension().is_some_and(|extension| extension == "seg"));
    segments.max().unwrap()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
