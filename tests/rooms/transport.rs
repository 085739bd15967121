//! `transport` over real sockets: time-outs, changes of certificates, drains, and addresses that are refused.

mod bounds;
mod certificates;
mod outgoing;
mod pool;
mod shutdown;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use neural_guardian::config::{ClientCertificates, ConnectionLimits, HumanDuration, TlsConfig};
use neural_guardian::domain::Timestamp;
use neural_guardian::transport::{
    Body, BodyProblem, Client, ClientError, ClientSettings, Connections, Peer, ResponseBody, ServerTls, Shutdown, ShutdownHandle,
    TlsError, check_tls, dev_certificates, empty, file_events, framing, full, read_body, serve_counted, warnings, watch,
};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A time-out that no passing test reaches.
const NEVER: Duration = Duration::from_secs(20);
const SHORT: HumanDuration = HumanDuration(Duration::from_millis(150));
const NOW: Timestamp = Timestamp::from_secs(1_795_167_296);

fn now() -> Timestamp {
    Timestamp::from_datetime(std::time::SystemTime::now().into())
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(NEVER, what).await.expect("it happens at all")
}

/// An empty folder for one test.
fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("transport").join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

struct Server {
    address: SocketAddr,
    dir: PathBuf,
    files: TlsConfig,
    tls: Arc<ServerTls>,
    connections: Arc<Connections>,
    shutdown: ShutdownHandle,
    done: tokio::task::JoinHandle<()>,
}

fn files(dir: &Path, client_certificates: ClientCertificates) -> TlsConfig {
    let made = dev_certificates(dir, &[], now()).unwrap();
    TlsConfig {
        certificate_file: made.certificate_file,
        key_file: made.key_file,
        client_ca_file: Some(made.ca_file),
        client_certificates,
    }
}

async fn start<H, F>(name: &str, client_certificates: ClientCertificates, limits: ConnectionLimits, handler: H) -> Server
where
    H: Fn(Request<Incoming>, Arc<Peer>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let dir = scratch(name);
    let files = files(&dir, client_certificates);
    let tls = ServerTls::load(&files).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Connections::new();
    let (shutdown, stopped) = Shutdown::new();
    let done = tokio::spawn(serve_counted(
        listener,
        Some(tls.clone()),
        limits,
        handler,
        stopped,
        connections.clone(),
    ));
    Server {
        address,
        dir,
        files,
        tls,
        connections,
        shutdown,
        done,
    }
}

async fn hello(_: Request<Incoming>, peer: Arc<Peer>) -> Response<Body> {
    Response::new(full(if peer.http2 { "hello over h2" } else { "hello over h1" }))
}

/// Answers with the result of `read_body`.
async fn echo(request: Request<Incoming>, _: Arc<Peer>) -> Response<Body> {
    match read_body(request.into_body(), 1_000, SHORT.0).await {
        Ok(body) => Response::new(full(body)),
        Err(problem) => Response::builder().status(422).body(full(problem.to_string())).unwrap(),
    }
}

fn trusting(dir: &Path, alpn: &[&str]) -> ClientConfig {
    configured(dir, alpn, None)
}

fn configured(dir: &Path, alpn: &[&str], certificate: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match certificate {
        Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

async fn dial(address: SocketAddr, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("localhost").unwrap(), tcp)
        .await
}

impl Server {
    async fn h1(&self) -> TlsStream<TcpStream> {
        dial(self.address, trusting(&self.dir, &["http/1.1"])).await.unwrap()
    }

    async fn h2(&self) -> H2 {
        let tls = dial(self.address, trusting(&self.dir, &["h2", "http/1.1"])).await.unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
            .await
            .unwrap();
        H2 {
            sender,
            connection: tokio::spawn(connection),
        }
    }

    async fn ended(self) {
        soon(self.done).await.unwrap();
    }
}

struct H2 {
    sender: hyper::client::conn::http2::SendRequest<Full<Bytes>>,
    connection: tokio::task::JoinHandle<hyper::Result<()>>,
}

impl H2 {
    async fn get(&mut self) -> hyper::Result<Response<Incoming>> {
        let request = Request::get("https://localhost/").body(Full::default()).unwrap();
        self.sender.send_request(request).await
    }
}

/// Reads until the other side closes, cleanly or not.
async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut all = Vec::new();
    let _ = soon(stream.read_to_end(&mut all)).await;
    String::from_utf8_lossy(&all).into_owned()
}

async fn ask(stream: &mut TlsStream<TcpStream>, text: &str) -> String {
    stream.write_all(text.as_bytes()).await.unwrap();
    rest(stream).await
}

async fn text<B>(answer: Response<B>) -> String
where
    B: hyper::body::Body<Error: std::fmt::Debug>,
{
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const GET_AND_CLOSE: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn the_protocol_is_the_one_that_was_negotiated() {
    let server = start("alpn", ClientCertificates::Off, ConnectionLimits::default(), hello).await;
    assert!(ask(&mut server.h1().await, GET_AND_CLOSE).await.ends_with("hello over h1"));
    assert_eq!(text(server.h2().await.get().await.unwrap()).await, "hello over h2");
    let mut without_alpn = dial(server.address, trusting(&server.dir, &[])).await.unwrap();
    assert!(ask(&mut without_alpn, GET_AND_CLOSE).await.ends_with("hello over h1"));
    assert!(dial(server.address, trusting(&server.dir, &["spdy/3"])).await.is_err());
}

fn scratch_ca(name: &str) -> PathBuf {
    let dir = scratch(name);
    dev_certificates(&dir, &[], now()).unwrap();
    dir
}

#[tokio::test]
async fn the_admin_listener_speaks_clear_text() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shutdown, stopped) = Shutdown::new();
    let done = tokio::spawn(neural_guardian::transport::serve(
        listener,
        None,
        ConnectionLimits::default(),
        hello,
        stopped,
    ));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(GET_AND_CLOSE.as_bytes()).await.unwrap();
    assert!(rest(&mut stream).await.ends_with("hello over h1"));
    shutdown.drain();
    soon(done).await.unwrap();
}

/// Sends a message when it is dropped.
struct OnDrop(mpsc::Sender<()>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}

/// A body with one frame that then never ends.
fn never_ending(first: &'static str) -> Body {
    let mut first = Some(Bytes::from(first));
    frames(move || match first.take() {
        Some(first) => Poll::Ready(first),
        None => Poll::Pending,
    })
}

fn frames(next: impl FnMut() -> Poll<Bytes> + Send + 'static) -> Body {
    struct Frames<F>(F);
    impl<F: FnMut() -> Poll<Bytes> + Unpin> http_body::Body for Frames<F> {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            (self.0)().map(|bytes| Some(Ok(Frame::data(bytes))))
        }
    }
    let boxed: Box<dyn FnMut() -> Poll<Bytes> + Send> = Box::new(next);
    Frames(boxed).map_err(|never| match never {}).boxed_unsync()
}
