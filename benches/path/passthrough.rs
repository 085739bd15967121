//! The floor to compare with: terminates TLS, forwards the request as it is over a pooled connection, and returns the answer
//! as it is. It is made of the same crates as Guardian, and is this program once more, in a process of its own.

use super::place::{end, free_address, on_core, wait_for};
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub struct Passthrough {
    pub child: Child,
    pub address: SocketAddr,
}

impl Passthrough {
    pub fn start(certificates: &Path, server: SocketAddr) -> Self {
        let address = free_address();
        let child = on_core(0, std::env::current_exe().expect("this program"))
            .args(["--passthrough", &address.to_string(), &server.to_string()])
            .arg(certificates)
            .spawn()
            .expect("the passthrough starts");
        wait_for(address);
        Self { child, address }
    }
}

impl Drop for Passthrough {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// The passthrough's own process; it serves until it is ended.
pub fn serve(listen: &str, server: &str, certificates: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let acceptor = acceptor(certificates);
    let server: &'static str = server.to_owned().leak();
    let listen = listen.to_owned();
    runtime.block_on(async move {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client: Client<_, Incoming> = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connector);
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

fn acceptor(certificates: &Path) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(certificates.join("server.pem"))
        .expect("a chain")
        .collect::<Result<_, _>>()
        .expect("PEM");
    let key = PrivateKeyDer::from_pem_file(certificates.join("server-key.pem")).expect("a key");
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a pair");
    TlsAcceptor::from(Arc::new(config))
}
