//! Who ended an exchange with a client before its answer was complete. A future or a body that is dropped cannot be told why,
//! so it carries an [`ExchangeEnd`] and asks. Closes nothing itself.

use crate::domain::CutBy;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Why Guardian ended a connection. Whoever ends one says so here before dropping it.
#[derive(Debug, Clone, Default)]
pub struct ConnectionEnd(Arc<OnceLock<CutBy>>);

impl ConnectionEnd {
    /// Guardian ends the connection. The first reason stays.
    pub fn cut(&self, by: CutBy) {
        let _ = self.0.set(by);
    }
}

/// What an exchange can be asked when it is dropped: whether Guardian ended it.
#[derive(Debug, Clone, Default)]
pub struct ExchangeEnd {
    connection: Option<ConnectionEnd>,
    deadline: Option<Instant>,
}

impl ExchangeEnd {
    pub fn new(connection: ConnectionEnd, deadline: Instant) -> Self {
        Self {
            connection: Some(connection),
            deadline: Some(deadline),
        }
    }

    /// Why Guardian ended the exchange, if it ended it. An exchange past its deadline is ended for that.
    pub fn cut_by(&self, now: Instant) -> Option<CutBy> {
        let connection = self.connection.as_ref().and_then(|end| end.0.get().copied());
        connection.or_else(|| self.deadline.filter(|deadline| *deadline <= now).map(|_| CutBy::TimeLimit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_client_left_unless_guardian_cut_or_the_time_was_over() {
        let (connection, now) = (ConnectionEnd::default(), Instant::now());
        let running = ExchangeEnd::new(connection.clone(), now + Duration::from_secs(1));
        let late = ExchangeEnd::new(connection.clone(), now);
        assert_eq!((running.cut_by(now), late.cut_by(now)), (None, Some(CutBy::TimeLimit)));
        assert_eq!(ExchangeEnd::default().cut_by(now), None);
        connection.cut(CutBy::Drain);
        connection.cut(CutBy::Stop);
        assert_eq!(
            (running.cut_by(now), late.cut_by(now)),
            (Some(CutBy::Drain), Some(CutBy::Drain))
        );
    }
}
