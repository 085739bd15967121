//! Compares the journal with the audit trail before the first call is admitted: a restored backup, a watermark that says
//! too much, a journal that was deleted, and a data folder that was copied or is older than the trail. It changes nothing.
//!
//! These are no faults: a watermark that says too little (a crash after the commit), rows that retention dropped, a record
//! that is stored as its bytes alone, and what the operator has accepted before, as a gap record in journal or trail says.

use crate::domain::{EnvironmentName, Event, Incarnation, MissingRecords, Record, Start, Timestamp};
use crate::journal::{Journal, SpooledIncarnation};
use crate::store::{Store, StoreError};
use std::fmt;

/// In what the journal and the trail do not agree; nothing, if no sentence is there.
#[derive(Debug, Default)]
pub struct Disagreement {
    pub findings: Vec<String>,
    /// What is in neither.
    pub missing: Vec<MissingRecords>,
    /// From this incarnation on the journal holds records that the trail lacks.
    pub ship_again_from: Option<Incarnation>,
    /// The trail also lacks older records, which are kept although they were shipped.
    pub lacks_kept: bool,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the journal and the audit trail do not agree: {}; bring back the newer of the two, or start once with `guardian serve \
             --accept-gap`, which ships again what the journal holds and records what is missing",
            self.findings.join("; ")
        )
    }
}

pub async fn compare(store: &Store, env: &EnvironmentName, journal: &Journal) -> Result<Disagreement, StoreError> {
    let starts = store.trail_starts(env, journal.instance_id()).await?;
    let mut comparison = Comparison {
        store,
        journal,
        running: journal.incarnation(),
        spooled: journal.spooled(),
        kept_since: store.trail_kept_since().await?,
        starts,
        found: Disagreement::default(),
    };
    comparison.journal_is_there().await?;
    if let Some(oldest) = comparison.spooled.first() {
        comparison.predecessor(oldest).await?;
    }
    for spooled in comparison.spooled {
        comparison.shipped(spooled).await?;
        comparison.ends_where_the_trail_ends(spooled).await?;
    }
    comparison.no_other_start_follows();
    Ok(comparison.found)
}

struct Comparison<'a> {
    store: &'a Store,
    journal: &'a Journal,
    running: Incarnation,
    spooled: &'a [SpooledIncarnation],
    kept_since: Timestamp,
    /// Starts and gaps of this instance in the trail.
    starts: Vec<Record>,
    found: Disagreement,
}

