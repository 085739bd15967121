//! Keeps refusals from flooding the spool. Refusals of unauthenticated callers are counted by reason and network; those of
//! one principal are recorded in full up to a rate, then counted by principal and reason. The counts become `SUPPRESSED`
//! records once a second.

use crate::domain::{
    EnvironmentName, Event, Issuer, Member, Principal, Reason, Subject, Suppressed, SuppressedPrincipal, Timestamp, UserId,
    network_of,
};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Refusals of one principal that are recorded in full, per second.
const FULL_RECORDS_A_SECOND: u32 = 50;
/// Bound of each table. Beyond it principals are counted by reason and network, networks by reason alone, and further
/// principals get no full records.
const MOST_KEYS: usize = 4_096;

/// Counts refusals instead of recording each of them.
#[derive(Default)]
pub struct RefusalAggregator(Mutex<RefusalCounts>);

#[derive(Default)]
struct RefusalCounts {
    by_network: HashMap<NetworkKey, u64>,
    by_principal: HashMap<(PrincipalName, Reason), PrincipalCount>,
    recorded: HashMap<PrincipalName, (i64, u32)>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct PrincipalName {
    issuer: Issuer,
    subject: Subject,
}

/// `network` is `None` beyond `MOST_KEYS`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct NetworkKey {
    reason: Reason,
    authenticated: bool,
    network: Option<IpAddr>,
}

struct PrincipalCount {
    user: Option<UserId>,
    /// `None` once it called from more than one.
    network: Option<IpAddr>,
    count: u64,
}

impl RefusalAggregator {
    /// Counts one refusal of an unauthenticated caller, by reason and network.
    pub fn count(&self, reason: Reason, source: IpAddr) {
        self.counts().count_network(reason, false, source);
    }

    /// Whether this refusal gets a full record; if not, it has been counted.
    pub fn may_record_in_full(
        &self,
        principal: &Principal,
        member: Option<&Member>,
        reason: Reason,
        source: IpAddr,
        now: Timestamp,
    ) -> bool {
        let name = PrincipalName {
            issuer: principal.issuer.clone(),
            subject: principal.subject.clone(),
        };
        let mut counts = self.counts();
        let full = counts.is_within_rate(&name, now);
        if !full {
            counts.count_principal(name, member, reason, source);
        }
        full
    }

    /// Takes the counts since the last call, as events for the journal.
    pub fn drain(&self, environment: &EnvironmentName, at: Timestamp) -> Vec<Event> {
        let (by_network, by_principal) = {
            let mut counts = self.counts();
            (
                std::mem::take(&mut counts.by_network),
                std::mem::take(&mut counts.by_principal),
            )
        };
        let suppressed = |reason: Reason, network: Option<IpAddr>, count| Suppressed {
            at,
            environment: environment.clone(),
            reason: reason.code().to_owned(),
            authenticated: false,
            principal: None,
            network: network.map_or("others".to_owned(), network_text),
            count,
        };
        let of_networks = by_network.into_iter().map(|(key, count)| Suppressed {
            authenticated: key.authenticated,
            ..suppressed(key.reason, key.network, count)
        });
        let of_principals = by_principal.into_iter().map(|((name, reason), counted)| Suppressed {
            authenticated: true,
            principal: Some(SuppressedPrincipal {
                issuer: name.issuer,
                subject: name.subject,
                user: counted.user,
            }),
            ..suppressed(reason, counted.network, counted.count)
        });
        of_principals.chain(of_networks).map(Event::Suppressed).collect()
    }

    fn counts(&self) -> MutexGuard<'_, RefusalCounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RefusalCounts {
    fn is_within_rate(&mut self, name: &PrincipalName, now: Timestamp) -> bool {
        let is_full = |recorded: &HashMap<PrincipalName, _>| recorded.len() >= MOST_KEYS && !recorded.contains_key(name);
        if is_full(&self.recorded) {
            self.recorded.retain(|_, (second, _)| *second == now.secs());
        }
        if is_full(&self.recorded) {
            return false;
        }
        let spent = match self.recorded.get_mut(name) {
            Some(spent) => spent,
            None => self.recorded.entry(name.clone()).or_insert((now.secs(), 0)),
        };
        if spent.0 != now.secs() {
            *spent = (now.secs(), 0);
        }
        spent.1 += 1;
        spent.1 <= FULL_RECORDS_A_SECOND
    }

