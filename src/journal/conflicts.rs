//! The records of conflicts: where the trail holds another row under the number of one of our records, that record is carried a
//! second time, as the text inside a new one, which is chained, durable and shipped like any other.
//!
//! Whoever can add rows can also do so for the numbers of the new ones. A carried record that is displaced again is carried again
//! (its text does not grow), up to `MOST_CARRIED` for one start; beyond that, displaced records are counted.

use crate::domain::{Conflict, EnvironmentName, Event, Incarnation, Record, SealedRecord, Timestamp};
use crate::store::Difference;
use std::collections::{BTreeMap, HashSet};

/// Conflict records of one start that stand for one record each.
const MOST_CARRIED: usize = if cfg!(test) { 64 } else { 16_384 };
/// Records of which is known that their conflict was recorded.
const MOST_KNOWN: usize = 4 * MOST_CARRIED;
/// The bytes of a record's text, as JSON has them inside a string, that go into one conflict record.
const PART: usize = 12 * 1024;

/// What was recorded of conflicts since the start.
#[derive(Default)]
pub(super) struct Conflicts {
    carried: usize,
    known: HashSet<(Incarnation, u64)>,
    /// Those that were counted for the alarm, should recording them have to be tried again.
    counted: HashSet<(Incarnation, u64)>,
    /// Records that were displaced and that no record counts yet.
    uncounted: Counted,
}

/// What to record of a batch. It has happened once `Conflicts::done` is told.
#[derive(Default)]
pub(super) struct ConflictRecords {
    pub events: Vec<Event>,
    /// Conflicts that were not known before.
    pub new: Vec<Difference>,
    carried: usize,
    uncounted: Counted,
}

/// Records that are counted only: the first, the last seq, and how many.
#[derive(Clone, Default)]
struct Counted {
    first: Option<Difference>,
    leaf: Option<crate::domain::Digest>,
    through: u64,
    count: u64,
}

impl Conflicts {
    /// What to record of these differences between the trail and a batch.
    pub fn plan(
        &self,
        records: &[SealedRecord],
        differences: &[Difference],
        at: Timestamp,
        env: &EnvironmentName,
    ) -> ConflictRecords {
        let by_place: BTreeMap<_, _> = records
            .iter()
            .map(|record| ((record.incarnation, record.seq), record))
            .collect();
        let mut plan = ConflictRecords {
            uncounted: self.uncounted.clone(),
            ..ConflictRecords::default()
        };
        let mut must_count = differences.is_empty();
        for difference in differences.iter().filter(|difference| difference.others > 0) {
            let place = (difference.incarnation, difference.seq);
            let Some(record) = by_place.get(&place) else { continue };
            if self.known.contains(&place) {
                continue;
            }
            plan.new.push(difference.clone());
            match carry(record, difference, at, env) {
                Carried::Not => {}
                Carried::By(events) if self.carried + plan.carried + events.len() <= MOST_CARRIED => {
                    plan.carried += events.len();
                    plan.events.extend(events);
                }
                Carried::By(_) => {
                    must_count = true;
                    plan.uncounted.add(record, difference, 1);
                }
                // Recorded at once, it would only be displaced at once.
                Carried::Count(count) => plan.uncounted.add(record, difference, count),
            }
        }
        if must_count && let Some(event) = plan.uncounted.event(at, env) {
            plan.events.push(event);
            plan.uncounted = Counted::default();
        }
        plan
    }

    /// How many of these raise the alarm for the first time.
    pub fn count_new(&mut self, new: &[Difference]) -> u64 {
        let places = new.iter().map(|difference| (difference.incarnation, difference.seq));
        let mut count = 0;
        for place in places {
            let known = match self.counted.len() < MOST_KNOWN {
                true => !self.counted.insert(place),
                false => self.counted.contains(&place),
            };
            count += u64::from(!known);
        }
        count
    }

    /// The events of the plan are durable.
    pub fn done(&mut self, plan: ConflictRecords) {
        self.carried += plan.carried;
        self.uncounted = plan.uncounted;
        let room = MOST_KNOWN.saturating_sub(self.known.len());
        let places = plan.new.iter().map(|difference| (difference.incarnation, difference.seq));
        self.known.extend(places.take(room));
    }
}

enum Carried {
    By(Vec<Event>),
    /// It is a conflict record that stands where it should.
    Not,
    /// It counted so many records itself.
    Count(u64),
}

/// The events that carry a record, or tell of the row beside it.
fn carry(record: &SealedRecord, difference: &Difference, at: Timestamp, env: &EnvironmentName) -> Carried {
    let told = match serde_json::from_slice::<Record>(&record.bytes).map(|record| record.event) {
        Ok(Event::Conflict(told)) => Some(told),
        _ => None,
    };
    let new = Conflict {
        at,
        environment: env.clone(),
        incarnation: record.incarnation,
        seq: record.seq,
        leaf: record.leaf,
        found: difference.found,
        beside: difference.present,
        record: None,
        part: 0,
        parts: 0,
        again: 0,
        count: 1,
        through: record.seq,
    };
    match told {
        Some(_) if difference.present => Carried::Not,
        Some(told) if told.record.is_none() && !told.beside => Carried::Count(told.count),
        Some(told) => {
            let again = told.again + 1;
            Carried::By(vec![Event::Conflict(Conflict { at, again, ..told })])
        }
        None if difference.present => Carried::By(vec![Event::Conflict(new)]),
        None => {
            // Records are JSON texts; one that were not could only be counted.
            let Ok(text) = std::str::from_utf8(&record.bytes) else {
                return Carried::Count(1);
            };
            let parts = parts(text);
            let of = parts.len() as u32;
            let part = |(number, text): (usize, &str)| {
                Event::Conflict(Conflict {
                    record: Some(text.to_owned()),
                    part: number as u32 + 1,
                    parts: of,
                    ..new.clone()
                })
            };
            Carried::By(parts.into_iter().enumerate().map(part).collect())
        }
    }
}

/// The text in pieces that fit into a record each.
fn parts(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut begin, mut size) = (0, 0);
    for (at, character) in text.char_indices() {
        let takes = match character {
            '"' | '\\' => 2,
            '\0'..='\x1f' => 6,
            other => other.len_utf8(),
        };
        if size + takes > PART {
            parts.push(&text[begin..at]);
            (begin, size) = (at, 0);
        }
        size += takes;
    }
    parts.push(&text[begin..]);
    parts
}

impl Counted {
    fn add(&mut self, record: &SealedRecord, difference: &Difference, count: u64) {
        self.first.get_or_insert_with(|| difference.clone());
        self.leaf.get_or_insert(record.leaf);
        self.through = record.seq;
        self.count += count;
    }

    fn event(&self, at: Timestamp, env: &EnvironmentName) -> Option<Event> {
        let first = self.first.as_ref()?;
        Some(Event::Conflict(Conflict {
            at,
            environment: env.clone(),
            incarnation: first.incarnation,
            seq: first.seq,
            leaf: self.leaf?,
            found: first.found,
            beside: first.present,
            record: None,
            part: 0,
            parts: 0,
            again: 0,
            count: self.count,
            through: self.through,
        }))
    }
}
