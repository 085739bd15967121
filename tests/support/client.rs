//! A minimal MCP client for either era, on one TLS connection; a story controls every header.

use super::http::{Address, Connection, Reply};
use super::wait::soon;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::Full;
use serde_json::{Value, json};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Mutex;

pub const LEGACY: &str = "2025-11-25";
pub const MODERN: &str = "2026-07-28";

pub struct Client {
    pub address: Address,
    /// `/mcp/<server>`
    pub path: String,
    pub version: &'static str,
    pub session: Option<String>,
    /// The capabilities that the client declares: none, unless the story sets some.
    pub capabilities: Value,
    /// Sent with every request: the credential, and whatever a story adds.
    pub headers: HeaderMap,
    next_id: AtomicU64,
    connection: Mutex<Option<Connection>>,
    connections: AtomicU64,
}

/// The answer to one message.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    /// The body as it came.
    pub body: String,
    /// The JSON-RPC response in the body, also when it came as an event; `null` if there is none.
    pub message: Value,
}

impl Client {
    pub fn new(address: Address, server: &str) -> Client {
        Client {
            address,
            path: format!("/mcp/{server}"),
            version: LEGACY,
            session: None,
            capabilities: json!({}),
            headers: HeaderMap::new(),
            next_id: AtomicU64::new(1),
            connection: Mutex::default(),
            connections: AtomicU64::new(0),
        }
    }

    pub fn modern(mut self) -> Client {
        self.version = MODERN;
        self
    }

    /// A client of the modern era that declares the tasks extension.
    pub fn doing_tasks(mut self) -> Client {
        self.capabilities = json!({ "extensions": { "io.modelcontextprotocol/tasks": {} } });
        self.modern()
    }

    pub fn with(mut self, name: &str, value: &str) -> Client {
        let name: HeaderName = name.parse().unwrap();
        self.headers.append(name, value.parse().unwrap());
        self
    }

    pub fn bearer(self, credential: &str) -> Client {
        self.with("authorization", &format!("Bearer {credential}"))
    }

    /// The handshake of the legacy era; keeps the session.
    pub async fn handshake(&mut self) -> Answer {
        let params = json!({
            "protocolVersion": self.version,
            "capabilities": self.capabilities,
            "clientInfo": { "name": "stories", "version": "1" },
        });
        let answer = self.ask("initialize", params).await;
        self.session = answer
            .headers
            .get("mcp-session-id")
            .map(|session| session.to_str().unwrap().to_owned());
        if answer.is_result() {
            let note = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
            assert_eq!(self.post(&note).await.status, 202);
        }
        answer
    }

    pub async fn call(&self, tool: &str, arguments: Value) -> Answer {
        self.ask("tools/call", json!({ "name": tool, "arguments": arguments })).await
    }

    /// The names of the tools in the caller's `tools/list`.
    pub async fn list(&self) -> Vec<String> {
        let answer = self.ask("tools/list", json!({})).await;
        let tools = answer.message["result"]["tools"]
            .as_array()
            .unwrap_or_else(|| panic!("no list: {answer:?}"));
        tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
    }

    /// The same client on a connection of its own.
    pub fn alike(&self) -> Client {
        let mut other = Client::new(self.address.clone(), "");
        other.path.clone_from(&self.path);
        other.version = self.version;
        other.session.clone_from(&self.session);
        other.capabilities = self.capabilities.clone();
        other.headers = self.headers.clone();
        other.next_id.store(1_000, Ordering::Relaxed);
        other
    }

    /// Sends a request with the next id and returns the answer.
    pub async fn ask(&self, method: &str, params: Value) -> Answer {
        self.post(&self.request(method, params)).await
    }

    /// The message that `ask` would send.
    pub fn request(&self, method: &str, mut params: Value) -> Value {
        if self.version == MODERN {
            params["_meta"] = json!({
                "io.modelcontextprotocol/protocolVersion": MODERN,
                "io.modelcontextprotocol/clientInfo": { "name": "stories", "version": "1" },
                "io.modelcontextprotocol/clientCapabilities": self.capabilities,
            });
        }
        json!({ "jsonrpc": "2.0", "id": self.next_id.fetch_add(1, Ordering::Relaxed), "method": method, "params": params })
    }

    pub async fn post(&self, message: &Value) -> Answer {
        let answer = self.try_post(message).await;
        answer.unwrap_or_else(|error| panic!("no answer to {message}: {error}"))
    }

    /// `Err` if the connection broke before the answer was whole.
    pub async fn try_post(&self, message: &Value) -> io::Result<Answer> {
        Answer::read(self.open(message).await?).await
    }

