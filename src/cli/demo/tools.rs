//! The demo tools: their definitions, how their arguments are read, and what each does. An unknown argument is an error.

use super::DemoServer;
use super::query;
use super::reply::{self, HttpReply};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub(super) const INSTRUCTIONS: &str =
    "A demo server: files in a scratch folder, a small table of cities to query, and a slow counter.";

/// What a tool gives: its result, or a count that is streamed.
pub(super) enum CallOutcome {
    Done(Value),
    Count(Count),
}

/// A requested count that has not started.
pub(super) struct Count {
    to: u64,
    delay: Duration,
    token: Option<Value>,
}

pub(super) fn server_info() -> Value {
    json!({ "name": "guardian-demo", "title": "Guardian demo server", "version": env!("CARGO_PKG_VERSION") })
}

pub(super) fn definitions() -> Value {
    let path = |what: &str| json!({ "type": "string", "minLength": 1, "maxLength": 200, "description": what });
    let schema = |properties: Value, required: &[&str]| json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false });
    let reads = json!({ "readOnlyHint": true, "openWorldHint": false });
    json!([
        {
            "name": "list_files",
            "title": "List files",
            "description": "Lists a folder of the scratch folder, by default the scratch folder itself. Folders end in `/`.",
            "inputSchema": schema(json!({ "path": path("Folder, such as `notes`.") }), &[]),
            "annotations": reads,
        },
        {
            "name": "read_file",
            "title": "Read a file",
            "description": "Reads a text file of the scratch folder.",
            "inputSchema": schema(json!({ "path": path("File, such as `notes/todo.txt`.") }), &["path"]),
            "annotations": reads,
        },
        {
            "name": "write_file",
            "title": "Write a file",
            "description": "Writes a text file into the scratch folder, folders included. What stood there before is kept as `<path>~`.",
            "inputSchema": schema(
                json!({
                    "path": path("File, such as `notes/ideas.txt`."),
                    "content": { "type": "string", "maxLength": 65_536, "description": "The whole text." },
                }),
                &["path", "content"],
            ),
            "annotations": { "readOnlyHint": false, "destructiveHint": false, "idempotentHint": false, "openWorldHint": false },
        },
        {
            "name": "delete_file",
            "title": "Delete a file",
            "description": "Deletes a file of the scratch folder for good.",
            "inputSchema": schema(json!({ "path": path("File, such as `notes/todo.txt`.") }), &["path"]),
            "annotations": { "readOnlyHint": false, "destructiveHint": true, "idempotentHint": false, "openWorldHint": false },
        },
        {
            "name": "query",
            "title": "Query the cities",
            "description": format!("Reads a small table with one SQL-like statement: {}.", query::grammar()),
            "inputSchema": schema(
                json!({
                    "sql": {
                        "type": "string",
                        "minLength": 1,
                        "maxLength": 1_000,
                        "description": "Such as `SELECT name, population FROM cities WHERE continent = 'Europe'`.",
                    },
                }),
                &["sql"],
            ),
            "annotations": reads,
        },
        {
            "name": "count",
            "title": "Count slowly",
            "description": "Counts to a number and reports progress on the way.",
            "inputSchema": schema(
                json!({
                    "to": { "type": "integer", "minimum": 1, "maximum": 100 },
                    "delay_ms": { "type": "integer", "minimum": 0, "maximum": 2_000, "default": DEFAULT_DELAY_MS,
                                  "description": "Pause before each number." },
                }),
                &["to"],
            ),
            "annotations": reads,
        },
    ])
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FolderArgs {
    #[serde(default = "here")]
    path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileArgs {
    path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WriteArgs {
    path: String,
    content: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QueryArgs {
    sql: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CountArgs {
    to: u64,
    #[serde(default = "default_delay")]
    delay_ms: u64,
}

const DEFAULT_DELAY_MS: u64 = 200;

/// Runs a tool. `Err` becomes a JSON-RPC error; a tool that fails returns a result with `isError`.
pub(super) fn call(server: &DemoServer, params: &Map<String, Value>) -> Result<CallOutcome, String> {
    let name = params.get("name").and_then(Value::as_str).ok_or("`name` is missing")?;
    let arguments = params.get("arguments").cloned().unwrap_or_else(|| json!({}));
    let scratch = &server.scratch;
    let said = match name {
        "list_files" => parse_arguments(arguments).and_then(|FolderArgs { path }| scratch.list(&path)),
        "read_file" => parse_arguments(arguments).and_then(|FileArgs { path }| scratch.read(&path)),
        "write_file" => parse_arguments(arguments).and_then(|WriteArgs { path, content }| scratch.write(&path, &content)),
        "delete_file" => parse_arguments(arguments).and_then(|FileArgs { path }| scratch.delete(&path)),
        "query" => parse_arguments(arguments).and_then(|QueryArgs { sql }| query::run(&sql)),
        "count" => match parse_arguments(arguments).and_then(Count::new) {
            Ok(count) => {
                let token = params.get("_meta").and_then(|meta| meta.get("progressToken")).cloned();
                return Ok(CallOutcome::Count(Count { token, ..count }));
            }
            Err(text) => Err(text),
        },
        other => return Err(format!("there is no tool `{other}`")),
    };
    Ok(CallOutcome::Done(match said {
        Ok(text) => json!({ "content": [{ "type": "text", "text": text }], "isError": false }),
        Err(text) => json!({ "content": [{ "type": "text", "text": text }], "isError": true }),
    }))
}

impl Count {
    fn new(numbers: CountArgs) -> Result<Self, String> {
        let CountArgs { to, delay_ms } = numbers;
        if !(1..=100).contains(&to) {
            return Err("`to` must be from 1 to 100".to_owned());
        }
        if delay_ms > 2_000 {
            return Err("`delay_ms` must be at most 2000".to_owned());
        }
        Ok(Self {
            to,
            delay: Duration::from_millis(delay_ms),
            token: None,
        })
    }

    /// Counts in a task of its own, which ends when the client disconnects or `end` is cancelled (the session or the server
    /// ends). `dress` adds what the era requires of a result.
    pub(super) fn stream(
        self,
        server: &Arc<DemoServer>,
        id: Value,
        end: CancellationToken,
        dress: fn(Value) -> Value,
    ) -> HttpReply {
        let (sender, receiver) = mpsc::channel(1);
        server.streams.spawn(async move {
            for reached in 1..=self.to {
                tokio::select! {
                    () = end.cancelled() => return,
                    () = sender.closed() => return,
                    () = tokio::time::sleep(self.delay) => {}
                }
                let Some(token) = &self.token else { continue };
                let progress = json!({
                    "jsonrpc": "2.0",
                    "method": "notifications/progress",
                    "params": {
                        "progressToken": token,
                        "progress": reached,
                        "total": self.to,
                        "message": format!("{reached} of {}", self.to),
                    },
                });
                if sender.send(reply::sse_event(&progress)).await.is_err() {
                    return;
                }
            }
            let text = format!("Counted to {}.", self.to);
            let result = dress(json!({ "content": [{ "type": "text", "text": text }], "isError": false }));
            let last = json!({ "jsonrpc": "2.0", "id": id, "result": result });
            // an error means that the client has disconnected
            let _gone = sender.send(reply::sse_event(&last)).await;
        });
        reply::events(receiver)
    }
}

fn parse_arguments<T: DeserializeOwned>(arguments: Value) -> Result<T, String> {
    serde_json::from_value(arguments).map_err(|error| format!("the arguments do not fit: {error}"))
}

fn here() -> String {
    ".".to_owned()
}

fn default_delay() -> u64 {
    DEFAULT_DELAY_MS
}