impl Comparison<'_> {
    /// The instance has written another journal, which was not there at this start, or at an earlier one that was refused.
    async fn journal_is_there(&mut self) -> Result<(), StoreError> {
        let missing_at = self.spooled.iter().rposition(|spooled| spooled.journal_missing);
        let is_accepted = |at: usize| self.spooled[at..].iter().any(|spooled| spooled.gap_at.is_some());
        if !self.journal.is_missing() && missing_at.is_none_or(is_accepted) {
            return Ok(());
        }
        let what = format!(
            "the journal of instance {} is missing: the folder held none of its records",
            self.journal.instance_id()
        );
        let here = |of: Incarnation| of == self.running || self.spooled.iter().any(|spooled| spooled.incarnation == of);
        let begun = |record: &&Record| matches!(record.event, Event::Start(_)) && !here(record.incarnation);
        let newest = self.starts.iter().filter(begun).max_by_key(|record| record.event.at());
        let known = match newest.map(|record| record.incarnation) {
            None => "the trail has none of them".to_owned(),
            Some(newest) => {
                let end = self.end(newest).await?;
                self.found.missing.push(MissingRecords {
                    incarnation: newest,
                    from: end,
                    to: None,
                });
                format!(
                    "the trail has {end} of its newest start, {}, and what was not shipped is lost",
                    short(newest)
                )
            }
        };
        self.found
            .findings
            .push(format!("{what}; {known} (another instance needs a `data_dir` of its own)"));
        Ok(())
    }

    /// The records before the oldest in the folder were shipped and deleted there; the START names the last of them.
    async fn predecessor(&mut self, oldest: &SpooledIncarnation) -> Result<(), StoreError> {
        let (Some((of, seq, head)), Some(at)) = (oldest.after, oldest.after_at) else {
            return Ok(());
        };
        let is_excused = oldest.first > 0 || at < self.kept_since || self.is_accepted(of, seq);
        if is_excused || self.store.trail_has(of, seq, None, Some(&head)).await? {
            return Ok(());
        }
        let end = self.end(of).await?;
        self.lacks(of, end.min(seq), seq);
        Ok(())
    }

    /// What the watermark says is shipped, as far as it lies in the folder.
    async fn shipped(&mut self, spooled: &SpooledIncarnation) -> Result<(), StoreError> {
        let SpooledIncarnation { incarnation, first, .. } = *spooled;
        let from = spooled.first_kept(self.kept_since);
        if from >= spooled.shipped {
            let was_shipped = first
                .checked_sub(1)
                .filter(|seq| from == first && !self.is_accepted(incarnation, *seq));
            let Some(seq) = was_shipped else { return Ok(()) };
            let head = Some(&spooled.head_before);
            if !self.store.trail_has(incarnation, seq, None, head).await? {
                let end = self.end(incarnation).await?;
                self.lacks(incarnation, end.min(seq), seq);
            }
            return Ok(());
        }
        let last = spooled.shipped - 1;
        let span = self.store.trail_span(incarnation, from, spooled.shipped).await?;
        let expected = spooled.shipped - from;
        if span.stored < expected {
            let lacking = expected - span.stored;
            self.found.findings.push(format!(
                "of {expected} records up to {last} of the start {} that are marked as shipped the trail lacks {lacking}, which the \
                 journal still holds (an older backup of the database, or a changed `shipped` file)",
                short(incarnation)
            ));
            self.found.ship_again_from.get_or_insert(incarnation);
            let end = span.newest.map_or(0, |newest| newest + 1);
            if end < first && !self.is_accepted(incarnation, first - 1) {
                self.lacks(incarnation, end, first - 1);
            }
        } else if !self.is_accepted(incarnation, last)
            && !self
                .store
                .trail_has(incarnation, last, spooled.last_shipped.as_ref(), None)
                .await?
        {
            self.found.findings.push(format!(
                "record {last} of the start {} is in the trail with another content",
                short(incarnation)
            ));
            self.found.missing.push(MissingRecords {
                incarnation,
                from: last,
                to: Some(last),
            });
        }
        Ok(())
    }

    /// A record is on disk here before it is shipped.
    async fn ends_where_the_trail_ends(&mut self, spooled: &SpooledIncarnation) -> Result<(), StoreError> {
        let (incarnation, next) = (spooled.incarnation, spooled.next);
        let end = self.end(incarnation).await?;
        if end <= next || self.is_accepted(incarnation, next) {
            return Ok(());
        }
        self.found.findings.push(format!(
            "the trail has {end} records of the start {} and the journal ends after {next}: {COPIED}",
            short(incarnation)
        ));
        self.found.missing.push(MissingRecords {
            incarnation,
            from: next,
            to: None,
        });
        Ok(())
    }

    fn no_other_start_follows(&mut self) {
        let here = |of: Incarnation| of == self.running || self.spooled.iter().any(|spooled| spooled.incarnation == of);
        let follows = |start: &Start| start.after.is_some_and(|(before, ..)| here(before));
        let mut others = Vec::new();
        for record in &self.starts {
            let Event::Start(start) = &record.event else { continue };
            if follows(start) && !here(record.incarnation) && !self.is_accepted(record.incarnation, 0) {
                others.push((record.incarnation, start.instance.clone()));
            }
        }
        for (incarnation, instance) in others {
            self.found.findings.push(format!(
                "the trail has a start {} of `{instance}` that goes on where this journal stood and is not in it: {COPIED}",
                short(incarnation)
            ));
            self.found.missing.push(MissingRecords {
                incarnation,
                from: 0,
                to: None,
            });
        }
    }

    fn lacks(&mut self, incarnation: Incarnation, from: u64, to: u64) {
        let held = self.journal.held_from(incarnation).map_or(to + 1, |held| held.max(from));
        if held <= to {
            self.found.lacks_kept = true;
            self.found.findings.push(format!(
                "records {held} to {to} of the start {} were shipped and are not in the trail; the journal still keeps them (an older \
                 backup of the database)",
                short(incarnation)
            ));
        }
        if from >= held {
            return;
        }
        let to = held - 1;
        self.found.findings.push(format!(
            "records {from} to {to} of the start {} were shipped and are neither in the trail nor in the journal (an older backup \
             of the database)",
            short(incarnation)
        ));
        self.found.missing.push(MissingRecords {
            incarnation,
            from,
            to: Some(to),
        });
    }

    /// How many records of an incarnation the trail has, if none is missing in between.
    async fn end(&self, incarnation: Incarnation) -> Result<u64, StoreError> {
        let span = self.store.trail_span(incarnation, 0, 0).await?;
        Ok(span.newest.map_or(0, |newest| newest + 1))
    }

    fn is_accepted(&self, incarnation: Incarnation, seq: u64) -> bool {
        let covers = |missing: &MissingRecords| missing.covers(incarnation, seq);
        let in_trail = self.starts.iter().any(|record| match &record.event {
            Event::Gap(gap) => gap.missing.iter().any(covers),
            _ => false,
        });
        in_trail || self.spooled.iter().any(|spooled| spooled.gaps.iter().any(covers))
    }
}

const COPIED: &str = "this data folder was restored from a copy, or another instance runs with a copy of it (for an instance of \
                      its own, remove the file `instance` and the journal from the copy)";

fn short(incarnation: Incarnation) -> String {
    let mut text = incarnation.to_string();
    text.truncate(12);
    text
}
