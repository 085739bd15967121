//! The documents that decisions were made by, and the random bytes of each person: who may do what with them.

use super::world::{Folder, Place, World, env, on_both, parse, raw_postgres};
use neural_guardian::domain::{Digest, DocumentKind, EnvironmentName, KeptDocument, Timestamp};
use neural_guardian::journal::{Journal, JournalSettings, Shipper, StartFacts};
use neural_guardian::store::StoreError;
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

fn set(text: &str) -> KeptDocument {
    KeptDocument::new(DocumentKind::PolicySet, text)
}

on_both! {
    async fn a_document_is_there_once_and_never_changes(world) {
        let documents = [set("one"), KeptDocument::new(DocumentKind::Tool, "one"), set("two")];
        assert_eq!(world.proxy.ship_documents(&env(), &documents[..2]).await.unwrap(), 2);
        assert_eq!(world.proxy.ship_documents(&env(), &documents).await.unwrap(), 1);
        assert_eq!(world.proxy.ship_documents(&env(), &[]).await.unwrap(), 0);
        for document in &documents {
            let found = world.admin.document(&env(), document.kind, &document.digest).await.unwrap();
            assert_eq!(found.as_ref(), Some(document));
        }
        assert_eq!(world.admin.document_kinds(&env(), &documents[0].digest).await.unwrap(), [DocumentKind::PolicySet, DocumentKind::Tool]);
        assert_eq!(world.admin.document(&env(), DocumentKind::Catalogue, &documents[0].digest).await.unwrap(), None);
        let table = if world.is_postgres() { "guardian.policy_documents" } else { "policy_documents" };
        for sql in [format!("UPDATE {table} SET kind = 'tool'"), format!("DELETE FROM {table}")] {
            let refused = world.try_by_hand(&sql).await.unwrap_err().to_string();
            assert!(refused.contains("append-only"), "{refused}");
        }
    }

    // What was forged into the table is not taken for what its hash names.
    async fn what_is_not_as_its_hash_says_is_refused(world) {
        let (forged, digest) = ("666f72676564", Digest::of(b"true"));
        let (table, bytes) = if world.is_postgres() { ("guardian.policy_documents", format!("'\\x{digest}', '\\x{forged}'")) } else { ("policy_documents", format!("x'{digest}', x'{forged}'")) };
        let put = world.try_by_hand(&format!("INSERT INTO {table} (environment, kind, digest, content) VALUES ('production', 'policy_set', {bytes})")).await;
        if world.is_postgres() {
            assert!(put.unwrap_err().to_string().contains("check constraint"), "the database itself checks it");
        } else {
            put.unwrap();
            let error = world.admin.document(&env(), DocumentKind::PolicySet, &digest).await.unwrap_err();
            assert!(matches!(error, StoreError::Broken { .. }) && error.to_string().contains("is not what its hash says"), "{error}");
        }
    }

    // An instance dies before its documents are shipped; the next one ships them, and then they leave its folder.
    async fn documents_reach_the_store_through_a_restart_and_leave_the_folder_then(world) {
        let folder = Folder::new();
        let dir = folder.path().join("journal");
        let journal = journal(&dir);
        journal.keep_documents(&[set("one"), set("two")]).await.unwrap();
        journal.keep_documents(&[set("one"), set("three")]).await.unwrap();
        journal.keep_documents(&[set("three")]).await.unwrap();
        assert_eq!(waiting(&dir), 2, "nothing is written twice");
        drop(journal);

        let journal = self::journal(&dir);
        let stop = CancellationToken::new();
        stop.cancel();
        Shipper::new(&journal).run(world.proxy.clone(), stop).await;
        assert_eq!((journal.ship_error(), waiting(&dir)), (None, 0));
        for text in ["one", "two", "three"] {
            let found = world.admin.document(&env(), DocumentKind::PolicySet, &Digest::of(text.as_bytes())).await.unwrap();
            assert_eq!(found, Some(set(text)));
        }
    }

    // A file of documents that was damaged on disk keeps no record from being shipped.
    async fn a_damaged_file_of_documents_blocks_nothing(world) {
        let folder = Folder::new();
        let dir = folder.path().join("journal");
        let journal = journal(&dir);
        for text in ["one", "two", "three"] {
            journal.keep_documents(&[set(text)]).await.unwrap();
        }
        let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
        files.sort();
        let first = std::fs::read_to_string(&files[0]).unwrap();
        std::fs::write(&files[0], first.replace("one", "0ne")).unwrap();
        std::fs::write(&files[1], "torn").unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        Shipper::new(&journal).run(world.proxy.clone(), stop).await;
        assert_eq!((journal.ship_error(), journal.unshipped(), waiting(&dir)), (None, 0, 0));
        let mut there = Vec::new();
        for text in ["one", "0ne", "two", "three"] {
            let found = world.admin.document(&env(), DocumentKind::PolicySet, &Digest::of(text.as_bytes())).await.unwrap();
            there.extend(found.map(|_| text));
        }
        assert_eq!(there, ["three"]);
    }

    async fn everybody_has_random_bytes_of_their_own_until_they_are_erased(world) {
        let (ana, ben) = (world.user("ana@example.com").await, world.user("ben@example.com").await);
        let before = world.proxy.directory(&env()).await.unwrap();
        let salts: Vec<_> = before.members.iter().map(|member| member.input_salt.unwrap()).collect();
        assert_ne!(salts[0], salts[1]);
        assert_eq!(world.proxy.input_salt(&env(), &ana).await.unwrap(), world.sees(&ana).await.input_salt);
        assert_eq!(world.proxy.input_salt(&EnvironmentName::parse("other").unwrap(), &ana).await.unwrap(), None);

        let table = if world.is_postgres() { "guardian.audit_salts" } else { "audit_salts" };
        world.by_hand(&format!("DELETE FROM {table} WHERE user_id = '{ben}'")).await;
        let neural_guardian::store::CatchUp::Since(delta) = world.proxy.catch_up(&env(), &before.anchor).await.unwrap() else { panic!("a delta was expected") };
        let told: Vec<_> = delta.members.iter().map(|(user, member)| (user.clone(), member.as_ref().unwrap().input_salt)).collect();
        assert_eq!(told, [(ben.clone(), None)], "running instances hear of it");
        world.proxy.give_salts(&env()).await.unwrap();
        let again = world.sees(&ben).await.input_salt.unwrap();
        assert!(!salts.contains(&again), "and what was erased never comes back");
        assert_eq!(format!("{again:?}"), "(salt)");
    }
}

