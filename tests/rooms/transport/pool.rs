//! The connection pool: which connections to servers are used again, and which never are.

use super::*;
use std::future::poll_fn;
use std::task::Poll;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// A clear-text server whose answers the test gives, connection by connection.
struct Scripted {
    url: String,
    connections: mpsc::UnboundedReceiver<TcpStream>,
    accepting: JoinHandle<()>,
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

impl Scripted {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (sender, connections) = mpsc::unbounded_channel();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if sender.send(stream).is_err() {
                    return;
                }
            }
        });
        Self {
            url,
            connections,
            accepting,
        }
    }

    /// Accepts no more connections.
    async fn stop(&mut self) {
        self.accepting.abort();
        let _ = (&mut self.accepting).await;
    }

    async fn next(&mut self) -> TcpStream {
        soon(self.connections.recv()).await.unwrap()
    }

    fn nobody_else_came(&mut self) {
        assert!(self.connections.try_recv().is_err(), "another connection was made");
    }
}

fn settings() -> ClientSettings {
    ClientSettings {
        allow_private: true,
        ..ClientSettings::default()
    }
}

fn client() -> Client {
    Client::new(&settings()).unwrap()
}

fn post(url: &str) -> Request<Full<Bytes>> {
    Request::post(url).body(Full::from("hello")).unwrap()
}

/// Reads one request to its end.
async fn request(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    while !all.ends_with(b"\r\n\r\nhello") {
        let mut some = [0; 1024];
        let read = soon(stream.read(&mut some)).await.unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&some[..read]);
    }
    String::from_utf8(all).unwrap()
}

async fn answer(stream: &mut TcpStream, with: &[u8]) -> String {
    let asked = request(stream).await;
    stream.write_all(with).await.unwrap();
    asked
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    matches!(soon(stream.read(&mut [0; 1])).await, Ok(0) | Err(_))
}

/// The runtime reports events in order: after an exchange that came later, it has reported what other connections got before.
async fn the_runtime_has_heard() {
    let (_, got) = exchange(&mut Scripted::start().await, &client(), None, OK).await;
    text(got).await;
}

/// One exchange, on the given connection or on a new one.
async fn exchange(
    server: &mut Scripted,
    client: &Client,
    standing: Option<TcpStream>,
    with: &[u8],
) -> (TcpStream, Response<ResponseBody>) {
    let url = server.url.clone();
    let asked = async {
        let mut connection = match standing {
            Some(connection) => connection,
            None => server.next().await,
        };
        answer(&mut connection, with).await;
        connection
    };
    let (connection, got) = tokio::join!(asked, soon(client.send(post(&url))));
    (connection, got.unwrap())
}

#[tokio::test]
async fn a_request_names_its_host_and_its_path_alone() {
    let mut server = Scripted::start().await;
    let (client, url) = (client(), format!("{}a/b?c=d", server.url));
    let asked = async { answer(&mut server.next().await, OK).await };
    let (asked, got) = tokio::join!(asked, soon(client.send(post(&url))));
    let host = url.split('/').nth(2).unwrap();
    assert!(asked.starts_with("POST /a/b?c=d HTTP/1.1\r\n"), "{asked}");
    assert_eq!(asked.matches(&format!("\r\nhost: {host}\r\n")).count(), 1, "{asked}");
    assert_eq!(text(got.unwrap()).await, "ok");
}

#[tokio::test]
async fn a_connection_is_used_again_once_its_answer_was_read() {
    for whole in [
        OK,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
        b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ] {
        let mut server = Scripted::start().await;
        let (client, mut standing) = (client(), None);
        for _ in 0..3 {
            let (connection, got) = exchange(&mut server, &client, standing, whole).await;
            text(got).await;
            standing = Some(connection);
        }
        server.nobody_else_came();
    }
}

#[tokio::test]
async fn an_answer_that_is_there_need_not_be_read() {
    for whole in [
        &b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"[..],
        b"HTTP/1.1 202 Accepted\r\ncontent-length: 8\r\n\r\nAccepted",
        b"HTTP/1.1 202 Accepted\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ] {
        let mut server = Scripted::start().await;
        let client = client();
        let (connection, got) = exchange(&mut server, &client, None, whole).await;
        drop(got);
        let (_, got) = exchange(&mut server, &client, Some(connection), OK).await;
        assert_eq!(text(got).await, "ok");
    }
}

#[tokio::test]
async fn who_cannot_connect_takes_what_came_free_meanwhile() {
    let mut server = Scripted::start().await;
    server.url = server.url.replace("127.0.0.1", "localhost");
    let client = client();
    let (mut connection, held) = exchange(&mut server, &client, None, OK).await;
    server.stop().await;
    // Resolving the name takes more than one poll.
    let mut sending = Box::pin(client.send(post(&server.url)));
    assert!(poll_fn(|context| Poll::Ready(sending.as_mut().poll(context).is_pending())).await);
    drop(held);
    let (_, got) = tokio::join!(answer(&mut connection, OK), soon(sending));
    assert_eq!(text(got.unwrap()).await, "ok");
}

