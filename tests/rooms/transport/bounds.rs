//! Every stage of a connection has a time-out, and it takes effect.

use super::*;

#[tokio::test]
async fn whoever_is_silent_is_cut_off_at_every_stage() {
    let limits = ConnectionLimits {
        handshake_timeout: HumanDuration(SHORT.0 * 5),
        header_timeout: SHORT,
        ..ConnectionLimits::default()
    };
    let server = start("silent", ClientCertificates::Off, limits, hello).await;

    let mut silent_tcp = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(rest(&mut silent_tcp).await, "", "before the TLS handshake");
    assert_eq!(server.connections.counts().timed_out, 1);

    assert_eq!(rest(&mut server.h1().await).await, "", "before the first request");
    let slow_head = ask(&mut server.h1().await, "GET / HTTP/1.1\r\nhost: a\r\nx-slow: ").await;
    assert!(!slow_head.contains("hello"), "in the middle of a head: {slow_head}");
    let between = ask(&mut server.h1().await, GET).await;
    assert!(between.ends_with("hello over h1"), "between two requests: {between}");

    let mut preface_never_sent = dial(server.address, trusting(&server.dir, &["h2"])).await.unwrap();
    rest(&mut preface_never_sent).await;
    let mut h2 = server.h2().await;
    assert_eq!(text(h2.get().await.unwrap()).await, "hello over h2");
    soon(h2.connection).await.unwrap().unwrap();
    assert_eq!(
        server.connections.counts().timed_out,
        3,
        "both h2 connections by our own count"
    );
}

#[tokio::test]
async fn a_busy_h2_connection_is_not_idle() {
    let limits = ConnectionLimits {
        header_timeout: SHORT,
        ..ConnectionLimits::default()
    };
    let (entered, mut inside) = mpsc::channel(1);
    let go_on = Arc::new(Notify::new());
    let wait = go_on.clone();
    let handler = move |_: Request<Incoming>, _: Arc<Peer>| {
        let (entered, wait) = (entered.clone(), wait.clone());
        async move {
            entered.send(()).await.unwrap();
            wait.notified().await;
            Response::new(full("done"))
        }
    };
    let server = start("busy", ClientCertificates::Off, limits, handler).await;
    let mut busy = server.h2().await;
    let answer = tokio::spawn(async move { text(busy.get().await.unwrap()).await });
    soon(inside.recv()).await.unwrap();
    let idle = server.h2().await;
    soon(idle.connection).await.unwrap().unwrap();
    go_on.notify_one();
    assert_eq!(
        soon(answer).await.unwrap(),
        "done",
        "it outlived one that was idle from later on"
    );
}

#[tokio::test]
async fn a_body_is_read_whole_within_its_bounds_or_not_at_all() {
    let server = start("body", ClientCertificates::Off, ConnectionLimits::default(), echo).await;
    let post = |head: &str, body: &str| format!("POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{head}\r\n\r\n{body}");
    let said = async |head: &str, body: &str| ask(&mut server.h1().await, &post(head, body)).await;

    assert!(said("content-length: 5", "hello").await.ends_with("\r\n\r\nhello"));
    let chunks = "3\r\nhel\r\n2\r\nlo\r\n1\r\n!\r\n0\r\n\r\n";
    assert!(said("transfer-encoding: chunked", chunks).await.ends_with("\r\n\r\nhello!"));
    assert!(said("content-length: 0", "").await.ends_with("\r\n\r\n"));
    let whole = "x".repeat(1_000);
    assert!(
        said("content-length: 1000", &whole).await.ends_with(&whole),
        "as much as the limit"
    );

    assert!(
        said("content-length: 1001", "")
            .await
            .ends_with(&BodyProblem::TooLarge.to_string()),
        "refused by its head"
    );
    let large = format!("3e8\r\n{whole}\r\n1\r\nx\r\n0\r\n\r\n");
    assert!(
        said("transfer-encoding: chunked", &large)
            .await
            .ends_with(&BodyProblem::TooLarge.to_string())
    );
    let in_pieces = format!("1f4\r\n{0}\r\n1f4\r\n{0}\r\n1\r\nx\r\n0\r\n\r\n", &whole[..500]);
    assert!(
        said("transfer-encoding: chunked", &in_pieces)
            .await
            .ends_with(&BodyProblem::TooLarge.to_string())
    );
    assert!(
        said("content-length: 5", "hel")
            .await
            .ends_with(&BodyProblem::TooSlow.to_string())
    );
    assert!(
        said("transfer-encoding: chunked", "5\r\nhel")
            .await
            .ends_with(&BodyProblem::TooSlow.to_string())
    );
    assert!(
        said("transfer-encoding: chunked", "zz\r\nhel")
            .await
            .ends_with(&BodyProblem::Broken.to_string())
    );
    let trailers = "2\r\nhi\r\n0\r\nauthorization: Bearer x\r\n\r\n";
    assert!(
        said("transfer-encoding: chunked", trailers)
            .await
            .ends_with(&BodyProblem::Trailers.to_string())
    );
}

#[tokio::test]
async fn a_second_request_cannot_hide_behind_two_lengths() {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    let counting = move |request: Request<Incoming>, peer: Arc<Peer>| {
        seen.fetch_add(1, SeqCst);
        echo(request, peer)
    };
    let server = start("smuggling", ClientCertificates::Off, ConnectionLimits::default(), counting).await;
    let inner = "GET /inner HTTP/1.1\r\nhost: a\r\n\r\n";
    for lengths in [
        "content-length: 40\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 40",
    ] {
        count.store(0, SeqCst);
        let answer = ask(
            &mut server.h1().await,
            &format!("POST / HTTP/1.1\r\nhost: a\r\n{lengths}\r\n\r\n0\r\n\r\n{inner}"),
        )
        .await;
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        assert_eq!(count.load(SeqCst), 1);
    }
}

