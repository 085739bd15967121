//! Pool of client connections to MCP servers: idle HTTP/1.1 connections and one shared HTTP/2 connection for each
//! origin.
//!
//! An HTTP/1.1 connection carries one request at a time, and the task that waits for the answer polls the connection
//! itself: no other task, no channel in between. The response body owns the connection and returns it to the pool if
//! the whole answer has arrived when the body is dropped; otherwise the connection closes. HTTP/2 connections are
//! shared and have a task of their own. A connection leaves the pool after `life` without use. Callers choose `life`
//! shorter than the idle time-out of servers, so that no request meets a connection that the server is closing.

use super::wire::Look;
use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, Uri, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Interval of HTTP/2 PING frames on shared connections.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// The origin that a connection leads to: scheme and authority.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    scheme: Scheme,
    authority: Authority,
}

/// What hyper requires of the stream under a connection.
pub trait Stream: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static {}

impl<S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static> Stream for S {}

/// A connection that is ready for a request.
pub(super) enum Line<S: Stream> {
    /// HTTP/1.1, used by one request at a time.
    Own(Own<S>),
    /// HTTP/2, used by many requests at once.
    Shared(http2::SendRequest<Full<Bytes>>),
}

/// An HTTP/1.1 connection with its hyper driver.
pub struct Own<S: Stream> {
    sender: http1::SendRequest<Full<Bytes>>,
    /// Reads and writes whenever it is polled; `None` once the connection has ended.
    driver: Option<Box<http1::Connection<S, Full<Bytes>>>>,
    look: Look,
}

/// The pool.
pub struct Lines<S: Stream> {
    shelves: Mutex<Shelves<S>>,
    /// How long a connection may be idle.
    life: Duration,
    /// The most idle HTTP/1.1 connections kept for one origin.
    most: usize,
}

struct Shelves<S: Stream> {
    by_place: HashMap<Place, Shelf<S>>,
    /// Whether a task is running that closes expired connections.
    is_swept: bool,
}

/// The connections to one origin.
struct Shelf<S: Stream> {
    /// Idle connections with the time of their last use. The most recently used one is last and is taken first.
    idle: Vec<(Instant, Own<S>)>,
    /// The shared HTTP/2 connection, with the time when a request was last sent on it.
    shared: Option<(Instant, http2::SendRequest<Full<Bytes>>)>,
}

/// Why an established connection gave no answer.
#[derive(Debug)]
pub(super) struct Broken {
    /// The server may have received the request.
    pub sent: bool,
    pub source: hyper::Error,
}

/// The body of a response, together with the connection that delivers it.
pub struct Received<S: Stream> {
    /// `None` once the body was dropped.
    incoming: Option<Incoming>,
    held: Option<Held<S>>,
}

/// The HTTP/1.1 connection that a response body owns.
struct Held<S: Stream> {
    own: Own<S>,
    /// When the body last waited for data; becomes the start of the connection's idle time.
    since: Instant,
    lines: Arc<Lines<S>>,
    place: Place,
}

impl Place {
    /// The origin of a URI; `None` if it lacks a scheme or an authority.
    pub fn of(uri: &Uri) -> Option<Self> {
        Some(Self {
            scheme: uri.scheme()?.clone(),
            authority: uri.authority()?.clone(),
        })
    }

    pub fn host(&self) -> &str {
        self.authority.host()
    }

    /// The value of `Host`: the port is left out if it is the scheme's default (RFC 9110 section 7.2).
    fn named(&self) -> Option<HeaderValue> {
        let usual = if self.scheme == Scheme::HTTPS { 443 } else { 80 };
        let text = match self.authority.port_u16() {
            Some(port) if port != usual => HeaderValue::try_from(format!("{}:{port}", self.authority.host())),
            _ => HeaderValue::from_str(self.authority.host()),
        };
        text.ok()
    }
}

