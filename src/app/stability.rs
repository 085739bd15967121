//! Decides when what was read from the policy files may take effect: how long they have been the same, and what that
//! allows. It reads no file and no clock; it is told what each look at the files found.
//!
//! ```text
//!            same for 0.35 s       same for 5 s
//! Wait ───────────────────▶ Add ───────────────▶ Replace        an event or another content: Wait again
//!   └── not same for 3 s ─▶ Unstable ─▶ Add …
//! ```

use crate::domain::Digest;
use std::time::Duration;
use tokio::time::Instant;

/// How long the files must be the same before anything of them takes effect.
const STABLE: Duration = Duration::from_millis(350);
/// How long before a forbid that is gone from them is dropped. A file that is away and comes back drops none.
pub const STABLE_FOR_LESS: Duration = Duration::from_secs(5);
/// The same when there is no older set to go on with, at the start.
const STABLE_AT_START: Duration = Duration::from_millis(200);
/// How long files that keep changing are waited for in silence.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pauses between looks. They are uneven, so that no flicker has the same face at every look.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(70),
    Duration::from_millis(110),
    Duration::from_millis(190),
    Duration::from_millis(230),
    Duration::from_millis(130),
];
/// What a pause counts at most: a process that was stopped has not looked.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// One reading of the files.
#[derive(Debug, Clone, Copy)]
pub struct Observation {
    /// When it began.
    pub at: Instant,
    pub content: Digest,
    /// Events of the files ever counted before it and after it.
    pub events_before: u64,
    pub events_after: u64,
}

/// What a look newly allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AllowedChange {
    /// Nothing that was not allowed before.
    Wait,
    /// Nothing; it is time to say that the files do not stop changing.
    Unstable,
    /// To add what is new, with every forbid that is in force.
    Add,
    /// To drop the forbids that are gone.
    Replace,
}

/// How long the policy files have been the same.
#[derive(Debug)]
pub struct Stability {
    last: Observation,
    same_for: Duration,
    /// How long they have been looked at since they were stable last.
    unstable_for: Duration,
    allowed: AllowedChange,
    /// Looks since the last change.
    observations: usize,
}

impl Stability {
    pub fn new(first: Observation) -> Self {
        Self {
            last: first,
            same_for: Duration::ZERO,
            unstable_for: Duration::ZERO,
            allowed: AllowedChange::Wait,
            observations: 0,
        }
    }

    pub fn observe(&mut self, observation: Observation) -> AllowedChange {
        // Up to the end of this reading there must have been no event since the beginning of the first.
        let pause = observation.at.saturating_duration_since(self.last.at).min(LONGEST_PAUSE);
        let same = observation.content == self.last.content && observation.events_after == self.last.events_before;
        if same {
            self.same_for += pause;
            self.observations += 1;
        } else {
            self.change();
        }
        self.unstable_for += pause;
        self.last = observation;
        let allowed = match () {
            () if self.same_for >= STABLE_FOR_LESS => AllowedChange::Replace,
            () if self.same_for >= STABLE => AllowedChange::Add,
            () if self.unstable_for >= PATIENCE => AllowedChange::Unstable,
            () => AllowedChange::Wait,
        };
        if allowed <= self.allowed {
            return AllowedChange::Wait;
        }
        self.allowed = allowed;
        allowed
    }

    fn change(&mut self) {
        if self.allowed >= AllowedChange::Add || self.same_for >= STABLE {
            self.unstable_for = Duration::ZERO;
            self.allowed = AllowedChange::Wait;
        }
        self.same_for = Duration::ZERO;
        self.observations = 0;
    }

    /// Whether the files may be used by a process that has no older set.
    pub fn allows_start(&self) -> bool {
        self.same_for >= STABLE_AT_START
    }

    /// Nothing of this content is left to be taken.
    pub fn done(&mut self) {
        self.allowed = AllowedChange::Replace;
    }

    /// This content was refused and may be right now.
    pub fn again(&mut self) {
        self.allowed = AllowedChange::Wait;
    }

