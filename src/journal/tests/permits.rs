//! Every permit ends in exactly one outcome, even if its caller disappears.

use super::super::{Journal, OutcomeData, OutcomeTicket, Sealed, truncate};
use super::simulated::{Fate, Op, Simulated};
use super::{allow, call, event, note, open, outcomes, records, request, segment_names, until};
use crate::domain::{Decision, Event, Executed, MAX_RECORD, OutcomeKind, PolicyId, Scope};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Waker};

async fn sent(journal: &Journal, number: u128) -> OutcomeTicket {
    let cleared = journal.clear(call(number), allow(number)).await.map_err(|(_, sealed)| sealed);
    let (call, ticket) = cleared.unwrap().into_sending();
    assert_eq!((call.request, ticket.request()), (request(number), request(number)));
    ticket
}

fn endings(disk: &Simulated) -> Vec<(u128, OutcomeKind)> {
    outcomes(disk)
        .iter()
        .map(|outcome| (outcome.request.0.as_u128(), outcome.kind))
        .collect()
}

#[tokio::test]
async fn an_outcome_says_how_the_call_ended_also_if_nobody_does() {
    let disk = Simulated::new();
    let (journal, _) = open(&disk);
    sent(&journal, 1).await.close(OutcomeData {
        status: Some(200),
        executed: Executed::Unknown,
        bytes: 77,
        detail: Some("as it was".to_owned()),
        ..OutcomeData::of(OutcomeKind::Done)
    });
    drop(sent(&journal, 2).await);
    drop(journal.clear(call(3), allow(3)).await.map_err(|(_, sealed)| sealed).unwrap());
    let cleared = journal.clear(call(4), allow(4)).await.map_err(|(_, sealed)| sealed).unwrap();
    assert_eq!(cleared.abort("the grant is gone").request, request(4));
    assert_eq!(journal.open_calls(), 0);
    journal.all_closed().await;
    journal.stop().await;
    assert_eq!(
        endings(&disk),
        [
            (1, OutcomeKind::Done),
            (2, OutcomeKind::ClientClosed),
            (3, OutcomeKind::NotSent),
            (4, OutcomeKind::NotSent)
        ]
    );
    let first = &outcomes(&disk)[0];
    assert_eq!(
        (
            first.status,
            first.executed,
            first.bytes,
            first.detail.as_deref(),
            first.recovered
        ),
        (Some(200), Executed::Unknown, 77, Some("as it was"), false)
    );
    assert_eq!(event(records(&disk).last().unwrap()).kind(), "stop");
    assert_eq!(journal.append(note("too late")).await, Err(Sealed::Stopped));
}

/// A permit whose record is being synced; the sync goes on when the second value is dropped.
async fn opening(disk: &Simulated, journal: &Journal) -> (Pin<Box<impl Future>>, mpsc::Sender<()>) {
    let (go, gone) = mpsc::channel::<()>();
    let syncing = Arc::new(AtomicBool::new(false));
    let seen = syncing.clone();
    disk.script(move |op, _| {
        if op == Op::Sync {
            seen.store(true, Ordering::SeqCst);
            _ = gone.recv();
        }
        Fate::Works
    });
    let journal = journal.clone();
    let mut opening = Box::pin(async move { journal.clear(call(1), allow(1)).await.is_ok() });
    let mut context = Context::from_waker(Waker::noop());
    until(|| {
        assert!(opening.as_mut().poll(&mut context).is_pending());
        syncing.load(Ordering::SeqCst)
    })
    .await;
    (opening, go)
}

#[tokio::test]
async fn a_caller_that_goes_before_the_record_is_durable_leaves_a_permit_that_was_not_sent() {
    let disk = Simulated::new();
    let (journal, _) = open(&disk);
    let (opening, go) = opening(&disk, &journal).await;
    drop(opening);
    drop(go);
    journal.append(note("next")).await.unwrap();
    journal.stop().await;
    assert_eq!(endings(&disk), [(1, OutcomeKind::NotSent)]);
}

#[tokio::test]
async fn a_caller_that_goes_after_the_record_is_durable_and_before_it_hears_of_it_too() {
    let disk = Simulated::new();
    let (journal, _) = open(&disk);
    let (opening, go) = opening(&disk, &journal).await;
    drop(go);
    journal.append(note("next")).await.unwrap();
    drop(opening);
    journal.stop().await;
    assert_eq!(endings(&disk), [(1, OutcomeKind::NotSent)]);
}

#[tokio::test]
async fn permits_without_an_outcome_are_unknown_after_a_crash_though_their_segment_is_gone() {
    let disk = Simulated::new();
    let (journal, _) = open(&disk);
    let open_call = sent(&journal, 1).await;
    drop(sent(&journal, 2).await);
    for _ in 0..8 {
        journal.append(note(&"x".repeat(1_000))).await.unwrap();
    }
    let last = records(&disk).last().unwrap().clone();
    let mark = super::super::watermark::Watermark {
        incarnation: last.incarnation,
        next: last.seq + 1,
    };
    mark.store(&disk).unwrap();
    journal.0.shared.spool.release(&mark);
    assert_eq!(segment_names(&disk).len(), 1);
    let image = disk.reboot();
    drop(journal);
    drop(open_call);
    for _ in 0..2 {
        let (journal, _) = open(&image);
        drop(journal);
    }
    assert_eq!(
        endings(&image),
        [(1, OutcomeKind::Unknown)],
        "once, and not again at the start after that"
    );
    assert!(outcomes(&image)[0].recovered);
}

#[tokio::test]
async fn what_is_too_long_for_a_record_is_cut_and_says_so() {
    let disk = Simulated::new();
    let (journal, _) = open(&disk);
    let decision = Decision {
        detail: Some("\u{1f}".repeat(20_000)),
        args: Some("\"".repeat(100_000)),
        errors: vec!["ü".repeat(3_000); 50],
        policies: vec![PolicyId::parse(&"€".repeat(66)).unwrap(); 500],
        scopes_held: vec![Scope::parse(&"s".repeat(200)).unwrap(); 500],
        ..allow(1)
    };
    let seq = journal.append(Event::Decision(Box::new(decision))).await.unwrap();
    let seq_of_note = journal.append(note(&"n".repeat(20_000))).await.unwrap();
    journal.stop().await;
    let records = records(&disk);
    let longest = records.iter().map(|record| record.bytes.len()).max().unwrap();
    assert!(longest <= MAX_RECORD, "{longest}");
    let Event::Decision(found) = event(&records[seq as usize]) else {
        panic!("a decision was expected")
    };
    assert_eq!(found.request, request(1));
    assert!(found.cut, "it cannot be decided again");
    assert!(found.args.unwrap().ends_with("bytes cut]"));
    assert!(
        found.errors.iter().any(|error| error.contains("of 500 policies")),
        "{:?}",
        found.errors
    );
    let Event::Admin(found) = event(&records[seq_of_note as usize]) else {
        panic!("a note was expected")
    };
    assert_eq!(found.detail, format!("{}…[{} bytes cut]", "n".repeat(2_048), 20_000 - 2_048));
}

#[test]
fn an_event_that_fits_is_left_alone() {
    let event = note(&"n".repeat(16_000));
    assert_eq!(truncate::serialise(&event), serde_json::to_vec(&event).unwrap());
}
