//! The whole path of a call against a bare hyper+rustls passthrough made of the same crates, in one run.
//!
//! Both proxies stand before the same server, on a core that load and server leave to them, and get the same load: 32 TLS
//! connections, closed loop, `tools/call` with a body of about 1 KiB. What counts is CPU time of the proxy's process per
//! call, in interleaved windows; the ratio of the least values is the figure to quote. Absolute times depend on the machine.
//! A last line tells what bringing the records of all these calls to the store costs beside it, on threads of its own.
//!
//! `cargo bench --profile dist --bench path` measures what ships; `--quick` as an argument runs short windows; `--limit R`
//! fails above R.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What `guardian` has when it is built to be shipped; the passthrough has it too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONNECTIONS: usize = 32;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .expect("no provider was installed before");
    match arguments.iter().position(|argument| argument == "--passthrough") {
        Some(at) => {
            passthrough(&arguments[at + 1], &arguments[at + 2], Path::new(&arguments[at + 3]));
            ExitCode::SUCCESS
        }
        None if !arguments.iter().any(|argument| argument == PINNED) => pinned(&arguments),
        None => compare(&arguments),
    }
}

const PINNED: &str = "--pinned";

/// The same once more, with load and server on a core that the proxies leave to them.
fn pinned(arguments: &[String]) -> ExitCode {
    let done = on_core(1, std::env::current_exe().expect("this program"))
        .args(&arguments[1..])
        .arg(PINNED)
        .status();
    match done.expect("`taskset` of util-linux is there").success() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn compare(arguments: &[String]) -> ExitCode {
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let limit = arguments
        .iter()
        .position(|argument| argument == "--limit")
        .map(|at| arguments[at + 1].parse::<f64>().expect("a number"));
    let (rounds, window) = if quick {
        (3, Duration::from_millis(1_000))
    } else {
        (9, Duration::from_millis(2_500))
    };
    let scratch = Scratch::new();
    let server = start_server();
    let guardian = Guardian::start(&scratch.0, server);
    let bare = Bare::start(&scratch.0, server);
    let mut table: Vec<(f64, f64)> = Vec::new();
    let (mut before, mut calls) = (0, 0);
    println!("{CONNECTIONS} connections, {rounds} rounds of {window:?}; CPU per call in us");
    println!(
        "{:>5} {:>12} {:>10} {:>12} {:>10}",
        "round", "passthrough", "calls/s", "guardian", "calls/s"
    );
    for round in 0..=rounds {
        let passthrough = measure(bare.child.id(), bare.address, &scratch.0, None, "/", window);
        let guarded = measure(
            guardian.child.id(),
            guardian.address,
            &scratch.0,
            Some(&guardian.key),
            "/mcp/bench",
            window,
        );
        if round == 0 {
            // warm-up
            guardian.settle();
            before = cpu_of(guardian.child.id()).1;
            continue;
        }
        calls += guarded.2;
        println!(
            "{round:>5} {:>12.1} {:>10.0} {:>12.1} {:>10.0}",
            passthrough.0, passthrough.1, guarded.0, guarded.1
        );
        table.push((passthrough.0, guarded.0));
    }
    let least = |pick: fn(&(f64, f64)) -> f64| table.iter().map(pick).fold(f64::INFINITY, f64::min);
    let mut ratios: Vec<f64> = table.iter().map(|(passthrough, guarded)| guarded / passthrough).collect();
    ratios.sort_by(f64::total_cmp);
    let ratio = least(|row| row.1) / least(|row| row.0);
    println!(
        "ratio of the least values {ratio:.2}; median of the rounds {:.2}",
        ratios[ratios.len() / 2]
    );
    guardian.settle();
    let shipping = (cpu_of(guardian.child.id()).1 - before) as f64 / 1_000.0 / calls as f64;
    println!("beside the path, bringing both records of a call to the store: {shipping:.1} us per call");
    drop((guardian, bare));
    if let Some(limit) = limit.filter(|limit| ratio > *limit) {
        eprintln!("the path costs {ratio:.2} times a passthrough, more than {limit}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// CPU microseconds of process `pid` per call, calls per second, and all calls made, those around the window too.
fn measure(pid: u32, to: SocketAddr, scratch: &Path, key: Option<&str>, path: &str, window: Duration) -> (f64, f64, u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let calls = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let tls = client_tls(scratch);
        let mut tasks = Vec::new();
        for _ in 0..CONNECTIONS {
            tasks.push(tokio::spawn(load(
                to,
                tls.clone(),
                key.map(str::to_owned),
                path.to_owned(),
                calls.clone(),
                stop.clone(),
            )));
        }
        while calls.load(Ordering::Relaxed) < 500 {
            assert!(
                tasks.iter().all(|task| !task.is_finished()),
                "a connection of the load ended early"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (cpu, done, began) = (cpu_of(pid).0, calls.load(Ordering::Relaxed), Instant::now());
        tokio::time::sleep(window).await;
        let (cpu, done, took) = (cpu_of(pid).0 - cpu, calls.load(Ordering::Relaxed) - done, began.elapsed());
        stop.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await.expect("the load checks every answer");
        }
        (
            cpu as f64 / 1_000.0 / done as f64,
            done as f64 / took.as_secs_f64(),
            calls.load(Ordering::Relaxed),
        )
    })
}

async fn load(
    to: SocketAddr,
    tls: TlsConnector,
    key: Option<String>,
    path: String,
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
    let text = "x".repeat(900);
    let body = Bytes::from(format!(
        r#"{{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{{"name":"echo","arguments":{{"text":"{text}"}}}}}}"#
    ));
    while !stop.load(Ordering::Relaxed) {
        let mut request = Request::post(&path)
            .header("host", format!("localhost:{}", to.port()))
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        if let Some(key) = &key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let response = sender
            .send_request(request.body(Full::new(body.clone())).expect("a request"))
            .await
            .expect("an answer");
        let status = response.status();
        let answer = response.into_body().collect().await.expect("a body").to_bytes();
        assert!(
            status == 200 && answer.windows(8).any(|part| part == b"\"result\""),
            "{status}: {answer:?}"
        );
        calls.fetch_add(1, Ordering::Relaxed);
    }
}

/// Nanoseconds on a CPU, summed over the threads of a process: those that serve calls and write the journal, and those that
/// bring finished records to the store.
fn cpu_of(pid: u32) -> (u64, u64) {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the proxy is alive");
    let mut cpu = (0, 0);
    for task in tasks.flatten() {
        let (Ok(name), Ok(text)) = (
            std::fs::read_to_string(task.path().join("comm")),
            std::fs::read_to_string(task.path().join("schedstat")),
        ) else {
            continue;
        };
        let ran: u64 = text
            .split_whitespace()
            .next()
            .and_then(|ran| ran.parse().ok())
            .unwrap_or_default();
        match name.starts_with("shipper") || name.starts_with("sqlx-sqlite") {
            true => cpu.1 += ran,
            false => cpu.0 += ran,
        }
    }
    cpu
}

// ---- the server behind both

/// An MCP server that costs as little as possible, on a thread of its own.
fn start_server() -> SocketAddr {
    let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                stream.set_nodelay(true).expect("a socket");
                let service = hyper::service::service_fn(answer);
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
    });
    address
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request
        .into_body()
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    let asks = |method: &str| body.windows(method.len()).any(|part| part == method.as_bytes());
    let id = if asks("tools/call") { "7" } else { "1" };
    let (status, result) = if asks("\"tools/call\"") {
        (200, r#"{"content":[{"type":"text","text":"done"}]}"#.to_owned())
    } else if asks("\"initialize\"") {
        (
            200,
            r#"{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"bench","version":"1"}}"#
                .to_owned(),
        )
    } else if asks("\"tools/list\"") {
        let schema =
            r#"{"type":"object","properties":{"text":{"type":"string"}},"required":["text"],"additionalProperties":false}"#;
        (
            200,
            format!(
                r#"{{"tools":[{{"name":"echo","description":"says it back","inputSchema":{schema},"annotations":{{"readOnlyHint":true}}}}]}}"#
            ),
        )
    } else {
        (202, String::new())
    };
    let id = serde_json::from_slice::<serde_json::Value>(&body)
        .ok()
        .map_or(id.to_owned(), |body| body["id"].to_string());
    let text = if status == 200 {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#)
    } else {
        String::new()
    };
    let mut response = Response::builder().status(status);
    if status == 200 {
        response = response.header("content-type", "application/json");
    }
    Ok(response.body(Full::new(Bytes::from(text))).expect("a response"))
}

// ---- the passthrough

struct Bare {
    child: Child,
    address: SocketAddr,
}

impl Bare {
    fn start(scratch: &Path, server: SocketAddr) -> Self {
        let address = free_address();
        let child = on_core(0, std::env::current_exe().expect("this program"))
            .args(["--passthrough", &address.to_string(), &server.to_string()])
            .arg(scratch)
            .spawn()
            .expect("the passthrough starts");
        wait_for(address);
        Self { child, address }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Terminates TLS, forwards the request as it is over a pooled connection, returns the answer as it is.
fn passthrough(listen: &str, server: &str, scratch: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let acceptor = server_tls(scratch);
    let server: &'static str = server.to_owned().leak();
    let listen = listen.to_owned();
    runtime.block_on(async move {
        let client: Client<_, Incoming> = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(nodelay_connector());
        let listener = TcpListener::bind(listen).await.expect("a free port");
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            stream.set_nodelay(true).expect("a socket");
            let (acceptor, client) = (acceptor.clone(), client.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
                    let client = client.clone();
                    async move {
                        let path = request.uri().path().to_owned();
                        *request.uri_mut() = format!("http://{server}{path}").parse().expect("a uri");
                        client.request(request).await
                    }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
}

fn nodelay_connector() -> hyper_util::client::legacy::connect::HttpConnector {
    let mut connector = hyper_util::client::legacy::connect::HttpConnector::new();
    connector.set_nodelay(true);
    connector
}

// ---- Guardian

struct Guardian {
    child: Child,
    address: SocketAddr,
    metrics: SocketAddr,
    key: String,
}

impl Guardian {
    fn start(scratch: &Path, server: SocketAddr) -> Self {
        let (address, metrics) = (free_address(), free_address());
        let config = scratch.join("guardian.toml");
        let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
        neural_guardian::transport::dev_certificates(
            &scratch.join("certs"),
            &[],
            neural_guardian::domain::Timestamp::from_datetime(time::OffsetDateTime::now_utc()),
        )
        .expect("certificates");
        let text = format!(
            r#"
data_dir = "data"
[listen]
address = "{address}"
public_url = "https://localhost:{port}"
[listen.tls]
certificate_file = "certs/server.pem"
key_file = "certs/server-key.pem"
[admin]
metrics_address = "{metrics}"
[policies]
dir = "{policies}"
[limits]
per_principal = {{ rate = 100000000, per = "1s" }}
[log]
level = "warn"
[[servers]]
name = "bench"
url = "http://{server}/mcp"
allow_private_address = true
"#,
            port = address.port(),
            policies = policies.display(),
        );
        std::fs::write(&config, text).expect("a scratch folder");
        run(&config, &["db", "migrate"]);
        run(&config, &["user", "add", "bench@example.com", "--role", "developer"]);
        run(
            &config,
            &[
                "grant",
                "add",
                "--user",
                "bench@example.com",
                "--server",
                "bench",
                "--scopes",
                "echo",
            ],
        );
        let made = run(&config, &["key", "new", "--user", "bench@example.com", "--json"]);
        let made: serde_json::Value = serde_json::from_str(&made).expect("JSON");
        let key = made["key"].as_str().expect("a key").to_owned();
        let child = on_core(0, env!("CARGO_BIN_EXE_guardian"))
            .args(["serve", "-c"])
            .arg(&config)
            .spawn()
            .expect("guardian starts");
        wait_for(address);
        Self {
            child,
            address,
            metrics,
            key,
        }
    }
}

impl Guardian {
    /// Returns when every record is in the store.
    fn settle(&self) {
        let until = Instant::now() + Duration::from_secs(300);
        while self.unshipped() > 0 {
            assert!(Instant::now() < until, "the records are not shipped");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn unshipped(&self) -> u64 {
        let mut stream = std::net::TcpStream::connect(self.metrics).expect("the metrics are served");
        let request = format!("GET /metrics HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.metrics);
        stream.write_all(request.as_bytes()).expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let line = answer.lines().find_map(|line| line.strip_prefix("guardian_audit_unshipped "));
        line.and_then(|number| number.trim().parse().ok())
            .expect("a number of records")
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn run(config: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_guardian"))
        .args(arguments)
        .arg("-c")
        .arg(config)
        .stderr(Stdio::inherit())
        .output()
        .expect("guardian runs");
    assert!(output.status.success(), "guardian {arguments:?} failed");
    String::from_utf8(output.stdout).expect("text")
}

// ---- shared

struct Scratch(PathBuf);

impl Scratch {
    /// On the disk of the build, so that a sync is a sync.
    fn new() -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("path-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a scratch folder");
        Self(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn server_tls(scratch: &Path) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(scratch.join("certs/server.pem"))
        .expect("a chain")
        .collect::<Result<_, _>>()
        .expect("PEM");
    let key = PrivateKeyDer::from_pem_file(scratch.join("certs/server-key.pem")).expect("a key");
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a pair");
    TlsAcceptor::from(Arc::new(config))
}

fn client_tls(scratch: &Path) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(scratch.join("certs/ca.pem")).expect("a CA"))
        .expect("a CA");
    TlsConnector::from(Arc::new(
        rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth(),
    ))
}

fn on_core(core: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
    if std::thread::available_parallelism().is_ok_and(|cores| cores.get() == 1) && core > 0 {
        return Command::new(program.as_ref());
    }
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &core.to_string()]).arg(program);
    command
}

fn free_address() -> SocketAddr {
    StdListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
}

fn wait_for(address: SocketAddr) {
    let until = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(address).is_err() {
        assert!(Instant::now() < until, "nothing listens on {address}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