    fn count_principal(&mut self, name: PrincipalName, member: Option<&Member>, reason: Reason, source: IpAddr) {
        let (key, network) = ((name, reason), network_of(source));
        if self.by_principal.len() >= MOST_KEYS && !self.by_principal.contains_key(&key) {
            return self.count_network(reason, true, source);
        }
        let counted = self.by_principal.entry(key).or_insert(PrincipalCount {
            user: None,
            network: Some(network),
            count: 0,
        });
        counted.count += 1;
        counted.network = counted.network.filter(|known| *known == network);
        if let Some(member) = member {
            counted.user = Some(member.id.clone());
        }
    }

    fn count_network(&mut self, reason: Reason, authenticated: bool, source: IpAddr) {
        let key = NetworkKey {
            reason,
            authenticated,
            network: Some(network_of(source)),
        };
        let is_counted = self.by_network.len() < MOST_KEYS || self.by_network.contains_key(&key);
        let key = if is_counted {
            key
        } else {
            NetworkKey { network: None, ..key }
        };
        *self.by_network.entry(key).or_default() += 1;
    }
}

fn network_text(network: IpAddr) -> String {
    format!("{network}/{}", if network.is_ipv4() { 24 } else { 56 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{AuthMethod, Digest, Fingerprint, IssuerAlias, PrincipalKind};

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

    fn principal(subject: &str) -> Principal {
        Principal {
            kind: PrincipalKind::User,
            issuer: Issuer::parse("https://id.example.com/").unwrap(),
            alias: IssuerAlias::parse("id").unwrap(),
            subject: Subject::parse(subject).unwrap(),
            method: AuthMethod::Jwt,
            fingerprint: Fingerprint::of(&Digest::ZERO),
            client: None,
            token_session: None,
            token_id: None,
            email: None,
            tenant: None,
            assurance: None,
            roles: Vec::new(),
            key: None,
            narrowed_to: None,
            issued_at: None,
            expires_at: None,
        }
    }

    fn suppressed(events: Vec<Event>) -> Vec<Suppressed> {
        let suppressed = events.into_iter().map(|event| match event {
            Event::Suppressed(suppressed) => suppressed,
            other => panic!("{other:?}"),
        });
        suppressed.collect()
    }

    #[test]
    fn somebody_refused_over_and_over_is_counted_by_name_and_recorded_again_a_second_later() {
        let refusals = RefusalAggregator::default();
        let ana = principal("ana");
        let recorded = |reason, second, last| {
            let from = IpAddr::from([192, 0, last, 1]);
            (0..80)
                .filter(|_| refusals.may_record_in_full(&ana, None, reason, from, Timestamp::from_secs(second)))
                .count()
        };
        let full = [
            (Reason::MissingScope, 1, 2),
            (Reason::MissingScope, 2, 3),
            (Reason::UnknownTool, 2, 3),
        ];
        assert_eq!(full.map(|(reason, second, last)| recorded(reason, second, last)), [50, 50, 0]);
        let mut counted = suppressed(refusals.drain(&environment(), Timestamp::from_secs(3)));
        counted.sort_by_key(|counted| counted.count);
        let told: Vec<_> = counted
            .iter()
            .map(|counted| {
                let who = counted.principal.as_ref().map(|who| who.subject.as_str());
                (counted.reason.as_str(), who, counted.network.as_str(), counted.count)
            })
            .collect();
        let expected = [
            ("missing_scope", Some("ana"), "others", 60),
            ("unknown_tool", Some("ana"), "192.0.3.0/24", 80),
        ];
        assert_eq!(told, expected);
        assert!(counted.iter().all(|counted| counted.authenticated));
    }

    #[test]
    fn beyond_the_bound_principals_are_counted_by_network_and_no_refusal_is_lost() {
        let refusals = RefusalAggregator::default();
        let (from, now) = (IpAddr::from([192, 0, 2, 1]), Timestamp::from_secs(1));
        let mut full = 0;
        for number in 0..6_000 {
            let caller = principal(&format!("caller-{number}"));
            for _ in 0..=FULL_RECORDS_A_SECOND {
                full += u64::from(refusals.may_record_in_full(&caller, None, Reason::MissingScope, from, now));
            }
        }
        let counted = suppressed(refusals.drain(&environment(), now));
        assert_eq!(counted.len(), MOST_KEYS + 1);
        let unnamed: Vec<_> = counted.iter().filter(|counted| counted.principal.is_none()).collect();
        assert!(
            matches!(&unnamed[..], [one] if one.authenticated && one.network == "192.0.2.0/24"),
            "{unnamed:?}"
        );
        let all = full + counted.iter().map(|counted| counted.count).sum::<u64>();
        assert_eq!(all, 6_000 * u64::from(FULL_RECORDS_A_SECOND + 1));
    }
}
