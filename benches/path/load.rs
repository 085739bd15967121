//! The load: connections in a closed loop, each with the `tools/call` of its caller, and every answer checked.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub const CONNECTIONS: usize = 64;
/// A window begins after so many calls: all connections are open, and all caches are warm.
const WARM_UP: u64 = 1_000;

/// What all connections send, and to whom.
pub struct Load {
    pub to: SocketAddr,
    pub path: &'static str,
    pub tool: &'static str,
    /// What each connection says of its caller, as the `authorization` header has it.
    pub authorizations: Vec<String>,
}

/// What was done in one window.
pub struct Done {
    pub calls: u64,
    /// With those before and after the window.
    pub all_calls: u64,
    pub took: Duration,
}

impl Load {
    /// Calls for as long as `window`; `mark` is called when it begins and when it ends.
    pub fn run(&self, tls: &TlsConnector, window: Duration, mut mark: impl FnMut()) -> Done {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let calls = Arc::new(AtomicU64::new(0));
            let stop = Arc::new(AtomicBool::new(false));
            let mut connections = Vec::new();
            for authorization in &self.authorizations {
                let request = self.request(authorization);
                connections.push(tokio::spawn(connection(
                    self.to,
                    tls.clone(),
                    request,
                    calls.clone(),
                    stop.clone(),
                )));
            }
            while calls.load(Ordering::Relaxed) < WARM_UP {
                assert!(
                    connections.iter().all(|task| !task.is_finished()),
                    "a connection of the load ended early"
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            mark();
            let (before, began) = (calls.load(Ordering::Relaxed), Instant::now());
            tokio::time::sleep(window).await;
            let (after, took) = (calls.load(Ordering::Relaxed), began.elapsed());
            mark();
            stop.store(true, Ordering::Relaxed);
            for connection in connections {
                connection.await.expect("the load checks every answer");
            }
            Done {
                calls: after - before,
                all_calls: calls.load(Ordering::Relaxed),
                took,
            }
        })
    }

    /// Both tools take the same arguments, so that only the verdict on them differs.
    fn request(&self, authorization: &str) -> Request<Full<Bytes>> {
        let (tool, text) = (self.tool, "x".repeat(820));
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{{"name":"{tool}","arguments":{{"text":"{text}","folder":"notes/2026","language":"en","count":3,"urgent":false}}}}}}"#
        );
        Request::post(self.path)
            .header("host", format!("localhost:{}", self.to.port()))
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("authorization", authorization)
            .body(Full::new(Bytes::from(body)))
            .expect("a request")
    }
}

async fn connection(
    to: SocketAddr,
    tls: TlsConnector,
    request: Request<Full<Bytes>>,
    calls: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) {
    let stream = TcpStream::connect(to).await.expect("the proxy listens");
    stream.set_nodelay(true).expect("a socket");
    let stream = tls
        .connect(ServerName::try_from("localhost").expect("a name"), stream)
        .await
        .expect("a handshake");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("http");
    tokio::spawn(connection);
    while !stop.load(Ordering::Relaxed) {
        let response = sender.send_request(request.clone()).await.expect("an answer");
        let status = response.status();
        let answer = response.into_body().collect().await.expect("a body").to_bytes();
        assert!(
            status == 200 && answer.windows(8).any(|part| part == b"\"result\""),
            "{status}: {answer:?}"
        );
        calls.fetch_add(1, Ordering::Relaxed);
    }
}
