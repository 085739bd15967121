//! A start while the database is away or the disk is full, and a stop while the disk hangs.

use crate::ana_reads_files;
use crate::support::http::Address;
use crate::support::stores::{Database, Engine};
use crate::support::wait::eventually;
use crate::support::world::World;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_without_its_database_refuses_calls_until_it_is_there() {
    let mut world = World::with(Some(Database::on_own_cluster().await));
    let (files, key) = ana_reads_files(&mut world).await;
    world.start().await;
    let client = world.connected("files", &key).await;
    client.call("echo", json!({ "text": "before" })).await.text();
    world.shipped().await;
    world.stop().await;
    database(&mut world).own_cluster().stop();

    world.spawn();
    waits_because(&world, "connection refused").await;
    let livez = Address::plain(world.metrics_port).get("/livez").await.unwrap();
    assert_eq!(livez.status, 200);
    let refused = world.client("files").bearer(&key).handshake().await;
    assert_eq!(refused.verdict(), "200 stale_authorization");
    assert_eq!(files.calls().len(), 1);
    assert!(world.log().contains("every call is refused"), "{}", world.log());

    database(&mut world).own_cluster().run();
    eventually("calls to be admitted", async || {
        (world.ready().await == Some(200)).then_some(())
    })
    .await;
    let client = world.connected("files", &key).await;
    client.call("echo", json!({ "text": "after" })).await.text();
    eventually("the refusals to be in the trail", async || {
        let counted = world.audit("--kind suppressed --reason stale_authorization");
        (!counted.is_empty()).then_some(())
    })
    .await;
    world.shipped().await;
    assert_eq!(world.audit("--kind start").len(), 2);
    world.stop().await;

    // A database that must not be used: found at the first contact it ends the start, found later it is told.
    world
        .sql("ALTER TABLE {t}audit_trail DISABLE TRIGGER audit_append_only")
        .await;
    let refused = world.guardian("serve");
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("append-only trigger is missing"), "{refused:?}");
    database(&mut world).own_cluster().stop();
    world.spawn();
    waits_because(&world, "connection refused").await;
    database(&mut world).own_cluster().run();
    waits_because(&world, "append-only trigger is missing").await;
    let refused = world.client("files").bearer(&key).handshake().await;
    assert_eq!(refused.verdict(), "200 stale_authorization");
    world.sql("ALTER TABLE {t}audit_trail ENABLE TRIGGER audit_append_only").await;
    eventually("calls to be admitted", async || {
        (world.ready().await == Some(200)).then_some(())
    })
    .await;
    world.stop().await;

    // A wrong setting is told at once.
    let url = database(&mut world)
        .proxy_url()
        .replace("postgres://proxy_", "postgres://nobody_");
    world.set("store.url", &format!("'{url}'"));
    let refused = world.guardian("serve");
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(refused.stderr.contains("refuses the login"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_a_full_disk_refuses_calls_until_there_is_room_when_only_the_journal_is_on_it() {
    starts_on_a_full_disk("data/journal").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_a_full_disk_refuses_calls_until_there_is_room_when_the_database_is_on_it_too() {
    starts_on_a_full_disk("data").await;
}

/// Only root may mount.
async fn starts_on_a_full_disk(folder: &str) {
    let mut world = World::new(Engine::Sqlite).await;
    let Some(mounted) = Mounted::at(world.file(folder)) else {
        println!("skipped: this machine does not let a test mount a file system");
        return;
    };
    let (files, key) = ana_reads_files(&mut world).await;
    world.start().await;
    let client = world.connected("files", &key).await;
    client.call("echo", json!({ "text": "before" })).await.text();
    world.shipped().await;
    world.stop().await;
    let filler = mounted.fill();

    world.spawn();
    waits_because(&world, "No space left on device").await;
    let refused = world.client("files").bearer(&key).handshake().await;
    let verdict = refused.verdict();
    assert!(
        verdict.ends_with(" stale_authorization") || verdict.ends_with(" audit_unavailable"),
        "{verdict}"
    );
    assert_eq!(files.calls().len(), 1);

    fs::remove_file(filler).unwrap();
    eventually("calls to be admitted", async || {
        (world.ready().await == Some(200)).then_some(())
    })
    .await;
    let client = world.connected("files", &key).await;
    client.call("echo", json!({ "text": "after" })).await.text();
    world.shipped().await;
    assert_eq!(world.audit("--kind start").len(), 2);
    assert_eq!(world.audit("--tool echo").len(), 2);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_although_the_disk_does_not_answer() {
    let Some((mut world, hanging)) = with_a_hanging_disk().await else {
        return;
    };
    world.terminate();
    assert_eq!(ended(&mut world, hanging).await, Some(70));
    assert!(world.log().contains("its disk did not take them in time"), "{}", world.log());
    world.start().await;
    world.shipped().await;
    world.stop().await;
}

/// In whatever step of the stop it comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_sigterm_is_heard_while_the_disk_does_not_answer() {
    let Some((mut world, hanging)) = with_a_hanging_disk().await else {
        return;
    };
    world.terminate();
    eventually("the listeners to be gone", async || {
        world.ready().await.is_none().then_some(())
    })
    .await;
    let begun = std::time::Instant::now();
    world.terminate();
    assert_eq!(ended(&mut world, hanging).await, Some(70));
    assert!(begun.elapsed().as_secs() < 8, "it waited for the disk");
}

/// A running instance whose journal waits for a sync that does not come.
async fn with_a_hanging_disk() -> Option<(World, Strace)> {
    let mut world = World::new(Engine::Sqlite).await;
    let (_files, key) = ana_reads_files(&mut world).await;
    world.set("journal.sync_timeout", "'1s'");
    world.start().await;
    let client = world.connected("files", &key).await;
    let Some(strace) = Strace::hang(world.id()).await else {
        println!("skipped: this machine has no `strace`, or does not let it trace");
        return None;
    };
    eventually("the disk to hang", async || {
        client.call("echo", json!({ "text": "hi" })).await;
        (world.ready().await == Some(503)).then_some(())
    })
    .await;
    Some((world, strace))
}

/// The exit code of a process that has ended by itself. Its threads that are traced are buried by the tracer alone.
async fn ended(world: &mut World, hanging: Strace) -> Option<i32> {
    let stat = format!("/proc/{}/stat", world.id());
    eventually("the process to end", async || {
        fs::read_to_string(&stat).unwrap().contains(") Z ").then_some(())
    })
    .await;
    drop(hanging);
    world.ended().await.code()
}

/// Delays each sync of the journal's thread for ten minutes.
struct Strace(Child);

impl Strace {
    async fn hang(process: u32) -> Option<Strace> {
        let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
        let is_journal = |path: &Path| fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "journal");
        let thread = threads.map(|entry| entry.path()).find(|path| is_journal(path)).unwrap();
        let mut strace = Command::new("strace")
            .args(["-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=600000000", "-p"])
            .arg(thread.file_name().unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let status = thread.join("status");
        let traced = eventually("strace to trace or to end", async || {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let is_traced = text
                .lines()
                .any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"));
            (is_traced || strace.try_wait().unwrap().is_some()).then_some(is_traced)
        });
        traced.await.then_some(Strace(strace))
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A small file system of its own.
struct Mounted(PathBuf);

impl Mounted {
    fn at(folder: PathBuf) -> Option<Mounted> {
        fs::create_dir_all(&folder).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=12m,mode=700", "guardian-story"]);
        let done = mount.arg(&folder).stderr(Stdio::null()).status().ok()?;
        done.success().then_some(Mounted(folder))
    }

    /// Takes all the room that is left.
    fn fill(&self) -> PathBuf {
        use std::io::Write;
        let path = self.0.join("filler");
        let mut file = fs::File::create(&path).unwrap();
        while file.write(&[1; 4_096]).is_ok_and(|written| written > 0) {}
        path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

async fn waits_because(world: &World, why: &str) {
    eventually(why, async || world.readiness().await.contains(why).then_some(())).await;
    assert_eq!(world.ready().await, Some(503));
}

fn database(world: &mut World) -> &mut Database {
    world.database.as_mut().unwrap()
}
