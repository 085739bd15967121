//! Pool of client connections to MCP servers: idle HTTP/1.1 connections and one shared HTTP/2 connection for each
//! origin.
//!
//! An HTTP/1.1 connection carries one request at a time, and the task that waits for the answer polls the connection
//! itself: no other task, no channel in between. The response body owns the connection and returns it to the pool if
//! the whole answer has arrived when the body is dropped; otherwise the connection closes. HTTP/2 connections are
//! shared and have a task of their own. A connection leaves the pool after `idle_timeout` without use. Callers choose it
//! shorter than the idle time-out of servers, so that no request meets a connection that the server is closing.
//!
//! Own code although hyper-util has a pool, because of `take`: it reuses no connection on which anything came unasked. Otherwise
//! a server could lay an answer in advance, which the next caller would get (response desynchronisation); hyper-util knows only
//! what a connection's own task was told so far. CPU is no reason. Measured against hyper-util 0.1.21 (release build, loopback,
//! bodies of 300 bytes, best of five): 9.3 to 10.2 us a call against 9.0 to 10.3 with 16 and 64 calls at once, of which the look
//! at the socket takes 0.3 to 0.8; with one call at a time on two workers 15 against 10 us, in 25 to 34 against 31 to 33 us of
//! time.

use super::probed_stream::Probe;
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
pub struct HttpOrigin {
    scheme: Scheme,
    authority: Authority,
}

/// What hyper requires of the stream under a connection.
pub trait PoolStream: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static {}

impl<S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static> PoolStream for S {}

/// A connection that is ready for a request.
pub(super) enum PooledConnection<S: PoolStream> {
    /// HTTP/1.1, used by one request at a time.
    Http1(Http1Connection<S>),
    /// HTTP/2, used by many requests at once.
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// An HTTP/1.1 connection with its hyper driver.
pub struct Http1Connection<S: PoolStream> {
    sender: http1::SendRequest<Full<Bytes>>,
    /// Reads and writes whenever it is polled; `None` once the connection has ended.
    driver: Option<Box<http1::Connection<S, Full<Bytes>>>>,
    probe: Probe,
}

/// The pool.
pub struct Pool<S: PoolStream> {
    host_pools: Mutex<HostPools<S>>,
    /// How long a connection may be idle.
    idle_timeout: Duration,
    /// The most idle HTTP/1.1 connections kept for one origin.
    most: usize,
}

struct HostPools<S: PoolStream> {
    by_origin: HashMap<HttpOrigin, HostPool<S>>,
    /// Whether a task is running that closes expired connections.
    is_swept: bool,
}

/// The connections to one origin.
struct HostPool<S: PoolStream> {
    /// Idle connections with the time of their last use. The most recently used one is last and is taken first.
    idle: Vec<(Instant, Http1Connection<S>)>,
    /// The shared HTTP/2 connection, with the time when a request was last sent on it.
    shared: Option<(Instant, http2::SendRequest<Full<Bytes>>)>,
}

/// Why an established connection gave no answer.
#[derive(Debug)]
pub(super) struct SendError {
    /// The server may have received the request.
    pub sent: bool,
    pub source: hyper::Error,
}

/// The body of a response, together with the connection that delivers it.
pub struct PooledBody<S: PoolStream> {
    /// `None` once the body was dropped.
    incoming: Option<Incoming>,
    checked_out: Option<CheckedOut<S>>,
}

/// The HTTP/1.1 connection that a response body owns.
struct CheckedOut<S: PoolStream> {
    http1: Http1Connection<S>,
    /// When the body last waited for data; becomes the start of the connection's idle time.
    since: Instant,
    pool: Arc<Pool<S>>,
    origin: HttpOrigin,
}

impl HttpOrigin {
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

impl<S: PoolStream> Pool<S> {
    /// An empty pool. Connections are idle for at most `idle_timeout`, and at most `most` of them for one origin.
    pub fn new(idle_timeout: Duration, most: usize) -> Arc<Self> {
        Arc::new(Self {
            host_pools: Mutex::new(HostPools {
                by_origin: HashMap::new(),
                is_swept: false,
            }),
            idle_timeout,
            most,
        })
    }

