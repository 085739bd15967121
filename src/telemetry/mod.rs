//! Log lines on standard error and the metrics of `/metrics`.
//!
//! Neither holds a secret, a user or an argument: who called what is only in the audit trail.

mod log;
mod metrics;

pub use log::{LogError, check_level, start};
pub use metrics::{GaugeGuard, Metrics};
