//! An MCP server that records every request that reaches it, and misbehaves when told to. It speaks both eras.

use super::certificates::{Authority, server_tls};
use super::resources_and_prompts;
use super::server::{Answering, Body, serve};
use super::wait::{LONGEST, soon};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use tokio::sync::{Semaphore, mpsc, watch};

pub struct Upstream {
    pub url: String,
    state: Arc<State>,
}

/// One HTTP request as it arrived.
#[derive(Debug, Clone)]
pub struct Received {
    pub verb: String,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub message: Value,
}

/// What the server does instead of answering calls of a tool.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Never answers.
    Hang,
    /// Answers after `Upstream::step`.
    Hold,
    /// Answers as a stream of one event.
    Stream,
    /// Begins a stream and breaks it off after `Upstream::step`.
    Break,
    Redirect(String),
    /// Answers 401 with a challenge of its own.
    Challenge,
    /// Answers, with cookies and other headers of its own.
    Cookies,
    Status(u16),
    /// Answers 200 with a body that is not JSON.
    Garbage,
    /// Answers with a result that has `isError`.
    ToolError,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eras {
    Legacy,
    Modern,
    Both,
}

type OnCall = Box<dyn Fn(&Received) + Send>;
type Script = Box<dyn Fn(&Received) -> Option<Scripted> + Send>;

/// An answer that a story prescribes.
pub enum Scripted {
    /// A result, or a whole message if it has `jsonrpc`.
    Json(Value),
    /// A stream of events that lasts as long as the sender.
    Stream(mpsc::Receiver<io::Result<Bytes>>),
    /// A stream with these events, complete.
    Events(Vec<Value>),
    /// A status with an empty body.
    Status(u16),
}

struct State {
    eras: Eras,
    received: Mutex<Vec<Received>>,
    arrived: watch::Sender<usize>,
    faults: Mutex<BTreeMap<String, Fault>>,
    steps: Semaphore,
    tools: Mutex<Vec<Value>>,
    sessions: Mutex<BTreeSet<String>>,
    /// Members that replace or extend the usual `initialize` result.
    hello: Mutex<Value>,
    /// Whether the server keeps no sessions.
    forgetful: AtomicBool,
    /// The number of sessions begun so far, so that no session id is used twice.
    begun: AtomicUsize,
    on_call: Mutex<Option<OnCall>>,
    script: Mutex<Option<Script>>,
    seen: watch::Sender<usize>,
    /// The source of the session's GET stream.
    own_stream: Mutex<Option<mpsc::Receiver<io::Result<Bytes>>>>,
}

impl Upstream {
    pub async fn start() -> Upstream {
        Self::begin(Eras::Both, None, 0).await
    }

    /// Starts on this port rather than on a free one.
    pub async fn on(port: u16) -> Upstream {
        Self::begin(Eras::Both, None, port).await
    }

    pub async fn legacy() -> Upstream {
        Self::begin(Eras::Legacy, None, 0).await
    }

    pub async fn modern() -> Upstream {
        Self::begin(Eras::Modern, None, 0).await
    }

    pub async fn with_tls(authority: &Authority) -> Upstream {
        Self::begin(Eras::Both, Some(authority), 0).await
    }

    async fn begin(eras: Eras, authority: Option<&Authority>, port: u16) -> Upstream {
        let state = Arc::new(State {
            eras,
            received: Mutex::default(),
            arrived: watch::Sender::new(0),
            faults: Mutex::default(),
            steps: Semaphore::new(0),
            tools: Mutex::new(tools()),
            sessions: Mutex::default(),
            hello: Mutex::new(json!({})),
            forgetful: AtomicBool::new(false),
            begun: AtomicUsize::new(0),
            on_call: Mutex::default(),
            script: Mutex::default(),
            seen: watch::Sender::new(0),
            own_stream: Mutex::default(),
        });
        let shared = state.clone();
        let answer: Answering = Arc::new(move |request| Box::pin(shared.clone().answer(request)));
        let tls = authority.map(|authority| server_tls(&authority.server(), None));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let port = serve(port, tls, answer).await;
        Upstream {
            url: format!("{scheme}://localhost:{port}/mcp"),
            state,
        }
    }

    /// Every request so far, in order of arrival.
    pub fn received(&self) -> Vec<Received> {
        self.state.received.lock().unwrap().clone()
    }

    /// The tool calls so far.
    pub fn calls(&self) -> Vec<Received> {
        self.received()
            .into_iter()
            .filter(|request| request.tool().is_some())
            .collect()
    }

