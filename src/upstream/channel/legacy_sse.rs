//! The HTTP+SSE transport of MCP 2024-11-05: one event stream brings all server messages, and its first event names the
//! URL for POST. That URL must have the same origin as the configured one; otherwise the server is not used.

use super::mux::{MuxChannel, Sink, UnsolicitedRouting};
use super::supervisor::ChannelLease;
use crate::domain::{ClientRequests, CutBy, Reason};
use crate::mcp::{SseFrame, SseReader};
use crate::transport::ResponseBody;
use crate::upstream::error::ForwardError;
use crate::upstream::http::{Endpoint, Media, media};
use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use http_body_util::BodyExt;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Opens the event stream and waits for the `endpoint` event.
pub async fn open_channel(
    endpoint: &Arc<Endpoint>,
    routing: UnsolicitedRouting,
    allowed_requests: ClientRequests,
    max_event: usize,
    lease: ChannelLease,
) -> Result<Arc<MuxChannel>, ForwardError> {
    let opening = async {
        let none = HeaderMap::new();
        let response = endpoint
            .exchange(&endpoint.streams, &Method::GET, &none, &Bytes::new())
            .await?;
        if !response.status().is_success() || media(response.headers()) != Media::Events {
            return Err(ForwardError::bad_response("the server opened no event stream").with_status(response.status()));
        }
        let mut stream = LegacySseStream {
            body: response.into_body(),
            reader: SseReader::new(max_event),
        };
        let to = loop {
            let frame = stream.next().await.map_err(ForwardError::bad_response)?;
            if let (Some(event), Some(data)) = (&frame.event, &frame.data)
                && event == "endpoint"
            {
                break posting_to(&endpoint.uri, &String::from_utf8_lossy(data)).map_err(ForwardError::bad_response)?;
            }
        };
        Ok((stream, to))
    };
    let late = |_| Err(ForwardError::timeout("the server does not say where messages are posted"));
    let (stream, to) = timeout(endpoint.first_byte, opening).await.unwrap_or_else(late)?;
    let end = lease.end();
    let post_endpoint = PostEndpoint {
        endpoint: endpoint.clone(),
        to,
        tasks: lease.supervisor.tasks.clone(),
        end: end.clone(),
        room: Arc::new(Semaphore::new(MOST_REPLIES)),
    };
    let channel = MuxChannel::new(Sink::LegacySse(post_endpoint), routing, allowed_requests, end);
    let tasks = lease.supervisor.tasks.clone();
    tasks.spawn(follow(channel.clone(), stream, lease));
    Ok(channel)
}

/// Reads the stream until it ends or the session is ended. Dropping the stream closes it, which tells the server.
async fn follow(channel: Arc<MuxChannel>, mut stream: LegacySseStream, lease: ChannelLease) {
    let why = tokio::select! {
        why = read_events(&channel, &mut stream) => Some(why),
        () = channel.end.cancelled() => None,
    };
    let asked = channel.end.is_cancelled();
    let error = match &why {
        Some(why) => ForwardError::bad_response(format!("the server is gone: {why}")),
        None => ForwardError::cut(CutBy::SessionEnded, Reason::UpstreamBroken, CutBy::SessionEnded.detail()),
    };
    if !asked {
        tracing::warn!(server = %lease.supervisor.server, why, "the server's stream is gone");
        lease.note_failure(&channel, &error);
    }
    channel.fail_all(error);
}

/// Hands every `message` event to the channel; returns why the stream ended.
async fn read_events(channel: &MuxChannel, stream: &mut LegacySseStream) -> &'static str {
    loop {
        let frame = match stream.next().await {
            Ok(frame) => frame,
            Err(why) => return why,
        };
        let is_message = frame
            .event
            .as_ref()
            .is_none_or(|event| event == "message" || event.is_empty());
        if let Some(data) = frame.data.filter(|data| is_message && !data.is_empty()) {
            channel.received(data).await;
        }
    }
}

struct LegacySseStream {
    body: ResponseBody,
    reader: SseReader,
}

impl LegacySseStream {
    async fn next(&mut self) -> Result<SseFrame, &'static str> {
        loop {
            match self.reader.frame() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => (),
                Err(_) => return Err("its stream cannot be followed"),
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.reader.push(data);
                    }
                }
                Some(Err(_)) => return Err("it broke off its stream"),
                None => return Err("it ended its stream"),
            }
        }
    }
}

