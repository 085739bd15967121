//! The streams of all servers as one.

use super::session::Conversation;
use super::{Asker, Read};
use crate::domain::{MessageId, Reason, Refusal};
use crate::gate::trail::Trail;
use crate::transport::Body;
use http::Response;
use std::sync::Arc;

impl Asker {
    pub(super) async fn own_stream(
        &self,
        _conversation: Arc<Conversation>,
        _last: Option<&str>,
        _trail: &mut Trail,
    ) -> Result<Response<Body>, Refusal> {
        Err(Reason::WrongHttpMethod.into())
    }

    pub(super) async fn listen(&self, _read: &Read<'_>, _id: &MessageId, _trail: &mut Trail) -> Result<Response<Body>, Refusal> {
        Err(Reason::UnknownMethod.into())
    }
}
