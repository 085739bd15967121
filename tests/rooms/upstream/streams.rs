//! Streams: passed on frame by frame, ended with a reason, recorded once.

use super::cleared_call::{Fixture, modern_call, tool_call, without_id};
use super::server::{STREAM, Server};
use neural_guardian::domain::{Call, CutBy, Executed, Method, Outcome, OutcomeKind, Reason};
use neural_guardian::mcp::MessageKind;
use neural_guardian::upstream::{Answer, EventStream, ForwardError};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const RESULT: &str = "data: {\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{}}\n\n";
const PROGRESS: &str = "event: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{}}\n\n";
const ASKED: &str = "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"roots/list\"}\n\n";

async fn frames(fixture: &Fixture, call: Call) -> EventStream {
    match fixture.forward(call).await {
        Ok(Answer::Stream(stream)) => stream,
        Ok(_) => panic!("no stream"),
        Err(error) => panic!("{error}"),
    }
}

/// What a client would get of a stream: the bytes, and the failure at its end.
async fn drain(mut stream: EventStream) -> (String, Option<ForwardError>) {
    let mut text = String::new();
    while let Some(piece) = stream.next().await {
        match piece {
            Ok(piece) => text.push_str(std::str::from_utf8(&piece.frame.raw).unwrap()),
            Err(error) => {
                assert!(stream.next().await.is_none(), "a failure is the last item");
                return (text, Some(error));
            }
        }
    }
    (text, None)
}

async fn streamed(call: Call, stream: &str) -> (String, Option<ForwardError>, Outcome) {
    let server = Server::saying(format!("{STREAM}{stream}")).await;
    let fixture = Fixture::new(&server.url);
    let (text, error) = drain(frames(&fixture, call).await).await;
    (text, error, fixture.outcome().await)
}

/// A server that sends what the test gives it, when the test gives it.
async fn told() -> (
    Server,
    mpsc::UnboundedSender<&'static str>,
    tokio::sync::oneshot::Receiver<()>,
) {
    let (say, told) = mpsc::unbounded_channel::<&'static str>();
    let (closed, is_closed) = tokio::sync::oneshot::channel();
    let once = Arc::new(Mutex::new(Some((told, closed))));
    let server = Server::start(move |_, mut stream| {
        let (mut told, closed) = once.lock().unwrap().take().unwrap();
        async move {
            stream.write_all(STREAM.as_bytes()).await.unwrap();
            let mut rest = [0];
            loop {
                tokio::select! {
                    piece = told.recv() => match piece {
                        Some(piece) => stream.write_all(piece.as_bytes()).await.unwrap(),
                        None => break,
                    },
                    read = stream.read(&mut rest) => {
                        assert!(matches!(read, Ok(0) | Err(_)));
                        break;
                    }
                }
            }
            let _ = closed.send(());
        }
    })
    .await;
    (server, say, is_closed)
}

#[tokio::test]
async fn each_frame_passes_before_the_next_is_sent() {
    let (server, say, _closed) = told().await;
    let fixture = Fixture::new(&server.url);
    let mut stream = frames(&fixture, tool_call()).await;
    for piece in [": hello\n\n", PROGRESS, ASKED, "event: ping\ndata: now\n\n", RESULT] {
        say.send(piece).unwrap();
        let got = stream.next().await.unwrap().unwrap();
        let expected = if piece.starts_with("event: ping") { ":\n\n" } else { piece };
        assert_eq!(got.frame.raw, expected.as_bytes());
        let kind = match piece {
            PROGRESS => Some(MessageKind::ServerNotification),
            ASKED => Some(MessageKind::ServerRequest),
            RESULT => Some(MessageKind::Result { is_error: false }),
            _ => None,
        };
        assert_eq!(got.kind, kind);
    }
    say.send(PROGRESS).unwrap();
    assert_eq!(
        stream.next().await.unwrap().unwrap().frame.raw,
        PROGRESS.as_bytes(),
        "what follows the answer passes too"
    );
    drop(say);
    assert!(stream.next().await.is_none());
    drop(stream);
    let outcome = fixture.outcome().await;
    assert_eq!(
        (outcome.kind, outcome.executed, outcome.status),
        (OutcomeKind::Done, Executed::Yes, Some(200))
    );
    assert!(outcome.bytes > 0);
}

