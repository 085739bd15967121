//! Creating, migrating and opening a store, and the protection of the embedded one's file.

use super::world::{Folder, World, env, on_both};
use neural_guardian::store::{Store, StoreError, StoreOpen};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The migrations of this source tree, as a status names them.
fn migration_files(of_postgres: bool) -> Vec<String> {
    let folder = if of_postgres { "postgres" } else { "sqlite" };
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store").join(folder)).unwrap();
    let name = |file: fs::DirEntry| file.file_name().into_string().unwrap();
    let mut names: Vec<String> = files
        .map(|file| name(file.unwrap()).replacen('_', " ", 1).replace(".sql", ""))
        .collect();
    names.sort();
    names
}

on_both! {
    async fn migrating_again_does_nothing(world) {
        let status = world.proxy.status().await.unwrap();
        let applied = migration_files(world.is_postgres());
        assert_eq!((&status.applied, &status.pending[..], &status.unknown[..]), (&applied, &[][..], &[][..]));
        assert_eq!(status.version, i64::try_from(applied.len()).unwrap());
        let mut steps = Vec::new();
        world.admin.migrate(&mut |step| steps.push(step.to_owned())).await.unwrap();
        assert_eq!(steps, Vec::<String>::new());
        world.proxy.require_current().await.unwrap();
        assert_eq!(world.proxy.self_check(&env()).await.unwrap(), Vec::<String>::new());
    }

    async fn a_database_newer_than_this_program_is_refused(world) {
        let newer = if world.is_postgres() {
            "INSERT INTO guardian.migrations SELECT 99, 'later', now(), true, checksum, 1 FROM guardian.migrations WHERE version = 1"
        } else {
            "INSERT INTO migrations SELECT 99, 'later', 'now', true, checksum, 1 FROM migrations WHERE version = 1"
        };
        world.by_hand(newer).await;
        for error in [world.admin.migrate(&mut |_| ()).await.unwrap_err(), world.proxy.require_current().await.unwrap_err()] {
            let text = format!("{} is at schema version 99, this program knows {}: it needs a newer guardian", world.admin.location(), migration_files(world.is_postgres()).len());
            assert_eq!((error.to_string(), matches!(error, StoreError::NewerSchema { .. })), (text, true));
        }
        assert_eq!(world.proxy.status().await.unwrap().unknown, [99]);
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
    assert_eq!(store.status().await.unwrap().pending, migration_files(false));

    let mut steps = Vec::new();
    store.migrate(&mut |step| steps.push(step.to_owned())).await.unwrap();
    assert_eq!(steps, migration_files(false));
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
