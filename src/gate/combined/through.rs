//! One message for one server: put through the path of its own endpoint, with a trail and records of its own, and what is told
//! of it here. Nothing is judged.

use super::Asker;
use super::names::{Names, Origin};
use super::session::{Conversation, Held};
use crate::domain::{Call, Era, MessageId, Reason, Refusal, ServerName};
use crate::gate::screen::is_event_stream;
use crate::gate::site::Verb;
use crate::gate::trail::Trail;
use crate::gate::{Errand, Gate};
use crate::mcp::{self, AnswerKind, SseReader};
use crate::transport::{self, Body};
use crate::upstream::Upstream;
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// How a message comes to a server by way of the combined endpoint.
pub struct Through {
    pub asker: Asker,
    pub names: Names,
    /// Of a legacy client.
    pub conversation: Option<Arc<Conversation>>,
    /// A session is opened if the call is permitted.
    pub opens: bool,
    /// It belongs to a call that is counted already.
    pub is_counted: bool,
}

/// What became of a message for one server.
pub struct Asked {
    pub answered: Result<Response<Body>, Refusal>,
    pub trail: Trail,
    /// Whether there is a record to quote; `Err`: there cannot be one.
    pub recorded: Result<bool, ()>,
}

/// An answer that is put together with others is held whole.
const LONGEST_ANSWER: usize = 16 * 1024 * 1024;

impl Through {
    pub fn names(&self) -> Names {
        self.names.clone()
    }

    pub fn label(&self) -> Option<String> {
        self.conversation.as_ref().map(|conversation| conversation.label.clone())
    }

    /// Whether a session is to be opened for this call.
    pub fn opens(&self, call: &Call) -> bool {
        self.opens && call.era == Era::Legacy && self.conversation.is_some()
    }

    pub fn server(&self) -> &ServerName {
        self.names.server()
    }

    pub fn held(&self) -> Option<Held> {
        self.conversation.as_ref()?.held(self.server())
    }

    /// Whether the server has lost the session, by what it answered in it. If it has, the next call opens another. Some
    /// servers say it with a status that can mean other things too: those are asked again.
    pub async fn has_lost(&self, held: &Held, answered: Option<StatusCode>) -> bool {
        let lost = match answered {
            Some(StatusCode::NOT_FOUND) => true,
            Some(StatusCode::BAD_REQUEST) => {
                let ping = Bytes::from_static(br#"{"jsonrpc":"2.0","id":"guardian/ping","method":"ping"}"#);
                let through = self.asker.through(self.server().clone(), self.conversation.clone(), false);
                let answered = through.ask(Verb::Post, &held.fields(), ping).await.trail.answered;
                matches!(answered, Some(StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST))
            }
            _ => false,
        };
        if let (true, Some(conversation)) = (lost, &self.conversation) {
            conversation.lose(self.server(), held);
        }
        lost
    }

    /// Whether a session that is unknown was looked for here: links to servers are Guardian's own.
    pub fn never_left(&self) -> bool {
        let server = self.asker.gate.parts.upstreams.get(self.server());
        server.is_some_and(Upstream::is_linked)
    }

    /// Whether the server is known to lack a capability.
    pub fn lacks(&self, capability: &str) -> bool {
        let server = self.asker.gate.parts.upstreams.get(self.server());
        server.is_some_and(|server| server.hello().lacks(capability))
    }

    /// One message for one server, with a trail and records of its own.
    pub async fn ask(&self, verb: Verb, headers: &HeaderMap, body: Bytes) -> Asked {
        let Asker {
            gate,
            principal,
            counted,
            source,
        } = &self.asker;
        let clock = &gate.parts.clock;
        let mut trail = Trail::new((clock.request)(), (clock.now)(), *source);
        trail.principal = Some(principal.clone());
        trail.server = Some(self.server().clone());
        trail.through = true;
        let errand = Errand {
            headers,
            verb,
            body: Ok(body),
            proved: principal.clone().into(),
            counted: *counted,
        };
        let answered = gate.pass(errand, self.server().clone(), Some(self), &mut trail).await;
        let (error, recorded) = match &answered {
            Ok(_) => ("", Ok(true)),
            Err(refusal) => (refusal.reason.code(), gate.put_down(refusal, &trail).await),
        };
        gate.count(&trail, error);
        Asked {
            answered,
            trail,
            recorded,
        }
    }
}

impl Asker {
    pub fn through(&self, server: ServerName, conversation: Option<Arc<Conversation>>, opens: bool) -> Through {
        Through {
            asker: self.clone(),
            names: Names::new(server, Origin::Answer),
            conversation,
            opens,
            is_counted: false,
        }
    }
}

impl Asked {
    /// What the caller is told.
    pub fn response(self, gate: &Gate) -> Response<Body> {
        match (self.answered, self.recorded) {
            (Ok(response), _) => response,
            (Err(refusal), Ok(recorded)) => gate.tell(&refusal, recorded, &self.trail),
            (Err(_), Err(())) => gate.tell(&Reason::AuditUnavailable.into(), false, &self.trail),
        }
    }

    /// Told as a refusal of the combined endpoint, with the record of the server's own.
    pub fn refused_here(self, trail: &mut Trail, refusal: impl Into<Refusal>) -> Refusal {
        trail.request = self.trail.request;
        trail.put_down = self.recorded.ok();
        match self.recorded {
            Ok(_) => refusal.into(),
            Err(()) => Reason::AuditUnavailable.into(),
        }
    }

    /// To a legacy client 404 says that its session is gone. A server's session is not the client's.
    pub fn keeping_the_session(mut self) -> Self {
        if let (Ok(response), Era::Legacy) = (&mut self.answered, self.trail.era)
            && response.status() == StatusCode::NOT_FOUND
        {
            *response.status_mut() = StatusCode::OK;
        }
        self
    }
}

/// The answer in a response, whichever way it comes.
pub async fn whole(response: Response<Body>, id: &MessageId) -> Option<Bytes> {
    let events = is_event_stream(&response);
    let mut body = response.into_body();
    if !events {
        return transport::read_body(body, LONGEST_ANSWER, Duration::MAX).await.ok();
    }
    let mut reader = SseReader::new(LONGEST_ANSWER);
    while let Some(frame) = body.frame().await {
        reader.push(frame.ok()?.into_data().ok()?);
        while let Some(frame) = reader.frame().ok()? {
            let Some(data) = frame.data.filter(|data| !data.is_empty()) else {
                continue;
            };
            if let AnswerKind::Result { .. } | AnswerKind::Error { .. } = mcp::answer_kind(&data, id) {
                return Some(data);
            }
        }
    }
    None
}

/// All of them at once; the results in the order of the futures.
pub async fn all<T>(futures: Vec<Pin<Box<dyn Future<Output = T> + Send + '_>>>) -> Vec<T> {
    let mut slots: Vec<_> = futures.into_iter().map(|future| (Some(future), None)).collect();
    poll_fn(|context| {
        for (future, result) in &mut slots {
            if let Some(Poll::Ready(ready)) = future.as_mut().map(|future| future.as_mut().poll(context)) {
                (*future, *result) = (None, Some(ready));
            }
        }
        match slots.iter().all(|(future, _)| future.is_none()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    slots.into_iter().filter_map(|(_, result)| result).collect()
}
