//! Reads request bodies under a bound over all of them: what arrives slowly is held in memory, and connections times streams
//! times the largest body is more memory than there is. What is in a body is not looked at.

use crate::limits::PrincipalKey;
use crate::transport::{self, BodyProblem};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// All bodies that are being read; and those of one caller, or of all strangers together.
const MOST: usize = 256 * 1024 * 1024;
const MOST_OF_ONE: usize = 32 * 1024 * 1024;
/// What a request that waits for its body holds besides: its head.
const HEAD: usize = 32 * 1024;

/// Room for bodies that have not arrived.
pub struct Bodies {
    held: Mutex<Held>,
    most: usize,
    most_of_one: usize,
}

#[derive(Default)]
struct Held {
    all: usize,
    /// `None`: strangers.
    by: HashMap<Option<PrincipalKey>, usize>,
}

/// Why there is no body.
#[derive(Debug, PartialEq, Eq)]
pub enum Unread {
    NoRoom,
    Problem(BodyProblem),
}

struct Claim<'a> {
    bodies: &'a Bodies,
    who: Option<PrincipalKey>,
    bytes: usize,
}

impl Bodies {
    /// One body of the largest size always has room.
    pub fn new(max_body: usize) -> Self {
        Self {
            held: Mutex::default(),
            most: MOST.max(4 * (max_body + HEAD)),
            most_of_one: MOST_OF_ONE.max(max_body + HEAD),
        }
    }

    /// The whole body, if there is room for as much of it as is announced.
    pub async fn read<B>(&self, body: B, most: usize, timeout: Duration, who: Option<PrincipalKey>) -> Result<Bytes, Unread>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let announced = body.size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok());
        let _claim = self
            .claim(who, announced.map_or(most, |bytes| bytes.min(most)))
            .ok_or(Unread::NoRoom)?;
        transport::read_body(body, most, timeout).await.map_err(Unread::Problem)
    }

    fn claim(&self, who: Option<PrincipalKey>, bytes: usize) -> Option<Claim<'_>> {
        let bytes = bytes + HEAD;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let own = held.by.get(&who).copied().unwrap_or_default() + bytes;
        if own > self.most_of_one || held.all + bytes > self.most {
            return None;
        }
        held.all += bytes;
        held.by.insert(who, own);
        Some(Claim {
            bodies: self,
            who,
            bytes,
        })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut held = self.bodies.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.all -= self.bytes;
        match held.by.get_mut(&self.who) {
            Some(own) if *own > self.bytes => *own -= self.bytes,
            _ => {
                held.by.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all_the_room_and_what_is_given_back_can_be_taken_again() {
        let bodies = Bodies::new(4 * 1024 * 1024);
        let claims = |who| std::iter::from_fn(|| bodies.claim(who, 4 * 1024 * 1024)).collect::<Vec<_>>();
        let strangers = claims(None);
        assert_eq!(strangers.len(), 7);
        assert!(bodies.claim(None, 0).is_some() && bodies.claim(None, 4 * 1024 * 1024).is_none());
        drop(strangers);
        assert_eq!(claims(None).len(), 7);
        let held = bodies.held.lock().unwrap();
        assert_eq!((held.all, held.by.len()), (0, 0));
    }

    #[test]
    fn the_largest_body_has_room_however_large_it_may_be() {
        let bodies = Bodies::new(1024 * 1024 * 1024);
        assert!(bodies.claim(None, 1024 * 1024 * 1024).is_some());
    }
}
