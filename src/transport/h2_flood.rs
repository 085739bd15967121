//! HTTP/2 flood guard: limits frames that make no progress (PING, SETTINGS, PRIORITY, unknown types, small
//! WINDOW_UPDATE). Such frames cost the peer less CPU than Guardian; the h2 crate limits only the memory they take.
//! This file only counts; requests and their bodies have limits elsewhere.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

/// The most idle frames allowed within `WINDOW`.
const MAX_IDLE_FRAMES: u32 = 10_000;
const WINDOW: Duration = Duration::from_secs(1);
/// A WINDOW_UPDATE with a larger increment lets data move, so it counts as progress.
const SMALL_INCREMENT: u32 = 1024;

/// The client connection preface (RFC 9113 section 3.4).
const PREFACE: usize = 24;
/// The frame header (RFC 9113 section 4.1).
const HEAD: usize = 9;
/// The frame header and the increment of a WINDOW_UPDATE.
const LOOKED_AT: usize = HEAD + 4;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// A stream that stops reading once its peer has flooded it.
pub(super) struct FloodGuard<S> {
    stream: S,
    frames: FrameCounter,
    flooded: Arc<Notify>,
}

impl<S> FloodGuard<S> {
    /// `flooded` is notified when the connection must be closed.
    pub fn new(stream: S, flooded: Arc<Notify>) -> Self {
        Self {
            stream,
            frames: FrameCounter::new(Instant::now()),
            flooded,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FloodGuard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.frames.flooded {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.frames.read(&buffer.filled()[before..]);
        if self.frames.flooded {
            self.flooded.notify_one();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FloodGuard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Splits the incoming bytes into HTTP/2 frames. It looks only at type, length and window increment.
struct FrameCounter {
    /// Bytes until the next frame header.
    skip: usize,
    seen: [u8; LOOKED_AT],
    filled: usize,
    /// Idle frames since `since`.
    idle: u32,
    since: Instant,
    flooded: bool,
}

impl FrameCounter {
    fn new(now: Instant) -> Self {
        Self {
            skip: PREFACE,
            seen: [0; LOOKED_AT],
            filled: 0,
            idle: 0,
            since: now,
            flooded: false,
        }
    }

    fn read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let wanted = match self.filled {
                HEAD.. if self.kind() == WINDOW_UPDATE => LOOKED_AT,
                _ => HEAD,
            };
            let taken = (wanted - self.filled).min(bytes.len());
            self.seen[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == HEAD && (self.kind() != WINDOW_UPDATE || self.length() < 4) || self.filled == LOOKED_AT {
                self.frame();
            }
        }
    }

    /// Counts one frame whose header is complete.
    fn frame(&mut self) {
        let asks = match self.kind() {
            HEADERS | CONTINUATION | RST_STREAM | DATA => true,
            WINDOW_UPDATE => self.filled == LOOKED_AT && self.increment() > SMALL_INCREMENT,
            _ => false,
        };
        self.skip = self.length() - (self.filled - HEAD);
        self.filled = 0;
        if asks {
            return;
        }
        self.idle += 1;
        if self.idle == MAX_IDLE_FRAMES {
            self.flooded |= self.since.elapsed() < WINDOW;
            (self.idle, self.since) = (0, Instant::now());
        }
    }

    fn kind(&self) -> u8 {
        self.seen[3]
    }

    fn length(&self) -> usize {
        usize::from(self.seen[0]) << 16 | usize::from(self.seen[1]) << 8 | usize::from(self.seen[2])
    }

    fn increment(&self) -> u32 {
        u32::from_be_bytes([self.seen[9], self.seen[10], self.seen[11], self.seen[12]]) & 0x7fff_ffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: u8 = 4;
    const PING: u8 = 6;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, 0, 0, 0, 0, 0], payload].concat()
    }

    fn flooded(frames: &[u8], pieces: usize) -> bool {
        let mut reader = FrameCounter::new(Instant::now());
        let bytes = [&[b'x'; PREFACE], frames].concat();
        bytes.chunks(pieces).for_each(|piece| reader.read(piece));
        reader.flooded
    }

    #[tokio::test(start_paused = true)]
    async fn what_asks_for_nothing_is_counted_however_it_arrives() {
        let many = |frame: &[u8]| frame.repeat(MAX_IDLE_FRAMES as usize);
        let ping = frame(PING, &[0; 8]);
        for pieces in [1, 7, 16 * 1024] {
            for flood in [
                &ping,
                &frame(SETTINGS, &[]),
                &frame(WINDOW_UPDATE, &[0, 0, 0, 1]),
                &frame(WINDOW_UPDATE, &[0]),
                &frame(0x42, &[1; 100]),
            ] {
                assert!(flooded(&many(flood), pieces), "{flood:?}");
                assert!(!flooded(&many(flood)[flood.len()..], pieces), "one fewer: {flood:?}");
            }
            for asked in [
                frame(DATA, &[6; 900]),
                frame(HEADERS, &ping),
                frame(CONTINUATION, &[]),
                frame(RST_STREAM, &[0; 4]),
                frame(WINDOW_UPDATE, &[0, 1, 0, 0]),
            ] {
                assert!(!flooded(&many(&asked), pieces), "{asked:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_talkative_peer_is_no_flood() {
        let mut reader = FrameCounter::new(Instant::now());
        reader.read(&[b'x'; PREFACE]);
        let pings = frame(PING, &[0; 8]).repeat(MAX_IDLE_FRAMES as usize / 2);
        for _ in 0..10 {
            reader.read(&pings);
            tokio::time::advance(WINDOW).await;
        }
        assert!(!reader.flooded);
        (0..4).for_each(|_| reader.read(&pings));
        assert!(reader.flooded);
    }
}