impl<S: Stream> Lines<S> {
    /// An empty pool. Connections are idle for at most `life`, and at most `most` of them for one origin.
    pub fn new(life: Duration, most: usize) -> Arc<Self> {
        Arc::new(Self {
            shelves: Mutex::new(Shelves {
                by_place: HashMap::new(),
                is_swept: false,
            }),
            life,
            most,
        })
    }

    /// Takes a connection that is usable as far as this machine can tell.
    pub fn take(&self, place: &Place) -> Option<Line<S>> {
        loop {
            let (since, mut own) = {
                let mut shelves = self.shelves();
                let shelf = shelves.by_place.get_mut(place)?;
                if let Some(shared) = shelf.shared(self.life) {
                    return Some(Line::Shared(shared));
                }
                shelf.idle.pop()?
            };
            if since.elapsed() < self.life && own.is_quiet() {
                return Some(Line::Own(own));
            }
            own.close();
        }
    }

    /// Makes a connection from a stream to `place`. If another task has set up a shared HTTP/2 connection meanwhile,
    /// that one is returned.
    pub async fn begin(self: &Arc<Self>, place: &Place, stream: S, look: Look, is_http2: bool) -> Result<Line<S>, hyper::Error> {
        if !is_http2 {
            let (sender, driver) = http1::handshake(stream).await?;
            let driver = Some(Box::new(driver));
            return Ok(Line::Own(Own { sender, driver, look }));
        }
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE);
        let (sender, driver) = builder.handshake(stream).await?;
        tokio::spawn(driver);
        let mut shelves = self.shelves();
        let shelf = shelves.at(place);
        if let Some(shared) = shelf.shared(self.life) {
            return Ok(Line::Shared(shared));
        }
        shelf.shared = Some((Instant::now(), sender.clone()));
        self.have_swept(shelves);
        Ok(Line::Shared(sender))
    }

    /// Sends the request once and waits for the response head.
    pub async fn send(
        self: &Arc<Self>,
        place: &Place,
        line: Line<S>,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Received<S>>, Broken> {
        let mut own = match line {
            Line::Own(own) => own,
            Line::Shared(mut shared) => {
                let answer = shared.try_send_request(request).await.map_err(broken)?;
                return Ok(answer.map(Received::shared));
            }
        };
        if let Some(host) = place.named() {
            request.headers_mut().entry(header::HOST).or_insert(host);
        }
        if let Some(path) = request.uri().path_and_query().cloned() {
            *request.uri_mut() = path.into();
        }
        let mut answer = pin!(own.sender.try_send_request(request));
        let answer = poll_fn(|context| {
            own.drive(context);
            answer.as_mut().poll(context)
        });
        let answer = answer.await.map_err(broken)?;
        let held = Held {
            own,
            since: Instant::now(),
            lines: self.clone(),
            place: place.clone(),
        };
        Ok(answer.map(|incoming| Received {
            incoming: Some(incoming),
            held: Some(held),
        }))
    }

    /// Returns an idle connection to the pool, or closes it if the origin has enough.
    fn put(self: &Arc<Self>, place: &Place, since: Instant, own: Own<S>) {
        let mut shelves = self.shelves();
        let idle = shelves.by_place.get(place).map_or(0, |shelf| shelf.idle.len());
        if idle >= self.most {
            drop(shelves);
            return own.close();
        }
        shelves.at(place).idle.push((since, own));
        self.have_swept(shelves);
    }

    /// Starts the sweeping task, unless it is running or there is no tokio runtime.
    fn have_swept(self: &Arc<Self>, mut shelves: MutexGuard<'_, Shelves<S>>) {
        if !shelves.is_swept
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            shelves.is_swept = true;
            runtime.spawn(sweep(Arc::downgrade(self), self.life));
        }
    }

    fn shelves(&self) -> MutexGuard<'_, Shelves<S>> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Stream> Shelves<S> {
    fn at(&mut self, place: &Place) -> &mut Shelf<S> {
        if !self.by_place.contains_key(place) {
            let shelf = Shelf {
                idle: Vec::new(),
                shared: None,
            };
            self.by_place.insert(place.clone(), shelf);
        }
        self.by_place.get_mut(place).expect("it is there, or was just put there")
    }
}