#[tokio::test]
async fn the_head_that_arrives_is_the_one_that_is_judged() {
    let judge = |request: Request<Incoming>, _: Arc<Peer>| async move {
        match framing(&request.into_parts().0) {
            Ok(()) => Response::new(full("fine")),
            Err(why) => Response::builder().status(400).body(full(why)).unwrap(),
        }
    };
    let server = start("framing", ClientCertificates::Off, ConnectionLimits::default(), judge).await;
    let said = async |head: &str| ask(&mut server.h1().await, &format!("{head}connection: close\r\n\r\n")).await;
    assert!(said("GET /mcp/a HTTP/1.1\r\nhost: a\r\n").await.ends_with("fine"));
    for head in [
        "GET /mcp/a HTTP/1.1\r\n",
        "GET /mcp/a HTTP/1.1\r\nhost: a\r\nhost: a\r\n",
        "GET http://b/mcp/a HTTP/1.1\r\nhost: a\r\n",
        "GET /mcp/a HTTP/1.0\r\nhost: a\r\n",
        "GET /mcp/%61 HTTP/1.1\r\nhost: a\r\n",
        "CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n",
        "TRACE /mcp/a HTTP/1.1\r\nhost: a\r\n",
        "POST /mcp/a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, chunked\r\n",
        "POST /mcp/a HTTP/1.1\r\nhost: a\r\ncontent-length: 00\r\n",
        "POST /mcp/a HTTP/1.1\r\nhost: a\r\nTransfer_Encoding: chunked\r\n",
        "GET /mcp/a HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\n",
        "GET /mcp/a HTTP/1.1\r\nhost: a\r\nexpect: something\r\n",
    ] {
        let answer = said(head).await;
        assert!(!answer.contains("fine") && answer.contains(" 400 "), "{head}: {answer}");
    }
    let h2 = server.h2().await.get().await.unwrap();
    assert_eq!((h2.status(), text(h2).await.as_str()), (StatusCode::OK, "fine"));
}

#[tokio::test]
async fn a_head_has_a_size() {
    let limits = ConnectionLimits {
        max_header_bytes: 8 * 1024,
        ..ConnectionLimits::default()
    };
    let server = start("head", ClientCertificates::Off, limits, hello).await;
    let padded = |size: usize| {
        format!(
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-pad: {}\r\n\r\n",
            "x".repeat(size)
        )
    };
    assert!(ask(&mut server.h1().await, &padded(8_000)).await.contains(" 200 "));
    assert!(ask(&mut server.h1().await, &padded(9_000)).await.contains(" 431 "));
    let mut h2 = server.h2().await;
    let request = Request::get("https://localhost/")
        .header("x-pad", "x".repeat(9_000))
        .body(Full::default())
        .unwrap();
    let answer = h2.sender.send_request(request).await;
    assert!(answer.map_or(true, |answer| answer.status() == 431));
}

#[tokio::test]
async fn one_address_cannot_take_all_connections() {
    let limits = ConnectionLimits {
        max_connections: 5,
        max_connections_per_address: 2,
        ..ConnectionLimits::default()
    };
    let server = start("caps", ClientCertificates::Off, limits, hello).await;
    let first = server.h1().await;
    let _second = server.h1().await;
    assert!(dial(server.address, trusting(&server.dir, &[])).await.is_err());
    assert_eq!(
        (server.connections.counts().open, server.connections.counts().refused),
        (2, 1)
    );
    drop(first);
    soon(async {
        while server.connections.counts().open > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(ask(&mut server.h1().await, GET_AND_CLOSE).await.contains("hello"));
}

#[tokio::test]
async fn an_answer_has_a_longest_life() {
    let limits = ConnectionLimits {
        total_timeout: SHORT,
        ..ConnectionLimits::default()
    };
    let endless = |_: Request<Incoming>, _: Arc<Peer>| async { Response::new(never_ending("tick")) };
    let server = start("total", ClientCertificates::Off, limits, endless).await;
    let h1 = ask(&mut server.h1().await, GET).await;
    assert!(
        h1.contains("tick") && !h1.ends_with("0\r\n\r\n"),
        "it breaks off and does not pretend to have ended: {h1}"
    );
    let answer = server.h2().await.get().await.unwrap();
    assert!(soon(answer.into_body().collect()).await.is_err());
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_cut_off() {
    let limits = ConnectionLimits {
        idle_timeout: SHORT,
        total_timeout: SHORT,
        ..ConnectionLimits::default()
    };
    let (gone, mut went) = mpsc::channel(1);
    let flood = move |_: Request<Incoming>, _: Arc<Peer>| {
        let gone = OnDrop(gone.clone());
        async move {
            Response::new(frames(move || {
                let _held = &gone;
                Poll::Ready(Bytes::from(vec![b'x'; 64 * 1024]))
            }))
        }
    };
    let server = start("stalled", ClientCertificates::Off, limits, flood).await;
    let mut deaf = server.h1().await;
    deaf.write_all(GET.as_bytes()).await.unwrap();
    soon(went.recv()).await.expect("the peer still holds its connection");

    let mut h2 = server.h2().await;
    let unread = h2.get().await.unwrap();
    soon(went.recv())
        .await
        .expect("the peer still holds its stream and opens no window");
    drop(unread);
}