    /// Forgets what it received so far: a long test need not keep all of it.
    pub fn forget(&self) {
        self.state.received.lock().unwrap().clear();
    }

    /// Waits until so many tool calls have arrived, answered or not.
    pub async fn after_calls(&self, count: usize) {
        let mut arrived = self.state.arrived.subscribe();
        soon(
            &format!("{count} calls to reach the server"),
            arrived.wait_for(|seen| *seen >= count),
        )
        .await
        .unwrap();
    }

    /// From now on, calls of this tool end with this fault.
    pub fn fault(&self, tool: &str, fault: Fault) {
        self.state.faults.lock().unwrap().insert(tool.into(), fault);
    }

    pub fn behave(&self) {
        self.state.faults.lock().unwrap().clear();
    }

    /// Releases one more event of `slow`, or one held answer.
    pub fn step(&self) {
        self.state.steps.add_permits(1);
    }

    /// Ends all sessions, as a restart would.
    pub fn forget_sessions(&self) {
        self.state.sessions.lock().unwrap().clear();
    }

    /// Replaces or extends the members of the legacy `initialize` result.
    pub fn say_hello(&self, with: Value) {
        *self.state.hello.lock().unwrap() = with;
    }

    /// From now on, begins no sessions and needs none.
    pub fn keep_no_sessions(&self) {
        self.state.forgetful.store(true, Ordering::Relaxed);
    }

    /// Offers one more tool.
    pub fn offer(&self, definition: Value) {
        self.state.tools.lock().unwrap().push(definition);
    }

    /// Changes the description of a tool.
    pub fn redescribe(&self, tool: &str, description: &str) {
        for definition in self
            .state
            .tools
            .lock()
            .unwrap()
            .iter_mut()
            .filter(|definition| definition["name"] == tool)
        {
            definition["description"] = json!(description);
        }
    }

    /// Offers a GET stream, once; it lasts as long as the sender, which `say` feeds.
    pub fn offer_stream(&self) -> mpsc::Sender<io::Result<Bytes>> {
        let (send, receive) = mpsc::channel(8);
        *self.state.own_stream.lock().unwrap() = Some(receive);
        send
    }

    /// From now on, this closure may answer any request instead of the server.
    pub fn script(&self, answer: impl Fn(&Received) -> Option<Scripted> + Send + 'static) {
        *self.state.script.lock().unwrap() = Some(Box::new(answer));
    }

    /// Waits until a request has arrived that satisfies `is`.
    pub async fn arrived(&self, what: &str, is: impl Fn(&Received) -> bool) -> Received {
        let mut seen = self.state.seen.subscribe();
        let found = || self.received().into_iter().find(|received| is(received));
        soon(what, seen.wait_for(|_| found().is_some())).await.unwrap();
        found().expect("what has arrived stays")
    }

    /// Runs this closure with each tool call as it arrives, before it is answered.
    pub fn on_call(&self, look: impl Fn(&Received) + Send + 'static) {
        *self.state.on_call.lock().unwrap() = Some(Box::new(look));
    }
}

/// Sends one event on a stream that was offered.
pub async fn say(stream: &mpsc::Sender<io::Result<Bytes>>, message: &Value) {
    stream.send(Ok(event(message))).await.expect("somebody reads the stream");
}

impl Received {
    pub fn method(&self) -> &str {
        self.message["method"].as_str().unwrap_or_default()
    }

    /// The tool of a tool call.
    pub fn tool(&self) -> Option<&str> {
        (self.method() == "tools/call").then(|| self.message["params"]["name"].as_str().unwrap_or_default())
    }

    pub fn arguments(&self) -> &Value {
        &self.message["params"]["arguments"]
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The whole request as one text, to search for what must not be in it.
    pub fn everything(&self) -> String {
        let headers: Vec<String> = self
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {value:?}"))
            .collect();
        format!(
            "{} {}\n{}\n{}",
            self.verb,
            self.path,
            headers.join("\n"),
            String::from_utf8_lossy(&self.body)
        )
    }
}

impl State {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let Ok(body) = body.collect().await else { return empty(400) };
        let body = body.to_bytes();
        let received = Received {
            verb: head.method.to_string(),
            path: head.uri.path().to_owned(),
            headers: head.headers,
            message: serde_json::from_slice(&body).unwrap_or_default(),
            body,
        };
        self.received.lock().unwrap().push(received.clone());
        self.seen.send_modify(|count| *count += 1);
        let scripted = self.script.lock().unwrap().as_ref().and_then(|script| script(&received));
        match scripted {
            None => (),
            Some(Scripted::Json(message)) => return scripted_json(&received, message),
            Some(Scripted::Stream(events)) => return stream(events),
            Some(Scripted::Events(all)) => return events(all.iter().map(event).collect()),
            Some(Scripted::Status(status)) => return empty(status),
        }
        if received.tool().is_some() {
            if let Some(look) = &*self.on_call.lock().unwrap() {
                look(&received);
            }
            self.arrived.send_modify(|count| *count += 1);
        }
        match received.verb.as_str() {
            "POST" => self.post(&received).await,
            "DELETE" => self.end_session(&received),
            "GET" => match self.own_stream.lock().unwrap().take() {
                Some(events) => stream(events),
                None => empty(405),
            },
            _ => empty(405),
        }
    }