/// Resolves the URL of the `endpoint` event against the server's own URL; refuses another origin.
fn posting_to(own: &Uri, named: &str) -> Result<Uri, &'static str> {
    const ELSEWHERE: &str = "the server names a place on another origin for messages";
    let named = named.trim();
    let plain = named
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'\\' && byte != b'#');
    if named.is_empty() || !plain {
        return Err("the server names no place for messages");
    }
    let origin = |uri: &Uri| Some((uri.scheme_str()?.to_owned(), uri.host()?.to_ascii_lowercase(), port(uri)?));
    let has_scheme = named.split(['/', '?']).next().is_some_and(|head| head.contains(':'));
    let whole = match named {
        _ if named.starts_with("//") => return Err(ELSEWHERE),
        _ if has_scheme => named.to_owned(),
        _ => {
            let (scheme, authority) = (
                own.scheme_str().unwrap_or_default(),
                own.authority().map_or("", |at| at.as_str()),
            );
            let path = match named.as_bytes()[0] {
                b'/' => named.to_owned(),
                b'?' => format!("{}{named}", own.path()),
                _ => format!("{}/{named}", own.path().rsplit_once('/').map_or("", |(folder, _)| folder)),
            };
            format!("{scheme}://{authority}{path}")
        }
    };
    let to: Uri = whole.parse().map_err(|_| "the server names no place for messages")?;
    let user = to.authority().is_some_and(|authority| authority.as_str().contains('@'));
    if origin(&to).is_some() && origin(&to) == origin(own) && !user {
        Ok(to)
    } else {
        Err(ELSEWHERE)
    }
}

fn port(uri: &Uri) -> Option<u16> {
    match (uri.port_u16(), uri.scheme_str()?) {
        (Some(port), _) => Some(port),
        (None, "https") => Some(443),
        (None, _) => Some(80),
    }
}

/// The POST side of one channel; the answers come on the event stream.
#[derive(Clone)]
pub struct PostEndpoint {
    endpoint: Arc<Endpoint>,
    to: Uri,
    tasks: TaskTracker,
    end: CancellationToken,
    /// Limits the replies that are being posted at once.
    room: Arc<Semaphore>,
}

/// The most replies in flight at once.
const MOST_REPLIES: usize = 16;

impl PostEndpoint {
    /// Posts a message and waits until the server has accepted it.
    pub async fn post(&self, body: Bytes) -> Result<(), ForwardError> {
        let none = HeaderMap::new();
        let client = &self.endpoint.client;
        let response = self
            .endpoint
            .exchange_at(&self.to, client, &Method::POST, &none, &body)
            .await?;
        match response.status() {
            status if status.is_success() => Ok(()),
            status => Err(ForwardError::failed_with(status)),
        }
    }

    /// Posts a request in the background; `on_failure` hears if the server does not accept it. Its answer comes on the
    /// event stream, possibly before the POST is acknowledged.
    pub fn post_request(&self, body: Bytes, on_failure: impl FnOnce(ForwardError) + Send + 'static) {
        let this = self.clone();
        self.tasks.spawn(async move {
            let Some(posted) = this.end.run_until_cancelled(this.post(body)).await else {
                return;
            };
            match posted {
                // Some servers acknowledge the POST only after they have answered on the stream, so a time-out here is
                // no failure.
                Ok(()) => (),
                Err(error) if error.reason == Reason::UpstreamTimeout => (),
                Err(error) => on_failure(error),
            }
        });
    }

    /// Posts a reply in the background, or drops it if `MOST_REPLIES` are in flight: the caller reads the stream and
    /// must not wait.
    pub fn post_if_there_is_room(&self, body: Bytes) {
        let Ok(place) = self.room.clone().try_acquire_owned() else {
            return;
        };
        let this = self.clone();
        self.tasks.spawn(async move {
            let posted = this.end.run_until_cancelled(this.post(body)).await;
            if let Some(Err(error)) = posted {
                tracing::debug!(%error, "the server did not take a reply");
            }
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_posted_to_the_origin_of_the_server_and_nowhere_else() {
        let own: Uri = "https://mcp.example:8443/a/sse?x=1".parse().unwrap();
        let to = |named: &str| posting_to(&own, named).map(|uri| uri.to_string());
        for (named, whole) in [
            ("/messages?sessionId=1", "https://mcp.example:8443/messages?sessionId=1"),
            ("messages", "https://mcp.example:8443/a/messages"),
            ("?s=1", "https://mcp.example:8443/a/sse?s=1"),
            ("https://MCP.example:8443/m", "https://MCP.example:8443/m"),
            (
                "/m?next=https://evil.example/",
                "https://mcp.example:8443/m?next=https://evil.example/",
            ),
        ] {
            assert_eq!(to(named).as_deref(), Ok(whole));
        }
        for named in [
            "",
            "https://mcp.example/m",
            "http://mcp.example:8443/m",
            "https://evil.example:8443/m",
            "//evil.example/m",
            "https://mcp.example:8443@evil.example/m",
            "https://user@mcp.example:8443/m",
            "https:/m",
            "javascript:alert(1)",
            "/\\evil.example",
            "/m n",
            "/m#f",
        ] {
            assert!(to(named).is_err(), "{named}");
        }
        let bare: Uri = "https://mcp.example/sse".parse().unwrap();
        assert!(posting_to(&bare, "https://mcp.example:443/m").is_ok());
    }
}
