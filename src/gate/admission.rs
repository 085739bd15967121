//! The limits of a permitted call. They come after the decision, so that a call refused by it uses up nothing.

use super::Gate;
use super::stream_registry::Registration;
use crate::decide::Permit;
use crate::domain::{LimitClass, Principal, Reason, Refusal};
use crate::grants::GrantSnapshot;
use crate::limits::{Admission, PrincipalKey};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Most open streams of one caller: each holds a connection to its server for hours.
const MAX_STREAMS_PER_PRINCIPAL: usize = 64;

impl Gate {
    /// Counts a call against the rate and concurrency limits. `limits_key` is `None` for a message that was counted already.
    pub(super) fn admit(
        &self,
        permit: &Permit,
        principal: &Principal,
        limits_key: Option<PrincipalKey>,
    ) -> Result<Option<Admission>, Refusal> {
        let Some(limits_key) = limits_key else { return Ok(None) };
        let call = permit.call();
        let tool = match call.method.limit_class() {
            LimitClass::Free => return Ok(None),
            LimitClass::Stream => {
                self.check_stream_limit(principal)?;
                None
            }
            LimitClass::Message => None,
            LimitClass::Call => call.tool(),
        };
        let admission = self.parts.limits.admit(limits_key, &call.server, tool);
        admission.map(Some).map_err(|refusal| *refusal)
    }

    /// Registers a stream that Guardian itself keeps open. The token is cancelled when the caller's authorisation ends.
    pub fn open_stream(&self, grant_snapshot: GrantSnapshot) -> Result<(Registration, CancellationToken), Refusal> {
        self.check_stream_limit(&grant_snapshot.principal)?;
        Ok(self.stream_registry.register(grant_snapshot))
    }

    fn check_stream_limit(&self, principal: &Principal) -> Result<(), Refusal> {
        if self.stream_registry.of(principal) < MAX_STREAMS_PER_PRINCIPAL {
            return Ok(());
        }
        Err(Refusal {
            retry_after: Some(Duration::from_secs(1)),
            ..Refusal::with_detail(
                Reason::TooManyStreams,
                format!("this caller may have {MAX_STREAMS_PER_PRINCIPAL}"),
            )
        })
    }
}
