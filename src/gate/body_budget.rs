//! Reads request bodies within a memory budget for the whole instance. Slowly arriving bodies stay in memory, and
//! connections × streams × the largest body would exceed any machine's memory. Does not look at the content of a body.

use crate::limits::PrincipalKey;
use crate::transport::{self, BodyProblem};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Budget for all bodies being read at the same time, and for those of one caller. All unauthenticated requests together
/// share the budget of one caller.
const MAX_BYTES: usize = 256 * 1024 * 1024;
const MAX_BYTES_PER_CALLER: usize = 32 * 1024 * 1024;
/// Memory that a request holds besides its body while it waits for it: its head.
const HEAD: usize = 32 * 1024;

/// The memory budget for request bodies that are being read.
pub struct BodyBudget {
    usage: Mutex<Usage>,
    most: usize,
    most_of_one: usize,
}

#[derive(Default)]
struct Usage {
    all: usize,
    /// Bytes reserved by each caller; `None` stands for all unauthenticated requests.
    by: HashMap<Option<PrincipalKey>, usize>,
}

/// Why a request body was not read: no budget left, or a problem with the body itself.
#[derive(Debug, PartialEq, Eq)]
pub enum BodyRefused {
    NoRoom,
    Problem(BodyProblem),
}

struct Reservation<'a> {
    budget: &'a BodyBudget,
    who: Option<PrincipalKey>,
    bytes: usize,
}

impl BodyBudget {
    /// Raises both budgets, if needed, so that one body of `max_body` bytes always fits.
    pub fn new(max_body: usize) -> Self {
        Self {
            usage: Mutex::default(),
            most: MAX_BYTES.max(4 * (max_body + HEAD)),
            most_of_one: MAX_BYTES_PER_CALLER.max(max_body + HEAD),
        }
    }

    /// Reads the whole body after reserving its announced length; without a `Content-Length` it reserves `most`.
    pub async fn read<B>(&self, body: B, most: usize, timeout: Duration, who: Option<PrincipalKey>) -> Result<Bytes, BodyRefused>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let announced = body.size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok());
        let _claim = self
            .reserve(who, announced.map_or(most, |bytes| bytes.min(most)))
            .ok_or(BodyRefused::NoRoom)?;
        transport::read_body(body, most, timeout).await.map_err(BodyRefused::Problem)
    }

    fn reserve(&self, who: Option<PrincipalKey>, bytes: usize) -> Option<Reservation<'_>> {
        let bytes = bytes + HEAD;
        let mut held = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        let own = held.by.get(&who).copied().unwrap_or_default() + bytes;
        if own > self.most_of_one || held.all + bytes > self.most {
            return None;
        }
        held.all += bytes;
        held.by.insert(who, own);
        Some(Reservation {
            budget: self,
            who,
            bytes,
        })
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut held = self.budget.usage.lock().unwrap_or_else(PoisonError::into_inner);
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
        let body_budget = BodyBudget::new(4 * 1024 * 1024);
        let claims = |who| std::iter::from_fn(|| body_budget.reserve(who, 4 * 1024 * 1024)).collect::<Vec<_>>();
        let strangers = claims(None);
        assert_eq!(strangers.len(), 7);
        assert!(body_budget.reserve(None, 0).is_some() && body_budget.reserve(None, 4 * 1024 * 1024).is_none());
        drop(strangers);
        assert_eq!(claims(None).len(), 7);
        let held = body_budget.usage.lock().unwrap();
        assert_eq!((held.all, held.by.len()), (0, 0));
    }

    #[test]
    fn the_largest_body_has_room_however_large_it_may_be() {
        let body_budget = BodyBudget::new(1024 * 1024 * 1024);
        assert!(body_budget.reserve(None, 1024 * 1024 * 1024).is_some());
    }
}
