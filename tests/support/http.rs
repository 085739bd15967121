//! A bare HTTP client over TLS: one connection, one request, the answer piece by piece. It sends whatever it is given, valid
//! or not, follows no redirect, retries nothing and pools nothing.

use super::certificates::{Authority, Pair, client_tls};
use super::wait::soon;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

/// Where to connect, and which authority to trust.
#[derive(Clone)]
pub struct Address {
    pub port: u16,
    pub tls: Option<Arc<rustls::ClientConfig>>,
    pub protocol: Protocol,
}

pub enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// The head of an answer and the unread rest of its body.
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    body: Incoming,
    unread: BytesMut,
}

impl Address {
    /// A clear-text address, for metrics and health.
    pub fn plain(port: u16) -> Address {
        Address {
            port,
            tls: None,
            protocol: Protocol::Http1,
        }
    }

    pub fn tls(port: u16, trusts: &Authority, presents: Option<&Pair>, protocol: Protocol) -> Address {
        let alpn = match protocol {
            Protocol::Http1 => "http/1.1",
            Protocol::Http2 => "h2",
        };
        Address {
            port,
            tls: Some(client_tls(trusts, presents, alpn)),
            protocol,
        }
    }

    pub async fn connect(&self) -> io::Result<Connection> {
        let Some(_) = &self.tls else {
            return handshake(TcpStream::connect(("127.0.0.1", self.port)).await?, self.protocol).await;
        };
        handshake(self.socket().await?, self.protocol).await
    }

    /// Opens a TLS connection without HTTP on it.
    pub async fn socket(&self) -> io::Result<TlsStream<TcpStream>> {
        let tls = self.tls.clone().expect("a TLS address");
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        TlsConnector::from(tls)
            .connect(ServerName::try_from("localhost").unwrap(), stream)
            .await
    }

    /// The bytes of the TLS ClientHello.
    pub fn client_hello(&self) -> Vec<u8> {
        let tls = self.tls.clone().expect("a TLS address");
        let mut client = rustls::ClientConnection::new(tls, ServerName::try_from("localhost").unwrap()).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        hello
    }

    /// The certificate that the server shows on a new connection.
    pub async fn certificate(&self) -> CertificateDer<'static> {
        let socket = soon("a TLS handshake", self.socket()).await.unwrap();
        socket.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    }

    /// Writes the bytes as they are, and reads until the server closes or sends nothing more for now.
    pub async fn raw(&self, bytes: &[u8]) -> String {
        let mut socket = soon("a TLS handshake", self.socket()).await.unwrap();
        let mut answer = Vec::new();
        // A server that refuses early may close while the client still writes.
        let _ = socket.write_all(bytes).await;
        let _ = socket.flush().await;
        let _ = soon("the server to close", socket.read_to_end(&mut answer)).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Sends one request on a connection of its own.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> io::Result<Reply> {
        self.connect().await?.send(request).await
    }

    pub async fn get(&self, path: &str) -> io::Result<Reply> {
        let request = Request::get(path).header("host", format!("localhost:{}", self.port));
        self.send(request.body(Full::default()).unwrap()).await
    }
}

async fn handshake<S>(stream: S, protocol: Protocol) -> io::Result<Connection>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    match protocol {
        Protocol::Http1 => {
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
            tokio::spawn(connection);
            Ok(Connection::Http1(sender))
        }
        Protocol::Http2 => {
            let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
            let (sender, connection) = handshake.await.map_err(io::Error::other)?;
            tokio::spawn(connection);
            Ok(Connection::Http2(sender))
        }
    }
}

impl Connection {
    pub async fn send(&mut self, mut request: Request<Full<Bytes>>) -> io::Result<Reply> {
        let response = match self {
            Connection::Http1(sender) => sender.send_request(request).await,
            Connection::Http2(sender) => {
                let host = request.headers_mut().remove("host").expect("every request names its host");
                let path = request.uri().path_and_query().cloned().unwrap();
                let uri = format!("https://{}{path}", host.to_str().unwrap());
                *request.uri_mut() = uri.parse().unwrap();
                sender.send_request(request).await
            }
        };
        let (head, body) = response.map_err(io::Error::other)?.into_parts();
        Ok(Reply {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
            unread: BytesMut::new(),
        })
    }

    /// Waits until the connection can take another request; false if the connection has ended.
    pub async fn is_usable(&mut self) -> bool {
        match self {
            Connection::Http1(sender) => sender.ready().await.is_ok(),
            Connection::Http2(sender) => sender.ready().await.is_ok(),
        }
    }
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The rest of the body.
    pub async fn text(mut self) -> io::Result<String> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
                self.unread.extend_from_slice(&data);
            }
        }
        Ok(String::from_utf8_lossy(&self.unread).into_owned())
    }

    /// The next bytes as they come; `None` at the end.
    pub async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        while let Some(frame) = soon("the next bytes", self.body.frame()).await {
            if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The message of the next event; there must be one.
    pub async fn message(&mut self) -> Value {
        let event = self.event().await.unwrap().expect("another event");
        serde_json::from_str(&event).unwrap_or_else(|error| panic!("{error}: {event}"))
    }

    /// The data of the next server-sent event that has any; `None` at the end of the stream.
    pub async fn event(&mut self) -> io::Result<Option<String>> {
        loop {
            while let Some(end) = find(&self.unread, b"\n\n") {
                let event = String::from_utf8_lossy(&self.unread.split_to(end + 2)).into_owned();
                let data: Vec<&str> = event
                    .lines()
                    .filter_map(|line| line.strip_prefix("data:"))
                    .map(str::trim)
                    .collect();
                if !data.concat().is_empty() {
                    return Ok(Some(data.join("\n")));
                }
            }
            let Some(frame) = soon("the next event", self.body.frame()).await else {
                return Ok(None);
            };
            if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
                self.unread.extend_from_slice(&data);
            }
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