    /// Sends the message and returns the head of the answer; the story reads the body event by event.
    pub async fn open(&self, message: &Value) -> io::Result<Reply> {
        let mut headers = self.base_headers();
        if self.version == MODERN {
            let mirrored = |text: &Value| HeaderValue::from_str(text.as_str().unwrap_or_default()).unwrap();
            headers.insert("mcp-method", mirrored(&message["method"]));
            let named = match message["method"].as_str().unwrap_or_default() {
                "tools/call" | "prompts/get" => Some("name"),
                "resources/read" => Some("uri"),
                "tasks/get" | "tasks/update" | "tasks/cancel" => Some("taskId"),
                _ => None,
            };
            if let Some(member) = named {
                headers.insert("mcp-name", mirrored(&message["params"][member]));
            }
        }
        self.send("POST", headers, message.to_string().into()).await
    }

    /// Opens the session's GET stream on a connection of its own.
    pub async fn own_stream(&self) -> Reply {
        let reply = self.alike().send("GET", self.stream_headers(), Bytes::new()).await.unwrap();
        assert_eq!(reply.status, 200);
        reply
    }

    /// The headers of a GET for that stream.
    pub fn stream_headers(&self) -> HeaderMap {
        let mut headers = self.base_headers();
        headers.remove("content-type");
        headers.insert("accept", HeaderValue::from_static("text/event-stream"));
        headers
    }

    /// Sends any request with these headers and no others but `host`.
    pub async fn send(&self, verb: &str, headers: HeaderMap, body: Bytes) -> io::Result<Reply> {
        let mut request = Request::builder().method(verb).uri(&self.path).body(Full::new(body)).unwrap();
        *request.headers_mut() = headers;
        let host = HeaderValue::from_str(&format!("localhost:{}", self.address.port)).unwrap();
        request.headers_mut().entry("host").or_insert(host);
        let mut slot = self.connection.lock().await;
        let mut kept = slot.take();
        let usable = match &mut kept {
            Some(connection) => soon("the answer before to be read", connection.is_usable()).await,
            None => false,
        };
        let mut connection = match kept.filter(|_| usable) {
            Some(connection) => connection,
            None => {
                self.connections.fetch_add(1, Ordering::Relaxed);
                soon("a connection", self.address.connect()).await?
            }
        };
        let reply = soon("the head of an answer", connection.send(request)).await?;
        *slot = Some(connection);
        Ok(reply)
    }

    /// Sends a message that needs no session; `Err` if there is no answer.
    pub async fn send_ping(&self) -> io::Result<Answer> {
        self.try_post(&self.request("ping", json!({}))).await
    }

    /// Whether the client had to connect again.
    pub fn reconnected(&self) -> bool {
        self.connections.load(Ordering::Relaxed) > 1
    }

    /// The headers of every POST of this client.
    pub fn base_headers(&self) -> HeaderMap {
        let mut headers = self.headers.clone();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        headers.insert("accept", HeaderValue::from_static("application/json, text/event-stream"));
        if self.session.is_some() || self.version == MODERN {
            headers.insert("mcp-protocol-version", HeaderValue::from_static(self.version));
        }
        if let Some(session) = &self.session {
            headers.insert("mcp-session-id", HeaderValue::from_str(session).unwrap());
        }
        headers
    }
}

impl Answer {
    pub async fn read(reply: Reply) -> io::Result<Answer> {
        let (status, headers) = (reply.status, reply.headers.clone());
        let body = soon("the rest of an answer", reply.text()).await?;
        let data = body.lines().filter_map(|line| line.strip_prefix("data:"));
        let last = data
            .filter_map(|data| serde_json::from_str::<Value>(data).ok())
            .rfind(|message| message.get("id").is_some());
        let message = serde_json::from_str(&body).ok().or(last).unwrap_or_default();
        Ok(Answer {
            status,
            headers,
            body,
            message,
        })
    }

    /// Whether it is a result that the server or Guardian gave, and no refusal.
    pub fn is_result(&self) -> bool {
        self.message.get("result").is_some() && self.data().is_null()
    }

    /// The text of a tool result.
    pub fn text(&self) -> &str {
        let text = self.message["result"]["content"][0]["text"].as_str();
        text.unwrap_or_else(|| panic!("no text: {self:?}"))
    }

    /// The reason code of a refusal; empty if the answer is not one.
    pub fn reason(&self) -> &str {
        self.data()["reason"].as_str().unwrap_or_default()
    }

    /// What a refusal says for programs: in a tool result or in a JSON-RPC error.
    pub fn data(&self) -> &Value {
        match &self.message["result"]["_meta"]["guardian/refusal"] {
            Value::Null => &self.message["error"]["data"],
            refusal => refusal,
        }
    }

    /// What a refusal says for people and models.
    pub fn told(&self) -> &str {
        match self.message["error"]["message"].as_str() {
            Some(message) => message,
            None => self.text(),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// `allowed`, or the status and reason of the refusal.
    pub fn verdict(&self) -> String {
        if self.is_result() {
            "allowed".into()
        } else {
            format!("{} {}", self.status, self.reason())
        }
    }
}
