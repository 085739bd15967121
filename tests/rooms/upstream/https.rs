//! A server behind its own CA that offers h2: calls use h2, and the stream of a session gets a connection of its own.

use super::cleared_call::{Fixture, config, tool_call, without_id};
use bytes::Bytes;
use http::{Response, StatusCode, header};
use neural_guardian::config::{ClientCertificates, ConnectionLimits, ServerConfig, TlsConfig};
use neural_guardian::domain::{Method, Timestamp};
use neural_guardian::transport::{self, ServerTls, Shutdown};
use neural_guardian::upstream::{Answer, ForwardHeaders};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

#[tokio::test]
async fn calls_speak_h2_where_it_is_offered_and_streams_have_their_own_connection() {
    let dir = std::env::temp_dir().join(format!("guardian-https-{}", uuid::Uuid::new_v4()));
    let now = Timestamp::from_datetime(time::OffsetDateTime::now_utc());
    let made = transport::dev_certificates(&dir, &[], now).unwrap();
    let tls = TlsConfig {
        certificate_file: made.certificate_file,
        key_file: made.key_file,
        client_ca_file: None,
        client_certificates: ClientCertificates::Off,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/mcp", listener.local_addr().unwrap().port());
    let seen: Arc<Mutex<Vec<(String, http::Version)>>> = Arc::default();
    let record = seen.clone();
    let handler = move |request: http::Request<hyper::body::Incoming>, _| {
        record.lock().unwrap().push((request.method().to_string(), request.version()));
        let mut response = Response::new(transport::full(Bytes::from_static(
            br#"{"jsonrpc":"2.0","id":7,"result":{"content":[]}}"#,
        )));
        match *request.method() {
            http::Method::POST => {
                let json = http::HeaderValue::from_static("application/json");
                response.headers_mut().insert(header::CONTENT_TYPE, json);
            }
            _ => *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED,
        }
        async move { response }
    };
    let (shutdown, stopped) = Shutdown::new();
    let tls = ServerTls::load(&tls).unwrap();
    let serving = tokio::spawn(transport::serve(
        listener,
        Some(tls),
        ConnectionLimits::default(),
        handler,
        stopped,
    ));

    let fixture = Fixture::with(ServerConfig {
        ca_file: Some(made.ca_file),
        ..config(&url)
    });
    assert!(matches!(fixture.forward(tool_call()).await.unwrap(), Answer::Json { .. }));
    let stream = fixture.cleared(without_id(Method::OpenStream, "")).await;
    let answer = fixture.upstream.forward(stream, ForwardHeaders::default()).await.unwrap();
    assert!(matches!(answer, Answer::Empty { status } if status == StatusCode::METHOD_NOT_ALLOWED));
    let seen = seen.lock().unwrap().clone();
    assert_eq!(
        seen,
        [
            ("POST".to_owned(), http::Version::HTTP_2),
            ("GET".to_owned(), http::Version::HTTP_11)
        ]
    );

    shutdown.abort();
    serving.await.unwrap();
    std::fs::remove_dir_all(dir).unwrap();
}