#[tokio::test]
async fn the_bytes_of_a_stream_are_kept_whatever_its_line_ends() {
    let stream = format!("retry: 5\r\n\r\n: x\r\n\r\nid: 3\r{}", RESULT.replace('\n', "\r"));
    let (text, error, outcome) = streamed(tool_call(), &stream).await;
    assert_eq!((text, error), (stream, None));
    assert_eq!((outcome.kind, outcome.executed), (OutcomeKind::Done, Executed::Yes));
}

#[tokio::test]
async fn an_error_in_the_stream_is_an_answer() {
    let answer = "data: {\"jsonrpc\":\"2.0\",\"id\":7,\"error\":{\"code\":-32602,\"message\":\"no\"}}\n\n";
    let (text, error, outcome) = streamed(modern_call(), answer).await;
    assert_eq!(
        (text.as_str(), error, outcome.kind),
        (answer, None, OutcomeKind::RefusedByServer)
    );
    let nobody = answer.replace("\"id\":7", "\"id\":null");
    let (text, error, _) = streamed(tool_call(), &nobody).await;
    assert_eq!(
        (text, error),
        (format!("event: message\n{answer}"), None),
        "addressed to the pending request"
    );
}

#[tokio::test]
async fn a_stream_that_ends_before_the_answer_ends_with_the_reason() {
    for stream in [
        "",
        ": hello\n\n",
        PROGRESS,
        "data: {\"jsonrpc\":\"2.0\"",
        "data: {\"jsonrpc\":\"2.0\",\"id\":8,\"result\":{}}\n\n",
        "data: {\"jsonrpc\":\"2.0\",\"id\":7,\"id\":7,\"result\":{}}\n\n",
        "data: [{\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{}}]\n\n",
        "data: hello\n\n",
        "data: \u{0}\n\n",
    ] {
        let (_, error, outcome) = streamed(tool_call(), stream).await;
        assert_eq!(error.expect(stream).reason, Reason::UpstreamBroken, "{stream}");
        assert_eq!((outcome.kind, outcome.status), (OutcomeKind::Broken, Some(200)), "{stream}");
    }
    let too_large = format!("data: {}", "x".repeat(70_000));
    let (text, error, _) = streamed(tool_call(), &format!("{PROGRESS}{too_large}")).await;
    assert_eq!((text.as_str(), error.unwrap().reason), (PROGRESS, Reason::UpstreamBroken));
    let chunked = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n4\r\n: x\n\r\nzz";
    let server = Server::saying(chunked).await;
    let fixture = Fixture::new(&server.url);
    let (_, error) = drain(frames(&fixture, tool_call()).await).await;
    assert!(error.unwrap().cause.is_some());
}

#[tokio::test]
async fn a_legacy_stream_with_event_ids_may_end_early_to_be_resumed() {
    let primed = "id: 1\nretry: 10\ndata:\n\n";
    let (text, error, outcome) = streamed(tool_call(), primed).await;
    assert_eq!((text.as_str(), error, outcome.kind), (primed, None, OutcomeKind::Unknown));
    let (_, error, outcome) = streamed(modern_call(), primed).await;
    assert_eq!(
        (error.unwrap().reason, outcome.kind),
        (Reason::UpstreamBroken, OutcomeKind::Broken),
        "modern streams are not resumed"
    );
}

#[tokio::test]
async fn nothing_comes_after_the_answer_but_notifications() {
    for more in [
        RESULT,
        "data: {\"jsonrpc\":\"2.0\",\"id\":8,\"result\":{}}\n\n",
        "data: hello\n\n",
        ASKED,
    ] {
        let (text, error, outcome) = streamed(tool_call(), &format!("{RESULT}{PROGRESS}{more}{PROGRESS}")).await;
        assert_eq!((text, error), (format!("{RESULT}{PROGRESS}"), None));
        assert_eq!(outcome.kind, OutcomeKind::Done);
    }
}

#[tokio::test]
async fn a_modern_server_may_not_ask_the_client() {
    let (text, error, outcome) = streamed(modern_call(), &format!("{PROGRESS}{ASKED}{RESULT}")).await;
    assert_eq!(
        (text.as_str(), error.unwrap().reason, outcome.kind),
        (PROGRESS, Reason::UpstreamBroken, OutcomeKind::Broken)
    );
}

#[tokio::test]
async fn a_stream_that_falls_silent_is_given_up_on() {
    for begun in [": hello\n\n", "data: {\"jsonrpc\":"] {
        let (server, say, closed) = told().await;
        let fixture = Fixture::impatient(&server.url, std::time::Duration::from_millis(100));
        let stream = frames(&fixture, tool_call()).await;
        say.send(begun).unwrap();
        let (_, error) = drain(stream).await;
        assert_eq!(error.unwrap().reason, Reason::UpstreamTimeout);
        closed.await.unwrap();
        assert_eq!(fixture.outcome().await.kind, OutcomeKind::TimedOut);
    }
}

