//! Creating, migrating and opening a store, and the protection of the embedded one's file.

use super::world::{Folder, World, env, on_both};
use neural_guardian::store::{Store, StoreError, StoreOpen};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

on_both! {
    async fn migrating_again_does_nothing(world) {
        let status = world.proxy.status().await.unwrap();
        let applied: &[&str] = if world.is_postgres() { &["0001 guardian", "0002 feed_state", "0003 server_failures", "0004 audit_partitions"] } else { &["0001 guardian", "0002 server_failures"] };
        assert_eq!((status.applied.as_slice(), &status.pending[..], &status.unknown[..]), (&applied.iter().map(ToString::to_string).collect::<Vec<_>>()[..], &[][..], &[][..]));
        assert_eq!(status.version, i64::try_from(applied.len()).unwrap());
        let mut steps = Vec::new();
        world.admin.migrate(&mut |step| steps.push(step.to_owned())).await.unwrap();
        assert_eq!(steps, Vec::<String>::new());
        world.proxy.require_current().await.unwrap();
        assert_eq!(world.proxy.self_check(&env()).await.unwrap(), Vec::<String>::new());
    }

    async fn a_database_newer_than_this_program_is_refused(world) {
        let newer = if world.is_postgres() {
            "INSERT INTO guardian.migrations SELECT 7, 'later', now(), true, checksum, 1 FROM guardian.migrations WHERE version = 1"
        } else {
            "INSERT INTO migrations SELECT 7, 'later', 'now', true, checksum, 1 FROM migrations WHERE version = 1"
        };
        world.by_hand(newer).await;
        for error in [world.admin.migrate(&mut |_| ()).await.unwrap_err(), world.proxy.require_current().await.unwrap_err()] {
            let text = format!("{} is at schema version 7, this program knows {}: it needs a newer guardian", world.admin.location(), if world.is_postgres() { 4 } else { 2 });
            assert_eq!((error.to_string(), matches!(error, StoreError::NewerSchema { .. })), (text, true));
        }
        assert_eq!(world.proxy.status().await.unwrap().unknown, [7]);
    }

    async fn a_migration_that_was_another_one_is_refused(world) {
        world.by_hand(if world.is_postgres() { "UPDATE guardian.migrations SET checksum = 'x'" } else { "UPDATE migrations SET checksum = x'00'" }).await;
        let error = world.admin.migrate(&mut |_| ()).await.unwrap_err();
        assert!(error.to_string().ends_with("failed: migration 1 was applied with another text than this program has"), "{error}");
    }
}

#[tokio::test]
async fn a_new_file_is_told_to_be_migrated_and_then_is() {
    let folder = Folder::new();
    let store = create(&folder.file()).await.unwrap();
    let text = format!(
        "the database file `{}` has no tables of this version yet: run `guardian db migrate`",
        folder.file().display()
    );
    assert_eq!(store.require_current().await.unwrap_err().to_string(), text);
    assert_eq!(store.directory(&env()).await.unwrap_err().to_string(), text);
    assert_eq!(
        store.status().await.unwrap().pending,
        ["0001 guardian", "0002 server_failures"]
    );

    let mut steps = Vec::new();
    store.migrate(&mut |step| steps.push(step.to_owned())).await.unwrap();
    assert_eq!(steps, ["0001 guardian", "0002 server_failures"]);
    store.require_current().await.unwrap();
    store.close().await;
    assert!(open(&folder.file()).await.unwrap().status().await.unwrap().pending.is_empty());
}

#[tokio::test]
async fn nobody_else_can_read_the_file() {
    let folder = Folder::new();
    let store = create(&folder.file()).await.unwrap();
    assert_eq!(store.warnings(), Vec::<String>::new());
    store.migrate(&mut |_| ()).await.unwrap();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(
            entry.metadata().unwrap().permissions().mode() & 0o777,
            0o600,
            "{:?}",
            entry.path()
        );
    }
    store.close().await;

    fs::set_permissions(folder.file(), Permissions::from_mode(0o644)).unwrap();
    let store = open(&folder.file()).await.unwrap();
    let said = format!(
        "others could read the database file `{}` (mode 644): changed to 600",
        folder.file().display()
    );
    assert_eq!(store.warnings(), [said]);
    assert_eq!(fs::metadata(folder.file()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_said() {
    let folder = Folder::new();
    let file = folder.file();
    let said = async |file: &Path| {
        open(file)
            .await
            .unwrap_err()
            .to_string()
            .replace(folder.path().to_str().unwrap(), "…")
    };
    assert_eq!(said(&file).await, "the database file `…/guardian.db` does not exist");
    assert_eq!(said(folder.path()).await, "`…` is a folder, not a database file");
    fs::write(
        &file,
        "this is a letter to a friend, longer than a header of SQLite has to be, and so it goes on and on and on …",
    )
    .unwrap();
    assert_eq!(
        said(&file).await,
        "the database file `…/guardian.db` failed: the file is damaged or not an SQLite database"
    );
    let nowhere = folder.path().join("no/such/folder/guardian.db");
    let error = create(&nowhere)
        .await
        .unwrap_err()
        .to_string()
        .replace(folder.path().to_str().unwrap(), "…");
    assert_eq!(
        error,
        "cannot create the database file `…/no/such/folder/guardian.db`: No such file or directory (os error 2)"
    );
}

#[tokio::test]
async fn a_missing_trigger_is_a_reason_not_to_serve() {
    let world = World::sqlite().await;
    world.by_hand("DROP TRIGGER feed_key_u; DROP TRIGGER audit_no_delete").await;
    let problems = world.proxy.self_check(&env()).await.unwrap();
    assert_eq!(
        problems,
        ["trigger `audit_no_delete` is missing", "trigger `feed_key_u` is missing"]
    );
}

async fn create(file: &Path) -> Result<Store, StoreError> {
    Store::open(&StoreOpen::Sqlite {
        file: file.to_owned(),
        create: true,
    })
    .await
}

async fn open(file: &Path) -> Result<Store, StoreError> {
    Store::open(&StoreOpen::Sqlite {
        file: file.to_owned(),
        create: false,
    })
    .await
}
