//! Records compared with the audit trail: what is gone, and what stands where a record should.

use super::audit::Journal;
use super::world::{env, on_both};
use neural_guardian::domain::{Digest, SealedRecord, Timestamp};
use neural_guardian::store::Difference;

on_both! {
    async fn what_is_there_alone_is_no_difference(world) {
        let journal = Journal::new();
        let records = decisions(&journal, 5);
        assert_eq!(world.proxy.compare(&[]).await.unwrap(), []);
        world.proxy.ship(&records[1..4]).await.unwrap();
        world.proxy.ship(&records[1..4]).await.unwrap();
        assert_eq!(world.proxy.compare(&records[1..4]).await.unwrap(), []);
        let gone: Vec<_> = world.proxy.compare(&records).await.unwrap().iter().map(|one| (one.seq, one.is_gone())).collect();
        assert_eq!(gone, [(0, true), (4, true)]);
        let other = Journal::new();
        let both = [records[1].clone(), decisions(&other, 1)[0].clone()];
        assert_eq!(world.proxy.compare(&both).await.unwrap().len(), 1, "the other journal's record is not there");
    }

    // On SQLite a row keeps every other one out of its number; on Postgres one of another time stands beside it.
    async fn another_row_under_the_number_of_a_record_is_found_whatever_its_time(world) {
        let journal = Journal::new();
        let records = decisions(&journal, 4);
        let forged = |seq: u64, at: Timestamp| SealedRecord { leaf: Digest::of(b"forged"), ..journal.decision_at(seq, at) };
        let later = |seq: u64| Timestamp::from_micros(second(seq).micros() + 86_400_000_000 * 40);
        world.proxy.ship(&[forged(1, second(1)), forged(2, later(2))]).await.unwrap();
        world.proxy.ship(&records).await.unwrap();
        let found = Some(Digest::of(b"forged"));
        let difference = |seq: u64, present| Difference { incarnation: records[0].incarnation, seq, present, others: 1, found };
        assert_eq!(world.proxy.compare(&records).await.unwrap(), [difference(1, false), difference(2, world.is_postgres())]);

        world.proxy.ship(&[forged(3, later(3)), forged(3, later(4))]).await.unwrap();
        let last = world.proxy.compare(&records[3..]).await.unwrap();
        match world.is_postgres() {
            true => assert_eq!(last, [Difference { others: 2, ..difference(3, true) }]),
            false => assert_eq!(last, []),
        }
    }
}

/// The row of another environment is told of only where it keeps a record out, and never what it holds.
#[tokio::test]
async fn a_login_learns_nothing_of_other_environments() {
    let mut world = super::world::World::postgres().await;
    let world = &mut world;
    let journal = Journal::new();
    let records = decisions(&journal, 3);
    for (seq, micros) in [(0, second(0).micros()), (1, second(1).micros() + 1)] {
        world
            .by_hand(&format!(
                "INSERT INTO schema.audit_trail (incarnation, seq, occurred_at, environment, kind, bytes, leaf, head)
                 VALUES ('\\x{}', {seq}, schema.at_micros({micros}), 'elsewhere', 'stop', 'x', sha256('x'), 'x')",
                records[0].incarnation
            ))
            .await;
    }
    world.proxy.ship(&records).await.unwrap();
    let there = world.proxy.compare(&records).await.unwrap();
    assert_eq!(there.len(), 1, "{there:?}");
    assert_eq!(
        (there[0].seq, there[0].present, there[0].others, there[0].found),
        (0, false, 1, None)
    );
    let zeros = SealedRecord {
        incarnation: neural_guardian::domain::Incarnation([0; 16]),
        ..records[0].clone()
    };
    world.proxy.compare(&[zeros]).await.unwrap_err();
    assert_eq!(env().as_str(), "production");
}

/// However many partitions there are and however many rows they hold, a batch costs its own range of each index.
#[tokio::test]
async fn comparing_reads_the_range_of_the_batch_and_no_partition_whole() {
    let mut world = super::world::World::postgres().await;
    let world = &mut world;
    let journal = Journal::new();
    let records = decisions(&journal, 200);
    world.proxy.ship(&records).await.unwrap();
    // Planned while the partitions are nearly empty, as in a long-lived connection.
    for _ in 0..8 {
        assert_eq!(world.proxy.compare(&records).await.unwrap(), []);
    }
    let other = Journal::new();
    world
        .by_hand(&format!(
            "INSERT INTO schema.audit_trail (incarnation, seq, occurred_at, environment, kind, bytes, leaf, head)
             SELECT '\\x{}', n, schema.at_micros({}), 'production', 'stop', 'x', sha256('x'), 'x' FROM generate_series(1, 20000) n",
            decisions(&other, 1)[0].incarnation,
            second(0).micros(),
        ))
        .await;
    let scanned = "SELECT coalesce(sum(seq_tup_read), 0)::bigint FROM pg_stat_user_tables WHERE relname LIKE 'audit_trail%'";
    let before = world.count_by_hand(scanned).await;
    let began = std::time::Instant::now();
    for _ in 0..20 {
        assert_eq!(world.proxy.compare(&records).await.unwrap(), []);
    }
    println!("comparing a batch of 200: {:?}", began.elapsed() / 20);
    world.proxy.close().await;
    assert_eq!(
        world.count_by_hand(scanned).await,
        before,
        "rows read by scans of whole tables"
    );
}

fn second(seq: u64) -> Timestamp {
    Timestamp::from_micros(1_795_000_000_000_000 + i64::try_from(seq).unwrap() * 1_000_000)
}

fn decisions(journal: &Journal, count: u64) -> Vec<SealedRecord> {
    (0..count).map(|seq| journal.decision_at(seq, second(seq))).collect()
}
