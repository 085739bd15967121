//! The TCP stream of an outgoing connection. Before the pool reuses a connection, recv(MSG_PEEK) asks the kernel for
//! unsolicited bytes that tokio's reactor has not reported yet; otherwise such bytes would be read as the answer to the
//! next request.

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Whether the stream's reads ask the kernel even if the reactor reports nothing. Shared by the pool and the stream.
#[derive(Debug, Clone, Default)]
pub struct Probe(Arc<AtomicBool>);

/// A TCP stream that can be probed for unreported bytes.
#[derive(Debug)]
pub struct ProbedStream {
    tcp: TcpStream,
    probe: Probe,
}

impl Probe {
    /// Runs `what` with probing on, so that every byte the kernel already holds is seen.
    pub(super) fn with_probe<T>(&self, what: impl FnOnce() -> T) -> T {
        self.0.store(true, Ordering::Relaxed);
        let done = what();
        self.0.store(false, Ordering::Relaxed);
        done
    }
}

impl ProbedStream {
    pub(super) fn new(tcp: TcpStream, probe: Probe) -> Self {
        Self { tcp, probe }
    }

    fn read_now(&self, into: &mut ReadBuf<'_>) -> io::Result<()> {
        let (_, read) = recv(&self.tcp, into.initialize_unfilled(), RecvFlags::DONTWAIT)?;
        into.advance(read);
        Ok(())
    }
}

impl AsyncRead for ProbedStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let told = Pin::new(&mut self.tcp).poll_read(context, into);
        if told.is_ready() || !self.probe.0.load(Ordering::Relaxed) {
            return told;
        }
        match recv(&self.tcp, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error.into())),
            Ok(_) => Poll::Ready(self.read_now(into)),
        }
    }
}

impl AsyncWrite for ProbedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
