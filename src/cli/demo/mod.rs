//! The demo MCP server of `guardian quickstart`: a small server on a loopback port that speaks both eras of MCP.
//!
//! It stands in for a server that somebody else wrote, so it uses neither Guardian's MCP parser nor its transport.

mod files;
mod http;
mod legacy;
mod modern;
mod query;
mod reply;
mod tools;

use aws_lc_rs::rand;
use files::Scratch;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use legacy::DemoSessions;
use secrecy::SecretString;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A running demo server.
#[derive(Debug)]
pub struct Demo {
    pub address: SocketAddr,
    /// The whole `Authorization` value that the server requires, new on each start. Only Guardian gets it.
    pub credential: SecretString,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Why the demo server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("cannot prepare the scratch folder `{}`", .0.display())]
    Scratch(PathBuf, #[source] std::io::Error),
    #[error("cannot listen on loopback")]
    Listen(#[source] std::io::Error),
    #[error("the system gave no random bytes")]
    Random,
}

/// What all requests share.
struct DemoServer {
    credential: String,
    scratch: Scratch,
    sessions: DemoSessions,
    stop: CancellationToken,
    streams: TaskTracker,
}

const MAX_CONNECTIONS: usize = 256;
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts the server on a free loopback port. Its file tools reach only the folder `scratch`.
pub async fn start(scratch: &Path) -> Result<Demo, DemoError> {
    let prepared = Scratch::prepare(scratch).map_err(|error| DemoError::Scratch(scratch.to_owned(), error))?;
    let credential = format!("Bearer demo-{}", random_hex().ok_or(DemoError::Random)?);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(DemoError::Listen)?;
    let address = listener.local_addr().map_err(DemoError::Listen)?;
    let stop = CancellationToken::new();
    let server = Arc::new(DemoServer {
        credential: credential.clone(),
        scratch: prepared,
        sessions: DemoSessions::default(),
        stop: stop.clone(),
        streams: TaskTracker::new(),
    });
    Ok(Demo {
        address,
        credential: credential.into(),
        stop,
        task: tokio::spawn(serve(listener, server)),
    })
}

impl Demo {
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// Ends every connection and stream, and waits until they have ended.
    pub async fn stop(self) {
        self.stop.cancel();
        // an error is a panic of the task, which was reported when it happened: nothing is left to stop
        let _ended = self.task.await;
    }
}

async fn serve(listener: TcpListener, server: Arc<DemoServer>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = server.stop.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((socket, place)) = accepted else { continue };
        let server = server.clone();
        connections.spawn(async move {
            let stop = server.stop.clone();
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(
                    TokioIo::new(socket),
                    service_fn(move |request| http::handle_request(server.clone(), request)),
                );
            tokio::select! {
                () = stop.cancelled() => {}
                // an error says only how the client disconnected
                _ = connection => {}
            }
            drop(place);
        });
    }
    connections.close();
    connections.wait().await;
    server.streams.close();
    server.streams.wait().await;
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((socket, _)) => {
            // without TCP_NODELAY a small event waits until the client acknowledges the one before (Nagle's algorithm)
            let _unsupported = socket.set_nodelay(true);
            Some((socket, place))
        }
        Err(_) => {
            // most likely no file descriptor is free: wait, do not spin
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

/// 128 random bits.
fn random_hex() -> Option<String> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).ok()?;
    Some(bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a string cannot fail.
        let _written = write!(text, "{byte:02x}");
        text
    }))
}