#[tokio::test]
async fn a_slow_body_arrives_and_its_connection_stays() {
    let mut server = Scripted::start().await;
    let client = client();
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let (mut connection, got) = exchange(&mut server, &client, None, head).await;
    let mut body = got.into_body();
    for piece in ["one", "two"] {
        let bytes = format!("3\r\n{piece}\r\n");
        connection.write_all(bytes.as_bytes()).await.unwrap();
        let frame = soon(body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), piece);
    }
    connection.write_all(b"0\r\n\r\n").await.unwrap();
    assert!(soon(body.frame()).await.is_none());
    drop(body);
    let (_, got) = exchange(&mut server, &client, Some(connection), OK).await;
    assert_eq!(text(got).await, "ok");
}

#[tokio::test]
async fn an_answer_that_was_not_read_closes_its_connection() {
    for begun in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nok"[..],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    ] {
        let mut server = Scripted::start().await;
        let client = client();
        let (mut first, got) = exchange(&mut server, &client, None, begun).await;
        drop(got);
        assert!(is_closed(&mut first).await);
        let (_, got) = exchange(&mut server, &client, None, OK).await;
        assert_eq!(text(got).await, "ok");
    }
}

#[tokio::test]
async fn who_no_longer_waits_closes_the_connection() {
    let mut server = Scripted::start().await;
    let client = client();
    let mut sending = Box::pin(client.send(post(&server.url)));
    let mut connection = tokio::select! {
        _ = &mut sending => panic!("nobody has answered"),
        connection = async {
            let mut connection = server.next().await;
            request(&mut connection).await;
            connection
        } => connection,
    };
    drop(sending);
    assert!(is_closed(&mut connection).await);
}

#[tokio::test]
async fn what_the_server_closed_or_spoke_on_unasked_is_not_used_again() {
    let farewell: [&[u8]; 3] = [b"", b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n", OK];
    for last in farewell {
        let mut server = Scripted::start().await;
        let (client, mut answers) = (client(), Vec::new());
        let mut standing = Vec::new();
        // More stale connections than the number of times a request is tried.
        for _ in 0..5 {
            let (connection, got) = exchange(&mut server, &client, None, OK).await;
            standing.push(connection);
            answers.push(got);
        }
        for got in answers {
            text(got).await;
        }
        for mut connection in standing {
            connection.write_all(last).await.unwrap();
            connection.shutdown().await.unwrap();
        }
        the_runtime_has_heard().await;
        let later = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nlater";
        let (_, got) = exchange(&mut server, &client, None, later).await;
        assert_eq!(text(got).await, "later");
    }
}

#[tokio::test]
async fn what_follows_an_answer_is_never_taken_for_the_next() {
    let mut server = Scripted::start().await;
    let client = client();
    let two = [OK, b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged"].concat();
    let (mut first, got) = exchange(&mut server, &client, None, &two).await;
    assert_eq!(text(got).await, "ok");
    assert!(is_closed(&mut first).await);
    let (_, got) = exchange(&mut server, &client, None, OK).await;
    assert_eq!(text(got).await, "ok");
}

#[tokio::test]
async fn a_request_that_may_have_arrived_is_said_to() {
    let mut server = Scripted::start().await;
    let (client, url) = (client(), server.url.clone());
    let cut = async {
        let mut connection = server.next().await;
        request(&mut connection).await;
    };
    let ((), got) = tokio::join!(cut, soon(client.send(post(&url))));
    assert!(got.unwrap_err().may_have_been_sent());
    let nonsense = async { answer(&mut server.next().await, b"nonsense\r\n\r\n").await };
    let (_, got) = tokio::join!(nonsense, soon(client.send(post(&url))));
    assert!(got.unwrap_err().may_have_been_sent());
}

#[tokio::test]
async fn no_more_stay_open_than_may_nor_longer() {
    let mut server = Scripted::start().await;
    let client = Client::new(&ClientSettings {
        pool_idle: Duration::from_millis(300),
        pool_max_idle: 1,
        ..settings()
    })
    .unwrap();
    let (mut first, one) = exchange(&mut server, &client, None, OK).await;
    let (mut second, other) = exchange(&mut server, &client, None, OK).await;
    text(one).await;
    text(other).await;
    assert!(is_closed(&mut second).await, "there was a place for one");
    assert!(is_closed(&mut first).await, "and that for a time");
    let (_, got) = exchange(&mut server, &client, None, OK).await;
    assert_eq!(text(got).await, "ok");
}

#[tokio::test]
async fn what_came_unasked_is_seen_before_the_runtime_hears_of_it() {
    let forged = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged";
    for came in [&forged[..], b""] {
        let mut server = Scripted::start().await;
        let client = client();
        let (connection, got) = exchange(&mut server, &client, None, OK).await;
        assert_eq!(text(got).await, "ok");
        // No `.await` from here until the request is sent: only the kernel knows of the bytes.
        let mut connection = connection.into_std().unwrap();
        std::io::Write::write_all(&mut connection, came).unwrap();
        connection.shutdown(std::net::Shutdown::Write).unwrap();
        let (_, got) = exchange(&mut server, &client, None, OK).await;
        assert_eq!(text(got).await, "ok");
    }
}
