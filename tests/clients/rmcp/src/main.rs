//! A client of the official Rust SDK (rmcp). A step is one line on standard input, what the client saw of it one line on
//! standard output, as in `../conversation.mjs` for the TypeScript clients. `mode` is `legacy`, `auto` or a revision.

use rmcp::model::{
    CallToolRequestParams, CallToolResult, ClientCapabilities, ClientConfig, Implementation, ProgressNotificationParam,
    ProtocolVersion,
};
use rmcp::service::{ClientInitializeError, NotificationContext, RunningService};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{ClientHandler, ClientLifecycleMode, ClientServiceExt, RoleClient, ServiceError};
use serde_json::{Value, json};
use std::error::Error;
use std::io::BufRead;
use std::sync::{Arc, Mutex};
use std::time::Duration;

type Connection = RunningService<RoleClient, Host>;
type Seen = Result<Value, Box<dyn Error>>;

#[derive(Clone, Default)]
struct Host {
    progress: Arc<Mutex<Vec<f64>>>,
}

impl ClientHandler for Host {
    fn get_info(&self) -> ClientConfig {
        ClientConfig::new(ClientCapabilities::default(), Implementation::new("guardian-test", "1.0.0"))
    }

    async fn on_progress(&self, told: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        self.progress.lock().expect("nobody panics").push(told.progress);
    }
}

fn main() {
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("the first one");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut connection = None;
    for line in std::io::stdin().lock().lines() {
        let step: Value = serde_json::from_str(&line.expect("a readable line")).expect("a step");
        let seen = runtime.block_on(take(&step, &mut connection));
        println!("{}", seen.unwrap_or_else(|error| told(&*error)));
    }
    if let Some(connection) = connection {
        // The connection may be broken by now, and its end is not reported.
        let _ = runtime.block_on(connection.cancel());
    }
}

async fn take(step: &Value, connection: &mut Option<Connection>) -> Seen {
    if step["do"] == "connect" {
        if let Some(before) = connection.take() {
            before.cancel().await?;
        }
        let now = connection.insert(connect(step).await?);
        let offered = now.peer().peer_info().ok_or("the server said nothing of itself")?;
        let server = offered.server_info.as_ref().map(|info| &info.name);
        return Ok(json!({ "heard": "connected", "protocol": offered.protocol_version, "server": server }));
    }
    let connection = connection.as_ref().ok_or("there is no connection")?;
    let patience = Duration::from_secs(10);
    match step["do"].as_str() {
        Some("list") => {
            let tools = tokio::time::timeout(patience, connection.list_all_tools()).await??;
            let names: Vec<&str> = tools.iter().map(|tool| &*tool.name).collect();
            Ok(json!({ "heard": "tools", "names": names }))
        }
        _ => tokio::time::timeout(patience, call(step, connection)).await?,
    }
}

async fn connect(step: &Value) -> Result<Connection, Box<dyn Error>> {
    let text = |name: &str| step[name].as_str().unwrap_or_default().to_owned();
    let config = StreamableHttpClientTransportConfig::with_uri(text("url")).auth_header(text("key"));
    let mode = match step["mode"].as_str() {
        Some("legacy") => ClientLifecycleMode::Initialize,
        Some("auto") => ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            legacy_version: None,
        },
        _ => ClientLifecycleMode::Discover {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
        },
    };
    let transport = StreamableHttpClientTransport::from_config(config);
    Ok(Host::default().serve_with_lifecycle(transport, mode).await?)
}

async fn call(step: &Value, connection: &Connection) -> Seen {
    let progress = &connection.service().progress;
    progress.lock().expect("nobody panics").clear();
    let mut params = CallToolRequestParams::new(step["tool"].as_str().unwrap_or_default().to_owned());
    params.arguments = step["arguments"].as_object().cloned();
    let CallToolResult {
        content, is_error, meta, ..
    } = connection.call_tool(params).await?;
    // Each notification has a task of its own, which was queued before the answer arrived.
    tokio::task::yield_now().await;
    let text: String = content
        .iter()
        .filter_map(|part| part.as_text())
        .map(|part| part.text.as_str())
        .collect();
    let meta = serde_json::to_value(meta)?;
    Ok(json!({
        "heard": "answer",
        "text": text,
        "isError": is_error.unwrap_or_default(),
        "refusal": meta["guardian/refusal"],
        "progress": *progress.lock().expect("nobody panics"),
    }))
}

/// The error's type in the SDK, and the transport's text under it.
fn told(error: &(dyn Error + 'static)) -> Value {
    let (kind, said) = match (error.downcast_ref(), error.downcast_ref()) {
        (Some(ServiceError::McpError(said)), _) => {
            let (code, message, data) = (said.code, &said.message, &said.data);
            return json!({ "heard": "error", "error": "ServiceError::McpError", "code": code, "message": message, "data": data });
        }
        (Some(ServiceError::TransportSend(cause)), _) => ("ServiceError::TransportSend", chain(&*cause.error)),
        (Some(ServiceError::TransportClosed), _) => ("ServiceError::TransportClosed", chain(error)),
        (Some(_), _) => ("ServiceError", chain(error)),
        (None, Some(initialize)) => ("ClientInitializeError", failure(initialize)),
        (None, None) if error.is::<tokio::time::error::Elapsed>() => ("Timeout", chain(error)),
        (None, None) => ("Error", chain(error)),
    };
    json!({ "heard": "error", "error": kind, "message": said })
}

fn failure(error: &ClientInitializeError) -> String {
    match error {
        ClientInitializeError::TransportError { error, .. } => chain(&*error.error),
        ClientInitializeError::LegacyFallbackFailed { discover, fallback } => {
            format!("discover: {}; initialize: {}", failure(discover), failure(fallback))
        }
        other => chain(other),
    }
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut inner = error;
    while let Some(cause) = inner.source() {
        inner = cause;
        if !said.contains(&cause.to_string()) {
            said = format!("{said}: {cause}");
        }
    }
    said
}