    async fn post(self: Arc<Self>, received: &Received) -> Response<Body> {
        let id = received.message["id"].clone();
        let modern = received.message["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"].is_string();
        if modern && self.eras == Eras::Legacy {
            return error(400, &id, -32600, "no session");
        }
        if !modern && self.eras == Eras::Modern {
            return error(400, &id, -32022, "only 2026-07-28 is spoken here");
        }
        if !modern && received.method() != "initialize" && !self.knows_session(received) {
            return error(404, &id, -32001, "session not found");
        }
        match received.method() {
            "initialize" => self.begin_session(received),
            method if method.starts_with("notifications/") => empty(202),
            "" if received.message.get("id").is_some() => empty(202),
            "ping" => result(&id, json!({}), modern),
            "server/discover" if modern => result(&id, discovery(), modern),
            "tools/list" => result(&id, json!({ "tools": *self.tools.lock().unwrap() }), modern),
            "tools/call" => self.call(received, modern).await,
            "subscriptions/listen" if modern => match self.own_stream.lock().unwrap().take() {
                Some(events) => stream(events),
                None => events(vec![event(&resources_and_prompts::acknowledged(received))]),
            },
            _ => match resources_and_prompts::result(received) {
                Some(found) => result(&id, found, modern),
                None => error(404, &id, -32601, "method not found"),
            },
        }
    }

    async fn call(self: Arc<Self>, received: &Received, modern: bool) -> Response<Body> {
        let id = received.message["id"].clone();
        let tool = received.tool().unwrap_or_default();
        let fault = self.faults.lock().unwrap().get(tool).cloned();
        let answer = text(&said(tool, received.arguments()));
        match fault {
            None if tool == "slow" => self.slowly(received, modern),
            None => result(&id, answer, modern),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Hold) => {
                self.step().await;
                result(&id, answer, modern)
            }
            Some(Fault::Stream) => events(vec![event(&message(&id, answer, modern))]),
            Some(Fault::Break) => self.broken(received),
            Some(Fault::Redirect(to)) => with(empty(307), "location", &to),
            Some(Fault::Challenge) => with(
                empty(401),
                "www-authenticate",
                r#"Bearer resource_metadata="https://elsewhere.test/.well-known/oauth-protected-resource""#,
            ),
            Some(Fault::Cookies) => {
                let answer = with(result(&id, answer, modern), "set-cookie", "upstream=1; Path=/");
                with(answer, "x-powered-by", "recorder")
            }
            Some(Fault::Status(status)) => with(full(status, "text/plain", "out of order".into()), "x-powered-by", "recorder"),
            Some(Fault::Garbage) => full(200, "application/json", "{\"jsonrpc\":".into()),
            Some(Fault::ToolError) => result(
                &id,
                json!({ "content": [{ "type": "text", "text": "no" }], "isError": true }),
                modern,
            ),
        }
    }

    /// `events` progress notifications, each after a step, and after one more step the result.
    fn slowly(self: Arc<Self>, received: &Received, modern: bool) -> Response<Body> {
        let (send, receive) = mpsc::channel(1);
        let received = received.clone();
        tokio::spawn(async move {
            let count = received.arguments()["events"].as_u64().unwrap_or(3);
            for number in 1..=count {
                self.step().await;
                if send.send(Ok(event(&progress(&received, number)))).await.is_err() {
                    return;
                }
            }
            self.step().await;
            let last = message(&received.message["id"], text(&format!("{count} events")), modern);
            // The client may be gone by now.
            let _ = send.send(Ok(event(&last))).await;
        });
        stream(receive)
    }

    /// Sends one event, and after a step cuts the connection.
    fn broken(self: Arc<Self>, received: &Received) -> Response<Body> {
        let (send, receive) = mpsc::channel(1);
        let first = event(&progress(received, 1));
        tokio::spawn(async move {
            let begun = send.send(Ok(first)).await;
            self.step().await;
            // The client may be gone by now.
            let _ = send.send(Err(io::Error::other("cut off on purpose"))).await;
            begun
        });
        stream(receive)
    }

    async fn step(&self) {
        let step = tokio::time::timeout(LONGEST, self.steps.acquire()).await;
        step.expect("the story steps on").expect("the semaphore stays open").forget();
    }

    fn begin_session(&self, received: &Received) -> Response<Body> {
        let asked = received.message["params"]["protocolVersion"].as_str().unwrap_or_default();
        let version = if asked == "2026-07-28" { "2025-11-25" } else { asked };
        let mut capabilities = resources_and_prompts::capabilities();
        (capabilities["tools"], capabilities["logging"]) = (json!({ "listChanged": true }), json!({}));
        let mut offer = json!({ "protocolVersion": version, "capabilities": capabilities, "serverInfo": server_info() });
        for (name, value) in self.hello.lock().unwrap().as_object().expect("an object") {
            offer[name] = value.clone();
        }
        if self.forgetful.load(Ordering::Relaxed) {
            return result(&received.message["id"], offer, false);
        }
        let session = format!("upstream-session-{}", self.begun.fetch_add(1, Ordering::Relaxed) + 1);
        self.sessions.lock().unwrap().insert(session.clone());
        with(result(&received.message["id"], offer, false), "mcp-session-id", &session)
    }

    fn end_session(&self, received: &Received) -> Response<Body> {
        let known = received
            .header("mcp-session-id")
            .is_some_and(|session| self.sessions.lock().unwrap().remove(session));
        empty(if known { 200 } else { 404 })
    }

    fn knows_session(&self, received: &Received) -> bool {
        let known = |session: &str| self.sessions.lock().unwrap().contains(session);
        self.forgetful.load(Ordering::Relaxed) || received.header("mcp-session-id").is_some_and(known)
    }
}