    /// Takes a connection that is usable as far as this machine can tell.
    pub fn take(&self, origin: &HttpOrigin) -> Option<PooledConnection<S>> {
        loop {
            let (since, mut http1) = {
                let mut host_pools = self.shelves();
                let host_pool = host_pools.by_origin.get_mut(origin)?;
                if let Some(shared) = host_pool.shared(self.idle_timeout) {
                    return Some(PooledConnection::Http2(shared));
                }
                host_pool.idle.pop()?
            };
            if since.elapsed() < self.idle_timeout && http1.has_no_unsolicited_bytes() {
                return Some(PooledConnection::Http1(http1));
            }
            http1.close();
        }
    }

    /// Makes a connection from a stream to `origin`. If another task has set up a shared HTTP/2 connection meanwhile,
    /// that one is returned.
    pub async fn handshake(
        self: &Arc<Self>,
        origin: &HttpOrigin,
        stream: S,
        probe: Probe,
        is_http2: bool,
    ) -> Result<PooledConnection<S>, hyper::Error> {
        if !is_http2 {
            let (sender, driver) = http1::handshake(stream).await?;
            let driver = Some(Box::new(driver));
            return Ok(PooledConnection::Http1(Http1Connection { sender, driver, probe }));
        }
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE);
        let (sender, driver) = builder.handshake(stream).await?;
        tokio::spawn(driver);
        let mut host_pools = self.shelves();
        let host_pool = host_pools.host_pool(origin);
        if let Some(shared) = host_pool.shared(self.idle_timeout) {
            return Ok(PooledConnection::Http2(shared));
        }
        host_pool.shared = Some((Instant::now(), sender.clone()));
        self.start_sweeper(host_pools);
        Ok(PooledConnection::Http2(sender))
    }

    /// Sends the request once and waits for the response head.
    pub async fn send(
        self: &Arc<Self>,
        origin: &HttpOrigin,
        connection: PooledConnection<S>,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<PooledBody<S>>, SendError> {
        let mut http1 = match connection {
            PooledConnection::Http1(http1) => http1,
            PooledConnection::Http2(mut shared) => {
                let answer = shared.try_send_request(request).await.map_err(send_error)?;
                return Ok(answer.map(PooledBody::shared));
            }
        };
        if let Some(host) = origin.named() {
            request.headers_mut().entry(header::HOST).or_insert(host);
        }
        if let Some(path) = request.uri().path_and_query().cloned() {
            *request.uri_mut() = path.into();
        }
        let mut answer = pin!(http1.sender.try_send_request(request));
        let answer = poll_fn(|context| {
            http1.drive(context);
            answer.as_mut().poll(context)
        });
        let answer = answer.await.map_err(send_error)?;
        let checked_out = CheckedOut {
            http1,
            since: Instant::now(),
            pool: self.clone(),
            origin: origin.clone(),
        };
        Ok(answer.map(|incoming| PooledBody {
            incoming: Some(incoming),
            checked_out: Some(checked_out),
        }))
    }

    /// Returns an idle connection to the pool, or closes it if the origin has enough.
    fn put_back(self: &Arc<Self>, origin: &HttpOrigin, since: Instant, http1: Http1Connection<S>) {
        let mut host_pools = self.shelves();
        let idle = host_pools.by_origin.get(origin).map_or(0, |host_pool| host_pool.idle.len());
        if idle >= self.most {
            drop(host_pools);
            return http1.close();
        }
        host_pools.host_pool(origin).idle.push((since, http1));
        self.start_sweeper(host_pools);
    }

    /// Starts the sweeping task, unless it is running or there is no tokio runtime.
    fn start_sweeper(self: &Arc<Self>, mut host_pools: MutexGuard<'_, HostPools<S>>) {
        if !host_pools.is_swept
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            host_pools.is_swept = true;
            runtime.spawn(sweep(Arc::downgrade(self), self.idle_timeout));
        }
    }