impl<S: Stream> Shelf<S> {
    /// The shared HTTP/2 connection, if it is usable. Requests in flight on a connection that is replaced run to their
    /// end.
    fn shared(&mut self, life: Duration) -> Option<http2::SendRequest<Full<Bytes>>> {
        self.forget_shared(life);
        let (since, shared) = self.shared.as_mut()?;
        *since = Instant::now();
        Some(shared.clone())
    }

    fn forget_shared(&mut self, life: Duration) {
        let is_over = |(since, shared): &mut (Instant, http2::SendRequest<_>)| shared.is_closed() || since.elapsed() >= life;
        self.shared.take_if(is_over);
    }
}

/// Closes connections that were idle for `life`; ends when the pool is empty.
async fn sweep<S: Stream>(lines: Weak<Lines<S>>, life: Duration) {
    loop {
        tokio::time::sleep(life.max(Duration::from_millis(10))).await;
        let Some(lines) = lines.upgrade() else { return };
        let mut old = Vec::new();
        let is_done = {
            let mut shelves = lines.shelves();
            shelves.by_place.retain(|_, shelf| {
                old.extend(shelf.idle.extract_if(.., |(since, _)| since.elapsed() >= life));
                shelf.forget_shared(life);
                !shelf.idle.is_empty() || shelf.shared.is_some()
            });
            shelves.is_swept = !shelves.by_place.is_empty();
            !shelves.is_swept
        };
        old.into_iter().for_each(|(_, own)| own.close());
        if is_done {
            return;
        }
    }
}

impl<S: Stream> Own<S> {
    fn drive(&mut self, context: &mut Context<'_>) {
        // If the driver fails, hyper reports the error to the waiting request when the driver is dropped.
        if let Some(driver) = &mut self.driver
            && Pin::new(driver).poll(context).is_ready()
        {
            self.driver = None;
        }
    }

    /// Whether the connection can take a request: neither side closed it and no unsolicited bytes arrived.
    fn stands(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.sender.is_ready()
    }

    /// The same, but it also sees bytes that the kernel holds and the reactor has not reported yet.
    fn is_quiet(&mut self) -> bool {
        let look = self.look.clone();
        look.closely(|| self.stands())
    }

    /// Closes the connection with TLS close_notify, if that needs no waiting.
    fn close(self) {
        let Self { sender, mut driver, .. } = self;
        drop(sender);
        if let Some(driver) = &mut driver {
            let _ = Pin::new(driver).poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}

fn broken<T>(mut error: TrySendError<T>) -> Broken {
    Broken {
        // hyper returns a request of which nothing was sent.
        sent: error.take_message().is_none(),
        source: error.into_error(),
    }
}

impl<S: Stream> Received<S> {
    fn shared(incoming: Incoming) -> Self {
        Self {
            incoming: Some(incoming),
            held: None,
        }
    }
}

impl<S: Stream> Body for Received<S> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { incoming, held } = &mut *self;
        let Some(incoming) = incoming else { return Poll::Ready(None) };
        let frame = Pin::new(&mut *incoming).poll_frame(context);
        let (Poll::Pending, Some(held)) = (&frame, held) else {
            return frame;
        };
        held.own.drive(context);
        held.since = Instant::now();
        Pin::new(incoming).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<S: Stream> Drop for Received<S> {
    fn drop(&mut self) {
        // Without `incoming`, the driver discards what is left of the answer. If all of it has arrived, the connection
        // is ready again and goes back to the pool.
        self.incoming = None;
        if let Some(mut held) = self.held.take()
            && held.own.stands()
        {
            held.lines.put(&held.place, held.since, held.own);
        }
    }
}

impl<S: Stream> std::fmt::Debug for Lines<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").field("life", &self.life).finish_non_exhaustive()
    }
}

impl<S: Stream> std::fmt::Debug for Received<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Received")
            .field("incoming", &self.incoming)
            .finish_non_exhaustive()
    }
}
