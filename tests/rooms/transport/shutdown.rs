//! Drains, aborts, and clients that disconnect.

use super::*;

#[tokio::test]
async fn a_drain_lets_running_answers_finish_and_takes_nothing_new() {
    let (entered, mut inside) = mpsc::channel(4);
    let go_on = Arc::new(Notify::new());
    let wait = go_on.clone();
    let handler = move |_: Request<Incoming>, _: Arc<Peer>| {
        let (entered, wait) = (entered.clone(), wait.clone());
        async move {
            entered.send(()).await.unwrap();
            wait.notified().await;
            Response::new(full("finished"))
        }
    };
    let server = start("drain", ClientCertificates::Off, ConnectionLimits::default(), handler).await;
    let mut idle = server.h1().await;
    let mut busy = server.h1().await;
    busy.write_all(GET.as_bytes()).await.unwrap();
    let mut h2 = server.h2().await;
    let h2_answer = tokio::spawn(async move { text(h2.get().await.unwrap()).await });
    soon(inside.recv()).await.unwrap();
    soon(inside.recv()).await.unwrap();

    server.shutdown.drain();
    assert_eq!(rest(&mut idle).await, "", "an idle connection is closed at once");
    assert!(TcpStream::connect(server.address).await.is_err(), "nobody listens any more");
    go_on.notify_waiters();
    let answer = rest(&mut busy).await;
    assert!(
        answer.ends_with("finished") && answer.contains("connection: close"),
        "{answer}"
    );
    assert_eq!(soon(h2_answer).await.unwrap(), "finished");
    server.ended().await;
}

#[tokio::test]
async fn a_drain_ends_in_its_time_and_an_abort_at_once() {
    for (name, drain_timeout, abort) in [("drain-late", SHORT, false), ("abort", HumanDuration(NEVER * 10), true)] {
        let (entered, mut inside) = mpsc::channel(4);
        let (gone, mut went) = mpsc::channel(4);
        let handler = move |_: Request<Incoming>, _: Arc<Peer>| {
            let (entered, gone) = (entered.clone(), OnDrop(gone.clone()));
            async move {
                entered.send(()).await.unwrap();
                std::future::pending::<()>().await;
                drop(gone);
                Response::new(empty())
            }
        };
        let limits = ConnectionLimits {
            drain_timeout,
            ..ConnectionLimits::default()
        };
        let server = start(name, ClientCertificates::Off, limits, handler).await;
        let mut stuck = server.h1().await;
        stuck.write_all(GET.as_bytes()).await.unwrap();
        let mut h2 = server.h2().await;
        let stuck_h2 = tokio::spawn(async move { h2.get().await.map(|_| ()) });
        soon(inside.recv()).await.unwrap();
        soon(inside.recv()).await.unwrap();
        server.shutdown.drain();
        if abort {
            server.shutdown.abort();
        }
        server.ended().await;
        assert_eq!(rest(&mut stuck).await, "");
        assert!(soon(stuck_h2).await.unwrap().is_err());
        soon(went.recv()).await.unwrap();
        soon(went.recv()).await.expect("both handlers were dropped");
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_its_request() {
    let (entered, mut inside) = mpsc::channel(2);
    let (gone, mut went) = mpsc::channel(2);
    let handler = move |_: Request<Incoming>, _: Arc<Peer>| {
        let (entered, gone) = (entered.clone(), OnDrop(gone.clone()));
        async move {
            entered.send(()).await.unwrap();
            std::future::pending::<()>().await;
            drop(gone);
            Response::new(empty())
        }
    };
    let server = start("hang-up", ClientCertificates::Off, ConnectionLimits::default(), handler).await;
    let mut h1 = server.h1().await;
    h1.write_all(GET.as_bytes()).await.unwrap();
    soon(inside.recv()).await.unwrap();
    drop(h1);
    soon(went.recv()).await.expect("h1");
    let mut h2 = server.h2().await;
    let cancelled = tokio::spawn(async move { h2.get().await.map(|_| ()) });
    soon(inside.recv()).await.unwrap();
    cancelled.abort();
    soon(went.recv()).await.expect("h2: the stream was reset");
}
