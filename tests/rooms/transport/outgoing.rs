//! Outgoing calls: which addresses may be called, and how a call fails.

use super::*;
use tokio::task::JoinSet;

fn caller(server: &Server) -> ClientSettings {
    ClientSettings {
        ca_file: Some(server.dir.join("ca.pem")),
        allow_private: true,
        ..ClientSettings::default()
    }
}

fn get(url: String) -> Request<Full<Bytes>> {
    Request::get(url).body(Full::default()).unwrap()
}

async fn failure(settings: &ClientSettings, url: String) -> ClientError {
    soon(Client::new(settings).unwrap().send(get(url)))
        .await
        .expect_err("no answer")
}

#[tokio::test]
async fn an_outgoing_call_reuses_its_connection() {
    let server = start("pool", ClientCertificates::Off, ConnectionLimits::default(), hello).await;
    let url = format!("https://localhost:{}/", server.address.port());
    let client = Client::new(&caller(&server)).unwrap();
    for _ in 0..3 {
        assert_eq!(
            text(soon(client.send(get(url.clone()))).await.unwrap()).await,
            "hello over h1"
        );
    }
    assert_eq!(server.connections.counts().accepted, 1);
    let h2 = Client::new(&ClientSettings {
        http2: true,
        ..caller(&server)
    })
    .unwrap();
    for _ in 0..3 {
        assert_eq!(text(soon(h2.send(get(url.clone()))).await.unwrap()).await, "hello over h2");
    }
    assert_eq!(server.connections.counts().accepted, 2);
}

#[tokio::test]
async fn a_shared_connection_serves_many_and_is_given_up_when_nobody_asks() {
    let server = start("shared", ClientCertificates::Off, ConnectionLimits::default(), hello).await;
    let url = format!("https://localhost:{}/", server.address.port());
    let client = Client::new(&ClientSettings {
        http2: true,
        pool_idle: Duration::from_millis(500),
        ..caller(&server)
    })
    .unwrap();
    let mut many = JoinSet::new();
    for _ in 0..8 {
        let (client, url) = (client.clone(), url.clone());
        many.spawn(async move { text(soon(client.send(get(url))).await.unwrap()).await });
    }
    while let Some(got) = many.join_next().await {
        assert_eq!(got.unwrap(), "hello over h2");
    }
    let idle = async {
        while server.connections.counts().open > 0 {
            tokio::task::yield_now().await;
        }
    };
    soon(idle).await;
    let accepted = server.connections.counts().accepted;
    for _ in 0..2 {
        assert_eq!(
            text(soon(client.send(get(url.clone()))).await.unwrap()).await,
            "hello over h2"
        );
    }
    assert_eq!(server.connections.counts().accepted, accepted + 1);
}

#[tokio::test]
async fn a_redirect_is_an_answer_like_any_other() {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    let elsewhere = move |_: Request<Incoming>, _: Arc<Peer>| {
        seen.fetch_add(1, SeqCst);
        async {
            Response::builder()
                .status(302)
                .header("location", "/elsewhere")
                .body(empty())
                .unwrap()
        }
    };
    let server = start("redirect", ClientCertificates::Off, ConnectionLimits::default(), elsewhere).await;
    let client = Client::new(&caller(&server)).unwrap();
    let answer = soon(client.send(get(format!("https://127.0.0.1:{}/", server.address.port()))))
        .await
        .unwrap();
    assert_eq!((answer.status(), count.load(SeqCst)), (StatusCode::FOUND, 1));
}

#[tokio::test]
async fn an_inner_address_is_not_called_unless_allowed() {
    let server = start("ssrf", ClientCertificates::Off, ConnectionLimits::default(), hello).await;
    let port = server.address.port();
    let strict = ClientSettings {
        allow_private: false,
        ..caller(&server)
    };
    for host in [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0x7f.1",
        "10.0.0.1",
        "169.254.169.254",
        "[fd00::1]",
    ] {
        let error = failure(&strict, format!("https://{host}:{port}/")).await;
        let refused =
            matches!(error, ClientError::Address { .. }) || (host == "0x7f.1" && matches!(error, ClientError::Connect { .. }));
        assert!(refused, "{host}: {error}");
        assert!(!error.may_have_been_sent());
    }
    let never = failure(&caller(&server), format!("https://169.254.169.254:{port}/")).await;
    assert!(
        matches!(never, ClientError::Address { .. }),
        "metadata is refused even then: {never}"
    );
    assert!(matches!(
        failure(&strict, "http://example.com/".to_owned()).await,
        ClientError::Url { .. }
    ));
    let clear = failure(&caller(&server), "http://8.8.8.8/".to_owned()).await;
    assert!(clear.to_string().contains("clear text"), "{clear}");
    assert_eq!(server.connections.counts().accepted, 0);
}

#[tokio::test]
async fn each_way_a_call_cannot_begin_has_its_sentence() {
    let server = start("failures", ClientCertificates::Off, ConnectionLimits::default(), hello).await;
    let port = server.address.port();
    let settings = caller(&server);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap().port();
    drop(listener);
    let unreachable = failure(&settings, format!("https://127.0.0.1:{closed}/")).await;
    assert_eq!(unreachable.to_string(), format!("cannot connect to `127.0.0.1:{closed}`"));

    let stranger = ClientSettings {
        ca_file: Some(scratch_ca("failures-ca").join("ca.pem")),
        ..settings.clone()
    };
    let untrusted = failure(&stranger, format!("https://127.0.0.1:{port}/")).await;
    assert!(matches!(untrusted, ClientError::Tls { .. }), "{untrusted}");

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hurried = ClientSettings {
        connect_timeout: SHORT.0,
        ..settings.clone()
    };
    let late = failure(&hurried, format!("https://{}/", silent.local_addr().unwrap())).await;
    assert!(matches!(late, ClientError::Timeout { .. }), "{late}");
    assert!(
        [&unreachable, &untrusted, &late]
            .iter()
            .all(|error| !error.may_have_been_sent())
    );

    let missing = ClientSettings {
        ca_file: Some("missing.pem".into()),
        ..settings
    };
    assert!(matches!(Client::new(&missing), Err(ClientError::Ca(_))));
}

#[tokio::test]
async fn a_server_that_closes_without_an_answer_may_have_received_the_call() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let upstream = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut head = [0; 1024];
        let read = tcp.read(&mut head).await.unwrap();
        assert!(head[..read].starts_with(b"GET / HTTP/1.1"));
    });
    let settings = ClientSettings {
        allow_private: true,
        ..ClientSettings::default()
    };
    let error = failure(&settings, url).await;
    assert!(error.may_have_been_sent(), "{error}");
    upstream.await.unwrap();
}
