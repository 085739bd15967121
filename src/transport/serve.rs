//! The server side of connections: accept, TLS handshake, HTTP/2 or HTTP/1.1 by ALPN, graceful drain. Every stage has a
//! time or size limit. One task serves one connection (HTTP/2 streams run in tasks of their own); the handler decides
//! what a request means.

use super::body::{Body, DeadlineBody};
use super::connections::{Activity, ConnectionSlot, Connections, InFlight};
use super::exchange_end::{ConnectionEnd, ExchangeEnd};
use super::h2_flood::FloodGuard;
use super::peer::{Peer, PeerCertificate};
use super::shutdown::Shutdown;
use super::tls::ServerTls;
use crate::config::ConnectionLimits;
use crate::domain::CutBy;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The smallest limit for hyper's HTTP/1.1 read buffer of one connection; a larger `max_header_bytes` raises it.
const READ_BUFFER: usize = 64 * 1024;
const H2_STREAM_WINDOW: u32 = 256 * 1024;
const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;
const H2_SEND_BUFFER: usize = 64 * 1024;
const H2_PENDING_RESETS: usize = 20;
const H2_LOCAL_RESETS: usize = 1024;
/// How long a peer may take to close after GOAWAY, when its HTTP/2 connection was idle or flooding.
const GOAWAY_GRACE: Duration = Duration::from_secs(1);
/// Pause after an accept error such as EMFILE or ENOMEM, which would otherwise repeat at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `listener` until `stop` drains and the last connection has ended. Without `tls` it serves plain HTTP/1.1.
pub async fn serve<H, F>(
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    limits: ConnectionLimits,
    handler: H,
    shutdown: Shutdown,
) where
    H: Fn(Request<Incoming>, Arc<Peer>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    serve_counted(listener, tls, limits, handler, shutdown, Connections::new()).await;
}

/// Like `serve`, with connection counts that the caller can read or share between listeners.
pub async fn serve_counted<H, F>(
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    limits: ConnectionLimits,
    handler: H,
    shutdown: Shutdown,
    connections: Arc<Connections>,
) where
    H: Fn(Request<Incoming>, Arc<Peer>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let tasks = TaskTracker::new();
    let cut = shutdown.cut();
    let door = Arc::new(Listener {
        h1: h1_builder(&limits),
        h2: h2_builder(&limits, &tasks),
        tls,
        limits,
        handler,
        shutdown,
        cut: cut.clone(),
    });
    loop {
        let accepted = tokio::select! {
            biased;
            () = door.shutdown.draining() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, address)) => {
                let caps = (door.limits.max_connections, door.limits.max_connections_per_address);
                if let Some(slot) = connections.admit(address.ip(), caps.0, caps.1) {
                    tasks.spawn(door.clone().connection(tcp, address, slot));
                }
            }
            Err(error) if is_of_that_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    tokio::select! {
        () = tasks.wait() => return,
        () = tokio::time::sleep(door.limits.drain_timeout.0) => {}
        () = door.shutdown.aborted() => {}
    }
    cut.cancel();
    tasks.wait().await;
}

/// What all connections of one listener share.
struct Listener<H> {
    h1: http1::Builder,
    h2: http2::Builder<TrackedExecutor>,
    tls: Option<Arc<ServerTls>>,
    limits: ConnectionLimits,
    handler: H,
    shutdown: Shutdown,
    /// Cancelled when running connections must be dropped: the drain timed out or was aborted.
    cut: CancellationToken,
}