/// The text that a tool answers with.
fn said(tool: &str, arguments: &Value) -> String {
    let argument = |name: &str| arguments[name].as_str().unwrap_or_default();
    match tool {
        "echo" => argument("text").to_owned(),
        "add" => (arguments["a"].as_i64().unwrap_or(0) + arguments["b"].as_i64().unwrap_or(0)).to_string(),
        "read_file" => format!("contents of {}", argument("path")),
        "write_file" => format!("wrote {}", argument("path")),
        "delete_file" => format!("deleted {}", argument("path")),
        "query" => "0 rows".to_owned(),
        other => format!("no tool `{other}`"),
    }
}

fn tools() -> Vec<Value> {
    let read = json!({ "readOnlyHint": true });
    let destroy = json!({ "readOnlyHint": false, "destructiveHint": true });
    let write = json!({ "readOnlyHint": false, "destructiveHint": false });
    vec![
        tool(
            "echo",
            "Says it back",
            json!({ "text": { "type": "string" } }),
            &["text"],
            &read,
        ),
        tool(
            "add",
            "Adds two numbers",
            json!({ "a": { "type": "integer" }, "b": { "type": "integer" } }),
            &["a", "b"],
            &read,
        ),
        tool(
            "read_file",
            "Reads a file",
            json!({ "path": { "type": "string" } }),
            &["path"],
            &read,
        ),
        tool(
            "write_file",
            "Writes a file",
            json!({ "path": { "type": "string" }, "text": { "type": "string" } }),
            &["path", "text"],
            &write,
        ),
        tool(
            "delete_file",
            "Deletes a file",
            json!({ "path": { "type": "string" } }),
            &["path"],
            &destroy,
        ),
        tool(
            "query",
            "Runs a query",
            json!({ "sql": { "type": "string" } }),
            &["sql"],
            &read,
        ),
        tool(
            "slow",
            "Takes its time",
            json!({ "events": { "type": "integer" } }),
            &[],
            &read,
        ),
    ]
}

fn tool(name: &str, description: &str, properties: Value, required: &[&str], annotations: &Value) -> Value {
    let schema = json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false });
    json!({ "name": name, "description": description, "inputSchema": schema, "annotations": annotations })
}

fn server_info() -> Value {
    json!({ "name": "recorder", "version": "1.0.0" })
}

fn discovery() -> Value {
    let mut capabilities = resources_and_prompts::capabilities();
    capabilities["tools"] = json!({});
    json!({
        "supportedVersions": ["2026-07-28"],
        "capabilities": capabilities,
        "_meta": { "io.modelcontextprotocol/serverInfo": server_info() },
        "ttlMs": 60_000,
        "cacheScope": "public",
    })
}

