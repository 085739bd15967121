//! Health and metrics for operators, on their own listener. Shows no secret and no user's name.

use crate::transport::{self, Body, Peer};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::json;
use std::sync::Arc;

/// The health of this instance, as the app reports it.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// Why calls cannot be served; empty if they can.
    pub not_ready: Vec<String>,
    /// What is wrong although calls are served.
    pub degraded: Vec<String>,
    pub journal: &'static str,
    pub unshipped: u64,
    /// `None` before the first call is admitted.
    pub grants_age_ms: Option<u64>,
    pub policy_set: String,
    pub catalogue: String,
    pub version: &'static str,
}

/// Answers `/livez`, `/readyz`, `/health` and `/metrics`. `look` and `metrics` run only when a path needs them.
pub struct Console {
    pub look: Box<dyn Fn() -> Health + Send + Sync>,
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
}

impl Console {
    /// Answers one request; only GET and HEAD are allowed.
    pub async fn handle(self: Arc<Self>, request: Request<Incoming>, _: Arc<Peer>) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is offered here\n".to_owned());
        }
        match request.uri().path() {
            "/livez" => text(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => ready(&(self.look)()),
            "/health" => health(&(self.look)()),
            "/metrics" => metrics((self.metrics)()),
            _ => text(StatusCode::NOT_FOUND, "try /livez, /readyz, /health or /metrics\n".to_owned()),
        }
    }
}

fn ready(health: &Health) -> Response<Body> {
    if health.not_ready.is_empty() {
        return text(StatusCode::OK, "ready\n".to_owned());
    }
    text(
        StatusCode::SERVICE_UNAVAILABLE,
        format!("not ready: {}\n", health.not_ready.join("; ")),
    )
}

fn health(health: &Health) -> Response<Body> {
    let status = if !health.not_ready.is_empty() {
        "unavailable"
    } else if !health.degraded.is_empty() {
        "degraded"
    } else {
        "ok"
    };
    let document = json!({
        "status": status,
        "not_ready": health.not_ready,
        "degraded": health.degraded,
        "journal": { "state": health.journal, "unshipped": health.unshipped },
        "grants": { "age_ms": health.grants_age_ms },
        "policy_set": health.policy_set,
        "catalogue": health.catalogue,
        "version": health.version,
    });
    let code = if health.not_ready.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    answer(code, "application/json", format!("{document}\n"))
}

fn metrics(text: String) -> Response<Body> {
    answer(
        StatusCode::OK,
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
        text,
    )
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    answer(status, "text/plain; charset=utf-8", text)
}

fn answer(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(transport::full(Bytes::from(text)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
