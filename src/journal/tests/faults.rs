//! Disks that fail, write short, fill up or hang.

use super::super::{JournalState, OutcomeData, Sealed};
use super::simulated::{Fate, Op, Simulated};
use super::{allow, call, event, kinds, note, open, open_with, outcomes, records, request, segment_names, settings, until};
use crate::domain::{Event, OutcomeKind};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// The next operation of this kind on a segment meets this fate; later ones work.
fn fail_once(disk: &Simulated, on: Op, fate: fn() -> Fate) {
    let mut done = false;
    disk.script(move |op, name| {
        if op != on || done || !name.contains(".seg") {
            return Fate::Works;
        }
        done = true;
        fate()
    });
}

#[tokio::test]
async fn a_failed_write_or_sync_moves_the_record_to_a_fresh_segment() {
    let faults: [(Op, fn() -> Fate); 4] = [
        (Op::Write, || Fate::Half),
        (Op::Write, || Fate::Fails(io::ErrorKind::StorageFull)),
        (Op::Write, || Fate::Fails(io::ErrorKind::Other)),
        (Op::Sync, || Fate::Fails(io::ErrorKind::Other)),
    ];
    for (op, fate) in faults {
        let disk = Simulated::new();
        let (journal, _) = open(&disk);
        assert_eq!(journal.append(note("before")).await, Ok(1));
        fail_once(&disk, op, fate);
        assert_eq!(journal.append(note("during")).await, Ok(2));
        assert_eq!(journal.append(note("after")).await, Ok(3));
        assert_eq!(journal.state(), JournalState::Open);
        assert_eq!(segment_names(&disk).len(), 2);
        assert_eq!(disk.broken_rules(), Vec::<String>::new());
        let image = disk.crash(|| false);
        drop(journal);
        assert_eq!(kinds(&image), ["start", "admin", "admin", "admin"]);
        let (_, recovered) = open(&image);
        assert_eq!(recovered.after.map(|(_, seq, _)| seq), Some(3));
    }
}

#[tokio::test]
async fn a_disk_that_stays_broken_seals_the_journal_until_it_works_again() {
    let disk = Simulated::new();
    let (journal, _) = open(&disk);
    let ticket = journal
        .clear(call(1), allow(1))
        .await
        .map_err(|(_, sealed)| sealed)
        .unwrap()
        .into_sending()
        .1;
    disk.script(|_, _| Fate::Fails(io::ErrorKind::StorageFull));
    let refused = journal.append(note("refused")).await;
    assert!(matches!(refused, Err(Sealed::Fault(_))), "{refused:?}");
    assert!(matches!(journal.state(), JournalState::Sealed(Sealed::Fault(_))));
    assert!(matches!(journal.append(note("refused at once")).await, Err(Sealed::Fault(_))));
    let (call, sealed) = journal.clear(call(2), allow(2)).await.err().unwrap();
    assert_eq!((call.request, matches!(sealed, Sealed::Fault(_))), (request(2), true));
    ticket.close(OutcomeData::of(OutcomeKind::Done));
    disk.works_again();
    until(|| journal.state() == JournalState::Open).await;
    journal.append(note("accepted")).await.unwrap();
    journal.stop().await;
    let unsealed = records(&disk).iter().map(event).find_map(|event| match event {
        Event::Admin(admin) if admin.action == "journal_unsealed" => Some(admin.detail),
        _ => None,
    });
    assert!(unsealed.unwrap().contains("3 records"));
    assert_eq!(
        outcomes(&disk).iter().map(|outcome| outcome.kind).collect::<Vec<_>>(),
        [OutcomeKind::Done]
    );
    assert_eq!(kinds(&disk), ["start", "decision", "admin", "outcome", "admin", "stop"]);
    assert_eq!(disk.broken_rules(), Vec::<String>::new());
}

/// Syncs of segments block until the sender sends or is dropped. Returns the count of blocked syncs, and the sender.
fn hang(disk: &Simulated) -> (Arc<AtomicUsize>, mpsc::Sender<()>) {
    let waiting = Arc::new(AtomicUsize::new(0));
    let (go, gone) = mpsc::channel();
    let count = waiting.clone();
    disk.script(move |op, name| {
        if op == Op::Sync && name.contains(".seg") {
            count.fetch_add(1, Ordering::SeqCst);
            // An error means that the sender is gone: the test lets the disk go on.
            _ = gone.recv();
        }
        Fate::Works
    });
    (waiting, go)
}