impl<H, F> Listener<H>
where
    H: Fn(Request<Incoming>, Arc<Peer>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    async fn connection(self: Arc<Self>, tcp: TcpStream, address: SocketAddr, slot: ConnectionSlot) {
        let _ = tcp.set_nodelay(true);
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let Some(tls) = &self.tls else {
            let peer = Peer {
                address,
                certificate: None,
                http2: false,
            };
            return self.http1(tcp, Arc::new(peer)).await;
        };
        let handshake = TlsAcceptor::from(tls.current()).accept(tcp);
        let stream = tokio::select! {
            biased;
            stream = tokio::time::timeout(self.limits.handshake_timeout.0, handshake) => stream,
            () = self.shutdown.draining() => return,
        };
        let stream = match stream {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                slot.handshake_failed();
                return tracing::debug!(%address, %error, "TLS handshake failed");
            }
            Err(_) => return slot.timed_out(),
        };
        let Some(peer) = peer_of(&stream, address) else {
            return slot.handshake_failed();
        };
        if peer.http2 {
            self.http2(stream, Arc::new(peer), &slot).await
        } else {
            self.http1(stream, Arc::new(peer)).await
        }
    }

    async fn http1<S>(&self, stream: S, peer: Arc<Peer>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let end = ConnectionEnd::default();
        let service = service_fn(|request| self.answer(request, &peer, None, end.clone()));
        let io = TokioIo::new(WriteTimeout::new(stream, self.limits.idle_timeout.0, end.clone()));
        // hyper's `header_read_timeout` also closes an idle keep-alive connection, so HTTP/1.1 needs no idle timer
        // here.
        self.drive(self.h1.serve_connection(io, service), std::future::pending(), &end)
            .await;
    }

    async fn http2(self: &Arc<Self>, stream: TlsStream<TcpStream>, peer: Arc<Peer>, slot: &ConnectionSlot) {
        let (activity, end) = (Activity::new(), ConnectionEnd::default());
        let service = service_fn(|request| {
            let (door, peer, in_flight, end) = (self.clone(), peer.clone(), activity.begin(), end.clone());
            async move { door.answer(request, &peer, Some(in_flight), end).await }
        });
        let flooded = Arc::new(Notify::new());
        let io = TokioIo::new(FloodGuard::new(
            WriteTimeout::new(stream, self.limits.idle_timeout.0, end.clone()),
            flooded.clone(),
        ));
        let done = async {
            tokio::select! {
                () = activity.idle(self.limits.header_timeout.0) => {
                    slot.timed_out();
                    None
                }
                () = flooded.notified() => {
                    slot.flooded();
                    Some(CutBy::Flood)
                }
            }
        };
        self.drive(self.h2.serve_connection(io, service), done, &end).await;
    }

    fn answer(
        &self,
        mut request: Request<Incoming>,
        peer: &Arc<Peer>,
        in_flight: Option<InFlight>,
        end: ConnectionEnd,
    ) -> impl Future<Output = Result<Response<DeadlineBody>, Infallible>> + Send + use<H, F> {
        let deadline = Instant::now() + self.limits.total_timeout.0;
        request.extensions_mut().insert(ExchangeEnd::new(end, deadline.into_std()));
        let answer = (self.handler)(request, peer.clone());
        async move { Ok(answer.await.map(|body| DeadlineBody::new(body, deadline, in_flight))) }
    }

    /// Runs the connection until the peer closes it, `done` completes (idle or flooding), or this instance stops. What still
    /// runs when the connection is dropped here can tell by `end` that the peer did not close it.
    async fn drive<C: GracefulConnection>(&self, connection: C, done: impl Future<Output = Option<CutBy>>, end: &ConnectionEnd) {
        let mut connection = pin!(connection);
        let (patience, by) = tokio::select! {
            biased;
            _ = connection.as_mut() => return,
            () = self.shutdown.draining() => (Duration::MAX, None),
            by = done => (GOAWAY_GRACE, by),
        };
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            biased;
            _ = connection => {}
            () = self.cut.cancelled() => end.cut(self.shutdown.cut_by()),
            () = tokio::time::sleep(patience) => by.into_iter().for_each(|by| end.cut(by)),
        }
    }
}

/// What the TLS handshake proved about the peer; `None` if rustls verified a certificate that x509-parser cannot read.
fn peer_of(stream: &TlsStream<TcpStream>, address: SocketAddr) -> Option<Peer> {
    let session = stream.get_ref().1;
    let certificate = match session.peer_certificates().and_then(<[_]>::first) {
        Some(der) => Some(Arc::new(PeerCertificate::read(der)?)),
        None => None,
    };
    Some(Peer {
        address,
        certificate,
        http2: session.alpn_protocol() == Some(b"h2"),
    })
}

fn h1_builder(limits: &ConnectionLimits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout.0)
        .max_header_size(limits.max_header_bytes)
        .max_buf_size(limits.max_header_bytes.max(READ_BUFFER));
    builder
}

fn h2_builder(limits: &ConnectionLimits, tasks: &TaskTracker) -> http2::Builder<TrackedExecutor> {
    let executor = TrackedExecutor {
        tasks: tasks.clone(),
        longest: limits.total_timeout.0,
    };
    let mut builder = http2::Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(H2_PENDING_RESETS)
        .max_local_error_reset_streams(H2_LOCAL_RESETS)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_send_buf_size(H2_SEND_BUFFER)
        .keep_alive_interval(limits.idle_timeout.0)
        .keep_alive_timeout(limits.idle_timeout.0);
    builder
}

/// Spawns hyper's HTTP/2 stream tasks into the tracker that the drain waits for, each with a time limit: a peer that
/// never opens its flow-control window cannot keep a stream task alive for longer than `total_timeout`.
#[derive(Clone)]
struct TrackedExecutor {
    tasks: TaskTracker,
    longest: Duration,
}

impl<F> hyper::rt::Executor<F> for TrackedExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.tasks.spawn(tokio::time::timeout(self.longest, stream));
    }
}

/// Whether `accept` failed because of one connection, so that the listener itself is fine.
fn is_of_that_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// A stream with a write time-out: if the peer takes no bytes for `limit`, the connection ends.
struct WriteTimeout<S> {
    stream: S,
    limit: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    end: ConnectionEnd,
}

impl<S> WriteTimeout<S> {
    fn new(stream: S, limit: Duration, end: ConnectionEnd) -> Self {
        Self {
            stream,
            limit,
            stalled: None,
            end,
        }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = self.limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(stalled.as_mut().poll(cx));
        self.end.cut(CutBy::SlowClient);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(cx, shut)
    }
}
