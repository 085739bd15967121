//! The MCP server behind both proxies: it costs as little as possible, and runs on a thread of its own.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener as StdListener};
use tokio::net::TcpListener;

/// The tool whose verdict is the same whatever the arguments are, and the one whose arguments are judged.
pub const REUSED: &str = "reused";
pub const JUDGED: &str = "judged";

pub fn start() -> SocketAddr {
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
    let body = request.into_body().collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    // What is measured is answered without being parsed: the load's id is always 7.
    if body.windows(12).any(|part| part == b"\"tools/call\"") {
        let text = r#"{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":"done"}]}}"#;
        return Ok(response(200, Bytes::from_static(text.as_bytes())));
    }
    let message: Value = serde_json::from_slice(&body).unwrap_or_default();
    let result = match message["method"].as_str() {
        Some("initialize") => json!({
            "protocolVersion": "2025-11-25",
            "capabilities": { "tools": {} },
            "serverInfo": { "name": "bench", "version": "1" },
        }),
        Some("tools/list") => json!({ "tools": [tool(REUSED), tool(JUDGED)] }),
        _ => return Ok(response(202, Bytes::new())),
    };
    let text = json!({ "jsonrpc": "2.0", "id": message["id"], "result": result }).to_string();
    Ok(response(200, Bytes::from(text)))
}

fn tool(name: &str) -> Value {
    let text = json!({ "type": "string" });
    json!({
        "name": name,
        "description": "says it back",
        "inputSchema": {
            "type": "object",
            "properties": { "text": text, "folder": text, "language": text, "count": { "type": "integer" }, "urgent": { "type": "boolean" } },
            "required": ["text", "folder", "language", "count", "urgent"],
            "additionalProperties": false,
        },
        "annotations": { "readOnlyHint": true },
    })
}

fn response(status: u16, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::builder().status(status);
    if status == 200 {
        response = response.header("content-type", "application/json");
    }
    response.body(Full::new(body)).expect("a response")
}