#[tokio::test]
async fn a_client_that_goes_away_hangs_up_on_the_server() {
    let (server, say, closed) = told().await;
    let fixture = Fixture::new(&server.url);
    let mut stream = frames(&fixture, tool_call()).await;
    say.send(PROGRESS).unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    closed.await.unwrap();
    let outcome = fixture.outcome().await;
    assert_eq!(
        (outcome.kind, outcome.bytes),
        (OutcomeKind::ClientClosed, PROGRESS.len() as u64)
    );
}

#[tokio::test]
async fn a_stream_is_cut_when_its_authorisation_goes() {
    let (server, say, closed) = told().await;
    let fixture = Fixture::new(&server.url);
    let mut stream = frames(&fixture, tool_call()).await;
    let gone = CancellationToken::new();
    stream.cancel_on(gone.clone());
    say.send(PROGRESS).unwrap();
    stream.next().await.unwrap().unwrap();
    gone.cancel();
    say.send(RESULT).unwrap();
    let (text, error) = drain(stream).await;
    assert_eq!((text.as_str(), error.unwrap().reason), ("", Reason::GrantRevoked));
    closed.await.unwrap();
    let outcome = fixture.outcome().await;
    assert_eq!((outcome.kind, outcome.by), (OutcomeKind::Cut, Some(CutBy::Revoked)));
}

#[tokio::test]
async fn a_servers_own_stream_passes_until_it_ends() {
    let other = "id: 4\ndata: {\"jsonrpc\":\"2.0\",\"id\":3,\"result\":{}}\n\n";
    let stream = format!(": hi\n\n{PROGRESS}{ASKED}{other}");
    let (text, error, outcome) = streamed(without_id(Method::OpenStream, ""), &stream).await;
    assert_eq!(
        (text, error, outcome.kind),
        (stream, None, OutcomeKind::Done),
        "a resumed stream holds earlier answers"
    );
    let (text, error, outcome) = streamed(
        without_id(Method::OpenStream, ""),
        &format!("{PROGRESS}data: x\n\n{PROGRESS}"),
    )
    .await;
    assert_eq!(
        (text.as_str(), error, outcome.kind),
        (PROGRESS, None, OutcomeKind::Broken),
        "nobody waits for a reason"
    );
    let server = Server::answering("200 OK", "application/json", "{}").await;
    assert!(
        Fixture::new(&server.url)
            .forward(without_id(Method::OpenStream, ""))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_stream_becomes_the_body_of_an_answer() {
    use http_body_util::BodyExt;
    let server = Server::saying(format!("{STREAM}{PROGRESS}{ASKED}: x\n\n")).await;
    let fixture = Fixture::new(&server.url);
    let body = frames(&fixture, tool_call()).await.into_body(|piece| match piece {
        Ok(piece) if piece.kind == Some(MessageKind::ServerRequest) => None,
        Ok(piece) => Some(piece.frame.raw),
        Err(error) => Some(format!("data: {error}\n\n").into()),
    });
    let bytes = body.collect().await.unwrap().to_bytes();
    let wanted = format!("{PROGRESS}: x\n\ndata: the server ended its stream before it answered\n\n");
    assert_eq!(std::str::from_utf8(&bytes).unwrap(), wanted);
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_server_back() {
    let (count, mut counted) = tokio::sync::watch::channel(0_usize);
    let count = Arc::new(count);
    let server = Server::start(move |_, mut stream| {
        let count = count.clone();
        async move {
            stream.write_all(STREAM.as_bytes()).await.unwrap();
            let piece = format!(": {}\n\n", "x".repeat(60_000));
            while stream.write_all(piece.as_bytes()).await.is_ok() {
                count.send_modify(|count| *count += piece.len());
            }
        }
    })
    .await;
    let fixture = Fixture::new(&server.url);
    let mut stream = frames(&fixture, tool_call()).await;
    stream.next().await.unwrap().unwrap();
    // The server can send until the buffers on the way are full, and then nothing more.
    loop {
        let before = *counted.borrow_and_update();
        let more = tokio::time::timeout(std::time::Duration::from_millis(200), counted.changed()).await;
        if more.is_err() {
            assert!(before < 32 * 1024 * 1024, "{before} bytes were taken from the server");
            break;
        }
        assert!(*counted.borrow() < 32 * 1024 * 1024, "the stream is buffered");
    }
}