    fn shelves(&self) -> MutexGuard<'_, HostPools<S>> {
        self.host_pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: PoolStream> HostPools<S> {
    fn host_pool(&mut self, origin: &HttpOrigin) -> &mut HostPool<S> {
        if !self.by_origin.contains_key(origin) {
            let host_pool = HostPool {
                idle: Vec::new(),
                shared: None,
            };
            self.by_origin.insert(origin.clone(), host_pool);
        }
        self.by_origin.get_mut(origin).expect("it is there, or was just put there")
    }
}

impl<S: PoolStream> HostPool<S> {
    /// The shared HTTP/2 connection, if it is usable. Requests in flight on a connection that is replaced run to their
    /// end.
    fn shared(&mut self, idle_timeout: Duration) -> Option<http2::SendRequest<Full<Bytes>>> {
        self.forget_shared(idle_timeout);
        let (since, shared) = self.shared.as_mut()?;
        *since = Instant::now();
        Some(shared.clone())
    }

    fn forget_shared(&mut self, idle_timeout: Duration) {
        let is_over =
            |(since, shared): &mut (Instant, http2::SendRequest<_>)| shared.is_closed() || since.elapsed() >= idle_timeout;
        self.shared.take_if(is_over);
    }
}

/// Closes connections that were idle for `idle_timeout`; ends when the pool is empty.
async fn sweep<S: PoolStream>(pool: Weak<Pool<S>>, idle_timeout: Duration) {
    loop {
        tokio::time::sleep(idle_timeout.max(Duration::from_millis(10))).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut old = Vec::new();
        let is_done = {
            let mut host_pools = pool.shelves();
            host_pools.by_origin.retain(|_, host_pool| {
                old.extend(host_pool.idle.extract_if(.., |(since, _)| since.elapsed() >= idle_timeout));
                host_pool.forget_shared(idle_timeout);
                !host_pool.idle.is_empty() || host_pool.shared.is_some()
            });
            host_pools.is_swept = !host_pools.by_origin.is_empty();
            !host_pools.is_swept
        };
        old.into_iter().for_each(|(_, http1)| http1.close());
        if is_done {
            return;
        }
    }
}

impl<S: PoolStream> Http1Connection<S> {
    fn drive(&mut self, context: &mut Context<'_>) {
        // If the driver fails, hyper reports the error to the waiting request when the driver is dropped.
        if let Some(driver) = &mut self.driver
            && Pin::new(driver).poll(context).is_ready()
        {
            self.driver = None;
        }
    }

    /// Whether the connection can take a request: neither side closed it and no unsolicited bytes arrived.
    fn is_usable(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.sender.is_ready()
    }

    /// The same, but it also sees bytes that the kernel holds and the reactor has not reported yet.
    fn has_no_unsolicited_bytes(&mut self) -> bool {
        let probe = self.probe.clone();
        probe.with_probe(|| self.is_usable())
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

fn send_error<T>(mut error: TrySendError<T>) -> SendError {
    SendError {
        // hyper returns a request of which nothing was sent.
        sent: error.take_message().is_none(),
        source: error.into_error(),
    }
}

impl<S: PoolStream> PooledBody<S> {
    fn shared(incoming: Incoming) -> Self {
        Self {
            incoming: Some(incoming),
            checked_out: None,
        }
    }
}

impl<S: PoolStream> Body for PooledBody<S> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { incoming, checked_out } = &mut *self;
        let Some(incoming) = incoming else { return Poll::Ready(None) };
        let frame = Pin::new(&mut *incoming).poll_frame(context);
        let (Poll::Pending, Some(checked_out)) = (&frame, checked_out) else {
            return frame;
        };
        checked_out.http1.drive(context);
        checked_out.since = Instant::now();
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

impl<S: PoolStream> Drop for PooledBody<S> {
    fn drop(&mut self) {
        // Without `incoming`, the driver discards what is left of the answer. If all of it has arrived, the connection
        // is ready again and goes back to the pool.
        self.incoming = None;
        if let Some(mut checked_out) = self.checked_out.take()
            && checked_out.http1.is_usable()
        {
            checked_out
                .pool
                .put_back(&checked_out.origin, checked_out.since, checked_out.http1);
        }
    }
}

impl<S: PoolStream> std::fmt::Debug for Pool<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("idle_timeout", &self.idle_timeout)
            .finish_non_exhaustive()
    }
}

impl<S: PoolStream> std::fmt::Debug for PooledBody<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PooledBody")
            .field("incoming", &self.incoming)
            .finish_non_exhaustive()
    }
}