fn progress(received: &Received, number: u64) -> Value {
    let token = &received.message["params"]["_meta"]["progressToken"];
    json!({ "jsonrpc": "2.0", "method": "notifications/progress", "params": { "progressToken": token, "progress": number } })
}

fn text(text: &str) -> Value {
    json!({ "content": [{ "type": "text", "text": text }] })
}

fn message(id: &Value, mut result: Value, modern: bool) -> Value {
    if modern {
        result["resultType"] = json!("complete");
        if resources_and_prompts::is_kept(&result) {
            (result["ttlMs"], result["cacheScope"]) = (json!(60_000), json!("public"));
        }
    }
    json!({ "jsonrpc": "2.0", "id": id, "result": result })
}

fn event(message: &Value) -> Bytes {
    Bytes::from(format!("event: message\ndata: {message}\n\n"))
}

fn result(id: &Value, value: Value, modern: bool) -> Response<Body> {
    full(200, "application/json", message(id, value, modern).to_string())
}

fn error(status: u16, id: &Value, code: i64, message: &str) -> Response<Body> {
    let body = json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } });
    full(status, "application/json", body.to_string())
}

fn scripted_json(received: &Received, message: Value) -> Response<Body> {
    let message = match message.get("jsonrpc") {
        Some(_) => message,
        None => json!({ "jsonrpc": "2.0", "id": received.message["id"], "result": message }),
    };
    full(200, "application/json", message.to_string())
}

fn full(status: u16, media_type: &str, body: String) -> Response<Body> {
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
    let response = Response::builder().status(status).header("content-type", media_type);
    response.body(body).expect("a status and a media type")
}

fn empty(status: u16) -> Response<Body> {
    let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(status).body(body).expect("a status")
}

fn with(mut response: Response<Body>, name: &'static str, value: &str) -> Response<Body> {
    response.headers_mut().append(name, value.parse().expect("a header value"));
    response
}

fn events(all: Vec<Bytes>) -> Response<Body> {
    let (send, receive) = mpsc::channel(all.len());
    all.into_iter()
        .for_each(|event| send.try_send(Ok(event)).expect("room for every event"));
    stream(receive)
}

fn stream(events: mpsc::Receiver<io::Result<Bytes>>) -> Response<Body> {
    let response = Response::builder()
        .header("content-type", "text/event-stream")
        .header("cache-control", "no-cache");
    response.body(Channel(events).boxed_unsync()).expect("a stream of events")
}

/// A body fed by a channel, so that a story decides when the next piece is sent.
struct Channel(mpsc::Receiver<io::Result<Bytes>>);

impl http_body::Body for Channel {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.get_mut().0.poll_recv(context).map_ok(Frame::data)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_recorder_answers_both_eras_over_tls_and_remembers_every_byte() {
    use super::client::Client;
    use super::http::{Address, Protocol};
    let authority = Authority::new("recorder");
    let upstream = Upstream::with_tls(&authority).await;
    let port = upstream
        .url
        .trim_end_matches("/mcp")
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let client = || Client::new(Address::tls(port, &authority, None, Protocol::Http1), "any").bearer("canary");

    let mut legacy = client();
    assert_eq!(legacy.call("echo", json!({ "text": "a" })).await.status, 404);
    assert!(legacy.handshake().await.is_result());
    assert_eq!(legacy.list().await.len(), 7);
    assert_eq!(legacy.call("add", json!({ "a": 1, "b": 2 })).await.text(), "3");
    let modern = client().modern();
    assert_eq!(modern.call("echo", json!({ "text": "b" })).await.text(), "b");
    upstream.fault("echo", Fault::Stream);
    assert_eq!(modern.call("echo", json!({ "text": "c" })).await.text(), "c");
    upstream.fault("echo", Fault::Break);
    let call = modern.request("tools/call", json!({ "name": "echo", "arguments": {} }));
    upstream.step();
    assert!(modern.try_post(&call).await.is_err());
    let slow = modern.request("tools/call", json!({ "name": "slow", "arguments": { "events": 1 } }));
    let mut stream = modern.open(&slow).await.unwrap();
    for part in ["progress", "1 events"] {
        upstream.step();
        assert!(stream.event().await.unwrap().unwrap().contains(part));
    }
    assert_eq!(stream.event().await.unwrap(), None);

    assert_eq!(upstream.calls().len(), 6);
    assert!(
        upstream
            .received()
            .iter()
            .all(|request| request.everything().contains("Bearer canary"))
    );
}