    /// How soon to look again; `None`: not before something happens.
    pub fn pause(&self) -> Option<Duration> {
        (self.allowed < AllowedChange::Replace).then(|| PAUSES[self.observations % PAUSES.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files that are looked at, in a time of their own.
    struct Files {
        at: Instant,
        content: &'static str,
        events: u64,
        stability: Stability,
    }

    impl Files {
        fn new(content: &'static str) -> Files {
            let at = Instant::now();
            let first = Observation {
                at,
                content: Digest::of(content.as_bytes()),
                events_before: 0,
                events_after: 0,
            };
            Files {
                at,
                content,
                events: 0,
                stability: Stability::new(first),
            }
        }

        fn look(&mut self) -> AllowedChange {
            self.stability.observe(Observation {
                at: self.at,
                content: Digest::of(self.content.as_bytes()),
                events_before: self.events,
                events_after: self.events,
            })
        }

        /// Looks as often as it should until something is allowed, and how long that took.
        fn until_allowed(&mut self) -> (AllowedChange, Duration) {
            let begun = self.at;
            loop {
                self.at += self.stability.pause().expect("a look is due");
                match self.look() {
                    AllowedChange::Wait => assert!(self.at - begun < Duration::from_secs(60)),
                    allowed => return (allowed, self.at - begun),
                }
            }
        }

        fn change(&mut self, content: &'static str) {
            self.content = content;
            self.events += 1;
        }
    }

    #[test]
    fn what_is_new_is_added_soon_and_what_is_gone_is_dropped_late() {
        let mut files = Files::new("a");
        let (allowed, soon) = files.until_allowed();
        assert_eq!(allowed, AllowedChange::Add);
        assert!(soon >= STABLE && soon < STABLE + LONGEST_PAUSE, "{soon:?}");
        let (allowed, later) = files.until_allowed();
        assert_eq!(allowed, AllowedChange::Replace);
        let late = soon + later;
        assert!(late >= STABLE_FOR_LESS && late < STABLE_FOR_LESS + LONGEST_PAUSE, "{late:?}");
        assert_eq!(files.stability.pause(), None);
        assert_eq!(files.look(), AllowedChange::Wait, "nothing twice");
    }

    #[test]
    fn a_change_at_any_time_begins_anew() {
        let mut files = Files::new("a");
        files.until_allowed();
        files.at += Duration::from_secs(4);
        files.change("b");
        assert_eq!(files.look(), AllowedChange::Wait);
        assert_eq!(files.until_allowed().0, AllowedChange::Add);
        assert_eq!(files.until_allowed().0, AllowedChange::Replace);
        files.change("c");
        assert_eq!(files.look(), AllowedChange::Wait);
        assert_eq!(files.until_allowed().0, AllowedChange::Add);
    }

    #[test]
    fn an_event_counts_although_every_look_finds_the_same() {
        let mut files = Files::new("absent");
        let mut seen = Vec::new();
        for _ in 0..50 {
            files.at += Duration::from_millis(200);
            files.events += 2;
            seen.push(files.look());
            assert!(!files.stability.allows_start());
        }
        assert_eq!(
            seen.iter().filter(|allowed| **allowed == AllowedChange::Unstable).count(),
            1,
            "said once"
        );
        assert_eq!(seen.iter().max(), Some(&AllowedChange::Unstable));
        assert_eq!(files.until_allowed().0, AllowedChange::Add, "it is over");
    }

    #[test]
    fn an_event_during_a_reading_counts() {
        let mut files = Files::new("a");
        files.until_allowed();
        files.at += Duration::from_millis(100);
        let during = Observation {
            at: files.at,
            content: Digest::of(b"b"),
            events_before: 1,
            events_after: 2,
        };
        assert_eq!(files.stability.observe(during), AllowedChange::Wait);
        (files.content, files.events) = ("b", 2);
        files.at += LONGEST_PAUSE;
        assert_eq!(files.look(), AllowedChange::Wait);
        files.at += LONGEST_PAUSE;
        assert_eq!(files.look(), AllowedChange::Wait, "what was read first was half of each");
        files.at += LONGEST_PAUSE;
        assert_eq!(files.look(), AllowedChange::Add);
    }

    #[test]
    fn a_flicker_without_events_is_seen_in_five_seconds_whatever_its_period() {
        for period in (20..=1_000).step_by(10).map(Duration::from_millis) {
            let mut files = Files::new("there");
            files.until_allowed();
            files.until_allowed();
            let begun = files.at;
            files.content = "away";
            files.look();
            while files.at - begun < Duration::from_secs(60) {
                files.at += files.stability.pause().expect("a look is due");
                let phase = (files.at - begun).as_millis() % period.as_millis();
                files.content = if phase * 2 < period.as_millis() { "away" } else { "there" };
                let allowed = files.look();
                assert!(allowed < AllowedChange::Replace, "away for {:?} of {period:?}", period / 2);
            }
        }
    }

    #[test]
    fn a_process_that_was_stopped_has_not_looked() {
        let mut files = Files::new("a");
        files.until_allowed();
        files.change("b");
        files.look();
        files.at += Duration::from_secs(3_600);
        assert_eq!(files.look(), AllowedChange::Wait);
        assert!(files.stability.allows_start());
    }

    #[test]
    fn what_is_done_is_not_looked_at_and_may_be_tried_again() {
        let mut files = Files::new("a");
        assert!(!files.stability.allows_start());
        assert_eq!(files.until_allowed().0, AllowedChange::Add);
        files.stability.done();
        assert_eq!(files.stability.pause(), None);
        files.at += Duration::from_secs(30);
        assert_eq!(files.look(), AllowedChange::Wait);
        files.stability.again();
        assert_eq!(files.until_allowed().0, AllowedChange::Add);
        assert_eq!(files.until_allowed().0, AllowedChange::Replace);
    }
}
