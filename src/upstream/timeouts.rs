//! Time and size limits for the answers of one server.

use crate::config::ServerConfig;
use std::time::Duration;

/// Time and size limits of one answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    pub first_byte: Duration,
    pub idle: Duration,
    pub max_answer: usize,
    pub max_event: usize,
}

/// The largest stream event; an event is held in memory until it is complete.
const MAX_EVENT_BYTES: usize = 16 * 1024 * 1024;

impl Timeouts {
    pub fn new(config: &ServerConfig) -> Self {
        Self {
            first_byte: config.first_byte_timeout.0,
            idle: config.idle_timeout.0,
            max_answer: config.max_answer_bytes,
            max_event: config.max_answer_bytes.min(MAX_EVENT_BYTES),
        }
    }
}
