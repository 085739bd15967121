//! Keeps refusals from flooding the spool. Refusals of unauthenticated callers are counted by reason and network; those of
//! one principal are recorded in full up to a rate, then counted too. The counts become `SUPPRESSED` records once a second.

use crate::domain::{EnvironmentName, Event, Reason, Suppressed, Timestamp, network_of};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// Refusals of one principal that are recorded in full, per second.
const FULL_RECORDS_A_SECOND: u32 = 50;
/// Bound of each table: of (reason, network) counts and of principals. Beyond it refusals are counted by reason alone, and
/// further principals get no full records.
const MOST_KEYS: usize = 4_096;

/// Counts refusals instead of recording each of them.
#[derive(Default)]
pub struct RefusalAggregator(Mutex<RefusalCounts>);

#[derive(Default)]
struct RefusalCounts {
    suppressed: HashMap<(Reason, Option<IpAddr>), u64>,
    recorded: HashMap<String, (i64, u32)>,
}

impl RefusalAggregator {
    /// Counts one refusal by reason and network.
    pub fn count(&self, reason: Reason, source: IpAddr) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (reason, Some(network_of(source)));
        let key = if counts.suppressed.len() < MOST_KEYS || counts.suppressed.contains_key(&key) {
            key
        } else {
            (reason, None)
        };
        *counts.suppressed.entry(key).or_default() += 1;
    }

    /// Whether this refusal gets a full record; if not, it has been counted.
    pub fn may_record_in_full(&self, principal: &str, reason: Reason, source: IpAddr, now: Timestamp) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.recorded.len() >= MOST_KEYS && !counts.recorded.contains_key(principal) {
            counts.recorded.retain(|_, (second, _)| *second == now.secs());
        }
        let full = counts.recorded.len() >= MOST_KEYS && !counts.recorded.contains_key(principal);
        if !full {
            let spent = match counts.recorded.get_mut(principal) {
                Some(spent) => spent,
                None => counts.recorded.entry(principal.to_owned()).or_insert((now.secs(), 0)),
            };
            if spent.0 != now.secs() {
                *spent = (now.secs(), 0);
            }
            spent.1 += 1;
            if spent.1 <= FULL_RECORDS_A_SECOND {
                return true;
            }
        }
        drop(counts);
        self.count(reason, source);
        false
    }

    /// Takes the counts since the last call, as events for the journal.
    pub fn drain(&self, environment: &EnvironmentName, at: Timestamp) -> Vec<Event> {
        let counted = std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).suppressed);
        let event = |((reason, network), count): ((Reason, Option<IpAddr>), u64)| {
            Event::Suppressed(Suppressed {
                at,
                environment: environment.clone(),
                reason: reason.code().to_owned(),
                network: network.map_or("others".to_owned(), network_text),
                count,
            })
        };
        counted.into_iter().map(event).collect()
    }
}

fn network_text(network: IpAddr) -> String {
    format!("{network}/{}", if network.is_ipv4() { 24 } else { 56 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> EnvironmentName {
        EnvironmentName::parse("test").unwrap()
    }

    #[test]
    fn a_flood_from_one_network_becomes_one_record() {
        let refusals = RefusalAggregator::default();
        for last in 0..200 {
            refusals.count(Reason::NoCredential, IpAddr::from([192, 0, 2, last]));
        }
        let events = refusals.drain(&environment(), Timestamp::from_secs(1));
        assert!(
            matches!(&events[..], [Event::Suppressed(one)] if one.count == 200 && one.network == "192.0.2.0/24"),
            "{events:?}"
        );
        assert!(refusals.drain(&environment(), Timestamp::from_secs(2)).is_empty());
    }

    #[test]
    fn memory_is_bounded_however_many_networks_call() {
        let refusals = RefusalAggregator::default();
        for n in 0..20_000_u32 {
            refusals.count(Reason::BadKey, IpAddr::from((n << 8).to_be_bytes()));
        }
        let events = refusals.drain(&environment(), Timestamp::from_secs(1));
        assert!(events.len() <= MOST_KEYS + 1);
    }

    #[test]
    fn somebody_refused_over_and_over_is_counted_after_a_while_and_recorded_again_a_second_later() {
        let refusals = RefusalAggregator::default();
        let from = IpAddr::from([127, 0, 0, 1]);
        let recorded = |second| {
            (0..80)
                .filter(|_| refusals.may_record_in_full("a|b", Reason::MissingScope, from, Timestamp::from_secs(second)))
                .count()
        };
        assert_eq!((recorded(1), recorded(2)), (50, 50));
        let events = refusals.drain(&environment(), Timestamp::from_secs(3));
        assert!(
            matches!(&events[..], [Event::Suppressed(one)] if one.count == 60),
            "{events:?}"
        );
    }
}