#[tokio::test]
async fn a_disk_that_hangs_seals_the_journal_while_it_does() {
    let disk = Simulated::new();
    let mut settings = settings();
    settings.sync_timeout = Duration::from_millis(20);
    let (journal, _) = open_with(&disk, &settings).unwrap();
    let (_, go) = hang(&disk);
    let (_, sealed) = journal.clear(call(1), allow(1)).await.err().unwrap();
    assert_eq!(sealed, Sealed::Hung);
    assert_eq!(journal.state(), JournalState::Sealed(Sealed::Hung));
    assert_eq!(journal.append(note("refused at once")).await, Err(Sealed::Hung));
    drop(go);
    until(|| journal.state() == JournalState::Open).await;
    journal.append(note("accepted")).await.unwrap();
    journal.stop().await;
    let ended: Vec<_> = outcomes(&disk)
        .into_iter()
        .map(|outcome| (outcome.request, outcome.kind))
        .collect();
    assert_eq!(
        ended,
        [(request(1), OutcomeKind::NotSent)],
        "its caller was told no, so it was never sent"
    );
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let disk = Simulated::new();
    let mut settings = settings();
    settings.max_bytes = 1024 * 1024 * 1024;
    let (journal, _) = open_with(&disk, &settings).unwrap();
    let (waiting, go) = hang(&disk);
    let mut waiters = vec![journal.0.shared.append(&note("in the sync")).unwrap()];
    until(|| waiting.load(Ordering::SeqCst) == 1).await;
    let busy = loop {
        match journal.0.shared.append(&note("in line")) {
            Ok(waiter) => waiters.push(waiter),
            Err(busy) => break busy,
        }
    };
    assert_eq!((busy, waiters.len()), (Sealed::Busy, 1 + 4_096));
    drop(go);
    for (index, waiter) in waiters.into_iter().enumerate() {
        assert_eq!(waiter.await, Ok(1 + index as u64));
    }
}

#[tokio::test]
async fn a_full_spool_refuses_permits_and_still_takes_the_outcomes_of_those_it_gave() {
    let disk = Simulated::new();
    let mut settings = settings();
    settings.max_bytes = 64 * 1024;
    let (journal, _) = open_with(&disk, &settings).unwrap();
    let mut tickets = Vec::new();
    let mut pressure = false;
    let sealed = loop {
        let number = tickets.len() as u128;
        match journal.clear(call(number), allow(number)).await {
            Ok(cleared) => tickets.push(cleared.into_sending().1),
            Err((_, sealed)) => break sealed,
        }
        pressure |= journal.state() == JournalState::Pressure;
    };
    assert_eq!(sealed, Sealed::Full);
    assert!(pressure);
    assert_eq!(journal.state(), JournalState::Sealed(Sealed::Full));
    assert!(tickets.len() > 5, "{}", tickets.len());
    let given = tickets.len();
    for ticket in tickets {
        let mut data = OutcomeData::of(OutcomeKind::Broken);
        data.detail = Some("\u{1}".repeat(5_000));
        ticket.close(data);
    }
    journal.stop().await;
    assert_eq!(outcomes(&disk).len(), given);
    assert!(
        journal.unshipped_bytes() <= settings.max_bytes,
        "{}",
        journal.unshipped_bytes()
    );
}

#[tokio::test]
async fn a_crash_of_a_sealed_journal_loses_nothing_acknowledged() {
    let disk = Simulated::new();
    let (journal, _) = open(&disk);
    journal.append(note("kept")).await.unwrap();
    disk.script(|op, _| match op {
        Op::Sync => Fate::Fails(io::ErrorKind::Other),
        _ => Fate::Works,
    });
    journal.append(note("refused")).await.unwrap_err();
    for keep in [true, false] {
        let image = disk.crash(|| keep);
        assert_eq!(kinds(&image)[..2], ["start", "admin"]);
        open(&image);
    }
}