/// Only the proxy reads the random bytes, and only auditors read documents.
#[tokio::test]
async fn what_logins_may_do_with_documents_and_salts() {
    let world = World::postgres().await;
    let Place::Postgres(server) = &world.place else {
        panic!("a Postgres world")
    };
    world.user("ana@example.com").await;
    let good = "INSERT INTO guardian.policy_documents (environment, kind, digest, content) VALUES ('production', 'tool', sha256('x'), 'x')";
    assert_eq!(raw_postgres(&server.proxy.url, good).await.unwrap(), 1);
    for refused in [
        "SELECT kind FROM guardian.policy_documents",
        "UPDATE guardian.policy_documents SET kind = 'tool'",
        "DELETE FROM guardian.policy_documents",
        "TRUNCATE guardian.policy_documents",
        "INSERT INTO guardian.policy_documents (environment, kind, digest, content) VALUES ('development', 'tool', sha256('x'), 'x')",
        "INSERT INTO guardian.policy_documents (environment, kind, digest, content, recorded_by) VALUES ('production', 'tool', sha256('y'), 'y', 'postgres')",
        "INSERT INTO guardian.audit_salts (environment, user_id, salt) SELECT environment, id, sha256('x') FROM guardian.users",
        "UPDATE guardian.audit_salts SET salt = sha256('x')",
        "DELETE FROM guardian.audit_salts",
        "SELECT guardian.give_salts('development')",
        "SELECT guardian.new_salt()",
    ] {
        let error = raw_postgres(&server.proxy.url, refused).await.expect_err(refused);
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "42501", "{refused}");
    }
    for refused in [
        "SELECT salt FROM guardian.audit_salts",
        "INSERT INTO guardian.policy_documents (environment, kind, digest, content) VALUES ('production', 'tool', sha256('z'), 'z')",
    ] {
        let error = raw_postgres(&server.admin.url, refused).await.expect_err(refused);
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "42501", "{refused}");
    }
    let forged = "INSERT INTO guardian.policy_documents (environment, kind, digest, content) VALUES ('production', 'tool', sha256('x'), 'forged')";
    let error = raw_postgres(&server.proxy.url, forged).await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "23514");
}

fn journal(dir: &Path) -> Journal {
    let settings = JournalSettings {
        dir: dir.to_owned(),
        max_bytes: 1 << 30,
        segment_bytes: 1 << 20,
        sync_timeout: Duration::from_secs(60),
        keep_shipped: std::time::Duration::ZERO,
        seal_on_conflict: false,
        allow_volatile: true,
    };
    let start = StartFacts {
        environment: parse("production"),
        version: "1".to_owned(),
        instance: "test".to_owned(),
        instance_id: None,
    };
    Journal::open_dir(settings, start, || Timestamp::from_secs(1_795_000_000))
        .unwrap()
        .0
}

/// The files of documents in the journal's folder.
fn waiting(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name.starts_with("documents-") && name.ends_with(".json"))
        .count()
}
